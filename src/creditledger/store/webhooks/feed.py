"""What the notifier and the deliverer do with the database: deliveries made, sent, forgotten.

A server that makes deliveries reads the feed's row, and writes only if the row is still as it was
read. So one of several servers makes them, and what was made before a crash is not made again.
Functions of a SQLAlchemy connection.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    select,
    update,
)

from creditledger.domain.model import HoldEnd
from creditledger.domain.webhook_events import (
    GIVING,
    TRYING_MS,
    BalanceMove,
    DeliveryStatus,
    Endpoint,
    Place,
)
from creditledger.store import schema
from creditledger.store.dialects import pairs
from creditledger.store.read.lists import is_kind
from creditledger.store.read.transaction_reads import OF_POSTING
from creditledger.store.webhooks.endpoints import endpoint_value

x = schema.grant_parts.c
e, f, y = schema.webhook_endpoints.c, schema.webhook_feed.c, schema.webhook_deliveries.c
t, p, g, s = (
    schema.transactions.c,
    schema.postings.c,
    schema.grants.c,
    schema.wallet_states.c,
)

#: Holds written down as over by their deadline, for `due`.
EXPIRED_HOLDS = ("holds", "holds_expired", "deadline", f"o.ended = {HoldEnd.EXPIRED}")

PENDING = DeliveryStatus.PENDING.value


class Feed(NamedTuple):
    """How far deliveries are made."""

    mark: str  #: In commit order.
    made: int  #: The number of the last one.
    holds_until: int  #: Deadline before which every expired hold was looked at.


class New(NamedTuple):
    """A delivery to be made."""

    number: int
    endpoint: int
    place: Place
    body: str
    kept_from: int


def listening(connection: Connection) -> list[Endpoint]:
    """The endpoints that events are made for."""
    query = select(schema.webhook_endpoints).where(e.enabled)
    return [endpoint_value(row) for row in connection.execute(query)]


def feed(connection: Connection) -> Feed:
    """How far deliveries are made."""
    return Feed(*connection.execute(select(f.mark, f.made, f.holds_until)).one())


def make(connection: Connection, was: Feed, after: Feed, new: Sequence[New], now: int) -> bool:
    """Make deliveries, and with them move the feed on; False, and nothing, if another has."""
    query = update(schema.webhook_feed).where(f.mark == was.mark, f.made == was.made)
    moved = connection.execute(
        query.values(mark=after.mark, made=after.made).returning(f.number)
    ).first()
    if moved is None:
        return False
    if new:
        connection.execute(
            insert(schema.webhook_deliveries),
            [
                {
                    "wallet_number": one.place.wallet,
                    "number": one.number,
                    "endpoint_number": one.endpoint,
                    "type": one.place.type.value,
                    "subject": one.place.subject,
                    "variant": one.place.variant,
                    "body": one.body,
                    "status": PENDING,
                    "attempts": 0,
                    "created_at": now,
                    "kept_from": max(now, one.kept_from),
                    "next_attempt_at": now,
                    "give_up_at": now + TRYING_MS,
                }
                for one in new
            ],
        )
    return True


def looked_for_holds(connection: Connection, until: int) -> None:
    """Every hold with a deadline before that moment was looked at."""
    query = update(schema.webhook_feed).where(f.holds_until < until)
    connection.execute(query.values(holds_until=until))


def made_already(
    connection: Connection, places: Iterable[tuple[int, Place]]
) -> set[tuple[int, Place]]:
    """Those of these (endpoint number, place) that there is a delivery of."""
    found = set()
    for endpoint, place in places:
        query = select(y.number).where(
            y.wallet_number == place.wallet,
            y.endpoint_number == endpoint,
            y.type == place.type.value,
            y.subject == place.subject,
            y.variant == place.variant,
        )
        if connection.execute(query).first() is not None:
            found.add((endpoint, place))
    return found


# --- what rows are judged by ----------------------------------------------------------------------


def postings_of(
    connection: Connection, places: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[int, int]]:
    """Of the rows at these places (wallet number, sequence): first and last of their posting."""
    if not places:
        return {}
    place = pairs(connection.dialect.name)
    here = and_(t.wallet_number == place.c.wallet, t.sequence == place.c.sequence)
    found = connection.execute(
        select(place.c.wallet, place.c.sequence, p.first_sequence, p.row_count)
        .join_from(place, schema.transactions, here)
        .join(schema.postings, OF_POSTING),
        {"pairs": json.dumps(places)},
    )
    return {(wallet, row): (first, first + count - 1) for wallet, row, first, count in found}


def moved(connection: Connection, wallet: int, first: int, last: int) -> list[BalanceMove]:
    """What the rows from `first` to `last` did to the wallet."""
    query = select(t.sequence, t.posting_number, t.kind, t.running_balance).where(
        t.wallet_number == wallet, t.sequence.between(first, last)
    )
    return [BalanceMove(*row) for row in connection.execute(query.order_by(t.sequence))]


def stood(connection: Connection, wallet: int, sequence: int) -> tuple[int, int] | None:
    """The balance behind a row, and what it was as credit last came in; None before the first."""
    if sequence < 1:
        return None
    query = select(t.running_balance).where(t.wallet_number == wallet, t.sequence == sequence)
    balance: int = connection.execute(query).scalar_one()
    newest: list[Any] = []
    for kind in GIVING:
        given = select(t.sequence, t.running_balance).where(
            t.wallet_number == wallet, is_kind(kind), t.sequence <= sequence
        )
        newest += connection.execute(given.order_by(t.sequence.desc()).limit(1)).all()
    return balance, max(newest)[1] if newest else 0


def remaining(
    connection: Connection, wallet: int, last: int, grants: Iterable[int]
) -> dict[int, int]:
    """What was left of these grants of a wallet behind row `last`.

    From the rows since a grant was given, or from those that came after, whichever are fewer.
    """
    found = {}
    u = schema.grant_repayments.c
    for number in grants:
        later = select(func.coalesce(func.sum(u.amount), 0)).where(
            u.wallet_number == wallet, u.grant_number == number, u.sequence >= last
        )
        repaid_later = int(connection.execute(later).scalar_one())
        paid_back = g.overdraft_paid + g.repaid - repaid_later
        query = select(paid_back, g.remaining + repaid_later, s.sequence).join_from(
            schema.grants, schema.wallet_states, s.wallet_number == g.wallet_number
        )
        here = g.wallet_number == wallet, g.number == number
        paid, now, end = connection.execute(query.where(*here)).one()
        forwards = last - number < end - last
        moved = select(func.coalesce(func.sum(t.amount), 0)).where(
            t.wallet_number == wallet,
            t.sequence.between(*((number, last) if forwards else (last + 1, end))),
            t.grant_number == number,
        )
        amount = int(connection.execute(moved).scalar_one())
        later = select(func.coalesce(func.sum(x.overdraft_paid), 0)).where(
            x.wallet_number == wallet, x.grant_number == number, x.sequence > last
        )
        back = int(connection.execute(later).scalar_one())
        found[number] = (amount - paid if forwards else now - amount) + back
    return found


# --- sending --------------------------------------------------------------------------------------


class Claimed(NamedTuple):
    """A delivery that this server is to send now."""

    wallet: int
    number: int
    endpoint: int
    give_up_at: int
    body: str
    until: int  #: Nobody else sends it before.


class AttemptOutcome(NamedTuple):
    """How an attempt ended."""

    sent: Claimed
    delivered: bool
    http_status: int | None
    error: str | None
    next_attempt_at: int | None  #: None: it is delivered, or given up.
    gone: bool = False  #: The receiver answers that it wants no more.
    unsent: bool = False  #: It was given back and not tried.


def due(connection: Connection, now: int, after: int, size: int) -> list[Endpoint]:
    """Endpoints with something to send, by number behind `after`."""
    waiting = select(y.number).where(
        y.endpoint_number == e.number, y.status == literal_column("1"), y.next_attempt_at <= now
    )
    query = select(schema.webhook_endpoints).where(e.enabled, e.number > after, exists(waiting))
    return [endpoint_value(row) for row in connection.execute(query.order_by(e.number).limit(size))]


def claim(
    connection: Connection, rooms: Mapping[int, int], *, now: int, until: int
) -> list[Claimed]:
    """Take so many deliveries of each endpoint (by number) to send before `until`.

    A claim that is not settled by then lapses; any server may retry it.
    """
    found: list[Claimed] = []
    for endpoint, room in rooms.items():
        query = (
            select(y.wallet_number, y.number, y.endpoint_number, y.give_up_at, y.body)
            .where(
                y.endpoint_number == endpoint,
                y.status == literal_column("1"),
                y.next_attempt_at <= now,
            )
            .order_by(y.next_attempt_at)
            .limit(room)
            .with_for_update(skip_locked=True)
        )
        found += [Claimed(*row, until) for row in connection.execute(query)]
    if found:
        connection.execute(
            update(schema.webhook_deliveries)
            .where(y.wallet_number == bindparam("wallet"), y.number == bindparam("its_number"))
            .values(next_attempt_at=until),
            [{"wallet": one.wallet, "its_number": one.number} for one in found],
        )
    return found


def settle(connection: Connection, outcomes: Sequence[AttemptOutcome], now: int) -> None:
    """Write down how attempts ended, unless the claim was over before, or it was asked for anew."""
    for one in outcomes:
        of = and_(y.wallet_number == one.sent.wallet, y.number == one.sent.number)
        ours = and_(of, y.next_attempt_at == one.sent.until, y.status == PENDING)
        told: dict[str, object] = {"next_attempt_at": one.next_attempt_at or now}
        if not one.unsent:
            told |= {
                "attempts": y.attempts + 1,
                "last_attempt_at": now,
                "last_status": one.http_status,
                "last_error": one.error,
            }
        if one.delivered:
            told |= {"status": DeliveryStatus.DELIVERED.value, "delivered_at": now}
        elif one.next_attempt_at is None:
            told["status"] = DeliveryStatus.FAILED.value
        connection.execute(update(schema.webhook_deliveries).where(ours).values(**told))
        if one.gone:
            connection.execute(
                update(schema.webhook_endpoints)
                .where(e.number == one.sent.endpoint)
                .values(enabled=False, updated_at=now)
            )


def oldest_due(connection: Connection, now: int) -> int | None:
    """When the oldest delivery was made that is due by `now` and not sent; None: all is sent."""
    oldest = select(func.min(y.created_at)).where(
        y.status == DeliveryStatus.PENDING, y.next_attempt_at <= now
    )
    moment: int | None = connection.execute(oldest).scalar_one()
    return moment


class Backlog(NamedTuple):
    """Deliveries of a mode that are due and not sent."""

    due: int
    oldest_at: int  #: When the oldest was made.


def backlog(connection: Connection, now: int) -> dict[bool, Backlog]:
    """What is due by `now`, by mode; a mode without any is left out."""
    query = (
        select(e.livemode, func.count(), func.min(y.created_at))
        .join_from(
            schema.webhook_deliveries, schema.webhook_endpoints, y.endpoint_number == e.number
        )
        .where(y.status == literal_column("1"), y.next_attempt_at <= now)
        .group_by(e.livemode)
    )
    return {bool(mode): Backlog(*found) for mode, *found in connection.execute(query)}


def forget(connection: Connection, before: int, size: int) -> int:
    """Take away up to `size` deliveries whose age counts from before that moment; how many."""
    old = select(y.wallet_number, y.number).where(y.kept_from < before)
    rows = connection.execute(old.order_by(y.kept_from).limit(size)).all()
    if rows:
        connection.execute(
            delete(schema.webhook_deliveries).where(
                y.wallet_number == bindparam("wallet"), y.number == bindparam("its_number")
            ),
            [{"wallet": wallet, "its_number": number} for wallet, number in rows],
        )
    return len(rows)
