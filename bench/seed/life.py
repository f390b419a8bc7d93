"""The life of one made-up wallet, posted to a real ledger in a scratch database and read back.

It has grants of several kinds, consumption of several keys and products, refunds, adjustments and
expirations. multiply.py writes its rows for every wallet, so the result is as consistent as a
ledger that was posted, at a hundredth of the cost.
"""

import json
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select

from bench.seed.multiply import Life, Rows, Section
from bench.seed.registry import METER, register, register_meter, wallet_id
from creditledger.domain import clock, ids
from creditledger.domain.commands import Command, Operation, Usage
from creditledger.domain.model import NEVER, Category, Kind, Status
from creditledger.domain.operations import Adjust, Consume, GiveGrant, Refund
from creditledger.engine.batch import Posted
from creditledger.engine.ledger import Ledger
from creditledger.outlets.folder import Folder
from creditledger.store import Store, look, migrate, migrations, schema

#: What every wallet has from its beginning and spends last.
RESERVES, RESERVE, RESERVE_PRIORITY = 3, "1000000.00", 90
#: Rows that a month, the stretch which is lived again and again, has about: enough for all that
#: happens in one, few where a wallet has little more in its whole life.
MONTH_ROWS_MIN, MONTH_ROWS_MAX = 100, 1_000
#: Months that are lived through; what makes them alike is told by the first three.
MONTHS = 3
#: Labels of usage.
KEYS, PRODUCTS = 3, 4
#: The scratch wallet begins here; where the life really begins is said when it is multiplied.
BEGIN = 1_735_689_600_000


