"""Columns to values and back: how the model's values lie in their tables.

Shared by the writer and the reads, so that each table is read in one way. Column lists are in the
order in which the functions beside them take the columns.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from creditledger.domain.model import (
    Category,
    Dimension,
    Grant,
    GrantScope,
    Hold,
    HoldEnd,
    Kind,
    MeterEvent,
    Origin,
    Period,
    Posting,
    Row,
    SpendLimit,
    Status,
    Wallet,
)
from creditledger.domain.overdraft import OverdraftDraw
from creditledger.store.write.batch import DroppedLimit, GrantRevision, Revision

T = TypeVar("T")

# A word of its number: to ask its list would cost more than the rest of the value.
_CATEGORIES = {category.value: category for category in Category}
_ORIGINS = {origin.value: origin for origin in Origin}
_STATUSES = {status.value: status for status in Status}

#: What never changes of a wallet.
WALLET_COLUMNS = [
    "number",
    "id",
    "customer_id",
    "currency",
    "livemode",
    "created_at",
    "repays_from",
]
#: What does: the terms, then what every transaction moves on.
STATE_COLUMNS = [
    "status",
    "overdraft_limit",
    "metadata",
    "updated_at",
    "overdrawn",
    "repaid_to",
    "sequence",
    "running_balance",
    "overdraft_used",
    "posted_at",
    "moved_sequence",
    "usage_count",
    "usage_amount",
    "usage_quantity",
    "unmetered_amount",
    "topup_amount",
    "refund_amount",
    "credited_amount",
    "unpaid_amount",
    "limits_made",
    "last_posting",
    "topup_count",
    "subscription_renew_count",
    "admin_credit_count",
    "admin_debit_count",
    "refund_count",
    "expiry_count",
    "transfer_out_count",
    "transfer_in_count",
    "revision",
]
GRANT_COLUMNS = [
    "number",
    "amount",
    "overdraft_paid",
    "remaining",
    "category",
    "priority",
    "name",
    "effective_at",
    "expires_at",
    "created_at",
    "scope",
    "voided_at",
    "revision",
    "repaid",
    "returned",
    "origin",
    "words",
]
#: What changes of a grant as a part is added to it, beside what remains of it.
GRANT_GROWN = ["amount", "overdraft_paid"]
PART_COLUMNS = ["wallet_number", "sequence", "grant_number", "overdraft_paid"]
#: What changes of a grant's terms.
GRANT_CHANGED = ["name", "priority", "expires_at", "voided_at", "revision"]
GRANT_REVISION_COLUMNS = [
    "wallet_number",
    "grant_number",
    "number",
    "created_at",
    "changed_by",
    "posting_number",
    "name",
    "priority",
    "expires_at",
    "voided_at",
    "metadata",
]
OVERDRAFT_COLUMNS = ["wallet_number", "sequence", "start", "amount", "forgiven"]
PAYER_COLUMNS = ["wallet_number", "start", "until", "amount", "grant_number", "row_sequence"]
#: What changes of a grant as it pays overdraft back.
GRANT_REPAID = ["remaining", "open", "repaid"]
GRANT_REPAYMENT_COLUMNS = [
    "wallet_number",
    "grant_number",
    "start",
    "amount",
    "repaid_at",
    "created_at",
    "sequence",
]
RECEIPT_COLUMNS = ["wallet_number", "grant_number", "provider", "receipt_id", "copy"]
POSTING_COLUMNS = [
    "wallet_number",
    "number",
    "idempotency_key",
    "operation",
    "amount",
    "posted_by",
    "description",
    "note",
    "metadata",
    "source",
    "meter_event_id",
    "quantities",
    "refund_of",
    "hold_number",
    "terms",
    "linked_wallet",
    "linked_posting",
]
HOLD_COLUMNS = [
    "number",
    "amount",
    "captured",
    "parts",
    "beyond",
    "deadline",
    "created_at",
    "dimension_number",
    "quantities",
    "meter_event_id",
    "ended",
    "ended_at",
]
#: What changes of a hold.
HOLD_CHANGED = ["captured", "parts", "beyond", "deadline", "ended", "ended_at"]
REVISION_COLUMNS = [
    "wallet_number",
    "hold_number",
    "posting_number",
    "created_at",
    "captured",
    "parts",
    "beyond",
    "deadline",
    "ended",
]
EVENT_COLUMNS = [
    "number",
    "identifier",
    "meter_id",
    "subscription_id",
    "value",
    "unpaid",
    "happened_at",
    "created_at",
    "paid_at",
    "canceled_at",
    "return_below",
]
#: What changes of a meter event.
EVENT_CHANGED = ["unpaid", "paid_at", "canceled_at", "return_below"]
LIMIT_COLUMNS = [
    "number",
    "amount",
    "api_key_id",
    "period",
    "time_zone",
    "hours",
    "created_at",
    "updated_at",
    "since",
    "counted_from",
    "parts",
    "counted_until",
]
#: What changes of a spend limit.
LIMIT_CHANGED = ["amount", "updated_at", "counted_from", "parts", "counted_until"]
#: Of one that is no more: as it was shown last.
DROPPED_COLUMNS = [
    "wallet_number",
    "number",
    "amount",
    "api_key_id",
    "period",
    "time_zone",
    "hours",
    "created_at",
    "updated_at",
    "spent",
    "held",
    "resets_at",
    "dropped_at",
]
ROW_COLUMNS = [
    "wallet_number",
    "sequence",
    "posting_number",
    "kind",
    "type",
    "grant_number",
    "amount",
    "running_balance",
    "created_at",
    "effective_at",
    "dimension_number",
    "kind_count",
    "usage_count",
    "usage_amount",
    "usage_quantity",
    "unmetered_amount",
]
DIMENSION_COLUMNS = [
    "kind",
    "type",
    "meter_id",
    "subscription_id",
    "has_usage",
    "api_key_id",
    "product_id",
    "product_name",
    "category",
    "billing_method",
    "base_prices",
    "discount_prices",
    "price_precision",
]

#: Of a roll-up, after its place: what `batch.Sums` adds up, in its order.
SUM_COLUMNS = [
    "count",
    "amount",
    "voucher_amount",
    "quantity_0",
    "quantity_1",
    "quantity_2",
    "quantity_3",
    "quantity_4",
    "quantity_5",
    "created_count",
    "created_amount",
    "created_quantity",
    "posting_count",
]

assert len(ROW_COLUMNS) == len(Row._fields)
assert len(DIMENSION_COLUMNS) == len(Dimension._fields)
# The last columns of a wallet's state but one are its counts by kind, usage left out.
_COUNTED = tuple(kind.value for kind in Kind if kind is not Kind.USAGE)
assert [f"{Kind(number).word}_count" for number in _COUNTED] == STATE_COLUMNS[
    -len(_COUNTED) - 1 : -1
]
_counted = itemgetter(*_COUNTED)
_UNLINKED = (None, None)


def dump(value: Mapping[str, object] | tuple[int, ...]) -> str | None:
    """Compact JSON with sorted keys, or None for nothing: how small structures are kept."""
    if not value:
        return None
    return _encode(value)


_encode = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode


def load(text: str | None, nothing: T) -> T:
    """What `dump` wrote."""
    if text is None:
        return nothing
    value: T = json.loads(text)
    return value


def wallet_value(columns: Iterable[Any], scale: int) -> Wallet:
    """A wallet, still without grants, of WALLET_COLUMNS and STATE_COLUMNS."""
    number, id_, customer, currency, live, made, repays_from, *state = columns
    status, limit, metadata, changed, overdrawn, repaid_to, *rest = state
    wallet = Wallet(
        number,
        id_,
        customer,
        currency,
        scale,
        bool(live),
        _STATUSES[status],
        limit,
        json.loads(metadata),
        made,
        changed,
        *rest[:15],
    )
    *counted, wallet.revision = rest[15:]
    wallet.repays_from, wallet.overdrawn, wallet.repaid_to = repays_from, overdrawn, repaid_to
    for kind, count in zip(_COUNTED, counted, strict=True):
        wallet.kind_counts[kind] = count
    return wallet


def set_terms(wallet: Wallet, columns: Sequence[Any]) -> None:
    """The terms of a wallet as its state says, of STATE_COLUMNS."""
    status, wallet.overdraft_limit, metadata, wallet.updated_at = columns[:4]
    wallet.status = _STATUSES[status]
    wallet.metadata = json.loads(metadata)


def wallet_counters(wallet: Wallet) -> tuple[int, ...]:
    """The columns from `sequence` on."""
    return (
        wallet.sequence,
        wallet.running_balance,
        wallet.overdraft_used,
        wallet.posted_at,
        wallet.moved_sequence,
        wallet.usage_count,
        wallet.usage_amount,
        wallet.usage_quantity,
        wallet.unmetered_amount,
        wallet.topup_amount,
        wallet.refund_amount,
        wallet.credited_amount,
        wallet.unpaid_amount,
        wallet.limits_made,
        wallet.last_posting,
        *_counted(wallet.kind_counts),
        wallet.revision,
    )


def grant_value(columns: Sequence[Any]) -> Grant:
    """A grant of its columns."""
    number, amount, paid, remaining, category, *terms, scope, voided_at = columns[:12]
    one = Grant(number, amount, paid, remaining, _CATEGORIES[category], *terms)
    one.voided_at = voided_at
    one.revision, one.repaid, returned, origin, one.words = columns[12:]
    one.returned, one.origin = bool(returned), _ORIGINS[origin]
    if scope is not None:
        one.scope = GrantScope(**{name: tuple(found) for name, found in json.loads(scope).items()})
    return one


def grant_columns(grant: Grant) -> tuple[object, ...]:
    """The columns of a grant, and whether anything is left of it."""
    return (
        grant.number,
        grant.amount,
        grant.overdraft_paid,
        grant.remaining,
        grant.category.value,
        grant.priority,
        grant.name,
        grant.effective_at,
        grant.expires_at,
        grant.created_at,
        None if grant.scope is None else _scope(grant.scope),
        grant.voided_at,
        grant.revision,
        grant.repaid,
        grant.returned,
        grant.origin.value,
        grant.words,
        grant.remaining > 0,
    )


def overdraft_columns(drawn: OverdraftDraw) -> tuple[object, ...]:
    """The columns of what a row drew beyond the grants."""
    return (drawn.wallet, drawn.sequence, drawn.start, drawn.amount, drawn.forgiven)


def grant_repaid(grant: Grant) -> tuple[object, ...]:
    """What changes of a grant as it pays overdraft back."""
    return (grant.remaining, grant.remaining > 0, grant.repaid)


def _scope(scope: GrantScope) -> str | None:
    return dump({name: found for name, found in scope._asdict().items() if found})


def grant_changed(grant: Grant) -> tuple[object, ...]:
    """What changes of a grant's terms."""
    return (*grant.terms(), grant.revision)


