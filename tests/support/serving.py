"""A server inside the test: the real one, upon a database of the test, on a free port.

`refused` tells how a call was refused as a program would read it: never by its text.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import registry_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from google.rpc import error_details_pb2, status_pb2

from creditledger.ops.config import load
from creditledger.ops.server import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Metadata = tuple[tuple[str, str], ...]

#: For the servers of files whose promises hold on either; the databases make no difference to it.
TRANSPORTS = ("grpcio", pytest.param("native", marks=pytest.mark.only("sqlite")))


def bearer(secret: str) -> Metadata:
    """What a client sends with each call."""
    return (("authorization", f"Bearer {secret}"),)


@dataclass(frozen=True, slots=True)
class Refused:
    """An error as a program reads it."""

    reason: str
    param: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


async def refused(call: Awaitable[object]) -> Refused:
    """How the call was refused; fails if it was not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal(caught.value)


def refusal(error: grpc.aio.AioRpcError) -> Refused:
    """What the error says beside its text."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(request)
    assert info.domain == "creditledger"
    params = [violation.field for violation in request.field_violations]
    assert len(params) <= 1
    return Refused(info.reason, params[0] if params else None, dict(info.metadata))


@dataclass(frozen=True, slots=True)
class Api:
    """A running server: its services by TCP and by socket, and the metadata of two live keys."""

    registry: RegistryServiceStub
    keys: ApiKeyServiceStub
    local: ApiKeyServiceStub
    admin: Metadata
    service: Metadata

    async def key(
        self, scope: str, customer_id: str | None = None, *, livemode: bool = True
    ) -> Metadata:
        """A new key's metadata."""
        request = keys_pb.CreateApiKeyRequest(
            name=f"a {scope}", scope=scope, customer_id=customer_id, livemode=livemode
        )
        return bearer((await self.local.CreateApiKey(request)).secret)

    async def customer(self, id_: str = "cus_acme") -> pb.Customer:
        """A registered customer."""
        request = pb.CreateCustomerRequest(id=id_, name="Acme", email="billing@example.com")
        return await self.registry.CreateCustomer(request, metadata=self.admin)

    async def subscription(self, id_: str, customer_id: str) -> pb.Subscription:
        """A registered subscription."""
        request = pb.CreateSubscriptionRequest(id=id_, customer_id=customer_id, name="Pro")
        return await self.registry.CreateSubscription(request, metadata=self.admin)


@asynccontextmanager
async def serving(
    database_url: str, clock: Callable[[], int], **settings: Any
) -> AsyncIterator[Api]:
    """Serve the database until the block ends."""
    place = {"database_url": database_url, "grpc_address": "127.0.0.1:0", "drain_seconds": 0}
    config = load({**place, **settings})
    server = build(config, clock=clock)
    await server.start()
    try:
        async with (
            grpc.aio.insecure_channel(server.grpc_address) as network,
            server.local_channel() as machine,
        ):
            local = ApiKeyServiceStub(machine)
            metadata = []
            for scope in ("admin", "service"):
                request = keys_pb.CreateApiKeyRequest(name=scope, scope=scope)
                metadata.append(bearer((await local.CreateApiKey(request)).secret))
            yield Api(RegistryServiceStub(network), ApiKeyServiceStub(network), local, *metadata)
    finally:
        await server.stop()
