"""`make bench ARGS="--only reads"`: the same reads of a small ledger and of a large one.

Both have a server each and are asked in turn, so that a machine that is slower for a while is so
for both. A read that the large ledger refuses is a figure that is not reached.
"""

import base64
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from rich.console import Console
from rich.progress import Progress

from bench import reads
from bench.databases import Home, machine
from bench.options import Options
from bench.outcome import Outcome, Sample, result
from bench.seeded import SMALL, Shape, many_large, many_small
from bench.served import Served, new_key, serving
from bench.worker import Failed, Worker
from creditledger.domain import clock

CUSTOMER = "cus_0000000"
#: There are many reads, and each is asked often in little time.
SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ledgers that are read alike."""

    says: str
    small: Shape
    large: Shape
    customer: str | None  #: Whose wallet is read; None: all wallets.
    deep: int  #: How deep a page is that both have.


def pairs(rows: int, wallets: int) -> list[Pair]:
    """What is compared, for large ledgers of so many rows."""
    small, of_each = min(SMALL, rows), rows // wallets
    one = Shape("one_small", small, 1), Shape("one_large", rows, 1)
    few = max(1, small // of_each)
    some = Shape("few_small", few * of_each, few), many_large(rows, wallets)
    many = many_small(wallets), many_large(rows, wallets)
    return [
        Pair("one wallet", *one, CUSTOMER, min(reads.DEEP, small)),
        Pair("a wallet of many", *some, CUSTOMER, of_each * 9 // 10),
        Pair("all wallets", *many, None, min(reads.DEEP, many[0].rows)),
    ]


@dataclass(slots=True)
class Side:
    """A ledger of a pair under measurement."""

    served: Served
    worker: Worker
    service: str  #: The secret of a key that sees all.
    customer: str  #: Of one that sees the customer's.

    def ask(self, path: str, request: Message, as_customer: bool) -> bytes:
        """The answer. Raises Failed."""
        return base64.b64decode(self._ask(path, request, as_customer, 0.0)["message"])

    def sample(self, read: reads.Read, seconds: float) -> Sample:
        """Again and again. Raises Failed."""
        if read.refused is not None:
            raise Failed(read.refused)
        before = self.served.cpu_seconds()
        answer = self._ask(read.path, read.request, read.as_customer, seconds)
        used = (self.served.cpu_seconds() - before) / answer["total"] * 1e6
        return Sample(answer["rate"], answer["p50_ms"], answer["p99_ms"], server_us=used)

    def _ask(self, path: str, request: Message, as_customer: bool, seconds: float) -> Any:
        return self.worker.ask(
            "read",
            address=self.served.addresses[0],
            secret=self.customer if as_customer else self.service,
            path=path,
            request=base64.b64encode(request.SerializeToString()).decode(),
            seconds=seconds,
        )


def measure(home: Home, options: Options, *, rows: int) -> Outcome:
    """Every read of every pair. Raises Failed if a small ledger cannot be read."""
    outcome = Outcome(home.kind, "reads")
    outcome.facts = machine(home, options.runs)
    console = Console(stderr=True)
    for pair in pairs(rows, options.wallets):
        for shape in (pair.small, pair.large):
            rate = shape.make(home)
            if rate is not None:
                outcome.facts[f"seeded {shape.name}"] = f"{shape.rows:,} rows, {rate:,.0f} a second"
        with _both(home, pair) as sides, Progress(console=console) as progress:
            asked = [_reads(side, pair) for side in sides]
            task = progress.add_task(pair.says, total=len(asked[0]))
            for name in asked[0]:
                progress.update(task, description=f"{pair.says}: {name}")
                _compare(outcome, pair, name, sides, [one[name] for one in asked], options)
                progress.advance(task)
    return outcome


def _reads(side: Side, pair: Pair) -> dict[str, reads.Read]:
    return reads.reads(reads.Ledger(pair.customer, clock.now(), pair.deep), side.ask)


def _compare(
    outcome: Outcome,
    pair: Pair,
    name: str,
    sides: tuple[Side, Side],
    asked: list[reads.Read],
    options: Options,
) -> None:
    says = f"{name}, {pair.says}"
    small: list[Sample] = []
    large: list[Sample] = []
    ratio = None
    try:
        for _ in range(options.runs):
            small.append(sides[0].sample(asked[0], options.seconds * SHARE))
            large.append(sides[1].sample(asked[1], options.seconds * SHARE))
        times = [[one.p50_ms or 0.0 for one in samples] for samples in (small, large)]
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    except Failed as error:
        outcome.facts[f"refused: {says}"] = str(error)
    outcome.numbers[f"ratio {says}"] = ratio
    rows = pair.small.rows, pair.large.rows
    against = f"the time at {rows[0]:,}"
    if small:
        outcome.results.append(result(f"{says}: {rows[0]:,} rows", says, "calls", small))
    if large:
        more = result(
            f"{says}: {rows[1]:,} rows", says, "calls", large, against=against, ratio=ratio
        )
        outcome.results.append(more)


@contextmanager
def _both(home: Home, pair: Pair) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        worker = stack.enter_context(Worker("bench.load"))
        sides = []
        for shape in (pair.small, pair.large):
            url = home.url(shape.name)
            secrets = new_key(url, "service"), new_key(url, "customer", CUSTOMER)
            served = stack.enter_context(serving(url))
            sides.append(Side(served, worker, *secrets))
        yield sides[0], sides[1]
