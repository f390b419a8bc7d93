"""Shorter ways to learn that the passes of checks.py and credit_checks.py would find nothing.

All proofs of a database together fail if and only if a pass finds something; they do not say what.
On SQLite, where a pass looks up what belongs to each row, a proof reads each table once, in the
order in which it lies, and keeps what it needs of the rows before in a temporary table: where each
wallet stands, the sums of each grant and of each roll-up. INSERT ... ON CONFLICT DO UPDATE takes
one row after the other, so a condition in it sees the row, as `excluded`, and what the rows before
it left. PostgreSQL joins and groups whole tables by hashing, so there most passes are proofs.
Imports these two.
"""

from collections.abc import Callable, Collection
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection

from creditledger.domain.model import Category
from creditledger.store import schema
from creditledger.store.verify import checks, statement_checks, stored_checks
from creditledger.store.verify.checks import (
    CARRIED,
    FIRST,
    FIRST_QUANTITIES,
    GONE_AT,
    KIND_COUNTS,
    MOVED_ROLLUPS,
    NO_SUCH_GRANT,
    NO_SUCH_KIND,
    NOT_EXPIRED,
    OF_OVERDRAFT,
    OF_POSTING,
    OTHER_DIMENSION,
    OTHER_ORIGIN,
    OUTSIDE,
    POSTING_COUNT,
    POSTING_EVENT,
    POSTING_HOLD,
    POSTING_SHAPE,
    POSTING_SUM,
    POSTING_VOID,
    POSTINGS,
    QUANTITIES,
    REFUNDS,
    ROWS,
    Pass,
    posting_amount,
    quarter,
    wrong,
)
from creditledger.store.verify.credit_checks import (
    ARRIVED,
    EVENTS,
    GRANT_REPAYMENTS,
    GRANT_REVISIONS,
    GRANTS,
    HOLDS,
    LAST_REVISION,
    LIMITS,
    OVERDRAFT_PAYERS,
    OVERDRAFTS,
    PART_SUMS,
    PARTS,
    RECEIPT_ROWS,
    RECEIPTS,
    REPAID_SUMS,
    REVISIONS,
    SCOPES,
    TRANSFERS,
    WALLETS,
    WEBHOOKS,
)
from creditledger.store.verify.history_checks import BURN_ORDER, GIVEN, HOLD_STEPS, REFUND_SOURCES


class Proof(NamedTuple):
    """Questions whose answers have to be 0, and statements that fill temporary tables before."""

    name: str
    questions: tuple[str, ...]
    #: It holds where none of these tables has a row: most ledgers leave most of their tables empty.
    #: None: it is always asked.
    about: tuple[str, ...] | None
    statements: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()  #: Made by `statements`; taken away afterwards.
    #: What SQL cannot ask: whether all is well, told the tables that have rows.
    holds: Callable[[Connection, Collection[str]], bool] | None = None


def _how_many(source: str, *conditions: str) -> str:
    """Rows of which any condition is true."""
    return f"SELECT count(*) FROM {source} WHERE {_any(conditions)}"  # noqa: S608 # constants


def _differ(one: str, other: str) -> str:
    return f"SELECT count(*) FROM (SELECT 1 AS n) AS once WHERE ({one}) <> ({other})"  # noqa: S608 # constants


def _any(conditions: tuple[str, ...]) -> str:
    return " OR ".join(f"({one})" for one in conditions)


def _when(*conditions: str) -> str:
    """1 if any condition is true. CASE stops at the first one that is, which OR alone does not."""
    return f"CASE WHEN {_any(conditions)} THEN 1 ELSE 0 END"


def _whole(one: Pass, *about: str) -> Proof:
    """A pass that is its own proof; without rows of these tables it has nothing to look at."""
    return Proof(one.name, (_how_many(one.source, *wrong(one)),), about)


def _integers(*columns: str) -> str:
    """Declared as what they are compared with, or else no key would be found by them."""
    return ", ".join(f"{column} INTEGER" for column in columns)


# --- postings, on both ----------------------------------------------------------------------------

