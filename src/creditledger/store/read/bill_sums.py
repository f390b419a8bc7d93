"""Consumption and refunds by when they happened: what bills and the usage of a key add up.

Whole days and quarters of an hour come from the folds; what a window or a period cuts off of a
quarter, and what is not folded yet, from the rows. So the cost follows the window, not the ledger,
and a handful of statements reads some dozens of periods.
"""

import heapq
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, pairwise
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, Select, Table, bindparam, func, select, union_all

from creditledger.domain import clock
from creditledger.domain.billing_periods import Bucket, bucket_of
from creditledger.domain.model import Dimension, Kind
from creditledger.store import schema
from creditledger.store.dialects import exact_sum, ranges
from creditledger.store.folds.figures import (
    NEEDED,
    QUANTITIES,
    Range,
    constant,
    figures,
    fold_end,
    whole_periods,
)
from creditledger.store.read.transaction_reads import span
from creditledger.store.write.columns import DIMENSION

t, d, f = schema.transactions.c, schema.dimensions.c, schema.folds.c

#: Periods that are read together: at first, for a page needs few, and at most.
TOGETHER, TOGETHER_MAX = 50, 800


@dataclass(slots=True)
class BillSums:
    """What one dimension comes to in one period. Amounts as on the rows: consumption < 0."""

    amount: int = 0
    voucher_amount: int = 0
    posting_count: int = 0  #: Each counted once, where its first row is.
    quantities: list[int] = field(default_factory=lambda: [0] * 6)

    def merge(self, other: "BillSums") -> None:
        """What another wallet has of the same dimension and period."""
        self.add(other.amount, other.voucher_amount, other.posting_count, *other.quantities)

    def add(self, amount: int, voucher_amount: int, posting_count: int, *quantities: int) -> None:
        """Some rows more."""
        self.amount += amount
        self.voucher_amount += voucher_amount
        self.posting_count += posting_count
        for i, quantity in enumerate(quantities):
            self.quantities[i] += quantity


#: By dimension number.
Sums = dict[int, BillSums]
#: By dimension, over several wallets.
NamedSums = dict[Dimension, BillSums]
#: Wallets that are added up together: the number and the last sequence of each.
Places = Sequence[tuple[int, int]]


_NEXT_QUARTER = select(func.min(f.quarter)).where(
    f.wallet_number == bindparam("wallet"),
    f.quarter >= bindparam("first"),
    f.quarter < bindparam("through"),
    f.count > constant(0),
)


@cache
def _folded(dialect: str, table: Table) -> Select[*tuple[int, ...]]:
    """The folds of each of some ranges of quarters or of days, by dimension."""
    some, f = ranges(dialect), table.c
    _, period, _ = table.primary_key
    return (
        select(
            *(some.c.number, f.dimension_number),
            *(exact_sum(f.amount), exact_sum(f.voucher_amount), func.sum(f.posting_count)),
            *(func.sum(f[name]) for name in QUANTITIES),
        )
        .join_from(some, table, (period >= some.c.first) & (period < some.c.through))
        .where(f.wallet_number == bindparam("wallet"), f.count > constant(0))
        .group_by(some.c.number, f.dimension_number)
    )


_ROWS = select(*NEEDED).where(t.wallet_number == bindparam("wallet"))
_c = (
    figures(_ROWS.where(t.sequence > bindparam("after"), t.sequence <= bindparam("through")))
    .subquery("every")
    .c
)
#: Periods begin and end with seconds of the clock, whatever the zone; a window at any moment.
_moment = whole_periods(_c.happened_at, constant(clock.SECOND)) * constant(clock.SECOND)
#: The rows behind a sequence, by the second in which they happened and by dimension.
_BEYOND = (
    select(
        *(_moment, _c.dimension_number),
        *(exact_sum(_c.amount), exact_sum(_c.voucher_amount), func.sum(_c.posting_count)),
        *(func.sum(_c[name]) for name in QUANTITIES),
    )
    .where(_c.happened_at >= bindparam("start"), _c.happened_at < bindparam("end"))
    .group_by(_moment, _c.dimension_number)
)
_written = _ROWS.where(
    t.effective_at.is_(None), t.sequence.between(bindparam("first"), bindparam("last"))
)
_moved = _ROWS.where(
    t.effective_at >= bindparam("start"),
    t.effective_at < bindparam("end"),
    t.sequence <= bindparam("through"),
)
_x = figures(select(*union_all(_written, _moved).subquery("both").c)).subquery("every").c
#: The rows that happened in a part of a quarter: when they were written, or at another time.
_EDGE = select(
    _x.dimension_number,
    *(exact_sum(_x.amount), exact_sum(_x.voucher_amount), func.sum(_x.posting_count)),
    *(func.sum(_x[name]) for name in QUANTITIES),
).group_by(_x.dimension_number)


