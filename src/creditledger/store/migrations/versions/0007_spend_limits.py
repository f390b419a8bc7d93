"""Spend limits, and how many each wallet has had."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column(
        "wallet_states",
        sa.Column("limits_made", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.create_table(
        "spend_limits",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("api_key_id", TEXT, nullable=True),
        sa.Column("period", sa.SmallInteger(), nullable=False),
        sa.Column("time_zone", TEXT, nullable=True),
        sa.Column("hours", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("counted_from", sa.BigInteger(), nullable=False),
        sa.Column("parts", TEXT, nullable=False),
        sa.CheckConstraint(
            "amount >= 0 AND amount <= 100000000000000000", name=op.f("spend_limits_amount_check")
        ),
        sa.CheckConstraint("period BETWEEN 1 AND 5", name=op.f("spend_limits_period_check")),
        sa.CheckConstraint(
            "(period <= 3) = (time_zone IS NOT NULL)", name=op.f("spend_limits_time_zone_check")
        ),
        sa.CheckConstraint(
            "(period = 4) = (hours IS NOT NULL)", name=op.f("spend_limits_hours_check")
        ),
        sa.CheckConstraint(
            "hours IS NULL OR hours BETWEEN 1 AND 744", name=op.f("spend_limits_hours_range_check")
        ),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="spend_limits_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="spend_limits_pk"),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        # Moved on by every posting that spends; no index has what changes.
        op.execute("ALTER TABLE spend_limits SET (fillfactor = 60)")
