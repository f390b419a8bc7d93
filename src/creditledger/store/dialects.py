"""What SQLite and PostgreSQL spell differently in the queries that they share.

Each is an element of SQLAlchemy's Core, compiled for the database that runs it. What differs in the
write path is in the writers, in the tables in schema.py, in the checks in
store/verify/spelling.py.
"""

import re
from decimal import Decimal
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    Dialect,
    Text,
    TextClause,
    TextualSelect,
    TypeDecorator,
    column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

T = TypeVar("T")


class _Spelled(FunctionElement[T]):
    """An expression as each database spells it; {0}, {1} stand for what it is made of."""

    sqlite: ClassVar[str]
    postgresql: ClassVar[str]


@compiles(_Spelled)
def _(element: _Spelled[Any], compiler: SQLCompiler, **kw: Any) -> str:
    spelled = element.sqlite if compiler.dialect.name == "sqlite" else element.postgresql
    return spelled.format(*(compiler.process(one, **kw) for one in element.clauses))


class snapshot(_Spelled[str]):  # noqa: N801 # read like a function of SQL
    """All rows that this read sees, as a text that later reads compare rows with."""

    type = Text()
    inherit_cache = True
    sqlite = "CAST((SELECT coalesce(max(position), 0) FROM credit_transactions) AS TEXT)"
    postgresql = "CAST(pg_current_snapshot() AS TEXT)"


class was_in(_Spelled[bool]):  # noqa: N801 # the same
    """Whether a row of credit_transactions belongs to this snapshot."""

    type = Boolean()
    inherit_cache = True
    sqlite = "credit_transactions.position <= CAST({0} AS INTEGER)"
    postgresql = "pg_visible_in_snapshot(credit_transactions.written_in, CAST({0} AS pg_snapshot))"


class place(_Spelled[int]):  # noqa: N801 # the same
    """Where a row of credit_transactions stands in the order of commits, to be compared."""

    type = BigInteger()
    inherit_cache = True
    sqlite = "credit_transactions.position"
    postgresql = "coalesce(credit_transactions.position, credit_transactions.written_in)"


class at_place(_Spelled[int]):  # noqa: N801 # the same
    """A number, given as text, to compare places with."""

    type = BigInteger()
    inherit_cache = True
    sqlite = "CAST({0} AS INTEGER)"
    postgresql = "CAST(CAST({0} AS text) AS xid8)"


class horizon(_Spelled[int]):  # noqa: N801 # the same
    """The place from which on rows may still appear; all before it that ever will be are seen."""

    type = BigInteger()
    inherit_cache = True
    sqlite = "(SELECT coalesce(max(position), 0) + 1 FROM credit_transactions)"
    postgresql = "pg_snapshot_xmin(pg_current_snapshot())"


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


class holds(_Spelled[bool]):  # noqa: N801 # the same
    """Whether a text holds another, byte for byte."""

    type = Boolean()
    inherit_cache = True
    sqlite = "instr({0}, {1}) > 0"
    postgresql = "strpos({0}, {1}) > 0"


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


class exact_sum(_Spelled[int]):  # noqa: N801 # the same
    """Σ of 64-bit integers, however large; 0 of none.

    SQLite's sum() fails where it passes 64 bits.
    """

    type = _Total()
    inherit_cache = True
    sqlite = "(sum(({0}) >> 32) || ' ' || sum(({0}) & 4294967295))"
    postgresql = "sum({0})"


class set_aside(_Spelled[int]):  # noqa: N801 # the same
    """Σ of what a hold's `parts` set aside."""

    type = BigInteger()
    inherit_cache = True
    sqlite = "(SELECT coalesce(sum(json_extract(value, '$[1]')), 0) FROM json_each({0}))"
    postgresql = (
        "(SELECT coalesce(sum(CAST(value ->> 1 AS bigint)), 0)"
        " FROM json_array_elements(CAST({0} AS json)))"
    )


class listed(_Spelled[Any]):  # noqa: N801 # the same
    """A list of numbers that is kept as JSON text, for `item`."""

    type = Text()
    inherit_cache = True
    sqlite = "{0}"
    postgresql = "CAST(translate({0}, '[]', '{{}}') AS bigint[])"


class item(_Spelled[int]):  # noqa: N801 # the same
    """The number at an index of a list, counted from 0; NULL beyond its end."""

    type = BigInteger()
    inherit_cache = True
    sqlite = "{0} ->> {1}"
    postgresql = "({0})[{1} + 1]"


class receipt_of(_Spelled[str]):  # noqa: N801 # the same
    """The `receipt_id` in a JSON object kept as text."""

    type = Text()
    inherit_cache = True
    sqlite = "json_extract({0}, '$.receipt_id')"
    postgresql = "(CAST({0} AS json) ->> 'receipt_id') COLLATE \"C\""


class has_value(_Spelled[bool]):  # noqa: N801 # the same
    """Whether a value of a JSON object kept as text, ASCII folded, holds a text."""

    type = Boolean()
    inherit_cache = True
    sqlite = "EXISTS (SELECT 1 FROM json_each({0}) AS e WHERE instr(lower(e.value), {1}))"
    postgresql = """EXISTS (SELECT 1 FROM json_each_text(CAST({0} AS json)) AS e
        WHERE strpos(lower(e.value COLLATE "C"), {1}) > 0)"""


def pairs(dialect: str) -> CTE:
    """Pairs (wallet, sequence), given as the JSON text `pairs`: to be joined to.

    One statement for any number of them. By IN, or of a list of values that is long, SQLite would
    read the whole table.
    """
    return _given(dialect, "pairs", "wallet", "sequence").cte("place")


def ranges(dialect: str) -> CTE:
    """Triples (number, first, through), given as the JSON text `ranges`: to be joined to."""
    asked = _given(dialect, "ranges", "number", "first", "through").cte("asked")
    return asked.prefix_with("MATERIALIZED")


def _given(dialect: str, name: str, *columns: str) -> TextualSelect:
    """Rows of numbers, given as a JSON text of this name."""
    if dialect == "sqlite":
        cell, source = "json_extract(value, '$[{0}]')", "json_each(:{0})"
    else:
        cell, source = "CAST(value ->> {0} AS bigint)", "json_array_elements(CAST(:{0} AS json))"
    cells = (f"{cell.format(place)} AS {one}" for place, one in enumerate(columns))
    rows = text(f"SELECT {', '.join(cells)} FROM {source.format(name)}")  # constants
    return rows.columns(*(column(one, BigInteger) for one in columns))


def by_index(dialect: str, table: str, index: str) -> TextClause:
    """The table, to be read by that index.

    SQLite has to be told: to it all grants of a wallet are as few as those that are open.
    """
    return text(f"{table} INDEXED BY {index}" if dialect == "sqlite" else table)


def lower_ascii(q: str) -> str:
    """ASCII letters in lower case, all others as they are: what lower() does in the tables."""
    return "".join(c.lower() if c.isascii() else c for c in q)
