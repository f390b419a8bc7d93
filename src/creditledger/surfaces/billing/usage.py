"""Usage of a customer in a window: shapes of the requests, and the sums.

For the three calls of BillingService beside the list of transactions. What is added up, and when it
happened, is the same as in bills: `store/read/bill_sums.py`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from credit.v1 import billing_service_pb2 as pb
from google.protobuf.message import Message
from sqlalchemy import Connection

from creditledger.api import fields
from creditledger.domain import clock as time
from creditledger.domain import money
from creditledger.domain.errors import InvalidField, ResultTooLarge, echo
from creditledger.domain.model import Dimension, Kind
from creditledger.domain.registry import ApiKey
from creditledger.store.read import bill_sums

#: Where the window begins that says nothing of it, and how long any may be.
WINDOW_DEFAULT, WINDOW_MAX = 30 * time.DAY, 90 * time.DAY
#: Rows of an answer, which has no pages.
BUCKETS_MAX = 10_000
#: Categories whose first two quantities are tokens: what others count has units of its own.
TOKENS = ("llm", "")

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
#: What usage may be grouped by, and the period that it means.
_GROUPS: Mapping[str, str] = {"day": "Day", "hour": "Hour", "model": "", "api_key": ""}
_UTC = ZoneInfo("UTC")


@dataclass(frozen=True, slots=True)
class UsageWindow:
    """The window of a request; None where the request names none."""

    since: int | None
    until: int | None  #: Exclusive.

    def at(self, now: int) -> tuple[int, int]:
        """[start, end) in milliseconds. Raises InvalidField."""
        start = now - WINDOW_DEFAULT if self.since is None else self.since
        end = now + 1 if self.until is None else self.until  # what happens now is in
        if start > end:
            raise InvalidField("since must not be after until", param="since")
        if end - start > WINDOW_MAX + (self.until is None):
            days = WINDOW_MAX // time.DAY
            raise InvalidField(f"since must be at most {days} days before until", param="since")
        return start, end


def window(request: Message) -> UsageWindow:
    """The window of a request."""
    asked = UsageWindow(_moment(request, "since"), _moment(request, "until"))
    if asked.since is not None and asked.until is not None:
        asked.at(asked.until)  # wrong by itself, for every caller
    return asked


def _moment(request: Message, name: str) -> int | None:
    """An optional RFC 3339 time, or a date, which is its midnight in UTC."""
    if request.HasField(name) and _DATE.fullmatch(day := getattr(request, name)):
        return time.parse(f"{day}T00:00:00Z", field=name)
    return fields.optional_time(request, name, field=name)


@dataclass(frozen=True, slots=True)
class Query:
    """The usage that a request asks for."""

    window: UsageWindow
    cycle: str | None  #: The period by which it is grouped; None: not by time.
    by_model: bool
    by_api_key: bool
    model: str | None
    api_key: str | None  #: An id, or a masked form.
    livemode: bool | None


def query(request: pb.GetMyUsageRequest) -> Query:
    """The shape of a GetMyUsage. Raises InvalidField."""
    groups = fields.optional(request, "group_by", "day").split(",")
    for group in groups:
        fields.word(group, dict.fromkeys(_GROUPS, group), field="group_by")
    if len(set(groups)) < len(groups):
        raise InvalidField(f"group_by names one twice: {echo(','.join(groups))}", param="group_by")
    cycles = {_GROUPS[group] for group in groups} - {""}
    return Query(
        window=window(request),
        # Each hour is of one day, so both together are hours.
        cycle=max(cycles) if cycles else None,
        by_model="model" in groups,
        by_api_key="api_key" in groups,
        model=fields.optional_text(request, "model", field="model", most=fields.NAME_MAX),
        api_key=fields.optional_text(request, "api_key", field="api_key", most=fields.NAME_MAX),
        livemode=fields.livemode(request),
    )


@dataclass(slots=True)
class Used:
    """The exact figures of one group."""

    amount: int = 0  #: > 0 where more was charged than refunded.
    input_tokens: int = 0
    output_tokens: int = 0
    call_count: int = 0

    def add(self, dimension: Dimension, sums: bill_sums.BillSums) -> None:
        """Consumptions or refunds of one dimension."""
        self.amount -= sums.amount
        if dimension.category in TOKENS:
            self.input_tokens += sums.quantities[0]
            self.output_tokens += sums.quantities[1]
        if dimension.kind == Kind.USAGE:
            self.call_count += sums.posting_count

    def figures(self, scale: int) -> dict[str, float]:
        """Fields of the messages that have them."""
        return {
            "total_usd": usd(self.amount, scale),
            "input_tokens": float(self.input_tokens),
            "output_tokens": float(self.output_tokens),
            "call_count": float(self.call_count),
        }


def usd(amount: int, scale: int) -> float:
    """An amount as the published API has it: the nearest double."""
    return float(money.text(amount, scale))


def total(parts: Iterable[Used]) -> Used:
    """Their sum."""
    found = Used()
    for part in parts:
        found.amount += part.amount
        found.input_tokens += part.input_tokens
        found.output_tokens += part.output_tokens
        found.call_count += part.call_count
    return found


#: Where a bucket begins, the model and the API key; None where it is not grouped by them.
Group = tuple[int, str | None, str | None]


def by_group(
    connection: Connection,
    wallets: bill_sums.Places,
    asked: Query,
    labels: Collection[str] | None,
    now: int,
) -> dict[Group, Used]:
    """Usage of a window by what the query groups it by; `labels`: of these API keys only.

    Raises InvalidField for the window, ResultTooLarge.
    """
    start, end = asked.window.at(now)
    place = (connection, wallets, start, end)
    if asked.cycle is None:
        parts = iter([(start, bill_sums.in_window_of(*place))])
    else:
        found = bill_sums.periods_of(*place, cycle=asked.cycle, zone=_UTC)
        parts = ((bucket.start, sums) for bucket, sums in found)
    used: dict[Group, Used] = {}
    for begins, sums in parts:
        for dimension, one in sums.items():
            if asked.model not in (None, dimension.product_id):
                continue
            if labels is not None and dimension.api_key_id not in labels:
                continue
            model = dimension.product_id if asked.by_model else None
            api_key = dimension.api_key_id if asked.by_api_key else None
            used.setdefault((begins, model, api_key), Used()).add(dimension, one)
        if len(used) > BUCKETS_MAX:
            raise ResultTooLarge(
                f"more than {BUCKETS_MAX} buckets; group by less, or ask for a shorter time",
                param="group_by",
            )
    return used


def by_api_key(
    connection: Connection, wallets: bill_sums.Places, start: int, end: int
) -> dict[str, Used]:
    """Usage of a window by API key label."""
    used: dict[str, Used] = {}
    for dimension, one in bill_sums.in_window_of(connection, wallets, start, end).items():
        used.setdefault(dimension.api_key_id, Used()).add(dimension, one)
    return used


def labels_of(api_key: str, keys: Iterable[ApiKey]) -> set[str]:
    """The labels in usages that mean a key, which the request names by id or masked form."""
    return {api_key, *(key.id for key in keys if key.mask == api_key)}


def answer(used: Mapping[Group, Used], cycle: str | None, scale: int) -> pb.GetMyUsageResponse:
    """Newest first, then by model and API key; and the sum."""
    order = sorted(used, key=lambda group: (-group[0], group[1] or "", group[2] or ""))
    buckets: list[Any] = [
        {
            "bucket": _name(begins, cycle),
            "model": model,
            "api_key": api_key,
            **used[begins, model, api_key].figures(scale),
        }
        for begins, model, api_key in order
    ]
    sums: Any = total(used.values()).figures(scale)
    return pb.GetMyUsageResponse(buckets=buckets, totals=sums)


def _name(begins: int, cycle: str | None) -> str:
    text = time.text_seconds(begins)
    return text[:10] if cycle == "Day" else text
