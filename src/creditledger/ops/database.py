"""What an operator does to a whole database: look at it, migrate it, verify it, back it up.

Each works whether a server runs or not, except that `migrate` wants a file for itself.
"""

import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, make_url

from creditledger import store
from creditledger.ops.config import CannotStart, Config, spelled
from creditledger.store import CannotOpen, migrations
from creditledger.store.read import commit_order
from creditledger.store.receipts import RepeatedReceipt, repeated_receipts
from creditledger.store.sqlite import writer as sqlite_writer
from creditledger.store.verify.check import Finding
from creditledger.store.verify.verification import FileDamaged, Verification

T = TypeVar("T")

#: Pages that a backup copies between two reports of progress.
PAGES = 1_000


async def require_schema(config: Config) -> None:
    """Raises CannotStart unless there is the database with the schema that this version needs."""
    found = await look(config, migrations.revision)
    needed = migrations.newest()
    if found != needed:
        has = "no schema" if found is None else f"the schema {found}"
        raise CannotStart(
            f"The database has {has}, this version needs {needed}: run `creditledger migrate`,"
            " or a creditledger as new as the database."
        )
    if await look(config, commit_order.is_foreign):
        raise CannotStart(
            "The database was restored from a dump of another server of PostgreSQL, whose"
            " transactions are numbered higher: run `creditledger migrate`, which numbers its rows"
            " anew."
        )


async def look(config: Config, query: Callable[[Connection], T]) -> T:
    """`query` on one snapshot of the database, server or not. Raises CannotStart."""
    try:
        return await store.look(config.database_url, query)
    except CannotOpen as error:
        raise CannotStart(str(error)) from None


async def migrate(config: Config) -> tuple[str | None, str, int]:
    """Bring the database, made if it is missing, to the newest schema: (before, after).

    The third is how many rows were numbered anew because they came from another server.

    Raises CannotStart, and DatabaseLocked where another process has the database for itself.
    """
    try:
        return await store.migrate(config.database_url, _migrate)
    except CannotOpen as error:
        raise CannotStart(f"{spelled('database_url')}: {error}") from None


def _migrate(connection: Connection) -> tuple[str | None, str, int]:
    before, after = migrations.migrate(connection)
    return (
        before,
        after,
        commit_order.adopt(connection) if commit_order.is_foreign(connection) else 0,
    )


@dataclass(slots=True)
class Failure:
    """A check that found something: its first finding, and how many there are."""

    first: Finding
    count: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """What there is to say of a database."""

    #: The checks that find something wrong, in order of their first finding; none if all is well.
    failures: list[Failure]
    #: No damage: what was credited more than once before the ledger refused it.
    repeated_receipts: list[RepeatedReceipt]


async def verify(config: Config, *, on_progress: Callable[[str, int, int], None]) -> Verified:
    """Check one snapshot of the database, whether a server runs or not.

    `on_progress` is called in several threads, one at a time. Raises CannotStart.
    """
    await require_schema(config)
    run = Verification(on_progress)

    def name(connection: Connection) -> Verified:
        found: dict[str, Failure] = {}
        for finding in run.findings(connection):
            found.setdefault(finding.check, Failure(finding)).count += 1
        return Verified(list(found.values()), repeated_receipts(connection))

    try:
        return await store.look_together(config.database_url, run.prove, name)
    except FileDamaged as error:
        raise CannotStart(f"{config.database} is damaged as a file: {error}.") from None
    except CannotOpen as error:
        raise CannotStart(str(error)) from None


class CannotBackUp(Exception):
    """The backup is not there. Its text is one sentence for the operator."""


def back_up(config: Config, file: Path, *, on_progress: Callable[[int, int], None]) -> int:
    """Copy the database as it is at one moment to `file`; its bytes.

    SQLite copies a file within one read transaction, so that the copy is of one moment. `pg_dump`
    dumps a PostgreSQL database. Until it is whole the file is called FILE.part. `on_progress` gets
    what is done, and of how much. Raises CannotBackUp.
    """
    if file.exists():
        raise CannotBackUp(f"{file} is there already; take it away, or name another file.")
    part = file.with_name(f"{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        if config.path is None:
            _dump(config, part)
        else:
            _copy(config.path, part, on_progress)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        part.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CannotBackUp(f"{part} cannot be written: {error.strerror}.") from None
    return file.stat().st_size


def _copy(database: Path, part: Path, on_progress: Callable[[int, int], None]) -> None:
    if not database.is_file():
        raise CannotBackUp(f"There is no database at {database}: run `creditledger migrate`.")
    try:
        with (
            closing(sqlite_writer.reader(database)) as source,
            closing(sqlite3.connect(part, isolation_level=None)) as copy,
        ):
            source.execute("BEGIN")
            source.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
            source.backup(
                copy,
                pages=PAGES,
                progress=lambda _, left, of: on_progress(of - left, of),
                sleep=0,
            )
            copy.execute("PRAGMA journal_mode = DELETE")
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise CannotBackUp(f"{database} cannot be copied to {part}: {error}.") from None
    if found != "ok":
        raise CannotBackUp(f"The copy of {database} is damaged: {found}.")


def _dump(config: Config, part: Path) -> None:
    """By pg_dump. The password is in its environment, not in its arguments, which others see."""
    parsed = make_url(config.database_url)
    password = parsed.password or parsed.query.get("password")
    place = parsed.set(drivername="postgresql", password=None).difference_update_query(
        ("password", "ssl")
    )
    tls = parsed.query.get("ssl")
    if tls is not None:
        place = place.update_query_dict({"sslmode": tls})
    name = place.render_as_string(hide_password=True)
    command = ["pg_dump", "--format=custom", "--file", str(part), "--dbname", name]
    program = shutil.which("pg_dump")
    if program is None:
        shown = shlex.join(command).replace(f"{part}", str(part)[: -len(".part")])
        raise CannotBackUp(f"There is no pg_dump here. Run where there is one: {shown}")
    environment = config.environment() | ({"PGPASSWORD": str(password)} if password else {})
    done = subprocess.run(  # noqa: S603 # its arguments are the operator's own settings
        [program, *command[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotBackUp(f"pg_dump failed: {said[0]}.")
