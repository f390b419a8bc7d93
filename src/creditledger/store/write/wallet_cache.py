"""What a writer knows without reading it again: wallets with their open grants, and dimensions.

A batch takes its wallets out, because deciding changes them, and puts them back after COMMIT. The
writer knows whether a cached wallet is still right: SQLite has no other writer, and on PostgreSQL
the locked row of the wallet tells.
"""

from collections import OrderedDict
from collections.abc import Iterable

from creditledger.domain.model import Dimension, Wallet
from creditledger.store.write.batch import Loaded

#: Wallets, open grants, holds, unpaid events and limits, together, that are known without a read;
#: about 400 bytes each.
KNOWN_MAX = 60_000
#: Numbers of dimensions likewise, about 500 bytes each with their labels.
DIMENSIONS_KNOWN_MAX = 30_000


class Known:
    """The wallets used last, and the dimensions' numbers, which never change."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, Dimension], int] = {}
        self._wallets: OrderedDict[str, Wallet] = OrderedDict()  #: The one used last is last.
        self._values = 0

    def take(self, wallet_ids: Iterable[str]) -> dict[str, Wallet]:
        """Those of the wallets that are known, by id; no longer known."""
        taken = {}
        for wallet_id in wallet_ids:
            wallet = self._wallets.pop(wallet_id, None)
            if wallet is not None:
                taken[wallet_id] = wallet
                self._values -= _values(wallet)
        return taken

    def keep(self, loaded: Loaded) -> None:
        """The wallets of a batch that is committed, with no more grants and holds than are open."""
        for wallet_id, wallet in loaded.wallets.items():
            if len(wallet.grants) > len(wallet.burning):
                wallet.grants = {grant.number: grant for grant in wallet.burning}
            if wallet.holds:
                wallet.holds = {n: hold for n, hold in wallet.holds.items() if hold.ended is None}
            self._wallets[wallet_id] = wallet
            self._values += _values(wallet)
        while self._values > KNOWN_MAX:
            _, wallet = self._wallets.popitem(last=False)
            self._values -= _values(wallet)
        if len(self.numbers) > DIMENSIONS_KNOWN_MAX:
            self.numbers = {}

    def forget(self) -> None:
        """Forget everything, so that it is read again."""
        self.numbers = {}
        self._wallets.clear()
        self._values = 0


def _values(wallet: Wallet) -> int:
    held = len(wallet.holds) + len(wallet.unpaid)
    return 1 + len(wallet.burning) + held + len(wallet.limits)
