"""Closed statements."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
THING = "a closed statement"


def upgrade() -> None:
    by_wallet = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "statements",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("time_zone", TEXT, nullable=False),
        sa.Column("closed_sequence", sa.BigInteger(), nullable=False),
        sa.Column("opening_balance", sa.BigInteger(), nullable=False),
        sa.Column("closing_balance", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_by", sa.BigInteger(), nullable=True),
        sa.Column("content", TEXT, nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="statements_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "number", name="statements_pk"),
        sa.CheckConstraint("number > 0", name=op.f("statements_number_check")),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("statements_ends_at_check")),
    )
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
        trigger = f"CREATE TRIGGER statements_no_{act.lower()} BEFORE {act} ON statements"
        if by_wallet:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
