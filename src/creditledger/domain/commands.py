"""The requests to a wallet, as values: postings, changes, and the sweep.

A posting is a `Command` around one operation; `domain/operations/` has a file for each. Amounts are
still text here, because their scale is known only under the wallet's lock.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from creditledger.domain import clock, ids, money
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import (
    Annotation,
    Dimension,
    Grant,
    GrantTerms,
    Hold,
    MeterEvent,
    Period,
    Posting,
    Receipt,
    Row,
    Status,
    Wallet,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer
from creditledger.domain.wallet_moves import Move

#: Limits of a wallet's metadata; those of a request are the same.
METADATA_KEYS_MAX = 50
METADATA_BYTES_MAX = 8_192
#: How far ahead a client's clock may run.
AHEAD_MS_MAX = 60 * clock.SECOND

#: Codes of postings that the ledger makes by itself. This one writes expirations that are due.
EXPIRE = 5
#: The posting of a transfer in the wallet that receives.
RECEIVE = 12
#: Pays an unpaid meter event.
SETTLE = 14
#: Returns more draws of a canceled event, or cancels the unpaid events of a wallet that is closed.
RETURN = 16

#: Wallet number and number within the wallet.
Place = tuple[int, int]


@dataclass(slots=True)
class Wants:
    """What the store has to load to decide commands."""

    wallets: set[str] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)  #: (wallet id, idempotency key)
    meters: set[str] = field(default_factory=set)
    subscriptions: set[str] = field(default_factory=set)
    originals: set[Place] = field(default_factory=set)  #: Postings to be refunded.
    grants: set[Place] = field(default_factory=set)
    revised: set[Place] = field(default_factory=set)  #: Grants whose terms change.
    holds: set[Place] = field(default_factory=set)
    canceled: set[Place] = field(default_factory=set)  #: Meter events.
    receipts: set[tuple[str, Receipt]] = field(default_factory=set)  #: By wallet id.
    limited: set[str] = field(default_factory=set)  #: Wallet ids whose spend limits may change.
    #: Wallet ids whose canceled events with draws still to return have to be loaded.
    returning: set[str] = field(default_factory=set)
    #: Wallet ids whose unpaid events may be canceled.
    unpaid: set[str] = field(default_factory=set)


def add_place(places: set[Place], prefix: str, id_: str) -> None:
    """Add the place that this id names, if the id is well-formed."""
    place = ids.resolve(prefix, id_)
    if place is not None:
        places.add(place)


class Named(Protocol):
    """What is loaded in the first step of loading: the things that commands name."""

    @property
    def wallets(self) -> Mapping[str, Wallet]: ...
    @property
    def originals(self) -> Mapping[Place, Posting]: ...
    @property
    def dimensions(self) -> Mapping[Place, Dimension]: ...


@dataclass(frozen=True, slots=True)
class Original:
    """A posting whose draws may be returned: its rows, oldest first, and the returned amount."""

    rows: Sequence[Row]
    dimension: Dimension | None  #: None of a posting without rows.
    refunded: int
    meter_event_id: str | None = None  #: The meter event that it paid for.
    #: Its rows that drew beyond the grants, by sequence.
    overdrafts: Mapping[int, OverdraftDraw] = field(default_factory=dict)


class Credited(NamedTuple):
    """A grant, not voided, that credited a receipt."""

    grant: int
    posting: int


class EventPayments(NamedTuple):
    """Postings that drew for a meter event, newest first, with draws not yet returned."""

    originals: Sequence[Original]
    are_all: bool  #: Whether there are no older ones.


@dataclass(frozen=True, slots=True)
class References:
    """The existing things that the commands of a batch refer to, in their current state."""

    meters: frozenset[str] = frozenset()
    subscriptions: Mapping[str, str] = field(default_factory=dict)  #: Id -> customer id.
    originals: dict[Place, Original] = field(default_factory=dict)
    inactive_meters: frozenset[str] = frozenset()  #: Those of the meters that count nothing new.
    #: By wallet number and receipt, oldest first: the grants that have credited it.
    credited: dict[tuple[int, Receipt], list[Credited]] = field(default_factory=dict)
    #: Grants that paid back the overdrafts of the originals, by wallet number.
    payers: Mapping[int, Sequence[Payer]] = field(default_factory=dict)
    dimensions: Mapping[Place, Dimension] = field(default_factory=dict)
    annotations: Mapping[Place, Annotation] = field(default_factory=dict)  #: Of holds.
    events: Mapping[Place, MeterEvent] = field(default_factory=dict)
    #: The payments of an event that may be canceled.
    payments: Callable[[Wallet, MeterEvent], EventPayments] = lambda _, __: EventPayments([], True)


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


#: Stands for a command without usage.
PLAIN_USAGE = Usage("", "", "", "", 1, (), (), (), 1)


class Case(NamedTuple):
    """A command to decide, with its wallet, the time, and the things that the command names."""

    command: "Command"
    wallet: Wallet
    amount: int | None  #: The operation's, in smallest units; None: it has none, or it is "all".
    now: int  #: The wallet's time.
    known: References
    backdating_ms_max: int
    #: Lifetime of promotional credit that comes back after its grant has ended.
    returned_ms: int
    receiver: Wallet | None = None  #: Of a transfer; None if the caller may post to no such one.
    received_at: int = 0  #: The receiver's time.


class Decision(NamedTuple):
    """The effects of a posting: its moves, and the new state of the things that it names."""

    moves: list[Move]
    dimension: Dimension  #: The dimension of its rows.
    source: Mapping[str, str] = {}  # a Mapping: nobody writes to it
    quantities: tuple[int, ...] = ()  #: What was consumed, of a posting with usage.
    meter_event_id: str | None = None
    refund_of: int | None = None  #: Number of the posting that it refunds.
    words: Annotation | None = None  #: Replaces the command's own description and metadata.
    #: `spends`: smallest units that spend limits must have left. `frees`: (API key, smallest
    #: units) that a hold no longer sets aside.
    spends: int = 0
    frees: tuple[str, int] = "", 0
    returned: Sequence[tuple[Row, int]] = ()  #: (row that drew, amount that comes back).
    held: Hold | None = None  #: The hold before the posting.
    hold: Hold | None = None  #: The hold after it; its number is 0 if the posting makes it.
    revised: Grant | None = None  #: The grant that gets new terms, ...
    terms: GrantTerms | None = None  #: ... and these terms.
    event: MeterEvent | None = None  #: The event after it; number 0 if the posting reports it.
    receipt: Receipt | None = None  #: The receipt that the new grant credits.
    received: "Decision | None" = None  #: What a transfer does to the other wallet.
    is_done: bool = False  #: Another posting already did this. Nothing is written.


class Operation(ABC):
    """What a posting does. Each operation is a file of `domain/operations/`."""

    __slots__ = ()
    code: ClassVar[int]  #: The stored code.
    word: ClassVar[str]  #: The name that clients see.
    has_amount: ClassVar[bool] = True
    #: Whether `effective_at` of the command is the time of its rows. A grant checks its own time.
    has_time: ClassVar[bool] = True
    has_rows_answered: ClassVar[bool] = True  #: Its rows take room in the answer.
    amount: str | None  #: Of an operation that has an amount. None: all that is left.

    @property
    def receiver_id(self) -> str | None:
        """Id of the other wallet that it posts to."""
        return None

    @property
    def is_forced(self) -> bool:
        """Whether it needs an admin key."""
        return False

    def want(self, wallet_id: str, wants: Wants) -> None:  # noqa: B027 # none, if it names none
        """Add the things that it names."""

    @property
    def dimension(self) -> Dimension:
        """The dimension of its rows, if the request alone determines it."""
        raise NotImplementedError

    def dimensions(self, wallet: Wallet, named: Named) -> Iterator[tuple[int, Dimension]]:
        """The dimensions, each with its wallet number, that the posting may write under."""
        yield wallet.number, self.dimension

    def units(self, scale: int) -> int | None:
        """The amount in smallest units. Raises InvalidField."""
        if not self.has_amount or self.amount is None:
            return None
        return money.parse(self.amount, scale, field="amount")

    def terms(self, command: "Command") -> dict[str, object]:
        """The attributes of the command that neither rows nor columns of the posting hold."""
        fields: dict[str, object] = {}
        for name in attributes(type(self)):
            value = getattr(self, name)
            if isinstance(value, Usage):
                fields[name] = True
                for key, part in value._asdict().items():
                    if part != getattr(PLAIN_USAGE, key):
                        fields[f"{name}.{key}"] = [*part] if isinstance(part, tuple) else part
            elif name != "amount":
                fields[name] = value or None
        return fields

    def told(self, command: "Command") -> dict[str, object]:
        """The attributes, without the amount, that rows and columns of the posting hold."""
        return {
            "description": command.description,
            "note": command.note,
            "metadata": dict(command.metadata),
        }

    @staticmethod
    def told_by(posting: Posting, dimension: Dimension | None) -> dict[str, object]:
        """`told` of the command that became this posting."""
        return {
            "description": posting.description,
            "note": posting.note,
            "metadata": dict(posting.metadata),
        }

    def spends(self, amount: int | None) -> bool:
        """Whether a frozen wallet refuses it."""
        return False

    def event(self, wallet: Wallet, events: Mapping[Place, MeterEvent]) -> MeterEvent | None:
        """The meter event that its answer shows again on a replay."""
        return None

    def check(self, case: Case) -> None:  # noqa: B027 # nothing, if it names nothing
        """Raises NotFound or MeterInactive for a named thing that cannot be used."""

    @abstractmethod
    def decide(self, case: Case) -> Decision:
        """The decision. Raises a Refusal. Changes nothing."""


def attributes(operation: type[Operation]) -> tuple[str, ...]:
    """Names of an operation's attributes."""
    return operation.__slots__


