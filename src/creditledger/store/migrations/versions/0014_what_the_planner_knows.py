"""PostgreSQL: its planner does not take a wallet for small because it was, or because most are.

Statistics of a table of a few rows say nothing of what it becomes within a minute: none are made
before there are a thousand. And of what rows refer to, a wallet counts as one that has at least a
hundred: so each is looked up by its whole key, and not by going through all that its wallet has.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

TABLES = (
    *("credit_transactions", "postings", "grants", "dimensions", "rollups", "wallet_states"),
    *("holds", "hold_revisions", "meter_events", "spend_limits", "grant_revisions"),
    *("webhook_deliveries", "statements"),
)
REFERRED_TO = ("postings", "dimensions", "grants")


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} SET (autovacuum_analyze_threshold = 1000)")
    for table in REFERRED_TO:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN wallet_number SET (n_distinct = -0.01)")
        rows = op.get_bind().execute(sa.text(f"SELECT EXISTS (SELECT FROM {table})"))  # noqa: S608 # ours
        if rows.scalar_one():  # an empty one that is analyzed counts as one that stays small
            op.execute(f"ANALYZE {table}")
