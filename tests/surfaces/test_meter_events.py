"""Meters and meter events over REST: what is paid at once, what is owed, and by what it is paid.

A wallet's credit pays its events oldest first, whatever brought it; the sums of the rows, the
events and the balance agree after each step.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio
from credit.v1 import wallet_service_pb2 as wallets_pb

from creditledger.domain import clock as time
from creditledger.domain.model import UNPAID_EVENTS_MAX
from tests.support.rest import SUMMARY, TRANSACTIONS, Failure, Json, Served, failure
from tests.support.setup import START

pytestmark = pytest.mark.asyncio(loop_scope="module")

METERS, EVENTS = "/api/meters", "/api/meter-events"
NOW = START
SECOND = START // time.SECOND


@pytest_asyncio.fixture(loop_scope="module")
async def kit(shared: Served) -> Kit:
    """A service key, a meter whose events cost CREDIT, and a customer without a wallet."""
    shared.clock.now = NOW
    number = shared.number()
    key = await shared.key("service", name="Gateway")
    made = Kit(shared, key, await shared.customer(f"cus_kit_{number}"), f"calls {number}")
    made.meter = await made.send(
        "POST", METERS, {"name": "Calls", "event_name": made.event_name, "unit": "call"}
    )
    return made


class Kit:
    """What a client of the meters does."""

    def __init__(self, served: Served, key: str, customer: str, event_name: str) -> None:
        self.served, self.key = served, key
        self.customer, self.event_name = customer, event_name
        self.meter: Json = {}

    async def send(self, method: str, path: str, body: object = None, **query: Any) -> Json:
        """The body of a request that succeeds; the client says its mode with every call."""
        given = {} if body is None else {"json": body}
        mode = {"livemode": "true"} if path.startswith("/api/") else {}
        answer = await self.served.ask(method, path, key=self.key, query=mode | query, **given)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def refused(
        self, method: str, path: str, body: object = None, key: str | None = None, **query: Any
    ) -> Failure:
        """How a request is refused."""
        given = {} if body is None else {"json": body}
        answer = await self.served.ask(method, path, key=key or self.key, query=query, **given)
        return failure(answer)

    def event(self, value: str, identifier: str = "evt_1", **fields: Any) -> Json:
        """An event of the meter."""
        payload = {"customer_id": self.customer, "value": value} | fields.pop("payload", {})
        named = {"event_name": self.event_name, "payload": payload, "identifier": identifier}
        return {**named, **fields}

    async def report(self, value: str, identifier: str = "evt_1", **fields: Any) -> Json:
        """Report it."""
        return await self.send("POST", EVENTS, self.event(value, identifier, **fields))

    async def owed(self, *identifiers: str) -> list[str]:
        """What these events are owed."""
        found = await self.send("GET", EVENTS, customer_id=self.customer, pageSize=100)
        pending = {one["identifier"]: one["credit_pending"] for one in found["list"]}
        return [pending[one] for one in identifiers]

    async def wallet(self) -> Json:
        """The customer's wallet in CREDIT."""
        found = await self.send_plain("/v1/wallets", customer_id=self.customer)
        (one,) = found["wallets"]
        wallet: Json = one
        return wallet

    async def rows(self) -> list[Json]:
        """The customer's credit transactions, newest first."""
        found = await self.send("GET", TRANSACTIONS, customer_id=self.customer)
        rows: list[Json] = found["list"]
        return rows

    async def send_plain(self, path: str, **query: Any) -> Json:
        """The body of a GET."""
        return await self.served.body(path, self.key, **query)

    async def post(self, posting: Json, wallet_id: str | None = None) -> Json:
        """A posting on the customer's wallet."""
        (made,) = await self.served.post(wallet_id or (await self.wallet())["id"], posting)
        return made


async def test_what_the_vendor_publishes_and_is_not_served(kit: Kit) -> None:
    """`decimal` of a meter and `source_data` of an event are dropped; what is near is refused."""
    names = {"name": "Pages", "unit": "page", "event_name": f"{kit.event_name}-pages"}
    shown = [{"key": "page", "value": "7", "type": "simple", "label": {"text": "Page"}}]

    meter = await kit.send("POST", METERS, {**names, "decimal": 10})
    event = await kit.report("1", source_data=shown, metadata={"page": 7})

    assert (meter["event_name"], "decimal" in meter) == (names["event_name"], False)
    assert (event["metadata"], "source_data" in event) == ({"page": "7"}, False)
    for path, body, name in [
        (METERS, {**names, "decimals": 10}, "decimals"),
        (METERS, {**names, "source_data": shown}, "source_data"),
        (EVENTS, kit.event("1", decimal=1), "decimal"),
        (EVENTS, kit.event("1", payload={"source_data": shown}), "payload.source_data"),
    ]:
        assert await kit.refused("POST", path, body) == Failure(400, "UNKNOWN_PARAMETER", name)


