"""A server inside the test, asked over gRPC: keys of each scope, a wallet, and requests in short.

`running` starts what `creditledger serve` starts; `serve` also makes what a test begins with. How
the same service is asked over REST is in `rest.py`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from credit.v1.billing_service_pb2_grpc import BillingServiceStub
from credit.v1.credit_grant_service_pb2_grpc import CreditGrantServiceStub
from credit.v1.credit_transaction_service_pb2_grpc import CreditTransactionServiceStub
from credit.v1.payment_kit_service_pb2_grpc import PaymentKitServiceStub
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from credit.v1.webhook_service_pb2_grpc import WebhookServiceStub

from creditledger.domain import clock as time
from creditledger.ops.config import Config
from creditledger.ops.server import Server
from tests.support.refusals import Refused, bearer
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from tests.support.refusals import Metadata

#: How long anything that a test waits for may take before it counts as hanging.
PATIENCE_SECONDS = 30.0
#: The wallet that `serve` makes: the first, so its number is 1.
WALLET, CUSTOMER = "wal_acme", "cus_acme"
_DAY_BEGAN = (START - START % time.DAY) // time.SECOND
#: By the day, of START's and the one before it.
TWO_DAYS_OF_BILLS = billing_pb.ListApiKeyBillsRequest(
    cycle_type="Day", start_time=_DAY_BEGAN - 86_400, end_time=_DAY_BEGAN + 86_400
)


class Services:
    """The stubs of every service of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.wallets = WalletServiceStub(channel)
        self.registry = RegistryServiceStub(channel)
        self.keys = ApiKeyServiceStub(channel)
        self.transactions = CreditTransactionServiceStub(channel)
        self.grants = CreditGrantServiceStub(channel)
        self.billing = BillingServiceStub(channel)
        self.kit = PaymentKitServiceStub(channel)
        self.webhooks = WebhookServiceStub(channel)

    # What follows asks without a key, so only the local socket may.

    async def new_key(
        self, scope: str, customer_id: str | None = None, **fields: Any
    ) -> keys_pb.CreateApiKeyResponse:
        """A new key; live unless said otherwise."""
        return await self.keys.CreateApiKey(
            keys_pb.CreateApiKeyRequest(
                **{"name": f"{scope} key", "scope": scope, "customer_id": customer_id, **fields}
            )
        )

    async def key(self, scope: str, customer_id: str | None = None, **fields: Any) -> Metadata:
        """The metadata of a new key."""
        return bearer((await self.new_key(scope, customer_id, **fields)).secret)

    async def new_wallet(self, id_: str, customer_id: str, **fields: Any) -> pb.Wallet:
        """A USD wallet, and its customer if there is none."""
        await self.registry.CreateCustomer(
            registry_pb.CreateCustomerRequest(
                id=customer_id, name="Acme", email="billing@example.com"
            )
        )
        return await self.wallets.CreateWallet(
            pb.CreateWalletRequest(id=id_, customer_id=customer_id, currency="USD", **fields)
        )


@dataclass(frozen=True, slots=True)
class Running:
    """A server of this process: its services over the network, and over its owner's socket."""

    server: Server
    network: Services
    local: Services


@asynccontextmanager
async def started(
    database_url: str, clock: Callable[[], int], **settings: Any
) -> AsyncIterator[Server]:
    """Serve the database from this process, on a free port, until the block ends."""
    config = Config(database_url=database_url, **{"grpc_address": "127.0.0.1:0", **settings})
    server = Server(config, clock=clock)
    await server.start()
    if server.background is not None:
        # What a key says would depend on how long a test takes.
        await server.background.key_uses.loop.stop()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def running(
    database_url: str, clock: Callable[[], int], **settings: Any
) -> AsyncIterator[Running]:
    """A server that does nothing unasked, and its services over the network and the socket."""
    # Where rows stand, and what is read, would depend on how long a test takes.
    unasked = {
        "sweep_interval_seconds": 0,
        "sweep_grace_seconds": 0,
        "fold_interval_seconds": 0,
        "webhook_connections": 0,
    }
    async with (
        started(database_url, clock, **{**unasked, **settings}) as server,
        grpc.aio.insecure_channel(server.grpc_address) as network,
        server.local_channel() as local,
    ):
        yield Running(server, Services(network), Services(local))


