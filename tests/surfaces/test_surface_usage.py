"""GET /api/v1/me/usage, /api/v1/me/account and /api/v1/balance, beside the list of transactions.

Whole bodies, every parameter with its default, its limits and what lies just outside of them, and
the same figures as the lists and bills have. Random ledgers are in test_bills_add_up.py.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from creditledger.domain import clock as time
from tests.support.rest import (
    ACCOUNT,
    BALANCE,
    BILLING,
    BILLS,
    USAGE,
    Failure,
    Json,
    Served,
    differences,
    failure,
)
from tests.support.setup import START

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = START  # 2026-09-21T14:13:20Z
TODAY = "2026-09-21"
NOTHING = {"total_usd": 0.0, "input_tokens": 0.0, "output_tokens": 0.0, "call_count": 0.0}
PATHS = (USAGE, ACCOUNT, BALANCE)


@pytest.fixture
def served(shared: Served) -> Served:
    """The service, its clock at NOW."""
    shared.clock.now = NOW
    return shared


async def account(served: Served, **wallet: Any) -> tuple[str, str, str]:
    """A new customer, its USD wallet with 1,000 paid in, and its key."""
    customer = await served.customer()
    wallet_id = await served.wallet(customer, **wallet)
    await served.post(wallet_id, {"grant": {"amount": "1000"}})
    livemode = wallet.get("livemode", True)
    return customer, wallet_id, await served.key("customer", customer, livemode=livemode)


def used(amount: str, ago: int = 0, **usage: Any) -> Json:
    """A consumption that long ago, milliseconds."""
    consumption = {"amount": amount, "usage": {"quantities": [10, 5], **usage}}
    at = {"effective_at": time.text(NOW - ago)} if ago else {}
    return {"consumption": consumption, **at}


def figures(usd: float, tokens_in: int, tokens_out: int, calls: int) -> Json:
    """What each bucket and each sum has, as JSON numbers."""
    numbers = (usd, tokens_in, tokens_out, calls)
    return {name: float(number) for name, number in zip(NOTHING, numbers, strict=True)}


async def buckets(served: Served, key: str, **query: Any) -> list[tuple[Any, ...]]:
    """The buckets of a query that succeeds, without tokens."""
    body = await served.body(USAGE, key, **query)
    names = ("bucket", "model", "api_key", "total_usd", "call_count")
    return [tuple(one[name] for name in names if name in one) for one in body["buckets"]]


# --- usage: whole bodies --------------------------------------------------------------------------


async def test_usage_by_day_and_model(served: Served) -> None:
    """The document's two examples: newest first, then by model, and the sum of all."""
    _, wallet, key = await account(served)
    await served.post(
        wallet,
        used("2.10", product_id="sonnet", category="llm", quantities=[88_000, 11_200, 7, 8]),
        used("0.5", product_id="haiku", category="llm"),
        used("1.25", time.DAY, product_id="sonnet"),
        used("0.75", time.DAY, product_id="sonnet"),
    )
    day_before = "2026-09-20"

    by_day = await served.body(USAGE, key, group_by="day")
    by_default = await served.body(USAGE, key)
    by_both = await served.body(USAGE, key, group_by="day,model")

    totals = figures(4.6, 88_030, 11_215, 4)
    first = {"bucket": TODAY, **figures(2.6, 88_010, 11_205, 2)}
    second = {"bucket": day_before, **figures(2.0, 20, 10, 2)}
    assert differences(by_day, {"buckets": [first, second], "totals": totals}) == []
    assert by_default == by_day
    expected = [
        {"bucket": TODAY, "model": "haiku", **figures(0.5, 10, 5, 1)},
        {"bucket": TODAY, "model": "sonnet", **figures(2.1, 88_000, 11_200, 1)},
        {"bucket": day_before, "model": "sonnet", **figures(2.0, 20, 10, 2)},
    ]
    assert differences(by_both, {"buckets": expected, "totals": totals}) == []


