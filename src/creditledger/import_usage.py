"""Real traffic into the ledger: a CSV file of calls, one consumption for each row.

Called by the command line with a channel to the ledger; knows the contract as any client does.
Rows go through `BatchPost` in file order under keys made of the import's id and the line, so that
what was booked once is replayed, never booked again: run it anew after an interruption.
"""

import asyncio
import csv
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from io import BufferedReader, TextIOWrapper
from itertools import islice
from math import lcm
from pathlib import Path

import grpc
from credit.v1 import registry_service_pb2, registry_service_pb2_grpc, wallet_service_pb2
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub

from creditledger import clock, money
from creditledger.errors import InvalidField, echo

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
#: Lines that the report names for each reason.
LINES_NAMED_MAX = 5
MILLION = 1_000_000
#: Unit of the prices of a usage: 1/10000 of the currency.
PRICE_UNIT = 10_000

_PRICE = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?", re.ASCII)
_QUANTITY = re.compile(r"[0-9]{1,16}", re.ASCII)
_IMPORT_ID = re.compile(r"[\x20-\x7e]{1,200}", re.ASCII)
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

    def __post_init__(self) -> None:
        if len(self.quantity_columns) != len(self.prices.per_million):
            raise CannotImport(
                f"There are {len(self.prices.per_million)} prices for"
                f" {len(self.quantity_columns)} quantity columns; each column needs one."
            )
        if not _IMPORT_ID.fullmatch(self.import_id):
            raise CannotImport("The import id must be 1 to 200 printable ASCII characters.")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file, priced."""

    line: int  #: Of the file, whose header is line 1.
    quantities: tuple[int, ...]
    amount: int  #: Smallest units of the wallet's currency. > 0.
    effective_at: int  #: Milliseconds; finer digits are cut off.


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no call."""

    line: int
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
    """What became of the rows. Every row is counted in exactly one of the five."""

    currency: str
    scale: int
    rows: int = 0
    posted: int = 0
    replayed: int = 0  #: Booked by an earlier run.
    zero: Reason = field(default_factory=lambda: Reason(""))
    conflicts: Reason = field(default_factory=lambda: Reason(""))  #: Booked with other content.
    refused: dict[str, Reason] = field(default_factory=dict)  #: By error code.
    amount: int = 0  #: Σ of the rows posted and replayed, in smallest units.
    quantities: list[int] = field(default_factory=list)  #: The same of each column.

    @property
    def refusals(self) -> int:
        """Rows that are not in the ledger as the file has them."""
        return self.conflicts.count + sum(reason.count for reason in self.refused.values())

    def booked(self, row: Row, *, replayed: bool) -> None:
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

    Memory does not grow with the file. `on_progress(bytes done, bytes in all)` is called after each
    batch. Raises CannotImport, and grpc.aio.AioRpcError when the server goes away: what is booked
    by then stays so, and the next run goes on.
    """
    wallets = WalletServiceStub(channel)
    currency, scale = await _currency(channel, plan.wallet_id)
    report = Report(currency, scale, quantities=[0] * len(plan.quantity_columns))
    with _opened(plan.file) as (raw, text, size):
        lines = _lines(text, plan, scale)
        while batch := list(islice(lines, BATCH)):
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
            on_progress(raw.tell(), size)
    return report


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
    except (UnicodeDecodeError, csv.Error) as error:
        raise CannotImport(f"{path} is no CSV file in UTF-8: {error}.") from None


def _lines(text: TextIOWrapper, plan: Plan, scale: int) -> Iterator[Row | Malformed]:
    """Each line after the header, blank ones aside."""
    reader = csv.reader(text)
    header = next(reader, [])
    wanted = (*plan.quantity_columns, plan.timestamp_column)
    for name in wanted:
        if header.count(name) != 1:
            raise CannotImport(
                f"{plan.file} has {header.count(name)} columns {echo(name)};"
                f" its columns are {', '.join(header)[:200]}."
            )
    places = [header.index(name) for name in wanted]
    for values in reader:
        if values:
            try:
                found = [values[place] for place in places]
                yield _row(reader.line_num, found, plan, scale)
            except IndexError:
                yield Malformed(
                    reader.line_num, f"{len(values)} columns, the header has {len(header)}"
                )
            except InvalidField as error:
                yield Malformed(reader.line_num, error.message)


def _row(line: int, values: list[str], plan: Plan, scale: int) -> Row:
    *quantities, happened = values
    for name, quantity in zip(plan.quantity_columns, quantities, strict=True):
        if not _QUANTITY.fullmatch(quantity.strip()):
            raise InvalidField(f"{name} must be a whole number, not {echo(quantity)}", param=name)
    counts = tuple(map(int, quantities))
    return Row(
        line, counts, plan.prices.amount(counts, scale), _moment(happened, plan.timestamp_column)
    )


def _moment(text: str, column: str) -> int:
    """Milliseconds of a time, in UTC where it names no zone; a blank may stand for the T."""
    spelled = text.strip().replace(" ", "T", 1)
    return clock.parse(spelled if _ZONE.search(spelled) else f"{spelled}Z", field=column)


async def _post(wallets: WalletServiceStub, plan: Plan, rows: list[Row], report: Report) -> None:
    """Post the rows and count their fates.

    Those refused for the moment are posted again, in smaller calls, before any that follow them.
    """
    waiting, size, vain = rows, BATCH, 0
    while waiting:
        some, waiting = waiting[:size], waiting[size:]
        request = wallet_service_pb2.BatchPostRequest(
            postings=[_posting(row, plan, report.scale) for row in some]
        )
        answer = await wallets.BatchPost(request, timeout=CALL_SECONDS_MAX)
        again = []
        for row, result in zip(some, answer.results, strict=True):
            if result.HasField("posting"):
                report.booked(row, replayed=result.posting.replayed)
            elif result.error.code in PASSING and vain < VAIN_CALLS_MAX:
                again.append(row)
            else:
                report.refuse(result.error.code, row.line, result.error.message)
        vain = vain + 1 if len(again) == len(some) else 0
        if again:
            waiting, size = again + waiting, max(1, size // 10)
            await asyncio.sleep(0.05 * 2**vain)


def _posting(row: Row, plan: Plan, scale: int) -> wallet_service_pb2.PostRequest:
    return wallet_service_pb2.PostRequest(
        wallet_id=plan.wallet_id,
        idempotency_key=f"import:{plan.import_id}:{row.line}",
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
