"""The invariants of the ledger as queries that must find nothing: docs/ledger.md, "Invariants".

A pass is one query over one table and what belongs to its rows; a check is a condition in it that
is true of what is wrong. verification.py runs them, and proofs.py has shorter ways to learn that
they would find nothing. Plain joins and windows that SQLite and PostgreSQL both run; the end of the
file holds what the two spell differently. Imports clock and model.
"""

import re
from functools import cache
from typing import NamedTuple

from creditledger.domain.clock import DAY, HOUR, QUARTER
from creditledger.domain.commands import (
    CHANGE_NAMES,
    EXPIRE,
    OPERATIONS,
    RECEIVE,
    RETURN,
    SETTLE,
    Capture,
    Consume,
    ReportEvent,
)
from creditledger.domain.model import Category, HoldEnd, Kind, Origin, Period, Status, Type


class Pass(NamedTuple):
    """Checks made in one query, as text: `name: what is wrong, in SQL -- what to say of it`.

    In a message {SQL} stands for its value, in SQL $NAME for a number or what the dialect says.
    `w` is the wallet, `v` its state. To compare with what is missing gives NULL, so finds nothing:
    that it is missing is a check of its own.
    """

    name: str
    source: str
    place: tuple[str, str]  #: Wallet number, sequence.
    checks: str


@cache
def named(checks: str) -> tuple[tuple[str, str, str], ...]:
    """The checks of a pass as (name, what is wrong, message)."""
    found = re.findall(r"^(\w+):(.*?) -- (.*?)$", checks, re.MULTILINE | re.DOTALL)
    return tuple((name, wrong, message) for name, wrong, message in found)


def wrong(one: Pass) -> tuple[str, ...]:
    """What the checks of a pass say is wrong, in SQL."""
    return tuple(f"({condition})" for _, condition, _ in named(one.checks))


# --- rows: each against the one before it and what it refers to -----------------------------------


#: Figures that rows carry, and what a row adds to that of the row before it.
CARRIED = {
    "running_balance": "t.amount",
    "usage_count": "CASE t.kind WHEN $USAGE THEN 1 ELSE 0 END",
    "usage_amount": "CASE t.kind WHEN $USAGE THEN t.amount ELSE 0 END",
    "usage_quantity": "CASE WHEN p.quantities IS NULL THEN 0 ELSE $QUANTITY END",
    "unmetered_amount": "CASE WHEN t.kind = $USAGE AND NOT d.has_usage THEN -t.amount ELSE 0 END",
}


def _carries(column: str) -> str:
    now = f"CASE WHEN t.sequence = 1 THEN 0 ELSE b.{column} END + {CARRIED[column]}"
    return f"{column}: t.{column} <> {now} -- {column} is {{t.{column}}}, not {{{now}}}\n"


#: Numbers of a wallet's postings ascend within a millisecond; those of ledgers of older versions
#: may go back between two.
NUMBER_BACK = "t.posting_number < b.posting_number AND t.created_at = b.created_at"
#: Which posting `p` the row `t` is of.
OF_POSTING = "p.wallet_number = t.wallet_number AND p.number = t.posting_number"
#: What is wrong with a row beside its posting and its dimension alone.
OUTSIDE = """t.sequence < p.first_sequence
    OR t.sequence >= p.first_sequence + p.row_count"""
NO_SUCH_KIND = """NOT (
      p.operation IN ($SPENDING) AND t.type = $TYPE_CONSUMPTION
      AND t.kind = $USAGE AND t.amount < 0
   OR p.operation = $OP_GRANT AND t.type = $TYPE_GRANT AND t.amount > 0
      AND t.kind IN ($TOPUP, $SUBSCRIPTION_RENEW, $ADMIN_CREDIT)
   OR p.operation = $OP_ADJUSTMENT AND t.type = $TYPE_ADJUSTMENT
      AND t.kind = CASE WHEN t.amount > 0 THEN $ADMIN_CREDIT ELSE $ADMIN_DEBIT END
   OR p.operation = $OP_REFUND AND t.type = $TYPE_ADJUSTMENT AND t.kind = $REFUND
      AND t.amount > 0
   OR p.operation IN ($OP_CANCEL, $OP_RETURN) AND t.type = $TYPE_ADJUSTMENT
      AND t.kind = $REFUND AND t.amount > 0
   OR p.operation = $OP_TRANSFER AND t.type = $TYPE_ADJUSTMENT AND t.kind = $TRANSFER_OUT
      AND t.amount < 0
   OR p.operation = $OP_RECEIVE AND t.type = $TYPE_ADJUSTMENT AND t.kind = $TRANSFER_IN
      AND t.amount > 0
   OR p.operation IN ($OP_EXPIRY, $OP_VOID) AND t.type = $TYPE_EXPIRATION AND t.kind = $EXPIRY
      AND t.amount < 0)"""
