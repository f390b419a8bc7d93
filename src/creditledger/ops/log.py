"""The log: one line per event on standard error, as JSON or for people.

Everything logs through structlog; what libraries say through `logging` comes out in the same form,
cut. Secrets never reach it: callers log ids, and what looks like a secret is masked.
"""

import atexit
import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections import deque
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from creditledger.domain import clock
from creditledger.ops.config import LogFormat, LogLevel
from creditledger.telemetry import spans

#: How long what is no warning may wait for what comes after it, to be written together.
GATHER_SECONDS = 0.02
#: Lines that may wait for a slow reader of the log; beyond, they are counted only.
WAITING_MAX = 10_000
#: Characters of what a library says in one line, and of its traceback: a client may be behind it.
FOREIGN_CHARACTERS_MAX = 500

#: Secrets of API keys and of webhooks, whatever stands before them: perhaps an escape.
_SECRETS = re.compile(r"(sk-|whsec_)[A-Za-z0-9_-]{16,}", re.ASCII)


class _Lines:
    """Where the lines go. To log that a call was answered never waits for a reader of the log.

    Such lines are written by a thread, together; warnings and worse at once, with all before them.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._arrived = threading.Event()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def info(self, line: str) -> None:
        """Write soon."""
        line = masked(line)
        if len(self._waiting) >= WAITING_MAX:
            self._dropped += 1
            return
        self._waiting.append(line)
        if not self._arrived.is_set():
            self._arrived.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
                atexit.register(self._try_to_write)

    def warning(self, line: str) -> None:
        """Write now."""
        self._waiting.append(masked(line))
        self.write()

    debug = info
    error = critical = warning

    def write(self) -> None:
        """Write what waits."""
        with self._writing:
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(json.dumps({"event": "lines dropped", "count": dropped}))
            if lines:
                self._out.write("\n".join(lines) + "\n")
                self._out.flush()

    def _run(self) -> None:
        while self._arrived.wait():
            time.sleep(GATHER_SECONDS)
            self._arrived.clear()
            self._try_to_write()

    def _try_to_write(self) -> None:
        # The reader of the log may be gone; there is no other place to say so.
        with contextlib.suppress(OSError, ValueError):
            self.write()


def _stamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = clock.text(clock.now())
    return event


def _about(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What the line is about, where it is written during a call."""
    work = spans.under_way()
    if work.request_id is not None:
        event.setdefault("request_id", work.request_id)
    if work.trace_id is not None:
        event["trace_id"] = work.trace_id
    return event


_encoder = json.JSONEncoder(default=repr)


def _json(event: EventDict, **_: object) -> str:
    # `json.dumps` would make an encoder for each line.
    return _encoder.encode(event)


_SHARED: tuple[Processor, ...] = (_about, structlog.processors.add_log_level, _stamp)


def masked(text: str) -> str:
    """The text without the secrets that it holds."""
    return _SECRETS.sub(r"\1****", text) if "sk-" in text or "whsec_" in text else text


def _cut(text: str) -> str:
    whole = masked(text)
    return whole if len(whole) <= FOREIGN_CHARACTERS_MAX else whole[:FOREIGN_CHARACTERS_MAX] + "…"


def _foreign(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """What a library says: masked before it is cut, or half a secret would stay; its end is kept.

    The last lines of a traceback say what went wrong.
    """
    event["event"] = _cut(str(event["event"]))
    event = structlog.processors.format_exc_info(logger, method, event)
    if "exception" in event:
        text = masked(str(event["exception"]))
        event["exception"] = (
            text if len(text) <= FOREIGN_CHARACTERS_MAX else ("…" + text[-FOREIGN_CHARACTERS_MAX:])
        )
    return event


def configure(
    level: LogLevel = "info", form: LogFormat | None = None, stream: TextIO | None = None
) -> None:
    """Set up logging for this process. Without `form`: console on a terminal, else JSON."""
    out = stream or sys.stderr
    least = logging.getLevelNamesMapping()[level.upper()]
    lines = _Lines(out)
    renderers: tuple[Processor, ...]
    if form == "json" or (form is None and not out.isatty()):
        renderers = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json))
    else:
        # Plain: the ornate ones print local variables, and with them secrets.
        plain = structlog.dev.plain_traceback
        renderers = (structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain),)
    structlog.configure(
        processors=[*_SHARED, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: lines,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=[*_SHARED, _foreign],
        )
    )
    # Libraries speak up when something is wrong with them; their small talk is not ours.
    logging.basicConfig(handlers=[handler], level=max(least, logging.WARNING), force=True)
