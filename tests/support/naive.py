"""A naive model of the ledger, to be compared with the real one by model tests.

It imports nothing of the project and keeps no counters: balances, remainders and overdraft are
sums over rows, done anew each time. Money is an int of the smallest unit, a time an int of
milliseconds in UTC, an interval half-open. A grant is named by the sequence of the row that
created it, a posting by a number of the model's own.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

AMOUNT_MAX = 10**17
BALANCE_MAX = 9 * 10**18
QUANTITY_MAX = 10**15
HOLD_MS, HOLD_MAX_MS = 600_000, 7 * 86_400_000
ON_HOLDS = ("hold", "capture", "release", "extend")
FLAT = (
    *ON_HOLDS,
    "transfer",
    "void",
    "cancel",
)  # Requests whose fields have no operation before them.
SPENDING = ("consumption", "capture", "meter_event", "settlement")
PAYMENTS = ("meter_event", "settlement")
#: What a meter event calls its fields.
OF_EVENTS = {
    "amount": "payload.value",
    "meter_id": "event_name",
    "subscription_id": "payload.subscription_id",
    "effective_at": "timestamp",
}
LIMITS_MAX = 20
#: Grants that the ledger makes by itself are of rows of these kinds. An equal one takes parts.
MADE_BY_ITSELF = ("refund", "transfer_in")
HOUR_MS = 3_600_000
GRANTS_MAX = 1_000  # Grants with credit left, pending ones too: they open without a command.
PAST_MAX_MS = 35 * 86_400_000
FUTURE_MAX_MS = 60_000

# One key, the operation's name, and its fields; a field left out and None are the same:
#   grant        amount, kind, category, priority, name, effective_at, expires_at, source,
#                scope {meter_ids, product_ids, categories}, allow_repeated_receipt
#   consumption  amount, meter_id, meter_event_id, subscription_id,
#                usage {api_key_id, product_id, product_name, category, billing_method,
#                       quantities, base_prices, discount_prices, price_precision}
#   adjustment   amount (signed), credit_grant_id, force, source
#   refund       posting_id, amount, force
#   hold         amount, deadline, ttl_ms, meter_id, meter_event_id, subscription_id, usage,
#                whose quantities may be left out
#   capture      hold_id, amount (0 if final), final, allow_more, meter_event_id, usage
#   release      hold_id
#   extend       hold_id, deadline, ttl_ms
#   transfer     to_wallet_id, amount
#   void         id, of a grant
#   meter_event  amount, meter_id, subscription_id
#   cancel       event_id
# A hold is named by the posting that made it, and so is an event.
# Any, because a union of all these would hide the rules behind casts.
Body = dict[str, Any]
Operation = dict[str, Body]


@dataclass(frozen=True, slots=True)
class Row:
    sequence: int
    kind: str
    type: str
    amount: int
    running_balance: int
    created_at: int
    effective_at: int
    grant: int | None  #: None for overdraft.
    posting: int  #: 0 in the answer to validate_only.


@dataclass(frozen=True, slots=True)
class Grant:
    ref: int
    amount: int
    overdraft_paid: int
    category: str
    priority: int
    name: str | None
    effective_at: int
    expires_at: int | None
    created_at: int
    scope: Body | None
    metadata: dict[str, str]
    voided_at: int | None
    returned: bool  #: It came back after the grant had ended that it was of.
    made_by: str = ""  #: Kind of the row that made it.
    parts: tuple[tuple[int, int], ...] = ()  #: Of later ones: row, and what it paid of overdraft.

    def paid_by(self, sequence: int) -> int:
        """What the credit of this row paid of overdraft as it came."""
        later = dict(self.parts)
        first = self.overdraft_paid - sum(later.values())
        return first if sequence == self.ref else later.get(sequence, 0)

    def likeness(self) -> tuple[object, ...]:
        terms = self.category, self.priority, self.name, self.expires_at
        return *terms, self.scope, self.metadata, self.returned

    def end(self) -> int | None:
        return self.expires_at if self.voided_at is None else self.voided_at

    def ended(self, now: int) -> bool:
        end = self.end()
        return end is not None and end <= now

    def pending(self, now: int) -> bool:
        return self.effective_at > now

    def open(self, now: int) -> bool:
        return not self.ended(now) and not self.pending(now)

    def pays(self, body: Body) -> bool:
        """Whether it may pay for what a consumption or a hold says."""
        usage = body.get("usage") or {}
        said = {
            "meter_ids": body.get("meter_id"),
            "product_ids": usage.get("product_id"),
            "categories": usage.get("category"),
        }
        return all(said[name] in only for name, only in (self.scope or {}).items() if only)

    def burn_order(self) -> tuple[int, bool, int, bool, int, int, int]:
        never, paid, expiry = self.expires_at is None, self.category == "paid", self.expires_at or 0
        return self.priority, never, expiry, paid, self.effective_at, self.created_at, self.ref


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantView(Grant):
    remaining: int
    repaid: int


@dataclass(frozen=True, slots=True)
class Posting:
    ref: int
    key: str | None  #: None for the system posting that holds a command's expirations.
    name: str  #: Of the operation; "expiry" for the system posting, "received" of a transfer.
    body: Body
    request: dict[str, object]  #: What a replay must equal.
    created_at: int
    effective_at: int
    overdraft_limit: int  #: The wallet's, when this was posted.
    oldest: int  #: The earliest effective_at that this command may have named.


class Repayment(NamedTuple):
    """What a grant paid back of overdraft as it began, or as it or a hold of it ended."""

    grant: int
    amount: int
    at: int
    written_at: int
    rows: int  #: How many the wallet had by then.


@dataclass(slots=True)
class Hold:
    ref: int
    amount: int
    parts: dict[int, int]  #: What is set aside, by grant.
    beyond: int  #: What is set aside of no grant.
    deadline: int
    body: Body
    captured: int = 0
    ended: str | None = None  #: None even past the deadline, until a command comes.
    ended_at: int = 0

    def live(self, now: int) -> bool:
        return self.ended is None and now < self.deadline

    def left(self) -> int:
        return sum(self.parts.values()) + self.beyond

    def end(self, how: str, at: int) -> None:
        self.parts, self.beyond, self.ended, self.ended_at = {}, 0, how, at


@dataclass(frozen=True, slots=True)
class Limit:
    """How much may be spent in a period; of a calendar it is UTC's."""

    ref: int  #: The how manieth of its wallet.
    amount: int
    key: str | None  #: Only usage of this API key.
    period: str
    hours: int | None
    after: int  #: Rows after this one count.

    def begins(self, now: int) -> int:
        """What was written before this moment no longer counts."""
        if self.hours is not None:
            part = self.hours * HOUR_MS // 60
            return (now - self.hours * HOUR_MS) // part * part
        if self.period == "lifetime":
            return 0
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now)
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "week":
            day -= timedelta(days=day.weekday())
        elif self.period == "month":
            day = day.replace(day=1)
        return int(day.timestamp()) * 1_000


class LimitView(NamedTuple):
    ref: int
    amount: int
    spent: int
    held: int


class WalletView(NamedTuple):
    balance: int
    held: int
    pending: int
    available: int
    scoped: int
    overdraft_used: int
    overdraft_limit: int
    sequence: int
    status: str


