"""The values of the ledger. The rules decide on them, the store keeps them, the API prints them.

Times are milliseconds since 1970 (UTC). Amounts are smallest units of the wallet's currency.
docs/ledger.md explains the words of the field.
"""

import copy
from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

from creditledger.domain import clock

#: Open grants that a wallet may have from transfers and promotional gifts, counted together.
#: Paid grants, refunds and adjustments are never refused, so they have no bound.
OPEN_GRANTS_MAX = 1_000
#: Open holds that a wallet may have. Each command reads all of them with the wallet.
OPEN_HOLDS_MAX = 1_000
#: Lifetime of promotional credit that a refund gives back after its grant has ended.
RETURNED_MS = 30 * clock.DAY
#: Longest time from the making or the last extension of a hold to its deadline.
HOLD_MS_MAX = 7 * clock.DAY
#: Meter events of a wallet that are not paid in full. Each command reads them with the wallet, and
#: one command that brings credit may pay all of them.
UNPAID_EVENTS_MAX = 1_000
#: Rows that one posting writes to return the draws of a canceled meter event. A posting returns a
#: draw whole, even if that draw alone needs more rows.
RETURNED_ROWS_MAX = 1_000
#: Parts of a rolling period. Spending counts until its whole part has left the period. So the
#: period may last a sixtieth longer than the limit says, and it never lets more through.
ROLLING_PARTS = 60
#: The priority of a grant that names none; 0 is spent first, 100 last.
PRIORITY_DEFAULT = 50
PRIORITY_MAX = 100
#: Sorts after every moment: a grant that never expires is spent last among its priority.
NEVER = 1 << 62


class Word(IntEnum):
    """One of a closed list of words: stored as its number, spelled in lower case on the wire."""

    @property
    def word(self) -> str:
        """As the wire spells it."""
        return self.name.lower()


class Kind(Word):
    """Why a transaction moved credit, in the words of the billing list."""

    TOPUP = 1
    SUBSCRIPTION_RENEW = 2
    ADMIN_CREDIT = 3
    ADMIN_DEBIT = 4
    REFUND = 5
    USAGE = 6
    EXPIRY = 7
    TRANSFER_OUT = 8
    TRANSFER_IN = 9


class Type(Word):
    """What a transaction is, in the words of the credit-transaction API."""

    GRANT = 1
    CONSUMPTION = 2
    ADJUSTMENT = 3
    EXPIRATION = 4


class Category(Word):
    """Whether a grant was paid for."""

    PAID = 1
    PROMOTIONAL = 2


class Origin(Word):
    """What made a grant: an operation `grant`, an adjustment, or the ledger by itself."""

    GIVEN = 1
    ADJUSTMENT = 2
    REFUND = 3
    TRANSFER = 4


class Status(Word):
    """What a wallet accepts: everything; no spending; nothing, for ever."""

    ACTIVE = 1
    FROZEN = 2
    CLOSED = 3


class Period(Word):
    """The period of a spend limit: a calendar day, week or month, the last hours, or for ever."""

    DAY = 1
    WEEK = 2
    MONTH = 3
    ROLLING = 4
    LIFETIME = 5


class HoldEnd(Word):
    """How a hold ended: by a capture (all of it, or a final one), a release, or its deadline."""

    CAPTURED = 1
    RELEASED = 2
    EXPIRED = 3


#: What credit is spent on: (meter, product, category). None or "": not named.
Purpose = tuple[str | None, str, str]
#: The purpose of spending that names none of the three. No scope covers it.
NO_PURPOSE: Purpose = (None, "", "")


class GrantScope(NamedTuple):
    """What a grant pays for: the purpose has to match each list that is not empty.

    At least one list is not empty. Each list is sorted and without duplicates.
    """

    meter_ids: tuple[str, ...] = ()
    product_ids: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def covers(self, purpose: Purpose) -> bool:
        """Whether the grant pays for this purpose."""
        meter, product, category = purpose
        return (
            (not self.meter_ids or meter in self.meter_ids)
            and (not self.product_ids or product in self.product_ids)
            and (not self.categories or category in self.categories)
        )


class Receipt(NamedTuple):
    """A payment, as its provider names it."""

    provider: str  #: "" where none was given.
    receipt_id: str