OTHER_DIMENSION = """d.kind <> t.kind OR d.type <> t.type
    OR p.quantities IS NOT NULL AND NOT d.has_usage"""
NO_SUCH_GRANT = """t.grant_number < 1 OR t.grant_number > t.sequence
    OR t.amount < 0 AND t.grant_number = t.sequence
    OR t.kind IN ($EXPIRY, $TRANSFER_OUT, $TRANSFER_IN) AND t.grant_number IS NULL
    OR t.kind IN ($TOPUP, $SUBSCRIPTION_RENEW, $ADMIN_CREDIT)
       AND coalesce(t.grant_number, 0) <> t.sequence"""
#: The first moment at which the grant `g` could not be drawn on; other rows of the moment at which
#: it was voided may lie before that.
GONE_AT = "coalesce(g.voided_at + 1, g.expires_at)"
#: Whether a refund gave something back to the grant `g` of the row `t`, at that moment, which gets
#: no new end: it expires at once.
_CAME_BACK = """g.returned AND EXISTS (SELECT 1 FROM credit_transactions AS k
      WHERE k.wallet_number = t.wallet_number AND k.sequence < t.sequence AND k.kind = $REFUND
      AND k.sequence >= t.sequence - 2000 AND k.grant_number = t.grant_number
      AND k.created_at = t.created_at)"""
#: What is wrong with an expiration. It is of the moment at which its grant ends or, of what a hold
#: had set aside, at which the hold does; of what comes back later, at which it does.
NOT_EXPIRED = """t.kind = $EXPIRY AND (coalesce(g.voided_at, g.expires_at) IS NULL
      OR coalesce(g.voided_at, g.expires_at) > t.created_at
      OR CASE WHEN p.operation = $OP_VOID
         THEN t.effective_at IS NOT NULL OR coalesce(g.voided_at, 0) <> t.created_at
         WHEN t.effective_at IS NULL AND $CAME_BACK THEN false
         WHEN g.voided_at IS NULL AND g.expires_at = coalesce(t.effective_at, t.created_at)
         THEN t.posting_number <> b.posting_number AND g.expires_at <= b.created_at
           AND NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.wallet_number = t.wallet_number
             AND h.ended_at = g.expires_at)
         ELSE NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.wallet_number = t.wallet_number
           AND h.ended_at = coalesce(t.effective_at, t.created_at)
           AND h.ended_at >= coalesce(g.voided_at, g.expires_at + 1)) END)"""
#: What is wrong with a grant beside the row that made it. Its amount is more if parts were added;
#: what they come to is a check of its own.
OTHER_ORIGIN = """g.amount <> t.amount AND NOT EXISTS (SELECT 1 FROM grant_parts AS q
         WHERE q.wallet_number = g.wallet_number AND q.grant_number = g.number)
    OR g.origin <> CASE t.kind WHEN $REFUND THEN $ORIGIN_REFUND
         WHEN $TRANSFER_IN THEN $ORIGIN_TRANSFER
         ELSE CASE t.type WHEN $TYPE_ADJUSTMENT THEN $ORIGIN_ADJUSTMENT ELSE $ORIGIN_GIVEN END END
    OR g.created_at <> t.created_at
    OR g.effective_at <> CASE t.type
         WHEN $TYPE_GRANT THEN coalesce(t.effective_at, t.created_at) ELSE t.created_at END"""

#: Whether it is its posting's first row, as a number.
FIRST = "CASE WHEN t.sequence = p.first_sequence THEN 1 ELSE 0 END"
FIRST_QUANTITIES = "CASE WHEN t.sequence = p.first_sequence THEN p.quantities END"

