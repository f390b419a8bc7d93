"""Lists of a random ledger are what the filters leave of all rows, sums what these add up to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from creditledger.domain import clock as time
from tests.support.rest import (
    SEARCH_SECONDS_MAX,
    SUMMARY,
    TRANSACTIONS,
    Failure,
    Json,
    Served,
    Shop,
    serving,
    traffic,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True, slots=True)
class Traded:
    """A ledger after random traffic: its rows as lists show them, and what was asked for."""

    served: Served
    rows: dict[bool, list[Json]]  #: By mode, newest first.
    requests: dict[str, Json]
    admin: dict[bool, str]
    customers: list[str]
    keys: dict[str, str]  #: Of customers, in live mode.
    wallets: list[Json]  #: {wallet_id, customer_id, currency, livemode}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traded(new_database: Callable[[], str]) -> AsyncIterator[Traded]:
    """Three customers, five wallets, two modes and currencies; once the clock goes back."""
    chance = random.Random(20)
    async with serving(new_database()) as served:
        customers = [await served.customer() for _ in range(3)]
        meters = [await served.meter() for _ in range(2)]
        wallets, shops = [], []
        for customer, currency, livemode in [
            (customers[0], "USD", True),
            (customers[0], "CREDIT", True),
            (customers[1], "USD", True),
            (customers[1], "USD", False),
            (customers[2], "USD", True),
        ]:
            new: Json = {"customer_id": customer, "currency": currency, "livemode": livemode}
            wallet = await served.wallet(overdraft_limit="5", **new)
            subscriptions = [await served.subscription(customer) for _ in range(2)]
            scale = 9 if currency == "USD" else 6
            shops.append(Shop(wallet, scale, subscriptions, meters, ["apk_1"]))
            wallets.append({"wallet_id": wallet, **new})
        requests = await traffic(served, chance, shops, 150)
        served.clock.advance(-2 * time.HOUR)
        requests |= await traffic(served, chance, shops, 150)
        admin = {mode: await served.key("admin", livemode=mode) for mode in (True, False)}
        yield Traded(
            served,
            {mode: await walk(served, admin[mode]) for mode in (True, False)},
            requests,
            admin,
            customers,
            {customer: await served.key("customer", customer) for customer in customers},
            wallets,
        )


async def test_all_rows_in_their_order(traded: Traded) -> None:
    """Newest first over all wallets; each wallet's rows are numbered and add up."""
    rows = traded.rows[True] + traded.rows[False]
    assert len(rows) > 300
    assert {row["posting_id"] for row in rows} >= traded.requests.keys()
    assert {row["type"] for row in rows} == {"grant", "consumption", "adjustment", "expiration"}
    for mode, listed in traded.rows.items():
        assert [row["created_at"] for row in listed] == sorted(
            (row["created_at"] for row in listed), reverse=True
        )
        for wallet in {row["wallet_id"] for row in listed}:
            mine = [row for row in reversed(listed) if row["wallet_id"] == wallet]
            assert [int(row["sequence"]) for row in mine] == list(range(1, len(mine) + 1))
            balance = Decimal(0)
            for row in mine:
                balance += Decimal(row["amount"])
                assert balance == Decimal(row["running_balance"])
                assert row["livemode"] is mode


def fold(words: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in words)


def matches(row: Json, query: Json) -> bool:
    """Whether the row is one that the query asks for."""
    source = row.get("source", {})
    for name, wanted in query.items():
        if name == "start":
            found = row["created_at"] >= time.text(wanted * 1000)
        elif name == "end":
            found = row["created_at"] < time.text((wanted + 1) * 1000)
        elif name == "source":
            causes = [source.get(key) for key in ("provider", "receipt_id", "actor")]
            found = wanted in {row.get("meter_event_id"), *causes}
        elif name == "q":
            texts = [row.get("description"), row.get("note"), row["id"], source.get("receipt_id")]
            texts += row["metadata"].values()
            found = any(fold(wanted) in fold(one) for one in texts if one is not None)
        else:
            found = row.get(name) == wanted
        if not found:
            return False
    return True


def random_query(chance: random.Random, rows: Sequence[Json], names: Sequence[str]) -> Json:
    """Filters, most of them taken from one row, so that they often leave it."""
    query: Json = {}
    chosen = chance.choice(rows)
    for name in names:
        if chance.random() < 0.65:
            continue
        row = chosen if chance.random() < 0.9 else chance.choice(rows)
        if name in {"start", "end"}:
            # That second, its neighbours, and the edges of its quarter of an hour.
            second = time.parse(row["created_at"], field=name) // 1000
            apart = chance.choice([0, 1, 86_400]) * (1 if name == "end" else -1)
            near = [apart, apart, 1, -1, -second % 900, -second % 900 - 1, -(second % 900)]
            query[name] = second + chance.choice(near)
        elif name == "q":
            texts = [row.get("description", "%"), row.get("note", "__")[1:].upper(), row["id"][-6:]]
            query[name] = chance.choice([*texts, "CH_", "BLUE", "nowhere"])
        elif name == "source":
            source = row.get("source", {})
            some = [source.get("provider"), source.get("actor"), row.get("meter_event_id")]
            query[name] = chance.choice([one for one in some if one] or ["Ch_3"])
        elif row.get(name) is not None:
            query[name] = row[name]
    if query.get("start", 0) > query.get("end", 2**40):
        query["start"], query["end"] = query["end"], query["start"]
    return query


