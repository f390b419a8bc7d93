"""What RPCs come through: one gRPC server for the network, one for the database's owner.

There are two servers so that the entrance of a call tells its caller; what gRPC says of its peer
is not trusted. Why both are grpcio's is in docs/decisions/0013-transport.md.
"""

import asyncio
import ctypes
import os
import socket
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from creditledger.api.auth import Callers
from creditledger.api.door import Door
from creditledger.api.methods import Methods
from creditledger.api.rpc import Boundary
from creditledger.ops.config import CannotStart, Config, spelled
from creditledger.ops.sockets import require_private, target
from creditledger.telemetry.measures import Measures

if TYPE_CHECKING:
    from creditledger.telemetry.traces import Traces

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
    # Of calls that wait to be read, some are dropped above the first and all above the second, with
    # no word why. 7 kB each; the ledger's own queue, which says why, is to be full before.
    ("grpc.server.max_pending_requests", 10_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    # Clients gone without a word are noticed; clients may ask as often, calls under way or not.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


@dataclass(slots=True)
class Entrance:
    """A server, not yet started, and how to end it."""

    server: grpc.aio.Server
    methods: Methods
    boundary: Boundary  #: Where the ledger's services are registered.
    door: Door
    #: Where it listens, once it does; None for a socket of the file system.
    port: int | None = None

    def listen(self, config: Config) -> str:
        """Take calls at the setting's address; host:port with the real port. Raises CannotStart."""
        try:
            if config.tls_certificate is None or config.tls_key is None:
                self.port = self.server.add_insecure_port(config.grpc_address)
            else:
                pair = config.tls_key.read_bytes(), config.tls_certificate.read_bytes()
                credentials = grpc.ssl_server_credentials([pair])
                self.port = self.server.add_secure_port(config.grpc_address, credentials)
        except (RuntimeError, OSError):
            # The port was free a moment ago, so it is the certificate, if there is one.
            name = "grpc_address" if config.tls_certificate is None else "tls_certificate"
            value = getattr(config, name)
            raise CannotStart(f"{spelled(name)}: {value} cannot be used.") from None
        host, _, _ = config.grpc_address.rpartition(":")
        return f"{host}:{self.port}"

    def listen_privately(self, path: Path) -> None:
        """Take calls of this user through the Unix socket. Raises CannotStart."""
        # The file is made with the mode that it keeps: there is no moment in which others may in.
        require_private(path)
        before = os.umask(0o177)
        try:
            self.server.add_insecure_port(target(path))
        except RuntimeError as error:
            raise CannotStart(f"The socket {path} cannot be made: {error}") from None
        finally:
            os.umask(before)

    async def stop(self, grace_seconds: float, refusing_seconds: float) -> None:
        """Take no new call, and end when those under way have, or after the grace.

        `refusing_seconds`: for so long new calls are told so, before the connections end.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self.door.close()
                await asyncio.sleep(refusing_seconds)
        if self.port is not None:
            hang_up(self.port)
        await self.server.stop(None)


def local_channel(path: Path) -> grpc.aio.Channel:
    """A channel to the server behind the Unix socket, with the rights of an admin."""
    require_private(path)
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    return grpc.aio.insecure_channel(target(path), options=options)


def network(
    callers: Callers, measures: Measures, traces: "Traces | None", *, turns: int
) -> Entrance:
    """For those with a key; `turns` as of `Boundary`. It takes one port."""
    return _entrance(callers, measures, traces, turns=turns)


def local(callers: Callers, measures: Measures, traces: "Traces | None") -> Entrance:
    """For the database's owner: an admin without a key."""
    return _entrance(callers, measures, traces, local=True)


def _entrance(
    callers: Callers,
    measures: Measures,
    traces: "Traces | None",
    *,
    local: bool = False,
    turns: int = 1,
) -> Entrance:
    server, door, methods = grpc.aio.server(options=_OPTIONS), Door(), Methods()
    server.add_generic_rpc_handlers([methods])
    boundary = Boundary(methods, door, callers, measures, traces, local=local, turns=turns)
    return Entrance(server, methods, boundary, door)


async def stop(entrances: list[Entrance], grace_seconds: float, refusing_seconds: float) -> None:
    """Stop them together."""
    first, *others = entrances
    # The first stop begins at once, in the same turn of the loop as the announcement of the stop: a
    # client that reads it would otherwise find a server that is about to end.
    ending = [asyncio.ensure_future(one.stop(grace_seconds, refusing_seconds)) for one in others]
    await first.stop(grace_seconds, refusing_seconds)
    await asyncio.gather(*ending)


# A filter of packets of one instruction: drop it.
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_SO_ATTACH_FILTER = 26


def hang_up(port: int) -> None:
    """End every connection that this process has accepted on the TCP port, and take no other.

    A call that meets a server of grpcio in the moment of its stop is told CANCELLED, as if its
    caller had given it up; whose connection ends is told UNAVAILABLE. Does nothing but on Linux.
    """
    for entry in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            with _Borrowed(fileno=int(entry.name)) as one:
                if one.type != socket.SOCK_STREAM or one.getsockname()[1:2] != (port,):
                    continue
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    # To shut this one would do too, but gRPC would complain of it in the log.
                    program = struct.pack("HP", 1, ctypes.addressof(_DROP))
                    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
                else:
                    one.shutdown(socket.SHUT_RDWR)


class _Borrowed(socket.socket):
    """A socket that gRPC closes."""

    def __exit__(self, *_: object) -> None:
        self.detach()
