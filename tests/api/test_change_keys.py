"""Every change is made once under its idempotency key, whichever RPC makes it.

What the RPCs are is read from the contract: a new one without a key, or without a case here, fails.
"""

from __future__ import annotations

import asyncio
import base64
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import statement_service_pb2 as statement_pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub
from google.api import annotations_pb2
from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from creditledger.domain import clock as time
from creditledger.domain.errors import IdempotencyKeyReused
from creditledger.store import CannotOpen, change_keys, schema
from creditledger.store.change_keys import Count, Intent
from tests.support.databases import contents
from tests.support.proxy import proxy
from tests.support.refusals import Refused
from tests.support.refusals import refused as serving_refused
from tests.support.rest import Failure, Json, failure, metadata, serving
from tests.support.server import PATIENCE_SECONDS, running
from tests.support.setup import START, change, is_file, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import httpx
    from google.protobuf.descriptor import MethodDescriptor
    from sqlalchemy import Connection

    from creditledger.store import Store
    from tests.support.proxy import Lose
    from tests.support.rest import Served
    from tests.support.setup import Clock

FILES = (
    *("api_key", "registry", "wallet", "clock", "statement", "credit_grant", "webhook"),
    *("payment_kit", "billing", "credit_transaction", "operator"),
)
KEY, HEADER = "idempotency_key", "Idempotency-Key"
#: Each item of these has its own key.
OF_ITEMS = {
    "WalletService.BatchPost",
    "WalletService.StreamPost",
    "PaymentKitService.CreateMeterEvent",
}
#: What these ask for is done once by itself.
OF_ONE_USE = {"ApiKeyService.OpenSession"}
#: Postings, whose keys have tests of their own beside the header's.
POSTINGS = {
    *(f"WalletService.{name}" for name in ("Post", "Hold", "CaptureHold", "ReleaseHold")),
    *("WalletService.ExtendHold", "WalletService.Transfer", "CreditGrantService.Void"),
    *("PaymentKitService.CancelMeterEvent", "PaymentKitService.CreateGrant"),
}


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of the contract, "Service.Method"."""
    pool = wallets_pb.DESCRIPTOR.pool
    return {
        f"{service.name}.{method.name}": method
        for name in FILES
        for service in pool.FindFileByName(
            f"credit/v1/{name}_service.proto"
        ).services_by_name.values()
        for method in service.methods
    }


def route(method: MethodDescriptor) -> tuple[str, str]:
    """HTTP method and path; "" of what REST does not have."""
    http = method.GetOptions().Extensions[annotations_pb2.http]
    verb = http.WhichOneof("pattern")
    return ("", "") if verb is None else (verb.upper(), getattr(http, verb))


METHODS = methods()
CHANGES = sorted(
    name
    for name, method in METHODS.items()
    if method.client_streaming or route(method)[0] not in {"", "GET"}
)


def test_every_change_takes_a_key() -> None:
    """Its request has the field, and the test below a case; some take none, as said above."""
    keyed = {name for name in CHANGES if KEY in METHODS[name].input_type.fields_by_name}

    assert keyed == set(CHANGES) - OF_ITEMS - OF_ONE_USE
    assert keyed == CASES.keys() | POSTINGS


# --- a case for each ------------------------------------------------------------------------------


@dataclass(slots=True)
class World:
    """What there is to be changed."""

    served: Served
    admin: str
    service: str
    numbers: dict[str, str] = field(default_factory=dict)
    taken: int = 0

    def fresh(self) -> str:
        """A text that nothing else has."""
        self.taken += 1
        return f"n{self.taken}"

    async def send(
        self, name: str, body: Json, header: str | None = None, key: str | None = None
    ) -> httpx.Response:
        """A request as JSON of the contract: what the path names stands there."""
        verb, path = route(METHODS[name])
        rest = dict(body)
        for place in re.findall(r"{(\w+)}", path):
            path = path.replace(f"{{{place}}}", rest.pop(place))
        headers = {} if header is None else {HEADER: header}
        secret = key or self.admin
        if verb == "DELETE":
            return await self.served.ask(verb, path, key=secret, query=rest, headers=headers)
        return await self.served.ask(verb, path, key=secret, json=rest, headers=headers)

    async def made(self, name: str, body: Json, header: str | None = None) -> Json:
        """The answer to a request that succeeds."""
        answer = await self.send(name, body, header)
        assert answer.status_code == 200, (name, body, answer.text)
        found: Json = answer.json()
        return found

    async def customer(self) -> str:
        """A new one's id."""
        return await self.served.customer(f"cus_{self.fresh()}")

    async def endpoint(self) -> str:
        """A new one's id, with a threshold so that there is an amount to be shown."""
        made = await self.made("WebhookService.CreateWebhookEndpoint", await endpoint(self))
        id_: str = made["webhook_endpoint"]["id"]
        return id_


