"""How a server ends: it lets no new call in and waits for those under way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from creditledger.domain.errors import ShuttingDown

M = TypeVar("M")


class Door:
    """Counts the calls under way. Once closed, it refuses new ones."""

    def __init__(self) -> None:
        self._under_way = 0
        self._closed = False
        self._empty = asyncio.Event()
        #: Tasks that wait for the next message of a stream.
        self._reading: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Refuse new calls; end when none is under way.

        Streams are read no further. The requests already read get their answers, then the stream
        ends UNAVAILABLE.
        """
        self._closed = True
        for task in self._reading:
            task.cancel()
        if self._under_way:
            await self._empty.wait()

    def enter(self, context: Any) -> None:
        """Count the call until its status is sent, after its handler ended. Raises ShuttingDown."""
        if self._closed:
            raise ShuttingDown
        self._under_way += 1
        context.add_done_callback(self._leave)

    def _leave(self, _: Any) -> None:
        self._under_way -= 1
        if self._closed and not self._under_way:
            self._empty.set()

    async def wait_for(self, reading: Callable[[], Awaitable[M]]) -> M:
        """The result of `reading`. Raises ShuttingDown if the door closes first."""
        task = asyncio.current_task()
        assert task is not None
        if self._closed:
            raise ShuttingDown
        self._reading.add(task)
        try:
            return await reading()
        except asyncio.CancelledError:
            if self._closed and not task.uncancel():
                raise ShuttingDown from None
            raise
        finally:
            self._reading.discard(task)

    async def read(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests until the door is closed. Raises ShuttingDown then."""
        while True:
            try:
                request = await self.wait_for(requests.__anext__)
            except StopAsyncIteration:
                return
            yield request