def grant_revision_columns(revision: GrantRevision) -> tuple[object, ...]:
    """The columns of what a change left of a grant's terms."""
    *place, terms, metadata = revision
    return (*place, *terms, dump(metadata))


def posting_value(columns: Iterable[Any]) -> Posting:
    """A posting, still without rows, of its columns."""
    wallet, number, key, operation, amount, posted_by, description, note, *rest = columns
    metadata, source, event, quantities, refund_of, hold, terms, *linked = rest
    return Posting(
        wallet=wallet,
        number=number,
        idempotency_key=key,
        operation=operation,
        amount=amount,
        posted_by=posted_by,
        description=description,
        note=note,
        metadata=load(metadata, {}),
        source=load(source, {}),
        meter_event_id=event,
        quantities=tuple(load(quantities, ())),
        refund_of=refund_of,
        hold=hold,
        terms=load(terms, {}),
        linked=None if linked[0] is None else (linked[0], linked[1]),
    )


def posting_columns(posting: Posting) -> tuple[object, ...]:
    """The columns of a posting, then first_sequence and row_count."""
    return (
        posting.wallet,
        posting.number,
        posting.idempotency_key,
        posting.operation,
        posting.amount,
        posting.posted_by,
        posting.description,
        posting.note,
        dump(posting.metadata),
        dump(posting.source),
        posting.meter_event_id,
        f"[{','.join(map(str, posting.quantities))}]" if posting.quantities else None,
        posting.refund_of,
        posting.hold,
        dump(posting.terms),
        *(posting.linked or _UNLINKED),
        posting.rows[0].sequence if posting.rows else 0,
        len(posting.rows),
    )


