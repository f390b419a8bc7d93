"""Watches: rows as they are committed, to clients that keep the call open.

Each watch reads for itself, in steps of a bounded number of rows behind its own mark, as fast as
its client takes them: one that stops costs the others nothing. Those that have caught up wait
together, for one look at the end of the ledger tells all of them whether there is more.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from credit.v1 import credit_transaction_service_pb2 as pb
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict
from sqlalchemy import Connection

from creditledger.api.concurrency import Places
from creditledger.api.messages import posting as posting_messages
from creditledger.domain.errors import ShuttingDown
from creditledger.domain.model import Dimension
from creditledger.domain.views import Transaction, WalletPlace
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store
from creditledger.store.read import commit_order, export_walk, transaction_reads
from creditledger.store.read.commit_order import Mark, Passed
from creditledger.store.read.transaction_reads import Filters

#: Watches of one process at the same time.
WATCHES_MAX = 32
#: Rows of one read, wanted or not.
STEP_ROWS = 500
#: The interval of looks at the end of the ledger while a watch waits there.
LOOK_SECONDS = 0.1
#: The pause while no watch waits; the next one that waits ends it.
IDLE_SECONDS = 60.0
#: How often a caller's key is looked at again.
ALLOWED_SECONDS = 2.0
#: Wallets, and dimensions, that a watch remembers before it begins anew.
REMEMBERED_MAX = 10_000
#: Bytes of one message, about: a row may have 8 kB of metadata and more.
PIECE_BYTES = 256 * 1024

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step came to."""

    transactions: list[tuple[Mark, Transaction]]
    mark: Mark  #: Behind them, and behind what was not wanted.
    more: bool


@dataclass(slots=True)
class Watch:
    """The filters of one reader, and the reader's position in the ledger."""

    filters: Filters
    after: Mark | None  #: None: behind what is there when it begins.
    kinds: Collection[int]  #: Empty: all.
    heartbeat_seconds: float
    _wallets: dict[int, WalletPlace] = field(default_factory=dict)
    _dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)

    def step(self, connection: Connection, after: Mark) -> Seen:
        """The next rows behind a mark, as far as they are wanted."""
        step = commit_order.step(connection, after, STEP_ROWS)
        self._remember(connection, step.rows)
        wanted = [row for row in step.rows if self._wants(row)]
        found = transaction_reads.expand(connection, [row.place for row in wanted])
        marks = [row.mark for row in wanted]
        return Seen(list(zip(marks, found, strict=True)), step.mark, step.more)

    def _remember(self, connection: Connection, rows: Iterable[Passed]) -> None:
        """What the filters ask of rows: it never changes."""
        if len(self._wallets) + len(self._dimensions) > REMEMBERED_MAX:
            self._wallets, self._dimensions = {}, {}
        wallets = {row.wallet for row in rows} - self._wallets.keys()
        self._wallets |= export_walk.wallets(connection, wallets)
        if self._asks_dimensions:
            places = {(row.wallet, row.dimension) for row in rows} - self._dimensions.keys()
            self._dimensions |= export_walk.dimensions(connection, places)

    @property
    def _asks_dimensions(self) -> bool:
        return (self.filters.meter_id, self.filters.subscription_id) != (None, None)

    def _wants(self, row: Passed) -> bool:
        filters, wallet = self.filters, self._wallets[row.wallet]
        if wallet.livemode != filters.livemode or (self.kinds and row.kind not in self.kinds):
            return False
        asked: list[tuple[object, object]] = [
            (filters.customer_id, wallet.customer_id),
            (filters.wallet_id, wallet.id),
            (filters.grant, (row.wallet, row.grant)),
        ]
        if self._asks_dimensions:
            dimension = self._dimensions[row.wallet, row.dimension]
            asked += [
                (filters.meter_id, dimension.meter_id),
                (filters.subscription_id, dimension.subscription_id),
            ]
        return all(wanted in (None, found) for wanted, found in asked)