@pytest.mark.parametrize("wallet", [None, {"currency": "CNY"}, {"livemode": False}, {}])
async def test_without_usage_there_are_no_buckets(served: Served, wallet: Json | None) -> None:
    """No wallet, one of another currency or mode, one without usage: nothing, and sums of 0."""
    customer = await served.customer()
    key = await served.key("customer", customer)
    if wallet is not None:
        wallet_id = await served.wallet(customer, **wallet)
        await served.post(wallet_id, {"grant": {"amount": "9"}}, {"adjustment": {"amount": "-1"}})
        if wallet:
            await served.post(wallet_id, used("1"))

    body = await served.body(USAGE, key)

    assert differences(body, {"buckets": [], "totals": NOTHING}) == []


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("day", [(TODAY, 7.0, 3), ("2026-09-20", 8.0, 1)]),
        ("hour", [("2026-09-21T14:00:00Z", 3.0, 2), ("2026-09-21T13:00:00Z", 4.0, 1),
                  ("2026-09-20T14:00:00Z", 8.0, 1)]),
        ("day,hour", [("2026-09-21T14:00:00Z", 3.0, 2), ("2026-09-21T13:00:00Z", 4.0, 1),
                      ("2026-09-20T14:00:00Z", 8.0, 1)]),
        ("model", [("2026-08-22T14:13:20Z", "", 4.0, 1), ("2026-08-22T14:13:20Z", "a", 9.0, 2),
                   ("2026-08-22T14:13:20Z", "b", 2.0, 1)]),
        ("api_key", [("2026-08-22T14:13:20Z", "", 4.0, 1),
                     ("2026-08-22T14:13:20Z", "k1", 3.0, 2),
                     ("2026-08-22T14:13:20Z", "k2", 8.0, 1)]),
        ("model,day", [(TODAY, "", 4.0, 1), (TODAY, "a", 1.0, 1), (TODAY, "b", 2.0, 1),
                       ("2026-09-20", "a", 8.0, 1)]),
        ("api_key,model", [("2026-08-22T14:13:20Z", "", "", 4.0, 1),
                           ("2026-08-22T14:13:20Z", "a", "k1", 1.0, 1),
                           ("2026-08-22T14:13:20Z", "a", "k2", 8.0, 1),
                           ("2026-08-22T14:13:20Z", "b", "k1", 2.0, 1)]),
    ],
)  # fmt: skip
async def test_groups(served: Served, group_by: str, expected: list[tuple[Any, ...]]) -> None:
    """By any of the four or several; without a period the bucket is where the window begins."""
    _, wallet, key = await account(served)
    await served.post(
        wallet,
        used("1", product_id="a", api_key_id="k1"),
        used("2", product_id="b", api_key_id="k1"),
        {"consumption": {"amount": "4"}, "effective_at": time.text(NOW - time.HOUR)},
        used("8", time.DAY, product_id="a", api_key_id="k2"),
    )

    assert await buckets(served, key, group_by=group_by) == expected


async def test_a_call_counts_once_and_a_refund_takes_off_its_amount(served: Served) -> None:
    """Two grants pay one call. A refund is taken off where it happens, and is no call."""
    _, wallet, key = await account(served)
    await served.post(wallet, {"grant": {"amount": "1", "priority": 1}})
    (spent,) = await served.post(wallet, used("3", 2 * time.DAY, product_id="p"))
    assert len(spent["transactions"]) == 2
    refund = {"posting_id": spent["posting_id"], "amount": "0.5"}
    await served.post(wallet, {"refund": refund, "effective_at": time.text(NOW - time.DAY)})

    body = await served.body(USAGE, key, group_by="day,model")

    expected = [
        {"bucket": "2026-09-20", "model": "p", **figures(-0.5, 0, 0, 0)},
        {"bucket": "2026-09-19", "model": "p", **figures(3.0, 10, 5, 1)},
    ]
    assert differences(body, {"buckets": expected, "totals": figures(2.5, 10, 5, 1)}) == []


async def test_tokens_are_what_language_models_count(served: Served) -> None:
    """Quantities of other categories are no tokens; those without a category are."""
    _, wallet, key = await account(served)
    await served.post(
        wallet,
        used("1", category="llm"),
        used("1"),
        used("1", category="gen_api", quantities=[4]),
        {"consumption": {"amount": "1"}},
    )

    assert (await served.body(USAGE, key))["totals"] == figures(4, 20, 10, 4)


