"""The rules of spend limits: what counts against a limit, when it refuses, and when it resets.

Pure, on a wallet under its lock. A limit keeps the amount spent in each part of its period, so a
decision adds up no rows.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from creditledger.domain import clock, ids, money
from creditledger.domain.billing_periods import Bucket, bucket_of
from creditledger.domain.commands import DropLimit, SetLimit
from creditledger.domain.errors import NotFound, OutOfRange, SpendLimitExceeded, echo
from creditledger.domain.model import (
    ROLLING_PARTS,
    Dimension,
    Hold,
    Kind,
    Period,
    Posting,
    Row,
    SpendLimit,
    Wallet,
)

_USAGE = Kind.USAGE.value

#: A client may sleep this long in one call. For a longer wait it should decide by `resets_at`.
RETRY_AFTER_SECONDS_MAX = 300
#: Limits that a wallet may have. Each posting that spends checks all of them.
LIMITS_MAX = 20
#: The longest rolling period: 31 days.
HOURS_MAX = 744
#: `counted_from` of a limit that is being made.
_NOT_BEGUN = 1 << 62
#: The names of these periods in billing_periods.py.
_CALENDAR = {Period.DAY: "Day", Period.WEEK: "Week", Period.MONTH: "Month"}
#: About half a period. The end of a period plus this lies within the next period, whatever the zone
#: data says.
_HALF = {
    Period.DAY: 12 * clock.HOUR,
    Period.WEEK: 84 * clock.HOUR,
    Period.MONTH: 14 * clock.DAY,
}

#: The amount that open holds of a wallet have set aside, by API key; None: the sum of all keys.
Held = Mapping[str | None, int]


class _Window(NamedTuple):
    """The period at one moment, in milliseconds."""

    start: int  #: Rows written from here on count.
    part: int  #: Start of the part that contains the moment.
    end: int | None  #: The first moment after the period; None: it rolls, or lasts for ever.


class LimitView(NamedTuple):
    """A spend limit as its owner sees it at one moment; amounts in smallest units."""

    limit: SpendLimit
    wallet_id: str
    wallet: int  #: Its number.
    scale: int
    spent: int
    held: int
    resets_at: int | None


# A batch has one time, and wallets of one zone have one day.
@lru_cache(maxsize=1_024)
def _bucket(moment: int, cycle: str, time_zone: str) -> Bucket:
    return bucket_of(moment, cycle, clock.stored_zone(time_zone))


def _window(limit: SpendLimit, moment: int) -> _Window:
    if limit.period is Period.LIFETIME:
        return _Window(0, 0, None)
    if limit.period is Period.ROLLING:
        assert limit.hours is not None
        width = limit.hours * clock.HOUR // ROLLING_PARTS
        start = (moment - limit.hours * clock.HOUR) // width * width
        return _Window(start, moment // width * width, None)
    assert limit.time_zone is not None
    start, until, cycle = limit.counted_from, limit.counted_until, _CALENDAR[limit.period]
    # A period that has begun keeps its instants when the data of its zone changes meanwhile.
    if until is not None and start <= moment < until:
        return _Window(start, start, until)
    bucket = _bucket(moment, cycle, limit.time_zone)
    if until is None or not bucket.start < until <= moment:
        return _Window(bucket.start, bucket.start, bucket.end)
    # By the new data this period began within the last one: it begins where that one ended.
    end = _bucket(until + _HALF[limit.period], cycle, limit.time_zone).end
    return _Window(until, until, end)


def held(wallet: Wallet, label: Callable[[Hold], str], now: int) -> dict[str | None, int]:
    """What open holds have set aside at `now`, by API key. `label` answers the key of a hold.

    Empty for a wallet without limits.
    """
    found: dict[str | None, int] = {}
    if not wallet.limits:
        return found
    for hold in wallet.holds.values():
        if hold.is_open(now):
            for key in (label(hold), None):
                found[key] = found.get(key, 0) + hold.left
    return found


def view(wallet: Wallet, limit: SpendLimit, set_aside: Held, now: int) -> LimitView:
    """The limit at `now`, the wallet's time."""
    window = _window(limit, now)
    counted = {start: part for start, part in limit.parts.items() if start >= window.start}
    resets_at = window.end
    if limit.period is Period.ROLLING and counted:
        assert limit.hours is not None
        hours = limit.hours * clock.HOUR
        # The oldest part leaves whole, when its last moment has left the period.
        resets_at = min(counted) + hours // ROLLING_PARTS + hours
    return LimitView(
        limit=limit,
        wallet_id=wallet.id,
        wallet=wallet.number,
        scale=wallet.scale,
        spent=sum(counted.values()),
        # An event has no API key. Its unpaid rest is spent as soon as there is credit.
        held=set_aside.get(limit.api_key_id, 0)
        + (wallet.unpaid_amount if limit.api_key_id is None else 0),
        resets_at=resets_at,
    )


