"""Messages of webhooks to values and back.

An event's body is a message of the contract as JSON, printed as Envoy prints answers over REST.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from credit.v1 import webhook_service_pb2 as pb
from google.protobuf import json_format

from creditledger.api import fields
from creditledger.api.messages import grant as grant_messages
from creditledger.api.messages import hold as hold_messages
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock, ids, money, webhook_addresses
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.domain.views import GivenGrant, HeldCredit, Transaction, WalletPlace
from creditledger.domain.webhook_events import (
    EXPIRING_DAYS_MAX,
    OF_BALANCE,
    THRESHOLDS_MAX,
    Crossing,
    DeliveryStatus,
    Endpoint,
    EventType,
    Threshold,
)
from creditledger.store.webhooks.endpoints import Delivery

EVENT_TYPES = {one.word: one for one in EventType}
STATUSES = {one.word: one for one in DeliveryStatus}
#: The most values that `events` of a request may have, repetitions included.
_EVENTS_MAX = len(EVENT_TYPES)

# --- requests -------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A threshold of a request. The service, which reads the currency, checks the digits."""

    amount: str | None
    currency: str | None
    percent: int | None


def url(given: str, *, allow_private: bool) -> str:
    """The URL to which events are sent."""
    return webhook_addresses.check(
        fields.required(given, field="url"), allow_private=allow_private, field="url"
    )


def events(given: Sequence[str]) -> tuple[EventType, ...]:
    """Types of events, sorted, each once."""
    if len(given) > _EVENTS_MAX:
        raise InvalidField(f"events has {len(given)} values, at most {_EVENTS_MAX}", param="events")
    found = {fields.word(one, EVENT_TYPES, field=f"events[{i}]") for i, one in enumerate(given)}
    return tuple(sorted(found))


def thresholds(given: Sequence[pb.WebhookThreshold]) -> tuple[Line, ...]:
    """Thresholds: each is an amount with its currency, or a percentage."""
    if len(given) > THRESHOLDS_MAX:
        raise InvalidField(
            f"thresholds has {len(given)} values, at most {THRESHOLDS_MAX}", param="thresholds"
        )
    return tuple(_line(one, f"thresholds[{i}]") for i, one in enumerate(given))


def _line(one: pb.WebhookThreshold, field: str) -> Line:
    has = one.HasField
    if has("percent"):
        for other in ("amount", "currency_id"):
            if has(other):
                raise InvalidField(f"{field}: percent stands alone", param=f"{field}.{other}")
        percent = fields.number(one.percent, least=1, most=99, field=f"{field}.percent")
        return Line(None, None, percent)
    amount = fields.required(one.amount, field=f"{field}.amount")
    amount = fields.limit(amount, field=f"{field}.amount")
    return Line(amount, fields.currency(one.currency_id, field=f"{field}.currency_id"), None)


def require_thresholds(types: Sequence[EventType], count: int) -> None:
    """Raises MissingField for balance events without a threshold."""
    if OF_BALANCE.intersection(types) and not count:
        raise MissingField("thresholds")


def expiring_days(
    request: pb.CreateWebhookEndpointRequest | pb.UpdateWebhookEndpointRequest,
) -> int | None:
    """How many days before a grant's end the endpoint hears of it."""
    if not request.HasField("expiring_days"):
        return None
    return fields.number(
        request.expiring_days, least=1, most=EXPIRING_DAYS_MAX, field="expiring_days"
    )


# --- answers --------------------------------------------------------------------------------------


def _moment(at: int | None) -> str | None:
    return None if at is None else clock.text(at)


