"""The invariants of the ledger as queries that must find nothing: docs/ledger.md, "Invariants".

Called by the command line and by every test that wrote. Plain joins and windows that PostgreSQL
runs too; the end of the file holds what the two spell differently. Imports clock and model.

Rows are read in the order they were written. What belongs to one (the row before it, its posting,
dimension and grant) was used about then, so it lies close by and needs no sort; sorted are only the
sums by grant and by roll-up. Memory does not grow with the ledger.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from string import Template
from typing import NamedTuple

from sqlalchemy import Connection, text

from creditledger.clock import QUARTER
from creditledger.model import EXPIRE, OPERATIONS, Category, Kind, Status, Type


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a row, posting, grant, wallet or roll-up."""

    check: str
    wallet_id: str | None  #: None if there is no such wallet.
    wallet_number: int
    sequence: int | None  #: Of the row, of a posting's first row, of the row that made a grant.
    message: str


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


def verify(
    connection: Connection, *, on_progress: Callable[[str, int, int], None] | None = None
) -> Iterator[Finding]:
    """Everything wrong with the ledger in the connection's transaction; nothing if all is well.

    A pass finds in order of wallet and sequence, and passes follow what depends on what: of several
    findings of one damage the first names the row where it was done. `on_progress(name, done, of)`
    is called as each pass begins. Eight queries; 100,000 to 160,000 rows take a second.
    """
    with _room(connection):
        for done, one in enumerate(PASSES):
            if on_progress is not None:
                on_progress(one.name, done, len(PASSES))
            yield from _run(connection, one)


def damage(connection: Connection) -> str | None:
    """What is wrong with the file itself, its indexes among it; a server looks after its own."""
    if connection.dialect.name != "sqlite":
        return None
    found: str = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    return None if found == "ok" else found


def named(checks: str) -> list[tuple[str, str, str]]:
    """The checks of a pass as (name, what is wrong, message)."""
    found = re.findall(r"^(\w+):(.*?) -- (.*?)$", checks, re.MULTILINE | re.DOTALL)
    return [(name, wrong, message) for name, wrong, message in found]


def _run(connection: Connection, one: Pass) -> Iterator[Finding]:
    checks = named(one.checks)
    wrong = [f"({condition})" for _, condition, _ in checks]
    values: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        values.append(match[1])
        return f"{{{len(values) - 1}}}"

    messages = [re.sub(r"{(.+?)}", numbered, message) for *_, message in checks]
    # The plus keeps the planner from reading in this order: all are read, and few are sorted.
    order = ", ".join(f"+{column}" for column in one.place)
    query = Template(
        f"SELECT {', '.join((*one.place, 'w.id', *wrong, *values))}"  # noqa: S608 # constants
        f" FROM {one.source} WHERE {' OR '.join(wrong)} ORDER BY {order}"
    ).substitute(_words(connection.dialect.name))
    for wallet, sequence, wallet_id, *found in connection.execute(text(query)):
        for i, (check, *_) in enumerate(checks):
            if found[i]:
                message = messages[i].format(*found[len(wrong) :])
                yield Finding(check, wallet_id, wallet, sequence, message)


# --- rows: each against the one before it and what it refers to -----------------------------------


def _grows(column: str, by: str) -> str:
    """A figure kept in the rows: that of the row before plus what this row adds."""
    now = f"CASE WHEN t.sequence = 1 THEN 0 ELSE b.{column} END + {by}"
    return f"{column}: t.{column} <> {now} -- {column} is {{t.{column}}}, not {{{now}}}\n"


_FIRST_QUANTITIES = "CASE WHEN t.sequence = p.first_sequence THEN p.quantities END"

