"""However many open grants a wallet has: what is taken, what becomes a part of what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import statement_service_pb2 as statement_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.domain.model import Category
from creditledger.domain.operations import Consume, Refund, Transfer
from creditledger.store import schema
from tests.store.test_verify import damaged_file, damaged_server
from tests.support.refusals import refused
from tests.support.server import WALLET, adjust, consume, grant, post, refund
from tests.support.setup import add_wallet, command, file_of, give, is_file, look

if TYPE_CHECKING:
    from pathlib import Path

    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.server import Api
    from tests.support.setup import Clock

OTHER = "wal_other"


@pytest.fixture
async def api(api: Api) -> Api:
    """A server whose clock stands still, with a second empty wallet."""
    await api.local.new_wallet(OTHER, "cus_other")
    return api


async def transfer(api: Api, key: str, amount: str, **fields: Any) -> pb.TransferResponse:
    """Credit from one wallet to the other."""
    request = pb.TransferRequest(
        idempotency_key=key,
        from_wallet_id=WALLET,
        to_wallet_id=OTHER,
        amount=amount,
        **fields,
    )
    return await api.wallets.Transfer(request, metadata=api.service)


async def grants_of(api: Api, wallet_id: str = OTHER) -> list[grants_pb.CreditGrant]:
    """The wallet's grants, oldest first."""
    request = grants_pb.CreditGrantServiceListRequest(wallet_id=wallet_id, page_size=100)
    page = await api.grants.List(request, metadata=api.service)
    return list(page.credit_grants)[::-1]


async def left(api: Api, wallet_id: str = OTHER, **when: Any) -> list[str]:
    """What the wallet's grants had left at a moment."""
    request = pb.GetBalanceRequest(wallet_id=wallet_id, **when)
    balance = await api.wallets.GetBalance(request, metadata=api.service)
    return [one.remaining for one in balance.by_grant]


async def test_transfers_become_parts_of_one_grant(api: Api, clock: Clock) -> None:
    """Equal credit makes one grant, whose amount grows; each part is a row of its own."""
    start = clock.now
    await api.post("given", **grant("10"))
    first = await transfer(api, "0", "1")
    for n in range(1, 4):
        clock.advance(SECOND)
        await transfer(api, str(n), "0.5")

    (one,) = await grants_of(api)
    assert (one.amount, one.remaining, one.kind) == ("2.50", "2.50", "transfer_in")
    assert one.id == first.received.transactions[0].credit_grant_id
    request = grants_pb.CreditGrantServiceListTransactionsRequest(id=one.id)
    rows = (await api.grants.ListTransactions(request, metadata=api.service)).transactions
    assert [(row.kind, row.amount) for row in rows] == [
        *[("transfer_in", "0.50")] * 3,
        ("transfer_in", "1.00"),
    ]
    assert [await left(api, as_of=time.text(start + n * SECOND)) for n in range(4)] == [
        ["1.00"],
        ["1.50"],
        ["2.00"],
        ["2.50"],
    ]
    assert [await left(api, at_sequence=n) for n in range(5)] == [
        [],
        ["1.00"],
        ["1.50"],
        ["2.00"],
        ["2.50"],
    ]


async def test_what_differs_stays_apart(api: Api, clock: Clock) -> None:
    """Another category, priority, end, name or metadata, or a change, makes another grant."""
    await api.post("a", **grant("4", priority=1))
    await api.post("b", **grant("4", priority=2, category="promotional"))
    await api.post("c", **grant("4", priority=3, name="Spring"))
    await api.post("d", **grant("4", priority=4, expires_at=time.text(clock.now + DAY)))
    for n in range(4):
        await transfer(api, f"m{n}", "4")
    assert [one.amount for one in await grants_of(api)] == ["4.00"] * 4

    await api.post("e", **grant("9", priority=1))
    await transfer(api, "plain", "1")
    await transfer(api, "words", "1", metadata={"team": "blue"})
    await transfer(api, "same words", "1", metadata={"team": "blue"})
    await transfer(api, "other words", "1", metadata={"team": "red"})
    found = await grants_of(api)
    assert [one.amount for one in found] == ["5.00", *["4.00"] * 3, "2.00", "1.00"]

    change = grants_pb.CreditGrantServiceUpdateRequest(id=found[0].id, name="Kept")
    await api.grants.Update(change, metadata=api.service)
    await transfer(api, "after a change", "1")
    void = grants_pb.CreditGrantServiceVoidRequest(id=found[4].id, idempotency_key="void")
    await api.grants.Void(void, metadata=api.service)
    await transfer(api, "after a void", "1", metadata={"team": "blue"})
    await api.post("spent", OTHER, **consume("12"))  # what has priority 1, and more
    await transfer(api, "after all is spent", "1")
    assert [one.amount for one in await grants_of(api)][6:] == ["1.00", "1.00", "1.00"]


