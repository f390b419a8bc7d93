"""SQLite: what a batch reads and writes, in bare SQL on the driver.

For each step that the
driver takes, a row read or written, it lets go of the interpreter's lock; a thread that parses or
prints meanwhile gives it back 5 ms later. So what is read and written often takes one step for many
rows: reads answer one JSON array, writes take up to 256 rows a statement.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from creditledger.domain.model import (
    RETURNED_ROWS_MAX,
    Annotation,
    Dimension,
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
    EVENT_CHANGED,
    GRANT,
    GRANT_GROWN,
    GRANT_PART,
    GRANT_REPAID,
    GRANT_REPAYMENT,
    GRANT_REVISION,
    GRANT_TERMS,
    HOLD,
    HOLD_CHANGED,
    HOLD_REVISION,
    LIMIT,
    LIMIT_CHANGED,
    OVERDRAFT,
    PAYER,
    POSTING_INSERTED,
    POSTING_NAMES,
    RECEIPT,
    ROW,
    STATE_NAMES,
    SUM_NAMES,
    WALLET,
    WALLET_OVERDRAFT,
    WALLET_TERMS,
    counters,
    digest,
    dropped_value,
    load,
    posting_columns,
    posting_value,
    wallet_value,
)
from creditledger.store.write.batch import Changes, Loaded, Wanted, settlements

# --- reading what a batch wants; each a statement however many postings the batch has ------------


def _of(table: str, columns: list[str]) -> str:
    return ", ".join(f"{table}.{name}" for name in columns)


_WALLETS = f"""
SELECT json_group_array(json_array(c.scale, {WALLET.sql("w")}, {_of("s", STATE_NAMES)}))
FROM json_each(?) AS j CROSS JOIN wallets AS w ON w.id = j.value
JOIN wallet_states AS s ON s.wallet_number = w.number
JOIN currencies AS c ON c.code = w.currency"""

# Told by which index: to SQLite all grants of a wallet are as few as those that are open.
_OPEN_GRANTS = f"""
SELECT json_group_array(json_array(g.wallet_number, {GRANT.sql("g")}))
FROM json_each(?) AS j CROSS JOIN grants AS g INDEXED BY grants_open
  ON g.wallet_number = j.value AND g.open = 1"""

_OPEN_HOLDS = f"""
SELECT json_group_array(json_array(h.wallet_number, {HOLD.sql("h")}))
FROM json_each(?) AS j CROSS JOIN holds AS h INDEXED BY holds_open
  ON h.wallet_number = j.value AND h.ended IS NULL"""

_UNPAID_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM json_each(?) AS j CROSS JOIN meter_events AS e INDEXED BY meter_events_unpaid
  ON e.wallet_number = j.value AND e.unpaid > 0
ORDER BY e.wallet_number, e.created_at, e.number"""

