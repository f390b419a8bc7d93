"""What any database must do for the ledger: all or nothing, nothing changed, nobody kept waiting.

Nothing here knows how a store works inside: it goes in by `Store` and `Ledger`, and by SQL.
"""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from structlog.testing import capture_logs

from creditledger.domain.commands import Usage
from creditledger.domain.errors import QueryTooBroad, Unavailable
from creditledger.domain.operations import Consume
from creditledger.store import READ_SECONDS_MAX, Changes, DatabaseLocked, Loaded, Store, schema
from tests.support.databases import OURS, execute
from tests.support.server import PATIENCE_SECONDS
from tests.support.setup import (
    Clock,
    add_wallet,
    adjust,
    command,
    consume,
    file_of,
    give,
    is_file,
    look,
    posting_id,
    refund,
    wallet_count,
)
from tests.support.store_batches import by_hand, contents, wanting

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger


async def story(ledger: Ledger) -> list[Posted]:
    """A grant of 10, 3 spent of it in usage, 1 of them returned, 2 taken."""
    usage = Usage("apk_1", "prd_1", "Chat", "llm", 1, (7,), (1,), (1,), 1)
    given = await ledger.post(command(give("10"), key="given"))
    spent = await ledger.post(command(Consume("3", usage=usage), key="spent"))
    returned = await ledger.post(command(refund(posting_id(spent), "1"), key="returned"))
    taken = await ledger.post(command(adjust("-2"), key="taken"))
    return [given, spent, returned, taken]


# --- all or nothing -------------------------------------------------------------------------------


async def test_a_decide_that_raises_writes_nothing(store: Store, ledger: Ledger) -> None:
    """Whatever a batch was about to write, an exception before COMMIT leaves no trace of it."""
    await story(ledger)
    before = await contents(store)

    def decide(loaded: Loaded) -> Changes:
        loaded.wallets["wal_acme"].running_balance = 0
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.commit(wanting("wal_acme"), decide)

    assert before == await contents(store)
    assert (await ledger.post(command(consume("1"), key="next"))).wallet.sequence == 5


async def test_a_batch_that_breaks_a_constraint_writes_nothing(
    store: Store, ledger: Ledger
) -> None:
    """Of a batch whose last row is refused by the schema nothing stays, its first rows neither."""
    await story(ledger)
    before = await contents(store)

    with pytest.raises((sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)):
        await store.commit(wanting("wal_acme"), lambda loaded: by_hand(loaded, 5, 6, 4))

    assert before == await contents(store)
    assert (await ledger.post(command(consume("1"), key="next"))).wallet.sequence == 5


async def test_a_change_that_raises_writes_nothing(store: Store) -> None:
    """A write is one transaction: what it did before it raised is undone."""
    before = await contents(store)

    def change(connection: Connection) -> None:
        add_wallet(connection, "wal_doomed")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(change)

    assert before == await contents(store)


# --- nothing is changed ---------------------------------------------------------------------------


CHANGE_ON_CONFLICT = """
INSERT INTO {table} SELECT * FROM {table} WHERE true
ON CONFLICT ({key}) DO UPDATE SET wallet_number = excluded.wallet_number"""


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("credit_transactions", "wallet_number, sequence"),
        ("postings", "wallet_number, idempotency_key"),
        ("dimensions", "wallet_number, number"),
    ],
)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET wallet_number = wallet_number",
        "DELETE FROM {table}",
        CHANGE_ON_CONFLICT,
        pytest.param(
            "INSERT OR REPLACE INTO {table} SELECT * FROM {table}", marks=pytest.mark.only("sqlite")
        ),
        pytest.param("TRUNCATE {table}", marks=pytest.mark.only("postgresql")),
    ],
)
async def test_what_is_written_is_never_changed(
    store: Store, ledger: Ledger, table: str, key: str, statement: str
) -> None:
    """Rows, postings and dimensions refuse every change and removal by any session."""
    await story(ledger)
    before = await contents(store)

    with pytest.raises(IntegrityError):
        await store.write(lambda c: c.execute(text(statement.format(table=table, key=key))))

    assert before == await contents(store)


