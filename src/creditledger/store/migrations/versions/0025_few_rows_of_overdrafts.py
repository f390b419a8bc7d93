"""PostgreSQL: what 0014 tells the planner, of tables that came later and of the rows themselves.

No statistics are made of a few rows of the tables of overdrafts. And a wallet counts as one with a
hundred rows at least: a join does not go through all rows of a wallet for each of its postings.
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"

TABLES = ("grant_repayments", "overdraft_draws", "overdraft_payers", "overdraft_returns")
ROWS = "credit_transactions"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} SET (autovacuum_analyze_threshold = 1000)")
    op.execute(f"ALTER TABLE {ROWS} ALTER COLUMN wallet_number SET (n_distinct = -0.01)")
    found = op.get_bind().execute(sa.text(f"SELECT EXISTS (SELECT FROM {ROWS})"))  # noqa: S608 # ours
    if found.scalar_one():  # an empty one that is analyzed counts as one that stays small
        op.execute(f"ANALYZE {ROWS}")
