"""Statements over REST: periods that chain, whatever they are, and stay as they were closed."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
from datetime import datetime
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from credit.v1 import statement_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.statements import canonical, digest
from creditledger.outlets.statements.files import CSV_COLUMNS
from creditledger.store.registry import records
from creditledger.store.statements import basis as statement_basis
from creditledger.store.statements import closed as closed_statements
from creditledger.store.statements.closed import Closed
from tests.support.rest import Failure, Shop, differences, failure, traffic
from tests.support.server import running
from tests.support.setup import change, findings, look

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.support.rest import Json, Served
    from tests.support.setup import Clock

pytestmark = pytest.mark.asyncio(loop_scope="module")

BERLIN = ZoneInfo("Europe/Berlin")
#: What adds to a grant, and what takes from it.
ADDS = ("granted", "refunded", "transferred_in", "prior_period")
TAKES = (
    *("consumed", "expired", "voided", "transferred_out", "debited"),
    "overdraft_repaid",
)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are several reads."""
    monkeypatch.setattr(statement_basis, "STEP_ROWS", 3)
    monkeypatch.setattr("creditledger.outlets.statements.compute.NAMED_MAX", 2)


async def stated(served: Served, wallet: str, key: str, start: int, end: int, **more: Any) -> Json:
    """The statement of a period."""
    period = {"start": time.text(start), "end": time.text(end)}
    body = await served.body(f"/v1/wallets/{wallet}/statement", key, **period, **more)
    assert adds_up(body), body
    return body


async def close(served: Served, wallet: str, key: str, **period: str) -> Json:
    """Close a period."""
    answer = await served.ask("POST", f"/v1/wallets/{wallet}/statements", key=key, json=period)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    assert adds_up(body), body
    return body


def adds_up(said: Json) -> bool:
    """Whether kinds, grants and overdraft each lead from the opening to the closing balance."""

    def closing(line: Json) -> Decimal:
        plus = sum((Decimal(line[name]) for name in ADDS), Decimal(line["opening"]))
        return plus - sum(Decimal(line[name]) for name in TAKES)

    overdraft = {name: Decimal(value) for name, value in said["overdraft"].items()}
    owed = overdraft["opening"] + overdraft["drawn"] + overdraft["prior_period"]
    owed -= overdraft["refunded"] + overdraft["repaid"]
    total, lines = said["grants_total"], said["grants"]
    rows = [*said["by_kind"], *said["prior_period_adjustments"]]
    moved = sum(Decimal(one["amount"]) for one in rows)
    by_key = sum(Decimal(one["consumed"]) for one in said["by_api_key"])
    by_product = {
        name: sum(Decimal(one[name]) for one in said["by_product"]["products"])
        for name in ("consumed", "refunded", "prior_period")
    }
    used = sum(Decimal(one["amount"]) for one in said["by_kind"] if one["kind"] == "usage")
    return (
        all(closing(line) == Decimal(line["closing"]) for line in [total, *lines])
        and all(
            sum(Decimal(line[name]) for line in lines) == Decimal(total[name])
            for name in ("opening", *ADDS, *TAKES, "closing")
        )
        and owed == overdraft["closing"]
        and Decimal(total["opening"]) - overdraft["opening"] == Decimal(said["opening_balance"])
        and Decimal(total["closing"]) - owed == Decimal(said["closing_balance"])
        and Decimal(said["opening_balance"]) + moved == Decimal(said["closing_balance"])
        and by_key == by_product["consumed"] == -used
        and all(
            sum(Decimal(one[name]) for one in said["by_api_key"]) == amount
            for name, amount in by_product.items()
        )
    )


def line(**figures: str) -> Json:
    """What moved a grant, as it is printed."""
    names = (
        *("opening", "granted", "consumed", "expired", "voided", "refunded", "transferred_in"),
        *("transferred_out", "debited", "overdraft_repaid", "prior_period", "closing"),
    )
    return {name: figures.get(name, "0.00") for name in names}