def paid(event: Json) -> tuple[str, str, str]:
    """How far an event is paid."""
    return event["status"], event["credit_consumed"], event["credit_pending"]


async def test_a_meter(kit: Kit) -> None:
    """It is made once, found by id and event, changed, and listed newest first."""
    made = kit.meter
    assert made == {
        "id": made["id"],
        "object": "meter",
        "name": "Calls",
        "event_name": kit.event_name,
        "aggregation_method": "sum",
        "status": "active",
        "unit": "call",
        "currency_id": "CREDIT",
        "livemode": True,
        "metadata": {},
        "created_at": time.text(NOW),
        "updated_at": time.text(NOW),
        "paymentCurrency": {
            "id": "CREDIT",
            "name": made["paymentCurrency"]["name"],
            "symbol": "CREDIT",
            "decimal": 6,
            "type": "credit",
        },
        "created_via": "api",
    }
    again = {"name": "Calls", "event_name": kit.event_name, "unit": "call"}
    assert await kit.send("POST", METERS, again) == made
    assert await kit.refused("POST", METERS, {**again, "unit": "token"}) == Failure(
        409, "ID_TAKEN", "event_name"
    )
    assert await kit.send("GET", f"{METERS}/{made['id']}") == made
    assert await kit.send("GET", f"{METERS}/{kit.event_name}") == made

    kit.served.clock.advance(time.SECOND)
    changes = {"name": "All calls", "description": "of the API", "metadata": {"team": "red"}}
    changed = await kit.send("PUT", f"{METERS}/{made['id']}", changes)
    updated_at = time.text(NOW + time.SECOND)
    assert changed == {**made, **changes, "updated_at": updated_at}
    newer = {"name": "Images", "event_name": f"images {kit.event_name}", "unit": "image"}
    other = await kit.send("POST", METERS, newer)
    found = await kit.send("GET", METERS, q=kit.event_name.upper(), limit=1)
    assert found == {"count": 2, "list": [other], "paging": {"page": 1, "pageSize": 1}}
    found = await kit.send("GET", METERS, q=kit.event_name, page=2, pageSize=1)
    assert found["list"] == [changed]
    found = await kit.send("GET", METERS, event_name=kit.event_name)
    assert (found["count"], found["list"]) == (1, [changed])


async def test_an_inactive_meter_counts_nothing_new(kit: Kit) -> None:
    """Neither events nor consumptions nor holds; what it counted is still answered."""
    await kit.report("1")
    meter_id = kit.meter["id"]
    off = await kit.send("PUT", f"{METERS}/{meter_id}/deactivate")
    assert off["status"] == "inactive"

    refused = Failure(400, "METER_INACTIVE", "event_name")
    assert await kit.refused("POST", EVENTS, kit.event("1", "evt_2")) == refused
    wallet = await kit.wallet()
    spend = {"amount": "1", "meter_id": meter_id}
    (result,) = await kit.served.results(wallet["id"], {"consumption": spend})
    assert result["error"]["code"] == "METER_INACTIVE"
    hold = {"idempotency_key": "h", **spend}
    holding = f"/v1/wallets/{wallet['id']}/holds"
    assert await kit.refused("POST", holding, hold) == Failure(400, "METER_INACTIVE", "meter_id")
    assert (await kit.report("1"))["identifier"] == "evt_1"

    on = await kit.send("PUT", f"{METERS}/{meter_id}/activate")
    assert on["status"] == "active"
    await kit.report("1", "evt_2")
    off = await kit.send("PUT", f"{METERS}/{meter_id}", {"status": "inactive"})
    assert off["status"] == "inactive"


