"""What `creditledger reconcile` prints: a table, CSV or JSON, finding by finding."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from creditledger.domain import clock, money
from creditledger.domain.reconciliation import (
    Outcome,
    ReceiptFinding,
    Reconciliation,
    TopUp,
    text,
)
from creditledger.ops.cli.console import print_table, say
from creditledger.outlets.exports.files import safe
from creditledger.outlets.receipt_files import Receipts

#: Findings shown to people; programs get all of them.
SHOWN_MAX = 200

_Head = Mapping[str, object]
_Counts = Mapping[Outcome, int]


def heading(file: Path, provider: str, found: Receipts, compared: Reconciliation) -> _Head:
    """What was compared with what."""
    return {
        "file": str(file),
        "provider": provider,
        "start": clock.text(compared.window.start),
        "end": clock.text(compared.window.end),
        "returns_elsewhere": found.returns_elsewhere,
    }


def _print_text(head: _Head, counts: _Counts, findings: Iterator[ReceiptFinding]) -> None:
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


def _row(one: ReceiptFinding) -> tuple[str, ...]:
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


def _print_csv(_head: _Head, _counts: _Counts, findings: Iterator[ReceiptFinding]) -> None:
    """A line for each top-up of a finding, or one where there is none."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(_CSV)
    for one in findings:
        about = [one.outcome, safe(one.receipt_id), _said(one), *_cells(one)]
        for up in one.top_ups or (None,):
            credited = [""] * 7 if up is None else _credited(up, one.taken_back)
            out.writerow([*about, *credited])


def _said(one: ReceiptFinding) -> str:
    return safe("; ".join(f"{what}: {file} / {ledger}" for what, file, ledger in one.differences))


def _cells(one: ReceiptFinding) -> list[object]:
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


def _print_json(head: _Head, counts: _Counts, findings: Iterator[ReceiptFinding]) -> None:
    """One object, written finding by finding: there may be a million of them."""
    told = {**head, **{outcome.value: counts.get(outcome, 0) for outcome in Outcome}}
    sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=2).removesuffix("\n}"))
    sys.stdout.write(',\n  "findings": [')
    comma = ""
    for one in findings:
        sys.stdout.write(f"{comma}\n    {json.dumps(_plain(one), ensure_ascii=False)}")
        comma = ","
    say("\n  ]\n}" if comma else "]\n}")


def _plain(one: ReceiptFinding) -> dict[str, object]:
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


PRINTED: Mapping[str, Callable[[_Head, _Counts, Iterator[ReceiptFinding]], None]] = {
    "text": _print_text,
    "csv": _print_csv,
    "json": _print_json,
}
