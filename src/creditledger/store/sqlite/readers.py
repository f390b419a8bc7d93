"""SQLite's reading connections: a read runs in one thread, from its first statement to its last.

Each connection has a thread, which aiosqlite lends. SQLAlchemy's adapter of aiosqlite would cross
to that thread and back four times a statement, which costs more than the statement.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiosqlite
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from creditledger.domain.errors import Overloaded, QueryTooBroad, ResultTooLarge
from creditledger.store import cut_off
from creditledger.store.sqlite.writer import reading_engine
from creditledger.store.write.batch import SUM_TOO_LARGE, TOO_MANY_READS

T = TypeVar("T")

#: How long a read waits for a connection.
WAIT_SECONDS_MAX = 5.0


class Readers:
    """Connections that cannot write, each lent to one read at a time."""

    def __init__(self, file: Path, count: int) -> None:
        """`count`: reads at the same time. A connection opens when a read first needs it."""
        self._engine = reading_engine(file)
        cut_off.remember(self._engine)
        # The one that came back last is lent first: its cache has the pages that are read now.
        self._idle: asyncio.LifoQueue[_Reader | None] = asyncio.LifoQueue()
        self._count = count
        for _ in range(count):
            self._idle.put_nowait(None)

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """`query` on one snapshot.

        Raises QueryTooBroad when it takes longer than `seconds`, ResultTooLarge, Overloaded.
        """
        reader = await self._lent()
        # A task of its own: the connection comes back when its thread is done with the query, also
        # if nobody waits for the answer any more.
        reading = asyncio.create_task(self._read(reader, query, seconds))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            if reader is not None:
                reader.give_up()
            reading.add_done_callback(lambda done: done.exception())  # nobody else retrieves it
            raise

    async def close(self) -> None:
        """Wait until all connections are back, then disconnect."""
        for _ in range(self._count):
            reader = await self._idle.get()
            if reader is not None:
                await reader.close()
        self._engine.dispose()

    async def _lent(self) -> "_Reader | None":
        """One of them; None: one more may open. Raises Overloaded."""
        if not self._idle.empty():
            return self._idle.get_nowait()
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                return await self._idle.get()
        except TimeoutError:
            raise Overloaded(TOO_MANY_READS, retry_after="1") from None

    async def _read(
        self, reader: "_Reader | None", query: Callable[[Connection], T], seconds: float
    ) -> T:
        try:
            if reader is None:
                reader = await _Reader(self._engine)
            return await reader.read(query, seconds)
        finally:
            self._idle.put_nowait(reader)


class _Reader(aiosqlite.Connection):
    """One connection and its thread."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(self._opened, iter_chunk_size=0)
        self._engine = engine
        self._sql: Connection

    def __await__(self) -> Generator[None, None, "_Reader"]:
        yield from super().__await__()
        return self

    def _opened(self) -> sqlite3.Connection:
        self._sql = self._engine.connect()
        driver = self._sql.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """As `Readers.read`, but for Overloaded."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        timer = loop.call_at(deadline, self.give_up)
        try:
            return await self._run(partial(self._transaction, query))
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
                if loop.time() >= deadline:
                    await self._run(partial(self._tell, seconds))
                raise QueryTooBroad(
                    f"the query took longer than {seconds:g} s; narrow it by time or customer"
                ) from None
            if str(error.orig) == "integer overflow":
                raise ResultTooLarge(SUM_TOO_LARGE) from error
            raise
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Disconnect."""
        await self._run(self._sql.close)
        await super().close()

    def give_up(self) -> None:
        """End the statement that runs."""
        self._conn.interrupt()

    async def _run(self, work: Callable[[], T]) -> T:
        """`work` in the connection's thread."""
        done: T = await self._execute(work)  # type: ignore[no-untyped-call] # it has no types
        return done

    def _transaction(self, query: Callable[[Connection], T]) -> T:
        with self._sql.begin():
            return query(self._sql)

    def _tell(self, seconds: float) -> None:
        """Write to the log what was cut off, and its plan."""
        statement = cut_off.running(self._sql.info)
        lines = [] if statement is None else cut_off.plan(self._sql, statement)
        self._sql.rollback()
        cut_off.tell(seconds, statement, lines)
