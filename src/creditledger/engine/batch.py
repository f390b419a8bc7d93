"""A batch of commands: what the store has to load for it, and how each command is decided.

A posting is replayed, or it is validated, decided, fitted into the answer, and written after what
has expired by then; at last meter events are settled. `domain/operations/` says what an operation
does, and the journal carries it out. No I/O: this runs inside the write transaction, on what was
loaded under the wallets' locks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from creditledger.domain import ids, money, spending, wallet_moves
from creditledger.domain.commands import (
    RECEIVE,
    RETURN,
    Asked,
    Case,
    Change,
    Command,
    Decision,
    DropLimit,
    GrantChange,
    SetLimit,
    Sweep,
    WalletChange,
    Wants,
    merged,
    present,
)
from creditledger.domain.errors import (
    InvalidField,
    NotFound,
    ResultTooLarge,
    WalletClosed,
    echo,
)
from creditledger.domain.model import (
    NO_ANNOTATION,
    RETURNED_MS,
    Annotation,
    Dimension,
    Hold,
    MeterEvent,
    Posting,
    Status,
    Wallet,
    WalletView,
    repayments,
    standing,
    view,
)
from creditledger.domain.operations.grant import changed
from creditledger.domain.operations.meter_event import (
    CANCELED,
    CancelEvent,
    give_event_back,
    outstanding,
    settled,
)
from creditledger.domain.operations.transfer import RECEIVED
from creditledger.domain.spend_limits import LimitView
from creditledger.domain.spending import EXPIRY, named_grant
from creditledger.engine import replay
from creditledger.engine.journal import Journal, own
from creditledger.store import Changes, DroppedLimit, Loaded, Wanted

#: An answer must fit what a gRPC client accepts unasked (4 MiB), with room for its envelope.
ANSWER_BYTES_MAX = 4 * 1024 * 1024 - 64 * 1024
#: What a transaction takes in an answer beside its texts: ids, numbers and times, rounded up.
ROW_BYTES = 640
#: What a posting takes in an answer in brief: two ids, a number and two amounts, rounded up.
BRIEF_BYTES = 256
#: The ledger's own command to return more of a canceled event.
_OWN = Command("", "", CancelEvent(""), None, None, "")


@dataclass(slots=True)
class Budget:
    """Bytes that the answer of one call may still take; its postings share it."""

    left: int = ANSWER_BYTES_MAX

    def spend(self, sides: Sequence[tuple[Posting, int]], *, is_brief: bool) -> None:
        """Raises ResultTooLarge, before anything is written, if the answer does not fit.

        `sides`: a posting and its number of rows, or the two of a transfer. In brief they must
        still fit a full answer of their own: their key may be sent again and ask for it.
        """
        full = sum(_full_bytes(posting, rows) for posting, rows in sides)
        needed = len(sides) * BRIEF_BYTES if is_brief else full
        if full > ANSWER_BYTES_MAX or needed > self.left:
            rows = sum(rows for _, rows in sides)
            raise ResultTooLarge(
                f"the answer would hold {rows} more transactions of this posting and pass"
                " 4 MiB; post it in a smaller batch, or with less metadata"
            )
        self.left -= needed


def _full_bytes(posting: Posting, rows: int) -> int:
    """What a posting with so many rows takes at most in a full answer."""
    size = ROW_BYTES
    for text in (posting.description, posting.note, posting.meter_event_id):
        if text:
            size += len(text.encode())
    for pairs in (posting.metadata, posting.source):
        if pairs:
            for key, value in pairs.items():
                size += len(key.encode()) + len(value.encode()) + 8
    return rows * size + ROW_BYTES


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
    is_brief: bool = False  #: What the command says of its answer.


#: What became of a command that was not refused.
Outcome = Posted | WalletView | LimitView | int


def wanted(asked: Iterable[Asked]) -> Wanted:
    """What has to be loaded to decide these."""
    wants, postings = Wants(), []
    for one in asked:
        one.want(wants)
        if isinstance(one, Command):
            postings.append(one)
    return Wanted(
        wallets=frozenset(wants.wallets),
        keys=frozenset(wants.keys),
        meters=frozenset(wants.meters),
        subscriptions=frozenset(wants.subscriptions),
        originals=frozenset(wants.originals),
        grants=frozenset(wants.grants | wants.revised),
        holds=frozenset(wants.holds),
        dimensions=lambda loaded: _dimensions(postings, loaded),
        limited=frozenset(wants.limited),
        revised=frozenset(wants.revised),
        receipts=frozenset(wants.receipts),
        canceled=frozenset(wants.canceled),
        returning=frozenset(wants.returning),
        unpaid=frozenset(wants.unpaid),
    )


def _dimensions(commands: Sequence[Command], loaded: Loaded) -> Iterator[tuple[int, Dimension]]:
    """Under which dimensions, of which wallets, the commands may write; some more than once."""
    for wallet in loaded.wallets.values():
        if wallet_moves.expirations(wallet, wallet.time(loaded.clock)):
            yield wallet.number, EXPIRY
        for dimension in {settled(event) for event in wallet.unpaid.values()}:
            yield wallet.number, dimension
    for wallet_number in {wallet_number for wallet_number, _ in loaded.payments}:
        yield wallet_number, CANCELED
    for command in commands:
        found = loaded.wallets.get(command.wallet_id)
        if found is not None:
            yield from command.operation.dimensions(found, loaded)


class Batch:
    """Decides commands one after the other, each upon what the ones before it left."""

    def __init__(
        self, loaded: Loaded, backdating_ms_max: int, returned_ms: int = RETURNED_MS
    ) -> None:
        self._loaded = loaded
        self._journal = Journal(loaded)
        self._known = self._journal.references
        self._backdating_ms_max = backdating_ms_max
        self._returned_ms = returned_ms
        self._done: dict[tuple[int, str], tuple[Posting, Dimension | None]] = {
            place: (posting, self._journal.dimension_of(posting))
            for place, posting in loaded.postings.items()
        }

    @property
    def changes(self) -> Changes:
        """What is to be written."""
        return self._journal.changes

    @property
    def unfinished(self) -> set[str]:
        """Ids of wallets in which a canceled event is still to be returned."""
        return self._journal.unfinished

    def decide(self, asked: Asked, budget: Budget) -> Outcome:
        """What becomes of it, or its Refusal with nothing changed."""
        return _VERBS[type(asked)](self, asked, budget)

    def post(self, command: Command, budget: Budget) -> Posted:
        """One posting."""
        operation = command.operation
        wallet = self._wallet(command)
        amount = operation.units(wallet.scale)
        known = self._done.get((wallet.number, command.idempotency_key))
        if known is not None:
            return self._replayed(wallet, command, amount, known, budget)
        case = self._case(wallet, command, amount)
        if operation.receiver_id is not None:
            receiver = self._posted_to(operation.receiver_id, command.livemode)
            if receiver is not None:
                received_at = receiver.time(self._loaded.clock)
                case = case._replace(receiver=receiver, received_at=received_at)
        spending.validate(case)
        if command.validate_only:
            receiver = case.receiver and case.receiver.copy()
            case = case._replace(wallet=wallet.copy(), receiver=receiver)
        if case.receiver is None and not case.wallet.overdraft_used:
            return self._post(case, budget)
        with ExitStack() as repaid:
            for one in (case.wallet, case.receiver):
                if one is not None:
                    now = one.time(self._loaded.clock)
                    due = self._journal.repaid(one, now, dry=command.validate_only)
                    repaid.enter_context(due)
            return self._post(case, budget)

    def _case(self, wallet: Wallet, command: Command, amount: int | None = None) -> Case:
        now = wallet.time(self._loaded.clock)
        known, backdating, returned = self._known, self._backdating_ms_max, self._returned_ms
        return Case(command, wallet, amount, now, known, backdating, returned)

    def _post(self, case: Case, budget: Budget) -> Posted:
        """A new posting on the wallet as it is by now, and in the other wallet of a transfer."""
        command, wallet, dry = case.command, case.wallet, case.command.validate_only
        journal, decision = self._journal, spending.decide(case)
        posting = _posting(case, decision)
        if decision.is_done:
            return self._answer(command, wallet, posting, None, decision.event, replayed=True)
        if wallet.limits and (decision.spends or decision.hold is not None):
            spends, frees = decision.spends, decision.frees
            journal.limits.require(wallet, spends, decision.dimension, now=case.now, frees=frees)
        sides = [(wallet, posting, decision, case.now)]
        if decision.received is not None and case.receiver is not None:
            arriving = _arriving(case.receiver, posting, decision.received)
            sides.append((case.receiver, arriving, decision.received, case.received_at))
        if command.operation.has_rows_answered:
            answered = [(one, len(decided.moves)) for _, one, decided, _ in sides]
            budget.spend(answered, is_brief=command.is_brief)
        for one, its_posting, its_decision, now in sides:
            journal.expire(one, now, dry=dry)
            journal.write(one, its_posting, its_decision, now, dry=dry)
        dimension = decision.dimension if decision.moves else None
        if not dry:
            self._done[wallet.number, command.idempotency_key] = posting, dimension
        event = decision.event
        if event is not None:
            event = self._known.events.get((wallet.number, event.number or posting.number))
        for one, _, _, now in sides:
            journal.settle(one, now, dry=dry)
        answer = self._answer(command, wallet, posting, dimension, event)
        for receiver, arriving, arrived, _ in sides[1:]:
            if not dry:
                posting.linked = arriving.wallet, arriving.number
                arriving.linked = posting.wallet, posting.number
                self._loaded.linked[posting.linked] = arriving
            received = self._answer(command, receiver, arriving, arrived.dimension)
            answer = answer._replace(received=received)
        return answer

    def _replayed(
        self,
        wallet: Wallet,
        command: Command,
        amount: int | None,
        known: tuple[Posting, Dimension | None],
        budget: Budget,
    ) -> Posted:
        """The answer of what is there under the command's key, as it is by now."""
        posting, dimension = known
        replay.check(command, amount, posting, dimension)
        operation = command.operation
        receiver = other = None
        if posting.linked is not None and operation.receiver_id is not None:
            other = self._loaded.linked[posting.linked]
            receiver = self._loaded.wallets[operation.receiver_id]
        if operation.has_rows_answered:
            sides = [posting] if other is None else [posting, other]
            answered = [(side, len(side.rows)) for side in sides]
            budget.spend(answered, is_brief=command.is_brief)
        event = operation.event(wallet, self._known.events)
        answer = self._answer(command, wallet, posting, dimension, event, replayed=True)
        if receiver is None or other is None:
            return answer
        received = self._answer(command, receiver, other, RECEIVED, replayed=True)
        return answer._replace(received=received)

    def _answer(
        self,
        command: Command,
        wallet: Wallet,
        posting: Posting,
        dimension: Dimension | None,
        event: MeterEvent | None = None,
        *,
        replayed: bool = False,
    ) -> Posted:
        """The posting with the wallet, and what it was about, as they are by now."""
        hold = held_for = None
        said = NO_ANNOTATION
        if posting.hold is not None:
            hold = wallet.holds[posting.hold]
            held_for = self._loaded.dimensions[wallet.number, hold.dimension]
            said = self._loaded.annotations[wallet.number, hold.number]
        if event is not None and event.return_below is not None:
            self.unfinished.add(wallet.id)
        seen = view(wallet, self._loaded.clock)
        return Posted(
            posting,
            dimension,
            seen,
            replayed,
            command.validate_only,
            hold,
            held_for,
            None,
            event,
            said,
            command.is_brief,
        )

    def change_wallet(self, change: WalletChange, _: Budget) -> WalletView:
        """New terms of a wallet; expirations due come first.

        Under a key that has it already nothing changes, here as of a grant.
        """
        wallet, terms, before = self._made_by(change)
        if before is None:
            self._change_wallet(wallet, change)
            self._bind(wallet, change, terms)
        return view(wallet, self._loaded.clock)

    def _change_wallet(self, wallet: Wallet, change: WalletChange) -> None:
        limit = wallet.overdraft_limit
        if change.overdraft_limit is not None:
            limit = money.parse(change.overdraft_limit, wallet.scale, field="overdraft_limit")
            if limit < 0:
                raise InvalidField("overdraft_limit is below 0", param="overdraft_limit")
        _require_not_closed(wallet)
        metadata = merged(wallet.metadata, change.metadata)
        now = wallet.time(self._loaded.clock)
        with self._journal.repaid(wallet, now):
            if change.status is Status.CLOSED:
                self._check_closing(wallet, now, cancel_unpaid=change.cancel_unpaid)
            self._journal.expire(wallet, now)
        if change.status is Status.CLOSED:
            for event in list(wallet.unpaid.values()):
                self._return(wallet, event, now)
        wallet.overdraft_limit, wallet.metadata = limit, metadata
        wallet.status = change.status or wallet.status
        wallet.updated_at = now
        self.changes.terms[wallet.number] = wallet
        self._journal.settle(wallet, now)

    def change_grant(self, change: GrantChange, _: Budget) -> WalletView:
        """New terms of a grant. What leaves them as they are writes nothing."""
        wallet, terms, before = self._made_by(change)
        if before is None:
            self._change_grant(wallet, change)
            self._bind(wallet, change, terms)
        return view(wallet, self._loaded.clock)

    def _change_grant(self, wallet: Wallet, change: GrantChange) -> None:
        _require_not_closed(wallet)
        journal, grant = self._journal, named_grant(wallet, change.id, param="id")
        now = wallet.time(self._loaded.clock)
        terms = changed(grant, change, now=now)
        words = journal.words(wallet, grant)
        metadata = merged(words, change.metadata)
        if terms != grant.terms() or metadata != words:
            with journal.repaid(wallet, now):
                journal.expire(wallet, now)
            journal.revise(wallet, grant, terms, metadata, now, by=change.changed_by)
            journal.moved(wallet, now)
            journal.settle(wallet, now)

    def set_limit(self, change: SetLimit, _: Budget) -> LimitView:
        """A spend limit made or changed. What is so already changes nothing.

        Under a key that has it already: the limit as it is by now, or was shown last.
        """
        wallet, terms, before = self._made_by(change)
        if before is not None:
            return self._limit_of(wallet, before)
        _require_not_closed(wallet)
        now = wallet.time(self._loaded.clock)
        seen, has_changed = self._journal.limits.set(wallet, change, now)
        if has_changed:
            self._journal.touch(wallet)
        self._bind_limit(wallet, change, terms, seen)
        return seen

    def drop_limit(self, change: DropLimit, _: Budget) -> LimitView:
        """A spend limit dropped, as it was shown last, under a key that has it already too."""
        wallet, terms, before = self._made_by(change)
        if before is not None:
            return self._limit_of(wallet, before)
        _require_not_closed(wallet)
        now = wallet.time(self._loaded.clock)
        seen = self._journal.limits.drop(wallet, change, now)
        self._journal.touch(wallet)
        gone = DroppedLimit(seen.limit, seen.spent, seen.held, seen.resets_at, now)
        self.changes.dropped[wallet.number, seen.limit.number] = gone
        self._bind_limit(wallet, change, terms, seen)
        return seen

    def _bind_limit(
        self, wallet: Wallet, change: Change, terms: Mapping[str, object], seen: LimitView
    ) -> None:
        id_ = ids.compose("spl", wallet.number, seen.limit.number)
        self._bind(wallet, change, terms, spend_limit_id=id_)

    def _limit_of(self, wallet: Wallet, posting: Posting) -> LimitView:
        """The limit that a change under a key set or dropped."""
        place = ids.resolve("spl", posting.source["spend_limit_id"])
        assert place is not None
        for limit in wallet.limits:
            if (wallet.number, limit.number) == place:
                now = wallet.time(self._loaded.clock)
                return self._journal.limits.seen(wallet, limit, now)
        gone = self.changes.dropped.get(place) or self._loaded.dropped[place]
        return LimitView(
            *(gone.limit, wallet.id, wallet.number, wallet.scale),
            *(gone.spent, gone.held, gone.resets_at),
        )

    def _made_by(self, change: Change) -> tuple[Wallet, Mapping[str, object], Posting | None]:
        """The wallet, the change's terms, and the posting that made this very change under its key.

        No posting: it is yet to be made. Raises NotFound, InvalidField, IdempotencyKeyReused.
        """
        wallet = self._wallet(change)
        terms = present(change.terms(wallet.scale))
        known = None
        if change.idempotency_key is not None:
            known = self._done.get((wallet.number, change.idempotency_key))
        if known is None:
            return wallet, terms, None
        replay.check_change(change.code, terms, known[0])
        return wallet, terms, known[0]

    def _bind(
        self, wallet: Wallet, change: Change, terms: Mapping[str, object], **source: str
    ) -> None:
        """Keep the change's key, if it has one: by a posting without rows, and without a time."""
        if change.idempotency_key is None:
            return
        posting = replace(
            own(wallet, change.code),
            idempotency_key=change.idempotency_key,
            posted_by=change.changed_by,
            terms=terms,
            source=source,
        )
        self._journal.number(wallet, posting)
        self._done[wallet.number, change.idempotency_key] = posting, None

    def sweep(self, sweep: Sweep, _: Budget) -> int:
        """Write down what is over in the wallet, and return more of a canceled event.

        How many expirations, holds and rows that were.
        """
        wallet = self._posted_to(sweep.wallet_id, None)
        if wallet is None:
            return 0
        now = wallet.time(self._loaded.clock)
        if sweep.grace_ms and _is_recent(wallet, now - sweep.grace_ms, now):
            return 0
        with self._journal.repaid(wallet, now) as repaid:
            lapsed = len(wallet.lapsed(now))
            written = self._journal.expire(wallet, now) + lapsed + repaid
        for event in self._returning(wallet)[:1]:
            written += self._return(wallet, event, now)
            self._journal.settle(wallet, now)
        return written

    def _return(self, wallet: Wallet, event: MeterEvent, now: int) -> int:
        """Cancel the event, or go on with one that is canceled; how many rows that took.

        Raises OutOfRange, with nothing changed.
        """
        decision = give_event_back(self._case(wallet, _OWN), event)
        wallet_moves.check_range(wallet, decision.moves, now, quantity=0)
        self._journal.expire(wallet, now)
        posting = replace(own(wallet, RETURN, event.identifier), source=decision.source)
        self._journal.write(wallet, posting, decision, now)
        return len(posting.rows)

    def _returning(self, wallet: Wallet) -> list[MeterEvent]:
        """Canceled events of which something is still to be returned, oldest first."""
        places = sorted(place for place in self._loaded.events if place[0] == wallet.number)
        found = [self._known.events[place] for place in places]
        return [event for event in found if event.return_below is not None]

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
            payments = self._known.payments(wallet, event)
            if not payments.are_all or any(outstanding(event, payments)):
                raise InvalidField(
                    f"meter event {echo(event.identifier)} has drawn credit that would come back:"
                    " cancel it first",
                    param="cancel_unpaid",
                )

    def _wallet(self, asked: Command | Change) -> Wallet:
        wallet = self._posted_to(asked.wallet_id, asked.livemode)
        if wallet is None:
            raise NotFound(f"no wallet {echo(asked.wallet_id)}", param="wallet_id")
        return wallet

    def _posted_to(self, wallet_id: str, livemode: bool | None) -> Wallet | None:
        """The wallet, if there is one of this mode."""
        wallet = self._loaded.wallets.get(wallet_id)
        return None if wallet is None or livemode not in (None, wallet.livemode) else wallet


