"""CreditGrantService over gRPC: grants found, changed, voided, and traced to what they paid."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.credit_transaction_pb2 import TransactionSource
from sqlalchemy import func, select

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.clock import DAY, HOUR, MINUTE
from creditledger.store import schema
from creditledger.store.read import grants as store_grants
from tests.support.refusals import Refused, refused
from tests.support.server import CUSTOMER, WALLET, consume, grant, post, refund
from tests.support.setup import look

if TYPE_CHECKING:
    from tests.support.refusals import Metadata
    from tests.support.server import Api
    from tests.support.setup import Clock


class Grants:
    """The grants of wal_acme, asked for by a service."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def given(self, key: str, amount: str, *, wallet_id: str = WALLET, **fields: Any) -> str:
        """The id of a new grant."""
        texts = {n: fields.pop(n) for n in ("metadata", "note") if n in fields}
        posted = await self.api.post(key, wallet_id, **grant(amount, **fields), **texts)
        return posted.transactions[0].credit_grant_id

    async def get(self, id_: str, key: Metadata | None = None) -> grants_pb.CreditGrant:
        """The grant."""
        request = grants_pb.CreditGrantServiceRetrieveRequest(id=id_)
        return await self.api.grants.Retrieve(request, metadata=key or self.api.service)

    async def page(
        self, key: Metadata | None = None, **fields: Any
    ) -> grants_pb.CreditGrantServiceListResponse:
        """A page."""
        request = grants_pb.CreditGrantServiceListRequest(**fields)
        return await self.api.grants.List(request, metadata=key or self.api.service)

    async def listed(self, **fields: Any) -> list[str]:
        """The names of a page's grants."""
        return [one.name for one in (await self.page(**fields)).credit_grants]

    async def update(self, id_: str, **fields: Any) -> grants_pb.CreditGrant:
        """Change it."""
        request = grants_pb.CreditGrantServiceUpdateRequest(id=id_, **fields)
        return await self.api.grants.Update(request, metadata=self.api.service)

    async def void(
        self, key: str, id_: str, **fields: Any
    ) -> grants_pb.CreditGrantServiceVoidResponse:
        """Take it back."""
        request = grants_pb.CreditGrantServiceVoidRequest(id=id_, idempotency_key=key, **fields)
        return await self.api.grants.Void(request, metadata=self.api.service)

    async def summary(
        self, key: Metadata | None = None, **fields: Any
    ) -> list[grants_pb.CreditGrantSummary]:
        """Sums by currency."""
        request = grants_pb.CreditGrantServiceSummaryRequest(**fields)
        answer = await self.api.grants.Summary(request, metadata=key or self.api.service)
        return list(answer.currencies)

    async def rows(
        self, id_: str, **fields: Any
    ) -> grants_pb.CreditGrantServiceListTransactionsResponse:
        """A page of its rows."""
        request = grants_pb.CreditGrantServiceListTransactionsRequest(id=id_, **fields)
        return await self.api.grants.ListTransactions(request, metadata=self.api.service)

    async def moved(
        self, posting_id: str, key: Metadata | None = None
    ) -> grants_pb.CreditGrantServiceListPostingGrantsResponse:
        """Which grants a posting moved."""
        request = grants_pb.CreditGrantServiceListPostingGrantsRequest(posting_id=posting_id)
        return await self.api.grants.ListPostingGrants(request, metadata=key or self.api.service)

    async def hold(self, key: str, amount: str, **fields: Any) -> str:
        """The id of a new hold."""
        request = pb.HoldRequest(wallet_id=WALLET, idempotency_key=key, amount=amount, **fields)
        return (await self.api.wallets.Hold(request, metadata=self.api.service)).hold.id

    async def available(self) -> tuple[str, str, str]:
        """The wallet's balance, held and available."""
        wallet = await self.api.wallet_now()
        return wallet.balance, wallet.held, wallet.available

    async def left(self, id_: str) -> tuple[str, str, str]:
        """Its status, remaining and held."""
        one = await self.get(id_)
        return one.status, one.remaining, one.held


@pytest.fixture
def grants(api: Api) -> Grants:
    """Short for what is asked of grants."""
    return Grants(api)


