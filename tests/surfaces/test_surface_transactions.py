"""GET /api/v1/me/billing/transactions: the wallet's movements as the published document has them.

Every parameter with its default, its limits and what lies just outside of them, every kind with its
source, whole bodies, whole errors, and the document's own loop that writes a CSV.
"""

from __future__ import annotations

import csv
import io
import random
from typing import Any

import pytest
import pytest_asyncio

from creditledger.domain import clock as time
from tests.support.rest import BILLING, Failure, Json, Served, differences, failure
from tests.support.setup import START

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = time.SECOND
STRIPE = {"provider": "stripe", "receipt_id": "ch_3PYj", "method": "card_visa_4242"}


async def account(served: Served, **wallet: Any) -> tuple[str, str]:
    """A new customer's USD wallet and customer key."""
    customer = await served.customer()
    wallet_id = await served.wallet(customer, **wallet)
    livemode = wallet.get("livemode", True)
    return wallet_id, await served.key("customer", customer, livemode=livemode)


def topup(amount: str = "1.00", **source: str) -> Json:
    """A posting that gives credit."""
    return {"grant": {"amount": amount, **({"source": source} if source else {})}}


def usage(amount: str = "0.01") -> Json:
    """A posting that spends credit."""
    return {"consumption": {"amount": amount}}


def at(milliseconds: int) -> str:
    """How the list prints a moment: whole seconds, the fraction cut off."""
    return time.text(milliseconds).partition(".")[0] + "Z"


def item(
    id_: int,
    created_at: int,
    kind: str,
    amount: float,
    balance: float,
    source: Json,
    note: str | None = None,
) -> Json:
    """An item of the list, its keys in the document's order."""
    return {
        "id": id_,
        "created_at": at(created_at),
        "kind": kind,
        "amount_usd": amount,
        "balance_after_usd": balance,
        "source": source,
        "note": note,
    }


def page_of(
    items: list[Json], *, total: int | None = None, page: int = 1, page_size: int = 50
) -> Json:
    """The whole body."""
    total = len(items) if total is None else total
    return {"items": items, "total": total, "page": page, "page_size": page_size}


# --- every kind -----------------------------------------------------------------------------------


async def history(served: Served) -> tuple[str, list[Json]]:
    """A key, and all rows of a wallet that has seen every kind, newest first."""
    wallet, key = await account(served)
    clock = served.clock
    note = "Goodwill — failed call burst, ticket #312"

    await served.post(wallet, topup("50.00", **STRIPE))
    clock.advance(999)  # the same second, printed
    renewal = {"amount": "31.4", "kind": "subscription_renew", "source": {"provider": "stripe"}}
    await served.post(wallet, {"grant": {**renewal, "expires_at": at(START + time.HOUR)}})
    clock.advance(1)
    ops = {"actor": "ops@example.com"}
    await served.post(wallet, {"adjustment": {"amount": "5.00", "source": ops}, "note": note})
    await served.post(wallet, {"grant": {"amount": "0.000000001", "kind": "admin_credit"}})
    (spent,) = await served.post(wallet, usage("0.000000001"))
    clock.advance(59 * time.MINUTE)
    (spent,) = await served.post(wallet, usage("1.25"))
    debit = {"adjustment": {"amount": "-0.40"}, "note": "Chargeback fee"}
    await served.post(wallet, debit)
    posting_id = spent["posting_id"]
    await served.post(wallet, {"refund": {"posting_id": posting_id, "amount": "0.25"}})
    clock.advance(time.HOUR)
    await served.post(wallet, topup("0.01"))  # writes down that the renewal has expired

    late = START + 1_000 + 59 * time.MINUTE
    rows = [
        item(1, START, "topup", 50.0, 50.0, STRIPE),
        item(2, START + 999, "subscription_renew", 31.4, 81.4, {"provider": "stripe"}),
        item(3, START + 1_000, "admin_credit", 5.0, 86.4, ops, note),
        item(4, START + 1_000, "admin_credit", 1e-9, 86.400000001, {"actor": "command line"}),
        item(5, START + 1_000, "usage", -1e-9, 86.4, {}),
        item(6, late, "usage", -1.25, 85.15, {}),
        item(7, late, "admin_debit", -0.4, 84.75, {"actor": "command line"}, "Chargeback fee"),
        item(8, late, "refund", 0.25, 85.0, {"posting_id": posting_id}),
        item(9, late + time.HOUR, "expiry", -29.999999999, 55.000000001, {}),
        item(10, late + time.HOUR, "topup", 0.01, 55.010000001, {}),
    ]
    return key, rows[::-1]