ROWS = ", ".join(column.name for column in schema.transactions.columns if column.name != "position")
POSTINGS = ", ".join(column.name for column in schema.postings.columns)


def another_row(**changed: object) -> str:
    """INSERT of a row that is in order but for what is changed."""
    values = ", ".join(
        str(changed.get(name, f"9 AS {name}" if name == "sequence" else name))
        for name in ROWS.split(", ")
    )
    return f"INSERT INTO credit_transactions ({ROWS}) SELECT {values} FROM credit_transactions"


def another_posting(**changed: object) -> str:
    values = ", ".join(str(changed.get(name, name)) for name in POSTINGS.split(", "))
    posted = f"INSERT INTO postings ({POSTINGS}) SELECT {values} FROM postings"
    return f"{posted} WHERE first_sequence = 1"


def checked_in_a_file(statement: str) -> Any:
    """What breaks a reference of rows or postings: a server's database does not look at those."""
    return pytest.param(statement, marks=pytest.mark.only("sqlite"))


#: Of the same customer, in the same currency and mode.
ANOTHER_WALLET = """
INSERT INTO wallets (id, customer_id, currency, livemode, created_at)
SELECT 'wal_2', customer_id, currency, livemode, 1 FROM wallets"""


@pytest.mark.parametrize(
    "statement",
    [
        another_row(sequence="sequence") + " WHERE sequence = 4",
        another_row(sequence=0) + " WHERE sequence = 4",
        another_row(amount=0) + " WHERE sequence = 4",
        another_row(amount=10**17 + 1) + " WHERE sequence = 4",
        checked_in_a_file(another_row(grant_number=77) + " WHERE sequence = 4"),
        checked_in_a_file(another_row(dimension_number=77) + " WHERE sequence = 4"),
        checked_in_a_file(another_row(posting_number=77) + " WHERE sequence = 4"),
        checked_in_a_file(another_row(wallet_number=77) + " WHERE sequence = 4"),
        another_row(kind=10) + " WHERE sequence = 4",
        another_row(type=5) + " WHERE sequence = 4",
        another_row(kind_count="NULL") + " WHERE sequence = 4",
        another_posting(number=77),
        another_posting(idempotency_key="'another'"),
        checked_in_a_file(
            another_posting(number=77, idempotency_key="'another'", wallet_number=77)
        ),
        checked_in_a_file(another_posting(number=77, idempotency_key="'another'", posted_by=77)),
        "UPDATE grants SET remaining = -1, open = false",
        "UPDATE grants SET remaining = 0",
        "UPDATE grants SET remaining = amount + 1",
        "UPDATE grants SET overdraft_paid = amount - remaining + 1",
        "UPDATE grants SET overdraft_paid = -1",
        "UPDATE grants SET open = false",
        "UPDATE grants SET amount = 0, remaining = 0, open = false",
        "UPDATE grants SET priority = 101",
        "UPDATE grants SET category = 3",
        "UPDATE grants SET expires_at = effective_at",
        checked_in_a_file("UPDATE grants SET number = 77"),
        "UPDATE wallet_states SET overdraft_used = -1",
        "UPDATE wallet_states SET overdraft_limit = -1",
        "UPDATE wallet_states SET status = 4",
        "UPDATE wallet_states SET sequence = sequence + 1",
        "UPDATE wallets SET currency = 'NONE'",
        "UPDATE wallets SET customer_id = 'cus_none'",
        "DELETE FROM wallets",
        "UPDATE wallet_states SET wallet_number = 77",
        ANOTHER_WALLET,
        "UPDATE currencies SET scale = 10",
    ],
)
async def test_the_schema_refuses_what_the_rules_would_never_write(
    store: Store, ledger: Ledger, statement: str
) -> None:
    """Should a lock or a check ever be forgotten, a constraint stops what must not be."""
    await story(ledger)
    before = await contents(store)

    with pytest.raises(IntegrityError):
        await store.write(lambda c: c.execute(text(statement)))

    assert before == await contents(store)


