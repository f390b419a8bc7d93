"""`creditledger verify`: what is wrong with a database, in short."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from creditledger.ops.config import Config
from creditledger.ops.server import CannotStart, look_together, require_schema
from creditledger.store.receipts import RepeatedReceipt, repeated_receipts
from creditledger.store.verify.check import Finding
from creditledger.store.verify.verification import FileDamaged, Verification


@dataclass(slots=True)
class Failure:
    """A check that found something: its first finding, and how many there are."""

    first: Finding
    count: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """What there is to say of a database."""

    #: The checks that find something wrong, in order of their first finding; none if all is well.
    failures: list[Failure]
    #: No damage: what was credited more than once before the ledger refused it.
    repeated_receipts: list[RepeatedReceipt]


async def verified(config: Config, *, on_progress: Callable[[str, int, int], None]) -> Verified:
    """Check one snapshot of the database, whether a server runs or not.

    `on_progress` is called in several threads, one at a time. Raises CannotStart.
    """
    await require_schema(config)
    run = Verification(on_progress)

    def name(connection: Connection) -> Verified:
        found: dict[str, Failure] = {}
        for finding in run.findings(connection):
            found.setdefault(finding.check, Failure(finding)).count += 1
        return Verified(list(found.values()), repeated_receipts(connection))

    try:
        return await look_together(config, run.prove, name)
    except FileDamaged as error:
        raise CannotStart(f"{config.database} is damaged as a file: {error}.") from None
