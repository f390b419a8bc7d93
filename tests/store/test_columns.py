"""Values lie in the columns of their tables: every column is written, and a value comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from creditledger.domain.model import (
    Category,
    Dimension,
    Grant,
    GrantScope,
    GrantTerms,
    Hold,
    HoldEnd,
    Origin,
    Period,
    Posting,
    SpendLimit,
    Status,
    Wallet,
)
from creditledger.store import schema
from creditledger.store.write import columns
from creditledger.store.write.batch import DroppedLimit, GrantRevision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table

#: Keys that the place of a value gives, and what is worked out of it.
PLACE = ["wallet_number"]
WRITTEN: list[tuple[Table, Sequence[str]]] = [
    (schema.grants, [*PLACE, *columns.GRANT.names, "open"]),
    (schema.grant_revisions, columns.GRANT_REVISION.names),
    (schema.grant_repayments, columns.GRANT_REPAYMENT.names),
    (schema.grant_parts, columns.GRANT_PART.names),
    (schema.receipts, columns.RECEIPT.names),
    (schema.overdraft_draws, columns.OVERDRAFT.names),
    (schema.overdraft_payers, columns.PAYER.names),
    (schema.holds, [*PLACE, *columns.HOLD.names]),
    (schema.hold_revisions, columns.HOLD_REVISION.names),
    (schema.meter_events, [*PLACE, *columns.EVENT.names]),
    (schema.spend_limits, [*PLACE, *columns.LIMIT.names]),
    (schema.dropped_limits, [*PLACE, *columns.DROPPED_LIMIT.names]),
    (schema.dimensions, [*PLACE, "number", "digest", *columns.DIMENSION.names]),
    (schema.postings, columns.POSTING_INSERTED),
    (schema.transactions, [*columns.ROW.names, "position"]),
    (schema.wallet_states, [*PLACE, *columns.STATE_NAMES]),
    (schema.wallets, [*columns.WALLET.names, "closed_at", "rows_before"]),
]

GRANT = Grant(
    number=7,
    amount=9,
    overdraft_paid=1,
    remaining=3,
    category=Category.PROMOTIONAL,
    priority=5,
    name="Welcome",
    effective_at=10,
    expires_at=20,
    created_at=9,
    scope=GrantScope(product_ids=("chat", "search")),
    voided_at=15,
    revision=2,
    repaid=1,
    returned=True,
    origin=Origin.REFUND,
    words="digest",
)
HOLD = Hold(
    number=3,
    amount=5,
    captured=1,
    parts={7: 2, 4: 1},
    beyond=1,
    deadline=30,
    created_at=9,
    dimension=1,
    quantities=(1, 2),
    meter_event_id="evt",
    ended=HoldEnd.RELEASED,
    ended_at=12,
)
LIMIT = SpendLimit(
    number=1,
    amount=100,
    api_key_id=None,
    period=Period.ROLLING,
    time_zone=None,
    hours=24,
    created_at=1,
    updated_at=2,
    since=3,
    counted_from=4,
    parts={4: 5},
    counted_until=None,
)
DIMENSION = Dimension(
    6, 2, "mtr", None, True, "apk_1", base_prices=(1, 2), price_precision=6
)  # in the order of its fields


@pytest.mark.parametrize(("table", "names"), WRITTEN, ids=lambda one: getattr(one, "name", ""))
def test_every_column_is_written(table: Table, names: Sequence[str]) -> None:
    """Each column of a table keeps a field or is given by the writer; none is named twice."""
    assert sorted(column.name for column in table.c) == sorted(names)


def test_values_come_back() -> None:
    """What the columns keep of a value is that value again."""
    pairs: list[tuple[columns.Columns[Any], object]] = [
        (columns.GRANT, GRANT),
        (columns.HOLD, HOLD),
        (columns.LIMIT, LIMIT),
        (columns.DIMENSION, DIMENSION),
    ]
    for of, value in pairs:
        kept = dict(zip(of.names, of.stored(value), strict=True))

        assert of.stored(value) == of.stored(of.value(kept.values()))
        assert {type(one) for one in kept.values()} <= {int, str, bool, type(None)}


def test_a_wallet_comes_back_from_two_tables() -> None:
    """A wallet is put together of what never changes of it, and what does."""
    wallet = Wallet(
        number=1,
        id="wal",
        customer_id="cus",
        currency="USD",
        scale=2,
        livemode=True,
        status=Status.FROZEN,
        overdraft_limit=5,
        metadata={"team": "blue"},
        created_at=1,
        updated_at=2,
        sequence=9,
        last_posting=4,
        revision=6,
        overdrawn=3,
        repaid_to=2,
    )
    wallet.kind_counts[1], wallet.kind_counts[9] = 5, 4
    counted = dict(zip(columns.COUNTER_NAMES, columns.counters(wallet), strict=True))
    state = dict(zip(columns.STATE.names, columns.STATE.stored(wallet), strict=True)) | counted
    kept = [*columns.WALLET.stored(wallet), *(state[name] for name in columns.STATE_NAMES)]
    other = columns.wallet_value(kept, 2)

    assert wallet == other
    assert (state["topup_count"], state["transfer_in_count"]) == (5, 4)

    other.status, other.metadata, other.updated_at = Status.ACTIVE, {}, 0
    columns.set_terms(other, [state[name] for name in columns.STATE_NAMES])
    assert wallet == other


def test_parts_of_a_value_lie_beside_it() -> None:
    """A value that is a field of another one lies in columns of its own fields."""
    revision = GrantRevision(1, 7, 2, 30, None, None, GrantTerms("new", 4, 50, None), {"a": "b"})
    dropped = DroppedLimit(LIMIT, spent=4, held=1, resets_at=None, dropped_at=9)
    of = columns.GRANT_REVISION
    kept = dict(zip(of.names, of.stored(revision), strict=True))
    shown = columns.dropped_value(columns.DROPPED_LIMIT.stored(dropped))

    assert (
        *(kept["grant_number"], kept["name"]),
        *(kept["expires_at"], kept["metadata"]),
    ) == (7, "new", 50, '{"a":"b"}')
    assert dropped[1:] == shown[1:]
    assert (shown.limit.amount, shown.limit.hours) == (100, 24)


@pytest.mark.parametrize("linked", [None, (2, 5)])
def test_a_posting_comes_back_without_its_rows(linked: tuple[int, int] | None) -> None:
    """Rows are told by where they lie."""
    posting = Posting(
        wallet=1,
        number=2,
        idempotency_key="key",
        operation=3,
        amount=-5,
        posted_by=None,
        description=None,
        note="note",
        metadata={"a": "b"},
        source={},
        meter_event_id=None,
        quantities=(1, 2),
        refund_of=None,
        hold=4,
        terms={"priority": 5},
        linked=linked,
    )
    kept = columns.posting_columns(posting)

    assert posting == columns.posting_value(kept[:-2])
    assert kept[-2:] == (0, 0)
