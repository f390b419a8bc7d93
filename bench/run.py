"""`make bench`: measures the real server, on real storage, over real gRPC, and checks its ledger.

    make bench                                      both databases, the default transport
    make bench ARGS="--only unary --database postgres --transport native"
    make bench ARGS="--only reads"                  the reads at ten million rows (see reads.py)

Scenarios are run one after the other, all of them `--runs` times over; figures are medians, ratios
those within a run, for the machine may be shared. Without `--only` the outcome is written to
docs/benchmarks/.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import Progress

from bench import report
from bench.checks import receipts, require_all_there, require_verified, row_count
from bench.databases import HOMES, Home, fsync_ms
from bench.figures import figures
from bench.outcome import Outcome, Result, Sample, median, ratio
from bench.prepare import prepare
from bench.scenarios import Scenario, chosen, copies, scenarios
from bench.served import Served, behind_envoy, service_key, serving
from bench.worker import ROOT, Failed, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

WALLETS = 10_000
#: Rows an import has for each second that is asked for: it is measured from end to end.
IMPORT_ROWS_A_SECOND = 6_000
MODULES = {
    "load": "bench.load",
    "baseline": "bench.baseline",
    "inprocess": "bench.inprocess",
    "imports": "bench.imports",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    transport: str
    runs: int
    seconds: float  #: That count, of each scenario.
    wallets: int


@dataclass(slots=True)
class Bench:
    """A server under measurement, with everything that measures it."""

    home: Home
    folder: Path
    options: Options
    served: Served
    secret: str
    envoy: str | None
    workers: dict[str, Worker]
    imported: int = 0

    @property
    def receipts(self) -> Path:
        """Where the load writes down what was acknowledged."""
        return self.folder / "receipts"

    def sample(self, scenario: Scenario, seed: int) -> Sample:
        """The scenario, once. Raises Failed."""
        if scenario.worker == "fsync":
            milliseconds = fsync_ms(self.folder)
            return Sample(rate=1e3 / milliseconds, p50_ms=milliseconds)
        worker = self.workers[scenario.worker]
        before = self._cpu(worker)
        try:
            answer = worker.ask(**self._question(scenario, seed))
        except Failed as error:
            raise Failed(f"{scenario.name}: {error}") from error
        used = [after - begin for after, begin in zip(self._cpu(worker), before, strict=True)]
        server, database, client = (seconds / answer["total"] * 1e6 for seconds in used)
        if scenario.worker == "imports":
            self.imported += answer["total"]
        of_ledger: dict[str, float | None] = {
            "load": server,
            "imports": server,
            "inprocess": client,
        }
        return Sample(
            rate=answer["rate"],
            p50_ms=answer["p50_ms"],
            p99_ms=answer["p99_ms"],
            server_us=of_ledger.get(scenario.worker),
            database_us=database or None,
            client_us=None if scenario.worker == "inprocess" else client,
        )

    def _question(self, scenario: Scenario, seed: int) -> dict[str, Any]:
        values = {**scenario.values, "seed": seed}
        if scenario.worker == "load":
            address = self.envoy if scenario.values["kind"] == "rest" else self.served.address
            values |= {"act": "drive", "address": address, "secret": self.secret}
            return values | {"seconds": self.options.seconds, "receipts": str(self.receipts)}
        if scenario.worker == "imports":
            rows = max(500, int(IMPORT_ROWS_A_SECOND * self.options.seconds))
            return values | {"act": "usage", "url": self.home.url("ledger"), "rows": rows}
        assert scenario.copy is not None
        values["url"] = self.home.url(scenario.copy)
        if scenario.worker == "baseline":
            values["act"] = "measure"
        if values["act"] != "draws":
            values["seconds"] = self.options.seconds
        return values

    def _cpu(self, worker: Worker) -> tuple[float, float, float]:
        times = worker.process.cpu_times()
        return (
            self.served.cpu_seconds(),
            self.home.cpu_seconds(),
            times.user + times.system,
        )


@contextmanager
def prepared(
    home: Home, folder: Path, options: Options, found: Sequence[Scenario]
) -> "Iterator[Bench]":
    """Databases, server, Envoy and workers for these scenarios, until the block ends."""
    url = prepare(home, "ledger", options.wallets)
    secret = service_key(url)
    for copy in copies(found):
        home.copy("ledger", copy)
    with ExitStack() as stack:
        served = stack.enter_context(serving(url, options.transport))
        envoy = None
        if any(one.values.get("kind") == "rest" for one in found):
            envoy = stack.enter_context(behind_envoy(served.address))
        needed = {one.worker for one in found} & MODULES.keys()
        workers = {name: stack.enter_context(Worker(MODULES[name])) for name in sorted(needed)}
        yield Bench(home, folder, options, served, secret, envoy, workers)


def measure(home: Home, folder: Path, options: Options, found: Sequence[Scenario]) -> Outcome:
    """Every scenario, `runs` times, and then the ledger. Raises Failed."""
    samples: dict[str, list[Sample]] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{home.kind}: preparing", total=options.runs * len(found))
        with prepared(home, folder, options, found) as bench:
            for run in range(options.runs):
                for i, one in enumerate(found):
                    progress.update(task, description=f"{home.kind}: {one.name}")
                    seed = 1 + run * 1_000 + i
                    samples.setdefault(one.name, []).append(bench.sample(one, seed))
                    progress.advance(task)
            memory = bench.served.memory_peak()
    outcome = Outcome(home.kind, options.transport, "load")
    outcome.results = [_result(one, samples) for one in found]
    outcome.facts = machine(options.runs) | {"database": home.describe()}
    _check(home, bench, found, outcome)
    outcome.numbers["memory_mb"] = memory / 2**20
    outcome.facts["server memory, peak"] = f"{memory / 2**20:.0f} MB"
    for name in ("ledger", *copies(found)):
        home.drop(name)
    return outcome


def machine(runs: int) -> dict[str, str]:
    """What the figures were made on."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}",
        "runs": f"{runs}, medians",
    }


