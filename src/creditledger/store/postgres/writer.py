"""PostgreSQL: the write path, bare SQL on the driver.

A batch is a handful of statements however many postings it has: its values travel as arrays, a
column each. Whatever number of servers writes, the rows of `wallet_states` are locked first, in
order, and all that depends on them is read in later statements, which see what was committed
during the wait.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any, NamedTuple

import asyncpg

from creditledger.domain.model import Wallet
from creditledger.store.ledger_clock import LedgerClock, refusal
from creditledger.store.postgres import statements as sql
from creditledger.store.write.batch import (
    Changes,
    CommitFailed,
    Loaded,
    StoreUnavailable,
    WalletsLocked,
    Wanted,
)
from creditledger.store.write.changed_rows import MOVE, TRANSACTIONS, Write, changed_rows
from creditledger.store.write.columns import set_terms, wallet_value
from creditledger.store.write.loader import Loading, loading
from creditledger.store.write.wallet_cache import Known

#: What the driver raises when the server is gone or does not answer, or when it has lost its own
#: place in what it says, as happens to it where a connection ends in the middle of a statement.
LOST = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.TargetServerAttributeNotMatched,
    OSError,
)
#: Classes of errors that say "not now": connection, resources, operator, system; and a lock that
#: was waited for too long, a deadlock with somebody else's statements, a server that only reads.
_NOT_NOW = ("08", "53", "57", "58", "55P03", "40", "25006")
#: How long a lock is waited for.
LOCK_SECONDS_MAX = 5
#: How long a batch waits for a lock before it goes without the wallets that somebody else has
#: locked: a few batches of another server. Until then who waits has its turn, in order.
WALLET_LOCK_MS_MAX = 200
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
#: Locks of wallets are not waited for, so this is about others, such as an administrator's of a
#: table: there is nothing to go on with.
BEGIN_WITHOUT_LOCKED = f"{BEGIN}; SET LOCAL lock_timeout = '{LOCK_SECONDS_MAX}s'"
#: Wallets of which what never changes is kept in memory, about 400 bytes each.
PLACES_MAX = 100_000

#: How long a statement's plan is used at first, and at last.
PLANS_SECONDS_MIN, PLANS_SECONDS_MAX = 1.0, 60.0
DISCARD_PLANS = "DISCARD PLANS"

Connect = Callable[[], Any]


def is_not_now(error: BaseException) -> bool:
    """Whether the database, not the statement, is why it failed: later it may work."""
    if isinstance(error, LOST):
        return True
    code = getattr(error, "sqlstate", None) or ""
    return isinstance(error, asyncpg.PostgresError) and code.startswith(_NOT_NOW)


class Plans:
    """When a connection's plans are made anew: often while it is young, then each minute.

    They fit the tables as those were. Of an empty one it is as good to look rows up by their wallet
    alone as by their whole key; once the wallet has many rows that is a scan of all of them.
    """

    def __init__(self) -> None:
        self._made, self._lasting = monotonic(), PLANS_SECONDS_MIN

    def are_old(self) -> bool:
        """Whether to discard them; asked again, they are young."""
        now = monotonic()
        if now - self._made < self._lasting:
            return False
        self._made, self._lasting = now, min(2 * self._lasting, PLANS_SECONDS_MAX)
        return True


class _Fixed(NamedTuple):
    """What never changes of a wallet."""

    number: int
    id: str
    scale: int
    columns: Sequence[Any]  #: Of WALLET.


class PostgresWriter:
    """One connection that writes postings, made when it is needed and again when it is lost."""

    def __init__(self, connect: Connect, clock: LedgerClock) -> None:
        self._connect = connect
        self._clock = clock
        self._connection: asyncpg.Connection | None = None
        self._plans = Plans()
        self._places: dict[str, _Fixed] = {}  #: By wallet id.
        self._known = Known()
        self._own: str | None = None  #: The database transaction under way, or the last one.

    async def connection(self) -> asyncpg.Connection:
        """The connection, alive as far as one can tell. Raises what connecting raises."""
        if self._connection is None or self._connection.is_closed():
            # After a failover the database may be behind what was known of the one before.
            self._known.forget()
            self._places.clear()
            self._connection = await self._connect()
            self._plans = Plans()
        elif self._plans.are_old():
            await self._connection.execute(DISCARD_PLANS)
        return self._connection

    async def close(self) -> None:
        """Let go of the connection; what is not committed on it is undone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2)
            except Exception:
                connection.terminate()

    async def commit(
        self, wanted: Wanted, decide: Callable[[Loaded], Changes], *, wait: bool = True
    ) -> None:
        """Phases 1 to 6 of the write path as one transaction; `decide` runs inside it.

        `wait`: for a moment, for wallets that somebody else has locked; then raises WalletsLocked.
        Without it they are left out: `Loaded.locked`. Raises what `decide` raises,
        StoreUnavailable, or the driver's error for what the schema refuses, with nothing written;
        CommitFailed if it was COMMIT that failed.
        """
        try:
            connection = await self.connection()
        except Exception as error:
            raise StoreUnavailable(error) from error
        try:
            async with self._transaction(connection, wait=wait):
                loaded, behind = await self._load(connection, wanted, wait=wait)
                changes = decide(loaded)
                await _store(connection, changes, behind)
        except BaseException:
            self._known.forget()
            raise
        self._known.keep(loaded)

    @asynccontextmanager
    async def _transaction(
        self, connection: asyncpg.Connection, *, wait: bool
    ) -> AsyncIterator[None]:
        try:
            await connection.execute(BEGIN if wait else BEGIN_WITHOUT_LOCKED)
            yield
        except BaseException as error:
            await self._undo(connection, error)
            if wait and isinstance(error, asyncpg.LockNotAvailableError):
                raise WalletsLocked(error) from error
            if is_not_now(error):
                raise StoreUnavailable(error) from error
            raise
        try:
            await connection.execute("COMMIT")
        except BaseException as error:
            # It may have been done. That is asked on another connection, where the question waits
            # for the locks of this one as long as they are held.
            connection.terminate()
            self._connection = None
            if isinstance(error, Exception):
                raise CommitFailed(error, self._own) from error
            raise

    async def has_committed(self, transaction: str) -> bool | None:
        """Whether the database has; None: it cannot say. Raises what the driver raises."""
        connection = await self.connection()
        try:
            committed: bool | None = await connection.fetchval(sql.COMMITTED, transaction)
        except asyncpg.InvalidParameterValueError:
            return False  # after a failover it may never have begun
        return committed

    async def _undo(self, connection: asyncpg.Connection, error: BaseException) -> None:
        try:
            if isinstance(error, TimeoutError):
                raise error  # who has not answered so far is not asked for more
            await connection.execute("ROLLBACK")
        except Exception:
            connection.terminate()
            self._connection = None

    async def _load(
        self, connection: asyncpg.Connection, wanted: Wanted, *, wait: bool
    ) -> tuple[Loaded, dict[int, str]]:
        """What is there, and where rows of those wallets stand whose place is not their own.

        A transaction is numbered when it locks its first wallet, and may wait for another one that
        a later number is writing on: its rows there are placed behind that one's.
        """
        places = await self._found(connection, wanted.wallets)
        numbers = {fixed.id: number for number, fixed in places.items()}
        keys = [(numbers[id_], key) for id_, key in wanted.keys if id_ in numbers]
        lock = sql.LOCK if wait else sql.LOCK_FREE
        records = await connection.fetch(lock, list(places), *sql.arrays(keys, 2))
        clock, seen, self._own, *_ = records[0]
        wallets, moved = self._locked(wanted, places, records)
        shown = self._clock.shown()  # of a clock that was given, the database's else
        verdict = self._clock.read(clock if shown is None else shown)
        loaded = Loaded(
            clock=verdict.now,
            refused=refusal(verdict),
            wallets=wallets,
            numbers=self._known.numbers,
        )
        if len(wallets) < len(places):
            loaded.locked = frozenset(numbers) - wallets.keys()
        # A statement sees what was committed before it began, not during its wait for the locks.
        # That is all there is of a wallet which nobody has moved since this connection did.
        await _drive(connection, loading(loaded, wanted, moved, replays=bool(moved) or seen))
        return loaded, {number: last for _, _, _, number, *_, last in records if last is not None}

    def _locked(
        self, wanted: Wanted, places: dict[int, _Fixed], records: Iterable[Sequence[Any]]
    ) -> tuple[dict[str, Wallet], list[Wallet]]:
        """The batch's wallets, each locked until the end of the transaction; by id.

        And those of them that somebody else has moved, as far as is known: their grants have to be
        read. Every posting moves a wallet's revision.
        """
        known = self._known.take(wanted.wallets)
        locked, moved = {}, []
        for _, _, _, number, *state, _ in records:
            if number is None:
                continue
            fixed = places[number]
            wallet = known.get(fixed.id)
            if wallet is None or wallet.revision != state[sql.REVISION]:
                wallet = wallet_value([*fixed.columns, *state], fixed.scale)
                moved.append(wallet)
            else:
                set_terms(wallet, state)
            locked[wallet.id] = wallet
        return locked, moved

    async def _found(
        self, connection: asyncpg.Connection, wallet_ids: Iterable[str]
    ) -> dict[int, _Fixed]:
        """What never changes of those wallets that there are, by number."""
        places = self._places
        unknown = [id_ for id_ in wallet_ids if id_ not in places]
        if unknown:
            if len(places) > PLACES_MAX:
                places.clear()
            for number, id_, scale, *columns in await connection.fetch(sql.WALLETS, [*wallet_ids]):
                places[id_] = _Fixed(number, id_, scale, columns)
        return {places[id_].number: places[id_] for id_ in wallet_ids if id_ in places}


