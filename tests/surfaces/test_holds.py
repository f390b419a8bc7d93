"""Holds over gRPC: credit set aside, captured, released, extended, and over by its deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, consume, grant, refund, serve
from tests.support.setup import findings

if TYPE_CHECKING:
    from tests.support.server import Api
    from tests.support.setup import Clock


class Holding:
    """The holds of wal_acme, asked by a service."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def hold(self, key: str, amount: str, **fields: Any) -> pb.HoldResponse:
        """Set credit aside."""
        fields = {"wallet_id": WALLET, **fields}
        request = pb.HoldRequest(idempotency_key=key, amount=amount, **fields)
        return await self.api.wallets.Hold(request, metadata=self.api.service)

    async def capture(self, key: str, hold_id: str, **fields: Any) -> pb.CaptureHoldResponse:
        """Consume of it."""
        request = pb.CaptureHoldRequest(idempotency_key=key, hold_id=hold_id, **fields)
        return await self.api.wallets.CaptureHold(request, metadata=self.api.service)

    async def release(self, key: str, hold_id: str) -> pb.HoldResponse:
        """Give it back."""
        request = pb.ReleaseHoldRequest(idempotency_key=key, hold_id=hold_id)
        return await self.api.wallets.ReleaseHold(request, metadata=self.api.service)

    async def extend(self, key: str, hold_id: str, **fields: Any) -> pb.HoldResponse:
        """Let it last longer."""
        request = pb.ExtendHoldRequest(idempotency_key=key, hold_id=hold_id, **fields)
        return await self.api.wallets.ExtendHold(request, metadata=self.api.service)

    async def get(self, hold_id: str) -> pb.HeldCredit:
        """The hold."""
        request = pb.GetHoldRequest(hold_id=hold_id)
        return await self.api.wallets.GetHold(request, metadata=self.api.service)

    async def figures(self) -> tuple[str, str, str]:
        """The wallet's balance, held and available."""
        wallet = await self.api.wallet_now()
        return wallet.balance, wallet.held, wallet.available


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, and 10.00 in the wallet."""
    await api.post("given", **grant("10"))
    return api


@pytest.fixture
def holding(api: Api) -> Holding:
    """Short for what is asked of holds."""
    return Holding(api)


def amounts(posting: pb.Posting) -> list[str]:
    """What the posting's rows moved."""
    return [one.amount for one in posting.transactions]


async def test_held_credit_leaves_available(holding: Holding, api: Api, clock: Clock) -> None:
    """It stays in the balance, is spent by nobody else, and ten minutes later it is free."""
    made = await holding.hold("hold", "6")

    assert made.hold == pb.HeldCredit(
        id=made.hold.id,
        wallet_id=WALLET,
        amount="6.00",
        captured="0.00",
        held="6.00",
        status="open",
        deadline=time.text(clock.now + 10 * MINUTE),
        created_at=time.text(clock.now),
    )
    assert not made.replayed
    assert made.wallet.available == "4.00"
    assert await holding.figures() == ("10.00", "6.00", "4.00")
    assert await refused(api.post("too much", **consume("4.01"))) == Refused(
        "INSUFFICIENT_CREDIT",
        metadata={"required": "4.01", "available": "4.00", "currency": "USD"},
    )
    await api.post("as much", **consume("4"))

    clock.advance(10 * MINUTE - 1)
    assert await holding.figures() == ("6.00", "6.00", "0.00")
    clock.advance(1)
    assert await holding.figures() == ("6.00", "0.00", "6.00")
    over = await holding.get(made.hold.id)
    assert (over.status, over.held, over.ended_at) == ("expired", "0.00", over.deadline)
    await api.post("all of it", **consume("6"))


