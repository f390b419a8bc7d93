"""Invariants of what was asked for and of what came before, as queries that must find nothing.

As checks.py, of which these are a part: what a grant was given as, what each posting made of a
hold, from where refunds come, in which order grants were drawn on.
"""

from creditledger.domain.model import Category, HoldEnd, Kind
from creditledger.store.verify.checks import ENDS, OF_POSTING, POSTING_SUM, Pass

#: What a grant was given as, though its terms may have been changed since.
_AS_GIVEN = "CASE WHEN r.number IS NULL THEN g.{0} ELSE r.{0} END".format
_CATEGORY = " ".join(f"WHEN '{one.word}' THEN {one:d}" for one in Category)
_KIND = " ".join(
    f"WHEN '{one.word}' THEN {one:d}"
    for one in (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT)
)

#: The request of a grant is kept with its posting: the grant is what it asked for.
GIVEN = Pass(
    "terms of grants",
    """(SELECT * FROM postings WHERE operation = $OP_GRANT) AS p
    LEFT JOIN wallets AS w ON w.number = p.wallet_number
    LEFT JOIN credit_transactions AS t
      ON t.wallet_number = p.wallet_number AND t.sequence = p.first_sequence
    LEFT JOIN grants AS g
      ON g.wallet_number = p.wallet_number AND g.number = p.first_sequence
    LEFT JOIN grant_revisions AS r ON r.wallet_number = g.wallet_number
      AND r.grant_number = g.number AND r.number = 0""",
    ("p.wallet_number", "p.first_sequence"),
    f"""
given_terms: {_AS_GIVEN("priority")} <> coalesce($GIVEN_PRIORITY, -1)
    OR coalesce({_AS_GIVEN("name")}, '') <> coalesce($GIVEN_NAME, '')
    OR $GIVEN_AFTER IS NULL
       AND coalesce({_AS_GIVEN("expires_at")}, -1) <> coalesce($GIVEN_EXPIRES_AT, -1)
    OR g.category <> CASE $GIVEN_CATEGORY {_CATEGORY} ELSE 0 END
    OR t.kind <> CASE $GIVEN_KIND {_KIND} ELSE 0 END
    OR coalesce(t.effective_at, -1) <> coalesce($GIVEN_EFFECTIVE_AT, $GIVEN_BY_COMMAND, -1)
    OR $GIVEN_SCOPE
    -- grant {{p.first_sequence}} is not what posting {{p.number}} asked for
given_source: $GIVEN_KIND <> '{Kind.ADMIN_CREDIT.word}' AND $GIVEN_SOURCE
    -- the source of posting {{p.number}} is not the one that it asked for
""",
)

#: Revisions of a hold, each beside the one before it.
HOLD_STEPS = Pass(
    "steps of holds",
    f"""(SELECT q.*, row_number() OVER steps AS nth, lag(captured) OVER steps AS captured_before,
           lag(parts) OVER steps AS parts_before, lag(beyond) OVER steps AS beyond_before,
           lag(deadline) OVER steps AS deadline_before
         FROM hold_revisions AS q WINDOW steps AS
           (PARTITION BY wallet_number, hold_number ORDER BY created_at, posting_number)) AS r
    LEFT JOIN wallets AS w ON w.number = r.wallet_number
    LEFT JOIN holds AS h ON h.wallet_number = r.wallet_number AND h.number = r.hold_number
    LEFT JOIN postings AS p
      ON p.wallet_number = r.wallet_number AND p.number = r.posting_number {ENDS}""",  # noqa: S608 # constants
    ("r.wallet_number", "NULL"),
    f"""
hold_begun: r.nth = 1 AND (r.posting_number <> r.hold_number OR r.created_at <> h.created_at
      OR r.captured <> 0 OR r.ended IS NOT NULL OR $LEFT <> h.amount)
    -- hold {{r.hold_number}} did not begin as posting {{r.posting_number}} says
hold_step: r.nth > 1 AND CASE p.operation
      WHEN $OP_EXTEND THEN r.captured <> r.captured_before OR r.parts <> r.parts_before
        OR r.beyond <> r.beyond_before OR r.deadline < r.deadline_before OR r.ended IS NOT NULL
      WHEN $OP_RELEASE THEN r.captured <> r.captured_before OR r.deadline <> r.deadline_before
        OR coalesce(r.ended, 0) <> {HoldEnd.RELEASED:d}
      WHEN $OP_CAPTURE THEN r.deadline <> r.deadline_before
        OR r.captured - r.captured_before <> -coalesce({POSTING_SUM}, 0)
        OR r.ended IS NULL AND $LEFT <> $LEFT_BEFORE + coalesce({POSTING_SUM}, 0)
        OR f.created_at <> r.created_at
      ELSE true END
    -- posting {{r.posting_number}} did not make that of hold {{r.hold_number}}
""",
)

