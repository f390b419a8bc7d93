"""The overview: the figures are those of the rows, of one mode, and read at most once a minute."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from credit.v1 import operator_service_pb2 as pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from credit.v1.operator_service_pb2_grpc import OperatorServiceStub

from creditledger.domain import clock as time
from creditledger.store.whole_ledger import overview
from tests.support.cases import in_turn
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, adjust, consume, grant, serve
from tests.support.setup import START, findings
from tests.support.statements_recorded import recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from creditledger.store import Store
    from tests.support.refusals import Metadata
    from tests.support.server import Api
    from tests.support.setup import Clock


@pytest.fixture
async def api(database_url: str, clock: Clock) -> AsyncIterator[Api]:
    """A server with an empty wallet."""
    async with serve(database_url, clock) as served:
        yield served


async def seen(api: Api, metadata: Metadata | None = None) -> pb.OverviewResponse:
    """The overview of a key, else of a service's."""
    stub = OperatorServiceStub(api.channel)
    return await stub.Overview(pb.OverviewRequest(), metadata=metadata or api.service)


async def test_figures_are_those_of_the_rows(api: Api, clock: Clock, database_url: str) -> None:
    """Liability by category, what moved since midnight, holds, overdraft; each mode by itself."""
    await api.post("yesterday", **grant("100"))
    await api.post("spent yesterday", **consume("30"))
    clock.advance(time.DAY)
    soon = time.text(clock.now + 6 * time.DAY)
    await api.post("g", **grant("10.5"))
    await api.post("p", **grant("3", category="promotional", expires_at=soon))
    await api.post("c", **consume("4.25"))
    await api.post("d", **adjust("-1"))
    await api.wallets.Hold(
        wallets_pb.HoldRequest(wallet_id=WALLET, idempotency_key="h", amount="2"),
        metadata=api.service,
    )
    await api.local.new_wallet("wal_other", "cus_other", overdraft_limit="5")
    await api.post("o", "wal_other", **consume("1.25"))
    await refused(api.post("r", **consume("4000")))
    test = await api.local.key("service", livemode=False)

    found = await seen(api)

    assert list(found.currencies) == [
        pb.CurrencyOverview(
            currency_id="USD",
            wallets=2,
            liability="78.25",
            by_category=[
                pb.CategoryLiability(category="paid", liability="78.25", expiring="0.00"),
                pb.CategoryLiability(category="promotional", liability="0.00", expiring="0.00"),
            ],
            expiring="0.00",
            in_today="13.50",
            out_today="6.50",
            open_holds=1,
            held="2.00",
            overdraft="1.25",
        )
    ]
    assert (found.livemode, found.as_of) == (True, time.text(START + time.DAY))
    assert found.customers == 2
    assert found.server_started_at == time.text(START)
    told = {one.reason: (one.calls, one.postings) for one in found.refusals_since_start}
    assert told == {"INSUFFICIENT_CREDIT": (1, 1)}
    assert found.webhooks == pb.WebhookBacklog(due=0)
    assert not found.HasField("last_verification")
    assert list((await seen(api, test)).currencies) == []
    assert findings(database_url) == []


async def test_what_moved_is_what_the_rows_say(api: Api, clock: Clock) -> None:
    """Wallets with no row, some or all of today's rows, at the first and last moment of a day."""
    midnight = START - START % time.DAY + time.DAY
    for number in range(6):
        await api.local.new_wallet(f"wal_{number}", f"cus_{number}")
    came = went = Decimal(0)
    for moment in (midnight - 2, midnight - 1, midnight, midnight + 1):
        clock.now = moment
        for number in range(1, 6):
            if (moment - midnight) % number == 0:
                await api.post(f"g{moment}", f"wal_{number}", **grant(f"{number}.5"))
                await api.post(f"c{moment}", f"wal_{number}", **consume(f"0.{number}"))
                if moment >= midnight:
                    came += Decimal(f"{number}.5")
                    went += Decimal(f"0.{number}")

    (usd,) = (await seen(api)).currencies

    assert (Decimal(usd.in_today), Decimal(usd.out_today)) == (came, went)
    assert came > 0


async def test_a_server_reads_at_most_once_a_minute(api: Api, clock: Clock) -> None:
    """Many calls share one read; as_of says of when it is; refusals are of now."""
    with recorded() as said:
        await asyncio.gather(*(seen(api) for _ in range(20)))
        read = sum("WITH RECURSIVE search" in one.text for one in said.reading)
        await api.post("g", **grant("5"))
        clock.advance(time.MINUTE - 1)
        await refused(api.post("r", **consume("4000")))
        before = await seen(api)
        clock.advance(1)
        after = await seen(api)
        read_after = sum("WITH RECURSIVE search" in one.text for one in said.reading)

    assert (read, read_after) == (1, 2)
    assert (before.as_of, before.currencies[0].liability) == (time.text(START), "0.00")
    assert [one.reason for one in before.refusals_since_start] == ["INSUFFICIENT_CREDIT"]
    assert after.as_of == time.text(START + time.MINUTE)
    assert after.currencies[0].liability == "5.00"


async def test_the_last_verification_is_shown(api: Api, clock: Clock) -> None:
    """At once on the server that writes it down; the newest replaces the one before."""
    stub = OperatorServiceStub(api.channel)
    await seen(api)
    for failed in (["balance", "grant_sum"], []):
        request = pb.RecordVerificationRequest(failed_checks=failed)
        clock.advance(5)
        written = await stub.RecordVerification(request, metadata=api.admin)
        expected = pb.LastVerification(finished_at=time.text(clock.now), failed_checks=failed)
        assert written == (await seen(api)).last_verification == expected


@in_turn("names", [["x" * 65], ["a b"], [""], ["a"] * 101])
async def test_names_of_checks_are_bounded(api: Api, names: list[str]) -> None:
    """A hundred names of 64 characters at most."""
    request = pb.RecordVerificationRequest(failed_checks=names)
    call = OperatorServiceStub(api.channel).RecordVerification(request, metadata=api.admin)
    assert await refused(call) == Refused("INVALID_FIELD", "failed_checks")


async def test_an_overview_is_a_fixed_number_of_statements(store: Store, clock: Clock) -> None:
    """However many wallets there are, and what was posted today is not read."""
    with recorded() as said:
        await store.read(lambda connection: overview(connection, clock.now))

    asked = [one.text for one in said.reading if "SELECT" in one.text.upper()]
    assert len(asked) == 12
