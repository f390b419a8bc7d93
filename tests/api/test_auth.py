"""Who may do what: every RPC against every kind of caller, and what happens to secrets."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import stat
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import billing_service_pb2 as billing_pb
from credit.v1 import clock_service_pb2 as clock_pb
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import operator_service_pb2 as operator_pb
from credit.v1 import payment_kit_service_pb2 as kit_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import statement_service_pb2 as statements_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1 import webhook_service_pb2 as hooks_pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.ops import server
from creditledger.ops.config import Config, WrongSetting
from creditledger.store import finished_exports
from creditledger.store.finished_exports import Finished
from creditledger.store.registry import records
from tests.support.cases import in_turn
from tests.support.databases import contents
from tests.support.process import process
from tests.support.refusals import Refused, bearer, refused
from tests.support.server import (
    CUSTOMER,
    PATIENCE_SECONDS,
    WALLET,
    adjust,
    consume,
    fate,
    grant,
    post,
    serve,
)
from tests.support.setup import START, change, file_of, is_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from tests.support.refusals import Metadata
    from tests.support.server import Api
    from tests.support.setup import Clock

OK = "OK"
DENIED = "SCOPE_DENIED"
HIDDEN = "NOT_FOUND"
OTHER_MODE = "MODE_MISMATCH"
NOT_ME = "CUSTOMER_KEY_REQUIRED"

#: Callers whose credentials are no good, and what each of their calls is refused for.
STRANGERS = {
    "none": "KEY_MISSING",
    "empty": "KEY_MISSING",
    "malformed": "KEY_INVALID",
    "no scheme": "KEY_INVALID",
    "unknown": "KEY_INVALID",
    "revoked": "KEY_INVALID",
    "expired": "KEY_INVALID",
    "two different": "KEY_INVALID",
}
#: Callers whose credentials are good: keys of cus_acme, of another customer, of the two other
#: scopes, live and test, and who comes through the socket. Columns of TABLE, in this order.
CALLERS = (
    "customer",
    "another customer",
    "customer test",
    "service",
    "service test",
    "admin",
    "admin test",
    "socket",
)
EVERYBODY = (OK,) * 8
#: What all may ask of cus_acme, in either mode, but another customer may not.
NOT_OTHERS = (OK, HIDDEN, OK, OK, OK, OK, OK, OK)
#: The same for what has a mode: cus_acme's things here are live.
NOT_OTHERS_LIVE = (OK, HIDDEN, HIDDEN, OK, HIDDEN, OK, HIDDEN, OK)
FROM_SERVICE = (DENIED, DENIED, DENIED, OK, OK, OK, OK, OK)
FROM_SERVICE_LIVE = (DENIED, DENIED, DENIED, OK, HIDDEN, OK, HIDDEN, OK)
#: Changes of what both modes share.
FROM_SERVICE_SHARED = (DENIED, DENIED, DENIED, OK, OTHER_MODE, OK, OTHER_MODE, OK)
FROM_ADMIN_SHARED = (DENIED, DENIED, DENIED, DENIED, DENIED, OK, OTHER_MODE, OK)
FROM_ADMIN = (DENIED, DENIED, DENIED, DENIED, DENIED, OK, OK, OK)
FROM_ADMIN_LIVE = (DENIED, DENIED, DENIED, DENIED, DENIED, OK, HIDDEN, OK)
CUSTOMERS = (OK, OK, OK, NOT_ME, NOT_ME, NOT_ME, NOT_ME, NOT_ME)

#: Who has no key may call these.
NEEDS_NO_KEY = {"ApiKeyService.OpenSession"}

GRANT = ids.compose("cg", 1, 1)
HOLD = pb.HoldRequest(wallet_id=WALLET, idempotency_key="hold", amount="1")
#: Requests that name a hold, which is known only once it is made.
OF_A_HOLD = (
    *(pb.CaptureHoldRequest, pb.ReleaseHoldRequest, pb.ExtendHoldRequest),
    pb.GetHoldRequest,
)

#: The same of a webhook endpoint, and of a delivery to it.
OF_A_HOOK = (
    *(hooks_pb.GetWebhookEndpointRequest, hooks_pb.UpdateWebhookEndpointRequest),
    *(hooks_pb.DeleteWebhookEndpointRequest, hooks_pb.RotateWebhookSecretRequest),
    *(hooks_pb.ListWebhookDeliveriesRequest, hooks_pb.ReplayWebhookDeliveriesRequest),
)
OF_A_DELIVERY = (hooks_pb.GetWebhookDeliveryRequest, hooks_pb.ReplayWebhookDeliveryRequest)

EXPORTED = Finished("exp_acme", "apk_acme", CUSTOMER, True, START, rows=1, sha256="00")
METER = kit_pb.PaymentKitServiceCreateMeterRequest(
    name="Calls", event_name="calls", unit="call", currency_id="USD"
)
EVENT = kit_pb.PaymentKitServiceCreateMeterEventRequest(
    event_name="calls",
    payload=kit_pb.MeterEventPayload(customer_id=CUSTOMER, value="0.5"),
    identifier="event",
)

AUGUST = statements_pb.StatementServiceCloseRequest(wallet_id=WALLET, month="2026-08")

#: RPC -> a request for what is cus_acme's and live, and what each of CALLERS gets for it.
TABLE: dict[str, tuple[Message, tuple[str, ...]]] = {
    "WalletService.CreateWallet": (
        pb.CreateWalletRequest(customer_id="cus_other", currency="CNY"),
        FROM_SERVICE,
    ),
    "WalletService.GetWallet": (pb.GetWalletRequest(wallet_id=WALLET), NOT_OTHERS_LIVE),
    "WalletService.GetBalance": (pb.GetBalanceRequest(wallet_id=WALLET), NOT_OTHERS_LIVE),
    "WalletService.ListWallets": (pb.ListWalletsRequest(customer_id=CUSTOMER), NOT_OTHERS),
    "WalletService.UpdateWallet": (
        pb.UpdateWalletRequest(wallet_id=WALLET, metadata={"seen": "yes"}),
        FROM_ADMIN_LIVE,
    ),
    "WalletService.Post": (post("post", **consume("0.01")), FROM_SERVICE_LIVE),
    "WalletService.BatchPost": (
        pb.BatchPostRequest(postings=[post("batch", **consume("0.01"))]),
        FROM_SERVICE_LIVE,
    ),
    "WalletService.StreamPost": (
        pb.StreamPostRequest(posting=post("stream", **consume("0.01"))),
        FROM_SERVICE_LIVE,
    ),
    "WalletService.GetPosting": (
        pb.GetPostingRequest(wallet_id=WALLET, idempotency_key="topup"),
        NOT_OTHERS_LIVE,
    ),
    "WalletService.ListIdempotencyKeys": (
        pb.ListIdempotencyKeysRequest(wallet_id=WALLET),
        NOT_OTHERS_LIVE,
    ),
    "WalletService.Hold": (HOLD, FROM_SERVICE_LIVE),
    "WalletService.GetHold": (pb.GetHoldRequest(), NOT_OTHERS_LIVE),
    "WalletService.ListHolds": (pb.ListHoldsRequest(wallet_id=WALLET), NOT_OTHERS_LIVE),
    "WalletService.SetSpendLimit": (
        limit_pb.SetSpendLimitRequest(wallet_id=WALLET, amount="90", period="day"),
        FROM_ADMIN_LIVE,
    ),
    "WalletService.ListSpendLimits": (
        limit_pb.ListSpendLimitsRequest(wallet_id=WALLET),
        NOT_OTHERS_LIVE,
    ),
    "WalletService.DeleteSpendLimit": (limit_pb.DeleteSpendLimitRequest(), FROM_ADMIN_LIVE),
    "WalletService.ExtendHold": (pb.ExtendHoldRequest(), FROM_SERVICE_LIVE),
    "WalletService.CaptureHold": (pb.CaptureHoldRequest(), FROM_SERVICE_LIVE),
    "WalletService.ReleaseHold": (pb.ReleaseHoldRequest(), FROM_SERVICE_LIVE),
    # Between wallets of two customers.
    "WalletService.Transfer": (
        pb.TransferRequest(
            idempotency_key="transfer",
            from_wallet_id=WALLET,
            to_wallet_id="wal_other",
            amount="0.01",
        ),
        FROM_SERVICE_LIVE,
    ),
    "CreditGrantService.Retrieve": (
        grants_pb.CreditGrantServiceRetrieveRequest(id=GRANT),
        NOT_OTHERS_LIVE,
    ),
    "CreditGrantService.List": (
        grants_pb.CreditGrantServiceListRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "CreditGrantService.Update": (
        grants_pb.CreditGrantServiceUpdateRequest(id=GRANT, name="New"),
        FROM_SERVICE_LIVE,
    ),
    "CreditGrantService.Void": (
        grants_pb.CreditGrantServiceVoidRequest(id=GRANT, idempotency_key="void"),
        FROM_SERVICE_LIVE,
    ),
    "CreditGrantService.Summary": (
        grants_pb.CreditGrantServiceSummaryRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "CreditGrantService.ListTransactions": (
        grants_pb.CreditGrantServiceListTransactionsRequest(id=GRANT),
        NOT_OTHERS_LIVE,
    ),
    "CreditGrantService.ListPostingGrants": (
        grants_pb.CreditGrantServiceListPostingGrantsRequest(posting_id=ids.compose("pst", 1, 1)),
        NOT_OTHERS_LIVE,
    ),
    "StatementService.Get": (
        statements_pb.StatementServiceGetRequest(wallet_id=WALLET, month="2026-09"),
        NOT_OTHERS_LIVE,
    ),
    "StatementService.Close": (
        AUGUST,
        FROM_SERVICE_LIVE,
    ),
    "StatementService.List": (
        statements_pb.StatementServiceListRequest(wallet_id=WALLET),
        NOT_OTHERS_LIVE,
    ),
    # Of the statement that the fixture closes.
    "StatementService.Retrieve": (
        statements_pb.StatementServiceRetrieveRequest(id=ids.compose("stm", 1, 1)),
        NOT_OTHERS_LIVE,
    ),
    "StatementService.Render": (
        statements_pb.StatementServiceRenderRequest(wallet_id=WALLET, month="2026-09"),
        NOT_OTHERS_LIVE,
    ),
    "StatementService.RenderClosed": (
        statements_pb.StatementServiceRenderClosedRequest(id=ids.compose("stm", 1, 1)),
        NOT_OTHERS_LIVE,
    ),
    "CreditTransactionService.Retrieve": (
        transactions_pb.CreditTransactionServiceRetrieveRequest(id=ids.compose("ct", 1, 1)),
        NOT_OTHERS_LIVE,
    ),
    "CreditTransactionService.List": (
        transactions_pb.CreditTransactionServiceListRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "CreditTransactionService.Summary": (
        transactions_pb.CreditTransactionServiceSummaryRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "CreditTransactionService.Export": (
        transactions_pb.CreditTransactionServiceExportRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    # Of the export that the fixture writes down.
    "CreditTransactionService.RetrieveExport": (
        transactions_pb.CreditTransactionServiceRetrieveExportRequest(id="exp_acme"),
        NOT_OTHERS_LIVE,
    ),
    "CreditTransactionService.Watch": (
        transactions_pb.CreditTransactionServiceWatchRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "CreditTransactionService.WatchEvents": (
        transactions_pb.CreditTransactionServiceWatchEventsRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "BillingService.ListTransactions": (billing_pb.ListTransactionsRequest(), CUSTOMERS),
    "BillingService.ExportTransactions": (billing_pb.ExportTransactionsRequest(), CUSTOMERS),
    "BillingService.GetMyUsage": (billing_pb.GetMyUsageRequest(), CUSTOMERS),
    "BillingService.GetMyAccount": (billing_pb.GetMyAccountRequest(), CUSTOMERS),
    "BillingService.GetMyBalance": (billing_pb.GetMyBalanceRequest(), CUSTOMERS),
    "BillingService.ListApiKeyBills": (
        billing_pb.ListApiKeyBillsRequest(
            cycle_type="Day",
            start_time=START // 1000 - 86_400,
            end_time=START // 1000,
        ),
        CUSTOMERS,
    ),
    "RegistryService.CreateCustomer": (
        registry_pb.CreateCustomerRequest(name="New", email="new@example.com"),
        FROM_SERVICE,
    ),
    "RegistryService.GetCustomer": (
        registry_pb.GetCustomerRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "RegistryService.UpdateCustomer": (
        registry_pb.UpdateCustomerRequest(customer_id=CUSTOMER, name="Acme Ltd"),
        FROM_SERVICE_SHARED,
    ),
    "RegistryService.ArchiveCustomer": (
        registry_pb.ArchiveCustomerRequest(customer_id="cus_archived"),
        FROM_SERVICE_SHARED,
    ),
    "RegistryService.UnarchiveCustomer": (
        registry_pb.UnarchiveCustomerRequest(customer_id="cus_archived"),
        FROM_SERVICE_SHARED,
    ),
    "RegistryService.ListCustomers": (registry_pb.ListCustomersRequest(), EVERYBODY),
    "RegistryService.CreateMeter": (
        registry_pb.CreateMeterRequest(id="mtr_new", name="New", event_name="new", unit="call"),
        FROM_SERVICE,
    ),
    "RegistryService.GetMeter": (registry_pb.GetMeterRequest(meter_id="mtr_tokens"), EVERYBODY),
    "RegistryService.ListMeters": (registry_pb.ListMetersRequest(), EVERYBODY),
    "RegistryService.CreateSubscription": (
        registry_pb.CreateSubscriptionRequest(customer_id=CUSTOMER, name="Pro"),
        FROM_SERVICE,
    ),
    "RegistryService.GetSubscription": (
        registry_pb.GetSubscriptionRequest(subscription_id="sub_pro"),
        NOT_OTHERS,
    ),
    "RegistryService.ListSubscriptions": (
        registry_pb.ListSubscriptionsRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "RegistryService.CreateCurrency": (
        registry_pb.CreateCurrencyRequest(id="EUR", scale=4, name="Euro"),
        FROM_ADMIN_SHARED,
    ),
    "RegistryService.GetCurrency": (registry_pb.GetCurrencyRequest(currency_id="USD"), EVERYBODY),
    "RegistryService.ListCurrencies": (registry_pb.ListCurrenciesRequest(), EVERYBODY),
    "PaymentKitService.CreateMeter": (METER, FROM_SERVICE),
    "PaymentKitService.GetMeter": (
        kit_pb.PaymentKitServiceGetMeterRequest(id="mtr_tokens"),
        EVERYBODY,
    ),
    "PaymentKitService.ListMeters": (kit_pb.PaymentKitServiceListMetersRequest(), EVERYBODY),
    "PaymentKitService.UpdateMeter": (
        kit_pb.PaymentKitServiceUpdateMeterRequest(id="mtr_tokens", name="All tokens"),
        FROM_SERVICE_SHARED,
    ),
    "PaymentKitService.ActivateMeter": (
        kit_pb.PaymentKitServiceActivateMeterRequest(id="mtr_tokens"),
        FROM_SERVICE_SHARED,
    ),
    "PaymentKitService.DeactivateMeter": (
        kit_pb.PaymentKitServiceDeactivateMeterRequest(id="mtr_tokens"),
        FROM_SERVICE_SHARED,
    ),
    "PaymentKitService.CreateMeterEvent": (EVENT, FROM_SERVICE),
    # Of the event that the fixture reports.
    "PaymentKitService.GetMeterEvent": (
        kit_pb.PaymentKitServiceGetMeterEventRequest(),
        NOT_OTHERS_LIVE,
    ),
    "PaymentKitService.CancelMeterEvent": (
        kit_pb.PaymentKitServiceCancelMeterEventRequest(),
        FROM_SERVICE_LIVE,
    ),
    "PaymentKitService.ListMeterEvents": (
        kit_pb.PaymentKitServiceListMeterEventsRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "PaymentKitService.GetMeterEventStats": (
        kit_pb.PaymentKitServiceGetMeterEventStatsRequest(
            meter_id="mtr_tokens",
            start=START // 1000 - 86_400,
            end=START // 1000,
            customer_id=CUSTOMER,
        ),
        NOT_OTHERS,
    ),
    "PaymentKitService.GetPendingAmount": (
        kit_pb.PaymentKitServiceGetPendingAmountRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "PaymentKitService.CreateGrant": (
        kit_pb.PaymentKitServiceCreateGrantRequest(
            amount="1", currency_id="USD", customer_id=CUSTOMER, category="paid"
        ),
        FROM_SERVICE,
    ),
    "PaymentKitService.GetGrant": (
        kit_pb.PaymentKitServiceGetGrantRequest(id=ids.compose("cg", 1, 1)),
        NOT_OTHERS_LIVE,
    ),
    "PaymentKitService.ListGrants": (
        kit_pb.PaymentKitServiceListGrantsRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "PaymentKitService.UpdateGrant": (
        kit_pb.PaymentKitServiceUpdateGrantRequest(
            id=ids.compose("cg", 1, 1), metadata={"seen": "yes"}
        ),
        FROM_SERVICE_LIVE,
    ),
    "PaymentKitService.GetGrantSummary": (
        kit_pb.PaymentKitServiceGetGrantSummaryRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "PaymentKitService.ListGrantHolders": (
        kit_pb.PaymentKitServiceListGrantHoldersRequest(currency_id="USD"),
        FROM_SERVICE,
    ),
    "PaymentKitService.GetGrantStats": (
        kit_pb.PaymentKitServiceGetGrantStatsRequest(
            currency_id="USD", start_date=0, end_date=86_400
        ),
        FROM_SERVICE,
    ),
    "PaymentKitService.GetGrantAvailability": (
        kit_pb.PaymentKitServiceGetGrantAvailabilityRequest(
            customer_id=CUSTOMER, currency_id="USD"
        ),
        NOT_OTHERS,
    ),
    "ApiKeyService.CreateApiKey": (
        keys_pb.CreateApiKeyRequest(name="New", scope="service"),
        FROM_ADMIN,
    ),
    "OperatorService.Overview": (operator_pb.OverviewRequest(), FROM_SERVICE),
    "OperatorService.Reconcile": (
        operator_pb.ReconcileRequest(
            file=b"id,created,amount,currency\nch_1,1790000000,1,usd\n",
        ),
        FROM_SERVICE,
    ),
    "OperatorService.RecordVerification": (
        operator_pb.RecordVerificationRequest(),
        FROM_ADMIN_SHARED,
    ),
    "ClockService.GetClock": (clock_pb.GetClockRequest(), FROM_ADMIN),
    "ClockService.AcceptClock": (clock_pb.AcceptClockRequest(), FROM_ADMIN_SHARED),
    "ApiKeyService.ListApiKeys": (keys_pb.ListApiKeysRequest(), FROM_ADMIN),
    "ApiKeyService.GetCurrentApiKey": (
        keys_pb.GetCurrentApiKeyRequest(),
        (*(OK,) * 7, HIDDEN),
    ),
    # Of the key that the fixture makes for it.
    "ApiKeyService.RevokeApiKey": (keys_pb.RevokeApiKeyRequest(id="apk_spare"), FROM_ADMIN_LIVE),
    # Of a key that is made for each call.
    "ApiKeyService.RotateApiKey": (keys_pb.RotateApiKeyRequest(), FROM_ADMIN_LIVE),
    "ApiKeyService.CreateSessionCode": (
        keys_pb.CreateSessionCodeRequest(scope="service"),
        FROM_ADMIN,
    ),
    # With a code that is made for each call.
    "ApiKeyService.OpenSession": (keys_pb.OpenSessionRequest(), EVERYBODY),
    "WebhookService.CreateWebhookEndpoint": (
        hooks_pb.CreateWebhookEndpointRequest(
            url="https://acme.invalid/", customer_id=CUSTOMER, events=["hold.expired"]
        ),
        FROM_SERVICE,
    ),
    # Of the endpoint that the fixture makes, or of one that is made to be deleted.
    "WebhookService.GetWebhookEndpoint": (hooks_pb.GetWebhookEndpointRequest(), NOT_OTHERS_LIVE),
    "WebhookService.ListWebhookEndpoints": (
        hooks_pb.ListWebhookEndpointsRequest(customer_id=CUSTOMER),
        NOT_OTHERS,
    ),
    "WebhookService.UpdateWebhookEndpoint": (
        hooks_pb.UpdateWebhookEndpointRequest(description="New"),
        FROM_SERVICE_LIVE,
    ),
    "WebhookService.DeleteWebhookEndpoint": (
        hooks_pb.DeleteWebhookEndpointRequest(),
        FROM_SERVICE_LIVE,
    ),
    "WebhookService.RotateWebhookSecret": (
        hooks_pb.RotateWebhookSecretRequest(),
        FROM_SERVICE_LIVE,
    ),
    # The server has no key that seals, so who may call it is told so.
    "WebhookService.SealWebhookSecrets": (
        hooks_pb.SealWebhookSecretsRequest(),
        (DENIED, DENIED, DENIED, DENIED, DENIED, HIDDEN, OTHER_MODE, HIDDEN),
    ),
    "WebhookService.ListWebhookDeliveries": (
        hooks_pb.ListWebhookDeliveriesRequest(),
        NOT_OTHERS_LIVE,
    ),
    "WebhookService.GetWebhookDelivery": (hooks_pb.GetWebhookDeliveryRequest(), NOT_OTHERS_LIVE),
    "WebhookService.ReplayWebhookDelivery": (
        hooks_pb.ReplayWebhookDeliveryRequest(),
        FROM_SERVICE_LIVE,
    ),
    "WebhookService.ReplayWebhookDeliveries": (
        hooks_pb.ReplayWebhookDeliveriesRequest(status="failed"),
        FROM_SERVICE_LIVE,
    ),
}


def methods() -> dict[str, MethodDescriptor]:
    """Every RPC of our services, by its name."""
    found = (descriptor_pool.Default().FindServiceByName(name) for name in server.SERVICES)
    return {f"{one.name}.{method.name}": method for one in found for method in one.methods}


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """A server with things of cus_acme and of another customer, and everybody who may call."""

    api: Api
    callers: dict[str, Metadata]
    spare: str  #: Id of a live key that nobody uses.
    hold: str  #: Id of a hold of cus_acme.
    event: str  #: Id of a meter event of cus_acme.
    hook: str  #: Id of a webhook endpoint of cus_acme.
    delivery: str  #: Id of a delivery to it.

    async def call(self, name: str, caller: str) -> tuple[str, Message | None]:
        """What became of one RPC of TABLE: OK or the reason, and the answer."""
        method, request = methods()[name], TABLE[name][0]
        if isinstance(request, keys_pb.RevokeApiKeyRequest):
            request = keys_pb.RevokeApiKeyRequest(id=self.spare)
        elif isinstance(request, keys_pb.RotateApiKeyRequest):
            request = type(request)(id=(await self.api.local.new_key("service")).api_key.id)
        elif isinstance(request, keys_pb.OpenSessionRequest):
            wanted = keys_pb.CreateSessionCodeRequest(scope="service")
            request = type(request)(code=(await self.api.local.keys.CreateSessionCode(wanted)).code)
        elif isinstance(
            request,
            kit_pb.PaymentKitServiceGetMeterEventRequest
            | kit_pb.PaymentKitServiceCancelMeterEventRequest,
        ):
            request = type(request)(id=self.event)
        elif isinstance(request, limit_pb.DeleteSpendLimitRequest):
            made = limit_pb.SetSpendLimitRequest(wallet_id=WALLET, amount="90", period="week")
            limit = await self.api.local.wallets.SetSpendLimit(made)
            request = type(request)(wallet_id=WALLET, spend_limit_id=limit.id)
        elif isinstance(request, OF_A_HOOK):
            request.id = self.hook
            if isinstance(request, hooks_pb.DeleteWebhookEndpointRequest):
                request.id = (await new_hook(self.api)).webhook_endpoint.id
        elif isinstance(request, OF_A_DELIVERY):
            request.id = self.delivery
        elif isinstance(request, OF_A_HOLD):
            request = type(request)(hold_id=self.hold)
            if not isinstance(request, pb.GetHoldRequest):
                request.idempotency_key = name
            if isinstance(request, pb.CaptureHoldRequest):
                request.amount = "0.1"
            if isinstance(request, pb.ExtendHoldRequest):
                request.ttl_seconds = 3_600
        services = self.api.local if caller == "socket" else self.api
        path = f"/{method.containing_service.full_name}/{method.name}"
        metadata = self.callers[caller]
        read = GetMessageClass(method.output_type).FromString
        send = type(request).SerializeToString
        try:
            if method.client_streaming:
                stream: Any = services.channel.stream_stream(path, send, read)
                answer = await stream(iter([request]), metadata=metadata).read()
            elif method.server_streaming:
                told_in_pieces: Any = services.channel.unary_stream(path, send, read)
                answer = await told_in_pieces(request, metadata=metadata).read()
            else:
                unary: Any = services.channel.unary_unary(path, send, read)
                answer = await unary(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if method.client_streaming and error.details() == "Internal error from Core":
                # So says gRPC's own client of a stream that was refused while it sent.
                return await self.call(name, caller)
            return (await refused(_failing(error))).reason, None
        # A refusal of one posting of several is an answer.
        told: str | Refused = OK
        if isinstance(answer, pb.BatchPostResponse):
            told = fate(answer.results[0])
        elif isinstance(answer, pb.StreamPostResponse):
            told = fate(answer.result)
        return (told.reason if isinstance(told, Refused) else OK), answer


async def _failing(error: grpc.aio.AioRpcError) -> None:
    raise error


@pytest.fixture
async def world(database_url: str, clock: Clock) -> AsyncIterator[World]:
    """A server and everybody who may call it."""
    async with serve(database_url, clock, webhook_connections=1) as api:
        local = api.local
        await local.new_wallet("wal_other", "cus_other")
        await api.post("topup", **grant("10"))
        await api.post("topup", "wal_other", **grant("20"))
        await local.registry.CreateMeter(
            registry_pb.CreateMeterRequest(
                id="mtr_tokens", name="Tokens", event_name="tokens", unit="token"
            )
        )
        await local.kit.CreateMeter(METER)
        await local.registry.CreateCustomer(
            registry_pb.CreateCustomerRequest(id="cus_archived", name="A", email="a@example.com")
        )
        await local.registry.CreateSubscription(
            registry_pb.CreateSubscriptionRequest(id="sub_pro", customer_id=CUSTOMER, name="Pro")
        )
        await StatementServiceStub(local.channel).Close(AUGUST)
        change(database_url, lambda connection: finished_exports.add(connection, EXPORTED))
        revoked = await local.new_key("admin")
        await local.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=revoked.api_key.id))
        expired = await local.key("admin", expires_at=time.text(START + 1))
        clock.advance(1)
        hook = (await new_hook(api)).webhook_endpoint.id
        yield World(
            api,
            {
                "none": (),
                "empty": (("authorization", ""), ("x-api-key", "")),
                "malformed": bearer("sk-short"),
                "no scheme": (("authorization", api.admin[0][1].removeprefix("Bearer ")),),
                "unknown": bearer("sk-" + "0" * 43),
                "revoked": bearer(revoked.secret),
                "expired": expired,
                "two different": (*api.admin, *api.service),
                "customer": api.customer,
                "another customer": await local.key("customer", "cus_other"),
                "customer test": await local.key("customer", CUSTOMER, livemode=False),
                "service": api.service,
                "service test": await local.key("service", livemode=False),
                "admin": api.admin,
                "admin test": await local.key("admin", livemode=False),
                "socket": (),
            },
            (await local.new_key("service")).api_key.id,
            (await api.wallets.Hold(HOLD, metadata=api.service)).hold.id,
            (await api.kit.CreateMeterEvent(EVENT, metadata=api.service)).id,
            hook,
            await delivered(api, hook),
        )


async def new_hook(api: Api) -> hooks_pb.CreateWebhookEndpointResponse:
    """A webhook endpoint of cus_acme that nobody answers at."""
    new = hooks_pb.CreateWebhookEndpointRequest(
        url="https://acme.invalid/", customer_id=CUSTOMER, events=["transaction.created"]
    )
    return await api.webhooks.CreateWebhookEndpoint(new, metadata=api.service)


async def delivered(api: Api, hook: str) -> str:
    """Id of the first delivery to the endpoint, as soon as there is one."""
    wanted = hooks_pb.ListWebhookDeliveriesRequest(id=hook)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            log = await api.webhooks.ListWebhookDeliveries(wanted, metadata=api.service)
            if log.webhook_deliveries:
                return log.webhook_deliveries[-1].id


def test_every_rpc_is_in_the_table() -> None:
    """A new RPC is not served to anybody before it is said who may call it."""
    assert TABLE.keys() == methods().keys()
    assert {len(outcomes) for _, outcomes in TABLE.values()} == {len(CALLERS)}


@in_turn("caller", STRANGERS)
async def test_who_is_nobody_may_nothing(world: World, caller: str) -> None:
    """Without one good credential every RPC that needs one is refused, and nothing is posted."""
    before = await world.api.wallet_now()

    got = {name: (await world.call(name, caller))[0] for name in TABLE}

    expected = {name: OK if name in NEEDS_NO_KEY else STRANGERS[caller] for name in TABLE}
    assert got == expected
    assert before == await world.api.wallet_now()


async def test_a_stream_is_refused_before_its_first_posting(world: World) -> None:
    """Who has no right to post is told so at once, not after sending."""
    for caller, reason in (("none", "KEY_MISSING"), ("customer", DENIED)):
        stream = world.api.wallets.StreamPost(metadata=world.callers[caller])

        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await refused(stream.read()) == Refused(reason)


@pytest.mark.parametrize("caller", CALLERS)
async def test_who_may_what(world: World, caller: str) -> None:
    """Every RPC of the table answers each kind of caller as its row says."""
    expected = {name: row[1][CALLERS.index(caller)] for name, row in TABLE.items()}

    got = {name: (await world.call(name, caller))[0] for name in TABLE}

    assert got == expected


def test_only_live_keys_change_what_both_modes_share() -> None:
    """No RPC changes a customer, subscription, meter or currency for the key of a test."""
    creates_or_reads = ("Create", "Get", "List")
    changes = {
        name
        for name in TABLE
        if (name.startswith("RegistryService.") or name.endswith("Meter"))
        and not name.partition(".")[2].startswith(creates_or_reads)
    }

    assert {TABLE[name][1] for name in changes} == {FROM_SERVICE_SHARED}
    assert TABLE["RegistryService.CreateCurrency"][1] == FROM_ADMIN_SHARED


@pytest.mark.parametrize("caller", ["another customer", "customer test", "admin test"])
async def test_nothing_leaks_to_others(world: World, caller: str) -> None:
    """Whatever else they are answered, cus_acme's live wallet and its rows are not in it."""
    told = [await world.call(name, caller) for name in TABLE]

    # A refusal repeats what the caller said.
    shown = b"".join(one.SerializeToString() for code, one in told if code == OK and one)
    assert WALLET.encode() not in shown
    assert ids.compose("ct", 1, 1).encode() not in shown
    assert caller != "another customer" or CUSTOMER.encode() not in shown


