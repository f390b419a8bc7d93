"""What is stored, looked at by itself: references, words and bounds of columns, digests, requests.

Each check is a value: its name, its table, what is wrong, and when it is wrong of a row. Most need
no rule of the ledger but the schema, and so hold for every table there is. One statement counts
wrong rows, with one scan of each table; only where there are some, each check is asked for itself.
"""

from collections.abc import Collection, Iterator
from functools import cache
from typing import NamedTuple

from sqlalchemy import CheckConstraint, Connection, Integer, Table, select

from creditledger.domain import ids
from creditledger.store import schema
from creditledger.store.verify.check import Finding
from creditledger.store.write.columns import DIMENSION, digest

#: The names of the checks.
CHECKS = (
    *("reference", "subscription_owner", "column_check", "whole_number"),
    *("dimension_digest", "refund_named", "change_key", "dropped_limit"),
)


class TableCheck(NamedTuple):
    """A condition that no row of a table may meet; its alias in SQL is `row`."""

    name: str
    wrong: str  #: What to say; {} stands for the number of rows.
    table: str
    condition: str
    looks_up: bool = False  #: Whether the condition reads another table.


#: References that no foreign key says: (table, column, the table it refers to, its column).
MORE_REFERENCES = (
    ("dimensions", "meter_id", "meters", "id"),
    ("dimensions", "subscription_id", "subscriptions", "id"),
    ("meter_events", "subscription_id", "subscriptions", "id"),
    ("grant_revisions", "changed_by", "api_keys", "number"),
)
SUBSCRIPTION_OWNER = TableCheck(
    "subscription_owner",
    "{} of its dimensions are of another customer's subscription",
    "dimensions",
    """row.subscription_id IS NOT NULL AND EXISTS (SELECT 1 FROM wallets AS wallet
      JOIN subscriptions AS subscription ON subscription.customer_id <> wallet.customer_id
      WHERE wallet.number = row.wallet_number AND subscription.id = row.subscription_id)""",
    looks_up=True,
)
#: What the id of a change's subject begins with -> the table that it is in.
_SUBJECTS = {
    "cus": "customers",
    "mtr": "meters",
    "sub": "subscriptions",
    "wal": "wallets",
    "apk": "api_keys",
    "whe": "webhook_endpoints",
}
_NO_SUBJECT = " OR ".join(
    f"substr(row.subject, 1, 4) = '{prefix}_'"
    f" AND NOT EXISTS (SELECT 1 FROM {table} AS subject WHERE subject.id = row.subject)"
    for prefix, table in _SUBJECTS.items()
)
CHANGE_KEY = TableCheck(
    "change_key",
    "{} idempotency keys of changes say nothing of what was done, or name what is not there",
    "change_keys",
    f"""row.subject IS NULL AND row.answer IS NULL OR {_NO_SUBJECT}
      OR row.customer_id <> '' AND NOT EXISTS
        (SELECT 1 FROM customers AS customer WHERE customer.id = row.customer_id)""",
    looks_up=True,
)
DROPPED_LIMIT = TableCheck(
    "dropped_limit",
    "{} spend limits that are no more are there, or were never made",
    "dropped_limits",
    """EXISTS (SELECT 1 FROM spend_limits
        WHERE spend_limits.wallet_number = row.wallet_number AND spend_limits.number = row.number)
      OR row.number < 1 OR row.number > (SELECT state.limits_made FROM wallet_states AS state
        WHERE state.wallet_number = row.wallet_number)""",
    looks_up=True,
)
#: row_checks.py checks the references of this table, which is the largest.
_ROWS = "credit_transactions"
#: Tables whose numbers come from Python alone, never from a sum that the database makes.
_PLAIN = (_ROWS, "postings")


@cache
def checks(dialect: str) -> tuple[TableCheck, ...]:
    """All checks that the schema of this kind of database gives."""
    tables = schema.metadata if dialect == "sqlite" else schema.postgresql
    found = [*_references(), SUBSCRIPTION_OWNER, CHANGE_KEY, DROPPED_LIMIT]
    found += _columns(tables.sorted_tables)
    if dialect == "sqlite":
        found += _numbers(tables.sorted_tables)
    return tuple(found)


def _references() -> Iterator[TableCheck]:
    for table in schema.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            if table.name != _ROWS:
                there = [element.column.name for element in key.elements]
                here = [column.name for column in key.columns]
                yield _reference(table.name, here, key.referred_table.name, there)
    for name, column, referred, there_ in MORE_REFERENCES:
        yield _reference(name, [column], referred, [there_])


def _reference(table: str, here: list[str], referred: str, there: list[str]) -> TableCheck:
    given = " AND ".join(f"row.{name} IS NOT NULL" for name in here)
    same = " AND ".join(f"referred.{b} = row.{a}" for a, b in zip(here, there, strict=True))
    missing = f"{given} AND NOT EXISTS (SELECT 1 FROM {referred} AS referred WHERE {same})"
    wrong = f"{{}} rows of {table} name what is not in {referred} by {', '.join(here)}"
    return TableCheck("reference", wrong, table, missing, looks_up=True)


