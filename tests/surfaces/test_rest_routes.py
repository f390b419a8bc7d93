"""Paths, queries and bodies over REST: what leads nowhere, and the names that a body may have.

A 400, 404 or 413 that names the field in the common shape, and not a row more in any table.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pool

from creditledger.ops.server import SERVICES
from tests.support.native_routes import (
    A_TRANSFER,
    COMMON,
    GRANTS,
    LONG,
    NO_GRANT,
    NO_POSTING,
    ON_GRANTS,
    ON_HOLDS,
    OPERATIONS,
    POSTING,
    ROUTES,
    TRANSFER,
    WRITES,
    invalid,
    missing,
    not_found,
    nothing_written,
    refusal,
    send,
)
from tests.support.rest import BILLS, TRANSACTIONS, Failure, Json, Served, failure

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY_BYTES_MAX = 4 * 1024 * 1024


@pytest.mark.parametrize("route", ROUTES)
async def test_beside_each_route(writer: Served, admin: str, route: str) -> None:
    """An unknown parameter is a 400; another method a 405, a slash or a step more a 404."""
    method, path = route.split(" ")
    known = {one for one in ROUTES if one.split(" ")[1] == path}
    methods = {one.split(" ")[0] for one in known}
    # To change a thing, this is an id.
    known.add(f"PATCH {GRANTS}/summary")
    unknown_path = Failure(404, "UNKNOWN_PATH")

    async with nothing_written(writer):
        for name in ("nonsense", "page_sise", "q.q", "callback"):
            found = await refusal(writer, admin, route, **{name: "1"})
            expected = Failure(400, "UNKNOWN_PARAMETER", name.split(".")[0])
            if name == "q.q" and path == TRANSACTIONS:
                expected = Failure(400, "UNKNOWN_PARAMETER", "q")
            assert found == expected, name
        for other in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            if f"{other} {path}" not in known:
                answer = await writer.ask(other, path, key=admin, content=b"{}")
                assert failure(answer) == Failure(405, "UNKNOWN_PATH"), other
                allow = answer.headers["allow"].split(", ")
                assert methods <= set(allow), other
                assert (allow, other in allow) == (sorted(allow), False)
        head = await writer.ask("HEAD", path, key=admin)
        assert (head.status_code, head.content) == (405, b"")
        assert head.headers["content-type"] == "application/json"
        assert methods <= set(head.headers["allow"].split(", "))
        head = await writer.ask("HEAD", path + "/x/y/z", key=admin)
        assert (head.status_code, head.headers["content-type"]) == (404, "application/json")
        for beside in (path + "/", path + "/x/y/z", "/v2" + path, path + "//"):
            assert await refusal(writer, admin, f"{method} {beside}") == unknown_path, beside


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/wallet", "/v1/Wallets", "/v1/postings", "/v1/postings:Batch",
     "/v1/postings:batch/x", "/v1/wallets/wal_1/postings:batch", "/api", "/openapi", "/index.html",
     "/favicon.ico", "/..", "/v1/../etc/passwd", "/credit.v1.WalletService/GetWallet",
     "/grpc.health.v1.Health/Check", "/" + LONG[:10_000]],
)  # fmt: skip
async def test_paths_that_lead_nowhere(writer: Served, admin: str, path: str) -> None:
    """A 404 of the common shape, for any method, with a key and without."""
    for method in ("GET", "POST"):
        for key in (admin, None):
            found = await refusal(writer, key, f"{method} {path}", b"{}")
            assert found == Failure(404, "UNKNOWN_PATH"), method


@pytest.mark.parametrize(
    ("path", "prefix", "param"),
    [
        ("/v1/wallets/{}", "wal", "wallet_id"),
        ("/v1/wallets/{}/postings?idempotency_key=k", "wal", "wallet_id"),
        ("/v1/customers/{}", "cus", "customer_id"),
        ("/v1/meters/{}", "mtr", "meter_id"),
        ("/v1/subscriptions/{}", "sub", "subscription_id"),
        (TRANSACTIONS + "/{}", "ct", "id"),
    ],
)
async def test_ids_in_a_path(
    writer: Served, admin: str, path: str, prefix: str, param: str
) -> None:
    """One of the wrong kind or form is a 400 that names it, one that names nothing a 404."""
    for id_ in ("1", "xyz_1", f"{prefix}_", f"{prefix}_a%20b", f"{prefix}_%C3%A9", f"{prefix}_a%0A",
                f"{prefix}_%2e%2e", f"{prefix}:1", prefix + "_" + "x" * 61,
                prefix + "_" + LONG[:10_000], "%27%20OR%201", "~"):  # fmt: skip
        assert await refusal(writer, admin, "GET " + path.format(id_)) == invalid(param), id_
    for id_ in (f"{prefix}_none", prefix + "_" + "x" * 60, prefix + "_-_"):
        assert await refusal(writer, admin, "GET " + path.format(id_)) == not_found(param), id_
    answer = await writer.ask("GET", path.format(f"{prefix}_%00"), key=admin)
    assert answer.status_code == 400  # refused before it is a request at all
    assert answer.json()["error"]["code"] == "INVALID_FIELD"


async def test_pages_and_words_of_native_lists(writer: Served, admin: str) -> None:
    """page_size 1 to 100, tokens of the list, words and ids of filters."""
    paths = [route for route in ROUTES if route.startswith("GET /v1/") and route.count("/") == 2]
    assert len(paths) == 7
    for route in paths:
        for size in ("0", "101", "-1", "1.5", "x", "", "99999999999"):
            assert await refusal(writer, admin, route, page_size=size) == invalid("page_size")
        for token in ("", "x", "aGVsbG8", "WyJ4Il0", LONG[:10_000], "%", "é"):
            assert await refusal(writer, admin, route, page_token=token) == invalid("page_token")
        for size in ("1", "100"):
            assert len(await send(writer, admin, route, page_size=size)) <= 2
    for query, param in [
        ({"customer_id": "acme"}, "customer_id"),
        ({"customer_id": ""}, "customer_id"),
        ({"currency": "usd"}, "currency"),
        ({"currency": ""}, "currency"),
        ({"status": "Active"}, "status"),
        ({"status": ""}, "status"),
        ({"livemode": "2"}, "livemode"),
    ]:
        assert await refusal(writer, admin, "GET /v1/wallets", **query) == invalid(param), query
    route = "GET /v1/wallets/wal_writer/postings"
    assert await refusal(writer, admin, route) == missing("idempotency_key")
    for key in ("é", "a\n", "x" * 256):
        found = await refusal(writer, admin, route, idempotency_key=key)
        assert found == invalid("idempotency_key")


# --- the names in a body --------------------------------------------------------------------------


def bodies() -> dict[str, tuple[str, Json]]:
    """A route and a sound body for each kind of write, by a name."""
    found = {route: (route, body) for route, (body, _) in WRITES.items()}
    for name, (operation, _) in OPERATIONS.items():
        found[name] = POSTING, {**COMMON, name: operation}
        one = {**COMMON, "wallet_id": "wal_writer", name: operation}
        found[f"batch of {name}"] = "POST /v1/postings:batch", {"postings": [{}, one]}
    return found


def camel(value: object) -> object:
    """The same JSON with all names in camelCase but those of metadata."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        re.sub("_(.)", lambda match: match[1].upper(), name): inner
        if name == "metadata"
        else camel(inner)
        for name, inner in value.items()
    }


