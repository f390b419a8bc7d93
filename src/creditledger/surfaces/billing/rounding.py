"""How exact amounts become the integer columns of a bill, in 1/10000 of the currency.

The published bill-list API wants columns that add up to what was charged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from creditledger.domain.billing_periods import BILL_SCALE


@dataclass(frozen=True, slots=True)
class Charge:
    """What one row of a bill comes to, in 1/10000: amount = voucher + pay."""

    amount: int
    voucher: int

    @property
    def pay(self) -> int:
        """What was paid in cash."""
        return self.amount - self.voucher


def apportion(exact: Sequence[tuple[int, int]], scale: int) -> list[Charge]:
    """The rows of one bucket, (amount, voucher) in smallest units of `scale` digits, in 1/10000.

    The amounts add up to the exact total rounded half up: each is rounded down, and the units
    still missing go to the largest remainders, ties in row order. Vouchers likewise, but none
    above its row's amount (unless it is so exactly, where refunds of cash outweigh the rest).
    """
    amounts = _round([amount for amount, _ in exact], scale)
    rooms = [
        whole if voucher <= amount else None
        for whole, (amount, voucher) in zip(amounts, exact, strict=True)
    ]
    vouchers = _round([voucher for _, voucher in exact], scale, rooms)
    return [Charge(*pair) for pair in zip(amounts, vouchers, strict=True)]


def _round(
    values: Sequence[int], scale: int, most: Sequence[int | None] | None = None
) -> list[int]:
    if scale <= BILL_SCALE:
        return [value * 10 ** (BILL_SCALE - scale) for value in values]
    unit = 10 ** (scale - BILL_SCALE)
    rounded = [value // unit for value in values]
    missing = (sum(values) + unit // 2) // unit - sum(rounded)
    by_remainder = sorted(range(len(values)), key=lambda i: (-(values[i] % unit), i))
    while missing:
        before = missing
        for i in by_remainder:
            limit = None if most is None else most[i]
            if missing and (limit is None or rounded[i] < limit):
                rounded[i] += 1
                missing -= 1
        if missing == before:  # every row is at its limit
            break
    return rounded
