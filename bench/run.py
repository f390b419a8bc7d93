"""`make bench`: starts the real server, drives it, checks the ledger afterwards, writes the table.

Figures are medians of the runs; every ratio is against a baseline of the same run, because the
machine may be shared. Results go to docs/benchmarks/ as Markdown and JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
from credit.v1 import api_key_service_pb2, wallet_service_pb2
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import insert

from bench.baseline import BASELINES
from bench.load import Scenario
from creditledger import log, server
from creditledger.config import Config
from creditledger.model import Status
from creditledger.store import schema, sqlite, verify

ROOT = Path(__file__).parent.parent
WALLETS = 10_000
GRANTS = 3
START_SECONDS_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario: medians over the runs."""

    name: str
    rate: float  #: Postings a second; calls a second where nothing is posted.
    p50_ms: float
    p99_ms: float
    cpu_us: float  #: Server CPU per posting or call.


def _scenarios(address: str, key: str, scale: float) -> list[Scenario]:
    def calls(count: int) -> int:
        return max(8, int(count * scale))

    base = Scenario("", "", address, key, 1, 1, 1)
    found = [
        replace(
            base, name="empty RPC, 64 in flight", kind="empty", in_flight=64, calls=calls(8_000)
        )
    ]
    for label, wallets in (("one hot wallet", 1), (f"{WALLETS:,} wallets", WALLETS)):
        found += [
            replace(
                base,
                name=f"unary, {in_flight} in flight, {label}",
                kind="unary",
                wallets=wallets,
                in_flight=in_flight,
                calls=calls(1_000 if in_flight == 1 else 6_000),
            )
            for in_flight in (1, 16, 64, 256)
        ]
        found += [
            replace(
                base,
                name=f"batches of {batch}, {label}",
                kind="batch",
                wallets=wallets,
                in_flight=4,
                batch=batch,
                calls=calls(30_000 // batch),
            )
            for batch in (10, 100, 500)
        ]
        found.append(
            replace(
                base,
                name=f"4 streams, {label}",
                kind="stream",
                wallets=wallets,
                in_flight=4,
                batch=calls(2_000),
                calls=8,
            )
        )
    return found


@contextmanager
def _server(config: Config) -> Iterator[psutil.Process]:
    environment = {
        **os.environ,
        "CREDITLEDGER_DATABASE_URL": config.database_url,
        "CREDITLEDGER_GRPC_ADDRESS": config.grpc_address,
        "CREDITLEDGER_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-m", "creditledger", "serve"], env=environment)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _register(config: Config) -> None:
    """Customers and wallets by the ten thousand, straight into their tables."""
    engine = sqlite.writer_engine(config.path)
    with engine.begin() as connection:
        customers = [
            {"id": f"cus_{n}", "name": f"Customer {n}", "email": f"c{n}@example.com"}
            for n in range(WALLETS)
        ]
        connection.execute(insert(schema.customers).values(metadata="{}", created_at=0), customers)
        wallets = [{"id": f"wal_{n}", "customer_id": f"cus_{n}"} for n in range(WALLETS)]
        connection.execute(
            insert(schema.wallets).values(
                currency="USD",
                livemode=True,
                status=Status.ACTIVE.value,
                overdraft_limit=0,
                metadata="{}",
                created_at=0,
                updated_at=0,
            ),
            wallets,
        )
    engine.dispose()


async def _give(config: Config) -> str:
    """Three grants to each wallet, and a service key; answers its secret."""
    pb = wallet_service_pb2
    async with server.local_channel(config) as channel:
        wallets = WalletServiceStub(channel)
        for start in range(0, WALLETS, 200):
            postings = [
                pb.PostRequest(
                    wallet_id=f"wal_{n}",
                    idempotency_key=f"grant:{i}",
                    grant=pb.GrantOperation(amount="1000000.00"),
                )
                for n in range(start, start + 200)
                for i in range(GRANTS)
            ]
            await wallets.BatchPost(pb.BatchPostRequest(postings=postings))
        made = await ApiKeyServiceStub(channel).CreateApiKey(
            api_key_service_pb2.CreateApiKeyRequest(name="bench", scope="service", livemode=True)
        )
        return made.secret


def _drive(scenario: Scenario, process: psutil.Process) -> tuple[Result, int]:
    before = process.cpu_times()
    client = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(scenario)),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    after = process.cpu_times()
    seen = json.loads(client.stdout)
    done = seen["postings"] or scenario.calls
    latencies = sorted(seen["milliseconds"])
    cpu = (after.user - before.user) + (after.system - before.system)
    result = Result(
        name=scenario.name,
        rate=done / seen["seconds"],
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[int(len(latencies) * 0.99)],
        cpu_us=cpu / done * 1e6,
    )
    return result, seen["postings"]


def _median(results: list[Result]) -> Result:
    return Result(
        name=results[0].name,
        **{
            name: statistics.median(getattr(result, name) for result in results)
            for name in ("rate", "p50_ms", "p99_ms", "cpu_us")
        },
    )


