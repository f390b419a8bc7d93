"""GET /openapi/v1/billing/apikey/bill/list: bills as the published document has them, to the unit.

Whole bodies, windows, calendars of many zones, refunds, the split of vouchers and cash, filters and
pages that change no integer, and all of it against sums made anew from the rows of a random ledger.
"""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from creditledger.domain import clock as time
from tests.support.naive_bills import Bill, apportion_bills
from tests.support.rest import (
    BILLS,
    TRANSACTIONS,
    Failure,
    Json,
    Served,
    Shop,
    differences,
    failure,
    promotional,
    serving,
    traffic,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: 2026-12-15T10:20:30Z: all of the year's changes of clocks are past.
NOW = int(datetime(2026, 12, 15, 10, 20, 30, tzinfo=UTC).timestamp()) * 1000
#: 2026-01-01T00:00:00Z, where the document begins.
FROM = 1_767_225_600
DAY = 86_400
ROWS_MAX = 10_000


@pytest.fixture
def served(shared: Served) -> Served:
    """The service, its clock at NOW."""
    shared.clock.now = NOW
    return shared


class Account(NamedTuple):
    customer: str
    wallet: str
    key: str


async def account(served: Served, *grants: Json, **wallet: Any) -> Account:
    """A new customer with a wallet and a customer key; without grants it gets 1,000 paid."""
    customer = await served.customer()
    wallet_id = await served.wallet(customer, **wallet)
    await served.post(wallet_id, *(grants or [{"grant": {"amount": "1000"}}]))
    livemode = wallet.get("livemode", True)
    return Account(customer, wallet_id, await served.key("customer", customer, livemode=livemode))


def second(text: str) -> int:
    """Unix seconds of a time such as 2026-03-29T00:00+01:00."""
    return int(datetime.fromisoformat(text).timestamp())


def used(amount: str, effective_at: int | str | None = None, **usage: Any) -> Json:
    """A consumption, effective at a Unix second or a written moment."""
    posting: Json = {"consumption": {"amount": amount, "usage": {"quantities": [1], **usage}}}
    if isinstance(effective_at, int):
        effective_at = time.text(effective_at * 1000)
    return {**posting, "effective_at": effective_at} if effective_at else posting


def window(
    start: int = FROM, end: int = NOW // 1000, *, cycle: str = "Day", **more: str | int
) -> Json:
    """The parameters of a query."""
    return {"cycleType": cycle, "startTime": start, "endTime": end, **more}


async def bills(served: Served, key: str, **query: Any) -> list[Json]:
    """The rows of a query that succeeds."""
    body = await served.body(BILLS, key, **query)
    assert list(body) == ["bills"]
    rows: list[Json] = body["bills"]
    return rows


async def figures(served: Served, key: str, *names: str, **query: Any) -> list[tuple[Any, ...]]:
    """Some columns of the rows."""
    return [tuple(row[name] for name in names) for row in await bills(served, key, **query)]


# --- whole bodies ---------------------------------------------------------------------------------


async def test_the_documents_example(served: Served) -> None:
    """Its query answers its row: names, order, texts and numbers, and our exact figures after."""
    customer, wallet, key = await account(served)
    admin = await served.key("admin")
    (named,) = (await served.body("/v1/api-keys", admin, customer_id=customer))["api_keys"]
    spent = used(
        "1.00",
        FROM,
        api_key_id=named["id"],
        product_id="prd_1",
        product_name="Some model",
        category="llm",
        quantities=[1000, 500],
    )
    other = used("2", FROM, category="gen_api")
    await served.post(wallet, spent, other)

    query = "cycleType=Day&category=llm&startTime=1767225600&endTime=1769817599"
    answer = await served.ask("GET", BILLS, key=key, query=query)

    expected = {
        "userId": customer,
        "startTime": "1767225600",
        "endTime": "1767311999",
        "billingMethod": 1,
        "productName": "Some model",
        "category": "llm",
        "ownerID": named["id"],
        "billNum0": "1000",
        "billNum1": "500",
        "basePrice0": "0",
        "basePrice1": "0",
        "discountPrice0": "0",
        "discountPrice1": "0",
        "amount": "10000",
        "voucherAmount": "0",
        "payAmount": "10000",
        "payAmountDisplay": 1.0,
        "pricePrecision": 1,
        "productId": "prd_1",
        "apikeyName": "a customer",
        "apikeyMask": f"sk-****{key[-4:]}",
        "amountDecimal": "1.00",
        "voucherAmountDecimal": "0.00",
        "payAmountDecimal": "1.00",
        "billNum2": "0",
        "billNum3": "0",
        "billNum4": "0",
        "billNum5": "0",
        "basePrice2": "0",
        "basePrice3": "0",
        "basePrice4": "0",
        "basePrice5": "0",
        "discountPrice2": "0",
        "discountPrice3": "0",
        "discountPrice4": "0",
        "discountPrice5": "0",
    }
    assert answer.status_code == 200
    assert differences(answer.json(), {"bills": [expected]}) == []


async def test_every_column_of_a_row(served: Served) -> None:
    """Six quantities and their prices; the day is not over."""
    voucher = {"grant": {"amount": "0.00015", "category": "promotional"}}
    paid = {"grant": {"amount": "9"}}
    customer, wallet, key = await account(served, voucher, paid)
    spent = used(
        "0.1234567",
        api_key_id="key of a gateway",
        quantities=["1000000000000000", "0", "7", "8", "9", "10"],
        base_prices=["30", "1000000000000000", "5"],
        discount_prices=["25"],
        price_precision=1000,
        billing_method=2,
    )
    await served.post(wallet, spent, spent)

    rows = await bills(served, key, **window())

    expected = {
        "userId": customer,
        "startTime": str(second("2026-12-15T00:00Z")),
        "endTime": str(second("2026-12-16T00:00Z") - 1),
        "billingMethod": 2,
        "productName": "",
        "category": "",
        "ownerID": "key of a gateway",
        "billNum0": "2000000000000000",
        "billNum1": "0",
        "basePrice0": "30",
        "basePrice1": "1000000000000000",
        "discountPrice0": "25",
        "discountPrice1": "0",
        "amount": "2469",  # 2469.134
        "voucherAmount": "2",  # 1.5, rounded half up
        "payAmount": "2467",
        "payAmountDisplay": 0.2467,
        "pricePrecision": 1000,
        "productId": "",
        "apikeyName": "",
        "apikeyMask": "",
        "amountDecimal": "0.2469134",
        "voucherAmountDecimal": "0.00015",
        "payAmountDecimal": "0.2467634",
        "billNum2": "14",
        "billNum3": "16",
        "billNum4": "18",
        "billNum5": "20",
        "basePrice2": "5",
        "basePrice3": "0",
        "basePrice4": "0",
        "basePrice5": "0",
        "discountPrice2": "0",
        "discountPrice3": "0",
        "discountPrice4": "0",
        "discountPrice5": "0",
        "partial": True,
    }
    assert differences(rows, [expected]) == []


async def test_usage_that_nobody_described_is_billed_too(served: Served) -> None:
    """A consumption without usage is a row without names and quantities."""
    _, wallet, key = await account(served)
    await served.post(wallet, {"consumption": {"amount": "2"}}, {"adjustment": {"amount": "-1"}})

    columns = ("ownerID", "productId", "category", "billNum0", "amount", "billingMethod")
    assert await figures(served, key, *columns, **window()) == [("", "", "", "0", "20000", 1)]


@pytest.mark.parametrize("wallet", [None, {"currency": "CNY"}, {"livemode": False}])
async def test_nothing_to_bill(served: Served, wallet: Json | None) -> None:
    """No wallet, one of another currency or mode, or no usage in the window: no rows."""
    customer = await served.customer()
    key = await served.key("customer", customer)
    if wallet:
        wallet_id = await served.wallet(customer, **wallet)
        await served.post(wallet_id, {"grant": {"amount": "1"}}, used("1"))

    assert await served.body(BILLS, key, **window()) == {"bills": []}


# --- window ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "amount"),
    [
        (0, 1, "1011"),
        (0, 2, "11011"),
        (1, 2, "11000"),
        (1, 3, "11000"),
        (2, 3, "10000"),
        (-10, -1, "1000000"),
        (-10, 0, "1000011"),
    ],
)
async def test_the_window_begins_and_ends_with_its_seconds(
    served: Served, start: int, end: int, amount: str
) -> None:
    """[startTime, endTime + 1 s): in the middle of a day, to the millisecond of effective_at."""
    _, wallet, key = await account(served)
    noon = NOW // 1000 - 3 * DAY
    for milliseconds, spent in [
        (-1, "100.0000"),
        (0, "0.0001"),
        (999, "0.0010"),
        (1_000, "0.0100"),
        (1_999, "0.0900"),
        (2_000, "1.0000"),
    ]:
        await served.post(wallet, used(spent, time.text(noon * 1000 + milliseconds)))

    found = await bills(served, key, **window(noon + start, noon + end))

    bucket = noon - noon % DAY
    shown = [(row["startTime"], row["endTime"], row["amount"]) for row in found]
    assert shown == [(str(bucket), str(bucket + DAY - 1), amount)]


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"cycleType": None}, "MISSING_FIELD", "cycleType"),
        ({"cycleType": ""}, "MISSING_FIELD", "cycleType"),
        ({"cycleType": "day"}, "INVALID_FIELD", "cycleType"),
        ({"cycleType": "hour"}, "INVALID_FIELD", "cycleType"),
        ({"cycleType": "Year"}, "INVALID_FIELD", "cycleType"),
        ({"startTime": None}, "MISSING_FIELD", "startTime"),
        ({"startTime": ""}, "INVALID_FIELD", "startTime"),
        ({"startTime": "2026-01-01"}, "INVALID_FIELD", "startTime"),
        ({"startTime": "1767225600.5"}, "INVALID_FIELD", "startTime"),
        ({"startTime": FROM - 1}, "INVALID_FIELD", "startTime"),
        ({"startTime": 0}, "INVALID_FIELD", "startTime"),
        ({"startTime": -1}, "INVALID_FIELD", "startTime"),
        ({"endTime": None}, "MISSING_FIELD", "endTime"),
        ({"endTime": FROM}, "INVALID_FIELD", "endTime"),
        ({"endTime": FROM - 1}, "INVALID_FIELD", "endTime"),
        ({"endTime": 253_402_300_800}, "INVALID_FIELD", "endTime"),
        ({"endTime": 2**63}, "INVALID_FIELD", "endTime"),
        ({"timeZone": ""}, "INVALID_FIELD", "timeZone"),
        ({"timeZone": "Mars/Olympus"}, "INVALID_FIELD", "timeZone"),
        ({"timeZone": "+02:00"}, "INVALID_FIELD", "timeZone"),
        ({"timeZone": "../../etc/passwd"}, "INVALID_FIELD", "timeZone"),
        ({"timeZone": "/etc/localtime"}, "INVALID_FIELD", "timeZone"),
        ({"currency": ""}, "INVALID_FIELD", "currency"),
        ({"currency": "usd"}, "INVALID_FIELD", "currency"),
        ({"category": ""}, "INVALID_FIELD", "category"),
        ({"category": "c" * 10_000}, "INVALID_FIELD", "category"),
        ({"productName": ""}, "INVALID_FIELD", "productName"),
        ({"productName": "a\x00b"}, "INVALID_FIELD", "productName"),
        ({"apikeyId": ""}, "INVALID_FIELD", "apikeyId"),
        ({"page": 0}, "INVALID_FIELD", "page"),
        ({"page": "one"}, "INVALID_FIELD", "page"),
        ({"pageSize": 0}, "INVALID_FIELD", "pageSize"),
        ({"pageSize": 1_001}, "INVALID_FIELD", "pageSize"),
        ({"livemode": "2"}, "INVALID_FIELD", "livemode"),
        ({"limit": 10}, "UNKNOWN_PARAMETER", "limit"),
        ({"ownerID": "apk_1"}, "UNKNOWN_PARAMETER", "ownerID"),
        ({"cycletype": "Day"}, "UNKNOWN_PARAMETER", "cycletype"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_no_query_is(served: Served, changed: Json, code: str, param: str) -> None:
    """A required parameter left out, a word, number, zone or name that cannot be: 400."""
    _, _, key = await account(served)
    query = {name: value for name, value in {**window(), **changed}.items() if value is not None}

    assert await served.refusal(BILLS, key, **query) == Failure(400, code, param)


async def test_the_ends_of_what_a_window_may_be(served: Served) -> None:
    """The first second of 2026 and the last of 9999; a window of two seconds; both spellings."""
    _, wallet, key = await account(served)
    await served.post(wallet, used("1", FROM))

    for query in (
        window(FROM, FROM + 1),
        window(FROM, 253_402_300_799),
        {"cycle_type": "Day", "start_time": FROM, "end_time": FROM + 1, "time_zone": "UTC"},
    ):
        assert await figures(served, key, "amount", **query) == [("10000",)]


async def test_who_may_ask(served: Served) -> None:
    """Customer keys in their own mode; the currency must exist."""
    _, _, key = await account(served)
    for scope in ("admin", "service"):
        refusal = await served.refusal(BILLS, await served.key(scope), **window())
        assert refusal == Failure(403, "CUSTOMER_KEY_REQUIRED")

    assert await served.refusal(BILLS, None, **window()) == Failure(401, "KEY_MISSING")
    refusal = await served.refusal(BILLS, key, **window(livemode="false"))
    assert refusal == Failure(403, "MODE_MISMATCH", "livemode")
    refusal = await served.refusal(BILLS, key, **window(currency="XXX"))
    assert refusal == Failure(404, "NOT_FOUND", "currency")
    answer = await served.ask("POST", BILLS, key=key, json=window())
    assert failure(answer) == Failure(405, "UNKNOWN_PATH")


async def test_every_currency_and_mode_has_its_bills(served: Served) -> None:
    """`currency` names another wallet; ten-thousandths of a currency of few digits are exact."""
    customer = await served.customer()
    admin = await served.key("admin")
    for currency, scale in (("ZZA", 0), ("ZZB", 4)):
        new = {"id": currency, "scale": scale, "name": "Points"}
        answer = await served.ask("POST", "/v1/currencies", key=admin, json=new)
        assert answer.status_code == 200
    amounts = {"USD": "1.23456", "CREDIT": "2.000051", "ZZA": "7", "ZZB": "0.0001"}
    for currency, amount in amounts.items():
        wallet = await served.wallet(customer, currency=currency)
        await served.post(wallet, {"grant": {"amount": "9"}}, used(amount))
    test = await served.wallet(customer, livemode=False)
    await served.post(test, {"grant": {"amount": "9"}}, used("5"))
    live_key = await served.key("customer", customer)
    test_key = await served.key("customer", customer, livemode=False)

    columns = ("amount", "amountDecimal")
    shown = {
        currency: await figures(served, live_key, *columns, **window(currency=currency))
        for currency in amounts
    }

    assert shown == {
        "USD": [("12346", "1.23456")],
        "CREDIT": [("20001", "2.000051")],
        "ZZA": [("70000", "7")],
        "ZZB": [("1", "0.0001")],
    }
    assert await figures(served, live_key, *columns, **window()) == shown["USD"]
    assert await figures(served, test_key, *columns, **window()) == [("50000", "5.00")]


# --- calendar -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cycle", "zone", "moment", "start", "end"),
    [
        ("Day", None, "2026-02-28T23:59:59Z", "2026-02-28T00:00Z", "2026-03-01T00:00Z"),
        ("Day", "UTC", "2026-03-01T00:00:00Z", "2026-03-01T00:00Z", "2026-03-02T00:00Z"),
        ("Week", None, "2026-03-01T23:59:59Z", "2026-02-23T00:00Z", "2026-03-02T00:00Z"),
        ("Week", None, "2026-03-02T00:00:00Z", "2026-03-02T00:00Z", "2026-03-09T00:00Z"),
        ("Week", None, "2026-01-01T00:00:00Z", "2025-12-29T00:00Z", "2026-01-05T00:00Z"),
        ("Month", None, "2026-02-28T23:59:59Z", "2026-02-01T00:00Z", "2026-03-01T00:00Z"),
        ("Month", None, "2026-11-30T00:00:00Z", "2026-11-01T00:00Z", "2026-12-01T00:00Z"),
        # half and quarter hours beside UTC
        ("Day", "Asia/Kolkata", "2026-05-01T18:29:59Z", "2026-05-01T00:00+05:30", None),
        ("Day", "Asia/Kolkata", "2026-05-01T18:30:00Z", "2026-05-02T00:00+05:30", None),
        ("Day", "Asia/Kathmandu", "2026-05-01T18:14:59Z", "2026-05-01T00:00+05:45", None),
        ("Day", "Asia/Kathmandu", "2026-05-01T18:15:00Z", "2026-05-02T00:00+05:45", None),
        ("Day", "Pacific/Chatham", "2026-06-30T11:15:00Z", "2026-07-01T00:00+12:45", None),
        ("Day", "Pacific/Kiritimati", "2026-06-30T10:00:00Z", "2026-07-01T00:00+14:00", None),
        ("Month", "Asia/Kolkata", "2026-05-31T18:30:00Z", "2026-06-01T00:00+05:30",
         "2026-07-01T00:00+05:30"),
        ("Week", "America/New_York", "2026-06-01T03:59:59Z", "2026-05-25T00:00-04:00",
         "2026-06-01T00:00-04:00"),
        ("Hour", None, "2026-05-01T18:59:59Z", "2026-05-01T18:00Z", "2026-05-01T19:00Z"),
        ("Hour", None, "2026-05-01T19:00:00Z", "2026-05-01T19:00Z", "2026-05-01T20:00Z"),
        ("Hour", "Asia/Kolkata", "2026-05-01T18:29:59Z", "2026-05-01T23:00+05:30",
         "2026-05-02T00:00+05:30"),
        ("Hour", "Asia/Kathmandu", "2026-05-01T18:15:00Z", "2026-05-02T00:00+05:45",
         "2026-05-02T01:00+05:45"),
        # the hour that is skipped, and the one that comes twice
        ("Hour", "Europe/Berlin", "2026-03-29T00:59:59Z", "2026-03-29T01:00+01:00",
         "2026-03-29T03:00+02:00"),
        ("Hour", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T03:00+02:00",
         "2026-03-29T04:00+02:00"),
        ("Hour", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T02:00+02:00",
         "2026-10-25T03:00+02:00"),
        ("Hour", "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T02:00+01:00",
         "2026-10-25T03:00+01:00"),
        # half an hour skipped, and half an hour twice
        ("Hour", "Australia/Lord_Howe", "2026-10-03T15:30:00Z", "2026-10-04T02:30+11:00",
         "2026-10-04T03:00+11:00"),
        ("Hour", "Australia/Lord_Howe", "2026-04-04T14:59:59Z", "2026-04-05T01:00+11:00",
         "2026-04-05T02:00+11:00"),
        ("Hour", "Australia/Lord_Howe", "2026-04-04T15:00:00Z", "2026-04-05T01:30+10:30",
         "2026-04-05T02:00+10:30"),
        # days of 23 and 25 hours, and weeks and months around them
        ("Day", "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-29T00:00+01:00",
         "2026-03-30T00:00+02:00"),
        ("Day", "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-25T00:00+02:00",
         "2026-10-26T00:00+01:00"),
        ("Week", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-23T00:00+01:00",
         "2026-03-30T00:00+02:00"),
        ("Month", "Europe/Berlin", "2026-10-01T12:00:00Z", "2026-10-01T00:00+02:00",
         "2026-11-01T00:00+01:00"),
        # half an hour of summer time; midnight skipped; midnight twice
        ("Day", "Australia/Lord_Howe", "2026-04-05T00:00:00Z", "2026-04-05T00:00+11:00",
         "2026-04-06T00:00+10:30"),
        ("Day", "Africa/Cairo", "2026-04-24T10:00:00Z", "2026-04-24T01:00+03:00",
         "2026-04-25T00:00+03:00"),
        ("Day", "Africa/Cairo", "2026-04-23T21:59:59Z", "2026-04-23T00:00+02:00",
         "2026-04-24T01:00+03:00"),
        ("Day", "America/Havana", "2026-11-01T04:30:00Z", "2026-11-01T00:00-04:00",
         "2026-11-02T00:00-05:00"),
        ("Day", "America/Havana", "2026-11-01T05:30:00Z", "2026-11-01T00:00-04:00",
         "2026-11-02T00:00-05:00"),
    ],
)  # fmt: skip
async def test_buckets(
    served: Served, cycle: str, zone: str | None, moment: str, start: str, end: str | None
) -> None:
    """Hours, days, weeks from Monday and months of the zone, whatever its clocks do; or of UTC."""
    _, wallet, key = await account(served)
    await served.post(wallet, used("1", moment))
    query = window(cycle=cycle) | ({"timeZone": zone} if zone else {})

    shown = await figures(served, key, "startTime", "endTime", "amount", **query)

    last = (second(end) if end else second(start) + DAY) - 1
    assert shown == [(str(second(start)), str(last), "10000")]


