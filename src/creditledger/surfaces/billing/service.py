"""BillingService: the published billing APIs, exactly as their documents have them.

ListTransactions is the wallet's history for the key's own customer, with GetMyUsage, GetMyAccount
and GetMyBalance beside it; ListApiKeyBills its bills by period, API key and product. Names, numbers
and bounds follow those documents, not this project.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from zoneinfo import ZoneInfo

from credit.v1 import billing_service_pb2 as pb
from credit.v1 import billing_service_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import struct_pb2
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.auth import Caller, Callers
from creditledger.api.messages import posting as posting_messages
from creditledger.api.rpc import Service, rpc, rpc_stream
from creditledger.domain import billing_periods, money
from creditledger.domain import clock as time
from creditledger.domain.errors import InvalidField, MissingField, ResultTooLarge
from creditledger.domain.model import Dimension, Kind, Wallet, standing
from creditledger.domain.registry import ApiKey, Customer, Scope
from creditledger.domain.views import Movement
from creditledger.outlets.exports import stream as export_stream
from creditledger.outlets.exports.files import BILLING_COLUMNS, Dialect, Export
from creditledger.outlets.exports.stream import UTC, Exports, Walk
from creditledger.store import Store
from creditledger.store.dialects import lower_ascii
from creditledger.store.read import bill_sums, lists
from creditledger.store.read.transaction_reads import Filters
from creditledger.store.registry import records
from creditledger.store.registry.records import SuccessiveWallet
from creditledger.surfaces.billing import usage
from creditledger.surfaces.billing.rounding import Charge, apportion

PAGE_SIZE, PAGE_SIZE_MAX = 50, 200
#: What the list shows where no kind is asked for: the document's own.
LISTED_KINDS = (
    Kind.TOPUP,
    Kind.REFUND,
    Kind.ADMIN_CREDIT,
    Kind.ADMIN_DEBIT,
    Kind.SUBSCRIPTION_RENEW,
)
_KINDS = {kind.word: (kind,) for kind in Kind}

#: Of a wallet's metadata: what its owner wants to be warned at.
THRESHOLD = "low_balance_threshold_usd"

BILL_PAGE_SIZE, BILL_PAGE_SIZE_MAX = 100, 1_000
#: Rows of an answer that nobody asked to be paged.
BILL_ROWS_MAX = 10_000
_CYCLES = {cycle: cycle for cycle in billing_periods.CYCLES}


@dataclass(frozen=True, slots=True)
class _Movements:
    """Which movements a list or an export is of."""

    kinds: tuple[Kind, ...]
    since: int | None
    until: int | None
    livemode: bool | None


def _movements(request: pb.ListTransactionsRequest | pb.ExportTransactionsRequest) -> _Movements:
    kinds: tuple[Kind, ...] = LISTED_KINDS
    if request.HasField("kind"):
        kinds = fields.word(request.kind, _KINDS, field="kind")
    since = fields.optional_time(request, "since", field="since")
    until = fields.optional_time(request, "until", field="until")
    if since is not None and until is not None and since > until:
        raise InvalidField("since must not be after until", param="since")
    return _Movements(kinds, since, until, fields.livemode(request))


@dataclass(frozen=True, slots=True)
class _Exported:
    movements: _Movements
    dialect: Dialect
    digest_line: bool


def _exported(request: pb.ExportTransactionsRequest) -> _Exported:
    return _Exported(
        _movements(request),
        export_stream.dialect(fields.optional(request, "excel", None), "csv"),
        digest_line=fields.optional(request, "digest_line", False),
    )


@dataclass(frozen=True, slots=True)
class _Listing:
    page: int
    page_size: int
    movements: _Movements


def _listing(request: pb.ListTransactionsRequest) -> _Listing:
    page = fields.optional(request, "page", 1)
    fields.number(page, least=1, most=fields.INT32_MAX, field="page")
    size = fields.page_size(
        request, "page_size", field="page_size", default=PAGE_SIZE, most=PAGE_SIZE_MAX
    )
    return _Listing(page, size, _movements(request))


def _livemode(request: pb.GetMyAccountRequest) -> bool | None:
    return fields.livemode(request)


def _balance_query(request: pb.GetMyBalanceRequest) -> tuple[usage.UsageWindow, bool | None]:
    return usage.window(request), fields.livemode(request)


@dataclass(frozen=True, slots=True)
class _BillQuery:
    cycle: str
    start: int
    end: int  #: Exclusive: the last second named is in.
    zone: ZoneInfo
    category: str | None
    product_name: str | None
    api_key_id: str | None
    currency: str
    livemode: bool | None
    page: int | None  #: None: all of it.
    page_size: int


def _bill_query(request: pb.ListApiKeyBillsRequest) -> _BillQuery:
    cycle = fields.required(request.cycle_type, field="cycleType")
    start = fields.seconds(request, "start_time", field="startTime")
    end = fields.seconds(request, "end_time", field="endTime")
    if start is None or end is None:
        raise MissingField("startTime" if start is None else "endTime")
    if end <= start:
        raise InvalidField("endTime must be after startTime", param="endTime")
    paged = request.HasField("page") or request.HasField("page_size")
    page = fields.optional(request, "page", 1)
    return _BillQuery(
        cycle=fields.word(cycle, _CYCLES, field="cycleType"),
        start=start,
        end=end + time.SECOND,
        zone=time.zone(fields.optional(request, "time_zone", "UTC"), field="timeZone"),
        category=fields.optional_text(request, "category", field="category"),
        product_name=fields.optional_text(request, "product_name", field="productName"),
        api_key_id=fields.optional_text(request, "apikey_id", field="apikeyId"),
        currency=fields.optional_currency(request, "currency", field="currency") or "USD",
        livemode=fields.livemode(request),
        page=fields.number(page, least=1, most=fields.INT32_MAX, field="page") if paged else None,
        page_size=fields.page_size(
            request,
            "page_size",
            field="pageSize",
            default=BILL_PAGE_SIZE,
            most=BILL_PAGE_SIZE_MAX,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Bill:
    """One row of a bill, exact: amounts in smallest units, > 0 where something was charged."""

    bucket: billing_periods.Bucket
    dimension: Dimension
    quantities: tuple[int, ...]
    amount: int
    voucher: int
    charge: Charge


class BillingService(Service, billing_service_pb2_grpc.BillingServiceServicer):
    """Served to clients written for the published APIs."""

    def __init__(
        self,
        *,
        store: Store,
        callers: Callers,
        exports: Exports,
        clock: Callable[[], int],
        bills_from: int,
    ) -> None:
        """`bills_from`: Unix seconds before which bills are not served; 0 serves all."""
        super().__init__(store=store, callers=callers, clock=clock)
        self._exports = exports
        self._bills_from = bills_from

    @rpc(_listing, scope=Scope.CUSTOMER)
    async def ListTransactions(  # noqa: N802
        self, wanted: _Listing, caller: Caller
    ) -> pb.ListTransactionsResponse:
        """A page of the USD wallets' history, newest first. Raises CustomerKeyRequired."""
        customer_id = caller.customer()
        movements = wanted.movements
        livemode = caller.mode(movements.livemode)

        def read(connection: Connection) -> tuple[int, list[pb.BillingTransaction]]:
            wallets = records.succession(connection, customer_id, "USD", livemode)
            total, transactions = lists.kind_pages(
                connection,
                _places(wallets),
                movements.kinds,
                start=movements.since,
                end=movements.until,
                size=wanted.page_size,
                offset=(wanted.page - 1) * wanted.page_size,
            )
            before = {one.number: one.rows_before for one in wallets}
            return total, [_item(one, before[one.row.wallet]) for one in transactions]

        total, items = await self._store.read(read, stale=True)
        return pb.ListTransactionsResponse(
            items=items,
            total=total,
            page=wanted.page,
            page_size=wanted.page_size,
        )

    @rpc_stream(_exported, scope=Scope.CUSTOMER, whole=True)
    async def ExportTransactions(  # noqa: N802
        self, asked: _Exported, caller: Caller
    ) -> AsyncGenerator[HttpBody]:
        """The same history as a CSV, oldest first. Raises CustomerKeyRequired, Overloaded."""
        wanted = asked.movements
        filters = Filters(
            livemode=caller.mode(wanted.livemode),
            customer_id=caller.customer(),
            currency="USD",
            start=wanted.since,
            end=wanted.until,
        )
        stream = self._exports.stream(
            Export("csv", BILLING_COLUMNS, UTC, asked.dialect),
            Walk(filters, wanted.kinds),
            caller,
            name="transactions",
            digest_line=asked.digest_line,
        )
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece

    @rpc(usage.query, scope=Scope.CUSTOMER)
    async def GetMyUsage(  # noqa: N802
        self, wanted: usage.Query, caller: Caller
    ) -> pb.GetMyUsageResponse:
        """The usage of a window. Raises CustomerKeyRequired, InvalidField, ResultTooLarge."""
        customer_id = caller.customer()
        livemode = caller.mode(wanted.livemode)
        now = self._clock()
        wanted.window.at(now)

        def read(connection: Connection) -> tuple[dict[usage.Group, usage.Used], int]:
            scale = records.scale(connection, "USD")
            wallets = _places(records.succession(connection, customer_id, "USD", livemode))
            labels = None
            if wanted.api_key is not None:
                labels = usage.labels_of(wanted.api_key, records.keys_of(connection, customer_id))
            return usage.by_group(connection, wallets, wanted, labels, now), scale

        used, scale = await self._store.read(read, stale=True)
        return usage.answer(used, wanted.cycle, scale)

    @rpc(_livemode, scope=Scope.CUSTOMER)
    async def GetMyAccount(  # noqa: N802
        self, livemode: bool | None, caller: Caller
    ) -> pb.GetMyAccountResponse:
        """The customer and its USD wallets as they are now. Raises CustomerKeyRequired."""
        customer_id = caller.customer()
        livemode = caller.mode(livemode)

        def read(
            connection: Connection,
        ) -> tuple[Customer | None, int, Wallet | None, list[SuccessiveWallet]]:
            return (
                records.customer(connection, customer_id),
                records.scale(connection, "USD"),
                records.wallet_of(connection, customer_id, "USD", livemode),
                records.succession(connection, customer_id, "USD", livemode),
            )

        customer, scale, wallet, wallets = await self._store.read(read)
        assert customer is not None  # nothing takes a customer away
        return pb.GetMyAccountResponse(
            user=pb.AccountUser(
                id=customer.id,
                username=customer.name,
                email=customer.email,
                created_at=time.text_seconds(customer.created_at),
                tier="individual",
            ),
            balance=_account_balance(scale, wallet, wallets, self._clock()),
            allowed_models=struct_pb2.ListValue(),
            org=struct_pb2.Value(null_value=struct_pb2.NULL_VALUE),
        )

    @rpc(_balance_query, scope=Scope.CUSTOMER)
    async def GetMyBalance(  # noqa: N802
        self, asked: tuple[usage.UsageWindow, bool | None], caller: Caller
    ) -> pb.GetMyBalanceResponse:
        """The USD wallet now, and usage by key. Raises CustomerKeyRequired, InvalidField."""
        window, livemode = asked
        customer_id = caller.customer()
        livemode = caller.mode(livemode)
        now = self._clock()
        start, end = window.at(now)

        def read(
            connection: Connection,
        ) -> tuple[Wallet | None, int, list[ApiKey], dict[str, usage.Used]]:
            keys = records.keys_of(connection, customer_id)
            wallet = records.wallet_of(connection, customer_id, "USD", livemode)
            wallets = _places(records.succession(connection, customer_id, "USD", livemode))
            scale = records.scale(connection, "USD")
            return wallet, scale, keys, usage.by_api_key(connection, wallets, start, end)

        wallet, scale, keys, used = await self._store.read(read)
        for key in keys:
            if key.livemode == livemode:
                used.setdefault(key.id, usage.Used())
        return _balance(wallet, scale, {key.id: key for key in keys}, used, now)

    @rpc(_bill_query, scope=Scope.CUSTOMER)
    async def ListApiKeyBills(  # noqa: N802
        self, wanted: _BillQuery, caller: Caller
    ) -> pb.ListApiKeyBillsResponse:
        """The bills of a window. Raises CustomerKeyRequired, InvalidField, ResultTooLarge."""
        customer_id = caller.customer()
        livemode = caller.mode(wanted.livemode)
        if wanted.start < self._bills_from * time.SECOND:
            since = time.text_seconds(self._bills_from * time.SECOND)
            raise InvalidField(f"startTime must not be before {since}", param="startTime")

        def read(connection: Connection) -> tuple[list[_Bill], int, dict[str, ApiKey]]:
            scale = records.scale(connection, wanted.currency)
            wallets = records.succession(connection, customer_id, wanted.currency, livemode)
            found = _bills(connection, _places(wallets), wanted, scale)
            labels = {bill.dimension.api_key_id for bill in found}
            return found, scale, records.api_keys_of(connection, customer_id, labels)

        now = self._clock()
        found, scale, keys = await self._store.read(read, stale=True)
        return pb.ListApiKeyBillsResponse(
            bills=[_bill(bill, customer_id, scale, keys, now) for bill in found]
        )