async def _drive(connection: asyncpg.Connection, steps: Loading[None]) -> None:
    with suppress(StopIteration):
        lookup, keys = next(steps)
        while True:
            width = len(lookup.keys)
            arrays = sql.arrays(keys, width) if width > 1 else [keys]
            found = await connection.fetch(sql.lookup_text(lookup), *arrays)
            lookup, keys = steps.send(found)


async def _store(connection: asyncpg.Connection, changes: Changes, behind: dict[int, str]) -> None:
    """One statement for most batches, however many postings; at most seven more.

    `behind`: by wallet number, the place of rows that is not their own.
    """
    parts: dict[Write, Sequence[tuple[Any, ...]]] = {}
    for write, rows in changed_rows(changes):
        if write in sql.APART:
            await connection.fetch(sql.write_text(write), *sql.arrays(rows, sql.width(write)))
        elif write is TRANSACTIONS and behind:
            parts[sql.PLACED] = [(*row, behind.get(row[0])) for row in rows]
        else:
            parts[write] = rows
    if not parts:
        return
    moved = parts.pop(MOVE, ())
    columns = [
        column for write, rows in parts.items() for column in sql.arrays(rows, sql.width(write))
    ]
    columns += sql.arrays(moved, sql.width(MOVE))
    await connection.fetch(sql.together(tuple(parts)), *columns)
