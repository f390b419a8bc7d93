"""The client: a worker that drives the server over gRPC (or REST) and says what it saw.

Calls are kept in flight for a while, each followed by the next as soon as it is answered; only what
happens in that while counts. Every call must succeed. What was acknowledged is written down, in
receipts, for the ledger to be checked against them. Started by run.py.
"""

import asyncio
import base64
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from grpc_health.v1 import health_pb2

from bench import http2
from bench.http2 import Connection, Stream
from bench.timing import Times
from bench.traffic import Traffic, Wallets
from bench.worker import Failed, serve
from creditledger.ops.process import new_event_loop

#: A call that takes this long has hung.
PATIENCE_SECONDS = 60.0
#: Calls in flight are spread over this many connections at most, as a proxy's would be.
CONNECTIONS_MAX = 4
#: Postings of a stream that wait for their answers.
UNANSWERED_MAX = 256


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it is sent, with how many postings it brings and their receipts."""

    block: bytes
    body: bytes
    postings: int = 1
    receipts: bytes = b""


class Closed:
    """A fixed number of calls in flight: each that is answered is followed by another."""

    def __init__(
        self, make: Callable[[], Call], accepts: Callable[[Stream], bool], seconds: float
    ) -> None:
        self._make = make
        self._accepts = accepts
        self._under_way = 0
        self.times = Times(seconds)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, connections: list[Connection], in_flight: int) -> None:
        """All of it. Raises Failed at the first call that fails."""
        self._under_way = in_flight
        for i in range(in_flight):
            self._begin(connections[i % len(connections)])
        async with asyncio.timeout(self.times.seconds + PATIENCE_SECONDS):
            await self._done

    def _begin(self, connection: Connection) -> None:
        call = self._make()
        connection.request(
            call.block, call.body, self._end, (connection, call, time.perf_counter())
        )

    def _end(self, stream: Stream) -> None:
        connection, call, began = stream.tag
        if not self._accepts(stream):
            if not self._done.done():
                self._done.set_exception(Failed(stream.complaint()))
            return
        if self.times.done(call.postings, began, call.receipts):
            self._begin(connection)
            return
        self._under_way -= 1
        if not self._under_way and not self._done.done():
            self._done.set_result(None)


class Streaming:
    """One StreamPost: postings go in while fewer than `unanswered` wait, answers come in order."""

    def __init__(self, traffic: Traffic, times: Times) -> None:
        self._traffic = traffic
        self._times = times
        self._waiting: deque[tuple[bytes, float]] = deque()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None

    async def run(self, connection: Connection, block: bytes) -> None:
        """Until the while is over and everything is answered. Raises Failed."""
        self._connection = connection
        stream = connection.open(block, self._end, self._answered)
        for _ in range(UNANSWERED_MAX):
            self._send(stream)
        await self._ended

    def _send(self, stream: Stream) -> None:
        assert self._connection is not None
        message, receipt = self._traffic.batch(1)
        self._waiting.append((receipt, time.perf_counter()))
        self._connection.send(stream, http2.grpc_message(message), end=False)

    def _answered(self, stream: Stream) -> None:
        assert self._connection is not None
        for message in http2.grpc_messages(stream.body):
            answer = pb.StreamPostResponse.FromString(message)
            receipt, began = self._waiting.popleft()
            if not answer.result.HasField("posting"):
                stream.failure = str(answer.result.error)
                self._end(stream)
                return
            if self._times.done(1, began, receipt):
                self._send(stream)
        if not self._waiting and not stream.ending:
            self._connection.send(stream, b"", end=True)

    def _end(self, stream: Stream) -> None:
        if self._ended.done():
            return
        if stream.is_ok and not self._waiting:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(Failed(stream.complaint()))


# --- what is called -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go."""

    addresses: list[str]  #: host:port of each server; of Envoy for REST.
    secret: str
    wallets: Wallets
    seed: int

    def grpc(self, path: str) -> bytes:
        """The headers of a call."""
        return http2.grpc_headers(path, self.addresses[0], self.secret)


def _empty(target: Target, batch: int) -> tuple[Callable[[], Call], Callable[[Stream], bool]]:
    """A health check: the least a call can be."""
    request = health_pb2.HealthCheckRequest().SerializeToString()
    call = Call(target.grpc("/grpc.health.v1.Health/Check"), http2.grpc_message(request))
    return lambda: call, lambda stream: stream.is_ok


def _unary(target: Target, batch: int) -> tuple[Callable[[], Call], Callable[[Stream], bool]]:
    block, traffic = (
        target.grpc("/credit.v1.WalletService/Post"),
        Traffic(target.wallets, target.seed),
    )

    def make() -> Call:
        message, receipt = traffic.single()
        return Call(block, http2.grpc_message(message), 1, receipt)

    return make, lambda stream: stream.is_ok


