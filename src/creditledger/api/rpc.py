"""How an RPC is put together.

The order of checks is key, scope, shape; the method checks the rest. `Boundary` is around every
method. It lets a call in only with a key of the scope that `rpc` names for the method. It turns a
Refusal into a status with details, and any other error into INTERNAL without text. It writes one
line of the log for each call.
"""

import asyncio
import functools
import logging
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from sqlalchemy import Connection

from creditledger.api import intents
from creditledger.api.auth import Caller, Callers
from creditledger.api.concurrency import Turns
from creditledger.api.door import Door
from creditledger.api.field_names import FieldNames, rename
from creditledger.api.methods import Methods
from creditledger.api.names import NAMES_HEADER, check
from creditledger.api.status import Context, abort, unforeseen
from creditledger.domain.errors import InvalidField, Overloaded, Refusal
from creditledger.domain.registry import Scope
from creditledger.store import Store, change_keys
from creditledger.store.change_keys import Intent, Kept, Made
from creditledger.telemetry import spans
from creditledger.telemetry.measures import Measures

if TYPE_CHECKING:
    from creditledger.telemetry.traces import Traces

log = structlog.get_logger()

M = TypeVar("M")
P = TypeVar("P")
R = TypeVar("R")

#: The last message of a file that breaks off. It is no message of any type, so the proxy's
#: transcoder fails and resets the client's stream. Without it a REST client sees a normal end.
BROKEN = b"\xff\xff\xff"
#: The proxy gives it to calls that came over REST. A gRPC client that sends it spoils only the
#: error of its own call.
REST_HEADER = "x-envoy-original-path"
#: How long a piece of a stream may lie unread by its client.
UNREAD_SECONDS_MAX = 60.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

#: For the ids of requests: nobody gains by guessing one, so the system is asked only once.
_numbers = random.Random()  # noqa: S311 # as said
_call: ContextVar["_RpcCall"] = ContextVar("call")


class Service:
    """The base of every service: it knows the caller of a call and makes a change once."""

    def __init__(self, *, store: Store, callers: Callers, clock: Callable[[], int]) -> None:
        self.callers = callers
        self._store = store
        self._clock = clock

    async def still_there(self) -> Caller:
        """The caller of a call that lasts. Raises KeyInvalid if the key ended meanwhile."""
        call = _call.get()
        return await self.callers.identify(call.metadata, local=call.local)

    async def _once(
        self,
        change: Callable[[Connection], R],
        again: Callable[[Connection, Kept], R],
        subject: Callable[[R], str],
        answer: Callable[[R], str | None] = lambda _: None,
    ) -> Made[R]:
        """The call's change as one write transaction, with its idempotency key if it has one.

        See `change_keys.once`, and `Store.write` for what it raises besides.
        """
        intent = current_intent(self._clock())
        return await self._store.write(
            lambda c: change_keys.once(c, intent, change, again, subject, answer)
        )


def rpc(
    shape: Callable[[Any], P],
    *,
    scope: Scope,
    shared: bool = False,
    names: FieldNames = MappingProxyType({}),
) -> Callable[
    [Callable[[Any, P, Caller], Awaitable[M]]], Callable[[Any, Any, Context], Awaitable[M]]
]:
    """A unary RPC of a `Service`, for callers of at least `scope`: `shape` checks the message.

    `shared`: it changes something that live and test mode share, so a test key may not call it.
    `names`: what the message calls attributes that the method's refusals name, see `field_names`.
    The method takes what `shape` answered and the caller, and answers the response message.
    """

    def decorate(
        method: Callable[[Any, P, Caller], Awaitable[M]],
    ) -> Callable[[Any, Any, Context], Awaitable[M]]:
        @functools.wraps(method)
        async def handler(self: Service, request: Any, context: Context) -> M:
            asked = shape(request)
            try:
                return await method(self, asked, current_caller())
            except Refusal as refusal:
                if names:
                    rename(refusal, names)
                raise

        handler.scope = scope  # type: ignore[attr-defined] # for the boundary
        handler.shared = shared  # type: ignore[attr-defined] # as well
        return handler

    return decorate


