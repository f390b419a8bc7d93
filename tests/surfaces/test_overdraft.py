"""Overdraft that grants pay back: as they are given, as they begin and as they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import statement_service_pb2 as statements_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub
from sqlalchemy import select

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.store import schema
from tests.support.refusals import Refused, refused
from tests.support.server import (
    TWO_DAYS_OF_BILLS,
    WALLET,
    adjust,
    consume,
    grant,
    post,
    refund,
    serve,
)
from tests.support.setup import START, change, look

if TYPE_CHECKING:
    from tests.support.server import Api
    from tests.support.setup import Clock


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, and a wallet that may be overdrawn by 100."""
    await limit(api, "100")
    return api


async def limit(api: Api, amount: str) -> None:
    request = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit=amount)
    await api.wallets.UpdateWallet(request, metadata=api.admin)


async def given(api: Api, key: str, amount: str, **fields: Any) -> str:
    """The id of a new grant."""
    posted = await api.post(key, **grant(amount, **fields))
    return posted.transactions[0].credit_grant_id


async def the(api: Api, id_: str) -> tuple[str, str, str]:
    """What a grant has, what it has paid back, and what it is."""
    request = grants_pb.CreditGrantServiceRetrieveRequest(id=id_)
    one = await api.grants.Retrieve(request, metadata=api.service)
    return one.remaining, one.overdraft_paid, one.status


async def stands(api: Api, **when: Any) -> tuple[str, str, str]:
    """Balance, available and overdraft used."""
    request = pb.GetBalanceRequest(wallet_id=WALLET, **when)
    found = await api.wallets.GetBalance(request, metadata=api.customer)
    return found.balance, found.available, found.overdraft_used


async def held(api: Api, key: str, amount: str, **fields: Any) -> str:
    """The id of a new hold."""
    request = pb.HoldRequest(wallet_id=WALLET, idempotency_key=key, amount=amount, **fields)
    return (await api.wallets.Hold(request, metadata=api.service)).hold.id


async def sweep(api: Api) -> int:
    """Write down what is over; how much that was."""
    assert api.server.background is not None
    return await api.server.background.sweeper.sweep()


async def test_a_grant_that_begins_later_pays_what_is_overdrawn_then(
    api: Api, clock: Clock
) -> None:
    """A grant repays overdraft as it begins, every read of that moment has it, none expires."""
    await api.post("1", **consume("10"))
    starts, ends = clock.now + MINUTE, clock.now + 2 * MINUTE
    later = await given(api, "2", "10", effective_at=time.text(starts), expires_at=time.text(ends))
    assert await stands(api) == ("0.00", "-10.00", "10.00")
    assert await stands(api, as_of=time.text(starts - 1)) == ("0.00", "-10.00", "10.00")
    assert await stands(api, as_of=time.text(starts)) == ("0.00", "0.00", "0.00")
    assert await stands(api, as_of=time.text(ends)) == ("0.00", "0.00", "0.00")

    clock.now = starts

    assert await stands(api) == ("0.00", "0.00", "0.00")
    assert (await api.wallet_now()).overdraft_used == "0.00"
    assert await the(api, later) == ("0.00", "10.00", "depleted")
    clock.now = ends
    assert await sweep(api) == 1
    assert await stands(api) == ("0.00", "0.00", "0.00")
    assert await the(api, later) == ("0.00", "10.00", "expired")
    assert (await api.wallet_now()).sequence == 2
    # The past does not depend on who wrote it down, and when.
    for moment, used in ((starts - 1, "10.00"), (starts, "0.00"), (ends, "0.00")):
        assert (await stands(api, as_of=time.text(moment)))[2] == used


