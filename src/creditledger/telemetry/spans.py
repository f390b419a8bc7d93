"""The call under way, as its trace and the log know it.

A span is a timed part of a trace. Where traces are off, there are none, and all that is left is to
look whether there is one. `traces.py` makes spans, and is imported only where traces are on.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, Self


class TraceSpan(Protocol):
    """A timed part of a trace, from its making to its end."""

    @property
    def trace_id(self) -> str:
        """The id of its trace, 32 hexadecimal digits."""
        ...

    def part(self, name: str, *, links: Sequence[Self] = ()) -> Self:
        """A part of this one, which begins now. `links`: spans that it belongs to besides."""
        ...

    def note(self, name: str, value: str | int) -> None:
        """Tell something of it."""
        ...

    def end(self, failure: str | None = None) -> None:
        """It ends now. `failure`: why it failed, if it did."""
        ...


class UnderWay(NamedTuple):
    """What the work that is under way is done for."""

    request_id: str | None
    trace_id: str | None = None
    span: TraceSpan | None = None  #: None: it is not traced.


_NOTHING = UnderWay(None)
_under_way: ContextVar[UnderWay] = ContextVar("under_way", default=_NOTHING)


def begin(work: UnderWay) -> None:
    """From now on this task works for this call."""
    _under_way.set(work)


def under_way() -> UnderWay:
    """What this task works for."""
    return _under_way.get()


def part(name: str) -> TraceSpan | None:
    """A part of the span under way; None where there is none."""
    span = _under_way.get().span
    return None if span is None else span.part(name)


@contextmanager
def together(calls: Iterable[TraceSpan | None], name: str, *, size: int) -> Iterator[None]:
    """What is done inside is done for all these calls at once, `size` things in all.

    Each call that is traced gets a part for it. What is traced inside belongs to the first one, to
    which the others have a link.
    """
    traced = {call: None for call in calls if call is not None}
    if not traced:
        yield
        return
    parts: list[TraceSpan] = []
    for call in traced:
        parts.append(call.part(name, links=parts[:1]))
        parts[-1].note("creditledger.batch.size", size)
    before = _under_way.set(UnderWay(None, parts[0].trace_id, parts[0]))
    failure = None
    try:
        yield
    except BaseException as error:
        failure = type(error).__name__
        raise
    finally:
        _under_way.reset(before)
        for each in parts:
            each.end(failure)
