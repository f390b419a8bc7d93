"""Reading what meters counted: one event, lists, sums by time, and what is still owed.

Functions of a SQLAlchemy connection, run by `Store.read`. Events are written with their postings,
by the writers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, false, func, or_, select

from creditledger.domain.model import MeterEvent
from creditledger.domain.registry import Currency, Meter
from creditledger.domain.views import WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import exact_sum, has_value, holds, lower_ascii
from creditledger.store.registry import meters, records
from creditledger.store.write.columns import EVENT, PLACE, Parts, load

_e, _w, _p = schema.meter_events.c, schema.wallets.c, schema.postings.c
_m, _k, _c = schema.meters.c, schema.currencies.c, schema.customers.c


class Reported(NamedTuple):
    """An event with what its ids stand for."""

    event: MeterEvent
    wallet_number: int
    wallet: WalletPlace
    metadata: dict[str, str]
    customer: tuple[str, str]  #: Name, e-mail address.
    meter: tuple[str, str, str]  #: Name, event name, unit.
    currency: Currency


class Destination(NamedTuple):
    """Where an event goes, as far as there is such a place."""

    meter: Meter | None
    currency: Currency | None
    customer: tuple[str, str] | None  #: Name, e-mail address.
    wallet_id: str | None


@dataclass(frozen=True, slots=True)
class EventFilters:
    """What a list of events is to show; None shows all."""

    livemode: bool
    customer_id: str | None = None
    meter_id: str | None = None
    event_name: str | None = None
    start: int | None = None  #: Of created_at, included ...
    end: int | None = None  #: ... and excluded.
    q: str | None = None


class EventBucket(NamedTuple):
    """The events of a stretch of time."""

    begins: int
    events: int
    value: int


def _events(*columns: Any) -> Select[Any]:
    """Events with their wallets and meters."""
    return select(*columns).select_from(
        schema.meter_events.join(schema.wallets, _w.number == _e.wallet_number).join(
            schema.meters, _m.id == _e.meter_id
        )
    )


_OF_POSTING = and_(_p.wallet_number == _e.wallet_number, _p.number == _e.number)
#: What is shown of an event.
_SHOWN = Parts(
    EVENT.of(_e),
    (_e.wallet_number, _p.metadata, _k.name),
    PLACE,
    (_c.name, _c.email),
    (_m.name, _m.event_name, _m.unit),
)
_REPORTED = (
    _events(*_SHOWN.columns)
    .join(schema.postings, _OF_POSTING)
    .join(schema.customers, _c.id == _w.customer_id)
    .join(schema.currencies, _k.code == _w.currency)
)


def _reported(columns: Sequence[Any]) -> Reported:
    event, (number, metadata, currency), where, (name, email), meter = _SHOWN.split(columns)
    place = WalletPlace(*where)
    meter_name, event_name, unit = meter
    return Reported(
        EVENT.value(event),
        number,
        place,
        load(metadata, {}),
        (name, email),
        (meter_name, event_name, unit),
        Currency(place.currency, place.scale, currency),
    )


def event(connection: Connection, wallet: int, number: int) -> Reported | None:
    """The event of this wallet number and posting number."""
    query = _REPORTED.where(_e.wallet_number == wallet, _e.number == number)
    found = connection.execute(query).one_or_none()
    return None if found is None else _reported(found)


def destination(
    connection: Connection, event_name: str, customer_id: str, identifier: str, *, livemode: bool
) -> Destination:
    """The meter of the event, its currency, the customer and the wallet that pays."""
    meter = meters.by_event(connection, event_name)
    if meter is None or meter.currency is None:
        return Destination(meter, None, None, None)
    customer = records.customer(connection, customer_id)
    return Destination(
        meter,
        records.currency(connection, meter.currency),
        None if customer is None else (customer.name, customer.email),
        records.wallet_id_for_key(connection, customer_id, meter.currency, livemode, identifier),
    )


def page(
    connection: Connection, filters: EventFilters, *, offset: int, size: int
) -> tuple[int, list[Reported]]:
    """How many there are, and those of a page, newest first.

    Counting reads what the filters leave, so the caller bounds the time.
    """
    wanted = [_w.livemode == filters.livemode]
    if filters.customer_id is not None:
        wanted.append(_w.customer_id == filters.customer_id)
    if filters.meter_id is not None:
        wanted.append(_e.meter_id == filters.meter_id)
    if filters.event_name is not None:
        wanted.append(_m.event_name == filters.event_name)
    if filters.start is not None:
        wanted.append(_e.created_at >= filters.start)
    if filters.end is not None:
        wanted.append(_e.created_at < filters.end)
    counted = _events(func.count())
    if filters.q is not None:
        q = lower_ascii(filters.q)
        # Of each event by itself: joined, its posting is looked for by what statistics say.
        said = select(has_value(_p.metadata, q)).where(_OF_POSTING).correlate(schema.meter_events)
        named = holds(func.lower(_e.identifier), q)
        wanted.append(or_(named, func.coalesce(said.scalar_subquery(), false())))
    count: int = connection.execute(counted.where(*wanted)).scalar_one()
    ordered = _REPORTED.where(*wanted).order_by(
        _e.created_at.desc(), _e.wallet_number.desc(), _e.number.desc()
    )
    rows = connection.execute(ordered.limit(size).offset(offset))
    return count, [_reported(row) for row in rows]


def buckets(
    connection: Connection,
    meter_id: str,
    *,
    livemode: bool,
    customer_id: str | None,
    start: int,
    end: int,
    length: int,
) -> list[EventBucket]:
    """The meter's events of [start, end), added up by stretches of `length` ms since 1970 (UTC).

    Without those that were canceled.
    """
    begins = (_e.happened_at - _e.happened_at % length).label("begins")
    query = (
        select(begins, func.count(), exact_sum(_e.value))
        .join_from(schema.meter_events, schema.wallets, _w.number == _e.wallet_number)
        .where(
            _e.meter_id == meter_id,
            _e.happened_at >= start,
            _e.happened_at < end,
            _w.livemode == livemode,
            _e.canceled_at.is_(None),
        )
        .group_by(begins)
        .order_by(begins)
    )
    if customer_id is not None:
        query = query.where(_w.customer_id == customer_id)
    return [EventBucket(*row) for row in connection.execute(query)]


def owed(
    connection: Connection,
    *,
    livemode: bool,
    customer_id: str | None,
    subscription_id: str | None,
    currency: str | None,
) -> dict[str, tuple[int, int]]:
    """What the events of a customer or a subscription are owed: currency -> (amount, scale)."""
    query = (
        select(_w.currency, _k.scale, exact_sum(_e.unpaid))
        .join_from(schema.meter_events, schema.wallets, _w.number == _e.wallet_number)
        .join(schema.currencies, _k.code == _w.currency)
        .where(_w.livemode == livemode, _e.unpaid > 0)
        .group_by(_w.currency, _k.scale)
        .order_by(_w.currency)
    )
    if subscription_id is not None:
        owner = select(schema.subscriptions.c.customer_id).where(
            schema.subscriptions.c.id == subscription_id
        )
        query = query.where(
            _e.subscription_id == subscription_id, _w.customer_id == owner.scalar_subquery()
        )
    if customer_id is not None:
        query = query.where(_w.customer_id == customer_id)
    if currency is not None:
        query = query.where(_w.currency == currency)
    rows = connection.execute(query)
    return {code: (amount, scale) for code, scale, amount in rows}
