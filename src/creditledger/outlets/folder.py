"""The folder adds rows to the sums over time of their wallets, after they are written.

A read adds up folds and the rows behind them, so an answer does not depend on the folder; its cost
does. A wallet is folded when it has WORTHWHILE rows that are not, and those with most are folded
when there are too many over all wallets: so wallets with few rows do not get a fold with each.
Postings never wait for it: on SQLite it works in slices of a few milliseconds between batches.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import thread_time

import structlog
from sqlalchemy import Connection

from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store
from creditledger.store.folds import folding
from creditledger.store.folds.folding import Folded

log = structlog.get_logger()

#: Rows of one wallet that are worth a fold: a read adds up so many in about a millisecond.
WORTHWHILE = 250
#: Of all rows so many may lie unfolded: one in a hundred, within these bounds.
UNFOLDED_SHARE, UNFOLDED_MIN, UNFOLDED_MAX = 100, 10_000, 100_000
#: How long one slice takes; while more is unfolded than may be, between batches that follow one
#: another without a pause; and how many rows it has until that is known.
SLICE_SECONDS, BEHIND_SECONDS = 0.004, 0.02
SLICE_ROWS, SLICE_ROWS_MIN, SLICE_ROWS_MAX = 200, 20, 5_000


class Folder:
    """One per server; several servers on a database fold what the others have left."""

    def __init__(
        self,
        store: Store,
        *,
        interval_seconds: float,
        elapsed: Callable[[], float] = thread_time,
    ) -> None:
        """`elapsed`: seconds that a thread has worked, to measure slices by."""
        self._store = store
        self._elapsed = elapsed
        self._slice_rows = SLICE_ROWS if store.takes_turns else SLICE_ROWS_MAX
        #: None: what is unfolded has to be looked up in every wallet.
        self._mark: int | None = None
        self._unfolded: dict[int, int] = {}
        self._ends: dict[int, int] = {}  #: Fold ends of wallets that the last pass has folded.
        self._rows = 0
        self._is_behind = False
        self.loop = BackgroundLoop(
            "folder", self._step, interval_seconds=interval_seconds, failure="fold failed"
        )

    async def _step(self) -> None:
        await self.fold()

    async def fold(self) -> int:
        """Fold what is worthwhile, and what is too much; how many rows that was.

        Raises what the store raises.
        """
        await self._look()
        return await self._fold(self._chosen())

    async def fold_all(self) -> int:
        """Fold every row there is now; how many were folded. Raises what the store raises."""
        self._mark = None
        await self._look()
        return await self._fold(list(self._unfolded))

    async def _look(self) -> None:
        """Count the rows that were committed since the last look."""
        mark, found = self._mark, None
        if mark is not None:
            found = await self._store.read(partial(folding.news, mark=mark))
        if found is None:
            self._rows, self._unfolded, self._ends = 0, {}, {}
            found = await self._store.read(folding.unfolded)
        for wallet, rows in found.by_wallet.items():
            if wallet in self._ends:
                # The last pass has folded some of these rows.
                self._count(wallet, found.last[wallet] - self._ends[wallet])
            else:
                self._count(wallet, self._unfolded.get(wallet, 0) + rows)
        self._ends.clear()
        self._rows += found.rows
        self._mark = found.mark

    def _chosen(self) -> list[int]:
        """The wallets to be folded, those with most rows first."""
        by_size = _by_size(self._unfolded)
        chosen = [wallet for size in by_size for wallet in size]
        share = self._rows // UNFOLDED_SHARE
        bound = min(max(share, UNFOLDED_MIN), UNFOLDED_MAX)
        left = sum(self._unfolded.values())
        self._is_behind = left > bound
        for place, wallet in enumerate(chosen):
            if left <= bound and self._unfolded[wallet] < WORTHWHILE:
                return chosen[:place]
            left -= self._unfolded[wallet]
        return chosen

    async def _fold(self, wallets: Iterable[int]) -> int:
        rows = 0
        waiting = iter(wallets)
        while some := self._some(waiting):
            while some:
                folded = await self._store.derive(partial(self._slice, wallets=some))
                rows += folded.rows
                for wallet in some:
                    # Another server folds those that are left out.
                    self._count(wallet, folded.left.get(wallet, 0))
                self._ends |= folded.ends
                some = [wallet for wallet in some if wallet in self._unfolded]
                await asyncio.sleep(0)
        return rows

    def _count(self, wallet: int, rows: int) -> None:
        """So many rows of the wallet are unfolded."""
        if rows > 0:
            self._unfolded[wallet] = rows
        else:
            self._unfolded.pop(wallet, None)

    def _some(self, waiting: Iterator[int]) -> list[int]:
        """Wallets for one slice."""
        some, rows = [], 0
        for wallet in waiting:
            some.append(wallet)
            rows += self._unfolded[wallet]
            if rows >= self._slice_rows:
                break
        return some

    def _slice(self, connection: Connection, wallets: Iterable[int]) -> Folded:
        began, rows = self._elapsed(), self._slice_rows
        folded = folding.fold(connection, wallets, rows)
        took = self._elapsed() - began
        if not self._store.takes_turns:
            return folded
        self._is_behind = self._is_behind or sum(folded.left.values()) > UNFOLDED_MIN
        wanted = BEHIND_SECONDS if self._is_behind else SLICE_SECONDS
        fitting = int(rows * min(2.0, wanted / max(took, wanted / 10)))
        self._slice_rows = min(max(fitting, SLICE_ROWS_MIN), SLICE_ROWS_MAX)
        return folded


def _by_size(unfolded: Mapping[int, int]) -> list[list[int]]:
    """The wallets, those with most rows first, to a factor of two: sorting all takes longer."""
    sizes: list[list[int]] = [[] for _ in range(64)]
    for wallet, rows in unfolded.items():
        sizes[rows.bit_length()].append(wallet)
    return sizes[::-1]
