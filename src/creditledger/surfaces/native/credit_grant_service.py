"""CreditGrantService: grants found, changed, voided, and traced to what they paid."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from credit.v1 import credit_grant_service_pb2 as pb
from credit.v1 import credit_grant_service_pb2_grpc
from sqlalchemy import Connection

from creditledger.api import fields, pages
from creditledger.api.auth import Caller, Callers
from creditledger.api.messages import grant as grant_messages
from creditledger.api.messages import posting as posting_messages
from creditledger.api.rpc import Service, rpc
from creditledger.domain import ids
from creditledger.domain.commands import Command, GrantChange
from creditledger.domain.errors import MissingField, NotFound, echo
from creditledger.domain.model import Category, GrantStatus, WalletView
from creditledger.domain.registry import Scope
from creditledger.domain.views import GivenGrant
from creditledger.engine.batch import Posted
from creditledger.engine.ledger import Ledger
from creditledger.store import Store
from creditledger.store.read import grants
from creditledger.store.read.grants import GrantFilters, GrantSums
from creditledger.store.registry import records

#: How many days ahead a summary looks for what expires.
DAYS, DAYS_MAX = 7, 3_660

T = TypeVar("T", Posted, WalletView)


def _retrieve(request: pb.CreditGrantServiceRetrieveRequest) -> tuple[str, bool | None]:
    id_ = fields.made("cg", request.id, field="id")
    return id_, fields.livemode(request)


@dataclass(frozen=True, slots=True)
class _GrantListRequest:
    page: pages.PageRequest
    livemode: bool | None
    customer_id: str | None
    wallet_id: str | None
    status: GrantStatus | None
    category: Category | None
    expiring_before: int | None


def _list(request: pb.CreditGrantServiceListRequest) -> _GrantListRequest:
    given, reference = request.HasField, fields.optional_reference
    status = category = None
    if given("status"):
        status = fields.word(request.status, grant_messages.GRANT_STATUSES, field="status")
    if given("category"):
        category = fields.word(request.category, posting_messages.CATEGORIES, field="category")
    return _GrantListRequest(
        page=pages.asked(request),
        livemode=fields.livemode(request),
        customer_id=reference("cus", request, "customer_id", field="customer_id"),
        wallet_id=reference("wal", request, "wallet_id", field="wallet_id"),
        status=status,
        category=category,
        expiring_before=fields.optional_time(request, "expiring_before", field="expiring_before"),
    )


@dataclass(frozen=True, slots=True)
class _GrantChangeRequest:
    id: str
    change: Callable[[str, Caller], GrantChange]


def _change(request: pb.CreditGrantServiceUpdateRequest) -> _GrantChangeRequest:
    return _GrantChangeRequest(request.id, grant_messages.change(request))


@dataclass(frozen=True, slots=True)
class _Void:
    id: str
    command: Callable[[str, Caller], Command]


def _void(request: pb.CreditGrantServiceVoidRequest) -> _Void:
    return _Void(request.id, grant_messages.void(request))


@dataclass(frozen=True, slots=True)
class _GrantSummary:
    customer_id: str | None
    wallet_id: str | None
    days: int
    livemode: bool | None


def _summary(request: pb.CreditGrantServiceSummaryRequest) -> _GrantSummary:
    reference = fields.optional_reference
    days = fields.optional(request, "within_days", DAYS)
    return _GrantSummary(
        customer_id=reference("cus", request, "customer_id", field="customer_id"),
        wallet_id=reference("wal", request, "wallet_id", field="wallet_id"),
        days=fields.number(days, least=1, most=DAYS_MAX, field="within_days"),
        livemode=fields.livemode(request),
    )


@dataclass(frozen=True, slots=True)
class _GrantRows:
    id: str
    newest_first: bool
    page: pages.PageRequest


def _rows(request: pb.CreditGrantServiceListTransactionsRequest) -> _GrantRows:
    orders = {grant_messages.NEWEST: True, grant_messages.OLDEST: False}
    order = fields.optional(request, "order", grant_messages.NEWEST)
    return _GrantRows(
        id=fields.made("cg", request.id, field="id"),
        newest_first=fields.word(order, orders, field="order"),
        page=pages.asked(request),
    )


def _posting_id(request: pb.CreditGrantServiceListPostingGrantsRequest) -> str:
    return fields.made("pst", request.posting_id, field="posting_id")


class CreditGrantService(Service, credit_grant_service_pb2_grpc.CreditGrantServiceServicer):
    """Served to consoles and to those who look after customers."""

    def __init__(
        self, *, store: Store, ledger: Ledger, callers: Callers, clock: Callable[[], int]
    ) -> None:
        super().__init__(store=store, callers=callers, clock=clock)
        self._ledger = ledger

    @rpc(_retrieve, scope=Scope.CUSTOMER)
    async def Retrieve(  # noqa: N802
        self, wanted: tuple[str, bool | None], caller: Caller
    ) -> pb.CreditGrant:
        """One grant as it is now. Raises NotFound, ModeMismatch."""
        id_, livemode = wanted
        caller.mode(livemode)
        return grant_messages.grant(await self._grant(id_, caller))

    @rpc(_list, scope=Scope.CUSTOMER)
    async def List(  # noqa: N802
        self, wanted: _GrantListRequest, caller: Caller
    ) -> pb.CreditGrantServiceListResponse:
        """A page, newest first. Raises NotFound, ModeMismatch, InvalidField, QueryTooBroad."""
        filters = GrantFilters(
            livemode=caller.mode(wanted.livemode),
            customer_id=caller.own(wanted.customer_id),
            wallet_id=wanted.wallet_id,
            statuses=() if wanted.status is None else (wanted.status,),
            category=wanted.category,
            expiring_before=wanted.expiring_before,
        )
        before = None
        if wanted.page.token is not None:
            at = pages.position(wanted.page.token, filters, [int, int, int])
            before = int(at[0]), int(at[1]), int(at[2])
        now, size = self._clock(), wanted.page.size

        def read(connection: Connection) -> list[GivenGrant]:
            _require_wallet(connection, filters)
            return grants.page(connection, filters, before, size, clock=now)

        found = await self._store.read(read)
        page, token = pages.cut(found, size, filters, grants.position)
        return pb.CreditGrantServiceListResponse(
            credit_grants=map(grant_messages.grant, page), next_page_token=token
        )

    @rpc(_change, scope=Scope.SERVICE)
    async def Update(self, asked: _GrantChangeRequest, caller: Caller) -> pb.CreditGrant:  # noqa: N802
        """Raises NotFound, WalletClosed, GrantVoided, GrantExpired, InvalidField."""
        wallet_id = await self._wallet_id(asked.id)
        await self._of(asked.id, self._ledger.change(asked.change(wallet_id, caller)))
        return grant_messages.grant(await self._grant(asked.id, caller))

    @rpc(_void, scope=Scope.SERVICE)
    async def Void(  # noqa: N802
        self, asked: _Void, caller: Caller
    ) -> pb.CreditGrantServiceVoidResponse:
        """As a posting, see `Ledger.post`. Raises NotFound, GrantVoided, GrantExpired."""
        wallet_id = await self._wallet_id(asked.id)
        posted = await self._of(asked.id, self._ledger.post(asked.command(wallet_id, caller)))
        return pb.CreditGrantServiceVoidResponse(
            credit_grant=grant_messages.grant(await self._grant(asked.id, caller)),
            posting=posting_messages.posted(posted),
        )

    @rpc(_summary, scope=Scope.CUSTOMER)
    async def Summary(  # noqa: N802
        self, wanted: _GrantSummary, caller: Caller
    ) -> pb.CreditGrantServiceSummaryResponse:
        """Sums by currency. Raises NotFound, ModeMismatch, MissingField."""
        filters = GrantFilters(
            livemode=caller.mode(wanted.livemode),
            customer_id=caller.own(wanted.customer_id),
            wallet_id=wanted.wallet_id,
        )
        if filters.customer_id is None and filters.wallet_id is None:
            raise MissingField("customer_id")
        now = self._clock()

        def read(connection: Connection) -> dict[str, GrantSums]:
            _require_wallet(connection, filters)
            wallets = grants.wallets_in(connection, filters) or []
            return grants.summary(connection, wallets, clock=now, days=wanted.days)

        return grant_messages.summary(await self._store.read(read), wanted.days)

    @rpc(_rows, scope=Scope.CUSTOMER)
    async def ListTransactions(  # noqa: N802
        self, wanted: _GrantRows, caller: Caller
    ) -> pb.CreditGrantServiceListTransactionsResponse:
        """A page of a grant's rows. Raises NotFound, InvalidField(page_token)."""
        await self._grant(wanted.id, caller)
        place = ids.place("cg", wanted.id)
        filters = ("rows of a grant", wanted.id, wanted.newest_first)
        after, size = wanted.page.before(filters), wanted.page.size
        shown, end = await self._store.read(
            lambda connection: grants.transactions(
                connection, *place, after, size, newest_first=wanted.newest_first
            )
        )
        return pb.CreditGrantServiceListTransactionsResponse(
            transactions=map(posting_messages.expanded, shown),
            next_page_token=None if end is None else pages.token(filters, [end]),
        )

    @rpc(_posting_id, scope=Scope.CUSTOMER)
    async def ListPostingGrants(  # noqa: N802
        self, posting_id: str, caller: Caller
    ) -> pb.CreditGrantServiceListPostingGrantsResponse:
        """Which grants a posting moved. Raises NotFound."""
        place = ids.place("pst", posting_id)
        found = await self._store.read(lambda connection: grants.moved(connection, *place))
        if found is None or not caller.may_see_wallet(found[0]):
            raise NotFound(f"no posting {echo(posting_id)}", param="posting_id")
        wallet, rows = found
        return grant_messages.moved(posting_id, place[0], wallet, rows)

    async def _grant(self, id_: str, caller: Caller) -> GivenGrant:
        place = ids.place("cg", id_)
        now = self._clock()
        found = await self._store.read(lambda c: grants.grant(c, *place, clock=now))
        if found is None or not caller.may_see_wallet(found.wallet):
            raise _no_grant(id_)
        return found

    async def _wallet_id(self, grant_id: str) -> str:
        place = ids.place("cg", grant_id)
        wallet_id = await self._store.read(lambda c: records.wallet_id(c, place[0]))
        if wallet_id is None:
            raise _no_grant(grant_id)
        return wallet_id

    async def _of(self, grant_id: str, coming: Awaitable[T]) -> T:
        try:
            return await coming
        except NotFound as refusal:
            # The caller named a grant, and no wallet.
            if refusal.param == "wallet_id":
                raise _no_grant(grant_id) from None
            raise


def _no_grant(id_: str) -> NotFound:
    return NotFound(f"no grant {echo(id_)}", param="id")


def _require_wallet(connection: Connection, filters: GrantFilters) -> None:
    """Raises NotFound for a wallet that there is not, or not within the other filters."""
    if filters.wallet_id is not None and not grants.wallets_in(connection, filters):
        raise NotFound(f"no wallet {echo(filters.wallet_id)}", param="wallet_id")
