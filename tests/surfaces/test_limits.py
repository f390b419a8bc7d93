"""Spend limits over gRPC: what counts, what is refused, and when a period begins anew."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE
from tests.support.cases import in_turn
from tests.support.refusals import Refused, refusal, refused
from tests.support.server import WALLET, Api, adjust, consume, grant, post, refund, running
from tests.surfaces.test_holds import Holding

if TYPE_CHECKING:
    from tests.support.setup import Clock


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, and 1000.00 in the wallet."""
    await api.post("given", **grant("1000"))
    return api


@pytest.fixture
def holding(api: Api) -> Holding:
    """Short for what is asked of holds."""
    return Holding(api)


def used(amount: str, key: str) -> dict[str, Any]:
    """A consumption under an API key."""
    usage = pb.Usage(api_key_id=key, quantities=[1])
    return {"consumption": pb.ConsumptionOperation(amount=amount, usage=usage)}


async def put(api: Api, amount: str, period: str = "day", **fields: Any) -> limit_pb.SpendLimit:
    """Set a limit of wal_acme, by an admin."""
    fields = {"wallet_id": WALLET, **fields}
    request = limit_pb.SetSpendLimitRequest(amount=amount, period=period, **fields)
    return await api.wallets.SetSpendLimit(request, metadata=api.admin)


async def listed(api: Api) -> list[limit_pb.SpendLimit]:
    """The limits of wal_acme."""
    request = limit_pb.ListSpendLimitsRequest(wallet_id=WALLET)
    return list((await api.wallets.ListSpendLimits(request, metadata=api.customer)).spend_limits)


async def figures(api: Api) -> list[tuple[str, str, str]]:
    """Spent, held and remaining of each limit."""
    return [(one.spent, one.held, one.remaining) for one in await listed(api)]


async def test_no_more_than_the_limit(api: Api, clock: Clock) -> None:
    """What would pass it is refused, writes nothing and leaves its key free."""
    clock.now = time.parse("2027-07-01T12:00:00Z", field="now")
    made = await put(api, "50", time_zone="Asia/Kathmandu")

    assert made == limit_pb.SpendLimit(
        id=made.id,
        wallet_id=WALLET,
        amount="50.00",
        period="day",
        time_zone="Asia/Kathmandu",
        spent="0.00",
        held="0.00",
        remaining="50.00",
        resets_at="2027-07-01T18:15:00.000Z",
        created_at=time.text(clock.now),
        updated_at=time.text(clock.now),
    )
    await api.post("most", **consume("49.5"))
    assert await refused(api.post("more", **consume("1"))) == Refused(
        "SPEND_LIMIT_EXCEEDED",
        metadata={
            "spend_limit_id": made.id,
            "limit": "50.00",
            "spent": "49.50",
            "held": "0.00",
            "remaining": "0.50",
            "required": "1.00",
            "resets_at": "2027-07-01T18:15:00.000Z",
            "retryable": "true",
        },
    )
    assert await api.found("more") is None
    await api.post("more", **consume("0.5"))
    assert await figures(api) == [("50.00", "0.00", "0.00")]


