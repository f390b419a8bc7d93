"""Traces: a call is followed from the proxy to the database, and the log names its trace."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from creditledger.ops import log
from creditledger.ops.config import host_and_port
from creditledger.ops.envoy import Envoy
from tests.support.refusals import refused
from tests.support.server import PATIENCE_SECONDS, WALLET, consume, grant, post, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from tests.support.setup import Clock

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT, NOT_SENT = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
POST = "credit.v1.WalletService/Post"


class Collector(TraceServiceServicer):
    """Where servers send their spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.url = ""

    async def Export(
        self, request: otlp.ExportTraceServiceRequest, _: Any
    ) -> otlp.ExportTraceServiceResponse:
        """Keep them."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return otlp.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> Iterator[Span]:
        """The spans of a trace."""
        return (one for one in self.spans if one.trace_id.hex() == trace_id)

    async def until(self, name: str, count: int) -> None:
        """Wait for so many spans of this name."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(one.name == name for one in self.spans) < count:  # noqa: ASYNC110 # a process
                await asyncio.sleep(0.02)

    def under(self, span: Span, name: str | None = None) -> list[Span]:
        """Its parts, of this name."""
        return [
            one
            for one in self.spans
            if one.parent_span_id == span.span_id and name in {None, one.name}
        ]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector. A server sends what is left as it stops, so look when it has."""
    collector, server = Collector(), grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call] # generated
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(None)


def attributes(span: Span) -> dict[str, str | int]:
    """What it tells of itself."""
    return {one.key: one.value.string_value or int(one.value.int_value) for one in span.attributes}


async def test_a_call_is_followed_from_the_proxy_to_the_database(
    database_url: str, clock: Clock
) -> None:
    """The trace of a REST call's `traceparent` has the RPC, its queue, its batch, its database."""
    lines = io.StringIO()
    log.configure("info", "json", lines)
    async with (
        collecting() as collector,
        serve(database_url, clock, otlp_endpoint=collector.url) as api,
        Envoy(
            listen=("127.0.0.1", 0),
            upstreams=[host_and_port(api.server.grpc_address)],
            concurrency=1,
            traces=(collector.url, 1.0),
        ) as envoy,
        httpx.AsyncClient(base_url=envoy.url, trust_env=False) as client,
    ):
        await api.post("g", **grant("10"))
        (_, bearer), *_ = api.service
        headers = {"authorization": bearer, "traceparent": SENT, "x-request-id": "from_the_shop"}
        body = {"idempotency_key": "c", "consumption": {"amount": "1"}}
        answer = await client.post(f"/v1/wallets/{WALLET}/postings", json=body, headers=headers)
        # The proxy sends its spans five at a time, or every five seconds.
        for _ in range(4):
            await client.get(f"/v1/wallets/{WALLET}", headers=headers)
        await collector.until("ingress", 5)
        access = [json.loads(one) for one in envoy.log.read_text().splitlines() if one[0] == "{"]
        await api.server.stop()

    assert answer.status_code == 200
    request_id = answer.headers["x-request-id"]
    (call,) = (one for one in collector.of(TRACE) if one.name == POST)
    (proxy,) = (one for one in collector.spans if one.span_id == call.parent_span_id)
    assert (proxy.name, proxy.parent_span_id.hex()) == ("ingress", CALLER)
    told = attributes(call)
    assert told["creditledger.request_id"] == request_id
    assert told["rpc.grpc.status_code"] == 0
    (queue,) = collector.under(call, "queue")
    (batch,) = collector.under(call, "batch")
    assert attributes(batch) == {"creditledger.batch.size": 1}
    (work,) = collector.under(batch)
    assert (work.name, attributes(work)) == ("database", {"creditledger.work": "commit"})
    assert (
        call.start_time_unix_nano
        <= queue.start_time_unix_nano
        <= queue.end_time_unix_nano
        <= batch.start_time_unix_nano
        <= work.start_time_unix_nano
        <= work.end_time_unix_nano
        <= batch.end_time_unix_nano
        <= call.end_time_unix_nano
    )
    written = logged(lines, request_id)
    assert [one["trace_id"] for one in written] == [TRACE]
    assert [one["trace_id"] for one in access if one["request_id"] == request_id] == [TRACE]


