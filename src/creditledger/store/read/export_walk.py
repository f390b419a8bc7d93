"""Walks over credit transactions from the oldest to the newest: what exports read.

A walk is pinned: its rows are those that its first read could see. Each step is a read of its own
and begins behind the last row of the step before, so nothing is held open between them. Order is
that of lists the other way round: (created_at, wallet number, sequence). Functions of a connection
on one snapshot.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, literal, select, tuple_

from creditledger.domain.model import Dimension, Kind
from creditledger.domain.views import WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import snapshot, was_in
from creditledger.store.read.lists import ORDER, conditions, is_kind, matching
from creditledger.store.read.transaction_reads import Filters, Span, span, wallets_of, with_postings
from creditledger.store.write.columns import DIMENSION, PLACE

t, p, d, w = (
    schema.transactions.c,
    schema.postings.c,
    schema.dimensions.c,
    schema.wallets.c,
)


class ExportRow(NamedTuple):
    """A row with what of its posting is told, as it lies in the database: JSON is text."""

    wallet: int
    sequence: int
    posting: int
    kind: int
    type: int
    grant: int | None
    amount: int
    running_balance: int
    created_at: int
    effective_at: int | None
    dimension: int
    description: str | None
    note: str | None
    metadata: str | None
    source: str | None
    meter_event_id: str | None
    refund_of: int | None
    linked_wallet: int | None
    linked_posting: int | None

    @property
    def place(self) -> "ExportPlace":
        """Where in the walk it stands."""
        return ExportPlace(self.created_at, self.wallet, self.sequence)


class ExportPlace(NamedTuple):
    """Where a walk stands: the last row that it gave."""

    created_at: int
    wallet: int
    sequence: int


_OF_ROW: tuple[ColumnElement[Any], ...] = (
    *(t.wallet_number, t.sequence, t.posting_number, t.kind, t.type, t.grant_number, t.amount),
    *(t.running_balance, t.created_at, t.effective_at, t.dimension_number),
)
_OF_POSTING: tuple[ColumnElement[Any], ...] = (
    *(p.description, p.note, p.metadata, p.source, p.meter_event_id, p.refund_of),
    *(p.linked_wallet, p.linked_posting),
)


def pin(connection: Connection) -> str:
    """What a walk that begins now may see."""
    found: str = connection.execute(select(snapshot())).scalar_one()
    return found


def step(
    connection: Connection,
    filters: Filters,
    pinned: str,
    after: ExportPlace | None,
    size: int,
    kinds: Sequence[Kind] | None = None,
) -> list[ExportRow]:
    """The next rows of the walk, at most `size`; fewer only at its end.

    `kinds`, for filters that name a customer: only rows of these.
    """
    wallets = wallets_of(connection, filters)
    rest: ColumnElement[bool] = was_in(pinned)
    start = filters.start
    if after is not None:
        rest = and_(rest, tuple_(*ORDER) > tuple_(*map(literal, after)))
        start = after.created_at if start is None else max(start, after.created_at)
    if wallets is None or conditions(filters) is not None:
        query = matching(filters, wallets, _OF_ROW).where(rest)
        if after is not None:
            query = query.where(t.created_at >= after.created_at)
        return _lines(connection, query.order_by(*ORDER).limit(size))
    found: list[ExportRow] = []
    for number, last, _ in wallets:
        whole = span(connection, number, last, start, filters.end)
        for query in _of_kinds(whole, kinds):
            found += _lines(connection, query.where(rest).order_by(t.sequence).limit(size))
    return sorted(found, key=lambda line: line.place)[:size]


def _of_kinds(whole: Span, kinds: Sequence[Kind] | None) -> Iterable[Select[Any]]:
    query = select(*_OF_ROW).where(
        t.wallet_number == whole.wallet, t.sequence.between(whole.first, whole.last)
    )
    if kinds is None:
        return [query]
    return [query.where(is_kind(kind)) for kind in kinds]


def _lines(connection: Connection, rows: Select[Any]) -> list[ExportRow]:
    found = map(ExportRow._make, connection.execute(with_postings(rows, *_OF_POSTING)))
    return sorted(found, key=lambda line: line.place)


def wallets(connection: Connection, numbers: Iterable[int]) -> dict[int, WalletPlace]:
    """The wallets of these numbers."""
    found = connection.execute(
        select(
            w.number,
            *PLACE,
            w.rows_before,
        )
        .join_from(schema.wallets, schema.currencies, schema.currencies.c.code == w.currency)
        .where(w.number.in_(list(numbers)))
    )
    return {number: WalletPlace(*rest) for number, *rest in found}


def dimensions(
    connection: Connection, places: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Dimension]:
    """The dimensions at these places (wallet number, number)."""
    by_wallet: dict[int, list[int]] = {}
    for wallet, number in places:
        by_wallet.setdefault(wallet, []).append(number)
    found = {}
    for wallet, numbers in by_wallet.items():
        query = select(d.number, *DIMENSION.of(d)).where(
            d.wallet_number == wallet, d.number.in_(numbers)
        )
        for number, *columns in connection.execute(query):
            found[wallet, number] = DIMENSION.value(columns)
    return found
