"""The event loop of a process of the ledger, and the signals that end it."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:  # there is none for this platform
    from asyncio import new_event_loop

T = TypeVar("T")

#: New objects before the collector looks through them, about a full batch's worth; and how often
#: it does before it looks through older ones too.
GC_THRESHOLDS = 50_000, 10, 10
#: What a stop may take beyond the drain: the queue, the last commit, folding the journal.
CLOSE_SECONDS_MAX = 20.0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on the fastest loop there is, with a garbage collector that looks rarely.

    All that a batch makes lives until its COMMIT, and little of it is cyclic: looking through it
    again and again takes a quarter of the time and finds nothing.
    """
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(coroutine)
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; further ones are ignored, for a drain has a bound."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def first_of(*events: Coroutine[Any, Any, object]) -> None:
    """Wait until one of them has happened."""
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