async def test_parts_of_one_transfer(api: Api) -> None:
    """Equal grants of the sender arrive as one, row by row; a dry run says the same without ids."""
    for n in range(3):
        await api.post(str(n), **grant("1"))
    dry = await transfer(api, "move", "3", validate_only=True)
    done = await transfer(api, "move", "3")

    assert [one.amount for one in done.received.transactions] == ["1.00"] * 3
    assert len({one.credit_grant_id for one in done.received.transactions}) == 1
    assert len({one.credit_grant_id for one in done.sent.transactions}) == 3
    assert not any(one.HasField("credit_grant_id") for one in dry.received.transactions)
    assert [one.amount for one in await grants_of(api)] == ["3.00"]


async def test_a_part_pays_back_overdraft(api: Api, clock: Clock) -> None:
    """Each part repays what is overdrawn as it comes; past balances and statements know it."""
    await api.post("given", **grant("10"))
    await transfer(api, "1", "2")
    begins = clock.now + HOUR
    await api.post("spent", OTHER, **consume("1"))
    clock.advance(HOUR)
    named = (await grants_of(api))[0].id
    debit = adjust("-2", force=True, credit_grant_id=named)
    await api.wallets.Post(post("forced", OTHER, **debit), metadata=api.admin)
    await api.post("kept", OTHER, **grant("1", effective_at=time.text(clock.now + 9 * DAY)))
    clock.advance(SECOND)
    await transfer(api, "2", "1.5")  # the first one is used up: a grant of its own, 1 pays back
    debit = adjust("-1.5", force=True)
    clock.advance(SECOND)
    await api.wallets.Post(post("forced 2", OTHER, **adjust("-0.25")), metadata=api.admin)
    moment = clock.now
    clock.advance(SECOND)
    over = adjust("-0.75", force=True, credit_grant_id=(await grants_of(api))[2].id)
    await api.wallets.Post(post("forced 3", OTHER, **over), metadata=api.admin)
    clock.advance(SECOND)
    await transfer(api, "3", "3")

    assert (await api.wallet_now(OTHER)).overdraft_used == "0.00"
    assert await left(api, as_of=time.text(moment)) == ["0.25", "1.00"]
    stub = StatementServiceStub(api.channel)
    request = statement_pb.StatementServiceGetRequest(
        wallet_id=OTHER, start=time.text(begins), end=time.text(clock.now + SECOND)
    )
    said = await stub.Get(request, metadata=api.admin)
    assert said.closing_balance == (await api.wallet_now(OTHER)).balance


async def test_a_thousand_small_transfers_shut_no_wallet(api: Api) -> None:
    """Small transfers cannot fill a wallet up; those that all differ meet a bound of their own."""
    await api.post("given", **grant("20"))
    for n in range(1_000):
        await transfer(api, f"t {n}", "0.01", metadata={"n": str(n)})
    assert (await refused(transfer(api, "equal to none", "0.01"))).reason == "OUT_OF_RANGE"
    bonus = grant("1", category="promotional")
    assert (await refused(api.post("bonus", OTHER, **bonus))).reason == "OUT_OF_RANGE"

    await transfer(api, "equal to one", "0.01", metadata={"n": "7"})
    await api.post("paid", OTHER, **grant("5"))
    await api.post("goodwill", OTHER, **adjust("1"))
    spent = await api.post("spent", OTHER, **consume("12.50"))
    await api.post("returned", OTHER, **refund(spent.posting_id))
    assert (await api.wallet_now(OTHER)).available == "16.01"


