"""What is kept of exports: for 24 hours, and so many of one key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from creditledger.domain import clock as time
from creditledger.store import finished_exports, schema
from creditledger.store.finished_exports import KEPT_MS, Finished
from tests.support.rest import serving
from tests.support.setup import START, change

if TYPE_CHECKING:
    import pytest
    from sqlalchemy import Connection

    from creditledger.store import Store


def finished(id_: str, at: int = START, key_id: str = "apk_one") -> Finished:
    """An export that ended at this time."""
    return Finished(id_, key_id, None, True, at, rows=3, sha256="00")


async def keep(store: Store, one: Finished) -> None:
    """As at the end of an export."""
    await store.write(lambda connection: finished_exports.add(connection, one))


async def test_it_is_kept_for_a_day(store: Store) -> None:
    """To the millisecond; after that the next export removes it."""
    first = finished("exp_1")
    await keep(store, first)

    def one(connection: Connection, now: int) -> Finished | None:
        return finished_exports.one(connection, "exp_1", now)

    assert await store.read(lambda c: one(c, START + KEPT_MS)) == first
    assert await store.read(lambda c: one(c, START + KEPT_MS + 1)) is None
    assert KEPT_MS == time.DAY

    await keep(store, finished("exp_2", START + KEPT_MS + 1))
    assert await ids(store) == {"exp_2"}


async def test_of_each_key_the_newest_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that exports without end pushes out its own, never those of another."""
    monkeypatch.setattr(finished_exports, "KEPT_MAX", 3)
    await keep(store, finished("exp_other", key_id="apk_two"))
    for n in range(5):
        await keep(store, finished(f"exp_{n}", START + n))

    assert await ids(store) == {"exp_other", "exp_2", "exp_3", "exp_4"}


async def test_a_change_removes_a_bounded_number(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pause left behind goes little by little, and nobody waits for all of it."""
    monkeypatch.setattr(finished_exports, "REMOVED_MAX", 2)
    for n in range(6):
        await keep(store, finished(f"exp_{n}", START + n))
    counts = []
    for n in range(3):
        await keep(store, finished(f"exp_late_{n}", START + 2 * KEPT_MS))
        counts.append(len(await ids(store)))

    assert counts == [5, 4, 3]


async def test_an_export_is_whole_though_its_digest_cannot_be_kept(database_url: str) -> None:
    """Its client has all rows and a normal end; the digest alone is missing."""
    away = (
        "ALTER TABLE exports RENAME TO exports_away",
        "ALTER TABLE exports_away RENAME TO exports",
    )
    async with serving(database_url) as served:
        key = await served.key("service")
        await served.post(await served.wallet(), {"grant": {"amount": "1"}})
        change(database_url, lambda connection: connection.exec_driver_sql(away[0]))
        answer = await served.get("/api/credit-transactions:export", key, columns="amount")
        change(database_url, lambda connection: connection.exec_driver_sql(away[1]))

        assert (answer.status_code, answer.text) == (200, "amount\n1.00\n")
        assert served.row_counts()["exports"] == 0


async def ids(store: Store) -> set[str]:
    """Of all exports that are kept."""

    def read(connection: Connection) -> set[str]:
        return set(connection.execute(select(schema.exports.c.id)).scalars())

    return await store.read(read)
