"""`creditledger verify`."""

from typing import Annotated

import typer

from creditledger.ops.cli.console import (
    REFUSED,
    AsJson,
    complain,
    print_json,
    print_table,
    progress_bar,
    say,
    with_settings,
)
from creditledger.ops.config import CannotStart, Config, WrongSetting


@with_settings("database_url")
def verify(
    config: Config,
    as_json: AsJson = False,
    no_record: Annotated[
        bool,
        typer.Option("--no-record", help="Write nothing to the ledger: it may be a backup."),
    ] = False,
) -> None:
    """Check every invariant of the ledger on one snapshot, whether a server runs or not.

    Prints the first wrong row of each check that fails; exit code 1 if a check fails. Also lists
    receipts that were credited more than once before the ledger refused that. The outcome is
    written down in the ledger: operators see it in the overview, and metrics have it.
    """
    from creditledger.ops import database
    from creditledger.ops.process import run

    with progress_bar() as progress:
        task = progress.add_task("verifying", total=None)

        def on_progress(name: str, done: int, of: int) -> None:
            progress.update(task, description=name, completed=done, total=of)

        verified = run(database.verify(config, on_progress=on_progress))
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
    if not no_record:
        _record(config, [one.first.check for one in failures])
    if failures:
        raise typer.Exit(REFUSED)


def _record(config: Config, failed_checks: list[str]) -> None:
    """Write the outcome down, if that is possible. The ledger was verified in any case."""
    import grpc
    from credit.v1.operator_service_pb2 import RecordVerificationRequest
    from credit.v1.operator_service_pb2_grpc import OperatorServiceStub

    from creditledger.ops.client import call

    request = RecordVerificationRequest(failed_checks=failed_checks)
    try:
        call(config, lambda channel: OperatorServiceStub(channel).RecordVerification(request))
    except (CannotStart, WrongSetting, grpc.aio.AioRpcError) as error:
        said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        complain(f"the outcome was not written down: {said}")
