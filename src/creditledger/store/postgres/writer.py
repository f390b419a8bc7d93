"""PostgreSQL: the write path, bare SQL on the driver.

A batch is a handful of statements however many postings it has: its values travel as arrays, a
column each. Whatever number of servers writes, the rows of `wallet_states` are locked first, in
order, and all that depends on them is read in later statements, which see what was committed
during the wait.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import asyncpg

from creditledger.domain.model import (
    Annotation,
    Grant,
    Hold,
    Posting,
    Receipt,
    Row,
    SpendLimit,
    Wallet,
)
from creditledger.domain.overdraft import OverdraftDraw, Payer, forgiving
from creditledger.store.columns import (
    COUNTER_NAMES,
    DIMENSION,
    DROPPED_LIMIT,
    EVENT,
    GRANT,
    GRANT_GROWN,
    GRANT_REPAID,
    GRANT_REVISION,
    GRANT_TERMS,
    HOLD,
    HOLD_REVISION,
    LIMIT,
    OVERDRAFT,
    WALLET_OVERDRAFT,
    WALLET_TERMS,
    counters,
    digest,
    dropped_value,
    load,
    posting_columns,
    posting_value,
    set_terms,
    wallet_value,
)
from creditledger.store.ledger_clock import LedgerClock, refusal
from creditledger.store.postgres import statements as sql
from creditledger.store.write.batch import (
    Changes,
    CommitFailed,
    Loaded,
    StoreUnavailable,
    WalletsLocked,
    Wanted,
    settlements,
)
from creditledger.store.write.wallet_cache import Known

#: What the driver raises when the server is gone or does not answer, or when it has lost its own
#: place in what it says, as happens to it where a connection ends in the middle of a statement.
LOST = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.TargetServerAttributeNotMatched,
    OSError,
)
#: Classes of errors that say "not now": connection, resources, operator, system; and a lock that
#: was waited for too long, a deadlock with somebody else's statements, a server that only reads.
_NOT_NOW = ("08", "53", "57", "58", "55P03", "40", "25006")
#: How long a lock is waited for.
LOCK_SECONDS_MAX = 5
#: How long a batch waits for a lock before it goes without the wallets that somebody else has
#: locked: a few batches of another server. Until then who waits has its turn, in order.
WALLET_LOCK_MS_MAX = 200
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
#: Locks of wallets are not waited for, so this is about others, such as an administrator's of a
#: table: there is nothing to go on with.
BEGIN_WITHOUT_LOCKED = f"{BEGIN}; SET LOCAL lock_timeout = '{LOCK_SECONDS_MAX}s'"
#: Wallets of which what never changes is kept in memory, about 400 bytes each.
PLACES_MAX = 100_000

#: How long a statement's plan is used at first, and at last.
PLANS_SECONDS_MIN, PLANS_SECONDS_MAX = 1.0, 60.0
DISCARD_PLANS = "DISCARD PLANS"

Connect = Callable[[], Any]


def is_not_now(error: BaseException) -> bool:
    """Whether the database, not the statement, is why it failed: later it may work."""
    if isinstance(error, LOST):
        return True
    code = getattr(error, "sqlstate", None) or ""
    return isinstance(error, asyncpg.PostgresError) and code.startswith(_NOT_NOW)


class Plans:
    """When a connection's plans are made anew: often while it is young, then each minute.

    They fit the tables as those were. Of an empty one it is as good to look rows up by their wallet
    alone as by their whole key; once the wallet has many rows that is a scan of all of them.
    """

    def __init__(self) -> None:
        self._made, self._lasting = monotonic(), PLANS_SECONDS_MIN

    def are_old(self) -> bool:
        """Whether to discard them; asked again, they are young."""
        now = monotonic()
        if now - self._made < self._lasting:
            return False
        self._made, self._lasting = now, min(2 * self._lasting, PLANS_SECONDS_MAX)
        return True


class Writer:
    """One connection that writes postings, made when it is needed and again when it is lost."""

    def __init__(self, connect: Connect, clock: LedgerClock) -> None:
        self._connect = connect
        self._clock = clock
        self._connection: asyncpg.Connection | None = None
        self._plans = Plans()
        self._places: dict[str, tuple[Any, ...]] = {}  #: What never changes of a wallet, by id.
        self._known = Known()
        self._own: str | None = None  #: The database transaction under way, or the last one.

    async def connection(self) -> asyncpg.Connection:
        """The connection, alive as far as one can tell. Raises what connecting raises."""
        if self._connection is None or self._connection.is_closed():
            # After a failover the database may be behind what was known of the one before.
            self._known.forget()
            self._places.clear()
            self._connection = await self._connect()
            self._plans = Plans()
        elif self._plans.are_old():
            await self._connection.execute(DISCARD_PLANS)
        return self._connection

    async def close(self) -> None:
        """Let go of the connection; what is not committed on it is undone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2)
            except Exception:
                connection.terminate()

    async def commit(
        self, wanted: Wanted, decide: Callable[[Loaded], Changes], *, wait: bool = True
    ) -> None:
        """Phases 1 to 6 of the write path as one transaction; `decide` runs inside it.

        `wait`: for a moment, for wallets that somebody else has locked; then raises WalletsLocked.
        Without it they are left out: `Loaded.locked`. Raises what `decide` raises,
        StoreUnavailable, or the driver's error for what the schema refuses, with nothing written;
        CommitFailed if it was COMMIT that failed.
        """
        try:
            connection = await self.connection()
        except Exception as error:
            raise StoreUnavailable(error) from error
        try:
            async with self._transaction(connection, wait=wait):
                loaded, behind = await self._load(connection, wanted, wait=wait)
                changes = decide(loaded)
                await _store(connection, changes, behind)
        except BaseException:
            self._known.forget()
            raise
        self._known.keep(loaded)

    @asynccontextmanager
    async def _transaction(
        self, connection: asyncpg.Connection, *, wait: bool
    ) -> AsyncIterator[None]:
        try:
            await connection.execute(BEGIN if wait else BEGIN_WITHOUT_LOCKED)
            yield
        except BaseException as error:
            await self._undo(connection, error)
            if wait and isinstance(error, asyncpg.LockNotAvailableError):
                raise WalletsLocked(error) from error
            if is_not_now(error):
                raise StoreUnavailable(error) from error
            raise
        try:
            await connection.execute("COMMIT")
        except BaseException as error:
            # It may have been done. That is asked on another connection, where the question waits
            # for the locks of this one as long as they are held.
            connection.terminate()
            self._connection = None
            if isinstance(error, Exception):
                raise CommitFailed(error, self._own) from error
            raise

    async def has_committed(self, transaction: str) -> bool | None:
        """Whether the database has; None: it cannot say. Raises what the driver raises."""
        connection = await self.connection()
        try:
            committed: bool | None = await connection.fetchval(sql.COMMITTED, transaction)
        except asyncpg.InvalidParameterValueError:
            return False  # after a failover it may never have begun
        return committed

    async def _undo(self, connection: asyncpg.Connection, error: BaseException) -> None:
        try:
            if isinstance(error, TimeoutError):
                raise error  # who has not answered so far is not asked for more
            await connection.execute("ROLLBACK")
        except Exception:
            connection.terminate()
            self._connection = None

    async def _load(
        self, connection: asyncpg.Connection, wanted: Wanted, *, wait: bool
    ) -> tuple[Loaded, dict[int, str]]:
        """What is there, and where rows of those wallets stand whose place is not their own.

        A transaction is numbered when it locks its first wallet, and may wait for another one that
        a later number is writing on: its rows there are placed behind that one's.
        """
        places = await self._found(connection, wanted.wallets)
        numbers = {place[2]: number for number, place in places.items()}
        keys = [(numbers[id_], key) for id_, key in wanted.keys if id_ in numbers]
        lock = sql.LOCK if wait else sql.LOCK_FREE
        records = await connection.fetch(lock, list(places), *_columns(keys))
        clock, seen, self._own = records[0][:3]
        wallets, moved = self._locked(wanted, places, records)
        shown = self._clock.shown()  # of a clock that was given, the database's else
        verdict = self._clock.read(clock if shown is None else shown)
        loaded = Loaded(
            clock=verdict.now,
            refused=refusal(verdict),
            wallets=wallets,
            numbers=self._known.numbers,
        )
        if len(wallets) < len(places):
            loaded.locked = frozenset(place[2] for place in places.values()) - wallets.keys()
        if moved:
            await _load_open(connection, moved)
        if wanted.grants:
            await _load_named_grants(connection, loaded, wanted.grants)
        if wanted.revised:
            found = await connection.fetch(sql.WORDS, *_columns(wanted.revised))
            loaded.words = {(wallet, number): load(words, {}) for wallet, number, words in found}
        # A statement sees what was committed before it began, not during its wait for the locks.
        # That is all there is of a wallet which nobody has moved since this connection did.
        if moved or seen:
            for posting in await _load_postings(connection, loaded, sql.POSTINGS_BY_KEY, keys):
                assert posting.idempotency_key is not None
                loaded.postings[posting.wallet, posting.idempotency_key] = posting
            others = loaded.other_sides()
            for posting in await _load_postings(connection, loaded, sql.POSTINGS_BY_NUMBER, others):
                loaded.linked[posting.wallet, posting.number] = posting
            dropped = loaded.dropped_limits() if loaded.postings else []
            if dropped:
                for wallet, *columns in await connection.fetch(sql.DROPPED, *_columns(dropped)):
                    one = dropped_value(columns)
                    loaded.dropped[wallet, one.limit.number] = one
        named = loaded.held(wanted)
        if named:
            await _load_holds(connection, loaded, named)
            about = _columns(loaded.named_holds(wanted))
            for wallet, number, text, words in await connection.fetch(sql.ANNOTATIONS, *about):
                loaded.annotations[wallet, number] = Annotation(text, load(words, {}))
        if wanted.originals:
            await _load_originals(connection, wanted, loaded)
        if wanted.canceled or wanted.unpaid or wanted.returning:
            await _load_payments(connection, wanted, loaded)
        await _load_overdrafts(connection, loaded)
        if metered := loaded.metered():
            await _load_events(connection, loaded, sql.EVENTS_BY_IDENTIFIER, *_columns(metered))
        if wanted.meters:
            meters = dict(await connection.fetch(sql.METERS, list(wanted.meters)))
            loaded.meters = frozenset(meters)
            loaded.inactive_meters = frozenset(m for m, active in meters.items() if not active)
        if wanted.receipts:
            sought = _columns(loaded.receipt_places(wanted), 3)
            for wallet, provider, receipt_id, *one in await connection.fetch(sql.CREDITED, *sought):
                of_receipt = loaded.credited.setdefault((wallet, Receipt(provider, receipt_id)), [])
                of_receipt.append((one[0], one[1]))
        if wanted.subscriptions:
            found = await connection.fetch(sql.SUBSCRIPTIONS, list(wanted.subscriptions))
            loaded.subscriptions = dict(found)
        await self._load_dimensions(connection, wanted, loaded)
        return loaded, {number: last for _, _, _, number, *_, last in records if last is not None}

    def _locked(
        self, wanted: Wanted, places: dict[int, tuple[Any, ...]], records: Iterable[Sequence[Any]]
    ) -> tuple[dict[str, Wallet], list[Wallet]]:
        """The batch's wallets, each locked until the end of the transaction; by id.

        And those of them that somebody else has moved, as far as is known: their grants have to be
        read. Every posting moves a wallet's revision.
        """
        known = self._known.take(wanted.wallets)
        locked, moved = {}, []
        for _, _, _, number, *state, _ in records:
            if number is None:
                continue
            scale, *place = places[number]
            wallet = known.get(place[1])
            if wallet is None or wallet.revision != state[sql.REVISION]:
                wallet = wallet_value([*place, *state], scale)
                moved.append(wallet)
            else:
                set_terms(wallet, state)
            locked[wallet.id] = wallet
        return locked, moved

    async def _found(
        self, connection: asyncpg.Connection, wallet_ids: Iterable[str]
    ) -> dict[int, tuple[Any, ...]]:
        """What never changes of those wallets that there are, by number."""
        places = self._places
        unknown = [id_ for id_ in wallet_ids if id_ not in places]
        if unknown:
            if len(places) > PLACES_MAX:
                places.clear()
            for record in await connection.fetch(sql.WALLETS, list(wallet_ids)):
                places[record["id"]] = tuple(record)
        return {places[id_][1]: places[id_] for id_ in wallet_ids if id_ in places}

    async def _load_dimensions(
        self, connection: asyncpg.Connection, wanted: Wanted, loaded: Loaded
    ) -> None:
        """Numbers of the dimensions the batch writes under; those not found get the next ones."""
        unknown = {
            (wallet, digest(dimension)): dimension
            for wallet, dimension in wanted.dimensions(loaded)
            if (wallet, dimension) not in loaded.numbers
        }
        if not unknown:
            return
        numbered = await connection.fetch(sql.DIMENSION_NUMBERS, *_columns(unknown))
        for wallet, mark, number in numbered:
            loaded.numbers[wallet, unknown[wallet, mark]] = number
        wallets = list({wallet for wallet, _ in unknown})
        loaded.next_dimension = dict(await connection.fetch(sql.DIMENSION_NEXT, wallets))


