"""What became of an import, as `creditledger import-usage` prints it."""

from itertools import chain

from creditledger.domain import money
from creditledger.ops.import_usage import LINES_NAMED_MAX, Plan, Reason, Report


def as_json(report: Report, plan: Plan) -> dict[str, object]:
    """Every figure of the report, amounts as decimal strings."""
    return {
        "import_id": plan.import_id,
        "rows": report.rows,
        "posted": report.posted,
        "replayed": report.replayed,
        "zero": _reason(report.zero),
        "conflicts": _reason(report.conflicts),
        "refused": {code: _reason(one) for code, one in report.refused.items()},
        "missing": {"count": report.missing, "keys": report.missing_keys},
        "moved": _reason(report.moved),
        "stopped": report.stopped,
        "amount": money.text(report.amount, report.scale),
        "currency": report.currency,
        "quantities": dict(zip(plan.quantity_columns, report.quantities, strict=True)),
        "prices": list(plan.prices.units),
        "price_precision": plan.prices.precision,
    }


def as_text(report: Report, plan: Plan) -> str:
    """The report for people: a line for each fate that rows met."""
    columns = zip(report.quantities, plan.quantity_columns, strict=True)
    quantities = ", ".join(f"{quantity} {name}" for quantity, name in columns)
    amount = f"{money.text(report.amount, report.scale)} {report.currency}"
    lines = [
        f"{plan.file.name} as {plan.import_id}: {report.rows} rows",
        *_stopped(report),
        f"  posted    {report.posted}",
        f"  replayed  {report.replayed}",
        f"  booked    {amount} for {quantities}",
    ]
    fates = chain(
        [("amount 0", "", report.zero), ("conflicts", "", report.conflicts)],
        (("refused", f" {code}", reason) for code, reason in report.refused.items()),
    )
    for fate, code, reason in fates:
        if reason.count:
            said = f": {reason.message}" if reason.message else ""
            lines.append(f"  {fate:9} {reason.count}{code} ({_where(reason)}){said}")
    return "\n".join(lines)


def _stopped(report: Report) -> list[str]:
    """What was found before anything was posted."""
    lines = []
    if report.missing:
        keys = ", ".join(report.missing_keys) + (", …" if report.missing > LINES_NAMED_MAX else "")
        lines.append(f"  missing   {report.missing} rows of earlier runs ({keys})")
    if report.moved.count:
        lines.append(f"  moved     {report.moved.count} ({_where(report.moved)})")
    if report.stopped:
        lines.append("  Nothing was posted: the file is not the one that was booked before.")
    return lines


def _reason(reason: Reason) -> dict[str, object]:
    return {"count": reason.count, "lines": reason.lines, "message": reason.message}


def _where(reason: Reason) -> str:
    lines = ", ".join(map(str, reason.lines))
    if reason.count == 1:
        return f"line {lines}"
    return f"lines {lines}{', …' if reason.count > len(reason.lines) else ''}"