async def test_bills_before_2026_are_a_setting(new_database: Callable[[], str]) -> None:
    """With bills_from=0 windows begin in 1970, also in zones whose offset then had seconds."""
    async with serving(new_database(), bills_from=0) as served:
        _, wallet, key = await account(served)
        moments = ["1970-01-01T00:00:00Z", "1971-12-31T23:59:00Z", "2011-12-30T10:00:00Z"]
        await served.post(wallet, *[used("1", moment) for moment in moments])

        utc = await figures(served, key, "startTime", "endTime", **window(0))
        months = await figures(served, key, "startTime", "endTime", **window(0, cycle="Month"))
        weeks = await figures(served, key, "startTime", "endTime", **window(0, cycle="Week"))
        monrovia = await figures(
            served, key, "startTime", "endTime", **window(0, timeZone="Africa/Monrovia")
        )
        apia = await figures(
            served, key, "startTime", "endTime", **window(DAY, timeZone="Pacific/Apia")
        )

        def days(*moments: str) -> list[tuple[str, str]]:
            return [(str(second(m)), str(second(m) + DAY - 1)) for m in moments]

        assert utc == days("1970-01-01T00:00Z", "1971-12-31T00:00Z", "2011-12-30T00:00Z")
        assert [int(start) for start, _ in months] == [
            0, second("1971-12-01T00:00Z"), second("2011-12-01T00:00Z")
        ]  # fmt: skip
        assert [int(start) for start, _ in weeks] == [
            -3 * DAY, second("1971-12-27T00:00Z"), second("2011-12-26T00:00Z")
        ]  # fmt: skip
        assert monrovia == days(
            "1969-12-31T00:00-00:44:30", "1971-12-31T00:00-00:44:30", "2011-12-30T00:00Z"
        )
        # There was no 30 December 2011 on Samoa.
        assert apia == days("1971-12-31T00:00-11:00", "2011-12-31T00:00+14:00")


