"""Statements: what a wallet's credit did in a period, and what it left.

Figures are by kind, API key, product and grant.

Every row belongs to one moment of account. That is the moment at which the row happened. A grant
that begins later than it was written counts from when it was written, because the balance has it
from then on. No row counts before the end of a statement that was closed before the row was
written. A statement of [start, end) opens with all rows before `start` and closes with all rows
before `end`. So statements of consecutive periods chain, whatever the periods are. A row that is
written later changes no closed statement: it is a prior-period adjustment of the next one.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from creditledger.domain import clock, ids, money
from creditledger.domain.billing_periods import Bucket, bucket_of
from creditledger.domain.errors import InvalidField, ResultTooLarge, echo
from creditledger.domain.model import Category, Kind
from creditledger.domain.views import WalletPlace

#: Grants, API keys and products of one statement: they keep it smaller than an answer may be.
LINES_MAX = 5_000

#: The answer as JSON, and the content of a closed statement.
Document = dict[str, Any]

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)

#: What moves a grant in a period, and whether that adds to it or takes from it. Figures have no
#: sign but that of `prior_period`, which is what was written too late for a period before, net.
COLUMNS: Mapping[str, int] = {
    "granted": 1,
    "consumed": -1,
    "expired": -1,
    "voided": -1,
    "refunded": 1,
    "transferred_in": 1,
    "transferred_out": -1,
    "debited": -1,
    "overdraft_repaid": -1,
    "prior_period": 1,
}
#: The same for overdraft: the wallet owes more of it, or less.
OVERDRAFT_COLUMNS: Mapping[str, int] = {
    "drawn": 1,
    "refunded": -1,
    "repaid": -1,
    "prior_period": 1,
}
_COLUMN_OF = {
    Kind.TOPUP: "granted",
    Kind.SUBSCRIPTION_RENEW: "granted",
    Kind.ADMIN_CREDIT: "granted",
    Kind.ADMIN_DEBIT: "debited",
    Kind.REFUND: "refunded",
    Kind.USAGE: "consumed",
    Kind.EXPIRY: "expired",
    Kind.TRANSFER_OUT: "transferred_out",
    Kind.TRANSFER_IN: "transferred_in",
}


class DoesNotAddUp(Exception):
    """Figures that must agree do not. The ledger has a fault, so the figures are not shown."""


class Part(IntEnum):
    """Where the moment of account of a row lies."""

    BEFORE = 0
    PERIOD = 1
    PRIOR = 2  #: In the period too, but it happened before: a prior-period adjustment.
    AFTER = 3


class StatementMark(NamedTuple):
    """The fields of a closed statement that later ones depend on."""

    number: int  #: Counted from 1 within the wallet.
    starts_at: int
    ends_at: int
    closed_sequence: int  #: The wallet's last row when it was closed.
    sha256: str


class Label(NamedTuple):
    """What the figures of usage are grouped by; a field is empty if the row has none."""

    api_key_id: str = ""
    product_id: str = ""
    product_name: str = ""


class RowSums(NamedTuple):
    """The sums of rows of one part, grant and kind."""

    part: Part
    grant: int | None  #: None: overdraft.
    kind: Kind
    rows: int
    amount: int
    began: bool  #: The row that gave the grant is one of them.
    paid: int = 0  #: What of them paid back overdraft as they added parts to the grant.

    def plus(self, other: "RowSums") -> "RowSums":
        """These rows and others of the same part, grant and kind."""
        return self._replace(
            rows=self.rows + other.rows,
            amount=self.amount + other.amount,
            began=self.began or other.began,
            paid=self.paid + other.paid,
        )

    def repaid(self, facts: "GrantFacts") -> int:
        """What of them paid back overdraft."""
        return self.paid + (facts.overdraft_paid if self.began else 0)


class UsageSums(NamedTuple):
    """The sums of rows of usage and refunds, by what was used."""

    part: Part
    kind: Kind
    label: Label
    rows: int
    amount: int
    calls: int  #: Postings that spent something, each with its first row.
    quantity: int  #: The sum of all quantities of their usages.

    def plus(self, other: "UsageSums") -> "UsageSums":
        """These rows and others of the same part, kind and label."""
        return self._replace(
            rows=self.rows + other.rows,
            amount=self.amount + other.amount,
            calls=self.calls + other.calls,
            quantity=self.quantity + other.quantity,
        )


class Repaid(NamedTuple):
    """Overdraft that a grant repaid as it began or ended; no row records it."""

    part: Part
    grant: int
    amount: int


class GrantFacts(NamedTuple):
    """The facts of a grant that a statement shows beside its figures."""

    overdraft_paid: int  #: As it was given, by its first part.
    category: Category
    name: str | None
    effective_at: int
    expires_at: int | None
    voided_at: int | None


@dataclass(slots=True)
class StatementLine:
    """An opening balance, the movements, and the closing balance that they give."""

    signs: Mapping[str, int]
    opening: int = 0
    moved: dict[str, int] = field(default_factory=dict)

    def add(self, column: str, amount: int) -> None:
        """Add a movement; in a column that takes away, an amount above 0 takes away."""
        self.moved[column] = self.moved.get(column, 0) + amount

    @property
    def closing(self) -> int:
        """The closing balance."""
        return self.opening + sum(self.signs[name] * units for name, units in self.moved.items())


@dataclass(slots=True)
class Tally:
    """The number of rows and the sum of their amounts."""

    count: int = 0
    amount: int = 0


@dataclass(slots=True)
class KeyLine:
    """Consumption under a label and refunds of it; later bookings net."""

    count: int = 0
    consumed: int = 0
    refunded: int = 0
    prior_period: int = 0


@dataclass(slots=True)
class ProductLine:
    """Consumption of a product and refunds of it; later bookings net."""

    calls: int = 0
    quantity: int = 0
    consumed: int = 0
    refunded: int = 0
    prior_period: int = 0


@dataclass(slots=True)
class Figures:
    """All figures of a statement."""

    opening_balance: int
    by_kind: dict[Kind, Tally]
    prior: dict[Kind, Tally]
    by_api_key: dict[str, KeyLine]
    by_product: dict[tuple[str, str], ProductLine]  #: By product id and name.
    grants: dict[int, StatementLine]
    overdraft: StatementLine
    facts: Mapping[int, GrantFacts]

    @property
    def closing_balance(self) -> int:
        """The opening balance and every row of the period."""
        rows = (*self.by_kind.values(), *self.prior.values())
        return self.opening_balance + sum(one.amount for one in rows)

    def total(self) -> StatementLine:
        """The lines of all grants in one."""
        whole = StatementLine(COLUMNS)
        for line in self.grants.values():
            whole.opening += line.opening
            for name, units in line.moved.items():
                whole.add(name, units)
        return whole


def figures(
    opening: Mapping[int, int],
    overdraft: int,
    moved: Iterable[RowSums],
    facts: Mapping[int, GrantFacts],
    repaid: Iterable[Repaid] = (),
    used: Iterable[UsageSums] = (),
) -> Figures:
    """The figures of a period, of what grants had before it, the overdraft used, and its rows.

    Rows and repayments of other parts are left out. `used` is of the same rows as `moved`; `facts`
    of every grant that they name. Raises DoesNotAddUp.
    """
    found = Figures(
        opening_balance=sum(opening.values()) - overdraft,
        by_kind={},
        prior={},
        by_api_key={},
        by_product={},
        grants={number: StatementLine(COLUMNS, units) for number, units in opening.items()},
        overdraft=StatementLine(OVERDRAFT_COLUMNS, overdraft),
        facts=facts,
    )
    for one in moved:
        if one.part not in (Part.PERIOD, Part.PRIOR):
            continue
        late = one.part is Part.PRIOR
        tally = (found.prior if late else found.by_kind).setdefault(one.kind, Tally())
        tally.count += one.rows
        tally.amount += one.amount
        if one.grant is None:
            # A row without a grant is of overdraft: below 0 it borrows, above it gives back.
            column = "prior_period" if late else "drawn" if one.amount < 0 else "refunded"
            found.overdraft.add(column, one.amount if column == "refunded" else -one.amount)
            continue
        line = found.grants.setdefault(one.grant, StatementLine(COLUMNS))
        known = facts[one.grant]
        if late:
            line.add("prior_period", one.amount)
        else:
            column = _COLUMN_OF[one.kind]
            if column == "expired" and known.voided_at is not None:
                column = "voided"
            line.add(column, COLUMNS[column] * one.amount)
        if paid := one.repaid(known):
            line.add(*_paid("overdraft_repaid", paid, late=late))
            found.overdraft.add(*_paid("repaid", paid, late=late))
    for spent in used:
        if spent.part in (Part.PERIOD, Part.PRIOR):
            _count(found, spent)
    for back in repaid:
        if back.part in (Part.PERIOD, Part.PRIOR):
            late = back.part is Part.PRIOR
            line = found.grants.setdefault(back.grant, StatementLine(COLUMNS))
            line.add(*_paid("overdraft_repaid", back.amount, late=late))
            found.overdraft.add(*_paid("repaid", back.amount, late=late))
    _check(found)
    return found


def _paid(column: str, units: int, *, late: bool) -> tuple[str, int]:
    return ("prior_period", -units) if late else (column, units)


def _count(found: Figures, one: UsageSums) -> None:
    late = one.part is Part.PRIOR
    key = found.by_api_key.setdefault(one.label.api_key_id, KeyLine())
    key.count += one.rows
    product = found.by_product.setdefault(one.label[1:], ProductLine())
    product.calls += one.calls
    product.quantity += one.quantity
    line: KeyLine | ProductLine
    for line in (key, product):
        if late:
            line.prior_period += one.amount
        elif one.kind is Kind.USAGE:
            line.consumed -= one.amount
        else:
            line.refunded += one.amount


def _check(found: Figures) -> None:
    closing = sum(line.closing for line in found.grants.values()) - found.overdraft.closing
    if closing != found.closing_balance:
        raise DoesNotAddUp(
            f"grants less overdraft come to {closing}, rows to {found.closing_balance}"
        )


@dataclass(frozen=True, slots=True)
class Closing:
    """The fields that only a closed statement has."""

    number: int  #: Counted from 1 within the wallet.
    closed_at: int
    closed_by: str | None  #: Id of the API key; None: the command line.
    previous_sha256: str | None  #: Of the statement before it.


@dataclass(frozen=True, slots=True)
class About:
    """The wallet, the period and the rows of a statement."""

    wallet_number: int
    wallet: WalletPlace
    customer_name: str
    period: Bucket
    zone: ZoneInfo
    sequence: int  #: The last row that was known.
    closing: Closing | None = None  #: None: it is not closed.

    def time(self, moment: int) -> str:
        """RFC 3339 in the statement's zone."""
        return clock.text_in(moment, self.zone)

    def amount(self, units: int) -> str:
        """A decimal in the wallet's currency."""
        return money.text(units, self.wallet.scale)


