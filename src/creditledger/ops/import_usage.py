"""Real traffic into the ledger: a CSV file of calls, one consumption for each row.

It knows the contract as any client does. The file is read twice. The first pass finds each row's
idempotency key and holds the file against the keys that earlier runs of this import have booked;
the second posts the rows through `BatchPost`, in file order. What was booked once is replayed and
never booked again: run it anew after an interruption.

A row's key is made of the import's id and the row's content: a digest of its fields, and its place
among the rows that are equal to it. So a row keeps its key where other rows come or go. An import
that was booked by line numbers, as earlier versions did, stays by line numbers.
"""

import asyncio
import csv
import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BufferedReader, TextIOWrapper
from itertools import islice
from math import lcm
from pathlib import Path

import grpc
from credit.v1 import registry_service_pb2, registry_service_pb2_grpc, wallet_service_pb2
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub

from creditledger.domain import clock, money
from creditledger.domain.errors import InvalidField, echo

#: Rows in one call: enough to make its cost small, few enough that progress is seen to move.
BATCH = 500
#: Calls in a row that may book nothing of what is only refused for the moment: three seconds.
VAIN_CALLS_MAX = 6
#: A call of a full batch takes well below a second; a busy server may take longer.
CALL_SECONDS_MAX = 60.0
#: Refusals that say nothing of the row itself: the same key may be accepted a moment later, or in
#: a smaller batch.
PASSING = frozenset(
    {
        "CONFLICT",
        "DEADLINE_EXCEEDED",
        "OUTCOME_UNKNOWN",
        "OVERLOADED",
        "RESULT_TOO_LARGE",
        "UNAVAILABLE",
    }
)
#: Lines, or keys, that the report names for each reason.
LINES_NAMED_MAX = 5
#: Keys of earlier runs in one call.
KEYS = 1_000
#: Hexadecimal digits of a row's digest: 128 bits.
DIGEST_DIGITS = 32
#: What tells that a booked row is another row than that of its line, not the same at other prices.
_CONTENT = frozenset({"effective_at", "consumption.usage.quantities"})
MILLION = 1_000_000
#: Unit of the prices of a usage: 1/10000 of the currency.
PRICE_UNIT = 10_000

_PRICE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_QUANTITY = re.compile(r"[0-9]{1,16}", re.ASCII)
_IMPORT_ID = re.compile(r"[\x20-\x7e]{1,200}", re.ASCII)
_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)
_NAME = re.compile(r"[1-9][0-9]*|[0-9a-f]{32}:[1-9][0-9]*|key:.+", re.ASCII)
_ZONE = re.compile(r"([Zz]|[+-]\d\d:\d\d)$", re.ASCII)


class CannotImport(Exception):
    """The file or what was asked cannot be imported at all. Its text is one sentence."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million of each quantity costs, and the same as integers for the usage."""

    per_million: tuple[Fraction, ...]
    units: tuple[int, ...]  #: Price of one of each: currency × 10000 × precision.
    precision: int

    @classmethod
    def parse(cls, text: str) -> "Prices":
        """Prices of "2.50,10.00", which is units (1, 4) of precision 40.

        The precision is the least number that makes every price an integer, which the billing
        API divides by: price of one = unit / 10000 / precision. Raises CannotImport.
        """
        found = text.split(",")
        for price in found:
            if not _PRICE.fullmatch(price.strip()):
                raise CannotImport(f"A price must be a decimal such as 2.50, not {echo(price)}.")
        per_million = tuple(Fraction(price.strip()) for price in found)
        exact = [price * PRICE_UNIT / MILLION for price in per_million]
        precision = lcm(*(price.denominator for price in exact))
        if precision > 2**31 - 1:
            raise CannotImport(f"Prices this fine cannot be stated: {echo(text)}.")
        units = tuple(int(price * precision) for price in exact)
        return cls(per_million, units, precision)

    def amount(self, quantities: Iterable[int], scale: int) -> int:
        """Σ quantity × price / 10^6 in smallest units, halves rounded to even."""
        pairs = zip(quantities, self.per_million, strict=True)
        exact = sum((quantity * price for quantity, price in pairs), Fraction()) / MILLION
        # Python rounds a fraction to the nearest integer, a half to the even one.
        return round(exact * Fraction(10**scale))