def _checked(config: Config, acknowledged: int) -> tuple[int, float]:
    """(rows, rows a second of verify); raises if the ledger is not what was acknowledged."""
    engine = sqlite.reading_engine(config.path)
    with engine.begin() as connection:
        count = connection.exec_driver_sql(
            "SELECT count(*) FROM postings WHERE operation = 2"
        ).scalar_one()
        rows = connection.exec_driver_sql("SELECT count(*) FROM credit_transactions").scalar_one()
        if count != acknowledged:
            raise SystemExit(f"{acknowledged} postings were acknowledged, {count} are there")
        began = time.perf_counter()
        findings = list(verify.verify(connection))
        seconds = time.perf_counter() - began
    engine.dispose()
    if findings:
        raise SystemExit(f"the ledger does not verify: {findings[0]}")
    return rows, rows / seconds


def _ready(config: Config) -> None:
    give_up = time.monotonic() + START_SECONDS_MAX
    while not server.local_socket(config.path).exists():
        if time.monotonic() > give_up:
            raise SystemExit("the server did not start")
        time.sleep(0.05)


def _baselines(folder: Path, runs: int, scale: float) -> dict[str, float]:
    found = {}
    for name, measure in BASELINES.items():
        for label, wallets in (("one hot wallet", 1), (f"{WALLETS:,} wallets", WALLETS)):
            count = int((20_000 if name == "limit" else 3_000) * scale) // 500 * 500 or 500
            rates = [
                measure(folder / f"{name}-{wallets}-{run}.db", wallets, count)
                for run in range(runs)
            ]
            found[f"{name}, {label}"] = statistics.median(rates)
    return found


def _against(result: Result, baselines: dict[str, float]) -> str:
    label = result.name.rpartition(", ")[2]
    kind = "ordinary" if result.name.startswith(("unary", "4 streams")) else "limit"
    baseline = baselines.get(f"{kind}, {label}")
    return "" if baseline is None else f"{result.rate / baseline:.2f} of the {kind}"


def _markdown(results: list[Result], baselines: dict[str, float], facts: dict[str, str]) -> str:
    lines = [
        "# Benchmark",
        "",
        "Made by `make bench`. Baselines are explained in bench/baseline.py.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "| baseline | postings/s |", "| --- | ---: |"]
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in baselines.items()]
    lines += [
        "",
        "| scenario | per second | p50 ms | p99 ms | server CPU µs | ratio |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {r.name} | {r.rate:,.0f} | {r.p50_ms:.2f} | {r.p99_ms:.2f} | {r.cpu_us:.0f}"
        f" | {_against(r, baselines)} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def _show(results: list[Result], baselines: dict[str, float]) -> None:
    table = Table("scenario", "per second", "p50 ms", "p99 ms", "CPU µs", "ratio")
    for name, rate in baselines.items():
        table.add_row(name, f"{rate:,.0f}", "", "", "", "")
    for r in results:
        figures = (f"{r.rate:,.0f}", f"{r.p50_ms:.2f}", f"{r.p99_ms:.2f}", f"{r.cpu_us:.0f}")
        table.add_row(r.name, *figures, _against(r, baselines))
    Console().print(table)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs that medians are taken of")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of calls")
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--folder", type=Path, help="where databases go (default: temporary)")
    parser.add_argument("--port", type=int, default=50151, help="of the server measured")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/latest.*")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="bench-") as name:
        folder = Path(name)
        config = Config(
            database_url=f"sqlite+aiosqlite:///{folder}/ledger.db",
            grpc_address=f"127.0.0.1:{chosen.port}",
        )
        server.migrate(config)
        log.configure("warning", "console")
        _register(config)
        key = asyncio.run(_give(config))
        acknowledged = 0
        seen: dict[str, list[Result]] = {}
        with _server(config) as process:
            _ready(config)
            scenarios = [
                replace(scenario, seed=run * 1_000 + i)
                for run in range(chosen.runs)
                for i, scenario in enumerate(_scenarios(config.grpc_address, key, chosen.scale))
                if chosen.only in scenario.name
            ]
            for scenario in track(scenarios, description="measuring"):
                result, postings = _drive(scenario, process)
                seen.setdefault(scenario.name, []).append(result)
                acknowledged += postings
            memory = process.memory_info().rss
        rows, verified = _checked(config, acknowledged)
        size = config.path.stat().st_size
        baselines = _baselines(folder, chosen.runs, chosen.scale)
    results = [_median(each) for each in seen.values()]
    facts = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "database": f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL",
        "runs": f"{chosen.runs}, medians",
        "ledger": f"{rows:,} rows, {size / rows:.0f} bytes a row, indexes included",
        "verify": f"found nothing, {verified:,.0f} rows/s",
        "server memory": f"{memory / 2**20:.0f} MB",
    }
    _show(results, baselines)
    if chosen.write:
        target = ROOT / "docs" / "benchmarks"
        target.mkdir(parents=True, exist_ok=True)
        (target / "latest.md").write_text(_markdown(results, baselines, facts))
        data = {"facts": facts, "baselines": baselines, "results": [asdict(r) for r in results]}
        (target / "latest.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
