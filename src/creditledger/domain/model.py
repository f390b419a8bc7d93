"""The values of the ledger: what the rules decide on, the store keeps and the API prints.

Times are milliseconds (UTC), amounts smallest units of the wallet's currency. docs/ledger.md
explains the words of the field.
"""

import copy
from bisect import insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

from creditledger.domain import clock

#: Open grants a wallet may have that came by transfer or were given as promotional ones. Credit
#: that was paid, refunds and adjustments are always taken, so they have no bound.
OPEN_GRANTS_MAX = 1_000
#: Open holds a wallet may have: they are read with it.
OPEN_HOLDS_MAX = 1_000
#: How long promotional credit lasts that a refund gives back after its grant has ended.
RETURNED_MS = 30 * clock.DAY
#: How long after it was made or extended a hold may last.
HOLD_MS_MAX = 7 * clock.DAY
#: Meter events a wallet may have that are not paid in full: they are read with it, and one command
#: that brings credit pays them all.
UNPAID_EVENTS_MAX = 1_000
#: Rows that one posting writes to return what was drawn for a canceled meter event; a draw that
#: needs more is returned whole.
RETURNED_ROWS_MAX = 1_000
#: Rolling hours are counted in so many parts. What was spent stays until its whole part is out of
#: the hours: they may last a sixtieth longer than a limit says, and never let more through.
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
    """Why a transaction moved credit, in the words of the billing list. Stored as its number."""

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
    """What a transaction is, in the words of the credit-transaction API. Stored as its number."""

    GRANT = 1
    CONSUMPTION = 2
    ADJUSTMENT = 3
    EXPIRATION = 4


class Category(Word):
    """Whether a grant was paid for. Stored as its number."""

    PAID = 1
    PROMOTIONAL = 2


class Origin(Word):
    """What made a grant: an operation `grant`, an adjustment, or the ledger by itself.

    Stored as its number.
    """

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
    """What a spend limit is for: a calendar's day, week or month, the last hours, or for ever.

    Stored as its number.
    """

    DAY = 1
    WEEK = 2
    MONTH = 3
    ROLLING = 4
    LIFETIME = 5


class HoldEnd(Word):
    """How a hold ended: all of it captured or the rest given back, given back, or by its deadline.

    Stored as its number.
    """

    CAPTURED = 1
    RELEASED = 2
    EXPIRED = 3


#: What credit is spent on: meter, product and category, as far as they are named.
Purpose = tuple[str | None, str, str]
#: Of what names none of the three: no scope covers it.
NO_PURPOSE: Purpose = (None, "", "")


class GrantScope(NamedTuple):
    """What a grant pays for: of each list that is not empty, one has to be named.

    At least one is not; each is sorted and holds nothing twice.
    """

    meter_ids: tuple[str, ...] = ()
    product_ids: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def covers(self, purpose: Purpose) -> bool:
        """Whether it pays for this."""
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
    """What a grant is at a moment. Nowhere stored."""

    PENDING = 1
    GRANTED = 2
    DEPLETED = 3
    EXPIRED = 4
    VOIDED = 5


class GrantTerms(NamedTuple):
    """What revisions change of a grant, its metadata aside."""

    name: str | None
    priority: int
    expires_at: int | None
    voided_at: int | None


