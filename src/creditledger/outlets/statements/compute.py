"""Statements made and closed: the request, what is written down before, and what is read for it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from zoneinfo import ZoneInfo

from credit.v1 import statement_service_pb2 as pb
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.concurrency import Places
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock as time
from creditledger.domain import ids, statements
from creditledger.domain.billing_periods import Bucket
from creditledger.domain.commands import CLOSE, Sweep
from creditledger.domain.errors import Conflict, InvalidField, MissingField, PeriodNotNext
from creditledger.domain.model import Posting, Wallet, repayments, standing
from creditledger.domain.statements import About, Closing, Document, Figures, GrantFacts
from creditledger.domain.views import WalletPlace
from creditledger.engine import replay
from creditledger.engine.ledger import Ledger
from creditledger.store import Store, wallet_keys
from creditledger.store.registry import records
from creditledger.store.statements import basis as statement_basis
from creditledger.store.statements import closed as closed_statements
from creditledger.store.statements.basis import NAMED_MAX, Basis, StatementSums
from creditledger.store.statements.closed import Closed
from creditledger.store.wallet_keys import Binding

#: Statements added up by one process at the same time.
STATEMENTS_MAX = 4
#: The last moment that is a year of four digits in every zone.
MOMENT_MAX = 253_402_300_799_000 - 2 * time.DAY

#: How far new data of a zone moves the beginning of a month at most: across the date line.
MOVED_MS_MAX = 26 * time.HOUR
#: Of a time's text, what the clocks of the zone show: without the offset.
_WALL = len("2026-09-01T00:00:00.000")


@dataclass(frozen=True, slots=True)
class StatementPeriod:
    """Which wallet, and which period of it."""

    wallet_id: str
    bucket: Bucket
    zone: ZoneInfo
    is_month: bool

    def fault(self, name: str) -> str:
        """The field that says where the period begins or ends."""
        return "month" if self.is_month else name


def period(
    request: pb.StatementServiceGetRequest
    | pb.StatementServiceCloseRequest
    | pb.StatementServiceRenderRequest,
) -> StatementPeriod:
    """What a request asks for. Raises InvalidField, MissingField."""
    wallet_id = fields.reference("wal", request.wallet_id, field="wallet_id")
    zone = time.zone(fields.optional(request, "time_zone", "UTC"), field="time_zone")
    start = fields.optional_time(request, "start", field="start")
    end = fields.optional_time(request, "end", field="end")
    if request.HasField("month"):
        if start is not None or end is not None:
            raise InvalidField("month excludes start and end", param="month")
        bucket = statements.month(request.month, zone, field="month")
        return StatementPeriod(wallet_id, bucket, zone, is_month=True)
    if start is None or end is None:
        raise MissingField("start" if start is None else "end")
    for name, moment in (("start", start), ("end", end)):
        fields.number(moment, least=0, most=MOMENT_MAX, field=name)
    if start >= end:
        raise InvalidField("end must be after start", param="end")
    return StatementPeriod(wallet_id, Bucket(start, end), zone, is_month=False)


class Statements:
    """The statements of one process; those that are being added up are bounded in number."""

    def __init__(self, store: Store, ledger: Ledger, clock: Callable[[], int]) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._places = Places("statements", retry_after="2")

    async def get(self, wanted: StatementPeriod, caller: Caller) -> Closed | Document:
        """The statement of a period: as it was closed, or else as of now.

        Raises NotFound, Overloaded, ResultTooLarge.
        """
        wanted = await self._as_closed(wanted, caller)
        found = await self._store.read(lambda c: _closed_as(c, wanted, caller))
        return await self.open(wanted, caller) if found is None else found

    async def open(self, wanted: StatementPeriod, caller: Caller) -> Document:
        """The statement of a period as of now, closed or not. Raises as `get` does."""
        with self._places.one(STATEMENTS_MAX, caller.customer_id):
            wanted = await self._as_closed(wanted, caller)
            await self._write_down(wanted, caller)
            basis = await self._store.read(lambda c: _basis(c, wanted, caller))
            figures = await self._figures(basis, wanted)
            return await asyncio.to_thread(statements.document, _about(basis, wanted), figures)

    async def close(
        self, wanted: StatementPeriod, caller: Caller, key: str | None = None
    ) -> Closed:
        """Close a period, or answer how it was closed. As `open`, and PeriodNotNext, Conflict.

        `key`: an idempotency key of the wallet, bound with the statement. Raises
        IdempotencyKeyReused.
        """
        binding = Binding(key, CLOSE[0], _terms(wanted), caller.number)
        with self._places.one(STATEMENTS_MAX, caller.customer_id):
            done = await self._store.read(lambda c: _closed_under(c, wanted, caller, binding))
            if done is not None:
                return done
            wanted = await self._as_closed(wanted, caller)
            await self._write_down(wanted, caller)
            basis = await self._store.read(lambda c: _basis(c, wanted, caller))
            before = await self._store.read(lambda c: _closed_before(c, basis, wanted))
            if before is not None:
                return await self._bound(before.wallet, binding, lambda _: before)
            now = self._clock()
            if wanted.bucket.end > now:
                field = wanted.fault("end")
                raise InvalidField(f"{field}: only what has ended can be closed", param=field)
            if repayments(basis.wallet, wanted.bucket.end - 1):
                raise Conflict("the wallet's time is not past the period yet; try again")
            figures = await self._figures(basis, wanted)
            new = await asyncio.to_thread(_closed, basis, wanted, figures, caller, now)

            def add(connection: Connection) -> Closed:
                written = closed_statements.add(connection, new)
                if (written.starts_at, written.ends_at) != (new.starts_at, new.ends_at):
                    raise Conflict("another period was closed at the same time; look at the list")
                return written

            return await self._bound(new.wallet, binding, add)

    async def _bound(
        self, wallet: int, binding: Binding, close: Callable[[Connection], Closed]
    ) -> Closed:
        def again(connection: Connection, posting: Posting) -> Closed:
            return _closed_by(connection, posting, binding)

        def source(one: Closed) -> dict[str, str]:
            return {"statement_id": ids.compose("stm", one.wallet, one.number)}

        return await self._store.write(
            lambda c: wallet_keys.once(c, wallet, binding, close, again, source)
        )

    async def _as_closed(self, wanted: StatementPeriod, caller: Caller) -> StatementPeriod:
        """The period; a month as it was closed, or next to that, if its zone's data has changed."""
        if not wanted.is_month or wanted.zone.key == "UTC":
            return wanted
        return await self._store.read(lambda c: _month(c, wanted, caller))

    async def _write_down(self, wanted: StatementPeriod, caller: Caller) -> None:
        """What is due: a statement is of rows and repayments that are written."""
        now = self._clock()

        def due(connection: Connection) -> bool:
            wallet = _wallet(connection, wanted, caller)
            expired = standing(wallet, now).balance != wallet.running_balance
            return expired or bool(repayments(wallet, now))

        if await self._store.read(due):
            (answer,) = await self._ledger.sweep([Sweep(wanted.wallet_id)])
            if isinstance(answer, Exception):
                raise answer

    async def _figures(self, basis: Basis, wanted: StatementPeriod) -> Figures:
        sums = StatementSums()
        for step in statement_basis.steps(basis):
            read = partial(statement_basis.step, one=step, period=wanted.bucket)
            sums.add(await self._store.read(read))
        known: dict[int, GrantFacts] = {}
        numbers = statement_basis.named(basis, sums.moved)
        for at in range(0, len(numbers), NAMED_MAX):
            some = numbers[at : at + NAMED_MAX]
            look = partial(statement_basis.facts, wallet=basis.wallet.number, numbers=some)
            known |= await self._store.read(look)
        # The loop has others to serve meanwhile.
        return await asyncio.to_thread(statement_basis.add_up, basis, sums, known, wanted.bucket)