_DRAW = """SELECT 1 FROM credit_transactions AS s WHERE s.wallet_number = o.wallet_number
      AND s.sequence >= o.first_sequence AND s.sequence < o.first_sequence + o.row_count"""

#: What is refunded goes to where it was drawn, or to a grant that was made for it. What comes back
#: of a canceled event names the event, which any number of postings may have paid, and no posting.
REFUND_SOURCES = Pass(
    "sources of refunds",
    f"""(SELECT * FROM credit_transactions WHERE kind = $REFUND) AS t
    JOIN postings AS p ON {OF_POSTING}
    LEFT JOIN wallets AS w ON w.number = t.wallet_number
    LEFT JOIN postings AS o ON o.wallet_number = p.wallet_number AND o.number = p.refund_of
    LEFT JOIN credit_transactions AS m
      ON m.wallet_number = t.wallet_number AND m.sequence = t.grant_number""",  # noqa: S608 # constants
    ("t.wallet_number", "t.sequence"),
    f"""
refund_source: p.operation NOT IN ($OP_CANCEL, $OP_RETURN)
    AND (t.grant_number IS NULL AND NOT EXISTS ({_DRAW} AND s.grant_number IS NULL)
      OR m.kind NOT IN ($REFUND, $TRANSFER_IN)
        AND NOT EXISTS ({_DRAW} AND (s.grant_number IS NULL OR s.grant_number = t.grant_number)))
    -- it returns to grant {{t.grant_number}}, which posting {{p.refund_of}} did not draw on
""",
)

#: The place of a grant in the order in which grants are drawn on.
_KEY = (
    "({0}.priority, coalesce({0}.expires_at, 9223372036854775807), -{0}.category,"
    " {0}.effective_at, {0}.created_at, {0}.number)"
).format

#: Rows of one posting that drew on several grants. Of grants whose terms were changed the order of
#: that time is not asked for. Joins that keep what is on their left are made in this order: of
#: others PostgreSQL could join all grants of a wallet with all of its rows first.
BURN_ORDER = Pass(
    "order of draws",
    """(SELECT * FROM postings WHERE row_count > 1 AND operation <> $OP_CAPTURE) AS p
    LEFT JOIN credit_transactions AS t ON t.wallet_number = p.wallet_number
      AND t.sequence > p.first_sequence AND t.sequence < p.first_sequence + p.row_count
      AND t.posting_number = p.number
    LEFT JOIN credit_transactions AS b
      ON b.wallet_number = t.wallet_number AND b.sequence = t.sequence - 1
    LEFT JOIN grants AS g ON g.wallet_number = t.wallet_number AND g.number = t.grant_number
    LEFT JOIN grants AS e ON e.wallet_number = b.wallet_number AND e.number = b.grant_number
    LEFT JOIN wallets AS w ON w.number = t.wallet_number""",
    ("t.wallet_number", "t.sequence"),
    f"""
burn_order: CASE WHEN b.sequence IS NULL OR g.number IS NULL
      OR t.kind NOT IN ($USAGE, $TRANSFER_OUT, $ADMIN_DEBIT) THEN false
    WHEN b.grant_number IS NULL THEN true
    ELSE g.revision = 0 AND e.revision = 0 AND {_KEY("e")} > {_KEY("g")} END
    -- grant {{g.number}} comes before the one that was drawn on first
""",
)

HISTORY = (GIVEN, HOLD_STEPS, REFUND_SOURCES, BURN_ORDER)
