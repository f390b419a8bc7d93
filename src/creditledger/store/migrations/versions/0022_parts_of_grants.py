"""What made a grant, and the parts of grants that transfers and refunds add to."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
THING = "a part of a grant"
#: By kind (5 refund, 9 transfer_in) and type (3 adjustment) of the row that made it.
ORIGIN = """
UPDATE grants SET origin = CASE t.kind WHEN 5 THEN 3 WHEN 9 THEN 4 ELSE 2 END,
  words = CASE WHEN t.kind IN (5, 9) AND p.metadata IS NOT NULL THEN '-' END
FROM credit_transactions AS t
JOIN postings AS p ON p.wallet_number = t.wallet_number AND p.number = t.posting_number
WHERE t.wallet_number = grants.wallet_number AND t.sequence = grants.number AND t.type = 3"""


def upgrade() -> None:
    by_wallet = op.get_bind().dialect.name == "postgresql"
    op.add_column(
        "grants",
        sa.Column("origin", sa.SmallInteger(), server_default=sa.text("1"), nullable=False),
    )
    op.add_column("grants", sa.Column("words", TEXT, nullable=True))
    op.execute(ORIGIN)
    op.create_table(
        "grant_parts",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("overdraft_paid", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="grant_parts_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "sequence", name="grant_parts_pk"),
        sa.CheckConstraint("grant_number < sequence", name=op.f("grant_parts_grant_number_check")),
        sa.CheckConstraint("overdraft_paid >= 0", name=op.f("grant_parts_overdraft_paid_check")),
        sqlite_with_rowid=False,
    )
    op.create_index("grant_parts_grant", "grant_parts", ["wallet_number", "grant_number"])
    if by_wallet:
        op.execute("ALTER TABLE grant_parts SET (autovacuum_analyze_threshold = 1000)")
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
        trigger = f"CREATE TRIGGER grant_parts_no_{act.lower()} BEFORE {act} ON grant_parts"
        if by_wallet:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
