"""What webhooks tell: crossings once each, grants used up or about to end, holds that are over."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from credit.v1 import webhook_service_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.domain.model import Kind
from creditledger.domain.webhook_events import (
    JITTER,
    PAUSE_MS_MAX,
    TRYING_MS,
    BalanceMove,
    Crossing,
    Drawn,
    Threshold,
    crossings,
    depletions,
    next_attempt,
)
from creditledger.outlets.webhooks import notifier
from creditledger.store import schema
from tests.outlets.test_webhooks import endpoint, log_of
from tests.support.server import CUSTOMER, WALLET, Api, adjust, consume, grant, refund, serve
from tests.support.setup import change

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from creditledger.outlets.webhooks.notifier import Notifier
    from tests.support.setup import Clock

#: Nobody is there: what is made is read from the log.
NOWHERE = "https://acme.invalid/hooks"
THRESHOLD = pb.WebhookThreshold


def making(api: Api) -> Notifier:
    """The server's notifier, to be told when to look."""
    assert api.server.background is not None
    return api.server.background.notifier


async def events(
    api: Api, made: pb.CreateWebhookEndpointResponse, *, look: bool = False
) -> list[pb.WebhookEvent]:
    """All that is made for the endpoint, in the order in which it was, once nothing more waits."""
    while await making(api).follow():
        pass
    if look:
        await making(api).look()
    found = []
    for one in reversed(await log_of(api, made, page_size=100)):
        request = pb.GetWebhookDeliveryRequest(id=one.id)
        whole = await api.webhooks.GetWebhookDelivery(request, metadata=api.service)
        found.append(whole.event)
    return found


# --- balances -------------------------------------------------------------------------------------


async def test_a_threshold_is_told_once_for_each_crossing(database_url: str, clock: Clock) -> None:
    """At it is low, above it is recovered; what stays on one side says nothing."""
    async with serve(database_url, clock) as api:
        made = await endpoint(
            api,
            NOWHERE,
            "balance.low",
            "balance.recovered",
            thresholds=[THRESHOLD(amount="2", currency_id="USD"), THRESHOLD(percent=20)],
        )
        balances = ["10", "5", "2", "1", "2.5", "2", "12.00", "2.41", "2.4", "2.4"]
        before = 0.0
        for n, balance in enumerate(balances):
            amount = f"{float(balance) - before:.2f}"
            before = float(balance)
            if amount.startswith("-"):
                await api.post(f"{n}", **consume(amount[1:]))
            elif n == 6:
                await api.post(f"{n}", **grant(amount))
            elif amount != "0.00":
                await api.post(f"{n}", **adjust(amount))
        told = [
            (
                one.type.partition(".")[2],
                one.data.balance.balance,
                one.data.balance.threshold.amount or f"{one.data.balance.threshold.percent}%",
            )
            for one in await events(api, made)
        ]

        # A correction upwards is a grant as well: 20% are of 10, then of 2.5, then of 12.
        assert told == [
            ("low", "2.00", "2.00"),
            ("low", "2.00", "20%"),
            ("recovered", "2.50", "2.00"),
            ("recovered", "2.50", "20%"),
            ("low", "2.00", "2.00"),
            ("recovered", "12.00", "2.00"),
            ("low", "2.40", "20%"),
        ]


