"""The client for asyncio: the same words as the one for threads."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

import grpc
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.credit_grant_service_pb2 import CreditGrantServiceListRequest

from creditledger_client import policy
from creditledger_client.errors import LedgerError, ledger_error
from creditledger_client.messages import capture_request, posting_request
from creditledger_client.stubs import add_stubs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from credit.v1.credit_grant_service_pb2 import CreditGrant
    from credit.v1.credit_transaction_pb2 import CreditTransaction
    from google.protobuf.message import Message

    from creditledger_client.policy import Amount


class AsyncClient:
    """A ledger, under one API key. Its methods and stubs are those of Client, to be awaited."""

    api_keys: Any
    billing: Any
    clock: Any
    grants: Any
    operators: Any
    payment_kit: Any
    registry: Any
    statements: Any
    transactions: Any
    wallets: Any
    webhooks: Any

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        attempt_timeout: float = 10.0,
        attempts: int = 4,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """As Client; needs a running event loop."""
        at, secure = policy.target(url)
        if secure:
            trusted = credentials or grpc.ssl_channel_credentials()
            self._channel = grpc.aio.secure_channel(at, trusted)
        else:
            self._channel = grpc.aio.insecure_channel(at)
        patience = policy.Policy(timeout, attempt_timeout, attempts)
        add_stubs(self, _Patient(self._channel, api_key, patience))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and the connection."""
        await self._channel.close()

    async def consume(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> pb.Posting:
        """Spend credit, as Client.consume does."""
        return await self.post(
            posting_request("consumption", wallet_id, amount, idempotency_key, more)
        )

    async def grant(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> pb.Posting:
        """Give credit, as Client.grant does."""
        return await self.post(posting_request("grant", wallet_id, amount, idempotency_key, more))

    async def post(self, request: pb.PostRequest) -> pb.Posting:
        """Write one posting. If no answer tells what became of it, the ledger is asked again."""
        try:
            posting: pb.Posting = await self.wallets.Post(request)
        except LedgerError as error:
            if not error.outcome_unknown or request.validate_only or not request.idempotency_key:
                raise
            try:
                return await self.get_posting(request.wallet_id, request.idempotency_key)
            except LedgerError:
                # "Not found" may yet change: an attempt may still be under way.
                raise error from None
        return posting

    async def hold(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> AsyncHold:
        """Set credit aside until it is captured or released: `async with await client.hold(…)`."""
        key = idempotency_key or policy.new_key()
        request = pb.HoldRequest(
            wallet_id=wallet_id, amount=policy.amount_text(amount), idempotency_key=key, **more
        )
        return AsyncHold(self, (await self.wallets.Hold(request)).hold, key)

    async def get_wallet(self, wallet_id: str) -> pb.Wallet:
        """A wallet and its balance."""
        wallet: pb.Wallet = await self.wallets.GetWallet(pb.GetWalletRequest(wallet_id=wallet_id))
        return wallet

    async def get_balance(self, wallet_id: str, **more: Any) -> pb.Balance:
        """The balance of a moment, by grant."""
        request = pb.GetBalanceRequest(wallet_id=wallet_id, **more)
        balance: pb.Balance = await self.wallets.GetBalance(request)
        return balance

    async def get_posting(self, wallet_id: str, idempotency_key: str) -> pb.Posting:
        """The posting of an idempotency key."""
        request = pb.GetPostingRequest(wallet_id=wallet_id, idempotency_key=idempotency_key)
        posting: pb.Posting = await self.wallets.GetPosting(request)
        return posting

    def list_transactions(self, **filters: Any) -> AsyncIterator[CreditTransaction]:
        """All transactions that the filters match, newest first."""
        request = transactions_pb.CreditTransactionServiceListRequest(
            **{"page_size": policy.PAGE_SIZE, **filters}
        )
        return _walk(
            self.transactions.List, request, "list", lambda page: page.paging.next_page_token
        )

    def list_grants(self, **filters: Any) -> AsyncIterator[CreditGrant]:
        """All grants that the filters match, newest first."""
        request = CreditGrantServiceListRequest(**{"page_size": policy.PAGE_SIZE, **filters})
        return _walk(self.grants.List, request, "credit_grants", _next_page)

    def list_wallets(self, **filters: Any) -> AsyncIterator[pb.Wallet]:
        """All wallets that the filters match, by id."""
        request = pb.ListWalletsRequest(**{"page_size": policy.PAGE_SIZE, **filters})
        return _walk(self.wallets.ListWallets, request, "wallets", _next_page)

    def list_holds(self, wallet_id: str, **filters: Any) -> AsyncIterator[pb.HeldCredit]:
        """All holds of a wallet, newest first."""
        request = pb.ListHoldsRequest(
            **{"page_size": policy.PAGE_SIZE, "wallet_id": wallet_id, **filters}
        )
        return _walk(self.wallets.ListHolds, request, "holds", _next_page)

    def list_customers(self, **filters: Any) -> AsyncIterator[registry_pb.Customer]:
        """All customers that the filters match."""
        request = registry_pb.ListCustomersRequest(**{"page_size": policy.PAGE_SIZE, **filters})
        return _walk(self.registry.ListCustomers, request, "customers", _next_page)

    async def watch(
        self, *, heartbeat_seconds: int = policy.HEARTBEAT_S, **filters: Any
    ) -> AsyncIterator[transactions_pb.CreditTransactionServiceWatchResponse]:
        """Transactions as they are committed, without end, as Client.watch has them."""
        request = transactions_pb.CreditTransactionServiceWatchRequest(
            heartbeat_seconds=heartbeat_seconds, **filters
        )
        failures = 0
        while True:
            call = self.transactions.Watch(request)
            try:
                while True:
                    async with asyncio.timeout(heartbeat_seconds * policy.MISSED_MAX):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        break
                    failures = 0
                    yield message
                    request.after = message.cursor
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as thrown:
                error = ledger_error(thrown)
                if not error.passing:
                    raise error from thrown
            finally:
                call.cancel()
            failures += 1
            await asyncio.sleep(policy.pause(failures))


class AsyncHold:
    """Credit that is set aside, to be captured in one or in several parts."""

    def __init__(self, client: AsyncClient, credit: pb.HeldCredit, key: str) -> None:
        self._client = client
        self._key = key
        self._captures = 0
        #: The hold as the last answer had it.
        self.credit = credit

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await self.release()
        except LedgerError:
            # What the block raised says more; the hold's deadline ends it too.
            if kind is None:
                raise

    async def capture(
        self, amount: Amount | None = None, *, final: bool = True, **more: Any
    ) -> pb.CaptureHoldResponse:
        """Consume what was used, as OpenHold.capture does."""
        request = capture_request(self.credit.id, self._key, self._captures, amount, final, more)
        answer: pb.CaptureHoldResponse = await self._client.wallets.CaptureHold(request)
        self._captures += 1
        self.credit = answer.hold
        return answer

    async def release(self) -> None:
        """End it and give back what is left. What has ended already stays as it is."""
        if self.credit.status == "open":
            request = pb.ReleaseHoldRequest(
                hold_id=self.credit.id, idempotency_key=f"{self._key}:release"
            )
            self.credit = (await self._client.wallets.ReleaseHold(request)).hold


class _Patient:
    """A channel whose unary calls have a key, a deadline, typed errors, and safe repetitions."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str, patience: policy.Policy) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._patience = patience

    def unary_unary(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A coroutine function for one RPC. Its `timeout` is in seconds, for all attempts."""
        send = self._channel.unary_unary(path, *args, **kwargs)
        reads = policy.reads(path)

        async def call(request: Message, timeout: float | None = None, **rest: Any) -> Any:  # noqa: ASYNC109 # of all attempts
            metadata = (*self._metadata, *(rest.pop("metadata", None) or ()))
            end = time.monotonic() + (timeout or self._patience.timeout)
            repeats = reads or policy.has_key(request)
            attempt = 1
            while True:
                left = max(0.001, end - time.monotonic())
                try:
                    return await send(
                        request,
                        timeout=min(left, self._patience.attempt_timeout),
                        metadata=metadata,
                        **rest,
                    )
                except grpc.aio.AioRpcError as thrown:
                    error = ledger_error(thrown)
                    wait = self._patience.wait(
                        error, attempt, end - time.monotonic(), repeats=repeats
                    )
                    if wait is None:
                        raise error from thrown
                await asyncio.sleep(wait)
                attempt += 1

        return call

    def unary_stream(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for one RPC that is answered by a stream."""
        return self._with_key(self._channel.unary_stream(path, *args, **kwargs))

    def stream_stream(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for one RPC with a stream each way."""
        return self._with_key(self._channel.stream_stream(path, *args, **kwargs))

    def _with_key(self, send: Any) -> Callable[..., Any]:
        def call(*sent: Any, **rest: Any) -> Any:
            metadata = (*self._metadata, *(rest.pop("metadata", None) or ()))
            return send(*sent, metadata=metadata, **rest)

        return call


def _next_page(page: Any) -> str:
    token: str = page.next_page_token
    return token


async def _walk(
    ask: Any, request: Any, items: str, token: Callable[[Any], str]
) -> AsyncIterator[Any]:
    """Follow pages to the last one."""
    while True:
        page = await ask(request)
        for item in getattr(page, items):
            yield item
        if not token(page):
            return
        request.page_token = token(page)
