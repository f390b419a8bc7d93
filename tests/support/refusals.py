"""How a call was refused, as a program reads it: never by its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable

Metadata = tuple[tuple[str, str], ...]


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
