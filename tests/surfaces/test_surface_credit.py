"""The three routes of /api/credit-transactions as the published document and its SDK have them.

Whole bodies of Retrieve, List and Summary; every filter, bound and token.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from creditledger.domain import clock as time
from creditledger.domain.errors import QueryTooBroad
from creditledger.store import Store
from tests.support.rest import (
    SEARCH_SECONDS_MAX,
    SUMMARY,
    TRANSACTIONS,
    Failure,
    Json,
    Served,
    differences,
    failure,
    walk,
)
from tests.support.setup import START, Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = START // 1_000
#: An id that the ledger makes: wallet number and number within, 13 characters each.
MADE_ID = re.compile(r"(ct|cg|pst)_[0-9a-hjkmnp-tv-z]{26}")
#: What a list may be asked for at once.


@dataclass(frozen=True, slots=True)
class Account:
    """A customer with a wallet and its keys."""

    customer: str
    wallet: str
    key: str
    admin: str


async def account(served: Served, **wallet: Any) -> Account:
    """A new customer's empty wallet; the keys act in the wallet's mode."""
    customer = await served.customer()
    livemode = wallet.get("livemode", True)
    return Account(
        customer,
        await served.wallet(customer, **wallet),
        await served.key("customer", customer, livemode=livemode),
        await served.key("admin", livemode=livemode),
    )


def ids(rows: Sequence[Json]) -> list[str]:
    return [row["id"] for row in rows]


# --- whole bodies ---------------------------------------------------------------------------------


async def every_type(served: Served) -> tuple[Account, list[Json]]:
    """An account that has seen every type of row, and these rows as reads show them, oldest first.

    Only the ids that the ledger makes are taken from what the postings answered.
    """
    customer = await served.customer(name="Zoë & Søn", email="zoe@example.com")
    wallet = await served.wallet(customer, overdraft_limit="5")
    mine = Account(
        customer, wallet, await served.key("customer", customer), await served.key("admin")
    )
    of_meter = {"event_name": f"calls of {customer}", "unit": "call"}
    meter = await served.meter(name="API Calls", **of_meter)
    subscription = await served.subscription(customer)
    stripe = {"provider": "stripe", "receipt_id": "ch_1", "method": "card_visa_4242"}
    ends = time.text(START + time.DAY)
    noon = time.text(START - time.HOUR)

    (topup,) = await served.post(
        wallet,
        {
            "grant": {"amount": "900", "name": "Starter pack", "expires_at": ends,
                      "priority": 7, "source": stripe},
            "description": "Top-up", "note": "by card", "metadata": {"order": "42", "a": "ß"},
        },
    )  # fmt: skip
    served.clock.advance(1_234)
    (spent,) = await served.post(
        wallet,
        {
            "consumption": {"amount": "100.0000001", "meter_id": meter, "meter_event_id": "me_7",
                            "subscription_id": subscription, "usage": {"quantities": [1]}},
            "description": "API Call Usage", "metadata": {}, "effective_at": noon,
        },
    )  # fmt: skip
    (back,) = await served.post(
        wallet, {"refund": {"posting_id": spent["posting_id"], "amount": "0.0000001"}}
    )
    served.clock.advance(time.DAY)
    ops = {"actor": "ops@example.com"}
    (credit,) = await served.post(wallet, {"adjustment": {"amount": "2", "source": ops}})
    (debit,) = await served.post(wallet, {"adjustment": {"amount": "-3"}, "note": "fee"})

    created = [time.text(START + after) for after in (0, 1_234, time.DAY + 1_234)]
    grant = topup["transactions"][0]["credit_grant_id"]
    starter = {
        "id": grant, "name": "Starter pack", "category": "paid", "priority": 7,
        "amount": "900.00", "expires_at": ends,
    }  # fmt: skip
    goodwill = {
        "id": credit["transactions"][0]["credit_grant_id"], "category": "promotional",
        "priority": 50, "amount": "2.00",
    }  # fmt: skip
    expiration = {"posting_id": MADE_ID, "transactions": [{"id": MADE_ID}]}
    local = {"actor": "command line"}

    def row(
        posting: Json, place: int, type_: str, kind: str, amounts: tuple[str, str], at: str,
        used: Json | None = None, *, metadata: Json | None = None, **rest: Any,
    ) -> Json:  # fmt: skip
        drawn, used = rest.get("grant"), used or {}
        texts = ("description", "note", "source")
        optional = {name: rest[name] for name in texts if name in rest}
        shown = {
            "id": posting["transactions"][place]["id"],
            "customer_id": customer,
            "credit_grant_id": drawn and drawn["id"],
            "meter_id": used.get("meter_id"),
            "subscription_id": used.get("subscription_id"),
            "meter_event_id": used.get("meter_event_id"),
            "type": type_,
            "amount": amounts[0],
            "running_balance": amounts[1],
            "description": optional.pop("description", None),
            "livemode": True,
            "created_at": at,
            "updated_at": at,
            "metadata": metadata or {},
            "customer": {"id": customer, "name": "Zoë & Søn", "email": "zoe@example.com"},
            "meter": {"id": meter, "name": "API Calls", **of_meter} if used else None,
            "subscription": {"id": subscription} if used else None,
            "creditGrant": drawn,
            "wallet_id": wallet,
            "posting_id": posting["posting_id"],
            "sequence": str(rest["sequence"]),
            "kind": kind,
            "currency_id": "USD",
            "effective_at": rest.get("effective_at", at),
            **optional,
            "object": "credit_transaction",
            "credit_amount": amounts[0],
            "meter_event_name": of_meter["event_name"] if used else None,
            "meter_unit": of_meter["unit"] if used else None,
            "paymentCurrency": {
                "id": "USD", "name": "US dollar", "symbol": "USD", "decimal": 9, "type": "credit",
            },
        }  # fmt: skip
        return {name: value for name, value in shown.items() if value is not None}

    used = {"meter_id": meter, "subscription_id": subscription, "meter_event_id": "me_7"}
    rows = [
        row(topup, 0, "grant", "topup", ("900.00", "900.00"), created[0], sequence=1,
            grant=starter, description="Top-up", note="by card", source=stripe,
            metadata={"a": "ß", "order": "42"}),
        row(spent, 0, "consumption", "usage", ("-100.0000001", "799.9999999"), created[1], used,
            sequence=2, grant=starter, description="API Call Usage", effective_at=noon),
        row(back, 0, "adjustment", "refund", ("0.0000001", "800.00"), created[1],
            sequence=3, grant=starter, source={"posting_id": spent["posting_id"]}),
        row(expiration, 0, "expiration", "expiry", ("-800.00", "0.00"), created[2],
            sequence=4, grant=starter, effective_at=ends),
        row(credit, 0, "adjustment", "admin_credit", ("2.00", "2.00"), created[2],
            sequence=5, grant=goodwill, source=ops),
        row(debit, 0, "adjustment", "admin_debit", ("-2.00", "0.00"), created[2],
            sequence=6, grant=goodwill, note="fee", source=local),
        row(debit, 1, "adjustment", "admin_debit", ("-1.00", "-1.00"), created[2],
            sequence=7, note="fee", source=local),
    ]  # fmt: skip
    return mine, rows


def with_made_ids(actual: Sequence[Json], expected: Sequence[Json]) -> list[Json]:
    """The expected rows, with the ids of what nobody posted taken over if they are such."""
    rows = []
    for one, wanted in zip(actual, expected, strict=True):
        made = {name: one[name] for name, value in wanted.items() if value is MADE_ID}
        assert all(MADE_ID.fullmatch(value) for value in made.values())
        rows.append({**wanted, **made})
    return rows


async def test_a_list_shows_rows_of_every_type(served: Served) -> None:
    """Newest first, expanded, as the document orders it, then ours and the client's; no nulls."""
    mine, rows = await every_type(served)

    body = await served.body(TRANSACTIONS, mine.key)

    expected = {
        "count": 7,
        "list": with_made_ids(body["list"], rows[::-1]),
        "paging": {"page": 1, "pageSize": 20},
    }
    assert differences(body, expected) == []
    made = [row[name] for row in body["list"] for name in ("id", "posting_id")]
    assert all(MADE_ID.fullmatch(id_) for id_ in made)
    assert ids(body["list"]) == sorted(ids(body["list"]), reverse=True)
    assert len({row["posting_id"] for row in body["list"]}) == 6


