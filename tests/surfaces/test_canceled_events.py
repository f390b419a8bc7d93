"""Meter events that are taken back: nothing of them stays unpaid, and what they drew comes back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from creditledger.domain import clock as time
from creditledger.domain.commands import RETURN
from creditledger.domain.operations import CancelEvent
from creditledger.store import schema
from tests.support.rest import Failure, Json, failure
from tests.support.setup import look

if TYPE_CHECKING:
    import httpx

    from tests.support.rest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENTS = "/api/meter-events"
TRANSACTIONS = "/api/credit-transactions"


@dataclass(frozen=True, slots=True)
class Kit:
    """A meter that costs CREDIT, a customer with a wallet, and a live service key."""

    served: Served
    event_name: str
    meter: str
    customer: str
    wallet: str
    key: str

    async def report(self, value: str, identifier: str = "evt_1", **given: Any) -> Json:
        """A new event as it is answered."""
        payload = {"customer_id": self.customer, "value": value}
        body = {"event_name": self.event_name, "payload": payload, "identifier": identifier}
        answer = await self.served.ask("POST", EVENTS, key=self.key, json={**body, **given})
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def ask(self, event: Json, key: str | None = None, **body: Any) -> httpx.Response:
        """Ask for an event to be canceled."""
        path = f"{EVENTS}/{event['id']}:cancel"
        return await self.served.ask("POST", path, key=key or self.key, json=body)

    async def cancel(self, event: Json, **body: Any) -> Json:
        """The event once it is canceled."""
        answer = await self.ask(event, **body)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found

    async def now(self, event: Json) -> Json:
        """The event as it is now."""
        return await self.served.body(f"{EVENTS}/{event['id']}", self.key)

    async def post(self, *postings: Json) -> list[Json]:
        """Postings on the wallet."""
        return await self.served.post(self.wallet, *postings)

    async def figures(self) -> tuple[str, str]:
        """The wallet's balance and what of its overdraft is used."""
        wallet = await self.served.body(f"/v1/wallets/{self.wallet}", self.key)
        return wallet["balance"], wallet["overdraft_used"]

    async def rows(self) -> list[tuple[str, str, Json]]:
        """Kind, amount and source of the wallet's rows, newest first."""
        found = await self.served.body(
            TRANSACTIONS, self.key, customer_id=self.customer, pageSize=100
        )
        return [(one["kind"], one["amount"], one.get("source", {})) for one in found["list"]]


@pytest_asyncio.fixture(loop_scope="module")
async def kit(served: Served) -> Kit:
    """All that events need, for one test."""
    event_name, customer = f"calls {served.number()}", await served.customer()
    meter = await served.meter(event_name=event_name, currency_id="CREDIT")
    wallet = await served.wallet(customer, currency="CREDIT")
    return Kit(served, event_name, meter, customer, wallet, await served.key("service"))


async def test_a_wrong_event_takes_nothing_of_the_next_top_up(kit: Kit) -> None:
    """After one of 1,000 unpaid events is canceled, all of the next top-up can be spent."""
    event = await kit.report("1000")
    assert (event["status"], event["credit_pending"]) == ("requires_capture", "1000.00")
    kit.served.clock.advance(time.SECOND)

    canceled = await kit.cancel(event)
    await kit.post({"grant": {"amount": "50"}})

    now = time.text(kit.served.clock.now)
    assert (canceled["status"], canceled["credit_pending"]) == ("canceled", "0.00")
    assert (canceled["credit_consumed"], canceled["updated_at"]) == ("0.00", now)
    assert canceled == await kit.now(event)
    assert await kit.figures() == ("50.00", "0.00")
    assert (
        await kit.served.body(f"{EVENTS}/pending-amount", kit.key, customer_id=kit.customer) == {}
    )


async def test_all_that_an_event_drew_comes_back(kit: Kit) -> None:
    """Draws of the event and of its settlements return, newest first, less what was refunded."""
    promotional = {"amount": "3", "category": "promotional", "kind": "admin_credit"}
    await kit.post({"grant": {"amount": "2"}}, {"grant": promotional})
    event = await kit.report("10")
    await kit.post({"grant": {"amount": "4"}})
    await kit.post({"refund": {"posting_id": event["posting_id"], "amount": "1"}})
    assert (await kit.now(event))["credit_pending"] == "0.00"  # the refund has paid the last of it
    before = len(await kit.rows())

    await kit.cancel(event)

    rows = (await kit.rows())[:-before]
    source = {"meter_event_id": "evt_1"}
    assert rows == [
        ("refund", "3.00", source),
        ("refund", "1.00", source),
        ("refund", "4.00", source),
        ("refund", "1.00", source),
    ]
    assert await kit.figures() == ("9.00", "0.00")


