"""`make bench`: measures the real server, on real storage, over real gRPC, and checks its ledger.

    make bench                                      both databases
    make bench ARGS="--only unary --database postgres"
    make bench ARGS="--only reads"                  reads at ten million rows (reading.py)
    make bench ARGS="--only growth"                 posting at ten million rows (growth.py)

Scenarios are run one after the other, all of them `--runs` times over; figures are medians, ratios
those within a run, for the machine may be shared. A complete part is written to docs/benchmarks/.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from bench import growth, reading, report
from bench.checks import receipts, require_all_there, require_verified, row_count
from bench.databases import HOMES, Home, fsync_ms, machine
from bench.figures import figures
from bench.options import Options
from bench.outcome import Outcome, Result, Sample, ratio, result
from bench.prepare import prepare
from bench.scenarios import Scenario, chosen, copies, scenarios
from bench.seeded import LARGE, WALLETS
from bench.served import Served, behind_envoy, new_key, serving
from bench.worker import ROOT, Failed, Worker
from creditledger.ops import log

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Parts that need large ledgers, so are run by name only.
SEEDED = ("reads", "growth")
#: Rows an import has for each second that is asked for: it is measured from end to end.
IMPORT_ROWS_A_SECOND = 6_000
MODULES = {
    "load": "bench.load",
    "baseline": "bench.baseline",
    "inprocess": "bench.inprocess",
    "imports": "bench.imports",
}


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
            rest = scenario.values["kind"] == "rest"
            addresses = [self.envoy] if rest else self.served.addresses
            values |= {"act": "drive", "addresses": addresses, "secret": self.secret}
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
    secret = new_key(url, "service")
    for copy in copies(found):
        home.copy("ledger", copy)
    with ExitStack() as stack:
        served = stack.enter_context(serving(url, workers=options.workers))
        envoy = None
        if any(one.values.get("kind") == "rest" for one in found):
            envoy = stack.enter_context(behind_envoy(served.addresses))
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
    outcome = Outcome(home.kind, "load")
    outcome.results = [_result(one, samples) for one in found]
    outcome.facts = machine(home, options.runs)
    if options.workers > 1:
        outcome.facts["workers"] = str(options.workers)
    _check(home, bench, found, outcome)
    outcome.numbers["memory_mb"] = memory / 2**20
    outcome.facts["server memory, peak"] = f"{memory / 2**20:.0f} MB"
    for name in ("ledger", *copies(found)):
        home.drop(name)
    return outcome


def _check(home: Home, bench: Bench, found: Sequence[Scenario], outcome: Outcome) -> None:
    acknowledged = receipts(bench.receipts)
    home.run("ledger", lambda c: require_all_there(c, acknowledged, imported=bench.imported))
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
    return result(
        scenario.name,
        scenario.says,
        scenario.unit,
        own,
        against=scenario.against,
        ratio=None if against is None else ratio(own, against),
    )


def main() -> None:
    """Parse the command line and run."""
    asked = _arguments()
    log.configure("warning", "console")
    options = Options(asked.runs, asked.seconds, asked.wallets, asked.workers)
    every = scenarios(asked.wallets)
    found = chosen(every, asked.only)
    if asked.list or not (found or asked.only in SEEDED):
        for one in every:
            Console().print(f"{one.name:18} {one.says}", highlight=False)
        Console().print(f"{' '.join(SEEDED):18} of ledgers of {asked.rows:,} rows")
        return
    complete = not asked.only or asked.only in SEEDED
    for database in HOMES if asked.database == "all" else [asked.database]:
        try:
            outcome = _measured(database, options, asked, found)
        except Failed as error:
            raise SystemExit(f"bench: {error}") from error
        report.show(outcome)
        report.show_figures(figures([outcome]))
        if complete:
            outcome.save(asked.output)
    if complete:
        report.write(asked.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names of scenarios, or parts of them: a,b*c")
    parser.add_argument("--database", default="all", choices=("all", *HOMES))
    parser.add_argument("--runs", type=int, default=3, help="that medians are taken of")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each scenario")
    parser.add_argument("--wallets", type=int, default=WALLETS, help="in the ledger")
    parser.add_argument("--workers", type=int, default=1, help="of the server; PostgreSQL only")
    parser.add_argument("--rows", type=int, default=LARGE, help="of reads and growth")
    parser.add_argument("--folder", type=Path, help="for temporary databases")
    parser.add_argument("--keep", type=Path, help="a folder for those of reads and growth to stay")
    parser.add_argument("--list", action="store_true", help="names of all scenarios, and end")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    return parser.parse_args()


def _measured(
    database: str, options: Options, asked: argparse.Namespace, found: Sequence[Scenario]
) -> Outcome:
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="bench-") as name:
        folder = Path(name)
        place = folder
        if asked.keep is not None and asked.only in SEEDED:
            place = asked.keep.absolute()
            place.mkdir(parents=True, exist_ok=True)
        home = HOMES[database](place)
        try:
            if asked.only not in SEEDED:
                return measure(home, folder, options, found)
            if asked.only == "reads":
                return reading.measure(home, options, rows=asked.rows)
            return growth.measure(home, folder, options, rows=asked.rows)
        finally:
            home.close()


if __name__ == "__main__":
    main()
