"""`creditledger health`."""

from typing import Annotated

import typer

from creditledger.ops.cli.console import REFUSED, AsJson, fail, print_json, say, with_settings
from creditledger.ops.config import Config


@with_settings(
    "database_url", "read_database_url", "grpc_address", "tls_certificate", "tls_key", "workers"
)
def health(
    config: Config,
    max_lag: Annotated[
        float | None,
        typer.Option("--max-lag", min=0, metavar="SECONDS", help="A longer lag is a problem."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask whether the server of these settings serves and its database answers.

    On SQLite through the socket beside the database, else at the address of the setting, every
    worker. Tells how long the oldest webhook has waited, and how far a replica is behind. Exit code
    0: healthy; 1: not; within seven seconds.
    """
    from creditledger.ops.health import check
    from creditledger.ops.process import run

    found = run(check(config, lag_seconds_max=max_lag))
    if as_json:
        print_json(found.as_json())
    elif found.is_healthy:
        say(found.as_text())
    else:
        fail(found.as_text())
    if not found.is_healthy:
        raise typer.Exit(REFUSED)
