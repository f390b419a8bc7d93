"""What the writer of PostgreSQL says to it: values travel as arrays, a column each.

Kept apart from writer.py, which says when. Imports schema and values.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, SmallInteger, Table

from creditledger.domain.model import RETURNED_ROWS_MAX
from creditledger.store import schema
from creditledger.store.columns import (
    COUNTER_NAMES,
    DIMENSION,
    DROPPED_LIMIT,
    EVENT,
    EVENT_CHANGED,
    GRANT,
    GRANT_GROWN,
    GRANT_PART,
    GRANT_REPAID,
    GRANT_REPAYMENT,
    GRANT_REVISION,
    GRANT_TERMS,
    HOLD,
    HOLD_CHANGED,
    HOLD_REVISION,
    LIMIT,
    LIMIT_CHANGED,
    OVERDRAFT,
    PAYER,
    POSTING_INSERTED,
    POSTING_NAMES,
    RECEIPT,
    ROW,
    STATE_NAMES,
    SUM_NAMES,
    WALLET,
    WALLET_OVERDRAFT,
    WALLET_TERMS,
)

# --- reading what a batch wants -------------------------------------------------------------------


REVISION = STATE_NAMES.index("revision")


def _of(table: str, columns: list[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in columns)


WALLETS = f"""
SELECT c.scale, {WALLET.sql("w")} FROM wallets AS w
JOIN currencies AS c ON c.code = w.currency WHERE w.id = ANY($1::text[])"""

#: The first three columns are the same in every row, and one row is there without any wallet: the
#: time, taken when all are locked, whether any key is there, and the database transaction.
#: The last is the database transaction that wrote on the wallet, if it began after this one, which
#: may have waited for another wallet meanwhile.
LOCK = f"""
WITH locked AS MATERIALIZED (
 SELECT s.wallet_number, {_of("s", STATE_NAMES)}, s.written_in FROM wallet_states AS s
 WHERE s.wallet_number = ANY($1::bigint[]) ORDER BY s.wallet_number FOR NO KEY UPDATE
), turn AS MATERIALIZED (
 SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint) AS clock,
        every.count, pg_current_xact_id() AS own
 FROM (SELECT count(*) FROM locked) AS every
)
SELECT turn.clock, EXISTS (
 SELECT FROM unnest($2::bigint[], $3::text[]) AS j (wallet, key)
 JOIN postings AS p ON p.wallet_number = j.wallet AND p.idempotency_key = j.key),
 CAST(turn.own AS text), locked.wallet_number, {_of("locked", STATE_NAMES)},
 CASE WHEN locked.written_in > turn.own THEN CAST(locked.written_in AS text) END
FROM turn LEFT JOIN locked ON turn.count > 0"""
#: The same without those that somebody else has locked.
LOCK_FREE = LOCK.replace("FOR NO KEY UPDATE", "FOR NO KEY UPDATE SKIP LOCKED")

#: Whether this database has committed a transaction; an error of one that it never began.
COMMITTED = "SELECT pg_xact_status(CAST($1::text AS xid8)) = 'committed'"

OPEN_GRANTS = f"""
SELECT g.wallet_number, {GRANT.sql("g")}
FROM grants AS g WHERE g.wallet_number = ANY($1::bigint[]) AND g.open"""

OPEN_HOLDS = f"""
SELECT h.wallet_number, {HOLD.sql("h")}
FROM holds AS h WHERE h.wallet_number = ANY($1::bigint[]) AND h.ended IS NULL"""

UNPAID_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM meter_events AS e WHERE e.wallet_number = ANY($1::bigint[]) AND e.unpaid > 0
ORDER BY e.wallet_number, e.created_at, e.number"""

NAMED_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN meter_events AS e ON e.wallet_number = j.wallet AND e.number = j.number"""

EVENTS_BY_IDENTIFIER = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM unnest($1::bigint[], $2::text[]) AS j (wallet, identifier)
JOIN meter_events AS e ON e.wallet_number = j.wallet AND e.identifier = j.identifier"""

RETURNED_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM meter_events AS e
WHERE e.wallet_number = ANY($1::bigint[]) AND e.return_below IS NOT NULL"""

#: Of each of these events, by wallet, identifier, number and the sequence to look below.
SETTLEMENTS = f"""
SELECT j.wallet, j.event, s.number, s.row_count
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[]) AS j (wallet, name, event, below)
CROSS JOIN LATERAL (
 SELECT p.number, p.row_count, p.first_sequence FROM postings AS p
 WHERE p.operation = 14 AND p.wallet_number = j.wallet AND p.meter_event_id = j.name
   AND p.first_sequence < j.below
 ORDER BY p.first_sequence DESC LIMIT {RETURNED_ROWS_MAX}) AS s