async def test_captures(holding: Holding, api: Api) -> None:
    """Parts are consumptions of the hold's meter; the last one gives back the rest."""
    await api.local.registry.CreateMeter(
        registry_pb.CreateMeterRequest(id="mtr_t", name="T", event_name="t", unit="token")
    )
    usage = pb.Usage(product_id="chat", quantities=[100, 20])
    made = await holding.hold("hold", "6", meter_id="mtr_t", meter_event_id="evt_1", usage=usage)
    hold_id = made.hold.id

    first = await holding.capture("first", hold_id, amount="2")
    assert amounts(first.posting) == ["-2.00"]
    assert first.posting.hold_id == hold_id
    (row,) = first.posting.transactions
    assert (row.kind, row.type, row.meter_id, row.meter_event_id) == (
        *("usage", "consumption"),
        *("mtr_t", "evt_1"),
    )
    assert (first.hold.captured, first.hold.held, first.hold.status) == ("2.00", "4.00", "open")
    assert await holding.figures() == ("8.00", "4.00", "4.00")

    last = await holding.capture("last", hold_id, amount="1", final=True)
    assert amounts(last.posting) == ["-1.00"]
    assert (last.hold.captured, last.hold.held, last.hold.status) == ("3.00", "0.00", "captured")
    assert await holding.figures() == ("7.00", "0.00", "7.00")
    assert await refused(holding.capture("more", hold_id)) == Refused(
        "HOLD_ENDED", metadata={"status": "captured", "ended_at": last.hold.ended_at}
    )
    # What the hold says was used counts once.
    wanted = list_pb.CreditTransactionServiceSummaryRequest(meter_id="mtr_t")
    summary = await api.transactions.Summary(wanted, metadata=api.service)
    assert (summary.total_quantity, summary.transaction_count) == ("120", 2)
    returned = await api.post("refund", **refund(first.posting.posting_id))
    assert amounts(returned) == ["2.00"]


async def test_a_capture_of_everything_ends_the_hold(holding: Holding) -> None:
    """No amount means all that is held."""
    made = await holding.hold("hold", "6")
    taken = await holding.capture("all", made.hold.id)

    assert amounts(taken.posting) == ["-6.00"]
    assert (taken.hold.status, taken.hold.held) == ("captured", "0.00")
    assert await holding.figures() == ("4.00", "0.00", "4.00")


async def test_a_final_capture_of_nothing(holding: Holding, api: Api, clock: Clock) -> None:
    """The hold ends as released: no row is written, and no quantity of its usage counts."""
    expires_at = time.text(clock.now + HOUR)
    await api.post("short", **grant("5", priority=1, expires_at=expires_at))
    usage = pb.Usage(product_id="chat", quantities=[100, 20])
    made = await holding.hold("hold", "6", ttl_seconds=7_200, usage=usage)
    clock.advance(HOUR)
    nothing: dict[str, Any] = {"amount": "0.00", "final": True, "usage": usage}
    ended = await holding.capture("end", made.hold.id, **nothing)

    assert amounts(ended.posting) == []
    assert ended.posting.hold_id == made.hold.id
    assert (ended.hold.status, ended.hold.captured, ended.hold.held) == ("released", "0.00", "0.00")
    assert ended.hold.ended_at == time.text(clock.now)
    # What was held of the grant that ended meanwhile expires, as with a release.
    assert await holding.figures() == ("10.00", "0.00", "10.00")
    assert [(one.type, one.amount) for one in await rows_of(api) if one.amount[0] == "-"] == [
        ("expiration", "-5.00")
    ]
    wanted = list_pb.CreditTransactionServiceSummaryRequest(customer_id="cus_acme")
    summary = await api.transactions.Summary(wanted, metadata=api.service)
    assert (summary.total_quantity, summary.transaction_count) == ("0", 0)

    again = await holding.capture("end", made.hold.id, **nothing | {"amount": "0"})
    assert again.posting.replayed
    assert again.hold == ended.hold
    assert await api.found("end") == again.posting
    other = holding.capture("end", made.hold.id, amount="1", final=True)
    assert (await refused(other)).metadata[
        "fields"
    ] == "amount,usage,usage.product_id,usage.quantities"
    assert await refused(holding.capture("more", made.hold.id)) == Refused(
        "HOLD_ENDED", metadata={"status": "released", "ended_at": ended.hold.ended_at}
    )
    assert await refused(api.post("refund", **refund(ended.posting.posting_id))) == Refused(
        "NOT_REFUNDABLE", "refund.posting_id"
    )