def periods_of(
    connection: Connection, wallets: Places, start: int, end: int, *, cycle: str, zone: ZoneInfo
) -> Iterator[tuple[Bucket, NamedSums]]:
    """The periods of [start, end) in which something may have happened, in order of time.

    Of the first and the last only what lies in the window.
    """

    def parts(wallet: int, last: int) -> Iterator[tuple[Bucket, NamedSums]]:
        known = dimensions(connection, wallet)
        for bucket, sums in periods(connection, wallet, last, start, end, cycle=cycle, zone=zone):
            yield bucket, _named(known, sums)

    def begins(part: tuple[Bucket, NamedSums]) -> int:
        return part[0].start

    every = heapq.merge(*(parts(*place) for place in wallets), key=begins)
    for _, group in groupby(every, key=begins):
        (bucket, sums), *others = group
        for _, more in others:
            _merge(sums, more)
        yield bucket, sums


def in_window_of(connection: Connection, wallets: Places, start: int, end: int) -> NamedSums:
    """What happened in [start, end) in these wallets."""
    found: NamedSums = {}
    for wallet, last in wallets:
        sums = in_window(connection, wallet, last, start, end)
        _merge(found, _named(dimensions(connection, wallet), sums))
    return found


def _named(known: dict[int, Dimension], sums: Sums) -> NamedSums:
    """Consumptions and refunds by what they are added up by; other kinds are in no bill."""
    return {known[number]: one for number, one in sums.items() if number in known}


def _merge(sums: NamedSums, more: NamedSums) -> None:
    for dimension, one in more.items():
        sums.setdefault(dimension, BillSums()).merge(one)


def periods(
    connection: Connection,
    wallet: int,
    last: int,
    start: int,
    end: int,
    *,
    cycle: str,
    zone: ZoneInfo,
) -> Iterator[tuple[Bucket, Sums]]:
    """The periods of [start, end) in which something may have happened, in order of time.

    `last` is the wallet's last sequence. Of the first and the last only what lies in the window.
    """
    wanted = _WindowSums(connection, wallet, last, start, end)
    together, moment = TOGETHER, wanted.next(start)
    while moment is not None:
        buckets = [bucket_of(moment, cycle, zone)]
        while len(buckets) < together and buckets[-1].end < end:
            buckets.append(bucket_of(buckets[-1].end, cycle, zone))
        cuts = [max(start, buckets[0].start), *(min(bucket.end, end) for bucket in buckets)]
        for bucket, sums in zip(buckets, wanted.between(cuts), strict=True):
            if sums:
                yield bucket, sums
        together, moment = min(2 * together, TOGETHER_MAX), wanted.next(cuts[-1])


def in_window(connection: Connection, wallet: int, last: int, start: int, end: int) -> Sums:
    """What happened in [start, end): all kinds, all dimensions."""
    if start >= end:
        return {}
    return _WindowSums(connection, wallet, last, start, end).between([start, end])[0]