async def test_a_month_has_what_moved_in_it(served: Served) -> None:
    """Kinds, labels and grants of a month of a zone, each with what it did to the balance."""
    customer = await served.customer(name="Acme & Sons")
    wallet, key = await served.wallet(customer), await served.key("customer", customer)
    usage = {
        "quantities": ["10", "5"],
        "api_key_id": "apk_1",
        "product_id": "chat",
        "product_name": "Chat & Co",
    }
    given, *_ = await served.post(
        wallet,
        {"grant": {"amount": "10", "name": "Top-up"}},
        {"consumption": {"amount": "3", "usage": usage}},
        {"consumption": {"amount": "1.5"}},
        {"adjustment": {"amount": "-0.25"}},
    )
    grant = given["transactions"][0]["credit_grant_id"]
    number = int((await served.body(f"/v1/wallets/{wallet}", key))["sequence"])
    first = time.moment(served.clock.now).astimezone(BERLIN).replace(day=1)
    first = datetime(first.year, first.month, 1, tzinfo=BERLIN)
    after = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)

    body = await served.body(
        f"/v1/wallets/{wallet}/statement",
        key,
        month=f"{first:%Y-%m}",
        time_zone="Europe/Berlin",
    )

    assert adds_up(body)
    moved = line(granted="10.00", consumed="4.50", debited="0.25", closing="5.25")
    back = {"refunded": "0.00", "prior_period": "0.00"}
    assert (
        differences(
            body,
            {
                "wallet_id": wallet,
                "customer_id": customer,
                "customer_name": "Acme & Sons",
                "currency": "USD",
                "livemode": True,
                "start": first.isoformat(timespec="milliseconds"),
                "end": after.isoformat(timespec="milliseconds"),
                "time_zone": "Europe/Berlin",
                "sequence": str(number),
                "opening_balance": "0.00",
                "by_kind": [
                    {"kind": "topup", "count": "1", "amount": "10.00"},
                    {"kind": "admin_debit", "count": "1", "amount": "-0.25"},
                    {"kind": "usage", "count": "2", "amount": "-4.50"},
                ],
                "prior_period_adjustments": [],
                "closing_balance": "5.25",
                "by_api_key": [
                    {"count": "1", "consumed": "1.50", **back},
                    {"api_key_id": "apk_1", "count": "1", "consumed": "3.00", **back},
                ],
                "grants": [
                    {
                        "credit_grant_id": grant,
                        "name": "Top-up",
                        "category": "paid",
                        "effective_at": time.text_in(served.clock.now, BERLIN),
                        **moved,
                    }
                ],
                "grants_total": moved,
                "overdraft": dict.fromkeys(
                    ("opening", "drawn", "refunded", "repaid", "prior_period", "closing"), "0.00"
                ),
                "by_product": {
                    "products": [
                        {"calls": "1", "consumed": "1.50", **back},
                        {
                            "product_id": "chat",
                            "product_name": "Chat & Co",
                            "calls": "1",
                            "quantity": "15",
                            "consumed": "3.00",
                            **back,
                        },
                    ]
                },
            },
        )
        == []
    )


async def test_months_are_those_of_the_zone(served: Served) -> None:
    """They begin at its midnight, winter and summer; what is shown has its offset."""
    wallet, key = await served.wallet(), await served.key("service")
    for month, zone, start, end in (
        (
            "2026-10",
            "Europe/Berlin",
            "2026-10-01T00:00:00.000+02:00",
            "2026-11-01T00:00:00.000+01:00",
        ),
        ("2026-12", "UTC", "2026-12-01T00:00:00.000Z", "2027-01-01T00:00:00.000Z"),
        (
            "2026-03",
            "Asia/Kathmandu",
            "2026-03-01T00:00:00.000+05:45",
            "2026-04-01T00:00:00.000+05:45",
        ),
    ):
        path = f"/v1/wallets/{wallet}/statement"
        body = await served.body(path, key, month=month, time_zone=zone)

        assert (body["start"], body["end"], body["time_zone"]) == (start, end, zone)


