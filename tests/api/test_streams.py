"""Many postings in one call, as a batch or a stream, each with its own fate; calls given up."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.wallet_service_pb2_grpc import add_WalletServiceServicer_to_server

from creditledger.api.auth import Callers
from creditledger.api.door import Door
from creditledger.api.methods import Methods
from creditledger.api.rpc import Boundary
from creditledger.engine.ledger import Ledger
from creditledger.surfaces.native.wallet_service import WalletService
from creditledger.telemetry.measures import Measures
from tests.support.databases import kept_locked
from tests.support.refusals import Refused, refused
from tests.support.server import (
    PATIENCE_SECONDS,
    WALLET,
    Services,
    adjust,
    consume,
    fate,
    grant,
    post,
    ranked,
    wallet,
)
from tests.support.setup import BACKDATING_MS_MAX, add_wallet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from creditledger.store import Store
    from tests.support.server import Api
    from tests.support.setup import Clock


# --- batches --------------------------------------------------------------------------------------


async def test_a_batch_has_its_order_and_each_its_own_fate(api: Api) -> None:
    """Results stand in the order asked; what one refuses leaves the others; an earlier one counts.

    A key that stands twice is a replay the second time, and reused if the request differs.
    """
    fates = await api.batch(
        [
            post("early", **consume("1")),
            post("topup", **grant("2")),
            post("call", **consume("1.5")),
            post("call", **consume("1.50")),
            post("call", **consume("1")),
            post("late", **consume("1")),
            post("", **consume("1")),
            post("none", "wal_none", **consume("1")),
            post("empty"),
            post("last", **consume("0.5")),
            post("odd", **consume("1e3")),
            post("force", **adjust("-1", force=True)),
        ],
    )

    def poor(required: str, available: str) -> Refused:
        metadata = {"required": required, "available": available, "currency": "USD"}
        return Refused("INSUFFICIENT_CREDIT", None, metadata)

    reused = {"fields": "consumption.amount"}
    assert ranked(fates) == [
        poor("1.00", "0.00"),
        1,
        2,
        2,
        Refused("IDEMPOTENCY_KEY_REUSED", "idempotency_key", reused),
        poor("1.00", "0.50"),
        Refused("MISSING_FIELD", "idempotency_key"),
        Refused("NOT_FOUND", "wallet_id"),
        Refused("MISSING_FIELD", "operation"),
        3,
        Refused("INVALID_FIELD", "consumption.amount"),
        Refused("SCOPE_DENIED"),
    ]
    assert wallet("0.00", 3) == await api.wallet_now()


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_has_its_bounds(api: Api, count: int) -> None:
    """0 and more than 1,000 postings are refused whole, and nothing is written."""
    requests = [post(f"key {n}", **grant("1")) for n in range(count)]

    assert await refused(api.batch(requests)) == Refused("INVALID_FIELD", "postings")
    assert (await api.wallet_now()).sequence == 0


async def test_a_batch_of_the_most(api: Api) -> None:
    """1,000 postings are one batch."""
    fates = await api.batch([post(f"key {n}", **grant("1")) for n in range(1_000)])

    assert ranked(fates) == list(range(1, 1_001))


#: 50 keys, 8,100 bytes: a row of an answer that carries it has 9 kB.
HEAVY = {f"{n:02}": "x" * 160 for n in range(50)}


async def test_what_an_answer_cannot_hold_is_not_booked(api: Api) -> None:
    """Postings whose rows pass 4 MiB together are RESULT_TOO_LARGE, and are not in the ledger.

    Those before them are, and the answer reaches a client that takes no more than 4 MiB. In a
    batch of their own the others are booked.
    """
    await api.batch([post(f"grant {n}", **grant("1")) for n in range(500)])
    requests = [post(f"call {n}", metadata=HEAVY, **consume("100")) for n in range(5)]

    answer = await api.wallets.BatchPost(
        pb.BatchPostRequest(postings=requests), metadata=api.service
    )

    fates = [fate(one) for one in answer.results]
    assert ranked(fates[:2]) == [1, 2]
    too_large = Refused("RESULT_TOO_LARGE")
    booked = sum(one != too_large for one in fates)
    assert fates[booked:] == [too_large] * (5 - booked)
    assert booked < 5
    assert 3 * 1024 * 1024 < answer.ByteSize() < 4 * 1024 * 1024
    assert [await api.found(f"call {n}") is None for n in range(5)] == (
        [False] * booked + [True] * (5 - booked)
    )
    assert (await api.wallet_now()).sequence == 500 + 100 * booked
    assert ranked(await api.batch(requests[booked:])) == list(range(1, 6 - booked))


async def test_one_answer_that_cannot_be(api: Api) -> None:
    """A single posting of too many rows is RESULT_TOO_LARGE too, and books nothing."""
    await api.batch([post(f"grant {n}", **grant("1")) for n in range(500)])

    request = api.post("call", metadata=HEAVY, **consume("500"))

    assert await refused(request) == Refused("RESULT_TOO_LARGE")
    assert await api.found("call") is None
    assert (await api.wallet_now()).sequence == 500


async def test_a_request_too_large_is_refused(api: Api) -> None:
    """More than 4 MiB are not read."""
    many = pb.BatchPostRequest(
        postings=[post(f"key {n}", metadata=HEAVY, **grant("1")) for n in range(600)]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.wallets.BatchPost(many, metadata=api.service)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await api.wallet_now()).sequence == 0


# --- streams --------------------------------------------------------------------------------------


async def stream(api: Api, requests: Iterable[pb.PostRequest]) -> list[str | Refused]:
    """The fates of postings sent over one stream that is then half-closed."""

    async def sent() -> AsyncIterator[pb.StreamPostRequest]:
        for request in requests:
            yield pb.StreamPostRequest(posting=request)

    call = api.wallets.StreamPost(sent(), metadata=api.service)
    return [fate(answer.result) async for answer in call]


async def test_a_stream_answers_in_order(api: Api) -> None:
    """Each posting gets its answer in its place; a refusal is an answer and ends nothing."""
    fates = await stream(
        api,
        [
            post("topup", **grant("1")),
            post("poor", **consume("2")),
            pb.PostRequest(),
            post("none", "wal_none", **consume("1")),
            post("call", **consume("1")),
            post("force", **adjust("-1", force=True)),
            post("call", **consume("1")),
        ],
    )

    poor = {"required": "2.00", "available": "1.00", "currency": "USD"}
    assert ranked(fates) == [
        1,
        Refused("INSUFFICIENT_CREDIT", None, poor),
        Refused("MISSING_FIELD", "idempotency_key"),
        Refused("NOT_FOUND", "wallet_id"),
        2,
        Refused("SCOPE_DENIED"),
        2,
    ]


async def test_a_long_stream(api: Api) -> None:
    """3,000 postings, more than may wait at once, are each answered once, in order."""
    await api.post("topup", **grant("100"))
    requests = [post(f"call {n}", **consume("0.01" if n % 7 else "900")) for n in range(3_000)]

    fates = await stream(api, requests)

    booked = [one for one in fates if isinstance(one, str)]
    assert ranked(booked) == list(range(1, len(booked) + 1))
    assert [n for n, one in enumerate(fates) if isinstance(one, Refused)] == (
        list(range(0, 3_000, 7))
    )
    assert {one.reason for one in fates if isinstance(one, Refused)} == {"INSUFFICIENT_CREDIT"}


async def test_a_stream_without_postings(api: Api) -> None:
    """A stream that is half-closed at once ends well."""
    assert await stream(api, []) == []


async def test_a_stream_waits_for_its_client(api: Api) -> None:
    """It answers while it is open: a client may decide on one answer what it sends next."""
    call = api.wallets.StreamPost(metadata=api.service)
    answers = []
    for n in range(5):
        await call.write(pb.StreamPostRequest(posting=post(f"key {n}", **grant("1"))))
        answer = await call.read()
        assert isinstance(answer, pb.StreamPostResponse)
        answers.append(answer)
    await call.done_writing()

    assert [one.result.posting.wallet.sequence for one in answers] == [1, 2, 3, 4, 5]
    assert await call.read() is grpc.aio.EOF


async def test_bytes_that_are_no_posting_end_a_stream(api: Api) -> None:
    """What came before them is answered, then the stream is refused."""
    await api.post("topup", **grant("5"))
    raw: Any = api.channel.stream_stream("/credit.v1.WalletService/StreamPost")
    good = [
        pb.StreamPostRequest(posting=post(f"call {n}", **consume("1"))).SerializeToString()
        for n in range(3)
    ]
    call = raw(iter([*good, b"\xff"]), metadata=api.service)

    answers = [pb.StreamPostResponse.FromString(await call.read()) for _ in range(3)]

    assert [one.result.posting.wallet.sequence for one in answers] == [2, 3, 4]
    assert await refused(call.read()) == Refused("INVALID_FIELD")


async def test_a_stream_that_is_cancelled(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Its postings are there wholly or not at all, and it leaves nothing behind in the server."""
    await api.post("topup", **grant("1000"))
    caplog.set_level(logging.WARNING)
    for turn in range(5):
        call = api.wallets.StreamPost(metadata=api.service)
        for n in range(40):
            request = post(f"call {turn} {n}", **consume("1" if n % 3 else "5000"))
            await call.write(pb.StreamPostRequest(posting=request))
        for _ in range(turn):
            await call.read()
        call.cancel()
    while True:
        before = await api.wallet_now()
        found = [await api.found(f"call {turn} {n}") for turn in range(5) for n in range(40)]
        if await api.wallet_now() == before:
            break

    assert {len(one.transactions) for one in found if one is not None} <= {1}
    assert float(before.balance) == 1000 - sum(one is not None for one in found)
    assert caplog.records == []


