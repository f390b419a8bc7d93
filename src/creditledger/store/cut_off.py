"""The log line of a read that ran out of time: its statement and the plan of the database.

The line lets an operator tell a search that is too broad from a plan that is bad. It does not show
what was searched for: the statement has no values, and texts in the plan are left out.
"""

import re
from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, event

log = structlog.get_logger()

#: A statement and its values, as the driver takes them.
Running = tuple[str, Any]

_RUNNING = "running"
_TEXT = re.compile(r"'(?:[^']|'')*'")
#: Lines of a plan in the log; a longer one says little more.
LINES_MAX = 60


def remember(engine: Engine) -> None:
    """Let the connections of the engine remember the statement that they ran last."""
    event.listen(engine, "before_cursor_execute", _note)


def _note(
    connection: Connection, _cursor: object, statement: str, values: object, *_: object
) -> None:
    connection.info[_RUNNING] = statement, values


def running(info: Mapping[str, Any]) -> Running | None:
    """The statement that a connection of this `info` ran last."""
    return info.get(_RUNNING)


def plan(connection: Connection, statement: Running) -> list[str]:
    """The plan of the database for a statement, without running it."""
    text, values = statement
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{explain} {text}", values).all()
    return [_TEXT.sub("'…'", str(row[-1])) for row in rows[:LINES_MAX]]


def tell(seconds: float, statement: Running | None, lines: list[str]) -> None:
    """The line in the log."""
    text = None if statement is None else " ".join(statement[0].split())
    log.warning("read cut off", seconds=seconds, statement=text, plan=lines)