def rpc_of_nobody(
    shape: Callable[[Any], P],
) -> Callable[[Callable[[Any, P], Awaitable[M]]], Callable[[Any, Any, Context], Awaitable[M]]]:
    """As `rpc`, of one that needs no key: what it asks for is in the message.

    A key that comes with the call is not looked at, and the method gets no caller.
    """

    def decorate(
        method: Callable[[Any, P], Awaitable[M]],
    ) -> Callable[[Any, Any, Context], Awaitable[M]]:
        @functools.wraps(method)
        async def handler(self: Service, request: Any, _: Context) -> M:
            return await method(self, shape(request))

        handler.scope, handler.shared = None, False  # type: ignore[attr-defined] # as in `rpc`
        return handler

    return decorate


def rpc_stream(
    shape: Callable[[Any], P], *, scope: Scope, whole: bool = False
) -> Callable[
    [Callable[[Any, P, Caller], AsyncGenerator[M]]],
    Callable[[Any, Any, Context], AsyncIterator[M]],
]:
    """As `rpc`, of one that answers a stream of messages.

    `whole`: the messages are pieces of a file, which is of use only as a whole. If it breaks off,
    the proxy resets a REST client's stream.
    """

    def decorate(
        method: Callable[[Any, P, Caller], AsyncGenerator[M]],
    ) -> Callable[[Any, Any, Context], AsyncIterator[M]]:
        @functools.wraps(method)
        async def handler(
            self: Service,
            request: Any,
            context: Context,
        ) -> AsyncIterator[M]:
            async with aclosing(method(self, shape(request), current_caller())) as answers:
                async for answer in answers:
                    yield answer

        handler.scope, handler.shared = scope, False  # type: ignore[attr-defined] # as in `rpc`
        handler.whole = whole  # type: ignore[attr-defined] # as well
        return handler

    return decorate


