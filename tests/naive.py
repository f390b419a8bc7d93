"""A naive model of the ledger, to be compared with the real one by model tests.

It imports nothing of the project and keeps no counters: balances, remainders and overdraft are
sums over rows, done anew each time. Money is an int of the smallest unit, a time an int of
milliseconds in UTC, an interval half-open. A grant is named by the sequence of the row that
created it, a posting by a number of the model's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

AMOUNT_MAX = 10**17
BALANCE_MAX = 9 * 10**18
QUANTITY_MAX = 10**15
GRANTS_MAX = 1_000  # Grants with credit left, pending ones too: they open without a command.
PAST_MAX_MS = 35 * 86_400_000
FUTURE_MAX_MS = 60_000

# One key, the operation's name, and its fields; a field left out and None are the same:
#   grant        amount, kind, category, priority, name, effective_at, expires_at, source
#   consumption  amount, meter_id, subscription_id,
#                usage {api_key_id, product_id, product_name, category, billing_method,
#                       quantities, base_prices, discount_prices, price_precision}
#   adjustment   amount (signed), credit_grant_id, force, source
#   refund       posting_id, amount
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

    def ended(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def pending(self, now: int) -> bool:
        return self.effective_at > now

    def open(self, now: int) -> bool:
        return not self.ended(now) and not self.pending(now)

    def burn_order(self) -> tuple[int, bool, int, bool, int, int, int]:
        never, paid, expiry = self.expires_at is None, self.category == "paid", self.expires_at or 0
        return self.priority, never, expiry, paid, self.effective_at, self.created_at, self.ref


@dataclass(frozen=True, slots=True)
class GrantView(Grant):
    remaining: int


@dataclass(frozen=True, slots=True)
class Posting:
    ref: int
    key: str | None  #: None for the system posting that holds a command's expirations.
    name: str  #: Of the operation; "expiry" for the system posting.
    body: Body
    request: dict[str, object]  #: What a replay must equal.
    created_at: int
    effective_at: int
    overdraft_limit: int  #: The wallet's, when this was posted.


class WalletView(NamedTuple):
    balance: int
    held: int
    pending: int
    available: int
    overdraft_used: int
    overdraft_limit: int
    sequence: int
    status: str


class Accepted(NamedTuple):
    posting_ref: int  #: 0 in the answer to validate_only.
    replayed: bool
    rows: list[Row]  #: Without the expirations that the command appended.
    wallet: WalletView


@dataclass(eq=False)
class Refused(Exception):
    """Raised inside, answered outside: the public methods of `NaiveLedger` return it."""

    reason: str
    metadata: dict[str, object]


Answer = WalletView | Refused


def refuse(reason: str, **metadata: object) -> NoReturn:
    raise Refused(reason, metadata)


# --- One wallet, by summing ---


@dataclass(slots=True)
class Wallet:
    created_at: int
    overdraft_limit: int
    status: str = "active"
    rows: list[Row] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    postings: dict[int, Posting] = field(default_factory=dict)

    def draft(self) -> Wallet:
        return replace(self, rows=[*self.rows], grants=[*self.grants], postings={**self.postings})

    def now(self, clock: int) -> int:
        return max([clock, self.created_at, *(row.created_at for row in self.rows)])

    def rows_of(self, posting: int) -> list[Row]:
        return [row for row in self.rows if row.posting == posting]

    def refund_rows(self, posting: int) -> list[Row]:
        """What refunds of this posting have written."""
        refunds = [p.ref for p in self.postings.values() if p.body.get("posting_id") == posting]
        return [row for row in self.rows if row.posting in refunds]

    def grant(self, ref: int) -> Grant:
        return next(grant for grant in self.grants if grant.ref == ref)

    def category(self, row: Row) -> str:
        return "paid" if row.grant is None else self.grant(row.grant).category

    def remaining(self, grant: Grant) -> int:
        return sum(r.amount for r in self.rows if r.grant == grant.ref) - grant.overdraft_paid

    def overdraft_used(self) -> int:
        drawn = -sum(row.amount for row in self.rows if row.grant is None)
        return drawn - sum(grant.overdraft_paid for grant in self.grants)

    def view(self, clock: int) -> WalletView:
        now, used, limit = self.now(clock), self.overdraft_used(), self.overdraft_limit
        due = sum(self.remaining(grant) for grant in self.grants if grant.ended(now))
        balance = sum(row.amount for row in self.rows) - due
        pending = sum(self.remaining(grant) for grant in self.grants if grant.pending(now))
        available, sequence = balance - pending, len(self.rows)
        return WalletView(balance, 0, pending, available, used, limit, sequence, self.status)

    def append(
        self, posting: Posting, kind: str, amount: int, grant: int | None, at: int | None = None
    ) -> None:
        """One row; `at` is its effective_at, if not the posting's."""
        types = {"grant": "grant", "consumption": "consumption", "expiry": "expiration"}
        type_ = types.get(posting.name, "adjustment")
        sequence, running = len(self.rows) + 1, sum(row.amount for row in self.rows) + amount
        now, at = posting.created_at, posting.effective_at if at is None else at
        self.rows.append(Row(sequence, kind, type_, amount, running, now, at, grant, posting.ref))

    def give(self, posting: Posting, kind: str, amount: int, category: str, **terms: Any) -> None:
        """A row and the grant it creates, which pays back overdraft if it is open.

        Without an effective_at among its terms the grant starts now, whatever its row says.
        """
        now, ref, at = posting.created_at, len(self.rows) + 1, terms.get("effective_at")
        defaults = {"priority": 50, "name": None, "effective_at": now, "expires_at": None}
        paid = min(self.overdraft_used(), amount) if at is None or at <= now else 0
        self.append(posting, kind, amount, ref, at)
        self.grants.append(
            Grant(ref, amount, paid, category, created_at=now, **{**defaults, **terms})
        )

    def draw(self, posting: Posting, kind: str, amount: int, grants: Iterable[Grant]) -> None:
        """Take from these grants in burn order; the rest is one overdraft row, last."""
        for grant in sorted(grants, key=Grant.burn_order):
            part = min(amount, self.remaining(grant))
            if part:
                self.append(posting, kind, -part, grant.ref)
                amount -= part
        if amount:
            self.append(posting, kind, -amount, None)

    def expire(self, ref: int, now: int) -> None:
        posting = Posting(ref, None, "expiry", {}, {}, now, now, self.overdraft_limit)
        due = [grant for grant in self.grants if grant.ended(now) and self.remaining(grant)]
        for grant in sorted(due, key=lambda grant: (grant.expires_at or 0, grant.ref)):
            self.append(posting, "expiry", -self.remaining(grant), grant.ref, grant.expires_at)
            self.postings[ref] = posting

    # The operations, by name: each changes a draft, or refuses.

    def apply_grant(self, posting: Posting, body: Body) -> None:
        now, kind = posting.created_at, body.get("kind") or "topup"
        own, expires_at = body.get("effective_at"), body.get("expires_at")
        start = posting.effective_at if own is None else own
        if start < now - PAST_MAX_MS:
            refuse("INVALID_FIELD", param="effective_at" if own is None else "grant.effective_at")
        if expires_at is not None and expires_at <= max(now, start):
            refuse("INVALID_FIELD", param="grant.expires_at")
        category = body.get("category") or ("promotional" if kind == "admin_credit" else "paid")
        terms = {"name": body.get("name"), "effective_at": start, "expires_at": expires_at}
        if body.get("priority") is not None:
            terms["priority"] = body["priority"]
        self.give(posting, kind, body["amount"], category, **terms)

    def apply_consumption(self, posting: Posting, body: Body) -> None:
        now = posting.created_at
        self.need(body["amount"], now)
        self.draw(posting, "usage", body["amount"], [g for g in self.grants if g.open(now)])

    def need(self, amount: int, now: int) -> None:
        available = self.view(now).available
        if amount > available + self.overdraft_limit:
            refuse("INSUFFICIENT_CREDIT", required=amount, available=available)

    def apply_adjustment(self, posting: Posting, body: Body) -> None:
        now, debit, ref = posting.created_at, -body["amount"], body.get("credit_grant_id")
        if debit < 0:
            self.give(posting, "admin_credit", -debit, "promotional")
            return
        named, forced = None if ref is None else self.grant(ref), body.get("force")
        if not forced and named is not None and debit > self.remaining(named):
            refuse("INSUFFICIENT_CREDIT", required=debit, available=self.remaining(named))
        if not forced and (named is None or named.open(now)):
            self.need(debit, now)
        grants = [named] if named else [g for g in self.grants if g.open(now)]
        self.draw(posting, "admin_debit", debit, grants)

    def apply_refund(self, posting: Posting, body: Body) -> None:
        original, draws = self.postings[body["posting_id"]], self.rows_of(body["posting_id"])
        returned = sum(row.amount for row in self.refund_rows(original.ref))
        refundable = -sum(row.amount for row in draws) - returned
        left = refundable if body.get("amount") is None else body["amount"]
        if original.name != "consumption" or not refundable:
            refuse("NOT_REFUNDABLE")
        if left > refundable:
            refuse("REFUND_TOO_LARGE", refundable=refundable)
        for row in reversed(draws):
            skipped = min(returned, -row.amount)
            part = min(left, -row.amount - skipped)
            returned, left = returned - skipped, left - part
            if part:
                self.put_back(posting, part, None if row.grant is None else self.grant(row.grant))

    def put_back(self, posting: Posting, amount: int, grant: Grant | None) -> None:
        if grant is None:
            overdraft = min(amount, self.overdraft_used())
            if overdraft:
                self.append(posting, "refund", overdraft, None)
            if amount > overdraft:
                self.give(posting, "refund", amount - overdraft, "paid")
        elif grant.ended(posting.created_at):
            self.give(posting, "refund", amount, grant.category, priority=grant.priority)
        else:
            self.append(posting, "refund", amount, grant.ref)


