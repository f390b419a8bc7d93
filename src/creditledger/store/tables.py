"""What every table is made of: the list they are in, the names of their keys, and their types.

Imported by schema.py, and by modules that define tables of their own, which it imports.
"""

from typing import Any

from sqlalchemy import BigInteger, Integer, MetaData
from sqlalchemy import Text as _Text
from sqlalchemy.types import UserDefinedType

CONVENTION = {
    "pk": "%(table_name)s_pk",
    "uq": "%(table_name)s_%(column_0_N_name)s_unique",
    "fk": "%(table_name)s_%(column_0_N_name)s_fk",
    "ck": "%(table_name)s_%(constraint_name)s_check",
    "ix": "%(table_name)s_%(column_0_N_name)s",
}
metadata = MetaData(naming_convention=CONVENTION)

#: SQLite makes a column the row's own number only if it is declared INTEGER.
Number = BigInteger().with_variant(Integer(), "sqlite")
#: Ordered by bytes and folded as ASCII on every database, whatever its locale.
Text = _Text().with_variant(_Text(collation="C"), "postgresql")


class Xid8(UserDefinedType[int]):
    """PostgreSQL's number of a transaction, never used again."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """As SQL spells it."""
        return "xid8"
