"""Which credit paid which overdraft back: oldest draw first.

All draws of a wallet beyond its grants lie on one line, in order. `Wallet.overdrawn` is the line's
length. `Wallet.repaid_to` is the place up to which it is paid back. A repayment pays the next
stretch of the line, so two numbers name the draws that it pays, however many they are. A refund of
a draw that is not paid back forgives the end of the draw: later repayments skip that part. Pure,
on a wallet under its lock: no I/O, clock, randomness.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from creditledger.domain.model import Wallet


@dataclass(slots=True, eq=False)
class OverdraftDraw:
    """What one row drew beyond the grants: the places [start, start + amount) of the line."""

    wallet: int
    sequence: int  #: Of the row.
    start: int
    amount: int  #: > 0.
    forgiven: int = 0  #: Length of its end that refunds gave back before it was paid back.

    @property
    def end(self) -> int:
        """The first place behind it."""
        return self.start + self.amount


class Payer(NamedTuple):
    """A grant that paid back the places [start, until), without the forgiven ones in between."""

    wallet: int
    start: int
    until: int
    amount: int  #: > 0.
    grant: int
    row: int | None  #: The row that gave the credit; None: the grant paid when it began or ended.


def draw(wallet: Wallet, sequence: int, amount: int) -> OverdraftDraw:
    """Draw `amount` beyond the wallet's grants, by the row `sequence`."""
    drawn = OverdraftDraw(wallet.number, sequence, wallet.overdrawn, amount)
    wallet.overdrawn += amount
    return drawn


def pay(wallet: Wallet, grant: int, amount: int, row: int | None) -> Payer:
    """Pay `amount` of the oldest draws back with the grant."""
    start = until = wallet.repaid_to
    left = amount
    for begins, ends in wallet.forgiven:
        if left <= begins - until:
            break
        left -= begins - until
        until = ends
    wallet.repaid_to = until = until + left
    assert until <= wallet.overdrawn
    wallet.forgiven = [hole for hole in wallet.forgiven if hole[1] > until]
    _forget(wallet)
    return Payer(wallet.number, start, until, amount, grant, row)


def forgive(wallet: Wallet, drawn: OverdraftDraw, amount: int) -> None:
    """Forgive the last `amount` of a draw, which is refunded and not paid back."""
    ends = drawn.end - drawn.forgiven
    assert ends - amount >= max(drawn.start, wallet.repaid_to)
    drawn.forgiven += amount
    insort(wallet.forgiven, (ends - amount, ends))
    _forget(wallet)


def _forget(wallet: Wallet) -> None:
    """Skip the rest of the line if nothing on it is owed."""
    owed = wallet.overdrawn - wallet.repaid_to
    if owed == sum(ends - begins for begins, ends in wallet.forgiven):
        wallet.repaid_to, wallet.forgiven = wallet.overdrawn, []


def forgiving(wallet: Wallet) -> tuple[int, int] | None:
    """(wallet number, place) after which a stretch is forgiven that later repayments skip."""
    owed = wallet.overdrawn - wallet.repaid_to
    return (wallet.number, wallet.repaid_to) if owed > wallet.overdraft_used else None


def unpaid(wallet: Wallet, drawn: OverdraftDraw, returned: int) -> int:
    """The part of a draw that is not paid back. Refunds already gave `returned` of it back."""
    return max(0, drawn.end - returned - max(drawn.start, wallet.repaid_to))


def paid_by(
    drawn: OverdraftDraw, returned: int, amount: int, payers: Iterable[Payer]
) -> Iterator[tuple[int, int]]:
    """(grant number, part) of the grants that paid back the newest `amount` places of the draw.

    The last `returned` places are left out: refunds gave them back before, or forgive them now.
    """
    ends = drawn.end - returned
    begins = ends - amount
    for payer in sorted(payers, key=lambda one: one.start, reverse=True):
        part = min(ends, payer.until) - max(begins, payer.start)
        if part > 0:
            yield payer.grant, part
