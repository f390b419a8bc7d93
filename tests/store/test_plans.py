"""How SQLite finds what is read: by its keys, never by reading a large table from end to end.

SQLite plans without knowing how large a table is, so what it does with a few rows it does with ten
million. For PostgreSQL see test_distribution.py.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1 import webhook_service_pb2 as hooks_pb

from creditledger.domain import clock as time
from creditledger.domain.clock import SECOND
from creditledger.domain.webhook_events import EventType
from creditledger.outlets import watches
from tests.support.server import CUSTOMER, TWO_DAYS_OF_BILLS, consume, grant, post, refund, serve
from tests.support.setup import START, file_of
from tests.support.statements_recorded import LARGE, Said, recorded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.refusals import Metadata
    from tests.support.server import Api
    from tests.support.setup import Clock

pytestmark = pytest.mark.only("sqlite")

SHOP, OWNER = "wal_shop", "cus_shop"
#: The window of a summary, which cuts quarters of an hour.
AROUND = {"start": START // SECOND - 5_000, "end": START // SECOND + 5_000}


async def asked(heard: list[Said], what: Callable[[], Awaitable[object]]) -> list[Said]:
    heard.clear()
    await what()
    return [one for one in heard if one.text.startswith(("SELECT", "WITH"))]


def scanned(url: str, statements: list[Said]) -> list[str]:
    """The tables that are read from end to end, indexes too."""
    with closing(sqlite3.connect(file_of(url))) as connection:
        plans = [
            detail
            for one in statements
            for _, _, _, detail in connection.execute(f"EXPLAIN QUERY PLAN {one.text}", one.values)
        ]
    assert any(plan.startswith("SEARCH ") for plan in plans)
    return [plan for plan in plans if plan.startswith("SCAN ") and plan.split()[1] in LARGE]


async def test_what_is_due_is_found_by_its_end(database_url: str, clock: Clock) -> None:
    """The sweeper reads what is over, not what there is."""
    with recorded() as heard:
        async with serve(database_url, clock, sweep_interval_seconds=86_400) as api:
            await api.post("given", **grant("100"))
            assert api.server.background is not None
            looked = await asked(heard.reading, api.server.background.sweeper.sweep)

    grants, holds, events = [" ".join(one.text.split()) for one in looked]
    assert "FROM grants" in grants
    assert "FROM holds" in holds
    assert "FROM meter_events" in events
    assert scanned(database_url, looked) == []


@pytest.mark.parametrize("wallets", [1, 2])
async def test_nothing_of_a_customer_is_found_by_reading_it_all(
    database_url: str, clock: Clock, wallets: int
) -> None:
    """Pages of several rows, by number and token, totals, sums, the billing list, bills, usage."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            meter = registry_pb.CreateMeterRequest(
                id="mtr_tokens", name="Tokens", event_name="tokens", unit="token"
            )
            await api.local.registry.CreateMeter(meter)
            await api.local.new_wallet(SHOP, OWNER)
            if wallets == 2:
                other = pb.CreateWalletRequest(id="wal_yuan", customer_id=OWNER, currency="CNY")
                await api.local.wallets.CreateWallet(other)
            given = await api.post("given", SHOP, **grant("100"))
            await api.post("more", SHOP, **grant("1"))
            for n in range(5):
                await api.post(f"spent {n}", SHOP, **consume("1", meter_id="mtr_tokens"))
            owner = await api.local.key("customer", OWNER)

            async def listed(**filters: Any) -> object:
                request = list_pb.CreditTransactionServiceListRequest(
                    page_size=3, customer_id=OWNER, **filters
                )
                page = await api.transactions.List(request, metadata=api.service)
                assert len(page.list) == 3
                request.page_token = page.paging.next_page_token
                return await api.transactions.List(request, metadata=api.service)

            async def summed(**filters: Any) -> object:
                request = list_pb.CreditTransactionServiceSummaryRequest(
                    customer_id=OWNER, currency_id="USD", **filters
                )
                return await api.transactions.Summary(request, metadata=api.service)

            async def history(**filters: Any) -> object:
                request = billing_pb.ListTransactionsRequest(page_size=2, **filters)
                return await api.billing.ListTransactions(request, metadata=owner)

            async def bills(cycle: str = "Day") -> object:
                request = billing_pb.ListApiKeyBillsRequest()
                request.CopyFrom(TWO_DAYS_OF_BILLS)
                request.cycle_type = cycle
                return await api.billing.ListApiKeyBills(request, metadata=owner)

            async def usage(group_by: str) -> object:
                request = billing_pb.GetMyUsageRequest(group_by=group_by, api_key="sk-****none")
                return await api.billing.GetMyUsage(request, metadata=owner)

            async def account() -> object:
                return await api.billing.GetMyAccount(
                    billing_pb.GetMyAccountRequest(), metadata=owner
                )

            async def balance() -> object:
                return await api.billing.GetMyBalance(
                    billing_pb.GetMyBalanceRequest(), metadata=owner
                )

            async def stood(**moment: Any) -> object:
                request = pb.GetBalanceRequest(wallet_id=SHOP, **moment)
                return await api.wallets.GetBalance(request, metadata=owner)

            async def granted() -> object:
                return await two_pages_of_grants(api, owner)

            async def sums() -> object:
                request = grants_pb.CreditGrantServiceSummaryRequest(customer_id=OWNER)
                return await api.grants.Summary(request, metadata=owner)

            async def rows(order: str) -> object:
                request = grants_pb.CreditGrantServiceListTransactionsRequest(
                    id=given.transactions[0].credit_grant_id, order=order
                )
                return await api.grants.ListTransactions(request, metadata=owner)

            async def paid() -> object:
                request = grants_pb.CreditGrantServiceListPostingGrantsRequest(
                    posting_id=given.posting_id
                )
                return await api.grants.ListPostingGrants(request, metadata=owner)

            managed = (
                *(granted, sums, paid),
                *(lambda: rows("newest"), lambda: rows("oldest")),
            )
            for what in (
                listed,
                lambda: listed(**AROUND),
                lambda: listed(meter_id="mtr_tokens"),
                lambda: listed(meter_id="mtr_tokens", **AROUND),
                summed,
                lambda: summed(meter_id="mtr_tokens", **AROUND),
                history,
                lambda: history(kind="usage"),
                lambda: history(kind="usage", page=2),
                bills,
                lambda: bills("Hour"),
                lambda: usage("hour"),
                lambda: usage("model"),
                account,
                balance,
                *managed,
                lambda: api.wallet_now(SHOP),
                lambda: stood(as_of=time.text(START - 1)),
                lambda: stood(at_sequence=1),
                lambda: stood(at_sequence=5),
                lambda: api.found("spent 1", SHOP),
            ):
                statements = await asked(heard.reading, what)
                assert scanned(database_url, statements) == []