@dataclass(frozen=True, slots=True)
class Plan:
    """What to import, and as what."""

    file: Path
    wallet_id: str
    api_key_id: str
    product: str
    category: str
    prices: Prices
    quantity_columns: tuple[str, ...]
    timestamp_column: str
    import_id: str
    key_column: str | None = None  #: What names a row; None: its content.
    allow_missing: bool = False  #: Rows of earlier runs may be missing in the file.

    @property
    def prefix(self) -> str:
        """What the keys of this import begin with."""
        return f"import:{self.import_id}:"

    def __post_init__(self) -> None:
        if len(self.quantity_columns) != len(self.prices.per_million):
            raise CannotImport(
                f"There are {len(self.prices.per_million)} prices for"
                f" {len(self.quantity_columns)} quantity columns; each column needs one."
            )
        if not _IMPORT_ID.fullmatch(self.import_id):
            raise CannotImport("The import id must be 1 to 200 printable ASCII characters.")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One line of the file, priced."""

    line: int  #: Of the file, whose header is line 1; of a row of several lines the last one.
    name: str  #: What tells it from every other row of the import: its key behind the prefix.
    quantities: tuple[int, ...]
    amount: int  #: Smallest units of the wallet's currency. > 0.
    effective_at: int  #: Milliseconds; finer digits are cut off.


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no call."""

    line: int
    name: str | None  #: As of a row; None where it cannot have one.
    message: str


@dataclass(slots=True)
class Reason:
    """Rows refused for one reason."""

    message: str  #: Of the first of them; empty where the reason says it all.
    count: int = 0
    lines: list[int] = field(default_factory=list)  #: The first few.

    def add(self, line: int) -> None:
        """Count one more."""
        self.count += 1
        if len(self.lines) < LINES_NAMED_MAX:
            self.lines.append(line)


@dataclass(slots=True)
class Report:
    """What became of the rows. Every row is counted in exactly one of the five.

    Unless the import was stopped before anything was posted: then all of them are 0.
    """

    currency: str
    scale: int
    rows: int = 0
    posted: int = 0
    replayed: int = 0  #: Booked by an earlier run.
    zero: Reason = field(default_factory=lambda: Reason(""))
    conflicts: Reason = field(default_factory=lambda: Reason(""))  #: Booked with other content.
    refused: dict[str, Reason] = field(default_factory=dict)  #: By error code.
    missing: int = 0  #: Rows of earlier runs that the file does not have.
    missing_keys: list[str] = field(default_factory=list)  #: Idempotency keys of the first few.
    moved: Reason = field(default_factory=lambda: Reason(""))  #: Lines that hold another row now.
    stopped: bool = False  #: Nothing was posted, because rows are missing or lines have moved.
    amount: int = 0  #: Σ of the rows posted and replayed, in smallest units.
    quantities: list[int] = field(default_factory=list)  #: The same of each column.

    @property
    def refusals(self) -> int:
        """Rows that are not in the ledger as the file has them."""
        return self.conflicts.count + sum(reason.count for reason in self.refused.values())

    @property
    def is_complete(self) -> bool:
        """Whether the ledger has the file as it is."""
        return not (self.stopped or self.refusals)

    def booked(self, row: UsageRow, *, replayed: bool) -> None:
        """Count a row that is in the ledger."""
        if replayed:
            self.replayed += 1
        else:
            self.posted += 1
        self.amount += row.amount
        for i, quantity in enumerate(row.quantities):
            self.quantities[i] += quantity

    def refuse(self, code: str, line: int, message: str) -> None:
        """Count a row that is not."""
        if code == "IDEMPOTENCY_KEY_REUSED":
            self.conflicts.message = self.conflicts.message or message
            self.conflicts.add(line)
        else:
            self.refused.setdefault(code, Reason(message)).add(line)