def endpoint(
    one: Endpoint, scales: dict[str, int], now: int, masked_secret: str
) -> pb.WebhookEndpoint:
    """An endpoint at `now`; `scales` of the currencies of its thresholds."""
    until = one.previous_until if len(one.secrets(now)) > 1 else None
    return pb.WebhookEndpoint(
        id=one.id,
        url=one.url,
        description=one.description,
        customer_id=one.customer_id,
        livemode=one.livemode,
        events=[type_.word for type_ in one.events],
        thresholds=[
            threshold(line, scales[line.currency] if line.currency else 0)
            for line in one.thresholds
        ],
        expiring_days=one.expiring_days,
        enabled=one.enabled,
        mask=masked_secret,
        previous_secret_until=_moment(until),
        created_at=clock.text(one.created_at),
        updated_at=clock.text(one.updated_at),
    )


def threshold(one: Threshold, scale: int) -> pb.WebhookThreshold:
    """A threshold, in a currency of that scale."""
    if one.percent is not None:
        return pb.WebhookThreshold(percent=one.percent)
    assert one.amount is not None
    return pb.WebhookThreshold(amount=money.text(one.amount, scale), currency_id=one.currency)


def delivery(one: Delivery, *, whole: bool = False) -> pb.WebhookDelivery:
    """The state of an event's delivery; `whole`: with the event's body."""
    pending = one.status is DeliveryStatus.PENDING
    found = pb.WebhookDelivery(
        id=ids.compose("evt", one.wallet, one.number),
        webhook_endpoint_id=one.endpoint_id,
        type=one.type.word,
        status=one.status.word,
        attempts=one.attempts,
        created_at=clock.text(one.created_at),
        next_attempt_at=clock.text(one.next_attempt_at) if pending else None,
        last_attempt_at=_moment(one.last_attempt_at),
        last_status=one.last_status,
        last_error=one.last_error,
        delivered_at=_moment(one.delivered_at),
    )
    if whole:
        json_format.Parse(one.body, found.event)
    return found


# --- bodies of events -----------------------------------------------------------------------------


def _body(
    id_: str, type_: EventType, moment: int, livemode: bool, data: pb.WebhookEventData
) -> str:
    event = pb.WebhookEvent(
        id=id_, type=type_.word, created_at=clock.text(moment), livemode=livemode, data=data
    )
    # envoy.yaml prints answers in the same way.
    found = json_format.MessageToDict(event, always_print_fields_with_no_presence=True)
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def created(id_: str, one: Transaction) -> str:
    """The event of a row that was written."""
    transaction = posting_messages.transaction(one.row, one.posting, one.dimension, one.wallet)
    data = pb.WebhookEventData(transaction=transaction)
    type_, moment = EventType.TRANSACTION_CREATED, one.row.created_at
    return _body(id_, type_, moment, one.wallet.livemode, data)


def crossed(id_: str, one: Crossing, number: int, wallet: WalletPlace, moment: int) -> str:
    """The event of a balance that crossed a threshold; `number`: the wallet's number."""
    type_ = EventType.BALANCE_LOW if one.low else EventType.BALANCE_RECOVERED
    balance = pb.WebhookBalance(
        wallet_id=wallet.id,
        customer_id=wallet.customer_id,
        currency_id=wallet.currency,
        balance=money.text(one.balance, wallet.scale),
        threshold=threshold(one.threshold, wallet.scale),
        transaction_id=ids.compose("ct", number, one.sequence),
    )
    return _body(id_, type_, moment, wallet.livemode, pb.WebhookEventData(balance=balance))


def of_grant(id_: str, type_: EventType, one: GivenGrant, moment: int) -> str:
    """An event about a grant."""
    data = pb.WebhookEventData(credit_grant=grant_messages.grant(one))
    return _body(id_, type_, moment, one.wallet.livemode, data)


def expired(id_: str, one: HeldCredit, number: int) -> str:
    """The event of a hold whose deadline has passed; `number`: the wallet's number."""
    hold, wallet, dimension, annotation = one
    shown = hold_messages.hold(hold, wallet, number, dimension, annotation, hold.deadline)
    data = pb.WebhookEventData(hold=shown)
    return _body(id_, EventType.HOLD_EXPIRED, hold.deadline, wallet.livemode, data)
