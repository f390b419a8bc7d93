"""Transfers over gRPC: credit that goes from one wallet to another, as it is, or not at all."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR
from creditledger.domain.commands import Command, WalletChange
from creditledger.domain.errors import InsufficientCredit, Refusal
from creditledger.domain.operations import Transfer
from creditledger.engine.batch import Posted
from tests.support.databases import execute
from tests.support.process import process
from tests.support.refusals import Refused, refusal, refused
from tests.support.server import PATIENCE_SECONDS, WALLET, adjust, consume, grant, post
from tests.support.setup import add_wallet, command, findings, give, is_file, opened

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from creditledger.engine.ledger import Ledger
    from tests.support.server import Api, Services
    from tests.support.setup import Clock

OTHER = "wal_other"
UNIT = 10**9


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, and an empty wallet of another customer beside wal_acme.

    Whatever a test did, verify finds nothing.
    """
    await api.local.new_wallet(OTHER, "cus_other")
    return api


async def transfer(api: Api, key: str, amount: str, **fields: Any) -> pb.TransferResponse:
    """From wal_acme to wal_other, unless said otherwise, by a service."""
    given = {"from_wallet_id": WALLET, "to_wallet_id": OTHER, **fields}
    request = pb.TransferRequest(idempotency_key=key, amount=amount, **given)
    return await api.wallets.Transfer(request, metadata=api.service)


async def update(api: Api, wallet_id: str, **fields: Any) -> None:
    """A change of a wallet, by an admin."""
    request = pb.UpdateWalletRequest(wallet_id=wallet_id, **fields)
    await api.wallets.UpdateWallet(request, metadata=api.admin)


def moved(posting: pb.Posting) -> list[tuple[str, str, str]]:
    """Kind, type and amount of each row."""
    return [(one.kind, one.type, one.amount) for one in posting.transactions]


async def grants(api: Api, wallet_id: str) -> list[tuple[str, int, str, str, str]]:
    """Category, priority, name, amount and end of the grants that arrived, oldest first."""
    request = list_pb.CreditTransactionServiceListRequest(
        customer_id={WALLET: "cus_acme", OTHER: "cus_other"}[wallet_id]
    )
    listed = await api.transactions.List(request, metadata=api.service)
    found = [one.credit_grant for one in listed.list if one.kind == "transfer_in"]
    return [(g.category, g.priority, g.name, g.amount, g.expires_at) for g in found[::-1]]


async def test_credit_travels_as_it_is(api: Api, clock: Clock) -> None:
    """In burn order, each draw becomes a grant of its category, priority, name and end."""
    ends = time.text(clock.now + DAY)
    await api.post("paid", **grant("10", name="Pack"))
    promo = {"category": "promotional", "priority": 20, "name": "Welcome", "expires_at": ends}
    await api.post("promo", **grant("4", **promo))
    clock.advance(HOUR)

    done = await transfer(
        api, "move", "6.5", description="Team budget", note="May", metadata={"team": "red"}
    )

    out, into = ("transfer_out", "adjustment"), ("transfer_in", "adjustment")
    assert moved(done.sent) == [(*out, "-4.00"), (*out, "-2.50")]
    assert moved(done.received) == [(*into, "4.00"), (*into, "2.50")]
    for side, other, other_wallet in (
        (done.sent, done.received, OTHER),
        (done.received, done.sent, WALLET),
    ):
        assert not side.replayed
        for row in side.transactions:
            assert row.source.posting_id == other.posting_id
            assert row.source.wallet_id == other_wallet
            assert (row.description, row.note) == ("Team budget", "May")
            assert dict(row.metadata) == {"team": "red"}
            assert row.created_at == row.effective_at == time.text(clock.now)
    assert (done.sent.wallet.balance, done.received.wallet.balance) == ("7.50", "6.50")
    assert await grants(api, OTHER) == [
        ("promotional", 20, "Welcome", "4.00", ends),
        ("paid", 50, "Pack", "2.50", ""),
    ]
    clock.advance(DAY)
    assert (await api.wallet_now(OTHER)).balance == "2.50"