async def import_usage(
    channel: grpc.aio.Channel, plan: Plan, *, on_progress: Callable[[int, int], None]
) -> Report:
    """Post every row of the file that has an amount, in file order; each has a fate of its own.

    Nothing is posted where the file lacks rows that earlier runs have booked, unless the plan
    allows it, or where lines have moved of an import that is by line. Memory does not grow with the
    file. `on_progress(bytes done, bytes in all)` counts the file twice. Raises CannotImport, and
    grpc.aio.AioRpcError when the server goes away: what is booked by then stays so, and the next
    run goes on.
    """
    wallets = WalletServiceStub(channel)
    currency, scale = await _currency(channel, plan.wallet_id)
    report = Report(currency, scale, quantities=[0] * len(plan.quantity_columns))
    with closing(_Names()) as names, _opened(plan.file) as (raw, text, size):
        await _load_booked(wallets, plan, names)
        if names.by_line and plan.key_column is not None:
            raise CannotImport(
                f"{plan.import_id} has been booked by lines: leave out --key-column, or use another"
                " --import-id."
            )
        for batch in _batches(_lines(text, plan, scale, names)):
            await _compare(wallets, plan, batch, names, report)
            on_progress(raw.tell(), 2 * size)
        report.missing, missing = names.missing(LINES_NAMED_MAX)
        report.missing_keys = [plan.prefix + name for name in missing]
        report.stopped = bool(report.moved.count or (report.missing and not plan.allow_missing))
        if report.stopped:
            return report
        text.seek(0)
        names.begin_again()
        for batch in _batches(_lines(text, plan, scale, names)):
            report.rows += len(batch)
            rows = []
            for one in batch:
                if isinstance(one, Malformed):
                    report.refuse("INVALID_FIELD", one.line, one.message)
                elif one.amount:
                    rows.append(one)
                else:
                    report.zero.add(one.line)
            await _post(wallets, plan, rows, report)
            on_progress(size + raw.tell(), 2 * size)
    return report


class _Names:
    """Names of rows: which earlier runs have booked, and how often the file has each content.

    They lie in a temporary database, which uses the disk where they are many.
    """

    def __init__(self) -> None:
        self.by_line = False  #: Whether an earlier run has booked rows by their lines.
        self._kept = sqlite3.connect("", isolation_level=None)
        self._kept.execute("BEGIN")
        self._kept.execute("CREATE TABLE booked (name TEXT PRIMARY KEY, found) WITHOUT ROWID")
        self._kept.execute("CREATE TABLE seen (name TEXT PRIMARY KEY, times) WITHOUT ROWID")

    def close(self) -> None:
        """Forget them."""
        self._kept.close()

    def begin_again(self) -> None:
        """The file is read once more from its beginning."""
        self._kept.execute("DELETE FROM seen")

    def add_booked(self, name: str) -> None:
        """A row of an earlier run."""
        self.by_line = self.by_line or name.isdecimal()
        self._kept.execute("INSERT INTO booked VALUES (?, 0)", (name,))

    def count(self, content: str) -> int:
        """How often the file has had this content by now."""
        ((times,),) = self._kept.execute(
            "INSERT INTO seen VALUES (?, 1)"
            " ON CONFLICT (name) DO UPDATE SET times = times + 1 RETURNING times",
            (content,),
        )
        return int(times)

    def find(self, name: str) -> bool:
        """The file has a row of this name; whether an earlier run has booked it."""
        done = self._kept.execute("UPDATE booked SET found = 1 WHERE name = ?", (name,))
        return done.rowcount > 0

    def missing(self, most: int) -> tuple[int, list[str]]:
        """How many booked rows the file does not have, and the names of the first few."""
        ((count,),) = self._kept.execute("SELECT count(*) FROM booked WHERE NOT found")
        names = self._kept.execute("SELECT name FROM booked WHERE NOT found LIMIT ?", (most,))
        return count, [name for (name,) in names]


