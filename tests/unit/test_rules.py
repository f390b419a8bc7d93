"""What a command does to a wallet: its limits, its rules by example, and as properties.

No database and no loop: `decide` and `append` are pure, so every promise here is about numbers.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from creditledger.domain import billing_periods, ids, money, wallet_moves
from creditledger.domain.clock import DAY, HOUR, SECOND
from creditledger.domain.commands import Original, References
from creditledger.domain.errors import InsufficientCredit, NotRefundable, OutOfRange, Refusal
from creditledger.domain.model import Category, Grant, Kind, Wallet, standing
from creditledger.domain.overdraft import OverdraftDraw
from tests.support.setup import adjust, command, consume, give, refund
from tests.support.values import (
    NOW,
    PAID,
    PROMOTIONAL,
    SPENT,
    SPENT_ID,
    USAGE,
    WALLET,
    carry_out,
    decide,
    drawn,
    grant,
    references,
    usage,
    wallet_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from creditledger.domain.commands import Operation
    from creditledger.domain.model import Wallet

# --- limits ---------------------------------------------------------------------------------------


def promotions(*numbers: int, starts: int = -DAY, ends: int | None = None) -> list[Grant]:
    """Promotional grants of 1."""
    return [grant(number, 1, category=PROMOTIONAL, starts=starts, ends=ends) for number in numbers]


def test_a_wallet_has_a_thousand_open_promotional_grants() -> None:
    """The thousandth is given, the next one refused, until one of them has ended."""
    bonus = command(give("1", category=PROMOTIONAL))
    full = wallet_of(*promotions(*range(1, 1_001)))
    with pytest.raises(OutOfRange):
        decide(full, bonus)

    room = wallet_of(*promotions(*range(1, 1_000)), *promotions(1_000, ends=0))
    assert len(decide(room, bonus)) == 1


def test_paid_grants_and_adjustments_are_always_taken() -> None:
    """Any number of open grants lets paid ones in, and paid ones do not count."""
    full = wallet_of(*promotions(*range(1, 1_001)), *(grant(n, 1) for n in range(1_001, 2_002)))
    assert len(decide(full, command(give("1")))) == 1
    assert len(decide(full, command(adjust("1")))) == 1

    paid = wallet_of(*(grant(number, 1) for number in range(1, 2_001)))
    assert len(decide(paid, command(give("1", category=PROMOTIONAL)))) == 1


def test_a_grant_that_pays_back_an_overdraft_whole_is_not_open() -> None:
    """What goes into the overdraft to the last unit takes no place among the open grants."""
    grants = promotions(*range(1, 1_001), starts=1)
    wallet = wallet_of(*grants, overdraft_used=5, overdraft_limit=5)

    assert len(decide(wallet, command(give("5", category=PROMOTIONAL)))) == 1
    with pytest.raises(OutOfRange):
        decide(wallet, command(give("6", category=PROMOTIONAL)))


def test_a_refund_to_a_grant_that_was_used_up_is_always_taken() -> None:
    """A refund opens its grant again, beyond the bound of open grants too."""
    used_up = grant(1, 0, amount=10, category=PROMOTIONAL)
    wallet = wallet_of(used_up, *promotions(*range(2, 1_002)))

    moves = decide(wallet, command(refund(SPENT_ID)), references((10, 1)))
    assert drawn(moves) == [(10, 1)]


@pytest.mark.parametrize("swept", [False, True])
def test_what_has_expired_is_not_in_the_way_of_a_limit(swept: bool) -> None:
    """A bound on what a wallet is given does not depend on whether a sweep has run."""
    ended = grant(1, 10, ends=0)
    wallet = wallet_of(ended)
    wallet.credited_amount = money.TOTAL_MAX - 10
    if swept:
        wallet_moves.append(
            wallet,
            wallet_moves.expirations(wallet, NOW),
            posting=1,
            dimension=1,
            quantity=None,
            now=NOW,
        )

    assert len(decide(wallet, command(give("10")))) == 1
    with pytest.raises(OutOfRange):
        decide(wallet, command(give("11")))


def test_counters_stop_at_their_bound_exactly() -> None:
    """What would take a counter past 9·10^18 is refused, what reaches it is not."""
    wallet = wallet_of(grant(1, 10))
    wallet.usage_amount = 5 - billing_periods.usage_max(wallet.scale)
    assert decide(wallet, command(consume("5")))
    assert decide(wallet, command(give("10")))
    with pytest.raises(OutOfRange):
        decide(wallet, command(consume("6")))

    wallet = wallet_of(grant(1, 10))
    wallet.usage_quantity = money.TOTAL_MAX - 5
    metered = replace(consume("1"), usage=usage(2, 3))
    assert decide(wallet, command(metered))
    with pytest.raises(OutOfRange):
        decide(wallet, command(replace(metered, usage=usage(3, 3))))

    wallet = wallet_of()
    wallet.credited_amount = money.TOTAL_MAX - 5
    for kind in (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT):
        assert decide(wallet, command(give("5", kind=kind)))
        with pytest.raises(OutOfRange):
            decide(wallet, command(give("6", kind=kind)))

    wallet = wallet_of(overdraft_used=money.TOTAL_MAX - 5)
    assert decide(wallet, command(adjust("-5", force=True)))
    with pytest.raises(OutOfRange):
        decide(wallet, command(adjust("-6", force=True)))


# --- examples -------------------------------------------------------------------------------------


def test_burn_order_by_example() -> None:
    """Priority, then expiry, then promotional, then start, then creation, then id."""
    late, sooner = 9 * DAY, 8 * DAY
    in_order = [
        grant(8, 1, priority=0),
        grant(7, 1, ends=sooner),
        grant(6, 1, ends=late, category=PROMOTIONAL),
        grant(5, 1, ends=late, starts=-2 * DAY),
        replace(grant(4, 1, ends=late), created_at=NOW - 3 * DAY),
        grant(2, 1, ends=late),
        grant(3, 1, ends=late),
        grant(1, 1),
        grant(9, 1, priority=100, ends=1, category=PROMOTIONAL),
    ]
    waiting = [grant(10, 1, priority=0, starts=1), grant(11, 1, priority=0, ends=0)]
    wallet = wallet_of(*sorted([*in_order, *waiting], key=lambda one: one.number))

    moves = decide(wallet, command(consume("9")))

    assert [(-1, one.number) for one in in_order] == drawn(moves)


def test_what_grants_do_not_cover_is_one_overdraft_row_and_last() -> None:
    """A consumption beyond the grants draws the rest as overdraft, up to the limit."""
    wallet = wallet_of(grant(1, 3), grant(2, 4), overdraft_used=1, overdraft_limit=6)

    assert drawn(decide(wallet, command(consume("12")))) == [(-3, 1), (-4, 2), (-5, None)]
    with pytest.raises(InsufficientCredit):
        decide(wallet, command(consume("13")))


@pytest.mark.parametrize(
    ("named", "force", "debit", "expected"),
    [
        (1, False, 3, [(-3, 1)]),
        (2, False, 4, [(-4, 2)]),  # pending: only what it has itself counts
        (1, True, 8, [(-3, 1), (-5, None)]),
        (2, True, 8, [(-4, 2), (-4, None)]),
        (3, True, 8, [(-8, None)]),  # ended
        (None, True, 8, [(-3, 1), (-5, None)]),
    ],
)
def test_debits_by_example(
    named: int | None, force: bool, debit: int, expected: list[tuple[int, int | None]]
) -> None:
    """A debit takes from the grant it names; forced, what that lacks is overdraft."""
    wallet = wallet_of(grant(1, 3), grant(2, 4, starts=1), grant(3, 5, ends=0))
    id_ = None if named is None else ids.compose("cg", WALLET, named)

    moves = decide(wallet, command(adjust(f"-{debit}", credit_grant_id=id_, force=force)))

    assert expected == drawn(moves)


def test_an_open_grant_pays_the_overdraft_back_first() -> None:
    """What an open grant pays back is not spendable; one that starts later pays nothing."""
    wallet = wallet_of(overdraft_used=7, overdraft_limit=7)

    (row,) = carry_out(wallet, give("10"))
    made = wallet.grants[41]
    assert (row.amount, row.grant) == (10, 41)
    assert (made.amount, made.overdraft_paid, made.remaining) == (10, 7, 3)
    assert (wallet.running_balance, wallet.overdraft_used) == (3, 0)

    wallet = wallet_of(overdraft_used=7, overdraft_limit=7)
    carry_out(wallet, give("10", effective_at=NOW + 1))
    made = wallet.grants[41]
    assert (made.overdraft_paid, made.remaining) == (0, 10)
    assert (wallet.running_balance, wallet.overdraft_used) == (3, 7)
    assert standing(wallet, NOW).available == -7


def test_refunds_by_example() -> None:
    """Newest draw first: overdraft still used, then what paid it; ended grants give a new one."""
    wallet = wallet_of(
        grant(1, 0, amount=10),
        grant(2, 0, amount=10, ends=0, category=PROMOTIONAL, priority=20),
        overdraft_used=2,
        repaid_to=3,
    )
    known = references((3, 1), (4, 2), (5, None), paid_by=((1, 3),))

    moves = decide(wallet, command(refund(SPENT_ID)), known)

    assert drawn(moves) == [(2, None), (3, 0), (4, 0), (3, 1)]
    paid, promotional = moves[1].grant, moves[2].grant
    assert paid is not None
    assert promotional is not None
    assert (paid.category, paid.priority, paid.expires_at) == (PAID, 50, None)
    assert (
        promotional.category,
        promotional.priority,
        promotional.expires_at,
    ) == (PROMOTIONAL, 20, (NOW + 30 * DAY) // HOUR * HOUR + HOUR)
    # A part skips what was returned before: two of the overdraft's five, then on.
    assert drawn(
        decide(
            wallet_of(*wallet.grants.values(), repaid_to=5),
            command(refund(SPENT_ID, "5")),
            references((3, 1), (4, 2), (5, None), refunded=2, paid_by=((1, 5),)),
        )
    ) == [(3, 0), (2, 0)]


def test_expirations_come_in_order_of_their_ends() -> None:
    """What is due is taken whole, by its end and then by its grant, dated at its end."""
    wallet = wallet_of(
        grant(1, 1, ends=0),
        grant(2, 2, ends=-SECOND, priority=100),
        grant(3, 3, ends=-SECOND),
        grant(4, 4, ends=1),
        grant(5, 0, amount=5, ends=-SECOND),
    )

    moves = wallet_moves.expirations(wallet, NOW)

    assert drawn(moves) == [(-2, 2), (-3, 3), (-1, 1)]
    assert [move.effective_at for move in moves] == [NOW - SECOND, NOW - SECOND, NOW]


# --- properties -----------------------------------------------------------------------------------


@st.composite
def grants(draw: st.DrawFn, number: int) -> Grant:
    amount = draw(st.integers(1, 20))
    starts = draw(st.integers(-3, 2))
    return grant(
        number,
        draw(st.integers(0, amount)),
        amount=amount,
        category=draw(st.sampled_from(Category)),
        priority=draw(st.sampled_from([0, 50, 100])),
        starts=starts,
        ends=draw(st.none() | st.integers(starts + 1, 4)),
    )


@st.composite
def wallets(draw: st.DrawFn) -> Wallet:
    found = [draw(grants(number)) for number in range(1, 1 + draw(st.integers(0, 6)))]
    used = draw(st.integers(0, 10))
    return wallet_of(
        *found,
        overdraft_used=used,
        overdraft_limit=draw(st.integers(0, 12)),
        # What is due by NOW is paid back before the rules decide.
        repays_from=NOW + 5,
    )


def open_grants(wallet: Wallet) -> list[Grant]:
    """Those a consumption may draw on at NOW, in burn order as docs/ledger.md states it."""
    found = [
        one
        for one in wallet.grants.values()
        if one.effective_at <= NOW and (one.expires_at is None or one.expires_at > NOW)
    ]
    return sorted(
        found,
        key=lambda one: (
            one.priority,
            one.expires_at is None,
            one.expires_at,
            one.category is PAID,
            one.effective_at,
            one.created_at,
            one.number,
        ),
    )


def assert_consistent(wallet: Wallet) -> None:
    """Invariants 2 and 3 of a wallet value."""
    left = sum(one.remaining for one in wallet.grants.values())
    assert wallet.running_balance == left - wallet.overdraft_used
    assert all(
        0 <= one.remaining <= one.amount - one.overdraft_paid for one in wallet.grants.values()
    )
    assert wallet.overdraft_used >= 0
    assert {id(one) for one in wallet.grants.values() if one.remaining} == {
        id(one) for one in wallet.burning
    }


def assert_drawn_in_order(moves: Sequence[wallet_moves.Move], order: Sequence[Grant]) -> None:
    """No grant is drawn on while one before it has something left; the overdraft is last."""
    left = {one.number: one.remaining for one in order}
    for move in moves:
        if move.grant is None:
            assert not any(left.values())
            continue
        for earlier in order:
            if earlier.number == move.grant.number:
                break
            assert not left[earlier.number]
        left[move.grant.number] += move.amount
        assert left[move.grant.number] >= 0
    assert len(moves) == len({move.grant and move.grant.number for move in moves})


@given(wallet=wallets(), amount=st.integers(1, 90), debit=st.booleans())
def test_spending_takes_what_may_be_spent_in_burn_order(
    wallet: Wallet, amount: int, debit: bool
) -> None:
    """Accepted if and only if credit and overdraft suffice; then exactly so much, in order."""
    order, before = open_grants(wallet), asdict(wallet)
    most = sum(one.remaining for one in order) - wallet.overdraft_used + wallet.overdraft_limit
    operation: Operation = adjust(f"-{amount}") if debit else consume(str(amount))

    if amount > most:
        event("refused")
        with pytest.raises(InsufficientCredit) as refused:
            decide(wallet, command(operation))
        assert str(most - wallet.overdraft_limit) == refused.value.metadata["available"]
        assert before == asdict(wallet)
        return

    event("accepted")
    moves = decide(wallet, command(operation))
    assert -amount == sum(move.amount for move in moves)
    assert before == asdict(wallet)
    assert_drawn_in_order(moves, order)
    used = wallet.overdraft_used
    carry_out(wallet, operation)
    assert_consistent(wallet)
    assert wallet.overdraft_used <= max(used, wallet.overdraft_limit)
    assert standing(wallet, NOW).available == most - wallet.overdraft_limit - amount


@given(wallet=wallets(), amount=st.integers(1, 90))
def test_force_is_never_short_of_credit(wallet: Wallet, amount: int) -> None:
    """A forced debit takes what there is, in order, and the rest as overdraft, limit or not."""
    order, before = open_grants(wallet), standing(wallet, NOW)
    covered = min(amount, sum(one.remaining for one in order))
    used = wallet.overdraft_used

    moves = decide(wallet, command(adjust(f"-{amount}", force=True)))
    assert_drawn_in_order(moves, order)
    carry_out(wallet, adjust(f"-{amount}", force=True))

    assert_consistent(wallet)
    assert used + amount - covered == wallet.overdraft_used
    assert before.balance - amount == standing(wallet, NOW).balance


@given(wallet=wallets(), amount=st.integers(1, 30), starts=st.none() | st.integers(-5, 5))
def test_giving_adds_exactly_what_is_given(wallet: Wallet, amount: int, starts: int | None) -> None:
    """A grant adds its amount to the balance, whatever of it pays back an overdraft."""
    before, used = standing(wallet, NOW), wallet.overdraft_used
    begins = None if starts is None else NOW + starts
    later = amount if starts is not None and starts > 0 else 0

    carry_out(wallet, give(str(amount), effective_at=begins))

    after = standing(wallet, NOW)
    assert_consistent(wallet)
    assert before.balance + amount == after.balance
    assert before.pending + later == after.pending
    assert used - (0 if later else min(used, amount)) == wallet.overdraft_used


@given(
    wallet=wallets(),
    amount=st.integers(1, 60),
    parts=st.lists(st.integers(1, 30), max_size=5),
    later=st.integers(0, 5),
)
def test_refunds_return_what_was_drawn_and_never_more(
    wallet: Wallet, amount: int, parts: list[int], later: int
) -> None:
    """Parts and then the rest return the consumption exactly; one unit more is refused."""
    figures = standing(wallet, NOW)
    left_before = {one.number: one.remaining for one in open_grants(wallet)}
    used_before = wallet.overdraft_used
    try:
        rows = carry_out(wallet, consume(str(amount)))
    except InsufficientCredit:
        return
    drawn_ = {
        row.sequence: OverdraftDraw(WALLET, row.sequence, used_before, -row.amount)
        for row in rows
        if row.grant is None
    }
    known = References(
        frozenset(), {}, {(WALLET, SPENT): Original(rows, USAGE, 0, overdrafts=drawn_)}
    )
    refunded, now = 0, NOW + later

    for part in [*map(str, parts), None]:
        due = part if part is None else int(part)
        if refunded == amount or (due is not None and refunded + due > amount):
            with pytest.raises(Refusal) as refused:
                decide(wallet, command(refund(SPENT_ID, part)), known, now=now)
            too_large = refunded < amount
            expected = "REFUND_TOO_LARGE" if too_large else "NOT_REFUNDABLE"
            assert expected == refused.value.reason
            assert not too_large or str(amount - refunded) == refused.value.metadata["refundable"]
            continue
        given_back = carry_out(wallet, refund(SPENT_ID, part), known, now=now)
        returned = sum(row.amount for row in given_back)
        assert returned == (amount - refunded if due is None else due)
        assert all(row.amount > 0 for row in given_back)
        refunded += returned
        known.originals[WALLET, SPENT] = Original(rows, USAGE, refunded, overdrafts=drawn_)
        assert_consistent(wallet)

    assert refunded == amount
    with pytest.raises(NotRefundable):
        decide(wallet, command(refund(SPENT_ID)), known, now=now)
    if not later:
        # Nothing has ended or been paid back since: everything stands as it did.
        event("restored")
        assert figures == standing(wallet, now)
        assert used_before == wallet.overdraft_used
        assert left_before == {one.number: one.remaining for one in open_grants(wallet)}


@given(
    wallet=wallets(),
    operations=st.lists(
        st.builds(consume, st.integers(1, 20).map(str))
        | st.builds(adjust, st.integers(-20, -1).map(str), force=st.booleans())
        | st.builds(adjust, st.integers(1, 20).map(str))
        | st.builds(give, st.integers(1, 20).map(str)),
        max_size=8,
    ),
)
def test_rows_and_counters_follow_each_other(wallet: Wallet, operations: list[Operation]) -> None:
    """Sequences have no gap, running balances add up, counters count what the rows are."""
    start, balance = wallet.sequence, wallet.running_balance
    rows = []
    for operation in operations:
        try:
            moves = decide(wallet, command(operation))
        except InsufficientCredit:
            continue
        ended = wallet_moves.expirations(wallet, NOW)
        rows += wallet_moves.append(wallet, ended, posting=1, dimension=1, quantity=None, now=NOW)
        rows += wallet_moves.append(wallet, moves, posting=2, dimension=2, quantity=3, now=NOW)

    assert [start + place for place in range(1, len(rows) + 1)] == [row.sequence for row in rows]
    for row in rows:
        balance += row.amount
        assert balance == row.running_balance
    spent = [row for row in rows if row.kind == Kind.USAGE]
    assert (len(spent), sum(row.amount for row in spent)) == (
        wallet.usage_count,
        wallet.usage_amount,
    )
    assert all(
        wallet.kind_counts[kind] == sum(row.kind == kind for row in rows)
        for kind in Kind
        if kind is not Kind.USAGE
    )
    others = [row.sequence for row in rows if row.kind != Kind.EXPIRY]
    assert max([38, *others]) == wallet.moved_sequence


@pytest.mark.parametrize(
    ("quantity", "expected"), [(None, (0, 12)), (0, (0, 0)), (1_500, (1_500, 0))]
)
def test_usage_counts_once_however_many_grants_pay(
    quantity: int | None, expected: tuple[int, int]
) -> None:
    """A posting's quantities count on its first row; without usage its amount counts instead."""
    wallet = wallet_of(grant(1, 3), grant(2, 4), overdraft_limit=5)
    moves = decide(wallet, command(consume("12")))

    rows = wallet_moves.append(wallet, moves, posting=1, dimension=1, quantity=quantity, now=NOW)

    assert len(rows) == 3
    assert expected == (wallet.usage_quantity, wallet.unmetered_amount)
    assert {expected[0]} == {row.usage_quantity for row in rows}
    assert expected[1] == rows[-1].unmetered_amount
