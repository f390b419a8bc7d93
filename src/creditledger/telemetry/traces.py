"""Traces of calls, sent by OTLP to a collector.

The trace of a call is the one that its `traceparent` names, else a new one. The variable
`OTEL_RESOURCE_ATTRIBUTES`, and those of the exporter, mean what OpenTelemetry says.
"""

import asyncio
import random
import re
import threading
from collections.abc import Iterable, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from creditledger import __version__
from creditledger.telemetry.spans import UnderWay

#: How long one attempt to send spans may take, and all of them at the end.
SEND_SECONDS_MAX = 3.0

_propagator = TraceContextTextMapPropagator()
_CARRIED = ("traceparent", "tracestate")
#: As the W3C spells it; later versions may say more at the end.
_TRACEPARENT = re.compile(
    r"[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)
_SENT = 1  #: The flag of a trace that is sent.
_chances = random.Random()  # noqa: S311 # which calls are traced is no secret


class RecordedSpan:
    """A span of a trace that is sent. See `spans.TraceSpan`."""

    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span

    @property
    def trace_id(self) -> str:
        """See TraceSpan."""
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    def part(self, name: str, *, links: Sequence["RecordedSpan"] = ()) -> "RecordedSpan":
        """See TraceSpan."""
        within = trace.set_span_in_context(self._span)
        to = [Link(one._span.get_span_context()) for one in links]
        return RecordedSpan(self._tracer, self._tracer.start_span(name, within, links=to))

    def note(self, name: str, value: str | int) -> None:
        """See TraceSpan."""
        self._span.set_attribute(name, value)

    def end(self, failure: str | None = None) -> None:
        """See TraceSpan."""
        if failure is not None:
            self._span.set_status(Status(StatusCode.ERROR, failure))
        self._span.end()


class Traces:
    """Where the spans of one server go."""

    def __init__(self, endpoint: str, ratio: float) -> None:
        """`endpoint`: such as http://127.0.0.1:4317; https:// encrypts.

        `ratio`: the share of calls that are sent, of those whose `traceparent` does not say.
        """
        named = {"service.name": "creditledger", "service.version": __version__}
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # `call` has chosen
            resource=Resource.create(named),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS_MAX)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("creditledger")
        self._ratio = ratio

    def call(self, method: str, metadata: Iterable[tuple[str, str]], request_id: str) -> UnderWay:
        """A call of this method, which begins now. `method`: /package.Service/Name.

        A call that is not sent costs a look at its metadata: OpenTelemetry hears nothing of it.
        """
        carried = {name: value for name, value in metadata if name in _CARRIED}
        caller = _TRACEPARENT.fullmatch(carried.get("traceparent", ""))
        if caller is not None and not int(caller["flags"], 16) & _SENT:
            return UnderWay(request_id, caller["trace_id"])
        if caller is None and _chances.random() >= self._ratio:
            return UnderWay(request_id)
        service, _, name = method[1:].partition("/")
        span = self._tracer.start_span(
            method[1:],
            _propagator.extract(carried),
            SpanKind.SERVER,
            {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "creditledger.request_id": request_id,
            },
        )
        recorded = RecordedSpan(self._tracer, span)
        return UnderWay(request_id, recorded.trace_id, recorded)

    async def close(self) -> None:
        """Send what is left, as far as the collector takes it in time."""
        # A collector that is away keeps `shutdown` for longer, and a daemon does not keep the
        # process.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, SEND_SECONDS_MAX)
