"""Every refusal of the service, each one a class.

Every module may raise one; the one interceptor in `api/` turns it into a status. `reason` is a name
of `ErrorReason` in `protos/credit/v1/errors.proto`; gRPC code, HTTP status and type follow from the
`ErrorKind`. `KINDS` is the whole table; scripts/generate.py writes the proxy's from it.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import ClassVar

#: Values echoed in a message are cut here, so that an error cannot be made to carry a payload.
ECHO_CHARACTERS_MAX = 64


class ErrorKind(Enum):
    """What went wrong, as gRPC status code, HTTP status and error type."""

    MALFORMED = ("INVALID_ARGUMENT", 400, "invalid_request_error")
    UNAUTHENTICATED = ("UNAUTHENTICATED", 401, "authentication_error")
    NOT_ALLOWED = ("PERMISSION_DENIED", 403, "permission_error")
    UNKNOWN = ("NOT_FOUND", 404, "not_found_error")
    TAKEN = ("ALREADY_EXISTS", 409, "conflict_error")
    MOVED_ON = ("ABORTED", 409, "conflict_error")
    NO_CREDIT = ("FAILED_PRECONDITION", 402, "insufficient_credit_error")
    WRONG_STATE = ("FAILED_PRECONDITION", 400, "invalid_request_error")
    TOO_LARGE = ("RESOURCE_EXHAUSTED", 413, "request_too_large")
    TOO_MUCH = ("RESOURCE_EXHAUSTED", 429, "rate_limit_error")
    AWAY = ("UNAVAILABLE", 503, "overloaded_error")
    TOO_LATE = ("DEADLINE_EXCEEDED", 504, "api_error")
    BUG = ("INTERNAL", 500, "api_error")

    def __init__(self, grpc_code: str, http_status: int, error_type: str) -> None:
        self.grpc_code = grpc_code
        self.http_status = http_status
        self.error_type = error_type


class Refusal(Exception):
    """A command or query that was refused, wholly and without effect (but see OutcomeUnknown).

    `param` names the attribute at fault of the value that was asked for (`amount`,
    `usage.api_key_id`). Its surface replaces it by the JSON name of the request's field, at the
    beginning of the message too, see `api/field_names.py`. `metadata` carries what a program needs
    to react; its keys are listed with the reason.
    """

    reason: ClassVar[str]
    kind: ClassVar[ErrorKind]

    def __init__(self, message: str, /, *, param: str | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.metadata = metadata

    @property
    def retry_after(self) -> str | None:
        """Seconds until a repetition may succeed, for the header `retry-after`; None: no header.

        Whatever is away may be back in a second.
        """
        return self.metadata.get("retry_after", "1" if self.kind is ErrorKind.AWAY else None)


def echo(value: object) -> str:
    """A caller's value as it may appear in a message: quoted, printable, at most 64 characters."""
    text = str(value)
    cut = text if len(text) <= ECHO_CHARACTERS_MAX else text[:ECHO_CHARACTERS_MAX] + "…"
    return '"' + "".join(c if c.isprintable() else "�" for c in cut) + '"'


class InvalidField(Refusal):
    """A field's value is malformed or out of range."""

    reason, kind = "INVALID_FIELD", ErrorKind.MALFORMED


class MissingField(Refusal):
    """A required field is absent."""

    reason, kind = "MISSING_FIELD", ErrorKind.MALFORMED

    def __init__(self, param: str) -> None:
        super().__init__(f"{param} is required", param=param)


class UnknownParameter(Refusal):
    """A parameter of the query, or a field of the body, that the route does not have."""

    reason, kind = "UNKNOWN_PARAMETER", ErrorKind.MALFORMED


class ResultTooLarge(Refusal):
    """An answer that would be larger than the limit; known before anything is written."""

    reason, kind = "RESULT_TOO_LARGE", ErrorKind.MALFORMED


class QueryTooBroad(Refusal):
    """A search that passed its statement time-out, or lacks a filter that bounds it."""

    reason, kind = "QUERY_TOO_BROAD", ErrorKind.MALFORMED


class KeyMissing(Refusal):
    """No credential came with the call."""

    reason, kind = "KEY_MISSING", ErrorKind.UNAUTHENTICATED


class KeyInvalid(Refusal):
    """The credential is malformed, unknown, revoked or expired, or two of them differ."""

    reason, kind = "KEY_INVALID", ErrorKind.UNAUTHENTICATED


class ScopeDenied(Refusal):
    """The key's scope does not allow this call."""

    reason, kind = "SCOPE_DENIED", ErrorKind.NOT_ALLOWED


class CustomerKeyRequired(Refusal):
    """The call speaks of "me" and needs a key that belongs to a customer."""

    reason, kind = "CUSTOMER_KEY_REQUIRED", ErrorKind.NOT_ALLOWED


class ModeMismatch(Refusal):
    """The call names the mode that the key lacks, or a test key would change what modes share."""

    reason, kind = "MODE_MISMATCH", ErrorKind.NOT_ALLOWED


class NotFound(Refusal):
    """The id names nothing that this key may see."""

    reason, kind = "NOT_FOUND", ErrorKind.UNKNOWN


class IdTaken(Refusal):
    """The chosen id exists with other attributes."""

    reason, kind = "ID_TAKEN", ErrorKind.TAKEN


