"""Verifies the ledger: proves that it is whole, or names what is wrong.

First the proofs run, several at the same time. They read each table once and tell only whether
something is wrong. If one fails, the passes name everything that is wrong: they look up what
belongs to each row.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from string import Formatter
from threading import Lock
from typing import Any

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError

from creditledger.store.verify import guards, statement_checks, stored_checks
from creditledger.store.verify.check import Finding, Pass
from creditledger.store.verify.passes import passes
from creditledger.store.verify.proofs import Proof, proofs, tables
from creditledger.store.verify.spelling import SPELLINGS

#: Memory for a connection. With less, sums and joins go to the disk in small pieces.
_ROOM = {
    "sqlite": {"cache_size": "-32768", "temp.cache_size": "-32768"},
    # Rows that belong together lie close together, so a read by an index costs little.
    "postgresql": {"work_mem": "'64MB'", "random_page_cost": "1.1"},
}


class FileDamaged(Exception):
    """A file whose tables or indexes are not what SQLite wrote; the text says where."""


#: Called as each step begins: its name, the number of steps before it, the number of all.
Progress = Callable[[str, int, int], None]


def verify(connection: Connection, *, on_progress: Progress | None = None) -> Iterator[Finding]:
    """Everything wrong with the ledger in the connection's transaction; nothing if all is well.

    Raises FileDamaged.
    """
    run = Verification(on_progress)
    run.prove(connection)
    return run.findings(connection)


class Verification:
    """One look at one snapshot, by as many connections as see it."""

    def __init__(self, on_progress: Progress | None = None) -> None:
        """`on_progress` is called by one connection's thread at a time."""
        self.failed = False  #: Whether a proof has.
        self._error: DBAPIError | None = None
        self._tell = on_progress or (lambda _name, _done, _of: None)
        self._begun = 0
        self._lock = Lock()

    def prove(self, connection: Connection) -> None:
        """Make proofs until all have begun, or one has failed.

        Several connections may, each in a thread of its own; all have to before `findings`.
        """
        with _room(connection):
            try:
                with _undone_if_it_fails(connection):
                    filled = _filled(connection)
                    while (proof := self._next(connection)) is not None:
                        none = proof.about is not None and filled.isdisjoint(proof.about)
                        # Not `|=`: it reads before the proof runs, and would undo what another
                        # thread finds meanwhile.
                        if not (none or holds(connection, proof, filled)):
                            self.failed = True
            except DBAPIError as error:
                # Figures too large to add up, a text that is no list, a file that cannot be
                # read: the passes, or what looks at the file, meet it too and say more of it.
                self._error, self.failed = error, True

    def findings(self, connection: Connection) -> Iterator[Finding]:
        """All findings if a proof has failed, and the guards of the database that are not in force.

        A pass finds in order of wallet and sequence, and passes follow what depends on what: of
        several findings of one damage the first names the row where it was done. Raises
        FileDamaged, and what befell a proof that nothing is wrong with, as a full disk.
        """
        if self.failed:
            yield from self._named(connection)
        yield from guards.found(connection)

    def _named(self, connection: Connection) -> Iterator[Finding]:
        with _room(connection):
            # A broken index would mislead the passes.
            _require_sound(connection, "quick_check")
            none = True
            every = passes(SPELLINGS[connection.dialect.name])
            for done, one in enumerate(every):
                self._tell(one.name, done, len(every))
                for finding in found_by(connection, one):
                    none = False
                    yield finding
            for finding in (*statement_checks.found(connection), *stored_checks.found(connection)):
                none = False
                yield finding
            if none:
                _require_sound(connection, "integrity_check")
                if self._error is not None:
                    raise self._error
                raise AssertionError("a proof fails, and no check says why")

    def _next(self, connection: Connection) -> Proof | None:
        every = proofs(connection.dialect.name)
        with self._lock:
            if self.failed or self._begun == len(every):
                return None
            proof = every[self._begun]
            self._tell(proof.name, self._begun, len(every))
            self._begun += 1
            return proof