def _columns(rows: Iterable[Sequence[Any]], width: int = 2) -> list[Sequence[Any]]:
    """Rows turned into columns; as many as a row has where there is none."""
    return list(zip(*rows, strict=True)) or [()] * width


async def _load_open(connection: asyncpg.Connection, wallets: list[Wallet]) -> None:
    found: dict[int, list[Grant]] = {wallet.number: [] for wallet in wallets}
    for number, *columns in await connection.fetch(sql.OPEN_GRANTS, list(found)):
        found[number].append(GRANT.value(columns))
    holds: dict[int, list[Hold]] = {wallet.number: [] for wallet in wallets}
    for number, *columns in await connection.fetch(sql.OPEN_HOLDS, list(holds)):
        holds[number].append(HOLD.value(columns))
    for wallet in wallets:
        wallet.fill(found[wallet.number], holds[wallet.number])
    gaps = [place for wallet in wallets if (place := forgiving(wallet))]
    if gaps:
        by_number = {wallet.number: wallet for wallet in wallets}
        for number, begins, ends in await connection.fetch(sql.FORGIVEN, *_columns(gaps)):
            by_number[number].forgiven.append((begins, ends))
    owing = {wallet.number: wallet for wallet in wallets if wallet.unpaid_amount}
    if owing:
        for number, *columns in await connection.fetch(sql.UNPAID_EVENTS, list(owing)):
            event = EVENT.value(columns)
            owing[number].unpaid[event.number] = event
    limited = {wallet.number: wallet for wallet in wallets if wallet.limits_made}
    if limited:
        limits: dict[int, list[SpendLimit]] = {number: [] for number in limited}
        for number, *columns in await connection.fetch(sql.LIMITS, list(limited)):
            limits[number].append(LIMIT.value(columns))
        for number, wallet in limited.items():
            wallet.limits = tuple(limits[number])


