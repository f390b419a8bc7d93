"""Grants that can be voided, what changes made of their terms, and their order over all wallets."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
THING = "what a grant has been"


def upgrade() -> None:
    by_wallet = op.get_bind().dialect.name == "postgresql"
    op.add_column("grants", sa.Column("voided_at", sa.BigInteger(), nullable=True))
    op.add_column(
        "grants",
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.create_index("grants_created", "grants", ["created_at", "wallet_number", "number"])
    op.create_table(
        "grant_revisions",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("grant_number", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_by", sa.BigInteger(), nullable=True),
        sa.Column("posting_number", sa.BigInteger(), nullable=True),
        sa.Column("name", TEXT, nullable=True),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("voided_at", sa.BigInteger(), nullable=True),
        sa.Column("metadata", TEXT, nullable=True),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="grant_revisions_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint(
            "wallet_number", "grant_number", "number", name="grant_revisions_pk"
        ),
        sqlite_with_rowid=False,
    )
    for act in ("UPDATE", "DELETE", *(("TRUNCATE",) if by_wallet else ())):
        trigger = f"CREATE TRIGGER grant_revisions_no_{act.lower()} BEFORE {act} ON grant_revisions"
        if by_wallet:
            op.execute(f"{trigger} EXECUTE FUNCTION refuse_change('{THING}')")
        else:
            op.execute(
                f"{trigger} BEGIN SELECT RAISE(ABORT, '{THING} is never changed; write another');"
                " END"
            )
