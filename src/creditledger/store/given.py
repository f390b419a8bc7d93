"""Reading grants page by page, with what is shown of each beside its terms.

Functions of a SQLAlchemy connection on one snapshot. What a grant is depends on the time: `clock`
is the caller's, and the time of a wallet is never before its last posting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    case,
    func,
    literal,
    not_,
    or_,
    select,
)

from creditledger.model import Grant
from creditledger.registry import Currency
from creditledger.shown import WalletPlace
from creditledger.store import schema
from creditledger.store.dialects import holds
from creditledger.store.lists import fold
from creditledger.store.reads import OF_POSTING
from creditledger.store.values import GRANT_COLUMNS, grant_value, load

_g, _w, _s = schema.grants.c, schema.wallets.c, schema.wallet_states.c
_t, _p, _k = schema.transactions.c, schema.postings.c, schema.currencies.c

#: What a grant can be, in the order in which it is told: the first that is so.
STATUSES = ("expired", "depleted", "pending", "granted")


class Given(NamedTuple):
    """A grant, at the time of its wallet."""

    wallet_number: int
    grant: Grant
    wallet: WalletPlace
    now: int
    metadata: dict[str, str]
    currency: Currency

    @property
    def status(self) -> str:
        """What it is now."""
        if self.grant.has_ended(self.now):
            return "expired"
        if not self.grant.remaining:
            return "depleted"
        return "pending" if self.grant.effective_at > self.now else "granted"


@dataclass(frozen=True, slots=True)
class GivenFilters:
    """What a list is narrowed to; None does not narrow."""

    livemode: bool
    customer_id: str | None = None
    currency: str | None = None
    statuses: tuple[str, ...] = ()  #: Of STATUSES; empty: all.
    q: str | None = None


_FROM = (
    schema.grants.join(schema.wallets, _w.number == _g.wallet_number)
    .join(schema.wallet_states, _s.wallet_number == _g.wallet_number)
    .join(schema.currencies, _k.code == _w.currency)
)
_GIVEN = select(
    _g.wallet_number,
    *(_g[name] for name in GRANT_COLUMNS),
    *(_w.id, _w.customer_id, _w.currency, _k.scale, _w.livemode),
    _s.posted_at,
    _p.metadata,
    _k.name,
).select_from(
    _FROM.join(
        schema.transactions, and_(_t.wallet_number == _g.wallet_number, _t.sequence == _g.number)
    ).join(schema.postings, OF_POSTING)
)


def _value(columns: Sequence[Any], clock: int) -> Given:
    number, *rest = columns
    width = len(GRANT_COLUMNS)
    id_, customer_id, currency, scale, livemode, posted_at, metadata, name = rest[width:]
    return Given(
        number,
        grant_value(rest[:width]),
        WalletPlace(id_, customer_id, currency, scale, livemode),
        max(clock, posted_at),
        load(metadata, {}),
        Currency(currency, scale, name),
    )


def grant(connection: Connection, wallet: int, number: int, *, clock: int) -> Given | None:
    """The grant of this wallet number and number."""
    query = _GIVEN.where(_g.wallet_number == wallet, _g.number == number)
    found = connection.execute(query).one_or_none()
    return None if found is None else _value(found, clock)


def page(
    connection: Connection, filters: GivenFilters, *, offset: int, size: int, clock: int
) -> tuple[int, list[Given]]:
    """How many there are, and those of a page, newest first.

    Counting reads what the filters leave, so the caller bounds the time.
    """
    wanted: list[ColumnElement[bool]] = [_w.livemode == filters.livemode]
    if filters.customer_id is not None:
        wanted.append(_w.customer_id == filters.customer_id)
    if filters.currency is not None:
        wanted.append(_w.currency == filters.currency)
    if filters.statuses:
        wanted.append(or_(*(_is(status, clock) for status in filters.statuses)))
    if filters.q is not None:
        wanted.append(holds(func.lower(func.coalesce(_g.name, "")), fold(filters.q)))
    counted = select(func.count()).select_from(_FROM).where(*wanted)
    count: int = connection.execute(counted).scalar_one()
    ordered = _GIVEN.where(*wanted).order_by(
        _g.created_at.desc(), _g.wallet_number.desc(), _g.number.desc()
    )
    rows = connection.execute(ordered.limit(size).offset(offset))
    return count, [_value(row, clock) for row in rows]


def _is(status: str, clock: int) -> ColumnElement[bool]:
    at = literal(clock, BigInteger)
    now = case((_s.posted_at > at, _s.posted_at), else_=at)
    ended = and_(_g.expires_at.is_not(None), _g.expires_at <= now)
    if status == "expired":
        return ended
    if status == "depleted":
        return and_(not_(ended), _g.remaining == 0)
    begun = _g.effective_at > now if status == "pending" else _g.effective_at <= now
    return and_(not_(ended), _g.remaining > 0, begun)
