"""Shapes that meters, meter events and grants of Payment Kit share."""

from dataclasses import dataclass
from typing import Any

from credit.v1 import payment_kit_service_pb2 as pb

from creditledger.api import fields
from creditledger.domain.errors import InvalidField
from creditledger.domain.registry import Currency

PAGE_SIZE, PAGE_SIZE_MAX = 20, 100
#: Items before a page: what a database counts through in no time.
OFFSET_MAX = 100_000
#: How meters, events and grants come to be: calls of the API make all of them.
CREATED_VIA = "api"


@dataclass(frozen=True, slots=True)
class NumberedPage:
    """The page of a list that a request asks for."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        """Items before it."""
        return (self.number - 1) * self.size

    def message(self) -> pb.PaymentKitPaging:
        """As the answer says it."""
        return pb.PaymentKitPaging(page=self.number, page_size=self.size)


def page(request: Any) -> NumberedPage:
    """`page`, and `pageSize` or `limit`. Raises InvalidField."""
    limited = request.HasField("limit")
    if limited and request.HasField("page_size") and request.page_size != request.limit:
        raise InvalidField("pageSize and limit are two names of one thing", param="limit")
    size = fields.page_size(
        request,
        "limit" if limited else "page_size",
        field="limit" if limited else "pageSize",
        default=PAGE_SIZE,
        most=PAGE_SIZE_MAX,
    )
    number = request.page if request.HasField("page") else 1
    most = OFFSET_MAX // size + 1
    return NumberedPage(fields.number(number, least=1, most=most, field="page"), size)


@dataclass(frozen=True, slots=True)
class IdRequest:
    """One thing, by its id."""

    id: str
    livemode: bool | None


def shown_currency(one: Currency) -> pb.CreditCurrency:
    """A currency as it is shown beside what costs in it."""
    return pb.CreditCurrency(
        id=one.code, name=one.name, symbol=one.code, decimal=one.scale, type="credit"
    )
