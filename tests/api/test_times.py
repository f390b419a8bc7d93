"""Times at the edges of the calendar: whatever can be stored can be shown, in every zone."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from creditledger.domain import clock as time
from creditledger.domain import durations
from creditledger.ops.config import load
from creditledger.ops.export_file import ExportRequest, export
from tests.support.rest import BILLS, TRANSACTIONS, USAGE
from tests.surfaces.test_bills_add_up import zones

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rest import Served

#: The last second of the calendar and its first moment, in UTC.
LAST, FIRST = "9999-12-31T23:59:59.000Z", "0001-01-01T00:00:00.000Z"
#: A zone in which the year is over sooner, and one in which it begins later.
EAST, WEST = "Asia/Tokyo", "America/New_York"


@given(
    moment=st.one_of(
        st.integers(time.FIRST, time.END - 1),
        st.integers(time.FIRST, time.FIRST + time.DAY),
        st.integers(time.END - time.DAY, time.END - 1),
    ),
    zone=zones,
)
@example(time.FIRST, "America/New_York")
@example(time.END - 1, "Pacific/Kiritimati")
@example(-2_000_000_000_000, "Europe/Berlin")  # Local mean time, ahead by minutes and seconds.
def test_every_time_is_shown_as_itself(moment: int, zone: str) -> None:
    """What a zone's clocks show of a moment is RFC 3339 and names the same moment."""
    shown = time.text_in(moment, ZoneInfo(zone))

    assert time.parse(shown, field="moment") == moment


@pytest.mark.parametrize(
    ("moment", "zone", "shown"),
    [
        (time.END - 1_000, EAST, LAST),
        (time.END - 1_000, WEST, "9999-12-31T18:59:59.000-05:00"),
        (time.FIRST, WEST, FIRST),
        (time.END - 10 * time.HOUR, EAST, "9999-12-31T23:00:00.000+09:00"),
        (time.END - 9 * time.HOUR, EAST, "9999-12-31T15:00:00.000Z"),
    ],
)
def test_a_local_year_outside_the_calendar_is_shown_in_utc(
    moment: int, zone: str, shown: str
) -> None:
    """Only a time whose local year would not be 1 to 9999 is shown in UTC."""
    assert time.text_in(moment, ZoneInfo(zone)) == shown


def test_a_duration_begins_with_the_calendar() -> None:
    """A duration is counted from the first moment that can be stored, in every zone."""
    lasts = durations.parse("P3000Y", ZoneInfo(WEST), field="lasts")

    ends = lasts.after(time.FIRST)

    assert ends is not None
    assert timedelta(milliseconds=ends - time.FIRST) > timedelta(days=3_000 * 365)


async def told(served: Served) -> tuple[str, str]:
    """A wallet that has rows and grants of the first and the last moment, and a customer's key."""
    customer = await served.customer()
    wallet, key = await served.wallet(customer), await served.key("customer", customer)
    await served.post(
        wallet,
        {"grant": {"amount": "10", "expires_at": LAST}},
        {"grant": {"amount": "5", "effective_at": "9999-12-31T23:00:00Z"}},
        {"adjustment": {"amount": "1"}, "effective_at": FIRST},
        {"consumption": {"amount": "2", "usage": {"quantities": ["1"]}}, "effective_at": FIRST},
        {"consumption": {"amount": "3", "usage": {"quantities": ["1"]}}},
    )
    return wallet, key


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("zone", [EAST, WEST])
async def test_statements_show_every_time(served: Served, zone: str) -> None:
    """Statements are made, closed, listed and rendered, whatever times grants and rows have."""
    wallet, key = await told(served)
    admin = await served.key("service")
    begun = time.moment(served.clock.now)
    month = {"month": f"{begun:%Y-%m}", "time_zone": zone}

    open_ = await served.body(f"/v1/wallets/{wallet}/statement", key, **month)
    served.clock.advance(40 * time.DAY)
    path = f"/v1/wallets/{wallet}/statements"
    closed = await served.ask("POST", path, key=admin, json=month)
    page = await served.get(f"/v1/wallets/{wallet}/statement:render", key, format="html", **month)

    assert closed.status_code == 200, closed.text
    assert page.status_code == 200, page.text
    grants = {grant["granted"]: grant for grant in closed.json()["grants"]}
    assert time.parse(grants["10.00"]["expires_at"], field="expires_at") == time.END - 1_000
    assert open_["grants"] == closed.json()["grants"]
    (one,) = (await served.body(path, key))["statements"]
    assert one["time_zone"] == zone


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("zone", [EAST, WEST])
async def test_exports_show_every_time(served: Served, zone: str, tmp_path: Path) -> None:
    """An export has all its rows, over REST and by the command, whatever their times are."""
    wallet, key = await told(served)
    (customer,) = [(await served.body(f"/v1/wallets/{wallet}", key))["customer_id"]]

    query = {"time_zone": zone, "columns": "effective_at"}
    answer = await served.get(f"{TRANSACTIONS}:export", key, **query)
    file = tmp_path / "rows.csv"
    asked = ExportRequest.of(
        file=file,
        format="csv",
        excel=None,
        digest_line=False,
        livemode=True,
        start=None,
        end=None,
        customer_id=customer,
        **query,
    )
    await export(load({"database_url": served.database_url}), asked, on_progress=lambda *_: None)

    assert answer.status_code == 200, answer.text
    for text in (answer.text, file.read_text()):
        times = [row[0] for row in csv.reader(io.StringIO(text))][1:6]
        moments = [time.parse(one, field="effective_at") for one in times]
        assert sorted(moments)[:2] == [time.FIRST] * 2
        assert max(moments) == time.END - time.HOUR


@pytest.mark.asyncio(loop_scope="module")
async def test_bills_and_usage_of_every_time(served: Served) -> None:
    """Bills and usage answer windows at both ends of the calendar, by every period."""
    _, key = await told(served)
    last = time.END // 1_000 - 1

    for zone in (EAST, WEST, "UTC"):
        for cycle in ("Hour", "Day", "Week", "Month"):
            query = {"cycleType": cycle, "startTime": last - 86_400, "endTime": last}
            bills = await served.body(BILLS, key, timeZone=zone, **query)
            assert bills["bills"] == []
    for group in ("hour", "day", "model"):
        end = await served.body(
            USAGE, key, since="9999-12-31T00:00:00Z", until=LAST, group_by=group
        )
        begin = {"since": FIRST, "until": "0001-01-02T00:00:00Z"}
        first = await served.body(USAGE, key, **begin, group_by=group)
        assert end["buckets"] == []
        assert [one["call_count"] for one in first["buckets"]] == [1]
