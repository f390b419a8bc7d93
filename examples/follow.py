#!/usr/bin/env python3
"""Follow a ledger: every credit transaction into a database of one's own, each of them once.

    CREDITLEDGER_KEY=sk-… python3 follow.py http://127.0.0.1:8080 mirror.db

It begins with the first transaction there is and stays on the line. Where it stands is written in
the transaction of the row that it stands behind: stop it, kill it, take the network or the server
away, and it goes on where it was. What it does with a row is `take`; put your own there. It needs
nothing but Python.
"""

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

#: The server says something at least every 15 seconds, so who is silent for longer is gone.
SILENT_SECONDS_MAX = 45
#: Between two attempts: twice as long each time.
WAIT_SECONDS, WAIT_SECONDS_MAX = 0.5, 30.0
#: Answers that say nothing of the request itself; others do not become better.
PASSING = {429, 500, 502, 503, 504}

TABLES = """
CREATE TABLE IF NOT EXISTS transactions (
    id TEXT PRIMARY KEY,
    wallet_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    customer_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    currency_id TEXT NOT NULL,
    amount TEXT NOT NULL, -- a decimal; a REAL would round it
    created_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS place (one INTEGER PRIMARY KEY CHECK (one = 1), cursor TEXT NOT NULL);
"""
COLUMNS = (
    "id",
    "wallet_id",
    "sequence",
    "customer_id",
    "kind",
    "currency_id",
    "amount",
    "created_at",
)


def take(database: sqlite3.Connection, transaction: dict[str, object]) -> None:
    """Deal with one transaction. It is in the order of commits, and within a wallet of sequence."""
    values = [transaction[name] for name in COLUMNS]
    # It may come again where the cursor was lost: the same row, so it changes nothing.
    database.execute("INSERT OR IGNORE INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)


def events(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """(id, data) of Server-Sent Events; one that is cut off does not count."""
    cursor, data = "", ""
    for line in lines:
        name, _, value = line.decode().rstrip("\r\n").partition(": ")
        if name == "id":
            cursor = value
        elif name == "data":
            data = value
        elif not name:
            yield cursor, data
            data = ""


def follow(database: sqlite3.Connection, address: str, key: str) -> Iterator[str]:
    """Take what comes, and say how far that is; until the stream ends. Raises OSError."""
    row = database.execute("SELECT cursor FROM place").fetchone()
    request = Request(f"{address}/api/credit-transactions:watch?after=beginning")
    request.add_header("Authorization", f"Bearer {key}")
    if row is not None:
        request.add_header("Last-Event-ID", row[0])
    with urlopen(request, timeout=SILENT_SECONDS_MAX) as stream:
        for cursor, data in events(stream):
            with database:  # both or neither
                if data:
                    take(database, json.loads(data))
                database.execute("INSERT OR REPLACE INTO place VALUES (1, ?)", (cursor,))
            yield cursor


def main(address: str, file: str, key: str) -> None:
    """Follow for ever, whatever comes between."""
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(TABLES)
    wait = WAIT_SECONDS
    while True:
        try:
            for _ in follow(database, address, key):
                wait = WAIT_SECONDS
        except HTTPError as error:
            if error.code not in PASSING:
                sys.exit(f"{error.code}: {error.read().decode()}")
            print(f"{error}; once more in {wait:g} s", file=sys.stderr)
        except (OSError, HTTPException) as error:
            print(f"{error}; once more in {wait:g} s", file=sys.stderr)
        time.sleep(wait)
        wait = min(2 * wait, WAIT_SECONDS_MAX)


if __name__ == "__main__":
    if len(sys.argv) != 3 or "CREDITLEDGER_KEY" not in os.environ:
        sys.exit("usage: CREDITLEDGER_KEY=sk-… follow.py ADDRESS FILE")
    main(sys.argv[1], sys.argv[2], os.environ["CREDITLEDGER_KEY"])
