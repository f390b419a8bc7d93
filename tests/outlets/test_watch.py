"""Watches: a client that stays, or comes back with a cursor, has seen every row once."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import credit_transaction_service_pb2 as pb
from credit.v1 import wallet_service_pb2 as wallets_pb
from structlog.testing import capture_logs

from creditledger.outlets import watches
from tests.support.cases import in_turn
from tests.support.refusals import Refused, refusal
from tests.support.rest import serving
from tests.support.server import (
    CUSTOMER,
    PATIENCE_SECONDS,
    consume,
    grant,
    post,
    running,
    serve,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx

    from tests.support.refusals import Metadata
    from tests.support.rest import Json, Served
    from tests.support.server import Api
    from tests.support.setup import Clock

EVENTS = "/api/credit-transactions:watch"


class Watching:
    """A watch over gRPC, read as a client does: rows as they come, and where to go on."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.cursor = ""
        self.empty = 0  #: Messages without a row.

    async def rows(self, count: int) -> list[str]:
        """The ids of the next rows, at least so many."""
        found: list[str] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(found) < count:
                found += [one.id for one in (await self.message()).transactions]
        return found

    async def message(self) -> pb.CreditTransactionServiceWatchResponse:
        """The next one. Raises AioRpcError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = await self.call.read()
        if message is grpc.aio.EOF:
            await self.call.wait_for_connection()
            raise AssertionError("the stream ended in order")
        self.cursor = message.cursor
        self.empty += not message.transactions
        assert isinstance(message, pb.CreditTransactionServiceWatchResponse)
        return message

    async def error(self) -> grpc.aio.AioRpcError:
        """How it ends."""
        while True:
            try:
                await self.message()
            except grpc.aio.AioRpcError as error:
                return error


@asynccontextmanager
async def watching_rows(
    api: Api, *, key: Metadata | None = None, **asked: Any
) -> AsyncIterator[Watching]:
    """A watch that has begun."""
    request = pb.CreditTransactionServiceWatchRequest(**asked)
    call = api.transactions.Watch(request, metadata=key or api.service)
    try:
        one = Watching(call)
        first = await one.message()
        assert not first.transactions
        assert first.cursor
        yield one
    finally:
        call.cancel()


def ids(posting: wallets_pb.Posting) -> list[str]:
    """Its rows."""
    return [one.id for one in posting.transactions]


async def test_rows_come_as_they_are_committed(api: Api) -> None:
    """From now on, in order, and as Retrieve tells them."""
    await api.post("before", **grant("100"))

    async with watching_rows(api) as watch:
        given = ids(await api.post("given", **grant("5")))
        assert await watch.rows(1) == given
        spent = ids(await api.post("spent", **consume("101")))
        message = await watch.message()

    assert [one.id for one in message.transactions] == spent
    assert len(spent) == 2
    for one in message.transactions:
        request = pb.CreditTransactionServiceRetrieveRequest(id=one.id)
        assert one == await api.transactions.Retrieve(request, metadata=api.service)


async def test_a_cursor_goes_on_where_it_was(api: Api) -> None:
    """After a break nothing is missing and nothing comes again; from the beginning comes all."""
    every = ids(await api.post("one", **grant("100")))
    async with watching_rows(api, after="beginning") as watch:
        assert await watch.rows(1) == every
        cursor = watch.cursor
    for nth in range(5):
        every += ids(await api.post(f"meanwhile {nth}", **consume("1")))

    async with watching_rows(api, after=cursor) as watch:
        assert await watch.rows(5) == every[1:]
        every += ids(await api.post("more", **consume("1")))
        assert await watch.rows(1) == every[6:]
    async with watching_rows(api, after="beginning") as watch:
        assert await watch.rows(7) == every
    async with watching_rows(api, after=watch.cursor) as watch:
        last = ids(await api.post("last", **consume("1")))
        assert await watch.rows(1) == last


async def test_every_cursor_in_between_is_one(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk in small steps and messages is whole from whatever message it goes on after."""
    monkeypatch.setattr(watches, "STEP_ROWS", 3)
    monkeypatch.setattr(watches, "PIECE_BYTES", 1)
    every = ids(await api.post("given", **grant("100")))
    for nth in range(9):
        every += ids(await api.post(f"spent {nth}", **consume("1")))

    after, walked = "beginning", list[str]()
    while len(walked) < len(every):
        async with watching_rows(api, after=after) as watch:
            rows = (await watch.message()).transactions
            assert len(rows) <= 2
            walked += [one.id for one in rows]
            after = watch.cursor
    assert walked == every


