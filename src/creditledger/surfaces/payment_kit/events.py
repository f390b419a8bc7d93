"""Messages of meter events to values and back, in the shapes of Payment Kit."""

from dataclasses import dataclass
from typing import Any

from credit.v1 import payment_kit_service_pb2 as pb

from creditledger.api import fields
from creditledger.domain import clock as time
from creditledger.domain import ids, money
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.store.read.meter_events import EventBucket, Reported
from creditledger.surfaces.payment_kit import shapes

#: What a request calls the attributes of the event that it reports.
FIELD_NAMES = {
    "amount": "payload.value",
    "customer_id": "payload.customer_id",
    "effective_at": "timestamp",
    "idempotency_key": "identifier",
    "meter_id": "event_name",
    "subscription_id": "payload.subscription_id",
}
#: Of the sums by time: how long each is.
LENGTHS = {"minute": time.MINUTE, "hour": time.HOUR, "day": time.DAY}
BUCKETS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be reported."""

    event_name: str
    customer_id: str
    value: str
    subscription_id: str | None
    identifier: str
    timestamp: int | None
    metadata: dict[str, str]
    livemode: bool | None


def new_event(request: pb.PaymentKitServiceCreateMeterEventRequest) -> NewEvent:
    """Raises InvalidField, MissingField."""
    if not request.HasField("payload"):
        raise MissingField("payload")
    payload = request.payload
    return NewEvent(
        event_name=fields.name(request.event_name, field="event_name"),
        customer_id=fields.reference("cus", payload.customer_id, field="payload.customer_id"),
        value=fields.amount(payload.value, field="payload.value"),
        subscription_id=fields.optional_reference(
            "sub", payload, "subscription_id", field="payload.subscription_id"
        ),
        identifier=fields.idempotency_key(request.identifier, field="identifier"),
        timestamp=fields.seconds(request, "timestamp", field="timestamp"),
        metadata=fields.metadata(request.metadata),
        livemode=fields.livemode(request),
    )


def named_event(request: pb.PaymentKitServiceGetMeterEventRequest) -> shapes.IdRequest:
    """An event by its id."""
    id_ = fields.made("me", request.id, field="id")
    return shapes.IdRequest(id_, fields.livemode(request))


@dataclass(frozen=True, slots=True)
class Cancellation:
    """An event to be canceled, and under which key."""

    id: str
    key: str
    livemode: bool | None


def cancellation(request: pb.PaymentKitServiceCancelMeterEventRequest) -> Cancellation:
    """Raises InvalidField, MissingField."""
    id_ = fields.made("me", request.id, field="id")
    key = f"cancel {id_}"
    if request.HasField("idempotency_key"):
        key = fields.idempotency_key(request.idempotency_key)
    return Cancellation(id_, key, fields.livemode(request))


@dataclass(frozen=True, slots=True)
class EventList:
    """The events to be listed."""

    page: shapes.NumberedPage
    event_name: str | None
    meter_id: str | None
    customer_id: str | None
    start: int | None
    end: int | None  #: Exclusive: the whole second named is in.
    q: str | None
    livemode: bool | None


def event_list(request: pb.PaymentKitServiceListMeterEventsRequest) -> EventList:
    """Raises InvalidField."""
    start, end = _window(request)
    return EventList(
        shapes.page(request),
        fields.optional_text(request, "event_name", field="event_name", most=fields.NAME_MAX),
        fields.optional_reference("mtr", request, "meter_id", field="meter_id"),
        fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        start,
        end,
        fields.optional_text(request, "q", field="q", most=fields.QUERY_MAX),
        fields.livemode(request),
    )


def _window(request: Any) -> tuple[int | None, int | None]:
    start = fields.seconds(request, "start", field="start")
    end = fields.seconds(request, "end", field="end")
    if start is not None and end is not None and start > end:
        raise InvalidField("start must not be after end", param="start")
    return start, None if end is None else end + time.SECOND


@dataclass(frozen=True, slots=True)
class Stats:
    """The events of a meter to be added up."""

    meter_id: str
    customer_id: str | None
    start: int
    end: int  #: Exclusive: the whole second named is in.
    granularity: str
    livemode: bool | None


def stats(request: pb.PaymentKitServiceGetMeterEventStatsRequest) -> Stats:
    """Raises InvalidField, MissingField."""
    meter_id = fields.reference("mtr", request.meter_id, field="meter_id")
    for name in ("start", "end"):
        if not request.HasField(name):
            raise MissingField(name)
    start, end = _window(request)
    assert start is not None
    assert end is not None
    granularity = fields.optional(request, "granularity", "day")
    length = fields.word(granularity, LENGTHS, field="granularity")
    if end - start > BUCKETS_MAX * length:
        raise InvalidField(
            f"the window holds more than {BUCKETS_MAX} times a {granularity}", param="granularity"
        )
    return Stats(
        meter_id,
        fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        start,
        end,
        granularity,
        fields.livemode(request),
    )


def bucket(one: EventBucket, granularity: str, scale: int) -> pb.MeterEventBucket:
    """The sums of a minute, an hour or a day."""
    moment = time.text(one.begins)
    return pb.MeterEventBucket(
        date=moment[: len("2026-01-31" if granularity == "day" else "2026-01-31T08:15")],
        timestamp=moment,
        event_count=fields.answered(one.events, most=fields.INT32_MAX, field="event_count"),
        total_value=money.text(one.value, scale),
    )


@dataclass(frozen=True, slots=True)
class Owed:
    """The filters of a pending amount."""

    subscription_id: str | None
    customer_id: str | None
    currency: str | None
    livemode: bool | None


def owed(request: pb.PaymentKitServiceGetPendingAmountRequest) -> Owed:
    """Raises InvalidField."""
    reference = fields.optional_reference
    return Owed(
        reference("sub", request, "subscription_id", field="subscription_id"),
        reference("cus", request, "customer_id", field="customer_id"),
        fields.optional_currency(request, "currency_id", field="currency_id"),
        fields.livemode(request),
    )


def event(found: Reported) -> pb.CreditMeterEvent:
    """An event as it is now."""
    one, wallet = found.event, found.wallet
    meter_name, event_name, unit = found.meter
    name, email = found.customer
    return pb.CreditMeterEvent(
        id=ids.compose("me", found.wallet_number, one.number),
        object="meter_event",
        event_name=event_name,
        payload=pb.MeterEventPayload(
            customer_id=wallet.customer_id,
            value=money.text(one.value, wallet.scale),
            subscription_id=one.subscription_id,
        ),
        identifier=one.identifier,
        timestamp=one.happened_at // time.SECOND,
        status=one.status,
        credit_consumed=money.text(one.consumed, wallet.scale),
        credit_pending=money.text(one.unpaid, wallet.scale),
        processed_at=None if one.paid_at is None else one.paid_at // time.SECOND,
        livemode=wallet.livemode,
        metadata=found.metadata,
        created_at=time.text(one.created_at),
        updated_at=time.text(one.updated_at),
        meter_id=one.meter_id,
        wallet_id=wallet.id,
        posting_id=ids.compose("pst", found.wallet_number, one.number),
        customer=pb.MeterEventCustomer(id=wallet.customer_id, name=name, email=email),
        meter=pb.MeterEventMeter(
            id=one.meter_id, name=meter_name, event_name=event_name, unit=unit
        ),
        payment_currency=shapes.shown_currency(found.currency),
        created_via=shapes.CREATED_VIA,
    )
