"""The invariants of what wallets have, as queries that must find nothing: grants to webhooks.

As checks.py, which has those of rows, postings and roll-ups. The end of the file lists all passes.
"""

from creditledger.domain.clock import HOUR
from creditledger.domain.model import ROLLING_PARTS, Category, Kind
from creditledger.store.verify.checks import (
    ENDS,
    KIND_COUNTS,
    MOVED_ROLLUPS,
    POSTING_SUM,
    POSTINGS,
    REFUNDS,
    ROLLUPS,
    ROWS,
    Pass,
)
from creditledger.store.verify.history_checks import HISTORY

# --- grants and wallets ---------------------------------------------------------------------------

#: Before the columns to group by goes one number made of them, for SQLite sorts by a first number
#: twice as fast as by what follows it. Groups that share a number are told apart by the columns.
GRANT_SUMS = """(SELECT wallet_number, grant_number, sum(amount) AS amount,
                 sum(CASE kind WHEN $EXPIRY THEN 1 ELSE 0 END) AS expirations
               FROM credit_transactions WHERE grant_number IS NOT NULL
               GROUP BY wallet_number * 1000003 + grant_number, wallet_number, grant_number)"""

#: What the grant `g` paid back of overdraft as it began or ended.
REPAID_SUMS = """LEFT JOIN (SELECT wallet_number, grant_number, sum(amount) AS amount
               FROM grant_repayments GROUP BY wallet_number, grant_number) AS y
      ON y.wallet_number = g.wallet_number AND y.grant_number = g.number"""

#: What the last change of the grant `g` made of it.
LAST_REVISION = """LEFT JOIN grant_revisions AS r ON r.wallet_number = g.wallet_number
      AND r.grant_number = g.number AND r.number = g.revision"""

#: What parts added to grants.
PART_SUMS = """(SELECT x.wallet_number, x.grant_number, sum(t.amount) AS amount,
                 sum(x.overdraft_paid) AS paid
               FROM grant_parts AS x JOIN credit_transactions AS t
                 ON t.wallet_number = x.wallet_number AND t.sequence = x.sequence
               GROUP BY x.wallet_number, x.grant_number)"""

GRANTS = Pass(
    "grants",
    f"""grants AS g
    LEFT JOIN wallets AS w ON w.number = g.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = g.wallet_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = g.wallet_number AND t.sequence = g.number
    {LAST_REVISION}
    {REPAID_SUMS}
    LEFT JOIN {PART_SUMS} AS m
      ON m.wallet_number = g.wallet_number AND m.grant_number = g.number
    LEFT JOIN {GRANT_SUMS} AS s
      ON s.wallet_number = g.wallet_number AND s.grant_number = g.number""",
    ("g.wallet_number", "g.number"),
    """
grant_row: coalesce(t.grant_number, 0) <> g.number -- row {g.number} did not make this grant
grant_remaining: g.remaining <> s.amount - g.overdraft_paid - g.repaid
    -- remaining is {g.remaining}, not {s.amount - g.overdraft_paid - g.repaid}
grant_bounds: g.remaining < 0 OR g.overdraft_paid < 0 OR g.remaining > g.amount - g.overdraft_paid
    -- remaining {g.remaining}, overdraft paid {g.overdraft_paid} do not fit {g.amount}
grant_overdraft: g.scope IS NOT NULL AND (g.overdraft_paid <> 0 OR g.repaid <> 0)
    -- it has a scope, and paid back {g.overdraft_paid} and {g.repaid} of overdraft
grant_repaid: g.repaid <> coalesce(y.amount, 0)
    -- it has repaid {g.repaid} of overdraft, its repayments are of {coalesce(y.amount, 0)}
grant_amount: m.grant_number IS NOT NULL
    AND (g.amount <> t.amount + m.amount OR g.overdraft_paid < m.paid)
    -- it is of {g.amount}, and its parts of {t.amount + m.amount}
grant_open: g.open <> (g.remaining > 0) -- open is {g.open}, remaining {g.remaining}
grant_held: g.remaining < $HELD -- {g.remaining} remain, {$HELD} are held
grant_expired: s.expirations > 1 AND NOT g.returned
      AND NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.wallet_number = g.wallet_number)
    OR g.remaining > $HELD AND (s.expirations > 0 OR g.expires_at <= v.posted_at)
    -- it ended at {g.expires_at} with {g.remaining} left and {s.expirations} expirations
grant_voided: g.voided_at > v.posted_at OR g.voided_at >= g.expires_at
    OR g.voided_at IS NOT NULL AND g.remaining > $HELD
    -- it was voided at {g.voided_at} with {g.remaining} left, of which {$HELD} are held
grant_revision: CASE WHEN g.revision = 0 THEN r.number IS NOT NULL OR g.voided_at IS NOT NULL
    ELSE r.number IS NULL OR r.priority <> g.priority
      OR coalesce(r.name, '') <> coalesce(g.name, '')
      OR coalesce(r.expires_at, -1) <> coalesce(g.expires_at, -1)
      OR coalesce(r.voided_at, -1) <> coalesce(g.voided_at, -1) END
    -- it is not what revision {g.revision} made of it
""",
)