async def _load_booked(wallets: WalletServiceStub, plan: Plan, names: _Names) -> None:
    """What earlier runs of this import have booked."""
    request = wallet_service_pb2.ListIdempotencyKeysRequest(
        wallet_id=plan.wallet_id, prefix=plan.prefix, page_size=KEYS
    )
    while True:
        page = await wallets.ListIdempotencyKeys(request, timeout=CALL_SECONDS_MAX)
        for one in page.idempotency_keys:
            name = one.idempotency_key.removeprefix(plan.prefix)
            if _NAME.fullmatch(name):  # else it is of an import whose id begins like this one's
                names.add_booked(name)
        if not page.HasField("next_page_token"):
            return
        request.page_token = page.next_page_token


async def _compare(
    wallets: WalletServiceStub,
    plan: Plan,
    batch: "list[UsageRow | Malformed]",
    names: _Names,
    report: Report,
) -> None:
    """Note which booked rows the file has; by lines, which lines hold another row than was booked.

    A posting that is only validated answers what is booked under its key, or what differs.
    """
    booked = [one for one in batch if one.name is not None and names.find(one.name)]
    if not (booked and names.by_line):
        return
    rows = []
    for one in booked:
        if isinstance(one, UsageRow) and one.amount:
            rows.append(one)
        else:
            report.moved.add(one.line)
    if not rows:
        return
    postings = [_posting(row, plan, report.scale, validate_only=True) for row in rows]
    request = wallet_service_pb2.BatchPostRequest(postings=postings)
    answer = await wallets.BatchPost(request, timeout=CALL_SECONDS_MAX)
    for row, result in zip(rows, answer.results, strict=True):
        if result.error.code in PASSING:
            raise CannotImport(f"The ledger is busy ({result.error.code}); run it again.")
        if _CONTENT & set(result.error.metadata.get("fields", "").split(",")):
            report.moved.add(row.line)


async def _currency(channel: grpc.aio.Channel, wallet_id: str) -> tuple[str, int]:
    request = wallet_service_pb2.GetWalletRequest(wallet_id=wallet_id)
    wallet = await WalletServiceStub(channel).GetWallet(request)
    registry = registry_service_pb2_grpc.RegistryServiceStub(channel)
    currency = await registry.GetCurrency(
        registry_service_pb2.GetCurrencyRequest(currency_id=wallet.currency)
    )
    return currency.id, currency.scale


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, TextIOWrapper, int]]:
    """The file as bytes, to see how far it was read, as text, and its size."""
    try:
        with (
            path.open("rb") as raw,
            TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text,
        ):
            yield raw, text, path.stat().st_size
    except OSError as error:
        raise CannotImport(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise CannotImport(f"{path} is no CSV file in UTF-8: {error}.") from None


def _batches(lines: "Iterator[UsageRow | Malformed]") -> "Iterator[list[UsageRow | Malformed]]":
    while batch := list(islice(lines, BATCH)):
        yield batch


def _lines(
    text: TextIOWrapper, plan: Plan, scale: int, names: _Names
) -> "Iterator[UsageRow | Malformed]":
    """Each line after the header, blank ones aside."""
    reader = csv.reader(text, strict=True)
    before = 0  # the last line of the row before
    try:
        header = next(reader, [])
        keyed = () if plan.key_column is None else (plan.key_column,)
        wanted = (*plan.quantity_columns, plan.timestamp_column, *keyed)
        for name in wanted:
            if header.count(name) != 1:
                raise CannotImport(
                    f"{plan.file} has {header.count(name)} columns {echo(name)};"
                    f" its columns are {', '.join(header)[:200]}."
                )
        places = [header.index(name) for name in wanted]
        before = reader.line_num
        for values in reader:
            line, before = reader.line_num, reader.line_num
            if values:
                yield _line(line, values, len(header), places, plan, scale, names)
    except csv.Error as error:
        raise CannotImport(
            f"{plan.file} is no CSV file from line {before + 1} on: {error}."
        ) from None


def _line(
    line: int,
    values: list[str],
    width: int,
    places: list[int],
    plan: Plan,
    scale: int,
    names: _Names,
) -> UsageRow | Malformed:
    name: str | None = None
    try:
        if plan.key_column is None:
            name = str(line) if names.by_line else _content_name(values, names)
        if len(values) != width:
            raise InvalidField(f"{len(values)} columns, the header has {width}")
        found = [values[place] for place in places]
        if plan.key_column is not None:
            name = _key_name(found.pop(), plan, names)
        assert name is not None
        return _row(line, name, found, plan, scale)
    except InvalidField as error:
        return Malformed(line, name, error.message)


def _content_name(values: list[str], names: _Names) -> str:
    """A digest of the fields as the file has them, and the row's place among equal ones."""
    content = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_DIGITS]
    return f"{digest}:{names.count(digest)}"