async def test_a_test_key_stops_no_meter_of_live_charging(kit: Kit) -> None:
    """Meters are of both modes: a test key makes one, but no change of one; live events go on."""
    test = await kit.served.key("service", livemode=False)
    meter = f"{METERS}/{kit.meter['id']}"
    for method, path, body in (
        ("PUT", f"{meter}/deactivate", None),
        ("PUT", f"{meter}/activate", None),
        ("PUT", meter, {"status": "inactive"}),
        ("PUT", f"{METERS}/mtr_none", {"name": "None"}),
    ):
        assert await kit.refused(method, path, body, key=test) == Failure(403, "MODE_MISMATCH")
    made = {"name": "New", "event_name": f"new {kit.event_name}", "unit": "call"}
    answer = await kit.served.ask("POST", METERS, key=test, json=made)

    assert (answer.status_code, answer.json()["status"]) == (200, "active")
    assert await kit.send("GET", meter) == kit.meter
    assert (await kit.report("1"))["status"] == "requires_capture"


async def test_an_event_is_paid_as_far_as_there_is_credit(kit: Kit) -> None:
    """The wallet is made for it; the rest is in no balance, and a grant pays it in its commit."""
    first = await kit.report(
        "3", timestamp=SECOND - 60, metadata={"model": "chat"}, payload={"value": "3.000"}
    )
    wallet = await kit.wallet()
    assert first == {
        "id": first["id"],
        "object": "meter_event",
        "event_name": kit.event_name,
        "payload": {"customer_id": kit.customer, "value": "3.00"},
        "identifier": "evt_1",
        "timestamp": SECOND - 60,
        "status": "requires_capture",
        "credit_consumed": "0.00",
        "credit_pending": "3.00",
        "livemode": True,
        "metadata": {"model": "chat"},
        "created_at": time.text(NOW),
        "updated_at": time.text(NOW),
        "meter_id": kit.meter["id"],
        "wallet_id": wallet["id"],
        "posting_id": first["posting_id"],
        "customer": {"id": kit.customer, "name": "Acme", "email": "a@example.com"},
        "meter": {
            "id": kit.meter["id"],
            "name": "Calls",
            "event_name": kit.event_name,
            "unit": "call",
        },
        "paymentCurrency": kit.meter["paymentCurrency"],
        "created_via": "api",
    }
    assert (wallet["balance"], wallet["available"], wallet["overdraft_used"]) == ("0.00",) * 3
    assert wallet["currency"] == "CREDIT"

    kit.served.clock.advance(time.MINUTE)
    given = await kit.post({"grant": {"amount": "10"}})
    assert [one["amount"] for one in given["transactions"]] == ["10.00"]
    assert given["wallet"]["balance"] == "7.00"
    after = await kit.send("GET", f"{EVENTS}/{first['id']}")
    assert paid(after) == ("completed", "3.00", "0.00")
    assert after["processed_at"] == SECOND + 60
    assert after["updated_at"] == time.text(NOW + time.MINUTE)
    rows = (await kit.send("GET", TRANSACTIONS, customer_id=kit.customer))["list"]
    (row,) = [one for one in rows if one["type"] == "consumption"]
    assert (row["amount"], row["kind"], row["meter_event_id"]) == ("-3.00", "usage", "evt_1")
    assert row["meter_id"] == kit.meter["id"]
    assert (row["meter_event_name"], row["meter_unit"]) == (kit.event_name, "call")
    assert row["paymentCurrency"] == kit.meter["paymentCurrency"]
    # What is not shown of the event beside a row.
    beside = {"metadata", "meter_id", "wallet_id", "posting_id", "customer", "meter",
              "paymentCurrency", "created_via"}  # fmt: skip
    shown = {name: value for name, value in after.items() if name not in beside}
    assert row["meterEvent"] == shown
    assert [one.get("meterEvent") for one in rows if one["type"] == "grant"] == [None]

    second = await kit.report("4", "evt_2")
    assert paid(second) == ("completed", "4.00", "0.00")
    third = await kit.report("5", "evt_3")
    assert paid(third) == ("requires_capture", "3.00", "2.00")
    summary = await kit.send("GET", SUMMARY, customer_id=kit.customer, meter_id=kit.meter["id"])
    assert (summary["total_credit_amount"], summary["transaction_count"]) == ("-10.00", 3)


