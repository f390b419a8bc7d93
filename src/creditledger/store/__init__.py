"""The database, and the only place that speaks SQL.

`Store` has four verbs: `commit` (the write path of postings), `write` (any other change), `derive`
(what rows alone make) and `read` (one snapshot). What they run is in the folders `write/`,
`registry/`, `folds/`, `read/`, `statements/` and `webhooks/`; how they run it, in `sqlite/` and
`postgres/`. The tables are in `schema.py`, their checks in `verify/`.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import ArgumentError

from creditledger.domain import clock as time
from creditledger.domain.errors import OutcomeUnknown, Unavailable
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.outage import Outage
from creditledger.store.postgres import database as postgres_database
from creditledger.store.postgres.database import Postgres
from creditledger.store.readers import Use
from creditledger.store.sqlite import database as sqlite_database
from creditledger.store.sqlite.database import SQLite
from creditledger.store.sqlite.writer import DatabaseLocked
from creditledger.store.write.batch import (
    PAYS_EVENT,
    UNREADABLE,
    CannotOpen,
    Changes,
    CommitFailed,
    CreditedReceipt,
    DiskFailed,
    DroppedLimit,
    GrantPart,
    GrantRepayment,
    GrantRevision,
    Loaded,
    StoreUnavailable,
    WalletsLocked,
    Wanted,
)
from creditledger.telemetry import spans

__all__ = [
    "PAYS_EVENT",
    "READ_SECONDS_MAX",
    "CannotOpen",
    "Changes",
    "CommitFailed",
    "CreditedReceipt",
    "DatabaseLocked",
    "DiskFailed",
    "DroppedLimit",
    "GrantPart",
    "GrantRepayment",
    "GrantRevision",
    "Loaded",
    "Store",
    "StoreUnavailable",
    "Use",
    "WalletsLocked",
    "Wanted",
    "check",
    "database_name",
    "database_path",
    "look",
    "look_together",
    "migrate",
    "own_clock",
]

log = structlog.get_logger()

T = TypeVar("T")

#: A read transaction is cut off here, so that no reader holds back the journal for long.
READ_SECONDS_MAX = 5.0


class _Database(Protocol):
    """What a kind of database does for the store: see Store, whose methods call these."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def reconnect(self) -> None: ...
    async def commit(
        self, wanted: Wanted, decide: Callable[[Loaded], Changes], *, wait: bool
    ) -> None: ...
    async def has_committed(self, transaction: str) -> bool | None: ...
    async def write(self, change: Callable[[Connection], T]) -> T: ...
    async def derive(self, change: Callable[[Connection], T]) -> T: ...
    async def read(
        self, query: Callable[[Connection], T], seconds: float, *, stale: bool, urgent: bool
    ) -> T: ...
    async def read_alone(self, query: Callable[[Connection], T]) -> T | None: ...
    def uses(self) -> dict[str, Use]: ...


class _Backend(Protocol):
    """What the module of a kind of database knows."""

    def check(self, url: str) -> None: ...
    def path(self, url: str) -> Path | None: ...
    def name(self, url: str) -> str: ...
    async def look(self, url: str, query: Callable[[Connection], T]) -> T: ...
    async def look_together(
        self, url: str, each: Callable[[Connection], None], last: Callable[[Connection], T]
    ) -> T: ...
    async def migrate(self, url: str, change: Callable[[Connection], T]) -> T: ...


def _kind(url: str) -> _Backend:
    return postgres_database if _is_postgres(url) else sqlite_database


def _is_postgres(url: str) -> bool:
    try:
        driver = make_url(url).drivername
    except (ArgumentError, ValueError):
        raise ValueError(UNREADABLE) from None
    if driver not in (postgres_database.DRIVER, sqlite_database.DRIVER):
        raise ValueError(
            f"its driver {driver!r} is not supported: use {sqlite_database.DRIVER} or"
            f" {postgres_database.DRIVER}"
        )
    return driver == postgres_database.DRIVER


def check(url: str) -> None:
    """Raises ValueError that says what is wrong with a database URL."""
    _kind(url).check(url)


def database_path(url: str) -> Path | None:
    """The file of the database; None for a server."""
    return _kind(url).path(url)


def database_name(url: str) -> str:
    """The database as its operator knows it, without a password."""
    return _kind(url).name(url)


def holds_secret(url: str) -> bool:
    """Whether a database URL has a password in it."""
    parsed = make_url(url)
    return parsed.password is not None or "password" in parsed.query


def own_clock(url: str) -> Callable[[], int] | None:
    """The clock that postings use: this machine's, or None for the database's."""
    return None if _is_postgres(url) else time.now


async def look(url: str, query: Callable[[Connection], T]) -> T:
    """`query` on one snapshot, server or not, however long it takes. Raises CannotOpen."""
    return await _kind(url).look(url, query)


async def look_together(
    url: str, each: Callable[[Connection], None], last: Callable[[Connection], T]
) -> T:
    """`each` at the same time on as many connections as make it faster, then `last` on one.

    All see the same snapshot, like `look`; `each` may be called in threads. Raises CannotOpen.
    """
    return await _kind(url).look_together(url, each, last)


async def migrate(url: str, change: Callable[[Connection], T]) -> T:
    """`change` of the schema as one transaction, on a database made if it can be.

    Raises CannotOpen, and DatabaseLocked where another process has the database for itself.
    """
    return await _kind(url).migrate(url, change)


