"""The notifier: makes deliveries of what the ledger wrote, for the endpoints that ask for it.

It follows the rows in the order of their commits, each once: what a step makes of them is written
together with how far it came, so a crash between two steps loses nothing and makes nothing twice.
Events without a row (a grant that is about to end, a hold that is over) it finds by time. No
posting waits for it or knows of it; without an endpoint it asks for one now and then. Of several
servers the first one that comes does the step.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy import Connection

from creditledger.api.messages import webhook as webhook_messages
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.errors import InvalidField
from creditledger.domain.views import GivenGrant, Transaction, WalletPlace
from creditledger.domain.webhook_events import (
    OF_BALANCE,
    BalanceMove,
    Crossing,
    Drawn,
    Endpoint,
    EventType,
    Place,
    Threshold,
    crossings,
    depletions,
)
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store
from creditledger.store.read import commit_order, due, export_walk, grants, transaction_reads
from creditledger.store.read.commit_order import Mark, Passed
from creditledger.store.read.due import Due, What
from creditledger.store.webhooks import feed as webhook_feed
from creditledger.store.webhooks.feed import Feed, New

log = structlog.get_logger()

#: Rows of a step, and grants or holds looked at in one transaction.
STEP_ROWS, PAGE = 500, 500
#: Grants of which it is known what is left; beyond, all are read again.
LEFT_MAX = 20_000
#: The interval of looks for rows while an endpoint listens, and for an endpoint while none does.
STEP_SECONDS, IDLE_SECONDS = 0.5, 5.0
#: How often it looks for grants about to end and holds that are over.
LOOK_SECONDS = 10.0
#: How long how far it came may stay unwritten while there was nothing to make.
UNWRITTEN_SECONDS = 5.0
#: Holds are looked for from so long before where the last look ended: a transaction takes a while,
#: and clocks differ.
OVERLAP_MS = 2 * time.MINUTE


@dataclass(slots=True)
class _NewDeliveries:
    """Deliveries numbered one after the other, as they are made."""

    last: int
    new: list[New] = field(default_factory=list)

    def add(
        self, endpoint: Endpoint, place: Place, body: Callable[[str], str], kept_from: int = 0
    ) -> None:
        """One more; `body`: the event's body for an id."""
        self.last += 1
        id_ = ids.compose("evt", place.wallet, self.last)
        self.new.append(New(self.last, endpoint.number, place, body(id_), kept_from))


class _Balances(NamedTuple):
    """How postings of a wallet moved its balance."""

    before: tuple[int, int] | None
    rows: list[BalanceMove]


class _SeenRows(NamedTuple):
    """A step of the rows, with all that is needed to tell of them."""

    feed: Feed
    begun: Mark  #: Where the step began ...
    mark: Mark  #: ... and where the next one does.
    more: bool
    endpoints: list[Endpoint]
    rows: dict[tuple[int, int], tuple[Mark, Transaction]]  #: By wallet number and sequence.
    wallets: dict[int, WalletPlace]
    balances: dict[int, _Balances]
    depleted: list[tuple[tuple[int, int], GivenGrant]]


class _Left(NamedTuple):
    """What was left of grants that rows were told of, behind the rows up to a mark.

    Otherwise each step would add up what came after it, and the further it is behind, the slower it
    would get on.
    """

    mark: Mark
    wanting: tuple[Endpoint, ...]  #: What other endpoints do not hear of is not followed.
    amounts: dict[tuple[int, int], int]  #: By wallet and grant number.

    def known(self, mark: Mark, wanting: Sequence[Endpoint]) -> dict[tuple[int, int], int]:
        """What still holds at this mark."""
        holds = self.mark == mark and self.wanting == tuple(wanting)
        return dict(self.amounts) if holds and len(self.amounts) < LEFT_MAX else {}


