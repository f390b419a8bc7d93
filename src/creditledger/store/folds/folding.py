"""Folding: rows that no longer change are added to the sums over time of their wallet.

A wallet's fold end says up to which sequence its rows are in its folds. It moves in the transaction
that adds them, and the fold ends of the wallets are locked before: so any number of servers may
fold at once. A wallet with many rows has sums by day too, of the same rows. Functions of a
connection.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Select,
    Update,
    bindparam,
    case,
    false,
    func,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite

from creditledger.domain import clock
from creditledger.store import schema
from creditledger.store.dialects import at_place, exact_sum, horizon, place, ranges
from creditledger.store.folds.figures import (
    NEEDED,
    QUANTITIES,
    QUARTERS,
    constant,
    figures,
    whole_periods,
)

t, s, f, e = (
    schema.transactions.c,
    schema.wallet_states.c,
    schema.folds.c,
    schema.fold_ends.c,
)

#: A wallet with so many rows gets sums by day. With fewer, reads add up few folds anyway, and a day
#: would often be one row.
MANY_ROWS = 4_000

#: All quarters.
_EVER = -(10**12), 10**12
_KEY = ("wallet_number", "quarter", "dimension_number")
_DAY_KEY = ("wallet_number", "day", "dimension_number")
_SUMS = [column.name for column in schema.folds.c if not column.primary_key]


@dataclass(frozen=True, slots=True)
class Unfolded:
    """Rows that lie behind the fold ends."""

    by_wallet: dict[int, int]  #: How many, by wallet number.
    last: dict[int, int]  #: The last sequence of each of these wallets.
    rows: int  #: How many rows there are, folded or not.
    mark: int  #: The place in commit order from which on `news` goes on.


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of wallets that were to be folded, but for those that another server folds."""

    rows: int  #: How many were added.
    left: dict[int, int]  #: How many are left, by wallet.
    ends: dict[int, int]  #: The fold's end, by wallet.


_UNFOLDED = (
    select(s.wallet_number, func.coalesce(e.sequence, constant(0)), s.sequence)
    .join_from(
        schema.wallet_states,
        schema.fold_ends,
        e.wallet_number == s.wallet_number,
        isouter=True,
    )
    .where(s.sequence > func.coalesce(e.sequence, constant(0)))
)
_TOTAL = select(exact_sum(s.sequence), horizon())
_NEWS = (
    select(func.max(t.wallet_number), func.count(), func.max(t.sequence))
    .where(place() >= at_place(bindparam("mark")), place() < at_place(bindparam("end")))
    # The sum keeps SQLite from going through an index of all rows, to have them grouped.
    .group_by(t.wallet_number + constant(0))
)
_HORIZON = select(horizon())


def unfolded(connection: Connection) -> Unfolded:
    """All rows behind the fold ends: it looks at each wallet."""
    found = connection.execute(_UNFOLDED).all()
    rows, mark = connection.execute(_TOTAL).one()
    return Unfolded(
        {wallet: last - end for wallet, end, last in found},
        {wallet: last for wallet, _, last in found},
        rows,
        int(mark),
    )


def news(connection: Connection, mark: int) -> Unfolded | None:
    """The rows committed since; None: the database is not the one of the mark.

    On PostgreSQL some of them may have been seen before.
    """
    end = int(connection.execute(_HORIZON).scalar_one())
    if end < mark:
        return None
    values = {"mark": str(mark), "end": str(end)}
    found = connection.execute(_NEWS, values).all()
    by_wallet = {wallet: count for wallet, count, _ in found}
    last = {wallet: sequence for wallet, _, sequence in found}
    return Unfolded(by_wallet, last, sum(by_wallet.values()), end)


def fold(connection: Connection, wallets: Iterable[int], rows_max: int) -> Folded:
    """Fold at most so many rows of these wallets."""
    numbers = json.dumps([(wallet, 0, 0) for wallet in sorted(wallets)])
    dialect = connection.dialect.name
    statements = _statements(dialect)
    connection.execute(statements.begin, {"ranges": numbers})
    left, ends, free = dict[int, int](), dict[int, int](), rows_max
    taken, by_day, grown = [], [], []
    quarters: set[tuple[int, int, int]] = set()
    for wallet, end, has_days, last in connection.execute(statements.lock, {"ranges": numbers}):
        # What was read of the wallet may be older than the fold's end.
        through = max(end, min(last, end + free))
        ends[wallet], left[wallet] = through, max(0, last - through)
        if through > end:
            free -= through - end
            taken.append((wallet, end + 1, through))
            if has_days:
                by_day.append(taken[-1])
            elif through >= MANY_ROWS:
                grown.append(taken[-1])
                quarters.add((wallet, *_EVER))
    if by_day:
        for wallet, *days in connection.execute(statements.days, {"ranges": json.dumps(by_day)}):
            quarters |= {(wallet, day * QUARTERS, (day + 1) * QUARTERS) for day in days}
    for statement, of in (
        (statements.add, taken),
        (statements.make_days, sorted(quarters)),
        (statements.note_days, grown),
        (statements.move, taken),
    ):
        if of:
            connection.execute(statement, {"ranges": json.dumps(of)})
    return Folded(rows_max - free, left, ends)


def drop(connection: Connection) -> None:
    """Take all folds away; the rows alone answer then, until they are folded again."""
    connection.execute(Delete(schema.folds))
    connection.execute(Delete(schema.day_folds))
    connection.execute(Delete(schema.fold_ends))