Case = "Callable[[World], Any]"


async def customer(w: World) -> Json:
    return {"name": "Acme", "email": "a@example.com", "metadata": {"b": "2", "a": "1"}}


async def of_customer(w: World) -> Json:
    return {"customer_id": await w.customer()}


async def customer_change(w: World) -> Json:
    return {"customer_id": await w.customer(), "name": "New", "metadata": {"a": "1"}}


async def meter(w: World) -> Json:
    return {"name": "Tokens", "event_name": w.fresh(), "unit": "token"}


async def kit_meter(w: World) -> Json:
    return {"name": "Tokens", "event_name": w.fresh(), "unit": "token", "currency_id": "USD"}


async def of_meter(w: World) -> Json:
    return {"id": await w.served.meter(id=f"mtr_{w.fresh()}", event_name=w.fresh())}


async def meter_change(w: World) -> Json:
    return {**await of_meter(w), "name": "Words"}


async def subscription(w: World) -> Json:
    return {"customer_id": await w.customer(), "name": "Pro"}


async def currency(w: World) -> Json:
    return {"id": f"C{w.fresh().upper()}", "scale": 2, "name": "Points"}


async def api_key(w: World) -> Json:
    return {"name": "a key", "scope": "service", "expires_at": "2999-01-01T00:00:00Z"}


async def of_api_key(w: World) -> Json:
    made = await w.made("ApiKeyService.CreateApiKey", await api_key(w))
    return {"id": made["api_key"]["id"]}


async def session_code(w: World) -> Json:
    return {"scope": "customer", "customer_id": await w.customer()}


async def new_wallet(w: World) -> Json:
    return {"customer_id": await w.customer(), "currency": "USD", "overdraft_limit": "1.50"}


async def acceptance(w: World) -> Json:
    return {"accepted_by": "an operator"}


async def endpoint(w: World) -> Json:
    return {
        "url": "https://127.0.0.1:9/x",
        "customer_id": await w.customer(),
        "events": ["transaction.created", "balance.low"],
        "thresholds": [{"amount": "2.50", "currency_id": "USD"}],
    }


async def of_endpoint(w: World) -> Json:
    return {"id": await w.endpoint()}


async def endpoint_change(w: World) -> Json:
    return {**await of_endpoint(w), "description": "new words"}


async def nothing(w: World) -> Json:
    await w.endpoint()
    return {}


async def of_delivery(w: World) -> Json:
    """A delivery that nobody takes: it is made once a row is written."""
    customer_id = await w.customer()
    new = {**await endpoint(w), "customer_id": customer_id}
    made = await w.made("WebhookService.CreateWebhookEndpoint", new)
    endpoint_id = made["webhook_endpoint"]["id"]
    wallet = await w.served.wallet(customer_id, id=f"wal_{w.fresh()}")
    await w.served.post(wallet, {"grant": {"amount": "5"}})
    path = f"/v1/webhook-endpoints/{endpoint_id}/deliveries"
    async with asyncio.timeout(PATIENCE_SECONDS):
        found: list[Json] = []
        while not found:
            await asyncio.sleep(0.02)  # nobody tells when the log is written
            found = (await w.served.body(path, w.admin))["webhook_deliveries"]
    # Nobody sends it any more; to send it again changes something.
    await w.made("WebhookService.UpdateWebhookEndpoint", {"id": endpoint_id, "enabled": False})
    done = {"status": 3, "last_error": "tested"}
    change(w.served.database_url, lambda c: c.execute(update(schema.webhook_deliveries), done))
    return {"id": found[0]["id"]}