@dataclass(slots=True, eq=False)
class Grant:
    """A lot of credit given once: `remaining` changes in its life, and its terms by revisions."""

    number: int  #: Sequence of the row that created it; 0 until that row is appended.
    amount: int  #: Given, in smallest units, with all its parts. > 0.
    overdraft_paid: int  #: Part of it that paid back an overdraft as it was given. <= amount.
    remaining: int  #: Not yet drawn. 0 <= remaining <= amount.
    category: Category
    priority: int  #: 0 to 100, lower is spent first.
    name: str | None
    effective_at: int  #: Spendable from here, included ...
    expires_at: int | None  #: ... to here, excluded; None is never.
    created_at: int
    scope: GrantScope | None = None  #: None: it pays for everything.
    voided_at: int | None = None  #: Taken back then, so that it ended; before expires_at.
    revision: int = 0  #: How often its terms have changed.
    repaid: int = 0  #: Part of it that paid back overdraft as it began or ended.
    returned: bool = False  #: Promotional credit that came back after its grant had ended.
    origin: Origin = Origin.GIVEN
    #: Of what the ledger made: digest of the metadata that it was made with; None: it has none.
    words: str | None = None
    held: int = 0  #: What open holds have set aside of it, as `Wallet.holds` says. <= remaining.

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
        """What revisions change, as it is."""
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
        """The first moment without it; None is never."""
        return self.expires_at if self.voided_at is None else self.voided_at

    def has_ended(self, now: int) -> bool:
        """Whether its time is over, or it was voided: a wallet's time is never before that."""
        return self.voided_at is not None or (
            self.expires_at is not None and self.expires_at <= now
        )

    def status(self, now: int) -> GrantStatus:
        """What it is at `now`, a moment of its wallet."""
        if self.voided_at is not None:
            return GrantStatus.VOIDED
        if self.has_ended(now):
            return GrantStatus.EXPIRED
        if not self.remaining:
            return GrantStatus.DEPLETED
        return GrantStatus.GRANTED if self.effective_at <= now else GrantStatus.PENDING


class Annotation(NamedTuple):
    """What a posting says for people and for its caller. That of a hold is its first posting's."""

    description: str | None = None
    metadata: Mapping[str, str] = {}  # a Mapping: nobody writes to it


#: Of what says nothing.
NO_ANNOTATION = Annotation()


@dataclass(slots=True, eq=False)
class Hold:
    """Credit set aside for a consumption to come, until its deadline."""

    number: int  #: Of the posting that made it; 0 until that is written.
    amount: int  #: Set aside in the beginning. > 0.
    captured: int  #: Consumed of it, or beyond it, so far.
    parts: dict[int, int]  #: What is still set aside, by grant number, in the order it is drawn.
    beyond: int  #: What is still set aside of what no grant covers.
    deadline: int  #: The first moment without it.
    created_at: int
    dimension: int  #: Number of what its captures are added up by.
    quantities: tuple[
        int, ...
    ]  #: Of its usage; the first capture that has none of its own counts them.
    meter_event_id: str | None
    ended: HoldEnd | None = None  #: None: open, or over by its deadline and not yet written down.
    ended_at: int | None = None

    @property
    def left(self) -> int:
        """What is still set aside, if its time is not over."""
        return sum(self.parts.values()) + self.beyond

    def is_open(self, now: int) -> bool:
        """Whether it can be captured at `now`."""
        return self.ended is None and now < self.deadline

    def end(self, now: int) -> tuple[HoldEnd | None, int | None]:
        """How and when it has ended by `now`, whether that is written down or not."""
        if self.ended is None and self.deadline <= now:
            return HoldEnd.EXPIRED, self.deadline
        return self.ended, self.ended_at


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """What a meter counted for a wallet: paid as far as there was credit, the rest by and by."""

    number: int  #: Of the posting that reported it; 0 until that is written.
    identifier: str  #: The reporter's name for it: the posting's idempotency key.
    meter_id: str
    subscription_id: str | None
    value: int  #: What it is to cost. > 0.
    unpaid: int  #: What of it no credit has been drawn for yet. 0 <= unpaid <= value.
    happened_at: int
    created_at: int
    paid_at: int | None  #: When nothing was unpaid any more; None before.
    canceled_at: int | None = None
    #: If it is canceled: what rows below this sequence drew for it is still to be returned. None:
    #: nothing is.
    return_below: int | None = None

    @property
    def status(self) -> str:
        """`canceled`, `requires_capture` while something is unpaid, else `completed`."""
        if self.canceled_at is not None:
            return "canceled"
        return "requires_capture" if self.unpaid else "completed"

    @property
    def consumed(self) -> int:
        """What has been drawn for it so far; of a canceled one all comes back."""
        return 0 if self.canceled_at is not None else self.value - self.unpaid

    @property
    def updated_at(self) -> int:
        """When it was canceled, else when it was paid wholly, else when it was reported."""
        changes = (self.canceled_at, self.paid_at)
        return next((at for at in changes if at is not None), self.created_at)