async def test_filters(api: Api) -> None:
    """A watch is narrowed as a list is, and its cursor passes what is not wanted."""
    await api.local.new_wallet("wal_beta", "cus_beta")
    acme = ids(await api.post("given", **grant("100")))
    beta = ids(await api.post("given", "wal_beta", **grant("100")))
    spent = ids(await api.post("spent", **consume("1")))
    other = ids(await api.post("other", **grant("7", priority=99)))
    (given,) = acme
    row = await api.transactions.Retrieve(
        pb.CreditTransactionServiceRetrieveRequest(id=given), metadata=api.service
    )

    async def seen(key: Metadata | None = None, **asked: Any) -> list[str]:
        async with watching_rows(api, key=key, after="beginning", **asked) as watch:
            found = [one.id for one in (await watch.message()).transactions]
            # Whatever it left out lies behind it all the same.
            assert int(watch.cursor.split("-")[0]) > 1
            return found

    assert await seen() == [*acme, *beta, *spent, *other]
    assert await seen(wallet_id="wal_beta") == beta
    assert await seen(customer_id=CUSTOMER) == [*acme, *spent, *other]
    assert await seen(api.customer) == [*acme, *spent, *other]
    assert await seen(kinds="usage,refund") == spent
    assert await seen(credit_grant_id=row.credit_grant.id) == [*acme, *spent]
    assert await seen(heartbeat_seconds=1, meter_id="mtr_none") == []
    assert await seen(heartbeat_seconds=1, subscription_id="sub_none") == []
    assert await seen(await api.local.key("service", livemode=False), heartbeat_seconds=1) == []


@in_turn(
    "asked, reason, param",
    [
        ({"after": "yesterday"}, "INVALID_FIELD", "after"),
        ({"after": "999999999999-1-1"}, "INVALID_FIELD", "after"),
        ({"kinds": "usage,tips"}, "INVALID_FIELD", "kinds"),
        ({"kinds": ""}, "INVALID_FIELD", "kinds"),
        ({"heartbeat_seconds": 0}, "INVALID_FIELD", "heartbeat_seconds"),
        ({"heartbeat_seconds": 31}, "INVALID_FIELD", "heartbeat_seconds"),
        ({"wallet_id": "wallet"}, "INVALID_FIELD", "wallet_id"),
        ({"livemode": False}, "MODE_MISMATCH", "livemode"),
    ],
)
async def test_what_is_refused(api: Api, asked: dict[str, Any], reason: str, param: str) -> None:
    """Bad input is told at once, by its name."""
    assert await ended(api, **asked) == Refused(reason, param)


async def ended(api: Api, *, key: Metadata | None = None, **asked: Any) -> Refused:
    """How a watch ends."""
    try:
        async with watching_rows(api, key=key, **asked) as watch:
            return refusal(await watch.error())
    except grpc.aio.AioRpcError as error:
        return refusal(error)


async def test_another_customer_is_not_found(api: Api) -> None:
    """A customer's key watches its own."""
    assert (await ended(api, key=api.customer, customer_id="cus_beta")).reason == "NOT_FOUND"


async def test_a_heartbeat_says_that_there_is_nothing(api: Api) -> None:
    """So a client knows a quiet stream from a dead one, and its cursor does not grow old."""
    await api.local.new_wallet("wal_beta", "cus_beta")
    async with watching_rows(api, key=api.customer, heartbeat_seconds=1) as watch:
        before = watch.cursor
        await api.post("unwanted", "wal_beta", **grant("1"))
        await watch.message()
        assert watch.empty == 2
        assert watch.cursor != before


async def test_a_revoked_key_ends_its_watch(api: Api, clock: Clock) -> None:
    """Not only the next call is refused: the one under way is ended."""
    created = await api.local.new_key("service")
    key = (("authorization", f"Bearer {created.secret}"),)
    async with watching_rows(api, key=key) as watch:
        await api.local.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=created.api_key.id))
        assert refusal(await watch.error()).reason == "KEY_INVALID"


