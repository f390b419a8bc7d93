"""What must hold of a naive ledger's rows, whatever happened: the model of the model.

Walks each wallet's rows forward, once, and so does not lean on the sums that `naive.py` decides by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.naive import AMOUNT_MAX, BALANCE_MAX, GRANTS_MAX, SPENDING

if TYPE_CHECKING:
    from tests.support.naive import Grant, NaiveLedger, Repayment, Wallet


def check(ledger: NaiveLedger) -> None:
    """Assert the invariants of every wallet."""
    check_transfers(ledger)
    for own in ledger.wallets.values():
        now, view = own.now(ledger.clock), own.view(ledger.clock)
        wallet = own.draft()  # with all written that is over
        wallet.expire(max([0, *own.postings]) + 1, now)
        left = walk(wallet)
        is_open = [grant for grant in wallet.grants if grant.open(now)]
        spendable = sum(left[grant.ref] for grant in is_open if not grant.scope)
        parts = [part for hold in wallet.holds if hold.live(now) for part in hold.parts.items()]
        # What is held of these is none of what there is for everything.
        aside = sum(p for ref, p in parts if (g := wallet.grant(ref)).ended(now) or g.scope)
        assert view.available == spendable + aside - view.held - view.overdraft_used
        limited = [grant for grant in is_open if grant.scope]
        held = sum(p for ref, p in parts if wallet.grant(ref) in limited)
        assert view.scoped == sum(left[grant.ref] for grant in limited) - held
        for grant in wallet.grants:
            assert sum(part for ref, part in parts if ref == grant.ref) <= left[grant.ref]
        assert view.balance == view.available + view.pending + view.held + view.scoped
        has = view.balance or view.overdraft_used or parts or wallet.events()
        assert wallet.status != "closed" or not has
        assert sum(1 for g in wallet.grants if not g.ended(now) and left[g.ref]) <= GRANTS_MAX
        for posting in [p for p in wallet.postings.values() if p.name == "meter_event"]:
            assert 0 <= wallet.unpaid(posting) <= posting.body["amount"]
        keys = [p.key for p in wallet.postings.values() if p.key is not None]
        assert len(keys) == len(set(keys))
        for posting in [p for p in wallet.postings.values() if p.name in SPENDING]:
            draws, back = wallet.rows_of(posting.ref), wallet.refund_rows(posting.ref)
            for category in ("paid", "promotional"):
                spent = sum(r.amount for r in draws if wallet.category(r) == category)
                given = sum(r.amount for r in back if wallet.category(r) == category)
                assert 0 <= given <= -spent


def check_transfers(ledger: NaiveLedger) -> None:
    """What went out of one wallet came into another: amount, category and end."""
    moved: dict[str, dict[int, list[tuple[object, ...]]]] = {"transfer": {}, "received": {}}
    ends: dict[int, list[tuple[bool, int | None]]] = {}
    for wallet in ledger.wallets.values():
        revised = {grant.ref for _, _, grant in wallet.revisions}
        for posting in [p for p in wallet.postings.values() if p.name in moved]:
            drawn = [(row, wallet.grant(row.grant or 0)) for row in wallet.rows_of(posting.ref)]
            moved[posting.name][posting.ref] = [
                (abs(row.amount), row.created_at == row.effective_at, grant.category)
                for row, grant in drawn
            ]
            ends[posting.ref] = [(grant.ref in revised, grant.expires_at) for _, grant in drawn]
    assert moved["received"] == {ref + 1: rows for ref, rows in moved["transfer"].items()}
    for ref in moved["transfer"]:
        for (one, end), (other, same) in zip(ends[ref], ends[ref + 1], strict=True):
            # Afterwards each may be given another end.
            assert one or other or end == same


def walk(wallet: Wallet) -> dict[int, int]:
    """Assert what each row must be after those before it; answer what is left of each grant."""
    grants = {grant.ref: grant for grant in wallet.grants}
    left: dict[int, int] = {}
    balance = used = now = forced = 0
    # What a grant was before its terms changed is not known here.
    loose = bool(wallet.holds or wallet.revisions)
    repayments = list(wallet.repayments)
    for sequence, row in enumerate(wallet.rows, 1):
        posting = wallet.postings[row.posting]
        while repayments and repayments[0].rows < sequence:
            used -= repay(grants, left, repayments.pop(0), used)
        balance += row.amount
        assert (row.sequence, row.running_balance) == (sequence, balance)
        assert now <= row.created_at
        assert 0 < abs(row.amount) <= AMOUNT_MAX
        assert abs(balance) <= BALANCE_MAX
        now = row.created_at

        if row.type == "expiration":
            assert row.grant is not None
            end = grants[row.grant].end()
            # What comes back to a grant that has ended expires as it comes.
            came = [r.effective_at for r in wallet.rows[: sequence - 1] if r.grant == row.grant]
            late = end is not None and end < row.effective_at == max(came)
            ended = late or row.effective_at == end
            assert ended or row.effective_at in [hold.ended_at for hold in wallet.holds]
            assert row.amount == -left[row.grant] or wallet.holds
        elif not loose:
            assert not any(left[ref] for ref in left if grants[ref].ended(now))
        drawing = ("consumption", "adjustment", "transfer", "meter_event", "settlement")
        taken = posting.name in drawing and row.amount < 0
        if taken and not loose and not posting.body.get("credit_grant_id"):
            # By burn order, nothing that is open may be left before this grant, or at all.
            last = None if row.grant is None else grants[row.grant].burn_order()
            for grant in [grants[ref] for ref in left if left[ref] and grants[ref].open(now)]:
                if used <= 0 and grant.pays(posting.body):
                    assert last is not None
                    assert grant.burn_order() >= last
            assert row.grant is None or grants[row.grant].open(now)
            assert row.grant is None or posting.name != "adjustment" or not grants[row.grant].scope
        if row.kind == "usage" and row.grant is not None and posting.name == "consumption":
            assert grants[row.grant].pays(posting.body)

        if sequence in grants:
            assert row.grant == sequence
            added = [wallet.rows[later - 1].amount for later, _ in grants[sequence].parts]
            assert row.amount == grants[sequence].amount - sum(added)
            pays_back = not (grants[sequence].pending(now) or grants[sequence].scope)
            paid = min(used, row.amount) if pays_back else 0
            assert grants[sequence].paid_by(sequence) == paid
            left[sequence], used = -paid, used - paid
        elif row.grant is not None and sequence in dict(grants[row.grant].parts):
            assert posting.name in ("received", "refund")
            paid = 0 if grants[row.grant].scope else min(used, row.amount)
            assert grants[row.grant].paid_by(sequence) == paid
            left[row.grant], used = left[row.grant] - paid, used - paid
        if row.grant is None:
            assert posting.name not in ("transfer", "received")
            used -= row.amount
            allowed = row.amount > 0 or posting.body.get("force")
            # What was held of a limit may be captured after that has been lowered, or passed by
            # force.
            forced -= row.amount if posting.body.get("force") else 0
            earlier = [p.overdraft_limit for p in wallet.postings.values() if p.ref <= posting.ref]
            limit = max(earlier) + forced if posting.name == "capture" else posting.overdraft_limit
            assert allowed or used <= limit
        else:
            left[row.grant] += row.amount
            assert 0 <= left[row.grant] <= grants[row.grant].amount
        assert used >= 0
        assert balance == sum(left.values()) - used
    for one in repayments:
        used -= repay(grants, left, one, used)
    assert used == wallet.overdraft_used()
    return left


def repay(grants: dict[int, Grant], left: dict[int, int], one: Repayment, used: int) -> int:
    """Assert that the grant could pay so much back; how much that is."""
    grant = grants[one.grant]
    left[one.grant] -= one.amount
    assert 0 < one.amount <= used
    assert left[one.grant] >= 0
    assert not grant.scope
    assert one.at == grant.effective_at or grant.ended(one.at)
    return one.amount
