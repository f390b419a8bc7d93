"""Lists of credit transactions, newest first: by (created_at, wallet number, sequence).

What lies in a range of sequence is told by the counters that every row carries, so neither a page
nor its total costs more as the ledger grows. A search (`q`, `source`) reads what its other filters
leave, under the statement time-out of its caller.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    cast,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    union_all,
)

from creditledger.domain import ids
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import Kind
from creditledger.domain.views import Movement, Transaction
from creditledger.store import schema
from creditledger.store.dialects import (
    has_value,
    holds,
    is_snapshot,
    lower_ascii,
    receipt_of,
    was_in,
)
from creditledger.store.read.consumption import count_over_all, dimension_sums
from creditledger.store.read.replica import ReplicaBehind, is_replica
from creditledger.store.read.transaction_reads import (
    OF_POSTING,
    Filters,
    Span,
    Wallets,
    expand,
    moved,
    movements,
    span,
    transactions,
    wallets_and_snapshot,
    wallets_of,
)
from creditledger.store.write.columns import dump

t, p, d, w = (
    schema.transactions.c,
    schema.postings.c,
    schema.dimensions.c,
    schema.wallets.c,
)

#: Beyond this many rows a page has to be asked for by token where no counter leads to it.
OFFSET_MAX = 100_000


class OffsetTooLarge(Exception):
    """More than OFFSET_MAX rows lie before the page, and no counter leads there."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a walk stands: what it counted at its first page, and the last row it gave."""

    pin: str  #: The snapshot of the first page: no other row belongs to the walk.
    count: int
    created_at: int
    wallet: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    count: int  #: Rows the filters match, in the walk's snapshot.
    transactions: list[Transaction]
    next: Cursor | None


def page(connection: Connection, filters: Filters, *, size: int, offset: int) -> Page:
    """The page after `offset` rows. Raises OffsetTooLarge where no counter leads that deep."""
    wallets, pin = wallets_and_snapshot(connection, filters)
    if is_replica(connection) and (wallets is None or len(wallets) > 1):
        _require_whole(connection, pin)
    if wallets is None:
        spans = None
        count = _count(connection, filters, wallets)
    else:
        spans = [
            span(connection, number, last, filters.start, filters.end)
            for number, last, _ in wallets
        ]
        if conditions(filters) is None:
            count = sum(map(len, spans))
            if len(spans) == 1:
                return _page_of(connection, spans[0], spans[0].last - offset, size, count, pin)
        else:
            count = _count(connection, filters, wallets)
    if offset > OFFSET_MAX:
        raise OffsetTooLarge
    if spans is None:
        keys = _keys(connection, _over_all(filters).limit(size + 1).offset(offset))
    else:
        keys = _keys_of(connection, spans, filters, offset + size + 1)[offset:]
    return _page(connection, keys, size, count, pin)


def page_after(connection: Connection, filters: Filters, cursor: Cursor, *, size: int) -> Page:
    """The page after `cursor`, of the snapshot in which the walk began.

    Raises InvalidField(cursor) for a cursor that no page has ended with.
    """
    if not is_snapshot(cursor.pin, connection.dialect.name):
        raise InvalidField("cursor is no token of this list", param="cursor")
    wallets = wallets_of(connection, filters)
    if is_replica(connection):
        _require_seen(connection, wallets, cursor)
    last = cursor.created_at, cursor.wallet, cursor.sequence
    rest = and_(was_in(cursor.pin), tuple_(*ORDER) < tuple_(*map(literal, last)))
    if wallets is None:
        query = _over_all(filters).where(t.created_at <= cursor.created_at, rest)
        keys = _keys(connection, query.limit(size + 1))
    else:
        spans = [
            span(connection, number, last, filters.start, cursor.created_at + 1)
            for number, last, _ in wallets
        ]
        if len(spans) == 1 and spans[0].wallet == cursor.wallet and conditions(filters) is None:
            # Rows of one wallet are written in the order of sequence: none before the cursor's row
            # is younger than the snapshot.
            through = min(spans[0].last, cursor.sequence - 1)
            return _page_of(connection, spans[0], through, size, cursor.count, cursor.pin)
        keys = _keys_of(connection, spans, filters, size + 1, rest)
    return _page(connection, keys, size, cursor.count, cursor.pin)


