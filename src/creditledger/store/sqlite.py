"""SQLite: how its connections are set up, and its writer.

One process writes (a lock file beside the database says which), through one connection, in one
thread; readers are connections that cannot write or checkpoint. The write path is bare SQL on the
driver: per statement a thread hop or an expression tree would cost more than the statement.
"""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from creditledger.model import Dimension, Posting, Row
from creditledger.store.batch import (
    Changes,
    CommitFailed,
    DiskFailed,
    Loaded,
    StoreUnavailable,
    Wanted,
)
from creditledger.store.values import (
    DIMENSION_COLUMNS,
    GRANT_COLUMNS,
    POSTING_COLUMNS,
    ROW_COLUMNS,
    STATE_COLUMNS,
    SUM_COLUMNS,
    WALLET_COLUMNS,
    digest,
    dimension_columns,
    dimension_value,
    grant_columns,
    grant_value,
    posting_columns,
    posting_value,
    wallet_counters,
    wallet_value,
)

T = TypeVar("T")

#: Readers wait this long for the moment in which the journal is being reset.
BUSY_TIMEOUT_MS = 5_000
#: Numbers of dimensions kept in memory; they never change, so forgetting them costs a read only.
DIMENSIONS_CACHED_MAX = 200_000


class DatabaseLocked(Exception):
    """Another process holds the database for writing."""