async def _load_holds(
    connection: asyncpg.Connection, loaded: Loaded, named: Iterable[tuple[int, int]]
) -> None:
    """Holds that are named, ended or not, of the batch's own wallets, and what they are for."""
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    missing = [place for place in named if place[1] not in wallets[place[0]].holds]
    for wallet, *columns in await connection.fetch(sql.NAMED_HOLDS, *_columns(missing)):
        hold = HOLD.value(columns)
        wallets[wallet].holds[hold.number] = hold
    places = loaded.dimensions_of(named)
    for wallet, number, *columns in await connection.fetch(sql.DIMENSIONS, *_columns(places)):
        loaded.dimensions[wallet, number] = DIMENSION.value(columns)


async def _load_named_grants(
    connection: asyncpg.Connection, loaded: Loaded, named: Iterable[tuple[int, int]]
) -> None:
    """Grants a command refers to, used up or not, of the batch's own wallets."""
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    missing = [
        (wallet, number)
        for wallet, number in set(named)
        if wallet in wallets and number not in wallets[wallet].grants
    ]
    for number, *columns in await connection.fetch(sql.NAMED_GRANTS, *_columns(missing)):
        wallets[number].add(GRANT.value(columns))


async def _load_originals(connection: asyncpg.Connection, wanted: Wanted, loaded: Loaded) -> None:
    own = {wallet.number for wallet in loaded.wallets.values()}
    pairs = [pair for pair in wanted.originals if pair[0] in own]
    postings = await _load_postings(connection, loaded, sql.POSTINGS_BY_NUMBER, pairs)
    loaded.originals = {(posting.wallet, posting.number): posting for posting in postings}
    await _load_refunded(connection, loaded, pairs, postings)