def with_name(body: object, name: str, place: str = "") -> Iterator[tuple[object, str]]:
    """The body with this name added to each of its objects in turn, and the name's path."""
    if isinstance(body, list):
        for i, one in enumerate(body):
            for changed, path in with_name(one, name, place):
                yield [*body[:i], changed, *body[i + 1 :]], path
    elif isinstance(body, dict):
        yield {**body, name: {"x": [1]}}, place + name
        for key, value in body.items():
            if key != "metadata":
                for changed, path in with_name(value, name, f"{place}{key}."):
                    yield {**body, key: changed}, path


@pytest.mark.parametrize("name", bodies())
async def test_both_spellings_of_fields(writer: Served, admin: str, name: str) -> None:
    """A body whose names are in camelCase says the same."""
    route, body = bodies()[name]
    if route == POSTING:
        body = {**body, "validate_only": True}
    elif "postings" in body:
        body = {"postings": [{**one, "validate_only": True} for one in body["postings"][1:]]}
    expected = await send_any(writer, admin, route, body)

    found = await send_any(writer, admin, route, camel(body))

    if route != "POST /v1/wallets/wal_writer/spend-limits":  # each is another one
        assert found == expected


async def send_any(served: Served, key: str, route: str, body: object) -> Json:
    """What is answered, refused or not, but for what differs from call to call."""
    method, path = route.split(" ")
    answer = await served.ask(method, path, key=key, json=body)
    found: Json = answer.json()
    found.get("error", {}).pop("request_id", None)
    found.pop("secret", None)
    for name in ("id", "mask"):
        found.get("api_key", {}).pop(name, None)
    return {"status": answer.status_code, **found}


