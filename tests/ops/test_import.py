"""Real traffic: a CSV of calls is charged once, in order, to the last digit, whatever happens."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from creditledger.domain import money
from creditledger.domain.errors import InvalidField
from creditledger.ops.import_usage import (
    LINES_NAMED_MAX,
    CannotImport,
    Plan,
    Prices,
    Report,
    _moment,
    import_usage,
)
from tests.support.commands import creditledger, start
from tests.support.server import PATIENCE_SECONDS, Running, Services, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = tuple(DATA / f"AzureLLMInferenceTrace_{name}.csv" for name in ("code", "conv"))
COLUMNS = ("ContextTokens", "GeneratedTokens")
PRICES = "2.50,10.00"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"

real_data = pytest.mark.skipif(
    not all(file.exists() for file in FILES),
    reason="the real traffic (Azure Public Dataset) is not beside this checkout",
)


@pytest.fixture
async def here(database_url: str) -> AsyncIterator[Running]:
    """A server on the system's clock, and an empty USD wallet: wal_acme."""
    async with running(database_url, time.now, bills_from=0) as started:
        await started.local.new_wallet("wal_acme", "cus_acme")
        yield started


async def top_up(services: Services, amount: str, key: str = "topup") -> None:
    """Give the wallet credit."""
    request = pb.PostRequest(
        wallet_id="wal_acme", idempotency_key=key, grant=pb.GrantOperation(amount=amount)
    )
    await services.wallets.Post(request)


async def balance(services: Services, wallet_id: str = "wal_acme") -> str:
    """What the wallet has."""
    wallet = await services.wallets.GetWallet(pb.GetWalletRequest(wallet_id=wallet_id))
    return wallet.balance


def plan(file: Path, **changes: Any) -> Plan:
    """An import of the file's two columns at PRICES."""
    fields = {
        "file": file,
        "wallet_id": "wal_acme",
        "api_key_id": "apk_gateway",
        "product": "Example Chat",
        "category": "llm",
        "prices": Prices.parse(PRICES),
        "quantity_columns": COLUMNS,
        "timestamp_column": "TIMESTAMP",
        "import_id": file.name,
    }
    return Plan(**{**fields, **changes})


async def imported(services: Services, planned: Plan) -> Report:
    """Run the import."""
    return await import_usage(services.channel, planned, on_progress=lambda _done, _of: None)


def key_of(line: str, place: int = 1, import_id: str = "calls.csv") -> str:
    """The idempotency key of a row without quotes, the `place`th of those equal to it."""
    fields = ",".join(json.dumps(value) for value in line.split(","))
    digest = hashlib.sha256(f"[{fields}]".encode()).hexdigest()[:32]
    return f"import:{import_id}:{digest}:{place}"


def written(file: Path, lines: Iterable[str], header: str = HEADER) -> Path:
    """The file with these lines under a header."""
    file.write_text("\n".join([header, *lines, ""]))
    return file


# --- prices, amounts, times -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "precision"),
    [
        ("2.50,10.00", (1, 4), 40),
        ("100", (1,), 1),
        ("10", (1,), 10),
        ("0", (0,), 1),
        ("0.15, 0.60", (3, 12), 2_000),
        ("0.00001", (1,), 10_000_000),
        ("3,0", (3, 0), 100),
    ],
)
def test_prices_are_integers_of_the_least_precision(
    text: str, units: tuple[int, ...], precision: int
) -> None:
    """price of one = unit / 10000 / precision, and no smaller precision would do."""
    prices = Prices.parse(text)

    assert (prices.units, prices.precision) == (units, precision)
    of_one = [Fraction(unit, 10_000 * precision) for unit in units]
    assert [price * 1_000_000 for price in of_one] == [Fraction(p) for p in text.split(",")]


@pytest.mark.parametrize("text", ["", "2.50,", "-1", "1e3", "abc", "1,,2", "NaN", "0.00000001"])
def test_prices_that_are_none(text: str) -> None:
    """What is no price, or needs a precision beyond the contract's, is refused."""
    with pytest.raises(CannotImport):
        Prices.parse(text)