class Command(NamedTuple):
    """One posting as a client requested it: its shape is checked, it is not yet decided.

    Amounts are still text: their scale is known only under the wallet's lock. The operation's
    `source` is the client's; the decision takes a missing actor from `actor`.
    """

    wallet_id: str
    idempotency_key: str
    operation: Operation
    livemode: bool | None  #: The mode its wallet must have; None: either.
    posted_by: int | None  #: Number of the API key that posts; None: the command line.
    actor: str  #: Name of that key: the actor, unless the request names one.
    description: str | None = None
    note: str | None = None
    metadata: Mapping[str, str] = {}  # a Mapping: nobody writes to it
    effective_at: int | None = None
    expected_sequence: int | None = None
    validate_only: bool = False
    backdating_free: bool = False  #: Admin keys and import may backdate beyond the 35 days.
    is_brief: bool = False  #: The answer shows no rows: no part of what a retry is compared by.

    @property
    def wallet_ids(self) -> tuple[str, ...]:
        """The wallets that it changes."""
        receiver_id = self.operation.receiver_id
        return (self.wallet_id,) if receiver_id is None else (self.wallet_id, receiver_id)

    def want(self, wants: Wants) -> None:
        """What it needs to be decided."""
        wants.wallets.add(self.wallet_id)
        wants.keys.add((self.wallet_id, self.idempotency_key))
        self.operation.want(self.wallet_id, wants)