async def test_the_list_is_the_documents_five_kinds_newest_first(served: Served) -> None:
    """Without `kind`: credits and debits but usage and expiry; each kind with its own source."""
    key, rows = await history(served)

    body = await served.body(BILLING, key)

    shown = [row for row in rows if row["kind"] not in {"usage", "expiry"}]
    assert differences(body, page_of(shown)) == []


@pytest.mark.parametrize(
    "kind",
    ["topup", "refund", "admin_credit", "admin_debit", "subscription_renew", "usage", "expiry"],
)
async def test_one_kind_is_listed_alone(served: Served, kind: str) -> None:
    """`kind` takes each of the seven and shows and counts its rows alone."""
    key, rows = await history(served)

    body = await served.body(BILLING, key, kind=kind)

    shown = [row for row in rows if row["kind"] == kind]
    assert shown
    assert differences(body, page_of(shown)) == []


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("topup", {}),
        ("topup", {"provider": "stripe"}),
        ("topup", {"provider": "stripe", "receipt_id": "ch_1"}),
        ("topup", {"receipt_id": "ch_1", "method": "wire"}),
        ("subscription_renew", {"provider": "stripe", "receipt_id": "in_1"}),
        ("admin_credit", {"actor": "ops@example.com"}),
    ],
)
async def test_source_has_the_keys_that_have_a_value(
    served: Served, kind: str, source: Json
) -> None:
    """Of the keys of its kind, those that were given; {} where none was."""
    wallet, key = await account(served)
    await served.post(wallet, {"grant": {"amount": "1", "kind": kind, "source": source}})

    body = await served.body(BILLING, key)

    assert differences(body["items"], [item(1, START, kind, 1.0, 1.0, source)]) == []


async def test_the_actor_is_by_default_the_name_of_the_key(served: Served) -> None:
    """An adjustment that names nobody shows the key that posted it."""
    wallet, key = await account(served)
    service = await served.key("service", name="Support desk")
    posting = {"idempotency_key": "goodwill", "adjustment": {"amount": "5"}}

    answer = await served.ask("POST", f"/v1/wallets/{wallet}/postings", key=service, json=posting)

    assert answer.status_code == 200
    expected = [item(1, START, "admin_credit", 5.0, 5.0, {"actor": "Support desk"})]
    assert differences((await served.body(BILLING, key))["items"], expected) == []


async def test_amounts_are_json_numbers(served: Served) -> None:
    """Exact to nine digits up to 999,999.999999999, beyond that the nearest double."""
    wallet, key = await account(served)
    amounts = ["0.000000001", "999999.999999998", "0.1", "0.2", "99999999.999999999", "100000000"]
    await served.post(wallet, *map(topup, amounts))

    items = (await served.body(BILLING, key))["items"]

    sums = ["0.000000001", "999999.999999999", "1000000.099999999", "1000000.299999999"]
    sums += ["101000000.299999998", "201000000.299999998"]
    shown = [(one["amount_usd"], one["balance_after_usd"]) for one in reversed(items)]
    assert shown == list(zip(map(float, amounts), map(float, sums), strict=True))
    assert all(type(number) in {int, float} for pair in shown for number in pair)


async def test_a_wallet_without_rows(served: Served) -> None:
    """No wallet, an empty one, one of another currency, one of the other mode: an empty list."""
    customer = await served.customer()
    key = await served.key("customer", customer)
    assert differences(await served.body(BILLING, key), page_of([])) == []

    other = await served.wallet(customer, currency="CNY")
    test = await served.wallet(customer, livemode=False)
    for wallet in (other, test):
        await served.post(wallet, topup())
    assert differences(await served.body(BILLING, key), page_of([])) == []

    await served.wallet(customer)
    assert differences(await served.body(BILLING, key), page_of([])) == []


