"""A client process of the benchmark: drives one scenario over gRPC and reports what it saw.

Started by run.py as `python -m bench.load`, with the scenario as JSON on standard input; prints
one JSON object: postings acknowledged, seconds, latencies of calls in milliseconds.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to do: `kind` is empty, unary, batch or stream."""

    name: str
    kind: str
    address: str
    key: str
    wallets: int  #: Picked from wal_0 on at random; 1 is one hot wallet.
    in_flight: int
    calls: int
    batch: int = 1
    seed: int = 0


@dataclass(slots=True)
class Seen:
    """What a client process saw."""

    postings: int
    seconds: float
    milliseconds: list[float]


class _Client:
    def __init__(self, scenario: Scenario, channel: grpc.aio.Channel) -> None:
        self._scenario = scenario
        self._random = random.Random(scenario.seed)  # noqa: S311 # load, not a secret
        self._stub = WalletServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)
        self._credential = (("authorization", f"Bearer {scenario.key}"),)
        self._milliseconds: list[float] = []

    def posting(self) -> pb.PostRequest:
        """A consumption such as a gateway posts: a random key, two quantities."""
        wallet = self._random.randrange(self._scenario.wallets)
        return pb.PostRequest(
            wallet_id=f"wal_{wallet}",
            idempotency_key=f"{self._random.getrandbits(128):032x}",
            consumption=pb.ConsumptionOperation(
                amount="0.0123",
                usage=pb.Usage(
                    api_key_id="apk_bench",
                    product_id="chat-1",
                    product_name="Chat 1",
                    category="llm",
                    quantities=[1000, 500],
                    base_prices=[25, 100],
                    discount_prices=[25, 100],
                    price_precision=1000,
                ),
            ),
        )

    async def _empty(self) -> int:
        await self._health.Check(health_pb2.HealthCheckRequest())
        return 0

    async def _unary(self) -> int:
        await self._stub.Post(self.posting(), metadata=self._credential)
        return 1

    async def _batch(self) -> int:
        request = pb.BatchPostRequest(
            postings=[self.posting() for _ in range(self._scenario.batch)]
        )
        answer = await self._stub.BatchPost(request, metadata=self._credential)
        return sum(1 for result in answer.results if result.HasField("posting"))

    async def _stream(self) -> int:
        async def requests() -> AsyncIterator[pb.StreamPostRequest]:
            for _ in range(self._scenario.batch):
                yield pb.StreamPostRequest(posting=self.posting())

        answers = self._stub.StreamPost(requests(), metadata=self._credential)
        return sum([1 async for answer in answers if answer.result.HasField("posting")])

    async def run(self) -> Seen:
        """All calls, `in_flight` at a time."""
        acts: dict[str, Callable[[], Awaitable[int]]] = {
            "empty": self._empty,
            "unary": self._unary,
            "batch": self._batch,
            "stream": self._stream,
        }
        act = acts[self._scenario.kind]
        left = self._scenario.calls
        postings = 0

        async def worker() -> None:
            nonlocal left, postings
            while left > 0:
                left -= 1
                began = time.perf_counter()
                posted = await act()
                postings += posted
                self._milliseconds.append((time.perf_counter() - began) * 1000)

        await self._health.Check(health_pb2.HealthCheckRequest())
        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(self._scenario.in_flight)))
        return Seen(postings, time.perf_counter() - began, self._milliseconds)


async def _main() -> None:
    scenario = Scenario(**json.load(sys.stdin))
    async with grpc.aio.insecure_channel(scenario.address) as channel:
        seen = await _Client(scenario, channel).run()
    json.dump(asdict(seen), sys.stdout)


if __name__ == "__main__":
    asyncio.run(_main())
