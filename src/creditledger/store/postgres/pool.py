"""Connections for short work: lent for its length, and all back before the pool ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from creditledger.store.readers import Use


class Pool:
    """The connections of one engine."""

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        """`size`: connections of the engine at the same time."""
        self._engine = engine
        self._size = size
        self._lent = 0
        self._all_back = asyncio.Event()

    @property
    def use(self) -> Use:
        """How many of them are lent."""
        return Use(min(self._lent, self._size), self._size)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """One of them. Raises SQLAlchemy's TimeoutError where none becomes free, and DBAPIError."""
        self._lent += 1
        try:
            connection = await self._engine.connect()
        except BaseException:
            self._given_back()
            raise
        try:
            yield connection
        finally:
            # The connection is given back even if its borrower is canceled meanwhile.
            giving = asyncio.create_task(connection.close())
            giving.add_done_callback(self._given_back)
            await asyncio.shield(giving)

    async def close(self) -> None:
        """Wait until all connections are back, then disconnect: a later one would stay open."""
        while self._lent:
            self._all_back.clear()
            await self._all_back.wait()
        await self._engine.dispose()

    def _given_back(self, _: object = None) -> None:
        self._lent -= 1
        if not self._lent:
            self._all_back.set()
