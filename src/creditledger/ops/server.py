"""The server: store, ledger and services put together behind gRPC.

`serve` runs a `Server` of the settings until the process is told to stop.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    operator_service_pb2,
    operator_service_pb2_grpc,
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

from creditledger import store
from creditledger.api.auth import Callers
from creditledger.domain import clock as time
from creditledger.domain.errors import Refusal
from creditledger.engine.clock_watch import ClockWatch
from creditledger.engine.ledger import Ledger
from creditledger.ops import transport
from creditledger.ops.background import BackgroundTasks
from creditledger.ops.config import CannotStart, Config, WrongSetting, spelled
from creditledger.ops.database import require_schema
from creditledger.ops.metrics import Metrics
from creditledger.ops.process import CLOSE_SECONDS_MAX, first_of, told_to_stop
from creditledger.ops.readiness import Readiness
from creditledger.ops.sockets import FOLDER, local_socket, require_free
from creditledger.outlets.exports.stream import Exports
from creditledger.outlets.watches import Watches
from creditledger.store import CannotOpen, Store
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.sealing import Seal
from creditledger.store.webhooks import endpoints
from creditledger.surfaces.billing.service import BillingService
from creditledger.surfaces.credit_transactions.service import CreditTransactionService
from creditledger.surfaces.native.api_key_service import ApiKeyService
from creditledger.surfaces.native.clock_service import ClockService
from creditledger.surfaces.native.credit_grant_service import CreditGrantService
from creditledger.surfaces.native.operator_service import OperatorService
from creditledger.surfaces.native.registry_service import RegistryService
from creditledger.surfaces.native.statement_service import StatementService
from creditledger.surfaces.native.wallet_service import WalletService
from creditledger.surfaces.native.webhook_service import WebhookService
from creditledger.surfaces.payment_kit.service import PaymentKitService
from creditledger.telemetry.measures import Measures

if TYPE_CHECKING:
    from creditledger.telemetry.traces import Traces

log = structlog.get_logger()

#: How long a process that stops refuses calls before it ends the connections: a load
#: balancer hears of it by a clean answer, and asks another server.
REFUSING_SECONDS = 0.3

#: Every RPC of the contract, by service; what reflection and health speak of.
SERVICES = tuple(
    service.full_name
    for module in (
        api_key_service_pb2,
        billing_service_pb2,
        clock_service_pb2,
        credit_grant_service_pb2,
        credit_transaction_service_pb2,
        operator_service_pb2,
        payment_kit_service_pb2,
        registry_service_pb2,
        statement_service_pb2,
        wallet_service_pb2,
        webhook_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
)


class Server:
    """One process's ledger: the database, the committer, and gRPC in front of it."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] | None = None,
        elapsed: Callable[[], int] | None = None,
        local_only: bool = False,
    ) -> None:
        """`local_only`: it takes calls through its socket alone.

        `clock`: for tests; by default this machine's, and a database server's own where there is
        one. `elapsed`: for tests too, what guards the clock; without it, a given clock is right.
        """
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
        self._measures = Measures()
        #: Set when the disk failed: nothing that this process says can be relied on any more.
        self.failed = asyncio.Event()
        #: None before it has started, and where it takes local calls alone.
        self.background: BackgroundTasks | None = None
        #: None likewise.
        self.metrics: Metrics | None = None
        #: host:port where it listens, with the real port once it has started.
        self.grpc_address = config.grpc_address
        #: The Unix socket for commands of the database's owner. Where no other process may look for
        #: it, it gets its place at the start.
        self.local_socket = local_socket(config.path) if config.path else Path()

    async def start(self) -> None:
        """Open the database and serve.

        Raises CannotStart, WrongSetting, and DatabaseLocked where another process has the database.
        """
        if not self._local_only:
            for address in ("grpc_address", "metrics_address"):
                self._config.require_safe_bind(address)
                require_free(self._config, address)
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise

    async def _start(self) -> None:
        config = self._config
        if config.path is not None and not config.path.is_file():
            raise CannotStart(f"There is no database at {config.path}: run `creditledger migrate`.")
        traces = _traces(config, self._closing)
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
        self.watch.loop.start()
        ledger = Ledger(
            opened,
            queue_max=config.queue_max,
            backdating_ms_max=config.backdating_days * time.DAY,
            returned_ms=config.refund_promotional_days * time.DAY,
            on_disk_failure=self.failed.set,
            measures=self._measures,
        )
        await ledger.start()
        self._closing.push_async_callback(ledger.close)
        callers = Callers(opened, self.clock.now)
        if not self._local_only:
            self.background = BackgroundTasks(
                config, opened, ledger, callers, self.clock, self._seal
            )
            self.background.start()
            self._closing.push_async_callback(self.background.stop)
            self.metrics = Metrics(config, self._measures, opened, ledger, self.clock.now)
            self._closing.push_async_callback(self.metrics.stop)
            self.metrics.start()
        local = transport.local(callers, self._measures, traces)
        entrances = [local]
        if not self._local_only:
            turns = max(1, config.readers // 4)
            entrances.insert(0, transport.network(callers, self._measures, traces, turns=turns))
        self._register(entrances, opened, ledger, callers)
        self._closing.push_async_callback(self._drain, entrances)
        if self._local_only or config.path is None:
            # Other commands must not find this server: it ends with its command.
            folder = tempfile.TemporaryDirectory(prefix=FOLDER)
            self._closing.callback(folder.cleanup)
            self.local_socket = Path(folder.name, "credit.sock")
        local.listen_privately(self.local_socket)
        if not self._local_only:
            self.grpc_address = entrances[0].listen(config)
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        readiness = Readiness(opened, self._health)
        await readiness.start()
        self._closing.push_async_callback(readiness.loop.stop)
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
        self._watches.loop.start()
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
            on_change=self.background.look_for_webhooks if self.background else lambda: None,
        )
        operators = OperatorService(
            store=store, callers=callers, measures=self._measures, clock=clock
        )
        clocks = ClockService(watch=self.watch, callers=callers)
        registered: tuple[tuple[Callable[[Any, Any], None], object], ...] = (
            (wallet_service_pb2_grpc.add_WalletServiceServicer_to_server, wallets),
            (credit_grant_service_pb2_grpc.add_CreditGrantServiceServicer_to_server, grants),
            (
                credit_transaction_service_pb2_grpc.add_CreditTransactionServiceServicer_to_server,
                transactions,
            ),
            (billing_service_pb2_grpc.add_BillingServiceServicer_to_server, billing),
            (registry_service_pb2_grpc.add_RegistryServiceServicer_to_server, registry),
            (payment_kit_service_pb2_grpc.add_PaymentKitServiceServicer_to_server, kit),
            (statement_service_pb2_grpc.add_StatementServiceServicer_to_server, statements),
            (api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server, keys),
            (webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server, webhook_endpoints),
            (operator_service_pb2_grpc.add_OperatorServiceServicer_to_server, operators),
            (clock_service_pb2_grpc.add_ClockServiceServicer_to_server, clocks),
        )
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        for entrance in entrances:
            for add, service in registered:
                add(service, entrance.boundary)
            # These answer every caller, to the end.
            methods: Any = entrance.methods
            health_pb2_grpc.add_HealthServicer_to_server(self._health, methods)
            reflection.enable_server_reflection(names, methods)

    def local_channel(self) -> grpc.aio.Channel:
        """A channel to this server through its socket, with the rights of an admin."""
        return transport.local_channel(self.local_socket)


def _traces(config: Config, closing: contextlib.AsyncExitStack) -> "Traces | None":
    """Where spans of calls go, until `closing` ends; None: nowhere."""
    if config.traces is None:
        return None
    from creditledger.telemetry.traces import Traces  # noqa: PLC0415 # not where traces are off

    traces = Traces(*config.traces)
    closing.push_async_callback(traces.close)
    return traces


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
        server = Server(config)
        await server.start()
        log.info(
            "serving",
            grpc_address=server.grpc_address,
            metrics_address=server.metrics and server.metrics.address,
            local_socket=str(server.local_socket),
            database=config.database,
            tls=config.tls_certificate is not None,
        )
        await first_of(told.wait(), server.failed.wait())
        log.info("draining", seconds_max=config.drain_seconds)
        await stop(server, config)
        log.info("stopped")
        return not server.failed.is_set()
