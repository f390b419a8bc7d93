"""What a wallet was topped up by and refunded in all, and postings in each roll-up."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TOPUP, REFUND = 1, 5
QUARTER = 15 * 60 * 1_000
#: Rounded down before 1970 too, where / alone rounds up.
AGO = 10**10

_SUMS = """
UPDATE wallet_states SET
  topup_amount = coalesce((SELECT sum(t.amount) FROM credit_transactions AS t
    WHERE t.wallet_number = wallet_states.wallet_number AND t.kind = :topup), 0),
  refund_amount = coalesce((SELECT sum(t.amount) FROM credit_transactions AS t
    WHERE t.wallet_number = wallet_states.wallet_number AND t.kind = :refund), 0)
"""

_COUNTS = f"""
UPDATE rollups SET posting_count = counted.postings
FROM (SELECT t.wallet_number, t.dimension_number,
        (coalesce(t.effective_at, t.created_at) + {AGO * QUARTER}) / {QUARTER} - {AGO} AS quarter,
        count(*) AS postings
      FROM postings AS p JOIN credit_transactions AS t
        ON t.wallet_number = p.wallet_number AND t.sequence = p.first_sequence
      WHERE p.row_count > 0
      GROUP BY t.wallet_number, t.dimension_number, quarter) AS counted
WHERE rollups.wallet_number = counted.wallet_number
  AND rollups.quarter = counted.quarter
  AND rollups.dimension_number = counted.dimension_number
"""  # noqa: S608 # constants


def upgrade() -> None:
    for table, column in (
        ("wallet_states", "topup_amount"),
        ("wallet_states", "refund_amount"),
        ("rollups", "posting_count"),
    ):
        op.add_column(
            table,
            sa.Column(column, sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        )
    connection = op.get_bind()
    connection.execute(sa.text(_SUMS), {"topup": TOPUP, "refund": REFUND})
    connection.execute(sa.text(_COUNTS))
