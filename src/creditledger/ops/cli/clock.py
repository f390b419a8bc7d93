"""`creditledger clock`: the ledger's clock, and an operator's word that it is right."""

from credit.v1 import clock_service_pb2 as pb
from credit.v1.clock_service_pb2_grpc import ClockServiceStub

from creditledger.ops.config import Config
from creditledger.ops.server import local_channel


async def show(config: Config) -> pb.Clock:
    """The clock as the server sees it, or this command where none runs."""
    async with local_channel(config) as channel:
        return await ClockServiceStub(channel).GetClock(pb.GetClockRequest())


async def accept(config: Config, accepted_by: str) -> pb.Clock:
    """The clock, right from now on for all servers and restarts."""
    async with local_channel(config) as channel:
        request = pb.AcceptClockRequest(accepted_by=accepted_by)
        return await ClockServiceStub(channel).AcceptClock(request)