async def test_every_movement_has_its_column(served: Served) -> None:
    """Refunds, expiries, voids, transfers and overdraft, in lines that add up."""
    wallet, key = await served.wallet(), await served.key("admin")
    other = await served.wallet()
    start = served.clock.now
    limit = {"overdraft_limit": "5"}
    assert (
        await served.ask("PATCH", f"/v1/wallets/{wallet}", key=key, json=limit)
    ).status_code == 200
    soon = time.text(start + time.HOUR)
    _, _, lot, spent, *_ = await served.post(
        wallet,
        {"consumption": {"amount": "4"}},
        {"grant": {"amount": "10"}},
        {"grant": {"amount": "2", "priority": 90}},
        {"consumption": {"amount": "1"}},
        {"grant": {"amount": "3", "priority": 1, "expires_at": soon}},
        {"consumption": {"amount": "1"}},
    )
    await served.post(wallet, {"refund": {"posting_id": spent["posting_id"], "amount": "0.5"}})
    moves: list[tuple[str, Json]] = [
        (
            "/v1/transfers",
            {"from_wallet_id": wallet, "to_wallet_id": other, "amount": "0.25"},
        ),
        (f"/v1/credit-grants/{lot['transactions'][0]['credit_grant_id']}:void", {}),
    ]
    for path, body in moves:
        sent = {**body, "idempotency_key": f"key {served.number()}"}
        answer = await served.ask("POST", path, key=key, json=sent)
        assert answer.status_code == 200, answer.text
    served.clock.advance(2 * time.HOUR)

    body = await stated(served, wallet, key, start, served.clock.now)

    assert body["grants_total"] == line(
        granted="15.00",
        consumed="2.00",
        expired="1.75",
        voided="2.00",
        refunded="0.50",
        transferred_out="0.25",
        overdraft_repaid="4.00",
        closing="5.50",
    )
    assert {name: value for name, value in body["overdraft"].items() if value != "0.00"} == {
        "drawn": "4.00",
        "repaid": "4.00",
    }
    assert body["closing_balance"] == "5.50"
    received = await stated(served, other, key, start, served.clock.now)
    assert received["grants_total"] == line(transferred_in="0.25", expired="0.25")


async def test_what_is_due_is_written_down_first(served: Served) -> None:
    """A grant that ended, and that no row says so of, is in the statement of its end."""
    wallet, key = await served.wallet(), await served.key("service")
    start = served.clock.now
    ends = start + time.HOUR
    await served.post(wallet, {"grant": {"amount": "1", "expires_at": time.text(ends)}})
    served.clock.advance(2 * time.DAY)

    first, second = [
        await stated(served, wallet, key, *period)
        for period in pairwise((start, ends, served.clock.now))
    ]

    assert first["closing_balance"] == second["opening_balance"] == "1.00"
    assert second["closing_balance"] == "0.00"
    assert second["by_kind"] == [{"kind": "expiry", "count": "1", "amount": "-1.00"}]


async def test_what_comes_late_is_an_adjustment_of_the_next_period(served: Served) -> None:
    """A closed period stays as it is; what happened in it is in the next, and said to be so."""
    wallet, key = await served.wallet(), await served.key("service")
    await served.post(wallet, {"grant": {"amount": "10"}}, {"consumption": {"amount": "1"}})
    start, late = served.clock.now - time.DAY, served.clock.now + 1
    served.clock.advance(time.DAY)
    period = {"start": time.text(start), "end": time.text(served.clock.now)}
    closed = await close(served, wallet, key, **period)
    end = served.clock.now
    served.clock.advance(time.DAY)
    await served.post(
        wallet,
        {"consumption": {"amount": "2"}, "effective_at": time.text(late)},
        {"consumption": {"amount": "4"}},
    )

    again = await close(served, wallet, key, **period)
    then = await stated(served, wallet, key, start, end)
    wider = await stated(served, wallet, key, start - 1, end)
    after = await stated(served, wallet, key, end, served.clock.now + 1)

    assert again == closed
    assert await served.body(f"/v1/statements/{closed['id']}", key) == closed
    assert then == closed
    # What is not exactly that period is as of now, with the same figures.
    about_it = {"id", "number", "closed_at", "closed_by", "sha256", "sequence", "start"}
    assert {n: v for n, v in closed.items() if n not in about_it} == {
        n: v for n, v in wider.items() if n not in about_it
    }
    assert not about_it & wider.keys() - {"sequence", "start"}
    assert after["opening_balance"] == closed["closing_balance"] == "9.00"
    assert after["by_kind"] == [{"kind": "usage", "count": "1", "amount": "-4.00"}]
    late_ones = [{"kind": "usage", "count": "1", "amount": "-2.00"}]
    assert after["prior_period_adjustments"] == late_ones
    (total,) = after["grants"]
    assert (total["consumed"], total["prior_period"], total["closing"]) == ("4.00", "-2.00", "3.00")