# --- amounts --------------------------------------------------------------------------------------


async def test_a_refund_is_netted_where_it_happens(served: Served) -> None:
    """In the refund's bucket, without quantities, under the usage that it refunds."""
    _, wallet, key = await account(served)
    monday, tuesday = second("2026-12-07T12:00Z"), second("2026-12-08T12:00Z")
    label = {"api_key_id": "k", "product_id": "p", "quantities": [10, 5]}
    first, _ = await served.post(
        wallet, used("1.5", monday, **label), used("0.25", monday, **label)
    )
    posting_id = first["posting_id"]
    await served.post(
        wallet,
        {
            "refund": {"posting_id": posting_id, "amount": "0.5"},
            "effective_at": time.text(monday * 1000 + 1),
        },
        {"refund": {"posting_id": posting_id}, "effective_at": time.text(tuesday * 1000)},
    )

    columns = ("startTime", "ownerID", "productId", "billNum0", "billNum1", "amount", "payAmount")
    shown = await figures(served, key, *columns, "payAmountDisplay", **window())

    midnights = [str(second(f"2026-12-0{day}T00:00Z")) for day in (7, 8)]
    assert shown == [
        (midnights[0], "k", "p", "20", "10", "12500", "12500", 1.25),
        (midnights[1], "k", "p", "0", "0", "-10000", "-10000", -1),
    ]
    week = await figures(served, key, "amount", "billNum0", **window(cycle="Week"))
    assert week == [("2500", "20")]


