"""Webhooks reach a real receiver, signed, at least once; who does not answer delays nobody."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import webhook_service_pb2 as pb

from creditledger import clock as time
from creditledger import deliverer
from creditledger.clock import DAY, MINUTE, SECOND
from tests.receiving import Received, Receiver, receiving, verified
from tests.running import (
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
from tests.serving import Refused, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.receiving import Answer
    from tests.support import Clock

CREATED = "transaction.created"
API_PAGE = Path(__file__).parent.parent / "docs" / "api.md"


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
        serve(database_url, clock, webhook_allow_private=True, **settings) as api,
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
                change = pb.UpdateWebhookEndpointRequest(id=id_, enabled=enabled)
                await api.webhooks.UpdateWebhookEndpoint(change, metadata=api.service)
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
        assert dead.under_way_max <= deliverer.PLACES
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
            running(database_url, clock, webhook_allow_private=True),
            running(database_url, clock, webhook_allow_private=True),
        ):
            for n in range(60):
                await api.post(f"given {n}", **grant("1"))
            await receiver.wait(60)
            await until(api, made, "delivered", 20)

        sequences = [int(one.event["data"]["transaction"]["sequence"]) for one in receiver.received]
        assert sorted(sequences) == list(range(1, 61))


async def test_private_targets_are_refused(database_url: str, clock: Clock) -> None:
    """By what the URL says, at once; by what its name leads to, when it is to be called."""
    async with receiving() as receiver, serve(database_url, clock) as api:
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
