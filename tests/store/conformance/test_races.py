"""Many callers at once, impatient ones among them: each gets its due, and nobody more."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import func, select

from creditledger.domain.commands import WalletChange
from creditledger.domain.errors import (
    IdempotencyKeyReused,
    InsufficientCredit,
    NotRefundable,
    Overloaded,
    RefundTooLarge,
    Refusal,
    Unavailable,
)
from creditledger.engine.batch import Budget
from creditledger.engine.ledger import BATCH_MAX
from creditledger.store import schema
from creditledger.store.read import transaction_reads
from tests.support.databases import kept_locked, someone_waits
from tests.support.setup import (
    Clock,
    adjust,
    command,
    consume,
    give,
    is_file,
    opened,
    posting_id,
    refund,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from sqlalchemy import Connection

    from creditledger.domain.commands import Command
    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store

#: Long enough for a slow machine; nobody waits for it if all is well.
PATIENCE_SECONDS = 30


class HeldClock(Clock):
    """A clock that keeps who asks it waiting while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = threading.Event()
        self._go = threading.Event()
        self._go.set()

    def __call__(self) -> int:
        self._asked.set()
        assert self._go.wait(PATIENCE_SECONDS)
        return self.now

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Awaitable[object]]:
        """While the block runs; what it is given ends when somebody asks."""
        self._asked.clear()
        self._go.clear()
        try:
            yield asyncio.to_thread(self._asked.wait, PATIENCE_SECONDS)
        finally:
            self._go.set()


@dataclass(frozen=True, slots=True)
class Holding:
    """A database whose next batch can be kept from going on.

    SQLite's writer is a thread, and the clock that it asks holds it; a batch on PostgreSQL waits
    for a lock that another session has.
    """

    url: str
    clock: HeldClock = field(default_factory=HeldClock)

    @asynccontextmanager
    async def begun(self, ledger: Ledger, first: Command) -> AsyncIterator[asyncio.Future[Posted]]:
        """Ask for the first command; its batch has begun in here, and goes on at the end."""
        async with AsyncExitStack() as stack:
            if is_file(self.url):
                begun = await stack.enter_async_context(self.clock.held())
            else:
                await stack.enter_async_context(kept_locked(self.url))
                begun = someone_waits(self.url)
            answer = ledger.post(first)
            async with asyncio.timeout(PATIENCE_SECONDS):
                await begun
            yield answer


@pytest.fixture
def holding(database_url: str) -> Holding:
    """The database of the test."""
    return Holding(database_url)


async def booked(store: Store) -> dict[str, tuple[int, int]]:
    """Idempotency key -> (Σ of its rows' amounts, their number), of every posting there is."""
    postings, rows = schema.postings.c, schema.transactions.c
    query = (
        select(postings.idempotency_key, func.sum(rows.amount), func.count())
        .join_from(schema.postings, schema.transactions, transaction_reads.OF_POSTING)
        .group_by(postings.wallet_number, postings.number, postings.idempotency_key)
    )

    def look(connection: Connection) -> dict[str, tuple[int, int]]:
        return {key: (amount, count) for key, amount, count in connection.execute(query)}

    return await store.read(look)


async def ask(ledger: Ledger, turns: int, **fields: Any) -> Posted | Refusal:
    """The answer, or the refusal, of one of many callers."""
    for _ in range(turns):
        await asyncio.sleep(0)
    try:
        return await ledger.post(command(**fields))
    except Refusal as refused:
        return refused


def refusals(answers: list[Posted | Refusal]) -> list[Refusal]:
    return [answer for answer in answers if isinstance(answer, Refusal)]


# --- one wallet, many callers ---------------------------------------------------------------------


@pytest.mark.parametrize("overdraft", [0, 7])
async def test_the_last_credit_is_spent_once(ledger: Ledger, overdraft: int) -> None:
    """Of many who spend at once exactly as many win as credit and overdraft allow."""
    await ledger.change(WalletChange("wal_acme", livemode=True, overdraft_limit=str(overdraft)))
    for part in range(5):
        await ledger.post(command(give("2"), key=f"given {part}"))

    answers = await asyncio.gather(
        *[ask(ledger, n % 13, operation=consume("1"), key=f"spent {n}") for n in range(100)]
    )

    won, refused = 10 + overdraft, refusals(answers)
    assert {InsufficientCredit} == {type(answer) for answer in refused}
    assert won == len(answers) - len(refused)
    last = await ledger.change(WalletChange("wal_acme", livemode=True))
    assert (-overdraft * 10**9, overdraft * 10**9) == (last.balance, last.overdraft_used)
    assert 5 + won == last.sequence


async def test_one_key_is_one_posting(ledger: Ledger, store: Store) -> None:
    """Many callers with the same request under the same key get the same posting, booked once."""
    await ledger.post(command(give("100"), key="given"))

    answers = await asyncio.gather(
        *[ask(ledger, n % 13, operation=consume("1"), key="spent") for n in range(100)]
    )

    posted = [answer for answer in answers if not isinstance(answer, Refusal)]
    assert len(posted) == 100
    assert len({answer.posting.number for answer in posted}) == 1
    assert len({tuple(answer.posting.rows) for answer in posted}) == 1
    assert sorted(answer.replayed for answer in posted) == [False] + [True] * 99
    assert (await booked(store))["spent"] == (-(10**9), 1)


