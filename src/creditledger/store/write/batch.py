"""What one write transaction reads and writes, as values: the store's half of the write path.

The engine fills `Wanted`, a writer answers `Loaded` under the wallets' locks, the rules decide,
and the writer stores `Changes`. The writers of both databases use these classes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from creditledger.domain import ids
from creditledger.domain.commands import RETURN, SETTLE, DropLimit, SetLimit
from creditledger.domain.errors import Refusal
from creditledger.domain.model import (
    NEVER,
    RETURNED_ROWS_MAX,
    Annotation,
    Dimension,
    Grant,
    GrantTerms,
    Hold,
    MeterEvent,
    Posting,
    Receipt,
    Row,
    SpendLimit,
    Status,
    Wallet,
)
from creditledger.domain.operations.meter_event import CancelEvent, ReportEvent
from creditledger.domain.overdraft import OverdraftDraw, Payer

#: Operations whose postings draw for a meter event: the report, and a settlement that pays later.
PAYS_EVENT = (ReportEvent.code, SETTLE)
#: Operations that cancel a meter event, or return more of the credit that it drew.
RETURNS_EVENT = (CancelEvent.code, RETURN)
#: Operations that set a spend limit or drop one under a key.
OF_LIMITS = (SetLimit.code, DropLimit.code)
#: The message of a read that finds no free connection.
TOO_MANY_READS = "too many reads at once; the database's connections are all in use"
#: The message for a database URL that cannot be read. It shows nothing of the URL, because any part
#: may belong to a password.
UNREADABLE = (
    "it is no database URL such as sqlite+aiosqlite:///./credit.db; special characters of a user"
    " or a password are written as %XX"
)
#: The message of a read whose sum is larger than the ledger accepts today.
SUM_TOO_LARGE = "a sum passes what 64 bits hold; narrow it by time, customer or currency"


class CannotOpen(Exception):
    """The database cannot be used as it is. The text is one sentence for the operator."""


class StoreUnavailable(Exception):
    """The database refused or did not answer before COMMIT; nothing was written."""


class WalletsLocked(Exception):
    """Another server locks a wallet for longer than a batch waits; nothing was written."""


class CommitFailed(Exception):
    """COMMIT itself failed: whether the batch is in the ledger has to be looked up."""

    def __init__(self, error: BaseException, transaction: str | None = None) -> None:
        """`transaction`: its id in the database; None if it was certainly undone."""
        super().__init__(error)
        self.transaction = transaction


class DiskFailed(Exception):
    """The disk failed: the process cannot rely on anything that it keeps in memory."""


class DroppedLimit(NamedTuple):
    """A deleted spend limit, as it was shown last."""

    limit: SpendLimit
    spent: int
    held: int
    resets_at: int | None
    dropped_at: int


@dataclass(slots=True)
class Loaded:
    """What the database has of the things a batch wants; read after the wallets are locked."""

    clock: int  #: The ledger's time; on PostgreSQL by the database's clock, read after the locks.
    wallets: dict[str, Wallet] = field(default_factory=dict)  #: By wallet id.
    #: Ids of wallets that another server has locked; they are not in `wallets`.
    locked: frozenset[str] = frozenset()
    postings: dict[tuple[int, str], Posting] = field(default_factory=dict)  #: By wallet and key.
    #: Postings to be refunded.
    originals: dict[tuple[int, int], Posting] = field(default_factory=dict)
    #: The other sides of transfers in `postings`, if their wallets belong to the batch.
    linked: dict[tuple[int, int], Posting] = field(default_factory=dict)
    #: Σ refunded of `originals`.
    refunded: dict[tuple[int, int], int] = field(default_factory=dict)
    #: Overdraft that rows of `originals` drew, by wallet and sequence.
    overdrafts: dict[tuple[int, int], OverdraftDraw] = field(default_factory=dict)
    payers: dict[int, list[Payer]] = field(default_factory=dict)  #: Grants that paid it back.
    meters: frozenset[str] = frozenset()
    inactive_meters: frozenset[str] = frozenset()  #: A subset of `meters`.
    subscriptions: dict[str, str] = field(default_factory=dict)  #: Id -> customer id.
    #: Dimensions of the postings.
    dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)
    numbers: dict[tuple[int, Dimension], int] = field(default_factory=dict)
    next_dimension: dict[int, int] = field(default_factory=dict)  #: By wallet.
    refused: Refusal | None = None  #: Why none of the batch may be carried out.
    #: By wallet and number: events that commands name, events that `originals` paid for, and
    #: canceled events whose credit is not yet returned in full.
    events: dict[tuple[int, int], MeterEvent] = field(default_factory=dict)
    #: The payments of events that may be canceled or returned further.
    payments: dict[tuple[int, int], "Payments"] = field(default_factory=dict)
    #: Metadata of the grants whose terms change, by wallet and number.
    words: dict[tuple[int, int], Mapping[str, str]] = field(default_factory=dict)
    #: Annotations of the holds that commands and replays name, by wallet and number.
    annotations: dict[tuple[int, int], Annotation] = field(default_factory=dict)
    #: Deleted limits that replays name, by wallet number and number.
    dropped: dict[tuple[int, int], DroppedLimit] = field(default_factory=dict)
    #: (grant number, posting number) of the grants that credited a receipt, oldest first, by wallet
    #: number and receipt.
    credited: dict[tuple[int, Receipt], list[tuple[int, int]]] = field(default_factory=dict)

    def named_holds(self, wanted: "Wanted") -> list[tuple[int, int]]:
        """(wallet number, hold number) of holds that commands and replays name."""
        own = {wallet.number for wallet in self.wallets.values()}
        found = {place for place in wanted.holds if place[0] in own}
        found |= {(p.wallet, p.hold) for p in self.postings.values() if p.hold is not None}
        return sorted(found)

    def receipt_places(self, wanted: "Wanted") -> list[tuple[int, str, str]]:
        """(wallet number, provider, receipt id) of what the batch may credit."""
        wallets = self.wallets
        return sorted((wallets[id_].number, *r) for id_, r in wanted.receipts if id_ in wallets)

    def held(self, wanted: "Wanted") -> list[tuple[int, int]]:
        """(wallet number, hold number) of named holds and those that count against a spend limit.

        The dimension of such a hold says against which limits it counts.
        """
        found = set(self.named_holds(wanted))
        for wallet in self.wallets.values():
            if wallet.limits or wallet.id in wanted.limited:
                found |= {(wallet.number, number) for number in wallet.holds}
        return sorted(found)

    def overdraft_places(self) -> list[tuple[int, int]]:
        """(wallet number, sequence) of rows to be returned that drew beyond the grants."""
        returned = [*self.originals.values()]
        for postings, _ in self.payments.values():
            returned += postings
        rows = [row for posting in returned for row in posting.rows]
        return sorted({(row.wallet, row.sequence) for row in rows if row.grant is None})

    def add_payers(self, payers: Iterable[Payer]) -> None:
        """Take grants that paid overdrafts back; one may come more than once."""
        for payer in dict.fromkeys(payers):
            self.payers.setdefault(payer.wallet, []).append(payer)

    def paying(self) -> list[tuple[int, int]]:
        """(wallet number, grant number) of the payers."""
        return sorted({(one.wallet, one.grant) for some in self.payers.values() for one in some})

    def dropped_limits(self) -> list[tuple[int, int]]:
        """(wallet number, limit number) of what `dropped` has to hold."""
        there = {(w.number, limit.number) for w in self.wallets.values() for limit in w.limits}
        named = {
            ids.resolve("spl", posting.source.get("spend_limit_id", ""))
            for posting in self.postings.values()
            if posting.operation in OF_LIMITS
        }
        return sorted(place for place in named if place is not None and place not in there)

    def other_sides(self) -> list[tuple[int, int]]:
        """(wallet number, posting number) of what `linked` has to hold."""
        own = {wallet.number for wallet in self.wallets.values()}
        places = {posting.linked for posting in self.postings.values() if posting.linked}
        return sorted(place for place in places if place[0] in own)

    def canceled(self, wanted: "Wanted") -> list[tuple[int, int]]:
        """(wallet number, event number) of events that may be canceled, of the batch's wallets."""
        own = {wallet.number for wallet in self.wallets.values()}
        found = {place for place in wanted.canceled if place[0] in own}
        for id_ in wanted.unpaid & self.wallets.keys():
            wallet = self.wallets[id_]
            found |= {(wallet.number, number) for number in wallet.unpaid}
        return sorted(found)

    def returnable(self) -> dict[tuple[int, int], int]:
        """Events whose credit may be returned, each with the sequence below which rows count."""
        return {
            place: NEVER if event.return_below is None else event.return_below
            for place, event in self.events.items()
            if event.canceled_at is None or event.return_below is not None
        }

    def add_payments(
        self, found: Mapping[tuple[int, int], "Settlements"], postings: list[Posting]
    ) -> None:
        """Take the postings that paid for events."""
        by_number = {(posting.wallet, posting.number): posting for posting in postings}
        for (wallet, event), (numbers, are_all) in found.items():
            paid = [by_number[wallet, number] for number in numbers]
            self.payments[wallet, event] = Payments([p for p in paid if p.rows], are_all)

    def metered(self) -> list[tuple[int, str]]:
        """(wallet number, identifier) of events that postings to be refunded paid for."""
        return sorted(
            (posting.wallet, posting.meter_event_id)
            for posting in self.originals.values()
            if posting.operation in PAYS_EVENT and posting.meter_event_id is not None
        )

    def dimensions_of(self, named: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """(wallet number, dimension number) of the holds that exist."""
        holds = {wallet.number: wallet.holds for wallet in self.wallets.values()}
        return sorted(
            {(w, holds[w][number].dimension) for w, number in named if number in holds[w]}
        )


class Payments(NamedTuple):
    """Postings that drew for a meter event, newest first, with their rows; what `refunded` has."""

    postings: list[Posting]
    are_all: bool  #: Whether there are no older ones that drew something.


class Settlements(NamedTuple):
    """Numbers of an event's newest postings, as many as one posting can return."""

    numbers: list[int]  #: Newest first.
    are_all: bool


def settlements(event: int, found: Iterable[tuple[int, int]]) -> Settlements:
    """Of the event's settlements, (number, row count) from the newest on, those to be returned.

    At most RETURNED_ROWS_MAX of them are looked up, and each has a row. The posting that reported
    the event is the oldest.
    """
    numbers: list[int] = []
    rows = 0
    for number, row_count in found:
        if rows >= RETURNED_ROWS_MAX:
            break
        numbers.append(number)
        rows += row_count
    else:
        if rows < RETURNED_ROWS_MAX:
            return Settlements([*numbers, event], are_all=True)
    return Settlements(numbers, are_all=False)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a batch needs before it can be decided. The order plays no part."""

    wallets: frozenset[str]
    keys: frozenset[tuple[str, str]]  #: (wallet id, idempotency key)
    meters: frozenset[str]
    subscriptions: frozenset[str]
    originals: frozenset[tuple[int, int]]  #: (wallet number, posting number)
    grants: frozenset[tuple[int, int]]  #: (wallet number, grant number) that commands name
    holds: frozenset[tuple[int, int]]  #: (wallet number, hold number) that commands name
    #: The dimensions that the batch may write under, known once the wallets and originals are
    #: loaded. One may come more than once.
    dimensions: Callable[[Loaded], Iterable[tuple[int, Dimension]]]
    limited: frozenset[str] = frozenset()  #: Wallet ids whose spend limits may change.
    revised: frozenset[tuple[int, int]] = frozenset()  #: A subset of `grants`: their terms change.
    receipts: frozenset[tuple[str, Receipt]] = (
        frozenset()
    )  #: By wallet id: receipts that may be credited.
    canceled: frozenset[tuple[int, int]] = frozenset()  #: (wallet number, event number)
    #: Wallet ids whose canceled events may return more credit.
    returning: frozenset[str] = frozenset()
    unpaid: frozenset[str] = frozenset()  #: Wallet ids whose unpaid events may be canceled.


class Revision(NamedTuple):
    """A hold as a posting left it."""

    wallet: int
    posting: int
    hold: Hold
    created_at: int


class CreditedReceipt(NamedTuple):
    """A receipt that a grant credits, in the order of its columns."""

    wallet: int
    grant: int
    provider: str
    receipt_id: str
    copy: int  #: 0 of the first grant; of one that repeats it, the grant's number.


class GrantPart(NamedTuple):
    """Credit that a row added to an existing grant, in the order of its columns."""

    wallet: int
    sequence: int  #: Of the row that says how much it is.
    grant: int
    overdraft_paid: int  #: Part of it that paid back an overdraft.


class GrantRevision(NamedTuple):
    """A grant's terms as a change left them."""

    wallet: int
    grant: int
    number: int  #: 0: as it was given; then 1, 2, 3 ...
    created_at: int
    changed_by: int | None
    posting: int | None  #: The one that voided it; None: no posting.
    terms: GrantTerms
    metadata: Mapping[str, str]


class GrantRepayment(NamedTuple):
    """What a grant paid back of overdraft as it began or ended."""

    wallet: int
    grant: int
    start: int  #: What it had repaid before, so that each has a place of its own.
    amount: int
    repaid_at: int  #: The moment at which it began or ended.
    created_at: int  #: When it was written down ...
    sequence: int  #: ... and the wallet's last row then.


@dataclass(slots=True)
class Changes:
    """What a decided batch writes, in the order of dependence."""

    touched: dict[int, Wallet] = field(default_factory=dict)  #: Their counters have moved on.
    #: Their limit, status or metadata has changed.
    terms: dict[int, Wallet] = field(default_factory=dict)
    dimensions: list[tuple[int, int, Dimension]] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)
    given: dict[tuple[int, int], Grant] = field(default_factory=dict)
    #: Grants drawn on or returned to, and whether credit remained before the batch.
    drawn: dict[tuple[int, int], tuple[Grant, bool]] = field(default_factory=dict)
    parts: list[GrantPart] = field(default_factory=list)
    #: Grants that `parts` added to.
    grown: dict[tuple[int, int], Grant] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    holds: dict[tuple[int, int], Hold] = field(default_factory=dict)  #: New or changed.
    revisions: list[Revision] = field(default_factory=list)  #: What they became.
    #: Spend limits that are new, changed or moved on; None: deleted.
    limits: dict[tuple[int, int], SpendLimit | None] = field(default_factory=dict)
    #: Deleted limits, as they were shown last.
    dropped: dict[tuple[int, int], DroppedLimit] = field(default_factory=dict)
    revised: dict[tuple[int, int], Grant] = field(default_factory=dict)  #: Grants with other terms.
    grant_revisions: list[GrantRevision] = field(default_factory=list)  #: What they became.
    #: Grants that repaid overdraft without a row.
    repaid: dict[tuple[int, int], Grant] = field(default_factory=dict)
    repayments: list[GrantRepayment] = field(default_factory=list)  #: Their repayments.
    #: New, paid or canceled.
    events: dict[tuple[int, int], MeterEvent] = field(default_factory=dict)
    #: Credited receipts by wallet and grant number; None: the receipt may be credited again.
    receipts: dict[tuple[int, int], CreditedReceipt | None] = field(default_factory=dict)
    #: Wallets whose overdraft has changed.
    overdrawn: dict[int, Wallet] = field(default_factory=dict)
    #: Overdraft that rows drew or gave back.
    overdrafts: dict[tuple[int, int], OverdraftDraw] = field(default_factory=dict)
    payers: list[Payer] = field(default_factory=list)  #: Grants that paid it back.
    #: (wallet number, sequence) of rows that give back promotional credit for overdraft.
    overdraft_returns: list[tuple[int, int]] = field(default_factory=list)

    def closed(self) -> list[Wallet]:
        """Wallets that the batch closed. A closed wallet does not change again."""
        return [wallet for wallet in self.terms.values() if wallet.status is Status.CLOSED]

    def hold(self, wallet: int, posting: int | None, hold: Hold, now: int) -> None:
        """Write the hold as it is from now on. A hold that ends at its deadline has no posting."""
        self.holds[wallet, hold.number] = hold
        if posting is not None:
            self.revisions.append(Revision(wallet, posting, hold, now))

    def __bool__(self) -> bool:
        return bool(
            self.rows
            or self.terms
            or self.holds
            or self.events
            or self.limits
            or self.revised
            or self.repaid
        )