async def of_deliveries(w: World) -> Json:
    delivery = await of_delivery(w)
    found = await w.served.body(f"/v1/webhook-deliveries/{delivery['id']}", w.admin)
    return {"id": found["webhook_endpoint_id"], "status": "failed"}


async def of_wallet(w: World) -> Json:
    return {"wallet_id": await w.served.wallet(id=f"wal_{w.fresh()}")}


async def wallet_change(w: World) -> Json:
    return {**await of_wallet(w), "overdraft_limit": "1.50", "metadata": {"a": "1"}}


async def limit(w: World) -> Json:
    return {**await of_wallet(w), "amount": "10", "period": "month", "time_zone": "Asia/Kathmandu"}


async def of_limit(w: World) -> Json:
    made = await w.made("WalletService.SetSpendLimit", await limit(w))
    return {"wallet_id": made["wallet_id"], "spend_limit_id": made["id"]}


async def of_grant(w: World) -> Json:
    wallet = await of_wallet(w)
    (given,) = await w.served.post(wallet["wallet_id"], {"grant": {"amount": "5"}})
    return {"id": given["transactions"][0]["credit_grant_id"]}


async def grant_change(w: World) -> Json:
    return {**await of_grant(w), "priority": 10, "expires_at": "2999-01-01T00:00:00Z"}


async def kit_grant_change(w: World) -> Json:
    return {**await of_grant(w), "metadata": {"a": "1"}, "expired": True}


async def statement(w: World) -> Json:
    wallet = await of_wallet(w)
    await w.served.post(wallet["wallet_id"], {"grant": {"amount": "5"}})
    return {**wallet, "month": "2020-02", "time_zone": "Asia/Kathmandu"}


#: By RPC: a request, and what makes another one of it.
CASES: dict[str, tuple[Callable[[World], Any], Json]] = {
    "RegistryService.CreateCustomer": (customer, {"name": "Beta"}),
    "RegistryService.UpdateCustomer": (customer_change, {"metadata": {"a": "2"}}),
    "RegistryService.ArchiveCustomer": (of_customer, {"customer_id": "cus_other"}),
    "RegistryService.UnarchiveCustomer": (of_customer, {"customer_id": "cus_other"}),
    "RegistryService.CreateMeter": (meter, {"unit": "word"}),
    "RegistryService.CreateSubscription": (subscription, {"name": "Free"}),
    "RegistryService.CreateCurrency": (currency, {"scale": 3}),
    "ApiKeyService.CreateApiKey": (api_key, {"expires_at": "2999-01-01T00:00:01Z"}),
    "ApiKeyService.RevokeApiKey": (of_api_key, {"id": "apk_other"}),
    "ApiKeyService.RotateApiKey": (of_api_key, {"overlap_seconds": 1}),
    "ApiKeyService.CreateSessionCode": (session_code, {"customer_id": "cus_other"}),
    "WalletService.CreateWallet": (new_wallet, {"overdraft_limit": "1.51"}),
    "WalletService.UpdateWallet": (wallet_change, {"overdraft_limit": "1.51"}),
    "WalletService.SetSpendLimit": (limit, {"amount": "11"}),
    "WalletService.DeleteSpendLimit": (of_limit, {"spend_limit_id": "spl_" + "0" * 26}),
    "CreditGrantService.Update": (grant_change, {"priority": 11}),
    "PaymentKitService.UpdateGrant": (kit_grant_change, {"expired": False}),
    "StatementService.Close": (statement, {"month": "2020-03"}),
    "ClockService.AcceptClock": (acceptance, {"accepted_by": "another"}),
    "WebhookService.CreateWebhookEndpoint": (endpoint, {"url": "https://127.0.0.1:9/y"}),
    "WebhookService.UpdateWebhookEndpoint": (endpoint_change, {"description": "others"}),
    "WebhookService.DeleteWebhookEndpoint": (of_endpoint, {"id": "whe_other"}),
    "WebhookService.RotateWebhookSecret": (of_endpoint, {"overlap_seconds": 1}),
    "WebhookService.SealWebhookSecrets": (nothing, {}),
    "WebhookService.ReplayWebhookDelivery": (of_delivery, {"id": "evt_" + "0" * 26}),
    "WebhookService.ReplayWebhookDeliveries": (of_deliveries, {"since": "2026-01-01T00:00:00Z"}),
    "PaymentKitService.CreateMeter": (kit_meter, {"unit": "word"}),
    "PaymentKitService.UpdateMeter": (meter_change, {"name": "Others"}),
    "PaymentKitService.ActivateMeter": (of_meter, {"id": "mtr_other"}),
    "PaymentKitService.DeactivateMeter": (of_meter, {"id": "mtr_other"}),
}


