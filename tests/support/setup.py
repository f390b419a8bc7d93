"""What several tests need beside fixtures: a clock to set, commands in short, a seeded database.

Imports the project's store and model; `conftest.py` makes fixtures of it.
"""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from sqlalchemy import func, select

from creditledger import store
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.commands import Command, Operation
from creditledger.domain.model import Category, Kind, Status
from creditledger.domain.operations import Adjust, Consume, GiveGrant, Refund
from creditledger.engine.ledger import Ledger
from creditledger.store import Store, database_path, migrations, schema
from creditledger.store.sqlite import writer as sqlite_writer
from creditledger.store.verify.verification import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from sqlalchemy import Connection

    from creditledger.engine.batch import Posted
    from creditledger.store.verify.check import Finding

T = TypeVar("T")

#: 2026-09-21T14:13:20Z, a moment like any other.
START = 1_790_000_000_000
BACKDATING_MS_MAX = 35 * time.DAY


@dataclass(slots=True)
class Clock:
    """A clock that stands still until it is told otherwise: pass it as `clock=`."""

    now: int = START

    def __call__(self) -> int:
        """Milliseconds since 1970."""
        return self.now

    def advance(self, milliseconds: int) -> None:
        """Move on, or back."""
        self.now += milliseconds


def sqlite_url(path: Path) -> str:
    """The URL of a file."""
    return f"sqlite+aiosqlite:///{path}"


def file_of(url: str) -> Path:
    """The file of a SQLite database."""
    path = database_path(url)
    assert path is not None
    return path


def is_file(url: str) -> bool:
    """Whether the database is SQLite's."""
    return database_path(url) is not None


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine run to its end on a loop of its own, whether a loop runs or not."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def migrate(url: str) -> None:
    """Bring the database to the newest schema."""
    finished(store.migrate(url, migrations.migrate))


def migrated(path: Path) -> str:
    """Make a file of the newest schema and answer its URL."""
    url = sqlite_url(path)
    migrate(url)
    return url


def copied(url: str, path: Path) -> str:
    """A copy of the closed database at `url`; cheaper than migrating another one."""
    shutil.copyfile(file_of(url), path)
    return sqlite_url(path)


def look(url: str, query: Callable[[Connection], T]) -> T:
    """What `query` answers, whether a server runs on the database or not."""
    return finished(store.look(url, query))


def change(url: str, work: Callable[[Connection], T]) -> T:
    """`work` as a transaction of somebody else's, whether a server runs or not."""
    if not is_file(url):
        return finished(store.migrate(url, work))
    engine = sqlite_writer.writer_engine(file_of(url))
    try:
        with engine.begin() as connection:
            return work(connection)
    finally:
        engine.dispose()


def findings(url: str) -> list[Finding]:
    """What `verify` has to say about the database, open or closed: nothing, if all is well."""
    return look(url, lambda connection: list(verify(connection)))


@asynccontextmanager
async def opened(
    url: str,
    clock: Callable[[], int],
    *,
    queue_max: int = 10_000,
    on_disk_failure: Callable[[], None] | None = None,
) -> AsyncIterator[tuple[Store, Ledger]]:
    """A store on the database and a committer upon it; wal_acme is made if there is no wallet."""
    opened_store = Store(url, clock=clock)
    await opened_store.open()
    if not await opened_store.read(wallet_count):
        await opened_store.write(lambda connection: add_wallet(connection, "wal_acme"))
    ledger = Ledger(
        opened_store,
        queue_max=queue_max,
        backdating_ms_max=BACKDATING_MS_MAX,
        on_disk_failure=on_disk_failure or (lambda: pytest.fail("the disk failed")),
    )
    await ledger.start()
    try:
        yield opened_store, ledger
    finally:
        await ledger.close()
        await opened_store.close()


def wallet_count(connection: Connection) -> int:
    """How many wallets there are."""
    found = connection.execute(select(func.count()).select_from(schema.wallets)).scalar()
    assert isinstance(found, int)
    return found


def posting_id(posted: Posted) -> str:
    """The id that a client would refund it by."""
    return ids.compose("pst", posted.posting.wallet, posted.posting.number)


def add_customer(connection: Connection, customer_id: str) -> None:
    connection.execute(
        schema.customers.insert().values(
            id=customer_id,
            name="Acme",
            email="billing@example.com",
            metadata="{}",
            created_at=START,
        )
    )


def add_wallet(
    connection: Connection,
    wallet_id: str,
    *,
    customer_id: str | None = None,
    currency: str = "USD",
    livemode: bool = True,
    status: Status = Status.ACTIVE,
    overdraft_limit: int = 0,
) -> None:
    """A wallet, and, if none is named, a customer of its own."""
    if customer_id is None:
        customer_id = f"cus_of_{wallet_id}"
        add_customer(connection, customer_id)
    connection.execute(
        schema.wallets.insert().values(
            id=wallet_id,
            customer_id=customer_id,
            currency=currency,
            livemode=livemode,
            created_at=START,
            closed_at=START if status is Status.CLOSED else None,
        )
    )
    number = select(schema.wallets.c.number).where(schema.wallets.c.id == wallet_id)
    connection.execute(
        schema.wallet_states.insert().values(
            wallet_number=number.scalar_subquery(),
            status=status.value,
            overdraft_limit=overdraft_limit,
            metadata="{}",
            updated_at=START,
        )
    )


def add_meter(connection: Connection, meter_id: str) -> None:
    connection.execute(
        schema.meters.insert().values(
            id=meter_id,
            name="Tokens",
            event_name=f"event of {meter_id}",
            unit="token",
            currency=None,
            metadata="{}",
            created_at=START,
        )
    )


def add_subscription(connection: Connection, subscription_id: str, *, customer_id: str) -> None:
    connection.execute(
        schema.subscriptions.insert().values(
            id=subscription_id,
            customer_id=customer_id,
            name="Pro",
            metadata="{}",
            created_at=START,
        )
    )


def give(
    amount: str,
    *,
    kind: Kind = Kind.TOPUP,
    category: Category = Category.PAID,
    priority: int = 50,
    effective_at: int | None = None,
    expires_at: int | None = None,
) -> GiveGrant:
    return GiveGrant(amount, kind, category, priority, None, effective_at, expires_at, {})


def consume(amount: str) -> Consume:
    return Consume(amount)


def adjust(amount: str, *, credit_grant_id: str | None = None, force: bool = False) -> Adjust:
    return Adjust(amount, {}, credit_grant_id, force)


def refund(posting_id: str, amount: str | None = None) -> Refund:
    return Refund(posting_id, amount)


def command(
    operation: Operation,
    *,
    key: str = "key",
    wallet_id: str = "wal_acme",
    effective_at: int | None = None,
    expected_sequence: int | None = None,
    validate_only: bool = False,
    backdating_free: bool = False,
) -> Command:
    """A posting by the command line, in live mode."""
    return Command(
        wallet_id=wallet_id,
        idempotency_key=key,
        operation=operation,
        livemode=True,
        posted_by=None,
        actor="ops@example.com",
        effective_at=effective_at,
        expected_sequence=expected_sequence,
        validate_only=validate_only,
        backdating_free=backdating_free,
    )
