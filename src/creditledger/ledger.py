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

While one batch commits the next one gathers, and what has reached the process by then joins it.
Called by the API; imports deciding.py and the store.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from creditledger.budget import Budget
from creditledger.deciding import Deciding, Posted, wanted
from creditledger.errors import OutcomeUnknown, Overloaded, Refusal, Unavailable
from creditledger.limits import LimitView
from creditledger.model import WalletView
from creditledger.operations import (
    Asked,
    Change,
    Command,
    DropLimit,
    GrantChange,
    LimitChange,
    SetLimit,
    Sweep,
    WalletChange,
)
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
#: Turns of the event loop in which nothing comes before a batch begins; and how long, in all, it
#: may wait for them.
GATHER_TURNS = 20
GATHER_SECONDS_MAX = 0.02
#: How long a batch whose COMMIT failed is looked for before its callers are told.
RECOVERY_SECONDS_MAX = 5.0


#: What became of a command; an exception is an answer too.
Answer = Posted | WalletView | LimitView | int | Exception


#: A command, and what its answer may take.
_Item = tuple[Asked, Budget]


@dataclass(slots=True)
class _Call:
    """Commands of one caller, which share a batch, and the future that it waits for."""

    commands: Sequence[Asked]
    budget: Budget
    answer: asyncio.Future[Any]
    many: bool  #: The answer is a list, in which a refusal is one of them.
    refused: list[Exception]  #: Of the commands after these, for which there was no room.

    def tell(self, answers: list[Answer]) -> None:
        """Answer the caller, if it still waits."""
        if self.answer.done():
            return
        if self.many:
            self.answer.set_result([*answers, *self.refused])
        elif isinstance(answers[0], Exception):
            self.answer.set_exception(answers[0])
        else:
            self.answer.set_result(answers[0])


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
        self._queue: deque[_Call] = deque()
        self._queued = 0  #: Commands in the queue.
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

        One write transaction however many callers: three to nineteen reads and at most nine writes
        for the whole batch. Same key and fields: the first answer, replayed=True, nothing written.
        Cancelling the future drops the command if its batch has not begun; afterwards it stands.
        Raises Overloaded at once if the queue is full, Unavailable if the server is closing.
        """
        return self._submit([command], budget or Budget(), many=False)

    def post_many(self, commands: Sequence[Command]) -> asyncio.Future[list[Posted | Exception]]:
        """Queue up to BATCH_MAX postings of one call, decided together and answered in order.

        As `post` for each of them, at less cost: one future, whose list holds the refusals too,
        Overloaded for those that the queue has no room for. Their answers share one budget.
        """
        assert 0 < len(commands) <= BATCH_MAX
        return self._submit(commands, Budget(), many=True)

    def change(self, change: Change) -> asyncio.Future[WalletView]:
        """Queue a change of a wallet's or a grant's terms, in line with the wallet's postings."""
        return self._submit([change], Budget(), many=False)

    def limit(self, change: LimitChange) -> asyncio.Future[LimitView]:
        """Queue a change of a wallet's spend limits; the limit as it is then, or was."""
        return self._submit([change], Budget(), many=False)

    def sweep(self, sweeps: Sequence[Sweep]) -> asyncio.Future[list[int | Exception]]:
        """Queue the writing down of what is over in these wallets, decided together.

        Answers how much that was of each. Nobody waits for it, so it gives way: raises Overloaded
        while a tenth of the queue is taken.
        """
        if self._queued > self._queue_max // 10:
            raise Overloaded("the ledger is busy")
        return self._submit(sweeps, Budget(), many=True)

    def _submit(
        self, commands: Sequence[Asked], budget: Budget, *, many: bool
    ) -> asyncio.Future[Any]:
        if self._closing:
            raise Unavailable("the server is shutting down")
        taken = commands[: max(0, self._queue_max - self._queued)]
        refused: list[Exception] = []
        if len(taken) < len(commands):
            full = Overloaded(f"{self._queue_max} postings are waiting already", retry_after="1")
            if not many:
                raise full
            refused = [full] * (len(commands) - len(taken))
        answer = asyncio.get_running_loop().create_future()
        if not taken:
            answer.set_result(refused)
            return answer
        self._queue.append(_Call(taken, budget, answer, many, refused))
        self._queued += len(taken)
        self._arrived.set()
        return answer

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await self._gathered()
            calls = self._take()
            if calls:
                try:
                    await self._commit(calls)
                except Exception:
                    # Not even the log can be written, perhaps. Nobody would be answered any more,
                    # so nobody may go on waiting.
                    self._closing = True
                    for call in (*calls, *self._queue):
                        call.tell([OutcomeUnknown("the ledger has stopped")] * len(call.commands))
                    self._on_disk_failure()
                    raise
            elif self._closing:
                return
            else:
                self._arrived.clear()

    async def _gathered(self) -> None:
        """Let the event loop read what has come to this process already, as long as more comes.

        A batch of a few costs as much as one of many, and gRPC hands calls over one by one, each in
        several turns of the loop. Where nothing else goes on the turns take no time.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + GATHER_SECONDS_MAX
        queued, quiet = 0, 0
        while quiet < GATHER_TURNS and 0 < self._queued < BATCH_MAX and loop.time() < give_up:
            quiet = 0 if queued < self._queued else quiet + 1
            queued = self._queued
            await asyncio.sleep(0)

    def _take(self) -> list[_Call]:
        """All that waits, up to the bound, without those whose callers have gone."""
        taken: list[_Call] = []
        room = BATCH_MAX
        while self._queue and len(self._queue[0].commands) <= room:
            call = self._queue.popleft()
            self._queued -= len(call.commands)
            if not call.answer.done():
                room -= len(call.commands)
                taken.append(call)
        return taken

    async def _commit(self, calls: list[_Call]) -> None:
        """One batch, to the end: every caller is answered when this returns."""
        asked = [(command, call.budget) for call in calls for command in call.commands]
        disk_failed = False
        try:
            answers = await self._answers(asked)
        except DiskFailed:
            log.critical("disk failed", exc_info=True)
            disk_failed = True
            answers = [OutcomeUnknown("the disk failed while it was written")] * len(asked)
        at = 0
        for call in calls:
            count = len(call.commands)
            call.tell(answers[at : at + count])
            at += count
        if disk_failed:
            self._on_disk_failure()

    async def _answers(self, asked: list[_Item]) -> list[Answer]:
        """What became of each command. Raises DiskFailed.

        An error before COMMIT wrote nothing: the batch is halved until the one command that
        causes it is alone. An error in COMMIT leaves open what happened: see `_recovered`.
        """
        batch = _Batch(asked, self._backdating_ms_max)
        try:
            await self._store.commit(batch.wanted, batch.decide)
        except CommitFailed:
            return await self._recovered(asked)
        except DiskFailed:
            raise
        except StoreUnavailable:
            # It is so for each of them: halving would wait for the database once for each half.
            return [Unavailable("the database does not answer")] * len(asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
            middle = len(asked) // 2
            return [*await self._answers(asked[:middle]), *await self._answers(asked[middle:])]
        return batch.answers()

    async def _recovered(self, asked: list[_Item]) -> list[Answer]:
        """Decide the batch anew on a new connection: what is there answers as a replay."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RECOVERY_SECONDS_MAX
        pause = 0.05
        while loop.time() < give_up:
            batch = _Batch(asked, self._backdating_ms_max)
            try:
                await self._store.reconnect()
                await self._store.commit(batch.wanted, batch.decide)
            except DiskFailed:
                raise
            except Exception as error:
                if not isinstance(error, StoreUnavailable | CommitFailed):
                    log.warning("recovery after a failed commit failed", exc_info=True)
                await asyncio.sleep(pause)
                pause *= 2
            else:
                return batch.answers()
        unknown = OutcomeUnknown("the database failed while the posting was written")
        return [unknown] * len(asked)


