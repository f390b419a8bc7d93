"""Exports that were streamed to their end: their digests, which clients ask for by their ids."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("key_id", TEXT, nullable=False),
        sa.Column("customer_id", TEXT, nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("sha256", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="exports_pk"),
    )
    op.create_index("exports_by_time", "exports", ["finished_at"])
    op.create_index("exports_by_key", "exports", ["key_id", "finished_at"])
