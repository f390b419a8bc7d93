"""Consumption in a window of the ledger's own time: what Summary adds up.

A wallet's total is the difference of two rows' counters. Narrowed to a meter or subscription, it
comes from the roll-ups of whole quarters of an hour, and from the rows at the window's edges.
"""

from dataclasses import dataclass

from sqlalchemy import BigInteger, Boolean, Connection, bindparam, func, select, text

from creditledger import clock
from creditledger.model import NEVER, Kind
from creditledger.store import schema
from creditledger.store.reads import Filters, Span, span, wallets_of
from creditledger.store.tables import Text

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


def currencies(connection: Connection, filters: Filters) -> list[str]:
    """Codes of the currencies of the wallets in scope."""
    wallets = wallets_of(connection, filters)
    if wallets is not None:
        return sorted({currency for _, _, currency in wallets})
    query = select(w.currency).where(w.livemode == filters.livemode).distinct()
    if filters.currency is not None:
        query = query.where(w.currency == filters.currency)
    return sorted(connection.execute(query).scalars())


def summary(connection: Connection, filters: Filters) -> Sums:
    """Consumption written in [start, end), over the wallets in scope (of one currency)."""
    wallets = wallets_of(connection, filters)
    if filters.meter_id is not None or filters.subscription_id is not None:
        return dimension_sums(connection, filters, wallets)
    if wallets is None:
        return _over_all(connection, filters)[1]
    total = Sums()
    for number, last, _ in wallets:
        window = span(connection, number, last, filters.start, filters.end)
        through = _sums_through(connection, number, window.last)
        before = _sums_through(connection, number, min(window.first - 1, window.last))
        total += Sums(*(a - b for a, b in zip(through, before, strict=True)))
    return total


def count_over_all(connection: Connection, filters: Filters) -> int:
    """Rows written in [start, end), over all wallets of the mode and currency."""
    return _over_all(connection, filters)[0]


def _over_all(connection: Connection, filters: Filters) -> tuple[int, Sums]:
    """Rows, and consumption, written in [start, end) over all wallets of the mode and currency."""
    through = _through(connection, filters, filters.end)
    before = [0] * len(through)
    if filters.start is not None and (filters.end is None or filters.start < filters.end):
        before = _through(connection, filters, filters.start)
    elif filters.start is not None:
        before = through
    rows, *sums = (a - b for a, b in zip(through, before, strict=True))
    return rows, Sums(*sums)


#: Bisection in each wallet at once, a step a level: what it costs grows with the number of wallets,
#: and hardly with that of rows. Written before `moment`: rows, and what their counters say.
_THROUGH = text(
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
    SELECT coalesce(sum(t.sequence), 0), coalesce(sum(t.usage_count), 0),
           coalesce(sum(t.usage_amount), 0), coalesce(sum(t.usage_quantity), 0),
           coalesce(sum(t.unmetered_amount), 0)
    FROM search JOIN credit_transactions AS t
      ON t.wallet_number = search.wallet AND t.sequence = low
    WHERE low = high
    """
).bindparams(
    bindparam("livemode", type_=Boolean),
    bindparam("any_currency", type_=Boolean),
    bindparam("currency", type_=Text),
    bindparam("moment", type_=BigInteger),
)


def _through(connection: Connection, filters: Filters, moment: int | None) -> list[int]:
    """Rows and counters of all wallets before a moment; as they are now, if there is none."""
    if moment is not None:
        values = {
            "livemode": filters.livemode,
            "any_currency": filters.currency is None,
            "currency": filters.currency or "",
            "moment": moment,
        }
        return [int(one) for one in connection.execute(_THROUGH, values).one()]
    columns = (s.sequence, s.usage_count, s.usage_amount, s.usage_quantity, s.unmetered_amount)
    query = (
        select(*(func.coalesce(func.sum(column), 0) for column in columns))
        .join_from(schema.wallets, schema.wallet_states)
        .where(w.livemode == filters.livemode)
    )
    if filters.currency is not None:
        query = query.where(w.currency == filters.currency)
    return [int(one) for one in connection.execute(query).one()]


def _wallets_written(connection: Connection, filters: Filters) -> list[tuple[int, int, str]]:
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


def _sums_through(connection: Connection, wallet: int, sequence: int) -> tuple[int, int, int, int]:
    found = connection.execute(
        select(t.usage_count, t.usage_amount, t.usage_quantity, t.unmetered_amount).where(
            t.wallet_number == wallet, t.sequence == sequence
        )
    ).one_or_none()
    return (0, 0, 0, 0) if found is None else tuple(found)


def dimension_sums(
    connection: Connection, filters: Filters, wallets: list[tuple[int, int, str]] | None
) -> Sums:
    """Consumption of a meter or subscription: whole quarters from the roll-ups, edges from rows."""
    if wallets is None:
        wallets = _wallets_written(connection, filters)
    total = Sums()
    for number, last, _ in wallets:
        query = select(d.number, d.has_usage).where(
            d.wallet_number == number, d.kind == Kind.USAGE.value
        )
        if filters.meter_id is not None:
            query = query.where(d.meter_id == filters.meter_id)
        if filters.subscription_id is not None:
            query = query.where(d.subscription_id == filters.subscription_id)
        dimensions = {row.number: row.has_usage for row in connection.execute(query)}
        if dimensions:
            total += _quarter_sums(connection, number, last, dimensions, filters)
    return total


def _quarter_sums(
    connection: Connection, wallet: int, last: int, dimensions: dict[int, bool], filters: Filters
) -> Sums:
    start = 0 if filters.start is None else filters.start
    end = NEVER if filters.end is None else filters.end
    first, through = -(-start // clock.QUARTER), end // clock.QUARTER
    if first >= through:
        return _row_sums(connection, span(connection, wallet, last, start, end), dimensions)
    r = schema.rollups.c
    total = Sums()
    found = connection.execute(
        select(
            r.dimension_number,
            func.sum(r.created_count),
            func.sum(r.created_amount),
            func.sum(r.created_quantity),
        )
        .where(
            r.wallet_number == wallet,
            r.quarter >= first,
            r.quarter < through,
            r.dimension_number.in_(list(dimensions)),
        )
        .group_by(r.dimension_number)
    )
    for number, count, amount, quantity in found:
        unmetered = 0 if dimensions[number] else -amount
        total += Sums(int(count), int(amount), int(quantity), int(unmetered))
    for a, b in ((start, first * clock.QUARTER), (through * clock.QUARTER, end)):
        if a < b:
            total += _row_sums(connection, span(connection, wallet, last, a, b), dimensions)
    return total


def _row_sums(connection: Connection, window: Span, dimensions: dict[int, bool]) -> Sums:
    """The same from the rows: a row's quantity is what the counter grew by."""
    total = Sums()
    if not len(window):
        return total
    quantity_before = _sums_through(connection, window.wallet, window.first - 1)[2]
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