async def test_again_is_no_second_movement(api: Api) -> None:
    """The same key and request answer both sides, as the wallets are by then; other ones differ."""
    await api.post("given", **grant("10"))
    first = await transfer(api, "move", "4", metadata={"a": "b"})
    await api.post("spent", OTHER, **consume("1"))

    again = await transfer(api, "move", "4.0", metadata={"a": "b"}, expected_sequence=0)

    assert (again.sent.replayed, again.received.replayed) == (True, True)
    assert list(again.sent.transactions) == list(first.sent.transactions)
    assert list(again.received.transactions) == list(first.received.transactions)
    assert (again.sent.wallet.balance, again.received.wallet.balance) == ("6.00", "3.00")
    third = "wal_third"
    await api.local.new_wallet(third, "cus_third")
    for differing, fields in (
        ("amount", {"amount": "5"}),
        ("to_wallet_id", {"to_wallet_id": third}),
        ("metadata,note", {"note": "x", "metadata": {}}),
    ):
        request: dict[str, Any] = {"amount": "4", "metadata": {"a": "b"}, **fields}
        assert await refused(transfer(api, "move", **request)) == Refused(
            "IDEMPOTENCY_KEY_REUSED", "idempotency_key", {"fields": differing}
        )
    assert await refused(api.post("move", **consume("4"))) == Refused(
        "IDEMPOTENCY_KEY_REUSED", "idempotency_key", {"fields": "operation"}
    )
    found = await api.found("move")
    assert found is not None
    assert found.posting_id == first.sent.posting_id
    assert list(found.transactions) == list(first.sent.transactions)
    # The key is the sender's: in the other wallet it is free.
    assert await api.found("move", OTHER) is None
    back = await transfer(api, "move", "3", from_wallet_id=OTHER, to_wallet_id=WALLET)
    assert (back.received.wallet.balance, back.sent.wallet.balance) == ("9.00", "0.00")


async def test_a_dry_run_writes_nothing(api: Api, clock: Clock) -> None:
    """It answers both sides with empty ids, expirations due and all, and binds no key."""
    await api.post("ending", **grant("1", expires_at=time.text(clock.now + HOUR)))
    await api.post("given", **grant("10"))
    await api.post("ending", OTHER, **grant("1", expires_at=time.text(clock.now + HOUR)))
    clock.advance(HOUR)
    before = [await api.wallet_now(one) for one in (WALLET, OTHER)]

    dry = await transfer(api, "move", "4", validate_only=True)

    assert (dry.sent.validate_only, dry.received.validate_only) == (True, True)
    assert (dry.sent.posting_id, dry.received.posting_id) == ("", "")
    assert [one.id for one in (*dry.sent.transactions, *dry.received.transactions)] == ["", ""]
    assert (dry.sent.wallet.balance, dry.received.wallet.balance) == ("6.00", "4.00")
    assert before == [await api.wallet_now(one) for one in (WALLET, OTHER)]
    done = await transfer(api, "move", "4")
    assert not done.sent.replayed
    assert [one.amount for one in done.sent.transactions] == ["-4.00"]
    # Both expirations went before it.
    assert (done.sent.transactions[0].sequence, done.received.transactions[0].sequence) == (4, 3)


async def test_only_what_is_available_travels(api: Api, clock: Clock) -> None:
    """Neither overdraft nor what is held, has ended or has not begun."""
    await update(api, WALLET, overdraft_limit="100")
    await api.post("given", **grant("10"))
    await api.post("ends", **grant("7", expires_at=time.text(clock.now + HOUR)))
    await api.post("later", **grant("5", effective_at=time.text(clock.now + DAY)))
    clock.advance(HOUR)
    hold = pb.HoldRequest(wallet_id=WALLET, idempotency_key="hold", amount="4")
    await api.wallets.Hold(hold, metadata=api.service)

    assert await refused(transfer(api, "move", "6.01")) == Refused(
        "INSUFFICIENT_CREDIT",
        metadata={"required": "6.01", "available": "6.00", "currency": "USD"},
    )
    # What ended went before the hold.
    assert (await api.wallet_now()).sequence == 4
    done = await transfer(api, "move", "6")
    assert [one.amount for one in done.sent.transactions] == ["-6.00"]
    assert (done.sent.wallet.available, done.sent.wallet.balance) == ("0.00", "9.00")


