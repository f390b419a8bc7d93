"""Ids: a prefix that says the kind, and what follows it.

Ids of transactions, postings and grants are computed, not stored: wallet number and number within
the wallet, 13 characters each. They route to their wallet, sort as text in order of creation, and
need no index. Ids of wallets, customers, meters, subscriptions and keys are chosen or random.
"""

import re
import secrets
from collections.abc import Callable
from functools import lru_cache

#: Crockford's base 32, lower case: no i, l, o, u; its text order is its numeric order.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUE = {c: i for i, c in enumerate(ALPHABET)}
#: 13 × 5 bits hold 64.
_WIDTH = 13
#: Two characters for each ten bits: half the steps.
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]


# Numbers are counted from 1, so a million of them begin alike.
@lru_cache(maxsize=1_024)
def _begin(high: int) -> str:
    """The upper 44 bits of a number as 9 characters."""
    pairs = _PAIRS
    return (
        f"{ALPHABET[high >> 40]}{pairs[high >> 30 & 1023]}{pairs[high >> 20 & 1023]}"
        f"{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
    )


def number_text(number: int) -> str:
    """A number of up to 64 bits as 13 characters."""
    return f"{_begin(number >> 20)}{_PAIRS[number >> 10 & 1023]}{_PAIRS[number & 1023]}"


def compose(prefix: str, wallet: int, number: int) -> str:
    """compose("ct", 1, 42) == "ct_0000000000001000000000001a"."""
    # As number_text twice, without the calls: every answer holds three ids.
    pairs = _PAIRS
    return (
        f"{prefix}_{_begin(wallet >> 20)}{pairs[wallet >> 10 & 1023]}{pairs[wallet & 1023]}"
        f"{_begin(number >> 20)}{pairs[number >> 10 & 1023]}{pairs[number & 1023]}"
    )


def resolve(prefix: str, text: str) -> tuple[int, int] | None:
    """(wallet number, number) of a composed id; None if `text` cannot be one."""
    head, _, body = text.partition("_")
    if head != prefix or len(body) != 2 * _WIDTH:
        return None
    numbers = [0, 0]
    for i, character in enumerate(body):
        value = _VALUE.get(character)
        if value is None:
            return None
        numbers[i // _WIDTH] = numbers[i // _WIDTH] << 5 | value
    wallet, number = numbers
    if max(numbers) >= 1 << 63:
        return None
    return wallet, number


def place(prefix: str, text: str) -> tuple[int, int]:
    """What `resolve` answers for an id that the ledger made."""
    found = resolve(prefix, text)
    assert found is not None, "the shape was checked"
    return found


def random(prefix: str) -> str:
    """A fresh id of 128 random bits, for things whose id nobody chose."""
    value = secrets.randbits(128)
    return f"{prefix}_{number_text(value >> 64)}{number_text(value & (1 << 64) - 1)}"


@lru_cache
def _chosen(prefix: str) -> Callable[[str], object]:
    return re.compile(prefix + r"_[A-Za-z0-9_-]{1,60}", re.ASCII).fullmatch


def is_chosen(prefix: str, text: str) -> bool:
    """Whether `text` is an id a caller may choose: <prefix>_[A-Za-z0-9_-]{1,60}."""
    return _chosen(prefix)(text) is not None
