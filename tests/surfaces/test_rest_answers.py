"""The native routes over REST, when all is well: whole bodies of every route."""

from __future__ import annotations

from typing import Any

import pytest

from creditledger.domain import clock as time
from tests.support.native_routes import (
    BATCH_MAX,
    METADATA,
    NOW,
    TRANSFER,
    invalid,
    not_found,
    nothing_written,
    postings_of,
    refusal,
    send,
)
from tests.support.rest import Failure, Json, Served, differences, failure, metadata
from tests.support.setup import START

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    no_session = {"session": False}
    assert differences(made, {"api_key": key | no_session, "secret": secret}) == []
    assert await send(served, secret, "GET /v1/currencies/USD")
    query = {"customer_id": customer}
    listed = await send(served, admin, "GET /v1/api-keys", **query)
    assert differences(listed, {"api_keys": [key | no_session]}) == []
    served.clock.advance(5)
    revoked = {**key, "revoked_at": time.text(START + 5), **no_session}
    for _ in range(2):
        answer = await send(served, admin, f"DELETE /v1/api-keys/{key['id']}")
        assert differences(answer, revoked) == []
        served.clock.advance(1)
    assert await refusal(served, secret, "GET /v1/currencies/USD") == Failure(401, "KEY_INVALID")
    plain = await send(
        served, admin, "POST /v1/api-keys", {"name": "Ops", "scope": "admin", "livemode": True}
    )
    assert list(plain["api_key"]) == [
        *("id", "name", "scope", "livemode", "mask", "created_at", "session")
    ]


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
