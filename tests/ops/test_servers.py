"""Two servers on one PostgreSQL: what either does holds at the other, and nothing is done twice.

Both run in this process, on connections of their own, and know nothing of each other. Servers that
end meanwhile are the business of test_workers.py.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from structlog.testing import capture_logs

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.commands import WalletChange
from creditledger.domain.errors import (
    IdempotencyKeyReused,
    InsufficientCredit,
    NotRefundable,
    RefundTooLarge,
    Refusal,
    WalletFrozen,
)
from creditledger.domain.model import Status
from tests.support.databases import execute
from tests.support.persistent_client import reason
from tests.support.server import CUSTOMER, WALLET, grant, post, running
from tests.support.setup import (
    Clock,
    add_wallet,
    command,
    consume,
    give,
    opened,
    posting_id,
    refund,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sqlalchemy import Connection

    from creditledger.domain.commands import Operation
    from creditledger.domain.model import WalletView
    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.refusals import Metadata
    from tests.support.server import Running, Services

pytestmark = pytest.mark.only("postgresql")

UNIT = 10**9


# --- postings -------------------------------------------------------------------------------------


@pytest.fixture
async def stores(database_url: str, clock: Clock) -> AsyncIterator[list[tuple[Store, Ledger]]]:
    """Two stores, each with its committer; wal_acme is empty."""
    async with opened(database_url, clock) as one, opened(database_url, clock) as other:
        yield [one, other]


@pytest.fixture
def ledgers(stores: list[tuple[Store, Ledger]]) -> list[Ledger]:
    """The two committers."""
    return [ledger for _, ledger in stores]


async def outcome(ledger: Ledger, operation: Operation, key: str) -> Posted | Refusal:
    """The answer, or the refusal."""
    try:
        return await ledger.post(command(operation, key=key))
    except Refusal as refusal:
        return refusal


async def wallet_of(ledger: Ledger, wallet_id: str = "wal_acme") -> WalletView:
    """The wallet as this one sees it."""
    return await ledger.change(WalletChange(wallet_id, livemode=True))


def refusals(answers: Sequence[Posted | Refusal]) -> list[type[Refusal]]:
    """What was refused, and why."""
    return [type(answer) for answer in answers if isinstance(answer, Refusal)]


@pytest.mark.parametrize("overdraft", [0, 7])
async def test_the_last_credit_is_spent_once(ledgers: list[Ledger], overdraft: int) -> None:
    """Of many who spend at once at both exactly as many win as credit and overdraft allow."""
    limit = WalletChange("wal_acme", livemode=True, overdraft_limit=str(overdraft))
    await ledgers[0].change(limit)
    for part in range(5):
        await ledgers[part % 2].post(command(give("2"), key=f"given {part}"))

    answers = await asyncio.gather(
        *(outcome(ledgers[n % 2], consume("1"), f"spent {n}") for n in range(100))
    )

    assert refusals(answers) == [InsufficientCredit] * (90 - overdraft)
    for ledger in ledgers:
        last = await wallet_of(ledger)
        # A draw on credit or on overdraft is a row.
        assert (last.balance, last.sequence) == (-overdraft * UNIT, 5 + 10 + overdraft)


async def test_one_key_is_one_posting(ledgers: list[Ledger]) -> None:
    """The same request under the same key at both is booked once and answered alike."""
    await ledgers[0].post(command(give("100"), key="given"))

    answers = await asyncio.gather(
        *(outcome(ledger, consume("1"), f"key {n % 20}") for n in range(40) for ledger in ledgers)
    )

    posted = [answer for answer in answers if not isinstance(answer, Refusal)]
    assert len(posted) == 80
    assert sum(not answer.replayed for answer in posted) == 20
    assert len({answer.posting.number for answer in posted}) == 20
    last = await wallet_of(ledgers[1])
    assert (last.sequence, last.balance) == (21, 80 * UNIT)


async def test_one_key_is_one_request(ledgers: list[Ledger]) -> None:
    """Of different requests under one key, one at each, one is booked."""
    await ledgers[0].post(command(give("100"), key="given"))

    for n in range(20):
        pair = [
            outcome(ledger, consume(amount), f"key {n}")
            for ledger, amount in zip(ledgers, ("1", "2"), strict=True)
        ]
        assert refusals(await asyncio.gather(*pair)) == [IdempotencyKeyReused]
    assert (await wallet_of(ledgers[0])).sequence == 21


async def test_a_posting_is_refunded_once(ledgers: list[Ledger]) -> None:
    """Refunds at both at once return no more than was spent, whole or in parts."""
    one, other = ledgers
    await one.post(command(give("10"), key="given"))
    whole = posting_id(await one.post(command(consume("4"), key="whole")))
    parts = posting_id(await other.post(command(consume("5"), key="parts")))

    wholes = [outcome(ledgers[n % 2], refund(whole), f"whole {n}") for n in range(20)]
    portions = [outcome(ledgers[n % 2], refund(parts, "2"), f"part {n}") for n in range(20)]
    answers = await asyncio.gather(*wholes, *portions)

    assert refusals(answers[:20]) == [NotRefundable] * 19
    assert refusals(answers[20:]) == [RefundTooLarge] * 18
    assert (await wallet_of(other)).balance == 9 * UNIT


async def test_opposite_orders_of_wallets(
    stores: list[tuple[Store, Ledger]], ledgers: list[Ledger], database_url: str
) -> None:
    """Batches over the same wallets in opposite orders wait for each other and never for ever."""
    wallet_ids = [f"wal_{n}" for n in range(30)]

    def seed(connection: Connection) -> None:
        for wallet_id in wallet_ids:
            add_wallet(connection, wallet_id)

    async def work(ledger: Ledger, order: list[str], name: str) -> None:
        for turn in range(20):
            answers = await ledger.post_many(
                [command(give("1"), key=f"{name} {turn}", wallet_id=one) for one in order]
            )
            assert not [answer for answer in answers if isinstance(answer, Exception)]

    await stores[0][0].write(seed)
    with capture_logs() as logged:
        await asyncio.gather(
            work(ledgers[0], wallet_ids, "one"), work(ledgers[1], wallet_ids[::-1], "other")
        )

    # One that waits for long says so; nothing was given up.
    assert {one["event"] for one in logged} <= {"wallet locked by another writer"}
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert await execute(database_url, deadlocks) == [(0,)]
    last = [await wallet_of(ledgers[0], wallet_id) for wallet_id in wallet_ids]
    assert {(one.sequence, one.balance) for one in last} == {(40, 40 * UNIT)}


async def test_what_the_other_did_is_seen_at_once(ledgers: list[Ledger]) -> None:
    """Rows, grants, limits and states that another server wrote count for the next command."""
    one, other = ledgers
    await one.post(command(give("3"), key="given"))
    assert (await other.post(command(consume("1"), key="a"))).wallet.balance == 2 * UNIT
    assert (await one.post(command(consume("1"), key="b"))).wallet.balance == UNIT
    await other.post(command(consume("1"), key="c"))
    with pytest.raises(InsufficientCredit):
        await one.post(command(consume("1"), key="d"))
    await other.change(WalletChange("wal_acme", livemode=True, overdraft_limit="1"))
    assert (await one.post(command(consume("1"), key="d"))).wallet.balance == -UNIT
    await other.change(WalletChange("wal_acme", livemode=True, status=Status.FROZEN))
    with pytest.raises(WalletFrozen):
        await one.post(command(consume("1"), key="e"))


# --- what is registered ---------------------------------------------------------------------------


@asynccontextmanager
async def two(database_url: str, clock: Callable[[], int]) -> AsyncIterator[list[Running]]:
    """Servers, with cus_acme and its wallet, wal_acme."""
    async with running(database_url, clock) as one, running(database_url, clock) as other:
        await one.local.new_wallet(WALLET, CUSTOMER)
        yield [one, other]


Made = Any  #: What is answered: a message of the contract.


def customer(services: Services, id_: str, name: str = "Acme") -> Awaitable[Made]:
    request = registry_pb.CreateCustomerRequest(id=id_, name=name, email="billing@example.com")
    return services.registry.CreateCustomer(request)


def meter(services: Services, id_: str, event: str) -> Awaitable[Made]:
    request = registry_pb.CreateMeterRequest(id=id_, name="Tokens", event_name=event, unit="token")
    return services.registry.CreateMeter(request)


def subscription(services: Services, id_: str, name: str = "Pro") -> Awaitable[Made]:
    request = registry_pb.CreateSubscriptionRequest(id=id_, customer_id=CUSTOMER, name=name)
    return services.registry.CreateSubscription(request)


def wallet(services: Services, id_: str | None, customer_id: str, **fields: Any) -> Awaitable[Made]:
    request = pb.CreateWalletRequest(id=id_, customer_id=customer_id, currency="USD", **fields)
    return services.wallets.CreateWallet(request)


async def test_the_same_is_made_at_both(database_url: str, clock: Clock) -> None:
    """Who makes the same thing at two servers at once gets the same thing from both."""
    makers: list[Callable[[Services, int], Awaitable[Made]]] = [
        lambda services, n: customer(services, f"cus_{n}"),
        lambda services, n: meter(services, f"mtr_{n}", f"event {n}"),
        lambda services, n: subscription(services, f"sub_{n}"),
        lambda services, n: wallet(services, f"wal_{n}", f"cus_{n}"),
        # Without an id the customer, currency and mode say which.
        lambda services, n: wallet(services, None, f"cus_{n}", livemode=False),
    ]
    async with two(database_url, clock) as servers:
        for n in range(8):
            for make in makers:
                made = await asyncio.gather(*(make(one.local, n) for one in servers * 2))
                assert len({answer.SerializeToString() for answer in made}) == 1


async def test_what_differs_is_made_once(database_url: str, clock: Clock) -> None:
    """Of two that differ under one id, one at each server, one is made and the other refused."""
    async with two(database_url, clock) as servers:
        one, other = (server.local for server in servers)
        for n in range(8):
            await customer(one, f"cus_{n}")
            pairs = [
                (customer(one, f"cus_x{n}"), customer(other, f"cus_x{n}", "Other")),
                (meter(one, f"mtr_{n}", f"event {n}"), meter(other, f"mtr_x{n}", f"event {n}")),
                (subscription(one, f"sub_{n}"), subscription(other, f"sub_{n}", "Other")),
                (wallet(one, f"wal_{n}", f"cus_{n}"), wallet(other, f"wal_x{n}", f"cus_{n}")),
            ]
            for pair in pairs:
                made = await asyncio.gather(*pair, return_exceptions=True)
                (error,) = (answer for answer in made if isinstance(answer, BaseException))
                assert isinstance(error, grpc.aio.AioRpcError)
                assert reason(error) == "ID_TAKEN"


# --- walks while both write -----------------------------------------------------------------------

SHOPS = [WALLET, "wal_2", "wal_3"]


async def walk(
    servers: list[Running], key: Metadata, customer_id: str | None
) -> tuple[set[int], list[str]]:
    """The counts that its pages told, and the ids of their rows; each page by another server."""
    counts, rows = set(), []
    request = list_pb.CreditTransactionServiceListRequest(page_size=20, customer_id=customer_id)
    for server in cycle(servers):
        page = await server.network.transactions.List(request, metadata=key)
        counts.add(page.count)
        rows += [row.id for row in page.list]
        if not page.paging.HasField("next_page_token"):
            break
        request.page_token = page.paging.next_page_token
    return counts, rows


@pytest.mark.parametrize("customer_id", [None, CUSTOMER])
async def test_a_walk_while_both_write(database_url: str, customer_id: str | None) -> None:
    """Its rows are those of one moment: all that was answered before, each once, without a gap."""
    ended = asyncio.Event()
    answered: set[str] = set()

    async def write(server: Running, name: str) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            batch = [
                post(f"{name} {turn} {n}", random.choice(SHOPS), **grant("0.01"))
                for n in range(random.randint(1, 5))
            ]
            answer = await server.network.wallets.BatchPost(
                pb.BatchPostRequest(postings=batch), metadata=key
            )
            answered.update(row.id for one in answer.results for row in one.posting.transactions)
            await asyncio.sleep(0.05)  # a walk has to be faster than what it walks over

    async with two(database_url, time.now) as servers:
        key = await servers[0].local.key("service")
        for n, wallet_id in enumerate(SHOPS[1:]):
            await servers[1].local.new_wallet(wallet_id, f"cus_{n}")
        async with asyncio.TaskGroup() as tasks:
            for n in range(4):
                tasks.create_task(write(servers[n % 2], f"writer {n}"))
            for _ in range(6):
                await asyncio.sleep(0.1)
                before = set(answered)
                counts, rows = await walk(servers, key, customer_id)

                assert counts == {len(rows)}
                places = [ids.resolve("ct", row) for row in rows]
                assert len(set(places)) == len(places)
                by_wallet: dict[int, list[int]] = {}
                for place in places:
                    assert place is not None
                    by_wallet.setdefault(place[0], []).append(place[1])
                for sequences in by_wallet.values():
                    assert sequences == list(range(len(sequences), 0, -1))
                if customer_id:
                    before = {row for row in before if ids.resolve("ct", row)[0] == 1}  # type: ignore[index] # an id of ours
                assert before <= set(rows)
            ended.set()
