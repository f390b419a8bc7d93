"""What is registered beside wallets: currencies, customers, meters, subscriptions, API keys.

Values without rules. Times are milliseconds (UTC).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from creditledger.domain.model import Word


class Scope(Word):
    """What an API key may do; each includes the ones before it. Stored as its number."""

    CUSTOMER = 1
    SERVICE = 2
    ADMIN = 3


@dataclass(frozen=True, slots=True)
class Currency:
    """A unit with a fixed number of digits after the point."""

    code: str
    scale: int
    name: str


@dataclass(frozen=True, slots=True)
class Customer:
    """Who owns wallets."""

    id: str
    name: str
    email: str
    metadata: Mapping[str, str]
    created_at: int
    updated_at: int | None = None  #: None: it was never changed.
    archived_at: int | None = None  #: None: it is not.


@dataclass(frozen=True, slots=True)
class CustomerFilters:
    """What a list of customers is narrowed to; None does not narrow."""

    customer_id: str | None = None
    email: str | None = None  #: Whatever the case of ASCII letters.
    q: str | None = None  #: What id, name or e-mail address holds, whatever the case.
    archived: bool = False  #: Archived ones too.


@dataclass(frozen=True, slots=True)
class Meter:
    """What is metered."""

    id: str
    name: str
    event_name: str
    unit: str
    currency: str | None
    metadata: Mapping[str, str]
    created_at: int
    active: bool = True  #: Nothing new is counted by one that is not.
    description: str | None = None
    updated_at: int | None = None  #: None: when it was made.


@dataclass(frozen=True, slots=True)
class Subscription:
    """A customer's plan, as far as the ledger needs to know of it."""

    id: str
    customer_id: str
    name: str
    metadata: Mapping[str, str]
    created_at: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client's credential without its secret."""

    number: int  #: What postings record: 1, 2, 3 ... in order of creation.
    id: str
    name: str
    scope: Scope
    customer_id: str | None
    livemode: bool
    mask: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    is_session: bool  #: A code opened it; else it was made.
    last_used_at: int | None  #: Written at most once an hour.


@dataclass(frozen=True, slots=True)
class SessionCode:
    """What a code opens a session for, once and until it expires. The code itself is a secret."""

    scope: Scope
    customer_id: str | None
    livemode: bool
    expires_at: int
