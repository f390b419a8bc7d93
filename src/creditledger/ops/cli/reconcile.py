"""`creditledger reconcile`: a payment provider's receipts against the top-ups of the ledger.

The file is read once and kept; the ledger is walked past it in short reads, whether a server runs
or not. Findings are printed as they are made.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.progress import Progress

from creditledger.domain import clock, money
from creditledger.domain.errors import InvalidField, echo
from creditledger.domain.reconciliation import (
    GOOD,
    CannotReconcile,
    Finding,
    Outcome,
    Rates,
    Reconciliation,
    TopUp,
    text,
    window_of,
)
from creditledger.ops import receipt_files
from creditledger.ops.cli.console import print_table, progress_bar, say, with_settings
from creditledger.ops.config import Config
from creditledger.ops.receipt_files import PAID, Receipts, Spelling
from creditledger.ops.server import CannotStart, look, require_schema, run
from creditledger.outlets.exports.files import safe
from creditledger.store.read import topups

#: Exit code where not everything is as it should be; 2 is for what could not be compared.
DIFFERENCES = 1
#: Rows of one read.
STEP_ROWS = 10_000
#: Wallets asked at once for what was taken back.
STEP_WALLETS = 500
#: How far the provider's clock may be ahead of the ledger's.
EARLIER_MAX = clock.DAY
#: Findings shown to people; programs get all of them.
SHOWN_MAX = 200

_RATE = re.compile(
    r"([A-Za-z0-9_]{1,32})/([A-Za-z]{3})=(any|[0-9]{1,12}(?:\.[0-9]{1,9})?)", re.ASCII
)


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
    if output not in _PRINTED:
        raise CannotReconcile(f"--format must be one of {', '.join(_PRINTED)}, not {echo(output)}.")
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
    spelling = Spelling(
        {what: name for what, name in said.items() if name is not None},
        minor_units=minor_units,
        decimal_comma=decimal_comma,
        zone=_zone(time_zone),
        paid=PAID if paid_status is None else frozenset(_words(paid_status)),
        with_customers=compare_customers,
    )
    first, end_ = _moment(start, "--start"), _moment(end, "--end")
    rates = _rates(rate or [])
    with progress_bar() as progress:
        found = receipt_files.read(file, spelling, on_progress=_task(progress, file.name))
        window = window_of(found.by_id.values(), first, end_)
        compared = Reconciliation(found.by_id, window, rates, compare_customers)
        try:
            run(
                _walk(
                    config,
                    compared,
                    provider=provider,
                    livemode=mode == "live",
                    on_progress=_task(progress, "top-ups"),
                )
            )
        except CannotStart as error:
            raise CannotReconcile(str(error)) from None
    counts = Counter(one.outcome for one in compared.findings())
    shown = (one for one in compared.findings() if show_all or one.outcome not in GOOD)
    _PRINTED[output](_head(file, provider, found, compared), counts, shown)
    if counts.keys() - GOOD:
        raise typer.Exit(DIFFERENCES)


def _task(progress: Progress, name: str) -> Callable[[int, int], None]:
    task = progress.add_task(name, total=None)
    return lambda done, of: progress.update(task, completed=done, total=of)


async def _walk(
    config: Config,
    compared: Reconciliation,
    *,
    provider: str,
    livemode: bool,
    on_progress: Callable[[int, int], None],
) -> None:
    """Everything of the ledger that is compared. Raises CannotStart, CannotReconcile."""
    await require_schema(config)
    last = await look(config, topups.last_wallet)
    times = [receipt.created_at for receipt in compared.receipts.values()]
    since = min([compared.window.start, *times]) - EARLIER_MAX
    walk = partial(
        topups.step,
        size=STEP_ROWS,
        provider=provider,
        livemode=livemode,
        since=since,
    )
    place = topups.BEGINNING
    while place.wallet <= last:
        found, place = await look(config, partial(walk, after=place))
        for one in found:
            compared.credit(one)
        on_progress(place.wallet, last)
    refunded = compared.refunded()
    for first in range(0, len(refunded), STEP_WALLETS):
        some = refunded[first : first + STEP_WALLETS]
        for row in await look(config, partial(topups.taken_back, wallets=some)):
            compared.take_back(row)


# --- what is asked for ----------------------------------------------------------------------------


def _words(said: str) -> Iterator[str]:
    for word in said.split(","):
        yield " ".join(word.casefold().replace("_", " ").split())


def _zone(name: str) -> ZoneInfo:
    try:
        return clock.zone(name, field="--time-zone")
    except InvalidField as error:
        raise CannotReconcile(f"{error.message}.") from None


def _moment(said: str | None, name: str) -> int | None:
    try:
        return None if said is None else clock.parse(said, field=name)
    except InvalidField as error:
        raise CannotReconcile(f"{error.message}.") from None


def _rates(said: Iterable[str]) -> Rates:
    found: dict[tuple[str, str], Fraction | None] = {}
    for one in said:
        match = _RATE.fullmatch(one)
        if match is None:
            raise CannotReconcile(f"--rate must be like CREDIT/USD=1000, not {echo(one)}.")
        found[match[1], match[2].upper()] = None if match[3] == "any" else Fraction(match[3])
    return found


# --- what is printed ------------------------------------------------------------------------------

_Head = Mapping[str, object]
_Counts = Mapping[Outcome, int]


def _head(file: Path, provider: str, found: Receipts, compared: Reconciliation) -> _Head:
    return {
        "file": str(file),
        "provider": provider,
        "start": clock.text(compared.window.start),
        "end": clock.text(compared.window.end),
        "returns_elsewhere": found.returns_elsewhere,
    }


def _print_text(head: _Head, counts: _Counts, findings: Iterator[Finding]) -> None:
    say(f"{head['file']} and top-ups of {head['provider']}, {head['start']} to {head['end']}")
    for outcome in Outcome:
        say(f"  {outcome:10} {counts.get(outcome, 0)}")
    if head["returns_elsewhere"]:
        say(f"  refunds of payments that are not in the file: {head['returns_elsewhere']}")
    shown = list(islice(findings, SHOWN_MAX))
    if shown:
        names = ("outcome", "receipt", "line", "when", "paid", "credited", "wallet", "difference")
        print_table(names, [_row(one) for one in shown])
    more = sum(1 for _ in findings)
    if more:
        say(f"and {more} more: --format csv has all of them")


def _row(one: Finding) -> tuple[str, ...]:
    receipt, top_ups = one.receipt, one.top_ups
    when = top_ups[0].created_at if receipt is None else receipt.created_at
    return (
        one.outcome,
        one.receipt_id,
        "" if receipt is None else str(receipt.line),
        clock.text_seconds(when),
        "" if receipt is None else text(receipt.amount, receipt.currency),
        ", ".join(text(up.amount, up.place.currency) for up in top_ups),
        ", ".join(dict.fromkeys(up.place.id for up in top_ups)),
        "; ".join(f"{what}: {file} / {ledger}" for what, file, ledger in one.differences),
    )


_CSV = (
    *("outcome", "receipt_id", "differences", "line", "paid_at", "paid", "refunded", "currency"),
    *("status", "customer", "transaction_id", "wallet_id", "customer_id", "credited_at"),
    *("credited", "taken_back", "credited_currency"),
)


def _print_csv(_head: _Head, _counts: _Counts, findings: Iterator[Finding]) -> None:
    """A line for each top-up of a finding, or one where there is none."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(_CSV)
    for one in findings:
        about = [one.outcome, safe(one.receipt_id), _said(one), *_cells(one)]
        for up in one.top_ups or (None,):
            credited = [""] * 7 if up is None else _credited(up, one.taken_back)
            out.writerow([*about, *credited])