def _batch(target: Target, batch: int) -> tuple[Callable[[], Call], Callable[[Stream], bool]]:
    block = target.grpc("/credit.v1.WalletService/BatchPost")
    traffic = Traffic(target.wallets, target.seed)

    def make() -> Call:
        message, receipts = traffic.batch(batch)
        return Call(block, http2.grpc_message(message), batch, receipts)

    def accepts(stream: Stream) -> bool:
        """Each posting has a fate of its own, and each has to be accepted."""
        if not stream.is_ok:
            return False
        (message,) = http2.grpc_messages(stream.body)
        results = pb.BatchPostResponse.FromString(message).results
        if len(results) == batch and all(result.HasField("posting") for result in results):
            return True
        refused = [result.error for result in results if result.HasField("error")]
        stream.failure = str(refused[:1] or f"{len(results)} results for {batch} postings")
        return False

    return make, accepts


def _rest(target: Target, batch: int) -> tuple[Callable[[], Call], Callable[[Stream], bool]]:
    traffic = Traffic(target.wallets, target.seed)
    begin = http2.headers(
        [(":method", "POST"), (":scheme", "http"), (":authority", target.addresses[0])]
    )
    rest = http2.headers(
        [("content-type", "application/json"), ("authorization", f"Bearer {target.secret}")]
    )

    def make() -> Call:
        wallet, body, receipt = traffic.rest()
        path = http2.headers([(":path", f"/v1/wallets/{wallet.decode()}/postings")])
        return Call(begin + path + rest, body, 1, receipt)

    return make, lambda stream: stream.is_ok


_KINDS = {"empty": _empty, "unary": _unary, "batch": _batch, "rest": _rest}


async def _connected(addresses: list[str], in_flight: int) -> list[Connection]:
    count = min(CONNECTIONS_MAX, in_flight)
    return [await http2.connect(addresses[i % len(addresses)]) for i in range(count)]


async def _calls(target: Target, kind: str, batch: int, in_flight: int, seconds: float) -> Times:
    connections = await _connected(target.addresses, in_flight)
    make, accepts = _KINDS[kind](target, batch)
    closed = Closed(make, accepts, seconds)
    try:
        await closed.run(connections, in_flight)
    finally:
        for connection in connections:
            connection.close()
    return closed.times


async def _streams(target: Target, in_flight: int, seconds: float) -> Times:
    connections = await _connected(target.addresses, in_flight)
    block = target.grpc("/credit.v1.WalletService/StreamPost")
    times = Times(seconds)
    streams = [
        Streaming(Traffic(target.wallets, target.seed + i), times).run(
            connections[i % len(connections)], block
        )
        for i in range(in_flight)
    ]
    try:
        async with asyncio.timeout(seconds + PATIENCE_SECONDS):
            await asyncio.gather(*streams)
    finally:
        for connection in connections:
            connection.close()
    return times


async def _grpcio(target: Target, in_flight: int, seconds: float) -> Times:
    """Unary calls by gRPC's own Python client, which is what Python programs have."""
    traffic = Traffic(target.wallets, target.seed)
    metadata = (("authorization", f"Bearer {target.secret}"),)

    async def caller(stub: WalletServiceStub, times: Times) -> None:
        while times.go_on():
            message, receipt = traffic.single()
            request = pb.PostRequest.FromString(message)
            began = time.perf_counter()
            try:
                await stub.Post(request, metadata=metadata, timeout=PATIENCE_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise Failed(f"{error.code()}: {error.details()}") from error
            times.done(1, began, receipt)

    async with grpc.aio.insecure_channel(target.addresses[0]) as channel:
        await channel.channel_ready()
        stub, times = WalletServiceStub(channel), Times(seconds)
        await asyncio.gather(*(caller(stub, times) for _ in range(in_flight)))
    return times


def drive(
    kind: str,
    addresses: list[str],
    secret: str,
    wallets: Mapping[str, int],
    in_flight: int,
    batch: int,
    seconds: float,
    seed: int,
    receipts: str,
) -> dict[str, object]:
    """One measurement; receipts are appended to the file of that name."""
    target = Target(addresses, secret, Wallets(**wallets), seed)  # type: ignore[arg-type]  # of JSON

    async def run() -> Times:
        if kind == "stream":
            return await _streams(target, in_flight, seconds)
        if kind == "grpcio":
            return await _grpcio(target, in_flight, seconds)
        return await _calls(target, kind, batch, in_flight, seconds)

    times = _run(run())
    with Path(receipts).open("ab") as file:
        file.writelines(times.receipts)
    return times.answer()


def read(address: str, secret: str, path: str, request: str, seconds: float) -> dict[str, object]:
    """One request again and again, one at a time; with what was answered first, both in base64."""
    block = http2.grpc_headers(path, address, secret)
    call = Call(block, http2.grpc_message(base64.b64decode(request)))
    answers: list[bytes] = []

    def accepts(stream: Stream) -> bool:
        if stream.is_ok and not answers:
            answers.extend(http2.grpc_messages(stream.body))
        return stream.is_ok

    async def run() -> Times:
        connection = await http2.connect(address)
        closed = Closed(lambda: call, accepts, seconds)
        try:
            await closed.run([connection], 1)
        finally:
            connection.close()
        return closed.times

    times = _run(run())
    return {**times.answer(), "message": base64.b64encode(answers[0]).decode()}


def _run(coroutine: Coroutine[None, None, Times]) -> Times:
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(coroutine)
    except (TimeoutError, OSError, http2.Lost) as error:
        raise Failed(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    serve({"drive": drive, "read": read})