async def test_vouchers_are_what_promotional_grants_paid(served: Served) -> None:
    """Promotional grants are voucher; paid ones and overdraft are pay; so are their refunds."""
    _, wallet, key = await account(
        served,
        {"grant": {"amount": "1", "category": "promotional"}},
        {"grant": {"amount": "2", "category": "paid"}},
        overdraft_limit="10",
    )
    (all_three,) = await served.post(wallet, used("4.5"))
    columns = ("amount", "voucherAmount", "payAmount", "payAmountDisplay")
    decimals = ("amountDecimal", "voucherAmountDecimal", "payAmountDecimal")

    assert await figures(served, key, *columns, *decimals, **window()) == [
        ("45000", "10000", "35000", 3.5, "4.50", "1.00", "3.50")
    ]
    refund = {"posting_id": all_three["posting_id"], "amount": "3.75"}
    await served.post(wallet, {"refund": refund})
    assert await figures(served, key, *columns, *decimals, **window()) == [
        ("7500", "7500", "0", 0, "0.75", "0.75", "0.00")
    ]
    # An admin's credit is promotional, and 0.25 went back to the voucher.
    await served.post(wallet, {"adjustment": {"amount": "1"}}, used("3", product_id="p"))
    assert (await figures(served, key, *columns, **window()))[1:] == [
        ("30000", "12500", "17500", 1.75)
    ]


