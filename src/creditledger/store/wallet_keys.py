"""A wallet's idempotency key, bound by a change that the committer has no part in.

It is a posting without rows, as engine/batch.py makes them of other changes. Functions of a
connection in a write transaction.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, insert, select, update

from creditledger.domain.model import Posting
from creditledger.store import schema
from creditledger.store.read import transaction_reads
from creditledger.store.write.columns import POSTING_INSERTED, posting_columns

T = TypeVar("T")

v = schema.wallet_states.c


class Binding(NamedTuple):
    """What a change is to be kept as."""

    key: str | None  #: None: nothing is kept.
    operation: int
    terms: Mapping[str, object]
    asked_by: int | None  #: Number of the API key; None: the command line.


def found(connection: Connection, wallet: int, key: str | None) -> Posting | None:
    """What the wallet has under the key."""
    there = None if key is None else transaction_reads.posting(connection, wallet, key)
    return None if there is None else there[0]


def once(
    connection: Connection,
    wallet: int,
    binding: Binding,
    change: Callable[[Connection], T],
    again: Callable[[Connection, Posting], T],
    source: Callable[[T], Mapping[str, str]],
) -> T:
    """What `change` answers; or `again`, if the wallet has its key already.

    `source`: where `again` finds what was changed. The wallet is locked meanwhile. Raises what
    both raise: then the key stays free.
    """
    if binding.key is None:
        return change(connection)
    query = select(v.last_posting).where(v.wallet_number == wallet)
    last = connection.execute(query.with_for_update(key_share=True)).scalar_one()
    before = found(connection, wallet, binding.key)
    if before is not None:
        return again(connection, before)
    value = change(connection)
    posting = Posting(
        wallet=wallet,
        number=last + 1,
        idempotency_key=binding.key,
        operation=binding.operation,
        amount=None,
        posted_by=binding.asked_by,
        description=None,
        note=None,
        metadata={},
        source=source(value),
        meter_event_id=None,
        quantities=(),
        refund_of=None,
        hold=None,
        terms=binding.terms,
    )
    columns = dict(zip(POSTING_INSERTED, posting_columns(posting), strict=True))
    connection.execute(insert(schema.postings).values(columns))
    # Servers that keep the wallet in memory have to see that it has moved.
    connection.execute(
        update(schema.wallet_states)
        .where(v.wallet_number == wallet)
        .values(last_posting=posting.number, revision=v.revision + 1)
    )
    return value
