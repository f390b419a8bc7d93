"""What is over and may not be written down yet, over all wallets: what the sweeper goes by.

Each kind has a narrow index in the order of time: a look reads what it answers and no more.
"""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text


class Due(NamedTuple):
    """A grant or hold whose time is over, or an event that is canceled, by that moment."""

    moment: int
    wallet: int
    number: int
    wallet_id: str


#: Before every other.
NOTHING = Due(-(1 << 62), 0, 0, "")
What = tuple[str, str, str, str]
#: Table, index, the column with its end, and what is true of those not written down as ended. Of a
#: grant that has ended there may be left what is held, and that is not due.
GRANTS = ("grants", "grants_due", "expires_at", "o.open")
HOLDS = ("holds", "holds_due", "deadline", "o.ended IS NULL")
#: Canceled meter events of which something is still to be returned.
RETURNS = ("meter_events", "meter_events_returned", "canceled_at", "o.return_below IS NOT NULL")

_QUERY = """\
SELECT o.{moment}, o.wallet_number, o.number, w.id FROM {table}
JOIN wallets AS w ON w.number = o.wallet_number
WHERE {is_open} AND o.{moment} IS NOT NULL AND o.{moment} <= :now
  AND (o.{moment}, o.wallet_number, o.number) > (:moment, :wallet, :number)
ORDER BY o.{moment}, o.wallet_number, o.number LIMIT :size"""


def due(connection: Connection, what: What, now: int, after: Due, size: int) -> Sequence[Due]:
    """Up to `size` of those over by `now`, in order, from behind `after` on."""
    table, index, moment, is_open = what
    if connection.dialect.name == "sqlite":
        source = f"{table} AS o INDEXED BY {index}"
        is_open = is_open.replace("o.open", "o.open = 1")
    else:
        source = f"{table} AS o"
    found = connection.execute(
        text(_QUERY.format(table=source, moment=moment, is_open=is_open)),
        {
            "now": now,
            "moment": after.moment,
            "wallet": after.wallet,
            "number": after.number,
            "size": size,
        },
    )
    return [Due(*row) for row in found]
