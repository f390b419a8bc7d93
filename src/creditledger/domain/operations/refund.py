"""Refund: return what a posting consumed. Meter events share its functions that return draws.

Returned credit is never better than the spent credit. It goes back to the grant that was drawn on.
If that grant has ended, it comes back as a new grant of like terms.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from creditledger.domain import clock, ids, money, overdraft
from creditledger.domain.arrivals import Arrivals, words_digest
from creditledger.domain.commands import (
    Case,
    Command,
    Decision,
    Named,
    Operation,
    Original,
    Wants,
    add_place,
)
from creditledger.domain.errors import NotFound, NotRefundable, RefundTooLarge, echo
from creditledger.domain.model import (
    Category,
    Dimension,
    Grant,
    GrantScope,
    Kind,
    Origin,
    Row,
    Type,
    Wallet,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer
from creditledger.domain.spending import EXPIRY, USAGE, new_grant
from creditledger.domain.wallet_moves import Move

_REFUND, _ADJUSTMENT = Kind.REFUND.value, Type.ADJUSTMENT.value


@dataclass(frozen=True, slots=True)
class Refund(Operation):
    """Return what a posting consumed, all that is left of it if amount is None."""

    code, word = 4, "refund"
    posting_id: str
    amount: str | None = None
    force: bool = False  #: Admin keys only: give back what voided grants paid, too.

    @property
    def is_forced(self) -> bool:
        """Whether it gives back what voided grants paid."""
        return self.force

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The posting with its rows."""
        add_place(wants.originals, "pst", self.posting_id)

    def dimensions(self, wallet: Wallet, named: Named) -> Iterator[tuple[int, Dimension]]:
        """The posting's dimension as a refund, and that of credit that expires at its return."""
        yield wallet.number, EXPIRY
        place = ids.resolve("pst", self.posting_id)
        posting = named.originals.get(place) if place else None
        if posting is not None and posting.rows:
            original = named.dimensions[wallet.number, posting.rows[0].dimension]
            yield wallet.number, _returned(original)

    def terms(self, command: Command) -> dict[str, object]:
        """All but the amount."""
        return {
            "effective_at": command.effective_at,
            "posting_id": self.posting_id,
            "force": self.force or None,
        }

    def check(self, case: Case) -> None:
        """The posting is there."""
        self._named(case)

    def _named(self, case: Case) -> tuple[int, Original]:
        place = ids.resolve("pst", self.posting_id)
        known = case.known.originals
        original = known.get(place) if place and place[0] == case.wallet.number else None
        if place is None or original is None:
            raise NotFound(f"no posting {echo(self.posting_id)} in this wallet", param="posting_id")
        return place[1], original

    def decide(self, case: Case) -> Decision:
        """Give back the newest draws that are left. Raises NotRefundable, RefundTooLarge."""
        number, original = self._named(case)
        dimension = original.dimension
        if dimension is None or dimension.kind != USAGE:
            raise NotRefundable("only a consumption can be refunded", param="posting_id")
        if _is_canceled(case, original):
            raise NotRefundable(
                "the posting paid for a meter event that was canceled", param="posting_id"
            )
        left = -sum(row.amount for row in original.rows) - original.refunded
        if left == 0:
            raise NotRefundable("all of the posting is refunded", param="posting_id")
        if case.amount is not None and case.amount > left:
            most = money.text(left, case.wallet.scale)
            raise RefundTooLarge(
                f"only {most} of the posting is left to refund",
                param="amount",
                refundable=most,
            )
        draws = unreturned(original, left if case.amount is None else case.amount)
        returned = give_back(case, draws, force=self.force)
        moves = [move for _, some in returned for move in some]
        return Decision(
            moves,
            _returned(dimension),
            refund_of=number,
            # All rows of a posting have the same time, so the first row stands for all.
            returned=[(original.rows[0], sum(move.amount for move in moves))],
        )


def _returned(original: Dimension) -> Dimension:
    """The dimension of rows that return rows of `original`."""
    return original._replace(kind=_REFUND, type=_ADJUSTMENT, meter_id=None, subscription_id=None)


