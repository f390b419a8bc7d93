"""Bills: the calendar they are cut by, and how exact amounts become whole ten-thousandths.

Pure; used by the API over what `store/read/consumption.py` adds up. The source of the rules is the
published bill-list API: integer columns in 1/10000 of the currency that must add up to what was
charged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from creditledger.domain import clock, money

#: Integer columns of a bill count this part of a currency unit: 10^-4.
BILL_SCALE = 4
CYCLES = ("Hour", "Day", "Week", "Month")
#: The dates of the calendar, by the clock on a wall.
_FIRST_DAY, _LAST_DAY = datetime.min, datetime.max  # noqa: DTZ901 # of any zone


def usage_max(scale: int) -> int:
    """What a wallet may use in its life, in smallest units: in 1/10000 it still is a counter."""
    power: int = 10 ** max(0, BILL_SCALE - scale)
    return money.TOTAL_MAX // power


@dataclass(frozen=True, slots=True)
class Bucket:
    """One period of a bill, [start, end) in milliseconds."""

    start: int
    end: int


def bucket_of(moment: int, cycle: str, zone: ZoneInfo) -> Bucket:
    """The hour, day, week (from Monday) or month of `zone` in which `moment` lies.

    Hours begin at full hours of the zone's clock, and wherever that is put forward or back. The
    first bucket of a zone's year 1 begins with `clock.FIRST`, the last one of year 9999 ends with
    `clock.END`: beyond them the zone has no dates.
    """
    if cycle == "Hour":
        return _hour(moment, zone)
    local = clock.local(moment, zone)
    if local is None:
        local = _FIRST_DAY if moment < 0 else _LAST_DAY
    day = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
    first = _first(day, cycle)
    begin = max(clock.FIRST, _milliseconds(first, zone)) if first > _FIRST_DAY else clock.FIRST
    bucket = Bucket(begin, _end(day, cycle, zone))
    # A clock put back at midnight, or just after, shows the evening again: that is the next day's.
    return bucket if moment < bucket.end else bucket_of(bucket.end, cycle, zone)


def _first(day: datetime, cycle: str) -> datetime:
    if cycle == "Day":
        return day
    # The first day that there is, is a Monday.
    return day - timedelta(days=day.weekday()) if cycle == "Week" else day.replace(day=1)


def _end(day: datetime, cycle: str, zone: ZoneInfo) -> int:
    days = {"Day": 1, "Week": 7, "Month": 32}[cycle]
    try:
        after = _first(day, cycle) + timedelta(days=days)
    except OverflowError:
        return clock.END
    return min(clock.END, _milliseconds(after.replace(day=1) if cycle == "Month" else after, zone))


def _hour(moment: int, zone: ZoneInfo) -> Bucket:
    """Where the clock is put back half an hour, as on Lord Howe Island, one lasts half as long."""
    offset = _offset(moment, zone)
    start = (moment + offset) // clock.HOUR * clock.HOUR - offset
    start, end = max(start, clock.FIRST), min(start + clock.HOUR, clock.END)
    if _offset(start, zone) != offset:
        start = _change(start, moment, zone)
    if _offset(end - clock.SECOND, zone) != offset:
        end = _change(moment, end - clock.SECOND, zone)
    return Bucket(start, end)


def _offset(moment: int, zone: ZoneInfo) -> int:
    local = clock.local(moment, zone)
    ahead = None if local is None else local.utcoffset()
    return 0 if ahead is None else ahead // timedelta(milliseconds=1)


def _change(low: int, high: int, zone: ZoneInfo) -> int:
    """The first second after `low` in which the zone has the offset that it has at `high`."""
    offset = _offset(high, zone)
    before, at = low // clock.SECOND, high // clock.SECOND
    while at - before > 1:
        middle = (before + at) // 2
        if _offset(middle * clock.SECOND, zone) == offset:
            at = middle
        else:
            before = middle
    return at * clock.SECOND


def _milliseconds(wall: datetime, zone: ZoneInfo) -> int:
    return int(wall.replace(tzinfo=zone).timestamp()) * clock.SECOND


@dataclass(frozen=True, slots=True)
class Charge:
    """What one row of a bill comes to, in 1/10000: amount = voucher + pay."""

    amount: int
    voucher: int

    @property
    def pay(self) -> int:
        """What was paid in cash."""
        return self.amount - self.voucher


def apportion(exact: Sequence[tuple[int, int]], scale: int) -> list[Charge]:
    """The rows of one bucket, (amount, voucher) in smallest units of `scale` digits, in 1/10000.

    The amounts add up to the exact total rounded half up: each is rounded down, and the units
    still missing go to the largest remainders, ties in row order. Vouchers likewise, but none
    above its row's amount (unless it is so exactly, where refunds of cash outweigh the rest).
    """
    amounts = _round([amount for amount, _ in exact], scale)
    rooms = [
        whole if voucher <= amount else None
        for whole, (amount, voucher) in zip(amounts, exact, strict=True)
    ]
    vouchers = _round([voucher for _, voucher in exact], scale, rooms)
    return [Charge(*pair) for pair in zip(amounts, vouchers, strict=True)]


def _round(
    values: Sequence[int], scale: int, most: Sequence[int | None] | None = None
) -> list[int]:
    if scale <= BILL_SCALE:
        return [value * 10 ** (BILL_SCALE - scale) for value in values]
    unit = 10 ** (scale - BILL_SCALE)
    rounded = [value // unit for value in values]
    missing = (sum(values) + unit // 2) // unit - sum(rounded)
    by_remainder = sorted(range(len(values)), key=lambda i: (-(values[i] % unit), i))
    while missing:
        before = missing
        for i in by_remainder:
            limit = None if most is None else most[i]
            if missing and (limit is None or rounded[i] < limit):
                rounded[i] += 1
                missing -= 1
        if missing == before:  # every row is at its limit
            break
    return rounded
