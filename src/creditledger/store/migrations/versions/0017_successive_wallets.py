"""Wallets one after the other: a closed one no longer bars the customer's next one.

`wallets` itself says which wallet is closed, and how many rows the earlier ones have.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

CLOSED = 3
#: A closed wallet refuses every change, so it was last changed when it was closed.
CLOSED_AT = f"""(SELECT s.updated_at FROM wallet_states AS s
    WHERE s.wallet_number = wallets.number AND s.status = {CLOSED})"""  # noqa: S608 # a constant


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("wallets", sa.Column("closed_at", sa.BigInteger(), nullable=True))
        op.add_column(
            "wallets",
            sa.Column("rows_before", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        )
        op.drop_constraint(
            op.f("wallets_customer_id_currency_livemode_unique"), "wallets", type_="unique"
        )
        op.execute(f"UPDATE wallets SET closed_at = {CLOSED_AT}")  # noqa: S608 # a constant
    else:
        _rebuild()
    succession = ["customer_id", "currency", "livemode"]
    is_not_closed = sa.text("closed_at IS NULL")
    op.create_index(
        "wallets_open",
        "wallets",
        succession,
        unique=True,
        sqlite_where=is_not_closed,
        postgresql_where=is_not_closed,
    )
    op.create_index("wallets_succession", "wallets", [*succession, "number"])


def _rebuild() -> None:
    """SQLite cannot drop a constraint: the table is made anew under its own name.

    Other tables refer to it, so that is checked when the transaction ends.
    """
    connection = op.get_bind()
    connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    connection.exec_driver_sql("CREATE TEMP TABLE wallets_before AS SELECT * FROM wallets")
    connection.exec_driver_sql("DROP TABLE wallets")
    text = sa.Text()
    op.create_table(
        "wallets",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", text, nullable=False),
        sa.Column("customer_id", text, nullable=False),
        sa.Column("currency", text, nullable=False),
        sa.Column("livemode", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("repays_from", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("rows_before", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["currency"], ["currencies.code"], name="wallets_currency_fk"),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="wallets_customer_id_fk"),
        sa.PrimaryKeyConstraint("number", name="wallets_pk"),
        sa.UniqueConstraint("id", name="wallets_id_unique"),
    )
    columns = "number, id, customer_id, currency, livemode, created_at, repays_from"
    connection.exec_driver_sql(
        f"INSERT INTO wallets ({columns}) SELECT {columns} FROM wallets_before"  # noqa: S608 # constants
    )
    connection.exec_driver_sql("DROP TABLE temp.wallets_before")
    connection.exec_driver_sql(f"UPDATE wallets SET closed_at = {CLOSED_AT}")  # noqa: S608 # a constant