#: The method for each kind of request.
_VERBS: dict[type, Callable[[Batch, Any, Budget], Outcome]] = {
    Command: Batch.post,
    WalletChange: Batch.change_wallet,
    GrantChange: Batch.change_grant,
    SetLimit: Batch.set_limit,
    DropLimit: Batch.drop_limit,
    Sweep: Batch.sweep,
}


def _require_not_closed(wallet: Wallet) -> None:
    if wallet.status is Status.CLOSED:
        raise WalletClosed("the wallet is closed")


def _is_recent(wallet: Wallet, before: int, now: int) -> bool:
    """Whether something in the wallet came due in between.

    A sweep would write it down too: an expiration leaves nothing behind that is due.
    """
    return (
        len(wallet.lapsed(now)) != len(wallet.lapsed(before))
        or wallet_moves.expirations(wallet, now) != wallet_moves.expirations(wallet, before)
        or repayments(wallet, now) != repayments(wallet, before)
    )


def _posting(case: Case, decision: Decision) -> Posting:
    command, words = case.command, decision.words or case.command
    terms = command.operation.terms(command)
    return Posting(
        case.wallet.number,
        0,
        command.idempotency_key,
        command.operation.code,
        case.amount,
        command.posted_by,
        words.description,
        command.note,
        words.metadata,
        decision.source,
        decision.meter_event_id,
        decision.quantities,
        decision.refund_of,
        None,
        present(terms) if terms else terms,
    )


def _arriving(receiver: Wallet, sent: Posting, decision: Decision) -> Posting:
    """A transfer's posting in the wallet that receives: the key is the sender's alone."""
    return replace(
        sent,
        wallet=receiver.number,
        idempotency_key=None,
        operation=RECEIVE,
        source=decision.source,
        terms={},
        rows=[],
    )