class Accepted(NamedTuple):
    posting_ref: int  #: 0 in the answer to validate_only.
    replayed: bool
    rows: list[Row]  #: Without the expirations that the command appended.
    wallet: WalletView
    received: Accepted | None = None  #: Of a transfer: the other side.


@dataclass(eq=False)
class Refused(Exception):
    """Raised inside, answered outside: the public methods of `NaiveLedger` return it."""

    reason: str
    metadata: dict[str, object]


Answer = WalletView | LimitView | Refused


def refuse(reason: str, **metadata: object) -> NoReturn:
    raise Refused(reason, metadata)


# --- One wallet, by summing ---


@dataclass(slots=True)
class Wallet:
    created_at: int
    overdraft_limit: int
    currency: str = "USD"
    subscriptions: frozenset[str] = frozenset()  #: Of its customer.
    status: str = "active"
    rows: list[Row] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    postings: dict[int, Posting] = field(default_factory=dict)
    holds: list[Hold] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    limits_made: int = 0
    #: What became of changed grants: (number, created_at, grant), number 0 as it was given.
    revisions: list[tuple[int, int, Grant]] = field(default_factory=list)
    repayments: list[Repayment] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)  #: Grants that have begun since they were given.
    #: By overdraft row: which grants paid how much of it, oldest first; and what was forgiven.
    paid_by: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    forgiven: dict[int, int] = field(default_factory=dict)
    reversed: dict[int, str] = field(default_factory=dict)  #: Category of what refunds reverse.
    late: list[tuple[int, int]] = field(default_factory=list)  #: What a refund gave back too late.

    def draft(self) -> Wallet:
        draft = replace(self, rows=[*self.rows], grants=[*self.grants], postings={**self.postings})
        draft.holds = [replace(hold, parts={**hold.parts}) for hold in self.holds]
        draft.revisions = [*self.revisions]
        draft.repayments, draft.begun = [*self.repayments], {*self.begun}
        draft.paid_by = {row: [*paid] for row, paid in self.paid_by.items()}
        draft.forgiven, draft.reversed = {**self.forgiven}, {**self.reversed}
        draft.late = []
        return draft

    def now(self, clock: int) -> int:
        posted = [posting.created_at for posting in self.postings.values()]
        changed = [created_at for _, created_at, _ in self.revisions]
        rows = [row.created_at for row in self.rows]
        repaid = [repayment.written_at for repayment in self.repayments]
        lapsed = [hold.ended_at for hold in self.holds if hold.ended == "expired"]
        return max([clock, self.created_at, *rows, *posted, *changed, *repaid, *lapsed])

    def rows_of(self, posting: int) -> list[Row]:
        return [row for row in self.rows if row.posting == posting]

    def refund_rows(self, posting: int) -> list[Row]:
        """What refunds of this posting have written."""
        refunds = [p.ref for p in self.postings.values() if p.body.get("posting_id") == posting]
        return [row for row in self.rows if row.posting in refunds]

    def grant(self, ref: int) -> Grant:
        return next(grant for grant in self.grants if grant.ref == ref)

    def category(self, row: Row) -> str:
        """In bills: a refund is of what it reverses."""
        if row.sequence in self.reversed:
            return self.reversed[row.sequence]
        return "paid" if row.grant is None else self.grant(row.grant).category

    def remaining(self, grant: Grant) -> int:
        moved = sum(r.amount for r in self.rows if r.grant == grant.ref)
        return moved - grant.overdraft_paid - self.repaid(grant)

    def repaid(self, grant: Grant) -> int:
        return sum(one.amount for one in self.repayments if one.grant == grant.ref)

    def overdraft_used(self) -> int:
        drawn = -sum(row.amount for row in self.rows if row.grant is None)
        paid = sum(grant.overdraft_paid for grant in self.grants)
        return drawn - paid - sum(one.amount for one in self.repayments)

    def spent(self, limit: Limit, now: int) -> int:
        """What was consumed in the limit's period, less what was ever refunded of that."""
        start, total = limit.begins(now), 0
        for posting in self.postings.values():
            rows = self.rows_of(posting.ref)
            if posting.name not in SPENDING or posting.created_at < start or not rows:
                continue
            if posting.name in PAYMENTS and self.canceled(posting.body.get("event", posting.ref)):
                continue
            if rows[0].sequence > limit.after and limit.key in (None, key_of(posting.body)):
                back = self.refund_rows(posting.ref)
                total -= sum(row.amount for row in [*rows, *back])
        return total

    def limit_view(self, limit: Limit, clock: int) -> LimitView:
        now = self.now(clock)
        holds = [h for h in self.holds if limit.key in (None, key_of(h.body)) and h.live(now)]
        held = sum(hold.left() for hold in holds)
        if limit.key is None:
            held += sum(self.unpaid(event) for event in self.events())
        return LimitView(limit.ref, limit.amount, self.spent(limit, now), held)

    def free(self, grant: Grant, now: int) -> int:
        """What remains of it and no hold has set aside."""
        return self.remaining(grant) - sum(
            hold.parts.get(grant.ref, 0) for hold in self.holds if hold.live(now)
        )

    def view(self, clock: int) -> WalletView:
        if self.overdraft_used() and any(
            not g.open(self.now(clock)) or self.waits(g) for g in self.grants
        ):
            # Whatever has to be written is, in a copy.
            draft, written = self.draft(), len(self.rows)
            draft.expire(0, self.now(clock))
            return draft.seen(clock)._replace(sequence=written)
        return self.seen(clock)

    def seen(self, clock: int) -> WalletView:
        now, used, limit = self.now(clock), self.overdraft_used(), self.overdraft_limit
        due = sum(self.free(grant, now) for grant in self.grants if grant.ended(now))
        balance = sum(row.amount for row in self.rows) - due
        pending = sum(self.remaining(grant) for grant in self.grants if grant.pending(now))
        held = sum(hold.left() for hold in self.holds if hold.live(now))
        scoped = sum(self.free(g, now) for g in self.grants if g.open(now) and g.scope)
        figures = (balance, held, pending, balance - pending - held - scoped, scoped)
        return WalletView(*figures, used, limit, len(self.rows), self.status)

    def append(
        self, posting: Posting, kind: str, amount: int, grant: int | None, at: int | None = None
    ) -> None:
        """One row; `at` is its effective_at, if not the posting's."""
        types = {"grant": "grant", "expiry": "expiration", "void": "expiration"}
        types |= dict.fromkeys(SPENDING, "consumption")
        type_ = types.get(posting.name, "adjustment")
        sequence, running = len(self.rows) + 1, sum(row.amount for row in self.rows) + amount
        now, at = posting.created_at, posting.effective_at if at is None else at
        self.rows.append(Row(sequence, kind, type_, amount, running, now, at, grant, posting.ref))
        if grant is None and amount < 0:
            self.paid_by[sequence], self.forgiven[sequence] = [], 0

    def owed(self, row: int) -> int:
        """What of an overdraft row nothing has paid back or forgiven."""
        paid = sum(amount for _, amount in self.paid_by[row])
        return -self.rows[row - 1].amount - self.forgiven[row] - paid

    def pays(self, grant: int, amount: int) -> None:
        """A grant pays the oldest overdraft rows back."""
        for row in sorted(self.paid_by):
            part = min(amount, self.owed(row))
            amount -= part
            if part:
                self.paid_by[row].append((grant, part))
        assert amount == 0

    def give(self, posting: Posting, kind: str, amount: int, category: str, **terms: Any) -> None:
        """A row and the grant it creates, which pays back overdraft if it is open.

        Without an effective_at among its terms the grant starts now, whatever its row says.
        """
        now, ref, at = posting.created_at, len(self.rows) + 1, terms.get("effective_at")
        defaults: Body = {"priority": 50, "name": None, "effective_at": now, "expires_at": None}
        defaults["scope"] = None
        defaults |= {"voided_at": None, "metadata": posting.request.get("metadata", {})}
        defaults["returned"] = False
        pays_back = (at is None or at <= now) and not terms.get("scope")
        paid = min(self.overdraft_used(), amount) if pays_back else 0
        made = Grant(
            ref, amount, paid, category, created_at=now, made_by=kind, **{**defaults, **terms}
        )
        into = self.alike(made, now) if kind in MADE_BY_ITSELF else None
        self.pays(ref if into is None else into.ref, paid)
        self.append(posting, kind, amount, ref if into is None else into.ref, at)
        if into is None:
            self.grants.append(made)
            return
        grown = replace(
            into,
            amount=into.amount + amount,
            overdraft_paid=into.overdraft_paid + paid,
            parts=(*into.parts, (ref, paid)),
        )
        self.grants = [grown if old is into else old for old in self.grants]

    def alike(self, made: Grant, now: int) -> Grant | None:
        """An open grant that the ledger made and nobody changed, such as the one to be made."""
        changed = {grant.ref for _, _, grant in self.revisions}
        found = [
            grant
            for grant in self.grants
            if grant.made_by in MADE_BY_ITSELF
            and grant.likeness() == made.likeness()
            and grant.ref not in changed
            and grant.open(now)
            and self.remaining(grant)
            and grant.amount + made.amount <= AMOUNT_MAX
        ]
        return min(found, key=Grant.burn_order, default=None)

    def draw(self, posting: Posting, kind: str, amount: int, grants: Iterable[Grant]) -> None:
        """Take from these grants in burn order; the rest is one overdraft row, last."""
        for ref, part in self.shares(amount, grants, posting.created_at, amount).items():
            self.append(posting, kind, -part, ref)

    def shares(
        self, amount: int, grants: Iterable[Grant], now: int, room: int
    ) -> dict[int | None, int]:
        """By grant in burn order, None last: of those without a scope, and None, only `room`."""
        shares: dict[int | None, int] = {}
        for grant in sorted(grants, key=Grant.burn_order):
            part = min(amount, self.free(grant, now), amount if grant.scope else room)
            amount -= part
            room -= 0 if grant.scope else part
            shares[grant.ref] = part
        shares[None] = amount
        return {ref: part for ref, part in shares.items() if part}

    def payers(self, body: Body, now: int) -> list[Grant]:
        return [grant for grant in self.grants if grant.open(now) and grant.pays(body)]

    def room(self, now: int) -> int:
        return max(0, self.view(now).available + self.overdraft_limit)

    def waits(self, grant: Grant) -> bool:
        """Whether it was given before it began, and what it paid as it began is not known."""
        return grant.effective_at > grant.created_at and grant.ref not in self.begun

    def pay_back(self, grant: Grant, most: int, at: int, now: int) -> int:
        """Out of so much the grant pays what is overdrawn, if it may: how much that was."""
        may = not grant.scope and grant.voided_at is None
        amount = min(most, self.overdraft_used()) if may else 0
        if amount:
            one = Repayment(grant.ref, amount, at, now, len(self.rows))
            self.repayments.append(one)
            self.pays(grant.ref, amount)
        return amount

    def expire(self, ref: int, now: int) -> None:
        """Bring the wallet up to now, one moment after the other.

        At each, what leaves grants that end pays overdraft back or else expires; then grants that
        begin pay it back.
        """
        written = len(self.rows)
        begins = [g for g in self.grants if self.waits(g) and not g.pending(now)]
        ends = [g for g in self.grants if g.ended(now)]
        leaves = [h.deadline for h in self.holds if h.ended is None and h.deadline <= now]
        moments = {g.effective_at for g in begins} | {g.end() or 0 for g in ends} | {*leaves}
        rest: dict[tuple[int, int], int] = {}
        for moment in sorted(moments):
            for grant in sorted(ends, key=Grant.burn_order):
                part = self.leaving(grant, moment, now)
                left = part - self.pay_back(grant, part, moment, now)
                if left:
                    rest[moment, grant.ref] = left
            for grant in sorted(begins, key=Grant.burn_order):
                if grant.effective_at == moment:
                    self.begun.add(grant.ref)
                    self.pay_back(grant, self.remaining(grant), moment, now)
        self.repayments = [one._replace(rows=min(one.rows, written)) for one in self.repayments]
        self.expire_rest(ref, rest, now)

    def leaving(self, grant: Grant, moment: int, now: int) -> int:
        """What of an ended grant nothing has a claim to from this moment on, and had before."""
        end, part = grant.end() or 0, 0
        holds = [h for h in self.holds if h.parts.get(grant.ref)]
        if end == moment:
            held = sum(hold.parts[grant.ref] for hold in holds)
            part = self.remaining(grant) - held
        for hold in holds:
            if not hold.live(now) and max(end, hold.deadline) == moment:
                part += hold.parts[grant.ref]
        return part

    def expire_rest(self, ref: int, rest: dict[tuple[int, int], int], now: int) -> None:
        posting = Posting(ref, None, "expiry", {}, {}, now, now, self.overdraft_limit, now)
        for (moment, grant_ref), amount in sorted(rest.items()):
            self.append(posting, "expiry", -amount, grant_ref, moment)
            self.postings[ref] = posting
        for hold in [hold for hold in self.holds if hold.ended is None and hold.deadline <= now]:
            hold.end("expired", hold.deadline)

    def canceled(self, event: int) -> bool:
        return any(p.body.get("cancels") == event for p in self.postings.values())

    def payments(self, event: int) -> list[int]:
        """Postings that drew for this event, oldest first."""
        later = [p.ref for p in self.postings.values() if p.body.get("event") == event]
        return [event, *sorted(later)]

    def unpaid(self, event: Posting) -> int:
        """What no row has been written for yet, of a posting that is a meter event."""
        if self.canceled(event.ref):
            return 0
        own = self.payments(event.ref)
        paid: int = sum(row.amount for row in self.rows if row.posting in own)
        value: int = event.body["amount"]
        return value + paid

    def events(self) -> list[Posting]:
        """Those that are not paid, oldest first."""
        events = [p for p in self.postings.values() if p.name == "meter_event"]
        return sorted([e for e in events if self.unpaid(e)], key=lambda event: event.ref)

    def settle(self, ref: int, now: int) -> int:
        """Credit that is available goes into events that are not paid; the last posting made."""
        for event in self.events() if self.status == "active" else []:
            room = max(0, self.view(now).available)
            part = min(self.unpaid(event), self.own(event.body, now) + room)
            if part <= 0:
                continue
            ref += 1
            body = {**event.body, "event": event.ref}
            own = Posting(ref, None, "settlement", body, {}, now, now, self.overdraft_limit, now)
            self.postings[ref] = own
            for place, share in self.shares(part, self.payers(event.body, now), now, room).items():
                self.append(own, "usage", -share, place)
        return ref

    def revise(self, grant: Grant, now: int, **terms: Any) -> None:
        numbers = [number for number, _, old in self.revisions if old.ref == grant.ref]
        if not numbers:
            self.revisions.append((0, grant.created_at, grant))
        changed = replace(grant, **terms)
        self.revisions.append((max([0, *numbers]) + 1, now, changed))
        self.grants = [changed if old.ref == grant.ref else old for old in self.grants]

    # The operations, by name: each changes a draft, or refuses.

    def apply_grant(self, posting: Posting, body: Body) -> None:
        now, kind = posting.created_at, body.get("kind") or "topup"
        own, expires_at = body.get("effective_at"), body.get("expires_at")
        start = posting.effective_at if own is None else own
        if start < posting.oldest:
            refuse("INVALID_FIELD", param="effective_at" if own is None else "grant.effective_at")
        if expires_at is not None and expires_at <= max(now, start):
            refuse("INVALID_FIELD", param="grant.expires_at")
        category = body.get("category") or default_category(kind)
        receipt = paid_receipt(body)
        if receipt and not body.get("allow_repeated_receipt"):
            for old in [
                p for p in self.postings.values() if p.name == "grant" and p is not posting
            ]:
                grant = self.grant(self.rows_of(old.ref)[0].sequence)
                if paid_receipt(old.body) == receipt and grant.voided_at is None:
                    refuse("RECEIPT_USED", posting_id=old.ref)
        terms = {"name": body.get("name"), "effective_at": start, "expires_at": expires_at}
        terms["scope"] = canonical_scope(body.get("scope"))
        if body.get("priority") is not None:
            terms["priority"] = body["priority"]
        self.give(posting, kind, body["amount"], category, **terms)

    def apply_consumption(self, posting: Posting, body: Body) -> None:
        now = posting.created_at
        self.need(body["amount"], body, now)
        shares = self.shares(body["amount"], self.payers(body, now), now, self.room(now))
        for ref, part in shares.items():
            self.append(posting, "usage", -part, ref)

    def apply_meter_event(self, posting: Posting, body: Body) -> None:
        now = posting.created_at
        part = min(body["amount"], self.spendable(body, now) + self.overdraft_limit)
        if part > 0:
            shares = self.shares(part, self.payers(body, now), now, self.room(now))
            for ref, share in shares.items():
                self.append(posting, "usage", -share, ref)

    def own(self, body: Body, now: int) -> int:
        """What is there for this and not for everything."""
        return sum(self.free(grant, now) for grant in self.payers(body, now) if grant.scope)

    def spendable(self, body: Body, now: int) -> int:
        """Its own grants, and what there is for everything: below the limit that is nothing."""
        available, own = self.view(now).available, self.own(body, now)
        return own + max(available, -self.overdraft_limit) if own else available

    def need(self, amount: int, body: Body, now: int) -> None:
        available = self.spendable(body, now)
        if amount > available + self.overdraft_limit:
            refuse("INSUFFICIENT_CREDIT", required=amount, available=available)

    def apply_adjustment(self, posting: Posting, body: Body) -> None:
        now, debit, ref = posting.created_at, -body["amount"], body.get("credit_grant_id")
        if debit < 0:
            for name in [name for name in ("credit_grant_id", "force") if body.get(name)]:
                refuse("INVALID_FIELD", param=f"adjustment.{name}")
            self.give(posting, "admin_credit", -debit, "promotional")
            return
        named, forced = None if ref is None else self.grant(ref), body.get("force")
        if not forced and named is not None and debit > self.free(named, now):
            refuse("INSUFFICIENT_CREDIT", required=debit, available=self.free(named, now))
        if not forced and (named is None or (named.open(now) and not named.scope)):
            self.need(debit, {}, now)
        grants = [named] if named else self.payers({}, now)
        self.draw(posting, "admin_debit", debit, grants)

    def apply_refund(self, posting: Posting, body: Body) -> None:
        original, draws = self.postings[body["posting_id"]], self.rows_of(body["posting_id"])
        returned = sum(row.amount for row in self.refund_rows(original.ref))
        refundable = -sum(row.amount for row in draws) - returned
        left = refundable if body.get("amount") is None else body["amount"]
        event = original.body.get("event", original.ref)
        if original.name not in SPENDING or not refundable:
            refuse("NOT_REFUNDABLE")
        if original.name in PAYMENTS and self.canceled(event):
            refuse("NOT_REFUNDABLE")
        if left > refundable:
            refuse("REFUND_TOO_LARGE", refundable=refundable)
        for row in draws[::-1]:
            skipped = min(returned, -row.amount)
            part = min(left, -row.amount - skipped)
            returned, left = returned - skipped, left - part
            if part and row.grant is None:
                self.give_back_overdraft(posting, row, skipped, part)
            elif part:
                self.give_back(posting, [(self.grant(row.grant or 0), part)], of_overdraft=False)
        self.expire_late(posting)

    def expire_late(self, posting: Posting) -> None:
        """What has come back to a grant whose end has passed expires at once."""
        now, ref = posting.created_at, posting.ref + 1
        expiry = Posting(ref, None, "expiry", {}, {}, now, now, self.overdraft_limit, now)
        for grant_ref, amount in self.late:
            self.append(expiry, "expiry", -amount, grant_ref)
            self.postings[ref] = expiry

    def give_back_overdraft(self, posting: Posting, row: Row, skipped: int, part: int) -> None:
        """The row's newest layer first: what is forgiven, what is owed, what was paid last."""
        layers: list[tuple[int | None, int]] = [(None, self.forgiven[row.sequence])]
        layers.append((0, self.owed(row.sequence)))
        layers += reversed(self.paid_by[row.sequence])
        pieces: list[tuple[Grant, int]] = []
        for layer, amount in layers:
            taken = min(part, amount - min(skipped, amount))
            skipped -= min(skipped, amount)
            part -= taken
            if taken and layer == 0:
                self.append(posting, "refund", taken, None)
                self.forgiven[row.sequence] += taken
            elif taken:
                assert layer is not None
                pieces.append((self.grant(layer), taken))
        self.give_back(posting, pieces, of_overdraft=True)

    def give_back(
        self, posting: Posting, pieces: list[tuple[Grant, int]], *, of_overdraft: bool
    ) -> None:
        """In the grant itself, or as new credit that is no better; what is alike in one."""
        now, rows = posting.created_at, len(self.rows)
        alike: list[tuple[Grant | None, Body, int]] = []
        for grant, amount in pieces:
            if grant.voided_at is not None and not posting.body.get("force"):
                refuse("NOT_REFUNDABLE")
            over = grant.returned and grant.ended(now) and grant.voided_at is None
            if over or not (of_overdraft or grant.ended(now)):
                alike.append((grant, {}, amount))
                continue
            end, returned = grant.expires_at, grant.returned
            if grant.ended(now) and grant.category == "paid":
                end = None
            elif grant.ended(now) and not (returned and end is not None and end > now):
                hour = 3_600_000
                end, returned = (now + 30 * 24 * hour) // hour * hour + hour, True
            terms: Body = {"category": grant.category, "priority": grant.priority}
            terms |= {"scope": grant.scope, "expires_at": end, "returned": returned}
            if alike and alike[-1][:2] == (None, terms):
                amount += alike.pop()[2]  # noqa: PLW2901
            alike.append((None, terms, amount))
        for own, terms, amount in alike:
            if own is None:
                self.give(posting, "refund", amount, **terms)
            else:
                self.append(posting, "refund", amount, own.ref)
        for row in self.rows[rows:]:
            category = self.grant(row.grant or 0).category
            self.reversed[row.sequence] = "paid" if of_overdraft else category
            if self.grant(row.grant or 0).ended(now):
                self.late.append((row.grant or 0, row.amount))

    def apply_cancel(self, posting: Posting, body: Body) -> None:
        """All that was drawn for the event, less what was refunded of it, newest draw first."""
        self.postings[posting.ref] = replace(posting, body={**body, "cancels": body["event_id"]})
        forced = replace(posting, body={**body, "force": True})
        for ref in reversed(self.payments(body["event_id"])):
            returned = sum(row.amount for row in self.refund_rows(ref))
            for row in reversed(self.rows_of(ref)):
                skipped = min(returned, -row.amount)
                returned -= skipped
                part = -row.amount - skipped
                if part and row.grant is None:
                    self.give_back_overdraft(forced, row, skipped, part)
                elif part:
                    self.give_back(forced, [(self.grant(row.grant or 0), part)], of_overdraft=False)
        self.expire_late(posting)

    def apply_void(self, posting: Posting, body: Body) -> None:
        now, grant = posting.created_at, self.grant(body["id"])
        refuse_if_over(grant, now)
        left = self.free(grant, now)
        if left:
            self.append(posting, "expiry", -left, grant.ref)
        self.revise(grant, now, voided_at=now)

    def apply_hold(self, posting: Posting, body: Body) -> None:
        now = posting.created_at
        deadline = hold_deadline(body, now)
        self.need(body["amount"], body, now)
        shares = self.shares(body["amount"], self.payers(body, now), now, self.room(now))
        beyond = shares.pop(None, 0)
        parts = {ref: part for ref, part in shares.items() if ref is not None}
        hold = Hold(posting.ref, body["amount"], parts, beyond, deadline, body)
        self.holds.append(hold)

    def open_hold(self, ref: int, now: int) -> Hold:
        hold = next(hold for hold in self.holds if hold.ref == ref)
        if hold.ended == "expired":
            refuse("HOLD_EXPIRED", ended_at=hold.ended_at)
        if hold.ended is not None:
            refuse("HOLD_ENDED", status=hold.ended, ended_at=hold.ended_at)
        return hold

    def apply_capture(self, posting: Posting, body: Body) -> None:
        now = posting.created_at
        hold = self.open_hold(body["hold_id"], now)
        wanted = hold.left() if body.get("amount") is None else body["amount"]
        more = wanted - hold.left()
        if more > 0 and not body.get("allow_more"):
            refuse("CAPTURE_TOO_LARGE", param="amount", held=hold.left())
        if more > 0 and self.status == "frozen":
            refuse("WALLET_FROZEN")
        if more > 0:
            self.need(more, hold.body, now)
        room = self.room(now)
        taken: dict[int | None, int] = {}
        missing = wanted
        for ref, part in hold.parts.items():
            taken[ref] = min(part, missing)
            missing -= taken[ref]
        lacked = min(hold.beyond, missing)
        hold.beyond -= lacked
        # What this hold has set aside is not free, nor what it gives up in this moment.
        payers = self.payers(hold.body, now)
        for place, part in self.shares(missing, payers, now, lacked + room).items():
            taken[place] = taken.get(place, 0) + part
        for place, part in taken.items():
            if place in hold.parts:
                hold.parts[place] -= min(part, hold.parts[place])
            if part:
                self.append(posting, "usage", -part, place)
        if wanted:
            self.note_usage(posting, hold, body)
        else:
            self.postings[posting.ref] = replace(posting, body={**body, "usage": None})
        hold.captured += wanted
        hold.parts = {ref: part for ref, part in hold.parts.items() if part}
        if body.get("final") or not hold.left():
            self.end_hold(hold, "captured" if wanted else "released", posting)

    def note_usage(self, posting: Posting, hold: Hold, body: Body) -> None:
        """Of a capture count the hold's meter and subscription, and its usage or an own."""
        usage = body.get("usage")
        if usage is None and hold.body.get("usage") is not None:
            usage = {**hold.body["usage"], **({"quantities": []} if hold.captured else {})}
        counted = {name: hold.body.get(name) for name in ("meter_id", "subscription_id")}
        self.postings[posting.ref] = replace(posting, body={**counted, **body, "usage": usage})

    def end_hold(self, hold: Hold, how: str, posting: Posting) -> None:
        now, ref = posting.created_at, posting.ref + 1
        parts = sorted(hold.parts.items())
        hold.end(how, now)
        expiry = Posting(ref, None, "expiry", {}, {}, now, now, self.overdraft_limit, now)
        for grant_ref, part in parts:
            if self.grant(grant_ref).ended(now):
                left = part - self.pay_back(self.grant(grant_ref), part, now, now)
                if left:
                    self.append(expiry, "expiry", -left, grant_ref, now)
                    self.postings[ref] = expiry

    def apply_release(self, posting: Posting, body: Body) -> None:
        hold = self.open_hold(body["hold_id"], posting.created_at)
        self.end_hold(hold, "released", posting)

    def apply_extend(self, posting: Posting, body: Body) -> None:
        hold = self.open_hold(body["hold_id"], posting.created_at)
        deadline = hold_deadline(body, posting.created_at)
        if deadline < hold.deadline:
            refuse("INVALID_FIELD", param="deadline")
        hold.deadline = deadline