async def test_a_final_capture_of_nothing_after_others(holding: Holding, api: Api) -> None:
    """Earlier captures stay with their quantities, and the rest of the hold is given back."""
    made = await holding.hold("hold", "6", usage=pb.Usage(quantities=[7]))
    await holding.capture("part", made.hold.id, amount="1")
    ended = await holding.capture("end", made.hold.id, amount="0", final=True)

    assert (ended.hold.status, ended.hold.captured) == ("released", "1.00")
    assert await holding.figures() == ("9.00", "0.00", "9.00")
    wanted = list_pb.CreditTransactionServiceSummaryRequest(customer_id="cus_acme")
    summary = await api.transactions.Summary(wanted, metadata=api.service)
    assert (summary.total_quantity, summary.transaction_count) == ("7", 1)


async def test_a_hold_need_not_know_quantities(holding: Holding, api: Api) -> None:
    """A hold's usage may lack quantities; captures with a usage count their own."""
    usage = pb.Usage(product_id="chat", api_key_id="key", base_prices=[3, 4], discount_prices=[2])
    made = await holding.hold("hold", "6", usage=usage)
    plain = await holding.capture("plain", made.hold.id, amount="1")
    counted = pb.Usage(product_id="chat", quantities=[5, 6])
    await holding.capture("counted", made.hold.id, amount="2", usage=counted, final=True)

    assert plain.hold.captured == "1.00"
    wanted = list_pb.CreditTransactionServiceSummaryRequest(customer_id="cus_acme")
    summary = await api.transactions.Summary(wanted, metadata=api.service)
    assert (summary.total_quantity, summary.transaction_count) == ("11", 2)
    assert (await holding.hold("hold", "6", usage=usage)).replayed
    prices = pb.Usage(product_id="chat", base_prices=[3, 4])
    other = await refused(holding.hold("hold", "6", usage=prices))
    assert other.metadata["fields"] == "usage.api_key_id,usage.discount_prices"
    too_many = holding.hold("many", "1", usage=pb.Usage(base_prices=[1] * 7))
    assert (await refused(too_many)).param == "usage.base_prices"


async def test_what_a_hold_is_for_in_words(holding: Holding, api: Api) -> None:
    """Description and metadata are shown, and stand at rows of captures without their own."""
    words: dict[str, Any] = {"description": "Film", "metadata": {"scene": "1"}}
    made = await holding.hold("hold", "6", **words)
    hold_id = made.hold.id
    assert (made.hold.description, dict(made.hold.metadata)) == ("Film", {"scene": "1"})

    plain = await holding.capture("plain", hold_id, amount="1")
    own = await holding.capture(
        "own", hold_id, amount="1", description="Titles", metadata={"part": "2"}
    )
    half = await holding.capture("half", hold_id, amount="1", description="Music")
    longer = await holding.extend("longer", hold_id, ttl_seconds=1_000)
    over = await holding.release("over", hold_id)
    assert [
        (one.posting.transactions[0].description, dict(one.posting.transactions[0].metadata))
        for one in (plain, own, half)
    ] == [("Film", {"scene": "1"}), ("Titles", {"part": "2"}), ("Music", {"scene": "1"})]
    listed = await api.wallets.ListHolds(
        pb.ListHoldsRequest(wallet_id=WALLET), metadata=api.service
    )
    seen = [made.hold, plain.hold, own.hold, half.hold, longer.hold, over.hold]
    seen += [await holding.get(hold_id), *listed.holds]
    assert {(one.description, one.metadata["scene"]) for one in seen} == {("Film", "1")}
    rows = [(one.description, dict(one.metadata)) for one in await rows_of(api)]
    assert ("Film", {"scene": "1"}) in rows

    for again in (
        await holding.hold("hold", "6", **words),
        (await holding.capture("plain", hold_id, amount="1")).posting,
        (await holding.capture("half", hold_id, amount="1", description="Music")).posting,
        await holding.release("over", hold_id),
    ):
        assert again.replayed
    for other, fields in [
        (holding.hold("hold", "6", description="Film"), "metadata"),
        (holding.capture("plain", hold_id, amount="1", **words), "description,metadata"),
        (holding.capture("half", hold_id, amount="1"), "description"),
    ]:
        assert (await refused(other)).metadata["fields"] == fields


