"""Idempotency keys of changes that belong to no wallet.

The keys of a wallet are those of its postings, see engine/batch.py. A key in this module belongs to
an RPC, a mode, and the operator or a customer. The transaction of the change binds the key, and the
key is kept for ever: triggers refuse to delete it. The functions take a connection in a write
transaction.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Connection, and_, select, text, update

from creditledger.domain.errors import IdempotencyKeyReused
from creditledger.store import schema

T = TypeVar("T")

k = schema.change_keys.c

_NAMES = ("customer_id", "livemode", "rpc", "idempotency_key", "request", "created_at", "asked_by")
#: If two transactions bind one key, one waits for the other to commit and then inserts nothing.
_BIND = text(
    f"INSERT INTO change_keys ({', '.join(_NAMES)})"  # noqa: S608 # constants
    f" VALUES ({', '.join(f':{name}' for name in _NAMES)}) ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Intent:
    """A change as a client asked for it, under an idempotency key."""

    customer_id: str  #: Whose key it is; "" is the operator's.
    livemode: bool
    rpc: str  #: Service and method.
    key: str
    request: Mapping[str, str]  #: The digest of each field that was given, by name.
    asked_by: int | None  #: Number of the API key; None: the command line.
    asked_at: int

    def same(self) -> ColumnElement[bool]:
        """The row of this key."""
        return and_(
            k.customer_id == self.customer_id,
            k.livemode == self.livemode,
            k.rpc == self.rpc,
            k.idempotency_key == self.key,
        )


class Kept(NamedTuple):
    """What a key names."""

    subject: str | None
    answer: str | None
    place: str | None

    @property
    def id(self) -> str:
        """Of what was changed."""
        assert self.subject is not None, "what has no id is not looked up"
        return self.subject


class Made(NamedTuple, Generic[T]):
    """The result of a change."""

    value: T
    replayed: bool  #: It was made before, under this key; nothing is written now.


def once(
    connection: Connection,
    intent: Intent | None,
    change: Callable[[Connection], T],
    again: Callable[[Connection, Kept], T],
    subject: Callable[[T], str],
    answer: Callable[[T], str | None] = lambda _: None,
) -> Made[T]:
    """What `change` answers; or `again`, what there is by now, if the key has that change already.

    `subject`, `answer`: what to keep for `again`. Without an intent it is `change` alone. Two
    statements more for a new key. Raises IdempotencyKeyReused for another request, and what
    `change` raises: then the key stays free.
    """
    if intent is None:
        return Made(change(connection), replayed=False)
    kept = _bind(connection, intent)
    if kept is not None:
        return Made(again(connection, kept), replayed=True)
    value = change(connection)
    _keep(connection, intent, Kept(subject(value), answer(value), None))
    return Made(value, replayed=False)


class Count(NamedTuple):
    """The progress of a change that takes several transactions."""

    done: int  #: How many of what it is about.
    place: str | None  #: Where it goes on; None: it is done.


def step(
    connection: Connection,
    intent: Intent | None,
    so_far: Count,
    work: Callable[[Connection, str], Count],
) -> Count:
    """One transaction's part of a change: `work` goes on at a place, and answers how much it did.

    Under a key, `so_far` is what the key's row says. Each part is done once, over all servers and
    repetitions, and a change that was cut off goes on where it ended. Raises IdempotencyKeyReused.
    """
    if intent is not None:
        kept = _bind(connection, intent)
        if kept is not None:
            so_far = Count(int(kept.answer or 0), kept.place)
    if so_far.place is None:
        return so_far
    more = work(connection, so_far.place)
    so_far = Count(so_far.done + more.done, more.place)
    if intent is not None:
        _keep(connection, intent, Kept(None, str(so_far.done), so_far.place))
    return so_far


def _bind(connection: Connection, intent: Intent) -> Kept | None:
    """None if the key was free: it is bound now. Raises IdempotencyKeyReused."""
    said = json.dumps(dict(intent.request), sort_keys=True)
    bound = connection.execute(
        _BIND,
        {
            "customer_id": intent.customer_id,
            "livemode": intent.livemode,
            "rpc": intent.rpc,
            "idempotency_key": intent.key,
            "request": said,
            "created_at": intent.asked_at,
            "asked_by": intent.asked_by,
        },
    )
    if bound.rowcount:
        return None
    query = select(k.request, k.subject, k.answer, k.place).where(intent.same())
    request, *kept = connection.execute(query.with_for_update()).one()
    before = json.loads(request)
    differing = [
        name
        for name in before.keys() | intent.request.keys()
        if before.get(name) != intent.request.get(name)
    ]
    if differing:
        raise IdempotencyKeyReused("another request", differing)
    return Kept(*kept)


def _keep(connection: Connection, intent: Intent, kept: Kept) -> None:
    connection.execute(update(schema.change_keys).where(intent.same()).values(kept._asdict()))
