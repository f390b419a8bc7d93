"""What each credit transaction adds to sums over time: a posting's figures count once.

Folds add these figures up, and reads add those of rows that are not folded yet.
"""

from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
)

from creditledger.domain import clock
from creditledger.domain.model import Category, Kind
from creditledger.store import schema
from creditledger.store.dialects import item, listed

t, p, g, o, e = (
    schema.transactions.c,
    schema.postings.c,
    schema.grants.c,
    schema.overdraft_returns.c,
    schema.fold_ends.c,
)

#: [first, through) of quarters or days since 1970.
Range = tuple[int, int]
#: Quarters of an hour in a day.
QUARTERS = clock.DAY // clock.QUARTER
#: Quantities of a posting.
QUANTITIES = tuple(f"quantity_{i}" for i in range(6))
#: What a row is looked up by, and what it says of itself. `figures` needs these columns.
NEEDED = (
    *(t.wallet_number, t.sequence, t.posting_number, t.kind, t.grant_number),
    *(t.dimension_number, t.amount, t.created_at, t.effective_at),
)


def constant(value: int) -> ColumnElement[int]:
    """A number that is written out in the statement."""
    return literal_column(str(int(value)), BigInteger)


#: In periods of a second at least, it is before the year 1, and no product passes 64 bits.
_AGO = constant(10**11)


class FoldEnd(NamedTuple):
    """How far a wallet is folded."""

    sequence: int  #: Its rows up to this one are in its folds; 0: none are.
    has_days: bool  #: Whether it has sums by day beside those by quarter.

    def split(self, first: int, through: int) -> tuple[list[Range], Range]:
        """The quarters and the days, UTC, that [first, through) of quarters is read from."""
        a, b = -(-first // QUARTERS), through // QUARTERS
        if not self.has_days or a >= b:
            return [(first, through)], (0, 0)
        return [(first, a * QUARTERS), (b * QUARTERS, through)], (a, b)


_FOLD_END = select(e.sequence, e.has_days).where(e.wallet_number == bindparam("wallet"))


def fold_end(connection: Connection, wallet: int) -> FoldEnd:
    """How far the wallet is folded."""
    found = connection.execute(_FOLD_END, {"wallet": wallet}).one_or_none()
    return FoldEnd(0, has_days=False) if found is None else FoldEnd(*found)


def figures(rows: Select[Any]) -> Select[Any]:
    """Wallet, dimension, times and figures of each of `rows`, which select NEEDED.

    Credit that a refund gives back of an overdraft counts as paid, whatever its category. An OFFSET
    keeps PostgreSQL from joining before it has the rows, and from parsing a list once an item.
    """
    r = rows.offset(0).subquery("r").c
    is_first = r.sequence == p.first_sequence
    voucher = and_(g.category == constant(Category.PROMOTIONAL), o.sequence.is_(None))
    of_posting = and_(p.wallet_number == r.wallet_number, p.number == r.posting_number)
    of_grant = and_(g.wallet_number == r.wallet_number, g.number == r.grant_number)
    of_return = and_(
        r.kind == constant(Kind.REFUND),
        o.wallet_number == r.wallet_number,
        o.sequence == r.sequence,
    )
    joined = (
        select(
            r.wallet_number,
            r.dimension_number,
            func.coalesce(r.effective_at, r.created_at).label("happened_at"),
            r.created_at.label("written_at"),
            r.amount,
            case((voucher, r.amount), else_=constant(0)).label("voucher_amount"),
            case((is_first, constant(1)), else_=constant(0)).label("posting_count"),
            case((is_first, listed(p.quantities)), else_=null()).label("listed"),
        )
        .join(schema.postings, of_posting)
        .join(schema.grants, of_grant, isouter=True)
        .join(schema.overdraft_returns, of_return, isouter=True)
        .offset(0)
        .subquery("j")
        .c
    )
    return select(
        *(column for column in joined if column.name != "listed"),
        *(
            func.coalesce(item(joined.listed, literal_column(str(i), Integer)), constant(0)).label(
                name
            )
            for i, name in enumerate(QUANTITIES)
        ),
    )


def whole_periods(moment: ColumnElement[int], length: ColumnElement[int]) -> ColumnElement[int]:
    """How many periods of this length began by a moment since 1970, negative before it.

    A division alone would round up before 1970. `_AGO` periods are longer than any time is old.
    """
    return (moment + _AGO * length) // length - _AGO