@pytest.mark.parametrize(
    ("amounts", "charged"),
    [
        (["0.00004"], ["0"]),
        (["0.00005"], ["1"]),
        (["0.000000001"] * 3, ["0", "0", "0"]),
        (["0.00003"] * 3, ["1", "0", "0"]),
        (["0.00005"] * 3, ["1", "1", "0"]),
        (["0.00004", "0.00006", "0.00005"], ["0", "1", "1"]),
        (["0.00012", "0.00019", "0.00019"], ["1", "2", "2"]),
        (["1", "0.00001", "0.00009"], ["10000", "0", "1"]),
        (["0.333333333"] * 3, ["3334", "3333", "3333"]),
    ],
)
async def test_a_buckets_integers_add_up(
    served: Served, amounts: list[str], charged: list[str]
) -> None:
    """Floor, then the largest remainders, ties by row: the exact total rounded half up."""
    _, wallet, key = await account(served)
    await served.post(wallet, *[used(a, product_id=f"p{i}") for i, a in enumerate(amounts)])

    shown = await figures(served, key, "amount", "amountDecimal", **window())

    assert [amount for amount, _ in shown] == charged
    assert [Decimal(exact) for _, exact in shown] == [Decimal(amount) for amount in amounts]


async def test_a_voucher_is_never_above_its_amount(served: Served) -> None:
    """What a row has no room for goes to the next, so that no payAmount is negative."""
    voucher = {"grant": {"amount": "0.000075", "category": "promotional"}}
    _, wallet, key = await account(served, voucher, {"grant": {"amount": "1"}})
    amounts = ["0.000045", "0.00009"]
    await served.post(wallet, *[used(a, product_id=f"p{i}") for i, a in enumerate(amounts)])

    shown = await figures(served, key, "amount", "voucherAmount", "payAmount", **window())

    # Exact amounts 0.45 and 0.9, vouchers 0.45 and 0.3: both sums are 1 when rounded, and the
    # larger remainder of the vouchers is in the row whose amount is 0.
    assert shown == [("0", "0", "0"), ("1", "1", "0")]