def paid_receipt(body: Body) -> tuple[str, str] | None:
    """Provider and receipt of what was paid for the grant, if anything was."""
    kind, source = body.get("kind") or "topup", body.get("source") or {}
    is_paid = (body.get("category") or default_category(kind)) == "paid"
    if not is_paid or kind == "admin_credit" or not source.get("receipt_id"):
        return None
    return source.get("provider") or "", source["receipt_id"]


def key_of(body: Body) -> str:
    """The API key that what is spent is of."""
    return (body.get("usage") or {}).get("api_key_id") or ""


def product_of(body: Body) -> tuple[str, str]:
    """Id and name of the product that what is spent is of."""
    usage = body.get("usage") or {}
    return usage.get("product_id") or "", usage.get("product_name") or ""


def canonical_scope(scope: Body | None) -> Body | None:
    """Lists in order, without doubles; None if all are empty."""
    found = {name: tuple(sorted(set(only))) for name, only in (scope or {}).items() if only}
    return found or None


def refuse_if_over(grant: Grant, now: int) -> None:
    if grant.voided_at is not None:
        refuse("GRANT_VOIDED", voided_at=grant.voided_at)
    if grant.ended(now):
        refuse("GRANT_EXPIRED", expired_at=grant.expires_at)


def hold_deadline(body: Body, now: int) -> int:
    deadline = body.get("deadline")
    moment: int = now + (body.get("ttl_ms") or HOLD_MS) if deadline is None else deadline
    if not now < moment <= now + HOLD_MAX_MS:
        refuse("INVALID_FIELD", param="deadline")
    return moment


