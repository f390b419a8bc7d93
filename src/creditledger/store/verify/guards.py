"""Whether the database still guards the ledger: triggers, constraints and indexes, there and on.

A guard that is gone lets others change what nothing else would show. Each check is a value: its
name, what is wrong, which guards there should be, and the statement that answers those there are.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from sqlalchemy import (
    CheckConstraint,
    Connection,
    ForeignKeyConstraint,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from creditledger.store import schema
from creditledger.store.verify.check import Finding

#: The names of the checks.
CHECKS = ("guard_trigger", "guard_constraint", "guard_index")

#: Tables whose rows are never changed or deleted.
APPEND_ONLY = (
    *("credit_transactions", "postings", "dimensions", "hold_revisions", "grant_revisions"),
    *("grant_repayments", "overdraft_payers", "overdraft_returns", "statements"),
    *("grant_parts", "clock_acceptances"),
)

#: Tables whose rows are never deleted.
KEPT = ("change_keys",)


class Guards(NamedTuple):
    """Guards of one kind: the expected names, and the statement that answers those in force."""

    name: str
    wrong: str
    expected: frozenset[str]
    statement: str  #: Answers one column, the name.


_SQLITE_TRIGGERS = """SELECT name FROM sqlite_master WHERE type = 'trigger'
    AND sql LIKE '%BEFORE ' || upper(substr(name, length(tbl_name) + 5)) || ' ON%'
    AND sql LIKE '%SELECT RAISE(ABORT,%' AND sql NOT LIKE '% WHEN %'"""
_POSTGRES_TRIGGERS = """SELECT t.tgname FROM pg_trigger AS t JOIN pg_proc AS f ON f.oid = t.tgfoid
    WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgqual IS NULL
      AND f.proname = 'refuse_change' AND f.prosrc LIKE '%RAISE EXCEPTION%'"""
_POSTGRES_CONSTRAINTS = """SELECT conname FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace"""
_INDEXES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index'",
    "postgresql": """SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indisvalid AND i.indisready""",
}


@cache
def guards(dialect: str) -> tuple[Guards, ...]:
    """The guards of this kind of database."""
    is_file = dialect == "sqlite"
    tables = (schema.metadata if is_file else schema.postgresql).sorted_tables
    acts = ("update", "delete") if is_file else ("update", "delete", "truncate")
    triggers = frozenset(f"{table}_no_{act}" for table in APPEND_ONLY for act in acts)
    triggers |= {f"{table}_no_{act}" for table in KEPT for act in acts if act != "update"}
    indexes = frozenset(str(one.name) for table in tables for one in table.indexes)
    found = [
        Guards(
            *("guard_trigger", "trigger {} is not there, or is switched off", triggers),
            _SQLITE_TRIGGERS if is_file else _POSTGRES_TRIGGERS,
        ),
        Guards("guard_index", "index {} is not there, or not valid", indexes, _INDEXES[dialect]),
    ]
    if not is_file:
        wrong = "constraint {} is not there"
        names = frozenset(name for table in tables for name in _constraints(table))
        found.append(Guards("guard_constraint", wrong, names, _POSTGRES_CONSTRAINTS))
    return tuple(found)


def _constraints(table: Table) -> Iterator[str]:
    kinds = (CheckConstraint, ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint)
    for one in table.constraints:
        if isinstance(one, kinds) and one.name is not None:
            yield str(one.name)


@cache
def _in_force(dialect: str) -> str:
    """The statement that answers all guards in force, each with its kind."""
    return " UNION ALL ".join(
        f"SELECT '{kind.name}', q.* FROM ({kind.statement}) AS q" for kind in guards(dialect)
    )


def found(connection: Connection) -> Iterator[Finding]:
    """Every guard that is not in force."""
    dialect = connection.dialect.name
    there = {tuple(one) for one in connection.exec_driver_sql(_in_force(dialect))}
    for kind in guards(dialect):
        for name in sorted(kind.expected):
            if (kind.name, name) not in there:
                yield Finding(kind.name, None, 0, None, kind.wrong.format(name))
    if dialect == "sqlite":
        yield from _of_files(connection)


@cache
def _in_texts() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The constraints of each table of a file."""
    tables = schema.metadata.sorted_tables
    return tuple((table.name, tuple(sorted(_constraints(table)))) for table in tables)


def _of_files(connection: Connection) -> Iterator[Finding]:
    """SQLite keeps the constraints of a table in the text of the table."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'table'"
    texts: dict[str, str] = dict(connection.exec_driver_sql(query).all())
    for table, names in _in_texts():
        said = texts.get(table, "").replace('"', "")
        for name in names:
            if f"CONSTRAINT {name} " not in said:
                yield Finding("guard_constraint", None, 0, None, f"constraint {name} is not there")