#: Rows that drew on a grant with a scope. What a capture draws, its hold was for.
SCOPES = Pass(
    "scopes",
    """(SELECT DISTINCT wallet_number FROM grants WHERE scope IS NOT NULL) AS o
    JOIN credit_transactions AS t ON t.wallet_number = o.wallet_number
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN $POSTINGS AS p ON $OF_POSTING
    LEFT JOIN holds AS h ON h.wallet_number = t.wallet_number AND h.number = p.hold_number
    LEFT JOIN dimensions AS d ON d.wallet_number = t.wallet_number
      AND d.number = coalesce(h.dimension_number, t.dimension_number)""",
    ("t.wallet_number", "t.sequence"),
    """
row_scope: CASE WHEN g.scope IS NULL THEN false ELSE
    t.kind = $USAGE AND NOT ($IN_SCOPE) OR t.kind = $TRANSFER_OUT
    OR t.kind = $ADMIN_DEBIT AND $UNNAMED END
    -- grant {g.number} does not pay for what it was drawn for
""",
)


def _last(column: str, last: str) -> str:
    """A figure of the wallet that is that of its last row, or 0 before the first."""
    now = f"CASE WHEN v.sequence = 0 THEN 0 ELSE {last} END"
    return f"wallet_{column}: v.{column} <> {now} -- {column} is {{v.{column}}}, not {{{now}}}\n"


_SUMMED = ("running_balance", "usage_count", "usage_amount", "usage_quantity", "unmetered_amount")
_COUNTED = [kind for kind in Kind if kind is not Kind.USAGE]
_KIND_LAST = ", ".join(
    f"max(CASE kind WHEN {kind:d} THEN kind_count END) AS {kind.word}" for kind in _COUNTED
)
#: Of its last row, of the last posting about a hold, the last change of a grant or the last meter
#: event, whichever is the latest.
_POSTED_AT = "coalesce(z.at, 0)"
for _other in ("l.created_at", "m.at"):
    _POSTED_AT = f"CASE WHEN {_other} > {_POSTED_AT} THEN {_other} ELSE {_POSTED_AT} END"
_ADDED_UP = (Kind.TOPUP, Kind.REFUND)
_KIND_SUMS = ", ".join(
    f"sum(CASE kind WHEN {kind:d} THEN amount END) AS {kind.word}_amount" for kind in _ADDED_UP
)
#: Σ of what came in, in two parts: in one it might pass 64 bits in a ledger from before its bound.
_CREDITED_SUMS = """sum(CASE WHEN amount > 0 THEN amount >> 32 END) AS credited_high,
               sum(CASE WHEN amount > 0 THEN amount & 4294967295 END) AS credited_low"""
_CREDITED = (
    "CASE WHEN k.credited_high IS NULL THEN 0"
    " WHEN k.credited_high + CAST(k.credited_low AS BIGINT) / 4294967296 > 2147483647"
    " THEN 9223372036854775807 ELSE k.credited_high * 4294967296 + k.credited_low END"
)
_MOVED = _last(
    "moved_sequence",
    "coalesce((SELECT max(m.sequence) FROM credit_transactions AS m"
    " WHERE m.wallet_number = w.number AND m.kind <> $EXPIRY), 0)",
)

#: Whether `o` is of the same customer, currency and mode as the wallet `w`.
_SUCCESSION = """o.customer_id = w.customer_id AND o.currency = w.currency
        AND o.livemode = w.livemode"""
_ROWS_BEFORE = f"""(SELECT coalesce(sum(q.sequence), 0) FROM wallets AS o
        JOIN wallet_states AS q ON q.wallet_number = o.number
        WHERE {_SUCCESSION} AND o.number < w.number)"""  # noqa: S608 # constants
_FOLLOWED = f"EXISTS (SELECT 1 FROM wallets AS o WHERE {_SUCCESSION} AND o.number > w.number)"  # noqa: S608 # constants