# --- keys, filters, pages -------------------------------------------------------------------------


async def test_a_key_shows_its_name_only_to_its_customer(served: Served) -> None:
    """Name and mask of the customer's own keys, of any mode and revoked too; else ""."""
    customer, wallet, key = await account(served)
    test = await served.key("customer", customer, livemode=False, name="Test bench")
    stranger = await served.key("customer", await served.customer(), name="Stranger")
    gateway = await served.key("service", name="Gateway")
    admin = await served.key("admin")
    test_admin = await served.key("admin", livemode=False)
    ids: dict[str, str] = {}
    for by in (admin, test_admin):
        token: Json = {}
        while True:
            page = await served.body("/v1/api-keys", by, page_size=100, **token)
            ids |= {one["mask"]: one["id"] for one in page["api_keys"]}
            if "next_page_token" not in page:
                break
            token = {"page_token": page["next_page_token"]}
    secrets = {"own": key, "test": test, "stranger": stranger, "gateway": gateway}
    labels = {name: ids[f"sk-****{secret[-4:]}"] for name, secret in secrets.items()}
    await served.post(wallet, *[used("1", api_key_id=label) for label in labels.values()])
    await served.ask("DELETE", f"/v1/api-keys/{labels['test']}", key=test_admin)

    shown = await figures(served, key, "ownerID", "apikeyName", "apikeyMask", **window())

    nothing = ("", "")
    expected = {
        labels["own"]: ("a customer", f"sk-****{key[-4:]}"),
        labels["test"]: ("Test bench", f"sk-****{test[-4:]}"),
        labels["stranger"]: nothing,
        labels["gateway"]: nothing,
    }
    assert shown == [(label, *expected[label]) for label in sorted(expected)]


async def test_what_tells_rows_apart_and_their_order(served: Served) -> None:
    """By startTime, ownerID, productId, prices; texts by bytes.

    Meters tell nothing apart, nor do a price of 0 and one left out.
    """
    _, wallet, key = await account(served)
    meter = await served.meter()
    early, late = second("2026-12-07T12:00Z"), second("2026-12-08T12:00Z")
    labels: list[Json] = [
        {"api_key_id": "B", "product_id": "p"},
        {"api_key_id": "a", "product_id": "P"},
        {"api_key_id": "a", "product_id": "p", "base_prices": [2]},
        {"api_key_id": "a", "product_id": "p", "base_prices": [10]},
        {"api_key_id": "a", "product_id": "p", "base_prices": [10], "discount_prices": [9]},
        {"api_key_id": "a", "product_id": "p", "base_prices": [10], "price_precision": 2},
        {"api_key_id": "a", "product_id": "q", "category": "gen_api"},
        {"api_key_id": "a", "product_id": "q", "category": "llm"},
        {"api_key_id": "a", "product_id": "q", "category": "llm", "billing_method": 2},
        {"api_key_id": "é", "product_id": "p"},
    ]
    postings = [used("1", moment, **label) for moment in (late, early) for label in labels[::-1]]
    metered = used("1", early, **labels[0])
    metered["consumption"]["meter_id"] = meter
    same_prices = used("1", early, **labels[0], base_prices=[0], price_precision=1)
    await served.post(wallet, *postings, metered, same_prices)

    found = await bills(served, key, **window())

    shown = [
        (int(row["startTime"]), row["ownerID"], row["productId"], row["category"],
         row["billingMethod"], row["basePrice0"], row["discountPrice0"], row["pricePrecision"])
        for row in found
    ]  # fmt: skip
    expected = [
        (moment - moment % DAY, one["api_key_id"], one["product_id"], one.get("category", ""),
         one.get("billing_method", 1), str(one.get("base_prices", [0])[0]),
         str(one.get("discount_prices", [0])[0]), one.get("price_precision", 1))
        for moment in (early, late)
        for one in [labels[0], labels[1], labels[2], labels[3], labels[5], *labels[4:5],
                    *labels[6:]]
    ]  # fmt: skip
    assert shown == expected
    assert [row["amount"] for row in found] == ["30000", *["10000"] * 19]


