"""What a statement is made of, read backwards: what there is now, less what came since.

The first read pins the wallet's last row, what its grants have left and its closed statements; the
rows from the period's beginning on are then added up in short reads of their own, since rows do not
change. So a statement costs the rows since its period began, however large the ledger is before
that. Functions of a connection on one snapshot.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    literal,
    or_,
    select,
)

from creditledger.domain.billing_periods import Bucket
from creditledger.domain.commands import AHEAD_MS_MAX
from creditledger.domain.errors import ResultTooLarge
from creditledger.domain.model import Category, Kind, Type, Wallet
from creditledger.domain.statements import (
    Figures,
    GrantFacts,
    Label,
    Part,
    Repaid,
    RowSums,
    StatementMark,
    UsageSums,
    figures,
)
from creditledger.store import schema
from creditledger.store.dialects import exact_sum
from creditledger.store.read.transaction_reads import Span, last_before
from creditledger.store.statements import closed as closed_statements

t, d, g = schema.transactions.c, schema.dimensions.c, schema.grants.c
y = schema.grant_repayments.c
x = schema.grant_parts.c

#: The part that a row added to a grant.
OF_PART = and_(x.wallet_number == t.wallet_number, x.sequence == t.sequence)

#: Rows added up in one read.
STEP_ROWS = 50_000
#: Grants named in one query.
NAMED_MAX = 500
#: What is kept of the rows while they are added up: by part, kind, and grant or labels.
SUMS_MAX = 200_000

#: What tells apart what was used.
LABEL = tuple(d[name] for name in Label._fields)

#: The moment of account of a row that no closed statement moves.
happened = case(
    (and_(t.type == Type.GRANT.value, t.effective_at > t.created_at), t.created_at),
    else_=func.coalesce(t.effective_at, t.created_at),
)


def _before(column: ColumnElement[int]) -> ColumnElement[int]:
    """What the wallet's row before this one has; 0 before the first."""
    return func.coalesce(func.lag(column).over(order_by=t.sequence), 0)


#: 1 for the first row of a posting that spent something. Rows of a posting follow one another.
calls = case(
    (and_(t.kind == Kind.USAGE.value, t.posting_number != _before(t.posting_number)), 1), else_=0
)
#: The sum of its posting's quantities, for the first row of it.
quantity = t.usage_quantity - _before(t.usage_quantity)


@dataclass(frozen=True, slots=True)
class Basis:
    """A wallet at one snapshot, and its closed statements."""

    wallet: Wallet
    customer_name: str
    marks: list[StatementMark]
    first: int  #: No row before it belongs to the period, or after it.
    repaid: list["Later"]  #: What grants paid back as they began or ended, from the period on.


class Later(NamedTuple):
    """What a grant paid back of overdraft as it began or ended."""

    grant: int
    amount: int
    repaid_at: int
    sequence: int  #: The wallet's last row when it was written down.

    def moved_to(self, marks: Iterable[StatementMark]) -> int | None:
        """The end of the last statement that was closed before it was written."""
        ends = [mark.ends_at for mark in marks if mark.closed_sequence < self.sequence]
        return ends[-1] if ends and ends[-1] > self.repaid_at else None


@dataclass(frozen=True, slots=True)
class ReadStep:
    """Rows to be added up in one read, all written after the same closed statements."""

    rows: Span
    moved_to: int | None  #: The end of the last of those.


def basis(connection: Connection, wallet: Wallet, start: int) -> Basis:
    """What a statement from `start` on begins with; `wallet` was read on the same snapshot."""
    customers = schema.customers.c
    name = connection.execute(
        select(customers.name).where(customers.id == wallet.customer_id)
    ).scalar_one()
    marks = closed_statements.marks(connection, wallet.number)
    # Rows may say that they happened a little after they were written, and those that a closed
    # statement moved are behind its last row.
    before = last_before(connection, wallet.number, wallet.sequence, start - AHEAD_MS_MAX)
    first = min([before, *(mark.closed_sequence for mark in marks if mark.ends_at >= start)]) + 1
    known = first - 1 if marks else wallet.sequence
    return Basis(wallet, name, marks, first, later(connection, wallet.number, start, known))