async def _load_overdrafts(connection: asyncpg.Connection, loaded: Loaded) -> None:
    """What rows to be returned drew beyond the grants, and who paid it back."""
    places = loaded.overdraft_places()
    if not places:
        return
    for columns in await connection.fetch(sql.OVERDRAFTS, *_columns(places)):
        one = OverdraftDraw(*columns)
        loaded.overdrafts[one.wallet, one.sequence] = one
    drawn = [(one.wallet, one.start, one.end) for one in loaded.overdrafts.values()]
    paid = await connection.fetch(sql.PAYERS, *_columns(drawn, 3))
    loaded.add_payers(Payer(*row) for row in paid)
    await _load_named_grants(connection, loaded, loaded.paying())


async def _load_events(
    connection: asyncpg.Connection, loaded: Loaded, statement: str, *wanted: Sequence[Any]
) -> None:
    for wallet, *columns in await connection.fetch(statement, *wanted):
        event = EVENT.value(columns)
        loaded.events[wallet, event.number] = event


async def _load_payments(connection: asyncpg.Connection, wanted: Wanted, loaded: Loaded) -> None:
    """Events that may be canceled or go on being returned, and what was drawn for them."""
    canceled = _columns(loaded.canceled(wanted))
    await _load_events(connection, loaded, sql.NAMED_EVENTS, *canceled)
    numbers = [w.number for w in loaded.wallets.values() if w.id in wanted.returning]
    await _load_events(connection, loaded, sql.RETURNED_EVENTS, numbers)
    places = [
        (wallet, loaded.events[wallet, number].identifier, number, below)
        for (wallet, number), below in loaded.returnable().items()
    ]
    settled: dict[tuple[int, int], list[tuple[int, int]]] = {(w, n): [] for w, _, n, _ in places}
    records = await connection.fetch(sql.SETTLEMENTS, *_columns(places, 4))
    for wallet, event, number, count in records:
        settled[wallet, event].append((number, count))
    found = {place: settlements(place[1], numbers) for place, numbers in settled.items()}
    pairs = [(wallet, n) for (wallet, _), (numbers, _) in found.items() for n in numbers]
    postings = await _load_postings(connection, loaded, sql.POSTINGS_BY_NUMBER, pairs)
    loaded.pay(found, postings)
    await _load_refunded(connection, loaded, pairs, postings)


