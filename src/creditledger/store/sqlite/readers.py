"""SQLite's reading connections: a read runs in one thread, from its first statement to its last.

Each connection has a thread, which aiosqlite lends. SQLAlchemy's adapter of aiosqlite would cross
to that thread and back four times a statement, which costs more than the statement.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

import aiosqlite
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from creditledger.domain.errors import ResultTooLarge
from creditledger.store import cut_off
from creditledger.store.readers import too_broad
from creditledger.store.write.batch import SUM_TOO_LARGE

T = TypeVar("T")

#: Between two attempts to end a read.
END_SECONDS = 0.01


class ThreadReader(aiosqlite.Connection):
    """A `Reader` with a thread of its own; to await it opens it."""

    lost = False  #: A file does not go away.

    def __init__(self, engine: Engine) -> None:
        super().__init__(self._opened, iter_chunk_size=0)
        self._engine = engine
        self._sql: Connection

    def __await__(self) -> Generator[None, None, "ThreadReader"]:
        yield from super().__await__()
        return self

    def _opened(self) -> sqlite3.Connection:
        self._sql = self._engine.connect()
        driver = self._sql.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """See Reader. Raises ResultTooLarge."""
        reading = asyncio.create_task(self._run(partial(self._transaction, query)))
        try:
            async with asyncio.timeout(seconds):
                # Shielded: its thread goes on until it is told.
                return await asyncio.shield(reading)
        except TimeoutError:
            await self._end(reading)
            await self._run(partial(self._tell, seconds))
            raise too_broad(seconds) from None
        except asyncio.CancelledError:
            await self._end(reading)
            raise
        except OperationalError as error:
            if str(error.orig) == "integer overflow":
                raise ResultTooLarge(SUM_TOO_LARGE) from error
            raise

    async def _end(self, reading: "asyncio.Task[object]") -> None:
        """End the read. Raises CancelledError afterwards if that is asked for meanwhile."""
        canceled = None
        while not reading.done():
            # Between two statements this ends nothing, so it is done again.
            self._conn.interrupt()
            try:
                await asyncio.wait([reading], timeout=END_SECONDS)
            except asyncio.CancelledError as error:
                canceled = error
        reading.exception()  # nobody else retrieves it
        if canceled is not None:
            raise canceled

    async def close(self) -> None:
        """Disconnect."""
        await self._run(self._sql.close)
        await super().close()

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
