"""The API over gRPC: health, reflection, each operation answered whole, the same key again."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.credit_transaction_pb2 import CreditTransaction, TransactionSource
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.ops.server import SERVICES
from tests.support.cases import in_turn
from tests.support.databases import kept_locked
from tests.support.refusals import Refused, refused
from tests.support.server import (
    WALLET,
    adjust,
    consume,
    fate,
    grant,
    post,
    ranked,
    refund,
    wallet,
)
from tests.support.setup import START

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from tests.support.server import Api
    from tests.support.setup import Clock

NOW = time.text(START)


def row(sequence: int, posting_id: str, **fields: Any) -> CreditTransaction:
    """A transaction of wal_acme, which is wallet 1, written at START; its grant by number."""
    granted = fields.pop("grant", None)
    return CreditTransaction(
        id=ids.compose("ct", 1, sequence),
        customer_id="cus_acme",
        credit_grant_id=None if granted is None else ids.compose("cg", 1, granted),
        livemode=True,
        created_at=NOW,
        updated_at=NOW,
        wallet_id=WALLET,
        posting_id=posting_id,
        sequence=sequence,
        currency_id="USD",
        **{"effective_at": NOW, **fields},
    )


def posting(rows: Sequence[CreditTransaction], after: pb.Wallet) -> pb.Posting:
    """A posting of wal_acme."""
    return pb.Posting(posting_id=rows[0].posting_id, transactions=rows, wallet=after)


# --- health, reflection, grpcurl ------------------------------------------------------------------


def health_of(api: Api) -> Any:
    """The health service's stub; its types are not published."""
    return health_pb2_grpc.HealthStub(api.channel)


@in_turn("service", ["", *SERVICES])
async def test_health_is_served(api: Api, service: str) -> None:
    """The server as a whole and each service say SERVING to all callers, with a key or without."""
    health = health_of(api)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=service))

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_what_is_not_there(api: Api) -> None:
    """A service that does not exist is NOT_FOUND, not healthy."""
    health = health_of(api)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="credit.v1.NoService"))

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_drain_says_so_and_finishes_what_is_under_way(api: Api, database_url: str) -> None:
    """From the first moment of a stop health is NOT_SERVING, and new calls are UNAVAILABLE.

    What a stream has brought so far is answered; then it is UNAVAILABLE too.
    """
    await api.post("topup", **grant("10"))
    health = health_of(api)
    watching = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[-1]))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    stream = api.wallets.StreamPost(metadata=api.service)
    async with kept_locked(database_url):
        for key in ("first", "second"):
            await stream.write(pb.StreamPostRequest(posting=post(key, **consume("1"))))
        await api.wallet_now()  # by then the server has read them too

        stopping = asyncio.create_task(api.server.stop())
        said = await watching.read()
        checked = await health.Check(health_pb2.HealthCheckRequest())
        new = await refused(
            api.wallets.GetWallet(pb.GetWalletRequest(wallet_id=WALLET), metadata=api.service)
        )
    answers: list[Any] = [await stream.read() for _ in range(2)]
    ended = await refused(stream.read())
    async with asyncio.timeout(5):
        await stopping

    assert said.status == checked.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert ranked([fate(one.result) for one in answers]) == [1, 2]
    assert new == ended == Refused("UNAVAILABLE")


