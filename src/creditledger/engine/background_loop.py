"""The loop that runs every background task of a server."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from creditledger.domain.errors import OutcomeUnknown, Unavailable

log = structlog.get_logger()

#: The longest pause while steps fail, unless the interval is longer.
FAILED_SECONDS_MAX = 5.0


class BackgroundLoop:
    """A task that does a step again and again, with a pause between.

    A step answers the length of the pause in seconds; 0: no pause, None: the interval. `wake` ends
    the pause. A step that raises is logged and doubles the pause until a step succeeds. `wake` does
    not end the pause after a failure.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float | None]],
        *,
        interval_seconds: float,
        failure: str,
        gather_seconds: float = 0.0,
    ) -> None:
        """`failure`: the log's word for a step that raises.

        `gather_seconds`: wakes within this time after the first wake share its step.
        """
        self._name = name
        self._step = step
        self._interval = interval_seconds
        self._failure = failure
        self._gather_seconds = gather_seconds
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with a pause of the interval unless the loop is woken."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Do the next step now."""
        self._woken.set()

    async def stop(self) -> None:
        """End, even in the middle of a step or a pause. Does nothing if the loop never began."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause: float | None = None
        back_off = self._interval
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval if pause is None else pause):
                    await self._woken.wait()
                await asyncio.sleep(self._gather_seconds)
            self._woken.clear()
            try:
                pause = await self._step()
                back_off = self._interval
            except Exception as error:
                # The store logs an outage, and a later step finds what this one has left.
                if not isinstance(error, Unavailable | OutcomeUnknown):
                    log.warning(self._failure, exc_info=True)
                back_off = min(2 * back_off, max(self._interval, FAILED_SECONDS_MAX))
                await asyncio.sleep(back_off)
                pause = 0.0
