"""Messages of holds to values and back."""

from collections.abc import Callable
from typing import Any

from credit.v1 import wallet_service_pb2

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock, ids, money
from creditledger.domain.commands import Command, Operation
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.domain.model import HOLD_MS_MAX, Annotation, Dimension, Hold
from creditledger.domain.operations import Capture, Extend, PlaceHold
from creditledger.engine.batch import Posted


def place_hold(request: wallet_service_pb2.HoldRequest) -> Callable[[Caller], Command]:
    """The hold that a request asks for, as a function of the caller."""
    given = request.HasField
    operation = PlaceHold(
        amount=fields.amount(request.amount, field="amount"),
        deadline=fields.optional_time(request, "deadline", field="deadline"),
        ttl_ms=_ttl(request),
        meter_id=fields.optional_reference("mtr", request, "meter_id", field="meter_id"),
        meter_event_id=fields.optional_text(
            request, "meter_event_id", field="meter_event_id", most=fields.NAME_MAX
        ),
        subscription_id=fields.optional_reference(
            "sub", request, "subscription_id", field="subscription_id"
        ),
        usage=posting_messages.expected_usage(request.usage, "usage") if given("usage") else None,
    )
    said = annotation(request)
    wallet_id = fields.reference("wal", request.wallet_id, field="wallet_id")
    key = fields.idempotency_key(request.idempotency_key)
    brief = posting_messages.is_brief(request)
    return lambda caller: on_hold(wallet_id, key, operation, said, caller, is_brief=brief)


def annotation(request: Any) -> Annotation:
    """The request's description and metadata."""
    return Annotation(
        fields.optional_text(request, "description", field="description"),
        fields.metadata(request.metadata),
    )


def capture(request: wallet_service_pb2.CaptureHoldRequest) -> Capture:
    """The capture that a request asks for."""
    given = request.HasField
    return Capture(
        hold_id=hold_id(request),
        amount=_captured(request) if given("amount") else None,
        final=request.final,
        allow_more=request.allow_more,
        meter_event_id=fields.optional_text(
            request, "meter_event_id", field="meter_event_id", most=fields.NAME_MAX
        ),
        usage=posting_messages.usage(request.usage, "usage") if given("usage") else None,
    )


def _captured(request: wallet_service_pb2.CaptureHoldRequest) -> str:
    """The amount, more than 0; a final capture may also capture 0."""
    if request.final:
        return fields.limit(fields.required(request.amount, field="amount"), field="amount")
    return fields.amount(request.amount, field="amount")


def extend(request: wallet_service_pb2.ExtendHoldRequest) -> Extend:
    """The new deadline of a hold, as a moment or as a duration."""
    deadline = fields.optional_time(request, "deadline", field="deadline")
    ttl_ms = _ttl(request)
    if deadline is None and ttl_ms is None:
        raise MissingField("deadline")
    return Extend(hold_id(request), deadline, ttl_ms)


def on_hold(
    wallet_id: str,
    key: str,
    operation: Operation,
    said: Annotation,
    caller: Caller,
    *,
    is_brief: bool,
) -> Command:
    """The command about a hold of this wallet, there or to be made."""
    return Command(
        wallet_id,
        key,
        operation,
        caller.livemode,
        caller.number,
        caller.name,
        description=said.description,
        metadata=said.metadata,
        is_brief=is_brief,
    )


def hold_id(request: Any) -> str:
    """The hold that the request names."""
    return fields.made("hld", request.hold_id, field="hold_id")


def _ttl(request: Any) -> int | None:
    if not request.HasField("ttl_seconds"):
        return None
    if request.HasField("deadline"):
        raise InvalidField("ttl_seconds and deadline exclude each other", param="ttl_seconds")
    most = HOLD_MS_MAX // clock.SECOND
    seconds = fields.number(request.ttl_seconds, least=1, most=most, field="ttl_seconds")
    return seconds * clock.SECOND


def hold_answer(answer: Posted, now: int) -> wallet_service_pb2.HoldResponse:
    """The answer to making, releasing or extending a hold."""
    if answer.is_brief:
        return wallet_service_pb2.HoldResponse(
            replayed=answer.replayed, brief=posting_messages.brief(answer)
        )
    return wallet_service_pb2.HoldResponse(
        hold=_hold(answer, now),
        replayed=answer.replayed,
        wallet=posting_messages.wallet(answer.wallet),
    )


def capture_answer(answer: Posted, now: int) -> wallet_service_pb2.CaptureHoldResponse:
    """The answer to a capture."""
    if answer.is_brief:
        return wallet_service_pb2.CaptureHoldResponse(brief=posting_messages.brief(answer))
    return wallet_service_pb2.CaptureHoldResponse(
        posting=posting_messages.posted(answer), hold=_hold(answer, now)
    )


def _hold(answer: Posted, now: int) -> wallet_service_pb2.HeldCredit:
    one, dimension, annotation = answer.hold, answer.held_for, answer.annotation
    assert one is not None
    assert dimension is not None
    return hold(one, answer.wallet, answer.posting.wallet, dimension, annotation, now)


def hold(
    one: Hold,
    wallet: posting_messages.WalletLike,
    number: int,
    dimension: Dimension,
    annotation: Annotation,
    now: int,
) -> wallet_service_pb2.HeldCredit:
    """A hold at `now`; `number`: the wallet's number; `dimension`: that of its captures."""
    ended, ended_at = one.end(now)
    return wallet_service_pb2.HeldCredit(
        id=ids.compose("hld", number, one.number),
        wallet_id=wallet.id,
        amount=money.text(one.amount, wallet.scale),
        captured=money.text(one.captured, wallet.scale),
        held=money.text(0 if ended else one.left, wallet.scale),
        status="open" if ended is None else ended.word,
        deadline=clock.text(one.deadline),
        created_at=clock.text(one.created_at),
        ended_at=None if ended_at is None else clock.text(ended_at),
        meter_id=dimension.meter_id,
        subscription_id=dimension.subscription_id,
        meter_event_id=one.meter_event_id,
        description=annotation.description,
        metadata=annotation.metadata,
    )