# --- usage: window and filters --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "calls"),
    [
        (None, None, 4),
        ("2026-09-20", None, 3),
        ("2026-09-21", None, 2),
        ("2026-09-21T00:00:00Z", None, 2),
        (time.text(NOW - 1), None, 2),
        (time.text(NOW), None, 1),
        (None, time.text(NOW), 3),
        (None, time.text(NOW - 1), 2),
        (None, "2026-09-21", 2),
        (None, "2026-09-20", 1),
        ("2026-09-20", "2026-09-21", 1),
        ("2026-09-19T02:00:00 02:00", "2026-09-20T02:00:00+02:00", 1),
        ("2026-09-20", "2026-09-20", 0),
        ("2026-08-01", "2026-10-30", 5),
        ("2026-09-21", "2026-12-01", 2),
    ],
)
async def test_since_is_in_and_until_is_not(
    served: Served, since: str | None, until: str | None, calls: int
) -> None:
    """To the millisecond of when it happened; dates begin at midnight UTC; 30 days to now."""
    _, wallet, key = await account(served)
    await served.post(
        wallet,
        used("1"),
        used("1", 1),
        used("1", time.DAY),
        used("1", 2 * time.DAY),
        used("1", 30 * time.DAY + 1),
    )
    window = {"since": since, "until": until}
    query = {name: value for name, value in window.items() if value is not None}

    assert (await served.body(USAGE, key, **query))["totals"]["call_count"] == calls
    assert (await served.body(BALANCE, key, **query))["totals"]["call_count"] == calls


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"since": "yesterday"}, "INVALID_FIELD", "since"),
        ({"since": ""}, "INVALID_FIELD", "since"),
        ({"since": "2026-02-30"}, "INVALID_FIELD", "since"),
        ({"since": "2026-09-20T00:00:00"}, "INVALID_FIELD", "since"),
        ({"until": "2026-09"}, "INVALID_FIELD", "until"),
        ({"since": "2026-09-20", "until": "2026-09-19"}, "INVALID_FIELD", "since"),
        ({"until": "2026-08-01"}, "INVALID_FIELD", "since"),
        ({"since": "2026-09-22"}, "INVALID_FIELD", "since"),
        ({"since": "2026-01-01", "until": "2026-04-02"}, "INVALID_FIELD", "since"),
        ({"since": "2026-06-23T14:13:19Z"}, "INVALID_FIELD", "since"),
        ({"livemode": "2"}, "INVALID_FIELD", "livemode"),
        ({"limit": "20"}, "UNKNOWN_PARAMETER", "limit"),
    ],
)
async def test_windows_that_cannot_be(served: Served, query: Json, code: str, param: str) -> None:
    """No time, one that does not exist, the wrong way round, or over 90 days: 400."""
    _, _, key = await account(served)

    for path in (USAGE, BALANCE):
        assert await served.refusal(path, key, **query) == Failure(400, code, param)


async def test_ninety_days_are_not_too_many(served: Served) -> None:
    """Of any time, and up to now."""
    _, _, key = await account(served)
    for query in (
        {"since": "2026-01-01", "until": "2026-04-01"},
        {"since": "2026-06-23T14:13:20Z"},
    ):
        for path in (USAGE, BALANCE):
            await served.body(path, key, **query)


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"group_by": ""}, "INVALID_FIELD", "group_by"),
        ({"group_by": "week"}, "INVALID_FIELD", "group_by"),
        ({"group_by": "Day"}, "INVALID_FIELD", "group_by"),
        ({"group_by": "day,"}, "INVALID_FIELD", "group_by"),
        ({"group_by": "day, model"}, "INVALID_FIELD", "group_by"),
        ({"group_by": "model,model"}, "INVALID_FIELD", "group_by"),
        ({"model": ""}, "INVALID_FIELD", "model"),
        ({"api_key": "a\x00b"}, "INVALID_FIELD", "api_key"),
        ({"groupby": "day"}, "UNKNOWN_PARAMETER", "groupby"),
    ],
)
async def test_usage_that_cannot_be_asked_for(
    served: Served, query: Json, code: str, param: str
) -> None:
    """A word that is none, one twice, an empty filter: 400."""
    _, _, key = await account(served)

    assert await served.refusal(USAGE, key, **query) == Failure(400, code, param)