class _OneWallet:
    """A request to one wallet that is not a posting."""

    __slots__ = ()
    wallet_id: str

    @property
    def wallet_ids(self) -> tuple[str, ...]:
        """The wallets that it changes."""
        return (self.wallet_id,)

    def want(self, wants: Wants) -> None:
        """What it needs to be decided."""
        wants.wallets.add(self.wallet_id)


@dataclass(frozen=True, slots=True)
class Sweep(_OneWallet):
    """The sweeper's request: write down ends that are due, then return more of a canceled event.

    More is to be returned where the draws of the event did not fit into one posting.
    """

    wallet_id: str
    #: Nothing is written while something in the wallet became due less than this time ago.
    grace_ms: int = 0

    def want(self, wants: Wants) -> None:
        """Its canceled events, too."""
        wants.wallets.add(self.wallet_id)
        wants.returning.add(self.wallet_id)


class Change(_OneWallet, ABC):
    """A change of terms. Under an idempotency key it becomes a posting without rows."""

    __slots__ = ()
    code: ClassVar[int]  #: The operation of that posting, as it is stored ...
    word: ClassVar[str]  #: ... and its name.
    livemode: bool | None
    idempotency_key: str | None
    changed_by: int | None

    def want(self, wants: Wants) -> None:
        """What it needs to be decided."""
        wants.wallets.add(self.wallet_id)
        if self.idempotency_key is not None:
            wants.keys.add((self.wallet_id, self.idempotency_key))

    @abstractmethod
    def terms(self, scale: int) -> dict[str, object]:
        """The fields of the request. Raises InvalidField for an amount's digits."""


