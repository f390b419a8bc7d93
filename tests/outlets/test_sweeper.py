"""The sweeper: expirations written down where nobody asks, and nothing else that depends on it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import wallet_service_pb2 as pb
from sqlalchemy import func, select

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE
from creditledger.domain.model import HoldEnd, Kind
from creditledger.domain.operations import PlaceHold
from creditledger.outlets import sweeper
from creditledger.outlets.sweeper import Sweeper
from creditledger.store import schema
from tests.support.refusals import refused
from tests.support.server import WALLET, adjust, consume, grant, refund, serve
from tests.support.setup import (
    add_wallet,
    command,
    findings,
    give,
    look,
    opened,
)
from tests.support.setup import consume as consumption

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.server import Api
    from tests.support.setup import Clock

t, h, w = schema.transactions.c, schema.holds.c, schema.wallets.c


def sweeping(store: Store, ledger: Ledger, clock: Clock) -> Sweeper:
    """A sweeper that sweeps when it is told to."""
    return Sweeper(store, ledger, clock=clock, interval_seconds=DAY)


def expirations(connection: Connection) -> list[tuple[str, int, int, int]]:
    """(wallet, amount, effective_at, created_at) of each."""
    query = (
        select(w.id, t.amount, t.effective_at, t.created_at)
        .join_from(schema.transactions, schema.wallets, w.number == t.wallet_number)
        .where(t.kind == Kind.EXPIRY.value)
        .order_by(w.id, t.sequence)
    )
    return [tuple(row) for row in connection.execute(query)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and batches that a test fills."""
    monkeypatch.setattr(sweeper, "PAGE", 3)
    monkeypatch.setattr(sweeper, "BATCH", 2)
    monkeypatch.setattr(sweeper, "PAUSE_SECONDS", 0.01)


WALLETS = [f"wal_{n}" for n in range(7)]


def wallets(connection: Connection) -> None:
    """Seven of them."""
    for wallet_id in WALLETS:
        add_wallet(connection, wallet_id)


@pytest.mark.usefixtures("small")
async def test_a_pass_writes_down_all_that_is_due(database_url: str, clock: Clock) -> None:
    """Of all wallets, once, at the moment of each grant's end; what is held waits for the hold."""
    async with opened(database_url, clock) as (store, ledger):
        await store.write(wallets)
        ends = clock.now + HOUR
        for n, wallet_id in enumerate(WALLETS):
            for m in range(2):
                lot = give(f"{n + 1}", expires_at=ends + m)
                await ledger.post(command(lot, key=f"give {m}", wallet_id=wallet_id))
            lasting = give("1", expires_at=ends + DAY)
            await ledger.post(command(lasting, key="lasting", wallet_id=wallet_id))
        held = await ledger.post(
            command(PlaceHold("13", ends + 2 * HOUR, None), key="hold", wallet_id="wal_6")
        )
        # Of wal_5 a hold that nobody asks about, and nothing that is due.
        await ledger.post(command(PlaceHold("1", None, 60_000), key="hold", wallet_id="wal_5"))
        sweeps = sweeping(store, ledger, clock)
        assert await sweeps.sweep() == 0

        clock.advance(HOUR + MINUTE)
        assert await sweeps.sweep() == 2 * 6 + 1 + 1
        assert await sweeps.sweep() == 0

        def read(connection: Connection) -> tuple[Any, ...]:
            ended = connection.execute(
                select(h.ended, h.ended_at).order_by(h.wallet_number.desc())
            ).all()
            return expirations(connection), [tuple(one) for one in ended]

        found, ended = look(database_url, read)
        assert found == [
            (wallet_id, -units * 10**9, ends + m, clock.now)
            for n, wallet_id in enumerate(WALLETS[:6])
            for m, units in enumerate((n + 1, n + 1))
        ] + [("wal_6", -(10**9), ends + 1, clock.now)]
        assert ended == [(None, None), (HoldEnd.EXPIRED.value, ends - HOUR + 60_000)]

        clock.advance(2 * HOUR)
        assert await sweeps.sweep() == 3
        assert held.wallet.held == 13 * 10**9
    assert findings(database_url) == []


