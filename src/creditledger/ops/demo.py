"""The demo: a made-up customer with a wallet and a few transactions, for a first look at `up`.

Everything is
posted under fixed keys and chosen ids, so that a demo cut short is completed at the next start.
"""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.credit_transaction_pb2 import TransactionSource
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub

from creditledger.domain import clock as time

CUSTOMER, WALLET, METER = "cus_demo", "wal_demo", "mtr_demo"
#: The demo's keys are known by it: those of the start before are revoked.
KEY_NAME = "demo, until the next start"
KEY_MS = time.DAY
PAGE_SIZE = 100


@dataclass(frozen=True, slots=True)
class DemoKeys:
    """Secrets of a start's keys."""

    customer: str
    admin: str


async def prepare(channel: grpc.aio.Channel, clock: Callable[[], int]) -> DemoKeys | None:
    """Keys of the demo, made if the database is empty; None if the database has other data."""
    registry = RegistryServiceStub(channel)
    customers = await registry.ListCustomers(registry_pb.ListCustomersRequest(page_size=1))
    if not customers.customers:
        keys = await ApiKeyServiceStub(channel).ListApiKeys(keys_pb.ListApiKeysRequest(page_size=1))
        if keys.api_keys:
            return None
        await _register(registry)
    elif not await _is_demo(registry):
        return None
    await _post(channel, registry)
    return await _mint(channel, clock)


async def _is_demo(registry: RegistryServiceStub) -> bool:
    try:
        await registry.GetCustomer(registry_pb.GetCustomerRequest(customer_id=CUSTOMER))
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return True


async def _register(registry: RegistryServiceStub) -> None:
    await registry.CreateCustomer(
        registry_pb.CreateCustomerRequest(
            id=CUSTOMER, name="Demo Company", email="demo@example.com"
        )
    )


async def _post(channel: grpc.aio.Channel, registry: RegistryServiceStub) -> None:
    """The wallet, the meter and the postings, unless the last of them is there."""
    wallets = WalletServiceStub(channel)
    postings = _postings()
    last = pb.GetPostingRequest(wallet_id=WALLET, idempotency_key=postings[-1].idempotency_key)
    try:
        await wallets.GetPosting(last)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
    else:
        return
    await wallets.CreateWallet(
        pb.CreateWalletRequest(id=WALLET, customer_id=CUSTOMER, currency="USD", livemode=True)
    )
    await registry.CreateMeter(
        registry_pb.CreateMeterRequest(
            id=METER, name="Demo tokens", event_name="demo.tokens", unit="token", currency_id="USD"
        )
    )
    await wallets.BatchPost(pb.BatchPostRequest(postings=postings))


def _postings() -> list[pb.PostRequest]:
    def post(key: str, **fields: object) -> pb.PostRequest:
        return pb.PostRequest(wallet_id=WALLET, idempotency_key=f"demo:{key}", **fields)  # type: ignore[arg-type] # by name

    def call(tokens_in: int, tokens_out: int, amount: str) -> pb.ConsumptionOperation:
        return pb.ConsumptionOperation(
            amount=amount,
            meter_id=METER,
            meter_event_id=f"demo-call-{tokens_in}",
            usage=pb.Usage(
                api_key_id="apk_demo",
                product_id="demo-chat",
                product_name="Demo Chat",
                category="llm",
                quantities=[tokens_in, tokens_out],
                # 2.50 and 10.00 dollars a million: 25 / 10000 / 1000 and 100 / 10000 / 1000 each.
                base_prices=[25, 100],
                discount_prices=[25, 100],
                price_precision=1000,
            ),
        )

    return [
        post(
            "topup",
            note="First top-up",
            grant=pb.GrantOperation(
                amount="50.00",
                name="Top-up by card",
                source=TransactionSource(
                    provider="stripe", receipt_id="ch_demo_0001", method="card_visa_4242"
                ),
            ),
        ),
        post(
            "welcome",
            description="Welcome credit",
            grant=pb.GrantOperation(
                amount="5.00",
                kind="admin_credit",
                name="Welcome credit",
                source=TransactionSource(actor="support@example.com"),
            ),
        ),
        post("call:1", description="Chat completion", consumption=call(4_808, 310, "0.01512")),
        post("call:2", description="Chat completion", consumption=call(3_180, 1_204, "0.01999")),
        post(
            "correction",
            note="Charged twice by mistake",
            adjustment=pb.AdjustmentOperation(
                amount="0.50", source=TransactionSource(actor="support@example.com")
            ),
        ),
    ]


async def _mint(channel: grpc.aio.Channel, clock: Callable[[], int]) -> DemoKeys:
    """New keys for a day; those of the start before end here."""
    keys = ApiKeyServiceStub(channel)
    page = keys_pb.ListApiKeysRequest(page_size=PAGE_SIZE)
    while True:
        found = await keys.ListApiKeys(page)
        for key in found.api_keys:
            if key.name == KEY_NAME and not key.HasField("revoked_at"):
                await keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=key.id))
        if not found.HasField("next_page_token"):
            break
        page.page_token = found.next_page_token
    expires_at = time.text(clock() + KEY_MS)

    async def make(scope: str, customer_id: str | None) -> str:
        made = await keys.CreateApiKey(
            keys_pb.CreateApiKeyRequest(
                name=KEY_NAME,
                scope=scope,
                customer_id=customer_id,
                livemode=True,
                expires_at=expires_at,
            )
        )
        return made.secret

    return DemoKeys(customer=await make("customer", CUSTOMER), admin=await make("admin", None))
