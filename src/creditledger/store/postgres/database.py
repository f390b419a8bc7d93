"""PostgreSQL: how its connections are set up, and everything on them but posting.

Any number of servers write to one database. Postings have connections of their own (see
writer.py); registry writes, reads and reads of a replica have a pool each.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import asyncpg
import structlog
from sqlalchemy import BigInteger, Connection, bindparam, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from creditledger.domain.errors import (
    Overloaded,
    QueryTooBroad,
    Refusal,
    ResultTooLarge,
    Unavailable,
    echo,
)
from creditledger.store import cut_off
from creditledger.store.cut_off import Running
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.postgres.pool import Pool
from creditledger.store.postgres.readers import SessionReader
from creditledger.store.postgres.writer import (
    LOCK_SECONDS_MAX,
    LOST,
    WALLET_LOCK_MS_MAX,
    PostgresWriter,
    is_not_now,
)
from creditledger.store.read.replica import LOOK_SECONDS_MAX, Replica, ReplicaBehind, marked
from creditledger.store.readers import ALONE_SECONDS_MAX, Readers, Use, too_broad
from creditledger.store.write.batch import (
    SUM_TOO_LARGE,
    UNREADABLE,
    CannotOpen,
    Changes,
    CommitFailed,
    Loaded,
    StoreUnavailable,
    Wanted,
)

log = structlog.get_logger()

T = TypeVar("T")

DRIVER = "postgresql+asyncpg"
#: What may follow the database's name in its URL. All are texts that the driver takes as they are;
#: what else it knows the ledger sets by itself.
OPTIONS = frozenset(
    {
        *("host", "port", "user", "password", "passfile", "service", "servicefile"),
        *("ssl", "krbsrvname", "gsslib"),
    }
)
TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
#: The oldest that has what the schema uses, and is still maintained.
VERSION_MIN = 14
#: A statement of the write path that takes longer is ended by the database.
WRITE_STATEMENT_SECONDS_MAX = 10
#: Connections that look together; each may have the server's own parallel workers besides.
TOGETHER_MAX = 2
#: How long a transaction may stand still; a server that hangs gives its locks back after it.
IDLE_SECONDS_MAX = 15
CONNECT_SECONDS_MAX = 5
#: How long the database may think about the plan of a read that was cut off.
PLAN_SECONDS_MAX = 1.0
#: What the answer to a statement may take beyond the statement, before the network counts as lost.
ANSWER_SECONDS_MAX = 2
#: How long a read waits for a connection of its pool, and how many have one that nothing else
#: uses: who calls must be known whatever else is read.
POOL_SECONDS_MAX = 5
URGENT_READERS = 2
#: Registry writes at the same time, and how often one that met another is tried.
REGISTRARS, REGISTER_ATTEMPTS = 2, 3
#: One migration at a time, over all servers: the key of the advisory lock.
_MIGRATING = 0x63726564
#: One server that reads the whole ledger, by the same means.
_ALONE = 0x63726565


def check(url: str) -> None:
    """Raises ValueError saying what is wrong with a `postgresql+asyncpg://…` URL."""
    parsed = make_url(url)
    if not parsed.database:
        raise ValueError("it must name a database")
    if "@" in (parsed.host or ""):
        raise ValueError(UNREADABLE)
    unknown = sorted(set(parsed.query) - OPTIONS)
    if unknown:
        raise ValueError(
            f"its option {echo(unknown[0])} is not known; there are {', '.join(sorted(OPTIONS))}"
        )
    for option, value in parsed.query.items():
        if not isinstance(value, str) and option != "host":
            raise ValueError(f"its option {option} is given twice")
    tls = parsed.query.get("ssl")
    if tls is not None and tls not in TLS_MODES:
        raise ValueError(f"its option ssl must be one of {', '.join(TLS_MODES)}")
    try:
        parsed.get_dialect()().create_connect_args(parsed)
    except (ArgumentError, ValueError):
        raise ValueError(
            "its options host and port must be host=a:1&host=b:2 or host=a,b&port=1,2"
        ) from None


def path(_url: str) -> None:
    """There is no file."""


def name(url: str) -> str:
    """The database as a text without its password, wherever in the URL it stands."""
    parsed = make_url(url).difference_update_query(("password",))
    return parsed.render_as_string(hide_password=True)


def _settings(
    role: str, connect_seconds_max: float = CONNECT_SECONDS_MAX, /, **more: str
) -> dict[str, Any]:
    """What a connection tells the server of itself, and the server does for it."""
    return {
        "timeout": connect_seconds_max,
        "server_settings": {
            "application_name": f"creditledger {role}",
            "TimeZone": "UTC",
            "default_transaction_isolation": "read committed",
            # COMMIT waits for the disk, and for the standby where one is configured.
            "synchronous_commit": "on",
            "lock_timeout": f"{LOCK_SECONDS_MAX}s",
            "idle_in_transaction_session_timeout": f"{IDLE_SECONDS_MAX}s",
            "tcp_keepalives_idle": "30",
            "jit": "off",
            **more,
        },
    }


#: Of several hosts in the URL the one that can be written to.
_PRIMARY = {"target_session_attrs": "primary"}
#: Statements of the write path look rows up by their keys, whatever the planner thinks of the
#: tables' sizes; each is planned once.
_WRITING = {
    "statement_timeout": f"{WRITE_STATEMENT_SECONDS_MAX}s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "lock_timeout": f"{WALLET_LOCK_MS_MAX}ms",
}


#: For one transaction: it looks rows up like the write path, and its COMMIT waits for no disk.
_DERIVING = text(
    "SELECT set_config(name, 'off', true) FROM unnest(ARRAY['synchronous_commit',"
    " 'enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name"
)


#: A session that has the lock may have it any number of times, so it is asked for once.
_IS_ALONE = text(
    "SELECT CASE WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 0"
    " AND objid = :key AND objsubid = 1 AND pid = pg_backend_pid() AND granted)"
    " THEN true ELSE pg_try_advisory_lock(:key) END"
).bindparams(bindparam("key", _ALONE, BigInteger))


def _reading(
    url: str,
    seconds: float,
    connect_seconds_max: float = CONNECT_SECONDS_MAX,
    *,
    primary: bool = False,
) -> AsyncEngine:
    reading = _settings(
        "reading",
        connect_seconds_max,
        # The caller's own bound comes first; this one holds where the caller is gone.
        statement_timeout=f"{int(seconds * 1_000) + 1_000}ms",
        default_transaction_read_only="on",
        # The default is for disks that turn. With it a small table in which each row of another is
        # looked up is read from end to end every time.
        random_page_cost="1.1",
    )
    if primary:
        reading |= _PRIMARY
    engine = create_async_engine(
        url, poolclass=NullPool, isolation_level="REPEATABLE READ", connect_args=reading
    )
    cut_off.remember(engine.sync_engine)
    return engine.execution_options(postgresql_readonly=True)


def _readers(engine: AsyncEngine, count: int) -> Readers:
    return Readers(partial(SessionReader.opened, engine), count)


def _replica(url: str, size: int, seconds: float) -> Replica:
    alone = create_async_engine(
        url,
        poolclass=NullPool,
        connect_args=_settings("look", LOOK_SECONDS_MAX),
    )
    engine = _reading(url, seconds, LOOK_SECONDS_MAX)
    return Replica(_readers(marked(engine), size), alone, name(url))


async def look(url: str, query: Callable[[Connection], T]) -> T:
    """`query` on one snapshot, however long it takes. Raises CannotOpen."""
    async with _opened(_looking(url), url) as connection:
        return await connection.run_sync(query)


async def look_together(
    url: str, each: Callable[[Connection], None], last: Callable[[Connection], T]
) -> T:
    """`each` upon several connections, `last` on the first of them. Raises CannotOpen."""
    # Who has done its part waits for the others.
    engine = _looking(url, idle_in_transaction_session_timeout="0")
    async with _opened(engine, url) as first:
        said = await first.exec_driver_sql("SELECT pg_export_snapshot()")
        snapshot = said.scalar_one()
        async with AsyncExitStack() as opened:
            connections = [first]
            with suppress(DBAPIError, asyncpg.PostgresError, *LOST):
                # There may be no connection left, or it leads to another server of several.
                for _ in range(TOGETHER_MAX - 1):
                    another = await opened.enter_async_context(engine.connect())
                    await another.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
                    connections.append(another)
            try:
                async with asyncio.TaskGroup() as group:
                    for one in connections:
                        group.create_task(one.run_sync(each))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return await first.run_sync(last)


def _looking(url: str, **more: str) -> AsyncEngine:
    engine = create_async_engine(url, poolclass=NullPool, connect_args=_settings("look", **more))
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


async def migrate(url: str, change: Callable[[Connection], T]) -> T:
    """`change` as one transaction; of several at the same time one after the other.

    Raises CannotOpen.
    """
    waiting = _settings("migrate", lock_timeout="0", idle_in_transaction_session_timeout="0")
    engine = create_async_engine(url, poolclass=NullPool, connect_args={**waiting, **_PRIMARY})
    async with _opened(engine, url) as connection, connection.begin():
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))
        return await connection.run_sync(change)


@asynccontextmanager
async def _opened(engine: AsyncEngine, url: str) -> AsyncIterator[AsyncConnection]:
    try:
        async with engine.connect() as connection:
            yield connection
    except (DBAPIError, asyncpg.PostgresError, *LOST) as error:
        raise CannotOpen(f"{name(url)} cannot be used: {_reason(error)}.") from None
    finally:
        await engine.dispose()


def _reason(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    said = str(cause.__cause__ or cause).splitlines()
    return (said[0] if said else type(cause).__name__).rstrip(".")


class Postgres:
    """One database, written to by this process among others."""

    def __init__(
        self,
        url: str,
        *,
        replica_url: str | None,
        clock: LedgerClock,
        readers: int,
        read_seconds_max: float,
    ) -> None:
        self._url = url
        writing = {**_settings("registry"), **_PRIMARY}
        self._registry = Pool(
            create_async_engine(
                url,
                pool_size=REGISTRARS,
                max_overflow=0,
                pool_timeout=POOL_SECONDS_MAX,
                isolation_level="READ COMMITTED",
                connect_args=writing,
            ),
            REGISTRARS,
        )
        reading = _reading(url, read_seconds_max)
        self._readers = _readers(reading, readers)
        self._urgent = _readers(reading, URGENT_READERS)
        # Its session has the lock of `read_alone`, and nothing else uses it.
        self._alone = _readers(_reading(url, ALONE_SECONDS_MAX, primary=True), 1)
        self._replica = _replica(replica_url, readers, read_seconds_max) if replica_url else None
        self._writer = PostgresWriter(self._connect, clock)

    async def open(self) -> None:
        """Connect. Raises CannotOpen, also for a server that could lose what it acknowledged."""
        try:
            await self._writer.connection()
        except (DBAPIError, asyncpg.PostgresError, StoreUnavailable, *LOST) as error:
            raise CannotOpen(f"{name(self._url)} cannot be used: {_reason(error)}.") from None
        if self._replica is not None:
            self._replica.doubt()

    async def close(self) -> None:
        """Finish what is under way and disconnect."""
        await self._writer.close()
        for each in (self._registry, self._readers, self._urgent, self._alone):
            await each.close()
        if self._replica is not None:
            await self._replica.close()

    async def reconnect(self) -> None:
        """Forget the writing connection and open another one."""
        await self._writer.close()
        await self._writer.connection()

    async def commit(
        self, wanted: Wanted, decide: Callable[[Loaded], Changes], *, wait: bool
    ) -> None:
        """See Writer.commit."""
        # A transaction once begun is finished whatever happens to the one who waits for it.
        await asyncio.shield(self._writer.commit(wanted, decide, wait=wait))

    async def has_committed(self, transaction: str) -> bool | None:
        """See Writer.has_committed."""
        return await self._writer.has_committed(transaction)

    async def write(self, change: Callable[[Connection], T]) -> T:
        """`change` as one transaction; done again if another writer got in its way.

        Raises StoreUnavailable with nothing written, CommitFailed with the outcome unknown.
        """
        return await asyncio.shield(asyncio.ensure_future(self._write(change)))

    async def derive(self, change: Callable[[Connection], T]) -> T:
        """See Store.derive."""

        def derived(connection: Connection) -> T:
            connection.execute(_DERIVING)
            return change(connection)

        return await self.write(derived)

    async def _write(self, change: Callable[[Connection], T]) -> T:
        for last in (*[False] * (REGISTER_ATTEMPTS - 1), True):
            try:
                async with self._registry.connection() as connection:
                    done = await _answered(connection.run_sync(change))
                    try:
                        await _answered(connection.commit())
                    except Exception as error:
                        raise CommitFailed(error) from error
                    return done
            except (DBAPIError, asyncpg.PostgresError, PoolTimeout, *LOST) as error:
                # Whom a time-out befell has waited long enough.
                again = not (last or isinstance(error, TimeoutError))
                if again and (_met_another(error) or _is_lost(error)):
                    continue
                if _is_lost(error):
                    raise StoreUnavailable(error) from error
                raise
        raise AssertionError  # the last attempt returns or raises

    async def read(
        self, query: Callable[[Connection], T], seconds: float, *, stale: bool, urgent: bool
    ) -> T:
        """`query` on one snapshot, of the replica if it may be stale and there is one.

        Raises QueryTooBroad, Overloaded, Unavailable.
        """
        if stale and self._replica is not None and self._replica.answers:
            try:
                return await self._read(self._replica.readers, query, seconds)
            except Unavailable as error:
                self._replica.lost(error.__cause__ or error)
            except QueryTooBroad:
                self._replica.doubt()
                raise
            except Refusal:
                raise
            except ReplicaBehind:
                pass
            except (DBAPIError, asyncpg.PostgresError) as error:
                # It had to catch up just then, or its schema has.
                log.warning("replica failed; the primary is asked", reason=_reason(error))
        return await self._read(self._urgent if urgent else self._readers, query, seconds)

    async def read_alone(self, query: Callable[[Connection], T]) -> T | None:
        """See Store.read_alone. A lock of the session says which server it is."""

        def alone(connection: Connection) -> T | None:
            is_alone = connection.execute(_IS_ALONE).scalar_one()
            return query(connection) if is_alone else None

        return await self._read(self._alone, alone, ALONE_SECONDS_MAX)

    def uses(self) -> dict[str, Use]:
        """See Store.uses."""
        found = {
            "registry": self._registry.use,
            "reading": self._readers.use,
            "urgent": self._urgent.use,
        }
        return found if self._replica is None else {**found, "replica": self._replica.readers.use}

    async def _read(self, readers: Readers, query: Callable[[Connection], T], seconds: float) -> T:
        ran: list[Running | None] = []

        def noted(connection: Connection) -> T:
            info = connection.info  # which a connection that is lost meanwhile does not tell
            try:
                return query(connection)
            finally:
                ran.append(cut_off.running(info))

        for last in (False, True):
            try:
                return await readers.read(noted, seconds)
            except QueryTooBroad:
                await self._tell(seconds, ran)
                raise
            except (DBAPIError, asyncpg.PostgresError, *LOST) as error:
                if _state(error) == "57014":
                    await self._tell(seconds, ran)
                    raise too_broad(seconds) from None
                if _state(error) == "22003":
                    raise ResultTooLarge(SUM_TOO_LARGE) from error
                if not _is_lost(error):
                    raise
                # Connections from before a restart of the database: the next one is a new one.
                if last:
                    raise Unavailable("the database does not answer") from error
        raise AssertionError  # the last attempt returns or raises

    async def _tell(self, seconds: float, ran: list[Running | None]) -> None:
        """Write to the log what was cut off, and its plan if the database says it soon."""
        statement, lines = ran[-1] if ran else None, list[str]()
        if statement is not None:
            asked: Running = statement
            with suppress(QueryTooBroad, Overloaded, DBAPIError, asyncpg.PostgresError, *LOST):
                lines = await self._urgent.read(lambda c: cut_off.plan(c, asked), PLAN_SECONDS_MAX)
        cut_off.tell(seconds, statement, lines)

    async def _connect(self) -> asyncpg.Connection:
        """A connection for postings. Raises StoreUnavailable where none could be relied on."""
        url = make_url(self._url)
        _, place = url.get_dialect()().create_connect_args(url)
        driver = await asyncpg.connect(
            **place,
            **_settings("posting", **_WRITING),
            **_PRIMARY,
            command_timeout=WRITE_STATEMENT_SECONDS_MAX + ANSWER_SECONDS_MAX,
        )
        version = driver.get_server_version().major
        fsync = await driver.fetchval("SHOW fsync")
        wrong = None
        if version < VERSION_MIN:
            wrong = f"it is PostgreSQL {version}, not {VERSION_MIN} or newer"
        elif fsync != "on":
            wrong = "it runs with fsync = off and would lose postings when it crashes"
        if wrong is not None:
            await driver.close()
            raise StoreUnavailable(wrong)
        return driver


async def _answered(writing: Awaitable[T]) -> T:
    async with asyncio.timeout(WRITE_STATEMENT_SECONDS_MAX + ANSWER_SECONDS_MAX):
        return await writing


def _state(error: BaseException) -> str:
    """PostgreSQL's code of the error, "" where it has none."""
    cause = getattr(error, "orig", None) or error
    return getattr(cause, "sqlstate", None) or ""


def _met_another(error: BaseException) -> bool:
    """Whether a writer at the same time is why it failed: a unique key, a deadlock."""
    return _state(error) in ("23505", "40001", "40P01")


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or (cause is not None and is_not_now(cause))
    return isinstance(error, PoolTimeout) or is_not_now(error)
