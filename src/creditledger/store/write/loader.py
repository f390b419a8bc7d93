"""What a batch reads, in which order: written once, for both databases.

A loader does no I/O. It is a generator that yields a lookup and its keys, and is sent the rows. A
driver runs it: SQLite in the writer's thread, PostgreSQL with `await`. A lookup without keys is not
run.
"""

from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Any, TypeVar

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
from creditledger.store.write import lookups
from creditledger.store.write.batch import Loaded, Wanted, settlements
from creditledger.store.write.columns import (
    DIMENSION,
    EVENT,
    GRANT,
    HOLD,
    LIMIT,
    digest,
    dropped_value,
    load,
    posting_value,
)
from creditledger.store.write.lookups import Lookup

T = TypeVar("T")

#: What a lookup finds, each row a sequence of its columns.
Rows = Sequence[Any]
Loading = Generator[tuple[Lookup, Sequence[Any]], Rows, T]
Pairs = Iterable[tuple[int, int]]


def loading(
    loaded: Loaded, wanted: Wanted, unread: Sequence[Wallet], *, replays: bool = True
) -> Loading[None]:
    """Fill `loaded`, which has the batch's wallets, with all that the batch wants.

    `unread`: those of its wallets that are still without grants. `replays`: whether any key of the
    batch may be there. 1 to 25 lookups, however many commands the batch has.
    """
    yield from _open(unread)
    yield from _named_grants(loaded, wanted.grants)
    for wallet, number, words in (yield from _rows(lookups.GRANT_METADATA, wanted.revised)):
        loaded.words[wallet, number] = load(words, {})
    if replays:
        yield from _replays(loaded, wanted)
    yield from _holds(loaded, wanted)
    yield from _originals(loaded, wanted)
    if wanted.canceled or wanted.unpaid or wanted.returning:
        yield from _payments(loaded, wanted)
    yield from _overdrafts(loaded)
    yield from _events(loaded, lookups.EVENTS_BY_IDENTIFIER, loaded.metered())
    meters = dict((yield from _rows(lookups.METERS, wanted.meters)))
    loaded.meters = frozenset(meters)
    loaded.inactive_meters = frozenset(id_ for id_, active in meters.items() if not active)
    receipts = yield from _rows(lookups.CREDITED, loaded.receipt_places(wanted))
    for wallet, provider, receipt_id, grant, posting in receipts:
        of_receipt = loaded.credited.setdefault((wallet, Receipt(provider, receipt_id)), [])
        of_receipt.append((grant, posting))
    loaded.subscriptions = dict((yield from _rows(lookups.SUBSCRIPTIONS, wanted.subscriptions)))
    yield from _dimension_numbers(loaded, wanted)


def _rows(lookup: Lookup, keys: Collection[Any]) -> Loading[Rows]:
    if not keys:
        return ()
    return (yield lookup, list(keys))


def _open(wallets: Sequence[Wallet]) -> Loading[None]:
    """Open grants and holds, unpaid events and limits: 2 to 5 lookups."""
    by_number = {wallet.number: wallet for wallet in wallets}
    grants: dict[int, list[Grant]] = {number: [] for number in by_number}
    for number, *columns in (yield from _rows(lookups.OPEN_GRANTS, by_number)):
        grants[number].append(GRANT.value(columns))
    holds: dict[int, list[Hold]] = {number: [] for number in by_number}
    for number, *columns in (yield from _rows(lookups.OPEN_HOLDS, by_number)):
        holds[number].append(HOLD.value(columns))
    for number, wallet in by_number.items():
        wallet.fill(grants[number], holds[number])
    gaps = [place for wallet in wallets if (place := forgiving(wallet))]
    for number, begins, ends in (yield from _rows(lookups.FORGIVEN, gaps)):
        by_number[number].forgiven.append((begins, ends))
    owing = [wallet.number for wallet in wallets if wallet.unpaid_amount]
    for number, *columns in (yield from _rows(lookups.UNPAID_EVENTS, owing)):
        event = EVENT.value(columns)
        by_number[number].unpaid[event.number] = event
    limited: dict[int, list[SpendLimit]] = {w.number: [] for w in wallets if w.limits_made}
    for number, *columns in (yield from _rows(lookups.LIMITS, limited)):
        limited[number].append(LIMIT.value(columns))
    for number, limits in limited.items():
        by_number[number].limits = tuple(limits)