async def test_more_than_is_held(holding: Holding) -> None:
    """Only where it is allowed, and only what is available."""
    made = await holding.hold("hold", "6")
    hold_id = made.hold.id

    assert await refused(holding.capture("more", hold_id, amount="7")) == Refused(
        "CAPTURE_TOO_LARGE", "amount", {"held": "6.00"}
    )
    assert (
        await refused(holding.capture("more", hold_id, amount="10.01", allow_more=True))
    ).reason == "INSUFFICIENT_CREDIT"
    taken = await holding.capture("more", hold_id, amount="10", allow_more=True)
    assert amounts(taken.posting) == ["-10.00"]
    assert await holding.figures() == ("0.00", "0.00", "0.00")


async def test_a_release_gives_back_what_is_left(holding: Holding) -> None:
    """Once: another one is told that the hold has ended."""
    made = await holding.hold("hold", "6")
    await holding.capture("part", made.hold.id, amount="1")
    given_back = await holding.release("release", made.hold.id)

    assert (given_back.hold.status, given_back.hold.captured) == ("released", "1.00")
    assert await holding.figures() == ("9.00", "0.00", "9.00")
    again = await holding.release("release", made.hold.id)
    assert again.replayed
    assert again.hold == given_back.hold
    assert (await refused(holding.release("another", made.hold.id))).reason == "HOLD_ENDED"


async def test_a_late_capture(holding: Holding, clock: Clock) -> None:
    """From its deadline on nothing can be done with a hold; before, it can be extended."""
    made = await holding.hold("hold", "6", ttl_seconds=60)
    hold_id = made.hold.id
    extended = await holding.extend("extend", hold_id, ttl_seconds=120)
    assert extended.hold.deadline == time.text(clock.now + 2 * MINUTE)
    clock.advance(2 * MINUTE)

    late = Refused("HOLD_EXPIRED", metadata={"ended_at": extended.hold.deadline})
    assert await refused(holding.capture("capture", hold_id)) == late
    assert await refused(holding.release("release", hold_id)) == late
    assert await refused(holding.extend("again", hold_id, ttl_seconds=1)) == late


async def test_a_grant_that_expires_stays_for_its_hold(
    holding: Holding, api: Api, clock: Clock
) -> None:
    """What is held of it can be captured; what is not expires as the hold ends, not before."""
    expires_at = time.text(clock.now + HOUR)
    await api.post("short", **grant("5", priority=1, expires_at=expires_at))
    made = await holding.hold("hold", "7", ttl_seconds=7_200)  # 5 of the short one, 2 of the other
    clock.advance(HOUR + 1)

    assert await holding.figures() == ("15.00", "7.00", "8.00")
    taken = await holding.capture("part", made.hold.id, amount="3")
    (row,) = taken.posting.transactions
    given = await api.found("given")
    assert given is not None
    assert row.credit_grant_id != given.transactions[0].credit_grant_id
    assert await holding.figures() == ("12.00", "4.00", "8.00")

    await holding.release("release", made.hold.id)
    assert await holding.figures() == ("10.00", "0.00", "10.00")
    wallet = await api.wallet_now()
    assert wallet.sequence == 4  # two grants, the capture, and what expired of the first


