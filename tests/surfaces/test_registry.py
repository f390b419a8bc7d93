"""The registry: what postings refer to is made once, got, listed, and seen by whom it concerns."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import registry_service_pb2 as pb

from creditledger.domain import clock as time
from tests.support.cases import in_turn
from tests.support.refusals import Metadata, Refused, refused
from tests.support.server import Registry, serve_registry
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from credit.v1.registry_service_pb2_grpc import RegistryServiceStub

    from tests.support.setup import Clock

SOME_METADATA = {"plan": "über", "tier": "3"}
MADE_AT = time.text(START)


@pytest.fixture
async def api(database_url: str, clock: Clock) -> AsyncIterator[Registry]:
    """A server upon a new database."""
    async with serve_registry(database_url, clock) as served:
        yield served


@dataclass(frozen=True, slots=True)
class Thing:
    """What the registry holds, one of each sort: all fields given, and others that would differ."""

    name: str
    names: str
    given: dict[str, Any]
    made: Any
    others: dict[str, Any]
    prefix: str | None = None

    def new(self, **changed: object) -> Any:
        """A create request; None leaves a field out."""
        return getattr(pb, f"Create{self.name}Request")(**{**self.given, **changed})

    @property
    def reference(self) -> str:
        """The field that names it."""
        return f"{self.name.lower()}_id"


CUSTOMER = Thing(
    "Customer",
    "Customers",
    {"id": "cus_acme", "name": "Acme", "email": "a@example.com", "metadata": SOME_METADATA},
    pb.Customer(
        id="cus_acme",
        name="Acme",
        email="a@example.com",
        metadata=SOME_METADATA,
        created_at=MADE_AT,
    ),
    {"name": "Other", "email": "b@example.com", "metadata": {"plan": "uber"}},
    "cus",
)
METER = Thing(
    "Meter",
    "Meters",
    {
        "id": "mtr_tokens",
        "name": "Tokens",
        "event_name": "tokens.used",
        "unit": "token",
        "currency_id": "USD",
        "metadata": SOME_METADATA,
    },
    pb.Meter(
        id="mtr_tokens",
        name="Tokens",
        event_name="tokens.used",
        unit="token",
        currency_id="USD",
        metadata=SOME_METADATA,
        created_at=MADE_AT,
    ),
    {
        "name": "Other",
        "event_name": "images.made",
        "unit": "image",
        "currency_id": "CNY",
        "metadata": {},
    },
    "mtr",
)
SUBSCRIPTION = Thing(
    "Subscription",
    "Subscriptions",
    {"id": "sub_pro", "customer_id": "cus_owner", "name": "Pro", "metadata": SOME_METADATA},
    pb.Subscription(
        id="sub_pro",
        customer_id="cus_owner",
        name="Pro",
        metadata=SOME_METADATA,
        created_at=MADE_AT,
    ),
    {"customer_id": "cus_other", "name": "Other", "metadata": {"plan": "über"}},
    "sub",
)
CURRENCY = Thing(
    "Currency",
    "Currencies",
    {"id": "EUR", "scale": 4, "name": "Euro"},
    pb.Currency(id="EUR", scale=4, name="Euro"),
    {"scale": 5, "name": "Other"},
)
THINGS = [CUSTOMER, METER, SUBSCRIPTION, CURRENCY]
every_thing = pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.name)


@dataclass(frozen=True, slots=True)
class Verbs:
    """Create, get and list of one sort of thing, by one key."""

    stub: RegistryServiceStub
    thing: Thing
    key: Metadata

    async def create(self, **changed: object) -> Any:
        create = getattr(self.stub, f"Create{self.thing.name}")
        return await create(self.thing.new(**changed), metadata=self.key)

    async def get(self, id_: str) -> Any:
        request = getattr(pb, f"Get{self.thing.name}Request")(**{self.thing.reference: id_})
        return await getattr(self.stub, f"Get{self.thing.name}")(request, metadata=self.key)

    async def list(self, **asked: object) -> tuple[list[Any], str | None]:
        request = getattr(pb, f"List{self.thing.names}Request")(**asked)
        page = await getattr(self.stub, f"List{self.thing.names}")(request, metadata=self.key)
        token = page.next_page_token if page.HasField("next_page_token") else None
        return list(getattr(page, self.thing.names.lower())), token


async def verbs(api: Registry, thing: Thing) -> Verbs:
    """An admin's verbs, with the customers there that a subscription needs."""
    for id_ in ("cus_owner", "cus_other"):
        if thing is SUBSCRIPTION:
            await api.customer(id_)
    return Verbs(api.registry, thing, api.admin)