# --- The checks before the operation, in their order ---


AMOUNTS_OPTIONAL = ("refund", "capture", "release", "extend", "void", "cancel")


def check_shape(name: str, body: Body, key: str, expected_sequence: int | None) -> None:
    amount, quantities = body.get("amount"), (body.get("usage") or {}).get("quantities", [0])
    sign_good = (amount or 0) > 0 or (name == "adjustment" and amount)
    # A final capture may be of nothing.
    sign_good = sign_good or (name == "capture" and amount == 0 and body.get("final"))
    amount_good = (name in AMOUNTS_OPTIONAL and amount is None) or sign_good
    rules = {
        "idempotency_key": 1 <= len(key) <= 255 and all(" " <= c <= "~" for c in key),
        "expected_sequence": (expected_sequence or 0) >= 0,
        "amount" if name in FLAT else f"{name}.amount": amount_good
        and abs(amount or 0) <= AMOUNT_MAX,
        "grant.kind": body.get("kind") in (None, "topup", "subscription_renew", "admin_credit"),
        "grant.category": body.get("category") in (None, "paid", "promotional"),
        "grant.priority": 0 <= (body.get("priority") or 0) <= 100,
        "consumption.usage.quantities": (0 if name == "hold" else 1) <= len(quantities) <= 6
        and all(0 <= quantity <= QUANTITY_MAX for quantity in quantities),
    }
    for param in [param for param, good in rules.items() if not good]:
        refuse("INVALID_FIELD", param=param)