_NAMED_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")} FROM json_each(?) AS j
CROSS JOIN meter_events AS e ON e.wallet_number = json_extract(j.value, '$[0]')
 AND e.number = json_extract(j.value, '$[1]')"""

_EVENTS_BY_IDENTIFIER = f"""
SELECT e.wallet_number, {EVENT.sql("e")} FROM json_each(?) AS j
CROSS JOIN meter_events AS e ON e.wallet_number = json_extract(j.value, '$[0]')
 AND e.identifier = json_extract(j.value, '$[1]')"""

_RETURNED_EVENTS = f"""
SELECT e.wallet_number, {EVENT.sql("e")}
FROM json_each(?) AS j CROSS JOIN meter_events AS e INDEXED BY meter_events_returned
  ON e.wallet_number = j.value AND e.return_below IS NOT NULL"""

_SETTLEMENTS = f"""
SELECT p.number, p.row_count FROM postings AS p INDEXED BY postings_settlements
WHERE p.operation = 14 AND p.wallet_number = ? AND p.meter_event_id = ? AND p.first_sequence < ?
ORDER BY p.first_sequence DESC LIMIT {RETURNED_ROWS_MAX}"""

_LIMITS = f"""
SELECT l.wallet_number, {LIMIT.sql("l")} FROM json_each(?) AS j
CROSS JOIN spend_limits AS l ON l.wallet_number = j.value ORDER BY l.wallet_number, l.number"""

_DROPPED = f"""
SELECT l.wallet_number, {DROPPED_LIMIT.sql("l")} FROM json_each(?) AS j
CROSS JOIN dropped_limits AS l ON l.wallet_number = json_extract(j.value, '$[0]')
 AND l.number = json_extract(j.value, '$[1]')"""

_NAMED_HOLDS = f"""
SELECT h.wallet_number, {HOLD.sql("h")} FROM json_each(?) AS j
CROSS JOIN holds AS h ON h.wallet_number = json_extract(j.value, '$[0]')
 AND h.number = json_extract(j.value, '$[1]')"""

#: What the postings say that made these holds.
_ANNOTATIONS = """
SELECT p.wallet_number, p.number, p.description, p.metadata FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.number = json_extract(j.value, '$[1]')"""

_NAMED_GRANTS = f"""
SELECT g.wallet_number, {GRANT.sql("g")} FROM json_each(?) AS j
CROSS JOIN grants AS g ON g.wallet_number = json_extract(j.value, '$[0]')
 AND g.number = json_extract(j.value, '$[1]')"""

#: Until it is changed, a grant's metadata is that of the posting that gave it.
_WORDS = """
SELECT g.wallet_number, g.number, CASE WHEN g.revision > 0 THEN r.metadata ELSE p.metadata END
FROM json_each(?) AS j
CROSS JOIN grants AS g ON g.wallet_number = json_extract(j.value, '$[0]')
 AND g.number = json_extract(j.value, '$[1]')
LEFT JOIN grant_revisions AS r ON r.wallet_number = g.wallet_number
 AND r.grant_number = g.number AND r.number = g.revision
LEFT JOIN credit_transactions AS t ON t.wallet_number = g.wallet_number AND t.sequence = g.number
LEFT JOIN postings AS p ON p.wallet_number = t.wallet_number AND p.number = t.posting_number"""

_POSTINGS_BY_KEY = f"""
SELECT p.first_sequence, p.row_count, {_of("p", POSTING_NAMES)} FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.idempotency_key = json_extract(j.value, '$[1]')"""

_POSTINGS_BY_NUMBER = f"""
SELECT p.first_sequence, p.row_count, {_of("p", POSTING_NAMES)} FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.number = json_extract(j.value, '$[1]')"""

_ROWS = f"""
SELECT {ROW.sql("t")} FROM json_each(?) AS j
CROSS JOIN credit_transactions AS t ON t.wallet_number = json_extract(j.value, '$[0]')
 AND t.sequence BETWEEN json_extract(j.value, '$[1]') AND json_extract(j.value, '$[2]')
ORDER BY t.wallet_number, t.sequence"""

#: What refunds gave back of overdrafts above where the wallet is paid back to.
_FORGIVEN = """
SELECT o.wallet_number, o.start + o.amount - o.forgiven, o.start + o.amount
FROM json_each(?) AS j CROSS JOIN overdraft_draws AS o INDEXED BY overdraft_draws_forgiven
  ON o.wallet_number = json_extract(j.value, '$[0]') AND o.forgiven > 0
 AND o.start >= coalesce((SELECT max(b.start) FROM overdraft_draws AS b
   INDEXED BY overdraft_draws_forgiven WHERE b.wallet_number = json_extract(j.value, '$[0]')
   AND b.forgiven > 0 AND b.start <= json_extract(j.value, '$[1]')), 0)