# --- whose --------------------------------------------------------------------------------------


async def test_me_is_the_customer_and_mode_of_the_key(served: Served) -> None:
    """A live and a test key of one customer, and another customer's, see their own wallet each."""
    customer = await served.customer()
    wallets = [
        await served.wallet(customer),
        await served.wallet(customer, livemode=False),
        await served.wallet(await served.customer("cus_other")),
    ]
    for amount, wallet in zip(("1", "2", "3"), wallets, strict=True):
        await served.post(wallet, topup(amount))
    keys = [
        await served.key("customer", customer),
        await served.key("customer", customer, livemode=False),
        await served.key("customer", "cus_other"),
    ]

    for given, key in zip((1.0, 2.0, 3.0), keys, strict=True):
        body = await served.body(BILLING, key)
        assert differences(body, page_of([item(1, START, "topup", given, given, {})])) == []


async def test_livemode_is_a_check(served: Served) -> None:
    """The key's own mode may be named, the other one is MODE_MISMATCH."""
    for livemode in (True, False):
        wallet, key = await account(served, livemode=livemode)
        await served.post(wallet, topup())
        same, other = str(livemode).lower(), str(not livemode).lower()

        assert (await served.body(BILLING, key, livemode=same))["total"] == 1
        refusal = await served.refusal(BILLING, key, livemode=other)
        assert refusal == Failure(403, "MODE_MISMATCH", "livemode")


async def test_credentials(served: Served) -> None:
    """The customer's key in either header; without, with a bad, revoked or expired one: 401."""
    _, key = await account(served)
    customer = await served.customer()
    expired = await served.key(
        "customer", customer, expires_at=time.text(START + SECOND), name="short"
    )
    admin = await served.key("admin")
    keys = (await served.body("/v1/api-keys", admin, customer_id=customer))["api_keys"]
    revoked = await served.key("customer", customer, name="revoked")
    (target,) = [
        one
        for one in (await served.body("/v1/api-keys", admin, customer_id=customer))["api_keys"]
        if one not in keys
    ]
    await served.ask("DELETE", f"/v1/api-keys/{target['id']}", key=admin)
    served.clock.advance(SECOND)

    answer = await served.ask("GET", BILLING, key=None, headers={"x-api-key": key})
    assert answer.status_code == 200
    missing = await served.get(BILLING, None)
    assert failure(missing) == Failure(401, "KEY_MISSING")
    assert missing.headers["www-authenticate"] == "Bearer"
    for bad in ("sk-short", "sk-" + "0" * 43, key + "x", expired, revoked):
        assert await served.refusal(BILLING, bad) == Failure(401, "KEY_INVALID"), bad
    for headers in ({"authorization": f"Basic {key}"}, {"authorization": key}):
        answer = await served.ask("GET", BILLING, key=None, headers=headers)
        assert failure(answer) == Failure(401, "KEY_INVALID")
    answer = await served.ask("GET", BILLING, key=key, headers={"x-api-key": admin})
    assert failure(answer) == Failure(401, "KEY_INVALID")
    for scope in (admin, await served.key("service")):
        assert await served.refusal(BILLING, scope) == Failure(403, "CUSTOMER_KEY_REQUIRED")


# --- time ---------------------------------------------------------------------------------------


