"""The proxy bears what the server's bare port is not made for: headers that never end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from credit.v1 import wallet_service_pb2 as pb

from creditledger.ops.config import Config
from creditledger.ops.envoy import Envoy
from tests.support.frames import END_HEADERS, Gone, Kind, Peer, frame, integer, literal, request
from tests.support.server import WALLET, Services, serve

if TYPE_CHECKING:
    from tests.support.setup import Clock

pytestmark = pytest.mark.only("sqlite")

GROWTH_BYTES_MAX = 64 * (1 << 20)
#: How long the proxy may take in nothing before that counts as its answer.
SILENT_SECONDS = 2.0
METHOD = "/credit.v1.WalletService/Post"
OPENED = frame(Kind.HEADERS, 0, 1, request(METHOD))
#: 4,000 bytes in the table of headers, which each further byte stands for: 56 MB a frame.
ENTRY = b"\x40" + literal("x-odd", "y" * 4_000)[1:]
FLOODS = {
    "large": (OPENED, frame(Kind.CONTINUATION, 0, 1, literal("x", "y" * 16_000)), 5_000),
    "empty": (OPENED, frame(Kind.CONTINUATION, 0, 1) * 1_000, 100),
    "from the table": (
        frame(Kind.HEADERS, 0, 1, request(METHOD) + ENTRY),
        frame(Kind.CONTINUATION, 0, 1, integer(62, bits=7, first=128) * 14_000),
        300,
    ),
    "many": (OPENED, frame(Kind.CONTINUATION, 0, 1, literal("x", "y")) * 1_000, 100),
}


def test_the_port_is_open_to_this_machine_alone_unless_said_otherwise() -> None:
    """By default the gRPC port listens on the loopback only, where the proxy is."""
    assert Config().grpc_address.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", FLOODS)
async def test_headers_without_end_do_not_move_the_proxy(
    database_url: str, clock: Clock, name: str
) -> None:
    """The proxy refuses headers that never end, keeps its memory and serves other clients."""
    once, again, times = FLOODS[name]

    def flood(address: str) -> None:
        with Peer(address) as peer, suppress(Gone):
            peer.socket.settimeout(SILENT_SECONDS)
            peer.greet(once)
            for _ in range(times):
                peer.send(again)
            peer.send(frame(Kind.CONTINUATION, END_HEADERS, 1))

    async with serve(database_url, clock) as api:
        host, _, port = api.server.grpc_address.rpartition(":")
        before = set(psutil.Process().children(recursive=True))
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
        async with envoy:
            (process,) = set(psutil.Process().children(recursive=True)) - before
            address = envoy.url.removeprefix("http://")
            async with grpc.aio.insecure_channel(address) as channel:
                wallets = Services(channel).wallets
                asked = pb.GetWalletRequest(wallet_id=WALLET)
                await wallets.GetWallet(asked, metadata=api.service)
                size = process.memory_info().rss
                for _ in range(3):
                    attack = asyncio.create_task(asyncio.to_thread(flood, address))
                    while not attack.done():
                        await wallets.GetWallet(asked, metadata=api.service, timeout=20)
                    await attack
                grown = process.memory_info().rss - size

    assert grown < GROWTH_BYTES_MAX
