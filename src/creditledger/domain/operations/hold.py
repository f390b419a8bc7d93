"""The rules of holds: setting credit aside, capturing it, giving it back.

Pure. A rule takes a wallet under its lock and answers what is to be done, or raises a Refusal;
`book` then does it. A hold takes in burn order from what is free. What it has of a grant stays its
own until the hold ends, even after the grant has.
"""

from collections.abc import Mapping
from dataclasses import replace

from creditledger.domain import clock, ids, money
from creditledger.domain.commands import Capture, Extend, PlaceHold
from creditledger.domain.errors import (
    CaptureTooLarge,
    HoldEnded,
    HoldExpired,
    InvalidField,
    NotFound,
    OutOfRange,
    WalletFrozen,
    echo,
)
from creditledger.domain.model import (
    HOLD_MS_MAX,
    OPEN_HOLDS_MAX,
    Hold,
    HoldEnd,
    Kind,
    Purpose,
    Repayment,
    Status,
    Type,
    Wallet,
    standing,
)
from creditledger.domain.spending import draw, insufficient, purpose, room_left, spendable
from creditledger.domain.wallet_moves import Move

TTL_MS_DEFAULT = 10 * clock.MINUTE

_USAGE, _CONSUMPTION = Kind.USAGE.value, Type.CONSUMPTION.value
_EXPIRY, _EXPIRATION = Kind.EXPIRY.value, Type.EXPIRATION.value


def place(wallet: Wallet, operation: PlaceHold, amount: int, *, now: int) -> Hold:
    """The hold that would be, still without its numbers.

    Raises InvalidField(deadline), OutOfRange, InsufficientCredit.
    """
    deadline = _deadline(operation.deadline, operation.ttl_ms, now)
    if sum(hold.is_open(now) for hold in wallet.holds.values()) >= OPEN_HOLDS_MAX:
        raise OutOfRange(f"a wallet has at most {OPEN_HOLDS_MAX} open holds")
    # It may set aside what a consumption could take.
    parts: dict[int, int] = {}
    beyond = 0
    for move in draw(wallet, amount, _USAGE, _CONSUMPTION, None, purpose(operation), now=now):
        if move.grant is None:
            beyond = -move.amount
        else:
            parts[move.grant.number] = -move.amount
    usage = operation.usage
    return Hold(
        number=0,
        amount=amount,
        captured=0,
        parts=parts,
        beyond=beyond,
        deadline=deadline,
        created_at=now,
        dimension=0,
        quantities=usage.quantities if usage else (),
        meter_event_id=operation.meter_event_id,
    )


def _deadline(deadline: int | None, ttl_ms: int | None, now: int) -> int:
    moment = deadline if deadline is not None else now + (ttl_ms or TTL_MS_DEFAULT)
    if moment <= now:
        raise InvalidField("deadline has already passed", param="deadline")
    if moment > now + HOLD_MS_MAX:
        raise InvalidField("deadline is more than 7 days ahead", param="deadline")
    return moment


def named(wallet: Wallet, hold_id: str, *, now: int) -> Hold:
    """The open hold of this id. Raises NotFound, HoldExpired, HoldEnded."""
    found = ids.resolve("hld", hold_id)
    hold = wallet.holds.get(found[1]) if found and found[0] == wallet.number else None
    if hold is None:
        raise NotFound(f"no hold {echo(hold_id)}", param="hold_id")
    ended, ended_at = hold.end(now)
    if ended is None:
        return hold
    assert ended_at is not None
    moment = clock.text(ended_at)
    if ended is HoldEnd.EXPIRED:
        raise HoldExpired(f"the hold ended at its deadline, {moment}", ended_at=moment)
    raise HoldEnded(f"the hold was {ended.word} at {moment}", status=ended.word, ended_at=moment)


def capture(
    wallet: Wallet,
    operation: Capture,
    hold: Hold,
    amount: int | None,
    spent_on: Purpose,
    *,
    now: int,
) -> tuple[list[Move], Hold]:
    """The moves of a capture, and the hold after it; `spent_on` is what the hold is for.

    Raises CaptureTooLarge, and, where it may take more than is held, InsufficientCredit and
    WalletFrozen.
    """
    wanted = hold.left if amount is None else amount
    more = wanted - hold.left
    if more > 0:
        _require_more(wallet, operation, hold, more, spent_on, now)
    moves: dict[int | None, Move] = {}
    parts: dict[int, int] = {}
    missing = wanted
    for number, part in hold.parts.items():
        taken = min(part, missing)
        missing -= taken
        if taken:
            moves[number] = Move(_USAGE, _CONSUMPTION, -taken, wallet.grants[number], None)
        if part > taken:
            parts[number] = part - taken
    beyond = hold.beyond
    if missing:
        lacked = min(beyond, missing)
        beyond -= lacked
        # Credit may have come since: what the hold lacked is taken of that before it is overdrawn.
        most = lacked + room_left(wallet, standing(wallet, now).available)
        for move in draw(wallet, missing, _USAGE, _CONSUMPTION, None, spent_on, now=now, room=most):
            place = None if move.grant is None else move.grant.number
            before = moves.get(place)
            moves[place] = move._replace(amount=move.amount + (before.amount if before else 0))
    after = replace(hold, captured=hold.captured + wanted, parts=parts, beyond=beyond)
    if operation.final or not after.left:
        after = _ended(after, HoldEnd.CAPTURED if wanted else HoldEnd.RELEASED, now)
    return list(moves.values()), after


