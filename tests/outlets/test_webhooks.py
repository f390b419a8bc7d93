"""Webhooks reach a real receiver, signed, at least once; who does not answer delays nobody."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import webhook_service_pb2 as pb
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from creditledger.domain import clock as time
from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.domain.webhook_events import Secret
from creditledger.outlets.webhooks import deliverer
from creditledger.store import schema
from tests.support.databases import contents
from tests.support.refusals import Refused, refused
from tests.support.server import (
    CUSTOMER,
    PATIENCE_SECONDS,
    WALLET,
    Api,
    consume,
    grant,
    post,
    running,
    serve,
)
from tests.support.setup import change, is_file
from tests.support.webhook_receiver import Received, Receiver, receiving, verified

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Connection

    from tests.support.setup import Clock
    from tests.support.webhook_receiver import Answer

CREATED = "transaction.created"
#: A server that may send to this machine.
SENDING = {"webhook_connections": 64, "webhook_allow_private": True}
API_PAGE = Path(__file__).parents[2] / "docs" / "api.md"


async def endpoint(
    api: Api, url: str, *events: str, **fields: Any
) -> pb.CreateWebhookEndpointResponse:
    """A new endpoint."""
    request = pb.CreateWebhookEndpointRequest(url=url, events=events or [CREATED], **fields)
    return await api.webhooks.CreateWebhookEndpoint(request, metadata=api.service)


@asynccontextmanager
async def told(
    database_url: str, clock: Clock, **settings: Any
) -> AsyncIterator[tuple[Api, Receiver]]:
    """A server that may send to this machine, and somebody who receives."""
    async with (
        receiving() as receiver,
        serve(database_url, clock, **{**SENDING, **settings}) as api,
    ):
        yield api, receiver


async def log_of(
    api: Api, made: pb.CreateWebhookEndpointResponse, **fields: Any
) -> list[pb.WebhookDelivery]:
    """What the log says of an endpoint, newest first."""
    request = pb.ListWebhookDeliveriesRequest(id=made.webhook_endpoint.id, **fields)
    answer = await api.webhooks.ListWebhookDeliveries(request, metadata=api.service)
    return list(answer.webhook_deliveries)


async def until(
    api: Api, made: pb.CreateWebhookEndpointResponse, status: str, count: int, attempts: int = 1
) -> list[pb.WebhookDelivery]:
    """The deliveries of this status, as soon as there are so many, tried so often."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = [
                one
                for one in await log_of(api, made, status=status)
                if one.attempts >= attempts and (one.last_error or status != "pending")
            ]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)  # nobody tells when the log is written


def snippet() -> dict[str, Any]:
    """What docs/api.md gives receivers to check a signature with."""
    (source,) = re.findall(
        r"cat > verify.py <<'END'\n(.*?)^END$", API_PAGE.read_text(), re.M | re.S
    )
    found: dict[str, Any] = {}
    exec(source, found)
    return found


# --- what comes -----------------------------------------------------------------------------------


async def test_a_transaction_is_told(database_url: str, clock: Clock) -> None:
    """Each row that is written reaches the endpoint, signed, with what REST shows of it."""
    async with told(database_url, clock) as (api, receiver):
        await api.post("before", **grant("3"))
        made = await endpoint(api, receiver.url)
        await api.post("given", metadata={"a": "b"}, **grant("5"))
        await api.post("spent", **consume("2"))
        came = sorted(await receiver.wait(2), key=lambda one: str(one.event["id"]))
        delivered = await until(api, made, "delivered", 2)

        given, spent = (one.event for one in came)
        assert [given["type"], spent["type"]] == [CREATED, CREATED]
        assert given["livemode"] is True
        transaction = spent["data"]["transaction"]
        assert (transaction["amount"], transaction["running_balance"]) == ("-2.00", "6.00")
        assert (transaction["sequence"], transaction["metadata"]) == ("3", {})
        assert given["data"]["transaction"]["metadata"] == {"a": "b"}
        for one in came:
            assert one.headers["content-type"] == "application/json"
            assert one.headers["creditledger-event-id"] == one.event["id"]
            assert verified(one, made.secret, now=clock.now / 1000)
            assert not verified(one, made.secret + "x", now=clock.now / 1000)
            assert not verified(one, made.secret, now=clock.now / 1000 + 301)
        assert [(one.last_status, one.attempts) for one in delivered] == [(200, 1)] * 2
        assert {one.id for one in delivered} == {one.event["id"] for one in came}


