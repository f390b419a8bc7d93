"""Consumption in a window of the ledger's own time: what Summary adds up.

A wallet's total is the difference of two rows' counters. Narrowed to a meter or subscription, it
comes from the folds of whole quarters of an hour, from the rows at the window's edges, and from
those that are not folded yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    bindparam,
    column,
    or_,
    select,
    text,
)

from creditledger.domain import clock
from creditledger.domain.model import NEVER, Kind
from creditledger.store import schema
from creditledger.store.dialects import exact_sum
from creditledger.store.folds.figures import fold_end
from creditledger.store.read.transaction_reads import Filters, Span, Wallets, span
from creditledger.store.schema import Text

t, d = schema.transactions.c, schema.dimensions.c
w, s = schema.wallets.c, schema.wallet_states.c


@dataclass(frozen=True, slots=True)
class Sums:
    """Consumption in a window, over one or more wallets of one currency."""

    count: int = 0
    amount: int = 0  #: <= 0
    quantity: int = 0
    unmetered_amount: int = 0  #: Σ |amount| of what has no usage

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count,
            self.amount + other.amount,
            self.quantity + other.quantity,
            self.unmetered_amount + other.unmetered_amount,
        )

    def __sub__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count - other.count,
            self.amount - other.amount,
            self.quantity - other.quantity,
            self.unmetered_amount - other.unmetered_amount,
        )


def currencies(connection: Connection, filters: Filters, wallets: Wallets | None) -> list[str]:
    """Codes of the currencies of the wallets in scope, which are `wallets_of` these filters."""
    if wallets is not None:
        return sorted({currency for _, _, currency in wallets})
    query = select(w.currency).where(w.livemode == filters.livemode).distinct()
    if filters.currency is not None:
        query = query.where(w.currency == filters.currency)
    return sorted(connection.execute(query).scalars())


def summary(connection: Connection, filters: Filters, wallets: Wallets | None) -> Sums:
    """Consumption written in [start, end), over the wallets in scope (of one currency)."""
    if filters.meter_id is not None or filters.subscription_id is not None:
        return dimension_sums(connection, filters, wallets)
    if wallets is None:
        return _over_all(connection, filters)
    total = Sums()
    for number, last, _ in wallets:
        window = span(connection, number, last, filters.start, filters.end)
        ends = min(window.first - 1, window.last), window.last
        before, through = _sums_through(connection, number, *ends)
        total += Sums(*(a - b for a, b in zip(through, before, strict=True)))
    return total


def count_over_all(connection: Connection, filters: Filters) -> int:
    """Rows written in [start, end), over all wallets of the mode and currency."""
    if _is_empty(filters):
        return 0
    through = _rows_through(connection, filters, filters.end)
    if filters.start is None:
        return through
    return through - _rows_through(connection, filters, filters.start)


def _over_all(connection: Connection, filters: Filters) -> Sums:
    """Consumption written in [start, end) over all wallets of the mode and currency."""
    if _is_empty(filters):
        return Sums()
    through = _through(connection, filters, filters.end)
    if filters.start is None:
        return through
    return through - _through(connection, filters, filters.start)


def _is_empty(filters: Filters) -> bool:
    start, end = filters.start, filters.end
    return start is not None and end is not None and end <= start


#: The last row of each wallet written before `moment`. Bisection in each wallet at once, a step a
#: level: what it costs grows with the number of wallets, and hardly with that of rows.
_LAST = (
    text(
        """
    WITH RECURSIVE search (wallet, low, high) AS (
        SELECT w.number, CAST(0 AS BIGINT), s.sequence
        FROM wallets AS w JOIN wallet_states AS s ON s.wallet_number = w.number
        WHERE w.livemode = :livemode AND (:any_currency OR w.currency = :currency)
        UNION ALL
        SELECT search.wallet,
               CASE WHEN t.created_at < :moment THEN t.sequence ELSE low END,
               CASE WHEN t.created_at < :moment THEN high ELSE t.sequence - 1 END
        FROM search JOIN credit_transactions AS t
          ON t.wallet_number = search.wallet AND t.sequence = (low + high + 1) / 2
        WHERE low < high
    )
    SELECT wallet, low AS sequence FROM search WHERE low = high
    """
    )
    .bindparams(
        bindparam("livemode", type_=Boolean),
        bindparam("any_currency", type_=Boolean),
        bindparam("currency", type_=Text),
        bindparam("moment", type_=BigInteger),
    )
    .columns(column("wallet", BigInteger), column("sequence", BigInteger))
    .cte("last")
)


def _through(connection: Connection, filters: Filters, moment: int | None) -> Sums:
    """Counters of all wallets before a moment; as they are now, if there is none."""
    at = s if moment is None else t
    figures = (at.usage_count, at.usage_amount, at.usage_quantity, at.unmetered_amount)
    query = _standing(filters, moment, *map(exact_sum, figures))
    return Sums(*connection.execute(*query).one())


def _rows_through(connection: Connection, filters: Filters, moment: int | None) -> int:
    """Rows of all wallets before a moment, whatever they are of; all there are, without one."""
    at = s if moment is None else t
    query = _standing(filters, moment, exact_sum(at.sequence))
    return int(connection.execute(*query).scalar_one())


def _standing(
    filters: Filters, moment: int | None, *columns: ColumnElement[int]
) -> tuple[Select[*tuple[Any, ...]], dict[str, Any]]:
    """Sums over what every wallet of the mode and currency had come to by a moment, or now."""
    if moment is None:
        now = (
            select(*columns)
            .join_from(schema.wallets, schema.wallet_states)
            .where(w.livemode == filters.livemode)
        )
        if filters.currency is not None:
            now = now.where(w.currency == filters.currency)
        return now, {}
    here = and_(t.wallet_number == _LAST.c.wallet, t.sequence == _LAST.c.sequence)
    values = {
        "livemode": filters.livemode,
        "any_currency": filters.currency is None,
        "currency": filters.currency or "",
        "moment": moment,
    }
    return select(*columns).join_from(_LAST, schema.transactions, here), values


def _wallets_written(connection: Connection, filters: Filters) -> Wallets:
    """All wallets of the mode and currency that can have rows in the window.

    When a wallet was made says nothing of its first row: the clock may have gone back since.
    """
    query = select(w.number, s.sequence, w.currency).join_from(schema.wallets, schema.wallet_states)
    query = query.where(w.livemode == filters.livemode)
    if filters.currency is not None:
        query = query.where(w.currency == filters.currency)
    if filters.start is not None:
        query = query.where(s.posted_at >= filters.start)
    if filters.end is not None:
        first = select(t.created_at).where(t.wallet_number == w.number, t.sequence == 1)
        query = query.where(first.scalar_subquery() < filters.end)
    return [tuple(row) for row in connection.execute(query)]


_COUNTERS = (t.usage_count, t.usage_amount, t.usage_quantity, t.unmetered_amount)
#: The counters of two rows.
_AT_ENDS = select(t.sequence, *_COUNTERS).where(
    t.wallet_number == bindparam("wallet"),
    or_(t.sequence == bindparam("first"), t.sequence == bindparam("last")),
)


def _sums_through(
    connection: Connection, wallet: int, first: int, last: int
) -> tuple[Sequence[int], Sequence[int]]:
    """What the rows up to each of two sequences came to: 0 before the first row."""
    values = {"wallet": wallet, "first": first, "last": last}
    found = {row[0]: row[1:] for row in connection.execute(_AT_ENDS, values)}
    none = (0,) * len(_COUNTERS)
    return found.get(first, none), found.get(last, none)


def dimension_sums(connection: Connection, filters: Filters, wallets: Wallets | None) -> Sums:
    """Consumption of a meter or subscription: whole quarters from the folds, the rest from rows."""
    if wallets is None:
        wallets = _wallets_written(connection, filters)
    total = Sums()
    for number, last, _ in wallets:
        query = _dimensions(**_narrowed_by(filters))
        values = {"wallet": number, **_values(filters)}
        dimensions: dict[int, bool] = dict(connection.execute(query, values).all())
        if dimensions:
            total += _sums_of(connection, number, last, dimensions, filters)
    return total


def _narrowed_by(filters: Filters) -> dict[str, bool]:
    meter, subscription = filters.meter_id is not None, filters.subscription_id is not None
    return {"meter": meter, "subscription": subscription}


def _values(filters: Filters) -> dict[str, str | None]:
    return {"meter_id": filters.meter_id, "subscription_id": filters.subscription_id}


@cache
def _dimensions(*, meter: bool, subscription: bool) -> Select[int, bool]:
    """The wallet's dimensions of consumptions of a meter or subscription, and if it has usage."""
    query = select(d.number, d.has_usage).where(
        d.wallet_number == bindparam("wallet"), d.kind == Kind.USAGE.value
    )
    if meter:
        query = query.where(d.meter_id == bindparam("meter_id"))
    if subscription:
        query = query.where(d.subscription_id == bindparam("subscription_id"))
    return query