class Watches:
    """The watches of one process, which are bounded in number, and what tells them of news."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = Places("watches", retry_after="5")
        self._closing = False
        self._newest = 0
        self._news = asyncio.Event()
        self._waiting = 0
        self.loop = BackgroundLoop(
            "watches", self._look, interval_seconds=LOOK_SECONDS, failure="watches not told"
        )

    async def close(self) -> None:
        """End them: their clients go on at another server, or at this one's successor."""
        self._closing = True
        self._tell()
        await self.loop.stop()

    async def stream(
        self, watch: Watch, customer_id: str | None, is_allowed: Callable[[], Awaitable[object]]
    ) -> AsyncGenerator[Seen]:
        """What comes, without end; nothing new where a heartbeat is due, and in the beginning.

        `customer_id`: of the caller, if it is a customer. `is_allowed` raises where the caller may
        no longer. Raises InvalidField(after), Overloaded, ShuttingDown, and what the store raises.
        """
        if self._closing:
            raise ShuttingDown
        with self._places.one(WATCHES_MAX, customer_id):
            loop = asyncio.get_running_loop()
            mark = await self._store.read(lambda c: commit_order.begin(c, watch.after))
            yield Seen([], mark, more=True)
            told = asked = loop.time()
            while not self._closing:
                if loop.time() - asked >= ALLOWED_SECONDS:
                    await is_allowed()
                    asked = loop.time()
                seen = await self._store.read(partial(watch.step, after=mark))
                mark = seen.mark
                rest = told + watch.heartbeat_seconds - loop.time()
                if seen.transactions or rest <= 0:
                    yield seen
                    told, rest = loop.time(), watch.heartbeat_seconds
                if not seen.more:
                    await self._wait(mark, min(rest, ALLOWED_SECONDS))
            raise ShuttingDown

    async def _wait(self, mark: Mark, seconds: float) -> None:
        """Until there is something behind the mark, or so long."""
        self._waiting += 1
        if self._waiting == 1:
            self.loop.wake()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not self._closing and self._newest <= mark.position:
                        await self._news.wait()
        finally:
            self._waiting -= 1

    async def _look(self) -> float | None:
        """Look at the end of the ledger, if a watch waits there."""
        if not self._waiting:
            return IDLE_SECONDS
        # If it fails, waiting watches read for themselves when their time is up, and learn why.
        with suppress(Exception):
            newest = await self._store.read(commit_order.newest, urgent=True)
            if newest != self._newest:
                self._newest = newest
                self._tell()
        return None

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def messages(seen: Seen) -> Iterator[pb.CreditTransactionServiceWatchResponse]:
    """What was seen, as messages of a bounded size; the last one's cursor is behind it all."""
    message, size = pb.CreditTransactionServiceWatchResponse(), 0
    for mark, found in seen.transactions:
        one = posting_messages.expanded(found)
        if size > PIECE_BYTES:
            yield message
            message, size = pb.CreditTransactionServiceWatchResponse(), 0
        message.transactions.append(one)
        message.cursor = mark.text()
        size += one.ByteSize()
    message.cursor = seen.mark.text()
    yield message


def events(seen: Seen) -> Iterator[HttpBody]:
    """What was seen as Server-Sent Events, in pieces of a bounded size.

    The last one has no data: a browser keeps its id and shows no event.
    """
    data = bytearray()
    for mark, found in seen.transactions:
        fields = MessageToDict(
            posting_messages.expanded(found), always_print_fields_with_no_presence=True
        )
        body = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        data += f"id: {mark.text()}\ndata: {body}\n\n".encode()
        if len(data) > PIECE_BYTES:
            yield HttpBody(content_type=EVENTS, data=bytes(data))
            data.clear()
    data += f"id: {seen.mark.text()}\n\n".encode()
    yield HttpBody(content_type=EVENTS, data=bytes(data))
