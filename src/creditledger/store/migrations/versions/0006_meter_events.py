"""Meter events with what of them is unpaid; meters that can be switched off."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column(
        "meters", sa.Column("active", sa.Boolean(), server_default=sa.true(), nullable=False)
    )
    op.add_column("meters", sa.Column("description", TEXT, nullable=True))
    op.add_column("meters", sa.Column("updated_at", sa.BigInteger(), nullable=True))
    op.add_column(
        "wallet_states",
        sa.Column("unpaid_amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.create_table(
        "meter_events",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("identifier", TEXT, nullable=False),
        sa.Column("meter_id", TEXT, nullable=False),
        sa.Column("subscription_id", TEXT, nullable=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("unpaid", sa.BigInteger(), nullable=False),
        sa.Column("happened_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("paid_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "value > 0 AND unpaid >= 0 AND unpaid <= value",
            name=op.f("meter_events_unpaid_check"),
        ),
        sa.CheckConstraint(
            "(unpaid = 0) = (paid_at IS NOT NULL)", name=op.f("meter_events_paid_at_check")
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="meter_events_wallet_number_fk"
        ),
        sa.ForeignKeyConstraint(["meter_id"], ["meters.id"], name="meter_events_meter_id_fk"),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="meter_events_pk"),
        sa.UniqueConstraint(
            "wallet_number",
            "identifier",
            name="meter_events_wallet_number_identifier_unique",
        ),
        sqlite_with_rowid=False,
    )
    is_unpaid = sa.text("unpaid > 0")
    op.create_index(
        "meter_events_unpaid",
        "meter_events",
        ["wallet_number"],
        sqlite_where=is_unpaid,
        postgresql_where=is_unpaid,
    )
    op.create_index("meter_events_created", "meter_events", ["created_at"])
    op.create_index("meter_events_meter", "meter_events", ["meter_id", "happened_at"])
