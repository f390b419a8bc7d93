"""PostgreSQL makes no statistics of a few rows of the tables of overdrafts either, as 0014 says."""

from alembic import op

revision = "0025"
down_revision = "0024"

TABLES = ("grant_repayments", "overdraft_draws", "overdraft_payers", "overdraft_returns")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} SET (autovacuum_analyze_threshold = 1000)")
