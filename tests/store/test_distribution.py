"""The large tables can be spread over machines by wallet: by their keys, and by what is asked.

What a hot statement reads is what PostgreSQL plans for it: each look into a large table is by the
wallet. Without that a machine that has one part of the wallets would have to ask the others.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import payment_kit_service_pb2 as kit_pb
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import statement_service_pb2 as statement_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub
from sqlalchemy import UniqueConstraint

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.clock import SECOND
from creditledger.store import schema
from tests.support.databases import connect, execute
from tests.support.server import TWO_DAYS_OF_BILLS, consume, grant, post, refund, running, serve
from tests.support.setup import START
from tests.support.statements_recorded import LARGE, nodes, recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.server import Api
    from tests.support.setup import Clock
    from tests.support.statements_recorded import Recorded, Said

pytestmark = pytest.mark.only("postgresql")

#: Small, rarely changed, and copied to every machine.
SMALL = {
    *("currencies", "customers", "meters", "subscriptions", "api_keys", "wallets"),
    *("webhook_endpoints", "webhook_feed", "clock_seen", "clock_acceptances", "change_keys"),
    *("exports", "session_codes", "last_verification"),
}
#: Large, and written by what comes after postings: of these a batch knows nothing.
BEHIND = {"webhook_deliveries", "folds", "day_folds", "fold_ends"}
BY = "wallet_number"
#: Not by wallet, nor unique: of each part by itself, for who reads all wallets.
OVER_ALL = {
    *("credit_transactions_created", "credit_transactions_place", "grants_created"),
    *("meter_events_created", "meter_events_meter"),
    *("grants_due", "holds_due", "holds_expired"),
    *("webhook_deliveries_due", "webhook_deliveries_log", "webhook_deliveries_age"),
}


# --- the keys -------------------------------------------------------------------------------------


def test_every_table_is_large_or_small() -> None:
    """A new table has to be thought about."""
    assert set(schema.postgresql.tables) == LARGE | SMALL


@pytest.mark.parametrize("name", sorted(LARGE))
def test_keys_begin_with_the_wallet(name: str) -> None:
    """As the queries know the tables: primary keys, unique constraints, indexes, references."""
    table = schema.postgresql.tables[name]
    keys = [[column.name for column in table.primary_key.columns]]
    unique = [one for one in table.constraints if isinstance(one, UniqueConstraint)]
    by_wallet = [index for index in table.indexes if index.name not in OVER_ALL]
    keys += [[column.name for column in one.columns] for one in unique]
    keys += [[column.name for column in one.columns] for one in by_wallet]

    assert {key[0] for key in keys} == {BY}
    assert not any(index.unique for index in table.indexes if index.name in OVER_ALL)
    # What a part refers to is in the part, or copied to it.
    assert {key.column.table.name for key in table.foreign_keys} <= SMALL


@pytest.mark.parametrize("name", sorted(SMALL))
def test_what_is_copied_refers_to_what_is_copied(name: str) -> None:
    """A small table does not need a large one."""
    table = schema.postgresql.tables[name]

    assert {key.column.table.name for key in table.foreign_keys} <= SMALL


#: Table, index, whether it is unique, its first column.
INDEXES = """
SELECT t.relname, i.relname, x.indisunique, a.attname
FROM pg_index AS x
JOIN pg_class AS t ON t.oid = x.indrelid
JOIN pg_class AS i ON i.oid = x.indexrelid
LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
WHERE t.relnamespace = 'public'::regnamespace"""
REFERENCES = """
SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND connamespace = 'public'::regnamespace"""


async def test_a_migrated_database_has_these_keys(database_url: str) -> None:
    """As PostgreSQL's own catalog has them."""
    found = await execute(database_url, INDEXES)
    references = await execute(database_url, REFERENCES)

    assert {table for table, *_ in found} == LARGE | SMALL | {"alembic_version"}
    large = [(name, unique, first) for table, name, unique, first in found if table in LARGE]
    assert {(name, unique) for name, unique, first in large if first != BY} == {
        (name, False) for name in OVER_ALL
    }
    assert sum(unique for _, unique, _ in large) >= len(LARGE)
    assert {to for _, to in references} <= SMALL


