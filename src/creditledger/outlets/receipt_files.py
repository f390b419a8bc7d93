"""Files of receipts: CSV as Stripe's dashboard, its reports and its API write them.

Two kinds are known by their header. In a list of payments each line is one, with what of it was
refunded or lost in a dispute. In a report of the balance each line is a movement, and those about
one payment are added up; where it also says what the customer saw, in another currency than the
balance has, that is what the receipt is of. Amounts become integers of 10^-9 of the currency, times
milliseconds. Reads files and nothing else.
"""

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from io import TextIOWrapper
from pathlib import Path
from sys import intern
from typing import BinaryIO
from zoneinfo import ZoneInfo

from creditledger.domain import clock, money
from creditledger.domain.errors import InvalidField, echo
from creditledger.domain.reconciliation import (
    POWERS,
    RECEIPTS_MAX,
    CannotReconcile,
    ReportedReceipt,
)

#: Lines between two calls of progress.
STEP_LINES = 10_000
#: What a payment has to be called to be one.
PAID = frozenset({"paid", "succeeded", "refunded", "partially refunded", "partial refund"})

#: Names of the columns, as `_plain` makes them, the best first.
_PAYMENTS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "charge id"),
    "amount": ("amount",),
    "refunded": ("amount refunded",),
    "disputed": ("disputed amount",),
    "dispute": ("dispute status",),
    "currency": ("currency",),
    "created": ("created (utc)", "created date (utc)", "created utc", "created"),
    "status": ("status",),
    "captured": ("captured",),
    "customer": ("customer id", "customer"),
}
_BALANCE: Mapping[str, tuple[str, ...]] = {
    "id": ("charge id", "source id", "source"),
    "amount": ("gross", "amount"),
    "currency": ("currency",),
    "shown": ("customer facing amount",),
    "shown currency": ("customer facing currency",),
    "created": ("created utc", "created (utc)", "created"),
    "category": ("reporting category", "type"),
    "customer": ("customer id",),
}
#: Of a dispute, that the money is gone for good.
_LOST = "lost"
_REQUIRED = frozenset({"id", "amount", "currency", "created", "category"})
#: What movements of a balance are about a payment: it, the part of it that was not captured, and
#: what went back.
_CHARGES = frozenset({"charge", "payment"})
_UNCAPTURED = frozenset({"partial capture reversal"})
_RETURNS = frozenset(
    {
        *("refund", "refund failure", "payment refund", "payment failure refund"),
        *("dispute", "dispute reversal", "charge failure"),
    }
)
#: Decimals of a smallest unit, where they are not two, as Stripe counts them.
_NO_DECIMALS = frozenset(
    {
        *("BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA"),
        *("PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"),
    }
)
_THREE_DECIMALS = frozenset({"BHD", "JOD", "KWD", "OMR", "TND"})

_CURRENCY = re.compile(r"[A-Za-z]{3}", re.ASCII)
_NUMBER = re.compile(r"(-?)([0-9]{1,18}|[0-9]{1,3}(?:,[0-9]{3}){1,5})(?:\.([0-9]{1,9}))?", re.ASCII)
_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_SWAPPED = str.maketrans(",.", ".,")
_SECONDS = re.compile(r"[0-9]{9,11}", re.ASCII)
_WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?", re.ASCII)
_WORDS_MAX = 255
#: Characters of a header that tell how its fields are separated.
_HEADER_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a file is written, where it cannot be told by looking at it."""

    columns: Mapping[str, str] = field(default_factory=dict)  #: Those of other names.
    minor_units: bool = False  #: 1250 is 12.50 USD.
    decimal_comma: bool = False  #: 1.250,00 is 1,250.00.
    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))  #: Of times without one.
    paid: frozenset[str] = PAID  #: Statuses of what was paid, in lower case.
    with_customers: bool = False  #: Whether there has to be a customer.


@dataclass(slots=True)
class Receipts:
    """What a file holds."""

    by_id: dict[str, ReportedReceipt] = field(default_factory=dict)
    returns_elsewhere: int = 0  #: Refunds and disputes of payments that are not in the file.

    def add(self, name: str, new: ReportedReceipt) -> None:
        """One more line. Raises CannotReconcile at more than can be kept.

        An attempt that failed gives way to the one that did not; a payment that is there twice
        stays as it was first.
        """
        old = self.by_id.get(name)
        if old is None:
            if len(self.by_id) >= RECEIPTS_MAX:
                raise CannotReconcile(
                    f"The file has more than {RECEIPTS_MAX} payments: reconcile it in parts."
                )
            self.by_id[name] = new
        elif old.paid and new.paid:
            old.paid += 1
        else:
            better = (new.paid, bool(new.status)) > (old.paid, bool(old.status))
            kept, other = (new, old) if better else (old, new)
            kept.amount += other.amount
            kept.refunded += other.refunded
            kept.settled += other.settled
            kept.settled_back += other.settled_back
            self.by_id[name] = kept

    def settle(self) -> None:
        """At the end: what went back is told in the currency of what was paid.

        And what is about payments of other files is counted and left out.
        """
        for one in self.by_id.values():
            if one.settled_back:
                # In shares of the payment: a dispute is told in the provider's currency alone.
                share = Fraction(one.amount, one.settled) if one.settled else Fraction(1)
                one.refunded += round(one.settled_back * share)
                one.settled_back = 0
        alone = [name for name, one in self.by_id.items() if not one.paid and not one.status]
        self.returns_elsewhere += len(alone)
        for name in alone:
            del self.by_id[name]


class _Wrong(Exception):
    """A field that cannot be read: its column, and what is wrong."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


