"""The guard of the ledger's clock through real servers: what a moved clock may and may not do."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import clock_service_pb2 as clock_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.clock_service_pb2_grpc import ClockServiceStub

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.domain.clock_guard import STEADY_MS
from creditledger.ops.config import Config
from creditledger.ops.server import Server
from creditledger.store import clock_marks, schema
from creditledger.store.clock_marks import ClockMark
from tests.support.commands import creditledger
from tests.support.process import process
from tests.support.refusals import Refused, refused
from tests.support.server import CUSTOMER, WALLET, Running, Services, consume, grant, post
from tests.support.setup import Clock, change, findings, is_file, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from creditledger.domain.clock_guard import Verdict


@dataclass(slots=True)
class Machine:
    """A machine: its clock, which somebody sets, and the time that really passes."""

    clock: Clock
    elapsed: Clock

    def wait(self, milliseconds: int) -> None:
        """Time passes, whether the machine sleeps or not."""
        self.clock.advance(milliseconds)
        self.elapsed.advance(milliseconds)

    def set_clock(self, by: int) -> None:
        """Somebody sets the clock."""
        self.clock.advance(by)


@pytest.fixture
def machine(clock: Clock) -> Machine:
    """One that has run for a week."""
    return Machine(clock, Clock(7 * DAY))


class Ledger(Services):
    """A server whose clock is guarded, and the wallet wal_acme."""

    def __init__(self, started: Running) -> None:
        super().__init__(started.local.channel)
        self.server = started.server
        self.clocks = ClockServiceStub(started.local.channel)

    async def post(self, key: str, wallet_id: str = WALLET, **fields: Any) -> pb.Posting:
        return await self.wallets.Post(post(key, wallet_id, **fields))

    async def wallet(self, wallet_id: str = WALLET) -> pb.Wallet:
        return await self.wallets.GetWallet(pb.GetWalletRequest(wallet_id=wallet_id))

    async def clock(self) -> clock_pb.Clock:
        return await self.clocks.GetClock(clock_pb.GetClockRequest())

    async def accept(self) -> clock_pb.Clock:
        return await self.clocks.AcceptClock(clock_pb.AcceptClockRequest(accepted_by="ada"))

    async def look(self) -> Verdict:
        """What the server does by itself every few seconds."""
        return await self.server.watch.look()

    async def sweep(self) -> int:
        """What it does by itself every minute."""
        assert self.server.background is not None
        return await self.server.background.sweeper.sweep()


@asynccontextmanager
async def serve(database_url: str, machine: Machine, **settings: Any) -> AsyncIterator[Ledger]:
    """A server on the machine, until the block ends."""
    quiet = {"sweep_interval_seconds": 0, "webhook_connections": 0}
    place = {"database_url": database_url, "grpc_address": "127.0.0.1:0"}
    server = Server(
        Config(**{**place, **quiet, **settings}), clock=machine.clock, elapsed=machine.elapsed
    )
    await server.start()
    try:
        async with server.local_channel() as channel:
            services = Services(channel)
            yield Ledger(Running(server, services, services))
    finally:
        await server.stop()


def implausible(shown: int, expected: int) -> Refused:
    """The refusal of a command."""
    metadata = {"clock": time.text(shown), "expected": time.text(expected)}
    return Refused("CLOCK_IMPLAUSIBLE", None, metadata)


async def test_a_moment_in_the_future_costs_nothing(database_url: str, machine: Machine) -> None:
    """While the clock is 400 days ahead commands are refused, and no grant expires."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        await ledger.post("given", **grant("100", expires_at=time.text(machine.clock.now + DAY)))
        machine.set_clock(400 * DAY)
        machine.wait(SECOND)
        right = machine.clock.now - 400 * DAY
        assert await ledger.sweep() == 0
        assert await refused(ledger.post("a", **consume("1"))) == implausible(
            machine.clock.now, right
        )
        assert (await ledger.wallet()).balance == "100.00"
        assert await ledger.sweep() == 0
        assert (await ledger.clock()).state == "implausible"
        machine.wait(2 * SECOND)
        machine.set_clock(-400 * DAY)

        posted = await ledger.post("a", **consume("1"))

        assert posted.wallet.balance == "99.00"
        assert posted.transactions[0].created_at == time.text(machine.clock.now)
        assert (await ledger.clock()).state == "trusted"


