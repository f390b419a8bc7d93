"""Checks of folds: the sums of the rows up to the fold's end, minus the stored figures."""

from functools import partial

from creditledger.domain.clock import QUARTER
from creditledger.domain.model import Category, Kind
from creditledger.store import schema
from creditledger.store.folds.figures import QUARTERS
from creditledger.store.verify.check import Check, Pass, joined
from creditledger.store.verify.row_checks import OF_POSTING
from creditledger.store.verify.spelling import FIRST_QUANTITIES, QUANTITIES, SqlSpelling

KEY = "wallet_number, quarter, dimension_number"
#: The figures of a fold.
SUMS = ("count", "amount", "voucher_amount", "posting_count", *QUANTITIES)
#: The start of each message.
_WHICH = "quarter {fold.quarter}, dimension {fold.dimension_number}"
#: 1 for the first row of a posting, else 0.
FIRST = "CASE WHEN row.sequence = posting.first_sequence THEN 1 ELSE 0 END"
#: Credit that a refund gives back of an overdraft counts as paid, whatever its category.
OF_OVERDRAFT = f"""LEFT JOIN overdraft_returns ON row.kind = {Kind.REFUND}
    AND overdraft_returns.wallet_number = row.wallet_number
    AND overdraft_returns.sequence = row.sequence"""
_VOUCHER = f"""CASE WHEN grants.category = {Category.PROMOTIONAL}
    AND overdraft_returns.sequence IS NULL THEN row.amount ELSE 0 END"""
#: A row is in a fold if it is not behind the fold's end. Unlike a join, coalesce() leaves SQLite no
#: choice of which table it reads first.
WITH_FOLD_END = "LEFT JOIN fold_ends AS fold_end ON fold_end.wallet_number = row.wallet_number"
IS_FOLDED = "row.sequence <= coalesce(fold_end.sequence, 0)"
_DAY_KEY = "wallet_number, day, dimension_number"
#: Days before 1970, further than any time is old.
_DAYS_AGO = 10**9
_STORED_QUANTITY = " + ".join(QUANTITIES)


def quarter(time: str) -> str:
    """The quarter of an hour of a time, rounded down. Before 1970 `/` alone would round up."""
    ago = 10**10
    return f"({time} + {ago * QUARTER}) / {QUARTER} - {ago} AS quarter"


def _off(name: str, column: str) -> tuple[str, Check]:
    message = f"{_WHICH}: its rows have {{fold.{column}}} more"
    return f"fold_{name}", Check(f"fold.{column} <> 0", message)


def folds(sql: SqlSpelling) -> Pass:
    """Compares folds with the sums of their rows.

    One grouping finds missing and surplus folds: both differ from 0. Quantities stay JSON until
    they are added up, to keep the sorted rows narrow.
    """
    stored = sql.listing(", ".join(f"-{name}" for name in QUANTITIES))
    item = partial(sql.item, of=sql.parsed("js"))
    quantities = (f"coalesce(sum({item(i)}), 0) AS {name}" for i, name in enumerate(QUANTITIES))
    return Pass(
        "folds",
        ("credit_transactions", "folds", "fold_ends"),
        f"""(SELECT {KEY}, sum(stored) AS stored, sum(count) AS count, sum(amount) AS amount,
               sum(voucher_amount) AS voucher_amount, sum(posting_count) AS posting_count,
               {", ".join(quantities)}
        FROM (SELECT row.wallet_number, {quarter("coalesce(row.effective_at, row.created_at)")},
                row.dimension_number, 0 AS stored, 1 AS count, row.amount,
                {_VOUCHER} AS voucher_amount, {FIRST} AS posting_count, {FIRST_QUANTITIES} AS js
              FROM credit_transactions AS row LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
              {joined("grants", "grants", "row", "grant_number")} {OF_OVERDRAFT}
              {WITH_FOLD_END} WHERE {IS_FOLDED}
              UNION ALL SELECT {KEY}, 1, -count, -amount, -voucher_amount, -posting_count,
                {stored}
              FROM folds) AS every
        GROUP BY {KEY}) AS fold""",
        ("fold.wallet_number", "CAST(NULL AS bigint)"),
        {
            "fold": Check("fold.stored <> 1", f"{_WHICH}: there is no fold"),
            **dict(_off(name, name) for name in SUMS),
        },
    )


