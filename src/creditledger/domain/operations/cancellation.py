"""The rules of canceling a meter event: what was drawn for it is returned, newest draw first.

Pure, on a wallet under its lock. Draws are returned as a refund returns them. An event may have
been paid by any number of postings, so one posting returns a bounded part of it, and the event says
where the next one goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from creditledger.domain.model import RETURNED_ROWS_MAX, MeterEvent, Wallet
from creditledger.domain.overdraft import Payer
from creditledger.domain.spending import Draw, Original, give_back, unreturned
from creditledger.domain.wallet_moves import Move


class Payments(NamedTuple):
    """What was drawn for an event by rows below `MeterEvent.return_below`, newest posting first."""

    originals: Sequence[Original]
    are_all: bool  #: Whether there are no older ones.


class Returned(NamedTuple):
    """What one posting returns of an event."""

    moves: list[Move]
    draws: list[Draw]
    event: MeterEvent  #: As it is then.


def step(
    wallet: Wallet,
    event: MeterEvent,
    payments: Payments,
    payers: Sequence[Payer],
    metadata: Mapping[str, str],
    *,
    now: int,
    returned_ms: int,
) -> Returned:
    """Cancel the event, or go on with one that is canceled. The moves have to be carried out.

    `payers`: who paid the wallet's overdrafts back. `metadata`: the posting's. What a voided grant
    paid is given back too, as by a refund that is forced: nothing of the event may have happened.
    """
    moves: list[Move] = []
    draws: list[Draw] = []
    below = None if payments.are_all else payments.originals[-1].rows[0].sequence
    given_back = give_back(
        wallet,
        outstanding(event, payments),
        payers,
        effective_at=None,
        metadata=metadata,
        now=now,
        returned_ms=returned_ms,
        force=True,
    )
    for draw, own in given_back:
        if moves and len(moves) + len(own) > RETURNED_ROWS_MAX:
            below = draws[-1].row.sequence
            break
        moves += own
        draws.append(draw)
    after = replace(
        event,
        unpaid=0,
        paid_at=now if event.paid_at is None else event.paid_at,
        canceled_at=now if event.canceled_at is None else event.canceled_at,
        return_below=below,
    )
    return Returned(moves, draws, after)


def outstanding(event: MeterEvent, payments: Payments) -> Iterator[Draw]:
    """What is still to be returned, newest draw first."""
    for original in payments.originals:
        spent = -sum(row.amount for row in original.rows)
        for draw in unreturned(original, spent - original.refunded):
            if event.return_below is None or draw.row.sequence < event.return_below:
                yield draw