@pytest.mark.parametrize(
    ("quantities", "scale", "amount"),
    [
        ((4_808, 10), 9, 12_120_000),
        ((1, 0), 6, 2),  # 2.5 smallest units: the half goes to the even 2
        ((3, 0), 6, 8),  # 7.5: to the even 8
        ((5, 0), 6, 12),  # 12.5
        ((1, 1), 6, 12),  # 12.5: the sum is rounded, not its parts
        ((1, 0), 5, 0),
        ((0, 0), 9, 0),
        ((10**15, 10**15), 2, 1_250_000_000_000),
    ],
)
def test_amounts_round_half_to_even(quantities: tuple[int, ...], scale: int, amount: int) -> None:
    """Σ quantity × price / 10^6, rounded once, exactly."""
    assert Prices.parse(PRICES).amount(quantities, scale) == amount


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-16 18:17:03.9799600", "2023-11-16T18:17:03.979Z"),
        ("2023-11-16T18:17:03", "2023-11-16T18:17:03.000Z"),
        ("2023-11-16 18:17:03Z", "2023-11-16T18:17:03.000Z"),
        ("2023-11-16 18:17:03.9999999+02:00", "2023-11-16T16:17:03.999Z"),
        ("2023-11-16T18:17:03-05:30", "2023-11-16T23:47:03.000Z"),
    ],
)
def test_times_without_zone_are_utc(text: str, expected: str) -> None:
    """Digits below a millisecond are cut off; a zone that is there is obeyed."""
    assert time.text(_moment(text, "TIMESTAMP")) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2023-02-30 00:00:00", "1700158623", "2023-11-16"]
)
def test_times_that_are_none(text: str) -> None:
    """What names no moment is refused."""
    with pytest.raises(InvalidField):
        _moment(text, "TIMESTAMP")


# --- small files ----------------------------------------------------------------------------------


async def test_a_row_becomes_a_consumption(here: Running, tmp_path: Path) -> None:
    """Amount, time, labels, quantities and prices of a row are those of its posting."""
    await top_up(here.local, "1")
    file = written(tmp_path / "calls.csv", ["2023-11-16 18:17:03.9799600,4808,10"])

    await imported(here.local, plan(file))

    posting = await here.local.wallets.GetPosting(
        pb.GetPostingRequest(
            wallet_id="wal_acme", idempotency_key=key_of("2023-11-16 18:17:03.9799600,4808,10")
        )
    )
    (row,) = posting.transactions
    assert (row.amount, row.effective_at) == ("-0.01212", "2023-11-16T18:17:03.979Z")
    key = await here.local.key("customer", "cus_acme")
    answer = await here.network.billing.ListApiKeyBills(
        billing_pb.ListApiKeyBillsRequest(
            cycle_type="Day", start_time=1_700_092_800, end_time=1_700_179_199
        ),
        metadata=key,
    )
    (bill,) = answer.bills
    assert (bill.owner_id, bill.product_name, bill.category, bill.billing_method) == (
        "apk_gateway",
        "Example Chat",
        "llm",
        1,
    )
    assert (bill.bill_num0, bill.bill_num1, bill.amount_decimal) == (4808, 10, "0.01212")
    assert (bill.base_price0, bill.base_price1, bill.price_precision) == (1, 4, 40)
    assert (bill.discount_price0, bill.discount_price1) == (1, 4)


async def test_each_row_has_its_own_fate(here: Running, tmp_path: Path) -> None:
    """Zero, malformed and unpaid rows are reported by line and stop nobody else."""
    await top_up(here.local, "1")
    file = written(
        tmp_path / "calls.csv",
        [
            "2023-11-16 18:00:00,100,100",
            "2023-11-16 18:00:01,0,0",
            "yesterday,100,100",
            "2023-11-16 18:00:02,many,100",
            "2023-11-16 18:00:03,-1,100",
            "2023-11-16 18:00:04,100",
            "",
            "2023-11-16 18:00:05,400000,0",
            "2023-11-16 18:00:06,400001,0",
            "2023-11-16 18:00:07,8000,0",
        ],
    )

    report = await imported(here.local, plan(file))

    assert (report.rows, report.posted, report.replayed) == (9, 2, 0)
    assert (report.zero.count, report.zero.lines) == (1, [3])
    assert {code: one.lines for code, one in report.refused.items()} == {
        "INVALID_FIELD": [4, 5, 6, 7],
        "INSUFFICIENT_CREDIT": [9, 10],
    }
    assert report.conflicts.count == 0
    assert report.refusals == 6
    assert report.quantities == [8100, 100]
    assert await balance(here.local) == "0.97875"