# --- create, get, list --------------------------------------------------------------------------


@in_turn("thing", THINGS)
async def test_what_is_created_can_be_got_and_listed(api: Registry, thing: Thing) -> None:
    """Create answers what was given and when; get and list answer the same."""
    its = await verbs(api, thing)

    created = await its.create()
    got = await its.get(created.id)
    listed, token = await its.list()

    assert created == thing.made
    assert got == thing.made
    assert [one for one in listed if one.id == created.id] == [thing.made]
    assert token is None


@in_turn("thing", THINGS)
async def test_an_identical_create_answers_what_is_there(
    api: Registry, clock: Clock, thing: Thing
) -> None:
    """Repeated later, a create answers the first thing with its first created_at."""
    its = await verbs(api, thing)
    first = await its.create()
    before, _ = await its.list()
    clock.advance(time.DAY)

    second = await its.create()

    assert first == second
    assert await its.list() == (before, None)


@in_turn("thing, field", [(thing, field) for thing in THINGS for field in thing.others])
async def test_a_differing_create_is_refused(api: Registry, thing: Thing, field: str) -> None:
    """The id with any other attribute is ID_TAKEN, and the first thing stays."""
    its = await verbs(api, thing)
    first = await its.create()

    refusal = await refused(its.create(**{field: thing.others[field]}))

    assert refusal == Refused("ID_TAKEN", "id")
    assert await its.get(first.id) == first


@in_turn("thing", [CUSTOMER, METER, SUBSCRIPTION])
async def test_an_id_nobody_chose_is_random(api: Registry, thing: Thing) -> None:
    """Without an id the ledger makes one of its kind, another one each time."""
    its = await verbs(api, thing)
    other = {"event_name": "another"} if thing is METER else {}

    ids = [(await its.create(id=None, **changed)).id for changed in ({}, other)]

    assert len(set(ids)) == 2
    assert all(re.fullmatch(rf"{thing.prefix}_[0-9a-z]{{26}}", id_) for id_ in ids)
    assert (await its.get(ids[0])).id == ids[0]


async def test_a_meter_without_a_currency_has_none(api: Registry) -> None:
    """What is absent in the request is absent in the answer."""
    its = await verbs(api, METER)

    created = await its.create(currency_id=None, metadata={})

    assert not created.HasField("currency_id")
    assert created == await its.get("mtr_tokens")


async def test_an_event_has_one_meter(api: Registry) -> None:
    """The event_name of another meter is ID_TAKEN."""
    its = await verbs(api, METER)
    await its.create()

    assert await refused(its.create(id="mtr_other")) == Refused("ID_TAKEN", "event_name")


@in_turn(
    "thing, changed, param",
    [
        (METER, {"currency_id": "XXX"}, "currency_id"),
        (SUBSCRIPTION, {"customer_id": "cus_nobody"}, "customer_id"),
    ],
)
async def test_references_must_exist(
    api: Registry, thing: Thing, changed: dict[str, str], param: str
) -> None:
    """A create that names what is not there is NOT_FOUND and makes nothing."""
    its = await verbs(api, thing)

    assert await refused(its.create(**changed)) == Refused("NOT_FOUND", param)
    assert await its.list() == ([], None)


@in_turn(
    "thing, id_",
    [(CUSTOMER, "cus_0"), (METER, "mtr_0"), (SUBSCRIPTION, "sub_0"), (CURRENCY, "XXX")],
)
async def test_an_unknown_id_is_not_found(api: Registry, thing: Thing, id_: str) -> None:
    """A get of what is not there is NOT_FOUND and names the field."""
    its = await verbs(api, thing)

    assert await refused(its.get(id_)) == Refused("NOT_FOUND", thing.reference)


