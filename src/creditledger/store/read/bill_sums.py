"""Consumption and refunds by when they happened: what bills and the usage of a key add up.

Whole quarters of an hour come from the roll-ups, what a window or a period cuts off of one from the
rows: so the cost follows the window and its periods, not the ledger.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, func, select

from creditledger.domain import clock
from creditledger.domain.billing_periods import Bucket, bucket_of
from creditledger.domain.model import Category, Dimension, Kind
from creditledger.store import schema
from creditledger.store.dialects import exact_sum
from creditledger.store.read.transaction_reads import span, with_postings
from creditledger.store.write.columns import DIMENSION, load

t, d, r = schema.transactions.c, schema.dimensions.c, schema.rollups.c

#: Periods shorter than a day are read this long at once.
STRETCH = clock.DAY
#: Grants that are looked up by one statement.
GRANTS_MAX = 500
_AMOUNTS = (r.amount, r.voucher_amount)
#: Of usage alone, which is bounded for each wallet.
_COUNTS = (r.posting_count, *(r[f"quantity_{i}"] for i in range(6)))


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
    moment = start
    while moment < end:
        quarter = _next_quarter(connection, wallet, moment, end)
        if quarter is None:
            return
        buckets = [bucket_of(max(quarter, moment), cycle, zone)]
        if cycle == "Hour":
            while buckets[-1].end < min(end, buckets[0].start + STRETCH):
                buckets.append(bucket_of(buckets[-1].end, cycle, zone))
        cuts = [max(moment, buckets[0].start), *(min(bucket.end, end) for bucket in buckets)]
        yield from zip(buckets, _sums_between(connection, wallet, last, cuts), strict=True)
        moment = cuts[-1]


def in_window(connection: Connection, wallet: int, last: int, start: int, end: int) -> Sums:
    """What happened in [start, end): all kinds, all dimensions."""
    return _sums_between(connection, wallet, last, [start, end])[0]


def _next_quarter(connection: Connection, wallet: int, start: int, end: int) -> int | None:
    """The beginning of the first quarter of an hour overlapping [start, end) that has rows."""
    found = connection.execute(
        select(func.min(r.quarter)).where(
            r.wallet_number == wallet,
            r.quarter >= start // clock.QUARTER,
            r.quarter < -(-end // clock.QUARTER),
            r.count > 0,
        )
    ).scalar_one()
    return None if found is None else int(found) * clock.QUARTER


def _sums_between(
    connection: Connection, wallet: int, last: int, cuts: Sequence[int]
) -> list[Sums]:
    """What happened between each two neighbours of `cuts`: all kinds, all dimensions."""
    found: list[Sums] = [{} for _ in cuts[1:]]
    first, through = -(-cuts[0] // clock.QUARTER), cuts[-1] // clock.QUARTER
    if first < through:
        for quarter, number, *values in _quarters(connection, wallet, first, through, len(found)):
            at = quarter * clock.QUARTER
            place = bisect_right(cuts, at) - 1
            if at + clock.QUARTER <= cuts[place + 1]:
                found[place].setdefault(number, BillSums()).add(*map(int, values))
    for sums, start, end in zip(found, cuts, cuts[1:], strict=False):
        first, through = -(-start // clock.QUARTER), end // clock.QUARTER
        if first >= through:
            _add_rows(connection, wallet, last, start, end, sums)
        else:
            _add_rows(connection, wallet, last, start, first * clock.QUARTER, sums)
            _add_rows(connection, wallet, last, through * clock.QUARTER, end, sums)
    return found


def _quarters(
    connection: Connection, wallet: int, first: int, through: int, periods: int
) -> Iterable[Sequence[Any]]:
    """(quarter, dimension number, sums); for one period they are added up as its first quarter."""
    within = (r.wallet_number == wallet, r.quarter >= first, r.quarter < through, r.count > 0)
    if periods > 1:
        return connection.execute(
            select(r.quarter, r.dimension_number, *_AMOUNTS, *_COUNTS).where(*within)
        )
    amounts = map(exact_sum, _AMOUNTS)
    counts = map(func.sum, _COUNTS)
    query = (
        select(r.dimension_number, *amounts, *counts).where(*within).group_by(r.dimension_number)
    )
    return ((first, *row) for row in connection.execute(query))


def _add_rows(
    connection: Connection, wallet: int, last: int, start: int, end: int, found: Sums
) -> None:
    """The rows that happened in [start, end): when they were written, or at a time of their own."""
    if start >= end:
        return
    window = span(connection, wallet, last, start, end)
    p = schema.postings.c
    query = select(
        *(t.wallet_number, t.posting_number, t.dimension_number, t.sequence, t.amount),
        *(t.grant_number, t.kind),
    ).where(t.wallet_number == wallet)
    written = query.where(t.effective_at.is_(None), t.sequence.between(window.first, window.last))
    moved = query.where(t.effective_at >= start, t.effective_at < end)
    rows = [
        row
        for one in (written, moved)
        for row in connection.execute(with_postings(one, p.first_sequence, p.quantities))
    ]
    promotional = _promotional(connection, wallet, {row.grant_number for row in rows} - {None})
    refunds = {row.sequence for row in rows if row.kind == Kind.REFUND.value}
    of_overdraft = _of_overdraft(connection, wallet, refunds) if promotional else set()
    for row in rows:
        is_voucher = row.grant_number in promotional and row.sequence not in of_overdraft
        voucher = row.amount if is_voucher else 0
        first = row.sequence == row.first_sequence
        quantities: tuple[int, ...] = load(row.quantities, ()) if first else ()
        sums = found.setdefault(row.dimension_number, BillSums())
        sums.add(row.amount, voucher, int(first), *quantities)


def _promotional(connection: Connection, wallet: int, numbers: set[int]) -> set[int]:
    """The promotional ones of these grants: many rows are paid by few grants."""
    g, asked, found = schema.grants.c, sorted(numbers), set[int]()
    for at in range(0, len(asked), GRANTS_MAX):
        wanted = asked[at : at + GRANTS_MAX]
        query = select(g.number).where(
            g.wallet_number == wallet,
            g.number.in_(wanted),
            g.category == Category.PROMOTIONAL.value,
        )
        found.update(connection.scalars(query))
    return found


def _of_overdraft(connection: Connection, wallet: int, refunds: set[int]) -> set[int]:
    """Of these rows of refunds those that give back what had paid an overdraft back."""
    o, asked, found = schema.overdraft_returns.c, sorted(refunds), set[int]()
    for at in range(0, len(asked), GRANTS_MAX):
        wanted = asked[at : at + GRANTS_MAX]
        query = select(o.sequence).where(o.wallet_number == wallet, o.sequence.in_(wanted))
        found.update(connection.scalars(query))
    return found


def dimensions(connection: Connection, wallet: int) -> dict[int, Dimension]:
    """The wallet's dimensions of consumptions and refunds, by number."""
    query = select(d.number, *DIMENSION.of(d)).where(
        d.wallet_number == wallet, d.kind.in_((Kind.USAGE.value, Kind.REFUND.value))
    )
    return {number: DIMENSION.value(rest) for number, *rest in connection.execute(query)}
