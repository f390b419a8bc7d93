"""What becomes of a batch when the database fails under it: in COMMIT, on the disk, or away.

Where a failure is needed, the database itself is made to fail: nothing of ours is replaced.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import asynccontextmanager, contextmanager
from io import StringIO
from typing import TYPE_CHECKING

import asyncpg
import pytest
import structlog
from sqlalchemy import text
from structlog.testing import capture_logs

from creditledger.domain.clock import SECOND
from creditledger.domain.errors import OutcomeUnknown, Unavailable
from creditledger.engine import ledger as committer
from creditledger.engine.ledger import Ledger
from creditledger.store import CommitFailed, Store
from creditledger.store.postgres import database as postgres
from creditledger.store.sqlite import writer as sqlite_writer
from tests.support.databases import kept_locked
from tests.support.setup import (
    BACKDATING_MS_MAX,
    START,
    Clock,
    add_wallet,
    command,
    file_of,
    give,
    is_file,
    opened,
    wallet_count,
)
from tests.support.store_batches import by_hand, contents, wanting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import Connection


#: A foreign key that SQLite looks at in COMMIT only.
IN_A_FILE = (
    "CREATE TABLE broken (id TEXT REFERENCES customers DEFERRABLE INITIALLY DEFERRED)",
    """CREATE TRIGGER fail AFTER INSERT ON credit_transactions
    WHEN EXISTS (SELECT 1 FROM failing WHERE NEW.created_at BETWEEN since AND until)
    BEGIN INSERT INTO broken VALUES ('cus_none'); END""",
)
#: A trigger that PostgreSQL runs in COMMIT only.
ON_A_SERVER = (
    """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT 1 FROM failing WHERE NEW.created_at BETWEEN since AND until) THEN
        RAISE EXCEPTION 'COMMIT fails' USING ERRCODE = 'foreign_key_violation';
    END IF; RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON credit_transactions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()""",
)


@pytest.fixture
def nothing_is_printed() -> Iterator[None]:
    """A traceback on a terminal can take the seconds that a recovery may."""
    with capture_logs():
        yield


async def make_commit_fail(store: Store, since: int, until: int) -> None:
    """From now on COMMIT fails if a row was written with a created_at in [since, until]."""

    def change(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE failing (since BIGINT, until BIGINT)")
        for statement in IN_A_FILE if connection.dialect.name == "sqlite" else ON_A_SERVER:
            connection.exec_driver_sql(statement)
        values = {"since": since, "until": until}
        connection.execute(text("INSERT INTO failing VALUES (:since, :until)"), values)

    await store.write(change)


class Ticking(Clock):
    """A clock that moves on by a second each time it is asked: once per attempt at a batch."""

    def __call__(self) -> int:
        self.advance(SECOND)
        return self.now


async def test_a_commit_that_fails_says_so(store: Store) -> None:
    """A failing COMMIT is told apart from every failure before it; nothing of it is there."""
    await store.write(lambda c: add_wallet(c, "wal_acme"))
    await make_commit_fail(store, START, START)
    before = await contents(store)

    with pytest.raises(CommitFailed):
        await store.commit(wanting("wal_acme"), lambda loaded: by_hand(loaded, 1))

    assert before == await contents(store)
    await store.reconnect()
    assert before == await contents(store)


@pytest.mark.usefixtures("nothing_is_printed")
async def test_a_batch_whose_commit_fails_is_decided_anew(database_url: str) -> None:
    """After a failed COMMIT every caller of the batch gets the answer of the attempt that held."""
    clock = Ticking()
    async with opened(database_url, clock) as (store, ledger):
        await make_commit_fail(store, clock.now, clock.now + 2 * SECOND)

        given = [ledger.post(command(give("1"), key=f"k{n}")) for n in range(5)]
        answers = await asyncio.gather(*given)

        assert [answer.wallet.sequence for answer in answers] == [1, 2, 3, 4, 5]
        assert {START + 3 * SECOND} == {row.created_at for a in answers for row in a.posting.rows}
        assert not any(answer.replayed for answer in answers)
        assert len((await contents(store))["credit_transactions"]) == 5


@pytest.mark.usefixtures("nothing_is_printed")
async def test_what_is_there_after_a_failed_commit_is_the_answer(database_url: str) -> None:
    """A key that is found in the ledger after a failed COMMIT is answered, not written again."""
    clock = Ticking()
    async with opened(database_url, clock) as (store, ledger):
        await make_commit_fail(store, clock.now, clock.now + 2 * SECOND)
        async with another(database_url, clock, store) as other:
            first = ledger.post(command(give("1")))
            while clock.now < START + 2 * SECOND and not first.done():
                await store.read(wallet_count)  # gives way to the attempts that fail
            second = await other.post(command(give("1")))

            # One of them has written it, the other found it, in either order.
            assert (await first).posting.number == second.posting.number
            assert {True, False} == {(await first).replayed, second.replayed}
            assert len((await contents(store))["credit_transactions"]) == 1


@asynccontextmanager
async def another(url: str, clock: Clock, store: Store) -> AsyncIterator[Ledger]:
    """A second committer: upon the same store where one process writes, else one of its own."""
    if not is_file(url):
        async with opened(url, clock) as (_, ledger):
            yield ledger
        return
    ledger = Ledger(
        store,
        queue_max=1,
        backdating_ms_max=BACKDATING_MS_MAX,
        on_disk_failure=lambda: pytest.fail("the disk failed"),
    )
    await ledger.start()
    yield ledger
    await ledger.close()


async def test_an_outcome_that_stays_unknown_is_said_to_be(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If COMMIT goes on failing the callers are told; the same key then finds out what is so."""
    monkeypatch.setattr(committer, "RECOVERY_SECONDS_MAX", 0.1)
    async with opened(database_url, Clock()) as (store, ledger):
        await make_commit_fail(store, START, START)

        posts = [ledger.post(command(give("1"), key=key)) for key in "ab"]
        answers = await asyncio.gather(*posts, return_exceptions=True)
        await store.write(lambda c: c.execute(text("DELETE FROM failing")))

        assert [OutcomeUnknown] * 2 == [type(answer) for answer in answers]
        assert not (await ledger.post(command(give("1"), key="b"))).replayed
        assert len((await contents(store))["credit_transactions"]) == 1


