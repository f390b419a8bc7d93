"""The rules of the ledger: what a command does to a wallet, or why it is refused.

`decide` is pure: it reads a wallet under its lock, what the command refers to, and `now`, and
answers moves, which wallet_moves.py carries out, or raises a Refusal, touching nothing. The rules
in prose: docs/ledger.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from creditledger.domain import billing_periods, clock, ids, money, overdraft
from creditledger.domain.arrivals import Arrivals, words_digest
from creditledger.domain.commands import (
    AHEAD_MS_MAX,
    Adjust,
    Command,
    Consume,
    GiveGrant,
    Operation,
    PlaceHold,
    Refund,
    ReportEvent,
)
from creditledger.domain.errors import (
    InsufficientCredit,
    InvalidField,
    MeterInactive,
    NotFound,
    NotRefundable,
    OutOfRange,
    ReceiptUsed,
    RefundTooLarge,
    SequenceMismatch,
    WalletClosed,
    WalletFrozen,
    echo,
)
from creditledger.domain.model import (
    NO_PURPOSE,
    PRIORITY_DEFAULT,
    UNPAID_EVENTS_MAX,
    Category,
    Dimension,
    Grant,
    GrantScope,
    Kind,
    Origin,
    Purpose,
    Receipt,
    Row,
    Status,
    Type,
    Wallet,
    given_back,
    standing,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer
from creditledger.domain.wallet_moves import Move, check_range

# Looking a word up in its list costs more than all else that is done with it.
_USAGE, _REFUND, _ADMIN_CREDIT, _ADMIN_DEBIT, _EXPIRY = (
    kind.value
    for kind in (Kind.USAGE, Kind.REFUND, Kind.ADMIN_CREDIT, Kind.ADMIN_DEBIT, Kind.EXPIRY)
)
_GRANT, _CONSUMPTION, _ADJUSTMENT, _EXPIRATION = (
    type_.value for type_ in (Type.GRANT, Type.CONSUMPTION, Type.ADJUSTMENT, Type.EXPIRATION)
)
_ACTIVE = Status.ACTIVE
_NOTHING: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Original:
    """A posting that a refund names: its rows, oldest first, and what was returned of it."""

    rows: Sequence[Row]
    dimension: Dimension | None  #: None of a posting without rows.
    refunded: int
    is_canceled: bool = False  #: It paid for a meter event that was canceled.
    #: Its rows that drew beyond the grants, by sequence.
    overdrafts: Mapping[int, OverdraftDraw] = field(default_factory=dict)


class Credited(NamedTuple):
    """A grant, not voided, that credited a receipt."""

    grant: int
    posting: int


@dataclass(frozen=True, slots=True)
class References:
    """What the commands of a batch refer to, as far as it exists."""

    meters: frozenset[str]
    subscriptions: Mapping[str, str]  #: Subscription id -> customer id.
    originals: dict[tuple[int, int], Original]  #: By wallet number and posting number.
    inactive_meters: frozenset[str] = frozenset()  #: Those of the meters that count nothing new.
    #: By wallet number and receipt, oldest first: the grants that have credited it.
    credited: dict[tuple[int, Receipt], list[Credited]] = field(default_factory=dict)
    #: Who paid the overdrafts of the originals back, by wallet number.
    payers: Mapping[int, Sequence[Payer]] = field(default_factory=dict)


def decide(
    wallet: Wallet,
    command: Command,
    amount: int | None,
    references: References,
    *,
    now: int,
    backdating_ms_max: int,
    returned_ms: int,
) -> list[Move]:
    """The command's own moves, in order (the expirations due are `expirations`).

    `amount`: the operation's, in smallest units; None only for a refund of all that is left.
    `now`: the wallet's time. `returned_ms`: how long promotional credit lasts that comes back after
    its grant has ended. Raises, in this order of precedence: SequenceMismatch; WalletClosed,
    WalletFrozen; NotFound, MeterInactive; InvalidField and the refusals of the operation;
    InsufficientCredit; OutOfRange.
    """
    if command.expected_sequence is not None:
        expect_sequence(wallet, command.expected_sequence)
    if wallet.status is not _ACTIVE:
        refuse_by_status(wallet, command, amount)
    check_references(wallet, command.operation, references)
    if command.effective_at is not None and not isinstance(command.operation, GiveGrant):
        _check_effective_at(command, now, backdating_ms_max)

    operation = command.operation
    quantity = None
    if isinstance(operation, Consume):
        assert amount is not None
        used = purpose(operation)
        moves = draw(wallet, amount, _USAGE, _CONSUMPTION, command.effective_at, used, now=now)
        quantity = sum(operation.usage.quantities) if operation.usage else 0
    elif isinstance(operation, GiveGrant):
        assert amount is not None
        moves = _give(wallet, operation, amount, command, now, backdating_ms_max)
        if operation.receipt is not None and not operation.allow_repeated_receipt:
            _require_unused(wallet, operation.receipt, references)
    elif isinstance(operation, Adjust):
        assert amount is not None
        moves = _adjust(wallet, operation, amount, command.effective_at, now)
    elif isinstance(operation, ReportEvent):
        assert amount is not None
        metered = operation.meter_id, "", ""
        moves = _report(wallet, amount, command.effective_at, metered, now)
    else:
        assert isinstance(operation, Refund)
        moves = _refund(wallet, operation, amount, command, references, now, returned_ms)
    check_range(wallet, moves, now, quantity=quantity or 0)
    return moves


def expect_sequence(wallet: Wallet, expected: int) -> None:
    """Raises SequenceMismatch if a row other than an expiration follows it."""
    if expected > wallet.sequence or wallet.moved_sequence > expected:
        raise SequenceMismatch(
            f"the wallet is at sequence {wallet.sequence}, not {expected}",
            param="expected_sequence",
            expected=str(expected),
            actual=str(wallet.sequence),
        )


def refuse_by_status(wallet: Wallet, command: Command, amount: int | None) -> None:
    """Raises WalletClosed, or WalletFrozen where the operation would spend."""
    if wallet.status is Status.CLOSED:
        raise WalletClosed("the wallet is closed")
    operation = command.operation
    spends = isinstance(operation, (Consume, PlaceHold, ReportEvent)) or (
        isinstance(operation, Adjust) and amount is not None and amount < 0 and not operation.force
    )
    if spends:
        raise WalletFrozen("the wallet is frozen: it takes credit but gives none")


def _check_effective_at(command: Command, now: int, backdating_ms_max: int) -> None:
    moment = command.effective_at
    assert moment is not None
    if moment > now + AHEAD_MS_MAX:
        raise InvalidField("effective_at is more than 60 s ahead", param="effective_at")
    if not command.backdating_free and moment < now - backdating_ms_max:
        days = backdating_ms_max // clock.DAY
        raise InvalidField(f"effective_at is more than {days} days ago", param="effective_at")


def check_references(wallet: Wallet, operation: Operation, references: References) -> None:
    """Raises NotFound for what the operation names and there is not, or MeterInactive."""
    if isinstance(operation, (Consume, PlaceHold, ReportEvent)):
        meter, subscription = operation.meter_id, operation.subscription_id
        if meter is not None:
            if meter not in references.meters:
                raise NotFound(f"no meter {echo(meter)}", param="meter_id")
            if meter in references.inactive_meters:
                raise MeterInactive(f"meter {echo(meter)} is inactive", param="meter_id")
        if (
            subscription is not None
            and references.subscriptions.get(subscription) != wallet.customer_id
        ):
            raise NotFound(
                f"no subscription {echo(subscription)} of this customer",
                param="subscription_id",
            )
    elif isinstance(operation, GiveGrant):
        for meter in operation.scope.meter_ids if operation.scope else ():
            if meter not in references.meters:
                raise NotFound(f"no meter {echo(meter)}", param="scope.meter_ids")
    elif isinstance(operation, Adjust):
        if operation.credit_grant_id is not None:
            _named_grant(wallet, operation.credit_grant_id)
    elif isinstance(operation, Refund):
        _named_posting(wallet, operation, references)


def _named_grant(wallet: Wallet, grant_id: str) -> Grant:
    found = ids.resolve("cg", grant_id)
    named = wallet.grants.get(found[1]) if found and found[0] == wallet.number else None
    if named is None:
        raise NotFound(f"no grant {echo(grant_id)} in this wallet", param="credit_grant_id")
    return named


def _named_posting(wallet: Wallet, operation: Refund, references: References) -> Original:
    found = ids.resolve("pst", operation.posting_id)
    original = references.originals.get(found) if found and found[0] == wallet.number else None
    if original is None:
        raise NotFound(
            f"no posting {echo(operation.posting_id)} in this wallet", param="posting_id"
        )
    return original


def purpose(operation: Consume | PlaceHold) -> Purpose:
    """What the credit is for: which scopes cover it."""
    used = operation.usage
    if used is None:
        return operation.meter_id, "", ""
    return operation.meter_id, used.product_id, used.category


def draw(
    wallet: Wallet,
    amount: int,
    kind: int,
    type_: int,
    effective_at: int | None,
    spent_on: Purpose = NO_PURPOSE,
    *,
    now: int,
    room: int | None = None,
) -> list[Move]:
    """Take `amount` in burn order of what no hold has set aside, the rest as overdraft.

    `room` is what may be taken of all but the grants whose scope covers `spent_on`, which are for
    nothing else. Without it, that is what is available with the overdraft the wallet may use; the
    sum over all grants is needed only where the grants met on the way do not settle it.
    """
    moves = []
    missing = amount
    freed = given_back(wallet, now) if wallet.holds else _NOTHING
    is_checked = room is not None
    if room is None:
        room = amount
        if wallet.overdraft_used or wallet.holds:
            room, is_checked = _room_for(wallet, amount, spent_on, now), True
    for grant in wallet.burning:
        if not grant.is_open(now):
            continue
        part = grant.remaining - grant.held
        if freed:
            part += freed.get(grant.number, 0)
        if grant.scope is None:
            part = min(part, missing, room)
            room -= part
        elif grant.scope.covers(spent_on):
            part = min(part, missing)
        else:
            continue
        if not part:
            continue
        moves.append(Move(kind, type_, -part, grant, effective_at))
        missing -= part
        if not missing:
            return moves
    if not is_checked:
        _room_for(wallet, amount, spent_on, now)
    moves.append(Move(kind, type_, -missing, None, effective_at))
    return moves


def _report(
    wallet: Wallet, amount: int, effective_at: int | None, spent_on: Purpose, now: int
) -> list[Move]:
    """What a meter event draws: as a consumption, but no more than the wallet can pay."""
    most = spendable(wallet, spent_on, now) + wallet.overdraft_limit
    part = max(0, min(amount, most))
    if part < amount and len(wallet.unpaid) >= UNPAID_EVENTS_MAX:
        raise OutOfRange(f"a wallet has at most {UNPAID_EVENTS_MAX} unpaid meter events")
    # What is owed is used, once it is paid.
    if wallet.unpaid_amount + amount - wallet.usage_amount > billing_periods.usage_max(
        wallet.scale
    ):
        raise OutOfRange("what the wallet ever used and owes would pass what bills can say")
    if not part:
        return []
    return draw(wallet, part, _USAGE, _CONSUMPTION, effective_at, spent_on, now=now)


def _room_for(wallet: Wallet, amount: int, spent_on: Purpose, now: int) -> int:
    """What may be taken of credit without a scope. Raises InsufficientCredit if that is too little.

    Grants whose scope covers `spent_on` are added to it, but make up for nothing overdrawn.
    """
    available = standing(wallet, now).available
    most = _with_scoped(wallet, available, spent_on, now)
    if amount > most + wallet.overdraft_limit:
        raise insufficient(wallet, amount, most)
    return room_left(wallet, available)


def room_left(wallet: Wallet, available: int) -> int:
    """How much of what is for everything may be spent, overdraft included."""
    return max(0, available + wallet.overdraft_limit)


def spendable(wallet: Wallet, spent_on: Purpose, now: int) -> int:
    """What may be spent on this, overdraft aside."""
    return _with_scoped(wallet, standing(wallet, now).available, spent_on, now)


def _with_scoped(wallet: Wallet, available: int, spent_on: Purpose, now: int) -> int:
    own = covering(wallet, spent_on, now)
    # What is overdrawn beyond the limit, which may have been lowered, takes nothing of these.
    return own + max(available, -wallet.overdraft_limit) if own else available


def covering(wallet: Wallet, spent_on: Purpose, now: int) -> int:
    """What is free of the open grants whose scope covers this."""
    if not wallet.scopes:
        return 0
    freed = given_back(wallet, now)
    return sum(
        grant.remaining - grant.held + freed.get(grant.number, 0)
        for grant in wallet.burning
        if grant.scope is not None and grant.is_open(now) and grant.scope.covers(spent_on)
    )


def insufficient(wallet: Wallet, required: int, available: int) -> InsufficientCredit:
    """The refusal of what the wallet cannot pay."""
    need, have = money.text(required, wallet.scale), money.text(available, wallet.scale)
    return InsufficientCredit(
        f"{need} {wallet.currency} are required, {have} are available",
        required=need,
        available=have,
        currency=wallet.currency,
    )


def _new_grant(
    wallet: Wallet,
    amount: int,
    category: Category,
    now: int,
    *,
    overdraft_used: int,
    priority: int = PRIORITY_DEFAULT,
    name: str | None = None,
    effective_at: int | None = None,
    expires_at: int | None = None,
    scope: GrantScope | None = None,
    origin: Origin = Origin.GIVEN,
) -> Grant:
    """A grant that pays back what is overdrawn first, if it can be spent at once on everything."""
    starts = now if effective_at is None else effective_at
    paid = min(overdraft_used, amount) if starts <= now and scope is None else 0
    return Grant(
        number=0,
        amount=amount,
        overdraft_paid=paid,
        remaining=amount - paid,
        category=category,
        priority=priority,
        name=name,
        effective_at=starts,
        expires_at=expires_at,
        created_at=now,
        scope=scope,
        origin=origin,
    )


def _give(
    wallet: Wallet,
    operation: GiveGrant,
    amount: int,
    command: Command,
    now: int,
    backdating_ms_max: int,
) -> list[Move]:
    given = operation.begins_at if operation.begins_at is not None else command.effective_at
    field = "effective_at" if operation.begins_at is None else "begins_at"
    if given is not None and not command.backdating_free and given < now - backdating_ms_max:
        days = backdating_ms_max // clock.DAY
        raise InvalidField(f"{field} is more than {days} days ago", param=field)
    expires_at = _ends(operation, now if given is None else given, now)
    grant = _new_grant(
        wallet,
        amount,
        operation.category,
        now,
        overdraft_used=wallet.overdraft_used,
        priority=operation.priority,
        name=operation.name,
        effective_at=given,
        expires_at=expires_at,
        scope=operation.scope,
    )
    return [Move(operation.kind.value, _GRANT, amount, grant, given, fresh=True)]


def _require_unused(wallet: Wallet, receipt: Receipt, references: References) -> None:
    credited = references.credited.get((wallet.number, receipt))
    if credited:
        raise ReceiptUsed(
            f"receipt {echo(receipt.receipt_id)} has been credited",
            param="source.receipt_id",
            posting_id=ids.compose("pst", wallet.number, credited[0].posting),
        )


def _ends(operation: GiveGrant, starts: int, now: int) -> int | None:
    """When the grant ends that begins at `starts`. Raises InvalidField if that has passed."""
    expires_at, field = operation.expires_at, "expires_at"
    if operation.expires_after is not None:
        expires_at, field = operation.expires_after.after(starts), "expires_after"
        if expires_at is None:
            raise InvalidField(f"{field} ends after the year 9999", param=field)
    if expires_at is not None:
        if expires_at <= now:
            raise InvalidField(f"{field} has already passed", param=field)
        if expires_at <= starts:
            raise InvalidField(f"{field} must be after its effective_at", param=field)
    return expires_at


def _adjust(
    wallet: Wallet, operation: Adjust, amount: int, effective_at: int | None, now: int
) -> list[Move]:
    if amount > 0:
        for name in ("credit_grant_id", "force"):
            if getattr(operation, name):
                raise InvalidField(
                    f"{name} belongs to a debit; a credit makes a grant of its own",
                    param=name,
                )
        grant = _new_grant(
            wallet,
            amount,
            Category.PROMOTIONAL,
            now,
            overdraft_used=wallet.overdraft_used,
            origin=Origin.ADJUSTMENT,
        )
        return [Move(_ADMIN_CREDIT, _ADJUSTMENT, amount, grant, effective_at, fresh=True)]
    debit, force = -amount, operation.force
    kind, type_ = _ADMIN_DEBIT, _ADJUSTMENT
    if operation.credit_grant_id is None:
        most = debit if force else None
        return draw(wallet, debit, kind, type_, effective_at, now=now, room=most)
    named = _named_grant(wallet, operation.credit_grant_id)
    left = 0
    if not named.has_ended(now):
        left = named.remaining - named.held + given_back(wallet, now).get(named.number, 0)
    if not force:
        if debit > left:
            raise insufficient(wallet, debit, left)
        available = standing(wallet, now).available
        is_available = named.effective_at <= now and named.scope is None
        if is_available and debit > available + wallet.overdraft_limit:
            raise insufficient(wallet, debit, available)
    moves = []
    if part := min(debit, left):
        moves.append(Move(kind, type_, -part, named, effective_at))
    if debit > left:
        moves.append(Move(kind, type_, left - debit, None, effective_at))
    return moves


def refundable(wallet: Wallet, operation: Refund, references: References) -> Original:
    """The posting that a refund names. Raises NotFound, NotRefundable."""
    original = _named_posting(wallet, operation, references)
    if original.dimension is None or original.dimension.kind != _USAGE:
        raise NotRefundable("only a consumption can be refunded", param="posting_id")
    if original.is_canceled:
        raise NotRefundable(
            "the posting paid for a meter event that was canceled", param="posting_id"
        )
    return original


def _refund(
    wallet: Wallet,
    operation: Refund,
    amount: int | None,
    command: Command,
    references: References,
    now: int,
    returned_ms: int,
) -> list[Move]:
    original = refundable(wallet, operation, references)
    left = -sum(row.amount for row in original.rows) - original.refunded
    if left == 0:
        raise NotRefundable("all of the posting is refunded", param="posting_id")
    if amount is not None and amount > left:
        most = money.text(left, wallet.scale)
        raise RefundTooLarge(
            f"only {most} of the posting is left to refund", param="amount", refundable=most
        )
    draws = unreturned(original, left if amount is None else amount)
    returned = give_back(
        wallet,
        draws,
        references.payers.get(wallet.number, ()),
        effective_at=command.effective_at,
        metadata=command.metadata,
        now=now,
        returned_ms=returned_ms,
        force=operation.force,
    )
    return [move for _, moves in returned for move in moves]


class Draw(NamedTuple):
    """Part of what a row drew, to be returned."""

    row: Row
    amount: int  #: > 0
    returned: int  #: What was returned of the row before.
    overdraft: OverdraftDraw | None  #: Of a row that drew beyond the grants.


def unreturned(original: Original, amount: int) -> Iterator[Draw]:
    """`amount` of the draws of a posting, newest first, after those returned before."""
    returned = original.refunded
    for row in reversed(original.rows):
        skipped = min(returned, -row.amount)
        returned -= skipped
        part = min(-row.amount - skipped, amount)
        if part:
            drawn = None if row.grant is not None else original.overdrafts[row.sequence]
            yield Draw(row, part, skipped, drawn)
        amount -= part
        if not amount:
            return


def give_back(
    wallet: Wallet,
    draws: Iterable[Draw],
    payers: Sequence[Payer],
    *,
    effective_at: int | None,
    metadata: Mapping[str, str],
    now: int,
    returned_ms: int,
    force: bool,
) -> Iterator[tuple[Draw, list[Move]]]:
    """Return these draws: each with its moves, which are in order but not yet carried out.

    `payers`: who paid the wallet's overdrafts back. `metadata`: of the posting, which the grants
    that it makes have. Raises NotRefundable for what a voided grant paid, unless `force`.
    """
    words = words_digest(metadata)
    back = _GivingBack(wallet, effective_at, words, now, returned_ms, force=force)
    for one in draws:
        back.moves = []
        if one.overdraft is None:
            assert one.row.grant is not None
            back.to_grant(wallet.grants[one.row.grant], one.amount)
        else:
            back.to_overdraft(one, one.overdraft, payers)
        yield one, back.moves


class _Terms(NamedTuple):
    """Of the credit that comes back where a grant does not take it."""

    category: Category
    priority: int
    scope: GrantScope | None
    expires_at: int | None
    returned: bool


class _GivingBack:
    """What is given back is never better than what was spent."""

    def __init__(
        self,
        wallet: Wallet,
        effective_at: int | None,
        words: str | None,
        now: int,
        returned_ms: int,
        *,
        force: bool,
    ) -> None:
        self.moves: list[Move] = []  #: Of one draw.
        self._wallet = wallet
        self._effective_at = effective_at
        self._words = words
        self._now = now
        self._returned_ms = returned_ms
        self._force = force
        self._overdraft_used = wallet.overdraft_used
        self._arrivals: Arrivals | None = None  #: Most refunds need none: they make no grant.
        self._reopened: list[Grant] = []  #: Used up before. What comes later may go there too.

    def to_grant(self, drawn_on: Grant, amount: int) -> None:
        """Back to the grant that was drawn on or, if it has ended, as credit like it."""
        self._require_not_voided(drawn_on)
        if not drawn_on.has_ended(self._now) or self._is_over(drawn_on):
            self._move(amount, drawn_on)
            if not drawn_on.remaining:
                self._reopened.append(drawn_on)
        else:
            self._give(self._terms(drawn_on), amount)

    def to_overdraft(self, one: Draw, drawn: OverdraftDraw, payers: Sequence[Payer]) -> None:
        """What nothing has paid back is owed no more; the rest comes back as what paid it."""
        owed = min(one.amount, overdraft.unpaid(self._wallet, drawn, one.returned))
        if owed:
            self._move(owed, None, overdraft=drawn)
            self._overdraft_used -= owed
        rest = one.amount - owed
        # One row for all payers in succession that come back in the same way.
        pieces: list[tuple[Grant | _Terms, int]] = []
        for number, part in overdraft.paid_by(drawn, one.returned + owed, rest, payers):
            payer = self._wallet.grants[number]
            self._require_not_voided(payer)
            if self._is_over(payer):
                pieces.append((payer, part))
                continue
            # As good as the one that paid, whose own part was never spendable.
            terms = self._terms(payer)
            before = 0
            if pieces and pieces[-1][0] == terms:
                before = pieces.pop()[1]
            pieces.append((terms, before + part))
        for back, part in pieces:
            if isinstance(back, Grant):
                self._move(part, back, overdraft=drawn)
            else:
                self._give(back, part, drawn)

    def _move(
        self, amount: int, grant: Grant | None, *, overdraft: OverdraftDraw | None = None
    ) -> None:
        self.moves.append(
            Move(_REFUND, _ADJUSTMENT, amount, grant, self._effective_at, overdraft=overdraft)
        )

    def _require_not_voided(self, grant: Grant) -> None:
        if grant.voided_at is not None and not self._force:
            raise NotRefundable(
                "a grant that paid for it was voided: only force gives that back",
                param="posting_id",
            )

    def _is_over(self, grant: Grant) -> bool:
        """Whether it came back once already, and its end has passed: it gets no new one."""
        return grant.returned and grant.voided_at is None and grant.has_ended(self._now)

    def _terms(self, like: Grant) -> _Terms:
        expires_at, returned = like.expires_at, like.returned
        if like.has_ended(self._now):
            if like.category is Category.PAID:
                expires_at = None
            elif not returned or expires_at is None or expires_at <= self._now:
                expires_at, returned = _full_hour(self._now + self._returned_ms), True
        return _Terms(like.category, like.priority, like.scope, expires_at, returned)

    def _give(self, terms: _Terms, amount: int, drawn: OverdraftDraw | None = None) -> None:
        """A grant of these terms, or a part of one that the ledger made."""
        grant = _new_grant(
            self._wallet,
            amount,
            terms.category,
            self._now,
            overdraft_used=self._overdraft_used,
            priority=terms.priority,
            expires_at=terms.expires_at,
            scope=terms.scope,
            origin=Origin.REFUND,
        )
        grant.returned, grant.words = terms.returned, self._words
        self._overdraft_used -= grant.overdraft_paid
        if self._arrivals is None:
            self._arrivals = Arrivals(self._wallet, self._now)
        while self._reopened:
            self._arrivals.reopen(self._reopened.pop())
        move = self._arrivals.move(_REFUND, _ADJUSTMENT, grant, self._effective_at)
        self.moves.append(move._replace(overdraft=drawn))


def _full_hour(moment: int) -> int:
    """The first full hour, UTC, after the moment: refunds of one hour end together."""
    return (moment // clock.HOUR + 1) * clock.HOUR


def over_at_once(moves: list[Move], now: int) -> list[Move]:
    """What expires as a refund gives it back: its grant's end has passed."""
    return [
        Move(_EXPIRY, _EXPIRATION, -move.amount, move.grant, None)
        for move in moves
        if move.kind == _REFUND and move.grant is not None and move.grant.has_ended(now)
    ]
