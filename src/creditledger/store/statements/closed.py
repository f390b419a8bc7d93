"""Closed statements: reading them, and adding to them.

A statement is its text, `content`; the columns beside it are what is looked up without reading it.
Functions of a connection
on one snapshot.
"""

from dataclasses import astuple, dataclass

from sqlalchemy import Connection, select, text

from creditledger.domain.statements import StatementMark
from creditledger.store import schema

s = schema.statements.c


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed statement, in the order of its columns."""

    wallet: int
    number: int  #: Counted from 1 within the wallet.
    starts_at: int
    ends_at: int
    time_zone: str
    closed_sequence: int  #: The wallet's last row when it was closed.
    opening_balance: int
    closing_balance: int
    closed_at: int
    closed_by: int | None
    content: str  #: The canonical text of its document.
    sha256: str  #: Of that text.


_NAMES = [column.name for column in schema.statements.columns]
_ADD = text(
    f"INSERT INTO statements ({', '.join(_NAMES)})"  # noqa: S608 # constants
    f" VALUES ({', '.join(f':{name}' for name in _NAMES)})"
    " ON CONFLICT DO NOTHING"
)


def marks(connection: Connection, wallet: int) -> list[StatementMark]:
    """The wallet's closed statements, oldest first."""
    query = select(s.number, s.starts_at, s.ends_at, s.closed_sequence, s.sha256)
    found = connection.execute(query.where(s.wallet_number == wallet).order_by(s.number))
    return [StatementMark(*row) for row in found]


def one(connection: Connection, wallet: int, number: int) -> Closed | None:
    """The statement of this number."""
    query = select(schema.statements).where(s.wallet_number == wallet, s.number == number)
    found = connection.execute(query).one_or_none()
    return None if found is None else Closed(*found)


def page(connection: Connection, wallet: int, before: int | None, size: int) -> list[Closed]:
    """A page of the wallet's statements, newest first, and one more if there is a next one.

    Without their contents, which are "".
    """
    columns = [text("''") if name == "content" else s[name] for name in _NAMES]
    query = select(*columns).select_from(schema.statements).where(s.wallet_number == wallet)
    if before is not None:
        query = query.where(s.number < before)
    found = connection.execute(query.order_by(s.number.desc()).limit(size + 1))
    return [Closed(*row) for row in found]


def add(connection: Connection, new: Closed) -> Closed:
    """Write the statement down. Answers that of its number: this one, or who came before."""
    connection.execute(_ADD, dict(zip(_NAMES, astuple(new), strict=True)))
    found = one(connection, new.wallet, new.number)
    assert found is not None
    return found