async def test_one_key_is_one_request(ledger: Ledger, store: Store) -> None:
    """Of different requests under one key one is booked, and the others are told what differs."""
    await ledger.post(command(give("100"), key="given"))

    answers = await asyncio.gather(
        *[ask(ledger, n % 7, operation=consume(str(1 + n % 4)), key="spent") for n in range(40)]
    )

    reused = refusals(answers)
    posted = [answer for answer in answers if not isinstance(answer, Refusal)]
    assert (len(posted), len(reused)) == (10, 30)
    assert {IdempotencyKeyReused} == {type(answer) for answer in reused}
    assert {"amount"} == {answer.metadata["fields"] for answer in reused}
    assert len({answer.posting.number for answer in posted}) == 1
    assert len(await booked(store)) == 2


async def test_a_posting_is_refunded_once(ledger: Ledger) -> None:
    """Refunds at once return no more than was spent, whether whole or in parts."""
    await ledger.post(command(give("10"), key="given"))
    whole = posting_id(await ledger.post(command(consume("4"), key="whole")))
    parts = posting_id(await ledger.post(command(consume("5"), key="parts")))

    answers = await asyncio.gather(
        *[ask(ledger, n % 5, operation=refund(whole), key=f"whole {n}") for n in range(20)]
    )
    assert [NotRefundable] * 19 == [type(refused) for refused in refusals(answers)]
    answers = await asyncio.gather(
        *[ask(ledger, n % 5, operation=refund(parts, "2"), key=f"part {n}") for n in range(20)]
    )
    assert [RefundTooLarge] * 18 == [type(refused) for refused in refusals(answers)]
    last = await ledger.change(WalletChange("wal_acme", livemode=True))
    assert last.balance == 9 * 10**9


async def test_commands_are_decided_in_the_order_of_their_arrival(ledger: Ledger) -> None:
    """More than a batch holds, asked for at once, is booked in the order it was asked for."""
    count = 2 * BATCH_MAX + 100
    await ledger.post(command(give(str(count)), key="given"))

    posts = [ledger.post(command(consume("1"), key=f"k{n}")) for n in range(count)]
    answers = await asyncio.gather(*posts)

    assert list(range(2, count + 2)) == [answer.wallet.sequence for answer in answers]


async def test_a_change_takes_its_turn_among_the_postings(ledger: Ledger) -> None:
    """A limit or status holds for what is asked for after it, and for nothing before."""
    before = ledger.post(command(consume("1"), key="before"))
    raised = ledger.change(WalletChange("wal_acme", livemode=True, overdraft_limit="1"))
    after = ledger.post(command(consume("1"), key="after"))
    lowered = ledger.change(WalletChange("wal_acme", livemode=True, overdraft_limit="0"))
    again = ledger.post(command(consume("1"), key="again"))

    answers = await asyncio.gather(before, raised, after, lowered, again, return_exceptions=True)

    refused = [isinstance(answer, InsufficientCredit) for answer in answers]
    assert refused == [True, False, False, False, True]


#: What the drivers raise for a text that UTF-8 cannot write.
UNENCODABLE = (UnicodeEncodeError, asyncpg.DataError)


# --- one bad apple --------------------------------------------------------------------------------


async def test_what_breaks_on_one_command_fails_that_command_only(
    ledger: Ledger, store: Store
) -> None:
    """A batch in which one command raises is halved until that one is alone; all others stand."""
    posts: list[asyncio.Future[Posted]] = []
    for n in range(20):
        posts.append(ledger.post(command(give("1"), key=f"k{n}")))
        if n == 13:
            # A text that UTF-8 cannot write: no client can send it, and no database can store it.
            posts.append(ledger.post(command(consume("1"), key="\ud800")))

    answers = await asyncio.gather(*posts, return_exceptions=True)

    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    (broken,) = failed
    assert isinstance(broken, UNENCODABLE)
    assert set(await booked(store)) == {f"k{n}" for n in range(20)}


async def test_an_answer_is_counted_once_however_often_it_is_decided(ledger: Ledger) -> None:
    """What a call's answers may hold is not used up by attempts that failed."""
    budget, alone = Budget(), Budget()
    await ledger.post(command(give("1"), key="alone"), alone)
    each = Budget().left - alone.left
    budget.left = 20 * each

    posts = [ledger.post(command(give("1"), key=f"k{n:03}"), budget) for n in range(20)]
    posts.append(ledger.post(command(consume("1"), key="\ud800")))
    answers = await asyncio.gather(*posts, return_exceptions=True)

    (broken,) = (answer for answer in answers if isinstance(answer, BaseException))
    assert isinstance(broken, UNENCODABLE)
    assert budget.left == 0


# --- callers who leave ----------------------------------------------------------------------------


