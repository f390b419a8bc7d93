"""Messages to values and back, for wallets, postings and credit transactions.

`command` and its like check the shape of a request, by `fields.py`. The other functions make
messages of values. Nothing here reads the database.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from credit.v1 import credit_transaction_pb2, wallet_service_pb2

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.field_names import FieldNames
from creditledger.api.status import message
from creditledger.domain import clock, durations, ids, money, views
from creditledger.domain.commands import Command, Operation, Usage, attributes
from creditledger.domain.errors import InvalidField, MissingField, NotFound, Refusal, echo
from creditledger.domain.model import (
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    Category,
    Dimension,
    GrantScope,
    Kind,
    MeterEvent,
    Posting,
    Row,
    Status,
    Type,
    Wallet,
    WalletView,
)
from creditledger.domain.operations import Adjust, Consume, GiveGrant, Refund
from creditledger.domain.registry import Scope
from creditledger.domain.views import Transaction
from creditledger.engine.batch import Posted

#: Words of the requests.
GRANT_KINDS = {k.word: k for k in (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT)}
CATEGORIES = {c.word: c for c in Category}
STATUSES = {s.word: s for s in Status}
#: The views of an answer: is it brief?
VIEWS = {"FULL": False, "BRIEF": True}
#: The keys of `source`, by kind of grant: requests may have no others, and answers show these.
SOURCE_KEYS = {
    Kind.TOPUP: ("provider", "receipt_id", "method"),
    Kind.SUBSCRIPTION_RENEW: ("provider", "receipt_id"),
    Kind.ADMIN_CREDIT: ("actor",),
}

#: How many meters, products or categories a scope may name at most.
SCOPE_MAX = 20
#: A usage that is longer than this without its quantities is not cached.
PRICED_BYTES_MAX = 1_024

_KIND_WORDS = {kind.value: kind.word for kind in Kind}
_TYPE_WORDS = {type_.value: type_.word for type_ in Type}
_STATUS_WORDS = {status: status.word for status in Status}


def is_brief(request: Any) -> bool:
    """Whether the request asks for the view BRIEF. Raises InvalidField for an unknown view."""
    return request.HasField("view") and fields.word(request.view, VIEWS, field="view")


def command(
    request: wallet_service_pb2.PostRequest, *, brief_unless_said: bool = False
) -> Callable[[Caller], Command]:
    """The posting that a request asks for, as a function of the caller.

    `brief_unless_said`: the view where the request names none.
    Raises InvalidField, MissingField under the JSON names. The function raises ScopeDenied if a
    forced posting comes from a key that is not an admin's.
    """
    given = request.HasField
    key = fields.idempotency_key(request.idempotency_key)
    wallet_id = fields.reference("wal", request.wallet_id, field="wallet_id")
    operation = _operation(request)
    description = note = effective_at = expected_sequence = None
    if given("description"):
        description = fields.text(request.description, field="description")
    if given("note"):
        note = fields.text(request.note, field="note")
    metadata = fields.metadata(request.metadata) if request.metadata else {}
    if given("effective_at"):
        effective_at = clock.parse(request.effective_at, field="effective_at")
    if given("expected_sequence"):
        expected_sequence = fields.number(
            request.expected_sequence, least=0, most=money.TOTAL_MAX, field="expected_sequence"
        )
    brief = is_brief(request) if given("view") else brief_unless_said

    def asked_by(caller: Caller) -> Command:
        if operation.is_forced:
            caller.require(Scope.ADMIN)
        # Positional: keyword arguments would double the cost of this call.
        return Command(
            wallet_id,
            key,
            operation,
            caller.livemode,
            caller.number,
            caller.name,
            description,
            note,
            metadata,
            effective_at,
            expected_sequence,
            request.validate_only,
            caller.scope is Scope.ADMIN,
            brief,
        )

    return asked_by


def _operation(request: wallet_service_pb2.PostRequest) -> Operation:
    name = request.WhichOneof("operation")
    if name is None:
        raise MissingField("operation")
    return _BY_FIELD[name](getattr(request, name))


def _consume(message: wallet_service_pb2.ConsumptionOperation) -> Consume:
    given = message.HasField
    amount = fields.amount(message.amount, field="consumption.amount")
    meter_id = meter_event_id = subscription_id = None
    if given("meter_id"):
        meter_id = fields.optional_reference(
            "mtr", message, "meter_id", field="consumption.meter_id"
        )
    if given("meter_event_id"):
        meter_event_id = fields.text(
            message.meter_event_id, field="consumption.meter_event_id", most=fields.NAME_MAX
        )
    if given("subscription_id"):
        subscription_id = fields.optional_reference(
            "sub", message, "subscription_id", field="consumption.subscription_id"
        )
    used = usage(message.usage) if given("usage") else None
    return Consume(amount, meter_id, meter_event_id, subscription_id, used)


def usage(message: wallet_service_pb2.Usage, field: str = "consumption.usage") -> Usage:
    """The usage of a consumption; `field`: the path of the message in the request."""
    quantities = fields.numbers(
        message.quantities[:],
        most=fields.QUANTITY_MAX,
        count_max=fields.QUANTITIES_MAX,
        field=f"{field}.quantities",
    )
    if not quantities:
        raise MissingField(f"{field}.quantities")
    return _usage(message, quantities, field, prices_max=len(quantities))


def expected_usage(message: wallet_service_pb2.Usage, field: str) -> Usage:
    """The usage that a hold expects; its quantities may be absent."""
    if message.quantities:
        return usage(message, field)
    return _usage(message, (), field, prices_max=fields.QUANTITIES_MAX)


def _usage(
    message: wallet_service_pb2.Usage, quantities: tuple[int, ...], field: str, *, prices_max: int
) -> Usage:
    # The key, the product and the prices repeat from call to call. Their bytes without the
    # quantities are then equal, and a look in the cache costs less than checking the fields again.
    message.ClearField("quantities")
    serialized = message.SerializeToString()
    priced = _priced if len(serialized) <= PRICED_BYTES_MAX else _priced.__wrapped__
    usual = priced(serialized, prices_max, field)
    return Usage(
        usual.api_key_id,
        usual.product_id,
        usual.product_name,
        usual.category,
        usual.billing_method,
        quantities,
        usual.base_prices,
        usual.discount_prices,
        usual.price_precision,
    )


@lru_cache(maxsize=4_096)
def _priced(serialized: bytes, prices_max: int, place: str) -> Usage:
    """A usage without its quantities."""
    message = wallet_service_pb2.Usage.FromString(serialized)

    def label(name: str) -> str:
        field = f"{place}.{name}"
        return fields.optional_text(message, name, field=field, most=fields.NAME_MAX) or ""

    def prices(name: str) -> tuple[int, ...]:
        return fields.numbers(
            getattr(message, name),
            most=fields.PRICE_MAX,
            count_max=prices_max,
            field=f"{place}.{name}",
        )

    def whole(name: str, least: int) -> int:
        value = fields.optional(message, name, 1)
        field = f"{place}.{name}"
        return fields.number(value, least=least, most=fields.INT32_MAX, field=field)

    return Usage(
        api_key_id=label("api_key_id"),
        product_id=label("product_id"),
        product_name=label("product_name"),
        category=label("category"),
        billing_method=whole("billing_method", 0),
        quantities=(),
        base_prices=prices("base_prices"),
        discount_prices=prices("discount_prices"),
        price_precision=whole("price_precision", 1),
    )


def _give(message: wallet_service_pb2.GrantOperation) -> GiveGrant:
    name = "grant."
    amount = fields.amount(message.amount, field=name + "amount")
    kind = fields.word(
        fields.optional(message, "kind", Kind.TOPUP.word), GRANT_KINDS, field=name + "kind"
    )
    usual = Category.PROMOTIONAL if kind is Kind.ADMIN_CREDIT else Category.PAID
    category = fields.word(
        fields.optional(message, "category", usual.word), CATEGORIES, field=name + "category"
    )
    priority = fields.number(
        fields.optional(message, "priority", PRIORITY_DEFAULT),
        least=0,
        most=PRIORITY_MAX,
        field=name + "priority",
    )
    return GiveGrant(
        amount=amount,
        kind=kind,
        category=category,
        priority=priority,
        name=fields.optional_text(message, "name", field=name + "name", most=fields.NAME_MAX),
        begins_at=fields.optional_time(message, "effective_at", field=name + "effective_at"),
        expires_at=fields.optional_time(message, "expires_at", field=name + "expires_at"),
        source=_source(message, SOURCE_KEYS[kind], field=name + "source"),
        scope=_scope(message.scope, field=name + "scope") if message.HasField("scope") else None,
        expires_after=_expires_after(message),
        allow_repeated_receipt=message.allow_repeated_receipt,
    )


def _expires_after(message: wallet_service_pb2.GrantOperation) -> durations.Duration | None:
    """How long the grant lasts, if the request has a duration instead of an end."""
    given = message.HasField
    zone_field = "grant.time_zone"
    if not given("expires_after"):
        if given("time_zone"):
            raise InvalidField(f"{zone_field} belongs to expires_after", param=zone_field)
        return None
    field = "grant.expires_after"
    if given("expires_at"):
        raise InvalidField(f"{field} and expires_at exclude each other", param=field)
    zone = clock.zone(fields.optional(message, "time_zone", "UTC"), field=zone_field)
    return durations.parse(message.expires_after, zone, field=field)


def _scope(message: wallet_service_pb2.GrantScope, *, field: str) -> GrantScope | None:
    """The scope of a grant; None, if all lists are empty: the grant pays for everything."""

    def labels(name: str) -> tuple[str, ...]:
        return fields.texts(getattr(message, name), count_max=SCOPE_MAX, field=f"{field}.{name}")

    scope = GrantScope(labels("meter_ids"), labels("product_ids"), labels("categories"))
    for i, meter_id in enumerate(message.meter_ids):
        fields.reference("mtr", meter_id, field=f"{field}.meter_ids[{i}]")
    return scope if any(scope) else None


def scope(found: GrantScope | None) -> wallet_service_pb2.GrantScope | None:
    """The message of a grant's scope."""
    return None if found is None else wallet_service_pb2.GrantScope(**found._asdict())


