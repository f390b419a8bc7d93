"""`creditledger serve`."""

import typer

from creditledger.ops.cli.console import REFUSED, with_settings
from creditledger.ops.config import Config

SETTINGS = tuple(name for name in Config.model_fields if name != "http_address")


@with_settings(*SETTINGS)
def serve(config: Config) -> None:
    """Serve gRPC alone, on a database that `migrate` has prepared.

    SIGTERM or Ctrl-C drains: health checks say NOT_SERVING, calls under way are finished. With
    several workers SIGHUP restarts them, one after the other.
    """
    from creditledger.ops import server, workers
    from creditledger.ops.process import run

    if config.workers > 1:
        run(workers.serve(config))
    elif not run(server.serve(config)):
        raise typer.Exit(REFUSED)
