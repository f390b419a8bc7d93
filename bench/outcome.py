"""What was measured, as values that are kept as JSON; run.py makes them, report.py prints them."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One scenario, once. CPU is in microseconds for each unit (posting, call, row)."""

    rate: float  #: Units a second.
    p50_ms: float | None = None
    p99_ms: float | None = None
    server_us: float | None = None  #: CPU of the process that is the ledger.
    database_us: float | None = None  #: CPU of PostgreSQL's processes.
    client_us: float | None = None  #: CPU of whoever drives or, for baselines, does it all.


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario: the medians of its samples."""

    name: str
    says: str
    unit: str
    median: Sample
    lowest: float  #: Rates, to see how far the runs lie apart.
    highest: float
    runs: int
    against: str | None = None
    ratio: float | None = None  #: Its rate divided by that of `against`: median over the runs.


@dataclass(slots=True)
class Outcome:
    """One run over one database."""

    database: str
    part: str  #: load, reads or growth: each has a file of its own.
    facts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float | None] = field(
        default_factory=dict
    )  #: What figures are made of; None: it was refused.
    results: list[Result] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.database}-{self.part}"

    def find(self, name: str) -> Sample | None:
        """The medians of a scenario; None if it was not measured."""
        found = [result.median for result in self.results if result.name == name]
        return found[0] if found else None

    def save(self, folder: Path) -> None:
        """As JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        (folder / f"{self.name}.json").write_text(text + "\n")


def load(path: Path) -> Outcome:
    """What `save` wrote."""
    values = json.loads(path.read_text())
    results = [
        Result(**{**one, "median": Sample(**one["median"])}) for one in values.pop("results")
    ]
    return Outcome(**values, results=results)


def median(samples: Sequence[Sample]) -> Sample:
    """Field by field."""

    def middle(name: str) -> float | None:
        found = [getattr(one, name) for one in samples if getattr(one, name) is not None]
        return statistics.median(found) if found else None

    rate = middle("rate")
    assert rate is not None
    return Sample(rate, *(middle(name) for name in Sample.__slots__[1:]))


def result(
    name: str,
    says: str,
    unit: str,
    samples: Sequence[Sample],
    *,
    against: str | None = None,
    ratio: float | None = None,
) -> Result:
    """What the samples come to."""
    rates = [one.rate for one in samples]
    middle = median(samples)
    return Result(name, says, unit, middle, min(rates), max(rates), len(rates), against, ratio)


def ratio(samples: Iterable[Sample], against: Iterable[Sample]) -> float:
    """Run by run, for the machine may be faster in one run than in another; the median."""
    pairs = zip(samples, against, strict=True)
    return statistics.median(one.rate / other.rate for one, other in pairs)
