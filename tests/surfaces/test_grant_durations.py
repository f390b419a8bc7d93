"""Grants that last for a duration, over gRPC: when they end, what a replay is, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR
from tests.support.refusals import refused
from tests.support.server import WALLET, grant

if TYPE_CHECKING:
    from tests.support.server import Api
    from tests.support.setup import Clock


async def given_until(api: Api, key: str, **fields: Any) -> str:
    """When a new grant ends."""
    (row,) = (await api.post(key, **grant("1", **fields))).transactions
    request = pb.GetBalanceRequest(wallet_id=WALLET)
    balance = await api.wallets.GetBalance(request, metadata=api.customer)
    (found,) = [one for one in balance.by_grant if one.credit_grant_id == row.credit_grant_id]
    return found.expires_at


async def test_a_grant_lasts_from_when_it_begins(api: Api, clock: Clock) -> None:
    """That is its effective_at, the posting's, or the moment of the commit."""
    later = time.text(clock.now + DAY)
    assert await given_until(api, "now", expires_after="P1D") == later
    assert await given_until(
        api, "then", effective_at="2027-01-31T23:30:00+01:00", expires_after="P1M",
        time_zone="Europe/Berlin",
    ) == "2027-02-28T22:30:00.000Z"  # fmt: skip
    hour_ago = time.text(clock.now - HOUR)
    await api.post("dated", effective_at=hour_ago, **grant("1", expires_after="PT2H"))
    clock.advance(HOUR - 1)
    assert (await api.wallet_now()).balance == "3.00"
    clock.advance(1)
    assert (await api.wallet_now()).balance == "2.00"


async def test_a_replay_of_the_same_text(api: Api, clock: Clock) -> None:
    """The first answer, however much later; another text is another request."""
    first = await api.post("key", **grant("1", expires_after="P1D"))
    clock.advance(HOUR)
    again = await api.post("key", **grant("1", expires_after="P1D", time_zone="UTC"))
    assert (again.replayed, again.posting_id) == (True, first.posting_id)

    for fields, differ in (
        ({"expires_after": "PT24H"}, "grant.expires_after"),
        ({"expires_after": "P1D", "time_zone": "Europe/Berlin"}, "grant.time_zone"),
        ({"expires_at": time.text(clock.now + 23 * HOUR)}, "grant.expires_after,grant.expires_at"),
    ):
        found = await refused(api.post("key", **grant("1", **fields)))
        assert (found.reason, found.metadata) == ("IDEMPOTENCY_KEY_REUSED", {"fields": differ})


async def test_what_is_refused(api: Api, clock: Clock) -> None:
    """A clear word of the field that is wrong."""

    async def bad(**fields: Any) -> str | None:
        found = await refused(api.post("bad", **grant("1", **fields)))
        assert found.reason == "INVALID_FIELD"
        return found.param

    end = time.text(clock.now + DAY)
    assert await bad(expires_after="P1M", expires_at=end) == "grant.expires_after"
    assert await bad(expires_after="1 month") == "grant.expires_after"
    assert await bad(expires_after="P9000Y") == "grant.expires_after"
    assert await bad(expires_after="P1M", time_zone="Mars/Olympus") == "grant.time_zone"
    assert await bad(expires_at=end, time_zone="UTC") == "grant.time_zone"
    begun = time.text(clock.now - 2 * DAY)
    assert await bad(expires_after="P1D", effective_at=begun) == "grant.expires_after"