async def test_who_leaves_before_the_batch_begins_leaves_no_trace(holding: Holding) -> None:
    """A command cancelled in the queue is dropped; one whose batch has begun stands."""
    async with opened(holding.url, holding.clock) as (store, ledger):
        async with holding.begun(ledger, command(give("1"), key="begun")) as begun:
            waiting = [ledger.post(command(give("1"), key=f"waiting {n}")) for n in range(4)]
            for gone in (begun, waiting[1], waiting[2]):
                gone.cancel()
        await asyncio.gather(waiting[0], waiting[3])

        assert set(await booked(store)) == {"begun", "waiting 0", "waiting 3"}
        assert (await ledger.post(command(give("1"), key="begun"))).replayed
        assert not (await ledger.post(command(give("1"), key="waiting 1"))).replayed


async def test_a_caller_past_its_deadline_is_one_who_left(holding: Holding) -> None:
    """A time-out around the answer does what cancelling does: what still waits is dropped."""
    async with opened(holding.url, holding.clock) as (store, ledger):

        async def impatient(key: str) -> Posted:
            async with asyncio.timeout(0.01):
                return await ledger.post(command(give("1"), key=key))

        async with holding.begun(ledger, command(give("1"), key="begun")) as begun:
            with pytest.raises(TimeoutError):
                await impatient("late")
        await begun

        assert set(await booked(store)) == {"begun"}


@pytest.mark.parametrize("seed", range(5))
async def test_the_ledger_holds_wholes_whenever_clients_leave(
    ledger: Ledger, store: Store, seed: int
) -> None:
    """What was answered is there, what was not is wholly there or wholly absent."""
    chance = random.Random(seed)
    for part in range(40):
        await ledger.post(command(give("3"), key=f"given {part}"))

    async def caller(n: int) -> Posted | None:
        await asyncio.sleep(chance.random() / 50)
        return await ledger.post(command(consume("7"), key=f"spent {n}"))  # of three grants

    callers = [asyncio.create_task(caller(n)) for n in range(40)]

    async def leave(task: asyncio.Task[Posted | None]) -> None:
        await asyncio.sleep(chance.random() / 50)
        task.cancel()

    await asyncio.gather(*[leave(task) for task in chance.sample(callers, 25)])
    answers = await asyncio.gather(*callers, return_exceptions=True)
    await ledger.change(WalletChange("wal_acme", livemode=True))  # all that was asked for is over

    spent = {key: value for key, value in (await booked(store)).items() if "spent" in key}
    for n, answer in enumerate(answers):
        if not isinstance(answer, BaseException):
            assert f"spent {n}" in spent
    assert {amount for amount, _ in spent.values()} <= {-7 * 10**9}
    assert {count for _, count in spent.values()} <= {3, 4}
    asked_again = [ledger.post(command(consume("7"), key=f"spent {n}")) for n in range(40)]
    again = await asyncio.gather(*asked_again, return_exceptions=True)
    for n, answer in enumerate(again):
        replayed = not isinstance(answer, BaseException) and answer.replayed
        assert (f"spent {n}" in spent) == replayed


# --- too many, and the end ------------------------------------------------------------------------


async def test_a_full_queue_refuses_at_once(holding: Holding) -> None:
    """Who finds the queue full is told so without waiting; those in it are served."""
    async with opened(holding.url, holding.clock, queue_max=3) as (store, ledger):
        async with holding.begun(ledger, command(give("1"), key="begun")) as begun:
            waiting = [ledger.post(command(give("1"), key=f"waiting {n}")) for n in range(3)]
            for operation in (give("1"), adjust("1")):
                with pytest.raises(Overloaded) as refused:
                    ledger.post(command(operation, key="too many"))
                assert refused.value.metadata == {"retry_after": "1"}
            with pytest.raises(Overloaded):
                ledger.change(WalletChange("wal_acme", livemode=True))
        await asyncio.gather(begun, *waiting)

        assert set(await booked(store)) == {"begun", "waiting 0", "waiting 1", "waiting 2"}
        assert not (await ledger.post(command(give("1"), key="too many"))).replayed


async def test_closing_serves_who_waits_and_refuses_who_comes(holding: Holding) -> None:
    """From the moment of closing nobody new is let in, and nobody who waited is sent away."""
    async with opened(holding.url, holding.clock) as (store, ledger):
        async with holding.begun(ledger, command(give("1"), key="begun")) as begun:
            waiting = [ledger.post(command(give("1"), key=f"waiting {n}")) for n in range(9)]
            closing = asyncio.create_task(ledger.close())
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                ledger.post(command(give("1"), key="late"))
            assert not closing.done()
        answers = await asyncio.gather(begun, *waiting)
        await closing

        assert list(range(1, 11)) == [answer.wallet.sequence for answer in answers]
        assert len(await booked(store)) == 10
        with pytest.raises(Unavailable):
            ledger.change(WalletChange("wal_acme", livemode=True))


async def test_an_idle_ledger_closes_at_once(ledger: Ledger) -> None:
    """Closing waits for work, not for time; closing again does nothing."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await ledger.close()
        await ledger.close()