@pytest.mark.parametrize("name", bodies())
async def test_names_that_no_field_has(writer: Served, admin: str, name: str) -> None:
    """An unknown name in any object of a body, however written, is a 400 that names its path."""
    route, body = bodies()[name]

    async with nothing_written(writer):
        for wrong in ("expiresAtt", "Amount", "validateonly", "id_", "_", "ids", "amount__"):
            for changed, path in with_name(body, wrong):
                unknown = Failure(400, "UNKNOWN_PARAMETER", path)
                assert await refusal(writer, admin, route, changed) == unknown
            found = await refusal(writer, admin, route, {"": 1, **body})
            assert (found.status, found.param) in ((400, None), (400, "%"))
        text = json.dumps(body)
        for written, path in [
            ('"dry\\u005frun"', "dry_run"),
            ('"\\u0064ry_run"', "dry_run"),
            ('"a\\\\\\""', 'a\\"'),
            ('"a.b"', "a.b"),
            ('"a,b%"', "a,b%"),
            ('"\\n"', "�"),
            ('"é"', "é"),
            (f'"{LONG}"', LONG[:64]),
        ]:
            changed = f"{{{written} : 1, {text[1:]}".encode()
            unknown = Failure(400, "UNKNOWN_PARAMETER", path)
            assert await refusal(writer, admin, route, changed) == unknown, written


async def test_escaped_names_are_the_same_names(writer: Served, admin: str) -> None:
    """A name with JSON escapes is the field that it spells."""
    body = (
        rb'{"idempotenc\u0079_key":"n","gr\u0061nt":{"am\u006Funt":"1"},"validat\u0065Only":true}'
    )
    async with nothing_written(writer):
        answer = await writer.ask("POST", POSTING.split(" ")[1], key=admin, content=body)
    assert (answer.status_code, answer.json()["validate_only"]) == (200, True)


async def test_more_names_than_are_counted(writer: Served, admin: str) -> None:
    """A body with more than 256 distinct paths is refused; names in metadata do not count."""
    async with nothing_written(writer):
        for count, expected in [
            (256, Failure(400, "UNKNOWN_PARAMETER", "n0")),
            (257, invalid(None)),
            (50_000, invalid(None)),
        ]:
            unknown = {f"n{i}": None for i in range(count)}
            assert await refusal(writer, admin, "POST /v1/postings:batch", unknown) == expected
        many: Json = {"idempotency_key": "k", "validate_only": True, "grant": {"amount": "1"}}
        many["metadata"] = {f"expiresAtt {i}": "x" for i in range(50)}
        assert (await send(writer, admin, POSTING, many))["validate_only"]
        postings = [
            {**many, "wallet_id": "wal_writer", "metadata": {f"{i} {j}": "x" for j in range(50)}}
            for i in range(100)
        ]
        answer = await send(writer, admin, "POST /v1/postings:batch", {"postings": postings})
        assert ["posting" in result for result in answer["results"]] == [True] * 100


@pytest.mark.parametrize(
    "body",
    [
        b"{'idempotency_key': 'k', 'grant': {'amount': '1'}}",
        b'{idempotency_key: "k", grant: {amount: "1"}}',
        b'{"idempotency_key": "k", "grant": {"amount": \'1\'}}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}, dry: 1}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}, \'dry\': 1}',
        b'{"idempotency_key": "k", "grant": {"amount": "1"}} //',
        b'\xef\xbb\xbf{"idempotency_key": "k", "grant": {"amount": "1"}}',
    ],
)
async def test_what_is_no_json_is_no_body(writer: Served, admin: str, body: bytes) -> None:
    """A body with names in other quotes or none is refused as a whole."""
    async with nothing_written(writer):
        assert await refusal(writer, admin, POSTING, body) == invalid(None)