async def test_filters(served: Served) -> None:
    """By product id, and by API key, its id or masked form; what names nothing gives nothing."""
    customer, wallet, key = await account(served)
    admin = await served.key("admin")
    (named,) = (await served.body("/v1/api-keys", admin, customer_id=customer))["api_keys"]
    await served.post(
        wallet,
        used("1", product_id="a", api_key_id=named["id"]),
        used("2", product_id="b", api_key_id=named["id"]),
        used("4", product_id="a", api_key_id="gateway"),
        used("8"),
    )

    async def spent(**query: str) -> float:
        total: float = (await served.body(USAGE, key, **query))["totals"]["total_usd"]
        return total

    assert await spent() == 15
    assert await spent(model="a") == 5
    assert await spent(model="A") == 0
    assert await spent(api_key=named["id"]) == 3
    assert await spent(api_key=named["mask"]) == 3
    assert await spent(api_key="gateway") == 4
    assert await spent(api_key="sk-****none") == 0
    assert await spent(api_key=named["mask"], model="b", group_by="model") == 2


# --- account --------------------------------------------------------------------------------------


async def test_an_account(served: Served) -> None:
    """The whole body: who it is, what the wallet has and has had, and what the ledger knows not."""
    customer = await served.customer(name="Ada", email="ada@example.com")
    wallet = await served.wallet(customer, metadata={"low_balance_threshold_usd": "5.5"})
    key = await served.key("customer", customer)
    await served.post(
        wallet,
        {"grant": {"amount": "200"}},
        {"grant": {"amount": "50.5", "source": {"provider": "stripe"}}},
        {"grant": {"amount": "7", "kind": "subscription_renew"}},
        {"adjustment": {"amount": "3"}},
        {"grant": {"amount": "4", "effective_at": time.text(NOW + time.DAY)}},
    )
    (spent, _) = await served.post(wallet, used("100.25"), {"adjustment": {"amount": "-2"}})
    await served.post(wallet, {"refund": {"posting_id": spent["posting_id"], "amount": "0.25"}})

    body = await served.body(ACCOUNT, key)

    expected = {
        "user": {
            "id": customer,
            "username": "Ada",
            "email": "ada@example.com",
            "created_at": "2026-09-21T14:13:20Z",
            "tier": "individual",
        },
        "balance": {
            "available_usd": 158.5,
            "lifetime_topup_usd": 254.5,
            "lifetime_spent_usd": 100.0,
            "low_balance_threshold_usd": 5.5,
            "low_balance_flagged": False,
        },
        "allowed_models": [],
        "org": None,
    }
    assert differences(body, expected) == []
    history = await served.body(BILLING, key, kind="topup")
    assert sum(item["amount_usd"] for item in history["items"]) == 254.5


async def test_an_account_without_a_wallet(served: Served) -> None:
    """Figures of 0, and so a balance that is low."""
    customer = await served.customer()
    body = await served.body(ACCOUNT, await served.key("customer", customer))

    expected = {
        "available_usd": 0.0,
        "lifetime_topup_usd": 0.0,
        "lifetime_spent_usd": 0.0,
        "low_balance_threshold_usd": 0.0,
        "low_balance_flagged": True,
    }
    assert differences(body["balance"], expected) == []
    assert body["user"]["id"] == customer


@pytest.mark.parametrize(
    ("said", "threshold", "flagged"),
    [
        (None, 0.0, False),
        ("9.99", 9.99, False),
        ("10", 10.0, True),
        ("10.000000001", 10.000000001, True),
        ("-5", 0.0, False),
        ("much", 0.0, False),
        ("10.0000000001", 0.0, False),
    ],
)
async def test_a_low_balance(
    served: Served, said: str | None, threshold: float, flagged: bool
) -> None:
    """The wallet's metadata says from where on; what is no amount there counts as 0."""
    customer = await served.customer()
    metadata = {} if said is None else {"low_balance_threshold_usd": said}
    wallet = await served.wallet(customer, metadata=metadata)
    await served.post(wallet, {"grant": {"amount": "10"}})

    body = await served.body(ACCOUNT, await served.key("customer", customer))

    shown = body["balance"]
    assert (shown["low_balance_threshold_usd"], shown["low_balance_flagged"]) == (
        threshold,
        flagged,
    )