def _adjust(message: wallet_service_pb2.AdjustmentOperation) -> Adjust:
    name = "adjustment."
    return Adjust(
        amount=fields.amount(message.amount, field=name + "amount", signed=True),
        source=_source(message, ("actor",), field=name + "source"),
        credit_grant_id=fields.optional_reference(
            "cg", message, "credit_grant_id", field=name + "credit_grant_id"
        ),
        force=message.force,
    )


def _refund(message: wallet_service_pb2.RefundOperation) -> Refund:
    given = message.HasField("amount")
    return Refund(
        posting_id=fields.reference("pst", message.posting_id, field="refund.posting_id"),
        amount=fields.amount(message.amount, field="refund.amount") if given else None,
        force=message.force,
    )


#: The functions that read the operations of `Post` from their messages.
_READERS: dict[type[Operation], Callable[[Any], Operation]] = {
    Consume: _consume,
    GiveGrant: _give,
    Adjust: _adjust,
    Refund: _refund,
}
#: The same functions by the request's field that holds the message.
_BY_FIELD = {operation.word: read for operation, read in _READERS.items()}
#: The JSON names in `Post` of operations' attributes. Attributes of the command keep their names.
FIELD_NAMES: dict[type, FieldNames] = {
    operation: {name: f"{operation.word}.{name}" for name in attributes(operation)}
    for operation in _READERS
}
FIELD_NAMES[GiveGrant] = {
    **FIELD_NAMES[GiveGrant],
    "begins_at": "grant.effective_at",
    "time_zone": "grant.time_zone",
}


