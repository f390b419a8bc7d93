"""Canceled meter events: when, what is still to be returned, and how their payments are found."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    for column in ("canceled_at", "return_below"):
        op.add_column("meter_events", sa.Column(column, sa.BigInteger(), nullable=True))
    is_returned = sa.text("return_below IS NOT NULL")
    op.create_index(
        "meter_events_returned",
        "meter_events",
        ["wallet_number", "canceled_at", "number"],
        sqlite_where=is_returned,
        postgresql_where=is_returned,
    )
    settles = sa.text("operation = 14")
    op.create_index(
        "postings_settlements",
        "postings",
        ["wallet_number", "meter_event_id", "first_sequence"],
        sqlite_where=settles,
        postgresql_where=settles,
    )
