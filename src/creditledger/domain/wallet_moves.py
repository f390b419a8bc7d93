"""Moves are the changes of a posting to a wallet. This module checks and applies them.

The rules decide on moves. `append` applies them to the wallet value and answers their rows. Pure:
no I/O, clock, randomness.
"""

from typing import NamedTuple

from creditledger.domain import billing_periods, money
from creditledger.domain.errors import OutOfRange
from creditledger.domain.model import OPEN_GRANTS_MAX, Grant, Kind, Repayment, Row, Type, Wallet
from creditledger.domain.overdraft import OverdraftDraw

# Plain ints: reading `Enum.value` is the hottest cost here.
_TOPUP, _REFUND, _USAGE, _EXPIRY = (
    kind.value for kind in (Kind.TOPUP, Kind.REFUND, Kind.USAGE, Kind.EXPIRY)
)
_EXPIRATION = Type.EXPIRATION.value


class Move(NamedTuple):
    """One transaction to write: an amount to or from a grant; grant None is the overdraft."""

    kind: int  #: Of Kind.
    type: int  #: Of Type.
    amount: int
    grant: Grant | None
    effective_at: int | None  #: None: when it is written.
    fresh: bool = False  #: This move makes the grant.
    #: The overdraft draw that the move gives back, still owed or not. Bills count the move as paid
    #: credit, whatever the category of the grant that takes it.
    overdraft: OverdraftDraw | None = None
    #: Of a move that adds a part to a grant: how much of it repays overdraft. None of other moves.
    paid: int | None = None


def check_range(
    wallet: Wallet,
    moves: list[Move],
    now: int,
    *,
    quantity: int,
    held: int = 0,
) -> None:
    """Raises OutOfRange if a sum over the wallet's rows would pass its limit.

    `held`: the amount that a new hold sets aside. All credit ever given plus the overdraft bounds
    all credit ever spent. So it bounds every sum over the wallet's rows: of a kind, a grant, a
    time. Usage has a smaller limit where bills count in more digits than the currency has.
    """
    credited, overdraft, used, gained = 0, 0, held, 0
    for move in moves:
        if move.amount > 0:
            credited += move.amount
        if move.kind == _USAGE:
            used -= move.amount
        if move.grant is None:
            overdraft -= move.amount
        elif move.fresh:
            overdraft -= move.grant.overdraft_paid
            # A new grant that repays overdraft with all its credit is not open.
            gained += move.grant.remaining > 0 and move.grant.is_bounded()
        elif move.paid:
            overdraft -= move.paid
    # Only moves that raise a sum are refused: an older ledger may have a sum beyond the bound.
    more = credited + overdraft
    if more > 0 and wallet.credited_amount + wallet.overdraft_used + more > money.TOTAL_MAX:
        raise OutOfRange("what the wallet was ever given and owes would pass 9·10^18")
    if used and used - wallet.usage_amount > billing_periods.usage_max(wallet.scale):
        raise OutOfRange("what the wallet ever used would pass what bills can say")
    if quantity and wallet.usage_quantity + quantity > money.TOTAL_MAX:
        raise OutOfRange("the wallet's quantities would pass 9·10^18")
    if gained and len(wallet.burning) + gained > OPEN_GRANTS_MAX:
        bounded = (g for g in wallet.burning if g.is_bounded() and not g.has_ended(now))
        if sum(1 for _ in bounded) + gained > OPEN_GRANTS_MAX:
            raise OutOfRange(
                f"a wallet has at most {OPEN_GRANTS_MAX} open grants that are promotional or came"
                " by transfer"
            )


def expirations(wallet: Wallet, now: int) -> list[Move]:
    """The moves that take expired credit, ordered by the moment of expiry, then by grant.

    The part of a grant that a hold has set aside expires with the hold, if that ends later.
    """
    if now < wallet.quiet_until:
        return []
    return [
        Move(_EXPIRY, _EXPIRATION, -amount, wallet.grants[number], moment)
        for (moment, number), amount in sorted(wallet.ending(now).items())
        if amount
    ]


def repay(wallet: Wallet, due: list[Repayment]) -> None:
    """Apply repayments. They write no row, because the balance does not change."""
    for _, grant, _, amount in due:
        grant.remaining -= amount
        grant.repaid += amount
        wallet.overdraft_used -= amount
        assert wallet.overdraft_used >= 0
        assert grant.remaining >= 0
        if not grant.remaining:
            wallet.use_up(grant)
        wallet.quiet_until = 0


def undo(wallet: Wallet, due: list[Repayment]) -> None:
    """Reverse `repay` after its command was refused."""
    for _, grant, _, amount in due:
        was_used_up = not grant.remaining
        grant.remaining += amount
        grant.repaid -= amount
        wallet.overdraft_used += amount
        if was_used_up:
            wallet.add(grant)


def append(
    wallet: Wallet,
    moves: list[Move],
    *,
    posting: int,
    dimension: int,
    quantity: int | None,
    now: int,
) -> list[Row]:
    """Apply the moves to the wallet and answer their rows.

    `quantity`: Σ of the posting's quantities, counted on its first row; None if it has no usage.
    Asserts two constraints of the schema: 0 <= remaining <= amount, and time in order.
    """
    assert now >= wallet.posted_at
    rows = []
    counted = quantity or 0
    for kind, type_, amount, grant, effective_at, fresh, _, paid in moves:
        wallet.sequence += 1
        wallet.running_balance += amount
        if grant is None:
            wallet.overdraft_used -= amount
            assert wallet.overdraft_used >= 0
        elif fresh:
            grant.number = wallet.sequence
            wallet.overdraft_used -= grant.overdraft_paid
            wallet.add(grant)
        elif paid is not None:
            grant.amount += amount
            grant.overdraft_paid += paid
            wallet.overdraft_used -= paid
            if amount > paid:
                _change(wallet, grant, amount - paid, now)
        else:
            _change(wallet, grant, amount, now)
        kind_count: int | None = None
        if kind == _USAGE:
            wallet.usage_count += 1
            wallet.usage_amount += amount
            if quantity is None:
                wallet.unmetered_amount -= amount
            else:
                wallet.usage_quantity += counted
                counted = 0
        else:
            kind_count = wallet.kind_counts[kind] = wallet.kind_counts[kind] + 1
            if amount > 0:
                wallet.credited_amount += amount
            if kind == _TOPUP:
                wallet.topup_amount += amount
            elif kind == _REFUND:
                wallet.refund_amount += amount
        if kind != _EXPIRY:
            wallet.moved_sequence = wallet.sequence
        rows.append(
            Row(
                wallet.number,
                wallet.sequence,
                posting,
                kind,
                type_,
                None if grant is None else grant.number,
                amount,
                wallet.running_balance,
                now,
                effective_at,
                dimension,
                kind_count,
                wallet.usage_count,
                wallet.usage_amount,
                wallet.usage_quantity,
                wallet.unmetered_amount,
            )
        )
    wallet.posted_at = now
    if now >= wallet.quiet_until:
        wallet.look_ahead(now)
    return rows


def _change(wallet: Wallet, grant: Grant, amount: int, now: int) -> None:
    """Change what remains of a grant, and keep `Wallet.burning` up to date."""
    empty_before = not grant.remaining
    grant.remaining += amount
    assert grant.held <= grant.remaining <= grant.amount
    if empty_before:
        wallet.add(grant)
    elif not grant.remaining:
        wallet.use_up(grant)
    if not grant.is_open(now):
        wallet.quiet_until = 0
    elif grant.scope is not None:
        wallet.scoped += amount
