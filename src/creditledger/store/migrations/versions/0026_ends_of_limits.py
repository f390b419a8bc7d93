"""Spend limits keep when their running period ends: by the data that zones have now."""

import sqlalchemy as sa
from alembic import op

from creditledger.domain import clock
from creditledger.domain.billing_periods import bucket_of

revision = "0026"
down_revision = "0025"

#: Periods of the calendar by number, and how far from its beginning one is half over.
CALENDAR = {
    1: ("Day", 12 * clock.HOUR),
    2: ("Week", 84 * clock.HOUR),
    3: ("Month", 14 * clock.DAY),
}
_RUNNING = """SELECT DISTINCT period, time_zone, counted_from FROM spend_limits
WHERE time_zone IS NOT NULL"""
_WRITE = """UPDATE spend_limits SET counted_until = :until
WHERE period = :period AND time_zone = :zone AND counted_from = :start"""


def upgrade() -> None:
    op.add_column("spend_limits", sa.Column("counted_until", sa.BigInteger(), nullable=True))
    connection = op.get_bind()
    for period, zone, start in connection.execute(sa.text(_RUNNING)).all():
        cycle, half = CALENDAR[period]
        # What begins then may begin a little earlier or later by what zones are now.
        until = bucket_of(start + half, cycle, clock.stored_zone(zone)).end
        values = {"until": until, "period": period, "zone": zone, "start": start}
        connection.execute(sa.text(_WRITE), values)
