"""The rows that a batch inserts, updates and deletes, for both databases.

A write names a table and the columns of its rows, those of its key first. How many writes make a
statement, and how their rows travel, is the database's; see sqlite/ and postgres/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from creditledger.store import schema
from creditledger.store.write.batch import Changes
from creditledger.store.write.columns import (
    COUNTER_NAMES,
    DIMENSION,
    DROPPED_LIMIT,
    EVENT,
    EVENT_CHANGED,
    GRANT,
    GRANT_GROWN,
    GRANT_PART,
    GRANT_REPAID,
    GRANT_REPAYMENT,
    GRANT_REVISION,
    GRANT_TERMS,
    HOLD,
    HOLD_CHANGED,
    HOLD_REVISION,
    LIMIT,
    LIMIT_CHANGED,
    OVERDRAFT,
    PAYER,
    POSTING_INSERTED,
    RECEIPT,
    ROW,
    WALLET_OVERDRAFT,
    WALLET_TERMS,
    counters,
    digest,
    posting_columns,
)


@dataclass(frozen=True, slots=True, eq=False)
class Insert:
    """New rows; of those that are there already these columns become what the new row says."""

    table: Table
    names: Sequence[str]
    changed: Sequence[str] = ()

    @property
    def key(self) -> list[str]:
        """What tells whether a row is there."""
        return [column.name for column in self.table.primary_key]


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Columns of rows that are there."""

    table: Table
    key: Sequence[str]
    names: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class Delete:
    """Rows that go."""

    table: Table
    key: Sequence[str]


Write = Insert | Update | Delete

_WALLET = ["wallet_number"]
_NUMBERED = ["wallet_number", "number"]

SET_WALLET_TERMS = Update(schema.wallet_states, _WALLET, WALLET_TERMS.names)
CLOSE = Update(schema.wallets, ["number"], ["closed_at"])
SET_GRANT_TERMS = Update(schema.grants, _NUMBERED, GRANT_TERMS.names)
GROW = Update(schema.grants, _NUMBERED, GRANT_GROWN.names)
REPAY = Update(schema.grants, _NUMBERED, [*GRANT_REPAID.names, "open"])
FREE_RECEIPTS = Delete(schema.receipts, ["wallet_number", "grant_number"])
SET_OVERDRAFT = Update(schema.wallet_states, _WALLET, WALLET_OVERDRAFT.names)
HOLDS = Insert(schema.holds, [*_WALLET, *HOLD.names], HOLD_CHANGED.names)
HOLD_REVISIONS = Insert(schema.hold_revisions, HOLD_REVISION.names)
EVENTS = Insert(schema.meter_events, [*_WALLET, *EVENT.names], EVENT_CHANGED.names)
LIMITS = Insert(schema.spend_limits, [*_WALLET, *LIMIT.names], LIMIT_CHANGED.names)
DROP_LIMITS = Delete(schema.spend_limits, _NUMBERED)
DROPPED_LIMITS = Insert(schema.dropped_limits, [*_WALLET, *DROPPED_LIMIT.names])
GRANT_REVISIONS = Insert(schema.grant_revisions, GRANT_REVISION.names)
DIMENSIONS = Insert(schema.dimensions, [*_NUMBERED, "digest", *DIMENSION.names])
POSTINGS = Insert(schema.postings, POSTING_INSERTED)
GRANTS = Insert(schema.grants, [*_WALLET, *GRANT.names, "open"])
GRANT_PARTS = Insert(schema.grant_parts, GRANT_PART.names)
GRANT_REPAYMENTS = Insert(schema.grant_repayments, GRANT_REPAYMENT.names)
RECEIPTS = Insert(schema.receipts, RECEIPT.names)
OVERDRAFTS = Insert(schema.overdraft_draws, OVERDRAFT.names, ["forgiven"])
PAYERS = Insert(schema.overdraft_payers, PAYER.names)
OVERDRAFT_RETURNS = Insert(schema.overdraft_returns, ["wallet_number", "sequence"])
#: Apart from those that become empty: to set `open`, changed or not, rewrites its index in SQLite.
DRAW = Update(schema.grants, _NUMBERED, ["remaining"])
TURN = Update(schema.grants, _NUMBERED, ["remaining", "open"])
TRANSACTIONS = Insert(schema.transactions, ROW.names)
MOVE = Update(schema.wallet_states, _WALLET, COUNTER_NAMES)


