"""Reading single transactions and postings, and what every list and sum begins with.

Functions of a SQLAlchemy connection on one snapshot. Within a wallet, order of time is order of
sequence, so a window of time is a `Span` of sequences, found by bisection in their unique index.
Lists are in `lists.py`, sums in `consumption.py`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    not_,
    select,
    text,
)

from creditledger.domain.model import (
    NEVER,
    Annotation,
    Dimension,
    Posting,
    Row,
    SpendLimit,
    Wallet,
)
from creditledger.domain.views import (
    HeldCredit,
    Movement,
    Transaction,
    TransactionMeter,
    WalletPlace,
)
from creditledger.store import schema
from creditledger.store.dialects import pairs, snapshot
from creditledger.store.write.batch import PAYS_EVENT, RETURNS_EVENT
from creditledger.store.write.columns import (
    DIMENSION,
    EVENT,
    GRANT,
    HOLD,
    LIMIT,
    PLACE,
    POSTING_NAMES,
    ROW,
    Parts,
    load,
    posting_value,
)

t, p, d, w, s, g, h, e = (
    schema.transactions.c,
    schema.postings.c,
    schema.dimensions.c,
    schema.wallets.c,
    schema.wallet_states.c,
    schema.grants.c,
    schema.holds.c,
    schema.meter_events.c,
)


#: A number alone would do, but with the wallet it is found where the wallet's data lie.
OF_POSTING = and_(p.wallet_number == t.wallet_number, p.number == t.posting_number)
#: The event that a posting reports, pays or cancels. The id of a plain consumption is the caller's
#: own word, and names no event.
_OF_EVENT = and_(
    # Spelled out: SQLAlchemy would write a list of values anew at each call.
    p.operation.in_([literal_column(str(int(one))) for one in PAYS_EVENT + RETURNS_EVENT]),
    e.wallet_number == p.wallet_number,
    e.identifier == p.meter_event_id,
)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list or summary is narrowed to; None does not narrow. Times are [start, end) ms."""

    livemode: bool
    customer_id: str | None = None
    subscription_id: str | None = None
    meter_id: str | None = None
    wallet_id: str | None = None
    currency: str | None = None
    grant: tuple[int, int] | None = None  #: (wallet number, grant number)
    source: str | None = None
    q: str | None = None
    start: int | None = None
    end: int | None = None

    def names_wallets(self) -> bool:
        """Whether the filters narrow to some wallets of the mode."""
        narrows = (self.wallet_id, self.customer_id, self.subscription_id, self.grant)
        return any(one is not None for one in narrows)


def with_postings(rows: Select[Any], *columns: ColumnElement[Any]) -> Select[Any]:
    """What `rows` selects of credit transactions, and these columns of their postings.

    An OFFSET keeps PostgreSQL from joining before it has the rows. Where its statistics, or a plan
    that it keeps, know of few rows of a wallet, it would compare each row with all postings of it.
    """
    r = rows.offset(0).subquery("r").c
    same = and_(p.wallet_number == r.wallet_number, p.number == r.posting_number)
    return select(*r, *columns).join(schema.postings, same)


#: What a list shows of a credit transaction, each part a value or a group of columns.
_SHOWN = Parts(
    ROW.of(t),
    [p[name] for name in POSTING_NAMES],
    DIMENSION.of(d),
    PLACE,
    (schema.customers.c.name, schema.customers.c.email),
    (schema.currencies.c.name,),
    (schema.meters.c.name, schema.meters.c.event_name, schema.meters.c.unit),
    GRANT.of(g),
    EVENT.of(e),
)


def _expanded(rows: FromClause) -> Select[Any]:
    """Credit transactions with all that a list shows of each; `rows` is their table, or a join."""
    return select(*_SHOWN.columns).select_from(
        rows.join(schema.postings, OF_POSTING)
        .join(
            schema.dimensions,
            and_(d.wallet_number == t.wallet_number, d.number == t.dimension_number),
        )
        .join(schema.wallets, w.number == t.wallet_number)
        .join(schema.currencies, schema.currencies.c.code == w.currency)
        .join(schema.customers, schema.customers.c.id == w.customer_id)
        .join(schema.meter_events, _OF_EVENT, isouter=True)
        .join(
            schema.meters,
            schema.meters.c.id == func.coalesce(d.meter_id, e.meter_id),
            isouter=True,
        )
        .join(
            schema.grants,
            and_(g.wallet_number == t.wallet_number, g.number == t.grant_number),
            isouter=True,
        )
    )