async def test_each_row_is_retrieved_as_it_is_listed(served: Served) -> None:
    """A transaction is answered by its id to keys that may see it; `livemode` may be named."""
    mine, rows = await every_type(served)
    listed = await walk(served, mine.admin, customer_id=mine.customer)
    assert differences(listed, with_made_ids(listed, rows[::-1])) == []

    for key in (mine.key, mine.admin, await served.key("service")):
        for row in listed:
            path = f"{TRANSACTIONS}/{row['id']}"
            assert differences(await served.body(path, key), row) == []
            assert differences(await served.body(path, key, livemode="true"), row) == []


async def test_a_summary_of_every_type(served: Served) -> None:
    """Consumptions alone; what was refunded is not subtracted; the filters come back."""
    mine, rows = await every_type(served)
    used = rows[1]
    filters: Json = {
        "customer_id": mine.customer,
        "subscription_id": used["subscription_id"],
        "currency_id": "USD",
        "meter_id": used["meter_id"],
    }
    window = {"start": SECOND, "end": SECOND + 86_400}

    plain = await served.body(SUMMARY, mine.key)
    named = await served.body(SUMMARY, mine.admin, livemode="true", **filters, **window)

    sums = {
        "total_quantity": "1",
        "total_credit_amount": "-100.0000001",
        "transaction_count": 1,
    }
    assert differences(plain, {**sums, "filters": {}}) == []
    times = {"start_time": time.text(START), "end_time": time.text(START + time.DAY)}
    assert differences(named, {**sums, "filters": {**filters, "livemode": True, **times}}) == []


