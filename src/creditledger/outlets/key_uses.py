"""Writes down when API keys were used, behind the calls that used them."""

from collections.abc import Callable
from functools import partial

from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store
from creditledger.store.registry import records

#: How often it looks for uses. What is written is an hour apart for a key all the same.
EVERY_SECONDS = 60.0


class KeyUses:
    """The task of one server."""

    def __init__(self, store: Store, take: Callable[[], dict[int, int]]) -> None:
        """`take` answers the uses since it was called last, by number of the key."""
        self._store = store
        self._take = take
        self.loop = BackgroundLoop(
            "key uses", self.write, interval_seconds=EVERY_SECONDS, failure="key uses not written"
        )

    async def write(self) -> None:
        """Write down what there is. If that fails, keys in use tell again."""
        uses = self._take()
        if uses:
            await self._store.write(partial(records.write_uses, uses=uses))
