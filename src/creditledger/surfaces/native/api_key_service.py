"""ApiKeyService: the credentials of clients."""

import asyncio
from dataclasses import dataclass

from credit.v1 import api_key_service_pb2 as pb
from credit.v1 import api_key_service_pb2_grpc
from sqlalchemy import Connection

from creditledger.api import auth, fields, pages
from creditledger.api.auth import Caller
from creditledger.api.rpc import Service, rpc, rpc_of_nobody
from creditledger.domain import clock as time
from creditledger.domain import ids
from creditledger.domain.errors import InvalidField, KeyInvalid, MissingField, NotFound, echo
from creditledger.domain.registry import ApiKey, Scope, SessionCode
from creditledger.store.change_keys import Kept
from creditledger.store.registry import records, session_codes

#: How long a code opens a session, and how long the session lasts.
CODE_MS = time.MINUTE
SESSION_MS = 12 * time.HOUR
#: For how long a key is good beside the one that replaces it.
OVERLAP_MS, OVERLAP_MS_MAX = time.DAY, 30 * time.DAY
#: The name of a session's key.
SESSION_NAME = "console session"
SCOPES = {scope.word: scope for scope in Scope}


@dataclass(frozen=True, slots=True)
class _NewKey:
    name: str
    scope: Scope
    customer_id: str | None
    livemode: bool | None
    expires_at: int | None


def _scope(
    request: pb.CreateApiKeyRequest | pb.CreateSessionCodeRequest,
) -> tuple[Scope, str | None]:
    """A scope, and the customer that it is narrowed to."""
    scope = fields.word(fields.required(request.scope, field="scope"), SCOPES, field="scope")
    customer_id = fields.optional_reference("cus", request, "customer_id", field="customer_id")
    if scope is Scope.CUSTOMER and customer_id is None:
        raise MissingField("customer_id")
    if scope is not Scope.CUSTOMER and customer_id is not None:
        raise InvalidField(
            f"customer_id must be left out: a key of scope {scope.word} is no customer's",
            param="customer_id",
        )
    return scope, customer_id


def _new_key(request: pb.CreateApiKeyRequest) -> _NewKey:
    name = fields.name(request.name)
    scope, customer_id = _scope(request)
    return _NewKey(
        name=name,
        scope=scope,
        customer_id=customer_id,
        livemode=fields.livemode(request),
        expires_at=fields.optional_time(request, "expires_at", field="expires_at"),
    )


@dataclass(frozen=True, slots=True)
class _KeyList:
    page: pages.PageRequest
    livemode: bool | None
    customer_id: str | None


def _key_list(request: pb.ListApiKeysRequest) -> _KeyList:
    return _KeyList(
        page=pages.asked(request),
        livemode=fields.livemode(request),
        customer_id=fields.optional_reference("cus", request, "customer_id", field="customer_id"),
    )


def _nothing(_request: pb.GetCurrentApiKeyRequest) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _NewCode:
    scope: Scope
    customer_id: str | None
    livemode: bool | None


def _new_code(request: pb.CreateSessionCodeRequest) -> _NewCode:
    scope, customer_id = _scope(request)
    return _NewCode(scope, customer_id, fields.livemode(request))


def _code(request: pb.OpenSessionRequest) -> str:
    return fields.required(request.code, field="code")


def _key_id(request: pb.RevokeApiKeyRequest) -> str:
    return fields.reference("apk", request.id, field="id")


def _rotation(request: pb.RotateApiKeyRequest) -> tuple[str, int]:
    """Which key, and for how long it is good beside the new one."""
    overlap = OVERLAP_MS
    if request.HasField("overlap_seconds"):
        seconds, most = request.overlap_seconds, OVERLAP_MS_MAX // time.SECOND
        overlap = fields.number(seconds, least=0, most=most, field="overlap_seconds") * time.SECOND
    return fields.reference("apk", request.id, field="id"), overlap