async def five_moments(served: Served) -> str:
    """A key; rows 1 to 5 written 0, 1, 1000, 1001 and 2000 ms after START."""
    wallet, key = await account(served)
    for moment in (0, 1, 1_000, 1_001, 2_000):
        served.clock.now = START + moment
        await served.post(wallet, topup())
    return key


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, [5, 4, 3, 2, 1]),
        (0, None, [5, 4, 3, 2, 1]),
        (1, None, [5, 4, 3, 2]),
        (1_000, None, [5, 4, 3]),
        (1_001, None, [5, 4]),
        (2_000, None, [5]),
        (2_001, None, []),
        (None, 0, []),
        (None, 1, [1]),
        (None, 1_000, [2, 1]),
        (None, 1_001, [3, 2, 1]),
        (None, 2_000, [4, 3, 2, 1]),
        (None, 2_001, [5, 4, 3, 2, 1]),
        (1, 2_000, [4, 3, 2]),
        (1_000, 1_001, [3]),
        (1_000, 1_000, []),
        (-time.DAY, time.DAY, [5, 4, 3, 2, 1]),
    ],
)
async def test_since_is_inclusive_and_until_exclusive(
    served: Served, since: int | None, until: int | None, expected: list[int]
) -> None:
    """To the millisecond; a window without length has nothing in it; `total` counts the window."""
    key = await five_moments(served)
    ends = {"since": since, "until": until}
    window = {name: time.text(START + end) for name, end in ends.items() if end is not None}

    body = await served.body(BILLING, key, **window)

    assert [one["id"] for one in body["items"]] == expected
    assert body["total"] == len(expected)


@pytest.mark.parametrize(
    "since",
    [
        "2026-09-21T14:13:21Z",
        "2026-09-21T14:13:21.000Z",
        "2026-09-21t14:13:21z",
        "2026-09-21T14:13:21.000999999Z",
        "2026-09-21T16:13:21%2B02:00",
        "2026-09-21T16:13:21+02:00",  # in a query a blank, which is read as the plus it was
        "2026-09-21T16:13:21%2002:00",
        "2026-09-21T19:43:21%2B05:30",
        "2026-09-21T07:13:21-07:00",
        "2026-09-22T13:12:21%2B22:59",
    ],
)
async def test_how_a_moment_may_be_written(served: Served, since: str) -> None:
    """RFC 3339 with any zone, digits below a millisecond cut off, "+" escaped or not."""
    key = await five_moments(served)

    answer = await served.ask("GET", BILLING, key=key, query=f"since={since}")

    assert answer.status_code == 200, answer.text
    assert [one["id"] for one in answer.json()["items"]] == [5, 4, 3]


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "1790000000",
        "2026-09-21",
        "2026-09-21T14:13:20",
        "2026-09-21 14:13:20Z",
        "2026-09-21T14:13Z",
        "2026-09-21T14:13:20.Z",
        "2026-09-21T14:13:20.0000000001Z",
        "2026-09-21T14:13:20+0200",
        "2026-09-21T14:13:20+25:00",
        "2026-09-31T14:13:20Z",
        "2026-02-29T00:00:00Z",
        "2026-09-21T24:00:00Z",
        "2026-09-21T14:13:60Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "10000-01-01T00:00:00Z",
        "-001-01-01T00:00:00Z",
        "٢٠٢٦-09-21T14:13:20Z",
        "2026-09-21T14:13:20Z\x00",
        "2026-09-21T14:13:20Z" + " " * 10_000,
    ],
    ids=lambda text: repr(text)[:30],
)
async def test_a_moment_that_is_none(served: Served, name: str, text: str) -> None:
    """Without zone, of another form, of no calendar or beyond years 1 to 9999: 400."""
    _, key = await account(served)

    assert await served.refusal(BILLING, key, **{name: text}) == Failure(400, "INVALID_FIELD", name)