async def test_periods_chain_and_agree_with_lists(served: Served) -> None:
    """Of random traffic, cut anywhere and closed now and then, each period opens as one closed.

    All together are the wallet's rows.
    """
    chance, key = Random(20260921), await served.key("service")
    customer = await served.customer()
    wallet = await served.wallet(customer)
    shop = Shop(wallet, 9, [], [], ["apk_1", "apk_2"])
    start = served.clock.now - 40 * time.DAY
    ends = [start]
    for _ in range(6):
        await traffic(served, chance, [shop], 25)
        served.clock.advance(chance.choice([1, time.DAY]))
        if chance.random() < 0.6:
            period = {"start": time.text(ends[-1]), "end": time.text(served.clock.now)}
            await close(served, wallet, key, **period, time_zone="America/St_Johns")
            ends.append(served.clock.now)
    end = served.clock.now + 2 * time.MINUTE
    cuts = sorted({start, *(chance.randrange(start, end) for _ in range(8)), *ends, end})

    said = [await stated(served, wallet, key, *period) for period in pairwise(cuts)]

    for before, after in pairwise(said):
        assert before["closing_balance"] == after["opening_balance"]
        left = {one["credit_grant_id"]: one["closing"] for one in before["grants"]}
        had = {one["credit_grant_id"]: one["opening"] for one in after["grants"]}
        assert {n: v for n, v in left.items() if v != "0.00"} == {
            n: v for n, v in had.items() if v != "0.00"
        }
    rows = [row for one in said for row in (*one["by_kind"], *one["prior_period_adjustments"])]
    owner = {"customer_id": customer}
    listed = await served.body("/api/credit-transactions", key, **owner)
    assert sum(int(row["count"]) for row in rows) == listed["count"]
    assert (
        said[-1]["closing_balance"] == (await served.body(f"/v1/wallets/{wallet}", key))["balance"]
    )
    assert len(ends) > 2
    pages = await served.body(f"/v1/wallets/{wallet}/statements", key, page_size=2)
    rest = await served.body(
        f"/v1/wallets/{wallet}/statements",
        key,
        page_size=2,
        page_token=pages.get("next_page_token", ""),
    )
    numbers = [one["number"] for one in (*pages["statements"], *rest["statements"])]
    assert numbers[:3] == [str(len(ends) - 1 - i) for i in range(min(3, len(ends) - 1))]


async def test_a_period_is_closed_once(served: Served) -> None:
    """Many at once get the same statement; of two different first periods one is refused."""
    wallet, key = await served.wallet(), await served.key("service")
    await served.post(wallet, {"grant": {"amount": "1"}})
    served.clock.advance(time.DAY)
    now = served.clock.now
    path = f"/v1/wallets/{wallet}/statements"
    periods_ = [
        {"start": time.text(now - days * time.DAY), "end": time.text(now)} for days in (2, 3)
    ]

    answers = await asyncio.gather(
        *(served.ask("POST", path, key=key, json=periods_[i % 2]) for i in range(4))
    )

    closed = [answer.json() for answer in answers if answer.status_code == 200]
    refused = [failure(answer).code for answer in answers if answer.status_code != 200]
    assert closed
    assert all(one == closed[0] for one in closed)
    assert set(refused) <= {"CONFLICT", "PERIOD_NOT_NEXT"}
    assert len(refused) >= 2
    assert len((await served.body(path, key))["statements"]) == 1