async def test_a_second_run_books_nothing_twice(here: Running, tmp_path: Path) -> None:
    """The same rows are replayed wherever they stand now, and new ones posted."""
    await top_up(here.local, "1")
    lines = [f"2023-11-16 18:00:0{i},{100 + i},1" for i in range(6)]
    file = written(tmp_path / "calls.csv", lines[:4])
    await imported(here.local, plan(file))
    written(file, [lines[5], *lines[:3], "2023-11-16 18:00:09,0,0", lines[3], "", lines[4]])

    report = await imported(here.local, plan(file))
    again = await imported(here.local, plan(file, prices=Prices.parse("2.50,20.00")))

    assert (report.posted, report.replayed, report.zero.count) == (2, 4, 1)
    assert report.is_complete
    # At other prices the same rows are conflicts.
    assert (again.posted, again.replayed, again.conflicts.count) == (0, 0, 6)
    assert again.conflicts.lines == [2, 3, 4, 5, 7]
    assert not again.is_complete
    amount = sum(Prices.parse(PRICES).amount((100 + i, 1), 9) for i in range(6))
    assert await balance(here.local) == money.text(10**9 - amount, 9)


async def test_a_file_that_lost_rows_is_not_posted(here: Running, tmp_path: Path) -> None:
    """Rows of earlier runs that the file lacks are listed; `allow_missing` posts the rest."""
    await top_up(here.local, "1")
    lines = [f"2023-11-16 18:00:0{i},{100 + i},1" for i in range(4)]
    file = written(tmp_path / "calls.csv", lines)
    await imported(here.local, plan(file))
    # Others whose ids begin alike are not this import's.
    await imported(here.local, plan(file, import_id="calls.csv:2"))
    before = await balance(here.local)
    written(file, [lines[0], lines[2], lines[3], "2023-11-16 18:00:05,500,1"])

    stopped = await imported(here.local, plan(file))

    assert (stopped.stopped, stopped.posted, stopped.rows) == (True, 0, 0)
    assert (stopped.missing, stopped.missing_keys) == (1, [key_of(lines[1])])
    assert not stopped.is_complete
    assert await balance(here.local) == before
    allowed = await imported(here.local, plan(file, allow_missing=True))
    assert (allowed.posted, allowed.replayed, allowed.missing) == (1, 3, 1)
    assert allowed.is_complete


async def test_rows_that_went_unbooked_may_go(here: Running, tmp_path: Path) -> None:
    """To delete a blank, refused or zero row changes no charge and leaves no row missing."""
    await top_up(here.local, "1")
    good = ["2023-11-16 18:00:00,100,1", "2023-11-16 18:00:00,100,1", "2023-11-16 18:00:02,5,5"]
    bad = ["", "2023-11-16 18:00:01,0,0", "never,1,1", "2023-11-16 18:00:03,900000,0"]
    file = written(tmp_path / "calls.csv", [bad[0], good[0], *bad[1:3], good[1], bad[3], good[2]])
    first = await imported(here.local, plan(file))
    left = await balance(here.local)
    written(file, good)

    second = await imported(here.local, plan(file))

    assert (first.posted, first.refusals) == (3, 2)
    assert (second.posted, second.replayed, second.missing) == (0, 3, 0)
    assert second.is_complete
    assert await balance(here.local) == left


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('2023-11-16 18:00:00,100,"1\n2023-11-16 18:00:01,100,1\n', 3),
        ('2023-11-16 18:00:00,"1"00,1\n', 3),
        ("2023-11-16 18:00:00,100," + "9" * 200_000 + "\n", 3),
    ],
    ids=["a quote that is not closed", "text behind a quote", "a field too long"],
)
async def test_a_file_that_is_no_csv_is_refused_whole(
    here: Running, tmp_path: Path, text: str, line: int
) -> None:
    """Of a file that is no CSV nothing is posted, and the line at fault is named."""
    await top_up(here.local, "1")
    file = tmp_path / "calls.csv"
    file.write_text(f"{HEADER}\n2023-11-16 18:00:00,1,1\n{text}")

    with pytest.raises(CannotImport, match=rf"from line {line} on"):
        await imported(here.local, plan(file))

    assert await balance(here.local) == "1.00"