@asynccontextmanager
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A running service, live keys, and what the cases refer to."""
    sealing = tmp_path / "keys"
    sealing.write_text(base64.b64encode(b"k" * 32).decode() + "\n")
    sealing.chmod(0o600)
    sending = {"webhook_connections": 1, "webhook_allow_private": True}
    async with serving(database_url, secrets_key_file=sealing, **sending) as served:
        admin, service = await served.key("admin"), await served.key("service")
        await served.customer("cus_other")
        yield World(served, admin, service)


#: Fields of answers that are shown once.
SECRETS = {"secret", "code"}


def without_secret(answer: Json) -> Json:
    """What a replay may tell of it."""
    return {**answer, **dict.fromkeys(SECRETS & answer.keys(), "")}


def without_moments(url: str) -> str:
    """All that is stored, but for what servers write down as time passes."""

    def rows(connection: Connection) -> str:
        passing = {"clock_seen", "webhook_feed", "webhook_deliveries"}
        tables = [one for one in schema.metadata.sorted_tables if one.name not in passing]
        kept = [[column for column in one.c if column.name != "last_used_at"] for one in tables]
        return repr([sorted(map(repr, connection.execute(select(*one)))) for one in kept])

    return look(url, rows)


async def test_a_change_is_made_once_under_its_key(database_url: str, tmp_path: Path) -> None:
    """Every RPC, header or field: a repetition writes nothing and answers what is, no secret.

    Another request under the key is refused by its field, as is a header that differs.
    """
    wrong = {}
    async with world(database_url, tmp_path) as w:
        for name, (case, other) in CASES.items():
            body = await case(w)
            key = f"key of {name}"
            first = await w.made(name, body, header=key)
            before = without_moments(database_url)
            again = await w.made(name, {**body, KEY: key})
            both = await w.made(name, {**body, KEY: key}, header=key)
            differing = await w.send(name, {**body, KEY: key}, header="another")
            found = [without_secret(first) == again == both]
            found.append(failure(differing) == Failure(400, "INVALID_FIELD", KEY))
            if other:
                reused = await w.send(name, {**body, **other}, header=key)
                found.append(failure(reused) == Failure(409, "IDEMPOTENCY_KEY_REUSED", KEY))
                found.append(set(metadata(reused)["fields"].split(",")) <= other.keys())
            found.append(without_moments(database_url) == before)
            if not all(found):
                wrong[name] = found, first, again, both
            for secret in SECRETS & first.keys():
                assert first[secret]
                assert first[secret] not in await contents(database_url)

    assert wrong == {}


# --- what a key means -----------------------------------------------------------------------------


async def test_where_items_have_keys_the_header_is_refused(
    database_url: str, tmp_path: Path
) -> None:
    """A batch, a meter event and a stream take none; one posting takes it in place of the field."""
    async with world(database_url, tmp_path) as w:
        wallet = await w.served.wallet(id="wal_header")
        grant = {"wallet_id": wallet, "grant": {"amount": "5"}}
        batch = {"postings": [{**grant, KEY: "in a batch"}]}
        event = {"event_name": "calls", "identifier": "one", "payload": {"value": "1"}}
        refused = [
            failure(await w.send(name, body, header="one"))
            for name, body in (
                ("WalletService.BatchPost", batch),
                ("PaymentKitService.CreateMeterEvent", event),
            )
        ]
        stream = w.served.wallets.StreamPost(
            iter([wallets_pb.StreamPostRequest()]), metadata=[(HEADER.lower(), "one")]
        )
        streamed = await serving_refused(stream.read())
        posted = await w.made("WalletService.Post", grant, header="one")
        again = await w.made("WalletService.Post", {**grant, KEY: "one"}, header="one")
        other = await w.send("WalletService.Post", {**grant, KEY: "one"}, header="two")
        none = await w.send("WalletService.Post", grant)
        malformed = await w.send("WalletService.Post", grant, header="x" * 256)
        read = await w.served.ask(
            "GET", f"/v1/wallets/{wallet}", key=w.admin, headers={HEADER: "one"}
        )

    assert refused == [Failure(400, "INVALID_FIELD", HEADER)] * 2
    assert streamed == Refused("INVALID_FIELD", HEADER, {})
    assert (posted["replayed"], again["replayed"]) == (False, True)
    assert again["posting_id"] == posted["posting_id"]
    assert failure(other) == Failure(400, "INVALID_FIELD", KEY)
    assert failure(none) == Failure(400, "MISSING_FIELD", KEY)
    assert failure(malformed) == Failure(400, "INVALID_FIELD", HEADER)
    assert read.status_code == 200


async def test_a_key_belongs_to_its_rpc_and_mode(database_url: str, tmp_path: Path) -> None:
    """Another RPC, the other mode and a wallet's postings may use it for something else."""
    async with world(database_url, tmp_path) as w:
        test = await w.served.key("admin", livemode=False)
        live = await w.made("RegistryService.CreateCustomer", await customer(w), header="one")
        tested = (
            await w.send("RegistryService.CreateCustomer", await customer(w), "one", test)
        ).json()
        await w.made("RegistryService.CreateSubscription", await subscription(w), header="one")
        local = registry_pb.CreateCustomerRequest(name="Beta", email="b@example.com")
        local.idempotency_key = "one"
        refused = await serving_refused(w.served.registry.CreateCustomer(local))

    assert live["id"] != tested["id"]
    # The command line acts for the operator, in live mode unless it says otherwise.
    assert refused == Refused("IDEMPOTENCY_KEY_REUSED", KEY, {"fields": "email,metadata,name"})