def moved_folds(sql: SqlSpelling) -> Pass:
    """Compares the sums by created_at, as their difference from the sums by effective_at.

    Only rows with an effective_at make a difference, so only these are grouped.
    """
    return Pass(
        "folds as written",
        ("credit_transactions", "folds", "fold_ends"),
        f"""(SELECT {KEY}, sum(count) AS count, sum(amount) AS amount, sum(quantity) AS quantity
        FROM (SELECT row.wallet_number,
                {quarter("CASE moved.sign WHEN 1 THEN row.created_at ELSE row.effective_at END")},
                row.dimension_number, moved.sign AS count, moved.sign * row.amount AS amount,
                moved.sign * {sql.quantity} AS quantity
              FROM credit_transactions AS row LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
              {WITH_FOLD_END}
              CROSS JOIN (SELECT 1 AS sign UNION ALL SELECT -1) AS moved
              WHERE {sql.moved} IS NOT NULL AND {IS_FOLDED}
              UNION ALL SELECT {KEY}, count - created_count, amount - created_amount,
                {_STORED_QUANTITY} - created_quantity FROM folds WHERE count <> created_count
                OR amount <> created_amount OR {_STORED_QUANTITY} <> created_quantity) AS every
        GROUP BY {KEY}) AS fold""",
        ("fold.wallet_number", "CAST(NULL AS bigint)"),
        dict(_off(f"created_{name}", name) for name in ("count", "amount", "quantity")),
    )


_DAY_SUMS = [column.name for column in schema.day_folds.c if not column.primary_key]
_DAY = f"(fold.quarter + {_DAYS_AGO * QUARTERS}) / {QUARTERS} - {_DAYS_AGO} AS day"
_WHICH_DAY = "day {day_fold.day}, dimension {day_fold.dimension_number}"
#: Compares sums by day with what the folds of the day come to, in wallets that have them.
DAY_FOLDS = Pass(
    "folds by day",
    ("folds", "day_folds", "fold_ends"),
    f"""(SELECT {_DAY_KEY}, sum(stored) AS stored,
           {", ".join(f"sum({name}) AS {name}" for name in _DAY_SUMS)}
    FROM (SELECT fold.wallet_number, {_DAY}, fold.dimension_number, 0 AS stored,
            {", ".join(f"fold.{name}" for name in _DAY_SUMS)}
          FROM fold_ends AS fold_end
          JOIN folds AS fold ON fold.wallet_number = fold_end.wallet_number
          WHERE fold_end.has_days
          UNION ALL SELECT {_DAY_KEY}, 1, {", ".join(f"-{name}" for name in _DAY_SUMS)}
          FROM day_folds) AS every
    GROUP BY {_DAY_KEY}) AS day_fold""",
    ("day_fold.wallet_number", "CAST(NULL AS bigint)"),
    {
        "day_fold": Check("day_fold.stored <> 1", f"{_WHICH_DAY}: there is no fold of the day"),
        "day_fold_sums": Check(
            " OR ".join(f"day_fold.{name} <> 0" for name in _DAY_SUMS),
            f"{_WHICH_DAY}: it is not the sum of its quarters",
        ),
    },
)


#: A fold that ended behind the wallet's last row would leave out the rows that come next.
FOLD_ENDS = Pass(
    "fold ends",
    ("fold_ends",),
    """fold_ends AS fold_end
    LEFT JOIN wallet_states AS state ON state.wallet_number = fold_end.wallet_number""",
    ("fold_end.wallet_number", "CAST(NULL AS bigint)"),
    {
        "fold_end": Check(
            "fold_end.sequence > coalesce(state.sequence, 0)",
            "it is folded up to {fold_end.sequence}, behind its last row",
        )
    },
)
