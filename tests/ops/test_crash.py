"""What a real server acknowledged is there once, whatever ends it; anything else is whole or none.

Clients of three manners write to several wallets, one of them hot, while the server is killed, told
to stop, or forsaken. What is compared is what they were told with the rows on the disk.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import money
from creditledger.store.sqlite import writer as sqlite_writer
from tests.support.answers import SCALE, stored, taken, told
from tests.support.databases import OURS, execute
from tests.support.process import process
from tests.support.server import PATIENCE_SECONDS, consume, grant, post
from tests.support.setup import file_of, findings, is_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Coroutine
    from pathlib import Path

    from tests.support.process import Process
    from tests.support.refusals import Metadata
    from tests.support.server import Services

HOT = "wal_hot"
WALLETS = [HOT, *(f"wal_{n}" for n in range(5))]
#: Lots so small that most consumptions draw on several: so a posting can be torn.
LOTS, LOT = 120, "2.00"
#: More than all that is ever consumed, spent last.
RESERVE = "1000000"
#: What no wallet can pay.
TOO_MUCH = "2000000"


@dataclass(slots=True)
class Intent:
    """One posting a client wants, and what it has been told of it."""

    request: pb.PostRequest
    answer: pb.PostingResult | None = None

    @property
    def amount(self) -> int:
        """What it takes, in smallest units; 0 for what cannot be paid."""
        text = self.request.consumption.amount
        return 0 if text == TOO_MUCH else money.parse(text, SCALE, field="amount")


@dataclass(slots=True)
class Load:
    """Clients at work, and all that they have sent."""

    name: str
    random: random.Random
    intents: dict[str, Intent] = field(default_factory=dict)
    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def new(self, wallet_id: str | None = None) -> Intent:
        """A posting to be sent, on the hot wallet as often as on any other."""
        key = f"{self.name} {len(self.intents)}"
        cents = self.random.randint(1, 700)
        amount = TOO_MUCH if self.random.random() < 0.03 else f"{cents // 100}.{cents % 100:02}"
        if wallet_id is None:
            wallet_id = HOT if self.random.random() < 0.5 else self.random.choice(WALLETS)
        intent = self.intents[key] = Intent(post(key, wallet_id, **consume(amount)))
        return intent

    def told(self, intent: Intent, answer: pb.PostingResult) -> None:
        """The intent has its answer."""
        intent.answer = answer
        self.answered.set()

    async def unary(self, services: Services, metadata: Metadata) -> None:
        """One after the other, on the hot wallet."""
        while True:
            intent = self.new(HOT)
            try:
                done = await services.wallets.Post(intent.request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                self.told(intent, pb.PostingResult(error=pb.PostingError(code="refused")))
            else:
                self.told(intent, pb.PostingResult(posting=done))

    async def batches(self, services: Services, metadata: Metadata) -> None:
        """Some thirty at a time, over all wallets."""
        while True:
            intents = [self.new() for _ in range(self.random.randint(1, 60))]
            request = pb.BatchPostRequest(postings=[one.request for one in intents])
            answer = await services.wallets.BatchPost(request, metadata=metadata)
            for intent, result in zip(intents, answer.results, strict=True):
                self.told(intent, result)

    async def stream(self, services: Services, metadata: Metadata) -> None:
        """Up to two hundred unanswered, over all wallets."""
        sent: asyncio.Queue[Intent] = asyncio.Queue(200)

        async def requests() -> AsyncIterator[pb.StreamPostRequest]:
            while True:
                intent = self.new()
                await sent.put(intent)
                yield pb.StreamPostRequest(posting=intent.request)

        async for answer in services.wallets.StreamPost(requests(), metadata=metadata):
            self.told(sent.get_nowait(), answer.result)

    async def until_it_fails(self, work: Coroutine[None, None, None]) -> None:
        """A client works until its call fails; for what, is counted."""
        try:
            await work
        except grpc.aio.AioRpcError as error:
            self.codes[error.code()] += 1

    async def until_it_breaks(self, work: Coroutine[None, None, None]) -> None:
        """A client works until its stream ends.

        grpcio calls a stream whose server went, by chance, unavailable, cancelled or an internal
        error of its own: so there is nothing to count.
        """
        try:
            with suppress(grpc.aio.AioRpcError):
                await work
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr] # we are a task
                raise

    async def run(self, served: Process, metadata: Metadata, meanwhile: Awaitable[None]) -> None:
        """All clients, each over a connection of its own, until each has failed."""
        async with AsyncExitStack() as connections:
            works = []
            for kind in (self.unary, self.unary, self.unary, self.batches):
                services = await connections.enter_async_context(served.connected())
                works.append(self.until_it_fails(kind(services, metadata)))
            services = await connections.enter_async_context(served.connected())
            works.append(self.until_it_breaks(self.stream(services, metadata)))
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(*works, meanwhile)

    def acknowledged(self) -> dict[str, pb.Posting]:
        """Key -> what was answered, of what was accepted."""
        return {
            key: one.answer.posting
            for key, one in self.intents.items()
            if one.answer is not None and one.answer.HasField("posting")
        }

    def refused(self) -> set[str]:
        """Keys of what was answered by a refusal."""
        return {
            key
            for key, one in self.intents.items()
            if one.answer is not None and one.answer.HasField("error")
        }

    def unknown(self) -> list[Intent]:
        """What was sent, or about to be, and not answered."""
        return [one for one in self.intents.values() if one.answer is None]


def check(load: Load, url: str) -> set[str]:
    """The promise about what the clients were told; answers the keys of what is there beyond it."""
    found = stored(url)
    accepted = load.acknowledged()
    for key, posting in accepted.items():
        assert [told(posting)] == found[key], f"{key} was acknowledged"
    for key in load.refused():
        assert key not in found, f"{key} was refused"
    unknown = {one.request.idempotency_key: one for one in load.unknown()}
    there = {key for key in unknown if key in found}
    for key in there:
        (rows,) = found[key]
        assert taken(rows) == unknown[key].amount > 0, f"{key} is not whole"
    assert {key for key in found if key.startswith(f"{load.name} ")} == accepted.keys() | there
    return there


async def settle(load: Load, served: Process, ledger: Ledger) -> None:
    """The clients ask what became of what they do not know, and send it again, under its key."""
    async with served.connected() as services:
        unknown = load.unknown()
        before = stored(ledger.url)
        for intent in unknown[:300]:
            key = intent.request.idempotency_key
            request = pb.GetPostingRequest(wallet_id=intent.request.wallet_id, idempotency_key=key)
            try:
                found = await services.wallets.GetPosting(request, metadata=ledger.metadata)
            except grpc.aio.AioRpcError as error:
                rows = []
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                rows = [told(found)]
            assert rows == before.get(key, [])
        for first in range(0, len(unknown), 500):
            intents = unknown[first : first + 500]
            batch = pb.BatchPostRequest(postings=[one.request for one in intents])
            answer = await services.wallets.BatchPost(batch, metadata=ledger.metadata)
            for intent, result in zip(intents, answer.results, strict=True):
                load.told(intent, result)
                there = intent.request.idempotency_key in before
                assert result.posting.replayed == there


@dataclass(slots=True)
class Ledger:
    """A database with its wallets and a key, and all that was given and taken."""

    url: str
    log: Path
    metadata: Metadata = ()
    given: Counter[str] = field(default_factory=Counter)
    loads: list[Load] = field(default_factory=list)

    async def prepare(self, served: Process, name: str) -> Load:
        """Small lots on every wallet, for a load of this name."""
        async with served.local() as local:
            if not self.metadata:
                self.metadata = await local.key("service")
                for wallet_id in WALLETS:
                    await local.new_wallet(wallet_id, f"cus_of_{wallet_id}")
            batch = []
            for wallet_id in WALLETS:
                if not self.loads:
                    batch.append(post("reserve", wallet_id, **grant(RESERVE, priority=90)))
                    self.given[wallet_id] += int(RESERVE)
                batch += [post(f"lot {name} {n}", wallet_id, **grant(LOT)) for n in range(LOTS)]
                self.given[wallet_id] += LOTS * int(float(LOT))
            answer = await local.wallets.BatchPost(pb.BatchPostRequest(postings=batch))
            assert all(one.HasField("posting") for one in answer.results)
        seed = random.getrandbits(32)
        print(f"load {name}: seed {seed}")  # noqa: T201 # shown where a test fails
        load = Load(name, random.Random(seed))
        self.loads.append(load)
        return load

    async def check_totals(self, served: Process) -> None:
        """Each accepted intent has one posting, and the wallets hold what is left."""
        found = stored(self.url)
        spent: Counter[str] = Counter()
        for load in self.loads:
            assert load.unknown() == []
            check(load, self.url)
            for key, intent in load.intents.items():
                assert len(found[key]) == (intent.amount > 0)
                spent[intent.request.wallet_id] += intent.amount
        async with served.local() as local:
            for wallet_id in WALLETS:
                request = pb.GetWalletRequest(wallet_id=wallet_id)
                wallet = await local.wallets.GetWallet(request)
                left = self.given[wallet_id] * 10**SCALE - spent[wallet_id]
                assert wallet.balance == wallet.available == money.text(left, SCALE)
        assert findings(self.url) == []


@pytest.fixture
def ledger(database_url: str, tmp_path: Path) -> Ledger:
    """An empty database that nobody serves yet."""
    return Ledger(database_url, tmp_path / "log")


async def test_killed_at_any_moment(ledger: Ledger) -> None:
    """`kill -9` under load, again and again: nothing told is lost, nothing is torn or doubled.

    Then the clients send what they do not know of again, under the same keys, and all is as if
    nothing had happened. Some of the kills hit a server that is told to stop already.
    """
    torn_from = 0
    for turn in range(5):
        async with process(ledger.url, ledger.log) as served:
            if ledger.loads:
                check(ledger.loads[-1], ledger.url)
                await settle(ledger.loads[-1], served, ledger)
                await ledger.check_totals(served)
            load = await ledger.prepare(served, f"kill {turn}")

            async def kill(load: Load = load, served: Process = served, turn: int = turn) -> None:
                await load.answered.wait()
                await asyncio.sleep(load.random.uniform(0, 0.7))
                if turn % 3 == 2:
                    served.process.terminate()
                    await asyncio.sleep(load.random.uniform(0, 0.1))
                served.process.kill()

            await load.run(served, ledger.metadata, kill())
            await served.ended()
            torn_from += len(load.unknown())
        assert len(load.acknowledged()) > 0
        assert load.codes.total() == 4
    async with process(ledger.url, ledger.log) as served:
        check(ledger.loads[-1], ledger.url)
        await settle(ledger.loads[-1], served, ledger)
        await ledger.check_totals(served)

    several = [one for load in ledger.loads for one in load.acknowledged().values()]
    assert sum(len(one.transactions) > 1 for one in several) > 100
    assert torn_from > 0


async def test_told_to_stop_under_load(ledger: Ledger) -> None:
    """SIGTERM: who was answered is in the ledger, the others are told UNAVAILABLE; nothing is left.

    The process ends by itself with 0, soon after the seconds that a drain may take; its socket is
    gone, and so are its connections, or its file is not locked and has no journal beside it.
    """
    clock = asyncio.get_running_loop().time
    flags = ("--drain-seconds", "0.5")
    async with process(ledger.url, ledger.log, *flags) as served:
        load = await ledger.prepare(served, "stop")

        async def stop() -> None:
            await load.answered.wait()
            await asyncio.sleep(0.3)
            served.process.terminate()

        began = clock()
        await load.run(served, ledger.metadata, stop())
        code = await served.ended()
        seconds = clock() - began

    assert code == 0
    assert seconds < 8
    assert not served.local_socket.exists()
    if is_file(ledger.url):
        file = file_of(ledger.url)
        assert {one.name for one in file.parent.glob(f"{file.name}*")} == {
            file.name,
            f"{file.name}.lock",
        }
        sqlite_writer.lock(file).release()
    else:
        assert await execute(ledger.url, OURS) == []
    # After the look at what lies beside the file: a reader leaves a journal there.
    check(load, ledger.url)
    # A call that comes in the very moment in which the port closes grpcio calls cancelled.
    assert load.codes[grpc.StatusCode.UNAVAILABLE] + load.codes[grpc.StatusCode.CANCELLED] == 4
    assert len(load.acknowledged()) > 50
    async with process(ledger.url, ledger.log) as served:
        await settle(load, served, ledger)
        await ledger.check_totals(served)


async def forsaken(load: Load, services: Services, metadata: Metadata) -> None:
    """Clients that give up: by a deadline, or by cancelling, at any moment of their call."""

    async def once(call: Coroutine[None, None, None]) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await call

    async def unary() -> None:
        intent = load.new()
        call = services.wallets.Post(
            intent.request, metadata=metadata, timeout=load.random.uniform(0, 0.02)
        )
        answer = await call
        load.told(intent, pb.PostingResult(posting=answer))

    async def cancelled_unary() -> None:
        intent = load.new()
        call = services.wallets.Post(intent.request, metadata=metadata)
        await asyncio.sleep(load.random.uniform(0, 0.02))
        call.cancel()
        load.told(intent, pb.PostingResult(posting=await call))

    async def batch() -> None:
        intents = [load.new() for _ in range(20)]
        call = services.wallets.BatchPost(
            pb.BatchPostRequest(postings=[one.request for one in intents]),
            metadata=metadata,
            timeout=load.random.uniform(0, 0.05),
        )
        for intent, result in zip(intents, (await call).results, strict=True):
            load.told(intent, result)

    async def stream() -> None:
        call = services.wallets.StreamPost(metadata=metadata)
        intents = [load.new() for _ in range(20)]
        for intent in intents:
            await call.write(pb.StreamPostRequest(posting=intent.request))
        for intent in intents[: load.random.randint(0, 20)]:
            answer = await call.read()
            assert isinstance(answer, pb.StreamPostResponse)
            load.told(intent, answer.result)
        call.cancel()

    for _ in range(40):
        works = [unary(), unary(), cancelled_unary(), cancelled_unary(), batch(), stream()]
        await asyncio.gather(*map(once, works))


#: What grpcio says of an answer whose caller has gone meanwhile.
ON_ITS_WAY = "ExecuteBatchError raised in core"


async def test_forsaken_by_its_callers(ledger: Ledger) -> None:
    """Cancelled calls and passed deadlines leave postings that are whole, or none."""
    async with process(ledger.url, ledger.log) as served:
        load = await ledger.prepare(served, "forsaken")
        async with served.connected() as one, served.connected() as other:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asyncio.gather(
                    *(forsaken(load, services, ledger.metadata) for services in (one, other))
                )
        async with served.local() as local:
            # The committer has begun and ended all that came before this.
            last = await local.wallets.Post(post("last", **grant("1"), wallet_id=HOT))
        there = check(load, ledger.url)
        dropped = len(load.unknown()) - len(there)
        await settle(load, served, ledger)
        ledger.given[HOT] += 1
        await ledger.check_totals(served)
        served.process.terminate()
        assert await served.ended() == 0

    assert last.transactions
    # Some were given up before and some after the server had written them.
    assert len(there) > 0
    assert dropped > 0
    said = [line for line in served.lines() if line["level"] not in {"info", "debug"}]
    # grpcio may say that an answer was on its way; nothing else is said.
    assert [line for line in said if ON_ITS_WAY not in line["event"]] == []
