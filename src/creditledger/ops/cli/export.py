"""`creditledger export`."""

from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import (
    AsJson,
    Customer,
    Excel,
    livemode_of,
    print_json,
    progress_bar,
    progress_task,
    say,
    with_settings,
)
from creditledger.ops.config import Config


@with_settings("database_url")
def export(
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
    from creditledger.ops import export_file
    from creditledger.ops.process import run

    if check:
        done = export_file.check(file)
    else:
        asked = export_file.ExportRequest.of(
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
            livemode=livemode_of(mode) is not False,
        )
        with progress_bar() as progress:
            on_progress = progress_task(progress, file.name)
            done = run(export_file.export(config, asked, on_progress=on_progress))
    if as_json:
        print_json(done.as_json())
    else:
        say(done.as_text())
