"""The ledger's clock in the database: when a server last read it, and who accepted it.

A running server writes the time down now and then, and at once when it doubts the clock or trusts
it again. A server that starts compares its clock with that time. The functions take a connection on
one snapshot or in one transaction.
"""

from typing import NamedTuple

from sqlalchemy import Connection, func, select, text

from creditledger.store import schema

s, a = schema.clock_seen.c, schema.clock_acceptances.c

_WRITE = text(
    "INSERT INTO clock_seen (number, seen_at, doubted_at) VALUES (1, :seen_at, :doubted_at)"
    " ON CONFLICT (number) DO UPDATE SET seen_at = excluded.seen_at,"
    " doubted_at = excluded.doubted_at"
)
_LAST_POSTED = text("SELECT max(posted_at) FROM wallet_states WHERE posted_at <= :shown")
_DATABASE_CLOCK = text("SELECT CAST(floor(extract(epoch FROM clock_timestamp()) * 1000) AS bigint)")


class ClockMark(NamedTuple):
    """The ledger's time when a server last wrote it down."""

    seen_at: int
    doubted_at: int | None  #: What the clock showed, if that server did not believe it.


class Acceptance(NamedTuple):
    """An operator's statement that the clock is right, in the order of the columns."""

    number: int  #: Counted from 1.
    accepted_at: int  #: What the clock showed.
    expected_at: int  #: What the ledger's time was before.
    accepted_by: str


def mark(connection: Connection) -> ClockMark | None:
    """The last mark; None before the first."""
    found = connection.execute(select(s.seen_at, s.doubted_at)).one_or_none()
    return None if found is None else ClockMark(*found)


def write(connection: Connection, new: ClockMark) -> None:
    """Replace the last mark by this one."""
    connection.execute(_WRITE, new._asdict())


def last_acceptance(connection: Connection) -> Acceptance | None:
    """The newest acceptance."""
    found = connection.execute(
        select(schema.clock_acceptances).order_by(a.number.desc()).limit(1)
    ).one_or_none()
    return None if found is None else Acceptance(*found)


def acceptance(connection: Connection, number: int) -> Acceptance:
    """The acceptance of this number, which exists."""
    query = select(schema.clock_acceptances).where(a.number == number)
    return Acceptance(*connection.execute(query).one())


def accept(
    connection: Connection, *, accepted_at: int, expected_at: int, accepted_by: str
) -> Acceptance:
    """Write down that the clock is right, for all servers and restarts."""
    last = connection.execute(select(func.coalesce(func.max(a.number), 0))).scalar_one()
    new = Acceptance(last + 1, accepted_at, expected_at, accepted_by)
    connection.execute(schema.clock_acceptances.insert().values(new._asdict()))
    write(connection, ClockMark(accepted_at, None))
    return new


def last_posted(connection: Connection, shown: int) -> int | None:
    """When anything was last posted to a wallet that is not ahead of the clock; None: never."""
    found: int | None = connection.execute(_LAST_POSTED, {"shown": shown}).scalar_one()
    return found or None  # 0 is a wallet that nobody has posted to


def database_clock(connection: Connection) -> int:
    """What the clock of a PostgreSQL server shows now, in milliseconds."""
    found: int = connection.execute(_DATABASE_CLOCK).scalar_one()
    return found
