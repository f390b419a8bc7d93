"""Codes that open sessions: each is taken once, and is gone then.

The functions take a connection on one snapshot or in one transaction.
"""

from sqlalchemy import Connection, select

from creditledger.domain.registry import Scope, SessionCode
from creditledger.store import schema
from creditledger.store.registry.records import refuse_archived, require_customer

#: Codes that one change removes at most. It adds one, so few that have expired are kept.
REMOVED_MAX = 100

c = schema.session_codes.c
_COLUMNS = (c.scope, c.customer_id, c.livemode, c.expires_at)


def add(connection: Connection, code_hash: bytes, new: SessionCode, now: int) -> None:
    """A new code. Some that have expired are removed.

    Raises NotFound for the customer, InvalidField for an archived one.
    """
    if new.customer_id is not None:
        refuse_archived(require_customer(connection, new.customer_id), "new session")
    expired = select(c.code_hash).where(c.expires_at <= now).limit(REMOVED_MAX)
    connection.execute(schema.session_codes.delete().where(c.code_hash.in_(expired)))
    connection.execute(
        schema.session_codes.insert().values(
            code_hash=code_hash,
            scope=new.scope.value,
            customer_id=new.customer_id,
            livemode=new.livemode,
            expires_at=new.expires_at,
        )
    )


def is_good(connection: Connection, code_hash: bytes, now: int) -> bool:
    """Whether there is a code of this hash that has not expired."""
    query = select(c.expires_at).where(c.code_hash == code_hash, c.expires_at > now)
    return connection.execute(query).one_or_none() is not None


def take(connection: Connection, code_hash: bytes, now: int) -> SessionCode | None:
    """The code of this hash, which is gone now; None: there is none, or it has expired.

    Of two transactions that take one code, the second waits for the first and then finds nothing.
    """
    taken = schema.session_codes.delete().where(c.code_hash == code_hash, c.expires_at > now)
    row = connection.execute(taken.returning(*_COLUMNS)).one_or_none()
    if row is None:
        return None
    return SessionCode(Scope(row.scope), row.customer_id, row.livemode, row.expires_at)
