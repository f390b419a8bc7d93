"""Messages of managed grants to values and back."""

from collections.abc import Callable, Mapping

from credit.v1 import credit_grant_service_pb2 as pb
from credit.v1.credit_transaction_pb2 import TransactionSource

from creditledger.api import fields
from creditledger.api.auth import Caller
from creditledger.api.messages import posting as posting_messages
from creditledger.domain import clock, ids, money
from creditledger.domain.commands import Command, GrantChange
from creditledger.domain.errors import InvalidField
from creditledger.domain.model import PRIORITY_MAX, GrantStatus, Kind
from creditledger.domain.operations import VoidGrant
from creditledger.domain.views import GivenGrant, WalletPlace
from creditledger.store.read.grants import GrantSums, Moved

#: Words of the requests.
GRANT_STATUSES = {status.word: status for status in GrantStatus}
NEWEST, OLDEST = "newest", "oldest"

_KIND_WORDS = {kind.value: kind.word for kind in Kind}


def change(
    request: pb.CreditGrantServiceUpdateRequest,
) -> Callable[[str, Caller], GrantChange]:
    """The change of a grant, as a function of the wallet's id and the caller."""
    given = request.HasField
    grant_id = fields.made("cg", request.id, field="id")
    name = fields.optional_text(request, "name", field="name", most=fields.NAME_MAX)
    priority = None
    if given("priority"):
        priority = fields.number(request.priority, least=0, most=PRIORITY_MAX, field="priority")
    expires_at = fields.optional_time(request, "expires_at", field="expires_at")
    if expires_at is not None and request.never_expires:
        raise InvalidField("never_expires and expires_at exclude each other", param="never_expires")
    metadata, key = fields.metadata(request.metadata), fields.optional_key(request)
    return lambda wallet_id, caller: GrantChange(
        wallet_id,
        grant_id,
        caller.livemode,
        caller.number,
        name,
        priority,
        expires_at,
        request.never_expires,
        metadata,
        key,
    )


def void(request: pb.CreditGrantServiceVoidRequest) -> Callable[[str, Caller], Command]:
    """The posting that voids a grant, as a function of the wallet's id and the caller."""
    key = fields.idempotency_key(request.idempotency_key)
    operation = VoidGrant(fields.made("cg", request.id, field="id"))
    description = fields.optional_text(request, "description", field="description")
    note = fields.optional_text(request, "note", field="note")
    metadata = fields.metadata(request.metadata)
    return lambda wallet_id, caller: Command(
        wallet_id,
        key,
        operation,
        caller.livemode,
        caller.number,
        caller.name,
        description,
        note,
        metadata,
    )


def grant(one: GivenGrant) -> pb.CreditGrant:
    """A grant, as of its wallet's time."""
    given, scale = one.grant, one.wallet.scale

    def amount(units: int) -> str:
        return money.text(units, scale)

    def moment(at: int | None) -> str | None:
        return None if at is None else clock.text(at)

    return pb.CreditGrant(
        id=ids.compose("cg", one.wallet_number, given.number),
        wallet_id=one.wallet.id,
        customer_id=one.wallet.customer_id,
        currency=one.wallet.currency,
        livemode=one.wallet.livemode,
        amount=amount(given.amount),
        overdraft_paid=amount(given.overdraft_paid + given.repaid),
        remaining=amount(given.held if given.has_ended(one.now) else given.remaining),
        held=amount(given.held),
        category=given.category.word,
        priority=given.priority,
        name=given.name,
        status=given.status(one.now).word,
        kind=_KIND_WORDS[one.kind],
        source=TransactionSource(**source)
        if (source := posting_messages.source(one.posting))
        else None,
        posting_id=ids.compose("pst", one.wallet_number, one.posting.number),
        effective_at=clock.text(given.effective_at),
        expires_at=moment(given.expires_at),
        voided_at=moment(given.voided_at),
        metadata=one.metadata,
        created_at=clock.text(given.created_at),
        updated_at=clock.text(one.updated_at),
        scope=posting_messages.scope(given.scope),
    )


def summary(sums: Mapping[str, GrantSums], days: int) -> pb.CreditGrantServiceSummaryResponse:
    """Sums by currency."""
    return pb.CreditGrantServiceSummaryResponse(
        currencies=[
            pb.CreditGrantSummary(
                currency=currency,
                count=fields.answered(one.count, most=fields.INT32_MAX, field="count"),
                granted=money.text(one.granted, one.scale),
                remaining=money.text(one.remaining, one.scale),
                held=money.text(one.held, one.scale),
                pending=money.text(one.pending, one.scale),
                expiring=money.text(one.expiring, one.scale),
            )
            for currency, one in sums.items()
        ],
        within_days=days,
    )


def moved(
    posting_id: str, number: int, wallet: WalletPlace, rows: list[Moved]
) -> pb.CreditGrantServiceListPostingGrantsResponse:
    """The grants that a posting moved; `number`: the wallet's number."""
    overdraft = sum(one.amount for one in rows if one.grant is None)
    return pb.CreditGrantServiceListPostingGrantsResponse(
        posting_id=posting_id,
        wallet_id=wallet.id,
        currency=wallet.currency,
        grants=[
            pb.PostingGrant(
                credit_grant_id=ids.compose("cg", number, one.grant.number),
                credit_transaction_id=ids.compose("ct", number, one.sequence),
                amount=money.text(one.amount, wallet.scale),
                category=one.grant.category.word,
                name=one.grant.name,
            )
            for one in rows
            if one.grant is not None
        ],
        overdraft=money.text(overdraft, wallet.scale),
    )