class Api(Services):
    """The services over the network, and the metadata of a live key of each scope."""

    def __init__(
        self, started: Running, *, admin: Metadata, service: Metadata, customer: Metadata
    ) -> None:
        super().__init__(started.network.channel)
        self.server = started.server
        self.local = started.local
        self.admin = admin
        self.service = service
        self.customer = customer  #: Of cus_acme.

    async def post(self, key: str, wallet_id: str = WALLET, **fields: Any) -> pb.Posting:
        """One posting by a service."""
        return await self.wallets.Post(post(key, wallet_id, **fields), metadata=self.service)

    async def found(self, key: str, wallet_id: str = WALLET) -> pb.Posting | None:
        """What there is under a key."""
        request = pb.GetPostingRequest(wallet_id=wallet_id, idempotency_key=key)
        try:
            return await self.wallets.GetPosting(request, metadata=self.service)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def wallet_now(self, wallet_id: str = WALLET) -> pb.Wallet:
        """The wallet."""
        request = pb.GetWalletRequest(wallet_id=wallet_id)
        return await self.wallets.GetWallet(request, metadata=self.service)

    async def batch(self, requests: Iterable[pb.PostRequest]) -> list[str | Refused]:
        """The fates of a service's batch."""
        request = pb.BatchPostRequest(postings=requests)
        answer = await self.wallets.BatchPost(request, metadata=self.service)
        return [fate(one) for one in answer.results]


@asynccontextmanager
async def serve(database_url: str, clock: Callable[[], int], **settings: Any) -> AsyncIterator[Api]:
    """A server with cus_acme and its empty live USD wallet, wal_acme."""
    async with running(database_url, clock, **settings) as started:
        local = started.local
        await local.new_wallet(WALLET, CUSTOMER)
        yield Api(
            started,
            admin=await local.key("admin"),
            service=await local.key("service"),
            customer=await local.key("customer", CUSTOMER),
        )


@dataclass(frozen=True, slots=True)
class Registry:
    """A server upon a new database: its registry and keys, by TCP and by socket."""

    registry: RegistryServiceStub
    keys: ApiKeyServiceStub
    local: Services
    admin: Metadata
    service: Metadata

    async def customer(self, id_: str = CUSTOMER) -> registry_pb.Customer:
        """A registered customer."""
        request = registry_pb.CreateCustomerRequest(
            id=id_, name="Acme", email="billing@example.com"
        )
        return await self.registry.CreateCustomer(request, metadata=self.admin)

    async def subscription(self, id_: str, customer_id: str) -> registry_pb.Subscription:
        """A registered subscription."""
        request = registry_pb.CreateSubscriptionRequest(id=id_, customer_id=customer_id, name="Pro")
        return await self.registry.CreateSubscription(request, metadata=self.admin)


@asynccontextmanager
async def serve_registry(
    database_url: str, clock: Callable[[], int], **settings: Any
) -> AsyncIterator[Registry]:
    """A server with nothing but two live keys."""
    async with running(database_url, clock, **settings) as started:
        network, local = started.network, started.local
        keys = [await local.key(scope) for scope in ("admin", "service")]
        yield Registry(network.registry, network.keys, local, *keys)


def post(key: str, wallet_id: str = WALLET, **fields: Any) -> pb.PostRequest:
    """A posting."""
    return pb.PostRequest(wallet_id=wallet_id, idempotency_key=key, **fields)


def grant(amount: str, **fields: Any) -> dict[str, Any]:
    """A grant, as fields of a posting."""
    return {"grant": pb.GrantOperation(amount=amount, **fields)}


def consume(amount: str, **fields: Any) -> dict[str, Any]:
    """A consumption, as fields of a posting."""
    return {"consumption": pb.ConsumptionOperation(amount=amount, **fields)}


def adjust(amount: str, **fields: Any) -> dict[str, Any]:
    """An adjustment, as fields of a posting."""
    return {"adjustment": pb.AdjustmentOperation(amount=amount, **fields)}


def refund(posting_id: str, **fields: Any) -> dict[str, Any]:
    """A refund, as fields of a posting."""
    return {"refund": pb.RefundOperation(posting_id=posting_id, **fields)}


def fate(result: pb.PostingResult) -> str | Refused:
    """What became of one posting of several: its id, or how it was refused."""
    if result.HasField("posting"):
        return result.posting.posting_id
    error = result.error
    param = error.param if error.HasField("param") else None
    return Refused(error.code, param, dict(error.metadata))


def ranked(fates: Iterable[str | Refused]) -> list[int | Refused]:
    """The fates with each posting's rank among them in place of its id: 1 is the first written.

    Ids of a wallet's postings sort as text in the order of writing; how numbers go on in them is
    the database's business.
    """
    listed = list(fates)
    ids = sorted({one for one in listed if isinstance(one, str)})
    assert all(one.startswith("pst_") for one in ids)
    return [ids.index(one) + 1 if isinstance(one, str) else one for one in listed]


def wallet(balance: str, sequence: int, **fields: Any) -> pb.Wallet:
    """wal_acme as it is at START."""
    usual = {
        "status": "active",
        "held": "0.00",
        "pending": "0.00",
        "available": balance,
        "scoped": "0.00",
        "overdraft_limit": "0.00",
        "overdraft_used": "0.00",
    }
    return pb.Wallet(
        id=WALLET,
        customer_id=CUSTOMER,
        currency="USD",
        livemode=True,
        balance=balance,
        sequence=sequence,
        created_at=time.text(START),
        updated_at=time.text(START),
        **{**usual, **fields},
    )
