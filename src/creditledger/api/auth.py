"""Callers and their rights: API keys, scopes, modes.

A key's secret is `sk-` and 43 characters (256 random bits). The database holds its SHA-256 only; a
random secret needs no salt or stretching. Keys are cached for two seconds, so a revocation by
another server takes effect within two seconds. A revocation by this server takes effect at once.
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
#: Keys in the cache; a full cache is cleared.
CACHED_MAX = 10_000

_SECRET = re.compile(r"sk-[A-Za-z0-9_-]{16,128}", re.ASCII)
_CODE = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
#: Characters that may surround a header's value. No others: a transport logs non-ASCII values.
_BLANKS = " \t"


class OfCustomer(Protocol):
    """A wallet, or a value that has the customer and mode of its wallet."""

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
    number: int | None  #: The number of its key; None: it has no key.
    id: str
    name: str

    def require(self, scope: Scope) -> None:
        """Raises ScopeDenied if the caller's scope is below `scope`."""
        if self.scope < scope:
            raise ScopeDenied(f"this call needs a key of scope {scope.word}")

    def require_live(self) -> None:
        """Raises ModeMismatch if the caller has a test key.

        Live and test mode share some things. Live operation needs them, so only a live key may
        change them.
        """
        if self.livemode is False:
            raise ModeMismatch("live and test mode share this: only a live key changes it")

    def mode(self, livemode: bool | None, *, field: str = "livemode") -> bool:
        """The mode in which a call acts. Raises ModeMismatch for a mode that the key lacks."""
        if self.livemode is None:
            return True if livemode is None else livemode
        if livemode is not None and livemode != self.livemode:
            has = "live" if self.livemode else "test"
            raise ModeMismatch(f"this key acts in {has} mode", param=field)
        return self.livemode

    def customer(self) -> str:
        """The customer that "me" stands for. Raises CustomerKeyRequired."""
        if self.customer_id is None:
            raise CustomerKeyRequired("this call speaks of the key's own customer: use its key")
        return self.customer_id

    def may_see(self, customer_id: str) -> bool:
        """Whether the caller may see this customer's data."""
        return self.customer_id in (None, customer_id)

    def may_see_wallet(self, wallet: OfCustomer) -> bool:
        """Whether the caller may see the wallet and its contents."""
        return self.may_see(wallet.customer_id) and self.livemode in (None, wallet.livemode)

    def own(self, customer_id: str | None, *, field: str = "customer_id") -> str | None:
        """The only customer that a list shows; None: all. Raises NotFound for another's id."""
        if self.customer_id is None or customer_id is None:
            return customer_id or self.customer_id
        if customer_id != self.customer_id:
            raise NotFound(f"no customer {echo(customer_id)}", param=field)
        return customer_id


#: The caller behind the Unix socket beside the database: the file's mode admits its owner only.
LOCAL = Caller(Scope.ADMIN, None, None, None, "local", "command line")


def new_secret() -> str:
    """A fresh secret."""
    return "sk-" + secrets.token_urlsafe(32)


def new_code() -> str:
    """A fresh code, which opens a session once."""
    return secrets.token_urlsafe(32)


def code_hash(code: str) -> bytes | None:
    """The hash of a code, which the database stores; None for what can be no code."""
    return secret_hash(code) if _CODE.fullmatch(code) else None


def secret_hash(secret: str) -> bytes:
    """The hash of a secret, which the database stores."""
    return hashlib.sha256(secret.encode()).digest()


def mask(secret: str) -> str:
    """A secret as lists show it: its last four characters."""
    return f"sk-****{secret[-4:]}"


@dataclass(frozen=True, slots=True)
class _KnownKey:
    """A key as the database had it at `read_at`, and its caller."""

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
        #: Reads under way, by the same hash.
        self._reading: dict[bytes, asyncio.Task[_KnownKey]] = {}
        self._forgotten = 0  #: How often `forget` was called.
        self._uses: dict[int, int] = {}  #: When keys were used, by number; not written down yet.

    async def identify(self, metadata: Iterable[tuple[str, str]], *, local: bool) -> Caller:
        """The caller of an RPC; `local`: the call came through the owner's Unix socket.

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
        """Drop the key from the cache, so that its next use reads it from the database."""
        self._cache = {h: one for h, one in self._cache.items() if one.caller.id != key_id}
        # A read under way may have the old state of the key: later calls must not wait for it.
        self._reading = {}
        self._forgotten += 1

    def take_uses(self) -> dict[int, int]:
        """When keys, by their numbers, were used that nobody has written down for an hour."""
        taken, self._uses = self._uses, {}
        return taken

    async def _read_once(self, hashed: bytes, now: int) -> _KnownKey:
        """The key as the database has it; calls at the same time share one read."""
        reading = self._reading.get(hashed)
        if reading is None:
            reading = self._reading[hashed] = asyncio.create_task(self._read(hashed, now))
            reading.add_done_callback(lambda done: self._read_is_over(hashed, done))
        # Shielded: a call that is cancelled does not cancel the read that others wait for.
        return await asyncio.shield(reading)

    def _read_is_over(self, hashed: bytes, done: "asyncio.Task[_KnownKey]") -> None:
        if self._reading.get(hashed) is done:
            del self._reading[hashed]
        if not done.cancelled():
            done.exception()  # marks it as retrieved: perhaps no call waits for it any more

    async def _read(self, hashed: bytes, now: int) -> _KnownKey:
        forgotten = self._forgotten
        found = await self._store.read(lambda c: records.key_by_hash(c, hashed), urgent=True)
        if found is None or not hmac.compare_digest(found[1], hashed):
            raise KeyInvalid("there is no such API key")
        key = found[0]
        is_good = key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
        is_written = key.last_used_at is not None and now - key.last_used_at < records.USE_MS
        # A key in use is read every two seconds, so calls that find it in the cache need not tell.
        if is_good and not is_written and len(self._uses) < CACHED_MAX:
            self._uses[key.number] = now
        known = _KnownKey(
            Caller(key.scope, key.customer_id, key.livemode, key.number, key.id, key.name),
            revoked=key.revoked_at is not None,
            expires_at=NEVER if key.expires_at is None else key.expires_at,
            read_at=now,
        )
        # A read that overlaps a revocation may have the key's old state, so it is not cached.
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
