"""`creditledger import-usage`."""

from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import (
    REFUSED,
    AsJson,
    print_json,
    progress_bar,
    progress_task,
    say,
    with_settings,
)
from creditledger.ops.config import Config


@with_settings("database_url")
def import_usage(
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
    from creditledger.ops import import_usage as work
    from creditledger.ops.cli import import_report
    from creditledger.ops.client import call

    plan = work.Plan(
        file=file,
        wallet_id=wallet,
        api_key_id=api_key_id,
        product=product,
        category=category,
        prices=work.Prices.parse(price_per_million),
        quantity_columns=tuple(name.strip() for name in quantity_columns.split(",")),
        timestamp_column=timestamp_column,
        import_id=file.name if import_id is None else import_id,
        key_column=key_column,
        allow_missing=allow_missing,
    )

    with progress_bar() as progress:
        on_progress = progress_task(progress, file.name)
        report = call(
            config, lambda channel: work.import_usage(channel, plan, on_progress=on_progress)
        )
    if as_json:
        print_json(import_report.as_json(report, plan))
    else:
        say(import_report.as_text(report, plan))
    if not report.is_complete:
        raise typer.Exit(REFUSED)