async def test_a_row_of_another_width_is_refused(here: Running, tmp_path: Path) -> None:
    """A number with a comma in it is two fields: the row is refused, not charged for the first."""
    await top_up(here.local, "1")
    lines = ["2023-11-16 18:00:00,1,000,5", "2023-11-16 18:00:01,1", "2023-11-16 18:00:02,1,5"]
    file = written(tmp_path / "calls.csv", lines)

    report = await imported(here.local, plan(file))

    assert (report.posted, report.refused["INVALID_FIELD"].lines) == (1, [2, 3])


async def test_a_column_may_name_the_rows(here: Running, tmp_path: Path) -> None:
    """A row is known by its key column; a value that stands twice is refused by line."""
    await top_up(here.local, "1")
    header = f"id,{HEADER}"
    lines = [f"call-{i},2023-11-16 18:00:0{i},100,1" for i in range(3)]
    file = written(tmp_path / "calls.csv", [*lines, lines[1], ",2023-11-16 18:00:00,1,1"], header)

    first = await imported(here.local, plan(file, key_column="id"))

    assert (first.posted, first.refused["INVALID_FIELD"].lines) == (3, [5, 6])
    lines[1] = "call-1,2023-11-16 18:00:01,999,1"
    written(file, lines, header)
    second = await imported(here.local, plan(file, key_column="id"))
    assert (second.replayed, second.conflicts.lines) == (2, [3])
    written(file, lines[1:], header)
    third = await imported(here.local, plan(file, key_column="id"))
    assert (third.stopped, third.missing_keys) == (True, ["import:calls.csv:key:call-0"])


async def by_lines(services: Services, planned: Plan, lines: dict[int, str]) -> None:
    """What an earlier version booked: the same postings under keys of lines."""
    for line, text in lines.items():
        moment, *quantities = text.split(",")
        counts = [int(one) for one in quantities]
        request = pb.PostRequest(
            wallet_id="wal_acme",
            idempotency_key=f"import:{planned.import_id}:{line}",
            effective_at=moment.replace(" ", "T") + "Z",
            consumption=pb.ConsumptionOperation(
                amount=money.text(planned.prices.amount(counts, 9), 9),
                usage=pb.Usage(
                    api_key_id="apk_gateway",
                    product_id="Example Chat",
                    product_name="Example Chat",
                    category="llm",
                    billing_method=1,
                    quantities=counts,
                    base_prices=planned.prices.units,
                    discount_prices=planned.prices.units,
                    price_precision=planned.prices.precision,
                ),
            ),
        )
        await services.wallets.Post(request)


async def test_what_was_booked_by_lines_stays_by_lines(here: Running, tmp_path: Path) -> None:
    """An import booked by lines goes on by lines, and refuses a file whose lines have moved."""
    await top_up(here.local, "1")
    lines = [f"2023-11-16 18:00:0{i},{100 + i},1" for i in range(5)]
    file = tmp_path / "calls.csv"
    planned = plan(file)
    await by_lines(here.local, planned, {2: lines[0], 3: lines[1], 4: lines[2]})

    written(file, lines[:4])
    more = await imported(here.local, planned)
    assert (more.posted, more.replayed) == (1, 3)
    posted = pb.GetPostingRequest(wallet_id="wal_acme", idempotency_key="import:calls.csv:5")
    await here.local.wallets.GetPosting(posted)
    left = await balance(here.local)
    for moved, at in (
        ([lines[0], *lines[2:]], [3, 4, 5]),
        (["2023-11-16 18:00:00,0,0", *lines], [2, 3, 4, 5]),
        ([lines[0], "", *lines[1:]], [4, 5]),
    ):
        written(file, moved)
        report = await imported(here.local, plan(file, allow_missing=True))
        assert (report.stopped, report.posted) == (True, 0)
        assert report.moved.lines == at
    assert await balance(here.local) == left
    written(file, lines)
    with pytest.raises(CannotImport, match="key-column"):
        await imported(here.local, plan(file, key_column="TIMESTAMP"))