def later(connection: Connection, wallet: int, start: int, sequence: int) -> list[Later]:
    """The wallet's repayments from `start` on, or written down behind row `sequence`."""
    query = select(y.grant_number, y.amount, y.repaid_at, y.sequence).where(
        y.wallet_number == wallet, or_(y.repaid_at >= start, y.sequence > sequence)
    )
    return [Later(*row) for row in connection.execute(query)]


def steps(found: Basis) -> Iterator[ReadStep]:
    """The rows from `first` on, in pieces for one read each."""
    number, last = found.wallet.number, found.wallet.sequence
    moved_to, at = None, found.first
    for mark in [*found.marks, None]:
        through = last if mark is None else min(mark.closed_sequence, last)
        while at <= through:
            end = min(through, at + STEP_ROWS - 1)
            yield ReadStep(Span(number, at, end), moved_to)
            at = end + 1
        moved_to = None if mark is None else mark.ends_at


def step(
    connection: Connection, one: ReadStep, period: Bucket
) -> list[tuple[RowSums, UsageSums | None]]:
    """What these rows add up to, as far as they are of the period or after it."""
    start, end = (literal(moment, BigInteger) for moment in (period.start, period.end))
    whens = [
        (happened < start, Part.BEFORE.value),
        (happened < end, Part.PERIOD.value),
    ]
    if one.moved_to is not None:
        moved_to = literal(one.moved_to, BigInteger)
        whens.insert(0, (happened < moved_to, _part(one.moved_to, period).value))
    rows = (
        select(
            case(*whens, else_=Part.AFTER.value).label("part"),
            *(t.sequence, t.grant_number, t.kind, t.dimension_number, t.amount),
            case((t.grant_number == t.sequence, 1), else_=0).label("began"),
            func.coalesce(x.overdraft_paid, 0).label("paid"),
            *(calls.label("calls"), quantity.label("quantity")),
        )
        .join_from(schema.transactions, schema.grant_parts, OF_PART, isouter=True)
        .where(
            t.wallet_number == one.rows.wallet,
            # With the row before them, which what the first one counts is told by.
            t.sequence.between(one.rows.first - 1, one.rows.last),
        )
        .subquery("rows")
    )
    keys = (rows.c.part, rows.c.grant_number, rows.c.kind, rows.c.dimension_number)
    sums = (
        select(
            *keys,
            func.count().label("count"),
            exact_sum(rows.c.amount).label("amount"),
            func.sum(rows.c.began).label("began"),
            exact_sum(rows.c.paid).label("paid"),
            func.sum(rows.c.calls).label("calls"),
            exact_sum(rows.c.quantity).label("quantity"),
        )
        .where(rows.c.part != Part.BEFORE.value, rows.c.sequence >= one.rows.first)
        .group_by(*keys)
        .subquery("sums")
    )
    of_dimension = and_(d.wallet_number == one.rows.wallet, d.number == sums.c.dimension_number)
    query = select(
        *(sums.c.part, sums.c.grant_number, sums.c.kind, *LABEL),
        *(sums.c.count, sums.c.amount, sums.c.began, sums.c.paid, sums.c.calls, sums.c.quantity),
    ).join_from(sums, schema.dimensions, of_dimension)
    return [sums_of(*row) for row in connection.execute(query)]


def sums_of(
    part: int, grant: int | None, kind: int, *rest: Any
) -> tuple[RowSums, UsageSums | None]:
    """What rows add up to, by grant and by what was used, of the columns of a query."""
    api_key_id, product_id, product_name, rows, amount, began, paid, calls, quantity = rest
    moved = RowSums(Part(part), grant, Kind(kind), rows, amount, bool(began), paid)
    if moved.kind not in (Kind.USAGE, Kind.REFUND):
        return moved, None
    label = Label(api_key_id, product_id, product_name)
    return moved, UsageSums(moved.part, moved.kind, label, rows, amount, calls, quantity)


