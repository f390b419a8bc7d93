"""Checks of roll-ups: the sums of their rows, minus the stored figures."""

from functools import partial

from creditledger.domain.clock import QUARTER
from creditledger.domain.model import Category, Kind
from creditledger.store.verify.check import Check, Pass, joined
from creditledger.store.verify.row_checks import OF_POSTING
from creditledger.store.verify.spelling import FIRST_QUANTITIES, QUANTITIES, SqlSpelling

KEY = "wallet_number, quarter, dimension_number"
#: The figures of a roll-up.
SUMS = ("count", "amount", "voucher_amount", "posting_count", *QUANTITIES)
#: The start of each message.
_WHICH = "quarter {rollup.quarter}, dimension {rollup.dimension_number}"
#: 1 for the first row of a posting, else 0.
FIRST = "CASE WHEN row.sequence = posting.first_sequence THEN 1 ELSE 0 END"
#: Credit that a refund gives back of an overdraft counts as paid, whatever its category.
OF_OVERDRAFT = f"""LEFT JOIN overdraft_returns ON row.kind = {Kind.REFUND}
    AND overdraft_returns.wallet_number = row.wallet_number
    AND overdraft_returns.sequence = row.sequence"""
_VOUCHER = f"""CASE WHEN grants.category = {Category.PROMOTIONAL}
    AND overdraft_returns.sequence IS NULL THEN row.amount ELSE 0 END"""
_STORED_QUANTITY = " + ".join(QUANTITIES)


def quarter(time: str) -> str:
    """The quarter of an hour of a time, rounded down. Before 1970 `/` alone would round up."""
    ago = 10**10
    return f"({time} + {ago * QUARTER}) / {QUARTER} - {ago} AS quarter"


def _off(name: str, column: str) -> tuple[str, Check]:
    message = f"{_WHICH}: its rows have {{rollup.{column}}} more"
    return f"rollup_{name}", Check(f"rollup.{column} <> 0", message)


def rollups(sql: SqlSpelling) -> Pass:
    """Compares roll-ups with the sums of their rows.

    One grouping finds missing and surplus roll-ups: both differ from 0. Quantities stay JSON until
    they are added up, to keep the sorted rows narrow.
    """
    stored = sql.listing(", ".join(f"-{name}" for name in QUANTITIES))
    item = partial(sql.item, of=sql.parsed("js"))
    quantities = (f"coalesce(sum({item(i)}), 0) AS {name}" for i, name in enumerate(QUANTITIES))
    return Pass(
        "roll-ups",
        ("credit_transactions", "rollups"),
        f"""(SELECT {KEY}, sum(stored) AS stored, sum(count) AS count, sum(amount) AS amount,
               sum(voucher_amount) AS voucher_amount, sum(posting_count) AS posting_count,
               {", ".join(quantities)}
        FROM (SELECT row.wallet_number, {quarter("coalesce(row.effective_at, row.created_at)")},
                row.dimension_number, 0 AS stored, 1 AS count, row.amount,
                {_VOUCHER} AS voucher_amount, {FIRST} AS posting_count, {FIRST_QUANTITIES} AS js
              FROM credit_transactions AS row LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
              {joined("grants", "grants", "row", "grant_number")} {OF_OVERDRAFT}
              UNION ALL SELECT {KEY}, 1, -count, -amount, -voucher_amount, -posting_count,
                {stored}
              FROM rollups) AS every
        GROUP BY {KEY}) AS rollup""",
        ("rollup.wallet_number", "CAST(NULL AS bigint)"),
        {
            "rollup": Check("rollup.stored <> 1", f"{_WHICH}: there is no roll-up"),
            **dict(_off(name, name) for name in SUMS),
        },
    )


def moved_rollups(sql: SqlSpelling) -> Pass:
    """Compares the sums by created_at, as their difference from the sums by effective_at.

    Only rows with an effective_at make a difference, so only these are grouped.
    """
    return Pass(
        "roll-ups as written",
        ("credit_transactions", "rollups"),
        f"""(SELECT {KEY}, sum(count) AS count, sum(amount) AS amount, sum(quantity) AS quantity
        FROM (SELECT row.wallet_number,
                {quarter("CASE moved.sign WHEN 1 THEN row.created_at ELSE row.effective_at END")},
                row.dimension_number, moved.sign AS count, moved.sign * row.amount AS amount,
                moved.sign * {sql.quantity} AS quantity
              FROM credit_transactions AS row LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
              CROSS JOIN (SELECT 1 AS sign UNION ALL SELECT -1) AS moved
              WHERE {sql.moved} IS NOT NULL
              UNION ALL SELECT {KEY}, count - created_count, amount - created_amount,
                {_STORED_QUANTITY} - created_quantity FROM rollups WHERE count <> created_count
                OR amount <> created_amount OR {_STORED_QUANTITY} <> created_quantity) AS every
        GROUP BY {KEY}) AS rollup""",
        ("rollup.wallet_number", "CAST(NULL AS bigint)"),
        dict(_off(f"created_{name}", name) for name in ("count", "amount", "quantity")),
    )
