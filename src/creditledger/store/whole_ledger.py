"""Figures of the whole ledger at a moment: what it owes, what is held, and what lags behind.

None of them reads all rows. Grants and holds that are open have narrow indexes, sums of a wallet
stand beside it, and the oldest of what waits is the first entry of an index. What is read still
grows with the number of wallets and of open grants, so it is asked about once a minute.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    column,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
)

from creditledger.domain import clock, model
from creditledger.domain.model import Category
from creditledger.store import last_verification, schema
from creditledger.store.dialects import exact_sum, horizon, place, set_aside
from creditledger.store.folds.figures import constant
from creditledger.store.last_verification import VerificationOutcome
from creditledger.store.webhooks import feed
from creditledger.store.webhooks.feed import Backlog

#: Credit that ends within this time counts as expiring soon.
SOON_MS = 7 * clock.DAY

w, s, g, h, e = (
    schema.wallets.c,
    schema.wallet_states.c,
    schema.grants.c,
    schema.holds.c,
    schema.fold_ends.c,
)
t = schema.transactions.c

#: A currency, and whether it is of live mode.
Mode = tuple[str, bool]
#: The same with a word of `Category`.
Kind = tuple[str, bool, str]


@dataclass(frozen=True, slots=True)
class WholeLedger:
    """The figures. Amounts are in units of their currency; a lag is in milliseconds."""

    at: int  #: The moment that they are of.
    scales: dict[str, int]  #: Of each currency.
    wallets: dict[Mode, int]
    liability: dict[Kind, int]  #: Σ remaining of the grants that have not ended.
    expiring: dict[Kind, int]  #: What of that ends within SOON_MS.
    overdraft: dict[Mode, int]
    holds: dict[Mode, int]  #: How many are open.
    held: dict[Mode, int]
    rows: int
    unfolded_rows: int
    sweep_lag_ms: int
    watch_lag_ms: int
    webhook_lag_ms: int
    verification: VerificationOutcome | None  #: The last one.


def whole_ledger(connection: Connection, now: int) -> WholeLedger:
    """The figures of this snapshot, as they are at `now`."""
    currencies = connection.execute(select(schema.currencies.c.code, schema.currencies.c.scale))
    scales = {one.code: one.scale for one in currencies}
    wallets, overdraft = Counter[Mode](), Counter[Mode]()
    rows = unfolded = 0
    for *of, count, used, written, folded in connection.execute(_WALLETS):
        mode = _mode(*of)
        wallets[mode] += count
        overdraft[mode] += used
        rows += written
        unfolded += written - folded
    liability, expiring = Counter[Kind](), Counter[Kind]()
    for currency, livemode, category, left, soon in connection.execute(_grants(now)):
        kind = currency, bool(livemode), Category(category).word
        liability[kind] += left
        expiring[kind] += soon
    holds, held = Counter[Mode](), Counter[Mode]()
    for *of, count, left in connection.execute(_holds(now)):
        mode = _mode(*of)
        holds[mode] += count
        held[mode] += left
    # A mode without any has a 0, so that a figure does not vanish when it becomes 0.
    for mode in wallets:
        for sums in (overdraft, holds, held):
            sums.setdefault(mode, 0)
        for category in Category:
            for amounts in (liability, expiring):
                amounts.setdefault((*mode, category.word), 0)
    return WholeLedger(
        at=now,
        scales=scales,
        wallets=dict(wallets),
        liability=dict(liability),
        expiring=dict(expiring),
        overdraft=dict(overdraft),
        holds=dict(holds),
        held=dict(held),
        rows=rows,
        unfolded_rows=unfolded,
        sweep_lag_ms=_sweep_lag(connection, now),
        watch_lag_ms=_since(connection.execute(_UNSEEN).scalar_one(), now),
        webhook_lag_ms=_since(feed.oldest_due(connection, now), now),
        verification=last_verification.last(connection),
    )


@dataclass(frozen=True, slots=True)
class LedgerOverview:
    """The figures of a moment with those of its day, for people."""

    whole: WholeLedger
    moved: dict[Mode, tuple[int, int]]  #: Since midnight UTC: Σ of rows above 0, Σ of those below.
    customers: int  #: Archived ones left out.
    webhooks: dict[bool, Backlog]  #: By mode.


def overview(connection: Connection, now: int) -> LedgerOverview:
    """The ledger of this snapshot at `now`."""
    moved = {}
    midnight = now - now % clock.DAY
    for *of, change, came in connection.execute(_MOVED, {"moment": midnight}):
        moved[_mode(*of)] = came, change - came
    is_active = schema.customers.c.archived_at.is_(None)
    customers = select(func.count()).select_from(schema.customers).where(is_active)
    return LedgerOverview(
        whole=whole_ledger(connection, now),
        moved=moved,
        customers=connection.execute(customers).scalar_one(),
        webhooks=feed.backlog(connection, now),
    )


#: Of each wallet that was posted to since a moment, its last row before it: bisection in all of
#: these wallets at once, a step a level. What was posted since is not read, however much it is.
_BEFORE = (
    text(
        """
    WITH RECURSIVE search (wallet, low, high) AS (
        SELECT s.wallet_number, CAST(0 AS BIGINT), s.sequence
        FROM wallet_states AS s WHERE s.posted_at >= :moment
        UNION ALL
        SELECT search.wallet,
               CASE WHEN t.created_at < :moment THEN t.sequence ELSE low END,
               CASE WHEN t.created_at < :moment THEN high ELSE t.sequence - 1 END
        FROM search JOIN credit_transactions AS t
          ON t.wallet_number = search.wallet AND t.sequence = (low + high + 1) / 2
        WHERE low < high
    )
    SELECT wallet, low AS sequence FROM search WHERE low = high
    """
    )
    .bindparams(bindparam("moment", type_=BigInteger))
    .columns(column("wallet", BigInteger), column("sequence", BigInteger))
    .cte("before")
)
#: What came in since is never usage, and the rows that are not have an index of their own.
_CAME = (
    select(func.sum(t.amount))
    .where(
        t.wallet_number == _BEFORE.c.wallet,
        t.kind != literal_column(str(model.Kind.USAGE.value)),
        t.kind.in_(
            [literal_column(str(kind.value)) for kind in model.Kind if kind is not model.Kind.USAGE]
        ),
        t.sequence > _BEFORE.c.sequence,
        t.amount > 0,
    )
    .scalar_subquery()
)
_ROW_BEFORE = schema.transactions.alias("row_before")
_b = _ROW_BEFORE.c
#: By currency and mode: what the balances have changed by, and what came in.
_MOVED = (
    select(
        *(w.currency, w.livemode),
        exact_sum(s.running_balance - func.coalesce(_b.running_balance, constant(0))),
        exact_sum(func.coalesce(_CAME, constant(0))),
    )
    .join_from(_BEFORE, schema.wallets, w.number == _BEFORE.c.wallet)
    .join(schema.wallet_states, s.wallet_number == w.number)
    .join(
        _ROW_BEFORE,
        and_(_b.wallet_number == _BEFORE.c.wallet, _b.sequence == _BEFORE.c.sequence),
        isouter=True,
    )
    .group_by(w.currency, w.livemode)
)

_OF = (w.currency, w.livemode)
_WALLETS = (
    select(
        *_OF,
        func.count(),
        exact_sum(s.overdraft_used),
        exact_sum(s.sequence),
        exact_sum(func.coalesce(e.sequence, constant(0))),
    )
    .join_from(schema.wallets, schema.wallet_states, s.wallet_number == w.number)
    .join(schema.fold_ends, e.wallet_number == w.number, isouter=True)
    .group_by(*_OF)
)
#: Of the rows that are committed and that watches do not show yet, the oldest.
_UNSEEN = select(func.min(t.created_at)).where(place() >= horizon())


def _grants(now: int) -> Select[Any]:
    soon = and_(g.expires_at.is_not(None), g.expires_at <= now + SOON_MS)
    return (
        select(
            *(*_OF, g.category),
            exact_sum(g.remaining),
            exact_sum(case((soon, g.remaining), else_=constant(0))),
        )
        .join_from(schema.grants, schema.wallets, w.number == g.wallet_number)
        .where(g.open, or_(g.expires_at.is_(None), g.expires_at > now))
        .group_by(*_OF, g.category)
    )


def _holds(now: int) -> Select[Any]:
    return (
        select(*_OF, func.count(), exact_sum(set_aside(h.parts) + h.beyond))
        .join_from(schema.holds, schema.wallets, w.number == h.wallet_number)
        .where(h.ended.is_(None), h.deadline > now)
        .group_by(*_OF)
    )


def _sweep_lag(connection: Connection, now: int) -> int:
    """For how long what is over has not been written down.

    What a grant has left after its end may be held. It leaves with its hold, so wallets with an
    open hold count by the hold alone.
    """
    is_held = exists().where(h.wallet_number == g.wallet_number, h.ended.is_(None))
    ended = select(func.min(g.expires_at)).where(g.open, g.expires_at <= now, ~is_held)
    over = select(func.min(h.deadline)).where(h.ended.is_(None), h.deadline <= now)
    oldest = (connection.execute(one).scalar_one() for one in (ended, over))
    return max(_since(moment, now) for moment in oldest)


def _since(moment: int | None, now: int) -> int:
    return 0 if moment is None else max(0, now - moment)


def _mode(currency: str, livemode: object) -> Mode:
    return currency, bool(livemode)
