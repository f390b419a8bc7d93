"""A refused call leaves nothing behind: neither its request nor anything that knows of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest

from creditledger.ops.envoy import Envoy
from tests.support.process import Process, process
from tests.support.server import CUSTOMER, WALLET, consume, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.refusals import Metadata

POST = "/credit.v1.WalletService/Post"
MEBIBYTE = 1 << 20
MESSAGE_BYTES = 4 * MEBIBYTE - 1_024
#: Were one in ten of them kept, that would be several times what is allowed.
CALLS, CALLS_WITH_KEY = 1_000, 400
CALLERS_WITH_KEY = 4
LOOKS = 8
#: At the same time.
CALLERS = 16
GROWTH_BYTES_MAX = 50 * MEBIBYTE


def allowed(callers: int) -> int:
    """Bytes: that, and one message of each caller, which a busy machine may not have freed yet."""
    return GROWTH_BYTES_MAX + callers * MESSAGE_BYTES


pytestmark = pytest.mark.only("sqlite")  # nothing of it reaches a database


@asynccontextmanager
async def asked(served: Process, way: str) -> AsyncIterator[grpc.aio.Channel]:
    """The server's port itself, or the proxy before it."""
    host, _, port = served.grpc_address.rpartition(":")
    if way == "direct":
        async with grpc.aio.insecure_channel(served.grpc_address) as channel:
            yield channel
        return
    envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
    async with envoy, grpc.aio.insecure_channel(envoy.url.removeprefix("http://")) as channel:
        yield channel


async def growth(
    served: Process,
    channel: grpc.aio.Channel,
    body: bytes,
    metadata: Metadata,
    *,
    calls: int,
    callers: int,
) -> int:
    """Bytes that so many calls, refused as one is, leave in the server."""
    codes = set()

    async def call(count: int) -> None:
        send: Any = channel.unary_unary(POST)
        for _ in range(count):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await send(body, metadata=metadata)
            codes.add(caught.value.code())

    async def all_of(count: int) -> None:
        await asyncio.gather(*(call(count // callers) for _ in range(callers)))

    async def least() -> int:
        # What is kept is there each time; what is under way is not.
        found = []
        for _ in range(LOOKS):
            await all_of(callers)
            found.append(server.memory_info().rss)
        return min(found)

    server = psutil.Process(served.process.pid)
    await all_of(callers * 40)  # what is made once is made, and room found for what comes and goes
    before = await least()
    await all_of(calls)
    after = await least()
    assert len(codes) == 1
    return after - before


@pytest.mark.parametrize("way", ["direct", "proxy"])
async def test_calls_without_a_key_keep_nothing(
    database_url: str, tmp_path: Path, way: str
) -> None:
    """1,000 messages of 4 MiB without a key leave the server as large as it was."""
    flags = ("--webhook-connections", "0")
    much = {"calls": CALLS, "callers": CALLERS}
    async with (
        process(database_url, tmp_path / "log", *flags) as served,
        asked(served, way) as channel,
    ):
        grown = await growth(served, channel, bytes(MESSAGE_BYTES), (), **much)

    assert grown < allowed(CALLERS)


@pytest.mark.parametrize("kind", ["malformed", "wrong", "poor"])
async def test_calls_refused_for_their_content_keep_nothing(
    database_url: str, tmp_path: Path, kind: str
) -> None:
    """The same holds for calls with a key: no protobuf, a wrong shape, or too large."""
    large = b"x" * (MESSAGE_BYTES - 100)
    unknown = b"\xfa\x7f" + _varint(len(large)) + large  # a field that nobody knows
    body = {
        "malformed": b"\xff" * MESSAGE_BYTES,
        "wrong": unknown,
        "poor": post("k", WALLET, **consume("5")).SerializeToString() + unknown,
    }[kind]
    flags = ("--webhook-connections", "0")
    async with process(database_url, tmp_path / "log", *flags) as served:
        async with served.local() as local:
            await local.new_wallet(WALLET, CUSTOMER)
            service = await local.key("service")
        async with asked(served, "direct") as channel:
            much = {"calls": CALLS_WITH_KEY, "callers": CALLERS_WITH_KEY}
            grown = await growth(served, channel, body, service, **much)

    assert grown < allowed(CALLERS_WITH_KEY)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
