"""Where the databases of tests are made: files beside each other, and PostgreSQL servers.

A server is the real one and as durable as any, but its folder is in memory where there is room:
what is killed here is processes, never the machine. Imported by `conftest.py` and by the tests
that need a server of their own.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import asynccontextmanager, closing, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from creditledger.ops.embedded_postgres import PrivatePostgres
from tests.support.setup import copied, file_of, finished, is_file, migrate, migrated, sqlite_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

#: Files in memory. A suite that runs in parallel keeps well below this much of it.
MEMORY, MEMORY_BYTES_MIN = Path("/dev/shm"), 2 * 1_024**3


def memory() -> str | None:
    """Where folders of servers and databases are made; None: where all temporary ones are."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    return str(MEMORY) if roomy else None


@contextmanager
def own_postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL, gone with its data when the block ends."""
    # The path of its socket has to be short.
    with (
        TemporaryDirectory(prefix="pg-", dir=memory()) as folder,
        PrivatePostgres(Path(folder, "data")) as server,
    ):
        yield server


#: That of `with_password`.
PASSWORD = "correct-horse-battery"


def with_password(url: str) -> str:
    """The same database by a URL that has a password, which the server does not ask for."""
    return make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


async def connect(url: str) -> Any:
    """The driver's own connection to a database of PostgreSQL; the caller closes it."""
    place = make_url(url)
    _, given = place.get_dialect()().create_connect_args(place)
    return await asyncpg.connect(**given)


async def execute(url: str, *statements: str) -> list[Any]:
    """The answers of the last of the statements, each a transaction of its own."""
    connection = await connect(url)
    try:
        found: list[Any] = []
        for statement in statements:
            found = await connection.fetch(statement)
        return found
    finally:
        await connection.close()


@asynccontextmanager
async def kept_locked(url: str) -> AsyncIterator[None]:
    """Somebody else's program holds what everybody who posts needs, until the block ends."""
    if is_file(url):
        with closing(sqlite3.connect(file_of(url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
    else:
        connection = await connect(url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE wallet_states IN EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()


async def someone_waits(url: str) -> None:
    """Until a connection of ours waits for a lock of PostgreSQL's."""
    connection = await connect(url)
    try:
        while not await connection.fetchval(WAITING):
            pass  # asking takes long enough
    finally:
        await connection.close()


WAITING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'
  AND application_name LIKE 'creditledger %'"""


async def contents(url: str) -> str:
    """All that the database holds: a file's bytes, its journal's too, or a server's every row."""
    if is_file(url):
        file = file_of(url)
        beside = (one for one in file.parent.glob(f"{file.name}*") if one.is_file())
        return b"".join(one.read_bytes() for one in beside).decode("latin-1")
    tables = await execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    # A row as text; of bytes it has the hexadecimal digits.
    rows = [await execute(url, f"SELECT t::text FROM {table} AS t") for (table,) in tables]
    return repr(rows)


#: The connections of creditledger to a database of PostgreSQL, by what they are for.
OURS = """
SELECT application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'creditledger %'
ORDER BY application_name"""


class Files:
    """Databases of SQLite: each a copy of one that is migrated."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._template = migrated(folder / "template.db")

    def new(self) -> str:
        """The URL of another one."""
        return copied(self._template, self._folder / f"{next(self._numbers)}.db")

    def empty(self) -> str:
        """The URL of one that is not there yet."""
        return sqlite_url(self._folder / f"empty_{next(self._numbers)}.db")

    def drop(self, url: str) -> None:
        """Make room."""
        file = file_of(url)
        for one in (file, *file.parent.glob(f"{file.name}-*")):
            one.unlink(missing_ok=True)


class Databases:
    """Databases of a PostgreSQL: each a copy of one that is migrated."""

    def __init__(self, server: PrivatePostgres) -> None:
        self._server = server
        server.create("template")
        migrate(server.url("template"))
        # What a copy of files costs depends on what the files are in.
        self._strategy = "file_copy" if memory() else "wal_log"

    def new(self) -> str:
        """The URL of another one."""
        return self._copy("template")

    def empty(self) -> str:
        """The URL of one that has nothing in it."""
        return self._copy("template0")

    def _copy(self, template: str) -> str:
        name = f"test_{uuid4().hex}"
        self._admin(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {self._strategy}")
        return self._server.url(name)

    def drop(self, url: str) -> None:
        """Make room, and end the connections that are left."""
        self._admin(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def _admin(self, statement: str) -> None:
        finished(execute(self._server.url("postgres"), statement))