class _Batch:
    """Commands decided together in one transaction, and their answers until it is committed."""

    def __init__(self, asked: list[_Item], backdating_ms_max: int) -> None:
        self._asked = asked
        self.wanted = wanted(command for command, _ in asked)
        self._backdating_ms_max = backdating_ms_max
        self._answers: list[Answer] = []
        #: What the batch leaves of its callers' budgets: one that is not committed spends nothing.
        self._left: dict[int, tuple[Budget, Budget]] = {}

    def decide(self, loaded: Loaded) -> Changes:
        """Phase 4. Runs inside the transaction, maybe in another thread; keeps the answers."""
        deciding = Deciding(loaded, self._backdating_ms_max)
        answers = self._answers = []
        left = self._left = {}
        for command, budget in self._asked:
            if id(budget) not in left:
                left[id(budget)] = budget, Budget(budget.left)
            try:
                if isinstance(command, Command):
                    answers.append(deciding.post(command, left[id(budget)][1]))
                elif isinstance(command, SetLimit | DropLimit):
                    answers.append(deciding.limit(command))
                elif isinstance(command, WalletChange | GrantChange):
                    answers.append(deciding.change(command))
                else:
                    answers.append(deciding.sweep(command))
            except Refusal as refusal:
                answers.append(refusal)
        return deciding.changes

    def answers(self) -> list[Answer]:
        """After COMMIT: what to tell, in order."""
        for budget, left in self._left.values():
            budget.left = left.left
        return self._answers
