"""Exports over gRPC and REST: a stream of pieces of a file, read as fast as the client takes it.

Each step reads a bounded number of rows in a transaction of its own, so neither memory nor the
database feels how long the file is or how slow its reader. Called by the services that export.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zoneinfo import ZoneInfo

from google.api.httpbody_pb2 import HttpBody
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.places import Places
from creditledger.errors import InvalidField, echo
from creditledger.exports import COLUMNS, CONTENT_TYPES, Export, Shown
from creditledger.model import Dimension, Kind
from creditledger.shown import WalletPlace
from creditledger.store import Store, walks
from creditledger.store.reads import Filters
from creditledger.store.walks import Line, Place

#: Exports of one process at the same time.
EXPORTS_MAX = 8
#: Rows read in one transaction.
STEP_ROWS = 2_000
#: Bytes of one message: a row may have 8 kB of metadata and more.
PIECE_BYTES = 256 * 1024
UTC = ZoneInfo("UTC")


class Step(NamedTuple):
    """Rows of one transaction, and what is new of what they refer to."""

    lines: list[Line]
    wallets: dict[int, WalletPlace]
    dimensions: dict[tuple[int, int], Dimension]


@dataclass(slots=True)
class Walk:
    """Rows of these filters, step by step, and what they refer to, of the last steps only."""

    filters: Filters
    kinds: Sequence[Kind] | None = None
    size: int = field(default_factory=lambda: STEP_ROWS)  #: Rows of a step.
    pin: str | None = None
    after: Place | None = None
    _wallets: dict[int, WalletPlace] = field(default_factory=dict)
    _dimensions: dict[tuple[int, int], Dimension] = field(default_factory=dict)

    def step(self, connection: Connection) -> Step:
        """The next rows; none at the end."""
        if self.pin is None:
            self.pin = walks.pin(connection)
        lines = walks.step(
            connection, self.filters, self.pin, self.after, self.size, kinds=self.kinds
        )
        if lines:
            self.after = lines[-1].place
        wallets = {line.wallet for line in lines}
        places = {(line.wallet, line.dimension) for line in lines}
        # What the step before had is mostly what this one has, and no more is kept.
        self._wallets = {n: one for n, one in self._wallets.items() if n in wallets}
        self._wallets |= walks.wallets(connection, wallets - self._wallets.keys())
        self._dimensions = {at: one for at, one in self._dimensions.items() if at in places}
        self._dimensions |= walks.dimensions(connection, places - self._dimensions.keys())
        return Step(lines, self._wallets, self._dimensions)


class Exports:
    """The exports of one process, which are bounded in number."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places = Places("exports", retry_after="5")

    async def stream(
        self, export: Export, walk: Walk, customer_id: str | None
    ) -> AsyncGenerator[HttpBody]:
        """The file in pieces, for a customer or an operator. Raises Overloaded, QueryTooBroad."""
        with self._places.one(EXPORTS_MAX, customer_id):
            type_ = CONTENT_TYPES[export.format]
            step = await self._store.read(walk.step)
            # The first piece says what the others are; it is there even without a row.
            yield HttpBody(content_type=type_, data=export.head())
            while step.lines:
                # The loop has others to serve while the rows become text.
                data = await asyncio.to_thread(export.body, *step)
                for at in range(0, len(data), PIECE_BYTES):
                    yield HttpBody(content_type=type_, data=data[at : at + PIECE_BYTES])
                step = await self._store.read(walk.step)
            yield HttpBody(content_type=type_, data=export.tail())


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
