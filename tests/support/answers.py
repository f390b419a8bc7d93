"""What clients were told of postings, beside what the database has of them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from sqlalchemy import select

from creditledger.domain import ids, money
from creditledger.store import schema
from tests.support.setup import look

if TYPE_CHECKING:
    from collections.abc import Iterable

    from credit.v1 import wallet_service_pb2 as pb
    from sqlalchemy import Connection

#: Of US dollars, which all wallets of these tests have.
SCALE = 9

#: (id, amount, running balance) of a row, amounts as they are printed.
Row = tuple[str, str, str]


def stored(url: str) -> dict[str, list[list[Row]]]:
    """Key -> the rows of each posting that is in the database under it, in any wallet."""
    p, t = schema.postings.c, schema.transactions.c
    postings = select(p.wallet_number, p.number, p.idempotency_key, p.row_count)
    rows = select(t.wallet_number, t.posting_number, t.sequence, t.amount, t.running_balance)

    def query(connection: Connection) -> dict[str, list[list[Row]]]:
        of: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for wallet, posting, sequence, amount, balance in connection.execute(
            rows.order_by(t.wallet_number, t.sequence)
        ):
            id_ = ids.compose("ct", wallet, sequence)
            row = id_, money.text(amount, SCALE), money.text(balance, SCALE)
            of[wallet, posting].append(row)
        found: dict[str, list[list[Row]]] = defaultdict(list)
        for wallet, number, key, count in connection.execute(
            postings.where(p.idempotency_key.is_not(None))
        ):
            assert count == len(of[wallet, number]), f"{key} is torn"
            found[key].append(of[wallet, number])
        return found

    return look(url, query)


def told(posting: pb.Posting) -> list[Row]:
    """The rows that an answer told of."""
    return [(one.id, one.amount, one.running_balance) for one in posting.transactions]


def taken(rows: Iterable[Row]) -> int:
    """What rows take together, in smallest units."""
    return -sum(money.parse(amount, SCALE, field="amount") for _, amount, _ in rows)