async def test_the_copied_rows_are_refused_for_nothing_else(store: Store, ledger: Ledger) -> None:
    """The statements of the test above are in order but for the one thing each has wrong."""
    await story(ledger)

    def write_and_undo(connection: Connection) -> None:
        connection.execute(text(another_row() + " WHERE sequence = 4"))
        connection.execute(text(another_posting(number=77, idempotency_key="'another'")))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(write_and_undo)


# --- one writer -----------------------------------------------------------------------------------


@pytest.mark.only("sqlite")
async def test_a_second_writer_is_refused(store: Store, database_url: str, clock: Clock) -> None:
    """Who opens a file that is being written is told so at once, in whatever process.

    A database of PostgreSQL has any number of writers: see test_servers.py.
    """
    assert store is not None
    with pytest.raises(DatabaseLocked):
        Store(database_url, clock=clock)

    program = (
        "import sys; from creditledger.store import Store, DatabaseLocked\n"
        "try: Store(sys.argv[1], clock=int)\n"
        "except DatabaseLocked: print('refused')"
    )
    other = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, database_url],
        capture_output=True,
        check=True,
        text=True,
    )
    assert other.stdout == "refused\n"


async def test_a_closed_store_leaves_the_database_to_the_next(
    database_url: str, clock: Clock
) -> None:
    """Closing lets go of the database and leaves everything in it: a file beside which none is."""
    for number in range(2):
        store = Store(database_url, clock=clock)
        await store.open()
        await store.write(lambda c, n=number: add_wallet(c, f"wal_{n}"))  # type: ignore[misc]  # bound now
        await store.close()

    await nobody_is_left(database_url)
    assert look(database_url, wallet_count) == 2


async def test_who_reads_is_waited_for(database_url: str, clock: Clock) -> None:
    """A store closes when the reads under way are over, and leaves no connection behind."""
    store = Store(database_url, clock=clock)
    await store.open()
    begun, finish = asyncio.Semaphore(0), threading.Event()
    loop = asyncio.get_running_loop()

    def read(connection: Connection) -> int:
        loop.call_soon_threadsafe(begun.release)
        while not finish.is_set():
            connection.execute(text("SELECT 1"))  # gives way to the others
        return wallet_count(connection)

    reading = [asyncio.create_task(store.read(read)) for _ in range(2)]
    for _ in reading:
        await begun.acquire()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    loop.call_later(0.05, finish.set)
    reading[0].cancel()  # its client leaves

    await closing
    await nobody_is_left(database_url)
    left, stayed = await asyncio.gather(*reading, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError)
    assert stayed == 0


async def nobody_is_left(database_url: str) -> None:
    """No connection to the database is open: where one was, a file has its journal beside it."""
    if is_file(database_url):
        assert not file_of(database_url).with_suffix(".db-wal").exists()
    else:
        assert await execute(database_url, OURS) == []


@pytest.mark.only("sqlite")
async def test_what_is_committed_is_on_the_disk(store: Store) -> None:
    """COMMIT waits for the disk, so what was acknowledged survives a power cut.

    That of what can be made again does not, whatever became of it, and says nothing of the next.
    """
    levels = [await store.derive(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar())]
    with pytest.raises(Unavailable):
        await store.derive(lambda c: c.exec_driver_sql("SELECT 1 FROM nowhere"))
    assert levels == [1]  # NORMAL
    durability = await store.write(
        lambda c: (
            c.exec_driver_sql("PRAGMA journal_mode").scalar(),
            c.exec_driver_sql("PRAGMA synchronous").scalar(),
            c.exec_driver_sql("PRAGMA foreign_keys").scalar(),
        )
    )

    assert durability == ("wal", 2, 1)


