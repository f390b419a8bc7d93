"""The calendar that bills are cut by, which spend limits share, and what they can say in all.

The source of the rules is the published bill-list API.
"""

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
