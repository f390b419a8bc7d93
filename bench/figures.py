"""The figures the ledger is held to, each computed from what a run measured."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.outcome import Outcome

HOT_TO_CROWD = 0.95
ORDINARY_CROWD, ORDINARY_HOT = 5.0, 15.0
LIMIT = 0.5
SQLITE_CROWD, SQLITE_HOT = 12_000.0, 25_000.0
ENVOY_MS = 0.6
READS = 1.5
GROWTH = 0.9
MEMORY_MB = 250.0
VERIFY_ROWS = 400_000.0
IMPORT = 0.8
BYTES_A_ROW = {"sqlite": 350.0, "postgres": 600.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """One of them, on one database."""

    says: str
    wanted: str
    measured: str
    reached: bool


def figures(outcomes: Sequence[Outcome]) -> list[Figure]:
    """All that these outcomes say something about."""
    found = []
    for one in outcomes:
        parts = {"load": _of_load, "reads": _of_reads, "growth": _of_growth}
        where = one.database
        found += [
            Figure(f"{figure.says} ({where})", figure.wanted, figure.measured, figure.reached)
            for figure in (*parts[one.part](one), *_of_numbers(one))
        ]
    return found


def _at_least(says: str, value: float | None, least: float, unit: str = "") -> Iterator[Figure]:
    if value is not None:
        yield Figure(says, f"≥ {_text(least)}{unit}", f"{_text(value)}{unit}", value >= least)


def _at_most(says: str, value: float | None, most: float, unit: str = "") -> Iterator[Figure]:
    if value is not None:
        yield Figure(says, f"≤ {_text(most)}{unit}", f"{_text(value)}{unit}", value <= most)


def _text(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _of_load(one: Outcome) -> Iterator[Figure]:
    def rate(name: str) -> float | None:
        found = one.find(name)
        return None if found is None else found.rate

    def p50(name: str) -> float | None:
        found = one.find(name)
        return None if found is None else found.p50_ms

    def divided(name: str, by: str) -> float | None:
        above, below = rate(name), rate(by)
        return None if above is None or below is None else above / below

    for kind in ("unary-256", "batch-500"):
        yield from _at_least(
            f"one hot wallet / ten thousand, {kind}",
            divided(f"{kind}-hot", f"{kind}-random"),
            HOT_TO_CROWD,
        )
    if one.database == "postgres":
        yield from _at_least(
            "unary, 256 in flight / ordinary way, ten thousand wallets",
            divided("unary-256-random", "ordinary-random"),
            ORDINARY_CROWD,
        )
        yield from _at_least(
            "unary, 256 in flight / ordinary way, one hot wallet",
            divided("unary-256-hot", "ordinary-hot"),
            ORDINARY_HOT,
        )
        for place in ("random", "hot"):
            yield from _at_least(
                f"batches of 500 / limit, {place}",
                divided(f"batch-500-{place}", f"limit-{place}"),
                LIMIT,
            )
    else:
        for kind in ("batch-500", "inprocess"):
            for place, least in (("random", SQLITE_CROWD), ("hot", SQLITE_HOT)):
                yield from _at_least(f"{kind}-{place}", rate(f"{kind}-{place}"), least, "/s")
    yield from _idle(p50("unary-1-hot"), p50("empty-1"), p50("fsync"))
    direct, through = p50("unary-1-hot"), p50("rest-1-hot")
    if direct is not None and through is not None:
        yield from _at_most("added by Envoy at p50", through - direct, ENVOY_MS, " ms")
    yield from _at_least("import / batches of 500", divided("import-hot", "batch-500-hot"), IMPORT)


def _idle(single: float | None, empty: float | None, fsync: float | None) -> Iterator[Figure]:
    if single is not None and empty is not None and fsync is not None:
        most = 2 * empty + fsync
        yield from _at_most(
            "a single posting / two empty RPCs and an fsync, p50", single, most, " ms"
        )


def _of_reads(one: Outcome) -> Iterator[Figure]:
    """Each read at ten million rows, as a multiple of the same at ten thousand."""
    for name, value in one.numbers.items():
        if name.startswith("ratio "):
            says = f"time at ten million rows / ten thousand, {name.removeprefix('ratio ')}"
            if value is None:
                yield Figure(says, f"≤ {READS:.2f}", "refused", reached=False)
            yield from _at_most(says, value, READS)


def _of_growth(one: Outcome) -> Iterator[Figure]:
    for name, value in one.numbers.items():
        if name.startswith("ratio "):
            says = f"posting rate at ten million rows / ten thousand, {name.removeprefix('ratio ')}"
            yield from _at_least(says, value, GROWTH)


def _of_numbers(one: Outcome) -> Iterator[Figure]:
    yield from _at_most("server memory, peak", one.numbers.get("memory_mb"), MEMORY_MB, " MB")
    yield from _at_least("verify", one.numbers.get("verify_rows"), VERIFY_ROWS, " rows/s")
    bytes_a_row = one.numbers.get("bytes_a_row")
    yield from _at_most("bytes a row", bytes_a_row, BYTES_A_ROW[one.database])
