"""Checks of meter events: what each is owed, and what was given back of it."""

from creditledger.store.verify.check import Check, Op, Pass, joined
from creditledger.store.verify.posting_checks import ENDS, POSTING_SUM

_PAID = f"""(SELECT posting.wallet_number, posting.meter_event_id, -sum({POSTING_SUM}) AS amount,
      min(first.dimension_number) AS first, max(first.dimension_number) AS last
    FROM postings AS posting {ENDS}
    WHERE posting.operation IN ({Op.METER_EVENT}, {Op.SETTLE}) AND posting.row_count > 0
    GROUP BY posting.wallet_number, posting.meter_event_id)"""
_RETURNED = f"""(SELECT posting.wallet_number, posting.meter_event_id, sum({POSTING_SUM}) AS amount,
      count(*) AS n
    FROM postings AS posting {ENDS} WHERE posting.operation IN ({Op.CANCEL}, {Op.RETURN})
    GROUP BY posting.wallet_number, posting.meter_event_id)"""
_REFUNDS = f"""(SELECT refunded.wallet_number, refunded.meter_event_id, sum({POSTING_SUM}) AS amount
    FROM postings AS posting {ENDS} JOIN postings AS refunded
      ON refunded.wallet_number = posting.wallet_number AND refunded.number = posting.refund_of
    WHERE posting.refund_of IS NOT NULL AND refunded.operation IN ({Op.METER_EVENT}, {Op.SETTLE})
    GROUP BY refunded.wallet_number, refunded.meter_event_id)"""
#: The credit that was given back for an event, and the credit that paid for it.
_BACK = "coalesce(returned.amount, 0) + coalesce(refunds.amount, 0)"
_DRAWN = "coalesce(paid.amount, 0)"

EVENTS = Pass(
    "meter events",
    ("meter_events",),
    f"""meter_events AS event
    LEFT JOIN meters AS meter ON meter.id = event.meter_id
    {joined("postings", "posting", "event", "number")}
    {joined(_PAID, "paid", "event", "identifier", key="meter_event_id")}
    LEFT JOIN dimensions AS dimension ON dimension.wallet_number = event.wallet_number
      AND dimension.number = paid.first
    {joined(_RETURNED, "returned", "event", "identifier", key="meter_event_id")}
    {joined(_REFUNDS, "refunds", "event", "identifier", key="meter_event_id")}""",
    ("event.wallet_number", "NULL"),
    {
        "event_posting": Check(
            f"""posting.number IS NULL OR posting.operation <> {Op.METER_EVENT}
            OR posting.amount <> event.value OR posting.idempotency_key <> event.identifier""",
            "posting {event.number} did not report event {event.identifier} of {event.value}",
        ),
        "event_meter": Check("meter.id IS NULL", "there is no meter {event.meter_id}"),
        "event_unpaid": Check(
            f"""event.unpaid <> CASE WHEN event.canceled_at IS NULL THEN event.value - {_DRAWN}
              ELSE 0 END""",
            f"{{event.unpaid}} of {{event.value}} are unpaid, and its rows are of {{{_DRAWN}}}",
        ),
        "event_paid_at": Check(
            "(event.unpaid = 0) <> (event.paid_at IS NOT NULL) OR event.paid_at < event.created_at",
            "it was paid at {event.paid_at} and {event.unpaid} are unpaid",
        ),
        "event_dimension": Check(
            """paid.first <> paid.last OR dimension.meter_id <> event.meter_id
            OR dimension.number IS NOT NULL
              AND coalesce(dimension.subscription_id, '') <> coalesce(event.subscription_id, '')""",
            "its rows are of another meter or subscription",
        ),
        "event_canceled": Check(
            f"""CASE WHEN event.canceled_at IS NULL
            THEN returned.n IS NOT NULL OR event.return_below IS NOT NULL
            ELSE returned.n IS NULL OR event.canceled_at < event.created_at
              OR event.paid_at > event.canceled_at OR {_BACK} > {_DRAWN}
              OR event.return_below IS NULL AND {_BACK} <> {_DRAWN} END""",
            "canceled at {event.canceled_at}, with {returned.amount} and {refunds.amount}"
            " refunded of {paid.amount}",
        ),
    },
)