async def test_overdraft_that_an_event_used_is_lowered(kit: Kit) -> None:
    """Overdraft that a canceled event drew is no longer owed."""
    admin = await kit.served.key("admin")
    wallet = f"/v1/wallets/{kit.wallet}"
    await kit.served.ask("PATCH", wallet, key=admin, json={"overdraft_limit": "5"})
    await kit.post({"grant": {"amount": "2"}})
    event = await kit.report("10")
    assert await kit.figures() == ("-5.00", "5.00")

    await kit.cancel(event)

    assert await kit.figures() == ("2.00", "0.00")


async def test_canceling_again_changes_nothing(kit: Kit) -> None:
    """A second cancellation changes nothing, with the same key, another one or none."""
    await kit.post({"grant": {"amount": "5"}})
    event = await kit.report("3")
    canceled = await kit.cancel(event, idempotency_key="cancel-1")
    before = kit.served.row_counts()

    answers = [
        await kit.cancel(event, idempotency_key="cancel-1"),
        await kit.cancel(event, idempotency_key="cancel-2"),
        await kit.cancel(event),
        await kit.report("3"),
    ]
    used = await kit.ask(event, idempotency_key="evt_1")
    reused = await kit.served.ask(
        "POST",
        EVENTS,
        key=kit.key,
        json={
            "event_name": kit.event_name,
            "payload": {"customer_id": kit.customer, "value": "4"},
            "identifier": "evt_1",
        },
    )

    assert answers == [canceled] * 4
    assert failure(used) == Failure(409, "IDEMPOTENCY_KEY_REUSED", "idempotency_key")
    assert failure(reused) == Failure(409, "IDEMPOTENCY_KEY_REUSED", "identifier")
    assert before == kit.served.row_counts()
    assert await kit.figures() == ("5.00", "0.00")


async def test_what_a_canceled_event_drew_is_not_refunded_once_more(kit: Kit) -> None:
    """Neither the posting of a canceled event nor a settlement of it can be refunded."""
    await kit.post({"grant": {"amount": "2"}})
    event = await kit.report("3")
    await kit.post({"grant": {"amount": "4"}})
    listed = await kit.served.body(TRANSACTIONS, kit.key, customer_id=kit.customer)
    spent = {one["posting_id"] for one in listed["list"] if one["type"] == "consumption"}
    assert len(spent) == 2

    await kit.cancel(event)
    results = await kit.served.results(
        kit.wallet, *({"refund": {"posting_id": one}} for one in spent)
    )

    assert [one["error"]["code"] for one in results] == ["NOT_REFUNDABLE"] * 2
    assert await kit.figures() == ("6.00", "0.00")


async def test_limits_get_back_what_this_period_counted(kit: Kit) -> None:
    """A limit counts neither spent nor owed amounts of the event; past periods do not change."""
    await kit.post({"grant": {"amount": "10"}})
    admin = await kit.served.key("admin")
    limits = f"/v1/wallets/{kit.wallet}/spend-limits"
    for period in ("day", "lifetime"):
        body = {"amount": "20", "period": period, "time_zone": "UTC"}
        await kit.served.ask(
            "POST", limits, key=admin, json=body if period == "day" else {**body, "time_zone": None}
        )

    async def left() -> list[tuple[str, str]]:
        shown = await kit.served.body(limits, kit.key)
        return [(one["spent"], one["held"]) for one in shown["spend_limits"]]

    event = await kit.report("12")
    assert await left() == [("10.00", "2.00")] * 2
    await kit.cancel(event)
    assert await left() == [("0.00", "0.00")] * 2
    older = await kit.report("4", "evt_2")
    kit.served.clock.advance(time.DAY)
    await kit.report("1", "evt_3")
    await kit.cancel(older)

    assert await left() == [("1.00", "0.00"), ("1.00", "0.00")]


async def test_lists_show_it_and_sums_leave_it_out(kit: Kit) -> None:
    """A canceled event is listed as canceled, stats leave it out, and a search finds its rows."""
    await kit.post({"grant": {"amount": "10"}})
    wrong = await kit.report("3")
    await kit.report("2", "evt_2")
    await kit.cancel(wrong)
    now = kit.served.clock.now // time.SECOND

    listed = await kit.served.body(EVENTS, kit.key, customer_id=kit.customer)
    stats = await kit.served.body(
        f"{EVENTS}/stats", kit.key, meter_id=kit.meter, start=now - 60, end=now + 60
    )
    found = await kit.served.body(TRANSACTIONS, kit.key, customer_id=kit.customer, source="evt_1")

    statuses = {one["identifier"]: one["status"] for one in listed["list"]}
    assert statuses == {"evt_1": "canceled", "evt_2": "completed"}
    assert [(one["event_count"], one["total_value"]) for one in stats["list"]] == [(1, "2.00")]
    assert [one["kind"] for one in found["list"]] == ["refund", "usage"]


