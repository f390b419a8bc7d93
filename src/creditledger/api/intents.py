"""Idempotency keys at the edge: the field, the header, and the owner of a key.

Every RPC that changes something takes a key. Its request has the field `idempotency_key`, or has
items with keys of their own, or a code that is taken once. A key in the header is put into the
field, so the rest of the code knows the field only.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

from google.api import annotations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.domain import clock, money
from creditledger.domain.errors import InvalidField, Refusal
from creditledger.store.change_keys import Intent

FIELD = "idempotency_key"
#: The header's name as clients write it, and as the server receives it.
HEADER = "Idempotency-Key"
HEADER_NAME = HEADER.lower()

#: Fields that a replay does not compare: the key, and the mode, which is part of the key's owner.
_APART = frozenset({FIELD, "livemode"})
#: Fields with values that have several spellings.
_AMOUNTS = frozenset({"amount", "overdraft_limit"})
_TIMES = frozenset({"expires_at", "since"})
_DIGEST_CHARACTERS = 32


@cache
def method(path: str) -> MethodDescriptor:
    """The RPC of this path, "/credit.v1.WalletService/Post"."""
    return descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))


def is_change(one: MethodDescriptor) -> bool:
    """Whether the RPC changes something: its route is no GET, or its client streams."""
    if one.client_streaming:
        return True
    http = one.GetOptions().Extensions[annotations_pb2.http]
    return http.WhichOneof("pattern") not in (None, "get")


def takes_key(one: MethodDescriptor) -> bool:
    """Whether the request itself has a key. A batch, a stream, an event, a session has none."""
    return FIELD in one.input_type.fields_by_name


def take(one: MethodDescriptor, request: Message, given: Iterable[str]) -> None:
    """Put the header into the request's field. `given`: all values of the header.

    Raises InvalidField for a header that is no key or differs from the field, and for a request
    whose items have keys of their own, or which is done once by itself.
    """
    values = list(dict.fromkeys(given))
    if not takes_key(one):
        refuse_header()
    if len(values) > 1:
        raise InvalidField(f"{HEADER} is given twice, with different values", param=HEADER)
    key = fields.idempotency_key(values[0], field=HEADER)
    if not request.HasField(FIELD):
        setattr(request, FIELD, key)
    elif getattr(request, FIELD) != key:
        raise InvalidField(f"{FIELD} and the header {HEADER} must be equal", param=FIELD)


def refuse_header() -> NoReturn:
    """Raises InvalidField: a batch, a stream, a meter event or a session takes no header."""
    raise InvalidField(
        f"{HEADER} is not taken here: what the request names is done once by itself", param=HEADER
    )


def intent(one: MethodDescriptor, request: Message, caller: Caller, now: int) -> Intent | None:
    """The change that a request makes under its idempotency key; None: it has no key.

    Not for changes of a wallet: their keys belong to the wallet. Raises InvalidField, ModeMismatch.
    """
    if not request.HasField(FIELD):
        return None
    livemode = None
    if "livemode" in one.input_type.fields_by_name and request.HasField("livemode"):
        livemode = request.livemode  # type: ignore[attr-defined] # as was asked
    return Intent(
        customer_id=caller.customer_id or "",
        livemode=caller.mode(livemode),
        rpc=f"{one.containing_service.name}/{one.name}",
        key=fields.idempotency_key(getattr(request, FIELD)),
        request=_digests(request),
        asked_by=caller.number,
        asked_at=now,
    )


def _digests(request: Message) -> dict[str, str]:
    """A digest of each field; a replay compares requests by them.

    The digests are of values: an absent field equals an empty one, "1.0" equals "1.00".
    """
    said = MessageToDict(request, preserving_proto_field_name=True)
    found = {}
    for name, value in said.items():
        if name not in _APART and value not in ("", {}, []):
            text = json.dumps(_value(name, value), sort_keys=True)
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return found


def _value(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_value(name, one) for one in value]
    if isinstance(value, dict) and name != "metadata":
        return {key: _value(key, one) for key, one in value.items()}
    # A malformed value is refused later, so its form does not matter here.
    with suppress(Refusal):
        if name in _AMOUNTS:
            whole, _, fraction = money.check(value, field=name).partition(".")
            return f"{int(whole)}.{fraction.rstrip('0')}"
        if name in _TIMES:
            return clock.parse(value, field=name)
    return value