async def test_a_filtered_page_of_a_wallet_ends_where_it_is_full(
    database_url: str, clock: Clock
) -> None:
    """Its rows are read backwards from the newest, and their dimensions are found before them."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            meter = registry_pb.CreateMeterRequest(
                id="mtr_tokens", name="Tokens", event_name="tokens", unit="token"
            )
            await api.local.registry.CreateMeter(meter)
            given = await api.post("given", **grant("100"))
            await api.post("more", **grant("1"))
            for n in range(5):
                await api.post(f"spent {n}", **consume("1", meter_id="mtr_tokens"))

            async def listed(**filters: Any) -> object:
                request = list_pb.CreditTransactionServiceListRequest(page_size=2, **filters)
                page = await api.transactions.List(request, metadata=api.service)
                assert len(page.list) == 2
                request.page_token = page.paging.next_page_token
                return await api.transactions.List(request, metadata=api.service)

            grant_id = given.transactions[0].credit_grant_id
            for filters in ({"meter_id": "mtr_tokens"}, {"credit_grant_id": grant_id}):
                statements = await asked(
                    heard.reading, partial(listed, customer_id=CUSTOMER, **filters)
                )
                pages = [one for one in statements if "LIMIT" in one.text]
                assert len(pages) == 2
                with closing(sqlite3.connect(file_of(database_url))) as connection:
                    for one in pages:
                        plan = connection.execute(f"EXPLAIN QUERY PLAN {one.text}", one.values)
                        steps = str(plan.fetchall())
                        assert "TEMP B-TREE" not in steps
                        assert "CORRELATED" not in steps


async def two_pages_of_grants(api: Api, key: Metadata) -> object:
    request = grants_pb.CreditGrantServiceListRequest(page_size=1, status="granted")
    page = await api.grants.List(request, metadata=key)
    assert page.next_page_token
    request.page_token = page.next_page_token
    return await api.grants.List(request, metadata=key)


async def test_grants_of_all_wallets_come_in_order(database_url: str, clock: Clock) -> None:
    """A page of them is the end of an index, not all of them sorted."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            for n in range(2):
                await api.post(f"given {n}", **grant("1"))
            statements = await asked(heard.reading, lambda: two_pages_of_grants(api, api.service))
    listed = [one for one in statements if "ORDER BY grants.created_at" in one.text]
    assert len(listed) == 2
    with closing(sqlite3.connect(file_of(database_url))) as connection:
        for one in listed:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {one.text}", one.values)
            steps = str(plan.fetchall())
            assert "INDEX grants_created" in steps
            assert "TEMP B-TREE" not in steps


