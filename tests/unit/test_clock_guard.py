"""The guard of the ledger's clock as a pure value: clocks that move at random.

The model knows the true time and what was done to the clock; the guard sees readings only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from creditledger.domain.clock import DAY, HOUR, MINUTE, SECOND
from creditledger.domain.clock_guard import (
    LEAP_MS_MAX,
    STEADY_MS,
    TOLERANCE_MS,
    ClockGuard,
    Reading,
    State,
    begin,
)
from tests.support.setup import START

if TYPE_CHECKING:
    from creditledger.domain.clock_guard import Verdict

IDLE = 60 * DAY


def started(clock: int, **known: int | None) -> tuple[ClockGuard, Verdict]:
    """A guard at a start, after its first reading."""
    reading = Reading(clock, 0)
    given = {"last_seen": None, "doubted_at": None, "idle_ms_max": IDLE, **known}
    return begin(reading, **given).read(reading)  # type: ignore[arg-type] # none of them is None


def running() -> ClockGuard:
    """A guard that trusts a clock that shows START."""
    return started(START)[0]


# --- a server that runs ---------------------------------------------------------------------------


@given(passed=st.integers(0, 400 * DAY), drift=st.integers(-TOLERANCE_MS, TOLERANCE_MS))
def test_a_sleep_is_no_leap(passed: int, drift: int) -> None:
    """However long a machine sleeps: what the clock shows is what has passed, and is taken."""
    now = START + passed + drift

    _, verdict = running().read(Reading(now, passed))

    assert verdict == (State.TRUSTED, now, drift)


@pytest.mark.parametrize("leap", [TOLERANCE_MS + 1, LEAP_MS_MAX, -TOLERANCE_MS - 1, -LEAP_MS_MAX])
def test_a_short_leap_is_taken_once_it_is_steady(leap: int) -> None:
    """Until the new clock is steady, the time goes on from the last one by what has passed."""
    guard, verdict = running().read(Reading(START + SECOND + leap, SECOND))
    assert verdict == (State.LEAPT, START + SECOND, leap)

    almost = SECOND + STEADY_MS - 1
    guard, verdict = guard.read(Reading(START + almost + leap, almost))
    assert verdict == (State.LEAPT, START + almost, leap)
    guard, verdict = guard.read(Reading(START + almost + 1 + leap, almost + 1))
    assert verdict == (State.TRUSTED, START + almost + 1 + leap, leap)
    _, verdict = guard.read(Reading(START + HOUR + leap, HOUR))
    assert verdict == (State.TRUSTED, START + HOUR + leap, 0)


def test_a_clock_that_goes_on_leaping_is_not_steady() -> None:
    """Each leap begins the ten minutes anew; a clock that is right again ends them at once."""
    guard = running()
    for step in range(20):
        passed = step * MINUTE
        guard, verdict = guard.read(Reading(START + passed + HOUR + step * MINUTE, passed))
        assert verdict[:2] == (State.LEAPT, START + passed)

    _, verdict = guard.read(Reading(START + HOUR, HOUR))
    assert verdict == (State.TRUSTED, START + HOUR, 0)


@pytest.mark.parametrize("leap", [LEAP_MS_MAX + 1, 400 * DAY, -LEAP_MS_MAX - 1, -400 * DAY])
def test_a_long_leap_is_never_taken(leap: int) -> None:
    """A long leap stays refused until the clock is right again or somebody accepts it."""
    guard = running()
    for passed in (SECOND, HOUR, 10 * DAY):
        guard, verdict = guard.read(Reading(START + passed + leap, passed))
        assert verdict == (State.IMPLAUSIBLE, START + passed, leap)

    _, right = guard.read(Reading(START + 11 * DAY, 11 * DAY))
    assert right == (State.TRUSTED, START + 11 * DAY, 0)
    reading = Reading(START + 11 * DAY + leap, 11 * DAY)
    _, accepted = guard.accept(reading).read(reading)
    assert accepted == (State.TRUSTED, reading.clock, 0)


def test_a_clock_that_runs_too_fast_has_leapt() -> None:
    """A clock at twice its speed is not trusted, however often it is read."""
    guard = running()
    found = []
    for passed in range(0, MINUTE, 100):
        guard, verdict = guard.read(Reading(START + 2 * passed, passed))
        found.append(verdict.state)

    assert found[: TOLERANCE_MS // 100 + 1] == [State.TRUSTED] * (TOLERANCE_MS // 100 + 1)
    assert State.TRUSTED not in found[TOLERANCE_MS // 100 + 1 :]


def test_a_clock_that_drifts_is_followed() -> None:
    """A drift of 100 seconds a day is trusted: machines differ by less than that."""
    guard = running()
    for passed in range(0, 30 * DAY, MINUTE):
        guard, verdict = guard.read(Reading(START + passed + passed // 864, passed))
        assert verdict.state is State.TRUSTED


# --- a server that starts -------------------------------------------------------------------------


@pytest.mark.parametrize("idle", [0, DAY, IDLE])
def test_a_ledger_that_was_idle_goes_on(idle: int) -> None:
    """A start some weeks after the last time is trusted at once."""
    _, verdict = started(START + idle, last_seen=START)

    assert verdict[:2] == (State.TRUSTED, START + idle)


def test_a_start_beyond_what_a_ledger_is_idle() -> None:
    """The clock is refused until it is right; the ledger's time goes on from its last one."""
    guard, verdict = started(START + IDLE + 1, last_seen=START)
    assert verdict == (State.IMPLAUSIBLE, START, IDLE + 1)

    guard, verdict = guard.read(Reading(START + IDLE + 2 + DAY, DAY))
    assert verdict == (State.IMPLAUSIBLE, START + DAY, IDLE + 2)
    _, right = guard.read(Reading(START + 3 * DAY, DAY + 1))
    assert right[:2] == (State.TRUSTED, START + 3 * DAY)


