"""WebhookService: where events are sent, and how the sending went."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from credit.v1 import webhook_service_pb2 as pb
from credit.v1 import webhook_service_pb2_grpc
from google.protobuf import json_format
from sqlalchemy import Connection

from creditledger.api import fields, pages
from creditledger.api.auth import Caller, Callers
from creditledger.api.field_names import renamed
from creditledger.api.messages import webhook as webhook_messages
from creditledger.api.rpc import Service, current_intent, rpc
from creditledger.domain import clock as time
from creditledger.domain import ids, money
from creditledger.domain.errors import MissingField, NotFound, echo
from creditledger.domain.registry import Scope
from creditledger.domain.webhook_addresses import URL_MAX
from creditledger.domain.webhook_events import (
    EXPIRING_DAYS,
    OVERLAP_MS,
    OVERLAP_MS_MAX,
    DeliveryStatus,
    Endpoint,
    EventType,
    Threshold,
    mask,
    new_secret,
)
from creditledger.store import Store, change_keys
from creditledger.store.change_keys import Count, Kept
from creditledger.store.registry import records
from creditledger.store.sealing import CannotUnseal, Seal
from creditledger.store.webhooks import endpoints

#: Deliveries looked at in one transaction as many are sent again.
REPLAY_ROWS = 1_000
#: Endpoints whose secrets are sealed anew in one transaction.
SEAL_ROWS = 500


@dataclass(frozen=True, slots=True)
class _NewEndpoint:
    url: str
    description: str | None
    customer_id: str | None
    livemode: bool | None
    events: tuple[EventType, ...]
    thresholds: tuple[webhook_messages.Line, ...]
    expiring_days: int | None


@dataclass(frozen=True, slots=True)
class _EndpointChange:
    id: str
    url: str | None
    description: str | None
    events: tuple[EventType, ...]
    thresholds: tuple[webhook_messages.Line, ...]
    expiring_days: int | None
    enabled: bool | None


# What is allowed of a URL depends on a setting, so the service checks it.


def _new(request: pb.CreateWebhookEndpointRequest) -> _NewEndpoint:
    new = _NewEndpoint(
        url=fields.required(request.url, field="url"),
        description=fields.optional_text(request, "description", field="description"),
        customer_id=fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        livemode=fields.livemode(request),
        events=webhook_messages.events(request.events),
        thresholds=webhook_messages.thresholds(request.thresholds),
        expiring_days=webhook_messages.expiring_days(request),
    )
    if not new.events:
        raise MissingField("events")
    webhook_messages.require_thresholds(new.events, len(new.thresholds))
    return new


def _change(request: pb.UpdateWebhookEndpointRequest) -> _EndpointChange:
    return _EndpointChange(
        id=_id(request),
        url=fields.optional_text(request, "url", field="url", most=URL_MAX),
        description=fields.optional_text(request, "description", field="description"),
        events=webhook_messages.events(request.events),
        thresholds=webhook_messages.thresholds(request.thresholds),
        expiring_days=webhook_messages.expiring_days(request),
        enabled=fields.optional(request, "enabled", None),
    )


def _id(
    request: pb.GetWebhookEndpointRequest
    | pb.UpdateWebhookEndpointRequest
    | pb.DeleteWebhookEndpointRequest
    | pb.RotateWebhookSecretRequest
    | pb.ListWebhookDeliveriesRequest
    | pb.ReplayWebhookDeliveriesRequest,
) -> str:
    return fields.reference("whe", request.id, field="id")


def _delivery_id(request: pb.GetWebhookDeliveryRequest | pb.ReplayWebhookDeliveryRequest) -> str:
    return fields.made("evt", request.id, field="id")


def _nothing(_request: pb.SealWebhookSecretsRequest) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _EndpointList:
    page: pages.PageRequest
    livemode: bool | None
    customer_id: str | None


def _endpoint_list(request: pb.ListWebhookEndpointsRequest) -> _EndpointList:
    return _EndpointList(
        page=pages.asked(request),
        livemode=fields.livemode(request),
        customer_id=fields.optional_reference("cus", request, "customer_id", field="customer_id"),
    )


@dataclass(frozen=True, slots=True)
class _DeliveryList:
    id: str
    page: pages.PageRequest
    status: DeliveryStatus | None


def _status(
    request: pb.ListWebhookDeliveriesRequest | pb.ReplayWebhookDeliveriesRequest,
    allowed: dict[str, DeliveryStatus],
) -> DeliveryStatus | None:
    if not request.HasField("status"):
        return None
    return fields.word(request.status, allowed, field="status")


def _delivery_list(request: pb.ListWebhookDeliveriesRequest) -> _DeliveryList:
    return _DeliveryList(
        _id(request), pages.asked(request), _status(request, webhook_messages.STATUSES)
    )


def _rotation(request: pb.RotateWebhookSecretRequest) -> tuple[str, int]:
    overlap = OVERLAP_MS
    if request.HasField("overlap_seconds"):
        most = OVERLAP_MS_MAX // time.SECOND
        seconds = request.overlap_seconds
        overlap = fields.number(seconds, least=0, most=most, field="overlap_seconds") * time.SECOND
    return _id(request), overlap


@dataclass(frozen=True, slots=True)
class _Replay:
    id: str
    status: DeliveryStatus | None
    since: int | None


def _replay(request: pb.ReplayWebhookDeliveriesRequest) -> _Replay:
    done = {word: one for word, one in webhook_messages.STATUSES.items() if word != "pending"}
    wanted = _Replay(
        id=_id(request),
        status=_status(request, done),
        since=fields.optional_time(request, "since", field="since"),
    )
    if wanted.since is None and wanted.status is not DeliveryStatus.FAILED:
        raise MissingField("since")
    return wanted


class WebhookService(Service, webhook_service_pb2_grpc.WebhookServiceServicer):
    """Served to internal services and, to be read, to customers; over gRPC and over REST."""

    def __init__(
        self,
        *,
        store: Store,
        callers: Callers,
        clock: Callable[[], int],
        seal: Seal,
        allow_private: bool,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is told that there is something new to be made or sent."""
        super().__init__(store=store, callers=callers, clock=clock)
        self._seal = seal
        self._allow_private = allow_private
        self._on_change = on_change

    @rpc(_new, scope=Scope.SERVICE)
    async def CreateWebhookEndpoint(  # noqa: N802
        self, new: _NewEndpoint, caller: Caller
    ) -> pb.CreateWebhookEndpointResponse:
        """The endpoint and its secret, which only this answer holds: a replay has none.

        Two calls without an idempotency key make two.
        Raises ModeMismatch, InvalidField, NotFound for the customer and currencies, OutOfRange.
        """
        livemode = caller.mode(new.livemode)
        url = webhook_messages.url(new.url, allow_private=self._allow_private)
        now, secret = self._clock(), new_secret()

        def create(connection: Connection) -> pb.WebhookEndpoint:
            id_ = ids.random("whe")
            one = endpoints.create(
                connection,
                id_=id_,
                customer_id=new.customer_id,
                livemode=livemode,
                secret=self._seal.seal(secret, id_),
                now=now,
                terms=endpoints.columns(
                    url=url,
                    description=new.description,
                    events=new.events,
                    thresholds=_scaled(connection, new.thresholds),
                    expiring_days=new.expiring_days or EXPIRING_DAYS,
                ),
            )
            return self._message(connection, one, now)

        made = await self._once(create, self._again, _id_of)
        self._on_change()
        return pb.CreateWebhookEndpointResponse(
            webhook_endpoint=made.value, secret="" if made.replayed else secret
        )

    @rpc(_id, scope=Scope.CUSTOMER)
    async def GetWebhookEndpoint(  # noqa: N802
        self, id_: str, caller: Caller
    ) -> pb.WebhookEndpoint:
        """Raises NotFound."""
        return await self._show(await self._store.read(lambda c: _own(c, id_, caller)))

    @rpc(_endpoint_list, scope=Scope.CUSTOMER)
    async def ListWebhookEndpoints(  # noqa: N802
        self, wanted: _EndpointList, caller: Caller
    ) -> pb.ListWebhookEndpointsResponse:
        """Ordered by id. Raises ModeMismatch, NotFound for another customer's id."""
        livemode = wanted.livemode
        if caller.livemode is not None:
            livemode = caller.mode(livemode)
        customer_id = caller.own(wanted.customer_id)
        filters = ("webhook_endpoints", livemode, customer_id)
        after = wanted.page.after(filters)
        found = await self._store.read(
            lambda c: endpoints.endpoints(
                c, after, wanted.page.size, livemode=livemode, customer_id=customer_id
            )
        )
        page, token = pages.cut(found, wanted.page.size, filters, lambda one: [one.id])
        return pb.ListWebhookEndpointsResponse(
            webhook_endpoints=await self._shown(page, self._clock()), next_page_token=token
        )

    @rpc(_change, scope=Scope.SERVICE)
    async def UpdateWebhookEndpoint(  # noqa: N802
        self, wanted: _EndpointChange, caller: Caller
    ) -> pb.WebhookEndpoint:
        """Raises NotFound, InvalidField, MissingField for thresholds that its events need."""
        url, now = wanted.url, self._clock()
        if url is not None:
            webhook_messages.url(url, allow_private=self._allow_private)

        def change(connection: Connection) -> pb.WebhookEndpoint:
            one = _own(connection, wanted.id, caller)
            lines = wanted.thresholds or one.thresholds
            webhook_messages.require_thresholds(wanted.events or one.events, len(lines))
            terms = endpoints.columns(
                url=url,
                description=wanted.description,
                events=wanted.events,
                thresholds=_scaled(connection, wanted.thresholds),
                expiring_days=wanted.expiring_days,
            )
            after = endpoints.change(connection, one, terms, enabled=wanted.enabled, now=now)
            return self._message(connection, _there(after, wanted.id), now)

        made = await self._once(change, self._again, _id_of)
        self._on_change()
        return made.value

    @rpc(_id, scope=Scope.SERVICE)
    async def DeleteWebhookEndpoint(  # noqa: N802
        self, id_: str, caller: Caller
    ) -> pb.WebhookEndpoint:
        """The endpoint as it was. Raises NotFound."""
        now = self._clock()

        def delete(connection: Connection) -> pb.WebhookEndpoint:
            one = _own(connection, id_, caller)
            message = self._message(connection, one, now)
            endpoints.delete(connection, one.number, shown=_json(message), now=now)
            return message

        return (await self._once(delete, self._again, _id_of)).value

    @rpc(_rotation, scope=Scope.SERVICE)
    async def RotateWebhookSecret(  # noqa: N802
        self, wanted: tuple[str, int], caller: Caller
    ) -> pb.RotateWebhookSecretResponse:
        """The new secret, which only this answer holds: a replay has none. Raises NotFound."""
        id_, overlap_ms = wanted
        now, secret = self._clock(), new_secret()

        def rotate(connection: Connection) -> pb.WebhookEndpoint:
            one = _own(connection, id_, caller)
            sealed = self._seal.seal(secret, id_)
            after = endpoints.rotate(connection, one, secret=sealed, overlap_ms=overlap_ms, now=now)
            return self._message(connection, _there(after, id_), now)

        made = await self._once(rotate, self._again, _id_of)
        return pb.RotateWebhookSecretResponse(
            webhook_endpoint=made.value, secret="" if made.replayed else secret
        )

    @rpc(_nothing, scope=Scope.ADMIN, shared=True)
    async def SealWebhookSecrets(  # noqa: N802
        self, _wanted: None, _caller: Caller
    ) -> pb.SealWebhookSecretsResponse:
        """How many secrets the first key has sealed anew; one that was cut off may be asked again.

        Raises NotFound where the server has no key.
        """
        if not self._seal.seals:
            raise NotFound("this server has no key that seals secrets")
        intent, so_far = current_intent(self._clock()), Count(0, "")

        def work(connection: Connection, after: str) -> Count:
            return Count(
                *endpoints.seal_anew(connection, seal=self._seal, after=after, size=SEAL_ROWS)
            )

        while so_far.place is not None:
            so_far = await self._store.write(
                partial(change_keys.step, intent=intent, so_far=so_far, work=work)
            )
        return pb.SealWebhookSecretsResponse(sealed=so_far.done)

    @rpc(_delivery_list, scope=Scope.CUSTOMER)
    async def ListWebhookDeliveries(  # noqa: N802
        self, wanted: _DeliveryList, caller: Caller
    ) -> pb.ListWebhookDeliveriesResponse:
        """Newest first. Raises NotFound."""
        filters = ("webhook_deliveries", wanted.id, wanted.status)
        before, size = wanted.page.before(filters), wanted.page.size

        def read(connection: Connection) -> list[endpoints.Delivery]:
            one = _own(connection, wanted.id, caller)
            return endpoints.deliveries(connection, one.number, before, size, status=wanted.status)

        found = await self._store.read(read)
        page, token = pages.cut(found, size, filters, lambda one: [one.number])
        return pb.ListWebhookDeliveriesResponse(
            webhook_deliveries=map(webhook_messages.delivery, page), next_page_token=token
        )

    @rpc(_delivery_id, scope=Scope.CUSTOMER)
    async def GetWebhookDelivery(  # noqa: N802
        self, id_: str, caller: Caller
    ) -> pb.WebhookDelivery:
        """With what is sent. Raises NotFound."""
        found = await self._store.read(lambda c: _own_delivery(c, id_, caller))
        return webhook_messages.delivery(found, whole=True)

    @rpc(_delivery_id, scope=Scope.SERVICE)
    async def ReplayWebhookDelivery(  # noqa: N802
        self, id_: str, caller: Caller
    ) -> pb.WebhookDelivery:
        """The delivery, pending again. Raises NotFound."""
        now = self._clock()

        def replay(connection: Connection) -> pb.WebhookDelivery:
            found = _own_delivery(connection, id_, caller)
            endpoints.replay(connection, found.wallet, found.number, now=now)
            return webhook_messages.delivery(_own_delivery(connection, id_, caller))

        def again(connection: Connection, kept: Kept) -> pb.WebhookDelivery:
            try:
                return webhook_messages.delivery(_own_delivery(connection, id_, caller))
            except NotFound:
                # It has aged and gone, or its endpoint has.
                return json_format.Parse(kept.answer or "{}", pb.WebhookDelivery())

        made = await self._once(replay, again, _id_of, _json)
        self._on_change()
        return made.value

    @rpc(_replay, scope=Scope.SERVICE)
    async def ReplayWebhookDeliveries(  # noqa: N802
        self, wanted: _Replay, caller: Caller
    ) -> pb.ReplayWebhookDeliveriesResponse:
        """How many are sent again. One that was cut off may be asked again. Raises NotFound."""
        now = self._clock()
        intent, so_far = current_intent(now), Count(0, "0")

        def work(connection: Connection, after: str) -> Count:
            count, last = endpoints.replay_many(
                connection,
                endpoint_number=_own(connection, wanted.id, caller).number,
                status=wanted.status,
                since=wanted.since,
                after=int(after),
                size=REPLAY_ROWS,
                now=now,
            )
            return Count(count, None if last is None else str(last))

        while so_far.place is not None:
            so_far = await self._store.write(
                partial(change_keys.step, intent=intent, so_far=so_far, work=work)
            )
            self._on_change()
        return pb.ReplayWebhookDeliveriesResponse(replayed=so_far.done)

    async def _show(self, one: Endpoint) -> pb.WebhookEndpoint:
        return (await self._shown([one], self._clock()))[0]

    async def _shown(self, found: Sequence[Endpoint], now: int) -> list[pb.WebhookEndpoint]:
        codes = {line.currency for one in found for line in one.thresholds if line.currency}
        scales: dict[str, int] = {}
        if codes:
            scales = await self._store.read(
                lambda c: {code: records.scale(c, code) for code in codes}
            )
        return [webhook_messages.endpoint(one, scales, now, self._mask(one)) for one in found]

    def _message(self, connection: Connection, one: Endpoint, now: int) -> pb.WebhookEndpoint:
        codes = {line.currency for line in one.thresholds if line.currency}
        scales = {code: records.scale(connection, code) for code in codes}
        return webhook_messages.endpoint(one, scales, now, self._mask(one))

    def _again(self, connection: Connection, kept: Kept) -> pb.WebhookEndpoint:
        """The endpoint of a change that was made before, as it is now or was last."""
        one = endpoints.endpoint(connection, kept.id)
        if one is not None:
            return self._message(connection, one, self._clock())
        return json_format.Parse(
            endpoints.deleted_as(connection, kept.id) or "{}", pb.WebhookEndpoint()
        )

    def _mask(self, one: Endpoint) -> str:
        try:
            return mask(self._seal.unseal(one.secret, one.id))
        except CannotUnseal:
            return mask("")