def revisions(url: str) -> int:
    """How many lines there are of what grants have been."""
    query = select(func.count()).select_from(schema.grant_revisions)
    return int(look(url, lambda c: c.execute(query).scalar_one()))


# --- what a grant is ------------------------------------------------------------------------------


async def test_a_grant_shows_all_of_it(grants: Grants, api: Api, clock: Clock) -> None:
    """Its metadata is that of its posting; its overdraft was paid by it; others do not see it."""
    ends = time.text(clock.now + DAY)
    source = TransactionSource(provider="stripe", receipt_id="ch_1")
    scope = pb.GrantScope(categories=["llm"])
    given = await api.post(
        "top-up",
        **grant("10", name="Spring", priority=7, expires_at=ends, source=source, scope=scope),
        metadata={"team": "red"},
    )
    id_ = given.transactions[0].credit_grant_id
    usage = pb.Usage(category="llm", quantities=[1])
    await api.post("spent", **consume("2.5", usage=usage))
    await grants.hold("hold", "1", usage=usage)
    now = time.text(clock.now)

    expected = grants_pb.CreditGrant(
        id=id_,
        wallet_id=WALLET,
        customer_id=CUSTOMER,
        currency="USD",
        livemode=True,
        amount="10.00",
        overdraft_paid="0.00",
        remaining="7.50",
        held="1.00",
        category="paid",
        priority=7,
        name="Spring",
        status="granted",
        kind="topup",
        source=source,
        posting_id=given.posting_id,
        effective_at=now,
        expires_at=ends,
        metadata={"team": "red"},
        created_at=now,
        updated_at=now,
        scope=scope,
    )
    assert await grants.get(id_) == expected
    assert await grants.get(id_, api.customer) == expected
    await api.local.new_wallet("wal_other", "cus_other")
    stranger = await api.local.key("customer", "cus_other")
    hidden = Refused("NOT_FOUND", "id")
    assert await refused(grants.get(id_, stranger)) == hidden
    assert await refused(grants.get(ids.compose("cg", 1, 99))) == hidden
    assert await refused(grants.get(ids.compose("cg", 99, 1))) == hidden
    assert await refused(grants.get("cg_x")) == Refused("INVALID_FIELD", "id")


async def test_status_is_a_fact_of_time(grants: Grants, api: Api, clock: Clock) -> None:
    """Pending, granted, depleted and expired, without anything that is written in between."""
    begins, ends = time.text(clock.now + HOUR), time.text(clock.now + 2 * HOUR)
    later = await grants.given("later", "5", effective_at=begins, expires_at=ends)
    used = await grants.given("used", "1", expires_at=ends)
    await api.post("spent", **consume("1"))

    assert await grants.left(later) == ("pending", "5.00", "0.00")
    assert await grants.left(used) == ("depleted", "0.00", "0.00")
    clock.advance(HOUR)
    assert await grants.left(later) == ("granted", "5.00", "0.00")
    await grants.hold("hold", "2", ttl_seconds=7_200)
    clock.advance(HOUR)
    assert await grants.left(later) == ("expired", "2.00", "2.00")
    assert await grants.left(used) == ("expired", "0.00", "0.00")
    assert (await api.wallet_now()).sequence == 3
    clock.advance(HOUR)
    assert await grants.left(later) == ("expired", "0.00", "0.00")
    # Set back, the clock opens nothing again that a posting has seen expired.
    await api.post("after", **grant("1"))
    clock.advance(-2 * HOUR)
    assert (await grants.left(later))[0] == "expired"
    assert await grants.listed(status="granted") == [""]


# --- changes --------------------------------------------------------------------------------------


