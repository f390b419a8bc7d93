"""Who follows the ledger in the order of its commits misses no row, whatever happens beside it.

The tail is read while writers commit and roll back in any order; on PostgreSQL by many connections
that lock wallets in any order, so that the numbers of transactions are no order of commits.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from creditledger.domain.clock import HOUR
from creditledger.domain.errors import InvalidField
from creditledger.ops.config import CannotStart, load
from creditledger.ops.database import migrate, require_schema
from creditledger.store import Store, schema
from creditledger.store.postgres import database as postgres
from creditledger.store.read import commit_order
from creditledger.store.read.commit_order import START, Mark
from creditledger.store.write.batch import StoreUnavailable
from tests.support.databases import connect, execute
from tests.support.setup import add_wallet, command, consume, give, is_file, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from creditledger.engine.ledger import Ledger
    from creditledger.store.write.batch import Changes, Loaded
    from tests.support.setup import Clock

WRITERS, WALLETS, ROUNDS = 16, 12, 40
PLACED = "SELECT count(position) FROM credit_transactions"
Place = tuple[int, int]


class Following:
    """Reads the tail in steps of any size, and goes on where it was as a client would."""

    def __init__(self, store: Store, chance: random.Random) -> None:
        self._store = store
        self._chance = chance
        self._mark = START
        self.read: list[Place] = []

    async def go_on(self) -> bool:
        """One step; whether there is more."""
        size = self._chance.choice((1, 2, 7, 100))
        step = await self._store.read(lambda c: commit_order.step(c, self._mark, size))
        assert len(step.rows) <= size
        self.read += [row.place for row in step.rows]
        assert step.mark >= self._mark
        self._mark = Mark.parse(step.mark.text(), field="after")
        return step.more

    async def to_the_end(self) -> None:
        """Until there is no more."""
        while await self.go_on():
            pass


def add_wallets(connection: Connection, count: int) -> None:
    """wal_0 and on."""
    for number in range(count):
        add_wallet(connection, f"wal_{number}")


def number_of(connection: Connection, wallet_id: str) -> int:
    """Its number."""
    w = schema.wallets.c
    found: int = connection.execute(select(w.number).where(w.id == wallet_id)).scalar_one()
    return found


def written(connection: Connection) -> list[Place]:
    """All rows there are."""
    t = schema.transactions.c
    return sorted(tuple(row) for row in connection.execute(select(t.wallet_number, t.sequence)))


def by_wallet(places: list[Place]) -> dict[int, list[int]]:
    """Sequences as they were read, by wallet."""
    found: dict[int, list[int]] = {}
    for wallet, sequence in places:
        found.setdefault(wallet, []).append(sequence)
    return found


def require_whole(read: list[Place], rows: list[Place]) -> None:
    """Every row was read once, and those of a wallet in their order."""
    assert sorted(read) == rows
    for sequences in by_wallet(read).values():
        assert sequences == list(range(1, len(sequences) + 1))


class Failing(Store):
    """A store that now and then is lost after a batch has been decided, and so rolls it back."""

    chance = random.Random(0)

    async def commit(
        self, wanted: object, decide: Callable[[Loaded], Changes], *, wait: bool = True
    ) -> None:
        """As a store does, or not."""

        def decided(loaded: Loaded) -> Changes:
            changes = decide(loaded)
            if self.chance.random() < 0.25:
                raise StoreUnavailable(ConnectionError("on purpose"))
            return changes

        await super().commit(wanted, decided, wait=wait)  # type: ignore[arg-type] # handed on


async def write(ledger: Ledger, name: str, chance: random.Random) -> None:
    """Rounds of postings, several at once on wallets of which others write too."""
    for nth in range(ROUNDS):
        wallets = chance.sample(range(WALLETS), chance.randint(1, 5))
        answers = await asyncio.gather(
            *(
                ledger.post(command(give("1"), key=f"{name} {nth}", wallet_id=f"wal_{number}"))
                for number in wallets
            ),
            return_exceptions=True,
        )
        # What was rolled back is asked for again, or not.
        if chance.random() < 0.5 and any(isinstance(answer, Exception) for answer in answers):
            await asyncio.sleep(chance.random() / 100)


async def idle_transactions(url: str, chance: random.Random) -> None:
    """Transactions of somebody else's that are numbered, take their time and leave nothing."""
    connection = await connect(url)
    try:
        while True:
            await connection.execute("BEGIN; SELECT pg_current_xact_id()")
            await asyncio.sleep(chance.random() / 10)
            await connection.execute(chance.choice(("COMMIT", "ROLLBACK")))
            await asyncio.sleep(chance.random() / 10)
    finally:
        connection.terminate()


