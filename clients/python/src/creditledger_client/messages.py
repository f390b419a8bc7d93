"""Requests that take more than their fields' names: what both clients send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from credit.v1 import wallet_service_pb2 as pb

from creditledger_client import policy

if TYPE_CHECKING:
    from creditledger_client.policy import Amount


def posting_request(
    operation: str, wallet_id: str, amount: Amount, key: str | None, more: dict[str, Any]
) -> pb.PostRequest:
    """A posting; each further field goes where the contract has it."""
    request = pb.PostRequest(wallet_id=wallet_id, idempotency_key=key or policy.new_key())
    described = request.DESCRIPTOR.fields_by_name[operation].message_type
    assert described is not None, "an operation is a message"
    names = described.fields_by_name
    inner = {name: value for name, value in more.items() if name in names}
    outer = {name: value for name, value in more.items() if name not in names}
    whole: dict[str, Any] = {operation: {"amount": policy.amount_text(amount), **inner}}
    request.MergeFrom(pb.PostRequest(**whole, **outer))
    return request


def capture_request(
    hold_id: str, key: str, number: int, amount: Amount | None, final: bool, more: dict[str, Any]
) -> pb.CaptureHoldRequest:
    """The request of a hold's capture number `number`, under a key of its own."""
    request = pb.CaptureHoldRequest(
        **{"idempotency_key": f"{key}:capture:{number}", **more}, hold_id=hold_id, final=final
    )
    if amount is not None:
        request.amount = policy.amount_text(amount)
    return request