class Store:
    """One database, opened for writing: by this process and no other, where it is a file."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], int] | LedgerClock | None = None,
        readers: int = 8,
        replica_url: str | None = None,
        on_disk_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """`clock`: what postings take for now, guarded or as it is; by default a file takes this
        machine's, and a server's database its own. `replica_url`: where reads go that may be a
        moment behind. `on_disk_failure` is told of one in `write`; one in `commit` is raised to
        the ledger.
        """
        self._on_disk_failure = on_disk_failure
        self._outage = Outage(database_name(url))
        #: Whether changes and batches wait for one another, so that a long one delays postings.
        self.takes_turns = not _is_postgres(url)
        self._database: _Database
        if not isinstance(clock, LedgerClock):
            clock = LedgerClock(clock or own_clock(url), time.elapsed)  # not guarded
        if _is_postgres(url):
            self._database = Postgres(
                url,
                replica_url=replica_url,
                clock=clock,
                readers=readers,
                read_seconds_max=READ_SECONDS_MAX,
            )
        else:
            self._database = SQLite(url, clock=clock, readers=readers)

    async def open(self) -> None:
        """Connect. The schema must be there and current. Raises CannotOpen."""
        await self._database.open()

    async def close(self) -> None:
        """Finish the work under way and release the database."""
        await self._database.close()

    async def reconnect(self) -> None:
        """Forget the writing connection and open another one. Raises StoreUnavailable."""
        with self._watched("commit"):
            await self._database.reconnect()

    async def commit(
        self, wanted: Wanted, decide: Callable[[Loaded], Changes], *, wait: bool = True
    ) -> None:
        """Phases 1 to 6 of the write path: one transaction in which `decide` runs.

        `wait`: for a moment, for wallets that another server has locked; then raises WalletsLocked.
        Without it these are left out, as `Loaded.locked` says. Raises what `decide` raises, the
        driver's error for a broken constraint and StoreUnavailable with nothing written,
        CommitFailed and DiskFailed with the outcome unknown.
        """
        with self._watched("commit"):
            await self._database.commit(wanted, decide, wait=wait)

    async def has_committed(self, failed: CommitFailed) -> bool | None:
        """Whether the COMMIT that failed was done nevertheless; None: nobody can say.

        For `commit`, once the wallets of the transaction are locked by another one.
        """
        if failed.transaction is None:
            return False
        try:
            with self._watched("commit"):
                return await self._database.has_committed(failed.transaction)
        except Exception:
            log.warning("a failed commit was not looked up", exc_info=True)
            return None

    async def write(self, change: Callable[[Connection], T]) -> T:
        """`change` as one write transaction; it may be run more than once.

        Raises Unavailable with nothing written, OutcomeUnknown where it may have been.
        """
        return await self._written(self._database.write, change)

    async def derive(self, change: Callable[[Connection], T]) -> T:
        """The same for a change of what rows alone make, and no posting reads.

        What the writer knows of wallets stays true. The commit does not wait for the disk: a crash
        may undo the change, whole, which is then made again. Raises as `write` does.
        """
        return await self._written(self._database.derive, change)

    async def _written(
        self,
        write: Callable[[Callable[[Connection], T]], Awaitable[T]],
        change: Callable[[Connection], T],
    ) -> T:
        try:
            with self._watched("write"):
                return await write(change)
        except DiskFailed as error:
            log.critical("disk failed", exc_info=True)
            self._on_disk_failure()
            raise OutcomeUnknown("the disk failed while this was written") from error
        except CommitFailed as error:
            raise OutcomeUnknown("the database failed while this was written") from error
        except StoreUnavailable as error:
            raise Unavailable("the database does not answer") from error

    async def read(
        self,
        query: Callable[[Connection], T],
        *,
        seconds: float = READ_SECONDS_MAX,
        stale: bool = False,
        urgent: bool = False,
    ) -> T:
        """`query` on one snapshot; never waits for the writer.

        `stale`: a moment behind the last posting will do, so a replica may answer. `urgent`: it is
        quick, and does not wait for other reads. Raises QueryTooBroad when it takes longer than
        `seconds`, Overloaded where all connections are in use for long, Unavailable.
        """
        with self._watched("stale read" if stale else "read"):
            return await self._database.read(query, seconds, stale=stale, urgent=urgent)

    async def read_alone(self, query: Callable[[Connection], T]) -> T | None:
        """`query` on one snapshot, in one of the servers of this database; None in all others.

        The first server that asks is the one, until it ends or loses its connection. Raises as
        `read` does.
        """
        with self._watched("read"):
            return await self._database.read_alone(query)

    def uses(self) -> dict[str, Use]:
        """How much of each kind of connection is in use."""
        return self._database.uses()

    @property
    def is_away(self) -> bool:
        """Whether the last attempt at some kind of work found the database away."""
        return self._outage.lasts

    @contextmanager
    def _watched(self, work: str) -> Iterator[None]:
        """Log the begin and the end of an outage of the database; trace what is under way."""
        span = spans.part("database")
        failure = None
        try:
            yield
        except BaseException as error:
            failure = type(error).__name__
            if isinstance(error, StoreUnavailable | CommitFailed | Unavailable):
                self._outage.failed(work, error)
            raise
        finally:
            if span is not None:
                span.note("creditledger.work", work)
                span.end(failure)
        self._outage.answered(work)