async def test_nobody_misses_a_row(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that tail while sixteen writers commit and roll back see every row once, in order."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    monkeypatch.setattr("tests.support.setup.Store", Failing)
    writers = 1 if is_file(database_url) else WRITERS
    async with AsyncExitStack() as stack:
        both = [
            await stack.enter_async_context(opened(database_url, clock)) for _ in range(writers)
        ]
        store = both[0][0]
        await store.write(lambda c: add_wallets(c, WALLETS))
        readers = [Following(store, chance) for _ in range(3)]
        following = [asyncio.create_task(follow(reader, chance)) for reader in readers]
        if not is_file(database_url):
            following.append(asyncio.create_task(idle_transactions(database_url, chance)))

        with capture_logs():  # of what is lost on purpose
            await asyncio.gather(
                *(write(both[n % writers][1], f"writer {n}", chance) for n in range(WRITERS))
            )

        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        rows = await store.read(written)
        late = Following(store, chance)
        for reader in [*readers, late]:
            before = len(reader.read)
            await until_read(reader, len(rows))
            assert reader is late or before, "it had to follow while they wrote"
            require_whole(reader.read, rows)
        assert len(rows) > WRITERS * ROUNDS, seed
    if not is_file(database_url):
        ((placed,),) = await execute(database_url, PLACED)
        assert placed > 0, "some transaction has to have waited for a later one"


async def follow(reader: Following, chance: random.Random) -> None:
    """Read whatever comes, until it is cancelled."""
    while True:
        if not await reader.go_on():
            await asyncio.sleep(chance.random() / 100)


async def until_read(reader: Following, count: int) -> None:
    """What somebody else's transaction holds back comes when that has ended."""
    async with asyncio.timeout(10):
        await reader.to_the_end()
        while len(reader.read) < count:
            await asyncio.sleep(0.01)
            await reader.to_the_end()


@pytest.mark.only("postgresql")
async def test_an_earlier_number_that_waited_comes_later(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that was numbered first, and then had to wait for a wallet, is read behind.

    Numbers alone would put its row before those that its wallet had already.
    """
    # Here it waits as long as it takes, and is not begun anew without the wallet.
    monkeypatch.setitem(postgres._WRITING, "lock_timeout", "60s")
    async with (
        opened(database_url, clock) as (store, ledger),
        opened(database_url, clock) as (_, other),
    ):
        await store.write(lambda c: add_wallets(c, 3))
        first, second, third = await store.read(
            lambda c: [number_of(c, f"wal_{n}") for n in range(3)]
        )
        blocker = await connect(database_url)
        try:
            await blocker.execute(
                f"BEGIN; SELECT FROM wallet_states WHERE wallet_number = {second} FOR NO KEY UPDATE"
            )
            # It locks the first wallet, and so is numbered, and waits for the second.
            waiting = [
                ledger.post(command(give("1"), key="early", wallet_id=f"wal_{n}")) for n in range(3)
            ]
            await waiting_for_a_lock(database_url)
            await other.post(command(give("1"), key="late", wallet_id="wal_2"))
            await blocker.execute("COMMIT")
        finally:
            blocker.terminate()
        await asyncio.gather(*waiting)
        await other.post(command(give("1"), key="last", wallet_id="wal_2"))

        ((late,), (early,), (last,)) = await execute(
            database_url,
            "SELECT CAST(CAST(written_in AS text) AS bigint) FROM credit_transactions"
            f" WHERE wallet_number = {third} ORDER BY sequence",
        )
        assert early < late < last, "the numbers are no order of commits"
        reader = Following(store, random.Random(1))
        await until_read(reader, 5)
        assert by_wallet(reader.read) == {first: [1], second: [1], third: [1, 2, 3]}


async def waiting_for_a_lock(url: str) -> None:
    """Until somebody waits."""
    for _ in range(500):
        if await execute(url, "SELECT 1 FROM pg_locks WHERE NOT granted"):
            return
        await asyncio.sleep(0.01)
    pytest.fail("nobody waits")


async def test_a_mark_of_the_future_is_refused(store: Store, ledger: Ledger) -> None:
    """One that this ledger never gave would wait for rows that others have had."""
    await ledger.post(command(give("1")))
    last = await store.read(lambda c: commit_order.begin(c, None))
    assert await store.read(lambda c: commit_order.begin(c, last)) == last
    assert (await store.read(lambda c: commit_order.step(c, last, 10))).rows == []
    beyond = Mark(last.position + 1_000, 0, 0)

    with pytest.raises(InvalidField, match="beyond the end"):
        await store.read(lambda c: commit_order.begin(c, beyond))


async def test_a_mark_stands_on_a_row(store: Store, ledger: Ledger) -> None:
    """A cursor names a committed row and its time, and nothing beyond it."""
    assert await store.read(lambda c: commit_order.begin(c, None)) == START
    posted = await ledger.post(command(give("1")))
    (row,) = posted.posting.rows
    mark = await store.read(lambda c: commit_order.begin(c, None))

    assert (mark.wallet, mark.sequence, mark.written_at) == (1, row.sequence, row.created_at)
    assert Mark.parse(mark.text(), field="after") == mark
    step = await store.read(lambda c: commit_order.step(c, START, 10))
    assert (step.rows[-1].mark, step.mark) == (mark, mark)
    assert await store.read(lambda c: commit_order.step(c, mark, 10)) == commit_order.CommitStep(
        [], mark, more=False
    )


@pytest.mark.parametrize("sequence", [1, 2])
async def test_a_row_that_the_database_has_lost_leaves_no_gap(
    store: Store, ledger: Ledger, clock: Clock, sequence: int
) -> None:
    """Where a cursor's row is gone or another one, reading goes on with all that came since."""
    await ledger.post(command(give("5"), key="long before"))
    clock.advance(HOUR)
    # Its number may be one that this server has not reached yet.
    lost = Mark(10**15, 1, sequence, clock.now)
    before = await store.read(lambda c: commit_order.step(c, lost, 10))
    assert before.rows == []
    for nth in range(3):
        await ledger.post(command(consume("1"), key=f"{nth}"))

    for mark in (lost, before.mark):
        begun = await store.read(partial(commit_order.begin, after=mark))
        for one in (mark, begun):
            step = await store.read(partial(commit_order.step, after=one, size=10))
            assert [row.place for row in step.rows] == [(1, 2), (1, 3), (1, 4)]


@pytest.mark.parametrize(
    "given", ["", "1", "1-2", "-1-2-3", "1-2-3-4-5", "1-2-3-", "1-2-x", "9" * 19 + "-1-1"]
)
def test_what_is_no_mark(given: str) -> None:
    """Only what `text` writes is read."""
    with pytest.raises(InvalidField, match="after is no cursor"):
        Mark.parse(given, field="after")


async def test_the_newest_is_known(store: Store, ledger: Ledger) -> None:
    """Whether there is anything new is one look at the end of an index."""
    assert await store.read(commit_order.newest) == 0
    await ledger.post(command(give("2")))
    first = await store.read(commit_order.newest)
    await ledger.post(command(consume("1"), key="another"))
    assert await store.read(commit_order.newest) > first > 0


@pytest.mark.only("postgresql")
async def test_rows_of_another_server_are_adopted(database_url: str, clock: Clock) -> None:
    """What was restored from a dump of a busier server is refused, then made this one's.

    Its rows would belong to no snapshot: exports and watchers would leave them out.
    """
    async with opened(database_url, clock) as (store, ledger):
        await ledger.post(command(give("5")))
        for nth in range(4):
            await ledger.post(command(consume("1"), key=f"{nth}"))
        rows = await store.read(written)
    config = load({"database_url": database_url})
    await require_schema(config)
    later = "written_in = CAST(CAST(CAST(written_in AS text) AS bigint) + 5000000 AS text)::xid8"
    await execute(
        database_url,
        "ALTER TABLE credit_transactions DISABLE TRIGGER credit_transactions_no_update",
        f"UPDATE credit_transactions SET {later}",
        f"UPDATE wallet_states SET {later}",
        "ALTER TABLE credit_transactions ENABLE TRIGGER credit_transactions_no_update",
    )

    with pytest.raises(CannotStart, match="another server"):
        await require_schema(config)
    assert (await migrate(config))[2] == len(rows)
    assert (await migrate(config))[2] == 0

    await require_schema(config)
    async with opened(database_url, clock) as (store, ledger):
        await ledger.post(command(give("1"), key="after"))
        reader = Following(store, random.Random(1))
        await until_read(reader, len(rows) + 1)
        require_whole(reader.read, [*rows, (rows[0][0], len(rows) + 1)])