def test_a_start_behind_the_last_time() -> None:
    """A machine without a clock of its own begins in 1970: it may come right at any moment."""
    guard, verdict = started(0, last_seen=START)
    assert verdict == (State.LEAPT, START, -START)

    guard, verdict = guard.read(Reading(MINUTE, MINUTE))
    assert verdict[:2] == (State.LEAPT, START + MINUTE)
    _, right = guard.read(Reading(START + DAY, 2 * MINUTE))
    assert right[:2] == (State.TRUSTED, START + DAY)
    _, taken = guard.read(Reading(STEADY_MS, STEADY_MS))
    assert taken[:2] == (State.TRUSTED, STEADY_MS)


@pytest.mark.parametrize(("leap", "state"), [(HOUR, State.LEAPT), (40 * DAY, State.IMPLAUSIBLE)])
def test_a_start_does_not_hide_a_leap(leap: int, state: State) -> None:
    """A clock that the last server doubted is doubted again where it goes on from there."""
    known = {"last_seen": START, "doubted_at": START + leap}
    guard, verdict = started(START + leap + HOUR, **known)

    assert verdict == (state, START + HOUR, leap)
    _, right = guard.read(Reading(START + HOUR + SECOND, SECOND))
    assert right[:2] == (State.TRUSTED, START + HOUR + SECOND)
    _, put_right_before = started(START + 30 * MINUTE, **known)
    assert put_right_before[:2] == (State.TRUSTED, START + 30 * MINUTE)


@pytest.mark.parametrize("off", [-TOLERANCE_MS, 0, SECOND, TOLERANCE_MS])
def test_a_doubted_clock_that_is_put_right_is_trusted(off: int) -> None:
    """A clock within the tolerance is right, though the one that was doubted is near as well."""
    leap = TOLERANCE_MS + 1
    guard, verdict = started(START + leap, last_seen=START, doubted_at=START + leap)
    assert verdict == (State.LEAPT, START, leap)

    _, right = guard.read(Reading(START + MINUTE + off, MINUTE))
    assert right == (State.TRUSTED, START + MINUTE + off, off)


