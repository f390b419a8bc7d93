"""The rules for the values of fields, in one place for all requests.

Each function answers the checked value, or raises InvalidField or MissingField under the field's
JSON name. The functions know nothing of the database, so a bad value is refused before the caller
is known. The proto comments state the same limits.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from creditledger.domain import clock, ids, money
from creditledger.domain.commands import METADATA_BYTES_MAX, METADATA_KEYS_MAX
from creditledger.domain.errors import InvalidField, MissingField, ResultTooLarge, echo

T = TypeVar("T")

TEXT_MAX = 512  #: description, note
NAME_MAX = 128  #: names, labels, ids of others
KEY_MAX = 255  #: idempotency keys
EMAIL_MAX = 254
QUERY_MAX = 256  #: search strings
QUANTITY_MAX = 10**15
QUANTITIES_MAX = 6
PRICE_MAX = 10**15
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KEY = re.compile(rf"[\x20-\x7e]{{1,{KEY_MAX}}}", re.ASCII)
_POSITIVE = re.compile(r"(?=[0.]*[1-9])[0-9]{1,30}(?:\.[0-9]{1,30})?", re.ASCII)
_CURRENCY = re.compile(r"[A-Z][A-Z0-9_]{2,15}", re.ASCII)


def answered(value: int, *, most: int, field: str) -> int:
    """`value`, a sum in an answer, if its field can hold it. Raises ResultTooLarge."""
    if not -most <= value <= most:
        raise ResultTooLarge(f"{field} would pass {most}: ask for less at once", param=field)
    return value


def given(message: Message, name: str) -> bool:
    """Whether an optional field was sent."""
    return message.HasField(name)


def optional(message: Message, name: str, otherwise: T) -> T:
    """The field's value if it was sent, else `otherwise`."""
    return getattr(message, name) if message.HasField(name) else otherwise


def livemode(message: Message) -> bool | None:
    """The mode that the request names, if it names one."""
    return optional(message, "livemode", None)


def required(value: str, *, field: str) -> str:
    """`value`. Raises MissingField if it is empty: in proto3 empty means absent."""
    if not value:
        raise MissingField(field)
    return value


def not_empty(value: str, *, field: str) -> str:
    """`value` of an optional field; a client leaves the field out instead of sending it empty."""
    if not value:
        raise InvalidField(f"{field} must not be empty; leave it out instead", param=field)
    return value


def text(value: str, *, field: str, most: int = TEXT_MAX) -> str:
    """A text of 1 to `most` characters without control characters."""
    if len(value) > most:
        raise InvalidField(f"{field} has {len(value)} characters, at most {most}", param=field)
    # A printable text has no control characters, and `isprintable` is faster than the pattern.
    if not value.isprintable() and _CONTROL.search(value):
        raise InvalidField(f"{field} must not hold control characters", param=field)
    return value or not_empty(value, field=field)


def optional_text(message: Message, name: str, *, field: str, most: int = TEXT_MAX) -> str | None:
    """`text` of an optional field; None if it was not sent."""
    return text(getattr(message, name), field=field, most=most) if given(message, name) else None


def texts(values: Iterable[str], *, count_max: int, field: str) -> tuple[str, ...]:
    """Up to `count_max` texts of 1 to 128 characters; sorted, each once."""
    found = tuple(values)
    if len(found) > count_max:
        raise InvalidField(f"{field} has {len(found)} values, at most {count_max}", param=field)
    for i, value in enumerate(found):
        text(value, field=f"{field}[{i}]", most=NAME_MAX)
    return tuple(sorted(set(found)))


def name(value: str, *, field: str = "name") -> str:
    """A required text of 1 to 128 characters."""
    return text(required(value, field=field), field=field, most=NAME_MAX)


def idempotency_key(value: str, *, field: str = "idempotency_key") -> str:
    """1 to 255 printable ASCII characters."""
    if not _KEY.fullmatch(value):
        required(value, field=field)
        raise InvalidField(
            f"{field} must be 1 to {KEY_MAX} printable ASCII characters", param=field
        )
    return value


def optional_key(message: Message) -> str | None:
    """The request's idempotency key, if it has one."""
    given = optional(message, "idempotency_key", None)
    return None if given is None else idempotency_key(given)


def reference(prefix: str, value: str, *, field: str) -> str:
    """A well-formed id of this kind, chosen by a client or made by the ledger; it may not exist."""
    if not ids.is_chosen(prefix, value):
        required(value, field=field)
        raise InvalidField(f"{field} must be an id {prefix}_…, not {echo(value)}", param=field)
    return value


def made(prefix: str, value: str, *, field: str) -> str:
    """An id of this kind in the form that the ledger makes; it may not exist."""
    if ids.resolve(prefix, value) is None:
        required(value, field=field)
        raise InvalidField(f"{field} must be an id {prefix}_…, not {echo(value)}", param=field)
    return value


