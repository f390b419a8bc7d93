"""The command line: its commands, and how a command ends that fails.

A file for each command beside this one says what can be asked and how the answer looks. It imports
what does the work when the command runs, so that help and completion do not wait for the server.
"""

import os
import sys
from typing import Annotated

import typer

from creditledger import __version__
from creditledger.ops.cli import (
    backup,
    clock,
    console_link,
    export,
    health,
    import_usage,
    keys,
    migrate,
    proxy,
    reconcile,
    secrets,
    serve,
    statement,
    up,
    verify,
    version,
)
from creditledger.ops.cli.console import REFUSED, USAGE, fail, say
from creditledger.ops.config import CannotStart, WrongSetting

app = typer.Typer(
    name="creditledger",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(
        "A ledger of prepaid credit, served over gRPC and, through Envoy, over REST.\n\n"
        "Every setting is a flag and an environment variable CREDITLEDGER_…; the flag wins.\n\n"
        "Exit codes: 0 done; 1 refused, failed or found something wrong; 2 called wrongly."
    ),
)
app.command("up")(up.up)
app.command("serve")(serve.serve)
app.command("proxy")(proxy.proxy)
app.command("migrate")(migrate.migrate)
app.command("import-usage")(import_usage.import_usage)
app.command("verify")(verify.verify)
app.command("health")(health.health)
app.command("backup")(backup.backup)
app.command("export")(export.export)
app.command("reconcile")(reconcile.reconcile)
app.command("statement")(statement.statement)
app.command("version")(version.version)
app.add_typer(keys.commands, name="keys")
app.add_typer(secrets.commands, name="secrets")
app.add_typer(clock.commands, name="clock")
app.add_typer(console_link.commands, name="console")


def _print_version(asked: bool) -> None:
    if asked:
        say(f"creditledger {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What may stand before a command."""


def main() -> None:
    """Run the command; what goes wrong is one sentence on standard error, and an exit code."""
    # The database, its journal, exports and statements hold other people's money and secrets.
    os.umask(0o077)
    try:
        app()
    except WrongSetting as error:
        fail(str(error), USAGE)
    except CannotStart as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
    except BrokenPipeError:
        # The reader of the output has closed it. Nothing more is flushed to it:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(REFUSED) from None
    except Exception as error:
        # A command that has begun has imported what it fails with; help needs none of it.
        from creditledger.ops.cli.failures import sentence_of

        said = sentence_of(error)
        if said is None:
            raise
        fail(*said)