@dataclass(frozen=True, slots=True)
class _FoldStatements:
    begin: Insert
    lock: Select[int, int, bool, int]
    add: Insert
    days: Select[int, int, int]
    make_days: Insert
    note_days: Update
    move: Update


@cache
def _statements(dialect: str) -> _FoldStatements:
    some = ranges(dialect)
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    # Without WHERE, SQLite would read ON CONFLICT as the condition of a join.
    begin = (
        insert(schema.fold_ends)
        .from_select(
            ["wallet_number", "sequence", "has_days"],
            select(some.c.number, constant(0), false()).where(some.c.number > constant(0)),
        )
        .on_conflict_do_nothing()
    )
    lock = (
        select(e.wallet_number, e.sequence, e.has_days, s.sequence)
        .join_from(some, schema.fold_ends, e.wallet_number == some.c.number)
        .join(schema.wallet_states, s.wallet_number == some.c.number)
        .order_by(e.wallet_number)
        .with_for_update(of=schema.fold_ends, skip_locked=True)
    )
    adding = insert(schema.folds).from_select([*_KEY, *_SUMS], _added(dialect))
    add = adding.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: f[name] + adding.excluded[name] for name in _SUMS},
    )
    making = insert(schema.day_folds).from_select([*_DAY_KEY, *_SUMS], _by_day(dialect))
    make_days = making.on_conflict_do_update(
        index_elements=_DAY_KEY, set_={name: making.excluded[name] for name in _SUMS}
    )
    these = e.wallet_number.in_(select(some.c.number))
    end = select(some.c.through).where(some.c.number == e.wallet_number)
    moving = Update(schema.fold_ends).where(these)
    return _FoldStatements(
        begin,
        lock,
        add,
        days=_days(dialect),
        make_days=make_days,
        note_days=moving.values(has_days=true()),
        move=moving.values(sequence=end.scalar_subquery()),
    )


def _days(dialect: str) -> Select[int, int, int]:
    """The days in which rows of these wallets happened and were written."""
    some = ranges(dialect)
    happened = func.coalesce(t.effective_at, t.created_at)
    moments = (whole_periods(one, constant(clock.DAY)) for one in (happened, t.created_at))
    these = (t.wallet_number == some.c.number) & t.sequence.between(some.c.first, some.c.through)
    return select(some.c.number, *moments).distinct().join_from(some, schema.transactions, these)


def _by_day(dialect: str) -> Select[*tuple[int, ...]]:
    """What the folds of these ranges of quarters add up to by day."""
    some = ranges(dialect)
    day = whole_periods(f.quarter, constant(QUARTERS))
    key = (f.wallet_number, day, f.dimension_number)
    return (
        select(*key, *(func.sum(f[name]) for name in _SUMS))
        .join_from(
            some,
            schema.folds,
            (f.wallet_number == some.c.number)
            & (f.quarter >= some.c.first)
            & (f.quarter < some.c.through),
        )
        # Without WHERE, SQLite would read ON CONFLICT as the condition of a join.
        .where(constant(1) == constant(1))
        .group_by(*key)
        .order_by(*key)
    )


def _added(dialect: str) -> Select[*tuple[int, ...]]:
    """What the rows of these wallets add to each fold.

    A row that happened in another quarter than it was written in adds to two.
    """
    some = ranges(dialect)
    rows = select(*NEEDED).join_from(
        some,
        schema.transactions,
        (t.wallet_number == some.c.number) & t.sequence.between(some.c.first, some.c.through),
    )
    every = figures(rows).subquery("every").c
    # The sum keeps SQLite from reading all moved rows of the wallet by their index.
    moved = figures(rows.where((t.effective_at + constant(0)).is_not(None))).subquery("moved").c
    happened, written = _quarter(every.happened_at), _quarter(every.written_at)
    quantity = sum((every[name] for name in QUANTITIES[1:]), every[QUANTITIES[0]])
    nothing = constant(0)

    def here(figure: ColumnElement[int]) -> ColumnElement[int]:
        return case((happened == written, figure), else_=nothing)

    sums = {
        "count": constant(1),
        "amount": every.amount,
        "voucher_amount": every.voucher_amount,
        **{name: every[name] for name in QUANTITIES},
        "created_count": here(constant(1)),
        "created_amount": here(every.amount),
        "created_quantity": here(quantity),
        "posting_count": every.posting_count,
    }
    elsewhere = {
        **dict.fromkeys(_SUMS, nothing),
        "created_count": constant(1),
        "created_amount": moved.amount,
        "created_quantity": sum((moved[name] for name in QUANTITIES[1:]), moved[QUANTITIES[0]]),
    }
    both = union_all(
        select(
            every.wallet_number,
            happened.label("quarter"),
            every.dimension_number,
            *(sums[name].label(name) for name in _SUMS),
        ),
        select(
            moved.wallet_number,
            _quarter(moved.written_at),
            moved.dimension_number,
            *(elsewhere[name] for name in _SUMS),
        ).where(_quarter(moved.happened_at) != _quarter(moved.written_at)),
    ).subquery("both")
    key = [both.c[name] for name in _KEY]
    return (
        select(*key, *(func.sum(both.c[name]) for name in _SUMS))
        .where(constant(1) == constant(1))
        .group_by(*key)
        .order_by(*key)
    )


def _quarter(moment: ColumnElement[int]) -> ColumnElement[int]:
    return whole_periods(moment, constant(clock.QUARTER))
