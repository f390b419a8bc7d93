"""Shorter ways to learn that passes would find nothing.

All proofs of a database together fail if and only if a pass finds something; they do not say what.
On SQLite, where a pass looks up what belongs to each row, a proof reads each table once, in the
order in which it lies, and keeps what it needs of the rows before in a temporary table: where each
wallet stands, the sums of each grant and of each fold. INSERT ... ON CONFLICT DO UPDATE takes
one row after the other, so a condition in it sees the row, as `excluded`, and what the rows before
it left. PostgreSQL joins and groups whole tables by hashing, so there most passes are proofs.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection

from creditledger.domain.model import Category, Kind
from creditledger.store import schema
from creditledger.store.verify import grant_checks, row_checks, statement_checks, stored_checks
from creditledger.store.verify.check import Op, joined
from creditledger.store.verify.fold_checks import (
    FIRST,
    IS_FOLDED,
    OF_OVERDRAFT,
    SUMS,
    WITH_FOLD_END,
    quarter,
)
from creditledger.store.verify.passes import passes
from creditledger.store.verify.posting_checks import (
    POSTING_COUNT,
    POSTING_EVENT,
    POSTING_HOLD,
    POSTING_SHAPE,
    POSTING_SUM,
    POSTING_VOID,
    POSTINGS,
    posting_amount,
)
from creditledger.store.verify.row_checks import (
    GONE_AT,
    NO_SUCH_GRANT,
    NO_SUCH_KIND,
    NOT_EXPIRED,
    OF_POSTING,
    OTHER_DIMENSION,
    OTHER_ORIGIN,
    OUTSIDE,
)
from creditledger.store.verify.spelling import FIRST_QUANTITIES, QUANTITIES, SPELLINGS, SqlSpelling


class Proof(NamedTuple):
    """Questions whose answers have to be 0, and statements that fill temporary tables before."""

    name: str
    questions: tuple[str, ...]
    #: The proof holds if all these tables are empty. None: it is always made.
    about: tuple[str, ...] | None
    statements: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()  #: Temporary tables that `statements` make; dropped afterwards.
    #: What SQL cannot ask. It is given the names of the tables that have rows.
    holds: Callable[[Connection, Collection[str]], bool] | None = None


SQLITE = SPELLINGS["sqlite"]
POSTGRES = replace(SPELLINGS["postgresql"], listed=True)
_ROWS = "credit_transactions"
#: SQLite reads the whole table in the order in which it lies.
_UNINDEXED = "NOT INDEXED"


def _how_many(source: str, *conditions: str) -> str:
    """The number of rows that meet any of the conditions."""
    return f"SELECT count(*) FROM {source} WHERE {_any(conditions)}"


def _differ(one: str, other: str) -> str:
    return f"SELECT count(*) FROM (SELECT 1 AS n) AS once WHERE ({one}) <> ({other})"


def _any(conditions: tuple[str, ...]) -> str:
    return " OR ".join(f"({one})" for one in conditions)


def _when(*conditions: str) -> str:
    """1 if any condition is true. CASE stops at the first one that is, which OR alone does not."""
    return f"CASE WHEN {_any(conditions)} THEN 1 ELSE 0 END"


def _integers(*columns: str) -> str:
    """Declared with the type of the columns they are compared with, so that keys are found."""
    return ", ".join(f"{column} INTEGER" for column in columns)


#: The proof `rows` checks the amount of postings of one row.
_ONE_ROW_AMOUNT = f"posting.row_count = 1 AND ({posting_amount('row.amount')})"

# --- postings, on both ----------------------------------------------------------------------------


def _postings(unindexed: str = "") -> Proof:
    """The proof `rows` shows that each row takes one of the `row_count` places of its posting.

    No place is empty if there are as many rows as places.
    """
    of_several = posting_amount(POSTING_SUM)
    rows = f"SELECT count(*) FROM credit_transactions {unindexed}"
    return Proof(
        "postings",
        (
            _how_many(
                "postings AS posting",
                *(POSTING_COUNT, POSTING_SHAPE, POSTING_HOLD, POSTING_EVENT, POSTING_VOID),
                f"posting.row_count = 0 AND ({posting_amount('NULL')})",
            ),
            _differ("SELECT coalesce(sum(row_count), 0) FROM postings", rows),
            f"{_how_many(POSTINGS.source, of_several)} AND posting.row_count > 1",
        ),
        ("postings", _ROWS),
    )


# --- SQLite: rows, one after the other, each against where its wallet stands ----------------------

_STANDING = ("sequence", "posting_number", "created_at", "effective_at", "dimension_number")
_CARRIED = row_checks.carried(SQLITE)
_BY = tuple(f"{column}_by" for column in _CARRIED)

#: Conditions that two rows of a wallet, one behind the other, must not meet.
_NO_STEP = (
    "excluded.sequence <> sequence + 1",
    "excluded.created_at < created_at",
    "excluded.posting_number < posting_number AND excluded.created_at = created_at",
    *(f"excluded.{column} <> {column} + excluded.{column}_by" for column in _CARRIED),
    f"""excluded.posting_number = posting_number AND (
         excluded.created_at <> created_at OR excluded.dimension_number <> dimension_number
         OR excluded.kind <> {Kind.EXPIRY} AND excluded.effective_at <> effective_at)""",
)

_SQLITE_ROW_COUNT = f"SELECT count(*) FROM credit_transactions {_UNINDEXED}"
_SQLITE_ROWS = Proof(
    "rows",
    (
        _how_many(
            "standing LEFT JOIN wallets AS wallet ON wallet.number = standing.wallet_number",
            *("standing.wrong", "wallet.number IS NULL"),
        ),
        # Finds rows without a posting or dimension: they are not in `standing`.
        _differ("SELECT coalesce(sum(sequence), 0) FROM standing", _SQLITE_ROW_COUNT),
    ),
    (_ROWS,),
    (
        f"""CREATE TEMP TABLE labels (
              {_integers("wallet_number", "number", "kind", "type", "has_usage")},
              PRIMARY KEY (wallet_number, number)) WITHOUT ROWID""",
        "INSERT INTO labels SELECT wallet_number, number, kind, type, has_usage FROM dimensions",
        f"""CREATE TEMP TABLE standing (wallet_number INTEGER PRIMARY KEY,
              {_integers("wrong", "kind", *_STANDING, *_CARRIED, *_BY)})""",
        f"""INSERT INTO standing (wallet_number, wrong, sequence, {", ".join(_CARRIED)})
            SELECT number, 0, 0{", 0" * len(_CARRIED)} FROM wallets""",
        f"""INSERT INTO standing
              (wallet_number, wrong, kind, {", ".join((*_STANDING, *_CARRIED, *_BY))})
            SELECT row.wallet_number,
              {_when(OUTSIDE, NO_SUCH_KIND, OTHER_DIMENSION, NO_SUCH_GRANT, _ONE_ROW_AMOUNT)},
              row.kind, row.sequence, row.posting_number, row.created_at,
              coalesce(row.effective_at, row.created_at), row.dimension_number,
              {", ".join(f"row.{column}" for column in _CARRIED)}, {", ".join(_CARRIED.values())}
            FROM credit_transactions AS row NOT INDEXED
            CROSS JOIN postings AS posting CROSS JOIN labels AS dimension
            WHERE {OF_POSTING}
              AND dimension.wallet_number = row.wallet_number
              AND dimension.number = row.dimension_number
            ORDER BY row.position
            ON CONFLICT (wallet_number) DO UPDATE SET
              {", ".join(f"{column} = excluded.{column}" for column in (*_STANDING, *_CARRIED))},
              wrong = wrong + {_when("excluded.wrong", *_NO_STEP)}""",
    ),
    ("standing", "labels"),
)

#: The check `expiration`: few rows are expirations.
_SQLITE_EXPIRATIONS = Proof(
    "expirations",
    (
        _how_many(
            f"""credit_transactions AS row NOT INDEXED
            {joined("credit_transactions", "before", "row", "sequence - 1", key="sequence")}
            LEFT JOIN postings AS posting ON {OF_POSTING}
            {joined("grants", "grants", "row", "grant_number")}""",
            NOT_EXPIRED,
        ),
    ),
    (_ROWS,),
)

# --- SQLite: the sums of each grant, and the first and last time that it was drawn on -------------

_NEVER, _ALWAYS = 1 << 62, -(1 << 62)
#: SQLite finds one number faster than two. The proof `rows` shows that a grant's number fits.
_GRANT = f"{1 << 32} * {{0}}.wallet_number + {{0}}.{{1}}".format
_DRAWN = f"LEFT JOIN drawn ON drawn.grant_ = {_GRANT('grants', 'number')}"
#: A capture may draw on a grant that has ended. Such a grant is checked row by row.
_DRAWN_LATE = f"""CASE WHEN {GONE_AT} <= drawn.last_at THEN EXISTS (
      SELECT 1 FROM credit_transactions AS row JOIN postings AS posting ON {OF_POSTING}
      WHERE row.wallet_number = grants.wallet_number AND row.grant_number = grants.number
      AND row.kind <> {Kind.EXPIRY} AND row.created_at >= {GONE_AT}
      AND posting.operation <> {Op.CAPTURE}
      AND NOT (row.kind = {Kind.REFUND} AND grants.returned)) END"""

_SQLITE_GRANTS = Proof(
    "grants",
    (
        _how_many(
            f"{grant_checks.GRANTS} {_DRAWN}",
            *grant_checks.grants(SQLITE).wrong,
            f"row.grant_number = grants.number AND ({OTHER_ORIGIN})",
            *(_DRAWN_LATE, "grants.effective_at > drawn.first_at"),
        ),
        # Finds rows that name a grant which does not exist.
        _differ("SELECT count(*) FROM drawn", f"SELECT count(drawn.grant_) FROM grants {_DRAWN}"),
    ),
    ("grants", _ROWS),
    (
        f"""CREATE TEMP TABLE drawn (grant_ INTEGER PRIMARY KEY,
              {_integers("amount", "expirations", "first_at", "last_at")})""",
        f"""INSERT INTO drawn SELECT {_GRANT("row", "grant_number")}, row.amount,
              CASE row.kind WHEN {Kind.EXPIRY} THEN 1 ELSE 0 END,
              CASE WHEN row.kind IN ({Kind.USAGE}, {Kind.TRANSFER_OUT})
                THEN row.created_at ELSE {_NEVER} END,
              CASE row.kind WHEN {Kind.EXPIRY} THEN {_ALWAYS} ELSE row.created_at END
            FROM credit_transactions AS row NOT INDEXED WHERE row.grant_number IS NOT NULL
            ON CONFLICT DO UPDATE SET amount = amount + excluded.amount,
              expirations = expirations + excluded.expirations,
              first_at = min(first_at, excluded.first_at),
              last_at = max(last_at, excluded.last_at)""",
    ),
    ("drawn",),
)

# --- folds: the sums of their rows ----------------------------------------------------------------

_KEY = ("wallet_number", "quarter", "dimension_number")


def _entries(sql: SqlSpelling, promotional: str, quantities: str, unindexed: str = "") -> str:
    """The figures that each row adds to its fold."""
    return f"""SELECT row.wallet_number, {quarter("coalesce(row.effective_at, row.created_at)")},
          row.dimension_number, row.amount,
          CASE WHEN promotional.number IS NULL OR overdraft_returns.sequence IS NOT NULL
            THEN 0 ELSE row.amount END AS voucher_amount,
          {FIRST} AS posting_count, {quantities}
        FROM credit_transactions AS row {unindexed}
        LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
        {joined(promotional, "promotional", "row", "grant_number")}
        {OF_OVERDRAFT} {WITH_FOLD_END} WHERE {IS_FOLDED}"""


_PROMOTIONAL = f"SELECT wallet_number, number FROM grants WHERE category = {Category.PROMOTIONAL}"

_FIRST_JSON = f"{FIRST_QUANTITIES} AS js"
#: Sums lie in the order of time within each of a hundred groups of wallets. Two rows that follow
#: one another change sums that lie close together.
_SQLITE_FOLDS = Proof(
    "folds",
    (
        _how_many(
            """sums LEFT JOIN folds ON folds.wallet_number = sums.wallet_number
              AND folds.quarter = sums.quarter
              AND folds.dimension_number = sums.dimension_number""",
            "folds.quarter IS NULL",
            *(f"sums.{name} <> folds.{name}" for name in SUMS),
        ),
        # Finds folds without rows.
        _differ(
            "SELECT count(*) FROM sums",
            _how_many("folds", *(f"{name} <> 0" for name in SUMS)),
        ),
    ),
    (_ROWS, "folds", "fold_ends"),
    (
        f"""CREATE TEMP TABLE promotional ({_integers("wallet_number", "number")},
              PRIMARY KEY (wallet_number, number)) WITHOUT ROWID""",
        f"INSERT INTO promotional {_PROMOTIONAL}",
        f"""CREATE TEMP TABLE sums ({_integers("wallets", *_KEY, *SUMS)},
              PRIMARY KEY (wallets, quarter, wallet_number, dimension_number)) WITHOUT ROWID""",
        f"""INSERT INTO sums (wallets, {", ".join(_KEY)}, {", ".join(SUMS)})
            SELECT wallet_number / (SELECT 1 + max(number) / 100 FROM wallets),
              {", ".join(_KEY)}, 1, amount, voucher_amount, posting_count,
              {", ".join(f"coalesce({SQLITE.item(i, 'js')}, 0)" for i in range(len(QUANTITIES)))}
            FROM ({_entries(SQLITE, "promotional", _FIRST_JSON, _UNINDEXED)}) WHERE true
            ON CONFLICT DO UPDATE SET
              {", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)}""",
    ),
    ("sums", "promotional"),
)

