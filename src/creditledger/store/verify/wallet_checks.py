"""Checks of wallets: the state of each with its rows, grants, postings and events."""

from creditledger.domain.model import HoldEnd, Kind, Status
from creditledger.store.verify.check import Check, Pass
from creditledger.store.verify.overdraft_checks import forgiven

_SUMMED = ("running_balance", "usage_count", "usage_amount", "usage_quantity", "unmetered_amount")
_COUNTED = [kind for kind in Kind if kind is not Kind.USAGE]
_ADDED_UP = (Kind.TOPUP, Kind.REFUND)
#: Figures of each kind of row. The sum of all credits has two parts: in ledgers of older versions
#: it may pass 64 bits.
_KINDS = ", ".join(
    (
        *(f"max(CASE kind WHEN {one} THEN kind_count END) AS {one.word}" for one in _COUNTED),
        *(f"sum(CASE kind WHEN {one} THEN amount END) AS {one.word}_amount" for one in _ADDED_UP),
        "sum(CASE WHEN amount > 0 THEN amount >> 32 END) AS credited_high",
        "sum(CASE WHEN amount > 0 THEN amount & 4294967295 END) AS credited_low",
    )
)
_CREDITED = """CASE WHEN kinds.credited_high IS NULL THEN 0
    WHEN kinds.credited_high + CAST(kinds.credited_low AS BIGINT) / 4294967296 > 2147483647
    THEN 9223372036854775807 ELSE kinds.credited_high * 4294967296 + kinds.credited_low END"""
#: The latest time of its last row, its last posting about a hold, the last change of a grant and
#: the last meter event.
_POSTED_AT = "coalesce(changes.at, 0)"
for _other in ("last.created_at", "events.at"):
    _POSTED_AT = f"CASE WHEN {_other} > {_POSTED_AT} THEN {_other} ELSE {_POSTED_AT} END"
_MOVED_SEQUENCE = f"""coalesce((SELECT max(row.sequence) FROM credit_transactions AS row
    WHERE row.wallet_number = wallet.number AND row.kind <> {Kind.EXPIRY}), 0)"""
#: Another wallet of the same customer, currency and mode.
_SUCCESSION = """other.customer_id = wallet.customer_id AND other.currency = wallet.currency
    AND other.livemode = wallet.livemode"""
_BEFORE = f"""SELECT coalesce(sum(other_state.sequence), 0) FROM wallets AS other
    JOIN wallet_states AS other_state ON other_state.wallet_number = other.number
    WHERE {_SUCCESSION} AND other.number < wallet.number"""
_BEHIND = f"SELECT 1 FROM wallets AS other WHERE {_SUCCESSION} AND other.number > wallet.number"
_OPEN_HOLDS = """SELECT 1 FROM holds AS hold
    WHERE hold.wallet_number = wallet.number AND hold.ended IS NULL"""


def _last(column: str, last: str) -> tuple[str, Check]:
    """A figure of the wallet is that of its last row, or 0 before the first row."""
    there, due = f"state.{column}", f"CASE WHEN state.sequence = 0 THEN 0 ELSE {last} END"
    return f"wallet_{column}", Check(f"{there} <> {due}", f"{column} is {{{there}}}, not {{{due}}}")


def _sums(alias: str, columns: str, source: str, group: str = "wallet_number") -> str:
    """A LEFT JOIN of sums for each wallet."""
    return f"""LEFT JOIN (SELECT wallet_number, {columns} FROM {source} GROUP BY {group}) AS {alias}
        ON {alias}.wallet_number = wallet.number"""


#: The figures of a wallet that its rows give.
_FIGURES = (
    _last("moved_sequence", _MOVED_SEQUENCE),
    *(_last(column, f"last.{column}") for column in _SUMMED),
    *(_last(f"{kind.word}_count", f"coalesce(kinds.{kind.word}, 0)") for kind in _COUNTED),
    *(_last(f"{kind.word}_amount", f"coalesce(kinds.{kind.word}_amount, 0)") for kind in _ADDED_UP),
    _last("credited_amount", _CREDITED),
    _last("overdraft_used", "-coalesce(overdraft.amount, 0) - coalesce(grants.paid, 0)"),
)
_CHANGES = """(SELECT wallet_number, created_at FROM hold_revisions
    UNION ALL SELECT wallet_number, created_at FROM grant_revisions
    UNION ALL SELECT wallet_number, created_at FROM grant_repayments) AS changed"""
_OVERDRAFT = "sum(amount) AS amount, sum(CASE WHEN amount < 0 THEN -amount ELSE 0 END) AS drawn"
_OF_NO_GRANT = "credit_transactions WHERE grant_number IS NULL"
_UNPAID = "max(coalesce(canceled_at, created_at)) AS at, sum(unpaid) AS unpaid"

