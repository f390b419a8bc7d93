"""What a hold has been, found by time: how a wallet was at a past moment."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("hold_revisions_created", "hold_revisions", ["wallet_number", "created_at"])