def changed_rows(changes: Changes) -> Iterator[tuple[Write, Sequence[tuple[Any, ...]]]]:
    """Each write of the batch that has rows, in the order of dependence."""
    for write, rows in _changed(changes):
        if rows:
            yield write, rows


def _changed(changes: Changes) -> Iterator[tuple[Write, Sequence[tuple[Any, ...]]]]:
    if changes.terms:
        yield SET_WALLET_TERMS, [(n, *WALLET_TERMS.stored(w)) for n, w in changes.terms.items()]
        yield CLOSE, [(w.number, w.updated_at) for w in changes.closed()]
    # A grant that is given in the same batch is inserted as it has become.
    given = changes.given
    if changes.revised:
        revised = [item for item in changes.revised.items() if item[0] not in given]
        yield SET_GRANT_TERMS, [(*place, *GRANT_TERMS.stored(one)) for place, one in revised]
    # Before what remains of them, which is no more than their amount.
    if changes.grown:
        yield GROW, [(*place, *GRANT_GROWN.stored(one)) for place, one in changes.grown.items()]
    if changes.repaid:
        repaid = [item for item in changes.repaid.items() if item[0] not in given]
        yield (
            REPAY,
            [(*place, *GRANT_REPAID.stored(one), one.remaining > 0) for place, one in repaid],
        )
    if changes.receipts:
        # Those that are free again come first: the same receipt may be credited anew.
        yield FREE_RECEIPTS, [place for place, one in changes.receipts.items() if one is None]
    if changes.overdrawn:
        overdrawn = changes.overdrawn.items()
        yield SET_OVERDRAFT, [(n, *WALLET_OVERDRAFT.stored(w)) for n, w in overdrawn]
    if changes.holds:
        yield HOLDS, [(w, *HOLD.stored(one)) for (w, _), one in changes.holds.items()]
        yield HOLD_REVISIONS, list(map(HOLD_REVISION.stored, changes.revisions))
    if changes.events:
        yield EVENTS, [(w, *EVENT.stored(one)) for (w, _), one in changes.events.items()]
    if changes.limits:
        limits = changes.limits.items()
        yield LIMITS, [(place[0], *LIMIT.stored(one)) for place, one in limits if one]
        yield DROP_LIMITS, [place for place, one in limits if one is None]
        dropped = changes.dropped.items()
        yield DROPPED_LIMITS, [(w, *DROPPED_LIMIT.stored(one)) for (w, _), one in dropped]
    yield GRANT_REVISIONS, list(map(GRANT_REVISION.stored, changes.grant_revisions))
    yield (
        DIMENSIONS,
        [(w, n, digest(one), *DIMENSION.stored(one)) for w, n, one in changes.dimensions],
    )
    yield POSTINGS, list(map(posting_columns, changes.postings))
    yield GRANTS, [(w, *GRANT.stored(one), one.remaining > 0) for (w, _), one in given.items()]
    yield GRANT_PARTS, changes.parts
    yield GRANT_REPAYMENTS, changes.repayments
    yield RECEIPTS, [one for one in changes.receipts.values() if one is not None]
    yield OVERDRAFTS, list(map(OVERDRAFT.stored, changes.overdrafts.values()))
    yield PAYERS, changes.payers
    yield OVERDRAFT_RETURNS, changes.overdraft_returns
    drawn, turned = [], []
    for (wallet, number), (grant, was_open) in changes.drawn.items():
        if (wallet, number) in changes.repaid:
            continue  # written above, as it has become
        if was_open and grant.remaining:
            drawn.append((wallet, number, grant.remaining))
        else:
            turned.append((wallet, number, grant.remaining, grant.remaining > 0))
    yield DRAW, drawn
    yield TURN, turned
    yield TRANSACTIONS, changes.rows
    yield MOVE, [(number, *counters(wallet)) for number, wallet in changes.touched.items()]
