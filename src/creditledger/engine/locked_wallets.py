"""Commands whose wallets another server has locked. They wait here, so other commands go on.

A batch of another server locks a wallet until it commits. If that server stops in the middle, the
lock lasts until the database ends its transaction. Meanwhile the committer goes on with all other
wallets, and tries these again every PAUSE_SECONDS. No I/O.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: Pause between two tries of the locked wallets.
PAUSE_SECONDS = 0.02
#: How long a command waits for its wallet.
WAIT_SECONDS_MAX = 5.0


class Waiting(NamedTuple, Generic[T]):
    """A command and the end of its wait, in seconds of the event loop's clock."""

    item: T
    until: float


class LockedWallets(Generic[T]):
    """Waiting commands by the id of their locked wallet, in the order of arrival."""

    def __init__(self, wallet_max: int, whole_max: int) -> None:
        self._wallet_max = wallet_max  #: Commands that may wait for one wallet ...
        self._whole_max = whole_max  #: ... and for all.
        self._waiting: dict[str, deque[Waiting[T]]] = {}
        self._tried: dict[str, int] = {}  #: How many of a wallet's first were handed out.
        self.count = 0
        self.next_try = 0.0  #: When it is the turn of these again.

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def find(self, wallet_ids: Iterable[str]) -> str | None:
        """The first of these wallets with waiting commands. Later commands queue behind them."""
        return next((one for one in wallet_ids if one in self._waiting), None)

    def has_room(self, wallet_id: str) -> bool:
        """Whether one more may wait for this wallet."""
        waiting = len(self._waiting.get(wallet_id, ()))
        return waiting < self._wallet_max and self.count < self._whole_max

    def add(self, wallet_id: str, item: T, now: float) -> None:
        """Queue a command for this wallet, for at most WAIT_SECONDS_MAX."""
        if not self._waiting:
            self.next_try = now + PAUSE_SECONDS
        self._append(wallet_id, Waiting(item, now + WAIT_SECONDS_MAX))

    def _append(self, wallet_id: str, waiting: Waiting[T]) -> None:
        self._waiting.setdefault(wallet_id, deque()).append(waiting)
        self.count += 1

    def turn(self, most: int, now: float, is_gone: Callable[[T], bool]) -> list[T]:
        """Up to `most` of the first of each wallet, to be tried; `tried` has to follow.

        Those that `is_gone` says wait no more.
        """
        self.next_try = now + PAUSE_SECONDS
        for wallet_id, waiting in [*self._waiting.items()]:
            left = deque(one for one in waiting if not is_gone(one.item))
            self.count -= len(waiting) - len(left)
            if left:
                self._waiting[wallet_id] = left
            else:
                del self._waiting[wallet_id]
        if not self._waiting:
            return []
        each = max(1, most // len(self._waiting))
        found: list[T] = []
        for wallet_id, waiting in islice(self._waiting.items(), most):
            self._tried[wallet_id] = min(each, len(waiting))
            found += [one.item for one in islice(waiting, each)]
        return found

    def tried(self, still: Collection[tuple[str, int]], now: float) -> list[T]:
        """Take out those of the last turn, but for those that are `still` locked, and answer which
        of these have waited for too long.

        `still`: (id of the wallet that is locked, place in what `turn` answered).
        """
        locked = {place: wallet_id for wallet_id, place in still}
        at, too_long = 0, []
        for tried_id, count in self._tried.items():
            first = [self._waiting[tried_id].popleft() for _ in range(count)]
            self.count -= count
            kept = deque[Waiting[T]]()
            for place, one in enumerate(first, at):
                wallet_id = locked.get(place)
                if wallet_id is None:
                    continue
                if one.until <= now:
                    too_long.append(one.item)
                elif wallet_id == tried_id:
                    kept.append(one)
                else:  # the other wallet of a transfer is locked
                    self._append(wallet_id, one)
            at += count
            self.count += len(kept)
            # To the end, so that each wallet has its turn if there are more than one turn takes.
            rest = self._waiting.pop(tried_id)
            if kept or rest:
                self._waiting[tried_id] = kept + rest
        self._tried = {}
        return too_long

    def take_all(self) -> list[T]:
        """Remove and answer all waiting commands."""
        found = [one.item for waiting in self._waiting.values() for one in waiting]
        self._waiting, self._tried, self.count = {}, {}, 0
        return found