async def test_it_pays_before_any_command_of_that_moment(
    api: Api, clock: Clock, database_url: str
) -> None:
    """Of a grant that begins, only what is left after repaying overdraft can be spent."""
    await api.post("1", **consume("10"))
    later = await given(api, "2", "15", effective_at=time.text(clock.now + MINUTE))
    other = await given(api, "3", "4", effective_at=time.text(clock.now + MINUTE), priority=90)
    await limit(api, "0")
    clock.advance(MINUTE)

    assert await refused(api.wallets.Post(post("4", **consume("9.01")), metadata=api.service)) == (
        Refused(
            "INSUFFICIENT_CREDIT",
            None,
            {"required": "9.01", "available": "9.00", "currency": "USD"},
        )
    )

    # A refused command writes nothing, and it stays due.
    repayments = schema.grant_repayments
    assert look(database_url, lambda c: c.execute(repayments.select()).all()) == []
    spent = await api.post("5", **consume("9"))
    assert [one.amount for one in spent.transactions] == ["-5.00", "-4.00"]
    assert [one.credit_grant_id for one in spent.transactions] == [later, other]
    assert await the(api, later) == ("0.00", "10.00", "depleted")
    assert await the(api, other) == ("0.00", "0.00", "depleted")


async def test_what_a_command_sees_of_that_moment_is_not_written_by_validate_only(
    api: Api, clock: Clock, database_url: str
) -> None:
    """A dry run answers the wallet as it would be and leaves it as it is."""
    await api.post("1", **consume("10"))
    later = await given(api, "2", "15", effective_at=time.text(clock.now + MINUTE))
    clock.advance(MINUTE)

    dry = await api.post("3", **consume("1"), validate_only=True)

    assert (dry.wallet.balance, dry.wallet.overdraft_used) == ("4.00", "0.00")
    repayments = schema.grant_repayments
    assert look(database_url, lambda c: c.execute(repayments.select()).all()) == []
    assert await the(api, later) == ("5.00", "10.00", "granted")


async def test_credit_beside_debt_pays_when_its_grant_ends(api: Api, clock: Clock) -> None:
    """A forced debit of one grant leaves another free: at its end it pays, and the rest expires."""
    one = await given(api, "1", "1")
    other = await given(api, "2", "10", expires_at=time.text(clock.now + HOUR))
    forced = post("3", **adjust("-7", credit_grant_id=one, force=True))
    await api.wallets.Post(forced, metadata=api.admin)
    assert await stands(api) == ("4.00", "4.00", "6.00")
    ends = clock.now + HOUR
    assert await stands(api, as_of=time.text(ends)) == ("0.00", "0.00", "0.00")

    clock.now = ends + SECOND

    assert await stands(api) == ("0.00", "0.00", "0.00")
    posted = await api.post("4", **grant("5"))
    assert (posted.wallet.balance, posted.wallet.overdraft_used) == ("5.00", "0.00")
    assert await the(api, other) == ("0.00", "6.00", "expired")
    assert (await stands(api, as_of=time.text(ends - 1))) == ("4.00", "4.00", "6.00")
    assert (await stands(api, at_sequence=4)) == ("4.00", "4.00", "6.00")
    assert (await stands(api, at_sequence=5)) == ("0.00", "0.00", "0.00")


@pytest.mark.parametrize("how", ["deadline", "release", "capture"])
async def test_what_a_hold_gives_up_of_an_ended_grant_pays_first(
    api: Api, clock: Clock, how: str
) -> None:
    """However the hold ends, what would expire pays overdraft before that."""
    ending = await given(api, "1", "10", expires_at=time.text(clock.now + MINUTE))
    hold = await held(api, "2", "10", ttl_seconds=120)
    await api.post("3", **consume("4"))
    clock.advance(MINUTE + 1)
    assert await stands(api) == ("6.00", "-4.00", "4.00")

    match how:
        case "release":
            release = pb.ReleaseHoldRequest(hold_id=hold, idempotency_key="4")
            await api.wallets.ReleaseHold(release, metadata=api.service)
        case "capture":
            capture = pb.CaptureHoldRequest(
                hold_id=hold, idempotency_key="4", amount="1", final=True
            )
            await api.wallets.CaptureHold(capture, metadata=api.service)
        case _:
            clock.advance(MINUTE)

    assert await stands(api) == ("0.00", "0.00", "0.00")
    clock.advance(MINUTE)
    await sweep(api)
    assert await stands(api) == ("0.00", "0.00", "0.00")
    assert await the(api, ending) == ("0.00", "4.00", "expired")


