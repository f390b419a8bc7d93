"""A server as a process of its own, for tests that end it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from creditledger.ops import sockets
from tests.support.commands import Command, start
from tests.support.server import PATIENCE_SECONDS, Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True, slots=True)
class Process:
    """A `creditledger serve` of its own."""

    process: Command
    grpc_address: str
    local_socket: Path
    log: Path

    async def ended(self) -> int:
        """Its exit code, waited for."""
        return await self.process.ended(PATIENCE_SECONDS)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Services]:
        """Its services, over a connection of its own."""
        # Without it channels to one address share a connection.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.grpc_address, options=alone) as channel:
            yield Services(channel)

    @asynccontextmanager
    async def local(self) -> AsyncIterator[Services]:
        """Its services, with the rights of its owner."""
        async with grpc.aio.insecure_channel(sockets.target(self.local_socket)) as channel:
            yield Services(channel)


@asynccontextmanager
async def process(database_url: str, log: Path, *flags: str) -> AsyncIterator[Process]:
    """`creditledger serve` on the database; killed when the block ends, if it still runs."""
    with log.open("wb") as sink:
        started = start(
            *("serve", "--database-url", database_url, "--grpc-address", "127.0.0.1:0"),
            *("--log-format", "json", *flags),
            errors=sink,
        )
    try:
        said = await _serving(started, log)
        yield Process(started, said["grpc_address"], Path(said["local_socket"]), log)
    finally:
        started.kill()
        started.wait()


async def _serving(started: Command, log: Path) -> dict[str, Any]:
    """What it says of where it serves, as soon as it does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (said := _said(log)) is None:
            assert started.poll() is None, _text(log)
            # The log is a file: there is nothing to wait upon but time.
            await asyncio.sleep(0.01)
    return said


def _said(log: Path) -> dict[str, Any] | None:
    """The line that says so; None as long as there is none."""
    for line in _text(log).splitlines(keepends=True):
        if line.endswith("\n") and '"serving"' in line:
            said: dict[str, Any] = json.loads(line)
            return said
    return None


def _text(log: Path) -> str:
    return log.read_text()