async def test_lists_without_a_filter_are_a_customers_own(world: World) -> None:
    """What a customer key lists is its customer's, though it names nobody."""
    customer, api = world.callers["another customer"], world.api
    wallets = await api.wallets.ListWallets(pb.ListWalletsRequest(), metadata=customer)
    rows = await api.transactions.List(
        transactions_pb.CreditTransactionServiceListRequest(), metadata=customer
    )
    summary = await api.transactions.Summary(
        transactions_pb.CreditTransactionServiceSummaryRequest(), metadata=customer
    )
    items = await api.billing.ListTransactions(
        billing_pb.ListTransactionsRequest(), metadata=customer
    )
    customers = await api.registry.ListCustomers(
        registry_pb.ListCustomersRequest(), metadata=customer
    )
    subscriptions = await api.registry.ListSubscriptions(
        registry_pb.ListSubscriptionsRequest(), metadata=customer
    )

    assert [one.id for one in wallets.wallets] == ["wal_other"]
    assert [one.wallet_id for one in rows.list] == ["wal_other"]
    assert summary.transaction_count == 0
    assert [one.amount_usd for one in items.items] == [20]
    assert [one.id for one in customers.customers] == ["cus_other"]
    assert list(subscriptions.subscriptions) == []


async def test_force_is_for_admins(world: World) -> None:
    """A forced debit needs an admin key, whatever else is wrong with it; a debit does not."""
    api = world.api

    async def attempt(caller: str, wallet_id: str = WALLET) -> str | Refused:
        request = post(f"force {caller}", wallet_id, **adjust("-0.01", force=True))
        services = api.local if caller == "socket" else api
        call = services.wallets.BatchPost(
            pb.BatchPostRequest(postings=[request]), metadata=world.callers[caller]
        )
        return fate((await call).results[0])

    assert await attempt("service") == await attempt("service", "wal_none") == Refused(DENIED)
    assert isinstance(await attempt("admin"), str)
    assert isinstance(await attempt("socket"), str)
    call = api.wallets.Post(post("force", **adjust("-0.01", force=True)), metadata=api.service)
    assert await refused(call) == Refused(DENIED)
    await api.post("debit", **adjust("-0.01"))