class GrantStatus(Word):
    """What a grant is at a moment. Computed, never stored."""

    PENDING = 1
    GRANTED = 2
    DEPLETED = 3
    EXPIRED = 4
    VOIDED = 5


class GrantTerms(NamedTuple):
    """The terms of a grant that revisions change. Its metadata is stored apart."""

    name: str | None
    priority: int
    expires_at: int | None
    voided_at: int | None


@dataclass(slots=True, eq=False)
class Grant:
    """A lot of credit, given once. Postings change `remaining`, revisions change the terms."""

    number: int  #: Sequence of the row that created it; 0 until that row is appended.
    amount: int  #: Credit given, all parts included. > 0.
    overdraft_paid: int  #: Part of `amount` that repaid overdraft at the giving. <= amount.
    remaining: int  #: Not yet drawn. 0 <= remaining <= amount.
    category: Category
    priority: int  #: 0 to 100, lower is spent first.
    name: str | None
    effective_at: int  #: Spendable from here, included ...
    expires_at: int | None  #: ... to here, excluded; None is never.
    created_at: int
    scope: GrantScope | None = None  #: None: it pays for everything.
    voided_at: int | None = None  #: When it was taken back, which ends it; before expires_at.
    revision: int = 0  #: How often its terms have changed.
    repaid: int = 0  #: Part of `amount` that repaid overdraft when the grant began or ended.
    returned: bool = False  #: Promotional credit that came back after its grant had ended.
    origin: Origin = Origin.GIVEN
    #: Digest of the metadata of a grant that the ledger made by itself; None: no metadata.
    words: str | None = None
    held: int = 0  #: Σ parts of this grant in the open holds of `Wallet.holds`. <= remaining.

    def burn_key(self) -> tuple[int, int, int, int, int, int]:
        """The burn order, a total order: docs/ledger.md, "Burn order"."""
        return (
            self.priority,
            self.expires_at if self.expires_at is not None else NEVER,
            -self.category,  # promotional before paid
            self.effective_at,
            self.created_at,
            self.number,
        )

    def is_bounded(self) -> bool:
        """Whether it counts towards OPEN_GRANTS_MAX while it is open."""
        if self.origin is Origin.GIVEN:
            return self.category is Category.PROMOTIONAL
        return self.origin is Origin.TRANSFER

    def terms(self) -> GrantTerms:
        """The current terms."""
        return GrantTerms(self.name, self.priority, self.expires_at, self.voided_at)

    def is_open(self, now: int) -> bool:
        """Whether a consumption may draw on it at `now`, if anything remains."""
        return (
            self.effective_at <= now
            and (self.expires_at is None or now < self.expires_at)
            and self.voided_at is None
        )

    @property
    def ends_at(self) -> int | None:
        """The first moment after the grant; None is never."""
        return self.expires_at if self.voided_at is None else self.voided_at

    def has_ended(self, now: int) -> bool:
        """Whether the grant has expired or was voided. `now` is the wallet's time.

        `voided_at` is not compared: the wallet's time is never before it.
        """
        return self.voided_at is not None or (
            self.expires_at is not None and self.expires_at <= now
        )

    def status(self, now: int) -> GrantStatus:
        """The status at `now`, the wallet's time."""
        if self.voided_at is not None:
            return GrantStatus.VOIDED
        if self.has_ended(now):
            return GrantStatus.EXPIRED
        if not self.remaining:
            return GrantStatus.DEPLETED
        return GrantStatus.GRANTED if self.effective_at <= now else GrantStatus.PENDING


class Annotation(NamedTuple):
    """Description and metadata of a posting. A hold has those of the posting that made it."""

    description: str | None = None
    metadata: Mapping[str, str] = {}  # a Mapping: nobody writes to it


NO_ANNOTATION = Annotation()


