"""A worker that imports usage into a running server, as `creditledger import-usage` does."""

import csv
import tempfile
import time
from pathlib import Path

import grpc

from bench.traffic import wallet_id
from bench.worker import Failed, serve
from creditledger.domain import clock
from creditledger.ops.client import call
from creditledger.ops.config import Config
from creditledger.ops.import_usage import Plan, Prices, Report, import_usage

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def usage(url: str, wallet: int, rows: int, seed: int) -> dict[str, object]:
    """So many rows, from the first call to the last answer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "usage.csv")
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(COLUMNS)
            begin = clock.now() - clock.DAY
            writer.writerows(
                (clock.text(begin + i * 100), 1_000 + i % 500, 100 + i % 50) for i in range(rows)
            )
        plan = Plan(
            file=file,
            wallet_id=wallet_id(wallet),
            api_key_id="apk_bench",
            product="Chat 1",
            category="llm",
            prices=Prices.parse("2.50,10.00"),
            quantity_columns=COLUMNS[1:],
            timestamp_column=COLUMNS[0],
            import_id=str(seed),
        )

        async def imported(channel: grpc.aio.Channel) -> tuple[Report, float]:
            began = time.perf_counter()
            report = await import_usage(channel, plan, on_progress=lambda *_: None)
            return report, time.perf_counter() - began

        report, seconds = call(Config(database_url=url), imported)
    if report.posted != rows:
        raise Failed(f"of {rows} rows {report.posted} were posted: {report.refused}")
    return {"rate": rows / seconds, "total": rows, "p50_ms": None, "p99_ms": None}


if __name__ == "__main__":
    serve({"usage": usage})
