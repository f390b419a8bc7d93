"""Exports over gRPC and REST: a stream of pieces of a file, read as fast as the client takes it.

Each step reads a bounded number of rows in a transaction of its own, so neither memory nor the
database feels how long the file is or how slow its reader.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zoneinfo import ZoneInfo

import structlog
from google.api.httpbody_pb2 import HttpBody
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.concurrency import Places
from creditledger.api.rpc import send_headers
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.errors import InvalidField, QueryTooBroad, echo
from creditledger.domain.model import Dimension, Kind
from creditledger.domain.views import WalletPlace
from creditledger.outlets.exports.files import (
    COLUMNS,
    CONTENT_TYPES,
    EXCEL,
    PLAIN,
    Dialect,
    Export,
    Shown,
)
from creditledger.store import Store, finished_exports
from creditledger.store.finished_exports import Finished
from creditledger.store.read import export_walk, lists
from creditledger.store.read.export_walk import ExportPlace, ExportRow
from creditledger.store.read.transaction_reads import Filters, wallets_of

#: Exports of one process at the same time.
EXPORTS_MAX = 8
#: Rows read in one transaction.
STEP_ROWS = 2_000
#: Bytes of one message: a row may have 8 kB of metadata and more.
PIECE_BYTES = 256 * 1024
UTC = ZoneInfo("UTC")
#: Headers of the answer: the id by which the digest is asked for, and the number of rows.
ID_HEADER, ROWS_HEADER = "x-export-id", "x-export-rows"

log = structlog.get_logger()


class ExportStep(NamedTuple):
    """Rows of one transaction, and what is new of what they refer to."""

    lines: list[ExportRow]
    wallets: dict[int, WalletPlace]
    dimensions: dict[tuple[int, int], Dimension]


@dataclass(slots=True)
class Walk:
    """Rows of these filters, step by step, and what they refer to, of the last steps only."""

    filters: Filters
    kinds: Sequence[Kind] | None = None
    size: int = field(default_factory=lambda: STEP_ROWS)  #: Rows of a step.
    pin: str | None = None
    after: ExportPlace | None = None
    _wallets: dict[int, WalletPlace] = field(default_factory=dict)
    _dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)

    def count(self, connection: Connection) -> int:
        """The number of rows of the whole walk, which begins here."""
        self.pin = export_walk.pin(connection)
        if self.kinds is None:
            return lists.page(connection, self.filters, size=1, offset=0).count
        wallets = [(number, last) for number, last, _ in wallets_of(connection, self.filters) or ()]
        start, end = self.filters.start, self.filters.end
        total, _ = lists.kind_pages(
            connection, wallets, self.kinds, start=start, end=end, size=1, offset=0
        )
        return total

    def step(self, connection: Connection) -> ExportStep:
        """The next rows; none at the end."""
        if self.pin is None:
            self.pin = export_walk.pin(connection)
        lines = export_walk.step(
            connection, self.filters, self.pin, self.after, self.size, kinds=self.kinds
        )
        if lines:
            self.after = lines[-1].place
        wallets = {line.wallet for line in lines}
        places = {(line.wallet, line.dimension) for line in lines}
        # What the step before had is mostly what this one has, and no more is kept.
        self._wallets = {n: one for n, one in self._wallets.items() if n in wallets}
        self._wallets |= export_walk.wallets(connection, wallets - self._wallets.keys())
        self._dimensions = {at: one for at, one in self._dimensions.items() if at in places}
        self._dimensions |= export_walk.dimensions(connection, places - self._dimensions.keys())
        return ExportStep(lines, self._wallets, self._dimensions)


class Exports:
    """The exports of one process, which are bounded in number."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._places = Places("exports", retry_after="5")

    async def stream(
        self, export: Export, walk: Walk, caller: Caller, *, name: str, digest_line: bool
    ) -> AsyncGenerator[HttpBody]:
        """The file in pieces. `name`: what the file is of, as its name begins.

        Raises Overloaded, QueryTooBroad.
        """
        with self._places.one(EXPORTS_MAX, caller.customer_id):
            type_ = CONTENT_TYPES[export.format]
            id_ = ids.random("exp")
            file = file_name(name, walk.filters, export, self._clock())
            headers = [(ID_HEADER, id_), attachment(file)]
            try:
                headers.append((ROWS_HEADER, str(await self._store.read(walk.count))))
            except QueryTooBroad:  # to find the rows step by step may still be possible
                walk.pin = None
            step = await self._store.read(walk.step)
            await send_headers(*headers)
            # The first piece says what the others are; it is there even without a row.
            yield HttpBody(content_type=type_, data=export.head())
            while step.lines:
                # The loop has others to serve while the rows become text.
                data = await asyncio.to_thread(export.body, *step)
                for at in range(0, len(data), PIECE_BYTES):
                    yield HttpBody(content_type=type_, data=data[at : at + PIECE_BYTES])
                step = await self._store.read(walk.step)
            last = export.digest_line() if digest_line else b""
            # Before the end of the stream: a client that has the whole file may ask at once.
            await self._keep(id_, export, walk, caller)
            if last:
                yield HttpBody(content_type=type_, data=last)

    async def _keep(self, id_: str, export: Export, walk: Walk, caller: Caller) -> None:
        finished = Finished(
            id=id_,
            key_id=caller.id,
            customer_id=caller.customer_id,
            livemode=walk.filters.livemode,
            finished_at=self._clock(),
            rows=export.rows,
            sha256=export.sha256,
        )
        try:
            await self._store.write(lambda c: finished_exports.add(c, finished))
        except Exception:
            # The client has all rows; it only cannot ask for the digest.
            log.warning("export not kept", export=id_, exc_info=True)

    async def finished(self, id_: str, caller: Caller) -> Finished | None:
        """An export that ended in the last 24 hours, if the caller may see it."""
        found = await self._store.read(lambda c: finished_exports.one(c, id_, self._clock()))
        if found is None or caller.livemode not in (None, found.livemode):
            return None
        if caller.customer_id not in (None, found.customer_id):
            return None
        return found


def columns(names: str) -> dict[str, Callable[[Shown], object]]:
    """The columns named in a text with commas between, in that order; all for an empty one."""
    if not names:
        return dict(COLUMNS)
    found = {}
    for name in names.split(","):
        if name in found:
            raise InvalidField(f"columns names {echo(name)} twice", param="columns")
        found[name] = fields.word(name, COLUMNS, field="columns")
    return found


def dialect(excel: str | None, format_: str) -> Dialect:
    """How a CSV is written: for an Excel with this decimal mark, or plain. Raises InvalidField."""
    if excel is None:
        return PLAIN
    if format_ != "csv":
        raise InvalidField(f"excel is for csv, not for {format_}", param="excel")
    return fields.word(excel, EXCEL, field="excel")


def file_name(name: str, filters: Filters, export: Export, now: int) -> str:
    """What a client calls the file: what it is of, and its first and last day in its zone."""
    last = now if filters.end is None else max(0, filters.end - 1)
    days = [_day(at, export.zone) for at in (filters.start, last) if at is not None]
    mode = [] if filters.livemode else ["test"]
    # An id of a customer has no character that a header or a file system would not take.
    customers = [] if filters.customer_id is None else [filters.customer_id]
    return f"{'_'.join([name, *mode, *customers, *days])}.{export.format}"


def _day(moment: int, zone: ZoneInfo) -> str:
    return time.text_in(moment, zone)[: len("2026-01-31")]


def attachment(file: str) -> tuple[str, str]:
    """The header that makes a browser save the answer under this name."""
    return "content-disposition", f'attachment; filename="{file}"'