def _wallet(connection: Connection, wanted: StatementPeriod, caller: Caller) -> Wallet:
    return posting_messages.own(
        records.wallet(connection, wanted.wallet_id), wanted.wallet_id, caller
    )


def _month(connection: Connection, wanted: StatementPeriod, caller: Caller) -> StatementPeriod:
    """The month as the data of its zone had it when it, or the month before it, was closed.

    What a closed statement says of its own first and last moment tells: there they were the first
    of a month at midnight.
    """
    wallet, bucket = _wallet(connection, wanted, caller), wanted.bucket
    begins = time.text_in(bucket.start, wanted.zone)[:_WALL]
    ends = time.text_in(bucket.end, wanted.zone)[:_WALL]
    for mark in reversed(closed_statements.marks(connection, wallet.number)):
        starts_there = abs(mark.starts_at - bucket.start) <= MOVED_MS_MAX
        ends_there = abs(mark.ends_at - bucket.start) <= MOVED_MS_MAX
        if not (starts_there or ends_there):
            continue
        one = closed_statements.one(connection, wallet.number, mark.number)
        said = {} if one is None else json.loads(one.content)
        if said.get("time_zone") != wanted.zone.key:
            continue
        if (said["start"][:_WALL], said["end"][:_WALL]) == (begins, ends):
            return replace(wanted, bucket=Bucket(mark.starts_at, mark.ends_at))
        if said["end"][:_WALL] == begins:
            return replace(wanted, bucket=Bucket(mark.ends_at, bucket.end))
    return wanted


