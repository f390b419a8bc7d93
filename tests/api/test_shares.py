"""What one customer, or one reader, can take of a server: never so much that others wait for it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import wallet_service_pb2 as wallets_pb

from creditledger.api import rpc
from creditledger.api.concurrency import Places, Turns
from creditledger.domain.errors import Overloaded
from creditledger.ops.envoy import Envoy
from creditledger.outlets import watches
from creditledger.outlets.exports import stream as export_stream
from tests.support.refusals import refusal
from tests.support.server import WALLET, Api, Services, consume, grant, post, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.refusals import Metadata
    from tests.support.setup import Clock

ROWS = 1_600
#: With metadata of 8 kB in each row.
FILE_BYTES = ROWS * 8_000
#: How long anybody else may wait for an answer before that counts as none.
PATIENCE_SECONDS = 30.0
#: Of a client on a connection of its own, which takes in no more the faster it comes.
SMALL_WINDOWS = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
EXPORT = transactions_pb.CreditTransactionServiceExportRequest(format="ndjson")


async def fill(api: Api) -> None:
    """Rows of which a file is too long for any buffer on the way."""
    heavy = {f"{n:02}": "x" * 150 for n in range(50)}
    await api.post("given", **grant("1000"))
    for first in range(0, ROWS, 400):
        keys = (f"row {n}" for n in range(first, first + 400))
        fates = await api.batch([post(key, metadata=heavy, **consume("0.01")) for key in keys])
        assert all(isinstance(one, str) for one in fates)


async def rest_of(export: Any) -> tuple[int, str | None]:
    """Bytes that still come of an export, and the reason for which it ends, if it is refused."""
    arrived = 0
    try:
        while (piece := await export.read()) is not grpc.aio.EOF:
            arrived += len(piece.data)
    except grpc.aio.AioRpcError as error:
        return arrived, refusal(error).reason
    return arrived, None


@asynccontextmanager
async def proxy(api: Api) -> AsyncIterator[Envoy]:
    """A real one before the server."""
    host, _, port = api.server.grpc_address.rpartition(":")
    async with Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1) as one:
        yield one


# --- places and turns -----------------------------------------------------------------------------


def test_a_customer_has_its_share_and_operators_have_a_reserve() -> None:
    """Of 8 places one customer takes 2, all customers 6, and service and admin keys all."""
    places = Places("exports", retry_after="5")

    def refused(customer_id: str | None) -> bool:
        try:
            with places.one(8, customer_id):
                return False
        except Overloaded:
            return True

    with ExitStack() as taken:
        for customer in ("a", "a", "b", "b"):
            taken.enter_context(places.one(8, customer))
        assert [refused(one) for one in ("a", "b", "c", None)] == [True, True, False, False]
        for customer in ("c", "d"):
            taken.enter_context(places.one(8, customer))
        assert [refused(one) for one in ("d", "e", None)] == [True, True, False]
        for _ in range(2):
            taken.enter_context(places.one(8, None))
        assert refused(None)
    assert not refused("a")


async def test_calls_of_a_customer_take_turns() -> None:
    """Some calls of a customer run, others wait in order, too many are refused."""
    turns = Turns(2)
    under_way: list[int] = []
    most = 0
    go_on = asyncio.Event()

    async def call(n: int) -> None:
        nonlocal most
        async with turns.one("a"):
            under_way.append(n)
            most = max(most, len(under_way))
            await go_on.wait()
            under_way.remove(n)

    async with asyncio.TaskGroup() as group:
        for n in range(66):
            group.create_task(call(n))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert under_way == [0, 1]
        with pytest.raises(Overloaded):
            async with turns.one("a"):
                pass
        async with turns.one("b"), turns.one(None):
            pass
        go_on.set()
    assert most == 2
    async with turns.one("a"):
        pass


@pytest.mark.parametrize("kind", ["exports", "watches"])
async def test_one_key_does_not_take_every_place(
    database_url: str, clock: Clock, kind: str
) -> None:
    """While one customer holds all it may, other customers and services get a place."""
    async with serve(database_url, clock) as api:
        await fill(api)
        await api.local.new_wallet("wal_other", "cus_other")
        other = await api.local.key("customer", "cus_other")

        def begin(key: Metadata) -> Any:
            if kind == "exports":
                return api.transactions.Export(EXPORT, metadata=key)
            request = transactions_pb.CreditTransactionServiceWatchRequest()
            return api.transactions.Watch(request, metadata=key)

        most = export_stream.EXPORTS_MAX if kind == "exports" else watches.WATCHES_MAX
        held, codes = [], []
        for _ in range(most):
            held.append(begin(api.customer))
            try:
                await held[-1].read()
            except grpc.aio.AioRpcError as error:
                codes.append(refusal(error).reason)
        assert codes == ["OVERLOADED"] * (most - most // 4)
        for key in (other, api.service):
            answers = begin(key)
            assert await answers.read() is not grpc.aio.EOF
            answers.cancel()
        for one in held:
            one.cancel()


# --- who does not read ----------------------------------------------------------------------------


async def test_unread_streams_do_not_hold_up_calls_through_the_proxy(
    database_url: str, clock: Clock
) -> None:
    """All possible unread exports behind the proxy leave postings and reads undisturbed."""
    async with serve(database_url, clock) as api, proxy(api) as envoy:
        await fill(api)
        host, port = envoy.address
        key = dict(api.service)["authorization"]
        with ExitStack() as readers:
            for _ in range(export_stream.EXPORTS_MAX):
                reader = readers.enter_context(socket.socket())
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                reader.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(reader, (host, port))
                lines = f"host: a\r\nauthorization: {key}\r\n\r\n"
                path = "/api/credit-transactions:export?format=ndjson"
                await loop.sock_sendall(reader, f"GET {path} HTTP/1.1\r\n{lines}".encode())
                assert (await loop.sock_recv(reader, 12)) == b"HTTP/1.1 200"
            async with (
                grpc.aio.insecure_channel(f"{host}:{port}") as channel,
                asyncio.timeout(PATIENCE_SECONDS),
            ):
                through = Services(channel)
                wallet = wallets_pb.GetWalletRequest(wallet_id=WALLET)
                for n in range(40):
                    posting = post(f"meanwhile {n}", **consume("0.01"))
                    await through.wallets.Post(posting, metadata=api.service)
                    await through.wallets.GetWallet(wallet, metadata=api.service)


async def test_who_does_not_read_gives_up_its_place(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that is unread for too long ends the export, and the client is told why."""
    monkeypatch.setattr(rpc, "UNREAD_SECONDS_MAX", 0.2)
    async with (
        serve(database_url, clock) as api,
        grpc.aio.insecure_channel(api.server.grpc_address, options=SMALL_WINDOWS) as channel,
    ):
        await fill(api)
        monkeypatch.setattr(export_stream, "EXPORTS_MAX", 1)
        unread = Services(channel).transactions.Export(EXPORT, metadata=api.service)
        await unread.read()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                another = api.transactions.Export(EXPORT, metadata=api.service)
                with suppress(grpc.aio.AioRpcError):
                    await another.read()
                    break
                await asyncio.sleep(0.05)  # nothing tells when the server gives up
        another.cancel()
        _, reason = await rest_of(unread)
    assert reason == "OVERLOADED"


# --- the end of a key -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "proxy"])
async def test_an_export_ends_with_its_key(database_url: str, clock: Clock, way: str) -> None:
    """After its key is revoked, an export sends what is under way and ends."""
    async with serve(database_url, clock) as api, proxy(api) as envoy:
        await fill(api)
        created = await api.local.new_key("service")
        key = (("authorization", f"Bearer {created.secret}"),)
        host, port = envoy.address
        address = api.server.grpc_address if way == "direct" else f"{host}:{port}"
        async with grpc.aio.insecure_channel(address, options=SMALL_WINDOWS) as channel:
            export = Services(channel).transactions.Export(EXPORT, metadata=key)
            await export.read()
            await api.local.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=created.api_key.id))
            arrived, reason = await rest_of(export)
    assert reason == "KEY_INVALID"
    assert arrived < FILE_BYTES / 2
