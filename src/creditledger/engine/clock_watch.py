"""The watch over the ledger's clock: read when nobody posts, written down, accepted by operators.

The committer reads the clock with each batch. This task reads it too, so that a leap is noticed and
outlasted where nobody posts; it writes down the ledger's time, which a later start is compared
with; and it hears of acceptances that came in at other servers.
"""

from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from creditledger.domain import clock
from creditledger.domain.clock_guard import LEAP_MS_MAX, TOLERANCE_MS, State, Verdict
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store, change_keys, clock_marks
from creditledger.store.change_keys import Intent, Kept
from creditledger.store.clock_marks import Acceptance, ClockMark
from creditledger.store.ledger_clock import LedgerClock

log = structlog.get_logger()

LOOK_SECONDS = 5.0
#: How often the time is written down while the clock is trusted, and at the end if it is older.
MARK_MS, LAST_MARK_MS = clock.HOUR, clock.MINUTE


class ClockWatch:
    """One per process."""

    def __init__(self, store: Store, ledger_clock: LedgerClock, *, idle_ms_max: int) -> None:
        self._store = store
        self._clock = ledger_clock
        self._idle_ms_max = idle_ms_max
        self.loop = BackgroundLoop(
            "clock watch",
            self._step,
            interval_seconds=LOOK_SECONDS,
            failure="the clock was not looked at",
        )
        self._noted: Verdict | None = None  #: What was last written down.
        self._accepted = 0  #: Number of the last acceptance that is known.

    async def begin(self) -> None:
        """Judge the clock for the first time: nothing has been posted by this process before.

        Raises what the store raises.
        """
        shown = await self._shown()

        def known(connection: Connection) -> tuple[ClockMark | None, Acceptance | None]:
            mark = clock_marks.mark(connection)
            if mark is None:
                posted = clock_marks.last_posted(connection, shown)
                mark = None if posted is None else ClockMark(posted, None)
            return mark, clock_marks.last_acceptance(connection)

        mark, accepted = await self._store.read(known)
        self._accepted = 0 if accepted is None else accepted.number
        verdict = self._clock.begin(
            shown,
            last_seen=None if mark is None else mark.seen_at,
            doubted_at=None if mark is None else mark.doubted_at,
            idle_ms_max=self._idle_ms_max,
        )
        if mark is not None and mark.doubted_at is None and verdict.state is State.TRUSTED:
            self._noted = verdict._replace(now=mark.seen_at)
        await self._note(verdict)

    async def stop(self) -> None:
        """Look no more, and write down until when the clock was right."""
        await self.loop.stop()
        try:
            await self._note(self._clock.read(), every_ms=LAST_MARK_MS)
        except Exception:
            # The last mark is older then, by an hour at most.
            log.warning("the clock was not written down", exc_info=True)

    async def look(self) -> Verdict:
        """One reading, and what follows from it. Raises what the store raises."""
        shown = await self._shown()
        verdict = self._clock.read(shown)
        if verdict.state is not State.TRUSTED:
            accepted = await self._store.read(clock_marks.last_acceptance)
            if accepted is not None and accepted.number > self._accepted:
                self._accepted = accepted.number
                if -TOLERANCE_MS <= verdict.shown - accepted.accepted_at <= LEAP_MS_MAX:
                    verdict = self._clock.accept(verdict.shown)
        await self._note(verdict)
        return verdict

    async def accept(
        self, accepted_by: str, intent_at: Callable[[int], Intent | None] = lambda _: None
    ) -> Acceptance:
        """Take the clock as it is for right, here, on all servers and after restarts.

        `intent_at` a time: as the call asked for it. A repetition under its key answers what was
        accepted, and accepts nothing more.
        Raises Unavailable, OutcomeUnknown, IdempotencyKeyReused.
        """
        verdict = self._clock.read(await self._shown())
        shown, intent = verdict.shown, intent_at(verdict.now)

        def accept(connection: Connection) -> Acceptance:
            return clock_marks.accept(
                connection, accepted_at=shown, expected_at=verdict.now, accepted_by=accepted_by
            )

        def again(connection: Connection, kept: Kept) -> Acceptance:
            return clock_marks.acceptance(connection, int(kept.id))

        made = await self._store.write(
            lambda c: change_keys.once(c, intent, accept, again, lambda one: str(one.number))
        )
        if made.replayed:
            # Its first answer may have been lost, and then this server does not know of it.
            await self.look()
            return made.value
        self._accepted = made.value.number
        self._noted = self._clock.accept(shown)
        log.warning("clock accepted", clock=clock.shown(shown), accepted_by=accepted_by)
        return made.value

    async def last_acceptance(self) -> Acceptance | None:
        """The newest one. Raises what the store raises."""
        return await self._store.read(clock_marks.last_acceptance)

    async def _step(self) -> None:
        await self.look()

    async def _shown(self) -> int:
        shown = self._clock.shown()
        if shown is None:
            shown = await self._store.read(clock_marks.database_clock, urgent=True)
        return shown

    async def _note(self, verdict: Verdict, *, every_ms: int = MARK_MS) -> None:
        """Write the time down if that is news: the clock is doubted, or trusted again, or late."""
        before = self._noted
        if before is not None and before.state is verdict.state:
            if verdict.state is not State.TRUSTED:
                if abs(verdict.leap - before.leap) <= TOLERANCE_MS:
                    return
            elif 0 <= verdict.now - before.now < every_ms:
                return
        mark = ClockMark(verdict.now, None if verdict.state is State.TRUSTED else verdict.shown)
        await self._store.write(lambda c: clock_marks.write(c, mark))
        self._noted = verdict
        if verdict.state is not State.TRUSTED:
            log.error(
                "clock in doubt",
                state=verdict.state.value,
                clock=clock.shown(verdict.shown),
                expected=clock.shown(verdict.now),
            )
        elif before is not None and before.state is not State.TRUSTED:
            log.warning("clock trusted again", clock=clock.shown(verdict.shown))
