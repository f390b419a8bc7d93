"""Webhook endpoints, what is made for them, and how far the ledger was read for it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("customer_id", TEXT, nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("url", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=True),
        sa.Column("events", TEXT, nullable=False),
        sa.Column("thresholds", TEXT, nullable=False),
        sa.Column("expiring_days", sa.SmallInteger(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("secret", TEXT, nullable=False),
        sa.Column("previous_secret", TEXT, nullable=True),
        sa.Column("previous_until", sa.BigInteger(), nullable=True),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("begins", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "expiring_days BETWEEN 1 AND 90", name=op.f("webhook_endpoints_expiring_days_check")
        ),
        sa.CheckConstraint(
            "(previous_secret IS NULL) = (previous_until IS NULL)",
            name=op.f("webhook_endpoints_previous_until_check"),
        ),
        sa.CheckConstraint(
            "deleted_at IS NULL OR (NOT enabled AND secret = '')",
            name=op.f("webhook_endpoints_deleted_at_check"),
        ),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="webhook_endpoints_customer_id_fk"
        ),
        sa.PrimaryKeyConstraint("number", name="webhook_endpoints_pk"),
        sa.UniqueConstraint("id", name="webhook_endpoints_id_unique"),
    )
    op.create_index("webhook_endpoints_customer_id", "webhook_endpoints", ["customer_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_number", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.SmallInteger(), nullable=False),
        sa.Column("subject", sa.BigInteger(), nullable=False),
        sa.Column("variant", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("kept_from", sa.BigInteger(), nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger(), nullable=False),
        sa.Column("give_up_at", sa.BigInteger(), nullable=False),
        sa.Column("last_attempt_at", sa.BigInteger(), nullable=True),
        sa.Column("last_status", sa.SmallInteger(), nullable=True),
        sa.Column("last_error", TEXT, nullable=True),
        sa.Column("delivered_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("type BETWEEN 1 AND 6", name=op.f("webhook_deliveries_type_check")),
        sa.CheckConstraint("status BETWEEN 1 AND 3", name=op.f("webhook_deliveries_status_check")),
        sa.CheckConstraint(
            "(status = 2) = (delivered_at IS NOT NULL)",
            name=op.f("webhook_deliveries_delivered_at_check"),
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="webhook_deliveries_wallet_number_fk"
        ),
        sa.ForeignKeyConstraint(
            ["endpoint_number"],
            ["webhook_endpoints.number"],
            name="webhook_deliveries_endpoint_number_fk",
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="webhook_deliveries_pk"),
        sa.UniqueConstraint(
            *("wallet_number", "endpoint_number", "type", "subject", "variant"),
            name="webhook_deliveries_once",
        ),
    )
    op.create_index(
        "webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint_number", "next_attempt_at"],
        sqlite_where=sa.text("status = 1"),
        postgresql_where=sa.text("status = 1"),
    )
    op.create_index("webhook_deliveries_log", "webhook_deliveries", ["endpoint_number", "number"])
    op.create_index("webhook_deliveries_age", "webhook_deliveries", ["kept_from"])
    feed = op.create_table(
        "webhook_feed",
        sa.Column("number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("mark", TEXT, nullable=False),
        sa.Column("made", sa.BigInteger(), nullable=False),
        sa.Column("holds_until", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("number = 1", name=op.f("webhook_feed_number_check")),
        sa.PrimaryKeyConstraint("number", name="webhook_feed_pk"),
    )
    op.bulk_insert(feed, [{"number": 1, "mark": "", "made": 0, "holds_until": 0}])
    op.create_index(
        "holds_expired",
        "holds",
        ["deadline", "wallet_number", "number"],
        sqlite_where=sa.text("ended = 3"),
        postgresql_where=sa.text("ended = 3"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # One row, moved on all the time; and rows that change a few times each.
        op.execute("ALTER TABLE webhook_feed SET (fillfactor = 10)")
        op.execute("ALTER TABLE webhook_deliveries SET (fillfactor = 80)")