async def test_there_is_a_limit(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is told when to come again; a place that is left is free at once."""
    monkeypatch.setattr(watches, "WATCHES_MAX", 1)
    async with watching_rows(api):
        assert (await ended(api)).reason == "OVERLOADED"
    for _ in range(100):
        try:
            async with watching_rows(api):
                return
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)
    pytest.fail("no place became free")


async def test_who_does_not_read_holds_nobody_up(api: Api) -> None:
    """A client that stops reading is read no further for; another one, and postings, go on."""
    note = "x" * 500
    async with watching_rows(api) as slow, watching_rows(api) as quick:
        every = ids(await api.post("given", **grant("100000")))
        for nth in range(8):
            answers = await api.batch(
                post(f"{nth}-{n}", note=note, **consume("1")) for n in range(500)
            )
            assert len(answers) == 500
        rows = await quick.rows(4_001)
        assert rows[:1] == every
        assert await slow.rows(4_001) == rows


async def test_a_stop_ends_watches(database_url: str, clock: Clock) -> None:
    """A server that is told to stop does not wait for streams without end; a successor goes on."""
    async with serve(database_url, clock, drain_seconds=20) as api:
        async with watching_rows(api) as watch:
            await api.post("given", **grant("1"))
            await watch.rows(1)
            began = asyncio.get_running_loop().time()
            with capture_logs():
                stopping = asyncio.create_task(api.server.stop())
                error = await watch.error()
                await stopping
            assert asyncio.get_running_loop().time() - began < 15
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        key = api.service
    async with running(database_url, clock) as another:
        request = pb.CreditTransactionServiceWatchRequest(after=watch.cursor)
        successor = Watching(another.network.transactions.Watch(request, metadata=key))
        await another.network.wallets.Post(
            post("later", **consume("1")),
            metadata=key,
        )
        assert len(await successor.rows(1)) == 1
        successor.call.cancel()


@pytest.mark.only("postgresql")
async def test_what_another_server_writes_is_seen(database_url: str, clock: Clock) -> None:
    """Two servers of a database: at either, rows of both, in one order."""
    async with (
        serve(database_url, clock) as api,
        running(database_url, clock) as other,
        watching_rows(api) as here,
    ):
        request = pb.CreditTransactionServiceWatchRequest(after=here.cursor)
        there = Watching(other.network.transactions.Watch(request, metadata=api.service))
        posts = []
        for nth in range(40):
            at = (api, other.network)[nth % 2]
            posts.append(at.wallets.Post(post(f"{nth}", **grant("1")), metadata=api.service))
        written = [ids(one)[0] for one in await asyncio.gather(*posts)]
        rows = await here.rows(40)
        assert await there.rows(40) == rows == sorted(written)
        there.call.cancel()


# --- Server-Sent Events, through Envoy ------------------------------------------------------------


@pytest.fixture
async def served(new_database: Callable[[], str]) -> AsyncIterator[Served]:
    """A service behind Envoy."""
    async with serving(new_database()) as one:
        yield one


class Events:
    """A browser's EventSource: what has data is told, and the last id is kept."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()
        self.last_id = ""

    async def next(self) -> Json:
        """The next event with data."""
        data = ""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    self.last_id = value
                elif name == "data":
                    data += value
                elif not line and data:
                    found: Json = json.loads(data)
                    return found
        raise AssertionError("the stream ended")

    async def quiet(self) -> None:
        """The next event without any."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await anext(self._lines)).startswith("id: ")
            assert await anext(self._lines) == ""


@asynccontextmanager
async def listening(
    served: Served, key: str, *, last: str | None = None, **query: Any
) -> AsyncIterator[Events]:
    """An EventSource that has begun."""
    headers = {"authorization": f"Bearer {key}"}
    if last is not None:
        headers["last-event-id"] = last
    async with served.http.stream("GET", EVENTS, params=query, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store"
        events = Events(answer)
        await events.quiet()
        yield events


async def test_a_browser_can_listen(served: Served) -> None:
    """Events are transactions as Retrieve shows them; Last-Event-ID goes on behind them."""
    customer = await served.customer()
    wallet = await served.wallet(customer)
    key = await served.key("customer", customer)
    async with listening(served, key) as events:
        await served.post(wallet, {"grant": {"amount": "10"}})
        given = await events.next()
        await served.post(wallet, {"consumption": {"amount": "1"}, "note": "täglich: id: 1"})
        spent = await events.next()
        first = events.last_id
    assert given == await served.body(f"/api/credit-transactions/{given['id']}", key)
    assert spent == await served.body(f"/api/credit-transactions/{spent['id']}", key)
    await served.post(wallet, {"consumption": {"amount": "2"}})

    async with listening(served, key, last=first, after="beginning") as events:
        assert (await events.next())["amount"] == "-2.00"
    async with listening(served, key, after="beginning") as events:
        assert await events.next() == given


async def test_a_quiet_stream_stays(served: Served) -> None:
    """Heartbeats come through the proxy at once, however little they are."""
    key = await served.key("service")
    async with listening(served, key, heartbeat_seconds=1) as events:
        await events.quiet()
        await events.quiet()


async def test_refusals_are_the_common_error(served: Served) -> None:
    """What is wrong is said before the stream begins."""
    key = await served.key("service")
    found = await served.refusal(EVENTS, key, after="999999999999-1-1")
    assert (found.status, found.code, found.param) == (400, "INVALID_FIELD", "after")
    assert (await served.refusal(EVENTS, None)).code == "KEY_MISSING"
    assert (await served.refusal(EVENTS, key, until="1")).code == "UNKNOWN_PARAMETER"
