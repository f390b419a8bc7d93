"""The rules that compare receipts of a payment provider with the top-ups of the ledger.

The lines of a file (outlets/receipt_files.py) and the booked rows (store/read/topups.py) come in,
and findings come out. Amounts are integers of 10^-9 of their currency, the finest scale, so amounts
of a file and of any wallet compare exactly.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from creditledger.domain import ids, money
from creditledger.domain.views import WalletPlace

#: Of ten: what makes an amount of any scale, or of a file, one of the finest.
POWERS: list[int] = [10**digits for digits in range(money.SCALE_MAX + 1)]
#: Receipts of a file, and top-ups that it does not explain: with what it takes to keep a receipt
#: and its top-up, 900 bytes, that is as much memory as a small machine has.
RECEIPTS_MAX = 2_000_000


class CannotReconcile(Exception):
    """Nothing can be compared. The text is a sentence for the operator."""


class Outcome(StrEnum):
    """The result for a receipt, or for a top-up that no receipt explains."""

    MATCHED = "matched"  #: Paid once, credited once, and the same.
    MISSING = "missing"  #: Paid, and never credited.
    UNKNOWN = "unknown"  #: Credited, and not in the file.
    DIFFERENT = "different"  #: Paid and credited, and not the same.
    DUPLICATE = "duplicate"  #: Credited more than once, or more than once in the file.
    UNPAID = "unpaid"  #: Neither paid, or all of it refunded, nor credited: as it should be.


#: Outcomes that are as they should be.
GOOD = frozenset({Outcome.MATCHED, Outcome.UNPAID})


@dataclass(slots=True)
class ReportedReceipt:
    """A payment as the file reports it, all its lines together."""

    line: int  #: The first of its lines; the header is line 1.
    created_at: int  #: Milliseconds.
    currency: str  #: Upper case.
    amount: int  #: What was paid: 0 where it failed.
    refunded: int
    status: str  #: The file's word for it; empty where it has none.
    customer: str
    paid: int  #: How many of its lines say that it was paid.
    #: Of a payment that the provider converted: its amount in the provider's currency, and what
    #: went back of it as far as it is told in that currency alone. In 10^-9 like the others.
    settled: int = 0
    settled_back: int = 0

    @property
    def kept(self) -> int:
        """The amount that has not been refunded."""
        return self.amount - self.refunded


class TopUp(NamedTuple):
    """A row of the ledger that credits a receipt."""

    wallet: int
    sequence: int
    grant: int
    place: WalletPlace
    units: int  #: Smallest units of the wallet's currency.
    created_at: int
    receipt_id: str  #: Empty where it names none.

    @property
    def id(self) -> str:
        """Of the credit transaction."""
        return ids.compose("ct", self.wallet, self.sequence)

    @property
    def smallest(self) -> int:
        """One smallest unit of the wallet's currency."""
        return POWERS[money.SCALE_MAX - self.place.scale]

    @property
    def amount(self) -> int:
        """The credited amount."""
        return self.units * self.smallest


class TakenBack(NamedTuple):
    """A row that took credit out of a wallet without spending it."""

    wallet: int
    grant: int | None
    units: int  #: > 0.
    receipt_id: str | None  #: What its metadata says that it is about.


class ReconciledTime(NamedTuple):
    """The time that is reconciled: [start, end) in milliseconds."""

    start: int
    end: int

    def has(self, moment: int) -> bool:
        """Whether a moment lies in the time."""
        return self.start <= moment < self.end


class Difference(NamedTuple):
    """A fact on which the file and the ledger differ."""

    what: str
    file: str
    ledger: str


class ReceiptFinding(NamedTuple):
    """The result for a receipt, or for top-ups whose receipt the file does not have."""

    outcome: Outcome
    receipt_id: str
    receipt: ReportedReceipt | None
    top_ups: tuple[TopUp, ...]
    taken_back: int  #: In the currency of the first top-up.
    differences: tuple[Difference, ...] = ()