def _part(moment: int, period: Bucket) -> Part:
    """Where rows lie that were moved to this moment."""
    if moment < period.start:
        return Part.BEFORE
    return Part.PRIOR if moment < period.end else Part.AFTER


class StatementSums:
    """What the rows of several reads add up to."""

    def __init__(self) -> None:
        self._moved: dict[tuple[Part, int | None, Kind], RowSums] = {}
        self._used: dict[tuple[Part, Kind, Label], UsageSums] = {}

    def add(self, sums: Iterable[tuple[RowSums, UsageSums | None]]) -> None:
        """Add those of one read. Raises ResultTooLarge."""
        for moved, used in sums:
            of_grant = self._moved.get(moved[:3])
            self._moved[moved[:3]] = moved if of_grant is None else of_grant.plus(moved)
            if used is not None:
                of_label = self._used.get(used[:3])
                self._used[used[:3]] = used if of_label is None else of_label.plus(used)
        if len(self._moved) + len(self._used) > SUMS_MAX:
            raise ResultTooLarge(
                "too many grants, API keys and products moved since: ask for a later period"
            )

    @property
    def moved(self) -> Collection[RowSums]:
        """By grant, each with each kind once in each part."""
        return self._moved.values()

    @property
    def used(self) -> Collection[UsageSums]:
        """By what was used, in the same way."""
        return self._used.values()


def named(found: Basis, moved: Iterable[RowSums]) -> list[int]:
    """The grants that a statement has to know of."""
    numbers = {grant.number for grant in found.wallet.burning}
    numbers |= {one.grant for one in found.repaid}
    return sorted(numbers | {one.grant for one in moved if one.grant is not None})


def facts(
    connection: Connection, wallet: int, numbers: Sequence[int] | None
) -> dict[int, GrantFacts]:
    """Of these grants, at most NAMED_MAX, or of all what a statement says of them, as of now."""
    columns = (g.overdraft_paid, g.category, g.name, g.effective_at, g.expires_at, g.voided_at)
    parts = (
        select(x.grant_number, func.sum(x.overdraft_paid).label("paid"))
        .where(x.wallet_number == wallet)
        .group_by(x.grant_number)
    )
    if numbers is not None:
        parts = parts.where(x.grant_number.in_(numbers))
    paid_by_parts = dict(connection.execute(parts).all())
    query = select(g.number, *columns).where(g.wallet_number == wallet)
    if numbers is not None:
        query = query.where(g.number.in_(numbers))
    return {
        number: GrantFacts(paid - int(paid_by_parts.get(number, 0)), Category(category), *rest)
        for number, paid, category, *rest in connection.execute(query)
    }


def add_up(
    found: Basis, sums: StatementSums, known: dict[int, GrantFacts], period: Bucket
) -> Figures:
    """The period's figures: what is there now, less its rows and all after it, was there before."""
    wallet = found.wallet
    opening = {grant.number: grant.remaining for grant in wallet.burning}
    overdraft = wallet.overdraft_used
    for one in sums.moved:
        if one.grant is None:
            overdraft += one.amount
            continue
        paid = one.repaid(known[one.grant])
        opening[one.grant] = opening.get(one.grant, 0) - one.amount + paid
        overdraft += paid
    repaid = [Repaid(_part_of(one, found.marks, period), *one[:2]) for one in found.repaid]
    for back in repaid:
        if back.part is not Part.BEFORE:
            opening[back.grant] = opening.get(back.grant, 0) + back.amount
            overdraft += back.amount
    return figures(opening, overdraft, sums.moved, known, repaid, sums.used)


def _part_of(one: Later, marks: Iterable[StatementMark], period: Bucket) -> Part:
    moved_to = one.moved_to(marks)
    if moved_to is not None:
        return _part(moved_to, period)
    if one.repaid_at < period.start:
        return Part.BEFORE
    return Part.PERIOD if one.repaid_at < period.end else Part.AFTER
