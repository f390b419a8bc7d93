"""Checks of webhook deliveries: the subject and the endpoint of each."""

from creditledger.domain.model import HoldEnd
from creditledger.domain.webhook_events import EventType
from creditledger.store.verify.check import Check, Pass, joined

#: The subject of a delivery exists, and its endpoint may hear of the wallet.
WEBHOOKS = Pass(
    "webhook deliveries",
    ("webhook_deliveries",),
    f"""webhook_deliveries AS delivery
    LEFT JOIN wallets AS wallet ON wallet.number = delivery.wallet_number
    LEFT JOIN webhook_endpoints AS endpoint ON endpoint.number = delivery.endpoint_number
    LEFT JOIN webhook_feed AS feed ON feed.number = 1
    {joined("credit_transactions", "row", "delivery", "subject", key="sequence")}
      AND delivery.type NOT IN ({EventType.GRANT_EXPIRING}, {EventType.HOLD_EXPIRED})
    {joined("grants", "grants", "delivery", "subject")}
      AND delivery.type = {EventType.GRANT_EXPIRING}
    {joined("holds", "hold", "delivery", "subject")}
      AND delivery.type = {EventType.HOLD_EXPIRED} AND hold.ended = {HoldEnd.EXPIRED}""",
    ("delivery.wallet_number", "NULL"),
    {
        "delivery_subject": Check(
            "row.sequence IS NULL AND grants.number IS NULL AND hold.number IS NULL",
            "delivery {delivery.number} of type {delivery.type} is about {delivery.subject},"
            " which is not there",
        ),
        "delivery_endpoint": Check(
            """endpoint.number IS NULL OR wallet.number IS NULL
            OR endpoint.livemode <> wallet.livemode
            OR coalesce(endpoint.customer_id, wallet.customer_id) <> wallet.customer_id""",
            "delivery {delivery.number} is for endpoint {delivery.endpoint_number},"
            " which does not hear of its wallet",
        ),
        "delivery_number": Check(
            "feed.number IS NULL OR delivery.number > feed.made",
            "delivery {delivery.number} was not made yet",
        ),
    },
)
