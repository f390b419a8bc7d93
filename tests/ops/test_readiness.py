"""Behind the proxy: a server lives without its database, and is not ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest

from creditledger.ops.envoy import Envoy
from tests.support.proxy import proxy
from tests.support.server import PATIENCE_SECONDS, started

if TYPE_CHECKING:
    from tests.support.setup import Clock

HEALTHY, READY = "/healthz", "/readyz"


async def statuses(client: httpx.AsyncClient) -> tuple[int, int]:
    """Of both routes."""
    healthy, ready = [(await client.get(path)).status_code for path in (HEALTHY, READY)]
    return healthy, ready


async def until(client: httpx.AsyncClient, expected: tuple[int, int]) -> None:
    """Wait until they answer so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await statuses(client) != expected:  # noqa: ASYNC110 # another process
            await asyncio.sleep(0.05)


async def test_a_server_that_serves_is_ready(database_url: str, clock: Clock) -> None:
    """Both are 200 as soon as the proxy serves, and 503 when the server has ended."""
    async with started(database_url, clock) as server:
        host, _, port = server.grpc_address.rpartition(":")
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
        async with envoy, httpx.AsyncClient(base_url=envoy.url, trust_env=False) as client:
            await until(client, (200, 200))
            await server.stop()
            await until(client, (503, 503))


@pytest.mark.only("postgresql")
async def test_a_server_without_its_database_is_not_ready(database_url: str, clock: Clock) -> None:
    """It goes on answering calls, and is ready again when the database is back."""
    async with proxy(database_url) as between, started(between.url, clock) as server:
        host, _, port = server.grpc_address.rpartition(":")
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
        async with envoy, httpx.AsyncClient(base_url=envoy.url, trust_env=False) as client:
            await until(client, (200, 200))
            between.flowing.clear()
            between.cut()
            await until(client, (200, 503))
            between.flowing.set()
            await until(client, (200, 200))
