"""The log: one line per event on standard error, as JSON or for people.

Called once by each process that serves. Everything logs through structlog; what libraries say
through `logging` comes out in the same form. Secrets never reach it: callers log ids.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from creditledger.config import LogFormat, LogLevel

_SHARED: tuple[Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure(
    level: LogLevel = "info", form: LogFormat | None = None, stream: TextIO | None = None
) -> None:
    """Set up logging for this process. Without `form`: console on a terminal, else JSON."""
    out = stream or sys.stderr
    least = logging.getLevelNamesMapping()[level.upper()]
    renderers: tuple[Processor, ...]
    if form == "json" or (form is None and not out.isatty()):
        renderers = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
    else:
        # Plain: the ornate ones print local variables, and with them secrets.
        plain = structlog.dev.plain_traceback
        renderers = (structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain),)
    structlog.configure(
        processors=[*_SHARED, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(file=out),
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
            foreign_pre_chain=_SHARED,
        )
    )
    # Libraries speak up when something is wrong with them; their small talk is not ours.
    logging.basicConfig(handlers=[handler], level=max(least, logging.WARNING), force=True)
