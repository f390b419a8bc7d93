"""What the proxy does by itself: the log of requests, and packed answers."""

from __future__ import annotations

import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub

from creditledger.ops.envoy import Envoy
from tests.support.server import WALLET, consume, grant, post, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.server import Api
    from tests.support.setup import Clock

pytestmark = pytest.mark.only("sqlite")


@asynccontextmanager
async def before(api: Api, folder: Path) -> AsyncIterator[Envoy]:
    """A proxy before the server; its log is whole when the block has ended."""
    host, _, port = api.server.grpc_address.rpartition(":")
    upstream = (host, int(port))
    async with Envoy(
        listen=("127.0.0.1", 0), upstreams=[upstream], run_folder=folder, concurrency=1
    ) as envoy:
        yield envoy


def client(envoy: Envoy, api: Api, **headers: str) -> httpx.AsyncClient:
    """Over REST, with a service key."""
    given = {**dict(api.service), **headers}
    return httpx.AsyncClient(base_url=envoy.url, headers=given, trust_env=False, timeout=20)


async def test_the_log_has_the_code_of_each_call(
    database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """Over REST and gRPC the same refusal has the same gRPC code, not one made of the status."""
    expected: dict[str, str] = {}
    wallet = f"/v1/wallets/{WALLET}"
    async with serve(database_url, clock) as api, before(api, tmp_path / "run") as envoy:
        await api.post("topup", **grant("1"))
        async with client(envoy, api) as http:
            for method, path, body, status, code in [
                ("GET", wallet, None, 200, "OK"),
                ("GET", "/api/credit-transactions:export", None, 200, "OK"),
                ("GET", "/v1/wallets/wal_none", None, 404, "NotFound"),
                ("GET", "/v1/wallets?page_size=0", None, 400, "InvalidArgument"),
                ("GET", "/v1/wallets?page_sise=0", None, 400, "InvalidArgument"),
                ("GET", "/v1/wallets/", None, 404, "NotFound"),
                ("GET", "/v1/nothing", None, 404, "NotFound"),
                ("HEAD", wallet, None, 405, "NotFound"),
                ("POST", f"{wallet}/postings", "{", 400, "InvalidArgument"),
                ("POST", "/v1/currencies", '{"id":"AAA","scale":1,"name":"A"}', 403,
                 "PermissionDenied"),
                ("POST", f"{wallet}/postings",
                 '{"idempotency_key":"a","consumption":{"amount":"2"}}', 402, "FailedPrecondition"),
                ("POST", f"{wallet}/postings",
                 '{"idempotency_key":"topup","consumption":{"amount":"2"}}', 409, "AlreadyExists"),
            ]:  # fmt: skip
                answer = await http.request(method, path, content=body)
                assert answer.status_code == status, path
                expected[answer.headers["x-request-id"]] = code
        async with grpc.aio.insecure_channel(f"127.0.0.1:{envoy.address[1]}") as channel:
            wallets = WalletServiceStub(channel)
            call = wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET), metadata=api.service)
            await call
            expected[request_id(await call.initial_metadata())] = "OK"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await wallets.Post(post("b", **consume("2")), metadata=api.service)
            expected[request_id(caught.value.trailing_metadata())] = "FailedPrecondition"
            stream = wallets.StreamPost(metadata=api.service)
            await stream.write(pb.StreamPostRequest(posting=post("c", **consume("0.5"))))
            await stream.read()
            await stream.done_writing()
            assert await stream.code() is grpc.StatusCode.OK
            expected[request_id(await stream.initial_metadata())] = "OK"

    lines = [json.loads(line) for line in log(tmp_path) if line.startswith("{")]
    assert {one["request_id"]: one["grpc_status"] for one in lines} == expected


def request_id(metadata: Any) -> str:
    """The proxy's id of a call."""
    return str(dict(metadata)["x-request-id"])


def log(tmp_path: Path) -> list[str]:
    """The lines of the proxy's log."""
    return (tmp_path / "run" / "envoy.log").read_text().splitlines()


async def test_answers_are_packed_for_who_asks(
    database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """JSON, files and pages are packed by gzip for those who ask, and only if they are long."""
    transactions, month = "/api/credit-transactions", "format=html&month=2026-01"
    async with serve(database_url, clock) as api, before(api, tmp_path / "run") as envoy:
        for number in range(60):
            await api.post(f"k{number}", **grant("1"), description=f"credit {number}")
        async with client(envoy, api) as http:
            for path in [
                transactions,
                f"{transactions}:export",
                f"{transactions}:export?format=ndjson",
                f"/v1/wallets/{WALLET}/statement:render?{month}",
            ]:
                plain = await http.get(path, headers={"accept-encoding": "identity"})
                async with http.stream("GET", path, headers={"accept-encoding": "gzip"}) as packed:
                    raw = b"".join([piece async for piece in packed.aiter_raw()])

                assert (plain.status_code, packed.status_code) == (200, 200), path
                assert "content-encoding" not in plain.headers
                assert packed.headers.get("content-encoding") == "gzip", (path, packed.headers)
                assert packed.headers["vary"].lower() == "accept-encoding"
                assert gzip.decompress(raw) == plain.content
                assert len(raw) < len(plain.content)
            short = await http.get("/v1/currencies/USD", headers={"accept-encoding": "gzip"})
            assert "content-encoding" not in short.headers
            refused = await http.get("/v1/nothing", headers={"accept-encoding": "gzip"})
            assert refused.json()["error"]["code"] == "UNKNOWN_PATH"


async def test_watches_are_not_packed(database_url: str, clock: Clock, tmp_path: Path) -> None:
    """An event is read as soon as it is sent."""
    async with serve(database_url, clock) as api, before(api, tmp_path / "run") as envoy:
        await api.post("k", **grant("1"))
        path = "/api/credit-transactions:watch?after=beginning"
        headers = {"accept-encoding": "gzip"}
        async with client(envoy, api) as http, http.stream("GET", path, headers=headers) as watch:
            assert watch.status_code == 200
            assert "content-encoding" not in watch.headers
            first = await anext(watch.aiter_raw())

    assert first.startswith((b"id:", b"data:"))
