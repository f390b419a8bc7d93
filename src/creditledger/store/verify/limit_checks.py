"""Checks of spend limits: their period, and what was spent in it."""

from creditledger.domain.clock import DAY, HOUR
from creditledger.domain.model import ROLLING_PARTS, Kind, Period
from creditledger.store.verify.check import Check, Op, Pass
from creditledger.store.verify.spelling import SqlSpelling

_WIDTH = f"(nullif(limits.hours, 0) * {HOUR // ROLLING_PARTS})"
#: The start of the part of the period in which a row spent.
_PART = f"""CASE limits.period WHEN {Period.ROLLING} THEN row.created_at / {_WIDTH} * {_WIDTH}
    ELSE CASE WHEN row.created_at >= limits.counted_until THEN limits.counted_until
    ELSE limits.counted_from END END AS start"""
#: The rows that count towards the limit.
_COUNTS = """JOIN dimensions AS dimension
      ON dimension.wallet_number = row.wallet_number AND dimension.number = row.dimension_number
    WHERE row.sequence > limits.since AND row.created_at >= limits.counted_from
      AND (limits.api_key_id IS NULL OR dimension.api_key_id = limits.api_key_id)"""
#: Postings that paid for canceled events. Rows from `below` on have been returned.
_CANCELED = " UNION ALL ".join(
    f"""SELECT event.wallet_number, coalesce(event.return_below, 0) AS below, posting.number,
      posting.first_sequence, posting.row_count
    FROM meter_events AS event
    JOIN postings AS posting ON posting.wallet_number = event.wallet_number AND {is_of}
    WHERE event.canceled_at IS NOT NULL"""
    for is_of in (
        "posting.number = event.number",
        f"posting.operation = {Op.SETTLE} AND posting.meter_event_id = event.identifier",
    )
)
#: (amount, its source): spent by rows; returned by refunds; drawn by canceled events and returned
#: since; refunded of such draws.
_SPENT = (
    (
        "-row.amount",
        f"""JOIN credit_transactions AS row ON row.wallet_number = limits.wallet_number
          AND row.kind = {Kind.USAGE}""",
    ),
    (
        "-refunded.amount",
        f"""JOIN credit_transactions AS refunded ON refunded.wallet_number = limits.wallet_number
          AND refunded.kind = {Kind.REFUND}
        JOIN postings AS refund ON refund.wallet_number = refunded.wallet_number
          AND refund.number = refunded.posting_number
        JOIN postings AS posting ON posting.wallet_number = refund.wallet_number
          AND posting.number = refund.refund_of
        JOIN credit_transactions AS row ON row.wallet_number = posting.wallet_number
          AND row.sequence = posting.first_sequence""",
    ),
    (
        "row.amount",
        f"""JOIN ({_CANCELED}) AS canceled ON canceled.wallet_number = limits.wallet_number
        JOIN credit_transactions AS row ON row.wallet_number = canceled.wallet_number
          AND row.sequence >= canceled.first_sequence
          AND row.sequence < canceled.first_sequence + canceled.row_count
          AND row.sequence >= canceled.below""",
    ),
    (
        "refunded.amount",
        f"""JOIN ({_CANCELED}) AS canceled ON canceled.wallet_number = limits.wallet_number
          AND canceled.first_sequence + canceled.row_count > canceled.below
        JOIN postings AS refund ON refund.wallet_number = canceled.wallet_number
          AND refund.refund_of = canceled.number
        JOIN credit_transactions AS refunded ON refunded.wallet_number = refund.wallet_number
          AND refunded.sequence >= refund.first_sequence
          AND refunded.sequence < refund.first_sequence + refund.row_count
        JOIN credit_transactions AS row ON row.wallet_number = canceled.wallet_number
          AND row.sequence = canceled.first_sequence""",
    ),
)
#: The longest day, week or month of a spend limit: its zone may cross the date line within it.
_LONGEST = " ".join(
    f"WHEN {period} THEN {days * DAY + 26 * HOUR}"
    for period, days in ((Period.DAY, 1), (Period.WEEK, 7), (Period.MONTH, 31))
)


def spend_limits(sql: SqlSpelling) -> Pass:
    """Compares what a limit says was spent with its rows, less what refunds returned.

    The returned part of the draws of a canceled event counts as not spent, whatever was refunded
    before.
    """
    spent = " UNION ALL ".join(
        f"""SELECT limits.wallet_number, limits.number, {_PART}, {amount} AS amount
        FROM spend_limits AS limits {source} {_COUNTS}"""
        for amount, source in _SPENT
    )
    return Pass(
        "spend limits",
        ("spend_limits",),
        f"""spend_limits AS limits
        LEFT JOIN wallet_states AS state ON state.wallet_number = limits.wallet_number
        LEFT JOIN (SELECT wallet_number, number, start, sum(amount) AS amount FROM ({spent}
            UNION ALL SELECT limits.wallet_number, limits.number, {sql.item(0)} AS start,
              -{sql.item(1)} AS amount
            FROM spend_limits AS limits, {sql.pairs("limits.parts")} AS pair) AS every
          GROUP BY wallet_number, number, start HAVING sum(amount) <> 0) AS counted
          ON counted.wallet_number = limits.wallet_number AND counted.number = limits.number""",
        ("limits.wallet_number", "NULL"),
        {
            "limit_made": Check(
                "limits.number > state.limits_made OR limits.since > state.sequence",
                "limit {limits.number}, made after row {limits.since}, was not made yet",
            ),
            "limit_period": Check(
                f"""(limits.time_zone IS NULL) <> (limits.counted_until IS NULL)
                OR limits.counted_until NOT BETWEEN limits.counted_from + 1
                  AND limits.counted_from + CASE limits.period {_LONGEST} END""",
                "limit {limits.number}: no period runs from {limits.counted_from}"
                " to {limits.counted_until}",
            ),
            "limit_zone": Check(
                "limits.time_zone IN ('localtime', 'Factory', 'posixrules')",
                "time_zone {limits.time_zone} is no IANA zone: it counts as UTC",
            ),
            "limit_spent": Check(
                "counted.amount <> 0",
                "limit {limits.number}: from {counted.start} on its rows have spent"
                " {counted.amount} more",
            ),
        },
    )