_ROWS = Pass(
    "rows",
    """credit_transactions AS t
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN credit_transactions AS b
      ON b.wallet_number = t.wallet_number AND b.sequence = t.sequence - 1
    LEFT JOIN postings AS p ON p.number = t.posting_number
    LEFT JOIN dimensions AS d
      ON d.wallet_number = t.wallet_number AND d.number = t.dimension_number
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.grant_number""",
    ("t.wallet_number", "t.sequence"),
    """
row_wallet: w.number IS NULL -- there is no such wallet
sequence: b.sequence IS NULL AND t.sequence <> 1 -- there is no row {t.sequence - 1} before it
"""
    + _grows("running_balance", "t.amount")
    + """
created_at: t.created_at < b.created_at -- its time {t.created_at} is before {b.created_at}
position: t.$POSITION < b.$POSITION
    -- its place in commit order {t.$POSITION} is before {b.$POSITION}
posting: p.number IS NULL OR p.wallet_number <> t.wallet_number OR t.sequence < p.first_sequence
    OR t.sequence >= p.first_sequence + p.row_count OR t.posting_number < b.posting_number
    -- it is no row of posting {t.posting_number}
one_posting: t.posting_number = b.posting_number AND (
      t.created_at <> b.created_at OR t.dimension_number <> b.dimension_number
      OR p.operation <> $OP_EXPIRY AND coalesce(t.effective_at, t.created_at)
         <> coalesce(b.effective_at, b.created_at))
    -- its time or dimension is not that of the row before it, of the same posting
kind: NOT (
      p.operation = $OP_CONSUMPTION AND t.type = $TYPE_CONSUMPTION AND t.kind = $USAGE
      AND t.amount < 0
   OR p.operation = $OP_GRANT AND t.type = $TYPE_GRANT AND t.amount > 0
      AND t.kind IN ($TOPUP, $SUBSCRIPTION_RENEW, $ADMIN_CREDIT)
   OR p.operation = $OP_ADJUSTMENT AND t.type = $TYPE_ADJUSTMENT
      AND t.kind = CASE WHEN t.amount > 0 THEN $ADMIN_CREDIT ELSE $ADMIN_DEBIT END
   OR p.operation = $OP_REFUND AND t.type = $TYPE_ADJUSTMENT AND t.kind = $REFUND
      AND t.amount > 0
   OR p.operation = $OP_EXPIRY AND t.type = $TYPE_EXPIRATION AND t.kind = $EXPIRY
      AND t.amount < 0)
    -- operation {p.operation} writes no kind {t.kind}, type {t.type} of {t.amount}
dimension: d.number IS NULL OR d.kind <> t.kind OR d.type <> t.type
    OR p.quantities IS NOT NULL AND NOT d.has_usage
    -- dimension {t.dimension_number} is missing, of another kind or without usage
"""
    + _grows("usage_count", "CASE t.kind WHEN $USAGE THEN 1 ELSE 0 END")
    + _grows("usage_amount", "CASE t.kind WHEN $USAGE THEN t.amount ELSE 0 END")
    + _grows("usage_quantity", "CASE WHEN p.quantities IS NULL THEN 0 ELSE $QUANTITY END")
    + _grows(
        "unmetered_amount",
        "CASE WHEN t.kind = $USAGE AND NOT d.has_usage THEN -t.amount ELSE 0 END",
    )
    + """
grant: t.grant_number IS NOT NULL AND g.number IS NULL OR t.grant_number > t.sequence
    OR t.amount < 0 AND t.grant_number = t.sequence OR t.kind = $EXPIRY AND t.grant_number IS NULL
    OR t.kind IN ($TOPUP, $SUBSCRIPTION_RENEW, $ADMIN_CREDIT)
       AND coalesce(t.grant_number, 0) <> t.sequence
    -- it cannot be of grant {t.grant_number}
grant_origin: t.grant_number = t.sequence AND (
      g.amount <> t.amount OR g.created_at <> t.created_at OR g.effective_at <> CASE t.type
        WHEN $TYPE_GRANT THEN coalesce(t.effective_at, t.created_at) ELSE t.created_at END)
    -- the grant it made has another amount or time
grant_time: t.kind <> $EXPIRY AND g.expires_at <= t.created_at
    OR t.kind = $USAGE AND g.effective_at > t.created_at
    -- grant {g.number} was not open at {t.created_at}
expiration: t.kind = $EXPIRY AND (g.expires_at IS NULL OR g.expires_at > t.created_at
      OR g.expires_at <> coalesce(t.effective_at, t.created_at)
      OR t.posting_number <> b.posting_number AND g.expires_at <= b.created_at)
    -- it is too early or too late for grant {g.number}, which ends at {g.expires_at}
""",
)