def month(text: str, zone: ZoneInfo, *, field: str) -> Bucket:
    """The month of a text such as 2026-09 in that zone. Raises InvalidField."""
    found = _MONTH.fullmatch(text)
    if found is None or not 1970 <= int(found[1]) < 9999:
        raise InvalidField(
            f"{field} must be a month such as 2026-09, not {echo(text)}", param=field
        )
    middle = datetime(int(found[1]), int(found[2]), 15, tzinfo=UTC)
    return bucket_of(int(middle.timestamp()) * clock.SECOND, "Month", zone)


def document(about: About, found: Figures) -> Document:
    """The statement as the API shows it. Raises ResultTooLarge."""
    shown = {number: line for number, line in found.grants.items() if line.opening or line.moved}
    if max(len(shown), len(found.by_api_key), len(found.by_product)) > LINES_MAX:
        raise ResultTooLarge(
            f"more than {LINES_MAX} grants, API keys or products have figures: ask for a shorter"
            " period"
        )
    wallet, closing = about.wallet, about.closing
    said: Document = {}
    if closing is not None:
        said = {
            "id": ids.compose("stm", about.wallet_number, closing.number),
            "number": str(closing.number),
        }
    said |= {
        "wallet_id": wallet.id,
        "customer_id": wallet.customer_id,
        "customer_name": about.customer_name,
        "currency": wallet.currency,
        "livemode": wallet.livemode,
        "start": about.time(about.period.start),
        "end": about.time(about.period.end),
        "time_zone": about.zone.key,
        "sequence": str(about.sequence),
        **totals(about, found),
    }
    if closing is not None:
        said |= {
            "closed_at": about.time(closing.closed_at),
            "closed_by": closing.closed_by,
            "previous_sha256": closing.previous_sha256,
        }
    return {name: value for name, value in said.items() if value is not None}


