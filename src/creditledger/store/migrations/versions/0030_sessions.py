"""Sessions of the console: codes that open them, and keys that are theirs."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column(
        "api_keys", sa.Column("is_session", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_table(
        "session_codes",
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scope", sa.SmallInteger(), nullable=False),
        sa.Column("customer_id", TEXT, nullable=True),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["customer_id"], ["customers.id"], name="session_codes_customer_id_fk"
        ),
        sa.PrimaryKeyConstraint("code_hash", name="session_codes_pk"),
        sa.CheckConstraint("scope BETWEEN 1 AND 3", name=op.f("session_codes_scope_check")),
        sa.CheckConstraint(
            "(scope = 1) = (customer_id IS NOT NULL)", name=op.f("session_codes_customer_check")
        ),
    )
    op.create_index("session_codes_expires_at", "session_codes", ["expires_at"])