async def test_rows_name_the_event_they_are_of(kit: Kit) -> None:
    """What reports, pays or cancels an event shows it as it is now; a caller's word names none."""
    made = await kit.report("3", "evt_row")
    await kit.post({"grant": {"amount": "2"}})
    (paying,) = [one for one in await kit.rows() if one["type"] == "consumption"]
    assert paid(paying["meterEvent"]) == ("requires_capture", "2.00", "1.00")

    await kit.post({"grant": {"amount": "10"}})
    await kit.post({"consumption": {"amount": "1", "meter_event_id": "evt_row"}})
    await kit.send("POST", f"{EVENTS}/{made['id']}:cancel", {})
    rows = await kit.rows()
    of_it = [one for one in rows if "meterEvent" in one]
    assert sorted((one["kind"], one["amount"]) for one in of_it) == [
        *(("refund", "1.00"), ("refund", "2.00"), ("usage", "-1.00"), ("usage", "-2.00")),
    ]
    assert {one["meterEvent"]["id"] for one in of_it} == {made["id"]}
    assert {paid(one["meterEvent"]) for one in of_it} == {("canceled", "0.00", "0.00")}
    assert {one["meterEvent"]["event_name"] for one in of_it} == {kit.event_name}
    assert all("meter" not in one for one in of_it if one["kind"] == "refund")
    (own,) = [one for one in rows if one["kind"] == "usage" and one not in of_it]
    assert own["meter_event_id"] == "evt_row"


async def test_the_oldest_is_paid_first(kit: Kit) -> None:
    """By grants, credits and refunds alike, until they are used up."""
    for identifier, value in (("a", "3"), ("b", "2"), ("c", "4")):
        await kit.report(value, identifier)
    assert await kit.owed("a", "b", "c") == ["3.00", "2.00", "4.00"]
    assert await kit.send("GET", f"{EVENTS}/pending-amount", customer_id=kit.customer) == {
        "CREDIT": "9.00"
    }

    await kit.post({"grant": {"amount": "4"}})
    assert await kit.owed("a", "b", "c") == ["0.00", "1.00", "4.00"]
    await kit.post({"adjustment": {"amount": "2"}})
    assert await kit.owed("a", "b", "c") == ["0.00", "0.00", "3.00"]
    first = await kit.post({"grant": {"amount": "3.5"}})
    assert first["wallet"]["available"] == "0.50"
    assert await kit.send("GET", f"{EVENTS}/pending-amount", customer_id=kit.customer) == {}

    spent = await kit.post({"consumption": {"amount": "0.5"}})
    await kit.report("0.75", "d")
    returned = await kit.post({"refund": {"posting_id": spent["posting_id"]}})
    assert returned["wallet"]["balance"] == "0.00"
    assert await kit.owed("d") == ["0.25"]


async def test_a_grant_for_the_meter_pays_its_events(kit: Kit) -> None:
    """Those of another meter get nothing of it, and the younger do not wait for the older."""
    other = await kit.send(
        "POST", METERS, {"name": "Films", "event_name": f"{kit.event_name} film", "unit": "film"}
    )
    film = {"event_name": other["event_name"]}
    await kit.report("2", "film", **film)
    await kit.report("3", "call")
    given = await kit.post({"grant": {"amount": "4", "scope": {"meter_ids": [kit.meter["id"]]}}})
    assert await kit.owed("film", "call") == ["2.00", "0.00"]
    assert (given["wallet"]["scoped"], given["wallet"]["available"]) == ("1.00", "0.00")

    assert paid(await kit.report("0.25", "again")) == ("completed", "0.25", "0.00")
    assert (await kit.report("1", "film 2", **film))["credit_pending"] == "1.00"
    await kit.post({"grant": {"amount": "2.5"}})
    assert await kit.owed("film", "film 2") == ["0.00", "0.50"]


async def test_overdraft_comes_before_what_is_owed(kit: Kit) -> None:
    """An event uses what may be overdrawn; a grant pays that back first, and no event by it."""
    await kit.report("1")
    wallet = await kit.wallet()
    await kit.post({"grant": {"amount": "2"}})
    await kit.served.wallets.UpdateWallet(
        wallets_pb.UpdateWalletRequest(wallet_id=wallet["id"], overdraft_limit="5")
    )
    over = await kit.report("9", "evt_2")
    assert paid(over) == ("requires_capture", "6.00", "3.00")
    assert (await kit.wallet())["overdraft_used"] == "5.00"

    await kit.post({"grant": {"amount": "6"}})
    now = await kit.wallet()
    assert (now["balance"], now["overdraft_used"]) == ("0.00", "0.00")
    assert await kit.owed("evt_2") == ["2.00"]


