"""Messages of transfers to values and back."""

from collections.abc import Callable

from credit.v1 import wallet_service_pb2

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import money
from creditledger.domain.commands import Command
from creditledger.domain.errors import InvalidField
from creditledger.domain.operations import Transfer
from creditledger.engine.batch import Posted


def transfer(request: wallet_service_pb2.TransferRequest) -> Callable[[Caller], Command]:
    """The transfer that a request asks for, as a function of the caller."""
    key = fields.idempotency_key(request.idempotency_key)
    sender = fields.reference("wal", request.from_wallet_id, field="from_wallet_id")
    receiver = fields.reference("wal", request.to_wallet_id, field="to_wallet_id")
    if sender == receiver:
        raise InvalidField("to_wallet_id is the sending wallet", param="to_wallet_id")
    operation = Transfer(receiver, fields.amount(request.amount, field="amount"))
    description = fields.optional_text(request, "description", field="description")
    note = fields.optional_text(request, "note", field="note")
    metadata = fields.metadata(request.metadata)
    expected = None
    if request.HasField("expected_sequence"):
        expected = fields.number(
            request.expected_sequence, least=0, most=money.TOTAL_MAX, field="expected_sequence"
        )
    brief = posting_messages.is_brief(request)

    def asked_by(caller: Caller) -> Command:
        return Command(
            wallet_id=sender,
            idempotency_key=key,
            operation=operation,
            livemode=caller.livemode,
            posted_by=caller.number,
            actor=caller.name,
            description=description,
            note=note,
            metadata=metadata,
            expected_sequence=expected,
            validate_only=request.validate_only,
            is_brief=brief,
        )

    return asked_by


def answer(posted: Posted) -> wallet_service_pb2.TransferResponse:
    """The answer to a transfer."""
    assert posted.received is not None
    if posted.is_brief:
        return wallet_service_pb2.TransferResponse(
            brief=posting_messages.brief(posted),
            received_brief=posting_messages.brief(posted.received),
        )
    return wallet_service_pb2.TransferResponse(
        sent=posting_messages.posted(posted), received=posting_messages.posted(posted.received)
    )