@cache
def _folded(table: Table, *, meter: bool, subscription: bool) -> Select[*tuple[int, ...]]:
    """By dimension, what was written in a range of whole periods."""
    f, (_, period, _) = table.c, table.primary_key
    # Found again in the statement: a wallet may have more of them than a statement parameters.
    wanted = _dimensions(meter=meter, subscription=subscription).with_only_columns(d.number)
    return (
        select(
            f.dimension_number,
            exact_sum(f.created_count),
            exact_sum(f.created_amount),
            exact_sum(f.created_quantity),
        )
        .where(
            f.wallet_number == bindparam("wallet"),
            period >= bindparam("first"),
            period < bindparam("through"),
            f.dimension_number.in_(wanted),
        )
        .group_by(f.dimension_number)
    )


def _sums_of(
    connection: Connection, wallet: int, last: int, dimensions: dict[int, bool], filters: Filters
) -> Sums:
    """Folds of whole periods, rows at the window's edges, and rows that are not folded yet."""
    start = 0 if filters.start is None else filters.start
    # A whole day: nothing beyond it is looked for.
    end = NEVER // clock.DAY * clock.DAY if filters.end is None else filters.end
    ends = fold_end(connection, wallet)
    folded = ends.sequence
    total = Sums()
    if folded != last:
        window = span(connection, wallet, max(folded, last), filters.start, filters.end)
        beyond = replace(window, first=max(window.first, min(folded, last) + 1))
        sums = _row_sums(connection, beyond, dimensions)
        total = sums if folded < last else total - sums
    if not folded:
        return total
    first, through = -(-start // clock.QUARTER), end // clock.QUARTER
    if first >= through:
        return total + _row_sums(
            connection, span(connection, wallet, folded, start, end), dimensions
        )
    quarters, days = ends.split(first, through)
    whole = [(schema.folds, one) for one in quarters] + [(schema.day_folds, days)]
    for table, (a, b) in whole:
        if a < b:
            query = _folded(table, **_narrowed_by(filters))
            values = {"wallet": wallet, "first": a, "through": b, **_values(filters)}
            for number, count, amount, quantity in connection.execute(query, values):
                total += Sums(count, amount, quantity, 0 if dimensions[number] else -amount)
    for a, b in ((start, first * clock.QUARTER), (through * clock.QUARTER, end)):
        if a < b < NEVER:
            total += _row_sums(connection, span(connection, wallet, folded, a, b), dimensions)
    return total


def _row_sums(connection: Connection, window: Span, dimensions: dict[int, bool]) -> Sums:
    """What the rows of a window come to: a row's quantity is what the counter grew by."""
    total = Sums()
    if not len(window):
        return total
    before, _ = _sums_through(connection, window.wallet, window.first - 1, window.first - 1)
    quantity_before = before[2]
    for row in connection.execute(
        select(t.dimension_number, t.amount, t.usage_quantity)
        .where(t.wallet_number == window.wallet, t.sequence.between(window.first, window.last))
        .order_by(t.sequence)
    ):
        if row.dimension_number in dimensions:
            unmetered = 0 if dimensions[row.dimension_number] else -row.amount
            total += Sums(1, row.amount, row.usage_quantity - quantity_before, unmetered)
        quantity_before = row.usage_quantity
    return total