async def test_the_snippet_of_the_page_knows_a_signature(database_url: str, clock: Clock) -> None:
    """What docs/api.md gives receivers takes what was sent, and nothing that was changed."""
    clock.now = time.now()  # the snippet asks the machine
    async with told(database_url, clock) as (api, receiver):
        made = await endpoint(api, receiver.url)
        await api.post("given", **grant("5"))
        (came,) = await receiver.wait(1)
        is_ours = snippet()["is_ours"]
        signature = came.headers["creditledger-signature"]

        assert is_ours(signature, came.body, made.secret)
        assert not is_ours(signature, came.body + b" ", made.secret)
        assert not is_ours(signature, came.body, "whsec_another")
        later = signature.replace("t=", "t=1")
        assert not is_ours(later, came.body, made.secret)


async def test_a_secret_is_rotated_with_overlap(database_url: str, clock: Clock) -> None:
    """For as long as was said both secrets sign, then the new one; neither is shown again."""
    async with told(database_url, clock) as (api, receiver):
        made = await endpoint(api, receiver.url)
        request = pb.RotateWebhookSecretRequest(id=made.webhook_endpoint.id, overlap_seconds=60)
        rotated = await api.webhooks.RotateWebhookSecret(request, metadata=api.service)
        ends = clock.now + MINUTE
        assert rotated.webhook_endpoint.previous_secret_until == time.text(ends)
        await api.post("both", **grant("1"))
        (both,) = await receiver.wait(1)
        clock.now = ends
        await api.post("one", **grant("1"))
        _, one = await receiver.wait(2)

        def good(came: Received) -> list[bool]:
            moment = int(came.headers["creditledger-signature"][2:].partition(",")[0])
            return [verified(came, secret, now=moment) for secret in (made.secret, rotated.secret)]

        assert (good(both), good(one)) == ([True, True], [False, True])
        shown = await api.webhooks.GetWebhookEndpoint(
            pb.GetWebhookEndpointRequest(id=made.webhook_endpoint.id), metadata=api.service
        )
        assert not shown.HasField("previous_secret_until")
        assert made.secret != rotated.secret
        assert shown.mask == f"whsec_****{rotated.secret[-4:]}"


async def test_who_hears_of_what(database_url: str, clock: Clock) -> None:
    """A customer's endpoint hears of that customer's wallets, the operator's of all of its mode."""
    async with told(database_url, clock) as (api, receiver):
        await api.local.new_wallet("wal_other", "cus_other")
        await api.local.new_wallet("wal_test", "cus_other", livemode=False)
        base = receiver.url
        await endpoint(api, f"{base}/acme", customer_id=CUSTOMER)
        await endpoint(api, f"{base}/all")
        new = pb.CreateWebhookEndpointRequest(url=f"{base}/test", events=[CREATED], livemode=False)
        await api.local.webhooks.CreateWebhookEndpoint(new)
        for wallet_id in (WALLET, "wal_other"):
            await api.post("given", wallet_id, **grant("1"))
        await api.local.wallets.Post(post("given", "wal_test", **grant("1")))
        came = await receiver.wait(4)

        heard = sorted(
            (one.path.rpartition("/")[2], one.event["data"]["transaction"]["wallet_id"])
            for one in came
        )
        assert heard == [
            ("acme", WALLET),
            ("all", WALLET),
            ("all", "wal_other"),
            ("test", "wal_test"),
        ]


async def test_nothing_is_told_of_what_was_while_nobody_listened(
    database_url: str, clock: Clock
) -> None:
    """Not of rows before an endpoint was made, nor of those while it was not enabled."""
    async with told(database_url, clock) as (api, receiver):
        made = await endpoint(api, receiver.url)
        id_ = made.webhook_endpoint.id
        for n in range(3):
            await api.post(f"on {n}", **grant("1"))
            await receiver.wait(n + 1)
            for enabled in (False, True):
                request = pb.UpdateWebhookEndpointRequest(id=id_, enabled=enabled)
                await api.webhooks.UpdateWebhookEndpoint(request, metadata=api.service)
                if not enabled:
                    await api.post(f"off {n}", **grant("1"))
        await api.post("last", **grant("1"))
        came = await receiver.wait(4)

        sequences = [one.event["data"]["transaction"]["sequence"] for one in came]
        assert sequences == ["1", "3", "5", "7"]


# --- how it is sent -------------------------------------------------------------------------------