ORDER BY j.wallet, j.event, s.first_sequence DESC"""

LIMITS = f"""
SELECT l.wallet_number, {LIMIT.sql("l")}
FROM spend_limits AS l WHERE l.wallet_number = ANY($1::bigint[])
ORDER BY l.wallet_number, l.number"""

DROPPED = f"""
SELECT l.wallet_number, {DROPPED_LIMIT.sql("l")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN dropped_limits AS l ON l.wallet_number = j.wallet AND l.number = j.number"""

NAMED_HOLDS = f"""
SELECT h.wallet_number, {HOLD.sql("h")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN holds AS h ON h.wallet_number = j.wallet AND h.number = j.number"""

#: What the postings say that made these holds.
ANNOTATIONS = """
SELECT p.wallet_number, p.number, p.description, p.metadata
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN postings AS p ON p.wallet_number = j.wallet AND p.number = j.number"""

NAMED_GRANTS = f"""
SELECT g.wallet_number, {GRANT.sql("g")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN grants AS g ON g.wallet_number = j.wallet AND g.number = j.number"""

#: Until it is changed, a grant's metadata is that of the posting that gave it.
WORDS = """
SELECT g.wallet_number, g.number, CASE WHEN g.revision > 0 THEN r.metadata ELSE p.metadata END
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN grants AS g ON g.wallet_number = j.wallet AND g.number = j.number
LEFT JOIN grant_revisions AS r ON r.wallet_number = g.wallet_number
 AND r.grant_number = g.number AND r.number = g.revision
LEFT JOIN credit_transactions AS t ON t.wallet_number = g.wallet_number AND t.sequence = g.number
LEFT JOIN postings AS p ON p.wallet_number = t.wallet_number AND p.number = t.posting_number"""

_POSTINGS = f"SELECT p.first_sequence, p.row_count, {_of('p', POSTING_NAMES)}"
POSTINGS_BY_KEY = f"""
{_POSTINGS} FROM unnest($1::bigint[], $2::text[]) AS j (wallet, key)
JOIN postings AS p ON p.wallet_number = j.wallet AND p.idempotency_key = j.key"""
POSTINGS_BY_NUMBER = f"""
{_POSTINGS} FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN postings AS p ON p.wallet_number = j.wallet AND p.number = j.number"""

ROWS = f"""
SELECT {ROW.sql("t")}
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS j (wallet, first, last)
JOIN credit_transactions AS t
  ON t.wallet_number = j.wallet AND t.sequence BETWEEN j.first AND j.last
ORDER BY t.wallet_number, t.sequence"""

#: What refunds gave back of overdrafts above where the wallet is paid back to.
FORGIVEN = """
SELECT o.wallet_number, o.start + o.amount - o.forgiven, o.start + o.amount
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, place)
JOIN overdraft_draws AS o ON o.wallet_number = j.wallet AND o.forgiven > 0
 AND o.start >= coalesce((SELECT max(b.start) FROM overdraft_draws AS b
   WHERE b.wallet_number = j.wallet AND b.forgiven > 0 AND b.start <= j.place), 0)
WHERE o.start + o.amount > j.place
ORDER BY o.wallet_number, o.start"""

OVERDRAFTS = f"""
SELECT {OVERDRAFT.sql("o")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, sequence)
JOIN overdraft_draws AS o ON o.wallet_number = j.wallet AND o.sequence = j.sequence"""

#: Stretches do not overlap, so those of a draw begin with the last one that begins before it.
PAYERS = f"""
SELECT {PAYER.sql("p")}
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS j (wallet, first, behind)
JOIN overdraft_payers AS p ON p.wallet_number = j.wallet AND p.start < j.behind
 AND p.start >= coalesce((SELECT max(b.start) FROM overdraft_payers AS b
   WHERE b.wallet_number = j.wallet AND b.start <= j.first), 0)
WHERE p.until > j.first"""

DIMENSIONS = f"""
SELECT d.wallet_number, d.number, {DIMENSION.sql("d")}
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN dimensions AS d ON d.wallet_number = j.wallet AND d.number = j.number"""

DIMENSION_NUMBERS = """
SELECT d.wallet_number, d.digest, d.number
FROM unnest($1::bigint[], $2::text[]) AS j (wallet, digest)
JOIN dimensions AS d ON d.wallet_number = j.wallet AND d.digest = j.digest"""

DIMENSION_NEXT = """
SELECT j.wallet, 1 + coalesce((SELECT max(d.number) FROM dimensions AS d
                               WHERE d.wallet_number = j.wallet), 0)
FROM unnest($1::bigint[]) AS j (wallet)"""

REFUNDED = """
SELECT p.wallet_number, p.refund_of, CAST(sum(t.amount) AS bigint)
FROM unnest($1::bigint[], $2::bigint[]) AS j (wallet, number)
JOIN postings AS p ON p.wallet_number = j.wallet AND p.refund_of = j.number
JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
 AND t.sequence BETWEEN p.first_sequence AND p.first_sequence + p.row_count - 1
GROUP BY p.wallet_number, p.refund_of"""

#: Grants that have credited these receipts, oldest first, and the postings that gave them.
CREDITED = """
SELECT r.wallet_number, r.provider, r.receipt_id, r.grant_number, t.posting_number
FROM unnest($1::bigint[], $2::text[], $3::text[]) AS j (wallet, provider, receipt)
JOIN receipts AS r ON r.wallet_number = j.wallet
 AND r.provider = j.provider AND r.receipt_id = j.receipt
JOIN credit_transactions AS t ON t.wallet_number = r.wallet_number AND t.sequence = r.grant_number
ORDER BY r.grant_number"""

METERS = "SELECT id, active FROM meters WHERE id = ANY($1::text[])"
SUBSCRIPTIONS = "SELECT id, customer_id FROM subscriptions WHERE id = ANY($1::text[])"


# --- writing what was decided ---------------------------------------------------------------------

_ARRAYS = {BigInteger: "bigint[]", Integer: "integer[]", SmallInteger: "smallint[]"}


def _array(column: Column[Any]) -> str:
    if isinstance(column.type, Boolean):
        return "boolean[]"
    return next((name for kind, name in _ARRAYS.items() if type(column.type) is kind), "text[]")


class _Numbered:
    """The statement's parameters, numbered as they come."""

    def __init__(self) -> None:
        self.count = 0

    def unnest(self, table: Table, columns: Sequence[str]) -> str:
        """The columns of the next arrays, as a table in FROM."""
        arrays = []
        for name in columns:
            self.count += 1
            arrays.append(f"${self.count}::{_array(table.c[name])}")
        return f"unnest({', '.join(arrays)})"

    def insert(self, table: Table, columns: Sequence[str]) -> str:
        """INSERT of all rows of the next arrays."""
        into = f"INSERT INTO {table.name} ({', '.join(columns)})"
        return f"{into} SELECT * FROM {self.unnest(table, columns)}"

    def insert_placed(self) -> str:
        """INSERT of credit transactions of which some stand behind others of their wallet."""
        table, names = schema.postgresql.tables["credit_transactions"], ", ".join(ROW.names)
        values = self.unnest(table, [*ROW.names, "position"])
        return (
            f"INSERT INTO {table.name} ({names}, position)"
            f" SELECT {names}, CAST(position AS xid8) FROM {values} AS j ({names}, position)"
        )

    def update(self, table: Table, key: Sequence[str], columns: Sequence[str], *more: str) -> str:
        """UPDATE of the rows with the next arrays' keys; `more` is set as it says."""
        values = self.unnest(table, [*key, *columns])
        return (
            f"UPDATE {table.name} AS o SET {', '.join([*(f'{c} = j.{c}' for c in columns), *more])}"
            f" FROM {values} AS j ({', '.join([*key, *columns])})"
            f" WHERE {' AND '.join(f'o.{c} = j.{c}' for c in key)}"
        )

    def delete(self, table: Table, key: Sequence[str]) -> str:
        """DELETE of the rows with the next arrays' keys."""
        return (
            f"DELETE FROM {table.name} AS o USING {self.unnest(table, key)}"
            f" AS j ({', '.join(key)}) WHERE {' AND '.join(f'o.{c} = j.{c}' for c in key)}"
        )


_PLACE = ["wallet_number", "quarter", "dimension_number"]
_DIMENSION_INSERTED = ["wallet_number", "number", "digest", *DIMENSION.names]
_LIMIT_KEY = ["wallet_number", "number"]
_GRANT_INSERTED = ["wallet_number", *GRANT.names, "open"]


#: What a batch writes beside the wallets' counters, where there is some.
_PARTS = {
    "named": lambda n: n.insert(schema.dimensions, _DIMENSION_INSERTED),
    "given": lambda n: n.insert(schema.grants, _GRANT_INSERTED),
    "drawn": lambda n: n.update(schema.grants, ["wallet_number", "number"], ["remaining", "open"]),
    "held": lambda n: (
        n.insert(schema.holds, ["wallet_number", *HOLD.names])
        + " ON CONFLICT (wallet_number, number) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in HOLD_CHANGED.names)
    ),
    "counted": lambda n: (
        n.insert(schema.meter_events, ["wallet_number", *EVENT.names])
        + " ON CONFLICT (wallet_number, number) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in EVENT_CHANGED.names)
    ),
    "limited": lambda n: (
        n.insert(schema.spend_limits, ["wallet_number", *LIMIT.names])
        + " ON CONFLICT (wallet_number, number) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in LIMIT_CHANGED.names)
    ),
    "unlimited": lambda n: n.delete(schema.spend_limits, _LIMIT_KEY),
    "dropped": lambda n: n.insert(schema.dropped_limits, ["wallet_number", *DROPPED_LIMIT.names]),
    "parted": lambda n: n.insert(schema.grant_parts, GRANT_PART.names),
    "credited": lambda n: n.insert(schema.receipts, RECEIPT.names),
    "became": lambda n: n.insert(schema.hold_revisions, HOLD_REVISION.names),
    "revised": lambda n: n.insert(schema.grant_revisions, GRANT_REVISION.names),
    "overdrafts": lambda n: (
        n.insert(schema.overdraft_draws, OVERDRAFT.names)
        + " ON CONFLICT (wallet_number, sequence) DO UPDATE SET forgiven = excluded.forgiven"
    ),
    "payers": lambda n: n.insert(schema.overdraft_payers, PAYER.names),
    "overdraft_returns": lambda n: n.insert(
        schema.overdraft_returns, ["wallet_number", "sequence"]
    ),
    "repaid": lambda n: n.insert(schema.grant_repayments, GRANT_REPAYMENT.names),
    "posted": lambda n: n.insert(schema.postings, POSTING_INSERTED),
    "added": lambda n: (
        n.insert(schema.rollups, [*_PLACE, *SUM_NAMES])
        + f" ON CONFLICT ({', '.join(_PLACE)}) DO UPDATE SET "
        + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in SUM_NAMES)
    ),
    "written": lambda n: n.insert(schema.transactions, ROW.names),
    "placed": lambda n: n.insert_placed(),
}


@cache
def write_statement(parts: tuple[str, ...]) -> str:
    """All that a batch writes, as one statement: none of its parts reads what another wrote.

    A part costs even where it has no row, so there is a statement for each choice of them.
    """
    n = _Numbered()
    own = ",\n".join(f"{name} AS ({_PARTS[name](n)})" for name in parts)
    last = "written_in = greatest(o.written_in, pg_current_xact_id())"
    moved = n.update(schema.wallet_states, ["wallet_number"], COUNTER_NAMES, last)
    return f"WITH {own}\n{moved}"


WRITE_TERMS = _Numbered().update(
    schema.wallet_states,
    ["wallet_number"],
    WALLET_TERMS.names,
)

WRITE_CLOSED = _Numbered().update(schema.wallets, ["number"], ["closed_at"])
#: Apart, since of these some are drawn on as well.
WRITE_GROWN = _Numbered().update(schema.grants, ["wallet_number", "number"], GRANT_GROWN.names)

#: Apart and first, since the same receipt may be credited anew.
FREE_RECEIPTS = _Numbered().delete(schema.receipts, ["wallet_number", "grant_number"])
#: Apart, since few batches overdraw or pay back: counters are written by all.
WRITE_OVERDRAWN = _Numbered().update(
    schema.wallet_states, ["wallet_number"], WALLET_OVERDRAFT.names
)

#: Apart, since one statement changes a row only once, and of these some are drawn on as well.
WRITE_REVISED = _Numbered().update(schema.grants, ["wallet_number", "number"], GRANT_TERMS.names)
WRITE_REPAID = _Numbered().update(
    schema.grants, ["wallet_number", "number"], [*GRANT_REPAID.names, "open"]
)
