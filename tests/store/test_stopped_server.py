"""A server that stands still in the middle of a batch stops one wallet, not the other servers.

Two processes on one PostgreSQL. One is stopped (SIGSTOP) while its transaction has the wallet's row
locked, and goes on (SIGCONT) before or after PostgreSQL has ended that transaction.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import pytest
from credit.v1 import wallet_service_pb2 as pb

from tests.support.databases import connect, execute
from tests.support.process import process
from tests.support.refusals import Refused, refused
from tests.support.retrying_clients import prepare
from tests.support.server import PATIENCE_SECONDS, consume, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import Process
    from tests.support.refusals import Metadata
    from tests.support.server import Services

pytestmark = pytest.mark.only("postgresql")

LOCKED, FREE = "wal_hot", ["wal_1", "wal_2"]
#: The amount whose row takes its time: as long as it takes to stop its server meanwhile.
SLOW = "7"
DELAY = (
    """CREATE FUNCTION delay() RETURNS trigger LANGUAGE plpgsql AS
       'BEGIN PERFORM pg_sleep(2); RETURN NEW; END'""",
    """CREATE TRIGGER delayed BEFORE INSERT ON credit_transactions FOR EACH ROW
       WHEN (NEW.amount = -7000000000) EXECUTE FUNCTION delay()""",
)
NO_DELAY = ("DROP TRIGGER delayed ON credit_transactions", "DROP FUNCTION delay")
#: Sessions that wait in it, and those that have come back from it to a client that is silent.
IN_DELAY = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event = 'PgSleep'"""
IS_IDLE = """SELECT pid FROM pg_stat_activity
    WHERE pid = $1 AND state = 'idle in transaction' AND wait_event = 'ClientRead'"""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Two servers, of which one is stopped, and what its client waits for."""

    one: Process
    other: Services
    metadata: Metadata
    waiting: asyncio.Task[pb.Posting]
    session: int  #: Of PostgreSQL: the one that has the lock.

    def go_on(self) -> None:
        """The stopped one runs again."""
        self.one.process.send_signal(signal.SIGCONT)

    async def post(self, key: str, wallet_id: str, amount: str = "1") -> pb.Posting:
        """A posting by the other one."""
        request = post(key, wallet_id, **consume(amount))
        return await self.other.wallets.Post(request, metadata=self.metadata)

    async def balance(self) -> str:
        """The locked wallet's, at the other one: reads wait for no lock."""
        request = pb.GetWalletRequest(wallet_id=LOCKED)
        found = await self.other.wallets.GetWallet(request, metadata=self.metadata)
        return found.balance


async def found(url: str, query: str, *values: object) -> list[int]:
    """What the query finds, as soon as it finds something."""
    connection = await connect(url)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if rows := await connection.fetch(query, *values):
                    return [row[0] for row in rows]
                # What another session does cannot be waited upon.
                await asyncio.sleep(0.01)
    finally:
        await connection.close()


@asynccontextmanager
async def stopped(url: str, folder: Path) -> AsyncIterator[Stopped]:
    """One server is stopped while its posting of SLOW has the wallet locked."""
    shop = await prepare(url)
    await execute(url, *DELAY)
    async with (
        process(url, folder / "one") as one,
        process(url, folder / "other") as other,
        one.connected() as at_one,
        other.connected() as at_other,
    ):
        request = post("slow", LOCKED, **consume(SLOW))
        call = at_one.wallets.Post(request, metadata=shop.metadata)
        waiting = asyncio.ensure_future(call)
        (session,) = await found(url, IN_DELAY)
        one.process.send_signal(signal.SIGSTOP)
        await found(url, IS_IDLE, session)
        yield Stopped(one, at_other, shop.metadata, waiting, session)
        await execute(url, *NO_DELAY)


async def test_other_wallets_go_on_at_the_other_server(database_url: str, tmp_path: Path) -> None:
    """The other server posts to its other wallets; for the locked one it is UNAVAILABLE."""
    async with stopped(database_url, tmp_path) as here:
        late = asyncio.ensure_future(here.post("late", LOCKED))
        for turn in range(20):
            await asyncio.gather(*(here.post(f"k{turn}", name) for name in FREE))
            assert not late.done()
        assert await here.balance() == "1000000.00"
        assert (await refused(late)) == Refused("UNAVAILABLE", None)

        here.go_on()

        slow = await here.waiting
        assert (slow.replayed, await here.balance()) == (False, "999993.00")
        again = await here.post("slow", LOCKED, SLOW)
        assert (again.replayed, again.posting_id) == (True, slow.posting_id)
        assert not (await here.post("late", LOCKED)).replayed
        assert await here.balance() == "999992.00"


async def test_what_it_had_begun_is_posted_once(database_url: str, tmp_path: Path) -> None:
    """When PostgreSQL has ended its transaction the wallet is free; repeated, it is posted once.

    Here an administrator ends it, as `idle_in_transaction_session_timeout` does after 15 s.
    """
    async with stopped(database_url, tmp_path) as here:
        await execute(database_url, f"SELECT pg_terminate_backend({here.session})")

        assert not (await here.post("meanwhile", LOCKED)).replayed
        assert await here.balance() == "999999.00"
        here.go_on()
        (answer,) = await asyncio.gather(here.waiting, return_exceptions=True)

        again = await here.post("slow", LOCKED, SLOW)
        if isinstance(answer, pb.Posting):  # It had time to begin anew.
            assert (again.replayed, again.posting_id) == (True, answer.posting_id)
        else:
            assert isinstance(answer, grpc.aio.AioRpcError)
            assert (answer.code(), again.replayed) == (grpc.StatusCode.UNAVAILABLE, False)
        assert await here.balance() == "999992.00"
