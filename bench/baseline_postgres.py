"""The baselines on PostgreSQL: sixteen connections in the usual way, one for the limit."""

import asyncio
import time
from typing import Any

import asyncpg
from sqlalchemy import make_url

from bench.posting import (
    AMOUNT,
    BATCH,
    COLUMNS,
    STANDING,
    STATE,
    STATEMENTS,
    Figures,
    numbered,
)
from bench.timing import Times
from bench.traffic import Traffic
from creditledger.domain import clock

#: As many as a small service keeps open.
CONNECTIONS = 16

SQL = {name: numbered(statement) for name, statement in STATEMENTS.items()}
LOCK_WALLET = SQL["find_wallet"] + " FOR UPDATE OF s"
#: A transaction is numbered before it has waited for its lock, perhaps: its row stands behind those
#: that its wallet has by then.
INSERT_ROW = (
    SQL["insert_row"].replace(") VALUES (", ", position) VALUES (").removesuffix(")")
    + ", (SELECT CASE WHEN written_in > pg_current_xact_id() THEN written_in END"
    " FROM wallet_states WHERE wallet_number = $1))"
)
UPDATE_WALLET = SQL["update_wallet"].replace(
    " WHERE", ", written_in = greatest(written_in, pg_current_xact_id()) WHERE"
)


async def _connected(url: str) -> "asyncpg.Connection[Any]":
    place = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return await asyncpg.connect(place)


async def _standing(url: str) -> list[Any]:
    connection = await _connected(url)
    try:
        return list(await connection.fetch(STANDING))
    finally:
        await connection.close()


async def ordinary(url: str, traffic: Traffic, seconds: float) -> Times:
    """A transaction for each posting, on sixteen connections at once."""
    dimensions = {wallet: dimension for _, wallet, *_, dimension in await _standing(url)}
    connections = [await _connected(url) for _ in range(CONNECTIONS)]
    times = Times(seconds)

    async def poster(connection: "asyncpg.Connection[Any]") -> None:
        while times.go_on():
            began = time.perf_counter()
            await _post(connection, dimensions, *traffic.named())
            times.done(1, began)

    try:
        await asyncio.gather(*map(poster, connections))
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))
    return times


async def _post(
    connection: "asyncpg.Connection[Any]", dimensions: dict[int, int], wallet: str, key: str
) -> None:
    async with connection.transaction(isolation="read_committed"):
        figures = Figures(*await connection.fetchrow(LOCK_WALLET, wallet))
        # After the lock, so that time does not run back in a wallet.
        now = clock.now()
        place = figures.wallet
        assert not await connection.fetch(SQL["find_posting"], place, key)
        (grant, remaining), *_ = await connection.fetch(SQL["find_grants"], place)
        assert remaining > AMOUNT
        figures.move()
        await connection.execute(SQL["insert_posting"], *figures.posting(key))
        dimension = dimensions[place]
        await connection.execute(INSERT_ROW, *figures.row(grant, dimension, now))
        await connection.execute(SQL["update_grant"], AMOUNT, place, grant)
        await connection.execute(UPDATE_WALLET, *figures.state(now))


_TYPES = {"idempotency_key": "text", "quantities": "text"}


def _unnest(first: int, columns: tuple[str, ...]) -> str:
    """Rows of parameters that are arrays, one for each column, from $first on."""
    arrays = [f"${first + i}::{_TYPES.get(name, 'bigint')}[]" for i, name in enumerate(columns)]
    return f"unnest({', '.join(arrays)}) AS u ({', '.join(columns)})"


def _all_in_one() -> str:
    """Everything that a batch writes, as one statement."""
    parts, first = [], 1
    for table in ("postings", "credit_transactions"):
        columns = COLUMNS[table]
        parts.append(
            f"{table}_ AS (INSERT INTO {table} ({', '.join(columns)})"
            f" SELECT {', '.join(columns)} FROM {_unnest(first, columns)})"
        )
        first += len(columns)
    state = ("wallet_number", *STATE)
    parts.append(
        f"wallets_ AS (UPDATE wallet_states AS s SET {', '.join(f'{n} = u.{n}' for n in STATE)}"
        f" FROM {_unnest(first, state)} WHERE s.wallet_number = u.wallet_number)"
    )
    first += len(state)
    return (
        f"WITH {', '.join(parts)} UPDATE grants AS g SET remaining = g.remaining - u.amount"
        f" FROM {_unnest(first, ('wallet_number', 'number', 'amount'))}"
        " WHERE g.wallet_number = u.wallet_number AND g.number = u.number"
    )


ALL_IN_ONE = _all_in_one()


async def limit(url: str, traffic: Traffic, seconds: float) -> Times:
    """Five hundred postings to a statement, which is a transaction."""
    known = {
        name: (Figures(*figures), grant, dimension)
        for name, *figures, grant, dimension in await _standing(url)
    }
    connection = await _connected(url)
    times = Times(seconds)
    try:
        while times.go_on():
            began, now = time.perf_counter(), clock.now()
            postings, rows = [], []
            touched: dict[str, int] = {}
            for _ in range(BATCH):
                wallet, key = traffic.named()
                figures, grant, dimension = known[wallet]
                figures.move()
                postings.append(figures.posting(key))
                rows.append(figures.row(grant, dimension, now))
                touched[wallet] = touched.get(wallet, 0) + 1
            moved = [(*known[wallet], many) for wallet, many in touched.items()]
            tables: list[list[tuple[object, ...]]] = [
                postings,
                rows,
                [(f.wallet, *f.state(now)[:-1]) for f, *_ in moved],
                [(f.wallet, g, AMOUNT * n) for f, g, _, n in moved],
            ]
            await connection.execute(
                ALL_IN_ONE,
                *(list(column) for table in tables for column in zip(*table, strict=True)),
            )
            times.done(BATCH, began)
    finally:
        await connection.close()
    return times
