"""The rules that operations share: refusals, and how much is drawn from which grants.

Pure: a rule reads a wallet under its lock. It answers values or raises a Refusal, and changes
nothing. The rules in prose: docs/ledger.md.
"""

from collections.abc import Mapping

from creditledger.domain import clock, ids, money
from creditledger.domain.commands import (
    AHEAD_MS_MAX,
    PLAIN_USAGE,
    Case,
    Decision,
    Operation,
    Usage,
    Wants,
)
from creditledger.domain.errors import (
    InsufficientCredit,
    InvalidField,
    MeterInactive,
    NotFound,
    SequenceMismatch,
    WalletClosed,
    WalletFrozen,
    echo,
)
from creditledger.domain.model import (
    NO_PURPOSE,
    PRIORITY_DEFAULT,
    Category,
    Dimension,
    Grant,
    GrantScope,
    Kind,
    Origin,
    Purpose,
    Status,
    Type,
    Wallet,
    given_back,
    standing,
)
from creditledger.domain.wallet_moves import Move, check_range

# Plain ints: reading `Enum.value` is the hottest cost here.
USAGE, CONSUMPTION = Kind.USAGE.value, Type.CONSUMPTION.value
_ACTIVE = Status.ACTIVE
_NOTHING: Mapping[int, int] = {}
#: The dimension of expirations.
EXPIRY = Dimension(Kind.EXPIRY.value, Type.EXPIRATION.value)


def validate(case: Case) -> None:
    """Check what the command says and names. The wallet's credit does not matter here.

    Raises, in this order of precedence: SequenceMismatch; WalletClosed, WalletFrozen; NotFound,
    MeterInactive; InvalidField for a time.
    """
    command, wallet = case.command, case.wallet
    operation = command.operation
    if command.expected_sequence is not None:
        _expect_sequence(wallet, command.expected_sequence)
    if wallet.status is not _ACTIVE:
        sends = operation.receiver_id is not None
        name, param = ("sending wallet", "wallet_id") if sends else ("wallet", None)
        if wallet.status is Status.CLOSED:
            raise WalletClosed(f"the {name} is closed", param=param)
        if operation.spends(case.amount):
            message = f"the {name} is frozen: it takes credit but gives none"
            raise WalletFrozen(message, param=param)
    operation.check(case)
    if command.effective_at is not None and operation.has_time:
        _check_time(case, command.effective_at)


def decide(case: Case) -> Decision:
    """The decision on a command that `validate` let pass. Its moves are in order.

    Expirations that are due are not part of it: see `wallet_moves.expirations`. Raises the refusals
    of the operation, then OutOfRange.
    """
    decision = case.command.operation.decide(case)
    received = decision.received
    aside = decision.hold.left if decision.hold is not None and decision.held is None else 0
    quantity = sum(decision.quantities)
    check_range(case.wallet, decision.moves, case.now, quantity=quantity, held=aside)
    if received is not None and case.receiver is not None:
        check_range(case.receiver, received.moves, case.received_at, quantity=0)
    return decision


def _expect_sequence(wallet: Wallet, expected: int) -> None:
    """Raises SequenceMismatch unless row `expected` exists and only expirations follow it."""
    if expected > wallet.sequence or wallet.moved_sequence > expected:
        raise SequenceMismatch(
            f"the wallet is at sequence {wallet.sequence}, not {expected}",
            param="expected_sequence",
            expected=str(expected),
            actual=str(wallet.sequence),
        )


def _check_time(case: Case, moment: int) -> None:
    if moment > case.now + AHEAD_MS_MAX:
        raise InvalidField("effective_at is more than 60 s ahead", param="effective_at")
    check_backdating(case, moment, "effective_at")


def check_backdating(case: Case, moment: int, field: str) -> None:
    """Raises InvalidField for a moment that is too long ago."""
    if not case.command.backdating_free and moment < case.now - case.backdating_ms_max:
        days = case.backdating_ms_max // clock.DAY
        raise InvalidField(f"{field} is more than {days} days ago", param=field)