@dataclass(slots=True, eq=False)
class Hold:
    """Credit set aside for a consumption to come, until its deadline."""

    number: int  #: Number of the posting that made it; 0 until that posting is written.
    amount: int  #: Set aside in the beginning. > 0.
    captured: int  #: Consumed by captures so far, more than was held included.
    parts: dict[int, int]  #: What is still set aside, by grant number, in the order it is drawn.
    beyond: int  #: What is still set aside of the overdraft.
    deadline: int  #: The first moment after the hold.
    created_at: int
    dimension: int  #: Number of the dimension of its captures.
    quantities: tuple[
        int, ...
    ]  #: Of its usage. The first capture counts them, unless it has usage of its own.
    meter_event_id: str | None
    ended: HoldEnd | None = None  #: None: open, or past its deadline and not yet written as ended.
    ended_at: int | None = None

    @property
    def left(self) -> int:
        """What is still set aside, the deadline left out of account."""
        return sum(self.parts.values()) + self.beyond

    def is_open(self, now: int) -> bool:
        """Whether a capture can use the hold at `now`."""
        return self.ended is None and now < self.deadline

    def end(self, now: int) -> tuple[HoldEnd | None, int | None]:
        """How and when it ended by `now`, written or not; (None, None) of an open hold."""
        if self.ended is None and self.deadline <= now:
            return HoldEnd.EXPIRED, self.deadline
        return self.ended, self.ended_at


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """What a meter counted for a wallet. Credit at the report pays first, later credit the rest."""

    number: int  #: Number of the posting that reported it; 0 until that posting is written.
    identifier: str  #: The reporter's name for the event: the posting's idempotency key.
    meter_id: str
    subscription_id: str | None
    value: int  #: The price of the event. > 0.
    unpaid: int  #: The part of `value` without a draw so far. 0 <= unpaid <= value.
    happened_at: int
    created_at: int
    paid_at: int | None  #: When `unpaid` became 0; None before.
    canceled_at: int | None = None
    #: Of a canceled event: the draws of rows below this sequence are still to be returned. None:
    #: all draws are returned.
    return_below: int | None = None

    @property
    def status(self) -> str:
        """`canceled`, `requires_capture` while something is unpaid, else `completed`."""
        if self.canceled_at is not None:
            return "canceled"
        return "requires_capture" if self.unpaid else "completed"

    @property
    def consumed(self) -> int:
        """Credit drawn for the event so far; 0 once canceled, because all draws come back."""
        return 0 if self.canceled_at is not None else self.value - self.unpaid

    @property
    def updated_at(self) -> int:
        """When it was canceled, else when it was paid in full, else when it was reported."""
        changes = (self.canceled_at, self.paid_at)
        return next((at for at in changes if at is not None), self.created_at)


@dataclass(slots=True, eq=False)
class SpendLimit:
    """How much of a wallet's credit one API key, or all keys together, may spend in a period."""

    number: int  #: Counted from 1 within the wallet.
    amount: int  #: Smallest units. >= 0.
    api_key_id: str | None  #: Only usage with this label; None: all spending.
    period: Period
    time_zone: str | None  #: IANA zone of a calendar's periods; None of other periods.
    hours: int | None  #: Length of a rolling period; None of other periods.
    created_at: int
    updated_at: int
    since: int  #: The wallet's sequence when the limit was made. Only later rows count.
    counted_from: int  #: Start of the period that last counted something.
    parts: dict[int, int]  #: Spent less refunded, by the start of each part of the period.
    counted_until: int | None  #: End of that period; None of a rolling one and of a lifetime.

    def covers(self, api_key_id: str) -> bool:
        """Whether spending under this label counts."""
        return self.api_key_id is None or self.api_key_id == api_key_id


def _counters() -> list[int]:
    return [0] * (max(Kind) + 1)


