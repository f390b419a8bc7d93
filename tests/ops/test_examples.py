"""The examples do what their first lines say, run as a reader who copies them would."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.support.rest import TRANSACTIONS, Served, serving
from tests.support.server import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FOLLOW = Path(__file__).parents[2] / "examples" / "follow.py"
#: Postings of each part of the test, and what is kept of a row.
POSTINGS = 60
COLUMNS = (
    "id",
    "wallet_id",
    "sequence",
    "customer_id",
    "kind",
    "currency_id",
    "amount",
    "created_at",
)


@dataclass(slots=True)
class Wire:
    """A port that leads to whichever server is there, and can be cut."""

    port: int = 0
    server: tuple[str, int] | None = None
    _ends: set[asyncio.StreamWriter] = field(default_factory=set)

    def lead_to(self, served: Served) -> None:
        """From now on."""
        place = urlsplit(served.url)
        assert place.hostname
        assert place.port
        self.server = place.hostname, place.port

    def cut(self) -> None:
        """All connections, in the middle of whatever they carry."""
        for one in self._ends:
            one.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        if self.server is None:
            writer.transport.abort()
            return
        with suppress(OSError):
            there, back = await asyncio.open_connection(*self.server)
            ends = {writer, back}
            self._ends |= ends

            async def hand_on(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
                with suppress(OSError):
                    while data := await source.read(1_000):
                        to.write(data)
                        await to.drain()
                for one in ends:
                    one.transport.abort()

            await asyncio.gather(hand_on(reader, back), hand_on(there, writer))
            self._ends -= ends


@asynccontextmanager
async def wired() -> AsyncIterator[Wire]:
    """A wire, until the block ends."""
    wire = Wire()
    listening = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.port = listening.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        listening.close()
        wire.cut()
        await listening.wait_closed()


@dataclass(slots=True)
class Follower:
    """The script, as a process that can be killed and started again."""

    address: str
    key: str
    file: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Run it."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(FOLLOW), self.address, str(self.file)),
            env={**os.environ, "CREDITLEDGER_KEY": self.key, "no_proxy": "*"},
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        """Without a chance to say goodbye."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def rows(self) -> list[tuple[object, ...]]:
        """What it has, in the order in which it got it."""
        if not self.file.exists():
            return []
        with closing(sqlite3.connect(self.file)) as database, suppress(sqlite3.OperationalError):
            query = f"SELECT {', '.join(COLUMNS)} FROM transactions ORDER BY rowid"
            return list(database.execute(query))
        return []

    async def has(self, count: int) -> None:
        """Wait until it has so many rows."""
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            while len(self.rows()) < count:  # noqa: ASYNC110 # a file tells nobody that it grew
                await asyncio.sleep(0.05)


async def spend(served: Served, wallets: list[str], part: str) -> None:
    """Postings to these wallets, one after the other."""
    for number in range(POSTINGS):
        posting = {"idempotency_key": f"{part} {number}", "consumption": {"amount": "0.01"}}
        await served.post(wallets[number % len(wallets)], posting)


async def shown(served: Served, key: str, wallet: str) -> list[tuple[object, ...]]:
    """The rows of a wallet's customer, oldest first, as the list has them."""
    found: list[tuple[object, ...]] = []
    token: dict[str, str] = {}
    while True:
        page = await served.body(TRANSACTIONS, key, customer_id=wallet, pageSize=100, **token)
        for row in page["list"]:
            one = {**row, "sequence": int(row["sequence"])}
            found.append(tuple(one[name] for name in COLUMNS))
        if "next_page_token" not in page["paging"]:
            return found[::-1]
        token = {"page_token": page["paging"]["next_page_token"]}


async def test_who_follows_has_every_row_once(database_url: str, tmp_path: Path) -> None:
    """Killed, cut off and left alone by a server that is started anew: no row is missing, none is
    there twice, each wallet's are in order, and they are what the ledger has.
    """
    async with wired() as wire:
        async with serving(database_url) as served:
            wire.lead_to(served)
            key = await served.key("service")
            customers = [await served.customer(f"cus_{name}") for name in ("acme", "beta")]
            wallets = [await served.wallet(customer) for customer in customers]
            for wallet in wallets:
                await served.post(wallet, {"grant": {"amount": "100"}})
            follower = Follower(f"http://127.0.0.1:{wire.port}", key, tmp_path / "mirror.db")
            try:
                await follower.start()
                spending = asyncio.create_task(spend(served, wallets, "seen"))
                await follower.has(5)
                await follower.kill()
                await follower.start()
                await follower.has(20)
                wire.cut()
                await spending
                wire.server = None
                wire.cut()
                await spend(served, wallets, "unseen")
            except BaseException:
                await follower.kill()
                raise
        try:
            async with serving(database_url) as served:
                wire.lead_to(served)
                await spend(served, wallets, "after")
                await follower.has(3 * POSTINGS + len(wallets))
                expected = [await shown(served, key, customer) for customer in customers]
        finally:
            await follower.kill()

    rows = follower.rows()
    found = [[row for row in rows if row[3] == customer] for customer in customers]
    assert expected == found
    assert len(rows) == 3 * POSTINGS + len(wallets)