# --- The checks before the operation, in their order ---


def check_shape(name: str, body: Body, key: str, expected_sequence: int | None) -> None:
    amount, quantities = body.get("amount"), (body.get("usage") or {}).get("quantities", [0])
    debit = name == "adjustment" and (amount or 0) < 0
    credit = name == "adjustment" and not debit
    amount_good = debit or (amount or 0) > 0 or (name == "refund" and amount is None)
    rules = {
        "idempotency_key": 1 <= len(key) <= 255 and all(" " <= c <= "~" for c in key),
        "expected_sequence": (expected_sequence or 0) >= 0,
        f"{name}.amount": amount_good,
        "grant.kind": body.get("kind") in (None, "topup", "subscription_renew", "admin_credit"),
        "grant.category": body.get("category") in (None, "paid", "promotional"),
        "grant.priority": 0 <= (body.get("priority") or 0) <= 100,
        "consumption.usage.quantities": 1 <= len(quantities) <= 6 and min(quantities) >= 0,
        "adjustment.credit_grant_id": not credit or body.get("credit_grant_id") is None,
        "adjustment.force": not credit or not body.get("force"),
    }
    for param in [param for param, good in rules.items() if not good]:
        refuse("INVALID_FIELD", param=param)
    if abs(amount or 0) > AMOUNT_MAX:
        refuse("OUT_OF_RANGE", param=f"{name}.amount")
    if max(quantities) > QUANTITY_MAX:
        refuse("OUT_OF_RANGE", param="consumption.usage.quantities")


