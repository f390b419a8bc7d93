"""The clock guard decides whether to trust a reading of the ledger's clock, and what the time is.

Pure: readings in, verdicts out. A reading pairs the ledger's clock with a second clock, which
cannot be set and counts while the machine sleeps. So the guard sees no leap after sleep or idle
time, and sees a leap when the ledger's clock is set. For the consequences of a verdict see
store/ledger_clock.py and docs/ledger.md, "The clock".
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from creditledger.domain import clock

#: A difference up to this is no leap. It allows for a leap second, a failover to a server whose
#: clock differs a little, and a delay between the two readings in a busy process.
TOLERANCE_MS = 10 * clock.SECOND
#: A longer leap is implausible: operators notice a correction of more than that.
LEAP_MS_MAX = 24 * clock.HOUR
#: The guard accepts a clock that leapt after it has been steady for this long.
STEADY_MS = 10 * clock.MINUTE


class Reading(NamedTuple):
    """The ledger's clock at one moment; both in milliseconds."""

    clock: int  #: Since 1970.
    elapsed: int  #: Since any moment, by a clock that cannot be set.


class State(Enum):
    """The guard's judgement of the clock."""

    TRUSTED = "trusted"
    LEAPT = "leapt"  #: The ledger's time goes on without the clock until the clock is steady.
    IMPLAUSIBLE = "implausible"  #: Commands are refused.


class Verdict(NamedTuple):
    """The judgement of one reading. All times in milliseconds."""

    state: State
    now: int  #: The ledger's time: the clock if it is trusted, else the expected time.
    leap: int  #: The clock's lead over the expected time; negative: it is behind.

    @property
    def shown(self) -> int:
        """The time that the clock shows."""
        return self.now if self.state is State.TRUSTED else self.now + self.leap


@dataclass(frozen=True, slots=True)
class ClockGuard:
    """What the guard knows of the clock. `begin` makes the first; `read` answers the next."""

    anchor: Reading  #: The guard expects the clock to go on from here.
    #: Until a clock is trusted, the anchor is the ledger's last written time, and the clock may be
    #: this far ahead of it. None once a clock is trusted.
    idle_ms_max: int | None = None
    #: While `idle_ms_max` is set: a clock that an earlier server doubted, and that goes on.
    doubted: Reading | None = None
    candidate: Reading | None = None  #: The first reading since which a clock that leapt is steady.

    def read(self, reading: Reading) -> tuple["ClockGuard", Verdict]:
        """The guard after this reading, and what the reading means."""
        leap = _ahead(reading, self.anchor)
        if self._is_expected(reading, leap):
            return self._trusting(reading), Verdict(State.TRUSTED, reading.clock, leap)
        now = reading.clock - leap
        if not self._is_correctable(leap):
            return replace(self, candidate=None), Verdict(State.IMPLAUSIBLE, now, leap)
        since = self.candidate
        if since is None or abs(_ahead(reading, since)) > TOLERANCE_MS:
            return replace(self, candidate=reading), Verdict(State.LEAPT, now, leap)
        if reading.elapsed - since.elapsed >= STEADY_MS:
            return self.accept(reading), Verdict(State.TRUSTED, reading.clock, leap)
        return self, Verdict(State.LEAPT, now, leap)

    def accept(self, reading: Reading) -> "ClockGuard":
        """The guard after an operator has confirmed this reading."""
        return ClockGuard(reading)

    def _is_expected(self, reading: Reading, leap: int) -> bool:
        doubted = self.doubted
        # A doubted clock that goes on measures the time that has passed, like any running clock.
        goes_on = doubted is not None and _ahead(reading, doubted) >= -TOLERANCE_MS
        if self.idle_ms_max is None or goes_on:
            return abs(leap) <= TOLERANCE_MS
        return -TOLERANCE_MS <= leap <= self.idle_ms_max

    def _is_correctable(self, leap: int) -> bool:
        # At a start, the last written time may be wrong, and the clock behind it right.
        return abs(leap) <= LEAP_MS_MAX or (self.idle_ms_max is not None and leap < 0)

    def _trusting(self, reading: Reading) -> "ClockGuard":
        # The anchor moves seldom, so that the drift of a fast clock adds up to a leap.
        if self.idle_ms_max is not None or not 0 <= self._passed(reading) < STEADY_MS:
            return ClockGuard(reading)
        return self if self.candidate is None else ClockGuard(self.anchor)

    def _passed(self, reading: Reading) -> int:
        return reading.elapsed - self.anchor.elapsed


def begin(
    reading: Reading,
    *,
    last_seen: int | None,
    doubted_at: int | None = None,
    idle_ms_max: int,
) -> ClockGuard:
    """The guard of a server that starts. `reading` is the server's first, not yet judged.

    `last_seen`: the ledger's time when a server last wrote it down; None of a new ledger.
    `doubted_at`: the clock's time at that moment, if that server did not trust it.
    """
    if last_seen is None:
        return ClockGuard(reading)
    # A clock that was doubted for being behind is judged like any other clock at a start.
    if doubted_at is None or not last_seen < doubted_at <= reading.clock + TOLERANCE_MS:
        return ClockGuard(Reading(last_seen, reading.elapsed), idle_ms_max)
    # The doubted clock has gone on, so it says how much time has passed since.
    anchor = Reading(last_seen + reading.clock - doubted_at, reading.elapsed)
    return ClockGuard(anchor, idle_ms_max, doubted=reading)


def _ahead(reading: Reading, of: Reading) -> int:
    """The clock's lead, in milliseconds, over a clock that went on from `of`."""
    return reading.clock - of.clock - (reading.elapsed - of.elapsed)
