"""Sums over time leave the write path: what the roll-ups were is now the fold of each wallet.

The table has all rows of every wallet, so each is folded up to its last row. A server of an older
version that still runs fails at its next batch, because the table that it adds to is gone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # On PostgreSQL this waits for batches under way, and those that come later do not find it.
    op.rename_table("rollups", "folds")
    op.create_table(
        "fold_ends",
        sa.Column("wallet_number", NUMBER, nullable=False, autoincrement=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="fold_ends_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", name="fold_ends_pk"),
        sa.CheckConstraint("sequence >= 0", name=op.f("fold_ends_sequence_check")),
    )
    op.execute(
        "INSERT INTO fold_ends (wallet_number, sequence)"
        " SELECT wallet_number, sequence FROM wallet_states WHERE sequence > 0"
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE fold_ends SET (fillfactor = 60, autovacuum_analyze_threshold = 1000)"
        )