async def test_several_holds_of_an_ended_grant_pay_one_after_the_other(
    api: Api, clock: Clock
) -> None:
    """Each hold pays as it ends until nothing is overdrawn, and the rest expires."""
    await given(api, "1", "9", expires_at=time.text(clock.now + MINUTE))
    await held(api, "2", "2", ttl_seconds=60)
    await held(api, "3", "3", ttl_seconds=90)
    await held(api, "4", "3", ttl_seconds=120)
    await api.post("5", **consume("7"))
    assert (await stands(api))[2] == "6.00"

    used = [
        (await stands(api, as_of=time.text(START + seconds * SECOND)))[2]
        for seconds in (59, 60, 90, 120)
    ]

    assert used == ["6.00", "4.00", "1.00", "0.00"]
    clock.advance(3 * MINUTE)
    posted = await api.post("6", **grant("1"))
    assert (posted.wallet.balance, posted.wallet.overdraft_used) == ("1.00", "0.00")
    assert posted.wallet.sequence == 5


async def test_voided_and_scoped_grants_pay_nothing(api: Api, clock: Clock) -> None:
    """A grant that is voided or has a scope pays back no overdraft as it begins or ends."""
    when = {"effective_at": time.text(START + MINUTE), "expires_at": time.text(START + HOUR)}
    await api.post("1", **consume("10"))
    voided = await given(api, "2", "10", **when)
    request = grants_pb.CreditGrantServiceVoidRequest(id=voided, idempotency_key="3")
    await api.grants.Void(request, metadata=api.service)
    await given(api, "4", "10", scope=pb.GrantScope(categories=["image"]), **when)

    clock.advance(HOUR)

    assert await stands(api) == ("-10.00", "-10.00", "10.00")
    await sweep(api)
    assert await stands(api) == ("-10.00", "-10.00", "10.00")


async def test_one_that_ends_pays_before_one_that_begins(api: Api, clock: Clock) -> None:
    """Where one grant ends as another begins, the one that ends pays first."""
    turn = time.text(clock.now + MINUTE)
    one = await given(api, "1", "1")
    ending = await given(api, "2", "5", expires_at=turn)
    forced = post("3", **adjust("-5", credit_grant_id=one, force=True))
    await api.wallets.Post(forced, metadata=api.admin)
    begins = await given(api, "4", "5", effective_at=turn)

    clock.advance(MINUTE)

    assert await stands(api) == ("5.00", "5.00", "0.00")
    assert await the(api, ending) == ("0.00", "4.00", "expired")
    assert await the(api, begins) == ("5.00", "0.00", "granted")
    await sweep(api)
    assert await the(api, begins) == ("5.00", "0.00", "granted")


async def test_lists_and_sums_of_grants_know_what_is_not_written_yet(
    api: Api, clock: Clock
) -> None:
    """A grant that has begun shows what it paid back, in its page and in the sums."""
    await api.post("1", **consume("3"))
    await given(
        api,
        "2",
        "10",
        effective_at=time.text(clock.now + MINUTE),
        expires_at=time.text(clock.now + DAY),
    )
    clock.advance(MINUTE)

    async def seen() -> tuple[str, str, str, str]:
        page = await api.grants.List(
            grants_pb.CreditGrantServiceListRequest(wallet_id=WALLET), metadata=api.service
        )
        sums = await api.grants.Summary(
            grants_pb.CreditGrantServiceSummaryRequest(wallet_id=WALLET), metadata=api.service
        )
        (one,), (total,) = page.credit_grants, sums.currencies
        return one.remaining, one.overdraft_paid, total.remaining, total.expiring

    before = await seen()
    assert before == ("7.00", "3.00", "7.00", "7.00")
    await limit(api, "5")  # as every change, it writes down what is due
    assert await seen() == before