async def test_answers_that_nobody_reads(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A client that sends and never reads is served; when it goes, nothing of it is left."""
    await api.post("topup", **grant("1000"))
    caplog.set_level(logging.WARNING)
    call = api.wallets.StreamPost(metadata=api.service)
    for n in range(900):
        request = post(f"call {n}", metadata=HEAVY, **consume("1" if n % 3 else "5000"))
        await call.write(pb.StreamPostRequest(posting=request))
    # More answers than its connection holds: the server has them in its hands.
    while (await api.wallet_now()).sequence < 601:
        pass
    call.cancel()
    for _ in range(20):
        await api.wallet_now()
    gc.collect()

    assert (await api.wallet_now()).balance == "400.00"
    # grpcio may say that an answer was on its way; nothing else is said.
    said = [one for one in caplog.records if "ExecuteBatchError raised in core" not in one.message]
    assert said == []


#: As the contract says.
UNANSWERED_MAX = 1_024


@asynccontextmanager
async def stalled(store: Store, clock: Clock, socket: Path) -> AsyncIterator[Stalled]:
    """A server whose committer has not been started, and wal_acme."""
    await store.write(lambda connection: add_wallet(connection, WALLET))
    ledger = Ledger(
        store,
        queue_max=10_000,
        backdating_ms_max=BACKDATING_MS_MAX,
        on_disk_failure=lambda: pytest.fail("the disk failed"),
    )
    server, methods = grpc.aio.server(), Methods()
    server.add_generic_rpc_handlers([methods])
    callers = Callers(store, clock)
    taken: Any = Taken(Boundary(methods, Door(), callers, Measures(), local=True))
    service = WalletService(store=store, ledger=ledger, callers=callers, clock=clock)
    add_WalletServiceServicer_to_server(service, taken)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield Stalled(Services(channel), ledger, taken)
    await server.stop(None)
    await ledger.close()


class Taken:
    """A server that counts what its handlers have taken: postings, batches, messages of streams."""

    def __init__(self, server: Boundary) -> None:
        self.count = 0
        self._server = server
        self._waiting: dict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def reaches(self, count: int) -> None:
        """Wait until so many have been taken."""
        if self.count < count:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._waiting[count].wait()

    def _one_more(self) -> None:
        self.count += 1
        if self.count in self._waiting:
            self._waiting[self.count].set()

    def add_generic_rpc_handlers(self, _: object) -> None:
        """They come registered too."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Hand on handlers that are counted."""
        counted = {name: self._counted(name, handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, counted)

    def _counted(self, name: str, handler: Any) -> Any:
        if handler.stream_stream is not None:

            async def counted(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
                async for request in requests:
                    self._one_more()
                    yield request

            @wraps(handler.stream_stream)
            def streams(requests: AsyncIterator[Any], context: Any) -> Any:
                return handler.stream_stream(counted(requests), context)

            return grpc.stream_stream_rpc_method_handler(
                streams,
                handler.request_deserializer,
                handler.response_serializer,
            )
        if not name.endswith("Post"):
            return handler

        @wraps(handler.unary_unary)
        async def unary(request: Any, context: Any) -> Any:
            self._one_more()
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary, handler.request_deserializer, handler.response_serializer
        )


@dataclass(frozen=True, slots=True)
class Stalled:
    """What `stalled` makes."""

    services: Services
    ledger: Ledger
    taken: Taken

    async def settled(self) -> None:
        """Wait until the server has done what it can: calls that come later are answered."""
        for _ in range(20):
            await self.services.wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET))