async def test_arriving_credit_pays_back_overdraft(api: Api) -> None:
    """As any grant that is open when it is made, oldest first."""
    await api.post("paid", **grant("3"))
    await api.post("promo", **grant("3", category="promotional"))
    await update(api, OTHER, overdraft_limit="4")
    await api.post("owed", OTHER, **consume("4"))

    done = await transfer(api, "move", "5")

    wallet = done.received.wallet
    assert (wallet.balance, wallet.available, wallet.overdraft_used) == ("1.00", "1.00", "0.00")
    assert [one.amount for one in done.received.transactions] == ["3.00", "2.00"]
    await api.post("rest", OTHER, **consume("1"))


async def test_what_cannot_be(api: Api, clock: Clock) -> None:
    """Each refusal names the field or the reason, and nothing is written in either wallet."""
    await api.post("given", **grant("10"))
    local = api.local.wallets
    for new in (
        pb.CreateWalletRequest(id="wal_credits", customer_id="cus_other", currency="CREDIT"),
        pb.CreateWalletRequest(
            id="wal_test", customer_id="cus_other", currency="USD", livemode=False
        ),
    ):
        await local.CreateWallet(new)
    await api.local.new_wallet("wal_closed", "cus_third")
    await update(api, "wal_closed", status="closed")

    good: dict[str, Any] = {
        "idempotency_key": "move",
        "from_wallet_id": WALLET,
        "to_wallet_id": OTHER,
        "amount": "1",
    }
    for field, value, reason, param in (
        ("to_wallet_id", WALLET, "INVALID_FIELD", "to_wallet_id"),
        ("to_wallet_id", "wal_credits", "INVALID_FIELD", "to_wallet_id"),
        ("to_wallet_id", "wal_test", "NOT_FOUND", "to_wallet_id"),
        ("to_wallet_id", "wal_none", "NOT_FOUND", "to_wallet_id"),
        ("from_wallet_id", "wal_none", "NOT_FOUND", "from_wallet_id"),
        ("to_wallet_id", "cus_x", "INVALID_FIELD", "to_wallet_id"),
        ("to_wallet_id", "", "MISSING_FIELD", "to_wallet_id"),
        ("from_wallet_id", "", "MISSING_FIELD", "from_wallet_id"),
        ("amount", "", "MISSING_FIELD", "amount"),
        ("amount", "0", "INVALID_FIELD", "amount"),
        ("amount", "-1", "INVALID_FIELD", "amount"),
        ("amount", "0.0000000001", "INVALID_FIELD", "amount"),
        ("idempotency_key", "", "MISSING_FIELD", "idempotency_key"),
        ("note", "", "INVALID_FIELD", "note"),
        ("expected_sequence", -1, "INVALID_FIELD", "expected_sequence"),
        ("to_wallet_id", "wal_closed", "WALLET_CLOSED", "to_wallet_id"),
        ("from_wallet_id", "wal_closed", "WALLET_CLOSED", "from_wallet_id"),
    ):
        request = pb.TransferRequest(**{**good, field: value})
        found = await refused(api.wallets.Transfer(request, metadata=api.service))
        assert (found.reason, found.param) == (reason, param), (field, value)
    both_modes = pb.TransferRequest(**{**good, "to_wallet_id": "wal_test"})
    assert await refused(local.Transfer(both_modes)) == Refused("INVALID_FIELD", "to_wallet_id")
    assert await refused(transfer(api, "move", "1", expected_sequence=0)) == Refused(
        "SEQUENCE_MISMATCH", "expected_sequence", {"expected": "0", "actual": "1"}
    )
    await update(api, WALLET, status="frozen")
    assert await refused(transfer(api, "move", "1")) == Refused("WALLET_FROZEN", "from_wallet_id")
    await update(api, WALLET, status="active")
    await update(api, OTHER, status="frozen")
    assert (await api.wallet_now(OTHER)).sequence == 0
    done = await transfer(api, "move", "1")
    assert done.received.wallet.balance == "1.00"