def read(path: Path, spelling: Spelling, *, on_progress: Callable[[int, int], None]) -> Receipts:
    """All payments of a file, as `read_from`."""
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            return read_from(
                raw, str(path), spelling, on_progress=lambda done: on_progress(done, size)
            )
    except OSError as error:
        raise CannotReconcile(f"{path} cannot be read: {error.strerror}.") from None


def read_from(
    raw: BinaryIO, name: str, spelling: Spelling, *, on_progress: Callable[[int], None]
) -> Receipts:
    """All payments of an open file, read once. `on_progress(bytes done)`.

    Raises CannotReconcile naming line and column.
    """
    found, line = Receipts(), 1
    try:
        with TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            first = file.readline(_HEADER_MAX)
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(first), strict=True)
            layout = _Layout.of(name, next(rows, []), spelling)
            while True:
                line = rows.line_num + 1
                values = next(rows, None)
                if values is None:
                    break
                if values:
                    layout.take(found, line, values)
                if line % STEP_LINES == 0:
                    on_progress(raw.tell())
    except UnicodeDecodeError:
        raise CannotReconcile(f"{name} is no text in UTF-8, from line {line} on.") from None
    except csv.Error as error:
        raise CannotReconcile(f"{name}, line {line}: it is no CSV: {error}.") from None
    except _Wrong as error:
        raise CannotReconcile(f"{name}, line {line}, column {error.column}: {error}.") from None
    found.settle()
    return found


def _delimiter(header: str) -> str:
    """Spreadsheets that write a decimal comma separate by semicolons."""
    return max(",;\t", key=header.count)