async def test_a_stream_stops_reading_at_1024_unanswered(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    """While nothing is committed 1,024 postings are taken and no more; then all are answered."""
    async with stalled(store, clock, tmp_path / "socket") as served:
        call = served.services.wallets.StreamPost()

        async def send() -> None:
            for n in range(1_500):
                request = post(f"key {n}", **(consume("1") if n else grant("2000")))
                await call.write(pb.StreamPostRequest(posting=request))
            await call.done_writing()

        sending = asyncio.create_task(send())
        await served.taken.reaches(UNANSWERED_MAX)
        # The stream takes nothing more meanwhile.
        await served.settled()
        taken = served.taken.count
        await served.ledger.start()
        answers = [answer async for answer in call]
        await sending

    assert taken == UNANSWERED_MAX
    assert [one.result.posting.wallet.sequence for one in answers] == list(range(1, 1_501))


# --- calls given up -------------------------------------------------------------------------------


async def test_who_is_gone_before_the_batch_begins_is_dropped(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    """A call that was cancelled, or is past its deadline, while it waited is not posted."""
    async with stalled(store, clock, tmp_path / "socket") as served:
        wallets = served.services.wallets
        cancelled = wallets.Post(post("cancelled", **grant("1")))
        late = wallets.Post(post("late", **grant("1")), timeout=1)
        stays = wallets.Post(post("stays", **grant("1")))
        stream = wallets.StreamPost()
        await stream.write(pb.StreamPostRequest(posting=post("stream", **grant("1"))))
        batch = wallets.BatchPost(pb.BatchPostRequest(postings=[post("batch", **grant("1"))]))
        await served.taken.reaches(5)
        cancelled.cancel()
        stream.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        batch.cancel()
        await served.settled()
        await served.ledger.start()

        await stays
        after = await wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET))

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert after.sequence == 1


async def test_who_goes_after_it_has_begun_has_posted(
    store: Store, database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """A call that is cancelled while its batch is being written stands, and can be asked for."""
    async with stalled(store, clock, tmp_path / "socket") as served:
        wallets = served.services.wallets
        # Who holds what it needs makes the committer wait in the middle of its batch.
        async with kept_locked(database_url):
            call = wallets.Post(post("key", **grant("1")))
            await served.taken.reaches(1)
            await served.ledger.start()
            await served.settled()
            call.cancel()
            await served.settled()
        await wallets.Post(post("later", **grant("1")))

        request = pb.GetPostingRequest(wallet_id=WALLET, idempotency_key="key")
        found = await wallets.GetPosting(request)

    assert found.transactions[0].sequence == 1
    assert found.wallet.sequence == 2
