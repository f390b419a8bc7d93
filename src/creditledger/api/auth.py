"""Callers and their rights: API keys, scopes, modes.

A key's secret is `sk-` and 43 characters (256 random bits); the database holds its SHA-256 only,
which needs no salt or stretching for a random secret. Keys are cached for two seconds, so that a
revocation by another server holds within that; a revocation by this one holds at once.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from creditledger.domain.errors import (
    CustomerKeyRequired,
    KeyInvalid,
    KeyMissing,
    ModeMismatch,
    NotFound,
    ScopeDenied,
    echo,
)
from creditledger.domain.model import NEVER
from creditledger.domain.registry import Scope
from creditledger.store import Store
from creditledger.store.registry import records

CACHE_MS_MAX = 2_000
#: Distinct keys kept; beyond, the cache starts anew.
CACHED_MAX = 10_000

_SECRET = re.compile(r"sk-[A-Za-z0-9_-]{16,128}", re.ASCII)
#: What may surround a header's value. No others: a transport writes what is not ASCII to its log.
_BLANKS = " \t"


class OfCustomer(Protocol):
    """A wallet, or what says of which customer and mode its wallet is."""

    @property
    def customer_id(self) -> str: ...
    @property
    def livemode(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of an RPC, with its rights."""

    scope: Scope
    customer_id: str | None  #: Of a customer key.
    livemode: bool | None  #: The mode it acts in; None: both (the command line's own socket).
    number: int | None  #: Of its key; None without one.
    id: str
    name: str

    def require(self, scope: Scope) -> None:
        """Raises ScopeDenied if the caller may less than `scope`."""
        if self.scope < scope:
            raise ScopeDenied(f"this call needs a key of scope {scope.word}")

    def require_live(self) -> None:
        """Raises ModeMismatch if the caller has a test key.

        What live and test mode share is part of live operation: only a live key changes it.
        """
        if self.livemode is False:
            raise ModeMismatch("live and test mode share this: only a live key changes it")

    def mode(self, livemode: bool | None, *, field: str = "livemode") -> bool:
        """The mode a call acts in. Raises ModeMismatch if it names the one the key lacks."""
        if self.livemode is None:
            return True if livemode is None else livemode
        if livemode is not None and livemode != self.livemode:
            has = "live" if self.livemode else "test"
            raise ModeMismatch(f"this key acts in {has} mode", param=field)
        return self.livemode

    def customer(self) -> str:
        """ "me". Raises CustomerKeyRequired."""
        if self.customer_id is None:
            raise CustomerKeyRequired("this call speaks of the key's own customer: use its key")
        return self.customer_id

    def may_see(self, customer_id: str) -> bool:
        """Whether this customer's affairs exist for the caller."""
        return self.customer_id in (None, customer_id)

    def may_see_wallet(self, wallet: OfCustomer) -> bool:
        """Whether the wallet, and what is on it, exist for the caller."""
        return self.may_see(wallet.customer_id) and self.livemode in (None, wallet.livemode)

    def own(self, customer_id: str | None, *, field: str = "customer_id") -> str | None:
        """The customer a list is narrowed to. Raises NotFound for another one's id."""
        if self.customer_id is None or customer_id is None:
            return customer_id or self.customer_id
        if customer_id != self.customer_id:
            raise NotFound(f"no customer {echo(customer_id)}", param=field)
        return customer_id


#: Who comes through the Unix socket beside the database: the file's mode lets its owner in only.
LOCAL = Caller(Scope.ADMIN, None, None, None, "local", "command line")


def new_secret() -> str:
    """A fresh secret."""
    return "sk-" + secrets.token_urlsafe(32)


def secret_hash(secret: str) -> bytes:
    """The hash of a secret, which the database stores."""
    return hashlib.sha256(secret.encode()).digest()


def mask(secret: str) -> str:
    """A secret as lists show it."""
    return f"sk-****{secret[-4:]}"


@dataclass(frozen=True, slots=True)
class _KnownKey:
    """A key as it was read, and who calls with it."""

    caller: Caller
    revoked: bool
    expires_at: int
    read_at: int


class Callers:
    """Turns credentials into callers."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        self._store = store
        self._clock = clock
        self._cache: dict[bytes, _KnownKey] = {}  #: By the secret's hash.
        self._reading: dict[bytes, asyncio.Task[_KnownKey]] = {}  #: Under way, by the same.
        self._forgotten = 0  #: How often `forget` was called.

    async def identify(self, metadata: Iterable[tuple[str, str]], *, local: bool) -> Caller:
        """The caller of an RPC; `local`: it came in through the owner's Unix socket.

        Raises KeyMissing, KeyInvalid.
        """
        if local:
            return LOCAL
        secret = _secret(metadata)
        hashed = secret_hash(secret)
        now = self._clock()
        known = self._cache.get(hashed)
        if known is None or not 0 <= now - known.read_at < CACHE_MS_MAX:
            known = await self._read_once(hashed, now)
        if known.revoked:
            raise KeyInvalid("the API key is revoked")
        if known.expires_at <= now:
            raise KeyInvalid("the API key has expired")
        return known.caller

    def forget(self, key_id: str) -> None:
        """Read this key anew before its next use."""
        self._cache = {h: one for h, one in self._cache.items() if one.caller.id != key_id}
        # Nor does anybody wait any more for one that is being read now.
        self._reading = {}
        self._forgotten += 1

    async def _read_once(self, hashed: bytes, now: int) -> _KnownKey:
        """The key as it is now, read once for all who wait for it."""
        reading = self._reading.get(hashed)
        if reading is None:
            reading = self._reading[hashed] = asyncio.create_task(self._read(hashed, now))
            reading.add_done_callback(lambda done: self._read_is_over(hashed, done))
        # Who gives up, gives up for himself.
        return await asyncio.shield(reading)

    def _read_is_over(self, hashed: bytes, done: "asyncio.Task[_KnownKey]") -> None:
        if self._reading.get(hashed) is done:
            del self._reading[hashed]
        if not done.cancelled():
            done.exception()  # perhaps nobody waits for it any more

    async def _read(self, hashed: bytes, now: int) -> _KnownKey:
        forgotten = self._forgotten
        found = await self._store.read(lambda c: records.key_by_hash(c, hashed), urgent=True)
        if found is None or not hmac.compare_digest(found[1], hashed):
            raise KeyInvalid("there is no such API key")
        key = found[0]
        known = _KnownKey(
            Caller(key.scope, key.customer_id, key.livemode, key.number, key.id, key.name),
            revoked=key.revoked_at is not None,
            expires_at=NEVER if key.expires_at is None else key.expires_at,
            read_at=now,
        )
        # What was read while a key was being revoked may be the key as it was before.
        if forgotten == self._forgotten:
            if len(self._cache) >= CACHED_MAX:
                self._cache.clear()
            self._cache[hashed] = known
        return known


def _secret(metadata: Iterable[tuple[str, str]]) -> str:
    found = set()
    for name, value in metadata:
        if name == "authorization" and value:
            scheme, _, credential = value.partition(" ")
            if scheme.lower() != "bearer":
                raise KeyInvalid("authorization must be: Bearer sk-…")
            found.add(credential.strip(_BLANKS))
        elif name == "x-api-key" and value:
            found.add(value.strip(_BLANKS))
    if not found:
        raise KeyMissing("an API key is required, as authorization: Bearer sk-…")
    if len(found) > 1:
        raise KeyInvalid("the request carries two different API keys")
    secret = found.pop()
    if not _SECRET.fullmatch(secret):
        raise KeyInvalid("the API key is malformed")
    return secret
