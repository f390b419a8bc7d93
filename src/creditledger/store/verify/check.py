"""What a check of the ledger is: a condition in SQL that no row may meet.

docs/ledger.md, "Invariants", says which invariant each check belongs to.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from creditledger.domain import commands, operations


class Check(NamedTuple):
    """A condition that is true of a damaged row, and what to say of that row.

    Where proofs.py has a shorter proof of the pass, the proof has to ask for it as well.
    """

    #: SQL. A comparison with a missing row gives NULL and finds nothing; another check finds that
    #: the row is missing.
    wrong: str
    message: str  #: {…} holds SQL and stands for its value.


class Pass(NamedTuple):
    """Checks that one query makes, over one table and the rows that its rows refer to.

    SQLite and PostgreSQL run the same query; spelling.py has the few words that differ.
    """

    name: str
    #: The pass finds nothing if all these tables are empty. Most ledgers leave most tables empty.
    about: tuple[str, ...]
    source: str  #: The FROM clause.
    place: tuple[str, str]  #: SQL for the wallet number and the sequence of a finding.
    checks: Mapping[str, Check]  #: By name.

    @property
    def wrong(self) -> tuple[str, ...]:
        """The conditions of the checks."""
        return tuple(f"({check.wrong})" for check in self.checks.values())


class Finding(NamedTuple):
    """One thing wrong with a row, posting, grant, wallet or fold, or with the database."""

    check: str
    wallet_id: str | None  #: None if there is no such wallet.
    wallet_number: int
    #: The row's, that of a posting's first row, or that of the row that made a grant.
    sequence: int | None
    message: str


class Op(IntEnum):
    """What a posting does, as postings store it."""

    GRANT = operations.GiveGrant.code
    CONSUMPTION = operations.Consume.code
    ADJUSTMENT = operations.Adjust.code
    REFUND = operations.Refund.code
    HOLD = operations.PlaceHold.code
    CAPTURE = operations.Capture.code
    RELEASE = operations.Release.code
    EXTEND = operations.Extend.code
    VOID = operations.VoidGrant.code
    TRANSFER = operations.Transfer.code
    METER_EVENT = operations.ReportEvent.code
    CANCEL = operations.CancelEvent.code
    EXPIRY = commands.EXPIRE
    RECEIVE = commands.RECEIVE
    SETTLE = commands.SETTLE
    RETURN = commands.RETURN


#: Operations whose rows are consumptions, in SQL.
SPENDING = f"{Op.CONSUMPTION}, {Op.CAPTURE}, {Op.METER_EVENT}, {Op.SETTLE}"
#: Operations that change terms and move no credit, in SQL.
CHANGES = ", ".join(map(str, commands.CHANGE_NAMES))


def joined(table: str, alias: str, owner: str, number: str, key: str = "number") -> str:
    """A LEFT JOIN of the row of the same wallet whose `key` is the `number` of `owner`."""
    return f"""LEFT JOIN {table} AS {alias}
        ON {alias}.wallet_number = {owner}.wallet_number AND {alias}.{key} = {owner}.{number}"""