_ROWS = "credit_transactions"
#: Of a posting of one row `rows` shows it.
_ONE_ROW_AMOUNT = f"p.row_count = 1 AND ({posting_amount('t.amount')})"
_ROW_COUNT = "SELECT count(*) FROM credit_transactions $UNINDEXED"

#: Each row is one of its posting's `row_count` places, as `rows` shows. If there are as many rows
#: as places, none is empty.
_POSTINGS = Proof(
    "postings",
    (
        _how_many(
            "postings AS p",
            *(POSTING_COUNT, POSTING_SHAPE, POSTING_HOLD, POSTING_EVENT, POSTING_VOID),
            f"p.row_count = 0 AND ({posting_amount('NULL')})",
        ),
        _differ("SELECT coalesce(sum(row_count), 0) FROM postings", _ROW_COUNT),
        f"{_how_many(POSTINGS.source, posting_amount(POSTING_SUM))} AND p.row_count > 1",
    ),
    ("postings", _ROWS),
)

# --- SQLite: rows, one after the other, each against where its wallet stands ----------------------

_STANDING = ("sequence", "posting_number", "created_at", "effective_at", "dimension_number")
_BY = tuple(f"{column}_by" for column in CARRIED)

#: What changes between two rows of a wallet as it must not.
_NO_STEP = (
    "excluded.sequence <> sequence + 1",
    "excluded.created_at < created_at",
    "excluded.posting_number < posting_number AND excluded.created_at = created_at",
    *(f"excluded.{column} <> {column} + excluded.{column}_by" for column in CARRIED),
    """excluded.posting_number = posting_number AND (
         excluded.created_at <> created_at OR excluded.dimension_number <> dimension_number
         OR excluded.kind <> $EXPIRY AND excluded.effective_at <> effective_at)""",
)

_SQLITE_ROWS = Proof(
    "rows",
    (
        _how_many(
            "standing AS s LEFT JOIN wallets AS w ON w.number = s.wallet_number",
            *("s.wrong", "w.number IS NULL"),
        ),
        # Rows without a posting or dimension took no part.
        _differ("SELECT coalesce(sum(sequence), 0) FROM standing", _ROW_COUNT),
    ),
    (_ROWS,),
    (
        f"""CREATE TEMP TABLE labels (
              {_integers("wallet_number", "number", "kind", "type", "has_usage")},
              PRIMARY KEY (wallet_number, number)) WITHOUT ROWID""",
        "INSERT INTO labels SELECT wallet_number, number, kind, type, has_usage FROM dimensions",
        f"""CREATE TEMP TABLE standing (wallet_number INTEGER PRIMARY KEY,
              {_integers("wrong", "kind", *_STANDING, *CARRIED, *_BY)})""",
        f"""INSERT INTO standing (wallet_number, wrong, sequence, {", ".join(CARRIED)})
            SELECT number, 0, 0{", 0" * len(CARRIED)} FROM wallets""",  # noqa: S608 # constants
        f"""INSERT INTO standing
              (wallet_number, wrong, kind, {", ".join((*_STANDING, *CARRIED, *_BY))})
            SELECT t.wallet_number,
              {_when(OUTSIDE, NO_SUCH_KIND, OTHER_DIMENSION, NO_SUCH_GRANT, _ONE_ROW_AMOUNT)},
              t.kind, t.sequence, t.posting_number, t.created_at,
              coalesce(t.effective_at, t.created_at), t.dimension_number,
              {", ".join(f"t.{column}" for column in CARRIED)}, {", ".join(CARRIED.values())}
            FROM credit_transactions AS t NOT INDEXED
            CROSS JOIN postings AS p CROSS JOIN labels AS d
            WHERE {OF_POSTING}
              AND d.wallet_number = t.wallet_number AND d.number = t.dimension_number
            ORDER BY t.position
            ON CONFLICT (wallet_number) DO UPDATE SET
              {", ".join(f"{column} = excluded.{column}" for column in (*_STANDING, *CARRIED))},
              wrong = wrong + {_when("excluded.wrong", *_NO_STEP)}""",  # noqa: S608 # constants
    ),
    ("standing", "labels"),
)

