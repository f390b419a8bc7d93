"""SQLite: how its connections are set up, and its writer.

One process writes (a lock file beside the database says which), through one connection, in one
thread; readers are connections that cannot write or checkpoint. The write path is bare SQL on the
driver: per statement a thread hop or an expression tree would cost more than the statement.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, StaticPool

from creditledger.store.ledger_clock import LedgerClock, refusal
from creditledger.store.sqlite import statements as sql
from creditledger.store.write.batch import (
    Changes,
    CommitFailed,
    DiskFailed,
    Loaded,
    StoreUnavailable,
    Wanted,
)
from creditledger.store.write.changed_rows import changed_rows
from creditledger.store.write.loader import Loading, loading
from creditledger.store.write.wallet_cache import Known

T = TypeVar("T")

#: Readers wait this long for the moment in which the journal is being reset.
BUSY_TIMEOUT_MS = 5_000


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
        # Before the journal is folded into the database a page is written to it many times: 16 MB
        # of them cost less to fold than four times 4 MB.
        # Recursive triggers see what REPLACE deletes, so that it is refused like any DELETE.
        _settings(
            connection,
            "journal_mode=WAL",
            "synchronous=FULL",
            "cache_size=-65536",
            "recursive_triggers=ON",
            "wal_autocheckpoint=4000",
        )

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def reader(path: Path) -> sqlite3.Connection:
    """The driver's own connection, which cannot write; transactions are begun by hand."""
    place = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(place, uri=True, isolation_level=None)
    _settings(connection)
    return connection


def _read_only(path: Path) -> URL:
    # Not as text: SQLAlchemy would undo the quoting that SQLite's own URI needs.
    query = {"mode": "ro", "uri": "true"}
    return URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)


def reading_engine(path: Path) -> Engine:
    """Connections that cannot write, server or not, and whose transactions are snapshots."""
    engine = create_engine(
        _read_only(path),
        poolclass=NullPool,
        # One thread at a time uses a connection, but not always the one that opened it.
        connect_args={"isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        # By the driver: SQLAlchemy takes as long for it as for a statement of a read.
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("BEGIN")

    return engine


class SqliteWriter:
    """The one connection that writes, and the thread it lives in."""

    def __init__(self, path: Path, clock: LedgerClock) -> None:
        self._clock = clock
        self._engine = writer_engine(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._driver: sqlite3.Connection | None = None
        self._known = Known()
        self._version = 0  #: Of the file, as the last batch found it.
        self._closed = threading.Event()

    async def open(self) -> None:
        """Connect."""
        await self._run(self._open)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """Run `change` as one transaction of SQLAlchemy's Core; for what is not a posting."""
        return await self._run(lambda: self._write(change))

    async def derive(self, change: Callable[[Connection], T]) -> T:
        """Run `change` of what rows alone make: see Store.derive."""
        return await self._run(lambda: self._derive(change))

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

    def _reopen(self) -> None:
        self._engine.dispose()
        self._known.forget()
        self._open()

    def _write(self, change: Callable[[Connection], T]) -> T:
        self._known.forget()
        return self._changed(change)

    def _derive(self, change: Callable[[Connection], T]) -> T:
        driver = self._driver
        assert driver is not None
        # The next batch waits for the disk, and brings the journal up to itself there.
        driver.execute("PRAGMA synchronous=NORMAL")
        try:
            return self._changed(change)
        finally:
            driver.execute("PRAGMA synchronous=FULL")

    def _changed(self, change: Callable[[Connection], T]) -> T:
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
        try:
            with _transaction(driver):
                loaded = self._load(driver, wanted)
                changes = decide(loaded)
                for write, rows in changed_rows(changes):
                    sql.write_rows(driver, write, rows)
        except BaseException:
            self._known.forget()
            raise
        self._known.keep(loaded)

    def _load(self, driver: sqlite3.Connection, wanted: Wanted) -> Loaded:
        known = self._known
        (version,) = driver.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            # Another connection has written: an operator's, for there should be no other.
            known.forget()
            self._version = version
        verdict = self._clock.read()
        loaded = Loaded(
            clock=verdict.now,
            refused=refusal(verdict),
            wallets=known.take(wanted.wallets),
            numbers=known.numbers,
        )
        unknown = wanted.wallets - loaded.wallets.keys()
        unread = sql.wallets(driver, list(unknown)) if unknown else []
        loaded.wallets |= {wallet.id: wallet for wallet in unread}
        _drive(driver, loading(loaded, wanted, unread))
        return loaded


def _drive(driver: sqlite3.Connection, steps: Loading[None]) -> None:
    with suppress(StopIteration):
        lookup, keys = next(steps)
        while True:
            lookup, keys = steps.send(sql.look_up(driver, lookup, keys))


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
