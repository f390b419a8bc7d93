"""What the proxy does for browsers: it serves the console's files, and speaks gRPC-web."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import wallet_service_pb2 as wallets_pb

from creditledger.ops import envoy
from tests.support.rest import failure

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.support.rest import Served

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.only("sqlite")]

GET_WALLET = "/credit.v1.WalletService/GetWallet"
WATCH = "/credit.v1.CreditTransactionService/Watch"
POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
#: The bit of a frame's first byte that says: these are trailers.
TRAILERS = 0x80


def framed(message: Message) -> bytes:
    """A message as gRPC sends it."""
    body = message.SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def unframed(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages of an answer over gRPC-web, and its trailers."""
    messages, trailers = [], {}
    while body:
        kind, size = struct.unpack(">BI", body[:5])
        frame, body = body[5 : 5 + size], body[5 + size :]
        if kind & TRAILERS:
            lines = frame.decode().strip().split("\r\n")
            trailers = dict(line.split(":", 1) for line in lines)
        else:
            messages.append(frame)
    return messages, trailers


def web(kind: str = "application/grpc-web+proto") -> dict[str, str]:
    """The headers of a call from a browser."""
    return {"content-type": kind, "x-grpc-web": "1"}


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/index.html"])
async def test_the_page(shared: Served, path: str) -> None:
    """It may run nothing but its own scripts, and is asked for anew each time."""
    answer = await shared.http.get(path)
    assert answer.status_code == 200
    assert answer.content == (envoy.console() / "index.html").read_bytes()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_the_reference(shared: Served) -> None:
    """The page is under the same policy; the document may be read from anywhere."""
    for path in ("/docs", "/docs/"):
        answer = await shared.http.get(path)
        assert answer.content == (envoy.console() / "reference" / "index.html").read_bytes()
        assert answer.headers["content-security-policy"] == POLICY
    answer = await shared.http.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["content-encoding"] == "gzip"
    assert "/v1/wallets/{wallet_id}/postings" in answer.json()["paths"]


@pytest.mark.parametrize("place", ["/console", "/docs"])
async def test_every_asset(shared: Served, place: str) -> None:
    """Each file that the page names is there, has its type, is packed, and may be kept."""
    page = (await shared.http.get(place)).text
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(named) >= 3
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in named:
        answer = await shared.http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers.get("content-encoding") == (
            "gzip" if len(answer.content) > 1024 else None
        )


async def test_the_bundle_is_small() -> None:
    """All that a browser fetches: under 200 kB as the proxy packs it."""
    packed = sum(
        len(zlib.compress(path.read_bytes(), 1))
        for path in envoy.console().rglob("*")
        if path.suffix in {".html", ".js", ".css", ".svg"}
    )
    assert packed < 200_000


@pytest.mark.parametrize(
    "path",
    [
        *("/console/nothing.js", "/console/assets/nothing.js", "/console/index.html/"),
        *("/console/../envoy.yaml", "/console/%2e%2e/envoy.yaml", "/console/..%2fenvoy.yaml"),
        *("/consoles", "/console.html", "/openapi.json/x", "/openapi.jsonx", "/docs/x"),
    ],
)
async def test_what_is_no_file(shared: Served, path: str) -> None:
    """Nothing outside of the folder is served, and an error has the common body."""
    answer = await shared.http.send(
        shared.http.build_request("GET", shared.url + path, headers={"accept": "*/*"})
    )
    found = failure(answer)
    assert found.status in (400, 404), answer.text


async def test_a_page_takes_no_posts(shared: Served) -> None:
    """Files are only read."""
    answer = await shared.http.post("/console", content=b"x")
    assert answer.status_code == 405


# --- gRPC-web -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpc-web+proto"])
async def test_a_call(shared: Served, kind: str) -> None:
    """The answer and its status in one body."""
    wallet = await shared.wallet()
    key = await shared.key("service")
    answer = await shared.ask(
        "POST", GET_WALLET, key=key, headers=web(kind),
        content=framed(wallets_pb.GetWalletRequest(wallet_id=wallet)),
    )  # fmt: skip
    assert answer.status_code == 200
    (message,), trailers = unframed(answer.content)
    assert wallets_pb.Wallet.FromString(message).id == wallet
    assert trailers["grpc-status"] == "0"


async def test_a_call_in_base64(shared: Served) -> None:
    """Old browsers send text."""
    wallet = await shared.wallet()
    key = await shared.key("service")
    request = framed(wallets_pb.GetWalletRequest(wallet_id=wallet))
    answer = await shared.ask(
        "POST", GET_WALLET, key=key, headers=web("application/grpc-web-text+proto"),
        content=base64.b64encode(request),
    )  # fmt: skip
    assert answer.status_code == 200
    (message,), trailers = unframed(answer.content)
    assert wallets_pb.Wallet.FromString(message).id == wallet
    assert trailers["grpc-status"] == "0"


async def test_refusals(shared: Served) -> None:
    """They have the same status and details as over gRPC; a compressed message is not taken."""
    request = framed(wallets_pb.GetWalletRequest(wallet_id="wal_nowhere"))
    key = await shared.key("service")
    for headers, secret, status in [
        ({}, None, "16"),
        ({}, "sk-" + "x" * 43, "16"),
        ({}, key, "5"),
        ({"grpc-encoding": "gzip"}, key, "12"),
    ]:
        answer = await shared.ask(
            "POST", GET_WALLET, key=secret, headers=web() | headers, content=request
        )
        found = answer.headers.get("grpc-status") or unframed(answer.content)[1]["grpc-status"]
        assert found == status, (headers, secret)
        assert answer.status_code == 200


async def test_a_route_is_no_rpc(shared: Served) -> None:
    """The paths of REST are none over gRPC-web: nothing is transcoded, and nothing is written."""
    wallet = await shared.wallet()
    key = await shared.key("service")
    before = shared.row_counts()
    answer = await shared.ask(
        "POST", f"/v1/wallets/{wallet}/postings", key=key, headers=web(),
        content=b'{"idempotency_key": "a", "grant": {"amount": "1"}}',
    )  # fmt: skip
    assert (answer.status_code, answer.content) == (404, b"")
    assert shared.row_counts() == before


async def test_a_body_over_the_limit(shared: Served) -> None:
    """What REST and gRPC refuse, gRPC-web refuses too."""
    key = await shared.key("service")
    request = framed(wallets_pb.GetWalletRequest(wallet_id="w" * (4 * 1024 * 1024)))
    answer = await shared.ask("POST", GET_WALLET, key=key, headers=web(), content=request)
    # The proxy may see it at once, by its length, or while it comes.
    assert (answer.status_code, answer.headers["grpc-status"]) in {(413, "2"), (200, "8")}
    assert answer.content == b""


async def test_a_stream(shared: Served) -> None:
    """A watch's messages come as they are made, long before the call ends."""
    wallet = await shared.wallet()
    key = await shared.key("service")
    request = transactions_pb.CreditTransactionServiceWatchRequest(wallet_id=wallet)
    got = b""
    async with shared.http.stream(
        "POST", WATCH, content=framed(request), headers=web() | {"authorization": f"Bearer {key}"}
    ) as answer:
        pieces = answer.aiter_bytes()
        while len(got) < 5:
            got += await anext(pieces)
        begun = len(got)
        await shared.post(wallet, {"grant": {"amount": "1"}})
        while len(got) == begun or len(unframed(got)[0]) < 2:
            got += await anext(pieces)
    second = transactions_pb.CreditTransactionServiceWatchResponse.FromString(unframed(got)[0][1])
    assert [row.amount for row in second.transactions] == ["1.00"]
