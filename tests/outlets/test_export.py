"""Exports over REST: whole files of what lists show in pages, and their digests."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import re
from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from creditledger.domain import clock as time
from creditledger.outlets.exports import stream as export_stream
from creditledger.outlets.exports.files import COLUMNS
from tests.support.rest import Failure, failure, metadata

if TYPE_CHECKING:
    import httpx

    from tests.support.rest import Json, Served

EXPORT = "/api/credit-transactions:export"
LIST = "/api/credit-transactions"
STATEMENT = "/api/v1/me/billing/transactions.csv"
HISTORY = "/api/v1/me/billing/transactions"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are several transactions and pieces."""
    monkeypatch.setattr(export_stream, "STEP_ROWS", 3)
    monkeypatch.setattr(export_stream, "PIECE_BYTES", 100)


async def exported(served: Served, key: str, path: str = EXPORT, **query: Any) -> str:
    """The file, if its headers have the number of its rows, and its id leads to its digest."""
    answer = await served.get(path, key, **query)
    assert answer.status_code == 200, answer.text
    ndjson = query.get("format") == "ndjson"
    kind = "application/x-ndjson" if ndjson else "text/csv; charset=utf-8"
    assert answer.headers["content-type"] == kind
    text = answer.content.decode()
    rows = len(objects(text)) if ndjson else len(table(text))
    assert await finished(served, key, answer) == {
        "id": answer.headers["x-export-id"],
        "rows": str(rows),
        "sha256": hashlib.sha256(answer.content).hexdigest(),
        "livemode": True,
        "finished_at": time.text(served.clock.now),
    }
    assert answer.headers["x-export-rows"] == str(rows)
    return text


async def finished(served: Served, key: str, answer: httpx.Response) -> Json:
    """The answer to a question for the export of this answer's id."""
    return await served.body(f"/v1/exports/{answer.headers['x-export-id']}", key)


def table(text: str) -> list[dict[str, str]]:
    """The rows of a CSV by the names of its columns."""
    return list(csv.DictReader(io.StringIO(text)))


def objects(text: str) -> list[Json]:
    """The rows of an NDJSON."""
    return list(map(json.loads, text.splitlines()))


async def listed(served: Served, key: str, **query: Any) -> list[Json]:
    """All pages of the list, oldest first."""
    rows: list[Json] = []
    page: dict[str, Any] = {}
    while True:
        body = await served.body(LIST, key, **query, **page)
        rows += body["list"]
        token = body["paging"].get("next_page_token")
        if token is None:
            return rows[::-1]
        page = {"page_token": token}


async def filled(served: Served) -> tuple[str, str]:
    """A customer whose two wallets have rows of several kinds, and the other's meter."""
    customer, meter = await served.customer(), await served.meter()
    dollars = await served.wallet(customer)
    yuan = await served.wallet(customer, currency="CNY")
    usage = {"quantities": ["1000", "20"], "product_name": "=HYPERLINK(evil)", "api_key_id": "a"}
    for wallet in (dollars, yuan):
        await served.post(
            wallet,
            {"grant": {"amount": "10", "source": {"provider": "stripe", "receipt_id": "ch_1"}}},
            {"grant": {"amount": "5", "category": "promotional", "priority": 1}},
        )
        served.clock.advance(1_500)
        _, two = await served.post(
            wallet,
            {"consumption": {"amount": "1", "meter_id": meter, "usage": usage}},
            {"consumption": {"amount": "6.5"}, "description": '+1 day, "quoted"'},
        )
        served.clock.advance(1)
        await served.post(wallet, {"refund": {"posting_id": two["posting_id"]}, "note": "-sorry"})
        served.clock.advance(60_000)
    body = {
        "idempotency_key": "away",
        "from_wallet_id": dollars,
        "to_wallet_id": await served.wallet(),
        "amount": "1.5",
    }
    key = await served.key("service")
    moved = await served.ask("POST", "/v1/transfers", key=key, json=body)
    assert moved.status_code == 200
    return customer, meter


async def test_every_row_once_with_all_that_a_list_shows(served: Served) -> None:
    """In the order of time, each step beginning where the one before ended."""
    customer, _ = await filled(served)
    key = await served.key("service")

    rows = objects(await exported(served, key, customer_id=customer, format="ndjson"))

    expected = await listed(served, key, customer_id=customer)
    assert len(rows) == len(expected) > 3 * export_stream.STEP_ROWS
    for row, one in zip(rows, expected, strict=True):
        assert int(row.pop("sequence")) == int(one["sequence"])
        for name in ("api_key_id", "product_name"):
            row.pop(name, None)
        assert row == {name: one[name] for name in row}
        assert set(COLUMNS) & one.keys() - {"sequence"} - row.keys() <= {"metadata", "source"}