#: What `rows` has to say of expirations: few rows are one.
_SQLITE_EXPIRATIONS = Proof(
    "expirations",
    (
        _how_many(
            """credit_transactions AS t NOT INDEXED
            LEFT JOIN credit_transactions AS b
              ON b.wallet_number = t.wallet_number AND b.sequence = t.sequence - 1
            LEFT JOIN postings AS p ON $OF_POSTING
            LEFT JOIN grants AS g
              ON g.wallet_number = t.wallet_number AND g.number = t.grant_number""",
            NOT_EXPIRED,
        ),
    ),
    (_ROWS,),
)

# --- SQLite: the sums of each grant, and the first and last time that it was drawn on -------------

_NEVER, _ALWAYS = 1 << 62, -(1 << 62)
#: One number is found faster than two. `rows` shows that a grant's number is from 1 to a sequence.
_GRANT = f"{1 << 32} * {{0}}.wallet_number + {{0}}.{{1}}".format
_DRAWN = f"LEFT JOIN drawn AS s ON s.grant_ = {_GRANT('g', 'number')}"

#: Captures may draw on what has ended; a grant that somebody did is looked at row by row.
_DRAWN_LATE = f"""CASE WHEN {GONE_AT} <= s.last_at THEN EXISTS (
      SELECT 1 FROM credit_transactions AS t JOIN postings AS p ON {OF_POSTING}
      WHERE t.wallet_number = g.wallet_number AND t.grant_number = g.number
      AND t.kind <> $EXPIRY AND t.created_at >= {GONE_AT} AND p.operation <> $OP_CAPTURE
      AND NOT (t.kind = $REFUND AND g.returned)) END"""  # noqa: S608 # constants

_SQLITE_GRANTS = Proof(
    "grants",
    (
        _how_many(
            f"""grants AS g
            LEFT JOIN wallet_states AS v ON v.wallet_number = g.wallet_number
            LEFT JOIN credit_transactions AS t
              ON t.wallet_number = g.wallet_number AND t.sequence = g.number
            {LAST_REVISION}
            {REPAID_SUMS}
            LEFT JOIN {PART_SUMS} AS m
              ON m.wallet_number = g.wallet_number AND m.grant_number = g.number
            {_DRAWN}""",
            *wrong(GRANTS),
            f"t.grant_number = g.number AND ({OTHER_ORIGIN})",
            *(_DRAWN_LATE, "g.effective_at > s.first_at"),
        ),
        # Rows of no grant.
        _differ(
            "SELECT count(*) FROM drawn",
            f"SELECT count(s.grant_) FROM grants AS g {_DRAWN}",  # noqa: S608 # constants
        ),
    ),
    ("grants", _ROWS),
    (
        f"""CREATE TEMP TABLE drawn (grant_ INTEGER PRIMARY KEY,
              {_integers("amount", "expirations", "first_at", "last_at")})""",
        f"""INSERT INTO drawn SELECT {_GRANT("t", "grant_number")}, t.amount,
              CASE t.kind WHEN $EXPIRY THEN 1 ELSE 0 END,
              CASE WHEN t.kind IN ($USAGE, $TRANSFER_OUT) THEN t.created_at ELSE {_NEVER} END,
              CASE t.kind WHEN $EXPIRY THEN {_ALWAYS} ELSE t.created_at END
            FROM credit_transactions AS t NOT INDEXED WHERE t.grant_number IS NOT NULL
            ON CONFLICT DO UPDATE SET amount = amount + excluded.amount,
              expirations = expirations + excluded.expirations,
              first_at = min(first_at, excluded.first_at),
              last_at = max(last_at, excluded.last_at)""",  # noqa: S608 # constants
    ),
    ("drawn",),
)

# --- roll-ups: the sums of their rows -------------------------------------------------------------

_KEY = ("wallet_number", "quarter", "dimension_number")
_SUMS = ("count", "amount", "voucher_amount", "posting_count", *QUANTITIES)


