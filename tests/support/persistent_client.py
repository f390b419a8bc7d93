"""Clients that do not give up: each sends a posting, under its key, until it has an answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from creditledger.domain import money
from tests.support.answers import SCALE, stored, taken, told
from tests.support.server import consume, post

if TYPE_CHECKING:
    from collections.abc import Sequence

    from credit.v1 import wallet_service_pb2 as pb

    from tests.support.refusals import Metadata
    from tests.support.server import Services

#: What a client meets while the database, or its server, is away. NETWORK: no server said it.
NETWORK = "NETWORK"
PASSING = {"UNAVAILABLE", "OUTCOME_UNKNOWN", NETWORK}


def reason(error: grpc.aio.AioRpcError) -> str:
    """Why a call failed, by the name it has in the contract."""
    body = dict(error.trailing_metadata() or ()).get("x-creditledger-error")
    if body is None:
        assert error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.UNKNOWN,
        ), error
        return NETWORK
    code: str = json.loads(body)["error"]["code"]
    return code


@dataclass(slots=True)
class Persistent:
    """What they sent, and what they were told."""

    name: str
    wallets: Sequence[str]
    sent: dict[str, pb.PostRequest] = field(default_factory=dict)
    answers: dict[str, pb.Posting] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _told: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def client(self, servers: Sequence[Services], metadata: Metadata) -> None:
        """One posting after the other, to any of the servers, until `ended`."""
        while not self.ended.is_set():
            key = f"{self.name} {len(self.sent)}"
            cents = random.randint(1, 700)
            amount = f"{cents // 100}.{cents % 100:02}"
            request = post(key, random.choice(self.wallets), **consume(amount))
            self.sent[key] = request
            while key not in self.answers:
                services = random.choice(servers)
                try:
                    self.answers[key] = await services.wallets.Post(request, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    self.reasons[reason(error)] += 1
                    # As a client would, so that it does not ask a thousand times a second.
                    await asyncio.sleep(0.02)
                async with self._told:
                    self._told.notify_all()

    async def answered(self, more: int) -> None:
        """Until this many more postings have been answered."""
        goal = len(self.answers) + more
        async with self._told:
            await self._told.wait_for(lambda: len(self.answers) >= goal)

    async def failed(self, more: int, reason: str = "UNAVAILABLE") -> None:
        """Until this many more calls have failed for this reason."""
        goal = self.reasons[reason] + more
        async with self._told:
            await self._told.wait_for(lambda: self.reasons[reason] >= goal)

    def check(self, url: str) -> None:
        """Every posting is there once, as it was answered, and nothing else is."""
        assert self.answers.keys() == self.sent.keys()
        found = {key: rows for key, rows in stored(url).items() if key.startswith(self.name)}
        assert found == {key: [told(answer)] for key, answer in self.answers.items()}
        for key, (rows,) in found.items():
            amount = self.sent[key].consumption.amount
            assert taken(rows) == money.parse(amount, SCALE, field="amount")
        assert set(self.reasons) <= PASSING, self.reasons