ROWS = Pass(
    "rows",
    """credit_transactions AS t
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN credit_transactions AS b
      ON b.wallet_number = t.wallet_number AND b.sequence = t.sequence - 1
    LEFT JOIN $POSTINGS AS p ON $OF_POSTING
    LEFT JOIN dimensions AS d
      ON d.wallet_number = t.wallet_number AND d.number = t.dimension_number
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.grant_number""",
    ("t.wallet_number", "t.sequence"),
    """
row_wallet: w.number IS NULL -- there is no such wallet
sequence: b.sequence IS NULL AND t.sequence <> 1 -- there is no row {t.sequence - 1} before it
"""
    + _carries("running_balance")
    + f"""
created_at: t.created_at < b.created_at -- its time {{t.created_at}} is before {{b.created_at}}
position: $PLACE < $PLACE_BEFORE
    -- its place in commit order {{$PLACE}} is before {{$PLACE_BEFORE}}
posting: p.number IS NULL OR {OUTSIDE} OR {NUMBER_BACK}
    -- it is no row of posting {{t.posting_number}}
one_posting: t.posting_number = b.posting_number AND (
      t.created_at <> b.created_at OR t.dimension_number <> b.dimension_number
      OR p.operation <> $OP_EXPIRY AND coalesce(t.effective_at, t.created_at)
         <> coalesce(b.effective_at, b.created_at))
    -- its time or dimension is not that of the row before it, of the same posting
kind: {NO_SUCH_KIND}
    -- operation {{p.operation}} writes no kind {{t.kind}}, type {{t.type}} of {{t.amount}}
dimension: d.number IS NULL OR {OTHER_DIMENSION}
    -- dimension {{t.dimension_number}} is missing, of another kind or without usage
"""
    + "".join(_carries(column) for column in CARRIED if column != "running_balance")
    + f"""
grant: t.grant_number IS NOT NULL AND g.number IS NULL OR {NO_SUCH_GRANT}
    -- it cannot be of grant {{t.grant_number}}
grant_origin: t.grant_number = t.sequence AND ({OTHER_ORIGIN})
    -- the grant it made has another amount or time
grant_time: t.kind <> $EXPIRY AND {GONE_AT} <= t.created_at AND p.operation <> $OP_CAPTURE
      AND NOT (t.kind = $REFUND AND g.returned)
    OR t.kind IN ($USAGE, $TRANSFER_OUT) AND g.effective_at > t.created_at
    -- grant {{g.number}} was not open at {{t.created_at}}
expiration: {NOT_EXPIRED}
    -- it is too early or too late for grant {{g.number}}, gone at {{{GONE_AT}}}
""",
)

KIND_COUNTS = Pass(
    "kind counts",
    """(SELECT wallet_number, sequence, kind_count, 1 + coalesce(
           lag(kind_count) OVER (PARTITION BY wallet_number, kind ORDER BY sequence), 0) AS n
        FROM credit_transactions WHERE kind <> $USAGE) AS t
    LEFT JOIN wallets AS w ON w.number = t.wallet_number""",
    ("t.wallet_number", "t.sequence"),
    "kind_count: t.kind_count <> t.n -- kind_count is {t.kind_count}, not {t.n}",
)

# --- postings -------------------------------------------------------------------------------------

#: A posting's first row, and its last if that is another: `posting` says that all between are its.
ENDS = """
    LEFT JOIN credit_transactions AS f
      ON f.wallet_number = p.wallet_number AND f.sequence = p.first_sequence
    LEFT JOIN credit_transactions AS l ON p.row_count > 1
      AND l.wallet_number = p.wallet_number AND l.sequence = p.first_sequence + p.row_count - 1"""
POSTING_SUM = "f.amount + coalesce(l.running_balance - f.running_balance, 0)"

