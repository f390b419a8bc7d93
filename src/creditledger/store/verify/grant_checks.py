"""Checks of grants: what is left of each, its terms, its parts, what it paid for."""

from functools import partial

from creditledger.domain.model import Category, Kind, Origin
from creditledger.store.verify.check import Check, Op, Pass, joined
from creditledger.store.verify.row_checks import OF_POSTING
from creditledger.store.verify.spelling import SqlSpelling

#: The first expression of GROUP BY is one number made of the two columns: SQLite sorts by a first
#: number twice as fast as by the columns that follow. The columns separate groups that share it.
_DRAWN = f"""(SELECT wallet_number, grant_number, sum(amount) AS amount,
      sum(CASE kind WHEN {Kind.EXPIRY} THEN 1 ELSE 0 END) AS expirations
    FROM credit_transactions WHERE grant_number IS NOT NULL
    GROUP BY wallet_number * 1000003 + grant_number, wallet_number, grant_number)"""
_REPAID = """(SELECT wallet_number, grant_number, sum(amount) AS amount
    FROM grant_repayments GROUP BY wallet_number, grant_number)"""
_PARTS = """(SELECT part.wallet_number, part.grant_number, sum(row.amount) AS amount,
      sum(part.overdraft_paid) AS paid
    FROM grant_parts AS part JOIN credit_transactions AS row
      ON row.wallet_number = part.wallet_number AND row.sequence = part.sequence
    GROUP BY part.wallet_number, part.grant_number)"""
#: Each grant with the row that made it, its last revision, the sum of its repayments of overdraft
#: and the sum of its parts. The reader of this text adds `drawn`, the sum of its rows.
GRANTS = f"""grants LEFT JOIN wallet_states AS state ON state.wallet_number = grants.wallet_number
    {joined("credit_transactions", "row", "grants", "number", key="sequence")}
    {joined("grant_revisions", "revision", "grants", "number", key="grant_number")}
      AND revision.number = grants.revision
    {joined(_REPAID, "repayments", "grants", "number", key="grant_number")}
    {joined(_PARTS, "parts", "grants", "number", key="grant_number")}"""


def grants(sql: SqlSpelling) -> Pass:
    """Compares each grant with its rows and with the amounts that holds set aside of it."""
    held = f"""(SELECT coalesce(sum({sql.item(1)}), 0)
        FROM holds AS hold, {sql.pairs("hold.parts")} AS pair
        WHERE hold.wallet_number = grants.wallet_number AND hold.ended IS NULL
          AND {sql.item(0)} = grants.number)"""
    due = "drawn.amount - grants.overdraft_paid - grants.repaid"
    return Pass(
        "grants",
        ("grants",),
        f"{GRANTS} {joined(_DRAWN, 'drawn', 'grants', 'number', key='grant_number')}",
        ("grants.wallet_number", "grants.number"),
        {
            "grant_row": Check(
                "coalesce(row.grant_number, 0) <> grants.number",
                "row {grants.number} did not make this grant",
            ),
            "grant_remaining": Check(
                f"grants.remaining <> {due}", f"remaining is {{grants.remaining}}, not {{{due}}}"
            ),
            "grant_bounds": Check(
                """grants.remaining < 0 OR grants.overdraft_paid < 0
                OR grants.remaining > grants.amount - grants.overdraft_paid""",
                "remaining {grants.remaining}, overdraft paid {grants.overdraft_paid}"
                " do not fit {grants.amount}",
            ),
            "grant_overdraft": Check(
                "grants.scope IS NOT NULL AND (grants.overdraft_paid <> 0 OR grants.repaid <> 0)",
                "it has a scope, and paid back {grants.overdraft_paid} and {grants.repaid}"
                " of overdraft",
            ),
            "grant_repaid": Check(
                "grants.repaid <> coalesce(repayments.amount, 0)",
                "it has repaid {grants.repaid} of overdraft,"
                " its repayments are of {coalesce(repayments.amount, 0)}",
            ),
            "grant_amount": Check(
                """parts.grant_number IS NOT NULL AND (grants.amount <> row.amount + parts.amount
                  OR grants.overdraft_paid < parts.paid)""",
                "it is of {grants.amount}, and its parts of {row.amount + parts.amount}",
            ),
            "grant_open": Check(
                "grants.open <> (grants.remaining > 0)",
                "open is {grants.open}, remaining {grants.remaining}",
            ),
            "grant_held": Check(
                f"grants.remaining < {held}", f"{{grants.remaining}} remain, {{{held}}} are held"
            ),
            "grant_expired": Check(
                f"""drawn.expirations > 1 AND NOT grants.returned AND NOT EXISTS (
                  SELECT 1 FROM holds AS hold WHERE hold.wallet_number = grants.wallet_number)
                OR grants.remaining > {held}
                  AND (drawn.expirations > 0 OR grants.expires_at <= state.posted_at)""",
                "it ended at {grants.expires_at} with {grants.remaining} left"
                " and {drawn.expirations} expirations",
            ),
            "grant_voided": Check(
                f"""grants.voided_at > state.posted_at OR grants.voided_at >= grants.expires_at
                OR grants.voided_at IS NOT NULL AND grants.remaining > {held}""",
                "it was voided at {grants.voided_at} with {grants.remaining} left,"
                f" of which {{{held}}} are held",
            ),
            "grant_revision": Check(
                """CASE WHEN grants.revision = 0
                THEN revision.number IS NOT NULL OR grants.voided_at IS NOT NULL
                ELSE revision.number IS NULL OR revision.priority <> grants.priority
                  OR coalesce(revision.name, '') <> coalesce(grants.name, '')
                  OR coalesce(revision.expires_at, -1) <> coalesce(grants.expires_at, -1)
                  OR coalesce(revision.voided_at, -1) <> coalesce(grants.voided_at, -1) END""",
                "it is not what revision {grants.revision} made of it",
            ),
        },
    )


