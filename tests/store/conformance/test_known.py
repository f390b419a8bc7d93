"""What a writer knows between batches is what the database holds, after any change by anybody."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from creditledger.domain.commands import Usage
from creditledger.domain.errors import InsufficientCredit
from creditledger.domain.operations import Consume
from creditledger.store import Changes, Loaded
from creditledger.store.write import wallet_cache
from tests.support.setup import Clock, add_wallet, command, consume, file_of, give, opened
from tests.support.store_batches import wanting
from tests.support.values import NOW, grant, wallet_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store

#: Lends wal_acme a hundred.
LEND = "UPDATE wallet_states SET overdraft_limit = 100000000000"


async def test_what_is_written_beside_the_postings_is_seen(ledger: Ledger, store: Store) -> None:
    """A write that is no posting, and that changed a wallet, counts from the next batch on."""
    await ledger.post(command(give("1"), key="given"))
    with pytest.raises(InsufficientCredit):
        await ledger.post(command(consume("2"), key="spent"))

    await store.write(lambda connection: connection.execute(text(LEND)))

    assert (await ledger.post(command(consume("2"), key="spent"))).wallet.overdraft_used == 10**9


async def test_a_write_that_failed_changes_nothing_that_is_known(
    ledger: Ledger, store: Store
) -> None:
    """A write that is undone is not seen, though a batch may have come before and comes after."""
    await ledger.post(command(give("1"), key="given"))

    def write(connection: Connection) -> None:
        connection.execute(text(LEND))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(write)

    with pytest.raises(InsufficientCredit):
        await ledger.post(command(consume("2"), key="spent"))


@pytest.mark.only("sqlite")
async def test_what_another_connection_wrote_is_seen(ledger: Ledger, database_url: str) -> None:
    """There should be no other, but an operator's shell is not asked."""
    await ledger.post(command(give("1"), key="given"))
    with closing(sqlite3.connect(file_of(database_url))) as shell:
        shell.execute(LEND)
        shell.commit()

    assert (await ledger.post(command(consume("2"), key="spent"))).wallet.overdraft_used == 10**9


async def test_what_a_failed_batch_did_to_a_wallet_is_forgotten(
    ledger: Ledger, store: Store
) -> None:
    """A batch that moved a wallet on and then failed leaves it as it is in the database."""
    await ledger.post(command(give("5"), key="given"))

    def decide(loaded: Loaded) -> Changes:
        wallet = loaded.wallets["wal_acme"]
        wallet.sequence, wallet.running_balance = 77, 77
        wallet.burning[0].remaining = 77
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.commit(wanting("wal_acme"), decide)

    spent = await ledger.post(command(consume("2"), key="spent"))
    assert (spent.wallet.sequence, spent.wallet.balance) == (2, 3 * 10**9)


async def test_a_dimension_of_a_failed_batch_is_written_with_the_next(ledger: Ledger) -> None:
    """What a batch would have added rows up by is not there, if the batch is not."""
    usage = Usage("apk_1", "prd_new", "Chat", "llm", 1, (7,), (1,), (1,), 1)
    await ledger.post(command(give("5"), key="given"))

    posts = [
        ledger.post(command(Consume("1", usage=usage), key=key))
        # A text that UTF-8 cannot write, and no database can store.
        for key in ("first", "\ud800", "last")
    ]
    answers = await asyncio.gather(*posts, return_exceptions=True)

    assert [isinstance(answer, Exception) for answer in answers] == [False, True, False]


def used(*numbers: int, grants: int = 3) -> Loaded:
    """A batch over wallets of these numbers, each with so many open grants and one used up."""
    loaded = Loaded(clock=NOW)
    for number in numbers:
        open_grants = (grant(place, 1) for place in range(1, grants + 1))
        wallet = wallet_of(grant(grants + 1, 0, amount=5), *open_grants)
        loaded.wallets[f"wal_{number}"] = wallet
    return loaded


def test_the_wallets_used_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is counted in wallets and open grants; what was used longest ago goes first."""
    monkeypatch.setattr(wallet_cache, "KNOWN_MAX", 12)
    memory = wallet_cache.Known()
    memory.keep(used(1, 2, 3))
    assert memory.take(["wal_1"]).keys() == {"wal_1"}
    memory.keep(used(1))
    memory.keep(used(4))

    assert memory.take(["wal_1", "wal_2", "wal_3", "wal_4"]).keys() == {"wal_1", "wal_3", "wal_4"}


def test_a_wallet_that_is_worked_on_is_not_known() -> None:
    """What a batch has taken is nobody else's until it is kept again, with what is open only."""
    memory = wallet_cache.Known()
    memory.keep(used(1))

    (wallet,) = memory.take(["wal_1"]).values()
    assert wallet.grants.keys() == {1, 2, 3}
    assert memory.take(["wal_1"]) == {}


async def test_more_wallets_than_are_known_are_read_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where room is for few, wallets come and go, and each is found as it was left."""
    monkeypatch.setattr(wallet_cache, "KNOWN_MAX", 7)
    monkeypatch.setattr(wallet_cache, "DIMENSIONS_KNOWN_MAX", 3)
    wallet_ids = [f"wal_{n}" for n in range(6)]

    def seed(connection: Connection) -> None:
        for wallet_id in wallet_ids:
            add_wallet(connection, wallet_id)

    async with opened(database_url, Clock()) as (store, ledger):
        await store.write(seed)
        for wallet_id in wallet_ids:
            gifts = [command(give("1"), key=f"given {n}", wallet_id=wallet_id) for n in range(3)]
            await ledger.post_many(gifts)
        for n in range(5):
            spent = [
                command(consume("0.5"), key=f"spent {n}", wallet_id=wallet_id)
                for wallet_id in wallet_ids[n:] + wallet_ids[:n]
            ]
            answers = await asyncio.gather(ledger.post_many(spent[:2]), ledger.post_many(spent[2:]))

            left = [answer.wallet.balance for part in answers for answer in part]  # type: ignore[union-attr]  # none is refused
            assert left == [3 * 10**9 - (n + 1) * 10**9 // 2] * 6