async def test_the_header_of_names_is_the_proxys(writer: Served, admin: str) -> None:
    """A client cannot set the header in which the proxy passes names on."""
    path = POSTING.split(" ")[1]
    sound = {"idempotency_key": "k", "validate_only": True, "grant": {"amount": "1"}}
    for body, status in ((sound, 200), ({**sound, "dry_run": True}, 400)):
        for said in ("", "idempotency_key", "nonsense", "!"):
            headers = {"x-creditledger-names": said}
            answer = await writer.ask("POST", path, key=admin, json=body, headers=headers)
            assert answer.status_code == status


async def test_numbers_in_metadata_are_texts(writer: Served, admin: str) -> None:
    """Numbers in metadata stay as they were written; other kinds of values are refused."""
    body = (
        b'{"idempotency_key": "k", "validate_only": true, "grant": {"amount": "1"},'
        b'"metadata": {"a":1, "b" : -1.50e+3 ,"c": "2", "1": 0.10,"d":12345678901234567890}}'
    )
    answer = await writer.ask("POST", POSTING.split(" ")[1], key=admin, content=body)

    (row,) = answer.json()["transactions"]
    assert row["metadata"] == {
        "a": "1", "b": "-1.50e+3", "c": "2", "1": "0.10", "d": "12345678901234567890",
    }  # fmt: skip


def lists() -> dict[str, list[str]]:
    """The paths of all RPCs that answer pages, each with its parameters; ids as they may be."""
    ids = {
        "wallet_id": "wal_writer", "posting_id": NO_POSTING, "CreditGrantService": NO_GRANT,
        "WebhookService": "whe_" + "0" * 26,
    }  # fmt: skip
    found = {}
    for service in map(descriptor_pool.Default().FindServiceByName, SERVICES):
        for method in service.methods:
            fields = [field.name for field in method.input_type.fields]
            path = method.GetOptions().Extensions[annotations_pb2.http].get
            if path and "page_size" in fields:
                for name in re.findall(r"{(\w+)}", path):
                    path = path.replace(f"{{{name}}}", ids.get(name) or ids[service.name])
                found[path] = fields
    return found


@pytest.mark.parametrize("path", lists())
async def test_both_spellings_of_parameters(writer: Served, admin: str, path: str) -> None:
    """Each parameter of each list is read in snake_case and in camelCase; not both at once."""
    given = "cycleType=Day&startTime=1790000000&endTime=1790000001&" if path == BILLS else ""

    for name in ("page_size", "pageSize"):
        found = await refusal(writer, admin, f"GET {path}?{given}{name}=-1")
        assert (found.status, found.code) == (400, "INVALID_FIELD")
        assert found.param in ("page_size", "pageSize")
    both = await refusal(writer, admin, f"GET {path}?{given}page_size=1&pageSize=1")
    assert (both.status, both.code) == (400, "INVALID_FIELD")
    for name in lists()[path]:
        camel = re.sub("_(.)", lambda match: match[1].upper(), name)
        for spelled in (name, camel):
            answer = await writer.ask("GET", path, key=admin, query=f"{spelled}=x")
            assert "UNKNOWN_PARAMETER" not in answer.text, spelled


@pytest.mark.parametrize("route", [*WRITES, POSTING, "POST /v1/postings:batch"])
async def test_bodies_that_are_none(writer: Served, admin: str, route: str) -> None:
    """No JSON, no object, broken text: a 400. Without a body what is required is missing."""
    broken: list[bytes] = [
        b"{", b"[]", b"null", b'"x"', b"1", b"{]", b"{} {}", b'{"name":}', b"name=x", b"\x00",
        b"\xff\xfe", b'{"name":"\xff"}', b'{"name":"\\ud800"}', b"<xml/>",
        b'{"a":' * 500 + b"1" + b"}" * 500,
    ]  # fmt: skip

    async with nothing_written(writer):
        for body in broken:
            assert await refusal(writer, admin, route, body) == invalid(None), body
        if route.startswith("POST"):
            for body in (b"", b"{}"):
                found = await refusal(writer, admin, route, body)
                assert (found.status, found.param is None) == (400, False), body[:40]


