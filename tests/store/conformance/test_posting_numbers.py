"""Postings are numbered within their wallet: no number of a batch or of another wallet matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.model import Kind
from creditledger.domain.operations import PlaceHold, Release, ReportEvent, Transfer
from creditledger.engine.batch import Posted
from creditledger.store.read import wallet_history
from creditledger.store.registry import records
from tests.support.setup import (
    add_meter,
    add_wallet,
    change,
    command,
    consume,
    findings,
    give,
    look,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from creditledger.domain.commands import Command
    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.setup import Clock

#: So many wallets with so many unpaid events each: more settlements than any one batch has items.
WALLETS, EVENTS = 840, 5
LAST = f"wal_{WALLETS}"


async def posted(ledger: Ledger, commands: Sequence[Command]) -> list[Posted]:
    """What became of them; none is refused."""
    found = []
    for start in range(0, len(commands), 1_000):
        for one in await ledger.post_many(commands[start : start + 1_000]):
            assert isinstance(one, Posted), one
            found.append(one)
    return found


async def test_a_batch_settles_any_number_of_meter_events(ledger: Ledger, store: Store) -> None:
    """A batch may make more postings than commands; every wallet is posted to afterwards."""
    names = [f"wal_{number + 1}" for number in range(WALLETS)]

    await store.write(lambda connection: add_meter(connection, "mtr_calls"))
    for start in range(0, WALLETS, 70):  # a transaction has not the time for all of them

        def register(connection: Connection, some: list[str] = names[start : start + 70]) -> None:
            for name in some:
                add_wallet(connection, name)

        await store.write(register)
    reports = [
        command(ReportEvent("1", "mtr_calls"), key=f"event {event}", wallet_id=name)
        for name in names
        for event in range(EVENTS)
    ]
    await posted(ledger, reports)
    renewal = give("10", kind=Kind.SUBSCRIPTION_RENEW)
    renewed = await posted(ledger, [command(renewal, wallet_id=name) for name in names])
    spent = [command(consume("0.001"), key=f"call {n}", wallet_id=LAST) for n in range(1_000)]
    numbers = [one.posting.number for one in await posted(ledger, spent)]

    before = EVENTS + 1 + EVENTS
    assert {one.posting.number for one in renewed} == {EVENTS + 1}
    assert numbers == list(range(before + 1, before + 1_001))


async def test_each_wallet_counts_its_own_postings(
    ledger: Ledger, store: Store, clock: Clock
) -> None:
    """Numbers go from 1 without a gap, over postings of clients, ledger and transfers."""
    await store.write(lambda connection: add_wallet(connection, "wal_beta"))
    await ledger.post(command(give("5", expires_at=clock.now + time.HOUR), key="1"))
    await ledger.post(command(give("5"), key="2"))
    (held,) = await posted(ledger, [command(PlaceHold("1", None, None), key="3")])
    clock.advance(2 * time.HOUR)
    sent = await ledger.post(command(Transfer("wal_beta", "2"), key="4"))  # upon an expiration
    assert sent.received is not None

    assert held.hold is not None
    assert (held.posting.number, held.hold.number) == (3, 3)
    assert (sent.posting.number, sent.received.posting.number) == (5, 1)
    spent = await ledger.post(command(consume("1"), key="1", wallet_id="wal_beta"))
    assert spent.posting.number == 2


async def test_numbers_that_once_went_back_order_nothing(
    ledger: Ledger, store: Store, clock: Clock, database_url: str
) -> None:
    """An older ledger with lower numbers on later postings is sound, and its past unchanged."""
    await ledger.post(command(give("10"), key="1"))
    held = await ledger.post(command(PlaceHold("10", None, time.DAY), key="2"))
    assert held.hold is not None
    clock.advance(time.MINUTE)
    released = clock.now
    await ledger.post(command(Release(ids.compose("hld", 1, held.hold.number)), key="3"))
    await ledger.post(command(consume("4"), key="4"))
    clock.advance(time.MINUTE)
    await ledger.close()
    await store.close()
    change(database_url, lambda connection: raise_numbers(connection, until=released))

    def held_at(connection: Connection, moment: int) -> list[int]:
        wallet = records.wallet(connection, "wal_acme")
        assert wallet is not None
        was = wallet_history.at_time(connection, wallet, moment)
        after, _ = wallet_history.at_sequence(connection, wallet, 2)
        return [sum(hold.left for hold in one.holds.values()) for one in (was, after)]

    assert findings(database_url) == []
    assert look(database_url, lambda c: held_at(c, released)) == [0, 0]
    assert look(database_url, lambda c: held_at(c, released - 1)) == [10 * 10**9, 0]
    async with opened(database_url, clock) as (_, again):
        posted_again = await again.post(command(consume("1"), key="5"))
        assert posted_again.posting.number > 4_096


def raise_numbers(connection: Connection, *, until: int) -> None:
    """What was posted before that moment has higher numbers than what came later."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
    tables = ("postings", "credit_transactions", "hold_revisions")
    guards = []
    for table in tables:
        if connection.dialect.name == "sqlite":
            trigger = f"SELECT sql FROM sqlite_master WHERE name = '{table}_no_update'"
            guards.append(connection.exec_driver_sql(trigger).scalar_one())
            connection.exec_driver_sql(f"DROP TRIGGER {table}_no_update")
        else:
            connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER {table}_no_update")
            guards.append(f"ALTER TABLE {table} ENABLE TRIGGER {table}_no_update")
    before = f"WHERE created_at < {until}"
    for statement in (
        "UPDATE postings SET number = number + 4096 WHERE number <= 2",
        "UPDATE postings SET hold_number = hold_number + 4096",
        f"UPDATE credit_transactions SET posting_number = posting_number + 4096 {before}",
        "UPDATE holds SET number = number + 4096",
        "UPDATE hold_revisions SET hold_number = hold_number + 4096",
        f"UPDATE hold_revisions SET posting_number = posting_number + 4096 {before}",
        "UPDATE wallet_states SET last_posting = 4098",
        *guards,
    ):
        connection.exec_driver_sql(statement)
