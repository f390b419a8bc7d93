"""What a client may ask of a wallet, as values: the operations of a posting, and changes.

Shape checked, not yet decided; amounts are still text, for their scale is known only under the
wallet's lock. Made by the API and the importer, decided by the rules. Imports the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from creditledger.domain import clock
from creditledger.domain.durations import Duration
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import Category, GrantScope, Kind, Period, Receipt, Status

#: Metadata a wallet may have, as a request may bring.
METADATA_KEYS_MAX = 50
METADATA_BYTES_MAX = 8_192
#: How far ahead a client's clock may run.
AHEAD_MS_MAX = 60 * clock.SECOND


class Usage(NamedTuple):
    """What was consumed. Belongs to the posting and counts once, however many grants paid."""

    api_key_id: str
    product_id: str
    product_name: str
    category: str
    billing_method: int
    quantities: tuple[int, ...]
    base_prices: tuple[int, ...]
    discount_prices: tuple[int, ...]
    price_precision: int


#: Kinds of grants that a payment is credited by.
PAYMENTS = (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW)


@dataclass(frozen=True, slots=True)
class GiveGrant:
    """Operation: give a lot of credit."""

    amount: str
    kind: Kind
    category: Category
    priority: int
    name: str | None
    begins_at: int | None
    expires_at: int | None
    source: Mapping[str, str]
    scope: GrantScope | None = None
    expires_after: Duration | None = None  #: Instead of expires_at: from when it begins.
    allow_repeated_receipt: bool = False  #: The receipt may have been credited before.

    @property
    def receipt(self) -> Receipt | None:
        """What was paid for it, if it says so: a wallet credits that once."""
        receipt_id = self.source.get("receipt_id")
        if not receipt_id or self.category is not Category.PAID or self.kind not in PAYMENTS:
            return None
        return Receipt(self.source.get("provider", ""), receipt_id)


@dataclass(frozen=True, slots=True)
class Consume:
    """Operation: spend credit in burn order."""

    amount: str
    meter_id: str | None = None
    meter_event_id: str | None = None
    subscription_id: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Adjust:
    """Operation: give or take credit by hand."""

    amount: str
    source: Mapping[str, str]
    credit_grant_id: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Refund:
    """Operation: return what a posting consumed, all that is left of it if amount is None."""

    posting_id: str
    amount: str | None = None
    force: bool = False  #: Admin keys only: give back what voided grants paid, too.


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """Operation: set credit aside, in burn order, until a deadline."""

    amount: str
    deadline: int | None  #: One of the two, or neither: the default.
    ttl_ms: int | None
    meter_id: str | None = None
    meter_event_id: str | None = None
    subscription_id: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """Operation: consume what a hold has set aside, all of it if amount is None."""

    hold_id: str
    amount: str | None = None
    final: bool = False  #: What is left is given back.
    allow_more: bool = False  #: Beyond the hold, what is available may be used.
    meter_event_id: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Operation: end a hold and give back what is left of it."""

    hold_id: str


@dataclass(frozen=True, slots=True)
class Extend:
    """Operation: a later deadline for a hold."""

    hold_id: str
    deadline: int | None
    ttl_ms: int | None