async def test_what_cannot_be_closed_is_refused(served: Served) -> None:
    """A period that has not ended, that leaves a gap or that overlaps names the field at fault."""
    wallet, key = await served.wallet(), await served.key("service")
    now = served.clock.now
    path = f"/v1/wallets/{wallet}/statements"

    async def refusal(**period: str) -> Failure:
        return failure(await served.ask("POST", path, key=key, json=period))

    def days(first: int, last: int) -> dict[str, str]:
        return {
            "start": time.text(now + first * time.DAY),
            "end": time.text(now + last * time.DAY),
        }

    month = time.text(now + 31 * time.DAY)[:7]
    assert await refusal(**days(-1, 1)) == Failure(400, "INVALID_FIELD", "end")
    assert await refusal(month=month) == Failure(400, "INVALID_FIELD", "month")
    await close(served, wallet, key, **days(-9, -5))
    for period in (days(-4, -3), days(-6, -3), days(-9, -4), days(-20, -9)):
        assert await refusal(**period) == Failure(400, "PERIOD_NOT_NEXT", "start")
    assert await refusal(month="2026-01") == Failure(400, "PERIOD_NOT_NEXT", "month")
    await close(served, wallet, key, **days(-5, -4))


async def test_what_is_no_period_is_refused(served: Served) -> None:
    """A month, or a start before an end, in a zone that there is."""
    wallet, key = await served.wallet(), await served.key("service")
    path = f"/v1/wallets/{wallet}/statement"
    start, end = "2026-09-01T00:00:00Z", "2026-09-02T00:00:00Z"
    for query, code, param in (
        ({}, "MISSING_FIELD", "start"),
        ({"start": start}, "MISSING_FIELD", "end"),
        ({"end": end}, "MISSING_FIELD", "start"),
        ({"start": end, "end": end}, "INVALID_FIELD", "end"),
        ({"start": start, "end": "0001-01-01T00:00:00Z"}, "INVALID_FIELD", "end"),
        ({"start": start, "end": "9999-12-31T00:00:00Z"}, "INVALID_FIELD", "end"),
        ({"month": "2026-13"}, "INVALID_FIELD", "month"),
        ({"month": "2026-09", "start": start}, "INVALID_FIELD", "month"),
        ({"month": "2026-09", "time_zone": "Europe/Atlantis"}, "INVALID_FIELD", "time_zone"),
    ):
        assert await served.refusal(path, key, **query) == Failure(400, code, param), query
    no_wallet = await served.refusal("/v1/wallets/wal_none/statement", key, month="2026-09")
    assert no_wallet == Failure(404, "NOT_FOUND", "wallet_id")
    no_id = await served.refusal("/v1/statements/stm_00000000000010000000000009", key)
    assert no_id == Failure(404, "NOT_FOUND", "id")
    bad_id = await served.refusal("/v1/statements/cg_00000000000010000000000009", key)
    assert bad_id == Failure(400, "INVALID_FIELD", "id")


# --- files ----------------------------------------------------------------------------------------

#: What a spreadsheet would compute, and a browser run.
EVIL = '=HYPERLINK("x")<script>alert(1)</script>&amp;'


