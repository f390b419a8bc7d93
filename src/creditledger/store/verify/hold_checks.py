"""Checks of holds: what each has captured, and what each of its postings left of it."""

from creditledger.domain.model import HoldEnd, Kind
from creditledger.store.verify.check import Check, Op, Pass, joined
from creditledger.store.verify.posting_checks import ENDS, POSTING_SUM
from creditledger.store.verify.spelling import SqlSpelling

_LATEST = """(SELECT *, row_number() OVER (PARTITION BY wallet_number, hold_number
      ORDER BY created_at DESC, posting_number DESC) AS nth FROM hold_revisions)"""
_CAPTURES = f"""(SELECT posting.wallet_number, posting.hold_number, -sum({POSTING_SUM}) AS amount
    FROM postings AS posting {ENDS}
    WHERE posting.hold_number IS NOT NULL AND posting.row_count > 0
    GROUP BY posting.wallet_number, posting.hold_number)"""

HOLDS = Pass(
    "holds",
    ("holds",),
    f"""holds AS hold
    {joined("postings", "posting", "hold", "number")}
    {joined("dimensions", "dimension", "hold", "dimension_number")}
    {joined(_LATEST, "revision", "hold", "number", key="hold_number")} AND revision.nth = 1
    {joined(_CAPTURES, "captures", "hold", "number", key="hold_number")}""",
    ("hold.wallet_number", "NULL"),
    {
        "hold_posting": Check(
            f"""posting.number IS NULL OR posting.operation <> {Op.HOLD}
            OR posting.amount <> hold.amount""",
            "posting {hold.number} did not make a hold of {hold.amount}",
        ),
        "hold_dimension": Check(
            f"dimension.number IS NULL OR dimension.kind <> {Kind.USAGE}",
            "dimension {hold.dimension_number} is missing or of another kind",
        ),
        "hold_captured": Check(
            "hold.captured <> coalesce(captures.amount, 0)",
            "{hold.captured} are captured, and the rows of its captures are of"
            " {coalesce(captures.amount, 0)}",
        ),
        "hold_revision": Check(
            f"""revision.posting_number IS NULL OR revision.captured <> hold.captured
            OR revision.deadline <> hold.deadline OR CASE WHEN hold.ended = {HoldEnd.EXPIRED}
            THEN revision.ended IS NOT NULL OR hold.ended_at <> hold.deadline
            ELSE revision.parts <> hold.parts OR revision.beyond <> hold.beyond
              OR coalesce(revision.ended, 0) <> coalesce(hold.ended, 0)
              OR hold.ended_at <> revision.created_at END""",
            "it is not what its last posting left of it",
        ),
    },
)

REVISIONS = Pass(
    "hold revisions",
    ("hold_revisions",),
    f"""hold_revisions AS revision
    {joined("holds", "hold", "revision", "hold_number")}
    {joined("postings", "posting", "revision", "posting_number")}""",
    ("revision.wallet_number", "NULL"),
    {
        "revision_posting": Check(
            """hold.number IS NULL OR posting.number IS NULL
            OR coalesce(posting.hold_number, 0) <> revision.hold_number""",
            "posting {revision.posting_number} is not about hold {revision.hold_number}",
        ),
    },
)


def hold_steps(sql: SqlSpelling) -> Pass:
    """Compares each revision of a hold with the one before it."""
    left, left_before = (
        f"""((SELECT coalesce(sum({sql.item(1)}), 0)
        FROM {sql.pairs(f"revision.parts{when}")} AS pair) + revision.beyond{when})"""
        for when in ("", "_before")
    )
    return Pass(
        "steps of holds",
        ("hold_revisions",),
        f"""(SELECT step.*, row_number() OVER steps AS nth,
               lag(captured) OVER steps AS captured_before, lag(parts) OVER steps AS parts_before,
               lag(beyond) OVER steps AS beyond_before, lag(deadline) OVER steps AS deadline_before
             FROM hold_revisions AS step WINDOW steps AS
               (PARTITION BY wallet_number, hold_number ORDER BY created_at, posting_number)
            ) AS revision
        {joined("holds", "hold", "revision", "hold_number")}
        {joined("postings", "posting", "revision", "posting_number")} {ENDS}""",
        ("revision.wallet_number", "NULL"),
        {
            "hold_begun": Check(
                f"""revision.nth = 1 AND (revision.posting_number <> revision.hold_number
                OR revision.created_at <> hold.created_at OR revision.captured <> 0
                OR revision.ended IS NOT NULL OR {left} <> hold.amount)""",
                "hold {revision.hold_number} did not begin as posting {revision.posting_number}"
                " says",
            ),
            "hold_step": Check(
                f"""revision.nth > 1 AND CASE posting.operation
                WHEN {Op.EXTEND} THEN revision.captured <> revision.captured_before
                  OR revision.parts <> revision.parts_before
                  OR revision.beyond <> revision.beyond_before
                  OR revision.deadline < revision.deadline_before OR revision.ended IS NOT NULL
                WHEN {Op.RELEASE} THEN revision.captured <> revision.captured_before
                  OR revision.deadline <> revision.deadline_before
                  OR coalesce(revision.ended, 0) <> {HoldEnd.RELEASED}
                WHEN {Op.CAPTURE} THEN revision.deadline <> revision.deadline_before
                  OR revision.captured - revision.captured_before <> -coalesce({POSTING_SUM}, 0)
                  OR revision.ended IS NULL AND {left} <> {left_before} + coalesce({POSTING_SUM}, 0)
                  OR first.created_at <> revision.created_at
                ELSE true END""",
                "posting {revision.posting_number} did not make that of hold"
                " {revision.hold_number}",
            ),
        },
    )