WALLETS = Pass(
    "wallets",
    f"""wallets AS w
    LEFT JOIN wallet_states AS v ON v.wallet_number = w.number
    LEFT JOIN currencies AS c ON c.code = w.currency
    LEFT JOIN customers AS u ON u.id = w.customer_id
    LEFT JOIN credit_transactions AS l ON l.wallet_number = w.number AND l.sequence = v.sequence
    LEFT JOIN credit_transactions AS x ON x.wallet_number = w.number AND x.sequence = v.sequence + 1
    LEFT JOIN (SELECT wallet_number, sum(amount) AS amount,
                 sum(CASE WHEN amount < 0 THEN -amount ELSE 0 END) AS drawn
               FROM credit_transactions WHERE grant_number IS NULL
               GROUP BY wallet_number + 0, wallet_number) AS o
      ON o.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, sum(remaining) AS remaining,
                 sum(overdraft_paid + repaid) AS paid
               FROM grants GROUP BY wallet_number) AS g ON g.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, {_KIND_LAST}, {_KIND_SUMS},
               {_CREDITED_SUMS}
               FROM credit_transactions WHERE kind <> $USAGE GROUP BY wallet_number) AS k
      ON k.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, max(created_at) AS at
               FROM (SELECT wallet_number, created_at FROM hold_revisions
                     UNION ALL SELECT wallet_number, created_at FROM grant_revisions
                     UNION ALL SELECT wallet_number, created_at FROM grant_repayments) AS y
               GROUP BY wallet_number) AS z ON z.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, max(ended_at) AS at FROM holds WHERE ended = $HOLD_EXPIRED
               GROUP BY wallet_number) AS d ON d.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, max(coalesce(canceled_at, created_at)) AS at,
                 sum(unpaid) AS unpaid FROM meter_events
               GROUP BY wallet_number) AS m ON m.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, max(number) AS number FROM postings
               GROUP BY wallet_number) AS p ON p.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, max(start + amount) AS until, sum(forgiven) AS forgiven
               FROM overdraft_draws GROUP BY wallet_number) AS i ON i.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, sum(amount) AS amount
               FROM overdraft_payers GROUP BY wallet_number) AS a ON a.wallet_number = w.number""",  # noqa: S608 # constants
    ("w.number", "v.sequence"),
    """
wallet_state: v.wallet_number IS NULL -- it has no state
wallet_currency: c.code IS NULL -- there is no currency {w.currency}
wallet_customer: u.id IS NULL -- there is no customer {w.customer_id}
wallet_sequence: x.sequence IS NOT NULL OR v.sequence <> 0 AND l.sequence IS NULL
    -- row {v.sequence} is not its last
"""
    # Older versions did not move it by a hold that ended at its deadline.
    f"wallet_posted_at: v.posted_at <> {_POSTED_AT}"
    f" AND (d.at IS NULL OR v.posted_at <> d.at OR d.at < {_POSTED_AT})\n"
    f"    -- posted_at is {{v.posted_at}}, not {{{_POSTED_AT}}}\n"
    + _MOVED
    + "".join(_last(column, f"l.{column}") for column in _SUMMED)
    + "".join(_last(f"{kind.word}_count", f"coalesce(k.{kind.word}, 0)") for kind in _COUNTED)
    + "".join(
        _last(f"{kind.word}_amount", f"coalesce(k.{kind.word}_amount, 0)") for kind in _ADDED_UP
    )
    + _last("credited_amount", _CREDITED)
    + _last("overdraft_used", "-coalesce(o.amount, 0) - coalesce(g.paid, 0)")
    + """
wallet_credit: v.running_balance <> coalesce(g.remaining, 0) - v.overdraft_used
    -- {v.running_balance} are not {coalesce(g.remaining, 0)} of grants less {v.overdraft_used} used
wallet_last_posting: v.last_posting <> coalesce(p.number, 0)
    -- last_posting is {v.last_posting}, its last one has number {coalesce(p.number, 0)}
wallet_overdrawn: v.overdrawn <> coalesce(o.drawn, 0)
    -- overdrawn is {v.overdrawn}, its rows have drawn {coalesce(o.drawn, 0)}
wallet_repaid_to: v.overdraft_used <> v.overdrawn - v.repaid_to - $FORGIVEN_BEHIND
    -- {v.overdrawn} drawn and paid back up to {v.repaid_to} leave not {v.overdraft_used} overdrawn
wallet_draws: v.overdrawn <> coalesce(i.until, 0)
    -- overdrawn is {v.overdrawn}, and its draws end at {coalesce(i.until, 0)}
wallet_payers: v.overdrawn - v.overdraft_used <> coalesce(a.amount, 0) + coalesce(i.forgiven, 0)
    -- {v.overdrawn - v.overdraft_used} are no longer owed, and grants paid {coalesce(a.amount, 0)}
wallet_unpaid_amount: v.unpaid_amount <> coalesce(m.unpaid, 0)
    -- unpaid_amount is {v.unpaid_amount}, its meter events are owed {coalesce(m.unpaid, 0)}
wallet_closed: v.status = $CLOSED AND (v.running_balance <> 0 OR v.overdraft_used <> 0 OR $HOLDS)
    -- it is closed with {v.running_balance}
wallet_closed_at: (v.status = $CLOSED) <> (w.closed_at IS NOT NULL) OR w.closed_at <> v.updated_at
    -- its status is {v.status}, and it was closed at {w.closed_at}
"""
    + f"""wallet_succession: w.rows_before <> {_ROWS_BEFORE} OR w.closed_at IS NULL AND {_FOLLOWED}
    -- other than {{w.rows_before}} rows are before it, or it is not closed and not the last one
""",
)

# --- holds ----------------------------------------------------------------------------------------