#: Of a hold only captures have rows, and no change has.
_OF_HOLD = "p.operation IN ($OP_HOLD, $OP_RELEASE, $OP_EXTEND)"
_ROWLESS = "p.operation IN ($OP_HOLD, $OP_RELEASE, $OP_EXTEND, $OP_CHANGES)"
POSTING_SHAPE = f"""
    p.number < 1
    OR (p.operation IN ($OP_EXPIRY, $OP_RECEIVE, $OP_SETTLE, $OP_RETURN))
      <> (p.idempotency_key IS NULL)
    OR (p.operation IN ($OP_TRANSFER, $OP_RECEIVE)) <> (p.linked_wallet IS NOT NULL)
    OR (p.linked_wallet IS NULL) <> (p.linked_posting IS NULL)
    OR (p.operation = $OP_REFUND) <> (p.refund_of IS NOT NULL)
    OR ({_OF_HOLD} OR p.operation = $OP_CAPTURE) <> (p.hold_number IS NOT NULL)
    OR p.operation NOT IN ($OP_CONSUMPTION, $OP_CAPTURE) AND p.quantities IS NOT NULL
    OR p.operation NOT IN ($SPENDING, $OP_CANCEL, $OP_RETURN) AND p.meter_event_id IS NOT NULL"""
#: A meter event has none where there was no credit at all, what cancels one where nothing was drawn
#: for it or all of that was refunded, a void where nothing was left that no
#: hold had set aside, and a capture of 0.
POSTING_COUNT = f"""p.row_count < 0 OR p.operation = $OP_VOID AND p.row_count > 1
    OR p.operation = $OP_CAPTURE AND (p.row_count = 0) <> (coalesce(p.amount, 1) = 0)
    OR p.operation NOT IN ($OP_METER_EVENT, $OP_VOID, $OP_CAPTURE, $OP_CANCEL, $OP_RETURN)
       AND (p.row_count = 0) <> ({_ROWLESS})"""
#: What every posting of a meter event, what is paid for one later and what cancels it, is about.
POSTING_EVENT = """p.operation IN ($OP_METER_EVENT, $OP_SETTLE, $OP_CANCEL, $OP_RETURN)
    AND NOT EXISTS (
      SELECT 1 FROM meter_events AS e WHERE e.wallet_number = p.wallet_number
      AND e.identifier = p.meter_event_id
      AND CASE p.operation WHEN $OP_METER_EVENT THEN e.number = p.number
          WHEN $OP_SETTLE THEN e.number <> p.number
          ELSE e.number <> p.number AND e.canceled_at IS NOT NULL END)"""
#: What every posting about a hold leaves of it.
POSTING_HOLD = """p.hold_number IS NOT NULL AND NOT EXISTS (
      SELECT 1 FROM hold_revisions AS r WHERE r.wallet_number = p.wallet_number
      AND r.hold_number = p.hold_number AND r.posting_number = p.number)"""

#: A posting that voids is one that a grant's revision names.
POSTING_VOID = """p.operation = $OP_VOID AND NOT EXISTS (
      SELECT 1 FROM grant_revisions AS r WHERE r.wallet_number = p.wallet_number
      AND r.posting_number = p.number)"""


def posting_amount(total: str) -> str:
    """What is wrong with the amount of a posting whose rows add up to `total`."""
    return f"""CASE WHEN p.operation IN ($OP_CHANGES) THEN p.amount IS NOT NULL
      ELSE CASE p.operation
      WHEN $OP_CONSUMPTION THEN p.amount IS NULL OR -p.amount <> {total}
      WHEN $OP_TRANSFER THEN p.amount IS NULL OR -p.amount <> {total}
      WHEN $OP_CAPTURE THEN p.amount IS NOT NULL AND -p.amount <> {total}
      WHEN $OP_REFUND THEN p.amount <> {total}
      WHEN $OP_HOLD THEN p.amount IS NULL
      WHEN $OP_RELEASE THEN p.amount IS NOT NULL
      WHEN $OP_EXTEND THEN p.amount IS NOT NULL
      WHEN $OP_EXPIRY THEN p.amount IS NOT NULL
      WHEN $OP_SETTLE THEN p.amount IS NOT NULL
      WHEN $OP_CANCEL THEN p.amount IS NOT NULL
      WHEN $OP_RETURN THEN p.amount IS NOT NULL
      WHEN $OP_METER_EVENT THEN p.amount IS NULL OR -p.amount > {total}
      WHEN $OP_VOID THEN p.amount IS NOT NULL
      ELSE p.amount IS NULL OR p.amount <> {total} END END"""