WHERE o.start + o.amount > json_extract(j.value, '$[1]')
ORDER BY o.wallet_number, o.start"""

_OVERDRAFTS = f"""
SELECT {OVERDRAFT.sql("o")} FROM json_each(?) AS j
CROSS JOIN overdraft_draws AS o ON o.wallet_number = json_extract(j.value, '$[0]')
 AND o.sequence = json_extract(j.value, '$[1]')"""

#: Stretches do not overlap, so those of a draw begin with the last one that begins before it.
_PAYERS = f"""
SELECT {PAYER.sql("p")} FROM json_each(?) AS j
CROSS JOIN overdraft_payers AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.start < json_extract(j.value, '$[2]') AND p.start >= coalesce((
   SELECT max(b.start) FROM overdraft_payers AS b
   WHERE b.wallet_number = json_extract(j.value, '$[0]')
   AND b.start <= json_extract(j.value, '$[1]')), 0)
WHERE p.until > json_extract(j.value, '$[1]')"""

_DIMENSIONS = f"""
SELECT d.wallet_number, d.number, {DIMENSION.sql("d")} FROM json_each(?) AS j
CROSS JOIN dimensions AS d ON d.wallet_number = json_extract(j.value, '$[0]')
 AND d.number = json_extract(j.value, '$[1]')"""

_DIMENSION_NUMBERS = """
SELECT d.wallet_number, d.digest, d.number FROM json_each(?) AS j
CROSS JOIN dimensions AS d ON d.wallet_number = json_extract(j.value, '$[0]')
 AND d.digest = json_extract(j.value, '$[1]')"""

_DIMENSION_NEXT = """
SELECT j.value, 1 + coalesce((SELECT max(d.number) FROM dimensions AS d
                              WHERE d.wallet_number = j.value), 0)
FROM json_each(?) AS j"""

_REFUNDED = """
SELECT p.wallet_number, p.refund_of, sum(t.amount)
FROM json_each(?) AS j
CROSS JOIN postings AS p ON p.wallet_number = json_extract(j.value, '$[0]')
 AND p.refund_of = json_extract(j.value, '$[1]')
JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
 AND t.sequence >= p.first_sequence AND t.sequence < p.first_sequence + p.row_count
GROUP BY p.wallet_number, p.refund_of"""

#: Grants that have credited these receipts, oldest first, and the postings that gave them.
_CREDITED = """
SELECT r.wallet_number, r.provider, r.receipt_id, r.grant_number, t.posting_number
FROM json_each(?) AS j CROSS JOIN receipts AS r ON r.wallet_number = json_extract(j.value, '$[0]')
 AND r.provider = json_extract(j.value, '$[1]') AND r.receipt_id = json_extract(j.value, '$[2]')