async def test_a_change_is_kept_and_moves_the_grant(
    grants: Grants, api: Api, clock: Clock, database_url: str
) -> None:
    """A new priority decides what is spent next; said again, it writes nothing."""
    first = await grants.given("first", "5", metadata={"team": "red", "seat": "1"})
    second = await grants.given("second", "5")
    clock.advance(MINUTE)
    ends = time.text(clock.now + DAY)
    fields = {"name": "Gift", "priority": 10, "expires_at": ends, "metadata": {"seat": ""}}

    changed = await grants.update(second, **fields)

    assert changed == await grants.get(second)
    assert (changed.name, changed.priority, changed.expires_at) == ("Gift", 10, ends)
    assert changed.updated_at == time.text(clock.now)
    assert changed.metadata == {}
    assert (await api.wallet_now()).updated_at == changed.updated_at
    spent = await api.post("spent", **consume("6"))
    assert [one.credit_grant_id for one in spent.transactions] == [second, first]
    before = await api.wallet_now()
    clock.advance(MINUTE)
    assert await grants.update(second, **fields) == await grants.get(second)
    assert revisions(database_url) == 2
    assert await api.wallet_now() == before
    words = await grants.update(first, metadata={"team": "", "plan": "pro"})
    assert dict(words.metadata) == {"seat": "1", "plan": "pro"}
    forever = await grants.update(second, never_expires=True)
    assert not forever.HasField("expires_at")


async def test_a_changed_grant_travels(grants: Grants, api: Api, clock: Clock) -> None:
    """What a transfer makes of it has its terms, and a history of its own that begins there."""
    await api.local.new_wallet("wal_other", "cus_other")
    id_ = await grants.given("given", "5", metadata={"team": "red"})
    await grants.update(id_, name="Gift", priority=10, metadata={"team": "blue"})
    clock.advance(MINUTE)
    move = pb.TransferRequest(
        idempotency_key="move", from_wallet_id=WALLET, to_wallet_id="wal_other", amount="2"
    )
    await api.wallets.Transfer(move, metadata=api.service)

    (arrived,) = (await grants.page(wallet_id="wal_other")).credit_grants
    assert (arrived.name, arrived.priority, arrived.kind) == ("Gift", 10, "transfer_in")
    assert (dict(arrived.metadata), arrived.updated_at) == ({}, time.text(clock.now))
    changed = await grants.update(arrived.id, metadata={"team": "green"})
    assert changed.metadata == {"team": "green"}


async def test_an_end_can_come_sooner_or_later(grants: Grants, clock: Clock) -> None:
    """The credit is there until the end that the grant has by then."""
    end = clock.now + HOUR
    id_ = await grants.given("given", "5", expires_at=time.text(end))
    await grants.update(id_, expires_at=time.text(end + HOUR))
    clock.advance(HOUR)
    assert (await grants.available())[0] == "5.00"
    await grants.update(id_, expires_at=time.text(clock.now + 1))
    clock.advance(1)
    assert (await grants.available())[0] == "0.00"
    assert await grants.left(id_) == ("expired", "0.00", "0.00")


async def test_what_cannot_be_changed(grants: Grants, api: Api, clock: Clock) -> None:
    """Bad fields are named; what has ended takes a new name and metadata, no more."""
    begins, now = time.text(clock.now + HOUR), time.text(clock.now)
    id_ = await grants.given(
        "given", "5", effective_at=begins, expires_at=time.text(clock.now + DAY)
    )
    bad: dict[str, list[dict[str, Any]]] = {
        "expires_at": [{"expires_at": now}, {"expires_at": begins}],
        "never_expires": [{"expires_at": begins, "never_expires": True}],
        "priority": [{"priority": 101}, {"priority": -1}],
        "name": [{"name": ""}, {"name": "x" * 129}],
        "metadata": [{"metadata": {str(n): "x" for n in range(51)}}],
    }
    for param, requests in bad.items():
        for fields in requests:
            found = await refused(grants.update(id_, **fields))
            assert found == Refused("INVALID_FIELD", param), fields
    await grants.update(id_, metadata={str(n): "x" for n in range(50)})
    over = await refused(grants.update(id_, metadata={"one": "more"}))
    assert over == Refused("INVALID_FIELD", "metadata")
    missing = ids.compose("cg", 1, 99)
    assert await refused(grants.update(missing, name="x")) == Refused("NOT_FOUND", "id")
    assert await refused(grants.void("void", missing)) == Refused("NOT_FOUND", "id")
    test = await api.local.key("service", livemode=False)
    request = grants_pb.CreditGrantServiceUpdateRequest(id=id_, name="x")
    other_mode = await refused(api.grants.Update(request, metadata=test))
    assert other_mode == Refused("NOT_FOUND", "id")

    clock.advance(DAY)
    ended = Refused("GRANT_EXPIRED", metadata={"expired_at": time.text(clock.now)})
    for fields in ({"priority": 1}, {"never_expires": True}):
        assert await refused(grants.update(id_, **fields)) == ended
    assert await refused(grants.void("void", id_)) == ended
    assert (await grants.update(id_, name="Old")).name == "Old"


