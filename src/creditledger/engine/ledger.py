"""The committer: every posting, single or batched, goes through here.

The one exception moves no credit: closing a statement writes its key as a posting
(store/wallet_keys.py).

Callers queue commands; the committer takes all that waits, decides them in arrival order inside
one write transaction, and answers after COMMIT:

| # | phase                                | where                        |
|---|--------------------------------------|------------------------------|
| 1 | begin                                | store, `Writer.commit`       |
| 2 | lock the batch's wallets             | store                        |
| 3 | read postings under the keys, grants | store, as `Loaded`           |
| 4 | decide one after the other           | batch.py, by the rules       |
| 5 | write                                | store, from `Changes`        |
| 6 | commit, then answer                  | here                         |

While one batch commits, the next one gathers all commands that reach the process. A batch leaves
out a wallet that another server has locked for long. The commands of that wallet wait apart, in
order (locked_wallets.py), and all others go on.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from creditledger.domain.commands import (
    Asked,
    Command,
    GrantChange,
    LimitChange,
    Sweep,
    WalletChange,
)
from creditledger.domain.errors import (
    OutcomeUnknown,
    Overloaded,
    Refusal,
    Unavailable,
    WalletLocked,
)
from creditledger.domain.model import RETURNED_MS, WalletView
from creditledger.domain.spend_limits import LimitView
from creditledger.engine.batch import Batch, Budget, Outcome, Posted, wanted
from creditledger.engine.locked_wallets import PAUSE_SECONDS, LockedWallets
from creditledger.store import (
    Changes,
    CommitFailed,
    DiskFailed,
    Loaded,
    Store,
    StoreUnavailable,
    WalletsLocked,
)
from creditledger.telemetry import spans
from creditledger.telemetry.measures import Fate, Measures
from creditledger.telemetry.spans import TraceSpan

log = structlog.get_logger()

#: Commands decided in one transaction: bounds the time that others wait and what a crash undoes.
BATCH_MAX = 1_000
#: Turns of the event loop in which nothing comes before a batch begins; and how long, in all, it
#: may wait for them.
GATHER_TURNS = 20
GATHER_SECONDS_MAX = 0.02
#: Time to find out the fate of a batch whose COMMIT failed, before its callers get an error.
RECOVERY_SECONDS_MAX = 5.0


#: What became of a command; an exception is an answer too.
Answer = Outcome | Exception


class _Locked(NamedTuple):
    """No answer yet: the batch went without the wallet."""

    wallet_id: str


class _Item(NamedTuple):
    """A command, what its answer may take, and where it goes."""

    command: Asked
    budget: Budget
    call: "_Call"
    place: int  #: Among the call's commands.

    def is_gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.call.answer.done()


@dataclass(slots=True, eq=False)
class _Call:
    """Commands of one caller, which share a batch, and the future that it waits for."""

    commands: Sequence[Asked]
    budget: Budget
    answer: asyncio.Future[Any]
    many: bool  #: The answer is a list, in which a refusal is one of them.
    refused: list[Exception]  #: Of the commands after these, for which there was no room.
    span: TraceSpan | None  #: Of the RPC, where it is traced ...
    queued: TraceSpan | None  #: ... and of its wait in the queue.
    answers: list[Answer | None] = field(init=False)  #: None: not yet.
    open: int = field(init=False)  #: How many have no answer yet.

    def __post_init__(self) -> None:
        self.open = len(self.commands)
        self.answers = [None] * self.open

    def items(self) -> list[_Item]:
        """Its commands."""
        return [_Item(one, self.budget, self, at) for at, one in enumerate(self.commands)]

    def tell(self, place: int, answer: Answer) -> None:
        """What became of a command. With the last of them the caller is answered."""
        if self.answers[place] is None:
            self.answers[place] = answer
            self.open -= 1
        if self.open or self.answer.done():
            return
        if self.many:
            self.answer.set_result([*self.answers, *self.refused])
        elif isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class Ledger:
    """The verbs of the ledger. One per process and store."""

    def __init__(
        self,
        store: Store,
        *,
        queue_max: int,
        backdating_ms_max: int,
        returned_ms: int = RETURNED_MS,
        on_disk_failure: Callable[[], None],
        measures: Measures | None = None,
    ) -> None:
        """`measures`: where postings and commits are counted."""
        self._store = store
        self._measures = measures or Measures()
        self._queue: deque[_Call] = deque()
        self._queued = 0  #: Commands in the queue.
        # One wallet takes a tenth of the room at most, and all that are locked leave half of it.
        self._locked = LockedWallets[_Item](max(1, queue_max // 10), max(1, queue_max // 2))
        self._queue_max = queue_max
        self._backdating_ms_max = backdating_ms_max
        self._returned_ms = returned_ms
        self._on_disk_failure = on_disk_failure
        self._arrived = asyncio.Event()
        self._closing = False
        self._committer: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Commands that no batch has taken yet, those for locked wallets included."""
        return self._queued + self._locked.count

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

    def change(self, change: WalletChange | GrantChange) -> asyncio.Future[WalletView]:
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
        taken = commands[: max(0, self._queue_max - self._queued - self._locked.count)]
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
        span = spans.under_way().span
        queued = None if span is None else span.part("queue")
        self._queue.append(_Call(taken, budget, answer, many, refused, span, queued))
        self._queued += len(taken)
        self._arrived.set()
        return answer

    async def _run(self) -> None:
        while True:
            await self._turn()
            await self._gathered()
            items: list[_Item] = []
            try:
                if self._locked and self._locked.next_try <= _now():
                    items = self._locked.turn(BATCH_MAX, _now(), _Item.is_gone)
                    if items:
                        await self._try_again(items)
                items = self._take()
                if items:
                    await self._commit(items)
            except Exception:
                # Not even the log can be written, perhaps. Nobody would be answered any more,
                # so nobody may go on waiting.
                self._closing = True
                queued = [item for call in self._queue for item in call.items()]
                for item in (*items, *queued, *self._locked.take_all()):
                    item.call.tell(item.place, OutcomeUnknown("the ledger has stopped"))
                self._on_disk_failure()
                raise
            if not items and not self._queue:
                if self._closing and not self._locked:
                    return
                if not self._closing:
                    self._arrived.clear()

    async def _turn(self) -> None:
        """Until there is something to do: a command has come, or locked wallets are tried again."""
        if not self._locked:
            await self._arrived.wait()
        elif self._queue or (pause := self._locked.next_try - _now()) <= 0:
            return
        elif self._closing:
            await asyncio.sleep(pause)
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._arrived.wait()

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

    def _take(self) -> list[_Item]:
        """All that waits, up to the bound, without those whose callers have gone.

        What concerns a wallet that others wait for already waits behind them.
        """
        taken: list[_Item] = []
        room = BATCH_MAX
        while self._queue and len(self._queue[0].commands) <= room:
            call = self._queue.popleft()
            self._queued -= len(call.commands)
            if call.queued is not None:
                call.queued.end()
            if call.answer.done():
                continue
            room -= len(call.commands)
            for item in call.items():
                locked = self._locked.find(item.command.wallet_ids) if self._locked else None
                if locked is None:
                    taken.append(item)
                else:
                    self._wait(item, locked)
        return taken

    def _wait(self, item: _Item, wallet_id: str) -> None:
        """Have a command wait for a wallet that somebody else has locked."""
        if not self._locked:
            log.warning("wallet locked by another writer", wallet_id=wallet_id)
        if self._locked.has_room(wallet_id):
            self._locked.add(wallet_id, item, _now())
        else:
            full = "too many postings wait for this wallet, which another writer has locked"
            item.call.tell(item.place, Overloaded(full, retry_after="1"))

    async def _commit(self, items: list[_Item]) -> None:
        """One batch, to the end: who is not answered waits for a locked wallet."""
        answers = await self._told(items)
        self._measures.posted(_fates(items, answers))
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, _Locked):
                self._wait(item, answer.wallet_id)
            else:
                item.call.tell(item.place, answer)

    async def _try_again(self, items: list[_Item]) -> None:
        """The same of what has waited for locked wallets."""
        answers = await self._told(items)
        self._measures.posted(_fates(items, answers))
        still = []
        for place, (item, answer) in enumerate(zip(items, answers, strict=True)):
            if isinstance(answer, _Locked):
                still.append((answer.wallet_id, place))
            else:
                item.call.tell(item.place, answer)
        for item in self._locked.tried(still, _now()):
            item.call.tell(item.place, WalletLocked())

    async def _told(self, items: list[_Item]) -> list[Answer | _Locked]:
        """What became of each command, whatever happened to the disk."""
        try:
            return await self._answers(items, wait=not self._locked)
        except DiskFailed:
            log.critical("disk failed", exc_info=True)
            # Once the callers are told.
            asyncio.get_running_loop().call_soon(self._on_disk_failure)
            failed = OutcomeUnknown("the disk failed while it was written")
            return [failed for _ in items]

    async def _answers(self, asked: list[_Item], *, wait: bool) -> list[Answer | _Locked]:
        """What became of each command. Raises DiskFailed.

        `wait`: for locks, a moment; otherwise what is locked is left out at once.

        An error before COMMIT wrote nothing: the batch is halved until the one command that
        causes it is alone. An error in COMMIT leaves open what happened: see `_recovered`.
        """
        batch = _CommandBatch(asked, self._backdating_ms_max, self._returned_ms)
        began = time.perf_counter()
        try:
            with _traced(asked):
                await self._store.commit(batch.wanted, batch.decide, wait=wait)
        except WalletsLocked:
            return await self._answers(asked, wait=False)
        except CommitFailed as failed:
            return await self._recovered(asked, failed, batch.decided())
        except DiskFailed:
            raise
        except StoreUnavailable:
            # It is so for each of them: halving would wait for the database once for each half.
            return [Unavailable("the database does not answer")] * len(asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
            middle = len(asked) // 2
            first = await self._answers(asked[:middle], wait=wait)
            return [*first, *await self._answers(asked[middle:], wait=wait)]
        self._measures.committed(len(asked), time.perf_counter() - began)
        self._go_on(batch.unfinished)
        return batch.answers()

    def _go_on(self, wallet_ids: Iterable[str]) -> None:
        """Return more of what canceled events drew: one posting returns a bounded part of it.

        Nobody waits for it; what fails or is lost in a crash is found by the sweeper.
        """
        for wallet_id in wallet_ids:
            with suppress(Overloaded, Unavailable):
                self._submit([Sweep(wallet_id)], Budget(), many=True)

    async def _recovered(
        self, asked: list[_Item], failed: CommitFailed, decided: list[Answer | _Locked]
    ) -> list[Answer | _Locked]:
        """Decide the batch anew on a new connection: what is there answers as a replay.

        But for what an attempt at this very batch has written: that is no replay, see `_first`.
        Of a wallet that is locked nobody knows it: the transaction that failed may have the lock.
        """
        attempts = [_Attempt(failed, dict(enumerate(decided)))]
        give_up = _now() + RECOVERY_SECONDS_MAX
        pause = 0.05
        log.error("outcome unknown", commands=len(asked), seconds=RECOVERY_SECONDS_MAX)
        unknown = OutcomeUnknown("the database failed while the posting was written")
        answers: list[Answer | _Locked] = [unknown for _ in asked]
        places = list(range(len(asked)))
        connected = False
        while places and _now() < give_up:
            again = [asked[place] for place in places]
            batch = _CommandBatch(again, self._backdating_ms_max, self._returned_ms)
            try:
                if not connected:
                    await self._store.reconnect()
                connected = False
                with _traced(again):
                    await self._store.commit(batch.wanted, batch.decide, wait=False)
                connected = True
            except DiskFailed:
                raise
            except Exception as error:
                if isinstance(error, CommitFailed):
                    there = dict(zip(places, batch.decided(), strict=True))
                    attempts.append(_Attempt(error, there))
                elif not isinstance(error, StoreUnavailable):
                    log.warning("recovery after a failed commit failed", exc_info=True)
                await asyncio.sleep(pause)
                pause *= 2
            else:
                self._go_on(batch.unfinished)
                locked = []
                for place, answer in zip(places, batch.answers(), strict=True):
                    if isinstance(answer, _Locked):
                        locked.append(place)
                    else:
                        answers[place] = await self._first(attempts, place, answer)
                places = locked
                if places:
                    await asyncio.sleep(PAUSE_SECONDS)
        return answers

    async def _first(self, attempts: list["_Attempt"], place: int, answer: Answer) -> Answer:
        """The answer, or what an attempt decided that was committed though nobody heard of it."""
        for one in attempts:
            before = one.decided.get(place)
            if before is None or isinstance(before, _Locked) or not _stands(before, answer):
                continue
            if one.committed is None:
                one.committed = bool(await self._store.has_committed(one.failed))
            if one.committed:
                return _not_replayed(answer) if isinstance(answer, Posted) else before
        return answer


@dataclass(slots=True)
class _Attempt:
    """An attempt at a batch whose COMMIT failed."""

    failed: CommitFailed
    decided: dict[int, Answer | _Locked]  #: By place in the batch.
    committed: bool | None = None  #: None: not asked yet.


def _stands(before: Answer, answer: Answer) -> bool:
    """Whether `answer` may be so only because what `before` says was committed."""
    if isinstance(before, Posted):
        return (
            isinstance(answer, Posted)
            and answer.replayed
            and not before.replayed
            and answer.posting.number == before.posting.number
        )
    # To do it again is refused: the limit is no more, the wallet is closed.
    return isinstance(answer, Exception) and not isinstance(before, Exception)


def _not_replayed(answer: Posted) -> Posted:
    received = answer.received
    if received is not None:
        received = received._replace(replayed=False)
    return answer._replace(replayed=False, received=received)


def _traced(asked: Sequence[_Item]) -> AbstractContextManager[None]:
    """The transaction of a batch, in the trace of each call that has a command in it."""
    return spans.together((item.call.span for item in asked), "batch", size=len(asked))


def _fates(items: Iterable[_Item], answers: Iterable[Answer | _Locked]) -> Iterator[Fate]:
    """What became of those commands that are postings and have an answer."""
    for item, answer in zip(items, answers, strict=True):
        command = item.command
        if not isinstance(command, Command) or isinstance(answer, _Locked):
            continue
        word = command.operation.word
        if isinstance(answer, Posted):
            is_new = not (answer.replayed or answer.validate_only)
            done = "posted" if is_new else "replayed" if answer.replayed else "validated"
            yield word, done, ""
        elif isinstance(answer, Refusal):
            yield word, "refused", answer.reason
        else:
            yield word, "failed", "INTERNAL"


def _now() -> float:
    """Seconds, as the event loop counts them."""
    return asyncio.get_running_loop().time()


class _CommandBatch:
    """Commands decided together in one transaction, and their answers until it is committed."""

    def __init__(self, asked: list[_Item], backdating_ms_max: int, returned_ms: int) -> None:
        self._asked = asked
        self.wanted = wanted(item.command for item in asked)
        self._backdating_ms_max = backdating_ms_max
        self._returned_ms = returned_ms
        self._answers: list[Answer | _Locked] = []
        self.unfinished: set[str] = set()  #: Wallet ids, see `Batch.unfinished`.
        #: What the batch leaves of its callers' budgets: one that is not committed spends nothing.
        self._left: dict[int, tuple[Budget, Budget]] = {}

    def decide(self, loaded: Loaded) -> Changes:
        """Phase 4. Runs inside the transaction, maybe in another thread; keeps the answers."""
        batch = Batch(loaded, self._backdating_ms_max, self._returned_ms)
        answers = self._answers = []
        left = self._left = {}
        if loaded.refused is not None:
            answers += [loaded.refused] * len(self._asked)
            return batch.changes
        for command, budget, *_ in self._asked:
            if loaded.locked:
                locked = next((one for one in command.wallet_ids if one in loaded.locked), None)
                if locked is not None:
                    answers.append(_Locked(locked))
                    continue
            if id(budget) not in left:
                left[id(budget)] = budget, Budget(budget.left)
            try:
                answers.append(batch.decide(command, left[id(budget)][1]))
            except Refusal as refusal:
                answers.append(refusal)
        self.unfinished = batch.unfinished
        return batch.changes

    def decided(self) -> list[Answer | _Locked]:
        """What would be told if it were committed, in order."""
        return self._answers

    def answers(self) -> list[Answer | _Locked]:
        """After COMMIT: what to tell, in order."""
        for budget, left in self._left.values():
            budget.left = left.left
        return self._answers
