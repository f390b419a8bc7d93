"""An empty database filled with a made-up ledger of any size."""

from collections.abc import Callable

from sqlalchemy import Connection, select, text

from bench.seed.life import BEGIN, life
from bench.seed.multiply import writing
from bench.seed.registry import register, register_meter
from creditledger.domain import clock
from creditledger.store import migrate, schema

#: Wallets registered in one statement.
REGISTERED = 10_000


class NotEmpty(Exception):
    """The database has wallets already."""


async def fill(
    url: str,
    *,
    rows: int,
    wallets: int,
    days: int,
    on_progress: Callable[[int, int], None],
) -> int:
    """Fill the empty database at `url` with a ledger; the number of its rows.

    Every wallet gets rows // wallets of them. `on_progress(rows written, of)` is called on the way.
    An interruption leaves a database that is neither empty nor whole. Raises NotEmpty, ValueError,
    and what `migrate` of the store raises.
    """
    now = clock.now()

    def begin(connection: Connection) -> None:
        if connection.execute(select(schema.customers.c.id).limit(1)).first():
            raise NotEmpty
        register_meter(connection, at=lived.moved + BEGIN)
        for first in range(0, wallets, REGISTERED):
            some = min(REGISTERED, wallets - first)
            register(connection, first, some, at=lived.moved + BEGIN)

    lived = await life(rows // wallets, days, until=now)
    await migrate(url, begin)
    written = 0
    for count, change in writing(lived, wallets):
        on_progress(written, lived.rows * wallets)
        await migrate(url, change)
        written += count
    await migrate(url, _analyze)
    return written


def _analyze(connection: Connection) -> None:
    """Let PostgreSQL look at its tables, as it does by itself after a minute: it plans by that."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))
