"""Scopes over gRPC: credit that pays for some meters, products or categories only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR
from tests.support.refusals import Refused, refused
from tests.support.server import WALLET, adjust, consume, grant, refund

if TYPE_CHECKING:
    from tests.support.server import Api
    from tests.support.setup import Clock


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, two meters, and an empty wallet."""
    for name in ("chat", "image"):
        await api.local.registry.CreateMeter(
            registry_pb.CreateMeterRequest(
                id=f"mtr_{name}", name=name, event_name=name, unit="call"
            )
        )
    return api


def scope(**lists: list[str]) -> pb.GrantScope:
    """Short for a scope."""
    return pb.GrantScope(**lists)


def used(**labels: Any) -> pb.Usage:
    """A usage of one call."""
    return pb.Usage(quantities=[1], **labels)


IMAGES = scope(meter_ids=["mtr_image"])


async def figures(api: Api) -> tuple[str, str, str, str]:
    """The wallet's balance, held, scoped and available."""
    wallet = await api.wallet_now()
    return wallet.balance, wallet.held, wallet.scoped, wallet.available


def drawn(posting: pb.Posting) -> list[tuple[str, str]]:
    """What the posting's rows moved, and of which grants; "" for overdraft."""
    return [(one.amount, one.credit_grant_id) for one in posting.transactions]


async def given(api: Api, key: str, amount: str, **fields: Any) -> str:
    """A new grant's id."""
    (row,) = (await api.post(key, **grant(amount, **fields))).transactions
    return row.credit_grant_id


def poor(required: str, available: str) -> Refused:
    """The refusal of what cannot be paid."""
    metadata = {"required": required, "available": available, "currency": "USD"}
    return Refused("INSUFFICIENT_CREDIT", metadata=metadata)


async def test_scoped_credit_pays_for_what_its_scope_covers(api: Api) -> None:
    """In burn order with the rest; nobody else gets it, and a refusal says what there was."""
    scoped = await given(api, "scoped", "5", scope=IMAGES, priority=10)
    plain = await given(api, "plain", "3")
    assert await figures(api) == ("8.00", "0.00", "5.00", "3.00")

    assert await refused(api.post("chat", **consume("4", meter_id="mtr_chat"))) == poor(
        "4.00", "3.00"
    )
    assert await refused(api.post("bare", **consume("4"))) == poor("4.00", "3.00")
    assert await refused(api.post("debit", **adjust("-4"))) == poor("4.00", "3.00")
    image = consume("8.01", meter_id="mtr_image")
    assert await refused(api.post("image", **image)) == poor("8.01", "8.00")

    request = pb.GetBalanceRequest(wallet_id=WALLET)
    balance = await api.wallets.GetBalance(request, metadata=api.customer)
    assert (balance.scoped, balance.available) == ("5.00", "3.00")
    assert [(one.scoped, one.available) for one in balance.by_category] == [
        ("5.00", "3.00"),
        ("0.00", "0.00"),
    ]
    assert [one.scope for one in balance.by_grant] == [IMAGES, pb.GrantScope()]
    assert not balance.by_grant[1].HasField("scope")

    taken = await api.post("image", **consume("6", meter_id="mtr_image"))
    assert drawn(taken) == [("-5.00", scoped), ("-1.00", plain)]
    assert await figures(api) == ("2.00", "0.00", "0.00", "2.00")
    # Some of it returned, all of it twice is not.
    back = await api.post("back", **refund(taken.posting_id, amount="5.50"))
    assert drawn(back) == [("1.00", plain), ("4.50", scoped)]
    assert await figures(api) == ("7.50", "0.00", "4.50", "3.00")


@pytest.mark.parametrize(
    ("only", "covered"),
    [
        (scope(meter_ids=["mtr_chat", "mtr_image"]), True),
        (scope(meter_ids=["mtr_chat"]), False),
        (scope(product_ids=["film", "photo"]), True),
        (scope(categories=["image"]), True),
        (scope(categories=["Image"]), False),
        (scope(meter_ids=["mtr_image"], product_ids=["photo"], categories=["image"]), True),
        (scope(meter_ids=["mtr_image"], product_ids=["photo"], categories=["llm"]), False),
        (scope(meter_ids=["mtr_chat"], product_ids=["photo"]), False),
        (scope(), True),
    ],
)
async def test_one_of_each_list_that_is_given(api: Api, only: pb.GrantScope, covered: bool) -> None:
    """A meter, a product and a category: a scope without any is none."""
    await given(api, "given", "1", scope=only)
    asked = consume("1", meter_id="mtr_image", usage=used(product_id="photo", category="image"))

    if covered:
        await api.post("asked", **asked)
    else:
        assert await refused(api.post("asked", **asked)) == poor("1.00", "0.00")


async def test_a_debit_takes_of_scoped_credit_if_it_names_it(api: Api) -> None:
    """Then it takes of nothing else."""
    scoped = await given(api, "scoped", "5", scope=IMAGES)
    await given(api, "plain", "3")

    assert await refused(api.post("much", **adjust("-6", credit_grant_id=scoped))) == poor(
        "6.00", "5.00"
    )
    taken = await api.post("debit", **adjust("-4", credit_grant_id=scoped))
    assert drawn(taken) == [("-4.00", scoped)]
    assert await figures(api) == ("4.00", "0.00", "1.00", "3.00")