async def reflected(
    api: Api, requests: Iterable[reflection_pb2.ServerReflectionRequest]
) -> list[reflection_pb2.ServerReflectionResponse]:
    """Answers of the reflection service, one for each request."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(api.channel)  # type: ignore[arg-type] # made for aio too
    return [answer async for answer in stub.ServerReflectionInfo(iter(requests))]


async def test_reflection_lists_every_service(api: Api) -> None:
    """Our services, health and reflection itself; and the file of each of ours can be had."""
    request = reflection_pb2.ServerReflectionRequest
    listed, *files = await reflected(
        api,
        [request(list_services=""), *(request(file_containing_symbol=one) for one in SERVICES)],
    )

    assert {one.name for one in listed.list_services_response.service} == {
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert [bool(one.file_descriptor_response.file_descriptor_proto) for one in files] == (
        [True] * len(SERVICES)
    )


async def grpcurl(*arguments: str) -> str:
    """What grpcurl prints."""
    places = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin"
    binary = shutil.which("grpcurl", path=places)
    if binary is None:
        pytest.skip("grpcurl is not installed")
    process = await asyncio.create_subprocess_exec(
        binary, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_grpcurl_describes_and_calls(api: Api) -> None:
    """People debug with grpcurl: it finds the contract by itself and calls by it."""
    address = api.server.grpc_address
    ((header, credential),) = api.service

    described = await grpcurl(address, "describe")
    listed = await grpcurl(address, "list", "credit.v1.WalletService")
    request = json.dumps({"wallet_id": WALLET})
    called = await grpcurl(
        *("-H", f"{header}: {credential}", "-d", request, address),
        "credit.v1.WalletService/GetWallet",
    )

    assert set(re.findall(r"^(\S+) is a service:", described, re.MULTILINE)) >= set(SERVICES)
    methods = descriptor_pool.Default().FindServiceByName("credit.v1.WalletService").methods
    assert set(listed.split()) == {f"credit.v1.WalletService.{one.name}" for one in methods}
    printed = json.loads(called)
    assert {"id": WALLET, "balance": "0.00", "available": "0.00"}.items() <= printed.items()


# --- each operation, whole ------------------------------------------------------------------------


async def test_a_grant_is_answered_whole(api: Api) -> None:
    """A grant with all it can have: one row that carries the words of the request."""
    fields: dict[str, Any] = {
        "description": "Top-up",
        "note": "By card",
        "metadata": {"order": "7"},
    }
    source = TransactionSource(provider="stripe", receipt_id="ch_1", method="card_visa_4242")
    answer = await api.post(
        "topup",
        **fields,
        **grant("50.00", source=source, name="Card", expires_at=time.text(START + time.DAY)),
    )

    rows = [
        row(
            1,
            answer.posting_id,
            grant=1,
            type="grant",
            kind="topup",
            amount="50.00",
            running_balance="50.00",
            source=source,
            **fields,
        )
    ]
    assert posting(rows, wallet("50.00", 1)) == answer


async def register(api: Api) -> None:
    """The meter and the subscription that a consumption names."""
    await api.local.registry.CreateMeter(
        registry_pb.CreateMeterRequest(
            id="mtr_tokens", name="Tokens", event_name="tokens", unit="token"
        )
    )
    await api.local.registry.CreateSubscription(
        registry_pb.CreateSubscriptionRequest(id="sub_pro", customer_id="cus_acme", name="Pro")
    )


async def test_a_consumption_is_answered_whole(api: Api) -> None:
    """It draws grants in burn order, then overdraft: a row for each, all with the request's words.

    The promotional grant goes before the paid one; the row of overdraft names no grant.
    """
    await register(api)
    change = pb.UpdateWalletRequest(wallet_id=WALLET, overdraft_limit="1")
    await api.wallets.UpdateWallet(change, metadata=api.admin)
    await api.post("paid", **grant("1"))
    await api.post("promotional", **grant("2", category="promotional"))
    happened = time.text(START - time.HOUR)

    answer = await api.post(
        "call",
        effective_at=happened,
        **consume(
            "3.0123",
            meter_id="mtr_tokens",
            meter_event_id="call-1",
            subscription_id="sub_pro",
            usage=pb.Usage(api_key_id="apk_1", product_name="Chat", quantities=[1000, 500]),
        ),
    )

    same = {
        "type": "consumption",
        "kind": "usage",
        "meter_id": "mtr_tokens",
        "meter_event_id": "call-1",
        "subscription_id": "sub_pro",
        "effective_at": happened,
    }
    rows = [
        row(3, answer.posting_id, grant=2, amount="-2.00", running_balance="1.00", **same),
        row(4, answer.posting_id, grant=1, amount="-1.00", running_balance="0.00", **same),
        row(5, answer.posting_id, amount="-0.0123", running_balance="-0.0123", **same),
    ]
    after = wallet("-0.0123", 5, overdraft_limit="1.00", overdraft_used="0.0123")
    assert posting(rows, after) == answer


async def test_adjustments_are_answered_whole(api: Api) -> None:
    """A credit makes a grant, a debit draws on one; who did it is the key's name if not said."""
    credit = await api.post("credit", **adjust("5"))
    debit = await api.post(
        "debit",
        **adjust(
            "-1.5",
            credit_grant_id=ids.compose("cg", 1, 1),
            source=TransactionSource(actor="ops@example.com"),
        ),
    )

    first = row(
        1,
        credit.posting_id,
        grant=1,
        type="adjustment",
        kind="admin_credit",
        amount="5.00",
        running_balance="5.00",
        source=TransactionSource(actor="service key"),
    )
    second = row(
        2,
        debit.posting_id,
        grant=1,
        type="adjustment",
        kind="admin_debit",
        amount="-1.50",
        running_balance="3.50",
        source=TransactionSource(actor="ops@example.com"),
    )
    assert posting([first], wallet("5.00", 1)) == credit
    assert posting([second], wallet("3.50", 2)) == debit


