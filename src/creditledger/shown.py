"""What lists show of a credit transaction beside its row."""

from dataclasses import dataclass

from creditledger.model import Dimension, Grant, Posting, Row


@dataclass(frozen=True, slots=True)
class WalletPlace:
    """Which wallet a transaction is on, and how its amounts read."""

    id: str
    customer_id: str
    currency: str
    scale: int
    livemode: bool


@dataclass(frozen=True, slots=True)
class Transaction:
    """One credit transaction with all that a list shows of it."""

    row: Row
    posting: Posting  #: Without its rows.
    dimension: Dimension
    wallet: WalletPlace
    customer: tuple[str, str]  #: Name and e-mail address.
    meter_name: str | None
    grant: Grant | None
