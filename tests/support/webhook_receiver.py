"""Somebody who receives webhooks: a real HTTP server on the loopback, as slow or rude as is wanted.

`verified` does with a request what a receiver has to, written as users of such signatures know it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.server import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass(frozen=True, slots=True)
class Received:
    """One request."""

    path: str
    headers: dict[str, str]  #: Names in lower case.
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        """What it says."""
        found: dict[str, Any] = json.loads(self.body)
        return found


#: Status and headers of the answer; None: none at all.
Answer = tuple[int, dict[str, str]] | None


@dataclass(slots=True)
class Receiver:
    """What has come so far, and how it is answered."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], Answer] = lambda _: (200, {})
    under_way: int = 0
    under_way_max: int = 0
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def wait(self, count: int) -> list[Received]:
        """The first so many, as soon as they are there."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._came:
            await self._came.wait_for(lambda: len(self.received) >= count)
        return self.received[:count]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        request = Received(first.split(" ")[1], headers, body)
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        async with self._came:
            self.received.append(request)
            self._came.notify_all()
        answer = self.answer(request)
        if answer is None:
            try:
                await reader.read()  # until the sender gives up
            finally:
                self.under_way -= 1
            return False
        self.under_way -= 1
        status, more = answer
        told = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{told}content-length: 2\r\n\r\nok".encode())
        await writer.drain()
        return True


@asynccontextmanager
async def receiving(path: str = "/hooks") -> AsyncIterator[Receiver]:
    """A receiver until the block ends."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}{path}"
    async with server:
        yield receiver


def verified(request: Received, secret: str, *, now: float, tolerance: float = 300) -> bool:
    """Whether the request was signed with this secret, not long ago."""
    pairs = [part.split("=", 1) for part in request.headers["creditledger-signature"].split(",")]
    (moment,) = [value for name, value in pairs if name == "t"]
    signed = f"{moment}.".encode() + request.body
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    given = [value for name, value in pairs if name == "v1"]
    return abs(now - int(moment)) <= tolerance and any(
        hmac.compare_digest(expected, one) for one in given
    )