async def test_credit_that_begins_later_pays_with_the_next_posting(kit: Kit) -> None:
    """Until somebody posts it can be spent; a hold that is given back pays at once."""
    await kit.report("5")
    begins = NOW + time.HOUR
    await kit.post({"grant": {"amount": "8", "effective_at": time.text(begins)}})
    assert await kit.owed("evt_1") == ["5.00"]
    kit.served.clock.now = begins
    assert (await kit.wallet())["available"] == "8.00"

    wallet = await kit.wallet()
    hold = {"idempotency_key": "h", "amount": "7"}
    held = await kit.send("POST", f"/v1/wallets/{wallet['id']}/holds", hold)
    assert held["wallet"]["available"] == "0.00"
    assert await kit.owed("evt_1") == ["4.00"]
    release = {"idempotency_key": "r"}
    given_back = await kit.send("POST", f"/v1/holds/{held['hold']['id']}:release", release)
    assert given_back["wallet"]["available"] == "3.00"
    assert await kit.owed("evt_1") == ["0.00"]


async def test_a_frozen_wallet_pays_nothing(kit: Kit) -> None:
    """It takes no event, and its credit waits until it is active again."""
    await kit.report("5")
    wallet = await kit.wallet()

    async def status(word: str) -> None:
        request = wallets_pb.UpdateWalletRequest(wallet_id=wallet["id"], status=word)
        await kit.served.wallets.UpdateWallet(request)

    await status("frozen")
    await kit.post({"grant": {"amount": "5"}})
    assert await kit.owed("evt_1") == ["5.00"]
    assert await kit.refused("POST", EVENTS, kit.event("1", "evt_2")) == Failure(
        400, "WALLET_FROZEN"
    )
    await status("active")
    assert await kit.owed("evt_1") == ["0.00"]


async def test_an_identifier_is_one_event(kit: Kit) -> None:
    """Of many reports at once one counts; another request under it is a conflict by name."""
    answers = await asyncio.gather(*[kit.report("2", timestamp=SECOND) for _ in range(20)])
    assert [one["id"] for one in answers] == [answers[0]["id"]] * 20
    assert await kit.send("GET", f"{EVENTS}/pending-amount", customer_id=kit.customer) == {
        "CREDIT": "2.00"
    }
    taken = Failure(409, "IDEMPOTENCY_KEY_REUSED", "identifier")
    for other in (
        kit.event("3", timestamp=SECOND),
        kit.event("2", timestamp=SECOND - 1),
        kit.event("2", timestamp=SECOND, metadata={"a": "b"}),
    ):
        assert await kit.refused("POST", EVENTS, other) == taken
    # It is a key of the wallet's postings like any other.
    wallet = await kit.wallet()
    posted = await kit.send_plain(f"/v1/wallets/{wallet['id']}/postings", idempotency_key="evt_1")
    assert posted["posting_id"] == answers[0]["posting_id"]
    await kit.post({"grant": {"amount": "2"}})
    assert paid(await kit.report("2", timestamp=SECOND)) == ("completed", "2.00", "0.00")


async def test_what_was_paid_can_be_refunded(kit: Kit) -> None:
    """What an event drew when it was reported is a consumption like any other."""
    await kit.report("1", "first")
    await kit.post({"grant": {"amount": "5"}})
    made = await kit.report("4", "second")
    refund = {"refund": {"posting_id": made["posting_id"], "amount": "1.5"}}
    assert (await kit.post(refund))["wallet"]["balance"] == "1.50"