#: A column of a dimension -> the list of a scope that limits it.
_SCOPE = {"meter_id": "meter_ids", "product_id": "product_ids", "category": "categories"}


def scopes(sql: SqlSpelling) -> Pass:
    """A row draws on a grant only for what its scope covers. A capture counts as its hold does."""
    scope = "grants.scope"
    in_scope = " AND ".join(
        f"({sql.value(scope, name)} IS NULL OR {sql.among(f'dimension.{label}', scope, name)})"
        for label, name in _SCOPE.items()
    )
    named = sql.text("posting.terms", "adjustment.credit_grant_id")
    return Pass(
        "scopes",
        ("grants",),
        f"""(SELECT DISTINCT wallet_number FROM grants WHERE scope IS NOT NULL) AS scoped
        JOIN credit_transactions AS row ON row.wallet_number = scoped.wallet_number
        {joined("grants", "grants", "row", "grant_number")}
        LEFT JOIN {sql.postings} AS posting ON {OF_POSTING}
        LEFT JOIN holds AS hold ON hold.wallet_number = row.wallet_number
          AND hold.number = posting.hold_number
        LEFT JOIN dimensions AS dimension ON dimension.wallet_number = row.wallet_number
          AND dimension.number = coalesce(hold.dimension_number, row.dimension_number)""",
        ("row.wallet_number", "row.sequence"),
        {
            "row_scope": Check(
                f"""CASE WHEN grants.scope IS NULL THEN false ELSE
                row.kind = {Kind.USAGE} AND NOT ({in_scope}) OR row.kind = {Kind.TRANSFER_OUT}
                OR row.kind = {Kind.ADMIN_DEBIT} AND {named} IS NULL END""",
                "grant {grants.number} does not pay for what it was drawn for",
            ),
        },
    )


#: A term of a grant as the grant was given; revision 0 keeps it once the terms have changed.
_AS_GIVEN = "CASE WHEN revision.number IS NULL THEN grants.{0} ELSE revision.{0} END".format
_CATEGORY = " ".join(f"WHEN '{one.word}' THEN {one}" for one in Category)
_KIND = " ".join(
    f"WHEN '{one.word}' THEN {one}"
    for one in (Kind.TOPUP, Kind.SUBSCRIPTION_RENEW, Kind.ADMIN_CREDIT)
)