@dataclass(slots=True)
class Wallet:
    """A wallet under its lock: its row, and its grants with something left, as one value.

    `sequence`, `running_balance` and the counters are those of its last transaction.
    """

    number: int
    id: str
    customer_id: str
    currency: str
    scale: int
    livemode: bool
    status: Status
    overdraft_limit: int
    metadata: Mapping[str, str]
    created_at: int
    updated_at: int
    sequence: int = 0
    running_balance: int = 0
    overdraft_used: int = 0
    posted_at: int = 0  #: When it was last posted to, with rows or without; 0 before the first.
    moved_sequence: int = 0  #: The last transaction that is no expiration; 0 before the first.
    usage_count: int = 0  #: Transactions of kind usage so far.
    usage_amount: int = 0  #: Σ amounts of transactions of kind usage. <= 0.
    usage_quantity: int = 0  #: Σ quantities of usage; each posting counts once.
    unmetered_amount: int = 0  #: Σ |amount| of kind usage where the posting has no usage.
    topup_amount: int = 0  #: Σ amounts of kind topup. >= 0.
    refund_amount: int = 0  #: Σ amounts of kind refund. >= 0.
    credited_amount: int = 0  #: Σ of all amounts > 0: what the wallet was ever given. >= 0.
    unpaid_amount: int = 0  #: Σ unpaid of its meter events. >= 0.
    limits_made: int = 0  #: Spend limits ever made. 0: the loader reads none.
    last_posting: int = 0  #: Number of its last posting. Each wallet counts postings from 1.
    kind_counts: list[int] = field(default_factory=_counters)  #: By Kind, usage left at 0.
    grants: dict[int, Grant] = field(default_factory=dict)  #: By number: open, and referred to.
    burning: list[Grant] = field(default_factory=list)  #: Grants with something left, burn order.
    #: Before this moment no grant of `burning` begins or ends and no hold ends, and all earlier
    #: ends are written down. 0: not known.
    quiet_until: int = 0
    pending: int = 0  #: Σ remaining of grants that have not begun; valid until quiet_until.
    held: int = 0  #: Σ left of the open holds; valid until quiet_until.
    scoped: int = 0  #: Σ not held of the open grants with a scope; valid until quiet_until.
    scopes: int = 0  #: How many grants of `burning` have a scope.
    holds: dict[int, Hold] = field(default_factory=dict)  #: By number: open, and referred to.
    unpaid: dict[int, MeterEvent] = field(default_factory=dict)  #: By number, oldest first.
    limits: tuple[SpendLimit, ...] = ()  #: Oldest first.
    revision: int = 0  #: Number of postings and changes so far. Readers compare it.
    #: Grants that begin or end after this moment pay overdraft back at that point.
    repays_from: int = 0
    overdrawn: int = 0  #: Σ ever drawn beyond grants: the length of the line in overdraft.py.
    repaid_to: int = 0  #: The place of that line up to which it is paid back.
    #: Stretches of the line after that place that refunds gave back: [begins, ends), in order.
    forgiven: list[tuple[int, int]] = field(default_factory=list)

    def add(self, grant: Grant) -> None:
        """Add a grant, loaded or new, to the wallet."""
        self.grants[grant.number] = grant
        if grant.remaining:
            insort(self.burning, grant, key=Grant.burn_key)
            self.scopes += grant.scope is not None
            self.quiet_until = 0

    def use_up(self, grant: Grant) -> None:
        """Take a grant without anything left out of the burn order."""
        self.burning.remove(grant)
        self.scopes -= grant.scope is not None

    def fill(self, grants: Iterable[Grant], holds: Iterable[Hold] = ()) -> None:
        """Set all grants with something left, and all open holds. Sorts once."""
        self.burning = sorted(grants, key=Grant.burn_key)
        self.grants = {grant.number: grant for grant in self.burning}
        self.scopes = sum(grant.scope is not None for grant in self.burning)
        self.holds = {hold.number: hold for hold in holds}
        for hold in self.holds.values():
            for number, part in hold.parts.items():
                self.grants[number].held += part

    def look_ahead(self, now: int) -> None:
        """Compute `quiet_until` and the sums that stay valid until then.

        Until that moment, reads need not add up the grants.
        """
        until, pending, held, scoped = NEVER, 0, 0, 0
        for hold in self.holds.values():
            if hold.ended is None:
                held += hold.left
                until = min(until, hold.deadline)
        for grant in self.burning:
            turns = grant.ends_at
            if grant.effective_at > now and grant.voided_at is None:
                pending += grant.remaining
                turns = grant.effective_at
            elif turns is not None and turns <= now:
                if grant.held == grant.remaining:
                    continue
                until = 0
                break
            elif grant.scope is not None:
                scoped += grant.remaining - grant.held
            if turns is not None and turns < until:
                until = turns
        self.quiet_until, self.pending, self.held, self.scoped = until, pending, held, scoped

    def ending(self, now: int) -> dict[tuple[int, int], int]:
        """The amounts that leave ended grants, by (moment, grant number).

        The part of a grant that a hold has set aside leaves when the hold ends, if that is later.
        """
        ended = [grant for grant in self.burning if grant.has_ended(now)]
        leaving: dict[tuple[int, int], int] = {}
        for grant in ended:
            leaving[grant.ends_at or NEVER, grant.number] = grant.remaining - grant.held
        if ended and self.holds:
            for hold in self.lapsed(now):
                for number, part in hold.parts.items():
                    grant = self.grants[number]
                    if grant.has_ended(now):
                        place = max(grant.ends_at or NEVER, hold.deadline), number
                        leaving[place] = leaving.get(place, 0) + part
            # Overdraft that the grant repaid after its end reduces its earliest part first.
            lacking: dict[int, int] = {}
            for place in sorted(leaving):
                left = leaving[place] + lacking.pop(place[1], 0)
                if left < 0:
                    lacking[place[1]] = left
                leaving[place] = max(0, left)
        return leaving

    def lapsed(self, now: int) -> list[Hold]:
        """Holds that are past their deadline and not yet written as ended."""
        if now < self.quiet_until:
            return []
        return [h for h in self.holds.values() if h.ended is None and h.deadline <= now]

    def time(self, clock: int) -> int:
        """The wallet's time, which never runs backwards."""
        return clock if clock > self.posted_at else self.posted_at

    def copy(self) -> "Wallet":
        """A copy to try a command on."""
        grants = {number: copy.copy(grant) for number, grant in self.grants.items()}
        return replace(
            self,
            kind_counts=[*self.kind_counts],
            grants=grants,
            burning=[grants[grant.number] for grant in self.burning],
            holds={n: replace(hold, parts={**hold.parts}) for n, hold in self.holds.items()},
            unpaid={**self.unpaid},
            forgiven=[*self.forgiven],
        )


