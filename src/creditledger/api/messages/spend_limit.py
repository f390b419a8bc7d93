"""Messages of spend limits to values and back."""

from collections.abc import Mapping

from credit.v1 import spend_limit_pb2 as pb

from creditledger.api import fields
from creditledger.domain import clock, ids, money
from creditledger.domain.commands import DropLimit, SetLimit
from creditledger.domain.errors import InvalidField, MissingField
from creditledger.domain.model import Period, Wallet
from creditledger.domain.spend_limits import HOURS_MAX, LimitView, held, view

_PERIODS = {period.word: period for period in Period}
_CALENDAR = (Period.DAY, Period.WEEK, Period.MONTH)


def set_limit(request: pb.SetSpendLimitRequest) -> SetLimit:
    """The limit that a request sets."""
    wallet_id = fields.reference("wal", request.wallet_id, field="wallet_id")
    amount = fields.required(request.amount, field="amount")
    word = fields.required(request.period, field="period")
    period = fields.word(word, _PERIODS, field="period")
    return SetLimit(
        wallet_id=wallet_id,
        livemode=None,
        amount=fields.limit(amount, field="amount"),
        api_key_id=fields.optional_text(
            request, "api_key_id", field="api_key_id", most=fields.NAME_MAX
        ),
        period=period,
        time_zone=_time_zone(request, period),
        hours=_hours(request, period),
        idempotency_key=fields.optional_key(request),
    )


def _time_zone(request: pb.SetSpendLimitRequest, period: Period) -> str | None:
    if period not in _CALENDAR:
        if request.HasField("time_zone"):
            raise InvalidField("time_zone belongs to day, week and month", param="time_zone")
        return None
    zone = fields.optional(request, "time_zone", "UTC")
    return clock.zone(zone, field="time_zone").key


def _hours(request: pb.SetSpendLimitRequest, period: Period) -> int | None:
    if period is not Period.ROLLING:
        if request.HasField("hours"):
            raise InvalidField("hours belong to rolling", param="hours")
        return None
    if not request.HasField("hours"):
        raise MissingField("hours")
    return fields.number(request.hours, least=1, most=HOURS_MAX, field="hours")


def drop_limit(request: pb.DeleteSpendLimitRequest) -> DropLimit:
    """The limit that a request deletes."""
    return DropLimit(
        wallet_id=fields.reference("wal", request.wallet_id, field="wallet_id"),
        livemode=None,
        spend_limit_id=fields.made("spl", request.spend_limit_id, field="spend_limit_id"),
        idempotency_key=fields.optional_key(request),
    )


def wallet_id(request: pb.ListSpendLimitsRequest) -> str:
    """The wallet whose limits a request lists."""
    return fields.reference("wal", request.wallet_id, field="wallet_id")


def limits(wallet: Wallet, labels: Mapping[int, str], moment: int) -> pb.ListSpendLimitsResponse:
    """The wallet's limits at `moment`; `labels`: by number of the dimensions of its open holds."""
    now = wallet.time(moment)
    set_aside = held(wallet, lambda hold: labels[hold.dimension], now)
    seen = (view(wallet, one, set_aside, now) for one in wallet.limits)
    return pb.ListSpendLimitsResponse(spend_limits=map(limit, seen))


def limit(seen: LimitView) -> pb.SpendLimit:
    """A limit as its owner sees it."""
    one, scale = seen.limit, seen.scale
    return pb.SpendLimit(
        id=ids.compose("spl", seen.wallet, one.number),
        wallet_id=seen.wallet_id,
        api_key_id=one.api_key_id,
        amount=money.text(one.amount, scale),
        period=one.period.word,
        time_zone=one.time_zone,
        hours=one.hours,
        spent=money.text(seen.spent, scale),
        held=money.text(seen.held, scale),
        remaining=money.text(max(0, one.amount - seen.spent - seen.held), scale),
        resets_at=None if seen.resets_at is None else clock.text(seen.resets_at),
        created_at=clock.text(one.created_at),
        updated_at=clock.text(one.updated_at),
    )