def given(sql: SqlSpelling) -> Pass:
    """A grant has the terms of its request, which the posting keeps."""
    text, number, asked = (
        partial(member, "posting.terms") for member in (sql.text, sql.number, sql.value)
    )
    scope = " OR ".join(
        f"coalesce({sql.value('grants.scope', name)}, 'null')"
        f" <> coalesce({asked(f'grant.scope.{name}')}, 'null')"
        for name in _SCOPE.values()
    )
    return Pass(
        "terms of grants",
        ("postings",),
        f"""(SELECT * FROM postings WHERE operation = {Op.GRANT}) AS posting
        {joined("credit_transactions", "row", "posting", "first_sequence", key="sequence")}
        {joined("grants", "grants", "posting", "first_sequence")}
        {joined("grant_revisions", "revision", "grants", "number", key="grant_number")}
          AND revision.number = 0""",
        ("posting.wallet_number", "posting.first_sequence"),
        {
            "given_terms": Check(
                f"""{_AS_GIVEN("priority")} <> coalesce({number("grant.priority")}, -1)
                OR coalesce({_AS_GIVEN("name")}, '') <> coalesce({text("grant.name")}, '')
                OR {text("grant.expires_after")} IS NULL AND
                  coalesce({_AS_GIVEN("expires_at")}, -1)
                  <> coalesce({number("grant.expires_at")}, -1)
                OR grants.category <> CASE {text("grant.category")} {_CATEGORY} ELSE 0 END
                OR row.kind <> CASE {text("grant.kind")} {_KIND} ELSE 0 END
                OR coalesce(row.effective_at, -1)
                  <> coalesce({number("grant.effective_at")}, {number("effective_at")}, -1)
                OR {scope}""",
                "grant {posting.first_sequence} is not what posting {posting.number} asked for",
            ),
            "given_source": Check(
                f"""{text("grant.kind")} <> '{Kind.ADMIN_CREDIT.word}'
                AND coalesce({sql.document("posting.source")}, '{{}}')
                  <> coalesce({asked("grant.source")}, '{{}}')""",
                "the source of posting {posting.number} is not the one that it asked for",
            ),
        },
    )


GRANT_REVISIONS = Pass(
    "grant revisions",
    ("grant_revisions",),
    f"""grant_revisions AS revision
    {joined("grants", "grants", "revision", "grant_number")}
    {joined("grant_revisions", "before", "revision", "grant_number", key="grant_number")}
      AND before.number = revision.number - 1
    {joined("credit_transactions", "row", "revision", "grant_number", key="sequence")}
    {joined("postings", "origin", "row", "posting_number")}
    {joined("postings", "posting", "revision", "posting_number")}""",
    ("revision.wallet_number", "revision.grant_number"),
    {
        "grant_history": Check(
            """grants.number IS NULL OR revision.number < 0 OR revision.number > grants.revision
            OR CASE WHEN revision.number = 0
            THEN revision.created_at <> grants.created_at OR revision.voided_at IS NOT NULL
              OR revision.changed_by IS NOT NULL
              OR coalesce(revision.metadata, '') <> coalesce(origin.metadata, '')
            ELSE before.number IS NULL OR revision.created_at < before.created_at END""",
            "revision {revision.number} is not what the grant was, or one is missing before it",
        ),
        "revision_void": Check(
            f"""CASE WHEN before.voided_at IS NULL AND revision.voided_at IS NOT NULL
            THEN posting.number IS NULL OR posting.operation <> {Op.VOID}
              OR revision.voided_at <> revision.created_at
            ELSE revision.posting_number IS NOT NULL
              OR coalesce(revision.voided_at, -1) <> coalesce(before.voided_at, -1) END""",
            "posting {revision.posting_number} did not void it in revision {revision.number}",
        ),
    },
)

#: The place of a grant in the order in which grants are drawn on.
_PLACE = (
    "({0}.priority, coalesce({0}.expires_at, 9223372036854775807), -{0}.category,"
    " {0}.effective_at, {0}.created_at, {0}.number)"
).format

