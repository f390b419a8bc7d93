"""Reading grants as they are managed: single ones, lists, sums, and the trace both ways.

Functions of a SQLAlchemy connection on one snapshot. What a grant is depends on the time: `clock`
is the caller's, and the time of a wallet is never before its last posting. What the terms of a
grant were at a past moment is in `wallet_history.py`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    column,
    func,
    literal,
    not_,
    or_,
    select,
    tuple_,
)

from creditledger.domain.clock import DAY
from creditledger.domain.model import NEVER, Category, Grant, GrantStatus, repayments
from creditledger.domain.views import GivenGrant, Transaction, WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import by_index, exact_sum, holds, lower_ascii
from creditledger.store.read.transaction_reads import OF_POSTING, expand
from creditledger.store.registry import records
from creditledger.store.write.columns import GRANT, PLACE, POSTING_NAMES, Parts, load, posting_value

t, p, w, s, g = (
    schema.transactions.c,
    schema.postings.c,
    schema.wallets.c,
    schema.wallet_states.c,
    schema.grants.c,
)
v = schema.grant_revisions.c

#: Rows of its wallet that a page of a grant's rows looks at: there is no index of them by grant.
ROWS_LOOKED_AT_MAX = 50_000

#: (created_at, wallet number, number): the order of the list over all wallets.
Position = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class GrantFilters:
    """What a list is narrowed to; None does not narrow."""

    livemode: bool
    customer_id: str | None = None
    wallet_id: str | None = None
    category: Category | None = None
    expiring_before: int | None = None
    currency: str | None = None
    statuses: tuple[GrantStatus, ...] = ()  #: Any of these; empty does not narrow.
    q: str | None = None  #: What the name holds, whatever the case of ASCII letters.


#: What is shown of a grant.
_SHOWN = Parts(
    (g.wallet_number, s.posted_at, t.kind),
    GRANT.of(g),
    PLACE,
    (v.created_at, v.metadata),
    (schema.customers.c.name, schema.customers.c.email),
    [p[name] for name in POSTING_NAMES],
)
_GRANTS = (
    select(*_SHOWN.columns)
    .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
    .join(schema.wallet_states, s.wallet_number == g.wallet_number)
    .join(schema.currencies, schema.currencies.c.code == w.currency)
    .join(schema.customers, schema.customers.c.id == w.customer_id)
    .join(schema.transactions, and_(t.wallet_number == g.wallet_number, t.sequence == g.number))
    .join(schema.postings, OF_POSTING)
    .join(
        schema.grant_revisions,
        and_(
            v.wallet_number == g.wallet_number,
            v.grant_number == g.number,
            v.number == g.revision,
        ),
        isouter=True,
    )
)


def grant(connection: Connection, wallet: int, number: int, *, clock: int) -> GivenGrant | None:
    """The grant of this wallet number and number."""
    rows = connection.execute(_GRANTS.where(g.wallet_number == wallet, g.number == number)).all()
    return next(iter(_given(connection, rows, clock)), None)


def _given(connection: Connection, rows: Iterable[Sequence[Any]], clock: int) -> list[GivenGrant]:
    found = []
    for columns in rows:
        wallet, kept, place, revision, (name, email), posted = _SHOWN.split(columns)
        number, posted_at, kind = wallet
        changed_at, metadata = revision
        one, posting = GRANT.value(kept), posting_value(posted)
        found.append(
            GivenGrant(
                wallet_number=number,
                grant=one,
                wallet=WalletPlace(*place),
                customer=(name, email),
                now=max(clock, posted_at),
                kind=kind,
                posting=posting,
                metadata=load(metadata, {}) if one.revision else posting.metadata,
                updated_at=changed_at if one.revision else one.created_at,
            )
        )
    times = {one.wallet_number: one.now for one in found}
    repaid = _repaid(connection, times)
    for given in found:
        paid = repaid.get((given.wallet_number, given.grant.number), 0)
        given.grant.remaining -= paid
        given.grant.repaid += paid
    held = _held(connection, times)
    for given in found:
        given.grant.held = held.get((given.wallet_number, given.grant.number), 0)
    return found


def _repaid(connection: Connection, times: Mapping[int, int]) -> dict[tuple[int, int], int]:
    """What grants have paid back of overdraft by now and nobody has written down.

    By wallet and grant number; `times`: now, by wallet.
    """
    overdrawn = select(s.wallet_number).where(
        s.wallet_number.in_(list(times)), s.overdraft_used > 0
    )
    numbers = list(connection.execute(overdrawn).scalars()) if times else []
    found: dict[tuple[int, int], int] = {}
    for wallet in records.wallets_numbered(connection, numbers):
        for _, one, _, amount in repayments(wallet, times[wallet.number]):
            place = wallet.number, one.number
            found[place] = found.get(place, 0) + amount
    return found


def _held(connection: Connection, times: Mapping[int, int]) -> dict[tuple[int, int], int]:
    """What open holds have set aside, by wallet and grant number; `times`: now, by wallet."""
    held: dict[tuple[int, int], int] = {}
    if not times:
        return held
    rows: Iterable[Any] = connection.execute(
        select(*map(column, ("wallet_number", "parts", "deadline")))
        .select_from(by_index(connection.dialect.name, "holds", "holds_open"))
        .where(column("wallet_number", BigInteger).in_(list(times)), column("ended").is_(None))
    )
    for wallet, parts, deadline in rows:
        if times[wallet] < deadline:
            for number, part in json.loads(parts):
                held[wallet, number] = held.get((wallet, number), 0) + part
    return held


# --- lists ----------------------------------------------------------------------------------------


def _now(clock: int) -> ColumnElement[int]:
    """The wallet's time."""
    at = literal(clock, BigInteger)
    return case((s.posted_at > at, s.posted_at), else_=at)


