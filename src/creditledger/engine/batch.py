"""A batch of commands: what has to be read to decide it, and deciding it.

`wanted` says what has to be read. `Deciding` then takes the commands one after the other, each upon
what the ones before it left, and gathers the changes to be written. No I/O: it runs inside the
write transaction, on what was loaded under the wallets' locks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from creditledger.domain import ids, money, spend_limits, spending, wallet_moves
from creditledger.domain.commands import (
    CHANGES,
    EXPIRE,
    OPERATIONS,
    RECEIVE,
    RETURN,
    Adjust,
    Asked,
    CancelEvent,
    Capture,
    Change,
    Command,
    Consume,
    DropLimit,
    Extend,
    GiveGrant,
    GrantChange,
    LimitChange,
    OnHold,
    PlaceHold,
    Refund,
    Release,
    ReportEvent,
    SetLimit,
    Sweep,
    Transfer,
    VoidGrant,
    WalletChange,
    merged,
)
from creditledger.domain.errors import InvalidField, NotFound, WalletClosed, echo
from creditledger.domain.model import (
    NO_ANNOTATION,
    Annotation,
    Dimension,
    Grant,
    Hold,
    Kind,
    MeterEvent,
    Posting,
    Receipt,
    Status,
    Type,
    Wallet,
    WalletView,
    repayments,
    standing,
    view,
)
from creditledger.domain.operations import cancellation, settlement
from creditledger.domain.operations import grant as grant_rules
from creditledger.domain.operations import hold as hold_rules
from creditledger.domain.operations import transfer as transfer_rules
from creditledger.engine import replay
from creditledger.engine.answer_budget import Budget
from creditledger.engine.batch_changes import Writing, own
from creditledger.store import PAYS_EVENT, CreditedReceipt, DroppedLimit, Loaded, Wanted

_EXPIRY = Dimension(Kind.EXPIRY.value, Type.EXPIRATION.value)
_ON_HOLDS = (PlaceHold, Capture, Release, Extend)


class Posted(NamedTuple):
    """A command's answer: its posting with its rows, and the wallet right after it."""

    posting: Posting
    dimension: Dimension | None  #: Of its rows, if it has some.
    wallet: WalletView
    replayed: bool
    validate_only: bool
    hold: Hold | None = None  #: What it was about, as it is by then.
    held_for: Dimension | None = None  #: What the hold's captures are added up by.
    received: "Posted | None" = None  #: Of a transfer: the other side.
    event: MeterEvent | None = None  #: What was reported; None of a replay.
    annotation: Annotation = NO_ANNOTATION  #: The hold's.


def wanted(commands: Iterable[Asked]) -> Wanted:
    """What has to be read to decide these."""
    wallets, keys, meters, subscriptions = set(), set(), set(), set()
    originals, named, revised, held, limited = set(), set(), set(), set(), set()
    receipts = set()
    canceled, returning, unpaid = set(), set(), set()
    postings = []
    for command in commands:
        wallets.add(command.wallet_id)
        if not isinstance(command, Command):
            if not isinstance(command, Sweep) and command.idempotency_key is not None:
                keys.add((command.wallet_id, command.idempotency_key))
            if isinstance(command, GrantChange):
                revised.add(ids.resolve("cg", command.id))
            elif isinstance(command, SetLimit | DropLimit):
                limited.add(command.wallet_id)
            elif isinstance(command, Sweep):
                returning.add(command.wallet_id)
            elif command.status is Status.CLOSED:
                returning.add(command.wallet_id)
                if command.cancel_unpaid:
                    unpaid.add(command.wallet_id)
            continue
        postings.append(command)
        keys.add((command.wallet_id, command.idempotency_key))
        operation = command.operation
        if isinstance(operation, (Consume, PlaceHold, ReportEvent)):
            if operation.meter_id is not None:
                meters.add(operation.meter_id)
            if operation.subscription_id is not None:
                subscriptions.add(operation.subscription_id)
        elif isinstance(operation, Refund):
            originals.add(ids.resolve("pst", operation.posting_id))
        elif isinstance(operation, Adjust):
            if operation.credit_grant_id is not None:
                named.add(ids.resolve("cg", operation.credit_grant_id))
        elif isinstance(operation, GiveGrant):
            if operation.scope is not None:
                meters.update(operation.scope.meter_ids)
            if operation.receipt is not None:
                receipts.add((command.wallet_id, operation.receipt))
        elif isinstance(operation, VoidGrant):
            revised.add(ids.resolve("cg", operation.id))
        elif isinstance(operation, CancelEvent):
            canceled.add(ids.resolve("me", operation.id))
        elif isinstance(operation, OnHold):
            held.add(ids.resolve("hld", operation.hold_id))
        elif isinstance(operation, Transfer):
            wallets.add(operation.to_wallet_id)
    return Wanted(
        wallets=frozenset(wallets),
        keys=frozenset(keys),
        meters=frozenset(meters),
        subscriptions=frozenset(subscriptions),
        originals=frozenset(pair for pair in originals if pair is not None),
        grants=frozenset(pair for pair in named | revised if pair is not None),
        holds=frozenset(pair for pair in held if pair is not None),
        dimensions=lambda loaded: _dimensions(postings, loaded),
        limited=frozenset(limited),
        revised=frozenset(pair for pair in revised if pair is not None),
        receipts=frozenset(receipts),
        canceled=frozenset(pair for pair in canceled if pair is not None),
        returning=frozenset(returning),
        unpaid=frozenset(unpaid),
    )