async def test_what_lapses_expires_at_its_own_moment(
    holding: Holding, api: Api, clock: Clock
) -> None:
    """The free part of a grant at the grant's end, what was held at the hold's deadline."""
    start = clock.now
    await api.post("short", **grant("5", priority=1, expires_at=time.text(start + HOUR)))
    await holding.hold("hold", "3", ttl_seconds=7_200)
    clock.advance(3 * HOUR)
    assert await holding.figures() == ("10.00", "0.00", "10.00")
    await api.post("later", **consume("1"))

    rows = await rows_of(api)
    expired = [(one.amount, one.effective_at) for one in rows if one.type == "expiration"]
    assert sorted(expired) == sorted(
        [("-2.00", time.text(start + HOUR)), ("-3.00", time.text(start + 2 * HOUR))]
    )


async def rows_of(api: Api) -> list[Any]:
    """The wallet's rows."""
    request = list_pb.CreditTransactionServiceListRequest(page_size=100)
    return list((await api.transactions.List(request, metadata=api.service)).list)


async def test_keys_are_of_all_postings(holding: Holding, api: Api) -> None:
    """The same request again is a replay, another one a conflict, whatever it is about."""
    made = await holding.hold("key", "6")
    again = await holding.hold("key", "6.00")
    assert again.replayed
    assert again.hold == made.hold

    for other in (
        holding.hold("key", "7"),
        holding.hold("key", "6", ttl_seconds=5),
        holding.release("key", made.hold.id),
        api.post("key", **consume("6")),
        holding.hold("given", "10"),
    ):
        assert (await refused(other)).reason == "IDEMPOTENCY_KEY_REUSED"
    found = await api.found("key")
    assert found is not None
    assert (found.hold_id, list(found.transactions)) == (made.hold.id, [])
    taken = await holding.capture("take", made.hold.id, amount="2")
    replay = await holding.capture("take", made.hold.id, amount="2")
    assert replay.posting.replayed
    assert replay.posting.posting_id == taken.posting.posting_id
    assert await holding.figures() == ("8.00", "4.00", "4.00")


async def test_the_last_credit_is_captured_once(holding: Holding, api: Api) -> None:
    """Of many who capture, consume and hold at once, as many win as there is credit."""
    made = await holding.hold("hold", "5")
    calls: list[Any] = [
        holding.capture(f"capture {n}", made.hold.id, amount="5") for n in range(20)
    ]
    calls += [api.post(f"spend {n}", **consume("5")) for n in range(20)]
    calls += [holding.hold(f"hold {n}", "5") for n in range(20)]
    fates = await asyncio.gather(*calls, return_exceptions=True)

    won = [one for one in fates if not isinstance(one, BaseException)]
    lost = [one for one in fates if isinstance(one, BaseException)]
    assert all(isinstance(one, grpc.aio.AioRpcError) for one in lost)
    assert len(won) == 2
    assert await holding.figures() in {("5.00", "5.00", "0.00"), ("0.00", "0.00", "0.00")}