def _places(wallets: Iterable[SuccessiveWallet]) -> list[tuple[int, int]]:
    return [(one.number, one.sequence) for one in wallets]


_NO_NOTE = {"null_value": struct_pb2.NULL_VALUE}


def _item(one: Movement, rows_before: int) -> pb.BillingTransaction:
    """A row; ids go on over the customer's wallets, which had so many rows before."""
    scale, note = one.scale, one.posting.note
    # From one dictionary: a message made part by part takes twice as long.
    shown: dict[str, Any] = {
        "id": rows_before + one.row.sequence,
        "created_at": time.text_seconds(one.row.created_at),
        "kind": Kind(one.row.kind).word,
        "amount_usd": float(money.text(one.row.amount, scale)),
        "balance_after_usd": float(money.text(one.row.running_balance, scale)),
        "source": posting_messages.source(one.posting),
        "note": _NO_NOTE if note is None else {"string_value": note},
    }
    return pb.BillingTransaction(**shown)


def _account_balance(
    scale: int, wallet: Wallet | None, wallets: Sequence[SuccessiveWallet], now: int
) -> pb.AccountBalance:
    """The credit of the open wallet, and the income and spending of all wallets."""
    available = threshold = 0
    if wallet is not None:
        available, threshold = standing(wallet, now).available, _threshold(wallet)
    spent = -sum(one.usage_amount + one.refund_amount for one in wallets)
    return pb.AccountBalance(
        available_usd=usage.usd(available, scale),
        lifetime_topup_usd=usage.usd(sum(one.topup_amount for one in wallets), scale),
        lifetime_spent_usd=usage.usd(spent, scale),
        low_balance_threshold_usd=usage.usd(threshold, scale),
        low_balance_flagged=available <= threshold,
    )


