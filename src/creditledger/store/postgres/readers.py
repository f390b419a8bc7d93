"""PostgreSQL's reading connections: a read begins, asks and ends in one greenlet.

A pool of SQLAlchemy's would take one more each to lend a connection and to take it back.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from creditledger.store.postgres.writer import DISCARD_PLANS, Plans
from creditledger.store.readers import too_broad

T = TypeVar("T")


class SessionReader:
    """A `Reader` with a session of the server."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.lost = False
        self._connection = connection
        self._plans = Plans()

    @classmethod
    async def opened(cls, engine: AsyncEngine) -> "SessionReader":
        """A new session. Raises DBAPIError."""
        return cls(await engine.connect())

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """See Reader. Raises DBAPIError."""
        self.lost = True  # unless it ends in order
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._connection.run_sync(self._transaction, query)
        except TimeoutError:
            if limit.expired():
                raise too_broad(seconds) from None
            raise

    async def close(self) -> None:
        """Disconnect."""
        if self.lost:
            # Without a word to a server that may not answer.
            await self._connection.invalidate()
        await self._connection.close()

    def _transaction(self, connection: Connection, query: Callable[[Connection], T]) -> T:
        try:
            if self._plans.are_old():
                connection.exec_driver_sql(DISCARD_PLANS)
            return query(connection)
        finally:
            connection.rollback()
            self.lost = connection.invalidated
