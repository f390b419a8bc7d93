"""The log: what a line says, and that a slow reader of it holds up nobody."""

from __future__ import annotations

import json
import logging
import threading
from io import StringIO
from typing import TYPE_CHECKING

import pytest
import structlog

from creditledger.ops import log

if TYPE_CHECKING:
    from creditledger.ops.config import LogFormat


class Stuck(StringIO):
    """A reader that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go_on.wait()
        return super().write(text)


def lines(out: StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_its_level_and_time() -> None:
    """What an event has, its name, how bad it is, and when."""
    out = StringIO()
    log.configure("info", "json", out)
    structlog.get_logger().warning("tired", since=3, of="it")

    (line,) = lines(out)
    assert list(line) == ["since", "of", "event", "level", "timestamp"]
    assert line | {"timestamp": ""} == {
        "since": 3,
        "of": "it",
        "event": "tired",
        "level": "warning",
        "timestamp": "",
    }


def test_what_is_below_the_level_is_not_made() -> None:
    """Nothing is printed, and nothing of it is even formatted."""
    out = StringIO()
    log.configure("warning", "json", out)
    structlog.get_logger().info("call", code=threading.Event())
    structlog.get_logger().error("call", code="INTERNAL")

    assert [line["level"] for line in lines(out)] == ["error"]


def test_to_log_waits_for_no_reader() -> None:
    """Lines pile up behind a reader that is stuck, in order; a warning comes after all of them."""
    out = Stuck()
    log.configure("info", "json", out)
    logger = structlog.get_logger()
    logger.info("first")
    assert out.reached.wait(10)
    for n in range(100):
        logger.info("call", n=n)
    out.go_on.set()
    logger.warning("last")

    assert [line["event"] for line in lines(out)] == ["first", *["call"] * 100, "last"]
    assert [line["n"] for line in lines(out)[1:-1]] == [*range(100)]


def test_a_reader_that_never_reads_costs_no_memory() -> None:
    """Beyond what may wait, lines are counted; the count is told."""
    out = Stuck()
    log.configure("info", "json", out)
    logger = structlog.get_logger()
    logger.info("first")
    assert out.reached.wait(10)
    for n in range(log.WAITING_MAX + 7):
        logger.info("call", n=n)
    out.go_on.set()
    logger.warning("last")

    found = lines(out)
    assert len(found) == 1 + log.WAITING_MAX + 2
    assert found[-2]["event"] == "last"
    assert found[-1] == {"event": "lines dropped", "count": 7}


SECRET = "sk-" + "Ab1_" * 10 + "xyz"


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_libraries_say_is_masked_and_cut(form: LogFormat) -> None:
    """A library's record is masked and cut to the length of a line."""
    out = StringIO()
    log.configure("info", form, out)
    for text in (f"Invalid encoding on Bearer {SECRET}\xa0", SECRET, "\xff" * 50_000):
        try:
            raise ValueError(f"in\n{text}")
        except ValueError:
            logging.getLogger("grpc._cython.cygrpc").exception("Invalid encoding on %s", text)

    assert SECRET[3:20] not in out.getvalue()
    # JSON spells a character with six.
    assert len(out.getvalue()) < 3 * 3 * 6 * log.FOREIGN_CHARACTERS_MAX
    assert "sk-****" in out.getvalue()


def test_our_own_lines_are_masked() -> None:
    """A secret that comes into a line by way of an error's text is not written."""
    out = StringIO()
    log.configure("info", "json", out)
    try:
        raise ValueError(f"a\n{SECRET} b whsec_{SECRET[3:]} task-force-7")
    except ValueError:
        structlog.get_logger().error("call", exc_info=True)

    assert SECRET[3:20] not in out.getvalue()
    assert "task-force-7" in out.getvalue()