async def test_many_paid_grants(api: Api) -> None:
    """A wallet with 2,500 open top-ups takes more, spends them, and is refunded."""
    for start in range(0, 2_500, 500):
        await api.batch(post(f"t {n}", **grant("0.01")) for n in range(start, start + 500))
    await api.post("one more", **grant("0.01"))
    spent = await api.post("spent", **consume("25"))

    assert len(spent.transactions) == 2_500
    await api.post("returned", **refund(spent.posting_id))
    assert (await api.wallet_now()).available == "25.01"


async def spent_and_over(api: Api, clock: Clock, *amounts: str, **terms: Any) -> list[str]:
    """Ids of consumptions that drew on one promotional grant, which has ended since."""
    ends = time.text(clock.now + MINUTE)
    terms = {"category": "promotional", "expires_at": ends, **terms}
    await api.post(f"given {clock.now}", **grant("50", **terms))
    postings = [await api.post(f"{clock.now} {n}", **consume(a)) for n, a in enumerate(amounts)]
    clock.advance(MINUTE)
    return [posting.posting_id for posting in postings]


async def test_refunds_of_one_hour_become_parts_of_one_grant(api: Api, clock: Clock) -> None:
    """What returns of an ended grant is one grant of parts, at every moment and in traces."""
    first, second, third = await spent_and_over(api, clock, "2", "3", "4")
    start = clock.now
    await api.post("back 0", **refund(first))
    clock.advance(SECOND)
    dry = await api.post("back 1", **refund(second), validate_only=True)
    back = await api.post("back 1", **refund(second))
    clock.advance(SECOND)
    await api.post("back 2", **refund(third, amount="1.5"))

    one = (await grants_of(api, WALLET))[1]
    assert (one.amount, one.remaining, one.kind) == ("6.50", "6.50", "refund")
    assert len(await grants_of(api, WALLET)) == 2
    assert [row.amount for row in dry.transactions] == ["3.00"]
    assert [row.credit_grant_id for row in back.transactions] == [one.id]
    request = grants_pb.CreditGrantServiceListTransactionsRequest(id=one.id)
    rows = (await api.grants.ListTransactions(request, metadata=api.service)).transactions
    assert [(row.kind, row.amount) for row in rows] == [
        ("refund", "1.50"),
        ("refund", "3.00"),
        ("refund", "2.00"),
    ]
    traced = grants_pb.CreditGrantServiceListPostingGrantsRequest(posting_id=back.posting_id)
    moved = await api.grants.ListPostingGrants(traced, metadata=api.service)
    assert [(row.credit_grant_id, row.amount) for row in moved.grants] == [(one.id, "3.00")]
    assert [await left(api, WALLET, as_of=time.text(start + n * SECOND)) for n in range(3)] == [
        ["2.00"],
        ["5.00"],
        ["6.50"],
    ]
    sequence = back.transactions[0].sequence
    assert await left(api, WALLET, at_sequence=sequence - 1) == ["2.00"]
    assert await left(api, WALLET, at_sequence=sequence) == ["5.00"]

    again = await api.post("spent again", **consume("6"))
    await api.post("returned again", **refund(again.posting_id))
    assert (await grants_of(api, WALLET))[1:] == [one]
    stub = StatementServiceStub(api.channel)
    period = statement_pb.StatementServiceGetRequest(
        wallet_id=WALLET, start=time.text(start), end=time.text(clock.now + SECOND)
    )
    said = await stub.Get(period, metadata=api.admin)
    assert said.closing_balance == "6.50"


async def test_refunds_that_differ_stay_apart(api: Api, clock: Clock) -> None:
    """Another hour, category, priority or metadata, or a change, makes another grant."""
    promotional = await spent_and_over(api, clock, *["1"] * 7)
    paid = await spent_and_over(api, clock, "1", "1", category="paid")
    other = await spent_and_over(api, clock, "1", priority=7)
    await api.post("0", **refund(promotional[0]))
    await api.post("1", **refund(promotional[1]), metadata={"team": "blue"})
    await api.post("2", **refund(promotional[2]), metadata={"team": "blue"})
    await api.post("3", **refund(paid[0]))
    await api.post("4", **refund(other[0]))
    made = (await grants_of(api, WALLET))[3:]
    assert [one.amount for one in made] == ["1.00", "2.00", "1.00", "1.00"]

    change = grants_pb.CreditGrantServiceUpdateRequest(id=made[0].id, name="Kept")
    await api.grants.Update(change, metadata=api.service)
    await api.post("after a change", **refund(promotional[3]))
    void = grants_pb.CreditGrantServiceVoidRequest(id=made[1].id, idempotency_key="void")
    await api.grants.Void(void, metadata=api.service)
    await api.post("after a void", **refund(promotional[4]), metadata={"team": "blue"})
    clock.advance(HOUR)
    await api.post("an hour later", **refund(promotional[5]))
    await api.post("paid, an hour later", **refund(paid[1]))
    made = (await grants_of(api, WALLET))[3:]
    assert [one.amount for one in made] == ["1.00", "2.00", "2.00", *["1.00"] * 4]


