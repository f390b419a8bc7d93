"""How an RPC is put together, and how its errors leave the process.

`rpc` wraps a service's method in the order of checks: shape, key, scope; what follows belongs to
the method. `Boundary` is around every method: it turns every Refusal into a status with details,
anything unforeseen into INTERNAL without text, and writes one log line per call. `Door` is how a
server ends.
"""

import asyncio
import functools
import json
import logging
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from creditledger.api.auth import Caller, Callers
from creditledger.api.names import NAMES_HEADER, check
from creditledger.errors import ErrorKind, InvalidField, Refusal, ShuttingDown
from creditledger.registry import Scope

log = structlog.get_logger()

M = TypeVar("M")
P = TypeVar("P")
Context = grpc.aio.ServicerContext[Any, Any]

DOMAIN = "creditledger"
#: The trailers that Envoy turns into the REST answer; it strips their like from requests.
ERROR_HEADER = "x-creditledger-error"
STATUS_HEADER = "x-creditledger-status"
#: By which Envoy asks another server, now and until this one is healthy again.
ELSEWHERE_HEADER = "x-envoy-immediate-health-check-fail"
#: Headers this long pass every proxy.
HEADER_BYTES_MAX = 2_000
MESSAGE_CHARACTERS_MAX = 400
#: Characters of the message and of each value of the metadata, tried until the header holds them.
_CUTS = ((MESSAGE_CHARACTERS_MAX, 400), (64, 400), (64, 64), (16, 4))

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

#: For the ids of requests: nobody gains by guessing one, so the system is asked only once.
_numbers = random.Random()  # noqa: S311 # as said
_call: ContextVar["_Call"] = ContextVar("call")


class Internal(Refusal):
    """Something unforeseen; the text is in the log under the request id."""

    reason, kind = "INTERNAL", ErrorKind.BUG


class Service:
    """What every service has: it can tell who calls."""

    callers: Callers

    async def caller(self, context: Context, scope: Scope, *, shared: bool = False) -> Caller:
        """The caller of this RPC, allowed at least `scope`; `shared` as in `rpc`."""
        call = _call.get()
        caller = await self.callers.identify(call.metadata, local=call.local)
        call.key = caller.id
        caller.require(scope)
        if shared:
            caller.require_live()
        return caller

    async def still_there(self) -> None:
        """Of a call that lasts. Raises KeyInvalid where its key was revoked or expired since."""
        call = _call.get()
        await self.callers.identify(call.metadata, local=call.local)


def rpc(
    shape: Callable[[Any], P], *, scope: Scope, shared: bool = False
) -> Callable[
    [Callable[[Any, P, Caller], Awaitable[M]]], Callable[[Any, Any, Context], Awaitable[M]]
]:
    """A unary RPC of a `Service`: `shape` checks the message, then the key, then its scope.

    `shared`: it changes something that live and test mode share, so a test key may not call it.
    The method takes what `shape` answered and the caller, and answers the response message.
    """

    def decorate(
        method: Callable[[Any, P, Caller], Awaitable[M]],
    ) -> Callable[[Any, Any, Context], Awaitable[M]]:
        @functools.wraps(method)
        async def handler(self: Service, request: Any, context: Context) -> M:
            shaped = shape(request)
            caller = await self.caller(context, scope, shared=shared)
            return await method(self, shaped, caller)

        handler.scope = scope  # type: ignore[attr-defined] # read by the test of who may do what
        return handler

    return decorate


def rpc_stream(
    shape: Callable[[Any], P], *, scope: Scope
) -> Callable[
    [Callable[[Any, P, Caller], AsyncGenerator[M]]],
    Callable[[Any, Any, Context], AsyncIterator[M]],
]:
    """As `rpc`, of one that answers a stream of messages."""

    def decorate(
        method: Callable[[Any, P, Caller], AsyncGenerator[M]],
    ) -> Callable[[Any, Any, Context], AsyncIterator[M]]:
        @functools.wraps(method)
        async def handler(self: Service, request: Any, context: Context) -> AsyncIterator[M]:
            shaped = shape(request)
            caller = await self.caller(context, scope)
            async with aclosing(method(self, shaped, caller)) as answers:
                async for answer in answers:
                    yield answer

        handler.scope = scope  # type: ignore[attr-defined] # as `rpc` does
        return handler

    return decorate


