"""The Python client, against a running service: what it promises, and answers that get lost."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import registry_service_pb2 as registry_pb

from creditledger_client import (
    AsyncClient,
    Batcher,
    BatcherFull,
    Client,
    InsufficientCredit,
    LedgerError,
    NotFound,
    policy,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.rest import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def losing(served: Served, lost: Callable[[str, int], bool]) -> AsyncIterator[str]:
    """The URL of a relay to the service that loses answers.

    `lost` says of which calls: by the path, and how often that has been called. The service has
    done what was asked when an answer is lost.
    """
    counts: Counter[str] = Counter()

    async def unary(request: bytes, context: Any, path: str) -> bytes:
        counts[path] += 1
        behind: Any = channel.unary_unary(path)
        try:
            answer: bytes = await behind(request, metadata=_own(context))
        except grpc.aio.AioRpcError as refused:
            await context.abort(refused.code(), refused.details(), refused.trailing_metadata())
        if lost(path, counts[path]):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer is lost")
        return answer

    async def stream(request: bytes, context: Any, path: str) -> AsyncIterator[bytes]:
        counts[path] += 1
        messages = 0
        behind: Any = channel.unary_stream(path)
        async for message in behind(request, metadata=_own(context)):
            yield message
            messages += 1
            # The first one of a watch only says where it stands.
            if messages == 2 and lost(path, counts[path]):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the rest is lost")

    class Relay(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            path = details.method
            if path.endswith("/Watch"):
                return grpc.unary_stream_rpc_method_handler(partial(stream, path=path))
            return grpc.unary_unary_rpc_method_handler(partial(unary, path=path))

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Relay(),))
    port = server.add_insecure_port("127.0.0.1:0")
    async with grpc.aio.insecure_channel(served.url.removeprefix("http://")) as channel:
        await server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await server.stop(0)


def _own(context: Any) -> list[tuple[str, str]]:
    return [pair for pair in context.invocation_metadata() if pair[0] == "authorization"]


async def stocked(served: Served, amount: str = "10") -> tuple[str, str]:
    """A wallet with credit, and a service key."""
    wallet = await served.wallet()
    await served.post(wallet, {"grant": {"amount": amount}})
    return wallet, await served.key("service")


async def test_three_lines(shared: Served) -> None:
    """Consume, and see what is left."""
    wallet, key = await stocked(shared)

    def run() -> None:
        with Client(shared.url, key) as ledger:
            posting = ledger.consume(wallet, "0.0123", idempotency_key="call:3", description="Chat")
            assert posting.transactions[0].description == "Chat"
            again = ledger.consume(wallet, "0.0123", idempotency_key="call:3", description="Chat")
            assert (again.posting_id, again.replayed) == (posting.posting_id, True)
            assert ledger.get_wallet(wallet).balance == "9.9877"
            given = ledger.grant(wallet, Decimal("0.0123"), category="promotional", name="Sorry")
            assert given.transactions[0].amount == "0.0123"
            assert ledger.get_balance(wallet).balance == "10.00"

    await asyncio.to_thread(run)


async def test_it_needs_nothing_of_the_server() -> None:
    """Neither the package nor what it stands on."""
    code = (
        "import sys, creditledger_client; print(*(name.partition('.')[0] for name in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    loaded = set(said.decode().split())
    assert {"creditledger_client", "credit", "grpc", "google"} <= loaded
    assert not loaded & {"creditledger", "sqlalchemy", "pydantic", "typer"}


async def test_refusals(shared: Served) -> None:
    """By class and by reason; a float is refused before it is sent."""
    wallet, key = await stocked(shared, "1")

    def run() -> None:
        with Client(shared.url, key) as ledger:
            with pytest.raises(InsufficientCredit) as refused:
                ledger.consume(wallet, "2")
            assert refused.value.reason == "INSUFFICIENT_CREDIT"
            assert refused.value.metadata["available"] == "1.00"
            assert refused.value.request_id
            assert not refused.value.passing
            with pytest.raises(NotFound):
                ledger.get_wallet("wal_nowhere")
            with pytest.raises(LedgerError) as invalid:
                ledger.consume(wallet, "much")
            assert (invalid.value.reason, invalid.value.field) == (
                "INVALID_FIELD",
                "consumption.amount",
            )
            with pytest.raises(TypeError, match="float"):
                ledger.consume(wallet, 0.1)  # type: ignore[arg-type] # what the test is about
        with Client(shared.url, "sk-" + "x" * 43) as stranger, pytest.raises(LedgerError) as denied:
            stranger.get_wallet(wallet)
        assert denied.value.reason == "KEY_INVALID"
        for url in ("127.0.0.1:8080", "ftp://a", "http://host/path", ""):
            with pytest.raises(ValueError, match="URL"):
                Client(url, key)

    await asyncio.to_thread(run)


async def test_a_hold(shared: Served) -> None:
    """What is not captured is released: after the block, and when the block raises."""
    wallet, key = await stocked(shared)

    def run() -> None:
        with Client(shared.url, key) as ledger:
            with ledger.hold(wallet, "5", ttl_seconds=60) as hold:
                assert ledger.get_wallet(wallet).held == "5.00"
                hold.capture("1", final=False)
                hold.capture("2.5")
            with pytest.raises(KeyError), ledger.hold(wallet, "4"):
                raise KeyError
            with ledger.hold(wallet, "1"):
                pass
            after = ledger.get_wallet(wallet)
            assert (after.balance, after.held) == ("6.50", "0.00")
            assert {one.status for one in ledger.list_holds(wallet)} == {"captured", "released"}

    await asyncio.to_thread(run)


async def test_lists_are_walked(shared: Served) -> None:
    """To the last page."""
    wallet, key = await stocked(shared)
    await shared.post(wallet, *[{"consumption": {"amount": "0.01"}}] * 250)

    def run() -> None:
        with Client(shared.url, key) as ledger:
            rows = list(ledger.list_transactions(wallet_id=wallet))
            assert [row.sequence for row in rows] == list(range(251, 0, -1))
            assert len(list(ledger.list_grants(wallet_id=wallet))) == 1
            assert wallet in {one.id for one in ledger.list_wallets(page_size=2)}
            owner = ledger.get_wallet(wallet).customer_id
            assert owner in {one.id for one in ledger.list_customers(page_size=3)}

    await asyncio.to_thread(run)


async def test_lost_answers_are_charged_once(shared: Served) -> None:
    """Every other answer is lost: each posting and hold is there once all the same."""
    wallet, key = await stocked(shared)

    def run(url: str) -> None:
        with Client(url, key) as ledger:
            for _ in range(5):
                ledger.consume(wallet, "0.10")
            with ledger.hold(wallet, "2") as hold:
                hold.capture("1.5")

    async with losing(shared, lambda _, count: count % 2 == 1) as url:
        await asyncio.to_thread(run, url)
        async with AsyncClient(url, key) as ledger:
            for _ in range(5):
                await ledger.consume(wallet, "0.10")
    after = await shared.body(f"/v1/wallets/{wallet}", key)
    assert (after["balance"], after["held"]) == ("7.50", "0.00")


async def test_no_answer_to_a_posting_is_asked_for(shared: Served) -> None:
    """All answers of Post are lost: GetPosting tells what became of it."""
    wallet, key = await stocked(shared, "1")

    def run(url: str) -> None:
        with Client(url, key, attempts=2) as ledger:
            posting = ledger.consume(wallet, "0.25")
            assert posting.transactions[0].amount == "-0.25"

    async with losing(shared, lambda path, _: path.endswith("/Post")) as url:
        await asyncio.to_thread(run, url)
        async with AsyncClient(url, key, attempts=1) as ledger:
            assert (await ledger.consume(wallet, "0.25")).transactions[0].amount == "-0.25"
    assert (await shared.body(f"/v1/wallets/{wallet}", key))["balance"] == "0.50"


async def test_a_change_without_a_key_is_not_repeated(shared: Served) -> None:
    """It might happen twice: its outcome is unknown, and the caller is told."""
    _, key = await stocked(shared)

    def run(url: str) -> None:
        with Client(url, key) as ledger, pytest.raises(LedgerError) as unknown:
            ledger.registry.CreateCustomer(_customer())
        assert unknown.value.outcome_unknown

    before = shared.row_counts()["customers"]
    async with losing(shared, lambda *_: True) as url:
        await asyncio.to_thread(run, url)
    assert shared.row_counts()["customers"] == before + 1


async def test_a_watch_goes_on(shared: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is cut again and again: every row comes, each once, in order."""
    monkeypatch.setattr(policy, "WAIT_S", 0.01)
    wallet, key = await stocked(shared)

    def run(url: str) -> list[int]:
        seen: list[int] = []
        with Client(url, key) as ledger:
            for message in ledger.watch(wallet_id=wallet, after="beginning"):
                seen += [one.sequence for one in message.transactions]
                if len(seen) >= 4:
                    return seen
        return seen

    async with losing(shared, lambda path, _: path.endswith("/Watch")) as url:
        reading = asyncio.create_task(asyncio.to_thread(run, url))
        for _ in range(3):
            await asyncio.sleep(0.2)
            await shared.post(wallet, {"consumption": {"amount": "0.01"}})
        async with asyncio.timeout(20):
            assert await reading == [1, 2, 3, 4]
        seen: list[int] = []
        async with AsyncClient(url, key) as ledger, asyncio.timeout(20):
            async for message in ledger.watch(wallet_id=wallet, after="beginning"):
                seen += [one.sequence for one in message.transactions]
                if len(seen) >= 4:
                    break
        assert seen == [1, 2, 3, 4]