async def test_who_may(api: Api) -> None:
    """A service or an admin; the customer who owns the wallet may not."""
    await api.post("given", **grant("10"))
    request = pb.TransferRequest(
        idempotency_key="move", from_wallet_id=WALLET, to_wallet_id=OTHER, amount="1"
    )
    asked = api.wallets.Transfer(request, metadata=api.customer)
    assert (await refused(asked)).reason == "SCOPE_DENIED"
    test = await api.local.key("service", livemode=False)
    assert await refused(api.wallets.Transfer(request, metadata=test)) == Refused(
        "NOT_FOUND", "from_wallet_id"
    )
    await api.wallets.Transfer(request, metadata=api.admin)


async def test_the_receiver_keeps_its_limit_of_grants(api: Api) -> None:
    """A receiver takes a thousand open grants by transfer, and no more."""
    bonus = grant("0.01", category="promotional")
    await api.batch(
        pb.PostRequest(wallet_id=OTHER, idempotency_key=f"g {n}", **bonus) for n in range(999)
    )
    await api.post("one", **grant("1", name="One"))
    await api.post("two", **grant("1", name="Two"))

    assert (await refused(transfer(api, "move", "2"))).reason == "OUT_OF_RANGE"
    assert (await api.wallet_now()).sequence == 2
    await transfer(api, "move", "1")
    assert (await refused(transfer(api, "more", "0.5"))).reason == "OUT_OF_RANGE"


async def test_it_is_no_consumption(api: Api) -> None:
    """Summaries and bills leave it out; the billing list has it where its kind is asked for."""
    await api.post("given", **grant("10"))
    await transfer(api, "move", "4")
    summary = await api.transactions.Summary(
        list_pb.CreditTransactionServiceSummaryRequest(customer_id="cus_acme"),
        metadata=api.service,
    )
    assert (summary.total_credit_amount, summary.transaction_count) == ("0.00", 0)

    async def listed(**fields: Any) -> list[tuple[str, float]]:
        request = billing_pb.ListTransactionsRequest(**fields)
        page = await api.billing.ListTransactions(request, metadata=api.customer)
        assert page.total == len(page.items)
        return [(one.kind, one.amount_usd) for one in page.items]

    assert await listed() == [("topup", 10.0)]
    assert await listed(kind="transfer_out") == [("transfer_out", -4.0)]
    assert await listed(kind="transfer_in") == []


async def test_a_receiver_ahead_of_the_clock(api: Api, clock: Clock) -> None:
    """Each side has its own wallet's time; what has ended by the receiver's stays behind."""
    await api.post("given", **grant("10", expires_at=time.text(clock.now + HOUR)))
    await api.post("lasting", **grant("2"))
    clock.advance(2 * HOUR)
    await api.post("ahead", OTHER, **adjust("1"))
    clock.advance(-2 * HOUR)

    assert (await refused(transfer(api, "move", "3"))).metadata["available"] == "2.00"
    done = await transfer(api, "move", "2")

    assert {one.created_at for one in done.sent.transactions} == {time.text(clock.now)}
    received = {one.created_at for one in done.received.transactions}
    assert received == {time.text(clock.now + 2 * HOUR)}
    assert (await api.wallet_now()).balance == "10.00"
    assert (await api.wallet_now(OTHER)).balance == "3.00"