def hold_value(columns: Iterable[Any]) -> Hold:
    """A hold of its columns."""
    number, amount, captured, parts, beyond, deadline, made, dimension, *rest = columns
    quantities, event, ended, ended_at = rest
    return Hold(
        number,
        amount,
        captured,
        dict(json.loads(parts)),
        beyond,
        deadline,
        made,
        dimension,
        tuple(load(quantities, ())),
        event,
        None if ended is None else HoldEnd(ended),
        ended_at,
    )


def hold_columns(hold: Hold) -> tuple[object, ...]:
    """The columns of a hold."""
    return (
        hold.number,
        hold.amount,
        hold.captured,
        _pairs(hold.parts),
        hold.beyond,
        hold.deadline,
        hold.created_at,
        hold.dimension,
        dump(hold.quantities),
        hold.meter_event_id,
        None if hold.ended is None else hold.ended.value,
        hold.ended_at,
    )


def limit_value(columns: Iterable[Any]) -> SpendLimit:
    """A spend limit of its columns."""
    number, amount, key, period, zone, hours, made, changed, *counted = columns
    since, counted_from, parts, counted_until = counted
    return SpendLimit(
        *(number, amount, key, Period(period), zone, hours),
        *(made, changed, since, counted_from, dict(json.loads(parts)), counted_until),
    )