def canonical(name: str, body: Body, others: Body) -> dict[str, object]:
    """{field as an error names it: value}, without what equals its absence.

    A default written out equals its absence, but usage that is all defaults is still usage.
    """
    usage = body.get("usage")
    own, used = ("", "usage") if name in FLAT else (f"{name}.", "consumption.usage")
    apart = ("usage", "scope")
    fields = {f"{own}{field}": value for field, value in body.items() if field not in apart}
    scope = canonical_scope(body.get("scope")) or {}
    fields |= {f"{own}scope.{field}": value for field, value in scope.items()}
    if name == "meter_event":
        fields = {OF_EVENTS[field]: value for field, value in body.items()}
        others = {OF_EVENTS.get(field, field): value for field, value in others.items()}
    fields |= {f"{used}.{field}": value for field, value in (usage or {}).items()}
    defaults: Body = {
        "final": False,
        "allow_more": False,
        "usage.billing_method": 1,
        "usage.price_precision": 1,
        "grant.kind": "topup",
        "grant.priority": 50,
        "adjustment.force": False,
        "grant.allow_repeated_receipt": False,
        "refund.force": False,
        "consumption.usage.billing_method": 1,
        "consumption.usage.price_precision": 1,
    }
    given = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in {**fields, **others}.items()
        if value not in (None, "", {}, []) and value != defaults.get(field)
    }
    if name == "grant":
        given["grant.category"] = body.get("category") or default_category(body.get("kind"))
    return given | ({used: True} if usage is not None else {})