# --- shape --------------------------------------------------------------------------------------


@in_turn(
    "thing, field",
    [
        (thing, field)
        for thing in THINGS
        for field in thing.given
        if field not in ("metadata", "currency_id") and (thing is CURRENCY or field != "id")
    ],
)
async def test_required_fields(api: Registry, thing: Thing, field: str) -> None:
    """A create without a required field is MISSING_FIELD."""
    its = await verbs(api, thing)

    assert await refused(its.create(**{field: None})) == Refused("MISSING_FIELD", field)


@in_turn("thing", THINGS)
async def test_a_get_needs_an_id(api: Registry, thing: Thing) -> None:
    """A get without an id is MISSING_FIELD, one with a malformed id INVALID_FIELD."""
    its = await verbs(api, thing)

    assert await refused(its.get("")) == Refused("MISSING_FIELD", thing.reference)
    assert await refused(its.get("wal_acme")) == Refused("INVALID_FIELD", thing.reference)


MALFORMED: list[tuple[Thing, str, list[Any]]] = [
    (CUSTOMER, "id", ["mtr_acme", "cus_", "cus_a b", "cus_ä", "cus_" + "a" * 61]),
    (METER, "id", ["cus_acme", "mtr_a.b"]),
    (SUBSCRIPTION, "id", ["cus_acme", "sub_\n"]),
    (CURRENCY, "id", ["US", "usd", "1USD", "U-D", "U" * 17]),
    (CUSTOMER, "name", ["a" * 129, "a\x00b", "a\nb"]),
    (METER, "event_name", ["a" * 129]),
    (METER, "unit", ["a" * 129]),
    (METER, "currency_id", ["usd"]),
    (SUBSCRIPTION, "customer_id", ["acme"]),
    (CUSTOMER, "email", ["acme", "@example.com", "acme@", "a" * 243 + "@example.com"]),
    (CURRENCY, "scale", [-1, 10]),
    (CUSTOMER, "metadata", [{str(i): "" for i in range(51)}, {"a": "b" * 8_192}, {"": "b"}]),
]


@in_turn(
    "thing, field, value",
    [(thing, field, value) for thing, field, values in MALFORMED for value in values],
)
async def test_malformed_fields(api: Registry, thing: Thing, field: str, value: object) -> None:
    """A create with a value outside its rules is INVALID_FIELD and names it."""
    its = await verbs(api, thing)

    assert await refused(its.create(**{field: value})) == Refused("INVALID_FIELD", field)


@pytest.mark.parametrize("scale", [0, 9])
async def test_the_ends_of_scale(api: Registry, scale: int) -> None:
    """0, which is not absence, and 9 digits after the point can be had."""
    its = await verbs(api, CURRENCY)

    assert await its.create(scale=scale) == pb.Currency(id="EUR", scale=scale, name="Euro")


async def test_the_longest_id(api: Registry) -> None:
    """60 characters of each sort may follow the prefix."""
    its = await verbs(api, CUSTOMER)
    longest = "cus_" + "aZ09_-" * 10

    assert (await its.create(id=longest)).id == longest


# --- pages --------------------------------------------------------------------------------------


async def fill(its: Verbs) -> list[str]:
    """Five more things in no order; the ids of all there are, in order."""
    for letter in "CAEBD":
        id_ = f"{its.thing.prefix}_{letter}" if its.thing.prefix else letter * 3
        other = {"event_name": letter} if its.thing is METER else {}
        await its.create(id=id_, **other)
    return sorted([one.id for one in (await its.list())[0]])