def _key_name(value: str, plan: Plan, names: _Names) -> str:
    """By the key column. Raises InvalidField for what is no key, or stands there twice."""
    name = f"key:{value}"
    if not value or not _KEY.fullmatch(plan.prefix + name):
        raise InvalidField(
            f"{plan.key_column} must be printable ASCII and leave the key at most 255 characters"
        )
    if names.count(name) > 1:
        raise InvalidField(f"{plan.key_column} {echo(value)} stands in an earlier line")
    return name


def _row(line: int, name: str, values: list[str], plan: Plan, scale: int) -> UsageRow:
    *quantities, happened = values
    for column, quantity in zip(plan.quantity_columns, quantities, strict=True):
        if not _QUANTITY.fullmatch(quantity.strip()):
            raise InvalidField(
                f"{column} must be a whole number, not {echo(quantity)}", param=column
            )
    counts = tuple(map(int, quantities))
    moment = _moment(happened, plan.timestamp_column)
    return UsageRow(line, name, counts, plan.prices.amount(counts, scale), moment)


def _moment(text: str, column: str) -> int:
    """Milliseconds of a time, in UTC where it names no zone; a blank may stand for the T."""
    spelled = text.strip().replace(" ", "T", 1)
    return clock.parse(spelled if _ZONE.search(spelled) else f"{spelled}Z", field=column)


async def _post(
    wallets: WalletServiceStub, plan: Plan, rows: list[UsageRow], report: Report
) -> None:
    """Post the rows and count their fates.

    Those refused for the moment are posted again, in smaller calls, before any that follow them.
    """
    waiting, size, vain = rows, BATCH, 0
    while waiting:
        some, waiting = waiting[:size], waiting[size:]
        request = wallet_service_pb2.BatchPostRequest(
            postings=[_posting(row, plan, report.scale) for row in some], view="BRIEF"
        )
        answer = await wallets.BatchPost(request, timeout=CALL_SECONDS_MAX)
        again = []
        for row, result in zip(some, answer.results, strict=True):
            if result.HasField("brief"):
                report.booked(row, replayed=result.brief.replayed)
            elif result.error.code in PASSING and vain < VAIN_CALLS_MAX:
                again.append(row)
            else:
                report.refuse(result.error.code, row.line, result.error.message)
        vain = vain + 1 if len(again) == len(some) else 0
        if again:
            waiting, size = again + waiting, max(1, size // 10)
            await asyncio.sleep(0.05 * 2**vain)


def _posting(
    row: UsageRow, plan: Plan, scale: int, *, validate_only: bool = False
) -> wallet_service_pb2.PostRequest:
    return wallet_service_pb2.PostRequest(
        wallet_id=plan.wallet_id,
        idempotency_key=plan.prefix + row.name,
        validate_only=validate_only,
        effective_at=clock.text(row.effective_at),
        consumption=wallet_service_pb2.ConsumptionOperation(
            amount=money.text(row.amount, scale),
            usage=wallet_service_pb2.Usage(
                api_key_id=plan.api_key_id,
                product_id=plan.product,
                product_name=plan.product,
                category=plan.category,
                billing_method=1,
                quantities=row.quantities,
                base_prices=plan.prices.units,
                discount_prices=plan.prices.units,
                price_precision=plan.prices.precision,
            ),
        ),
    )
