"""How a call is refused: the same reason at each place, nothing given away, never too late."""

from __future__ import annotations

import asyncio
import json
import re
import string
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from creditledger.api.names import DROPPED
from creditledger.api.status import rest_body
from creditledger.domain.errors import KINDS, ErrorKind, InvalidField
from creditledger.ops.server import SERVICES
from tests.support.cases import in_turn
from tests.support.databases import kept_locked
from tests.support.refusals import Refused, bearer, refusal, refused
from tests.support.server import WALLET, consume, fate, grant, post, ranked, serve, wallet
from tests.support.setup import change, findings, is_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from sqlalchemy import Connection

    from tests.support.server import Api
    from tests.support.setup import Clock

ROOT = Path(__file__).parents[2]


# --- errors ---------------------------------------------------------------------------------------


def reasons() -> dict[str, tuple[str, int, str, set[str]]]:
    """What errors.proto says of each reason: gRPC code, HTTP status, type, keys of metadata."""
    text = (ROOT / "protos/credit/v1/errors.proto").read_text()
    text = re.sub(r"\n *// ?", " ", text)
    entry = re.compile(
        r"\[(\w+), (\d+) (\w+)\] Metadata: (.*?)\. Example:.*?ERROR_REASON_(\w+) =", re.DOTALL
    )
    found = {}
    for code, status, kind, keys, name in entry.findall(text):
        found[name] = (code, int(status), kind, set(re.findall(r"`(\w+)`", keys)))
    return found


def test_every_reason_is_as_the_contract_says() -> None:
    """Every reason, and no other, has the codes that errors.proto states."""
    ours = {
        reason: (kind.grpc_code, kind.http_status, kind.error_type)
        for reason, kind in KINDS.items()
    }

    assert ours == {reason: one[:3] for reason, one in reasons().items()}


async def provoked(api: Api) -> list[tuple[ErrorKind, Refused, Awaitable[object]]]:
    """A call for each kind of error that a client can cause, with what it is refused for."""
    await api.post("topup", **grant("1"))
    wallets = api.wallets
    get = pb.GetWalletRequest(wallet_id=WALLET)
    poor = {"required": "2.00", "available": "1.00", "currency": "USD"}
    frozen = await api.local.new_wallet("wal_frozen", "cus_frozen")
    await wallets.UpdateWallet(
        pb.UpdateWalletRequest(wallet_id=frozen.id, status="frozen"), metadata=api.admin
    )
    taken = pb.CreateWalletRequest(id=WALLET, customer_id="cus_frozen", currency="USD")
    return [
        (
            ErrorKind.MALFORMED,
            Refused("INVALID_FIELD", "consumption.amount"),
            api.post("a", **consume("NaN")),
        ),
        (ErrorKind.UNAUTHENTICATED, Refused("KEY_MISSING"), wallets.GetWallet(get)),
        (
            ErrorKind.UNAUTHENTICATED,
            Refused("KEY_INVALID"),
            wallets.GetWallet(get, metadata=bearer("sk-" + "0" * 43)),
        ),
        (
            ErrorKind.NOT_ALLOWED,
            Refused("SCOPE_DENIED"),
            wallets.Post(post("b", **consume("1")), metadata=api.customer),
        ),
        (
            ErrorKind.UNKNOWN,
            Refused("NOT_FOUND", "wallet_id"),
            api.post("c", "wal_none", **consume("1")),
        ),
        (
            ErrorKind.TAKEN,
            Refused("ID_TAKEN", "id"),
            wallets.CreateWallet(taken, metadata=api.admin),
        ),
        (
            ErrorKind.MOVED_ON,
            Refused("SEQUENCE_MISMATCH", "expected_sequence", {"expected": "7", "actual": "1"}),
            api.post("d", expected_sequence=7, **consume("1")),
        ),
        (
            ErrorKind.NO_CREDIT,
            Refused("INSUFFICIENT_CREDIT", None, poor),
            api.post("e", **consume("2")),
        ),
        (
            ErrorKind.WRONG_STATE,
            Refused("WALLET_FROZEN"),
            api.post("f", "wal_frozen", **consume("1")),
        ),
    ]