class Tables(HTMLParser):
    """The tables of a page as rows of texts, and everything that it would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.fetches: list[str] = []
        self.open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetches += [name for name, _ in attrs if name in ("src", "href", "onclick", "style")]
        if tag in ("script", "link", "img", "iframe", "object", "base", "form"):
            self.fetches.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tables[-1][-1][-1] += data


#: As wide as a digit and as a point.
PADDING = "\u2007\u2008"


def _point(figure: str) -> int:
    return next((at for at, one in enumerate(figure) if one in ".\u2008"), len(figure))


async def rendered(served: Served, path: str, key: str, **query: str) -> httpx.Response:
    answer = await served.get(path, key, **query)
    assert answer.status_code == 200, answer.text
    return answer


async def a_statement_with_strange_names(served: Served) -> tuple[str, str, Json]:
    """A closed one, whose grants, labels and customer are called what nobody should be."""
    customer = await served.customer(name=EVIL)
    wallet, key = await served.wallet(customer), await served.key("service")
    usage = {
        "quantities": ["1"],
        "api_key_id": EVIL,
        "product_id": EVIL,
        "product_name": f"of {EVIL}",
    }
    await served.post(
        wallet,
        {"grant": {"amount": "10", "name": EVIL, "priority": 1}},
        {"grant": {"amount": "0.5", "category": "promotional"}},
        {"consumption": {"amount": "3.25", "usage": usage}},
        {"adjustment": {"amount": "-0.125"}},
    )
    served.clock.advance(time.DAY)
    period = {"start": "2026-01-01T00:00:00Z", "end": time.text(served.clock.now)}
    closed = await close(served, wallet, key, **period, time_zone="Asia/Kathmandu")
    return wallet, key, closed


async def test_the_text_of_a_closed_statement_has_its_digest(served: Served) -> None:
    """The file alone proves its digest, and holds that of the statement before it."""
    wallet, key, first = await a_statement_with_strange_names(served)
    served.clock.advance(time.DAY)
    end = time.text(served.clock.now)
    second = await close(served, wallet, key, start=first["end"], end=end)
    for closed in (first, second):
        path = f"/v1/statements/{closed['id']}:render"
        answer = await rendered(served, path, key, format="json")

        assert answer.headers["content-type"] == "application/json"
        assert hashlib.sha256(answer.content).hexdigest() == closed["sha256"]
        assert {**answer.json(), "sha256": closed["sha256"]} == closed
    assert "previous_sha256" not in first
    assert second["previous_sha256"] == first["sha256"]
    assert second["opening_balance"] == first["closing_balance"]


async def test_a_spreadsheet_has_the_figures_and_no_formula(served: Served) -> None:
    """Each figure is in its column, people's words are words; a digest line comes if asked for."""
    wallet, key, closed = await a_statement_with_strange_names(served)

    path = f"/v1/statements/{closed['id']}:render"
    answer = await rendered(served, path, key)
    lined = await rendered(served, path, key, digest_line="true")

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    digest = hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["x-export-sha256"] == digest
    assert lined.text == f"{answer.text}# rows={len(rows)} sha256={digest}\n"
    assert lined.headers["x-export-sha256"] == hashlib.sha256(lined.content).hexdigest()
    named = f"statement_{wallet}_{closed['start'][:10]}_{closed['end'][:10]}.csv"
    assert answer.headers["content-disposition"] == f'attachment; filename="{named}"'
    sheet = (await rendered(served, path, key, excel="comma")).content.decode("utf-8-sig")
    cells = csv.reader(io.StringIO(sheet), delimiter=";")
    plain = csv.reader(io.StringIO(answer.text))
    texts = 5  # section, item, name, category, count
    for one, other in zip(cells, plain, strict=True):
        assert one == [*other[:texts], *(figure.replace(".", ",") for figure in other[texts:])]
    refused = await served.refusal(path, key, excel="comma", format="html")
    assert refused == Failure(400, "INVALID_FIELD", "excel")
    assert not [cell for row in rows for cell in row.values() if cell[:1] in "=+@" and cell]
    about = {row["item"]: row["name"] for row in rows if row["section"] == "about"}
    assert about["sha256"] == closed["sha256"]
    assert about["customer_name"] == "'" + EVIL
    balances = [row["amount"] for row in rows if row["section"] == "balance"]
    assert balances == [closed["opening_balance"], closed["closing_balance"]]
    for section, name in (("kind", "by_kind"), ("prior_period", "prior_period_adjustments")):
        found = [row for row in rows if row["section"] == section]
        assert [
            {"kind": row["item"], "count": row["count"], "amount": row["amount"]} for row in found
        ] == closed[name]
    for section, lines in (
        ("grant", closed["grants"]),
        ("grants_total", [closed["grants_total"]]),
        ("overdraft", [closed["overdraft"]]),
        ("api_key", closed["by_api_key"]),
        ("product", closed["by_product"]["products"]),
    ):
        found = [row for row in rows if row["section"] == section]
        assert len(found) == len(lines)
        for row, one in zip(found, lines, strict=True):
            figures = {n: v for n, v in one.items() if n in row and n != "name"}
            assert {name: row[name] for name in figures} == figures
    (product,) = [row for row in rows if row["section"] == "product"]
    assert (product["item"], product["name"]) == ("'" + EVIL, f"of {EVIL}")
    assert (product["calls"], product["quantity"]) == ("1", "1")
    (first, *_) = [row for row in rows if row["section"] == "grant"]
    assert (first["item"], first["name"]) == (closed["grants"][0]["credit_grant_id"], "'" + EVIL)
    path = f"/v1/wallets/{wallet}/statement:render"
    same = await rendered(served, path, key, start=closed["start"], end=closed["end"])
    assert same.content == answer.content
    wider = {"start": "2025-12-31T00:00:00Z", "end": closed["end"]}
    now = await rendered(served, path, key, **wider)
    sections = ("balance", "kind", "api_key", "product", "grant", "grants_total")
    again = list(csv.DictReader(io.StringIO(now.text)))
    assert [row for row in again if row["section"] in sections] == [
        row for row in rows if row["section"] in sections
    ]