async def test_a_sender_ahead_of_the_clock(api: Api, clock: Clock) -> None:
    """A sender that is ahead of the clock changes neither time nor credit of the receiver."""
    await api.post("kept", OTHER, **grant("100", expires_at=time.text(clock.now + DAY)))
    clock.advance(400 * DAY)
    await api.post("ahead", **grant("5"))
    clock.advance(-400 * DAY)

    done = await transfer(api, "move", "1")

    assert {one.created_at for one in done.received.transactions} == {time.text(clock.now)}
    assert (await api.wallet_now(OTHER)).balance == "101.00"
    ends = time.text(clock.now + HOUR)
    await api.post("top-up", OTHER, **grant("1", expires_at=ends))
    assert (await api.wallet_now(OTHER)).balance == "102.00"


async def test_a_wallet_in_the_future_can_be_left(api: Api, clock: Clock) -> None:
    """A transfer takes credit out of a wallet whose time is ahead of the clock."""
    await api.post("given", **grant("10", expires_at=time.text(clock.now + 500 * DAY)))
    clock.advance(400 * DAY)
    await api.post("ahead", **consume("1"))
    clock.advance(-400 * DAY)

    await transfer(api, "leave", "9")
    await update(api, WALLET, status="closed")

    assert (await api.wallet_now(OTHER)).available == "9.00"
    await api.post("month", OTHER, **grant("5", expires_at=time.text(clock.now + 30 * DAY)))


# --- many at once ---------------------------------------------------------------------------------

WALLETS = [f"wal_{n}" for n in range(4)]


async def total(ledger: Ledger) -> tuple[int, list[int]]:
    """What all wallets have, and what each has."""
    views = [await ledger.change(WalletChange(one, livemode=True)) for one in WALLETS]
    return sum(one.balance for one in views), [one.balance for one in views]


async def test_a_storm_of_opposite_transfers(database_url: str, clock: Clock) -> None:
    """Of many clients, on a server at two servers: no deadlock, nothing lost, nothing made."""

    def seed(connection: Connection) -> None:
        for wallet_id in WALLETS:
            add_wallet(connection, wallet_id)

    async def client(ledger: Ledger, n: int) -> list[Posted | Refusal]:
        drawn, found = random.Random(n), []
        for turn in range(12):
            one, other = drawn.sample(WALLETS, 2)
            asked = moving(one, other, f"{n} {turn}", str(drawn.randint(1, 5)))
            found.append(await outcome(ledger, asked))
            if drawn.random() < 0.2:
                again = await outcome(ledger, asked)
                assert isinstance(again, Refusal) or again.replayed is isinstance(found[-1], Posted)
        return found

    servers = 1 if is_file(database_url) else 2
    async with opened(database_url, clock) as (store, one):
        await store.write(seed)
        for wallet_id in WALLETS:
            for part in range(3):
                await one.post(command(give("10"), key=f"given {part}", wallet_id=wallet_id))
        if servers == 1:
            answers = await asyncio.gather(*(client(one, n) for n in range(16)))
        else:
            async with opened(database_url, clock) as (_, other):
                answers = await asyncio.gather(*(client((one, other)[n % 2], n) for n in range(16)))
                assert await total(other) == await total(one)
        every = [answer for some in answers for answer in some]
        refusals = {type(answer) for answer in every if isinstance(answer, Refusal)}
        assert refusals <= {InsufficientCredit}
        assert sum(isinstance(answer, Posted) for answer in every) > 100
        assert (await total(one))[0] == 120 * UNIT
        assert min((await total(one))[1]) >= 0
    if servers == 2:
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await execute(database_url, deadlocks) == [(0,)]
    assert findings(database_url) == []


def moving(sender: str, receiver: str, key: str, amount: str) -> Command:
    """A transfer, as a service asks for it."""
    return command(Transfer(receiver, amount), key=key, wallet_id=sender)


async def outcome(ledger: Ledger, asked: Command) -> Posted | Refusal:
    """The answer, or the refusal."""
    try:
        return await ledger.post(asked)
    except Refusal as refusal:
        return refusal