async def test_nothing_to_show(served: Served) -> None:
    """A filter that names nothing is no error: an empty list, a summary of zeros."""
    mine = await account(served)
    empty = {"count": 0, "list": [], "paging": {"page": 1, "pageSize": 20}}
    zeros = {"total_quantity": "0", "total_credit_amount": "0.00", "transaction_count": 0}
    nothing: list[Json] = [
        {"customer_id": "cus_nobody"},
        {"subscription_id": "sub_none"},
        {"meter_id": "mtr_none", "customer_id": mine.customer},
        {"customer_id": mine.customer},
        {"customer_id": mine.customer, "start": 0, "end": 0},
    ]

    for query in [*nothing, {"credit_grant_id": "cg_none"}, {"credit_grant_id": "cg_" + "z" * 26}]:
        assert differences(await served.body(TRANSACTIONS, mine.admin, **query), empty) == []
    for query in nothing:
        body = await served.body(SUMMARY, mine.admin, **query)
        assert {name: body[name] for name in zeros} == zeros
    assert differences(await served.body(TRANSACTIONS, mine.key), empty) == []
    assert differences(await served.body(SUMMARY, mine.key), {**zeros, "filters": {}}) == []


async def test_quantities(served: Served) -> None:
    """Quantities once a posting however many grants paid; |amount| of what has no usage."""
    mine = await account(served, currency="CREDIT")
    await served.post(mine.wallet, *[{"grant": {"amount": "1"}}] * 5)
    usage = {"quantities": ["1000000000000000", "7", "0"]}
    await served.post(mine.wallet, {"consumption": {"amount": "2.5", "usage": usage}})
    await served.post(mine.wallet, {"consumption": {"amount": "0.5"}})
    await served.post(mine.wallet, {"consumption": {"amount": "0.100001"}})

    body = await served.body(SUMMARY, mine.key)

    assert differences(
        body,
        {
            "total_quantity": "1000000000000007.600001",
            "total_credit_amount": "-3.100001",
            "transaction_count": 5,
            "filters": {},
        },
    ) == []  # fmt: skip


# --- retrieve -------------------------------------------------------------------------------------


async def test_what_cannot_be_retrieved(served: Served) -> None:
    """Another customer's row, one of the other mode and one that is not: NOT_FOUND."""
    mine, other = await account(served), await account(served, livemode=False)
    rows = []
    for one in (mine, other):
        (answer,) = await served.post(one.wallet, {"grant": {"amount": "1"}})
        rows.append(answer["transactions"][0]["id"])
    stranger = await served.key("customer", await served.customer())
    not_found = Failure(404, "NOT_FOUND", "id")

    for key, id_ in [
        (stranger, rows[0]),
        (mine.key, rows[1]),
        (mine.admin, rows[1]),
        (other.admin, rows[0]),
        (mine.admin, rows[0][:-1] + "z"),
        (mine.admin, rows[0][:-1] + "I"),
        (mine.admin, "ct_0"),
        (mine.admin, "ct_" + "z" * 26),
        (mine.admin, "ct_" + "0" * 26),
    ]:
        assert await served.refusal(f"{TRANSACTIONS}/{id_}", key) == not_found, id_
    path = f"{TRANSACTIONS}/{rows[0]}"
    refusal = await served.refusal(path, mine.key, livemode="false")
    assert refusal == Failure(403, "MODE_MISMATCH", "livemode")
    assert await served.refusal(path, None) == Failure(401, "KEY_MISSING")
    refusal = await served.refusal(path, mine.key, expand="customer")
    assert refusal == Failure(400, "UNKNOWN_PARAMETER", "expand")


@pytest.mark.parametrize(
    "id_",
    ["123", "pst_00000000000010000000000001", "CT_1", "ct_", "ct_%2F", "ct_a.b", "ct_x:y", "%20",
     "ct_é", "ct_" + "0" * 61, "ct_" + "0" * 10_000, "ct_1%20", "ct_%0A", "*"],
    ids=lambda text: text[:20],
)  # fmt: skip
async def test_what_is_no_id(served: Served, id_: str) -> None:
    """Anything but ct_ and 1 to 60 characters of an id is a 400 for every key."""
    key = await served.key("admin")

    assert await served.refusal(f"{TRANSACTIONS}/{id_}", key) == Failure(400, "INVALID_FIELD", "id")


@pytest.mark.parametrize(
    "path",
    [TRANSACTIONS + "/", TRANSACTIONS + "/ct_1/", TRANSACTIONS + "/ct_1/x", SUMMARY + "/x",
     "/api/credit-transaction", "/api//credit-transactions"],
)  # fmt: skip
async def test_paths_beside(served: Served, path: str) -> None:
    """A path that is none of the three routes is a 404, writes to them are a 405."""
    key = await served.key("admin")

    assert await served.refusal(path, key) == Failure(404, "UNKNOWN_PATH")
    for method in ("POST", "PUT", "DELETE"):
        answer = await served.ask(method, TRANSACTIONS, key=key, json={})
        assert failure(answer) == Failure(405, "UNKNOWN_PATH")
        assert answer.headers["allow"] == "GET"


# --- list: pages ----------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wide(shared: Served) -> Account:
    """A wallet with 130 rows of one moment."""
    shared.clock.now = START
    mine = await account(shared)
    await shared.post(mine.wallet, *[{"grant": {"amount": "1"}}] * 130)
    return mine