async def test_what_fails_is_sent_again(database_url: str, clock: Clock) -> None:
    """500, then a redirect, which is not followed, then 200: one event, the same each time."""
    async with told(database_url, clock) as (api, receiver):
        answers: list[Answer] = [(500, {}), (302, {"location": receiver.url + "/else"})]
        receiver.answer = lambda _: answers.pop(0) if answers else (200, {})
        made = await endpoint(api, receiver.url)
        await api.post("given", **grant("5"))
        (first,) = await until(api, made, "pending", 1)
        assert (first.last_status, first.last_error) == (500, "the answer was 500")
        pause = time.parse(first.next_attempt_at, field="") - clock.now
        assert 4 * SECOND <= pause <= 6 * SECOND
        clock.advance(6 * SECOND)
        (second,) = await until(api, made, "pending", 1, attempts=2)
        assert second.last_status == 302
        clock.advance(MINUTE)
        (third,) = await until(api, made, "delivered", 1)

        assert (third.attempts, third.last_status) == (3, 200)
        assert not third.HasField("last_error")
        assert [one.path for one in receiver.received] == ["/hooks"] * 3
        assert len({one.body for one in receiver.received}) == 1


async def test_after_a_day_it_is_given_up_and_can_be_replayed(
    database_url: str, clock: Clock
) -> None:
    """The last attempt is at the end of the day; a replay makes it pending for another one."""
    async with told(database_url, clock) as (api, receiver):
        receiver.answer = lambda _: (503, {})
        made = await endpoint(api, receiver.url)
        await api.post("given", **grant("5"))
        await api.post("spent", **consume("1"))
        for one in await until(api, made, "pending", 2):
            assert time.parse(one.next_attempt_at, field="") < clock.now + DAY
        clock.advance(DAY)
        failed = await until(api, made, "failed", 2)
        assert [one.attempts for one in failed] == [2, 2]
        assert not failed[0].HasField("next_attempt_at")

        receiver.answer = lambda _: (202, {})
        replay = pb.ReplayWebhookDeliveryRequest(id=failed[0].id)
        again = await api.webhooks.ReplayWebhookDelivery(replay, metadata=api.service)
        assert again.status == "pending"
        (delivered,) = await until(api, made, "delivered", 1)
        assert (delivered.id, delivered.attempts) == (failed[0].id, 3)

        many = pb.ReplayWebhookDeliveriesRequest(id=made.webhook_endpoint.id, status="failed")
        answer = await api.webhooks.ReplayWebhookDeliveries(many, metadata=api.service)
        assert answer.replayed == 1
        await until(api, made, "delivered", 2)
        since = {"id": made.webhook_endpoint.id, "since": time.text(clock.now - 2 * DAY)}
        every = pb.ReplayWebhookDeliveriesRequest(**since)
        answer = await api.webhooks.ReplayWebhookDeliveries(every, metadata=api.service)
        assert answer.replayed == 2
        await receiver.wait(8)
        none = pb.ReplayWebhookDeliveriesRequest(
            id=made.webhook_endpoint.id, since=time.text(clock.now + 1)
        )
        answer = await api.webhooks.ReplayWebhookDeliveries(none, metadata=api.service)
        assert answer.replayed == 0


async def test_who_is_gone_is_left_alone(database_url: str, clock: Clock) -> None:
    """An answer 410 ends the delivery and disables the endpoint."""
    async with told(database_url, clock) as (api, receiver):
        receiver.answer = lambda _: (410, {})
        made = await endpoint(api, receiver.url)
        await api.post("given", **grant("5"))
        (failed,) = await until(api, made, "failed", 1)
        request = pb.GetWebhookEndpointRequest(id=made.webhook_endpoint.id)
        shown = await api.webhooks.GetWebhookEndpoint(request, metadata=api.service)

        assert (failed.last_status, shown.enabled) == (410, False)