CROSS JOIN credit_transactions AS t ON t.wallet_number = r.wallet_number
 AND t.sequence = r.grant_number ORDER BY r.grant_number"""

_METERS = "SELECT m.id, m.active FROM json_each(?) AS j CROSS JOIN meters AS m ON m.id = j.value"
_SUBSCRIPTIONS = (
    "SELECT s.id, s.customer_id FROM json_each(?) AS j"
    " CROSS JOIN subscriptions AS s ON s.id = j.value"
)


def load_wallets(driver: sqlite3.Connection, wallet_ids: Sequence[str]) -> list[Wallet]:
    """Those that exist, with open grants and holds, unpaid events, limits: 3 to 5 statements."""
    (found,) = driver.execute(_WALLETS, (json.dumps(wallet_ids),)).fetchone()
    wallets = [wallet_value(columns, scale) for scale, *columns in json.loads(found)]
    grants: dict[int, list[Grant]] = {wallet.number: [] for wallet in wallets}
    (found,) = driver.execute(_OPEN_GRANTS, (json.dumps(list(grants)),)).fetchone()
    for number, *columns in json.loads(found):
        grants[number].append(GRANT.value(columns))
    holds: dict[int, list[Hold]] = {wallet.number: [] for wallet in wallets}
    (found,) = driver.execute(_OPEN_HOLDS, (json.dumps(list(holds)),)).fetchone()
    for number, *columns in json.loads(found):
        holds[number].append(HOLD.value(columns))
    for wallet in wallets:
        wallet.fill(grants[wallet.number], holds[wallet.number])
    gaps = [place for wallet in wallets if (place := forgiving(wallet))]
    if gaps:
        by_number = {wallet.number: wallet for wallet in wallets}
        for number, begins, ends in driver.execute(_FORGIVEN, (json.dumps(gaps),)):
            by_number[number].forgiven.append((begins, ends))
    owing = {wallet.number: wallet for wallet in wallets if wallet.unpaid_amount}
    if owing:
        for number, *columns in driver.execute(_UNPAID_EVENTS, (json.dumps(list(owing)),)):
            event = EVENT.value(columns)
            owing[number].unpaid[event.number] = event
    limited = {wallet.number: wallet for wallet in wallets if wallet.limits_made}
    if limited:
        limits: dict[int, list[SpendLimit]] = {number: [] for number in limited}
        for number, *columns in driver.execute(_LIMITS, (json.dumps(list(limited)),)):
            limits[number].append(LIMIT.value(columns))
        for number, wallet in limited.items():
            wallet.limits = tuple(limits[number])
    return wallets


def load_referred(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    """What the commands name beside their wallets, which are loaded. One to 20 statements.

    And a few for each meter event that is canceled.
    """
    if wanted.grants:
        _load_named_grants(driver, loaded, wanted.grants)
    if wanted.revised:
        for wallet, number, words in driver.execute(_WORDS, (json.dumps(list(wanted.revised)),)):
            loaded.words[wallet, number] = load(words, {})
    _load_replays(driver, wanted, loaded)
    named = loaded.held(wanted)
    if named:
        _load_holds(driver, loaded, named)
        places = json.dumps(loaded.named_holds(wanted))
        for wallet, number, text, words in driver.execute(_ANNOTATIONS, (places,)):
            loaded.annotations[wallet, number] = Annotation(text, load(words, {}))
    if wanted.originals:
        _load_originals(driver, wanted, loaded)
    if wanted.canceled or wanted.unpaid or wanted.returning:
        _load_payments(driver, wanted, loaded)
    _load_overdrafts(driver, loaded)
    if metered := loaded.metered():
        _load_events(driver, loaded, _EVENTS_BY_IDENTIFIER, metered)
    if wanted.meters:
        meters = dict(driver.execute(_METERS, (json.dumps(list(wanted.meters)),)))
        loaded.meters = frozenset(meters)
        loaded.inactive_meters = frozenset(m for m, active in meters.items() if not active)
    if wanted.receipts:
        places = json.dumps(loaded.receipt_places(wanted))
        for wallet, provider, receipt_id, *credited in driver.execute(_CREDITED, (places,)):
            of_receipt = loaded.credited.setdefault((wallet, Receipt(provider, receipt_id)), [])
            of_receipt.append((credited[0], credited[1]))
    if wanted.subscriptions:
        found = driver.execute(_SUBSCRIPTIONS, (json.dumps(list(wanted.subscriptions)),))
        loaded.subscriptions = dict(found)


def load_dimensions(
    driver: sqlite3.Connection, pairs: Iterable[tuple[int, Dimension]], loaded: Loaded
) -> None:
    """Numbers of dimensions by wallet, and for those that have none yet the next number."""
    unknown = {(wallet, digest(dimension)): dimension for wallet, dimension in pairs}
    for wallet, mark, number in driver.execute(_DIMENSION_NUMBERS, (json.dumps(list(unknown)),)):
        loaded.numbers[wallet, unknown[wallet, mark]] = number
    wallets = json.dumps(list({wallet for wallet, _ in unknown}))
    loaded.next_dimension = dict(driver.execute(_DIMENSION_NEXT, (wallets,)))


def _load_named_grants(
    driver: sqlite3.Connection, loaded: Loaded, named: Iterable[tuple[int, int]]
) -> None:
    """Grants a command refers to, used up or not, of the batch's own wallets."""
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    missing = [
        (wallet, number)
        for wallet, number in set(named)
        if wallet in wallets and number not in wallets[wallet].grants
    ]
    for number, *columns in driver.execute(_NAMED_GRANTS, (json.dumps(missing),)):
        wallets[number].add(GRANT.value(columns))