@dataclass(slots=True)
class Spending:
    """Counts what the postings of a batch spend and set aside against the limits of the wallets."""

    #: By (wallet number, dimension number). A dimension has the API key.
    dimensions: Mapping[tuple[int, int], Dimension]
    #: Limits made or changed, by (wallet number, limit number); None: dropped.
    moved: dict[tuple[int, int], SpendLimit | None]
    #: By wallet number: a moment, and what holds had set aside then, as `Held`.
    _held: dict[int, tuple[int, dict[str | None, int]]] = field(default_factory=dict)

    def require(
        self,
        wallet: Wallet,
        amount: int,
        dimension: Dimension,
        *,
        now: int,
        frees: tuple[str, int] = ("", 0),
    ) -> None:
        """Raises SpendLimitExceeded if a limit leaves less than `amount`, to be spent or held.

        `frees`: (API key, amount) that a hold no longer sets aside. Of several limits, the error
        names the limit that leaves least, then the oldest.
        """
        set_aside = self._set_aside(wallet, now)
        worst: tuple[int, int, LimitView] | None = None
        for limit in wallet.limits:
            required = amount if limit.covers(dimension.api_key_id) else 0
            if limit.covers(frees[0]):
                required -= frees[1]
            if required <= 0:
                continue
            seen = view(wallet, limit, set_aside, now)
            left = limit.amount - seen.spent - seen.held
            if required > left and (worst is None or left < worst[0]):
                worst = left, required, seen
        if worst is not None:
            raise _exceeded(wallet, *worst, now=now)

    def hold(self, wallet: Wallet, before: Hold | None, after: Hold) -> None:
        """Count a hold that `require` let pass: `before` became `after`."""
        more = after.left - (before.left if before else 0)
        _, set_aside = self._held[wallet.number]
        for key in (self._label(wallet, after), None):
            set_aside[key] = set_aside.get(key, 0) + more

    def count(self, wallet: Wallet, posting: Posting, dimension: Dimension, *, now: int) -> None:
        """Count the amount that a posting spent. Only usage counts."""
        amount = sum(row.amount for row in posting.rows)
        if dimension.kind != _USAGE or not amount:
            return
        for limit in wallet.limits:
            if limit.covers(dimension.api_key_id):
                window = _begin(limit, now)
                limit.parts[window.part] = limit.parts.get(window.part, 0) - amount
                self.moved[wallet.number, limit.number] = limit

    def give_back(
        self,
        wallet: Wallet,
        dimension: Dimension,
        returned: Collection[tuple[Row, int]],
        *,
        now: int,
    ) -> None:
        """Count less for these rows: (row, amount of it that was returned)."""
        for limit in wallet.limits:
            if not limit.covers(dimension.api_key_id):
                continue
            counted = [(row, amount) for row, amount in returned if row.sequence > limit.since]
            if counted:
                _begin(limit, now)
                self.moved[wallet.number, limit.number] = limit
            for row, amount in counted:
                _give_back(limit, amount, _window(limit, row.created_at).part)

    def set(self, wallet: Wallet, change: SetLimit, now: int) -> tuple[LimitView, bool]:
        """The limit as it is, and whether anything has changed.

        Raises OutOfRange for one too many, InvalidField.
        """
        limit, changed = _put(wallet, change, now)
        if changed:
            self.moved[wallet.number, limit.number] = limit
        # The view is of this point of the batch: a later command may change the limit.
        return self.seen(wallet, limit, now), changed

    def drop(self, wallet: Wallet, change: DropLimit, now: int) -> LimitView:
        """The limit as it was before it was dropped. Raises NotFound."""
        limit = _named(wallet, change)
        seen = self.seen(wallet, limit, now)
        wallet.limits = tuple(one for one in wallet.limits if one is not limit)
        if not wallet.limits:
            del self._held[wallet.number]  # from now on nobody keeps it up to date
        self.moved[wallet.number, limit.number] = None
        return seen

    def seen(self, wallet: Wallet, limit: SpendLimit, now: int) -> LimitView:
        """A limit of the wallet as it is by now."""
        return view(wallet, copy.copy(limit), self._set_aside(wallet, now), now)

    def _set_aside(self, wallet: Wallet, now: int) -> Held:
        found = self._held.get(wallet.number)
        if found is None or found[0] < now:
            found = now, held(wallet, lambda hold: self._label(wallet, hold), now)
            self._held[wallet.number] = found
        return found[1]

    def _label(self, wallet: Wallet, hold: Hold) -> str:
        return self.dimensions[wallet.number, hold.dimension].api_key_id