HOLDS = Pass(
    "holds",
    f"""holds AS h
    LEFT JOIN wallets AS w ON w.number = h.wallet_number
    LEFT JOIN postings AS p ON p.wallet_number = h.wallet_number AND p.number = h.number
    LEFT JOIN dimensions AS d
      ON d.wallet_number = h.wallet_number AND d.number = h.dimension_number
    LEFT JOIN (SELECT *, row_number() OVER (PARTITION BY wallet_number, hold_number
                 ORDER BY created_at DESC, posting_number DESC) AS nth FROM hold_revisions) AS r
      ON r.wallet_number = h.wallet_number AND r.hold_number = h.number AND r.nth = 1
    LEFT JOIN (SELECT p.wallet_number, p.hold_number, -sum({POSTING_SUM}) AS amount
               FROM postings AS p {ENDS} WHERE p.hold_number IS NOT NULL AND p.row_count > 0
               GROUP BY p.wallet_number, p.hold_number) AS c
      ON c.wallet_number = h.wallet_number AND c.hold_number = h.number""",  # noqa: S608 # constants
    ("h.wallet_number", "NULL"),
    """
hold_posting: p.number IS NULL OR p.operation <> $OP_HOLD OR p.amount <> h.amount
    -- posting {h.number} did not make a hold of {h.amount}
hold_dimension: d.number IS NULL OR d.kind <> $USAGE
    -- dimension {h.dimension_number} is missing or of another kind
hold_captured: h.captured <> coalesce(c.amount, 0)
    -- {h.captured} are captured, and the rows of its captures are of {coalesce(c.amount, 0)}
hold_revision: r.posting_number IS NULL OR r.captured <> h.captured OR r.deadline <> h.deadline
    OR CASE WHEN h.ended = $HOLD_EXPIRED THEN r.ended IS NOT NULL OR h.ended_at <> h.deadline
       ELSE r.parts <> h.parts OR r.beyond <> h.beyond
         OR coalesce(r.ended, 0) <> coalesce(h.ended, 0) OR h.ended_at <> r.created_at END
    -- it is not what its last posting left of it
""",
)

REVISIONS = Pass(
    "hold revisions",
    """hold_revisions AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN holds AS h ON h.wallet_number = r.wallet_number AND h.number = r.hold_number
    LEFT JOIN postings AS p
      ON p.wallet_number = r.wallet_number AND p.number = r.posting_number""",
    ("r.wallet_number", "NULL"),
    """
revision_posting: h.number IS NULL OR p.number IS NULL
    OR coalesce(p.hold_number, 0) <> r.hold_number
    -- posting {r.posting_number} is not about hold {r.hold_number}
""",
)

# --- transfers ------------------------------------------------------------------------------------

#: Row by row: what goes out of one wallet is what comes into the other. Each side has the time of
#: its own wallet: they differ where one wallet is ahead of the clock, so it has had that time.
TRANSFERS = Pass(
    "transfers",
    """(SELECT * FROM postings WHERE linked_posting IS NOT NULL) AS p
    LEFT JOIN wallets AS w ON w.number = p.wallet_number
    LEFT JOIN wallets AS v ON v.number = p.linked_wallet
    LEFT JOIN postings AS o ON o.wallet_number = p.linked_wallet AND o.number = p.linked_posting
    LEFT JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
      AND t.sequence >= p.first_sequence AND t.sequence < p.first_sequence + p.row_count
    LEFT JOIN credit_transactions AS u ON u.wallet_number = o.wallet_number
      AND u.sequence = o.first_sequence + t.sequence - p.first_sequence
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
    LEFT JOIN grants AS h ON h.wallet_number = u.wallet_number AND h.number = u.grant_number
    LEFT JOIN credit_transactions AS b ON b.wallet_number = p.wallet_number
      AND b.sequence = p.first_sequence - 1""",
    ("p.wallet_number", "coalesce(t.sequence, p.first_sequence)"),
    """
transfer_link: o.number IS NULL OR coalesce(o.linked_wallet, 0) <> p.wallet_number
    OR coalesce(o.linked_posting, 0) <> p.number
    OR p.operation + o.operation <> $OP_TRANSFER + $OP_RECEIVE
    -- posting {p.linked_posting} of wallet {p.linked_wallet} is not the other side of {p.number}
transfer_wallets: w.number = v.number OR w.currency <> v.currency OR w.livemode <> v.livemode
    -- it is between wallets of {w.currency} and {v.currency}, or of two modes
transfer_rows: o.row_count <> p.row_count OR u.amount <> -t.amount
    -- it moved {t.amount}, and the other side {u.amount}
transfer_time: t.created_at > u.created_at AND coalesce(b.created_at, 0) <> t.created_at
    AND NOT EXISTS (SELECT 1 FROM hold_revisions AS r
      WHERE r.wallet_number = t.wallet_number AND r.created_at = t.created_at)
    AND NOT EXISTS (SELECT 1 FROM grant_revisions AS r
      WHERE r.wallet_number = t.wallet_number AND r.created_at = t.created_at)
    AND NOT EXISTS (SELECT 1 FROM meter_events AS r
      WHERE r.wallet_number = t.wallet_number AND r.created_at = t.created_at)
    AND NOT EXISTS (SELECT 1 FROM grant_repayments AS r
      WHERE r.wallet_number = t.wallet_number AND r.created_at = t.created_at)
    -- it is of {t.created_at}, the other side of {u.created_at}, and its wallet was not ahead
transfer_category: g.category <> h.category
    -- its credit is of category {g.category}, and that of the other side of {h.category}
""",
)

# --- meter events ---------------------------------------------------------------------------------