class IdempotencyKeyReused(Refusal):
    """The key names another request. Metadata: fields, those that differ, joined by commas."""

    reason, kind = "IDEMPOTENCY_KEY_REUSED", ErrorKind.TAKEN

    def __init__(self, names: str, fields: Iterable[str]) -> None:
        """`names`: what the key names."""
        super().__init__("")
        self._names = names
        self.name(fields)

    def name(self, fields: Iterable[str], *, key: str | None = None) -> None:
        """Say which fields differ; `key`: what the request calls its key, if that is to be said."""
        differing = sorted(fields)
        key_names = (
            f"the {key} names another request" if key else f"the idempotency key has {self._names}"
        )
        self.message = f"{key_names}: {', '.join(differing)} differ"
        self.param = key or "idempotency_key"
        self.metadata = {"fields": ",".join(differing)}


class ReceiptUsed(Refusal):
    """A paid grant of the wallet has credited the receipt. Metadata: posting_id."""

    reason, kind = "RECEIPT_USED", ErrorKind.TAKEN


class SequenceMismatch(Refusal):
    """The wallet moved on since the expected sequence. Metadata: expected, actual."""

    reason, kind = "SEQUENCE_MISMATCH", ErrorKind.MOVED_ON


class Conflict(Refusal):
    """The database gave up this transaction in favour of another one; nothing was written."""

    reason, kind = "CONFLICT", ErrorKind.MOVED_ON


class InsufficientCredit(Refusal):
    """Less credit than required. Metadata: required, available, currency."""

    reason, kind = "INSUFFICIENT_CREDIT", ErrorKind.NO_CREDIT


class WalletFrozen(Refusal):
    """A frozen wallet takes credit but gives none."""

    reason, kind = "WALLET_FROZEN", ErrorKind.WRONG_STATE


class WalletClosed(Refusal):
    """A closed wallet takes no posting and no change."""

    reason, kind = "WALLET_CLOSED", ErrorKind.WRONG_STATE


class NotRefundable(Refusal):
    """The posting is no consumption, or all of it is refunded."""

    reason, kind = "NOT_REFUNDABLE", ErrorKind.WRONG_STATE


class RefundTooLarge(Refusal):
    """More than what is left to refund. Metadata: refundable."""

    reason, kind = "REFUND_TOO_LARGE", ErrorKind.WRONG_STATE


class HoldExpired(Refusal):
    """The hold's deadline has passed. Metadata: ended_at."""

    reason, kind = "HOLD_EXPIRED", ErrorKind.WRONG_STATE


class HoldEnded(Refusal):
    """The hold was captured or released. Metadata: status, ended_at."""

    reason, kind = "HOLD_ENDED", ErrorKind.WRONG_STATE


class CaptureTooLarge(Refusal):
    """More than the hold still has. Metadata: held."""

    reason, kind = "CAPTURE_TOO_LARGE", ErrorKind.WRONG_STATE


class MeterInactive(Refusal):
    """The meter has been deactivated: nothing new is counted by it."""

    reason, kind = "METER_INACTIVE", ErrorKind.WRONG_STATE


class SpendLimitExceeded(Refusal):
    """More than a spend limit leaves.

    Metadata: spend_limit_id, limit, spent, held, remaining, required, resets_at (not for ever),
    retryable, retry_after (if it resets soon).
    """

    reason, kind = "SPEND_LIMIT_EXCEEDED", ErrorKind.TOO_MUCH


class GrantVoided(Refusal):
    """The grant was taken back. Metadata: voided_at."""

    reason, kind = "GRANT_VOIDED", ErrorKind.WRONG_STATE


class GrantExpired(Refusal):
    """The grant's time is over. Metadata: expired_at."""

    reason, kind = "GRANT_EXPIRED", ErrorKind.WRONG_STATE


class PeriodNotNext(Refusal):
    """The period does not begin where the last closed one ends. Metadata: next_start."""

    reason, kind = "PERIOD_NOT_NEXT", ErrorKind.WRONG_STATE


class OutOfRange(Refusal):
    """The result would pass a limit of the ledger (a balance, a counter, bounded open grants)."""

    reason, kind = "OUT_OF_RANGE", ErrorKind.MALFORMED


class Overloaded(Refusal):
    """The queue is full; come back later with the same key."""

    reason, kind = "OVERLOADED", ErrorKind.TOO_MUCH


class Unavailable(Refusal):
    """The database is away or the server is shutting down; nothing was written."""

    reason, kind = "UNAVAILABLE", ErrorKind.AWAY


class WalletLocked(Unavailable):
    """Another writer has the wallet locked and does not go on; other wallets are not concerned."""

    def __init__(self) -> None:
        super().__init__("another writer has the wallet locked; nothing was written")


class ClockImplausible(Refusal):
    """The ledger's clock leapt too far to be believed; nothing was written.

    Metadata: clock, what it shows, and expected.
    """

    reason, kind = "CLOCK_IMPLAUSIBLE", ErrorKind.AWAY


class ShuttingDown(Unavailable):
    """This server takes no new call: another one will, or the next one here."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class OutcomeUnknown(Refusal):
    """The write may have happened: ask GetPosting with the same key, or post again with it."""

    reason, kind = "OUTCOME_UNKNOWN", ErrorKind.TOO_LATE


class Internal(Refusal):
    """Something unforeseen; the text is in the log under the request id."""

    reason, kind = "INTERNAL", ErrorKind.BUG


#: The kind of every reason. The proxy alone says the first three. Nothing says RATE_LIMITED so far.
KINDS: Mapping[str, ErrorKind] = {
    "UNKNOWN_PATH": ErrorKind.UNKNOWN,
    "BODY_TOO_LARGE": ErrorKind.TOO_LARGE,
    "DEADLINE_EXCEEDED": ErrorKind.TOO_LATE,
    "RATE_LIMITED": ErrorKind.TOO_MUCH,
    **{one.reason: one.kind for one in Refusal.__subclasses__()},
}