async def test_what_cannot_be_asked(holding: Holding, api: Api, clock: Clock) -> None:
    """Each is named by its field, and changes nothing."""
    made = await holding.hold("hold", "6")
    hold_id = made.hold.id
    before = await api.wallet_now()
    past, far = time.text(clock.now), time.text(clock.now + 7 * DAY + 1)
    for call, reason, param in [
        (holding.hold("a", "0"), "INVALID_FIELD", "amount"),
        (holding.hold("a", ""), "MISSING_FIELD", "amount"),
        (holding.hold("a", "1", wallet_id="acme"), "INVALID_FIELD", "wallet_id"),
        (holding.hold("a", "1", wallet_id="wal_none"), "NOT_FOUND", "wallet_id"),
        (holding.hold("a", "1", deadline=past), "INVALID_FIELD", "deadline"),
        (holding.hold("a", "1", deadline=far), "INVALID_FIELD", "deadline"),
        (holding.hold("a", "1", ttl_seconds=0), "INVALID_FIELD", "ttl_seconds"),
        (holding.hold("a", "1", ttl_seconds=604_801), "INVALID_FIELD", "ttl_seconds"),
        (holding.hold("a", "1", ttl_seconds=1, deadline=far), "INVALID_FIELD", "ttl_seconds"),
        (holding.hold("a", "1", meter_id="mtr_none"), "NOT_FOUND", "meter_id"),
        (holding.hold("a", "1", description=""), "INVALID_FIELD", "description"),
        (holding.hold("a", "1", metadata={"": "v"}), "INVALID_FIELD", "metadata"),
        (holding.hold("a", "4.01"), "INSUFFICIENT_CREDIT", None),
        (holding.hold("", "1"), "MISSING_FIELD", "idempotency_key"),
        (holding.capture("a", ""), "MISSING_FIELD", "hold_id"),
        (holding.capture("a", "hld_1"), "INVALID_FIELD", "hold_id"),
        (holding.capture("a", "hld_" + "0" * 26), "NOT_FOUND", "hold_id"),
        (holding.capture("a", hold_id[:-1] + "z"), "NOT_FOUND", "hold_id"),
        (holding.capture("a", hold_id, amount="-1"), "INVALID_FIELD", "amount"),
        (holding.capture("a", hold_id, amount="-1", final=True), "INVALID_FIELD", "amount"),
        (holding.capture("a", hold_id, amount="-0", final=True), "INVALID_FIELD", "amount"),
        (holding.capture("a", hold_id, amount="", final=True), "MISSING_FIELD", "amount"),
        (holding.capture("a", hold_id, amount="0"), "INVALID_FIELD", "amount"),
        (holding.capture("a", hold_id, usage=pb.Usage()), "MISSING_FIELD", "usage.quantities"),
        (holding.extend("a", hold_id), "MISSING_FIELD", "deadline"),
        (holding.extend("a", hold_id, ttl_seconds=1), "INVALID_FIELD", "deadline"),
        (holding.get("hld_" + "0" * 26), "NOT_FOUND", "hold_id"),
    ]:
        found = await refused(call)
        assert (found.reason, found.param) == (reason, param)
    assert await api.wallet_now() == before


async def test_who_may(holding: Holding, api: Api) -> None:
    """A customer sees its own holds, of its key's mode, and moves none."""
    made = await holding.hold("hold", "6")
    seen = await api.wallets.GetHold(pb.GetHoldRequest(hold_id=made.hold.id), metadata=api.customer)
    assert seen == made.hold
    await api.local.new_wallet("wal_other", "cus_other")
    for other in (
        await api.local.key("customer", "cus_other"),
        await api.local.key("service", livemode=False),
    ):
        wanted = pb.GetHoldRequest(hold_id=made.hold.id)
        hidden = api.wallets.GetHold(wanted, metadata=other)
        assert (await refused(hidden)).reason == "NOT_FOUND"
    request = pb.ReleaseHoldRequest(idempotency_key="key", hold_id=made.hold.id)
    asked = api.wallets.ReleaseHold(request, metadata=api.customer)
    assert (await refused(asked)).reason == "SCOPE_DENIED"
    test = await api.local.key("service", livemode=False)
    asked = api.wallets.ReleaseHold(request, metadata=test)
    assert await refused(asked) == Refused("NOT_FOUND", "hold_id")


async def test_listed(holding: Holding, api: Api, clock: Clock) -> None:
    """Newest first, by pages, and by whether they are open now."""
    made = [(await holding.hold(f"hold {n}", "1")).hold.id for n in range(5)]
    await holding.release("release", made[1])
    await holding.extend("extend", made[2], ttl_seconds=7_200)
    clock.advance(HOUR)

    async def listed(**fields: Any) -> list[str]:
        found: list[str] = []
        token = None
        while token != "":
            request = pb.ListHoldsRequest(wallet_id=WALLET, page_size=2, page_token=token, **fields)
            page = await api.wallets.ListHolds(request, metadata=api.service)
            found += [one.id for one in page.holds]
            token = page.next_page_token
        return found

    assert await listed() == made[::-1]
    assert await listed(open=True) == [made[2]]
    assert await listed(open=False) == [made[4], made[3], made[1], made[0]]


