"""The deliverer sends what the notifier made, signed, until it is taken or a day is over.

It claims a delivery in the database for a while before it sends it, and writes the outcome after. A
server that dies in between leaves the delivery to be sent again, which is why events have ids. Each
endpoint has a few places of its own, and all failing ones together have at most half of all places,
so an endpoint that does not answer delays no other. It follows no redirect and uses no proxy; it
looks names up itself, and connects only to an address that may be called.
"""

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import structlog
from sqlalchemy import Connection

from creditledger.domain import clock as time
from creditledger.domain import ids, webhook_addresses
from creditledger.domain.webhook_events import (
    EVENT_HEADER,
    SIGNATURE_HEADER,
    Endpoint,
    next_attempt,
    signature,
)
from creditledger.engine.background_loop import BackgroundLoop
from creditledger.store import Store
from creditledger.store.sealing import CannotUnseal, Seal
from creditledger.store.webhooks import feed as webhook_feed
from creditledger.store.webhooks.feed import AttemptOutcome, Claimed

log = structlog.get_logger()

#: What an attempt may take in all, and for how long no other server makes one.
ATTEMPT_SECONDS_MAX = 10.0
CLAIM_MS = 20 * time.SECOND
#: What the connection to one of several addresses may take.
CONNECT_SECONDS_MAX = 3.0
#: What is sent to one endpoint at the same time as long as it answers, and what is claimed of it,
#: so that there is always something to send; and both while it does not answer.
PLACES, CLAIMS, FAILING = 8, 64, 1
#: Endpoints with something to send that are looked at in one transaction.
ENDPOINTS_MAX = 100
#: How often it looks unasked: for what is due again, and for what other servers made.
LOOK_SECONDS = 1.0
#: Outcomes written together wait so long for each other: on SQLite each transaction is an fsync.
GATHER_SECONDS = 0.02
#: Of an answer only its status matters; what is read beyond is for the connection to be used again.
ANSWER_BYTES_MAX = 4_096
#: What is too old goes so often, so much at a time.
FORGET_SECONDS, FORGET_ROWS = 60.0, 500
GONE = 410

_HEADERS = (("Content-Type", "application/json"), ("User-Agent", "creditledger"))


class _NotAllowed(Exception):
    """The endpoint's name resolves to an address that must not be called."""


