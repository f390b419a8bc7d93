"""What a server does without being asked: it sweeps, folds, sends webhooks, notes uses of keys."""

from contextlib import AsyncExitStack

from creditledger.api.auth import Callers
from creditledger.domain import clock as time
from creditledger.engine.ledger import Ledger
from creditledger.ops.config import Config
from creditledger.outlets.folder import Folder
from creditledger.outlets.key_uses import KeyUses
from creditledger.outlets.sweeper import Sweeper
from creditledger.outlets.webhooks.deliverer import Deliverer
from creditledger.outlets.webhooks.notifier import Notifier
from creditledger.store import Store
from creditledger.store.ledger_clock import LedgerClock
from creditledger.store.sealing import Seal


class BackgroundTasks:
    """The tasks of one process, as its settings have them."""

    def __init__(
        self,
        config: Config,
        store: Store,
        ledger: Ledger,
        callers: Callers,
        ledger_clock: LedgerClock,
        seal: Seal,
    ) -> None:
        clock = ledger_clock.now
        self._config = config
        self._running = AsyncExitStack()
        self.sweeper = Sweeper(
            store,
            ledger,
            clock=clock,
            interval_seconds=config.sweep_interval_seconds,
            grace_ms=round(config.sweep_grace_seconds * time.SECOND),
            is_trusted=lambda: ledger_clock.is_trusted,
        )
        self.key_uses = KeyUses(store, callers.take_uses)
        self.folder = Folder(store, interval_seconds=config.fold_interval_seconds)
        # Without places it is not started.
        self.deliverer = Deliverer(
            store,
            clock=clock,
            connections=config.webhook_connections or 1,
            seal=seal,
            allow_private=config.webhook_allow_private,
            retention_ms=config.webhook_retention_days * time.DAY,
        )
        self.notifier = Notifier(
            store,
            clock=clock,
            sweep_holds=self.sweeper.sweep_holds,
            on_made=self.deliverer.loop.wake,
        )

    def start(self) -> None:
        """Begin with what the settings say."""
        if self._config.sweep_interval_seconds:
            self.sweeper.loop.start()
            self._running.push_async_callback(self.sweeper.loop.stop)
        if self._config.fold_interval_seconds:
            self.folder.loop.start()
            self._running.push_async_callback(self.folder.loop.stop)
        self.key_uses.loop.start()
        self._running.push_async_callback(self.key_uses.loop.stop)
        self._running.push_async_callback(self.deliverer.stop)
        self._running.push_async_callback(self.notifier.loop.stop)
        if self._config.webhook_connections:
            self.deliverer.loop.start()
            self.notifier.loop.start()
            self.look_for_webhooks()

    async def stop(self) -> None:
        """End all of it; what is under way is done or it is not."""
        await self._running.aclose()

    def look_for_webhooks(self) -> None:
        """Look at once: there is something to be made or sent."""
        self.notifier.loop.wake()
        self.deliverer.loop.wake()