_EXPANDED = _expanded(schema.transactions)


def _transactions(rows: Iterable[Sequence[Any]]) -> list[Transaction]:
    # Most rows of a page have the same wallet, meter and grants, and few dimensions.
    dimension_of, grant_of = cache(DIMENSION.value), cache(GRANT.value)
    place_of, meter_of = cache(lambda columns: WalletPlace(*columns)), cache(TransactionMeter._make)
    found = []
    for columns in rows:
        row, posting, dimension, place, customer, (currency,), meter, grant, event = _SHOWN.split(
            columns
        )
        one = Transaction(
            Row(*row),
            posting_value(posting),
            dimension_of(dimension),
            place_of(place),
            customer=customer,
            currency_name=currency,
            meter=None if meter[0] is None else meter_of(meter),
            grant=None if grant[0] is None else grant_of(grant),
            event=None if event[0] is None else EVENT.value(event),
        )
        found.append(one)
    return found


def transaction(connection: Connection, wallet: int, sequence: int) -> Transaction | None:
    """The transaction of this wallet number and sequence, expanded."""
    return next(iter(transactions(connection, Span(wallet, sequence, sequence))), None)


_TRANSACTIONS = _EXPANDED.where(
    t.wallet_number == bindparam("wallet"),
    t.sequence.between(bindparam("first"), bindparam("last")),
).order_by(t.sequence.desc())


def transactions(connection: Connection, of: "Span") -> list[Transaction]:
    """All transactions of the span, expanded, newest first."""
    values = {"wallet": of.wallet, "first": of.first, "last": of.last}
    return _transactions(connection.execute(_TRANSACTIONS, values))


def idempotency_keys(
    connection: Connection, wallet: int, prefix: str, after: str, size: int
) -> Sequence[tuple[str, int]]:
    """Up to `size` keys that begin so and come behind `after`, with their posting numbers."""
    # Keys are printable ASCII, which all comes before DEL.
    found = connection.execute(
        select(p.idempotency_key, p.number)
        .where(
            p.wallet_number == wallet,
            p.idempotency_key > after,
            p.idempotency_key >= prefix,
            p.idempotency_key < f"{prefix}\x7f",
        )
        .order_by(p.idempotency_key)
        .limit(size)
    )
    return [(key, number) for key, number in found]


_POSTING = select(p.first_sequence, p.row_count, *(p[name] for name in POSTING_NAMES)).where(
    p.wallet_number == bindparam("wallet"), p.idempotency_key == bindparam("key")
)


def posting(
    connection: Connection, wallet: int, key: str
) -> tuple[Posting, Dimension | None] | None:
    """The wallet's posting under this idempotency key, with its rows and, of these, what they are.

    A hold, its release and its extension have no rows, nor has a capture of 0.
    """
    found = connection.execute(_POSTING, {"wallet": wallet, "key": key}).one_or_none()
    if found is None:
        return None
    first, count, *columns = found
    whole = posting_value(columns)
    if not count:
        return whole, None
    newest_first = transactions(connection, Span(wallet, first, first + count - 1))
    whole.rows = [one.row for one in reversed(newest_first)]
    return whole, newest_first[-1].dimension


#: What is shown of a hold.
_HELD = Parts(
    HOLD.of(h),
    PLACE,
    (p.description, p.metadata),
    DIMENSION.of(d),
)
_HOLDS = (
    select(*_HELD.columns)
    .join_from(schema.holds, schema.wallets, w.number == h.wallet_number)
    .join(schema.currencies, schema.currencies.c.code == w.currency)
    .join(
        schema.dimensions,
        and_(d.wallet_number == h.wallet_number, d.number == h.dimension_number),
    )
    .join(schema.postings, and_(p.wallet_number == h.wallet_number, p.number == h.number))
)


