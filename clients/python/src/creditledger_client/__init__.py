"""The client of creditledger, a ledger of prepaid credit.

`Client` is for threads, `AsyncClient` for asyncio, `Batcher` for high rates. A call that does not
end well raises a LedgerError.
"""

from creditledger_client.aio import AsyncClient, AsyncHold
from creditledger_client.batcher import Batcher, BatcherFull
from creditledger_client.client import Client, OpenHold
from creditledger_client.errors import (
    InsufficientCredit,
    LedgerError,
    NotFound,
    SpendLimitExceeded,
)

__all__ = [
    "AsyncClient",
    "AsyncHold",
    "Batcher",
    "BatcherFull",
    "Client",
    "InsufficientCredit",
    "LedgerError",
    "NotFound",
    "OpenHold",
    "SpendLimitExceeded",
]