def _named_grants(loaded: Loaded, named: Pairs) -> Loading[None]:
    """Grants that a command refers to, used up or not, of the batch's own wallets."""
    places = set(named)
    if not places:
        return
    wallets = _by_number(loaded)
    missing = [
        (wallet, number)
        for wallet, number in places
        if wallet in wallets and number not in wallets[wallet].grants
    ]
    for wallet, *columns in (yield from _rows(lookups.NAMED_GRANTS, missing)):
        wallets[wallet].add(GRANT.value(columns))


def _replays(loaded: Loaded, wanted: Wanted) -> Loading[None]:
    """Postings under the batch's keys, and what their answers show."""
    wallets = loaded.wallets
    keys = [(wallets[id_].number, key) for id_, key in wanted.keys if id_ in wallets]
    for posting in (yield from _postings(loaded, lookups.POSTINGS_BY_KEY, keys)):
        assert posting.idempotency_key is not None
        loaded.postings[posting.wallet, posting.idempotency_key] = posting
    others = loaded.other_sides()
    for posting in (yield from _postings(loaded, lookups.POSTINGS_BY_NUMBER, others)):
        loaded.linked[posting.wallet, posting.number] = posting
    dropped = loaded.dropped_limits()
    for wallet, *columns in (yield from _rows(lookups.DROPPED_LIMITS, dropped)):
        one = dropped_value(columns)
        loaded.dropped[wallet, one.limit.number] = one


def _holds(loaded: Loaded, wanted: Wanted) -> Loading[None]:
    """Holds that are named, ended or not, of the batch's own wallets, and what they are for."""
    held = loaded.held(wanted)
    if not held:
        return
    wallets = _by_number(loaded)
    missing = [place for place in held if place[1] not in wallets[place[0]].holds]
    for wallet, *columns in (yield from _rows(lookups.NAMED_HOLDS, missing)):
        hold = HOLD.value(columns)
        wallets[wallet].holds[hold.number] = hold
    yield from _dimensions(loaded, loaded.dimensions_of(held))
    named = loaded.named_holds(wanted)
    for wallet, number, text, words in (yield from _rows(lookups.ANNOTATIONS, named)):
        loaded.annotations[wallet, number] = Annotation(text, load(words, {}))


def _originals(loaded: Loaded, wanted: Wanted) -> Loading[None]:
    """Postings that are to be refunded."""
    if not wanted.originals:
        return
    own = _by_number(loaded)
    pairs = [pair for pair in wanted.originals if pair[0] in own]
    postings = yield from _postings(loaded, lookups.POSTINGS_BY_NUMBER, pairs)
    loaded.originals = {(posting.wallet, posting.number): posting for posting in postings}
    yield from _refunded(loaded, pairs, postings)


def _payments(loaded: Loaded, wanted: Wanted) -> Loading[None]:
    """Events that may be canceled or go on being returned, and what was drawn for them."""
    yield from _events(loaded, lookups.NAMED_EVENTS, loaded.canceled(wanted))
    numbers = [w.number for w in loaded.wallets.values() if w.id in wanted.returning]
    yield from _events(loaded, lookups.RETURNED_EVENTS, numbers)
    places = [
        (wallet, loaded.events[wallet, number].identifier, number, below)
        for (wallet, number), below in loaded.returnable().items()
    ]
    settled: dict[tuple[int, int], list[tuple[int, int]]] = {(w, n): [] for w, _, n, _ in places}
    for wallet, event, number, count in (yield from _rows(lookups.SETTLEMENTS, places)):
        settled[wallet, event].append((number, count))
    found = {place: settlements(place[1], numbers) for place, numbers in settled.items()}
    pairs = [(wallet, n) for (wallet, _), (numbers, _) in found.items() for n in numbers]
    postings = yield from _postings(loaded, lookups.POSTINGS_BY_NUMBER, pairs)
    loaded.add_payments(found, postings)
    yield from _refunded(loaded, pairs, postings)


