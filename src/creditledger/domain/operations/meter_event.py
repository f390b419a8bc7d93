"""Meter events: reporting one, paying what it was owed, and canceling it.

An event draws what the wallet can pay when it is reported. The rest is neither in the balance nor
overdraft: it waits for credit, the oldest event first. Canceling an event returns its draws, the
newest first. Any number of postings may have paid an event, so one posting returns a bounded part
of it. `MeterEvent.return_below` says where the next posting goes on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from creditledger.domain import billing_periods, ids
from creditledger.domain.commands import (
    Case,
    Command,
    Decision,
    EventPayments,
    Operation,
    Wants,
    add_place,
)
from creditledger.domain.errors import NotFound, OutOfRange, echo
from creditledger.domain.model import (
    RETURNED_ROWS_MAX,
    UNPAID_EVENTS_MAX,
    Dimension,
    Kind,
    MeterEvent,
    Status,
    Type,
    Wallet,
    standing,
)
from creditledger.domain.operations.refund import Draw, give_back, unreturned
from creditledger.domain.spending import (
    Metered,
    covering,
    draw,
    spendable,
    used,
)
from creditledger.domain.wallet_moves import Move

#: The dimension of rows that return the draws of an event. An event has no usage.
CANCELED = Dimension(Kind.REFUND.value, Type.ADJUSTMENT.value)


@dataclass(frozen=True, slots=True)
class ReportEvent(Metered):
    """Spend for a meter's count, as far as there is credit. The rest stays unpaid."""

    code, word = 13, "meter_event"
    amount: str
    meter_id: str
    subscription_id: str | None = None

    def terms(self, command: Command) -> dict[str, object]:
        """All but the amount: it may have no row that would tell."""
        return {
            "meter_id": self.meter_id,
            "subscription_id": self.subscription_id,
            "effective_at": command.effective_at,
        }

    def decide(self, case: Case) -> Decision:
        """Draw as a consumption, but no more than the wallet can pay. Raises OutOfRange."""
        wallet, amount, now = case.wallet, case.amount, case.now
        assert amount is not None
        at, spent_on = case.command.effective_at, (self.meter_id, "", "")
        most = spendable(wallet, spent_on, now) + wallet.overdraft_limit
        part = max(0, min(amount, most))
        if part < amount and len(wallet.unpaid) >= UNPAID_EVENTS_MAX:
            raise OutOfRange(f"a wallet has at most {UNPAID_EVENTS_MAX} unpaid meter events")
        # The unpaid rest becomes usage when it is paid.
        usage_max = billing_periods.usage_max(wallet.scale)
        if wallet.unpaid_amount + amount - wallet.usage_amount > usage_max:
            raise OutOfRange("what the wallet ever used and owes would pass what bills can say")
        reported = MeterEvent(
            number=0,
            identifier=case.command.idempotency_key,
            meter_id=self.meter_id,
            subscription_id=self.subscription_id,
            value=amount,
            unpaid=amount,
            happened_at=now if at is None else at,
            created_at=now,
            paid_at=None,
        )
        return Decision(
            draw(wallet, part, spent_on, now=now, effective_at=at) if part else [],
            self.dimension,
            meter_event_id=reported.identifier,
            spends=amount,
            event=_paid(reported, part, now),
        )


@dataclass(frozen=True, slots=True)
class CancelEvent(Operation):
    """Take a meter event back, and return what was drawn for it."""

    code, word, has_amount, has_rows_answered = 15, "cancel", False, False
    id: str

    @property
    def dimension(self) -> Dimension:
        """The dimension of its rows."""
        return CANCELED

    def want(self, wallet_id: str, wants: Wants) -> None:
        """The event, and what was drawn for it."""
        add_place(wants.canceled, "me", self.id)

    def decide(self, case: Case) -> Decision:
        """Return what was drawn for it, unless another posting does so. Raises NotFound."""
        event = self.event(case.wallet, case.known.events)
        if event.canceled_at is not None:
            return Decision([], CANCELED, event=event, is_done=True)
        return give_event_back(case, event)

    def event(self, wallet: Wallet, events: Mapping[tuple[int, int], MeterEvent]) -> MeterEvent:
        """The event as it is by now. Raises NotFound."""
        place = ids.resolve("me", self.id)
        event = events.get(place) if place and place[0] == wallet.number else None
        if event is None:
            raise NotFound(f"no meter event {echo(self.id)} in this wallet", param="id")
        return event


