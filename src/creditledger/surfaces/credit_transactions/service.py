"""CreditTransactionService: the published credit-transaction API, over any wallet.

Retrieve, List, Summary, Export and Watch, with names and shapes of the published API.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from credit.v1 import credit_transaction_pb2, credit_transaction_service_pb2_grpc
from credit.v1 import credit_transaction_service_pb2 as pb
from google.api.httpbody_pb2 import HttpBody
from sqlalchemy import Connection

from creditledger.api import fields, pages
from creditledger.api.auth import Caller, Callers
from creditledger.api.messages import posting as posting_messages
from creditledger.api.rpc import Service, current_header, rpc, rpc_stream
from creditledger.domain import clock as time
from creditledger.domain import ids, money
from creditledger.domain.errors import InvalidField, NotFound, QueryTooBroad, echo
from creditledger.domain.model import Kind
from creditledger.domain.registry import Scope
from creditledger.outlets import watches as watching
from creditledger.outlets.exports import stream as export_stream
from creditledger.outlets.exports.files import FORMATS, Dialect, Export, Format, Shown
from creditledger.outlets.exports.stream import Exports, Walk
from creditledger.outlets.watches import Seen, Watches
from creditledger.store import READ_SECONDS_MAX, Store
from creditledger.store.read import commit_order, consumption, lists, transaction_reads
from creditledger.store.read.commit_order import Mark
from creditledger.store.read.consumption import Sums
from creditledger.store.read.lists import Cursor, Page
from creditledger.store.read.transaction_reads import Filters
from creditledger.store.registry import records

PAGE_SIZE, PAGE_SIZE_MAX = 20, 100
PAGE_MAX = 2**31 - 1
#: What tokens go by: those of the order that earlier versions had are refused.
_ORDER = "created_at, wallet, sequence"
#: A search that nothing else narrows may look at this much time.
SEARCH_WINDOW_MS_MAX = 31 * time.DAY
SEARCH_SECONDS_MAX = 2.0
#: How a sum over no wallet at all is printed: 0.00.
NO_WALLET_SCALE = 2


@dataclass(frozen=True, slots=True)
class _TransactionWindow:
    """Filters that List and Summary share."""

    livemode: bool | None
    customer_id: str | None
    subscription_id: str | None
    meter_id: str | None
    wallet_id: str | None
    start: int | None
    end: int | None  #: Exclusive: the whole second named is in.


def _window(
    request: pb.CreditTransactionServiceListRequest
    | pb.CreditTransactionServiceSummaryRequest
    | pb.CreditTransactionServiceExportRequest,
) -> _TransactionWindow:
    start = fields.seconds(request, "start", field="start")
    end = fields.seconds(request, "end", field="end")
    if start is not None and end is not None and start > end:
        raise InvalidField("start must not be after end", param="start")
    reference = fields.optional_reference
    return _TransactionWindow(
        livemode=fields.livemode(request),
        customer_id=reference("cus", request, "customer_id", field="customer_id"),
        subscription_id=reference("sub", request, "subscription_id", field="subscription_id"),
        meter_id=reference("mtr", request, "meter_id", field="meter_id"),
        wallet_id=reference("wal", request, "wallet_id", field="wallet_id"),
        start=start,
        end=None if end is None else end + time.SECOND,
    )


@dataclass(frozen=True, slots=True)
class _TransactionRows:
    """Which rows a list or an export is of."""

    window: _TransactionWindow
    credit_grant_id: str | None
    source: str | None
    q: str | None

    @property
    def searched(self) -> bool:
        """Whether rows have to be read to know if they belong to it."""
        return self.q is not None or self.source is not None


def _rows(
    request: pb.CreditTransactionServiceListRequest | pb.CreditTransactionServiceExportRequest,
) -> _TransactionRows:
    return _TransactionRows(
        window=_window(request),
        credit_grant_id=fields.optional_reference(
            "cg", request, "credit_grant_id", field="credit_grant_id"
        ),
        source=fields.optional_text(request, "source", field="source", most=fields.KEY_MAX),
        q=fields.optional_text(request, "q", field="q", most=fields.QUERY_MAX),
    )


@dataclass(frozen=True, slots=True)
class _TransactionList:
    rows: _TransactionRows
    page: int
    page_size: int
    page_token: str | None


def _list(request: pb.CreditTransactionServiceListRequest) -> _TransactionList:
    limited = request.HasField("limit")
    if limited and request.HasField("page_size") and request.page_size != request.limit:
        raise InvalidField("pageSize and limit are two names of one thing", param="limit")
    if request.HasField("page_token") and request.HasField("page"):
        raise InvalidField("page and page_token exclude each other", param="page_token")
    if request.HasField("page"):
        fields.number(request.page, least=1, most=PAGE_MAX, field="page")
    return _TransactionList(
        rows=_rows(request),
        page=request.page or 1,
        page_size=fields.page_size(
            request,
            "limit" if limited else "page_size",
            field="limit" if limited else "pageSize",
            default=PAGE_SIZE,
            most=PAGE_SIZE_MAX,
        ),
        page_token=fields.optional(request, "page_token", None),
    )


@dataclass(frozen=True, slots=True)
class _TransactionExport:
    rows: _TransactionRows
    format: Format
    columns: dict[str, Callable[[Shown], object]]
    zone: ZoneInfo
    dialect: Dialect
    digest_line: bool


def _export(request: pb.CreditTransactionServiceExportRequest) -> _TransactionExport:
    format_ = fields.word(request.format or "csv", FORMATS, field="format")
    return _TransactionExport(
        rows=_rows(request),
        format=format_,
        columns=export_stream.columns(request.columns),
        zone=time.zone(fields.optional(request, "time_zone", "UTC"), field="time_zone"),
        dialect=export_stream.dialect(fields.optional(request, "excel", None), format_),
        digest_line=fields.optional(request, "digest_line", False),
    )


def _finished(request: pb.CreditTransactionServiceRetrieveExportRequest) -> str:
    return fields.reference("exp", request.id, field="id")


@dataclass(frozen=True, slots=True)
class _TransactionSummary:
    window: _TransactionWindow
    currency: str | None


def _summary(request: pb.CreditTransactionServiceSummaryRequest) -> _TransactionSummary:
    return _TransactionSummary(
        window=_window(request),
        currency=fields.optional_currency(request, "currency_id", field="currency_id"),
    )


def _retrieve(request: pb.CreditTransactionServiceRetrieveRequest) -> tuple[str, bool | None]:
    id_ = fields.reference("ct", request.id, field="id")
    return id_, fields.livemode(request)


KINDS = {kind.word: kind for kind in Kind}
#: What `after` says instead of a cursor.
BEGINNING = "beginning"
HEARTBEAT_SECONDS, HEARTBEAT_SECONDS_MAX = 15, 30


@dataclass(frozen=True, slots=True)
class _TransactionWatch:
    window: _TransactionWindow
    credit_grant_id: str | None
    after: str | None
    kinds: frozenset[int]
    heartbeat_seconds: int


def _watch(
    request: pb.CreditTransactionServiceWatchRequest
    | pb.CreditTransactionServiceWatchEventsRequest,
) -> _TransactionWatch:
    reference = fields.optional_reference
    names = fields.optional_text(request, "kinds", field="kinds", most=fields.NAME_MAX)
    return _TransactionWatch(
        window=_TransactionWindow(
            livemode=fields.livemode(request),
            customer_id=reference("cus", request, "customer_id", field="customer_id"),
            subscription_id=reference("sub", request, "subscription_id", field="subscription_id"),
            meter_id=reference("mtr", request, "meter_id", field="meter_id"),
            wallet_id=reference("wal", request, "wallet_id", field="wallet_id"),
            start=None,
            end=None,
        ),
        credit_grant_id=reference("cg", request, "credit_grant_id", field="credit_grant_id"),
        after=fields.optional_text(request, "after", field="after", most=fields.NAME_MAX),
        kinds=frozenset(
            fields.word(one, KINDS, field="kinds").value
            for one in ([] if names is None else names.split(","))
        ),
        heartbeat_seconds=fields.number(
            fields.optional(request, "heartbeat_seconds", HEARTBEAT_SECONDS),
            least=1,
            most=HEARTBEAT_SECONDS_MAX,
            field="heartbeat_seconds",
        ),
    )


class CreditTransactionService(
    Service, credit_transaction_service_pb2_grpc.CreditTransactionServiceServicer
):
    """Served to consoles, accountants and the published API's clients."""

    def __init__(
        self,
        *,
        store: Store,
        callers: Callers,
        exports: Exports,
        watches: Watches,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(store=store, callers=callers, clock=clock)
        self._exports = exports
        self._watches = watches

    @rpc(_retrieve, scope=Scope.CUSTOMER)
    async def Retrieve(  # noqa: N802
        self, wanted: tuple[str, bool | None], caller: Caller
    ) -> credit_transaction_pb2.CreditTransaction:
        """One transaction, expanded. Raises NotFound, ModeMismatch."""
        id_, livemode = wanted
        caller.mode(livemode)
        place = ids.resolve("ct", id_)
        found = None
        if place is not None:
            found = await self._store.read(lambda c: transaction_reads.transaction(c, *place))
        if found is None or not caller.may_see_wallet(found.wallet):
            raise NotFound(f"no credit transaction {echo(id_)}", param="id")
        return posting_messages.expanded(found)

    @rpc(_list, scope=Scope.CUSTOMER, names={"cursor": "page_token"})
    async def List(  # noqa: N802
        self, wanted: _TransactionList, caller: Caller
    ) -> pb.CreditTransactionServiceListResponse:
        """A page, newest first. Raises InvalidField, ModeMismatch, NotFound, QueryTooBroad."""
        filters = _filters(wanted.rows.window, caller, wanted.rows)
        size, number = wanted.page_size, wanted.page
        if wanted.page_token is not None:
            pin, *at = pages.position(wanted.page_token, (_ORDER, filters), [str, *[int] * 5])
            *place, number = map(int, at)
            cursor = Cursor(str(pin), *place)
            if max(cursor.count, number) > PAGE_MAX:  # made up: the answer could not hold them
                raise InvalidField("page_token is no token of this list", param="page_token")

            def read(connection: Connection) -> Page:
                return lists.page_after(connection, filters, cursor, size=size)
        else:

            def read(connection: Connection) -> Page:
                offset = (number - 1) * size
                return lists.page(connection, filters, size=size, offset=offset)

        seconds = SEARCH_SECONDS_MAX if wanted.rows.searched else READ_SECONDS_MAX
        try:
            page = await self._store.read(read, seconds=seconds, stale=True)
        except lists.OffsetTooLarge:
            raise InvalidField(
                f"page reaches beyond {lists.OFFSET_MAX} rows; walk by page_token instead",
                param="page",
            ) from None
        token = None
        if page.next is not None:
            after = page.next
            at = [after.pin, after.count, after.created_at, after.wallet, after.sequence]
            token = pages.token((_ORDER, filters), [*at, number + 1])
        return pb.CreditTransactionServiceListResponse(
            count=fields.answered(page.count, most=fields.INT32_MAX, field="count"),
            list=[posting_messages.expanded(one) for one in page.transactions],
            paging=pb.CreditTransactionPaging(page=number, page_size=size, next_page_token=token),
        )

    @rpc(_summary, scope=Scope.CUSTOMER, names={"currency": "currency_id"})
    async def Summary(  # noqa: N802
        self, wanted: _TransactionSummary, caller: Caller
    ) -> pb.CreditTransactionServiceSummaryResponse:
        """Consumption in a window, of one currency. Raises InvalidField(currency_id), NotFound."""
        filters = replace(_filters(wanted.window, caller), currency=wanted.currency)

        def read(connection: Connection) -> tuple[Sums, int]:
            if wanted.currency is not None:
                records.scale(connection, wanted.currency)
            wallets = transaction_reads.wallets_of(connection, filters)
            found = consumption.currencies(connection, filters, wallets)
            if len(found) > 1:
                raise InvalidField(
                    f"wallets of {', '.join(found)} are in scope and cannot be added up;"
                    " name one as currency_id",
                    param="currency_id",
                )
            if not found:
                return Sums(), NO_WALLET_SCALE
            scale = records.scale(connection, found[0])
            return consumption.summary(connection, filters, wallets), scale

        total, scale = await self._store.read(read, stale=True)
        window = wanted.window
        return pb.CreditTransactionServiceSummaryResponse(
            total_quantity=_quantity(total, scale),
            total_credit_amount=money.text(total.amount, scale),
            transaction_count=fields.answered(
                total.count, most=fields.INT32_MAX, field="transaction_count"
            ),
            filters=pb.CreditTransactionSummaryFilters(
                customer_id=window.customer_id,
                subscription_id=window.subscription_id,
                currency_id=wanted.currency,
                meter_id=window.meter_id,
                livemode=window.livemode,
                start_time=None if window.start is None else time.text(window.start),
                end_time=None if window.end is None else time.text(window.end - time.SECOND),
                wallet_id=window.wallet_id,
            ),
        )

    @rpc_stream(_export, scope=Scope.CUSTOMER, whole=True)
    async def Export(self, wanted: _TransactionExport, caller: Caller) -> AsyncGenerator[HttpBody]:  # noqa: N802
        """All rows, oldest first, as a file. Raises as List does, and Overloaded."""
        filters = _filters(wanted.rows.window, caller, wanted.rows)
        export = Export(wanted.format, wanted.columns, wanted.zone, wanted.dialect)
        stream = self._exports.stream(
            export,
            Walk(filters),
            caller,
            name="credit-transactions",
            digest_line=wanted.digest_line,
        )
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece

    @rpc(_finished, scope=Scope.CUSTOMER)
    async def RetrieveExport(self, id_: str, caller: Caller) -> pb.FinishedExport:  # noqa: N802
        """The rows and digest of an export of the last 24 hours. Raises NotFound."""
        found = await self._exports.finished(id_, caller)
        if found is None:
            raise NotFound(f"no export {echo(id_)} that ended in the last 24 hours", param="id")
        return pb.FinishedExport(
            id=found.id,
            rows=found.rows,
            sha256=found.sha256,
            livemode=found.livemode,
            finished_at=time.text(found.finished_at),
        )

    @rpc_stream(_watch, scope=Scope.CUSTOMER)
    async def Watch(  # noqa: N802
        self, wanted: _TransactionWatch, caller: Caller
    ) -> AsyncGenerator[pb.CreditTransactionServiceWatchResponse]:
        """Rows as they come. Raises InvalidField(after), ModeMismatch, NotFound, Overloaded."""
        async with aclosing(self._seen(wanted, wanted.after, caller)) as all_seen:
            async for seen in all_seen:
                # The loop has others to serve while rows become messages.
                for message in await asyncio.to_thread(list, watching.messages(seen)):
                    yield message

    @rpc_stream(_watch, scope=Scope.CUSTOMER)
    async def WatchEvents(  # noqa: N802
        self, wanted: _TransactionWatch, caller: Caller
    ) -> AsyncGenerator[HttpBody]:
        """The same as Server-Sent Events; a browser that asks again says how far it has come."""
        after = current_header("last-event-id") or wanted.after
        async with aclosing(self._seen(wanted, after, caller)) as all_seen:
            async for seen in all_seen:
                for piece in await asyncio.to_thread(list, watching.events(seen)):
                    yield piece

    def _seen(
        self, wanted: _TransactionWatch, after: str | None, caller: Caller
    ) -> AsyncGenerator[Seen]:
        mark = commit_order.START if after == BEGINNING else None
        if after is not None and mark is None:
            mark = Mark.parse(after, field="after")
        watch = watching.Watch(
            replace(_filters(wanted.window, caller), grant=_grant(wanted.credit_grant_id)),
            mark,
            wanted.kinds,
            wanted.heartbeat_seconds,
        )
        return self._watches.stream(watch, caller.customer_id, self.still_there)


def _filters(
    window: _TransactionWindow, caller: Caller, rows: _TransactionRows | None = None
) -> Filters:
    """Filters of rows that the caller may see. Raises ModeMismatch, NotFound, QueryTooBroad."""
    filters = Filters(
        livemode=caller.mode(window.livemode),
        customer_id=caller.own(window.customer_id),
        subscription_id=window.subscription_id,
        meter_id=window.meter_id,
        wallet_id=window.wallet_id,
        start=window.start,
        end=window.end,
    )
    if rows is None:
        return filters
    if rows.searched:
        _require_narrow(rows)
    return replace(filters, grant=_grant(rows.credit_grant_id), source=rows.source, q=rows.q)


def _grant(id_: str | None) -> tuple[int, int] | None:
    """The place of a grant that is asked for."""
    if id_ is None:
        return None
    # An id that cannot be names nothing: wallet 0 does not exist.
    return ids.resolve("cg", id_) or (0, 0)


def _require_narrow(wanted: _TransactionRows) -> None:
    window = wanted.window
    narrowed = (
        window.wallet_id,
        window.customer_id,
        window.subscription_id,
        window.meter_id,
        wanted.credit_grant_id,
    )
    bounded = (
        window.start is not None
        and window.end is not None
        and window.end - window.start <= SEARCH_WINDOW_MS_MAX + time.SECOND
    )
    if bounded or any(value is not None for value in narrowed):
        return
    raise QueryTooBroad(
        "q and source need a wallet, customer, subscription, grant or meter beside them,"
        " or a window of at most 31 days",
        param="q" if wanted.q is not None else "source",
    )


def _quantity(total: Sums, scale: int) -> str:
    """Quantities and, of what has none, credits: as one number without trailing zeros."""
    text = money.text(total.quantity * 10**scale + total.unmetered_amount, scale)
    return text.rstrip("0").rstrip(".") if "." in text else text
