"""Checks of postings: each with its rows, a refund with its posting, both sides of a transfer."""

from creditledger.domain.model import Kind
from creditledger.store.verify.check import CHANGES, SPENDING, Check, Op, Pass, joined
from creditledger.store.verify.row_checks import OF_POSTING

#: The first row of a posting, and its last if that is another one. The check `posting` of
#: row_checks.py holds all rows between them to the posting.
ENDS = f"""{joined("credit_transactions", "first", "posting", "first_sequence", key="sequence")}
    LEFT JOIN credit_transactions AS last ON posting.row_count > 1
      AND last.wallet_number = posting.wallet_number
      AND last.sequence = posting.first_sequence + posting.row_count - 1"""
#: The sum of the rows of a posting.
POSTING_SUM = "first.amount + coalesce(last.running_balance - first.running_balance, 0)"

#: Postings about a hold that have no rows; a capture has rows.
_OF_HOLD = f"{Op.HOLD}, {Op.RELEASE}, {Op.EXTEND}"
POSTING_SHAPE = f"""posting.number < 1
    OR (posting.operation IN ({Op.EXPIRY}, {Op.RECEIVE}, {Op.SETTLE}, {Op.RETURN}))
      <> (posting.idempotency_key IS NULL)
    OR (posting.operation IN ({Op.TRANSFER}, {Op.RECEIVE})) <> (posting.linked_wallet IS NOT NULL)
    OR (posting.linked_wallet IS NULL) <> (posting.linked_posting IS NULL)
    OR (posting.operation = {Op.REFUND}) <> (posting.refund_of IS NOT NULL)
    OR (posting.operation IN ({_OF_HOLD}, {Op.CAPTURE})) <> (posting.hold_number IS NOT NULL)
    OR posting.operation NOT IN ({Op.CONSUMPTION}, {Op.CAPTURE}) AND posting.quantities IS NOT NULL
    OR posting.operation NOT IN ({SPENDING}, {Op.CANCEL}, {Op.RETURN})
      AND posting.meter_event_id IS NOT NULL"""
#: These may have no rows: a meter event without any credit, its cancellation if nothing was drawn
#: or all was refunded, a void if holds have set aside all that is left, a capture of 0.
POSTING_COUNT = f"""posting.row_count < 0 OR posting.operation = {Op.VOID} AND posting.row_count > 1
    OR posting.operation = {Op.CAPTURE}
      AND (posting.row_count = 0) <> (coalesce(posting.amount, 1) = 0)
    OR posting.operation NOT IN
      ({Op.METER_EVENT}, {Op.VOID}, {Op.CAPTURE}, {Op.CANCEL}, {Op.RETURN})
      AND (posting.row_count = 0) <> (posting.operation IN ({_OF_HOLD}, {CHANGES}))"""
#: A posting that reports, pays or cancels a meter event names an event that agrees.
POSTING_EVENT = f"""posting.operation IN ({Op.METER_EVENT}, {Op.SETTLE}, {Op.CANCEL}, {Op.RETURN})
    AND NOT EXISTS (SELECT 1 FROM meter_events AS event
      WHERE event.wallet_number = posting.wallet_number
      AND event.identifier = posting.meter_event_id
      AND CASE posting.operation WHEN {Op.METER_EVENT} THEN event.number = posting.number
        WHEN {Op.SETTLE} THEN event.number <> posting.number
        ELSE event.number <> posting.number AND event.canceled_at IS NOT NULL END)"""
#: Every posting about a hold leaves a revision of the hold.
POSTING_HOLD = """posting.hold_number IS NOT NULL AND NOT EXISTS (
      SELECT 1 FROM hold_revisions AS revision WHERE revision.posting_number = posting.number
      AND revision.wallet_number = posting.wallet_number
      AND revision.hold_number = posting.hold_number)"""
#: A revision of a grant names the posting that voided the grant.
POSTING_VOID = f"""posting.operation = {Op.VOID} AND NOT EXISTS (
      SELECT 1 FROM grant_revisions AS revision WHERE revision.wallet_number = posting.wallet_number
      AND revision.posting_number = posting.number)"""
#: Operations whose postings have no amount.
_WITHOUT_AMOUNT = f"""{CHANGES}, {Op.RELEASE}, {Op.EXTEND}, {Op.EXPIRY}, {Op.SETTLE}, {Op.CANCEL},
    {Op.RETURN}, {Op.VOID}"""