async def test_what_has_expired_is_not_available(served: Served) -> None:
    """Whether its expiration is written or not; what was paid in stays paid in."""
    _, wallet, key = await account(served)
    await served.post(wallet, {"grant": {"amount": "5", "expires_at": time.text(NOW + 1_000)}})
    served.clock.advance(999)
    assert (await served.body(ACCOUNT, key))["balance"]["available_usd"] == 1_005

    served.clock.advance(1)

    balance = (await served.body(ACCOUNT, key))["balance"]
    assert (balance["available_usd"], balance["lifetime_topup_usd"]) == (1_000, 1_005)
    assert (await served.body(BALANCE, key))["balance"]["balance_usd"] == 1_000


# --- balance --------------------------------------------------------------------------------------


async def test_a_balance_by_key(served: Served) -> None:
    """The whole body: the wallet, all keys of the customer and mode, other labels, and the sum."""
    customer, wallet, key = await account(served)
    idle = await served.key("customer", customer, name="Idle")
    await served.key("customer", customer, name="Test", livemode=False)
    await served.key("customer", await served.customer(), name="Stranger")
    admin = await served.key("admin")
    listed = (await served.body("/v1/api-keys", admin, customer_id=customer))["api_keys"]
    by_mask = {one["mask"]: one["id"] for one in listed}
    own, other = by_mask[f"sk-****{key[-4:]}"], by_mask[f"sk-****{idle[-4:]}"]
    await served.post(
        wallet,
        {"grant": {"amount": "6", "effective_at": time.text(NOW + time.DAY)}},
        used("1.5", api_key_id=own, category="llm"),
        used("0.25", api_key_id="gateway", category="gen_api"),
        used("0.25"),
        used("99", 31 * time.DAY, api_key_id="before"),
    )
    await served.ask("DELETE", f"/v1/api-keys/{other}", key=admin)

    body = await served.body(BALANCE, key)

    def used_by(id_: str, name: str, mask: str, *numbers: Any) -> Json:
        return {"id": id_, "name": name, "mask": mask, **figures(*numbers)}

    keys = [
        used_by("", "", "", 0.25, 10, 5, 1),
        used_by(own, "a customer", f"sk-****{key[-4:]}", 1.5, 10, 5, 1),
        used_by(other, "Idle", f"sk-****{idle[-4:]}", 0, 0, 0, 0),
        used_by("gateway", "", "", 0.25, 0, 0, 1),
    ]
    expected = {
        "balance": {
            "balance_usd": 905.0,
            "held_usd": 0.0,
            "pending_usd": 6.0,
            "available_usd": 899.0,
        },
        "keys": sorted(keys, key=lambda one: one["id"]),
        "totals": figures(2.0, 20, 10, 3),
    }
    assert differences(body, expected) == []


async def test_a_balance_without_a_wallet(served: Served) -> None:
    """The customer's keys, and figures of 0."""
    key = await served.key("customer", await served.customer())

    body = await served.body(BALANCE, key)

    assert set(body["balance"].values()) == {0}
    (one,) = body["keys"]
    assert (one["name"], one["mask"]) == ("a customer", f"sk-****{key[-4:]}")
    assert differences(body["totals"], NOTHING) == []


