"""Meters: made once, renamed and switched off and on.

As records.py: functions of a SQLAlchemy connection, to be run by `Store.write` or `Store.read`.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, func, insert, or_, select, update

from creditledger.domain.errors import NotFound, echo
from creditledger.domain.registry import Meter
from creditledger.store import schema
from creditledger.store.dialects import holds, lower_ascii
from creditledger.store.registry.records import dumped, require_currency, taken

_table = schema.meters
_c = schema.meters.c


def _value(row: Row[Any]) -> Meter:
    return Meter(
        row.id,
        row.name,
        row.event_name,
        row.unit,
        row.currency,
        json.loads(row.metadata),
        row.created_at,
        row.active,
        row.description,
        row.updated_at,
    )


def by_id(connection: Connection, id_: str) -> Meter | None:
    """The meter of this id."""
    row = connection.execute(select(_table).where(_c.id == id_)).one_or_none()
    return None if row is None else _value(row)


def by_event(connection: Connection, event_name: str) -> Meter | None:
    """The meter that counts the events of this name."""
    row = connection.execute(select(_table).where(_c.event_name == event_name)).one_or_none()
    return None if row is None else _value(row)


def page(connection: Connection, after: str, size: int) -> list[Meter]:
    """A page by id, and one more if there is a next one."""
    query = select(_table).where(_c.id > after).order_by(_c.id).limit(size + 1)
    return [_value(row) for row in connection.execute(query)]


def newest(
    connection: Connection, *, event_name: str | None, q: str | None, offset: int, size: int
) -> tuple[int, Sequence[Meter]]:
    """How many there are, and those of a page, newest first. All of the table is looked at.

    `q`: a text that name, event name or description hold, whatever the case of ASCII letters.
    """
    query = select(_table)
    if event_name is not None:
        query = query.where(_c.event_name == event_name)
    if q is not None:
        texts = (_c.name, _c.event_name, func.coalesce(_c.description, ""))
        query = query.where(or_(*(holds(func.lower(one), lower_ascii(q)) for one in texts)))
    count = connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
    ordered = query.order_by(_c.created_at.desc(), _c.id.desc()).limit(size).offset(offset)
    return count, [_value(row) for row in connection.execute(ordered)]


def create(connection: Connection, new: Meter, *, found_by_event: bool = False) -> Meter:
    """The meter, made unless it is there. Raises IdTaken, NotFound for the currency.

    There it is if its id is; or, `found_by_event`, if its event_name is. IdTaken names the
    event_name where another meter has that.
    """
    # Both in one statement: between two of them another server could make this very meter.
    either = or_(_c.id == new.id, _c.event_name == new.event_name)
    rows = [_value(row) for row in connection.execute(select(_table).where(either))]
    found = next((one for one in rows if one.id == new.id or found_by_event), None)
    if found is not None:
        same = (found.name, found.event_name, found.unit, found.currency, found.metadata)
        asked = (new.name, new.event_name, new.unit, new.currency, new.metadata)
        if same != asked or found.description != new.description:
            if found_by_event:
                raise taken("meter of event", new.event_name, attribute="event_name")
            raise taken("meter", new.id)
        return found
    if new.currency is not None:
        require_currency(connection, new.currency)
    if rows:
        raise taken("meter of event", new.event_name, attribute="event_name")
    connection.execute(
        insert(_table).values(
            id=new.id,
            name=new.name,
            event_name=new.event_name,
            unit=new.unit,
            currency=new.currency,
            metadata=dumped(new.metadata),
            created_at=new.created_at,
            description=new.description,
        )
    )
    return new


def change(connection: Connection, id_: str, *, now: int, **changed: Any) -> Meter:
    """The meter with what is changed of it: fields of `Meter` by name. Raises NotFound."""
    found = by_id(connection, id_)
    if found is None:
        raise NotFound(f"no meter {echo(id_)}", param="id")
    after = replace(found, **changed)
    if after == found:
        return found
    after = replace(after, updated_at=now)
    connection.execute(
        update(_table)
        .where(_c.id == id_)
        .values(
            name=after.name,
            unit=after.unit,
            description=after.description,
            metadata=dumped(after.metadata),
            active=after.active,
            updated_at=after.updated_at,
        )
    )
    return after
