"""`make bench ARGS="--only growth"`: posting to a small ledger and to a large one.

Both have ten thousand wallets with three open grants each; they are posted to in turn. Of the large
one, memory, bytes a row and the speed of `verify` are measured as well.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.checks import (
    last_posting,
    receipts,
    require_all_there,
    require_verified,
    row_count,
)
from bench.databases import Home, machine
from bench.options import Options
from bench.outcome import Outcome, Sample, ratio, result
from bench.seeded import many_large, many_small
from bench.served import new_key, serving
from bench.traffic import Wallets
from bench.worker import Worker
from creditledger.domain import clock

#: What is posted: how many in flight, and how many postings each brings.
POSTING = {"unary-256": ("unary", 256, 1), "batch-500": ("batch", 4, 500)}


def measure(home: Home, folder: Path, options: Options, *, rows: int) -> Outcome:
    """All of it. Raises Failed."""
    outcome = Outcome(home.kind, "growth")
    outcome.facts = machine(home, options.runs)
    wallets = options.wallets
    shapes = [many_small(wallets), many_large(rows, wallets)]
    samples: dict[tuple[str, str], list[Sample]] = {}
    with ExitStack() as stack:
        worker = stack.enter_context(Worker("bench.load"))
        sides = []
        for shape in shapes:
            shape.make(home)
            url = home.url(shape.name)
            secret, last = new_key(url, "service"), home.run(shape.name, last_posting)
            sides.append((shape, stack.enter_context(serving(url)), secret, last))
        for _ in range(options.runs):
            for name, (kind, in_flight, batch) in POSTING.items():
                for shape, served, secret, _ in sides:
                    answer = worker.ask(
                        "drive",
                        kind=kind,
                        addresses=served.addresses,
                        secret=secret,
                        wallets=asdict(Wallets(count=wallets)),
                        in_flight=in_flight,
                        batch=batch,
                        seconds=options.seconds,
                        seed=clock.now(),
                        receipts=str(folder / f"receipts-{shape.name}"),
                    )
                    one = Sample(answer["rate"], answer["p50_ms"], answer["p99_ms"])
                    samples.setdefault((name, shape.name), []).append(one)
        memory = sides[1][1].memory_peak() / 2**20
    for name in POSTING:
        for shape in shapes:
            some = samples[name, shape.name]
            begun = samples[name, shapes[0].name]
            says = f"{name}, {wallets:,} wallets, a ledger of {shape.rows:,} rows"
            outcome.results.append(
                result(f"{name}: {shape.rows:,} rows", says, "postings", some)
                if shape is shapes[0]
                else result(
                    f"{name}: {shape.rows:,} rows",
                    says,
                    "postings",
                    some,
                    against=f"the rate at {shapes[0].rows:,}",
                    ratio=ratio(some, begun),
                )
            )
        outcome.numbers[f"ratio {name}"] = ratio(some, begun)
    for shape, _, _, last in sides:
        _check(home, shape.name, receipts(folder / f"receipts-{shape.name}"), last)
    large = shapes[1].name
    count = home.run(large, row_count)
    verified = count / require_verified(home.url(large))
    size = home.size(large) / count
    outcome.numbers |= {"memory_mb": memory, "verify_rows": verified, "bytes_a_row": size}
    outcome.facts |= {
        "large ledger afterwards": f"{count:,} rows, {size:.0f} bytes a row, indexes included",
        "verify": f"finds nothing; {verified:,.0f} rows/s",
        "server memory, peak": f"{memory:.0f} MB",
    }
    return outcome


def _check(home: Home, name: str, acknowledged: set[bytes], last: int) -> None:
    home.run(name, lambda c: require_all_there(c, acknowledged, imported=0, after=last))