async def test_who_is_dead_delays_nobody(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that never answers and one that refuses, the others get everything at once."""
    monkeypatch.setattr(deliverer, "ATTEMPT_SECONDS_MAX", 5.0)
    async with (
        told(database_url, clock, webhook_connections=16) as (api, receiver),
        receiving("/dead") as dead,
    ):
        dead.answer = lambda _: None
        made = await endpoint(api, dead.url)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            refusing = await endpoint(api, f"http://127.0.0.1:{unused.getsockname()[1]}/")
            await endpoint(api, receiver.url)
            for n in range(40):
                await api.post(f"given {n}", **grant("1"))
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await receiver.wait(40)
            took = loop.time() - begun
            (no_connection, *_) = await until(api, refusing, "pending", 1)

        assert took < 4.0
        assert no_connection.last_error == "no connection"
        assert dead.under_way_max <= deliverer.PLACES < 40
        assert not [one for one in await log_of(api, made) if one.status == "delivered"]


async def test_a_slow_answer_is_waited_for_so_long(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt has an end, and says so."""
    monkeypatch.setattr(deliverer, "ATTEMPT_SECONDS_MAX", 0.3)
    async with told(database_url, clock) as (api, receiver):
        receiver.answer = lambda _: None
        made = await endpoint(api, receiver.url)
        await api.post("given", **grant("1"))
        (pending,) = await until(api, made, "pending", 1)

        assert pending.last_error == "no answer within 0.3 seconds"


@pytest.mark.only("postgresql")
async def test_two_servers_share_the_work(database_url: str, clock: Clock) -> None:
    """Of several servers on a database each event is made once and sent once."""
    async with told(database_url, clock) as (api, receiver):
        made = await endpoint(api, receiver.url)
        async with (
            running(database_url, clock, **SENDING),
            running(database_url, clock, **SENDING),
        ):
            for n in range(60):
                await api.post(f"given {n}", **grant("1"))
            await receiver.wait(60)
            await until(api, made, "delivered", 20)

        sequences = [int(one.event["data"]["transaction"]["sequence"]) for one in receiver.received]
        assert sorted(sequences) == list(range(1, 61))


async def test_a_name_counts_by_what_it_leads_to(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up once for a connection, and refused if any of its addresses is private.

    What was looked up is connected to: a name that leads elsewhere a moment later gains nothing.
    """
    asked: list[str] = []
    answers = [["93.184.215.14", "127.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:127.0.0.1"]]

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = answers[len(asked) - 1] if len(asked) <= len(answers) else ["127.0.0.1"]
        return [(0, 0, 0, "", (address, port)) for address in found]

    monkeypatch.setattr(deliverer, "socket", SimpleNamespace(getaddrinfo=look_up, SOCK_STREAM=1))
    async with (
        receiving() as receiver,
        serve(database_url, clock, webhook_connections=1) as api,
    ):
        port = receiver.url.rpartition(":")[2].partition("/")[0]
        made = await endpoint(api, f"http://rebound.example.com:{port}/hooks")
        await api.post("given", **grant("1"))
        for attempt in (1, 2, 3):
            (pending,) = await until(api, made, "pending", 1, attempts=attempt)
            assert pending.last_error == "the name leads to this machine or a private network"
            assert len(asked) == attempt
            clock.advance(5 * HOUR)
        assert receiver.received == []
    # By who may call this machine, the name that was asked for is what the receiver is called.
    async with told(database_url, clock) as (api, receiver):
        port = receiver.url.rpartition(":")[2].partition("/")[0]
        asked.clear()
        answers[:] = [["127.0.0.1"]]
        await endpoint(api, f"http://named.example.com:{port}/hooks")
        await api.post("more", **grant("1"))
        (came,) = await receiver.wait(1)
        assert came.headers["host"] == f"named.example.com:{port}"
        assert "named.example.com" in asked


@contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """An address of the loopback that takes no connection and refuses none."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        # The kernel drops what comes while its queue of one connection is full.
        for _ in range(2):
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex((address, port))
        yield


async def test_an_address_that_takes_no_connection_is_passed_over(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next address of a name is tried within the same attempt."""
    monkeypatch.setattr(deliverer, "CONNECT_SECONDS_MAX", 0.3)

    def look_up(_host: str, port: int, **_: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, port)) for address in ("127.0.0.3", "127.0.0.1")]

    monkeypatch.setattr(deliverer, "socket", SimpleNamespace(getaddrinfo=look_up, SOCK_STREAM=1))
    async with told(database_url, clock) as (api, receiver):
        port = int(receiver.url.rpartition(":")[2].partition("/")[0])
        with black_hole("127.0.0.3", port):
            made = await endpoint(api, f"http://two.example.com:{port}/hooks")
            await api.post("given", **grant("1"))
            (delivered,) = await until(api, made, "delivered", 1)

        assert (delivered.attempts, delivered.last_status) == (1, 200)


async def test_a_silent_name_server_holds_nobody_up(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt ends while its name is looked up; others go on, and the server stops in time."""
    monkeypatch.setattr(deliverer, "ATTEMPT_SECONDS_MAX", 0.5)
    silence = threading.Event()
    look_up = socket.getaddrinfo

    def silent(host: str, *given: Any, **more: Any) -> Any:
        if host == "silent.example.com":
            silence.wait(PATIENCE_SECONDS)
        return look_up(host, *given, **more)

    fake = SimpleNamespace(getaddrinfo=silent, SOCK_STREAM=socket.SOCK_STREAM)
    monkeypatch.setattr(deliverer, "socket", fake)
    loop = asyncio.get_running_loop()
    async with told(database_url, clock, webhook_connections=4) as (api, receiver):
        made = await endpoint(api, "http://silent.example.com/")
        await endpoint(api, receiver.url)
        await api.post("given", **grant("1"))
        await receiver.wait(1)
        (pending,) = await until(api, made, "pending", 1)
        waiting = [one for one in threading.enumerate() if "silent.example" in one.name]
        begun = loop.time()

    assert pending.last_error == "no answer within 0.5 seconds"
    assert [one.daemon for one in waiting] == [True]
    assert loop.time() - begun < PATIENCE_SECONDS / 2
    silence.set()


async def test_no_proxy_is_used(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the environment says of proxies is for others: one would look names up by itself."""
    async with receiving("/proxy") as proxy, told(database_url, clock) as (api, receiver):
        await endpoint(api, receiver.url)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        await api.post("given", **grant("1"))
        await receiver.wait(1)

        assert proxy.received == []


async def test_private_targets_are_refused(database_url: str, clock: Clock) -> None:
    """By what the URL says, at once; by what its name leads to, when it is to be called."""
    async with (
        receiving() as receiver,
        serve(database_url, clock, webhook_connections=8) as api,
    ):
        wrong = Refused("INVALID_FIELD", "url")
        for url in (receiver.url, "http://[::ffff:127.0.0.1]/", "http://2130706433/"):
            assert await refused(endpoint(api, url)) == wrong

        port = receiver.url.rpartition(":")[2].partition("/")[0]
        # This machine's own name leads to this machine.
        made = await endpoint(api, f"http://{socket.gethostname()}:{port}/hooks")
        await api.post("given", **grant("1"))
        (pending,) = await until(api, made, "pending", 1)

        assert pending.last_error == "the name leads to this machine or a private network"
        assert receiver.received == []


# --- what is asked for ----------------------------------------------------------------------------

LOW = "balance.low"
WRONG: list[tuple[dict[str, Any], Refused]] = [
    ({"url": ""}, Refused("MISSING_FIELD", "url")),
    ({"url": "ftp://example.com/"}, Refused("INVALID_FIELD", "url")),
    ({"events": []}, Refused("MISSING_FIELD", "events")),
    ({"events": ["wallet.created"]}, Refused("INVALID_FIELD", "events[0]")),
    ({"events": [CREATED] * 7}, Refused("INVALID_FIELD", "events")),
    ({"events": [LOW]}, Refused("MISSING_FIELD", "thresholds")),
    ({"thresholds": [{}]}, Refused("MISSING_FIELD", "thresholds[0].amount")),
    ({"thresholds": [{"amount": "1"}]}, Refused("MISSING_FIELD", "thresholds[0].currency_id")),
    ({"thresholds": [{"percent": 100}]}, Refused("INVALID_FIELD", "thresholds[0].percent")),
    (
        {"thresholds": [{"percent": 9, "amount": "1"}]},
        Refused("INVALID_FIELD", "thresholds[0].amount"),
    ),
    (
        {"thresholds": [{"amount": "-1", "currency_id": "USD"}]},
        Refused("INVALID_FIELD", "thresholds[0].amount"),
    ),
    (
        {"thresholds": [{"percent": 9}, {"amount": "1", "currency_id": "XXX"}]},
        Refused("NOT_FOUND", "thresholds[1].currency_id"),
    ),
    (
        {"thresholds": [{"amount": "0.0000000001", "currency_id": "USD"}]},
        Refused("INVALID_FIELD", "thresholds[0].amount"),
    ),
    ({"thresholds": [{"percent": 9}] * 11}, Refused("INVALID_FIELD", "thresholds")),
    ({"expiring_days": 0}, Refused("INVALID_FIELD", "expiring_days")),
    ({"expiring_days": 91}, Refused("INVALID_FIELD", "expiring_days")),
    ({"customer_id": "cus_none"}, Refused("NOT_FOUND", "customer_id")),
    ({"livemode": False}, Refused("MODE_MISMATCH", "livemode")),
    ({"description": ""}, Refused("INVALID_FIELD", "description")),
]


async def test_what_is_wrong_is_named(database_url: str, clock: Clock) -> None:
    """Each fault by its field, and nothing is made."""
    async with serve(database_url, clock) as api:
        good = {"url": "https://acme.invalid/", "events": [CREATED]}
        for fault, expected in WRONG:
            request = pb.CreateWebhookEndpointRequest(**{**good, **fault})
            call: Any = api.webhooks.CreateWebhookEndpoint(request, metadata=api.service)
            assert await refused(call) == expected, fault
        every = await api.webhooks.ListWebhookEndpoints(
            pb.ListWebhookEndpointsRequest(), metadata=api.service
        )
        assert list(every.webhook_endpoints) == []

        made = await endpoint(api, "https://acme.invalid/")
        id_ = made.webhook_endpoint.id
        faults: list[tuple[dict[str, Any], Refused]] = [
            ({"events": [LOW]}, Refused("MISSING_FIELD", "thresholds")),
            ({"url": "http://localhost/"}, Refused("INVALID_FIELD", "url")),
            ({"id": "whe_none"}, Refused("NOT_FOUND", "id")),
        ]
        for fault, expected in faults:
            update = pb.UpdateWebhookEndpointRequest(**{"id": id_, **fault})
            call = api.webhooks.UpdateWebhookEndpoint(update, metadata=api.service)
            assert await refused(call) == expected, fault
        replay = pb.ReplayWebhookDeliveriesRequest(id=id_)
        call = api.webhooks.ReplayWebhookDeliveries(replay, metadata=api.service)
        assert await refused(call) == Refused("MISSING_FIELD", "since")


async def test_endpoints_are_bounded_changed_and_deleted(database_url: str, clock: Clock) -> None:
    """At most 16 of a customer in a mode; one that is deleted is no more, and makes room."""
    async with serve(database_url, clock) as api:
        made = [
            await endpoint(api, f"https://acme.invalid/{n}", customer_id=CUSTOMER)
            for n in range(16)
        ]
        one_more = endpoint(api, "https://acme.invalid/16", customer_id=CUSTOMER)
        assert await refused(one_more) == Refused("OUT_OF_RANGE")
        await endpoint(api, "https://acme.invalid/operator")
        id_ = made[0].webhook_endpoint.id
        new = pb.UpdateWebhookEndpointRequest(
            id=id_,
            url="https://new.invalid/",
            events=["balance.recovered", LOW, LOW],
            thresholds=[pb.WebhookThreshold(percent=5)],
        )
        changed = await api.webhooks.UpdateWebhookEndpoint(new, metadata=api.service)
        assert (changed.url, list(changed.events)) == (new.url, [LOW, "balance.recovered"])
        assert changed.expiring_days == 7
        deleted = await api.webhooks.DeleteWebhookEndpoint(
            pb.DeleteWebhookEndpointRequest(id=id_), metadata=api.service
        )
        assert deleted.url == new.url
        get = pb.GetWebhookEndpointRequest(id=id_)
        for call in (
            api.webhooks.GetWebhookEndpoint(get, metadata=api.service),
            api.webhooks.RotateWebhookSecret(
                pb.RotateWebhookSecretRequest(id=id_), metadata=api.service
            ),
        ):
            assert await refused(call) == Refused("NOT_FOUND", "id")
        await endpoint(api, "https://acme.invalid/16", customer_id=CUSTOMER)
        stored = await contents(database_url)

    assert made[0].secret not in stored or is_file(database_url)  # a file keeps old pages


@pytest.mark.only("sqlite")
def test_a_secret_is_in_no_error(database_url: str) -> None:
    """Whatever fails as one is stored, the error shows the statement's values without it."""
    secret = Secret("whsec_" + "s3cret" * 6)

    def fail(connection: Connection) -> None:
        connection.execute(
            insert(schema.webhook_endpoints).values(id="whe_1", secret=secret, url=None)
        )

    with pytest.raises(IntegrityError) as caught:
        change(database_url, fail)

    assert "s3crets3cret" not in str(caught.value)
    assert "s3crets3cret" not in repr(secret)
    assert f"{secret}" == "whsec_" + "s3cret" * 6
