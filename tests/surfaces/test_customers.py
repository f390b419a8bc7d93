"""Customers over REST: changed, searched and archived, and still created only once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from creditledger.domain import clock as time
from tests.support.rest import Failure, Json, failure, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.support.rest import Served

CUSTOMERS = "/v1/customers"
ACME: Json = {"id": "cus_acme", "name": "Acme", "email": "Billing@example.com"}


@pytest.fixture
async def served(database_url: str) -> AsyncIterator[Served]:
    """A running service with cus_acme."""
    async with serving(database_url) as running:
        await running.customer(**{**ACME, "id_": ACME["id"]}, metadata={"a": "1", "b": "2"})
        yield running


async def send(served: Served, method: str, path: str, body: Json, **key: Any) -> httpx.Response:
    """A request of a live service key, or of another one."""
    secret = await served.key("service", **key)
    return await served.ask(method, path, key=secret, json=body)


async def change(served: Served, **body: object) -> Json:
    """cus_acme after a change."""
    answer = await send(served, "PATCH", f"{CUSTOMERS}/cus_acme", body)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_what_is_given_is_changed(served: Served) -> None:
    """A change leaves what it does not name, merges metadata, and repeated changes nothing."""
    key = await served.key("service")
    before = await served.body(f"{CUSTOMERS}/cus_acme", key)
    served.clock.advance(time.SECOND)
    named = await change(served, name="Acme Ltd", metadata={"a": "", "c": "3"})
    served.clock.advance(time.SECOND)
    again = await change(served, name="Acme Ltd", metadata={"c": "3"})
    nothing = await change(served)
    mailed = await change(served, email="new@example.com")

    later = time.text(served.clock.now - time.SECOND)
    assert "updated_at" not in before
    assert named == {
        **before,
        "name": "Acme Ltd",
        "metadata": {"b": "2", "c": "3"},
        "updated_at": later,
    }
    assert again == nothing == named
    expected = {"email": "new@example.com", "updated_at": time.text(served.clock.now)}
    assert mailed == {**named, **expected}
    assert mailed == await served.body(f"{CUSTOMERS}/cus_acme", key)


async def test_a_create_is_compared_with_what_was_created(served: Served) -> None:
    """After changes the first create answers the customer as it is; another is ID_TAKEN."""
    first = {**ACME, "metadata": {"a": "1", "b": "2"}}
    for name in ("Acme Ltd", "Acme Inc"):
        changed = await change(served, name=name, metadata={"a": ""})

    again = await send(served, "POST", CUSTOMERS, first)
    as_it_is = await send(served, "POST", CUSTOMERS, {**first, "name": "Acme Inc"})

    assert (again.status_code, again.json()) == (200, changed)
    assert failure(as_it_is) == Failure(409, "ID_TAKEN", "id")


async def test_what_no_customer_becomes(served: Served) -> None:
    """A wrong value is refused by its field; test and customer keys change no customer."""
    path = f"{CUSTOMERS}/cus_acme"
    for body, expected in (
        ({"name": ""}, Failure(400, "MISSING_FIELD", "name")),
        ({"name": "x" * 129}, Failure(400, "INVALID_FIELD", "name")),
        ({"email": "nobody"}, Failure(400, "INVALID_FIELD", "email")),
        ({"metadata": {"": "x"}}, Failure(400, "INVALID_FIELD", "metadata")),
        ({"metadata": {str(n): "x" for n in range(49)}}, Failure(400, "INVALID_FIELD", "metadata")),
    ):
        assert failure(await send(served, "PATCH", path, body)) == expected
    missing = await send(served, "PATCH", f"{CUSTOMERS}/cus_none", {"name": "x"})
    assert failure(missing) == Failure(404, "NOT_FOUND", "customer_id")
    test = await send(served, "PATCH", path, {"name": "x"}, livemode=False)
    assert failure(test) == Failure(403, "MODE_MISMATCH")
    own = await served.key("customer", "cus_acme")
    for method, place in (("PATCH", path), ("POST", f"{path}:archive")):
        answer = await served.ask(method, place, key=own, json={})
        assert failure(answer) == Failure(403, "SCOPE_DENIED")
    found = await served.body(path, own)
    assert (found["name"], "updated_at" in found) == ("Acme", False)


async def test_customers_are_searched(served: Served) -> None:
    """Customers are found by whole e-mail address and by part of id, name or address."""
    key = await served.key("service")
    await served.customer("cus_beta", name="Beta 100% GmbH", email="pay@beta.example.com")
    await served.customer("cus_gamma", name="Gamma Ärzte", email="billing@gamma.example.com")

    async def ids(**query: str | int) -> list[str]:
        found = await served.body(CUSTOMERS, key, **query)
        return [one["id"] for one in found["customers"]]

    assert await ids(email="billing@EXAMPLE.com") == ["cus_acme"]
    assert await ids(email="billing@gamma") == []
    assert await ids(q="BILLING") == ["cus_acme", "cus_gamma"]
    assert await ids(q="0%") == ["cus_beta"]
    assert await ids(q="%beta%") == []
    assert await ids(q="CUS_GAM") == ["cus_gamma"]
    assert await ids(q="Ärzte", email="billing@gamma.example.com") == ["cus_gamma"]
    first = await served.body(CUSTOMERS, key, q="billing", page_size=1)
    token = first["next_page_token"]
    assert await ids(q="billing", page_token=token) == ["cus_gamma"]
    assert await served.refusal(CUSTOMERS, key, page_token=token) == Failure(
        400, "INVALID_FIELD", "page_token"
    )
    assert await served.refusal(CUSTOMERS, key, q="x" * 257) == Failure(400, "INVALID_FIELD", "q")
    own = await served.key("customer", "cus_beta")
    assert await served.body(CUSTOMERS, own, q="billing") == {"customers": []}


async def test_an_archived_customer_is_hidden_and_gets_nothing_new(served: Served) -> None:
    """An archived customer gets no wallet and no key; what it has goes on."""
    key, admin = await served.key("service"), await served.key("admin")
    own = await served.key("customer", "cus_acme")
    wallet = await served.wallet("cus_acme")
    await served.meter(event_name="calls", currency_id="CREDIT")
    place = f"{CUSTOMERS}/cus_acme"
    archived = (await send(served, "POST", f"{place}:archive", {})).json()
    served.clock.advance(time.SECOND)
    again = (await send(served, "POST", f"{place}:archive", {})).json()
    assert archived["archived_at"] == archived["updated_at"] == again["archived_at"]
    before = served.row_counts()

    async def listed(**query: str | int) -> list[str]:
        found = await served.body(CUSTOMERS, key, **query)
        return [one["id"] for one in found["customers"]]

    async def attempts() -> list[httpx.Response]:
        event = {"customer_id": "cus_acme", "value": "1"}
        grant = {"amount": "1", "currency_id": "CNY", "customer_id": "cus_acme", "category": "paid"}
        return [
            await served.ask("POST", path, key=admin, json=body)
            for path, body in (
                ("/v1/wallets", {"customer_id": "cus_acme", "currency": "CNY"}),
                ("/v1/api-keys", {"name": "x", "scope": "customer", "customer_id": "cus_acme"}),
                ("/api/credit-grants", grant),
                (
                    "/api/meter-events",
                    {"event_name": "calls", "payload": event, "identifier": "evt_1"},
                ),
            )
        ]

    assert [failure(answer) for answer in await attempts()] == [
        *[Failure(400, "INVALID_FIELD", "customer_id")] * 3,
        Failure(400, "INVALID_FIELD", "payload.customer_id"),
    ]
    assert served.row_counts() == before
    assert await listed() == []
    assert await listed(include_archived="true") == ["cus_acme"]
    assert await listed(include_archived="true", q="acme") == ["cus_acme"]
    assert (await served.body(place, own))["archived_at"] == archived["archived_at"]
    await served.post(wallet, {"grant": {"amount": "5"}}, {"consumption": {"amount": "2"}})
    same = {"id": wallet, "customer_id": "cus_acme", "currency": "USD"}
    answer = await served.ask("POST", "/v1/wallets", key=admin, json=same)
    assert (answer.status_code, answer.json()["balance"]) == (200, "3.00")

    back = (await send(served, "POST", f"{place}:unarchive", {})).json()

    assert "archived_at" not in back
    assert await listed() == ["cus_acme"]
    assert {answer.status_code for answer in await attempts()} == {200}