async def test_the_share_of_calls_that_are_traced(database_url: str, clock: Clock) -> None:
    """Where the caller does not say, the setting does; a caller that says so is traced."""
    async with (
        collecting() as collector,
        serve(database_url, clock, otlp_endpoint=collector.url, trace_ratio=0.0) as api,
    ):
        await api.post("g", **grant("1"))
        metadata = (*api.service, ("traceparent", SENT))
        await api.wallets.Post(post("c", WALLET, **consume("1")), metadata=metadata)
        await api.server.stop()

    assert {one.trace_id.hex() for one in collector.spans} == {TRACE}


def logged(lines: io.StringIO, request_id: str) -> list[dict[str, Any]]:
    """The lines of a call."""
    structlog.get_logger().warning("writes what waits")
    found = [json.loads(one) for one in lines.getvalue().splitlines()]
    return [one for one in found if one.get("request_id") == request_id]


async def test_calls_that_share_a_batch_are_linked(database_url: str, clock: Clock) -> None:
    """Each trace has its own wait; the database's work is in one, and the others have a link."""
    async with (
        collecting() as collector,
        serve(database_url, clock, otlp_endpoint=collector.url) as api,
    ):
        await api.post("g", **grant("10"))
        calls = [api.post(f"c{n}", **consume("0.1")) for n in range(20)]
        await asyncio.gather(*calls)
        await api.server.stop()

    batches = {one.span_id: one for one in collector.spans if one.name == "batch"}
    linked = [one for one in batches.values() if one.links]
    calls_traced = [one for one in collector.spans if one.name == POST]
    assert len({one.trace_id for one in calls_traced}) == len(calls_traced) == 21
    assert all(len(collector.under(one, "queue")) == 1 for one in calls_traced)
    assert linked
    for one in linked:
        (link,) = one.links
        first = batches[link.span_id]
        assert attributes(one) == attributes(first)
        assert (len(collector.under(one)), len(collector.under(first))) == (0, 1)


async def test_a_refusal_is_told(database_url: str, clock: Clock) -> None:
    """The span of a refused call has its reason."""
    async with (
        collecting() as collector,
        serve(database_url, clock, otlp_endpoint=collector.url) as api,
    ):
        await refused(api.post("c", **consume("1")))
        await api.server.stop()

    (call,) = (one for one in collector.spans if one.name == POST)
    assert attributes(call)["rpc.grpc.status_code"] == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert call.status.message == "INSUFFICIENT_CREDIT"


async def test_what_the_caller_does_not_trace_is_not_sent(database_url: str, clock: Clock) -> None:
    """A `traceparent` without the flag sends nothing; the log names the trace nevertheless."""
    lines = io.StringIO()
    log.configure("info", "json", lines)
    async with (
        collecting() as collector,
        serve(database_url, clock, otlp_endpoint=collector.url) as api,
    ):
        metadata = (*api.service, ("traceparent", NOT_SENT), ("x-request-id", "quiet"))
        await api.wallets.Post(post("g", WALLET, **grant("1")), metadata=metadata)
        await api.server.stop()

    assert list(collector.of(TRACE)) == []
    assert [one["trace_id"] for one in logged(lines, "quiet")] == [TRACE]


async def test_a_collector_that_is_away_stops_nothing(database_url: str, clock: Clock) -> None:
    """Postings are answered, and the server ends in order."""
    async with serve(database_url, clock, otlp_endpoint="http://127.0.0.1:9") as api:
        await api.post("g", **grant("1"))


def test_off_nothing_of_it_is_loaded() -> None:
    """A server without an endpoint does not import OpenTelemetry."""
    script = (
        "import sys; import creditledger.ops.server;"
        " print([one for one in sys.modules if one.startswith('opentelemetry')])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert found.stdout.strip() == b"[]"