def _is_disk_failure(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB"))


def lock(path: Path) -> FileLock:
    """The right to write to the database at `path`, or DatabaseLocked at once."""
    held = FileLock(f"{path}.lock", mode=0o600)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise DatabaseLocked(f"{path} is being written by another process") from None
    return held


def _settings(connection: sqlite3.Connection, *pragmas: str) -> None:
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON", *pragmas):
        connection.execute(f"PRAGMA {pragma}")


def writer_engine(path: Path) -> Engine:
    """An engine of one connection, durable (fsync at every commit), transactions begun by hand."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "cached_statements": 256,
        },
    )

    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        # WAL lets readers read while the writer writes; FULL makes COMMIT wait for the disk.
        # Recursive triggers see what REPLACE deletes, so that it is refused like any DELETE.
        _settings(
            connection,
            "journal_mode=WAL",
            "synchronous=FULL",
            "cache_size=-65536",
            "recursive_triggers=ON",
        )

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _read_only(driver: str, path: Path) -> URL:
    # Not as text: SQLAlchemy would undo the quoting that SQLite's own URI needs.
    query = {"mode": "ro", "uri": "true"}
    return URL.create(driver, database=f"file:{quote(str(path))}", query=query)


def reader_engine(path: Path, connections: int) -> AsyncEngine:
    """An engine whose transactions are snapshots and whose connections refuse to write."""
    engine = create_async_engine(
        _read_only("sqlite+aiosqlite", path),
        pool_size=connections,
        max_overflow=0,
        connect_args={"isolation_level": None},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "query_only=ON", "wal_autocheckpoint=0"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def reading_engine(path: Path) -> Engine:
    """A synchronous reader for commands that look at a database, running server or not."""
    engine = create_engine(
        _read_only("sqlite", path),
        poolclass=NullPool,
        connect_args={"isolation_level": None},
    )

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


class Writer:
    """The one connection that writes, and the thread it lives in."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._engine = writer_engine(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._driver: sqlite3.Connection | None = None
        self._numbers: dict[tuple[int, Dimension], int] = {}
        self._next_posting = 0
        self._closed = threading.Event()

    async def open(self) -> None:
        """Connect and find out where the numbers stand."""
        await self._run(self._open)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run `change` as one transaction of SQLAlchemy's Core; for what is not a posting."""
        return await self._run(lambda: self._write(change))

    async def commit(self, wanted: Wanted, decide: Callable[[Loaded], Changes]) -> None:
        """Phases 1 to 6 of the write path as one transaction; `decide` runs inside it.

        Raises what `decide` raised or the driver's error, with nothing written; CommitFailed if it
        was COMMIT that failed.
        """
        await self._run(lambda: self._commit(wanted, decide))

    async def reopen(self) -> None:
        """A new connection, for when it is unclear what became of the last transaction."""
        await self._run(self._reopen)

    async def close(self) -> None:
        """Finish the transaction under way, fold the journal into the database, disconnect."""
        if not self._closed.is_set():
            self._closed.set()
            await self._run(self._engine.dispose)
            self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        # A transaction once begun is finished whatever happens to the one who waits for it.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _open(self) -> None:
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            self._driver = driver
            (last,) = driver.execute("SELECT coalesce(max(number), 0) FROM postings").fetchone()
            self._next_posting = last + 1

    def _reopen(self) -> None:
        self._engine.dispose()
        self._numbers.clear()
        self._open()

    def _write(self, change: Callable[[Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return change(connection)
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error) and _is_disk_failure(error.orig):
                raise DiskFailed(error.orig) from error
            if isinstance(error.orig, sqlite3.OperationalError):
                raise StoreUnavailable(error.orig) from error
            raise

    def _commit(self, wanted: Wanted, decide: Callable[[Loaded], Changes]) -> None:
        driver = self._driver
        assert driver is not None
        with _transaction(driver):
            loaded = self._load(driver, wanted)
            changes = decide(loaded)
            _store(driver, changes)
        self._next_posting += len(changes.postings)
        if len(self._numbers) > DIMENSIONS_CACHED_MAX:
            self._numbers.clear()
        self._numbers.update(loaded.numbers)

    def _load(self, driver: sqlite3.Connection, wanted: Wanted) -> Loaded:
        loaded = Loaded(clock=self._clock(), next_posting=self._next_posting)
        _load_wallets(driver, wanted, loaded)
        _load_grants(driver, wanted, loaded)
        _load_replays(driver, wanted, loaded)
        if wanted.originals:
            _load_originals(driver, wanted, loaded)
        if wanted.meters:
            found = driver.execute(_METERS, (json.dumps(list(wanted.meters)),))
            loaded.meters = frozenset(meter for (meter,) in found)
        if wanted.subscriptions:
            found = driver.execute(_SUBSCRIPTIONS, (json.dumps(list(wanted.subscriptions)),))
            loaded.subscriptions = dict(found)
        self._load_dimensions(driver, wanted, loaded)
        return loaded

    def _load_dimensions(self, driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
        """Numbers of the dimensions the batch writes under; those not found get the next ones."""
        unknown: dict[tuple[int, str], Dimension] = {}
        for wallet, dimension in wanted.dimensions(loaded):
            number = self._numbers.get((wallet, dimension))
            if number is None:
                unknown[wallet, digest(dimension)] = dimension
            else:
                loaded.numbers[wallet, dimension] = number
        if not unknown:
            return
        pairs = json.dumps(list(unknown))
        for wallet, mark, number in driver.execute(_DIMENSION_NUMBERS, (pairs,)):
            loaded.numbers[wallet, unknown[wallet, mark]] = number
        wallets = json.dumps(list({wallet for wallet, _ in unknown}))
        loaded.next_dimension = dict(driver.execute(_DIMENSION_NEXT, (wallets,)))


@contextmanager
def _transaction(driver: sqlite3.Connection) -> Iterator[None]:
    try:
        driver.execute("BEGIN IMMEDIATE")
        yield
    except BaseException as error:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error) and _is_disk_failure(error):
            raise DiskFailed(error) from error
        if isinstance(error, sqlite3.OperationalError):
            raise StoreUnavailable(error) from error
        # A broken constraint among them: the same again would break it again.
        raise
    try:
        driver.execute("COMMIT")
    except sqlite3.Error as error:
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise (DiskFailed if _is_disk_failure(error) else CommitFailed)(error) from error


# --- reading what a batch wants; each a statement however many postings the batch has ------------


def _of(table: str, columns: list[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in columns)


_WALLETS = f"""
SELECT c.scale, {_of("w", WALLET_COLUMNS)}, {_of("s", STATE_COLUMNS)}
FROM json_each(?) AS j CROSS JOIN wallets AS w ON w.id = j.value
JOIN wallet_states AS s ON s.wallet_number = w.number
JOIN currencies AS c ON c.code = w.currency"""

_OPEN_GRANTS = f"""
SELECT g.wallet_number, {_of("g", GRANT_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN grants AS g ON g.wallet_number = j.value AND g.open = 1"""

_NAMED_GRANTS = f"""
SELECT g.wallet_number, {_of("g", GRANT_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN grants AS g ON g.wallet_number = json_extract(j.value, '$[0]')
 AND g.number = json_extract(j.value, '$[1]')"""

_POSTINGS_BY_KEY = f"""
SELECT p.first_sequence, p.row_count, {_of("p", POSTING_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.idempotency_key = json_extract(j.value, '$[1]')"""

_POSTINGS_BY_NUMBER = f"""
SELECT p.first_sequence, p.row_count, {_of("p", POSTING_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.number = json_extract(j.value, '$[1]')
 AND p.wallet_number = json_extract(j.value, '$[0]')"""

_ROWS = f"""
SELECT {_of("t", ROW_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN credit_transactions AS t ON t.wallet_number = json_extract(j.value, '$[0]')
 AND t.sequence BETWEEN json_extract(j.value, '$[1]') AND json_extract(j.value, '$[2]')
ORDER BY t.wallet_number, t.sequence"""

_DIMENSIONS = f"""
SELECT d.wallet_number, d.number, {_of("d", DIMENSION_COLUMNS)} FROM json_each(?) AS j
CROSS JOIN dimensions AS d ON d.wallet_number = json_extract(j.value, '$[0]')
 AND d.number = json_extract(j.value, '$[1]')"""

_DIMENSION_NUMBERS = """
SELECT d.wallet_number, d.digest, d.number FROM json_each(?) AS j
CROSS JOIN dimensions AS d ON d.wallet_number = json_extract(j.value, '$[0]')
 AND d.digest = json_extract(j.value, '$[1]')"""

_DIMENSION_NEXT = """
SELECT j.value, 1 + coalesce((SELECT max(d.number) FROM dimensions AS d
                              WHERE d.wallet_number = j.value), 0)
FROM json_each(?) AS j"""

_REFUNDED = """
SELECT p.wallet_number, p.refund_of, sum(t.amount)
FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.refund_of = json_extract(j.value, '$[1]')
JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
 AND t.sequence >= p.first_sequence AND t.sequence < p.first_sequence + p.row_count
GROUP BY p.wallet_number, p.refund_of"""

_METERS = "SELECT m.id FROM json_each(?) AS j CROSS JOIN meters AS m ON m.id = j.value"
_SUBSCRIPTIONS = (
    "SELECT s.id, s.customer_id FROM json_each(?) AS j"
    " CROSS JOIN subscriptions AS s ON s.id = j.value"
)


def _load_wallets(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    for scale, *columns in driver.execute(_WALLETS, (json.dumps(list(wanted.wallets)),)):
        wallet = wallet_value(columns, scale)
        loaded.wallets[wallet.id] = wallet


def _load_grants(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    for number, *columns in driver.execute(_OPEN_GRANTS, (json.dumps(list(wallets)),)):
        wallets[number].add(grant_value(columns))
    if wanted.grants:
        _load_named_grants(driver, loaded, wanted.grants)


def _load_named_grants(
    driver: sqlite3.Connection, loaded: Loaded, named: Iterable[tuple[int, int]]
) -> None:
    """Grants a command refers to, used up or not, of the batch's own wallets."""
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    missing = [
        (wallet, number)
        for wallet, number in set(named)
        if wallet in wallets and number not in wallets[wallet].grants
    ]
    for number, *columns in driver.execute(_NAMED_GRANTS, (json.dumps(missing),)):
        wallets[number].add(grant_value(columns))


def _load_replays(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    pairs = [
        (loaded.wallets[wallet].number, key)
        for wallet, key in wanted.keys
        if wallet in loaded.wallets
    ]
    for posting in _load_postings(driver, loaded, _POSTINGS_BY_KEY, pairs):
        assert posting.idempotency_key is not None
        loaded.postings[posting.wallet, posting.idempotency_key] = posting


def _load_originals(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    own = {wallet.number for wallet in loaded.wallets.values()}
    pairs = [pair for pair in wanted.originals if pair[0] in own]
    drawn_on = []
    for posting in _load_postings(driver, loaded, _POSTINGS_BY_NUMBER, pairs):
        loaded.originals[posting.wallet, posting.number] = posting
        drawn_on += [(row.wallet, row.grant) for row in posting.rows if row.grant is not None]
    for wallet, number, amount in driver.execute(_REFUNDED, (json.dumps(pairs),)):
        loaded.refunded[wallet, number] = amount
    _load_named_grants(driver, loaded, drawn_on)


def _load_postings(
    driver: sqlite3.Connection,
    loaded: Loaded,
    statement: str,
    pairs: Sequence[tuple[int, int] | tuple[int, str]],
) -> list[Posting]:
    """Postings with their rows, and the rows' dimensions beside them."""
    found = driver.execute(statement, (json.dumps(pairs),)).fetchall() if pairs else []
    if not found:
        return []
    postings = {}
    ranges = []
    for first, count, *columns in found:
        posting = posting_value(columns)
        postings[posting.number] = posting
        ranges.append((posting.wallet, first, first + count - 1))
    for columns in driver.execute(_ROWS, (json.dumps(ranges),)):
        row = Row(*columns)
        postings[row.posting].rows.append(row)
    rows = {(p.rows[0].wallet, p.rows[0].dimension) for p in postings.values()}
    for wallet, number, *columns in driver.execute(_DIMENSIONS, (json.dumps(list(rows)),)):
        loaded.dimensions[wallet, number] = dimension_value(columns)
    return list(postings.values())


# --- writing what was decided ---------------------------------------------------------------------


def _insert(table: str, columns: list[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


_DIMENSION_INSERT = _insert("dimensions", ["wallet_number", "number", "digest", *DIMENSION_COLUMNS])
_POSTING_INSERT = _insert("postings", [*POSTING_COLUMNS, "first_sequence", "row_count"])
_GRANT_INSERT = _insert("grants", ["wallet_number", *GRANT_COLUMNS, "open"])
_ROW_INSERT = _insert("credit_transactions", ROW_COLUMNS)
_GRANT_DRAW = "UPDATE grants SET remaining = ? WHERE wallet_number = ? AND number = ?"
_GRANT_TURN = "UPDATE grants SET remaining = ?, open = ? WHERE wallet_number = ? AND number = ?"
_COUNTERS = STATE_COLUMNS[STATE_COLUMNS.index("sequence") :]
_WALLET_MOVE = (
    f"UPDATE wallet_states SET {', '.join(f'{c} = ?' for c in _COUNTERS)} WHERE wallet_number = ?"
)
_WALLET_TERMS = """
UPDATE wallet_states SET overdraft_limit = ?, status = ?, metadata = ?, updated_at = ?
WHERE wallet_number = ?"""
_ROLLUP_ADD = (
    _insert("rollups", ["wallet_number", "quarter", "dimension_number", *SUM_COLUMNS])
    + " ON CONFLICT (wallet_number, quarter, dimension_number) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUM_COLUMNS)
)


def _store(driver: sqlite3.Connection, changes: Changes) -> None:
    """At most nine statements however many postings."""
    many = driver.executemany
    if changes.terms:
        many(
            _WALLET_TERMS,
            [
                (w.overdraft_limit, w.status.value, json.dumps(dict(w.metadata)), w.updated_at, n)
                for n, w in changes.terms.items()
            ],
        )
    if not changes.rows:
        return
    if changes.dimensions:
        many(
            _DIMENSION_INSERT,
            [(w, n, digest(d), *dimension_columns(d)) for w, n, d in changes.dimensions],
        )
    many(_POSTING_INSERT, map(posting_columns, changes.postings))
    if changes.given:
        many(
            _GRANT_INSERT,
            [(wallet, *grant_columns(grant)) for (wallet, _), grant in changes.given.items()],
        )
    turned, kept = [], []
    for (wallet, number), (grant, was_open) in changes.drawn.items():
        if was_open and grant.remaining:
            kept.append((grant.remaining, wallet, number))
        else:
            turned.append((grant.remaining, grant.remaining > 0, wallet, number))
    if kept:
        many(_GRANT_DRAW, kept)
    if turned:
        many(_GRANT_TURN, turned)
    many(_ROW_INSERT, changes.rows)
    many(_WALLET_MOVE, [(*wallet_counters(w), n) for n, w in changes.touched.items()])
    many(_ROLLUP_ADD, [(*key, *sums) for key, sums in changes.rollups.items()])