def canonical(request: Body, prefix: str = "") -> dict[str, object]:
    """{dotted name: value}; None, False and {} equal absence, 0 does not."""
    flat: dict[str, object] = {}
    for name, value in request.items():
        if isinstance(value, dict) and name != "metadata":
            flat |= canonical(value, f"{prefix}{name}.")
        elif value is not None and value is not False and value != {}:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def check_replay(old: Posting, name: str, request: dict[str, object]) -> None:
    names = {*old.request, *request}
    fields = sorted(n for n in names if old.request.get(n) != request.get(n))
    if fields:
        refuse("IDEMPOTENCY_KEY_REUSED", fields=fields if old.name == name else ["operation"])


def check_wallet(wallet: Wallet, name: str, body: Body, expected_sequence: int | None) -> None:
    """Expected sequence, wallet state, references."""
    written = [row.sequence for row in wallet.rows if row.type != "expiration"]
    if expected_sequence is not None and max([0, *written]) > expected_sequence:
        actual = len(wallet.rows)
        refuse("SEQUENCE_MISMATCH", expected=expected_sequence, actual=actual)
    unforced_debit = name == "adjustment" and body["amount"] < 0 and not body.get("force")
    if wallet.status == "closed":
        refuse("WALLET_CLOSED")
    if wallet.status == "frozen" and (name == "consumption" or unforced_debit):
        refuse("WALLET_FROZEN")
    if body.get("credit_grant_id") not in (None, *(grant.ref for grant in wallet.grants)):
        refuse("NOT_FOUND", param="adjustment.credit_grant_id")
    if body.get("posting_id") not in (None, *wallet.postings):
        refuse("NOT_FOUND", param="refund.posting_id")