def _id_of(one: pb.WebhookEndpoint | pb.WebhookDelivery) -> str:
    """By what a replay finds again what was changed."""
    return one.id


def _json(message: pb.WebhookEndpoint | pb.WebhookDelivery) -> str:
    """An answer as it is kept for a replay; an endpoint's has no secret."""
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, indent=None, ensure_ascii=False
    )
    return text


def _scaled(connection: Connection, lines: Sequence[webhook_messages.Line]) -> list[Threshold]:
    """Thresholds in smallest units, each once. Raises NotFound, InvalidField."""
    found = []
    for i, (amount, currency, percent) in enumerate(lines):
        if amount is None or currency is None:
            found.append(Threshold(None, None, percent))
            continue
        place = f"thresholds[{i}]"
        with renamed({"currency": f"{place}.currency_id", "amount": f"{place}.amount"}):
            units = money.parse(amount, records.scale(connection, currency), field="amount")
        found.append(Threshold(currency, units, None))
    return list(dict.fromkeys(found))


def _there(found: Endpoint | None, id_: str) -> Endpoint:
    if found is None:
        raise NotFound(f"no webhook endpoint {echo(id_)}", param="id")
    return found


def _own(connection: Connection, id_: str, caller: Caller) -> Endpoint:
    """The endpoint, if the caller may see it. Raises NotFound."""
    one = _there(endpoints.endpoint(connection, id_), id_)
    return _there(one if _may_see(caller, one) else None, id_)


def _may_see(caller: Caller, one: Endpoint) -> bool:
    if caller.livemode not in (None, one.livemode):
        return False
    # What hears of all wallets is no customer's.
    return caller.customer_id in (None, one.customer_id)


def _own_delivery(connection: Connection, id_: str, caller: Caller) -> endpoints.Delivery:
    place = ids.resolve("evt", id_)
    found = None if place is None else endpoints.delivery(connection, *place)
    if found is None or not _may_see(caller, found[1]):
        raise NotFound(f"no webhook delivery {echo(id_)}", param="id")
    return found[0]