# --- the statements -------------------------------------------------------------------------------


class Plans:
    """How PostgreSQL would run statements, where it has no reason to scan small tables whole."""

    def __init__(self, connection: Any, indexes: dict[str, str]) -> None:
        self._connection = connection
        self._table_of = indexes

    async def elsewhere(self, text: str) -> list[str]:
        """The looks of the statement into large tables that are not by wallet, or by any wallet."""
        count = max(map(int, re.findall(r"\$(\d+)", text)), default=0)
        given = f"({', '.join(['NULL'] * count)})" if count else ""
        await self._connection.execute(f"PREPARE looked_at AS {text}")
        try:
            plan = await self._connection.fetchval(
                f"EXPLAIN (FORMAT JSON) EXECUTE looked_at{given}"
            )
        finally:
            await self._connection.execute("DEALLOCATE looked_at")
        return [found for node in nodes(json.loads(plan)[0]["Plan"]) if (found := self._look(node))]

    def _look(self, node: dict[str, Any]) -> str | None:
        kind = node["Node Type"]
        if not kind.endswith("Scan") or kind == "Bitmap Heap Scan":
            return None
        table = node.get("Relation Name") or self._table_of.get(node.get("Index Name", ""), "")
        column = BY if table in LARGE else "(number|id|customer_id)"
        # Of a parameter, or of another row: rows that are joined by it lie together. Where that row
        # is the wallet's own, it has to be a certain one.
        named = re.search(rf"\b{column} = ", node.get("Index Cond", ""))
        looked_for = table in LARGE or table == "wallets"
        return f"{kind} of {table}" if looked_for and not named else None


@pytest.fixture
async def plans(database_url: str) -> AsyncIterator[Plans]:
    """Plans of one connection."""
    connection = await connect(database_url)
    indexes = {name: table for table, name, *_ in await connection.fetch(INDEXES)}
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
        await connection.execute(f"SET {setting} = off")
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    yield Plans(connection, indexes)
    await connection.close()


WALLET_NUMBER = 5
GIVEN = ids.compose("cg", WALLET_NUMBER, 1)  # its first grant
SHOP, OWNER = "wal_shop", "cus_shop"