async def test_statements_count_it_at_its_moment(api: Api, clock: Clock) -> None:
    """Periods chain across a repayment: each closes with what the next one opens with."""
    await api.post("1", **consume("10"))
    starts = clock.now + HOUR
    later = await given(api, "2", "4", effective_at=time.text(starts))
    clock.advance(DAY)
    stub = StatementServiceStub(api.channel)

    async def stated(start: int, end: int) -> Any:
        request = statements_pb.StatementServiceGetRequest(
            wallet_id=WALLET, start=time.text(start), end=time.text(end)
        )
        return await stub.Get(request, metadata=api.service)

    before, after = await stated(START, starts), await stated(starts, starts + HOUR)

    assert (before.overdraft.drawn, before.overdraft.repaid) == ("10.00", "0.00")
    assert (before.overdraft.closing, before.grants[0].closing) == ("10.00", "4.00")
    assert (after.overdraft.opening, after.overdraft.repaid) == ("10.00", "4.00")
    assert (after.overdraft.closing, after.grants[0].overdraft_repaid) == ("6.00", "4.00")
    assert (after.grants[0].credit_grant_id, after.grants[0].closing) == (later, "0.00")
    assert before.closing_balance == after.opening_balance == after.closing_balance == "-6.00"
    close = statements_pb.StatementServiceCloseRequest(
        wallet_id=WALLET, start=time.text(START), end=time.text(starts + HOUR)
    )
    closed = await stub.Close(close, metadata=api.admin)
    assert (closed.overdraft.repaid, closed.overdraft.closing) == ("4.00", "6.00")


async def test_a_transfer_finds_both_wallets_as_they_are_by_then(api: Api, clock: Clock) -> None:
    """Grants that begin pay in sender and receiver before the transfer moves anything."""
    other = "wal_other"
    await api.local.new_wallet(other, "cus_other")
    for wallet in (WALLET, other):
        await api.wallets.UpdateWallet(
            pb.UpdateWalletRequest(wallet_id=wallet, overdraft_limit="10"), metadata=api.admin
        )
        await api.post("1", wallet, **consume("2"))
        begins = time.text(clock.now + MINUTE)
        await api.post("2", wallet, **grant("5", effective_at=begins))
    clock.advance(MINUTE)

    request = pb.TransferRequest(
        from_wallet_id=WALLET, to_wallet_id=other, idempotency_key="3", amount="3"
    )
    await api.wallets.Transfer(request, metadata=api.service)

    found = [await api.wallet_now(wallet) for wallet in (WALLET, other)]
    assert [(one.available, one.overdraft_used) for one in found] == [
        ("0.00", "0.00"),
        ("6.00", "0.00"),
    ]


async def test_a_wallet_whose_debt_is_paid_can_be_closed(api: Api, clock: Clock) -> None:
    """A grant that begins and is used up by overdraft does not keep a wallet from closing."""
    await api.post("1", **consume("2"))
    await api.post("2", **grant("2", effective_at=time.text(clock.now + MINUTE)))
    clock.advance(MINUTE)

    request = pb.UpdateWalletRequest(wallet_id=WALLET, status="closed")
    closed = await api.wallets.UpdateWallet(request, metadata=api.admin)

    assert (closed.status, closed.overdraft_used, closed.balance) == ("closed", "0.00", "0.00")


async def test_a_refund_of_a_spent_grant_beside_debt_pays_at_the_grants_end(
    api: Api, clock: Clock
) -> None:
    """Credit that comes back to its grant while something is overdrawn does not expire."""
    await given(api, "1", "5", expires_at=time.text(clock.now + HOUR))
    spent = await api.post("2", **consume("5"))
    await api.post("3", **consume("3"))
    await api.post("4", **refund(spent.posting_id))
    assert await stands(api) == ("2.00", "2.00", "3.00")

    clock.advance(HOUR)

    assert await stands(api) == ("0.00", "0.00", "0.00")
    assert await sweep(api) == 2