class Notifier:
    """One per server."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int],
        sweep_holds: Callable[[], Awaitable[object]],
        on_made: Callable[[], None],
    ) -> None:
        """`sweep_holds` writes down all holds that are over; `on_made` is told of deliveries."""
        self._store = store
        self._clock = clock
        self._sweep_holds = sweep_holds
        self._on_made = on_made
        self.loop = BackgroundLoop(
            "notifier", self._step, interval_seconds=STEP_SECONDS, failure="webhooks not made"
        )
        #: The mark that is stored, and where the rows behind it were looked at to without need.
        self._ahead: tuple[str, Mark] = "", commit_order.START
        self._left = _Left(commit_order.START, (), {})
        self._stored_at = self._looked_at = 0.0

    async def _step(self) -> float | None:
        if not await self._store.read(webhook_feed.listening):
            return IDLE_SECONDS
        more = await self.follow()
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_at >= LOOK_SECONDS:
            await self.look()
            self._looked_at = loop.time()
        return 0.0 if more else None

    # --- rows -------------------------------------------------------------------------------------

    async def follow(self) -> bool:
        """One step along the rows; whether more of them wait.

        Raises what the store raises.
        """
        seen = await self._store.read(self._see)
        if seen is None:
            return False
        # The loop has others to serve while the rows become text.
        made = await asyncio.to_thread(_events, seen)
        now = asyncio.get_running_loop().time()
        if not made.new and seen.mark.text() == seen.feed.mark:
            return seen.more
        if not made.new and now - self._stored_at < UNWRITTEN_SECONDS:
            self._ahead = seen.feed.mark, seen.mark
            return seen.more
        after = seen.feed._replace(mark=seen.mark.text(), made=made.last)
        if await self._make(seen.feed, after, made.new):
            self._ahead, self._stored_at = (after.mark, seen.mark), now
        return seen.more

    async def _make(self, was: Feed, after: Feed, new: Sequence[New]) -> bool:
        now = self._clock()
        made = await self._store.write(lambda c: webhook_feed.make(c, was, after, new, now))
        if made and new:
            self._on_made()
        return made

    def _see(self, connection: Connection) -> _SeenRows | None:
        endpoints = webhook_feed.listening(connection)
        if not endpoints:
            return None
        feed = webhook_feed.feed(connection)
        stored, begun = self._ahead
        if stored != feed.mark:
            begun = Mark.parse(feed.mark, field="mark") if feed.mark else commit_order.START
        try:
            begun = commit_order.begin(connection, begun)
        except InvalidField:
            # The rows are those of an older state, or were numbered anew: what is told of twice is
            # worse here than what is told of late by lists.
            log.error("webhooks begin anew at the end of the ledger", mark=feed.mark)
            end = commit_order.end(connection)
            return _SeenRows(feed, end, end, False, endpoints, {}, {}, {}, [])
        step = commit_order.step(connection, begun, STEP_ROWS)
        wallets = export_walk.wallets(connection, {row.wallet for row in step.rows})
        heard = [row for row in step.rows if _any_hears(endpoints, wallets[row.wallet])]
        rows = {
            row.place: (row.mark, transaction)
            for row, transaction in zip(
                heard,
                transaction_reads.expand(connection, [row.place for row in heard]),
                strict=True,
            )
        }
        return _SeenRows(
            feed,
            begun,
            step.mark,
            step.more,
            endpoints,
            rows,
            wallets,
            _balances(connection, endpoints, wallets, heard),
            self._depleted(connection, step, begun, endpoints, wallets, rows),
        )

    def _depleted(
        self,
        connection: Connection,
        step: commit_order.CommitStep,
        begun: Mark,
        endpoints: Sequence[Endpoint],
        wallets: dict[int, WalletPlace],
        rows: dict[tuple[int, int], tuple[Mark, Transaction]],
    ) -> list[tuple[tuple[int, int], GivenGrant]]:
        wanting = [one for one in endpoints if EventType.GRANT_DEPLETED in one.events]
        known = self._left.known(begun, wanting)
        drawn: dict[int, list[Drawn]] = {}
        for (wallet, _), (_, transaction) in rows.items():
            one = transaction.row
            if one.grant is not None and _any_hears(wanting, wallets[wallet]):
                drew = Drawn(one.sequence, one.kind, one.grant, one.amount)
                drawn.setdefault(wallet, []).append(drew)
        found = []
        for wallet, moves in drawn.items():
            left = {one.grant: known.get((wallet, one.grant)) for one in moves}
            moved = {grant: sum(d.amount for d in moves if d.grant == grant) for grant in left}
            unknown = [grant for grant, amount in left.items() if amount is None]
            behind = webhook_feed.remaining(connection, wallet, moves[-1].sequence, unknown)
            behind |= {n: amount + moved[n] for n, amount in left.items() if amount is not None}
            known |= {(wallet, grant): amount for grant, amount in behind.items()}
            for drew in depletions(moves, behind):
                grant = grants.grant(connection, wallet, drew.grant, clock=self._clock())
                assert grant is not None
                found.append(((wallet, drew.sequence), grant))
        self._left = _Left(step.mark, tuple(wanting), known)
        return found

    # --- time -------------------------------------------------------------------------------------

    async def look(self) -> None:
        """One look for grants that are about to end, and one for holds that are over.

        Raises what the store raises.
        """
        now = self._clock()
        endpoints = await self._store.read(webhook_feed.listening)
        days = [one.expiring_days for one in endpoints if EventType.GRANT_EXPIRING in one.events]
        if days:
            last = Due(now, 1 << 62, 0, "")
            until = now + max(days) * time.DAY
            await self._walk(due.GRANTS, last, until, _ending)
        since = [one.since for one in endpoints if EventType.HOLD_EXPIRED in one.events]
        if since:
            # All that are over are written down then, even if the sweeper is off.
            await self._sweep_holds()
            feed = await self._store.read(webhook_feed.feed)
            last = Due(max(feed.holds_until, min(since)) - OVERLAP_MS, 0, 0, "")
            await self._walk(webhook_feed.EXPIRED_HOLDS, last, now, _expired)
            if now - feed.holds_until > OVERLAP_MS:
                await self._store.write(lambda c: webhook_feed.looked_for_holds(c, now))

    async def _walk(
        self,
        what: What,
        last: Due,
        until: int,
        tell: Callable[[Connection, Sequence[Due], Sequence[Endpoint], int], list["_Told"]],
    ) -> None:
        """Page by page over grants or holds up to a moment, each told of once."""
        while True:
            now = self._clock()

            def see(
                connection: Connection, last: Due = last, now: int = now
            ) -> tuple[Feed, Sequence[Due], list[_Told]]:
                found = due.due(connection, what, until, last, PAGE)
                endpoints = webhook_feed.listening(connection)
                told = tell(connection, found, endpoints, now)
                there = webhook_feed.made_already(
                    connection, [(one.endpoint.number, one.place) for one in told]
                )
                new = [one for one in told if (one.endpoint.number, one.place) not in there]
                return webhook_feed.feed(connection), found, new

            feed, found, told = await self._store.read(see)
            if told:
                made = _NewDeliveries(feed.made)
                for one in told:
                    made.add(one.endpoint, one.place, one.body, one.kept_from)
                if not await self._make(feed, feed._replace(made=made.last), made.new):
                    continue  # another server has made some, perhaps these
            if len(found) < PAGE:
                return
            last = found[-1]


class _Told(NamedTuple):
    """A delivery to be, unless it was made before."""

    endpoint: Endpoint
    place: Place
    body: Callable[[str], str]
    kept_from: int


def _ending(
    connection: Connection, found: Sequence[Due], endpoints: Sequence[Endpoint], now: int
) -> list[_Told]:
    wallets = export_walk.wallets(connection, {one.wallet for one in found})
    told = []
    for one in found:
        for endpoint in _wanting(endpoints, EventType.GRANT_EXPIRING, wallets[one.wallet]):
            if one.moment - endpoint.expiring_days * time.DAY > now:
                continue
            place = Place(EventType.GRANT_EXPIRING, one.wallet, one.number, str(one.moment))
            grant = grants.grant(connection, one.wallet, one.number, clock=now)
            assert grant is not None
            told.append(_Told(endpoint, place, _of_grant(place.type, grant, now), one.moment))
    return told


def _of_grant(type_: EventType, grant: GivenGrant, moment: int) -> Callable[[str], str]:
    return partial(webhook_messages.of_grant, type_=type_, one=grant, moment=moment)


def _expired(
    connection: Connection, found: Sequence[Due], endpoints: Sequence[Endpoint], _now: int
) -> list[_Told]:
    wallets = export_walk.wallets(connection, {one.wallet for one in found})
    told = []
    for one in found:
        for endpoint in _wanting(endpoints, EventType.HOLD_EXPIRED, wallets[one.wallet]):
            if one.moment < endpoint.since:
                continue
            place = Place(EventType.HOLD_EXPIRED, one.wallet, one.number)
            hold = transaction_reads.hold(connection, one.wallet, one.number)
            assert hold is not None
            body = partial(webhook_messages.expired, one=hold, number=one.wallet)
            told.append(_Told(endpoint, place, body, 0))
    return told


# --- what a step makes ----------------------------------------------------------------------------


def _any_hears(endpoints: Iterable[Endpoint], wallet: WalletPlace) -> bool:
    return any(one.hears(wallet.customer_id, wallet.livemode) for one in endpoints)


def _wanting(
    endpoints: Iterable[Endpoint], type_: EventType, wallet: WalletPlace
) -> list[Endpoint]:
    return [
        one
        for one in endpoints
        if type_ in one.events and one.hears(wallet.customer_id, wallet.livemode)
    ]


def _lines(one: Endpoint, wallet: WalletPlace) -> list[Threshold]:
    """Those of its thresholds that this wallet can cross."""
    if not OF_BALANCE.intersection(one.events):
        return []
    return [line for line in one.thresholds if line.currency in (None, wallet.currency)]


def _balances(
    connection: Connection,
    endpoints: Sequence[Endpoint],
    wallets: dict[int, WalletPlace],
    heard: Sequence[Passed],
) -> dict[int, _Balances]:
    """Of each wallet that could cross something, the postings whose last row is in the step."""
    spans: dict[int, tuple[int, int]] = {}
    for row in heard:
        wallet, sequence = row.place
        spans[wallet] = spans.get(wallet, (sequence, sequence))[0], sequence
    crossing = [
        number
        for number in spans
        if any(
            _lines(one, wallets[number])
            for one in endpoints
            if one.hears(wallets[number].customer_id, wallets[number].livemode)
        )
    ]
    places = {(number, row) for number in crossing for row in spans[number]}
    postings = webhook_feed.postings_of(connection, sorted(places))
    found = {}
    for number in crossing:
        first, last = spans[number]
        first = postings[number, first][0]
        begun, end = postings[number, last]
        # The rest of it comes with the next step.
        last = last if last == end else begun - 1
        rows = webhook_feed.moved(connection, number, first, last)
        found[number] = _Balances(webhook_feed.stood(connection, number, first - 1), rows)
    return found


def _events(seen: _SeenRows) -> _NewDeliveries:
    """The deliveries that a step makes, in the order of its rows."""
    made = _NewDeliveries(seen.feed.made)

    def begun(endpoint: Endpoint, place: tuple[int, int]) -> bool:
        mark, _ = seen.rows[place]
        return mark > Mark.parse(endpoint.begins, field="begins")

    crossed: dict[tuple[int, int], list[tuple[Endpoint, Crossing]]] = {}
    for number, moves in seen.balances.items():
        wallet = seen.wallets[number]
        for endpoint in seen.endpoints:
            if endpoint.hears(wallet.customer_id, wallet.livemode):
                for one in crossings(moves.before, moves.rows, _lines(endpoint, wallet)):
                    crossed.setdefault((number, one.sequence), []).append((endpoint, one))
    depleted = dict(seen.depleted)
    for place, (_, transaction) in seen.rows.items():
        number, sequence = place
        wallet, moment = transaction.wallet, transaction.row.created_at
        for endpoint in _wanting(seen.endpoints, EventType.TRANSACTION_CREATED, wallet):
            if begun(endpoint, place):
                made.add(
                    endpoint,
                    Place(EventType.TRANSACTION_CREATED, number, sequence),
                    partial(webhook_messages.created, one=transaction),
                )
        for endpoint, one in crossed.get(place, ()):
            type_ = EventType.BALANCE_LOW if one.low else EventType.BALANCE_RECOVERED
            if type_ in endpoint.events and begun(endpoint, place):
                made.add(
                    endpoint,
                    Place(type_, number, sequence, one.threshold.key),
                    partial(
                        webhook_messages.crossed,
                        one=one,
                        number=number,
                        wallet=wallet,
                        moment=moment,
                    ),
                )
        if place in depleted:
            for endpoint in _wanting(seen.endpoints, EventType.GRANT_DEPLETED, wallet):
                if begun(endpoint, place):
                    grant = depleted[place]
                    made.add(
                        endpoint,
                        Place(EventType.GRANT_DEPLETED, number, sequence),
                        _of_grant(EventType.GRANT_DEPLETED, grant, moment),
                    )
    return made
