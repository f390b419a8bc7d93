"""/api/credit-grants over REST: giving once, finding, adding up, and whether a wallet can go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from structlog.testing import capture_logs

from creditledger.domain import clock as time
from tests.support.rest import Failure, Json, Served, failure
from tests.support.setup import START

pytestmark = pytest.mark.asyncio(loop_scope="module")

GRANTS, EVENTS = "/api/credit-grants", "/api/meter-events"
NOW = START
SECOND = START // time.SECOND


class Giving:
    """What a client that gives credit does."""

    def __init__(self, served: Served, key: str, customer: str) -> None:
        self.served, self.key, self.customer = served, key, customer

    def grant(self, amount: str, **fields: Any) -> Json:
        """A grant for the customer."""
        named = {"customer_id": self.customer, "currency_id": "CREDIT", "category": "paid"}
        return {"amount": amount, **named, **fields}

    async def give(self, amount: str, key: str | None = None, **fields: Any) -> Json:
        """Give it; the client says its mode with every call."""
        headers = {} if key is None else {"idempotency-key": key}
        answer = await self.served.ask(
            "POST",
            GRANTS,
            key=self.key,
            query={"livemode": "true"},
            headers=headers,
            json=self.grant(amount, **fields),
        )
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def get(self, path: str = "", **query: Any) -> Json:
        """The body of a GET that succeeds."""
        return await self.served.body(GRANTS + path, self.key, livemode="true", **query)

    async def refused(
        self, body: Json, key: str | None = None, headers: Any = None, **query: Any
    ) -> Failure:
        """How a grant is refused."""
        answer = await self.served.ask(
            "POST", GRANTS, key=key or self.key, query=query, json=body, headers=headers or {}
        )
        return failure(answer)


@pytest_asyncio.fixture(loop_scope="module")
async def giving(shared: Served) -> Giving:
    """A service key, and a customer without a wallet."""
    shared.clock.now = NOW
    key = await shared.key("service", name="Payments")
    return Giving(shared, key, await shared.customer(f"cus_given_{shared.number()}"))


async def test_a_grant(giving: Giving) -> None:
    """The wallet is made for it; all that is said of it is answered, now and later."""
    made = await giving.give(
        "12.5",
        name="Welcome",
        category="promotional",
        priority=10,
        effective_at=SECOND - 60,
        expires_at=SECOND + 60,
        metadata={"campaign": "spring"},
    )
    assert made == {
        "id": made["id"],
        "object": "credit_grant",
        "amount": "12.50",
        "remaining_amount": "12.50",
        "currency_id": "CREDIT",
        "customer_id": giving.customer,
        "name": "Welcome",
        "category": "promotional",
        "priority": 10,
        "effective_at": SECOND - 60,
        "expires_at": SECOND + 60,
        "status": "granted",
        "livemode": True,
        "metadata": {"campaign": "spring"},
        "created_at": time.text(NOW),
        "updated_at": time.text(NOW),
        "wallet_id": made["wallet_id"],
        "paymentCurrency": made["paymentCurrency"],
        "customer": {"id": giving.customer, "name": "Acme", "email": "a@example.com"},
        "created_via": "api",
        "created_by": made["created_by"],
    }
    assert made["paymentCurrency"]["decimal"] == 6
    assert "created_by" not in await giving.give("1", category="paid")
    assert await giving.get(f"/{made['id']}") == made
    rows = await giving.served.body("/api/credit-transactions", giving.key, source="Payments",
                                    customer_id=giving.customer)  # fmt: skip
    assert [(one["kind"], one["credit_grant_id"]) for one in rows["list"]] == [
        ("admin_credit", made["id"]),
    ]
    giving.served.clock.advance(time.MINUTE)
    over = await giving.get(f"/{made['id']}")
    assert (over["status"], over["remaining_amount"]) == ("expired", "0.00")

    for_ever = await giving.give("1", effective_at=0, expires_at=0)
    assert "expires_at" not in for_ever
    assert for_ever["effective_at"] == SECOND + 60


async def test_a_key_gives_once(giving: Giving) -> None:
    """The same request under one Idempotency-Key is one grant; without a key each is another."""
    many = await asyncio.gather(*[giving.give("5", key="order 1") for _ in range(10)])
    assert {one["id"] for one in many} == {many[0]["id"]}
    assert (await giving.get(customer_id=giving.customer))["count"] == 1
    taken = await giving.refused(giving.grant("6"), headers={"idempotency-key": "order 1"})
    assert taken == Failure(409, "IDEMPOTENCY_KEY_REUSED", "Idempotency-Key")

    first, second = await giving.give("5"), await giving.give("5")
    assert first["id"] != second["id"]
    assert (await giving.get(customer_id=giving.customer))["count"] == 3


async def test_an_equal_grant_without_a_key_is_told(giving: Giving) -> None:
    """An equal grant within a minute is given, and header and log name the one before."""
    asked = {"name": "May", "expires_at": SECOND + 3600, "metadata": {"order": "7"}}

    async def warned(amount: str, key: str | None = None, **fields: Any) -> tuple[str, bool]:
        headers = {} if key is None else {"idempotency-key": key}
        body = giving.grant(amount, **(asked | fields))
        with capture_logs() as lines:
            answer = await giving.served.ask(
                "POST", GRANTS, key=giving.key, headers=headers, json=body
            )
        assert answer.status_code == 200, answer.text
        told = answer.headers.get("warning", "")
        logged = [line for line in lines if line["event"] == "equal grant without a key"]
        assert [line["given_before"] in told for line in logged] == [True] * bool(told)
        return answer.json()["id"], told.startswith("299 creditledger ")

    first, told = await warned("5")
    assert not told
    for other in ({"name": "June"}, {"metadata": {"order": "8"}}, {"category": "promotional"},
                  {"expires_at": SECOND + 3601}, {"effective_at": SECOND - 5}):  # fmt: skip
        assert (await warned("5", **other))[1] is False, other
    assert (await warned("5.01"))[1] is False
    assert (await warned("5", key="a key"))[1] is False
    second, told = await warned("5")
    assert (second != first, told) == (True, True)
    giving.served.clock.advance(time.MINUTE)
    assert (await warned("5"))[1] is True
    giving.served.clock.advance(time.MINUTE + 1)
    assert (await warned("5"))[1] is False
    assert (await giving.get(customer_id=giving.customer))["count"] == 11


async def test_holders(giving: Giving) -> None:
    """Holders are customers with credit now: what is left of grants that run."""
    served, number = giving.served, giving.served.number()
    code = f"HOLD{number}"
    await served.registry.CreateCurrency(registry_pb.CreateCurrencyRequest(
        id=code, scale=2, name="Held"))  # fmt: skip
    wallets = {}
    for name in ("a", "b", "c", "d"):
        customer = await served.customer(f"cus_holder_{number}_{name}")
        wallets[customer] = await served.wallet(customer, currency=code)
    a, b, c, _ = wallets
    soon, ends = time.text(NOW + time.HOUR), time.text(NOW + time.HOUR)
    await served.post(wallets[a], {"grant": {"amount": "5"}}, {"grant": {"amount": "2"}},
                      {"consumption": {"amount": "5.50"}})  # fmt: skip
    await served.post(wallets[b], {"grant": {"amount": "7", "effective_at": soon}})
    await served.post(wallets[c], {"grant": {"amount": "3", "expires_at": ends}})

    async def held(**query: Any) -> Json:
        return await giving.get("/holders", currency_id=code, **query)

    found = await held()
    assert found == {
        "holders": [
            {"customer_id": a, "balance": "1.50", "grantCount": 1},
            {"customer_id": c, "balance": "3.00", "grantCount": 1},
        ],
        "currency": {"id": code, "name": "Held", "symbol": code, "decimal": 2, "type": "credit"},
        "paging": {"page": 1, "pageSize": 20, "total": 2, "totalPages": 1},
    }
    second = await held(page=2, pageSize=1)
    assert (second["holders"], second["paging"]["totalPages"]) == (found["holders"][1:], 2)
    served.clock.now = NOW + time.HOUR
    assert [one["customer_id"] for one in (await held())["holders"]] == [a, b]
    wrong: list[tuple[Json, Failure]] = [
        ({}, Failure(400, "MISSING_FIELD", "currency_id")),
        ({"currency_id": "NONE"}, Failure(404, "NOT_FOUND", "currency_id")),
        ({"currency_id": code, "pageSize": 101}, Failure(400, "INVALID_FIELD", "pageSize")),
    ]
    for query, expected in wrong:
        assert await served.refusal(f"{GRANTS}/holders", giving.key, **query) == expected


async def test_stats(giving: Giving) -> None:
    """Stats count grants by the second of their making, both ends of the window included."""
    served, code = giving.served, f"STAT{giving.served.number()}"
    await served.registry.CreateCurrency(registry_pb.CreateCurrencyRequest(
        id=code, scale=2, name="Counted"))  # fmt: skip
    customer = await served.customer()
    wallet = await served.wallet(customer, currency=code)
    midnight = NOW - NOW % time.DAY + time.DAY
    for moment, grant in [
        (midnight - 1, {"amount": "5"}),
        (midnight, {"amount": "7", "category": "promotional"}),
        (midnight + 999, {"amount": "1"}),
        (midnight + time.SECOND, {"amount": "100"}),
    ]:
        served.clock.now = moment
        await served.post(wallet, {"grant": grant})
    await served.post(wallet, {"consumption": {"amount": "8"}})
    window = {"start_date": midnight // 1000 - 1, "end_date": midnight // 1000}

    async def stats(**query: Any) -> Json:
        return await giving.get("/stats", **{"currency_id": code, **window, **query})

    def sums(count: int, granted: str, left: str, gone: str, **more: Any) -> Json:
        return {
            "currency_id": code, **more, "grant_count": count, "total_granted": granted,
            "total_remaining": left, "total_consumed": gone,
        }  # fmt: skip

    currency = {"id": code, "name": "Counted", "symbol": code, "decimal": 2, "type": "credit"}
    days = [time.text(midnight - time.DAY)[:10], time.text(midnight)[:10]]
    found = await stats()
    assert found["stats"] == sums(3, "13.00", "5.00", "8.00", currency=currency)
    assert [one["date"] for one in found["daily_stats"]] == days
    assert [one["grant_count"] for one in found["daily_stats"]] == [1, 2]
    (whole,) = (await stats(timezone_offset=480))["daily_stats"]
    assert whole == sums(3, "13.00", "5.00", "8.00", date=days[1])
    assert (await stats(category="promotional"))["stats"]["total_granted"] == "7.00"
    none = await stats(start_date=0, end_date=1)
    assert none == {"stats": sums(0, "0.00", "0.00", "0.00", currency=currency), "daily_stats": []}
    wrong: list[tuple[Json, str]] = [
        ({"end_date": window["start_date"] - 1}, "end_date"),
        ({"end_date": window["start_date"] + 367 * 86_400}, "end_date"),
        ({"timezone_offset": 1_441}, "timezone_offset"),
        ({"category": "none"}, "category"),
    ]
    for query, param in wrong:
        asked: Json = {"currency_id": code, **window, **query}
        refused = await served.refusal(f"{GRANTS}/stats", giving.key, **asked)
        assert refused == Failure(400, "INVALID_FIELD", param), query


async def test_a_grant_pays_what_events_are_owed(giving: Giving) -> None:
    """In its own commit: what is left of it says so at once."""
    served = giving.served
    event_name = f"images {served.number()}"
    await served.meter(event_name=event_name, currency_id="CREDIT")
    event = {
        "event_name": event_name,
        "identifier": "evt_1",
        "payload": {"customer_id": giving.customer, "value": "3"},
    }
    await served.ask("POST", EVENTS, key=giving.key, json=event)
    made = await giving.give("10")
    assert (made["amount"], made["remaining_amount"]) == ("10.00", "7.00")
    paid = await served.body(EVENTS, giving.key, customer_id=giving.customer)
    assert [one["status"] for one in paid["list"]] == ["completed"]


async def test_what_a_grant_pays_for(giving: Giving) -> None:
    """Prices are meters or products: what is limited to them pays for nothing else."""
    meter = await giving.served.meter(currency_id="CREDIT")
    config = {"scope": {"prices": [meter]}}
    made = await giving.give("5", applicability_config=config)
    assert made["applicability_config"] == config
    asked = {"customer_id": giving.customer, "currency_id": "CREDIT"}
    assert (await giving.get("/verify-availability", **asked))["can_continue"] is False
    spend = {"consumption": {"amount": "2", "meter_id": meter}}
    (posted,) = await giving.served.post(made["wallet_id"], spend)
    assert posted["transactions"][0]["credit_grant_id"] == made["id"]

    products = {"scope": {"prices": ["price_2", "price_1"]}}
    made = await giving.give("5", applicability_config=products)
    assert made["applicability_config"]["scope"]["prices"] == ["price_1", "price_2"]
    for scope, code, param in (
        ({"prices": [meter, "price_1"]}, (400, "INVALID_FIELD"), "prices"),
        ({"prices": ["mtr_none"]}, (404, "NOT_FOUND"), "prices"),
        ({"prices": [""]}, (400, "MISSING_FIELD"), "prices"),
        ({"prices": [f"price_{n}" for n in range(21)]}, (400, "INVALID_FIELD"), "prices"),
        ({"price_type": "recurring"}, (400, "INVALID_FIELD"), "price_type"),
    ):
        body = giving.grant("1", applicability_config={"scope": scope})
        expected = Failure(*code, f"applicability_config.scope.{param}")
        assert await giving.refused(body) == expected, scope


async def test_lists(giving: Giving) -> None:
    """Newest first, narrowed by what is given, with how many there are in all."""
    later = await giving.give("1", name="Later", effective_at=SECOND + 3_600)
    giving.served.clock.advance(time.SECOND)
    spent = await giving.give("2", name="Spent")
    consume = {"consumption": {"amount": "2"}}
    await giving.served.post(spent["wallet_id"], consume)
    giving.served.clock.advance(time.SECOND)
    short = await giving.give("3", name="Short", expires_at=SECOND + 10)
    giving.served.clock.advance(time.SECOND)
    dollars = await giving.give("4", currency_id="USD")
    giving.served.clock.advance(time.MINUTE)

    async def ids(**query: Any) -> list[str]:
        found = await giving.get(customer_id=giving.customer, **query)
        return [one["id"] for one in found["list"]]

    every = [dollars["id"], short["id"], spent["id"], later["id"]]
    assert await ids() == every
    assert await ids(page=2, pageSize=3) == every[3:]
    assert await ids(limit=1) == every[:1]
    assert await ids(currency_id="USD") == [dollars["id"]]
    for status, one in (
        ("pending", later),
        ("depleted", spent),
        ("expired", short),
        ("granted", dollars),
    ):
        assert await ids(status=status) == [one["id"]]
        assert (await giving.get(f"/{one['id']}"))["status"] == status
    assert await ids(status="pending,expired") == [short["id"], later["id"]]
    assert await ids(q="LATE") == [later["id"]]
    found = await giving.get(customer_id=giving.customer, pageSize=2)
    assert (found["count"], found["paging"]) == (4, {"page": 1, "pageSize": 2})


async def test_an_update(giving: Giving) -> None:
    """Metadata is merged; what is ended is voided, once, and nobody spends what was left of it."""
    made = await giving.give("5", metadata={"order": "1", "shop": "web"})
    path = f"{GRANTS}/{made['id']}"

    async def put(body: Json, **query: Any) -> Any:
        return await giving.served.ask("PUT", path, key=giving.key, json=body, query=query)

    giving.served.clock.advance(time.MINUTE)
    done = await put({"metadata": {"order": "2", "shop": ""}}, livemode="true")
    assert done.json() == {"success": True}
    now = await giving.get(f"/{made['id']}")
    assert now["metadata"] == {"order": "2"}
    assert (now["updated_at"], now["created_at"]) == (time.text(NOW + time.MINUTE), time.text(NOW))

    for _ in range(2):
        assert (await put({"expired": True})).json() == {"success": True}
    ended = await giving.get(f"/{made['id']}")
    assert (ended["status"], ended["remaining_amount"]) == ("voided", "0.00")
    assert ended["voided_at"] == SECOND + 60
    assert (await giving.get(customer_id=giving.customer, status="voided"))["count"] == 1
    asked = {"customer_id": giving.customer, "currency_id": "CREDIT"}
    assert (await giving.get("/verify-availability", **asked))["can_continue"] is False

    assert failure(await put({})) == Failure(400, "MISSING_FIELD", "metadata")
    path = f"{GRANTS}/cg_{'0' * 26}"
    assert failure(await put({"expired": True})) == Failure(404, "NOT_FOUND", "id")


async def test_what_can_be_spent(giving: Giving) -> None:
    """Summed by currency over the grants that are open now."""
    assert await giving.get("/summary", customer_id=giving.customer) == {}
    first = await giving.give("10")
    await giving.give("5", effective_at=SECOND + 60)
    await giving.give("2", currency_id="USD")
    await giving.served.post(first["wallet_id"], {"consumption": {"amount": "4"}})

    found = await giving.get("/summary", customer_id=giving.customer)
    assert sorted(found) == ["CREDIT", "USD"]
    assert found["CREDIT"] == {
        "paymentCurrency": first["paymentCurrency"],
        "totalAmount": "10.00",
        "remainingAmount": "6.00",
        "grantCount": 1,
    }
    own = await giving.served.key("customer", giving.customer)
    assert await giving.served.body(f"{GRANTS}/summary", own) == found


async def test_whether_it_can_go_on(giving: Giving) -> None:
    """It can while there is more than nothing, and what is asked for is covered."""
    path, asked = "/verify-availability", {"customer_id": giving.customer, "currency_id": "CREDIT"}

    async def can(**query: Any) -> object:
        found = await giving.get(path, **asked, **query)
        assert found["can_continue"] is ("reason" not in found)
        return found.get("reason", True)

    assert await can() == "no_wallet"
    made = await giving.give("5")
    assert await can() is True
    assert await can(pending_amount="5", max_recharge_times=3) is True
    assert await can(pending_amount="5.000001") == "insufficient_credit"
    assert await can(pending_amount="6", max_pending_amount="1") is True
    await giving.served.post(made["wallet_id"], {"consumption": {"amount": "5"}})
    assert await can() == "insufficient_credit"
    limit = wallets_pb.UpdateWalletRequest(
        wallet_id=made["wallet_id"], overdraft_limit="1", status="active"
    )
    await giving.served.wallets.UpdateWallet(limit)
    assert await can(pending_amount="1") is True
    frozen = wallets_pb.UpdateWalletRequest(wallet_id=made["wallet_id"], status="frozen")
    await giving.served.wallets.UpdateWallet(frozen)
    assert await can() == "wallet_frozen"


async def test_who_may(giving: Giving) -> None:
    """A customer sees its own grants and gives none; a mode is a wall."""
    made = await giving.give("2")
    own = await giving.served.key("customer", giving.customer)
    other = await giving.served.key("customer", await giving.served.customer())
    test = await giving.served.key("service", livemode=False)
    path = f"{GRANTS}/{made['id']}"

    assert await giving.served.body(path, own) == made
    assert (await giving.served.body(GRANTS, own))["count"] == 1
    assert (await giving.served.body(GRANTS, other))["count"] == 0
    unseen = Failure(404, "NOT_FOUND", "id")
    assert await giving.served.refusal(path, other) == unseen
    assert await giving.served.refusal(path, test) == unseen
    assert await giving.served.refusal(f"{GRANTS}/summary", test) == Failure(
        400, "MISSING_FIELD", "customer_id"
    )
    assert await giving.refused(giving.grant("1"), key=own) == Failure(403, "SCOPE_DENIED")
    assert await giving.refused(giving.grant("1"), key=test, livemode="true") == Failure(
        403, "MODE_MISMATCH", "livemode"
    )


async def test_what_cannot_be_asked(giving: Giving) -> None:
    """Each is named by its field, and no grant is made."""
    await giving.give("1")
    before = giving.served.row_counts()
    good = giving.grant("1")
    for fields, expected in (
        ({"amount": "0"}, (400, "INVALID_FIELD", "amount")),
        ({"amount": ""}, (400, "MISSING_FIELD", "amount")),
        ({"amount": "0.0000001"}, (400, "INVALID_FIELD", "amount")),
        ({"currency_id": "XXX"}, (404, "NOT_FOUND", "currency_id")),
        ({"customer_id": "cus_none"}, (404, "NOT_FOUND", "customer_id")),
        ({"category": "gift"}, (400, "INVALID_FIELD", "category")),
        ({"category": ""}, (400, "MISSING_FIELD", "category")),
        ({"priority": 101}, (400, "INVALID_FIELD", "priority")),
        ({"expires_at": SECOND}, (400, "INVALID_FIELD", "expires_at")),
        ({"effective_at": SECOND - 36 * 86_400}, (400, "INVALID_FIELD", "effective_at")),
    ):
        found = await giving.refused({**good, **fields})
        assert found == Failure(*expected), fields
    bad_key = await giving.refused(good, headers={"idempotency-key": "x" * 256})
    assert bad_key == Failure(400, "INVALID_FIELD", "Idempotency-Key")
    for path, query, expected in (
        ("/cg_1", {}, (400, "INVALID_FIELD", "id")),
        (f"/cg_{'0' * 26}", {}, (404, "NOT_FOUND", "id")),
        ("", {"status": "new"}, (400, "INVALID_FIELD", "status")),
        ("", {"q": "a"}, (400, "QUERY_TOO_BROAD", "q")),
        ("/summary", {}, (400, "MISSING_FIELD", "customer_id")),
        ("/summary", {"customer_id": giving.customer, "subscription_id": "sub_1"},
         (400, "INVALID_FIELD", "subscription_id")),
        ("/verify-availability", {"customer_id": giving.customer},
         (400, "MISSING_FIELD", "currency_id")),
        ("/verify-availability", {"customer_id": "cus_none", "currency_id": "CREDIT"},
         (404, "NOT_FOUND", "customer_id")),
        ("/verify-availability",
         {"customer_id": giving.customer, "currency_id": "CREDIT", "pending_amount": "-1"},
         (400, "INVALID_FIELD", "pending_amount")),
    ):  # fmt: skip
        found = await giving.served.refusal(GRANTS + path, giving.key, **query)
        assert found == Failure(*expected), (path, query)
    assert giving.served.row_counts() == before