@pytest.mark.parametrize(
    ("route", "too_large"),
    [
        (POSTING, BODY_BYTES_MAX + 1),
        ("POST /v1/postings:batch", 2 * BODY_BYTES_MAX),
        ("POST /v1/customers", BODY_BYTES_MAX + 1),
    ],
)
async def test_a_body_that_is_too_large(
    writer: Served, admin: str, route: str, too_large: int
) -> None:
    """Over 4 MiB: 413 request_too_large; just under it, the body is read."""
    method, path = route.split(" ")
    shell = b'{"note": "%s"}'

    def sent(size: int) -> Failure:
        # Not by asyncio, whose transports drop what they have read when a write fails: the answer
        # comes before the request is over.
        content = shell % (b"x" * (size - len(shell % b"")))
        headers = {"authorization": f"Bearer {admin}"}
        with httpx.Client(base_url=writer.url, trust_env=False, timeout=20) as client:
            return failure(client.request(method, path, content=content, headers=headers))

    async with nothing_written(writer):
        assert await asyncio.to_thread(sent, too_large) == Failure(413, "BODY_TOO_LARGE")
        # Ids of the path are part of what the server reads.
        assert (await asyncio.to_thread(sent, BODY_BYTES_MAX - 100)).status == 400


async def test_fields_given_twice(writer: Served, admin: str) -> None:
    """A key of the JSON that comes twice is a 400: neither of its values counts."""
    async with nothing_written(writer):
        for body, param in [
            (b'{"idempotency_key":"a","idempotency_key":"a","grant":{"amount":"1"}}',
             "idempotency_key"),
            (b'{"idempotency_key":"a","grant":{"amount":"1","amount":"2"}}', "grant.amount"),
            (b'{"idempotency_key":"a","grant":{"amount":"1"},"grant":{"amount":"1"}}', "grant"),
        ]:  # fmt: skip
            assert await refusal(writer, admin, POSTING, body) == invalid(param), body
        other = {"wallet_id": "wal_other", "idempotency_key": "a", "grant": {"amount": "1"}}
        assert await refusal(writer, admin, POSTING, other) == invalid("wallet_id")


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_like_grpc_is_no_grpc(writer: Served, route: str) -> None:
    """Content types that only begin like gRPC's are REST: errors have the common body."""
    method, path = route.split(" ")
    headers = {"content-type": "application/grpcx"}
    answer = await writer.ask(method, path, key="sk-short", content=b"{}", headers=headers)
    assert failure(answer).status in (400, 401)
    rpc = "/credit.v1.WalletService/GetWallet"
    answer = await writer.ask("POST", rpc, key=None, content=b"\0" * 5, headers=headers)
    assert failure(answer) == Failure(404, "UNKNOWN_PATH")


@pytest.mark.parametrize("route", ROUTES)
async def test_without_a_key(writer: Served, route: str) -> None:
    """401 for each route, once the request is in order; a malformed key is no better than none."""
    body = WRITES[route][0] if route in WRITES else None
    query = {}
    if route == POSTING:
        body = {"idempotency_key": "k", "grant": {"amount": "1"}}
    elif route in ON_HOLDS | ON_GRANTS:
        body = (ON_HOLDS | ON_GRANTS)[route]
    elif route == TRANSFER:
        body = A_TRANSFER
    elif route.endswith(":batch"):
        body = {"postings": [{}]}
    elif route.endswith("/postings"):
        query = {"idempotency_key": "k"}
    elif BILLS in route:
        query = {"cycleType": "Day", "startTime": "1790000000", "endTime": "1790000001"}

    async with nothing_written(writer):
        found = await refusal(writer, None, route, body, **query)
        assert found == Failure(401, "KEY_MISSING")
        for key in ("sk-short", "sk-" + "0" * 43, "x" * 200):
            found = await refusal(writer, key, route, body, **query)
            assert found == Failure(401, "KEY_INVALID")