async def test_a_header_that_is_given_twice(database_url: str, clock: Clock) -> None:
    """Twice the same is once; two different ones name no intent."""
    async with running(database_url, clock) as started:
        request = registry_pb.CreateCustomerRequest(name="Acme", email="a@example.com")
        create = started.local.registry.CreateCustomer
        header = HEADER.lower()
        made = await create(request, metadata=[(header, "one"), (header, "one")])
        again = await create(request, metadata=[(header, "one")])
        refused = await serving_refused(
            create(request, metadata=[(header, "one"), (header, "two")])
        )

    assert again == made
    assert refused == Refused("INVALID_FIELD", HEADER, {})


async def test_a_refused_change_leaves_its_key_free(database_url: str, tmp_path: Path) -> None:
    """What was not done is done by the next attempt under the key."""
    async with world(database_url, tmp_path) as w:
        body = {"customer_id": "cus_late", "name": "Late"}
        refused = failure(await w.send("RegistryService.UpdateCustomer", body, header="one"))
        await w.served.customer("cus_late")
        changed = await w.made("RegistryService.UpdateCustomer", body, header="one")

    assert refused == Failure(404, "NOT_FOUND", "customer_id")
    assert changed["name"] == "Late"


async def test_values_are_compared_not_spellings(database_url: str, tmp_path: Path) -> None:
    """Zeros at an amount's end, another offset, an empty field and the mode make no difference."""
    async with world(database_url, tmp_path) as w:
        wallet = await new_wallet(w)
        made = await w.made("WalletService.CreateWallet", wallet, header="one")
        spelled = {**wallet, "overdraft_limit": "01.5", "metadata": {}, "livemode": True}
        again = await w.made("WalletService.CreateWallet", spelled, header="one")
        new = await api_key(w)
        key = await w.made("ApiKeyService.CreateApiKey", new, header="one")
        later = {**new, "expires_at": "2999-01-01T01:00:00+01:00"}
        same = await w.made("ApiKeyService.CreateApiKey", later, header="one")

    assert again == made
    assert same == {**key, "secret": ""}