#: How much of a wallet's currency is sold for one of a receipt's, by (wallet's, receipt's). None:
#: at prices that differ, so that only whether there is a top-up can be said.
Rates = Mapping[tuple[str, str], Fraction | None]


class MissingTopUp(NamedTuple):
    """A grant that would credit a receipt."""

    place: WalletPlace
    units: int  #: Smallest units of the wallet's currency.


def missing_top_up(
    receipt: ReportedReceipt, wallets: Iterable[WalletPlace], rates: Rates
) -> MissingTopUp | None:
    """What credits a missing receipt, if the open wallets of its customer leave one choice.

    Once it is posted, the receipt is matched. Of one that is refunded in part a person decides.
    """
    if receipt.refunded:
        return None
    found = []
    for place in wallets:
        is_same = place.currency == receipt.currency
        rate = Fraction(1) if is_same else rates.get((place.currency, receipt.currency))
        if rate is not None:
            exact = receipt.amount * rate / POWERS[money.SCALE_MAX - place.scale]
            # A price may be rounded, but what is paid in the wallet's own currency may not.
            units = 0 if is_same and exact.denominator != 1 else exact.__floor__()
            found.append(MissingTopUp(place, units))
    return found[0] if len(found) == 1 and found[0].units else None


def window_of(
    receipts: Iterable[ReportedReceipt], start: int | None, end: int | None
) -> ReconciledTime:
    """From the first receipt to the last, unless stated. Raises CannotReconcile."""
    times = [receipt.created_at for receipt in receipts]
    if not times and (start is None or end is None):
        raise CannotReconcile("There is no payment in the file: say --start and --end.")
    window = ReconciledTime(
        min(times) if start is None else start, max(times) + 1 if end is None else end
    )
    if window.start >= window.end:
        raise CannotReconcile("--end must be after --start, and the file's payments between them.")
    return window


def text(amount: int, currency: str) -> str:
    """An amount for people, with its currency."""
    return f"{money.text(amount, money.SCALE_MAX)} {currency}"