def _require_more(
    wallet: Wallet, operation: Capture, hold: Hold, more: int, spent_on: Purpose, now: int
) -> None:
    if not operation.allow_more:
        held = money.text(hold.left, wallet.scale)
        raise CaptureTooLarge(f"only {held} are held", param="amount", held=held)
    if wallet.status is Status.FROZEN:
        raise WalletFrozen("the wallet is frozen: no more than what is held can be captured")
    available = spendable(wallet, spent_on, now)
    if more > available + wallet.overdraft_limit:
        raise insufficient(wallet, more, available)


def release(hold: Hold, *, now: int) -> Hold:
    """The hold with nothing set aside any more."""
    return _ended(hold, HoldEnd.RELEASED, now)


def _ended(hold: Hold, how: HoldEnd, now: int) -> Hold:
    return replace(hold, parts={}, beyond=0, ended=how, ended_at=now)


def extend(operation: Extend, hold: Hold, *, now: int) -> Hold:
    """The hold with its new deadline. Raises InvalidField(deadline) unless it is a later one."""
    deadline = _deadline(operation.deadline, operation.ttl_ms, now)
    if deadline < hold.deadline:
        raise InvalidField(
            f"deadline must not be before the hold's, {clock.text(hold.deadline)}",
            param="deadline",
        )
    return replace(hold, deadline=deadline)


def lapse(wallet: Wallet, now: int) -> list[Hold]:
    """Write down the ends of holds whose deadline has passed; those holds."""
    over = wallet.lapsed(now)
    for hold in over:
        after = replace(hold, parts={}, beyond=0, ended=HoldEnd.EXPIRED, ended_at=hold.deadline)
        _become(wallet, after)
    # Of what these held, grants that ended may have paid overdraft back: none holds more by now.
    for number in {number for hold in over for number in hold.parts}:
        assert wallet.grants[number].held <= wallet.grants[number].remaining
    return [wallet.holds[hold.number] for hold in over]


def book(wallet: Wallet, after: Hold) -> None:
    """Carry out what was decided of a hold: the wallet's books say what it says."""
    for number in _become(wallet, after):
        assert wallet.grants[number].held <= wallet.grants[number].remaining


def _become(wallet: Wallet, after: Hold) -> Mapping[int, int]:
    """Put the hold in the place of what it was; the grants of which it holds or held parts."""
    before = wallet.holds.get(after.number)
    parts = (before.parts if before else {}) | after.parts
    for number in parts:
        grant = wallet.grants[number]
        grant.held += after.parts.get(number, 0) - (before.parts.get(number, 0) if before else 0)
        assert grant.held >= 0
    wallet.holds[after.number] = after
    wallet.quiet_until = 0
    return parts


def given_up(
    wallet: Wallet, before: Hold, moves: list[Move], now: int
) -> tuple[list[Repayment], list[Move]]:
    """What leaves grants that ended meanwhile as the hold ends: what it did not capture of them.

    It pays overdraft back as at the end of any grant; the rest expires.
    """
    taken = {move.grant.number: -move.amount for move in moves if move.grant is not None}
    used, repaid, expired = wallet.overdraft_used, [], []
    for number, part in sorted(before.parts.items()):
        grant, left = wallet.grants[number], part - min(part, taken.get(number, 0))
        if not grant.has_ended(now):
            continue
        if grant.scope is None and grant.voided_at is None and (paid := min(used, left)):
            repaid.append(Repayment(now, grant, grant.repaid, paid))
            used, left = used - paid, left - paid
        if left:
            expired.append(Move(_EXPIRY, _EXPIRATION, -left, grant, now))
    return repaid, expired


def usage_of(hold: Hold, operation: Capture) -> tuple[tuple[int, ...], str | None]:
    """Quantities and event that a capture counts: its own, or, of the first one, the hold's."""
    event = operation.meter_event_id or hold.meter_event_id
    if operation.usage is not None:
        return operation.usage.quantities, event
    return (hold.quantities if not hold.captured else ()), event