def _plain(name: str) -> str:
    """A name of a column, or a word in one, however it is spelled."""
    return " ".join(re.split(r"[\s_]+", name.strip().casefold()))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a line is what."""

    name: str
    header: list[str]
    places: Mapping[str, tuple[int, ...]]  #: The first that is not empty counts.
    spelling: Spelling

    @classmethod
    def of(cls, name: str, header: list[str], spelling: Spelling) -> "_Layout":
        plain = [_plain(one) for one in header]
        is_balance = "reporting category" in plain or {"type", "source", "net"} <= set(plain)
        known = _BALANCE if is_balance else _PAYMENTS
        for what in spelling.columns.keys() - known.keys():
            raise CannotReconcile(
                f"--{what}-column is of lists of payments, and {name} is a report of the balance."
            )
        places = {}
        for what, names in known.items():
            said = spelling.columns.get(what)
            wanted = names if said is None else (_plain(said),)
            found = tuple(plain.index(one) for one in wanted if plain.count(one) == 1)
            needed = what in _REQUIRED or (what == "customer" and spelling.with_customers)
            if not found and (needed or said is not None):
                missed = echo(names[0] if said is None else said)
                raise CannotReconcile(
                    f"{name} has no column {missed}, or several; name the one that is meant with"
                    f" --{what}-column. Its columns are {', '.join(header)[:300] or 'none'}."
                )
            # Of a movement the payment that it is about may be empty where it is one itself.
            places[what] = found if what == "id" else found[:1]
        return cls(name, header, places, spelling)

    def take(self, receipts: Receipts, line: int, values: list[str]) -> None:
        """What a line says. Raises _Wrong."""
        if len(values) != len(self.header):
            raise _Wrong(
                self.header[min(len(values), len(self.header) - 1)],
                f"the line has {len(values)} fields, the header {len(self.header)}",
            )
        if "category" in self.places:
            self._movement(receipts, line, values)
        else:
            self._payment(receipts, line, values)

    def _payment(self, receipts: Receipts, line: int, values: list[str]) -> None:
        name = self._id(values)
        if not name:
            raise _Wrong(self._column("id"), "it is empty")
        receipt = self._receipt(line, values)
        amount = receipt.amount
        refunded = (
            self._amount(values, "refunded", receipt.currency) if self._has("refunded") else 0
        )
        lost = 0
        if _plain(self._value(values, "dispute")) == _LOST:
            said = self._value(values, "disputed")
            lost = self._amount(values, "disputed", receipt.currency) if said else amount - refunded
        for what, value in (("amount", amount), ("refunded", refunded), ("disputed", lost)):
            if value < 0:
                raise _Wrong(self._column(what), "it must not be negative")
        status = self._value(values, "status")
        captured = self._value(values, "captured").casefold() not in {"false", "no"}
        paid = captured and (not self._has("status") or _plain(status) in self.spelling.paid)
        receipt.status = intern(status or ("Paid" if paid else "Uncaptured"))
        if paid and amount:
            receipt.paid, receipt.refunded = 1, refunded + lost
        else:
            receipt.amount = 0
        receipts.add(name, receipt)

    def _movement(self, receipts: Receipts, line: int, values: list[str]) -> None:
        category = _plain(self._value(values, "category"))
        if category not in _CHARGES | _UNCAPTURED | _RETURNS:
            return
        name = self._id(values)
        if not name:
            receipts.returns_elsewhere += 1
            return
        receipt = self._receipt(line, values)
        settled, is_converted = receipt.amount, self._convert(receipt, values)
        if category in _RETURNS:
            if is_converted:
                receipt.amount, receipt.refunded = 0, -receipt.amount
            else:
                receipt.amount, receipt.settled_back = 0, -settled
        elif is_converted:
            receipt.settled = settled
        if category in _CHARGES:
            if receipt.amount < 0:
                raise _Wrong(self._column("amount"), "a charge must not be negative")
            receipt.paid = 1
            receipt.status = intern(category)
        receipts.add(name, receipt)

    def _convert(self, receipt: ReportedReceipt, values: list[str]) -> bool:
        """Take the amount that the customer saw, where it is in another currency."""
        said = self._value(values, "shown currency")
        if not said or said.upper() == receipt.currency:
            return False
        currency = self._currency(values, "shown currency")
        amount = abs(self._amount(values, "shown", currency))
        receipt.amount = -amount if receipt.amount < 0 else amount
        receipt.currency = currency
        return True

    def _receipt(self, line: int, values: list[str]) -> ReportedReceipt:
        currency = self._currency(values, "currency")
        amount = self._amount(values, "amount", currency)
        customer = self._value(values, "customer")
        return ReportedReceipt(line, self._moment(values), currency, amount, 0, "", customer, 0)

    def _currency(self, values: list[str], what: str) -> str:
        said = self._value(values, what)
        if not _CURRENCY.fullmatch(said):
            raise _Wrong(self._column(what), f"it must be a code such as usd, not {echo(said)}")
        return intern(said.upper())

    def _has(self, what: str) -> bool:
        return bool(self.places.get(what))

    def _column(self, what: str) -> str:
        return self.header[self.places[what][0]]

    def _value(self, values: list[str], what: str) -> str:
        for place in self.places.get(what, ()):
            if value := values[place].strip():
                return value
        return ""

    def _id(self, values: list[str]) -> str:
        name = self._value(values, "id")
        if len(name) > _WORDS_MAX:
            raise _Wrong(self._column("id"), f"it is longer than {_WORDS_MAX} characters")
        return name

    def _amount(self, values: list[str], what: str, currency: str) -> int:
        said = self._value(values, what)
        if not said and what == "refunded":
            return 0
        if self.spelling.minor_units:
            if not _WHOLE.fullmatch(said):
                raise _Wrong(
                    self._column(what), f"it must be a whole number of units, not {echo(said)}"
                )
            return int(said) * POWERS[money.SCALE_MAX - decimals(currency)]
        plain = said.translate(_SWAPPED) if self.spelling.decimal_comma else said
        match = _NUMBER.fullmatch(plain)
        if match is None:
            raise _Wrong(
                self._column(what),
                f"it must be an amount such as 1,250.00, not {echo(said)}"
                " (see --decimal-comma, --minor-units)",
            )
        sign, whole, fraction = match.groups()
        digits = whole.replace(",", "") + (fraction or "").ljust(money.SCALE_MAX, "0")
        return -int(digits) if sign else int(digits)

    def _moment(self, values: list[str]) -> int:
        said = self._value(values, "created")
        column = self._column("created")
        try:
            if _SECONDS.fullmatch(said):
                return int(said) * clock.SECOND
            if _WITHOUT_ZONE.fullmatch(said):
                is_utc = "utc" in _plain(column)
                zone = UTC if is_utc else self.spelling.zone
                there = datetime.fromisoformat(said).replace(tzinfo=zone)
                said = there.astimezone(UTC).isoformat(timespec="milliseconds")
            return clock.parse(said.replace(" ", "T", 1), field=column)
        except (InvalidField, ValueError, OverflowError):
            raise _Wrong(
                column, f"it must be a time such as 2026-05-21 14:08:11, not {echo(said)}"
            ) from None


def decimals(currency: str) -> int:
    """Digits after the point of the unit in which Stripe's API counts a currency."""
    if currency in _NO_DECIMALS:
        return 0
    return 3 if currency in _THREE_DECIMALS else 2