async def test_more_that_is_for_admins(world: World) -> None:
    """A wallet that may be overdrawn, and a posting further back than the 35 days."""
    api = world.api
    limited = pb.CreateWalletRequest(customer_id=CUSTOMER, currency="CNY", overdraft_limit="1")
    old = post("old", effective_at=time.text(START - 36 * time.DAY), **consume("0.01"))

    refusals = [
        await refused(api.wallets.CreateWallet(limited, metadata=api.service)),
        await refused(api.wallets.Post(old, metadata=api.service)),
    ]
    made = await api.wallets.CreateWallet(limited, metadata=api.admin)
    await api.wallets.Post(old, metadata=api.admin)

    assert refusals == [Refused(DENIED), Refused("INVALID_FIELD", "effective_at")]
    assert made.overdraft_limit == "1.00"


async def test_health_and_reflection_need_no_key(world: World) -> None:
    """Balancers and people with grpcurl ask them before they have a key."""
    health: Any = health_pb2_grpc.HealthStub(world.api.channel)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(world.api.channel)  # type: ignore[arg-type] # made for aio too
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    checked = await health.Check(health_pb2.HealthCheckRequest())
    (listed,) = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]

    assert checked.status == health_pb2.HealthCheckResponse.SERVING
    assert listed.list_services_response.service


