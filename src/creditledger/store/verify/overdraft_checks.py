"""Checks of overdrafts: what was drawn, what was forgiven, which grants paid it back."""

from creditledger.domain.model import Kind
from creditledger.store.verify.check import Check, Op, Pass, joined


def forgiven(start: str, until: str, wallet: str) -> str:
    """How many units of the line from `start` to `until` were forgiven before they were repaid."""
    end = "draw.start + draw.amount"
    return f"""(SELECT coalesce(sum(
        CASE WHEN {end} < {until} THEN {end} ELSE {until} END
        - CASE WHEN {end} - draw.forgiven > {start} THEN {end} - draw.forgiven ELSE {start} END), 0)
      FROM overdraft_draws AS draw WHERE draw.wallet_number = {wallet} AND draw.forgiven > 0
      AND {end} > {start} AND {end} - draw.forgiven < {until})"""


#: A grant repays as it begins, as it ends, or as a hold releases its credit.
GRANT_REPAYMENTS = Pass(
    "repayments of grants",
    ("grant_repayments",),
    f"""(SELECT *, sum(amount) OVER (PARTITION BY wallet_number, grant_number ORDER BY start)
           - amount AS before FROM grant_repayments) AS repayment
    LEFT JOIN wallets AS wallet ON wallet.number = repayment.wallet_number
    LEFT JOIN wallet_states AS state ON state.wallet_number = repayment.wallet_number
    {joined("grants", "grants", "repayment", "grant_number")}""",
    ("repayment.wallet_number", "repayment.grant_number"),
    {
        "repayment_grant": Check(
            "grants.number IS NULL OR repayment.start <> repayment.before",
            "the grant has repaid {repayment.before} before, not {repayment.start},"
            " or it is not there",
        ),
        "repayment_time": Check(
            """repayment.repaid_at <= wallet.repays_from OR repayment.created_at > state.posted_at
            OR repayment.sequence > state.sequence
            OR CASE WHEN repayment.repaid_at = grants.effective_at
              THEN grants.created_at >= grants.effective_at
              WHEN coalesce(grants.expires_at, repayment.repaid_at + 1) > repayment.repaid_at
              THEN true WHEN grants.expires_at = repayment.repaid_at THEN false
              ELSE NOT EXISTS (SELECT 1 FROM holds AS hold WHERE
                hold.wallet_number = repayment.wallet_number
                AND hold.ended_at = repayment.repaid_at) END""",
            "the grant neither began nor ended at {repayment.repaid_at}",
        ),
    },
)

#: The amount that refunds gave back of each draw.
_GIVEN_BACK = f"""(SELECT drawn.wallet_number, drawn.sequence, sum(refunded.amount) AS amount
    FROM overdraft_draws AS drawn
    JOIN credit_transactions AS row
      ON row.wallet_number = drawn.wallet_number AND row.sequence = drawn.sequence
    JOIN (SELECT wallet_number, refund_of, first_sequence, row_count FROM postings
          WHERE refund_of IS NOT NULL
          UNION ALL SELECT refund.wallet_number, event.number, refund.first_sequence,
            refund.row_count
          FROM postings AS refund JOIN meter_events AS event
            ON event.wallet_number = refund.wallet_number
            AND event.identifier = refund.meter_event_id
          WHERE refund.operation IN ({Op.CANCEL}, {Op.RETURN})) AS refund
      ON refund.wallet_number = drawn.wallet_number AND refund.refund_of = row.posting_number
    JOIN credit_transactions AS refunded ON refunded.wallet_number = drawn.wallet_number
      AND refunded.sequence >= refund.first_sequence
      AND refunded.sequence < refund.first_sequence + refund.row_count
      AND refunded.grant_number IS NULL
    GROUP BY drawn.wallet_number, drawn.sequence)"""
#: Payments of grants by a row of a refund that has no grant.
_HANDED_ON = """overdraft_payers AS payer
    JOIN credit_transactions AS refunded ON refunded.wallet_number = payer.wallet_number
      AND refunded.sequence = payer.row_sequence AND refunded.grant_number IS NULL"""