_KIND_COUNTS = Pass(
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
_ENDS = """
    LEFT JOIN credit_transactions AS f
      ON f.wallet_number = p.wallet_number AND f.sequence = p.first_sequence
    LEFT JOIN credit_transactions AS l ON p.row_count > 1
      AND l.wallet_number = p.wallet_number AND l.sequence = p.first_sequence + p.row_count - 1"""
_SUM = "f.amount + coalesce(l.running_balance - f.running_balance, 0)"

_POSTINGS = Pass(
    "postings",
    f"postings AS p LEFT JOIN wallets AS w ON w.number = p.wallet_number {_ENDS}",
    ("p.wallet_number", "p.first_sequence"),
    f"""
posting_rows: p.row_count < 1 OR coalesce(f.posting_number, 0) <> p.number
    OR p.row_count > 1 AND coalesce(l.posting_number, 0) <> p.number
    -- posting {{p.number}} does not have {{p.row_count}} rows
posting_shape: (p.operation = $OP_EXPIRY) <> (p.idempotency_key IS NULL)
    OR (p.operation = $OP_REFUND) <> (p.refund_of IS NOT NULL)
    OR p.operation <> $OP_CONSUMPTION
       AND (p.quantities IS NOT NULL OR p.meter_event_id IS NOT NULL)
    -- posting {{p.number}} has a field that operation {{p.operation}} has not, or lacks one
posting_amount: CASE p.operation
      WHEN $OP_CONSUMPTION THEN p.amount IS NULL OR -p.amount <> {_SUM}
      WHEN $OP_REFUND THEN p.amount <> {_SUM}
      WHEN $OP_EXPIRY THEN p.amount IS NOT NULL
      ELSE p.amount IS NULL OR p.amount <> {_SUM} END
    -- posting {{p.number}} is of {{p.amount}}, its rows of {{{_SUM}}}
""",
)

_LABELS = ("api_key_id", "product_id", "product_name", "category", "billing_method")
_USAGE = ("has_usage", *_LABELS, "base_prices", "discount_prices", "price_precision")

_REFUNDS = Pass(
    "refunds",
    f"""(SELECT p.wallet_number, p.number, p.refund_of, p.first_sequence, f.dimension_number,
           sum({_SUM}) OVER (PARTITION BY p.wallet_number, p.refund_of ORDER BY p.number) AS so_far
         FROM postings AS p {_ENDS} WHERE p.refund_of IS NOT NULL) AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN postings AS p ON p.number = r.refund_of {_ENDS}
    LEFT JOIN dimensions AS d
      ON d.wallet_number = r.wallet_number AND d.number = r.dimension_number
    LEFT JOIN dimensions AS o
      ON o.wallet_number = p.wallet_number AND o.number = f.dimension_number""",  # noqa: S608 # constants
    ("r.wallet_number", "r.first_sequence"),
    f"""
refund_of: p.number IS NULL OR p.wallet_number <> r.wallet_number OR p.number >= r.number
    OR p.operation <> $OP_CONSUMPTION
    -- posting {{r.refund_of}} cannot be refunded by posting {{r.number}}
refund_total: r.so_far > -({_SUM})
    -- {{r.so_far}} of posting {{p.number}} are refunded with it, of {{-({_SUM})}}
refund_usage: {" OR ".join(f"d.{label} <> o.{label}" for label in _USAGE)}
    -- its usage is not that of posting {{p.number}}, which it refunds
""",
)

# --- grants and wallets ---------------------------------------------------------------------------

#: Before the columns to group by goes one number made of them, for SQLite sorts by a first number
#: twice as fast as by what follows it. Groups that share a number are told apart by the columns.
_GRANTS = Pass(
    "grants",
    """grants AS g
    LEFT JOIN wallets AS w ON w.number = g.wallet_number
    LEFT JOIN wallet_states AS v ON v.wallet_number = g.wallet_number
    LEFT JOIN credit_transactions AS f
      ON f.wallet_number = g.wallet_number AND f.sequence = g.number
    LEFT JOIN (SELECT wallet_number, grant_number, sum(amount) AS amount,
                 sum(CASE kind WHEN $EXPIRY THEN 1 ELSE 0 END) AS expirations
               FROM credit_transactions WHERE grant_number IS NOT NULL
               GROUP BY wallet_number * 1000003 + grant_number, wallet_number, grant_number) AS s
      ON s.wallet_number = g.wallet_number AND s.grant_number = g.number""",
    ("g.wallet_number", "g.number"),
    """
grant_row: coalesce(f.grant_number, 0) <> g.number -- row {g.number} did not make this grant
grant_remaining: g.remaining <> s.amount - g.overdraft_paid
    -- remaining is {g.remaining}, not {s.amount - g.overdraft_paid}
grant_bounds: g.remaining < 0 OR g.overdraft_paid < 0 OR g.remaining > g.amount - g.overdraft_paid
    -- remaining {g.remaining}, overdraft paid {g.overdraft_paid} do not fit {g.amount}
grant_open: g.open <> (g.remaining > 0) -- open is {g.open}, remaining {g.remaining}
grant_expired: s.expirations > 1
    OR g.remaining > 0 AND (s.expirations > 0 OR g.expires_at <= v.posted_at)
    -- it ended at {g.expires_at} with {g.remaining} left and {s.expirations} expirations
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
_MOVED = _last(
    "moved_sequence",
    "coalesce((SELECT max(m.sequence) FROM credit_transactions AS m"
    " WHERE m.wallet_number = w.number AND m.kind <> $EXPIRY), 0)",
)

_WALLETS = Pass(
    "wallets",
    f"""wallets AS w
    LEFT JOIN wallet_states AS v ON v.wallet_number = w.number
    LEFT JOIN currencies AS c ON c.code = w.currency
    LEFT JOIN customers AS u ON u.id = w.customer_id
    LEFT JOIN credit_transactions AS l ON l.wallet_number = w.number AND l.sequence = v.sequence
    LEFT JOIN credit_transactions AS x ON x.wallet_number = w.number AND x.sequence = v.sequence + 1
    LEFT JOIN (SELECT wallet_number, sum(amount) AS amount FROM credit_transactions
               WHERE grant_number IS NULL GROUP BY wallet_number) AS o
      ON o.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, sum(remaining) AS remaining, sum(overdraft_paid) AS paid
               FROM grants GROUP BY wallet_number) AS g ON g.wallet_number = w.number
    LEFT JOIN (SELECT wallet_number, {_KIND_LAST} FROM credit_transactions
               WHERE kind <> $USAGE GROUP BY wallet_number) AS k
      ON k.wallet_number = w.number""",  # noqa: S608 # constants
    ("w.number", "v.sequence"),
    """
wallet_state: v.wallet_number IS NULL -- it has no state
wallet_currency: c.code IS NULL -- there is no currency {w.currency}
wallet_customer: u.id IS NULL -- there is no customer {w.customer_id}
wallet_sequence: x.sequence IS NOT NULL OR v.sequence <> 0 AND l.sequence IS NULL
    -- row {v.sequence} is not its last
"""
    + _last("posted_at", "l.created_at")
    + _MOVED
    + "".join(_last(column, f"l.{column}") for column in _SUMMED)
    + "".join(_last(f"{kind.word}_count", f"coalesce(k.{kind.word}, 0)") for kind in _COUNTED)
    + _last("overdraft_used", "-coalesce(o.amount, 0) - coalesce(g.paid, 0)")
    + """
wallet_credit: v.running_balance <> coalesce(g.remaining, 0) - v.overdraft_used
    -- {v.running_balance} are not {coalesce(g.remaining, 0)} of grants less {v.overdraft_used} used
wallet_closed: v.status = $CLOSED AND (v.running_balance <> 0 OR v.overdraft_used <> 0)
    -- it is closed with {v.running_balance}
""",
)

# --- roll-ups: their rows added up anew, minus what is stored -------------------------------------

_QUANTITIES = tuple(f"quantity_{i}" for i in range(6))
_KEY = "wallet_number, quarter, dimension_number"
_PLACE = "quarter {x.quarter}, dimension {x.dimension_number}"
_VOUCHER = f"CASE g.category WHEN {Category.PROMOTIONAL:d} THEN t.amount ELSE 0 END"
_ROWS_AND_POSTINGS = """credit_transactions AS t
       LEFT JOIN postings AS p ON p.number = t.posting_number"""


def _quarter(time: str) -> str:
    """The quarter of an hour of a time, rounded down: before 1970 too, where / rounds up."""
    return f"({time} - ({time} % {QUARTER} + {QUARTER}) % {QUARTER}) / {QUARTER} AS quarter"


def _off(name: str, difference: str) -> str:
    return f"rollup_{name}: {difference} <> 0 -- {_PLACE}: its rows have {{{difference}}} more\n"


#: One grouping finds both directions, for a roll-up without rows differs from 0 as well. What is
#: sorted is kept narrow: quantities stay JSON until they are added up.
_ROLLUPS = Pass(
    "roll-ups",
    f"""(SELECT {_KEY}, sum(stored) AS stored, sum(count) AS count, sum(amount) AS amount,
           sum(voucher_amount) AS voucher_amount,
           {", ".join(f"coalesce(sum($JS_{i}), 0) AS {q}" for i, q in enumerate(_QUANTITIES))}
    FROM (SELECT t.wallet_number, {_quarter("coalesce(t.effective_at, t.created_at)")},
            t.dimension_number, 0 AS stored, 1 AS count, t.amount, {_VOUCHER} AS voucher_amount,
            {_FIRST_QUANTITIES} AS js
          FROM {_ROWS_AND_POSTINGS}
          LEFT JOIN grants AS g
            ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
          UNION ALL SELECT {_KEY}, 1, -count, -amount, -voucher_amount, $JS_STORED
          FROM rollups) AS every
    GROUP BY {_KEY}) AS x
    LEFT JOIN wallets AS w ON w.number = x.wallet_number""",  # noqa: S608 # constants
    ("x.wallet_number", "CAST(NULL AS bigint)"),
    f"rollup: x.stored <> 1 -- {_PLACE}: there is no roll-up\n"
    + "".join(_off(name, f"x.{name}") for name in ("count", "amount", "voucher_amount"))
    + "".join(_off(name, f"x.{name}") for name in _QUANTITIES),
)

_STORED_QUANTITY = " + ".join(_QUANTITIES)


def _moved(time: str, sign: str) -> str:
    return f"""SELECT t.wallet_number, {_quarter(time)}, t.dimension_number,
           {sign} 1 AS count, {sign} t.amount AS amount, {sign} $QUANTITY AS quantity
         FROM {_ROWS_AND_POSTINGS} WHERE t.effective_at IS NOT NULL"""  # noqa: S608 # constants


#: The sums by created_at, as what they have beyond those by effective_at: only rows that have one
#: differ, so only these are grouped once more.
_MOVED_ROLLUPS = Pass(
    "roll-ups as written",
    f"""(SELECT {_KEY}, sum(count) AS count, sum(amount) AS amount, sum(quantity) AS quantity
    FROM ({_moved("t.created_at", "+")} UNION ALL {_moved("t.effective_at", "-")}
          UNION ALL SELECT {_KEY}, count - created_count, amount - created_amount,
            {_STORED_QUANTITY} - created_quantity FROM rollups WHERE count <> created_count
            OR amount <> created_amount OR {_STORED_QUANTITY} <> created_quantity) AS every
    GROUP BY {_KEY}) AS x
    LEFT JOIN wallets AS w ON w.number = x.wallet_number""",  # noqa: S608 # constants
    ("x.wallet_number", "CAST(NULL AS bigint)"),
    "".join(_off(f"created_{name}", f"x.{name}") for name in ("count", "amount", "quantity")),
)

PASSES = (_ROWS, _KIND_COUNTS, _POSTINGS, _REFUNDS, _GRANTS, _WALLETS, _ROLLUPS, _MOVED_ROLLUPS)

# --- what SQLite and PostgreSQL spell differently, and the model's numbers ------------------------


def _words(dialect: str) -> dict[str, str]:
    """What $NAME stands for. QUANTITY: Σ of the posting's quantities on its first row, else 0."""
    negative = ", ".join(f"-{name}" for name in _QUANTITIES)
    if dialect == "sqlite":
        total, each = "sum(q.value)", f"json_each({_FIRST_QUANTITIES})"
        words = {"JS_STORED": f"json_array({negative})", "POSITION": "position"}
        words |= {f"JS_{i}": f"json_extract(js, '$[{i}]')" for i in range(6)}
    else:
        total = "sum(CAST(q.value AS bigint))"
        each = f"json_array_elements_text(CAST({_FIRST_QUANTITIES} AS json))"
        words = {"JS_STORED": f"CAST(json_build_array({negative}) AS text)"}
        # Taken under the wallet's lock, as the sequence is.
        words["POSITION"] = "posting_number"
        words |= {f"JS_{i}": f"CAST(CAST(js AS json) ->> {i} AS bigint)" for i in range(6)}
    words["QUANTITY"] = f"(SELECT coalesce({total}, 0) FROM {each} AS q)"  # noqa: S608 # constants
    words |= {kind.name: str(kind.value) for kind in Kind}
    words |= {f"TYPE_{type_.name}": str(type_.value) for type_ in Type}
    words |= {f"OP_{name.upper()}": str(code) for code, name in OPERATIONS.values()}
    return words | {"OP_EXPIRY": str(EXPIRE), "CLOSED": str(Status.CLOSED.value)}


@contextmanager
def _room(connection: Connection) -> Iterator[None]:
    """64 MiB of pages kept in memory meanwhile: with less, sorts go to the disk in small pieces."""
    if connection.dialect.name != "sqlite":
        yield
        return
    before = connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
    connection.exec_driver_sql("PRAGMA cache_size = -65536")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA cache_size = {before}")
