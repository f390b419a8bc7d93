"""The database, and the only place that speaks SQL.

`Store` has three verbs: `commit` (the write path of postings), `write` (any other change) and
`read` (one snapshot). What they run is in `sqlite.py`, `registry.py`, `reads.py`; the tables are in
`schema.py`, what checks them in `verify.py`. Called by the ledger, the API and the command line.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from creditledger.errors import OutcomeUnknown, QueryTooBroad, Unavailable
from creditledger.store import sqlite
from creditledger.store.batch import (
    SUMS,
    Changes,
    CommitFailed,
    DiskFailed,
    Loaded,
    StoreUnavailable,
    Wanted,
)
from creditledger.store.sqlite import DatabaseLocked

__all__ = [
    "READ_SECONDS_MAX",
    "SUMS",
    "Changes",
    "CommitFailed",
    "DatabaseLocked",
    "DiskFailed",
    "Loaded",
    "Store",
    "StoreUnavailable",
    "Wanted",
    "database_path",
]

log = structlog.get_logger()

T = TypeVar("T")

#: A read transaction is cut off here, so that no reader holds back the journal for long.
READ_SECONDS_MAX = 5.0


def database_path(url: str) -> Path:
    """The file of a `sqlite+aiosqlite:///…` URL. Raises ValueError saying what is wrong with it."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("it is no database URL such as sqlite+aiosqlite:///./credit.db") from None
    if parsed.drivername != "sqlite+aiosqlite":
        raise ValueError(f"its driver {parsed.drivername!r} is not supported: use sqlite+aiosqlite")
    if not parsed.database or parsed.database == ":memory:" or parsed.query:
        raise ValueError("it must name a file, without options")
    return Path(parsed.database).resolve()  # one database, one lock, by whatever link it is named


class Store:
    """One database, opened for writing by this process and no other."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], int],
        readers: int = 8,
        on_disk_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_disk_failure` is told of one in `write`; one in `commit` is raised to the ledger."""
        self._on_disk_failure = on_disk_failure
        self._path = database_path(url)
        self._lock = sqlite.lock(self._path)
        self._writer = sqlite.Writer(self._path, clock)
        self._readers = sqlite.reader_engine(self._path, readers)

    async def open(self) -> None:
        """Connect. The schema must be there and current: see migrations.py."""
        await self._writer.open()

    async def close(self) -> None:
        """Finish what is under way and let go of the database."""
        await self._readers.dispose()
        await self._writer.close()
        self._lock.release()

    async def reconnect(self) -> None:
        """Forget the writing connection and open another one."""
        await self._writer.reopen()

    async def commit(self, wanted: Wanted, decide: Callable[[Loaded], Changes]) -> None:
        """Phases 1 to 6 of the write path: one transaction in which `decide` runs.

        Raises what `decide` raises, the driver's error for a broken constraint and StoreUnavailable
        with nothing written, CommitFailed and DiskFailed with the outcome unknown.
        """
        await self._writer.commit(wanted, decide)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """`change` as one write transaction.

        Raises Unavailable with nothing written, OutcomeUnknown after a failure of the disk.
        """
        try:
            return await self._writer.write(change)
        except DiskFailed as error:
            log.critical("disk failed", exc_info=True)
            self._on_disk_failure()
            raise OutcomeUnknown("the disk failed while this was written") from error
        except StoreUnavailable as error:
            raise Unavailable("the database does not answer") from error

    async def read(
        self, query: Callable[[Connection], T], *, seconds: float = READ_SECONDS_MAX
    ) -> T:
        """`query` on one snapshot; never waits for the writer.

        Raises QueryTooBroad when it takes longer than `seconds`.
        """
        async with self._readers.connect() as connection:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            loop = asyncio.get_running_loop()
            timer = loop.call_later(seconds, lambda: loop.create_task(raw.interrupt()))
            try:
                return await connection.run_sync(query)
            except OperationalError as error:
                if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
                    raise QueryTooBroad(
                        f"the query took longer than {seconds:g} s; narrow it by time or customer"
                    ) from None
                raise
            finally:
                timer.cancel()
