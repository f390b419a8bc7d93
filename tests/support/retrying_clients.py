"""Clients as they ought to be: they repeat what they do not know the end of, with the same key.

They post to a few wallets, one at a time, in batches and in streams, against any of several
servers, until they are told to stop. Whatever becomes of the servers meanwhile, each posting is
accepted in the end, once: `check` compares what they were told with what the database holds.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import httpx
from credit.v1 import wallet_service_pb2 as pb
from google.protobuf.json_format import MessageToDict, Parse
from sqlalchemy import Connection, func, select

from creditledger import store
from creditledger.domain import ids, money
from creditledger.ops.client import local_channel
from creditledger.ops.config import Config
from creditledger.store import schema
from tests.support.refusals import bearer
from tests.support.server import Services, consume, grant, post
from tests.support.setup import findings, finished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from tests.support.refusals import Metadata

WALLETS = ["wal_hot", "wal_1", "wal_2"]
GIVEN, SCALE = 1_000_000, 9
#: What an attempt that failed waits before the next one.
PAUSE_SECONDS = 0.02
#: A call on a connection that nobody answers is given up.
CALL_SECONDS_MAX = 10.0
UNANSWERED_MAX = 50
#: The client library of a stream that it could not write to: ended by the transport, as docs/api.md
#: says of an INTERNAL without details.
WRITE_FAILED = "Internal error from Core"


@dataclass(frozen=True, slots=True)
class Shop:
    """A database with wallets that hold credit, and a key for it."""

    database_url: str
    metadata: Metadata


async def prepare(database_url: str) -> Shop:
    """Make the wallets and the key on an empty database that nobody need serve."""
    async with local_channel(Config(database_url=database_url)) as channel:
        services = Services(channel)
        for wallet_id in WALLETS:
            await services.new_wallet(wallet_id, f"cus_of_{wallet_id}")
            await services.wallets.Post(post("given", wallet_id, **grant(str(GIVEN))))
        return Shop(database_url, bearer((await services.new_key("service")).secret))


class MayNotBeRetried(Exception):
    """An answer after which a client does not know what to do."""


@dataclass(slots=True)
class Clients:
    """Several of them, each at first at another one of the servers."""

    shop: Shop
    addresses: Sequence[str]
    #: What was retried: (manner, code or reason) -> attempts.
    retried: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: dict[str, pb.PostRequest] = field(default_factory=dict)
    accepted: dict[str, pb.Posting] = field(default_factory=dict)
    #: The longest that a client waited from its first attempt to the answer.
    seconds_max: float = 0.0
    _stopped: bool = False

    @asynccontextmanager
    async def at_work(
        self, *, unary: int = 2, batches: int = 1, streams: int = 1, rest: str | None = None
    ) -> AsyncIterator[None]:
        """So many of each manner, and two at the REST URL, until the block ends."""
        works: list[Coroutine[None, None, None]] = []
        works += [self._unary(number) for number in range(unary)]
        works += [self._batches(number) for number in range(batches)]
        works += [self._stream(number) for number in range(streams)]
        if rest is not None:
            works += [self._rest(rest) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
            yield
            self._stopped = True

    async def accept(self, count: int) -> None:
        """Until so many more postings are accepted."""
        enough = len(self.accepted) + count
        while len(self.accepted) < enough:  # noqa: ASYNC110 # what is waited for is others' work
            await asyncio.sleep(PAUSE_SECONDS)

    def _new(self) -> pb.PostRequest:
        key = f"key {len(self.requests)}"
        wallet_id = WALLETS[0] if random.random() < 0.5 else random.choice(WALLETS)
        amount = f"0.{random.randint(1, 99):02}"
        self.requests[key] = request = post(key, wallet_id, **consume(amount))
        return request

    def _told(self, request: pb.PostRequest, answer: pb.Posting) -> None:
        assert request.idempotency_key not in self.accepted
        self.accepted[request.idempotency_key] = answer

    async def _failed(self, manner: str, error: grpc.aio.AioRpcError) -> None:
        """Wait a moment. Raises MayNotBeRetried."""
        said = error.code().name
        if error.details() == WRITE_FAILED:
            said = "UNAVAILABLE"
        if said == "DEADLINE_EXCEEDED":
            body = dict(error.trailing_metadata() or ()).get("x-creditledger-error", "{}")
            said = json.loads(body).get("error", {}).get("code", said)
        self.retried[manner, said] += 1
        if said not in {"UNAVAILABLE", "OUTCOME_UNKNOWN"}:
            raise MayNotBeRetried(manner, said, error.details())
        await asyncio.sleep(PAUSE_SECONDS)

    @asynccontextmanager
    async def _connected(self, number: int) -> AsyncIterator[deque[Services]]:
        """The servers, the first one to be asked first."""
        options = [
            # Without it channels to one address share a connection.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 300),
        ]
        channels = [grpc.aio.insecure_channel(one, options=options) for one in self.addresses]
        try:
            services = deque(Services(channel) for channel in channels)
            services.rotate(number)
            yield services
        finally:
            for channel in channels:
                await channel.close()

    async def _unary(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        async with self._connected(number) as servers:
            while not self._stopped:
                request, began = self._new(), loop.time()
                while request.idempotency_key not in self.accepted:
                    try:
                        answer = await servers[0].wallets.Post(
                            request, metadata=self.shop.metadata, timeout=CALL_SECONDS_MAX
                        )
                        self._told(request, answer)
                    except grpc.aio.AioRpcError as error:
                        await self._failed("unary", error)
                        servers.rotate()
                self.seconds_max = max(self.seconds_max, loop.time() - began)

    async def _batches(self, number: int) -> None:
        async with self._connected(number) as servers:
            while not self._stopped:
                requests = [self._new() for _ in range(random.randint(1, 40))]
                while requests[0].idempotency_key not in self.accepted:
                    try:
                        answer = await servers[0].wallets.BatchPost(
                            pb.BatchPostRequest(postings=requests),
                            metadata=self.shop.metadata,
                            timeout=CALL_SECONDS_MAX,
                        )
                        for request, result in zip(requests, answer.results, strict=True):
                            self._told(request, result.posting)
                    except grpc.aio.AioRpcError as error:
                        await self._failed("batch", error)
                        servers.rotate()

    async def _stream(self, number: int) -> None:
        """What a stream that ends has not answered goes first into the next one."""
        unanswered: deque[pb.PostRequest] = deque()
        async with self._connected(number) as servers:
            while unanswered or not self._stopped:
                try:
                    await self._one_stream(servers[0], unanswered)
                except grpc.aio.AioRpcError as error:
                    await self._failed("stream", error)
                    servers.rotate()

    async def _one_stream(self, services: Services, unanswered: deque[pb.PostRequest]) -> None:
        room = asyncio.Semaphore(UNANSWERED_MAX)

        async def requests() -> AsyncIterator[pb.StreamPostRequest]:
            for request in list(unanswered):
                await room.acquire()
                yield pb.StreamPostRequest(posting=request)
            while not self._stopped:
                await room.acquire()
                unanswered.append(self._new())
                yield pb.StreamPostRequest(posting=unanswered[-1])

        call = services.wallets.StreamPost(requests(), metadata=self.shop.metadata)
        try:
            async for answer in call:
                self._told(unanswered.popleft(), answer.result.posting)
                room.release()
        finally:
            call.cancel()

    async def _rest(self, url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            while not self._stopped:
                request = self._new()
                body = MessageToDict(request, preserving_proto_field_name=True)
                path = f"/v1/wallets/{body.pop('wallet_id')}/postings"
                while request.idempotency_key not in self.accepted:
                    headers = dict(self.shop.metadata)
                    answer = await client.post(path, json=body, headers=headers)
                    if answer.status_code == 200:
                        self._told(request, Parse(answer.text, pb.Posting()))
                        continue
                    code = answer.json()["error"]["code"]
                    self.retried["rest", code] += 1
                    if code not in {"UNAVAILABLE", "OUTCOME_UNKNOWN"}:
                        raise MayNotBeRetried("rest", code, answer.text)
                    await asyncio.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """Each posting is there once, as it was told; nothing else is; the ledger verifies."""
        assert self.accepted.keys() == self.requests.keys()
        spent = Counter(dict.fromkeys(WALLETS, 0))
        told: dict[tuple[str, str], tuple[str, int]] = {}
        for key, request in self.requests.items():
            amount = money.parse(request.consumption.amount, SCALE, field="amount")
            spent[request.wallet_id] += amount
            told[request.wallet_id, key] = (self.accepted[key].posting_id, -amount)
        rows, balances = finished(store.look(self.shop.database_url, _held))
        assert told == rows
        assert {w: GIVEN * 10**SCALE - spent[w] for w in WALLETS} == balances
        assert findings(self.shop.database_url) == []


def _held(
    connection: Connection,
) -> tuple[dict[tuple[str, str], tuple[str, int]], dict[str, int]]:
    """(wallet, key) -> (posting, what its rows amount to); balances by wallet."""
    t, p, w, s = (
        schema.transactions.c,
        schema.postings.c,
        schema.wallets.c,
        schema.wallet_states.c,
    )
    rows: dict[tuple[str, str], tuple[str, int]] = {}
    query = (
        select(w.id, p.idempotency_key, p.wallet_number, p.number, func.sum(t.amount))
        .join_from(schema.postings, schema.wallets, w.number == p.wallet_number)
        .join(
            schema.transactions,
            (t.wallet_number == p.wallet_number) & (t.posting_number == p.number),
        )
        .where(p.idempotency_key != "given")
        .group_by(w.id, p.idempotency_key, p.wallet_number, p.number)
    )
    for wallet_id, key, wallet, number, amount in connection.execute(query):
        assert (wallet_id, key) not in rows, f"{key} is there twice"
        rows[wallet_id, key] = (ids.compose("pst", wallet, number), int(amount))
    states = select(w.id, s.running_balance).join_from(schema.wallets, schema.wallet_states)
    return rows, {wallet_id: int(balance) for wallet_id, balance in connection.execute(states)}
