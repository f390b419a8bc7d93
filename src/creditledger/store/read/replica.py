"""A replica: a second server of the database, for reads that may be a moment behind.

Whether it answers is known here, so that a replica that is away costs one read, not every one:
the others go to the primary until it answers again.
"""

import asyncio

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from creditledger.store.readers import Readers

log = structlog.get_logger()

#: How long it may take to say that it is there, and how often one that is away is asked.
LOOK_SECONDS_MAX = 1.0
LOOK_PAUSE_SECONDS = 1.0

_OPTION = "creditledger_replica"


class ReplicaBehind(Exception):
    """What was asked for cannot be answered exactly from here, or not yet: the primary can."""


class Replica:
    """The connections to it, and whether it is worth asking."""

    def __init__(self, readers: Readers, alone: AsyncEngine, name: str) -> None:
        """`readers`: of an engine that is `marked`; `alone`: to look whether it answers."""
        self.readers = readers
        self.answers = True
        self._alone = alone
        self._name = name
        self._looking: asyncio.Task[None] | None = None

    def lost(self, error: BaseException) -> None:
        """It did not answer: ask the primary until it does."""
        if self.answers:
            self.answers = False
            log.warning("replica away", replica=self._name, reason=str(error) or repr(error))
        self.doubt()

    def doubt(self) -> None:
        """Look whether it answers, soon: somebody waited in vain, or nobody has asked it yet."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())

    async def close(self) -> None:
        """Let go of it."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self.readers.close()
        await self._alone.dispose()

    async def _look(self) -> None:
        """Until it answers."""
        while (error := await self._failure()) is not None:
            self.lost(error)
            await asyncio.sleep(LOOK_PAUSE_SECONDS)
        if not self.answers:
            # The connections from before are as dead as what they led to.
            await self.readers.renew()
            self.answers = True
            log.info("replica answers again", replica=self._name)
        self._looking = None

    async def _failure(self) -> Exception | None:
        try:
            async with asyncio.timeout(LOOK_SECONDS_MAX), self._alone.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except Exception as error:
            return error
        return None


#: The last transaction that it has repeated may be long ago because nothing was written since.
_LAG = """\
SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL
WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END"""


def lag_seconds(connection: Connection) -> float | None:
    """How far this replica is behind its primary; None: it is none."""
    found = connection.execute(text(_LAG)).scalar_one()
    return None if found is None else float(found)


def marked(engine: AsyncEngine) -> AsyncEngine:
    """The engine, whose connections `is_replica` knows."""
    return engine.execution_options(**{_OPTION: True})


def is_replica(connection: Connection) -> bool:
    """Whether this read goes to a replica."""
    return bool(connection.get_execution_options().get(_OPTION))