@pytest.mark.parametrize(
    ("query", "page", "size", "sequences"),
    [
        ({}, 1, 20, range(130, 110, -1)),
        ({"page": 1}, 1, 20, range(130, 110, -1)),
        ({"page": 7}, 7, 20, range(10, 0, -1)),
        ({"page": 8}, 8, 20, range(0)),
        ({"page": 2_147_483_647}, 2_147_483_647, 20, range(0)),
        ({"limit": 10}, 1, 10, range(130, 120, -1)),
        ({"pageSize": 10}, 1, 10, range(130, 120, -1)),
        ({"page_size": 10}, 1, 10, range(130, 120, -1)),
        ({"pageSize": 10, "limit": 10}, 1, 10, range(130, 120, -1)),
        ({"limit": 1, "page": 130}, 130, 1, range(1, 0, -1)),
        ({"limit": 100}, 1, 100, range(130, 30, -1)),
        ({"limit": 100, "page": 2}, 2, 100, range(30, 0, -1)),
        ({"pageSize": 65, "page": 2}, 2, 65, range(65, 0, -1)),
    ],
)
async def test_pages(
    served: Served, wide: Account, query: Json, page: int, size: int, sequences: range
) -> None:
    """Page 1 of 20 by default, up to 100; a token is there while rows are left, and only then."""
    body = await served.body(TRANSACTIONS, wide.key, **query)

    assert (body["count"], body["paging"]["page"], body["paging"]["pageSize"]) == (130, page, size)
    assert [int(row["sequence"]) for row in body["list"]] == list(sequences)
    assert ("next_page_token" in body["paging"]) == (bool(sequences) and sequences[-1] > 1)


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("page=0", "INVALID_FIELD", "page"),
        ("page=-1", "INVALID_FIELD", "page"),
        ("page=1.5", "INVALID_FIELD", "page"),
        ("page=2147483648", "INVALID_FIELD", "page"),
        ("limit=0", "INVALID_FIELD", "limit"),
        ("limit=101", "INVALID_FIELD", "limit"),
        ("limit=ten", "INVALID_FIELD", "limit"),
        ("pageSize=0", "INVALID_FIELD", "pageSize"),
        ("pageSize=101", "INVALID_FIELD", "pageSize"),
        ("pageSize=", "INVALID_FIELD", "pageSize"),
        ("pageSize=10&limit=11", "INVALID_FIELD", "limit"),
        ("limit=1&limit=1", "INVALID_FIELD", "limit"),
        ("start=-1", "INVALID_FIELD", "start"),
        ("start=1.5", "INVALID_FIELD", "start"),
        ("start=now", "INVALID_FIELD", "start"),
        ("start=2026-01-01T00:00:00Z", "INVALID_FIELD", "start"),
        ("start=253402300800", "INVALID_FIELD", "start"),
        ("start=9223372036854775808", "INVALID_FIELD", "start"),
        ("end=-1", "INVALID_FIELD", "end"),
        ("end=253402300800", "INVALID_FIELD", "end"),
        ("start=1790000001&end=1790000000", "INVALID_FIELD", "start"),
        ("customer_id=", "INVALID_FIELD", "customer_id"),
        ("customer_id=acme", "INVALID_FIELD", "customer_id"),
        ("customer_id=wal_1", "INVALID_FIELD", "customer_id"),
        ("customer_id=cus_" + "x" * 61, "INVALID_FIELD", "customer_id"),
        ("customer_id=cus_%00", "INVALID_FIELD", "customer_id"),
        ("subscription_id=cus_1", "INVALID_FIELD", "subscription_id"),
        ("credit_grant_id=ct_1", "INVALID_FIELD", "credit_grant_id"),
        ("meter_id=tokens", "INVALID_FIELD", "meter_id"),
        ("source=", "INVALID_FIELD", "source"),
        ("source=" + "s" * 256, "INVALID_FIELD", "source"),
        ("q=", "INVALID_FIELD", "q"),
        ("q=" + "q" * 257, "INVALID_FIELD", "q"),
        ("q=a%0Ab", "INVALID_FIELD", "q"),
        ("q=%00", "INVALID_FIELD", "q"),
        ("q=a%FFb", "INVALID_FIELD", None),
        ("livemode=2", "INVALID_FIELD", "livemode"),
        ("livemode=", "INVALID_FIELD", "livemode"),
        ("page_token=", "INVALID_FIELD", "page_token"),
        ("page_token=abc", "INVALID_FIELD", "page_token"),
        ("page_token=" + "a" * 10_000, "INVALID_FIELD", "page_token"),
        ("start_date=1", "UNKNOWN_PARAMETER", "start_date"),
        ("start_time=1", "UNKNOWN_PARAMETER", "start_time"),
        ("type=grant", "UNKNOWN_PARAMETER", "type"),
        ("customerid=cus_1", "UNKNOWN_PARAMETER", "customerid"),
        ("currency_id=USD", "UNKNOWN_PARAMETER", "currency_id"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_what_no_list_is(served: Served, query: str, code: str, param: str | None) -> None:
    """A number, time, id or text out of its limits; a parameter unknown or twice: 400."""
    key = await served.key("admin")

    answer = await served.ask("GET", TRANSACTIONS, key=key, query=query)

    assert failure(answer) == Failure(400, code, param)


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("start=1790000001&end=1790000000", "INVALID_FIELD", "start"),
        ("start=-1", "INVALID_FIELD", "start"),
        ("end=1e9", "INVALID_FIELD", "end"),
        ("customer_id=", "INVALID_FIELD", "customer_id"),
        ("customer_id=sub_1", "INVALID_FIELD", "customer_id"),
        ("subscription_id=1", "INVALID_FIELD", "subscription_id"),
        ("meter_id=mtr_", "INVALID_FIELD", "meter_id"),
        ("currency_id=", "INVALID_FIELD", "currency_id"),
        ("currency_id=usd", "INVALID_FIELD", "currency_id"),
        ("currency_id=" + "U" * 17, "INVALID_FIELD", "currency_id"),
        ("livemode=maybe", "INVALID_FIELD", "livemode"),
        ("credit_grant_id=cg_1", "UNKNOWN_PARAMETER", "credit_grant_id"),
        ("page=1", "UNKNOWN_PARAMETER", "page"),
        ("q=x", "UNKNOWN_PARAMETER", "q"),
        ("currency=USD", "UNKNOWN_PARAMETER", "currency"),
    ],
)
async def test_what_no_summary_is(served: Served, query: str, code: str, param: str) -> None:
    """The same for a summary, which takes fewer filters."""
    key = await served.key("admin")

    answer = await served.ask("GET", SUMMARY, key=key, query=query)

    assert failure(answer) == Failure(400, code, param)