#: Draws stand one behind the other on the line. `wallet_draws` finds a missing one.
OVERDRAFTS = Pass(
    "overdrafts",
    ("overdraft_draws",),
    f"""(SELECT *, coalesce(lag(start + amount)
           OVER (PARTITION BY wallet_number ORDER BY sequence), 0) AS place
         FROM overdraft_draws) AS draw
    {joined("credit_transactions", "row", "draw", "sequence", key="sequence")}
    {joined(_GIVEN_BACK, "given_back", "draw", "sequence", key="sequence")}
    LEFT JOIN (SELECT payer.wallet_number, posting.refund_of, sum(payer.amount) AS amount
        FROM {_HANDED_ON}
        JOIN postings AS posting ON posting.wallet_number = payer.wallet_number
          AND posting.number = refunded.posting_number
        GROUP BY payer.wallet_number, posting.refund_of) AS handed_on
      ON handed_on.wallet_number = draw.wallet_number
      AND handed_on.refund_of = row.posting_number""",
    ("draw.wallet_number", "draw.sequence"),
    {
        "overdraft_row": Check(
            """row.sequence IS NULL OR row.grant_number IS NOT NULL OR row.amount <> -draw.amount
            OR draw.start <> draw.place""",
            "it has {draw.amount} from {draw.start} on, and what was drawn before ends at"
            " {draw.place}",
        ),
        "overdraft_forgiven": Check(
            "draw.forgiven <> coalesce(given_back.amount, 0) - coalesce(handed_on.amount, 0)",
            "{draw.forgiven} are forgiven, refunds gave back"
            " {coalesce(given_back.amount, 0) - coalesce(handed_on.amount, 0)}",
        ),
    },
)

#: A payment begins where the one before it ends, or behind the units forgiven in between.
OVERDRAFT_PAYERS = Pass(
    "payers of overdrafts",
    ("overdraft_payers",),
    f"""(SELECT *,
           coalesce(lag(until) OVER (PARTITION BY wallet_number ORDER BY start), 0) AS place,
           sum(amount) OVER (PARTITION BY wallet_number, grant_number) AS paid
         FROM overdraft_payers) AS payer
    LEFT JOIN wallet_states AS state ON state.wallet_number = payer.wallet_number
    {joined("grants", "grants", "payer", "grant_number")}
    {joined("credit_transactions", "row", "payer", "row_sequence", key="sequence")}
    LEFT JOIN (SELECT payer.wallet_number, payer.grant_number, sum(payer.amount) AS amount
        FROM {_HANDED_ON} GROUP BY payer.wallet_number, payer.grant_number) AS handed_on
      ON handed_on.wallet_number = payer.wallet_number
      AND handed_on.grant_number = payer.grant_number""",
    ("payer.wallet_number", "payer.grant_number"),
    {
        "payer_place": Check(
            f"""payer.start < payer.place OR payer.until > state.repaid_to
            OR payer.start - payer.place
              <> {forgiven("payer.place", "payer.start", "payer.wallet_number")}
            OR payer.until - payer.start - payer.amount
              <> {forgiven("payer.start", "payer.until", "payer.wallet_number")}""",
            "it paid {payer.amount} from {payer.start} to {payer.until}, the one before it up to"
            " {payer.place}",
        ),
        "payer_grant": Check(
            """grants.number IS NULL OR grants.scope IS NOT NULL OR payer.paid
            - coalesce(handed_on.amount, 0) <> grants.overdraft_paid + grants.repaid""",
            "the grant paid {grants.overdraft_paid} and {grants.repaid} of overdraft,"
            " not {payer.paid}",
        ),
        "payer_row": Check(
            f"""payer.row_sequence IS NOT NULL AND (row.sequence IS NULL
            OR coalesce(row.grant_number, payer.grant_number) <> payer.grant_number
            OR row.amount < payer.amount
            OR row.grant_number IS NULL AND row.kind <> {Kind.REFUND})""",
            "row {payer.row_sequence} gave no credit that paid",
        ),
    },
)
