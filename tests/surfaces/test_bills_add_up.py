"""Bills lose nothing: periods tile time, and their exact columns are consumptions minus refunds.

Random ledgers, windows, cycles and zones, those around the year's changes of clocks among them. The
usage of a key is held to the same sums.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, Decimal
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from creditledger.domain import clock as time
from creditledger.domain.billing_periods import CYCLES, bucket_of
from tests.support.rest import (
    BILLS,
    TRANSACTIONS,
    USAGE,
    Json,
    Served,
    Shop,
    promotional,
    serving,
    traffic,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

#: Names that are data of the system, not zones: not every one has them.
ZONES = sorted(zone for zone in available_timezones() if zone[0].isupper() and time.is_zone(zone))
#: Of the ledgers: when the traffic of each begins. Within 35 days of each, clocks are changed in
#: Europe or America, on Lord Howe Island, or nowhere.
BEGINNINGS = ("2026-04-06", "2026-11-03", "2026-10-05", "2026-07-20")
#: Zones with whole, half and quarter hours, and with changes of an hour and of half of one.
FAVOURITES = [
    *("UTC", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin", "America/St_Johns"),
    *("Australia/Lord_Howe", "Pacific/Chatham", "Africa/Cairo", "America/Havana"),
]

moments = st.one_of(
    st.integers(0, 4_102_444_800_000),  # to 2100
    st.integers(time.FIRST, time.FIRST + 40 * time.DAY),
    st.integers(time.END - 40 * time.DAY, time.END - 1),
)
zones = st.one_of(st.sampled_from(FAVOURITES), st.sampled_from(ZONES))


def milliseconds(text: str) -> int:
    """Of a written moment."""
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


@given(moment=moments, cycle=st.sampled_from(CYCLES), zone=zones)
@example(milliseconds("2010-11-07T03:00:00Z"), "Day", "America/St_Johns")  # 23:30 once more
@example(milliseconds("2026-10-25T00:30:00Z"), "Hour", "Europe/Berlin")
@example(milliseconds("2026-04-04T15:10:00Z"), "Hour", "Australia/Lord_Howe")
@example(time.FIRST, "Week", "America/New_York")
@example(time.END - 1, "Month", "Asia/Tokyo")
@settings(max_examples=500)
def test_periods_tile_time(moment: int, cycle: str, zone: str) -> None:
    """Each moment is in one period: it has the moment, and the next begins where it ends."""
    place = ZoneInfo(zone)

    bucket = bucket_of(moment, cycle, place)

    assert bucket.start <= moment < bucket.end
    assert bucket == bucket_of(bucket.start, cycle, place)
    assert bucket == bucket_of(bucket.end - 1, cycle, place)
    assert bucket.end == time.END or bucket_of(bucket.end, cycle, place).start == bucket.end
    assert time.FIRST <= bucket.start < bucket.end <= time.END
    assert cycle != "Hour" or bucket.end - bucket.start <= time.HOUR


@dataclass(frozen=True, slots=True)
class Told:
    """A ledger: whose, and all that happened in it."""

    key: str
    now: int
    rows: list[Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Service:
    """A service and the ledgers it has."""

    served: Served = field(repr=False)
    ledgers: list[Told] = field(repr=False)


async def told(served: Served, number: int, beginning: str) -> Told:
    """A customer's random history that begins then."""
    served.clock.now = milliseconds(beginning)
    customer = await served.customer()
    wallet = await served.wallet(customer, overdraft_limit="20")
    await served.post(wallet, {"grant": {"amount": "9", "category": "promotional"}})
    shop = Shop(wallet, 9, [], [await served.meter()], ["apk_1", "gateway"])
    await traffic(served, random.Random(number), [shop], 150)
    key = await served.key("customer", customer)
    rows: list[Json] = []
    token: Json = {}
    while True:
        page = await served.body(TRANSACTIONS, key, limit=100, **token)
        rows += [row for row in page["list"] if row["kind"] in {"usage", "refund"}]
        if "next_page_token" not in page["paging"]:
            break
        token = {"page_token": page["paging"]["next_page_token"]}
    assert {row["kind"] for row in rows} == {"usage", "refund"}
    return Told(key, served.clock.now, rows)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(new_database: Callable[[], str]) -> AsyncIterator[Service]:
    """Ledgers that differ in when they were lived, all in one service."""
    async with serving(new_database()) as served:
        ledgers = [await told(served, number, day) for number, day in enumerate(BEGINNINGS)]
        yield Service(served, ledgers)