LIST_FILTERS = [
    "customer_id", "wallet_id", "subscription_id", "credit_grant_id", "meter_id", "source", "start",
    "end", "q",
]  # fmt: skip
NARROWING = {"customer_id", "wallet_id", "subscription_id", "credit_grant_id", "meter_id"}


@pytest.mark.parametrize("seed", range(4))
async def test_lists_of_a_random_ledger(traded: Traded, seed: int) -> None:
    """Any filters: the list, by tokens and by pages, is what they leave, and count its length."""
    chance = random.Random(seed)
    served, found = traded.served, 0
    for _ in range(35):
        mode = chance.random() < 0.8
        rows, key = traded.rows[mode], traded.admin[mode]
        query = random_query(chance, rows, LIST_FILTERS)
        if mode and chance.random() < 0.3:
            owner = query.setdefault("customer_id", chance.choice(traded.customers))
            key = traded.keys[owner]
        limit = chance.choice([7, 20, 100])
        searching = {"q", "source"} & query.keys()
        narrow = NARROWING & query.keys()
        bounded = query.get("end", 2**40) - query.get("start", 0) <= SEARCH_SECONDS_MAX
        if searching and not narrow and not bounded:
            refusal = await served.refusal(TRANSACTIONS, key, **query)
            assert refusal.code == "QUERY_TOO_BROAD"
            continue
        expected = [row for row in rows if matches(row, query)]

        walked = await walk(served, key, limit=limit, **query)
        page = chance.randrange(1, len(expected) // limit + 3)
        paged = await served.body(TRANSACTIONS, key, limit=limit, page=page, **query)

        assert walked == expected, query
        assert paged["list"] == expected[(page - 1) * limit : page * limit], (query, page)
        assert paged["count"] == len(expected)
        found += bool(expected)
    assert found > 15


def quantity(rows: Sequence[Json], requests: dict[str, Json]) -> Decimal:
    """Σ of all quantities, once a posting; |amount| of what has no usage."""
    total, counted = Decimal(0), set()
    for row in rows:
        usage = requests[row["posting_id"]]["consumption"].get("usage")
        if usage is None:
            total -= Decimal(row["amount"])
        elif row["posting_id"] not in counted:
            counted.add(row["posting_id"])
            total += sum(usage["quantities"])
    return total


@pytest.mark.parametrize("seed", range(3))
async def test_summaries_of_a_random_ledger(traded: Traded, seed: int) -> None:
    """Any filters, windows that cut quarters of an hour: the sums of the rows that they leave."""
    chance = random.Random(seed)
    filters = [
        *("customer_id", "wallet_id", "subscription_id", "currency_id", "meter_id"),
        *("start", "end"),
    ]
    found = 0
    for _ in range(60):
        mode = chance.random() < 0.8
        rows = [row for row in traded.rows[mode] if row["type"] == "consumption"]
        query = random_query(chance, rows, filters)
        owners = {
            row["customer_id"]
            for row in traded.rows[mode]
            if row.get("subscription_id") == query.get("subscription_id")
        }
        scope = {
            wallet["currency"]
            for wallet in traded.wallets
            if wallet["livemode"] is mode
            and query.get("customer_id") in {None, wallet["customer_id"]}
            and query.get("wallet_id") in {None, wallet["wallet_id"]}
            and query.get("currency_id") in {None, wallet["currency"]}
            and (wallet["customer_id"] in owners or "subscription_id" not in query)
        }
        if len(scope) > 1:
            refusal = await traded.served.refusal(SUMMARY, traded.admin[mode], **query)
            assert refusal == Failure(400, "INVALID_FIELD", "currency_id")
            continue
        expected = [row for row in rows if matches(row, query)]

        body = await traded.served.body(SUMMARY, traded.admin[mode], **query)

        amount = sum((Decimal(row["amount"]) for row in expected), Decimal(0))
        assert Decimal(body["total_credit_amount"]) == amount, query
        assert Decimal(body["total_quantity"]) == quantity(expected, traded.requests), query
        assert body["transaction_count"] == len(expected), query
        found += bool(expected)
    assert found > 15