def default_category(kind: str | None) -> str:
    return "promotional" if kind == "admin_credit" else "paid"


def check_replay(old: Posting, name: str, request: dict[str, object]) -> None:
    names = {*old.request, *request}
    fields = sorted(n for n in names if old.request.get(n) != request.get(n))
    if fields:
        refuse("IDEMPOTENCY_KEY_REUSED", fields=fields if old.name == name else ["operation"])


def check_sequence(wallet: Wallet, expected_sequence: int | None) -> None:
    written = [row.sequence for row in wallet.rows if row.type != "expiration"]
    actual = len(wallet.rows)
    if expected_sequence is not None and not max([0, *written]) <= expected_sequence <= actual:
        refuse("SEQUENCE_MISMATCH", expected=expected_sequence, actual=actual)


def check_state(wallet: Wallet, name: str, body: Body) -> None:
    unforced_debit = name == "adjustment" and body["amount"] < 0 and not body.get("force")
    if wallet.status == "closed":
        refuse("WALLET_CLOSED")
    if wallet.status == "frozen" and (
        name in ("consumption", "hold", "meter_event") or unforced_debit
    ):
        refuse("WALLET_FROZEN")


def check_transfer(sender: Wallet, receiver: Wallet | None) -> Wallet:
    """The receiver, if the two may have a transfer."""
    for status, reason in (("closed", "WALLET_CLOSED"), ("frozen", "WALLET_FROZEN")):
        if sender.status == status:
            refuse(reason, param="from_wallet_id")
    if receiver is None:
        refuse("NOT_FOUND", param="to_wallet_id")
    if receiver is sender or receiver.currency != sender.currency:
        refuse("INVALID_FIELD", param="to_wallet_id")
    if receiver.status == "closed":
        refuse("WALLET_CLOSED", param="to_wallet_id")
    return receiver


def check_references(wallet: Wallet, name: str, body: Body, meters: frozenset[str]) -> None:
    known: dict[str, Container[object]] = {
        "meter_id": meters,
        "subscription_id": wallet.subscriptions,
        "credit_grant_id": [grant.ref for grant in wallet.grants],
        "id": [grant.ref for grant in wallet.grants],
        "posting_id": wallet.postings,
        "hold_id": [hold.ref for hold in wallet.holds],
        "event_id": [p.ref for p in wallet.postings.values() if p.name == "meter_event"],
    }
    own = "" if name in FLAT else f"{name}."
    if not meters.issuperset((body.get("scope") or {}).get("meter_ids") or ()):
        refuse("NOT_FOUND", param="grant.scope.meter_ids")
    for reference, ids in known.items():
        if body.get(reference) is not None and body[reference] not in ids:
            param = "id" if reference == "event_id" else f"{own}{reference}"
            refuse("NOT_FOUND", param=OF_EVENTS[reference] if name == "meter_event" else param)


def check_limits(wallet: Wallet, now: int, posting: Posting | None = None) -> None:
    live = [g for g in wallet.grants if not g.ended(now) and wallet.remaining(g)]
    used = -sum(row.amount for row in wallet.rows if row.kind == "usage")
    spent = [p for p in wallet.postings.values() if p.name in SPENDING]
    usages = [posting.body.get("usage") or {} for posting in spent]
    quantity = sum(sum(usage.get("quantities", ())) for usage in usages)
    given = sum(row.amount for row in wallet.rows if row.amount > 0) + wallet.overdraft_used()
    if posting is not None and posting.name == "meter_event":
        used += sum(wallet.unpaid(event) for event in wallet.events())
    if posting is not None and posting.name == "hold":
        used += posting.body["amount"]
    if len(live) > GRANTS_MAX or max(given, used, quantity) > BALANCE_MAX:
        refuse("OUT_OF_RANGE")


