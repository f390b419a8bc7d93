"""How the last verification of the whole ledger ended."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "last_verification",
        sa.Column("number", NUMBER, nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=False),
        sa.Column("failed_checks", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("number", name="last_verification_pk"),
        sa.CheckConstraint("number = 1", name=op.f("last_verification_number_check")),
    )
