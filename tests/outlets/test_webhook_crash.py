"""`kill -9` of a server loses no webhook: not before an event is made, nor while it is sent."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from credit.v1 import webhook_service_pb2 as pb

from tests.support.process import process
from tests.support.server import CUSTOMER, PATIENCE_SECONDS, WALLET, grant, post
from tests.support.webhook_receiver import receiving, verified

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.server import Services
    from tests.support.webhook_receiver import Answer, Received

TURNS, POSTS = 4, 25
FLAGS = ("--webhook-allow-private", "--sweep-interval-seconds", "0")


async def test_a_kill_loses_no_webhook(database_url: str, tmp_path: Path) -> None:
    """Every row that was acknowledged is told at least once, under one id, signed, and delivered.

    Killed are servers that have just answered a posting: what is told of it is not made yet, or
    made and not sent, or sent and not written down.
    """
    chance = Random(5)
    acknowledged: set[str] = set()
    async with receiving() as receiver:

        def answer(_: Received) -> Answer:
            # Some are taken, some refused, some kept waiting until the server is dead.
            return chance.choice([(200, {}), (200, {}), (500, {}), None])

        receiver.answer = answer

        async def work(services: Services, turn: int) -> None:
            for n in range(chance.randint(1, POSTS)):
                posted = await services.wallets.Post(post(f"{turn} {n}", **grant("1")))
                acknowledged.update(one.id for one in posted.transactions)

        secret = hook = ""
        for turn in range(TURNS):
            log = tmp_path / f"{turn}.log"
            async with process(database_url, log, *FLAGS) as served, served.local() as services:
                if not turn:
                    await services.new_wallet(WALLET, CUSTOMER)
                    new = pb.CreateWebhookEndpointRequest(
                        url=receiver.url, events=["transaction.created"]
                    )
                    made = await services.webhooks.CreateWebhookEndpoint(new)
                    secret, hook = made.secret, made.webhook_endpoint.id
                await work(services, turn)
                await asyncio.sleep(chance.choice([0, 0.1, 0.7]))  # where it is killed
                served.process.kill()
                await served.ended()
        receiver.answer = lambda _: (200, {})
        log = tmp_path / "last.log"
        async with process(database_url, log, *FLAGS) as served, served.local() as services:
            # What was being sent is anybody's again after the claim.
            async with asyncio.timeout(3 * PATIENCE_SECONDS):
                while acknowledged - {told(one) for one in receiver.received}:
                    await receiver.wait(len(receiver.received) + 1)
            for _ in range(200):
                if not (left := await pending(services, hook)):
                    break
                await asyncio.sleep(0.2)
            assert not left

    ids = {(one.event["id"], told(one)) for one in receiver.received}
    assert len(ids) == len({row for _, row in ids}) == len({id_ for id_, _ in ids})
    assert {row for _, row in ids} >= acknowledged
    for one in receiver.received:
        moment = int(one.headers["creditledger-signature"][2:].partition(",")[0])
        assert verified(one, secret, now=moment)
    logs = read(tmp_path)
    assert secret.removeprefix("whsec_") not in logs
    assert "webhooks not" not in logs


async def pending(services: Services, hook: str) -> list[str]:
    """Ids of what the log says is still to be sent."""
    request = pb.ListWebhookDeliveriesRequest(id=hook, status="pending")
    answer = await services.webhooks.ListWebhookDeliveries(request)
    return [one.id for one in answer.webhook_deliveries]


def read(folder: Path) -> str:
    """What all servers have logged."""
    return "".join(one.read_text() for one in folder.glob("*.log"))


def told(request: Received) -> str:
    """The id of the row that a request tells of."""
    id_: str = request.event["data"]["transaction"]["id"]
    return id_
