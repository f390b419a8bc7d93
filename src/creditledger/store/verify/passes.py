"""All passes, in the order in which they depend on one another."""

from functools import cache

from creditledger.store.verify import (
    event_checks,
    fold_checks,
    grant_checks,
    hold_checks,
    limit_checks,
    overdraft_checks,
    posting_checks,
    row_checks,
    wallet_checks,
    webhook_checks,
)
from creditledger.store.verify.check import Pass
from creditledger.store.verify.spelling import SqlSpelling


@cache
def passes(sql: SqlSpelling) -> tuple[Pass, ...]:
    """Every pass. If one damage has several findings, the first names the damaged row."""
    return (
        row_checks.rows(sql),
        row_checks.KIND_COUNTS,
        posting_checks.POSTINGS,
        posting_checks.REFUNDS,
        grant_checks.grants(sql),
        grant_checks.scopes(sql),
        wallet_checks.WALLETS,
        hold_checks.HOLDS,
        hold_checks.REVISIONS,
        grant_checks.given(sql),
        hold_checks.hold_steps(sql),
        posting_checks.REFUND_SOURCES,
        grant_checks.BURN_ORDER,
        posting_checks.TRANSFERS,
        event_checks.EVENTS,
        limit_checks.spend_limits(sql),
        grant_checks.GRANT_REVISIONS,
        overdraft_checks.GRANT_REPAYMENTS,
        webhook_checks.WEBHOOKS,
        grant_checks.receipts(sql),
        grant_checks.RECEIPT_ROWS,
        grant_checks.PARTS,
        grant_checks.ARRIVED,
        overdraft_checks.OVERDRAFTS,
        overdraft_checks.OVERDRAFT_PAYERS,
        fold_checks.FOLD_ENDS,
        fold_checks.folds(sql),
        fold_checks.moved_folds(sql),
        fold_checks.DAY_FOLDS,
    )