# --- reads ----------------------------------------------------------------------------------------


async def test_a_read_never_waits_for_a_write(store: Store) -> None:
    """While a write transaction is open, reads answer, and see what was before it."""
    begun, finish = threading.Event(), threading.Event()

    def write(connection: Connection) -> None:
        add_wallet(connection, "wal_acme")
        begun.set()
        while not finish.is_set():
            connection.execute(text("SELECT 1"))  # gives way to the readers

    writing = asyncio.create_task(store.write(write))
    await asyncio.to_thread(begun.wait, 30)

    assert await asyncio.gather(*[store.read(wallet_count) for _ in range(20)]) == [0] * 20
    assert not writing.done()
    finish.set()
    await writing
    assert await store.read(wallet_count) == 1


async def test_a_read_is_one_snapshot(store: Store) -> None:
    """All statements of a read see the same moment, whatever is committed in between."""
    loop, begun, written = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def read(connection: Connection) -> tuple[int, int]:
        first = wallet_count(connection)
        loop.call_soon_threadsafe(begun.set)
        while not written.is_set():
            connection.execute(text("SELECT 1"))  # gives way to the writer
        return first, wallet_count(connection)

    reading = asyncio.create_task(store.read(read))
    await begun.wait()
    await store.write(lambda c: add_wallet(c, "wal_acme"))
    written.set()

    assert await reading == (0, 0)
    assert await store.read(wallet_count) == 1


async def test_a_read_cannot_write(store: Store) -> None:
    """What reads has no right to change anything."""
    with pytest.raises((OperationalError, Unavailable)):
        await store.read(lambda c: add_wallet(c, "wal_acme"))

    assert await store.read(wallet_count) == 0


ENDLESS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    " WHERE CAST(i AS TEXT) <> CAST(:said AS TEXT)"
)


async def test_a_read_that_takes_too_long_is_cut_off(database_url: str, clock: Clock) -> None:
    """A query past its time is QUERY_TOO_BROAD, and its connection serves the next one.

    The log has its statement and its plan, and nothing of what was asked for.
    """
    store = Store(database_url, clock=clock, readers=1)
    await store.open()
    for _ in range(2):
        with pytest.raises(QueryTooBroad), capture_logs() as logged:
            await store.read(lambda c: c.execute(ENDLESS, {"said": "secret"}).all(), seconds=0.05)
        assert await store.read(wallet_count) == 0
        (line,) = [one for one in logged if one["event"] == "read cut off"]
        assert line["statement"].startswith("WITH RECURSIVE n(i)")
        assert any("SCAN" in step.upper() for step in line["plan"])
        assert "secret" not in repr(logged)
    await store.close()


async def test_a_read_of_many_statements_is_cut_off(database_url: str, clock: Clock) -> None:
    """It is over when its time is, also where each of its statements is quick."""
    store = Store(database_url, clock=clock, readers=1)
    await store.open()

    def many(connection: Connection) -> None:
        time.sleep(0.2)  # its time is over while no statement runs
        give_up = time.monotonic() + READ_SECONDS_MAX
        while time.monotonic() < give_up:
            connection.execute(text("SELECT 1")).all()
        went_on.append(True)

    went_on: list[bool] = []
    with pytest.raises(QueryTooBroad):
        await store.read(many, seconds=0.05)
    assert not went_on
    assert await store.read(wallet_count) == 0
    await store.close()


async def test_a_read_that_nobody_waits_for_ends(database_url: str, clock: Clock) -> None:
    """Its connection serves the next read, which would be OVERLOADED while it goes on."""
    store = Store(database_url, clock=clock, readers=1)
    await store.open()
    loop, begun = asyncio.get_running_loop(), asyncio.Event()

    def endless(connection: Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        connection.execute(ENDLESS, {"said": ""}).all()

    reading = asyncio.create_task(store.read(endless, seconds=PATIENCE_SECONDS))
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert await store.read(wallet_count) == 0
    await store.close()
