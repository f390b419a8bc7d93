"""Sums at the bounds of what the ledger takes: what fits is exact in every read, the rest refused.

Postings of the largest amounts, many at a time, are made in wallets of three scales. What is then
read is compared with the rows, which Python adds up.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from credit.v1 import wallet_service_pb2 as pb
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import Default
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from creditledger.domain import billing_periods, money
from creditledger.domain import clock as time
from creditledger.domain.model import Kind
from creditledger.store import schema
from creditledger.store.migrations import versions
from tests.support.refusals import bearer, refusal
from tests.support.server import Running, running
from tests.support.setup import START, Clock, change, findings, is_file, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from google.protobuf.message import Message
    from sqlalchemy import Connection

    from tests.support.refusals import Metadata

MOST = money.AMOUNT_MAX
#: The wallets by id: the currency and its scale. Each is of a customer of its own.
WALLETS = {
    "wal_usd": ("USD", 9),
    "wal_other": ("USD", 9),
    "wal_points": ("PTS", 0),
    "wal_credit": ("CREDIT", 6),
}
METER = "mtr_points"
#: So many of the largest amount pass what a wallet may ever be given, or use.
MANY = 91
READS = ("Get", "List", "Retrieve", "Summary", "Export", "Render", "Watch", "Overview", "Reconcile")
#: A payment of an amount that no wallet holds, as bytes are written in JSON.
RECEIPTS = b64encode(
    b"id,created,amount,currency,customer\nch_1,4000000000,999999999999999999.99,usd,cus_wal_usd\n"
).decode()
LAST_DAY = time.text(START - START % time.DAY), time.text(START + 2 * time.DAY)


def amount(units: int, wallet_id: str) -> str:
    return money.text(units, WALLETS[wallet_id][1])


def units(said: str, scale: int) -> int:
    return int(Decimal(said).scaleb(scale))


@dataclass(slots=True)
class World:
    """A server with the wallets, and what was accepted in them."""

    started: Running
    clock: Clock
    keys: dict[str, Metadata]  #: Of each wallet's customer.
    made: dict[str, list[str]] = field(default_factory=dict)  #: Posting ids of consumptions.
    reasons: set[str] = field(default_factory=set)
    grants: list[str] = field(default_factory=list)
    transactions: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    numbers: count[int] = field(default_factory=lambda: count(1))

    # --- writing ---

    async def post(self, wallet_id: str, operation: dict[str, Any], times: int) -> int:
        """So many equal postings; how many were accepted. The others were refused in order."""
        batch = pb.BatchPostRequest()
        for _ in range(times):
            body = {"wallet_id": wallet_id, "idempotency_key": f"key {next(self.numbers)}"}
            json_format.ParseDict({**body, **operation}, batch.postings.add())
        answer = await self.started.local.wallets.BatchPost(batch)
        accepted = 0
        for one in answer.results:
            if one.HasField("posting"):
                accepted += 1
                self._remember(wallet_id, operation, one.posting)
            else:
                self.reasons.add(one.error.code)
        return accepted

    def _remember(self, wallet_id: str, operation: dict[str, Any], posting: pb.Posting) -> None:
        if "consumption" in operation:
            self.made.setdefault(wallet_id, []).append(posting.posting_id)
        for row in posting.transactions:
            self.transactions.append(row.id)
            if row.credit_grant_id:
                self.grants.append(row.credit_grant_id)

    async def call(self, method: str, body: dict[str, Any], key: Metadata | None = None) -> Any:
        """The answer of one RPC, or of a stream its messages; `key`: of the caller, else local."""
        service, _, name = method.partition(".")
        found = Default().FindServiceByName(f"credit.v1.{service}").methods_by_name[name]
        request = json_format.ParseDict(body, message_factory.GetMessageClass(found.input_type)())
        # Of which kind the call is, the descriptor says.
        channel: Any = (self.started.local if key is None else self.started.network).channel
        open_ = channel.unary_stream if found.server_streaming else channel.unary_unary
        call = open_(
            f"/credit.v1.{service}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(found.output_type).FromString,
        )(request, metadata=key)
        if not found.server_streaming:
            return await call
        if name.startswith("Watch"):
            first = await call.read()
            call.cancel()
            return [first]
        return [message async for message in call]

    async def report(self, wallet_id: str, value: int, times: int) -> None:
        """So many meter events, all accepted or refused for what they are owed."""
        for _ in range(times):
            payload = {"customer_id": f"cus_{wallet_id}", "value": amount(value, wallet_id)}
            body = {"event_name": "points", "payload": payload}
            body["identifier"] = f"event {next(self.numbers)}"
            try:
                answer = await self.call("PaymentKitService.CreateMeterEvent", body)
                self.events.append(answer.id)
            except grpc.aio.AioRpcError as error:
                self.reasons.add(refusal(error).reason)

    async def hold(self, wallet_id: str, units_: int, *, capture: bool) -> None:
        """A hold, captured whole or left open."""
        body = {"wallet_id": wallet_id, "amount": amount(units_, wallet_id)}
        body["idempotency_key"] = f"key {next(self.numbers)}"
        try:
            held = (await self.call("WalletService.Hold", body)).hold.id
            self.holds.append(held)
            if capture:
                key = f"key {next(self.numbers)}"
                whole = {"hold_id": held, "idempotency_key": key, "final": True}
                await self.call("WalletService.CaptureHold", whole)
        except grpc.aio.AioRpcError as error:
            self.reasons.add(refusal(error).reason)

    async def transfer(self, units_: int, times: int) -> None:
        """So many transfers between the two wallets in USD."""
        for _ in range(times):
            body = {"from_wallet_id": "wal_usd", "to_wallet_id": "wal_other"}
            body |= {"amount": amount(units_, "wal_usd"), "idempotency_key": ""}
            body["idempotency_key"] = f"key {next(self.numbers)}"
            try:
                await self.call("WalletService.Transfer", body)
            except grpc.aio.AioRpcError as error:
                self.reasons.add(refusal(error).reason)

    # --- reading ---

    def requests(self) -> dict[str, list[dict[str, Any]]]:
        """What is asked of each RPC that only reads; none where there is nothing to ask for."""
        start, end = (time.parse(one, field="") // time.SECOND for one in LAST_DAY)
        window = {"start": str(start), "end": str(end)}
        period = {"start": LAST_DAY[0], "end": LAST_DAY[1]}
        wallets = [{"wallet_id": one} for one in WALLETS]
        customers = [{"customer_id": f"cus_{one}"} for one in WALLETS]
        bought = [{"id": one} for one in self.grants[-2:]]
        shown = [{"id": one} for one in self.transactions[-2:]]
        postings = [one[-1] for one in self.made.values()]
        bill = {"startTime": str(start), "endTime": str(end)}
        units_ = [
            {"cycleType": cycle, "currency": code, **bill}
            for cycle in billing_periods.CYCLES
            for code in ("USD", "PTS", "CREDIT")
        ]
        grouped = [{"group_by": one} for one in ("day", "hour,model", "api_key")]
        stats = {"meter_id": METER, **window}
        return {
            "ApiKeyService.GetCurrentApiKey": [],
            "ApiKeyService.ListApiKeys": [{}],
            "OperatorService.Overview": [{}],
            "OperatorService.Reconcile": [{"file": RECEIPTS, "start": LAST_DAY[0]}],
            "BillingService.ListTransactions": [{}, {"kind": "usage", "livemode": True}],
            "BillingService.ExportTransactions": [{}],
            "BillingService.GetMyUsage": [{**period_of_usage(), **one} for one in grouped],
            "BillingService.GetMyAccount": [{}],
            "BillingService.GetMyBalance": [period_of_usage()],
            "BillingService.ListApiKeyBills": units_,
            "CreditGrantService.Retrieve": bought,
            "CreditGrantService.List": [{}, *customers],
            "CreditGrantService.Summary": [*customers, *wallets],
            "CreditGrantService.ListTransactions": bought,
            "CreditGrantService.ListPostingGrants": [{"posting_id": one} for one in postings],
            "CreditTransactionService.Retrieve": shown,
            "CreditTransactionService.List": [{}, window, *customers, {"meter_id": METER}],
            "CreditTransactionService.Summary": [
                *customers,
                *({"currency_id": code} for code, _ in WALLETS.values()),
                {"currency_id": "USD", **window},
                {"meter_id": METER, "currency_id": "PTS"},
            ],
            "CreditTransactionService.Export": [{}, window, {"meter_id": METER}],
            "CreditTransactionService.RetrieveExport": [],
            "CreditTransactionService.Watch": [{"after": "beginning"}],
            "CreditTransactionService.WatchEvents": [{"after": "beginning"}],
            "PaymentKitService.GetMeter": [{"id": METER}],
            "PaymentKitService.ListMeters": [{}],
            "PaymentKitService.GetMeterEvent": [{"id": one} for one in self.events[-1:]],
            "PaymentKitService.ListMeterEvents": [{}, {"meter_id": METER}],
            "PaymentKitService.GetMeterEventStats": [
                {**stats, "granularity": one} for one in ("minute", "hour", "day")
            ],
            "PaymentKitService.GetPendingAmount": customers,
            "PaymentKitService.GetGrant": bought,
            "PaymentKitService.ListGrants": [{}, *customers],
            "PaymentKitService.GetGrantSummary": customers,
            "PaymentKitService.ListGrantHolders": [
                {"currency_id": code} for code, _ in WALLETS.values()
            ],
            "PaymentKitService.GetGrantStats": [
                {"currency_id": code, "start_date": str(start), "end_date": str(end)}
                for code, _ in WALLETS.values()
            ],
            "PaymentKitService.GetGrantAvailability": [
                {"customer_id": f"cus_{one}", "currency_id": code, "pending_amount": "1"}
                for one, (code, _) in WALLETS.items()
            ],
            "RegistryService.GetCustomer": customers,
            "RegistryService.ListCustomers": [{}],
            "RegistryService.GetMeter": [{"meter_id": METER}],
            "RegistryService.ListMeters": [{}],
            "RegistryService.GetSubscription": [],
            "RegistryService.ListSubscriptions": [{}],
            "RegistryService.GetCurrency": [{"currency_id": "PTS"}],
            "RegistryService.ListCurrencies": [{}],
            "StatementService.Get": [{**one, **period} for one in wallets],
            "StatementService.List": wallets,
            "StatementService.Retrieve": [],
            "StatementService.Render": [{**one, **period} for one in wallets],
            "StatementService.RenderClosed": [],
            "WalletService.GetWallet": wallets,
            "WalletService.GetBalance": [
                {**one, **more}
                for one in wallets
                for more in ({}, {"as_of": time.text(START)}, {"at_sequence": "0"})
            ],
            "WalletService.ListWallets": [{}, *customers],
            "WalletService.GetPosting": [],
            "WalletService.ListIdempotencyKeys": [],
            "WalletService.GetHold": [{"hold_id": one} for one in self.holds[-1:]],
            "WalletService.ListHolds": wallets,
            "WalletService.ListSpendLimits": wallets,
            "WebhookService.GetWebhookEndpoint": [],
            "WebhookService.ListWebhookEndpoints": [{}],
            "WebhookService.ListWebhookDeliveries": [],
            "WebhookService.GetWebhookDelivery": [],
        }

    async def read_everything(self) -> dict[str, str]:
        """Ask every read; the reasons of refusals, each with a call that was refused so."""
        found: dict[str, str] = {}
        for method, bodies in self.requests().items():
            keys: list[Metadata | None] = [None]
            if method.startswith("BillingService"):
                keys = [*self.keys.values()]
            for body in bodies:
                for key in keys:
                    try:
                        await self.call(method, body, key)
                    except grpc.aio.AioRpcError as error:
                        found.setdefault(refusal(error).reason, f"{method} {body}")
        return found


def period_of_usage() -> dict[str, Any]:
    return {"since": LAST_DAY[0], "until": LAST_DAY[1]}


def read_methods() -> set[str]:
    """The RPCs that only read, by their names."""
    found = set()
    for stub in ("api_key", "billing", "credit_grant", "credit_transaction", "operator",
                 "payment_kit", "registry", "statement", "wallet", "webhook"):  # fmt: skip
        module = import_module(f"credit.v1.{stub}_service_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            names = [method.name for method in service.methods if method.name.startswith(READS)]
            found |= {f"{service.name}.{name}" for name in names}
    return found


class Rows:
    """All that is in the ledger, added up by Python."""

    def __init__(self, url: str) -> None:
        def read(connection: Connection) -> tuple[list[Any], list[Any], list[Any], dict[str, int]]:
            wallets: dict[str, int] = dict(
                connection.execute(text("SELECT id, number FROM wallets")).all()
            )
            tables = (schema.transactions, schema.grants, schema.meter_events)
            t, g, e = ([*connection.execute(select(table))] for table in tables)
            return t, g, e, wallets

        self.rows, self.grants, self.events, self.numbers = look(url, read)

    def of(self, wallet_id: str, *kinds: Kind) -> int:
        number = self.numbers[wallet_id]
        return sum(
            row.amount for row in self.rows if row.wallet_number == number and row.kind in kinds
        )

    def count(self, wallet_id: str) -> int:
        return sum(row.wallet_number == self.numbers[wallet_id] for row in self.rows)


async def world(started: Running, clock: Clock) -> World:
    local = started.local
    keys = {}
    await made(local.registry.CreateCurrency, id="PTS", scale=0, name="Points")
    for wallet_id, (code, _) in WALLETS.items():
        customer = f"cus_{wallet_id}"
        await made(local.registry.CreateCustomer, id=customer, name="A", email="a@example.com")
        await made(local.wallets.CreateWallet, id=wallet_id, customer_id=customer, currency=code)
        secret = (await local.new_key("customer", customer)).secret
        keys[wallet_id] = bearer(secret)
    await made(
        local.registry.CreateMeter,
        id=METER,
        name="P",
        event_name="points",
        unit="p",
        currency_id="PTS",
    )
    return World(started, clock, keys)


async def made(create: Any, **fields: Any) -> Message:
    """What a create answers, given its request's fields."""
    name = create._method.decode().rpartition("/")[2]
    module = "wallet_service" if name == "CreateWallet" else "registry_service"
    request = getattr(import_module(f"credit.v1.{module}_pb2"), f"{name}Request")
    answer: Message = await create(request(**fields))
    return answer


