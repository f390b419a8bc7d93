"""Statements over a naive ledger: each figure a sum over all rows, done anew each time.

A row counts at one moment: when it happened; what gave a grant that begins later than it was
written, when it was written; and nothing before the end of a period that had been closed before it
was written. What there is at a moment is the sum of the rows that count before it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.naive import key_of, product_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.naive import Repayment, Row, Wallet


class Close(NamedTuple):
    start: int
    end: int
    rows: int  #: How many the wallet had by then.


def happened(row: Row) -> int:
    return min(row.effective_at, row.created_at) if row.type == "grant" else row.effective_at


def counts_at(row: Row, closes: Sequence[Close]) -> int:
    return max([happened(row), *(close.end for close in closes if row.sequence > close.rows)])


def paid_at(one: Repayment, closes: Sequence[Close]) -> int:
    return max([one.at, *(close.end for close in closes if one.rows > close.rows)])


def at(wallet: Wallet, closes: Sequence[Close], moment: int) -> tuple[dict[int, int], int]:
    """What each grant has, and the overdraft that is used, of the rows before a moment."""
    rows = [row for row in wallet.rows if counts_at(row, closes) < moment]
    given = {row.sequence for row in rows}
    paid = {g.ref: sum(g.paid_by(sequence) for sequence in given) for g in wallet.grants}
    for one in wallet.repayments:
        paid[one.grant] += one.amount if paid_at(one, closes) < moment else 0
    grants = {ref: sum(row.amount for row in rows if row.grant == ref) - paid[ref] for ref in paid}
    drawn = -sum(row.amount for row in rows if row.grant is None)
    return grants, drawn - sum(paid.values())


def statement(wallet: Wallet, closes: Sequence[Close], start: int, end: int) -> dict[str, Any]:
    """All figures of a period: kinds and labels, grants and overdraft; what is 0 is left out."""
    (had, owed), (has, owes) = at(wallet, closes, start), at(wallet, closes, end)
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    prior: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    keys: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    products: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    grants: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    overdraft: dict[str, int] = defaultdict(int)
    for row in wallet.rows:
        if not start <= counts_at(row, closes) < end:
            continue
        late = happened(row) < counts_at(row, closes)
        tally = (prior if late else kinds)[row.kind]
        tally[0] += 1
        tally[1] += row.amount
        posting = wallet.postings[row.posting]
        if row.kind in ("usage", "refund"):
            spent = wallet.postings[posting.body.get("posting_id", row.posting)]
            keys[key_of(spent.body)]["count"] += 1
            product = products[product_of(spent.body)]
            if row.kind == "usage" and row == wallet.rows_of(row.posting)[0]:
                product["calls"] += 1
                product["quantity"] += sum((posting.body.get("usage") or {}).get("quantities", ()))
            for line in (keys[key_of(spent.body)], product):
                if late:
                    line["prior_period"] += row.amount
                else:
                    line["consumed" if row.kind == "usage" else "refunded"] += abs(row.amount)
        if row.grant is None:
            overdraft["prior_period" if late else "drawn" if row.amount < 0 else "refunded"] += (
                -row.amount if late else abs(row.amount)
            )
            continue
        grant = wallet.grant(row.grant)
        column = {
            "usage": "consumed",
            "refund": "refunded",
            "admin_debit": "debited",
            "transfer_in": "transferred_in",
            "transfer_out": "transferred_out",
            "expiry": "expired" if grant.voided_at is None else "voided",
        }.get(row.kind, "granted")
        own = grants[grant.ref]
        own["prior_period" if late else column] += row.amount if late else abs(row.amount)
        if paid := grant.paid_by(row.sequence):
            own["prior_period" if late else "overdraft_repaid"] += -paid if late else paid
            overdraft["prior_period" if late else "repaid"] += -paid if late else paid
    for one in wallet.repayments:
        if start <= paid_at(one, closes) < end:
            late = one.at < paid_at(one, closes)
            units = -one.amount if late else one.amount
            grants[one.grant]["prior_period" if late else "overdraft_repaid"] += units
            overdraft["prior_period" if late else "repaid"] += units
    for ref in had:
        if had[ref] or ref in grants:
            grants[ref] |= {"opening": had[ref], "closing": has[ref]}
    overdraft |= {"opening": owed, "closing": owes}
    return {
        "opening_balance": sum(had.values()) - owed,
        "closing_balance": sum(has.values()) - owes,
        "by_kind": dict(kinds),
        "prior_period_adjustments": dict(prior),
        "by_api_key": plain(keys),
        "by_product": plain(products),
        "grants": plain(grants),
        "overdraft": plain({0: overdraft})[0],
    }


def plain(lines: Any) -> Any:
    """Without the figures that are 0."""
    return {
        place: {name: units for name, units in line.items() if units}
        for place, line in lines.items()
    }