async def _load_refunded(
    connection: asyncpg.Connection,
    loaded: Loaded,
    pairs: Sequence[tuple[int, int]],
    postings: Iterable[Posting],
) -> None:
    """What was refunded of these postings, and the grants that they drew on."""
    for wallet, number, amount in await connection.fetch(sql.REFUNDED, *_columns(pairs)):
        loaded.refunded[wallet, number] = amount
    rows = [row for posting in postings for row in posting.rows]
    drawn_on = [(row.wallet, row.grant) for row in rows if row.grant is not None]
    await _load_named_grants(connection, loaded, drawn_on)


async def _load_postings(
    connection: asyncpg.Connection,
    loaded: Loaded,
    statement: str,
    pairs: Sequence[tuple[int, int] | tuple[int, str]],
) -> list[Posting]:
    """Postings with their rows, and the rows' dimensions beside them."""
    found = await connection.fetch(statement, *_columns(pairs)) if pairs else []
    if not found:
        return []
    postings = {}
    ranges = []
    for first, count, *columns in found:
        posting = posting_value(columns)
        postings[posting.wallet, posting.number] = posting
        ranges.append((posting.wallet, first, first + count - 1))
    for record in await connection.fetch(sql.ROWS, *_columns(ranges, 3)):
        row = Row(*record)
        postings[row.wallet, row.posting].rows.append(row)
    places = {(row.wallet, row.dimension) for p in postings.values() for row in p.rows[:1]}
    for wallet, number, *columns in await connection.fetch(sql.DIMENSIONS, *_columns(places)):
        loaded.dimensions[wallet, number] = DIMENSION.value(columns)
    return list(postings.values())


