"""Webhook endpoints and the log of what was sent to them, as the API reads and changes them.

Functions of a SQLAlchemy connection, to be run by `Store.write` or `Store.read`. What makes
deliveries and sends them is in feed.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from creditledger.domain.errors import OutOfRange
from creditledger.domain.model import Word
from creditledger.domain.webhook_events import (
    ENDPOINTS_MAX,
    TRYING_MS,
    DeliveryStatus,
    Endpoint,
    EventType,
    Secret,
    Threshold,
)
from creditledger.store import schema
from creditledger.store.read import commit_order
from creditledger.store.registry import records
from creditledger.store.sealing import SEALED_NAME_CHARACTERS, Seal, sealed_by

e, y, f = (
    schema.webhook_endpoints.c,
    schema.webhook_deliveries.c,
    schema.webhook_feed.c,
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event for an endpoint, and how the sending of it stands."""

    wallet: int
    number: int
    endpoint_id: str
    type: EventType
    body: str
    status: DeliveryStatus
    attempts: int
    created_at: int
    next_attempt_at: int
    last_attempt_at: int | None
    last_status: int | None
    last_error: str | None
    delivered_at: int | None


# --- endpoints ------------------------------------------------------------------------------------


def endpoint_value(row: Row[Any]) -> Endpoint:
    """An endpoint of its row."""
    return Endpoint(
        number=row.number,
        id=row.id,
        customer_id=row.customer_id,
        livemode=bool(row.livemode),
        url=row.url,
        description=row.description,
        events=tuple(map(EventType, json.loads(row.events))),
        thresholds=tuple(Threshold(*one) for one in json.loads(row.thresholds)),
        expiring_days=row.expiring_days,
        enabled=bool(row.enabled),
        secret=Secret(row.secret),
        previous_secret=None if row.previous_secret is None else Secret(row.previous_secret),
        previous_until=row.previous_until,
        since=row.since,
        begins=row.begins,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


_ENDPOINTS = select(schema.webhook_endpoints).where(e.deleted_at.is_(None))


def endpoint(connection: Connection, id_: str) -> Endpoint | None:
    """The endpoint of this id."""
    row = connection.execute(_ENDPOINTS.where(e.id == id_)).one_or_none()
    return None if row is None else endpoint_value(row)


def endpoints(
    connection: Connection,
    after: str,
    size: int,
    *,
    livemode: bool | None,
    customer_id: str | None,
) -> list[Endpoint]:
    """A page, and one more if there is a next one."""
    query = _ENDPOINTS.where(e.id > after)
    if livemode is not None:
        query = query.where(e.livemode == livemode)
    if customer_id is not None:
        query = query.where(e.customer_id == customer_id)
    return [endpoint_value(row) for row in connection.execute(query.order_by(e.id).limit(size + 1))]


def create(
    connection: Connection,
    *,
    id_: str,
    customer_id: str | None,
    livemode: bool,
    secret: Secret,
    now: int,
    terms: Mapping[str, object],
) -> Endpoint:
    """A new endpoint, told of what is written from now on; `terms`: see `columns`.

    Raises NotFound for the customer, OutOfRange.
    """
    begins = _begin(connection, now)
    if customer_id is not None:
        records.require_customer(connection, customer_id)
    same = select(func.count()).where(
        e.deleted_at.is_(None),
        e.livemode == livemode,
        e.customer_id.is_(customer_id) if customer_id is None else e.customer_id == customer_id,
    )
    if connection.execute(same).scalar_one() >= ENDPOINTS_MAX:
        whose = "the operator" if customer_id is None else "a customer"
        raise OutOfRange(f"{whose} has at most {ENDPOINTS_MAX} webhook endpoints in a mode")
    connection.execute(
        insert(schema.webhook_endpoints).values(
            id=id_,
            customer_id=customer_id,
            livemode=livemode,
            enabled=True,
            secret=secret,
            since=now,
            begins=begins,
            created_at=now,
            updated_at=now,
            **{"thresholds": "[]", **terms},
        )
    )
    found = endpoint(connection, id_)
    assert found is not None
    return found


def columns(
    *,
    url: str | None,
    description: str | None,
    events: Sequence[EventType],
    thresholds: Sequence[Threshold],
    expiring_days: int | None,
) -> dict[str, object]:
    """What was given of an endpoint's terms, as its columns; None and () were not given."""
    found: dict[str, object | None] = {
        "url": url,
        "description": description,
        "events": json.dumps([one.value for one in events]) if events else None,
        "thresholds": json.dumps(thresholds) if thresholds else None,
        "expiring_days": expiring_days,
    }
    return {name: value for name, value in found.items() if value is not None}


def change(
    connection: Connection,
    one: Endpoint,
    terms: Mapping[str, object],
    *,
    enabled: bool | None,
    now: int,
) -> Endpoint | None:
    """The endpoint with these terms instead; None if it is no more."""
    more: dict[str, object] = {**terms, "updated_at": now}
    if enabled and not one.enabled:
        more |= {"enabled": True, "since": now, "begins": _begin(connection, now)}
    elif enabled is False:
        more["enabled"] = False
    _change(connection, one.number, more)
    return endpoint(connection, one.id)


def rotate(
    connection: Connection, one: Endpoint, *, secret: Secret, overlap_ms: int, now: int
) -> Endpoint | None:
    """The endpoint with another secret, and for a while the one before; None if it is no more."""
    kept = overlap_ms > 0
    terms = {
        "secret": secret,
        "previous_secret": one.secret if kept else None,
        "previous_until": now + overlap_ms if kept else None,
    }
    return change(connection, one, terms, enabled=None, now=now)


def seal_anew(
    connection: Connection, *, seal: Seal, after: str, size: int
) -> tuple[int, str | None]:
    """Seal the secrets of the next endpoints by the current key, where another one did or none.

    Answers how many secrets that were, and the id to go on after; None behind the last endpoint.
    Raises CannotUnseal with nothing changed.
    """
    found = endpoints(connection, after, size, livemode=None, customer_id=None)
    sealed = 0
    for one in found[:size]:
        old = {"secret": one.secret, "previous_secret": one.previous_secret}
        new = {
            name: seal.seal(seal.unseal(secret, one.id), one.id)
            for name, secret in old.items()
            if secret is not None and not seal.is_current(secret)
        }
        if new:
            _change(connection, one.number, new)
            sealed += len(new)
    return sealed, found[size - 1].id if len(found) > size else None


def sealing_keys(connection: Connection) -> set[str | None]:
    """Names of the keys that have sealed secrets; None among them where one is not sealed."""
    columns = (e.secret, e.previous_secret)
    found = {
        name
        for column in columns
        for (name,) in connection.execute(
            select(func.substr(column, 1, SEALED_NAME_CHARACTERS))
            .where(e.deleted_at.is_(None), column.is_not(None))
            .distinct()
        )
    }
    return {sealed_by(Secret(start)) for start in found}


def deleted_as(connection: Connection, id_: str) -> str | None:
    """How the endpoint was shown last, if it is no more."""
    query = select(e.deleted_as).where(e.id == id_, e.deleted_at.is_not(None))
    return connection.execute(query).scalar_one_or_none()


def delete(connection: Connection, number: int, *, shown: str, now: int) -> None:
    """End an endpoint, last shown as this JSON. What was made for it ages and goes, unsent."""
    _change(
        connection,
        number,
        {
            "enabled": False,
            "secret": "",
            "previous_secret": None,
            "previous_until": None,
            "updated_at": now,
            "deleted_at": now,
            "deleted_as": shown,
        },
    )


def _change(connection: Connection, number: int, values: Mapping[str, object]) -> None:
    query = update(schema.webhook_endpoints).where(e.number == number, e.deleted_at.is_(None))
    connection.execute(query.values(**values))


def _begin(connection: Connection, now: int) -> str:
    """Where what is written from now on begins; the feed begins there if nobody was listening."""
    end = commit_order.end(connection).text()
    # Of two that begin, and of who makes deliveries, one waits for the other here.
    connection.execute(update(schema.webhook_feed).values(made=f.made))
    if connection.execute(select(e.number).where(e.enabled).limit(1)).first() is None:
        connection.execute(update(schema.webhook_feed).values(mark=end, holds_until=now))
    return end


# --- the log --------------------------------------------------------------------------------------

_DELIVERIES = select(
    *(y.wallet_number, y.number, e.id, y.type, y.body, y.status, y.attempts, y.created_at),
    *(y.next_attempt_at, y.last_attempt_at, y.last_status, y.last_error, y.delivered_at),
).join_from(schema.webhook_deliveries, schema.webhook_endpoints, e.number == y.endpoint_number)


def _delivery(row: Sequence[Any]) -> Delivery:
    wallet, number, endpoint_id, type_, body, status, *rest = row
    return Delivery(
        wallet, number, endpoint_id, EventType(type_), body, DeliveryStatus(status), *rest
    )


def delivery(connection: Connection, wallet: int, number: int) -> tuple[Delivery, Endpoint] | None:
    """The delivery of this wallet number and number, and whose it is."""
    query = _DELIVERIES.where(y.wallet_number == wallet, y.number == number)
    row = connection.execute(query).one_or_none()
    found = None if row is None else endpoint(connection, row.id)
    return None if row is None or found is None else (_delivery(row), found)


def deliveries(
    connection: Connection,
    endpoint_number: int,
    before: int | None,
    size: int,
    *,
    status: Word | None,
) -> list[Delivery]:
    """A page, newest first, and one more if there is a next one."""
    query = _DELIVERIES.where(y.endpoint_number == endpoint_number)
    if before is not None:
        query = query.where(y.number < before)
    if status is not None:
        query = query.where(y.status == status.value)
    rows = connection.execute(query.order_by(y.number.desc()).limit(size + 1))
    return [_delivery(row) for row in rows]


def replay(connection: Connection, wallet: int, number: int, *, now: int) -> None:
    """Send it again at once, and for another day."""
    query = update(schema.webhook_deliveries).where(y.wallet_number == wallet, y.number == number)
    connection.execute(query.values(**_anew(now)))


def replay_many(
    connection: Connection,
    endpoint_number: int,
    *,
    status: DeliveryStatus | None,
    since: int | None,
    after: int,
    size: int,
    now: int,
) -> tuple[int, int | None]:
    """The next `size` behind number `after` in turn: (how many, the last one looked at or None)."""
    query = select(y.wallet_number, y.number, y.status, y.created_at).where(
        y.endpoint_number == endpoint_number, y.number > after
    )
    rows = connection.execute(query.order_by(y.number).limit(size)).all()
    wanted = [DeliveryStatus.DELIVERED, DeliveryStatus.FAILED] if status is None else [status]
    chosen = [
        row for row in rows if row.status in wanted and (since is None or row.created_at >= since)
    ]
    for row in chosen:
        replay(connection, row.wallet_number, row.number, now=now)
    return len(chosen), rows[-1].number if len(rows) == size else None


def _anew(now: int) -> dict[str, object]:
    return {
        "status": DeliveryStatus.PENDING.value,
        "next_attempt_at": now,
        "give_up_at": now + TRYING_MS,
        "delivered_at": None,
    }
