"""The services of the contract, by the names that clients have them under."""

from __future__ import annotations

from typing import Any

from credit.v1 import (
    api_key_service_pb2_grpc,
    billing_service_pb2_grpc,
    clock_service_pb2_grpc,
    credit_grant_service_pb2_grpc,
    credit_transaction_service_pb2_grpc,
    operator_service_pb2_grpc,
    payment_kit_service_pb2_grpc,
    registry_service_pb2_grpc,
    statement_service_pb2_grpc,
    wallet_service_pb2_grpc,
    webhook_service_pb2_grpc,
)

_STUBS: dict[str, Any] = {
    "api_keys": api_key_service_pb2_grpc.ApiKeyServiceStub,
    "billing": billing_service_pb2_grpc.BillingServiceStub,
    "clock": clock_service_pb2_grpc.ClockServiceStub,
    "grants": credit_grant_service_pb2_grpc.CreditGrantServiceStub,
    "operators": operator_service_pb2_grpc.OperatorServiceStub,
    "payment_kit": payment_kit_service_pb2_grpc.PaymentKitServiceStub,
    "registry": registry_service_pb2_grpc.RegistryServiceStub,
    "statements": statement_service_pb2_grpc.StatementServiceStub,
    "transactions": credit_transaction_service_pb2_grpc.CreditTransactionServiceStub,
    "wallets": wallet_service_pb2_grpc.WalletServiceStub,
    "webhooks": webhook_service_pb2_grpc.WebhookServiceStub,
}


def add_stubs(client: object, channel: Any) -> None:
    """Give the client a stub of each service, upon a channel."""
    for name, stub in _STUBS.items():
        setattr(client, name, stub(channel))
