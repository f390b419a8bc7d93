"""Connections that read are lent and come back, whatever becomes of a read or of its caller."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from creditledger.store.readers import Readers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

T = TypeVar("T")


class Scripted:
    """A connection whose reads last until they are let go."""

    def __init__(self, *, closes: bool = True) -> None:
        self.lost = False
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self._closes = closes

    async def read(self, query: Callable[[Connection], T], seconds: float) -> T:
        self.begun.set()
        await self.go.wait()
        if self.lost:
            raise OSError("the server is away")
        return query(None)  # type: ignore[arg-type] # no query looks at it

    async def close(self) -> None:
        if not self._closes:
            raise OSError("nobody is there to say good-bye to")


def lending(*connections: Scripted) -> Readers:
    """One connection at a time; each new one is the next of these."""
    waiting = iter(connections)

    async def opened() -> Scripted:
        return next(waiting)

    return Readers(opened, 1)


def one(_: Connection) -> int:
    return 1


async def test_a_lost_connection_leaves_its_place() -> None:
    """Also where it cannot be closed: another one opens, and the end waits for nobody."""
    away, here = Scripted(closes=False), Scripted()
    readers = lending(away, here)
    away.lost = True
    away.go.set()
    here.go.set()

    with pytest.raises(OSError, match="the server is away"):
        await readers.read(one, 1)
    async with asyncio.timeout(1):
        assert await readers.read(one, 1) == 1
        await readers.close()


async def test_a_read_that_is_canceled_gives_its_connection_back() -> None:
    """Also the first one, which opens it."""
    connection = Scripted()
    readers = lending(connection)
    for _ in range(2):
        reading = asyncio.create_task(readers.read(one, 1))
        await connection.begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        connection.begun.clear()

    connection.go.set()
    assert await readers.read(one, 1) == 1