async def test_a_window_that_ends_before_it_begins(served: Served) -> None:
    """since after until is a 400; both at the far ends of time are a window."""
    key = await five_moments(served)
    moments = {"since": time.text(START + 1), "until": time.text(START)}

    assert await served.refusal(BILLING, key, **moments) == Failure(400, "INVALID_FIELD", "since")
    far = {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59.999Z"}
    assert (await served.body(BILLING, key, **far))["total"] == 5


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "page", "page_size", "ids"),
    [
        ({}, 1, 50, range(250, 200, -1)),
        ({"page": 1}, 1, 50, range(250, 200, -1)),
        ({"page": 2}, 2, 50, range(200, 150, -1)),
        ({"page": 5}, 5, 50, range(50, 0, -1)),
        ({"page": 6}, 6, 50, range(0)),
        ({"page": 2_147_483_647, "page_size": 200}, 2_147_483_647, 200, range(0)),
        ({"page_size": 1}, 1, 1, range(250, 249, -1)),
        ({"page_size": 1, "page": 250}, 250, 1, range(1, 0, -1)),
        ({"page_size": 200}, 1, 200, range(250, 50, -1)),
        ({"page_size": 200, "page": 2}, 2, 200, range(50, 0, -1)),
        ({"page_size": 125, "page": 2}, 2, 125, range(125, 0, -1)),
    ],
)
async def test_pages(
    served: Served, wide: str, query: Json, page: int, page_size: int, ids: range
) -> None:
    """Page 1 of 50 by default, up to 200 a page; `total` is the same on each, beyond the last."""
    rows = [item(id_, START, "topup", 1.0, float(id_), {}) for id_ in ids]

    body = await served.body(BILLING, wide, **query)

    assert differences(body, page_of(rows, total=250, page=page, page_size=page_size)) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wide(shared: Served) -> str:
    """The key of a wallet with 250 top-ups of one moment."""
    shared.clock.now = START
    wallet, key = await account(shared)
    await shared.post(wallet, *[topup()] * 250)
    return key


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("page=0", "INVALID_FIELD", "page"),
        ("page=-1", "INVALID_FIELD", "page"),
        ("page=2147483648", "INVALID_FIELD", "page"),
        ("page=1.0", "INVALID_FIELD", "page"),
        ("page=1e0", "INVALID_FIELD", "page"),
        ("page=0x1", "INVALID_FIELD", "page"),
        ("page=+1", "INVALID_FIELD", "page"),
        ("page=one", "INVALID_FIELD", "page"),
        ("page=", "INVALID_FIELD", "page"),
        ("page", "INVALID_FIELD", "page"),
        ("page=1&page=1", "INVALID_FIELD", "page"),
        ("page_size=0", "INVALID_FIELD", "page_size"),
        ("page_size=201", "INVALID_FIELD", "page_size"),
        ("page_size=-5", "INVALID_FIELD", "page_size"),
        ("page_size=50.5", "INVALID_FIELD", "page_size"),
        ("page_size=", "INVALID_FIELD", "page_size"),
        ("kind=", "INVALID_FIELD", "kind"),
        ("kind=Topup", "INVALID_FIELD", "kind"),
        ("kind=grant", "INVALID_FIELD", "kind"),
        ("kind=topup,refund", "INVALID_FIELD", "kind"),
        ("kind=topup&kind=refund", "INVALID_FIELD", "kind"),
        ("kind=1", "INVALID_FIELD", "kind"),
        ("kind=" + "k" * 10_000, "INVALID_FIELD", "kind"),
        ("livemode=", "INVALID_FIELD", "livemode"),
        ("livemode=maybe", "INVALID_FIELD", "livemode"),
        ("limit=5", "UNKNOWN_PARAMETER", "limit"),
        ("pageSize=0", "INVALID_FIELD", "page_size"),
        ("customer_id=cus_other", "UNKNOWN_PARAMETER", "customer_id"),
        ("Kind=topup", "UNKNOWN_PARAMETER", "Kind"),
        ("kind[]=topup", "UNKNOWN_PARAMETER", "kind[]"),
        ("since.until=1", "UNKNOWN_PARAMETER", "since"),
        ("=5", "UNKNOWN_PARAMETER", None),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_no_query_is(served: Served, query: str, code: str, param: str | None) -> None:
    """A number out of range or none, a word not in the list, an unknown or doubled parameter."""
    _, key = await account(served)

    answer = await served.ask("GET", BILLING, key=key, query=query)

    assert failure(answer) == Failure(400, code, param)


@pytest.mark.parametrize("path", [BILLING + "/", BILLING + "/1", BILLING + "s", "/api/v1/me"])
async def test_paths_beside(served: Served, path: str) -> None:
    """An unknown path is a 404, another method on the known one a 405."""
    _, key = await account(served)

    assert await served.refusal(path, key) == Failure(404, "UNKNOWN_PATH")
    answer = await served.ask("POST", BILLING, key=key, json={})
    assert failure(answer) == Failure(405, "UNKNOWN_PATH")


