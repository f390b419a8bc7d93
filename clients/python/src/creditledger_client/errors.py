"""What a call ends with when it does not end well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Reasons after which nothing was written, and the same request may pass in a moment.
PASSING = {"CONFLICT", "OVERLOADED", "RATE_LIMITED", "UNAVAILABLE"}
OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
#: Codes of the network and of proxies, which do not say whether the server took the request.
UNCERTAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
DETAILS, REQUEST_ID = "grpc-status-details-bin", "x-request-id"


class LedgerError(Exception):
    """A call that was refused, or whose answer did not come."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        #: A name of ErrorReason without its prefix, for example INSUFFICIENT_CREDIT.
        self.reason = reason
        #: Path of the field at fault; None where none is.
        self.field = field
        #: The values that the reason names.
        self.metadata = dict(metadata or {})
        #: What the server's log has this call under; empty where the call did not reach it.
        self.request_id = request_id

    @property
    def outcome_unknown(self) -> bool:
        """Whether the server may have written what was asked."""
        return self.reason == OUTCOME_UNKNOWN

    @property
    def passing(self) -> bool:
        """Whether the same request, under the same idempotency key, may pass in a moment."""
        return self.outcome_unknown or self.reason in PASSING

    @property
    def retry_after_seconds(self) -> float:
        """How long the server asks to wait; 0 where it does not say."""
        try:
            return max(0.0, float(self.metadata.get("retry_after", 0)))
        except ValueError:
            return 0.0


class InsufficientCredit(LedgerError):
    """The wallet has not enough credit."""


class SpendLimitExceeded(LedgerError):
    """A spend limit does not allow it."""


class NotFound(LedgerError):
    """There is no such thing, or the key may not see it."""


_CLASSES: dict[str, type[LedgerError]] = {
    "INSUFFICIENT_CREDIT": InsufficientCredit,
    "SPEND_LIMIT_EXCEEDED": SpendLimitExceeded,
    "NOT_FOUND": NotFound,
}


def ledger_error(error: Any) -> LedgerError:
    """The error of a call that gRPC has raised.

    An error without an ErrorInfo comes from the network or from a proxy. If it does not tell
    whether the server took the request, its reason is OUTCOME_UNKNOWN.
    """
    trailers = dict(error.trailing_metadata() or ())
    trailers = {**dict(error.initial_metadata() or ()), **trailers}
    code = error.code()
    reason = OUTCOME_UNKNOWN if code in UNCERTAIN else code.name
    field: str | None = None
    metadata: dict[str, str] = {}
    status = status_pb2.Status.FromString(trailers.get(DETAILS, b""))
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = next((one.field for one in bad.field_violations), None)
    return refusal(
        error.details() or "",
        reason=reason,
        field=field,
        metadata=metadata,
        request_id=str(trailers.get(REQUEST_ID, "")),
    )


def refusal(message: str, *, reason: str, **rest: Any) -> LedgerError:
    """The error of a reason, as the class that a caller may catch it by."""
    return _CLASSES.get(reason, LedgerError)(message, reason=reason, **rest)
