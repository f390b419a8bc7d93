"""Fixtures: a database of the newest schema, a clock to set; a store, a ledger, a server on them.

Every database made here is verified when its test is over, one that the tests of a file share
(`shared`) when they are: a test that leaves rows behind that disagree with each other fails,
whatever it asserted itself.
"""

from __future__ import annotations

import os
from itertools import groupby
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import structlog
from hypothesis import HealthCheck, settings

from creditledger.engine.ledger import Ledger
from creditledger.store import Store
from tests.support.databases import Databases, Files, memory, own_postgres
from tests.support.rest import Served, serving
from tests.support.server import Api, serve
from tests.support.setup import BACKDATING_MS_MAX, START, Clock, add_wallet, findings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from creditledger.ops.embedded_postgres import PrivatePostgres

#: The disk decides how long an example takes, so none has a deadline.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
#: Twenty times as many examples: HYPOTHESIS_PROFILE=thorough.
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


DATABASES = ("sqlite", "postgresql")
#: Temporary files are in memory where there is room, as the servers' folders are.
if (folder := memory()) is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)


@pytest.fixture(autouse=True)
def log_as_by_default() -> Iterator[None]:
    """Undo what a test, or a command it ran, said about logging."""
    yield
    structlog.reset_defaults()


def pytest_configure(config: pytest.Config) -> None:
    """What the marks mean."""
    config.addinivalue_line("markers", "only(kind): of the databases, only on this one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything that needs a database runs on each kind of them."""
    if "databases" in metafunc.fixturenames:
        metafunc.parametrize("databases", DATABASES, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked is left out on the other kind, a whole test or one case of it."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        only = item.get_closest_marker("only")
        kind = item.callspec.params.get("databases") if hasattr(item, "callspec") else None
        fits = only is None or kind is None or kind in only.args
        (kept if fits else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    # The server of a module stands still while a test with a loop of its own runs, and its proxy
    # takes it for dead: so tests of that server follow one another.
    items[:] = [
        item
        for _, group in groupby(kept, key=_place)
        for item in sorted(group, key=lambda item: "served" not in _fixtures(item))
    ]


def _place(item: pytest.Item) -> tuple[Path, object]:
    return item.path, item.callspec.params.get("databases") if hasattr(item, "callspec") else None


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def private_postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL for the tests of this process."""
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Files | Databases:
    """What makes databases of one kind."""
    if request.param == "postgresql":
        return Databases(request.getfixturevalue("private_postgres"))
    return Files(tmp_path_factory.mktemp("databases"))


@pytest.fixture(scope="session")
def new_database(databases: Files | Databases) -> Callable[[], str]:
    """Makes a database of the newest schema and answers its URL."""
    return databases.new


@pytest.fixture
def empty_url(databases: Files | Databases) -> Iterator[str]:
    """A database without a schema."""
    url = databases.empty()
    yield url
    databases.drop(url)


@pytest.fixture
def database_url(databases: Files | Databases) -> Iterator[str]:
    """A database of the newest schema with nothing in it but currencies; verified afterwards."""
    url = databases.new()
    yield url
    assert findings(url) == []
    databases.drop(url)


@pytest.fixture
def clock() -> Clock:
    """What the store takes for the time: `clock.now = …`, `clock.advance(…)`."""
    return Clock()


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    """A store opened for writing."""
    opened = Store(database_url, clock=clock)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def ledger(store: Store) -> AsyncIterator[Ledger]:
    """A running committer upon the store, and one empty USD wallet: wal_acme."""
    await store.write(lambda connection: add_wallet(connection, "wal_acme"))
    started = Ledger(
        store,
        queue_max=10_000,
        backdating_ms_max=BACKDATING_MS_MAX,
        on_disk_failure=lambda: pytest.fail("the disk failed"),
    )
    await started.start()
    yield started
    await started.close()


@pytest.fixture
async def api(database_url: str, clock: Clock) -> AsyncIterator[Api]:
    """A server for one test, asked over gRPC; its clock stands still."""
    async with serve(database_url, clock) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(new_database: Callable[[], str]) -> AsyncIterator[Served]:
    """A service behind Envoy for all tests of a file; each makes customers of its own."""
    async with serving(new_database()) as one:
        yield one


@pytest.fixture
def served(shared: Served) -> Served:
    """The shared service, its clock at START."""
    shared.clock.now = START
    return shared