def _require_whole(connection: Connection, pin: str) -> None:
    """Raises ReplicaBehind unless the pin says all of what this read of a replica sees.

    A replica does not know, as text, which transactions are under way on the primary; within one
    wallet that does not matter, for what they write comes before all that a walk still has to give.
    """
    first, end, _ = pin.split(":")
    if first != end and connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one():
        raise ReplicaBehind


def _require_seen(connection: Connection, wallets: Wallets | None, cursor: Cursor) -> None:
    """Raises ReplicaBehind unless this read of a replica sees all that the walk still has to give.

    Its first page may be from the primary, or from another replica.
    """
    if wallets is not None and len(wallets) == 1:
        seen = wallets[0][1] >= cursor.sequence
    else:
        seen = connection.execute(_SEEN, {"pin": cursor.pin}).scalar_one()
    if not seen:
        raise ReplicaBehind


_SEEN = text(
    """
    SELECT pg_snapshot_xmax(CAST(CAST(:pin AS text) AS pg_snapshot))
        <= pg_snapshot_xmin(pg_current_snapshot())
    """
)


#: Of lists, the newest first; exports go the other way.
ORDER = (t.created_at, t.wallet_number, t.sequence)
_Key = tuple[int, int, int]  # ORDER


def _page(connection: Connection, keys: list[_Key], size: int, count: int, pin: str) -> Page:
    shown, more = keys[:size], len(keys) > size
    cursor = Cursor(pin, count, *shown[-1]) if more else None
    return Page(count, expand(connection, _places(shown)), cursor)


def _page_of(
    connection: Connection, window: Span, through: int, size: int, count: int, pin: str
) -> Page:
    """The page of one wallet's rows that begins at `through`: no sequence is missing."""
    first = max(window.first, through - size + 1)
    shown = (
        transactions(connection, Span(window.wallet, first, through)) if through >= first else []
    )
    cursor = None
    if shown and first > window.first:
        last = shown[-1].row
        cursor = Cursor(pin, count, last.created_at, last.wallet, last.sequence)
    return Page(count, shown, cursor)


def _places(keys: Iterable[_Key]) -> list[tuple[int, int]]:
    return [(wallet, sequence) for _, wallet, sequence in keys]


def _keys(connection: Connection, query: Select[Any]) -> list[_Key]:
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def _keys_of(
    connection: Connection,
    spans: Iterable[Span],
    filters: Filters,
    limit: int,
    rest: ColumnElement[bool] | None = None,
) -> list[_Key]:
    """The newest keys of several wallets' spans that the filters match, merged.

    Each wallet's rows are read backwards by sequence, and no further than the limit asks.
    """
    query = select(*ORDER).where(
        t.wallet_number == _WALLET, t.sequence.between(bindparam("first"), bindparam("last"))
    )
    narrowed = conditions(filters, of_wallet=True)
    for condition in (narrowed, rest):
        if condition is not None:
            query = query.where(condition)
    query = query.order_by(t.sequence.desc()).limit(limit)
    found: list[_Key] = []
    for one in spans:
        values = {"wallet": one.wallet, "first": one.first, "last": one.last}
        found += [(row[0], row[1], row[2]) for row in connection.execute(query, values)]
    return sorted(found, reverse=True)[:limit]


_WALLET: BindParameter[int] = bindparam("wallet", type_=BigInteger)


def conditions(filters: Filters, *, of_wallet: bool = False) -> ColumnElement[bool] | None:
    """What a row's own columns must say; None where the wallet and the time say it all.

    `of_wallet`: for a statement on the rows of one wallet, the parameter `wallet`.
    """
    found: list[ColumnElement[bool]] = []
    if filters.grant is not None:
        found.append(and_(t.wallet_number == filters.grant[0], t.grant_number == filters.grant[1]))
        found.append(t.sequence >= filters.grant[1])
    of_dimension = _of_wallets_dimension if of_wallet else _of_dimension
    if filters.meter_id is not None:
        found.append(of_dimension(d.meter_id == filters.meter_id))
    if filters.subscription_id is not None:
        found.append(of_dimension(d.subscription_id == filters.subscription_id))
    if filters.source is not None:
        found.append(_of_posting(_has_source(filters.source)))
    if filters.q is not None:
        found.append(_of_posting(_says(filters.q)))
    return and_(*found) if found else None


# What belongs to a row is asked for row by row, after all that the row itself says, and found by
# its whole key. As joins PostgreSQL would order them by its statistics, and where these know of few
# rows of a wallet, or of none yet, it compares each of them with all postings of the wallet.


