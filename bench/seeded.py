"""Ledgers that are made up, small ones and large ones."""

import asyncio
import time
from dataclasses import dataclass

from bench.databases import Home
from bench.seed.fill import fill

DAYS = 365
SMALL, LARGE = 10_000, 10_000_000
#: Of the ledgers of many.
WALLETS = 10_000
#: As few rows as hold all that a wallet of the large ledger has: three open grants, and some usage.
ROWS_LEAST = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A ledger of so many rows of so many wallets."""

    name: str
    rows: int
    wallets: int

    def make(self, home: Home) -> float | None:
        """Make it unless it is there; rows a second. Raises Failed."""
        if home.has(self.name):
            return None
        # An interrupted seed is neither empty nor whole, so it does not get the name.
        part = f"{self.name}_part"
        home.drop(part)
        url = home.make(part)
        began = time.perf_counter()
        size = {"rows": self.rows, "wallets": self.wallets, "days": DAYS}
        asyncio.run(fill(url, **size, on_progress=lambda *_: None))
        seconds = time.perf_counter() - began
        home.rename(part, self.name)
        return self.rows / seconds


def many_small(wallets: int) -> Shape:
    """Many wallets that have next to nothing."""
    return Shape("many_small", ROWS_LEAST * wallets, wallets)


def many_large(rows: int, wallets: int) -> Shape:
    """As many wallets, that have much."""
    return Shape("many_large", rows, wallets)