async def test_a_replay_answers_what_is_now_and_the_deleted_as_it_was(
    database_url: str, tmp_path: Path
) -> None:
    """The create of an endpoint that was changed, then deleted, answers as it was shown last."""
    async with world(database_url, tmp_path) as w:
        new = await endpoint(w)
        made = await w.made("WebhookService.CreateWebhookEndpoint", new, header="make")
        id_ = made["webhook_endpoint"]["id"]
        words = {"id": id_, "description": "new words"}
        changed = await w.made("WebhookService.UpdateWebhookEndpoint", words, header="change")
        rotated = await w.made("WebhookService.RotateWebhookSecret", {"id": id_}, header="rotate")
        now = await w.made("WebhookService.CreateWebhookEndpoint", new, header="make")
        deleted = await w.made("WebhookService.DeleteWebhookEndpoint", {"id": id_}, header="end")
        last = await w.made("WebhookService.CreateWebhookEndpoint", new, header="make")
        again = await w.made("WebhookService.RotateWebhookSecret", {"id": id_}, header="rotate")
        gone = await w.made("WebhookService.DeleteWebhookEndpoint", {"id": id_}, header="end")
        without = await w.send("WebhookService.DeleteWebhookEndpoint", {"id": id_})

    assert changed["description"] == "new words"
    assert rotated["secret"] != made["secret"]
    assert now == {"webhook_endpoint": rotated["webhook_endpoint"], "secret": ""}
    assert deleted == gone == rotated["webhook_endpoint"] == last["webhook_endpoint"]
    assert again == {**rotated, "secret": ""}
    assert failure(without) == Failure(404, "NOT_FOUND", "id")


async def test_a_wallet_has_one_namespace(database_url: str, tmp_path: Path) -> None:
    """A key of a posting is taken for every change of its wallet, and the other way round."""
    async with world(database_url, tmp_path) as w:
        wallet = (await of_wallet(w))["wallet_id"]
        given = {"wallet_id": wallet, "grant": {"amount": "5"}}
        posted = await w.made("WalletService.Post", given, header="posting")
        terms = {"wallet_id": wallet, "overdraft_limit": "2"}
        await w.made("WalletService.UpdateWallet", terms, header="change")
        grant = {"id": posted["transactions"][0]["credit_grant_id"], "name": "Spring"}
        kit = {"id": grant["id"], "metadata": {"a": "b"}}
        lasting = {"wallet_id": wallet, "amount": "9", "period": "lifetime"}
        month = {"wallet_id": wallet, "month": "2020-02"}
        refused = [
            await w.send(name, body, header=key)
            for key, name, body in (
                ("posting", "WalletService.UpdateWallet", terms),
                ("posting", "WalletService.SetSpendLimit", lasting),
                ("posting", "CreditGrantService.Update", grant),
                ("posting", "PaymentKitService.UpdateGrant", kit),
                ("posting", "StatementService.Close", month),
                ("change", "WalletService.Post", given),
                ("change", "WalletService.SetSpendLimit", lasting),
                ("change", "StatementService.Close", month),
            )
        ]
        listed = await w.served.body(f"/v1/wallets/{wallet}/idempotency-keys", w.admin)
        path = f"/v1/wallets/{wallet}/postings"
        found = await w.served.body(path, w.admin, idempotency_key="change")
        other = await of_wallet(w)
        await w.made("WalletService.UpdateWallet", {**other, "status": "frozen"}, header="posting")

    assert {failure(one) for one in refused} == {Failure(409, "IDEMPOTENCY_KEY_REUSED", KEY)}
    assert {metadata(one)["fields"] for one in refused} == {"operation"}
    assert [one[KEY] for one in listed["idempotency_keys"]] == ["change", "posting"]
    assert found["posting_id"] == listed["idempotency_keys"][0]["posting_id"]
    assert found["transactions"] == []