async def test_a_rare_kind_is_found_by_its_index(database_url: str, clock: Clock) -> None:
    """Page, total and deep page of refunds: not by going back through all that lies between."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            request = billing_pb.ListTransactionsRequest(kind="refund", page=2, page_size=1)
            for n in range(3):
                await api.post(f"given {n}", **grant("1"))
                spent = await api.post(f"spent {n}", **consume("1"))
                await api.post(f"back {n}", **refund(spent.posting_id))
            statements = await asked(
                heard.reading,
                lambda: api.billing.ListTransactions(request, metadata=api.customer),
            )
    of_kind = [one for one in statements if "credit_transactions.kind = 5" in one.text]
    assert len(of_kind) >= 2
    with closing(sqlite3.connect(file_of(database_url))) as connection:
        for one in of_kind:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {one.text}", one.values)
            assert "INDEX credit_transactions_kind" in str(plan.fetchall())


async def test_what_is_used_up_is_not_read(database_url: str, clock: Clock) -> None:
    """A wallet comes with its open grants and holds, not with all that it ever had."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            statements = await asked(heard.reading, api.wallet_now)
    for table in ("grants", "holds"):
        (one,) = [one for one in statements if f"FROM {table}" in one.text]
        with closing(sqlite3.connect(file_of(database_url))) as connection:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {one.text}", one.values)
            assert f"INDEX {table}_open" in str(plan.fetchall())


async def test_webhooks_read_what_is_new_and_what_is_due(database_url: str, clock: Clock) -> None:
    """Steps along the rows, looks by time, what is sent, replayed and forgotten."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            assert api.server.background is not None
            notifier, deliverer = api.server.background.notifier, api.server.background.deliverer
            events = [one.word for one in EventType]
            thresholds = [
                hooks_pb.WebhookThreshold(percent=50),
                hooks_pb.WebhookThreshold(amount="3", currency_id="USD"),
            ]
            new = hooks_pb.CreateWebhookEndpointRequest(
                url="https://acme.invalid/", events=events, thresholds=thresholds
            )
            made = await api.webhooks.CreateWebhookEndpoint(new, metadata=api.service)
            for n in range(150):
                await api.local.new_wallet(f"wal_{n}", f"cus_{n}")
                end = time.text(clock.now + time.DAY)
                await api.post(f"given {n}", f"wal_{n}", **grant("2", expires_at=end))
            for n in range(150):
                await api.post(f"spent {n}", f"wal_{n}", **consume("1"))
            await api.wallets.Hold(
                pb.HoldRequest(wallet_id="wal_1", idempotency_key="h", amount="1", ttl_seconds=1),
                metadata=api.service,
            )
            clock.advance(2 * SECOND)
            looked = await asked(heard.reading, notifier.follow)
            assert any("first_sequence" in one.text for one in looked)
            looked += await asked(heard.reading, notifier.look)
            looked += await asked(heard.reading, deliverer.send)
            looked += await asked(heard.reading, deliverer.forget)
            hook = made.webhook_endpoint.id
            log = hooks_pb.ListWebhookDeliveriesRequest(id=hook, page_size=100)
            listed = await api.webhooks.ListWebhookDeliveries(log, metadata=api.service)
            assert len(listed.webhook_deliveries) == 100

            async def replay() -> None:
                request = hooks_pb.ReplayWebhookDeliveriesRequest(id=hook, status="failed")
                await api.webhooks.ReplayWebhookDeliveries(request, metadata=api.service)
                log.page_token = listed.next_page_token
                await api.webhooks.ListWebhookDeliveries(log, metadata=api.service)

            looked += await asked(heard.reading, replay)

    assert scanned(database_url, looked) == []


async def test_a_watch_reads_what_is_new(database_url: str, clock: Clock) -> None:
    """Steps of a watch, however many rows they have, and the look whether there is more."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            await api.post("given", **grant("1000"))
            await api.batch(post(f"{n}", **consume("1")) for n in range(watches.STEP_ROWS))

            async def watched() -> None:
                request = list_pb.CreditTransactionServiceWatchRequest(after="beginning")
                call: Any = api.transactions.Watch(request, metadata=api.service)
                rows = 0
                while rows <= watches.STEP_ROWS:
                    rows += len((await call.read()).transactions)
                await asyncio.sleep(2 * watches.LOOK_SECONDS)
                call.cancel()

            statements = await asked(heard.reading, watched)

    assert sum("coalesce(max(position)" in one.text for one in statements) > 2
    assert scanned(database_url, statements) == []


async def test_a_scan_is_seen(database_url: str) -> None:
    """What would be found above."""
    by_wallet = Said("SELECT amount FROM credit_transactions WHERE wallet_number = ?", (1,))
    by_amount = Said("SELECT amount FROM credit_transactions WHERE amount = ?", (1,))

    assert scanned(database_url, [by_wallet]) == []
    assert scanned(database_url, [by_wallet, by_amount]) == ["SCAN credit_transactions"]