def _refunded(
    loaded: Loaded, pairs: Sequence[tuple[int, int]], postings: Iterable[Posting]
) -> Loading[None]:
    """What was refunded of these postings, and the grants that they drew on."""
    for wallet, number, amount in (yield from _rows(lookups.REFUNDED, pairs)):
        loaded.refunded[wallet, number] = amount
    rows = [row for posting in postings for row in posting.rows]
    drawn_on = [(row.wallet, row.grant) for row in rows if row.grant is not None]
    yield from _named_grants(loaded, drawn_on)


def _overdrafts(loaded: Loaded) -> Loading[None]:
    """What rows to be returned drew beyond the grants, and who paid it back."""
    for columns in (yield from _rows(lookups.OVERDRAFTS, loaded.overdraft_places())):
        one = OverdraftDraw(*columns)
        loaded.overdrafts[one.wallet, one.sequence] = one
    drawn = [(one.wallet, one.start, one.end) for one in loaded.overdrafts.values()]
    paid = yield from _rows(lookups.PAYERS, drawn)
    loaded.add_payers(Payer(*columns) for columns in paid)
    yield from _named_grants(loaded, loaded.paying())


def _events(loaded: Loaded, lookup: Lookup, keys: Collection[Any]) -> Loading[None]:
    for wallet, *columns in (yield from _rows(lookup, keys)):
        event = EVENT.value(columns)
        loaded.events[wallet, event.number] = event


def _postings(loaded: Loaded, lookup: Lookup, keys: Collection[Any]) -> Loading[list[Posting]]:
    """Postings with their rows, and the rows' dimensions beside them."""
    postings = {}
    ranges = []
    for first, count, *columns in (yield from _rows(lookup, keys)):
        posting = posting_value(columns)
        postings[posting.wallet, posting.number] = posting
        ranges.append((posting.wallet, first, first + count - 1))
    for found in (yield from _rows(lookups.ROWS, ranges)):
        row = Row(*found)
        postings[row.wallet, row.posting].rows.append(row)
    rows = [row for posting in postings.values() for row in posting.rows[:1]]
    yield from _dimensions(loaded, {(row.wallet, row.dimension) for row in rows})
    return list(postings.values())


def _dimensions(loaded: Loaded, places: Collection[tuple[int, int]]) -> Loading[None]:
    for wallet, number, *columns in (yield from _rows(lookups.DIMENSIONS, places)):
        loaded.dimensions[wallet, number] = DIMENSION.value(columns)


def _dimension_numbers(loaded: Loaded, wanted: Wanted) -> Loading[None]:
    """Numbers of the dimensions that the batch writes under; one without a number gets the next."""
    unknown = {
        (wallet, digest(dimension)): dimension
        for wallet, dimension in wanted.dimensions(loaded)
        if (wallet, dimension) not in loaded.numbers
    }
    for wallet, mark, number in (yield from _rows(lookups.DIMENSION_NUMBERS, unknown)):
        loaded.numbers[wallet, unknown[wallet, mark]] = number
    wallets = {wallet for wallet, _ in unknown}
    loaded.next_dimension = dict((yield from _rows(lookups.DIMENSION_NEXT, wallets)))


def _by_number(loaded: Loaded) -> dict[int, Wallet]:
    return {wallet.number: wallet for wallet in loaded.wallets.values()}