class Repayment(NamedTuple):
    """Overdraft that a grant pays back when it begins or ends."""

    moment: int
    grant: Grant
    start: int  #: `repaid` of the grant before this repayment.
    amount: int  #: > 0.


def repayments(wallet: Wallet, now: int) -> list[Repayment]:
    """The repayments due by `now` that are not yet written, in order of time.

    A grant without a scope pays when it begins. It pays again when it ends, out of the credit that
    would expire. A voided grant pays nothing. At the same moment, grants that end pay before grants
    that begin, each in burn order. Each posting writes the repayments that are due by its time.
    """
    if not wallet.overdraft_used or now < wallet.quiet_until:
        return []
    turns = [
        (moment, 0, wallet.grants[number].burn_key(), part)
        for (moment, number), part in wallet.ending(now).items()
        if part and moment > wallet.repays_from
    ]
    since = max(wallet.posted_at, wallet.repays_from)
    turns += [
        (grant.effective_at, 1, grant.burn_key(), grant.remaining)
        for grant in wallet.burning
        if since < grant.effective_at <= now
    ]
    found: list[Repayment] = []
    used, paid = wallet.overdraft_used, dict[int, int]()
    for moment, _, (*_, number), part in sorted(turns):
        grant = wallet.grants[number]
        if grant.scope is not None or grant.voided_at is not None:
            continue
        before = paid.get(number, 0)
        amount = min(used, part, grant.remaining - before)
        if amount:
            found.append(Repayment(moment, grant, grant.repaid + before, amount))
            paid[number] = before + amount
            used -= amount
    return found


class Standing(NamedTuple):
    """The sums of a wallet's credit at one moment."""

    balance: int
    held: int
    pending: int
    available: int
    scoped: int