EVENTS = Pass(
    "meter events",
    f"""meter_events AS e
    LEFT JOIN wallets AS w ON w.number = e.wallet_number
    LEFT JOIN meters AS m ON m.id = e.meter_id
    LEFT JOIN postings AS p ON p.wallet_number = e.wallet_number AND p.number = e.number
    LEFT JOIN (SELECT p.wallet_number, p.meter_event_id, -sum({POSTING_SUM}) AS amount,
                 min(f.dimension_number) AS first, max(f.dimension_number) AS last
               FROM postings AS p {ENDS}
               WHERE p.operation IN ($OP_METER_EVENT, $OP_SETTLE) AND p.row_count > 0
               GROUP BY p.wallet_number, p.meter_event_id) AS c
      ON c.wallet_number = e.wallet_number AND c.meter_event_id = e.identifier
    LEFT JOIN dimensions AS d ON d.wallet_number = e.wallet_number AND d.number = c.first
    LEFT JOIN (SELECT p.wallet_number, p.meter_event_id, sum({POSTING_SUM}) AS amount, count(*) AS n
               FROM postings AS p {ENDS} WHERE p.operation IN ($OP_CANCEL, $OP_RETURN)
               GROUP BY p.wallet_number, p.meter_event_id) AS r
      ON r.wallet_number = e.wallet_number AND r.meter_event_id = e.identifier
    LEFT JOIN (SELECT o.wallet_number, o.meter_event_id, sum({POSTING_SUM}) AS amount
               FROM postings AS p {ENDS}
               JOIN postings AS o ON o.wallet_number = p.wallet_number AND o.number = p.refund_of
               WHERE p.refund_of IS NOT NULL AND o.operation IN ($OP_METER_EVENT, $OP_SETTLE)
               GROUP BY o.wallet_number, o.meter_event_id) AS b
      ON b.wallet_number = e.wallet_number AND b.meter_event_id = e.identifier""",  # noqa: S608 # constants
    ("e.wallet_number", "NULL"),
    """
event_posting: p.number IS NULL OR p.operation <> $OP_METER_EVENT OR p.amount <> e.value
    OR p.idempotency_key <> e.identifier
    -- posting {e.number} did not report event {e.identifier} of {e.value}
event_meter: m.id IS NULL -- there is no meter {e.meter_id}
event_unpaid: e.unpaid <> CASE WHEN e.canceled_at IS NULL THEN e.value - coalesce(c.amount, 0)
      ELSE 0 END
    -- {e.unpaid} of {e.value} are unpaid, and its rows are of {coalesce(c.amount, 0)}
event_paid_at: (e.unpaid = 0) <> (e.paid_at IS NOT NULL) OR e.paid_at < e.created_at
    -- it was paid at {e.paid_at} and {e.unpaid} are unpaid
event_dimension: c.first <> c.last OR d.meter_id <> e.meter_id
    OR d.number IS NOT NULL AND coalesce(d.subscription_id, '') <> coalesce(e.subscription_id, '')
    -- its rows are of another meter or subscription
event_canceled: CASE WHEN e.canceled_at IS NULL
    THEN r.n IS NOT NULL OR e.return_below IS NOT NULL
    ELSE r.n IS NULL OR e.canceled_at < e.created_at OR e.paid_at > e.canceled_at
      OR coalesce(r.amount, 0) + coalesce(b.amount, 0) > coalesce(c.amount, 0)
      OR e.return_below IS NULL
        AND coalesce(r.amount, 0) + coalesce(b.amount, 0) <> coalesce(c.amount, 0) END
    -- canceled at {e.canceled_at}, with {r.amount} and {b.amount} refunded of {c.amount}
""",
)

# --- spend limits ---------------------------------------------------------------------------------

_WIDTH = f"(nullif(l.hours, 0) * {HOUR // ROLLING_PARTS})"
#: Where the part begins that the row `t`, which spent, lies in; and whether it counts at all.
_PART = f"""CASE l.period WHEN $ROLLING THEN t.created_at / {_WIDTH} * {_WIDTH}
      ELSE CASE WHEN t.created_at >= l.counted_until THEN l.counted_until
        ELSE l.counted_from END END AS start"""
_COUNTS = """t.sequence > l.since AND t.created_at >= l.counted_from
      AND (l.api_key_id IS NULL OR d.api_key_id = l.api_key_id)"""
_OF_LIMIT = """JOIN dimensions AS d
        ON d.wallet_number = t.wallet_number AND d.number = t.dimension_number"""