def _source(message: Any, allowed: tuple[str, ...], *, field: str) -> dict[str, str]:
    """The keys of `source` that the request has. Raises InvalidField for a key not in `allowed`."""
    if not message.HasField("source"):
        return {}
    found = {}
    for descriptor, value in message.source.ListFields():
        name = descriptor.name
        if name not in allowed:
            raise InvalidField(
                f"{field}.{name} does not belong to this kind, only {', '.join(allowed)}",
                param=f"{field}.{name}",
            )
        found[name] = fields.text(value, field=f"{field}.{name}", most=fields.NAME_MAX)
    return found


class WalletLike(Protocol):
    """The attributes of a wallet that a transaction's message shows."""

    @property
    def id(self) -> str: ...
    @property
    def customer_id(self) -> str: ...
    @property
    def currency(self) -> str: ...
    @property
    def scale(self) -> int: ...
    @property
    def livemode(self) -> bool: ...


def source(posting: Posting) -> Mapping[str, str]:
    """The posting's source, as its message shows it."""
    return views.source(posting.source, posting.wallet, posting.refund_of, posting.linked)


def transaction(
    row: Row, posting: Posting, dimension: Dimension, wallet: WalletLike
) -> credit_transaction_pb2.CreditTransaction:
    """One credit transaction, not expanded. A dry run's ids are empty."""
    posting_id = ids.compose("pst", row.wallet, row.posting) if row.posting else ""
    found = _transaction(row, posting_id, posting, dimension, wallet)
    return credit_transaction_pb2.CreditTransaction(**found)


