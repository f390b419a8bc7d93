"""What a batch reads, as statements that both databases run.

Each finds rows by a list of keys. `FROM KEYS` stands for the list as a table `j` with a column for
each part of a key; `IN KEYS` for a list of single values. How a list travels is the database's, see
sqlite/ and postgres/. The texts have SQLite's hints, CROSS JOIN and INDEXED BY; PostgreSQL plans by
its statistics, so it is given the texts without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from creditledger.domain.commands import SETTLE
from creditledger.domain.model import RETURNED_ROWS_MAX
from creditledger.store.write.columns import (
    DIMENSION,
    DROPPED_LIMIT,
    EVENT,
    GRANT,
    HOLD,
    LIMIT,
    OVERDRAFT,
    PAYER,
    POSTING_NAMES,
    ROW,
)


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A statement that finds rows by keys."""

    keys: Mapping[str, str]  #: The parts of a key: names and types.
    columns: str
    source: str  #: From FROM on.
    many: bool = False  #: Whether it finds many rows for each key of most batches.


_WALLET = {"wallet": "bigint"}
_NUMBERED = {"wallet": "bigint", "number": "bigint"}
_ID = {"id": "text"}

OPEN_GRANTS = Lookup(
    _WALLET,
    f"g.wallet_number, {GRANT.sql('g')}",
    # SQLite is told the index: to it all grants of a wallet are as few as those that are open.
    "FROM grants AS g INDEXED BY grants_open WHERE g.wallet_number IN KEYS AND g.open = true",
    many=True,
)
OPEN_HOLDS = Lookup(
    _WALLET,
    f"h.wallet_number, {HOLD.sql('h')}",
    "FROM holds AS h INDEXED BY holds_open WHERE h.wallet_number IN KEYS AND h.ended IS NULL",
    many=True,
)
LIMITS = Lookup(
    _WALLET,
    f"l.wallet_number, {LIMIT.sql('l')}",
    """FROM spend_limits AS l WHERE l.wallet_number IN KEYS
    ORDER BY l.wallet_number, l.number""",
)
#: What refunds gave back of overdrafts above where the wallet is paid back to.
FORGIVEN = Lookup(
    {"wallet": "bigint", "place": "bigint"},
    "o.wallet_number, o.start + o.amount - o.forgiven, o.start + o.amount",
    """FROM KEYS CROSS JOIN overdraft_draws AS o INDEXED BY overdraft_draws_forgiven
      ON o.wallet_number = j.wallet AND o.forgiven > 0
     AND o.start >= coalesce((
       SELECT max(b.start) FROM overdraft_draws AS b INDEXED BY overdraft_draws_forgiven
       WHERE b.wallet_number = j.wallet AND b.forgiven > 0 AND b.start <= j.place), 0)
    WHERE o.start + o.amount > j.place
    ORDER BY o.wallet_number, o.start""",
)

NAMED_GRANTS = Lookup(
    _NUMBERED,
    f"g.wallet_number, {GRANT.sql('g')}",
    """FROM KEYS CROSS JOIN grants AS g
      ON g.wallet_number = j.wallet AND g.number = j.number""",
)
#: Until it is changed, a grant's metadata is that of the posting that gave it.
GRANT_METADATA = Lookup(
    _NUMBERED,
    "g.wallet_number, g.number, CASE WHEN g.revision > 0 THEN r.metadata ELSE p.metadata END",
    """FROM KEYS CROSS JOIN grants AS g
      ON g.wallet_number = j.wallet AND g.number = j.number
    LEFT JOIN grant_revisions AS r ON r.wallet_number = g.wallet_number
     AND r.grant_number = g.number AND r.number = g.revision
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = g.wallet_number AND t.sequence = g.number
    LEFT JOIN postings AS p ON p.wallet_number = t.wallet_number AND p.number = t.posting_number""",
)
#: Grants that have credited these receipts, oldest first, and the postings that gave them.
CREDITED = Lookup(
    {"wallet": "bigint", "provider": "text", "receipt": "text"},
    "r.wallet_number, r.provider, r.receipt_id, r.grant_number, t.posting_number",
    """FROM KEYS CROSS JOIN receipts AS r ON r.wallet_number = j.wallet
     AND r.provider = j.provider AND r.receipt_id = j.receipt
    CROSS JOIN credit_transactions AS t
      ON t.wallet_number = r.wallet_number AND t.sequence = r.grant_number
    ORDER BY r.grant_number""",
)

NAMED_HOLDS = Lookup(
    _NUMBERED,
    f"h.wallet_number, {HOLD.sql('h')}",
    """FROM KEYS CROSS JOIN holds AS h
      ON h.wallet_number = j.wallet AND h.number = j.number""",
)
#: What the postings say that made these holds.
ANNOTATIONS = Lookup(
    _NUMBERED,
    "p.wallet_number, p.number, p.description, p.metadata",
    """FROM KEYS CROSS JOIN postings AS p
      ON p.wallet_number = j.wallet AND p.number = j.number""",
)