class Metered(Operation):
    """An operation that spends for a meter, a subscription, or usage."""

    __slots__ = ()
    meter_id: str | None
    subscription_id: str | None
    usage: Usage | None = None

    @property
    def dimension(self) -> Dimension:
        """The dimension of what it spends."""
        return used(self.meter_id, self.subscription_id, self.usage)

    def want(self, wallet_id: str, wants: Wants) -> None:
        """Meter and subscription."""
        if self.meter_id is not None:
            wants.meters.add(self.meter_id)
        if self.subscription_id is not None:
            wants.subscriptions.add(self.subscription_id)

    def spends(self, amount: int | None) -> bool:
        """A frozen wallet gives nothing."""
        return True

    def check(self, case: Case) -> None:
        """Raises NotFound, MeterInactive for a meter or the customer's subscription."""
        meter_id, subscription_id, known = self.meter_id, self.subscription_id, case.known
        if meter_id is not None:
            if meter_id not in known.meters:
                raise NotFound(f"no meter {echo(meter_id)}", param="meter_id")
            if meter_id in known.inactive_meters:
                raise MeterInactive(f"meter {echo(meter_id)} is inactive", param="meter_id")
        of_customer = case.wallet.customer_id
        if subscription_id is not None and known.subscriptions.get(subscription_id) != of_customer:
            raise NotFound(
                f"no subscription {echo(subscription_id)} of this customer", param="subscription_id"
            )


def named_grant(wallet: Wallet, id_: str, *, param: str, within: str = "") -> Grant:
    """The wallet's grant of this id. Raises NotFound."""
    place = ids.resolve("cg", id_)
    grant = wallet.grants.get(place[1]) if place and place[0] == wallet.number else None
    if grant is None:
        raise NotFound(f"no grant {echo(id_)}{within}", param=param)
    return grant


def purpose(meter_id: str | None, usage: Usage | None) -> Purpose:
    """What the credit is spent on. Scopes are compared with it."""
    used = usage or PLAIN_USAGE
    return meter_id, used.product_id, used.category


def used(meter_id: str | None, subscription_id: str | None, usage: Usage | None) -> Dimension:
    """The dimension of a consumption's rows."""
    said = usage or PLAIN_USAGE
    return Dimension(
        USAGE,
        CONSUMPTION,
        meter_id,
        subscription_id,
        usage is not None,
        said.api_key_id,
        said.product_id,
        said.product_name,
        said.category,
        said.billing_method,
        said.base_prices,
        said.discount_prices,
        said.price_precision,
    )


def draw(
    wallet: Wallet,
    amount: int,
    spent_on: Purpose = NO_PURPOSE,
    *,
    now: int,
    effective_at: int | None = None,
    room: int | None = None,
    kind: int = USAGE,
    type_: int = CONSUMPTION,
) -> list[Move]:
    """Draw `amount` in burn order from credit that no hold has set aside, the rest as overdraft.

    `room` bounds the draw on grants without a scope and the overdraft. Grants whose scope covers
    `spent_on` are not bounded. Default: the available credit plus the overdraft limit; the sum over
    all grants is computed only where the grants on the way do not decide it.
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


def _room_for(wallet: Wallet, amount: int, spent_on: Purpose, now: int) -> int:
    """The room of a draw on credit without a scope. Raises InsufficientCredit.

    Grants whose scope covers `spent_on` count towards `amount`, but do not offset an overdraft.
    """
    available = standing(wallet, now).available
    most = _with_scoped(wallet, available, spent_on, now)
    if amount > most + wallet.overdraft_limit:
        raise insufficient(wallet, amount, most)
    return room_left(wallet, available)


def room_left(wallet: Wallet, available: int) -> int:
    """How much credit without a scope may be spent, overdraft included."""
    return max(0, available + wallet.overdraft_limit)


def spendable(wallet: Wallet, spent_on: Purpose, now: int) -> int:
    """The credit that may be spent on `spent_on`, without the overdraft limit."""
    return _with_scoped(wallet, standing(wallet, now).available, spent_on, now)


def _with_scoped(wallet: Wallet, available: int, spent_on: Purpose, now: int) -> int:
    own = covering(wallet, spent_on, now)
    # An overdraft beyond the limit, which may have been lowered, does not reduce scoped credit.
    return own + max(available, -wallet.overdraft_limit) if own else available


def covering(wallet: Wallet, spent_on: Purpose, now: int) -> int:
    """The free credit of the open grants whose scope covers `spent_on`."""
    if not wallet.scopes:
        return 0
    freed = given_back(wallet, now)
    return sum(
        grant.remaining - grant.held + freed.get(grant.number, 0)
        for grant in wallet.burning
        if grant.scope is not None and grant.is_open(now) and grant.scope.covers(spent_on)
    )


def insufficient(wallet: Wallet, required: int, available: int) -> InsufficientCredit:
    """The refusal of an amount that the wallet cannot pay."""
    need, have = money.text(required, wallet.scale), money.text(available, wallet.scale)
    return InsufficientCredit(
        f"{need} {wallet.currency} are required, {have} are available",
        required=need,
        available=have,
        currency=wallet.currency,
    )


def new_grant(
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
    """A new grant. It repays overdraft first if it has begun and has no scope."""
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
