"""The native routes: a valid body of each write, and how a request is sent and refused."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from creditledger.domain import clock as time
from tests.support.rest import BILLING, BILLS, SUMMARY, TRANSACTIONS, Failure, Json, Served, failure
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOW = time.text(START)
METADATA = {"plan": "über", "tier": "3"}
BATCH_MAX = 1_000
LONG = "x" * 10_000


async def send(served: Served, key: str, route: str, body: object = None, **query: Any) -> Json:
    """The body of a request that succeeds; `route` is method and path."""
    method, path = route.split(" ")
    given = {} if body is None else {"json": body}
    answer = await served.ask(method, path, key=key, query=query, **given)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: Json = answer.json()
    return found


async def refusal(
    served: Served, key: str | None, route: str, body: object = None, **query: Any
) -> Failure:
    """How a request is refused; a body of bytes is sent as it is."""
    method, path = route.split(" ")
    given: Json = {} if body is None else {"json": body}
    if isinstance(body, bytes):
        given = {"content": body}
    return failure(await served.ask(method, path, key=key, query=query, **given))


@asynccontextmanager
async def nothing_written(served: Served) -> AsyncIterator[None]:
    """Fails if any table has more rows, or less, when the block ends."""
    before = served.row_counts()
    yield
    assert served.row_counts() == before


def invalid(param: str | None) -> Failure:
    return Failure(400, "INVALID_FIELD", param)


def missing(param: str) -> Failure:
    return Failure(400, "MISSING_FIELD", param)


def not_found(param: str) -> Failure:
    return Failure(404, "NOT_FOUND", param)


def postings_of(wallet: str) -> str:
    return f"POST /v1/wallets/{wallet}/postings"


#: A request of each write that is in order, and its fields by what they hold. "?" marks the
#: optional ones; an id is followed by its prefix.
WRITES: dict[str, tuple[Json, dict[str, str]]] = {
    "POST /v1/customers": (
        {"id": "cus_w", "name": "W", "email": "w@example.com", "metadata": {}},
        {"id": "id? cus", "name": "text", "email": "text", "metadata": "metadata"},
    ),
    "POST /v1/meters": (
        {"id": "mtr_w", "name": "W", "event_name": "w", "unit": "w", "currency_id": "USD",
         "metadata": {}},
        {"id": "id? mtr", "name": "text", "event_name": "text", "unit": "text",
         "currency_id": "currency?", "metadata": "metadata"},
    ),
    "POST /v1/subscriptions": (
        {"id": "sub_w", "customer_id": "cus_writer", "name": "W", "metadata": {}},
        {"id": "id? sub", "customer_id": "id cus", "name": "text", "metadata": "metadata"},
    ),
    "POST /v1/wallets/wal_writer/spend-limits": (
        {"amount": "1", "period": "rolling", "hours": 1, "api_key_id": "apk_w"},
        {"period": "word", "hours": "number 1 744", "api_key_id": "text?"},
    ),
    "POST /v1/currencies": (
        {"id": "WWW", "scale": 2, "name": "W"},
        {"id": "currency", "scale": "number 0 9", "name": "text"},
    ),
    "POST /v1/wallets": (
        {"id": "wal_w", "customer_id": "cus_writer", "currency": "CNY", "livemode": True,
         "overdraft_limit": "0", "metadata": {}},
        {"id": "id? wal", "customer_id": "id cus", "currency": "currency", "livemode": "boolean",
         "overdraft_limit": "limit", "metadata": "metadata"},
    ),
    "PATCH /v1/wallets/wal_writer": (
        {"overdraft_limit": "0", "status": "active", "metadata": {}},
        {"overdraft_limit": "limit", "status": "word", "metadata": "metadata"},
    ),
    "POST /v1/api-keys": (
        {"name": "W", "scope": "customer", "customer_id": "cus_writer", "livemode": True,
         "expires_at": "2030-01-01T00:00:00Z"},
        {"name": "text", "scope": "word", "customer_id": "id? cus", "livemode": "boolean",
         "expires_at": "time"},
    ),
}  # fmt: skip
POSTING = "POST /v1/wallets/wal_writer/postings"
COMMON: Json = {
    "idempotency_key": "w", "description": "W", "note": "W", "metadata": {},
    "expected_sequence": 1, "validate_only": False, "effective_at": NOW,
}  # fmt: skip
COMMON_FIELDS = {
    "idempotency_key": "text", "description": "text?", "note": "text?", "metadata": "metadata",
    "expected_sequence": "number 0 9000000000000000000", "validate_only": "boolean",
    "effective_at": "time",
}  # fmt: skip
#: The same of each operation of a posting.
OPERATIONS: dict[str, tuple[Json, dict[str, str]]] = {
    "grant": (
        {"amount": "1", "kind": "topup", "category": "paid", "priority": 50, "name": "W",
         "effective_at": NOW, "expires_at": "2030-01-01T00:00:00Z",
         "source": {"provider": "w", "receipt_id": "w", "method": "w"}},
        {"amount": "amount", "kind": "word", "category": "word", "priority": "number 0 100",
         "name": "text?", "effective_at": "time", "expires_at": "time",
         "source.provider": "text?", "source.receipt_id": "text?", "source.method": "text?"},
    ),
    "consumption": (
        {"amount": "1", "meter_id": "mtr_writer", "meter_event_id": "w",
         "subscription_id": "sub_writer",
         "usage": {"api_key_id": "w", "product_id": "w", "product_name": "w", "category": "w",
                   "billing_method": 1, "quantities": [1, 2], "base_prices": [1],
                   "discount_prices": [1], "price_precision": 1}},
        {"amount": "amount", "meter_id": "id? mtr", "meter_event_id": "text?",
         "subscription_id": "id? sub", "usage.api_key_id": "text?", "usage.product_id": "text?",
         "usage.product_name": "text?", "usage.category": "text?",
         "usage.billing_method": "number 0 2147483647", "usage.quantities": "numbers 6",
         "usage.base_prices": "numbers 2", "usage.discount_prices": "numbers 2",
         "usage.price_precision": "number 1 2147483647"},
    ),
    "adjustment": (
        {"amount": "-1", "source": {"actor": "w"}, "force": False},
        {"amount": "signed", "source.actor": "text?", "force": "boolean"},
    ),
    "refund": (
        {"posting_id": "pst_w", "amount": "1"},
        {"posting_id": "id pst", "amount": "amount"},
    ),
}  # fmt: skip
NO_HOLD = f"hld_{'0' * 26}"
#: Routes of holds, each with a body that is in order.
ON_HOLDS: dict[str, Json] = {
    "POST /v1/wallets/wal_writer/holds": {"idempotency_key": "k", "amount": "1"},
    f"POST /v1/holds/{NO_HOLD}:capture": {"idempotency_key": "k"},
    f"POST /v1/holds/{NO_HOLD}:release": {"idempotency_key": "k"},
    f"POST /v1/holds/{NO_HOLD}:extend": {"idempotency_key": "k", "ttl_seconds": 5},
}
TRANSFER = "POST /v1/transfers"
A_TRANSFER = {
    "idempotency_key": "k",
    "from_wallet_id": "wal_writer",
    "to_wallet_id": "wal_none",
    "amount": "1",
}
NO_GRANT, NO_POSTING = f"cg_{'0' * 26}", f"pst_{'0' * 26}"
GRANTS = "/v1/credit-grants"
#: The same of grants.
ON_GRANTS: dict[str, Json] = {
    f"PATCH {GRANTS}/{NO_GRANT}": {"name": "Spring"},
    f"POST {GRANTS}/{NO_GRANT}:void": {"idempotency_key": "k"},
}
ROUTES = [
    *WRITES,
    POSTING,
    "POST /v1/postings:batch",
    "GET /v1/customers",
    "GET /v1/customers/cus_writer",
    "PATCH /v1/customers/cus_writer",
    "GET /v1/meters",
    "GET /v1/meters/mtr_writer",
    "GET /v1/subscriptions",
    "GET /v1/subscriptions/sub_writer",
    "GET /v1/currencies",
    "GET /v1/currencies/USD",
    "GET /v1/wallets",
    "GET /v1/wallets/wal_writer",
    "GET /v1/wallets/wal_writer/postings",
    "GET /v1/wallets/wal_writer/holds",
    "GET /v1/wallets/wal_writer/spend-limits",
    f"DELETE /v1/wallets/wal_writer/spend-limits/spl_{'0' * 26}",
    f"GET /v1/holds/{NO_HOLD}",
    *ON_HOLDS,
    TRANSFER,
    f"GET {GRANTS}",
    f"GET {GRANTS}/{NO_GRANT}",
    f"GET {GRANTS}/summary",
    f"GET {GRANTS}/{NO_GRANT}/transactions",
    f"GET /v1/postings/{NO_POSTING}/grants",
    *ON_GRANTS,
    "GET /v1/api-keys",
    "DELETE /v1/api-keys/apk_none",
    f"GET {TRANSACTIONS}",
    f"GET {TRANSACTIONS}/ct_none",
    f"GET {SUMMARY}",
    f"GET {BILLING}",
    f"GET {BILLS}",
]