async def compare(told: World, url: str) -> None:
    """What reads add up is what the rows come to."""
    rows = Rows(url)
    every = await told.call("CreditTransactionService.List", {})
    assert every.count == len(rows.rows)
    export = await told.call("CreditTransactionService.Export", {"format": "ndjson"})
    lines = b"".join(piece.data for piece in export).splitlines()
    assert sum(b'"id"' in line for line in lines) == len(rows.rows)
    used: dict[str, int] = {}
    for wallet_id, (code, scale) in WALLETS.items():
        customer = {"customer_id": f"cus_{wallet_id}"}
        spent = rows.of(wallet_id, Kind.USAGE)
        used[code] = used.get(code, 0) + spent
        summary = await told.call("CreditTransactionService.Summary", customer)
        assert units(summary.total_credit_amount, scale) == spent
        listed = await told.call("CreditTransactionService.List", customer)
        assert listed.count == rows.count(wallet_id)
        await compare_grants(told, rows, wallet_id)
        await compare_bills(told, wallet_id, -spent - rows.of(wallet_id, Kind.REFUND))
        statement = await told.call(
            "StatementService.Get",
            {"wallet_id": wallet_id, "start": LAST_DAY[0], "end": LAST_DAY[1]},
        )
        assert units(statement.closing_balance, scale) == rows.of(wallet_id, *Kind)
    for code, total in used.items():
        query = {"currency_id": code}
        for window in ({}, {"start": "0", "end": str(START // time.SECOND + 10**6)}):
            answer = await told.call("CreditTransactionService.Summary", {**query, **window})
            scale = dict(WALLETS.values())[code]
            assert units(answer.total_credit_amount, scale) == total
    await compare_events(told, rows)


async def compare_grants(told: World, rows: Rows, wallet_id: str) -> None:
    code, scale = WALLETS[wallet_id]
    answer = await told.call("CreditGrantService.Summary", {"wallet_id": wallet_id})
    number = rows.numbers[wallet_id]
    own = [grant.amount for grant in rows.grants if grant.wallet_number == number]
    granted = {one.currency: units(one.granted, scale) for one in answer.currencies}
    assert granted == ({code: sum(own)} if own else {})


async def compare_bills(told: World, wallet_id: str, charged: int) -> None:
    code, scale = WALLETS[wallet_id]
    start, end = (time.parse(one, field="") // time.SECOND for one in LAST_DAY)
    query = {"cycleType": "Month", "currency": code, "startTime": str(start), "endTime": str(end)}
    answer = await told.call("BillingService.ListApiKeyBills", query, told.keys[wallet_id])
    assert sum(units(bill.amount_decimal, scale) for bill in answer.bills) == charged
    assert all(one.amount == one.voucher_amount + one.pay_amount for one in answer.bills)
    if scale <= billing_periods.BILL_SCALE:
        parts = sum(bill.amount for bill in answer.bills)
        assert parts == charged * 10 ** (billing_periods.BILL_SCALE - scale)


async def compare_events(told: World, rows: Rows) -> None:
    start, end = (time.parse(one, field="") // time.SECOND for one in LAST_DAY)
    query = {"meter_id": METER, "start": str(start), "end": str(end), "granularity": "day"}
    stats = await told.call("PaymentKitService.GetMeterEventStats", query)
    assert sum(units(one.total_value, 0) for one in stats.list) == sum(
        event.value for event in rows.events
    )
    assert sum(one.event_count for one in stats.list) == len(rows.events)


NAMES = (
    *("topup", "renewal", "brief", "credit", "debit", "spend", "refund", "transfer"),
    *("spend", "spend", "event", "hold", "capture", "wait"),
)
#: What is done: (name, wallet, units, how often).
SOME = st.sampled_from([1, 9 * 10**14 // MANY, 9 * 10**14, 10**15, MOST - 1, MOST])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "topup",
                "renewal",
                "brief",
                "credit",
                "debit",
                "spend",
                "refund",
                "transfer",
                "spend",
                "spend",
                "event",
                "hold",
                "capture",
                "wait",
            ]
        ),
        st.sampled_from(list(WALLETS)),
        SOME,
        st.sampled_from([1, 2, 89, 90, MANY]),
    ),
    min_size=6,
    max_size=14,
)


async def step(told: World, name: str, wallet_id: str, size: int, times: int) -> None:
    said = amount(size, wallet_id)
    usage = {"quantities": ["1000000000000000"] * 6, "category": "llm", "product_id": "p"}
    operations: dict[str, dict[str, Any]] = {
        "topup": {"grant": {"amount": said}},
        "renewal": {"grant": {"amount": said, "kind": "subscription_renew"}},
        "brief": {"grant": {"amount": said, "kind": "admin_credit",
                            "expires_at": time.text(told.clock.now + time.HOUR)}},
        "credit": {"adjustment": {"amount": said}},
        "debit": {"adjustment": {"amount": f"-{said}", "force": True}},
        "spend": {"consumption": {"amount": said, "usage": usage}},
    }  # fmt: skip
    if name in operations:
        await told.post(wallet_id, operations[name], times)
    elif name == "refund":
        for posting in told.made.get(wallet_id, [])[-times:]:
            await told.post(wallet_id, {"refund": {"posting_id": posting}}, 1)
    elif name == "transfer":
        await told.transfer(size, min(times, 3))
    elif name == "event":
        await told.report("wal_points", size, min(times, 5))
    elif name in ("hold", "capture"):
        await told.hold(wallet_id, size, capture=name == "capture")
    else:
        told.clock.advance(10 * time.MINUTE)


@settings(
    max_examples=6,
    # Each example is a server of its own: to find a shorter one would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_every_read_at_the_bounds_says_what_the_rows_come_to(
    new_database: Callable[[], str], steps: list[tuple[str, str, int, int]]
) -> None:
    """With the largest amounts that are taken, no read fails and no sum loses a digit."""
    url, clock = new_database(), Clock()

    async def run() -> None:
        async with running(url, clock) as started:
            told = await world(started, clock)
            await told.post("wal_usd", {"grant": {"amount": amount(MOST, "wal_usd")}}, 90)
            for one in steps:
                await step(told, *one)
            assert "INTERNAL" not in told.reasons
            assert await told.read_everything() == {}
            await compare(told, url)

    asyncio.run(run())
    assert findings(url) == []


def test_every_read_is_asked_for() -> None:
    """A read that is added to the contract is added here too."""
    assert set(World(None, Clock(), {}).requests()) == read_methods()  # type: ignore[arg-type] # no call is made


@pytest.fixture
async def told(database_url: str, clock: Clock) -> AsyncIterator[World]:
    async with running(database_url, clock) as started:
        yield await world(started, clock)


async def test_usage_that_bills_could_not_say_is_refused(told: World, database_url: str) -> None:
    """In a currency without digits 10^15 passes 64 bits in 1/10000; what just fits is billed."""
    await told.post("wal_points", {"grant": {"amount": str(10**15)}}, 1)

    assert await told.post("wal_points", {"consumption": {"amount": str(10**15)}}, 1) == 0
    assert told.reasons == {"OUT_OF_RANGE"}
    assert await told.post("wal_points", {"consumption": {"amount": str(9 * 10**14)}}, 1) == 1
    assert await told.post("wal_points", {"consumption": {"amount": "1"}}, 1) == 0
    await compare_bills(told, "wal_points", 9 * 10**14)
    await compare(told, database_url)


async def test_a_hold_that_could_not_be_captured_is_refused(told: World) -> None:
    """A hold is bounded as usage is, since it is made to be captured."""
    await told.post("wal_points", {"grant": {"amount": str(10**16)}}, 1)

    await told.hold("wal_points", 10**15, capture=False)
    assert told.reasons == {"OUT_OF_RANGE"}
    await told.hold("wal_points", 9 * 10**14, capture=True)
    assert told.reasons == {"OUT_OF_RANGE"}


async def test_events_are_bounded_by_what_they_will_use(told: World, database_url: str) -> None:
    """Unpaid meter events count, since credit that comes later can pay all of them."""
    await told.report("wal_points", 9 * 10**14 - 1, 1)
    await told.report("wal_points", 2, 1)
    assert told.reasons == {"OUT_OF_RANGE"}
    await told.report("wal_points", 1, 1)
    await told.post("wal_points", {"grant": {"amount": str(10**15)}}, 1)

    assert Rows(database_url).of("wal_points", Kind.USAGE) == -9 * 10**14
    await compare(told, database_url)


async def test_sums_over_wallets_pass_64_bits(told: World, database_url: str) -> None:
    """Two wallets each use as much as a wallet may, and the sums of both are exact."""
    for wallet_id in ("wal_usd", "wal_other"):
        said = amount(MOST, wallet_id)
        assert await told.post(wallet_id, {"grant": {"amount": said}}, MANY) == 90
        assert await told.post(wallet_id, {"consumption": {"amount": said}}, 90) == 90

    await compare(told, database_url)
    answer = await told.call("CreditTransactionService.Summary", {"currency_id": "USD"})
    assert answer.total_credit_amount == "-18000000000.00"


async def test_events_of_several_wallets_pass_64_bits(told: World, database_url: str) -> None:
    """The values of a meter's events add up beyond what one wallet may owe."""
    await made(
        told.started.local.registry.CreateMeter,
        id="mtr_c",
        name="C",
        event_name="c",
        unit="c",
        currency_id="CREDIT",
    )
    payers = ["wal_credit", "wal_more"]
    local = told.started.local
    await made(local.registry.CreateCustomer, id="cus_wal_more", name="B", email="b@example.com")
    await made(
        local.wallets.CreateWallet, id="wal_more", customer_id="cus_wal_more", currency="CREDIT"
    )
    for wallet_id in payers:
        for number in range(47):
            payload = {"customer_id": f"cus_{wallet_id}", "value": str(10**11)}
            body = {"event_name": "c", "identifier": f"{number}", "payload": payload}
            await told.call("PaymentKitService.CreateMeterEvent", body)

    start, end = (time.parse(one, field="") // time.SECOND for one in LAST_DAY)
    query = {"meter_id": "mtr_c", "start": str(start), "end": str(end), "granularity": "day"}
    (bucket,) = (await told.call("PaymentKitService.GetMeterEventStats", query)).list
    assert bucket.total_value == f"{94 * 10**11}.00"
    assert len(Rows(database_url).events) == 94


@pytest.mark.parametrize("kind", ["admin_credit", "subscription_renew"])
async def test_what_a_wallet_is_given_in_its_life_is_bounded(
    told: World, database_url: str, kind: str
) -> None:
    """Sums within a quarter of an hour pass no bound, and no fold becomes a float."""
    said = amount(MOST, "wal_usd")
    accepted = 0
    for _ in range(MANY + 4):
        operation = {"grant": {"amount": said, "kind": kind}}
        accepted += await told.post("wal_usd", operation, 1)
        await told.post("wal_usd", {"adjustment": {"amount": f"-{said}"}}, 1)

    assert accepted == 90
    assert told.reasons == {"OUT_OF_RANGE", "INSUFFICIENT_CREDIT"}
    assert told.started.server.background is not None
    assert await told.started.server.background.folder.fold_all()
    folds = look(database_url, lambda c: c.execute(select(schema.folds)).all())
    assert all(isinstance(value, int) for row in folds for value in row)
    assert sorted(row.amount for row in folds) == [-90 * MOST, 90 * MOST]
    await compare(told, database_url)


async def test_what_is_overdrawn_counts_as_given(told: World, database_url: str) -> None:
    """A wallet that owes has taken more than it was given: what it owes is bounded with that."""
    said = amount(MOST, "wal_usd")
    debit = {"adjustment": {"amount": f"-{said}", "force": True}}
    assert await told.post("wal_usd", debit, 45) == 45
    assert await told.post("wal_usd", {"grant": {"amount": said}}, 45) == 45
    assert await told.post("wal_usd", debit, MANY) == 45
    assert told.reasons == {"OUT_OF_RANGE"}

    await compare(told, database_url)


async def test_what_an_older_ledger_has_beyond_is_too_large_to_answer(
    told: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bills that 64 bits cannot say are RESULT_TOO_LARGE; exports and what fits are served."""
    monkeypatch.setattr(billing_periods, "usage_max", lambda _scale: money.TOTAL_MAX)
    await told.post("wal_points", {"grant": {"amount": str(10**16)}}, 1)
    assert await told.post("wal_points", {"consumption": {"amount": str(10**15)}}, 1) == 1
    monkeypatch.undo()

    refused = await told.read_everything()
    assert list(refused) == ["RESULT_TOO_LARGE"], refused
    export = await told.call("CreditTransactionService.Export", {"format": "ndjson"})
    assert str(10**15).encode() in b"".join(piece.data for piece in export)
    # What it has used bars it from using more, and from nothing else.
    assert await told.post("wal_points", {"consumption": {"amount": "1"}}, 1) == 0
    assert await told.post("wal_points", {"grant": {"amount": "1"}}, 1) == 1


def test_what_was_ever_given_is_added_up_by_migration(new_database: Callable[[], str]) -> None:
    """The migration adds up the rows that gave; beyond 64 bits it writes the largest number."""
    url, clock = new_database(), Clock()

    async def run() -> None:
        async with running(url, clock) as started:
            told = await world(started, clock)
            await told.post("wal_usd", {"grant": {"amount": "3"}}, 2)
            await told.post("wal_usd", {"consumption": {"amount": "5"}}, 1)
            await told.post("wal_usd", {"refund": {"posting_id": told.made["wal_usd"][0]}}, 1)
            await told.post("wal_points", {"grant": {"amount": "1"}}, 93)

    asyncio.run(run())

    def again(connection: Connection) -> dict[str, int]:
        guard = "DROP TRIGGER credit_transactions_no_update"
        connection.exec_driver_sql(guard if is_file(url) else f"{guard} ON credit_transactions")
        connection.exec_driver_sql(
            f"UPDATE credit_transactions SET amount = {MOST} WHERE amount = 1"
        )
        connection.exec_driver_sql("ALTER TABLE wallet_states DROP COLUMN credited_amount")
        with Operations.context(MigrationContext.configure(connection)):
            import_module(f"{versions.__name__}.0016_what_was_ever_given").upgrade()
        query = (
            "SELECT id, credited_amount FROM wallets JOIN wallet_states ON number = wallet_number"
        )
        return dict(connection.exec_driver_sql(query).all())

    assert change(url, again) == {
        "wal_usd": 11 * 10**9,
        "wal_other": 0,
        "wal_points": 2**63 - 1,
        "wal_credit": 0,
    }