# --- voids ----------------------------------------------------------------------------------------


async def test_a_void_takes_back_what_is_left(grants: Grants, api: Api, clock: Clock) -> None:
    """By an expiration in its posting, once; nobody draws on the grant afterwards."""
    id_ = await grants.given("given", "5")
    await api.post("spent", **consume("2"))
    clock.advance(MINUTE)

    voided = await grants.void("void", id_, note="card charge reversed", metadata={"case": "7"})

    (row,) = voided.posting.transactions
    assert (row.kind, row.type, row.amount, row.running_balance) == (
        *("expiry", "expiration"),
        *("-3.00", "0.00"),
    )
    assert (row.credit_grant_id, row.note, row.metadata["case"]) == (
        *(id_, "card charge reversed"),
        "7",
    )
    assert (voided.credit_grant.status, voided.credit_grant.remaining) == ("voided", "0.00")
    assert voided.credit_grant.voided_at == time.text(clock.now)
    assert voided.posting.wallet.available == "0.00"
    again = await grants.void("void", id_, note="card charge reversed", metadata={"case": "7"})
    assert again.posting.replayed
    assert again.posting.posting_id == voided.posting.posting_id
    assert await refused(grants.void("void", id_)) == Refused(
        "IDEMPOTENCY_KEY_REUSED", "idempotency_key", {"fields": "metadata,note"}
    )
    gone = Refused("GRANT_VOIDED", metadata={"voided_at": time.text(clock.now)})
    assert await refused(grants.void("another", id_)) == gone
    assert await refused(grants.update(id_, priority=1)) == gone
    assert (await grants.update(id_, name="Reversed")).name == "Reversed"
    assert (await api.found("void")) is not None


async def test_what_is_held_leaves_with_the_hold(grants: Grants, api: Api) -> None:
    """Of a voided grant a hold can still be captured; what it gives back is gone."""
    id_ = await grants.given("given", "10")
    hold_id = await grants.hold("hold", "4")
    voided = await grants.void("void", id_)
    assert [one.amount for one in voided.posting.transactions] == ["-6.00"]
    assert await grants.left(id_) == ("voided", "4.00", "4.00")
    assert await grants.available() == ("4.00", "4.00", "0.00")
    capture = pb.CaptureHoldRequest(idempotency_key="part", hold_id=hold_id, amount="1")
    await api.wallets.CaptureHold(capture, metadata=api.service)
    assert await grants.left(id_) == ("voided", "3.00", "3.00")
    release = pb.ReleaseHoldRequest(idempotency_key="rest", hold_id=hold_id)
    await api.wallets.ReleaseHold(release, metadata=api.service)

    assert await grants.left(id_) == ("voided", "0.00", "0.00")
    assert await grants.available() == ("0.00", "0.00", "0.00")
    rows = (await grants.rows(id_, order="oldest")).transactions
    assert [(one.kind, one.amount) for one in rows] == [
        ("topup", "10.00"),
        ("expiry", "-6.00"),
        ("usage", "-1.00"),
        ("expiry", "-3.00"),
    ]


async def test_all_of_it_held_or_nothing_left(grants: Grants, api: Api, clock: Clock) -> None:
    """The posting has no row; what a hold's deadline gives back is gone without a command."""
    held = await grants.given("held", "3")
    await grants.hold("hold", "3", ttl_seconds=60)
    assert not (await grants.void("void held", held)).posting.transactions
    clock.advance(MINUTE)
    assert await grants.available() == ("0.00", "0.00", "0.00")
    assert await grants.left(held) == ("voided", "0.00", "0.00")

    used = await grants.given("used", "2")
    spent = await api.post("spent", **consume("2"))
    assert not (await grants.void("void used", used)).posting.transactions
    assert (await refused(api.post("back", **refund(spent.posting_id)))).reason == "NOT_REFUNDABLE"
    forced = post("back", **refund(spent.posting_id, force=True))
    (row,) = (await api.wallets.Post(forced, metadata=api.admin)).transactions
    assert row.credit_grant_id not in ("", used)
    assert (await api.wallet_now()).available == "2.00"


