"""Idempotency keys of changes that are no wallet's; how what was deleted was shown last."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
THING = "an idempotency key"


def upgrade() -> None:
    on_server = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "change_keys",
        sa.Column("customer_id", TEXT, nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("rpc", TEXT, nullable=False),
        sa.Column("idempotency_key", TEXT, nullable=False),
        sa.Column("request", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("asked_by", sa.BigInteger(), nullable=True),
        sa.Column("subject", TEXT, nullable=True),
        sa.Column("answer", TEXT, nullable=True),
        sa.Column("place", TEXT, nullable=True),
        sa.ForeignKeyConstraint(["asked_by"], ["api_keys.number"], name="change_keys_asked_by_fk"),
        sa.PrimaryKeyConstraint(
            *("customer_id", "livemode", "rpc", "idempotency_key"), name="change_keys_pk"
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dropped_limits",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("api_key_id", TEXT, nullable=True),
        sa.Column("period", sa.SmallInteger(), nullable=False),
        sa.Column("time_zone", TEXT, nullable=True),
        sa.Column("hours", sa.SmallInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("resets_at", sa.BigInteger(), nullable=True),
        sa.Column("dropped_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="dropped_limits_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="dropped_limits_pk"),
        sa.CheckConstraint("period BETWEEN 1 AND 5", name=op.f("dropped_limits_period_check")),
        sqlite_with_rowid=False,
    )
    if on_server:
        op.execute("ALTER TABLE dropped_limits SET (autovacuum_analyze_threshold = 1000)")
    op.add_column("webhook_endpoints", sa.Column("deleted_as", TEXT, nullable=True))
    for act in ("DELETE", *(("TRUNCATE",) if on_server else ())):
        trigger = f"CREATE TRIGGER change_keys_no_{act.lower()} BEFORE {act} ON change_keys"
        if on_server:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is kept for ever'); END")