async def test_what_is_refused_is_refused_alone(database_url: str, machine: Machine) -> None:
    """Each posting of a batch gets the reason, reads are answered, and no key is bound."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        machine.set_clock(-2 * DAY)
        batch = pb.BatchPostRequest(postings=[post(key, **grant("1")) for key in ("a", "b")])
        results = (await ledger.wallets.BatchPost(batch)).results
        assert [one.error.code for one in results] == ["CLOCK_IMPLAUSIBLE"] * 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ledger.post("a", **grant("1"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await ledger.wallet()).sequence == 0
        machine.set_clock(2 * DAY)

        assert not (await ledger.post("a", **grant("2"))).replayed


async def test_a_short_leap_is_taken_when_it_is_steady(database_url: str, machine: Machine) -> None:
    """For ten minutes the ledger's time goes on without the leap, and the sweeper waits."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        ends = machine.clock.now + HOUR
        await ledger.post("given", **grant("5", expires_at=time.text(ends)))
        machine.set_clock(5 * HOUR)
        machine.wait(SECOND)

        posted = await ledger.post("used", **consume("1"))
        assert posted.transactions[0].created_at == time.text(machine.clock.now - 5 * HOUR)
        assert await ledger.sweep() == 0
        machine.wait(STEADY_MS - 1)
        await ledger.look()
        assert await ledger.sweep() == 0
        assert (await ledger.wallet()).balance == "4.00"
        machine.wait(1)
        await ledger.look()

        assert (await ledger.wallet()).balance == "0.00"
        assert await ledger.sweep() == 1
        assert (await ledger.clock()).time == time.text(machine.clock.now)


@pytest.mark.parametrize("slept", [8 * HOUR, 45 * DAY])
async def test_a_sleep_is_no_leap(database_url: str, machine: Machine, slept: int) -> None:
    """A machine that slept, or a ledger idle for weeks, goes on without ado."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        await ledger.post("given", **grant("5", expires_at=time.text(machine.clock.now + HOUR)))
        machine.wait(slept)

        posted = await ledger.post("more", **grant("1"))

        assert posted.wallet.balance == "1.00"
        assert posted.transactions[0].created_at == time.text(machine.clock.now)


@pytest.mark.parametrize(("idle", "state"), [(59, "trusted"), (61, "implausible")])
async def test_a_start_after_a_long_time(
    database_url: str, machine: Machine, idle: int, state: str
) -> None:
    """A start is trusted up to 60 days later, and refuses commands beyond that."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        await ledger.post("given", **grant("5", expires_at=time.text(machine.clock.now + HOUR)))
    # Another machine, which has run for another time.
    machine.clock.advance(idle * DAY)
    machine.elapsed.now = HOUR

    async with serve(database_url, machine) as ledger:
        assert (await ledger.clock()).state == state
        if state == "implausible":
            assert (await refused(ledger.post("b", **grant("1")))).reason == "CLOCK_IMPLAUSIBLE"
            assert (await ledger.accept()).state == "trusted"
        assert (await ledger.post("b", **grant("1"))).wallet.balance == "1.00"
    async with serve(database_url, machine, clock_idle_days=1) as ledger:
        assert (await ledger.clock()).state == "trusted"


async def test_a_clock_that_comes_right_after_a_start(database_url: str, machine: Machine) -> None:
    """Nothing is written in 1970 by a machine that starts without a clock of its own."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        await ledger.post("given", **grant("5"))
    right, machine.clock.now, machine.elapsed.now = machine.clock.now, 0, 0
    async with serve(database_url, machine) as ledger:
        machine.wait(MINUTE)
        posted = await ledger.post("a", **grant("1"))
        assert posted.transactions[0].created_at == time.text(right + MINUTE)
        machine.clock.now = right + DAY

        posted = await ledger.post("b", **grant("1"))

        assert posted.transactions[0].created_at == time.text(right + DAY)
        assert (await ledger.clock()).state == "trusted"


async def test_a_restart_takes_no_leap(database_url: str, machine: Machine) -> None:
    """A clock that one server doubts the next one doubts too, until it is right or accepted."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        await ledger.post("given", **grant("100", expires_at=time.text(machine.clock.now + DAY)))
        machine.set_clock(30 * DAY)
        await ledger.look()
    machine.wait(HOUR)
    machine.elapsed.now = 0
    async with serve(database_url, machine) as ledger:
        assert (await refused(ledger.post("a", **consume("1")))) == implausible(
            machine.clock.now, machine.clock.now - 30 * DAY
        )
        assert (await ledger.wallet()).balance == "100.00"
        machine.set_clock(-30 * DAY)
        assert (await ledger.post("a", **consume("1"))).wallet.balance == "99.00"