def _dimensions(commands: Sequence[Command], loaded: Loaded) -> Iterator[tuple[int, Dimension]]:
    """Under which dimensions, of which wallets, the commands may write; some more than once."""
    for wallet in loaded.wallets.values():
        if wallet_moves.expirations(wallet, wallet.time(loaded.clock)):
            yield wallet.number, _EXPIRY
        for dimension in {settlement.dimension(event) for event in wallet.unpaid.values()}:
            yield wallet.number, dimension
    for wallet_number in {wallet_number for wallet_number, _ in loaded.payments}:
        yield wallet_number, replay.CANCELED
    for command in commands:
        found = loaded.wallets.get(command.wallet_id)
        if found is None:
            continue
        if isinstance(command.operation, Transfer):
            receiver = loaded.wallets.get(command.operation.to_wallet_id)
            if receiver is not None:
                yield receiver.number, replay.RECEIVED
        original = None
        if isinstance(command.operation, OnHold):
            pair = ids.resolve("hld", command.operation.hold_id)
            hold = found.holds.get(pair[1]) if pair and pair[0] == found.number else None
            if hold is None:
                continue
            yield found.number, _EXPIRY
            original = loaded.dimensions[found.number, hold.dimension]
        elif isinstance(command.operation, Refund):
            yield found.number, _EXPIRY
            pair = ids.resolve("pst", command.operation.posting_id)
            posting = loaded.originals.get(pair) if pair else None
            if posting is None or not posting.rows:
                continue
            original = loaded.dimensions[found.number, posting.rows[0].dimension]
        yield found.number, replay.dimension(command, original)


