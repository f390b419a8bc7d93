"""What RPCs come through: one gRPC server for the network, one for the database's owner.

They are two so that who calls is known by where the call came in, not by what the transport says
of its peer. The network's is grpcio's or pygrpc-native's (HTTP/2 in Rust, outside the GIL), by the
setting `transport`; the owner's is always grpcio's. What the two do differently is in
docs/decisions/0013-transport.md. Called by `server`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import grpc

from creditledger.api.rpc import Boundary
from creditledger.config import Transport
from creditledger.errors import Unavailable

#: How long the last answers may take from Python to the client's socket.
FLUSH_SECONDS = 0.2

_OPTIONS: list[tuple[str, Any]] = [
    # A second server on the port must fail, not take half of its connections.
    ("grpc.so_reuseport", 0),
    # As much as Envoy lets in: 1,000 postings with what they may carry.
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    # Envoy passes the query string on as metadata: what it lets in must reach our own limits.
    ("grpc.max_metadata_size", 256 * 1024),
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    # Streams on one connection; Envoy's share of them is in envoy.yaml.
    ("grpc.max_concurrent_streams", 1024),
    # Clients gone without a word are noticed; clients may ask as often, calls under way or not.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


@dataclass(frozen=True, slots=True)
class Entrance:
    """A server, not yet started, and how to end it."""

    server: grpc.aio.Server
    #: Of a server that drops its connections as soon as its handlers are done.
    door: "Door | None" = None

    async def stop(self, grace_seconds: float) -> None:
        """Take no new call, and end when those under way have, or after the grace."""
        if self.door is not None:
            began = asyncio.get_running_loop().time()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self.door.close()
                    await asyncio.sleep(FLUSH_SECONDS)
            grace_seconds -= asyncio.get_running_loop().time() - began
        await self.server.stop(max(0.0, grace_seconds))


def is_installed(transport: Transport) -> bool:
    """Whether it can be used here: there is no pygrpc-native for every platform."""
    return transport == "grpcio" or find_spec("pygrpc_native") is not None


def network(transport: Transport) -> Entrance:
    """For whoever has a key. It takes one port, and as `native` no TLS."""
    if transport == "grpcio":
        return Entrance(grpc.aio.server(interceptors=[Boundary()], options=_OPTIONS))
    import pygrpc_native.aio  # noqa: PLC0415 # there is none for every platform

    door = Door()
    native = pygrpc_native.aio.server(interceptors=[Boundary(), door], options=_OPTIONS)
    return Entrance(native, door)


def local() -> Entrance:
    """For the database's owner: an admin without a key."""
    return Entrance(grpc.aio.server(interceptors=[Boundary(local=True)], options=_OPTIONS))


class Door(grpc.aio.ServerInterceptor):
    """Inside `Boundary`: knows how many calls are under way, and once closed refuses new ones."""

    def __init__(self) -> None:
        self._under_way = 0
        self._closed = False
        self._empty = asyncio.Event()

    async def close(self) -> None:
        """Refuse new calls; end when none of the ledger's is under way."""
        self._closed = True
        if self._under_way:
            await self._empty.wait()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Count the ledger's calls. Health and reflection may come while they last."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler_call_details.method.startswith("/credit."):
            return self._counted(handler)
        if self._closed and handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(_refuse)
        return handler

    def _counted(self, handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
        coded = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary is not None:

            async def unary(request: Any, context: Any) -> Any:
                with self._one():
                    return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, *coded)

        async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            with self._one():
                async with aclosing(handler.stream_stream(requests, context)) as answers:
                    async for answer in answers:
                        yield answer

        return grpc.stream_stream_rpc_method_handler(stream, *coded)

    @contextmanager
    def _one(self) -> Iterator[None]:
        if self._closed:
            raise Unavailable("the server is shutting down")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if self._closed and not self._under_way:
                self._empty.set()


async def _refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")


async def stop(entrances: list[Entrance], grace_seconds: float) -> None:
    """Stop them together."""
    first, *others = entrances
    # The first one's begins at once, in the same turn of the loop as whatever said that it would:
    # clients who hear of it would otherwise find a server that is about to cancel them.
    ending = [asyncio.ensure_future(entrance.stop(grace_seconds)) for entrance in others]
    await first.stop(grace_seconds)
    await asyncio.gather(*ending)
