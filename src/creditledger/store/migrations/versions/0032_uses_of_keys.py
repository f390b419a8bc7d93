"""When each API key was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("last_used_at", sa.BigInteger(), nullable=True))