#: Postings that paid for canceled events, and below which sequence they are still to be returned.
_CANCELED = "".join(
    f"""SELECT e.wallet_number, coalesce(e.return_below, 0) AS below, p.number, p.first_sequence,
          p.row_count
        FROM meter_events AS e JOIN postings AS p ON p.wallet_number = e.wallet_number AND {is_of}
        WHERE e.canceled_at IS NOT NULL {more}"""  # noqa: S608 # constants
    for is_of, more in (
        ("p.number = e.number", "UNION ALL "),
        ("p.operation = $OP_SETTLE AND p.meter_event_id = e.identifier", ""),
    )
)
#: What was spent by the rows, less what refunds returned of it, minus what the limits say. What a
#: canceled event drew has spent nothing, as far as it is returned, whatever was refunded before.
LIMITS = Pass(
    "spend limits",
    f"""spend_limits AS l
    LEFT JOIN wallets AS w ON w.number = l.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = l.wallet_number
    LEFT JOIN (SELECT wallet_number, number, start, sum(amount) AS amount FROM (
      SELECT l.wallet_number, l.number, {_PART}, -t.amount AS amount FROM spend_limits AS l
      JOIN credit_transactions AS t ON t.wallet_number = l.wallet_number AND t.kind = $USAGE
      {_OF_LIMIT} WHERE {_COUNTS}
      UNION ALL SELECT l.wallet_number, l.number, {_PART}, -u.amount FROM spend_limits AS l
      JOIN credit_transactions AS u ON u.wallet_number = l.wallet_number AND u.kind = $REFUND
      JOIN postings AS r ON r.wallet_number = u.wallet_number AND r.number = u.posting_number
      JOIN postings AS p ON p.wallet_number = r.wallet_number AND p.number = r.refund_of
      JOIN credit_transactions AS t
        ON t.wallet_number = p.wallet_number AND t.sequence = p.first_sequence
      {_OF_LIMIT} WHERE {_COUNTS}
      UNION ALL SELECT l.wallet_number, l.number, {_PART}, t.amount FROM spend_limits AS l
      JOIN ({_CANCELED}) AS q ON q.wallet_number = l.wallet_number
      JOIN credit_transactions AS t ON t.wallet_number = q.wallet_number
        AND t.sequence >= q.first_sequence AND t.sequence < q.first_sequence + q.row_count
        AND t.sequence >= q.below
      {_OF_LIMIT} WHERE {_COUNTS}
      UNION ALL SELECT l.wallet_number, l.number, {_PART}, u.amount FROM spend_limits AS l
      JOIN ({_CANCELED}) AS q ON q.wallet_number = l.wallet_number
        AND q.first_sequence + q.row_count > q.below
      JOIN postings AS r ON r.wallet_number = q.wallet_number AND r.refund_of = q.number
      JOIN credit_transactions AS u ON u.wallet_number = r.wallet_number
        AND u.sequence >= r.first_sequence AND u.sequence < r.first_sequence + r.row_count
      JOIN credit_transactions AS t
        ON t.wallet_number = q.wallet_number AND t.sequence = q.first_sequence
      {_OF_LIMIT} WHERE {_COUNTS}
      UNION ALL $LIMIT_PARTS) AS every
      GROUP BY wallet_number, number, start HAVING sum(amount) <> 0) AS x
      ON x.wallet_number = l.wallet_number AND x.number = l.number""",  # noqa: S608 # constants
    ("l.wallet_number", "NULL"),
    """
limit_made: l.number > v.limits_made OR l.since > v.sequence
    -- limit {l.number}, made after row {l.since}, was not made yet
limit_period: (l.time_zone IS NULL) <> (l.counted_until IS NULL)
    OR l.counted_until NOT BETWEEN l.counted_from + 1 AND l.counted_from + $LONGEST
    -- limit {l.number}: no period runs from {l.counted_from} to {l.counted_until}
limit_zone: l.time_zone IN ('localtime', 'Factory', 'posixrules')
    -- time_zone {l.time_zone} is no IANA zone: it counts as UTC
limit_spent: x.amount <> 0
    -- limit {l.number}: from {x.start} on its rows have spent {x.amount} more
""",
)

# --- what grants have been ------------------------------------------------------------------------

GRANT_REVISIONS = Pass(
    "grant revisions",
    """grant_revisions AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN grants AS g ON g.wallet_number = r.wallet_number AND g.number = r.grant_number
    LEFT JOIN grant_revisions AS b ON b.wallet_number = r.wallet_number
      AND b.grant_number = r.grant_number AND b.number = r.number - 1
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = r.wallet_number AND t.sequence = r.grant_number
    LEFT JOIN postings AS o ON o.wallet_number = t.wallet_number AND o.number = t.posting_number
    LEFT JOIN postings AS p
      ON p.wallet_number = r.wallet_number AND p.number = r.posting_number""",
    ("r.wallet_number", "r.grant_number"),
    """
grant_history: g.number IS NULL OR r.number < 0 OR r.number > g.revision
    OR CASE WHEN r.number = 0
       THEN r.created_at <> g.created_at OR r.voided_at IS NOT NULL OR r.changed_by IS NOT NULL
         OR coalesce(r.metadata, '') <> coalesce(o.metadata, '')
       ELSE b.number IS NULL OR r.created_at < b.created_at END
    -- revision {r.number} is not what the grant was, or one is missing before it
revision_void: CASE WHEN b.voided_at IS NULL AND r.voided_at IS NOT NULL
       THEN p.number IS NULL OR p.operation <> $OP_VOID OR r.voided_at <> r.created_at
       ELSE r.posting_number IS NOT NULL OR coalesce(r.voided_at, -1) <> coalesce(b.voided_at, -1)
       END
    -- posting {r.posting_number} did not void it in revision {r.number}
""",
)

# --- what grants paid back of overdraft -----------------------------------------------------------

#: Each as the grant began, as it ended or as a hold gave up what it had of the grant.
GRANT_REPAYMENTS = Pass(
    "repayments of grants",
    """(SELECT *, sum(amount) OVER (PARTITION BY wallet_number, grant_number ORDER BY start)
         - amount AS before FROM grant_repayments) AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = r.wallet_number
    LEFT JOIN grants AS g ON g.wallet_number = r.wallet_number AND g.number = r.grant_number""",
    ("r.wallet_number", "r.grant_number"),
    """
repayment_grant: g.number IS NULL OR r.start <> r.before
    -- the grant has repaid {r.before} before, not {r.start}, or it is not there
repayment_time: r.repaid_at <= w.repays_from OR r.created_at > v.posted_at
    OR r.sequence > v.sequence OR CASE WHEN r.repaid_at = g.effective_at
       THEN g.created_at >= g.effective_at
       WHEN coalesce(g.expires_at, r.repaid_at + 1) > r.repaid_at THEN true
       WHEN g.expires_at = r.repaid_at THEN false
       ELSE NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.wallet_number = r.wallet_number
         AND h.ended_at = r.repaid_at) END
    -- the grant neither began nor ended at {r.repaid_at}
""",
)

