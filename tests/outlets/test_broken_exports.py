"""Exports that break off: curl fails over HTTP/1.1 and over HTTP/2, whatever ended them."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import wallet_service_pb2 as wallets_pb

from creditledger.api import rpc
from creditledger.ops.envoy import Envoy
from creditledger.outlets.exports import stream as export_stream
from tests.support.process import process
from tests.support.rest import Failure, serving
from tests.support.server import CUSTOMER, PATIENCE_SECONDS, WALLET, grant, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.rest import Served

EXPORT = "/api/credit-transactions:export"
ROWS = 2_000
#: No buffer between server and client holds all rows of this size: the server has to wait.
METADATA = {f"key {n}": "x" * 500 for n in range(15)}
#: What curl ends with where a file breaks off: CURLE_PARTIAL_FILE, CURLE_HTTP2_STREAM.
EXIT_CODES = {"--http1.1": 18, "--http2-prior-knowledge": 92}
BATCH = 400


@dataclass(frozen=True, slots=True)
class Download:
    """A curl that has the headers of the answer."""

    curl: asyncio.subprocess.Process
    headers: dict[str, str]

    async def rest(self) -> tuple[int, bytes]:
        """Its exit code, and all that it wrote."""
        assert self.curl.stdout is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            body = await self.curl.stdout.read()
            return await self.curl.wait(), body


@asynccontextmanager
async def download(url: str, secret: str, *options: str) -> AsyncIterator[Download]:
    """Begin to download the export."""
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", "-i", "--noproxy", "*", *options),
        *("-H", f"Authorization: Bearer {secret}", url),
        stdout=asyncio.subprocess.PIPE,
    )
    assert curl.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await curl.stdout.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.splitlines()
        assert status.split()[1] == "200", head
        yield Download(curl, dict(line.split(": ", 1) for line in lines if line))
    finally:
        if curl.returncode is None:
            curl.kill()
            await curl.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(new_database: Callable[[], str]) -> AsyncIterator[Served]:
    """A service behind Envoy with a customer of many rows."""
    async with serving(new_database()) as one:
        await fill(one)
        yield one


async def fill(served: Served) -> None:
    """A customer of many rows."""
    wallet = await served.wallet(await served.customer(CUSTOMER))
    for _ in range(ROWS // BATCH):
        rows = [{"grant": {"amount": "1"}, "metadata": METADATA} for _ in range(BATCH)]
        await served.post(wallet, *rows)


async def new_key(served: Served) -> keys_pb.CreateApiKeyResponse:
    """A key of the customer."""
    request = keys_pb.CreateApiKeyRequest(name="ends", scope="customer", customer_id=CUSTOMER)
    return await served.keys.CreateApiKey(request)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("version", EXIT_CODES)
@pytest.mark.parametrize("packed", [(), ("--compressed",)])
async def test_an_error_after_the_first_piece_resets_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch, version: str, packed: tuple[str, ...]
) -> None:
    """curl fails where the key is revoked meanwhile; the export has no digest to be asked for."""
    monkeypatch.setattr(export_stream, "STEP_ROWS", 1)
    key = await new_key(served)
    async with download(f"{served.url}{EXPORT}", key.secret, version, *packed) as export:
        await served.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=key.api_key.id))

        exit_code, body = await export.rest()

    assert exit_code == EXIT_CODES[version]
    assert body.count(b"ct_") < int(export.headers["x-export-rows"]) == ROWS
    path = f"/v1/exports/{export.headers['x-export-id']}"
    service = await served.key("service")
    assert await served.refusal(path, service) == Failure(404, "NOT_FOUND", "id")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("version", EXIT_CODES)
async def test_a_whole_export_ends_in_order(served: Served, version: str) -> None:
    """curl succeeds, with all rows, and the digest is there."""
    key = await new_key(served)
    url = f"{served.url}{EXPORT}?columns=id"
    async with download(url, key.secret, version) as export:
        exit_code, body = await export.rest()

    assert (exit_code, body.count(b"ct_")) == (0, ROWS)
    path = f"/v1/exports/{export.headers['x-export-id']}"
    assert (await served.body(path, key.secret))["rows"] == str(ROWS)


async def test_a_silent_reader_learns_that_the_rest_is_missing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads on after the server gave it up does not get a normal end."""
    monkeypatch.setattr(rpc, "UNREAD_SECONDS_MAX", 0.2)
    monkeypatch.setattr(export_stream, "EXPORTS_MAX", 1)
    async with serving(database_url) as served:
        await fill(served)
        key = await served.key("service")
        for version, code in EXIT_CODES.items():
            async with download(f"{served.url}{EXPORT}", key, version) as export:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while True:
                        if (await served.get(EXPORT, key, columns="id")).status_code == 200:
                            break
                        await asyncio.sleep(0.05)  # nothing tells when the server gives up

                exit_code, _ = await export.rest()

            assert exit_code == code


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_ends_resets_the_connection(
    database_url: str, tmp_path: Path, end: signal.Signals
) -> None:
    """curl fails where the server is killed, or told to stop and the export outlasts its drain."""
    async with (
        process(database_url, tmp_path / "log", "--drain-seconds", "0") as server,
        server.local() as local,
        AsyncExitStack() as downloads,
    ):
        await local.new_wallet(WALLET, CUSTOMER)
        for first in range(0, ROWS, BATCH):
            numbers = range(first, first + BATCH)
            rows = [post(f"{n}", metadata=METADATA, **grant("1")) for n in numbers]
            await local.wallets.BatchPost(wallets_pb.BatchPostRequest(postings=rows))
        secret = (await local.new_key("service")).secret
        host, _, port = server.grpc_address.rpartition(":")
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
        await downloads.enter_async_context(envoy)
        exports = {
            version: await downloads.enter_async_context(
                download(f"{envoy.url}{EXPORT}", secret, version)
            )
            for version in EXIT_CODES
        }

        server.process.send_signal(end)
        await server.ended()

        ends = {version: (await export.rest())[0] for version, export in exports.items()}
    assert ends == EXIT_CODES