async def test_who_sees_what(served: Served) -> None:
    """A customer key sees its own, a key its mode; the other is refused where it is named."""
    mine, other = await account(served), await account(served)
    test = await account(served, livemode=False)
    for one in (mine, other, test):
        await served.post(one.wallet, {"grant": {"amount": "1"}}, {"consumption": {"amount": "1"}})

    for path in (TRANSACTIONS, SUMMARY):
        refusal = await served.refusal(path, mine.key, customer_id=other.customer)
        assert refusal == Failure(404, "NOT_FOUND", "customer_id")
        for key, livemode in ((mine.key, "false"), (mine.admin, "false"), (test.admin, "true")):
            refusal = await served.refusal(path, key, livemode=livemode)
            assert refusal == Failure(403, "MODE_MISMATCH", "livemode")
        assert await served.refusal(path, None) == Failure(401, "KEY_MISSING")
        assert await served.refusal(path, "sk-" + "0" * 43) == Failure(401, "KEY_INVALID")
    for key, customer, count in [
        (mine.key, mine.customer, 2),
        (mine.admin, mine.customer, 2),
        (mine.admin, test.customer, 0),
        (test.admin, test.customer, 2),
        (test.key, test.customer, 2),
    ]:
        assert len(await walk(served, key, customer_id=customer)) == count
        body = await served.body(SUMMARY, key, customer_id=customer)
        assert body["transaction_count"] == count // 2
    assert len(await walk(served, mine.key)) == 2
    assert len(await walk(served, test.key, livemode="false")) == 2
    refusal = await served.refusal(SUMMARY, mine.admin, currency_id="XXX")
    assert refusal == Failure(404, "NOT_FOUND", "currency_id")


async def test_a_page_too_deep_for_counters(served: Served) -> None:
    """Beyond 100,000 rows of several wallets a page is a 400 naming `page`; of one it is not."""
    mine = await account(served)

    assert (await served.body(TRANSACTIONS, mine.admin, page=5_001))["list"] == []
    refusal = await served.refusal(TRANSACTIONS, mine.admin, page=5_002)
    assert refusal == Failure(400, "INVALID_FIELD", "page")
    deep = await served.body(TRANSACTIONS, mine.key, page=5_002)
    assert differences(
        deep, {"count": 0, "list": [], "paging": {"page": 5_002, "pageSize": 20}}
    ) == []  # fmt: skip


# --- list: tokens ---------------------------------------------------------------------------------


