"""The ledger without gRPC: a worker that hands batches to the committer of its own process.

What is between this and the same batches over gRPC is what gRPC and the printing of
answers cost. The same code gives wallets their credit before anything is measured.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import islice
from typing import TypeVar

from bench.timing import Times, answer
from bench.traffic import CONSUMPTION, Traffic, Wallets, wallet_id
from bench.worker import Failed, serve
from creditledger.domain import clock
from creditledger.domain.commands import Command, Operation, Usage
from creditledger.domain.model import Category, Kind
from creditledger.domain.operations import Consume, GiveGrant
from creditledger.engine.ledger import Ledger
from creditledger.ops.process import run
from creditledger.store import Store

#: As many as one write transaction takes.
GIVE_BATCH = 1_000
#: What a grant holds: enough for every run; and, in 1/10000, little enough to be used up at once.
PLENTY, LITTLE = "1000000.00", 41

T = TypeVar("T")

_CONSUME = Consume(
    amount=str(CONSUMPTION["amount"]),
    usage=Usage(
        api_key_id="apk_bench",
        product_id="chat-1",
        product_name="Chat 1",
        category="llm",
        billing_method=1,
        quantities=(1000, 500),
        base_prices=(25, 100),
        discount_prices=(25, 100),
        price_precision=1000,
    ),
)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Ledger]:
    """A committer on the database."""
    store = Store(url)
    await store.open()
    ledger = Ledger(
        store,
        queue_max=10_000,
        backdating_ms_max=clock.DAY,
        on_disk_failure=lambda: None,
    )
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()
        await store.close()


def command(wallet: str, key: str, operation: Operation) -> Command:
    """A posting as the command line would make it."""
    return Command(
        wallet_id=wallet,
        idempotency_key=key,
        operation=operation,
        livemode=True,
        posted_by=None,
        actor="bench",
    )


def consume(wallet: str, key: str) -> Command:
    """The consumption that all scenarios post."""
    return command(wallet, key, _CONSUME)


def gifts(wallets: Iterable[int], each: int, amount: str, key: str) -> Iterable[Command]:
    """`each` grants for every wallet, drawn in this order."""
    for number in wallets:
        for i in range(each):
            grant = GiveGrant(amount, Kind.TOPUP, Category.PAID, 50, None, None, None, {})
            yield command(wallet_id(number), f"{key}:{i}", grant)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` of them, the last of what is left."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


async def post(ledger: Ledger, commands: Iterable[Command], batch: int) -> None:
    """Post them in batches, one after the other. Raises what the first refusal is."""
    for some in chunks(commands, batch):
        for outcome in await ledger.post_many(some):
            if isinstance(outcome, Exception):
                raise outcome


def batches(
    url: str, wallets: Mapping[str, int], batch: int, seconds: float, seed: int
) -> dict[str, object]:
    """Two batches at a time: one gathers while the other is committed."""
    traffic = Traffic(Wallets(**wallets), seed)  # type: ignore[arg-type]  # of JSON

    async def poster(ledger: Ledger, times: Times) -> None:
        while times.go_on():
            began = time.perf_counter()
            await post(ledger, [consume(*traffic.named()) for _ in range(batch)], batch)
            times.done(batch, began)

    async def run() -> dict[str, object]:
        async with opened(url) as ledger:
            times = Times(seconds)
            await asyncio.gather(*(poster(ledger, times) for _ in range(2)))
            return times.answer()

    return _run(run())


def draws(
    url: str, wallets: Mapping[str, int], grants: int, batch: int, seed: int
) -> dict[str, object]:
    """One consumption a wallet, each of which uses up `grants` grants; given before, unmeasured."""
    numbers = range(wallets["first"], wallets["first"] + wallets["count"])
    amount = f"{LITTLE * grants / 10_000:.4f}"
    latencies: list[float] = []

    async def run() -> dict[str, object]:
        async with opened(url) as ledger:
            given = gifts(numbers, grants, f"{LITTLE / 10_000:.4f}", f"{seed}")
            await post(ledger, given, GIVE_BATCH)
            commands = (command(wallet_id(n), f"draw:{seed}", Consume(amount)) for n in numbers)
            start = time.perf_counter()
            for some in chunks(commands, batch):
                began = time.perf_counter()
                await post(ledger, some, batch)
                latencies.append(time.perf_counter() - began)
            rate = len(numbers) / (time.perf_counter() - start)
            return answer(rate, len(numbers), latencies)

    return _run(run())


def _run(coroutine: Coroutine[None, None, dict[str, object]]) -> dict[str, object]:
    try:
        return run(coroutine)
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    serve({"batches": batches, "draws": draws})