async def test_it_gives_way(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody waits for the ledger it does not; afterwards it goes on."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await sleep(0.01 if seconds else 0)

    monkeypatch.setattr(asyncio, "sleep", slept)
    async with opened(database_url, clock, queue_max=5) as (store, ledger):
        await ledger.post(command(give("1", expires_at=clock.now + 1)))
        clock.advance(1)
        waiting = None
        asked = ledger.sweep

        def busy(sweeps: Any) -> Any:
            nonlocal waiting
            waiting = waiting or ledger.post(command(give("2"), key="before"))
            return asked(sweeps)

        monkeypatch.setattr(ledger, "sweep", busy)
        # The one who waited wrote it down before.
        assert await sweeping(store, ledger, clock).sweep() == 0
        assert pauses == [sweeper.PAUSE_SECONDS]
        assert waiting is not None
        assert (await waiting).wallet.balance == 2 * 10**9
    assert len(look(database_url, expirations)) == 1


async def test_sweepers_beside_callers(database_url: str, clock: Clock) -> None:
    """Of two sweepers one writes it down, once; on PostgreSQL they are of two servers."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(opened(database_url, clock))
        second = first
        if not database_url.startswith("sqlite"):
            second = await stack.enter_async_context(opened(database_url, clock))
        await first[0].write(wallets)
        for wallet_id in WALLETS:
            await first[1].post(
                command(give("3", expires_at=clock.now + HOUR), wallet_id=wallet_id)
            )
            await second[1].post(command(give("1"), key="lasting", wallet_id=wallet_id))
        clock.advance(HOUR)
        spent = [
            command(consumption("1"), key="spend", wallet_id=wallet_id) for wallet_id in WALLETS[:3]
        ]
        swept = [sweeping(*one, clock).sweep() for one in (first, second)]
        counts, _ = await asyncio.gather(asyncio.gather(*swept), second[1].post_many(spent))
        assert sum(counts) in range(4, 8)
        answers = await first[1].post_many(spent)
        assert all(not isinstance(one, Exception) and one.replayed for one in answers)
    assert len(look(database_url, expirations)) == len(WALLETS)
    assert findings(database_url) == []


async def until(api: Api, sequence: int) -> None:
    """Wait for a row."""
    for _ in range(1_000):
        if (await api.wallet_now()).sequence == sequence:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"there is no row {sequence}")


async def test_a_server_sweeps(database_url: str, clock: Clock) -> None:
    """Again and again, until it is stopped; with 0 never."""
    async with serve(database_url, clock, sweep_interval_seconds=0) as api:
        await api.post("given", **grant("1", expires_at=time.text(clock.now + HOUR)))
        clock.advance(HOUR)
        await asyncio.sleep(0.1)
        assert (await api.wallet_now()).sequence == 1
    async with serve(database_url, clock, sweep_interval_seconds=0.02) as api:
        await until(api, 2)
        await api.post("again", **grant("1", expires_at=time.text(clock.now + HOUR)))
        clock.advance(HOUR)
        await until(api, 4)
    assert len(look(database_url, expirations)) == 2


# --- nothing observable depends on it -------------------------------------------------------------


class Told:
    """What a wallet's callers are told, one answer after the other."""

    def __init__(self, api: Api, clock: Clock, *, sweeps: bool) -> None:
        self.api = api
        self.clock = clock
        self.sweeps = sweeps
        self.answers: list[object] = []
        self.holds: list[str] = []
        self.postings: dict[str, str] = {}

    async def post(self, key: str, **fields: Any) -> None:
        """One posting, granted or refused; and the wallet, before and after a sweep."""
        try:
            answer = await self.api.post(key, **fields)
        except grpc.aio.AioRpcError:
            self.answers.append(await refused(self.api.post(key, **fields)))
        else:
            self.postings[key] = answer.posting_id
            self.note(answer)
        await self.look()

    async def look(self) -> None:
        """The wallet as it is: before a sweep and after it."""
        for swept in (False, True):
            wallet = await self.api.wallet_now()
            figures = (wallet.balance, wallet.held, wallet.pending, wallet.available)
            self.answers.append((*figures, wallet.scoped, wallet.overdraft_used, wallet.status))
            background = self.api.server.background
            if not swept and self.sweeps and background is not None:
                await background.sweeper.sweep()
        # What comes next comes later than the sweep.
        self.clock.advance(1)

    def note(self, answer: pb.Posting) -> None:
        """All of it but ids that count what was posted anywhere."""
        answer.posting_id = answer.hold_id = ""
        for one in answer.transactions:
            one.posting_id = ""
            one.source.Clear()
        self.answers.append(answer.SerializeToString(deterministic=True))

    async def hold(self, key: str, amount: str, ttl: int) -> None:
        """A hold."""
        request = pb.HoldRequest(
            wallet_id=WALLET, idempotency_key=key, amount=amount, ttl_seconds=ttl
        )
        made = await self.api.wallets.Hold(request, metadata=self.api.service)
        self.holds.append(made.hold.id)
        await self.look()

    async def capture(self, key: str, place: int, **fields: Any) -> None:
        """A capture, granted or refused."""
        request = pb.CaptureHoldRequest(idempotency_key=key, hold_id=self.holds[place], **fields)

        async def ask() -> pb.CaptureHoldResponse:
            return await self.api.wallets.CaptureHold(request, metadata=self.api.service)

        try:
            self.note((await ask()).posting)
        except grpc.aio.AioRpcError:
            self.answers.append(await refused(ask()))
        await self.look()

    async def change(self, **fields: Any) -> None:
        """A change of the wallet, granted or refused."""

        async def ask() -> pb.Wallet:
            request = pb.UpdateWalletRequest(wallet_id=WALLET, **fields)
            return await self.api.wallets.UpdateWallet(request, metadata=self.api.admin)

        try:
            self.answers.append((await ask()).SerializeToString(deterministic=True))
        except grpc.aio.AioRpcError:
            self.answers.append(await refused(ask()))
        await self.look()

    async def time_passes(self, milliseconds: int) -> None:
        """And somebody looks."""
        self.clock.advance(milliseconds)
        await self.look()


async def story(told: Told) -> None:
    """Every command, around ends of grants and holds, some of which are refused for them."""
    now = told.clock.now

    def until(milliseconds: int) -> str:
        return time.text(now + milliseconds)

    await told.post("paid", **grant("10", expires_at=until(HOUR)))
    await told.post("promo", **grant("4", category="promotional", expires_at=until(2 * HOUR)))
    await told.post("later", **grant("5", effective_at=until(HOUR), expires_at=until(3 * HOUR)))
    await told.post("scoped", **grant("2", scope=pb.GrantScope(categories=["a"]),
                                      expires_at=until(HOUR)))  # fmt: skip
    await told.post("spent", **consume("5"))
    await told.hold("first", "6", 2 * 3_600)
    await told.hold("second", "1", 60)
    await told.time_passes(2 * MINUTE)
    await told.capture("late", 1)
    await told.time_passes(HOUR)
    await told.post("too much", **consume("9"))
    await told.post("expected", expected_sequence=5, **consume("0.5"))
    await told.post("unexpected", expected_sequence=5, **consume("0.5"))
    await told.post("dry", validate_only=True, **consume("1"))
    await told.post("back", **refund(told.postings["spent"], amount="2"))
    await told.capture("part", 0, amount="1")
    await told.capture("more", 0, amount="8", allow_more=True, final=True)
    await told.time_passes(2 * HOUR)
    await told.post("again", **refund(told.postings["spent"]))
    await told.post("debit", **adjust("-1"))
    await told.post("spent", **consume("5"))
    await told.change(overdraft_limit="3")
    await told.post("overdrawn", **consume("6"))
    await told.change(status="closed")
    await told.time_passes(DAY)
    await told.post("paid", **grant("10", expires_at=until(HOUR)))
    await told.post("end", **grant("7"))


async def test_nothing_depends_on_it_but_where_rows_stand(
    new_database: Callable[[], str], clock: Clock
) -> None:
    """The same commands, with and without sweeps between all of them, get the same answers."""
    begun, told, rows = clock.now, [], []
    for swept in (False, True):
        clock.now = begun
        url = new_database()
        async with AsyncExitStack() as stack:
            interval = 86_400 if swept else 0
            api = await stack.enter_async_context(
                serve(url, clock, sweep_interval_seconds=interval)
            )
            one = Told(api, clock, sweeps=swept)
            await story(one)
        told.append(one.answers)
        rows.append(look(url, every_row))
        assert findings(url) == []

    assert told[0] == told[1]
    assert rows[0] != rows[1]
    assert [row[:-1] for row in rows[0]] == [row[:-1] for row in rows[1]]
    moved = [a for a, b in zip(*rows, strict=True) if a != b]
    assert {row[1] for row in moved} == {Kind.EXPIRY.value}


def every_row(connection: Connection) -> list[tuple[Any, ...]]:
    """All rows but when they were written, then that."""
    query = select(
        t.sequence, t.kind, t.grant_number, t.amount, t.running_balance,
        func.coalesce(t.effective_at, t.created_at), t.created_at,
    ).order_by(t.sequence)  # fmt: skip
    return [tuple(row) for row in connection.execute(query)]