@pytest.mark.parametrize("file_format", ["csv", "ndjson"])
async def test_a_digest_line_where_it_is_asked_for(served: Served, file_format: str) -> None:
    """It has the number of rows, sums by currency and the digest of the same file without it."""
    customer, _ = await filled(served)
    key = await served.key("service")
    query = {"customer_id": customer, "format": file_format}
    plain = await exported(served, key, **query)

    answer = await served.get(EXPORT, key, **query, digest_line="true")

    before, last = answer.text[: len(plain)], answer.text[len(plain) :]
    rows = await listed(served, key, customer_id=customer)
    sums: dict[str, Decimal] = {}
    for one in rows:
        currency = one["currency_id"]
        sums[currency] = sums.get(currency, Decimal()) + Decimal(one["amount"])
    assert before == plain
    if file_format == "ndjson":
        assert last.endswith("\n")
        line = json.loads(last)["#"]
        assert {name: Decimal(amount) for name, amount in line["sums"].items()} == sums
    else:
        found = re.fullmatch(r"# rows=(?P<rows>\d+) sums: .* sha256=(?P<sha256>\w+)\n", last)
        assert found is not None
        line = found.groupdict()
    assert int(line["rows"]) == len(rows) == int(answer.headers["x-export-rows"])
    assert line["sha256"] == hashlib.sha256(before.encode()).hexdigest()
    whole = hashlib.sha256(answer.content).hexdigest()
    assert (await finished(served, key, answer))["sha256"] == whole


async def test_who_may_ask_for_a_digest(served: Served) -> None:
    """Operators, and keys of the customer whose key exported; for a day."""
    customer, _ = await filled(served)
    own, service = await served.key("customer", customer), await served.key("service")
    other = await served.key("customer", await served.customer())
    test_key = await served.key("service", livemode=False)
    by_customer = await served.get(STATEMENT, own)
    by_service = await served.get(EXPORT, service, customer_id=customer)
    missing = Failure(404, "NOT_FOUND", "id")

    for answer, seen_by in ((by_customer, {own, service}), (by_service, {service})):
        path = f"/v1/exports/{answer.headers['x-export-id']}"
        for key in (own, service, other, test_key):
            asked = await served.get(path, key)
            assert (asked.status_code == 200) is (key in seen_by)
            if key not in seen_by:
                assert failure(asked) == missing
    assert await served.refusal("/v1/exports/1", own) == Failure(400, "INVALID_FIELD", "id")
    served.clock.advance(time.DAY)
    assert (await finished(served, own, by_customer))["rows"] == by_customer.headers[
        "x-export-rows"
    ]
    served.clock.advance(1)
    path = f"/v1/exports/{by_customer.headers['x-export-id']}"
    assert await served.refusal(path, own) == missing


async def test_a_spreadsheet_computes_nothing(served: Served) -> None:
    """Text that would be a formula is marked as text; numbers stay numbers; quotes are doubled."""
    customer, meter = await filled(served)
    key = await served.key("service")

    rows = table(await exported(served, key, customer_id=customer))

    assert list(rows[0]) == list(COLUMNS)
    metered = [row for row in rows if row["meter_id"] == meter]
    assert {row["product_name"] for row in metered} == {"'=HYPERLINK(evil)"}
    assert {row["amount"] for row in metered} == {"-1.00"}
    assert "'-sorry" in {row["note"] for row in rows}
    assert '\'+1 day, "quoted"' in {row["description"] for row in rows}
    assert json.loads(rows[0]["source"]) == {"provider": "stripe", "receipt_id": "ch_1"}
    assert {row["livemode"] for row in rows} == {"true"}


