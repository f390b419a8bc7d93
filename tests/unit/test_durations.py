"""Grants that last for a duration: on the calendar of a zone, over month ends and clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditledger.domain import clock as time
from creditledger.domain import durations
from creditledger.domain.clock import DAY, HOUR
from creditledger.domain.errors import InvalidField


def ends(start: str, text: str, zone: str = "UTC") -> str | None:
    """When what starts then has lasted so long, in UTC."""
    duration = durations.parse(text, ZoneInfo(zone), field="f")
    moment = duration.after(time.parse(start, field="f"))
    return None if moment is None else time.text(moment)


@pytest.mark.parametrize(
    ("start", "text", "zone", "end"),
    [
        ("2026-01-31T10:00:00Z", "P1M", "UTC", "2026-02-28T10:00:00.000Z"),
        ("2028-01-31T10:00:00Z", "P1M", "UTC", "2028-02-29T10:00:00.000Z"),
        ("2026-01-31T10:00:00Z", "P2M", "UTC", "2026-03-31T10:00:00.000Z"),
        ("2028-02-29T00:00:00.123Z", "P1Y", "UTC", "2029-02-28T00:00:00.123Z"),
        ("2026-12-15T00:00:00Z", "P1Y1M", "UTC", "2028-01-15T00:00:00.000Z"),
        # To the month's end first, then days.
        ("2026-01-31T10:00:00Z", "P1M1D", "UTC", "2026-03-01T10:00:00.000Z"),
        ("2026-01-01T00:00:00Z", "P2W3D", "UTC", "2026-01-18T00:00:00.000Z"),
        ("2026-01-01T00:00:00Z", "PT36H90M5S", "UTC", "2026-01-02T13:30:05.000Z"),
        # The month ends where it is local: this is the 1st of February in Kolkata.
        ("2026-01-31T20:00:00Z", "P1M", "Asia/Kolkata", "2026-02-28T20:00:00.000Z"),
        # The day on which clocks go forward has 23 hours, the one on which they go back 25.
        ("2026-03-28T11:00:00Z", "P1D", "Europe/Berlin", "2026-03-29T10:00:00.000Z"),
        ("2026-03-28T11:00:00Z", "PT24H", "Europe/Berlin", "2026-03-29T11:00:00.000Z"),
        ("2026-10-24T10:00:00Z", "P1D", "Europe/Berlin", "2026-10-25T11:00:00.000Z"),
        ("2026-10-24T10:00:00Z", "P1DT12H", "Europe/Berlin", "2026-10-25T23:00:00.000Z"),
        # 02:30 does not exist on this day: 03:30 does. Half an hour in Lord Howe.
        ("2026-03-28T01:30:00Z", "P1D", "Europe/Berlin", "2026-03-29T01:30:00.000Z"),
        ("2026-10-02T15:45:00Z", "P1D", "Australia/Lord_Howe", "2026-10-03T15:45:00.000Z"),
        # 02:30 comes twice: the first.
        ("2026-10-24T00:30:00Z", "P1D", "Europe/Berlin", "2026-10-25T00:30:00.000Z"),
        ("2026-09-25T00:30:00Z", "P1M", "Europe/Berlin", "2026-10-25T00:30:00.000Z"),
        # From the second 02:30, hours alone.
        ("2026-10-25T01:30:00Z", "PT1H", "Europe/Berlin", "2026-10-25T02:30:00.000Z"),
        # A day that Samoa left out.
        ("2011-12-29T22:00:00Z", "P1D", "Pacific/Apia", "2011-12-30T22:00:00.000Z"),
        ("9999-12-31T00:00:00Z", "P1D", "UTC", None),
        ("2026-01-01T00:00:00Z", "P999999Y", "UTC", None),
        ("2026-01-01T00:00:00Z", "PT999999999H", "UTC", None),
    ],
)
def test_when_a_duration_ends(start: str, text: str, zone: str, end: str | None) -> None:
    """Years to days in local time, hours to seconds exactly."""
    assert ends(start, text, zone) == end


@pytest.mark.parametrize(
    "text",
    ["", "P", "PT", "P0D", "PT0S", "P1", "1M", "p1m", "-P1M", "P-1M", "P1.5D", "PT0.5H", "P1MT",
     "P1H", "PT1D", "P1D1M", "P1M ", "P1234567D", "P\u0661D", "P1W1M"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    """Whole numbers in their order, longer than nothing."""
    with pytest.raises(InvalidField):
        durations.parse(text, ZoneInfo("UTC"), field="f")


@given(
    start=st.datetimes(datetime(1990, 1, 1), datetime(2037, 1, 1)),  # noqa: DTZ001 # made aware below
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]),
    days=st.integers(1, 800),
    hours=st.integers(0, 100),
)
def test_days_keep_the_hour(start: datetime, zone: str, days: int, hours: int) -> None:
    """After whole days the local clock shows the same, or it is where clocks are changed."""
    moment = int(start.replace(tzinfo=UTC).timestamp()) * 1_000
    there = ZoneInfo(zone)
    duration = durations.parse(f"P{days}D", there, field="f")
    end = duration.after(moment)
    assert end is not None
    before, after = (
        datetime.fromtimestamp(one / 1_000, there).replace(tzinfo=None) for one in (moment, end)
    )
    skipped = after - (before + timedelta(days=days))
    assert timedelta() <= skipped <= timedelta(hours=1)
    assert abs(end - moment - days * DAY) <= HOUR
    longer = durations.parse(f"P{days}DT{hours}H", there, field="f")
    assert longer.after(moment) == end + hours * HOUR
