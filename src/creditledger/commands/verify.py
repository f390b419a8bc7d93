"""`creditledger verify`: what is wrong with a database, in short."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from creditledger.config import Config
from creditledger.server import CannotStart, look_together, require_schema
from creditledger.store.verify import FileDamaged, Finding, Verification


@dataclass(slots=True)
class Failure:
    """A check that found something: its first finding, and how many there are."""

    first: Finding
    count: int = 0


async def failures(
    config: Config, *, on_progress: Callable[[str, int, int], None]
) -> list[Failure]:
    """The checks that find something wrong, in order of their first finding; none if all is well.

    One snapshot of the database is read, whether a server runs or not; `on_progress` is called in
    several threads, one at a time. Raises CannotStart.
    """
    await require_schema(config)
    run = Verification(on_progress)

    def name(connection: Connection) -> list[Failure]:
        found: dict[str, Failure] = {}
        for finding in run.findings(connection):
            found.setdefault(finding.check, Failure(finding)).count += 1
        return list(found.values())

    try:
        return await look_together(config, run.prove, name)
    except FileDamaged as error:
        raise CannotStart(f"{config.database} is damaged as a file: {error}.") from None