def _is_canceled(case: Case, original: Original) -> bool:
    """Whether the posting paid for a meter event that is canceled."""
    return original.meter_event_id is not None and any(
        event.canceled_at is not None
        for (wallet, _), event in case.known.events.items()
        if (wallet, event.identifier) == (case.wallet.number, original.meter_event_id)
    )


class Draw(NamedTuple):
    """Part of what a row drew, to be returned."""

    row: Row
    amount: int  #: > 0
    returned: int  #: Amount of the row that earlier refunds returned.
    overdraft: OverdraftDraw | None  #: Of a row that drew beyond the grants.


def unreturned(original: Original, amount: int) -> Iterator[Draw]:
    """The newest `amount` of a posting's draws, newest first, without those already returned."""
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
    case: Case, draws: Iterable[Draw], *, force: bool
) -> Iterator[tuple[Draw, list[Move]]]:
    """Decide the return of these draws. Yields each draw with its moves, in order, not yet applied.

    Raises NotRefundable for a draw on a voided grant, unless `force`.
    """
    back = _GivingBack(case, force=force)
    payers = case.known.payers.get(case.wallet.number, ())
    for one in draws:
        back.moves = []
        if one.overdraft is None:
            assert one.row.grant is not None
            back.to_grant(case.wallet.grants[one.row.grant], one.amount)
        else:
            back.to_overdraft(one, one.overdraft, payers)
        yield one, back.moves


class _Terms(NamedTuple):
    """The terms of a new grant for credit that the original grant cannot take back."""

    category: Category
    priority: int
    scope: GrantScope | None
    expires_at: int | None
    returned: bool


class _GivingBack:
    """What one posting gives back."""

    def __init__(self, case: Case, *, force: bool) -> None:
        self.moves: list[Move] = []  #: Of one draw.
        self._wallet, self._now, self._returned_ms = case.wallet, case.now, case.returned_ms
        self._effective_at = case.command.effective_at
        self._words = words_digest(case.command.metadata)  #: The grants that it makes have them.
        self._force = force
        self._overdraft_used = case.wallet.overdraft_used
        self._arrivals: Arrivals | None = None  #: Most refunds need none: they make no grant.
        self._reopened: list[Grant] = []  #: Used up before. What comes later may go there too.

    def to_grant(self, drawn_on: Grant, amount: int) -> None:
        """Return to the grant that was drawn on or, if it has ended, to a grant of like terms."""
        self._require_not_voided(drawn_on)
        if not drawn_on.has_ended(self._now) or self._is_over(drawn_on):
            self._move(amount, drawn_on)
            if not drawn_on.remaining:
                self._reopened.append(drawn_on)
        else:
            self._give(self._terms(drawn_on), amount)

    def to_overdraft(self, one: Draw, drawn: OverdraftDraw, payers: Sequence[Payer]) -> None:
        """Reduce the overdraft by the unpaid part; the rest returns to the grants that paid it."""
        owed = min(one.amount, overdraft.unpaid(self._wallet, drawn, one.returned))
        if owed:
            self._move(owed, None, overdraft=drawn)
            self._overdraft_used -= owed
        rest = one.amount - owed
        # Successive payers with the same terms share one row.
        pieces: list[tuple[Grant | _Terms, int]] = []
        for number, part in overdraft.paid_by(drawn, one.returned + owed, rest, payers):
            payer = self._wallet.grants[number]
            self._require_not_voided(payer)
            if self._is_over(payer):
                pieces.append((payer, part))
                continue
            # The terms of the payer, but a new grant: the payer's part was never spendable.
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
        """Whether the grant is itself returned credit that has expired. It gets no new end."""
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
        grant = new_grant(
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
    """The expirations of credit that a refund returns to a grant that has ended."""
    return [
        Move(EXPIRY.kind, EXPIRY.type, -move.amount, move.grant, None)
        for move in moves
        if move.kind == _REFUND and move.grant is not None and move.grant.has_ended(now)
    ]