async def test_a_wallet_with_an_open_hold_is_not_closed(holding: Holding, api: Api) -> None:
    """Frozen it makes no new ones; what is held can be captured, and no more."""
    made = await holding.hold("hold", "10")
    frozen = pb.UpdateWalletRequest(wallet_id=WALLET, status="frozen")
    await api.wallets.UpdateWallet(frozen, metadata=api.admin)

    assert (await refused(holding.hold("another", "1"))).reason == "WALLET_FROZEN"
    more = holding.capture("more", made.hold.id, amount="11", allow_more=True)
    assert (await refused(more)).reason == "WALLET_FROZEN"
    await holding.capture("part", made.hold.id, amount="9")
    closed = pb.UpdateWalletRequest(wallet_id=WALLET, status="closed")
    assert (await refused(api.wallets.UpdateWallet(closed, metadata=api.admin))).param == "status"
    await holding.capture("rest", made.hold.id)
    await api.wallets.UpdateWallet(closed, metadata=api.admin)


async def test_a_hold_beyond_the_grants(holding: Holding, api: Api) -> None:
    """Where a wallet may be overdrawn, so may a hold; credit that comes meanwhile is used first."""
    limit = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="5")
    await api.wallets.UpdateWallet(limit, metadata=api.admin)
    made = await holding.hold("hold", "14")
    assert await holding.figures() == ("10.00", "14.00", "-4.00")
    assert (await refused(holding.hold("another", "1.01"))).reason == "INSUFFICIENT_CREDIT"

    await api.post("more", **grant("3"))
    taken = await holding.capture("capture", made.hold.id)
    assert amounts(taken.posting) == ["-10.00", "-3.00", "-1.00"]
    wallet = await api.wallet_now()
    assert (wallet.balance, wallet.overdraft_used) == ("-1.00", "1.00")


@pytest.mark.parametrize("end", ["capture", "release"])
async def test_time_does_not_run_back_behind_a_hold(
    holding: Holding, api: Api, clock: Clock, end: str
) -> None:
    """A clock that is set back cannot take what is held from before its grant began."""
    begins = clock.now + HOUR
    await api.post("later", **grant("5", effective_at=time.text(begins)))
    clock.advance(HOUR)
    made = await holding.hold("hold", "15")
    clock.advance(-HOUR)

    assert await holding.figures() == ("15.00", "15.00", "0.00")
    if end == "capture":
        taken = (await holding.capture("end", made.hold.id)).posting
        assert {one.created_at for one in taken.transactions} == {time.text(begins)}
        assert amounts(taken) == ["-10.00", "-5.00"]
    else:
        given_back = await holding.release("end", made.hold.id)
        assert given_back.hold.ended_at == time.text(begins)


@pytest.mark.parametrize("how", ["release", "capture"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_hold_that_ends_as_its_grant_does(
    database_url: str, clock: Clock, how: str, *, first: bool
) -> None:
    """What a hold gives up as its grant ends expires then, and `verify` takes that for right.

    `first`: the rest of the grant is written off by another posting before.
    """
    async with serve(database_url, clock) as api:
        holding = Holding(api)
        ends = time.text(clock.now + HOUR)
        await api.post("given", **grant("10", expires_at=ends))
        await api.post("lasting", **grant("5"))
        held = await holding.hold("held", "6", ttl_seconds=7_200)
        clock.advance(HOUR)
        if first:
            await api.post("spent", **consume("1"))
        if how == "release":
            await holding.release("over", held.hold.id)
        else:
            await holding.capture("over", held.hold.id, amount="2", final=True)

    assert findings(database_url) == []