async def test_a_page_has_the_figures_and_nothing_that_runs(served: Served) -> None:
    """Made for printing: people's words are shown as they are, and nothing is fetched."""
    wallet, key, closed = await a_statement_with_strange_names(served)

    answer = await rendered(served, f"/v1/statements/{closed['id']}:render", key, format="html")
    path = f"/v1/wallets/{wallet}/statement:render"
    period = {"start": closed["start"], "end": closed["end"]}
    same = await rendered(served, path, key, format="html", **period)
    assert same.content == answer.content
    wider = {"start": "2025-12-31T00:00:00Z", "end": closed["end"]}
    now = await rendered(served, path, key, format="html", **wider)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Tables()
    page.feed(answer.text)
    page.close()
    assert page.fetches == []
    assert "<script" not in answer.text
    assert "@media print" in answer.text
    assert closed["sha256"] in answer.text
    for table in page.tables:
        for column in zip(*table[1:], strict=True):
            figures = [one for one in column if one and one[-1] in PADDING + "0123456789"]
            # A point, or a space as wide, and behind it as many digits or spaces as wide.
            widths = {len(one) - _point(one) for one in figures}
            assert len(widths) <= 1, column
    balance, keys, products, grants = [
        [[one.rstrip(PADDING) for one in row] for row in table] for table in page.tables
    ]
    assert balance == [
        ["", "Rows", "Amount"],
        ["Opening balance", "", "0.00"],
        ["Topup", "2", "10.50"],
        ["Admin debit", "1", "-0.125"],
        ["Usage", "1", "-3.25"],
        ["Closing balance", "", closed["closing_balance"]],
    ]
    assert keys[1:] == [[EVIL, "1", "3.25", "0.00", "0.00"]]
    columns = ["Product", "Name", "Calls", "Quantity", "Consumed", "Refunded", "Prior period"]
    assert products == [columns, [EVIL, f"of {EVIL}", "1", "1", "3.25", "0.00", "0.00"]]
    names = "Grant Id Category Ends Opening Granted Consumed Expired Debited Closing"
    assert grants[0] == names.split(" ")
    one, other = closed["grants"]
    moved = ("0.00", "10.00", "3.25", "", "0.125", "6.625")
    assert grants[1:] == [
        [EVIL, one["credit_grant_id"], "paid", "never", *moved],
        ["", other["credit_grant_id"], "promotional", "never", "0.00", "0.50", "", "", "", "0.50"],
        ["All grants", "", "", "", "0.00", "10.50", "3.25", "", "0.125", "7.125"],
    ]
    open_page = Tables()
    open_page.feed(now.text)
    assert open_page.tables == page.tables
    assert "Not closed" in now.text


async def test_a_statement_closed_without_products_stays_as_it_is(served: Served) -> None:
    """Older versions closed statements without usage by product: nothing is added to them."""
    wallet, key = await served.wallet(), await served.key("service")
    usage = {"quantities": ["7"], "product_id": "chat"}
    await served.post(
        wallet, {"grant": {"amount": "5"}}, {"consumption": {"amount": "1", "usage": usage}}
    )
    served.clock.advance(time.DAY)
    start, end = "2026-01-01T00:00:00.000Z", time.text(served.clock.now)
    said = await served.body(f"/v1/wallets/{wallet}/statement", key, start=start, end=end)
    found = look(served.database_url, lambda c: records.wallet(c, wallet))
    assert found is not None
    number = found.number
    older = {name: value for name, value in said.items() if name != "by_product"}
    older |= {"id": ids.compose("stm", number, 1), "number": "1", "closed_at": end}
    content = canonical(older)
    one = Closed(
        wallet=number,
        number=1,
        starts_at=time.parse(start, field="start"),
        ends_at=served.clock.now,
        time_zone="UTC",
        closed_sequence=int(said["sequence"]),
        opening_balance=0,
        closing_balance=4 * 10**9,
        closed_at=served.clock.now,
        closed_by=None,
        content=content,
        sha256=digest(content),
    )
    change(served.database_url, lambda c: closed_statements.add(c, one))
    path = f"/v1/statements/{older['id']}"

    assert await served.body(path, key) == {**older, "sha256": one.sha256}
    assert (await rendered(served, f"{path}:render", key, format="json")).text == content
    head, *rows = (await rendered(served, f"{path}:render", key)).text.splitlines()
    assert head.split(",") == list(CSV_COLUMNS)
    assert not [row for row in rows if row.startswith("product")]
    page = await rendered(served, f"{path}:render", key, format="html")
    assert "Usage by product" not in page.text
    assert findings(served.database_url) == []
    # The next one has it, and goes on from there.
    served.clock.advance(time.DAY)
    await served.post(wallet, {"consumption": {"amount": "1", "usage": usage}})
    served.clock.advance(time.DAY)
    after = await close(served, wallet, key, start=end, end=time.text(served.clock.now))
    (product,) = after["by_product"]["products"]
    assert (product["product_id"], product["calls"], product["quantity"]) == ("chat", "1", "7")
    assert after["previous_sha256"] == one.sha256


