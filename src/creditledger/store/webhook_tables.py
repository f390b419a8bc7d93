"""The tables of webhooks: endpoints, what is made for them, and how far the ledger was read.

As schema.py, which imports this. Deliveries begin with the wallet that they are about, so they are
spread with it; no posting reads or writes any of this.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    UniqueConstraint,
    text,
)

from creditledger.store.tables import Number, Text, metadata

endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("number", Number, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("customer_id", Text, ForeignKey("customers.id"), index=True),
    Column("livemode", Boolean, nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text),
    # JSON: numbers of event types; triples of currency, amount and percentage.
    Column("events", Text, nullable=False),
    Column("thresholds", Text, nullable=False),
    Column("expiring_days", SmallInteger, nullable=False),
    Column("enabled", Boolean, nullable=False),
    # As they are, for the server has to sign with them; "" of an endpoint that is no more.
    Column("secret", Text, nullable=False),
    Column("previous_secret", Text),
    Column("previous_until", BigInteger),
    Column("since", BigInteger, nullable=False),
    Column("begins", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
    CheckConstraint("expiring_days BETWEEN 1 AND 90", name="expiring_days"),
    CheckConstraint("(previous_secret IS NULL) = (previous_until IS NULL)", name="previous_until"),
    CheckConstraint("deleted_at IS NULL OR (NOT enabled AND secret = '')", name="deleted_at"),
)
deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("wallet_number", BigInteger, ForeignKey("wallets.number"), nullable=False),
    # Counted over all of them.
    Column("number", BigInteger, nullable=False),
    Column("endpoint_number", BigInteger, ForeignKey("webhook_endpoints.number"), nullable=False),
    Column("type", SmallInteger, nullable=False),
    # Sequence of a row, number of a grant or of a hold.
    Column("subject", BigInteger, nullable=False),
    Column("variant", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # From when on its age counts: what it tells of may be to come.
    Column("kept_from", BigInteger, nullable=False),
    # Of one that is being sent: when another server may.
    Column("next_attempt_at", BigInteger, nullable=False),
    Column("give_up_at", BigInteger, nullable=False),
    Column("last_attempt_at", BigInteger),
    Column("last_status", SmallInteger),
    Column("last_error", Text),
    Column("delivered_at", BigInteger),
    PrimaryKeyConstraint("wallet_number", "number"),
    UniqueConstraint(
        *("wallet_number", "endpoint_number", "type", "subject", "variant"),
        name="webhook_deliveries_once",
    ),
    CheckConstraint("type BETWEEN 1 AND 6", name="type"),
    CheckConstraint("status BETWEEN 1 AND 3", name="status"),
    CheckConstraint("(status = 2) = (delivered_at IS NOT NULL)", name="delivered_at"),
)
c = deliveries.c
pending = text("status = 1")
Index(
    "webhook_deliveries_due",
    *(c.endpoint_number, c.next_attempt_at),
    sqlite_where=pending,
    postgresql_where=pending,
)
#: An endpoint's log, newest first.
Index("webhook_deliveries_log", c.endpoint_number, c.number)
#: What is old enough to go.
Index("webhook_deliveries_age", c.kept_from)
#: One row, locked by who makes deliveries: where in commit order the rows were last looked at,
#: how many deliveries there ever were, and until which deadline expired holds were looked for.
feed = Table(
    "webhook_feed",
    metadata,
    Column("number", SmallInteger, primary_key=True, autoincrement=False),
    Column("mark", Text, nullable=False),
    Column("made", BigInteger, nullable=False),
    Column("holds_until", BigInteger, nullable=False),
    CheckConstraint("number = 1", name="number"),
)