def totals(about: About, found: Figures) -> Document:
    """The part of the document that is added up from rows."""
    text = about.amount
    return {
        "opening_balance": text(found.opening_balance),
        "by_kind": _tallies(about, found.by_kind),
        "prior_period_adjustments": _tallies(about, found.prior),
        "closing_balance": text(found.closing_balance),
        "by_api_key": [
            {
                **({"api_key_id": key} if key else {}),
                "count": str(one.count),
                "consumed": text(one.consumed),
                "refunded": text(one.refunded),
                "prior_period": text(one.prior_period),
            }
            for key, one in sorted(found.by_api_key.items())
        ],
        "by_product": {
            "products": [
                {
                    **({"product_id": product} if product else {}),
                    **({"product_name": name} if name else {}),
                    "calls": str(one.calls),
                    **({"quantity": str(one.quantity)} if one.quantity else {}),
                    "consumed": text(one.consumed),
                    "refunded": text(one.refunded),
                    "prior_period": text(one.prior_period),
                }
                for (product, name), one in sorted(found.by_product.items())
            ]
        },
        "grants": [
            {**_grant(about, number, found.facts[number]), **_line(about, line)}
            for number, line in sorted(found.grants.items())
            if line.opening or line.moved
        ],
        "grants_total": _line(about, found.total()),
        "overdraft": _line(about, found.overdraft),
    }


def _tallies(about: About, tallies: Mapping[Kind, Tally]) -> list[Document]:
    return [
        {"kind": kind.word, "count": str(one.count), "amount": about.amount(one.amount)}
        for kind, one in sorted(tallies.items())
    ]


def _line(about: About, line: StatementLine) -> Document:
    text = about.amount
    moved = {name: text(line.moved.get(name, 0)) for name in line.signs}
    return {"opening": text(line.opening), **moved, "closing": text(line.closing)}


def _grant(about: About, number: int, facts: GrantFacts) -> Document:
    said = {
        "credit_grant_id": ids.compose("cg", about.wallet_number, number),
        "name": facts.name,
        "category": facts.category.word,
        "effective_at": about.time(facts.effective_at),
        "expires_at": None if facts.expires_at is None else about.time(facts.expires_at),
        "voided_at": None if facts.voided_at is None else about.time(facts.voided_at),
    }
    return {name: value for name, value in said.items() if value is not None}


def canonical(said: Document) -> str:
    """The canonical text of a document, which is hashed: sorted names, no blanks, UTF-8."""
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(content: str) -> str:
    """The SHA-256 of such a text, in hexadecimal."""
    return hashlib.sha256(content.encode()).hexdigest()