async def test_a_posting_of_many_rows_crosses_once(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever pieces its rows are read in, and whatever its rows cross between them."""
    monkeypatch.setattr(notifier, "STEP_ROWS", 2)
    async with serve(database_url, clock) as api:
        made = await endpoint(
            api,
            NOWHERE,
            *("balance.low", "balance.recovered", "transaction.created", "grant.depleted"),
            thresholds=[THRESHOLD(amount=str(n), currency_id="USD") for n in (1, 3)],
        )
        for n in range(7):
            await api.post(f"given {n}", **grant("1"))
        spent = await api.post("spent", **consume("6.5"))
        assert len(spent.transactions) == 7
        await api.post("given back", **refund(spent.posting_id))
        told = await events(api, made)

        by_type: dict[str, list[pb.WebhookEvent]] = {}
        for one in told:
            by_type.setdefault(one.type, []).append(one)
        last = spent.transactions[-1].id
        low = [(one.data.balance.threshold.amount, one.data.balance.transaction_id)
               for one in by_type["balance.low"]]  # fmt: skip
        # A wallet begins above: its first credit leaves it at 1, and at 3 later.
        first = [ids.compose("ct", 1, 1)] * 2
        assert low == [*zip(["1.00", "3.00"], first, strict=True), ("1.00", last), ("3.00", last)]
        recovered = [one.data.balance.balance for one in by_type["balance.recovered"]]
        assert recovered == ["2.00", "4.00", "7.00", "7.00"]
        created = [one.data.transaction.sequence for one in by_type["transaction.created"]]
        assert created == list(range(1, len(created) + 1))
        depleted = [one.data.credit_grant.id for one in by_type["grant.depleted"]]
        assert depleted == [ids.compose("cg", 1, n) for n in range(1, 7)]


async def test_another_currency_crosses_no_amount(database_url: str, clock: Clock) -> None:
    """An amount is one of a currency; a percentage is of whatever the wallet has."""
    async with serve(database_url, clock) as api:
        credit = wallets_pb.CreateWalletRequest(
            id="wal_credit", customer_id=CUSTOMER, currency="CREDIT"
        )
        await api.local.wallets.CreateWallet(credit)
        lines = [THRESHOLD(amount="50", currency_id="USD"), THRESHOLD(percent=50)]
        made = await endpoint(api, NOWHERE, "balance.low", thresholds=lines)
        await api.post("given", "wal_credit", **grant("10"))
        await api.post("spent", "wal_credit", **consume("9"))
        (told,) = await events(api, made)

        assert told.data.balance.threshold == THRESHOLD(percent=50)
        assert (told.data.balance.currency_id, told.data.balance.balance) == ("CREDIT", "1.00")


#: What happens to a balance, and the number of rows that say so.
_POSTINGS = st.lists(
    st.tuples(
        st.sampled_from([Kind.TOPUP, Kind.REFUND, Kind.USAGE, Kind.EXPIRY, Kind.TRANSFER_IN]),
        st.lists(st.integers(1, 40), min_size=1, max_size=3),
    ),
    max_size=20,
)
_LINES = st.lists(
    st.one_of(
        st.builds(lambda amount: Threshold("USD", amount, None), st.integers(0, 60)),
        st.builds(lambda percent: Threshold(None, None, percent), st.integers(1, 99)),
    ),
    max_size=3,
    unique=True,
)


@settings(max_examples=200)
@given(postings=_POSTINGS, lines=_LINES, chance=st.randoms(use_true_random=False))
def test_crossings_are_those_of_a_naive_model(
    postings: list[tuple[Kind, list[int]]], lines: list[Threshold], chance: Random
) -> None:
    """Read in any pieces of whole postings: each change of side, and nothing else."""
    rows: list[BalanceMove] = []
    balance = reference = 0
    #: Balance and reference behind each posting.
    states = [(0, 0, 0)]
    for number, (kind, amounts) in enumerate(postings, 1):
        sign = -1 if kind in (Kind.USAGE, Kind.EXPIRY) else 1
        for amount in amounts:
            balance += sign * amount
            if kind in (Kind.TOPUP, Kind.TRANSFER_IN):
                reference = balance
            rows.append(BalanceMove(len(rows) + 1, number, kind, balance))
        states.append((len(rows), balance, reference))

    def low(line: Threshold, state: tuple[int, int, int]) -> bool:
        _, balance, reference = state
        if not state[0]:
            return False
        if line.percent is None:
            assert line.amount is not None
            return balance <= line.amount
        return balance <= reference * line.percent / 100

    expected = {
        (line, low(line, after), after[0], after[1])
        for line in lines
        for before, after in pairwise(states)
        if low(line, before) != low(line, after)
    }
    cuts = sorted({0, len(states) - 1, *chance.sample(range(len(states)), len(states) // 3)})
    found: list[Crossing] = []
    for first, last in pairwise(cuts):
        begun, *before = states[first]
        piece = rows[begun : states[last][0]]
        found += crossings((before[0], before[1]) if begun else None, piece, lines)

    assert len(found) == len(expected)
    assert {tuple(one) for one in found} == expected


# --- grants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, notifier.STEP_ROWS])
async def test_a_grant_that_is_used_up_is_told(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """By consumption, capture or transfer, again after a refund; not by end, void, correction.

    What was left of a grant is known from step to step, however many rows one has.
    """
    monkeypatch.setattr(notifier, "STEP_ROWS", rows)
    async with serve(database_url, clock) as api:
        await api.local.new_wallet("wal_other", "cus_other")
        made = await endpoint(api, NOWHERE, "grant.depleted", customer_id=CUSTOMER)
        await api.post("1", **grant("1", name="First"))
        spent = await api.post("spent", **consume("1"))
        await api.post("back", **refund(spent.posting_id))
        await api.post("again", **consume("1"))
        await api.post("2", **grant("2"))  # row 5
        hold = wallets_pb.HoldRequest(wallet_id=WALLET, idempotency_key="hold", amount="2")
        held = await api.wallets.Hold(hold, metadata=api.service)
        capture = wallets_pb.CaptureHoldRequest(hold_id=held.hold.id, idempotency_key="capture")
        await api.wallets.CaptureHold(capture, metadata=api.service)
        await api.post("3", **grant("3"))  # row 7
        transfer = wallets_pb.TransferRequest(
            idempotency_key="transfer",
            from_wallet_id=WALLET,
            to_wallet_id="wal_other",
            amount="3",
        )
        await api.wallets.Transfer(transfer, metadata=api.service)
        await api.post("4", **grant("4", expires_at=time.text(clock.now + HOUR)))
        clock.advance(HOUR)
        await api.post("5", **grant("5"))
        await api.post("corrected", **adjust("-5"))
        await api.post("6", **grant("6"))
        (sixth,) = (
            await api.grants.List(
                grants_pb.CreditGrantServiceListRequest(wallet_id=WALLET, page_size=1),
                metadata=api.service,
            )
        ).credit_grants
        void = grants_pb.CreditGrantServiceVoidRequest(id=sixth.id, idempotency_key="void")
        await api.grants.Void(void, metadata=api.service)
        told = await events(api, made)

        grants = [(one.data.credit_grant.id, one.data.credit_grant.name) for one in told]
        assert grants == [
            (ids.compose("cg", 1, 1), "First"),
            (ids.compose("cg", 1, 1), "First"),
            (ids.compose("cg", 1, 5), ""),
            (ids.compose("cg", 1, 7), ""),
        ]
        assert {one.data.credit_grant.status for one in told} == {"depleted"}


@settings(max_examples=200)
@given(
    draws=st.lists(st.tuples(st.integers(1, 3), st.integers(-4, 4)), max_size=30),
    split=st.integers(0, 30),
)
def test_depletions_are_those_of_a_naive_model(draws: list[tuple[int, int]], split: int) -> None:
    """Counted backwards from what remains now, as counted forwards from the beginning."""
    left = dict.fromkeys((1, 2, 3), 5)
    rows: list[Drawn] = []
    expected = []
    behind: dict[int, int] = {}
    for number, wanted in draws:
        amount = max(wanted, -left[number])
        if not amount:
            continue
        left[number] += amount
        kind = Kind.USAGE if amount < 0 else Kind.REFUND
        if amount == -4:
            kind = Kind.EXPIRY
        rows.append(Drawn(len(rows) + 1, kind, number, amount))
        if len(rows) <= split:
            behind = dict(left)
            if not left[number] and kind is Kind.USAGE:
                expected.append(rows[-1])

    assert depletions(rows[:split], behind) == expected


async def test_a_grant_about_to_end_is_told(database_url: str, clock: Clock) -> None:
    """Once for each end, as many days before as the endpoint says; not of what is used up."""
    async with serve(database_url, clock) as api:
        made = await endpoint(api, NOWHERE, "grant.expiring", expiring_days=3)
        for n in (1, 2):
            end = time.text(clock.now + 5 * DAY)
            await api.post(f"given {n}", **grant(f"{n}", expires_at=end))
        await api.post("for ever", **grant("1"))
        await api.post("spent", **consume("1"))
        assert await events(api, made, look=True) == []
        clock.advance(2 * DAY - 1)
        assert await events(api, made, look=True) == []
        clock.advance(1)
        (told,) = await events(api, made, look=True)
        assert told.data.credit_grant.id == ids.compose("cg", 1, 2)
        assert await events(api, made, look=True) == [told]

        moved = grants_pb.CreditGrantServiceUpdateRequest(
            id=told.data.credit_grant.id, expires_at=time.text(clock.now + 4 * DAY)
        )
        await api.grants.Update(moved, metadata=api.service)
        assert await events(api, made, look=True) == [told]
        clock.advance(DAY)
        again = await events(api, made, look=True)
        assert [one.data.credit_grant.expires_at for one in again] == [
            told.data.credit_grant.expires_at,
            moved.expires_at,
        ]


# --- holds ----------------------------------------------------------------------------------------


async def test_a_hold_that_is_over_is_told(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, though nobody sweeps; not those captured, released or over before it was asked."""
    monkeypatch.setattr(notifier, "PAGE", 2)
    async with serve(database_url, clock) as api:
        await api.post("given", **grant("50"))

        async def hold(key: str) -> str:
            request = wallets_pb.HoldRequest(
                wallet_id=WALLET, idempotency_key=key, amount="1", ttl_seconds=60
            )
            return (await api.wallets.Hold(request, metadata=api.service)).hold.id

        await hold("before")
        clock.advance(MINUTE + SECOND)
        made = await endpoint(api, NOWHERE, "hold.expired")
        over = [await hold(f"over {n}") for n in range(5)]
        release = wallets_pb.ReleaseHoldRequest(hold_id=await hold("r"), idempotency_key="release")
        await api.wallets.ReleaseHold(release, metadata=api.service)
        capture = wallets_pb.CaptureHoldRequest(hold_id=await hold("c"), idempotency_key="capture")
        await api.wallets.CaptureHold(capture, metadata=api.service)
        assert await events(api, made, look=True) == []
        clock.advance(MINUTE)
        told = await events(api, made, look=True)
        assert sorted(one.data.hold.id for one in told) == sorted(over)
        assert {one.data.hold.status for one in told} == {"expired"}
        clock.advance(DAY)
        late = await hold("late")
        clock.advance(DAY)
        assert [one.data.hold.id for one in await events(api, made, look=True)][5:] == [late]
        clock.advance(DAY)
        assert len(await events(api, made, look=True)) == 6


# --- how it is made -------------------------------------------------------------------------------


async def test_of_many_who_make_one_does(database_url: str, clock: Clock) -> None:
    """Steps at the same time make each event once."""
    async with serve(database_url, clock) as api:
        made = await endpoint(api, NOWHERE, "transaction.created", "grant.expiring")
        end = time.text(clock.now + HOUR)
        for n in range(20):
            await api.post(f"given {n}", **grant("1", expires_at=end))
        both: Sequence[Any] = [making(api).follow() for _ in range(5)]
        await asyncio.gather(*both, *(making(api).look() for _ in range(3)))
        told = await events(api, made, look=True)

        assert len(told) == 40
        assert len({one.id for one in told}) == 40


async def test_a_mark_of_another_ledger_does_not_stop_it(database_url: str, clock: Clock) -> None:
    """Where the rows are those of an older state, what is told begins at their end."""
    async with serve(database_url, clock) as api:
        made = await endpoint(api, NOWHERE, "transaction.created")
        await api.post("before", **grant("1"))
        beyond = update(schema.webhook_feed).values(mark="900000000000-0-0")
        change(database_url, lambda connection: connection.execute(beyond))
        assert await events(api, made) == []
        await api.post("after", **grant("2"))
        (told,) = await events(api, made)

        assert told.data.transaction.amount == "2.00"


async def test_what_is_old_goes(database_url: str, clock: Clock) -> None:
    """After the days of the setting; what tells of an end to come stays until then."""
    async with serve(database_url, clock, webhook_retention_days=10) as api:
        assert api.server.background is not None
        forget = api.server.background.deliverer.forget
        kinds = ("transaction.created", "grant.expiring")
        made = await endpoint(api, NOWHERE, *kinds, expiring_days=30)
        await api.post("given", **grant("1", expires_at=time.text(clock.now + 20 * DAY)))
        assert len(await events(api, made, look=True)) == 2
        clock.advance(10 * DAY)
        assert await forget() == 0
        clock.advance(1)
        assert await forget() == 1
        (kept,) = await events(api, made, look=True)
        assert kept.type == "grant.expiring"
        clock.advance(20 * DAY)
        assert await forget() == 1


def test_pauses_double_up_to_a_day() -> None:
    """From five seconds to four hours, each a little other than told, the last at the day's end."""
    for chance in (0.0, 0.5, 0.999):
        now, attempts, pauses = 0, 1, []
        while (again := next_attempt(now, TRYING_MS, chance)) is not None:
            pauses.append(again - now)
            now, attempts = again, attempts + 1
        assert now == TRYING_MS
        assert 15 <= attempts <= 30
        assert 4 * SECOND <= pauses[0] <= 6 * SECOND
        assert max(pauses) <= PAUSE_MS_MAX * (1 + JITTER)
        assert all(low <= high for low, high in pairwise(pauses[1:-1]))
