"""What a statement shows to people: every column in which something stands, and no empty one."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from creditledger.domain.billing_periods import Bucket
from creditledger.domain.model import Category, Kind
from creditledger.domain.statements import About, GrantFacts, Part, RowSums, document, figures
from creditledger.domain.views import WalletPlace
from creditledger.outlets.statements.files import tables

UNIT = 10**9
ABOUT = About(
    wallet_number=1,
    wallet=WalletPlace("wal_acme", "cus_acme", "USD", 9, livemode=True),
    customer_name="Acme",
    period=Bucket(0, 1_000),
    zone=ZoneInfo("UTC"),
    sequence=9,
)
GRANT = GrantFacts(0, Category.PAID, None, 0, None, None)


def late(grant: int, kind: Kind, amount: int) -> RowSums:
    """A row of a grant that was booked after its period had been closed."""
    return RowSums(Part.PRIOR, grant, kind, 1, amount * UNIT, began=False)


@pytest.mark.parametrize(
    ("moved", "shown"),
    [
        ([], False),
        ([late(1, Kind.USAGE, -2)], True),
        # They cancel out in all, but each grant has closed with another figure than it would have.
        ([late(1, Kind.USAGE, -2), late(2, Kind.REFUND, 2)], True),
    ],
)
def test_a_column_is_there_where_a_grant_has_a_figure(moved: list[RowSums], shown: bool) -> None:
    """So that each line of the table adds up before its reader's eyes."""
    said = document(ABOUT, figures({1: 5 * UNIT, 2: 5 * UNIT}, 0, moved, {1: GRANT, 2: GRANT}))

    (grants,) = [table for table in tables(said) if table.title == "Grants"]

    assert ("Prior period" in grants.names) == shown