async def test_filters_and_pages_change_no_integer(served: Served) -> None:
    """Each filter leaves rows as they are in the whole; pages put together are the whole."""
    _, wallet, key = await account(served)
    days = [second("2026-12-07T12:00Z") + number * DAY for number in range(4)]
    names = ["GPT Größe", "gpt_mini", "100% Image", "x"]
    postings = [
        used(f"0.0000{number + 3}", day, api_key_id=f"k{number % 2}", product_id=f"p{number}",
             product_name=names[number], category=["llm", "LLM"][number // 2])
        for day in days
        for number in range(4)
    ]  # fmt: skip
    await served.post(wallet, *postings)
    whole = await bills(served, key, **window())
    assert len(whole) == 16
    assert sum(int(row["amount"]) for row in whole) == 4 * 2  # 0.00018 a day

    def kept(**wanted: str) -> list[Json]:
        return [row for row in whole if all(row[name] == text for name, text in wanted.items())]

    for query, rows in [
        ({"category": "llm"}, kept(category="llm")),
        ({"category": "ll"}, []),
        ({"apikeyId": "k1"}, kept(ownerID="k1")),
        ({"apikeyId": "K1"}, []),
        ({"productName": "gpt"}, [row for row in whole if "gpt" in row["productName"].lower()]),
        ({"productName": "GRöSSE"}, []),
        ({"productName": "GRößE"}, kept(productName="GPT Größe")),
        ({"productName": "GRÖßE"}, []),  # case folds ASCII only
        ({"productName": "%"}, kept(productName="100% Image")),
        ({"productName": "_"}, kept(productName="gpt_mini")),
        ({"productName": "gpt", "apikeyId": "k0"}, kept(productName="GPT Größe")),
    ]:
        assert await bills(served, key, **window(), **query) == rows, query
        pages = [
            await bills(served, key, **window(), **query, page=page, pageSize=3)
            for page in range(1, 8)
        ]
        assert [row for page in pages for row in page] == rows, query
        assert all(len(page) == 3 for page in pages[: len(rows) // 3])


async def test_default_page_sizes_and_rows_without_pages(served: Served) -> None:
    """100 rows a page where only `page` is given, page 1 where only `pageSize` is.

    Without either, all rows, up to 10,000; more are RESULT_TOO_LARGE, unless a filter leaves less.
    """
    _, wallet, key = await account(served)
    rows = [used("0.0001", product_id=f"{n:05}", product_name=f"{n % 2}") for n in range(ROWS_MAX)]
    await served.post(wallet, *rows)

    async def products(**query: Any) -> list[str]:
        return [p for (p,) in await figures(served, key, "productId", **window(**query))]

    everything = [f"{n:05}" for n in range(ROWS_MAX)]
    assert await products() == everything
    assert await products(page=1) == everything[:100]
    assert await products(page=100) == everything[9_900:]
    assert await products(page=101) == []
    assert await products(pageSize=1_000) == everything[:1_000]
    assert await products(pageSize=1_000, page=10) == everything[9_000:]

    await served.post(wallet, used("0.0001", product_id="99999", product_name="1"))
    refusal = await served.refusal(BILLS, key, **window())
    assert refusal == Failure(400, "RESULT_TOO_LARGE", "page")
    assert len(await products(productName="1")) == ROWS_MAX // 2 + 1
    assert await products(pageSize=1_000, page=11) == ["99999"]


# --- everything at once ---------------------------------------------------------------------------

_Label = tuple[str, str, tuple[int, ...], tuple[int, ...], int, str, str, int]


@cache
def bounds(cycle: str, zone: str, quarter: int) -> tuple[int, int]:
    """First and last second of the bucket of a quarter of an hour: step by step over its like."""

    def label(number: int) -> tuple[int, ...] | date:
        local = datetime.fromtimestamp(number * 900, UTC).astimezone(ZoneInfo(zone))
        if cycle == "Hour":  # and a new one where clocks are put forward or back
            offset = (local.utcoffset() or timedelta()) // timedelta(seconds=1)
            return local.year, local.month, local.day, local.hour, offset
        if cycle == "Day":
            return local.date()
        return local.isocalendar()[:2] if cycle == "Week" else (local.year, local.month)

    mine, first, after = label(quarter), quarter, quarter + 1
    while label(first - 1) == mine:
        first -= 1
    while label(after) == mine:
        after += 1
    return first * 900, after * 900 - 1


def milliseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime.fromtimestamp(0, UTC)) // timedelta(
        milliseconds=1
    )


def units(text: str) -> int:
    return int(Decimal(text).scaleb(9))


def padded(prices: Sequence[str]) -> tuple[int, ...]:
    """A price left out is 0."""
    return tuple(int(price) for price, _ in zip_longest(prices, range(6), fillvalue="0"))


def summed(
    rows: list[Json], requests: dict[str, Json], query: Json
) -> list[tuple[int, int, _Label, Bill]]:
    """(first second, last second, label, sums) of the window's rows, in the published order."""
    found: dict[tuple[int, int, _Label], Bill] = defaultdict(Bill)
    counted, promotions = set(), promotional(rows)
    for row in sorted(rows, key=lambda one: int(one["sequence"])):
        moment = milliseconds(row["effective_at"])
        inside = query["startTime"] * 1000 <= moment < (query["endTime"] + 1) * 1000
        if row["kind"] not in {"usage", "refund"} or not inside:
            continue
        spent = row["source"]["posting_id"] if row["kind"] == "refund" else row["posting_id"]
        usage = requests[spent]["consumption"].get("usage", {})
        label: _Label = (
            usage.get("api_key_id", ""),
            usage.get("product_id", ""),
            padded(usage.get("base_prices", ())),
            padded(usage.get("discount_prices", ())),
            usage.get("price_precision", 1),
            usage.get("product_name", ""),
            usage.get("category", ""),
            usage.get("billing_method", 1),
        )
        first = row["kind"] == "usage" and row["posting_id"] not in counted
        counted.add(row["posting_id"])
        key = (*bounds(query["cycleType"], query["timeZone"], moment // 900_000), label)
        old, amount = found[key], -units(row["amount"])
        voucher = amount if row["sequence"] in promotions else 0
        quantities = usage.get("quantities", ()) if first else ()
        found[key] = Bill(
            tuple(a + b for a, b in zip_longest(old.quantities, quantities, fillvalue=0)),
            old.amount + amount,
            old.voucher + voucher,
        )
    return [(*key, found[key]) for key in sorted(found)]


def expected_bills(
    rows: list[Json], requests: dict[str, Json], query: Json, now: int
) -> list[Json]:
    """What the query should answer at `now`, without the columns of customer, keys and prices."""
    answer: list[Json] = []
    for _, group in groupby(summed(rows, requests, query), key=lambda one: one[0]):
        bucket = list(group)
        charges = apportion_bills([bill for *_, bill in bucket], 9)
        for (start, end, label, bill), (amount, voucher, pay) in zip(bucket, charges, strict=True):
            owner, product, _, _, _, name, category, _ = label
            numbers = (*bill.quantities, *[0] * 6)
            answer.append(
                {
                    "startTime": str(start),
                    "endTime": str(end),
                    "productName": name,
                    "category": category,
                    "ownerID": owner,
                    **{f"billNum{i}": str(numbers[i]) for i in range(6)},
                    "amount": str(amount),
                    "voucherAmount": str(voucher),
                    "payAmount": str(pay),
                    "payAmountDisplay": pay / 10_000,
                    "productId": product,
                    "decimals": (bill.amount, bill.voucher, bill.amount - bill.voucher),
                    **({"partial": True} if (end + 1) * 1000 > now else {}),
                }
            )
    return answer


def comparable(row: Json) -> Json:
    """A row of the answer as `expected_bills` has it."""
    names = ("amountDecimal", "voucherAmountDecimal", "payAmountDecimal")
    left_out = {"userId", "billingMethod", "pricePrecision", "apikeyName", "apikeyMask", *names}
    kept = {
        name: value
        for name, value in row.items()
        if name not in left_out and not name.startswith(("basePrice", "discountPrice"))
    }
    return {**kept, "decimals": tuple(units(row[name]) for name in names)}


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_bills_of_a_random_ledger(served: Served, seed: int) -> None:
    """Any window, cycle and zone: exactly what the rows add up to, apportioned by bucket."""
    chance = random.Random(seed)
    customer, wallet, key = await account(
        served, {"grant": {"amount": "5", "category": "promotional"}}, overdraft_limit="20"
    )
    subscription, meter = await served.subscription(customer), await served.meter()
    shop = Shop(wallet, 9, [subscription], [meter], ["apk_1", "gateway"])
    requests = await traffic(served, chance, [shop], 120)
    rows: list[Json] = []
    token: Json = {}
    while True:
        page = await served.body(TRANSACTIONS, key, limit=100, **token)
        rows += page["list"]
        if "next_page_token" not in page["paging"]:
            break
        token = {"page_token": page["paging"]["next_page_token"]}
    moments = [milliseconds(row["effective_at"]) // 1000 for row in rows]
    spent = [row["category"] for row in await bills(served, key, **window(end=max(moments) + DAY))]
    assert len(spent) > 30

    zones = ["UTC", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"]
    for _ in range(25):
        # Windows that end where rows are, beside them, or anywhere.
        start, end = sorted(chance.sample([*moments, *(m - m % 900 for m in moments)], 2))
        start, end = start - chance.randrange(3), end + chance.randrange(3)
        zone, cycle = chance.choice(zones), chance.choice(["Hour", "Day", "Week", "Month"])
        query = window(start, max(end, start + 1), cycle=cycle, timeZone=zone)

        found = await bills(served, key, **query)

        expected = expected_bills(rows, requests, query, served.clock.now)
        assert [comparable(row) for row in found] == expected, query
