"""The sweeper writes down expirations of wallets that no command has touched since they were due.

Every command on a wallet writes them first, and every read counts expired credit as gone. So only
the place and time of the rows depend on the sweeper: rows of a wallet without commands are in lists
and exports soon after they were due. No caller waits for it: it acts on what has been due for a
grace, and on nothing while the clock is in doubt. It goes through the ledger like any caller, and
after all others.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from creditledger.domain.commands import Sweep
from creditledger.domain.errors import Overloaded, WalletLocked
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.engine.ledger import Ledger
from creditledger.store import Store
from creditledger.store.read import due
from creditledger.store.read.due import What

log = structlog.get_logger()

#: Grants or holds looked up at a time, and wallets swept in one batch: a wallet has at most 1,000
#: open grants, and as a rule one of them is due.
PAGE, BATCH = 500, 50
#: The first pause while the ledger is busy; each further pause is twice as long.
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.5, 30.0


class Sweeper:
    """One per server; several servers on a database find what the others have left."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        clock: Callable[[], int],
        interval_seconds: float,
        grace_ms: int = 0,
        is_trusted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`grace_ms`: the time after which due work is done; `is_trusted`: whether the clock is."""
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._grace_ms = grace_ms
        self._is_trusted = is_trusted
        self.loop = BackgroundLoop(
            "sweeper", self._step, interval_seconds=interval_seconds, failure="sweep failed"
        )

    async def _step(self) -> None:
        await self.sweep()

    async def sweep_holds(self) -> int:
        """One pass over the holds that are over. Raises as `sweep` does."""
        return await self.sweep((due.HOLDS,))

    async def sweep(self, kinds: Sequence[What] = (due.GRANTS, due.HOLDS, due.RETURNS)) -> int:
        """Write down all that has been due for the grace, in one pass; how much that was.

        Nothing while the clock is in doubt. For canceled events the ledger goes on returning.
        Raises what the store raises, and Unavailable where the ledger is closing.
        """
        now = self._clock() - self._grace_ms
        written = 0
        if not self._is_trusted():
            return written
        for what in kinds:
            last = due.NOTHING
            while True:
                look = partial(due.due, what=what, now=now, after=last, size=PAGE)
                found = await self._store.read(look)
                wallets = list(dict.fromkeys(one.wallet_id for one in found))
                for at in range(0, len(wallets), BATCH):
                    written += await self._write_down(wallets[at : at + BATCH])
                if len(found) < PAGE:
                    break
                last = found[-1]
        if written:
            log.info("swept", written=written)
        return written

    async def _write_down(self, wallet_ids: Sequence[str]) -> int:
        pause = PAUSE_SECONDS
        while True:
            try:
                sweeps = [Sweep(wallet_id, self._grace_ms) for wallet_id in wallet_ids]
                answers = await self._ledger.sweep(sweeps)
            except Overloaded:
                await asyncio.sleep(pause)
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
                continue
            written = 0
            for answer in answers:
                if isinstance(answer, WalletLocked):
                    continue  # the holder of the lock writes it down, or the next sweep
                if isinstance(answer, Exception):
                    raise answer
                written += answer
            return written