@pytest.mark.parametrize(
    ("amount", "before", "retryable", "wait"),
    [
        ("2", 300_001, "true", None),
        ("2", 300_000, "true", "300"),
        ("2", 1_001, "true", "2"),
        ("2", 1_000, "true", "1"),
        ("2", 1, "true", "1"),
        ("10", 1_000, "true", "1"),
        ("10.01", 1_000, "false", None),  # more than a whole period has
    ],
)
async def test_when_to_try_again(
    api: Api, clock: Clock, amount: str, before: int, retryable: str, wait: str | None
) -> None:
    """Metadata and header have the seconds until a limit resets, up to 300, else neither has."""
    resets = time.parse("2027-07-02T00:00:00Z", field="now")
    clock.now = resets - before
    await put(api, "10")
    await api.post("spent", **consume("9"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.post("more", **consume(amount))

    told = refusal(caught.value)
    assert told.reason == "SPEND_LIMIT_EXCEEDED"
    assert told.metadata["resets_at"] == "2027-07-02T00:00:00.000Z"
    assert (told.metadata["retryable"], told.metadata.get("retry_after")) == (retryable, wait)
    assert dict(caught.value.trailing_metadata() or ()).get("retry-after") == wait
    clock.now = resets
    if retryable == "true":
        await api.post("more", **consume(amount))
    else:
        assert (await refused(api.post("more", **consume(amount)))).metadata["limit"] == "10.00"


async def test_who_spends_and_who_limits(api: Api) -> None:
    """A limit of a key counts what is consumed under it; of several the tightest is named."""
    await put(api, "30")
    key = await put(api, "20", api_key_id="apk_a")

    await api.post("a", **used("15", "apk_a"))
    await api.post("b", **used("10", "apk_b"))
    assert await figures(api) == [("25.00", "0.00", "5.00"), ("15.00", "0.00", "5.00")]
    await api.post("c", **consume("1"))
    told = await refused(api.post("d", **used("7", "apk_a")))
    assert (told.reason, told.metadata["remaining"]) == ("SPEND_LIMIT_EXCEEDED", "4.00")
    told = await refused(api.post("d", **used("6", "apk_b")))
    assert told.metadata["limit"] == "30.00"
    await put(api, "100")
    told = await refused(api.post("d", **used("6", "apk_a")))
    assert (told.metadata["limit"], told.metadata["spend_limit_id"]) == ("20.00", key.id)
    await api.post("e", **used("70", "apk_b"))


async def test_what_is_no_spending(api: Api) -> None:
    """Adjustments, forced or not, expirations and grants are nothing to a limit."""
    await put(api, "0", "lifetime")

    await api.post("less", **adjust("-10"))
    forced = pb.AdjustmentOperation(amount="-5", force=True)
    await api.wallets.Post(post("forced", adjustment=forced), metadata=api.admin)
    await api.post("more", **grant("1"))
    assert await figures(api) == [("0.00", "0.00", "0.00")]
    told = await refused(api.post("any", **consume("0.000000001")))
    assert (told.reason, told.metadata["retryable"]) == ("SPEND_LIMIT_EXCEEDED", "false")
    assert told.metadata.keys().isdisjoint({"resets_at", "retry_after"})


async def test_what_is_held_counts(holding: Holding, api: Api, clock: Clock) -> None:
    """From when it is made; captured it is spent, given back or over it is free again."""
    await put(api, "10")
    made = await holding.hold("h", "8")

    assert await figures(api) == [("0.00", "8.00", "2.00")]
    told = await refused(holding.hold("too much", "2.01"))
    assert (told.reason, told.metadata["held"]) == ("SPEND_LIMIT_EXCEEDED", "8.00")
    told = await refused(api.post("too much", **consume("2.01")))
    assert told.metadata["required"] == "2.01"

    await holding.capture("part", made.hold.id, amount="3")
    assert await figures(api) == [("3.00", "5.00", "2.00")]
    told = await refused(holding.capture("more", made.hold.id, amount="7.5", allow_more=True))
    assert (told.reason, told.metadata["required"]) == ("SPEND_LIMIT_EXCEEDED", "2.50")
    await holding.capture("more", made.hold.id, amount="7", allow_more=True)
    assert await figures(api) == [("10.00", "0.00", "0.00")]

    await put(api, "20")
    released = await holding.hold("r", "6")
    await holding.release("given back", released.hold.id)
    await holding.hold("o", "7")
    assert await figures(api) == [("10.00", "7.00", "3.00")]
    clock.advance(10 * MINUTE)
    assert await figures(api) == [("10.00", "0.00", "10.00")]
    await api.post("all of it", **consume("10"))


async def test_a_capture_of_what_was_held(holding: Holding, api: Api) -> None:
    """What is held can be captured whatever the limit has become; under another key it is new."""
    await put(api, "10")
    made = await holding.hold("h", "8", usage=pb.Usage(api_key_id="apk_a", quantities=[1]))
    await put(api, "1")
    await put(api, "4", api_key_id="apk_b")
    other = pb.Usage(api_key_id="apk_b", quantities=[1])

    told = await refused(holding.capture("c", made.hold.id, usage=other))
    assert (told.metadata["limit"], told.metadata["required"]) == ("4.00", "8.00")
    await holding.capture("c", made.hold.id, amount="4", usage=other)
    assert await figures(api) == [("4.00", "4.00", "0.00"), ("4.00", "0.00", "0.00")]
    await holding.capture("rest", made.hold.id)
    assert await figures(api) == [("8.00", "0.00", "0.00"), ("4.00", "0.00", "0.00")]


async def test_a_refund_gives_back_where_it_was_spent(api: Api, clock: Clock) -> None:
    """It lowers what was spent in the period of the consumption; of a past one it is nothing."""
    await put(api, "10")
    first = await api.post("first", **consume("10"))
    await api.post("half", **refund(first.posting_id, amount="4"))
    assert await figures(api) == [("6.00", "0.00", "4.00")]
    await api.post("again", **consume("4"))

    clock.advance(DAY)
    await api.post("next day", **consume("3"))
    await api.post("rest", **refund(first.posting_id))
    assert await figures(api) == [("3.00", "0.00", "7.00")]


async def test_the_time_it_is_written_counts(api: Api, clock: Clock) -> None:
    """Who dates a consumption back spends of today's limit."""
    await put(api, "10")
    yesterday = time.text(clock.now - DAY)

    await api.post("back", effective_at=yesterday, **consume("10"))
    told = await refused(api.post("more", effective_at=yesterday, **consume("1")))
    assert told.reason == "SPEND_LIMIT_EXCEEDED"


async def test_what_came_before_does_not_count(api: Api) -> None:
    """A limit begins with the wallet's next posting; its amount can change without a new start."""
    before = await api.post("before", **consume("5"))
    made = await put(api, "10")
    await api.post("refund", **refund(before.posting_id))
    await api.post("after", **consume("7"))

    assert await figures(api) == [("7.00", "0.00", "3.00")]
    changed = await put(api, "8")
    assert (changed.id, changed.spent, changed.remaining) == (made.id, "7.00", "1.00")
    lowered = await put(api, "5")
    assert (lowered.spent, lowered.remaining) == ("7.00", "0.00")


#: Zone, a moment within, when the period ends, and how long it is.
PERIODS = [
    ("day", "Europe/Berlin", "2027-03-28T12:00:00Z", "2027-03-28T22:00:00.000Z", 23 * HOUR),
    ("day", "Europe/Berlin", "2027-10-31T00:30:00Z", "2027-10-31T23:00:00.000Z", 25 * HOUR),
    ("day", "Australia/Lord_Howe", "2027-04-04T00:00:00Z", "2027-04-04T13:30:00.000Z", 24.5 * HOUR),
    ("day", "Asia/Kathmandu", "2027-02-03T18:14:59Z", "2027-02-03T18:15:00.000Z", 24 * HOUR),
    ("day", "America/Santiago", "2027-09-05T12:00:00Z", "2027-09-06T03:00:00.000Z", 23 * HOUR),
    ("week", "America/New_York", "2027-03-14T12:00:00Z", "2027-03-15T04:00:00.000Z", 167 * HOUR),
    ("month", "Asia/Kolkata", "2027-02-10T00:00:00Z", "2027-02-28T18:30:00.000Z", 28 * DAY),
    ("month", None, "2028-02-29T23:59:59.999Z", "2028-03-01T00:00:00.000Z", 29 * DAY),
]


@pytest.mark.parametrize(("period", "zone", "moment", "end", "length"), PERIODS)
async def test_periods_of_a_calendar(
    api: Api, clock: Clock, period: str, zone: str | None, moment: str, end: str, length: float
) -> None:
    """Days of 23 and 25 hours, half hours, weeks from Monday, months: to the millisecond."""
    ends = time.parse(end, field="end")
    clock.now = ends - int(length)
    made = await put(api, "10", period, time_zone=zone)
    assert made.resets_at == end
    await api.post("first", **consume("4"))
    clock.now = time.parse(moment, field="moment")
    await api.post("within", **consume("5"))

    clock.now = ends - 1
    told = await refused(api.post("last", **consume("2")))
    assert (told.metadata["spent"], told.metadata["resets_at"]) == ("9.00", end)
    clock.now = ends
    assert await figures(api) == [("0.00", "0.00", "10.00")]
    await api.post("last", **consume("10"))


async def test_rolling_hours(api: Api, clock: Clock) -> None:
    """What was spent counts for as many hours, and until the minute it lies in is out of them."""
    clock.now = time.parse("2027-05-01T12:00:30Z", field="now")
    made = await put(api, "10", "rolling", hours=1)
    assert (made.hours, made.resets_at) == (1, "")
    await api.post("a", **consume("4"))
    clock.advance(20 * MINUTE)
    await api.post("b", **consume("6"))

    clock.now = time.parse("2027-05-01T13:00:59.999Z", field="now")
    told = await refused(api.post("c", **consume("4")))
    assert told.metadata["resets_at"] == "2027-05-01T13:01:00.000Z"
    clock.advance(1)
    assert [one.resets_at for one in await listed(api)] == ["2027-05-01T13:21:00.000Z"]
    await api.post("c", **consume("4"))
    assert await figures(api) == [("10.00", "0.00", "0.00")]


async def test_the_same_again_changes_nothing(api: Api, clock: Clock) -> None:
    """To set a limit that is there answers it as it is."""
    made = await put(api, "10", api_key_id="apk_a")
    clock.advance(MINUTE)

    assert await put(api, "10.00", api_key_id="apk_a", time_zone="UTC") == made
    assert (await put(api, "11", api_key_id="apk_a")).updated_at == time.text(clock.now)
    assert len(await listed(api)) == 1


async def test_a_limit_is_deleted(api: Api) -> None:
    """It is answered as it was, and no more; its id is not used again."""
    made = await put(api, "1")
    request = limit_pb.DeleteSpendLimitRequest(wallet_id=WALLET, spend_limit_id=made.id)

    gone = await api.wallets.DeleteSpendLimit(request, metadata=api.admin)
    assert gone == made
    await api.post("more", **consume("2"))
    assert await refused(api.wallets.DeleteSpendLimit(request, metadata=api.admin)) == Refused(
        "NOT_FOUND", "spend_limit_id"
    )
    assert (await put(api, "1")).id != made.id


@in_turn(
    "fields, refusal",
    [
        ({"amount": "-1"}, Refused("INVALID_FIELD", "amount")),
        ({"amount": ""}, Refused("MISSING_FIELD", "amount")),
        ({"amount": "0.0000000001"}, Refused("INVALID_FIELD", "amount")),
        ({"period": "year"}, Refused("INVALID_FIELD", "period")),
        ({"period": ""}, Refused("MISSING_FIELD", "period")),
        ({"time_zone": "Mars/Olympus"}, Refused("INVALID_FIELD", "time_zone")),
        ({"period": "lifetime", "time_zone": "UTC"}, Refused("INVALID_FIELD", "time_zone")),
        ({"period": "rolling"}, Refused("MISSING_FIELD", "hours")),
        ({"period": "rolling", "hours": 0}, Refused("INVALID_FIELD", "hours")),
        ({"period": "rolling", "hours": 745}, Refused("INVALID_FIELD", "hours")),
        ({"hours": 1}, Refused("INVALID_FIELD", "hours")),
        ({"api_key_id": ""}, Refused("INVALID_FIELD", "api_key_id")),
        ({"wallet_id": "wal_none"}, Refused("NOT_FOUND", "wallet_id")),
    ],
)
async def test_bad_limits(api: Api, fields: dict[str, Any], refusal: Refused) -> None:
    """Each names its field, and nothing is set."""
    assert await refused(put(api, **{"amount": "1", **fields})) == refusal
    assert await listed(api) == []


async def test_a_wallet_has_twenty_at_most(api: Api) -> None:
    """One more is refused; those that are there can still be changed."""
    for hours in range(1, 21):
        await put(api, "1", "rolling", hours=hours)

    assert (await refused(put(api, "1"))).reason == "OUT_OF_RANGE"
    assert (await put(api, "2", "rolling", hours=20)).amount == "2.00"


async def test_whose_limits(api: Api) -> None:
    """A customer sees its own; only an admin sets them; a closed wallet keeps what it has."""
    await api.local.new_wallet("wal_other", "cus_other")
    other = limit_pb.ListSpendLimitsRequest(wallet_id="wal_other")
    assert (
        await refused(api.wallets.ListSpendLimits(other, metadata=api.customer))
    ).reason == "NOT_FOUND"
    one = limit_pb.SetSpendLimitRequest(wallet_id="wal_other", amount="1", period="day")
    assert (
        await refused(api.wallets.SetSpendLimit(one, metadata=api.service))
    ).reason == "SCOPE_DENIED"

    closed = pb.UpdateWalletRequest(wallet_id="wal_other", status="closed")
    await api.wallets.UpdateWallet(closed, metadata=api.admin)
    assert (
        await refused(api.wallets.SetSpendLimit(one, metadata=api.admin))
    ).reason == "WALLET_CLOSED"


async def test_validate_only_counts_nothing(api: Api) -> None:
    """It is refused as the posting would be, and takes nothing of the limit."""
    await put(api, "10")

    await api.post("try", validate_only=True, **consume("10"))
    told = await refused(api.post("try", validate_only=True, **consume("10.01")))
    assert told.reason == "SPEND_LIMIT_EXCEEDED"
    assert await figures(api) == [("0.00", "0.00", "10.00")]


async def burst(servers: list[Api]) -> int:
    """200 calls of 1.00 at the same time, spread over the servers; how many were accepted."""
    calls = [
        servers[number % len(servers)].wallets.Post(
            post(f"burst {number}", **consume("1")), metadata=servers[0].service
        )
        for number in range(200)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [refusal(one) for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert {one.reason for one in refusals} == {"SPEND_LIMIT_EXCEEDED"}
    return len(answers) - len(refusals)


async def test_a_burst_cannot_pass_it(api: Api) -> None:
    """Of 200 calls of 1.00 at once exactly 50 fit a limit of 50.00."""
    await put(api, "50")

    assert await burst([api]) == 50
    assert await figures(api) == [("50.00", "0.00", "0.00")]


@pytest.mark.only("postgresql")
async def test_a_burst_at_two_servers(api: Api, database_url: str, clock: Clock) -> None:
    """Each knows the wallet and its limits, and sees what the other has spent."""
    async with running(database_url, clock) as second:
        other = Api(second, admin=api.admin, service=api.service, customer=api.customer)
        await put(api, "50")
        await other.post("known there", **consume("1"))
        await put(other, "51")

        assert await burst([api, other]) == 50
        assert await figures(api) == await figures(other) == [("51.00", "0.00", "0.00")]


@pytest.mark.only("postgresql")
async def test_a_limit_that_another_server_has_set(
    api: Api, database_url: str, clock: Clock
) -> None:
    """Made, changed or deleted there, it holds here for the next posting, and stays as it is."""
    async with running(database_url, clock) as second:
        other = Api(second, admin=api.admin, service=api.service, customer=api.customer)
        await api.post("known here", **consume("1"))
        made = await put(other, "5")
        told = await refused(api.post("more", **consume("6")))
        assert told.metadata["limit"] == "5.00"

        await put(other, "7")
        await api.post("more", **consume("6"))
        assert await figures(other) == [("6.00", "0.00", "1.00")]
        gone = limit_pb.DeleteSpendLimitRequest(wallet_id=WALLET, spend_limit_id=made.id)
        await other.wallets.DeleteSpendLimit(gone, metadata=api.admin)
        await api.post("rest", **consume("100"))
        assert await listed(api) == []