def _optional_text(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else time.text(milliseconds)


def _key(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        id=key.id,
        name=key.name,
        scope=key.scope.word,
        customer_id=key.customer_id,
        livemode=key.livemode,
        mask=key.mask,
        created_at=time.text(key.created_at),
        expires_at=_optional_text(key.expires_at),
        revoked_at=_optional_text(key.revoked_at),
        session=key.is_session,
        last_used_at=_optional_text(key.last_used_at),
    )


class ApiKeyService(Service, api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """Served to administrators over gRPC and, through Envoy, over REST; some RPCs to others.

    A key makes, sees and revokes keys of its own mode; the command line's socket those of both.
    """

    @rpc(_new_key, scope=Scope.ADMIN)
    async def CreateApiKey(  # noqa: N802
        self, new: _NewKey, caller: Caller
    ) -> pb.CreateApiKeyResponse:
        """The key and its secret, which only this answer holds: a replay has none.

        Two calls without an idempotency key make two keys.
        Raises ModeMismatch, InvalidField for an end that is past, NotFound for the customer.
        """
        livemode = caller.mode(new.livemode)
        now, secret = self._clock(), auth.new_secret()

        def create(connection: Connection) -> ApiKey:
            if new.expires_at is not None and new.expires_at <= now:
                raise InvalidField("expires_at must be in the future", param="expires_at")
            return records.create_api_key(
                connection,
                id_=ids.random("apk"),
                secret_hash=auth.secret_hash(secret),
                name=new.name,
                scope=new.scope,
                customer_id=new.customer_id,
                livemode=livemode,
                mask=auth.mask(secret),
                expires_at=new.expires_at,
                now=now,
            )

        made = await self._once(create, _again, lambda one: one.id)
        return pb.CreateApiKeyResponse(
            api_key=_key(made.value), secret="" if made.replayed else secret
        )

    @rpc(_key_list, scope=Scope.ADMIN)
    async def ListApiKeys(  # noqa: N802
        self, wanted: _KeyList, caller: Caller
    ) -> pb.ListApiKeysResponse:
        """Revoked and expired ones too, ordered by id. Raises ModeMismatch.

        Sessions that have ended are left out: there is one for each time that somebody looks at the
        console. Their rows stay, because postings name the key that made them.
        """
        # Where the caller has no mode, neither has the list.
        livemode = wanted.livemode
        if caller.livemode is not None:
            livemode = caller.mode(livemode)
        filters = ("api_keys", livemode, wanted.customer_id)
        after, now = wanted.page.after(filters), self._clock()
        found = await self._store.read(
            lambda connection: records.api_keys(
                connection,
                after,
                wanted.page.size,
                now=now,
                customer_id=wanted.customer_id,
                livemode=livemode,
            )
        )
        page, token = pages.cut(found, wanted.page.size, filters, lambda one: [one.id])
        return pb.ListApiKeysResponse(api_keys=[_key(one) for one in page], next_page_token=token)

    @rpc(_nothing, scope=Scope.CUSTOMER)
    async def GetCurrentApiKey(self, _: None, caller: Caller) -> pb.ApiKey:  # noqa: N802
        """The caller's own key. Raises NotFound for a caller without one."""
        found = await self._store.read(lambda connection: records.api_key(connection, caller.id))
        if found is None:
            raise NotFound("the command line has no API key")
        return _key(found)

    @rpc(_key_id, scope=Scope.ADMIN)
    async def RevokeApiKey(self, key_id: str, caller: Caller) -> pb.ApiKey:  # noqa: N802
        """The key with the time of its first revocation. Raises NotFound."""
        # A caller who goes away must not leave the key revoked on disk and alive in the cache.
        return _key(await asyncio.shield(asyncio.ensure_future(self._revoke(key_id, caller))))

    @rpc(_rotation, scope=Scope.ADMIN)
    async def RotateApiKey(  # noqa: N802
        self, wanted: tuple[str, int], caller: Caller
    ) -> pb.RotateApiKeyResponse:
        """The new key, its secret, and the one before with its end.

        Raises NotFound, and InvalidField for a key that is no good any more or a session's.
        """
        # As in RevokeApiKey.
        return await asyncio.shield(asyncio.ensure_future(self._rotate(*wanted, caller)))

    async def _rotate(
        self, key_id: str, overlap_ms: int, caller: Caller
    ) -> pb.RotateApiKeyResponse:
        now, secret = self._clock(), auth.new_secret()

        def one(connection: Connection) -> ApiKey:
            found = records.api_key(connection, key_id)
            if found is None or caller.livemode not in (None, found.livemode):
                raise NotFound(f"no API key {echo(key_id)}", param="id")
            return found

        def rotate(connection: Connection) -> tuple[ApiKey, ApiKey]:
            old = one(connection)
            if old.is_session:
                raise InvalidField("a session is not rotated: it ends by itself", param="id")
            if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
                raise InvalidField(
                    "the key is revoked or has ended: make a new one instead", param="id"
                )
            made = records.create_api_key(
                connection,
                id_=ids.random("apk"),
                secret_hash=auth.secret_hash(secret),
                name=old.name,
                scope=old.scope,
                customer_id=old.customer_id,
                livemode=old.livemode,
                mask=auth.mask(secret),
                expires_at=old.expires_at,
                now=now,
            )
            return made, records.end_api_key(connection, old, now + overlap_ms)

        def again(connection: Connection, kept: Kept) -> tuple[ApiKey, ApiKey]:
            return _again(connection, kept), one(connection)

        made = await self._once(rotate, again, lambda both: both[0].id)
        self.callers.forget(key_id)
        key, replaced = made.value
        return pb.RotateApiKeyResponse(
            api_key=_key(key), secret="" if made.replayed else secret, replaced=_key(replaced)
        )

    @rpc(_new_code, scope=Scope.ADMIN)
    async def CreateSessionCode(  # noqa: N802
        self, new: _NewCode, caller: Caller
    ) -> pb.CreateSessionCodeResponse:
        """A code, which only this answer holds: a replay has none.

        Raises ModeMismatch, NotFound for the customer, InvalidField for an archived one.
        """
        now, code = self._clock(), auth.new_code()
        made = SessionCode(new.scope, new.customer_id, caller.mode(new.livemode), now + CODE_MS)
        hashed = auth.code_hash(code)
        assert hashed is not None, "a code is one"

        def create(connection: Connection) -> int:
            session_codes.add(connection, hashed, made, now)
            return made.expires_at

        # The code is gone when it is used, so its end is all that a replay can tell.
        kept = await self._once(create, lambda _, kept: int(kept.id), str)
        return pb.CreateSessionCodeResponse(
            code="" if kept.replayed else code, expires_at=time.text(kept.value)
        )

    @rpc_of_nobody(_code)
    async def OpenSession(self, code: str) -> pb.OpenSessionResponse:  # noqa: N802
        """A key with what the code was made for. Raises KeyInvalid, whatever is wrong with it."""
        now, secret = self._clock(), auth.new_secret()
        hashed = auth.code_hash(code)
        # A stranger's guess is answered by a read, as an unknown key is, and costs no transaction.
        if hashed is None or not await self._store.read(
            lambda connection: session_codes.is_good(connection, hashed, now), urgent=True
        ):
            raise _no_such_code()

        def open_(connection: Connection) -> ApiKey:
            taken = session_codes.take(connection, hashed, now)
            if taken is None:
                raise _no_such_code()
            return records.create_api_key(
                connection,
                id_=ids.random("apk"),
                secret_hash=auth.secret_hash(secret),
                name=SESSION_NAME,
                scope=taken.scope,
                customer_id=taken.customer_id,
                livemode=taken.livemode,
                mask=auth.mask(secret),
                expires_at=now + SESSION_MS,
                now=now,
                is_session=True,
            )

        return pb.OpenSessionResponse(api_key=_key(await self._store.write(open_)), secret=secret)

    async def _revoke(self, key_id: str, caller: Caller) -> ApiKey:
        now = self._clock()

        def revoke(connection: Connection) -> ApiKey:
            found = records.revoke_api_key(connection, key_id, now=now, livemode=caller.livemode)
            if found is None:
                raise NotFound(f"no API key {echo(key_id)}", param="id")
            return found

        made = await self._once(revoke, _again, lambda one: one.id)
        self.callers.forget(key_id)
        return made.value


def _no_such_code() -> KeyInvalid:
    return KeyInvalid("the code is unknown, was used, or is older than a minute")


def _again(connection: Connection, kept: Kept) -> ApiKey:
    found = records.api_key(connection, kept.id)
    assert found is not None, "a key is never deleted"
    return found
