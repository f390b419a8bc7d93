"""WalletService: wallets and their postings."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import structlog
from credit.v1 import spend_limit_pb2, wallet_service_pb2_grpc
from credit.v1 import wallet_service_pb2 as pb
from sqlalchemy import Connection

from creditledger.api import fields, pages
from creditledger.api.auth import Caller, Callers
from creditledger.api.field_names import rename, renamed
from creditledger.api.messages import hold as hold_messages
from creditledger.api.messages import posting as posting_messages
from creditledger.api.messages import spend_limit as spend_limit_messages
from creditledger.api.messages import transfer as transfer_messages
from creditledger.api.rpc import Service, current_request_id, rpc
from creditledger.api.status import Context, unforeseen
from creditledger.domain import ids, money
from creditledger.domain.commands import Command, DropLimit, Operation, SetLimit, WalletChange
from creditledger.domain.errors import InvalidField, NotFound, Refusal, echo
from creditledger.domain.model import (
    NO_ANNOTATION,
    Annotation,
    Dimension,
    Posting,
    Status,
    Wallet,
    view,
)
from creditledger.domain.operations import OnHold, Release
from creditledger.domain.registry import Scope
from creditledger.domain.views import HeldCredit
from creditledger.engine.batch import Budget, Posted
from creditledger.engine.ledger import BATCH_MAX, Ledger
from creditledger.store import Store
from creditledger.store.change_keys import Kept
from creditledger.store.read import transaction_reads
from creditledger.store.registry import records
from creditledger.surfaces.native import balances

log = structlog.get_logger()

#: Ids of wallets kept by number, so that a hold's is found without a read.
WALLET_IDS_MAX = 10_000
#: Postings of one stream that may wait for their answers; then reading stops.
UNANSWERED_MAX = 1_024
#: Idempotency keys of a page: they are short, and who asks for them wants many.
KEYS_PAGE_MAX = 1_000
_TRANSFER_NAMES = {"wallet_id": "from_wallet_id"}


@dataclass(frozen=True, slots=True)
class _NewWallet:
    id: str | None
    customer_id: str
    currency: str
    livemode: bool | None
    overdraft_limit: str | None
    metadata: dict[str, str]


def _new_wallet(request: pb.CreateWalletRequest) -> _NewWallet:
    limit = fields.optional(request, "overdraft_limit", None)
    return _NewWallet(
        id=fields.optional_reference("wal", request, "id", field="id"),
        customer_id=fields.reference("cus", request.customer_id, field="customer_id"),
        currency=fields.currency(request.currency, field="currency"),
        livemode=fields.livemode(request),
        overdraft_limit=None if limit is None else fields.limit(limit, field="overdraft_limit"),
        metadata=fields.metadata(request.metadata),
    )


def _wallet_id(request: pb.GetWalletRequest) -> str:
    return fields.reference("wal", request.wallet_id, field="wallet_id")


@dataclass(frozen=True, slots=True)
class _WalletList:
    page: pages.PageRequest
    livemode: bool | None
    customer_id: str | None
    currency: str | None
    status: Status | None


def _wallet_list(request: pb.ListWalletsRequest) -> _WalletList:
    return _WalletList(
        page=pages.asked(request),
        livemode=fields.livemode(request),
        customer_id=fields.optional_reference("cus", request, "customer_id", field="customer_id"),
        currency=fields.optional_currency(request, "currency", field="currency"),
        status=fields.word(request.status, posting_messages.STATUSES, field="status")
        if request.HasField("status")
        else None,
    )


def _wallet_change(request: pb.UpdateWalletRequest) -> WalletChange:
    limit = fields.optional(request, "overdraft_limit", None)
    return WalletChange(
        wallet_id=fields.reference("wal", request.wallet_id, field="wallet_id"),
        livemode=None,
        overdraft_limit=None if limit is None else fields.limit(limit, field="overdraft_limit"),
        status=fields.word(request.status, posting_messages.STATUSES, field="status")
        if request.HasField("status")
        else None,
        metadata=fields.metadata(request.metadata),
        cancel_unpaid=_cancel_unpaid(request),
        idempotency_key=fields.optional_key(request),
    )


def _cancel_unpaid(request: pb.UpdateWalletRequest) -> bool:
    cancel = request.cancel_unpaid
    if cancel and request.status != Status.CLOSED.word:
        raise InvalidField("cancel_unpaid belongs to status closed", param="cancel_unpaid")
    return cancel


class _PostingBatch(NamedTuple):
    """The postings of a batch, unread: a bad one does not spoil the others."""

    postings: Sequence[pb.PostRequest]
    is_brief: bool  #: The view of postings that name none.


def _batch(request: pb.BatchPostRequest) -> _PostingBatch:
    if not 1 <= len(request.postings) <= BATCH_MAX:
        raise InvalidField(
            f"postings must hold 1 to {BATCH_MAX} postings, not {len(request.postings)}",
            param="postings",
        )
    return _PostingBatch(request.postings, posting_messages.is_brief(request))


def _posting_key(request: pb.GetPostingRequest) -> tuple[str, str]:
    return (
        fields.reference("wal", request.wallet_id, field="wallet_id"),
        fields.idempotency_key(request.idempotency_key),
    )


@dataclass(frozen=True, slots=True)
class _WalletKeyList:
    """Which keys of a wallet."""

    wallet_id: str
    prefix: str
    page: pages.PageRequest


def _key_list(request: pb.ListIdempotencyKeysRequest) -> _WalletKeyList:
    prefix = ""
    if request.HasField("prefix"):
        prefix = fields.idempotency_key(request.prefix, field="prefix")
    return _WalletKeyList(
        fields.reference("wal", request.wallet_id, field="wallet_id"),
        prefix,
        pages.asked(request, size_max=KEYS_PAGE_MAX),
    )


@dataclass(frozen=True, slots=True)
class _OfHold:
    """Something to be done with a hold, under a key."""

    key: str
    operation: OnHold
    annotation: Annotation = NO_ANNOTATION
    is_brief: bool = False


def _capture(request: pb.CaptureHoldRequest) -> _OfHold:
    key = fields.idempotency_key(request.idempotency_key)
    annotation, brief = hold_messages.annotation(request), posting_messages.is_brief(request)
    return _OfHold(key, hold_messages.capture(request), annotation, brief)


def _release(request: pb.ReleaseHoldRequest) -> _OfHold:
    key = fields.idempotency_key(request.idempotency_key)
    operation, brief = Release(hold_messages.hold_id(request)), posting_messages.is_brief(request)
    return _OfHold(key, operation, is_brief=brief)


def _extend(request: pb.ExtendHoldRequest) -> _OfHold:
    return _OfHold(fields.idempotency_key(request.idempotency_key), hold_messages.extend(request))


@dataclass(frozen=True, slots=True)
class _HoldList:
    wallet_id: str
    page: pages.PageRequest
    open: bool | None


def _hold_list(request: pb.ListHoldsRequest) -> _HoldList:
    return _HoldList(
        fields.reference("wal", request.wallet_id, field="wallet_id"),
        pages.asked(request),
        fields.optional(request, "open", None),
    )


def _number(connection: Connection, wallet_id: str, caller: Caller) -> int:
    """Of a wallet that the caller may see. Raises NotFound."""
    found = records.wallet_place(connection, wallet_id)
    if found is None or not caller.may_see_wallet(found[1]):
        raise posting_messages.no_wallet(wallet_id)
    return found[0]


class WalletService(Service, wallet_service_pb2_grpc.WalletServiceServicer):
    """Served to internal services over gRPC and, through Envoy, over REST."""

    def __init__(
        self, *, store: Store, ledger: Ledger, callers: Callers, clock: Callable[[], int]
    ) -> None:
        super().__init__(store=store, callers=callers, clock=clock)
        self._ledger = ledger
        self._wallet_ids: dict[int, str] = {}  #: Of wallets that had a hold; they never change.

    @rpc(_new_wallet, scope=Scope.SERVICE)
    async def CreateWallet(self, new: _NewWallet, caller: Caller) -> pb.Wallet:  # noqa: N802
        """An identical request answers the wallet that is there. Raises IdTaken, NotFound."""
        livemode = caller.mode(new.livemode)
        if new.overdraft_limit is not None:
            caller.require(Scope.ADMIN)
        now = self._clock()

        def create(connection: Connection) -> Wallet:
            scale = records.scale(connection, new.currency)
            limit = money.parse(new.overdraft_limit or "0", scale, field="overdraft_limit")
            return records.create_wallet(
                connection,
                id_=new.id,
                new_id=ids.random("wal"),
                customer_id=new.customer_id,
                currency=new.currency,
                livemode=livemode,
                overdraft_limit=limit,
                metadata=new.metadata,
                now=now,
            )

        def again(connection: Connection, kept: Kept) -> Wallet:
            found = records.wallet(connection, kept.id)
            assert found is not None, "a wallet is never deleted"
            return found

        made = await self._once(create, again, lambda one: one.id)
        return posting_messages.wallet(view(made.value, now))

    @rpc(_wallet_id, scope=Scope.CUSTOMER)
    async def GetWallet(self, wallet_id: str, caller: Caller) -> pb.Wallet:  # noqa: N802
        """The wallet as it is now. Raises NotFound."""
        return posting_messages.wallet(view(await self._wallet(wallet_id, caller), self._clock()))

    @rpc(balances.asked, scope=Scope.CUSTOMER)
    async def GetBalance(self, asked: balances.BalanceRequest, caller: Caller) -> pb.Balance:  # noqa: N802
        """The wallet at a moment. Raises NotFound, SequenceMismatch, InvalidField."""
        now = self._clock()

        def read(connection: Connection) -> pb.Balance:
            return balances.read(connection, asked, caller, now)

        return await self._store.read(read, stale=True)

    @rpc(_wallet_list, scope=Scope.CUSTOMER)
    async def ListWallets(  # noqa: N802
        self, wanted: _WalletList, caller: Caller
    ) -> pb.ListWalletsResponse:
        """Wallets of the key's mode, ordered by id."""
        livemode = caller.mode(wanted.livemode)
        customer_id = caller.own(wanted.customer_id)
        filters = ("wallets", livemode, customer_id, wanted.currency, wanted.status)
        after = wanted.page.after(filters)
        found = await self._store.read(
            lambda connection: records.wallets(
                connection,
                after,
                wanted.page.size,
                livemode=livemode,
                customer_id=customer_id,
                currency=wanted.currency,
                status=wanted.status,
            )
        )
        page, token = pages.cut(found, wanted.page.size, filters, lambda one: [one.id])
        now = self._clock()
        return pb.ListWalletsResponse(
            wallets=[posting_messages.wallet(view(one, now)) for one in page], next_page_token=token
        )

    @rpc(_wallet_change, scope=Scope.ADMIN)
    async def UpdateWallet(self, change: WalletChange, caller: Caller) -> pb.Wallet:  # noqa: N802
        """Raises NotFound, WalletClosed, InvalidField."""
        change = replace(change, livemode=caller.livemode, changed_by=caller.number)
        return posting_messages.wallet(await self._ledger.change(change))

    @rpc(posting_messages.command, scope=Scope.SERVICE)
    async def Post(  # noqa: N802
        self, command: Callable[[Caller], Command], caller: Caller
    ) -> pb.Posting:
        """One posting; see `Ledger.post` for what it costs and raises."""
        asked = command(caller)
        with renamed(posting_messages.FIELD_NAMES[type(asked.operation)]):
            return posting_messages.posted(await self._ledger.post(asked))

    @rpc(_batch, scope=Scope.SERVICE)
    async def BatchPost(  # noqa: N802
        self, batch: _PostingBatch, caller: Caller
    ) -> pb.BatchPostResponse:
        """Up to 1,000 postings, each with a fate of its own, answered in order."""
        answers: list[Posted | Exception] = []
        commands, places = [], []
        for posting in batch.postings:
            try:
                asked = posting_messages.command(posting, brief_unless_said=batch.is_brief)
                commands.append(asked(caller))
            except Refusal as refusal:
                answers.append(refusal)
            else:
                places.append(len(answers))
                answers.append(_UNDECIDED)
        if commands:
            decided = await self._ledger.post_many(commands)
            for place, command, answer in zip(places, commands, decided, strict=True):
                answers[place] = _named(answer, command.operation)
        return posting_messages.results(map(_told, answers))

    async def StreamPost(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StreamPostRequest], context: Context
    ) -> AsyncIterator[pb.StreamPostResponse]:
        """Postings in, answers out in order; a refusal is an answer and ends nothing."""
        room = asyncio.Semaphore(UNANSWERED_MAX)
        arrived: asyncio.Queue[_Coming | Exception | None] = asyncio.Queue()
        unanswered: deque[_Coming] = deque()

        async def read() -> None:
            end = None
            try:
                await room.acquire()
                async for request in request_iterator:
                    # Asked anew each time: a key revoked meanwhile ends the stream.
                    caller = await self.still_there()
                    unanswered.append(self._submit(request.posting, caller, Budget()))
                    arrived.put_nowait(unanswered[-1])
                    await room.acquire()
            except Exception as error:
                end = error
            arrived.put_nowait(end)

        reading = asyncio.create_task(read())
        try:
            while (answer := await arrived.get()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                result = posting_messages.result(await _answer(answer))
                unanswered.popleft()
                yield result
                room.release()
        finally:
            reading.cancel()
            _give_up(unanswered)

    StreamPost.scope, StreamPost.shared = Scope.SERVICE, False  # type: ignore[attr-defined] # as `rpc` does

    @rpc(_posting_key, scope=Scope.CUSTOMER)
    async def GetPosting(self, key: tuple[str, str], caller: Caller) -> pb.Posting:  # noqa: N802
        """What the wallet has under an idempotency key. Raises NotFound."""
        wallet_id, idempotency_key = key

        def read(
            connection: Connection,
        ) -> tuple[Wallet, tuple[Posting, Dimension | None] | None]:
            # Of one snapshot, or the wallet could be older than the posting.
            wallet = posting_messages.own(records.wallet(connection, wallet_id), wallet_id, caller)
            return wallet, transaction_reads.posting(connection, wallet.number, idempotency_key)

        wallet, found = await self._store.read(read)
        if found is None:
            raise NotFound("no posting under this idempotency key", param="idempotency_key")
        posting, dimension = found
        return posting_messages.posted(
            Posted(posting, dimension, view(wallet, self._clock()), True, False)
        )

    @rpc(_key_list, scope=Scope.CUSTOMER)
    async def ListIdempotencyKeys(  # noqa: N802
        self, asked: _WalletKeyList, caller: Caller
    ) -> pb.ListIdempotencyKeysResponse:
        """In the order of their bytes. Raises NotFound."""
        filters = ("idempotency_keys", asked.wallet_id, asked.prefix)
        after, size = asked.page.after(filters), asked.page.size

        def read(connection: Connection) -> tuple[int, Sequence[tuple[str, int]]]:
            wallet = _number(connection, asked.wallet_id, caller)
            return wallet, transaction_reads.idempotency_keys(
                connection, wallet, asked.prefix, after, size + 1
            )

        wallet, found = await self._store.read(read)
        page, token = pages.cut(found, size, filters, lambda one: [one[0]])
        return pb.ListIdempotencyKeysResponse(
            idempotency_keys=[
                pb.IdempotencyKey(
                    idempotency_key=key, posting_id=ids.compose("pst", wallet, number)
                )
                for key, number in page
            ],
            next_page_token=token,
        )

    @rpc(hold_messages.place_hold, scope=Scope.SERVICE)
    async def Hold(  # noqa: N802
        self, command: Callable[[Caller], Command], caller: Caller
    ) -> pb.HoldResponse:
        """Set credit aside; as a posting, see `Ledger.post`. Raises InsufficientCredit too."""
        return hold_messages.hold_answer(await self._ledger.post(command(caller)), self._clock())

    @rpc(_capture, scope=Scope.SERVICE)
    async def CaptureHold(  # noqa: N802
        self, asked: _OfHold, caller: Caller
    ) -> pb.CaptureHoldResponse:
        """Raises NotFound, HoldExpired, HoldEnded, CaptureTooLarge, InsufficientCredit."""
        return hold_messages.capture_answer(await self._post_on_hold(asked, caller), self._clock())

    @rpc(_release, scope=Scope.SERVICE)
    async def ReleaseHold(self, asked: _OfHold, caller: Caller) -> pb.HoldResponse:  # noqa: N802
        """Raises NotFound, HoldExpired, HoldEnded."""
        return hold_messages.hold_answer(await self._post_on_hold(asked, caller), self._clock())

    @rpc(_extend, scope=Scope.SERVICE)
    async def ExtendHold(self, asked: _OfHold, caller: Caller) -> pb.HoldResponse:  # noqa: N802
        """Raises NotFound, HoldExpired, HoldEnded, InvalidField(deadline)."""
        return hold_messages.hold_answer(await self._post_on_hold(asked, caller), self._clock())

    async def _post_on_hold(self, asked: _OfHold, caller: Caller) -> Posted:
        place = ids.resolve("hld", asked.operation.hold_id)
        number = 0 if place is None else place[0]
        wallet_id = self._wallet_ids.get(number)
        if wallet_id is None:
            wallet_id = await self._store.read(lambda c: records.wallet_id(c, number))
            if wallet_id is None:
                raise _no_hold(asked.operation.hold_id)
            if len(self._wallet_ids) >= WALLET_IDS_MAX:
                self._wallet_ids.clear()
            self._wallet_ids[number] = wallet_id
        command = hold_messages.on_hold(
            *(wallet_id, asked.key, asked.operation, asked.annotation, caller),
            is_brief=asked.is_brief,
        )
        try:
            return await self._ledger.post(command)
        except NotFound as refusal:
            # The caller named a hold, and no wallet.
            if refusal.param == "wallet_id":
                raise _no_hold(asked.operation.hold_id) from None
            raise

    @rpc(transfer_messages.transfer, scope=Scope.SERVICE, names=_TRANSFER_NAMES)
    async def Transfer(  # noqa: N802
        self, command: Callable[[Caller], Command], caller: Caller
    ) -> pb.TransferResponse:
        """A posting in each of two wallets; as a posting, see `Ledger.post`."""
        return transfer_messages.answer(await self._ledger.post(command(caller)))

    @rpc(hold_messages.hold_id, scope=Scope.CUSTOMER)
    async def GetHold(self, hold_id: str, caller: Caller) -> pb.HeldCredit:  # noqa: N802
        """The hold as it is now. Raises NotFound."""
        place = ids.place("hld", hold_id)

        found = await self._store.read(
            lambda connection: transaction_reads.hold(connection, *place)
        )
        if found is None or not caller.may_see_wallet(found.wallet):
            raise _no_hold(hold_id)
        hold, wallet, dimension, annotation = found
        return hold_messages.hold(hold, wallet, place[0], dimension, annotation, self._clock())

    @rpc(_hold_list, scope=Scope.CUSTOMER)
    async def ListHolds(  # noqa: N802
        self, wanted: _HoldList, caller: Caller
    ) -> pb.ListHoldsResponse:
        """Holds of a wallet, newest first. Raises NotFound."""
        now = self._clock()
        filters = ("holds", wanted.wallet_id, wanted.open)
        after, size = wanted.page.before(filters), wanted.page.size

        def read(connection: Connection) -> tuple[int, list[HeldCredit]]:
            wallet = _number(connection, wanted.wallet_id, caller)
            return wallet, transaction_reads.holds(
                connection, wallet, after, size, is_open=wanted.open, now=now
            )

        wallet, found = await self._store.read(read)
        page, token = pages.cut(found, size, filters, lambda one: [one.hold.number])
        return pb.ListHoldsResponse(
            holds=[
                hold_messages.hold(hold, place, wallet, dimension, annotation, now)
                for hold, place, dimension, annotation in page
            ],
            next_page_token=token,
        )

    @rpc(spend_limit_messages.set_limit, scope=Scope.ADMIN)
    async def SetSpendLimit(  # noqa: N802
        self, change: SetLimit, caller: Caller
    ) -> spend_limit_pb2.SpendLimit:
        """In line with the wallet's postings. Raises NotFound, WalletClosed, OutOfRange."""
        change = replace(change, livemode=caller.livemode, changed_by=caller.number)
        return spend_limit_messages.limit(await self._ledger.limit(change))

    @rpc(spend_limit_messages.wallet_id, scope=Scope.CUSTOMER)
    async def ListSpendLimits(  # noqa: N802
        self, wallet_id: str, caller: Caller
    ) -> spend_limit_pb2.ListSpendLimitsResponse:
        """Raises NotFound."""

        def read(connection: Connection) -> tuple[Wallet | None, dict[int, str]]:
            found, labels = records.wallet(connection, wallet_id), dict[int, str]()
            if found is not None:
                found.limits, labels = transaction_reads.limits(connection, found)
            return found, labels

        found, labels = await self._store.read(read)
        return spend_limit_messages.limits(
            posting_messages.own(found, wallet_id, caller), labels, self._clock()
        )

    @rpc(spend_limit_messages.drop_limit, scope=Scope.ADMIN)
    async def DeleteSpendLimit(  # noqa: N802
        self, change: DropLimit, caller: Caller
    ) -> spend_limit_pb2.SpendLimit:
        """In line with the wallet's postings. Raises NotFound, WalletClosed."""
        change = replace(change, livemode=caller.livemode, changed_by=caller.number)
        return spend_limit_messages.limit(await self._ledger.limit(change))

    async def _wallet(self, wallet_id: str, caller: Caller) -> Wallet:
        found = await self._store.read(lambda c: records.wallet(c, wallet_id))
        return posting_messages.own(found, wallet_id, caller)

    def _submit(self, request: pb.PostRequest, caller: Caller, budget: Budget) -> "_Coming":
        """The answer to come; a refusal known already is an answer too."""
        operation = None
        try:
            command = posting_messages.command(request)(caller)
            operation = command.operation
            return _Coming(self._ledger.post(command, budget), operation)
        except Refusal as refusal:
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(refusal)
            return _Coming(answer, operation)


def _no_hold(hold_id: str) -> NotFound:
    return NotFound(f"no hold {echo(hold_id)}", param="hold_id")


#: Stands where the ledger's answer will; never told.
_UNDECIDED = Exception()


class _Coming(NamedTuple):
    """The answer to a posting of a stream."""

    answer: asyncio.Future[Posted]
    operation: Operation | None  #: None: the shape is refused already.


async def _answer(coming: _Coming) -> Posted | Refusal:
    """A posting's end as a client may know it."""
    try:
        return await coming.answer
    except Exception as error:
        return _told(_named(error, coming.operation) if coming.operation else error)


def _named(answer: Posted | Exception, operation: Operation) -> Posted | Exception:
    """The same; a refusal names fields of the request."""
    if isinstance(answer, Refusal):
        rename(answer, posting_messages.FIELD_NAMES[type(operation)])
    return answer


def _told(answer: Posted | Exception) -> Posted | Refusal:
    """What a client is told of it; a bug is logged and told as one."""
    if isinstance(answer, Posted | Refusal):
        return answer
    log.error("posting failed", exc_info=answer, request_id=current_request_id())
    return unforeseen(current_request_id())


def _give_up(waiting: Iterable[_Coming]) -> None:
    """What has not begun is dropped; what has stands, and its answer has no reader."""
    for unread, _ in waiting:
        if not unread.cancel() and not unread.cancelled():
            unread.exception()
