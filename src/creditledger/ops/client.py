"""How a command of this machine calls the ledger, whether a server runs or not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from creditledger.ops import transport
from creditledger.ops.config import CannotStart, Config
from creditledger.ops.process import run
from creditledger.ops.server import Server
from creditledger.store import DatabaseLocked

T = TypeVar("T")

#: How long a command waits for the holder of the database to answer or to let go of it.
LOCAL_WAIT_SECONDS_MAX = 10.0


def call(config: Config, ask: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
    """What `ask` is answered through a channel to the ledger. Raises CannotStart, AioRpcError."""

    async def answered() -> T:
        async with local_channel(config) as channel:
            return await ask(channel)

    return run(answered())


@asynccontextmanager
async def local_channel(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the ledger of this database, with the rights of an admin.

    Through the socket of the server that runs, else of one made for the while: one path for both.
    Raises CannotStart.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + LOCAL_WAIT_SECONDS_MAX
    while not await _has_started(server := Server(config, local_only=True)):
        async with transport.local_channel(server.local_socket) as channel:
            if await _is_ready(channel):
                yield channel
                return
        # Another command has the database, or a server is about to begin or to end.
        if loop.time() > give_up:
            raise CannotStart(
                f"Another process has {config.path}, and no server answers at"
                f" {server.local_socket}: wait for its end."
            )
    try:
        async with server.local_channel() as channel:
            yield channel
    finally:
        await server.stop()


async def _has_started(server: Server) -> bool:
    """Whether it could be started; if not, another process has the database."""
    try:
        await server.start()
    except DatabaseLocked:
        return False
    return True


async def _is_ready(channel: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(0.5):
            await channel.channel_ready()
    except TimeoutError:
        return False
    return True
