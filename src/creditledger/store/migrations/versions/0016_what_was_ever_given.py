"""What each wallet was ever given: the sum that bounds every other one."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

LARGEST = 2**63 - 1

# Usage takes only. Sums are taken in two parts, for one may pass 64 bits here.
_GIVEN = """
SELECT wallet_number, sum(amount >> 32), sum(amount & 4294967295)
FROM credit_transactions WHERE kind <> 6 AND amount > 0 GROUP BY wallet_number
"""
_SET = "UPDATE wallet_states SET credited_amount = :given WHERE wallet_number = :wallet"
#: Wallets written by one statement.
WALLETS = 10_000


def upgrade() -> None:
    op.add_column(
        "wallet_states",
        sa.Column("credited_amount", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    connection = op.get_bind()
    every = connection.execute(sa.text(_GIVEN)).all()
    given = [
        {"wallet": wallet, "given": min((int(high) << 32) + int(low), LARGEST)}
        for wallet, high, low in every
    ]
    for start in range(0, len(given), WALLETS):
        connection.execute(sa.text(_SET), given[start : start + WALLETS])