async def test_a_token_belongs_to_its_list(served: Served, wide: Account) -> None:
    """With `page`, with other filters or for another caller it is a 400; its size is free."""
    body = await served.body(TRANSACTIONS, wide.key, limit=10)
    token = body["paging"]["next_page_token"]
    invalid = Failure(400, "INVALID_FIELD", "page_token")
    stranger = await served.key("customer", await served.customer())

    for number in (1, 2):
        refusal = await served.refusal(TRANSACTIONS, wide.key, page_token=token, page=number)
        assert refusal == invalid
    for query in (
        {"start": SECOND},
        {"end": SECOND},
        {"meter_id": "mtr_1"},
        {"subscription_id": "sub_1"},
        {"credit_grant_id": "cg_1"},
        {"q": "x", "meter_id": "mtr_1"},
        {"source": "x", "meter_id": "mtr_1"},
    ):
        refusal = await served.refusal(TRANSACTIONS, wide.key, page_token=token, **query)
        assert refusal == invalid, query
    for key in (wide.admin, stranger):
        assert await served.refusal(TRANSACTIONS, key, page_token=token) == invalid
    same: list[Json] = [{}, {"limit": 10}, {"customer_id": wide.customer}, {"livemode": "true"}]
    for query in same:
        page = await served.body(TRANSACTIONS, wide.key, page_token=token, **query)
        assert int(page["list"][0]["sequence"]) == 120
        assert page["paging"]["page"] == 2
    page = await served.body(TRANSACTIONS, wide.admin, page=3, customer_id=wide.customer)
    token = page["paging"]["next_page_token"]
    page = await served.body(TRANSACTIONS, wide.admin, page_token=token, customer_id=wide.customer)
    assert page["paging"]["page"] == 4


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1],
        ["1"],
        ["1", "1", "1", "1", "1", "1"],
        ["1", 1.0, 1.0, 1.0, 1.0, 1.0],
        ["1", -1, 1, 1, 1, 1],
        ["1", 2**63, 1, 1, 1, 1],
        ["1", 1, 2**64, 2**64, 2**64, 2**64],
        ["1", 2**40, 1, 1, 1, 1],
        ["1", 1, 1, 1, 1, 2**40],
        ["1", 1, 1, 1, 1, 1, 1],
        ["1", True, True, True, True, True],
        [None, None, None, None, None, None],
        [["1"], [1], [1], [1], [1], [1]],
        {},
        ["1", 10**400, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
        *(
            [pin, 1, 1, 1, 1, 1]
            for pin in (
                *("", "x", "-1", "1.0", " 1", "9" * 40, "\u0661", "1; DROP TABLE wallets"),
                *("1:", ":", "1:0:", "0:1:", "2:3:1", "2:3:3", "2:9:5,4", "1:9:1,,2", "5:5:5"),
                f"{'9' * 30}:{'9' * 31}:",
            )
        ),
    ],
    ids=str,
)
async def test_a_token_that_somebody_made_up(served: Served, wide: Account, values: Any) -> None:
    """With the digest of a real one and any position: a 400, never an internal error."""
    body = await served.body(TRANSACTIONS, wide.key, limit=10)
    real = body["paging"]["next_page_token"]
    digest, *position = json.loads(base64.urlsafe_b64decode(real + "=" * (-len(real) % 4)))
    assert len(position) == 6
    made = json.dumps([digest, *values] if isinstance(values, list) else values)
    token = base64.urlsafe_b64encode(made.encode()).decode().rstrip("=")

    refusal = await served.refusal(TRANSACTIONS, wide.key, page_token=token)

    assert refusal == Failure(400, "INVALID_FIELD", "page_token")


@pytest.mark.parametrize(
    "narrowed", ["customer key", "customer", "meter", "subscription", "grant", "q", "all"]
)
async def test_a_walk_by_token_during_writes(
    new_database: Callable[[], str], served: Served, narrowed: str
) -> None:
    """Rows written meanwhile, before or after the walk's moment, neither repeat nor displace any.

    The clock stands still, so what is new has the time of what is walked; once it goes back.
    """
    mine = await account(served, livemode=narrowed != "all")
    livemode = {"livemode": narrowed != "all"}
    second = await served.wallet(mine.customer, currency="CNY", **livemode)
    later = await served.wallet(mine.customer, currency="CREDIT", **livemode)
    meter, subscription = await served.meter(), await served.subscription(mine.customer)
    used = {
        "consumption": {"amount": "0.01", "meter_id": meter, "subscription_id": subscription},
        "description": "Walked",
    }
    (given, *_) = await served.post(mine.wallet, {"grant": {"amount": "50"}}, *[used] * 20)
    await served.post(second, {"grant": {"amount": "50"}}, *[used] * 15)
    query, key = {
        "customer key": ({}, mine.key),
        "customer": ({"customer_id": mine.customer}, mine.admin),
        "meter": ({"meter_id": meter}, mine.admin),
        "subscription": ({"subscription_id": subscription}, mine.admin),
        "grant": ({"credit_grant_id": given["transactions"][0]["credit_grant_id"]}, mine.admin),
        "q": ({"q": "wALKED", "customer_id": mine.customer}, mine.admin),
        "all": ({}, mine.admin),
    }[narrowed]
    before = await walk(served, key, **query)
    assert len(before) >= 21

    seen: list[str] = []
    token: Json = {}
    while True:
        body = await served.body(TRANSACTIONS, key, limit=4, **query, **token)
        assert body["count"] == len(before)
        seen += ids(body["list"])
        if "next_page_token" not in body["paging"]:
            break
        token = {"page_token": body["paging"]["next_page_token"]}
        if len(seen) == 8:
            served.clock.advance(-time.HOUR)
            await served.post(later, {"grant": {"amount": "50"}})
        await served.post(mine.wallet, used)
        await served.post(second, used)
        if len(seen) >= 8:
            await served.post(later, used)

    assert seen == ids(before)
    assert len(await walk(served, key, **query)) > len(before)