async def test_refunds_and_transfers_share_a_grant(api: Api, clock: Clock) -> None:
    """What a transfer brings and what a refund returns of a paid grant are equal without an end."""
    (spent,) = await spent_and_over(api, clock, "2", category="paid")
    await api.local.new_wallet("wal_third", "cus_third")
    await api.post("third", "wal_third", **grant("5"))

    async def arrives(key: str) -> None:
        request = pb.TransferRequest(
            idempotency_key=key, from_wallet_id="wal_third", to_wallet_id=WALLET, amount="1"
        )
        await api.wallets.Transfer(request, metadata=api.service)

    await arrives("before")
    await api.post("back", **refund(spent))
    await arrives("after")

    (one,) = (await grants_of(api, WALLET))[1:]
    assert (one.amount, one.remaining, one.kind) == ("4.00", "4.00", "transfer_in")


async def test_what_a_refund_fills_up_again_takes_parts(api: Api, clock: Clock) -> None:
    """A grant that was used up is open again by one row of a refund, and takes the next."""
    (first,) = await spent_and_over(api, clock, "1")
    await api.post("back", **refund(first))  # ends in 30 days
    ends = time.text(clock.now + MINUTE)
    await api.post("short", **grant("3", category="promotional", expires_at=ends))
    both = await api.post("both", **consume("4"))
    clock.advance(MINUTE)

    back = await api.post("both back", **refund(both.posting_id))

    assert [row.amount for row in back.transactions] == ["1.00", "3.00"]
    assert len({row.credit_grant_id for row in back.transactions}) == 1
    assert [one.amount for one in await grants_of(api, WALLET)] == ["50.00", "4.00", "3.00"]
    assert (await api.wallet_now()).available == "4.00"


async def test_a_part_of_a_refund_pays_back_overdraft(api: Api, clock: Clock) -> None:
    """A part repays overdraft as it comes; a refund of that overdraft is a part again."""
    first, second = await spent_and_over(api, clock, "2", "3")
    limit = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="10")
    await api.wallets.UpdateWallet(limit, metadata=api.admin)
    start = clock.now
    await api.post("back 0", **refund(first))
    hold = pb.HoldRequest(wallet_id=WALLET, idempotency_key="hold", amount="2")
    held = await api.wallets.Hold(hold, metadata=api.service)
    over = await api.post("over", **consume("2.5"))
    assert [row.credit_grant_id for row in over.transactions] == [""]
    clock.advance(SECOND)
    await api.post("back 1", **refund(second))

    one = (await grants_of(api, WALLET))[1]
    assert (one.amount, one.overdraft_paid, one.remaining) == ("5.00", "2.50", "2.50")
    assert (await api.wallet_now()).overdraft_used == "0.00"
    assert await left(api, WALLET, as_of=time.text(start)) == ["2.00"]
    release = pb.ReleaseHoldRequest(hold_id=held.hold.id, idempotency_key="release")
    await api.wallets.ReleaseHold(release, metadata=api.service)
    clock.advance(SECOND)
    back = await api.post("over back", **refund(over.posting_id))

    assert [(row.amount, row.credit_grant_id) for row in back.transactions] == [("2.50", one.id)]
    one = (await grants_of(api, WALLET))[1]
    assert (one.amount, one.overdraft_paid, one.remaining) == ("7.50", "2.50", "5.00")
    moments = [time.text(start + n * SECOND) for n in range(3)]
    assert [await left(api, WALLET, as_of=moment) for moment in moments] == [
        ["2.00"],
        ["2.50"],
        ["5.00"],
    ]
    stub = StatementServiceStub(api.channel)
    period = statement_pb.StatementServiceGetRequest(
        wallet_id=WALLET, start=moments[0], end=time.text(clock.now + SECOND)
    )
    said = await stub.Get(period, metadata=api.admin)
    assert said.closing_balance == (await api.wallet_now()).balance == "5.00"