class _WindowSums:
    """A wallet's rows up to `last` that happened in [start, end).

    Folds and edges are of the rows up to the fold's end. The rows from there to `last` are added;
    where the fold goes further than `last`, the rows between are taken off.
    """

    def __init__(
        self, connection: Connection, wallet: int, last: int, start: int, end: int
    ) -> None:
        self._connection = connection
        self._wallet = wallet
        self._start, self._end = start, end
        self._fold_end = fold_end(connection, wallet)
        folded = self._fold_end.sequence
        self._folded = folded
        self._sign = 1 if last > folded else -1
        #: (second, dimension number, figures) of the rows between the fold's end and `last`.
        self._beyond: list[tuple[int, ...]] = []
        if last != folded and start < end:
            values = {
                "wallet": wallet,
                "after": min(folded, last),
                "through": max(folded, last),
                "start": start,
                "end": end,
            }
            self._beyond = [
                # The window may begin within a second.
                (max(start, second), *rest)
                for second, *rest in connection.execute(_BEYOND, values)
            ]

    def next(self, moment: int) -> int | None:
        """The first moment from this one on at which something may have happened, or None."""
        if moment >= self._end:
            return None
        quarter = self._connection.execute(
            _NEXT_QUARTER,
            {
                "wallet": self._wallet,
                "first": moment // clock.QUARTER,
                "through": -(-self._end // clock.QUARTER),
            },
        ).scalar_one()
        found = [row[0] for row in self._beyond if row[0] >= moment]
        if quarter is not None:
            found.append(max(moment, int(quarter) * clock.QUARTER))
        return min(found, default=None)

    def between(self, cuts: Sequence[int]) -> list[Sums]:
        """What happened between each two neighbours of `cuts`: all kinds, all dimensions."""
        found: list[Sums] = [{} for _ in cuts[1:]]
        whole = [(-(-a // clock.QUARTER), b // clock.QUARTER) for a, b in pairwise(cuts)]
        for place, number, *values in self._whole(whole):
            _add(found[place], number, values)
        for place, (start, end) in enumerate(pairwise(cuts)):
            first, through = (quarter * clock.QUARTER for quarter in whole[place])
            edges = [(start, end)] if first >= through else [(start, first), (through, end)]
            for edge in edges:
                for number, *values in self._edge(*edge):
                    _add(found[place], number, values)
        for moment, number, *values in self._beyond:
            place = bisect_right(cuts, moment) - 1
            if 0 <= place < len(found):
                _add(found[place], number, [self._sign * value for value in values])
        # No row has an amount of 0, and those of a dimension have one sign: without an amount there
        # is no row.
        return [{n: sums for n, sums in one.items() if sums.amount} for one in found]

    def _whole(self, whole: Sequence[Range]) -> Iterator[Sequence[Any]]:
        """(place, dimension number, figures) of the folds of these ranges of quarters."""
        if not self._folded:
            return
        by_quarter: list[tuple[int, int, int]] = []
        by_day: list[tuple[int, int, int]] = []
        for place, one in enumerate(whole):
            quarters, days = self._fold_end.split(*one)
            by_quarter.extend((place, *some) for some in quarters if some[0] < some[1])
            if days[0] < days[1]:
                by_day.append((place, *days))
        for table, given in ((schema.folds, by_quarter), (schema.day_folds, by_day)):
            if given:
                values = {"wallet": self._wallet, "ranges": json.dumps(given)}
                statement = _folded(self._connection.dialect.name, table)
                yield from self._connection.execute(statement, values)

    def _edge(self, start: int, end: int) -> Iterable[Sequence[Any]]:
        """(dimension number, figures) of the rows that happened in a part of a quarter."""
        if start >= end or not self._folded:
            return []
        written = span(self._connection, self._wallet, self._folded, start, end)
        values = {
            "wallet": self._wallet,
            "first": written.first,
            "last": written.last,
            "through": self._folded,
            "start": start,
            "end": end,
        }
        return self._connection.execute(_EDGE, values)


def _add(sums: Sums, number: int, values: Sequence[Any]) -> None:
    one = sums.get(number)
    if one is None:
        one = sums[number] = BillSums()
    one.add(*map(int, values))


def dimensions(connection: Connection, wallet: int) -> dict[int, Dimension]:
    """The wallet's dimensions of consumptions and refunds, by number."""
    query = select(d.number, *DIMENSION.of(d)).where(
        d.wallet_number == wallet, d.kind.in_((Kind.USAGE.value, Kind.REFUND.value))
    )
    return {number: DIMENSION.value(rest) for number, *rest in connection.execute(query)}
