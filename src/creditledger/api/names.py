"""The names in a REST body that no field of the request has: refused, though Envoy drops them.

Envoy's transcoder ignores what it does not know, so that a slip of the pen (`expiresAtt`) would
make a grant without an end. Its script reads the body beside it and sends the distinct paths of
names along, in one header; here they are held against the request's message.
"""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from urllib.parse import unquote

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from creditledger.domain.errors import InvalidField, UnknownParameter

#: Paths joined by ",", a path's names by "."; a name has A-Z a-z 0-9 _ and the others as %XX.
NAMES_HEADER = "x-creditledger-names"
#: In the place of paths: the script could not read the body as JSON, or did not come to its end.
UNREAD = "!"
#: In the place of paths: the body has more of them than the script counts.
TOO_MANY = "+"
NAMES_MAX = 256

#: Fields of requests that the vendor publishes and this service does not have, by message. They are
#: accepted and dropped, since no amount depends on them; every other one is refused.
DROPPED = MappingProxyType(
    {
        # The digits of the meter's currency. They are the currency's own here, and an amount with
        # more digits than those is refused.
        "credit.v1.PaymentKitServiceCreateMeterRequest": frozenset({"decimal"}),
        # What to show beside an event.
        "credit.v1.PaymentKitServiceCreateMeterEventRequest": frozenset({"source_data"}),
    }
)

_SHOWN_MAX = 128


@lru_cache(maxsize=1_024)  # the requests of one client have few forms
def check(message: Descriptor, paths: str) -> None:
    """Raises UnknownParameter for the first path that the message does not have.

    And InvalidField for a body that the script could not read to its end.
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
    """How many of the names, from the first on, lead somewhere; all of them if nothing is wrong."""
    for place, name in enumerate(names):
        if name in DROPPED.get(message.full_name, ()):
            return len(names)
        field = _fields(message).get(name)
        if field is None:
            return place
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.file.package == "google.protobuf":
            return len(names)  # what is inside is the caller's, or no object, which Envoy refuses
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
