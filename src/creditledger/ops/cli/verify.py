"""`creditledger verify`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from creditledger.ops.cli.console import (
    REFUSED,
    AsJson,
    fail,
    print_json,
    print_table,
    progress_bar,
    say,
    with_settings,
)
from creditledger.ops.config import Config


@with_settings("database_url")
def verify(
    config: Config,
    as_json: AsJson = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option(help="Write the outcome there too, for Prometheus's node exporter."),
    ] = None,
) -> None:
    """Check every invariant of the ledger on one snapshot, whether a server runs or not.

    Prints the first wrong row of each check that fails; exit code 1 if a check fails. Also lists
    receipts that were credited more than once before the ledger refused that.
    """
    from creditledger.ops import database
    from creditledger.ops.process import run

    began = time.monotonic()
    with progress_bar() as progress:
        task = progress.add_task("verifying", total=None)

        def on_progress(name: str, done: int, of: int) -> None:
            progress.update(task, description=name, completed=done, total=of)

        verified = run(database.verify(config, on_progress=on_progress))
    seconds = time.monotonic() - began
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
    if metrics_file is not None:
        _tell(metrics_file, len(failures), seconds)
    if failures:
        raise typer.Exit(REFUSED)


def _tell(file: Path, failed: int, seconds: float) -> None:
    from creditledger.ops.verify_metrics import write

    try:
        write(file, failed=failed, seconds=seconds)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}.", REFUSED)
