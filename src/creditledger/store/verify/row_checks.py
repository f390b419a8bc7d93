"""Checks of rows: each with the row before it and with what it refers to."""

from creditledger.domain.model import Kind, Origin, Type
from creditledger.store.verify.check import SPENDING, Check, Op, Pass, joined
from creditledger.store.verify.spelling import SqlSpelling

#: The posting of a row.
OF_POSTING = "posting.wallet_number = row.wallet_number AND posting.number = row.posting_number"
#: Conditions on a row, its posting and its dimension.
OUTSIDE = """row.sequence < posting.first_sequence
    OR row.sequence >= posting.first_sequence + posting.row_count"""
NO_SUCH_KIND = f"""NOT (
    posting.operation IN ({SPENDING}) AND row.type = {Type.CONSUMPTION}
      AND row.kind = {Kind.USAGE} AND row.amount < 0
    OR posting.operation = {Op.GRANT} AND row.type = {Type.GRANT} AND row.amount > 0
      AND row.kind IN ({Kind.TOPUP}, {Kind.SUBSCRIPTION_RENEW}, {Kind.ADMIN_CREDIT})
    OR posting.operation = {Op.ADJUSTMENT} AND row.type = {Type.ADJUSTMENT}
      AND row.kind = CASE WHEN row.amount > 0 THEN {Kind.ADMIN_CREDIT} ELSE {Kind.ADMIN_DEBIT} END
    OR posting.operation = {Op.REFUND} AND row.type = {Type.ADJUSTMENT}
      AND row.kind = {Kind.REFUND} AND row.amount > 0
    OR posting.operation IN ({Op.CANCEL}, {Op.RETURN}) AND row.type = {Type.ADJUSTMENT}
      AND row.kind = {Kind.REFUND} AND row.amount > 0
    OR posting.operation = {Op.TRANSFER} AND row.type = {Type.ADJUSTMENT}
      AND row.kind = {Kind.TRANSFER_OUT} AND row.amount < 0
    OR posting.operation = {Op.RECEIVE} AND row.type = {Type.ADJUSTMENT}
      AND row.kind = {Kind.TRANSFER_IN} AND row.amount > 0
    OR posting.operation IN ({Op.EXPIRY}, {Op.VOID}) AND row.type = {Type.EXPIRATION}
      AND row.kind = {Kind.EXPIRY} AND row.amount < 0)"""
OTHER_DIMENSION = """dimension.kind <> row.kind OR dimension.type <> row.type
    OR posting.quantities IS NOT NULL AND NOT dimension.has_usage"""
NO_SUCH_GRANT = f"""row.grant_number < 1 OR row.grant_number > row.sequence
    OR row.amount < 0 AND row.grant_number = row.sequence
    OR row.kind IN ({Kind.EXPIRY}, {Kind.TRANSFER_OUT}, {Kind.TRANSFER_IN})
      AND row.grant_number IS NULL
    OR row.kind IN ({Kind.TOPUP}, {Kind.SUBSCRIPTION_RENEW}, {Kind.ADMIN_CREDIT})
      AND coalesce(row.grant_number, 0) <> row.sequence"""
#: The first moment at which a grant could not be drawn on. Rows of the moment of its void may still
#: draw on it.
GONE_AT = "coalesce(grants.voided_at + 1, grants.expires_at)"
#: A refund gave credit back to the grant at the moment of the row. The grant gets no new end, so
#: that credit expires at once.
_CAME_BACK = f"""grants.returned AND EXISTS (SELECT 1 FROM credit_transactions AS refund
    WHERE refund.wallet_number = row.wallet_number AND refund.sequence < row.sequence
    AND refund.kind = {Kind.REFUND} AND refund.sequence >= row.sequence - 2000
    AND refund.grant_number = row.grant_number AND refund.created_at = row.created_at)"""
#: An expiration has the moment at which its grant ends. Credit that a hold had set aside expires
#: when the hold ends; credit that comes back later expires when it comes back.
NOT_EXPIRED = f"""row.kind = {Kind.EXPIRY} AND (
    coalesce(grants.voided_at, grants.expires_at) IS NULL
    OR coalesce(grants.voided_at, grants.expires_at) > row.created_at
    OR CASE WHEN posting.operation = {Op.VOID}
      THEN row.effective_at IS NOT NULL OR coalesce(grants.voided_at, 0) <> row.created_at
      WHEN row.effective_at IS NULL AND {_CAME_BACK} THEN false
      WHEN grants.voided_at IS NULL
        AND grants.expires_at = coalesce(row.effective_at, row.created_at)
      THEN row.posting_number <> before.posting_number AND grants.expires_at <= before.created_at
        AND NOT EXISTS (SELECT 1 FROM holds AS hold WHERE hold.wallet_number = row.wallet_number
          AND hold.ended_at = grants.expires_at)
      ELSE NOT EXISTS (SELECT 1 FROM holds AS hold WHERE hold.wallet_number = row.wallet_number
        AND hold.ended_at = coalesce(row.effective_at, row.created_at)
        AND hold.ended_at >= coalesce(grants.voided_at, grants.expires_at + 1)) END)"""
