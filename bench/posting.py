"""One consumption as the rows that it makes, and the statements that write them, for baselines.

The figures are those that the ledger itself would write, so that what the baselines leave can be
verified like any ledger. Imports nothing that decides anything.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

from creditledger.domain.model import Kind, Type

#: Postings in a transaction of the limit.
BATCH = 500
#: 0.0123 at nine digits, and what was used for it: the consumption of traffic.py.
AMOUNT = 12_300_000
QUANTITIES = (1_000, 500)
QUANTITY = sum(QUANTITIES)
CONSUMPTION = 2  #: The operation.

_STATE = (
    *("sequence", "running_balance", "usage_count"),
    *("usage_amount", "usage_quantity", "unmetered_amount", "last_posting"),
)


@dataclass(slots=True)
class Figures:
    """Where a wallet stands: what every posting moves on."""

    wallet: int
    sequence: int
    running_balance: int
    usage_count: int
    usage_amount: int
    usage_quantity: int
    unmetered_amount: int
    last_posting: int

    def move(self) -> None:
        """One consumption further."""
        self.sequence += 1
        self.running_balance -= AMOUNT
        self.usage_count += 1
        self.usage_amount -= AMOUNT
        self.usage_quantity += QUANTITY
        self.last_posting += 1

    def posting(self, key: str) -> tuple[object, ...]:
        """Values of `insert_posting`."""
        head = (self.wallet, self.last_posting, key, CONSUMPTION, AMOUNT)
        return (*head, self.sequence, 1, "[1000,500]")

    def row(self, grant: int, dimension: int, now: int) -> tuple[object, ...]:
        """Values of `insert_row`."""
        figures = (self.usage_count, self.usage_amount, self.usage_quantity, self.unmetered_amount)
        place = (self.wallet, self.sequence, self.last_posting)
        head = (*place, Kind.USAGE.value, Type.CONSUMPTION.value)
        return (*head, grant, -AMOUNT, self.running_balance, now, dimension, *figures)

    def state(self, now: int) -> tuple[object, ...]:
        """Values of `update_wallet`."""
        return (
            *(self.sequence, self.running_balance, now, self.sequence),
            *(self.usage_count, self.usage_amount, self.usage_quantity),
            *(self.last_posting, self.wallet),
        )


_POSTING = (
    *("wallet_number", "number", "idempotency_key", "operation"),
    *("amount", "first_sequence", "row_count", "quantities"),
)
_ROW = (
    *("wallet_number", "sequence", "posting_number", "kind", "type", "grant_number"),
    *("amount", "running_balance", "created_at", "dimension_number"),
    *("usage_count", "usage_amount", "usage_quantity", "unmetered_amount"),
)
STATE = (
    *("sequence", "running_balance", "posted_at", "moved_sequence"),
    *("usage_count", "usage_amount", "usage_quantity", "last_posting"),
)
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "postings": _POSTING,
    "credit_transactions": _ROW,
}


def _insert(table: str) -> str:
    columns = COLUMNS[table]
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


#: Where each wallet stands, with the grant it draws on and the dimension it books under.
STANDING = f"""
SELECT w.id, w.number, {", ".join(f"s.{name}" for name in _STATE)},
  (SELECT min(g.number) FROM grants AS g WHERE g.wallet_number = w.number AND g.open),
  (SELECT min(d.number) FROM dimensions AS d WHERE d.wallet_number = w.number AND d.has_usage)
FROM wallets AS w JOIN wallet_states AS s ON s.wallet_number = w.number"""

STATEMENTS = {
    "find_wallet": f"""SELECT w.number, {", ".join(f"s.{name}" for name in _STATE)}
        FROM wallets AS w JOIN wallet_states AS s ON s.wallet_number = w.number WHERE w.id = ?""",
    "find_posting": "SELECT number FROM postings WHERE wallet_number = ? AND idempotency_key = ?",
    "find_grants": """SELECT number, remaining FROM grants WHERE wallet_number = ? AND open
        ORDER BY priority, expires_at, category DESC, effective_at, created_at, number""",
    "insert_posting": _insert("postings"),
    "insert_row": _insert("credit_transactions"),
    "update_grant": "UPDATE grants SET remaining = remaining - ? WHERE wallet_number = ?"
    " AND number = ?",
    "update_wallet": f"UPDATE wallet_states SET {', '.join(f'{name} = ?' for name in STATE)}"
    " WHERE wallet_number = ?",
}


def numbered(statement: str) -> str:
    """The statement with $1, $2, … where it has question marks."""
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
