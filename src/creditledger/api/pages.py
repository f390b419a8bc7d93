"""Page tokens: a position in a list, bound to the filters it was made with.

A token is opaque to clients and carries no right: a call with a token is checked like any other. A
token holds the position and a digest of the filters.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import Message

from creditledger.api import fields
from creditledger.domain.errors import InvalidField

T = TypeVar("T")

#: Page sizes of the lists that are ordered by id.
PAGE_SIZE, PAGE_SIZE_MAX = 20, 100

#: Longer than any token of this module. The longest tokens list the transactions that were under
#: way at their time.
TOKEN_CHARACTERS_MAX = 4_096


def token(filters: object, position: Sequence[int | str]) -> str:
    """The token of `position` in the list with these filters (any value with a stable repr)."""
    body = json.dumps([_digest(filters), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def position(text: str, filters: object, kinds: Sequence[type]) -> list[int | str]:
    """The position in a token of these filters, as values of these kinds.

    Raises InvalidField(page_token) for anything else.
    """
    try:
        if len(text) > TOKEN_CHARACTERS_MAX:
            raise ValueError
        body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        digest, *values = json.loads(body)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise InvalidField("page_token is no token of this list", param="page_token") from None
    if digest != _digest(filters):
        raise InvalidField("page_token belongs to a list with other filters", param="page_token")
    found: list[int | str] = values
    if [type(value) for value in found] != list(kinds) or not all(map(_is_sane, found)):
        raise InvalidField("page_token is no token of this list", param="page_token")
    return found


def _is_sane(value: int | str) -> bool:
    """Whether a database takes the value; a client may have made the token up."""
    return value.isascii() if isinstance(value, str) else 0 <= value < 2**63


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page of a list ordered by id that a request asks for."""

    size: int
    token: str | None

    def after(self, filters: object) -> str:
        """The id after which the page begins, "" for the first page. Raises InvalidField."""
        if self.token is None:
            return ""
        (after,) = position(self.token, filters, [str])
        return str(after)

    def before(self, filters: object) -> int | None:
        """As `after`, for a list ordered by number, newest first; None for the first page."""
        if self.token is None:
            return None
        (before,) = position(self.token, filters, [int])
        return int(before)


def asked(request: Message, *, size_max: int = PAGE_SIZE_MAX) -> PageRequest:
    """`page_size` and `page_token` of a request. Raises InvalidField for the size."""
    size = fields.page_size(
        request, "page_size", field="page_size", default=PAGE_SIZE, most=size_max
    )
    return PageRequest(size, fields.optional(request, "page_token", None))


def cut(
    items: Sequence[T], size: int, filters: object, position_of: Callable[[T], Sequence[int | str]]
) -> tuple[Sequence[T], str | None]:
    """The page and the token of the next page. More than `size` items mean a next page."""
    page = items[:size]
    return page, token(filters, position_of(page[-1])) if len(items) > size else None


def _digest(filters: object) -> str:
    return hashlib.blake2b(repr(filters).encode(), digest_size=9).hexdigest()