def optional_reference(prefix: str, message: Message, name: str, *, field: str) -> str | None:
    """`reference` of an optional field; None if it was not sent."""
    if not given(message, name):
        return None
    return reference(prefix, not_empty(getattr(message, name), field=field), field=field)


def currency(value: str, *, field: str) -> str:
    """A currency code: 3 to 16 of A-Z 0-9 _, a letter first."""
    required(value, field=field)
    if not _CURRENCY.fullmatch(value):
        raise InvalidField(
            f"{field} must be a currency code such as USD, not {echo(value)}", param=field
        )
    return value


def optional_currency(message: Message, name: str, *, field: str) -> str | None:
    """`currency` of an optional field; None if it was not sent."""
    if not given(message, name):
        return None
    return currency(not_empty(getattr(message, name), field=field), field=field)


def word(value: str, words: Mapping[str, T], *, field: str) -> T:
    """The value of a word. Raises InvalidField if the word is not in `words`."""
    found = words.get(value)
    if found is None:
        choices = ", ".join(words)
        raise InvalidField(f"{field} must be one of {choices}, not {echo(value)}", param=field)
    return found


def number(value: int, *, least: int, most: int, field: str) -> int:
    """A whole number in [least, most]."""
    if not least <= value <= most:
        raise InvalidField(f"{field} must be {least} to {most}, not {value}", param=field)
    return value


def numbers(values: Iterable[int], *, most: int, count_max: int, field: str) -> tuple[int, ...]:
    """Up to `count_max` whole numbers in [0, most]."""
    found = tuple(values)
    if len(found) > count_max:
        raise InvalidField(f"{field} has {len(found)} values, at most {count_max}", param=field)
    if found and not 0 <= min(found) <= max(found) <= most:
        for i, value in enumerate(found):
            number(value, least=0, most=most, field=f"{field}[{i}]")
    return found


def amount(value: str, *, field: str, signed: bool = False) -> str:
    """A decimal other than zero, and positive unless `signed`.

    The ledger checks the digits after the point under the wallet's lock, where it knows the scale.
    """
    if _POSITIVE.fullmatch(value):
        return value  # fast path for the usual amounts
    money.check(required(value, field=field), field=field)
    if not value.strip("0."):
        raise InvalidField(f"{field} must not be zero", param=field)
    if value[0] == "-" and not signed:
        raise InvalidField(f"{field} must be positive", param=field)
    return value


def limit(value: str, *, field: str) -> str:
    """A decimal of 0 or more."""
    money.check(value, field=field)
    if value[0] == "-":
        raise InvalidField(f"{field} must not be negative", param=field)
    return value


def metadata(pairs: Mapping[str, str], *, field: str = "metadata") -> dict[str, str]:
    """At most 50 keys and 8 kB, keys of 1 to 128 characters, no control characters."""
    found = dict(pairs)
    if len(found) > METADATA_KEYS_MAX:
        raise InvalidField(
            f"{field} has {len(found)} keys, at most {METADATA_KEYS_MAX}", param=field
        )
    size = sum(len(key.encode()) + len(value.encode()) for key, value in found.items())
    if size > METADATA_BYTES_MAX:
        raise InvalidField(f"{field} has {size} bytes, at most {METADATA_BYTES_MAX}", param=field)
    for key, value in found.items():
        if not key or len(key) > NAME_MAX or _CONTROL.search(key) or _CONTROL.search(value):
            raise InvalidField(
                f"{field} has an empty or overlong key, or control characters", param=field
            )
    return found


def email(value: str, *, field: str) -> str:
    """A text with an @ in it. The service does not check that anybody receives mail there."""
    text(required(value, field=field), field=field, most=EMAIL_MAX)
    local, at, domain = value.partition("@")
    if not (at and local and domain) or " " in value:
        raise InvalidField(f"{field} must be an e-mail address", param=field)
    return value


def optional_time(message: Message, name: str, *, field: str) -> int | None:
    """Milliseconds of an optional RFC 3339 field; None if it was not sent."""
    return clock.parse(getattr(message, name), field=field) if given(message, name) else None


def seconds(message: Message, name: str, *, field: str) -> int | None:
    """An optional field of whole Unix seconds, in milliseconds; years 1970 to 9999."""
    if not given(message, name):
        return None
    value: int = getattr(message, name)
    number(value, least=0, most=253_402_300_799, field=field)
    return value * clock.SECOND


def page_size(message: Message, name: str, *, field: str, default: int, most: int) -> int:
    """An optional page size in [1, most]."""
    if not given(message, name):
        return default
    return number(getattr(message, name), least=1, most=most, field=field)
