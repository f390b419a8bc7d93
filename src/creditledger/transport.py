"""What RPCs come through: one gRPC server for the network, one for the database's owner.

They are two so that who calls is known by where the call came in, not by what the transport says
of its peer. The network's is grpcio's or pygrpc-native's (HTTP/2 in Rust, outside the GIL), by the
setting `transport`; the owner's is always grpcio's. Called by `server`.
"""

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import grpc

from creditledger.api.rpc import Boundary
from creditledger.config import Transport

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


def is_installed(transport: Transport) -> bool:
    """Whether it can be used here: there is no pygrpc-native for every platform."""
    return transport == "grpcio" or find_spec("pygrpc_native") is not None


def network(transport: Transport) -> grpc.aio.Server:
    """A server for whoever has a key. It takes one port, and as `native` no TLS."""
    if transport == "native":
        import pygrpc_native.aio  # noqa: PLC0415 # there is none for every platform

        return pygrpc_native.aio.server(interceptors=[Boundary()], options=_OPTIONS)
    return grpc.aio.server(interceptors=[Boundary()], options=_OPTIONS)


def local() -> grpc.aio.Server:
    """A server for the database's owner: an admin without a key."""
    return grpc.aio.server(interceptors=[Boundary(local=True)], options=_OPTIONS)


async def stop(servers: Sequence[grpc.aio.Server], grace_seconds: float) -> None:
    """Take no new call, and end when those under way have, or after the grace."""
    first, *others = servers
    # The first one's begins at once, in the same turn of the loop as whatever said that it would:
    # clients who hear of it would otherwise find a server that is about to cancel them.
    ending = [asyncio.ensure_future(server.stop(grace_seconds)) for server in others]
    await first.stop(grace_seconds)
    await asyncio.gather(*ending)