async def test_payers_of_one_overdraft_come_back_as_parts(api: Api, clock: Clock) -> None:
    """Equal payers share one row, and each kind becomes a part of its grant."""
    (gone,) = await spent_and_over(api, clock, "1")
    limit = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="10")
    await api.wallets.UpdateWallet(limit, metadata=api.admin)
    over = await api.post("over", **consume("6"))
    for n in range(2):
        await api.post(f"paid {n}", **grant("1"))
    ends = time.text(clock.now + MINUTE)
    for n in range(2):
        await api.post(f"bonus {n}", **grant("2", category="promotional", expires_at=ends))
    clock.advance(MINUTE)
    await api.post("back", **refund(gone))

    back = await api.post("over back", **refund(over.posting_id))

    assert [row.amount for row in back.transactions] == ["4.00", "2.00"]
    made = [one for one in await grants_of(api, WALLET) if one.kind == "refund"]
    assert [(one.amount, one.remaining, one.category) for one in made] == [
        ("5.00", "5.00", "promotional"),
        ("2.00", "2.00", "paid"),
    ]
    assert back.transactions[0].credit_grant_id == made[0].id


#: How the parts of a refund's grant are damaged, and the check that says so.
REFUND_DAMAGES = {
    "DELETE FROM grant_parts": "grant_origin",
    "UPDATE grant_parts SET grant_number = 1": "part_row",
    "UPDATE grants SET amount = amount + 1 WHERE origin = 3": "grant_amount",
}


async def test_verify_names_a_wrong_part_of_a_refund(
    ledger: Ledger, database_url: str, store: Store, clock: Clock, tmp_path: Path
) -> None:
    """A part is named that is missing, of another grant, or of another amount."""
    ends = clock.now + MINUTE
    await ledger.post(command(give("5", category=Category.PROMOTIONAL, expires_at=ends), key="g"))
    spent = [await ledger.post(command(Consume("2"), key=f"s{n}")) for n in range(2)]
    clock.advance(MINUTE)
    for one in spent:
        id_ = ids.compose("pst", 1, one.posting.number)
        await ledger.post(command(Refund(id_), key=f"back {id_}"))
    await ledger.close()
    await store.close()
    assert look(database_url, lambda c: c.execute(schema.grant_parts.select()).all()) != []

    for statement, check in REFUND_DAMAGES.items():
        if is_file(database_url):
            found = damaged_file(file_of(database_url), tmp_path / "copy", [statement])
        else:
            found = damaged_server(database_url, [statement])
        assert check in {one.check for one in found}, statement


#: How the parts of the second wallet's grant are damaged, and the check that says so.
DAMAGES = {
    "DELETE FROM grant_parts": "row_part",
    "UPDATE grant_parts SET grant_number = 9": "part_row",
    "UPDATE grant_parts SET overdraft_paid = 1": "grant_amount",
    "UPDATE grants SET amount = amount + 1 WHERE wallet_number = 2": "grant_amount",
    "UPDATE grants SET origin = 1 WHERE wallet_number = 2": "grant_origin",
    "INSERT INTO grant_parts VALUES (1, 2, 1, 0)": "part_row",
}


async def test_verify_names_a_part_that_is_wrong(
    ledger: Ledger, store: Store, database_url: str, tmp_path: Path
) -> None:
    """A part is named that is missing, of another grant or amount, and a wrong origin."""
    await store.write(lambda connection: add_wallet(connection, OTHER))
    await ledger.post(command(give("5"), key="given"))
    for n in range(2):
        await ledger.post(command(Transfer(OTHER, "1"), key=f"move {n}"))
    await ledger.close()
    await store.close()

    for statement, check in DAMAGES.items():
        if is_file(database_url):
            found = damaged_file(file_of(database_url), tmp_path / "copy", [statement])
        else:
            found = damaged_server(database_url, [statement])
        assert check in {one.check for one in found}, statement