def _said(one: Finding) -> str:
    return safe("; ".join(f"{what}: {file} / {ledger}" for what, file, ledger in one.differences))


def _cells(one: Finding) -> list[object]:
    receipt = one.receipt
    if receipt is None:
        return [""] * 7
    return [
        receipt.line,
        clock.text(receipt.created_at),
        _decimal(receipt.amount),
        _decimal(receipt.refunded),
        receipt.currency,
        safe(receipt.status),
        safe(receipt.customer),
    ]


def _credited(up: TopUp, taken_back: int) -> list[object]:
    place = up.place
    return [
        up.id,
        *(place.id, place.customer_id, clock.text(up.created_at)),
        *(_decimal(up.amount), _decimal(taken_back), place.currency),
    ]


def _print_json(head: _Head, counts: _Counts, findings: Iterator[Finding]) -> None:
    """One object, written finding by finding: there may be a million of them."""
    told = {**head, **{outcome.value: counts.get(outcome, 0) for outcome in Outcome}}
    sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=2).removesuffix("\n}"))
    sys.stdout.write(',\n  "findings": [')
    comma = ""
    for one in findings:
        sys.stdout.write(f"{comma}\n    {json.dumps(_plain(one), ensure_ascii=False)}")
        comma = ","
    say("\n  ]\n}" if comma else "]\n}")


def _plain(one: Finding) -> dict[str, object]:
    receipt = one.receipt
    about: dict[str, object] = {}
    if receipt is not None:
        about["receipt"] = {
            "line": receipt.line,
            "created_at": clock.text(receipt.created_at),
            "amount": _decimal(receipt.amount),
            "refunded": _decimal(receipt.refunded),
            "currency": receipt.currency,
            "status": receipt.status,
            "customer": receipt.customer,
        }
    return {
        "outcome": one.outcome.value,
        "receipt_id": one.receipt_id,
        "differences": [difference._asdict() for difference in one.differences],
        **about,
        "top_ups": [
            {
                "id": up.id,
                "wallet_id": up.place.id,
                "customer_id": up.place.customer_id,
                "created_at": clock.text(up.created_at),
                "amount": _decimal(up.amount),
                "currency": up.place.currency,
            }
            for up in one.top_ups
        ],
        "taken_back": _decimal(one.taken_back),
    }


def _decimal(amount: int) -> str:
    return money.text(amount, money.SCALE_MAX)


_PRINTED: Mapping[str, Callable[[_Head, _Counts, Iterator[Finding]], None]] = {
    "text": _print_text,
    "csv": _print_csv,
    "json": _print_json,
}
