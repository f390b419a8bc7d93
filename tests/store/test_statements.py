"""What a batch costs its database: counted in statements, which do not depend on the machine."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, event

from creditledger.domain import ids
from creditledger.domain.commands import Usage
from creditledger.domain.operations import Consume, Transfer
from creditledger.store.postgres.writer import DISCARD_PLANS
from tests.support.setup import (
    Clock,
    add_meter,
    add_subscription,
    add_wallet,
    adjust,
    command,
    consume,
    give,
    is_file,
    opened,
    posting_id,
    refund,
)
from tests.support.statements_recorded import recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from creditledger.domain.commands import Command, Operation
    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger
    from creditledger.store import Store
    from tests.support.statements_recorded import Recorded

in_a_file, on_a_server = pytest.mark.only("sqlite"), pytest.mark.only("postgresql")

#: BEGIN, whether anybody else wrote, fifteen reads, nine writes and COMMIT: each that there is.
KINDS_MAX = 27
#: BEGIN, whether anybody else wrote, the keys, and COMMIT.
KNOWN_READS = 4
#: A write takes any number of rows up to 511 in so many statements, of 256, 128 ... 1 rows.
SIZES = 9
#: BEGIN, locks with time and keys, open grants, originals, their rows, dimensions, refunds, named
#: grants, meters, subscriptions, dimensions twice, who paid overdrafts, parts of grants, the write
#: and COMMIT: each that there is.
ROUND_TRIPS_MAX = 16
#: BEGIN; locks, time and keys; the write; COMMIT.
ROUND_TRIPS_OF_CONSUMPTIONS = 4


@contextmanager
def statements() -> Iterator[list[str]]:
    """What the connections made in here run, as SQLite sees it."""
    seen: list[str] = []

    def listen(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(seen.append)

    event.listen(Engine, "connect", listen)
    yield seen
    event.remove(Engine, "connect", listen)


def kind(statement: str) -> str:
    """The statement without its values: one for all numbers of rows that it is run with."""
    row = re.sub(r"'(?:[^']|'')*'|\bNULL\b|-?\b\d+\b", "?", statement.strip())
    return re.sub(r"(\([?, ]+\))(, \([?, ]+\))+", r"\1", row)


def mixed(wallet_ids: list[str], size: int, posted: list[Posted], label: str) -> list[Command]:
    """`size` postings of every kind over the wallets, with usage that each wallet has not seen."""
    usage = Usage("apk_1", label, "Chat", "llm", 1, (7,), (1,), (1,), 1)
    commands = []
    for n in range(size):
        wallet_id = wallet_ids[n % len(wallet_ids)]
        spent = posted[n % len(posted)]
        first = ids.compose("cg", spent.posting.wallet, 1)
        operations: list[Operation] = [
            Consume("0.01", "mtr_tokens", None, None, usage),
            Consume("0.01", "mtr_tokens", None, f"sub_{wallet_id}"),
            give("1"),
            adjust("-0.01"),
            adjust("-0.01", credit_grant_id=first),
            refund(posting_id(spent), "0.000001"),
        ]
        operation = operations[n % len(operations)]
        commands.append(command(operation, key=f"{label} {n}", wallet_id=wallet_id))
    return commands


async def prepared(store: Store, ledger: Ledger, wallet_ids: list[str]) -> list[Posted]:
    """A meter and the wallets, each with credit, a subscription, and the consumption answered."""

    def seed(connection: Connection) -> None:
        add_meter(connection, "mtr_tokens")
        for wallet_id in wallet_ids:
            add_wallet(connection, wallet_id)
            customer_id = f"cus_of_{wallet_id}"
            add_subscription(connection, f"sub_{wallet_id}", customer_id=customer_id)

    await store.write(seed)
    posted = []
    for wallet_id in wallet_ids:
        for key, operation in (("given", give("100")), ("spent", consume("1"))):
            answer = await ledger.post(command(operation, key=key, wallet_id=wallet_id))
        posted.append(answer)
    return posted


@in_a_file
@pytest.mark.parametrize("wallets", [1, 100])
async def test_a_batch_costs_the_same_statements_whatever_its_size(
    database_url: str, wallets: int
) -> None:
    """A batch of 500 takes no more reads and writes than one of 10, over one wallet or many."""
    wallet_ids = [f"wal_{n}" for n in range(wallets)]
    costs: dict[tuple[int, bool], int] = {}
    with statements() as seen:
        async with opened(database_url, Clock()) as (store, ledger):
            posted = await prepared(store, ledger, wallet_ids)
            for size in (1, 10, 500):
                commands = mixed(wallet_ids, size, posted, f"batch of {size}")
                for replayed in (False, True):
                    seen.clear()
                    answers = await asyncio.gather(*map(ledger.post, commands))
                    assert {replayed} == {answer.replayed for answer in answers}
                    assert (seen.count("BEGIN IMMEDIATE"), seen.count("COMMIT")) == (1, 1)
                    kinds = {kind(statement) for statement in seen}
                    costs[size, replayed] = len(kinds)
                    writes = [one for one in kinds if not one.startswith("SELECT")]
                    assert len(seen) <= KINDS_MAX + len(writes) * SIZES

    for replayed in (False, True):
        assert costs[1, replayed] <= costs[10, replayed] == costs[500, replayed]
    assert max(costs.values()) <= KINDS_MAX


@in_a_file
@pytest.mark.parametrize("grants", [1, 20])
async def test_what_is_known_is_not_read_again(database_url: str, grants: int) -> None:
    """Consumptions of wallets used before cost one read, of their keys, and four writes."""
    wallet_ids = [f"wal_{n}" for n in range(50)]

    def seed(connection: Connection) -> None:
        for wallet_id in wallet_ids:
            add_wallet(connection, wallet_id)

    def commands(label: str, make: Callable[[], Operation]) -> list[Command]:
        return [
            command(make(), key=f"{label} {n}", wallet_id=wallet_ids[n % 50]) for n in range(500)
        ]

    with statements() as seen:
        async with opened(database_url, Clock()) as (store, ledger):
            await store.write(seed)
            for part in range(grants):
                await ledger.post_many(commands(f"given {part}", lambda: give("100"))[:50])
            for round_ in ("first", "second"):
                seen.clear()
                answers = await ledger.post_many(commands(round_, lambda: consume("0.01")))
                assert not any(isinstance(answer, Exception) for answer in answers)

    assert len(seen) <= KNOWN_READS + 4 * SIZES
    kinds = {kind(statement) for statement in seen}
    assert len([one for one in kinds if one.startswith("SELECT")]) == 1
    assert len(kinds) == KNOWN_READS + 4


# --- PostgreSQL: a statement is a round trip ------------------------------------------------------


async def of_a_batch(heard: Recorded, ledger: Ledger, commands: list[Command]) -> list[str]:
    """The statements that the batch was written by, from BEGIN to COMMIT, in their order."""
    await asyncio.sleep(0)  # what is heard of a statement comes a turn of the loop later
    heard.posting.clear()
    answers = await ledger.post_many(commands)
    assert not any(isinstance(answer, Exception) for answer in answers)
    await asyncio.sleep(0)
    said = [one.text.strip() for one in heard.posting if one.text != DISCARD_PLANS]
    assert said[0].startswith("BEGIN")
    assert said[-1] == "COMMIT"
    assert not any("COMMIT" in one or "BEGIN" in one for one in said[1:-1])
    return said


@on_a_server
@pytest.mark.parametrize("wallets", [1, 100])
async def test_a_batch_on_a_server_costs_the_same_whatever_its_size(
    database_url: str, wallets: int
) -> None:
    """A batch of 500 is as many round trips as one of 10, over one wallet or many."""
    wallet_ids = [f"wal_{n}" for n in range(wallets)]
    costs: dict[tuple[int, bool], int] = {}
    with recorded() as heard:
        async with opened(database_url, Clock()) as (store, ledger):
            posted = await prepared(store, ledger, wallet_ids)
            for size in (1, 10, 500):
                commands = mixed(wallet_ids, size, posted, f"batch of {size}")
                for replayed in (False, True):
                    said = await of_a_batch(heard, ledger, commands)
                    costs[size, replayed] = len(said)

    for replayed in (False, True):
        assert costs[1, replayed] <= costs[10, replayed] == costs[500, replayed]
    assert max(costs.values()) <= ROUND_TRIPS_MAX


@on_a_server
async def test_a_batch_of_consumptions_on_a_server(database_url: str) -> None:
    """Of wallets used before they cost one read and one write."""
    wallet_ids = [f"wal_{n}" for n in range(50)]
    with recorded() as heard:
        async with opened(database_url, Clock()) as (store, ledger):
            await prepared(store, ledger, wallet_ids)
            for round_ in ("first", "second"):
                said = await of_a_batch(
                    heard,
                    ledger,
                    [
                        command(consume("0.01"), key=f"{round_} {n}", wallet_id=wallet_ids[n % 50])
                        for n in range(500)
                    ],
                )

    assert len(said) <= ROUND_TRIPS_OF_CONSUMPTIONS, said
    assert sum("INSERT" in one for one in said) == 1, said


# --- transfers, on both ---------------------------------------------------------------------------


async def test_transfers_cost_the_same_whatever_their_number(database_url: str) -> None:
    """Two hundred between a hundred wallets take no more than ten, nor when they are repeated."""
    wallet_ids = [f"wal_{n}" for n in range(100)]
    costs: dict[tuple[int, bool], int] = {}
    with recorded() as heard, statements() as seen:
        async with opened(database_url, Clock()) as (store, ledger):
            await prepared(store, ledger, wallet_ids)
            for size in (1, 10, 200):
                commands = [
                    command(
                        Transfer(wallet_ids[(7 * n + 1) % 100], "0.01"),
                        key=f"{size} {n}",
                        wallet_id=wallet_ids[7 * n % 100],
                    )
                    for n in range(size)
                ]
                for replayed in (False, True):
                    seen.clear()
                    if is_file(database_url):
                        answers = await ledger.post_many(commands)
                        assert not any(isinstance(answer, Exception) for answer in answers)
                        costs[size, replayed] = len({kind(statement) for statement in seen})
                    else:
                        said = await of_a_batch(heard, ledger, commands)
                        costs[size, replayed] = len(said)

    for replayed in (False, True):
        assert costs[1, replayed] <= costs[10, replayed] == costs[200, replayed]
    assert max(costs.values()) <= (KINDS_MAX if is_file(database_url) else ROUND_TRIPS_MAX)
