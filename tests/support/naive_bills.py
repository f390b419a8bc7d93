"""Summaries and bills over a naive ledger, each summed row by row and anew each time.

Bills are exact sums by bucket, label and set of prices; `apportion_bills` makes of one bucket's
rows the published integers in 1/10000 of the currency.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.support.naive import NaiveLedger


class Bill(NamedTuple):
    """Positive = charged, a refund counts negative; voucher is what promotional grants paid."""

    quantities: tuple[int, ...] = ()
    amount: int = 0
    voucher: int = 0
    pay: int = 0


class Summary(NamedTuple):
    quantity: int  #: Of the postings with usage, each counted once.
    unmetered_amount: int  #: |amount| of the postings without usage.
    amount: int  #: Negative or 0.
    row_count: int


def summary(
    ledger: NaiveLedger,
    wallet_ids: Iterable[str],
    *,
    start: int | None = None,
    end: int | None = None,
    meter_id: str | None = None,
    subscription_id: str | None = None,
) -> Summary:
    """Consumptions created in [start, end)."""
    quantity = unmetered = amount = row_count = 0
    for wallet in [ledger.wallets[wallet_id] for wallet_id in wallet_ids]:
        for row in [row for row in wallet.rows if row.type == "consumption"]:
            body = wallet.postings[row.posting].body
            early = start is not None and row.created_at < start
            late = end is not None and row.created_at >= end
            other_meter = meter_id not in (None, body.get("meter_id"))
            other_subscription = subscription_id not in (None, body.get("subscription_id"))
            if early or late or other_meter or other_subscription:
                continue
            if not body.get("usage"):
                unmetered -= row.amount
            elif row == wallet.rows_of(row.posting)[0]:
                quantity += sum(body["usage"]["quantities"])
            amount, row_count = amount + row.amount, row_count + 1
    return Summary(quantity, unmetered, amount, row_count)


def bills(
    ledger: NaiveLedger, wallet_id: str, *, start: int, end: int, bucket_of: Callable[[int], Any]
) -> dict[tuple[Any, ...], Bill]:
    """Consumptions and refunds effective in [start, end), in the order of the published rows.

    Key: (bucket, api_key_id, product_id, product_name, category, billing_method, base_prices,
    discount_prices, price_precision); a refund counts under the usage that it refunds.
    """
    wallet = ledger.wallets[wallet_id]
    bills: dict[tuple[Any, ...], Bill] = {}
    for row in [row for row in wallet.rows if row.kind in ("usage", "refund")]:
        if not start <= row.effective_at < end:
            continue
        spent = wallet.postings[row.posting].body.get("posting_id", row.posting)
        usage = wallet.postings[spent].body.get("usage") or {}
        labels = ("api_key_id", "product_id", "product_name", "category")
        texts = [usage.get(label) or "" for label in labels]
        prices = [tuple(usage.get(name) or ()) for name in ("base_prices", "discount_prices")]
        method, precision = usage.get("billing_method") or 1, usage.get("price_precision") or 1
        key = (bucket_of(row.effective_at), *texts, method, *prices, precision)
        first = row.kind == "usage" and row == wallet.rows_of(row.posting)[0]
        quantities = usage.get("quantities", ()) if first else ()
        old, amount = bills.get(key, Bill()), -row.amount
        voucher = amount if wallet.category(row) == "promotional" else 0
        sums = tuple(a + b for a, b in zip_longest(old.quantities, quantities, fillvalue=0))
        pay = old.pay + amount - voucher
        bills[key] = Bill(sums, old.amount + amount, old.voucher + voucher, pay)
    return {key: bills[key] for key in sorted(bills, key=lambda k: (*k[:3], *k[6:], *k[3:6]))}


def apportion(
    amounts: Sequence[int], scale: int, caps: Sequence[int | None] | None = None
) -> list[int]:
    """Exact amounts of one bucket (smallest units, `scale` digits) in 1/10000 of the currency.

    They add up to the exact total rounded half up: floor, then largest remainder, ties by order.
    None exceeds its cap (None: no cap); what a cap refuses goes to the next that has room.
    """
    exact, unit = [amount * 10**4 for amount in amounts], 10**scale
    parts = [amount // unit for amount in exact]
    left = (2 * sum(exact) + unit) // (2 * unit) - sum(parts)
    order = sorted(range(len(exact)), key=lambda i: -(exact[i] % unit))
    limits = [None] * len(exact) if caps is None else caps
    while left and (room := [i for i in order if (cap := limits[i]) is None or parts[i] < cap]):
        for i in room[:left]:
            parts[i] += 1
        left -= len(room[:left])
    return parts


def apportion_bills(bills: Sequence[Bill], scale: int) -> list[tuple[int, int, int]]:
    """(amount, voucher, pay) of the rows of one bucket, in row order.

    The cap holds where the exact voucher is not above the exact amount; it is above where refunds
    of cash outweigh the rest.
    """
    amounts = apportion([bill.amount for bill in bills], scale)
    pairs = zip(amounts, bills, strict=True)
    caps = [a if bill.voucher <= bill.amount else None for a, bill in pairs]
    vouchers = apportion([bill.voucher for bill in bills], scale, caps)
    return [(a, voucher, a - voucher) for a, voucher in zip(amounts, vouchers, strict=True)]