@dataclass(slots=True, eq=False)
class SpendLimit:
    """How much may be spent of a wallet in a period, by everybody or by one API key."""

    number: int  #: Counted from 1 within the wallet.
    amount: int  #: Smallest units. >= 0.
    api_key_id: str | None  #: Only usage with this label; None: all spending.
    period: Period
    time_zone: str | None  #: Whose days, weeks and months; None of other periods.
    hours: int | None  #: Of a rolling period, else None.
    created_at: int
    updated_at: int
    since: int  #: The wallet's sequence when it was made: later rows count.
    counted_from: int  #: Where the period began when it last counted something.
    parts: dict[int, int]  #: What was spent less what was refunded of it, by where a part begins.
    counted_until: int | None  #: Where that period ends; None: no calendar's, it moves on or lasts.

    def covers(self, api_key_id: str) -> bool:
        """Whether spending under this label counts."""
        return self.api_key_id is None or self.api_key_id == api_key_id


def _counters() -> list[int]:
    return [0] * (max(Kind) + 1)


@dataclass(slots=True)
class Wallet:
    """A wallet under its lock: its row and its grants with something left, as one value.

    The rules read it and `append` changes it; nobody else does. `sequence`, `running_balance` and
    the counters are those of its last transaction.
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
    usage_amount: int = 0  #: Σ of their amounts. <= 0.
    usage_quantity: int = 0  #: Σ of all quantities of usage, each posting's once.
    unmetered_amount: int = 0  #: Σ |amount| of those whose posting has no usage.
    topup_amount: int = 0  #: Σ amounts of kind topup. >= 0.
    refund_amount: int = 0  #: Σ amounts of kind refund. >= 0.
    credited_amount: int = 0  #: Σ of all amounts > 0: what it was ever given. >= 0.
    unpaid_amount: int = 0  #: Σ unpaid of its meter events. >= 0.
    limits_made: int = 0  #: Spend limits ever made: where there are none, none are read.
    last_posting: int = 0  #: Number of its last posting, which count from 1 in each wallet.
    kind_counts: list[int] = field(default_factory=_counters)  #: By Kind, usage left at 0.
    grants: dict[int, Grant] = field(default_factory=dict)  #: By number: open, and referred to.
    burning: list[Grant] = field(default_factory=list)  #: Those with something left, burn order.
    #: Before this moment no grant of `burning` begins or ends, no hold ends, and what has ended is
    #: written down; 0: not known.
    quiet_until: int = 0
    pending: int = 0  #: Σ remaining of those that have not begun, while it is quiet.
    held: int = 0  #: Σ left of the open holds, while it is quiet.
    scoped: int = 0  #: Σ not held of the open grants with a scope, while it is quiet.
    scopes: int = 0  #: How many grants of `burning` have a scope.
    holds: dict[int, Hold] = field(default_factory=dict)  #: By number: open, and referred to.
    unpaid: dict[int, MeterEvent] = field(default_factory=dict)  #: By number, oldest first.
    limits: tuple[SpendLimit, ...] = ()  #: In the order in which they were made.
    revision: int = 0  #: How many postings and changes there have been: what readers compare.
    #: Grants pay overdraft back as they begin and end, if that is after this moment.
    repays_from: int = 0
    overdrawn: int = 0  #: All that was ever drawn beyond grants; see overdraft.py ...
    repaid_to: int = 0  #: ... up to where that is paid back ...
    #: ... and what of the rest refunds gave back: [begins, ends), in order.
    forgiven: list[tuple[int, int]] = field(default_factory=list)

    def add(self, grant: Grant) -> None:
        """Take a grant read or made into the wallet's books."""
        self.grants[grant.number] = grant
        if grant.remaining:
            insort(self.burning, grant, key=Grant.burn_key)
            self.scopes += grant.scope is not None
            self.quiet_until = 0

    def use_up(self, grant: Grant) -> None:
        """Nothing is left of it."""
        self.burning.remove(grant)
        self.scopes -= grant.scope is not None

    def fill(self, grants: Iterable[Grant], holds: Iterable[Hold] = ()) -> None:
        """Take all grants with something left, and all open holds, at once: sorted once."""
        self.burning = sorted(grants, key=Grant.burn_key)
        self.grants = {grant.number: grant for grant in self.burning}
        self.scopes = sum(grant.scope is not None for grant in self.burning)
        self.holds = {hold.number: hold for hold in holds}
        for hold in self.holds.values():
            for number, part in hold.parts.items():
                self.grants[number].held += part

    def look_ahead(self, now: int) -> None:
        """Find the moment until which its figures stay: no grant is added up before then."""
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
        """What leaves grants whose time is over, by the moment at which it does and grant number.

        What a hold has set aside of a grant leaves with the hold, if that ends later.
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
            # What the grant has paid back since comes off the part that leaves it first.
            lacking: dict[int, int] = {}
            for place in sorted(leaving):
                left = leaving[place] + lacking.pop(place[1], 0)
                if left < 0:
                    lacking[place[1]] = left
                leaving[place] = max(0, left)
        return leaving

    def lapsed(self, now: int) -> list[Hold]:
        """Holds whose deadline has passed and that nobody has written down as ended."""
        if now < self.quiet_until:
            return []
        return [h for h in self.holds.values() if h.ended is None and h.deadline <= now]

    def time(self, clock: int) -> int:
        """`now` of this wallet: its time never runs backwards."""
        return clock if clock > self.posted_at else self.posted_at

    def copy(self) -> "Wallet":
        """A wallet to try something on."""
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
    """What a grant pays back of overdraft at the moment at which it begins or ends."""

    moment: int
    grant: Grant
    start: int  #: What the grant had repaid before.
    amount: int  #: > 0.


def repayments(wallet: Wallet, now: int) -> list[Repayment]:
    """What grants pay back by `now` and nobody has written down, in order of time.

    A grant without a scope pays when it begins, and once more out of what would expire when it
    ends; a voided one was taken back and pays nothing. At one moment grants that end pay before
    grants that begin, each in burn order. The wallet's last posting wrote down what was before it.
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
    """What a wallet's owner may know of its credit at one moment."""

    balance: int
    held: int
    pending: int
    available: int
    scoped: int


def standing(wallet: Wallet, clock: int) -> Standing:
    """The wallet's figures at `clock`: what has expired counts as gone, swept or not."""
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
        # What pays overdraft back as its grant ends does not expire.
        balance += sum(paid.amount for paid in repayments(wallet, now) if paid.grant.has_ended(now))
    return Standing(balance, held, pending, balance - held - pending - scoped, scoped)


def given_back(wallet: Wallet, now: int) -> Mapping[int, int]:
    """What holds that are over by their deadline have set aside, by grant: it is free again."""
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
    """The overdraft at `clock`: what grants have paid back by then is gone, written or not."""
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
    """What rows are added up by: kind, what was metered and for whom, at which prices.

    Stored once per wallet under a number; rows and roll-ups refer to it.
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
    grant: int | None  #: Number of the grant it gave to or drew on; None is overdraft.
    amount: int
    running_balance: int
    created_at: int
    effective_at: int | None  #: None: at created_at.
    dimension: int
    kind_count: int | None  #: Rows of this kind up to this one; None for usage, counted beside.
    usage_count: int
    usage_amount: int
    usage_quantity: int
    unmetered_amount: int


@dataclass(slots=True)
class Posting:
    """What a command became: its request, as far as its rows do not tell, and its rows."""

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