async def test_a_limit_that_is_dropped_is_answered_as_it_was(
    database_url: str, tmp_path: Path
) -> None:
    """A repeated key answers the dropped limit as it was; one set anew is another limit."""
    async with world(database_url, tmp_path) as w:
        new = await limit(w)
        wallet = new["wallet_id"]
        await w.served.post(wallet, {"grant": {"amount": "50"}})
        made = await w.made("WalletService.SetSpendLimit", new, header="set")
        await w.served.post(wallet, {"consumption": {"amount": "3"}})
        more = await w.made("WalletService.SetSpendLimit", {**new, "amount": "20"}, header="more")
        now = await w.made("WalletService.SetSpendLimit", new, header="set")
        one = {"wallet_id": wallet, "spend_limit_id": made["id"]}
        dropped = await w.made("WalletService.DeleteSpendLimit", one, header="drop")
        w.served.clock.advance(time.DAY)
        anew = await w.made("WalletService.SetSpendLimit", new)
        again = await w.made("WalletService.DeleteSpendLimit", one, header="drop")
        last = await w.made("WalletService.SetSpendLimit", new, header="set")
        without = await w.send("WalletService.DeleteSpendLimit", one)
        await w.made("WalletService.DeleteSpendLimit", {**one, "spend_limit_id": anew["id"]})

    assert more == now == dropped == again == last
    assert (dropped["amount"], dropped["spent"]) == ("20.00", "3.00")
    assert anew["id"] != made["id"]
    assert failure(without) == Failure(404, "NOT_FOUND", "spend_limit_id")


async def test_a_wallet_that_was_closed_answers_its_closing(
    database_url: str, tmp_path: Path
) -> None:
    """And a change that changed nothing has bound its key too."""
    async with world(database_url, tmp_path) as w:
        wallet = await of_wallet(w)
        await w.made("WalletService.UpdateWallet", wallet, header="nothing")
        words = {**wallet, "metadata": {"a": "b"}}
        reused = await w.send("WalletService.UpdateWallet", words, header="nothing")
        closing = {**wallet, "status": "closed"}
        closed = await w.made("WalletService.UpdateWallet", closing, header="close")
        again = await w.made("WalletService.UpdateWallet", closing, header="close")
        without = await w.send("WalletService.UpdateWallet", closing)

        # The next wallet of the customer has a namespace of its own.
        new = {"customer_id": closed["customer_id"], "currency_id": "USD", "amount": "5"}
        given = await w.made(
            "PaymentKitService.CreateGrant", {**new, "category": "paid"}, header="close"
        )

    assert failure(reused) == Failure(409, "IDEMPOTENCY_KEY_REUSED", KEY)
    assert again == closed
    assert given["wallet_id"] != closed["id"]
    assert failure(without).code == "WALLET_CLOSED"


@pytest.mark.only("postgresql")
async def test_of_two_servers_one_changes_the_wallet(database_url: str, clock: Clock) -> None:
    """Two statements closed, two limits set and two dropped under one key at once: one of each."""
    async with running(database_url, clock) as one, running(database_url, clock) as other:
        await one.local.new_wallet("wal_acme", "cus_acme")
        both = one.local, other.local
        month = statement_pb.StatementServiceCloseRequest(wallet_id="wal_acme", month="2020-02")
        month.idempotency_key = "close"
        closed = await asyncio.gather(
            *(StatementServiceStub(s.channel).Close(month) for s in both * 3)
        )
        limit = limit_pb.SetSpendLimitRequest(wallet_id="wal_acme", amount="1", period="day")
        limit.idempotency_key = "set"
        made = await asyncio.gather(*(s.wallets.SetSpendLimit(limit) for s in both * 3))
        drop = limit_pb.DeleteSpendLimitRequest(wallet_id="wal_acme", spend_limit_id=made[0].id)
        drop.idempotency_key = "drop"
        dropped = await asyncio.gather(*(s.wallets.DeleteSpendLimit(drop) for s in both * 3))

    assert [len(set(map(str, answers))) for answers in (closed, made, dropped)] == [1, 1, 1]
    operations = select(schema.postings.c.operation).order_by(schema.postings.c.number)
    assert look(database_url, lambda c: c.execute(operations).scalars().all()) == [21, 19, 20]


