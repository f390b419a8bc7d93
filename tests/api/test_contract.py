"""The contract keeps its rules: lint, fresh generation, JSON names, comments, the list of errors.

Read from the protos themselves, compiled here with their comments, so that no rule is met in gen/
alone.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DESCRIPTOR_SET = ROOT / "gen" / "credit" / "v1" / "descriptor.binpb"

#: Messages of the published API whose names are camelCase.
CAMEL_CASE = {"ListApiKeyBillsRequest", "ListApiKeyBillsResponse", "ApiKeyBill"}
#: The published APIs spell these their own way: (message, field) -> JSON name.
SPELLED_OTHERWISE = {
    ("CreditTransaction", "credit_grant"): "creditGrant",
    ("CreditTransaction", "payment_currency"): "paymentCurrency",
    ("CreditTransaction", "meter_event"): "meterEvent",
    ("CreditTransactionServiceListRequest", "page_size"): "pageSize",
    ("CreditTransactionPaging", "page_size"): "pageSize",
    ("ApiKeyBill", "owner_id"): "ownerID",
    ("CreditMeter", "payment_currency"): "paymentCurrency",
    ("CreditMeterEvent", "payment_currency"): "paymentCurrency",
    ("PaymentKitServiceListMetersRequest", "page_size"): "pageSize",
    ("PaymentKitServiceListMeterEventsRequest", "page_size"): "pageSize",
    ("PaymentKitGrant", "payment_currency"): "paymentCurrency",
    ("PaymentKitServiceListGrantsRequest", "page_size"): "pageSize",
    ("PaymentKitPaging", "page_size"): "pageSize",
    ("PaymentKitServiceListGrantHoldersRequest", "page_size"): "pageSize",
    ("GrantHolder", "grant_count"): "grantCount",
    ("GrantHoldersPaging", "page_size"): "pageSize",
    ("GrantHoldersPaging", "total_pages"): "totalPages",
}
REASONS = (
    "INVALID_FIELD",
    "MISSING_FIELD",
    "UNKNOWN_PARAMETER",
    "UNKNOWN_PATH",
    "BODY_TOO_LARGE",
    "RESULT_TOO_LARGE",
    "QUERY_TOO_BROAD",
    "KEY_MISSING",
    "KEY_INVALID",
    "SCOPE_DENIED",
    "CUSTOMER_KEY_REQUIRED",
    "MODE_MISMATCH",
    "NOT_FOUND",
    "ID_TAKEN",
    "IDEMPOTENCY_KEY_REUSED",
    "SEQUENCE_MISMATCH",
    "CONFLICT",
    "INSUFFICIENT_CREDIT",
    "WALLET_FROZEN",
    "WALLET_CLOSED",
    "NOT_REFUNDABLE",
    "REFUND_TOO_LARGE",
    "OUT_OF_RANGE",
    "OVERLOADED",
    "RATE_LIMITED",
    "UNAVAILABLE",
    "OUTCOME_UNKNOWN",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
    "HOLD_EXPIRED",
    "HOLD_ENDED",
    "CAPTURE_TOO_LARGE",
    "METER_INACTIVE",
    "SPEND_LIMIT_EXCEEDED",
    "GRANT_VOIDED",
    "GRANT_EXPIRED",
    "PERIOD_NOT_NEXT",
    "RECEIPT_USED",
    "CLOCK_IMPLAUSIBLE",
)
ROUTES = {
    "CreditTransactionService.Retrieve": "get /api/credit-transactions/{id}",
    "CreditTransactionService.List": "get /api/credit-transactions",
    "CreditTransactionService.Summary": "get /api/credit-transactions/summary",
    "ClockService.GetClock": "get /v1/clock",
    "ClockService.AcceptClock": "post /v1/clock:accept *",
    "CreditGrantService.Retrieve": "get /v1/credit-grants/{id}",
    "CreditGrantService.List": "get /v1/credit-grants",
    "CreditGrantService.Update": "patch /v1/credit-grants/{id} *",
    "CreditGrantService.Void": "post /v1/credit-grants/{id}:void *",
    "CreditGrantService.Summary": "get /v1/credit-grants/summary",
    "CreditGrantService.ListTransactions": "get /v1/credit-grants/{id}/transactions",
    "CreditGrantService.ListPostingGrants": "get /v1/postings/{posting_id}/grants",
    "CreditTransactionService.Export": "get /api/credit-transactions:export",
    "CreditTransactionService.RetrieveExport": "get /v1/exports/{id}",
    "CreditTransactionService.Watch": "",
    "CreditTransactionService.WatchEvents": "get /api/credit-transactions:watch",
    "WalletService.CreateWallet": "post /v1/wallets *",
    "WalletService.GetWallet": "get /v1/wallets/{wallet_id}",
    "WalletService.ListWallets": "get /v1/wallets",
    "WalletService.UpdateWallet": "patch /v1/wallets/{wallet_id} *",
    "WalletService.Post": "post /v1/wallets/{wallet_id}/postings *",
    "WalletService.BatchPost": "post /v1/postings:batch *",
    "WalletService.StreamPost": "",
    "WalletService.GetPosting": "get /v1/wallets/{wallet_id}/postings",
    "WalletService.ListIdempotencyKeys": "get /v1/wallets/{wallet_id}/idempotency-keys",
    "WalletService.Hold": "post /v1/wallets/{wallet_id}/holds *",
    "WalletService.CaptureHold": "post /v1/holds/{hold_id}:capture *",
    "WalletService.ReleaseHold": "post /v1/holds/{hold_id}:release *",
    "WalletService.ExtendHold": "post /v1/holds/{hold_id}:extend *",
    "WalletService.GetBalance": "get /v1/wallets/{wallet_id}/balance",
    "WalletService.GetHold": "get /v1/holds/{hold_id}",
    "WalletService.Transfer": "post /v1/transfers *",
    "WalletService.ListHolds": "get /v1/wallets/{wallet_id}/holds",
    "WalletService.SetSpendLimit": "post /v1/wallets/{wallet_id}/spend-limits *",
    "WalletService.ListSpendLimits": "get /v1/wallets/{wallet_id}/spend-limits",
    "WalletService.DeleteSpendLimit": (
        "delete /v1/wallets/{wallet_id}/spend-limits/{spend_limit_id}"
    ),
    "BillingService.ListTransactions": "get /api/v1/me/billing/transactions",
    "BillingService.ExportTransactions": "get /api/v1/me/billing/transactions.csv",
    "BillingService.GetMyUsage": "get /api/v1/me/usage",
    "BillingService.GetMyAccount": "get /api/v1/me/account",
    "BillingService.GetMyBalance": "get /api/v1/balance",
    "BillingService.ListApiKeyBills": "get /openapi/v1/billing/apikey/bill/list",
    "PaymentKitService.CreateMeter": "post /api/meters *",
    "PaymentKitService.GetMeter": "get /api/meters/{id}",
    "PaymentKitService.ListMeters": "get /api/meters",
    "PaymentKitService.UpdateMeter": "put /api/meters/{id} *",
    "PaymentKitService.ActivateMeter": "put /api/meters/{id}/activate",
    "PaymentKitService.DeactivateMeter": "put /api/meters/{id}/deactivate",
    "PaymentKitService.CreateMeterEvent": "post /api/meter-events *",
    "PaymentKitService.GetMeterEvent": "get /api/meter-events/{id}",
    "PaymentKitService.ListMeterEvents": "get /api/meter-events",
    "PaymentKitService.CancelMeterEvent": "post /api/meter-events/{id}:cancel *",
    "PaymentKitService.GetMeterEventStats": "get /api/meter-events/stats",
    "PaymentKitService.GetPendingAmount": "get /api/meter-events/pending-amount",
    "PaymentKitService.CreateGrant": "post /api/credit-grants *",
    "PaymentKitService.GetGrant": "get /api/credit-grants/{id}",
    "PaymentKitService.ListGrants": "get /api/credit-grants",
    "PaymentKitService.UpdateGrant": "put /api/credit-grants/{id} *",
    "PaymentKitService.GetGrantSummary": "get /api/credit-grants/summary",
    "PaymentKitService.ListGrantHolders": "get /api/credit-grants/holders",
    "PaymentKitService.GetGrantStats": "get /api/credit-grants/stats",
    "PaymentKitService.GetGrantAvailability": "get /api/credit-grants/verify-availability",
    "RegistryService.CreateCustomer": "post /v1/customers *",
    "RegistryService.GetCustomer": "get /v1/customers/{customer_id}",
    "RegistryService.UpdateCustomer": "patch /v1/customers/{customer_id} *",
    "RegistryService.ArchiveCustomer": "post /v1/customers/{customer_id}:archive *",
    "RegistryService.UnarchiveCustomer": "post /v1/customers/{customer_id}:unarchive *",
    "RegistryService.ListCustomers": "get /v1/customers",
    "RegistryService.CreateMeter": "post /v1/meters *",
    "RegistryService.GetMeter": "get /v1/meters/{meter_id}",
    "RegistryService.ListMeters": "get /v1/meters",
    "RegistryService.CreateSubscription": "post /v1/subscriptions *",
    "RegistryService.GetSubscription": "get /v1/subscriptions/{subscription_id}",
    "RegistryService.ListSubscriptions": "get /v1/subscriptions",
    "RegistryService.CreateCurrency": "post /v1/currencies *",
    "RegistryService.GetCurrency": "get /v1/currencies/{currency_id}",
    "RegistryService.ListCurrencies": "get /v1/currencies",
    "StatementService.Get": "get /v1/wallets/{wallet_id}/statement",
    "StatementService.Close": "post /v1/wallets/{wallet_id}/statements *",
    "StatementService.List": "get /v1/wallets/{wallet_id}/statements",
    "StatementService.Retrieve": "get /v1/statements/{id}",
    "StatementService.Render": "get /v1/wallets/{wallet_id}/statement:render",
    "StatementService.RenderClosed": "get /v1/statements/{id}:render",
    "ApiKeyService.CreateApiKey": "post /v1/api-keys *",
    "ApiKeyService.ListApiKeys": "get /v1/api-keys",
    "ApiKeyService.GetCurrentApiKey": "get /v1/api-keys/current",
    "ApiKeyService.RevokeApiKey": "delete /v1/api-keys/{id}",
    "OperatorService.Overview": "get /v1/overview",
    "OperatorService.RecordVerification": "",
    "ApiKeyService.RotateApiKey": "post /v1/api-keys/{id}:rotate *",
    "OperatorService.Reconcile": "",
    "ApiKeyService.CreateSessionCode": "post /v1/session-codes *",
    "ApiKeyService.OpenSession": "post /v1/sessions *",
    "WebhookService.CreateWebhookEndpoint": "post /v1/webhook-endpoints *",
    "WebhookService.GetWebhookEndpoint": "get /v1/webhook-endpoints/{id}",
    "WebhookService.ListWebhookEndpoints": "get /v1/webhook-endpoints",
    "WebhookService.UpdateWebhookEndpoint": "patch /v1/webhook-endpoints/{id} *",
    "WebhookService.DeleteWebhookEndpoint": "delete /v1/webhook-endpoints/{id}",
    "WebhookService.RotateWebhookSecret": "post /v1/webhook-endpoints/{id}:rotate-secret *",
    "WebhookService.SealWebhookSecrets": "post /v1/webhook-endpoints:seal-secrets *",
    "WebhookService.ListWebhookDeliveries": "get /v1/webhook-endpoints/{id}/deliveries",
    "WebhookService.GetWebhookDelivery": "get /v1/webhook-deliveries/{id}",
    "WebhookService.ReplayWebhookDelivery": "post /v1/webhook-deliveries/{id}:replay *",
    "WebhookService.ReplayWebhookDeliveries": (
        "post /v1/webhook-endpoints/{id}/deliveries:replay *"
    ),
}


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/generate.py."""
    command = [sys.executable, "scripts/generate.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The files of protos/, compiled with their comments."""
    out = tmp_path_factory.mktemp("contract") / "contract.binpb"
    names = sorted(
        str(path.relative_to(ROOT / "protos")) for path in ROOT.glob("protos/**/*.proto")
    )
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", "-Ithird_party/googleapis"]
    subprocess.run(
        [*command, "--include_source_info", f"--descriptor_set_out={out}", *names],
        cwd=ROOT,
        check=True,
    )
    return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def fields(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> Iterator[tuple[str, descriptor_pb2.FieldDescriptorProto]]:
    """(message, field) of every field that the protos declare, those of map entries left out."""
    for file in contract:
        for message in file.message_type:
            for field in message.field:
                yield message.name, field


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def test_buf_lint_is_clean() -> None:
    """buf lint (STANDARD and COMMENTS) finds nothing but the exceptions of buf.yaml."""
    lint = subprocess.run(
        [Path(sys.executable).parent / "buf", "lint"], cwd=ROOT, capture_output=True, text=True
    )

    assert (lint.returncode, lint.stdout) == (0, ""), lint.stderr


def test_protos_are_formatted() -> None:
    """The protos are as buf format writes them."""
    diff = subprocess.run(
        [Path(sys.executable).parent / "buf", "format", "--diff", "--exit-code", "protos"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert (diff.returncode, diff.stdout) == (0, ""), diff.stderr


def test_gen_is_fresh() -> None:
    """gen/ is, byte for byte, what protos/ generates."""
    check = generate("--check")

    assert check.returncode == 0, check.stderr


def test_every_file_says_what_go_and_java_call_it(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """protoc-gen-go refuses a file without go_package; Java gets a file for each message."""
    found = {
        (file.options.go_package, file.options.java_package, file.options.java_multiple_files)
        for file in contract
    }

    assert found == {("creditledger/credit/v1;creditv1", "creditledger.credit.v1", True)}


def test_every_field_has_its_json_name(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """JSON names are snake_case, camelCase in bills, as published where that is neither."""
    expected = {}
    actual = {}
    for message, field in fields(contract):
        by_rule = camel(field.name) if message in CAMEL_CASE else field.name
        key = (message, field.name)
        expected[key] = SPELLED_OTHERWISE.get(key, by_rule)
        actual[key] = field.json_name

    assert expected == actual
    assert expected.keys() >= SPELLED_OTHERWISE.keys()


def test_json_names_are_written_out() -> None:
    """Each field states its json_name, so that renaming a field cannot rename it on the wire."""
    silent = []
    for path in sorted(ROOT.glob("protos/**/*.proto")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            declares = re.match(r"\s*(?:optional |repeated )?(?:map<.*>|[\w.]+) (\w+) = \d+", line)
            enum_value = re.match(r"\s*ERROR_REASON_\w+ = \d+;", line)
            if declares and not enum_value and not re.search(r'\[json_name = "\w+"\];$', line):
                silent.append(f"{path.name}:{number}: {line.strip()}")

    assert silent == []


def test_everything_has_a_comment(contract: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Every message, field, enum value, service and RPC says what it is."""
    bare = []
    for file in contract:
        commented = {
            tuple(place.path)
            for place in file.source_code_info.location
            if len(place.leading_comments.strip()) > 3
        }
        for i, message in enumerate(file.message_type):
            places = [(4, i), *((4, i, 2, j) for j in range(len(message.field)))]
            bare += [(message.name, place) for place in places if place not in commented]
        for i, enum in enumerate(file.enum_type):
            places = [(5, i), *((5, i, 2, j) for j in range(len(enum.value)))]
            bare += [(enum.name, place) for place in places if place not in commented]
        for i, service in enumerate(file.service):
            places = [(6, i), *((6, i, 2, j) for j in range(len(service.method)))]
            bare += [(service.name, place) for place in places if place not in commented]

    assert bare == []


def test_error_reasons_are_the_closed_list(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """ErrorReason is the only enum and holds exactly the documented reasons, in their order."""
    enums = [enum for file in contract for enum in file.enum_type]

    expected = [f"ERROR_REASON_{name}" for name in ["UNSPECIFIED", *REASONS]]

    assert len(enums) == 1
    assert expected == [value.name for value in enums[0].value]


def test_every_reason_has_an_example(contract: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Each reason is commented with its codes, its metadata keys and an example with those keys."""
    file = next(file for file in contract if file.enum_type)
    comments = {
        tuple(place.path)[3]: place.leading_comments
        for place in file.source_code_info.location
        if tuple(place.path)[:3] == (5, 0, 2) and len(place.path) == 4
    }
    for i, name in enumerate(REASONS, 1):
        said, example = comments[i].split("Example:")
        metadata = said.split("Metadata:")[1]
        keys = set(re.findall(r"`(\w+)`", metadata))
        shown = re.search(r'"metadata": \{(.*)\}\}', " ".join(example.split()))

        assert f'"reason": "{name}"' in example
        assert re.search(r"\[[A-Z_]+, \d{3} [a-z_]+\]", said), name
        assert keys == (set(re.findall(r'"(\w+)": ', shown[1])) if shown else set()), name


def test_routes_are_the_published_ones(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """Each RPC has exactly its documented REST path and body; StreamPost has none."""
    actual = {}
    for file in contract:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                route = f"{verb} {getattr(rule, verb)} {rule.body}".strip() if verb else ""
                actual[f"{service.name}.{method.name}"] = route

    assert actual == ROUTES


def test_scalars_of_requests_are_optional(
    contract: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """In all that a client sends absence is not 0 or "", and Envoy refuses what is given twice.

    Of a scalar that is not optional Envoy takes the last value it meets: of a key repeated in the
    body, or of a query that repeats what stands in the path.
    """
    messages = {f".credit.v1.{m.name}": m for file in contract for m in file.message_type}
    waiting = [
        method.input_type
        for file in contract
        for service in file.service
        for method in service.method
    ]
    sent = set()
    plain = []
    while waiting:
        name = waiting.pop()
        if name in sent or name not in messages:
            continue
        sent.add(name)
        for field in messages[name].field:
            if field.type == descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE:
                waiting.append(field.type_name)
            elif not field.proto3_optional and field.label != field.LABEL_REPEATED:
                plain.append((name, field.name))

    assert plain == []
    assert ".credit.v1.GrantOperation" in sent


def test_descriptor_set_holds_every_error_detail() -> None:
    """The descriptor set has the contract, google.rpc.Status and each type an error may carry."""
    described = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes())
    types = {f"{file.package}.{m.name}" for file in described.file for m in file.message_type}
    details = error_details_pb2.DESCRIPTOR.message_types_by_name
    services = {
        f"{file.package}.{service.name}" for file in described.file for service in file.service
    }

    assert {f"google.rpc.{name}" for name in details} <= types
    assert {"google.rpc.Status", "google.protobuf.Any", "google.protobuf.Value"} <= types
    assert {f"credit.v1.{name.split('.')[0]}" for name in ROUTES} == services


def test_descriptor_set_has_no_source() -> None:
    """The descriptor set has no comments and no local paths: the contract alone makes its bytes."""
    described = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes())

    assert not any(file.HasField("source_code_info") for file in described.file)
    assert not any(file.name.startswith("/") for file in described.file)
