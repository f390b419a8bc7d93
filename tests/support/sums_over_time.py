"""Every answer that sums over time give of a wallet, to be compared before and after a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

from sqlalchemy import select

from creditledger.domain import clock as time
from creditledger.store import schema
from creditledger.store.folds import folding
from creditledger.store.read import bill_sums, consumption
from creditledger.store.read.transaction_reads import Filters

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from sqlalchemy import Connection

#: Kathmandu is 5:45 ahead. Monrovia was 0:44:30 behind until 1972, in no whole quarters.
ZONES = ("UTC", "Asia/Kathmandu", "Africa/Monrovia")
CYCLES = ("Day", "Week", "Month")


def wallet_ends(connection: Connection) -> dict[int, int]:
    """The last sequence of each wallet, by its number."""
    s = schema.wallet_states.c
    return dict(connection.execute(select(s.wallet_number, s.sequence)).all())


def answers(
    connection: Connection, wallet: int, last: int, windows: Sequence[tuple[int, int]]
) -> list[Any]:
    """Bills of these windows by period and in all, and consumption by meter and subscription."""
    found: list[Any] = []
    for start, end in windows:
        found.append(bill_sums.in_window(connection, wallet, last, start, end))
        cycles = CYCLES if end - start > 2 * time.DAY else ("Hour", *CYCLES)
        for zone in ZONES:
            for cycle in cycles:
                periods = bill_sums.periods(
                    connection, wallet, last, start, end, cycle=cycle, zone=ZoneInfo(zone)
                )
                found.append(list(periods))
        found.extend(_by_dimension(connection, wallet, last, start, end))
    found.extend(_by_dimension(connection, wallet, last, None, None))
    return found


def _by_dimension(
    connection: Connection, wallet: int, last: int, start: int | None, end: int | None
) -> list[Any]:
    d = schema.dimensions.c
    mine = select(d.meter_id, d.subscription_id).where(d.wallet_number == wallet).distinct()
    sums = []
    for meter, subscription in sorted(connection.execute(mine).all(), key=repr):
        if (meter, subscription) == (None, None):
            continue
        filters = Filters(
            livemode=True, meter_id=meter, subscription_id=subscription, start=start, end=end
        )
        one = consumption.dimension_sums(connection, filters, [(wallet, last, "USD")])
        sums.append((meter, subscription, one))
    return sums


def windows(connection: Connection, wallet: int, random: Random) -> list[tuple[int, int]]:
    """A long window, and some whose ends lie on a row, beside one, or on a whole quarter."""
    t = schema.transactions.c
    rows = connection.execute(
        select(t.created_at, t.effective_at).where(t.wallet_number == wallet)
    ).all()
    moments = [one for row in rows for one in row if one is not None] or [0]
    edges = [
        random.choice(moments) + random.choice([0, 0, 1, -1, 1_500, -time.HOUR, time.DAY])
        for _ in range(6)
    ]
    edges[0] = edges[0] // time.QUARTER * time.QUARTER
    pairs = [(min(two), max(two)) for two in zip(edges[::2], edges[1::2], strict=True)]
    return [(min(moments) - time.DAY, max(moments) + 2 * time.DAY), *pairs]


def fold_some(connection: Connection, random: Random) -> None:
    """Drop all folds, or fold random rows of random wallets; some get sums by day."""
    if random.random() < 0.3:
        folding.drop(connection)
    for wallet, last in wallet_ends(connection).items():
        if last and random.random() < 0.7:
            many = random.choice([1, 3, last, folding.MANY_ROWS])
            with patch.object(folding, "MANY_ROWS", many):
                folding.fold(connection, [wallet], random.randint(1, last))


def fold_all(connection: Connection, but: int = 0) -> None:
    """Fold every row; of each wallet the last `but` only if they are folded already.

    All but the smallest wallets get sums by day.
    """
    with patch.object(folding, "MANY_ROWS", 3):
        for wallet, last in wallet_ends(connection).items():
            if last > but:
                folding.fold(connection, [wallet], last - but)
