"""PostgreSQL: where a row stands in the order of commits, also within its wallet.

A database transaction is numbered when it locks its first wallet, and may then wait for another
one on which a later number is writing. Such rows were there before: they get the place of the last
one before them.
"""

import sqlalchemy as sa
from alembic import op

from creditledger.store.schema import Xid8

revision = "0011"
down_revision = "0010"

#: There is no max(xid8) before PostgreSQL 16.
LATEST = "max(CAST(CAST(written_in AS text) AS bigint))"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.add_column("credit_transactions", sa.Column("position", Xid8(), nullable=True))
    nobody = sa.text("CAST('0' AS xid8)")
    op.add_column(
        "wallet_states", sa.Column("written_in", Xid8(), nullable=False, server_default=nobody)
    )
    op.execute("ALTER TABLE credit_transactions DISABLE TRIGGER credit_transactions_no_update")
    op.execute(
        f"""
        UPDATE credit_transactions AS t SET position = CAST(CAST(b.latest AS text) AS xid8)
        FROM (SELECT wallet_number, sequence, {LATEST} OVER (
                PARTITION BY wallet_number ORDER BY sequence) AS latest
              FROM credit_transactions) AS b
        WHERE CAST(CAST(b.latest AS text) AS xid8) > t.written_in
          AND t.wallet_number = b.wallet_number AND t.sequence = b.sequence"""  # noqa: S608 # ours
    )
    op.execute("ALTER TABLE credit_transactions ENABLE TRIGGER credit_transactions_no_update")
    op.execute(
        f"""
        UPDATE wallet_states AS s SET written_in = CAST(CAST(b.latest AS text) AS xid8)
        FROM (SELECT wallet_number, {LATEST} AS latest
              FROM credit_transactions GROUP BY wallet_number) AS b
        WHERE s.wallet_number = b.wallet_number"""  # noqa: S608 # ours
    )
    op.drop_index("credit_transactions_written", "credit_transactions")
    op.create_index(
        "credit_transactions_place",
        "credit_transactions",
        [sa.text("coalesce(position, written_in)")],
    )
