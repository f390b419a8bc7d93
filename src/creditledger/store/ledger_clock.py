"""The ledger's clock as this process reads it: every reading goes through the guard.

The clock is this machine's on SQLite and the database's on PostgreSQL. There the process reads it
with each batch, and now and then without one; in between it counts on from the last reading by a
clock that nobody sets. What a verdict means for a command is decided here.
"""

import threading
from collections.abc import Callable

from creditledger.domain import clock
from creditledger.domain.clock_guard import ClockGuard, Reading, State, Verdict, begin
from creditledger.domain.errors import ClockImplausible


class LedgerClock:
    """One per process. The writer's thread and the event loop use it at the same time."""

    def __init__(self, source: Callable[[], int] | None, elapsed: Callable[[], int] | None) -> None:
        """`source`: the clock, where this process reads it itself; None: the database is asked.

        `elapsed`: milliseconds by a clock that nobody sets and that counts on during sleep. None:
        `source` is such a clock.
        """
        assert source or elapsed
        self._source = source
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._guard: ClockGuard | None = None
        self._last = Reading(0, 0)
        self._verdict = Verdict(State.TRUSTED, 0, 0)  #: Of the last reading.

    def begin(
        self, shown: int, *, last_seen: int | None, doubted_at: int | None, idle_ms_max: int
    ) -> Verdict:
        """Guard from now on; `shown` is the first reading. See `clock_guard.begin`."""
        reading = self._reading(shown)
        with self._lock:
            self._guard = begin(
                reading, last_seen=last_seen, doubted_at=doubted_at, idle_ms_max=idle_ms_max
            )
            return self._judged(reading)

    def read(self, shown: int | None = None) -> Verdict:
        """What the clock means, which is read here; `shown` is what the database's shows now.

        Where only the database could be asked and was not, the last verdict, counted on.
        """
        if shown is None:
            if self._source is None:
                return self._counted_on()
            shown = self._source()
        reading = self._reading(shown)
        with self._lock:
            return self._judged(reading)

    def accept(self, shown: int) -> Verdict:
        """Somebody has said that the clock is right as it shows this."""
        reading = self._reading(shown)
        with self._lock:
            if self._guard is not None:
                self._guard = self._guard.accept(reading)
            return self._judged(reading)

    def now(self) -> int:
        """The ledger's time."""
        return self.read().now

    def shown(self) -> int | None:
        """What the clock shows; None where the database has to be asked."""
        return None if self._source is None else self._source()

    @property
    def is_trusted(self) -> bool:
        """Whether the last reading was believed."""
        return self._verdict.state is State.TRUSTED

    def _counted_on(self) -> Verdict:
        assert self._elapsed is not None
        with self._lock:
            passed = self._elapsed() - self._last.elapsed
            return self._verdict._replace(now=self._verdict.now + passed)

    def _reading(self, shown: int) -> Reading:
        if self._source is not None and self._elapsed is None:
            return Reading(shown, shown)
        assert self._elapsed is not None
        return Reading(shown, self._elapsed())

    def _judged(self, reading: Reading) -> Verdict:
        if self._guard is None:
            verdict = Verdict(State.TRUSTED, reading.clock, 0)
        else:
            self._guard, verdict = self._guard.read(reading)
        self._verdict, self._last = verdict, reading
        return verdict


def refusal(verdict: Verdict) -> ClockImplausible | None:
    """Why no command may be carried out now, if none may."""
    if verdict.state is not State.IMPLAUSIBLE:
        return None
    shown, expected = clock.shown(verdict.shown), clock.shown(verdict.now)
    return ClockImplausible(
        f"the ledger's clock shows {shown} where {expected} is expected: nothing is written until"
        " it is right, or an operator accepts it by `creditledger clock accept`",
        clock=shown,
        expected=expected,
    )
