"""`creditledger backup`: a copy of the database as it is at one moment, while a server runs or not.

A file is copied by SQLite's own backup, within one read transaction, so that it is of one moment
however much is written meanwhile. A PostgreSQL database is dumped by `pg_dump`, which has to be as
new as the server.
"""

import os
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from creditledger.ops.config import Config
from creditledger.store.sqlite import writer as sqlite_writer

#: Pages copied between two reports of progress.
PAGES = 1_000


class CannotBackUp(Exception):
    """The backup is not there. Its text is one sentence for the operator."""


def back_up(config: Config, file: Path, *, on_progress: Callable[[int, int], None]) -> int:
    """Write the backup to `file`; its bytes. `on_progress` gets what is done, and of how much.

    Until it is whole it is called FILE.part. Raises CannotBackUp.
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