def posting_amount(total: str) -> str:
    """What is wrong with the amount of a posting whose rows add up to `total`."""
    return f"""CASE WHEN posting.operation IN ({Op.CONSUMPTION}, {Op.TRANSFER})
        THEN posting.amount IS NULL OR -posting.amount <> {total}
      WHEN posting.operation IN ({_WITHOUT_AMOUNT}) THEN posting.amount IS NOT NULL
      ELSE CASE posting.operation
      WHEN {Op.CAPTURE} THEN posting.amount IS NOT NULL AND -posting.amount <> {total}
      WHEN {Op.REFUND} THEN posting.amount <> {total}
      WHEN {Op.HOLD} THEN posting.amount IS NULL
      WHEN {Op.METER_EVENT} THEN posting.amount IS NULL OR -posting.amount > {total}
      ELSE posting.amount IS NULL OR posting.amount <> {total} END END"""


POSTINGS = Pass(
    "postings",
    ("postings", "credit_transactions"),
    f"postings AS posting {ENDS}",
    ("posting.wallet_number", "posting.first_sequence"),
    {
        "posting_rows": Check(
            f"""{POSTING_COUNT}
            OR posting.row_count > 0 AND coalesce(first.posting_number, 0) <> posting.number
            OR posting.row_count > 1 AND coalesce(last.posting_number, 0) <> posting.number""",
            "posting {posting.number} does not have {posting.row_count} rows",
        ),
        "posting_shape": Check(
            POSTING_SHAPE,
            "posting {posting.number} has a field that operation {posting.operation} has not,"
            " or lacks one",
        ),
        "posting_hold": Check(
            POSTING_HOLD, "posting {posting.number} left nothing of hold {posting.hold_number}"
        ),
        "posting_event": Check(
            POSTING_EVENT,
            "posting {posting.number} is of meter event {posting.meter_event_id},"
            " which does not say so",
        ),
        "posting_void": Check(POSTING_VOID, "posting {posting.number} voided no grant"),
        "posting_amount": Check(
            posting_amount(POSTING_SUM),
            f"posting {{posting.number}} is of {{posting.amount}}, its rows of {{{POSTING_SUM}}}",
        ),
    },
)

_LABELS = ("api_key_id", "product_id", "product_name", "category", "billing_method")
_USAGE = ("has_usage", *_LABELS, "base_prices", "discount_prices", "price_precision")

REFUNDS = Pass(
    "refunds",
    ("postings",),
    f"""(SELECT posting.wallet_number, posting.number, posting.refund_of, posting.first_sequence,
           first.dimension_number, sum({POSTING_SUM}) OVER (
             PARTITION BY posting.wallet_number, posting.refund_of
             ORDER BY posting.first_sequence) AS so_far
         FROM postings AS posting {ENDS} WHERE posting.refund_of IS NOT NULL) AS refund
    {joined("postings", "posting", "refund", "refund_of")} {ENDS}
    {joined("dimensions", "dimension", "refund", "dimension_number")}
    LEFT JOIN dimensions AS original ON original.wallet_number = posting.wallet_number
      AND original.number = first.dimension_number""",
    ("refund.wallet_number", "refund.first_sequence"),
    {
        "refund_of": Check(
            f"""posting.number IS NULL OR posting.first_sequence >= refund.first_sequence
            OR posting.operation NOT IN ({SPENDING})""",
            "posting {refund.refund_of} cannot be refunded by posting {refund.number}",
        ),
        "refund_total": Check(
            f"refund.so_far > -({POSTING_SUM})",
            "{refund.so_far} of posting {posting.number} are refunded with it,"
            f" of {{-({POSTING_SUM})}}",
        ),
        "refund_usage": Check(
            " OR ".join(f"dimension.{label} <> original.{label}" for label in _USAGE),
            "its usage is not that of posting {posting.number}, which it refunds",
        ),
    },
)

_DRAW = """SELECT 1 FROM credit_transactions AS draw
    WHERE draw.wallet_number = refunded.wallet_number AND draw.sequence >= refunded.first_sequence
      AND draw.sequence < refunded.first_sequence + refunded.row_count"""

