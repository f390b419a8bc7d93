"""What a wallet did is read row by row, however little PostgreSQL thinks that it did.

Statistics are of another time, and of an average wallet. Where they say that a wallet has one row
of a table, going through all of its rows looks as good as a lookup by the whole key.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_transaction_service_pb2 as list_pb
from credit.v1 import statement_service_pb2 as statement_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub

from creditledger.domain import clock as time
from creditledger.store import Store, schema
from tests.support.databases import execute
from tests.support.server import CUSTOMER, TWO_DAYS_OF_BILLS, WALLET, consume, grant, post, serve
from tests.support.setup import START, findings
from tests.support.statements_recorded import LARGE, nodes, recorded

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tests.support.server import Api
    from tests.support.setup import Clock
    from tests.support.statements_recorded import Said

pytestmark = pytest.mark.only("postgresql")

#: Postings of the wallet, and grants among them; each of another product.
POSTINGS, GRANTS = 3_000, 300
#: What a read may touch of a table: some times what there is of it, never its square.
TOUCHED_MAX = 20 * POSTINGS

#: The same of `verify`, which asks some of the tables for several things at once.
VERIFIED_MAX = 100 * POSTINGS

#: A window that cuts quarters of an hour: what is within comes from the rows.
SINCE, UNTIL = (time.text_seconds(START + seconds * time.SECOND) for seconds in (-5, 5))


async def read_all(api: Api) -> None:
    """Everything that reads what a wallet did, as far as it is as much as there is."""
    await api.billing.ListApiKeyBills(TWO_DAYS_OF_BILLS, metadata=api.customer)
    usage = billing_pb.GetMyUsageRequest(since=SINCE, until=UNTIL, group_by="model")
    await api.billing.GetMyUsage(usage, metadata=api.customer)
    own = billing_pb.ExportTransactionsRequest()
    async for _ in api.billing.ExportTransactions(own, metadata=api.customer):
        pass
    export = list_pb.CreditTransactionServiceExportRequest(customer_id=CUSTOMER)
    async for _ in api.transactions.Export(export, metadata=api.admin):
        pass
    period = statement_pb.StatementServiceGetRequest(wallet_id=WALLET, start=SINCE, end=UNTIL)
    await StatementServiceStub(api.channel).Get(period, metadata=api.admin)


async def search_all(api: Api) -> None:
    """Searches that match nothing, narrowed in each of the ways that one may be."""
    window = {"start": START // time.SECOND - 5, "end": START // time.SECOND + 5}
    narrowed: list[dict[str, Any]] = [{"customer_id": CUSTOMER}, window, {"meter_id": "mtr_none"}]
    for name in ("q", "source"):
        for narrow in narrowed:
            asked = {name: "nothing", **narrow}
            listed = list_pb.CreditTransactionServiceListRequest(**asked)
            answer = await api.transactions.List(listed, metadata=api.admin)
            assert answer.count == 0
            export = list_pb.CreditTransactionServiceExportRequest(**asked)
            async for _ in api.transactions.Export(export, metadata=api.admin):
                pass


async def looked(url: str, statements: list[Said]) -> dict[str, int]:
    """How many rows each statement takes into its hands, used or not, on a reader's connection."""
    store = Store(url)
    await store.open()
    touched = {}
    for one in statements:
        if one.text.lstrip().startswith(("SELECT", "WITH")):
            explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {one.text}"
            query = partial(explained, explain, one.values)
            touched[one.text] = await store.read(query)
    await store.close()
    return touched


def explained(explain: str, values: tuple[Any, ...], connection: Connection) -> int:
    found = connection.exec_driver_sql(explain, values).scalar_one()
    plan = json.loads(found) if isinstance(found, str) else found
    return sum(map(handled, nodes(plan[0]["Plan"])))


def handled(node: dict[str, Any]) -> int:
    """The rows of one step of a plan."""
    names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
    return int(sum(node.get(name, 0) for name in names) * node["Actual Loops"])


async def test_a_few_rows_are_no_statistics(database_url: str) -> None:
    """Of no large table are statistics made by itself before it has a thousand rows."""
    query = "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r'"
    told = {name: options or [] for name, options in await execute(database_url, query)}

    without = [name for name in LARGE if "autovacuum_analyze_threshold=1000" not in told[name]]
    assert without == []


@pytest.mark.parametrize(
    ("others", "each", "analyzed"),
    [(0, 1, True), (150, 1, True), (150, 1, False), (30, 40, True)],
)
async def test_a_wallet_that_has_grown_is_read_once(
    database_url: str, clock: Clock, others: int, each: int, *, analyzed: bool
) -> None:
    """With statistics from before a wallet grew, a read still touches each row once."""
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            for nth in range(others):
                await api.local.new_wallet(f"wal_{nth}", f"cus_{nth}")
                few = [post(f"welcome{n}", f"wal_{nth}", **grant("1")) for n in range(each)]
                await api.wallets.BatchPost(pb.BatchPostRequest(postings=few), metadata=api.service)
            await api.post("welcome", **grant("1"))
            for table in schema.postgresql.tables if analyzed else ():
                await execute(database_url, f"ANALYZE {table}")
            given = [post(f"g{n}", **grant("1")) for n in range(GRANTS)]
            used = [
                post(f"c{n}", **consume("0.01", usage=pb.Usage(product_id=f"p{n}", quantities=[1])))
                for n in range(POSTINGS - GRANTS)
            ]
            requests = [*given, *used]
            for at in range(0, len(requests), 500):
                batch = pb.BatchPostRequest(postings=requests[at : at + 500])
                answer = await api.wallets.BatchPost(batch, metadata=api.service)
                assert all(one.HasField("posting") for one in answer.results)
            heard.reading.clear()
            await read_all(api)
            await search_all(api)
        read = list(heard.reading)
        assert findings(database_url) == []
    touched = await looked(database_url, read)
    verified = await looked(database_url, heard.reading[len(read) :])

    assert sum("JOIN postings" in text for text in touched) >= 2
    assert {text: rows for text, rows in touched.items() if rows > TOUCHED_MAX} == {}
    assert {text: rows for text, rows in verified.items() if rows > VERIFIED_MAX} == {}