def expanded(found: Transaction) -> credit_transaction_pb2.CreditTransaction:
    """The transaction together with the objects that its ids name."""
    row, of = found.row, found.wallet
    posting_id = ids.compose("pst", row.wallet, row.posting)
    # One constructor from one dictionary: a message made part by part takes twice as long.
    shown = _transaction(row, posting_id, found.posting, found.dimension, of)
    name, email = found.customer
    shown |= {
        "object": "credit_transaction",
        "credit_amount": shown["amount"],
        "customer": {"id": of.customer_id, "name": name, "email": email},
        "payment_currency": {
            "id": of.currency,
            "name": found.currency_name,
            "symbol": of.currency,
            "decimal": of.scale,
            "type": "credit",
        },
    }
    if found.dimension.meter_id is not None and found.meter is not None:
        name, event_name, unit = found.meter
        shown["meter"] = {
            "id": found.dimension.meter_id,
            "name": name,
            "event_name": event_name,
            "unit": unit,
        }
        shown["meter_event_name"], shown["meter_unit"] = event_name, unit
    if found.event is not None:
        shown["meter_event"] = _event(found.event, found)
    if found.dimension.subscription_id is not None:
        shown["subscription"] = {"id": found.dimension.subscription_id}
    if found.grant is not None:
        grant = found.grant
        shown["credit_grant"] = {
            "id": shown["credit_grant_id"],
            "name": grant.name,
            "category": grant.category.word,
            "priority": grant.priority,
            "amount": money.text(grant.amount, of.scale),
            "expires_at": None if grant.expires_at is None else clock.text(grant.expires_at),
        }
    return credit_transaction_pb2.CreditTransaction(**shown)


def _event(one: MeterEvent, of: Transaction) -> credit_transaction_pb2.TransactionMeterEvent:
    scale = of.wallet.scale
    assert of.meter is not None  # an event has one
    return credit_transaction_pb2.TransactionMeterEvent(
        id=ids.compose("me", of.row.wallet, one.number),
        object="meter_event",
        event_name=of.meter.event_name,
        payload=credit_transaction_pb2.TransactionMeterEventPayload(
            customer_id=of.wallet.customer_id,
            value=money.text(one.value, scale),
            subscription_id=one.subscription_id,
        ),
        identifier=one.identifier,
        timestamp=one.happened_at // clock.SECOND,
        status=one.status,
        credit_consumed=money.text(one.consumed, scale),
        credit_pending=money.text(one.unpaid, scale),
        processed_at=None if one.paid_at is None else one.paid_at // clock.SECOND,
        livemode=of.wallet.livemode,
        created_at=clock.text(one.created_at),
        updated_at=clock.text(one.updated_at),
    )


def own(found: Wallet | None, wallet_id: str, caller: Caller) -> Wallet:
    """A wallet that the caller may see. Raises NotFound."""
    if found is None or not caller.may_see_wallet(found):
        raise no_wallet(wallet_id)
    return found


def no_wallet(wallet_id: str) -> NotFound:
    """The refusal for a wallet that is not there, or not the caller's to see."""
    return NotFound(f"no wallet {echo(wallet_id)}", param="wallet_id")


def wallet(view: WalletView) -> wallet_service_pb2.Wallet:
    """A wallet."""
    return wallet_service_pb2.Wallet(**_wallet(view))


def posted(answer: Posted) -> wallet_service_pb2.Posting:
    """The answer to a posting, in the view that it was asked for in."""
    if not answer.is_brief:
        return wallet_service_pb2.Posting(**_posted(answer))
    # What these fields say is true in both views.
    found = _identified(answer)
    found["brief"] = _brief(answer)
    return wallet_service_pb2.Posting(**found)


def brief(answer: Posted) -> wallet_service_pb2.BriefPosting:
    """The posting in the view BRIEF."""
    return wallet_service_pb2.BriefPosting(**_brief(answer))


def results(answers: Iterable[Posted | Refusal]) -> wallet_service_pb2.BatchPostResponse:
    """The answer to a batch."""
    return wallet_service_pb2.BatchPostResponse(results=[_result(answer) for answer in answers])


def result(answer: Posted | Refusal) -> wallet_service_pb2.StreamPostResponse:
    """The answer to one posting of a stream."""
    return wallet_service_pb2.StreamPostResponse(result=_result(answer))


