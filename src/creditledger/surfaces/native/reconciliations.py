"""A reconciliation: the request, and its answer."""

import re
from typing import NamedTuple

from credit.v1 import operator_service_pb2 as pb

from creditledger.api import fields
from creditledger.domain import clock as time
from creditledger.domain import money
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.domain.reconciliation import (
    GOOD,
    CannotReconcile,
    Outcome,
    ReceiptFinding,
    ReportedReceipt,
    TopUp,
)
from creditledger.outlets import receipt_files, reconcile
from creditledger.outlets.reconcile import ReconcileJob, ReconcileReport

#: With all else that a request has, a message of 4 MiB.
FILE_BYTES_MAX = 4_000_000
RATES_MAX = 50
#: An answer has to fit a message too: of each finding so many top-ups, and so much of a text.
TOP_UPS_MAX = 10
TEXT_MAX = 200

_COLUMNS = frozenset({"id", "amount", "refunded", "currency", "created", "status", "customer"})
_COLUMN_OPTION = re.compile(r"--([a-z]+)-column")
_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


class ReconcileAsked(NamedTuple):
    """What a request asks for, and in which mode."""

    job: ReconcileJob
    livemode: bool | None


def asked(request: pb.ReconcileRequest) -> ReconcileAsked:
    """Raises MissingField, InvalidField."""
    if not request.file:
        raise MissingField("file")
    if len(request.file) > FILE_BYTES_MAX:
        raise InvalidField(
            f"file has {len(request.file)} bytes, at most {FILE_BYTES_MAX}; `creditledger"
            " reconcile` takes longer ones",
            param="file",
        )
    columns = {
        what: fields.text(name, field="columns", most=fields.NAME_MAX)
        for what, name in request.columns.items()
    }
    if columns.keys() - _COLUMNS:
        raise InvalidField(
            f"columns may have {', '.join(sorted(_COLUMNS))} and nothing else", param="columns"
        )
    statuses = fields.optional_text(request, "paid_statuses", field="paid_statuses")
    provider = fields.optional_text(request, "provider", field="provider", most=fields.NAME_MAX)
    spelling = receipt_files.Spelling(
        columns,
        minor_units=request.minor_units,
        decimal_comma=request.decimal_comma,
        zone=time.zone(request.time_zone or "UTC", field="time_zone"),
        paid=receipt_files.PAID if statuses is None else reconcile.words(statuses),
        with_customers=request.compare_customers,
    )
    said = fields.texts(request.rates, count_max=RATES_MAX, field="rates")
    try:
        rates = reconcile.rates(said)
    except CannotReconcile as error:
        raise refusal(error, param="rates") from None
    job = ReconcileJob(
        request.file,
        spelling,
        provider or "stripe",
        fields.optional_time(request, "start", field="start"),
        fields.optional_time(request, "end", field="end"),
        rates,
    )
    return ReconcileAsked(job, fields.livemode(request))


def refusal(error: CannotReconcile, *, param: str = "file") -> InvalidField:
    """What could not be compared, in which the command's options are the request's fields."""
    said = _COLUMN_OPTION.sub(r"columns.\1", str(error).removesuffix("."))
    said = said.replace("--rate", "rates").replace("--paid-status", "paid_statuses")
    said = _OPTION.sub(lambda match: match[1].replace("-", "_"), said)
    return InvalidField(said, param=param)


def answered(report: ReconcileReport, *, livemode: bool) -> pb.ReconcileResponse:
    """The response's message."""
    bad = sum(count for outcome, count in report.counts.items() if outcome not in GOOD)
    return pb.ReconcileResponse(
        livemode=livemode,
        start=time.text(report.window.start),
        end=time.text(report.window.end),
        counts=[
            pb.OutcomeCount(outcome=outcome.value, count=report.counts.get(outcome, 0))
            for outcome in Outcome
        ],
        findings=[_finding(one, report) for one in report.findings],
        findings_left_out=bad - len(report.findings),
        returns_elsewhere=report.returns_elsewhere,
    )


def _finding(one: ReceiptFinding, report: ReconcileReport) -> pb.ReconcileFinding:
    is_missing = one.outcome is Outcome.MISSING
    missing = report.missing.get(one.receipt_id) if is_missing else None
    return pb.ReconcileFinding(
        outcome=one.outcome.value,
        receipt_id=one.receipt_id,
        receipt=None if one.receipt is None else _receipt(one.receipt),
        top_ups=[_top_up(up) for up in one.top_ups[:TOP_UPS_MAX]],
        taken_back=_decimal(one.taken_back),
        differences=[
            pb.ReceiptDifference(what=what, file=file[:TEXT_MAX], ledger=ledger[:TEXT_MAX])
            for what, file, ledger in one.differences
        ],
        missing_top_up=None
        if missing is None
        else pb.MissingTopUp(
            wallet_id=missing.place.id,
            amount=money.text(missing.units, missing.place.scale),
            currency_id=missing.place.currency,
        ),
    )


def _receipt(one: ReportedReceipt) -> pb.FiledReceipt:
    return pb.FiledReceipt(
        line=one.line,
        created_at=time.text(one.created_at),
        amount=_decimal(one.amount),
        refunded=_decimal(one.refunded),
        currency=one.currency,
        status=one.status[:TEXT_MAX],
        customer=one.customer[:TEXT_MAX],
    )


def _top_up(up: TopUp) -> pb.CreditedReceipt:
    return pb.CreditedReceipt(
        transaction_id=up.id,
        wallet_id=up.place.id,
        customer_id=up.place.customer_id,
        created_at=time.text(up.created_at),
        amount=money.text(up.units, up.place.scale),
        currency_id=up.place.currency,
    )


def _decimal(amount: int) -> str:
    return money.text(amount, money.SCALE_MAX)