def _check(home: Home, bench: Bench, found: Sequence[Scenario], outcome: Outcome) -> None:
    acknowledged = receipts(bench.receipts)
    home.run("ledger", lambda c: require_all_there(c, acknowledged, bench.imported))
    rows = home.run("ledger", row_count)
    bench.receipts.unlink(missing_ok=True)
    seconds = require_verified(home.url("ledger"))
    for copy in copies(found):
        require_verified(home.url(copy))
    size = home.size("ledger") / rows
    outcome.facts |= {
        "ledger afterwards": f"{rows:,} rows, {size:.0f} bytes a row, indexes included",
        "acknowledged": f"{len(acknowledged) + bench.imported:,} postings, every one is there",
        "verify": f"finds nothing; {rows / seconds:,.0f} rows/s",
    }


def _result(scenario: Scenario, samples: dict[str, list[Sample]]) -> Result:
    own = samples[scenario.name]
    against = samples.get(scenario.against or "")
    return Result(
        name=scenario.name,
        says=scenario.says,
        unit=scenario.unit,
        median=median(own),
        lowest=min(one.rate for one in own),
        highest=max(one.rate for one in own),
        runs=len(own),
        against=scenario.against,
        ratio=None if against is None else ratio(own, against),
    )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of scenarios, or parts of them: a,b*c")
    parser.add_argument("--database", default="all", choices=("all", *HOMES))
    parser.add_argument("--transport", default="grpcio", choices=("grpcio", "native", "all"))
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken of")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each scenario")
    parser.add_argument("--wallets", type=int, default=WALLETS, help="in the ledger")
    parser.add_argument("--folder", type=Path, help="where databases go (default: temporary)")
    parser.add_argument("--list", action="store_true", help="names of all scenarios, and end")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    asked = parser.parse_args()
    found = chosen(scenarios(asked.wallets), asked.only)
    if asked.list or not found:
        for one in found or scenarios(asked.wallets):
            Console().print(f"{one.name:18} {one.says}", highlight=False)
        return
    databases = list(HOMES) if asked.database == "all" else [asked.database]
    transports = ["grpcio", "native"] if asked.transport == "all" else [asked.transport]
    for database in databases:
        for transport in transports:
            options = Options(transport, asked.runs, asked.seconds, asked.wallets)
            outcome = _measured(database, asked.folder, options, found)
            report.show(outcome)
            if asked.only:
                report.show_figures(figures([outcome]))
            else:
                outcome.save(asked.output)
    if not asked.only:
        report.show_figures(report.write(asked.output))


def _measured(
    database: str, folder: Path | None, options: Options, found: Sequence[Scenario]
) -> Outcome:
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as name:
        home = HOMES[database](Path(name))
        try:
            return measure(home, Path(name), options, found)
        except Failed as error:
            raise SystemExit(f"bench: {error}") from error
        finally:
            home.close()


if __name__ == "__main__":
    main()
