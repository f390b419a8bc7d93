"""Messages of meters to values and back, in the shapes of Payment Kit."""

from dataclasses import dataclass
from typing import Any

from credit.v1 import payment_kit_service_pb2 as pb

from creditledger.api import fields
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.registry import Currency, Meter
from creditledger.surfaces.payment_kit import shapes

#: In which the events of a meter cost whose maker does not say.
CURRENCY_DEFAULT = "CREDIT"


@dataclass(frozen=True, slots=True)
class NewMeter:
    """A meter to be registered; its time is filled in by the service."""

    meter: Meter
    livemode: bool | None


def new_meter(request: pb.PaymentKitServiceCreateMeterRequest) -> NewMeter:
    """Raises InvalidField, MissingField."""
    if request.HasField("aggregation_method"):
        fields.word(request.aggregation_method, {"sum": "sum"}, field="aggregation_method")
    currency = fields.optional_currency(request, "currency_id", field="currency_id")
    meter = Meter(
        id=ids.random("mtr"),
        name=fields.name(request.name),
        event_name=fields.name(request.event_name, field="event_name"),
        unit=fields.name(request.unit, field="unit"),
        currency=currency or CURRENCY_DEFAULT,
        metadata=fields.metadata(request.metadata),
        created_at=0,
        description=fields.optional_text(
            request, "description", field="description", most=fields.TEXT_MAX
        ),
    )
    return NewMeter(meter, fields.livemode(request))


def any_meter(request: pb.PaymentKitServiceGetMeterRequest) -> shapes.IdRequest:
    """A meter by its id or its event's name."""
    return shapes.IdRequest(fields.name(request.id, field="id"), fields.livemode(request))


def named_meter(request: Any) -> shapes.IdRequest:
    """A meter by its id."""
    id_ = fields.reference("mtr", request.id, field="id")
    return shapes.IdRequest(id_, fields.livemode(request))


@dataclass(frozen=True, slots=True)
class MeterList:
    """The meters to be listed."""

    page: shapes.NumberedPage
    event_name: str | None
    q: str | None
    livemode: bool | None


def meter_list(request: pb.PaymentKitServiceListMetersRequest) -> MeterList:
    """Raises InvalidField."""
    return MeterList(
        shapes.page(request),
        fields.optional_text(request, "event_name", field="event_name", most=fields.NAME_MAX),
        fields.optional_text(request, "q", field="q", most=fields.QUERY_MAX),
        fields.livemode(request),
    )


@dataclass(frozen=True, slots=True)
class MeterChange:
    """A change of a meter: the new values by field."""

    meter: shapes.IdRequest
    changed: dict[str, Any]


def meter_change(request: pb.PaymentKitServiceUpdateMeterRequest) -> MeterChange:
    """Raises InvalidField, MissingField."""
    changed: dict[str, Any] = {}
    for name in ("name", "unit"):
        if request.HasField(name):
            changed[name] = fields.name(getattr(request, name), field=name)
    if request.HasField("description"):
        changed["description"] = fields.optional_text(
            request, "description", field="description", most=fields.TEXT_MAX
        )
    if request.HasField("status"):
        words = {"active": True, "inactive": False}
        changed["active"] = fields.word(request.status, words, field="status")
    if request.metadata:
        changed["metadata"] = fields.metadata(request.metadata)
    return MeterChange(named_meter(request), changed)


def meter(one: Meter, currency: Currency | None, livemode: bool) -> pb.CreditMeter:
    """A meter as it is shown to a key of this mode."""
    return pb.CreditMeter(
        id=one.id,
        object="meter",
        name=one.name,
        event_name=one.event_name,
        aggregation_method="sum",
        status="active" if one.active else "inactive",
        unit=one.unit,
        description=one.description,
        currency_id=one.currency,
        livemode=livemode,
        metadata=one.metadata,
        created_at=time.text(one.created_at),
        updated_at=time.text(one.updated_at or one.created_at),
        payment_currency=None if currency is None else shapes.shown_currency(currency),
        created_via=shapes.CREATED_VIA,
    )
