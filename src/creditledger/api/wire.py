"""Messages to values and back, for wallets, postings and credit transactions.

`command` and its like check the shape of what comes in, by `fields.py`; the others print. Nothing
here asks the database.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from credit.v1 import credit_transaction_pb2, wallet_service_pb2

from creditledger import clock, ids, money
from creditledger.api import fields
from creditledger.api.rpc import message
from creditledger.deciding import Posted
from creditledger.errors import InvalidField, MissingField, Refusal
from creditledger.model import (
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    Adjust,
    Category,
    Command,
    Consume,
    Dimension,
    GiveGrant,
    Kind,
    Operation,
    Posting,
    Refund,
    Row,
    Status,
    Type,
    Usage,
    WalletView,
)

#: Words of the requests.
GRANT_KINDS = {k.word: k for k in (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT)}
CATEGORIES = {c.word: c for c in Category}
STATUSES = {s.word: s for s in Status}
#: The keys of `source`, by kind of grant; what each kind shows, and may be given.
SOURCE_KEYS = {
    Kind.TOPUP: ("provider", "receipt_id", "method"),
    Kind.SUBSCRIPTION_RENEW: ("provider", "receipt_id"),
    Kind.ADMIN_CREDIT: ("actor",),
}

_KIND_WORDS = {kind.value: kind.word for kind in Kind}
_TYPE_WORDS = {type_.value: type_.word for type_ in Type}


def command(request: wallet_service_pb2.PostRequest) -> Command:
    """The posting a request asks for; who asks is filled in by the service.

    Raises InvalidField, MissingField under the names of the JSON.
    """
    optional = fields.optional_text
    key = fields.idempotency_key(request.idempotency_key)
    return Command(
        wallet_id=fields.reference("wal", request.wallet_id, field="wallet_id"),
        idempotency_key=key,
        operation=_operation(request),
        livemode=None,
        posted_by=None,
        actor="",
        description=optional(request, "description", field="description"),
        note=optional(request, "note", field="note"),
        metadata=fields.metadata(request.metadata) if request.metadata else {},
        effective_at=fields.optional_time(request, "effective_at", field="effective_at"),
        expected_sequence=_expected_sequence(request),
        validate_only=request.validate_only,
    )


def _expected_sequence(request: wallet_service_pb2.PostRequest) -> int | None:
    if not request.HasField("expected_sequence"):
        return None
    return fields.number(
        request.expected_sequence, least=0, most=money.TOTAL_MAX, field="expected_sequence"
    )


def _operation(request: wallet_service_pb2.PostRequest) -> Operation:
    name = request.WhichOneof("operation")
    if name == "consumption":
        return _consume(request.consumption)
    if name == "grant":
        return _give(request.grant)
    if name == "adjustment":
        return _adjust(request.adjustment)
    if name == "refund":
        refund = request.refund
        given = refund.HasField("amount")
        return Refund(
            posting_id=fields.reference("pst", refund.posting_id, field="refund.posting_id"),
            amount=fields.amount(refund.amount, field="refund.amount") if given else None,
        )
    raise MissingField("operation")


def _consume(message: wallet_service_pb2.ConsumptionOperation) -> Consume:
    name = "consumption."
    return Consume(
        amount=fields.amount(message.amount, field=name + "amount"),
        meter_id=fields.optional_reference("mtr", message, "meter_id", field=name + "meter_id"),
        meter_event_id=fields.optional_text(
            message, "meter_event_id", field=name + "meter_event_id", most=fields.NAME_MAX
        ),
        subscription_id=fields.optional_reference(
            "sub", message, "subscription_id", field=name + "subscription_id"
        ),
        usage=_usage(message.usage) if message.HasField("usage") else None,
    )


def _usage(message: wallet_service_pb2.Usage) -> Usage:
    def label(name: str) -> str:
        field = f"consumption.usage.{name}"
        return fields.optional_text(message, name, field=field, most=fields.NAME_MAX) or ""

    def prices(name: str) -> tuple[int, ...]:
        return fields.numbers(
            getattr(message, name),
            most=fields.PRICE_MAX,
            count_max=len(quantities),
            field=f"consumption.usage.{name}",
        )

    def whole(name: str, least: int) -> int:
        value = fields.optional(message, name, 1)
        field = f"consumption.usage.{name}"
        return fields.number(value, least=least, most=fields.INT32_MAX, field=field)

    field = "consumption.usage.quantities"
    if not message.quantities:
        raise MissingField(field)
    quantities = fields.numbers(
        message.quantities, most=fields.QUANTITY_MAX, count_max=fields.QUANTITIES_MAX, field=field
    )
    return Usage(
        api_key_id=label("api_key_id"),
        product_id=label("product_id"),
        product_name=label("product_name"),
        category=label("category"),
        billing_method=whole("billing_method", 0),
        quantities=quantities,
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
        effective_at=fields.optional_time(message, "effective_at", field=name + "effective_at"),
        expires_at=fields.optional_time(message, "expires_at", field=name + "expires_at"),
        source=_source(message, SOURCE_KEYS[kind], field=name + "source"),
    )


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


def _source(message: Any, allowed: tuple[str, ...], *, field: str) -> dict[str, str]:
    """The keys given of `source`; one that its kind does not have is named, not dropped."""
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
    """What a transaction's message says of its wallet."""

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
    """The posting's source as it is shown."""
    if posting.refund_of is not None:
        return {"posting_id": ids.compose("pst", posting.wallet, posting.refund_of)}
    return posting.source