def _load_holds(
    driver: sqlite3.Connection, loaded: Loaded, named: Iterable[tuple[int, int]]
) -> None:
    """Holds that are named, ended or not, of the batch's own wallets, and what they are for."""
    wallets = {wallet.number: wallet for wallet in loaded.wallets.values()}
    missing = [place for place in named if place[1] not in wallets[place[0]].holds]
    for wallet, *columns in driver.execute(_NAMED_HOLDS, (json.dumps(missing),)):
        hold = HOLD.value(columns)
        wallets[wallet].holds[hold.number] = hold
    places = loaded.dimensions_of(named)
    for wallet, number, *columns in driver.execute(_DIMENSIONS, (json.dumps(places),)):
        loaded.dimensions[wallet, number] = DIMENSION.value(columns)


def _load_replays(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    wallets = loaded.wallets
    pairs = [(wallets[wallet].number, key) for wallet, key in wanted.keys if wallet in wallets]
    for posting in _load_postings(driver, loaded, _POSTINGS_BY_KEY, pairs):
        assert posting.idempotency_key is not None
        loaded.postings[posting.wallet, posting.idempotency_key] = posting
    others = loaded.other_sides()
    for posting in _load_postings(driver, loaded, _POSTINGS_BY_NUMBER, others):
        loaded.linked[posting.wallet, posting.number] = posting
    dropped = loaded.dropped_limits() if loaded.postings else []
    if dropped:
        for wallet, *columns in driver.execute(_DROPPED, (json.dumps(dropped),)):
            one = dropped_value(columns)
            loaded.dropped[wallet, one.limit.number] = one


def _load_originals(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    own = {wallet.number for wallet in loaded.wallets.values()}
    pairs = [pair for pair in wanted.originals if pair[0] in own]
    postings = _load_postings(driver, loaded, _POSTINGS_BY_NUMBER, pairs)
    loaded.originals = {(posting.wallet, posting.number): posting for posting in postings}
    _load_refunded(driver, loaded, pairs, postings)


def _load_overdrafts(driver: sqlite3.Connection, loaded: Loaded) -> None:
    """What rows to be returned drew beyond the grants, and who paid it back."""
    places = loaded.overdraft_places()
    if not places:
        return
    for columns in driver.execute(_OVERDRAFTS, (json.dumps(places),)):
        loaded.overdrafts[columns[:2]] = OverdraftDraw(*columns)
    drawn = [(one.wallet, one.start, one.end) for one in loaded.overdrafts.values()]
    loaded.add_payers(Payer(*row) for row in driver.execute(_PAYERS, (json.dumps(drawn),)))
    _load_named_grants(driver, loaded, loaded.paying())


def _load_events(
    driver: sqlite3.Connection, loaded: Loaded, statement: str, wanted: Sequence[object]
) -> None:
    for wallet, *columns in driver.execute(statement, (json.dumps(wanted),)):
        event = EVENT.value(columns)
        loaded.events[wallet, event.number] = event


def _load_payments(driver: sqlite3.Connection, wanted: Wanted, loaded: Loaded) -> None:
    """Events that may be canceled or go on being returned, and what was drawn for them."""
    _load_events(driver, loaded, _NAMED_EVENTS, loaded.canceled(wanted))
    numbers = [w.number for w in loaded.wallets.values() if w.id in wanted.returning]
    _load_events(driver, loaded, _RETURNED_EVENTS, numbers)
    found = {}
    for (wallet, number), below in loaded.returnable().items():
        place = wallet, loaded.events[wallet, number].identifier, below
        found[wallet, number] = settlements(number, driver.execute(_SETTLEMENTS, place).fetchall())
    pairs = [(wallet, n) for (wallet, _), (numbers, _) in found.items() for n in numbers]
    postings = _load_postings(driver, loaded, _POSTINGS_BY_NUMBER, pairs)
    loaded.pay(found, postings)
    _load_refunded(driver, loaded, pairs, postings)


def _load_refunded(
    driver: sqlite3.Connection,
    loaded: Loaded,
    pairs: Sequence[tuple[int, int]],
    postings: Iterable[Posting],
) -> None:
    """What was refunded of these postings, and the grants that they drew on."""
    for wallet, number, amount in driver.execute(_REFUNDED, (json.dumps(pairs),)):
        loaded.refunded[wallet, number] = amount
    rows = [row for posting in postings for row in posting.rows]
    drawn_on = [(row.wallet, row.grant) for row in rows if row.grant is not None]
    _load_named_grants(driver, loaded, drawn_on)


def _load_postings(
    driver: sqlite3.Connection,
    loaded: Loaded,
    statement: str,
    pairs: Sequence[tuple[int, int] | tuple[int, str]],
) -> list[Posting]:
    """Postings with their rows, and the rows' dimensions beside them."""
    found = driver.execute(statement, (json.dumps(pairs),)).fetchall() if pairs else []
    if not found:
        return []
    postings = {}
    ranges = []
    for first, count, *columns in found:
        posting = posting_value(columns)
        postings[posting.wallet, posting.number] = posting
        ranges.append((posting.wallet, first, first + count - 1))
    for columns in driver.execute(_ROWS, (json.dumps(ranges),)):
        row = Row(*columns)
        postings[row.wallet, row.posting].rows.append(row)
    rows = {(row.wallet, row.dimension) for p in postings.values() for row in p.rows[:1]}
    for wallet, number, *columns in driver.execute(_DIMENSIONS, (json.dumps(list(rows)),)):
        loaded.dimensions[wallet, number] = DIMENSION.value(columns)
    return list(postings.values())


# --- writing what was decided ---------------------------------------------------------------------

#: Rows are written by statements of so many; nine of them write any number up to 511.
_SIZES = (256, 128, 64, 32, 16, 8, 4, 2, 1)

#: A statement's text by the number of rows it takes.
_Texts = dict[int, str]


def _texts(before: str, columns: Sequence[str], after: str = "") -> _Texts:
    row = f"({', '.join('?' * len(columns))})"
    return {size: f"{before} VALUES {', '.join([row] * size)}{after}" for size in _SIZES}


def _insert(table: str, columns: Sequence[str], conflict: str = "") -> _Texts:
    return _texts(f"INSERT INTO {table} ({', '.join(columns)})", columns, conflict)


def _update(table: str, columns: Sequence[str], keys: Sequence[str]) -> _Texts:
    """UPDATE of rows by keys; a row has the columns first."""
    changed = ", ".join(f"{name} = v.{name}" for name in columns)
    same = " AND ".join(f"{table}.{name} = v.{name}" for name in keys)
    every = [*columns, *keys]
    return _texts(
        f"WITH v ({', '.join(every)}) AS (",
        every,
        f") UPDATE {table} SET {changed} FROM v WHERE {same}",
    )


def _write(driver: sqlite3.Connection, texts: _Texts, rows: Sequence[tuple[Any, ...]]) -> None:
    at = 0
    for size, text in texts.items():
        while len(rows) - at >= size:
            driver.execute(text, tuple(chain.from_iterable(rows[at : at + size])))
            at += size


_DIMENSION = _insert("dimensions", ["wallet_number", "number", "digest", *DIMENSION.names])
_POSTING = _insert("postings", POSTING_INSERTED)
_GRANT = _insert("grants", ["wallet_number", *GRANT.names, "open"])
_ROW = _insert("credit_transactions", ROW.names)
# Apart, since to set `open`, changed or not, rewrites the index of what is open.
_HOLD = _insert(
    "holds",
    ["wallet_number", *HOLD.names],
    " ON CONFLICT (wallet_number, number) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in HOLD_CHANGED.names),
)
_EVENT = _insert(
    "meter_events",
    ["wallet_number", *EVENT.names],
    " ON CONFLICT (wallet_number, number) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in EVENT_CHANGED.names),
)
_LIMIT = _insert(
    "spend_limits",
    ["wallet_number", *LIMIT.names],
    " ON CONFLICT (wallet_number, number) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in LIMIT_CHANGED.names),
)
_UNLIMIT = """
DELETE FROM spend_limits WHERE (wallet_number, number) IN
 (SELECT json_extract(j.value, '$[0]'), json_extract(j.value, '$[1]') FROM json_each(?) AS j)"""
_DROP = _insert("dropped_limits", ["wallet_number", *DROPPED_LIMIT.names])
_RECEIPT = _insert("receipts", RECEIPT.names)
_FREE_RECEIPTS = """
DELETE FROM receipts WHERE (wallet_number, grant_number) IN
 (SELECT json_extract(j.value, '$[0]'), json_extract(j.value, '$[1]') FROM json_each(?) AS j)"""
_REVISION = _insert("hold_revisions", HOLD_REVISION.names)
_REVISE = _update("grants", GRANT_TERMS.names, ["wallet_number", "number"])
_GRANT_REVISION = _insert("grant_revisions", GRANT_REVISION.names)
_REPAY = _update("grants", [*GRANT_REPAID.names, "open"], ["wallet_number", "number"])
_REPAYMENT = _insert("grant_repayments", GRANT_REPAYMENT.names)
_OVERDRAFT = _insert(
    "overdraft_draws",
    OVERDRAFT.names,
    " ON CONFLICT (wallet_number, sequence) DO UPDATE SET forgiven = excluded.forgiven",
)
_PAYER = _insert("overdraft_payers", PAYER.names)
_RETURN = _insert("overdraft_returns", ["wallet_number", "sequence"])
_OVERDRAWN = _update("wallet_states", WALLET_OVERDRAFT.names, ["wallet_number"])
_GROW = _update("grants", GRANT_GROWN.names, ["wallet_number", "number"])
_PART = _insert("grant_parts", GRANT_PART.names)
_DRAW = _update("grants", ["remaining"], ["wallet_number", "number"])
_TURN = _update("grants", ["remaining", "open"], ["wallet_number", "number"])
_MOVE = _update("wallet_states", COUNTER_NAMES, ["wallet_number"])
_TERMS = _update("wallet_states", WALLET_TERMS.names, ["wallet_number"])
_CLOSE = _update("wallets", ["closed_at"], ["number"])
_by_place = itemgetter(0)
_KEY = ["wallet_number", "quarter", "dimension_number"]
_ROLLUP = _insert(
    "rollups",
    [*_KEY, *SUM_NAMES],
    f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUM_NAMES),
)


def store(driver: sqlite3.Connection, changes: Changes) -> None:
    """Twenty-four kinds of rows at most, in the order of dependence.

    Each in the order of wallets, so that what lies in one page of a table, of an index or of what a
    foreign key refers to is met together.
    """
    if changes.terms:
        _write(
            driver,
            _TERMS,
            [(*WALLET_TERMS.stored(w), n) for n, w in changes.terms.items()],
        )
        _write(driver, _CLOSE, [(w.updated_at, w.number) for w in changes.closed()])
    if changes.holds:
        held = sorted(changes.holds.items(), key=_by_place)
        _write(driver, _HOLD, [(wallet, *HOLD.stored(hold)) for (wallet, _), hold in held])
        _write(driver, _REVISION, list(map(HOLD_REVISION.stored, changes.revisions)))
    if changes.events:
        reported = sorted(changes.events.items(), key=_by_place)
        _write(driver, _EVENT, [(wallet, *EVENT.stored(event)) for (wallet, _), event in reported])
    if changes.limits:
        limits = sorted(changes.limits.items(), key=_by_place)
        _write(driver, _LIMIT, [(place[0], *LIMIT.stored(one)) for place, one in limits if one])
        gone = [place for place, one in limits if one is None]
        if gone:
            driver.execute(_UNLIMIT, (json.dumps(gone),))
            dropped = changes.dropped.items()
            _write(
                driver, _DROP, [(place[0], *DROPPED_LIMIT.stored(one)) for place, one in dropped]
            )
    if changes.revised:
        # What is given in the same batch is inserted as it has become.
        there = [item for item in changes.revised.items() if item[0] not in changes.given]
        _write(driver, _REVISE, [(*GRANT_TERMS.stored(grant), *place) for place, grant in there])
        revisions = map(GRANT_REVISION.stored, changes.grant_revisions)
        _write(driver, _GRANT_REVISION, list(revisions))
    if not changes.touched:
        return
    _write(
        driver,
        _DIMENSION,
        [(w, n, digest(d), *DIMENSION.stored(d)) for w, n, d in changes.dimensions],
    )
    _write(driver, _POSTING, sorted(map(posting_columns, changes.postings)))
    _write(
        driver,
        _GRANT,
        [(w, *GRANT.stored(one), one.remaining > 0) for (w, _), one in changes.given.items()],
    )
    if changes.parts:
        # Before what remains of them, which is no more than their amount.
        grown = sorted(changes.grown.items(), key=_by_place)
        sums = [(*GRANT_GROWN.stored(grant), *place) for place, grant in grown]
        _write(driver, _GROW, sums)
        _write(driver, _PART, changes.parts)
    if changes.repaid:
        there = [item for item in changes.repaid.items() if item[0] not in changes.given]
        _write(
            driver,
            _REPAY,
            [(*GRANT_REPAID.stored(grant), grant.remaining > 0, *place) for place, grant in there],
        )
        _write(driver, _REPAYMENT, changes.repayments)
    if changes.receipts:
        # First those that are free again: the same receipt may be credited anew.
        free = [place for place, one in changes.receipts.items() if one is None]
        driver.execute(_FREE_RECEIPTS, (json.dumps(free),))
        _write(driver, _RECEIPT, [one for one in changes.receipts.values() if one is not None])
    if changes.overdrawn:
        drawn = sorted(changes.overdrafts.items(), key=_by_place)
        _write(driver, _OVERDRAFT, [OVERDRAFT.stored(one) for _, one in drawn])
        _write(driver, _PAYER, changes.payers)
        owing = [(*WALLET_OVERDRAFT.stored(w), n) for n, w in changes.overdrawn.items()]
        _write(driver, _OVERDRAWN, owing)
    if changes.overdraft_returns:
        _write(driver, _RETURN, changes.overdraft_returns)
    turned, kept = [], []
    for (wallet, number), (grant, was_open) in sorted(changes.drawn.items(), key=_by_place):
        if changes.repaid and (wallet, number) in changes.repaid:
            continue  # written above, as it has become
        if was_open and grant.remaining:
            kept.append((grant.remaining, wallet, number))
        else:
            turned.append((grant.remaining, grant.remaining > 0, wallet, number))
    _write(driver, _DRAW, kept)
    _write(driver, _TURN, turned)
    _write(driver, _ROW, sorted(changes.rows))
    moved = sorted(changes.touched.items(), key=_by_place)
    _write(driver, _MOVE, [(*counters(wallet), number) for number, wallet in moved])
    _write(driver, _ROLLUP, sorted([(*place, *sums) for place, sums in changes.rollups.items()]))
