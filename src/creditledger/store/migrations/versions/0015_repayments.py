"""Grants that pay overdraft back as they begin and end, from the moment of this migration on."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

THING = "what a grant paid back"


def upgrade() -> None:
    connection = op.get_bind()
    by_wallet = connection.dialect.name == "postgresql"
    nothing = sa.text("0")
    op.add_column(
        "wallets",
        sa.Column("repays_from", sa.BigInteger(), server_default=nothing, nullable=False),
    )
    op.add_column(
        "grants", sa.Column("repaid", sa.BigInteger(), server_default=nothing, nullable=False)
    )
    op.create_table(
        "grant_repayments",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("repaid_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="grant_repayments_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint(
            "wallet_number", "grant_number", "start", name="grant_repayments_pk"
        ),
        sa.CheckConstraint("start >= 0 AND amount > 0", name=op.f("grant_repayments_amount_check")),
        sa.CheckConstraint(
            "repaid_at <= created_at", name=op.f("grant_repayments_repaid_at_check")
        ),
        sqlite_with_rowid=False,
    )
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
        trigger = (
            f"CREATE TRIGGER grant_repayments_no_{act.lower()} BEFORE {act} ON grant_repayments"
        )
        if by_wallet:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
    # What was before stays as it is: months that were closed, and what was answered.
    if by_wallet:
        now = "CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)"
    else:
        now = str(time.time_ns() // 1_000_000)
    op.execute(f"UPDATE wallets SET repays_from = {now}")  # noqa: S608 # ours
