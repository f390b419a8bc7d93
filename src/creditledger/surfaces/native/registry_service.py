"""RegistryService: the customers, meters, subscriptions and currencies that postings refer to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from credit.v1 import registry_service_pb2 as pb
from credit.v1 import registry_service_pb2_grpc

from creditledger.api import fields, pages
from creditledger.api.auth import Caller
from creditledger.api.rpc import Service, rpc
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.errors import MissingField, NotFound, echo
from creditledger.domain.registry import (
    Currency,
    Customer,
    CustomerFilters,
    Meter,
    Scope,
    Subscription,
)
from creditledger.store import READ_SECONDS_MAX
from creditledger.store.registry import customers, meters, records

T = TypeVar("T")

SCALE_MAX = 9
#: A search reads all customers.
SEARCH_SECONDS_MAX = 2.0


# New things come without a time: created_at is filled in by the service.


def _new_customer(request: pb.CreateCustomerRequest) -> Customer:
    return Customer(
        id=fields.optional_reference("cus", request, "id", field="id") or ids.random("cus"),
        name=fields.name(request.name),
        email=fields.email(request.email, field="email"),
        metadata=fields.metadata(request.metadata),
        created_at=0,
    )


def _new_meter(request: pb.CreateMeterRequest) -> Meter:
    return Meter(
        id=fields.optional_reference("mtr", request, "id", field="id") or ids.random("mtr"),
        name=fields.name(request.name),
        event_name=fields.name(request.event_name, field="event_name"),
        unit=fields.name(request.unit, field="unit"),
        currency=fields.optional_currency(request, "currency_id", field="currency_id"),
        metadata=fields.metadata(request.metadata),
        created_at=0,
    )


def _new_subscription(request: pb.CreateSubscriptionRequest) -> Subscription:
    return Subscription(
        id=fields.optional_reference("sub", request, "id", field="id") or ids.random("sub"),
        customer_id=fields.reference("cus", request.customer_id, field="customer_id"),
        name=fields.name(request.name),
        metadata=fields.metadata(request.metadata),
        created_at=0,
    )


def _new_currency(request: pb.CreateCurrencyRequest) -> Currency:
    code = fields.currency(request.id, field="id")
    if not request.HasField("scale"):
        raise MissingField("scale")
    scale = fields.number(request.scale, least=0, most=SCALE_MAX, field="scale")
    return Currency(code, scale, fields.name(request.name))


def _customer_id(
    request: pb.GetCustomerRequest | pb.ArchiveCustomerRequest | pb.UnarchiveCustomerRequest,
) -> str:
    return fields.reference("cus", request.customer_id, field="customer_id")


@dataclass(frozen=True, slots=True)
class _CustomerChange:
    """None leaves as it is; an empty value of metadata removes its key."""

    customer_id: str
    name: str | None
    email: str | None
    metadata: Mapping[str, str]


def _customer_change(request: pb.UpdateCustomerRequest) -> _CustomerChange:
    return _CustomerChange(
        customer_id=fields.reference("cus", request.customer_id, field="customer_id"),
        name=fields.name(request.name) if request.HasField("name") else None,
        email=fields.email(request.email, field="email") if request.HasField("email") else None,
        metadata=fields.metadata(request.metadata),
    )


@dataclass(frozen=True, slots=True)
class _CustomerList:
    page: pages.PageRequest
    email: str | None
    q: str | None
    archived: bool


def _customer_list(request: pb.ListCustomersRequest) -> _CustomerList:
    return _CustomerList(
        page=pages.asked(request),
        email=fields.optional_text(request, "email", field="email", most=fields.QUERY_MAX),
        q=fields.optional_text(request, "q", field="q", most=fields.QUERY_MAX),
        archived=request.include_archived,
    )


def _meter_id(request: pb.GetMeterRequest) -> str:
    return fields.reference("mtr", request.meter_id, field="meter_id")


def _subscription_id(request: pb.GetSubscriptionRequest) -> str:
    return fields.reference("sub", request.subscription_id, field="subscription_id")


def _currency_id(request: pb.GetCurrencyRequest) -> str:
    return fields.currency(request.currency_id, field="currency_id")


@dataclass(frozen=True, slots=True)
class _SubscriptionList:
    page: pages.PageRequest
    customer_id: str | None


def _subscription_list(request: pb.ListSubscriptionsRequest) -> _SubscriptionList:
    return _SubscriptionList(
        page=pages.asked(request),
        customer_id=fields.optional_reference("cus", request, "customer_id", field="customer_id"),
    )


def _there(found: T | None) -> T:
    assert found is not None, "nothing of the registry is deleted"
    return found


def _customer(one: Customer) -> pb.Customer:
    return pb.Customer(
        id=one.id,
        name=one.name,
        email=one.email,
        metadata=one.metadata,
        created_at=time.text(one.created_at),
        updated_at=None if one.updated_at is None else time.text(one.updated_at),
        archived_at=None if one.archived_at is None else time.text(one.archived_at),
    )


def _meter(one: Meter) -> pb.Meter:
    return pb.Meter(
        id=one.id,
        name=one.name,
        event_name=one.event_name,
        unit=one.unit,
        currency_id=one.currency,
        metadata=one.metadata,
        created_at=time.text(one.created_at),
    )


def _subscription(one: Subscription) -> pb.Subscription:
    return pb.Subscription(
        id=one.id,
        customer_id=one.customer_id,
        name=one.name,
        metadata=one.metadata,
        created_at=time.text(one.created_at),
    )


def _currency(one: Currency) -> pb.Currency:
    return pb.Currency(id=one.code, scale=one.scale, name=one.name)


class RegistryService(Service, registry_service_pb2_grpc.RegistryServiceServicer):
    """Served to internal services over gRPC and, through Envoy, over REST.

    Nothing here has a mode: a test key may create things, but only a live key changes them or makes
    currencies, which nobody can undo. An identical create answers what is there. A customer key
    sees its own customer and that customer's subscriptions, and all meters and currencies.
    """

    @rpc(_new_customer, scope=Scope.SERVICE)
    async def CreateCustomer(  # noqa: N802
        self, new: Customer, _caller: Caller
    ) -> pb.Customer:
        """Raises IdTaken."""
        one = replace(new, created_at=self._clock())
        made = await self._once(
            lambda c: records.create_customer(c, one),
            lambda c, kept: _there(records.customer(c, kept.id)),
            lambda one: one.id,
        )
        return _customer(made.value)

    @rpc(_customer_id, scope=Scope.CUSTOMER)
    async def GetCustomer(self, customer_id: str, caller: Caller) -> pb.Customer:  # noqa: N802
        """Raises NotFound."""
        found = await self._store.read(lambda c: records.customer(c, customer_id))
        if found is None or not caller.may_see(found.id):
            raise NotFound(f"no customer {echo(customer_id)}", param="customer_id")
        return _customer(found)

    @rpc(_customer_change, scope=Scope.SERVICE, shared=True)
    async def UpdateCustomer(  # noqa: N802
        self, change: _CustomerChange, _caller: Caller
    ) -> pb.Customer:
        """Raises NotFound, ModeMismatch, InvalidField for too much metadata."""
        return await self._change(
            change.customer_id, name=change.name, email=change.email, metadata=change.metadata
        )

    @rpc(_customer_id, scope=Scope.SERVICE, shared=True)
    async def ArchiveCustomer(  # noqa: N802
        self, customer_id: str, _caller: Caller
    ) -> pb.Customer:
        """Raises NotFound, ModeMismatch."""
        return await self._change(customer_id, archived=True)

    @rpc(_customer_id, scope=Scope.SERVICE, shared=True)
    async def UnarchiveCustomer(  # noqa: N802
        self, customer_id: str, _caller: Caller
    ) -> pb.Customer:
        """Raises NotFound, ModeMismatch."""
        return await self._change(customer_id, archived=False)

    async def _change(self, customer_id: str, **changed: Any) -> pb.Customer:
        now = self._clock()
        made = await self._once(
            lambda c: customers.change(c, customer_id, now=now, **changed),
            lambda c, kept: _there(records.customer(c, kept.id)),
            lambda one: one.id,
        )
        return _customer(made.value)

    @rpc(_customer_list, scope=Scope.CUSTOMER)
    async def ListCustomers(  # noqa: N802
        self, asked: _CustomerList, caller: Caller
    ) -> pb.ListCustomersResponse:
        """Ordered by id; a customer key's list has at most one entry. Raises QueryTooBroad."""
        page = asked.page
        wanted = CustomerFilters(caller.customer_id, asked.email, asked.q, asked.archived)
        filters = ("customers", wanted)
        after = page.after(filters)
        searches = asked.email is not None or asked.q is not None
        found = await self._store.read(
            lambda c: customers.page(c, after, page.size, wanted),
            seconds=SEARCH_SECONDS_MAX if searches else READ_SECONDS_MAX,
        )
        shown, token = pages.cut(found, page.size, filters, lambda one: [one.id])
        return pb.ListCustomersResponse(
            customers=[_customer(one) for one in shown], next_page_token=token
        )

    @rpc(_new_meter, scope=Scope.SERVICE, names={"currency": "currency_id"})
    async def CreateMeter(  # noqa: N802
        self, new: Meter, _caller: Caller
    ) -> pb.Meter:
        """Raises IdTaken for the id or the event_name, NotFound for the currency."""
        one = replace(new, created_at=self._clock())
        made = await self._once(
            lambda c: meters.create(c, one),
            lambda c, kept: _there(meters.by_id(c, kept.id)),
            lambda one: one.id,
        )
        return _meter(made.value)

    @rpc(_meter_id, scope=Scope.CUSTOMER)
    async def GetMeter(self, meter_id: str, _caller: Caller) -> pb.Meter:  # noqa: N802
        """Raises NotFound."""
        found = await self._store.read(lambda c: meters.by_id(c, meter_id))
        if found is None:
            raise NotFound(f"no meter {echo(meter_id)}", param="meter_id")
        return _meter(found)

    @rpc(pages.asked, scope=Scope.CUSTOMER)
    async def ListMeters(  # noqa: N802
        self, asked: pages.PageRequest, _caller: Caller
    ) -> pb.ListMetersResponse:
        """Ordered by id."""
        filters = ("meters",)
        after = asked.after(filters)
        found = await self._store.read(lambda c: meters.page(c, after, asked.size))
        page, token = pages.cut(found, asked.size, filters, lambda one: [one.id])
        return pb.ListMetersResponse(meters=[_meter(one) for one in page], next_page_token=token)

    @rpc(_new_subscription, scope=Scope.SERVICE)
    async def CreateSubscription(  # noqa: N802
        self, new: Subscription, _caller: Caller
    ) -> pb.Subscription:
        """Raises IdTaken, NotFound for the customer."""
        one = replace(new, created_at=self._clock())
        made = await self._once(
            lambda c: records.create_subscription(c, one),
            lambda c, kept: _there(records.subscription(c, kept.id)),
            lambda one: one.id,
        )
        return _subscription(made.value)

    @rpc(_subscription_id, scope=Scope.CUSTOMER)
    async def GetSubscription(  # noqa: N802
        self, subscription_id: str, caller: Caller
    ) -> pb.Subscription:
        """Raises NotFound."""
        found = await self._store.read(lambda c: records.subscription(c, subscription_id))
        if found is None or not caller.may_see(found.customer_id):
            raise NotFound(f"no subscription {echo(subscription_id)}", param="subscription_id")
        return _subscription(found)

    @rpc(_subscription_list, scope=Scope.CUSTOMER)
    async def ListSubscriptions(  # noqa: N802
        self, wanted: _SubscriptionList, caller: Caller
    ) -> pb.ListSubscriptionsResponse:
        """Ordered by id. Raises NotFound for another customer's id if the key is a customer's."""
        customer_id = caller.own(wanted.customer_id)
        filters = ("subscriptions", customer_id)
        after = wanted.page.after(filters)
        found = await self._store.read(
            lambda c: records.subscriptions(c, after, wanted.page.size, customer_id=customer_id)
        )
        page, token = pages.cut(found, wanted.page.size, filters, lambda one: [one.id])
        return pb.ListSubscriptionsResponse(
            subscriptions=[_subscription(one) for one in page], next_page_token=token
        )

    @rpc(_new_currency, scope=Scope.ADMIN, shared=True)
    async def CreateCurrency(self, new: Currency, _caller: Caller) -> pb.Currency:  # noqa: N802
        """Raises IdTaken, ModeMismatch."""
        made = await self._once(
            lambda c: records.create_currency(c, new),
            lambda c, kept: _there(records.currency(c, kept.id)),
            lambda one: one.code,
        )
        return _currency(made.value)

    @rpc(_currency_id, scope=Scope.CUSTOMER)
    async def GetCurrency(self, code: str, _caller: Caller) -> pb.Currency:  # noqa: N802
        """Raises NotFound."""
        found = await self._store.read(lambda c: records.currency(c, code))
        if found is None:
            raise NotFound(f"no currency {echo(code)}", param="currency_id")
        return _currency(found)

    @rpc(pages.asked, scope=Scope.CUSTOMER)
    async def ListCurrencies(  # noqa: N802
        self, asked: pages.PageRequest, _caller: Caller
    ) -> pb.ListCurrenciesResponse:
        """Ordered by code."""
        filters = ("currencies",)
        after = asked.after(filters)
        found = await self._store.read(lambda c: records.currencies(c, after, asked.size))
        page, token = pages.cut(found, asked.size, filters, lambda one: [one.code])
        return pb.ListCurrenciesResponse(
            currencies=[_currency(one) for one in page], next_page_token=token
        )