def _exceeded(
    wallet: Wallet, left: int, required: int, seen: LimitView, *, now: int
) -> SpendLimitExceeded:
    def text(amount: int) -> str:
        return money.text(amount, wallet.scale)

    most, left = text(seen.limit.amount), max(left, 0)
    resets = {} if seen.resets_at is None else {"resets_at": clock.text(seen.resets_at)}
    anew = seen.limit.period is not Period.LIFETIME and required <= seen.limit.amount
    soon = {}
    if anew and seen.resets_at is not None:
        seconds = -((now - seen.resets_at) // clock.SECOND)
        if seconds <= RETRY_AFTER_SECONDS_MAX:
            soon = {"retry_after": str(seconds)}
    return SpendLimitExceeded(
        f"{text(required)} {wallet.currency} are required, {text(left)} are left of the spend limit"
        f" of {most}, with {text(seen.spent)} spent and {text(seen.held)} held"
        + "".join(f"; it resets at {moment}" for moment in resets.values()),
        spend_limit_id=ids.compose("spl", wallet.number, seen.limit.number),
        limit=most,
        spent=text(seen.spent),
        held=text(seen.held),
        remaining=text(left),
        required=text(required),
        **resets,
        retryable="true" if anew else "false",
        **soon,
    )


def _give_back(limit: SpendLimit, amount: int, part: int) -> None:
    """Count less in this part, if the part still counts."""
    if part in limit.parts:
        limit.parts[part] -= amount
        assert limit.parts[part] >= 0
        if not limit.parts[part]:
            del limit.parts[part]


def _begin(limit: SpendLimit, now: int) -> _Window:
    """Drop the parts that no longer count. Answers the current period."""
    window = _window(limit, now)
    limit.counted_from, limit.counted_until = window.start, window.end
    for start in [start for start in limit.parts if start < window.start]:
        del limit.parts[start]
    return window


def _put(wallet: Wallet, change: SetLimit, now: int) -> tuple[SpendLimit, bool]:
    amount = money.parse(change.amount, wallet.scale, field="amount")
    kind = change.api_key_id, change.period, change.time_zone, change.hours
    for limit in wallet.limits:
        if (limit.api_key_id, limit.period, limit.time_zone, limit.hours) == kind:
            if limit.amount == amount:
                return limit, False
            limit.amount, limit.updated_at = amount, now
            return limit, True
    if len(wallet.limits) >= LIMITS_MAX:
        raise OutOfRange(f"a wallet has at most {LIMITS_MAX} spend limits")
    wallet.limits_made += 1
    made = SpendLimit(
        wallet.limits_made,
        amount,
        *kind,
        created_at=now,
        updated_at=now,
        since=wallet.sequence,
        counted_from=_NOT_BEGUN,
        parts={},
        counted_until=None,
    )
    _begin(made, now)
    wallet.limits = (*wallet.limits, made)
    return made, True


def _named(wallet: Wallet, change: DropLimit) -> SpendLimit:
    found = ids.resolve("spl", change.spend_limit_id)
    for limit in wallet.limits:
        if found == (wallet.number, limit.number):
            return limit
    raise NotFound(f"no spend limit {echo(change.spend_limit_id)}", param="spend_limit_id")
