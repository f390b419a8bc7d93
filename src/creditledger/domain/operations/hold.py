"""Holds: setting credit aside, capturing it, giving it back, a later deadline.

A hold takes free credit in burn order. It keeps its part of a grant until the hold ends, even after
the grant has ended. `book` and `lapse` apply holds to the wallet.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from creditledger.domain import clock, ids, money
from creditledger.domain.commands import (
    Case,
    Command,
    Decision,
    Named,
    Operation,
    Usage,
    Wants,
    add_place,
)
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
    Annotation,
    Dimension,
    Hold,
    HoldEnd,
    Posting,
    Purpose,
    Repayment,
    Status,
    Wallet,
    standing,
)
from creditledger.domain.spending import (
    CONSUMPTION,
    EXPIRY,
    USAGE,
    Metered,
    draw,
    insufficient,
    purpose,
    room_left,
    spendable,
    used,
)
from creditledger.domain.wallet_moves import Move

TTL_MS_DEFAULT = 10 * clock.MINUTE


@dataclass(frozen=True, slots=True)
class PlaceHold(Metered):
    """Set credit aside, in burn order, until a deadline."""

    code, word = 6, "hold"
    amount: str
    deadline: int | None  #: Not together with ttl_ms. Neither: TTL_MS_DEFAULT.
    ttl_ms: int | None
    meter_id: str | None = None
    meter_event_id: str | None = None
    subscription_id: str | None = None
    usage: Usage | None = None

    def decide(self, case: Case) -> Decision:
        """Set aside what a consumption could take.

        Raises InvalidField(deadline), OutOfRange, InsufficientCredit.
        """
        wallet, now, amount = case.wallet, case.now, case.amount
        assert amount is not None
        deadline = _deadline(self.deadline, self.ttl_ms, now)
        if sum(hold.is_open(now) for hold in wallet.holds.values()) >= OPEN_HOLDS_MAX:
            raise OutOfRange(f"a wallet has at most {OPEN_HOLDS_MAX} open holds")
        parts: dict[int, int] = {}
        beyond = 0
        for move in draw(wallet, amount, purpose(self.meter_id, self.usage), now=now):
            if move.grant is None:
                beyond = -move.amount
            else:
                parts[move.grant.number] = -move.amount
        hold = Hold(
            number=0,
            amount=amount,
            captured=0,
            parts=parts,
            beyond=beyond,
            deadline=deadline,
            created_at=now,
            dimension=0,
            quantities=self.usage.quantities if self.usage else (),
            meter_event_id=self.meter_event_id,
        )
        return Decision([], self.dimension, spends=hold.left, hold=hold)


class OnHold(Operation):
    """An operation on an existing hold."""

    __slots__ = ()
    hold_id: str

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The hold with its words and its dimension."""
        add_place(wants.holds, "hld", self.hold_id)

    def dimensions(self, wallet: Wallet, named: Named) -> Iterator[tuple[int, Dimension]]:
        """That of the capture, and that of credit that expires when the hold ends."""
        hold = self._find(wallet)
        if hold is not None:
            yield wallet.number, EXPIRY
            yield wallet.number, self.captured(named.dimensions[wallet.number, hold.dimension])

    def captured(self, original: Dimension) -> Dimension:
        """The dimension of its rows. `original`: the hold's dimension."""
        return original

    def _find(self, wallet: Wallet) -> Hold | None:
        place = ids.resolve("hld", self.hold_id)
        return wallet.holds.get(place[1]) if place and place[0] == wallet.number else None

    def decide(self, case: Case) -> Decision:
        """Do it with the open hold of this id. Raises NotFound, HoldExpired, HoldEnded."""
        hold = self._find(case.wallet)
        if hold is None:
            raise NotFound(f"no hold {echo(self.hold_id)}", param="hold_id")
        ended, ended_at = hold.end(case.now)
        if ended is not None:
            assert ended_at is not None
            moment = clock.text(ended_at)
            if ended is HoldEnd.EXPIRED:
                raise HoldExpired(f"the hold ended at its deadline, {moment}", ended_at=moment)
            raise HoldEnded(
                f"the hold was {ended.word} at {moment}", status=ended.word, ended_at=moment
            )
        return self.decide_on(case, hold, case.known.dimensions[case.wallet.number, hold.dimension])

    @abstractmethod
    def decide_on(self, case: Case, hold: Hold, original: Dimension) -> Decision:
        """Do it with this hold."""

    def become(self, before: Hold, after: Hold, original: Dimension, moves: list[Move]) -> Decision:
        """The decision that changes the hold and carries out the draws `moves`."""
        return Decision(
            moves,
            self.captured(original),
            spends=-sum(move.amount for move in moves),
            frees=(original.api_key_id, before.left - after.left),
            held=before,
            hold=after,
        )


