"""After the run: the ledger verifies, and what was acknowledged is there, all of it and no more."""

import asyncio
import time
from pathlib import Path

from sqlalchemy import Connection, func, select

from bench.traffic import RECEIPT_BYTES, wallet_id
from bench.worker import Failed
from creditledger.ops.config import Config
from creditledger.ops.database import verify
from creditledger.store import schema

w, p = schema.wallets.c, schema.postings.c


def receipts(path: Path) -> set[bytes]:
    """What the load was told is posted."""
    data = path.read_bytes() if path.exists() else b""
    return {data[i : i + RECEIPT_BYTES] for i in range(0, len(data), RECEIPT_BYTES)}


def require_all_there(
    connection: Connection, acknowledged: set[bytes], *, imported: int, after: int = 0
) -> None:
    """Every posting that was acknowledged, and none that was not. Raises Failed.

    Those of the load have keys of 32 digits, and numbers beyond `after`; imported rows are counted.
    """
    numbers = {
        number: int(id_.removeprefix(wallet_id(0)[:4])).to_bytes(4, "big")
        for number, id_ in connection.execute(select(w.number, w.id))
    }
    missing = set(acknowledged)
    unknown = found_imported = 0
    query = select(p.wallet_number, p.idempotency_key).where(p.operation == 2, p.number > after)
    for wallet, key in connection.execution_options(yield_per=10_000).execute(query):
        if key.startswith("import:"):
            found_imported += 1
        elif len(key) == 32:
            receipt = numbers[wallet] + bytes.fromhex(key)
            if receipt in missing:
                missing.remove(receipt)
            else:
                unknown += 1
    if missing or unknown or found_imported != imported:
        raise Failed(
            f"of {len(acknowledged):,} postings acknowledged {len(missing):,} are not there;"
            f" {unknown:,} are there that were not; {found_imported:,} of {imported:,} imported"
        )


def last_posting(connection: Connection) -> int:
    """The highest number of a posting."""
    found: int = connection.execute(select(func.max(p.number))).scalar_one()
    return found


def row_count(connection: Connection) -> int:
    """Rows of the ledger."""
    found: int = connection.execute(
        select(func.count()).select_from(schema.transactions)
    ).scalar_one()
    return found


def require_verified(url: str) -> float:
    """`creditledger verify` finds nothing; how many seconds it took. Raises Failed."""
    began = time.perf_counter()
    config = Config(database_url=url)
    found = asyncio.run(verify(config, on_progress=lambda *_: None)).failures
    if found:
        first = found[0].first
        raise Failed(f"{url}: {first.check} of wallet {first.wallet_id}: {first.message}")
    return time.perf_counter() - began