def _threshold(wallet: Wallet) -> int:
    """The amount in the metadata. Metadata is free text, so any other text counts as 0."""
    said = wallet.metadata.get(THRESHOLD, "0")
    try:
        return max(0, money.parse(said, wallet.scale, field=THRESHOLD))
    except InvalidField:
        return 0


def _balance(
    wallet: Wallet | None,
    scale: int,
    keys: Mapping[str, ApiKey],
    used: Mapping[str, usage.Used],
    now: int,
) -> pb.GetMyBalanceResponse:
    answer = pb.GetMyBalanceResponse(balance=pb.WalletBalance())
    if wallet is not None:
        balance, held, pending, available, _ = standing(wallet, now)
        answer.balance.balance_usd = usage.usd(balance, scale)
        answer.balance.held_usd = usage.usd(held, scale)
        answer.balance.pending_usd = usage.usd(pending, scale)
        answer.balance.available_usd = usage.usd(available, scale)
    for id_ in sorted(used):
        key = keys.get(id_)
        name, mask = (key.name, key.mask) if key else ("", "")
        answer.keys.add(id=id_, name=name, mask=mask, **used[id_].figures(scale))
    answer.totals.MergeFrom(pb.UsageTotals(**usage.total(used.values()).figures(scale)))
    return answer


