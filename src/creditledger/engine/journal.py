"""The journal of a batch applies decisions to the wallets, and gathers the rows to write.

No I/O: it changes the loaded wallets, and the `Changes` that the store then writes.
"""

from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from creditledger.domain import overdraft, spend_limits, wallet_moves
from creditledger.domain.commands import (
    EXPIRE,
    SETTLE,
    Credited,
    Decision,
    EventPayments,
    Original,
    References,
)
from creditledger.domain.model import (
    Annotation,
    Category,
    Dimension,
    Grant,
    GrantTerms,
    Hold,
    MeterEvent,
    Posting,
    Receipt,
    Repayment,
    Row,
    Wallet,
    repayments,
)
from creditledger.domain.operations import hold as holds
from creditledger.domain.operations import meter_event as meter_events
from creditledger.domain.operations.grant import revise
from creditledger.domain.operations.refund import over_at_once
from creditledger.domain.spending import EXPIRY
from creditledger.domain.wallet_moves import Move
from creditledger.store import (
    PAYS_EVENT,
    Changes,
    CreditedReceipt,
    GrantPart,
    GrantRepayment,
    GrantRevision,
    Loaded,
)

_PROMOTIONAL = Category.PROMOTIONAL


@dataclass(slots=True)
class Journal:
    """The loaded state, which each posting changes, and the changes to write."""

    loaded: Loaded
    changes: Changes = field(default_factory=Changes)
    limits: spend_limits.Spending = field(init=False)
    references: References = field(init=False)
    #: Ids of wallets with canceled events of which more is to be returned than one posting can.
    unfinished: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        loaded = self.loaded
        self.limits = spend_limits.Spending(loaded.dimensions, self.changes.limits)
        self.references = References(
            meters=loaded.meters,
            inactive_meters=loaded.inactive_meters,
            subscriptions=loaded.subscriptions,
            originals={place: self._original(one) for place, one in loaded.originals.items()},
            credited={
                place: [Credited(*one) for one in grants]
                for place, grants in loaded.credited.items()
            },
            payers=loaded.payers,
            dimensions=loaded.dimensions,
            annotations=loaded.annotations,
            events=ChainMap(self.changes.events, loaded.events),
            payments=self._payments,
        )

    def dimension_of(self, posting: Posting) -> Dimension | None:
        """The dimension of the posting's rows; None without rows."""
        if not posting.rows:
            return None
        return self.loaded.dimensions[posting.wallet, posting.rows[0].dimension]

    def expire(self, wallet: Wallet, now: int, *, dry: bool = False) -> int:
        """Write down expirations and lapsed holds. Answers the number of expirations."""
        ended = wallet_moves.expirations(wallet, now)
        lapsed = holds.lapse(wallet, now) if wallet.holds else []
        if lapsed and not dry:
            for one in lapsed:
                self.changes.hold(wallet.number, None, one, now)
            # The wallet's time passes the deadline, so the lapse holds even if the clock goes back.
            self.moved(wallet, max(wallet.posted_at, *(one.deadline for one in lapsed)))
        if ended:
            self._write_expiry(wallet, ended, now, dry=dry)
        return len(ended)

    def _write_expiry(self, wallet: Wallet, moves: list[Move], now: int, *, dry: bool) -> None:
        """The ledger's own posting for what expired."""
        self.write(wallet, own(wallet, EXPIRE), Decision(moves, EXPIRY), now, dry=dry)

    def write(
        self, wallet: Wallet, posting: Posting, decision: Decision, now: int, *, dry: bool = False
    ) -> None:
        """Apply the decision and write the posting. `dry`: on a copy of the wallet, unwritten.

        Expirations that are due have to be written first.
        """
        moves, before, after = decision.moves, decision.held, decision.hold
        if not dry:
            drawn, given = self.changes.drawn, self.changes.given
            for move in moves:
                grant = move.grant
                # One that this posting makes has no number yet.
                if grant is not None and not move.fresh and grant.number:
                    place = wallet.number, grant.number
                    if place not in drawn and place not in given:
                        drawn[place] = grant, grant.remaining > 0
            self.number(wallet, posting)
        if after is not None:
            after = self._book_hold(wallet, posting, decision, after, now, dry=dry)
        if decision.revised is not None and decision.terms is not None:
            self._void(wallet, decision.revised, decision.terms, posting, now, dry=dry)
        number = posting.number
        if moves:
            usage = sum(posting.quantities) if decision.dimension.has_usage else None
            where = 0 if dry else self._dimension_number(wallet.number, decision.dimension)
            posting.rows = wallet_moves.append(
                wallet, moves, posting=number, dimension=where, quantity=usage, now=now
            )
        else:
            wallet.posted_at = now
        if not dry:
            self._record(wallet, posting, decision, now)
        if decision.event is not None:
            self._owe(wallet, decision.event, number, dry=dry)
        if decision.receipt is not None and not dry:
            self._credit(wallet, decision.receipt, posting)
        if decision.returned:
            over = over_at_once(moves, now)
            if over:
                self._write_expiry(wallet, over, now, dry=dry)
        if before is not None and after is not None and after.ended is not None:
            self._give_up(wallet, before, moves, now, dry=dry)

    @contextmanager
    def repaid(self, wallet: Wallet, now: int, *, dry: bool = False) -> Iterator[int]:
        """Apply the repayments due by `now`. An exception in the `with` block undoes them.

        Answers the number of repayments.
        """
        due, sequence = repayments(wallet, now), wallet.sequence
        if not due:
            yield 0
            return
        line, payers = (wallet.repaid_to, wallet.forgiven), self._payers(wallet)
        known = len(payers)
        self._repay(wallet, due)
        try:
            yield len(due)
        except BaseException:
            wallet_moves.undo(wallet, due)
            wallet.repaid_to, wallet.forgiven = line
            del payers[known:]
            raise
        if not dry:
            self._note_repaid(wallet, due, payers[known : known + len(due)], sequence, now)
        else:
            del payers[known:]

    def _payers(self, wallet: Wallet) -> list[overdraft.Payer]:
        """The grants that paid the wallet's overdrafts back, loaded or of this batch."""
        return self.loaded.payers.setdefault(wallet.number, [])

    def _repay(self, wallet: Wallet, due: list[Repayment]) -> list[overdraft.Payer]:
        """Carry out what grants pay back, and find out of which draws."""
        wallet_moves.repay(wallet, due)
        paid = [overdraft.pay(wallet, one.grant.number, one.amount, None) for one in due]
        self._payers(wallet).extend(paid)
        return paid

    def _note_repaid(
        self,
        wallet: Wallet,
        due: list[Repayment],
        payers: list[overdraft.Payer],
        sequence: int,
        now: int,
    ) -> None:
        """Write down what grants have paid back: the wallet has moved, without a row."""
        self.changes.payers += payers
        self.changes.overdrawn[wallet.number] = wallet
        for moment, grant, start, amount in due:
            place = wallet.number, grant.number
            paid = GrantRepayment(*place, start, amount, moment, now, sequence)
            self.changes.repaid[place] = grant
            self.changes.repayments.append(paid)
        self.moved(wallet, now)

    def settle(self, wallet: Wallet, now: int, *, dry: bool = False) -> None:
        """Pay the wallet's unpaid events with available credit. Every write ends with this."""
        if not wallet.unpaid:
            return
        for decision in meter_events.settle(wallet, now=now):
            posting = own(wallet, SETTLE, decision.meter_event_id)
            self.write(wallet, posting, decision, now, dry=dry)

    def number(self, wallet: Wallet, posting: Posting) -> None:
        """Give the posting its number, and write it."""
        wallet.last_posting += 1
        posting.number = wallet.last_posting
        wallet.revision += 1
        self.changes.postings.append(posting)
        self.changes.touched[wallet.number] = wallet

    def moved(self, wallet: Wallet, at: int) -> None:
        """Record a change without a row: the wallet's time becomes `at`, its revision grows."""
        wallet.posted_at = at
        self.touch(wallet)

    def touch(self, wallet: Wallet) -> None:
        """Raise the wallet's revision, so that servers that keep it in memory see the change."""
        wallet.revision += 1
        self.changes.touched[wallet.number] = wallet

    def _record(self, wallet: Wallet, posting: Posting, decision: Decision, now: int) -> None:
        """Write down the posting's rows, and what they made of grants, overdraft and sums."""
        changes, moves, dimension = self.changes, decision.moves, decision.dimension
        for move, row in zip(moves, posting.rows, strict=True):
            grant = move.grant
            if grant is None:
                self._overdraw(wallet, move, row)
            elif move.fresh:
                changes.given[wallet.number, grant.number] = grant
                if grant.overdraft_paid:
                    self._pay(wallet, grant.number, grant.overdraft_paid, row.sequence)
            elif move.paid is not None:
                part = GrantPart(wallet.number, row.sequence, grant.number, move.paid)
                changes.parts.append(part)
                if (wallet.number, grant.number) not in changes.given:
                    changes.grown[wallet.number, grant.number] = grant
                if move.paid:
                    self._pay(wallet, grant.number, move.paid, row.sequence)
            if move.overdraft and grant is not None and grant.category is _PROMOTIONAL:
                changes.overdraft_returns.append((wallet.number, row.sequence))
        changes.rows += posting.rows
        if wallet.limits:
            if decision.returned:
                self.limits.give_back(wallet, dimension, decision.returned, now=now)
            else:
                self.limits.count(wallet, posting, dimension, now=now)
        if decision.refund_of is not None:
            place = wallet.number, decision.refund_of
            original = self.references.originals[place]
            returned = original.refunded + sum(move.amount for move in moves)
            self.references.originals[place] = replace(original, refunded=returned)

    def _book_hold(
        self,
        wallet: Wallet,
        posting: Posting,
        decision: Decision,
        after: Hold,
        now: int,
        *,
        dry: bool,
    ) -> Hold:
        """Make or change the hold, before its moves: what they draw is no longer set aside."""
        if not after.number and not dry:
            number = self._dimension_number(wallet.number, decision.dimension)
            self.loaded.dimensions[wallet.number, number] = decision.dimension
            after = replace(after, number=posting.number, dimension=number)
            said = Annotation(posting.description, posting.metadata)
            self.loaded.annotations[wallet.number, posting.number] = said
        posting.hold = after.number
        holds.book(wallet, after)
        if not dry:
            if wallet.limits:
                self.limits.hold(wallet, decision.held, after)
            self.changes.hold(wallet.number, posting.number, after, now)
        return after

    def _give_up(
        self, wallet: Wallet, before: Hold, moves: list[Move], now: int, *, dry: bool
    ) -> None:
        """Write down what leaves grants that ended meanwhile, as the hold has ended."""
        repaid, given_up = holds.given_up(wallet, before, moves, now)
        if repaid and dry:
            wallet_moves.repay(wallet, repaid)
        elif repaid:
            payers = self._repay(wallet, repaid)
            self._note_repaid(wallet, repaid, payers, wallet.sequence, now)
        if given_up:
            self._write_expiry(wallet, given_up, now, dry=dry)

    def _void(
        self,
        wallet: Wallet,
        voided: Grant,
        terms: GrantTerms,
        posting: Posting,
        now: int,
        *,
        dry: bool,
    ) -> None:
        """Give the grant its last terms, before what is left of it leaves."""
        if dry:
            revise(wallet, voided, terms)
            return
        words, by = self.words(wallet, voided), posting.posted_by
        self.revise(wallet, voided, terms, words, now, by=by, posting=posting.number)
        # What the grant credited may be credited anew.
        for (number, _), others in self.references.credited.items():
            if number == wallet.number:
                others[:] = [one for one in others if one.grant != voided.number]
        place = wallet.number, voided.number
        if place in self.changes.given:
            self.changes.receipts.pop(place, None)
        else:
            self.changes.receipts[place] = None

    def _credit(self, wallet: Wallet, receipt: Receipt, posting: Posting) -> None:
        """Write down that the posting's grant credits the receipt."""
        made = posting.rows[0].sequence
        others = self.references.credited.setdefault((wallet.number, receipt), [])
        copy = made if others else 0
        others.append(Credited(made, posting.number))
        credited = CreditedReceipt(wallet.number, made, *receipt, copy)
        self.changes.receipts[wallet.number, made] = credited

    def _owe(self, wallet: Wallet, event: MeterEvent, posting: int, *, dry: bool) -> None:
        """Write down what a meter event is from now on; the posting is its number if it is new."""
        if dry:
            return
        after = event if event.number else replace(event, number=posting)
        meter_events.book(wallet, after)
        self.changes.events[wallet.number, after.number] = after

    def _original(self, posting: Posting) -> Original:
        """A posting whose draws may be returned, as it was loaded."""
        loaded = self.loaded
        return Original(
            rows=posting.rows,
            dimension=self.dimension_of(posting),
            refunded=loaded.refunded.get((posting.wallet, posting.number), 0),
            meter_event_id=posting.meter_event_id if posting.operation in PAYS_EVENT else None,
            overdrafts={
                row.sequence: drawn
                for row in posting.rows
                if row.grant is None and (drawn := self._overdraft(row)) is not None
            },
        )

    def _overdraft(self, row: Row) -> overdraft.OverdraftDraw | None:
        """What a row drew beyond the grants, in this batch too."""
        place = row.wallet, row.sequence
        return self.changes.overdrafts.get(place) or self.loaded.overdrafts.get(place)

    def _payments(self, wallet: Wallet, event: MeterEvent) -> EventPayments:
        """What was drawn for the event, in this batch too."""
        known = self.loaded.payments.get((wallet.number, event.number))
        refunded, paid = Counter[int](), []
        for posting in self.changes.postings:
            if posting.wallet != wallet.number:
                continue
            if posting.refund_of is not None:
                refunded[posting.refund_of] += sum(row.amount for row in posting.rows)
            pays = posting.operation in PAYS_EVENT and posting.rows
            if pays and posting.meter_event_id == event.identifier:
                paid.append(posting)
        originals = []
        for posting in (*reversed(paid), *(known.postings if known else ())):
            one = self._original(posting)
            originals.append(replace(one, refunded=one.refunded + refunded[posting.number]))
        return EventPayments(originals, known is None or known.are_all)

    def _overdraw(self, wallet: Wallet, move: Move, row: Row) -> None:
        """Write down what a row drew beyond the grants, or gave back of that."""
        drawn = move.overdraft
        if drawn is None:
            drawn = overdraft.draw(wallet, row.sequence, -row.amount)
        else:
            overdraft.forgive(wallet, drawn, row.amount)
        self.changes.overdrafts[wallet.number, drawn.sequence] = drawn
        self.changes.overdrawn[wallet.number] = wallet

    def _pay(self, wallet: Wallet, grant: int, amount: int, row: int) -> None:
        """Write down which overdrafts the credit of a row paid back."""
        payer = overdraft.pay(wallet, grant, amount, row)
        self._payers(wallet).append(payer)
        self.changes.payers.append(payer)
        self.changes.overdrawn[wallet.number] = wallet

    def words(self, wallet: Wallet, grant: Grant) -> Mapping[str, str]:
        """The grant's metadata; until it is changed, that of the posting that gave it."""
        found = self.loaded.words.get((wallet.number, grant.number))
        if found is not None:
            return found
        # Given in this very batch.
        return next(
            posting.metadata
            for posting in self.changes.postings
            for row in posting.rows
            if (row.wallet, row.sequence) == (wallet.number, grant.number)
        )

    def revise(
        self,
        wallet: Wallet,
        grant: Grant,
        terms: GrantTerms,
        metadata: Mapping[str, str],
        now: int,
        *,
        by: int | None,
        posting: int | None = None,
    ) -> None:
        """Give a grant new terms and metadata, as `by` asks or the posting does."""
        place = wallet.number, grant.number
        became = self.changes.grant_revisions
        if not grant.revision:
            words, before = self.words(wallet, grant), grant.terms()
            first = GrantRevision(*place, 0, grant.created_at, None, None, before, words)
            became.append(first)
        revise(wallet, grant, terms)
        became.append(GrantRevision(*place, grant.revision, now, by, posting, terms, metadata))
        self.changes.revised[place] = grant
        self.loaded.words[place] = metadata

    def _dimension_number(self, wallet: int, dimension: Dimension) -> int:
        number = self.loaded.numbers.get((wallet, dimension))
        if number is None:
            number = self.loaded.next_dimension[wallet]
            self.loaded.next_dimension[wallet] = number + 1
            self.loaded.numbers[wallet, dimension] = number
            self.changes.dimensions.append((wallet, number, dimension))
        return number


def own(wallet: Wallet, operation: int, event: str | None = None) -> Posting:
    """A posting of the ledger's own: it has no key and nobody posted it."""
    return Posting(
        wallet=wallet.number,
        number=0,
        idempotency_key=None,
        operation=operation,
        amount=None,
        posted_by=None,
        description=None,
        note=None,
        metadata={},
        source={},
        meter_event_id=event,
        quantities=(),
        refund_of=None,
        hold=None,
        terms={},
    )
