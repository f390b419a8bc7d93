"""A wallet that somebody else has locked stops nobody but those who want that wallet."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from creditledger.domain.clock import HOUR
from creditledger.domain.commands import Sweep
from creditledger.domain.errors import Unavailable, WalletLocked
from creditledger.domain.operations import Transfer
from creditledger.engine.locked_wallets import WAIT_SECONDS_MAX, LockedWallets
from creditledger.outlets.sweeper import Sweeper
from tests.support.databases import connect
from tests.support.setup import add_wallet, command, consume, give, wallet_count

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.setup import Clock

LOCKED, FREE = "wal_acme", [f"wal_{n}" for n in range(5)]


@asynccontextmanager
async def locked(url: str, wallet_id: str) -> AsyncIterator[None]:
    """A server that was stopped in the middle of a batch of this wallet."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT FROM wallet_states JOIN wallets ON number = wallet_number"
                " WHERE id = $1 FOR NO KEY UPDATE OF wallet_states",
                wallet_id,
            )
            yield
    finally:
        await connection.close()


@pytest.fixture
async def funded(ledger: Ledger, store: Store) -> Ledger:
    """A committer; credit in every wallet."""
    for name in FREE:
        await store.write(lambda connection, name=name: add_wallet(connection, name))  # type: ignore[misc] # bound
    for name in (LOCKED, *FREE):
        await ledger.post(command(give("100"), key="given", wallet_id=name))
    return ledger


@pytest.mark.only("postgresql")
async def test_others_go_on_while_a_wallet_is_locked(funded: Ledger, database_url: str) -> None:
    """Postings of other wallets pass while one is locked; those for it pass afterwards."""
    async with locked(database_url, LOCKED):
        waiting = [funded.post(command(consume("1"), key=f"w{n}")) for n in range(3)]
        for turn in range(60):
            key = f"k{turn}"
            await asyncio.gather(
                *(funded.post(command(consume("1"), key=key, wallet_id=one)) for one in FREE)
            )
        assert not any(one.done() for one in waiting)

    # In the order in which they came.
    assert [(await one).posting.rows[0].sequence for one in waiting] == [2, 3, 4]


@pytest.mark.only("postgresql")
async def test_a_batch_is_answered_when_its_locked_wallet_is_free(
    funded: Ledger, database_url: str
) -> None:
    """Every item of a call has its own answer, whichever of them had to wait."""
    names = [FREE[0], LOCKED, FREE[1], LOCKED]
    commands = [
        command(consume("1"), key=f"item {n}", wallet_id=name) for n, name in enumerate(names)
    ]
    async with locked(database_url, LOCKED):
        batch = funded.post_many(commands)
        # The rest of the batch is written; who asks for it alone is told so.
        assert (await funded.post(commands[2])).replayed
        assert not batch.done()

    answers = await batch
    assert [one.wallet.sequence for one in answers] == [2, 2, 2, 3]  # type: ignore[union-attr] # none is refused


@pytest.mark.only("postgresql")
async def test_who_waits_too_long_is_told_that_nothing_was_written(
    funded: Ledger, database_url: str
) -> None:
    """After some seconds commands and transfers of the locked wallet are UNAVAILABLE."""
    async with locked(database_url, LOCKED):
        late = [
            funded.post(command(consume("1"), key="late")),
            funded.post(command(Transfer(LOCKED, "1"), key="late", wallet_id=FREE[0])),
        ]
        swept = funded.sweep([Sweep(LOCKED), Sweep(FREE[1])])
        refused = await asyncio.gather(*late, return_exceptions=True)
        await funded.post(command(consume("1"), key="in time", wallet_id=FREE[0]))

    assert [type(one) for one in refused] == [WalletLocked, WalletLocked]
    first, second = await swept
    assert (type(first), second) == (WalletLocked, 0)
    again = await funded.post(command(consume("1"), key="late"))
    assert (again.replayed, again.wallet.sequence) == (False, 2)


@pytest.mark.only("postgresql")
async def test_who_gave_up_waiting_posts_nothing(funded: Ledger, database_url: str) -> None:
    """A command is dropped whose caller has gone while its wallet was locked."""
    async with locked(database_url, LOCKED):
        gone = funded.post(command(consume("1"), key="gone"))
        stays = funded.post(command(consume("2"), key="stays"))
        await funded.post(command(consume("1"), key="meanwhile", wallet_id=FREE[0]))
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone

    assert (await stays).wallet.sequence == 2


@pytest.mark.only("postgresql")
async def test_what_waits_is_finished_before_the_end(
    funded: Ledger, store: Store, database_url: str
) -> None:
    """A server that closes answers commands that wait for a locked wallet."""
    async with locked(database_url, LOCKED):
        waiting = funded.post(command(consume("1"), key="waits"))
        await funded.post(command(consume("1"), key="meanwhile", wallet_id=FREE[0]))
        closing = asyncio.create_task(funded.close())
        await store.read(wallet_count)  # gives way to it
        with pytest.raises(Unavailable):
            await funded.post(command(consume("1"), key="more", wallet_id=FREE[0]))
        assert not closing.done()

    await closing
    assert (await waiting).wallet.sequence == 2


@pytest.mark.only("postgresql")
async def test_a_sweep_goes_on_behind_a_locked_wallet(
    funded: Ledger, store: Store, clock: Clock, database_url: str
) -> None:
    """What has expired in other wallets is written down; the locked one is left to the next."""
    for name in (LOCKED, *FREE):
        ends = give("1", expires_at=clock.now + HOUR)
        await funded.post(command(ends, key="ends", wallet_id=name))
    clock.advance(2 * HOUR)
    sweeper = Sweeper(store, funded, clock=clock, interval_seconds=HOUR)

    async with locked(database_url, LOCKED):
        assert await sweeper.sweep() == len(FREE)
    assert await sweeper.sweep() == 1


def test_each_wallet_has_its_turn() -> None:
    """Where more wait than one batch takes, every wallet is tried after some turns, in order."""
    waiting = LockedWallets[str](10, 100)
    for n in range(3):
        for wallet_id in "abcde":
            waiting.add(wallet_id, f"{wallet_id}{n}", 0.0)
    tried: list[str] = []
    for _ in range(3):
        turn = waiting.turn(2, 0.0, lambda _: False)
        tried += turn
        assert waiting.tried([(one[0], place) for place, one in enumerate(turn)], 0.0) == []

    assert tried == ["a0", "b0", "c0", "d0", "e0", "a0"]
    assert waiting.count == 15
    assert waiting.turn(15, 0.0, lambda one: one[0] != "c") == ["c0", "c1", "c2"]
    assert waiting.tried([("c", 1)], WAIT_SECONDS_MAX) == ["c1"]
    assert (waiting.count, bool(waiting)) == (0, False)


def test_a_locked_wallet_takes_its_share_of_the_room() -> None:
    """Those who wait for one wallet leave room for those who wait for another."""
    waiting = LockedWallets[int](2, 3)
    for n in range(2):
        assert waiting.has_room("a")
        waiting.add("a", n, 0.0)

    assert not waiting.has_room("a")
    assert waiting.has_room("b")
    waiting.add("b", 3, 0.0)
    assert not waiting.has_room("c")
    assert waiting.find(["c", "b"]) == "b"
