"""Folds change what a read costs, and never what it answers."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from creditledger.outlets import folder
from creditledger.outlets.folder import Folder
from creditledger.store import CannotOpen, Store, schema
from creditledger.store.folds import folding
from creditledger.store.read.consumption import Sums, dimension_sums
from creditledger.store.read.transaction_reads import Filters
from tests.store.test_verify import written
from tests.support.setup import (
    Clock,
    add_wallet,
    change,
    command,
    consume,
    findings,
    give,
    look,
    migrate,
    opened,
)
from tests.support.sums_over_time import answers, fold_all, fold_some, wallet_ends, windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from creditledger.engine.ledger import Ledger


@pytest.fixture(scope="module")
def story(new_database: Callable[[], str]) -> str:
    """Rows of all kinds in several wallets."""
    url = new_database()
    asyncio.run(written(url))
    return url


def ends(connection: Connection) -> dict[int, int]:
    e = schema.fold_ends.c
    return dict(connection.execute(select(e.wallet_number, e.sequence)).all())


@pytest.mark.parametrize("seed", range(5))
def test_a_fold_changes_no_answer(story: str, seed: int) -> None:
    """All folds dropped, and wallets folded to random sequences, at any moment."""
    random = Random(seed)
    change(story, folding.drop)

    def ask(connection: Connection) -> list[Any]:
        return [answers(connection, *one) for one in asked]

    wallets = look(story, wallet_ends)
    asked: list[tuple[int, int, Any]] = []
    for wallet, most in wallets.items():
        if most:
            of = look(story, partial(windows, wallet=wallet, random=Random(seed)))
            # As it is, and as it was: behind that it may be folded.
            asked += [(wallet, most, of), (wallet, random.randint(1, most), of)]
    by_rows_alone = look(story, ask)
    for _ in range(3):
        change(story, lambda connection: fold_some(connection, random))
        assert look(story, ask) == by_rows_alone
        assert findings(story) == []
    change(story, fold_all)
    assert look(story, ends) == {wallet: last for wallet, last in wallets.items() if last}
    assert look(story, ask) == by_rows_alone
    assert findings(story) == []


async def test_more_dimensions_than_a_statement_takes_parameters(
    new_database: Callable[[], str],
) -> None:
    """API keys and products are labels of the caller's, so nothing bounds how many there are."""
    url = new_database()
    await written(url)
    change(url, fold_all)
    d = schema.dimensions.c
    metered = select(schema.dimensions).where(d.meter_id.is_not(None)).limit(1)
    one = look(url, lambda connection: connection.execute(metered).mappings().one())
    filters = Filters(livemode=True, meter_id=one["meter_id"])
    scope = [(one["wallet_number"], look(url, wallet_ends)[one["wallet_number"]], "USD")]

    def ask(connection: Connection) -> Sums:
        return dimension_sums(connection, filters, scope)

    before = look(url, ask)
    more = [
        {**one, "number": 1_000 + n, "digest": f"{n:064}", "product_id": f"p{n}"}
        for n in range(33_000)
    ]
    change(url, lambda connection: connection.execute(schema.dimensions.insert(), more))

    assert before.count
    assert look(url, ask) == before


async def test_servers_fold_at_once(new_database: Callable[[], str]) -> None:
    """Two servers fold the same wallets, and each row is in one fold."""
    url = new_database()
    await written(url)
    change(url, folding.drop)
    store = Store(url, clock=Clock())
    await store.open()
    both = [Folder(store, interval_seconds=1), Folder(store, interval_seconds=1)]
    folded = await asyncio.gather(*(one.fold_all() for one in both))
    # What one left because the other had its wallet.
    folded.append(await both[0].fold_all())
    await store.close()

    wallets = look(url, wallet_ends)
    assert look(url, ends) == {wallet: last for wallet, last in wallets.items() if last}
    assert sum(folded) >= sum(wallets.values())
    assert findings(url) == []


async def test_a_posting_writes_no_fold(ledger: Ledger, database_url: str) -> None:
    """Its row alone counts until it is folded."""
    await ledger.post(command(give("5"), key="1"))
    await ledger.post(command(consume("1"), key="2"))

    assert look(database_url, ends) == {}
    assert look(database_url, lambda c: c.execute(select(schema.folds)).all()) == []
    assert findings(database_url) == []


async def test_wallets_with_many_rows_are_folded_others_wait(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wallet is folded when it is worthwhile, or when too much is unfolded in all."""
    monkeypatch.setattr(folder, "WORTHWHILE", 8)
    monkeypatch.setattr(folder, "UNFOLDED_MIN", 12)
    migrate(empty_url)
    async with opened(empty_url, Clock()) as (store, ledger):
        for name in ("wal_few", "wal_some"):
            await store.write(partial(add_wallet, wallet_id=name))
        numbers = await store.read(
            lambda c: dict(c.execute(select(schema.wallets.c.id, schema.wallets.c.number)).all())
        )
        folding_ = Folder(store, interval_seconds=1)

        async def post(wallet_id: str, times: int) -> None:
            for _ in range(times):
                key = f"{wallet_id} {next(keys)}"
                await ledger.post(command(give("1"), key=key, wallet_id=wallet_id))

        keys = iter(range(1_000))
        await post("wal_acme", 8)
        await post("wal_few", 2)
        await post("wal_some", 6)
        assert await folding_.fold() == 8
        assert await store.read(ends) == {numbers["wal_acme"]: 8}
        assert await folding_.fold() == 0
        # Fifteen in all: that with most of them is folded, and the rest is within the bound.
        await post("wal_few", 1)
        await post("wal_acme", 6)
        await folding_.fold()
        left = {
            name: last - (await store.read(ends)).get(numbers[name], 0)
            for name, last in (("wal_acme", 14), ("wal_few", 3), ("wal_some", 6))
        }
        assert left["wal_few"] == 3
        assert sum(left.values()) <= 12
        assert await folding_.fold_all() == sum(left.values())
        assert await folding_.fold_all() == 0
    assert findings(empty_url) == []


async def test_what_the_writer_knows_stays_true(
    ledger: Ledger, store: Store, database_url: str
) -> None:
    """A wallet is posted to, folded, and posted to again."""
    for key in range(3):
        await ledger.post(command(give("5"), key=f"{key}"))
        assert await Folder(store, interval_seconds=1).fold_all() == 1
    assert look(database_url, ends) == {1: 3}
    assert findings(database_url) == []


def test_an_older_server_writes_no_more(story: str) -> None:
    """What it adds each batch's sums to is gone: its transaction fails, whole."""
    adds = "INSERT INTO rollups (wallet_number, quarter) VALUES (1, 0)"
    with pytest.raises((DBAPIError, CannotOpen), match="rollups"):
        change(story, lambda connection: connection.exec_driver_sql(adds))


def test_news_of_another_database_are_none(story: str) -> None:
    """A mark beyond the end, as after a failover, has everything looked up again."""
    everything = look(story, folding.unfolded)
    assert look(story, lambda c: folding.news(c, everything.mark + 10**9)) is None
    seen = look(story, lambda c: folding.news(c, everything.mark))
    assert seen is not None
    assert (seen.by_wallet, seen.last, seen.rows) == ({}, {}, 0)
    assert everything.rows == sum(look(story, wallet_ends).values())