def hold(connection: Connection, wallet: int, number: int) -> HeldCredit | None:
    """The hold of this wallet number and number."""
    found = connection.execute(_ONE_HOLD, {"wallet": wallet, "number": number}).one_or_none()
    return None if found is None else _hold(found)


_ONE_HOLD = _HOLDS.where(h.wallet_number == bindparam("wallet"), h.number == bindparam("number"))


def holds(
    connection: Connection,
    wallet: int,
    before: int | None,
    size: int,
    *,
    is_open: bool | None,
    now: int,
) -> list[HeldCredit]:
    """A page of the wallet's holds, newest first, and one more if there is a next one."""
    query = _page_of_holds(is_open)
    values = {"wallet": wallet, "before": NEVER if before is None else before, "now": now}
    return list(map(_hold, connection.execute(query, values | {"count": size + 1})))


@cache
def _page_of_holds(is_open: bool | None) -> Select[Any]:
    query = _HOLDS.where(h.wallet_number == bindparam("wallet"), h.number < bindparam("before"))
    if is_open is not None:
        still = and_(h.ended.is_(None), h.deadline > bindparam("now"))
        query = query.where(still if is_open else not_(still))
    return query.order_by(h.number.desc()).limit(bindparam("count"))


def _hold(columns: Sequence[Any]) -> HeldCredit:
    held, place, (description, words), dimension = _HELD.split(columns)
    return HeldCredit(
        HOLD.value(held),
        WalletPlace(*place),
        DIMENSION.value(dimension),
        Annotation(description, load(words, {})),
    )


_LIMITS = (
    select(*LIMIT.of(schema.spend_limits.c))
    .where(schema.spend_limits.c.wallet_number == bindparam("wallet"))
    .order_by(schema.spend_limits.c.number)
)


def limits(connection: Connection, wallet: Wallet) -> tuple[tuple[SpendLimit, ...], dict[int, str]]:
    """The wallet's spend limits, oldest first, and for which API key its open holds are."""
    found = tuple(map(LIMIT.value, connection.execute(_LIMITS, {"wallet": wallet.number})))
    if not (found and wallet.holds):
        return found, {}
    labels = select(d.number, d.api_key_id).where(
        d.wallet_number == wallet.number,
        d.number.in_({hold.dimension for hold in wallet.holds.values()}),
    )
    return found, dict(connection.execute(labels).all())


def _expanded_at(place: CTE) -> Select[Any]:
    here = and_(place.c.wallet == t.wallet_number, place.c.sequence == t.sequence)
    return _expanded(place.join(schema.transactions, here))


_EXPANDED_AT = {dialect: _expanded_at(pairs(dialect)) for dialect in ("sqlite", "postgresql")}


def expand(connection: Connection, places: Sequence[tuple[int, int]]) -> list[Transaction]:
    """The transactions at these places (wallet number, sequence), in this order."""
    if not places:
        return []
    found = {}
    query = _EXPANDED_AT[connection.dialect.name]
    for one in _transactions(connection.execute(query, {"pairs": json.dumps(places)})):
        found[one.row.wallet, one.row.sequence] = one
    return [found[place] for place in places]


_MOVED = Parts(ROW.of(t), [p[name] for name in POSTING_NAMES], (schema.currencies.c.scale,))


def moved(rows: FromClause) -> Select[*tuple[Any, ...]]:
    """What `movements` reads; `rows` is a join with the table of credit transactions."""
    return select(*_MOVED.columns).select_from(
        rows.join(schema.postings, OF_POSTING)
        .join(schema.wallets, w.number == t.wallet_number)
        .join(schema.currencies, schema.currencies.c.code == w.currency)
    )


def movements(rows: Iterable[Sequence[Any]]) -> list[Movement]:
    """Of the rows of a statement of `moved`."""
    parts = map(_MOVED.split, rows)
    return [Movement(Row(*row), posting_value(kept), scale) for row, kept, (scale,) in parts]


# --- time is sequence -----------------------------------------------------------------------------