def dropped_value(columns: Iterable[Any]) -> DroppedLimit:
    """A spend limit that is no more, of its columns without the wallet's."""
    number, amount, key, period, zone, hours, made, changed, *shown = columns
    limit = SpendLimit(
        *(number, amount, key, Period(period), zone, hours, made, changed),
        since=0,
        counted_from=0,
        parts={},
        counted_until=None,
    )
    return DroppedLimit(limit, *shown)


def dropped_columns(wallet: int, dropped: DroppedLimit) -> tuple[object, ...]:
    """The columns of a spend limit that is no more."""
    limit, *shown = dropped
    return (
        wallet,
        limit.number,
        limit.amount,
        limit.api_key_id,
        limit.period.value,
        limit.time_zone,
        limit.hours,
        limit.created_at,
        limit.updated_at,
        *shown,
    )


def limit_columns(limit: SpendLimit) -> tuple[object, ...]:
    """The columns of a spend limit."""
    return (
        limit.number,
        limit.amount,
        limit.api_key_id,
        limit.period.value,
        limit.time_zone,
        limit.hours,
        limit.created_at,
        limit.updated_at,
        limit.since,
        limit.counted_from,
        _pairs(limit.parts),
        limit.counted_until,
    )


def revision_columns(revision: Revision) -> tuple[object, ...]:
    """The columns of what a posting left of a hold."""
    wallet, posting, hold, now = revision
    return (
        wallet,
        hold.number,
        posting,
        now,
        hold.captured,
        _pairs(hold.parts),
        hold.beyond,
        hold.deadline,
        None if hold.ended is None else hold.ended.value,
    )


def _pairs(parts: Mapping[int, int]) -> str:
    return json.dumps(list(parts.items()), separators=(",", ":"))


def event_value(columns: Iterable[Any]) -> MeterEvent:
    """A meter event of its columns."""
    return MeterEvent(*columns)


def event_columns(event: MeterEvent) -> tuple[object, ...]:
    """The columns of a meter event."""
    return (
        event.number,
        event.identifier,
        event.meter_id,
        event.subscription_id,
        event.value,
        event.unpaid,
        event.happened_at,
        event.created_at,
        event.paid_at,
        event.canceled_at,
        event.return_below,
    )


def dimension_value(columns: Iterable[Any]) -> Dimension:
    """A dimension of its columns."""
    kind, type_, meter, subscription, has_usage, *rest = columns
    key, product, name, category, method, base, discount, precision = rest
    return Dimension(
        kind,
        type_,
        meter,
        subscription,
        bool(has_usage),
        key,
        product,
        name,
        category,
        method,
        tuple(json.loads(base)),
        tuple(json.loads(discount)),
        precision,
    )


def dimension_columns(dimension: Dimension) -> tuple[object, ...]:
    """The columns of a dimension."""
    *head, base, discount, precision = dimension
    return (*head, json.dumps(base), json.dumps(discount), precision)


def digest(dimension: Dimension) -> str:
    """What a dimension is found by: 128 bits, so that its index stays narrow."""
    text = json.dumps(dimension, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
