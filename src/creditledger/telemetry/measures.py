"""What one process counts and times, as metrics of Prometheus.

Each server has its own registry, and a sum over servers is the sum of what they did. No metric has
a label by wallet, customer or key: their number has no bound. No amount of money is counted here.
"""

from collections import Counter as Counts
from collections.abc import Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram

from creditledger.domain.errors import KINDS

# Without it every counter has a second series, with the time at which it began.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call] # of the library

#: Bounds of the time that a call takes, and of one COMMIT with all before it, in seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Bounds of the number of commands in a batch.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

#: What became of a posting: operation, outcome, and the reason if it was refused.
Fate = tuple[str, str, str]


class Measures:
    """The counters and histograms of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._postings = Counter(
            "creditledger_postings",
            "Postings that were asked for, by what became of them: posted, replayed, validated,"
            " refused or failed.",
            ("operation", "outcome"),
            registry=registry,
        )
        self._refused_postings = Counter(
            "creditledger_refused_postings",
            "Postings that were refused or failed, by reason; those of a batch one by one.",
            ("operation", "reason"),
            registry=registry,
        )
        self._refused_calls = Counter(
            "creditledger_refused_calls",
            "Calls that were refused, by reason.",
            ("reason",),
            registry=registry,
        )
        # A series that begins at 1 has not increased for Prometheus, so each begins at 0.
        for reason in KINDS:
            self._refused_calls.labels(reason)
        self._calls = Histogram(
            "creditledger_rpc_seconds",
            "How long calls took in this server, by method and gRPC code.",
            ("method", "code"),
            buckets=SECONDS,
            registry=registry,
        )
        self._commits = Histogram(
            "creditledger_commit_seconds",
            "How long the transactions of batches took, from BEGIN to the end of COMMIT.",
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "creditledger_batch_commands",
            "How many commands the transactions of batches had.",
            buckets=SIZES,
            registry=registry,
        )
        #: Looked up here: the library's own lookup costs as much as an observation.
        self._by_call: dict[tuple[str, str], Histogram] = {}

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call has ended."""
        timed = self._by_call.get((method, code))
        if timed is None:
            timed = self._by_call[method, code] = self._calls.labels(method, code)
        timed.observe(seconds)

    def refused(self, reason: str) -> None:
        """A call was refused."""
        self._refused_calls.labels(reason).inc()

    def refusals(self) -> dict[str, tuple[int, int]]:
        """How often calls and postings were refused since the start, by reason; none at 0."""
        calls, postings = Counts[str](), Counts[str]()
        for counter, counts in ((self._refused_calls, calls), (self._refused_postings, postings)):
            for metric in counter.collect():
                for sample in metric.samples:
                    counts[sample.labels["reason"]] += int(sample.value)
        reasons = sorted({*(+calls), *(+postings)})
        return {reason: (calls[reason], postings[reason]) for reason in reasons}

    def committed(self, commands: int, seconds: float) -> None:
        """A batch was committed."""
        self._commits.observe(seconds)
        self._batches.observe(commands)

    def posted(self, fates: Iterable[Fate]) -> None:
        """What became of the postings of a batch."""
        for (operation, outcome, reason), count in Counts(fates).items():
            self._postings.labels(operation, outcome).inc(count)
            if reason:
                self._refused_postings.labels(operation, reason).inc(count)