def check_spend_limits(before: Wallet, draft: Wallet, now: int) -> None:
    """No limit may be passed by what this posting spends or sets aside."""
    passed = []
    for limit in before.limits:
        old, new = before.limit_view(limit, now), draft.limit_view(limit, now)
        required = new.spent + new.held - old.spent - old.held
        left = limit.amount - old.spent - old.held
        if required > max(left, 0):
            anew = limit.period != "lifetime" and required <= limit.amount
            passed.append((left, limit.ref, required, anew, old))
    if passed:
        left, ref, required, anew, old = min(passed)
        refuse(
            "SPEND_LIMIT_EXCEEDED",
            spend_limit_id=ref,
            limit=old.amount,
            spent=old.spent,
            held=old.held,
            remaining=max(left, 0),
            required=required,
            retryable="true" if anew else "false",
        )


# --- The ledger ---


class NaiveLedger:
    def __init__(self, now: int, *, meters: Iterable[str] = ()) -> None:
        self.clock = now  #: As the last command saw it.
        self.meters = frozenset(meters)
        self.wallets: dict[str, Wallet] = {}
        self.postings_made = 0

    def create_wallet(
        self,
        wallet_id: str,
        *,
        overdraft_limit: int = 0,
        currency: str = "USD",
        subscriptions: Iterable[str] = (),
    ) -> Answer:
        if not 0 <= overdraft_limit <= AMOUNT_MAX:
            return Refused("INVALID_FIELD", {"param": "overdraft_limit"})
        made = Wallet(self.clock, overdraft_limit, currency, frozenset(subscriptions))
        wallet = self.wallets.setdefault(wallet_id, made)
        same = wallet.overdraft_limit == overdraft_limit
        return wallet.view(self.clock) if same else Refused("ID_TAKEN", {})

    def update(
        self,
        wallet_id: str,
        *,
        now: int,
        status: str | None = None,
        limit: int | None = None,
        cancel_unpaid: bool = False,
    ) -> Answer:
        """Appends the expirations due, as a posting does.

        The limit may fall below what is used: then nothing more can be drawn on it. With
        `cancel_unpaid` a wallet that is to be closed has its unpaid events canceled first.
        """
        self.clock = now
        if status not in (None, "active", "frozen", "closed"):
            return Refused("INVALID_FIELD", {"param": "status"})
        if not 0 <= (limit or 0) <= AMOUNT_MAX:
            return Refused("INVALID_FIELD", {"param": "overdraft_limit"})
        if wallet_id not in self.wallets:
            return Refused("NOT_FOUND", {"param": "wallet_id"})
        if self.wallets[wallet_id].status == "closed":
            return Refused("WALLET_CLOSED", {})
        wallet, ref = self.wallets[wallet_id].draft(), self.postings_made + 1
        moment, used = wallet.now(self.clock), wallet.overdraft_limit
        wallet.expire(ref, moment)
        view, events = wallet.view(self.clock), wallet.events()
        has = view.balance or view.overdraft_used or view.held or (events and not cancel_unpaid)
        if status == "closed" and has:
            return Refused("INVALID_FIELD", {"param": "status"})
        for event in events if status == "closed" else []:
            drawn = [row for paid in wallet.payments(event.ref) for row in wallet.rows_of(paid)]
            back = [r for paid in wallet.payments(event.ref) for r in wallet.refund_rows(paid)]
            if sum(row.amount for row in [*drawn, *back]):
                return Refused("INVALID_FIELD", {"param": "cancel_unpaid"})
            ref += 1
            body = {"event_id": event.ref}
            own = Posting(ref, None, "cancel", body, {}, moment, moment, used, moment)
            wallet.postings[ref] = own
            wallet.apply_cancel(own, body)
        self.wallets[wallet_id], self.postings_made = wallet, ref
        wallet.status = status or wallet.status
        wallet.overdraft_limit = wallet.overdraft_limit if limit is None else limit
        self.postings_made = wallet.settle(self.postings_made, wallet.now(self.clock))
        return wallet.view(self.clock)

    def set_limit(
        self, wallet_id: str, *, now: int, amount: int, key: str | None, period: str, hours: int
    ) -> LimitView | Refused:
        """Made, or changed where there is one of this kind; `hours` of a rolling one."""
        self.clock = now
        wallet, of = self.wallets[wallet_id], hours if period == "rolling" else None
        if wallet.status == "closed":
            return Refused("WALLET_CLOSED", {})
        kinds = [(one.key, one.period, one.hours) for one in wallet.limits]
        if (key, period, of) in kinds:
            place = kinds.index((key, period, of))
            wallet.limits[place] = replace(wallet.limits[place], amount=amount)
            return wallet.limit_view(wallet.limits[place], now)
        if len(wallet.limits) >= LIMITS_MAX:
            return Refused("OUT_OF_RANGE", {})
        wallet.limits_made += 1
        limit = Limit(wallet.limits_made, amount, key, period, of, len(wallet.rows))
        wallet.limits.append(limit)
        return wallet.limit_view(limit, now)

    def drop_limit(self, wallet_id: str, *, now: int, ref: int) -> LimitView | Refused:
        self.clock = now
        wallet = self.wallets[wallet_id]
        if wallet.status == "closed":
            return Refused("WALLET_CLOSED", {})
        found = [limit for limit in wallet.limits if limit.ref == ref]
        if not found:
            return Refused("NOT_FOUND", {"param": "spend_limit_id"})
        view = wallet.limit_view(found[0], now)
        wallet.limits.remove(found[0])
        return view

    def sweep(self, *, now: int) -> None:
        """What is due is written down, as any command would, where a grant or a hold has ended."""
        for wallet_id, wallet in self.wallets.items():
            left = [g for g in wallet.grants if wallet.remaining(g)]
            ends = [g.expires_at for g in left if g.expires_at is not None]
            ends += [hold.deadline for hold in wallet.holds if hold.ended is None]
            if any(end <= now for end in ends):
                self.write_down(wallet_id, now=now)

    def write_down(self, wallet_id: str, *, now: int) -> None:
        """What is due in a wallet is written down, as any command on it would."""
        self.clock = now
        wallet = self.wallets[wallet_id]
        self.postings_made += 1
        wallet.expire(self.postings_made, wallet.now(now))

    def update_grant(
        self,
        wallet_id: str,
        ref: int,
        *,
        now: int,
        name: str | None = None,
        priority: int | None = None,
        expires_at: int | None = None,
        never_expires: bool = False,
        metadata: dict[str, str] | None = None,
    ) -> Answer:
        """Changes nothing, expirations due included, where all is as it is asked for."""
        self.clock = now
        if wallet_id not in self.wallets:
            return Refused("NOT_FOUND", {"param": "wallet_id"})
        wallet, moment = self.wallets[wallet_id], self.wallets[wallet_id].now(now)
        if wallet.status == "closed":
            return Refused("WALLET_CLOSED", {})
        try:
            grant = next((grant for grant in wallet.grants if grant.ref == ref), None)
            if grant is None:
                refuse("NOT_FOUND", param="id")
            words = {k: v for k, v in {**grant.metadata, **(metadata or {})}.items() if v}
            end = None if never_expires else expires_at or grant.expires_at
            place = grant.priority if priority is None else priority
            if (place, end) != (grant.priority, grant.expires_at):
                refuse_if_over(grant, moment)
            begun = max(moment, grant.effective_at)
            if end is not None and end != grant.expires_at and end <= begun:
                refuse("INVALID_FIELD", param="expires_at")
        except Refused as refused:
            return refused
        terms: Body = {"priority": place, "expires_at": end, "metadata": words}
        after = replace(grant, name=name or grant.name, **terms)
        if after != grant:
            self.postings_made += 1
            wallet.expire(self.postings_made, moment)
            wallet.revise(grant, moment, name=after.name, **terms)
            self.postings_made = wallet.settle(self.postings_made, moment)
        return wallet.view(now)

    def post(
        self,
        wallet_id: str,
        *,
        now: int,
        idempotency_key: str,
        operation: Operation,
        backdating_free: bool = False,
        effective_at: int | None = None,
        expected_sequence: int | None = None,
        validate_only: bool = False,
        description: str | None = None,
        note: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Accepted | Refused:
        """`backdating_free`: by an admin key, which may date further back than the 35 days."""
        self.clock = now
        ((name, body),) = operation.items()
        texts = {"description": description, "note": note, "metadata": metadata}
        request = canonical(name, body, {**texts, "effective_at": effective_at})
        try:
            check_shape(name, body, idempotency_key, expected_sequence)
            if wallet_id not in self.wallets:
                refuse("NOT_FOUND", param="wallet_id")
            wallet = self.wallets[wallet_id]
            for old in wallet.postings.values():
                if old.key == idempotency_key:
                    check_replay(old, name, request)
                    return self.replayed(wallet_id, old, now)
            check_sequence(wallet, expected_sequence)
            if name == "transfer":
                side = {"key": idempotency_key, "body": body, "request": request}
                return self.transfer(wallet_id, now, side, dry=validate_only)
            check_state(wallet, name, body)
            check_references(wallet, name, body, self.meters)
            if name == "cancel" and wallet.canceled(body["event_id"]):
                return Accepted(0, True, [], wallet.view(now))

            # One before it for what expired, one after it for what a hold gives up.
            draft, ref, now = wallet.draft(), self.postings_made + 2, wallet.now(now)
            at, limit = now if effective_at is None else effective_at, wallet.overdraft_limit
            oldest = -sys.maxsize if backdating_free else now - PAST_MAX_MS
            if name != "grant" and not oldest <= at <= now + FUTURE_MAX_MS:
                event = name == "meter_event"
                refuse("INVALID_FIELD", param="timestamp" if event else "effective_at")
            posting = Posting(ref, idempotency_key, name, body, request, now, at, limit, oldest)
            draft.expire(ref - 1, now)
            draft.postings[ref] = posting
            getattr(draft, f"apply_{name}")(posting, body)
            check_limits(draft, now, posting)
            last = draft.settle(ref + 1, now)
            check_spend_limits(wallet, draft, now)
        except Refused as refused:
            return refused
        rows, view = draft.rows_of(ref), draft.view(now)
        if validate_only:
            return Accepted(0, False, [replace(row, posting=0) for row in rows], view)
        self.wallets[wallet_id], self.postings_made = draft, last
        return Accepted(ref, False, rows, view)

    def replayed(self, wallet_id: str, old: Posting, now: int) -> Accepted:
        wallet = self.wallets[wallet_id]
        other = None
        if old.name == "transfer":
            # The other side is the next posting, under no key.
            owner = next(w for w in self.wallets.values() if old.ref + 1 in w.postings)
            other = Accepted(old.ref + 1, True, owner.rows_of(old.ref + 1), owner.view(now))
        return Accepted(old.ref, True, wallet.rows_of(old.ref), wallet.view(now), other)

    def transfer(self, wallet_id: str, clock: int, side: dict[str, Any], *, dry: bool) -> Accepted:
        """Each side at its wallet's time, in drafts of both; what has ended there stays here."""
        body = side["body"]
        sender, to = self.wallets[wallet_id], body["to_wallet_id"]
        receiver = check_transfer(sender, self.wallets.get(to))
        times = sender.now(clock), receiver.now(clock)
        drafts = sender.draft(), receiver.draft()
        ref = self.postings_made + 3  # One before it for what expired in each.
        for draft, expired, now in zip(drafts, (ref - 2, ref - 1), times, strict=True):
            draft.expire(expired, now)
        out = Posting(
            ref, name="transfer", created_at=times[0], effective_at=times[0],
            overdraft_limit=sender.overdraft_limit, oldest=times[0], **side,
        )  # fmt: skip
        words = {"metadata": out.request.get("metadata", {})}
        into = replace(
            out, ref=ref + 1, key=None, name="received", request=words,
            created_at=times[1], effective_at=times[1],
        )  # fmt: skip
        drafts[0].postings[ref], drafts[1].postings[ref + 1] = out, into
        payers = drafts[0].payers({}, times[0])
        stay = [grant for grant in payers if grant.ended(times[1]) and not grant.scope]
        available = drafts[0].view(times[0]).available
        available -= sum(drafts[0].free(grant, times[0]) for grant in stay)
        if body["amount"] > available:
            refuse("INSUFFICIENT_CREDIT", required=body["amount"], available=available)
        payers = [grant for grant in payers if not grant.ended(times[1])]
        drafts[0].draw(out, "transfer_out", body["amount"], payers)
        for row in drafts[0].rows_of(ref):
            assert row.grant is not None
            grant = drafts[0].grant(row.grant)
            kept = ("priority", "name", "expires_at", "returned")
            terms = {name: getattr(grant, name) for name in kept}
            drafts[1].give(into, "transfer_in", -row.amount, grant.category, **terms)
        last = ref + 1
        for draft, now in zip(drafts, times, strict=True):
            check_limits(draft, now)
            last = draft.settle(last, now)
        sides = []
        for draft, made, now in zip(drafts, (ref, ref + 1), times, strict=True):
            rows = [replace(row, posting=0 if dry else made) for row in draft.rows_of(made)]
            sides.append(Accepted(0 if dry else made, False, rows, draft.view(now)))
        if not dry:
            self.wallets[wallet_id], self.wallets[to] = drafts
            self.postings_made = last
        return sides[0]._replace(received=sides[1])

    def wallet(self, wallet_id: str, *, now: int) -> WalletView:
        return self.wallets[wallet_id].view(now)

    def rows(self, wallet_id: str) -> list[Row]:
        return list(self.wallets[wallet_id].rows)

    def holds(self, wallet_id: str) -> list[Hold]:
        return list(self.wallets[wallet_id].holds)

    def grants(self, wallet_id: str) -> list[GrantView]:
        """By their rows: an ended grant keeps what is left until its expiration is written."""
        wallet = self.wallets[wallet_id]
        return [
            GrantView(**asdict(g), remaining=wallet.remaining(g), repaid=wallet.repaid(g))
            for g in wallet.grants
        ]
