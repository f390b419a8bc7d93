"""Sums over time leave the write path: what the roll-ups were is now the fold of each wallet.

The table has all rows of every wallet, so each is folded up to its last row. Wallets with many rows
get sums by day too, of those by quarter. All is one transaction: cut off, it has done nothing. A
server of an older version that still runs fails at its next batch, because the table that it adds
to is gone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"

#: A wallet with so many rows has sums by day.
MANY_ROWS = 4_000
#: A sum keeps `/` from rounding up before 1970.
AGO = 10**9
SUMS = (
    *("count", "amount", "voucher_amount", *(f"quantity_{i}" for i in range(6))),
    *("created_count", "created_amount", "created_quantity", "posting_count"),
)
ENDS = f"""
INSERT INTO fold_ends (wallet_number, sequence, has_days)
SELECT wallet_number, sequence, sequence >= {MANY_ROWS} FROM wallet_states WHERE sequence > 0"""  # noqa: S608 # a constant
DAYS = f"""
INSERT INTO day_folds (wallet_number, day, dimension_number, {", ".join(SUMS)})
SELECT fold.wallet_number, (fold.quarter + {96 * AGO}) / 96 - {AGO} AS day,
  fold.dimension_number, {", ".join(f"sum(fold.{name})" for name in SUMS)}
FROM fold_ends JOIN folds AS fold ON fold.wallet_number = fold_ends.wallet_number
WHERE fold_ends.has_days
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""  # noqa: S608 # constants alone
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # On PostgreSQL this waits for batches under way, and those that come later do not find it.
    op.rename_table("rollups", "folds")
    op.create_table(
        "fold_ends",
        sa.Column("wallet_number", NUMBER, nullable=False, autoincrement=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("has_days", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="fold_ends_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", name="fold_ends_pk"),
        sa.CheckConstraint("sequence >= 0", name=op.f("fold_ends_sequence_check")),
    )
    op.execute(ENDS)
    op.create_table(
        "day_folds",
        sa.Column("wallet_number", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("dimension_number", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in SUMS),
        sa.ForeignKeyConstraint(
            ["wallet_number"], ["wallets.number"], name="day_folds_wallet_number_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_number", "day", "dimension_number", name="day_folds_pk"),
        sqlite_with_rowid=False,
    )
    op.execute(DAYS)
    if op.get_bind().dialect.name == "postgresql":
        for table in ("fold_ends", "day_folds"):
            op.execute(
                f"ALTER TABLE {table} SET (fillfactor = 60, autovacuum_analyze_threshold = 1000)"
            )