def _of_posting(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    asked = select(condition).where(OF_POSTING).correlate(schema.transactions)
    return func.coalesce(asked.scalar_subquery(), false())


def _of_dimension(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    same = and_(d.wallet_number == t.wallet_number, d.number == t.dimension_number)
    asked = select(condition).where(same).correlate(schema.transactions)
    return func.coalesce(asked.scalar_subquery(), false())


def _of_wallets_dimension(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Of one wallet all dimensions that match are found first: each row then costs a comparison."""
    asked = select(d.number).where(d.wallet_number == _WALLET, condition)
    # PostgreSQL makes a join of a bare IN, and orders it by its statistics.
    return func.coalesce(t.dimension_number.in_(asked), false())


#: Keys of a posting's own source; ids of other postings and wallets are found in other ways.
_SOURCE_KEYS = ("provider", "receipt_id", "actor", "meter_event_id")


def _has_source(source: str) -> ColumnElement[bool]:
    """The meter event, or one of the source's values, is exactly `source`."""
    values = [_json_pair(key, source) for key in _SOURCE_KEYS]
    # Replacing changes the text if and only if it is in there: exact bytes, on every database.
    return or_(
        and_(p.meter_event_id == source, t.kind == Kind.USAGE.value),
        *(func.replace(p.source, pair, "") != p.source for pair in values),
    )


def _json_pair(key: str, value: str) -> str:
    return (dump({key: value}) or "")[1:-1]


def _says(q: str) -> ColumnElement[bool]:
    """Description, note, id, receipt id or a metadata value holds `q`, ASCII letters folded."""
    wanted = lower_ascii(q)
    places = [
        holds(func.lower(p.description), wanted),
        holds(func.lower(p.note), wanted),
        holds(func.lower(receipt_of(p.source)), wanted),
        has_value(p.metadata, wanted),
    ]
    # To spell a row's id costs more than all the others; most words cannot be a part of one.
    if _ID_CHARACTERS.issuperset(wanted):
        places.append(holds(_id_text(), wanted))
    return or_(*places)


#: What ids of rows consist of, their prefix included.
_ID_CHARACTERS = frozenset(ids.ALPHABET) | frozenset("ct_")


def _id_text() -> ColumnElement[str]:
    """The row's id, as ids.compose writes it."""
    shifts = range(60, -1, -5)
    digits = [
        func.substr(ids.ALPHABET, cast(_bits(column, shift) + 1, Integer), 1)
        for column in (t.wallet_number, t.sequence)
        for shift in shifts
    ]
    return reduce(lambda left, right: left.concat(right), digits, literal("ct_"))


def _bits(column: ColumnElement[int], shift: int) -> ColumnElement[int]:
    return column.op(">>")(literal_column(str(shift))).op("&")(literal_column("31"))


def _over_all(filters: Filters) -> Select[Any]:
    """Keys of the rows of all wallets that the filters match, newest first."""
    query = matching(filters, None, ORDER)
    return query.order_by(*(column.desc() for column in ORDER))


def matching(
    filters: Filters,
    wallets: Wallets | None,
    columns: Iterable[ColumnElement[Any]],
) -> Select[Any]:
    """These columns of the rows that the filters match, in no order."""
    query = select(*columns).select_from(schema.transactions)
    narrowed = conditions(filters)
    if narrowed is not None:
        query = query.where(narrowed)
    if wallets is None:
        query = query.join(schema.wallets, w.number == t.wallet_number)
        query = query.where(w.livemode == filters.livemode)
    else:
        query = query.where(t.wallet_number.in_([number for number, _, _ in wallets]))
    if filters.start is not None:
        query = query.where(t.created_at >= filters.start)
    if filters.end is not None:
        query = query.where(t.created_at < filters.end)
    return query


def _count(connection: Connection, filters: Filters, wallets: Wallets | None) -> int:
    counted_by_dimension = replace(
        filters, meter_id=None, subscription_id=None, start=None, end=None
    )
    if conditions(counted_by_dimension) is None:
        if filters.meter_id is not None or filters.subscription_id is not None:
            return dimension_sums(connection, filters, wallets).count
        if wallets is None:
            return count_over_all(connection, filters)
    query = matching(filters, wallets, ORDER).subquery()
    return int(connection.execute(select(func.count()).select_from(query)).scalar_one())


# --- the billing list: a customer's wallets one after the other, by kind ---------------------


def kind_pages(
    connection: Connection,
    wallets: Sequence[tuple[int, int]],
    kinds: Sequence[Kind],
    *,
    start: int | None,
    end: int | None,
    size: int,
    offset: int,
) -> tuple[int, list[Movement]]:
    """As `kind_page`, over wallets that followed one another, oldest first.

    Of each its number and its last sequence. A wallet's rows are newer than those of all before it.
    """
    total, shown = 0, list[Movement]()
    for wallet, last in reversed(wallets):
        count, rows = kind_page(
            connection,
            wallet,
            last,
            kinds,
            start=start,
            end=end,
            size=size - len(shown),
            offset=max(0, offset - total),
        )
        total += count
        shown += rows
    return total, shown


def kind_page(
    connection: Connection,
    wallet: int,
    last: int,
    kinds: Sequence[Kind],
    *,
    start: int | None,
    end: int | None,
    size: int,
    offset: int,
) -> tuple[int, list[Movement]]:
    """(rows of these kinds in [start, end), the page after `offset` of them), newest first.

    Every row but usage carries its number among its kind, every row the number of usage rows so
    far: so the total is a difference, and a deep page is found by bisection.
    """
    window = span(connection, wallet, last, start, end)
    below, last = _ranks(connection, wallet, kinds, window.first - 1, window.last)
    total = last - below
    if offset >= total or not size:
        return total, []
    through = window.last
    if offset:
        through = _select(connection, window, kinds, below + total - offset)
    values = {"wallet": wallet, "first": window.first, "last": through, "count": size}
    return total, movements(connection.execute(_newest(tuple(kinds)), values))


def _ranks(
    connection: Connection, wallet: int, kinds: Sequence[Kind], before: int, through: int
) -> tuple[int, int]:
    """How many of the rows up to each of two sequences are of these kinds."""
    values = {"wallet": wallet, "before": before, "through": through}
    before, through = connection.execute(_counted(tuple(kinds)), values).one()
    return before, through


@cache
def _counted(kinds: tuple[Kind, ...]) -> Select[int, int]:
    """An index lookup a kind, for each of the two sequences."""

    def rank(sequence: BindParameter[int]) -> ColumnElement[int]:
        counts: list[ColumnElement[int]] = []
        for kind in kinds:
            column = t.usage_count if kind is Kind.USAGE else t.kind_count
            query = select(column).where(
                t.wallet_number == bindparam("wallet"), t.sequence <= sequence
            )
            if kind is not Kind.USAGE:
                query = query.where(is_kind(kind))
            query = query.order_by(t.sequence.desc()).limit(1)
            counts.append(func.coalesce(query.scalar_subquery(), 0))
        return reduce(operator.add, counts)

    return select(rank(bindparam("before")), rank(bindparam("through")))


def is_kind(kind: Kind) -> ColumnElement[bool]:
    """Rows of this kind, said so that its index is used."""
    # Numbers written out, and the index's own condition too: only then does SQLite use it.
    same = t.kind == literal_column(str(kind.value))
    if kind is Kind.USAGE:
        return same
    return and_(same, t.kind != literal_column(str(Kind.USAGE.value)))


def _select(connection: Connection, window: Span, kinds: Sequence[Kind], rank: int) -> int:
    """The sequence of the row of these kinds whose rank is `rank`."""
    low, high = window.first, window.last
    while low < high:
        middle = (low + high) // 2
        if _ranks(connection, window.wallet, kinds, 0, middle)[1] >= rank:
            high = middle
        else:
            low = middle + 1
    return low


@cache
def _newest(kinds: tuple[Kind, ...]) -> Select[*tuple[Any, ...]]:
    """Rows of these kinds: the newest of each by its index, then of all."""
    count: BindParameter[int] = bindparam("count")
    each = [
        select(t.sequence)
        .where(
            t.wallet_number == bindparam("wallet"),
            is_kind(kind),
            t.sequence.between(bindparam("first"), bindparam("last")),
        )
        .order_by(t.sequence.desc())
        .limit(count)
        .subquery()
        for kind in kinds
    ]
    every = union_all(*(select(one.c.sequence) for one in each)).subquery()
    newest = select(every.c.sequence).order_by(every.c.sequence.desc()).limit(count).subquery()
    here = and_(t.wallet_number == bindparam("wallet"), t.sequence == newest.c.sequence)
    return moved(newest.join(schema.transactions, here)).order_by(t.sequence.desc())