# --- living: what is posted to the scratch wallet -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calendar:
    """When things happen. A month is a number of quarters of an hour, and what it is called."""

    month_postings: int
    month_quarters: int
    slot: int  #: Milliseconds between postings of one quarter.

    @classmethod
    def of(cls, rows: int, days: int) -> "Calendar":
        """For a wallet that is to have so many rows in so many days."""
        quarters = days * clock.DAY // clock.QUARTER - RESERVES
        # At least as many that a year of months, each of whole quarters, holds them all.
        most = max(MONTH_ROWS_MAX, 2 * rows // quarters)
        postings = min(max(rows // 10, MONTH_ROWS_MIN), most)
        month_quarters = max(1, quarters // (rows // postings + 1))
        # A month may have more rows than postings; a last stretch may have a posting for each.
        slot = clock.QUARTER // (2 * postings // month_quarters + 1)
        if not slot:
            raise ValueError("so many rows need more days")
        return cls(postings, month_quarters, slot)

    @property
    def month(self) -> int:
        """Milliseconds."""
        return self.month_quarters * clock.QUARTER

    @property
    def head(self) -> int:
        """Milliseconds before the first month: a quarter for each reserve."""
        return RESERVES * clock.QUARTER

    def moments(self, begin: int, postings: int) -> list[int]:
        """The times of postings spread over a month that begins then."""
        found: list[int] = []
        for i in range(postings):
            quarter = begin + i * self.month_quarters // postings * clock.QUARTER
            behind = found[-1] + self.slot if found else begin
            found.append(max(quarter, behind))
        return found


@dataclass(slots=True)
class _Scratch:
    """A wallet of a scratch database, and a clock that is set before each posting."""

    ledger: Ledger
    store: Store
    calendar: Calendar
    now: int = BEGIN
    sequence: int = 0
    posted: int = 0

    async def post(
        self, now: int, operation: Operation, *, effective_at: int | None = None
    ) -> Posted:
        """A posting at that moment."""
        self.now = now
        self.posted += 1
        command = Command(
            wallet_id=wallet_id(0),
            # Told from those of another life on a copy of the database.
            idempotency_key=f"{now}:{self.posted}",
            operation=operation,
            livemode=True,
            posted_by=None,
            actor="ops@example.com",
            effective_at=effective_at,
        )
        posted = await self.ledger.post(command)
        self.sequence = posted.wallet.sequence
        return posted

    async def begin(self, begin: int, reserves: int) -> None:
        """The grants that a wallet has from its beginning."""
        for i in range(reserves):
            grant = _grant(RESERVE, Kind.TOPUP, RESERVE_PRIORITY, "Reserve", None)
            await self.post(begin + i * clock.QUARTER, grant)

    async def month(self, begin: int) -> None:
        """All that happens in one. It leaves of the wallet's credit what it found."""
        moments = self.calendar.moments(begin, self.calendar.month_postings)
        spent = len(moments) * _AMOUNT_MEAN / 10_000
        end = moments[-1]
        plan = _grant(f"{spent * 0.5:.2f}", Kind.SUBSCRIPTION_RENEW, 10, "Plan", end)
        welcome = _grant(
            f"{spent * 0.2:.2f}", Kind.ADMIN_CREDIT, 5, "Welcome", moments[len(moments) // 10]
        )
        topup = _grant(f"{spent * 0.6:.2f}", Kind.TOPUP, 50, "Top-up", end)
        for now, grant in zip(moments, (plan, welcome, topup), strict=False):
            await self.post(now, grant)
        last = None
        for i, now in enumerate(moments[3:-1], 3):
            last = await self._act(i, now, begin, last)
        # What does not expire is spent, so that the next month begins like this one.
        self.now = end
        left = await self.store.read(_left)
        await self.post(end, Consume(f"{left / 10**9:.9f}") if left else _consumption(0))

    async def _act(self, i: int, now: int, begin: int, last: Posted | None) -> Posted | None:
        """The i-th posting of a month; answers the consumption that may be refunded next."""
        if last is not None and i % 37 == 20:
            await self.post(now, Refund(_id(last)))
            return None
        if last is not None and i % 53 == 30:
            await self.post(now, Refund(_id(last), "0.0001"))
            return None
        if i % 71 == 40:
            await self.post(now, Adjust("-0.0250", {}))
            return last
        if i % 71 == 41:
            await self.post(now, Adjust("0.0100", {"actor": "support@example.com"}))
            return last
        late = now - clock.QUARTER if i % 11 == 5 and now - clock.QUARTER >= begin else None
        return await self.post(now, _consumption(i), effective_at=late)

    async def end(self, begin: int, rows: int) -> None:
        """So many rows more, each a posting."""
        for i, now in enumerate(self.calendar.moments(begin, rows)):
            await self.post(now, _consumption(i))
        await Folder(self.store, interval_seconds=1).fold_all()


#: Of consumptions, in 1/10000.
_AMOUNT_MEAN = 128


def _consumption(i: int) -> Consume:
    chance = random.Random(i)  # noqa: S311 # the same every month
    product = chance.randrange(PRODUCTS)
    quantities = (chance.randint(100, 4_000), chance.randint(10, 900))
    usage = Usage(
        api_key_id=f"apk_seed{chance.randrange(KEYS)}",
        product_id=f"chat-{product}",
        product_name=f"Chat {product}",
        category="web_search" if product == PRODUCTS - 1 else "llm",
        billing_method=1,
        quantities=quantities,
        base_prices=(25, 100),
        discount_prices=(20, 80),
        price_precision=1_000,
    )
    amount = chance.randint(1, 2 * _AMOUNT_MEAN)
    return Consume(
        f"{amount / 10_000:.4f}",
        meter_id=METER if product % 2 else None,
        usage=None if i % 29 == 7 else usage,
    )


def _grant(amount: str, kind: Kind, priority: int, name: str, expires_at: int | None) -> GiveGrant:
    promotional = kind is Kind.ADMIN_CREDIT
    return GiveGrant(
        amount=amount,
        kind=kind,
        category=Category.PROMOTIONAL if promotional else Category.PAID,
        priority=priority,
        name=name,
        begins_at=None,
        expires_at=expires_at,
        source={} if promotional else {"provider": "stripe", "method": "card_visa_4242"},
    )


def _id(posted: Posted) -> str:
    return ids.compose("pst", posted.posting.wallet, posted.posting.number)


def _left(connection: Connection) -> int:
    g = schema.grants.c
    lasting = select(func.coalesce(func.sum(g.remaining), 0)).where(
        g.expires_at.is_(None), g.priority < RESERVE_PRIORITY
    )
    return int(connection.execute(lasting).scalar_one())


# --- from scratch databases to a life -------------------------------------------------------------


async def life(rows: int, days: int, *, until: int) -> Life:
    """A life of so many rows in so many days, that ends in the quarter of an hour before `until`.

    Raises ValueError if so many rows cannot be in so many days.
    """
    calendar = Calendar.of(rows, days)
    begins = [BEGIN + calendar.head + i * calendar.month for i in range(MONTHS + 2)]
    with tempfile.TemporaryDirectory() as name:
        fewer, more = Path(name, "fewer.db"), Path(name, "more.db")
        await _prepare(fewer)
        async with _opened(fewer, calendar) as scratch:
            await scratch.begin(BEGIN, min(RESERVES, rows))
            ends = [0, scratch.sequence]
            if rows - RESERVES < calendar.month_postings:
                await scratch.end(begins[0], rows - scratch.sequence)
                return _short(await look(_url(fewer), _Book), calendar, until)
            for begin in begins[:MONTHS]:
                await scratch.month(begin)
                ends.append(scratch.sequence)
        months, left = divmod(rows - ends[1], ends[2] - ends[1])
        shutil.copyfile(fewer, more)
        async with _opened(fewer, calendar) as scratch:
            await scratch.end(begins[MONTHS], left)
        async with _opened(more, calendar) as scratch:
            await scratch.month(begins[MONTHS])
            ends.append(scratch.sequence)
            await scratch.end(begins[MONTHS + 1], left)
        books = [await look(_url(path), _Book) for path in (fewer, more)]
    length = calendar.head + (months + 1) * calendar.month
    begin = until // clock.QUARTER * clock.QUARTER - length
    return _life(books, ends, [BEGIN, *begins, NEVER], months, calendar.slot, begin - BEGIN)


class _Book:
    """All rows of a scratch database that are the wallet's."""

    def __init__(self, connection: Connection) -> None:
        def rows(table: Table) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(select(table)).mappings()]

        self.dimensions = rows(schema.dimensions)
        self.states = rows(schema.wallet_states)
        self._postings = rows(schema.postings)
        self._transactions = rows(schema.transactions)
        self._grants = rows(schema.grants)
        self._folds = rows(schema.folds)
        self.rows = len(self._transactions)

    def stretch(self, low: int, high: int, begin: int, end: int) -> dict[str, Rows]:
        """What lies behind the sequence `low` up to `high`, in the time [begin, end)."""
        rows = [row for row in self._transactions if low < row["sequence"] <= high]
        at = {row["posting_number"]: row["created_at"] for row in rows}
        postings = [dict(one) for one in self._postings if one["number"] in at]
        for posting in postings:
            terms = json.loads(posting["terms"] or "{}")
            posting |= {"at": at[posting["number"]], "ends_at": terms.get("grant.expires_at")}
        for _, some in groupby(postings, key=itemgetter("at")):
            group = list(some)
            for posting in group:
                posting["group_number"] = group[0]["number"]
                posting["group_sequence"] = group[0]["first_sequence"]
                posting["group_rows"] = sum(one["row_count"] for one in group)
        quarters = range(begin // clock.QUARTER, end // clock.QUARTER)
        return {
            "postings": postings,
            "transactions": rows,
            "grants": [row for row in self._grants if low < row["number"] <= high],
            "folds": [row for row in self._folds if row["quarter"] in quarters],
        }


def _life(
    books: list[_Book], ends: list[int], begins: list[int], months: int, slot: int, moved: int
) -> Life:
    """`ends`: sequences at the end of the head and of each month; `begins`: of head and months."""
    fewer, more = books
    parts = [
        more.stretch(low, high, begin, end)
        for low, high, begin, end in zip(
            ends, [*ends[1:], more.rows], begins[:-1], begins[1:], strict=True
        )
    ]
    head, *all_months, end = parts
    first, second, third, *_ = all_months
    step = _steps(first, second)
    assert step == _steps(second, third), "a month leaves something behind"
    time = months - MONTHS
    begin_of_fewer = fewer.stretch(ends[0], ends[1], begins[0], begins[1])
    end_of_fewer = fewer.stretch(ends[-2], fewer.rows, begins[-3], NEVER)
    sections = [
        _section(begin_of_fewer, head, time, 1),
        _section(first, second, 0, months),
        _section(end_of_fewer, end, time, 1),
    ]
    return Life(
        sections=sections,
        dimensions=more.dimensions,
        state=(fewer.states, more.states),
        time=time,
        rows=fewer.rows + time * len(first["transactions"]),
        moved=moved,
        slot=slot,
    )


def _short(book: _Book, calendar: Calendar, until: int) -> Life:
    """The life of a wallet that has not as many rows as a month."""
    stretch = book.stretch(0, book.rows, BEGIN, NEVER)
    return Life(
        sections=[_section(stretch, stretch, 0, 1)],
        dimensions=book.dimensions,
        state=(book.states, book.states),
        time=0,
        rows=book.rows,
        moved=(until - BEGIN) // clock.QUARTER * clock.QUARTER - calendar.head - calendar.month,
        slot=calendar.slot,
    )


def _section(first: dict[str, Rows], second: dict[str, Rows], start: int, times: int) -> Section:
    return Section(
        **{name: (first[name], second[name]) for name in first}, start=start, times=times
    )


def _steps(first: dict[str, Rows], second: dict[str, Rows]) -> list[dict[str, object]]:
    """What every number of the second has more than the first; texts and nothing as they are."""
    return [
        {
            name: again[name] - value if isinstance(value, int) else value is None
            for name, value in row.items()
        }
        for table in first
        for row, again in zip(first[table], second[table], strict=True)
    ]


def _url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def _prepare(path: Path) -> None:
    def change(connection: Connection) -> None:
        migrations.migrate(connection)
        register(connection, 0, 1, at=BEGIN)
        register_meter(connection, at=BEGIN)
        connection.execute(
            insert(schema.wallet_states).values(
                wallet_number=1,
                status=Status.ACTIVE.value,
                overdraft_limit=0,
                metadata="{}",
                updated_at=BEGIN,
            )
        )

    await migrate(_url(path), change)


@asynccontextmanager
async def _opened(path: Path, calendar: Calendar) -> AsyncIterator[_Scratch]:
    store = Store(_url(path), clock=lambda: scratch.now)
    await store.open()
    ledger = Ledger(
        store,
        queue_max=1_000,
        backdating_ms_max=clock.DAY,
        on_disk_failure=lambda: None,
    )
    await ledger.start()
    scratch = _Scratch(ledger, store, calendar)
    try:
        yield scratch
    finally:
        await ledger.close()
        await store.close()