def message(refusal: Refusal) -> str:
    """The refusal's text, at a length that every header takes."""
    return refusal.message[:MESSAGE_CHARACTERS_MAX]


def rest_body(refusal: Refusal, request_id: str) -> str:
    """The error as REST answers it: ASCII JSON of HEADER_BYTES_MAX at most, its texts cut to fit.

    The message is cut before the metadata, which programs react to.
    """
    for message_max, value_max in _CUTS:
        error = {
            "type": refusal.kind.error_type,
            "message": refusal.message[:message_max],
            "code": refusal.reason,
            "param": refusal.param and refusal.param[:message_max],
            "metadata": {name: value[:value_max] for name, value in refusal.metadata.items()},
            "request_id": request_id,
        }
        present = {name: value for name, value in error.items() if value is not None}
        body = json.dumps({"error": present}, separators=(",", ":"))
        if len(body) <= HEADER_BYTES_MAX:  # escaped, a character may take twelve bytes
            break
    return body


def _details(refusal: Refusal) -> bytes:
    code = getattr(grpc.StatusCode, refusal.kind.grpc_code).value[0]
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.metadata)
        )
    ]
    if refusal.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.param, description=message(refusal)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=code, message=message(refusal))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    serialized: bytes = status.SerializeToString()
    return serialized


async def _abort(context: Context, refusal: Refusal, request_id: str) -> None:
    trailers: list[tuple[str, str | bytes]] = [
        (ERROR_HEADER, rest_body(refusal, request_id)),
        (STATUS_HEADER, str(refusal.kind.http_status)),
        ("grpc-status-details-bin", _details(refusal)),
        ("x-request-id", request_id),
    ]
    if refusal.retry_after is not None:
        trailers.append(("retry-after", refusal.retry_after))
    if isinstance(refusal, ShuttingDown):
        trailers.append((ELSEWHERE_HEADER, "true"))
    code = getattr(grpc.StatusCode, refusal.kind.grpc_code)
    await context.abort(code, message(refusal), tuple(trailers))


class Door:
    """Knows how many calls are under way, and once closed refuses new ones."""

    def __init__(self) -> None:
        self._under_way = 0
        self._closed = False
        self._empty = asyncio.Event()
        #: Tasks that wait for the next message of a stream.
        self._reading: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Refuse new calls; end when none is under way.

        Streams are read no further: what has been read is answered, then they end UNAVAILABLE.
        """
        self._closed = True
        for task in self._reading:
            task.cancel()
        if self._under_way:
            await self._empty.wait()

    def enter(self, context: Any) -> None:
        """Count the call until its status has left, not only its handler. Raises ShuttingDown."""
        if self._closed:
            raise ShuttingDown
        self._under_way += 1
        context.add_done_callback(self._leave)

    def _leave(self, _: Any) -> None:
        self._under_way -= 1
        if self._closed and not self._under_way:
            self._empty.set()

    async def read(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests until the door is closed. Raises ShuttingDown then."""
        task = asyncio.current_task()
        assert task is not None
        while not self._closed:
            self._reading.add(task)
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if self._closed and not task.uncancel():
                    break
                raise
            finally:
                self._reading.discard(task)
            yield request
        raise ShuttingDown