def _entries(promotional: str, quantities: str) -> str:
    """What each row adds to its roll-up."""
    return f"""SELECT t.wallet_number, {quarter("coalesce(t.effective_at, t.created_at)")},
          t.dimension_number, t.amount,
          CASE WHEN g.number IS NULL OR o.sequence IS NOT NULL THEN 0 ELSE t.amount END
            AS voucher_amount,
          {FIRST} AS posting_count, {quantities}
        FROM credit_transactions AS t $UNINDEXED
        LEFT JOIN $POSTINGS AS p ON $OF_POSTING
        LEFT JOIN {promotional} AS g
          ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
        {OF_OVERDRAFT}"""  # noqa: S608 # constants


_PROMOTIONAL = f"SELECT wallet_number, number FROM grants WHERE category = {Category.PROMOTIONAL:d}"  # noqa: S608 # constants

#: Sums lie in the order of time within each of a hundred groups of wallets: where rows are added
#: and roll-ups looked up is then never far from where it was done last.
_SQLITE_ROLLUPS = Proof(
    "roll-ups",
    (
        _how_many(
            """sums AS s LEFT JOIN rollups AS r ON r.wallet_number = s.wallet_number
              AND r.quarter = s.quarter AND r.dimension_number = s.dimension_number""",
            "r.quarter IS NULL",
            *(f"s.{name} <> r.{name}" for name in _SUMS),
        ),
        # Roll-ups of no rows.
        _differ(
            "SELECT count(*) FROM sums",
            _how_many("rollups", *(f"{name} <> 0" for name in _SUMS)),
        ),
    ),
    (_ROWS, "rollups"),
    (
        f"""CREATE TEMP TABLE promotional ({_integers("wallet_number", "number")},
              PRIMARY KEY (wallet_number, number)) WITHOUT ROWID""",
        f"INSERT INTO promotional {_PROMOTIONAL}",
        f"""CREATE TEMP TABLE sums ({_integers("wallets", *_KEY, *_SUMS)},
              PRIMARY KEY (wallets, quarter, wallet_number, dimension_number)) WITHOUT ROWID""",
        f"""INSERT INTO sums (wallets, {", ".join(_KEY)}, {", ".join(_SUMS)})
            SELECT wallet_number / (SELECT 1 + max(number) / 100 FROM wallets),
              {", ".join(_KEY)}, 1, amount, voucher_amount, posting_count,
              {", ".join(f"coalesce($JS_{i}, 0)" for i in range(len(QUANTITIES)))}
            FROM ({_entries("promotional", f"{FIRST_QUANTITIES} AS js")}) WHERE true
            ON CONFLICT DO UPDATE SET
              {", ".join(f"{name} = {name} + excluded.{name}" for name in _SUMS)}""",  # noqa: S608 # constants
    ),
    ("sums", "promotional"),
)

_FILE = Proof("file", (_how_many("pragma_quick_check", "quick_check <> 'ok'"),), None)

# --- PostgreSQL -----------------------------------------------------------------------------------

#: Quantities taken apart once for all that is asked of them: what CASE says of the side of a join
#: that may be missing is worked out before it.
_LISTED = """(SELECT *, CASE WHEN quantities IS NOT NULL
       THEN CAST(translate(quantities, '[]', '{}') AS bigint[]) END AS listed FROM postings)"""
_LISTED_SUM = f"""CASE WHEN t.sequence <> p.first_sequence OR p.listed IS NULL THEN 0
       WHEN cardinality(p.listed) <= {len(QUANTITIES)}
       THEN {" + ".join(f"coalesce(p.listed[{i + 1}], 0)" for i in range(len(QUANTITIES)))}
       ELSE (SELECT sum(q) FROM unnest(p.listed) AS q) END"""  # noqa: S608 # constants

_POSTGRES_ROWS = Proof("rows", (_how_many(ROWS.source, *wrong(ROWS), _ONE_ROW_AMOUNT),), (_ROWS,))

_SUMMED = ", ".join(
    f"coalesce(sum(listed[{i + 1}]), 0) AS {name}" for i, name in enumerate(QUANTITIES)
)
_FIRST_LISTED = "CASE WHEN t.sequence = p.first_sequence THEN p.listed END AS listed"