def standing(wallet: Wallet, clock: int) -> Standing:
    """The wallet's sums at `clock`. Expired credit counts as gone, swept or not."""
    now = wallet.time(clock)
    balance, pending, held = wallet.running_balance, wallet.pending, wallet.held
    scoped = wallet.scoped
    if now >= wallet.quiet_until:
        pending = held = scoped = 0
        freed = given_back(wallet, now)
        for hold in wallet.holds.values():
            if hold.is_open(now):
                held += hold.left
        for grant in wallet.burning:
            if grant.has_ended(now):
                balance -= grant.remaining - grant.held + freed.get(grant.number, 0)
            elif grant.effective_at > now:
                pending += grant.remaining
            elif grant.scope is not None:
                scoped += grant.remaining - grant.held + freed.get(grant.number, 0)
        # Credit that repays overdraft when its grant ends does not expire.
        balance += sum(paid.amount for paid in repayments(wallet, now) if paid.grant.has_ended(now))
    return Standing(balance, held, pending, balance - held - pending - scoped, scoped)


def given_back(wallet: Wallet, now: int) -> Mapping[int, int]:
    """The credit that lapsed holds free again, by grant number."""
    freed: dict[int, int] = {}
    for hold in wallet.lapsed(now):
        for number, part in hold.parts.items():
            freed[number] = freed.get(number, 0) + part
    return freed


class WalletView(NamedTuple):
    """A wallet as its owner sees it at one moment."""

    id: str
    customer_id: str
    currency: str
    scale: int
    livemode: bool
    status: Status
    balance: int
    held: int
    pending: int
    available: int
    scoped: int
    overdraft_limit: int
    overdraft_used: int
    sequence: int
    metadata: Mapping[str, str]
    created_at: int
    updated_at: int


def overdraft_used(wallet: Wallet, clock: int) -> int:
    """The overdraft at `clock`, less all repayments by then, written or not."""
    used = wallet.overdraft_used
    if used:
        used -= sum(paid.amount for paid in repayments(wallet, wallet.time(clock)))
    return used


def view(wallet: Wallet, clock: int) -> WalletView:
    """The wallet at `clock`."""
    balance, held, pending, available, scoped = standing(wallet, clock)
    posted_at, updated_at = wallet.posted_at, wallet.updated_at
    return WalletView(
        wallet.id,
        wallet.customer_id,
        wallet.currency,
        wallet.scale,
        wallet.livemode,
        wallet.status,
        balance,
        held,
        pending,
        available,
        scoped,
        wallet.overdraft_limit,
        overdraft_used(wallet, clock),
        wallet.sequence,
        wallet.metadata,
        wallet.created_at,
        posted_at if posted_at > updated_at else updated_at,
    )


class Dimension(NamedTuple):
    """The attributes that folds group rows by: kind, meter, subscription, usage and prices.

    Each wallet stores a dimension once, under a number. Rows and folds refer to that number.
    """

    kind: int
    type: int
    meter_id: str | None = None
    subscription_id: str | None = None
    has_usage: bool = False
    api_key_id: str = ""
    product_id: str = ""
    product_name: str = ""
    category: str = ""
    billing_method: int = 1
    base_prices: tuple[int, ...] = ()
    discount_prices: tuple[int, ...] = ()
    price_precision: int = 1


class Row(NamedTuple):
    """One credit transaction, in the order of its columns."""

    wallet: int
    sequence: int
    posting: int
    kind: int
    type: int
    grant: int | None  #: Number of the grant that it adds to or draws on; None is overdraft.
    amount: int
    running_balance: int
    created_at: int
    effective_at: int | None  #: None: at created_at.
    dimension: int
    kind_count: int | None  #: Rows of this kind up to this row; None of usage: see usage_count.
    usage_count: int
    usage_amount: int
    usage_quantity: int
    unmetered_amount: int


@dataclass(slots=True)
class Posting:
    """A command as it is written: its rows, and the parts of the request that rows do not hold."""

    wallet: int
    number: int
    idempotency_key: str | None  #: None: the ledger's own (expirations).
    operation: int
    amount: int | None  #: As requested; None for a refund of all that is left.
    posted_by: int | None
    description: str | None
    note: str | None
    metadata: Mapping[str, str]
    source: Mapping[str, str]
    meter_event_id: str | None
    quantities: tuple[int, ...]
    refund_of: int | None
    hold: int | None  #: Number of the hold that it made, captured, released or extended.
    terms: Mapping[str, object]  #: The rest of the request by field name, for `replay`.
    #: Of a transfer: wallet number and posting number of its other side.
    linked: tuple[int, int] | None = None
    rows: list[Row] = field(default_factory=list)