async def test_an_acceptance_is_kept(database_url: str, machine: Machine) -> None:
    """An acceptance says who, when and what was expected, and cannot be changed."""
    async with serve(database_url, machine) as ledger:
        before = machine.clock.now
        machine.set_clock(30 * DAY)
        assert (await ledger.clock()).state == "implausible"

        accepted = await ledger.accept()

        assert accepted == clock_pb.Clock(
            state="trusted",
            clock=time.text(before + 30 * DAY),
            time=time.text(before + 30 * DAY),
            accepted_at=time.text(before + 30 * DAY),
            accepted_by="ada",
        )
    kept = look(database_url, clock_marks.last_acceptance)
    assert kept == (1, before + 30 * DAY, before, "ada")
    with pytest.raises(Exception, match="never changed"):
        change(database_url, lambda c: c.execute(schema.clock_acceptances.delete()))


@pytest.mark.only("postgresql")
async def test_an_acceptance_holds_for_all_servers(database_url: str, machine: Machine) -> None:
    """Of two servers that doubt the same clock, both take what is accepted at one of them."""
    async with serve(database_url, machine) as one, serve(database_url, machine) as other:
        await one.new_wallet(WALLET, CUSTOMER)
        machine.set_clock(30 * DAY)
        for ledger in (one, other):
            assert (await refused(ledger.post("a", **grant("1")))).reason == "CLOCK_IMPLAUSIBLE"
        await one.accept()
        machine.wait(SECOND)
        await other.look()

        for n, ledger in enumerate((one, other)):
            posted = await ledger.post(f"b {n}", **grant("1"))
            assert posted.transactions[0].created_at == time.text(machine.clock.now)


async def test_the_sweeper_waits_for_the_grace(database_url: str, machine: Machine) -> None:
    """A wallet is swept when all that is due in it has been due for a minute, or as set."""
    async with serve(database_url, machine) as ledger:
        await ledger.new_wallet(WALLET, CUSTOMER)
        for n in range(2):
            ends = time.text(machine.clock.now + HOUR + n * 30 * SECOND)
            await ledger.post(f"given {n}", **grant("5", expires_at=ends))
        machine.wait(HOUR + 30 * SECOND)
        for _ in range(2):
            machine.wait(29 * SECOND)
            assert await ledger.sweep() == 0
        machine.wait(SECOND)
        assert await ledger.sweep() == 0
        machine.wait(SECOND)

        assert await ledger.sweep() == 2
    assert findings(database_url) == []


# --- by the command line, with the machine's own clock and the database's -------------------------


async def test_the_command(database_url: str, tmp_path: Path) -> None:
    """`clock show` and `clock accept` work while commands are refused and after a restart."""
    now = time.now()
    long_ago = ClockMark(now - 100 * DAY, None)
    change(database_url, lambda c: clock_marks.write(c, long_ago))
    place = ("--database-url", database_url)

    async def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = await asyncio.to_thread(creditledger, "clock", *arguments, *place, "--json")
        return done.returncode, json.loads(done.stdout)

    async with process(database_url, tmp_path / "first") as server, server.local() as local:
        await local.new_wallet(WALLET, CUSTOMER)
        refusal = await refused(local.wallets.Post(post("a", **grant("1"))))
        status, shown = await run("show")
        assert refusal.reason == "CLOCK_IMPLAUSIBLE"
        assert (status, shown["state"]) == (1, "implausible")
        # The ledger's time goes on from where it was last seen.
        assert abs(time.parse(shown["time"], field="time") - long_ago.seen_at) < HOUR

        status, shown = await run("accept", "--by", "ops")

        assert (status, shown["state"], shown["accepted_by"]) == (0, "trusted", "ops")
        if is_file(database_url):
            await local.wallets.Post(post("a", **grant("1")))
    async with process(database_url, tmp_path / "second") as server, server.local() as local:
        await local.wallets.Post(post("b", **grant("1")))
    status, shown = await run("show")
    assert (status, shown["state"]) == (0, "trusted")