async def test_lists_and_sums_of_events(kit: Kit) -> None:
    """Filters are joined; sums by minute, hour and day are those of the events in them."""
    plan = await kit.served.subscription(kit.customer)
    for n, seconds in enumerate((0, 59, 60, 3600, 90_000)):
        payload = {"subscription_id": plan} if n == 3 else {}
        stamp = SECOND - 2 * 86_400 + seconds
        await kit.report(str(n + 1), f"evt_{n}", timestamp=stamp, payload=payload)
        kit.served.clock.advance(time.SECOND)
    begins = NOW - 2 * time.DAY

    async def identifiers(**query: Any) -> list[str]:
        found = await kit.send("GET", EVENTS, **query)
        return [one["identifier"] for one in found["list"]]

    mine = {"customer_id": kit.customer}
    assert await identifiers(**mine) == ["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"]
    assert await identifiers(**mine, page=2, limit=2) == ["evt_2", "evt_1"]
    assert await identifiers(meter_id=kit.meter["id"], q="EVT_3") == ["evt_3"]
    assert await identifiers(event_name=kit.event_name, start=SECOND + 1, end=SECOND + 2) == [
        *("evt_2", "evt_1"),
    ]
    assert await identifiers(meter_id="mtr_none") == []

    async def sums(granularity: str) -> list[tuple[str, int, str]]:
        window = {"start": SECOND - 2 * 86_400, "end": SECOND}
        found = await kit.send(
            "GET", f"{EVENTS}/stats", meter_id=kit.meter["id"], granularity=granularity, **window
        )
        assert found["count"] == len(found["list"])
        return [(one["date"], one["event_count"], one["total_value"]) for one in found["list"]]

    day, later = time.text(begins)[:10], time.text(begins + time.DAY + time.HOUR)[:10]
    assert await sums("day") == [(day, 4, "10.00"), (later, 1, "5.00")]
    minutes = [time.text(begins + ms)[:16] for ms in (0, 60_000, time.HOUR, 90_000_000)]
    # START is 20 s into its minute: the second event is in the next one.
    assert await sums("minute") == [
        *((minutes[0], 1, "1.00"), (minutes[1], 2, "5.00")),
        *((minutes[2], 1, "4.00"), (minutes[3], 1, "5.00")),
    ]
    assert len(await sums("hour")) == 3
    pending = f"{EVENTS}/pending-amount"
    assert await kit.send("GET", pending, subscription_id=plan) == {"CREDIT": "4.00"}
    assert await kit.send("GET", pending, customer_id=kit.customer, currency_id="USD") == {}


async def test_who_may(kit: Kit) -> None:
    """A customer sees its own events and may report none; a mode is a wall."""
    made = await kit.report("2")
    own = await kit.served.key("customer", kit.customer)
    other = await kit.served.key("customer", await kit.served.customer())
    test = await kit.served.key("service", livemode=False)
    path = f"{EVENTS}/{made['id']}"

    assert (await kit.served.body(path, own)) == made
    assert (await kit.served.body(EVENTS, own))["count"] == 1
    assert (await kit.served.body(EVENTS, other))["count"] == 0
    assert await kit.served.body(f"{EVENTS}/pending-amount", own) == {"CREDIT": "2.00"}
    unseen = Failure(404, "NOT_FOUND", "id")
    assert await kit.refused("GET", path, key=other) == unseen
    assert await kit.refused("GET", path, key=test) == unseen
    assert await kit.refused("GET", path, key=test, livemode="true") == Failure(
        403, "MODE_MISMATCH", "livemode"
    )
    assert await kit.refused("GET", EVENTS, key=other, customer_id=kit.customer) == Failure(
        404, "NOT_FOUND", "customer_id"
    )
    for method, path, body in (
        ("POST", EVENTS, kit.event("1", "mine")),
        ("POST", METERS, {"name": "a", "event_name": "b", "unit": "c"}),
        ("PUT", f"{METERS}/{kit.meter['id']}/deactivate", None),
    ):
        assert await kit.refused(method, path, body, key=own) == Failure(403, "SCOPE_DENIED")


