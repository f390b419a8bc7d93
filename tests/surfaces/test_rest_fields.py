"""Bad fields over REST: what each field of every write may not be.

A 400 or 404 that names the field in the common shape, and not a row more in any table.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from creditledger.domain import clock as time
from tests.support.native_routes import (
    BATCH_MAX,
    COMMON,
    COMMON_FIELDS,
    LONG,
    OPERATIONS,
    POSTING,
    WRITES,
    invalid,
    missing,
    not_found,
    nothing_written,
    postings_of,
    refusal,
    send,
)
from tests.support.rest import Failure, Json, Served
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

METADATA_BYTES_MAX = 8_192


# --- bad input: fields ----------------------------------------------------------------------------


#: Neither a decimal nor a string that could be one.
NO_AMOUNTS: list[object] = [
    "abc", "1e3", "NaN", "Infinity", "-0", "-0.00", "+5", "1" + "0" * 30, "1000000000",
    "1.0000000001", "1.0000000000", " 1", "1 ", "1,5", "1.", ".5", "1.2.3", "--1", "0x10", "1_0",
    "٣", "1\x00", "1\n", LONG, 5, 1.5, 0, True, {"a": "1"}, ["1"],
]  # fmt: skip
NO_TEXTS: list[object] = [
    "", LONG, "a\x00b", "\x07", "a\nb", "\x7f", "\x85", "\u2028", 5, True, {"a": "b"}, ["a"],
]  # fmt: skip
NO_TIMES: list[object] = [
    "", "soon", "2026-09-21", "2026-09-21T14:13:20", "2026-09-21 14:13:20Z", "2026-13-01T00:00:00Z",
    "2026-02-30T00:00:00Z", "2026-09-21T24:00:00Z", "2026-09-21T14:13:20+25:00",
    "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "10000-01-01T00:00:00Z",
    "9999-12-31T23:59:59-01:00", "2026-09-21T14:13:20Z\x00", LONG, 1_790_000_000, 1.5, True,
]  # fmt: skip


def no_ids(prefix: str) -> list[object]:
    """Nothing that an id of this kind could be."""
    other = "cus" if prefix != "cus" else "wal"
    return [
        "", "1", f"{other}_1", prefix, f"{prefix}_", f"{prefix}-1", f"{prefix.upper()}_1",
        f"{prefix}_a b", f"{prefix}_é", f"{prefix}_a\x00", f"{prefix}_a\n", f"{prefix}_" + "x" * 61,
        f"{prefix}_{LONG}", LONG, 5, True, [f"{prefix}_1"], {"id": f"{prefix}_1"},
    ]  # fmt: skip


def no_metadata() -> Iterator[tuple[object, str | None]]:
    """What metadata cannot be, and the param that says so."""
    many = {str(number): "x" for number in range(51)}
    heavy = {"a": "x" * METADATA_BYTES_MAX}
    wide = {"ß" * 60: "ß" * ((METADATA_BYTES_MAX - 118) // 2)}
    bad: list[object] = [
        many, heavy, wide, {"": "x"}, {"x" * 129: "x"}, {"a": "\x00"}, {"a\x07": "b"},
        {"a": True}, {"a": ["b"]}, {"a": [1]}, ["a"], "a", 5,
    ]  # fmt: skip
    yield from ((value, "metadata") for value in bad)
    yield {"a": {"b": "c"}}, None  # seen by the server as a text that is none


def with_field(body: Json, name: str, value: object) -> Json:
    """A deep copy of the body with the field, named by its path, replaced."""
    changed: Json = json.loads(json.dumps(body))
    *path, last = name.split(".")
    inner = changed
    for part in path:
        inner = inner[part]
    inner[last] = value
    return changed


def bad_values(held: str) -> Iterator[tuple[object, str]]:
    """(value, code) of what a field that holds this cannot be."""
    kind, *rest = held.split(" ")
    absent = "INVALID_FIELD" if kind.endswith("?") else "MISSING_FIELD"
    kind = kind.rstrip("?")
    if kind == "id":
        yield from ((v, absent if v == "" else "INVALID_FIELD") for v in no_ids(rest[0]))
    elif kind == "text":
        yield from ((v, absent if v == "" else "INVALID_FIELD") for v in NO_TEXTS)
    elif kind == "currency":
        for value in ["usd", "US", "U" * 17, "1US", "U-S", "USD\x00", "ÜSD", LONG, 5, ["USD"]]:
            yield value, "INVALID_FIELD"
        yield "", absent
    elif kind in {"amount", "signed", "limit"}:
        # What an optional amount holds is no absence: "" is no number.
        yield "", "INVALID_FIELD" if kind == "limit" else "MISSING_FIELD"
        yield from ((value, "INVALID_FIELD") for value in NO_AMOUNTS)
        more = {"amount": ["0", "0.00", "-1"], "signed": ["0", "0.000"], "limit": ["-1", "-0.01"]}
        yield from ((value, "INVALID_FIELD") for value in more[kind])
    elif kind == "time":
        yield from ((value, "INVALID_FIELD") for value in NO_TIMES)
    elif kind == "boolean":
        yield from ((value, "INVALID_FIELD") for value in ["", "maybe", 1, 0, 1.5, [True], {}])
    elif kind == "word":
        yield from ((v, "INVALID_FIELD") for v in ["Paid", "no word", LONG, "a\x00", 5, ["paid"]])
    elif kind == "number":
        least, most = map(int, rest)
        outside = [least - 1, most + 1, 1.5, "1.5", "one", "", True, [[]], {"a": 1}, 10**30]
        yield from ((value, "INVALID_FIELD") for value in outside)
    else:
        assert kind == "numbers"
        bad = [[-1], [10**15 + 1], [1.5], ["x"], [2**63], [1] * (int(rest[0]) + 1), ["1", None, -1]]
        yield from ((value, "INVALID_FIELD") for value in bad)


def named(found: Failure, code: str, field: str, value: object) -> bool:
    """Whether the refusal is the expected one, under the field's name.

    The name may have a place in a list behind it. Of a list where none belongs Envoy names what
    holds it.
    """
    around = field.rpartition(".")[0] or None
    if isinstance(value, list) and found == invalid(around):
        return True
    plain = found.param and found.param.partition("[")[0]
    return (found.status, found.code, plain) == (400, code, field)


def write_fields() -> Iterator[Any]:
    """(route, body, field, what it holds), of every field of every write."""
    for route, (body, held) in WRITES.items():
        for field, kind in held.items():
            yield pytest.param(route, body, field, kind, id=f"{route}-{field}")
    for name, (operation, held) in OPERATIONS.items():
        body = {**COMMON, name: operation}
        fields = {f"{name}.{field}": kind for field, kind in held.items()}
        for field, kind in fields.items():
            yield pytest.param(POSTING, body, field, kind, id=f"posting-{field}")
    body = {**COMMON, "grant": {"amount": "1"}}
    for field, kind in COMMON_FIELDS.items():
        yield pytest.param(POSTING, body, field, kind, id=f"posting-{field}")


@pytest.mark.parametrize(("route", "body", "field", "held"), list(write_fields()))
async def test_a_field_that_is_not_what_it_should_be(
    writer: Served, admin: str, route: str, body: Json, field: str, held: str
) -> None:
    """Each field of each write, each way to spoil it: a 400 that names it, nothing written."""
    writer.clock.now = START
    bad = [] if held == "metadata" else list(bad_values(held))

    async with nothing_written(writer):
        for value, code in bad:
            found = await refusal(writer, admin, route, with_field(body, field, value))
            assert named(found, code, field, value), (str(value)[:60], found)
        if held == "metadata":
            for value, param in no_metadata():
                found = await refusal(writer, admin, route, with_field(body, field, value))
                assert found == invalid(param), (str(value)[:60], found)


async def test_bad_fields_in_a_batch(writer: Served, service: str) -> None:
    """Every bad text of every field is an error of its own item, under its name.

    A value of another JSON type makes it no batch at all: Envoy refuses it whole and names the
    place.
    """
    writer.clock.now = START
    cases: list[tuple[Json, str, str]] = []
    for name, (operation, held) in OPERATIONS.items():
        fields = {f"{name}.{field}": kind for field, kind in held.items()} | COMMON_FIELDS
        body = {**COMMON, name: operation, "wallet_id": "wal_writer"}
        for field, kind in fields.items():
            texts = kind.split(" ")[0] in {"amount", "signed", "text", "text?", "time", "word"}
            for value, code in bad_values(kind) if texts else ():
                if isinstance(value, str):
                    cases.append((with_field(body, field, value), code, field))
    good = {"wallet_id": "wal_writer", "grant": {"amount": "1"}}
    ends = [{**good, "idempotency_key": f"batch end {n}"} for n in range(2)]
    route = "POST /v1/postings:batch"

    def batch(*middle: Json) -> Json:
        return {"postings": [ends[0], *middle, ends[1]]}

    assert 300 < len(cases) < BATCH_MAX
    async with nothing_written(writer):
        for field, value, param in [
            ("grant.amount", 5, "grant.amount"),
            ("grant.amount", 1.5, "grant.amount"),
            ("grant.amount", True, "grant.amount"),
            ("grant.amount", {"a": "1"}, "grant.amount"),
            ("grant.amount", ["1"], "grant"),
            ("grant.priority", "high", "grant.priority"),
            ("metadata", {"a": True}, "metadata"),
            ("expected_sequence", 1.5, "expected_sequence"),
            ("validate_only", "maybe", "validate_only"),
        ]:
            bad = with_field({**good, "idempotency_key": "bad"}, field, value)
            found = await refusal(writer, service, route, batch(bad))
            assert found == invalid(f"postings[1].{param}"), (field, value)
    before = writer.row_counts()["postings"]
    answer = await send(writer, service, route, batch(*(body for body, _, _ in cases)))

    assert len(answer["results"]) == len(cases) + 2
    assert [list(answer["results"][place]) for place in (0, -1)] == [["posting"]] * 2
    assert writer.row_counts()["postings"] == before + 2
    for (body, code, field), result in zip(cases, answer["results"][1:-1], strict=True):
        error = result["error"]
        assert (error["type"], error["code"], error["param"]) == (
            "invalid_request_error", code, field,
        ), (body, error)  # fmt: skip


@pytest.mark.parametrize("route", WRITES)
async def test_the_requests_that_are_spoilt_are_in_order(
    writer: Served, admin: str, route: str
) -> None:
    """What the test above spoils succeeds unspoilt: it is each field alone that is refused."""
    writer.clock.now = START
    body, _ = WRITES[route]

    await send(writer, admin, route, body)


@pytest.mark.parametrize("name", ["grant", "consumption", "adjustment"])
async def test_the_postings_that_are_spoilt_are_in_order(
    writer: Served, admin: str, name: str
) -> None:
    """The same for postings, and at the upper limits of their fields."""
    writer.clock.now = START
    operation, _ = OPERATIONS[name]
    free = {key: value for key, value in COMMON.items() if key != "expected_sequence"}
    await send(writer, admin, POSTING, {**free, "idempotency_key": f"{name}", name: operation})

    texts: Json = {"description": "d" * 512, "note": "ß" * 512, "idempotency_key": name * 20}
    texts["metadata"] = {"k" * 128: "v" * (METADATA_BYTES_MAX - 128)}
    largest = {
        "grant": {"amount": "100000000", "priority": 100, "name": "n" * 128,
                  "source": {"provider": "p" * 128}, "expires_at": "9999-12-31T23:59:59.999Z"},
        "consumption": {
            "amount": "0.000000001", "meter_event_id": "e" * 128,
            "usage": {"product_name": "ß" * 128, "quantities": [10**15] * 6,
                      "base_prices": [10**15] * 6, "price_precision": 2**31 - 1},
        },
        "adjustment": {"amount": "-0.000000001", "source": {"actor": "a" * 128}},
    }  # fmt: skip
    await send(writer, admin, POSTING, {**texts, name: largest[name]})
    await send(writer, admin, POSTING, {"idempotency_key": "x" * 255, "grant": {"amount": "1"}})


@pytest.mark.parametrize("route", [*WRITES, POSTING])
async def test_a_required_field_that_is_absent(writer: Served, admin: str, route: str) -> None:
    """Left out or null, it is MISSING_FIELD under its name."""
    if route == POSTING:
        fields = {
            f"{name}.amount": {**COMMON, name: body} for name, (body, _) in OPERATIONS.items()
        }
        del fields["refund.amount"]
        fields["refund.posting_id"] = {**COMMON, "refund": {"amount": "1"}}
        quantities = {**COMMON, "consumption": OPERATIONS["consumption"][0]}
        fields["consumption.usage.quantities"] = quantities
        fields["idempotency_key"] = {**COMMON, "grant": {"amount": "1"}}
        fields["operation"] = COMMON
    else:
        body, held = WRITES[route]
        optional = {"id", "metadata", "livemode", "overdraft_limit", "expires_at", "status"}
        if route == "POST /v1/currencies":
            optional.remove("id")
        required = [name for name in held if name not in optional and "?" not in held[name]]
        fields = dict.fromkeys(required, body)

    async with nothing_written(writer):
        for field, body in fields.items():
            if field != "operation":  # which is one of several, and no field
                null = with_field(body, field, None)
                assert await refusal(writer, admin, route, null) == missing(field)
            *path, last = field.split(".")
            without = json.loads(json.dumps(body))
            inner = without
            for part in path:
                inner = inner[part]
            inner.pop(last, None)
            assert await refusal(writer, admin, route, without) == missing(field), field


async def test_what_goes_together(writer: Served, admin: str, service: str) -> None:
    """Fields that are right alone and wrong together: times in order, sources of their kind."""
    writer.clock.now = START
    hour, day = time.HOUR, time.DAY

    def at(milliseconds: int) -> str:
        return time.text(START + milliseconds)

    ops, stripe = {"actor": "ops"}, {"provider": "stripe"}
    refused: list[tuple[Json, str]] = [
        ({"grant": {"effective_at": at(2 * hour), "expires_at": at(hour)}}, "grant.expires_at"),
        ({"grant": {"effective_at": at(hour), "expires_at": at(hour)}}, "grant.expires_at"),
        ({"grant": {"expires_at": at(hour)}, "effective_at": at(hour)}, "grant.expires_at"),
        ({"grant": {"expires_at": at(0)}}, "grant.expires_at"),
        ({"grant": {"expires_at": at(-day)}}, "grant.expires_at"),
        ({"grant": {"effective_at": at(-35 * day - 1)}}, "grant.effective_at"),
        ({"grant": {}, "effective_at": at(-35 * day - 1)}, "effective_at"),
        ({"consumption": {}, "effective_at": at(-35 * day - 1)}, "effective_at"),
        ({"consumption": {}, "effective_at": at(60_001)}, "effective_at"),
        ({"consumption": {}, "effective_at": "9999-12-31T23:59:59Z"}, "effective_at"),
        ({"consumption": {}, "effective_at": "0001-01-01T00:00:00Z"}, "effective_at"),
        ({"adjustment": {}, "effective_at": at(60_001)}, "effective_at"),
        ({"adjustment": {"force": True}}, "adjustment.force"),
        ({"adjustment": {"credit_grant_id": "GRANT"}}, "adjustment.credit_grant_id"),
        ({"grant": {"source": ops}}, "grant.source.actor"),
        ({"grant": {"kind": "admin_credit", "source": stripe}}, "grant.source.provider"),
        (
            {"grant": {"kind": "subscription_renew", "source": {"method": "card"}}},
            "grant.source.method",
        ),
        ({"grant": {"source": {"posting_id": "pst_1"}}}, "grant.source.posting_id"),
        ({"adjustment": {"source": stripe}}, "adjustment.source.provider"),
        ({"adjustment": {"source": {"posting_id": "pst_1"}}}, "adjustment.source.posting_id"),
        ({"grant": {}, "consumption": {}}, "consumption"),
    ]
    (given,) = await writer.post("wal_writer", {"grant": {"amount": "1"}})
    grant = given["transactions"][0]["credit_grant_id"]
    accepted: list[Json] = [
        {"consumption": {}, "effective_at": at(60_000)},
        {"consumption": {}, "effective_at": at(-35 * day)},
        {"grant": {}, "effective_at": at(-35 * day)},
        {"grant": {"effective_at": at(3650 * day)}},
        {"grant": {"expires_at": at(1)}},
        {"adjustment": {"amount": "-0.1", "credit_grant_id": grant}},
    ]

    def whole(posting: Json, key: str) -> Json:
        text = json.dumps({"idempotency_key": key, **posting}).replace("GRANT", grant)
        body: Json = json.loads(text)
        for name in ("grant", "consumption", "adjustment"):
            if name in body:
                body[name].setdefault("amount", "0.01")
        return body

    async with nothing_written(writer):
        for posting, field in refused:
            key = admin if field == "adjustment.force" else service
            found = await refusal(writer, key, POSTING, whole(posting, "together"))
            assert found == invalid(field), posting
        found = await refusal(
            writer, service, POSTING, whole({"adjustment": {"amount": "-1", "force": True}}, "x")
        )
        assert found == Failure(403, "SCOPE_DENIED")
    for number, posting in enumerate(accepted):
        await send(writer, service, POSTING, whole(posting, f"together {number}"))
    ancient = {"consumption": {"amount": "0.01"}, "effective_at": "0001-01-01T00:00:00Z"}
    answer = await send(writer, admin, POSTING, whole(ancient, "ancient"))
    assert answer["transactions"][0]["effective_at"] == "0001-01-01T00:00:00.000Z"


async def test_references_that_name_nothing(writer: Served, admin: str) -> None:
    """Customer, currency, meter, subscription, grant, posting and wallet must exist: NOT_FOUND."""
    other = await writer.customer()
    foreign = await writer.subscription(other)
    other_wallet = await writer.wallet(other)
    given, spent = await writer.post(
        other_wallet, {"grant": {"amount": "1"}}, {"consumption": {"amount": "1"}}
    )
    grant = given["transactions"][0]["credit_grant_id"]

    def refund(posting_id: str) -> Json:
        return {"refund": {"posting_id": posting_id}}

    def used(**named: str) -> Json:
        return {"consumption": {"amount": "1", **named}}

    def debit(credit_grant_id: str) -> Json:
        return {"adjustment": {"amount": "-1", "credit_grant_id": credit_grant_id}}

    def new(route: str, **changed: str) -> tuple[str, Json]:
        return route, {**WRITES[route][0], **changed}

    cases: list[tuple[str, Json, str]] = [
        (POSTING, used(meter_id="mtr_none"), "consumption.meter_id"),
        (POSTING, used(subscription_id="sub_none"), "consumption.subscription_id"),
        (POSTING, used(subscription_id=foreign), "consumption.subscription_id"),
        (POSTING, debit("cg_none"), "adjustment.credit_grant_id"),
        (POSTING, debit(grant), "adjustment.credit_grant_id"),
        (POSTING, refund("pst_none"), "refund.posting_id"),
        (POSTING, refund("pst_" + "z" * 26), "refund.posting_id"),
        (POSTING, refund(spent["posting_id"]), "refund.posting_id"),
        (postings_of("wal_none"), {"grant": {"amount": "1"}}, "wallet_id"),
        ("PATCH /v1/wallets/wal_none", {}, "wallet_id"),
        ("DELETE /v1/api-keys/apk_none", {}, "id"),
        (*new("POST /v1/wallets", id="wal_none", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/wallets", id="wal_none", currency="ZZZ"), "currency"),
        (*new("POST /v1/subscriptions", id="sub_none", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/api-keys", customer_id="cus_none"), "customer_id"),
        (*new("POST /v1/meters", id="mtr_none", currency_id="ZZZ"), "currency_id"),
    ]

    async with nothing_written(writer):
        for route, body, field in cases:
            keyed = {"idempotency_key": "none", **body} if "/postings" in route else body
            found = await refusal(writer, admin, route, None if "DELETE" in route else keyed)
            assert found == not_found(field), (route, body)


async def test_a_wallet_of_the_other_mode(writer: Served, admin: str) -> None:
    """For a key of one mode the wallets of the other are not there, for reads and for writes."""
    test = await writer.key("admin", livemode=False)
    wallet = await writer.wallet(livemode=False)
    answer = await writer.post(wallet, {"grant": {"amount": "1"}, "idempotency_key": "k"})
    grant = {"idempotency_key": "k", "grant": {"amount": "1"}}

    async with nothing_written(writer):
        for key, id_ in ((admin, wallet), (test, "wal_writer")):
            for route, body in [
                (f"GET /v1/wallets/{id_}", None),
                (f"PATCH /v1/wallets/{id_}", {"status": "active"}),
                (postings_of(id_), grant),
            ]:
                assert await refusal(writer, key, route, body) == not_found("wallet_id"), route
            found = await refusal(
                writer, key, f"GET /v1/wallets/{id_}/postings", idempotency_key="k"
            )
            assert found == not_found("wallet_id")
        mismatch = Failure(403, "MODE_MISMATCH", "livemode")
        for route, body in [
            ("POST /v1/wallets", {**WRITES["POST /v1/wallets"][0], "livemode": False}),
            ("POST /v1/api-keys", {"name": "x", "scope": "admin", "livemode": False}),
        ]:
            assert await refusal(writer, admin, route, body) == mismatch
        for path in ("/v1/wallets", "/v1/api-keys"):
            assert await refusal(writer, admin, f"GET {path}", livemode="false") == mismatch
    own = await send(writer, test, f"GET /v1/wallets/{wallet}/postings", idempotency_key="k")
    assert own["posting_id"] == answer[0]["posting_id"]