#: A grant agrees with the row that made it. Parts add to its amount; `grant_amount` checks those.
OTHER_ORIGIN = f"""grants.amount <> row.amount AND NOT EXISTS (SELECT 1 FROM grant_parts AS part
      WHERE part.wallet_number = grants.wallet_number AND part.grant_number = grants.number)
    OR grants.origin <> CASE row.kind WHEN {Kind.REFUND} THEN {Origin.REFUND}
      WHEN {Kind.TRANSFER_IN} THEN {Origin.TRANSFER} ELSE CASE row.type
        WHEN {Type.ADJUSTMENT} THEN {Origin.ADJUSTMENT} ELSE {Origin.GIVEN} END END
    OR grants.created_at <> row.created_at
    OR grants.effective_at <> CASE row.type WHEN {Type.GRANT}
      THEN coalesce(row.effective_at, row.created_at) ELSE row.created_at END"""


def carried(sql: SqlSpelling) -> dict[str, str]:
    """Figures that rows carry -> what a row adds to the figure of the row before it."""
    return {
        "running_balance": "row.amount",
        "usage_count": f"CASE row.kind WHEN {Kind.USAGE} THEN 1 ELSE 0 END",
        "usage_amount": f"CASE row.kind WHEN {Kind.USAGE} THEN row.amount ELSE 0 END",
        "usage_quantity": f"CASE WHEN posting.quantities IS NULL THEN 0 ELSE {sql.quantity} END",
        "unmetered_amount": f"""CASE WHEN row.kind = {Kind.USAGE} AND NOT dimension.has_usage
            THEN -row.amount ELSE 0 END""",
    }


def _carries(column: str, added: str) -> tuple[str, Check]:
    there = f"row.{column}"
    due = f"CASE WHEN row.sequence = 1 THEN 0 ELSE before.{column} END + {added}"
    return column, Check(f"{there} <> {due}", f"{column} is {{{there}}}, not {{{due}}}")


def rows(sql: SqlSpelling) -> Pass:
    """Compares each row with the row before it and with what it refers to."""
    balance, *figures = (_carries(*one) for one in carried(sql).items())
    place, place_before = sql.place("row"), sql.place("before")
    return Pass(
        "rows",
        ("credit_transactions",),
        f"""credit_transactions AS row
        LEFT JOIN wallets AS wallet ON wallet.number = row.wallet_number
        {joined("credit_transactions", "before", "row", "sequence - 1", key="sequence")}
        LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
        {joined("dimensions", "dimension", "row", "dimension_number")}
        {joined("grants", "grants", "row", "grant_number")}""",
        ("row.wallet_number", "row.sequence"),
        {
            "row_wallet": Check("wallet.number IS NULL", "there is no such wallet"),
            "sequence": Check(
                "before.sequence IS NULL AND row.sequence <> 1",
                "there is no row {row.sequence - 1} before it",
            ),
            **dict([balance]),
            "created_at": Check(
                "row.created_at < before.created_at",
                "its time {row.created_at} is before {before.created_at}",
            ),
            "position": Check(
                f"{place} < {place_before}",
                f"its place in commit order {{{place}}} is before {{{place_before}}}",
            ),
            # Numbers of a wallet's postings ascend within a millisecond. In ledgers of older
            # versions they may go back from one millisecond to the next.
            "posting": Check(
                f"""posting.number IS NULL OR {OUTSIDE}
                OR row.posting_number < before.posting_number
                  AND row.created_at = before.created_at""",
                "it is no row of posting {row.posting_number}",
            ),
            "one_posting": Check(
                f"""row.posting_number = before.posting_number AND (
                  row.created_at <> before.created_at
                  OR row.dimension_number <> before.dimension_number
                  OR posting.operation <> {Op.EXPIRY} AND coalesce(row.effective_at, row.created_at)
                    <> coalesce(before.effective_at, before.created_at))""",
                "its time or dimension is not that of the row before it, of the same posting",
            ),
            "kind": Check(
                NO_SUCH_KIND,
                "operation {posting.operation} writes no kind {row.kind}, type {row.type}"
                " of {row.amount}",
            ),
            "dimension": Check(
                f"dimension.number IS NULL OR {OTHER_DIMENSION}",
                "dimension {row.dimension_number} is missing, of another kind or without usage",
            ),
            **dict(figures),
            "grant": Check(
                f"row.grant_number IS NOT NULL AND grants.number IS NULL OR {NO_SUCH_GRANT}",
                "it cannot be of grant {row.grant_number}",
            ),
            "grant_origin": Check(
                f"row.grant_number = row.sequence AND ({OTHER_ORIGIN})",
                "the grant it made has another amount or time",
            ),
            "grant_time": Check(
                f"""row.kind <> {Kind.EXPIRY} AND {GONE_AT} <= row.created_at
                  AND posting.operation <> {Op.CAPTURE}
                  AND NOT (row.kind = {Kind.REFUND} AND grants.returned)
                OR row.kind IN ({Kind.USAGE}, {Kind.TRANSFER_OUT})
                  AND grants.effective_at > row.created_at""",
                "grant {grants.number} was not open at {row.created_at}",
            ),
            "expiration": Check(
                NOT_EXPIRED,
                f"it is too early or too late for grant {{grants.number}}, gone at {{{GONE_AT}}}",
            ),
        },
    )


KIND_COUNTS = Pass(
    "kind counts",
    ("credit_transactions",),
    f"""(SELECT wallet_number, sequence, kind_count, 1 + coalesce(
           lag(kind_count) OVER (PARTITION BY wallet_number, kind ORDER BY sequence), 0) AS n
         FROM credit_transactions WHERE kind <> {Kind.USAGE}) AS row""",
    ("row.wallet_number", "row.sequence"),
    {"kind_count": Check("row.kind_count <> row.n", "kind_count is {row.kind_count}, not {row.n}")},
)
