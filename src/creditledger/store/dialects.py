"""What SQLite and PostgreSQL spell differently in the queries that they share.

Each is an element of SQLAlchemy's Core, compiled for the database that runs it. What differs in the
write path is in the writers, in the tables in schema.py, in the checks in
store/verify/spelling.py.
"""

import re
from decimal import Decimal
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    Connection,
    Dialect,
    Text,
    TextClause,
    TypeDecorator,
    column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class snapshot(FunctionElement[str]):  # noqa: N801 # read like a function of SQL
    """All rows that this read sees, as a text that later reads compare rows with."""

    type = Text()
    inherit_cache = True


@compiles(snapshot, "sqlite")
def _(_element: snapshot, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST((SELECT coalesce(max(position), 0) FROM credit_transactions) AS TEXT)"


@compiles(snapshot, "postgresql")
def _(_element: snapshot, _compiler: SQLCompiler, **_: Any) -> str:
    return "CAST(pg_current_snapshot() AS TEXT)"


class was_in(FunctionElement[bool]):  # noqa: N801 # the same
    """Whether a row of credit_transactions belongs to this snapshot."""

    type = Boolean()
    inherit_cache = True


@compiles(was_in, "sqlite")
def _(element: was_in, compiler: SQLCompiler, **kw: Any) -> str:
    pin = compiler.process(element.clauses, **kw)
    return f"credit_transactions.position <= CAST({pin} AS INTEGER)"


@compiles(was_in, "postgresql")
def _(element: was_in, compiler: SQLCompiler, **kw: Any) -> str:
    pin = compiler.process(element.clauses, **kw)
    return f"pg_visible_in_snapshot(credit_transactions.written_in, CAST({pin} AS pg_snapshot))"


class place(FunctionElement[int]):  # noqa: N801 # the same
    """Where a row of credit_transactions stands in the order of commits, to be compared."""

    type = BigInteger()
    inherit_cache = True


@compiles(place, "sqlite")
def _(_element: place, _compiler: SQLCompiler, **_: Any) -> str:
    return "credit_transactions.position"


@compiles(place, "postgresql")
def _(_element: place, _compiler: SQLCompiler, **_: Any) -> str:
    return "coalesce(credit_transactions.position, credit_transactions.written_in)"


class at_place(FunctionElement[int]):  # noqa: N801 # the same
    """A number, given as text, to compare places with."""

    type = BigInteger()
    inherit_cache = True


@compiles(at_place, "sqlite")
def _(element: at_place, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS INTEGER)"


@compiles(at_place, "postgresql")
def _(element: at_place, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(CAST({compiler.process(element.clauses, **kw)} AS text) AS xid8)"


class horizon(FunctionElement[int]):  # noqa: N801 # the same
    """The place from which on rows may still appear; all before it that ever will be are seen."""

    type = BigInteger()
    inherit_cache = True


@compiles(horizon, "sqlite")
def _(_element: horizon, _compiler: SQLCompiler, **_: Any) -> str:
    return "(SELECT coalesce(max(position), 0) + 1 FROM credit_transactions)"


@compiles(horizon, "postgresql")
def _(_element: horizon, _compiler: SQLCompiler, **_: Any) -> str:
    return "pg_snapshot_xmin(pg_current_snapshot())"


def is_snapshot(text: str, dialect: str) -> bool:
    """Whether `snapshot` could have made this text: anybody can make up a page token."""
    if dialect == "sqlite":
        return re.fullmatch(r"\d{1,18}", text, re.ASCII) is not None
    if re.fullmatch(r"\d{1,18}:\d{1,18}:(\d{1,18}(,\d{1,18})*)?", text, re.ASCII) is None:
        return False
    first, end, running = text.split(":")
    under_way = [int(number) for number in running.split(",") if number]
    places = [int(first) - 1, *under_way, int(end)]
    ascending = all(low < high for low, high in pairwise(places))
    return 0 < int(first) <= int(end) and (ascending or not under_way)


class holds(FunctionElement[bool]):  # noqa: N801 # the same
    """Whether a text holds another, byte for byte."""

    type = Boolean()
    inherit_cache = True


@compiles(holds, "sqlite")
def _(element: holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"instr({compiler.process(element.clauses, **kw)}) > 0"


@compiles(holds, "postgresql")
def _(element: holds, compiler: SQLCompiler, **kw: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **kw)}) > 0"


class _Total(TypeDecorator[int]):
    """A sum as each database answers it: SQLite in two parts, PostgreSQL as numeric."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: str | Decimal | None, _dialect: Dialect) -> int:
        if value is None:
            return 0
        if isinstance(value, str):
            high, low = value.split()
            return (int(high) << 32) + int(low)
        return int(value)


class exact_sum(FunctionElement[int]):  # noqa: N801 # the same
    """Σ of 64-bit integers, however large; 0 of none.

    SQLite's sum() fails where it passes 64 bits.
    """

    type = _Total()
    inherit_cache = True


@compiles(exact_sum, "sqlite")
def _(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    one = compiler.process(element.clauses, **kw)
    return f"(sum(({one}) >> 32) || ' ' || sum(({one}) & 4294967295))"


@compiles(exact_sum, "postgresql")
def _(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    return f"sum({compiler.process(element.clauses, **kw)})"


class receipt_of(FunctionElement[str]):  # noqa: N801 # the same
    """The `receipt_id` in a JSON object kept as text."""

    type = Text()
    inherit_cache = True


@compiles(receipt_of, "sqlite")
def _(element: receipt_of, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_extract({compiler.process(element.clauses, **kw)}, '$.receipt_id')"


@compiles(receipt_of, "postgresql")
def _(element: receipt_of, compiler: SQLCompiler, **kw: Any) -> str:
    column = compiler.process(element.clauses, **kw)
    return f"(CAST({column} AS json) ->> 'receipt_id') COLLATE \"C\""


class has_value(FunctionElement[bool]):  # noqa: N801 # the same
    """Whether a value of a JSON object kept as text, ASCII folded, holds a text."""

    type = Boolean()
    inherit_cache = True


@compiles(has_value, "sqlite")
def _(element: has_value, compiler: SQLCompiler, **kw: Any) -> str:
    column, wanted = (compiler.process(one, **kw) for one in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({column}) AS e WHERE instr(lower(e.value), {wanted}))"


@compiles(has_value, "postgresql")
def _(element: has_value, compiler: SQLCompiler, **kw: Any) -> str:
    column, wanted = (compiler.process(one, **kw) for one in element.clauses)
    return (
        f"EXISTS (SELECT 1 FROM json_each_text(CAST({column} AS json)) AS e"
        f' WHERE strpos(lower(e.value COLLATE "C"), {wanted}) > 0)'
    )


_PAIRS = {
    "sqlite": text(
        "SELECT json_extract(value, '$[0]') AS wallet, json_extract(value, '$[1]') AS sequence"
        " FROM json_each(:pairs)"
    ),
    "postgresql": text(
        "SELECT CAST(value ->> 0 AS bigint) AS wallet, CAST(value ->> 1 AS bigint) AS sequence"
        " FROM json_array_elements(CAST(:pairs AS json))"
    ),
}


def pairs(dialect: str) -> CTE:
    """Pairs (wallet, sequence), given as the JSON text `pairs`: to be joined to.

    One statement for any number of them. By IN, or of a list of values that is long, SQLite would
    read the whole table.
    """
    numbers = column("wallet", BigInteger), column("sequence", BigInteger)
    return _PAIRS[dialect].columns(*numbers).cte("place")


def by_index(connection: Connection, table: str, index: str) -> TextClause:
    """The table, to be read by that index.

    SQLite has to be told: to it all grants of a wallet are as few as those that are open.
    """
    return text(f"{table} INDEXED BY {index}" if connection.dialect.name == "sqlite" else table)


def fold(q: str) -> str:
    """ASCII letters in lower case, all others as they are: what lower() does in the tables."""
    return "".join(c.lower() if c.isascii() else c for c in q)