def transaction(
    row: Row, posting: Posting, dimension: Dimension, wallet: WalletLike
) -> credit_transaction_pb2.CreditTransaction:
    """One credit transaction, not expanded. Ids are empty where nothing was written."""
    written = row.posting != 0
    created_at = clock.text(row.created_at)
    message = credit_transaction_pb2.CreditTransaction(
        id=ids.compose("ct", row.wallet, row.sequence) if written else "",
        customer_id=wallet.customer_id,
        meter_id=dimension.meter_id,
        subscription_id=dimension.subscription_id,
        meter_event_id=posting.meter_event_id,
        type=_TYPE_WORDS[row.type],
        amount=money.text(row.amount, wallet.scale),
        running_balance=money.text(row.running_balance, wallet.scale),
        description=posting.description,
        livemode=wallet.livemode,
        created_at=created_at,
        updated_at=created_at,
        metadata=posting.metadata,
        wallet_id=wallet.id,
        posting_id=ids.compose("pst", row.wallet, row.posting) if written else "",
        sequence=row.sequence,
        kind=_KIND_WORDS[row.kind],
        currency_id=wallet.currency,
        effective_at=created_at if row.effective_at is None else clock.text(row.effective_at),
        note=posting.note,
    )
    if row.grant is not None and (written or row.grant != row.sequence):
        message.credit_grant_id = ids.compose("cg", row.wallet, row.grant)
    if shown := source(posting):
        message.source.CopyFrom(credit_transaction_pb2.TransactionSource(**shown))
    return message


def wallet(view: WalletView) -> wallet_service_pb2.Wallet:
    """A wallet."""
    scale = view.scale
    return wallet_service_pb2.Wallet(
        id=view.id,
        customer_id=view.customer_id,
        currency=view.currency,
        livemode=view.livemode,
        status=view.status.word,
        balance=money.text(view.balance, scale),
        held=money.text(view.held, scale),
        pending=money.text(view.pending, scale),
        available=money.text(view.available, scale),
        overdraft_limit=money.text(view.overdraft_limit, scale),
        overdraft_used=money.text(view.overdraft_used, scale),
        sequence=view.sequence,
        metadata=view.metadata,
        created_at=clock.text(view.created_at),
        updated_at=clock.text(view.updated_at),
    )


def posted(answer: Posted) -> wallet_service_pb2.Posting:
    """What a posting answers."""
    posting, view = answer.posting, answer.wallet
    return wallet_service_pb2.Posting(
        posting_id=ids.compose("pst", posting.wallet, posting.number) if posting.number else "",
        replayed=answer.replayed,
        validate_only=answer.validate_only,
        transactions=[transaction(row, posting, answer.dimension, view) for row in posting.rows],
        wallet=wallet(view),
    )


def posting_error(refusal: Refusal) -> wallet_service_pb2.PostingError:
    """A refusal as one answer among others."""
    return wallet_service_pb2.PostingError(
        type=refusal.kind.error_type,
        message=message(refusal),
        code=refusal.reason,
        param=refusal.param,
        metadata=dict(refusal.metadata),
    )