def check_limits(wallet: Wallet, now: int) -> None:
    live = [g for g in wallet.grants if not g.ended(now) and wallet.remaining(g)]
    if len(live) > GRANTS_MAX or abs(wallet.rows[-1].running_balance) > BALANCE_MAX:
        refuse("OUT_OF_RANGE")


# --- The ledger ---


class Bill(NamedTuple):
    """Positive = charged, a refund counts negative; voucher is what promotional grants paid."""

    quantities: tuple[int, ...] = ()
    amount: int = 0
    voucher: int = 0
    pay: int = 0


class Summary(NamedTuple):
    quantity: int  #: Of the postings with usage, each counted once.
    unmetered_amount: int  #: |amount| of the postings without usage.
    amount: int  #: Negative or 0.
    row_count: int


class NaiveLedger:
    def __init__(self, now: int) -> None:
        self.clock = now  #: As the last command saw it.
        self.wallets: dict[str, Wallet] = {}
        self.postings_made = 0

    def create_wallet(self, wallet_id: str, *, overdraft_limit: int = 0) -> Answer:
        if not 0 <= overdraft_limit <= AMOUNT_MAX:
            return Refused("INVALID_FIELD", {"param": "overdraft_limit"})
        wallet = self.wallets.setdefault(wallet_id, Wallet(self.clock, overdraft_limit))
        same = wallet.overdraft_limit == overdraft_limit
        return wallet.view(self.clock) if same else Refused("ID_TAKEN", {})

    def set_status(self, wallet_id: str, status: str, *, now: int | None = None) -> Answer:
        return self._update(wallet_id, now, status, None)

    def set_overdraft_limit(self, wallet_id: str, limit: int, *, now: int | None = None) -> Answer:
        """It may fall below what is used: then nothing more can be drawn on it."""
        return self._update(wallet_id, now, None, limit)

    def _update(
        self, wallet_id: str, now: int | None, status: str | None, limit: int | None
    ) -> Answer:
        """Appends the expirations due, as a posting does; `now` defaults to the last clock."""
        self.clock = self.clock if now is None else now
        if status not in (None, "active", "frozen", "closed"):
            return Refused("INVALID_FIELD", {"param": "status"})
        if not 0 <= (limit or 0) <= AMOUNT_MAX:
            return Refused("INVALID_FIELD", {"param": "overdraft_limit"})
        if wallet_id not in self.wallets:
            return Refused("NOT_FOUND", {"param": "wallet_id"})
        wallet = self.wallets[wallet_id]
        view = wallet.view(self.clock)
        if wallet.status == "closed" and status != "closed":
            return Refused("WALLET_CLOSED", {})
        if status == "closed" and (view.balance or view.overdraft_used):
            return Refused("INVALID_FIELD", {"param": "status"})
        self.postings_made += 1
        wallet.expire(self.postings_made, wallet.now(self.clock))
        wallet.status = status or wallet.status
        wallet.overdraft_limit = wallet.overdraft_limit if limit is None else limit
        return wallet.view(self.clock)

    def post(
        self,
        wallet_id: str,
        *,
        now: int,
        idempotency_key: str,
        operation: Operation,
        force_allowed: bool = True,
        effective_at: int | None = None,
        expected_sequence: int | None = None,
        validate_only: bool = False,
        description: str | None = None,
        note: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Accepted | Refused:
        """`force_allowed`: by an admin key, which may also date a spend further back."""
        self.clock = now
        ((name, body),) = operation.items()
        texts = {"description": description, "note": note, "metadata": metadata}
        request = canonical({**operation, **texts, "effective_at": effective_at})
        try:
            check_shape(name, body, idempotency_key, expected_sequence)
            if body.get("force") and not force_allowed:
                refuse("SCOPE_DENIED")
            if wallet_id not in self.wallets:
                refuse("NOT_FOUND", param="wallet_id")
            wallet = self.wallets[wallet_id]
            for old in wallet.postings.values():
                if old.key == idempotency_key:
                    check_replay(old, name, request)
                    return Accepted(old.ref, True, wallet.rows_of(old.ref), wallet.view(now))
            check_wallet(wallet, name, body, expected_sequence)

            draft, ref, now = wallet.draft(), self.postings_made + 2, wallet.now(now)
            at, limit = now if effective_at is None else effective_at, wallet.overdraft_limit
            too_old = at < now - PAST_MAX_MS and not force_allowed
            if name != "grant" and (too_old or at > now + FUTURE_MAX_MS):
                refuse("INVALID_FIELD", param="effective_at")
            posting = Posting(ref, idempotency_key, name, body, request, now, at, limit)
            draft.expire(ref - 1, now)
            draft.postings[ref] = posting
            getattr(draft, f"apply_{name}")(posting, body)
            check_limits(draft, now)
        except Refused as refused:
            return refused
        rows, view = draft.rows_of(ref), draft.view(now)
        if validate_only:
            return Accepted(0, False, [replace(row, posting=0) for row in rows], view)
        self.wallets[wallet_id], self.postings_made = draft, ref
        return Accepted(ref, False, rows, view)

    def wallet(self, wallet_id: str, *, now: int) -> WalletView:
        return self.wallets[wallet_id].view(now)

    def rows(self, wallet_id: str) -> list[Row]:
        return list(self.wallets[wallet_id].rows)

    def grants(self, wallet_id: str) -> list[GrantView]:
        """By their rows: an ended grant keeps what is left until its expiration is written."""
        wallet = self.wallets[wallet_id]
        return [GrantView(**asdict(g), remaining=wallet.remaining(g)) for g in wallet.grants]

    def summary(
        self,
        wallet_ids: Iterable[str],
        *,
        start: int | None = None,
        end: int | None = None,
        meter_id: str | None = None,
        subscription_id: str | None = None,
    ) -> Summary:
        """Consumptions created in [start, end)."""
        quantity = unmetered = amount = row_count = 0
        for wallet in [self.wallets[wallet_id] for wallet_id in wallet_ids]:
            for row in [row for row in wallet.rows if row.type == "consumption"]:
                body = wallet.postings[row.posting].body
                early = start is not None and row.created_at < start
                late = end is not None and row.created_at >= end
                other_meter = meter_id not in (None, body.get("meter_id"))
                other_subscription = subscription_id not in (None, body.get("subscription_id"))
                if early or late or other_meter or other_subscription:
                    continue
                if not body.get("usage"):
                    unmetered -= row.amount
                elif row == wallet.rows_of(row.posting)[0]:
                    quantity += sum(body["usage"]["quantities"])
                amount, row_count = amount + row.amount, row_count + 1
        return Summary(quantity, unmetered, amount, row_count)

    def bills(
        self, wallet_id: str, *, start: int, end: int, bucket_of: Callable[[int], Any]
    ) -> dict[tuple[Any, ...], Bill]:
        """Consumptions and refunds effective in [start, end), in the order of the published rows.

        Key: (bucket, api_key_id, product_id, product_name, category, billing_method, base_prices,
        discount_prices, price_precision); a refund counts under the usage that it refunds.
        """
        wallet = self.wallets[wallet_id]
        bills: dict[tuple[Any, ...], Bill] = {}
        for row in [row for row in wallet.rows if row.kind in ("usage", "refund")]:
            if not start <= row.effective_at < end:
                continue
            spent = wallet.postings[row.posting].body.get("posting_id", row.posting)
            usage = wallet.postings[spent].body.get("usage") or {}
            labels = ("api_key_id", "product_id", "product_name", "category")
            texts = [usage.get(label) or "" for label in labels]
            prices = [tuple(usage.get(name) or ()) for name in ("base_prices", "discount_prices")]
            method, precision = usage.get("billing_method") or 1, usage.get("price_precision") or 1
            key = (bucket_of(row.effective_at), *texts, method, *prices, precision)
            first = row.kind == "usage" and row == wallet.rows_of(row.posting)[0]
            quantities = usage.get("quantities", ()) if first else ()
            old, amount = bills.get(key, Bill()), -row.amount
            voucher = amount if wallet.category(row) == "promotional" else 0
            sums = tuple(a + b for a, b in zip_longest(old.quantities, quantities, fillvalue=0))
            pay = old.pay + amount - voucher
            bills[key] = Bill(sums, old.amount + amount, old.voucher + voucher, pay)
        return {key: bills[key] for key in sorted(bills, key=lambda k: (*k[:3], *k[6:], *k[3:6]))}

    def check(self) -> None:
        """The invariants, by walking each wallet's rows forward: not by the sums used above."""
        for wallet in self.wallets.values():
            left, now, view = walk(wallet), wallet.now(self.clock), wallet.view(self.clock)
            spendable = sum(left[grant.ref] for grant in wallet.grants if grant.open(now))
            assert view.available == spendable - view.overdraft_used
            assert view.balance == view.available + view.pending + view.held
            assert wallet.status != "closed" or not (view.balance or view.overdraft_used)
            assert sum(1 for g in wallet.grants if not g.ended(now) and left[g.ref]) <= GRANTS_MAX
            keys = [p.key for p in wallet.postings.values() if p.key is not None]
            assert len(keys) == len(set(keys))
            for posting in [p for p in wallet.postings.values() if p.name == "consumption"]:
                draws, back = wallet.rows_of(posting.ref), wallet.refund_rows(posting.ref)
                for category in ("paid", "promotional"):
                    spent = sum(r.amount for r in draws if wallet.category(r) == category)
                    given = sum(r.amount for r in back if wallet.category(r) == category)
                    assert 0 <= given <= -spent


def walk(wallet: Wallet) -> dict[int, int]:
    """Assert what each row must be after those before it; answer what is left of each grant."""
    grants = {grant.ref: grant for grant in wallet.grants}
    left: dict[int, int] = {}
    balance = used = now = 0
    for sequence, row in enumerate(wallet.rows, 1):
        posting = wallet.postings[row.posting]
        balance += row.amount
        assert (row.sequence, row.running_balance) == (sequence, balance)
        assert now <= row.created_at
        assert 0 < abs(row.amount) <= AMOUNT_MAX
        assert abs(balance) <= BALANCE_MAX
        now = row.created_at

        if row.type == "expiration":
            assert row.grant is not None
            assert row.amount == -left[row.grant]
            assert row.effective_at == grants[row.grant].expires_at
        else:
            assert not any(left[ref] for ref in left if grants[ref].ended(now))
        if row.amount < 0 and row.type != "expiration" and not posting.body.get("credit_grant_id"):
            # By burn order, nothing that is open may be left before this grant, or at all.
            last = None if row.grant is None else grants[row.grant].burn_order()
            for grant in [grants[ref] for ref in left if left[ref] and grants[ref].open(now)]:
                assert last is not None
                assert grant.burn_order() >= last
            assert row.grant is None or grants[row.grant].open(now)

        if sequence in grants:
            assert row.grant == sequence
            assert row.amount == grants[sequence].amount
            paid = min(used, row.amount) if grants[sequence].open(now) else 0
            assert grants[sequence].overdraft_paid == paid
            left[sequence], used = -paid, used - paid
        if row.grant is None:
            used -= row.amount
            allowed = row.amount > 0 or posting.body.get("force")
            assert allowed or used <= posting.overdraft_limit
        else:
            left[row.grant] += row.amount
            assert 0 <= left[row.grant] <= grants[row.grant].amount
        assert used >= 0
        assert balance == sum(left.values()) - used
    return left


# --- Bills in 1/10000 of the currency ---


def apportion(
    amounts: Sequence[int], scale: int, caps: Sequence[int | None] | None = None
) -> list[int]:
    """Exact amounts of one bucket (smallest units, `scale` digits) in 1/10000 of the currency.

    They add up to the exact total rounded half up: floor, then largest remainder, ties by order.
    None exceeds its cap (None: no cap); what a cap refuses goes to the next that has room.
    """
    exact, unit = [amount * 10**4 for amount in amounts], 10**scale
    parts = [amount // unit for amount in exact]
    left = (2 * sum(exact) + unit) // (2 * unit) - sum(parts)
    order = sorted(range(len(exact)), key=lambda i: -(exact[i] % unit))
    limits = [None] * len(exact) if caps is None else caps
    while left and (room := [i for i in order if (cap := limits[i]) is None or parts[i] < cap]):
        for i in room[:left]:
            parts[i] += 1
        left -= len(room[:left])
    return parts


def apportion_bills(bills: Sequence[Bill], scale: int) -> list[tuple[int, int, int]]:
    """(amount, voucher, pay) of the rows of one bucket, in row order.

    The cap holds where the exact voucher is not above the exact amount; it is above where refunds
    of cash outweigh the rest.
    """
    amounts = apportion([bill.amount for bill in bills], scale)
    pairs = zip(amounts, bills, strict=True)
    caps = [a if bill.voucher <= bill.amount else None for a, bill in pairs]
    vouchers = apportion([bill.voucher for bill in bills], scale, caps)
    return [(a, voucher, a - voucher) for a, voucher in zip(amounts, vouchers, strict=True)]