async def test_a_pending_grant_can_be_voided(grants: Grants, clock: Clock) -> None:
    """It never begins."""
    id_ = await grants.given("later", "5", effective_at=time.text(clock.now + HOUR))
    await grants.void("void", id_)
    assert await grants.available() == ("0.00", "0.00", "0.00")
    clock.advance(HOUR)
    assert await grants.left(id_) == ("voided", "0.00", "0.00")


async def test_frozen_and_closed(grants: Grants, api: Api) -> None:
    """A frozen wallet's grants are managed as any other's, those of a closed one no more."""
    id_ = await grants.given("given", "5")

    async def becomes(status: str) -> None:
        request = pb.UpdateWalletRequest(wallet_id=WALLET, status=status)
        await api.wallets.UpdateWallet(request, metadata=api.admin)

    await becomes("frozen")
    await grants.update(id_, name="Kept")
    await grants.void("void", id_)
    await becomes("closed")
    assert (await refused(grants.update(id_, name="Lost"))).reason == "WALLET_CLOSED"
    assert (await refused(grants.void("again", id_))).reason == "WALLET_CLOSED"
    assert (await grants.void("void", id_)).posting.replayed


async def test_a_void_and_consumptions_at_once(grants: Grants, api: Api) -> None:
    """Whatever comes first, no credit is spent that was taken back, and none is lost."""
    id_ = await grants.given("given", "10")
    spends = [refused_or_paid(api, f"spent {n}") for n in range(20)]
    voids = [refused_or_voided(grants, f"void {n}", id_) for n in range(3)]
    *paid, a, b, c = await asyncio.gather(*spends, *voids)

    taken = [one for one in (a, b, c) if one != "GRANT_VOIDED"]
    assert len(taken) == 1
    assert (
        sum(map(float, (one for one in paid if one != "INSUFFICIENT_CREDIT"))) + float(taken[0])
        == -10
    )
    assert await grants.available() == ("0.00", "0.00", "0.00")


async def refused_or_paid(api: Api, key: str) -> str:
    try:
        return (await api.post(key, **consume("1"))).transactions[0].amount
    except Exception:
        return (await refused(api.post(key, **consume("1")))).reason


async def refused_or_voided(grants: Grants, key: str, id_: str) -> str:
    try:
        voided = await grants.void(key, id_)
    except Exception:
        return (await refused(grants.void(key, id_))).reason
    return "".join(one.amount for one in voided.posting.transactions) or "0"


async def test_a_past_moment_knows_the_terms_of_then(
    grants: Grants, api: Api, clock: Clock
) -> None:
    """What is changed or voided today was not so yesterday."""
    ends = time.text(clock.now + DAY)
    id_ = await grants.given("given", "5", name="Before", expires_at=ends)
    yesterday = clock.now
    clock.advance(HOUR)
    await grants.update(id_, name="After", priority=1, never_expires=True)
    changed = clock.now
    clock.advance(HOUR)
    await grants.void("void", id_)
    voided = clock.now
    clock.advance(HOUR)

    async def was(moment: int) -> list[tuple[str, str, int, str]]:
        request = pb.GetBalanceRequest(wallet_id=WALLET, as_of=time.text(moment))
        found = await api.wallets.GetBalance(request, metadata=api.service)
        return [(one.name, one.remaining, one.priority, one.expires_at) for one in found.by_grant]

    assert await was(yesterday) == [("Before", "5.00", 50, ends)]
    assert await was(changed) == [("After", "5.00", 1, "")]
    assert await was(voided) == []


# --- lists and sums -------------------------------------------------------------------------------