# --- the order of checks --------------------------------------------------------------------------


async def test_checks_come_in_their_order(world: World) -> None:
    """Of a request with every fault the first is told, then, that one mended, the next.

    Key, scope, shape, wallet, the amount's digits (its wallet says how many), replay,
    expected_sequence, the wallet's state, references, the operation, credit.
    """
    api = world.api
    await api.post("taken", **grant("1"))
    sequence = (await api.wallet_now()).sequence
    call: dict[str, Any] = {"amount": "1e3", "meter_id": "mtr_none"}
    fields: dict[str, Any] = {
        "wallet_id": "wal_none",
        "idempotency_key": "taken",
        "expected_sequence": 999,
        "effective_at": time.text(START + time.DAY),
    }
    callers = ["none", "unknown", "customer", "service"]
    status = "frozen"

    async def told() -> Refused:
        change = pb.UpdateWalletRequest(wallet_id=WALLET, status=status)
        await api.wallets.UpdateWallet(change, metadata=api.admin)
        request = pb.PostRequest(consumption=pb.ConsumptionOperation(**call), **fields)
        metadata = world.callers[callers[0]]
        refusal = await refused(api.wallets.Post(request, metadata=metadata))
        return Refused(refusal.reason, refusal.param)

    seen: list[Refused] = []
    while len(callers) > 1:
        seen.append(await told())
        callers.pop(0)
    seen.append(await told())
    call["amount"] = "1000.0000000001"
    seen.append(await told())
    fields["wallet_id"] = WALLET
    seen.append(await told())
    call["amount"] = "1000.000000001"
    seen.append(await told())
    fields["idempotency_key"] = "free"
    seen.append(await told())
    fields["expected_sequence"] = sequence
    seen.append(await told())
    status = "active"
    seen.append(await told())
    call["meter_id"] = "mtr_tokens"
    seen.append(await told())
    fields["effective_at"] = time.text(START)
    seen.append(await told())

    assert seen == [
        Refused("KEY_MISSING"),
        Refused("KEY_INVALID"),
        Refused("SCOPE_DENIED"),
        Refused("INVALID_FIELD", "consumption.amount"),
        Refused("NOT_FOUND", "wallet_id"),
        Refused("INVALID_FIELD", "consumption.amount"),
        Refused("IDEMPOTENCY_KEY_REUSED", "idempotency_key"),
        Refused("SEQUENCE_MISMATCH", "expected_sequence"),
        Refused("WALLET_FROZEN"),
        Refused("NOT_FOUND", "consumption.meter_id"),
        Refused("INVALID_FIELD", "effective_at"),
        Refused("INSUFFICIENT_CREDIT"),
    ]


