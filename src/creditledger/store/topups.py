"""Top-ups by the receipts that they name, and what was taken back of them: what is reconciled.

Rows that are not usage have an index of their own, so what a ledger is mostly made of is not read.
A walk goes by wallet, in short reads of one snapshot. Functions of a connection on one snapshot.
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

from creditledger.model import Kind
from creditledger.reconciling import TakenBack, TopUp
from creditledger.store import schema, walks
from creditledger.store.dialects import was_in
from creditledger.store.reads import OF_POSTING

t, p, w = schema.transactions.c, schema.postings.c, schema.wallets.c

#: What credits a receipt.
_CREDITS = (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW)
#: What takes credit away other than by spending it.
_DEBITS = (Kind.ADMIN_DEBIT, Kind.EXPIRY)
_ORDER = (t.wallet_number, t.kind, t.sequence)


class Place(NamedTuple):
    """Where a walk stands: the last row that it read."""

    wallet: int
    kind: int
    sequence: int


def last_wallet(connection: Connection) -> int:
    """The highest number of a wallet: where a walk ends."""
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
    .join(schema.wallets, w.number == t.wallet_number)
    .where(_of_kinds(_CREDITS))
    .order_by(*_ORDER)
)


def step(
    connection: Connection,
    pinned: str,
    after: Place | None,
    size: int,
    *,
    provider: str,
    livemode: bool,
    since: int,
) -> tuple[list[TopUp], Place | None]:
    """The provider's top-ups among the next `size` rows written from `since` on, and the place.

    No place: there are no more.
    """
    query = _LINES.where(w.livemode == livemode, t.created_at >= since, was_in(pinned))
    if after is not None:
        query = query.where(tuple_(*_ORDER) > tuple_(*map(literal, after)))
    rows = connection.execute(query.limit(size)).all()
    if not rows:
        return [], None
    sources = [json.loads(row.source) if row.source else {} for row in rows]
    named = [
        (row, source.get("receipt_id", ""))
        for row, source in zip(rows, sources, strict=True)
        if source.get("provider") == provider
    ]
    places = walks.wallets(connection, {row.wallet_number for row, _ in named})
    found = [
        TopUp(
            row.wallet_number,
            row.sequence,
            row.grant_number,
            places[row.wallet_number],
            row.amount,
            row.created_at,
            receipt_id,
        )
        for row, receipt_id in named
    ]
    return found, Place(*rows[-1][:3])


_TAKEN = (
    select(t.wallet_number, t.grant_number, t.amount, p.metadata)
    .join_from(schema.transactions, schema.postings, OF_POSTING)
    .where(_of_kinds(_DEBITS))
)


def taken_back(connection: Connection, wallets: Sequence[int], pinned: str) -> list[TakenBack]:
    """Debits, expirations and voids of these wallets."""
    query = _TAKEN.where(t.wallet_number.in_(wallets), was_in(pinned))
    return [
        TakenBack(wallet, grant, -amount, json.loads(metadata or "{}").get("receipt_id"))
        for wallet, grant, amount, metadata in connection.execute(query)
    ]
