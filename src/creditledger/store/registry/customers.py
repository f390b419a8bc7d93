"""Customers: listed, searched, changed and archived.

As records.py, which makes them: functions of a SQLAlchemy connection, to be run by `Store.write`
or `Store.read`.
"""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection, func, or_, select, update

from creditledger.domain.commands import merged
from creditledger.domain.errors import NotFound, echo
from creditledger.domain.registry import Customer, CustomerFilters
from creditledger.store import schema
from creditledger.store.dialects import holds as contains
from creditledger.store.dialects import lower_ascii
from creditledger.store.registry import records


def page(connection: Connection, after: str, size: int, filters: CustomerFilters) -> list[Customer]:
    """A page, and one more if there is a next one.

    A search reads all customers behind `after` until the page is full: the caller bounds the time.
    """
    table = schema.customers
    query = select(table)
    if filters.customer_id is not None:
        query = query.where(table.c.id == filters.customer_id)
    if not filters.archived:
        query = query.where(table.c.archived_at.is_(None))
    if filters.email is not None:
        query = query.where(func.lower(table.c.email) == lower_ascii(filters.email))
    if filters.q is not None:
        texts = (table.c.id, table.c.name, table.c.email)
        query = query.where(
            or_(*(contains(func.lower(one), lower_ascii(filters.q)) for one in texts))
        )
    query = query.where(table.c.id > after).order_by(table.c.id).limit(size + 1)
    return [records.customer_value(row) for row in connection.execute(query)]


def change(
    connection: Connection,
    id_: str,
    *,
    now: int,
    name: str | None = None,
    email: str | None = None,
    metadata: Mapping[str, str] | None = None,
    archived: bool | None = None,
) -> Customer:
    """The customer with what is changed of it; None leaves as it is.

    An empty value of `metadata` removes its key. Where nothing changes nothing is written. Raises
    NotFound, InvalidField for too much metadata.
    """
    found = records.customer(connection, id_)
    if found is None:
        raise NotFound(f"no customer {echo(id_)}", param="customer_id")
    archived_at = found.archived_at
    if archived is not None and archived is not (archived_at is not None):
        archived_at = now if archived else None
    after = replace(
        found,
        name=found.name if name is None else name,
        email=found.email if email is None else email,
        metadata=merged(found.metadata, metadata or {}),
        archived_at=archived_at,
    )
    if after == found:
        return found
    after = replace(after, updated_at=now)
    table = schema.customers
    connection.execute(
        update(table)
        .where(table.c.id == id_)
        .values(
            name=after.name,
            email=after.email,
            metadata=records.dumped(after.metadata),
            updated_at=now,
            archived_at=after.archived_at,
            created_as=records.dumped(records.created_as(connection, found)),
        )
    )
    return after