@dataclass(slots=True)
class Deciding(Writing):
    """The state of phase 4: what was loaded, moved on posting by posting, and what it writes."""

    done: dict[tuple[int, str], tuple[Posting, Dimension | None]] = field(default_factory=dict)
    references: spending.References = field(init=False)

    def __post_init__(self) -> None:
        loaded = self.loaded
        Writing.__post_init__(self)
        for place, posting in loaded.postings.items():
            self.done[place] = posting, _dimension_of(loaded, posting)
        self.references = spending.References(
            meters=loaded.meters,
            inactive_meters=loaded.inactive_meters,
            subscriptions=loaded.subscriptions,
            originals={
                pair: spending.Original(
                    rows=posting.rows,
                    dimension=_dimension_of(loaded, posting),
                    refunded=loaded.refunded.get(pair, 0),
                    overdrafts={
                        row.sequence: loaded.overdrafts[row.wallet, row.sequence]
                        for row in posting.rows
                        if (row.wallet, row.sequence) in loaded.overdrafts
                    },
                )
                for pair, posting in loaded.originals.items()
            },
            credited={
                place: [spending.Credited(*one) for one in grants]
                for place, grants in loaded.credited.items()
            },
            payers=loaded.payers,
        )

    def post(self, command: Command, budget: Budget) -> Posted:
        """One posting, or its Refusal with nothing changed."""
        wallet = self._wallet(command)
        operation, validate_only = command.operation, command.validate_only
        amount = replay.amount(command, wallet.scale)
        key = wallet.number, command.idempotency_key
        known = self.done.get(key)
        if known is not None:
            posting, dimension = known
            replay.check(command, amount, posting, dimension)
            budget.spend(posting, len(posting.rows))
            seen = view(wallet, self.loaded.clock)
            answer = Posted(posting, dimension, seen, True, validate_only)
            if posting.hold is not None:
                return self._about_hold(answer, wallet, posting.hold)
            if isinstance(operation, CancelEvent):
                return answer._replace(event=self._named_event(wallet, operation))
            return answer._replace(received=self._received(command, posting, budget))
        if isinstance(operation, Transfer):
            assert amount is not None
            return self._post_transfer(wallet, command, operation, amount, budget)
        if validate_only:
            wallet = wallet.copy()
        now = wallet.time(self.loaded.clock)
        if not wallet.overdraft_used:
            return self._post(wallet, command, amount, budget, now)
        with self._repaid(wallet, now, write=not validate_only):
            return self._post(wallet, command, amount, budget, now)

    def _post(
        self, wallet: Wallet, command: Command, amount: int | None, budget: Budget, now: int
    ) -> Posted:
        """A new posting on the wallet as it is by `now`."""
        operation, validate_only = command.operation, command.validate_only
        key = wallet.number, command.idempotency_key
        if isinstance(operation, _ON_HOLDS):
            return self._post_hold(wallet, command, amount, budget, now)
        if isinstance(operation, VoidGrant):
            return self._void(wallet, command, operation, budget, now)
        if isinstance(operation, CancelEvent):
            return self._cancel(wallet, command, operation, now)
        if isinstance(operation, Refund):
            self._see_canceled(wallet, operation)
        moves = spending.decide(
            wallet,
            command,
            amount,
            self.references,
            now=now,
            backdating_ms_max=self.backdating_ms_max,
            returned_ms=self.returned_ms,
        )
        original = None
        if isinstance(operation, Refund):
            original = spending.refundable(wallet, operation, self.references)
        dimension = replay.dimension(command, original.dimension if original else None)
        if wallet.limits and isinstance(operation, Consume | ReportEvent):
            assert amount is not None
            self.spending.require(wallet, amount, dimension, now=now)
        posting = _posting(wallet, command, amount)
        budget.spend(posting, len(moves))
        ended = self._over(wallet, now, write=not validate_only)
        quantity = event = None
        if isinstance(operation, Consume) and operation.usage is not None:
            quantity = sum(operation.usage.quantities)
        if validate_only:
            wallet_moves.append(wallet, ended, posting=0, dimension=0, quantity=None, now=now)
            posting.rows = wallet_moves.append(
                wallet, moves, posting=0, dimension=0, quantity=quantity, now=now
            )
            if original is not None:
                over = spending.over_at_once(moves, now)
                wallet_moves.append(wallet, over, posting=0, dimension=0, quantity=None, now=now)
        else:
            if ended:
                self._write(wallet, _expiry(wallet), ended, _EXPIRY, None, now)
            back = []
            if original is not None:
                # All rows of a posting are of one moment, so the first one stands for them.
                back = [(original.rows[0], sum(move.amount for move in moves))]
            self._write(wallet, posting, moves, dimension, quantity, now, returned=back)
            self.done[key] = posting, dimension
            if original is not None and posting.refund_of is not None:
                returned = original.refunded + sum(move.amount for move in moves)
                self.references.originals[wallet.number, posting.refund_of] = replace(
                    original, refunded=returned
                )
                over = spending.over_at_once(moves, now)
                if over:
                    self._write(wallet, _expiry(wallet), over, _EXPIRY, None, now)
            if isinstance(operation, ReportEvent):
                event = self._report(wallet, posting, operation, command.effective_at, now)
            elif isinstance(operation, GiveGrant) and operation.receipt is not None:
                self._credit(wallet, operation.receipt, posting)
        self._settle(wallet, now, write=not validate_only)
        seen = view(wallet, self.loaded.clock)
        return Posted(posting, dimension, seen, False, validate_only, event=event)

    def change(self, change: Change) -> WalletView:
        """A change of a wallet's or grant's terms, or its Refusal; expirations due come first.

        Under a key that has it already nothing changes.
        """
        wallet = self._wallet(change)
        terms = replay.change_terms(change, wallet.scale)
        if self._made_by(wallet, change, terms) is None:
            if isinstance(change, GrantChange):
                self._change_grant(wallet, change)
            else:
                self._change_wallet(wallet, change)
            self._bind(wallet, change, terms)
        return view(wallet, self.loaded.clock)

    def _change_wallet(self, wallet: Wallet, change: WalletChange) -> None:
        """New terms of a wallet."""
        limit = wallet.overdraft_limit
        if change.overdraft_limit is not None:
            limit = money.parse(change.overdraft_limit, wallet.scale, field="overdraft_limit")
            if limit < 0:
                raise InvalidField("overdraft_limit is below 0", param="overdraft_limit")
        if wallet.status is Status.CLOSED:
            raise WalletClosed("the wallet is closed")
        metadata = merged(wallet.metadata, change.metadata)
        now = wallet.time(self.loaded.clock)
        with self._repaid(wallet, now):
            if change.status is Status.CLOSED:
                self._check_closing(wallet, now, cancel_unpaid=change.cancel_unpaid)
            self._expire(wallet, now)
        if change.status is Status.CLOSED:
            for event in list(wallet.unpaid.values()):
                self._return(wallet, event, own(wallet, RETURN), now)
        wallet.overdraft_limit, wallet.metadata = limit, metadata
        wallet.status = change.status or wallet.status
        wallet.updated_at = now
        self.changes.terms[wallet.number] = wallet
        self._settle(wallet, now)

    def limit(self, change: LimitChange) -> spend_limits.LimitView:
        """A spend limit set or dropped, or the Refusal. What is so already changes nothing.

        Under a key that has it already: the limit as it is by now, or was shown last.
        """
        wallet = self._wallet(change)
        terms = replay.change_terms(change, wallet.scale)
        before = self._made_by(wallet, change, terms)
        if before is not None:
            return self._limit_of(wallet, before)
        if wallet.status is Status.CLOSED:
            raise WalletClosed("the wallet is closed")
        now = wallet.time(self.loaded.clock)
        seen, changed = self.spending.change(wallet, change, now)
        if changed:
            # Servers that keep the wallet in memory have to see that it has moved.
            wallet.revision += 1
            self.changes.touched[wallet.number] = wallet
        number = seen.limit.number
        if isinstance(change, DropLimit):
            shown = seen.spent, seen.held, seen.resets_at
            self.changes.dropped[wallet.number, number] = DroppedLimit(seen.limit, *shown, now)
        self._bind(wallet, change, terms, spend_limit_id=ids.compose("spl", wallet.number, number))
        return seen

    def _limit_of(self, wallet: Wallet, posting: Posting) -> spend_limits.LimitView:
        """The limit that a change under a key set or dropped."""
        place = ids.resolve("spl", posting.source["spend_limit_id"])
        assert place is not None
        for limit in wallet.limits:
            if (wallet.number, limit.number) == place:
                return self.spending.seen(wallet, limit, wallet.time(self.loaded.clock))
        gone = self.changes.dropped.get(place) or self.loaded.dropped[place]
        return spend_limits.LimitView(
            *(gone.limit, wallet.id, wallet.number, wallet.scale),
            *(gone.spent, gone.held, gone.resets_at),
        )

    def _made_by(
        self, wallet: Wallet, change: Change | LimitChange, terms: Mapping[str, object]
    ) -> Posting | None:
        """The posting that made this very change under its key; None: it is yet to be made.

        Raises IdempotencyKeyReused.
        """
        if change.idempotency_key is None:
            return None
        known = self.done.get((wallet.number, change.idempotency_key))
        if known is None:
            return None
        replay.check_change(CHANGES[type(change)][0], terms, known[0])
        return known[0]

    def _bind(
        self,
        wallet: Wallet,
        change: Change | LimitChange,
        terms: Mapping[str, object],
        **source: str,
    ) -> None:
        """Keep the change's key, if it has one: by a posting without rows, and without a time."""
        if change.idempotency_key is None:
            return
        posting = replace(
            own(wallet, CHANGES[type(change)][0]),
            idempotency_key=change.idempotency_key,
            posted_by=change.changed_by,
            terms=terms,
            source=source,
        )
        self._number(wallet, posting)
        self.done[wallet.number, change.idempotency_key] = posting, None

    def sweep(self, sweep: Sweep) -> int:
        """Write down what is over in the wallet, and return more of a canceled event.

        How many expirations, holds and rows that were.
        """
        wallet = self._posted_to(sweep.wallet_id, None)
        if wallet is None:
            return 0
        now = wallet.time(self.loaded.clock)
        if sweep.grace_ms and _is_recent(wallet, now - sweep.grace_ms, now):
            return 0
        with self._repaid(wallet, now) as repaid:
            lapsed = len(wallet.lapsed(now))
            written = self._expire(wallet, now) + lapsed + repaid
        for event in self._returning(wallet)[:1]:
            posting = own(wallet, RETURN)
            self._return(wallet, event, posting, now)
            self._settle(wallet, now)
            written += len(posting.rows)
        return written

    def _expire(self, wallet: Wallet, now: int) -> int:
        """Write down what is over in the wallet; how many expirations that were."""
        ended = self._over(wallet, now)
        if ended:
            self._write(wallet, _expiry(wallet), ended, _EXPIRY, None, now)
        return len(ended)

    def _change_grant(self, wallet: Wallet, change: GrantChange) -> None:
        """New terms of a grant. What leaves them as they are writes nothing."""
        if wallet.status is Status.CLOSED:
            raise WalletClosed("the wallet is closed")
        grant = grant_rules.named(wallet, change.id)
        now = wallet.time(self.loaded.clock)
        terms = grant_rules.changed(grant, change, now=now)
        words = self._words(wallet, grant)
        metadata = merged(words, change.metadata)
        if terms != grant.terms() or metadata != words:
            with self._repaid(wallet, now):
                self._expire(wallet, now)
            self._revise(wallet, grant, terms, metadata, now, by=change.changed_by)
            self._moved(wallet, now)
            self._settle(wallet, now)

    def _void(
        self, wallet: Wallet, command: Command, operation: VoidGrant, budget: Budget, now: int
    ) -> Posted:
        """A posting that takes a grant back."""
        if wallet.status is not Status.ACTIVE:
            spending.refuse_by_status(wallet, command, None)
        grant = grant_rules.named(wallet, operation.id)
        moves = grant_rules.void(wallet, grant, now=now)
        posting = _posting(wallet, command, None)
        budget.spend(posting, len(moves))
        self._expire(wallet, now)
        posting.number = wallet.last_posting + 1
        terms = grant.terms()._replace(voided_at=now)
        words, by = self._words(wallet, grant), command.posted_by
        self._revise(wallet, grant, terms, words, now, by=by, posting=posting.number)
        self._write(wallet, posting, moves, _EXPIRY, None, now)
        self._free_receipt(wallet, grant)
        used = _EXPIRY if moves else None
        self.done[wallet.number, command.idempotency_key] = posting, used
        self._settle(wallet, now)
        return Posted(posting, used, view(wallet, self.loaded.clock), False, False)

    def _credit(self, wallet: Wallet, receipt: Receipt, posting: Posting) -> None:
        """Write down that the posting's grant credits the receipt."""
        grant = posting.rows[0].sequence
        others = self.references.credited.setdefault((wallet.number, receipt), [])
        copy = grant if others else 0
        others.append(spending.Credited(grant, posting.number))
        credited = CreditedReceipt(wallet.number, grant, *receipt, copy)
        self.changes.receipts[wallet.number, grant] = credited

    def _free_receipt(self, wallet: Wallet, grant: Grant) -> None:
        """What the voided grant credited may be credited anew."""
        for (number, _), others in self.references.credited.items():
            if number == wallet.number:
                others[:] = [one for one in others if one.grant != grant.number]
        place = wallet.number, grant.number
        if place in self.changes.given:
            self.changes.receipts.pop(place, None)
        else:
            self.changes.receipts[place] = None

    def _cancel(self, wallet: Wallet, command: Command, operation: CancelEvent, now: int) -> Posted:
        """A posting that takes a meter event back, unless that is done under another key."""
        if command.expected_sequence is not None:
            spending.expect_sequence(wallet, command.expected_sequence)
        if wallet.status is Status.CLOSED:
            raise WalletClosed("the wallet is closed")
        event = self._named_event(wallet, operation)
        posting = _posting(wallet, command, None)
        if event.canceled_at is not None:
            seen = view(wallet, self.loaded.clock)
            return Posted(posting, None, seen, True, False, event=event)
        event = self._return(wallet, event, posting, now)
        used = replay.CANCELED if posting.rows else None
        self.done[wallet.number, command.idempotency_key] = posting, used
        self._settle(wallet, now)
        return Posted(posting, used, view(wallet, self.loaded.clock), False, False, event=event)

    def _named_event(self, wallet: Wallet, operation: CancelEvent) -> MeterEvent:
        """The event. Raises NotFound. One that is not returned whole is gone on with."""
        place = ids.resolve("me", operation.id)
        event = self._event(*place) if place and place[0] == wallet.number else None
        if event is None:
            raise NotFound(f"no meter event {echo(operation.id)} in this wallet", param="id")
        if event.return_below is not None:
            self.unfinished.add(wallet.id)
        return event

    def _see_canceled(self, wallet: Wallet, operation: Refund) -> None:
        """Note at what a refund names whether it paid for an event that is canceled by now."""
        place = ids.resolve("pst", operation.posting_id)
        posting = self.loaded.originals.get(place) if place else None
        if place is None or posting is None or posting.operation not in PAYS_EVENT:
            return
        for (number, event_number), event in self.loaded.events.items():
            if (number, event.identifier) == (wallet.number, posting.meter_event_id):
                now_is = self._event(number, event_number)
                self.references.originals[place] = replace(
                    self.references.originals[place],
                    is_canceled=now_is is not None and now_is.canceled_at is not None,
                )

    def _return(self, wallet: Wallet, event: MeterEvent, posting: Posting, now: int) -> MeterEvent:
        """Cancel the event, or go on with one that is canceled, by this posting.

        Raises OutOfRange, with nothing changed.
        """
        moves, draws, after = cancellation.step(
            wallet,
            event,
            self._payments(wallet, event),
            self._payers(wallet),
            posting.metadata,
            now=now,
            returned_ms=self.returned_ms,
        )
        wallet_moves.check_range(wallet, moves, now, quantity=0)
        self._expire(wallet, now)
        posting.source = {"meter_event_id": event.identifier}
        posting.meter_event_id = event.identifier
        returned = [(draw.row, draw.amount) for draw in draws]
        self._write(wallet, posting, moves, replay.CANCELED, None, now, returned=returned)
        over = spending.over_at_once(moves, now)
        if over:
            self._write(wallet, _expiry(wallet), over, _EXPIRY, None, now)
        self._owe(wallet, after)
        if after.return_below is not None:
            self.unfinished.add(wallet.id)
        return after

    def _returning(self, wallet: Wallet) -> list[MeterEvent]:
        """Canceled events of which something is still to be returned, oldest first."""
        places = sorted(place for place in self.loaded.events if place[0] == wallet.number)
        found = [self._event(*place) for place in places]
        return [event for event in found if event and event.return_below is not None]

    def _check_closing(self, wallet: Wallet, now: int, *, cancel_unpaid: bool) -> None:
        """Raises InvalidField for a wallet that has something, or is owed something."""
        if any((*standing(wallet, now)[:3], wallet.overdraft_used)):
            raise InvalidField(
                "only a wallet with balance 0, no overdraft and no open hold can be closed",
                param="status",
            )
        if wallet.unpaid and not cancel_unpaid:
            raise InvalidField(
                "the wallet has unpaid meter events: pay or cancel them first, or cancel_unpaid",
                param="status",
            )
        if self._returning(wallet):
            raise InvalidField(
                "credit of canceled meter events is still being returned: close it later",
                param="status",
            )
        for event in wallet.unpaid.values():
            payments = self._payments(wallet, event)
            if not payments.are_all or any(cancellation.outstanding(event, payments)):
                raise InvalidField(
                    f"meter event {echo(event.identifier)} has drawn credit that would come back:"
                    " cancel it first",
                    param="cancel_unpaid",
                )

    def _post_hold(
        self, wallet: Wallet, command: Command, amount: int | None, budget: Budget, now: int
    ) -> Posted:
        """A posting that makes a hold, or is about one."""
        operation = command.operation
        if wallet.status is not Status.ACTIVE:
            spending.refuse_by_status(wallet, command, amount)
        spending.check_references(wallet, operation, self.references)
        moves: list[wallet_moves.Move] = []
        original = before = None
        if isinstance(operation, PlaceHold):
            assert amount is not None
            after = hold_rules.place(wallet, operation, amount, now=now)
        else:
            assert isinstance(operation, OnHold)
            before = hold_rules.named(wallet, operation.hold_id, now=now)
            original = self.loaded.dimensions[wallet.number, before.dimension]
            if isinstance(operation, Capture):
                spent_on = original.meter_id, original.product_id, original.category
                moves, after = hold_rules.capture(
                    wallet, operation, before, amount, spent_on, now=now
                )
            elif isinstance(operation, Release):
                after = hold_rules.release(before, now=now)
            else:
                after = hold_rules.extend(operation, before, now=now)
        quantities: tuple[int, ...] = ()
        event = None
        if isinstance(operation, Capture) and before is not None:
            quantities, event = hold_rules.usage_of(before, operation)
        held = after.left if before is None else 0
        wallet_moves.check_range(wallet, moves, now, quantity=sum(quantities), held=held)
        dimension = replay.dimension(command, original)
        if wallet.limits:
            self.spending.require_hold(
                wallet, before, after, moves, dimension=dimension, original=original, now=now
            )
        posting = _posting(wallet, command, amount)
        if isinstance(operation, Capture) and before is not None:
            said = self.loaded.annotations[wallet.number, before.number]
            posting.description = command.description or said.description
            posting.metadata = command.metadata or said.metadata
        if moves:
            posting.quantities, posting.meter_event_id = quantities, event
        budget.spend(posting, len(moves))
        self._expire(wallet, now)
        posting.number = wallet.last_posting + 1
        if before is None:
            number = self._dimension_number(wallet.number, dimension)
            self.loaded.dimensions[wallet.number, number] = dimension
            after = replace(after, number=posting.number, dimension=number)
            said = Annotation(command.description, command.metadata)
            self.loaded.annotations[wallet.number, posting.number] = said
        posting.hold = after.number
        hold_rules.book(wallet, after)
        if wallet.limits:
            self.spending.hold(wallet, before, after)
        has_usage = dimension.has_usage if moves else False
        self._write(wallet, posting, moves, dimension, sum(quantities) if has_usage else None, now)
        self.changes.hold(wallet.number, posting.number, after, now)
        if before is not None and after.ended is not None:
            repaid, given_up = hold_rules.given_up(wallet, before, moves, now)
            if repaid:
                payers = self._repay(wallet, repaid)
                self._note_repaid(wallet, repaid, payers, wallet.sequence, now)
            if given_up:
                self._write(wallet, _expiry(wallet), given_up, _EXPIRY, None, now)
        self.done[wallet.number, command.idempotency_key] = posting, dimension if moves else None
        self._settle(wallet, now)
        seen = view(wallet, self.loaded.clock)
        used = dimension if moves else None
        return self._about_hold(Posted(posting, used, seen, False, False), wallet, after.number)

    def _about_hold(self, answer: Posted, wallet: Wallet, number: int) -> Posted:
        """The answer with the hold that it is about."""
        hold = wallet.holds[number]
        return answer._replace(
            hold=hold,
            held_for=self.loaded.dimensions[wallet.number, hold.dimension],
            annotation=self.loaded.annotations[wallet.number, number],
        )

    def _post_transfer(
        self,
        sender: Wallet,
        command: Command,
        operation: Transfer,
        amount: int,
        budget: Budget,
    ) -> Posted:
        """A posting in each of two wallets, or in none; each at the time of its own wallet."""
        if command.expected_sequence is not None:
            spending.expect_sequence(sender, command.expected_sequence)
        receiver = transfer_rules.check_wallets(
            sender, self._posted_to(operation.to_wallet_id, command.livemode), operation
        )
        clock_ = self.loaded.clock
        sent_at, received_at = sender.time(clock_), receiver.time(clock_)
        dry = command.validate_only
        if dry:
            sender, receiver = sender.copy(), receiver.copy()
        with (
            self._repaid(sender, sent_at, write=not dry),
            self._repaid(receiver, received_at, write=not dry),
        ):
            return self._move(sender, receiver, command, amount, budget)

    def _move(
        self, sender: Wallet, receiver: Wallet, command: Command, amount: int, budget: Budget
    ) -> Posted:
        """A transfer between two wallets as they are by the time of each."""
        clock_, dry = self.loaded.clock, command.validate_only
        sent_at, received_at = sender.time(clock_), receiver.time(clock_)
        sent, received = transfer_rules.transfer(
            sender, receiver, amount, command.metadata, sent_at=sent_at, received_at=received_at
        )
        out, into = _posting(sender, command, amount), _arriving(sender, receiver, command, amount)
        sides = (
            (sender, out, sent, replay.SENT, sent_at),
            (receiver, into, received, replay.RECEIVED, received_at),
        )
        for _, posting, moves, _, _ in sides:
            budget.spend(posting, len(moves))
        for wallet, posting, moves, dimension, now in sides:
            ended = self._over(wallet, now, write=not dry)
            if dry:
                for some in (ended, moves):
                    posting.rows = wallet_moves.append(
                        wallet, some, posting=0, dimension=0, quantity=None, now=now
                    )
                continue
            if ended:
                self._write(wallet, _expiry(wallet), ended, _EXPIRY, None, now)
            self._write(wallet, posting, moves, dimension, None, now)
        if not dry:
            out.linked, into.linked = (into.wallet, into.number), (out.wallet, out.number)
            self.done[sender.number, command.idempotency_key] = out, replay.SENT
            self.loaded.linked[out.linked] = into
        for wallet, now in ((sender, sent_at), (receiver, received_at)):
            self._settle(wallet, now, write=not dry)
        answer = Posted(into, replay.RECEIVED, view(receiver, clock_), False, dry)
        seen = view(sender, clock_)
        return Posted(out, replay.SENT, seen, False, dry, received=answer)

    def _received(self, command: Command, posting: Posting, budget: Budget) -> Posted | None:
        """The other side of a transfer that is replayed."""
        if posting.linked is None or not isinstance(command.operation, Transfer):
            return None
        other = self.loaded.linked[posting.linked]
        budget.spend(other, len(other.rows))
        seen = view(self.loaded.wallets[command.operation.to_wallet_id], self.loaded.clock)
        return Posted(other, replay.RECEIVED, seen, True, command.validate_only)

    def _wallet(self, asked: Command | Change | LimitChange) -> Wallet:
        wallet = self._posted_to(asked.wallet_id, asked.livemode)
        if wallet is None:
            raise NotFound(f"no wallet {echo(asked.wallet_id)}", param="wallet_id")
        return wallet

    def _posted_to(self, wallet_id: str, livemode: bool | None) -> Wallet | None:
        """The wallet, if there is one of this mode."""
        wallet = self.loaded.wallets.get(wallet_id)
        return None if wallet is None or livemode not in (None, wallet.livemode) else wallet


