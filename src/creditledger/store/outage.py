"""An outage of the database, in the log: a line as it begins, one a minute, one as it ends.

Everything that needs the database fails while it is away, many times a second. The store counts
those failures here, so that nothing above it writes a line for each.
"""

import time
from collections.abc import Callable
from contextlib import suppress

import structlog

log = structlog.get_logger()

#: How often a line says that the database is still away.
REMINDER_SECONDS = 60.0


class Outage:
    """Whether the database answers. One for each store.

    Writes, reads and reads of a replica use connections of their own, so one kind may work while
    another does not. An outage lasts until every kind that failed has worked again.
    """

    def __init__(self, database: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`database`: its name without a password. `clock`: seconds, of any beginning."""
        self._database = database
        self._clock = clock
        self._failing: set[str] = set()  #: Kinds of work that last failed; empty: no outage.
        self._began = self._said = 0.0  #: When the outage began, and when a line last said so.
        self._failures = 0

    @property
    def lasts(self) -> bool:
        """Whether some kind of work last failed."""
        return bool(self._failing)

    def failed(self, work: str, error: BaseException) -> None:
        """An attempt at this kind of work failed because the database was away."""
        now = self._clock()
        if not self._failing:
            self._began = self._said = now
            self._failures = 0
            self._say(log.error, "database away", database=self._database, reason=_reason(error))
        elif now - self._said >= REMINDER_SECONDS:
            self._said = now
            self._say(log.error, "database still away", reason=_reason(error), **self._counts(now))
        self._failing.add(work)
        self._failures += 1

    def answered(self, work: str) -> None:
        """An attempt succeeded. This costs next to nothing while there is no outage."""
        if self._failing:
            self._failing.discard(work)
            if not self._failing:
                self._say(log.warning, "database back", **self._counts(self._clock()))

    def _say(self, write: Callable[..., object], event: str, **values: object) -> None:
        # Where even the log cannot be written, the error that is being handled is what counts.
        with suppress(OSError, ValueError):
            write(event, **values)

    def _counts(self, now: float) -> dict[str, object]:
        return {
            "database": self._database,
            "seconds": round(now - self._began, 1),
            "failures": self._failures,
        }


def _reason(error: BaseException) -> str:
    """The first line of what the driver said, which is at the end of the chain of causes."""
    while (cause := getattr(error, "orig", None) or error.__cause__) is not None:
        error = cause
    if isinstance(error.args[0] if error.args else None, BaseException):
        return _reason(error.args[0])
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