async def test_scoped_credit_and_overdraft(api: Api) -> None:
    """It pays none back, none is taken of it, and what is lent is lent to all alike."""
    change = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="5")
    await api.wallets.UpdateWallet(change, metadata=api.admin)
    await api.post("overdrawn", **consume("4"))
    scoped = await given(api, "scoped", "10", scope=IMAGES)
    assert await figures(api) == ("6.00", "0.00", "10.00", "-4.00")
    assert (await api.wallet_now()).overdraft_used == "4.00"

    assert await refused(api.post("image", **consume("11.01", meter_id="mtr_image"))) == poor(
        "11.01", "6.00"
    )
    taken = await api.post("image", **consume("10.5", meter_id="mtr_image"))
    assert drawn(taken) == [("-10.00", scoped), ("-0.50", "")]
    assert (await api.wallet_now()).overdraft_used == "4.50"


async def test_what_is_overdrawn_is_not_spent_through_a_scope(api: Api, clock: Clock) -> None:
    """Credit that an overdraft needs stays, however much the scope has."""
    change = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="5")
    await api.wallets.UpdateWallet(change, metadata=api.admin)
    # What comes back to it while something is overdrawn stands beside that.
    plain = await given(api, "plain", "5", priority=1)
    spent = await api.post("spent", **consume("5"))
    await api.post("overdrawn", **consume("5"))
    await api.post("back", **refund(spent.posting_id))
    scoped = await given(api, "scoped", "3", scope=IMAGES)
    lowered = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="1")
    await api.wallets.UpdateWallet(lowered, metadata=api.admin)
    assert await figures(api) == ("3.00", "0.00", "3.00", "0.00")

    taken = await api.post("image", **consume("3.5", meter_id="mtr_image"))
    assert drawn(taken) == [("-1.00", plain), ("-2.50", scoped)]
    assert await figures(api) == ("-0.50", "0.00", "0.50", "-1.00")


async def test_a_refund_to_a_scoped_grant_that_has_ended(api: Api, clock: Clock) -> None:
    """It goes to a new one with its scope, which pays for the same and never expires."""
    ends = time.text(clock.now + HOUR)
    await given(api, "scoped", "5", scope=IMAGES, expires_at=ends, category="promotional")
    taken = await api.post("image", **consume("2", meter_id="mtr_image"))
    clock.advance(DAY)
    back = await api.post("back", **refund(taken.posting_id))

    assert [amount for amount, _ in drawn(back)] == ["2.00"]
    assert await figures(api) == ("2.00", "0.00", "2.00", "0.00")
    assert (await refused(api.post("chat", **consume("1")))).reason == "INSUFFICIENT_CREDIT"
    assert drawn(await api.post("more", **consume("2", meter_id="mtr_image"))) == [
        ("-2.00", drawn(back)[0][1])
    ]


async def test_a_hold_reserves_by_its_scope(api: Api) -> None:
    """Its captures draw that, and what is more by the hold's scope, whatever they count."""
    scoped = await given(api, "scoped", "5", scope=scope(categories=["image"]))
    await given(api, "plain", "3", priority=60)

    async def hold(key: str, amount: str, category: str) -> pb.HoldResponse:
        request = pb.HoldRequest(
            wallet_id=WALLET, idempotency_key=key, amount=amount, usage=used(category=category)
        )
        return await api.wallets.Hold(request, metadata=api.service)

    assert await refused(hold("chat", "4", "llm")) == poor("4.00", "3.00")
    made = await hold("image", "4", "image")
    assert await figures(api) == ("8.00", "4.00", "1.00", "3.00")

    request = pb.CaptureHoldRequest(
        idempotency_key="capture",
        hold_id=made.hold.id,
        amount="5",
        allow_more=True,
        usage=used(category="llm"),
    )
    taken = await api.wallets.CaptureHold(request, metadata=api.service)
    assert drawn(taken.posting) == [("-5.00", scoped)]
    assert await figures(api) == ("3.00", "0.00", "0.00", "3.00")


async def test_what_a_scope_may_be(api: Api) -> None:
    """Meters exist, lists are short, labels are labels; the order of a list says nothing."""

    async def bad(**lists: list[str]) -> tuple[str, str | None]:
        found = await refused(api.post("bad", **grant("1", scope=scope(**lists))))
        return found.reason, found.param

    assert await bad(meter_ids=["mtr_chat", "mtr_none"]) == ("NOT_FOUND", "grant.scope.meter_ids")
    assert await bad(meter_ids=["chat"]) == ("INVALID_FIELD", "grant.scope.meter_ids[0]")
    assert await bad(product_ids=["a", ""]) == ("INVALID_FIELD", "grant.scope.product_ids[1]")
    assert await bad(categories=["x" * 129]) == ("INVALID_FIELD", "grant.scope.categories[0]")
    many = [f"c{i}" for i in range(21)]
    assert await bad(categories=many) == ("INVALID_FIELD", "grant.scope.categories")

    first = await api.post("key", **grant("1", scope=scope(categories=["a", "b"])))
    again = await api.post("key", **grant("1", scope=scope(categories=["b", "a", "b"])))
    assert again.replayed
    assert again.posting_id == first.posting_id
    other = await refused(api.post("key", **grant("1", scope=scope(categories=["a"]))))
    assert other.reason == "IDEMPOTENCY_KEY_REUSED"
    assert other.metadata == {"fields": "grant.scope.categories"}
