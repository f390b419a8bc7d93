"""How the last verification of the whole ledger ended: what `verify` writes down.

The functions take a connection on one snapshot or in one transaction.
"""

import json
from typing import NamedTuple

from sqlalchemy import Connection, select, text

from creditledger.store import schema

v = schema.last_verification.c

_WRITE = text(
    "INSERT INTO last_verification (number, finished_at, failed_checks)"
    " VALUES (1, :finished_at, :failed_checks)"
    " ON CONFLICT (number) DO UPDATE SET finished_at = excluded.finished_at,"
    " failed_checks = excluded.failed_checks"
)


class VerificationOutcome(NamedTuple):
    """When the whole ledger was verified, and what was found."""

    finished_at: int
    failed_checks: tuple[str, ...]  #: Names; none if every check passes.


def last(connection: Connection) -> VerificationOutcome | None:
    """The last one; None before the first."""
    found = connection.execute(select(v.finished_at, v.failed_checks)).one_or_none()
    return None if found is None else VerificationOutcome(found[0], tuple(json.loads(found[1])))


def write(connection: Connection, new: VerificationOutcome) -> None:
    """Replace the last one by this one."""
    failed = json.dumps(new.failed_checks)
    connection.execute(_WRITE, {"finished_at": new.finished_at, "failed_checks": failed})