# --- list: filters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, [6, 5, 4, 3, 2, 1]),
        (0, None, [6, 5, 4, 3, 2]),
        (1, None, [6, 5, 4]),
        (2, None, [6]),
        (3, None, []),
        (None, -2, []),
        (None, -1, [1]),
        (None, 0, [3, 2, 1]),
        (None, 1, [5, 4, 3, 2, 1]),
        (None, 2, [6, 5, 4, 3, 2, 1]),
        (0, 0, [3, 2]),
        (1, 1, [5, 4]),
        (0, 1, [5, 4, 3, 2]),
        (-1, 0, [3, 2, 1]),
    ],
)
async def test_start_and_end_are_whole_seconds_both_included(
    served: Served, start: int | None, end: int | None, expected: list[int]
) -> None:
    """[start, end + 1 s) by created_at, for the list and for the summary, whatever the path to it.

    effective_at plays no part.
    """
    mine = await account(served, overdraft_limit="10")
    meter = await served.meter()
    for milliseconds in (-1, 0, 999, 1_000, 1_999, 2_000):
        served.clock.now = START + milliseconds
        used = {"consumption": {"amount": "1", "meter_id": meter}}
        await served.post(mine.wallet, {**used, "effective_at": time.text(START)})
    ends = {"start": start, "end": end}
    window = {name: SECOND + value for name, value in ends.items() if value is not None}

    by_wallet = await walk(served, mine.key, **window)
    by_rows = await walk(served, mine.admin, meter_id=meter, **window)
    sums = [
        await served.body(SUMMARY, mine.key, **window),
        await served.body(SUMMARY, mine.admin, meter_id=meter, currency_id="USD", **window),
    ]

    assert [int(row["sequence"]) for row in by_wallet] == expected
    assert by_rows == by_wallet
    assert [one["transaction_count"] for one in sums] == [len(expected)] * 2
    assert [Decimal(one["total_credit_amount"]) for one in sums] == [-len(expected)] * 2
    times = [("start_time", start), ("end_time", end)]
    echoed = {name: time.text(START + s * 1000) for name, s in times if s is not None}
    named = {"currency_id": "USD", "meter_id": meter}
    assert [one["filters"] for one in sums] == [echoed, {**named, **echoed}]


async def test_the_far_ends_of_time(served: Served, wide: Account) -> None:
    """The first second and the last are bounds like others."""
    far = {"start": 0, "end": 253_402_300_799}

    assert len(await walk(served, wide.key, **far)) == 130
    body = await served.body(SUMMARY, wide.key, **far)
    echoed = {"start_time": "1970-01-01T00:00:00.000Z", "end_time": "9999-12-31T23:59:59.000Z"}
    assert body["filters"] == echoed


async def searched(served: Served) -> tuple[Account, dict[str, str]]:
    """An account with rows to be found, and the ids of these by a name for each."""
    mine = await account(served)
    stripe, paypal = {"provider": "stripe", "receipt_id": "ch_AbC"}, {"provider": "paypal"}
    postings: dict[str, Json] = {
        "topup": {"grant": {"amount": "9", "source": stripe}, "description": "First 100% up"},
        "renewal": {
            "grant": {"amount": "9", "kind": "subscription_renew", "source": paypal},
            "note": 'He said "yes"\\no',
        },
        "credit": {"adjustment": {"amount": "1", "source": {"actor": "ops@example.com"}},
                   "metadata": {"ticket": "T_312", "stripe": "k"}},
        "named like a provider": {"grant": {"amount": "9", "source": {"receipt_id": "stripe"}},
                                  "metadata": {"ticket": "TX312"}},
        "event": {"consumption": {"amount": "1", "meter_event_id": "stripe"},
                  "description": "Straße ÄRGER"},
        "nothing": {"consumption": {"amount": "1"}, "metadata": {"provider": '"provider":"x"'}},
        "method": {"grant": {"amount": "9", "source": {"method": "Wire"}}},
    }  # fmt: skip
    answers = await served.post(mine.wallet, *postings.values())
    (back,) = await served.post(mine.wallet, {"refund": {"posting_id": answers[4]["posting_id"]}})
    named = zip([*postings, "refund"], [*answers, back], strict=True)
    return mine, {name: answer["transactions"][0]["id"] for name, answer in named}


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("first", ["topup"]),
        ("FIRST 100", ["topup"]),
        ("100%", ["topup"]),
        ("%", ["topup"]),
        ("0%u", []),
        ("_", ["all"]),  # every id has one
        ("t_3", ["credit"]),
        ("tx3", ["named like a provider"]),
        ("ticket", []),  # a key, not a value
        ('"YES"', ["renewal"]),
        ("\\no", ["renewal"]),
        ("CH_ABC", ["topup"]),
        ("straße", ["event"]),
        ("STRASSE", []),
        ("ÄRGER", ["event"]),
        ("ärger", []),  # case folds ASCII only
        ("Ärger", ["event"]),
        ("stripe", ["named like a provider"]),
        ("ops@", []),
        ("wire", []),
        ("usage", []),
        ("CT_0", ["all"]),
        ("zzz", []),
        ("; DROP TABLE", []),
        ("' OR '1'='1", []),
    ],
)
async def test_q(served: Served, q: str, expected: list[str]) -> None:
    """A substring of description, note, id, receipt id or a metadata value; % and _ are literal."""
    mine, made = await searched(served)
    wanted = list(made.values()) if expected == ["all"] else [made[name] for name in expected]

    by_time = await walk(served, mine.key, q=q, start=SECOND, end=SECOND)
    by_customer = await walk(served, mine.admin, q=q, customer_id=mine.customer)
    assert ids(by_time) == ids(by_customer) == wanted[::-1]


