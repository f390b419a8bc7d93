"""Customers change: when, what they were created as, and whether they are archived."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("customers", sa.Column("updated_at", sa.BigInteger(), nullable=True))
    op.add_column("customers", sa.Column("archived_at", sa.BigInteger(), nullable=True))
    op.add_column("customers", sa.Column("created_as", TEXT, nullable=True))
