"""Exports that were streamed to their end: their digests, kept for 24 hours.

A client compares the digest with that of its file. The functions take a connection on one snapshot
or in one transaction.
"""

from typing import NamedTuple

from sqlalchemy import Connection, select

from creditledger.domain import clock
from creditledger.store import schema

#: How long an export is kept, and how many of one key: the newest ones.
KEPT_MS = clock.DAY
KEPT_MAX = 1_000
#: Rows that one change removes at most. It adds one, so the table shrinks to what is kept.
REMOVED_MAX = 100

e = schema.exports.c


class Finished(NamedTuple):
    """An export that was streamed to its end, in the order of the columns."""

    id: str
    key_id: str  #: Of the API key that exported; "local" for the command line.
    customer_id: str | None  #: Of a customer's key; None for an operator's.
    livemode: bool
    finished_at: int
    rows: int
    sha256: str


def add(connection: Connection, new: Finished) -> None:
    """Keep an export; remove some that are too old, and those beyond the bound of its key."""
    too_old = (
        select(e.id)
        .where(e.finished_at < new.finished_at - KEPT_MS)
        .order_by(e.finished_at)
        .limit(REMOVED_MAX)
    )
    beyond = (
        select(e.id)
        .where(e.key_id == new.key_id)
        .order_by(e.finished_at.desc(), e.id)
        .limit(REMOVED_MAX)
        .offset(KEPT_MAX - 1)
    )
    for found in (too_old, beyond):
        connection.execute(schema.exports.delete().where(e.id.in_(found)))
    connection.execute(schema.exports.insert().values(new._asdict()))


def one(connection: Connection, id_: str, now: int) -> Finished | None:
    """The export of this id, if it ended in the last 24 hours."""
    query = select(*e).where(e.id == id_, e.finished_at >= now - KEPT_MS)
    row = connection.execute(query).one_or_none()
    return None if row is None else Finished(*row)
