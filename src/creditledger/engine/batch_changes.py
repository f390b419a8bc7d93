"""What a batch writes, put together posting by posting: rows, grants, terms, sums, ended holds.

`Writing` carries out what was decided, on the wallets and in `Changes`; `Deciding` is one. No I/O.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from creditledger.domain import clock, overdraft, spend_limits, wallet_moves
from creditledger.domain.commands import SETTLE, ReportEvent
from creditledger.domain.model import (
    RETURNED_MS,
    Category,
    Dimension,
    Grant,
    GrantTerms,
    MeterEvent,
    Posting,
    Repayment,
    Row,
    Wallet,
    repayments,
)
from creditledger.domain.operations import cancellation, settlement
from creditledger.domain.operations import grant as grant_rules
from creditledger.domain.operations import hold as hold_rules
from creditledger.domain.spending import Original
from creditledger.store import (
    PAYS_EVENT,
    SUMS,
    Changes,
    GrantPart,
    GrantRepayment,
    GrantRevision,
    Loaded,
)

_PROMOTIONAL = Category.PROMOTIONAL


@dataclass(slots=True)
class Writing:
    """What was loaded, moved on posting by posting, and what has to be written of it."""

    loaded: Loaded
    backdating_ms_max: int
    returned_ms: int = RETURNED_MS
    changes: Changes = field(default_factory=Changes)
    spending: spend_limits.Spending = field(init=False)
    #: Ids of wallets with canceled events of which more is to be returned than one posting can.
    unfinished: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.spending = spend_limits.Spending(self.loaded.dimensions, self.changes.limits)

    def _over(self, wallet: Wallet, now: int, *, write: bool = True) -> list[wallet_moves.Move]:
        """What expires, and holds whose deadline has passed: from now on they are ended."""
        ended = wallet_moves.expirations(wallet, now)
        lapsed = hold_rules.lapse(wallet, now) if wallet.holds else []
        if lapsed and write:
            for hold in lapsed:
                self.changes.hold(wallet.number, None, hold, now)
            # What was true at a deadline stays true, whatever the clock does next.
            self._moved(wallet, max(wallet.posted_at, *(hold.deadline for hold in lapsed)))
        return ended

    def _moved(self, wallet: Wallet, at: int) -> None:
        """The wallet has changed without a row: its time, and what others know of it."""
        wallet.posted_at = at
        wallet.revision += 1
        self.changes.touched[wallet.number] = wallet

    @contextmanager
    def _repaid(self, wallet: Wallet, now: int, *, write: bool = True) -> Iterator[int]:
        """Carry out what grants pay back by `now`; undone where what follows is refused.

        Answers how many repayments that were.
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
        if write:
            self._note_repaid(wallet, due, payers[known : known + len(due)], sequence, now)
        else:
            del payers[known:]

    def _payers(self, wallet: Wallet) -> list[overdraft.Payer]:
        """Who paid the wallet's overdrafts back, as far as that is read or written by now."""
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
        self._moved(wallet, now)

    def _report(
        self, wallet: Wallet, posting: Posting, operation: ReportEvent, at: int | None, now: int
    ) -> MeterEvent:
        """Write down the event that the posting reported, and what of it is unpaid."""
        assert posting.idempotency_key is not None
        assert posting.amount is not None
        reported = MeterEvent(
            number=posting.number,
            identifier=posting.idempotency_key,
            meter_id=operation.meter_id,
            subscription_id=operation.subscription_id,
            value=posting.amount,
            unpaid=posting.amount,
            happened_at=now if at is None else at,
            created_at=now,
            paid_at=None,
        )
        event = settlement.paid(reported, -sum(row.amount for row in posting.rows), now)
        self._owe(wallet, event)
        return event

    def _settle(self, wallet: Wallet, now: int, *, write: bool = True) -> None:
        """Pay what is available to the wallet's unpaid events: the end of whatever is written."""
        if not wallet.unpaid:
            return
        for moves, event in settlement.settle(wallet, now=now):
            if not write:
                wallet_moves.append(wallet, moves, posting=0, dimension=0, quantity=None, now=now)
                continue
            posting = own(wallet, SETTLE, event.identifier)
            self._write(wallet, posting, moves, settlement.dimension(event), None, now)
            self._owe(wallet, event)

    def _event(self, wallet: int, number: int) -> MeterEvent | None:
        """A meter event as it is by now."""
        place = wallet, number
        return self.changes.events.get(place) or self.loaded.events.get(place)

    def _payments(self, wallet: Wallet, event: MeterEvent) -> cancellation.Payments:
        """What was drawn for the event, in this batch too."""
        known = self.loaded.payments.get((wallet.number, event.number))
        own = [
            posting
            for posting in reversed(self.changes.postings)
            if posting.wallet == wallet.number
            and posting.operation in PAYS_EVENT
            and posting.meter_event_id == event.identifier
            and posting.rows
        ]
        refunded = Counter[int]()
        for posting in self.changes.postings:
            if posting.wallet == wallet.number and posting.refund_of is not None:
                refunded[posting.refund_of] += sum(row.amount for row in posting.rows)
        originals = [
            Original(
                rows=posting.rows,
                dimension=None,
                refunded=self.loaded.refunded.get((wallet.number, posting.number), 0)
                + refunded[posting.number],
                overdrafts={
                    row.sequence: self.changes.overdrafts.get((wallet.number, row.sequence))
                    or self.loaded.overdrafts[wallet.number, row.sequence]
                    for row in posting.rows
                    if row.grant is None
                },
            )
            for posting in (*own, *(known.postings if known else ()))
        ]
        return cancellation.Payments(originals, known is None or known.are_all)

    def _owe(self, wallet: Wallet, event: MeterEvent) -> None:
        settlement.book(wallet, event)
        self.changes.events[wallet.number, event.number] = event

    def _write(
        self,
        wallet: Wallet,
        posting: Posting,
        moves: list[wallet_moves.Move],
        dimension: Dimension,
        quantity: int | None,
        now: int,
        *,
        returned: Collection[tuple[Row, int]] = (),
    ) -> None:
        """Carry the moves out and write the posting; `returned`: rows whose draws they return."""
        changes = self.changes
        drawn, given = changes.drawn, changes.given
        for move in moves:
            grant = move.grant
            # One that this posting makes has no number yet.
            if grant is not None and not move.fresh and grant.number:
                place = wallet.number, grant.number
                if place not in drawn and place not in given:
                    drawn[place] = grant, grant.remaining > 0
        self._number(wallet, posting)
        if moves:
            posting.rows = wallet_moves.append(
                wallet,
                moves,
                posting=posting.number,
                dimension=self._dimension_number(wallet.number, dimension),
                quantity=quantity,
                now=now,
            )
        else:
            wallet.posted_at = now
        for move, row in zip(moves, posting.rows, strict=True):
            grant = move.grant
            if grant is None:
                self._overdraw(wallet, move, row)
            elif move.fresh:
                given[wallet.number, grant.number] = grant
                if grant.overdraft_paid:
                    self._pay(wallet, grant.number, grant.overdraft_paid, row.sequence)
            elif move.paid is not None:
                part = GrantPart(wallet.number, row.sequence, grant.number, move.paid)
                changes.parts.append(part)
                if (wallet.number, grant.number) not in given:
                    changes.grown[wallet.number, grant.number] = grant
                if move.paid:
                    self._pay(wallet, grant.number, move.paid, row.sequence)
            if move.overdraft and grant is not None and grant.category is _PROMOTIONAL:
                changes.overdraft_returns.append((wallet.number, row.sequence))
        changes.rows += posting.rows
        if wallet.limits:
            if returned:
                self.spending.give_back(wallet, dimension, returned, now=now)
            else:
                self.spending.count(wallet, posting, dimension, now=now)
        self._roll_up(posting, moves, quantity or 0)

    def _number(self, wallet: Wallet, posting: Posting) -> None:
        """Give the posting its number, and write it."""
        wallet.last_posting += 1
        posting.number = wallet.last_posting
        wallet.revision += 1
        self.changes.postings.append(posting)
        self.changes.touched[wallet.number] = wallet

    def _overdraw(self, wallet: Wallet, move: wallet_moves.Move, row: Row) -> None:
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

    def _words(self, wallet: Wallet, grant: Grant) -> Mapping[str, str]:
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

    def _revise(
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
        place = wallet.number, grant.number
        became = self.changes.grant_revisions
        if not grant.revision:
            words, before = self._words(wallet, grant), grant.terms()
            first = GrantRevision(*place, 0, grant.created_at, None, None, before, words)
            became.append(first)
        grant_rules.revise(wallet, grant, terms)
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

    def _roll_up(self, posting: Posting, moves: list[wallet_moves.Move], quantity: int) -> None:
        quantities, first = posting.quantities, 1
        for row, move in zip(posting.rows, moves, strict=True):
            amount, grant, effective_at = move.amount, move.grant, move.effective_at
            written = row.created_at // clock.QUARTER
            happened = written if effective_at is None else effective_at // clock.QUARTER
            sums = self._sums(row, happened)
            sums[0] += 1
            sums[1] += amount
            if grant is not None and grant.category is _PROMOTIONAL and not move.overdraft:
                sums[2] += amount
            for place, one in enumerate(quantities, 3):
                sums[place] += one
            sums[12] += first
            if written != happened:
                sums = self._sums(row, written)
            sums[9] += 1
            sums[10] += amount
            sums[11] += quantity
            # Of the posting, so counted with its first row.
            quantities, quantity, first = (), 0, 0

    def _sums(self, row: Row, quarter: int) -> list[int]:
        place = row.wallet, quarter, row.dimension
        sums = self.changes.rollups.get(place)
        if sums is None:
            sums = self.changes.rollups[place] = [0] * SUMS
        return sums


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
