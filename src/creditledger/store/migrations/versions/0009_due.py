"""What has ended and may not be written down: what the sweeper looks for, over all wallets."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index(
        "grants_due",
        "grants",
        ["expires_at", "wallet_number", "number"],
        sqlite_where=sa.text("open = 1 AND expires_at IS NOT NULL"),
        postgresql_where=sa.text("open AND expires_at IS NOT NULL"),
    )
    is_open = sa.text("ended IS NULL")
    op.create_index(
        "holds_due",
        "holds",
        ["deadline", "wallet_number", "number"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
