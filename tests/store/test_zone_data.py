"""The data of a time zone changes: what has begun or was closed by the old data stays as it was."""

from __future__ import annotations

import zoneinfo
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import statement_service_pb2 as statement_pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub

from creditledger.domain import clock as time
from creditledger.domain import spend_limits
from creditledger.domain.clock import DAY, HOUR
from creditledger.store import schema
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, consume, grant, running, serve
from tests.support.setup import change, findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.server import Api
    from tests.support.setup import Clock

ZONE = "Asia/Almaty"


@pytest.fixture
def set_ahead(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Says how many hours Almaty is ahead of UTC: as after an update, and a restart with it."""
    folder = tmp_path / "zoneinfo"
    (folder / "Asia").mkdir(parents=True)
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(to=[str(folder), *before])

    def forget() -> None:
        zoneinfo.ZoneInfo.clear_cache()
        spend_limits._bucket.cache_clear()

    def ahead(hours: int) -> None:
        data = files("tzdata.zoneinfo").joinpath("Etc", f"GMT-{hours}").read_bytes()
        (folder / ZONE).write_bytes(data)
        forget()

    yield ahead
    zoneinfo.reset_tzpath(to=before)
    forget()


async def put(api: Api, time_zone: str = ZONE) -> limit_pb.SpendLimit:
    """A limit of 100 a month."""
    request = limit_pb.SetSpendLimitRequest(
        wallet_id=WALLET, amount="100", period="month", time_zone=time_zone
    )
    return await api.wallets.SetSpendLimit(request, metadata=api.admin)


@pytest.mark.parametrize("hours", [5, 7])
async def test_a_month_is_spent_once(
    database_url: str, clock: Clock, set_ahead: Callable[[int], None], hours: int
) -> None:
    """A limit's period that has begun keeps what was spent in it; the next one begins after it."""
    set_ahead(6)
    clock.now = time.parse("2027-03-01T00:30:00+06:00", field="now")
    async with serve(database_url, clock) as api:
        await api.post("given", **grant("1000"))
        await put(api)
        await api.post("all", **consume("100"))
        set_ahead(hours)

        for moment in ("2027-03-01T02:00:00+06:00", "2027-03-31T22:30:00+06:00"):
            clock.now = time.parse(moment, field="now")
            refusal = await refused(api.post(moment, **consume("1")))
            assert refusal.reason == "SPEND_LIMIT_EXCEEDED"
        clock.now = time.parse("2027-04-01T01:00:00+06:00", field="now")

        await api.post("april", **consume("100"))
        assert (await refused(api.post("more", **consume("1")))).reason == "SPEND_LIMIT_EXCEEDED"
    assert findings(database_url) == []


async def listed(api: Api) -> limit_pb.SpendLimit:
    """The wallet's limit."""
    request = limit_pb.ListSpendLimitsRequest(wallet_id=WALLET)
    (limit,) = (await api.wallets.ListSpendLimits(request, metadata=api.service)).spend_limits
    return limit


@pytest.mark.parametrize("hours", [5, 7])
async def test_a_month_ends_when_it_was_to_end(
    database_url: str, clock: Clock, set_ahead: Callable[[int], None], hours: int
) -> None:
    """A running period keeps both its instants; the next begins there, and ends by the new data."""
    set_ahead(6)
    clock.now = time.parse("2027-03-10T00:00:00Z", field="now")
    ends, next_ends = "2027-03-31T18:00:00.000Z", f"2027-04-30T{24 - hours}:00:00.000Z"
    async with serve(database_url, clock) as api:
        await api.post("given", **grant("1000"))
        made = await put(api)
        await api.post("all", **consume("100"))
        set_ahead(hours)

        assert made.resets_at == (await listed(api)).resets_at == ends
        clock.now = time.parse(ends, field="now") - 1
        refusal = await refused(api.post("march", **consume("1")))
        assert refusal.metadata["resets_at"] == ends
        clock.advance(1)
        assert (await listed(api)).spent == "0.00"
        await api.post("april", **consume("100"))
        # Whatever the data calls April begins or began within the hour: it is the same period.
        for minutes in (0, 30, 90):
            clock.advance(minutes * 60_000)
            refusal = await refused(api.post(f"after {minutes}", **consume("1")))
            assert refusal.metadata["resets_at"] == next_ends
        set_ahead(6)
        assert (await listed(api)).resets_at == next_ends
        clock.now = time.parse(next_ends, field="now")
        await api.post("may", **consume("100"))
        assert (await listed(api)).resets_at == "2027-05-31T18:00:00.000Z"
    assert findings(database_url) == []


@pytest.mark.parametrize("hours", [5, 7])
async def test_months_follow_one_another(
    database_url: str, clock: Clock, set_ahead: Callable[[int], None], hours: int
) -> None:
    """A closed month is the same one as before, the next begins where it ended, verify agrees."""
    set_ahead(6)
    clock.now = time.parse("2027-02-10T00:00:00Z", field="now")
    async with serve(database_url, clock) as api:
        stub = StatementServiceStub(api.channel)

        async def close(month: str) -> statement_pb.Statement:
            request = statement_pb.StatementServiceCloseRequest(
                wallet_id=WALLET, month=month, time_zone=ZONE
            )
            return await stub.Close(request, metadata=api.service)

        await api.post("given", **grant("10"))
        clock.advance(60 * DAY)
        first = await close("2027-02")
        set_ahead(hours)

        again, following = await close("2027-02"), await close("2027-03")

        assert (again.number, again.sha256) == (first.number, first.sha256)
        ended, begun = (time.parse(one, field="x") for one in (first.end, following.start))
        assert begun == ended
        until = time.parse(f"2027-04-01T00:00:00+0{hours}:00", field="x")
        assert time.parse(following.end, field="x") == until
        request = statement_pb.StatementServiceCloseRequest(
            wallet_id=WALLET, start=time.text(until + HOUR), end=time.text(until + 2 * HOUR)
        )
        assert (
            await refused(stub.Close(request, metadata=api.service))
        ).reason == "PERIOD_NOT_NEXT"
    assert findings(database_url) == []


async def test_what_a_system_is_set_to_is_no_zone(
    new_database: Callable[[], str], clock: Clock
) -> None:
    """`localtime` and `Factory` are refused; a stored one is read as UTC and named by verify."""
    url = new_database()  # not verified afterwards: there is something to be found
    async with serve(url, clock) as api:
        for name in ("localtime", "Factory"):
            assert await refused(put(api, name)) == Refused("INVALID_FIELD", "time_zone")
        await put(api, "UTC")
        stored = schema.spend_limits.update().values(time_zone="Factory")
    change(url, lambda connection: connection.execute(stored))
    async with running(url, clock) as again:
        request = limit_pb.ListSpendLimitsRequest(wallet_id=WALLET)
        (limit,) = (await again.local.wallets.ListSpendLimits(request)).spend_limits
        assert limit.resets_at == "2026-10-01T00:00:00.000Z"
    assert [one.check for one in findings(url)] == ["limit_zone"]
