"""`creditledger verify`: what is wrong with a database, in short."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from creditledger.config import Config
from creditledger.server import CannotStart, look, require_schema
from creditledger.store.verify import Finding, damage, verify


@dataclass(slots=True)
class Failure:
    """A check that found something: its first finding, and how many there are."""

    first: Finding
    count: int = 0


async def failures(
    config: Config, *, on_progress: Callable[[str, int, int], None]
) -> list[Failure]:
    """The checks that find something wrong, in order of their first finding; none if all is well.

    One snapshot of the database is read, whether a server runs or not. Raises CannotStart.
    """
    await require_schema(config)

    def check(connection: Connection) -> list[Failure]:
        # A broken index would mislead every check that follows.
        damaged = damage(connection)
        if damaged is not None:
            raise CannotStart(f"{config.database} is damaged as a file: {damaged}.")
        found: dict[str, Failure] = {}
        for finding in verify(connection, on_progress=on_progress):
            found.setdefault(finding.check, Failure(finding)).count += 1
        return list(found.values())

    return await look(config, check)
