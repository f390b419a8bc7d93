"""What a read costs its database: counted in statements, which do not depend on the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger.domain import clock as time
from tests.support.server import CUSTOMER, WALLET, consume, grant, serve
from tests.support.setup import START
from tests.support.statements_recorded import recorded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.server import Api
    from tests.support.setup import Clock

WINDOW = {"start": START // time.SECOND - 60, "end": START // time.SECOND + 60}


def _listing(**fields: Any) -> transactions_pb.CreditTransactionServiceListRequest:
    return transactions_pb.CreditTransactionServiceListRequest(
        customer_id=CUSTOMER, page_size=20, **fields
    )


#: Of each read its call, and how many statements the answer needs. The bounds of a window are found
#: by a statement each.
READS: dict[str, tuple[Callable[[Api, str], Awaitable[object]], int]] = {
    "a wallet": (
        lambda api, _: api.wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET), **asking(api)),
        2,
    ),
    "a balance": (
        lambda api, _: api.wallets.GetBalance(
            pb.GetBalanceRequest(wallet_id=WALLET), **asking(api)
        ),
        2,
    ),
    "holds": (
        lambda api, _: api.wallets.ListHolds(pb.ListHoldsRequest(wallet_id=WALLET), **asking(api)),
        2,
    ),
    "keys": (
        lambda api, _: api.wallets.ListIdempotencyKeys(
            pb.ListIdempotencyKeysRequest(wallet_id=WALLET), **asking(api)
        ),
        2,
    ),
    "a transaction": (
        lambda api, id_: api.transactions.Retrieve(
            transactions_pb.CreditTransactionServiceRetrieveRequest(id=id_), **asking(api)
        ),
        1,
    ),
    "a list": (lambda api, _: api.transactions.List(_listing(), **asking(api)), 2),
    "a list of a window": (
        lambda api, _: api.transactions.List(_listing(**WINDOW), **asking(api)),
        4,
    ),
    "a summary": (
        lambda api, _: api.transactions.Summary(
            transactions_pb.CreditTransactionServiceSummaryRequest(customer_id=CUSTOMER),
            **asking(api),
        ),
        3,
    ),
    "the billing list": (
        lambda api, _: api.billing.ListTransactions(
            billing_pb.ListTransactionsRequest(), metadata=api.customer
        ),
        3,
    ),
}


def asking(api: Api) -> dict[str, Any]:
    """A call as a service."""
    return {"metadata": api.service}


@pytest.mark.parametrize("read", READS)
async def test_a_read_asks_no_more_than_it_needs(
    database_url: str, clock: Clock, read: str
) -> None:
    """Its statements are counted once the caller is known, and do not grow with the rows."""
    ask, most = READS[read]
    with recorded() as heard:
        async with serve(database_url, clock) as api:
            await api.post("topup", **grant("100"))
            for n in range(30):
                await api.post(f"spent {n}", **consume("0.01"))
            (newest, *_) = (await api.transactions.List(_listing(), **asking(api))).list
            await ask(api, newest.id)
            before = len(heard.reading)
            await ask(api, newest.id)
            said = [one.text for one in heard.reading[before:]]

    assert 0 < len(said) <= most, said
