"""Transfers: two kinds of rows more, their counts, and which posting is the other side of one."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

COUNTS = (
    "sequence = usage_count + topup_count + subscription_renew_count + admin_credit_count"
    " + admin_debit_count + refund_count + expiry_count"
)
MORE = " + transfer_out_count + transfer_in_count"
#: (table, constraint, what it says, what it is to say)
CHECKS = (
    ("wallet_states", "wallet_states_counters_check", COUNTS, COUNTS + MORE),
    (
        "credit_transactions",
        "credit_transactions_kind_check",
        "kind BETWEEN 1 AND 7",
        "kind BETWEEN 1 AND 9",
    ),
)


def upgrade() -> None:
    for column in ("transfer_out_count", "transfer_in_count"):
        op.add_column(
            "wallet_states",
            sa.Column(column, sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        )
    for column in ("linked_wallet", "linked_posting"):
        op.add_column("postings", sa.Column(column, sa.BigInteger(), nullable=True))
    for table, name, before, after in CHECKS:
        if op.get_bind().dialect.name == "postgresql":
            op.drop_constraint(op.f(name), table, type_="check")
            op.create_check_constraint(op.f(name), table, after)
        else:
            rebuild(table, before, after)


def rebuild(table: str, before: str, after: str) -> None:
    """SQLite cannot change a check: the table is made anew, with its indexes and triggers."""
    connection = op.get_bind()
    made = "SELECT sql FROM sqlite_master WHERE tbl_name = :table AND sql IS NOT NULL AND type"
    definition = connection.execute(sa.text(f"{made} = 'table'"), {"table": table}).scalar_one()
    others = connection.execute(sa.text(f"{made} <> 'table'"), {"table": table}).scalars().all()
    opening, _, body = definition.partition("(")
    assert before in body, definition
    anew = f"{table}_anew"
    connection.exec_driver_sql(f"{opening.replace(table, anew)}({body.replace(before, after)}")
    connection.exec_driver_sql(f"INSERT INTO {anew} SELECT * FROM {table}")  # noqa: S608 # constants
    connection.exec_driver_sql(f"DROP TABLE {table}")
    connection.exec_driver_sql(f"ALTER TABLE {anew} RENAME TO {table}")
    for other in others:
        connection.exec_driver_sql(other)
