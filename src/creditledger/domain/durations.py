"""How long a grant lasts: an ISO 8601 duration counted on the calendar of a zone.

Years, months, weeks and days are counted in local time: a month from the 31st of January ends with
February, and a day that the clocks change is still a day. Hours, minutes and seconds are exact. A
local time that the clocks skip is as much later as they skip; of one that comes twice it is the
first. Imports clock and errors.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from dateutil.relativedelta import relativedelta

from creditledger.domain import clock
from creditledger.domain.errors import InvalidField, echo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_DURATION = re.compile(
    r"P(?=.)(?:(\d{1,6})Y)?(?:(\d{1,6})M)?(?:(\d{1,6})W)?(?:(\d{1,6})D)?"
    r"(?:T(?=.)(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,9})S)?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration longer than nothing, in its zone. Made by `parse`."""

    text: str
    zone: ZoneInfo
    calendar: relativedelta | None
    exact: timedelta

    def after(self, start: int) -> int | None:
        """The moment it ends, in milliseconds, if it starts at `start`; None after year 9999."""
        try:
            moment = _EPOCH + start * _MS
            if self.calendar is not None:
                # In UTC where the zone's own year would not be 1 to 9999.
                there = (clock.local(start, self.zone) or moment) + self.calendar
                moment = there.replace(fold=0).astimezone(UTC)
            return (moment + self.exact - _EPOCH) // _MS
        except (OverflowError, ValueError):
            return None


@lru_cache(maxsize=256)
def _parts(text: str) -> tuple[relativedelta | None, timedelta] | None:
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    years, months, weeks, days, *exact = (int(part or 0) for part in match.groups())
    calendar = None
    if years or months or weeks or days:
        calendar = relativedelta(years=years, months=months, weeks=weeks, days=days)
    hours, minutes, seconds = exact
    return calendar, timedelta(hours=hours, minutes=minutes, seconds=seconds)


def parse(text: str, zone: ZoneInfo, *, field: str) -> Duration:
    """A duration such as P1M, P30D or P1DT12H: whole numbers, longer than nothing.

    Raises InvalidField.
    """
    parts = _parts(text)
    if parts is None or not any(parts):
        raise InvalidField(
            f"{field} must be a duration such as P1M or PT12H, in whole numbers and longer than"
            f" nothing, not {echo(text)}",
            param=field,
        )
    return Duration(text, zone, *parts)
