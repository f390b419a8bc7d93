"""What lists show of a credit transaction, and of a grant, beside its row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from creditledger.domain import ids
from creditledger.domain.model import Annotation, Dimension, Grant, Hold, MeterEvent, Posting, Row


@dataclass(frozen=True, slots=True)
class WalletPlace:
    """Which wallet a transaction is on, and how its amounts read."""

    id: str
    customer_id: str
    currency: str
    scale: int
    livemode: bool
    rows_before: int = 0  #: Of the customer's earlier wallets; only exports read it.


class TransactionMeter(NamedTuple):
    """What a list shows of a meter beside its id."""

    name: str
    event_name: str
    unit: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """One credit transaction with all that a list shows of it."""

    row: Row
    posting: Posting  #: Without its rows.
    dimension: Dimension
    wallet: WalletPlace
    customer: tuple[str, str]  #: Name and e-mail address.
    currency_name: str
    meter: TransactionMeter | None  #: Of the row, else of its event.
    grant: Grant | None
    event: MeterEvent | None  #: That its posting reports, pays or cancels, as it is now.


class Movement(NamedTuple):
    """One credit transaction with what a bank's statement would show of it."""

    row: Row
    posting: Posting  #: Without its rows.
    scale: int  #: Of its currency.


class HeldCredit(NamedTuple):
    """A hold with all that is shown of it."""

    hold: Hold
    wallet: WalletPlace
    dimension: Dimension  #: What its captures are added up by.
    annotation: Annotation


@dataclass(frozen=True, slots=True)
class GivenGrant:
    """A grant with all that is shown of it, at the time of its wallet."""

    wallet_number: int
    grant: Grant  #: With what open holds have of it.
    wallet: WalletPlace
    customer: tuple[str, str]  #: Name and e-mail address.
    now: int  #: The wallet's time.
    kind: int  #: Of the row that made it.
    posting: Posting  #: That gave it; without its rows.
    metadata: Mapping[str, str]
    updated_at: int  #: When its terms last changed.


def source(
    said: Mapping[str, str], wallet: int, refund_of: int | None, linked: tuple[int, int] | None
) -> Mapping[str, str]:
    """Where a posting of this wallet number came from: what it says, and the posting it names.

    `refund_of`: number of the posting that it refunds; `linked`: wallet number and posting number
    of a transfer's other side.
    """
    if refund_of is not None:
        return {"posting_id": ids.compose("pst", wallet, refund_of)}
    if linked is not None:
        return {**said, "posting_id": ids.compose("pst", *linked)}
    return said
