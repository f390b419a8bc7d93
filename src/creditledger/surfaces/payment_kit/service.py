"""PaymentKitService: meters, meter events and grants, as Payment Kit's client asks for them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog
from credit.v1 import payment_kit_service_pb2 as pb
from credit.v1 import payment_kit_service_pb2_grpc
from google.protobuf.struct_pb2 import Struct
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.api.auth import Caller, Callers
from creditledger.api.field_names import renamed
from creditledger.api.intents import FIELD, HEADER, HEADER_NAME
from creditledger.api.messages.posting import FIELD_NAMES
from creditledger.api.rpc import Service, current_header, rpc, send_headers
from creditledger.domain import clock as time
from creditledger.domain import ids, money
from creditledger.domain.commands import Command, GrantChange
from creditledger.domain.errors import (
    InvalidField,
    MissingField,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    QueryTooBroad,
    Unavailable,
    WalletClosed,
    echo,
)
from creditledger.domain.model import Posting
from creditledger.domain.operations import CancelEvent, GiveGrant, ReportEvent, VoidGrant
from creditledger.domain.registry import Currency, Meter, Scope
from creditledger.domain.views import GivenGrant, WalletPlace
from creditledger.engine.batch import Posted
from creditledger.engine.ledger import Ledger
from creditledger.store import READ_SECONDS_MAX, Store
from creditledger.store.change_keys import Kept
from creditledger.store.read import grants, meter_events
from creditledger.store.read.grants import GrantFilters
from creditledger.store.read.meter_events import EventFilters, Reported
from creditledger.store.registry import meters, records
from creditledger.surfaces.payment_kit import events as event_messages
from creditledger.surfaces.payment_kit import grants as grant_messages
from creditledger.surfaces.payment_kit import meters as meter_messages
from creditledger.surfaces.payment_kit import shapes

log = structlog.get_logger()

_WithCurrency = tuple[Meter, Currency | None]

SEARCH_SECONDS_MAX = 2.0
#: How soon after each other equal grants without a key are likely one that was sent twice.
TWINS_MS_MAX = time.MINUTE
#: The newest grants of the customer and currency among which an equal one is looked for.
TWINS_LOOKED_AT_MAX = 100
#: More than a customer can have of one mode that are not closed: there is one for each currency.
WALLETS_MAX = 1_000
#: Wallets that a write goes to, one after the other, where they are closed in that very moment.
WALLETS_TRIED_MAX = 3
_CURRENCY = {"currency": "currency_id"}


class PaymentKitService(Service, payment_kit_service_pb2_grpc.PaymentKitServiceServicer):
    """Served to the published client, which uses one service key."""

    def __init__(
        self, *, store: Store, ledger: Ledger, callers: Callers, clock: Callable[[], int]
    ) -> None:
        super().__init__(store=store, callers=callers, clock=clock)
        self._ledger = ledger

    # Meters.

    @rpc(meter_messages.new_meter, scope=Scope.SERVICE, names=_CURRENCY)
    async def CreateMeter(  # noqa: N802
        self, new: meter_messages.NewMeter, caller: Caller
    ) -> pb.CreditMeter:
        """Raises IdTaken for the event_name, NotFound for the currency."""
        livemode, now = caller.mode(new.livemode), self._clock()

        def create(connection: Connection) -> _WithCurrency:
            one = meters.create(connection, replace(new.meter, created_at=now), found_by_event=True)
            return one, _currency_of(connection, one)

        made = await self._once(create, _meter_again, _meter_id)
        return meter_messages.meter(*made.value, livemode)

    @rpc(meter_messages.any_meter, scope=Scope.CUSTOMER)
    async def GetMeter(  # noqa: N802
        self, wanted: shapes.IdRequest, caller: Caller
    ) -> pb.CreditMeter:
        """Raises NotFound."""
        livemode = caller.mode(wanted.livemode)

        def find(connection: Connection) -> tuple[Meter, Currency | None]:
            one = meters.by_id(connection, wanted.id) or meters.by_event(connection, wanted.id)
            if one is None:
                raise NotFound(f"no meter {echo(wanted.id)}", param="id")
            return one, _currency_of(connection, one)

        return meter_messages.meter(*await self._store.read(find), livemode)

    @rpc(meter_messages.meter_list, scope=Scope.CUSTOMER)
    async def ListMeters(  # noqa: N802
        self, wanted: meter_messages.MeterList, caller: Caller
    ) -> pb.PaymentKitServiceListMetersResponse:
        """Newest first."""
        livemode = caller.mode(wanted.livemode)
        page = wanted.page

        def find(connection: Connection) -> tuple[int, list[tuple[Meter, Currency | None]]]:
            count, found = meters.newest(
                connection,
                event_name=wanted.event_name,
                q=wanted.q,
                offset=page.offset,
                size=page.size,
            )
            return count, [(one, _currency_of(connection, one)) for one in found]

        count, found = await self._store.read(find)
        return pb.PaymentKitServiceListMetersResponse(
            count=fields.answered(count, most=fields.INT32_MAX, field="count"),
            list=[meter_messages.meter(one, currency, livemode) for one, currency in found],
            paging=page.message(),
        )

    @rpc(meter_messages.meter_change, scope=Scope.SERVICE, shared=True)
    async def UpdateMeter(  # noqa: N802
        self, change: meter_messages.MeterChange, caller: Caller
    ) -> pb.CreditMeter:
        """Raises NotFound, ModeMismatch."""
        return await self._change(change, caller)

    @rpc(meter_messages.named_meter, scope=Scope.SERVICE, shared=True)
    async def ActivateMeter(  # noqa: N802
        self, wanted: shapes.IdRequest, caller: Caller
    ) -> pb.CreditMeter:
        """Raises NotFound, ModeMismatch."""
        return await self._change(meter_messages.MeterChange(wanted, {"active": True}), caller)

    @rpc(meter_messages.named_meter, scope=Scope.SERVICE, shared=True)
    async def DeactivateMeter(  # noqa: N802
        self, wanted: shapes.IdRequest, caller: Caller
    ) -> pb.CreditMeter:
        """Raises NotFound, ModeMismatch."""
        return await self._change(meter_messages.MeterChange(wanted, {"active": False}), caller)

    async def _change(self, change: meter_messages.MeterChange, caller: Caller) -> pb.CreditMeter:
        livemode, now = caller.mode(change.meter.livemode), self._clock()

        def write(connection: Connection) -> _WithCurrency:
            one = meters.change(connection, change.meter.id, now=now, **change.changed)
            return one, _currency_of(connection, one)

        made = await self._once(write, _meter_again, _meter_id)
        return meter_messages.meter(*made.value, livemode)

    # What they count.

    @rpc(
        event_messages.new_event,
        scope=Scope.SERVICE,
        names=event_messages.FIELD_NAMES,
    )
    async def CreateMeterEvent(  # noqa: N802
        self, new: event_messages.NewEvent, caller: Caller
    ) -> pb.CreditMeterEvent:
        """As a posting, see `Ledger.post`; too little credit is no refusal. Raises NotFound too."""
        livemode = caller.mode(new.livemode)
        # All that is read is read before: what was written is then answered in any case.
        meter, currency, customer, wallet_id = await self._store.read(
            lambda c: meter_events.destination(
                c, new.event_name, new.customer_id, new.identifier, livemode=livemode
            )
        )
        if meter is None:
            raise NotFound(f"no meter counts {echo(new.event_name)}", param="event_name")
        if currency is None:
            raise InvalidField(
                "the meter has no currency, so its events cost nothing", param="event_name"
            )
        if customer is None:
            raise NotFound(f"no customer {echo(new.customer_id)}", param="payload.customer_id")
        command = Command(
            wallet_id or "",
            new.identifier,
            ReportEvent(new.value, meter.id, new.subscription_id),
            livemode,
            caller.number,
            caller.name,
            metadata=new.metadata,
            effective_at=new.timestamp,
            backdating_free=caller.scope is Scope.ADMIN,
        )
        posted = await self._post(command, new.customer_id, currency.code, livemode)
        if posted.event is None:
            found = await self._event(posted.posting.wallet, posted.posting.number)
            assert found is not None
            return event_messages.event(found)
        return event_messages.event(
            Reported(
                posted.event,
                posted.posting.wallet,
                WalletPlace(
                    posted.wallet.id, new.customer_id, currency.code, currency.scale, livemode
                ),
                new.metadata,
                customer,
                (meter.name, meter.event_name, meter.unit),
                currency,
            )
        )

    async def _post(
        self, command: Command, customer_id: str, currency: str, livemode: bool
    ) -> Posted:
        """The command, on the customer's wallet that is not closed; see `wallet_id_for_key`.

        `wallet_id` of the command is that wallet as far as it is known, else "". Where it is closed
        meanwhile the next one is looked for, and made if there is none.
        """
        wallet_id, refusal = command.wallet_id, None
        for _ in range(WALLETS_TRIED_MAX):
            if not wallet_id:
                wallet_id = await self._new_wallet(customer_id, currency, livemode)
            try:
                return await self._ledger.post(command._replace(wallet_id=wallet_id))
            except WalletClosed as closed:
                refusal, wallet_id = closed, ""
        assert refusal is not None
        raise refusal

    async def _new_wallet(self, customer_id: str, currency: str, livemode: bool) -> str:
        now, new_id = self._clock(), ids.random("wal")
        return await self._store.write(
            lambda c: records.wallet_for(c, customer_id, currency, livemode, new_id=new_id, now=now)
        )

    async def _event(self, wallet: int, number: int) -> Reported | None:
        return await self._store.read(lambda c: meter_events.event(c, wallet, number))

    async def _own_event(self, id_: str, caller: Caller) -> Reported:
        """The event, if the caller may see it. Raises NotFound."""
        found = await self._event(*ids.place("me", id_))
        if found is None or not caller.may_see_wallet(found.wallet):
            raise NotFound(f"no meter event {echo(id_)}", param="id")
        return found

    @rpc(event_messages.named_event, scope=Scope.CUSTOMER)
    async def GetMeterEvent(  # noqa: N802
        self, wanted: shapes.IdRequest, caller: Caller
    ) -> pb.CreditMeterEvent:
        """Raises NotFound."""
        caller.mode(wanted.livemode)
        return event_messages.event(await self._own_event(wanted.id, caller))

    @rpc(event_messages.cancellation, scope=Scope.SERVICE)
    async def CancelMeterEvent(  # noqa: N802
        self, asked: event_messages.Cancellation, caller: Caller
    ) -> pb.CreditMeterEvent:
        """As a posting, see `Ledger.post`; nothing is written of an event that is canceled.

        Raises NotFound, ModeMismatch, WalletClosed, OutOfRange, IdempotencyKeyReused.
        """
        caller.mode(asked.livemode)
        # All reads come first: once written, the event is answered in any case.
        found = await self._own_event(asked.id, caller)
        posted = await self._ledger.post(
            Command(
                *(found.wallet.id, asked.key, CancelEvent(asked.id), caller.livemode),
                *(caller.number, caller.name),
            )
        )
        assert posted.event is not None
        return event_messages.event(found._replace(event=posted.event))

    @rpc(event_messages.event_list, scope=Scope.CUSTOMER)
    async def ListMeterEvents(  # noqa: N802
        self, wanted: event_messages.EventList, caller: Caller
    ) -> pb.PaymentKitServiceListMeterEventsResponse:
        """Newest first. Raises NotFound for another customer's id, QueryTooBroad."""
        q, page = wanted.q, wanted.page
        filters = EventFilters(
            livemode=caller.mode(wanted.livemode),
            customer_id=caller.own(wanted.customer_id),
            meter_id=wanted.meter_id,
            event_name=wanted.event_name,
            start=wanted.start,
            end=wanted.end,
            q=q,
        )
        narrowed = (filters.customer_id, filters.meter_id, filters.event_name)
        if q is not None and not any(narrowed):
            raise QueryTooBroad("q needs a customer or a meter beside it", param="q")
        count, found = await self._store.read(
            lambda c: meter_events.page(c, filters, offset=page.offset, size=page.size),
            seconds=READ_SECONDS_MAX if q is None else SEARCH_SECONDS_MAX,
            stale=True,
        )
        return pb.PaymentKitServiceListMeterEventsResponse(
            count=fields.answered(count, most=fields.INT32_MAX, field="count"),
            list=[event_messages.event(one) for one in found],
            paging=page.message(),
        )

    @rpc(event_messages.stats, scope=Scope.CUSTOMER)
    async def GetMeterEventStats(  # noqa: N802
        self, wanted: event_messages.Stats, caller: Caller
    ) -> pb.PaymentKitServiceGetMeterEventStatsResponse:
        """Raises NotFound for the meter or another customer's id, QueryTooBroad."""
        livemode, customer_id = caller.mode(wanted.livemode), caller.own(wanted.customer_id)

        def add_up(connection: Connection) -> tuple[int, list[meter_events.EventBucket]]:
            one = meters.by_id(connection, wanted.meter_id)
            if one is None:
                raise NotFound(f"no meter {echo(wanted.meter_id)}", param="meter_id")
            currency = _currency_of(connection, one)
            found = meter_events.buckets(
                connection,
                one.id,
                livemode=livemode,
                customer_id=customer_id,
                start=wanted.start,
                end=wanted.end,
                length=event_messages.LENGTHS[wanted.granularity],
            )
            return 0 if currency is None else currency.scale, found

        scale, found = await self._store.read(add_up, stale=True)
        return pb.PaymentKitServiceGetMeterEventStatsResponse(
            count=len(found),
            list=[event_messages.bucket(one, wanted.granularity, scale) for one in found],
        )

    @rpc(event_messages.owed, scope=Scope.CUSTOMER)
    async def GetPendingAmount(  # noqa: N802
        self, wanted: event_messages.Owed, caller: Caller
    ) -> Struct:
        """Raises MissingField(customer_id), NotFound for another customer's id."""
        livemode, customer_id = caller.mode(wanted.livemode), caller.own(wanted.customer_id)
        if customer_id is None and wanted.subscription_id is None:
            raise MissingField("customer_id")
        found = await self._store.read(
            lambda connection: meter_events.owed(
                connection,
                livemode=livemode,
                customer_id=customer_id,
                subscription_id=wanted.subscription_id,
                currency=wanted.currency,
            )
        )
        answer = Struct()
        answer.update({code: money.text(amount, scale) for code, (amount, scale) in found.items()})
        return answer

    # Grants.

    @rpc(grant_messages.new_grant, scope=Scope.SERVICE)
    async def CreateGrant(  # noqa: N802
        self, new: grant_messages.NewGrant, caller: Caller
    ) -> pb.PaymentKitGrant:
        """As a posting, see `Ledger.post`. Raises NotFound, InvalidField, IdempotencyKeyReused."""
        livemode, key = caller.mode(new.livemode), new.key
        by_header = current_header(HEADER_NAME) is not None
        names = grant_messages.FIELD_NAMES | {"idempotency_key": HEADER if by_header else FIELD}
        # Texts keep the names of Post, which this API's clients have always seen.
        with renamed(names, in_text=FIELD_NAMES[GiveGrant]):
            posting = await self._give(new, key or ids.random("key"), livemode, caller)
        place = posting.wallet, posting.rows[0].sequence
        try:
            made = await self._given(place)
        except (Unavailable, Overloaded, QueryTooBroad) as refusal:
            raise OutcomeUnknown("the grant stands, but could not be read") from refusal
        twin = None
        if key is None:
            with suppress(Unavailable, Overloaded, QueryTooBroad):  # it is only a warning
                twin = await self._twin(place, made, new, livemode)
        if twin is not None:
            log.warning("equal grant without a key", grant=made.id, given_before=twin)
            words = f"an equal grant, {twin}, was given within a minute before"
            await send_headers(("warning", f'299 creditledger "{words}; send Idempotency-Key"'))
        return made

    async def _twin(
        self,
        place: tuple[int, int],
        made: pb.PaymentKitGrant,
        new: grant_messages.NewGrant,
        livemode: bool,
    ) -> str | None:
        """The id of a grant as was asked for, given shortly before the one at `place`."""
        filters = GrantFilters(livemode, customer_id=new.customer_id, currency=new.currency)

        def read(connection: Connection) -> str | None:
            near = grants.page(connection, filters, None, TWINS_LOOKED_AT_MAX, clock=self._clock())
            mine = {one.grant.number: one for one in near if one.wallet_number == place[0]}
            for one in mine.values() if place[1] in mine else ():
                before = mine[place[1]].grant.created_at - one.grant.created_at
                if one.grant.number < place[1] and before <= TWINS_MS_MAX:
                    shown = _shown(connection, one)
                    if grant_messages.are_alike(shown, made, new.operation):
                        return shown.id
            return None

        return await self._store.read(read)

    async def _give(
        self, new: grant_messages.NewGrant, key: str, livemode: bool, caller: Caller
    ) -> Posting:
        wallet_id = await self._store.read(
            lambda c: records.wallet_id_for_key(c, new.customer_id, new.currency, livemode, key)
        )
        command = Command(
            wallet_id or "",
            key,
            new.operation,
            livemode,
            caller.number,
            caller.name,
            metadata=new.metadata,
            backdating_free=caller.scope is Scope.ADMIN,
        )
        return (await self._post(command, new.customer_id, new.currency, livemode)).posting

    async def _given(
        self, place: tuple[int, int], caller: Caller | None = None
    ) -> pb.PaymentKitGrant:
        now = self._clock()

        def read(connection: Connection) -> pb.PaymentKitGrant | None:
            found = grants.grant(connection, *place, clock=now)
            if found is None or (caller is not None and not caller.may_see_wallet(found.wallet)):
                return None
            return _shown(connection, found)

        found = await self._store.read(read)
        if found is None:
            raise NotFound(f"no grant {echo(ids.compose('cg', *place))}", param="id")
        return found

    @rpc(grant_messages.named_grant, scope=Scope.CUSTOMER)
    async def GetGrant(  # noqa: N802
        self, wanted: shapes.IdRequest, caller: Caller
    ) -> pb.PaymentKitGrant:
        """Raises NotFound, ModeMismatch."""
        caller.mode(wanted.livemode)
        place = ids.place("cg", wanted.id)
        return await self._given(place, caller)

    @rpc(grant_messages.grant_list, scope=Scope.CUSTOMER)
    async def ListGrants(  # noqa: N802
        self, wanted: grant_messages.GrantList, caller: Caller
    ) -> pb.PaymentKitServiceListGrantsResponse:
        """Newest first. Raises NotFound for another customer's id, QueryTooBroad."""
        filters = GrantFilters(
            livemode=caller.mode(wanted.livemode),
            customer_id=caller.own(wanted.customer_id),
            currency=wanted.currency,
            statuses=wanted.statuses,
            q=wanted.q,
        )
        if filters.q is not None and filters.customer_id is None:
            raise QueryTooBroad("q needs a customer beside it", param="q")
        now, page = self._clock(), wanted.page

        def read(connection: Connection) -> tuple[int, list[pb.PaymentKitGrant]]:
            count, found = grants.numbered(
                connection, filters, offset=page.offset, size=page.size, clock=now
            )
            return count, [_shown(connection, one) for one in found]

        count, found = await self._store.read(read)
        return pb.PaymentKitServiceListGrantsResponse(
            count=fields.answered(count, most=fields.INT32_MAX, field="count"),
            list=found,
            paging=page.message(),
        )

    @rpc(grant_messages.grant_update, scope=Scope.SERVICE)
    async def UpdateGrant(  # noqa: N802
        self, update: grant_messages.GrantUpdate, caller: Caller
    ) -> pb.PaymentKitServiceUpdateGrantResponse:
        """Raises NotFound, GrantVoided, GrantExpired, WalletClosed, InvalidField."""
        caller.mode(update.livemode)
        id_, livemode = update.id, caller.livemode
        place = ids.place("cg", id_)
        wallet_id = await self._store.read(lambda c: records.wallet_id(c, place[0])) or ""
        try:
            if update.metadata or update.key is not None:
                change = GrantChange(
                    *(wallet_id, id_, livemode, caller.number),
                    metadata=update.metadata,
                    idempotency_key=update.key,
                    expired=update.expired,
                )
                await self._ledger.change(change)
            if update.expired:
                # A key of its own, so that a repetition is a replay; so it is where the first
                # call ended between the two.
                key = f"expired {id_}"
                await self._ledger.post(
                    Command(wallet_id, key, VoidGrant(id_), livemode, caller.number, caller.name)
                )
        except NotFound:
            # The caller named a grant, and no wallet.
            raise NotFound(f"no grant {echo(id_)}", param="id") from None
        return pb.PaymentKitServiceUpdateGrantResponse(success=True)

    @rpc(grant_messages.whose, scope=Scope.CUSTOMER)
    async def GetGrantSummary(  # noqa: N802
        self, wanted: grant_messages.Whose, caller: Caller
    ) -> Struct:
        """Raises MissingField(customer_id), NotFound for another customer's id."""
        livemode, customer_id = caller.mode(wanted.livemode), _customer(caller, wanted.customer_id)
        now = self._clock()

        def read(connection: Connection) -> Struct:
            wallets = records.wallets(
                connection,
                "",
                WALLETS_MAX,
                livemode=livemode,
                customer_id=customer_id,
                currency=None,
                status=None,
                not_closed=True,
            )
            found = [records.currency(connection, one.currency) for one in wallets]
            currencies = {one.code: one for one in found if one is not None}
            return grant_messages.summary(wallets, currencies, now)

        return await self._store.read(read)

    @rpc(grant_messages.holders, scope=Scope.SERVICE, names=_CURRENCY)
    async def ListGrantHolders(  # noqa: N802
        self, wanted: grant_messages.Holders, caller: Caller
    ) -> pb.PaymentKitServiceListGrantHoldersResponse:
        """By customer. Raises NotFound for the currency."""
        livemode, now, page = caller.mode(wanted.livemode), self._clock(), wanted.page

        def read(connection: Connection) -> tuple[Currency, int, list[grants.Holder]]:
            code = wanted.currency
            currency = records.require_currency(connection, code)
            return currency, *grants.holders(
                connection, code, livemode=livemode, offset=page.offset, size=page.size, clock=now
            )

        currency, total, found = await self._store.read(read, stale=True)
        return pb.PaymentKitServiceListGrantHoldersResponse(
            holders=[
                pb.GrantHolder(
                    customer_id=one.customer_id,
                    balance=money.text(one.balance, currency.scale),
                    grant_count=one.grant_count,
                )
                for one in found
            ],
            currency=shapes.shown_currency(currency),
            paging=pb.GrantHoldersPaging(
                page=page.number,
                page_size=page.size,
                total=total,
                total_pages=-(-total // page.size),
            ),
        )

    @rpc(grant_messages.grant_stats, scope=Scope.SERVICE, names=_CURRENCY)
    async def GetGrantStats(  # noqa: N802
        self, wanted: grant_messages.GrantStats, caller: Caller
    ) -> pb.PaymentKitServiceGetGrantStatsResponse:
        """Raises NotFound for the currency, InvalidField, MissingField."""
        livemode, now = caller.mode(wanted.livemode), self._clock()

        def read(connection: Connection) -> tuple[Currency, list[grants.Given]]:
            code = wanted.currency
            currency = records.require_currency(connection, code)
            return currency, grants.given_by_day(
                connection,
                code,
                livemode=livemode,
                category=wanted.category,
                start=wanted.start,
                end=wanted.end,
                ahead=wanted.ahead,
                clock=now,
            )

        currency, days = await self._store.read(read, stale=True)
        return grant_messages.stats(days, currency)

    @rpc(grant_messages.availability, scope=Scope.CUSTOMER, names=_CURRENCY)
    async def GetGrantAvailability(  # noqa: N802
        self, wanted: grant_messages.Availability, caller: Caller
    ) -> pb.PaymentKitServiceGetGrantAvailabilityResponse:
        """Raises MissingField(customer_id), NotFound, InvalidField."""
        livemode, customer_id = caller.mode(wanted.livemode), _customer(caller, wanted.customer_id)
        now = self._clock()

        def read(connection: Connection) -> str | None:
            records.require_customer(connection, customer_id)
            scale = records.scale(connection, wanted.currency)
            wallet = records.wallet_of(connection, customer_id, wanted.currency, livemode)
            return grant_messages.why_not(wanted, wallet, scale, now)

        reason = await self._store.read(read)
        return pb.PaymentKitServiceGetGrantAvailabilityResponse(
            can_continue=reason is None, reason=reason
        )


def _meter_again(connection: Connection, kept: Kept) -> _WithCurrency:
    one = meters.by_id(connection, kept.id)
    assert one is not None, "a meter is never deleted"
    return one, _currency_of(connection, one)


def _meter_id(one: _WithCurrency) -> str:
    return one[0].id


def _currency_of(connection: Connection, meter: Meter) -> Currency | None:
    return None if meter.currency is None else records.currency(connection, meter.currency)


def _shown(connection: Connection, found: GivenGrant) -> pb.PaymentKitGrant:
    currency = records.currency(connection, found.wallet.currency)
    assert currency is not None
    return grant_messages.grant(found, currency)


def _customer(caller: Caller, customer_id: str | None) -> str:
    """The customer that is named, or the key's own. Raises MissingField, NotFound."""
    found = caller.own(customer_id)
    if found is None:
        raise MissingField("customer_id")
    return found