POSTINGS = Pass(
    "postings",
    f"postings AS p LEFT JOIN wallets AS w ON w.number = p.wallet_number {ENDS}",
    ("p.wallet_number", "p.first_sequence"),
    f"""
posting_rows: {POSTING_COUNT} OR p.row_count > 0 AND coalesce(f.posting_number, 0) <> p.number
    OR p.row_count > 1 AND coalesce(l.posting_number, 0) <> p.number
    -- posting {{p.number}} does not have {{p.row_count}} rows
posting_shape: {POSTING_SHAPE}
    -- posting {{p.number}} has a field that operation {{p.operation}} has not, or lacks one
posting_hold: {POSTING_HOLD}
    -- posting {{p.number}} left nothing of hold {{p.hold_number}}
posting_event: {POSTING_EVENT}
    -- posting {{p.number}} is of meter event {{p.meter_event_id}}, which does not say so
posting_void: {POSTING_VOID} -- posting {{p.number}} voided no grant
posting_amount: {posting_amount(POSTING_SUM)}
    -- posting {{p.number}} is of {{p.amount}}, its rows of {{{POSTING_SUM}}}
""",
)

_LABELS = ("api_key_id", "product_id", "product_name", "category", "billing_method")
_USAGE = ("has_usage", *_LABELS, "base_prices", "discount_prices", "price_precision")

REFUNDS = Pass(
    "refunds",
    f"""(SELECT p.wallet_number, p.number, p.refund_of, p.first_sequence, f.dimension_number,
           sum({POSTING_SUM}) OVER
             (PARTITION BY p.wallet_number, p.refund_of ORDER BY p.first_sequence) AS so_far
         FROM postings AS p {ENDS} WHERE p.refund_of IS NOT NULL) AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN postings AS p ON p.wallet_number = r.wallet_number AND p.number = r.refund_of {ENDS}
    LEFT JOIN dimensions AS d
      ON d.wallet_number = r.wallet_number AND d.number = r.dimension_number
    LEFT JOIN dimensions AS o
      ON o.wallet_number = p.wallet_number AND o.number = f.dimension_number""",  # noqa: S608 # constants
    ("r.wallet_number", "r.first_sequence"),
    f"""
refund_of: p.number IS NULL OR p.first_sequence >= r.first_sequence
    OR p.operation NOT IN ($SPENDING)
    -- posting {{r.refund_of}} cannot be refunded by posting {{r.number}}
refund_total: r.so_far > -({POSTING_SUM})
    -- {{r.so_far}} of posting {{p.number}} are refunded with it, of {{-({POSTING_SUM})}}
refund_usage: {" OR ".join(f"d.{label} <> o.{label}" for label in _USAGE)}
    -- its usage is not that of posting {{p.number}}, which it refunds
""",
)

# --- roll-ups: their rows added up anew, minus what is stored -------------------------------------

QUANTITIES = tuple(f"quantity_{i}" for i in range(6))
KEY = "wallet_number, quarter, dimension_number"
_PLACE = "quarter {x.quarter}, dimension {x.dimension_number}"
#: What is given back of an overdraft was paid, whatever the category of what comes back.
OF_OVERDRAFT = """LEFT JOIN overdraft_returns AS o ON t.kind = $REFUND
         AND o.wallet_number = t.wallet_number AND o.sequence = t.sequence"""
_VOUCHER = f"""CASE WHEN g.category = {Category.PROMOTIONAL:d} AND o.sequence IS NULL
         THEN t.amount ELSE 0 END"""
_ROWS_AND_POSTINGS = """credit_transactions AS t
       LEFT JOIN $POSTINGS AS p ON $OF_POSTING"""


def quarter(time: str) -> str:
    """The quarter of an hour of a time, rounded down: before 1970 too, where / alone rounds up."""
    ago = 10**10
    return f"({time} + {ago * QUARTER}) / {QUARTER} - {ago} AS quarter"


def _off(name: str, difference: str) -> str:
    return f"rollup_{name}: {difference} <> 0 -- {_PLACE}: its rows have {{{difference}}} more\n"


