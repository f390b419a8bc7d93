"""Connections that read: each is lent to one read at a time, and all are back before the end."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

import structlog
from sqlalchemy import Connection

from creditledger.domain.errors import Overloaded, QueryTooBroad
from creditledger.store.write.batch import TOO_MANY_READS

log = structlog.get_logger()

T = TypeVar("T")

#: How long a read waits for a connection.
WAIT_SECONDS_MAX = 5.0
#: How long a read of the whole ledger may take, of which there is one at a time.
ALONE_SECONDS_MAX = 20.0


def too_broad(seconds: float) -> QueryTooBroad:
    """The refusal for a read that took longer."""
    return QueryTooBroad(f"the query took longer than {seconds:g} s; narrow it by time or customer")


class Use(NamedTuple):
    """How many connections of a kind are lent, and how many there may be."""

    lent: int
    most: int


class Reader(Protocol):
    """One connection."""

    @property
    def lost(self) -> bool:
        """Whether it is of no more use."""

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """`query` on one snapshot. Raises QueryTooBroad when it takes longer than `seconds`.

        If it is canceled, the query has ended when it raises.
        """

    async def close(self) -> None:
        """Disconnect."""


class Readers:
    """Connections of one kind; each opens when a read first needs it."""

    def __init__(self, opened: Callable[[], Awaitable[Reader]], count: int) -> None:
        """`opened` makes a connection; `count`: reads at the same time."""
        self._opened = opened
        self._count = count
        # The one that came back last is lent first: its cache has the pages that are read now.
        self._idle: asyncio.LifoQueue[Reader | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._idle.put_nowait(None)
        self._closed = False

    @property
    def use(self) -> Use:
        """How many of them read."""
        return Use(self._count - self._idle.qsize(), self._count)

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        """As `Reader.read`; raises Overloaded where no connection comes back for long."""
        reader = await self._lent()
        try:
            if reader is None:
                reader = await self._opened()
            return await reader.read(query, seconds)
        finally:
            if reader is not None and reader.lost:
                await self._replace(reader)
                # The others lead to the same server, and are of the same age.
                await self.renew()
            else:
                self._idle.put_nowait(reader)

    async def renew(self) -> None:
        """Use new connections from now on."""
        for _ in range(self._idle.qsize()):
            await self._replace(self._idle.get_nowait())

    async def close(self) -> None:
        """Wait until all connections are back, then disconnect: a later one would stay open.

        Does nothing the second time.
        """
        if self._closed:
            return
        self._closed = True
        for _ in range(self._count):
            reader = await self._idle.get()
            if reader is not None:
                await reader.close()

    async def _lent(self) -> Reader | None:
        """One of them; None: one more may open. Raises Overloaded."""
        if not self._idle.empty():
            return self._idle.get_nowait()
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                return await self._idle.get()
        except TimeoutError:
            raise Overloaded(TOO_MANY_READS, retry_after="1") from None

    async def _replace(self, reader: Reader | None) -> None:
        """Disconnect; another connection may open instead, however that ends."""
        try:
            if reader is not None:
                await reader.close()
        except Exception:
            log.info("a reading connection was not closed in order", exc_info=True)
        finally:
            self._idle.put_nowait(None)