# --- the end of a key -----------------------------------------------------------------------------


async def test_a_revocation_holds_at_once(world: World) -> None:
    """The very next call is refused, and so is the next posting of a stream that is open."""
    api = world.api
    made = await api.local.new_key("service")
    metadata = bearer(made.secret)
    stream = api.wallets.StreamPost(metadata=metadata)
    await stream.write(pb.StreamPostRequest(posting=post("before", **consume("0.01"))))
    before: Any = await stream.read()

    await api.local.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=made.api_key.id))
    unary = api.wallets.Post(post("after", **consume("0.01")), metadata=metadata)
    await stream.write(pb.StreamPostRequest(posting=post("after", **consume("0.01"))))

    assert isinstance(fate(before.result), str)
    assert await refused(unary) == Refused("KEY_INVALID")
    assert await refused(stream.read()) == Refused("KEY_INVALID")
    assert await api.found("after") is None


async def test_a_revocation_elsewhere_holds_within_two_seconds(
    world: World, database_url: str, clock: Clock
) -> None:
    """What another process wrote of a key is known here two seconds after its last reading."""
    api = world.api
    made = await api.local.new_key("service")
    request = pb.GetWalletRequest(wallet_id=WALLET)
    metadata = bearer(made.secret)
    await api.wallets.GetWallet(request, metadata=metadata)
    change(database_url, lambda c: records.revoke_api_key(c, made.api_key.id, now=clock.now))

    clock.advance(2_000)

    assert await refused(api.wallets.GetWallet(request, metadata=metadata)) == (
        Refused("KEY_INVALID")
    )


