"""A migrated database is the one that the queries are written for."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from creditledger.store import schema, sqlite
from creditledger.store.migrations import migrate, newest, revision
from tests.support import START, add_wallet, file_of, migrated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection


@contextmanager
def written(path: Path) -> Iterator[Connection]:
    """A transaction on the database at `path`, made if it is not there."""
    engine = sqlite.writer_engine(path)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def definitions(connection: Connection) -> dict[tuple[str, str], list[str]]:
    """(kind, name) -> what the definition says; blanks, quotes and the order of constraints do not.

    Autogenerate looks at columns, keys and indexes; this also sees checks and WITHOUT ROWID.
    """
    found = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL"))
    return {(kind, name): clauses(sql) for kind, name, sql in found if "alembic" not in name}


def clauses(sql: str) -> list[str]:
    """The parts between the outermost commas: columns as they stand, constraints by name."""
    parts, depth = [""], 0
    for character in re.sub(r"\s+", " ", sql.replace('"', "")):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 1:
            parts.append("")
        else:
            parts[-1] += character
    *inner, last = [part.strip() for part in parts]
    last, _, tail = last.rpartition(")")
    body = [*inner, last.strip()]
    columns = [part for part in body if not part.startswith("CONSTRAINT")]
    return [*columns, *sorted(set(body) - set(columns)), tail.strip()]


def test_migrations_make_the_schema_of_the_queries(database_url: str, tmp_path: Path) -> None:
    """Tables, columns, types, defaults, constraints and indexes of both are the same."""
    with written(file_of(database_url)) as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, schema.metadata) == []
        migrated_to = definitions(connection)

    with written(tmp_path / "created.db") as connection:
        schema.metadata.create_all(connection)
        created = definitions(connection)

    assert created == {key: sql for key, sql in migrated_to.items() if key[0] != "trigger"}


def test_every_append_only_table_has_its_triggers(database_url: str) -> None:
    """Rows, postings and dimensions are guarded against both UPDATE and DELETE."""
    with written(file_of(database_url)) as connection:
        triggers = {name for kind, name in definitions(connection) if kind == "trigger"}

    assert triggers == {
        f"{table}_no_{act}"
        for table in ("credit_transactions", "postings", "dimensions")
        for act in ("update", "delete")
    }


def test_a_new_database_has_the_currencies(database_url: str) -> None:
    """USD and CNY have nine digits after the point, CREDIT six."""
    with written(file_of(database_url)) as connection:
        rows = connection.execute(schema.currencies.select()).all()

    assert {(row.code, row.scale) for row in rows} == {("USD", 9), ("CNY", 9), ("CREDIT", 6)}


def test_an_empty_file_has_no_revision_until_it_is_migrated(tmp_path: Path) -> None:
    """The revision goes from none to the newest, which is the last of the files."""
    path = tmp_path / "credit.db"

    with written(path) as connection:
        assert revision(connection) is None
        assert migrate(connection) == (None, newest())
        assert revision(connection) == newest()
    with written(path) as connection:
        assert revision(connection) == newest()


def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    """What is there stays as it is, schema and rows, however often a database is migrated."""
    path = tmp_path / "credit.db"
    migrated(path)
    with written(path) as connection:
        add_wallet(connection, "wal_acme")
        before = definitions(connection)

    for _ in range(2):
        with written(path) as connection:
            assert migrate(connection) == (newest(), newest())

    with written(path) as connection:
        assert before == definitions(connection)
        wallet = connection.execute(schema.wallets.select()).one()
        assert (wallet.id, wallet.created_at) == ("wal_acme", START)
        assert len(connection.execute(schema.currencies.select()).all()) == 3


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Migrating is one transaction: undone, the file is as empty as before."""
    path = tmp_path / "credit.db"

    def migrate_and_fail() -> None:
        with written(path) as connection:
            migrate(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        migrate_and_fail()

    with written(path) as connection:
        assert inspect(connection).get_table_names() == []
        assert revision(connection) is None
        assert migrate(connection) == (None, newest())
