"""A refusal as clients get it: the status of gRPC with its details, and the JSON body of REST."""

import json
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from creditledger.domain.errors import Internal, Refusal, ShuttingDown

Context = grpc.aio.ServicerContext[Any, Any]

DOMAIN = "creditledger"
#: The trailers that Envoy turns into the REST answer; it strips their like from requests.
ERROR_HEADER = "x-creditledger-error"
STATUS_HEADER = "x-creditledger-status"
#: The header makes Envoy retry at another server, and avoid this one until it is healthy again.
ELSEWHERE_HEADER = "x-envoy-immediate-health-check-fail"
#: Every usual proxy passes headers of this length.
HEADER_BYTES_MAX = 2_000
MESSAGE_CHARACTERS_MAX = 400
#: Limits in characters for the message and each value of the metadata. The first that fits the
#: header applies.
_CUTS = ((MESSAGE_CHARACTERS_MAX, 400), (64, 400), (64, 64), (16, 4))


def unforeseen(request_id: str) -> Internal:
    """The refusal that hides an unexpected error from the client."""
    return Internal(f"internal error; the operator finds it in the log as {request_id}")


def message(refusal: Refusal) -> str:
    """The refusal's text, cut to a length that fits a header."""
    return refusal.message[:MESSAGE_CHARACTERS_MAX]


def rest_body(refusal: Refusal, request_id: str) -> str:
    """The error as REST answers it: ASCII JSON of HEADER_BYTES_MAX at most, its texts cut to fit.

    The message is cut before the metadata, which programs react to.
    """
    for message_max, value_max in _CUTS:
        error = {
            "type": refusal.kind.error_type,
            "message": refusal.message[:message_max],
            "code": refusal.reason,
            "param": refusal.param and refusal.param[:message_max],
            "metadata": {name: value[:value_max] for name, value in refusal.metadata.items()},
            "request_id": request_id,
        }
        present = {name: value for name, value in error.items() if value is not None}
        body = json.dumps({"error": present}, separators=(",", ":"))
        if len(body) <= HEADER_BYTES_MAX:  # an escaped character takes up to twelve bytes
            break
    return body


def _details(refusal: Refusal) -> bytes:
    code = getattr(grpc.StatusCode, refusal.kind.grpc_code).value[0]
    details: list[Any] = [
        error_details_pb2.ErrorInfo(
            reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.metadata)
        )
    ]
    if refusal.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=refusal.param, description=message(refusal)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    status = status_pb2.Status(code=code, message=message(refusal))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    serialized: bytes = status.SerializeToString()
    return serialized


async def abort(context: Context, refusal: Refusal, request_id: str) -> None:
    """End the call with the refusal."""
    trailers: list[tuple[str, str | bytes]] = [
        (ERROR_HEADER, rest_body(refusal, request_id)),
        (STATUS_HEADER, str(refusal.kind.http_status)),
        ("grpc-status-details-bin", _details(refusal)),
        ("x-request-id", request_id),
    ]
    if refusal.retry_after is not None:
        trailers.append(("retry-after", refusal.retry_after))
    if isinstance(refusal, ShuttingDown):
        trailers.append((ELSEWHERE_HEADER, "true"))
    code = getattr(grpc.StatusCode, refusal.kind.grpc_code)
    await context.abort(code, message(refusal), tuple(trailers))
