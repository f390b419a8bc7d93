"""Bringing a database to the schema of this version: Alembic, run from code.

The connection comes in through the configuration's attributes; there is no alembic.ini.
"""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(connection: Connection) -> tuple[str | None, str]:
    """Upgrade to the newest revision within the connection's transaction: (before, after)."""
    before = revision(connection)
    command.upgrade(_config(connection), "head")
    return before, newest()


def revision(connection: Connection) -> str | None:
    """The database's revision; None if it has no schema."""
    return MigrationContext.configure(connection).get_current_revision()


@cache
def newest() -> str:
    """The revision this version needs: every migration is read to learn it, so once."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head
