"""Webhooks: the events, their endpoints, their signatures and the times of their attempts.

Events follow from rows alone. A posting crosses a threshold or uses up a grant, however often and
in whichever pieces the rows are read, so nothing about earlier events is kept. Times are
milliseconds, amounts smallest units.
"""

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from creditledger.domain import clock
from creditledger.domain.model import Kind, Word

#: Endpoints that a customer, or the operator, may have in a mode, and thresholds of one.
ENDPOINTS_MAX, THRESHOLDS_MAX = 16, 10
#: Of grant.expiring.
EXPIRING_DAYS, EXPIRING_DAYS_MAX = 7, 90
#: The time in which a rotated secret still signs beside its successor.
OVERLAP_MS, OVERLAP_MS_MAX = clock.DAY, 7 * clock.DAY
#: For how long an event is tried; the pauses between, which double, and by what part of itself a
#: pause is shorter or longer, so that what failed together is not tried together.
TRYING_MS = clock.DAY
PAUSE_MS_MIN, PAUSE_MS_MAX = 5 * clock.SECOND, 4 * clock.HOUR
JITTER = 0.2

SIGNATURE_HEADER = "Creditledger-Signature"
EVENT_HEADER = "Creditledger-Event-Id"

#: What brings credit that percentages are of, and what spends it.
GIVING = (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT, Kind.TRANSFER_IN)
_SPENDS = frozenset({Kind.USAGE, Kind.TRANSFER_OUT})


class EventType(Word):
    """The type of an event. Stored as its number."""

    TRANSACTION_CREATED = 1
    BALANCE_LOW = 2
    BALANCE_RECOVERED = 3
    GRANT_EXPIRING = 4
    GRANT_DEPLETED = 5
    HOLD_EXPIRED = 6

    @property
    def word(self) -> str:
        """As the wire spells it."""
        return self.name.lower().replace("_", ".", 1)


#: Types of events that a threshold causes.
OF_BALANCE = frozenset({EventType.BALANCE_LOW, EventType.BALANCE_RECOVERED})


class DeliveryStatus(Word):
    """The state of a delivery. Stored as its number."""

    PENDING = 1
    DELIVERED = 2
    FAILED = 3


class Threshold(NamedTuple):
    """A balance that causes an event: an amount of a currency, or a part of the credit."""

    currency: str | None  #: Of the amount; None of a percentage.
    amount: int | None
    percent: int | None

    @property
    def key(self) -> str:
        """The key that tells a threshold from the others."""
        return f"{self.percent}%" if self.percent else f"{self.currency} {self.amount}"

    def is_low(self, balance: int, reference: int) -> bool:
        """Whether a balance is at it or below; `reference`: as credit last came in."""
        if self.percent is not None:
            return balance * 100 <= reference * self.percent
        assert self.amount is not None
        return balance <= self.amount


class Secret(str):
    """What signs. Where it is shown as a value, in an error for one, it is masked."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(mask(self))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that events are sent to."""

    number: int
    id: str
    customer_id: str | None  #: Whose wallets it hears of; None: of all.
    livemode: bool
    url: str
    description: str | None
    events: tuple[EventType, ...]
    thresholds: tuple[Threshold, ...]
    expiring_days: int
    enabled: bool
    secret: Secret  #: As it is stored: sealed, where the server has a key for that.
    previous_secret: Secret | None
    previous_until: int | None  #: The first moment at which that signs no more.
    since: int  #: When it was made or enabled ...
    begins: str  #: ... and where commit order stood then.
    created_at: int
    updated_at: int

    def hears(self, customer_id: str, livemode: bool) -> bool:
        """Whether it receives events of a wallet of this customer and mode."""
        return self.livemode == livemode and self.customer_id in (None, customer_id)

    def secrets(self, now: int) -> list[Secret]:
        """All secrets that sign at `now`."""
        if self.previous_secret is None or self.previous_until is None:
            return [self.secret]
        return [self.secret, self.previous_secret] if now < self.previous_until else [self.secret]


