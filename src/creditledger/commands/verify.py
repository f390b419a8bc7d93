"""`creditledger verify`: what is wrong with a database, in short."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import DatabaseError

from creditledger.config import Config
from creditledger.server import CannotStart, require_file, require_schema
from creditledger.store import sqlite
from creditledger.store.verify import Finding, verify


@dataclass(slots=True)
class Failure:
    """A check that found something: its first finding, and how many there are."""

    first: Finding
    count: int = 0


def failures(config: Config, *, on_progress: Callable[[str, int, int], None]) -> list[Failure]:
    """The checks that find something wrong, in order of their first finding; none if all is well.

    One snapshot of the database is read, whether a server runs or not. Raises CannotStart.
    """
    require_file(config)
    require_schema(config)
    found: dict[str, Failure] = {}
    engine = sqlite.reading_engine(config.path)
    try:
        with engine.begin() as connection:
            # A broken index would mislead every check that follows.
            sound = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            if sound != "ok":
                raise CannotStart(f"{config.path} is damaged as a file: {sound}.")
            for finding in verify(connection, on_progress=on_progress):
                found.setdefault(finding.check, Failure(finding)).count += 1
    except DatabaseError as error:
        raise CannotStart(f"{config.path} cannot be read: {error.orig}.") from None
    finally:
        engine.dispose()
    return list(found.values())