def _bills(
    connection: Connection, wallets: bill_sums.Places, wanted: _BillQuery, scale: int
) -> list[_Bill]:
    """The rows asked for; each bucket is rounded over all its rows before any is left out."""
    found: list[_Bill] = []
    skipped = 0 if wanted.page is None else (wanted.page - 1) * wanted.page_size
    most = BILL_ROWS_MAX if wanted.page is None else skipped + wanted.page_size
    place = (connection, wallets, wanted.start, wanted.end)
    for bucket, added in bill_sums.periods_of(*place, cycle=wanted.cycle, zone=wanted.zone):
        rows = _rows(added)
        charges = apportion([(amount, voucher) for _, _, amount, voucher in rows], scale)
        found += [
            _Bill(bucket, dimension, quantities, amount, voucher, charge)
            for (dimension, quantities, amount, voucher), charge in zip(rows, charges, strict=True)
            if _matches(dimension, wanted)
        ]
        if len(found) > most:
            break
    if wanted.page is None and len(found) > BILL_ROWS_MAX:
        raise ResultTooLarge(
            f"more than {BILL_ROWS_MAX} bills; ask for pages, or for a shorter time",
            param="page",
        )
    return found[skipped:most]


def _order(dimension: Dimension) -> tuple[object, ...]:
    """The key of a bill's row, in the order of rows within a bucket."""
    return (
        dimension.api_key_id,
        dimension.product_id,
        _filled(dimension.base_prices),
        _filled(dimension.discount_prices),
        dimension.price_precision,
        dimension.product_name,
        dimension.category,
        dimension.billing_method,
    )