async def test_a_format_that_there_is_not_is_refused(served: Served) -> None:
    """Of a statement that is closed, and of one that is not."""
    wallet, key, closed = await a_statement_with_strange_names(served)
    month = {"month": "2026-09"}
    for path, query in (
        (f"/v1/statements/{closed['id']}:render", {}),
        (f"/v1/wallets/{wallet}/statement:render", month),
    ):
        refused = await served.refusal(path, key, format="pdf", **query)
        assert refused == Failure(400, "INVALID_FIELD", "format")
    gone = "/v1/statements/stm_00000000000010000000000099:render"
    assert await served.refusal(gone, key) == Failure(404, "NOT_FOUND", "id")


async def test_what_is_too_much_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement of too many grants, labels or products, and too many at once."""
    wallet, key = await served.wallet(), await served.key("service")
    await served.post(wallet, {"grant": {"amount": "1"}}, {"grant": {"amount": "1"}})
    path = f"/v1/wallets/{wallet}/statement"
    period = {"start": "2026-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"}
    for name, most, code, status in (
        ("domain.statements.LINES_MAX", 1, "RESULT_TOO_LARGE", 400),
        ("store.statements.basis.SUMS_MAX", 1, "RESULT_TOO_LARGE", 400),
        ("outlets.statements.compute.STATEMENTS_MAX", 0, "OVERLOADED", 429),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"creditledger.{name}", most)
            assert await served.refusal(path, key, **period) == Failure(status, code)
    assert len((await served.body(path, key, **period))["grants"]) == 2
    wallet = await served.wallet()
    usages = [{"quantities": ["1"], "product_id": f"chat-{i}"} for i in range(3)]
    spent = [{"consumption": {"amount": "0.1", "usage": usage}} for usage in usages]
    await served.post(wallet, {"grant": {"amount": "1"}}, *spent)
    path = f"/v1/wallets/{wallet}/statement"
    with monkeypatch.context() as patch:
        patch.setattr("creditledger.domain.statements.LINES_MAX", 2)
        assert await served.refusal(path, key, **period) == Failure(400, "RESULT_TOO_LARGE")
    products = (await served.body(path, key, **period))["by_product"]["products"]
    assert [one["product_id"] for one in products] == ["chat-0", "chat-1", "chat-2"]


async def test_a_page_names_its_issuer(new_database: Callable[[], str], clock: Clock) -> None:
    """The issuer stands at the head of the page, and in no other form of a statement."""
    issuer = {"statement_issuer": "Mill & Sons, 1 Example Road"}
    async with running(new_database(), clock, **issuer) as here:
        await here.local.new_wallet("wal_acme", "cus_acme")
        request = pb.StatementServiceRenderRequest(
            wallet_id="wal_acme", month="2026-01", format="html"
        )
        pieces = StatementServiceStub(here.local.channel).Render(request)
        page = b"".join([one.data async for one in pieces])

    assert b"<p class=quiet>Mill &amp; Sons, 1 Example Road</p>\n<h1>" in page
    assert b"counter(page)" in page
