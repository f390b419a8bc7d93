"""`creditledger backup`."""

from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import (
    AsJson,
    print_json,
    progress_bar,
    progress_task,
    say,
    with_settings,
)
from creditledger.ops.config import Config


@with_settings("database_url")
def backup(
    config: Config,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write.")],
    as_json: AsJson = False,
) -> None:
    """Copy the database as it is at one moment, while a server runs or not.

    A SQLite file becomes a SQLite file. A PostgreSQL database becomes a dump for `pg_restore`, made
    by the `pg_dump` of this machine; without one the command to run elsewhere is printed. Until the
    file is whole it is called FILE.part.
    """
    from creditledger.ops import database

    with progress_bar() as progress:
        size = database.back_up(config, file, on_progress=progress_task(progress, file.name))
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        say(f"{file}: {size:,} bytes")
