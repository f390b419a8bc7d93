"""What is read of a small ledger and of a large one, to see that size does not matter.

Each read is a request of the contract, made once for each ledger of a pair. Requests that need
something of an answer (a token, a grant) get it from the server before anything is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from credit.v1 import billing_service_pb2 as bills_pb
from credit.v1 import credit_transaction_service_pb2 as pb
from google.protobuf.message import Message

from bench.seed.registry import METER
from bench.worker import Failed
from creditledger.domain import clock

LIST = "/credit.v1.CreditTransactionService/List"
SUMMARY = "/credit.v1.CreditTransactionService/Summary"
BILLING = "/credit.v1.BillingService/ListTransactions"
BILLS = "/credit.v1.BillingService/ListApiKeyBills"
USAGE = "/credit.v1.BillingService/GetMyUsage"
ACCOUNT = "/credit.v1.BillingService/GetMyAccount"
BALANCE = "/credit.v1.BillingService/GetMyBalance"

#: The deep page, of one row each: page 10,000, which the small ledger has too.
DEEP = 10_000

Ask = Callable[[str, Message, bool], bytes]  # path, request, as the customer; answers the message


@dataclass(frozen=True, slots=True)
class Read:
    """One request, and as whom."""

    path: str
    request: Message
    as_customer: bool = False
    refused: str | None = None  #: Why it cannot be made: what it begins with was refused.


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger that is read."""

    customer: str | None  #: Whose wallet; None: all wallets, as a service.
    now: int  #: Milliseconds, of its newest row or later.
    deep: int


def reads(ledger: Ledger, ask: Ask) -> dict[str, Read]:
    """Every read of the ledger, by name."""
    found = _lists(ledger, ask) | _summaries(ledger)
    if ledger.customer is not None:
        found |= _of_customer(ledger)
    return found


def _lists(ledger: Ledger, ask: Ask) -> dict[str, Read]:
    def listing(**values: Any) -> pb.CreditTransactionServiceListRequest:
        return pb.CreditTransactionServiceListRequest(customer_id=ledger.customer, **values)

    def deep(**values: Any) -> dict[str, Read]:
        before = listing(page=ledger.deep - 1, page_size=1, **values)
        by_cursor = _beginning(
            lambda: ask(LIST, before, False),
            lambda answer: listing(page_token=answer.paging.next_page_token, page_size=1, **values),
        )
        by_number = Read(LIST, listing(page=ledger.deep, page_size=1, **values))
        return {"by number": by_number, "by cursor": by_cursor}

    month = _seconds(ledger.now - 31 * clock.DAY, ledger.now)
    year = _seconds(ledger.now - 366 * clock.DAY, ledger.now)
    found = {
        "first page and total": Read(LIST, listing()),
        "first page and total, a month": Read(LIST, listing(**month)),
        "first page and total, a meter": Read(LIST, listing(meter_id=METER)),
        "first page and total, a meter and a month": Read(LIST, listing(meter_id=METER, **month)),
    }
    found |= {f"deep page {how}": read for how, read in deep().items()}
    found |= {f"deep page {how}, a year": read for how, read in deep(**year).items()}
    if ledger.customer is not None:
        found["first page and total, a grant"] = _beginning(
            lambda: ask(LIST, listing(), False),
            lambda newest: listing(credit_grant_id=newest.list[0].credit_grant_id),
        )
    return found


def _beginning(
    ask: Callable[[], bytes],
    then: Callable[[pb.CreditTransactionServiceListResponse], Message],
) -> Read:
    """The list that is asked with what another one answered."""
    try:
        answer = pb.CreditTransactionServiceListResponse.FromString(ask())
    except Failed as error:
        return Read(LIST, pb.CreditTransactionServiceListRequest(), refused=str(error))
    return Read(LIST, then(answer))


def _summaries(ledger: Ledger) -> dict[str, Read]:
    def summary(**values: Any) -> Read:
        request = pb.CreditTransactionServiceSummaryRequest(customer_id=ledger.customer, **values)
        return Read(SUMMARY, request)

    year = _seconds(ledger.now - 365 * clock.DAY, ledger.now)
    return {
        "summary of a year": summary(**year),
        "summary of a year, a meter": summary(meter_id=METER, **year),
        "summary of all time": summary(),
    }


def _of_customer(ledger: Ledger) -> dict[str, Read]:
    def billing(**values: Any) -> Read:
        return Read(BILLING, bills_pb.ListTransactionsRequest(**values), True)

    def bills(cycle: str) -> Read:
        request = bills_pb.ListApiKeyBillsRequest(
            cycle_type=cycle,
            start_time=(ledger.now - 31 * clock.DAY) // clock.SECOND,
            end_time=ledger.now // clock.SECOND,
        )
        return Read(BILLS, request, True)

    month: dict[str, Any] = {
        "since": clock.text(ledger.now - 31 * clock.DAY),
        "until": clock.text(ledger.now),
    }

    def usage(group_by: str) -> Read:
        return Read(USAGE, bills_pb.GetMyUsageRequest(group_by=group_by, **month), True)

    return {
        "billing list": billing(),
        "billing list, kind refund": billing(kind="refund"),
        "billing list, kind usage": billing(kind="usage"),
        "billing list, kind usage, a month": billing(kind="usage", **month),
        "billing list, deep page of kind usage": billing(
            kind="usage", page=ledger.deep * 8 // 10, page_size=1
        ),
        "bills of 31 days by day": bills("Day"),
        "bills of 31 days by month": bills("Month"),
        "usage of a month by day": usage("day"),
        "usage of a month by hour and key": usage("hour,api_key"),
        "account": Read(ACCOUNT, bills_pb.GetMyAccountRequest(), True),
        "balance by key, a month": Read(BALANCE, bills_pb.GetMyBalanceRequest(**month), True),
    }


def _seconds(start: int, end: int) -> Mapping[str, int]:
    return {"start": start // clock.SECOND, "end": end // clock.SECOND}