async def test_what_was_before_the_ledger_learnt_it_stays(database_url: str, clock: Clock) -> None:
    """In an older wallet only what begins or ends afterwards pays."""
    learnt = schema.wallets.update().values(repays_from=START + HOUR)
    async with serve(database_url, clock) as api:
        change(database_url, lambda connection: connection.execute(learnt))
        await limit(api, "100")
        await api.post("1", **consume("10"))
        begun = await given(
            api,
            "2",
            "4",
            effective_at=time.text(clock.now + MINUTE),
            expires_at=time.text(clock.now + DAY),
        )
        clock.advance(HOUR)

        assert await stands(api) == ("-6.00", "-6.00", "10.00")
        assert await the(api, begun) == ("4.00", "0.00", "granted")
        later = await given(api, "3", "1", effective_at=time.text(clock.now + 1))
        clock.advance(1)
        assert await the(api, later) == ("0.00", "1.00", "depleted")
        clock.advance(DAY)
        assert await stands(api) == ("-5.00", "-5.00", "5.00")
        assert await stands(api, as_of=time.text(START + MINUTE)) == ("-6.00", "-6.00", "10.00")
        assert await the(api, begun) == ("0.00", "4.00", "expired")


# --- refunds -------------------------------------------------------------------------------------

#: 2026-10-21T15:00:00Z: the first full hour after START and 30 days.
COMES_BACK_UNTIL = (START + 30 * DAY) // HOUR * HOUR + HOUR


async def of(api: Api, id_: str) -> tuple[str, str, int, str]:
    """Amount, category, priority and end of a grant."""
    request = grants_pb.CreditGrantServiceRetrieveRequest(id=id_)
    one = await api.grants.Retrieve(request, metadata=api.service)
    return one.amount, one.category, one.priority, one.expires_at


async def returned(api: Api, key: str, posting_id: str, **fields: Any) -> list[tuple[str, str]]:
    """(amount, grant) of a refund's rows; no grant is overdraft."""
    posted = await api.post(key, **refund(posting_id, **fields))
    return [(one.amount, one.credit_grant_id) for one in posted.transactions]


