"""Messages of grants to values and back, in the shapes of Payment Kit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from credit.v1 import payment_kit_service_pb2 as pb
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from creditledger.api import fields
from creditledger.api.messages import posting as posting_messages
from creditledger.api.messages.grant import GRANT_STATUSES
from creditledger.domain import clock as time
from creditledger.domain import ids, money, wallet_moves
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.domain.model import (
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    Category,
    GrantScope,
    GrantStatus,
    Kind,
    Status,
    Wallet,
    repayments,
    standing,
)
from creditledger.domain.operations import GiveGrant
from creditledger.domain.registry import Currency
from creditledger.domain.views import GivenGrant
from creditledger.store.read.grants import Given
from creditledger.surfaces.payment_kit import shapes

#: The kind of the posting by which a grant is given.
_KINDS = {Category.PAID: Kind.TOPUP, Category.PROMOTIONAL: Kind.ADMIN_CREDIT}

#: What a request calls the attributes of what it asks for.
FIELD_NAMES = {
    "begins_at": "effective_at",
    "currency": "currency_id",
    "scope.meter_ids": "applicability_config.scope.prices",
}

#: The longest window of stats.
STATS_MS_MAX = 366 * time.DAY
#: How far days may be ahead of UTC, or behind.
MINUTES_MAX = 1_440
#: Meters, or products, that a grant may be limited to.
PRICES_MAX = 20


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A grant to be given, and its customer."""

    customer_id: str
    currency: str
    operation: GiveGrant
    metadata: dict[str, str]
    livemode: bool | None
    key: str | None


def new_grant(request: pb.PaymentKitServiceCreateGrantRequest) -> NewGrant:
    """Raises InvalidField, MissingField."""
    amount = fields.amount(request.amount, field="amount")
    category = fields.word(
        fields.required(request.category, field="category"),
        posting_messages.CATEGORIES,
        field="category",
    )
    priority = fields.optional(request, "priority", PRIORITY_DEFAULT)
    return NewGrant(
        customer_id=fields.reference("cus", request.customer_id, field="customer_id"),
        currency=fields.currency(request.currency_id, field="currency_id"),
        operation=GiveGrant(
            amount=amount,
            kind=_KINDS[category],
            category=category,
            priority=fields.number(priority, least=0, most=PRIORITY_MAX, field="priority"),
            name=fields.optional_text(request, "name", field="name", most=fields.NAME_MAX),
            begins_at=fields.seconds(request, "effective_at", field="effective_at") or None,
            expires_at=fields.seconds(request, "expires_at", field="expires_at") or None,
            source={},
            scope=_scope(request.applicability_config.scope),
        ),
        metadata=fields.metadata(request.metadata),
        livemode=fields.livemode(request),
        key=fields.optional_key(request),
    )


def _scope(scope: pb.ApplicabilityScope) -> GrantScope | None:
    """Prices are meters or products: of one sort, for a scope asks for one of each sort it has."""
    if scope.HasField("price_type"):
        field = "applicability_config.scope.price_type"
        raise InvalidField(f"{field} is not served: name the prices", param=field)
    field = "applicability_config.scope.prices"
    prices = sorted({fields.required(one, field=field) for one in scope.prices})
    for one in prices:
        fields.text(one, field=field, most=fields.NAME_MAX)
    if len(prices) > PRICES_MAX:
        raise InvalidField(f"{field} has more than {PRICES_MAX} values", param=field)
    meters = [one for one in prices if ids.is_chosen("mtr", one)]
    if meters and len(meters) < len(prices):
        raise InvalidField(f"{field} names both meters and products", param=field)
    if meters:
        return GrantScope(meter_ids=tuple(meters))
    return GrantScope(product_ids=tuple(prices)) if prices else None


def are_alike(one: pb.PaymentKitGrant, other: pb.PaymentKitGrant, asked: GiveGrant) -> bool:
    """Whether two grants of one wallet would be given by the same request."""
    same = ["amount", "name", "category", "priority", "expires_at", "applicability_config"]
    if asked.begins_at is not None:  # else it is the moment of each
        same.append("effective_at")
    return one.metadata == other.metadata and all(
        getattr(one, field) == getattr(other, field) for field in same
    )


@dataclass(frozen=True, slots=True)
class Holders:
    """The filters of a list of grant holders."""

    page: shapes.NumberedPage
    currency: str
    livemode: bool | None


