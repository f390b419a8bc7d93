"""What a check of the ledger is: an invariant as a condition that no row may meet.

docs/ledger.md, "Invariants", says what each is for.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from creditledger.domain import commands


class Check(NamedTuple):
    """One thing that must not be so."""

    #: True of what is wrong, in SQL. To compare with what is missing gives NULL, so finds nothing:
    #: that it is missing is a check of its own.
    wrong: str
    message: str  #: What to say of it; {…} stands for the value of what it holds, in SQL.


class Pass(NamedTuple):
    """Checks made in one query over one table and what belongs to its rows.

    SQLite and PostgreSQL both run it; spelling.py has what they spell differently.
    """

    name: str
    #: It finds nothing where none of these tables has a row: most ledgers leave most of them empty.
    about: tuple[str, ...]
    source: str  #: Tables, in SQL.
    place: tuple[str, str]  #: Wallet number, sequence.
    checks: Mapping[str, Check]  #: By name.

    @property
    def wrong(self) -> tuple[str, ...]:
        """What the checks say is wrong, in SQL."""
        return tuple(f"({check.wrong})" for check in self.checks.values())


class Finding(NamedTuple):
    """One thing wrong with a row, posting, grant, wallet or roll-up, or with the database."""

    check: str
    wallet_id: str | None  #: None if there is no such wallet.
    wallet_number: int
    #: Of the row, of a posting's first row, of the row that made a grant.
    sequence: int | None
    message: str


class Op(IntEnum):
    """What a posting does, as postings store it."""

    GRANT = commands.OPERATIONS[commands.GiveGrant][0]
    CONSUMPTION = commands.OPERATIONS[commands.Consume][0]
    ADJUSTMENT = commands.OPERATIONS[commands.Adjust][0]
    REFUND = commands.OPERATIONS[commands.Refund][0]
    HOLD = commands.OPERATIONS[commands.PlaceHold][0]
    CAPTURE = commands.OPERATIONS[commands.Capture][0]
    RELEASE = commands.OPERATIONS[commands.Release][0]
    EXTEND = commands.OPERATIONS[commands.Extend][0]
    VOID = commands.OPERATIONS[commands.VoidGrant][0]
    TRANSFER = commands.OPERATIONS[commands.Transfer][0]
    METER_EVENT = commands.OPERATIONS[commands.ReportEvent][0]
    CANCEL = commands.OPERATIONS[commands.CancelEvent][0]
    EXPIRY = commands.EXPIRE
    RECEIVE = commands.RECEIVE
    SETTLE = commands.SETTLE
    RETURN = commands.RETURN


#: Operations whose rows are consumptions, in SQL.
SPENDING = f"{Op.CONSUMPTION}, {Op.CAPTURE}, {Op.METER_EVENT}, {Op.SETTLE}"
#: Operations that change terms and move no credit, in SQL.
CHANGES = ", ".join(map(str, commands.CHANGE_NAMES))


def joined(table: str, alias: str, owner: str, number: str, key: str = "number") -> str:
    """What `owner` names by `number` in the same wallet, in SQL; NULL where it is missing."""
    return f"""LEFT JOIN {table} AS {alias}
        ON {alias}.wallet_number = {owner}.wallet_number AND {alias}.{key} = {owner}.{number}"""
