"""SQLite: how lookups and writes are spelled, and how their keys and rows travel.

For each step that the driver takes, a row read or written, it lets go of the interpreter's lock; a
thread that parses or prints meanwhile gives it back 5 ms later. So a step takes many rows: keys
travel as one JSON text, large answers come as one JSON array, and writes take up to 256 rows a
statement.
"""

import json
import sqlite3
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from creditledger.domain.commands import SETTLE
from creditledger.domain.model import RETURNED_ROWS_MAX, Wallet
from creditledger.store.write import lookups
from creditledger.store.write.changed_rows import Delete, Insert, Update, Write
from creditledger.store.write.columns import STATE_NAMES, WALLET, wallet_value
from creditledger.store.write.loader import Rows
from creditledger.store.write.lookups import Lookup

_WALLETS = Lookup(
    {"id": "text"},
    f"c.scale, {WALLET.sql('w')}, {', '.join(f's.{name}' for name in STATE_NAMES)}",
    """FROM KEYS CROSS JOIN wallets AS w ON w.id = j.id
    JOIN wallet_states AS s ON s.wallet_number = w.number
    JOIN currencies AS c ON c.code = w.currency""",
    many=True,
)
#: What SQLite cannot join to.
_SOURCES = {
    lookups.SETTLEMENTS: f"""FROM KEYS CROSS JOIN postings AS s
      ON s.wallet_number = j.wallet AND s.number IN (
       SELECT p.number FROM postings AS p INDEXED BY postings_settlements
       WHERE p.operation = {SETTLE} AND p.wallet_number = j.wallet AND p.meter_event_id = j.name
         AND p.first_sequence < j.below
       ORDER BY p.first_sequence DESC LIMIT {RETURNED_ROWS_MAX})
    ORDER BY j.wallet, j.event, s.first_sequence DESC"""
}
#: Rows are written by statements of so many; nine of them write any number up to 511.
_SIZES = (256, 128, 64, 32, 16, 8, 4, 2, 1)


@cache
def _text(lookup: Lookup) -> str:
    columns = f"json_group_array(json_array({lookup.columns}))" if lookup.many else lookup.columns
    names = list(lookup.keys)
    parts = ", ".join(f"json_extract(value, '$[{n}]') AS {name}" for n, name in enumerate(names))
    keys = parts if len(names) > 1 else f"value AS {names[0]}"
    source = _SOURCES.get(lookup, lookup.source)
    source = source.replace("FROM KEYS", f"FROM (SELECT {keys} FROM json_each(?)) AS j")
    source = source.replace("IN KEYS", "IN (SELECT value FROM json_each(?))")
    # A partial index is found by its own words.
    return f"SELECT {columns} {source}".replace("= true", "= 1")


def look_up(driver: sqlite3.Connection, lookup: Lookup, keys: Sequence[Any]) -> Rows:
    """The rows of these keys."""
    found = driver.execute(_text(lookup), (json.dumps(keys),))
    if lookup.many:
        rows: Rows = json.loads(found.fetchone()[0])
        return rows
    return found.fetchall()


def wallets(driver: sqlite3.Connection, wallet_ids: Sequence[str]) -> list[Wallet]:
    """Those that exist, still without grants."""
    found = look_up(driver, _WALLETS, wallet_ids)
    return [wallet_value(columns, scale) for scale, *columns in found]


@cache
def _deleting(write: Delete) -> str:
    keys = ", ".join(f"json_extract(value, '$[{n}]')" for n in range(len(write.key)))
    rows = f"SELECT {keys} FROM json_each(?)"
    return f"DELETE FROM {write.table.name} WHERE ({', '.join(write.key)}) IN ({rows})"


@cache
def _texts(write: Insert | Update) -> dict[int, str]:
    """The statement by the number of rows that it takes."""
    table = write.table.name
    if isinstance(write, Insert):
        names, before, after = write.names, f"INSERT INTO {table} ({', '.join(write.names)}) ", ""
        if write.changed:
            sets = (f"{n} = excluded.{n}" for n in write.changed)
            after = f" ON CONFLICT ({', '.join(write.key)}) DO UPDATE SET {', '.join(sets)}"
    else:
        names = [*write.key, *write.names]
        changed = ", ".join(f"{name} = v.{name}" for name in write.names)
        same = " AND ".join(f"{table}.{name} = v.{name}" for name in write.key)
        before = f"WITH v ({', '.join(names)}) AS ("
        after = f") UPDATE {table} SET {changed} FROM v WHERE {same}"
    row = f"({', '.join('?' * len(names))})"
    return {size: f"{before}VALUES {', '.join([row] * size)}{after}" for size in _SIZES}


def write_rows(driver: sqlite3.Connection, write: Write, rows: Sequence[tuple[Any, ...]]) -> None:
    """The rows, in the order of their keys.

    So what lies in one page of a table, of an index or of what a foreign key refers to is met
    together.
    """
    if isinstance(write, Delete):
        driver.execute(_deleting(write), (json.dumps(rows),))
        return
    rows, at = sorted(rows), 0
    for size, text in _texts(write).items():
        while len(rows) - at >= size:
            driver.execute(text, tuple(chain.from_iterable(rows[at : at + size])))
            at += size
