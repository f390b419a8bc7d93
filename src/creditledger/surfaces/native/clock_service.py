"""ClockService: the ledger's clock, and an operator's word that it is right."""

from credit.v1 import clock_service_pb2 as pb
from credit.v1 import clock_service_pb2_grpc

from creditledger.api import fields
from creditledger.api.auth import Caller, Callers
from creditledger.api.rpc import Service, current_intent, rpc
from creditledger.domain import clock as time
from creditledger.domain.registry import Scope
from creditledger.engine.clock_watch import ClockWatch


def _nothing(_: pb.GetClockRequest) -> None:
    """The request has no fields."""


def _accepted_by(request: pb.AcceptClockRequest) -> str | None:
    return fields.optional_text(request, "accepted_by", field="accepted_by", most=fields.NAME_MAX)


class ClockService(Service, clock_service_pb2_grpc.ClockServiceServicer):
    """Served to administrators over gRPC and, through Envoy, over REST."""

    def __init__(self, *, watch: ClockWatch, callers: Callers) -> None:
        self.callers = callers
        self._watch = watch

    @rpc(_nothing, scope=Scope.ADMIN)
    async def GetClock(self, _: None, caller: Caller) -> pb.Clock:  # noqa: N802
        """The clock as it is now."""
        return await self._shown()

    @rpc(_accepted_by, scope=Scope.ADMIN)
    async def AcceptClock(self, accepted_by: str | None, caller: Caller) -> pb.Clock:  # noqa: N802
        """The clock, which is right from now on. Raises ModeMismatch, Unavailable."""
        caller.require_live()
        await self._watch.accept(accepted_by or caller.id, current_intent)
        return await self._shown()

    async def _shown(self) -> pb.Clock:
        verdict, accepted = await self._watch.look(), await self._watch.last_acceptance()
        return pb.Clock(
            state=verdict.state.value,
            clock=time.shown(verdict.shown),
            time=time.shown(verdict.now),
            accepted_at=None if accepted is None else time.shown(accepted.accepted_at),
            accepted_by=None if accepted is None else accepted.accepted_by,
        )
