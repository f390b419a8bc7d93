"""`creditledger reconcile`: a payment provider's receipts against the top-ups of the ledger.

The file is read once and kept; the ledger is walked past it in short reads, whether a server runs
or not. Findings are printed as they are made.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import progress_bar, progress_task, with_settings
from creditledger.ops.config import CannotStart, Config

#: Exit code where not everything is as it should be; 2 is for what could not be compared.
DIFFERENCES = 1


def _column(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{what}-column",
        metavar="NAME",
        help=f"The file's name for {what}.",
        rich_help_panel="How the file is written",
    )
    return option


def _spelled(name: str, help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, help=help_text, rich_help_panel="How the file is written"
    )
    return option


@with_settings("database_url")
def reconcile(
    config: Config,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV of payments, UTF-8.")],
    provider: Annotated[
        str, typer.Option("--provider", help="source.provider of the top-ups.")
    ] = "stripe",
    start: Annotated[
        str | None,
        typer.Option("--start", help="First moment. Default: the file's first payment."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--end", help="First moment without it. Default: after the last.")
    ] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="live|test")] = "live",
    rate: Annotated[
        list[str] | None,
        typer.Option(
            "--rate",
            metavar="CREDIT/USD=1000|any",
            help="What one USD buys of a wallet's CREDIT; any: only whether it was credited.",
        ),
    ] = None,
    compare_customers: Annotated[
        bool,
        typer.Option(
            "--compare-customers", help="The file's customer must be the wallet's customer_id."
        ),
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help="Matched and unpaid ones too.")] = False,
    output: Annotated[str, typer.Option("--format", metavar="text|csv|json")] = "text",
    id_column: Annotated[str | None, _column("id")] = None,
    amount_column: Annotated[str | None, _column("amount")] = None,
    refunded_column: Annotated[str | None, _column("refunded")] = None,
    currency_column: Annotated[str | None, _column("currency")] = None,
    created_column: Annotated[str | None, _column("created")] = None,
    status_column: Annotated[str | None, _column("status")] = None,
    customer_column: Annotated[str | None, _column("customer")] = None,
    minor_units: Annotated[
        bool, _spelled("--minor-units", "Amounts are whole: 1250 is 12.50 USD.")
    ] = False,
    decimal_comma: Annotated[bool, _spelled("--decimal-comma", "1.250,00 is 1,250.00.")] = False,
    time_zone: Annotated[
        str, _spelled("--time-zone", "IANA zone of times that name none.")
    ] = "UTC",
    paid_status: Annotated[
        str | None, _spelled("--paid-status", "Statuses of what was paid, with commas between.")
    ] = None,
) -> None:
    """Compare a file of payments with the top-ups that name them as `source.receipt_id`.

    Prints what is missing in the ledger, unknown to the file, different or duplicate. The file is
    Stripe's list of payments or itemized report of the balance, or another with `--…-column`.
    Exit code 0: all matched; 1: not all; 2: it could not be compared.
    """
    from creditledger.domain.errors import echo
    from creditledger.domain.reconciliation import (
        GOOD,
        CannotReconcile,
        Reconciliation,
        window_of,
    )
    from creditledger.ops.cli.reconcile_report import PRINTED, heading
    from creditledger.ops.database import look, require_schema
    from creditledger.ops.process import run
    from creditledger.outlets import receipt_files
    from creditledger.outlets import reconcile as work

    if output not in PRINTED:
        raise CannotReconcile(f"--format must be one of {', '.join(PRINTED)}, not {echo(output)}.")
    if mode not in {"live", "test"}:
        raise CannotReconcile(f"--mode must be live or test, not {echo(mode)}.")
    said = {
        "id": id_column,
        "amount": amount_column,
        "refunded": refunded_column,
        "currency": currency_column,
        "created": created_column,
        "status": status_column,
        "customer": customer_column,
    }
    spelling = receipt_files.Spelling(
        {what: name for what, name in said.items() if name is not None},
        minor_units=minor_units,
        decimal_comma=decimal_comma,
        zone=work.zone(time_zone),
        paid=receipt_files.PAID if paid_status is None else work.words(paid_status),
        with_customers=compare_customers,
    )
    first, end_ = work.moment(start, "--start"), work.moment(end, "--end")
    rates = work.rates(rate or [])
    with progress_bar() as progress:
        found = receipt_files.read(file, spelling, on_progress=progress_task(progress, file.name))
        window = window_of(found.by_id.values(), first, end_)
        compared = Reconciliation(found.by_id, window, rates, compare_customers)
        on_progress = progress_task(progress, "top-ups")

        async def walk() -> None:
            await require_schema(config)
            await work.walk(
                partial(look, config),
                compared,
                provider=provider,
                livemode=mode == "live",
                on_progress=on_progress,
            )

        try:
            run(walk())
        except CannotStart as error:
            raise CannotReconcile(str(error)) from None
    counts = Counter(one.outcome for one in compared.findings())
    shown = (one for one in compared.findings() if show_all or one.outcome not in GOOD)
    PRINTED[output](heading(file, provider, found, compared), counts, shown)
    if counts.keys() - GOOD:
        raise typer.Exit(DIFFERENCES)