_FILE = Proof("file", (_how_many("pragma_quick_check", "quick_check <> 'ok'"),), None)

# --- PostgreSQL -----------------------------------------------------------------------------------

_OF_ROWS = row_checks.rows(POSTGRES)
_POSTGRES_ROWS = Proof(
    "rows", (_how_many(_OF_ROWS.source, *_OF_ROWS.wrong, _ONE_ROW_AMOUNT),), (_ROWS,)
)

_SUMMED = ", ".join(
    f"coalesce(sum(listed[{i + 1}]), 0) AS {name}" for i, name in enumerate(QUANTITIES)
)

_FIRST_LISTED = "CASE WHEN row.sequence = posting.first_sequence THEN posting.listed END AS listed"

_POSTGRES_FOLDS = Proof(
    "folds",
    (
        _how_many(
            f"""(SELECT {", ".join(_KEY)}, count(*) AS count, sum(amount) AS amount,
                  sum(voucher_amount) AS voucher_amount, sum(posting_count) AS posting_count,
                  {_SUMMED}
                FROM ({_entries(POSTGRES, f"({_PROMOTIONAL})", _FIRST_LISTED)}) AS entries
                GROUP BY {", ".join(_KEY)}) AS sums
              FULL JOIN folds USING ({", ".join(_KEY)})""",
            "sums.count IS NOT NULL AND folds.count IS NULL",
            *(f"coalesce(sums.{name}, 0) <> folds.{name}" for name in SUMS),
        ),
    ),
    (_ROWS, "folds", "fold_ends"),
)

