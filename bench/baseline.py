"""What the ledger is measured against, on the same tables and with the same durability.

`ordinary` is the usual way: a transaction for every posting, which locks the wallet, looks for the
key, reads the open grants and writes each table. It has no RPC, no rules and no answers to print,
all of which favours it. `limit` is what the database can take: the same rows, 500 postings to a
transaction, with nothing read and nothing decided. Both leave a ledger that verifies.

A worker, asked by run.py; how each database is spoken to is in the two modules beside this one.
"""

import asyncio
from collections.abc import Mapping

from bench import baseline_postgres, baseline_sqlite
from bench.traffic import Traffic, Wallets
from bench.worker import serve
from creditledger.ops.process import new_event_loop


def measure(
    name: str, url: str, wallets: Mapping[str, int], seconds: float, seed: int
) -> dict[str, object]:
    """The baseline of that name."""
    traffic = Traffic(Wallets(**wallets), seed)  # type: ignore[arg-type]  # of JSON
    if url.startswith("sqlite"):
        return getattr(baseline_sqlite, name)(url, traffic, seconds).answer()  # type: ignore[no-any-return]  # by name
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(getattr(baseline_postgres, name)(url, traffic, seconds)).answer()  # type: ignore[no-any-return]  # by name


if __name__ == "__main__":
    serve({"measure": measure})