def spent(rows: list[Json], start: int, end: int) -> list[Json]:
    """Those of the rows that happened in [start, end), milliseconds."""
    return [row for row in rows if start <= milliseconds(row["effective_at"]) < end]


def units(rows: list[Json], name: str = "amountDecimal") -> Decimal:
    """The sum of an exact column."""
    return sum((Decimal(row[name]) for row in rows), Decimal())


#: A window lies between two rows, or beside them, to the second.
places = st.tuples(st.integers(0, 10_000), st.integers(-3_600, 3_600))


def windowed(ledger: Told, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """First and last second."""
    at = [milliseconds(row["effective_at"]) // 1000 for row in ledger.rows]
    start, end = sorted(at[place % len(at)] + beside for place, beside in (one, other))
    return start, max(end, start + 1)


@pytest.mark.asyncio(loop_scope="module")
@given(
    number=st.integers(0, len(BEGINNINGS) - 1),
    one=places,
    other=places,
    cycle=st.sampled_from(CYCLES),
    zone=zones,
)
@settings(
    max_examples=60,
    # The service is the module's: examples only ask it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_exact_columns_are_consumptions_minus_refunds(
    service: Service,
    number: int,
    one: tuple[int, int],
    other: tuple[int, int],
    cycle: str,
    zone: str,
) -> None:
    """Over keys, products and buckets: of any window, cut by any cycle of any zone."""
    ledger = service.ledgers[number]
    service.served.clock.now = ledger.now
    start, end = windowed(ledger, one, other)
    happened = spent(ledger.rows, start * 1000, (end + 1) * 1000)
    window: dict[str, str | int] = {"startTime": start, "endTime": end}

    bills = (
        await service.served.body(BILLS, ledger.key, cycleType=cycle, timeZone=zone, **window)
    )["bills"]

    assert units(bills) == -units(happened, "amount")
    promotions = promotional(ledger.rows)
    vouchers = [row for row in happened if row["sequence"] in promotions]
    assert units(bills, "voucherAmountDecimal") == -units(vouchers, "amount")
    assert units(bills, "payAmountDecimal") == units(bills) - units(bills, "voucherAmountDecimal")
    for _, group in groupby(bills, itemgetter("startTime")):
        rows = list(group)
        exact = units(rows) * 10_000 + Decimal("0.5")  # rounded half up
        assert sum(int(row["amount"]) for row in rows) == exact.to_integral_value(ROUND_FLOOR)
        assert all(
            int(row["amount"]) == int(row["voucherAmount"]) + int(row["payAmount"]) for row in rows
        )
    starts = [int(row["startTime"]) for row in bills]
    assert starts == sorted(starts)
    assert all(int(row["startTime"]) <= end and start <= int(row["endTime"]) for row in bills)
    running = {row["startTime"] for row in bills if "partial" in row}
    assert running == {r["startTime"] for r in bills if (int(r["endTime"]) + 1) * 1000 > ledger.now}

    usage = await service.served.body(
        USAGE,
        ledger.key,
        since=time.text(start * 1000),
        until=time.text((end + 1) * 1000),
        group_by=("hour" if cycle == "Hour" else "day") + ",model,api_key",
    )
    assert usage["totals"]["total_usd"] == float(units(bills))
    assert usage["totals"]["call_count"] == len(
        {row["posting_id"] for row in happened if row["kind"] == "usage"}
    )
    tokens = [row for row in bills if row["category"] in {"llm", ""}]
    assert usage["totals"]["input_tokens"] == sum(int(row["billNum0"]) for row in tokens)
    assert usage["totals"]["output_tokens"] == sum(int(row["billNum1"]) for row in tokens)