async def test_a_forced_debit_is_answered_whole(api: Api) -> None:
    """It takes what there is and the rest as overdraft, whatever the limit."""
    await api.post("topup", **grant("1"))
    request = post("debit", **adjust("-3", force=True))
    answer = await api.wallets.Post(request, metadata=api.admin)

    same = {
        "type": "adjustment",
        "kind": "admin_debit",
        "source": TransactionSource(actor="admin key"),
    }
    rows = [
        row(2, answer.posting_id, grant=1, amount="-1.00", running_balance="0.00", **same),
        row(3, answer.posting_id, amount="-2.00", running_balance="-2.00", **same),
    ]
    assert posting(rows, wallet("-2.00", 3, overdraft_used="2.00")) == answer


async def test_refunds_are_answered_whole(api: Api) -> None:
    """A part, then all that is left; each names the posting it returns, neither its meter."""
    await register(api)
    await api.post("topup", **grant("1"))
    used = {"meter_id": "mtr_tokens", "subscription_id": "sub_pro", "meter_event_id": "call-1"}
    call = await api.post("call", **consume("0.75", **used))

    part = await api.post("part", **refund(call.posting_id, amount="0.25"))
    rest = await api.post("rest", **refund(call.posting_id))

    same = {
        "grant": 1,
        "type": "adjustment",
        "kind": "refund",
        "source": TransactionSource(posting_id=call.posting_id),
    }
    first = row(3, part.posting_id, amount="0.25", running_balance="0.50", **same)
    second = row(4, rest.posting_id, amount="0.50", running_balance="1.00", **same)
    assert posting([first], wallet("0.50", 3)) == part
    assert posting([second], wallet("1.00", 4)) == rest


# --- the same key again ---------------------------------------------------------------------------


async def test_a_replay_is_the_first_answer_and_the_wallet_as_it_is(api: Api) -> None:
    """Same key, same request by value: the first posting, replayed, with the wallet of now."""
    first = await api.post("topup", note="Hello", **grant("10"))
    await api.post("call", **consume("4"))

    again = await api.post("topup", note="Hello", expected_sequence=999, **grant("10.000"))

    assert again.replayed
    assert first.transactions == again.transactions
    assert first.posting_id == again.posting_id
    assert wallet("6.00", 2) == again.wallet
    assert await api.wallet_now() == again.wallet


async def test_a_key_reused_names_what_differs(api: Api) -> None:
    """Same key, another request: the paths that differ, sorted, and nothing is written."""
    await api.post("call-1", **grant("10"))
    await api.post("key", description="A", **consume("1", meter_event_id="e"))

    other = await refused(
        api.post("key", description="B", note="C", **consume("2", meter_event_id="f"))
    )
    operation = await refused(api.post("key", **adjust("-1")))

    fields = "consumption.amount,consumption.meter_event_id,description,note"
    reason = "IDEMPOTENCY_KEY_REUSED"
    assert Refused(reason, "idempotency_key", {"fields": fields}) == other
    assert Refused(reason, "idempotency_key", {"fields": "operation"}) == operation
    assert (await api.wallet_now()).sequence == 2


