"""`make soak`: a server under mixed load for minutes, and what it grows by.

    make soak ARGS="--minutes 10"

Postings one by one, in batches and by streams, reads, calls given up, calls past their deadline
and clients that vanish, all on a few wallets. Every twentieth of the time the memory, the files and
the threads of the server are sampled. In the end every posting that was acknowledged is there once,
nothing is there that was not asked for, the ledger verifies, and the server stops in order; else
the exit code is 1.

`--unread` adds clients that vanish while answers to them wait.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import grpc
import psutil
from credit.v1 import credit_transaction_service_pb2 as rows_pb
from credit.v1 import wallet_service_pb2 as pb
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from creditledger.domain import ids
from creditledger.store import schema
from tests.support.process import process
from tests.support.server import CUSTOMER, consume, grant, post
from tests.support.setup import findings, look, migrated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy import Connection

    from tests.support.process import Process
    from tests.support.refusals import Metadata
    from tests.support.server import Services

WALLETS = [f"wal_{n}" for n in range(8)]
SAMPLES = 20
#: What a call may meet with without being wrong; it may have posted or not.
GIVEN_UP = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
}


@dataclass(slots=True)
class Soak:
    """The load, and what it was told."""

    served: Process
    service: Metadata
    chance: random.Random
    done: asyncio.Event = field(default_factory=asyncio.Event)
    #: Keys asked for, with the posting's id once that is acknowledged.
    asked: dict[str, str | None] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def posting(self, **fields: object) -> pb.PostRequest:
        """Another one, with a key of its own."""
        key = f"soak {len(self.asked)}"
        self.asked[key] = None
        return post(key, self.chance.choice(WALLETS), **consume("0.000001"), **fields)

    def acknowledged(self, request: pb.PostRequest, result: pb.PostingResult) -> None:
        """What became of it."""
        if result.HasField("posting"):
            self.asked[request.idempotency_key] = result.posting.posting_id
            self.counts["posted"] += 1
        else:
            self.counts[result.error.code] += 1

    async def repeat(self, name: str, act: Callable[[Services], Awaitable[None]]) -> None:
        """Act over one connection after the other until the time is over."""
        while not self.done.is_set():
            async with self.served.connected() as services:
                for _ in range(self.chance.randrange(50, 500)):
                    if self.done.is_set():
                        break
                    try:
                        await act(services)
                        self.counts[name] += 1
                    except grpc.aio.AioRpcError as error:
                        self.counts[f"{name} {error.code().name}"] += 1
                        if error.code() not in GIVEN_UP:
                            self.wrong.append(f"{name}: {error.code().name} {error.details()}")

    async def post(self, services: Services) -> None:
        """One by one."""
        request = self.posting()
        posting = await services.wallets.Post(request, metadata=self.service)
        self.acknowledged(request, pb.PostingResult(posting=posting))

    async def batch(self, services: Services) -> None:
        """50 at a time."""
        requests = [self.posting() for _ in range(50)]
        wanted = pb.BatchPostRequest(postings=requests)
        answer = await services.wallets.BatchPost(wanted, metadata=self.service)
        for request, result in zip(requests, answer.results, strict=True):
            self.acknowledged(request, result)

    async def stream(self, services: Services) -> None:
        """200 by a stream; one in four is given up on the way."""
        requests = [self.posting() for _ in range(200)]
        stop_at = self.chance.randrange(200) if self.chance.random() < 0.25 else None

        async def sent() -> AsyncIterator[pb.StreamPostRequest]:
            for request in requests:
                yield pb.StreamPostRequest(posting=request)

        call = services.wallets.StreamPost(sent(), metadata=self.service)
        try:
            for n, request in enumerate(requests):
                if n == stop_at:
                    break
                answer = await call.read()
                if not isinstance(answer, pb.StreamPostResponse):
                    self.wrong.append(f"a stream ended after {n} answers")
                    break
                self.acknowledged(request, answer.result)
        finally:
            call.cancel()

    async def read(self, services: Services) -> None:
        """A wallet and its newest rows."""
        n = self.chance.randrange(len(WALLETS))
        wallet = pb.GetWalletRequest(wallet_id=WALLETS[n])
        rows = rows_pb.CreditTransactionServiceListRequest(customer_id=f"{CUSTOMER}_{n}")
        await services.wallets.GetWallet(wallet, metadata=self.service)
        await services.transactions.List(rows, metadata=self.service)

    async def give_up(self, services: Services) -> None:
        """Cancelled at some moment."""
        call = services.wallets.Post(self.posting(), metadata=self.service)
        await asyncio.sleep(self.chance.choice([0, 0.001, 0.005]))
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    async def too_late(self, services: Services) -> None:
        """Past its deadline at some moment."""
        seconds = self.chance.choice([0.0005, 0.002, 0.01])
        request = self.posting()
        posting = await services.wallets.Post(request, metadata=self.service, timeout=seconds)
        self.acknowledged(request, pb.PostingResult(posting=posting))

    async def vanish(self, _: Services) -> None:
        """A client that ends with calls and a stream under way."""
        async with self.served.connected() as services:
            stream = services.wallets.StreamPost(metadata=self.service)
            await stream.write(pb.StreamPostRequest(posting=self.posting()))
            calls = [services.wallets.Post(self.posting(), metadata=self.service) for _ in range(8)]
            await asyncio.sleep(self.chance.choice([0, 0.001, 0.005]))
        # Its channel is closed: whatever was under way has ended.
        for one in (*calls, stream):
            one.cancel()
        await asyncio.sleep(0.1)

    async def never_read(self, _: Services) -> None:
        """A client that posts by a stream, reads no answer, and ends."""
        heavy = {f"{n:02}": "x" * 160 for n in range(50)}
        async with self.served.connected() as services:
            stream = services.wallets.StreamPost(metadata=self.service)
            with suppress(TimeoutError):
                for _turn in range(5_000):
                    request = pb.StreamPostRequest(posting=self.posting(metadata=heavy))
                    await asyncio.wait_for(stream.write(request), 1)
        await asyncio.sleep(5)


def state(server: psutil.Process) -> tuple[float, int, int]:
    """Its memory in MiB, its open files, its threads."""
    return server.memory_info().rss / (1 << 20), server.num_fds(), server.num_threads()


async def prepare(served: Process) -> Metadata:
    """Wallets with more credit than the soak spends, and a key."""
    async with served.local() as local:
        for n, wallet_id in enumerate(WALLETS):
            await local.new_wallet(wallet_id, f"{CUSTOMER}_{n}")
            await local.wallets.Post(post("topup", wallet_id, **grant("1000000")))
        return await local.key("service")


async def soak(served: Process, url: str, minutes: float, *, unread: bool) -> list[str]:
    """Load the server, stop it, and answer what was wrong."""
    one = Soak(served, await prepare(served), random.Random(20))
    server = psutil.Process(served.process.pid)
    table = Table("minute", "MiB", "files", "threads", "posted", "CPU s", title="the server")
    working = [one.repeat("post", one.post) for _ in range(16)]
    working += [one.repeat("batch", one.batch), one.repeat("stream", one.stream)]
    working += [one.repeat("read", one.read) for _ in range(2)]
    working += [one.repeat("give up", one.give_up), one.repeat("too late", one.too_late)]
    working += [one.repeat("vanish", one.vanish)]
    working += [one.repeat("never read", one.never_read)] if unread else []
    tasks = [asyncio.create_task(work) for work in working]
    for n in range(SAMPLES + 1):
        memory, files, threads = state(server)
        used = server.cpu_times().user + server.cpu_times().system
        table.add_row(
            *(f"{n * minutes / SAMPLES:.1f}", f"{memory:.0f}", str(files), str(threads)),
            *(f"{one.counts['posted']:,}", f"{used:.0f}"),
        )
        if n < SAMPLES:
            await asyncio.sleep(minutes * 60 / SAMPLES)
    one.done.set()
    await asyncio.gather(*tasks)
    await asyncio.sleep(5)
    memory, files, threads = state(server)
    table.add_row("idle", f"{memory:.0f}", str(files), str(threads), f"{one.counts['posted']:,}")
    console = Console()
    console.print(table)
    console.print(dict(sorted(one.counts.items())))
    server.send_signal(signal.SIGTERM)
    if (code := await served.ended()) != 0:
        one.wrong.append(f"the server ended with {code}")
    there = look(url, _postings)
    lost = [key for key, id_ in one.asked.items() if id_ not in {None, there.get(key)}]
    strange = there.keys() - one.asked.keys()
    one.wrong += [f"acknowledged, and not there: {key}" for key in lost[:5]]
    one.wrong += [f"there, and never asked for: {key}" for key in list(strange)[:5]]
    one.wrong += [f"verify: {finding}" for finding in findings(url)[:5]]
    told = sum(id_ is not None for id_ in one.asked.values())
    console.print(f"{told:,} acknowledged, {len(there):,} there, {len(one.asked):,} asked for")
    return one.wrong


def _postings(connection: Connection) -> dict[str, str]:
    """Key -> posting, of what the soak has posted."""
    p = schema.postings.c
    found = connection.execute(
        select(p.idempotency_key, p.wallet_number, p.number).where(p.idempotency_key != "topup")
    ).all()
    there = {key: ids.compose("pst", wallet, number) for key, wallet, number in found}
    assert len(there) == len(found), "a key stands twice"
    return there


async def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--unread", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        url = migrated(Path(folder, "credit.db"))
        async with process(url, Path(folder, "log")) as served:
            wrong = await soak(served, url, given.minutes, unread=given.unread)
    for one in wrong[:20]:
        sys.stderr.write(f"{one}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