def _is_recent(wallet: Wallet, before: int, now: int) -> bool:
    """Whether something in the wallet came due in between.

    A sweep would write it down too: an expiration leaves nothing behind that is due.
    """
    return (
        len(wallet.lapsed(now)) != len(wallet.lapsed(before))
        or wallet_moves.expirations(wallet, now) != wallet_moves.expirations(wallet, before)
        or repayments(wallet, now) != repayments(wallet, before)
    )


def _dimension_of(loaded: Loaded, posting: Posting) -> Dimension | None:
    if not posting.rows:
        return None
    return loaded.dimensions[posting.wallet, posting.rows[0].dimension]


def _posting(wallet: Wallet, command: Command, amount: int | None) -> Posting:
    operation = command.operation
    event, refund_of = None, None
    quantities: tuple[int, ...] = ()
    if isinstance(operation, Consume):
        event = operation.meter_event_id
        if operation.usage is not None:
            quantities = operation.usage.quantities
    elif isinstance(operation, Refund):
        refunded = ids.resolve("pst", operation.posting_id)
        refund_of = refunded[1] if refunded else None
    elif isinstance(operation, ReportEvent):
        event = command.idempotency_key
    return Posting(
        wallet.number,
        0,
        command.idempotency_key,
        OPERATIONS[type(operation)][0],
        amount,
        command.posted_by,
        command.description,
        command.note,
        command.metadata,
        replay.source(command),
        event,
        quantities,
        refund_of,
        None,
        replay.terms(command),
    )


def _arriving(sender: Wallet, receiver: Wallet, command: Command, amount: int) -> Posting:
    """A transfer's posting in the wallet that receives: the key is the sender's alone."""
    return replace(
        _posting(receiver, command, amount),
        idempotency_key=None,
        operation=RECEIVE,
        source={"wallet_id": sender.id},
        terms={},
        rows=[],
    )


def _expiry(wallet: Wallet) -> Posting:
    """The ledger's own posting for what expired."""
    return own(wallet, EXPIRE)