#: A refund returns credit to the grants it was drawn from, or to a grant made for the refund. The
#: cancellation of an event names no posting: several may have paid the event.
REFUND_SOURCES = Pass(
    "sources of refunds",
    ("credit_transactions",),
    f"""(SELECT * FROM credit_transactions WHERE kind = {Kind.REFUND}) AS row
    JOIN postings AS posting ON {OF_POSTING}
    {joined("postings", "refunded", "posting", "refund_of")}
    {joined("credit_transactions", "made", "row", "grant_number", key="sequence")}""",
    ("row.wallet_number", "row.sequence"),
    {
        "refund_source": Check(
            f"""posting.operation NOT IN ({Op.CANCEL}, {Op.RETURN})
            AND (row.grant_number IS NULL AND NOT EXISTS ({_DRAW} AND draw.grant_number IS NULL)
              OR made.kind NOT IN ({Kind.REFUND}, {Kind.TRANSFER_IN}) AND NOT EXISTS ({_DRAW}
                AND (draw.grant_number IS NULL OR draw.grant_number = row.grant_number)))""",
            "it returns to grant {row.grant_number}, which posting {posting.refund_of}"
            " did not draw on",
        ),
    },
)

#: No change without a row happened in the wallet at the time of the row.
_NOTHING_ELSE = " AND ".join(
    f"""NOT EXISTS (SELECT 1 FROM {table} AS other
      WHERE other.wallet_number = row.wallet_number AND other.created_at = row.created_at)"""
    for table in ("hold_revisions", "grant_revisions", "meter_events", "grant_repayments")
)

#: Row by row, the amount that leaves one wallet enters the other. Each side has the time of its own
#: wallet. The times differ only if one wallet is ahead of the clock.
TRANSFERS = Pass(
    "transfers",
    ("postings",),
    f"""(SELECT * FROM postings WHERE linked_posting IS NOT NULL) AS posting
    LEFT JOIN wallets AS wallet ON wallet.number = posting.wallet_number
    LEFT JOIN wallets AS other_wallet ON other_wallet.number = posting.linked_wallet
    LEFT JOIN postings AS other ON other.wallet_number = posting.linked_wallet
      AND other.number = posting.linked_posting
    LEFT JOIN credit_transactions AS row ON row.wallet_number = posting.wallet_number
      AND row.sequence >= posting.first_sequence
      AND row.sequence < posting.first_sequence + posting.row_count
    LEFT JOIN credit_transactions AS other_row ON other_row.wallet_number = other.wallet_number
      AND other_row.sequence = other.first_sequence + row.sequence - posting.first_sequence
    {joined("grants", "grants", "row", "grant_number")}
    {joined("grants", "other_grant", "other_row", "grant_number")}
    {joined("credit_transactions", "before", "posting", "first_sequence - 1", key="sequence")}""",
    ("posting.wallet_number", "coalesce(row.sequence, posting.first_sequence)"),
    {
        "transfer_link": Check(
            f"""other.number IS NULL OR coalesce(other.linked_wallet, 0) <> posting.wallet_number
            OR coalesce(other.linked_posting, 0) <> posting.number
            OR posting.operation + other.operation <> {Op.TRANSFER} + {Op.RECEIVE}""",
            "posting {posting.linked_posting} of wallet {posting.linked_wallet}"
            " is not the other side of {posting.number}",
        ),
        "transfer_wallets": Check(
            """wallet.number = other_wallet.number OR wallet.currency <> other_wallet.currency
            OR wallet.livemode <> other_wallet.livemode""",
            "it is between wallets of {wallet.currency} and {other_wallet.currency},"
            " or of two modes",
        ),
        "transfer_rows": Check(
            "other.row_count <> posting.row_count OR other_row.amount <> -row.amount",
            "it moved {row.amount}, and the other side {other_row.amount}",
        ),
        "transfer_time": Check(
            f"""row.created_at > other_row.created_at
            AND coalesce(before.created_at, 0) <> row.created_at AND {_NOTHING_ELSE}""",
            "it is of {row.created_at}, the other side of {other_row.created_at},"
            " and its wallet was not ahead",
        ),
        "transfer_category": Check(
            "grants.category <> other_grant.category",
            "its credit is of category {grants.category}, and that of the other side"
            " of {other_grant.category}",
        ),
    },
)