async def test_another_import_id_is_another_import(here: Running, tmp_path: Path) -> None:
    """The id, by default the file's name, is what makes a row the same row."""
    await top_up(here.local, "1")
    file = written(tmp_path / "calls.csv", ["2023-11-16 18:00:00,100,100"])

    first = await imported(here.local, plan(file))
    other = await imported(here.local, plan(file, import_id="november"))
    same = await imported(here.local, plan(file, import_id="november"))

    assert [(r.posted, r.replayed) for r in (first, other, same)] == [(1, 0), (1, 0), (0, 1)]


async def test_the_report_names_the_first_lines_only(here: Running, tmp_path: Path) -> None:
    """However many rows are refused, memory and report stay small."""
    file = written(tmp_path / "calls.csv", [f"2023-11-16 18:00:00,{i},1" for i in range(1, 1_201)])

    report = await imported(here.local, plan(file))

    refused = report.refused["INSUFFICIENT_CREDIT"]
    assert (refused.count, len(refused.lines)) == (1_200, LINES_NAMED_MAX)
    assert refused.lines == [2, 3, 4, 5, 6]


async def test_a_busy_server_is_asked_again(database_url: str, tmp_path: Path) -> None:
    """Rows that a full queue turned away are posted a moment later, still in file order."""
    file = written(tmp_path / "calls.csv", (f"2023-11-16 18:00:00,{i},1" for i in range(1, 701)))
    async with running(database_url, time.now, queue_max=100) as started:
        await started.local.new_wallet("wal_acme", "cus_acme")
        await top_up(started.local, "1000")

        report = await imported(started.local, plan(file))

        assert (report.posted, report.refusals) == (700, 0)
        first, last = [
            await started.local.wallets.GetPosting(
                pb.GetPostingRequest(
                    wallet_id="wal_acme", idempotency_key=key_of(f"2023-11-16 18:00:00,{i},1")
                )
            )
            for i in (1, 700)
        ]
        assert [p.transactions[0].sequence for p in (first, last)] == [2, 701]


@pytest.mark.parametrize(
    "lines",
    ["", "A,B,C\n1,2,3\n", "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n"],
    ids=["empty", "other columns", "a column twice"],
)
async def test_a_file_of_other_columns_is_refused(
    here: Running, tmp_path: Path, lines: str
) -> None:
    """A file that lacks a column, or has it twice, is refused whole, with its name."""
    file = tmp_path / "calls.csv"
    file.write_text(lines)

    with pytest.raises(CannotImport, match=r"calls\.csv"):
        await imported(here.local, plan(file))