async def test_a_browser_is_told_what_an_answer_is(served: Served) -> None:
    """Headers forbid guessing, framing, running and storing; files are offered to be saved."""
    customer, _ = await filled(served)
    key = await served.key("service")
    wallet = (await served.body("/v1/wallets", key, customer_id=customer))["wallets"][0]["id"]
    page, export = f"/v1/wallets/{wallet}/statement:render", "/api/credit-transactions:export"
    for path, query, kind in (
        ("/api/credit-transactions", {"customer_id": customer}, "json"),
        ("/api/credit-transactions", {"page": "x"}, "json"),
        ("/nowhere", {}, "json"),
        (export, {"customer_id": customer}, "csv"),
        (export, {"customer_id": customer, "format": "ndjson"}, "ndjson"),
        (page, {"month": "2026-05", "format": "html"}, "html"),
        (page, {"month": "2026-05"}, "csv"),
    ):
        headers = (await served.get(path, key, **query)).headers
        assert kind in headers["content-type"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert ("style-src 'unsafe-inline'" in policy) is (kind == "html")
        is_file = kind in {"csv", "ndjson"}
        disposition = headers.get("content-disposition", "")
        assert disposition.startswith("attachment; filename=") is is_file
        assert disposition.endswith(f'.{kind}"') is is_file


@pytest.mark.parametrize(("mark", "separator"), [("point", ","), ("comma", ";")])
async def test_excel_opens_it_as_it_is(served: Served, mark: str, separator: str) -> None:
    """A byte order mark, the separator and decimal mark of the region, and the same rows."""
    customer, _ = await filled(served)
    service, own = await served.key("service"), await served.key("customer", customer)
    for key, path, amounts in (
        (service, EXPORT, ("amount", "running_balance")),
        (own, STATEMENT, ("amount_usd", "balance_after_usd")),
    ):
        plain = table((await served.get(path, key)).text)

        answer = await served.get(path, key, excel=mark)

        assert answer.content.startswith(b"\xef\xbb\xbf" + plain_start(plain, separator))
        text = answer.content.decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), delimiter=separator))
        assert (await finished(served, key, answer))["rows"] == str(len(plain))
        for row in rows:
            for name in amounts:
                assert ("," in row[name]) is (mark == "comma")
                row[name] = row[name].replace(",", ".")
        assert rows == plain
    refused = Failure(400, "INVALID_FIELD", "excel")
    assert await served.refusal(EXPORT, service, excel="semicolon") == refused
    assert await served.refusal(EXPORT, service, excel=mark, format="ndjson") == refused


def plain_start(rows: list[dict[str, str]], separator: str) -> bytes:
    """The line with the names of the columns."""
    return f"{separator.join(rows[0])}\n".encode()


async def test_a_browser_saves_it_under_a_name_that_says_what_it_is(served: Served) -> None:
    """The kind of rows, the mode, the customer, and the first and last day in the zone."""
    customer, _ = await filled(served)
    own, service = await served.key("customer", customer), await served.key("service")
    of_tests = await served.key("service", livemode=False)
    today = time.text(served.clock.now)[:10]
    january = {
        "start": time.parse("2026-01-01T00:00:00+01:00", field="start") // time.SECOND,
        "end": time.parse("2026-01-31T23:59:59+01:00", field="end") // time.SECOND,
        "time_zone": "Europe/Berlin",
    }
    for key, path, query, name in (
        (service, EXPORT, {}, f"credit-transactions_{today}.csv"),
        (of_tests, EXPORT, {}, f"credit-transactions_test_{today}.csv"),
        (service, EXPORT, {"format": "ndjson"}, f"credit-transactions_{today}.ndjson"),
        (own, EXPORT, january, f"credit-transactions_{customer}_2026-01-01_2026-01-31.csv"),
        (own, STATEMENT, {}, f"transactions_{customer}_{today}.csv"),
    ):
        answer = await served.get(path, key, **query)
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"', query


async def test_columns_and_zone(served: Served) -> None:
    """The columns that are asked for, in that order; times as the zone's clocks showed them."""
    customer, _ = await filled(served)
    key = await served.key("service")

    text = await exported(
        served,
        key,
        customer_id=customer,
        columns="amount,created_at",
        time_zone="Asia/Kathmandu",
    )

    assert text.splitlines()[0] == "amount,created_at"
    (first, *_), one = table(text), (await listed(served, key, customer_id=customer))[0]
    assert first["created_at"].endswith("+05:45")
    assert one["created_at"].endswith("Z")
    assert first["created_at"][11:] != one["created_at"][11:]


async def test_the_filters_are_those_of_the_list(served: Served) -> None:
    """Each of them, and nothing for what names nothing."""
    customer, meter = await filled(served)
    await filled(served)
    key = await served.key("service")
    everything = await listed(served, key)
    second = 1_000
    start = served.clock.now // second - 90
    grant = everything[0]["credit_grant_id"]
    for query in (
        {},
        {"customer_id": customer},
        {"meter_id": meter},
        {"credit_grant_id": grant},
        {"start": start},
        {"end": start},
        {"customer_id": customer, "start": start},
        {"customer_id": customer, "q": "SORRY"},
        {"customer_id": customer, "source": "ch_1"},
        {"subscription_id": "sub_none"},
    ):
        text = await exported(served, key, **query, columns="id", format="ndjson")
        rows = objects(text)
        expected = [one["id"] for one in await listed(served, key, **query)]
        assert [row["id"] for row in rows] == expected, query
    assert all(a["created_at"] <= b["created_at"] for a, b in pairwise(everything))


