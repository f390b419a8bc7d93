"""Credit transactions as a file: CSV, or JSON line by line, and how a file is checked.

Every line of a file is a row. Its SHA-256 is kept outside it; a file with another one has been cut
off or changed. On demand the file ends in a digest line, which is no row: the number of rows, the
sum of their amounts by currency, and the SHA-256 of all bytes before it.
Pure: lines in, bytes out.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, Literal, NamedTuple
from zoneinfo import ZoneInfo

from creditledger.domain import clock, ids, money
from creditledger.domain.model import Dimension, Kind, Type
from creditledger.domain.views import WalletPlace, source
from creditledger.outlets.exports.checksums import NotWhole
from creditledger.store.read.export_walk import ExportRow

Format = Literal["csv", "ndjson"]
FORMATS: Mapping[str, Format] = {"csv": "csv", "ndjson": "ndjson"}
CONTENT_TYPES: Mapping[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
}
#: What the digest line begins with in a CSV; in JSON it is the key of its object.
MARK = "#"


class Dialect(NamedTuple):
    """How a CSV is written."""

    begin: str  #: Before the names of the columns.
    separator: str
    decimal_mark: str


PLAIN = Dialect("", ",", ".")
#: What Excel opens without an import dialog, by the decimal mark of its region. It takes a file
#: for UTF-8 only after a byte order mark. Where the mark is a comma it separates by semicolons.
EXCEL: Mapping[str, Dialect] = {
    "point": Dialect("\ufeff", ",", "."),
    "comma": Dialect("\ufeff", ";", ","),
}

#: What makes a spreadsheet compute a cell instead of showing it, in either width.
_COMPUTED = "=+\\-@\uff1d\uff0b\uff0d\uff20"
#: Blanks that a spreadsheet passes over; those of no width are no blanks to Python.
_BLANKS = "\\s\u200b\u2060\ufeff"
#: Where a cell begins: at its own beginning and, for a spreadsheet that separates by semicolons or
#: splits lines itself, behind one of these.
_FORMULA = re.compile(f"(^[{_BLANKS}]*|[;\t\r\n][{_BLANKS}]*)(?=[{_COMPUTED}])")
#: A control at the beginning of a cell may be dropped, with what it stands before.
_CONTROLS = ("\t", "\r", "\n")
#: Controls that turn the direction of text, so that it is read as something else.
_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
#: Longer than any digest line: a sum for each of a thousand currencies.
_TAIL_BYTES_MAX = 128 * 1024
_PIECE_BYTES = 1024 * 1024
_DIGEST = re.compile(rb"[0-9a-f]{64}")
_KIND_WORDS = {kind.value: kind.word for kind in Kind}
_TYPE_WORDS = {type_.value: type_.word for type_ in Type}


class Shown(NamedTuple):
    """A line, and what its numbers stand for."""

    line: ExportRow
    wallet: WalletPlace
    dimension: Dimension
    zone: ZoneInfo

    @property
    def source(self) -> Mapping[str, str]:
        """Where it came from."""
        line = self.line
        linked = None
        if line.linked_wallet is not None and line.linked_posting is not None:
            linked = line.linked_wallet, line.linked_posting
        return source(_json(line.source), line.wallet, line.refund_of, linked)

    def time(self, moment: int) -> str:
        """RFC 3339 in the export's zone."""
        return _time(moment, self.zone)

    def amount(self, units: int) -> str:
        """A decimal in the wallet's currency."""
        return money.text(units, self.wallet.scale)


# Rows come in the order of time, so their times repeat.
@lru_cache(maxsize=4_096)
def _time(moment: int, zone: ZoneInfo) -> str:
    return clock.text_in(moment, zone)


def _json(text: str | None) -> Mapping[str, str]:
    found: Mapping[str, str] = json.loads(text) if text else {}
    return found


def _grant(one: Shown) -> str | None:
    line = one.line
    return None if line.grant is None else ids.compose("cg", line.wallet, line.grant)


def _effective_at(one: Shown) -> str:
    line = one.line
    return one.time(line.created_at if line.effective_at is None else line.effective_at)