async def test_overdraft_that_promotional_credit_repaid_comes_back_as_that(
    api: Api, clock: Clock
) -> None:
    """A refund returns repaid overdraft with category and end of the grant that paid it."""
    spent = await api.post("1", **consume("10"))
    ends = clock.now + HOUR
    promo = {"category": "promotional", "priority": 7, "expires_at": time.text(ends)}
    await api.post("2", **grant("10", **promo))

    ((amount, back),) = await returned(api, "3", spent.posting_id, amount="4")

    assert amount == "4.00"
    assert await of(api, back) == ("4.00", "promotional", 7, time.text(ends))
    clock.now = ends
    ((_, later),) = await returned(api, "4", spent.posting_id)
    assert await of(api, later) == (
        "6.00",
        "promotional",
        7,
        time.text((ends + 30 * DAY) // HOUR * HOUR + HOUR),
    )


async def test_each_repayment_pays_the_oldest_draws(api: Api) -> None:
    """A refund returns what paid its own draw, newest first, then forgives what nothing paid."""
    first = await api.post("1", **consume("4"))
    second = await api.post("2", **consume("6"))
    paid = await given(api, "3", "3")
    promo = await given(api, "4", "4", category="promotional")
    assert (await stands(api))[2] == "3.00"

    # Of the second, 3 are owed and 3 were paid by the promotional grant.
    rows = await returned(api, "5", second.posting_id, amount="5")
    assert rows[0] == ("3.00", "")
    assert rows[1][0] == "2.00"
    assert await of(api, rows[1][1]) == ("2.00", "promotional", 50, "")
    # Of the first, 1 by the promotional one and 3 by the paid one.
    rows = await returned(api, "6", first.posting_id)
    assert [(amount, (await of(api, id_))[1]) for amount, id_ in rows] == [
        ("1.00", "promotional"),
        ("3.00", "paid"),
    ]
    assert await the(api, paid) == ("0.00", "3.00", "depleted")
    assert await the(api, promo) == ("0.00", "4.00", "depleted")


async def test_what_a_refund_forgave_is_not_paid_by_a_later_grant(api: Api) -> None:
    """A later grant passes over a draw that was refunded before anything paid it."""
    draws = [await api.post(f"{n}", **consume("2")) for n in range(3)]
    assert await returned(api, "3", draws[1].posting_id) == [("2.00", "")]
    await given(api, "4", "3", category="promotional")

    rows = await returned(api, "5", draws[2].posting_id)

    assert [amount for amount, _ in rows] == ["1.00", "1.00"]
    assert rows[0][1] == ""
    assert (await of(api, rows[1][1]))[1] == "promotional"
    rows = await returned(api, "6", draws[0].posting_id)
    assert [(amount, (await of(api, id_))[1]) for amount, id_ in rows] == [("2.00", "promotional")]


async def test_what_a_later_grant_repaid_comes_back_in_its_category(api: Api, clock: Clock) -> None:
    """A refund knows repayments of grants as they began or ended, which have no row."""
    spent = await api.post("1", **consume("2"))
    begins = time.text(clock.now + MINUTE)
    await api.post("2", **grant("2", effective_at=begins, category="promotional"))
    clock.advance(MINUTE)

    ((amount, back),) = await returned(api, "3", spent.posting_id)

    assert (amount, (await of(api, back))[1]) == ("2.00", "promotional")


async def test_expired_promotional_credit_comes_back_for_a_while(api: Api, clock: Clock) -> None:
    """Promotional credit returns until the first full hour after 30 days, paid without end."""
    ends = time.text(clock.now + MINUTE)
    await api.post("1", **grant("5", category="promotional", expires_at=ends, priority=3))
    await api.post("2", **grant("2", expires_at=ends))
    spent = await api.post("3", **consume("7"))
    clock.advance(MINUTE)

    rows = await returned(api, "4", spent.posting_id)

    assert [await of(api, id_) for _, id_ in rows] == [
        ("2.00", "paid", 50, ""),
        ("5.00", "promotional", 3, time.text(COMES_BACK_UNTIL)),
    ]


async def test_what_came_back_once_gets_no_new_end(api: Api, clock: Clock) -> None:
    """Returned credit keeps its end when refunded again; after that end it expires at once."""
    ends = time.text(clock.now + MINUTE)
    await api.post("1", **grant("5", category="promotional", expires_at=ends))
    spent = await api.post("2", **consume("5"))
    clock.advance(MINUTE)
    ((_, back),) = await returned(api, "3", spent.posting_id)
    again = await api.post("4", **consume("5"))
    assert await returned(api, "5", again.posting_id, amount="1") == [("1.00", back)]
    assert await of(api, back) == ("5.00", "promotional", 50, time.text(COMES_BACK_UNTIL))
    clock.now = COMES_BACK_UNTIL + SECOND

    dry = await api.post("6", **refund(again.posting_id), validate_only=True)
    assert dry.wallet.balance == "0.00"
    assert await returned(api, "6", again.posting_id) == [("4.00", back)]

    assert await stands(api) == ("0.00", "0.00", "0.00")
    # The one left over, the refund, and its own end.
    assert (await api.wallet_now()).sequence == 8
    assert await the(api, back) == ("0.00", "0.00", "expired")


async def test_transferred_it_gets_no_new_end_either(api: Api, clock: Clock) -> None:
    """A transfer to another wallet does not let returned credit last longer."""
    await api.local.new_wallet("wal_other", "cus_other")
    ends = time.text(clock.now + MINUTE)
    await api.post("1", **grant("5", category="promotional", expires_at=ends))
    spent = await api.post("2", **consume("5"))
    clock.advance(MINUTE)
    await returned(api, "3", spent.posting_id)
    request = pb.TransferRequest(
        from_wallet_id=WALLET, to_wallet_id="wal_other", idempotency_key="4", amount="5"
    )
    await api.wallets.Transfer(request, metadata=api.service)
    again = await api.post("5", "wal_other", **consume("5"))
    clock.now = COMES_BACK_UNTIL

    posted = await api.post("6", "wal_other", **refund(again.posting_id))

    assert [one.amount for one in posted.transactions] == ["5.00"]
    assert posted.wallet.balance == "0.00"


async def test_how_long_it_lasts_is_a_setting(database_url: str, clock: Clock) -> None:
    """With 0 days returned credit lasts until the next full hour."""
    async with serve(database_url, clock, refund_promotional_days=0) as api:
        ends = time.text(clock.now + SECOND)
        await api.post("1", **grant("5", category="promotional", expires_at=ends))
        spent = await api.post("2", **consume("5"))
        clock.advance(SECOND)

        ((_, back),) = await returned(api, "3", spent.posting_id)

        assert (await of(api, back))[3] == time.text(clock.now // HOUR * HOUR + HOUR)


async def test_what_a_voided_grant_paid_is_given_back_by_force_only(api: Api) -> None:
    """Draws and overdraft that a voided grant paid are refunded by force and admin key only."""
    overdrawn = await api.post("1", **consume("2"))
    voided = await given(api, "2", "5")
    spent = await api.post("3", **consume("3"))
    request = grants_pb.CreditGrantServiceVoidRequest(id=voided, idempotency_key="4")
    await api.grants.Void(request, metadata=api.service)

    for posting in (overdrawn, spent):
        asked = post("5", **refund(posting.posting_id))
        assert await refused(api.wallets.Post(asked, metadata=api.service)) == Refused(
            "NOT_REFUNDABLE", "refund.posting_id", {}
        )
        forced = post(f"6{posting.posting_id}", **refund(posting.posting_id, force=True))
        assert (await refused(api.wallets.Post(forced, metadata=api.service))).reason == (
            "SCOPE_DENIED"
        )
        done = await api.wallets.Post(forced, metadata=api.admin)
        assert len(done.transactions) == 1
    assert (await stands(api))[0] == "5.00"


async def test_in_bills_a_refund_is_of_what_it_reverses(api: Api, clock: Clock) -> None:
    """A bill takes off the voucher and pay parts that the refunded rows had."""
    spent = await api.post("1", **consume("10"))
    await api.post("2", **grant("10", category="promotional"))
    await returned(api, "3", spent.posting_id)

    for cycle in ("Day", "Month"):
        request = TWO_DAYS_OF_BILLS.__class__()
        request.CopyFrom(TWO_DAYS_OF_BILLS)
        request.cycle_type = cycle
        bills = await api.billing.ListApiKeyBills(request, metadata=api.customer)
        assert sum(one.voucher_amount for one in bills.bills) == 0
        assert sum(one.pay_amount for one in bills.bills) == 0


async def test_a_refund_reads_what_paid_its_draw_and_no_more(api: Api, database_url: str) -> None:
    """A refund reads one stretch of repayment, however many draws that paid."""
    for place in range(20):
        await api.post(f"s{place}", **consume("1"))
    middle = await api.post("middle", **consume("1"))
    for place in range(20):
        await api.post(f"t{place}", **consume("1"))
    await api.post("all", **grant("41", category="promotional"))

    ((amount, back),) = await returned(api, "refund", middle.posting_id)

    assert (amount, (await of(api, back))[1]) == ("1.00", "promotional")
    payers = schema.overdraft_payers.c

    def stretches(connection: Any) -> list[int]:
        return list(connection.execute(select(payers.start)).scalars())

    assert len(look(database_url, stretches)) == 1
