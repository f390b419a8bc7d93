"""The client for threads."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self

import grpc
from credit.v1 import credit_grant_service_pb2 as grants_pb
from credit.v1 import credit_transaction_service_pb2 as transactions_pb
from credit.v1 import registry_service_pb2 as registry_pb
from credit.v1 import wallet_service_pb2 as pb

from creditledger_client import policy
from creditledger_client.errors import LedgerError, ledger_error
from creditledger_client.messages import capture_request, posting_request
from creditledger_client.stubs import add_stubs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from credit.v1.credit_grant_service_pb2 import CreditGrant
    from credit.v1.credit_transaction_pb2 import CreditTransaction
    from google.protobuf.message import Message

    from creditledger_client.policy import Amount


class Client:
    """A ledger, under one API key. Threads may share it.

    The stubs of the services are `api_keys`, `billing`, `clock`, `grants`, `operators`,
    `payment_kit`, `registry`, `statements`, `transactions`, `wallets` and `webhooks`. Every call
    raises LedgerError.
    """

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
        """Connect when the first call is made.

        url: `http://host:port` or `https://host:port`, of the proxy or of a server.
        timeout, attempt_timeout: seconds that a call, and one attempt of it, may take.
        credentials: for https, if not those of the system.
        Raises ValueError for a URL that is none.
        """
        at, secure = policy.target(url)
        if secure:
            self._channel = grpc.secure_channel(at, credentials or grpc.ssl_channel_credentials())
        else:
            self._channel = grpc.insecure_channel(at)
        patience = policy.Policy(timeout, attempt_timeout, attempts)
        add_stubs(self, _Patient(self._channel, api_key, patience))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and the connection."""
        self._channel.close()

    # --- spend and grant ---

    def consume(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> pb.Posting:
        """Spend credit.

        The key names this one intent: a repetition under it charges nothing more. `more` are
        further fields of ConsumptionOperation (`meter_id`, `usage` …) and of PostRequest
        (`description`, `metadata` …).
        """
        return self.post(posting_request("consumption", wallet_id, amount, idempotency_key, more))

    def grant(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> pb.Posting:
        """Give credit. `more` are further fields of GrantOperation and of PostRequest."""
        return self.post(posting_request("grant", wallet_id, amount, idempotency_key, more))

    def post(self, request: pb.PostRequest) -> pb.Posting:
        """Write one posting. If no answer tells what became of it, the ledger is asked again."""
        try:
            posting: pb.Posting = self.wallets.Post(request)
        except LedgerError as error:
            if not error.outcome_unknown or request.validate_only or not request.idempotency_key:
                raise
            try:
                return self.get_posting(request.wallet_id, request.idempotency_key)
            except LedgerError:
                # "Not found" may yet change: an attempt may still be under way.
                raise error from None
        return posting

    def hold(
        self, wallet_id: str, amount: Amount, *, idempotency_key: str | None = None, **more: Any
    ) -> OpenHold:
        """Set credit aside until it is captured or released. `more` are fields of HoldRequest.

        As a context manager the hold releases at its end what has not been captured.
        """
        key = idempotency_key or policy.new_key()
        request = pb.HoldRequest(
            wallet_id=wallet_id, amount=policy.amount_text(amount), idempotency_key=key, **more
        )
        return OpenHold(self, self.wallets.Hold(request).hold, key)

    # --- read ---

    def get_wallet(self, wallet_id: str) -> pb.Wallet:
        """A wallet and its balance."""
        wallet: pb.Wallet = self.wallets.GetWallet(pb.GetWalletRequest(wallet_id=wallet_id))
        return wallet

    def get_balance(self, wallet_id: str, **more: Any) -> pb.Balance:
        """The balance of a moment, by grant; `as_of` is RFC 3339. `more`: GetBalanceRequest."""
        request = pb.GetBalanceRequest(wallet_id=wallet_id, **more)
        balance: pb.Balance = self.wallets.GetBalance(request)
        return balance

    def get_posting(self, wallet_id: str, idempotency_key: str) -> pb.Posting:
        """The posting of an idempotency key."""
        request = pb.GetPostingRequest(wallet_id=wallet_id, idempotency_key=idempotency_key)
        posting: pb.Posting = self.wallets.GetPosting(request)
        return posting

    def list_transactions(self, **filters: Any) -> Iterator[CreditTransaction]:
        """All transactions that the filters match, newest first."""
        request = transactions_pb.CreditTransactionServiceListRequest(
            **{"page_size": policy.PAGE_SIZE, **filters}
        )
        return _walk(
            self.transactions.List, request, "list", lambda page: page.paging.next_page_token
        )

    def list_grants(self, **filters: Any) -> Iterator[CreditGrant]:
        """All grants that the filters match, newest first."""
        request = grants_pb.CreditGrantServiceListRequest(
            **{"page_size": policy.PAGE_SIZE, **filters}
        )
        return _walk(self.grants.List, request, "credit_grants", _next_page)

    def list_wallets(self, **filters: Any) -> Iterator[pb.Wallet]:
        """All wallets that the filters match, by id."""
        request = pb.ListWalletsRequest(**{"page_size": policy.PAGE_SIZE, **filters})
        return _walk(self.wallets.ListWallets, request, "wallets", _next_page)

    def list_holds(self, wallet_id: str, **filters: Any) -> Iterator[pb.HeldCredit]:
        """All holds of a wallet, newest first."""
        request = pb.ListHoldsRequest(
            **{"page_size": policy.PAGE_SIZE, "wallet_id": wallet_id, **filters}
        )
        return _walk(self.wallets.ListHolds, request, "holds", _next_page)

    def list_customers(self, **filters: Any) -> Iterator[registry_pb.Customer]:
        """All customers that the filters match."""
        request = registry_pb.ListCustomersRequest(**{"page_size": policy.PAGE_SIZE, **filters})
        return _walk(self.registry.ListCustomers, request, "customers", _next_page)

    def watch(
        self, *, heartbeat_seconds: int = policy.HEARTBEAT_S, **filters: Any
    ) -> Iterator[transactions_pb.CreditTransactionServiceWatchResponse]:
        """Transactions as they are committed, without end.

        Each message has those since the one before, and the cursor to ask `after` when they have
        been dealt with. A connection that breaks or falls silent is made anew, behind the last
        message. A refusal is raised.
        """
        request = transactions_pb.CreditTransactionServiceWatchRequest(
            heartbeat_seconds=heartbeat_seconds, **filters
        )
        failures = 0
        while True:
            call = self.transactions.Watch(request)
            try:
                while True:
                    # A connection that is gone without a word is ended from here.
                    alarm = threading.Timer(heartbeat_seconds * policy.MISSED_MAX, call.cancel)
                    alarm.daemon = True
                    alarm.start()
                    try:
                        message = next(call)
                    finally:
                        alarm.cancel()
                    failures = 0
                    yield message
                    request.after = message.cursor
            except StopIteration:
                pass
            except grpc.RpcError as thrown:
                error = ledger_error(thrown)
                if not error.passing:
                    raise error from thrown
            finally:
                call.cancel()
            failures += 1
            time.sleep(policy.pause(failures))


class OpenHold:
    """Credit that is set aside, to be captured in one or in several parts."""

    def __init__(self, client: Client, credit: pb.HeldCredit, key: str) -> None:
        self._client = client
        self._key = key
        self._captures = 0
        #: The hold as the last answer had it.
        self.credit = credit

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LedgerError:
            # What the block raised says more; the hold's deadline ends it too.
            if kind is None:
                raise

    def capture(
        self, amount: Amount | None = None, *, final: bool = True, **more: Any
    ) -> pb.CaptureHoldResponse:
        """Consume what was used, and give the rest back; `final=False` keeps the rest for more.

        Without an amount all of it is captured. `more` are fields of CaptureHoldRequest.
        """
        request = capture_request(self.credit.id, self._key, self._captures, amount, final, more)
        answer: pb.CaptureHoldResponse = self._client.wallets.CaptureHold(request)
        self._captures += 1
        self.credit = answer.hold
        return answer

    def release(self) -> None:
        """End it and give back what is left. What has ended already stays as it is."""
        if self.credit.status == "open":
            request = pb.ReleaseHoldRequest(
                hold_id=self.credit.id, idempotency_key=f"{self._key}:release"
            )
            self.credit = self._client.wallets.ReleaseHold(request).hold


class _Patient:
    """A channel whose unary calls have a key, a deadline, typed errors, and safe repetitions."""

    def __init__(self, channel: grpc.Channel, api_key: str, patience: policy.Policy) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {api_key}"),)
        self._patience = patience

    def unary_unary(self, path: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """A callable for one RPC. Its `timeout` is in seconds, for all attempts."""
        send = self._channel.unary_unary(path, *args, **kwargs)
        reads = policy.reads(path)

        def call(request: Message, timeout: float | None = None, **rest: Any) -> Any:
            metadata = (*self._metadata, *(rest.pop("metadata", None) or ()))
            end = time.monotonic() + (timeout or self._patience.timeout)
            repeats = reads or policy.has_key(request)
            attempt = 1
            while True:
                left = max(0.001, end - time.monotonic())
                try:
                    return send(
                        request,
                        timeout=min(left, self._patience.attempt_timeout),
                        metadata=metadata,
                        **rest,
                    )
                except grpc.RpcError as thrown:
                    error = ledger_error(thrown)
                    wait = self._patience.wait(
                        error, attempt, end - time.monotonic(), repeats=repeats
                    )
                    if wait is None:
                        raise error from thrown
                time.sleep(wait)
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


def _walk(ask: Any, request: Any, items: str, token: Callable[[Any], str]) -> Iterator[Any]:
    """Follow pages to the last one."""
    while True:
        page = ask(request)
        yield from getattr(page, items)
        if not token(page):
            return
        request.page_token = token(page)