_POSTGRES_ROLLUPS = Proof(
    "roll-ups",
    (
        _how_many(
            f"""(SELECT {", ".join(_KEY)}, count(*) AS count, sum(amount) AS amount,
                  sum(voucher_amount) AS voucher_amount, sum(posting_count) AS posting_count,
                  {_SUMMED}
                FROM ({_entries(f"({_PROMOTIONAL})", _FIRST_LISTED)}) AS e
                GROUP BY {", ".join(_KEY)}) AS s
              FULL JOIN rollups AS r USING ({", ".join(_KEY)})""",  # noqa: S608 # constants
            "s.count IS NOT NULL AND r.count IS NULL",
            *(f"coalesce(s.{name}, 0) <> r.{name}" for name in _SUMS),
        ),
    ),
    (_ROWS, "rollups"),
)

_STATEMENTS = Proof(
    *("closed statements", (), ("statements",)),
    holds=lambda connection, _: not any(statement_checks.found(connection)),
)

_STORED = Proof(
    *("stored values", (), None),
    holds=lambda connection, filled: not any(stored_checks.found(connection, filled)),
)

# --- what has to hold -----------------------------------------------------------------------------

_MOVED = _whole(MOVED_ROLLUPS, _ROWS, "rollups")
#: What both ask alike, and takes less.
_MORE = (
    *(_whole(GIVEN, "postings"), _whole(HOLD_STEPS, "hold_revisions")),
    *(_whole(REFUND_SOURCES, _ROWS), _whole(BURN_ORDER, "postings")),
    *(_whole(GRANT_REVISIONS, "grant_revisions"), _whole(GRANT_REPAYMENTS, "grant_repayments")),
    *(_whole(WEBHOOKS, "webhook_deliveries"), _STATEMENTS),
    *(_whole(RECEIPTS, _ROWS), _whole(RECEIPT_ROWS, "receipts")),
    *(_whole(OVERDRAFTS, "overdraft_draws"), _whole(OVERDRAFT_PAYERS, "overdraft_payers")),
    *(_whole(PARTS, "grant_parts"), _whole(ARRIVED, _ROWS)),
    _STORED,
)
_HOLDS = (_whole(HOLDS, "holds"), _whole(REVISIONS, "hold_revisions"))
_WALLETS = (_whole(WALLETS, "wallets"), _whole(KIND_COUNTS, _ROWS))
_EVENTS = (
    *(_whole(TRANSFERS, "postings"), _whole(EVENTS, "meter_events")),
    *(_whole(LIMITS, "spend_limits"), _whole(SCOPES, "grants")),
)

#: What takes longest first, so that those who share the work end together.
_SQLITE = (
    *(_SQLITE_ROLLUPS, _SQLITE_ROWS, _FILE, _SQLITE_GRANTS, _MOVED, _POSTINGS),
    *(_whole(REFUNDS, "postings"), *_WALLETS, _SQLITE_EXPIRATIONS, *_HOLDS, *_EVENTS, *_MORE),
)
_POSTGRES = (
    *(_POSTGRES_ROWS, _POSTGRES_ROLLUPS, _MOVED, _whole(REFUNDS, "postings")),
    *(_whole(GRANTS, "grants"), _POSTINGS, *_WALLETS, *_HOLDS, *_EVENTS, *_MORE),
)


def proofs(dialect: str) -> tuple[Proof, ...]:
    """All that have to hold."""
    return _SQLITE if dialect == "sqlite" else _POSTGRES


def tables(dialect: str) -> tuple[str, ...]:
    """All that may have rows."""
    every = schema.metadata if dialect == "sqlite" else schema.postgresql
    return tuple(table.name for table in every.sorted_tables)


@cache
def words(dialect: str) -> dict[str, str]:
    """What $NAME stands for in a proof: mostly what it does in a pass."""
    if dialect == "sqlite":
        return checks.words(dialect) | {"UNINDEXED": "NOT INDEXED"}
    return checks.words(dialect) | {"UNINDEXED": "", "POSTINGS": _LISTED, "QUANTITY": _LISTED_SUM}
