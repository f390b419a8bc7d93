"""The process: store, ledger and services put together behind one gRPC server.

`build` makes a `Server` from the settings, `serve` runs one until it is told to stop, and
`local_channel` is how a command of this machine reaches the ledger, whether a server runs or not.
"""

import asyncio
import contextlib
import errno
import gc
import hashlib
import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import structlog
from credit.v1 import (
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    billing_service_pb2,
    billing_service_pb2_grpc,
    clock_service_pb2,
    clock_service_pb2_grpc,
    credit_grant_service_pb2,
    credit_grant_service_pb2_grpc,
    credit_transaction_service_pb2,
    credit_transaction_service_pb2_grpc,
    payment_kit_service_pb2,
    payment_kit_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    statement_service_pb2,
    statement_service_pb2_grpc,
    wallet_service_pb2,
    wallet_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sqlalchemy import Connection

from creditledger import store
from creditledger.api.auth import Callers
from creditledger.domain import clock as time
from creditledger.domain.errors import Refusal
from creditledger.engine.clock_watch import ClockWatch
from creditledger.engine.ledger import Ledger
from creditledger.ops import transport
from creditledger.ops.background import Unasked
from creditledger.ops.config import Config, WrongSetting, host_and_port, spelled
from creditledger.outlets.exports.stream import Exports
from creditledger.outlets.watches import Watches
from creditledger.store import CannotOpen, DatabaseLocked, Store, migrations
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.read import commit_order
from creditledger.store.sealing import Seal
from creditledger.store.webhooks import endpoints
from creditledger.surfaces.billing.service import BillingService
from creditledger.surfaces.credit_transactions.service import CreditTransactionService
from creditledger.surfaces.native.api_key_service import ApiKeyService
from creditledger.surfaces.native.clock_service import ClockService
from creditledger.surfaces.native.credit_grant_service import CreditGrantService
from creditledger.surfaces.native.registry_service import RegistryService
from creditledger.surfaces.native.statement_service import StatementService
from creditledger.surfaces.native.wallet_service import WalletService
from creditledger.surfaces.native.webhook_service import WebhookService
from creditledger.surfaces.payment_kit.service import PaymentKitService

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is none for this platform
    from asyncio import new_event_loop

log = structlog.get_logger()

T = TypeVar("T")

#: A Unix socket's address holds 108 bytes, and less on other systems.
SOCKET_BYTES_MAX = 100
#: How long a command waits for the holder of the database to answer or to let go of it.
LOCAL_WAIT_SECONDS_MAX = 10.0
#: What a stop may take beyond the drain: the queue, the last commit, folding the journal.
CLOSE_SECONDS_MAX = 20.0
#: How long a process that stops refuses calls before it ends the connections: a load
#: balancer hears of it by a clean answer, and asks another server.
REFUSING_SECONDS = 0.3

#: New objects before the collector looks through them, about a full batch's worth; and how often
#: it does before it looks through older ones too.
GC_THRESHOLDS = 50_000, 10, 10

#: How folders for sockets begin, in the folder for temporary files.
_FOLDER = "creditledger-"

#: Every RPC of the contract, by service; what reflection and health speak of.
SERVICES = tuple(
    service.full_name
    for module in (
        api_key_service_pb2,
        billing_service_pb2,
        clock_service_pb2,
        credit_grant_service_pb2,
        credit_transaction_service_pb2,
        payment_kit_service_pb2,
        registry_service_pb2,
        statement_service_pb2,
        wallet_service_pb2,
        webhook_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)


class CannotStart(Exception):
    """The server, or a command, cannot begin. Its text is one sentence for the operator."""


def build(
    config: Config,
    *,
    clock: Callable[[], int] | None = None,
    elapsed: Callable[[], int] | None = None,
    local_only: bool = False,
) -> "Server":
    """A server that does nothing yet. `local_only`: it takes calls through its socket alone.

    `clock`: for tests; by default this machine's, and a database server's own where there is one.
    `elapsed`: for tests too, what guards the clock; without it, a clock that is given is right.
    """
    return Server(config, clock=clock, elapsed=elapsed, local_only=local_only)


class Server:
    """One process's ledger: the database, the committer, and gRPC in front of it."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] | None,
        elapsed: Callable[[], int] | None,
        local_only: bool,
    ) -> None:
        self._config = config
        given = clock is not None
        #: Every service and task of this process takes its time from here.
        self.clock = LedgerClock(
            clock if given else store.own_clock(config.database_url),
            elapsed if given else time.elapsed,
        )
        self._local_only = local_only
        self._closing = contextlib.AsyncExitStack()
        self._refusing_seconds = 0.0
        self._health = health.aio.HealthServicer()
        self._seal = Seal()
        #: Set when the disk failed: nothing that this process says can be relied on any more.
        self.failed = asyncio.Event()
        #: What it does unasked; None before it has started, and where it takes local calls alone.
        self.unasked: Unasked | None = None
        #: host:port where it listens, with the real port once it has started.
        self.grpc_address = config.grpc_address
        #: The Unix socket for commands of the database's owner; where it is nobody's business but
        #: this process's, it gets its place as it starts.
        self.local_socket = local_socket(config.path) if config.path else Path()

    async def start(self) -> None:
        """Open the database and serve.

        Raises CannotStart, WrongSetting, and DatabaseLocked where another process has the database.
        """
        if not self._local_only:
            self._config.require_safe_bind("grpc_address")
            require_free(self._config, "grpc_address")
            require_transport(self._config)
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise

    async def _start(self) -> None:
        config = self._config
        if config.path is not None and not config.path.is_file():
            raise CannotStart(f"There is no database at {config.path}: run `creditledger migrate`.")
        opened = Store(
            config.database_url,
            clock=self.clock,
            readers=config.readers,
            replica_url=config.read_database_url,
            on_disk_failure=self.failed.set,
        )
        self._closing.push_async_callback(opened.close)
        await require_schema(config)
        try:
            await opened.open()
        except CannotOpen as error:
            raise CannotStart(str(error)) from None
        self._seal = await _sealing(config, opened)
        self.watch = ClockWatch(opened, self.clock, idle_ms_max=config.clock_idle_days * time.DAY)
        try:
            await self.watch.begin()
        except Refusal as refusal:
            raise CannotStart(f"The clock cannot be checked: {refusal.message}.") from None
        self._closing.push_async_callback(self.watch.stop)
        self.watch.start()
        ledger = Ledger(
            opened,
            queue_max=config.queue_max,
            backdating_ms_max=config.backdating_days * time.DAY,
            returned_ms=config.refund_promotional_days * time.DAY,
            on_disk_failure=self.failed.set,
        )
        await ledger.start()
        self._closing.push_async_callback(ledger.close)
        if not self._local_only:
            self.unasked = Unasked(config, opened, ledger, self.clock, self._seal)
            self.unasked.start()
            self._closing.push_async_callback(self.unasked.stop)
        callers = Callers(opened, self.clock.now)
        local = transport.local(callers)
        entrances = [local]
        if not self._local_only:
            turns = max(1, config.readers // 4)
            entrances.insert(0, transport.network(config.transport, callers, turns=turns))
        self._register(entrances, opened, ledger, callers)
        self._closing.push_async_callback(self._drain, entrances)
        self._bind_local(local.server)
        if not self._local_only:
            host, _, _ = config.grpc_address.rpartition(":")
            entrances[0].port = self._listen(entrances[0].server)
            self.grpc_address = f"{host}:{entrances[0].port}"
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        for entrance in entrances:
            await entrance.server.start()

    async def _drain(self, entrances: list[transport.Entrance]) -> None:
        await self._health.enter_graceful_shutdown()
        await self.end_watches()
        # After a failure of the disk there is only the telling left.
        grace = 1.0 if self.failed.is_set() else self._config.drain_seconds
        await transport.stop(entrances, grace, self._refusing_seconds)

    async def end_watches(self) -> None:
        """Send watchers elsewhere, so that a proxy does not wait for their calls to end."""
        await self._watches.close()

    async def stop(self, *, refusing_seconds: float = 0.0) -> None:
        """Drain: say so, take no new call, finish those under way, commit, close.

        `refusing_seconds`: for so long new calls are told so, before the connections end.
        """
        self._refusing_seconds = refusing_seconds
        await self._closing.aclose()

    def _register(
        self, entrances: list[transport.Entrance], store: Store, ledger: Ledger, callers: Callers
    ) -> None:
        """Every service, the same objects behind each server: a key revoked at one is at all."""
        clock = self.clock.now
        wallets = WalletService(store=store, ledger=ledger, callers=callers, clock=clock)
        grants = CreditGrantService(store=store, ledger=ledger, callers=callers, clock=clock)
        exports = Exports(store, clock)
        self._watches = Watches(store)
        transactions = CreditTransactionService(
            store=store, callers=callers, exports=exports, watches=self._watches, clock=clock
        )
        billing = BillingService(
            store=store,
            callers=callers,
            exports=exports,
            clock=clock,
            bills_from=self._config.bills_from,
        )
        registry = RegistryService(store=store, callers=callers, clock=clock)
        kit = PaymentKitService(store=store, ledger=ledger, callers=callers, clock=clock)
        statements = StatementService(
            store=store,
            ledger=ledger,
            callers=callers,
            clock=clock,
            issuer=self._config.statement_issuer,
        )
        keys = ApiKeyService(store=store, callers=callers, clock=clock)
        webhook_endpoints = WebhookService(
            store=store,
            callers=callers,
            clock=clock,
            seal=self._seal,
            allow_private=self._config.webhook_allow_private,
            on_change=self.unasked.look_for_webhooks if self.unasked else lambda: None,
        )
        clocks = ClockService(watch=self.watch, callers=callers)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        for entrance in entrances:
            edge: Any = entrance.boundary  # a server, to what was generated
            wallet_service_pb2_grpc.add_WalletServiceServicer_to_server(wallets, edge)
            credit_grant_service_pb2_grpc.add_CreditGrantServiceServicer_to_server(grants, edge)
            credit_transaction_service_pb2_grpc.add_CreditTransactionServiceServicer_to_server(
                transactions, edge
            )
            billing_service_pb2_grpc.add_BillingServiceServicer_to_server(billing, edge)
            registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(registry, edge)
            payment_kit_service_pb2_grpc.add_PaymentKitServiceServicer_to_server(kit, edge)
            statement_service_pb2_grpc.add_StatementServiceServicer_to_server(statements, edge)
            api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server(keys, edge)
            webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server(webhook_endpoints, edge)
            clock_service_pb2_grpc.add_ClockServiceServicer_to_server(clocks, edge)
            # These answer every caller, to the end.
            health_pb2_grpc.add_HealthServicer_to_server(self._health, entrance.server)
            reflection.enable_server_reflection(names, entrance.server)

    def _bind_local(self, server: grpc.aio.Server) -> None:
        if self._local_only or self._config.path is None:
            # Nobody else's: who else looks for a server is not to find one that is about to end.
            folder = tempfile.TemporaryDirectory(prefix=_FOLDER)
            self._closing.callback(folder.cleanup)
            self.local_socket = Path(folder.name, "credit.sock")
        # The file is made with the mode that it keeps: there is no moment in which others may in.
        require_private(self.local_socket)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(target(self.local_socket))
        except RuntimeError as error:
            raise CannotStart(f"The socket {self.local_socket} cannot be made: {error}") from None
        finally:
            os.umask(before)

    def _listen(self, server: grpc.aio.Server) -> int:
        config = self._config
        try:
            if config.tls_certificate is None or config.tls_key is None:
                return server.add_insecure_port(config.grpc_address)
            pair = config.tls_key.read_bytes(), config.tls_certificate.read_bytes()
            return server.add_secure_port(config.grpc_address, grpc.ssl_server_credentials([pair]))
        except (RuntimeError, OSError):
            # The port was free a moment ago, so it is the certificate, if there is one.
            name = "grpc_address" if config.tls_certificate is None else "tls_certificate"
            value = getattr(config, name)
            raise CannotStart(f"{spelled(name)}: {value} cannot be used.") from None

    def local_channel(self) -> grpc.aio.Channel:
        """A channel to this server through its socket, with the rights of an admin."""
        return _channel(self.local_socket)


async def _sealing(config: Config, opened: Store) -> Seal:
    """What seals webhook secrets, once it is known that it opens those there are.

    Raises WrongSetting, CannotStart.
    """
    name = spelled("secrets_key_file")
    try:
        seal = Seal.read(config.secrets_key_file)
    except ValueError as error:
        raise WrongSetting(f"{name} {error}.") from None
    used = await opened.read(endpoints.sealing_keys)
    if not all(map(seal.knows, used)):
        raise CannotStart(f"Webhook secrets are sealed by a key that {name} does not hold.")
    if None in used and not seal.seals:
        log.warning("webhook secrets are in the database as they are", setting=name)
    elif None in used:
        log.warning("some webhook secrets are not sealed", command="creditledger secrets rotate")
    return seal


def local_socket(path: Path) -> Path:
    """Where the process that has the database at `path` takes its owner's calls.

    Beside it, or, where that is too long for a socket, in a folder of the owner's for such ones.
    """
    beside = Path(f"{path}.sock")
    if len(os.fsencode(beside)) <= SOCKET_BYTES_MAX:
        return beside
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"{_FOLDER}{os.getuid()}", f"{name}.sock")


def target(path: Path) -> str:
    """The Unix socket as gRPC spells it."""
    return f"unix:{quote(os.fsencode(path))}"


def require_private(path: Path) -> None:
    """Raises CannotStart unless the socket's folder is the database's or only its owner's."""
    folder = path.parent
    if folder.parent != Path(tempfile.gettempdir()) or not folder.name.startswith(_FOLDER):
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise CannotStart(f"{folder} must be a folder that only you can enter; remove it.")


def require_free(config: Config, name: str) -> None:
    """Raises CannotStart unless the address that the setting names can be bound."""
    address = getattr(config, name)
    host, port = host_and_port(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may stand for a family that this machine lacks; one that works is enough.
        failures = [failure for place in found if (failure := _bind_failure(*place)) is not None]
        taken = [failure for failure in failures if failure.errno == errno.EADDRINUSE]
        if taken or len(failures) == len(found):
            raise (taken or failures)[0]
    except OSError as error:
        why = error.strerror or str(error)
        raise CannotStart(f"{spelled(name)}: {address} cannot be bound: {why}.") from None


def _bind_failure(
    family: int, kind: int, protocol: int, _: str, place: tuple[Any, ...]
) -> OSError | None:
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return error
    return None


def require_transport(config: Config) -> None:
    """Raises CannotStart if the transport's package is not installed."""
    if not transport.is_installed(config.transport):
        raise CannotStart(
            f"{spelled('transport')} is {config.transport}, which needs the package pygrpc-native;"
            " there is none for this platform, or it is not installed."
        )


async def require_schema(config: Config) -> None:
    """Raises CannotStart unless there is the database with the schema that this version needs."""
    found = await look(config, migrations.revision)
    needed = migrations.newest()
    if found != needed:
        has = "no schema" if found is None else f"the schema {found}"
        raise CannotStart(
            f"The database has {has}, this version needs {needed}: run `creditledger migrate`,"
            " or a creditledger as new as the database."
        )
    if await look(config, commit_order.is_foreign):
        raise CannotStart(
            "The database was restored from a dump of another server of PostgreSQL, whose"
            " transactions are numbered higher: run `creditledger migrate`, which numbers its rows"
            " anew."
        )


async def look(config: Config, query: Callable[[Connection], T]) -> T:
    """`query` on one snapshot of the database, server or not. Raises CannotStart."""
    try:
        return await store.look(config.database_url, query)
    except CannotOpen as error:
        raise CannotStart(str(error)) from None


async def look_together(
    config: Config, each: Callable[[Connection], None], last: Callable[[Connection], T]
) -> T:
    """`each` upon several connections at the same time, then `last`: all on one snapshot.

    Raises CannotStart.
    """
    try:
        return await store.look_together(config.database_url, each, last)
    except CannotOpen as error:
        raise CannotStart(str(error)) from None


async def migrate(config: Config) -> tuple[str | None, str, int]:
    """Bring the database, made if it is missing, to the newest schema: (before, after).

    The third is how many rows were numbered anew because they came from another server.

    Raises CannotStart, and DatabaseLocked where another process has the database for itself.
    """
    try:
        return await store.migrate(config.database_url, _migrate)
    except CannotOpen as error:
        raise CannotStart(f"{spelled('database_url')}: {error}") from None


def _migrate(connection: Connection) -> tuple[str | None, str, int]:
    before, after = migrations.migrate(connection)
    return (
        before,
        after,
        commit_order.adopt(connection) if commit_order.is_foreign(connection) else 0,
    )


@asynccontextmanager
async def local_channel(config: Config) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the ledger of this database, with the rights of an admin.

    Through the socket of the server that runs, else of one made for the while: one path for both.
    Raises CannotStart.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + LOCAL_WAIT_SECONDS_MAX
    while not await _has_started(server := build(config, local_only=True)):
        async with _channel(server.local_socket) as channel:
            if await _is_ready(channel):
                yield channel
                return
        # Another command has the database, or a server is about to begin or to end.
        if loop.time() > give_up:
            raise CannotStart(
                f"Another process has {config.path}, and no server answers at"
                f" {server.local_socket}: wait for its end."
            )
    try:
        async with server.local_channel() as channel:
            yield channel
    finally:
        await server.stop()


async def _has_started(server: Server) -> bool:
    """Whether it could be started; if not, another process has the database."""
    try:
        await server.start()
    except DatabaseLocked:
        return False
    return True


async def _is_ready(channel: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(0.5):
            await channel.channel_ready()
    except TimeoutError:
        return False
    return True


def _channel(path: Path) -> grpc.aio.Channel:
    require_private(path)
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
    return grpc.aio.insecure_channel(target(path), options=options)


@contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; further ones are ignored, for a drain has a bound."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def first_of(*events: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them has happened."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def stop(server: Server, config: Config) -> None:
    """Stop the server; a process that cannot, because its disk hangs, is ended."""
    try:
        async with asyncio.timeout(config.drain_seconds + CLOSE_SECONDS_MAX):
            await server.stop(refusing_seconds=REFUSING_SECONDS)
    except TimeoutError:
        log.critical("cannot stop in order", exc_info=True)
        os._exit(1)


async def serve(config: Config) -> bool:
    """The gRPC server until SIGTERM or SIGINT, then drained; False if it ended because of itself.

    Raises CannotStart, WrongSetting, DatabaseLocked.
    """
    with told_to_stop() as told:
        server = build(config)
        await server.start()
        log.info(
            "serving",
            grpc_address=server.grpc_address,
            transport=config.transport,
            local_socket=str(server.local_socket),
            database=config.database,
            tls=config.tls_certificate is not None,
        )
        await first_of(told.wait(), server.failed.wait())
        log.info("draining", seconds_max=config.drain_seconds)
        await stop(server, config)
        log.info("stopped")
        return not server.failed.is_set()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on the fastest loop there is, with a garbage collector that looks rarely.

    All that a batch makes lives until its COMMIT, and little of it is cyclic: looking through it
    again and again takes a quarter of the time and finds nothing.
    """
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(coroutine)
    finally:
        gc.set_threshold(*before)
