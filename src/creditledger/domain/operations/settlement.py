"""The rules of what meter events leave unpaid: which event is paid first, and of what.

Pure, on a wallet under its lock. An event draws what the wallet can pay when it is reported
(spending.py). The rest is neither in the balance nor overdraft, and waits for credit.
"""

from collections.abc import Iterator
from dataclasses import replace

from creditledger.domain import billing_periods
from creditledger.domain.model import Dimension, Kind, MeterEvent, Status, Type, Wallet, standing
from creditledger.domain.spending import covering, draw
from creditledger.domain.wallet_moves import Move

_USAGE, _CONSUMPTION = Kind.USAGE.value, Type.CONSUMPTION.value


def settle(wallet: Wallet, *, now: int) -> Iterator[tuple[list[Move], MeterEvent]]:
    """What the wallet's credit pays of its events, oldest first: the moves, and the event after.

    Each has to be carried out before the next is asked for. Only what is available pays, with the
    grants whose scope covers the meter, no overdraft; a wallet that may not spend pays nothing.
    """
    if wallet.status is not Status.ACTIVE:
        return
    dry = set()  # meters whose events get nothing: the first one had it all
    for event in list(wallet.unpaid.values()):
        if event.meter_id in dry:
            continue
        spent_on = event.meter_id, "", ""
        room = max(0, standing(wallet, now).available)
        # What was used in all must stay a number that bills can say.
        usable = billing_periods.usage_max(wallet.scale) + wallet.usage_amount
        most = min(covering(wallet, spent_on, now) + room, usable)
        part = min(event.unpaid, most)
        if part > 0:
            moves = draw(wallet, part, _USAGE, _CONSUMPTION, None, spent_on, now=now, room=room)
            yield moves, paid(event, part, now)
        elif wallet.scopes:
            dry.add(event.meter_id)
        else:
            return


def paid(event: MeterEvent, part: int, now: int) -> MeterEvent:
    """The event after `part` more of it is paid."""
    unpaid = event.unpaid - part
    return replace(event, unpaid=unpaid, paid_at=None if unpaid else now)


def book(wallet: Wallet, after: MeterEvent) -> None:
    """Carry out what was decided of an event: the wallet's books say what it says."""
    before = wallet.unpaid.get(after.number)
    wallet.unpaid_amount += after.unpaid - (before.unpaid if before else 0)
    if after.unpaid:
        wallet.unpaid[after.number] = after  # where it was, if it was there: oldest first
    elif before is not None:
        del wallet.unpaid[after.number]
    assert wallet.unpaid_amount >= 0


def dimension(event: MeterEvent) -> Dimension:
    """What the rows that pay for the event are added up by."""
    return Dimension(_USAGE, _CONSUMPTION, event.meter_id, event.subscription_id)