#: What a row may be asked for, in the order in which all of them come. None is absent.
COLUMNS: Mapping[str, Callable[[Shown], object]] = {
    "id": lambda one: ids.compose("ct", one.line.wallet, one.line.sequence),
    "created_at": lambda one: one.time(one.line.created_at),
    "effective_at": _effective_at,
    "customer_id": lambda one: one.wallet.customer_id,
    "wallet_id": lambda one: one.wallet.id,
    "sequence": lambda one: one.line.sequence,
    "posting_id": lambda one: ids.compose("pst", one.line.wallet, one.line.posting),
    "type": lambda one: _TYPE_WORDS[one.dimension.type],
    "kind": lambda one: _KIND_WORDS[one.dimension.kind],
    "amount": lambda one: one.amount(one.line.amount),
    "running_balance": lambda one: one.amount(one.line.running_balance),
    "currency_id": lambda one: one.wallet.currency,
    "livemode": lambda one: one.wallet.livemode,
    "credit_grant_id": _grant,
    "meter_id": lambda one: one.dimension.meter_id,
    "meter_event_id": lambda one: one.line.meter_event_id,
    "subscription_id": lambda one: one.dimension.subscription_id,
    "api_key_id": lambda one: one.dimension.api_key_id or None,
    "product_id": lambda one: one.dimension.product_id or None,
    "product_name": lambda one: one.dimension.product_name or None,
    "category": lambda one: one.dimension.category or None,
    "description": lambda one: one.line.description,
    "note": lambda one: one.line.note,
    "source": lambda one: one.source or None,
    "metadata": lambda one: _json(one.line.metadata) or None,
}
#: The same of surface (a)'s list, under its names: the items of a customer's USD wallets, whose ids
#: go on from one wallet to the next.
BILLING_COLUMNS: Mapping[str, Callable[[Shown], object]] = {
    "id": lambda one: one.wallet.rows_before + one.line.sequence,
    "created_at": lambda one: clock.text_seconds(one.line.created_at),
    "kind": COLUMNS["kind"],
    "amount_usd": COLUMNS["amount"],
    "balance_after_usd": COLUMNS["running_balance"],
    "source": COLUMNS["source"],
    "note": COLUMNS["note"],
}
#: Columns of the client's own words, which a spreadsheet might take for a formula.
TEXTS = frozenset(
    {
        *("meter_event_id", "api_key_id", "product_id", "product_name", "category"),
        *("description", "note"),
    }
)


#: Columns of decimals.
AMOUNTS = frozenset({"amount", "running_balance", "amount_usd", "balance_after_usd"})

#: Columns that are the same in all rows of one wallet and dimension: most of them, so they are
#: worked out once for many rows.
SAME = frozenset(
    {
        *("customer_id", "wallet_id", "currency_id", "livemode", "type", "kind"),
        *("meter_id", "subscription_id", "api_key_id"),
        *("product_id", "product_name", "category"),
    }
)
#: Wallets and dimensions of which that is remembered.
_SAME_MAX = 10_000