#: One grouping finds both directions, for a roll-up without rows differs from 0 as well. What is
#: sorted is kept narrow: quantities stay JSON until they are added up.
ROLLUPS = Pass(
    "roll-ups",
    f"""(SELECT {KEY}, sum(stored) AS stored, sum(count) AS count, sum(amount) AS amount,
           sum(voucher_amount) AS voucher_amount, sum(posting_count) AS posting_count,
           {", ".join(f"coalesce(sum($JS_{i}), 0) AS {q}" for i, q in enumerate(QUANTITIES))}
    FROM (SELECT t.wallet_number, {quarter("coalesce(t.effective_at, t.created_at)")},
            t.dimension_number, 0 AS stored, 1 AS count, t.amount, {_VOUCHER} AS voucher_amount,
            {FIRST} AS posting_count, {FIRST_QUANTITIES} AS js
          FROM {_ROWS_AND_POSTINGS}
          LEFT JOIN grants AS g
            ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
          {OF_OVERDRAFT}
          UNION ALL SELECT {KEY}, 1, -count, -amount, -voucher_amount, -posting_count,
            $JS_STORED
          FROM rollups) AS every
    GROUP BY {KEY}) AS x
    LEFT JOIN wallets AS w ON w.number = x.wallet_number""",  # noqa: S608 # constants
    ("x.wallet_number", "CAST(NULL AS bigint)"),
    f"rollup: x.stored <> 1 -- {_PLACE}: there is no roll-up\n"
    + "".join(
        _off(name, f"x.{name}") for name in ("count", "amount", "voucher_amount", "posting_count")
    )
    + "".join(_off(name, f"x.{name}") for name in QUANTITIES),
)

_STORED_QUANTITY = " + ".join(QUANTITIES)


#: The sums by created_at, as what they have beyond those by effective_at: only rows that have one
#: differ, so only these are grouped once more.
MOVED_ROLLUPS = Pass(
    "roll-ups as written",
    f"""(SELECT {KEY}, sum(count) AS count, sum(amount) AS amount, sum(quantity) AS quantity
    FROM (SELECT t.wallet_number,
            {quarter("CASE s.sign WHEN 1 THEN t.created_at ELSE t.effective_at END")},
            t.dimension_number, s.sign AS count, s.sign * t.amount AS amount,
            s.sign * $QUANTITY AS quantity
          FROM {_ROWS_AND_POSTINGS}
          CROSS JOIN (SELECT 1 AS sign UNION ALL SELECT -1) AS s
          WHERE $MOVED IS NOT NULL
          UNION ALL SELECT {KEY}, count - created_count, amount - created_amount,
            {_STORED_QUANTITY} - created_quantity FROM rollups WHERE count <> created_count
            OR amount <> created_amount OR {_STORED_QUANTITY} <> created_quantity) AS every
    GROUP BY {KEY}) AS x
    LEFT JOIN wallets AS w ON w.number = x.wallet_number""",  # noqa: S608 # constants
    ("x.wallet_number", "CAST(NULL AS bigint)"),
    "".join(_off(f"created_{name}", f"x.{name}") for name in ("count", "amount", "quantity")),
)

# --- what SQLite and PostgreSQL spell differently, and the model's numbers ------------------------


