"""Holds: credit set aside, what postings left of it, and what moves with every posting."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
THING = "what a hold has been"


def upgrade() -> None:
    by_wallet = op.get_bind().dialect.name == "postgresql"
    op.add_column(
        "wallet_states",
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.add_column("postings", sa.Column("hold_number", sa.BigInteger(), nullable=True))
    of_hold = sa.text("hold_number IS NOT NULL")
    op.create_index(
        "postings_holds",
        "postings",
        ["wallet_number", "hold_number", "number"],
        sqlite_where=of_hold,
        postgresql_where=of_hold,
    )
    op.create_table(
        "holds",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("captured", sa.BigInteger(), nullable=False),
        sa.Column("parts", TEXT, nullable=False),
        sa.Column("beyond", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("dimension_number", sa.BigInteger(), nullable=False),
        sa.Column("quantities", TEXT, nullable=True),
        sa.Column("meter_event_id", TEXT, nullable=True),
        sa.Column("ended", sa.SmallInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "amount > 0 AND captured >= 0 AND beyond >= 0", name=op.f("holds_amount_check")
        ),
        sa.CheckConstraint(
            "ended IS NULL OR ended BETWEEN 1 AND 3", name=op.f("holds_ended_check")
        ),
        sa.CheckConstraint(
            "(ended IS NULL) = (ended_at IS NULL)", name=op.f("holds_ended_at_check")
        ),
        sa.CheckConstraint(
            "ended IS NULL OR (parts = '[]' AND beyond = 0)", name=op.f("holds_parts_check")
        ),
        sa.CheckConstraint("deadline > created_at", name=op.f("holds_deadline_check")),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="holds_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="holds_pk"),
        sqlite_with_rowid=False,
    )
    is_open = sa.text("ended IS NULL")
    op.create_index(
        "holds_open", "holds", ["wallet_number"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_table(
        "hold_revisions",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("hold_number", sa.BigInteger(), nullable=False),
        sa.Column("posting_number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("captured", sa.BigInteger(), nullable=False),
        sa.Column("parts", TEXT, nullable=False),
        sa.Column("beyond", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=False),
        sa.Column("ended", sa.SmallInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="hold_revisions_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint(
            "wallet_number", "hold_number", "posting_number", name="hold_revisions_pk"
        ),
        sqlite_with_rowid=False,
    )
    if by_wallet:
        op.execute("ALTER TABLE holds SET (fillfactor = 60)")
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
        trigger = f"CREATE TRIGGER hold_revisions_no_{act.lower()} BEFORE {act} ON hold_revisions"
        if by_wallet:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