async def test_of_many_at_once_one_is_the_change(database_url: str, clock: Clock) -> None:
    """Two servers where the database takes two: one customer is made, all answers name it."""
    async with AsyncExitStack() as opened_:
        count = 1 if is_file(database_url) else 2
        servers = [
            await opened_.enter_async_context(running(database_url, clock)) for _ in range(count)
        ]
        request = registry_pb.CreateCustomerRequest(name="Acme", email="a@example.com")
        request.idempotency_key = "one"
        calls = [servers[n % count].local.registry.CreateCustomer(request) for n in range(12)]
        made = await asyncio.gather(*calls)

    assert len({one.id for one in made}) == 1
    assert look(database_url, lambda c: len(c.execute(select(schema.customers)).all())) == 1


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("loses", ["commit", "answer"])
async def test_a_change_whose_commit_answer_is_lost(
    database_url: str, clock: Clock, loses: Lose
) -> None:
    """The caller is told that nobody knows; repeated under its key it is there once."""
    async with proxy(database_url) as between, running(between.url, clock) as started:
        request = registry_pb.CreateCustomerRequest(name="Acme", email="a@example.com")
        request.idempotency_key = "one"
        between.lose = loses
        lost = await serving_refused(started.local.registry.CreateCustomer(request))
        again = await started.local.registry.CreateCustomer(request)

    assert lost.reason == "OUTCOME_UNKNOWN"
    found = look(database_url, lambda c: c.execute(select(schema.customers.c.id)).scalars().all())
    assert found == [again.id]


async def test_each_part_of_a_long_change_is_done_once(store: Store) -> None:
    """Every caller, at once or after an interruption, is told how many there were."""
    intent = Intent("", True, "A/B", "one", {"status": "x"}, None, START)

    def work(connection: Connection, place: str) -> Count:
        # Not `create_customer`: what is done twice has to fail.
        values = {"name": "", "email": "", "metadata": "{}", "created_at": START}
        values["id"] = f"cus_{place}"
        connection.execute(schema.customers.insert().values(values))
        return Count(1, None if place == "6" else str(int(place) + 1))

    async def go_on(most: int) -> Count:
        so_far = Count(0, "1")
        while so_far.place is not None and most:
            so_far, most = await store.write(partial(step, so_far)), most - 1
        return so_far

    def step(so_far: Count, connection: Connection) -> Count:
        return change_keys.step(connection, intent, so_far, work)

    cut_off = await go_on(2)
    both = await asyncio.gather(go_on(99), go_on(99))
    after = await go_on(99)
    with pytest.raises(IdempotencyKeyReused) as reused:
        await store.write(
            lambda c: change_keys.step(c, replace(intent, request={}), Count(0, "1"), work)
        )

    assert cut_off == Count(2, "3")
    assert [*both, after] == [Count(6, None)] * 3
    assert reused.value.metadata == {"fields": "status"}


async def test_keys_are_kept_for_ever(database_url: str, clock: Clock) -> None:
    """The database itself refuses that one is deleted."""
    async with running(database_url, clock) as started:
        request = registry_pb.CreateCustomerRequest(name="Acme", email="a@example.com")
        request.idempotency_key = "one"
        await started.local.registry.CreateCustomer(request)

    with pytest.raises((DBAPIError, CannotOpen)):
        change(database_url, lambda c: c.execute(schema.change_keys.delete()))