# --- which grants paid which overdrafts back ------------------------------------------------------

#: Draws lie behind one another on the line. That none is missing, `wallet_draws` says.
OVERDRAFTS = Pass(
    "overdrafts",
    """(SELECT *, coalesce(lag(start + amount)
           OVER (PARTITION BY wallet_number ORDER BY sequence), 0) AS place
         FROM overdraft_draws) AS i
    LEFT JOIN wallets AS w ON w.number = i.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = i.wallet_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = i.wallet_number AND t.sequence = i.sequence
    LEFT JOIN (SELECT f.wallet_number, f.sequence, sum(u.amount) AS amount
               FROM overdraft_draws AS f
               JOIN credit_transactions AS t
                 ON t.wallet_number = f.wallet_number AND t.sequence = f.sequence
               JOIN (SELECT wallet_number, refund_of, first_sequence, row_count FROM postings
                     WHERE refund_of IS NOT NULL
                     UNION ALL SELECT r.wallet_number, e.number, r.first_sequence, r.row_count
                     FROM postings AS r JOIN meter_events AS e
                       ON e.wallet_number = r.wallet_number AND e.identifier = r.meter_event_id
                     WHERE r.operation IN ($OP_CANCEL, $OP_RETURN)) AS p
                 ON p.wallet_number = f.wallet_number AND p.refund_of = t.posting_number
               JOIN credit_transactions AS u ON u.wallet_number = f.wallet_number
                 AND u.sequence >= p.first_sequence
                 AND u.sequence < p.first_sequence + p.row_count AND u.grant_number IS NULL
               GROUP BY f.wallet_number, f.sequence) AS b
      ON b.wallet_number = i.wallet_number AND b.sequence = i.sequence
    LEFT JOIN (SELECT c.wallet_number, p.refund_of, sum(c.amount) AS amount
               FROM overdraft_payers AS c
               JOIN credit_transactions AS u ON u.wallet_number = c.wallet_number
                 AND u.sequence = c.row_sequence AND u.grant_number IS NULL
               JOIN postings AS p
                 ON p.wallet_number = c.wallet_number AND p.number = u.posting_number
               GROUP BY c.wallet_number, p.refund_of) AS e
      ON e.wallet_number = i.wallet_number AND e.refund_of = t.posting_number""",
    ("i.wallet_number", "i.sequence"),
    """
overdraft_row: t.sequence IS NULL OR t.grant_number IS NOT NULL OR t.amount <> -i.amount
    OR i.start <> i.place
    -- it has {i.amount} from {i.start} on, and what was drawn before ends at {i.place}
overdraft_forgiven: i.forgiven <> coalesce(b.amount, 0) - coalesce(e.amount, 0)
    -- {i.forgiven} are forgiven, refunds gave back {coalesce(b.amount, 0) - coalesce(e.amount, 0)}
""",
)

#: A stretch of the line begins where the one before ends, or behind what was forgiven in between.
OVERDRAFT_PAYERS = Pass(
    "payers of overdrafts",
    """(SELECT *, coalesce(lag(until) OVER (PARTITION BY wallet_number ORDER BY start), 0) AS place,
           sum(amount) OVER (PARTITION BY wallet_number, grant_number) AS paid
         FROM overdraft_payers) AS c
    LEFT JOIN wallets AS w ON w.number = c.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = c.wallet_number
    LEFT JOIN grants AS g ON g.wallet_number = c.wallet_number AND g.number = c.grant_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = c.wallet_number AND t.sequence = c.row_sequence
    LEFT JOIN (SELECT c.wallet_number, c.grant_number, sum(c.amount) AS amount
               FROM overdraft_payers AS c
               JOIN credit_transactions AS u ON u.wallet_number = c.wallet_number
                 AND u.sequence = c.row_sequence AND u.grant_number IS NULL
               GROUP BY c.wallet_number, c.grant_number) AS e
      ON e.wallet_number = c.wallet_number AND e.grant_number = c.grant_number""",
    ("c.wallet_number", "c.grant_number"),
    """
payer_place: c.start < c.place OR c.until > v.repaid_to
      OR c.start - c.place <> $FORGIVEN_BEFORE
      OR c.until - c.start - c.amount <> $FORGIVEN_WITHIN
    -- it paid {c.amount} from {c.start} to {c.until}, the one before it up to {c.place}
payer_grant: g.number IS NULL OR g.scope IS NOT NULL
    OR c.paid - coalesce(e.amount, 0) <> g.overdraft_paid + g.repaid
    -- the grant paid {g.overdraft_paid} and {g.repaid} of overdraft, not {c.paid}
payer_row: c.row_sequence IS NOT NULL AND (t.sequence IS NULL
      OR coalesce(t.grant_number, c.grant_number) <> c.grant_number OR t.amount < c.amount
      OR t.grant_number IS NULL AND t.kind <> $REFUND)
    -- row {c.row_sequence} gave no credit that paid
""",
)