async def test_a_key_ends_on_time(world: World, clock: Clock) -> None:
    """A key that was good a moment ago is refused from the millisecond it expires at."""
    api = world.api
    ends = clock.now + 500
    metadata = await api.local.key("service", expires_at=time.text(ends))
    request = pb.GetWalletRequest(wallet_id=WALLET)

    clock.now = ends - 1
    await api.wallets.GetWallet(request, metadata=metadata)
    clock.now = ends

    assert await refused(api.wallets.GetWallet(request, metadata=metadata)) == (
        Refused("KEY_INVALID")
    )


# --- secrets --------------------------------------------------------------------------------------


async def test_secrets_are_nowhere(database_url: str, tmp_path: Path) -> None:
    """Neither the log of a real server, nor an error, nor anything of the database holds one.

    Not even of calls that are refused for them; ids of keys are in the log and in the database.
    """
    errors = []
    async with process(database_url, tmp_path / "log", "--log-level", "debug") as served:
        async with served.local() as local, served.connected() as network:
            await local.new_wallet(WALLET, CUSTOMER)
            made = [await local.new_key(scope) for scope in ("admin", "service", "service")]
            made.append(await local.new_key("customer", CUSTOMER))
            await local.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=made[2].api_key.id))
            secrets = [one.secret for one in made]
            forged = "sk-" + "forged" * 7
            attempts: list[Metadata] = [
                *map(bearer, secrets),
                bearer(forged),
                (("authorization", secrets[0]),),
                (("authorization", f"Basic {secrets[0]}"),),
                (("x-api-key", f"Bearer {secrets[0]}"),),
                bearer(f"{secrets[0]} x"),
                (*bearer(secrets[0]), ("x-api-key", secrets[1])),
                (*bearer(secrets[0]), ("x-request-id", secrets[1] + " x")),
            ]
            for n, metadata in enumerate(attempts):
                request = post(f"key {n}", **grant("1"))
                for call in (
                    network.wallets.Post(request, metadata=metadata),
                    network.wallets.GetWallet(pb.GetWalletRequest(), metadata=metadata),
                ):
                    try:
                        await call
                    except grpc.aio.AioRpcError as error:
                        errors.append(repr((error.details(), error.trailing_metadata())))
            running = await contents(database_url)
        served.process.terminate()
        assert await served.ended() == 0
    stopped = await contents(database_url)
    log = (tmp_path / "log").read_text()

    assert len(errors) >= len(attempts)
    places = [log, "".join(errors), running, stopped]
    found = [
        [secret[len("sk-") : len("sk-") + 20] in place for place in places]
        for secret in (*secrets, forged)
    ]
    assert found == [[False] * 4] * 5
    # One that was posted with is seen where it should be.
    used = made[1].api_key.id
    assert [used in place for place in places] == [True, False, True, True]


