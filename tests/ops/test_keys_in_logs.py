"""Nothing that a caller sends as its key comes to stand in a log, nor fills it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from credit.v1 import registry_service_pb2 as registry_pb

from creditledger.ops.envoy import Envoy
from tests.support.frames import (
    END_HEADERS,
    END_STREAM,
    Kind,
    Peer,
    frame,
    literal,
    message,
    request,
)
from tests.support.process import process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import Process

pytestmark = pytest.mark.only("sqlite")

METHOD = "/credit.v1.RegistryService/GetCurrency"
BODY = message(registry_pb.GetCurrencyRequest(currency_id="USD").SerializeToString())
UNAUTHENTICATED = "16"
#: What a line of the log has, and something to spare.
LINE_BYTES_MAX = 4_000


def asked(address: str, *headers: tuple[str | bytes, str | bytes]) -> dict[str, str]:
    """The end of a call with these headers as they are, on a connection of its own."""
    block = request(METHOD) + b"".join(literal(*one) for one in headers)
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [
        frame(Kind.CONTINUATION if n else Kind.HEADERS, END_HEADERS * (n == len(parts) - 1), 1, one)
        for n, one in enumerate(parts)
    ]
    with Peer(address) as peer:
        peer.greet(*frames, frame(Kind.DATA, END_STREAM, 1, BODY))
        return peer.until_end_of(1)


@asynccontextmanager
async def address(served: Process, way: str) -> AsyncIterator[tuple[str, list[Path]]]:
    """Where to ask, and the logs that are written meanwhile."""
    if way == "direct":
        yield served.grpc_address, [served.log]
        return
    host, _, port = served.grpc_address.rpartition(":")
    async with Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1) as one:
        yield one.url.removeprefix("http://"), [served.log, one.log]


@pytest.mark.parametrize("way", ["direct", "proxy"])
async def test_a_key_with_more_than_ascii_is_refused_and_not_logged(
    database_url: str, tmp_path: Path, way: str
) -> None:
    """Bytes from 0x80 beside a good key make it malformed; no log has any of it."""
    flags = ("--webhook-connections", "0")
    async with process(database_url, tmp_path / "log", *flags) as served:
        async with served.local() as local:
            secret = (await local.new_key("admin")).secret.encode()
        async with address(served, way) as (place, logs):
            good = await asyncio.to_thread(asked, place, ("x-api-key", secret + b" \t"))
            assert good["grpc-status"] == "0"
            for odd in (b"\xa0", b"\xc2\xa0", b"\xe2\x80\x83", b"\xff", b"\xc3\xa9"):
                for headers in (
                    ("authorization", b"Bearer " + secret + odd),
                    ("authorization", b"Bearer " + odd + secret),
                    ("x-api-key", secret + odd),
                ):
                    told = await asyncio.to_thread(asked, place, headers)
                    assert told["grpc-status"] == UNAUTHENTICATED
            written = b"".join(log.read_bytes() for log in logs)

    assert secret[3:] not in written
    assert secret[3:20] not in written


@pytest.mark.parametrize("way", ["direct", "proxy"])
async def test_a_header_of_nonsense_does_not_fill_the_log(
    database_url: str, tmp_path: Path, way: str
) -> None:
    """50 kB of 0xFF without a key cost the log a few lines."""
    flags = ("--webhook-connections", "0")
    async with (
        process(database_url, tmp_path / "log", *flags) as served,
        address(served, way) as (place, logs),
    ):
        before = sum(log.stat().st_size for log in logs)
        for name in ("x-odd", "authorization"):
            told = await asyncio.to_thread(asked, place, (name, b"\xff" * 50_000))
            assert told["grpc-status"] == UNAUTHENTICATED
        after = sum(log.stat().st_size for log in logs)

    assert after - before < 2 * LINE_BYTES_MAX