async def test_the_documents_loop_writes_every_row_once(served: Served) -> None:
    """Pages of 200 until page * page_size >= total: a CSV of all 460 rows, newest first."""
    wallet, key = await account(served)
    for number in range(460):
        if number % 7 == 0:
            served.clock.advance(number)
        if number % 46 == 0:
            await served.post(wallet, topup(), *[usage()] * 3, *[topup("0.50")] * 45)

    headers = {"authorization": f"Bearer {key}"}
    page, all_rows = 1, []
    while True:
        answer = await served.http.get(
            BILLING, params={"page": page, "page_size": 200}, headers=headers
        )
        body = answer.json()
        all_rows.extend(body["items"])
        if page * body["page_size"] >= body["total"]:
            break
        page += 1
    file = io.StringIO()
    writer = csv.DictWriter(file, ["created_at", "kind", "amount_usd", "balance_after_usd"])
    writer.writeheader()
    for row in all_rows:
        writer.writerow({name: row[name] for name in writer.fieldnames})

    assert page == 3
    expected = [49 * block + place for block in range(10) for place in (1, *range(5, 50))]
    assert [row["id"] for row in all_rows] == expected[::-1]
    lines = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert len(lines) == 460
    assert sum(float(line["amount_usd"]) for line in lines) == 10 * (1.0 + 45 * 0.5)


async def test_a_walk_during_writes_misses_nothing(served: Served) -> None:
    """What was there when the walk began is in it, though rows arrive between the pages."""
    wallet, key = await account(served)
    await served.post(wallet, *[topup()] * 40)

    seen: list[int] = []
    for page in range(1, 10):
        body = await served.body(BILLING, key, page=page, page_size=10)
        seen += [one["id"] for one in body["items"]]
        if page * 10 >= body["total"]:
            break
        await served.post(wallet, topup(), topup(), usage())

    assert set(range(1, 41)) <= set(seen)


async def test_pages_of_any_kind_window_and_size_are_slices_of_the_whole(served: Served) -> None:
    """Over a wallet of mixed rows: pages put together are the rows that the filters leave."""
    wallet, key = await account(served)
    chance = random.Random(7)
    await served.post(wallet, topup("100"))
    for _ in range(120):
        served.clock.advance(chance.choice([0, 0, 1, 700, 1_000, 40_000]))
        expires_at = time.text(served.clock.now + 60_000)
        some = [
            usage(),
            usage(),
            topup("0.5", provider="stripe"),
            {"adjustment": {"amount": "-0.02"}},
            {"grant": {"amount": "0.1", "kind": "subscription_renew", "expires_at": expires_at}},
        ]
        (answer,) = await served.post(wallet, chance.choice(some))
        if answer["transactions"][0]["kind"] == "usage" and chance.random() < 0.3:
            await served.post(wallet, {"refund": {"posting_id": answer["posting_id"]}})
    kinds = ["topup", "refund", "admin_debit", "subscription_renew", "usage", "expiry"]
    rows: list[Json] = []
    for kind in kinds:
        rows += (await served.body(BILLING, key, kind=kind, page_size=200))["items"]
    rows.sort(key=lambda row: -row["id"])
    assert [row["id"] for row in rows] == list(range(len(rows), 0, -1))
    assert len({row["kind"] for row in rows}) == len(kinds)

    for _ in range(40):
        one_kind = chance.choice([None, None, *kinds])
        since, until = sorted(START + chance.randrange(-5, 1_000) * SECOND for _ in range(2))
        page_size = chance.choice([1, 2, 7, 50, 200])
        query: Json = {"since": at(since), "until": at(until), "page_size": page_size}
        expected = [
            row
            for row in rows
            if at(since) <= row["created_at"] < at(until)
            and (row["kind"] == one_kind if one_kind else row["kind"] not in {"usage", "expiry"})
        ]
        page = chance.randrange(1, len(expected) // page_size + 3)
        first = (page - 1) * page_size

        named = {**query, "page": page, **({"kind": one_kind} if one_kind else {})}
        body = await served.body(BILLING, key, **named)

        wanted = page_of(
            expected[first : first + page_size],
            total=len(expected),
            page=page,
            page_size=page_size,
        )
        assert body == wanted, named
