"""`creditledger proxy`: Envoy alone, in front of servers that come and go."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import TYPE_CHECKING

import httpx

from tests.support.commands import creditledger, start
from tests.support.server import PATIENCE_SECONDS, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.commands import Command
    from tests.support.setup import Clock


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def until(client: httpx.AsyncClient, status: int, process: Command) -> None:
    """Wait until /healthz answers so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            assert process.poll() is None
            try:
                if (await client.get("/healthz")).status_code == status:
                    return
            except httpx.ConnectError:
                pass
            await asyncio.sleep(0.05)


async def test_it_serves_servers_that_come_and_go(
    database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """503 without a server, 200 with one; the access log is on standard output; SIGTERM drains."""
    grpc_port, http_port = free_port(), free_port()
    given = ("--grpc-address", f"127.0.0.1:{grpc_port}", "--http-address", f"127.0.0.1:{http_port}")
    output, errors = tmp_path / "output", tmp_path / "errors"
    with output.open("w") as out, errors.open("w") as err:
        process = start("proxy", *given, folder=tmp_path, output=out, errors=err)
    url = f"http://127.0.0.1:{http_port}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            await until(client, 503, process)
            async with started(database_url, clock, grpc_address=f"127.0.0.1:{grpc_port}"):
                await until(client, 200, process)
                answer = await client.get("/v1/wallets/wal_none")
            await until(client, 503, process)
        process.send_signal(signal.SIGTERM)
        code = await process.ended(PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

    assert (answer.status_code, code) == (401, 0)
    lines = [json.loads(one) for one in output.read_text().splitlines()]
    assert [one["path"] for one in lines if one["status"] == 401] == ["/v1/wallets/wal_none"]


async def test_it_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    """A network without the word for it, and a port that nobody can know, stop the start."""
    for given, named in (
        (("--http-address", "0.0.0.0:8080"), "CREDITLEDGER_HTTP_ADDRESS"),
        (("--grpc-address", "127.0.0.1:0"), "CREDITLEDGER_GRPC_ADDRESS"),
    ):
        ended = await asyncio.to_thread(creditledger, "proxy", *given, folder=tmp_path)
        assert ended.returncode == 2
        assert named in ended.stderr