@dataclass(frozen=True, slots=True)
class VoidGrant:
    """Operation: take back what is left of a grant, and let nobody have it any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """Operation: move credit to another wallet of the same currency and mode."""

    to_wallet_id: str
    amount: str


@dataclass(frozen=True, slots=True)
class ReportEvent:
    """Operation: spend for what a meter counted, as far as there is credit; the rest is owed."""

    amount: str
    meter_id: str
    subscription_id: str | None = None


@dataclass(frozen=True, slots=True)
class CancelEvent:
    """Operation: take a meter event back, and return what was drawn for it."""

    id: str


OnHold = Capture | Release | Extend
Operation = (
    GiveGrant
    | Consume
    | Adjust
    | Refund
    | PlaceHold
    | OnHold
    | VoidGrant
    | Transfer
    | ReportEvent
    | CancelEvent
)

#: Stored as their index; the name is the one that clients know it by.
OPERATIONS: dict[type, tuple[int, str]] = {
    GiveGrant: (1, "grant"),
    Consume: (2, "consumption"),
    Adjust: (3, "adjustment"),
    Refund: (4, "refund"),
    PlaceHold: (6, "hold"),
    Capture: (7, "capture"),
    Release: (8, "release"),
    Extend: (9, "extend"),
    VoidGrant: (10, "void"),
    Transfer: (11, "transfer"),
    ReportEvent: (13, "meter_event"),
    CancelEvent: (15, "cancel"),
}
OPERATION_NAMES = dict(OPERATIONS.values())
#: The operation of a posting the ledger makes by itself, for expirations due.
EXPIRE = 5
#: That of the posting a transfer makes in the wallet which receives.
RECEIVE = 12
#: That of the ledger's own posting which pays what a meter event was still owed.
SETTLE = 14
#: That of the ledger's own posting which returns more of what a canceled event drew, or cancels the
#: unpaid events of a wallet that is closed.
RETURN = 16


class Command(NamedTuple):
    """One posting as a client asked for it, shape checked, not yet decided.

    Amounts are still text: their scale is known only under the wallet's lock. `source` of the
    operation is what was given; a missing actor is filled in from `actor` when it is written.
    """

    wallet_id: str
    idempotency_key: str
    operation: Operation
    livemode: bool | None  #: The mode its wallet must have; None: either.
    posted_by: int | None  #: Number of the API key that posts; None: the command line.
    actor: str  #: Its name: who did it, where the request does not say.
    description: str | None = None
    note: str | None = None
    metadata: Mapping[str, str] = {}  # a Mapping: nobody writes to it
    effective_at: int | None = None
    expected_sequence: int | None = None
    validate_only: bool = False
    backdating_free: bool = False  #: Admin keys and import reach behind the 35 days.


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the sweeper asks for: what every command does first, and to go on returning.

    That is what was drawn for a canceled meter event and did not fit into one posting.
    """

    wallet_id: str
    #: While something in the wallet has been due for less than this, nothing is written.
    grace_ms: int = 0


@dataclass(frozen=True, slots=True)
class WalletChange:
    """What UpdateWallet asks for; None leaves as it is. Empty metadata values remove their key."""

    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    overdraft_limit: str | None = None
    status: Status | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    cancel_unpaid: bool = False  #: Meter events that are not paid do not keep it from being closed.
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.


@dataclass(frozen=True, slots=True)
class GrantChange:
    """What is to change of a grant; None leaves as it is, an empty value removes its metadata key.

    Not `expires_at` and `never_expires` at once.
    """

    wallet_id: str
    id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    changed_by: int | None  #: Number of the API key that asks; None: the command line.
    name: str | None = None
    priority: int | None = None
    expires_at: int | None = None
    never_expires: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    expired: bool = False  #: The same request asks for it to be voided, which is a posting.


Change = WalletChange | GrantChange


@dataclass(frozen=True, slots=True)
class SetLimit:
    """What SetSpendLimit asks for: a limit of this kind with this amount, made or changed."""

    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    amount: str
    api_key_id: str | None
    period: Period
    time_zone: str | None  #: Of days, weeks and months, and only these.
    hours: int | None  #: Of rolling hours, and only these.
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.


@dataclass(frozen=True, slots=True)
class DropLimit:
    """What DeleteSpendLimit asks for."""

    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    spend_limit_id: str
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.


LimitChange = SetLimit | DropLimit
#: A change under an idempotency key is a posting without rows, of one of these operations.
CHANGES: dict[type, tuple[int, str]] = {
    WalletChange: (17, "wallet_change"),
    GrantChange: (18, "grant_change"),
    SetLimit: (19, "spend_limit"),
    DropLimit: (20, "spend_limit_deletion"),
}
#: To close a statement is another one.
CLOSE = (21, "statement")
CHANGE_NAMES = dict([*CHANGES.values(), CLOSE])
#: What the ledger may be asked for.
Asked = Command | Change | LimitChange | Sweep


def wallet_ids(asked: Asked) -> tuple[str, ...]:
    """The wallets that it changes: one, or both of a transfer."""
    if isinstance(asked, Command) and isinstance(asked.operation, Transfer):
        return asked.wallet_id, asked.operation.to_wallet_id
    return (asked.wallet_id,)


def merged(metadata: Mapping[str, str], change: Mapping[str, str]) -> dict[str, str]:
    """Metadata after a change of it. Raises InvalidField where it would become too much."""
    after = {name: value for name, value in {**metadata, **change}.items() if value}
    size = sum(len(k.encode()) + len(v.encode()) for k, v in after.items())
    if len(after) > METADATA_KEYS_MAX or size > METADATA_BYTES_MAX:
        raise InvalidField(
            f"metadata would pass {METADATA_KEYS_MAX} keys or {METADATA_BYTES_MAX} bytes",
            param="metadata",
        )
    return after