async def test_what_is_written_meanwhile_is_not_in_it(served: Served) -> None:
    """The ledger as it was when the export began, however long it takes."""
    customer, _ = await filled(served)
    wallet = await served.wallet()
    key = await served.key("service")
    before = await listed(served, key)
    headers = {"authorization": f"Bearer {key}"}
    found = b""
    async with served.http.stream(
        "GET", EXPORT, params={"columns": "id"}, headers=headers
    ) as answer:
        async for piece in answer.aiter_bytes():
            found += piece
            await served.post(wallet, {"grant": {"amount": "1"}})

    assert customer
    assert answer.headers["x-export-rows"] == str(len(before))
    assert [row["id"] for row in table(found.decode())] == [one["id"] for one in before]
    assert len(await listed(served, key)) > len(before)


async def test_the_statement_is_the_billing_list(served: Served) -> None:
    """Of the key's customer alone: the items under their names, by kind and window."""
    customer, _ = await filled(served)
    await filled(served)
    key = await served.key("customer", customer)
    for query in ({}, {"kind": "usage"}, {"kind": "refund"}, {"until": "2026-01-01T00:00:00Z"}):
        rows = table(await exported(served, key, STATEMENT, **query))
        items = (await served.body(HISTORY, key, page_size=200, **query))["items"][::-1]
        assert [int(row["id"]) for row in rows] == [item["id"] for item in items]
        for row, item in zip(rows, items, strict=True):
            assert list(row) == list(item)
            assert (row["created_at"], row["kind"]) == (item["created_at"], item["kind"])
            assert float(row["amount_usd"]) == item["amount_usd"]
            assert float(row["balance_after_usd"]) == item["balance_after_usd"]
    service = await served.key("service")
    assert await served.refusal(STATEMENT, service) == Failure(403, "CUSTOMER_KEY_REQUIRED")


async def test_what_cannot_be_exported_is_refused_before_the_first_byte(served: Served) -> None:
    """With the common error body, not with half a file."""
    customer = await served.customer()
    key = await served.key("customer", customer)
    for query, expected in (
        ({"format": "xlsx"}, Failure(400, "INVALID_FIELD", "format")),
        ({"columns": "id,secret"}, Failure(400, "INVALID_FIELD", "columns")),
        ({"columns": "id,id"}, Failure(400, "INVALID_FIELD", "columns")),
        ({"time_zone": "Moon/Sea"}, Failure(400, "INVALID_FIELD", "time_zone")),
        ({"customer_id": "cus_none"}, Failure(404, "NOT_FOUND", "customer_id")),
        ({"page": 2}, Failure(400, "UNKNOWN_PARAMETER", "page")),
        ({"start": 2, "end": 1}, Failure(400, "INVALID_FIELD", "start")),
        ({"livemode": "false"}, Failure(403, "MODE_MISMATCH", "livemode")),
    ):
        assert await served.refusal(EXPORT, key, **query) == expected, query
    assert await served.refusal(EXPORT, None) == Failure(401, "KEY_MISSING")
    service = await served.key("service")
    assert await served.refusal(EXPORT, service, q="x") == Failure(400, "QUERY_TOO_BROAD", "q")


async def test_an_empty_file_is_whole(served: Served) -> None:
    """No row: a head alone, or nothing."""
    key = await served.key("customer", await served.customer())
    assert table(await exported(served, key)) == []
    assert await exported(served, key, format="ndjson") == ""


async def test_so_many_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are told to come again; a reader that leaves makes room."""
    monkeypatch.setattr(export_stream, "EXPORTS_MAX", 0)
    key = await served.key("service")
    answer = await served.get(EXPORT, key)
    assert failure(answer) == Failure(429, "OVERLOADED")
    assert (answer.headers["retry-after"], metadata(answer)) == ("5", {"retry_after": "5"})
    monkeypatch.setattr(export_stream, "EXPORTS_MAX", 1)
    await filled(served)
    for _ in range(3):
        headers = {"authorization": f"Bearer {key}"}
        async with served.http.stream("GET", EXPORT, headers=headers) as answer:
            await anext(answer.aiter_bytes())
        # It is known to have left when a piece finds it gone.
        for _ in range(100):
            if (await served.get(EXPORT, key)).status_code == 200:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the reader that left keeps its place")
