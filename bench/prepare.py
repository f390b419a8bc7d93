"""The ledger that every scenario begins with: wallets, their grants and a first consumption each.

Wallets are registered by SQL, their credit is posted by the ledger itself. Called by run.py, once
for a run; every scenario that needs a database of its own gets a copy.
"""

import asyncio
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from bench.databases import Home
from bench.inprocess import GIVE_BATCH, PLENTY, consume, gifts, opened, post
from bench.traffic import Wallets, wallet_id
from creditledger.domain import clock
from creditledger.domain.model import Status
from creditledger.ops.process import new_event_loop
from creditledger.store import schema


@dataclass(frozen=True, slots=True)
class Crowd:
    """Wallets that are alike."""

    wallets: Wallets
    grants: int  #: Open ones that each has, with plenty in them.


#: Where no scenario says otherwise a wallet has three grants open, as many as the busy ones have.
GRANTS = 3
HOT = Wallets(first=900_000)
IMPORTED = Wallets(first=900_001)


def holding(grants: int, wallets: int) -> Wallets:
    """Those with that many grants open, in a ledger of so many wallets."""
    return Wallets(first=1_000_000 + 100_000 * grants, count=max(1, wallets // 20))


def drawn(wallets: int) -> Wallets:
    """Those whose grants are given and used up within a scenario."""
    return Wallets(first=8_000_000, count=max(1, wallets // 50))


def prepare(home: Home, name: str, wallets: int) -> str:
    """Make the database; its URL."""
    url = home.make(name)
    crowds = [Crowd(Wallets(count=wallets), GRANTS), Crowd(HOT, GRANTS), Crowd(IMPORTED, 1)]
    crowds += [Crowd(holding(grants, wallets), grants) for grants in (1, 3, 20)]

    def register_all(connection: Connection) -> None:
        for one in (*crowds, Crowd(drawn(wallets), 0)):
            register(connection, one.wallets)

    home.run(name, register_all)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_give(url, crowds))
    return url


def register(connection: Connection, wallets: Wallets) -> None:
    """Customers and wallets, straight into their tables."""
    now = clock.now()
    numbers = range(wallets.first, wallets.first + wallets.count)
    customers = [
        {"id": f"cus_{n:07}", "name": f"Customer {n}", "email": f"customer-{n}@example.com"}
        for n in numbers
    ]
    connection.execute(insert(schema.customers).values(metadata="{}", created_at=now), customers)
    named = [{"id": wallet_id(n), "customer_id": f"cus_{n:07}"} for n in numbers]
    connection.execute(
        insert(schema.wallets).values(currency="USD", livemode=True, created_at=now), named
    )
    w = schema.wallets.c
    new = select(w.number).where(w.number.not_in(select(schema.wallet_states.c.wallet_number)))
    states = [{"wallet_number": number} for (number,) in connection.execute(new)]
    terms = {"status": Status.ACTIVE.value, "overdraft_limit": 0, "metadata": "{}"}
    connection.execute(insert(schema.wallet_states).values(**terms, updated_at=now), states)


async def _give(url: str, crowds: list[Crowd]) -> None:
    async with opened(url) as ledger:
        for one in crowds:
            numbers = range(one.wallets.first, one.wallets.first + one.wallets.count)
            await post(ledger, gifts(numbers, one.grants, PLENTY, "grant"), GIVE_BATCH)
            first = (consume(wallet_id(number), "first") for number in numbers)
            await post(ledger, first, GIVE_BATCH)