@pytest.fixture
async def told(database_url: str, clock: Clock) -> AsyncIterator[tuple[Api, Recorded]]:
    """A server whose every statement is heard, and the fifth wallet, with a little credit."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            for n in range(WALLET_NUMBER - 2):
                await api.local.new_wallet(f"wal_{n}", f"cus_{n}")
            await api.local.new_wallet(SHOP, OWNER)
            await api.post("given", SHOP, **grant("100"))
            yield api, heard


def of_large(statements: list[Said]) -> list[Said]:
    """Those that have to do with large tables."""
    return [one for one in statements if re.search(rf"\b({'|'.join(LARGE)})\b", one.text)]


async def an_event_to_be_paid(api: Api) -> None:
    """Of the shop, for more than it has."""
    meter = kit_pb.PaymentKitServiceCreateMeterRequest(
        name="Calls", event_name="calls", unit="call", currency_id="USD"
    )
    await api.kit.CreateMeter(meter, metadata=api.service)
    event = kit_pb.PaymentKitServiceCreateMeterEventRequest(
        event_name="calls",
        payload=kit_pb.MeterEventPayload(customer_id=OWNER, value="1000"),
        identifier="event",
    )
    await api.kit.CreateMeterEvent(event, metadata=api.service)


async def test_a_batch_names_its_wallets(
    told: tuple[Api, Recorded], plans: Plans, database_url: str, clock: Clock
) -> None:
    """Whatever is posted, by whichever wallet: every row is found, and written, by its wallet."""
    api, heard = told
    spent = await api.post("spent", SHOP, **consume("1"))
    heard.posting.clear()
    for amount in ("5000", "6000"):
        limit = limit_pb.SetSpendLimitRequest(wallet_id=SHOP, amount=amount, period="day")
        await api.wallets.SetSpendLimit(limit, metadata=api.admin)
    limit = limit_pb.SetSpendLimitRequest(wallet_id=SHOP, amount="50", period="lifetime")
    made = await api.wallets.SetSpendLimit(limit, metadata=api.admin)
    gone = limit_pb.DeleteSpendLimitRequest(
        wallet_id=SHOP, spend_limit_id=made.id, idempotency_key="dropped"
    )
    for _ in range(2):
        await api.wallets.DeleteSpendLimit(gone, metadata=api.admin)
    requests = [
        post("a", SHOP, **consume("1")),
        post("b", "wal_0", **grant("1")),
        post("c", SHOP, **grant("1")),
        post("d", SHOP, **refund(spent.posting_id)),
        post("e", "wal_1", adjustment=pb.AdjustmentOperation(amount="2")),
        post("given", SHOP, **grant("100")),
    ]
    fates = await api.batch(requests)
    assert all(isinstance(fate, str) for fate in fates), fates
    hold = pb.HoldRequest(wallet_id=SHOP, idempotency_key="f", amount="1")
    held = await api.wallets.Hold(hold, metadata=api.service)
    capture = pb.CaptureHoldRequest(hold_id=held.hold.id, idempotency_key="g")
    await api.wallets.CaptureHold(capture, metadata=api.service)
    transfer = pb.TransferRequest(
        idempotency_key="h", from_wallet_id=SHOP, to_wallet_id="wal_0", amount="1"
    )
    for replayed in (False, True):
        moved = await api.wallets.Transfer(transfer, metadata=api.service)
        assert moved.received.replayed is replayed
    update = grants_pb.CreditGrantServiceUpdateRequest(id=GIVEN, name="Gift")
    await api.grants.Update(update, metadata=api.service)
    void = grants_pb.CreditGrantServiceVoidRequest(id=GIVEN, idempotency_key="j")
    await api.grants.Void(void, metadata=api.service)
    await an_event_to_be_paid(api)
    async with running(database_url, clock) as other:  # which does not know the wallet
        await other.local.wallets.Post(post("i", SHOP, **grant("1000")))
    await asyncio.sleep(0)  # what is heard of a statement comes a turn of the loop later

    statements = of_large(heard.posting)
    assert len(statements) >= 8
    for one in statements:
        assert await plans.elsewhere(one.text) == [], one.text
    inserted = {
        table: columns.split(", ")[0]
        for one in statements
        for table, columns in re.findall(r"INSERT INTO (\w+) \(([^)]+)\)", one.text)
    }
    # Of the tables that only overdrafts, receipts and merging grants write, no row is written here.
    others = {one for one in LARGE if one.startswith("overdraft_")}
    others |= {"receipts", "grant_parts", "grant_repayments", "wallet_states", "statements"}
    assert inserted == dict.fromkeys(LARGE - others - BEHIND, BY)


async def test_what_is_read_of_a_wallet_names_it(told: tuple[Api, Recorded], plans: Plans) -> None:
    """By id, by key, a list of one customer's with its next page, its wallet, sums and bills."""
    api, heard = told
    owner = await api.local.key("customer", OWNER)
    posted = await api.post("spent", SHOP, **consume("1"))
    row = posted.transactions[0].id
    assert ids.resolve("ct", row) == (WALLET_NUMBER, 2)

    async def retrieve() -> object:
        request = list_pb.CreditTransactionServiceRetrieveRequest(id=row)
        return await api.transactions.Retrieve(request, metadata=api.service)

    async def by_key() -> object:
        return await api.found("spent", SHOP)

    async def listed() -> object:
        request = list_pb.CreditTransactionServiceListRequest(page_size=1, customer_id=OWNER)
        page = await api.transactions.List(request, metadata=api.service)
        request.page_token = page.paging.next_page_token
        return await api.transactions.List(request, metadata=api.service)

    async def summed() -> object:
        request = list_pb.CreditTransactionServiceSummaryRequest(
            customer_id=OWNER, start=START // SECOND - 7, end=START // SECOND + 7
        )
        return await api.transactions.Summary(request, metadata=api.service)

    async def history() -> object:
        request = billing_pb.ListTransactionsRequest(kind="usage")
        return await api.billing.ListTransactions(request, metadata=owner)

    async def bills() -> object:
        return await api.billing.ListApiKeyBills(TWO_DAYS_OF_BILLS, metadata=owner)

    async def usage() -> object:
        request = billing_pb.GetMyUsageRequest(group_by="hour")
        return await api.billing.GetMyUsage(request, metadata=owner)

    async def account() -> object:
        return await api.billing.GetMyAccount(billing_pb.GetMyAccountRequest(), metadata=owner)

    async def balance() -> object:
        return await api.billing.GetMyBalance(billing_pb.GetMyBalanceRequest(), metadata=owner)

    async def wallet() -> object:
        return await api.wallet_now(SHOP)

    async def stood() -> object:
        request = pb.GetBalanceRequest(wallet_id=SHOP, at_sequence=1)
        return await api.wallets.GetBalance(request, metadata=owner)

    async def granted() -> object:
        request = grants_pb.CreditGrantServiceListRequest(customer_id=OWNER, page_size=1)
        await api.grants.List(request, metadata=owner)
        of_customer = grants_pb.CreditGrantServiceSummaryRequest(customer_id=OWNER)
        await api.grants.Summary(of_customer, metadata=owner)
        one = grants_pb.CreditGrantServiceListTransactionsRequest(id=GIVEN)
        await api.grants.ListTransactions(one, metadata=owner)
        paid = grants_pb.CreditGrantServiceListPostingGrantsRequest(posting_id=posted.posting_id)
        return await api.grants.ListPostingGrants(paid, metadata=owner)

    async def stated() -> object:
        stub = StatementServiceStub(api.channel)
        period = {"wallet_id": SHOP, "start": "2026-01-01T00:00:00Z", "end": time.text(START)}
        await stub.Get(statement_pb.StatementServiceGetRequest(**period), metadata=owner)
        request = statement_pb.StatementServiceCloseRequest(**period)
        closed = await stub.Close(request, metadata=api.service)
        page = statement_pb.StatementServiceListRequest(wallet_id=SHOP)
        await stub.List(page, metadata=owner)
        one = statement_pb.StatementServiceRetrieveRequest(id=closed.id)
        return await stub.Retrieve(one, metadata=owner)

    of_me = (history, bills, usage, account, balance)
    for ask in (retrieve, by_key, listed, summed, *of_me, wallet, stood, granted, stated):
        heard.reading.clear()
        await ask()
        statements = of_large(heard.reading)
        assert statements, ask
        for one in statements:
            assert await plans.elsewhere(one.text) == [], one.text
            # The number comes out of the id: nothing was asked to find it.
            if ask is retrieve:
                assert WALLET_NUMBER in one.values


async def test_what_is_read_of_all_wallets_is_seen(
    told: tuple[Api, Recorded], plans: Plans
) -> None:
    """A list over everybody asks every part, so what finds that here would find it above."""
    api, heard = told
    heard.reading.clear()
    await api.transactions.List(
        list_pb.CreditTransactionServiceListRequest(page_size=1), metadata=api.service
    )

    counted, ordered = of_large(heard.reading)[:2]
    assert "sum(wallet_states.sequence)" in counted.text
    assert "ORDER BY credit_transactions.created_at" in ordered.text
    for one in (counted, ordered):
        assert await plans.elsewhere(one.text) != [], one.text
    (scan,) = await plans.elsewhere("SELECT sum(amount) FROM postings WHERE operation = $1")
    assert scan.endswith(" of postings")