def _filled(prices: tuple[int, ...]) -> tuple[int, ...]:
    """One for each quantity there may be: those left out are 0."""
    return (*prices, *(0,) * (fields.QUANTITIES_MAX - len(prices)))


def _rows(
    added: Mapping[Dimension, bill_sums.BillSums],
) -> list[tuple[Dimension, tuple[int, ...], int, int]]:
    """(dimension, quantities, amount, voucher) of a bucket: dimensions a bill does not tell apart
    (meter, subscription, refund or not) are one row."""
    rows = []
    for _, group in groupby(sorted(added, key=_order), key=_order):
        members = list(group)
        parts = [added[one] for one in members]
        quantities = tuple(sum(q) for q in zip(*(part.quantities for part in parts), strict=True))
        amount = -sum(part.amount for part in parts)
        voucher = -sum(part.voucher_amount for part in parts)
        rows.append((members[0], quantities, amount, voucher))
    return rows


def _matches(dimension: Dimension, wanted: _BillQuery) -> bool:
    return (
        wanted.category in (None, dimension.category)
        and wanted.api_key_id in (None, dimension.api_key_id)
        and (
            wanted.product_name is None
            or lower_ascii(wanted.product_name) in lower_ascii(dimension.product_name)
        )
    )


def _bill(
    bill: _Bill, customer_id: str, scale: int, keys: Mapping[str, ApiKey], now: int
) -> pb.ApiKeyBill:
    """`now`: a bucket that lasts beyond it is partial."""
    dimension, charge = bill.dimension, bill.charge
    key = keys.get(dimension.api_key_id)
    base, discount = _filled(dimension.base_prices), _filled(dimension.discount_prices)
    # Usage is bounded so that it fits; that of several wallets, or of an older ledger, is not.
    amount, voucher, pay = (
        fields.answered(one, most=fields.INT64_MAX, field=name)
        for name, one in (
            ("amount", charge.amount),
            ("voucherAmount", charge.voucher),
            ("payAmount", charge.pay),
        )
    )
    numbers = [
        fields.answered(one, most=fields.INT64_MAX, field=f"billNum{i}")
        for i, one in enumerate(bill.quantities)
    ]
    return pb.ApiKeyBill(
        user_id=customer_id,
        start_time=bill.bucket.start // time.SECOND,
        end_time=bill.bucket.end // time.SECOND - 1,
        billing_method=dimension.billing_method,
        product_name=dimension.product_name,
        category=dimension.category,
        owner_id=dimension.api_key_id,
        bill_num0=numbers[0],
        bill_num1=numbers[1],
        base_price0=base[0],
        base_price1=base[1],
        discount_price0=discount[0],
        discount_price1=discount[1],
        amount=amount,
        voucher_amount=voucher,
        pay_amount=pay,
        pay_amount_display=charge.pay / 10**billing_periods.BILL_SCALE,
        price_precision=dimension.price_precision,
        product_id=dimension.product_id,
        apikey_name=key.name if key else "",
        apikey_mask=key.mask if key else "",
        amount_decimal=money.text(bill.amount, scale),
        voucher_amount_decimal=money.text(bill.voucher, scale),
        pay_amount_decimal=money.text(bill.amount - bill.voucher, scale),
        bill_num2=numbers[2],
        bill_num3=numbers[3],
        bill_num4=numbers[4],
        bill_num5=numbers[5],
        base_price2=base[2],
        base_price3=base[3],
        base_price4=base[4],
        base_price5=base[5],
        discount_price2=discount[2],
        discount_price3=discount[3],
        discount_price4=discount[4],
        discount_price5=discount[5],
        partial=True if bill.bucket.end > now else None,
    )