# --- where it listens -----------------------------------------------------------------------------


async def test_the_socket_is_its_owners(world: World, database_url: str) -> None:
    """Who can open the socket is an admin of both modes; so only its owner can: mode 0600.

    Its folder is the database's or, where that has none, one that nobody else may enter.
    """
    path = world.api.server.local_socket
    before = os.umask(0o077)
    os.umask(before)

    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if not is_file(database_url):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # Making it left the process as it was.
    assert before != 0o177


@pytest.mark.only("sqlite")
async def test_a_socket_elsewhere_is_its_owners_too(
    new_database: Callable[[], str], clock: Clock, tmp_path: Path
) -> None:
    """Where the database's path is too long for a socket, it lies in a folder of mode 0700.

    Without a file to lie beside it always does, in a folder of the process alone: see above.
    """
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    database = file_of(new_database()).rename(folder / "credit.db")
    async with serve(f"sqlite+aiosqlite:///{database}", clock) as api:
        path = api.server.local_socket
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)]

    assert path.parent != folder
    assert modes == [0o600, 0o700]
    assert not path.exists()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
async def test_a_network_is_not_served_by_accident(
    database_url: str, clock: Clock, address: str
) -> None:
    """Without TLS the server refuses an address that others can reach, unless told by name."""
    config = Config(database_url=database_url, grpc_address=address)
    refusing = server.Server(config, clock=clock)

    with pytest.raises(WrongSetting, match=r"CREDITLEDGER_GRPC_ADDRESS .*ALLOW_INSECURE_BIND"):
        await refusing.start()

    assert not refusing.local_socket.is_socket()
    told = Config(database_url=database_url, grpc_address=address, allow_insecure_bind=True)
    told.require_safe_bind("grpc_address")
