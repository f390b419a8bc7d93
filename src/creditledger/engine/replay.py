"""Same request or another? How a retry is compared with the posting under its key.

A request is compared by value, attribute by attribute. What the rows, the posting
and its dimension already tell is not stored again: `Posting.terms` is only the rest.
"""

from collections.abc import Mapping
from typing import NoReturn

from creditledger.domain.commands import Command, present
from creditledger.domain.errors import IdempotencyKeyReused
from creditledger.domain.model import Dimension, Posting


def check(
    command: Command, amount: int | None, posting: Posting, dimension: Dimension | None
) -> None:
    """Raises IdempotencyKeyReused, naming what differs, unless `posting` is of this request."""
    operation = command.operation
    if posting.operation != operation.code:
        _refuse(["operation"])
    asked = {"amount": amount, **operation.told(command), **operation.terms(command)}
    stored = {"amount": posting.amount, **operation.told_by(posting, dimension)}
    _compare(present(asked), present({**stored, **posting.terms}))


def check_change(operation: int, terms: Mapping[str, object], posting: Posting) -> None:
    """As `check`, of a change with these terms."""
    if posting.operation != operation:
        _refuse(["operation"])
    _compare(terms, posting.terms)


def _compare(asked: Mapping[str, object], stored: Mapping[str, object]) -> None:
    differing = [
        name for name in asked.keys() | stored.keys() if asked.get(name) != stored.get(name)
    ]
    if differing:
        _refuse(differing)


def _refuse(differing: list[str]) -> NoReturn:
    raise IdempotencyKeyReused("a posting of another request", differing)
