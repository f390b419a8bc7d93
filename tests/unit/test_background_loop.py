"""The loop of background tasks, on an event loop whose time passes at once."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

from creditledger.domain.errors import Unavailable
from creditledger.engine.background_loop import BackgroundLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class QuickLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._ready_files = ReadyFiles()
        super().__init__(self._ready_files)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._ready_files.waited


class ReadyFiles(selectors.SelectSelector):
    """Adds up how long it was asked to wait, and waits for nothing."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """The files that are ready already."""
        self.waited += timeout or 0
        return super().select(0)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run it to its end in quick time."""
    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        runner.run(main())  # type: ignore[arg-type] # a coroutine


def steps(
    *outcomes: float | Exception | None,
) -> tuple[list[float], Callable[[], Awaitable[float | None]]]:
    """A step with these outcomes, the last one again and again; and the times of its calls."""
    times: list[float] = []

    async def step() -> float | None:
        outcome = outcomes[min(len(times), len(outcomes) - 1)]
        times.append(round(asyncio.get_running_loop().time(), 3))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return times, step


def test_failures_double_the_pause_to_a_bound_until_a_step_succeeds() -> None:
    """1 s of interval: pauses of 2, 4, 5 and 5 s after failures, then the interval again."""
    fault = Unavailable("away")
    times, step = steps(fault, fault, ValueError("a bug"), fault, None, None, fault, None)

    async def main() -> None:
        loop = BackgroundLoop("test", step, interval_seconds=1, failure="failed")
        loop.start()
        await asyncio.sleep(22.5)
        await loop.stop()

    run(main)
    assert times == [1, 3, 7, 12, 17, 18, 19, 21, 22]


def test_a_long_interval_is_the_longest_pause() -> None:
    """A task of a minute is not tried every 5 s while it fails."""
    times, step = steps(Unavailable("away"))

    async def main() -> None:
        loop = BackgroundLoop("test", step, interval_seconds=60, failure="failed")
        loop.start()
        await asyncio.sleep(200)
        await loop.stop()

    run(main)
    assert times == [60, 120, 180]


def test_a_wake_ends_a_pause_but_none_after_a_failure() -> None:
    """Wakes that come together share a step; a step says how long its pause is."""
    times, step = steps(None, 0.0, 30.0, Unavailable("away"), None)

    async def main() -> None:
        loop = BackgroundLoop(
            "test", step, interval_seconds=10, failure="failed", gather_seconds=0.5
        )
        loop.start()
        for pause in (3, 0.2):  # both before 3.5, so in one step
            await asyncio.sleep(pause)
            loop.wake()
        await asyncio.sleep(5 - 3.2)
        loop.wake()  # at 5: a step without a pause after it, then one with a pause of 30 s
        await asyncio.sleep(36 - 5)
        loop.wake()  # at 36: the step of 35.5 has failed; the wake is gathered at 45.5
        await asyncio.sleep(50 - 36)
        await loop.stop()

    run(main)
    assert times == [3.5, 5.5, 5.5, 35.5, 46]