class Boundary:
    """The edge between the services and gRPC: who may call, errors, request ids, the log.

    A server to register services with. What it is given it wraps, once, and hands on: an
    interceptor would be asked at every call.

    `local`: its server is the one that only the database's owner can reach. The peer that gRPC
    names would not tell: behind a native server, calls of the network come over a Unix socket too.
    """

    def __init__(self, server: grpc.aio.Server, door: Door, *, local: bool = False) -> None:
        self._server = server
        self._door = door
        self._local = local

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Nothing: generated code registers everything twice, for servers that know one way."""

    def add_registered_method_handlers(
        self, service: str, handlers: dict[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """The service's methods, each behind the edge."""
        wrapped = {
            name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()
        }
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrap(self, method: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        def parse(data: bytes) -> Any:
            # An error raised here would reach the client as gRPC's own INTERNAL.
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return _Malformed()

        door, local = self._door, self._local
        message = _request_of(method)
        if handler.unary_unary is not None:

            async def unary(request: Any, context: Context) -> Any:
                call = _Call(method, context, local=local)
                try:
                    door.enter(context)
                    call.check_names(message)
                    answer = await handler.unary_unary(_sound(request), context)
                except BaseException as error:
                    await call.failed(error)
                    raise
                call.succeeded()
                return answer

            return grpc.unary_unary_rpc_method_handler(unary, parse, handler.response_serializer)

        @asynccontextmanager
        async def called(context: Context) -> AsyncIterator[None]:
            call = _Call(method, context, local=local)
            try:
                door.enter(context)
                call.check_names(message)
                yield
            except BaseException as error:
                await call.failed(error)
                raise
            call.succeeded()

        if handler.unary_stream is not None:

            async def told(request: Any, context: Context) -> AsyncIterator[Any]:
                async with called(context):
                    sound = _sound(request)
                    async with aclosing(handler.unary_stream(sound, context)) as answers:
                        async for answer in answers:
                            yield answer

            return grpc.unary_stream_rpc_method_handler(told, parse, handler.response_serializer)

        async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async def sound() -> AsyncIterator[Any]:
                # Not an expression: that would begin to read, and a refused call is never read.
                async for request in door.read(requests):
                    yield _sound(request)

            async with (
                called(context),
                aclosing(handler.stream_stream(sound(), context)) as answers,
            ):
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(stream, parse, handler.response_serializer)


class _Malformed:
    """In the place of a message whose bytes are no protobuf of its type."""


def _sound(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidField("the request is malformed: a text is not UTF-8, or an object no text")
    return request


class _Call:
    """One call under way: who calls, its id, its log line, and the end of whatever it raises."""

    __slots__ = ("_began", "_context", "_method", "key", "local", "metadata", "request_id")

    def __init__(self, method: str, context: Context, *, local: bool) -> None:
        self._method, self._context, self.local = method, context, local
        self._began = time.perf_counter()
        # gRPC makes it anew each time it is asked.
        self.metadata: Iterable[tuple[str, str]] = context.invocation_metadata() or ()  # type: ignore[assignment] # pairs
        self.request_id = _request_id(self.metadata)
        self.key: str | None = None  #: Of the caller, once known.
        _call.set(self)

    def check_names(self, message: Descriptor) -> None:
        """Raises a Refusal where the proxy says that a body has names which the message has not."""
        for name, value in self.metadata:
            if name == NAMES_HEADER:
                check(message, value)

    def succeeded(self) -> None:
        """Its line in the log."""
        line = log.bind()  # once, for what is asked of it here; the level may change under way
        if line.is_enabled_for(logging.INFO):
            line.info("call", code="OK", **self._line())

    async def failed(self, error: BaseException) -> None:
        """Its line, and its end as clients know it: raises gRPC's, or returns."""
        if isinstance(error, Refusal):
            log.info("call", code=error.kind.grpc_code, reason=error.reason, **self._line())
            await _abort(self._context, error, self.request_id)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            log.info("call", code="CANCELLED", **self._line())
        elif isinstance(error, grpc.aio.AbortError):
            log.info("call", code="ABORTED", **self._line())
        else:
            log.error("call", code="INTERNAL", exc_info=error, **self._line())
            await _abort(self._context, unforeseen(self.request_id), self.request_id)

    def _line(self) -> dict[str, object]:
        line: dict[str, object] = {"method": self._method, "request_id": self.request_id}
        if self.key is not None:
            line["key"] = self.key
        line["duration_ms"] = round((time.perf_counter() - self._began) * 1000, 1)
        return line


def _request_of(method: str) -> Descriptor:
    """The type of the RPC's requests; `method` is its path."""
    found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    return found.input_type


def _request_id(metadata: Iterable[tuple[str, str]]) -> str:
    """The id the proxy gave the request, or a fresh one."""
    given = ""
    for name, value in metadata:
        if name == "x-request-id":
            given = value
    return given if _REQUEST_ID.fullmatch(given) else f"req_{_numbers.getrandbits(128):032x}"


def unforeseen(request_id: str) -> Internal:
    """What a client is told of a bug."""
    return Internal(f"internal error; the operator finds it in the log as {request_id}")


def current_header(name: str) -> str | None:
    """A header of the call under way, over gRPC its metadata; the last one where there are several.

    `name` is in lower case.
    """
    found = None
    for one, value in _call.get().metadata:
        if one == name:
            found = value
    return found


def current_request_id() -> str:
    """The id of the call under way."""
    return _call.get().request_id