class Boundary:
    """The edge between the services and gRPC: who may call, errors, request ids, the log.

    Services register with it as with a server. It wraps each method once, since an interceptor
    would cost at every call. Messages arrive as bytes and are parsed once the caller is known.

    A unary method is a stream handler for gRPC: it asks for the message once the caller is known,
    so that what a stranger sends stays where the flow control of HTTP/2 stops it.

    `local`: its server is the one that only the database's owner can reach. `turns`: calls of one
    customer that go on at the same time: they read, and the connections that read are everybody's.
    """

    def __init__(
        self,
        methods: Methods,
        door: Door,
        callers: Callers,
        measures: Measures,
        traces: "Traces | None" = None,
        *,
        local: bool = False,
        turns: int = 1,
    ) -> None:
        self._measures = measures
        self._traces = traces
        self._methods = methods
        self._turns = Turns(turns)
        self._door = door
        self._callers = callers
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
        self._methods.add_registered_method_handlers(service, wrapped)

    def _wrap(self, method: str, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        serializer = handler.response_serializer
        if handler.unary_unary is not None:
            unary = self._unary(method, handler)
            return grpc.stream_unary_rpc_method_handler(unary, None, serializer)
        if handler.unary_stream is not None:
            told = self._told(method, handler)
            serializer = _unless_bytes(serializer)
            return grpc.stream_stream_rpc_method_handler(told, None, serializer)
        return grpc.stream_stream_rpc_method_handler(
            self._streams(method, handler), None, serializer
        )

    def _unary(self, method: str, handler: Any) -> Any:
        door, local, answered = self._door, self._local, handler.unary_unary
        measures, traces = self._measures, self._traces
        described = intents.method(method)
        message, is_change = described.input_type, intents.is_change(described)

        async def unary(_: Any, context: Context) -> Any:
            call = _RpcCall(method, context, measures, traces, local=local)
            try:
                door.enter(context)
                caller = await self._admit(call, answered)
                key = call.check_names(message)
                request = _parse(handler, await self._message(context))
                call.asked = described, request
                if key and is_change:
                    intents.take(described, request, key)
                async with self._turns.one(None if caller is None else caller.customer_id):
                    answer = await answered(request, context)
            except BaseException as error:
                if await call.was_told(error):
                    return None
                raise
            finally:
                # gRPC keeps the call in memory for a while.
                call.asked = None
            call.succeeded()
            return answer

        return unary

    def _told(self, method: str, handler: Any) -> Any:
        message = intents.method(method).input_type

        async def told(context: Context) -> AsyncGenerator[Any]:
            async with self._called(method, message, handler.unary_stream, context) as call:
                request = _parse(handler, await self._message(context))
                try:
                    async with aclosing(handler.unary_stream(request, context)) as answers:
                        async for answer in answers:
                            # A key that ended meanwhile gets no more of the answer.
                            await self._callers.identify(call.metadata, local=call.local)
                            call.answering = True
                            yield answer
                except Exception:
                    if call.answering and handler.unary_stream.whole and call.is_rest():
                        yield BROKEN
                    raise

        async def read_in_time(_: Any, context: Context) -> None:
            async with aclosing(told(context)) as answers:
                async for answer in answers:
                    writing = asyncio.ensure_future(context.write(answer))
                    try:
                        await asyncio.wait([writing], timeout=UNREAD_SECONDS_MAX)
                        if not writing.done():
                            # Its place goes to others. It is told if it ever reads on.
                            await answers.aclose()
                            await writing
                            if handler.unary_stream.whole and _call.get().is_rest():
                                await context.write(BROKEN)
                            await abort(context, _unread(), current_request_id())
                        await writing
                    finally:
                        writing.cancel()

        return read_in_time

    def _streams(self, method: str, handler: Any) -> Any:
        message = intents.method(method).input_type

        async def streams(given: Any, context: Context) -> AsyncIterator[Any]:
            async def requests() -> AsyncIterator[Any]:
                async for data in self._door.read(given):
                    yield _parse(handler, data)

            async with self._called(method, message, handler.stream_stream, context):
                if current_header(intents.HEADER_NAME) is not None:
                    intents.refuse_header()
                async with aclosing(handler.stream_stream(requests(), context)) as answers:
                    async for answer in answers:
                        yield answer

        return streams

    @asynccontextmanager
    async def _called(
        self, method: str, message: Descriptor, answered: Any, context: Context
    ) -> AsyncIterator["_RpcCall"]:
        """A call that is answered by a stream."""
        call = _RpcCall(method, context, self._measures, self._traces, local=self._local)
        try:
            self._door.enter(context)
            await self._admit(call, answered)
            call.check_names(message)
            yield call
        except BaseException as error:
            if await call.was_told(error):
                return
            raise
        call.succeeded()

    async def _admit(self, call: "_RpcCall", answered: Any) -> Caller | None:
        """The caller, if it may; None where the RPC needs none.

        Raises KeyMissing, KeyInvalid, ScopeDenied, ModeMismatch.
        """
        if answered.scope is None:
            return None
        caller = await self._callers.identify(call.metadata, local=call.local)
        call.key = caller.id
        caller.require(answered.scope)
        if answered.shared:
            caller.require_live()
        call.caller = caller
        return caller

    async def _message(self, context: Context) -> bytes:
        """The one message of a call, as it came."""
        data = await self._door.wait_for(context.read)
        if not isinstance(data, bytes):
            raise InvalidField("the call has no message")
        return data


def _parse(handler: Any, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError:
        raise InvalidField(
            "the request is malformed: a text is not UTF-8, or an object no text"
        ) from None


class _RpcCall:
    """One call under way: who calls, its id, its log line, and the end of whatever it raises."""

    __slots__ = (
        *("_began", "_context", "_measures", "_method", "_span"),
        *("answering", "asked", "caller", "key", "local", "metadata", "request_id"),
    )

    def __init__(
        self,
        method: str,
        context: Context,
        measures: Measures,
        traces: "Traces | None",
        *,
        local: bool,
    ) -> None:
        self._method, self._context, self.local = method, context, local
        self._measures = measures
        self._began = time.perf_counter()
        # Kept here: gRPC builds the metadata anew at each call of this method.
        self.metadata: Iterable[tuple[str, str]] = context.invocation_metadata() or ()  # type: ignore[assignment] # pairs
        self.request_id = _request_id(self.metadata)
        self.key: str | None = None  #: Of the caller, once known.
        self.caller: Caller | None = None  #: Once let in.
        self.answering = False  #: Whether a part of the answer has left: headers, or a message.
        self.asked: tuple[MethodDescriptor, Message] | None = None  #: Once read.
        work = (
            spans.UnderWay(self.request_id)
            if traces is None
            else traces.call(method, self.metadata, self.request_id)
        )
        spans.begin(work)
        self._span = work.span
        _call.set(self)

    def check_names(self, message: Descriptor) -> list[str]:
        """Raises a Refusal where the proxy says that a body has names which the message has not.

        Answers the header of the idempotency key, each time it is there.
        """
        keys = []
        for name, value in self.metadata:
            if name == NAMES_HEADER:
                check(message, value)
            elif name == intents.HEADER_NAME:
                keys.append(value)
        return keys

    async def send_headers(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Headers of its answer."""
        self.answering = True
        await self._context.send_initial_metadata(headers)

    def is_rest(self) -> bool:
        """Whether the call came to the proxy over REST."""
        return any(name == REST_HEADER for name, _ in self.metadata)

    def succeeded(self) -> None:
        """Its line in the log."""
        seconds = self._ended("OK")
        line = log.bind()  # once, for what is asked of it here; the level may change under way
        if line.is_enabled_for(logging.INFO):
            line.info("call", code="OK", **self._line(seconds))

    async def was_told(self, error: BaseException) -> bool:
        """Its line, and its end as clients know it; False where nobody is left to be told.

        What was refused is let go of here: gRPC keeps the call in memory for a while, and what an
        error knows of its frames would keep their request with it.
        """
        if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.AbortError):
            code = "ABORTED" if isinstance(error, grpc.aio.AbortError) else "CANCELLED"
            log.info("call", code=code, **self._line(self._ended(code)))
            return False
        if isinstance(error, Refusal):
            code, refusal = error.kind.grpc_code, error
            line = self._line(self._ended(code, error.reason))
            log.info("call", code=code, reason=error.reason, **line)
        else:
            line = self._line(self._ended("INTERNAL", "INTERNAL"))
            log.error("call", code="INTERNAL", exc_info=error, **line)
            refusal = unforeseen(self.request_id)
        self._measures.refused(refusal.reason)
        try:
            await abort(self._context, refusal, self.request_id)
        except grpc.aio.AbortError as aborted:
            # gRPC raises it again when the handler has returned.
            forget_frames(aborted)
        forget_frames(error)
        return True

    def _ended(self, code: str, reason: str | None = None) -> float:
        """Count it, and end its span; how many seconds it took."""
        seconds = time.perf_counter() - self._began
        self._measures.called(self._method, code, seconds)
        if self._span is not None:
            self._span.note("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
            self._span.end(reason)
        return seconds

    def _line(self, seconds: float) -> dict[str, object]:
        line: dict[str, object] = {"method": self._method, "request_id": self.request_id}
        if self.key is not None:
            line["key"] = self.key
        line["duration_ms"] = round(seconds * 1000, 1)
        return line


def _unless_bytes(serializer: Any) -> Any:
    """A serializer that passes bytes on unchanged."""
    return lambda answer: answer if type(answer) is bytes else serializer(answer)


def _request_id(metadata: Iterable[tuple[str, str]]) -> str:
    """The id the proxy gave the request, or a fresh one."""
    given = ""
    for name, value in metadata:
        if name == "x-request-id":
            given = value
    return given if _REQUEST_ID.fullmatch(given) else f"req_{_numbers.getrandbits(128):032x}"


def _unread() -> Refusal:
    """The refusal for a stream whose client read nothing for too long."""
    return Overloaded(
        f"nothing of the stream was read for {UNREAD_SECONDS_MAX:g} s", retry_after="1"
    )


def forget_frames(error: BaseException | None) -> None:
    """Part the error, and what it came of, from the frames that it passed."""
    while error is not None:
        error.__traceback__ = None
        came_of, error.__cause__, error.__context__ = (
            error.__cause__ or error.__context__,
            None,
            None,
        )
        error = came_of


def current_caller() -> Caller:
    """The caller of the call under way."""
    caller = _call.get().caller
    assert caller is not None, "an RPC that needs no key asks for no caller"
    return caller


def current_intent(now: int) -> Intent | None:
    """The change that the call under way asks for under its key; None where it has none.

    For a change of a wallet the key is the wallet's, and not this. Raises InvalidField.
    """
    call = _call.get()
    assert call.asked is not None, "what was read is kept"
    return intents.intent(*call.asked, current_caller(), now)


def current_header(name: str) -> str | None:
    """A header of the call under way, over gRPC its metadata; the last one where there are several.

    `name` is in lower case.
    """
    found = None
    for one, value in _call.get().metadata:
        if one == name:
            found = value
    return found


async def send_headers(*headers: tuple[str, str]) -> None:
    """Headers of the answer to the call under way; over gRPC they are initial metadata.

    The last thing before the answer: an error behind it reaches REST without its own headers.
    """
    await _call.get().send_headers(headers)


def current_request_id() -> str:
    """The id of the call under way."""
    return _call.get().request_id
