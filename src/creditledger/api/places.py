"""How many long calls of a kind a process serves at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager

from creditledger.errors import Overloaded


class Places:
    """Places that calls of one kind take for as long as they last."""

    def __init__(self, what: str, *, retry_after: str) -> None:
        """`what` they are, as the refusal calls them; `retry_after`: seconds."""
        self._what = what
        self._retry_after = retry_after
        self._taken = 0

    @contextmanager
    def one(self, most: int) -> Iterator[None]:
        """A place, if fewer than `most` are taken. Raises Overloaded."""
        if self._taken >= most:
            raise Overloaded(
                f"{most} {self._what} are under way already", retry_after=self._retry_after
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