#: The last sequence of a wallet written before a moment: bisection, a step a level.
_BISECT = text(
    """
    WITH RECURSIVE search (low, high) AS (
        SELECT CAST(0 AS BIGINT), CAST(:last AS BIGINT)
        UNION ALL
        SELECT CASE WHEN (SELECT created_at FROM credit_transactions
                          WHERE wallet_number = :wallet AND sequence = (low + high + 1) / 2)
                         < :moment
                    THEN (low + high + 1) / 2 ELSE low END,
               CASE WHEN (SELECT created_at FROM credit_transactions
                          WHERE wallet_number = :wallet AND sequence = (low + high + 1) / 2)
                         < :moment
                    THEN high ELSE (low + high + 1) / 2 - 1 END
        FROM search WHERE low < high
    )
    SELECT low FROM search WHERE low = high
    """
).bindparams(*(bindparam(name, type_=BigInteger) for name in ("wallet", "last", "moment")))


@dataclass(frozen=True, slots=True)
class Span:
    """A wallet's rows in a window: sequences first to last, both included."""

    wallet: int
    first: int
    last: int

    def __len__(self) -> int:
        return max(0, self.last - self.first + 1)


def last_before(connection: Connection, wallet: int, last: int, moment: int) -> int:
    """The last sequence, up to `last`, written before `moment`; 0 if there is none."""
    values = {"wallet": wallet, "last": last, "moment": moment}
    found: int = connection.execute(_BISECT, values).scalar_one()
    return found


def span(
    connection: Connection, wallet: int, last: int, start: int | None, end: int | None
) -> Span:
    """The rows of [start, end), of a wallet whose last sequence is `last`."""
    through = last if end is None else last_before(connection, wallet, last, end)
    first = 1 if start is None else last_before(connection, wallet, through, start) + 1
    return Span(wallet, first, through)


@cache
def _wallets(
    *, wallet: bool, customer: bool, subscription: bool, grant: bool, currency: bool
) -> Select[*tuple[Any, ...]]:
    """The wallets that a list is narrowed to by these, and the snapshot that it reads."""
    query = (
        select(w.number, s.sequence, w.currency, snapshot())
        .join_from(schema.wallets, schema.wallet_states)
        .where(w.livemode == bindparam("livemode"))
    )
    if wallet:
        query = query.where(w.id == bindparam("wallet_id"))
    if customer:
        query = query.where(w.customer_id == bindparam("customer_id"))
    if subscription:
        owner = select(schema.subscriptions.c.customer_id).where(
            schema.subscriptions.c.id == bindparam("subscription_id")
        )
        query = query.where(w.customer_id == owner.scalar_subquery())
    if grant:
        query = query.where(w.number == bindparam("grant"))
    if currency:
        query = query.where(w.currency == bindparam("currency"))
    return query


_SNAPSHOT = select(snapshot())
#: The number, the last sequence and the currency of each of some wallets.
Wallets = list[tuple[int, int, str]]


def wallets_of(connection: Connection, filters: Filters) -> Wallets | None:
    """The wallets in scope; None: all of the mode."""
    return wallets_and_snapshot(connection, filters)[0] if filters.names_wallets() else None


def wallets_and_snapshot(connection: Connection, filters: Filters) -> tuple[Wallets | None, str]:
    """The same, and what `snapshot` says of this read; of no wallets it says nothing."""
    if not filters.names_wallets():
        return None, connection.execute(_SNAPSHOT).scalar_one()
    query = _wallets(
        wallet=filters.wallet_id is not None,
        customer=filters.customer_id is not None,
        subscription=filters.subscription_id is not None,
        grant=filters.grant is not None,
        currency=filters.currency is not None,
    )
    values = {
        "livemode": filters.livemode,
        "wallet_id": filters.wallet_id,
        "customer_id": filters.customer_id,
        "subscription_id": filters.subscription_id,
        "grant": filters.grant and filters.grant[0],
        "currency": filters.currency,
    }
    found = connection.execute(query, values).all()
    return [(row[0], row[1], row[2]) for row in found], found[0][3] if found else ""