#: A posting that draws on several grants draws on them in the burn order. Grants whose terms have
#: changed are left out: the order of that time is not known. LEFT JOINs are made in the order in
#: which they stand; inner ones PostgreSQL could begin with all grants and all rows of a wallet.
BURN_ORDER = Pass(
    "order of draws",
    ("postings",),
    f"""(SELECT * FROM postings WHERE row_count > 1 AND operation <> {Op.CAPTURE}) AS posting
    LEFT JOIN credit_transactions AS row ON row.wallet_number = posting.wallet_number
      AND row.sequence > posting.first_sequence
      AND row.sequence < posting.first_sequence + posting.row_count
      AND row.posting_number = posting.number
    {joined("credit_transactions", "before", "row", "sequence - 1", key="sequence")}
    {joined("grants", "grants", "row", "grant_number")}
    {joined("grants", "earlier", "before", "grant_number")}""",
    ("row.wallet_number", "row.sequence"),
    {
        "burn_order": Check(
            f"""CASE WHEN before.sequence IS NULL OR grants.number IS NULL
              OR row.kind NOT IN ({Kind.USAGE}, {Kind.TRANSFER_OUT}, {Kind.ADMIN_DEBIT}) THEN false
            WHEN before.grant_number IS NULL THEN true
            ELSE grants.revision = 0 AND earlier.revision = 0
              AND {_PLACE("earlier")} > {_PLACE("grants")} END""",
            "grant {grants.number} comes before the one that was drawn on first",
        ),
    },
)

#: A part names a row that added to a grant which the ledger had made for a refund or a transfer.
PARTS = Pass(
    "parts of grants",
    ("grant_parts",),
    f"""grant_parts AS part
    {joined("credit_transactions", "row", "part", "sequence", key="sequence")}
    {joined("grants", "grants", "part", "grant_number")}""",
    ("part.wallet_number", "part.sequence"),
    {
        "part_row": Check(
            f"""row.sequence IS NULL OR row.kind NOT IN ({Kind.REFUND}, {Kind.TRANSFER_IN})
            OR row.amount <= 0 OR coalesce(row.grant_number, 0) <> part.grant_number
            OR part.overdraft_paid > row.amount OR grants.number IS NULL
            OR grants.origin NOT IN ({Origin.REFUND}, {Origin.TRANSFER})""",
            "row {part.sequence} added no part to grant {part.grant_number}",
        ),
    },
)

#: A row that comes by transfer makes a grant or is a part of one.
ARRIVED = Pass(
    "rows of transfers",
    ("credit_transactions",),
    f"""credit_transactions AS row
    {joined("grant_parts", "part", "row", "sequence", key="sequence")}""",
    ("row.wallet_number", "row.sequence"),
    {
        "row_part": Check(
            f"""row.kind <> {Kind.USAGE} AND row.kind = {Kind.TRANSFER_IN}
            AND row.grant_number <> row.sequence AND part.sequence IS NULL""",
            "it neither made grant {row.grant_number} nor is a part of it",
        ),
    },
)


def receipts(sql: SqlSpelling) -> Pass:
    """The receipt of a paid grant is kept until the grant is voided."""
    receipt_id = sql.text("posting.source", "receipt_id")
    return Pass(
        "receipts",
        ("credit_transactions",),
        f"""credit_transactions AS row
        {joined("postings", "posting", "row", "posting_number")}
        {joined("grants", "grants", "row", "sequence")}
        {joined("receipts", "receipts", "row", "sequence", key="grant_number")}""",
        ("row.wallet_number", "row.sequence"),
        {
            "receipt": Check(
                f"""row.kind <> {Kind.USAGE}
                AND row.kind IN ({Kind.TOPUP}, {Kind.SUBSCRIPTION_RENEW})
                AND CASE WHEN grants.category = {Category.PAID} AND grants.voided_at IS NULL
                  AND coalesce({receipt_id}, '') <> ''
                THEN receipts.grant_number IS NULL OR receipts.receipt_id <> {receipt_id}
                  OR receipts.provider <> coalesce({sql.text("posting.source", "provider")}, '')
                ELSE receipts.grant_number IS NOT NULL END""",
                "the receipt that its posting names is not that of grant {row.sequence}",
            ),
        },
    )


RECEIPT_ROWS = Pass(
    "receipts of grants",
    ("receipts",),
    f"receipts {joined('credit_transactions', 'row', 'receipts', 'grant_number', key='sequence')}",
    ("receipts.wallet_number", "receipts.grant_number"),
    {
        "receipt_row": Check(
            f"coalesce(row.kind, 0) NOT IN ({Kind.TOPUP}, {Kind.SUBSCRIPTION_RENEW})",
            "receipt {receipts.receipt_id} was credited by no such grant",
        ),
    },
)