async def test_lists(grants: Grants, api: Api, clock: Clock) -> None:
    """Newest first, by each filter, by pages, over several wallets of a customer and of all."""
    now = clock.now
    yuan = pb.CreateWalletRequest(id="wal_yuan", customer_id=CUSTOMER, currency="CNY")
    await api.local.wallets.CreateWallet(yuan)
    await api.local.new_wallet("wal_other", "cus_other")
    ends = time.text(now + DAY)
    await grants.given("1", "1", name="a", expires_at=ends)
    await grants.given("2", "1", name="b", wallet_id="wal_yuan", category="promotional")
    clock.advance(1)
    await grants.given("3", "1", name="c", wallet_id="wal_other", effective_at=ends)
    await grants.given(
        "4", "1", name="d", wallet_id="wal_yuan", expires_at=time.text(now + 2 * DAY)
    )
    clock.advance(1)
    await grants.void("void", await grants.given("5", "1", name="e"))

    assert await grants.listed() == ["e", "c", "d", "b", "a"]
    assert await grants.listed(customer_id=CUSTOMER) == ["e", "d", "b", "a"]
    assert await grants.listed(wallet_id=WALLET) == ["e", "a"]
    assert await grants.listed(category="promotional") == ["b"]
    assert await grants.listed(expiring_before=time.text(now + 2 * DAY)) == ["a"]
    assert await grants.listed(status="voided") == ["e"]
    assert await grants.listed(status="pending") == ["c"]
    assert await grants.listed(status="granted", customer_id=CUSTOMER) == ["d", "b", "a"]
    assert await grants.listed(status="depleted") == []
    narrower: list[dict[str, Any]] = [{}, {"customer_id": CUSTOMER}, {"wallet_id": "wal_yuan"}]
    for filters in narrower:
        names, token = [], None
        while token != "":
            page = await grants.page(page_size=1, page_token=token, **filters)
            names += [one.name for one in page.credit_grants]
            token = page.next_page_token
        assert names == await grants.listed(**filters)
    clock.advance(DAY)
    assert await grants.listed(status="expired") == ["a"]
    assert await grants.listed(status="granted") == ["c", "d", "b"]

    own = (await grants.page(api.customer)).credit_grants
    assert [one.name for one in own] == ["e", "d", "b", "a"]
    hidden = await refused(grants.page(api.customer, customer_id="cus_other"))
    assert hidden == Refused("NOT_FOUND", "customer_id")
    for wallet_id in ("wal_other", "wal_none"):
        hidden = await refused(grants.page(api.customer, wallet_id=wallet_id))
        assert hidden == Refused("NOT_FOUND", "wallet_id")
    bad: dict[str, Any] = {"status": "open", "category": "free", "expiring_before": "soon"}
    for param, value in bad.items():
        found = await refused(grants.page(None, **{param: value}))
        assert found == Refused("INVALID_FIELD", param)
    token = (await grants.page(page_size=1)).next_page_token
    moved = await refused(grants.page(page_token=token, status="voided"))
    assert moved == Refused("INVALID_FIELD", "page_token")
    test = await api.local.key("service", livemode=False)
    assert not (await grants.page(test)).credit_grants
    assert (await refused(grants.page(livemode=False))).reason == "MODE_MISMATCH"


async def test_sums(grants: Grants, api: Api, clock: Clock) -> None:
    """By currency: given, left, held, pending, and what ends soon without what is held of it."""
    yuan = pb.CreateWalletRequest(id="wal_yuan", customer_id=CUSTOMER, currency="CNY")
    await api.local.wallets.CreateWallet(yuan)
    soon, late = time.text(clock.now + DAY), time.text(clock.now + 8 * DAY)
    await grants.given("1", "10", expires_at=soon)
    await grants.given("2", "5", expires_at=late)
    await grants.given("3", "3", effective_at=soon)
    await grants.given("4", "7", wallet_id="wal_yuan")
    await api.post("spent", **consume("2"))
    await grants.hold("hold", "9", ttl_seconds=2 * 86_400)

    def sums(one: grants_pb.CreditGrantSummary) -> tuple[object, ...]:
        figures = (one.granted, one.remaining, one.held, one.pending, one.expiring)
        return one.currency, one.count, *figures

    cny = ("CNY", 1, "7.00", "7.00", "0.00", "0.00", "0.00")
    found = await grants.summary(customer_id=CUSTOMER)
    assert list(map(sums, found)) == [
        cny,
        ("USD", 3, "18.00", "16.00", "9.00", "3.00", "0.00"),
    ]
    assert found == await grants.summary(api.customer)
    (usd,) = await grants.summary(wallet_id=WALLET, within_days=8)
    assert sums(usd) == ("USD", 3, "18.00", "16.00", "9.00", "3.00", "4.00")
    clock.advance(DAY)
    (usd,) = await grants.summary(wallet_id=WALLET)
    # The first grant is over; what the hold has of it is left.
    assert sums(usd) == ("USD", 3, "18.00", "16.00", "9.00", "0.00", "4.00")
    assert await refused(grants.summary()) == Refused("MISSING_FIELD", "customer_id")
    assert await refused(grants.summary(wallet_id="wal_none")) == Refused("NOT_FOUND", "wallet_id")
    assert await grants.summary(customer_id="cus_none") == []
    bad = await refused(grants.summary(customer_id=CUSTOMER, within_days=0))
    assert bad == Refused("INVALID_FIELD", "within_days")