async def test_a_file_that_is_no_text_is_refused(here: Running, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, and a file that is not there, are one sentence."""
    file = tmp_path / "calls.csv"
    file.write_bytes(HEADER.encode() + b"\n\xff\xfe,1,2\n")

    with pytest.raises(CannotImport, match=r"calls\.csv"):
        await imported(here.local, plan(file))
    with pytest.raises(CannotImport, match=r"missing\.csv"):
        await imported(here.local, plan(tmp_path / "missing.csv"))


def test_a_plan_that_cannot_be(tmp_path: Path) -> None:
    """Prices and columns go together, and an import id must fit into a key."""
    for changes in (
        {"quantity_columns": ("ContextTokens",)},
        {"import_id": ""},
        {"import_id": "naïve"},
        {"import_id": "x" * 201},
    ):
        with pytest.raises(CannotImport):
            plan(tmp_path / "calls.csv", **changes)


# --- the command ----------------------------------------------------------------------------------


def command(file: Path, url: str, *more: str, import_id: str | None = None) -> tuple[str, ...]:
    """The arguments of an import of the file."""
    return (
        *("import-usage", str(file), "--database-url", url, "--wallet", "wal_acme"),
        *("--api-key-id", "apk_gateway", "--product", "Example Chat", "--category", "llm"),
        *("--price-per-million", PRICES, "--quantity-columns", ",".join(COLUMNS)),
        *("--timestamp-column", "TIMESTAMP"),
        *(() if import_id is None else ("--import-id", import_id)),
        *more,
    )


async def run(*given: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the JSON of an import; this process serves meanwhile."""
    done = await asyncio.to_thread(creditledger, *given, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_the_command_goes_through_the_server(
    here: Running, database_url: str, tmp_path: Path
) -> None:
    """While a server runs, the import is its client; refused rows make the exit code 1."""
    await top_up(here.local, "1")
    file = written(tmp_path / "calls.csv", ["2023-11-16 18:00:00,100,100", "no time,1,1"])

    code, report = await run(*command(file, database_url))

    assert code == 1
    assert report == {
        "import_id": "calls.csv",
        "rows": 2,
        "posted": 1,
        "replayed": 0,
        "zero": {"count": 0, "lines": [], "message": ""},
        "conflicts": {"count": 0, "lines": [], "message": ""},
        "refused": {
            "INVALID_FIELD": {
                "count": 1,
                "lines": [3],
                "message": report["refused"]["INVALID_FIELD"]["message"],
            }
        },
        "missing": {"count": 0, "keys": []},
        "moved": {"count": 0, "lines": [], "message": ""},
        "stopped": False,
        "amount": "0.00125",
        "currency": "USD",
        "quantities": {"ContextTokens": 100, "GeneratedTokens": 100},
        "prices": [1, 4],
        "price_precision": 40,
    }
    assert await balance(here.local) == "0.99875"


async def test_the_command_needs_no_server(database_url: str, tmp_path: Path) -> None:
    """Without a server the command has the database to itself, and says the same in words."""
    async with running(database_url, time.now) as started:
        await started.local.new_wallet("wal_acme", "cus_acme")
        await top_up(started.local, "1")
    file = written(tmp_path / "calls.csv", ["2023-11-16 18:00:00,100,100"])

    first = await asyncio.to_thread(creditledger, *command(file, database_url))
    again = await asyncio.to_thread(creditledger, *command(file, database_url))

    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert "posted    1" in first.stdout
    assert "replayed  1" in again.stdout
    assert "0.00125 USD for 100 ContextTokens, 100 GeneratedTokens" in again.stdout


async def test_a_wallet_that_is_not_there(here: Running, database_url: str, tmp_path: Path) -> None:
    """Nothing is posted, and one sentence names it."""
    file = written(tmp_path / "calls.csv", ["2023-11-16 18:00:00,100,100"])
    given = command(file, database_url, "--wallet", "wal_none")

    done = await asyncio.to_thread(creditledger, *given)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == 'creditledger: no wallet "wal_none"\n'


def test_prices_that_do_not_fit_are_wrong_usage(tmp_path: Path) -> None:
    """What cannot be an import at all is exit code 2."""
    done = creditledger(
        *command(tmp_path / "calls.csv", f"sqlite+aiosqlite:///{tmp_path}/none.db"),
        *("--price-per-million", "2.50"),
    )

    assert done.returncode == 2
    assert done.stderr.startswith("creditledger: ")
    assert done.stderr.count("\n") == 1


async def test_an_interrupted_import_resumes(
    here: Running, database_url: str, tmp_path: Path
) -> None:
    """Killed midway and run again, every row is booked once."""
    await top_up(here.local, "1000")
    rows = 8_000
    file = written(
        tmp_path / "calls.csv", (f"2023-11-16 18:00:00,{i},1" for i in range(1, rows + 1))
    )
    given = command(file, database_url)
    killed = start(*given)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await _sequence(here.local) < 1_000:
            assert killed.poll() is None
            await asyncio.sleep(0.005)
    killed.kill()
    await killed.ended()
    booked = await _sequence(here.local) - 1

    code, report = await run(*given)

    assert 0 < booked < rows
    assert code == 0
    # What the killed one had sent may have been booked after its end was seen.
    assert report["posted"] + report["replayed"] == rows
    assert report["replayed"] >= booked
    assert await _sequence(here.local) == rows + 1
    spent = Decimal(rows * (rows + 1) // 2 * 25 + rows * 100).scaleb(-7)
    assert Decimal(await balance(here.local)) == 1000 - spent


async def _sequence(services: Services) -> int:
    wallet = await services.wallets.GetWallet(pb.GetWalletRequest(wallet_id="wal_acme"))
    return wallet.sequence


# --- the real files -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A row of the real files, priced here and not by the project."""

    file: str
    line: int
    quantities: tuple[int, int]
    amount: Decimal


def calls() -> Iterator[Call]:
    """Every call of both files, in order."""
    for file in FILES:
        with file.open(newline="") as text:
            for line, row in enumerate(csv.DictReader(text), 2):
                into, out = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                exact = (into * Decimal("2.50") + out * Decimal("10.00")) / 1_000_000
                amount = exact.quantize(Decimal("1e-9"), ROUND_HALF_EVEN)
                yield Call(file.name, line, (into, out), amount)


@real_data
async def test_both_files_agree_with_independent_figures(here: Running, database_url: str) -> None:
    """List, totals, summary, bills by day, balance and verify say what the files say."""
    await top_up(here.local, "1000")
    every = list(calls())
    spent = sum((call.amount for call in every), Decimal())
    into, out = (sum(call.quantities[i] for call in every) for i in range(2))
    assert (len(every), into, out) == (28_185, 40_421_844, 4_334_561)

    reports = []
    for file in FILES:
        code, report = await run(*command(file, database_url))
        assert (code, report["refused"], report["replayed"]) == (0, {}, 0)
        reports.append(report)

    assert sum(report["posted"] for report in reports) == len(every)
    assert sum(Decimal(report["amount"]) for report in reports) == spent
    assert Decimal(await balance(here.local)) == 1000 - spent
    me = await here.local.key("customer", "cus_acme")
    summary = await here.network.transactions.Summary(
        list_pb.CreditTransactionServiceSummaryRequest(customer_id="cus_acme"), metadata=me
    )
    assert summary.transaction_count == len(every)
    assert int(summary.total_quantity) == into + out
    assert Decimal(summary.total_credit_amount) == -spent
    listed = await here.network.transactions.List(
        list_pb.CreditTransactionServiceListRequest(customer_id="cus_acme"), metadata=me
    )
    assert listed.count == len(every) + 1
    assert Decimal(listed.list[0].running_balance) == 1000 - spent
    assert Decimal(listed.list[0].amount) == -every[-1].amount
    used = await here.network.billing.ListTransactions(
        billing_pb.ListTransactionsRequest(kind="usage", page_size=1), metadata=me
    )
    assert used.total == len(every)
    answer = await here.network.billing.ListApiKeyBills(
        billing_pb.ListApiKeyBillsRequest(
            cycle_type="Day", start_time=1_700_006_400, end_time=1_700_265_599
        ),
        metadata=me,
    )
    (bill,) = answer.bills  # every call is of 2023-11-16
    assert (bill.start_time, bill.end_time) == (1_700_092_800, 1_700_179_199)
    assert (bill.bill_num0, bill.bill_num1) == (into, out)
    assert Decimal(bill.amount_decimal) == spent
    assert Decimal(bill.pay_amount_decimal) == spent
    assert bill.amount == int((spent * 10_000).to_integral_value("ROUND_HALF_UP"))
    verified = await asyncio.to_thread(creditledger, "verify", "--database-url", database_url)
    assert verified.returncode == 0, verified.stdout


@real_data
async def test_a_top_up_that_runs_out_midway(here: Running, database_url: str) -> None:
    """Rows that cannot be paid are refused each on its own, and posted after another top-up."""
    left = Decimal(20)
    await top_up(here.local, "20")
    every = [call for call in calls() if call.file == FILES[0].name]
    paid = []
    for call in every:
        if call.amount <= left:
            left -= call.amount
            paid.append(call)
    could_pay = {call.line for call in paid}
    refused = [call.line for call in every if call.line not in could_pay]
    assert 0 < len(paid) < len(every)

    code, report = await run(*command(FILES[0], database_url))

    assert code == 1
    assert report["posted"] == len(paid)
    assert report["refused"].keys() == {"INSUFFICIENT_CREDIT"}
    assert report["refused"]["INSUFFICIENT_CREDIT"]["count"] == len(refused)
    assert report["refused"]["INSUFFICIENT_CREDIT"]["lines"] == refused[:LINES_NAMED_MAX]
    assert Decimal(await balance(here.local)) == left

    await top_up(here.local, "100", key="another")
    code, report = await run(*command(FILES[0], database_url))

    assert (code, report["posted"], report["replayed"]) == (0, len(refused), len(paid))
    spent = sum((call.amount for call in every), Decimal())
    assert Decimal(report["amount"]) == spent
    assert Decimal(await balance(here.local)) == 120 - spent