async def test_q_finds_an_id_by_its_parts(served: Served) -> None:
    """A whole id, its end, in upper case too; the neighbour is not found."""
    mine, made = await searched(served)

    for name, id_ in made.items():
        for q in (id_, id_.upper(), id_[-26:]):
            found = await walk(served, mine.admin, q=q, customer_id=mine.customer)
            assert ids(found) == [id_], (name, q)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("stripe", ["topup", "named like a provider", "event"]),
        ("Stripe", []),
        ("stri", []),
        ("ch_AbC", ["topup"]),
        ("ops@example.com", ["credit"]),
        ("paypal", ["renewal"]),
        ("Wire", []),
        ("k", []),
        ("x", []),
        ("%", []),
    ],
)
async def test_source(served: Served, source: str, expected: list[str]) -> None:
    """Exactly the meter event, the provider, the receipt id or the actor; a refund has none."""
    mine, made = await searched(served)

    rows = await walk(served, mine.admin, source=source, customer_id=mine.customer)

    assert ids(rows) == [made[name] for name in reversed(expected)]


async def test_a_search_needs_company(served: Served) -> None:
    """q or source alone: QUERY_TOO_BROAD; with an id or at most 31 days it is served."""
    mine = await account(served)
    window = {"start": SECOND, "end": SECOND + SEARCH_SECONDS_MAX}

    for name in ("q", "source"):
        too_broad = Failure(400, "QUERY_TOO_BROAD", name)
        query = {name: "x"}
        for wide in (
            {},
            {"start": SECOND},
            {"end": SECOND},
            {**window, "end": SECOND + SEARCH_SECONDS_MAX + 1},
        ):
            assert await served.refusal(TRANSACTIONS, mine.admin, **query, **wide) == too_broad
        for narrow in (
            window,
            {"customer_id": mine.customer},
            {"subscription_id": "sub_1"},
            {"meter_id": "mtr_1"},
            {"credit_grant_id": "cg_1"},
        ):
            await served.body(TRANSACTIONS, mine.admin, **query, **narrow)


async def test_a_query_that_takes_too_long(new_database: Callable[[], str]) -> None:
    """It is stopped and named QUERY_TOO_BROAD; its connection serves the next one."""
    store = Store(new_database(), clock=Clock(), readers=1)
    await store.open()
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )

    with pytest.raises(QueryTooBroad):
        await store.read(lambda connection: connection.execute(text(endless)).all(), seconds=0.1)
    assert await store.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1

    await store.close()


async def test_grants_share_no_rows(served: Served) -> None:
    """Each grant's rows: its own, its draws, what went back to it and its end."""
    mine = await account(served)
    ends = time.text(START + time.HOUR)
    grants = await served.post(
        mine.wallet,
        {"grant": {"amount": "1", "expires_at": ends}},
        {"grant": {"amount": "1"}},
    )
    (spent,) = await served.post(mine.wallet, {"consumption": {"amount": "1.5"}})
    await served.post(
        mine.wallet, {"refund": {"posting_id": spent["posting_id"], "amount": "0.75"}}
    )
    served.clock.advance(time.HOUR)
    await served.post(mine.wallet, {"consumption": {"amount": "0.25"}})
    named = [one["transactions"][0]["credit_grant_id"] for one in grants]

    lists = [await walk(served, mine.admin, credit_grant_id=grant) for grant in named]

    shown = [[(row["type"], row["amount"]) for row in rows] for rows in lists]
    assert shown == [
        [("expiration", "-0.25"), ("adjustment", "0.25"), ("consumption", "-1.00"),
         ("grant", "1.00")],
        [("consumption", "-0.25"), ("adjustment", "0.50"), ("consumption", "-0.50"),
         ("grant", "1.00")],
    ]  # fmt: skip
    stranger = await served.key("customer", await served.customer())
    assert await walk(served, stranger, credit_grant_id=named[0]) == []


async def test_a_sum_of_unlike_units_is_refused(served: Served) -> None:
    """Wallets of two currencies in scope need a currency_id; wallets of one do not."""
    mine = await account(served)
    await served.post(mine.wallet, {"grant": {"amount": "5"}}, {"consumption": {"amount": "1"}})
    assert (await served.body(SUMMARY, mine.key))["total_credit_amount"] == "-1.00"
    credit = await served.wallet(mine.customer, currency="CREDIT")
    mixed = Failure(400, "INVALID_FIELD", "currency_id")
    subscription = await served.subscription(mine.customer)

    for query in ({}, {"start": 0, "end": 1}, {"subscription_id": subscription}):
        assert await served.refusal(SUMMARY, mine.key, **query) == mixed
    await served.post(credit, {"grant": {"amount": "5"}}, {"consumption": {"amount": "2.5"}})
    for currency, total in (("USD", "-1.00"), ("CREDIT", "-2.50"), ("CNY", "0.00")):
        body = await served.body(SUMMARY, mine.key, currency_id=currency)
        assert body["total_credit_amount"] == total
        assert body["filters"] == {"currency_id": currency}
