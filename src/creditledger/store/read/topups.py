"""Top-ups by the receipts that they name, and what was taken back of them: what is reconciled.

Rows that are not usage have an index of their own, so what a ledger is mostly made of is not read.
A walk goes by wallet in short reads. What is written meanwhile it may find or not, but all that was
taken back of a top-up that it found is there when that is asked for. Functions of a connection on
one snapshot.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    func,
    literal,
    literal_column,
    select,
    text,
    tuple_,
)

from creditledger.domain.model import Kind
from creditledger.domain.reconciliation import TakenBack, TopUp
from creditledger.domain.views import WalletPlace
from creditledger.store import schema
from creditledger.store.read import export_walk
from creditledger.store.read.transaction_reads import OF_POSTING
from creditledger.store.write.columns import PLACE

t, p, w = schema.transactions.c, schema.postings.c, schema.wallets.c

#: What credits a receipt.
_CREDITS = (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW)
#: What takes credit away other than by spending it.
_DEBITS = (Kind.ADMIN_DEBIT, Kind.EXPIRY)
_ORDER = (t.wallet_number, t.kind, t.sequence)

#: Wallets of one read at most. Without an end to them a database that thinks that few rows are left
#: sorts all of them, in each read.
WALLETS_MAX = 1_000


class TopUpPlace(NamedTuple):
    """Where a walk stands: all that comes before has been read."""

    wallet: int
    kind: int
    sequence: int


#: Before every row.
BEGINNING = TopUpPlace(0, 0, 0)


def last_wallet(connection: Connection) -> int:
    """The highest number of a wallet."""
    return connection.execute(select(func.max(w.number))).scalar_one() or 0


def _of_kinds(kinds: Iterable[Kind]) -> ColumnElement[bool]:
    # The index's own condition too, and as it is written there: only then is it used.
    numbers = ", ".join(str(kind.value) for kind in kinds)
    return and_(
        t.kind != literal_column(str(Kind.USAGE.value)), t.kind.op("IN")(text(f"({numbers})"))
    )


_LINES = (
    select(*_ORDER, t.grant_number, t.amount, t.created_at, p.source)
    .join_from(schema.transactions, schema.postings, OF_POSTING)
    .where(_of_kinds(_CREDITS))
    .order_by(*_ORDER)
)


def step(
    connection: Connection,
    after: TopUpPlace,
    size: int,
    *,
    provider: str,
    livemode: bool,
    since: int,
) -> tuple[list[TopUp], TopUpPlace]:
    """The provider's top-ups among the next rows, at most `size`, written from `since` on.

    And where the walk stands then; it begins at BEGINNING and ends behind `last_wallet`.
    """
    last = after.wallet + WALLETS_MAX
    query = _LINES.where(
        t.wallet_number.between(after.wallet, last),
        tuple_(*_ORDER) > tuple_(*map(literal, after)),
        t.created_at >= since,
    )
    rows = connection.execute(query.limit(size)).all()
    places = export_walk.wallets(connection, {row.wallet_number for row in rows})
    found = []
    for wallet, _, sequence, grant, amount, created_at, source in rows:
        said, place = json.loads(source or "{}"), places[wallet]
        if said.get("provider") == provider and place.livemode == livemode:
            name = said.get("receipt_id", "")
            found.append(TopUp(wallet, sequence, grant, place, amount, created_at, name))
    return found, TopUpPlace(*rows[-1][:3]) if len(rows) == size else TopUpPlace(last + 1, 0, 0)


_TAKEN = (
    select(t.wallet_number, t.grant_number, t.amount, p.metadata)
    .join_from(schema.transactions, schema.postings, OF_POSTING)
    .where(_of_kinds(_DEBITS))
)


def taken_back(connection: Connection, wallets: Sequence[int]) -> list[TakenBack]:
    """Debits, expirations and voids of these wallets."""
    query = _TAKEN.where(t.wallet_number.in_(wallets))
    return [
        TakenBack(wallet, grant, -amount, json.loads(metadata or "{}").get("receipt_id"))
        for wallet, grant, amount, metadata in connection.execute(query)
    ]


def open_wallets(
    connection: Connection, customers: Sequence[str], *, livemode: bool
) -> list[WalletPlace]:
    """The wallets of these customers that are not closed."""
    query = (
        select(*PLACE)
        .join_from(schema.wallets, schema.currencies, schema.currencies.c.code == w.currency)
        .where(w.customer_id.in_(customers), w.livemode == livemode, w.closed_at.is_(None))
    )
    return [WalletPlace(*row) for row in connection.execute(query)]
