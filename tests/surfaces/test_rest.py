"""The native routes over REST: what each answers when all is well, and bad input by name.

Whole bodies of every route; then, for each field of every write, what it may not be: a 400, 404 or
413 that names the field in the common shape, and not a row more in any table.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from google.api import annotations_pb2
from google.protobuf import descriptor_pool

from creditledger.domain import clock as time
from creditledger.ops.server import SERVICES
from tests.support.rest import (
    BILLING,
    BILLS,
    SUMMARY,
    TRANSACTIONS,
    Failure,
    Json,
    Served,
    differences,
    failure,
    metadata,
)
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.each_transport]

NOW = time.text(START)
METADATA = {"plan": "über", "tier": "3"}
BODY_BYTES_MAX = 4 * 1024 * 1024
METADATA_BYTES_MAX = 8_192
BATCH_MAX = 1_000
LONG = "x" * 10_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(shared: Served) -> str:
    """An admin key."""
    return await shared.key("admin", name="Admin")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(shared: Served) -> str:
    """A service key."""
    return await shared.key("service", name="Gateway")


async def send(served: Served, key: str, route: str, body: object = None, **query: Any) -> Json:
    """The body of a request that succeeds; `route` is method and path."""
    method, path = route.split(" ")
    given = {} if body is None else {"json": body}
    answer = await served.ask(method, path, key=key, query=query, **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: Json = answer.json()
    return found


async def refusal(
    served: Served, key: str | None, route: str, body: object = None, **query: Any
) -> Failure:
    """How a request is refused; a body of bytes is sent as it is."""
    method, path = route.split(" ")
    given: Json = {} if body is None else {"json": body}
    if isinstance(body, bytes):
        given = {"content": body}
    return failure(await served.ask(method, path, key=key, query=query, **given))


@asynccontextmanager
async def nothing_written(served: Served) -> AsyncIterator[None]:
    """Fails if any table has more rows, or less, when the block ends."""
    before = served.row_counts()
    yield
    assert served.row_counts() == before


def invalid(param: str | None) -> Failure:
    return Failure(400, "INVALID_FIELD", param)


def missing(param: str) -> Failure:
    return Failure(400, "MISSING_FIELD", param)


def not_found(param: str) -> Failure:
    return Failure(404, "NOT_FOUND", param)


def postings_of(wallet: str) -> str:
    return f"POST /v1/wallets/{wallet}/postings"


def wallet_body(wallet: str, customer: str, **changed: Any) -> Json:
    """A wallet as it is printed: empty, in dollars and live unless something else is said."""
    amounts = ("balance", "held", "pending", "available", "overdraft_limit", "overdraft_used")
    body = {
        "id": wallet,
        "customer_id": customer,
        "currency": "USD",
        "livemode": True,
        "status": "active",
        **dict.fromkeys(amounts, "0.00"),
        "sequence": "0",
        "metadata": {},
        "created_at": NOW,
        "updated_at": NOW,
        "scoped": "0.00",
    }
    assert changed.keys() <= body.keys()
    return {**body, **changed}


def row_body(posting: Json, wallet: Json, sequence: int, grant: int | None, **changed: Any) -> Json:
    """A transaction in a posting's answer, not expanded; ids as the ledger makes them."""
    place = posting["posting_id"][4:17]
    row = {
        "id": f"ct_{place}{sequence:013}",
        "customer_id": wallet["customer_id"],
        "credit_grant_id": None if grant is None else f"cg_{place}{grant:013}",
        "meter_id": None,
        "subscription_id": None,
        "meter_event_id": None,
        "type": None,
        "amount": None,
        "running_balance": None,
        "description": None,
        "livemode": True,
        "created_at": NOW,
        "updated_at": NOW,
        "metadata": {},
        "wallet_id": wallet["id"],
        "posting_id": posting["posting_id"],
        "sequence": str(sequence),
        "kind": None,
        "currency_id": "USD",
        "effective_at": NOW,
        "note": None,
        "source": None,
    }
    assert changed.keys() <= row.keys()
    return {name: value for name, value in {**row, **changed}.items() if value is not None}


def posting_body(
    answer: Json, rows: list[Json], wallet: Json, *, replayed: bool = False, dry: bool = False
) -> Json:
    """The answer to a posting."""
    return {
        "posting_id": answer["posting_id"],
        "replayed": replayed,
        "validate_only": dry,
        "transactions": rows,
        "wallet": wallet,
    }


# --- the registry and the keys, when all is well --------------------------------------------------