_POSTING = f"p.first_sequence, p.row_count, {', '.join(f'p.{name}' for name in POSTING_NAMES)}"
POSTINGS_BY_KEY = Lookup(
    {"wallet": "bigint", "key": "text"},
    _POSTING,
    """FROM KEYS CROSS JOIN postings AS p
      ON p.wallet_number = j.wallet AND p.idempotency_key = j.key""",
)
POSTINGS_BY_NUMBER = Lookup(
    _NUMBERED,
    _POSTING,
    """FROM KEYS CROSS JOIN postings AS p
      ON p.wallet_number = j.wallet AND p.number = j.number""",
)
ROWS = Lookup(
    {"wallet": "bigint", "first": "bigint", "last": "bigint"},
    ROW.sql("t"),
    """FROM KEYS CROSS JOIN credit_transactions AS t
      ON t.wallet_number = j.wallet AND t.sequence BETWEEN j.first AND j.last
    ORDER BY t.wallet_number, t.sequence""",
)
REFUNDED = Lookup(
    _NUMBERED,
    "p.wallet_number, p.refund_of, CAST(sum(t.amount) AS bigint)",
    """FROM KEYS CROSS JOIN postings AS p
      ON p.wallet_number = j.wallet AND p.refund_of = j.number
    JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
     AND t.sequence BETWEEN p.first_sequence AND p.first_sequence + p.row_count - 1
    GROUP BY p.wallet_number, p.refund_of""",
)
OVERDRAFTS = Lookup(
    {"wallet": "bigint", "sequence": "bigint"},
    OVERDRAFT.sql("o"),
    """FROM KEYS CROSS JOIN overdraft_draws AS o
      ON o.wallet_number = j.wallet AND o.sequence = j.sequence""",
)
#: Stretches do not overlap, so those of a draw begin with the last one that begins before it.
PAYERS = Lookup(
    {"wallet": "bigint", "first": "bigint", "behind": "bigint"},
    PAYER.sql("p"),
    """FROM KEYS CROSS JOIN overdraft_payers AS p
      ON p.wallet_number = j.wallet AND p.start < j.behind
     AND p.start >= coalesce((SELECT max(b.start) FROM overdraft_payers AS b
       WHERE b.wallet_number = j.wallet AND b.start <= j.first), 0)
    WHERE p.until > j.first""",
)

_EVENT = f"e.wallet_number, {EVENT.sql('e')}"
UNPAID_EVENTS = Lookup(
    _WALLET,
    _EVENT,
    """FROM meter_events AS e INDEXED BY meter_events_unpaid
    WHERE e.wallet_number IN KEYS AND e.unpaid > 0
    ORDER BY e.wallet_number, e.created_at, e.number""",
)
RETURNED_EVENTS = Lookup(
    _WALLET,
    _EVENT,
    """FROM meter_events AS e INDEXED BY meter_events_returned
    WHERE e.wallet_number IN KEYS AND e.return_below IS NOT NULL""",
)
NAMED_EVENTS = Lookup(
    _NUMBERED,
    _EVENT,
    """FROM KEYS CROSS JOIN meter_events AS e
      ON e.wallet_number = j.wallet AND e.number = j.number""",
)
EVENTS_BY_IDENTIFIER = Lookup(
    {"wallet": "bigint", "identifier": "text"},
    _EVENT,
    """FROM KEYS CROSS JOIN meter_events AS e
      ON e.wallet_number = j.wallet AND e.identifier = j.identifier""",
)
#: The newest settlements of each event with rows below `below`, newest first. SQLite cannot join to
#: a subquery that reads the key, so it finds their numbers first; see sqlite/statements.py.
SETTLEMENTS = Lookup(
    {"wallet": "bigint", "name": "text", "event": "bigint", "below": "bigint"},
    "j.wallet, j.event, s.number, s.row_count",
    f"""FROM KEYS CROSS JOIN LATERAL (
     SELECT p.number, p.row_count, p.first_sequence FROM postings AS p
     WHERE p.operation = {SETTLE} AND p.wallet_number = j.wallet AND p.meter_event_id = j.name
       AND p.first_sequence < j.below
     ORDER BY p.first_sequence DESC LIMIT {RETURNED_ROWS_MAX}) AS s
    ORDER BY j.wallet, j.event, s.first_sequence DESC""",  # noqa: S608 # a constant
)

DROPPED_LIMITS = Lookup(
    _NUMBERED,
    f"l.wallet_number, {DROPPED_LIMIT.sql('l')}",
    """FROM KEYS CROSS JOIN dropped_limits AS l
      ON l.wallet_number = j.wallet AND l.number = j.number""",
)
DIMENSIONS = Lookup(
    _NUMBERED,
    f"d.wallet_number, d.number, {DIMENSION.sql('d')}",
    """FROM KEYS CROSS JOIN dimensions AS d
      ON d.wallet_number = j.wallet AND d.number = j.number""",
)
DIMENSION_NUMBERS = Lookup(
    {"wallet": "bigint", "digest": "text"},
    "d.wallet_number, d.digest, d.number",
    """FROM KEYS CROSS JOIN dimensions AS d
      ON d.wallet_number = j.wallet AND d.digest = j.digest""",
)
DIMENSION_NEXT = Lookup(
    _WALLET,
    """j.wallet, 1 + coalesce((
      SELECT max(d.number) FROM dimensions AS d WHERE d.wallet_number = j.wallet), 0)""",
    "FROM KEYS",
)
METERS = Lookup(_ID, "m.id, m.active", "FROM meters AS m WHERE m.id IN KEYS")
SUBSCRIPTIONS = Lookup(_ID, "s.id, s.customer_id", "FROM subscriptions AS s WHERE s.id IN KEYS")
