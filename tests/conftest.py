"""Fixtures: a database of the newest schema, a clock to set, a store and a ledger upon them.

Every database made here is verified when its test is over: a test that leaves rows behind that
disagree with each other fails, whatever it asserted itself.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from creditledger.ledger import Ledger
from creditledger.private_postgres import PrivatePostgres
from creditledger.store import Store
from tests.support import (
    BACKDATING_MS_MAX,
    Clock,
    add_wallet,
    copied,
    findings,
    migrate,
    migrated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

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


@pytest.fixture(autouse=True)
def log_as_by_default() -> Iterator[None]:
    """Undo what a test, or a command it ran, said about logging."""
    yield
    structlog.reset_defaults()


def pytest_configure(config: pytest.Config) -> None:
    """What the marks mean."""
    config.addinivalue_line("markers", "only(kind): of the databases, only on this one")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything that needs a database runs on each kind of them, unless it is marked."""
    if "new_database" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        kinds = DATABASES if only is None else only.args
        metafunc.parametrize("new_database", kinds, indirect=True, scope="session")


@pytest.fixture(scope="session")
def private_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """A PostgreSQL for the tests of this process, durable like any other."""
    # Its socket's path has to be short, so it is not in the folder of the test.
    with TemporaryDirectory(prefix="pg-") as folder, PrivatePostgres(Path(folder, "data")) as one:
        one.create("template")
        migrate(one.url("template"))
        yield one


@pytest.fixture(scope="session")
def new_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], str]:
    """Makes a database of the newest schema and answers its URL."""
    numbers = count(1)
    if request.param == "postgresql":
        server: PrivatePostgres = request.getfixturevalue("private_postgres")

        def new_on_server() -> str:
            name = f"test_{next(numbers)}"
            server.create(name, template="template")
            return server.url(name)

        return new_on_server
    directory = tmp_path_factory.mktemp("databases")
    template = migrated(directory / "template.db")
    return lambda: copied(template, directory / f"{next(numbers)}.db")


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> Iterator[str]:
    """A database of the newest schema with nothing in it but currencies; verified afterwards."""
    url = new_database()
    yield url
    assert findings(url) == []


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
