"""Refuses names in a REST body that are no field of the request.

Envoy's transcoder ignores unknown names. A typing error (`expiresAtt`) would then make a grant
without an end. So Envoy's script adds a header with the distinct paths of names in the body. This
module compares them with the request's message.
"""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from creditledger.domain.errors import InvalidField, UnknownParameter

#: "," joins paths, "." joins the names of a path. A-Z a-z 0-9 _ stand for themselves in a name;
#: other characters are %XX.
NAMES_HEADER = "x-creditledger-names"
#: Instead of paths: the script could not read the whole body as JSON.
UNREAD = "!"
#: Instead of paths: the body has more paths than the script counts.
TOO_MANY = "+"
NAMES_MAX = 256

#: Fields, by message, that the vendor publishes and this service lacks. The service accepts and
#: drops them, since no amount depends on them. It refuses every other unknown field.
DROPPED = MappingProxyType(
    {
        # The digits of the meter's currency. Here each currency has its own digits, and the ledger
        # refuses an amount with more digits.
        "credit.v1.PaymentKitServiceCreateMeterRequest": frozenset({"decimal"}),
        # Details that a console shows beside an event.
        "credit.v1.PaymentKitServiceCreateMeterEventRequest": frozenset({"source_data"}),
    }
)

_SHOWN_MAX = 128


@lru_cache(maxsize=1_024)  # the requests of one client have few forms
def check(message: Descriptor, paths: str) -> None:
    """Raises UnknownParameter for the first path that the message does not have.

    Raises InvalidField for a body that the script could not read to its end.
    """
    if paths == UNREAD:
        raise InvalidField("the body is not a JSON object")
    if paths == TOO_MANY:
        raise InvalidField(f"the body has more than {NAMES_MAX} different names")
    for path in paths.split(",") if paths else ():
        names = [unquote(name, errors="replace") for name in path.split(".")]
        if (known := _known(message, names)) < len(names):
            shown = "".join(c if c.isprintable() else "�" for c in ".".join(names[: known + 1]))
            shown = shown[:_SHOWN_MAX]
            raise UnknownParameter(f"{shown} is not a field of this request", param=shown)


def _known(message: Descriptor, names: list[str]) -> int:
    """How many of the names, from the first on, the message knows; all of them for a valid path."""
    for place, name in enumerate(names):
        if name in DROPPED.get(message.full_name, ()):
            return len(names)
        field = _fields(message).get(name)
        if field is None:
            return place
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.file.package == "google.protobuf":
            # A free-form object has the caller's names. Envoy refuses a value that is no object.
            return len(names)
        message = inner
    return len(names)


@cache
def _fields(message: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields by each of their spellings."""
    found: dict[str, FieldDescriptor] = {}
    for field in message.fields:
        camel = re.sub("_(.)", lambda match: match[1].upper(), field.name)
        found |= dict.fromkeys((field.name, field.json_name, camel), field)
    return found
