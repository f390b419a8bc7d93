"""What is stored, looked at by itself: references, words and bounds of columns, digests, requests.

Each check is a value: its name, what is wrong, and a statement that answers the wallet (or NULL)
and how many. Most need no rule of the ledger but the schema, and so hold for every table there is.
"""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import CheckConstraint, Connection, Integer, Table, select

from creditledger import ids
from creditledger.store import schema
from creditledger.store.closed_checks import Wrong
from creditledger.store.values import DIMENSION_COLUMNS, digest, dimension_value

#: What may be found.
CHECKS = (
    *("reference", "subscription_owner", "column_check", "whole_number"),
    *("dimension_digest", "refund_named"),
)


class Check(NamedTuple):
    """One thing that must not be so."""

    name: str
    wrong: str  #: What to say of it; {} stands for how many.
    statement: str


#: References that no foreign key says: (table, column, the table it refers to, its column).
MORE_REFERENCES = (
    ("dimensions", "meter_id", "meters", "id"),
    ("dimensions", "subscription_id", "subscriptions", "id"),
    ("meter_events", "subscription_id", "subscriptions", "id"),
    ("grant_revisions", "changed_by", "api_keys", "number"),
)
SUBSCRIPTION_OWNER = Check(
    "subscription_owner",
    "{} of its dimensions are of another customer's subscription",
    """SELECT d.wallet_number, count(*) FROM dimensions AS d
      JOIN wallets AS w ON w.number = d.wallet_number
      JOIN subscriptions AS s ON s.id = d.subscription_id
      WHERE s.customer_id <> w.customer_id GROUP BY d.wallet_number""",
)
#: The rows' own references are checked with the rows; they are most of what there is.
_ROWS = "credit_transactions"
#: Tables whose numbers come from Python alone, never from a sum that the database makes.
_PLAIN = (_ROWS, "postings")


def checks(dialect: str) -> tuple[Check, ...]:
    """All that the schema of this kind of database says."""
    tables = schema.metadata if dialect == "sqlite" else schema.postgresql
    found = [*_references(), SUBSCRIPTION_OWNER, *_columns(tables.sorted_tables)]
    if dialect == "sqlite":
        found += _numbers(tables.sorted_tables)
    return tuple(found)


def _references() -> Iterator[Check]:
    for table in schema.metadata.sorted_tables:
        for key in table.foreign_key_constraints:
            if table.name != _ROWS:
                there = [element.column.name for element in key.elements]
                here = [column.name for column in key.columns]
                yield _reference(table, here, key.referred_table.name, there)
    for name, column, referred, there_ in MORE_REFERENCES:
        yield _reference(schema.metadata.tables[name], [column], referred, [there_])


def _reference(table: Table, here: list[str], referred: str, there: list[str]) -> Check:
    given = " AND ".join(f"c.{name} IS NOT NULL" for name in here)
    same = " AND ".join(f"p.{b} = c.{a}" for a, b in zip(here, there, strict=True))
    missing = f"{given} AND NOT EXISTS (SELECT 1 FROM {referred} AS p WHERE {same})"  # noqa: S608 # constants
    wrong = f"{{}} rows of {table.name} name what is not in {referred} by {', '.join(here)}"
    return Check("reference", wrong, _counted(table, missing))


def _columns(tables: list[Table]) -> Iterator[Check]:
    for table in tables:
        for one in sorted(table.constraints, key=lambda one: str(one.name)):
            if isinstance(one, CheckConstraint):
                wrong = f"{{}} rows of {table.name} are not as {one.name} says"
                yield Check("column_check", wrong, _counted(table, f"NOT ({one.sqltext})"))


def _numbers(tables: list[Table]) -> Iterator[Check]:
    """SQLite keeps a sum that passes 64 bits as a float, in a column of integers too."""
    for table in tables:
        columns = [column.name for column in table.columns if isinstance(column.type, Integer)]
        if columns and table.name not in _PLAIN:
            fraction = " OR ".join(f"typeof(c.{name}) IN ('real', 'text')" for name in columns)
            wrong = f"{{}} rows of {table.name} have a number that is no integer"
            yield Check("whole_number", wrong, _counted(table, fraction))


def _counted(table: Table, condition: str) -> str:
    wallet = {"wallets": "c.number"}.get(table.name, "NULL")
    if "wallet_number" in table.columns:
        wallet = "c.wallet_number"
    grouped = "" if wallet == "NULL" else f" GROUP BY {wallet}"
    return (
        f"SELECT {wallet}, count(*) FROM {table.name} AS c WHERE {condition}"  # noqa: S608 # constants
        f"{grouped} HAVING count(*) > 0"
    )


def found(connection: Connection) -> Iterator[Wrong]:
    """Everything that is wrong, check by check."""
    for check in checks(connection.dialect.name):
        for wallet, count in connection.exec_driver_sql(check.statement):
            yield _wrong(connection, check.name, wallet, check.wrong.format(count))
    yield from _digests(connection)
    yield from _refunds(connection)


def _wrong(connection: Connection, name: str, wallet: int | None, message: str) -> Wrong:
    w = schema.wallets.c
    query = select(w.id).where(w.number == wallet)
    id_ = None if wallet is None else connection.execute(query).scalar_one_or_none()
    return Wrong(name, id_, wallet or 0, message)


def _digests(connection: Connection) -> Iterator[Wrong]:
    """A dimension is found by its digest: another one would count under labels not its own."""
    d = schema.dimensions.c
    query = select(d.wallet_number, d.number, d.digest, *(d[name] for name in DIMENSION_COLUMNS))
    for wallet, number, said, *columns in connection.execute(query):
        try:
            same = digest(dimension_value(columns)) == said
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


def _refunds(connection: Connection) -> Iterator[Wrong]:
    """A refund is of the posting that its request named."""
    for wallet, number, refund_of, named in connection.exec_driver_sql(
        _REFUNDS[connection.dialect.name]
    ):
        if named is None or ids.resolve("pst", named) != (wallet, refund_of):
            message = f"posting {number} refunds posting {refund_of}, its request named {named}"
            yield _wrong(connection, "refund_named", wallet, message)