def _has_expired(now: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether the grant's time is over: never NULL, so it can be negated."""
    return func.coalesce(g.expires_at, literal(NEVER, BigInteger)) <= now


def _has_ended(now: ColumnElement[int]) -> ColumnElement[bool]:
    """As `Grant.has_ended` has it."""
    return or_(g.voided_at.is_not(None), _has_expired(now))


def _is(status: GrantStatus, now: ColumnElement[int]) -> ColumnElement[bool]:
    """As `Grant.status` has it."""
    if status is GrantStatus.VOIDED:
        return g.voided_at.is_not(None)
    if status is GrantStatus.EXPIRED:
        return and_(g.voided_at.is_(None), _has_expired(now))
    in_time = not_(_has_ended(now))
    if status is GrantStatus.DEPLETED:
        return and_(in_time, g.remaining == 0)
    begun = g.effective_at > now if status is GrantStatus.PENDING else g.effective_at <= now
    return and_(in_time, g.remaining > 0, begun)


def _narrowed(query: Select[Any], filters: GrantFilters, clock: int) -> Select[Any]:
    if filters.category is not None:
        query = query.where(g.category == filters.category.value)
    if filters.expiring_before is not None:
        query = query.where(g.expires_at < filters.expiring_before)
    if filters.currency is not None:
        query = query.where(w.currency == filters.currency)
    if filters.statuses:
        query = query.where(or_(*(_is(one, _now(clock)) for one in filters.statuses)))
    if filters.q is not None:
        query = query.where(holds(func.lower(func.coalesce(g.name, "")), lower_ascii(filters.q)))
    return query


def wallets_in(connection: Connection, filters: GrantFilters) -> list[int] | None:
    """Numbers of the wallets in scope; None: all of the mode."""
    query = select(w.number).where(w.livemode == filters.livemode)
    if filters.customer_id is None and filters.wallet_id is None:
        return None
    if filters.customer_id is not None:
        query = query.where(w.customer_id == filters.customer_id)
    if filters.wallet_id is not None:
        query = query.where(w.id == filters.wallet_id)
    return list(connection.execute(query).scalars())


def page(
    connection: Connection,
    filters: GrantFilters,
    before: Position | None,
    size: int,
    *,
    clock: int,
) -> list[GivenGrant]:
    """Grants, newest first, and one more than `size` if there is a next page."""
    wallets = wallets_in(connection, filters)
    query = _narrowed(_GRANTS, filters, clock).limit(size + 1)
    order = (g.created_at, g.wallet_number, g.number)
    rows: list[Any] = []
    if wallets is None:
        query = query.where(w.livemode == filters.livemode)
        if before is not None:
            query = query.where(tuple_(*order) < tuple_(*map(literal, before)))
        rows += connection.execute(query.order_by(*(one.desc() for one in order)))
    for wallet in wallets or ():
        # Within a wallet the order is that of its key.
        own = query.where(g.wallet_number == wallet)
        if before is not None:
            own = own.where(_before(before, wallet))
        rows += connection.execute(own.order_by(g.number.desc()))
    given = _given(connection, rows, clock)
    return sorted(given, key=position, reverse=True)[: size + 1]


def numbered(
    connection: Connection, filters: GrantFilters, *, offset: int, size: int, clock: int
) -> tuple[int, list[GivenGrant]]:
    """How many grants there are, and those of a page, newest first.

    Counting reads what the filters leave, so the caller bounds the time.
    """
    scope = [w.livemode == filters.livemode]
    wallets = wallets_in(connection, filters)
    if wallets is not None:
        scope.append(g.wallet_number.in_(wallets))
    counted = (
        select(func.count())
        .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
        .join(schema.wallet_states, s.wallet_number == g.wallet_number)
    )
    count = connection.execute(_narrowed(counted, filters, clock).where(*scope)).scalar_one()
    query = _narrowed(_GRANTS, filters, clock).where(*scope)
    order = (g.created_at.desc(), g.wallet_number.desc(), g.number.desc())
    rows = connection.execute(query.order_by(*order).limit(size).offset(offset)).all()
    return count, _given(connection, rows, clock)


def _before(before: Position, wallet: int) -> ColumnElement[bool]:
    created_at, of_wallet, number = before
    if wallet == of_wallet:
        return g.number < number
    return g.created_at <= created_at if wallet < of_wallet else g.created_at < created_at


def position(one: GivenGrant) -> Position:
    """Its place in the list."""
    return one.grant.created_at, one.wallet_number, one.grant.number


# --- sums -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class GrantSums:
    """Sums of grants in one currency, in its smallest units."""

    scale: int
    count: int = 0
    granted: int = 0
    remaining: int = 0  #: Of what has ended, only what is held.
    held: int = 0
    pending: int = 0
    expiring: int = 0  #: Not held, of grants that end within the days.


def summary(
    connection: Connection, wallets: Sequence[int], *, clock: int, days: int
) -> dict[str, GrantSums]:
    """The grants of these wallets, by currency."""
    now = _now(clock)
    left = case((_has_ended(now), 0), else_=g.remaining)
    soon = and_(not_(_has_expired(now)), _has_expired(now + days * DAY))
    sums: dict[str, GrantSums] = {}
    times: dict[int, int] = {}
    currencies: dict[int, str] = {}
    for wallet in wallets:
        found = connection.execute(
            select(
                w.currency,
                schema.currencies.c.scale,
                s.posted_at,
                func.count(),
                exact_sum(g.amount),
                exact_sum(left),
                exact_sum(case((g.effective_at > now, left), else_=0)),
                exact_sum(case((soon, left), else_=0)),
            )
            .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
            .join(schema.wallet_states, s.wallet_number == g.wallet_number)
            .join(schema.currencies, schema.currencies.c.code == w.currency)
            .where(g.wallet_number == wallet)
            .group_by(w.currency, schema.currencies.c.scale, s.posted_at)
        ).one_or_none()
        if found is None:
            continue
        currency, scale, posted_at, *figures = found
        currencies[wallet], times[wallet] = currency, max(clock, posted_at)
        count, granted, remaining, pending, expiring = figures
        one = sums.setdefault(currency, GrantSums(scale))
        one.count += count
        one.granted += granted
        one.remaining += remaining
        one.pending += pending
        one.expiring += expiring
    for (wallet, number), paid in _repaid(connection, times).items():
        _take_repaid(connection, sums[currencies[wallet]], wallet, number, paid, times, days)
    _set_aside(connection, sums, currencies, times, days)
    return dict(sorted(sums.items()))


class Holder(NamedTuple):
    """A customer with credit in a currency."""

    customer_id: str
    balance: int  #: Of grants that have begun and not ended, held or not.
    grant_count: int  #: Of such grants.


def holders(
    connection: Connection, currency: str, *, livemode: bool, offset: int, size: int, clock: int
) -> tuple[int, list[Holder]]:
    """How many customers have credit in this currency, and a page of them, by customer."""
    now = _now(clock)
    query = (
        select(w.customer_id, exact_sum(g.remaining), func.count())
        .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
        .join(schema.wallet_states, s.wallet_number == g.wallet_number)
        .where(w.currency == currency, w.livemode == livemode, g.open)
        .where(g.effective_at <= now, not_(_has_expired(now)))
        .group_by(w.customer_id)
    )
    total = connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
    rows = connection.execute(query.order_by(w.customer_id).offset(offset).limit(size))
    return total, [Holder(customer, int(balance), count) for customer, balance, count in rows]


class Given(NamedTuple):
    """Grants that were given on one day."""

    day: int  #: Days since 1970, of the zone.
    grant_count: int
    granted: int
    remaining: int  #: Of those that have not ended.


def given_by_day(
    connection: Connection,
    currency: str,
    *,
    livemode: bool,
    category: Category | None,
    start: int,
    end: int,
    ahead: int,
    clock: int,
) -> list[Given]:
    """The grants of a currency given in [start, end), by day; days are so many ms ahead of UTC."""
    left = case((_has_ended(_now(clock)), 0), else_=g.remaining)
    day = ((g.created_at + literal(ahead, BigInteger)) // literal(DAY, BigInteger)).label("day")
    query = (
        select(day, func.count(), exact_sum(g.amount), exact_sum(left))
        .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
        .join(schema.wallet_states, s.wallet_number == g.wallet_number)
        .where(w.currency == currency, w.livemode == livemode)
        .where(g.created_at >= start, g.created_at < end)
        .group_by(day)
        .order_by(day)
    )
    if category is not None:
        query = query.where(g.category == category.value)
    return [
        Given(one, count, int(granted), int(remaining))
        for one, count, granted, remaining in connection.execute(query)
    ]


def _take_repaid(
    connection: Connection,
    sums: GrantSums,
    wallet: int,
    number: int,
    paid: int,
    times: Mapping[int, int],
    days: int,
) -> None:
    """What a grant has paid back of overdraft is not left of it, and does not expire."""
    query = select(g.expires_at).where(g.wallet_number == wallet, g.number == number)
    expires_at, now = connection.execute(query).scalar_one(), times[wallet]
    if expires_at is None or expires_at > now:
        sums.remaining -= paid
        if expires_at is not None and expires_at <= now + days * DAY:
            sums.expiring -= paid


def _set_aside(
    connection: Connection,
    sums: Mapping[str, GrantSums],
    currencies: Mapping[int, str],
    times: Mapping[int, int],
    days: int,
) -> None:
    """What is held belongs to `held`, to `remaining` whatever has ended, and does not expire."""
    held = _held(connection, times)
    for wallet in sorted({wallet for wallet, _ in held}):
        numbers = [number for of, number in held if of == wallet]
        query = select(*GRANT.of(g)).where(g.wallet_number == wallet, g.number.in_(numbers))
        one, now = sums[currencies[wallet]], times[wallet]
        for columns in connection.execute(query):
            held_of = GRANT.value(columns)
            part = held[wallet, held_of.number]
            one.held += part
            if held_of.has_ended(now):
                one.remaining += part
            elif held_of.expires_at is not None and held_of.expires_at <= now + days * DAY:
                one.expiring -= part


# --- the trace ------------------------------------------------------------------------------------


def transactions(
    connection: Connection,
    wallet: int,
    number: int,
    after: int | None,
    size: int,
    *,
    newest_first: bool,
) -> tuple[list[Transaction], int | None]:
    """A page of the grant's rows after the row `after`, and the row that the next page is after.

    They begin with the row that made the grant. ROWS_LOOKED_AT_MAX rows are looked at, at most.
    """
    last: int = connection.execute(select(s.sequence).where(s.wallet_number == wallet)).scalar_one()
    query = select(t.sequence).where(t.wallet_number == wallet, t.grant_number == number)
    if newest_first:
        high = last if after is None else after - 1
        low = max(number, high - ROWS_LOOKED_AT_MAX + 1)
        query = query.order_by(t.sequence.desc())
        end = low if low > number else None
    else:
        low = number if after is None else after + 1
        high = min(last, low + ROWS_LOOKED_AT_MAX - 1)
        query = query.order_by(t.sequence)
        end = high if high < last else None
    query = query.where(t.sequence.between(low, high)).limit(size + 1)
    sequences = list(connection.execute(query).scalars())
    shown = sequences[:size]
    if len(sequences) > size:
        end = shown[-1]
    return expand(connection, [(wallet, sequence) for sequence in shown]), end


class Moved(NamedTuple):
    """What a posting's row moved."""

    sequence: int
    amount: int
    grant: Grant | None  #: None: overdraft.


def moved(
    connection: Connection, wallet: int, number: int
) -> tuple[WalletPlace, list[Moved]] | None:
    """Whose wallet a posting is on, and what each of its rows moved."""
    found = connection.execute(
        select(p.first_sequence, p.row_count, *PLACE)
        .join_from(schema.postings, schema.wallets, w.number == p.wallet_number)
        .join(schema.currencies, schema.currencies.c.code == w.currency)
        .where(p.wallet_number == wallet, p.number == number)
    ).one_or_none()
    if found is None:
        return None
    first, count, *place = found
    rows = connection.execute(
        select(t.sequence, t.amount, *GRANT.of(g))
        .join_from(
            schema.transactions,
            schema.grants,
            and_(g.wallet_number == t.wallet_number, g.number == t.grant_number),
            isouter=True,
        )
        .where(t.wallet_number == wallet, t.sequence.between(first, first + count - 1))
        .order_by(t.sequence)
    )
    return WalletPlace(*place), [
        Moved(sequence, amount, None if columns[0] is None else GRANT.value(columns))
        for sequence, amount, *columns in rows
    ]