# These functions answer dicts of fields. From nested dicts protobuf builds the inner messages in
# place; it would copy inner messages. An empty map costs as much as ten strings, so it is left out.


def _result(answer: Posted | Refusal) -> Any:
    if isinstance(answer, Posted):
        return {"brief": _brief(answer)} if answer.is_brief else {"posting": _posted(answer)}
    return {
        "error": {
            "type": answer.kind.error_type,
            "message": message(answer),
            "code": answer.reason,
            "param": answer.param,
            "metadata": answer.metadata,
        }
    }


def _posted(answer: Posted) -> dict[str, Any]:
    posting, dimension, view = answer.posting, answer.dimension, answer.wallet
    found = _identified(answer)
    found["wallet"] = _wallet(view)
    if dimension is not None:
        id_ = found["posting_id"]
        rows = posting.rows
        found["transactions"] = [_transaction(row, id_, posting, dimension, view) for row in rows]
    return found


def _identified(answer: Posted) -> dict[str, Any]:
    """Which posting it is."""
    posting = answer.posting
    found: dict[str, Any] = {
        "posting_id": _posting_id(posting),
        "replayed": answer.replayed,
        "validate_only": answer.validate_only,
    }
    if posting.hold is not None:
        found["hold_id"] = ids.compose("hld", posting.wallet, posting.hold)
    return found


def _brief(answer: Posted) -> dict[str, Any]:
    posting, view = answer.posting, answer.wallet
    found: dict[str, Any] = {
        "posting_id": _posting_id(posting),
        "replayed": answer.replayed,
        "sequence": view.sequence,
        "balance": money.text(view.balance, view.scale),
        "available": money.text(view.available, view.scale),
    }
    if posting.hold is not None:
        found["hold_id"] = ids.compose("hld", posting.wallet, posting.hold)
    return found


def _posting_id(posting: Posting) -> str:
    """The posting's id; a dry run's is empty."""
    return ids.compose("pst", posting.wallet, posting.number) if posting.number else ""


def _transaction(
    row: Row, posting_id: str, posting: Posting, dimension: Dimension, wallet: WalletLike
) -> dict[str, Any]:
    written = row.posting != 0
    created_at = clock.text(row.created_at)
    found: dict[str, Any] = {
        "id": ids.compose("ct", row.wallet, row.sequence) if written else "",
        "customer_id": wallet.customer_id,
        "meter_id": dimension.meter_id,
        "subscription_id": dimension.subscription_id,
        "meter_event_id": posting.meter_event_id,
        "type": _TYPE_WORDS[row.type],
        "amount": money.text(row.amount, wallet.scale),
        "running_balance": money.text(row.running_balance, wallet.scale),
        "description": posting.description,
        "livemode": wallet.livemode,
        "created_at": created_at,
        "updated_at": created_at,
        "wallet_id": wallet.id,
        "posting_id": posting_id,
        "sequence": row.sequence,
        "kind": _KIND_WORDS[row.kind],
        "currency_id": wallet.currency,
        "effective_at": created_at if row.effective_at is None else clock.text(row.effective_at),
        "note": posting.note,
    }
    # A grant that a dry run would make has no id in any of its rows.
    if row.grant is not None and (written or row.grant < posting.rows[0].sequence):
        found["credit_grant_id"] = ids.compose("cg", row.wallet, row.grant)
    if posting.metadata:
        found["metadata"] = posting.metadata
    if came_from := source(posting):
        found["source"] = came_from
    return found


def _wallet(view: WalletView) -> dict[str, Any]:
    scale = view.scale
    found: dict[str, Any] = {
        "id": view.id,
        "customer_id": view.customer_id,
        "currency": view.currency,
        "livemode": view.livemode,
        "status": _STATUS_WORDS[view.status],
        "balance": money.text(view.balance, scale),
        "held": money.text(view.held, scale),
        "pending": money.text(view.pending, scale),
        "available": money.text(view.available, scale),
        "scoped": money.text(view.scoped, scale),
        "overdraft_limit": money.text(view.overdraft_limit, scale),
        "overdraft_used": money.text(view.overdraft_used, scale),
        "sequence": view.sequence,
        "created_at": clock.text(view.created_at),
        "updated_at": clock.text(view.updated_at),
    }
    if view.metadata:
        found["metadata"] = view.metadata
    return found