def holders(request: pb.PaymentKitServiceListGrantHoldersRequest) -> Holders:
    """Raises InvalidField, MissingField."""
    return Holders(
        shapes.page(request),
        fields.currency(request.currency_id, field="currency_id"),
        fields.livemode(request),
    )


@dataclass(frozen=True, slots=True)
class GrantStats:
    """The grants that a request adds up."""

    currency: str
    category: Category | None
    start: int
    end: int  #: Exclusive: the whole second named is in.
    ahead: int  #: Of UTC, in milliseconds.
    livemode: bool | None


def grant_stats(request: pb.PaymentKitServiceGetGrantStatsRequest) -> GrantStats:
    """Raises InvalidField, MissingField."""
    currency = fields.currency(request.currency_id, field="currency_id")
    start = fields.seconds(request, "start_date", field="start_date")
    end = fields.seconds(request, "end_date", field="end_date")
    if start is None or end is None:
        raise MissingField("start_date" if start is None else "end_date")
    if not 0 <= end - start <= STATS_MS_MAX:
        raise InvalidField(
            "end_date must be no earlier than start_date, and at most 366 days later",
            param="end_date",
        )
    category = None
    if request.HasField("category"):
        category = fields.word(request.category, posting_messages.CATEGORIES, field="category")
    ahead = fields.number(
        fields.optional(request, "timezone_offset", 0),
        least=-MINUTES_MAX,
        most=MINUTES_MAX,
        field="timezone_offset",
    )
    return GrantStats(
        currency,
        category,
        start,
        end + time.SECOND,
        ahead * time.MINUTE,
        fields.livemode(request),
    )


def stats(days: Sequence[Given], currency: Currency) -> pb.PaymentKitServiceGetGrantStatsResponse:
    """Grants added up, in all and by day."""

    def sums(of: Sequence[Given]) -> dict[str, Any]:
        granted, left = sum(one.granted for one in of), sum(one.remaining for one in of)
        count = sum(one.grant_count for one in of)
        return {
            "currency_id": currency.code,
            "grant_count": fields.answered(count, most=fields.INT32_MAX, field="grant_count"),
            "total_granted": money.text(granted, currency.scale),
            "total_remaining": money.text(left, currency.scale),
            "total_consumed": money.text(granted - left, currency.scale),
        }

    return pb.PaymentKitServiceGetGrantStatsResponse(
        stats=pb.GrantTotals(currency=shapes.shown_currency(currency), **sums(days)),
        daily_stats=[
            pb.GrantDay(date=time.text(one.day * time.DAY)[:10], **sums([one])) for one in days
        ],
    )


def named_grant(request: pb.PaymentKitServiceGetGrantRequest) -> shapes.IdRequest:
    """A grant by its id."""
    id_ = fields.made("cg", request.id, field="id")
    return shapes.IdRequest(id_, fields.livemode(request))


@dataclass(frozen=True, slots=True)
class GrantList:
    """The grants to be listed."""

    page: shapes.NumberedPage
    customer_id: str | None
    currency: str | None
    statuses: tuple[GrantStatus, ...]  #: Empty: all.
    q: str | None
    livemode: bool | None


def grant_list(request: pb.PaymentKitServiceListGrantsRequest) -> GrantList:
    """Raises InvalidField."""
    statuses: list[GrantStatus] = []
    if request.HasField("status"):
        words = request.status.split(",")
        statuses = [fields.word(one, GRANT_STATUSES, field="status") for one in words]
    return GrantList(
        shapes.page(request),
        fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        fields.optional_currency(request, "currency_id", field="currency_id"),
        tuple(statuses),
        fields.optional_text(request, "q", field="q", most=fields.QUERY_MAX),
        fields.livemode(request),
    )


@dataclass(frozen=True, slots=True)
class GrantUpdate:
    """A change of a grant."""

    id: str
    metadata: dict[str, str]
    expired: bool
    livemode: bool | None
    key: str | None


def grant_update(request: pb.PaymentKitServiceUpdateGrantRequest) -> GrantUpdate:
    """Raises InvalidField, MissingField."""
    id_ = fields.made("cg", request.id, field="id")
    if not request.metadata and not request.expired:
        raise MissingField("metadata")
    return GrantUpdate(
        id_,
        fields.metadata(request.metadata),
        request.expired,
        fields.livemode(request),
        fields.optional_key(request),
    )


@dataclass(frozen=True, slots=True)
class Whose:
    """The customer of a summary of grants."""

    customer_id: str | None
    livemode: bool | None