# --- clocks that move at random -------------------------------------------------------------------


class MovingClock(RuleBasedStateMachine):
    """A ledger whose clock somebody moves, and whose server sleeps, stops and starts."""

    @initialize(idle=st.integers(0, IDLE))
    def start(self, idle: int) -> None:
        self.true = START + idle  #: What a right clock shows.
        self.elapsed = 0
        self.off = 0  #: How far the clock is off.
        self.trusted_off = 0  #: How far off the ledger has taken it to be.
        self.guard = begin(self.reading, last_seen=START, idle_ms_max=IDLE)
        self.read()

    @property
    def reading(self) -> Reading:
        return Reading(self.true + self.off, self.elapsed)

    def read(self) -> None:
        self.guard, self.verdict = self.guard.read(self.reading)
        if self.verdict.state is State.TRUSTED:
            self.trusted_off = self.off

    @rule(passed=st.one_of(st.integers(0, 2 * MINUTE), st.integers(0, 30 * DAY)))
    def pass_time(self, passed: int) -> None:
        """Or sleep."""
        self.true += passed
        self.elapsed += passed
        self.read()

    @rule(
        by=st.one_of(
            st.integers(-2 * TOLERANCE_MS, 2 * TOLERANCE_MS),
            st.integers(-2 * LEAP_MS_MAX, 2 * LEAP_MS_MAX),
            st.integers(-400 * DAY, 400 * DAY),
        )
    )
    def move(self, by: int) -> None:
        """Somebody sets the clock."""
        was = self.verdict.state
        self.off += by
        self.read()
        # Within the tolerance of what was trusted, the clock may have been off before.
        if was is State.TRUSTED and abs(by) > LEAP_MS_MAX + TOLERANCE_MS:
            assert self.verdict.state is State.IMPLAUSIBLE
        elif was is State.TRUSTED and abs(by) > 2 * TOLERANCE_MS:
            assert self.verdict.state is not State.TRUSTED

    @rule()
    def put_right(self) -> None:
        self.off = self.trusted_off
        self.read()
        assert self.verdict.state is State.TRUSTED

    @rule()
    def accept(self) -> None:
        self.guard = self.guard.accept(self.reading)
        self.read()
        assert self.verdict.state is State.TRUSTED
        assert self.trusted_off == self.off

    @rule(down=st.integers(0, IDLE - TOLERANCE_MS))
    def restart(self, down: int) -> None:
        """The server writes down what it believes, is gone for a while, and another one starts."""
        seen = self.verdict
        doubted = None if seen.state is State.TRUSTED else self.reading.clock
        self.true += down
        self.elapsed = 0  # another machine's
        self.guard = begin(self.reading, last_seen=seen.now, doubted_at=doubted, idle_ms_max=IDLE)
        self.read()
        if seen.state is State.IMPLAUSIBLE and seen.leap > 0:
            assert self.verdict.state is State.IMPLAUSIBLE

    @invariant()
    def the_time_is_near_what_was_believed(self) -> None:
        """The ledger's time follows a clock only within the tolerance, or as it is trusted."""
        clock, leap = self.reading.clock, self.verdict.leap
        expected = clock if self.verdict.state is State.TRUSTED else clock - leap
        assert self.verdict.now == expected
        if self.verdict.state is State.LEAPT:
            assert abs(leap) <= LEAP_MS_MAX or self.guard.idle_ms_max is not None
        if self.verdict.state is State.IMPLAUSIBLE:
            assert abs(leap) > LEAP_MS_MAX


MovingClock.TestCase.settings = settings(stateful_step_count=40)
TestMovingClocks = MovingClock.TestCase