@in_turn("thing, size", product(THINGS, [1, 2, 3, 4, 5, 8]))
async def test_a_walk_yields_everything_once(api: Registry, thing: Thing, size: int) -> None:
    """Pages of any size, put together, are the list ordered by id; only the last has no token."""
    its = await verbs(api, thing)
    everything = await fill(its)

    pages: list[list[str]] = []
    token = None
    while not pages or token is not None:
        page, token = await its.list(page_size=size, page_token=token)
        pages.append([one.id for one in page])

    assert [id_ for page in pages for id_ in page] == everything
    assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
    assert len(pages) == -(-len(everything) // size)


async def test_what_comes_behind_the_page_is_still_met(api: Registry) -> None:
    """A walk meets what is created behind its position, and nothing twice."""
    its = await verbs(api, CUSTOMER)
    await fill(its)
    first, token = await its.list(page_size=2)
    for id_ in ("cus_A1", "cus_B1"):
        await its.create(id=id_)

    second, _ = await its.list(page_size=2, page_token=token)

    assert [one.id for one in first] == ["cus_A", "cus_B"]
    assert [one.id for one in second] == ["cus_B1", "cus_C"]


@in_turn("thing", THINGS)
async def test_the_bounds_of_a_page(api: Registry, thing: Thing) -> None:
    """A page has 1 to 100 entries."""
    its = await verbs(api, thing)

    for size in (-1, 0, 101):
        assert await refused(its.list(page_size=size)) == Refused("INVALID_FIELD", "page_size")
    await its.list(page_size=100)


async def test_a_page_has_twenty(api: Registry) -> None:
    """Who names no size gets 20 entries."""
    its = await verbs(api, CUSTOMER)
    for number in range(21):
        await its.create(id=f"cus_{number:02}")

    page, token = await its.list()

    assert [one.id for one in page] == [f"cus_{number:02}" for number in range(20)]
    assert token is not None


def forged(token: str, position: Sequence[object]) -> str:
    """The token with another position under the same digest."""
    digest, *_ = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    body = json.dumps([digest, *position])
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


@in_turn("thing", THINGS)
async def test_garbage_is_no_token(api: Registry, thing: Thing) -> None:
    """What no list has answered is INVALID_FIELD."""
    its = await verbs(api, thing)
    await fill(its)
    _, token = await its.list(page_size=1)
    assert token is not None

    garbage = ["", "x", "ä", "bnVsbA", "e30", "W10", token + "A" * 512, token[:-4]]
    garbage += [forged(token, position) for position in ([], [1], [None], ["a", "b"], ["\ud800"])]

    for one in garbage:
        refusal = await refused(its.list(page_size=1, page_token=one))
        assert refusal == Refused("INVALID_FIELD", "page_token"), one


async def test_a_token_belongs_to_its_list(api: Registry) -> None:
    """A token brought to another list, filter or customer's view is INVALID_FIELD."""
    its = {thing.name: await verbs(api, thing) for thing in THINGS}
    for one in its.values():
        await fill(one)
    await api.subscription("sub_Z", "cus_other")
    tokens = [(await one.list(page_size=1))[1] for one in its.values()]
    _, filtered = await its["Subscription"].list(page_size=1, customer_id="cus_owner")
    key = await api.local.key("customer", "cus_owner")
    mine = Verbs(api.registry, CUSTOMER, key)

    strangers = [
        its[name].list(page_size=1, page_token=token)
        for i, name in enumerate(its)
        for j, token in enumerate([*tokens, filtered])
        if i != j
    ]
    strangers += [
        its["Subscription"].list(page_token=filtered, customer_id="cus_other"),
        mine.list(page_token=tokens[0]),
    ]

    for call in strangers:
        assert await refused(call) == Refused("INVALID_FIELD", "page_token")


async def test_subscriptions_of_one_customer(api: Registry) -> None:
    """The filter leaves that customer's subscriptions, page by page; of a stranger, none."""
    its = await verbs(api, SUBSCRIPTION)
    for id_, customer_id in [
        ("sub_1", "cus_owner"),
        ("sub_2", "cus_other"),
        ("sub_3", "cus_owner"),
    ]:
        await its.create(id=id_, customer_id=customer_id)

    first, token = await its.list(customer_id="cus_owner", page_size=1)
    second, end = await its.list(customer_id="cus_owner", page_size=1, page_token=token)

    assert [one.id for one in first + second] == ["sub_1", "sub_3"]
    assert end is None
    assert await its.list(customer_id="cus_nobody") == ([], None)


# --- who may do what ----------------------------------------------------------------------------


@in_turn("thing", THINGS)
async def test_who_may_create(api: Registry, thing: Thing) -> None:
    """A service key creates all but currencies, an admin key those too, a customer key nothing."""
    its = await verbs(api, thing)
    await api.customer("cus_me")
    customer = await api.local.key("customer", "cus_me")

    assert await refused(Verbs(api.registry, thing, ()).create()) == Refused("KEY_MISSING")
    assert await refused(Verbs(api.registry, thing, customer).create()) == Refused("SCOPE_DENIED")
    if thing is CURRENCY:
        by_service = Verbs(api.registry, thing, api.service).create()
        assert await refused(by_service) == Refused("SCOPE_DENIED")
        assert await its.create() == thing.made
    else:
        assert await Verbs(api.registry, thing, api.service).create() == thing.made


async def test_the_key_is_checked_before_the_shape(api: Registry) -> None:
    """Only who may call learns what is wrong with a request."""
    request = pb.CreateCustomerRequest(email="a@example.com")

    assert await refused(api.registry.CreateCustomer(request)) == Refused("KEY_MISSING")
    known = api.registry.CreateCustomer(request, metadata=api.service)
    assert await refused(known) == Refused("MISSING_FIELD", "name")


async def test_a_customer_sees_itself_alone(api: Registry) -> None:
    """To a customer's key other customers and their subscriptions do not exist."""
    for name in ("me", "you"):
        await api.customer(f"cus_{name}")
        await api.subscription(f"sub_{name}", f"cus_{name}")
    key = await api.local.key("customer", "cus_me")
    customers = Verbs(api.registry, CUSTOMER, key)
    subscriptions = Verbs(api.registry, SUBSCRIPTION, key)

    me = await customers.get("cus_me")
    mine = await subscriptions.get("sub_me")

    assert (me.id, mine.id) == ("cus_me", "sub_me")
    assert await customers.list() == ([me], None)
    assert await customers.list(page_size=1) == ([me], None)
    assert await subscriptions.list() == ([mine], None)
    assert await subscriptions.list(customer_id="cus_me") == ([mine], None)
    for call, param in [
        (customers.get("cus_you"), "customer_id"),
        (subscriptions.get("sub_you"), "subscription_id"),
        (subscriptions.list(customer_id="cus_you"), "customer_id"),
    ]:
        assert await refused(call) == Refused("NOT_FOUND", param)


async def test_a_stranger_is_told_what_nobody_is(api: Registry) -> None:
    """Another customer's id and an unknown one are refused alike, to the last word."""
    for name in ("me", "you"):
        await api.customer(f"cus_{name}")
    its = Verbs(api.registry, CUSTOMER, await api.local.key("customer", "cus_me"))
    texts = []

    for id_ in ("cus_you", "cus_yon"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await its.get(id_)
        texts.append((caught.value.details() or "").replace(id_, ""))

    assert texts[0] == texts[1]


async def test_everybody_sees_meters_and_currencies(api: Registry) -> None:
    """A customer's key gets and lists them as an admin's does."""
    await api.customer("cus_me")
    meter = await Verbs(api.registry, METER, api.admin).create()
    key = await api.local.key("customer", "cus_me")
    meters, currencies = Verbs(api.registry, METER, key), Verbs(api.registry, CURRENCY, key)

    assert await meters.get(meter.id) == meter
    assert await meters.list() == ([meter], None)
    assert await currencies.get("USD") == pb.Currency(id="USD", scale=9, name="US dollar")
    assert [one.id for one in (await currencies.list())[0]] == ["CNY", "CREDIT", "USD"]


async def test_the_registry_has_no_mode(api: Registry) -> None:
    """What a live key made, a test key sees."""
    made = await api.customer()
    its = Verbs(api.registry, CUSTOMER, await api.local.key("service", livemode=False))

    assert await its.get("cus_acme") == made
    assert await its.list() == ([made], None)