class Place(NamedTuple):
    """What an event is about, and what tells it from every other one of its endpoint."""

    type: EventType
    wallet: int
    subject: int  #: Sequence of a row, number of a grant or of a hold.
    variant: str = ""  #: The threshold that was crossed; the end that a grant expires at.


# --- secrets and signatures -----------------------------------------------------------------------


def new_secret() -> Secret:
    """A fresh secret."""
    return Secret("whsec_" + secrets.token_urlsafe(32))


def mask(secret: str) -> str:
    """The part of a secret that is shown later."""
    return f"whsec_****{secret[-4:]}"


def signature(body: bytes, keys: Iterable[str], now: int) -> str:
    """The header that proves the sender and the time: `t=…,v1=…`, one v1 for each key.

    v1 is the HMAC-SHA256, in hex, of the seconds of t, a dot, and the body.
    """
    seconds = now // clock.SECOND
    signed = f"{seconds}.".encode() + body
    proofs = (hmac.new(key.encode(), signed, hashlib.sha256).hexdigest() for key in keys)
    return ",".join([f"t={seconds}", *(f"v1={proof}" for proof in proofs)])


def next_attempt(now: int, give_up_at: int, chance: float) -> int | None:
    """The time of the next attempt after one failed at `now`; None: no more attempts.

    The pause is as long as it has been tried so far, which doubles it each time, within bounds;
    the last attempt is at the end of the day. `chance` is in [0, 1).
    """
    if now >= give_up_at:
        return None
    tried = now - (give_up_at - TRYING_MS)
    pause = min(max(tried, PAUSE_MS_MIN), PAUSE_MS_MAX)
    return min(now + int(pause * (1 - JITTER + 2 * JITTER * chance)), give_up_at)


# --- crossings ------------------------------------------------------------------------------------


class BalanceMove(NamedTuple):
    """The change that a row made to the balance of its wallet."""

    sequence: int
    posting: int
    kind: int
    balance: int  #: Behind the row.


class Crossing(NamedTuple):
    """A posting that took the balance across a threshold, down or up."""

    threshold: Threshold
    low: bool  #: At it or below now; else above.
    sequence: int  #: Of the posting's last row.
    balance: int


def crossings(
    before: tuple[int, int] | None, rows: Sequence[BalanceMove], thresholds: Iterable[Threshold]
) -> Iterator[Crossing]:
    """What whole postings did, one after the other: several rows of one are one step.

    `before`: balance and reference before the first of the rows; None where there was nothing: a
    wallet begins above every threshold. The reference is what the balance was behind the newest row
    of a grant or of a transfer that came in.
    """
    balance, reference = before or (0, 0)
    low = {
        one: before is not None and one.is_low(balance, reference)
        for one in dict.fromkeys(thresholds)
    }
    for i, row in enumerate(rows):
        if row.kind in GIVING:
            reference = row.balance
        if i + 1 < len(rows) and rows[i + 1].posting == row.posting:
            continue
        for threshold, was in low.items():
            now = threshold.is_low(row.balance, reference)
            if now != was:
                low[threshold] = now
                yield Crossing(threshold, now, row.sequence, row.balance)


# --- grants used up -------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The change that a row made to a grant."""

    sequence: int
    kind: int
    grant: int
    amount: int


def depletions(rows: Sequence[Drawn], remaining: Mapping[int, int]) -> list[Drawn]:
    """The rows that left nothing of their grant; `remaining`: of each behind the last row.

    What its end, a void or a correction takes uses up no grant.
    """
    left = dict(remaining)
    found = []
    for row in reversed(rows):
        if row.grant in left:
            if left[row.grant] == 0 and row.amount < 0 and row.kind in _SPENDS:
                found.append(row)
            left[row.grant] -= row.amount
    return found[::-1]