@dataclass(slots=True)
class Export:
    """One export under way: what has been written of it, to be told at its end."""

    format: Format
    columns: Mapping[str, Callable[[Shown], object]]
    zone: ZoneInfo
    dialect: Dialect = PLAIN  #: Of a CSV.
    rows: int = 0
    sums: dict[tuple[str, int], int] = field(default_factory=dict)  #: By currency and scale.
    _digest: Any = field(default_factory=hashlib.sha256)
    _same: dict[tuple[int, int], list[object]] = field(default_factory=dict)

    def head(self) -> bytes:
        """What comes before the rows."""
        if self.format == "ndjson":
            return b""
        return self._written(self.dialect.begin + self._csv([list(self.columns)]))

    def body(
        self,
        lines: Sequence[ExportRow],
        wallets: Mapping[int, WalletPlace],
        dimensions: Mapping[tuple[int, int], Dimension],
    ) -> bytes:
        """These lines as text; of each its wallet and dimension must be there."""
        is_csv = self.format == "csv"
        shown = cell if is_csv else _value
        mark = self.dialect.decimal_mark if is_csv else "."
        own = [
            (place, _marked(value, mark) if name in AMOUNTS else value, name in TEXTS)
            for place, (name, value) in enumerate(self.columns.items())
            if name not in SAME
        ]
        found = []
        for line in lines:
            wallet = wallets[line.wallet]
            one = Shown(line, wallet, dimensions[line.wallet, line.dimension], self.zone)
            unit = wallet.currency, wallet.scale
            self.sums[unit] = self.sums.get(unit, 0) + line.amount
            row = self._alike(one).copy()
            for place, value, is_text in own:
                what = value(one)
                # Numbers and ids are text already, and need no look.
                row[place] = what if type(what) is str and not is_text else shown(what, is_text)
            found.append(row)
        self.rows += len(lines)
        if is_csv:
            return self._written(self._csv(found))
        return self._written("".join(_object(zip(self.columns, row, strict=True)) for row in found))

    def _alike(self, one: Shown) -> list[object]:
        """The row as far as it is like others of its wallet and dimension."""
        place = one.line.wallet, one.line.dimension
        row = self._same.get(place)
        if row is None:
            shown = cell if self.format == "csv" else _value
            row = [
                shown(value(one), name in TEXTS) if name in SAME else None
                for name, value in self.columns.items()
            ]
            if len(self._same) >= _SAME_MAX:
                self._same.clear()
            self._same[place] = row
        return row

    @property
    def sha256(self) -> str:
        """The digest of all bytes so far, in hexadecimal."""
        digest: str = self._digest.hexdigest()
        return digest

    def digest_line(self) -> bytes:
        """The last line of a file that has one."""
        sums = {
            currency: money.text(units, scale)
            for (currency, scale), units in sorted(self.sums.items())
        }
        said = {"rows": self.rows, "sums": sums, "sha256": self.sha256}
        if self.format == "ndjson":
            return self._written(_object([(MARK, said)]))
        shown = " ".join(f"{currency}={amount}" for currency, amount in sums.items())
        return self._written(f"{MARK} rows={self.rows} sums: {shown} sha256={said['sha256']}\n")

    def resume(self, rows: int, sums: Mapping[tuple[str, int], int], file: BinaryIO) -> None:
        """Go on behind what an interrupted export has written, all of `file`."""
        self.rows, self.sums = rows, dict(sums)
        while piece := file.read(_PIECE_BYTES):
            self._digest.update(piece)

    def _csv(self, rows: Iterable[Sequence[object]]) -> str:
        return csv_text(rows, self.dialect.separator)

    def _written(self, text: str) -> bytes:
        data = text.encode()
        self._digest.update(data)
        return data


def _marked(value: Callable[[Shown], object], decimal_mark: str) -> Callable[[Shown], object]:
    """The column with another decimal mark."""
    if decimal_mark == ".":
        return value
    return lambda one: str(value(one)).replace(".", decimal_mark)


def check_digest_line(file: BinaryIO) -> str:
    """The digest of a file without its digest line, if it is the one in that line.

    Reads the file once, in pieces. Raises NotWhole.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES_MAX))
    end = file.read()
    last = end.rstrip(b"\n").rpartition(b"\n")[2]
    told = _DIGEST.search(last)
    if told is None or not end.endswith(b"\n") or not last.startswith((b"#", b'{"#"')):
        raise NotWhole(
            "it has neither a .sha256 beside it nor a digest line, so nothing says if it is whole"
        )
    before = size - len(last) - 1
    digest = hashlib.sha256()
    file.seek(0)
    while before > 0:
        piece = file.read(min(before, _PIECE_BYTES))
        if not piece:
            break
        digest.update(piece)
        before -= len(piece)
    if digest.hexdigest().encode() != told[0]:
        raise NotWhole("it has another digest than its digest line: it was changed")
    return digest.hexdigest()


def csv_text(rows: Iterable[Sequence[object]], separator: str = ",") -> str:
    """Rows of cells as lines of a CSV."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows(rows)
    return out.getvalue()


def cell(value: object, is_text: bool) -> object:  # a flag of the column
    """A value as a cell of a CSV; of a client's text nothing that a spreadsheet would compute."""
    if value is None:
        return ""
    if is_text:
        return safe(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON reads an escaped semicolon as what it is, and no spreadsheet splits the cell at it.
    return (
        value if isinstance(value, str | int) else visible(_compact(value)).replace(";", "\\u003b")
    )


def safe(text: str) -> str:
    """Other people's text as a cell of a CSV, so that no spreadsheet computes any of it."""
    marked = _FORMULA.sub(r"\1'", visible(text))
    return f"'{marked}" if marked.startswith(_CONTROLS) else marked


def visible(text: str) -> str:
    """Other people's text with the controls of its direction as escapes, such as \\u202e."""
    return _BIDI.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _value(value: object, _is_text: bool) -> object:  # as cell
    return value


def _object(pairs: Iterable[tuple[str, object]]) -> str:
    return _compact({name: value for name, value in pairs if value is not None}) + "\n"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