@dataclass(frozen=True, slots=True)
class WalletChange(Change):
    """A change of a wallet's terms. None leaves a term. An empty metadata value removes its key."""

    code, word = 17, "wallet_change"
    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    overdraft_limit: str | None = None
    status: Status | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    cancel_unpaid: bool = False  #: Closing cancels unpaid meter events, which else prevent it.
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.

    def want(self, wants: Wants) -> None:
        """For a wallet to be closed, add its events too."""
        Change.want(self, wants)
        if self.status is Status.CLOSED:
            wants.returning.add(self.wallet_id)
            if self.cancel_unpaid:
                wants.unpaid.add(self.wallet_id)

    def terms(self, scale: int) -> dict[str, object]:
        """The fields of the request."""
        limit = self.overdraft_limit
        return {
            "overdraft_limit": None
            if limit is None
            else money.parse(limit, scale, field="overdraft_limit"),
            "status": self.status and self.status.word,
            "metadata": dict(self.metadata),
            "cancel_unpaid": self.cancel_unpaid or None,
        }


@dataclass(frozen=True, slots=True)
class GrantChange(Change):
    """A change of a grant's terms. None leaves a term. An empty metadata value removes its key.

    `expires_at` and `never_expires` exclude each other.
    """

    code, word = 18, "grant_change"
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

    def want(self, wants: Wants) -> None:
        """The grant, too."""
        Change.want(self, wants)
        add_place(wants.revised, "cg", self.id)

    def terms(self, scale: int) -> dict[str, object]:
        """The fields of the request."""
        return {
            "id": self.id,
            "name": self.name,
            "priority": self.priority,
            "expires_at": self.expires_at,
            "never_expires": self.never_expires or None,
            "metadata": dict(self.metadata),
            "expired": self.expired or None,
        }


class LimitChange(Change):
    """A change of a wallet's spend limits."""

    __slots__ = ()

    def want(self, wants: Wants) -> None:
        """The holds that count against them, too."""
        Change.want(self, wants)
        wants.limited.add(self.wallet_id)


@dataclass(frozen=True, slots=True)
class SetLimit(LimitChange):
    """What SetSpendLimit asks for: a limit of this kind with this amount, made or changed."""

    code, word = 19, "spend_limit"
    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    amount: str
    api_key_id: str | None
    period: Period
    time_zone: str | None  #: Of days, weeks and months, and only these.
    hours: int | None  #: Of rolling hours, and only these.
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.

    def terms(self, scale: int) -> dict[str, object]:
        """The fields of the request."""
        return {
            "amount": money.parse(self.amount, scale, field="amount"),
            "api_key_id": self.api_key_id,
            "period": self.period.word,
            "time_zone": self.time_zone,
            "hours": self.hours,
        }


@dataclass(frozen=True, slots=True)
class DropLimit(LimitChange):
    """What DeleteSpendLimit asks for."""

    code, word = 20, "spend_limit_deletion"
    wallet_id: str
    livemode: bool | None  #: The mode its wallet must have; None: either.
    spend_limit_id: str
    idempotency_key: str | None = None
    changed_by: int | None = None  #: Number of the API key that asks; None: the command line.

    def terms(self, scale: int) -> dict[str, object]:
        """The fields of the request."""
        return {"spend_limit_id": self.spend_limit_id}


#: Closing a statement under a key is also a posting without rows.
CLOSE = (21, "statement")
CHANGE_NAMES = dict(
    [*((one.code, one.word) for one in (WalletChange, GrantChange, SetLimit, DropLimit)), CLOSE]
)
#: Every request to the ledger.
Asked = Command | Change | Sweep


def present(fields: Mapping[str, object]) -> dict[str, object]:
    """The fields without absent and empty ones, which count as the same."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}


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
