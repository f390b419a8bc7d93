"""Postings are numbered within their wallet, by a counter in its state.

The counter begins behind the highest number that the wallet has used; numbers that are given out
stay. On SQLite, where numbers were unique over all wallets, the tables of postings and rows are
made anew with the wallet in their keys.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

#: Holds and meter events have the numbers of the postings that made them.
_LAST = """
UPDATE wallet_states SET last_posting = coalesce((SELECT max(n.number) FROM (
    SELECT max(p.number) AS number FROM postings AS p
    WHERE p.wallet_number = wallet_states.wallet_number
    UNION ALL SELECT max(h.number) FROM holds AS h
    WHERE h.wallet_number = wallet_states.wallet_number
    UNION ALL SELECT max(e.number) FROM meter_events AS e
    WHERE e.wallet_number = wallet_states.wallet_number) AS n), 0)"""

#: What a table's definition says of its keys, and what it is to say.
POSTINGS = (
    "CONSTRAINT postings_pk PRIMARY KEY (number)",
    "CONSTRAINT postings_pk PRIMARY KEY (wallet_number, number)",
)
ROWS = (
    (
        "CONSTRAINT credit_transactions_posting_number_fk FOREIGN KEY(posting_number)"
        " REFERENCES postings (number)"
    ),
    (
        "CONSTRAINT credit_transactions_wallet_number_posting_number_fk"
        " FOREIGN KEY(wallet_number, posting_number) REFERENCES postings (wallet_number, number)"
    ),
)


def upgrade() -> None:
    op.add_column(
        "wallet_states",
        sa.Column("last_posting", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_LAST)
        # A server of an older version that still runs cannot hand out numbers any more.
        op.execute("DROP SEQUENCE posting_numbers")
        return
    rekey(POSTINGS, ROWS)
    op.execute(_LAST)


def rekey(of_postings: tuple[str, str], of_rows: tuple[str, str]) -> None:
    """SQLite cannot change a key: both tables are made anew, with their indexes and triggers.

    Rows refer to postings. So the new table of postings comes first, under its own name, and the
    old one goes when nothing refers to it any more.
    """
    postings, rows = _definition("postings"), _definition("credit_transactions")
    more = [*_beside("postings"), *_beside("credit_transactions")]
    op.execute("ALTER TABLE postings RENAME TO postings_before")
    _make(_changed(postings, of_postings), "postings", "postings_before")
    _make(
        _changed(rows, of_rows).replace("credit_transactions", "credit_transactions_anew", 1),
        "credit_transactions_anew",
        "credit_transactions",
    )
    op.execute("DROP TABLE credit_transactions")
    op.execute("ALTER TABLE credit_transactions_anew RENAME TO credit_transactions")
    op.execute("DROP TABLE postings_before")
    for statement in more:
        op.execute(statement)


def _definition(table: str) -> str:
    found = op.get_bind().execute(
        sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :table"),
        {"table": table},
    )
    return str(found.scalar_one())


def _beside(table: str) -> list[str]:
    """The table's indexes and triggers."""
    found = op.get_bind().execute(
        sa.text(
            "SELECT sql FROM sqlite_master"
            " WHERE tbl_name = :table AND type <> 'table' AND sql IS NOT NULL"
        ),
        {"table": table},
    )
    return [str(sql) for sql in found.scalars()]


def _changed(definition: str, change: tuple[str, str]) -> str:
    before, after = change
    assert before in definition, definition
    return definition.replace(before, after)


def _make(definition: str, table: str, of: str) -> None:
    """The table by its definition, with all that lies in the other one, in its order."""
    op.get_bind().exec_driver_sql(definition)
    op.execute(f"INSERT INTO {table} SELECT * FROM {of} ORDER BY rowid")  # noqa: S608 # constants