async def test_an_error_says_all_at_each_place(api: Api) -> None:
    """Each kind: the code, ErrorInfo, BadRequest where a field is at fault, and REST's trailers.

    The trailers repeat it for REST: the whole body as ASCII JSON, and the HTTP status.
    """
    for kind, expected, call in await provoked(api):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = caught.value
        trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert status.details[0].Unpack(info)
        assert len(status.details) == (2 if expected.param else 1)
        if expected.param:
            assert status.details[1].Unpack(fields)
        body = json.loads(trailers["x-creditledger-error"])["error"]

        assert error.code().name == kind.grpc_code
        assert status.code == error.code().value[0]
        assert status.message == error.details() == body["message"] != ""
        assert (info.reason, info.domain) == (expected.reason, "creditledger")
        assert dict(info.metadata) == expected.metadata
        assert set(info.metadata) == reasons()[expected.reason][3]
        assert [one.field for one in fields.field_violations] == (
            [expected.param] if expected.param else []
        )
        assert trailers["x-creditledger-status"] == str(kind.http_status)
        assert (body["type"], body["code"]) == (kind.error_type, expected.reason)
        assert body.get("param") == expected.param
        assert body["metadata"] == expected.metadata
        assert body["request_id"] == trailers["x-request-id"]
        assert trailers["x-creditledger-error"].isascii()