@dataclass(slots=True)
class Reconciliation:
    """A file of receipts and the rows of the ledger that are compared with it."""

    receipts: Mapping[str, ReportedReceipt]
    window: ReconciledTime
    rates: Rates = field(default_factory=dict)
    with_customers: bool = False  #: Whether customers are the same by their ids.
    #: Top-ups that the file does not explain, and that can be kept.
    unexplained_max: int = field(default_factory=lambda: RECEIPTS_MAX)
    _credited: dict[str, tuple[TopUp, ...]] = field(default_factory=dict)
    _unexplained: int = 0
    _nameless: list[TopUp] = field(default_factory=list)
    _places: dict[tuple[int, str], TopUp] = field(default_factory=dict)
    _grants: dict[tuple[int, int | None], str] = field(default_factory=dict)
    _taken_back: dict[str, int] = field(default_factory=dict)

    def credit(self, top_up: TopUp) -> None:
        """Take a row that credits. Raises CannotReconcile beyond the number that can be kept."""
        name = top_up.receipt_id
        if name not in self.receipts:
            if not self.window.has(top_up.created_at):
                return
            self._unexplained += 1
            if self._unexplained > self.unexplained_max:
                raise CannotReconcile(
                    f"More than {self.unexplained_max} top-ups are not in the file; a shorter time"
                    " from --start to --end has fewer."
                )
        if name:
            self._credited[name] = (*self._credited.get(name, ()), top_up)
        else:
            self._nameless.append(top_up)

    def refunded(self) -> list[int]:
        """The wallets whose rows that took credit back are needed, once all top-ups are taken."""
        for name, top_ups in self._credited.items():
            receipt = self.receipts.get(name)
            if receipt is not None and receipt.refunded > 0:
                for one in top_ups:
                    self._places[one.wallet, name] = one
                    self._grants[one.wallet, one.grant] = name
        return sorted({wallet for wallet, _ in self._places})

    def take_back(self, row: TakenBack) -> None:
        """Take a row of those wallets: it counts for its receipt, else for its grant's."""
        about = row.receipt_id or self._grants.get((row.wallet, row.grant), "")
        top_up = self._places.get((row.wallet, about))
        if top_up is not None:
            amount = row.units * top_up.smallest
            self._taken_back[about] = self._taken_back.get(about, 0) + amount

    def findings(self) -> Iterator[ReceiptFinding]:
        """One for each receipt in the order of the file, then what no receipt explains by time."""
        for name, receipt in self.receipts.items():
            top_ups = self._credited.get(name, ())
            times = [receipt.created_at, *(one.created_at for one in top_ups)]
            if any(map(self.window.has, times)):
                yield self._judged(name, receipt, top_ups)
        others = [ups for name, ups in self._credited.items() if name not in self.receipts]
        others += [(one,) for one in self._nameless]
        for top_ups in sorted(others, key=lambda ups: (ups[0].created_at, ups[0].id)):
            yield self._unexpected(top_ups)

    def _judged(
        self, name: str, receipt: ReportedReceipt, top_ups: tuple[TopUp, ...]
    ) -> ReceiptFinding:
        taken_back = self._taken_back.get(name, 0)
        found: tuple[Difference, ...] = ()
        if receipt.paid > 1 or len(top_ups) > 1:
            outcome = Outcome.DUPLICATE
            found = (Difference("times", str(receipt.paid), str(len(top_ups))),)
        elif not top_ups:
            owed = receipt.paid and receipt.kept > 0
            outcome = Outcome.MISSING if owed else Outcome.UNPAID
        else:
            found = tuple(self._differences(receipt, top_ups[0], taken_back))
            outcome = Outcome.DIFFERENT if found else Outcome.MATCHED
        return ReceiptFinding(outcome, name, receipt, top_ups, taken_back, found)

    def _unexpected(self, top_ups: tuple[TopUp, ...]) -> ReceiptFinding:
        name = top_ups[0].receipt_id
        if len(top_ups) == 1:
            return ReceiptFinding(Outcome.UNKNOWN, name, None, top_ups, 0)
        times = (Difference("times", "0", str(len(top_ups))),)
        return ReceiptFinding(Outcome.DUPLICATE, name, None, top_ups, 0, times)

    def _differences(
        self, receipt: ReportedReceipt, top_up: TopUp, taken_back: int
    ) -> Iterator[Difference]:
        place = top_up.place
        paid, credited = (
            text(receipt.amount, receipt.currency),
            text(top_up.amount, place.currency),
        )
        if not receipt.paid:
            yield Difference("status", f"{receipt.status}, nothing paid", "credited")
            return
        same = self._is_same(receipt, top_up)
        if not same:
            yield Difference("currency" if same is None else "amount", paid, credited)
        if self.with_customers and receipt.customer != place.customer_id:
            yield Difference("customer", receipt.customer, place.customer_id)
        refunded = min(receipt.refunded, receipt.amount)
        # In shares: what was credited may be of another currency than what was refunded.
        if taken_back * receipt.amount < refunded * top_up.amount:
            yield Difference(
                "refunded",
                text(receipt.refunded, receipt.currency),
                f"{text(taken_back, place.currency)} taken back",
            )

    def _is_same(self, receipt: ReportedReceipt, top_up: TopUp) -> bool | None:
        """Whether the credit is what the payment buys; None: the rate is not known."""
        sold = top_up.place.currency, receipt.currency
        if sold[0] == sold[1]:
            return top_up.amount == receipt.amount
        if sold not in self.rates:
            return None
        rate = self.rates[sold]
        # What a price comes to is rounded to the wallet's scale, up or down.
        return rate is None or abs(receipt.amount * rate - top_up.amount) < top_up.smallest
