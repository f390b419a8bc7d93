"""Time, as integer milliseconds since 1970-01-01 UTC, and its text on the wire.

Only this module reads the system's clock. Everything inside takes `now` as an argument.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from creditledger.domain.errors import InvalidField, echo

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
#: The offset of each zone is a multiple of 15 minutes, so the buckets of a zone are whole quarters.
QUARTER = 15 * MINUTE

#: Names for the setting of one machine. They are no zones, and differ from machine to machine.
_NO_ZONES = frozenset({"localtime", "Factory", "posixrules"})
_ZONES = available_timezones() - _NO_ZONES
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 # compared with moments that are UTC already
_MS = timedelta(milliseconds=1)
_MINUTE = timedelta(minutes=1)
#: The times that can be stored and shown, [first, end): years 1 to 9999 in UTC.
FIRST, END = -62_135_596_800_000, 253_402_300_800_000
#: The 1,440 minutes of a day as text.
_CLOCK = [f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(60)]
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?([Zz]|[+\- ]\d\d:\d\d)", re.ASCII
)


def now() -> int:
    """The system's clock."""
    return time.time_ns() // 1_000_000


#: A clock that cannot be set and that counts while the machine sleeps. On macOS, CLOCK_MONOTONIC
#: counts through sleep too.
_ELAPSED: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def elapsed() -> int:
    """Milliseconds since the machine was started, sleep included."""
    return time.clock_gettime_ns(_ELAPSED) // 1_000_000


def shown(milliseconds: int) -> str:
    """`text` of a clock's reading, limited to [FIRST, END)."""
    return text(min(max(milliseconds, FIRST), END - 1))


def parse(text: str, *, field: str) -> int:
    """Milliseconds of an RFC 3339 time with zone; digits below a millisecond are cut off.

    A blank before the offset is read as "+", because a query string turns "+" into a blank.
    Raises InvalidField for anything else, a date that does not exist, and years outside 1 to 9999.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise InvalidField(
            f"{field} must be a time with zone such as 2026-05-21T14:08:11Z, not {echo(text)}",
            param=field,
        )
    *parts, fraction, zone = match.groups()
    try:
        there = datetime(*map(int, parts))  # type: ignore[arg-type] # noqa: DTZ001 # six ints
        milliseconds = (there - _offset(zone) - _NAIVE_EPOCH) // _MS
    except (ValueError, OverflowError):
        raise InvalidField(f"{field} is no time that exists: {echo(text)}", param=field) from None
    return milliseconds + int((fraction or "").ljust(3, "0")[:3])


@lru_cache(maxsize=256)
def _offset(zone: str) -> timedelta:
    """How far a zone is ahead of UTC. Raises ValueError from 24 hours on."""
    sign = "+00:00" if zone in "Zz" else zone.replace(" ", "+")
    return datetime.strptime(sign, "%z").utcoffset() or timedelta()


def moment(milliseconds: int) -> datetime:
    """The aware UTC datetime of `milliseconds`."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


@lru_cache(maxsize=1_024)
def _date(day: int) -> str:
    return moment(day * DAY).date().isoformat()


# All rows of a batch share one time, so the cache formats it once. Wallets repeat `created_at`.
@lru_cache(maxsize=16_384)
def text(milliseconds: int) -> str:
    """RFC 3339 in UTC with three fraction digits: 2026-05-21T14:08:11.000Z."""
    day, rest = divmod(milliseconds, DAY)
    minute, rest = divmod(rest, MINUTE)
    return f"{_date(day)}T{_CLOCK[minute]}:{rest // SECOND:02d}.{rest % SECOND:03d}Z"


def local(milliseconds: int, zone: ZoneInfo) -> datetime | None:
    """The zone's own date and time; None where its year would not be 1 to 9999."""
    try:
        return moment(milliseconds).astimezone(zone)
    except OverflowError:
        return None


def text_in(milliseconds: int, zone: ZoneInfo) -> str:
    """`text`, by the clocks of a zone and with its offset: 2026-05-21T16:08:11.000+02:00.

    In UTC where RFC 3339 cannot express the local time: the local year is outside 1 to 9999, or
    the offset is not in whole minutes, as in years before the zone had a standard time.
    """
    there = None if zone.key == "UTC" else local(milliseconds, zone)
    if there is None or (there.utcoffset() or timedelta()) % _MINUTE:
        return text(milliseconds)
    return there.isoformat(timespec="milliseconds")


def text_seconds(milliseconds: int) -> str:
    """RFC 3339 in UTC, whole seconds, the fraction cut off: 2026-05-21T14:08:11Z."""
    return f"{text(milliseconds)[:-5]}Z"


def zone(name: str, *, field: str) -> ZoneInfo:
    """The zone of an IANA name. Raises InvalidField."""
    if name not in _ZONES:
        raise InvalidField(f"{field} must be an IANA name, not {echo(name)}", param=field)
    return ZoneInfo(name)


def is_zone(name: str) -> bool:
    """Whether this is the IANA name of a zone that this machine knows."""
    return name in _ZONES


def stored_zone(name: str) -> ZoneInfo:
    """The zone of a stored name; UTC where this machine knows no such zone."""
    return ZoneInfo(name if is_zone(name) else "UTC")
