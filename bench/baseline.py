"""What the database alone can do: the yardsticks that the ledger is measured against.

`limit` writes the rows of 500 postings per transaction, with no rules and no transport; `ordinary`
is the usual way, a transaction with reads and writes for every posting. Both write into the real
tables with the real durability; neither leaves a ledger that verifies, so they get own files.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from creditledger.store import migrations, sqlite

BATCH = 500


def _prepare(path: Path, wallets: int) -> Connection:
    engine = sqlite.writer_engine(path)
    with engine.begin() as connection:
        migrations.migrate(connection)
        run = connection.exec_driver_sql
        run("INSERT INTO customers VALUES ('cus_b', 'B', 'b@example.com', '{}', 0)")
        for number in range(1, wallets + 1):
            run("INSERT INTO currencies VALUES (?, 9, 'c')", (f"C{number}",))
            run(
                "INSERT INTO wallets (number, id, customer_id, currency, livemode, status,"
                " overdraft_limit, metadata, created_at, updated_at)"
                " VALUES (?, ?, 'cus_b', ?, 1, 1, 0, '{}', 0, 0)",
                (number, f"wal_{number}", f"C{number}"),
            )
            run("INSERT INTO grants VALUES (?, 1, 9, 0, 9, 1, 1, 50, NULL, 0, NULL, 0)", (number,))
            run(
                "INSERT INTO dimensions VALUES (?, 1, 'd', 6, 2, NULL, NULL, 1, '', '', '', '', 1,"
                " '[]', '[]', 1)",
                (number,),
            )
    return engine.connect()


_POSTING = (
    "INSERT INTO postings (number, wallet_number, idempotency_key, operation, amount,"
    " first_sequence, row_count, quantities) VALUES (?, ?, ?, 2, 12300000, ?, 1, '[1000,500]')"
)
_ROW = (
    "INSERT INTO credit_transactions (wallet_number, sequence, posting_number, kind, type,"
    " grant_number, amount, running_balance, created_at, dimension_number, usage_count,"
    " usage_amount, usage_quantity, unmetered_amount)"
    " VALUES (?, ?, ?, 6, 2, 1, -12300000, 12300000, 1, 1, ?, 1, 1, 0)"
)
_GRANT = "UPDATE grants SET remaining = 9 WHERE wallet_number = ? AND number = 1"
_WALLET = (
    "UPDATE wallets SET sequence = ?, usage_count = ?, running_balance = 1, posted_at = 1"
    " WHERE number = ?"
)
_ROLLUP = (
    "INSERT INTO rollups VALUES (?, 1, 1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1)"
    " ON CONFLICT (wallet_number, quarter, dimension_number)"
    " DO UPDATE SET count = count + 1, amount = amount + 1"
)


def _measure(path: Path, wallets: int, postings: int, batch: int, reading: bool) -> float:
    connection = _prepare(path, wallets)
    driver = connection.connection.driver_connection
    assert driver is not None
    chance = random.Random(7)  # noqa: S311 # load, not a secret
    sequences = [0] * (wallets + 1)
    number = 0
    began = time.perf_counter()
    for _ in range(postings // batch):
        rows = []
        for _ in range(batch):
            number += 1
            wallet = chance.randint(1, wallets)
            sequences[wallet] += 1
            rows.append((number, wallet, f"{chance.getrandbits(128):032x}", sequences[wallet]))
        driver.execute("BEGIN IMMEDIATE")
        if reading:
            for _, wallet, key, _ in rows:
                driver.execute("SELECT * FROM wallets WHERE number = ?", (wallet,)).fetchall()
                driver.execute(
                    "SELECT * FROM postings WHERE wallet_number = ? AND idempotency_key = ?",
                    (wallet, key),
                ).fetchall()
                driver.execute(
                    "SELECT * FROM grants WHERE wallet_number = ? AND open = 1", (wallet,)
                ).fetchall()
        driver.executemany(_POSTING, rows)
        driver.executemany(_ROW, [(w, s, n, s) for n, w, _, s in rows])
        touched = {wallet: sequence for _, wallet, _, sequence in rows}
        driver.executemany(_GRANT, [(wallet,) for wallet in touched])
        driver.executemany(_WALLET, [(s, s, wallet) for wallet, s in touched.items()])
        driver.executemany(_ROLLUP, [(wallet,) for wallet in touched])
        driver.execute("COMMIT")
    rate = postings / (time.perf_counter() - began)
    connection.close()
    return rate


def limit(path: Path, wallets: int, postings: int) -> float:
    """Postings a second in transactions of 500, written and not decided."""
    return _measure(path, wallets, postings, BATCH, False)


def ordinary(path: Path, wallets: int, postings: int) -> float:
    """Postings a second, a transaction each: read the wallet, the key and the grants, write."""
    return _measure(path, wallets, postings, 1, True)


BASELINES: dict[str, Callable[[Path, int, int], float]] = {"limit": limit, "ordinary": ordinary}
