"""Whether a server reaches its database, as the health service tells those who route traffic.

The whole server stays SERVING without its database, because it still says of each call what became
of it. A proxy that can choose between servers asks for SERVICE.
"""

import asyncio

from grpc_health.v1 import health, health_pb2
from sqlalchemy import Connection, text

from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store

#: The name under which the health service tells it.
SERVICE = "creditledger.ready"
#: How often the database is asked, and how long it may take.
LOOK_SECONDS, ANSWER_SECONDS_MAX = 1.0, 1.0


class Readiness:
    """Asks the database again and again, and tells the health service."""

    def __init__(self, store: Store, told: health.aio.HealthServicer) -> None:
        self._store = store
        self._told = told
        self.loop = BackgroundLoop(
            "readiness", self._look, interval_seconds=LOOK_SECONDS, failure="readiness not known"
        )

    async def start(self) -> None:
        """Begin. The server has just reached its database."""
        await self._told.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self.loop.start()

    async def _look(self) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if await self._reaches() else response.NOT_SERVING
        await self._told.set(SERVICE, status)

    async def _reaches(self) -> bool:
        try:
            # A new connection has to come within the time too.
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._store.read(_ask, urgent=True)
        except Exception:  # the store logs an outage
            return False
        return True


def _ask(connection: Connection) -> None:
    connection.execute(text("SELECT 1"))