def settle(wallet: Wallet, *, now: int) -> Iterator[Decision]:
    """The payments of the wallet's unpaid events, oldest event first, one posting each.

    The caller has to apply each decision before it takes the next. Available credit pays, and
    grants whose scope covers the meter; overdraft does not. Only an active wallet pays.
    """
    if wallet.status is not Status.ACTIVE:
        return
    dry = set()  # meters whose events get nothing more: no credit for them is left
    for event in list(wallet.unpaid.values()):
        if event.meter_id in dry:
            continue
        spent_on = event.meter_id, "", ""
        room = max(0, standing(wallet, now).available)
        # Bills must be able to show the total usage.
        usable = billing_periods.usage_max(wallet.scale) + wallet.usage_amount
        part = min(event.unpaid, covering(wallet, spent_on, now) + room, usable)
        if part > 0:
            yield Decision(
                draw(wallet, part, spent_on, now=now, room=room),
                settled(event),
                meter_event_id=event.identifier,
                event=_paid(event, part, now),
            )
        elif wallet.scopes:
            dry.add(event.meter_id)
        else:
            return


def settled(event: MeterEvent) -> Dimension:
    """The dimension of the rows that pay for the event."""
    return used(event.meter_id, event.subscription_id, None)


def _paid(event: MeterEvent, part: int, now: int) -> MeterEvent:
    """The event after `part` more of it is paid."""
    unpaid = event.unpaid - part
    return replace(event, unpaid=unpaid, paid_at=None if unpaid else now)


def book(wallet: Wallet, after: MeterEvent) -> None:
    """Apply a decided event to the wallet."""
    before = wallet.unpaid.get(after.number)
    wallet.unpaid_amount += after.unpaid - (before.unpaid if before else 0)
    if after.unpaid:
        wallet.unpaid[after.number] = after  # where it was, if it was there: oldest first
    elif before is not None:
        del wallet.unpaid[after.number]
    assert wallet.unpaid_amount >= 0


def give_event_back(case: Case, event: MeterEvent) -> Decision:
    """Cancel the event, or return more draws of an event that is already canceled.

    Draws on a voided grant come back too, as by a forced refund, because a canceled event must
    leave no cost.
    """
    payments = case.known.payments(case.wallet, event)
    moves = list[Move]()
    draws = list[Draw]()
    below = None if payments.are_all else payments.originals[-1].rows[0].sequence
    for draw_, own in give_back(case, outstanding(event, payments), force=True):
        if moves and len(moves) + len(own) > RETURNED_ROWS_MAX:
            below = draws[-1].row.sequence
            break
        moves += own
        draws.append(draw_)
    return Decision(
        moves,
        CANCELED,
        {"meter_event_id": event.identifier},
        meter_event_id=event.identifier,
        returned=[(one.row, one.amount) for one in draws],
        event=replace(
            event,
            unpaid=0,
            paid_at=case.now if event.paid_at is None else event.paid_at,
            canceled_at=case.now if event.canceled_at is None else event.canceled_at,
            return_below=below,
        ),
    )


def outstanding(event: MeterEvent, payments: EventPayments) -> Iterator[Draw]:
    """The draws that are still to be returned, newest first."""
    for original in payments.originals:
        spent = -sum(row.amount for row in original.rows)
        for draw_ in unreturned(original, spent - original.refunded):
            if event.return_below is None or draw_.row.sequence < event.return_below:
                yield draw_
