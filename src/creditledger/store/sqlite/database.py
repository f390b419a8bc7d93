"""SQLite: one file, one process that writes to it, readers beside.

What its connections are is in writer.py, which also holds the write path.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DatabaseError

from creditledger.store import cut_off
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.readers import ALONE_SECONDS_MAX, Readers, Use
from creditledger.store.sqlite import writer as sqlite_writer
from creditledger.store.sqlite.readers import ThreadReader
from creditledger.store.write.batch import (
    CannotOpen,
    Changes,
    Loaded,
    Wanted,
)

T = TypeVar("T")

DRIVER = "sqlite+aiosqlite"
#: Connections that look together, at most: each has memory and a processor of its own.
TOGETHER_MAX = 4
#: How often they begin anew because somebody wrote while they did, which takes half a millisecond.
TOGETHER_ATTEMPTS = 1_000


def check(url: str) -> None:
    """Raises ValueError saying what is wrong with a `sqlite+aiosqlite:///…` URL."""
    parsed = make_url(url)
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise ValueError("it must name a file, without options")


def path(url: str) -> Path:
    """The file."""
    check(url)
    # One database, one lock, by whatever link it is named.
    return Path(make_url(url).database or "").resolve()


def name(url: str) -> str:
    """The file as a text."""
    return str(path(url))


async def look(url: str, query: Callable[[Connection], T]) -> T:
    """`query` on one snapshot, however long it takes. Raises CannotOpen."""
    with _reading(url) as engine, engine.begin() as connection:
        return query(connection)


async def look_together(
    url: str, each: Callable[[Connection], None], last: Callable[[Connection], T]
) -> T:
    """`each` in threads upon a connection for each processor, `last` on the first of them.

    Raises CannotOpen.
    """
    count = min(TOGETHER_MAX, os.cpu_count() or 1)
    with _reading(url) as engine, ExitStack() as opened:
        connections = [opened.enter_context(engine.connect()) for _ in range(count)]
        _begin_together(connections, engine)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(count) as threads:
            try:
                await asyncio.gather(
                    *(loop.run_in_executor(threads, each, one) for one in connections)
                )
            except BaseException:
                for one in connections:
                    _driver(one).interrupt()
                raise
        return last(connections[0])


@contextmanager
def _reading(url: str) -> Iterator[Engine]:
    file = path(url)
    if not file.is_file():
        raise CannotOpen(f"There is no database at {file}: run `creditledger migrate`.")
    engine = sqlite_writer.reading_engine(file)
    try:
        yield engine
    except DatabaseError as error:
        raise CannotOpen(f"{file} cannot be read: {error.orig}.") from None
    finally:
        engine.dispose()


def _begin_together(connections: Sequence[Connection], engine: Engine) -> None:
    """A transaction on each, all of the same snapshot: nothing was written while they began."""
    with engine.connect() as watch:
        driver = _driver(watch)
        for _ in range(TOGETHER_ATTEMPTS):
            before = _version(driver)
            for one in connections:
                # BEGIN alone sees nothing yet.
                one.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").close()
            if _version(driver) == before:
                return
            for one in connections:
                one.rollback()
    raise CannotOpen(f"{engine.url.database} is written to without a pause; try again later.")


def _driver(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _version(driver: sqlite3.Connection) -> int:
    """Another number after each commit of anybody else."""
    version: int = driver.execute("PRAGMA data_version").fetchone()[0]
    return version


async def migrate(url: str, change: Callable[[Connection], T]) -> T:
    """`change` as one transaction, on a file made if it is missing.

    Raises CannotOpen, and DatabaseLocked while a server runs.
    """
    file = path(url)
    if not file.parent.is_dir():
        raise CannotOpen(f"There is no folder {file.parent}.")
    lock = sqlite_writer.lock(file)
    try:
        engine = sqlite_writer.writer_engine(file)
        try:
            with engine.begin() as connection:
                return change(connection)
        except DatabaseError as error:
            raise CannotOpen(f"{file} cannot be migrated: {error.orig}.") from None
        finally:
            engine.dispose()
    finally:
        lock.release()


class SQLite:
    """One file, opened for writing by this process and no other."""

    def __init__(self, url: str, *, clock: LedgerClock, readers: int) -> None:
        """Raises DatabaseLocked."""
        file = path(url)
        self._lock = sqlite_writer.lock(file)
        self._writer = sqlite_writer.SqliteWriter(file, clock)
        reading = sqlite_writer.reading_engine(file)
        cut_off.remember(reading)
        opened = partial(ThreadReader, reading)
        self._readers = Readers(opened, readers)
        # Who calls must be known whatever else is read.
        self._urgent = Readers(opened, 1)

    async def open(self) -> None:
        """Connect."""
        await self._writer.open()

    async def close(self) -> None:
        """Finish what is under way and let go of the file."""
        await self._readers.close()
        await self._urgent.close()
        await self._writer.close()
        self._lock.release()

    async def reconnect(self) -> None:
        """Forget the writing connection and open another one."""
        await self._writer.reopen()

    async def commit(
        self,
        wanted: Wanted,
        decide: Callable[[Loaded], Changes],
        *,
        wait: bool,
    ) -> None:
        """See Writer.commit. Nobody else writes, so there is nothing to wait for."""
        await self._writer.commit(wanted, decide)

    async def has_committed(self, transaction: str) -> bool | None:
        """Nothing is asked: what a file does not commit it undoes."""
        raise AssertionError("CommitFailed of a file names no transaction")

    async def write(self, change: Callable[[Connection], T]) -> T:
        """See Writer.write."""
        return await self._writer.write(change)

    async def derive(self, change: Callable[[Connection], T]) -> T:
        """See Store.derive."""
        return await self._writer.derive(change)

    async def read(
        self, query: Callable[[Connection], T], seconds: float, *, stale: bool, urgent: bool
    ) -> T:
        """`query` on one snapshot; the last one, however stale it may be.

        Raises QueryTooBroad when it takes longer than `seconds`, Overloaded.
        """
        return await (self._urgent if urgent else self._readers).read(query, seconds)

    async def read_alone(self, query: Callable[[Connection], T]) -> T | None:
        """See Store.read_alone. A file has one server."""
        return await self._readers.read(query, ALONE_SECONDS_MAX)

    def uses(self) -> dict[str, Use]:
        """See Store.uses."""
        return {"reading": self._readers.use, "urgent": self._urgent.use}