@cache
def words(dialect: str) -> dict[str, str]:
    """What $NAME stands for. QUANTITY: Σ of the posting's quantities on its first row, else 0."""
    negative = ", ".join(f"-{name}" for name in QUANTITIES)
    if dialect == "sqlite":
        total, each = "sum(q.value)", f"json_each({FIRST_QUANTITIES})"
        words = {"JS_STORED": f"json_array({negative})"}
        words |= {"PLACE": "t.position", "PLACE_BEFORE": "b.position"}
        # The plus keeps it from the index: these rows lie anywhere, so all are read.
        words["MOVED"] = "+t.effective_at"
        words |= {f"JS_{i}": f"json_extract(js, '$[{i}]')" for i in range(6)}
        words["HELD"] = _HELD.format(
            grant="json_extract(q.value, '$[0]')",
            amount="json_extract(q.value, '$[1]')",
            parts="json_each(h.parts)",
        )
        words["LIMIT_PARTS"] = _LIMIT_PARTS.format(
            start="json_extract(q.value, '$[0]')",
            amount="json_extract(q.value, '$[1]')",
            parts="json_each(l.parts)",
        )
        words |= {
            f"GIVEN_{name}": f"json_extract(p.terms, '$.\"{term}\"')" for name, term in _GIVEN
        }
        words["GIVEN_SOURCE"] = (
            "coalesce(p.source, '{}')"
            " <> coalesce(json_extract(p.terms, '$.\"grant.source\"'), '{}')"
        )
        words["GIVEN_SCOPE"] = " OR ".join(
            f"coalesce(json_extract(g.scope, '$.{name}'), '')"
            f" <> coalesce(json_extract(p.terms, '$.\"grant.scope.{name}\"'), '')"
            for name in _SCOPE.values()
        )
        left = "(SELECT coalesce(sum(json_extract(q.value, '$[1]')), 0) FROM json_each({0}) AS q)"
        among = "coalesce({0} IN (SELECT value FROM json_each(g.scope, '$.{1}')), 0)"
        words["SAID_RECEIPT"] = "json_extract(p.source, '$.receipt_id')"
        words["SAID_PROVIDER"] = "json_extract(p.source, '$.provider')"
        given, named_ = (
            "json_extract(g.scope, '$.{1}') IS NULL",
            "json_extract(p.terms, '$.\"{0}\"')",
        )
    else:
        total = "sum(CAST(q.value AS bigint))"
        each = f"json_array_elements_text(CAST({FIRST_QUANTITIES} AS json))"
        words = {"JS_STORED": f"CAST(json_build_array({negative}) AS text)"}
        words["PLACE"] = "coalesce(t.position, t.written_in)"
        words["PLACE_BEFORE"] = "coalesce(b.position, b.written_in)"
        words["MOVED"] = "t.effective_at"
        words |= {f"JS_{i}": f"CAST(CAST(js AS json) ->> {i} AS bigint)" for i in range(6)}
        words["HELD"] = _HELD.format(
            grant="CAST(q.value ->> 0 AS bigint)",
            amount="CAST(q.value ->> 1 AS bigint)",
            parts="json_array_elements(CAST(h.parts AS json))",
        )
        words["LIMIT_PARTS"] = _LIMIT_PARTS.format(
            start="CAST(q.value ->> 0 AS bigint)",
            amount="CAST(q.value ->> 1 AS bigint)",
            parts="json_array_elements(CAST(l.parts AS json))",
        )
        terms = "(CAST(p.terms AS json) ->> '{}')".format
        words |= {f"GIVEN_{name}": terms(term) for name, term in _GIVEN}
        words |= {
            f"GIVEN_{name}": f"CAST({words[f'GIVEN_{name}']} AS bigint)" for name in _GIVEN_NUMBERS
        }
        words["GIVEN_SOURCE"] = (
            "coalesce(CAST(p.source AS jsonb), '{}')"
            " <> coalesce(CAST(p.terms AS jsonb) -> 'grant.source', '{}')"
        )
        words["GIVEN_SCOPE"] = " OR ".join(
            f"coalesce(CAST(g.scope AS jsonb) -> '{name}', 'null')"
            f" <> coalesce(CAST(p.terms AS jsonb) -> 'grant.scope.{name}', 'null')"
            for name in _SCOPE.values()
        )
        left = """(SELECT coalesce(sum(CAST(q.value ->> 1 AS bigint)), 0)
          FROM json_array_elements(CAST({0} AS json)) AS q)"""
        among = "coalesce(CAST(g.scope AS jsonb) -> '{1}' @> to_jsonb({0}), false)"
        words["SAID_RECEIPT"] = "CAST(p.source AS json) ->> 'receipt_id'"
        words["SAID_PROVIDER"] = "CAST(p.source AS json) ->> 'provider'"
        given, named_ = "CAST(g.scope AS jsonb) -> '{1}' IS NULL", "CAST(p.terms AS json) ->> '{0}'"
    words["POSTINGS"] = "postings"
    words["OF_POSTING"] = OF_POSTING
    words["QUANTITY"] = f"(SELECT coalesce({total}, 0) FROM {each} AS q)"  # noqa: S608 # constants
    words |= {kind.name: str(kind.value) for kind in Kind}
    words |= {f"ORIGIN_{origin.name}": str(origin.value) for origin in Origin}
    words |= {f"TYPE_{type_.name}": str(type_.value) for type_ in Type}
    words |= {f"OP_{name.upper()}": str(code) for code, name in OPERATIONS.values()}
    words["SPENDING"] = ", ".join(map(str, _SPENDING))
    words["HOLDS"] = _HOLDS
    words["FORGIVEN_BEFORE"] = _FORGIVEN.format("c.place", "c.start")
    behind = _FORGIVEN.format("v.repaid_to", "v.overdrawn")
    words["FORGIVEN_BEHIND"] = behind.replace("c.wallet_number", "w.number")
    words["FORGIVEN_WITHIN"] = _FORGIVEN.format("c.start", "c.until")
    words["CAME_BACK"] = _CAME_BACK.replace("$REFUND", words["REFUND"])
    words["LEFT"] = f"({left.format('r.parts')} + r.beyond)"
    words["LEFT_BEFORE"] = f"({left.format('r.parts_before')} + r.beyond_before)"
    words["ROLLING"] = str(Period.ROLLING.value)
    words["LONGEST"] = _LONGEST
    words["IN_SCOPE"] = " AND ".join(
        f"({given} OR {among})".format(f"d.{label}", name) for label, name in _SCOPE.items()
    )
    words["UNNAMED"] = named_.format("adjustment.credit_grant_id") + " IS NULL"
    words["HOLD_EXPIRED"] = str(HoldEnd.EXPIRED.value)
    words |= {"OP_EXPIRY": str(EXPIRE), "OP_RECEIVE": str(RECEIVE), "OP_SETTLE": str(SETTLE)}
    words["OP_RETURN"] = str(RETURN)
    words["OP_CHANGES"] = ", ".join(map(str, CHANGE_NAMES))
    return words | {"CLOSED": str(Status.CLOSED.value)}


