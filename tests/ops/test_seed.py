"""A made-up ledger is a ledger: it verifies, has everything in it, and goes on like any other."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from bench.seed.fill import NotEmpty, fill
from bench.seed.registry import wallet_id
from sqlalchemy import func, select

from creditledger import store
from creditledger.domain import clock
from creditledger.domain.model import Kind
from creditledger.store import schema
from tests.support.commands import PATIENCE_SECONDS, environment
from tests.support.databases import execute
from tests.support.setup import command as posting
from tests.support.setup import consume, findings, migrate, opened, refund, sqlite_url
from tests.support.statements_recorded import LARGE

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

t, p, g, s = (
    schema.transactions.c,
    schema.postings.c,
    schema.grants.c,
    schema.wallet_states.c,
)


async def seeded(url: str, rows: int, wallets: int, days: int = 365) -> list[tuple[int, int]]:
    """The progress that was told; the ledger verifies when the test is over."""
    told: list[tuple[int, int]] = []
    written = await fill(
        url,
        rows=rows,
        wallets=wallets,
        days=days,
        on_progress=lambda done, of: told.append((done, of)),
    )
    assert written == rows // wallets * wallets
    return told


@pytest.mark.parametrize(
    ("rows", "wallets"), [(1, 1), (20, 10), (6, 2), (30, 3), (1_000, 3), (4_000, 10)]
)
async def test_every_wallet_has_its_share(database_url: str, rows: int, wallets: int) -> None:
    """As many rows as asked for, rounded down to a multiple of the wallets; nothing in disorder."""
    told = await seeded(database_url, rows, wallets)

    def shares(connection: Connection) -> list[int]:
        return list(connection.execute(select(s.sequence)).scalars())

    assert await store.look(database_url, shares) == [rows // wallets] * wallets
    assert told[0] == (0, rows // wallets * wallets)
    assert findings(database_url) == []


@pytest.mark.only("postgresql")
async def test_postgresql_has_looked_at_what_was_filled(database_url: str) -> None:
    """It plans by what it knows of its tables, from the first question on."""
    await seeded(database_url, 4_000, 10)

    names = ", ".join(f"'{name}'" for name in sorted(LARGE))
    query = f"SELECT relname, reltuples::int FROM pg_class WHERE relname IN ({names})"
    known = dict(await execute(database_url, query))
    assert known.keys() == LARGE
    assert known["credit_transactions"] == 4_000
    assert known["wallet_states"] == 10
    assert min(known.values()) >= 0, "-1 is what it does not know"


async def test_a_year_holds_everything(database_url: str) -> None:
    """Every kind of row, postings of several rows, late ones, usage of many sorts; time order."""
    before = clock.now()
    await seeded(database_url, 3_000, 3)

    def look(connection: Connection) -> None:
        def number(*columns: object) -> int:
            found: int = connection.execute(select(*columns)).scalar_one()  # type: ignore[call-overload]  # any columns
            return found

        found = connection.execute(select(t.kind, func.count()).group_by(t.kind))
        kinds: dict[int, int] = {row[0]: row[1] for row in found}
        # Each wallet has a life of its own.
        assert set(kinds) == set(Kind) - {Kind.TRANSFER_OUT, Kind.TRANSFER_IN}
        assert kinds[Kind.USAGE] > 0.8 * 3_000
        assert number(func.max(p.row_count)) > 1
        assert number(func.count(t.effective_at)) > 0
        assert number(func.count(p.refund_of)) > 0
        d = schema.dimensions.c
        assert number(func.count(func.distinct(d.product_id))) >= 4
        assert number(func.count(func.distinct(d.meter_id))) == 1
        first, last = number(func.min(t.created_at)), number(func.max(t.created_at))
        assert 300 * clock.DAY < last - first < 365 * clock.DAY
        assert before - 40 * clock.DAY < last <= before
        rows = connection.execute(select(t.wallet_number, t.created_at)).all()
        # They lie as they were written, so as they happened.
        assert [time for _, time in rows] == sorted(time for _, time in rows)
        assert rows[0].wallet_number != rows[-1].wallet_number

    await store.look(database_url, look)


async def test_a_seeded_wallet_goes_on(database_url: str) -> None:
    """It spends, refunds what was made up, and knows its requests again by their keys."""
    await seeded(database_url, 900, 3)

    def refunded(connection: Connection) -> tuple[str, str]:
        query = (
            select(p.idempotency_key, p.terms)
            .where(p.refund_of.is_not(None), p.amount.is_(None))
            .join_from(schema.postings, schema.wallets, schema.wallets.c.number == p.wallet_number)
            .where(schema.wallets.c.id == wallet_id(1))
        )
        key, terms = connection.execute(query.limit(1)).one()
        return str(key), str(terms)

    key, terms = await store.look(database_url, refunded)
    of = terms.removeprefix('{"refund.posting_id":"').removesuffix('"}')
    async with opened(database_url, clock.now) as (_, ledger):
        again = await ledger.post(posting(refund(of), key=key, wallet_id=wallet_id(1)))
        spent = await ledger.post(posting(consume("0.5"), wallet_id=wallet_id(1)))

    assert again.replayed
    assert spent.posting.rows[0].sequence == 301
    assert findings(database_url) == []


async def test_only_an_empty_database_is_filled(database_url: str) -> None:
    """A second seed is refused and changes nothing."""
    await seeded(database_url, 10, 2)

    with pytest.raises(NotEmpty):
        await seeded(database_url, 10, 2)
    count = select(func.count()).select_from(schema.transactions)
    assert await store.look(database_url, lambda c: c.execute(count).scalar_one()) == 10


async def test_so_many_rows_need_their_time(database_url: str) -> None:
    """No more than one posting a millisecond: else it is refused before anything is written."""
    with pytest.raises(ValueError, match="more days"):
        await seeded(database_url, 100_000_000_000, 1, days=1)


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    """It fills what `migrate` made, says how much, and refuses a second time and a missing file."""
    url = sqlite_url(tmp_path / "credit.db")
    migrate(url)

    def seeding(rows: int) -> subprocess.CompletedProcess[str]:
        words = ("--rows", str(rows), "--wallets", "4", "--database-url", url)
        return subprocess.run(
            [sys.executable, "-m", "bench.seed", *words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    filled, again, fewer = seeding(43), seeding(43), seeding(3)
    (tmp_path / "credit.db").unlink()
    missing = seeding(43)

    assert filled.stdout == f"{tmp_path / 'credit.db'}: 40 rows of 4 wallets\n"
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    assert fewer.returncode == 2
    assert (missing.returncode, "no database" in missing.stderr) == (1, True)