async def test_the_async_client(shared: Served) -> None:
    """The same words, awaited; 50 at once are charged once each."""
    wallet, key = await stocked(shared)
    async with AsyncClient(shared.url, key) as ledger:
        await asyncio.gather(*(ledger.consume(wallet, "0.01") for _ in range(50)))
        async with await ledger.hold(wallet, "2") as hold:
            await hold.capture("0.5")
        assert (await ledger.get_wallet(wallet)).balance == "9.00"
        rows = [row async for row in ledger.list_transactions(wallet_id=wallet)]
        assert len(rows) == 52
        with pytest.raises(InsufficientCredit):
            await ledger.consume(wallet, "100")
        assert (await ledger.grant(wallet, "1")).transactions[0].amount == "1.00"


async def test_a_batcher_answers_each_posting(shared: Served) -> None:
    """3,000 from four threads, every other answer lost: the credit suffices for 2,000 of them."""
    wallet, key = await stocked(shared, "20")

    def run(url: str) -> None:
        # Two send at once, and which of them loses an answer is chance.
        with Client(url, key, attempts=50, timeout=60) as ledger:
            with Batcher(ledger) as batcher:
                answers = [batcher.consume(wallet, "0.01") for _ in range(3_000)]
            refused = [one for one in answers if one.exception() is not None]
            assert {type(one.exception()) for one in refused} == {InsufficientCredit}
            done = {one.result().posting_id for one in answers if one.exception() is None}
            assert (len(done), len(refused)) == (2_000, 1_000)
            with pytest.raises(RuntimeError, match="closed"):
                batcher.consume(wallet, "1")

    async with losing(shared, lambda _, count: count % 2 == 1) as url:
        await asyncio.to_thread(run, url)
    assert (await shared.body(f"/v1/wallets/{wallet}", key))["balance"] == "0.00"