def whose(request: pb.PaymentKitServiceGetGrantSummaryRequest) -> Whose:
    """Raises InvalidField."""
    if request.HasField("subscription_id"):
        raise InvalidField(
            "subscription_id is not served: grants belong to no subscription",
            param="subscription_id",
        )
    return Whose(
        fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        fields.livemode(request),
    )


@dataclass(frozen=True, slots=True)
class Availability:
    """The amounts that a wallet is asked to cover."""

    customer_id: str | None
    currency: str
    pending: str
    most_unpaid: str
    livemode: bool | None


def availability(request: pb.PaymentKitServiceGetGrantAvailabilityRequest) -> Availability:
    """Raises InvalidField, MissingField."""
    pending = fields.optional(request, "pending_amount", "0")
    most_unpaid = fields.optional(request, "max_pending_amount", "0")
    if request.HasField("max_recharge_times"):
        fields.number(
            request.max_recharge_times, least=0, most=fields.INT32_MAX, field="max_recharge_times"
        )
    return Availability(
        fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        fields.currency(request.currency_id, field="currency_id"),
        fields.limit(pending, field="pending_amount"),
        fields.limit(most_unpaid, field="max_pending_amount"),
        fields.livemode(request),
    )


def grant(one: GivenGrant, currency: Currency) -> pb.PaymentKitGrant:
    """A grant, as of its wallet's time."""
    given, scale = one.grant, one.wallet.scale
    name, email = one.customer

    def seconds(at: int | None) -> int | None:
        return None if at is None else at // time.SECOND

    config = None
    if given.scope is not None:
        # Of a scope that was given otherwise, all that it names.
        prices = [*given.scope.meter_ids, *given.scope.product_ids, *given.scope.categories]
        config = pb.ApplicabilityConfig(scope=pb.ApplicabilityScope(prices=prices))
    return pb.PaymentKitGrant(
        id=ids.compose("cg", one.wallet_number, given.number),
        object="credit_grant",
        amount=money.text(given.amount, scale),
        remaining_amount=money.text(
            given.held if given.has_ended(one.now) else given.remaining, scale
        ),
        currency_id=one.wallet.currency,
        customer_id=one.wallet.customer_id,
        name=given.name,
        category=given.category.word,
        priority=given.priority,
        effective_at=given.effective_at // time.SECOND,
        expires_at=seconds(given.expires_at),
        voided_at=seconds(given.voided_at),
        status=given.status(one.now).word,
        applicability_config=config,
        livemode=one.wallet.livemode,
        metadata=one.metadata,
        created_at=time.text(given.created_at),
        updated_at=time.text(one.updated_at),
        wallet_id=one.wallet.id,
        payment_currency=shapes.shown_currency(currency),
        customer=pb.PaymentKitCustomer(id=one.wallet.customer_id, name=name, email=email),
        created_via=shapes.CREATED_VIA,
        created_by=one.posting.source.get("actor"),
    )


def summary(wallets: list[Wallet], currencies: Mapping[str, Currency], clock: int) -> Struct:
    """Sums of the wallets' open grants, by currency."""
    answer = Struct()
    for wallet in wallets:
        now = wallet.time(clock)
        wallet_moves.repay(wallet, repayments(wallet, now))
        opened = [one for one in wallet.burning if one.is_open(now)]
        if opened:
            shown = shapes.shown_currency(currencies[wallet.currency])
            total, left = sum(one.amount for one in opened), sum(one.remaining for one in opened)
            answer[wallet.currency] = {
                "paymentCurrency": MessageToDict(shown, always_print_fields_with_no_presence=True),
                "totalAmount": money.text(total, wallet.scale),
                "remainingAmount": money.text(left, wallet.scale),
                "grantCount": len(opened),
            }
    return answer


def why_not(asked: Availability, wallet: Wallet | None, scale: int, clock: int) -> str | None:
    """Why the wallet cannot go on paying; None if it can. Raises InvalidField for the digits."""
    pending = money.parse(asked.pending, scale, field="pending_amount")
    most_unpaid = money.parse(asked.most_unpaid, scale, field="max_pending_amount")
    if wallet is None:
        return "no_wallet"
    if wallet.status is not Status.ACTIVE:
        return f"wallet_{wallet.status.word}"
    room = standing(wallet, clock).available + wallet.overdraft_limit + most_unpaid
    owed = pending + wallet.unpaid_amount
    return None if room > 0 and room >= owed else "insufficient_credit"