async def test_the_same_figures_as_bills_and_lists(served: Served) -> None:
    """A day of usage and refunds: by key and product as billed, in all as listed."""
    _, wallet, key = await account(served)
    labels: list[Json] = [
        {"api_key_id": "k1", "product_id": "a"},
        {"api_key_id": "k1", "product_id": "b"},
        {"api_key_id": "k2", "product_id": "a"},
        {},
    ]
    spent = await served.post(
        wallet,
        *[
            used(f"0.{n}23456789", **label, quantities=[n, n * 7])
            for n, label in enumerate(labels * 2, 1)
        ],
    )
    await served.post(wallet, {"refund": {"posting_id": spent[0]["posting_id"]}})

    day = NOW // time.DAY * 86_400
    window: dict[str, str | int] = {"cycleType": "Day", "startTime": day, "endTime": day + 86_399}
    bills = (await served.body(BILLS, key, **window))["bills"]
    query = {"since": TODAY, "until": "2026-09-22", "group_by": "api_key,model"}
    usage = await served.body(USAGE, key, **query)
    balance = await served.body(BALANCE, key, since=TODAY)
    history = await served.body(BILLING, key, kind="usage")
    lifetime = (await served.body(ACCOUNT, key))["balance"]["lifetime_spent_usd"]

    def billed(one: Json) -> tuple[Any, ...]:
        names = ("ownerID", "productId", "billNum0", "billNum1")
        owner, product, *tokens = (one[name] for name in names)
        return (owner, product, float(one["amountDecimal"]), *map(float, tokens))

    def told(one: Json) -> tuple[Any, ...]:
        names = ("api_key", "model", "total_usd", "input_tokens", "output_tokens")
        return tuple(one[name] for name in names)

    assert sorted(map(billed, bills)) == sorted(map(told, usage["buckets"]))
    exact = sum(Decimal(one["amountDecimal"]) for one in bills)
    assert usage["totals"]["total_usd"] == balance["totals"]["total_usd"] == lifetime
    assert lifetime == float(exact)
    assert usage["totals"]["call_count"] == history["total"] == 8


# --- whose ----------------------------------------------------------------------------------------


async def test_each_key_sees_its_own_customer_and_mode(served: Served) -> None:
    """Live and test key of one customer, and another customer's, see their own wallet each."""
    customer, other = await served.customer(), await served.customer()
    for owner, livemode, amount in [
        (customer, True, 1),
        (customer, False, 2),
        (other, True, 3),
    ]:
        wallet = await served.wallet(owner, livemode=livemode)
        await served.post(wallet, {"grant": {"amount": "10"}}, used(str(amount)))
        key = await served.key("customer", owner, livemode=livemode)
        mode = str(livemode).lower()

        usage = await served.body(USAGE, key, livemode=mode)
        balance = await served.body(BALANCE, key, livemode=mode)
        shown = await served.body(ACCOUNT, key, livemode=mode)

        assert usage["totals"]["total_usd"] == balance["totals"]["total_usd"] == amount
        assert shown["balance"]["lifetime_spent_usd"] == amount
        assert shown["balance"]["available_usd"] == 10 - amount
        assert shown["user"]["id"] == owner
        for path in PATHS:
            refusal = await served.refusal(path, key, livemode=str(not livemode).lower())
            assert refusal == Failure(403, "MODE_MISMATCH", "livemode")


async def test_credentials(served: Served) -> None:
    """Customers' keys only, in either header."""
    _, _, key = await account(served)
    for path in PATHS:
        assert await served.refusal(path, None) == Failure(401, "KEY_MISSING")
        assert await served.refusal(path, "sk-" + "0" * 43) == Failure(401, "KEY_INVALID")
        for scope in ("admin", "service"):
            refusal = await served.refusal(path, await served.key(scope))
            assert refusal == Failure(403, "CUSTOMER_KEY_REQUIRED")
        answer = await served.ask("GET", path, key=None, headers={"x-api-key": key})
        assert answer.status_code == 200
        answer = await served.ask("POST", path, key=key, json={})
        assert failure(answer) == Failure(405, "UNKNOWN_PATH")
        assert await served.refusal(path, key, page="1") == Failure(
            400, "UNKNOWN_PARAMETER", "page"
        )


async def test_more_buckets_than_an_answer_may_have(served: Served) -> None:
    """10,000 are answered; one more is RESULT_TOO_LARGE."""
    _, wallet, key = await account(served)
    await served.post(wallet, *[used("0.0001", product_id=f"{n:05}") for n in range(10_000)])
    body = await served.body(USAGE, key, group_by="model")
    assert len(body["buckets"]) == 10_000

    await served.post(wallet, used("0.0001", product_id="more"))

    refusal = await served.refusal(USAGE, key, group_by="model")
    assert refusal == Failure(400, "RESULT_TOO_LARGE", "group_by")
    assert (await served.body(USAGE, key))["totals"]["call_count"] == 10_001