def _columns(tables: list[Table]) -> Iterator[TableCheck]:
    for table in tables:
        for one in sorted(table.constraints, key=lambda one: str(one.name)):
            if isinstance(one, CheckConstraint):
                wrong = f"{{}} rows of {table.name} are not as {one.name} says"
                yield TableCheck("column_check", wrong, table.name, f"NOT ({one.sqltext})")


def _numbers(tables: list[Table]) -> Iterator[TableCheck]:
    """SQLite keeps a sum that passes 64 bits as a float, in a column of integers too."""
    for table in tables:
        columns = [column.name for column in table.columns if isinstance(column.type, Integer)]
        if columns and table.name not in _PLAIN:
            fraction = " OR ".join(f"typeof(row.{name}) IN ('real', 'text')" for name in columns)
            wrong = f"{{}} rows of {table.name} have a number that is no integer"
            yield TableCheck("whole_number", wrong, table.name, fraction)


@cache
def _scans(dialect: str) -> tuple[tuple[TableCheck, ...], ...]:
    """Groups of checks that share one scan: all of a table that read no other, or a single one."""
    together: dict[str, tuple[TableCheck, ...]] = {}
    alone: list[tuple[TableCheck, ...]] = []
    for check in checks(dialect):
        if check.looks_up:
            alone.append((check,))
        else:
            together[check.table] = (*together.get(check.table, ()), check)
    return (*alone, *together.values())


def _suspected(connection: Connection, filled: Collection[str] | None) -> Iterator[TableCheck]:
    """The checks of scans that find something, by one statement."""
    every = _scans(connection.dialect.name)
    scans = [scan for scan in every if filled is None or scan[0].table in filled]
    counts = ", ".join(
        f"(SELECT count(*) FROM {scan[0].table} AS row"
        f" WHERE {' OR '.join(f'({check.condition})' for check in scan)})"
        for scan in scans
    )
    if scans:
        found = connection.exec_driver_sql(f"SELECT {counts}").one()
        for scan, count in zip(scans, found, strict=True):
            if count:
                yield from scan


def _counted(check: TableCheck) -> str:
    table = schema.metadata.tables[check.table]
    wallet = {"wallets": "row.number"}.get(table.name, "NULL")
    if "wallet_number" in table.columns:
        wallet = "row.wallet_number"
    grouped = "" if wallet == "NULL" else f" GROUP BY {wallet}"
    return (
        f"SELECT {wallet}, count(*) FROM {table.name} AS row WHERE {check.condition}"
        f"{grouped} HAVING count(*) > 0"
    )


def found(connection: Connection, filled: Collection[str] | None = None) -> Iterator[Finding]:
    """All findings, check by check. Tables that are known to be empty are left out."""
    for check in _suspected(connection, filled):
        for wallet, count in connection.exec_driver_sql(_counted(check)):
            yield _wrong(connection, check.name, wallet, check.wrong.format(count))
    if filled is None or "dimensions" in filled:
        yield from _digests(connection)
    if filled is None or "postings" in filled:
        yield from _refunds(connection)


def _wrong(connection: Connection, name: str, wallet: int | None, message: str) -> Finding:
    w = schema.wallets.c
    query = select(w.id).where(w.number == wallet)
    id_ = None if wallet is None else connection.execute(query).scalar_one_or_none()
    return Finding(name, id_, wallet or 0, None, message)


def _digests(connection: Connection) -> Iterator[Finding]:
    """A dimension has the digest of its labels: the ledger finds it by the digest."""
    d = schema.dimensions.c
    query = select(d.wallet_number, d.number, d.digest, *DIMENSION.of(d))
    for wallet, number, said, *columns in connection.execute(query):
        try:
            same = digest(DIMENSION.value(columns)) == said
        except (ValueError, TypeError):
            same = False  # its prices are no list
        if not same:
            message = f"dimension {number} does not have the digest {said}"
            yield _wrong(connection, "dimension_digest", wallet, message)


_REFUNDS = {
    "sqlite": """SELECT wallet_number, number, refund_of,
        json_extract(terms, '$."refund.posting_id"') FROM postings WHERE refund_of IS NOT NULL""",
    "postgresql": """SELECT wallet_number, number, refund_of,
        CAST(terms AS json) ->> 'refund.posting_id' FROM postings WHERE refund_of IS NOT NULL""",
}


def _refunds(connection: Connection) -> Iterator[Finding]:
    """A refund refunds the posting that its request named."""
    for wallet, number, refund_of, named in connection.exec_driver_sql(
        _REFUNDS[connection.dialect.name]
    ):
        if named is None or ids.resolve("pst", named) != (wallet, refund_of):
            message = f"posting {number} refunds posting {refund_of}, its request named {named}"
            yield _wrong(connection, "refund_named", wallet, message)
