"""PostgreSQL: how lookups and writes are spelled, and how their keys and rows travel.

Values travel as arrays, one for each column: an array is one parameter, so a statement has the same
text, and the same plan, for any number of rows.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, SmallInteger, Table

from creditledger.store import schema
from creditledger.store.write import changed_rows
from creditledger.store.write.changed_rows import Insert, Update, Write
from creditledger.store.write.columns import STATE_NAMES, WALLET
from creditledger.store.write.lookups import Lookup

# --- wallets and their locks ----------------------------------------------------------------------

#: The place of a wallet's revision among the columns of its state.
REVISION = STATE_NAMES.index("revision")


def _state(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in STATE_NAMES)


WALLETS = f"""
SELECT w.number, w.id, c.scale, {WALLET.sql("w")} FROM wallets AS w
JOIN currencies AS c ON c.code = w.currency WHERE w.id = ANY($1::text[])"""

#: The first three columns are the same in every row, and one row is there without any wallet: the
#: time, taken when all are locked, whether any key is there, and the database transaction.
#: The last is the database transaction that wrote on the wallet, if it began after this one, which
#: may have waited for another wallet meanwhile.
LOCK = f"""
WITH locked AS MATERIALIZED (
 SELECT s.wallet_number, {_state("s")}, s.written_in FROM wallet_states AS s
 WHERE s.wallet_number = ANY($1::bigint[]) ORDER BY s.wallet_number FOR NO KEY UPDATE
), turn AS MATERIALIZED (
 SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint) AS clock,
        every.count, pg_current_xact_id() AS own
 FROM (SELECT count(*) FROM locked) AS every
)
SELECT turn.clock, EXISTS (
 SELECT FROM unnest($2::bigint[], $3::text[]) AS j (wallet, key)
 JOIN postings AS p ON p.wallet_number = j.wallet AND p.idempotency_key = j.key),
 CAST(turn.own AS text), locked.wallet_number, {_state("locked")},
 CASE WHEN locked.written_in > turn.own THEN CAST(locked.written_in AS text) END
FROM turn LEFT JOIN locked ON turn.count > 0"""
#: The same without those that somebody else has locked.
LOCK_FREE = LOCK.replace("FOR NO KEY UPDATE", "FOR NO KEY UPDATE SKIP LOCKED")

#: Whether this database has committed a transaction; an error of one that it never began.
COMMITTED = "SELECT pg_xact_status(CAST($1::text AS xid8)) = 'committed'"

# --- lookups --------------------------------------------------------------------------------------


@cache
def lookup_text(lookup: Lookup) -> str:
    """The lookup as PostgreSQL spells it."""
    arrays = ", ".join(f"${n}::{of}[]" for n, of in enumerate(lookup.keys.values(), 1))
    source = re.sub(r" INDEXED BY \w+|CROSS (?=JOIN (?!LATERAL))", "", lookup.source)
    source = source.replace("FROM KEYS", f"FROM unnest({arrays}) AS j ({', '.join(lookup.keys)})")
    return f"SELECT {lookup.columns} {source.replace('IN KEYS', f'= ANY({arrays})')}"


def arrays(rows: Sequence[Sequence[Any]], width: int) -> list[Sequence[Any]]:
    """Rows turned into columns; as many as a row has where there is none."""
    return list(zip(*rows, strict=True)) or [()] * width


# --- writes ---------------------------------------------------------------------------------------

#: Statements of their own, before the one of all others: one statement changes a row only once, and
#: of these rows some are written once more.
APART = frozenset(
    {
        changed_rows.SET_WALLET_TERMS,
        changed_rows.CLOSE,
        changed_rows.SET_GRANT_TERMS,
        changed_rows.GROW,
        changed_rows.REPAY,
        changed_rows.FREE_RECEIPTS,
        changed_rows.SET_OVERDRAFT,
    }
)
_TRANSACTIONS = schema.postgresql.tables["credit_transactions"]
#: Credit transactions of which some stand behind others of their wallet.
PLACED = Insert(_TRANSACTIONS, [*changed_rows.TRANSACTIONS.names, "position"])

_ARRAYS = {BigInteger: "bigint[]", Integer: "integer[]", SmallInteger: "smallint[]"}


def _array(column: Column[Any]) -> str:
    if isinstance(column.type, Boolean):
        return "boolean[]"
    return next((name for kind, name in _ARRAYS.items() if type(column.type) is kind), "text[]")


class _Numbered:
    """The statement's parameters, numbered as they come."""

    def __init__(self) -> None:
        self.count = 0

    def unnest(self, table: Table, names: Sequence[str]) -> str:
        """The columns of the next arrays, as a table `j` in FROM."""
        found = []
        for name in names:
            self.count += 1
            found.append(f"${self.count}::{_array(table.c[name])}")
        return f"unnest({', '.join(found)}) AS j ({', '.join(names)})"

    def text(self, write: Write, *more: str) -> str:
        """The write of all rows of the next arrays; `more` is set as it says."""
        name = write.table.name
        if isinstance(write, Insert):
            values = self.unnest(write.table, write.names)
            cast = {"position": "CAST(j.position AS xid8)"} if write is PLACED else {}
            taken = ", ".join(cast.get(column, f"j.{column}") for column in write.names)
            into = f"INSERT INTO {name} ({', '.join(write.names)}) SELECT {taken} FROM {values}"
            if not write.changed:
                return into
            sets = [f"{c} = excluded.{c}" for c in write.changed]
            key = ", ".join(write.key)
            return f"{into} ON CONFLICT ({key}) DO UPDATE SET {', '.join(sets)}"
        same = " AND ".join(f"o.{column} = j.{column}" for column in write.key)
        if isinstance(write, Update):
            sets = [*(f"{column} = j.{column}" for column in write.names), *more]
            values = self.unnest(write.table, [*write.key, *write.names])
            return f"UPDATE {name} AS o SET {', '.join(sets)} FROM {values} WHERE {same}"
        return f"DELETE FROM {name} AS o USING {self.unnest(write.table, write.key)} WHERE {same}"


def width(write: Write) -> int:
    """How many columns the rows have."""
    if isinstance(write, Insert):
        return len(write.names)
    return len(write.key) + (len(write.names) if isinstance(write, Update) else 0)


@cache
def write_text(write: Write) -> str:
    """One of those that are apart."""
    return _Numbered().text(write)


@cache
def together(parts: tuple[Write, ...]) -> str:
    """These writes and the one of the wallets' counters as one statement.

    None of them reads what another one writes. A write costs even where it has no row, so there is
    a statement for each choice of them.
    """
    n = _Numbered()
    own = ",\n".join(f"part_{place} AS ({n.text(part)})" for place, part in enumerate(parts))
    last = "written_in = greatest(o.written_in, pg_current_xact_id())"
    moved = n.text(changed_rows.MOVE, last)
    return f"WITH {own}\n{moved}" if parts else moved