async def test_a_database_that_is_away_is_unavailable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who wait are told together, after one wait; nothing is written, the keys stay free."""
    monkeypatch.setattr(sqlite_writer, "BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr(postgres, "LOCK_SECONDS_MAX", 0.1)
    async with opened(database_url, Clock()) as (store, ledger):
        async with kept_locked(database_url):
            with capture_logs() as logged:
                posts = [ledger.post(command(give("1"), key=f"k{n}")) for n in range(16)]
                answers = await asyncio.gather(*posts, return_exceptions=True)
            with pytest.raises(Unavailable):
                await store.write(lambda c: add_wallet(c, "wal_beta"))

        assert [Unavailable] * 16 == [type(answer) for answer in answers]
        assert [entry["event"] for entry in logged] == ["database away"]
        assert not (await ledger.post(command(give("1"), key="k7"))).replayed
        assert len((await contents(store))["credit_transactions"]) == 1


# --- the disk: this process's own, or that of a database server -----------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The disk as if it were broken: what this process writes beyond `size` fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.only("sqlite")
@pytest.mark.usefixtures("capsys")  # what is logged would pass the limit in a file
async def test_a_broken_disk_is_told_and_nothing_is_half_there(database_url: str) -> None:
    """An I/O error leaves the outcome unknown and ends the process; the file is all or nothing.

    The disk of PostgreSQL is its own business: what it says of it comes further down.
    """
    failures: list[str] = []
    journal = file_of(database_url).with_suffix(".db-wal")
    async with opened(database_url, Clock(), on_disk_failure=lambda: failures.append("told")) as (
        store,
        ledger,
    ):
        await ledger.post(command(give("1"), key="before"))
        before = await contents(store)
        with files_no_larger_than(journal.stat().st_size):
            posts = [ledger.post(command(give("1"), key=key)) for key in "ab"]
            answers = await asyncio.gather(*posts, return_exceptions=True)

        assert [OutcomeUnknown] * 2 == [type(answer) for answer in answers]
        assert failures == ["told"]

    async with opened(database_url, Clock()) as (store, ledger):
        assert before == await contents(store)
        assert not (await ledger.post(command(give("1"), key="a"))).replayed


@pytest.mark.only("sqlite")
@pytest.mark.usefixtures("capsys")
async def test_a_disk_that_breaks_during_recovery_ends_it(database_url: str) -> None:
    """An I/O error ends the process also where a failed COMMIT was being looked into."""
    failures: list[str] = []
    journal = file_of(database_url).with_suffix(".db-wal")
    clock = Ticking()
    async with opened(database_url, clock, on_disk_failure=lambda: failures.append("told")) as (
        store,
        ledger,
    ):
        await make_commit_fail(store, clock.now, clock.now + SECOND)
        with files_no_larger_than(journal.stat().st_size):
            answers = await asyncio.gather(ledger.post(command(give("1"))), return_exceptions=True)

        assert [OutcomeUnknown] == [type(answer) for answer in answers]
        assert failures == ["told"]


async def test_nobody_waits_for_a_committer_that_has_stopped(database_url: str) -> None:
    """Where not even the log of a failure can be written, all are told, and no one is let in."""
    failures: list[str] = []
    log = StringIO()
    log.close()
    async with opened(database_url, Ticking()) as (store, _):
        await make_commit_fail(store, START, START + 9 * SECOND)
        ledger = Ledger(
            store,
            queue_max=10,
            backdating_ms_max=BACKDATING_MS_MAX,
            on_disk_failure=lambda: failures.append("told"),
        )
        await ledger.start()
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=log))
        posts = [ledger.post(command(give("1"), key=key)) for key in "ab"]
        answers = await asyncio.gather(*posts, return_exceptions=True)

        assert [OutcomeUnknown] * 2 == [type(answer) for answer in answers]
        assert failures == ["told"]
        with pytest.raises(Unavailable):
            ledger.post(command(give("1"), key="c"))
        with pytest.raises(ValueError, match="closed file"):
            await ledger.close()


@pytest.mark.only("sqlite")
async def test_a_damaged_file_is_a_broken_disk(new_database: Callable[[], str]) -> None:
    """What cannot be read is told like what cannot be written; nobody is told of success."""
    url = new_database()  # not verified afterwards: there is nothing left to verify
    failures: list[str] = []
    async with opened(url, Clock()):
        pass
    async with opened(url, Clock(), on_disk_failure=lambda: failures.append("told")) as (_, ledger):
        with file_of(url).open("r+b") as file:
            file.seek(4_096)  # behind the page that makes it a database
            file.write(b"\xff" * (file_of(url).stat().st_size - 4_096))
        answers = await asyncio.gather(ledger.post(command(give("1"))), return_exceptions=True)

        assert [OutcomeUnknown] == [type(answer) for answer in answers]
        assert failures == ["told"]


async def make_rows_fail(store: Store, code: str) -> None:
    """From now on PostgreSQL answers an INSERT of rows with the error of this code."""

    def change(connection: Connection) -> None:
        connection.exec_driver_sql(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" RAISE EXCEPTION 'broken' USING ERRCODE = '{code}'; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER fail BEFORE INSERT ON credit_transactions EXECUTE FUNCTION fail()"
        )

    await store.write(change)


#: What a server says when it cannot, now: a full disk, no memory, a time-out, a lock, a deadlock,
#: being shut down, a disk that fails, reading only.
NOT_NOW = ["53100", "53200", "57014", "55P03", "40P01", "57P01", "58030", "25006"]


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("code", NOT_NOW)
async def test_what_a_server_cannot_do_now_is_unavailable(database_url: str, code: str) -> None:
    """All of the batch are told, once; nothing is written, the keys stay free, it goes on."""
    async with opened(database_url, Clock()) as (store, ledger):
        await make_rows_fail(store, code)
        before = await contents(store)
        with capture_logs() as logged:
            posts = [ledger.post(command(give("1"), key=f"k{n}")) for n in range(16)]
            answers = await asyncio.gather(*posts, return_exceptions=True)

        assert [Unavailable] * 16 == [type(answer) for answer in answers]
        assert [entry["event"] for entry in logged] == ["database away"]
        assert before == await contents(store)
        await store.write(lambda c: c.exec_driver_sql("DROP TRIGGER fail ON credit_transactions"))
        assert not (await ledger.post(command(give("1"), key="k7"))).replayed


@pytest.mark.only("postgresql")
async def test_a_damaged_server_is_no_success(database_url: str) -> None:
    """What PostgreSQL cannot read is told as an error to all whom it concerns; nothing is there."""
    async with opened(database_url, Clock()) as (store, ledger):
        await make_rows_fail(store, "XX001")
        before = await contents(store)

        posts = [ledger.post(command(give("1"), key=f"k{n}")) for n in range(3)]
        answers = await asyncio.gather(*posts, return_exceptions=True)

        assert [asyncpg.DataCorruptedError] * 3 == [type(answer) for answer in answers]
        assert before == await contents(store)