@cache
def _filled_query(dialect: str) -> str:
    every = (f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in tables(dialect))
    return " UNION ALL ".join(every)


def _filled(connection: Connection) -> frozenset[str]:
    """The names of the tables that have rows."""
    return frozenset(connection.exec_driver_sql(_filled_query(connection.dialect.name)).scalars())


def holds(connection: Connection, proof: Proof, filled: frozenset[str]) -> bool:
    """Whether the proof holds; `filled` names the tables that have rows."""

    def run(query: str) -> CursorResult[Any]:
        return connection.exec_driver_sql(query)

    try:
        for statement in proof.statements:
            run(statement)
        if proof.holds is not None and not proof.holds(connection, filled):
            return False
        return not any(run(question).scalar_one() for question in proof.questions)
    finally:
        for table in proof.tables:
            with suppress(DBAPIError):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS temp.{table}")


def _asked(one: Pass) -> tuple[str, tuple[str, ...]]:
    """A pass as a statement, and the messages of its checks, in which numbers stand for values.

    The statement answers of each row its place, which checks find something, and the values.
    """
    values: list[str] = []

    def numbered(message: str) -> Iterator[str]:
        for literal, value, *_ in Formatter().parse(message):
            yield literal
            if value is not None:
                yield f"{{{len(values)}}}"
                values.append(value)

    messages = tuple("".join(numbered(check.message)) for check in one.checks.values())
    wallet_id = f"(SELECT known.id FROM wallets AS known WHERE known.number = {one.place[0]})"
    # The plus keeps the planner from reading in this order: all rows are read, few are sorted.
    order = ", ".join(f"+{column}" for column in one.place)
    query = (
        f"SELECT {', '.join((*one.place, wallet_id, *one.wrong, *values))}"
        f" FROM {one.source} WHERE {' OR '.join(one.wrong)} ORDER BY {order}"
    )
    return query, messages


def found_by(connection: Connection, one: Pass) -> Iterator[Finding]:
    """The findings of a pass."""
    query, messages = _asked(one)
    for wallet, sequence, wallet_id, *found in connection.exec_driver_sql(query):
        values = found[len(messages) :]
        for check, message, wrong in zip(one.checks, messages, found, strict=False):
            if wrong:
                yield Finding(check, wallet_id, wallet, sequence, message.format(*values))


# --- what SQLite and PostgreSQL spell differently -------------------------------------------------


def _require_sound(connection: Connection, pragma: str) -> None:
    """Raises FileDamaged. A PostgreSQL server checks its own files."""
    if connection.dialect.name == "sqlite":
        said: str = connection.exec_driver_sql(f"PRAGMA {pragma}(1)").scalar_one()
        if said != "ok":
            raise FileDamaged(said)


def _undone_if_it_fails(connection: Connection) -> AbstractContextManager[object]:
    """After an error a transaction on PostgreSQL goes on only from a savepoint."""
    return connection.begin_nested() if connection.dialect.name == "postgresql" else nullcontext()


@contextmanager
def _room(connection: Connection) -> Iterator[None]:
    """Memory lent to the connection, and given back."""
    kind = connection.dialect.name
    lent = _ROOM[kind]
    show, assign = (
        ("PRAGMA {}", "PRAGMA {} = {}") if kind == "sqlite" else ("SHOW {}", "SET {} = {}")
    )
    before = {name: connection.exec_driver_sql(show.format(name)).scalar_one() for name in lent}
    for name, value in lent.items():
        connection.exec_driver_sql(assign.format(name, value))
    try:
        yield
    finally:
        for name, value in before.items():
            said = value if kind == "sqlite" else f"'{value}'"
            # After an error a transaction on PostgreSQL refuses every other statement.
            with suppress(DBAPIError):
                connection.exec_driver_sql(assign.format(name, said))