@in_turn(
    "sent, kept",
    [("envoy-made-1", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False)],
)
async def test_the_request_id_is_the_proxys(api: Api, sent: str, kept: bool) -> None:
    """An id that came with the request is answered; one that is none of a proxy's is not echoed."""
    call = api.wallets.GetWallet(
        pb.GetWalletRequest(), metadata=(*api.service, ("x-request-id", sent))
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    answered = dict(caught.value.trailing_metadata() or ())["x-request-id"]
    assert (answered == sent) == kept
    assert answered


async def test_what_is_echoed_is_cut(api: Api) -> None:
    """An error repeats no more than 64 characters of what was sent, and stays a header's size."""
    long = "wal_" + "é" * 10_000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.wallets.GetWallet(pb.GetWalletRequest(wallet_id=long), metadata=api.service)

    trailers = dict(caught.value.trailing_metadata() or ())
    assert "é" * 60 in (caught.value.details() or "")
    assert "é" * 61 not in (caught.value.details() or "")
    assert len(trailers["x-creditledger-error"]) <= 2_000
    assert trailers["x-creditledger-error"].isascii()


LONG_MESSAGE = "é" * 400


@given(
    message=st.text(),
    param=st.none() | st.text(min_size=1),
    metadata=st.dictionaries(
        st.text(string.ascii_lowercase, max_size=20).filter(lambda key: key != "param"),
        st.text(),
        max_size=9,
    ),
)
@example(message="", param=None, metadata={"message": "", "self": ""})
@example(message=LONG_MESSAGE, param=None, metadata={"fields": "metadata," * 44})
@example(
    message="\U0001f600" * 999, param="x" * 999, metadata=dict.fromkeys("abcdefghi", "é" * 999)
)
def test_the_body_of_an_error_fits_its_header(
    message: str, param: str | None, metadata: dict[str, str]
) -> None:
    """The body of every error is ASCII JSON of at most 2,000 bytes; texts are cut to fit."""
    text = rest_body(InvalidField(message, param=param, **metadata), "req_1")

    error = json.loads(text)["error"]
    assert len(text) <= 2_000
    assert text.isascii()
    assert list(error["metadata"]) == list(metadata)
    assert all(whole.startswith(error["metadata"][key]) for key, whole in metadata.items())
    assert all(error["metadata"][key] for key, whole in metadata.items() if whole)
    assert message.startswith(error["message"])
    if message == LONG_MESSAGE:  # what programs react to is cut after what people read
        assert error["metadata"] == metadata


def methods() -> list[MethodDescriptor]:
    """Every RPC of our services."""
    found = (descriptor_pool.Default().FindServiceByName(name) for name in SERVICES)
    return [method for service in found for method in service.methods]


def test_no_request_has_too_many_names() -> None:
    """A request with all its fields has far fewer names than the proxy counts."""

    def paths(message: Descriptor, within: tuple[str, ...] = ()) -> int:
        if message.full_name in within or message.GetOptions().map_entry:
            return 0
        inner = (field.message_type for field in message.fields if field.message_type)
        return len(message.fields) + sum(paths(one, (*within, message.full_name)) for one in inner)

    for method in methods():
        assert paths(method.input_type) <= 200, method.full_name


def test_what_is_dropped_is_no_field() -> None:
    """The list of what is accepted and dropped names messages that exist and fields that do not."""
    for message, dropped in DROPPED.items():
        known = descriptor_pool.Default().FindMessageTypeByName(message).fields_by_name
        assert dropped.isdisjoint(known)


def not_utf8(method: MethodDescriptor) -> list[bytes]:
    """A request whose first text, or object, is no text in UTF-8 and no object, if it has one."""
    fields = method.input_type.fields
    numbers = [f.number for f in fields if f.type in {f.TYPE_STRING, f.TYPE_MESSAGE}]
    return [bytes([number << 3 | 2, 2, 0xFF, 0xFE]) for number in numbers[:1]]


async def test_bytes_that_are_no_message(api: Api) -> None:
    """Each RPC refuses bytes that are no protobuf, or whose text is no UTF-8: INVALID_FIELD."""
    for method in methods():
        path = f"/{method.containing_service.full_name}/{method.name}"
        for data in (b"\xff\xff\xff", *not_utf8(method)):
            if method.client_streaming:
                stream: Any = api.channel.stream_stream(path)
                answer = stream(iter([data]), metadata=api.admin).read()
            elif method.server_streaming:
                pieces: Any = api.channel.unary_stream(path)
                answer = pieces(data, metadata=api.admin).read()
            else:
                unary: Any = api.channel.unary_unary(path)
                answer = unary(data, metadata=api.admin)

            assert await refused(answer) == Refused("INVALID_FIELD"), path


#: Text that the database gives away when it fails, and that no client may read.
LEAK = "leak: SELECT secret FROM somewhere"


def trip(url: str, table: str, when: str) -> None:
    """Make writing some rows of a table fail, as a bug would that a constraint catches."""
    statements = [IN_A_FILE] if is_file(url) else [ON_A_SERVER_FIRST, ON_A_SERVER]

    def make(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement.format(table=table, when=when, leak=LEAK))

    change(url, make)


IN_A_FILE = """
CREATE TRIGGER trip BEFORE INSERT ON {table} WHEN {when} BEGIN SELECT raise(ABORT, '{leak}'); END"""
ON_A_SERVER_FIRST = """
CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE EXCEPTION '{leak}' USING ERRCODE = 'check_violation'; END $$"""
ON_A_SERVER = """
CREATE TRIGGER trip BEFORE INSERT ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION trip()"""


def bugs(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(request id, text) of what the log has as unforeseen."""
    return [(line["request_id"], repr(line["exc_info"])) for line in lines if "exc_info" in line]


async def test_a_bug_is_internal_and_says_nothing(
    new_database: Callable[[], str], clock: Clock
) -> None:
    """What nobody foresaw is INTERNAL with an id; its text is in the log, under that id."""
    url = new_database()
    trip(url, "customers", "new.id = 'cus_trip'")
    with capture_logs() as lines:
        async with serve(url, clock) as api:
            request = registry_pb.CreateCustomerRequest(
                id="cus_trip", name="Acme", email="billing@example.com"
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await api.registry.CreateCustomer(request, metadata=api.service)
            request.id = "cus_other"
            await api.registry.CreateCustomer(request, metadata=api.service)

    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    ((request_id, text),) = bugs(lines)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "leak" not in repr((error.details(), trailers)).lower()
    assert json.loads(trailers["x-creditledger-error"])["error"]["code"] == "INTERNAL"
    assert trailers["x-creditledger-status"] == "500"
    assert request_id == trailers["x-request-id"]
    assert LEAK in text


async def test_a_bug_in_one_posting_leaves_the_others(
    new_database: Callable[[], str], clock: Clock
) -> None:
    """A posting that breaks a constraint is INTERNAL by itself; its batch is booked without it."""
    url = new_database()
    trip(url, "postings", "new.idempotency_key = 'trip'")
    with capture_logs() as lines:
        async with serve(url, clock) as api:
            requests = [post(f"key {n}", **grant("1")) for n in range(20)]
            requests[13].idempotency_key = "trip"
            answer = await api.wallets.BatchPost(
                pb.BatchPostRequest(postings=requests), metadata=api.service
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await api.post("trip", **grant("1"))
            after = await api.wallet_now()

    fates = [fate(one) for one in answer.results]
    assert fates[13] == Refused("INTERNAL")
    assert [isinstance(one, str) for one in fates].count(True) == 19
    assert wallet("19.00", 19) == after
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    shown = repr((answer, caught.value.details(), caught.value.trailing_metadata()))
    assert "leak" not in shown.lower()
    assert [LEAK in text for _, text in bugs(lines)] == [True, True]
    assert [request_id in shown for request_id, _ in bugs(lines)] == [True, True]
    assert findings(url) == []


async def test_a_batch_decided_again_has_its_whole_answer(
    new_database: Callable[[], str], clock: Clock
) -> None:
    """What a failed attempt would have answered takes no room: three of 1 MiB each are booked."""
    url = new_database()
    trip(url, "postings", "new.idempotency_key = 'trip'")
    async with serve(url, clock) as api:
        await api.batch([post(f"lot {n}", **grant("1")) for n in range(300)])
        heavy = {f"{n:02}": "x" * 160 for n in range(50)}
        requests = [post(f"call {n}", metadata=heavy, **consume("100")) for n in range(3)]
        fates = await api.batch([*requests, post("trip", **grant("1"))])

    assert ranked(fates) == [1, 2, 3, Refused("INTERNAL")]


# --- too much -------------------------------------------------------------------------------------


async def test_a_full_queue_refuses_the_rest(database_url: str, clock: Clock) -> None:
    """Of a batch, as many wait as the queue takes; the others are OVERLOADED and can come again."""
    async with serve(database_url, clock, queue_max=5) as api:
        requests = [post(f"key {n}", **grant("1")) for n in range(12)]
        fates = await api.batch(requests)
        again = await api.batch(requests[5:10])

    overloaded = Refused("OVERLOADED", None, {"retry_after": "1"})
    assert ranked(fates) == [1, 2, 3, 4, 5] + [overloaded] * 7
    assert ranked(again) == [1, 2, 3, 4, 5]
    assert reasons()["OVERLOADED"][3] == {"retry_after"}


async def failure(call: asyncio.Task[Any]) -> grpc.aio.AioRpcError:
    """The error of a call, which must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_full_queue_refuses_at_once(database_url: str, clock: Clock) -> None:
    """While the database is busy who comes is told to come later; who waits gets an answer."""
    async with serve(database_url, clock, queue_max=3) as api:
        # The committer waits for another program.
        async with kept_locked(database_url):
            calls = [asyncio.create_task(api.post(f"key {n}", **grant("1"))) for n in range(10)]
            # At most three are with the committer and three wait; the others are told now.
            told = [await one for one in islice(asyncio.as_completed(map(failure, calls)), 4)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        after = await api.wallet_now()

    assert [one.code() for one in told] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
    failed = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert {one.code() for one in failed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {dict(one.trailing_metadata() or ())["retry-after"] for one in failed} == {"1"}
    assert {dict(one.trailing_metadata() or ())["x-creditledger-status"] for one in failed} == {
        "429"
    }
    assert after.sequence == len(answers) - len(failed)


async def test_a_busy_database_is_unavailable(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that cannot begin in time is UNAVAILABLE and not there; later all is well."""
    monkeypatch.setattr("creditledger.store.sqlite.writer.BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr("creditledger.store.postgres.database.LOCK_SECONDS_MAX", 0.05)
    async with serve(database_url, clock) as api:
        async with kept_locked(database_url):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await api.post("key", **grant("1"))
        answer = await api.post("key", **grant("1"))

    assert refusal(caught.value) == Refused("UNAVAILABLE")
    assert dict(caught.value.trailing_metadata() or ())["retry-after"] == "1"
    assert answer.wallet.sequence == 1