async def _store(connection: asyncpg.Connection, changes: Changes, behind: dict[int, str]) -> None:
    """At most five statements however many postings."""
    if changes.terms:
        terms = [(n, *WALLET_TERMS.stored(w)) for n, w in changes.terms.items()]
        await connection.fetch(sql.WRITE_TERMS, *_columns(terms))
        closed = [(w.number, w.updated_at) for w in changes.closed()]
        if closed:
            await connection.fetch(sql.WRITE_CLOSED, *_columns(closed))
    # What is given in the same batch is inserted as it has become.
    revised = [
        (*place, *GRANT_TERMS.stored(grant))
        for place, grant in changes.revised.items()
        if place not in changes.given
    ]
    if revised:
        await connection.fetch(sql.WRITE_REVISED, *_columns(revised))
    # Before what remains of them, which is no more than their amount.
    grown = [(*place, *GRANT_GROWN.stored(one)) for place, one in changes.grown.items()]
    if grown:
        await connection.fetch(sql.WRITE_GROWN, *_columns(grown))
    repaid = [
        (*place, *GRANT_REPAID.stored(grant), grant.remaining > 0)
        for place, grant in changes.repaid.items()
        if place not in changes.given
    ]
    if repaid:
        await connection.fetch(sql.WRITE_REPAID, *_columns(repaid))
    free = [place for place, one in changes.receipts.items() if one is None]
    if free:
        await connection.fetch(sql.FREE_RECEIPTS, *_columns(free))
    if changes.overdrawn:
        owing = [(n, *WALLET_OVERDRAFT.stored(w)) for n, w in changes.overdrawn.items()]
        await connection.fetch(sql.WRITE_OVERDRAWN, *_columns(owing))
    if not (changes.touched or changes.holds):
        return
    parts: dict[str, list[Sequence[Any]]] = {
        "named": [(w, n, digest(d), *DIMENSION.stored(d)) for w, n, d in changes.dimensions],
        "given": [
            (wallet, *GRANT.stored(grant), grant.remaining > 0)
            for (wallet, _), grant in changes.given.items()
        ],
        "drawn": [
            (wallet, number, grant.remaining, grant.remaining > 0)
            for (wallet, number), (grant, _) in changes.drawn.items()
            if (wallet, number) not in changes.repaid
        ],
        "held": [(wallet, *HOLD.stored(hold)) for (wallet, _), hold in changes.holds.items()],
        "counted": [(wallet, *EVENT.stored(one)) for (wallet, _), one in changes.events.items()],
        "limited": [(w, *LIMIT.stored(one)) for (w, _), one in changes.limits.items() if one],
        "unlimited": [place for place, one in changes.limits.items() if one is None],
        "dropped": [(w, *DROPPED_LIMIT.stored(one)) for (w, _), one in changes.dropped.items()],
        "parted": list(changes.parts),
        "credited": [one for one in changes.receipts.values() if one is not None],
        "became": list(map(HOLD_REVISION.stored, changes.revisions)),
        "revised": list(map(GRANT_REVISION.stored, changes.grant_revisions)),
        "overdrafts": list(map(OVERDRAFT.stored, changes.overdrafts.values())),
        "payers": list(changes.payers),
        "overdraft_returns": list(changes.overdraft_returns),
        "repaid": list(changes.repayments),
        "posted": list(map(posting_columns, changes.postings)),
        "added": [(*place, *sums) for place, sums in changes.rollups.items()],
        "written": [] if behind else list(changes.rows),
        "placed": [(*row, behind.get(row.wallet)) for row in changes.rows] if behind else [],
    }
    there = tuple(name for name, rows in parts.items() if rows)
    moved = [(n, *counters(wallet)) for n, wallet in changes.touched.items()]
    await connection.fetch(
        sql.write_statement(there),
        *(column for name in there for column in _columns(parts[name])),
        *_columns(moved, 1 + len(COUNTER_NAMES)),
    )
