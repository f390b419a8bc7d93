"""A customer's wallets in one currency and mode, one after the other: a closed one bars no next.

Writes that name a customer go to the wallet that is not closed; what speaks of "me", bills and
usage are of all of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import IntegrityError

from creditledger.domain import clock as time
from creditledger.store import CannotOpen, schema
from creditledger.store.registry import records
from tests.support.rest import (
    ACCOUNT,
    BALANCE,
    BILLING,
    BILLS,
    USAGE,
    Failure,
    Json,
    failure,
)
from tests.support.setup import change, look

if TYPE_CHECKING:
    import httpx

    from tests.support.rest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

METER_EVENTS = "/api/meter-events"
GRANTS = "/api/credit-grants"


async def close(served: Served, wallet_id: str, **given: Any) -> httpx.Response:
    """Ask for the wallet to be closed."""
    admin = await served.key("admin")
    body = {"status": "closed", **given}
    return await served.ask("PATCH", f"/v1/wallets/{wallet_id}", key=admin, json=body)


async def create(served: Served, customer: str, **given: Any) -> httpx.Response:
    """Ask for a wallet in USD."""
    body = {"customer_id": customer, "currency": "USD", **given}
    return await served.ask("POST", "/v1/wallets", key=await served.key("admin"), json=body)


async def used_up(served: Served, customer: str, amount: str, **given: Any) -> str:
    """A closed wallet in which so much was topped up and spent."""
    wallet_id = await served.wallet(customer, **given)
    usage = {"product_id": "prd_1", "product_name": "Model", "quantities": ["10"]}
    await served.post(
        wallet_id,
        {"grant": {"amount": amount}, "note": f"topup {wallet_id}"},
        {"consumption": {"amount": amount, "usage": usage}},
    )
    answer = await close(served, wallet_id)
    assert answer.status_code == 200, answer.text
    return wallet_id


async def test_a_closed_wallet_bars_no_new_one(served: Served) -> None:
    """A create makes the next wallet; with the id of a closed one it answers that."""
    customer = await served.customer()
    first = await used_up(served, customer, "1", metadata={"team": "red"})

    made = await create(served, customer)
    again = await create(served, customer)
    other = await create(served, customer, id="wal_another")
    named = await create(served, customer, id=first, metadata={"team": "red"})
    differs = await create(served, customer, id=first)

    assert (made.status_code, made.json()["status"]) == (200, "active")
    assert made.json()["id"] != first
    assert again.json() == made.json()
    assert failure(other) == Failure(409, "ID_TAKEN", "id")
    assert (named.json()["id"], named.json()["status"]) == (first, "closed")
    assert failure(differs) == Failure(409, "ID_TAKEN", "id")
    listed = await served.body("/v1/wallets", await served.key("service"), customer_id=customer)
    assert {one["id"]: one["status"] for one in listed["wallets"]} == {
        first: "closed",
        made.json()["id"]: "active",
    }


async def test_of_many_creates_at_once_one_makes_the_next_wallet(served: Served) -> None:
    """However many ask at the same time after a closing, at most one wallet is not closed."""
    customer = await served.customer()
    await used_up(served, customer, "1")
    admin = await served.key("admin")
    body = {"customer_id": customer, "currency": "USD"}

    answers = await asyncio.gather(
        *(served.ask("POST", "/v1/wallets", key=admin, json=body) for _ in range(8))
    )

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_reads_of_me_cover_closed_wallets(served: Served) -> None:
    """History, usage, lifetime sums, keys and bills cover closed wallets, and ids go on."""
    customer = await served.customer()
    me = await served.key("customer", customer)
    await used_up(served, customer, "1")
    served.clock.advance(time.MINUTE)
    await used_up(served, customer, "2")
    served.clock.advance(time.MINUTE)
    last = await served.wallet(customer)
    usage = {"product_id": "prd_1", "product_name": "Model", "quantities": ["10"]}
    await served.post(
        last,
        {"grant": {"amount": "4"}, "note": "third"},
        {"consumption": {"amount": "3", "usage": usage}},
    )

    history = await served.body(BILLING, me, kind="usage")
    topups = await served.body(BILLING, me)
    pages = [
        item["id"]
        for page in range(1, 5)
        for item in (await served.body(BILLING, me, page=page, page_size=1))["items"]
    ]
    export = await served.get(f"{BILLING}.csv", me)
    account = await served.body(ACCOUNT, me)
    balance = await served.body(BALANCE, me)
    used = await served.body(USAGE, me, group_by="model")
    now = served.clock.now // time.SECOND
    bills = await served.body(
        BILLS, me, cycleType="Day", startTime=now - 86_400, endTime=now + 86_400
    )

    assert [(one["id"], one["amount_usd"]) for one in history["items"]] == [
        (6, -3),
        (4, -2),
        (2, -1),
    ]
    assert [(one["id"], one["amount_usd"]) for one in topups["items"]] == [(5, 4), (3, 2), (1, 1)]
    assert (topups["total"], history["total"], pages) == (3, 3, [5, 3, 1])
    lines = [line.split(",")[0] for line in export.text.splitlines()]
    assert lines[:4] == ["id", "1", "3", "5"]
    shown = account["balance"]
    assert (shown["available_usd"], shown["lifetime_topup_usd"]) == (1, 7)
    assert shown["lifetime_spent_usd"] == 6
    assert (balance["balance"]["available_usd"], balance["totals"]["total_usd"]) == (1, 6)
    assert [(one["model"], one["total_usd"]) for one in used["buckets"]] == [("prd_1", 6)]
    assert used["totals"]["call_count"] == 3
    (bill,) = bills["bills"]
    assert (bill["amount"], bill["billNum0"]) == ("60000", "30")


async def test_history_that_is_all_closed_stays(served: Served) -> None:
    """Without an open wallet "me" shows nothing to spend and all that was spent."""
    customer = await served.customer()
    me = await served.key("customer", customer)
    await used_up(served, customer, "1")

    account = (await served.body(ACCOUNT, me))["balance"]
    history = await served.body(BILLING, me)

    assert (account["available_usd"], account["lifetime_topup_usd"]) == (0, 1)
    assert account["lifetime_spent_usd"] == 1
    assert [one["id"] for one in history["items"]] == [1]


async def test_ids_are_those_of_before_with_one_more_wallet(served: Served) -> None:
    """Pages of a client keep their ids when a wallet is closed and the next one made."""
    customer = await served.customer()
    me = await served.key("customer", customer)
    first = await used_up(served, customer, "1")
    before = await served.body(BILLING, me)
    next_one = await served.wallet(customer)
    await served.post(next_one, {"grant": {"amount": "5"}})

    after = await served.body(BILLING, me)

    assert after["items"][1:] == before["items"]
    assert after["items"][0]["id"] == 3
    rows = await served.body(
        "/api/credit-transactions", me, pageSize=10
    )  # their sequences count in each wallet
    assert [(one["wallet_id"], one["sequence"]) for one in rows["list"]] == [
        (next_one, "1"),
        (first, "2"),
        (first, "1"),
    ]


async def kit(served: Served) -> Json:
    """A meter that costs CREDIT, and its customer."""
    event_name = f"calls {served.number()}"
    await served.meter(event_name=event_name, currency_id="CREDIT")
    return {"event_name": event_name, "customer": await served.customer()}


def event(kit: Json, identifier: str, value: str = "1") -> Json:
    """An event of the meter."""
    payload = {"customer_id": kit["customer"], "value": value}
    return {"event_name": kit["event_name"], "payload": payload, "identifier": identifier}


async def test_writes_that_name_a_customer_go_to_the_open_wallet(served: Served) -> None:
    """Events and grants make the next wallet where the last one is closed, and then use it."""
    known = await kit(served)
    service = await served.key("service")
    given = {"amount": "1", "currency_id": "CREDIT", "customer_id": known["customer"]}
    given["category"] = "paid"

    async def send(path: str, body: Json, **headers: str) -> httpx.Response:
        return await served.ask("POST", path, key=service, json=body, headers=headers)

    async def wallets() -> dict[str, str]:
        listed = await served.body("/v1/wallets", service, customer_id=known["customer"])
        return {one["id"]: one["status"] for one in listed["wallets"]}

    granted = await send(GRANTS, given, **{"Idempotency-Key": "first"})
    paid = await send(METER_EVENTS, event(known, "evt_1"))
    (first,) = await wallets()
    assert (await close(served, first)).status_code == 200
    counts = served.row_counts()
    replays = [
        await send(METER_EVENTS, event(known, "evt_1")),
        await send(GRANTS, given, **{"Idempotency-Key": "first"}),
    ]
    assert served.row_counts() == counts
    reused = await send(METER_EVENTS, event(known, "evt_1", "2"))
    owed = await send(METER_EVENTS, event(known, "evt_2"))
    newer = await send(GRANTS, given, **{"Idempotency-Key": "second"})

    assert (granted.status_code, paid.json()["status"]) == (200, "completed")
    assert [one.json()["id"] for one in replays] == [paid.json()["id"], granted.json()["id"]]
    assert failure(reused) == Failure(409, "IDEMPOTENCY_KEY_REUSED", "identifier")
    assert owed.json()["status"] == "requires_capture"
    assert newer.status_code == 200
    found = await wallets()
    assert (len(found), found.pop(first), *found.values()) == (2, "closed", "active")
    paid_later = await served.body(f"{METER_EVENTS}/{owed.json()['id']}", service)
    assert paid_later["status"] == "completed"
    summary = await served.body(f"{GRANTS}/summary", service, customer_id=known["customer"])
    assert summary == {}


async def test_what_is_owed_keeps_a_wallet_open(served: Served) -> None:
    """A wallet closes only when its meter events are paid."""
    known = await kit(served)
    service = await served.key("service")
    answer = await served.ask("POST", METER_EVENTS, key=service, json=event(known, "evt_1"))
    assert answer.json()["status"] == "requires_capture"
    listed = await served.body("/v1/wallets", service, customer_id=known["customer"])
    (wallet,) = listed["wallets"]

    refused = await close(served, wallet["id"])
    await served.post(wallet["id"], {"grant": {"amount": "1"}})
    closed = await close(served, wallet["id"])

    assert failure(refused) == Failure(400, "INVALID_FIELD", "status")
    assert (closed.status_code, closed.json()["status"]) == (200, "closed")


async def test_the_table_of_wallets_says_which_are_closed(served: Served) -> None:
    """When it was closed stands beside what never changes, and the database refuses a second one
    that is open."""
    customer = await served.customer()
    first = await used_up(served, customer, "1")
    second = await served.wallet(customer)
    w = schema.wallets.c

    rows = look(served.database_url, lambda c: c.execute(schema.wallets.select()).all())
    at = {row.id: (row.closed_at, row.rows_before) for row in rows}

    assert at[first] == (served.clock.now, 0)
    assert at[second] == (None, 2)
    with pytest.raises((IntegrityError, CannotOpen)):
        change(
            served.database_url,
            lambda c: c.execute(
                schema.wallets.update().where(w.id == first).values(closed_at=None)
            ),
        )


async def test_a_customer_has_so_many_wallets_and_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wallets of one currency and mode are bounded, and so is what reads all of them."""
    monkeypatch.setattr(records, "SUCCESSIVE_MAX", 2)
    customer = await served.customer()
    await used_up(served, customer, "1")
    await used_up(served, customer, "1")

    assert failure(await create(served, customer)) == Failure(400, "OUT_OF_RANGE", "customer_id")