async def test_what_cannot_be_asked(kit: Kit) -> None:
    """Each is named by its field, and changes nothing."""
    bare = await kit.served.meter(event_name=f"bare {kit.event_name}")
    assert bare
    await kit.report("1", "there is a wallet")
    before = kit.served.row_counts()
    good = kit.event("1")
    payload = good["payload"]
    for method, path, body, query, expected in (
        ("POST", EVENTS, {**good, "event_name": "none"}, {}, (404, "NOT_FOUND", "event_name")),
        ("POST", EVENTS, {**good, "event_name": f"bare {kit.event_name}"}, {},
         (400, "INVALID_FIELD", "event_name")),
        ("POST", EVENTS, {**good, "event_name": ""}, {}, (400, "MISSING_FIELD", "event_name")),
        ("POST", EVENTS, {**good, "identifier": ""}, {}, (400, "MISSING_FIELD", "identifier")),
        ("POST", EVENTS, {**good, "identifier": "ä"}, {}, (400, "INVALID_FIELD", "identifier")),
        ("POST", EVENTS, {**good, "timestamp": SECOND + 61}, {},
         (400, "INVALID_FIELD", "timestamp")),
        ("POST", EVENTS, {**good, "timestamp": SECOND - 36 * 86_400}, {},
         (400, "INVALID_FIELD", "timestamp")),
        ("POST", EVENTS, {"event_name": kit.event_name, "identifier": "a"}, {},
         (400, "MISSING_FIELD", "payload")),
        ("POST", EVENTS, {**good, "payload": {**payload, "value": "0"}}, {},
         (400, "INVALID_FIELD", "payload.value")),
        ("POST", EVENTS, {**good, "payload": {**payload, "value": "0.0000001"}}, {},
         (400, "INVALID_FIELD", "payload.value")),
        ("POST", EVENTS, {**good, "payload": {**payload, "customer_id": "cus_none"}}, {},
         (404, "NOT_FOUND", "payload.customer_id")),
        ("POST", EVENTS, good, {"livemode": "false"}, (403, "MODE_MISMATCH", "livemode")),
        ("GET", f"{EVENTS}/me_1", None, {}, (400, "INVALID_FIELD", "id")),
        ("GET", f"{EVENTS}/me_{'0' * 26}", None, {}, (404, "NOT_FOUND", "id")),
        ("GET", EVENTS, None, {"q": "a"}, (400, "QUERY_TOO_BROAD", "q")),
        ("GET", EVENTS, None, {"page": 0}, (400, "INVALID_FIELD", "page")),
        ("GET", EVENTS, None, {"page": 5_002}, (400, "INVALID_FIELD", "page")),
        ("GET", EVENTS, None, {"pageSize": 101}, (400, "INVALID_FIELD", "pageSize")),
        ("GET", EVENTS, None, {"pageSize": 1, "limit": 2}, (400, "INVALID_FIELD", "limit")),
        ("GET", EVENTS, None, {"start": 2, "end": 1}, (400, "INVALID_FIELD", "start")),
        ("GET", EVENTS, None, {"customer": "x"}, (400, "UNKNOWN_PARAMETER", "customer")),
        ("GET", f"{EVENTS}/stats", None, {"meter_id": kit.meter["id"], "start": 1},
         (400, "MISSING_FIELD", "end")),
        ("GET", f"{EVENTS}/stats", None, {"meter_id": "mtr_none", "start": 1, "end": 2},
         (404, "NOT_FOUND", "meter_id")),
        ("GET", f"{EVENTS}/stats", None,
         {"meter_id": kit.meter["id"], "start": 1, "end": 10**6, "granularity": "minute"},
         (400, "INVALID_FIELD", "granularity")),
        ("GET", f"{EVENTS}/pending-amount", None, {}, (400, "MISSING_FIELD", "customer_id")),
        ("GET", f"{METERS}/mtr_none", None, {}, (404, "NOT_FOUND", "id")),
        ("PUT", f"{METERS}/mtr_none/activate", None, {}, (404, "NOT_FOUND", "id")),
        ("PUT", f"{METERS}/{kit.meter['id']}", {"status": "off"}, {},
         (400, "INVALID_FIELD", "status")),
        ("POST", METERS, {"name": "a", "event_name": "b"}, {}, (400, "MISSING_FIELD", "unit")),
        ("POST", METERS, {"name": "a", "event_name": "b", "unit": "c", "currency_id": "XXX"}, {},
         (404, "NOT_FOUND", "currency_id")),
        ("POST", METERS,
         {"name": "a", "event_name": "b", "unit": "c", "aggregation_method": "last"}, {},
         (400, "INVALID_FIELD", "aggregation_method")),
    ):  # fmt: skip
        found = await kit.refused(method, path, body, **query)
        assert found == Failure(*expected), (path, body, query)
    assert kit.served.row_counts() == before


async def test_unpaid_events_are_bounded(kit: Kit) -> None:
    """The one too many is refused by name; one grant pays all that there are."""
    await kit.report("1", "evt 0")
    calls = [kit.report("1", f"evt {n}") for n in range(1, UNPAID_EVENTS_MAX)]
    for first in range(0, len(calls), 10):
        await asyncio.gather(*calls[first : first + 10])
    assert await kit.refused("POST", EVENTS, kit.event("1", "more")) == Failure(400, "OUT_OF_RANGE")

    given = await kit.post({"grant": {"amount": str(UNPAID_EVENTS_MAX + 2)}})
    assert given["wallet"]["balance"] == "2.00"
    assert paid(await kit.report("1", "more")) == ("completed", "1.00", "0.00")
