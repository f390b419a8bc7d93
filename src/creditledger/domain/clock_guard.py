"""The guard of the ledger's clock: whether a reading of it can be believed, and what the time is.

Pure: readings in, verdicts out. A reading pairs the ledger's clock with the time that passed by a
clock that nobody sets and that counts on while the machine sleeps. So a machine that slept and a
ledger that was idle see no leap, and a clock that was set does. What follows from a verdict is in
store/ledger_clock.py and in docs/ledger.md, "The clock".
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from creditledger.domain import clock

#: What is no leap: a leap second, a failover to a server whose clock differs a little, a reading
#: that lay in a busy process for a while.
TOLERANCE_MS = 10 * clock.SECOND
#: A longer leap is implausible: nobody's clock is corrected by more than that unnoticed.
LEAP_MS_MAX = 24 * clock.HOUR
#: A clock that leapt is taken after it has been steady for so long.
STEADY_MS = 10 * clock.MINUTE


class Reading(NamedTuple):
    """The ledger's clock at one moment; both in milliseconds."""

    clock: int  #: Since 1970.
    elapsed: int  #: Since any moment, by a clock that nobody sets.


class State(Enum):
    """What the guard makes of the clock."""

    TRUSTED = "trusted"
    LEAPT = "leapt"  #: The ledger's time goes on without it until it is steady.
    IMPLAUSIBLE = "implausible"  #: Commands are refused.


class Verdict(NamedTuple):
    """What a reading means."""

    state: State
    now: int  #: The ledger's time: the clock where it is trusted, else what it should show.
    leap: int  #: How far the clock is ahead of what it should show; negative is behind.

    @property
    def shown(self) -> int:
        """What the clock shows."""
        return self.now if self.state is State.TRUSTED else self.now + self.leap


@dataclass(frozen=True, slots=True)
class ClockGuard:
    """What is known of the clock so far. Made by `begin`; `read` answers the next one."""

    anchor: Reading  #: The clock is expected to go on from here.
    #: How far ahead of the anchor the clock may be, which is then the last time that the ledger was
    #: seen; None once a clock is trusted.
    idle_ms_max: int | None = None
    #: While `idle_ms_max` is set: a clock that an earlier server doubted, and that goes on.
    doubted: Reading | None = None
    candidate: Reading | None = None  #: Since when a clock that leapt has been steady.

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
        """The guard after somebody has said that this reading is right."""
        return ClockGuard(reading)

    def _is_expected(self, reading: Reading, leap: int) -> bool:
        doubted = self.doubted
        # A clock that was doubted tells how much time has passed, as one that runs does.
        goes_on = doubted is not None and _ahead(reading, doubted) >= -TOLERANCE_MS
        if self.idle_ms_max is None or goes_on:
            return abs(leap) <= TOLERANCE_MS
        return -TOLERANCE_MS <= leap <= self.idle_ms_max

    def _is_correctable(self, leap: int) -> bool:
        # At a start, a clock behind the last time may be the one that is right.
        return abs(leap) <= LEAP_MS_MAX or (self.idle_ms_max is not None and leap < 0)

    def _trusting(self, reading: Reading) -> "ClockGuard":
        # The anchor moves seldom, so that a clock that runs too fast is noticed as a leap.
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
    """The guard of a server that starts, before its first reading, which this is, is judged.

    `last_seen`: the ledger's time when a server last wrote it down; None of a new ledger.
    `doubted_at`: what the clock showed at that moment, where that server did not believe it.
    """
    if last_seen is None:
        return ClockGuard(reading)
    # One that was doubted because it was behind is judged like any other clock at a start.
    if doubted_at is None or not last_seen < doubted_at <= reading.clock + TOLERANCE_MS:
        return ClockGuard(Reading(last_seen, reading.elapsed), idle_ms_max)
    # The doubted clock has gone on, so it says how much time has passed since.
    anchor = Reading(last_seen + reading.clock - doubted_at, reading.elapsed)
    return ClockGuard(anchor, idle_ms_max, doubted=reading)


def _ahead(reading: Reading, of: Reading) -> int:
    """How far the clock is ahead of where it would be had it gone on from `of`."""
    return reading.clock - of.clock - (reading.elapsed - of.elapsed)