async def test_who_may_cancel_what(kit: Kit) -> None:
    """A closed wallet refuses, a frozen one does not; another mode or customer finds no event."""
    admin = await kit.served.key("admin")
    wallet = f"/v1/wallets/{kit.wallet}"
    event = await kit.report("3")
    own = await kit.served.key("customer", kit.customer)
    test = await kit.served.key("service", livemode=False)
    none = {"id": event["id"][:-1] + ("1" if event["id"][-1] != "1" else "2")}

    assert failure(await kit.ask(event, own)) == Failure(403, "SCOPE_DENIED")
    assert failure(await kit.ask(event, test)) == Failure(404, "NOT_FOUND", "id")
    assert failure(await kit.ask(none)) == Failure(404, "NOT_FOUND", "id")
    assert failure(await kit.ask({"id": "evt_1"})) == Failure(400, "INVALID_FIELD", "id")
    mode = await kit.ask(event, livemode=False)
    assert failure(mode) == Failure(403, "MODE_MISMATCH", "livemode")
    bad = await kit.ask(event, idempotency_key="ä")
    assert failure(bad) == Failure(400, "INVALID_FIELD", "idempotency_key")
    await kit.served.ask("PATCH", wallet, key=admin, json={"status": "frozen"})
    assert (await kit.cancel(event))["status"] == "canceled"
    await kit.served.ask("PATCH", wallet, key=admin, json={"status": "active"})
    await kit.post({"grant": {"amount": "1"}})
    paid = await kit.report("1", "evt_2")
    await kit.served.ask("PATCH", wallet, key=admin, json={"status": "closed"})
    assert failure(await kit.ask(paid)) == Failure(400, "WALLET_CLOSED")
    assert (await kit.cancel(event))["status"] == "canceled"


async def test_many_payments_come_back_by_and_by(kit: Kit) -> None:
    """One call returns 1,000 rows, and the ledger returns the rest by itself."""
    event = await kit.report("2500")
    await kit.post(*({"grant": {"amount": "1"}} for _ in range(1_300)))
    assert (await kit.now(event))["credit_pending"] == "1200.00"
    assert await kit.figures() == ("0.00", "0.00")

    canceled = await kit.cancel(event)

    assert (canceled["status"], canceled["credit_pending"]) == ("canceled", "0.00")
    async with asyncio.timeout(60):
        while (await kit.figures())[0] != "1300.00":  # asking takes its time
            pass
    refunds = await kit.served.body(
        TRANSACTIONS, kit.key, customer_id=kit.customer, source="evt_1", pageSize=1
    )
    assert refunds["count"] == 2_600
    p, w = schema.postings.c, schema.wallets.c
    query = select(p.row_count).where(
        p.wallet_number == select(w.number).where(w.id == kit.wallet).scalar_subquery(),
        p.operation.in_((CancelEvent.code, RETURN)),
    )
    counts = look(kit.served.database_url, lambda c: c.execute(query).scalars().all())
    assert sorted(counts) == [300, 1_000]


async def test_closing_cancels_what_is_unpaid_if_asked(kit: Kit) -> None:
    """Closing with unpaid events is refused; `cancel_unpaid` closes where nothing was drawn."""
    admin = await kit.served.key("admin")
    wallet = f"/v1/wallets/{kit.wallet}"

    async def close(**given: Any) -> httpx.Response:
        body = {"status": "closed", **given}
        return await kit.served.ask("PATCH", wallet, key=admin, json=body)

    await kit.post({"grant": {"amount": "3"}})
    partly = await kit.report("5")
    wrong = await kit.report("7", "evt_2")
    counts = kit.served.row_counts()
    assert failure(await close()) == Failure(400, "INVALID_FIELD", "status")
    # The three that the first one drew would come back, and stay.
    drawn = await close(cancel_unpaid=True)
    assert failure(drawn) == Failure(400, "INVALID_FIELD", "cancel_unpaid")
    frozen = {"status": "frozen", "cancel_unpaid": True}
    refused = await kit.served.ask("PATCH", wallet, key=admin, json=frozen)
    assert failure(refused) == Failure(400, "INVALID_FIELD", "cancel_unpaid")
    assert counts == kit.served.row_counts()
    assert [(await kit.now(one))["status"] for one in (partly, wrong)] == ["requires_capture"] * 2

    await kit.post({"grant": {"amount": "2"}})
    closed = await close(cancel_unpaid=True)

    assert (closed.status_code, closed.json()["status"]) == (200, "closed")
    assert (await kit.now(partly))["status"] == "completed"
    assert (await kit.now(wrong))["status"] == "canceled"
