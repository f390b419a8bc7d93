"""Databases to measure on: made, copied, looked at and thrown away.

A home holds databases of one kind: a folder for SQLite's files, a private PostgreSQL for its own.
Both are as durable as in production. Called by run.py and reads.py; workers get URLs.
"""

import asyncio
import contextlib
import os
import platform
import shutil
import sqlite3
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from creditledger.ops.embedded_postgres import PrivatePostgres
from creditledger.store import migrate, migrations

T = TypeVar("T")

#: What is written to see how long the disk takes: two pages of a database.
FSYNC_BYTES = 8_192
FSYNC_TIMES = 200


class Home(ABC):
    """Where databases of one kind live."""

    kind: str

    @abstractmethod
    def __init__(self, folder: Path) -> None:
        """One of its own, in the folder."""

    @abstractmethod
    def url(self, name: str) -> str:
        """The database's URL, as the setting takes it."""

    @abstractmethod
    def make(self, name: str) -> str:
        """An empty database of the newest schema; its URL."""

    @abstractmethod
    def copy(self, name: str, to: str) -> str:
        """A copy of a database that nobody has open; its URL."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a database of that name."""

    @abstractmethod
    def rename(self, name: str, to: str) -> None:
        """Another name for a database that nobody has open."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Throw it away."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Its bytes on disk, indexes included, without its journal."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """What processes of the database, if it has some, have used so far."""

    @abstractmethod
    def describe(self) -> str:
        """Its version and what makes it durable."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing running."""

    def run(self, name: str, work: Callable[[Connection], T]) -> T:
        """`work` as one transaction of plain SQL, while no server runs on the database."""

        async def begun() -> T:
            engine = create_async_engine(self.url(name), poolclass=NullPool)
            try:
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
            finally:
                await engine.dispose()

        return asyncio.run(begun())


class Sqlite(Home):
    """Files of a folder."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.db"

    def url(self, name: str) -> str:
        return f"sqlite+aiosqlite:///{self._path(name)}"

    def make(self, name: str) -> str:
        return _migrated(self.url(name))

    def copy(self, name: str, to: str) -> str:
        shutil.copyfile(self._path(name), self._path(to))
        return self.url(to)

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def rename(self, name: str, to: str) -> None:
        self._path(name).rename(self._path(to))

    def drop(self, name: str) -> None:
        for path in self._folder.glob(f"{name}.db*"):
            path.unlink()

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def cpu_seconds(self) -> float:
        return 0.0

    def describe(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL"

    def close(self) -> None:
        pass


class Postgres(Home):
    """Databases of a private PostgreSQL in the folder, as `up --postgres` starts it."""

    kind = "postgres"

    def __init__(self, folder: Path) -> None:
        self._server = PrivatePostgres(folder / "data")
        self._process = psutil.Process(self._server.pid)

    def url(self, name: str) -> str:
        return self._server.url(name)

    def make(self, name: str) -> str:
        self._server.create(name)
        return _migrated(self.url(name))

    def copy(self, name: str, to: str) -> str:
        self._server.create(to, template=name)
        return self.url(to)

    def has(self, name: str) -> bool:
        found = self._server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'")
        return bool(found)

    def rename(self, name: str, to: str) -> None:
        self._server.sql(f'ALTER DATABASE "{name}" RENAME TO "{to}"')

    def drop(self, name: str) -> None:
        self._server.sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def size(self, name: str) -> int:
        return int(self._server.sql(f"SELECT pg_database_size('{name}')"))

    def cpu_seconds(self) -> float:
        times = self._process.cpu_times()
        # Of processes that have ended, the first one has the sum.
        total = times.user + times.system + times.children_user + times.children_system
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                own = child.cpu_times()
                total += own.user + own.system
        return total

    def describe(self) -> str:
        names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
        version, *rest = (self._server.sql(f"SHOW {name}") for name in names)
        said = ", ".join(f"{name}={value}" for name, value in zip(names[1:], rest, strict=True))
        return f"PostgreSQL {version}, {said}"

    def close(self) -> None:
        self._server.stop()


def _migrated(url: str) -> str:
    asyncio.run(migrate(url, migrations.migrate))
    return url


HOMES: dict[str, type[Home]] = {"sqlite": Sqlite, "postgres": Postgres}


def machine(home: Home, runs: int) -> dict[str, str]:
    """What figures are made on."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores, {memory:.0f} GB, Python {platform.python_version()}",
        "database": home.describe(),
        "runs": f"{runs}, medians",
    }


def fsync_ms(folder: Path) -> float:
    """How long the disk takes to write two pages for good: the median."""
    path = folder / "fsync"
    times = []
    with path.open("wb") as file:
        for _ in range(FSYNC_TIMES):
            began = time.perf_counter()
            os.write(file.fileno(), os.urandom(FSYNC_BYTES))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(times) * 1e3