class _Network(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked; a later change of the name changes nothing."""

    def __init__(self, look_ups: int, *, allow_private: bool) -> None:
        self._backend = httpcore.AnyIOBackend()
        self._look_ups = asyncio.Semaphore(look_ups)
        self._allow_private = allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 # as the base class has it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The first address that takes the connection. Raises _NotAllowed, httpcore's errors."""
        try:
            addresses = await self._addresses(host, port)
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the name is not known") from None
        if not self._allow_private and not all(map(webhook_addresses.is_public, addresses)):
            raise _NotAllowed
        failed: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed

    async def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of the name. Raises OSError, UnicodeError."""
        await self._look_ups.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[str]] = loop.create_future()

        def tell(found: list[str], error: Exception | None) -> None:
            self._look_ups.release()
            if done.done():
                return  # the caller has given up
            if error is None:
                done.set_result(found)
            else:
                done.set_exception(error)

        def look_up() -> None:
            found: list[str] = []
            failed: Exception | None = None
            try:
                every = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(one[4][0]) for one in every))
            except Exception as error:  # it is raised where it is waited for
                failed = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, found, failed)

        # A thread of its own that a process does not wait for as it ends: a name server that is
        # silent keeps it for half a minute.
        threading.Thread(target=look_up, name=f"look up {host}", daemon=True).start()
        return await done

    async def sleep(self, seconds: float) -> None:
        """As it says."""
        await asyncio.sleep(seconds)


def _given_back(claimed: Claimed, now: int) -> AttemptOutcome:
    """Not sent: it may be claimed again at once."""
    return AttemptOutcome(claimed, False, None, None, now, unsent=True)


class Deliverer:
    """One per server; several share the work, each delivery claimed by one of them."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], int],
        connections: int,
        seal: Seal,
        allow_private: bool,
        retention_ms: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._seal = seal
        self._places = connections
        self._retention_ms = retention_ms
        self._http = httpcore.AsyncConnectionPool(
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=15.0,
            network_backend=_Network(connections, allow_private=allow_private),
        )
        self.loop = BackgroundLoop(
            "deliverer",
            self._step,
            interval_seconds=LOOK_SECONDS,
            failure="webhooks not sent",
            gather_seconds=GATHER_SECONDS,
        )
        self._forgot_at: float | None = None
        self._connections = asyncio.Semaphore(connections)
        self._places_of: dict[int, asyncio.Semaphore] = {}  #: By endpoint with something claimed.
        self._sending: dict[asyncio.Task[AttemptOutcome], Claimed] = {}
        self._ended: list[AttemptOutcome] = []
        self._failing: set[int] = set()  #: Endpoints whose last attempt did not succeed.
        self._last = 0  #: The endpoint that was last looked at: the next one comes first.
        # No receiver gains by guessing the time of the next attempt.
        self._chance = random.Random()  # noqa: S311 # as said

    async def stop(self) -> None:
        """Send no more; what is under way is given up and sent again later."""
        await self.loop.stop()
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        now = self._clock()
        for claimed in self._sending.values():
            self._ended.append(_given_back(claimed, now))
        if self._ended:
            with contextlib.suppress(Exception):  # else they are sent again after the claim
                await self._exchange({})
        await self._http.aclose()

    async def _step(self) -> None:
        while await self.send():
            pass
        now = asyncio.get_running_loop().time()
        if self._forgot_at is None:
            self._forgot_at = now
        if now - self._forgot_at >= FORGET_SECONDS:
            self._forgot_at = now
            await self.forget()

    async def send(self) -> bool:
        """Write down what has ended and begin to send what there is room for.

        Answers whether there are more endpoints to look at, and room.

        Raises what the store raises.
        """
        now, after = self._clock(), self._last
        found = await self._store.read(lambda c: webhook_feed.due(c, now, after, ENDPOINTS_MAX))
        self._last = found[-1].number if len(found) == ENDPOINTS_MAX else 0
        endpoints = {one.number: one for one in found}
        rooms = self._rooms(endpoints)
        if not rooms and not self._ended:
            return False
        claimed = await self._exchange(rooms)
        for one in claimed:
            places = self._places_of.setdefault(one.endpoint, asyncio.Semaphore(PLACES))
            probe = one.endpoint in self._failing
            attempt = self._in_turn(endpoints[one.endpoint], one, places, probe=probe)
            task = asyncio.create_task(attempt)
            self._sending[task] = one
            task.add_done_callback(self._done)
        return self._last != 0 and len(self._sending) < 4 * self._places

    async def forget(self) -> int:
        """Delete the deliveries that are past their retention; answers how many."""
        before, forgotten = self._clock() - self._retention_ms, 0
        while True:
            count = await self._store.write(lambda c: webhook_feed.forget(c, before, FORGET_ROWS))
            forgotten += count
            if count < FORGET_ROWS:
                return forgotten

    def _rooms(self, endpoints: Iterable[int]) -> dict[int, int]:
        """How many more may be claimed, by endpoint."""
        claimed = Counter(one.endpoint for one in self._sending.values())
        free = 4 * self._places - len(self._sending)
        failing = max(1, self._places // 2) - sum(claimed[number] for number in self._failing)
        rooms = {}
        for number in endpoints:
            if number in self._failing:
                room = min(FAILING - claimed[number], failing, free)
                failing -= max(room, 0)
            else:
                room = min(CLAIMS - claimed[number], free)
            if room > 0:
                rooms[number] = room
                free -= room
        return rooms

    async def _exchange(self, rooms: dict[int, int]) -> list[Claimed]:
        """Outcomes for claims, in one transaction."""
        ended, self._ended = self._ended, []
        now = self._clock()

        def change(connection: Connection) -> list[Claimed]:
            webhook_feed.settle(connection, ended, now)
            return webhook_feed.claim(connection, rooms, now=now, until=now + CLAIM_MS)

        try:
            return await self._store.write(change)
        except BaseException:
            self._ended = ended + self._ended
            raise

    def _done(self, task: "asyncio.Task[AttemptOutcome]") -> None:
        if task.cancelled():
            return
        claimed = self._sending.pop(task)
        if all(one.endpoint != claimed.endpoint for one in self._sending.values()):
            del self._places_of[claimed.endpoint]
        outcome = task.result()
        self._ended.append(outcome)
        if outcome.delivered:
            self._failing.discard(claimed.endpoint)
        elif not outcome.unsent:
            self._failing.add(claimed.endpoint)
        self.loop.wake()

    async def _in_turn(
        self, endpoint: Endpoint, claimed: Claimed, places: asyncio.Semaphore, *, probe: bool
    ) -> AttemptOutcome:
        """An attempt when there is a place for it, unless the endpoint has begun to fail by then.

        `probe`: it failed already, and this is to see whether it still does.
        """
        async with places:
            if endpoint.number in self._failing and not probe:
                return _given_back(claimed, self._clock())
            async with self._connections:
                now = self._clock()
                if now + ATTEMPT_SECONDS_MAX * time.SECOND > claimed.until:
                    return _given_back(claimed, now)
                return await self._attempt(endpoint, claimed)

    async def _attempt(self, endpoint: Endpoint, claimed: Claimed) -> AttemptOutcome:
        status: int | None = None
        error: str | None = None
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS_MAX):
                status = await self._post(endpoint, claimed)
            if not 200 <= status <= 299:
                error = f"the answer was {status}"
        except TimeoutError:
            error = f"no answer within {ATTEMPT_SECONDS_MAX:g} seconds"
        except CannotUnseal:
            error = "its secret is sealed by a key that this server does not have"
        except _NotAllowed:
            error = "the name leads to this machine or a private network"
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
            error = "no connection"
            if isinstance(failed.__cause__, ssl.SSLError):
                error = "no connection: its certificate or its TLS is not accepted"
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
            error = "the connection broke before an answer"
        except Exception:
            log.error("webhook attempt", endpoint=endpoint.id, exc_info=True)
            error = "it could not be sent"
        now, gone = self._clock(), status == GONE
        again = None
        if error is not None and not gone:
            again = next_attempt(now, claimed.give_up_at, self._chance.random())
        id_ = ids.compose("evt", claimed.wallet, claimed.number)
        log.info("webhook", endpoint=endpoint.id, event_id=id_, status=status, error=error)
        return AttemptOutcome(claimed, error is None, status, error, again, gone)

    async def _post(self, endpoint: Endpoint, claimed: Claimed) -> int:
        """The status of the answer."""
        now, body = self._clock(), claimed.body.encode()
        secrets = [self._seal.unseal(one, endpoint.id) for one in endpoint.secrets(now)]
        headers = [
            *_HEADERS,
            (EVENT_HEADER, ids.compose("evt", claimed.wallet, claimed.number)),
            (SIGNATURE_HEADER, signature(body, secrets, now)),
        ]
        async with self._http.stream(
            "POST",
            endpoint.url,
            headers=headers,
            content=body,
            extensions={"timeout": {"connect": CONNECT_SECONDS_MAX}},
        ) as answer:
            size = 0
            async for piece in answer.aiter_stream():
                size += len(piece)
                if size > ANSWER_BYTES_MAX:
                    break
            return int(answer.status)
