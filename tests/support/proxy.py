"""What stands between a server and PostgreSQL: hands messages on until it is told otherwise."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: How PostgreSQL calls the socket of its default port.
SOCKET = ".s.PGSQL.5432"
#: A simple query that is COMMIT and nothing else, as both drivers' transactions send it.
COMMIT = re.compile(rb"Q.{4}COMMIT;?\0", re.DOTALL)

Lose = Literal["commit", "answer", "rest"]


@dataclass(slots=True)
class Proxy:
    """A socket of its own before that of a database."""

    url: str  #: The database through it.
    up: bool = True  #: Whether it lets new connections in.
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    #: Of the next COMMIT: cut its connection instead of handing it on, or instead of its answer; or
    #: stop handing on whatever comes after it.
    lose: Lose | None = None
    lost: asyncio.Event = field(default_factory=asyncio.Event)  #: It has happened.
    _pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = field(default_factory=set)

    def cut(self) -> None:
        """All connections, now."""
        for pair in self._pairs:
            for writer in pair:
                writer.transport.abort()

    async def _serve(
        self, place: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not self.up:
            writer.close()
            return
        database_reader, database_writer = await asyncio.open_unix_connection(place)
        pair = (writer, database_writer)
        self._pairs.add(pair)
        swallow = asyncio.Event()

        async def forth() -> None:
            while data := await reader.read(65_536):
                await self.flowing.wait()
                if self.lose is not None and COMMIT.search(data):
                    loses, self.lose = self.lose, None
                    self.lost.set()
                    if loses == "commit":
                        return
                    if loses == "answer":
                        swallow.set()
                    else:
                        self.flowing.clear()
                database_writer.write(data)
                await database_writer.drain()

        async def back() -> None:
            while data := await database_reader.read(65_536):
                await self.flowing.wait()
                if swallow.is_set():  # so it is committed
                    return
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(forth()), asyncio.create_task(back())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError, OSError):
                    await task
            for one in pair:
                one.transport.abort()
            self._pairs.discard(pair)


@asynccontextmanager
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A proxy before this database of PostgreSQL, until the block ends."""
    url = make_url(database_url)
    place = f"{url.query['host']}/{SOCKET}"
    with TemporaryDirectory(prefix="proxy-") as folder:
        through = url.set(query={"host": folder}).render_as_string(hide_password=False)
        one = Proxy(through)
        one.flowing.set()
        serving = await asyncio.start_unix_server(
            lambda reader, writer: one._serve(place, reader, writer),  # its own
            Path(folder, SOCKET),
        )
        try:
            yield one
        finally:
            one.flowing.set()
            serving.close()
            one.cut()
            await serving.wait_closed()