async def test_together_in_one_batch(database_url: str, clock: Clock) -> None:
    """There and back, spent and retried, each upon what the ones before it left."""
    one, other = WALLETS[:2]

    def seed(connection: Connection) -> None:
        for wallet_id in WALLETS:
            add_wallet(connection, wallet_id)

    async with opened(database_url, clock) as (store, ledger):
        await store.write(seed)
        answers = await ledger.post_many(
            [
                command(give("5"), key="given", wallet_id=one),
                moving(one, other, "there", "5"),
                moving(other, one, "back", "2"),
                moving(one, other, "there", "5"),
                moving(one, other, "too much", "2.1"),
            ]
        )
        there, back, again, refusal = answers[1:]
        assert isinstance(there, Posted)
        assert isinstance(back, Posted)
        assert isinstance(again, Posted)
        assert isinstance(refusal, InsufficientCredit)
        assert back.received is not None
        assert (back.wallet.balance, back.received.wallet.balance) == (3 * UNIT, 2 * UNIT)
        assert again.replayed
        assert again.received is not None
        assert there.received is not None
        assert again.received.posting is there.received.posting
        assert (again.wallet.balance, again.received.wallet.balance) == (2 * UNIT, 3 * UNIT)
    assert findings(database_url) == []


# --- after a crash --------------------------------------------------------------------------------


async def test_killed_at_any_moment(database_url: str, tmp_path: Path) -> None:
    """What was told is there, both sides of it; what was not is there whole, or not at all.

    Under `kill -9`, with transfers both ways under way; then all are asked for again.
    """
    told: dict[str, pb.TransferResponse] = {}
    some, drawn = asyncio.Event(), random.Random(11)
    requests = []
    for n in range(400):
        sender, receiver = drawn.sample((WALLET, OTHER), 2)
        # Over several grants, so that one could be torn.
        requests.append(
            pb.TransferRequest(
                idempotency_key=f"k {n}",
                from_wallet_id=sender,
                to_wallet_id=receiver,
                amount=f"{drawn.randint(1, 30)}.5",
            )
        )

    async def client(services: Services, mine: list[pb.TransferRequest]) -> None:
        for request in mine:
            answer = await services.wallets.Transfer(request)
            told[request.idempotency_key] = answer
            if len(told) == 60:
                some.set()

    async with process(database_url, tmp_path / "log") as served, served.local() as local:
        for wallet_id, customer_id in ((WALLET, "cus_acme"), (OTHER, "cus_other")):
            await local.new_wallet(wallet_id, customer_id)
            batch = [post(f"given {n}", wallet_id, **grant("10")) for n in range(50)]
            await local.wallets.BatchPost(pb.BatchPostRequest(postings=batch))
        clients = [asyncio.create_task(client(local, requests[n::16])) for n in range(16)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await some.wait()
        served.process.kill()
        await served.ended()
        ends = await asyncio.gather(*clients, return_exceptions=True)
        assert any(isinstance(end, grpc.aio.AioRpcError) for end in ends)

    assert findings(database_url) == []
    async with process(database_url, tmp_path / "log") as served, served.local() as local:
        refusals: dict[str, str] = {}
        for request in requests:
            try:
                answer = await local.wallets.Transfer(request)
            except grpc.aio.AioRpcError as error:
                refusals[request.idempotency_key] = refusal(error).reason
                continue
            if first := told.get(request.idempotency_key):
                for side, before in ((answer.sent, first.sent), (answer.received, first.received)):
                    assert side.replayed
                    assert (side.posting_id, list(side.transactions)) == (
                        before.posting_id,
                        list(before.transactions),
                    )
        assert set(refusals.values()) <= {"INSUFFICIENT_CREDIT"}
        assert not refusals.keys() & told.keys()
        assert len(refusals) < len(requests) / 2
        balances = [
            Decimal((await local.wallets.GetWallet(pb.GetWalletRequest(wallet_id=one))).balance)
            for one in (WALLET, OTHER)
        ]
        assert sum(balances) == 1_000
    assert findings(database_url) == []