WALLETS = Pass(
    "wallets",
    ("wallets",),
    f"""wallets AS wallet
    LEFT JOIN wallet_states AS state ON state.wallet_number = wallet.number
    LEFT JOIN currencies AS currency ON currency.code = wallet.currency
    LEFT JOIN customers AS customer ON customer.id = wallet.customer_id
    LEFT JOIN credit_transactions AS last ON last.wallet_number = wallet.number
      AND last.sequence = state.sequence
    LEFT JOIN credit_transactions AS following ON following.wallet_number = wallet.number
      AND following.sequence = state.sequence + 1
    {_sums("overdraft", _OVERDRAFT, _OF_NO_GRANT, "wallet_number + 0, wallet_number")}
    {_sums("grants", "sum(remaining) AS remaining, sum(overdraft_paid + repaid) AS paid", "grants")}
    {_sums("kinds", _KINDS, f"credit_transactions WHERE kind <> {Kind.USAGE}")}
    {_sums("changes", "max(created_at) AS at", _CHANGES)}
    {_sums("lapsed", "max(ended_at) AS at", f"holds WHERE ended = {HoldEnd.EXPIRED}")}
    {_sums("events", _UNPAID, "meter_events")}
    {_sums("posting", "max(number) AS number", "postings")}
    {_sums("draws", "max(start + amount) AS until, sum(forgiven) AS forgiven", "overdraft_draws")}
    {_sums("payers", "sum(amount) AS amount", "overdraft_payers")}""",
    ("wallet.number", "state.sequence"),
    {
        "wallet_state": Check("state.wallet_number IS NULL", "it has no state"),
        "wallet_currency": Check("currency.code IS NULL", "there is no currency {wallet.currency}"),
        "wallet_customer": Check(
            "customer.id IS NULL", "there is no customer {wallet.customer_id}"
        ),
        "wallet_sequence": Check(
            "following.sequence IS NOT NULL OR state.sequence <> 0 AND last.sequence IS NULL",
            "row {state.sequence} is not its last",
        ),
        # Older versions did not move posted_at by a hold that ended at its deadline.
        "wallet_posted_at": Check(
            f"""state.posted_at <> {_POSTED_AT} AND (lapsed.at IS NULL
            OR state.posted_at <> lapsed.at OR lapsed.at < {_POSTED_AT})""",
            f"posted_at is {{state.posted_at}}, not {{{_POSTED_AT}}}",
        ),
        **dict(_FIGURES),
        "wallet_credit": Check(
            "state.running_balance <> coalesce(grants.remaining, 0) - state.overdraft_used",
            "{state.running_balance} are not {coalesce(grants.remaining, 0)} of grants"
            " less {state.overdraft_used} used",
        ),
        "wallet_last_posting": Check(
            "state.last_posting <> coalesce(posting.number, 0)",
            "last_posting is {state.last_posting}, its last one has number"
            " {coalesce(posting.number, 0)}",
        ),
        "wallet_overdrawn": Check(
            "state.overdrawn <> coalesce(overdraft.drawn, 0)",
            "overdrawn is {state.overdrawn}, its rows have drawn {coalesce(overdraft.drawn, 0)}",
        ),
        "wallet_repaid_to": Check(
            f"""state.overdraft_used <> state.overdrawn - state.repaid_to
            - {forgiven("state.repaid_to", "state.overdrawn", "wallet.number")}""",
            "{state.overdrawn} drawn and paid back up to {state.repaid_to}"
            " leave not {state.overdraft_used} overdrawn",
        ),
        "wallet_draws": Check(
            "state.overdrawn <> coalesce(draws.until, 0)",
            "overdrawn is {state.overdrawn}, and its draws end at {coalesce(draws.until, 0)}",
        ),
        "wallet_payers": Check(
            """state.overdrawn - state.overdraft_used
            <> coalesce(payers.amount, 0) + coalesce(draws.forgiven, 0)""",
            "{state.overdrawn - state.overdraft_used} are no longer owed,"
            " and grants paid {coalesce(payers.amount, 0)}",
        ),
        "wallet_unpaid_amount": Check(
            "state.unpaid_amount <> coalesce(events.unpaid, 0)",
            "unpaid_amount is {state.unpaid_amount}, its meter events are owed"
            " {coalesce(events.unpaid, 0)}",
        ),
        "wallet_closed": Check(
            f"""state.status = {Status.CLOSED} AND (state.running_balance <> 0
            OR state.overdraft_used <> 0 OR EXISTS ({_OPEN_HOLDS}))""",
            "it is closed with {state.running_balance}",
        ),
        "wallet_closed_at": Check(
            f"""(state.status = {Status.CLOSED}) <> (wallet.closed_at IS NOT NULL)
            OR wallet.closed_at <> state.updated_at""",
            "its status is {state.status}, and it was closed at {wallet.closed_at}",
        ),
        "wallet_succession": Check(
            f"""wallet.rows_before <> ({_BEFORE})
            OR wallet.closed_at IS NULL AND EXISTS ({_BEHIND})""",
            "other than {wallet.rows_before} rows are before it,"
            " or it is not closed and not the last one",
        ),
    },
)