#: Postings whose rows are consumptions.
_SPENDING = (*(OPERATIONS[one][0] for one in (Consume, Capture, ReportEvent)), SETTLE)
#: What a posting's terms say of the grant that it gave.
_GIVEN = (
    *(("PRIORITY", "grant.priority"), ("NAME", "grant.name"), ("KIND", "grant.kind")),
    *(("EXPIRES_AT", "grant.expires_at"), ("AFTER", "grant.expires_after")),
    *(("CATEGORY", "grant.category"), ("EFFECTIVE_AT", "grant.effective_at")),
    ("BY_COMMAND", "effective_at"),
)
_GIVEN_NUMBERS = ("PRIORITY", "EXPIRES_AT", "EFFECTIVE_AT", "BY_COMMAND")
#: What a dimension says, and the list of a scope that may limit it.
_SCOPE = {"meter_id": "meter_ids", "product_id": "product_ids", "category": "categories"}
#: Whether the wallet `w` has an open hold.
_HOLDS = "EXISTS (SELECT 1 FROM holds AS h WHERE h.wallet_number = w.number AND h.ended IS NULL)"
#: What open holds have set aside of the grant `g`.
_HELD = """(SELECT coalesce(sum({amount}), 0) FROM holds AS h, {parts} AS q
    WHERE h.wallet_number = g.wallet_number AND h.ended IS NULL AND {grant} = g.number)"""
#: How many places between two were forgiven before they were paid back.
_FORGIVEN = """(SELECT coalesce(sum(
       CASE WHEN i.start + i.amount < {1} THEN i.start + i.amount ELSE {1} END
       - CASE WHEN i.start + i.amount - i.forgiven > {0} THEN i.start + i.amount - i.forgiven
         ELSE {0} END), 0)
     FROM overdraft_draws AS i WHERE i.wallet_number = c.wallet_number AND i.forgiven > 0
     AND i.start + i.amount > {0} AND i.start + i.amount - i.forgiven < {1})"""
#: The longest day, week or month of a spend limit: its zone may move across the date line in it.
_LONGEST = "CASE l.period{} END".format(
    "".join(
        f" WHEN {period:d} THEN {days * DAY + 26 * HOUR}"
        for period, days in ((Period.DAY, 1), (Period.WEEK, 7), (Period.MONTH, 31))
    )
)
#: What spend limits say was spent, the other way round.
_LIMIT_PARTS = """SELECT l.wallet_number, l.number, {start} AS start, -{amount} AS amount
      FROM spend_limits AS l, {parts} AS q"""  # constants