# --- the trace ------------------------------------------------------------------------------------


async def test_which_rows_are_of_a_grant(
    grants: Grants, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them once, either way round, however few rows a page may look at."""
    await grants.given("other", "100", priority=60)
    id_ = await grants.given("given", "3")
    spent = [await api.post(f"spent {n}", **consume("1")) for n in range(6)]
    await api.post("back", **refund(spent[1].posting_id))
    mine = ["3.00", "-1.00", "-1.00", "-1.00", "1.00"]

    for looked_at in (1, 2, 3, 50_000):
        monkeypatch.setattr(store_grants, "ROWS_LOOKED_AT_MAX", looked_at)
        for order, expected in (("oldest", mine), ("newest", mine[::-1])):
            for size in (1, 2, 20):
                amounts, token = [], None
                while token != "":
                    page = await grants.rows(id_, order=order, page_size=size, page_token=token)
                    assert len(page.transactions) <= size
                    amounts += [one.amount for one in page.transactions]
                    token = page.next_page_token
                assert amounts == expected
    page = await grants.rows(id_, page_size=1)
    assert page.transactions[0].credit_grant.id == id_
    assert page.transactions[0].customer.id == CUSTOMER
    turned = await refused(grants.rows(id_, order="oldest", page_token=page.next_page_token))
    assert turned == Refused("INVALID_FIELD", "page_token")
    assert await refused(grants.rows(id_, order="up")) == Refused("INVALID_FIELD", "order")


async def test_which_grants_paid_a_posting(grants: Grants, api: Api) -> None:
    """How much of each, overdraft apart; what a refund gave back, likewise."""
    limit = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="5")
    await api.wallets.UpdateWallet(limit, metadata=api.admin)
    gift = await grants.given("gift", "2", category="promotional", name="Gift")
    paid = await grants.given("paid", "3")
    spent = await api.post("spent", **consume("6"))

    found = await grants.moved(spent.posting_id)

    rows = [one.id for one in spent.transactions]
    assert found == grants_pb.CreditGrantServiceListPostingGrantsResponse(
        posting_id=spent.posting_id,
        wallet_id=WALLET,
        currency="USD",
        grants=[
            grants_pb.PostingGrant(
                credit_grant_id=gift,
                credit_transaction_id=rows[0],
                amount="-2.00",
                category="promotional",
                name="Gift",
            ),
            grants_pb.PostingGrant(
                credit_grant_id=paid,
                credit_transaction_id=rows[1],
                amount="-3.00",
                category="paid",
            ),
        ],
        overdraft="-1.00",
    )
    assert found == await grants.moved(spent.posting_id, api.customer)
    back = await api.post("back", **refund(spent.posting_id, amount="2"))
    returned = await grants.moved(back.posting_id)
    assert [(one.credit_grant_id, one.amount) for one in returned.grants] == [(paid, "1.00")]
    assert returned.overdraft == "1.00"
    await api.local.new_wallet("wal_other", "cus_other")
    stranger = await api.local.key("customer", "cus_other")
    hidden = Refused("NOT_FOUND", "posting_id")
    assert await refused(grants.moved(spent.posting_id, stranger)) == hidden
    assert await refused(grants.moved(ids.compose("pst", 1, 999_999_999))) == hidden
    assert await refused(grants.moved("pst_x")) == Refused("INVALID_FIELD", "posting_id")
