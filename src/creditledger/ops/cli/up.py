"""`creditledger up`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import REFUSED, say, with_settings
from creditledger.ops.config import Config

#: Where `up --postgres` keeps its data.
POSTGRES_FOLDER = Path("creditledger-postgres")
SETTINGS = tuple(name for name in Config.model_fields if not name.startswith("tls_"))


@with_settings(*SETTINGS)
def up(
    config: Config,
    no_demo: Annotated[
        bool, typer.Option("--no-demo", help="No demo data and no demo keys.")
    ] = False,
    postgres: Annotated[
        bool,
        typer.Option(
            "--postgres", help=f"Start a PostgreSQL of its own, in {POSTGRES_FOLDER}, and use that."
        ),
    ] = False,
) -> None:
    """Migrate, serve gRPC, put Envoy in front, and make a demo of an empty database.

    Prints addresses, and keys of the demo that are good for a day. Ctrl-C or SIGTERM finishes what
    is under way and leaves nothing running.
    """
    from creditledger.ops import up as work
    from creditledger.ops.process import run

    database = work.private_postgres(config, POSTGRES_FOLDER) if postgres else nullcontext(config)
    with database as chosen:
        if not run(work.up(chosen, with_demo=not no_demo, say=say)):
            raise typer.Exit(REFUSED)
