"""Credit transactions in the order of their commits: what watchers and webhooks follow.

A row's place is (position, wallet number, sequence). On SQLite the position counts rows. On
PostgreSQL it is the number of the database transaction that wrote the row, or that of the last one
which wrote on its wallet before, if that is higher; and only what lies before the oldest number
still under way is read. So no row ever appears behind a mark that was reached, and those of a
wallet come in order of their sequence. Functions of a connection on one snapshot of the primary.

A mark stands on a row that is committed, never on a number that nothing durable has: a server that
crashes hands out such numbers again. It says when that row was written. So a database that has lost
the row, by a failover or because an older state was restored, is noticed, and reading goes back to
what was written since then.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

import structlog
from sqlalchemy import Connection, or_, select, text, tuple_

from creditledger.domain.clock import MINUTE
from creditledger.domain.errors import InvalidField
from creditledger.store import schema
from creditledger.store.dialects import at_place, horizon, place

t = schema.transactions.c

log = structlog.get_logger()

_MARK = re.compile(r"(\d{1,18})-(\d{1,18})-(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)

#: How far the clocks of two databases may be apart of which one succeeds the other.
CLOCKS_APART_MS_MAX = 10 * MINUTE


class Mark(NamedTuple):
    """A place in the order of commits: what lies behind it comes next."""

    position: int
    wallet: int
    sequence: int
    written_at: int = 0  #: When the row was written that it stands on; 0: it stands on none.

    def text(self) -> str:
        """As clients keep it."""
        place = f"{self.position}-{self.wallet}-{self.sequence}"
        return f"{place}-{self.written_at}" if self.written_at > 0 else place

    @classmethod
    def parse(cls, given: str, *, field: str) -> Self:
        """What `text` wrote. Raises InvalidField."""
        found = _MARK.fullmatch(given)
        if found is None:
            raise InvalidField(f"{field} is no cursor of this ledger", param=field)
        return cls(*map(int, found.groups(default="0")))


#: Before the first row.
START = Mark(0, 0, 0)


class Passed(NamedTuple):
    """A row that the tail went past, as far as it takes to know whether it is wanted."""

    mark: Mark
    kind: int
    grant: int | None
    dimension: int

    @property
    def wallet(self) -> int:
        """Number of its wallet."""
        return self.mark.wallet

    @property
    def place(self) -> tuple[int, int]:
        """Where the row is looked up: wallet number, sequence."""
        return self.mark.wallet, self.mark.sequence


@dataclass(frozen=True, slots=True)
class CommitStep:
    """Some rows, in the order of commits."""

    rows: list[Passed]
    mark: Mark  #: Where to go on.
    more: bool  #: Whether there is more already.


def end(connection: Connection) -> Mark:
    """Behind everything that is settled: what is being written now comes after it.

    A number of a transaction means nothing beyond this database: a reader that keeps the mark has
    to keep it there, in a transaction of its own.
    """
    return Mark(connection.execute(select(horizon())).scalar_one(), 0, 0)


def last(connection: Connection) -> Mark:
    """At the last row that can be read; START without any."""
    query = (
        select(place(), t.wallet_number, t.sequence, t.created_at)
        .where(place() < horizon())
        .order_by(place().desc(), t.wallet_number.desc(), t.sequence.desc())
        .limit(1)
    )
    found = connection.execute(query).one_or_none()
    return START if found is None else Mark(*found)


def begin(connection: Connection, after: Mark | None) -> Mark:
    """Where to begin: at this mark, or at the last row.

    Raises InvalidField(after) for a mark that stands on no row and lies in the future: of another
    ledger, or of this one before its database was put back to an earlier state.
    """
    if after is None:
        return last(connection)
    if after.written_at:
        return found_again(connection, after)
    if after > end(connection):
        raise InvalidField(
            "after lies beyond the end of this ledger: it is of another one, or of this one"
            " before an older state of its database was restored",
            param="after",
        )
    return after


def newest(connection: Connection) -> int:
    """The position of the last row that can be read; 0 without any."""
    query = select(place()).select_from(schema.transactions).where(place() < horizon())
    query = query.order_by(place().desc()).limit(1)
    return connection.execute(query).scalar_one_or_none() or 0


def found_again(connection: Connection, mark: Mark) -> Mark:
    """The mark, if its row is still there; or one from which on no row is left out.

    Where the row is gone, this database has another history than the one that the mark is of, and
    its numbers may have been given out twice. What was written here since is behind the new mark,
    and so may be rows of the minutes before, a second time.
    """
    row = connection.execute(
        select(place(), t.created_at).where(
            t.wallet_number == mark.wallet, t.sequence == mark.sequence
        )
    ).one_or_none()
    if row is not None and tuple(row) == (mark.position, mark.written_at):
        return mark
    since = mark.written_at - CLOCKS_APART_MS_MAX
    first = connection.execute(
        select(place()).where(t.created_at >= since).order_by(place()).limit(1)
    ).scalar_one_or_none()
    back = last(connection) if first is None else Mark(first, 0, 0)
    log.warning("database has lost a row that was read", mark=mark.text(), goes_on=back.text())
    return back


def step(connection: Connection, after: Mark, size: int) -> CommitStep:
    """The next rows behind a mark that was begun at, at most `size`.

    One look by key more finds out whether the database still has the row of the mark.
    """
    if after.written_at:
        after = found_again(connection, after)
    settled = end(connection).position
    here = at_place(str(after.position))
    behind = or_(
        place() > here, tuple_(t.wallet_number, t.sequence) > (after.wallet, after.sequence)
    )
    query = (
        select(
            *(place(), t.wallet_number, t.sequence, t.created_at),
            *(t.kind, t.grant_number, t.dimension_number),
        )
        .where(place() >= here, place() < at_place(str(settled)), behind)
        .order_by(place(), t.wallet_number, t.sequence)
        .limit(size)
    )
    rows = [
        Passed(Mark(position, wallet, sequence, written_at), *rest)
        for position, wallet, sequence, written_at, *rest in connection.execute(query)
    ]
    return CommitStep(rows, rows[-1].mark if rows else after, more=len(rows) == size)


# --- rows of another PostgreSQL -------------------------------------------------------------------


def is_foreign(connection: Connection) -> bool:
    """Whether rows were written by transactions that this server has not begun yet.

    So it is after a dump was restored to a server younger than the one it is of: what is read by
    snapshot would not be there.
    """
    if connection.dialect.name == "sqlite":
        return False
    found: bool = connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM credit_transactions WHERE coalesce(position, written_in)"
            " >= pg_snapshot_xmax(pg_current_snapshot()))"
        )
    ).scalar_one()
    return found


#: What keeps rows from being changed.
_IMMUTABLE = "credit_transactions_no_update"
#: In their order, over the numbers that this server has used up, which no transaction can have.
_RENUMBERED = """
UPDATE credit_transactions AS t
SET position = NULL, written_in = CAST(CAST(3 + (b.nth * b.below) / b.count AS text) AS xid8)
FROM (SELECT wallet_number, sequence, count(*) OVER () AS count,
             row_number() OVER (ORDER BY coalesce(position, written_in), wallet_number, sequence)
               - 1 AS nth,
             CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) - 3 AS below
      FROM credit_transactions) AS b
WHERE t.wallet_number = b.wallet_number AND t.sequence = b.sequence"""


def adopt(connection: Connection) -> int:
    """Make rows of another server this one's: marks and page tokens of that one mean nothing here.

    Writes every row anew, in the connection's transaction, which needs the tables for itself, and
    says how many there are.
    """
    connection.exec_driver_sql(f"ALTER TABLE credit_transactions DISABLE TRIGGER {_IMMUTABLE}")
    rows = connection.execute(text(_RENUMBERED)).rowcount
    connection.exec_driver_sql(f"ALTER TABLE credit_transactions ENABLE TRIGGER {_IMMUTABLE}")
    connection.execute(text("UPDATE wallet_states SET written_in = CAST('0' AS xid8)"))
    return rows
