"""Limits of what one process does at the same time, and of the share of one customer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from creditledger.domain.errors import Overloaded

#: Calls of one customer that may wait for their turn.
WAITING_MAX = 64


class Places:
    """Places for long calls of one kind; a call holds a place for as long as it lasts.

    One customer may take a quarter of them. Another quarter is reserved for callers without a
    customer: the operator's own services and administrators.
    """

    def __init__(self, what: str, *, retry_after: str) -> None:
        """`what`: the name of the calls in a refusal. `retry_after`: seconds."""
        self._what = what
        self._retry_after = retry_after
        self._taken: Counter[str | None] = Counter()  #: By customer; None: callers without one.

    @contextmanager
    def one(self, most: int, customer_id: str | None) -> Iterator[None]:
        """Take a place. Raises Overloaded if `most` are taken, or the customer's share is."""
        quarter, taken = max(1, most // 4), self._taken.total()
        if taken >= most:
            raise self._refusal(f"{most} {self._what}")
        if customer_id is not None:
            if self._taken[customer_id] >= quarter:
                raise self._refusal(f"{quarter} {self._what} of this customer")
            if taken - self._taken[None] >= max(1, most - quarter):
                raise self._refusal(f"{most - quarter} {self._what} of customers")
        self._taken[customer_id] += 1
        try:
            yield
        finally:
            self._taken[customer_id] -= 1
            if not self._taken[customer_id]:
                del self._taken[customer_id]

    def _refusal(self, taken: str) -> Overloaded:
        return Overloaded(f"{taken} are under way already", retry_after=self._retry_after)


class Turns:
    """Bounds the calls of one customer that run at the same time. The other calls wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._under_way: Counter[str] = Counter()  #: By customer, with the waiting calls.

    @asynccontextmanager
    async def one(self, customer_id: str | None) -> AsyncIterator[None]:
        """A turn, at once for a caller without a customer. Raises Overloaded if too many wait."""
        if customer_id is None:
            yield
            return
        if self._under_way[customer_id] >= self._most + WAITING_MAX:
            raise Overloaded(f"{WAITING_MAX} calls of this customer wait already", retry_after="1")
        turns = self._turns.setdefault(customer_id, asyncio.Semaphore(self._most))
        self._under_way[customer_id] += 1
        try:
            async with turns:
                yield
        finally:
            self._under_way[customer_id] -= 1
            if not self._under_way[customer_id]:
                del self._under_way[customer_id], self._turns[customer_id]