async def test_a_canceled_answer_takes_none_from_others(shared: Served) -> None:
    """What is canceled before it is sent is not charged, and the batcher goes on."""
    wallet, key = await stocked(shared)

    def run() -> int:
        with Client(shared.url, key) as ledger, Batcher(ledger) as batcher:
            answers = [batcher.consume(wallet, "0.01") for _ in range(300)]
            canceled = sum(answer.cancel() for answer in answers[::3])
        assert all(answer.done() for answer in answers)
        return len(answers) - canceled

    charged = await asyncio.to_thread(run)
    balance = (await shared.body(f"/v1/wallets/{wallet}", key))["balance"]
    assert Decimal(balance) == 10 - charged * Decimal("0.01")


async def test_a_pause_has_an_end() -> None:
    """However often something has failed."""
    assert policy.pause(10_000) <= policy.WAIT_S_MAX


async def test_a_full_batcher_says_so(shared: Served) -> None:
    """What is not taken is not charged."""
    wallet, key = await stocked(shared)

    def run(url: str) -> int:
        with Client(url, key) as ledger, Batcher(ledger, waiting_max=10) as batcher:
            taken = 0
            for _ in range(500):
                try:
                    batcher.consume(wallet, "0.01")
                except BatcherFull:
                    break
                taken += 1
            return taken

    taken = await asyncio.to_thread(run, shared.url)
    assert 10 <= taken < 500
    balance = (await shared.body(f"/v1/wallets/{wallet}", key))["balance"]
    assert Decimal(balance) == 10 - taken * Decimal("0.01")


def _customer() -> Any:

    return registry_pb.CreateCustomerRequest(name="Acme", email="a@example.com")
