"""A store used past the ledger: what a batch wants, writes and leaves, put together by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from creditledger.domain.model import Dimension, Kind, Posting, Row, Type
from creditledger.store import Changes, Wanted, schema
from tests.support.setup import START

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, Table

    from creditledger.store import Loaded, Store

#: Nothing more is wanted.
NOTHING: frozenset[Any] = frozenset()


def wanting(*wallet_ids: str) -> Wanted:
    """Only wallets, and no dimension to write under."""
    return Wanted(frozenset(wallet_ids), *(NOTHING,) * 6, lambda _: ())


async def contents(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""

    def look(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
        return {
            table.name: sorted(map(tuple, connection.execute(select(*_common(table)))), key=repr)
            for table in schema.metadata.sorted_tables
        }

    return await store.read(look)


def _common(table: Table) -> list[Column[Any]]:
    """The columns that the table has on every database."""
    return [column for column in table.columns if column.name != "position"]


def by_hand(loaded: Loaded, *sequences: int) -> Changes:
    """A posting of wal_acme with rows of these sequences; no more of it is in order than keys."""
    wallet = loaded.wallets["wal_acme"]
    rows = [
        Row(wallet.number, one, 77, 1, 1, None, 1, 1, START, None, 99, 2, 1, -1, 0, 0)
        for one in sequences
    ]
    posting = Posting(
        wallet=wallet.number,
        number=77,
        idempotency_key="by hand",
        operation=1,
        amount=3,
        posted_by=None,
        description=None,
        note=None,
        metadata={},
        source={},
        meter_event_id=None,
        quantities=(),
        refund_of=None,
        hold=None,
        terms={},
        rows=rows,
    )
    dimension = Dimension(Kind.TOPUP.value, Type.GRANT.value, product_id="by hand")
    return Changes(
        touched={wallet.number: wallet},
        dimensions=[(wallet.number, 99, dimension)],
        postings=[posting],
        rows=rows,
    )
