"""Metrics of a server, served to Prometheus at an address of their own.

A server exports what it measures itself, and how full it is. One server of a database also exports
figures of the whole ledger, which it reads once in EVERY_SECONDS: a scrape gets those of the last
time (decision 0048).

Amounts are integers up to here. Prometheus knows no other number than a float, so an amount becomes
one as it leaves.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from prometheus_client import ProcessCollector, start_http_server
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from creditledger import __version__
from creditledger.domain import clock as time
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.engine.ledger import Ledger
from creditledger.ops.config import CannotStart, Config, host_and_port, spelled
from creditledger.store import Store
from creditledger.store.whole_ledger import Kind, Mode, WholeLedger, whole_ledger
from creditledger.telemetry.measures import Measures

#: A metric's values by those of its labels.
Values = Mapping[tuple[str, ...], float]
#: How often figures of the whole ledger are read.
EVERY_SECONDS = 60.0


class Metrics:
    """The metrics of one server: collected while it works, served where its settings say."""

    def __init__(
        self,
        config: Config,
        measures: Measures,
        store: Store,
        ledger: Ledger,
        clock: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._figures: WholeLedger | None = None
        self._serving = ExitStack()
        #: host:port where they are served, with the real port; None: nowhere.
        self.address: str | None = None
        self._registry = measures.registry
        ProcessCollector(registry=self._registry)
        self._registry.register(_ServerCollector(config, store, ledger))
        self._registry.register(_LedgerCollector(lambda: self._figures))
        self.loop = BackgroundLoop(
            "metrics", self.read, interval_seconds=EVERY_SECONDS, failure="figures not read"
        )

    def start(self) -> None:
        """Serve them, if the settings say where. Raises CannotStart."""
        address = self._config.metrics_address
        if address is None:
            return
        host, port = host_and_port(address)
        certificate, key = self._config.tls_certificate, self._config.tls_key
        try:
            server, thread = start_http_server(
                port,
                host,
                self._registry,
                certfile=None if certificate is None else str(certificate),
                keyfile=None if key is None else str(key),
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise CannotStart(f"{spelled('metrics_address')}: {address}: {why}.") from None
        for end in (server.server_close, thread.join, server.shutdown):  # from the last on
            self._serving.callback(end)
        self.address = f"{address.rpartition(':')[0]}:{server.server_port}"
        self.loop.start()
        self.loop.wake()

    async def stop(self) -> None:
        """Serve them no more."""
        await self.loop.stop()
        self._serving.close()

    async def read(self) -> None:
        """Read the figures of the whole ledger anew, if no other server does."""
        try:
            query = partial(whole_ledger, now=self._clock())
            self._figures = await self._store.read_alone(query)
        except Exception:
            # Another server may export them now.
            self._figures = None
            raise


class _ServerCollector(Collector):
    """How full this server is at the moment of the scrape."""

    def __init__(self, config: Config, store: Store, ledger: Ledger) -> None:
        self._config, self._store, self._ledger = config, store, ledger

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        yield InfoMetricFamily(
            "creditledger_build", "The version of this server.", {"version": __version__}
        )
        yield _gauge("queue_commands", "Commands that wait for a batch.", self._ledger.waiting)
        yield _gauge(
            "queue_commands_max", "Commands that may wait for a batch.", self._config.queue_max
        )
        yield _gauge(
            "database_away",
            "1 while the last attempt at some kind of work found the database away.",
            int(self._store.is_away),
        )
        uses = self._store.uses()
        yield _by(
            "database_connections",
            "Connections in use, by what they are for.",
            ("pool",),
            {(pool,): use.lent for pool, use in uses.items()},
        )
        yield _by(
            "database_connections_max",
            "Connections that there may be, by what they are for.",
            ("pool",),
            {(pool,): use.most for pool, use in uses.items()},
        )


class _LedgerCollector(Collector):
    """Figures of the whole ledger, as they were read last; nothing where another server reads."""

    def __init__(self, figures: Callable[[], WholeLedger | None]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        found = self._figures()
        return () if found is None else _families(found)


def _families(found: WholeLedger) -> Iterator[Metric]:
    def of_modes(name: str, said: str, values: Mapping[Mode, float]) -> Metric:
        told: Values = {
            (currency, _word(live)): value for (currency, live), value in values.items()
        }
        return _by(name, said, ("currency", "livemode"), told)

    def of_kinds(name: str, said: str, values: Mapping[Kind, int]) -> Metric:
        told: Values = {
            (currency, _word(live), category): amount(currency, units)
            for (currency, live, category), units in values.items()
        }
        return _by(name, said, ("currency", "livemode", "category"), told)

    def amount(currency: str, units: int) -> float:
        """The one place in which an amount becomes a float."""
        return float(units) / float(10 ** found.scales[currency])

    def amounts(values: Mapping[Mode, int]) -> dict[Mode, float]:
        return {of: amount(of[0], units) for of, units in values.items()}

    yield of_modes("wallets", "Wallets, closed ones too.", found.wallets)
    yield of_modes("holds_open", "Holds that are open.", found.holds)
    yield of_modes("held_amount", "What open holds set aside.", amounts(found.held))
    yield of_modes(
        "overdraft_amount",
        "What wallets have drawn beyond their credit.",
        amounts(found.overdraft),
    )
    yield of_kinds(
        "liability_amount", "What is left of grants that have not ended.", found.liability
    )
    yield of_kinds(
        "expiring_amount", "What of the liability ends within seven days.", found.expiring
    )
    rows = CounterMetricFamily("creditledger_rows", "Credit transactions ever written.")
    rows.add_metric((), found.rows)
    yield rows
    yield _gauge("unfolded_rows", "Rows that no sum over time has yet.", found.unfolded_rows)
    for name, said, lag_ms in (
        ("sweep", "For how long an expiration is due, not written down.", found.sweep_lag_ms),
        ("watch", "Age of the oldest row that watches do not show yet.", found.watch_lag_ms),
        ("webhook", "Age of the oldest webhook that is due and not sent.", found.webhook_lag_ms),
    ):
        yield _gauge(f"{name}_lag_seconds", said, lag_ms / time.SECOND)
    if (last := found.verification) is not None:
        yield _gauge(
            "verify_timestamp_seconds",
            "When the last verify ended.",
            last.finished_at / time.SECOND,
        )
        yield _gauge(
            "verify_failed_checks",
            "Checks of the last verify that found something wrong.",
            len(last.failed_checks),
        )
    yield _gauge(
        "figures_timestamp_seconds",
        "When the figures of the whole ledger were read.",
        found.at / time.SECOND,
    )


def _word(livemode: bool) -> str:
    return "true" if livemode else "false"


def _gauge(name: str, said: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"creditledger_{name}", said, value)


def _by(name: str, said: str, labels: tuple[str, ...], values: Values) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"creditledger_{name}", said, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family