async def test_a_refusal_does_not_bind_its_key(api: Api) -> None:
    """What was refused can be asked again with the same key, changed or not."""
    poor = await refused(api.post("call", **consume("1")))
    assert await api.found("call") is None
    await api.post("topup", **grant("1"))

    answer = await api.post("call", **consume("0.5"))

    metadata = {"required": "1.00", "available": "0.00", "currency": "USD"}
    assert Refused("INSUFFICIENT_CREDIT", None, metadata) == poor
    assert not answer.replayed


async def test_expected_sequence(api: Api, clock: Clock) -> None:
    """The sequence a client decided on; expirations alone do not move the wallet past it."""
    await api.post("topup", **grant("1", expires_at=time.text(START + time.SECOND)))
    await api.post("topup-2", **grant("1"))

    wrong = [
        await refused(api.post("call", expected_sequence=expected, **consume("0.5")))
        for expected in (0, 1, 3)
    ]
    clock.advance(time.SECOND)
    # A change writes the expiration that is due, and nothing else.
    change = pb.UpdateWalletRequest(wallet_id=WALLET, status="active")
    swept = await api.wallets.UpdateWallet(change, metadata=api.admin)
    await api.post("call", expected_sequence=2, **consume("0.5"))
    late = await refused(api.post("call-2", expected_sequence=3, **consume("0.1")))
    await api.post("call-2", expected_sequence=4, **consume("0.1"))

    def mismatch(expected: int, actual: int) -> Refused:
        metadata = {"expected": str(expected), "actual": str(actual)}
        return Refused("SEQUENCE_MISMATCH", "expected_sequence", metadata)

    assert [mismatch(0, 2), mismatch(1, 2), mismatch(3, 2)] == wrong
    assert swept.sequence == 3
    assert mismatch(3, 4) == late


async def test_validate_only_answers_and_writes_nothing(api: Api) -> None:
    """The answer the posting would get, without ids; afterwards it can be posted for real."""
    await api.post("topup", **grant("1"))
    operations = {
        "grant": grant("2"),
        "call": consume("0.25"),
        "debit": adjust("-0.25"),
        "credit": adjust("0.25"),
    }
    for key, fields in operations.items():
        before = await api.wallet_now()
        asked = await api.post(key, validate_only=True, **fields)
        assert await api.found(key) is None
        assert before == await api.wallet_now()
        done = await api.post(key, **fields)
        again = await api.post(key, validate_only=True, **fields)

        assert (asked.validate_only, asked.replayed, asked.posting_id) == (True, False, "")
        assert (again.validate_only, again.replayed) == (True, True)
        assert again.transactions == done.transactions
        for one in done.transactions:
            one.id = one.posting_id = ""
            if one.amount.startswith("-"):
                continue
            one.ClearField("credit_grant_id")
        assert list(done.transactions) == list(asked.transactions)
        assert done.wallet == asked.wallet
    poor = await refused(api.post("poor", validate_only=True, **consume("100")))
    assert poor.reason == "INSUFFICIENT_CREDIT"


async def test_get_posting(api: Api) -> None:
    """What a key names, as a replay would answer it; NOT_FOUND means that nothing landed."""
    await api.post("topup", **grant("10"))
    first = await api.post("call", **consume("1"))
    await api.post("call-2", **consume("1"))

    for metadata in (api.service, api.customer, api.admin):
        request = pb.GetPostingRequest(wallet_id=WALLET, idempotency_key="call")
        found = await api.wallets.GetPosting(request, metadata=metadata)
        assert found == await api.post("call", **consume("1"))
        assert found.posting_id == first.posting_id
        assert found.replayed

    def get(**changed: str) -> Awaitable[pb.Posting]:
        fields = {"wallet_id": WALLET, "idempotency_key": "call", **changed}
        return api.wallets.GetPosting(pb.GetPostingRequest(**fields), metadata=api.service)

    assert [
        await refused(get(idempotency_key="Call")),
        await refused(get(wallet_id="wal_none")),
        await refused(get(idempotency_key="")),
        await refused(get(idempotency_key="é")),
        await refused(get(wallet_id="")),
    ] == [
        Refused("NOT_FOUND", "idempotency_key"),
        Refused("NOT_FOUND", "wallet_id"),
        Refused("MISSING_FIELD", "idempotency_key"),
        Refused("INVALID_FIELD", "idempotency_key"),
        Refused("MISSING_FIELD", "wallet_id"),
    ]