@dataclass(frozen=True, slots=True)
class Capture(OnHold):
    """Consume what a hold has set aside, all of it if amount is None."""

    code, word = 7, "capture"
    hold_id: str
    amount: str | None = None
    final: bool = False  #: What is left is given back.
    allow_more: bool = False  #: Beyond the hold, what is available may be used.
    meter_event_id: str | None = None
    usage: Usage | None = None

    def captured(self, original: Dimension) -> Dimension:
        """The dimension of its own usage, if it has one; else the hold's."""
        if self.usage is None:
            return original
        return used(original.meter_id, original.subscription_id, self.usage)

    def terms(self, command: Command) -> dict[str, object]:
        """Its words, too: its posting may show the hold's words instead."""
        own = {"description": command.description, "metadata": dict(command.metadata)}
        return OnHold.terms(self, command) | own

    def told(self, command: Command) -> dict[str, object]:
        """The note alone."""
        return {"note": command.note}

    @staticmethod
    def told_by(posting: Posting, dimension: Dimension | None) -> dict[str, object]:
        """The note alone."""
        return {"note": posting.note}

    def decide_on(self, case: Case, hold: Hold, original: Dimension) -> Decision:
        """Draw on the hold's parts, then on its overdraft part, then on available credit.

        Raises CaptureTooLarge. With `allow_more`: InsufficientCredit, WalletFrozen.
        """
        wallet, now = case.wallet, case.now
        spent_on = original.meter_id, original.product_id, original.category
        wanted = hold.left if case.amount is None else case.amount
        more = wanted - hold.left
        if more > 0:
            self._require_more(wallet, hold, more, spent_on, now)
        moves: dict[int | None, Move] = {}
        parts: dict[int, int] = {}
        missing = wanted
        for number, part in hold.parts.items():
            taken = min(part, missing)
            missing -= taken
            if taken:
                moves[number] = Move(USAGE, CONSUMPTION, -taken, wallet.grants[number], None)
            if part > taken:
                parts[number] = part - taken
        beyond = hold.beyond
        if missing:
            lacked = min(beyond, missing)
            beyond -= lacked
            # Credit may have arrived after the hold. The hold's overdraft part takes that first.
            most = lacked + room_left(wallet, standing(wallet, now).available)
            for move in draw(wallet, missing, spent_on, now=now, room=most):
                place = None if move.grant is None else move.grant.number
                before = moves.get(place)
                moves[place] = move._replace(amount=move.amount + (before.amount if before else 0))
        after = replace(hold, captured=hold.captured + wanted, parts=parts, beyond=beyond)
        if self.final or not after.left:
            after = _ended(after, HoldEnd.CAPTURED if wanted else HoldEnd.RELEASED, now)
        decision = self.become(hold, after, original, list(moves.values()))
        said, command = case.known.annotations[wallet.number, hold.number], case.command
        words = Annotation(
            command.description or said.description, command.metadata or said.metadata
        )
        if not moves:
            return decision._replace(words=words)
        # The first capture counts the hold's usage, unless it has one of its own.
        own = hold.quantities if not hold.captured else ()
        return decision._replace(
            words=words,
            quantities=own if self.usage is None else self.usage.quantities,
            meter_event_id=self.meter_event_id or hold.meter_event_id,
        )

    def _require_more(
        self, wallet: Wallet, hold: Hold, more: int, spent_on: Purpose, now: int
    ) -> None:
        if not self.allow_more:
            held = money.text(hold.left, wallet.scale)
            raise CaptureTooLarge(f"only {held} are held", param="amount", held=held)
        if wallet.status is Status.FROZEN:
            raise WalletFrozen("the wallet is frozen: no more than what is held can be captured")
        available = spendable(wallet, spent_on, now)
        if more > available + wallet.overdraft_limit:
            raise insufficient(wallet, more, available)


@dataclass(frozen=True, slots=True)
class Release(OnHold):
    """End a hold and give back what is left of it."""

    code, word, has_amount = 8, "release", False
    hold_id: str

    def decide_on(self, case: Case, hold: Hold, original: Dimension) -> Decision:
        """End the hold. Nothing stays set aside."""
        return self.become(hold, _ended(hold, HoldEnd.RELEASED, case.now), original, [])


@dataclass(frozen=True, slots=True)
class Extend(OnHold):
    """A later deadline for a hold."""

    code, word, has_amount = 9, "extend", False
    hold_id: str
    deadline: int | None
    ttl_ms: int | None

    def decide_on(self, case: Case, hold: Hold, original: Dimension) -> Decision:
        """Raises InvalidField(deadline) unless the deadline is a later one."""
        deadline = _deadline(self.deadline, self.ttl_ms, case.now)
        if deadline < hold.deadline:
            raise InvalidField(
                f"deadline must not be before the hold's, {clock.text(hold.deadline)}",
                param="deadline",
            )
        return self.become(hold, replace(hold, deadline=deadline), original, [])


def _deadline(deadline: int | None, ttl_ms: int | None, now: int) -> int:
    moment = deadline if deadline is not None else now + (ttl_ms or TTL_MS_DEFAULT)
    if moment <= now:
        raise InvalidField("deadline has already passed", param="deadline")
    if moment > now + HOLD_MS_MAX:
        raise InvalidField("deadline is more than 7 days ahead", param="deadline")
    return moment


def _ended(hold: Hold, how: HoldEnd, now: int) -> Hold:
    return replace(hold, parts={}, beyond=0, ended=how, ended_at=now)


def lapse(wallet: Wallet, now: int) -> list[Hold]:
    """Write down the ends of holds whose deadline has passed; those holds."""
    over = wallet.lapsed(now)
    for hold in over:
        _become(wallet, _ended(hold, HoldEnd.EXPIRED, hold.deadline))
    # Ended grants may have repaid overdraft with credit that these holds had set aside. So `held`
    # can exceed `remaining` until all of them have lapsed.
    for number in {number for hold in over for number in hold.parts}:
        assert wallet.grants[number].held <= wallet.grants[number].remaining
    return [wallet.holds[hold.number] for hold in over]


def book(wallet: Wallet, after: Hold) -> None:
    """Apply a decided hold to the wallet."""
    for number in _become(wallet, after):
        assert wallet.grants[number].held <= wallet.grants[number].remaining


def _become(wallet: Wallet, after: Hold) -> Mapping[int, int]:
    """Replace the hold by `after`. Answers the grants of which it holds or held parts."""
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
    """The part of ended grants that the hold did not capture: repayments and expirations.

    This part repays overdraft first, as at the end of any grant. The rest expires.
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
            expired.append(Move(EXPIRY.kind, EXPIRY.type, -left, grant, now))
    return repaid, expired
