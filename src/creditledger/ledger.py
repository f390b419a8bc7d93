"""The committer: every posting, single or batched, goes through here, and here only.

Callers queue commands; the committer takes all that waits, decides them in arrival order inside
one write transaction, and answers after COMMIT:

| # | phase                                | where                        |
|---|--------------------------------------|------------------------------|
| 1 | begin                                | store, `Writer.commit`       |
| 2 | lock the batch's wallets             | store                        |
| 3 | read postings under the keys, grants | store, as `Loaded`           |
| 4 | decide one after the other           | deciding.py, by the rules    |
| 5 | write                                | store, from `Changes`        |
| 6 | commit, then answer                  | here                         |

While one batch commits the next one gathers: there is no timer. Called by the API; imports
deciding.py and the store.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from creditledger.deciding import Budget, Deciding, Posted, wanted
from creditledger.errors import OutcomeUnknown, Overloaded, Refusal, Unavailable
from creditledger.model import Command, WalletChange, WalletView
from creditledger.store import (
    Changes,
    CommitFailed,
    DiskFailed,
    Loaded,
    Store,
    StoreUnavailable,
)

log = structlog.get_logger()

#: Commands decided in one transaction: bounds the time that others wait and what a crash undoes.
BATCH_MAX = 1_000
#: How long a batch whose COMMIT failed is looked for before its callers are told.
RECOVERY_SECONDS_MAX = 5.0


@dataclass(slots=True)
class _Waiting:
    """A command in the queue and the caller who waits for its answer."""

    command: Command | WalletChange
    budget: Budget
    answer: asyncio.Future[Posted | WalletView]


class Ledger:
    """The verbs of the ledger. One per process and store."""

    def __init__(
        self,
        store: Store,
        *,
        queue_max: int,
        backdating_ms_max: int,
        on_disk_failure: Callable[[], None],
    ) -> None:
        self._store = store
        self._queue: deque[_Waiting] = deque()
        self._queue_max = queue_max
        self._backdating_ms_max = backdating_ms_max
        self._on_disk_failure = on_disk_failure
        self._arrived = asyncio.Event()
        self._closing = False
        self._committer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take commands."""
        self._committer = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Refuse what comes from now on, finish what waits."""
        self._closing = True
        self._arrived.set()
        if self._committer is not None:
            await self._committer

    def post(self, command: Command, budget: Budget | None = None) -> asyncio.Future[Posted]:
        """Queue one posting; the future answers Posted or raises its Refusal.

        One write transaction however many callers: three to fifteen reads and at most nine writes
        for the whole batch. Same key and fields: the first answer, replayed=True, nothing written.
        Cancelling the future drops the command if its batch has not begun; afterwards it stands.
        Raises Overloaded at once if the queue is full, Unavailable if the server is closing.
        """
        return self._submit(command, budget or Budget())  # type: ignore[return-value]  # by command

    def change(self, change: WalletChange) -> asyncio.Future[WalletView]:
        """Queue a change of a wallet's limit, status or metadata, in line with its postings."""
        return self._submit(change, Budget())  # type: ignore[return-value]  # by command

    def _submit(
        self, command: Command | WalletChange, budget: Budget
    ) -> asyncio.Future[Posted | WalletView]:
        if self._closing:
            raise Unavailable("the server is shutting down")
        if len(self._queue) >= self._queue_max:
            raise Overloaded(f"{self._queue_max} postings are waiting already", retry_after="1")
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(command, budget, answer))
        self._arrived.set()
        return answer

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            batch = list(self._take())
            if batch:
                try:
                    await self._commit(batch)
                except Exception:
                    # Not even the log can be written, perhaps. Nobody would be answered any more,
                    # so nobody may go on waiting.
                    self._closing = True
                    _refuse([*batch, *self._queue], OutcomeUnknown("the ledger has stopped"))
                    self._on_disk_failure()
                    raise
            elif self._closing:
                return
            else:
                self._arrived.clear()

    def _take(self) -> Iterator[_Waiting]:
        """All that waits, up to the bound, without those whose callers have gone."""
        taken = 0
        while self._queue and taken < BATCH_MAX:
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                taken += 1
                yield waiting

    async def _commit(self, waiting: list[_Waiting]) -> None:
        """One batch, to the end: every caller is answered when this returns.

        An error before COMMIT wrote nothing: the batch is halved until the one command that
        causes it is alone. An error in COMMIT leaves open what happened: see `_recover`.
        """
        batch = _Batch(waiting, self._backdating_ms_max)
        try:
            await self._store.commit(batch.wanted, batch.decide)
        except CommitFailed:
            await self._recover(waiting)
        except DiskFailed:
            self._end(waiting)
        except StoreUnavailable:
            # It is so for each of them: halving would wait for the database once for each half.
            log.error("database unavailable", exc_info=True)
            _refuse(waiting, Unavailable("the database does not answer"))
        except Exception as error:
            if len(waiting) > 1:
                middle = len(waiting) // 2
                await self._commit(waiting[:middle])
                await self._commit(waiting[middle:])
            else:
                _refuse(waiting, error)
        else:
            batch.answer()

    async def _recover(self, waiting: list[_Waiting]) -> None:
        """Decide the batch anew on a new connection: what is there answers as a replay."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RECOVERY_SECONDS_MAX
        pause = 0.05
        while loop.time() < give_up:
            batch = _Batch(waiting, self._backdating_ms_max)
            try:
                await self._store.reconnect()
                await self._store.commit(batch.wanted, batch.decide)
            except DiskFailed:
                self._end(waiting)
                return
            except Exception:
                log.warning("recovery after a failed commit failed", exc_info=True)
                await asyncio.sleep(pause)
                pause *= 2
            else:
                batch.answer()
                return
        _refuse(waiting, OutcomeUnknown("the database failed while the posting was written"))

    def _end(self, waiting: list[_Waiting]) -> None:
        log.critical("disk failed", exc_info=True)
        _refuse(waiting, OutcomeUnknown("the disk failed while the posting was written"))
        self._on_disk_failure()


def _refuse(waiting: list[_Waiting], error: Exception) -> None:
    for one in waiting:
        if not one.answer.done():
            one.answer.set_exception(error)


class _Batch:
    """Commands decided together in one transaction, and their answers until it is committed."""

    def __init__(self, waiting: list[_Waiting], backdating_ms_max: int) -> None:
        self._waiting = waiting
        self.wanted = wanted(one.command for one in waiting)
        self._backdating_ms_max = backdating_ms_max
        self._answers: list[Posted | WalletView | Exception] = []
        #: What the batch leaves of its callers' budgets: one that is not committed spends nothing.
        self._left: dict[int, Budget] = {}

    def decide(self, loaded: Loaded) -> Changes:
        """Phase 4. Runs inside the transaction, maybe in another thread; keeps the answers."""
        deciding = Deciding(loaded, self._backdating_ms_max)
        self._answers = []
        self._left = {id(one.budget): Budget(one.budget.left) for one in self._waiting}
        for one in self._waiting:
            try:
                if isinstance(one.command, Command):
                    budget = self._left[id(one.budget)]
                    self._answers.append(deciding.post(one.command, budget))
                else:
                    self._answers.append(deciding.change(one.command))
            except Refusal as refusal:
                self._answers.append(refusal)
        return deciding.changes

    def answer(self) -> None:
        """After COMMIT: tell everybody who still waits."""
        for one, answer in zip(self._waiting, self._answers, strict=True):
            one.budget.left = self._left[id(one.budget)].left
            if one.answer.done():
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
