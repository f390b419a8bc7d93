"""The whole service inside the test: server, real Envoy in front, an HTTP client, a clock to set.

What a test needs to begin with is made through the server's socket, in the JSON of the contract;
what it asks for goes over REST. `differences` compares whole bodies, `failure` reads an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from google.protobuf import json_format
from sqlalchemy import func, select

from creditledger.domain import clock as time
from creditledger.ops.envoy import Envoy
from creditledger.store import schema
from tests.support.server import started
from tests.support.setup import Clock, findings, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from random import Random

    import grpc
    from sqlalchemy import Connection

#: What a posting, a row or a request is as JSON.
Json = dict[str, Any]
#: Parameters by name, or the text of a query as it is to be sent.
Query = Mapping[str, str | int] | str | None

TRANSACTIONS = "/api/credit-transactions"
SUMMARY = "/api/credit-transactions/summary"
BILLING = "/api/v1/me/billing/transactions"
USAGE = "/api/v1/me/usage"
ACCOUNT = "/api/v1/me/account"
BALANCE = "/api/v1/balance"
BILLS = "/openapi/v1/billing/apikey/bill/list"

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_credit_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
#: Largest number of postings in a call, of rows in a page, of seconds that a search looks through.
BATCH_MAX, LIMIT_MAX, SEARCH_SECONDS_MAX = 1_000, 100, 31 * 86_400


@dataclass(frozen=True, slots=True)
class Failure:
    """An error over REST, as a program reads it."""

    status: int
    code: str
    param: str | None = None


def failure(answer: httpx.Response) -> Failure:
    """The error that the answer is; fails unless all of it has the common shape."""
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.text
    body = answer.json()
    assert list(body) == ["error"]
    error = body["error"]
    named = ["param"] if "param" in error else []
    assert list(error) == ["type", "message", "code", *named, "metadata", "request_id"]
    metadata = error.pop("metadata")
    assert all(isinstance(value, str) and value for value in (error | metadata).values()), error
    assert error["type"] == ERROR_TYPES[answer.status_code], error
    assert ("allow" in answer.headers) == (answer.status_code == 405)
    assert error["request_id"] == answer.headers["x-request-id"]
    return Failure(answer.status_code, error["code"], error.get("param"))


def metadata(answer: httpx.Response) -> dict[str, str]:
    """What a program reacts to in an error; fails unless all of it has the common shape."""
    failure(answer)
    found: dict[str, str] = answer.json()["error"]["metadata"]
    return found


def promotional(rows: Iterable[Json]) -> set[str]:
    """Sequences of a wallet's rows that count as voucher: what promotional grants paid.

    A refund's row counts as the draw does that it returns, whatever comes back: draws are returned
    newest first.
    """
    draws: dict[str, list[tuple[Decimal, bool]]] = defaultdict(list)
    found = set()
    for row in sorted(rows, key=lambda one: int(one["sequence"])):
        counts = row.get("creditGrant", {}).get("category") == "promotional"
        amount = Decimal(row["amount"])
        if row["kind"] == "usage":
            draws[row["posting_id"]].append((-amount, counts))
        elif row["kind"] == "refund":
            left = draws[row["source"]["posting_id"]]
            drawn, counts = left.pop()
            if drawn > amount:
                left.append((drawn - amount, counts))
        if counts:
            found.add(row["sequence"])
    return found


def differences(actual: object, expected: object, place: str = "$") -> list[str]:
    """Where two bodies differ, in values, types or order of keys (but for metadata, a map).

    An expected float is any JSON number, an expected int one without fraction or exponent.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        names, wanted = list(actual), list(expected)
        if place.endswith(".metadata"):
            names, wanted = sorted(names), sorted(wanted)
        if names != wanted:
            return [f"{place} has {names}, not {wanted}"]
        parts = [(actual[name], expected[name], f"{place}.{name}") for name in wanted]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(actual) != len(expected):
            return [f"{place} has {len(actual)} items, not {len(expected)}"]
        pairs = zip(actual, expected, strict=True)
        parts = [(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(pairs)]
    else:
        kinds = (int, float) if type(expected) is float else (type(expected),)
        same = type(actual) in kinds and actual == expected
        return [] if same else [f"{place} is {actual!r}, not {expected!r}"]
    return [one for part in parts for one in differences(*part)]


@dataclass(frozen=True, slots=True)
class Served:
    """A running service: whom to ask, and how to make what is asked about."""

    url: str
    http: httpx.AsyncClient
    clock: Clock
    database_url: str
    wallets: WalletServiceStub
    registry: RegistryServiceStub
    keys: ApiKeyServiceStub
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def number(self) -> int:
        """Another one each time: what tells the things of one test from those of the others."""
        return next(self._numbers)

    # --- make, by the socket: an admin of both modes ---

    async def key(self, scope: str, customer_id: str | None = None, **given: Any) -> str:
        """A new key's secret."""
        request = keys_pb.CreateApiKeyRequest(
            **{"name": f"a {scope}", "scope": scope, "customer_id": customer_id, **given}
        )
        return (await self.keys.CreateApiKey(request)).secret

    async def customer(self, id_: str | None = None, **given: Any) -> str:
        """A new customer's id."""
        new = {"id": id_ or f"cus_{self.number()}", "name": "Acme", "email": "a@example.com"}
        request = registry_pb.CreateCustomerRequest(**{**new, **given})
        return (await self.registry.CreateCustomer(request)).id

    async def meter(self, **given: Any) -> str:
        """A new meter's id."""
        number = self.number()
        new = {"id": f"mtr_{number}", "name": "Tokens", "event_name": f"e{number}", "unit": "token"}
        request = registry_pb.CreateMeterRequest(**{**new, **given})
        return (await self.registry.CreateMeter(request)).id

    async def subscription(self, customer_id: str, **given: Any) -> str:
        """A new subscription's id."""
        new = {"id": f"sub_{self.number()}", "customer_id": customer_id, "name": "Pro"}
        request = registry_pb.CreateSubscriptionRequest(**{**new, **given})
        return (await self.registry.CreateSubscription(request)).id

    async def wallet(self, customer_id: str | None = None, **given: Any) -> str:
        """A new USD wallet's id, of a customer of its own if none is named."""
        new = {
            "id": f"wal_{self.number()}",
            "customer_id": customer_id or await self.customer(),
            "currency": "USD",
        }
        request = wallets_pb.CreateWalletRequest(**{**new, **given})
        return (await self.wallets.CreateWallet(request)).id

    async def post(self, wallet_id: str, *postings: Json) -> list[Json]:
        """Write postings, all accepted; their answers as JSON. A key is chosen if none is given."""
        answers: list[Json] = []
        for first in range(0, len(postings), BATCH_MAX):
            for result in await self.results(wallet_id, *postings[first : first + BATCH_MAX]):
                assert "posting" in result, result
                answers.append(result["posting"])
        return answers

    async def results(self, wallet_id: str, *postings: Json) -> list[Json]:
        """What becomes of up to 1,000 postings, refused or not, as JSON."""
        batch = wallets_pb.BatchPostRequest()
        for one in postings:
            key = {"idempotency_key": f"key {self.number()}", "wallet_id": wallet_id}
            json_format.ParseDict({**key, **one}, batch.postings.add())
        answer = await self.wallets.BatchPost(batch)
        return [json_format.MessageToDict(result) for result in answer.results]

    # --- ask, over REST ---

    async def ask(
        self, method: str, path: str, *, key: str | None, query: Query = None, **given: Any
    ) -> httpx.Response:
        """One request."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        headers |= given.pop("headers", {})
        if isinstance(query, str):
            path, query = f"{path}?{query}", None
        # Empty parameters would take away a query that the path has.
        return await self.http.request(method, path, headers=headers, params=query or None, **given)

    async def get(self, path: str, key: str | None, **query: str | int) -> httpx.Response:
        """One GET, its query given by name."""
        return await self.ask("GET", path, key=key, query=query)

    async def body(self, path: str, key: str, **query: str | int) -> Json:
        """The body of a GET that succeeds."""
        answer = await self.get(path, key, **query)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        body: Json = answer.json()
        return body

    async def refusal(self, path: str, key: str | None, **query: str | int) -> Failure:
        """How a GET is refused."""
        return failure(await self.get(path, key, **query))

    def row_counts(self) -> Mapping[str, int]:
        """How many rows each table has."""

        def count(connection: Connection) -> dict[str, int]:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in schema.metadata.sorted_tables
            }

        return look(self.database_url, count)


@asynccontextmanager
async def serving(database_url: str, **settings: Any) -> AsyncIterator[Served]:
    """Serve a migrated database until the block ends; its rows are verified then."""
    clock = Clock()
    # Tests that see that nothing is written must not see a fold.
    unasked = {"readers": 2, "fold_interval_seconds": 0}
    async with started(database_url, clock, **{**unasked, **settings}) as server:
        host, _, port = server.grpc_address.rpartition(":")
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=[(host, int(port))], concurrency=1)
        async with envoy, server.local_channel() as channel, _client(envoy.url) as client:
            yield _served(envoy.url, client, clock, database_url, channel)
    assert findings(database_url) == []


def _client(url: str) -> httpx.AsyncClient:
    # The environment may name a proxy; nothing here leaves the machine.
    return httpx.AsyncClient(base_url=url, timeout=20, trust_env=False)


def _served(
    url: str, client: httpx.AsyncClient, clock: Clock, database_url: str, channel: grpc.aio.Channel
) -> Served:
    return Served(
        url,
        client,
        clock,
        database_url,
        WalletServiceStub(channel),
        RegistryServiceStub(channel),
        ApiKeyServiceStub(channel),
    )


async def walk(
    served: Served, key: str, *, limit: int = LIMIT_MAX, **query: str | int
) -> list[Json]:
    """All rows of a list by its tokens; count and page size are the same on each page."""
    rows: list[Json] = []
    token: dict[str, str] = {}
    pages = 0
    while True:
        body = await served.body(TRANSACTIONS, key, limit=limit, **query, **token)
        pages += 1
        rows += body["list"]
        paging = {"page": pages, "pageSize": limit}
        if "next_page_token" not in body["paging"]:
            assert body["paging"] == paging
            assert body["count"] == len(rows)
            return rows
        assert len(body["list"]) == limit
        token = {"page_token": body["paging"].pop("next_page_token")}
        assert body["paging"] == paging


# --- random traffic -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shop:
    """A wallet that random traffic goes through, and what its postings may refer to."""

    wallet_id: str
    scale: int
    subscriptions: Sequence[str]
    meters: Sequence[str]
    api_keys: Sequence[str]


def decimal(units: int, scale: int) -> str:
    """Smallest units as the wire spells them."""
    return f"{Decimal(units).scaleb(-scale):f}"


async def traffic(
    served: Served, chance: Random, shops: Sequence[Shop], count: int
) -> dict[str, Json]:
    """Post at random, the clock moving on; the accepted requests by posting id.

    Times fall on the edges of quarters of an hour and beside them more often than not.
    """
    requests: dict[str, Json] = {}
    spent: dict[str, list[str]] = {shop.wallet_id: [] for shop in shops}
    for _ in range(count):
        served.clock.advance(chance.choice(_PAUSES))
        if chance.random() < 0.2:  # to the end of a quarter, or just beyond
            served.clock.advance(-served.clock.now % time.QUARTER - chance.randrange(2))
        shop = chance.choice(shops)
        request = _random_posting(chance, served.clock.now, shop, spent[shop.wallet_id])
        (result,) = await served.results(shop.wallet_id, request)
        if "error" in result:
            assert result["error"]["code"] in _EXPECTED_REFUSALS, (request, result)
            continue
        posting_id = result["posting"]["posting_id"]
        requests[posting_id] = request
        if "consumption" in request:
            spent[shop.wallet_id].append(posting_id)
    return requests


_PAUSES = [0, 0, 1, 999, time.SECOND, time.MINUTE, 7 * time.MINUTE, 16 * time.MINUTE, 5 * time.HOUR]
_EXPECTED_REFUSALS = {"INSUFFICIENT_CREDIT", "NOT_REFUNDABLE", "REFUND_TOO_LARGE"}
_WORDS = ["50% off", "under_score", "Ärger", "call", "CALL back", "ticket #312", None, None, None]


def _random_posting(chance: Random, now: int, shop: Shop, spent: Sequence[str]) -> Json:
    def amount(most: int) -> str:
        units = chance.choice(
            [chance.randrange(1, 100), chance.randrange(1, most * 10**shop.scale)]
        )
        return decimal(units, shop.scale)

    def some(**values: object) -> Json:
        return {name: value for name, value in values.items() if value is not None}

    def moment() -> str | None:
        if chance.random() < 0.6:
            return None
        then = now - chance.randrange(30 * time.DAY)
        return time.text(chance.choice([then, then - then % time.QUARTER - chance.randrange(2)]))

    word, metadata = chance.choice(_WORDS), {"team": chance.choice(["Blue", "red_1", "100%"])}
    texts = some(
        description=word,
        note=chance.choice(_WORDS),
        metadata=metadata if chance.random() < 0.5 else None,
    )
    kind = chance.random()
    if kind < 0.2:
        ends = now + chance.choice([1, time.SECOND, time.HOUR, time.DAY])
        source = {"provider": chance.choice(["stripe", 'pay"pal']), "receipt_id": f"Ch_{now % 7}"}
        grant = some(
            amount=amount(9),
            category=chance.choice(["paid", "promotional", None]),
            priority=chance.choice([10, 50, None]),
            expires_at=time.text(ends) if chance.random() < 0.5 else None,
            name=chance.choice(["Welcome", None]),
            source=source if chance.random() < 0.7 else None,
            allow_repeated_receipt=True,
        )
        return {"grant": grant, **texts}
    if kind < 0.3:
        sign = chance.choice(["", "-"])
        source = {"actor": chance.choice(["ops@example.com", "stripe"])}
        return {"adjustment": {"amount": sign + amount(2), "source": source}, **texts}
    if kind < 0.45 and spent:
        part = amount(1) if chance.random() < 0.4 else None
        refund = some(posting_id=chance.choice(spent), amount=part)
        return {"refund": refund, **some(effective_at=moment()), **texts}
    number = chance.randrange(4)
    usage = some(
        api_key_id=chance.choice([*shop.api_keys, None]),
        product_id=f"prd_{number}",
        product_name=["GPT Größe", "gpt mini", "Search_1", "100% image"][number],
        category=chance.choice(["llm", "gen_api", None]),
        billing_method=chance.choice([1, 2, None]),
        quantities=[chance.randrange(10_000) for _ in range(chance.randrange(2, 7))],
        base_prices=chance.choice([["25"], ["25", "0"], ["30"], None]),
        discount_prices=chance.choice([["25"], ["0"], None]),
        price_precision=chance.choice([1, 1000, None]),
    )
    consumption = some(
        amount=amount(3),
        meter_id=chance.choice([*shop.meters, None]),
        meter_event_id=chance.choice(["event 1", "stripe", None]),
        subscription_id=chance.choice([*shop.subscriptions, None]),
        usage=usage if chance.random() < 0.8 else None,
    )
    return {"consumption": consumption, **some(effective_at=moment()), **texts}