# --- what has to hold -----------------------------------------------------------------------------

_STATEMENTS = Proof(
    *("closed statements", (), ("statements",)),
    holds=lambda connection, _: not any(statement_checks.found(connection)),
)

_STORED = Proof(
    *("stored values", (), None),
    holds=lambda connection, filled: not any(stored_checks.found(connection, filled)),
)


def tables(dialect: str) -> tuple[str, ...]:
    """The names of all tables."""
    every = schema.metadata if dialect == "sqlite" else schema.postgresql
    return tuple(table.name for table in every.sorted_tables)


#: The longest proof comes first, so that connections that share the work end together.
_SQLITE = (
    *(_SQLITE_FOLDS, _SQLITE_ROWS, _FILE, _SQLITE_GRANTS, _postings(_UNINDEXED)),
    _SQLITE_EXPIRATIONS,
)
_POSTGRES = (_POSTGRES_ROWS, _POSTGRES_FOLDS, _postings())


@cache
def proofs(dialect: str) -> tuple[Proof, ...]:
    """All proofs. A pass is its own proof unless a shorter one has its name."""
    sql, own = (SQLITE, _SQLITE) if dialect == "sqlite" else (POSTGRES, _POSTGRES)
    names = {proof.name for proof in own}
    whole = (
        Proof(one.name, (_how_many(one.source, *one.wrong),), one.about)
        for one in passes(sql)
        if one.name not in names
    )
    return (*own, *whole, _STATEMENTS, _STORED)
