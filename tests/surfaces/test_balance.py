"""GetBalance: what a wallet has, had and will have, by category, by grant and by what ends soon."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, adjust, consume, grant, refund
from tests.support.setup import START

if TYPE_CHECKING:
    from tests.support.server import Api
    from tests.support.setup import Clock


async def balance(api: Api, **fields: Any) -> pb.Balance:
    """The balance of wal_acme."""
    request = pb.GetBalanceRequest(**{"wallet_id": WALLET, **fields})
    return await api.wallets.GetBalance(request, metadata=api.customer)


def figures(found: pb.Balance | pb.CategoryBalance | pb.Wallet) -> tuple[str, str, str, str]:
    """Balance, held, pending, available."""
    return found.balance, found.held, found.pending, found.available


def grants(found: pb.Balance) -> list[tuple[str, str, str]]:
    """(name, remaining, held) of each."""
    return [(one.name, one.remaining, one.held) for one in found.by_grant]


async def hold(api: Api, key: str, amount: str, **fields: Any) -> str:
    """The id of a new hold."""
    request = pb.HoldRequest(wallet_id=WALLET, idempotency_key=key, amount=amount, **fields)
    return (await api.wallets.Hold(request, metadata=api.service)).hold.id


async def test_by_category_by_grant_and_what_ends_soon(api: Api, clock: Clock) -> None:
    """The parts add up to the whole; grants come in the order in which they are drawn."""
    ends, begins = time.text(clock.now + 3 * DAY), time.text(clock.now + DAY)
    paid = await api.post("paid", **grant("10", name="paid"))
    await api.post("promo", **grant("4", name="promo", category="promotional", expires_at=ends))
    await api.post("later", **grant("5", name="later", effective_at=begins))
    await hold(api, "hold", "6")

    found = await balance(api)

    assert figures(found) == ("19.00", "6.00", "5.00", "8.00")
    assert [(one.category, *figures(one)) for one in found.by_category] == [
        ("paid", "15.00", "2.00", "5.00", "8.00"),
        ("promotional", "4.00", "4.00", "0.00", "0.00"),
    ]
    assert grants(found) == [
        ("promo", "4.00", "4.00"),
        ("paid", "10.00", "2.00"),
        ("later", "5.00", "0.00"),
    ]
    assert found.by_grant[1] == pb.GrantBalance(
        credit_grant_id=paid.transactions[0].credit_grant_id,
        name="paid",
        category="paid",
        priority=50,
        remaining="10.00",
        held="2.00",
        effective_at=time.text(clock.now),
    )
    assert (found.expiring.within_days, found.expiring.amount) == (7, "0.00")
    clock.advance(10 * MINUTE)
    assert (await balance(api)).expiring.amount == "4.00"
    assert (await balance(api, expiring_within_days=2)).expiring.amount == "0.00"


async def test_every_moment_is_answered_as_it_was(api: Api, clock: Clock) -> None:
    """By time and by sequence: what each answer said of the wallet then is said of it still."""
    await api.wallets.UpdateWallet(
        pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="3"), metadata=api.admin
    )
    told: dict[int, pb.Wallet] = {clock.now: await api.wallet_now()}
    by_sequence: dict[int, pb.Wallet] = {}

    async def note(posting: pb.Posting | None = None) -> None:
        told[clock.now] = await api.wallet_now()
        if posting is not None:
            by_sequence[posting.wallet.sequence] = posting.wallet
        clock.advance(MINUTE)

    soon = time.text(clock.now + HOUR)
    await note(await api.post("1", **grant("10", name="first")))
    await note(await api.post("2", **grant("5", expires_at=soon, priority=10)))
    await note(await api.post("3", **consume("2")))
    held = await hold(api, "4", "4", ttl_seconds=7200)
    await note()
    spent = await api.post("5", **consume("6.5"))
    await note(spent)
    clock.advance(HOUR)  # The second grant ends; what is held of it does not.
    await note()
    captured = await api.wallets.CaptureHold(
        pb.CaptureHoldRequest(hold_id=held, idempotency_key="6", amount="1"), metadata=api.service
    )
    await note(captured.posting)
    await note(await api.post("7", **adjust("-3")))
    clock.advance(HOUR)  # The hold ends, and with it what was held.
    await note()
    await note(await api.post("8", **consume("1.25")))
    await note(await api.post("9", **refund(spent.posting_id)))

    assert len({(one.balance, one.held, one.available) for one in told.values()}) > 7
    for moment, wallet in told.items():
        found = await balance(api, as_of=time.text(moment))
        assert figures(found) == figures(wallet), time.text(moment)
        assert (found.overdraft_used, found.sequence) == (wallet.overdraft_used, wallet.sequence)
        assert found.as_of == time.text(moment)
    for sequence, wallet in by_sequence.items():
        found = await balance(api, at_sequence=sequence)
        assert figures(found) == figures(wallet), sequence
        assert found.sequence == sequence
    assert grants(await balance(api, at_sequence=1)) == [("first", "10.00", "0.00")]
    nothing = await balance(api, at_sequence=0)
    assert (nothing.balance, nothing.sequence, list(nothing.by_grant)) == ("0.00", 0, [])
    assert figures(await balance(api, as_of=time.text(START - 400 * DAY))) == ("0.00",) * 4


async def test_a_clock_put_back_does_not_bring_a_hold_back(api: Api, clock: Clock) -> None:
    """A hold whose end is written has ended at every moment from which the wallet speaks."""
    await api.post("1", **grant("10"))
    await hold(api, "2", "4", ttl_seconds=3600)
    clock.advance(HOUR + MINUTE)
    assert api.server.background is not None
    assert await api.server.background.sweeper.sweep() == 1
    clock.advance(-HOUR)
    await api.post("3", **consume("7"))
    wallet = await api.wallet_now()

    assert figures(wallet) == ("3.00", "0.00", "0.00", "3.00")
    as_of = await balance(api, as_of=wallet.updated_at)
    assert figures(as_of) == figures(wallet)
    assert figures(await balance(api, at_sequence=2)) == figures(wallet)


async def test_a_moment_to_come(api: Api, clock: Clock) -> None:
    """What time alone will have done by then: grants begin and end, holds end."""
    await api.post("1", **grant("10", expires_at=time.text(clock.now + 2 * DAY)))
    await api.post("2", **grant("5", effective_at=time.text(clock.now + DAY)))
    await hold(api, "3", "4")

    assert figures(await balance(api)) == ("15.00", "4.00", "5.00", "6.00")
    tomorrow = await balance(api, as_of=time.text(clock.now + DAY))
    assert figures(tomorrow) == ("15.00", "0.00", "0.00", "15.00")
    the_day_after = await balance(api, as_of=time.text(clock.now + 2 * DAY))
    assert figures(the_day_after) == ("5.00", "0.00", "0.00", "5.00")
    assert len(the_day_after.by_grant) == 1


async def test_what_is_not_there_yet(api: Api) -> None:
    """A sequence that the wallet has not reached is named; one that it has is read."""
    posted = await api.post("1", **grant("10"))

    assert (await balance(api, min_sequence=posted.wallet.sequence)).balance == "10.00"
    for name in ("min_sequence", "at_sequence"):
        assert await refused(balance(api, **{name: 2})) == Refused(
            "SEQUENCE_MISMATCH", param=name, metadata={"expected": "2", "actual": "1"}
        )


async def test_what_cannot_be_asked(api: Api) -> None:
    """Each fault is named by its field, and another customer's wallet is not there."""
    for fields, param in (
        ({"as_of": "yesterday"}, "as_of"),
        ({"as_of": "2026-05-21T14:08:11Z", "at_sequence": 1}, "at_sequence"),
        ({"at_sequence": -1}, "at_sequence"),
        ({"min_sequence": -1}, "min_sequence"),
        ({"expiring_within_days": 0}, "expiring_within_days"),
        ({"expiring_within_days": 3661}, "expiring_within_days"),
    ):
        assert await refused(balance(api, **fields)) == Refused("INVALID_FIELD", param=param)
    await api.local.new_wallet("wal_other", "cus_other")
    assert await refused(balance(api, wallet_id="wal_other")) == Refused(
        "NOT_FOUND", param="wallet_id"
    )


async def test_a_posting_that_is_looked_up_comes_with_a_wallet_that_knows_it(api: Api) -> None:
    """While others post, the wallet of an answer is never older than the posting in it."""
    await api.post("given", **grant("1000"))

    async def look_up(key: str) -> list[pb.Posting]:
        found: list[pb.Posting] = []
        while len(found) < 2:
            answer = await api.found(key)
            found += [] if answer is None else [answer]
        return found

    seen = 0
    for n in range(60):
        looks = [asyncio.create_task(look_up(f"call {n}")) for _ in range(4)]
        await api.post(f"call {n}", **consume("1"))
        for answers in await asyncio.gather(*looks):
            for one in answers:
                seen += 1
                assert int(one.wallet.sequence) >= int(one.transactions[-1].sequence)
    assert seen == 480