def _basis(connection: Connection, wanted: StatementPeriod, caller: Caller) -> Basis:
    return statement_basis.basis(
        connection, _wallet(connection, wanted, caller), wanted.bucket.start
    )


def _terms(wanted: StatementPeriod) -> dict[str, object]:
    """What was asked for; new data of the zone does not change it."""
    if wanted.is_month:
        month = time.text_in(wanted.bucket.start, wanted.zone)[: len("2026-09")]
        return {"month": month, "time_zone": wanted.zone.key}
    bucket = wanted.bucket
    return {"start": bucket.start, "end": bucket.end, "time_zone": wanted.zone.key}


def _closed_under(
    connection: Connection, wanted: StatementPeriod, caller: Caller, binding: Binding
) -> Closed | None:
    """The statement that the key has closed already. Raises IdempotencyKeyReused."""
    wallet = _wallet(connection, wanted, caller)
    posting = wallet_keys.found(connection, wallet.number, binding.key)
    return None if posting is None else _closed_by(connection, posting, binding)


def _closed_by(connection: Connection, posting: Posting, binding: Binding) -> Closed:
    replay.check_change(binding.operation, binding.terms, posting)
    place = ids.resolve("stm", posting.source["statement_id"])
    found = None if place is None else closed_statements.one(connection, *place)
    assert found is not None, "a closed statement is never deleted"
    return found


def _closed_as(connection: Connection, wanted: StatementPeriod, caller: Caller) -> Closed | None:
    """The closed statement of exactly this period, in whichever zone it was asked for."""
    wallet, bucket = _wallet(connection, wanted, caller), wanted.bucket
    for mark in closed_statements.marks(connection, wallet.number):
        if (mark.starts_at, mark.ends_at) == (bucket.start, bucket.end):
            return closed_statements.one(connection, wallet.number, mark.number)
    return None


def _closed_before(connection: Connection, basis: Basis, wanted: StatementPeriod) -> Closed | None:
    """The period's statement, if it is closed. Raises PeriodNotNext if it cannot be the next."""
    bucket = wanted.bucket
    for mark in basis.marks:
        if (mark.starts_at, mark.ends_at) == (bucket.start, bucket.end):
            return closed_statements.one(connection, basis.wallet.number, mark.number)
    if basis.marks and basis.marks[-1].ends_at != bucket.start:
        next_start = time.text_in(basis.marks[-1].ends_at, wanted.zone)
        raise PeriodNotNext(
            f"the next period to close begins at {next_start}",
            param=wanted.fault("start"),
            next_start=next_start,
        )
    return None


def _about(basis: Basis, wanted: StatementPeriod) -> About:
    wallet = basis.wallet
    return About(
        wallet_number=wallet.number,
        wallet=WalletPlace(
            wallet.id, wallet.customer_id, wallet.currency, wallet.scale, wallet.livemode
        ),
        customer_name=basis.customer_name,
        period=wanted.bucket,
        zone=wanted.zone,
        sequence=wallet.sequence,
    )


def _closed(
    basis: Basis, wanted: StatementPeriod, figures: Figures, caller: Caller, now: int
) -> Closed:
    last = basis.marks[-1] if basis.marks else None
    number = 1 if last is None else last.number + 1
    closing = Closing(
        number=number,
        closed_at=now,
        closed_by=None if caller.number is None else caller.id,
        previous_sha256=None if last is None else last.sha256,
    )
    about = replace(_about(basis, wanted), closing=closing)
    content = statements.canonical(statements.document(about, figures))
    return Closed(
        wallet=basis.wallet.number,
        number=number,
        starts_at=wanted.bucket.start,
        ends_at=wanted.bucket.end,
        time_zone=wanted.zone.key,
        closed_sequence=basis.wallet.sequence,
        opening_balance=figures.opening_balance,
        closing_balance=figures.closing_balance,
        closed_at=now,
        closed_by=caller.number,
        content=content,
        sha256=statements.digest(content),
    )