@pytest.mark.parametrize(
    ("path", "new", "made"),
    [
        (
            "/v1/customers",
            {"id": "cus_one", "name": "Zoë", "email": "zoe@example.com", "metadata": METADATA},
            {"id": "cus_one", "name": "Zoë", "email": "zoe@example.com", "metadata": METADATA,
             "created_at": NOW},
        ),
        (
            "/v1/meters",
            {"id": "mtr_one", "name": "API Calls", "event_name": "calls", "unit": "call",
             "currency_id": "USD", "metadata": METADATA},
            {"id": "mtr_one", "name": "API Calls", "event_name": "calls", "unit": "call",
             "currency_id": "USD", "metadata": METADATA, "created_at": NOW},
        ),
        (
            "/v1/meters",
            {"id": "mtr_plain", "name": "Plain", "event_name": "plain", "unit": "call"},
            {"id": "mtr_plain", "name": "Plain", "event_name": "plain", "unit": "call",
             "metadata": {}, "created_at": NOW},
        ),
        (
            "/v1/subscriptions",
            {"id": "sub_one", "customer_id": "cus_owner", "name": "Pro", "metadata": METADATA},
            {"id": "sub_one", "customer_id": "cus_owner", "name": "Pro", "metadata": METADATA,
             "created_at": NOW},
        ),
        (
            "/v1/currencies",
            {"id": "PTS", "scale": 0, "name": "Points"},
            {"id": "PTS", "scale": 0, "name": "Points"},
        ),
        (
            "/v1/wallets",
            {"id": "wal_one", "customer_id": "cus_owner", "currency": "CNY", "livemode": True,
             "overdraft_limit": "12.5", "metadata": METADATA},
            wallet_body("wal_one", "cus_owner", currency="CNY", overdraft_limit="12.50",
                        metadata=METADATA),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_is_made_is_got_and_listed(
    served: Served, admin: str, path: str, new: Json, made: Json
) -> None:
    """Create, Create again, Get and List show the same bare object; another one is ID_TAKEN."""
    await served.customer("cus_owner")

    for _ in range(2):
        assert differences(await send(served, admin, f"POST {path}", new), made) == []
    assert differences(await send(served, admin, f"GET {path}/{made['id']}"), made) == []
    page = await send(served, admin, f"GET {path}", page_size=100)
    assert list(page) == [path.removeprefix("/v1/")]
    (listed,) = [one for one in page[path.removeprefix("/v1/")] if one["id"] == made["id"]]
    assert differences(listed, made) == []
    other = {**new, "metadata": {"plan": "u"}} if "metadata" in made else {**new, "scale": 1}
    assert await refusal(served, admin, f"POST {path}", other) == Failure(409, "ID_TAKEN", "id")
    unnamed = {name: value for name, value in new.items() if name != "id"}
    if "email" in new:
        assert (await send(served, admin, f"POST {path}", unnamed))["id"] != made["id"]


async def test_lists_come_in_pages(served: Served, admin: str) -> None:
    """Ordered by id; page_size and page_token; a filter narrows, its token belongs to it."""
    customer = await served.customer()
    subscriptions = [await served.subscription(customer, id=f"sub_page{n}") for n in range(5)]
    for currency in ("USD", "CNY", "CREDIT"):
        await served.wallet(customer, currency=currency)
    route = "GET /v1/subscriptions"

    pages: list[Json] = [{"next_page_token": None}]
    while "next_page_token" in pages[-1]:
        token = pages[-1]["next_page_token"]
        more = {"page_token": token} if token else {}
        query = {"customer_id": customer, "page_size": 2, **more}
        pages.append(await send(served, admin, route, **query))

    assert [list(page) for page in pages[1:-1]] == [["subscriptions", "next_page_token"]] * 2
    assert [one["id"] for page in pages[1:] for one in page["subscriptions"]] == subscriptions
    token = pages[1]["next_page_token"]
    for query in ({"page_token": token}, {"page_token": token, "customer_id": "cus_nobody"}):
        assert await refusal(served, admin, route, **query) == invalid("page_token")
    mine = {"customer_id": customer}
    for query, currencies in [
        ({}, {"USD", "CNY", "CREDIT"}),
        ({"currency": "CNY"}, {"CNY"}),
        ({"status": "active"}, {"USD", "CNY", "CREDIT"}),
        ({"status": "closed"}, set()),
        ({"livemode": "true"}, {"USD", "CNY", "CREDIT"}),
        ({"currency": "XXX"}, set()),
    ]:
        wallets = (await send(served, admin, "GET /v1/wallets", **mine, **query))["wallets"]
        assert {one["currency"] for one in wallets} == currencies, query


async def test_a_key_is_made_listed_and_revoked(served: Served, admin: str) -> None:
    """The secret once; then its mask; DELETE answers the key with the time of its end."""
    customer = await served.customer()
    ends = time.text(START + time.DAY)
    new = {"name": "Shop", "scope": "customer", "customer_id": customer, "expires_at": ends}

    made = await send(served, admin, "POST /v1/api-keys", new)

    secret = made["secret"]
    key = {
        "id": made["api_key"]["id"], "name": "Shop", "scope": "customer", "customer_id": customer,
        "livemode": True, "mask": f"sk-****{secret[-4:]}", "created_at": NOW, "expires_at": ends,
    }  # fmt: skip
    assert differences(made, {"api_key": key, "secret": secret}) == []
    assert await send(served, secret, "GET /v1/currencies/USD")
    query = {"customer_id": customer}
    listed = await send(served, admin, "GET /v1/api-keys", **query)
    assert differences(listed, {"api_keys": [key]}) == []
    served.clock.advance(5)
    revoked = {**key, "revoked_at": time.text(START + 5)}
    for _ in range(2):
        answer = await send(served, admin, f"DELETE /v1/api-keys/{key['id']}")
        assert differences(answer, revoked) == []
        served.clock.advance(1)
    assert await refusal(served, secret, "GET /v1/currencies/USD") == Failure(401, "KEY_INVALID")
    plain = await send(
        served, admin, "POST /v1/api-keys", {"name": "Ops", "scope": "admin", "livemode": True}
    )
    assert list(plain["api_key"]) == ["id", "name", "scope", "livemode", "mask", "created_at"]


async def test_a_wallet_is_changed(served: Served, admin: str) -> None:
    """PATCH: absent is unchanged, metadata merges, an empty value removes its key."""
    customer = await served.customer()
    wallet = await served.wallet(customer, metadata={"a": "1", "b": "2"})
    route = f"PATCH /v1/wallets/{wallet}"
    served.clock.advance(7)
    later = {"updated_at": time.text(START + 7)}

    first = await send(served, admin, route, {"metadata": {"b": "", "c": "3"}})
    second = await send(served, admin, route, {"overdraft_limit": "3", "status": "frozen"})
    third = await send(served, admin, route, {})

    known = wallet_body(wallet, customer, metadata={"a": "1", "c": "3"}, **later)
    assert differences(first, known) == []
    known |= {"overdraft_limit": "3.00", "status": "frozen"}
    assert differences(second, known) == []
    assert differences(third, known) == []
    assert differences(await send(served, admin, f"GET /v1/wallets/{wallet}"), known) == []
    closed = await send(served, admin, route, {"status": "closed"})
    assert closed["status"] == "closed"
    assert await refusal(served, admin, route, {"status": "active"}) == Failure(
        400, "WALLET_CLOSED"
    )


# --- postings, when all is well -------------------------------------------------------------------


async def test_a_posting_of_each_kind(served: Served, admin: str, service: str) -> None:
    """Grant, consumption, adjustment and refund: whole answers, and GetPosting repeats them."""
    customer = await served.customer()
    wallet = await served.wallet(customer, overdraft_limit="10")
    meter, subscription = await served.meter(), await served.subscription(customer)
    route = postings_of(wallet)
    state = wallet_body(wallet, customer, overdraft_limit="10.00")
    ends, earlier = time.text(START + time.DAY), time.text(START - time.HOUR)
    source = {"provider": "stripe", "receipt_id": "ch_1", "method": "card_visa_4242"}
    grant = {
        "idempotency_key": "one",
        "grant": {
            "amount": "50.00", "kind": "topup", "category": "paid", "priority": 50,
            "name": "Pack", "effective_at": earlier, "expires_at": ends, "source": source,
        },
        "description": "Top-up", "note": "by card", "metadata": METADATA,
    }  # fmt: skip
    consumption = {
        "idempotency_key": "two",
        "consumption": {
            "amount": "50.0123", "meter_id": meter, "meter_event_id": "me_1",
            "subscription_id": subscription,
            "usage": {
                "api_key_id": "apk_1", "product_id": "p", "product_name": "P", "category": "llm",
                "billing_method": 0, "quantities": ["1000", 500], "base_prices": ["25", 30],
                "discount_prices": [], "price_precision": 1,
            },
        },
        "effective_at": earlier,
    }  # fmt: skip

    given = await send(served, service, route, grant)
    state |= {"balance": "50.00", "available": "50.00", "sequence": "1"}
    texts = {"description": "Top-up", "note": "by card", "source": source, "metadata": METADATA}
    row = row_body(
        given, state, 1, 1, type="grant", kind="topup", amount="50.00", running_balance="50.00",
        effective_at=earlier, **texts,
    )  # fmt: skip
    assert differences(given, posting_body(given, [row], state)) == []

    spent = await send(served, service, route, consumption)
    state |= {
        "balance": "-0.0123", "available": "-0.0123", "overdraft_used": "0.0123", "sequence": "3",
    }  # fmt: skip
    used = {
        "type": "consumption", "kind": "usage", "meter_id": meter, "effective_at": earlier,
        "subscription_id": subscription, "meter_event_id": "me_1",
    }  # fmt: skip
    rows = [
        row_body(spent, state, 2, 1, amount="-50.00", running_balance="0.00", **used),
        row_body(spent, state, 3, None, amount="-0.0123", running_balance="-0.0123", **used),
    ]
    assert differences(spent, posting_body(spent, rows, state)) == []

    adjustment = {
        "idempotency_key": "three",
        "adjustment": {"amount": "-1", "source": {"actor": "ops@example.com"}, "force": True},
    }
    forced = await send(served, admin, route, adjustment)
    state |= {
        "balance": "-1.0123", "available": "-1.0123", "overdraft_used": "1.0123", "sequence": "4",
    }  # fmt: skip
    row = row_body(
        forced, state, 4, None, type="adjustment", kind="admin_debit", amount="-1.00",
        running_balance="-1.0123", source={"actor": "ops@example.com"},
    )  # fmt: skip
    assert differences(forced, posting_body(forced, [row], state)) == []

    part = {"posting_id": spent["posting_id"], "amount": "0.0124"}
    refund = {"idempotency_key": "four", "refund": part}
    back = await send(served, service, route, refund)
    state |= {
        "balance": "-0.9999", "available": "-0.9999", "overdraft_used": "1.00", "sequence": "6",
    }  # fmt: skip
    returned = {
        "type": "adjustment",
        "kind": "refund",
        "source": {"posting_id": spent["posting_id"]},
    }
    rows = [
        row_body(back, state, 5, None, amount="0.0123", running_balance="-1.00", **returned),
        row_body(back, state, 6, 1, amount="0.0001", running_balance="-0.9999", **returned),
    ]
    assert differences(back, posting_body(back, rows, state)) == []

    path = f"GET /v1/wallets/{wallet}/postings"
    for key, answer in (("one", given), ("two", spent), ("three", forced), ("four", back)):
        found = await send(served, service, path, idempotency_key=key)
        expected = posting_body(answer, answer["transactions"], state, replayed=True)
        assert differences(found, expected) == []
    assert await refusal(served, service, path, idempotency_key="five") == not_found(
        "idempotency_key"
    )


async def test_a_grant_by_default(served: Served, service: str) -> None:
    """Only an amount: a topup of priority 50 that never expires; a pending one is not available."""
    customer = await served.customer()
    wallet = await served.wallet(customer)
    state = wallet_body(wallet, customer, sequence="1", balance="1.00", available="1.00")
    body = {"idempotency_key": "k", "grant": {"amount": "1"}}

    plain = await send(served, service, postings_of(wallet), body)

    row = row_body(
        plain, state, 1, 1, type="grant", kind="topup", amount="1.00", running_balance="1.00"
    )
    assert differences(plain, posting_body(plain, [row], state)) == []
    starts = time.text(START + time.DAY)
    body = {"idempotency_key": "l", "grant": {"amount": "2"}, "effective_at": starts}
    later = await send(served, service, postings_of(wallet), body)
    shown = (later["wallet"]["balance"], later["wallet"]["pending"], later["wallet"]["available"])
    assert shown == ("3.00", "2.00", "1.00")


async def test_a_replay(served: Served, service: str) -> None:
    """Same key and request by value: the first posting, replayed, the wallet as it is now.

    Another request under the key is a 409, and so it is where the first one was refused no more.
    """
    customer = await served.customer()
    wallet = await served.wallet(customer)
    route = postings_of(wallet)
    await served.post(wallet, {"grant": {"amount": "5"}})
    body: Json = {"idempotency_key": "k", "consumption": {"amount": "1.50"}, "metadata": {}}
    first = await send(served, service, route, body)
    await served.post(wallet, {"consumption": {"amount": "1"}})

    body["consumption"]["amount"] = "1.5"
    again = await send(served, service, route, body, expected_sequence=0, validate_only="true")

    state = wallet_body(wallet, customer, sequence="3", balance="2.50", available="2.50")
    expected = posting_body(first, first["transactions"], state, replayed=True, dry=True)
    assert differences(again, expected) == []
    reused = Failure(409, "IDEMPOTENCY_KEY_REUSED", "idempotency_key")
    for changed in ({"note": "x"}, {"consumption": {"amount": "1.51"}}, {"effective_at": NOW}):
        async with nothing_written(served):
            assert await refusal(served, service, route, {**body, **changed}) == reused
    other = {"idempotency_key": "other", "consumption": {"amount": "9"}}
    poor = Failure(402, "INSUFFICIENT_CREDIT")
    assert await refusal(served, service, route, other) == poor
    other["consumption"] = {"amount": "2"}
    assert (await send(served, service, route, other))["replayed"] is False


async def test_a_spend_limit(served: Served, admin: str, service: str) -> None:
    """What passes it is a 429 that says what is left; set, listed and deleted by its route."""
    wallet = await served.wallet()
    limits = f"/v1/wallets/{wallet}/spend-limits"
    await served.post(wallet, {"grant": {"amount": "50"}})
    asked: Json = {"amount": "2", "period": "rolling", "hours": 24, "api_key_id": "apk_a"}
    made = await send(served, admin, f"POST {limits}", asked)
    usage = {"api_key_id": "apk_a", "quantities": [1]}
    spent = {"consumption": {"amount": "1.5", "usage": usage}}
    await served.post(wallet, spent)

    async with nothing_written(served):
        body = {"idempotency_key": "more", **spent}
        answer = await served.ask("POST", f"/v1/wallets/{wallet}/postings", key=service, json=body)
        assert failure(answer) == Failure(429, "SPEND_LIMIT_EXCEEDED")
        assert answer.json()["error"]["type"] == "rate_limit_error"
        message, told = answer.json()["error"]["message"], metadata(answer)
        (listed,) = (await send(served, service, f"GET {limits}"))["spend_limits"]
    resets = listed.pop("resets_at")
    assert resets > listed["created_at"]
    assert all(part in message for part in ("0.50 ", "2.00", "1.50 spent", resets))
    assert told == {
        "spend_limit_id": made["id"],
        "limit": "2.00",
        "spent": "1.50",
        "held": "0.00",
        "remaining": "0.50",
        "required": "1.50",
        "resets_at": resets,
        "retryable": "true",
    }
    assert "retry-after" not in answer.headers
    served.clock.advance(time.parse(resets, field="resets_at") - START - 90 * time.SECOND)
    answer = await served.ask("POST", f"/v1/wallets/{wallet}/postings", key=service, json=body)
    assert (failure(answer).code, answer.headers["retry-after"]) == ("SPEND_LIMIT_EXCEEDED", "90")
    served.clock.now = START
    assert listed == {
        "id": made["id"],
        "wallet_id": wallet,
        "api_key_id": "apk_a",
        "amount": "2.00",
        "period": "rolling",
        "hours": 24,
        "spent": "1.50",
        "held": "0.00",
        "remaining": "0.50",
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    gone = await send(served, admin, f"DELETE {limits}/{made['id']}")
    assert gone["id"] == made["id"]
    assert await send(served, service, f"GET {limits}") == {"spend_limits": []}


async def test_a_transfer(served: Served, service: str) -> None:
    """Both sides, each with its wallet; a repetition is replayed, a dry run writes nothing."""
    sender, receiver = await served.wallet(), await served.wallet()
    await served.post(sender, {"grant": {"amount": "5", "category": "promotional"}})
    body: Json = {
        "idempotency_key": "k",
        "from_wallet_id": sender,
        "to_wallet_id": receiver,
        "amount": "2.5",
    }
    async with nothing_written(served):
        dry = await send(served, service, TRANSFER, body, validate_only="true")
    assert (dry["sent"]["posting_id"], dry["received"]["posting_id"]) == ("", "")

    done = await send(served, service, TRANSFER, body, expected_sequence=1)

    sent, received = done["sent"], done["received"]
    (out,), (into,) = sent["transactions"], received["transactions"]
    assert (out["kind"], out["amount"], out["running_balance"]) == ("transfer_out", "-2.50", "2.50")
    assert (into["kind"], into["amount"], into["type"]) == ("transfer_in", "2.50", "adjustment")
    assert out["source"] == {"wallet_id": receiver, "posting_id": received["posting_id"]}
    assert into["source"] == {"wallet_id": sender, "posting_id": sent["posting_id"]}
    assert (sent["wallet"]["id"], received["wallet"]["id"]) == (sender, receiver)
    async with nothing_written(served):
        again = await send(served, service, TRANSFER, body)
        assert (again["sent"]["replayed"], again["received"]["replayed"]) == (True, True)
        poor = await refusal(
            served, service, TRANSFER, {**body, "idempotency_key": "l", "amount": "3"}
        )
        assert poor == Failure(402, "INSUFFICIENT_CREDIT")
        hidden = {**body, "to_wallet_id": "wal_none", "idempotency_key": "l"}
        assert await refusal(served, service, TRANSFER, hidden) == Failure(
            404, "NOT_FOUND", "to_wallet_id"
        )


async def test_too_little_credit(served: Served, service: str) -> None:
    """402 with its own type, for consumptions and debits; nothing is written."""
    wallet = await served.wallet(overdraft_limit="1")
    await served.post(wallet, {"grant": {"amount": "5"}})

    async with nothing_written(served):
        for operation in (
            {"consumption": {"amount": "6.000000001"}},
            {"adjustment": {"amount": "-6.000000001"}},
        ):
            body = {"idempotency_key": "k", **operation}
            answer = await served.ask(
                "POST", f"/v1/wallets/{wallet}/postings", key=service, json=body
            )
            assert failure(answer) == Failure(402, "INSUFFICIENT_CREDIT")
            amounts = {"required": "6.000000001", "available": "5.00", "currency": "USD"}
            assert metadata(answer) == amounts
    await send(
        served,
        service,
        postings_of(wallet),
        {"idempotency_key": "k", "consumption": {"amount": "6"}},
    )


@pytest.mark.parametrize("place", ["query", "body"])
async def test_validate_only_and_expected_sequence(
    served: Served, service: str, place: str
) -> None:
    """In the body or the query; the two places may not differ."""
    customer = await served.customer()
    wallet = await served.wallet(customer)
    await served.post(wallet, {"grant": {"amount": "5"}})
    route = postings_of(wallet)
    body: Json = {"idempotency_key": "k", "consumption": {"amount": "2"}}

    async def post(**given: Any) -> Json:
        if place == "query":
            return await send(served, service, route, body, **given)
        return await send(served, service, route, {**body, **given})

    async with nothing_written(served):
        dry = await post(validate_only="true" if place == "query" else True)
    state = wallet_body(wallet, customer, sequence="2", balance="3.00", available="3.00")
    (first,) = dry["transactions"]
    row = row_body(
        {"posting_id": first["credit_grant_id"].replace("cg_", "pst_")}, state, 2, 1,
        type="consumption", kind="usage", amount="-2.00", running_balance="3.00",
    )  # fmt: skip
    row |= {"id": "", "posting_id": ""}
    assert differences(dry, posting_body({"posting_id": ""}, [row], state, dry=True)) == []

    async with nothing_written(served):
        for number in (0, 2):
            moved = Failure(409, "SEQUENCE_MISMATCH", "expected_sequence")
            given = {**body, "expected_sequence": str(number)}
            assert await refusal(served, service, route, given) == moved
            query = {"expected_sequence": number}
            assert await refusal(served, service, route, body, **query) == moved
            differ = {**body, "expected_sequence": 1}
            assert await refusal(served, service, route, differ, **query) == invalid(
                "expected_sequence"
            )
        for name in ("expected_sequence", "validate_only"):
            for text in ("", "abc", "1.5"):
                assert await refusal(served, service, route, body, **{name: text}) == invalid(name)
        for name, value, expected in [
            ("expectedSequence", "2", moved),
            ("expectedSequence", "x", invalid("expectedSequence")),
            ("validateOnly", "x", invalid("validateOnly")),
        ]:
            assert await refusal(served, service, route, body, **{name: value}) == expected
        assert (await send(served, service, route, body, validateOnly="true"))["validate_only"]
        for name in ("validate_onyl", "Validate_only", "validateonly", "dry_run"):
            unknown = Failure(400, "UNKNOWN_PARAMETER", name)
            assert await refusal(served, service, route, body, **{name: "true"}) == unknown
    assert (await post(expected_sequence="1"))["wallet"]["sequence"] == "2"


async def test_a_batch(served: Served, service: str) -> None:
    """A result for each posting in its order; bad ones are told and spoil no other."""
    customer = await served.customer()
    wallet, test = await served.wallet(customer), await served.wallet(customer, livemode=False)
    postings: list[Json] = [
        {"wallet_id": wallet, "idempotency_key": "a", "grant": {"amount": "5"}},
        {"wallet_id": wallet, "idempotency_key": "b", "consumption": {"amount": "5.5"}},
        {"wallet_id": wallet, "idempotency_key": "b", "consumption": {"amount": "0"}},
        {"wallet_id": wallet, "consumption": {"amount": "1"}},
        {"idempotency_key": "b", "consumption": {"amount": "1"}},
        {"wallet_id": test, "idempotency_key": "b", "consumption": {"amount": "1"}},
        {"wallet_id": wallet, "idempotency_key": "b"},
        {},
        {"wallet_id": wallet, "idempotency_key": "b", "consumption": {"amount": "4"}},
        {"wallet_id": wallet, "idempotency_key": "b", "consumption": {"amount": "4.0"}},
        {"wallet_id": wallet, "idempotency_key": "b", "consumption": {"amount": "4.1"}},
        {
            "wallet_id": wallet,
            "idempotency_key": "c",
            "adjustment": {"amount": "-1", "force": True},
        },
    ]

    answer = await send(served, service, "POST /v1/postings:batch", {"postings": postings})

    assert list(answer) == ["results"]
    results = answer["results"]
    state = wallet_body(wallet, customer, sequence="1", balance="5.00", available="5.00")
    given = results[0]["posting"]
    row = row_body(
        given, state, 1, 1, type="grant", kind="topup", amount="5.00", running_balance="5.00"
    )
    assert differences(results[0], {"posting": posting_body(given, [row], state)}) == []
    state |= {"sequence": "2", "balance": "1.00", "available": "1.00"}
    for place, replayed in ((8, False), (9, True)):
        spent = results[place]["posting"]
        row = row_body(
            spent, state, 2, 1, type="consumption", kind="usage", amount="-4.00",
            running_balance="1.00",
        )  # fmt: skip
        expected = posting_body(spent, [row], state, replayed=replayed)
        assert differences(results[place], {"posting": expected}) == []

    def error(type_: str, code: str, param: str | None = None, **metadata: str) -> Json:
        named = {} if param is None else {"param": param}
        return {"error": {"type": type_, "code": code, **named, "metadata": metadata}}

    bad, poor = "invalid_request_error", "insufficient_credit_error"
    amounts = {"required": "5.50", "available": "5.00", "currency": "USD"}
    wanted = {
        1: error(poor, "INSUFFICIENT_CREDIT", **amounts),
        2: error(bad, "INVALID_FIELD", "consumption.amount"),
        3: error(bad, "MISSING_FIELD", "idempotency_key"),
        4: error(bad, "MISSING_FIELD", "wallet_id"),
        5: error("not_found_error", "NOT_FOUND", "wallet_id"),
        6: error(bad, "MISSING_FIELD", "operation"),
        7: error(bad, "MISSING_FIELD", "idempotency_key"),
        10: error("conflict_error", "IDEMPOTENCY_KEY_REUSED", "idempotency_key",
                  fields="consumption.amount"),
        11: error("permission_error", "SCOPE_DENIED"),
    }  # fmt: skip
    for place, expected in wanted.items():
        assert list(results[place]["error"])[:2] == ["type", "message"]
        assert results[place]["error"].pop("message")
        assert differences(results[place], expected) == [], place


async def test_how_large_a_batch_may_be(served: Served, service: str) -> None:
    """1 to 1,000 postings; none and 1,001 are a 400, whatever is in them."""
    wallet = await served.wallet()
    route = "POST /v1/postings:batch"
    postings = [
        {"wallet_id": wallet, "idempotency_key": f"{n}", "grant": {"amount": "1"}}
        for n in range(BATCH_MAX + 1)
    ]

    none: list[object] = [None, [], postings, "abc", [1]]

    async with nothing_written(served):
        for body in [None, {}, *({"postings": one} for one in none)]:
            assert await refusal(served, service, route, body) == invalid("postings")
    answer = await send(served, service, route, {"postings": postings[:BATCH_MAX]})
    assert len(answer["results"]) == BATCH_MAX
    assert answer["results"][-1]["posting"]["wallet"]["balance"] == "1000.00"


async def test_wallets_that_refuse(served: Served, admin: str, service: str) -> None:
    """Frozen gives nothing, closed takes nothing; what cannot be closed, what not refunded."""
    wallet = await served.wallet()
    given, spent = await served.post(
        wallet, {"grant": {"amount": "5"}}, {"consumption": {"amount": "1"}}
    )
    patch = f"PATCH /v1/wallets/{wallet}"
    assert await refusal(served, admin, patch, {"status": "closed"}) == invalid("status")
    for changed in ({"status": "frozen"}, {"overdraft_limit": "1"}):
        denied = Failure(403, "SCOPE_DENIED")
        assert await refusal(served, service, patch, changed) == denied
    await send(served, admin, patch, {"status": "frozen"})

    async def code(**operation: Json) -> Failure:
        body = {"idempotency_key": "k", **operation}
        async with nothing_written(served):
            return await refusal(served, service, postings_of(wallet), body)

    assert await code(consumption={"amount": "1"}) == Failure(400, "WALLET_FROZEN")
    assert await code(adjustment={"amount": "-1"}) == Failure(400, "WALLET_FROZEN")
    await send(served, admin, patch, {"status": "active"})
    part = {"posting_id": spent["posting_id"], "amount": "1.01"}
    assert await code(refund=part) == Failure(400, "REFUND_TOO_LARGE", "refund.amount")
    other = {"posting_id": given["posting_id"]}
    assert await code(refund=other) == Failure(400, "NOT_REFUNDABLE", "refund.posting_id")
    await served.post(wallet, {"refund": {"posting_id": spent["posting_id"]}})
    again = {"posting_id": spent["posting_id"]}
    assert await code(refund=again) == Failure(400, "NOT_REFUNDABLE", "refund.posting_id")
    await served.post(wallet, {"adjustment": {"amount": "-5"}})
    await send(served, admin, patch, {"status": "closed"})
    assert await code(grant={"amount": "1"}) == Failure(400, "WALLET_CLOSED")


# --- bad input: fields ----------------------------------------------------------------------------

#: Neither a decimal nor a string that could be one.
NO_AMOUNTS: list[object] = [
    "abc", "1e3", "NaN", "Infinity", "-0", "-0.00", "+5", "1" + "0" * 30, "1000000000",
    "1.0000000001", "1.0000000000", " 1", "1 ", "1,5", "1.", ".5", "1.2.3", "--1", "0x10", "1_0",
    "٣", "1\x00", "1\n", LONG, 5, 1.5, 0, True, {"a": "1"}, ["1"],
]  # fmt: skip
NO_TEXTS: list[object] = [
    "", LONG, "a\x00b", "\x07", "a\nb", "\x7f", "\x85", "\u2028", 5, True, {"a": "b"}, ["a"],
]  # fmt: skip
NO_TIMES: list[object] = [
    "", "soon", "2026-09-21", "2026-09-21T14:13:20", "2026-09-21 14:13:20Z", "2026-13-01T00:00:00Z",
    "2026-02-30T00:00:00Z", "2026-09-21T24:00:00Z", "2026-09-21T14:13:20+25:00",
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "10000-01-01T00:00:00Z",
    "9999-12-31T23:59:59-01:00", "2026-09-21T14:13:20Z\x00", LONG, 1_790_000_000, 1.5, True,
]  # fmt: skip


def no_ids(prefix: str) -> list[object]:
    """Nothing that an id of this kind could be."""
    other = "cus" if prefix != "cus" else "wal"
    return [
        "", "1", f"{other}_1", prefix, f"{prefix}_", f"{prefix}-1", f"{prefix.upper()}_1",
        f"{prefix}_a b", f"{prefix}_é", f"{prefix}_a\x00", f"{prefix}_a\n", f"{prefix}_" + "x" * 61,
        f"{prefix}_{LONG}", LONG, 5, True, [f"{prefix}_1"], {"id": f"{prefix}_1"},
    ]  # fmt: skip


def no_metadata() -> Iterator[tuple[object, str | None]]:
    """What metadata cannot be, and the param that says so."""
    many = {str(number): "x" for number in range(51)}
    heavy = {"a": "x" * METADATA_BYTES_MAX}
    wide = {"ß" * 60: "ß" * ((METADATA_BYTES_MAX - 118) // 2)}
    bad: list[object] = [
        many, heavy, wide, {"": "x"}, {"x" * 129: "x"}, {"a": "\x00"}, {"a\x07": "b"},
        {"a": True}, {"a": ["b"]}, {"a": [1]}, ["a"], "a", 5,
    ]  # fmt: skip
    yield from ((value, "metadata") for value in bad)
    yield {"a": {"b": "c"}}, None  # seen by the server as a text that is none


def with_field(body: Json, name: str, value: object) -> Json:
    """A deep copy of the body with the field, named by its path, replaced."""
    changed: Json = json.loads(json.dumps(body))
    *path, last = name.split(".")
    inner = changed
    for part in path:
        inner = inner[part]
    inner[last] = value
    return changed


#: A request of each write that is in order, and its fields by what they hold. "?" marks the
#: optional ones; an id is followed by its prefix.
WRITES: dict[str, tuple[Json, dict[str, str]]] = {
    "POST /v1/customers": (
        {"id": "cus_w", "name": "W", "email": "w@example.com", "metadata": {}},
        {"id": "id? cus", "name": "text", "email": "text", "metadata": "metadata"},
    ),
    "POST /v1/meters": (
        {"id": "mtr_w", "name": "W", "event_name": "w", "unit": "w", "currency_id": "USD",
         "metadata": {}},
        {"id": "id? mtr", "name": "text", "event_name": "text", "unit": "text",
         "currency_id": "currency?", "metadata": "metadata"},
    ),
    "POST /v1/subscriptions": (
        {"id": "sub_w", "customer_id": "cus_writer", "name": "W", "metadata": {}},
        {"id": "id? sub", "customer_id": "id cus", "name": "text", "metadata": "metadata"},
    ),
    "POST /v1/wallets/wal_writer/spend-limits": (
        {"amount": "1", "period": "rolling", "hours": 1, "api_key_id": "apk_w"},
        {"period": "word", "hours": "number 1 744", "api_key_id": "text?"},
    ),
    "POST /v1/currencies": (
        {"id": "WWW", "scale": 2, "name": "W"},
        {"id": "currency", "scale": "number 0 9", "name": "text"},
    ),
    "POST /v1/wallets": (
        {"id": "wal_w", "customer_id": "cus_writer", "currency": "CNY", "livemode": True,
         "overdraft_limit": "0", "metadata": {}},
        {"id": "id? wal", "customer_id": "id cus", "currency": "currency", "livemode": "boolean",
         "overdraft_limit": "limit", "metadata": "metadata"},
    ),
    "PATCH /v1/wallets/wal_writer": (
        {"overdraft_limit": "0", "status": "active", "metadata": {}},
        {"overdraft_limit": "limit", "status": "word", "metadata": "metadata"},
    ),
    "POST /v1/api-keys": (
        {"name": "W", "scope": "customer", "customer_id": "cus_writer", "livemode": True,
         "expires_at": "2030-01-01T00:00:00Z"},
        {"name": "text", "scope": "word", "customer_id": "id? cus", "livemode": "boolean",
         "expires_at": "time"},
    ),
}  # fmt: skip
POSTING = "POST /v1/wallets/wal_writer/postings"
COMMON: Json = {
    "idempotency_key": "w", "description": "W", "note": "W", "metadata": {},
    "expected_sequence": 1, "validate_only": False, "effective_at": NOW,
}  # fmt: skip
COMMON_FIELDS = {
    "idempotency_key": "text", "description": "text?", "note": "text?", "metadata": "metadata",
    "expected_sequence": "number 0 9000000000000000000", "validate_only": "boolean",
    "effective_at": "time",
}  # fmt: skip
#: The same of each operation of a posting.
OPERATIONS: dict[str, tuple[Json, dict[str, str]]] = {
    "grant": (
        {"amount": "1", "kind": "topup", "category": "paid", "priority": 50, "name": "W",
         "effective_at": NOW, "expires_at": "2030-01-01T00:00:00Z",
         "source": {"provider": "w", "receipt_id": "w", "method": "w"}},
        {"amount": "amount", "kind": "word", "category": "word", "priority": "number 0 100",
         "name": "text?", "effective_at": "time", "expires_at": "time",
         "source.provider": "text?", "source.receipt_id": "text?", "source.method": "text?"},
    ),
    "consumption": (
        {"amount": "1", "meter_id": "mtr_writer", "meter_event_id": "w",
         "subscription_id": "sub_writer",
         "usage": {"api_key_id": "w", "product_id": "w", "product_name": "w", "category": "w",
                   "billing_method": 1, "quantities": [1, 2], "base_prices": [1],
                   "discount_prices": [1], "price_precision": 1}},
        {"amount": "amount", "meter_id": "id? mtr", "meter_event_id": "text?",
         "subscription_id": "id? sub", "usage.api_key_id": "text?", "usage.product_id": "text?",
         "usage.product_name": "text?", "usage.category": "text?",
         "usage.billing_method": "number 0 2147483647", "usage.quantities": "numbers 6",
         "usage.base_prices": "numbers 2", "usage.discount_prices": "numbers 2",
         "usage.price_precision": "number 1 2147483647"},
    ),
    "adjustment": (
        {"amount": "-1", "source": {"actor": "w"}, "force": False},
        {"amount": "signed", "source.actor": "text?", "force": "boolean"},
    ),
    "refund": (
        {"posting_id": "pst_w", "amount": "1"},
        {"posting_id": "id pst", "amount": "amount"},
    ),
}  # fmt: skip


def bad_values(held: str) -> Iterator[tuple[object, str]]:
    """(value, code) of what a field that holds this cannot be."""
    kind, *rest = held.split(" ")
    absent = "INVALID_FIELD" if kind.endswith("?") else "MISSING_FIELD"
    kind = kind.rstrip("?")
    if kind == "id":
        yield from ((v, absent if v == "" else "INVALID_FIELD") for v in no_ids(rest[0]))
    elif kind == "text":
        yield from ((v, absent if v == "" else "INVALID_FIELD") for v in NO_TEXTS)
    elif kind == "currency":
        for value in ["usd", "US", "U" * 17, "1US", "U-S", "USD\x00", "ÜSD", LONG, 5, ["USD"]]:
            yield value, "INVALID_FIELD"
        yield "", absent
    elif kind in {"amount", "signed", "limit"}:
        # What an optional amount holds is no absence: "" is no number.
        yield "", "INVALID_FIELD" if kind == "limit" else "MISSING_FIELD"
        yield from ((value, "INVALID_FIELD") for value in NO_AMOUNTS)
        more = {"amount": ["0", "0.00", "-1"], "signed": ["0", "0.000"], "limit": ["-1", "-0.01"]}
        yield from ((value, "INVALID_FIELD") for value in more[kind])
    elif kind == "time":
        yield from ((value, "INVALID_FIELD") for value in NO_TIMES)
    elif kind == "boolean":
        yield from ((value, "INVALID_FIELD") for value in ["", "maybe", 1, 0, 1.5, [True], {}])
    elif kind == "word":
        yield from ((v, "INVALID_FIELD") for v in ["Paid", "no word", LONG, "a\x00", 5, ["paid"]])
    elif kind == "number":
        least, most = map(int, rest)
        outside = [least - 1, most + 1, 1.5, "1.5", "one", "", True, [[]], {"a": 1}, 10**30]
        yield from ((value, "INVALID_FIELD") for value in outside)
    else:
        assert kind == "numbers"
        bad = [[-1], [10**15 + 1], [1.5], ["x"], [2**63], [1] * (int(rest[0]) + 1), ["1", None, -1]]
        yield from ((value, "INVALID_FIELD") for value in bad)


def named(found: Failure, code: str, field: str, value: object) -> bool:
    """Whether the refusal is the expected one, under the field's name.

    The name may have a place in a list behind it. Of a list where none belongs Envoy names what
    holds it.
    """
    around = field.rpartition(".")[0] or None
    if isinstance(value, list) and found == invalid(around):
        return True
    plain = found.param and found.param.partition("[")[0]
    return (found.status, found.code, plain) == (400, code, field)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def writer(shared: Served) -> Served:
    """The service with what the requests above refer to."""
    shared.clock.now = START
    customer = await shared.customer("cus_writer")
    await shared.wallet(customer, id="wal_writer")
    await shared.meter(id="mtr_writer")
    await shared.subscription(customer, id="sub_writer")
    await shared.post("wal_writer", {"grant": {"amount": "100"}})
    return shared


def write_fields() -> Iterator[Any]:
    """(route, body, field, what it holds), of every field of every write."""
    for route, (body, held) in WRITES.items():
        for field, kind in held.items():
            yield pytest.param(route, body, field, kind, id=f"{route}-{field}")
    for name, (operation, held) in OPERATIONS.items():
        body = {**COMMON, name: operation}
        fields = {f"{name}.{field}": kind for field, kind in held.items()}
        for field, kind in fields.items():
            yield pytest.param(POSTING, body, field, kind, id=f"posting-{field}")
    body = {**COMMON, "grant": {"amount": "1"}}
    for field, kind in COMMON_FIELDS.items():
        yield pytest.param(POSTING, body, field, kind, id=f"posting-{field}")


@pytest.mark.parametrize(("route", "body", "field", "held"), list(write_fields()))
async def test_a_field_that_is_not_what_it_should_be(
    writer: Served, admin: str, route: str, body: Json, field: str, held: str
) -> None:
    """Each field of each write, each way to spoil it: a 400 that names it, nothing written."""
    writer.clock.now = START
    bad = [] if held == "metadata" else list(bad_values(held))

    async with nothing_written(writer):
        for value, code in bad:
            found = await refusal(writer, admin, route, with_field(body, field, value))
            assert named(found, code, field, value), (str(value)[:60], found)
        if held == "metadata":
            for value, param in no_metadata():
                found = await refusal(writer, admin, route, with_field(body, field, value))
                assert found == invalid(param), (str(value)[:60], found)


async def test_bad_fields_in_a_batch(writer: Served, service: str) -> None:
    """Every bad text of every field is an error of its own item, under its name.

    A value of another JSON type makes it no batch at all: Envoy refuses it whole and names the
    place.
    """
    writer.clock.now = START
    cases: list[tuple[Json, str, str]] = []
    for name, (operation, held) in OPERATIONS.items():
        fields = {f"{name}.{field}": kind for field, kind in held.items()} | COMMON_FIELDS
        body = {**COMMON, name: operation, "wallet_id": "wal_writer"}
        for field, kind in fields.items():
            texts = kind.split(" ")[0] in {"amount", "signed", "text", "text?", "time", "word"}
            for value, code in bad_values(kind) if texts else ():
                if isinstance(value, str):
                    cases.append((with_field(body, field, value), code, field))
    good = {"wallet_id": "wal_writer", "grant": {"amount": "1"}}
    ends = [{**good, "idempotency_key": f"batch end {n}"} for n in range(2)]
    route = "POST /v1/postings:batch"

    def batch(*middle: Json) -> Json:
        return {"postings": [ends[0], *middle, ends[1]]}

    assert 300 < len(cases) < BATCH_MAX
    async with nothing_written(writer):
        for field, value, param in [
            ("grant.amount", 5, "grant.amount"),
            ("grant.amount", 1.5, "grant.amount"),
            ("grant.amount", True, "grant.amount"),
            ("grant.amount", {"a": "1"}, "grant.amount"),
            ("grant.amount", ["1"], "grant"),
            ("grant.priority", "high", "grant.priority"),
            ("metadata", {"a": True}, "metadata"),
            ("expected_sequence", 1.5, "expected_sequence"),
            ("validate_only", "maybe", "validate_only"),
        ]:
            bad = with_field({**good, "idempotency_key": "bad"}, field, value)
            found = await refusal(writer, service, route, batch(bad))
            assert found == invalid(f"postings[1].{param}"), (field, value)
    before = writer.row_counts()["postings"]
    answer = await send(writer, service, route, batch(*(body for body, _, _ in cases)))

    assert len(answer["results"]) == len(cases) + 2
    assert [list(answer["results"][place]) for place in (0, -1)] == [["posting"]] * 2
    assert writer.row_counts()["postings"] == before + 2
    for (body, code, field), result in zip(cases, answer["results"][1:-1], strict=True):
        error = result["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error", code, field,
        ), (body, error)  # fmt: skip


@pytest.mark.parametrize("route", WRITES)
async def test_the_requests_that_are_spoilt_are_in_order(
    writer: Served, admin: str, route: str
) -> None:
    """What the test above spoils succeeds unspoilt: it is each field alone that is refused."""
    writer.clock.now = START
    body, _ = WRITES[route]

    await send(writer, admin, route, body)


@pytest.mark.parametrize("name", ["grant", "consumption", "adjustment"])
async def test_the_postings_that_are_spoilt_are_in_order(
    writer: Served, admin: str, name: str
) -> None:
    """The same for postings, and at the upper limits of their fields."""
    writer.clock.now = START
    operation, _ = OPERATIONS[name]
    free = {key: value for key, value in COMMON.items() if key != "expected_sequence"}
    await send(writer, admin, POSTING, {**free, "idempotency_key": f"{name}", name: operation})

    texts: Json = {"description": "d" * 512, "note": "ß" * 512, "idempotency_key": name * 20}
    texts["metadata"] = {"k" * 128: "v" * (METADATA_BYTES_MAX - 128)}
    largest = {
        "grant": {"amount": "100000000", "priority": 100, "name": "n" * 128,
                  "source": {"provider": "p" * 128}, "expires_at": "9999-12-31T23:59:59.999Z"},
        "consumption": {
            "amount": "0.000000001", "meter_event_id": "e" * 128,
            "usage": {"product_name": "ß" * 128, "quantities": [10**15] * 6,
                      "base_prices": [10**15] * 6, "price_precision": 2**31 - 1},
        },
        "adjustment": {"amount": "-0.000000001", "source": {"actor": "a" * 128}},
    }  # fmt: skip
    await send(writer, admin, POSTING, {**texts, name: largest[name]})
    await send(writer, admin, POSTING, {"idempotency_key": "x" * 255, "grant": {"amount": "1"}})


@pytest.mark.parametrize("route", [*WRITES, POSTING])
async def test_a_required_field_that_is_absent(writer: Served, admin: str, route: str) -> None:
    """Left out or null, it is MISSING_FIELD under its name."""
    if route == POSTING:
        fields = {
            f"{name}.amount": {**COMMON, name: body} for name, (body, _) in OPERATIONS.items()
        }
        del fields["refund.amount"]
        fields["refund.posting_id"] = {**COMMON, "refund": {"amount": "1"}}
        quantities = {**COMMON, "consumption": OPERATIONS["consumption"][0]}
        fields["consumption.usage.quantities"] = quantities
        fields["idempotency_key"] = {**COMMON, "grant": {"amount": "1"}}
        fields["operation"] = COMMON
    else:
        body, held = WRITES[route]
        optional = {"id", "metadata", "livemode", "overdraft_limit", "expires_at", "status"}
        if route == "POST /v1/currencies":
            optional.remove("id")
        required = [name for name in held if name not in optional and "?" not in held[name]]
        fields = dict.fromkeys(required, body)

    async with nothing_written(writer):
        for field, body in fields.items():
            if field != "operation":  # which is one of several, and no field
                null = with_field(body, field, None)
                assert await refusal(writer, admin, route, null) == missing(field)
            *path, last = field.split(".")
            without = json.loads(json.dumps(body))
            inner = without
            for part in path:
                inner = inner[part]
            inner.pop(last, None)
            assert await refusal(writer, admin, route, without) == missing(field), field


async def test_what_goes_together(writer: Served, admin: str, service: str) -> None:
    """Fields that are right alone and wrong together: times in order, sources of their kind."""
    writer.clock.now = START
    hour, day = time.HOUR, time.DAY

    def at(milliseconds: int) -> str:
        return time.text(START + milliseconds)

    ops, stripe = {"actor": "ops"}, {"provider": "stripe"}
    refused: list[tuple[Json, str]] = [
        ({"grant": {"effective_at": at(2 * hour), "expires_at": at(hour)}}, "grant.expires_at"),
        ({"grant": {"effective_at": at(hour), "expires_at": at(hour)}}, "grant.expires_at"),
        ({"grant": {"expires_at": at(hour)}, "effective_at": at(hour)}, "grant.expires_at"),
        ({"grant": {"expires_at": at(0)}}, "grant.expires_at"),
        ({"grant": {"expires_at": at(-day)}}, "grant.expires_at"),
        ({"grant": {"effective_at": at(-35 * day - 1)}}, "grant.effective_at"),
        ({"grant": {}, "effective_at": at(-35 * day - 1)}, "effective_at"),
        ({"consumption": {}, "effective_at": at(-35 * day - 1)}, "effective_at"),
        ({"consumption": {}, "effective_at": at(60_001)}, "effective_at"),
        ({"consumption": {}, "effective_at": "9999-12-31T23:59:59Z"}, "effective_at"),
        ({"consumption": {}, "effective_at": "0001-01-01T00:00:00Z"}, "effective_at"),
        ({"adjustment": {}, "effective_at": at(60_001)}, "effective_at"),
        ({"adjustment": {"force": True}}, "adjustment.force"),
        ({"adjustment": {"credit_grant_id": "GRANT"}}, "adjustment.credit_grant_id"),
        ({"grant": {"source": ops}}, "grant.source.actor"),
        ({"grant": {"kind": "admin_credit", "source": stripe}}, "grant.source.provider"),
        (
            {"grant": {"kind": "subscription_renew", "source": {"method": "card"}}},
            "grant.source.method",
        ),
        ({"grant": {"source": {"posting_id": "pst_1"}}}, "grant.source.posting_id"),
        ({"adjustment": {"source": stripe}}, "adjustment.source.provider"),
        ({"adjustment": {"source": {"posting_id": "pst_1"}}}, "adjustment.source.posting_id"),
        ({"grant": {}, "consumption": {}}, "consumption"),
    ]
    (given,) = await writer.post("wal_writer", {"grant": {"amount": "1"}})
    grant = given["transactions"][0]["credit_grant_id"]
    accepted: list[Json] = [
        {"consumption": {}, "effective_at": at(60_000)},
        {"consumption": {}, "effective_at": at(-35 * day)},
        {"grant": {}, "effective_at": at(-35 * day)},
        {"grant": {"effective_at": at(3650 * day)}},
        {"grant": {"expires_at": at(1)}},
        {"adjustment": {"amount": "-0.1", "credit_grant_id": grant}},
    ]

    def whole(posting: Json, key: str) -> Json:
        text = json.dumps({"idempotency_key": key, **posting}).replace("GRANT", grant)
        body: Json = json.loads(text)
        for name in ("grant", "consumption", "adjustment"):
            if name in body:
                body[name].setdefault("amount", "0.01")
        return body

    async with nothing_written(writer):
        for posting, field in refused:
            key = admin if field == "adjustment.force" else service
            found = await refusal(writer, key, POSTING, whole(posting, "together"))
            assert found == invalid(field), posting
        found = await refusal(
            writer, service, POSTING, whole({"adjustment": {"amount": "-1", "force": True}}, "x")
        )
        assert found == Failure(403, "SCOPE_DENIED")
    for number, posting in enumerate(accepted):
        await send(writer, service, POSTING, whole(posting, f"together {number}"))
    ancient = {"consumption": {"amount": "0.01"}, "effective_at": "0001-01-01T00:00:00Z"}
    answer = await send(writer, admin, POSTING, whole(ancient, "ancient"))
    assert answer["transactions"][0]["effective_at"] == "0001-01-01T00:00:00.000Z"


async def test_references_that_name_nothing(writer: Served, admin: str) -> None:
    """Customer, currency, meter, subscription, grant, posting and wallet must exist: NOT_FOUND."""
    other = await writer.customer()
    foreign = await writer.subscription(other)
    other_wallet = await writer.wallet(other)
    given, spent = await writer.post(
        other_wallet, {"grant": {"amount": "1"}}, {"consumption": {"amount": "1"}}
    )
    grant = given["transactions"][0]["credit_grant_id"]

    def refund(posting_id: str) -> Json:
        return {"refund": {"posting_id": posting_id}}

    def used(**named: str) -> Json:
        return {"consumption": {"amount": "1", **named}}

    def debit(credit_grant_id: str) -> Json:
        return {"adjustment": {"amount": "-1", "credit_grant_id": credit_grant_id}}

    def new(route: str, **changed: str) -> tuple[str, Json]:
        return route, {**WRITES[route][0], **changed}

    cases: list[tuple[str, Json, str]] = [
        (POSTING, used(meter_id="mtr_none"), "consumption.meter_id"),
        (POSTING, used(subscription_id="sub_none"), "consumption.subscription_id"),
        (POSTING, used(subscription_id=foreign), "consumption.subscription_id"),
        (POSTING, debit("cg_none"), "adjustment.credit_grant_id"),
        (POSTING, debit(grant), "adjustment.credit_grant_id"),
        (POSTING, refund("pst_none"), "refund.posting_id"),
        (POSTING, refund("pst_" + "z" * 26), "refund.posting_id"),
        (POSTING, refund(spent["posting_id"]), "refund.posting_id"),
        (postings_of("wal_none"), {"grant": {"amount": "1"}}, "wallet_id"),
        ("PATCH /v1/wallets/wal_none", {}, "wallet_id"),
        ("DELETE /v1/api-keys/apk_none", {}, "id"),
        (*new("POST /v1/wallets", id="wal_none", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/wallets", id="wal_none", currency="ZZZ"), "currency"),
        (*new("POST /v1/subscriptions", id="sub_none", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/api-keys", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/meters", id="mtr_none", currency_id="ZZZ"), "currency_id"),
    ]

    async with nothing_written(writer):
        for route, body, field in cases:
            keyed = {"idempotency_key": "none", **body} if "/postings" in route else body
            found = await refusal(writer, admin, route, None if "DELETE" in route else keyed)
            assert found == not_found(field), (route, body)


async def test_a_wallet_of_the_other_mode(writer: Served, admin: str) -> None:
    """For a key of one mode the wallets of the other are not there, for reads and for writes."""
    test = await writer.key("admin", livemode=False)
    wallet = await writer.wallet(livemode=False)
    answer = await writer.post(wallet, {"grant": {"amount": "1"}, "idempotency_key": "k"})
    grant = {"idempotency_key": "k", "grant": {"amount": "1"}}

    async with nothing_written(writer):
        for key, id_ in ((admin, wallet), (test, "wal_writer")):
            for route, body in [
                (f"GET /v1/wallets/{id_}", None),
                (f"PATCH /v1/wallets/{id_}", {"status": "active"}),
                (postings_of(id_), grant),
            ]:
                assert await refusal(writer, key, route, body) == not_found("wallet_id"), route
            found = await refusal(
                writer, key, f"GET /v1/wallets/{id_}/postings", idempotency_key="k"
            )
            assert found == not_found("wallet_id")
        mismatch = Failure(403, "MODE_MISMATCH", "livemode")
        for route, body in [
            ("POST /v1/wallets", {**WRITES["POST /v1/wallets"][0], "livemode": False}),
            ("POST /v1/api-keys", {"name": "x", "scope": "admin", "livemode": False}),
        ]:
            assert await refusal(writer, admin, route, body) == mismatch
        for path in ("/v1/wallets", "/v1/api-keys"):
            assert await refusal(writer, admin, f"GET {path}", livemode="false") == mismatch
    own = await send(writer, test, f"GET /v1/wallets/{wallet}/postings", idempotency_key="k")
    assert own["posting_id"] == answer[0]["posting_id"]


# --- bad input: paths, queries, bodies ------------------------------------------------------------

NO_HOLD = f"hld_{'0' * 26}"
#: Routes of holds, each with a body that is in order.
ON_HOLDS: dict[str, Json] = {
    "POST /v1/wallets/wal_writer/holds": {"idempotency_key": "k", "amount": "1"},
    f"POST /v1/holds/{NO_HOLD}:capture": {"idempotency_key": "k"},
    f"POST /v1/holds/{NO_HOLD}:release": {"idempotency_key": "k"},
    f"POST /v1/holds/{NO_HOLD}:extend": {"idempotency_key": "k", "ttl_seconds": 5},
}
TRANSFER = "POST /v1/transfers"
A_TRANSFER = {
    "idempotency_key": "k",
    "from_wallet_id": "wal_writer",
    "to_wallet_id": "wal_none",
    "amount": "1",
}
NO_GRANT, NO_POSTING = f"cg_{'0' * 26}", f"pst_{'0' * 26}"
GRANTS = "/v1/credit-grants"
#: The same of grants.
ON_GRANTS: dict[str, Json] = {
    f"PATCH {GRANTS}/{NO_GRANT}": {"name": "Spring"},
    f"POST {GRANTS}/{NO_GRANT}:void": {"idempotency_key": "k"},
}
ROUTES = [
    *WRITES,
    POSTING,
    "POST /v1/postings:batch",
    "GET /v1/customers",
    "GET /v1/customers/cus_writer",
    "PATCH /v1/customers/cus_writer",
    "GET /v1/meters",
    "GET /v1/meters/mtr_writer",
    "GET /v1/subscriptions",
    "GET /v1/subscriptions/sub_writer",
    "GET /v1/currencies",
    "GET /v1/currencies/USD",
    "GET /v1/wallets",
    "GET /v1/wallets/wal_writer",
    "GET /v1/wallets/wal_writer/postings",
    "GET /v1/wallets/wal_writer/holds",
    "GET /v1/wallets/wal_writer/spend-limits",
    f"DELETE /v1/wallets/wal_writer/spend-limits/spl_{'0' * 26}",
    f"GET /v1/holds/{NO_HOLD}",
    *ON_HOLDS,
    TRANSFER,
    f"GET {GRANTS}",
    f"GET {GRANTS}/{NO_GRANT}",
    f"GET {GRANTS}/summary",
    f"GET {GRANTS}/{NO_GRANT}/transactions",
    f"GET /v1/postings/{NO_POSTING}/grants",
    *ON_GRANTS,
    "GET /v1/api-keys",
    "DELETE /v1/api-keys/apk_none",
    f"GET {TRANSACTIONS}",
    f"GET {TRANSACTIONS}/ct_none",
    f"GET {SUMMARY}",
    f"GET {BILLING}",
    f"GET {BILLS}",
]


@pytest.mark.parametrize("route", ROUTES)
async def test_beside_each_route(writer: Served, admin: str, route: str) -> None:
    """An unknown parameter is a 400; another method a 405, a slash or a step more a 404."""
    method, path = route.split(" ")
    known = {one for one in ROUTES if one.split(" ")[1] == path}
    methods = {one.split(" ")[0] for one in known}
    # To change a thing, this is an id.
    known.add(f"PATCH {GRANTS}/summary")
    unknown_path = Failure(404, "UNKNOWN_PATH")

    async with nothing_written(writer):
        for name in ("nonsense", "page_sise", "q.q", "callback"):
            found = await refusal(writer, admin, route, **{name: "1"})
            expected = Failure(400, "UNKNOWN_PARAMETER", name.split(".")[0])
            if name == "q.q" and path == TRANSACTIONS:
                expected = Failure(400, "UNKNOWN_PARAMETER", "q")
            assert found == expected, name
        for other in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if f"{other} {path}" not in known:
                answer = await writer.ask(other, path, key=admin, content=b"{}")
                assert failure(answer) == Failure(405, "UNKNOWN_PATH"), other
                allow = answer.headers["allow"].split(", ")
                assert methods <= set(allow), other
                assert (allow, other in allow) == (sorted(allow), False)
        head = await writer.ask("HEAD", path, key=admin)
        assert (head.status_code, head.content) == (405, b"")
        assert head.headers["content-type"] == "application/json"
        assert methods <= set(head.headers["allow"].split(", "))
        head = await writer.ask("HEAD", path + "/x/y/z", key=admin)
        assert (head.status_code, head.headers["content-type"]) == (404, "application/json")
        for beside in (path + "/", path + "/x/y/z", "/v2" + path, path + "//"):
            assert await refusal(writer, admin, f"{method} {beside}") == unknown_path, beside


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/wallet", "/v1/Wallets", "/v1/postings", "/v1/postings:Batch",
     "/v1/postings:batch/x", "/v1/wallets/wal_1/postings:batch", "/api", "/openapi", "/index.html",
     "/favicon.ico", "/..", "/v1/../etc/passwd", "/credit.v1.WalletService/GetWallet",
     "/grpc.health.v1.Health/Check", "/" + LONG[:10_000]],
)  # fmt: skip
async def test_paths_that_lead_nowhere(writer: Served, admin: str, path: str) -> None:
    """A 404 of the common shape, for any method, with a key and without."""
    for method in ("GET", "POST"):
        for key in (admin, None):
            found = await refusal(writer, key, f"{method} {path}", b"{}")
            assert found == Failure(404, "UNKNOWN_PATH"), method


@pytest.mark.parametrize(
    ("path", "prefix", "param"),
    [
        ("/v1/wallets/{}", "wal", "wallet_id"),
        ("/v1/wallets/{}/postings?idempotency_key=k", "wal", "wallet_id"),
        ("/v1/customers/{}", "cus", "customer_id"),
        ("/v1/meters/{}", "mtr", "meter_id"),
        ("/v1/subscriptions/{}", "sub", "subscription_id"),
        (TRANSACTIONS + "/{}", "ct", "id"),
    ],
)
async def test_ids_in_a_path(
    writer: Served, admin: str, path: str, prefix: str, param: str
) -> None:
    """One of the wrong kind or form is a 400 that names it, one that names nothing a 404."""
    for id_ in ("1", "xyz_1", f"{prefix}_", f"{prefix}_a%20b", f"{prefix}_%C3%A9", f"{prefix}_a%0A",
                f"{prefix}_%2e%2e", f"{prefix}:1", prefix + "_" + "x" * 61,
                prefix + "_" + LONG[:10_000], "%27%20OR%201", "~"):  # fmt: skip
        assert await refusal(writer, admin, "GET " + path.format(id_)) == invalid(param), id_
    for id_ in (f"{prefix}_none", prefix + "_" + "x" * 60, prefix + "_-_"):
        assert await refusal(writer, admin, "GET " + path.format(id_)) == not_found(param), id_
    answer = await writer.ask("GET", path.format(f"{prefix}_%00"), key=admin)
    assert answer.status_code == 400  # refused before it is a request at all
    assert answer.json()["error"]["code"] == "INVALID_FIELD"


async def test_pages_and_words_of_native_lists(writer: Served, admin: str) -> None:
    """page_size 1 to 100, tokens of the list, words and ids of filters."""
    paths = [route for route in ROUTES if route.startswith("GET /v1/") and route.count("/") == 2]
    assert len(paths) == 7
    for route in paths:
        for size in ("0", "101", "-1", "1.5", "x", "", "99999999999"):
            assert await refusal(writer, admin, route, page_size=size) == invalid("page_size")
        for token in ("", "x", "aGVsbG8", "WyJ4Il0", LONG[:10_000], "%", "é"):
            assert await refusal(writer, admin, route, page_token=token) == invalid("page_token")
        for size in ("1", "100"):
            assert len(await send(writer, admin, route, page_size=size)) <= 2
    for query, param in [
        ({"customer_id": "acme"}, "customer_id"),
        ({"customer_id": ""}, "customer_id"),
        ({"currency": "usd"}, "currency"),
        ({"currency": ""}, "currency"),
        ({"status": "Active"}, "status"),
        ({"status": ""}, "status"),
        ({"livemode": "2"}, "livemode"),
    ]:
        assert await refusal(writer, admin, "GET /v1/wallets", **query) == invalid(param), query
    route = "GET /v1/wallets/wal_writer/postings"
    assert await refusal(writer, admin, route) == missing("idempotency_key")
    for key in ("é", "a\n", "x" * 256):
        found = await refusal(writer, admin, route, idempotency_key=key)
        assert found == invalid("idempotency_key")


# --- the names in a body --------------------------------------------------------------------------


def bodies() -> dict[str, tuple[str, Json]]:
    """A route and a sound body for each kind of write, by a name."""
    found = {route: (route, body) for route, (body, _) in WRITES.items()}
    for name, (operation, _) in OPERATIONS.items():
        found[name] = POSTING, {**COMMON, name: operation}
        one = {**COMMON, "wallet_id": "wal_writer", name: operation}
        found[f"batch of {name}"] = "POST /v1/postings:batch", {"postings": [{}, one]}
    return found


def camel(value: object) -> object:
    """The same JSON with all names in camelCase but those of metadata."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub("_(.)", lambda match: match[1].upper(), name): inner
        if name == "metadata"
        else camel(inner)
        for name, inner in value.items()
    }


def with_name(body: object, name: str, place: str = "") -> Iterator[tuple[object, str]]:
    """The body with this name added to each of its objects in turn, and the name's path."""
    if isinstance(body, list):
        for i, one in enumerate(body):
            for changed, path in with_name(one, name, place):
                yield [*body[:i], changed, *body[i + 1 :]], path
    elif isinstance(body, dict):
        yield {**body, name: {"x": [1]}}, place + name
        for key, value in body.items():
            if key != "metadata":
                for changed, path in with_name(value, name, f"{place}{key}."):
                    yield {**body, key: changed}, path


@pytest.mark.parametrize("name", bodies())
async def test_both_spellings_of_fields(writer: Served, admin: str, name: str) -> None:
    """A body whose names are in camelCase says the same."""
    route, body = bodies()[name]
    if route == POSTING:
        body = {**body, "validate_only": True}
    elif "postings" in body:
        body = {"postings": [{**one, "validate_only": True} for one in body["postings"][1:]]}
    expected = await send_any(writer, admin, route, body)

    found = await send_any(writer, admin, route, camel(body))

    if route != "POST /v1/wallets/wal_writer/spend-limits":  # each is another one
        assert found == expected


async def send_any(served: Served, key: str, route: str, body: object) -> Json:
    """What is answered, refused or not, but for what differs from call to call."""
    method, path = route.split(" ")
    answer = await served.ask(method, path, key=key, json=body)
    found: Json = answer.json()
    found.get("error", {}).pop("request_id", None)
    found.pop("secret", None)
    for name in ("id", "mask"):
        found.get("api_key", {}).pop(name, None)
    return {"status": answer.status_code, **found}


@pytest.mark.parametrize("name", bodies())
async def test_names_that_no_field_has(writer: Served, admin: str, name: str) -> None:
    """An unknown name in any object of a body, however written, is a 400 that names its path."""
    route, body = bodies()[name]

    async with nothing_written(writer):
        for wrong in ("expiresAtt", "Amount", "validateonly", "id_", "_", "ids", "amount__"):
            for changed, path in with_name(body, wrong):
                unknown = Failure(400, "UNKNOWN_PARAMETER", path)
                assert await refusal(writer, admin, route, changed) == unknown
            found = await refusal(writer, admin, route, {"": 1, **body})
            assert (found.status, found.param) in ((400, None), (400, "%"))
        text = json.dumps(body)
        for written, path in [
            ('"dry\\u005frun"', "dry_run"),
            ('"\\u0064ry_run"', "dry_run"),
            ('"a\\\\\\""', 'a\\"'),
            ('"a.b"', "a.b"),
            ('"a,b%"', "a,b%"),
            ('"\\n"', "�"),
            ('"é"', "é"),
            (f'"{LONG}"', LONG[:64]),
        ]:
            changed = f"{{{written} : 1, {text[1:]}".encode()
            unknown = Failure(400, "UNKNOWN_PARAMETER", path)
            assert await refusal(writer, admin, route, changed) == unknown, written


async def test_escaped_names_are_the_same_names(writer: Served, admin: str) -> None:
    """A name with JSON escapes is the field that it spells."""
    body = (
        rb'{"idempotenc\u0079_key":"n","gr\u0061nt":{"am\u006Funt":"1"},"validat\u0065Only":true}'
    )
    async with nothing_written(writer):
        answer = await writer.ask("POST", POSTING.split(" ")[1], key=admin, content=body)
    assert (answer.status_code, answer.json()["validate_only"]) == (200, True)


async def test_more_names_than_are_counted(writer: Served, admin: str) -> None:
    """A body with more than 256 distinct paths is refused; names in metadata do not count."""
    async with nothing_written(writer):
        for count, expected in [
            (256, Failure(400, "UNKNOWN_PARAMETER", "n0")),
            (257, invalid(None)),
            (50_000, invalid(None)),
        ]:
            unknown = {f"n{i}": None for i in range(count)}
            assert await refusal(writer, admin, "POST /v1/postings:batch", unknown) == expected
        many: Json = {"idempotency_key": "k", "validate_only": True, "grant": {"amount": "1"}}
        many["metadata"] = {f"expiresAtt {i}": "x" for i in range(50)}
        assert (await send(writer, admin, POSTING, many))["validate_only"]
        postings = [
            {**many, "wallet_id": "wal_writer", "metadata": {f"{i} {j}": "x" for j in range(50)}}
            for i in range(100)
        ]
        answer = await send(writer, admin, "POST /v1/postings:batch", {"postings": postings})
        assert ["posting" in result for result in answer["results"]] == [True] * 100


@pytest.mark.parametrize(
    "body",
    [
        b"{'idempotency_key': 'k', 'grant': {'amount': '1'}}",
        b'{idempotency_key: "k", grant: {amount: "1"}}',
        b'{"idempotency_key": "k", "grant": {"amount": \'1\'}}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}, dry: 1}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}, \'dry\': 1}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}} //',
        b'\xef\xbb\xbf{"idempotency_key": "k", "grant": {"amount": "1"}}',
    ],
)
async def test_what_is_no_json_is_no_body(writer: Served, admin: str, body: bytes) -> None:
    """A body with names in other quotes or none is refused as a whole."""
    async with nothing_written(writer):
        assert await refusal(writer, admin, POSTING, body) == invalid(None)


async def test_the_header_of_names_is_the_proxys(writer: Served, admin: str) -> None:
    """A client cannot set the header in which the proxy passes names on."""
    path = POSTING.split(" ")[1]
    sound = {"idempotency_key": "k", "validate_only": True, "grant": {"amount": "1"}}
    for body, status in ((sound, 200), ({**sound, "dry_run": True}, 400)):
        for said in ("", "idempotency_key", "nonsense", "!"):
            headers = {"x-creditledger-names": said}
            answer = await writer.ask("POST", path, key=admin, json=body, headers=headers)
            assert answer.status_code == status


async def test_numbers_in_metadata_are_texts(writer: Served, admin: str) -> None:
    """Numbers in metadata stay as they were written; other kinds of values are refused."""
    body = (
        b'{"idempotency_key": "k", "validate_only": true, "grant": {"amount": "1"},'
        b'"metadata": {"a":1, "b" : -1.50e+3 ,"c": "2", "1": 0.10,"d":12345678901234567890}}'
    )
    answer = await writer.ask("POST", POSTING.split(" ")[1], key=admin, content=body)

    (row,) = answer.json()["transactions"]
    assert row["metadata"] == {
        "a": "1", "b": "-1.50e+3", "c": "2", "1": "0.10", "d": "12345678901234567890",
    }  # fmt: skip


def lists() -> dict[str, list[str]]:
    """The paths of all RPCs that answer pages, each with its parameters; ids as they may be."""
    ids = {
        "wallet_id": "wal_writer", "posting_id": NO_POSTING, "CreditGrantService": NO_GRANT,
        "WebhookService": "whe_" + "0" * 26,
    }  # fmt: skip
    found = {}
    for service in map(descriptor_pool.Default().FindServiceByName, SERVICES):
        for method in service.methods:
            fields = [field.name for field in method.input_type.fields]
            path = method.GetOptions().Extensions[annotations_pb2.http].get
            if path and "page_size" in fields:
                for name in re.findall(r"{(\w+)}", path):
                    path = path.replace(f"{{{name}}}", ids.get(name) or ids[service.name])
                found[path] = fields
    return found


@pytest.mark.parametrize("path", lists())
async def test_both_spellings_of_parameters(writer: Served, admin: str, path: str) -> None:
    """Each parameter of each list is read in snake_case and in camelCase; not both at once."""
    given = "cycleType=Day&startTime=1790000000&endTime=1790000001&" if path == BILLS else ""

    for name in ("page_size", "pageSize"):
        found = await refusal(writer, admin, f"GET {path}?{given}{name}=-1")
        assert (found.status, found.code) == (400, "INVALID_FIELD")
        assert found.param in ("page_size", "pageSize")
    both = await refusal(writer, admin, f"GET {path}?{given}page_size=1&pageSize=1")
    assert (both.status, both.code) == (400, "INVALID_FIELD")
    for name in lists()[path]:
        camel = re.sub("_(.)", lambda match: match[1].upper(), name)
        for spelled in (name, camel):
            answer = await writer.ask("GET", path, key=admin, query=f"{spelled}=x")
            assert "UNKNOWN_PARAMETER" not in answer.text, spelled


@pytest.mark.parametrize("route", [*WRITES, POSTING, "POST /v1/postings:batch"])
async def test_bodies_that_are_none(writer: Served, admin: str, route: str) -> None:
    """No JSON, no object, broken text: a 400. Without a body what is required is missing."""
    broken: list[bytes] = [
        b"{", b"[]", b"null", b'"x"', b"1", b"{]", b"{} {}", b'{"name":}', b"name=x", b"\x00",
        b"\xff\xfe", b'{"name":"\xff"}', b'{"name":"\\ud800"}', b"<xml/>",
        b'{"a":' * 500 + b"1" + b"}" * 500,
    ]  # fmt: skip

    async with nothing_written(writer):
        for body in broken:
            assert await refusal(writer, admin, route, body) == invalid(None), body
        if route.startswith("POST"):
            for body in (b"", b"{}"):
                found = await refusal(writer, admin, route, body)
                assert (found.status, found.param is None) == (400, False), body[:40]


@pytest.mark.parametrize(
    ("route", "too_large"),
    [
        (POSTING, BODY_BYTES_MAX + 1),
        ("POST /v1/postings:batch", 2 * BODY_BYTES_MAX),
        ("POST /v1/customers", BODY_BYTES_MAX + 1),
    ],
)
async def test_a_body_that_is_too_large(
    writer: Served, admin: str, route: str, too_large: int
) -> None:
    """Over 4 MiB: 413 request_too_large; just under it, the body is read."""
    method, path = route.split(" ")
    shell = b'{"note": "%s"}'

    def sent(size: int) -> Failure:
        # Not by asyncio, whose transports drop what they have read when a write fails: the answer
        # comes before the request is over.
        content = shell % (b"x" * (size - len(shell % b"")))
        headers = {"authorization": f"Bearer {admin}"}
        with httpx.Client(base_url=writer.url, trust_env=False, timeout=20) as client:
            return failure(client.request(method, path, content=content, headers=headers))

    async with nothing_written(writer):
        assert await asyncio.to_thread(sent, too_large) == Failure(413, "BODY_TOO_LARGE")
        # Ids of the path are part of what the server reads.
        assert (await asyncio.to_thread(sent, BODY_BYTES_MAX - 100)).status == 400


async def test_fields_given_twice(writer: Served, admin: str) -> None:
    """A key of the JSON that comes twice is a 400: neither of its values counts."""
    async with nothing_written(writer):
        for body, param in [
            (b'{"idempotency_key":"a","idempotency_key":"a","grant":{"amount":"1"}}',
             "idempotency_key"),
            (b'{"idempotency_key":"a","grant":{"amount":"1","amount":"2"}}', "grant.amount"),
            (b'{"idempotency_key":"a","grant":{"amount":"1"},"grant":{"amount":"1"}}', "grant"),
        ]:  # fmt: skip
            assert await refusal(writer, admin, POSTING, body) == invalid(param), body
        other = {"wallet_id": "wal_other", "idempotency_key": "a", "grant": {"amount": "1"}}
        assert await refusal(writer, admin, POSTING, other) == invalid("wallet_id")


@pytest.mark.parametrize("route", ROUTES)
async def test_grpc_web_is_no_grpc(writer: Served, route: str) -> None:
    """Content types that only begin like gRPC's are REST: errors have the common body."""
    method, path = route.split(" ")
    for kind in ("application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text",
                 "application/grpcx"):  # fmt: skip
        headers = {"content-type": kind, "x-grpc-web": "1"}
        answer = await writer.ask(method, path, key="sk-short", content=b"{}", headers=headers)
        assert failure(answer).status in (400, 401)
        rpc = "/credit.v1.WalletService/GetWallet"
        answer = await writer.ask("POST", rpc, key=None, content=b"\0" * 5, headers=headers)
        assert failure(answer) == Failure(404, "UNKNOWN_PATH")


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_key(writer: Served, route: str) -> None:
    """401 for each route, once the request is in order; a malformed key is no better than none."""
    body = WRITES[route][0] if route in WRITES else None
    query = {}
    if route == POSTING:
        body = {"idempotency_key": "k", "grant": {"amount": "1"}}
    elif route in ON_HOLDS | ON_GRANTS:
        body = (ON_HOLDS | ON_GRANTS)[route]
    elif route == TRANSFER:
        body = A_TRANSFER
    elif route.endswith(":batch"):
        body = {"postings": [{}]}
    elif route.endswith("/postings"):
        query = {"idempotency_key": "k"}
    elif BILLS in route:
        query = {"cycleType": "Day", "startTime": "1790000000", "endTime": "1790000001"}

    async with nothing_written(writer):
        found = await refusal(writer, None, route, body, **query)
        assert found == Failure(401, "KEY_MISSING")
        for key in ("sk-short", "sk-" + "0" * 43, "x" * 200):
            found = await refusal(writer, key, route, body, **query)
            assert found == Failure(401, "KEY_INVALID")