# --- webhooks -------------------------------------------------------------------------------------

#: What a delivery names exists, and its endpoint may know of it.
WEBHOOKS = Pass(
    "webhook deliveries",
    """webhook_deliveries AS y
    LEFT JOIN wallets AS w ON w.number = y.wallet_number
    LEFT JOIN webhook_endpoints AS e ON e.number = y.endpoint_number
    LEFT JOIN webhook_feed AS f ON f.number = 1
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = y.wallet_number AND t.sequence = y.subject AND y.type NOT IN (4, 6)
    LEFT JOIN grants AS g
      ON g.wallet_number = y.wallet_number AND g.number = y.subject AND y.type = 4
    LEFT JOIN holds AS h
      ON h.wallet_number = y.wallet_number AND h.number = y.subject AND y.type = 6
        AND h.ended = $HOLD_EXPIRED""",
    ("y.wallet_number", "NULL"),
    """
delivery_subject: t.sequence IS NULL AND g.number IS NULL AND h.number IS NULL
    -- delivery {y.number} of type {y.type} is about {y.subject}, which is not there
delivery_endpoint: e.number IS NULL OR w.number IS NULL OR e.livemode <> w.livemode
    OR coalesce(e.customer_id, w.customer_id) <> w.customer_id
    -- delivery {y.number} is for endpoint {y.endpoint_number}, which does not hear of its wallet
delivery_number: f.number IS NULL OR y.number > f.made
    -- delivery {y.number} was not made yet
""",
)

# --- parts of grants ------------------------------------------------------------------------------

#: A row that adds to a grant of the ledger's own, and is not the one that made it.
PARTS = Pass(
    "parts of grants",
    """grant_parts AS x
    LEFT JOIN wallets AS w ON w.number = x.wallet_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = x.wallet_number AND t.sequence = x.sequence
    LEFT JOIN grants AS g ON g.wallet_number = x.wallet_number AND g.number = x.grant_number""",
    ("x.wallet_number", "x.sequence"),
    """
part_row: t.sequence IS NULL OR t.kind NOT IN ($REFUND, $TRANSFER_IN) OR t.amount <= 0
    OR coalesce(t.grant_number, 0) <> x.grant_number OR x.overdraft_paid > t.amount
    OR g.number IS NULL OR g.origin NOT IN ($ORIGIN_REFUND, $ORIGIN_TRANSFER)
    -- row {x.sequence} added no part to grant {x.grant_number}
""",
)

#: What comes by transfer makes a grant, or is a part of one.
ARRIVED = Pass(
    "rows of transfers",
    """credit_transactions AS t
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN grant_parts AS x ON x.wallet_number = t.wallet_number AND x.sequence = t.sequence""",
    ("t.wallet_number", "t.sequence"),
    """
row_part: t.kind <> $USAGE AND t.kind = $TRANSFER_IN AND t.grant_number <> t.sequence
    AND x.sequence IS NULL -- it neither made grant {t.grant_number} nor is a part of it
""",
)

# --- receipts -------------------------------------------------------------------------------------

#: What grants say was paid for them is kept, until they are voided.
RECEIPTS = Pass(
    "receipts",
    """credit_transactions AS t
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN postings AS p ON p.wallet_number = t.wallet_number AND p.number = t.posting_number
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.sequence
    LEFT JOIN receipts AS r ON r.wallet_number = t.wallet_number AND r.grant_number = t.sequence""",
    ("t.wallet_number", "t.sequence"),
    f"""
receipt: t.kind <> $USAGE AND t.kind IN ($TOPUP, $SUBSCRIPTION_RENEW)
    AND CASE WHEN g.category = {Category.PAID:d} AND g.voided_at IS NULL
        AND coalesce($SAID_RECEIPT, '') <> ''
      THEN r.grant_number IS NULL OR r.receipt_id <> $SAID_RECEIPT
        OR r.provider <> coalesce($SAID_PROVIDER, '')
      ELSE r.grant_number IS NOT NULL END
    -- the receipt that its posting names is not that of grant {{t.sequence}}
""",
)

RECEIPT_ROWS = Pass(
    "receipts of grants",
    """receipts AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = r.wallet_number AND t.sequence = r.grant_number""",
    ("r.wallet_number", "r.grant_number"),
    """
receipt_row: coalesce(t.kind, 0) NOT IN ($TOPUP, $SUBSCRIPTION_RENEW)
    -- receipt {r.receipt_id} was credited by no such grant
""",
)

# --- all of them ---------------------------------------------------------------------------------

PASSES = (
    *(ROWS, KIND_COUNTS, POSTINGS, REFUNDS, GRANTS, SCOPES, WALLETS, HOLDS, REVISIONS),
    *HISTORY,
    *(TRANSFERS, EVENTS, LIMITS, GRANT_REVISIONS, GRANT_REPAYMENTS, WEBHOOKS),
    *(RECEIPTS, RECEIPT_ROWS, PARTS, ARRIVED),
    *(OVERDRAFTS, OVERDRAFT_PAYERS),
    *(ROLLUPS, MOVED_ROLLUPS),
)
