"""API keys: made with their secret shown once, used within scope, mode and time, and revoked."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from credit.v1 import api_key_service_pb2 as pb
from credit.v1 import registry_service_pb2
from sqlalchemy import func, select
from sqlalchemy.util import await_only
from structlog.testing import capture_logs

from creditledger.domain import clock as time
from creditledger.store import schema
from creditledger.store.registry import records
from tests.support.cases import in_turn
from tests.support.databases import contents
from tests.support.refusals import Metadata, Refused, bearer, refused
from tests.support.refusals import refusal as refusal_of
from tests.support.server import PATIENCE_SECONDS, Registry, serve, serve_registry
from tests.support.setup import START, findings, look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from sqlalchemy import Connection

    from creditledger.domain.registry import ApiKey
    from tests.support.setup import Clock

KEY_INVALID = Refused("KEY_INVALID")


@pytest.fixture
async def api(database_url: str, clock: Clock) -> AsyncIterator[Registry]:
    """A server upon a new database."""
    async with serve_registry(database_url, clock) as served:
        yield served


def new(**changed: Any) -> pb.CreateApiKeyRequest:
    """A request for a service key; None leaves a field out."""
    return pb.CreateApiKeyRequest(**{"name": "Gateway", "scope": "service", **changed})


def use(api: Registry, metadata: Metadata) -> Awaitable[object]:
    """A call that any key may make."""
    request = registry_service_pb2.GetCurrencyRequest(currency_id="USD")
    return api.registry.GetCurrency(request, metadata=metadata)


async def listed(api: Registry, metadata: Metadata, **asked: Any) -> list[pb.ApiKey]:
    """One page of keys."""
    answer = await api.keys.ListApiKeys(pb.ListApiKeysRequest(**asked), metadata=metadata)
    return list(answer.api_keys)


# --- make ---------------------------------------------------------------------------------------


async def test_a_key_is_made_with_its_secret(api: Registry) -> None:
    """Create answers the key as asked for, masked, and a secret of 256 random bits."""
    await api.customer("cus_acme")
    ends = time.text(START + time.DAY)

    request = new(scope="customer", customer_id="cus_acme", expires_at=ends)
    made = await api.keys.CreateApiKey(request, metadata=api.admin)

    assert re.fullmatch(r"sk-[A-Za-z0-9_-]{43}", made.secret)
    assert re.fullmatch(r"apk_[0-9a-z]{26}", made.api_key.id)
    expected = pb.ApiKey(
        id=made.api_key.id,
        name="Gateway",
        scope="customer",
        customer_id="cus_acme",
        livemode=True,
        mask="sk-****" + made.secret[-4:],
        created_at=time.text(START),
        expires_at=ends,
    )
    assert made.api_key == expected
    assert await listed(api, api.admin, customer_id="cus_acme") == [expected]


async def test_two_calls_make_two_keys(api: Registry) -> None:
    """The same request again makes another key with another secret; both work."""
    made = [await api.keys.CreateApiKey(new(), metadata=api.admin) for _ in range(2)]

    assert made[0].api_key.id != made[1].api_key.id
    assert made[0].secret != made[1].secret
    for one in made:
        await use(api, bearer(one.secret))


@pytest.mark.parametrize("livemode", [True, False])
async def test_a_key_makes_keys_of_its_mode(api: Registry, livemode: bool) -> None:
    """livemode absent is the key's own, the same is the same, the other one MODE_MISMATCH."""
    admin = await api.local.key("admin", livemode=livemode)

    silent = await api.keys.CreateApiKey(new(), metadata=admin)
    named = await api.keys.CreateApiKey(new(livemode=livemode), metadata=admin)
    other = await refused(api.keys.CreateApiKey(new(livemode=not livemode), metadata=admin))

    assert (silent.api_key.livemode, named.api_key.livemode) == (livemode, livemode)
    assert other == Refused("MODE_MISMATCH", "livemode")


async def test_the_socket_makes_keys_of_both_modes(api: Registry) -> None:
    """The command line names the mode; live if it does not."""
    made = [await api.local.keys.CreateApiKey(new(livemode=mode)) for mode in (None, True, False)]

    assert [one.api_key.livemode for one in made] == [True, True, False]


@in_turn(
    "changed, refusal",
    [
        ({"name": None}, Refused("MISSING_FIELD", "name")),
        ({"name": "a" * 129}, Refused("INVALID_FIELD", "name")),
        ({"scope": None}, Refused("MISSING_FIELD", "scope")),
        ({"scope": "Admin"}, Refused("INVALID_FIELD", "scope")),
        ({"scope": "customer"}, Refused("MISSING_FIELD", "customer_id")),
        ({"customer_id": "cus_acme"}, Refused("INVALID_FIELD", "customer_id")),
        ({"scope": "admin", "customer_id": "cus_acme"}, Refused("INVALID_FIELD", "customer_id")),
        ({"scope": "customer", "customer_id": "acme"}, Refused("INVALID_FIELD", "customer_id")),
        ({"scope": "customer", "customer_id": "cus_0"}, Refused("NOT_FOUND", "customer_id")),
        ({"expires_at": "tomorrow"}, Refused("INVALID_FIELD", "expires_at")),
        ({"expires_at": time.text(START)}, Refused("INVALID_FIELD", "expires_at")),
    ],
)
async def test_what_no_key_is_made_of(
    api: Registry, changed: dict[str, str | None], refusal: Refused
) -> None:
    """A request outside its rules is refused under the field's name and makes nothing."""
    await api.customer("cus_acme")
    before = await listed(api, api.admin)

    assert await refused(api.keys.CreateApiKey(new(**changed), metadata=api.admin)) == refusal
    assert await listed(api, api.admin) == before


@pytest.mark.parametrize("scope", ["customer", "service"])
async def test_only_admins_deal_with_keys(api: Registry, scope: str) -> None:
    """Any other key is SCOPE_DENIED, for each of the three calls; without a key, KEY_MISSING."""
    await api.customer("cus_acme")
    key = await api.local.key(scope, "cus_acme" if scope == "customer" else None)
    (target, *_) = await listed(api, api.admin)

    for metadata, refusal in [(key, Refused("SCOPE_DENIED")), ((), Refused("KEY_MISSING"))]:
        for call in (
            api.keys.CreateApiKey(new(), metadata=metadata),
            api.keys.ListApiKeys(pb.ListApiKeysRequest(), metadata=metadata),
            api.keys.RevokeApiKey(pb.RevokeApiKeyRequest(id=target.id), metadata=metadata),
        ):
            assert await refused(call) == refusal


# --- list ---------------------------------------------------------------------------------------


async def test_a_key_knows_itself(api: Registry) -> None:
    """Whatever its scope and mode: the answer is the key that was made, and no other."""
    await api.customer("cus_acme")
    for scope, customer in (("customer", "cus_acme"), ("service", None), ("admin", None)):
        for livemode in (True, False):
            request = new(scope=scope, customer_id=customer, livemode=livemode)
            made = await api.local.keys.CreateApiKey(request)
            own = await api.keys.GetCurrentApiKey(
                pb.GetCurrentApiKeyRequest(), metadata=bearer(made.secret)
            )
            assert own == made.api_key
    assert await refused(api.local.keys.GetCurrentApiKey(pb.GetCurrentApiKeyRequest())) == Refused(
        "NOT_FOUND"
    )


async def test_a_list_is_of_one_mode(api: Registry) -> None:
    """A key lists the keys of its mode, the socket those of both or of the mode it names."""
    test = await api.local.key("admin", livemode=False)

    live_ids = {one.id for one in await listed(api, api.admin)}
    test_ids = {one.id for one in await listed(api, test)}
    by_socket = [
        {one.id for one in (await api.local.keys.ListApiKeys(request)).api_keys}
        for request in (
            pb.ListApiKeysRequest(),
            pb.ListApiKeysRequest(livemode=True),
            pb.ListApiKeysRequest(livemode=False),
        )
    ]

    assert (len(live_ids), len(test_ids)) == (2, 1)
    assert by_socket == [live_ids | test_ids, live_ids, test_ids]
    assert len(await listed(api, api.admin, livemode=True)) == 2
    other = api.keys.ListApiKeys(pb.ListApiKeysRequest(livemode=True), metadata=test)
    assert await refused(other) == Refused("MODE_MISMATCH", "livemode")


async def test_a_list_comes_in_pages(api: Registry) -> None:
    """Pages put together are the list, ordered by id; revoked and expired keys are in it."""
    for number in range(5):
        await api.keys.CreateApiKey(new(name=f"key {number}"), metadata=api.admin)
    everything = await listed(api, api.admin)

    pages: list[pb.ListApiKeysResponse] = []
    while not pages or pages[-1].HasField("next_page_token"):
        token = pages[-1].next_page_token if pages else None
        request = pb.ListApiKeysRequest(page_size=3, page_token=token)
        pages.append(await api.keys.ListApiKeys(request, metadata=api.admin))

    assert [len(page.api_keys) for page in pages] == [3, 3, 1]
    assert [one for page in pages for one in page.api_keys] == everything
    assert sorted(everything, key=lambda one: one.id) == everything


async def test_a_token_belongs_to_its_filters(api: Registry) -> None:
    """A token of another mode, another customer or none of ours is INVALID_FIELD."""
    await api.customer("cus_acme")
    for _ in range(2):
        await api.local.key("admin", livemode=False)
        await api.local.key("customer", "cus_acme")
    test = await api.local.key("admin", livemode=False)

    async def token(metadata: Metadata, **asked: Any) -> str:
        request = pb.ListApiKeysRequest(page_size=1, **asked)
        return (await api.keys.ListApiKeys(request, metadata=metadata)).next_page_token

    for one in (await token(test), await token(api.admin, customer_id="cus_acme"), "", "abc"):
        refusal = await refused(listed(api, api.admin, page_token=one))
        assert refusal == Refused("INVALID_FIELD", "page_token")
    refusal = await refused(listed(api, api.admin, page_size=101))
    assert refusal == Refused("INVALID_FIELD", "page_size")


# --- use, expire, revoke ------------------------------------------------------------------------


async def test_a_revoked_key_is_refused_at_once(api: Registry, clock: Clock) -> None:
    """A key in use is refused by the very next call after its revocation; others go on."""
    made = await api.keys.CreateApiKey(new(), metadata=api.admin)
    await use(api, bearer(made.secret))
    clock.advance(1)

    request = pb.RevokeApiKeyRequest(id=made.api_key.id)
    revoked = await api.keys.RevokeApiKey(request, metadata=api.admin)

    assert await refused(use(api, bearer(made.secret))) == KEY_INVALID
    await use(api, api.service)
    made.api_key.revoked_at = time.text(START + 1)
    assert revoked == made.api_key
    assert revoked in await listed(api, api.admin)


async def test_a_key_is_revoked_once(api: Registry, clock: Clock) -> None:
    """Revoking again changes nothing and answers the key with its first revoked_at."""
    made = await api.keys.CreateApiKey(new(), metadata=api.admin)
    request = pb.RevokeApiKeyRequest(id=made.api_key.id)
    first = await api.keys.RevokeApiKey(request, metadata=api.admin)
    clock.advance(time.DAY)

    second = await api.keys.RevokeApiKey(request, metadata=api.admin)

    assert time.text(START) == first.revoked_at
    assert first == second


async def test_a_key_read_while_it_is_revoked_is_not_remembered(
    api: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that read the key before its revocation does not keep it alive for later ones."""
    made = await api.keys.CreateApiKey(new(), metadata=api.admin)
    has_read, may_go_on, released = asyncio.Event(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    key_by_hash = records.key_by_hash

    def slowly(connection: Connection, secret_hash: bytes) -> tuple[ApiKey, bytes] | None:
        found = key_by_hash(connection, secret_hash)
        if found is not None and found[0].id == made.api_key.id and not may_go_on.is_set():
            loop.call_soon_threadsafe(has_read.set)
            if connection.dialect.name == "sqlite":
                released.wait(PATIENCE_SECONDS)  # in the thread of the read
            else:
                await_only(may_go_on.wait())
        return found

    monkeypatch.setattr(records, "key_by_hash", slowly)
    early = asyncio.ensure_future(use(api, bearer(made.secret)))
    await has_read.wait()
    request = pb.RevokeApiKeyRequest(id=made.api_key.id)
    await api.keys.RevokeApiKey(request, metadata=api.admin)
    may_go_on.set()
    released.set()
    await early

    assert await refused(use(api, bearer(made.secret))) == KEY_INVALID


async def test_what_cannot_be_revoked(api: Registry) -> None:
    """An unknown id and a key of the other mode are NOT_FOUND, and that key goes on working."""
    test = await api.keys.CreateApiKey(
        new(scope="admin"), metadata=await api.local.key("admin", livemode=False)
    )

    for id_, refusal in [
        ("apk_0", Refused("NOT_FOUND", "id")),
        (test.api_key.id, Refused("NOT_FOUND", "id")),
        ("sk-0", Refused("INVALID_FIELD", "id")),
        ("", Refused("MISSING_FIELD", "id")),
    ]:
        call = api.keys.RevokeApiKey(pb.RevokeApiKeyRequest(id=id_), metadata=api.admin)
        assert await refused(call) == refusal
    await use(api, bearer(test.secret))
    revoked = await api.local.keys.RevokeApiKey(pb.RevokeApiKeyRequest(id=test.api_key.id))
    assert revoked.HasField("revoked_at")


async def test_a_key_ends_at_expires_at(api: Registry, clock: Clock) -> None:
    """It works in the last millisecond before and no longer at the moment itself."""
    ends = time.text(START + 1_000)
    made = await api.keys.CreateApiKey(new(expires_at=ends), metadata=api.admin)

    await use(api, bearer(made.secret))
    clock.advance(999)
    await use(api, bearer(made.secret))
    clock.advance(1)

    assert await refused(use(api, bearer(made.secret))) == KEY_INVALID


async def test_credentials(api: Registry) -> None:
    """One credential, sent in either header or in both; anything else is refused."""
    ((_, service),) = api.service
    secret = service.removeprefix("Bearer ")
    ((_, admin),) = api.admin
    good: list[Metadata] = [
        (("x-api-key", secret),),
        (("authorization", f"bearer {secret}"),),
        (("authorization", service), ("x-api-key", secret)),
        (("authorization", service), ("authorization", service)),
    ]
    bad: list[Metadata] = [
        (("authorization", secret),),
        (("authorization", f"Basic {secret}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer sk-short"),),
        (("authorization", f"Bearer {secret} x"),),
        (("authorization", f"Bearer {secret}x"),),
        (("authorization", "Bearer sk-" + "0" * 43),),
        (("x-api-key", service),),
        (("authorization", service), ("x-api-key", admin.removeprefix("Bearer "))),
        (("authorization", service), ("authorization", admin)),
        (("x-api-key", secret), ("x-api-key", admin.removeprefix("Bearer "))),
    ]

    for metadata in good:
        await use(api, metadata)
    for metadata in bad:
        assert await refused(use(api, metadata)) == KEY_INVALID, metadata
    for metadata in ((), (("authorization", ""),)):
        assert await refused(use(api, metadata)) == Refused("KEY_MISSING")


async def test_a_secret_is_nowhere_but_in_its_answer(api: Registry, database_url: str) -> None:
    """Neither the database nor the log nor a list holds it; its id is in all of them."""
    with capture_logs() as lines:
        made = await api.keys.CreateApiKey(new(), metadata=api.admin)
        await use(api, bearer(made.secret))
        await refused(use(api, (*bearer(made.secret), *api.admin)))
        await refused(use(api, (("authorization", made.secret),)))
        keys = await listed(api, api.admin)

    texts = [await contents(database_url), repr(lines), repr(keys)]
    assert [made.api_key.id in text for text in texts] == [True] * 3
    assert [made.secret[len("sk-") :] in text for text in texts] == [False] * 3


# --- rotate -------------------------------------------------------------------------------------


async def test_a_key_is_replaced_by_one_like_it(api: Registry, clock: Clock) -> None:
    """Both are good for the chosen time; then the new one alone, with all that the other had."""
    await api.customer("cus_acme")
    old = await api.keys.CreateApiKey(
        new(name="Acme", scope="customer", customer_id="cus_acme"), metadata=api.admin
    )
    request = pb.RotateApiKeyRequest(id=old.api_key.id, overlap_seconds=60)

    made = await api.keys.RotateApiKey(request, metadata=api.admin)

    assert made.api_key.id != old.api_key.id
    same = ("name", "scope", "customer_id", "livemode", "expires_at", "session")
    assert [getattr(made.api_key, n) for n in same] == [getattr(old.api_key, n) for n in same]
    assert made.replaced.id == old.api_key.id
    assert made.replaced.expires_at == time.text(START + time.MINUTE)
    clock.advance(time.MINUTE - 1)
    await use(api, bearer(old.secret))
    await use(api, bearer(made.secret))
    clock.advance(1)
    assert await refused(use(api, bearer(old.secret))) == KEY_INVALID
    await use(api, bearer(made.secret))


async def test_a_key_that_is_replaced_at_once_ends_at_once(api: Registry) -> None:
    """An overlap of 0 holds for a key in the cache too; an end of the key is passed on."""
    ends = time.text(START + time.HOUR)
    old = await api.keys.CreateApiKey(new(expires_at=ends), metadata=api.admin)
    await use(api, bearer(old.secret))

    lasting = await api.keys.RotateApiKey(
        pb.RotateApiKeyRequest(id=old.api_key.id), metadata=api.admin
    )
    assert lasting.replaced.expires_at == lasting.api_key.expires_at == ends
    at_once = await api.keys.RotateApiKey(
        pb.RotateApiKeyRequest(id=old.api_key.id, overlap_seconds=0), metadata=api.admin
    )

    assert await refused(use(api, bearer(old.secret))) == KEY_INVALID
    await use(api, bearer(at_once.secret))


async def test_what_cannot_be_replaced(api: Registry) -> None:
    """A key that is no good, a session, one of the other mode, one that there is not."""
    made = await api.keys.CreateApiKey(new(), metadata=api.admin)
    test = await api.local.new_key("service", livemode=False)
    opened = (await session(api, await code(api))).api_key.id
    await api.keys.RevokeApiKey(pb.RevokeApiKeyRequest(id=made.api_key.id), metadata=api.admin)

    async def rotated(id_: str, overlap_seconds: int | None = None) -> Refused:
        request = pb.RotateApiKeyRequest(id=id_, overlap_seconds=overlap_seconds)
        return await refused(api.keys.RotateApiKey(request, metadata=api.admin))

    assert await rotated(made.api_key.id) == Refused("INVALID_FIELD", "id")
    assert await rotated(opened) == Refused("INVALID_FIELD", "id")
    assert await rotated(test.api_key.id) == Refused("NOT_FOUND", "id")
    assert await rotated("apk_0") == Refused("NOT_FOUND", "id")
    for seconds in (-1, 30 * 86_400 + 1):
        refusal = await rotated(made.api_key.id, overlap_seconds=seconds)
        assert refusal == Refused("INVALID_FIELD", "overlap_seconds")


# --- uses ---------------------------------------------------------------------------------------


async def test_uses_are_written_once_an_hour(
    database_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the background, not by the call; a key that is no good is not used."""
    written: list[dict[int, int]] = []
    write = records.write_uses

    def noted(connection: Connection, uses: dict[int, int]) -> None:
        written.append(dict(uses))
        write(connection, uses)

    monkeypatch.setattr(records, "write_uses", noted)
    async with serve(database_url, clock) as api:
        assert api.server.background is not None
        uses, used = (
            api.server.background.key_uses,
            registry_service_pb2.GetCurrencyRequest(currency_id="USD"),
        )
        made = await api.local.new_key("service")
        ended = await api.local.key("service", expires_at=time.text(START + 1))
        found = []
        for step in (1, time.HOUR - 1, 2 * time.SECOND, 2 * time.HOUR):
            clock.advance(step)
            await refused(api.registry.GetCurrency(used, metadata=ended))
            for _ in range(3):
                await api.registry.GetCurrency(used, metadata=bearer(made.secret))
            await uses.write()
            await uses.write()
            keys = (await api.local.keys.ListApiKeys(pb.ListApiKeysRequest())).api_keys
            found.append({one.id: one for one in keys}[made.api_key.id].last_used_at)

    third = START + time.HOUR + 2 * time.SECOND
    expected = [START + 1, START + 1, third, third + 2 * time.HOUR]
    assert found == [time.text(moment) for moment in expected]
    assert len(written) == 3
    assert sum(map(len, written)) == 3


# --- sessions -----------------------------------------------------------------------------------


async def code(api: Registry, **asked: Any) -> str:
    """A code for a session."""
    request = pb.CreateSessionCodeRequest(**{"scope": "admin", **asked})
    return (await api.keys.CreateSessionCode(request, metadata=api.admin)).code


def session(api: Registry, of: str | None) -> Awaitable[pb.OpenSessionResponse]:
    """What a browser asks, without a key."""
    return api.keys.OpenSession(pb.OpenSessionRequest(code=of))


async def test_a_code_opens_a_session(api: Registry, database_url: str) -> None:
    """Who has the code gets a key with what it was made for, for 12 hours; the code is a secret."""
    await api.customer("cus_acme")
    with capture_logs() as lines:
        made = await code(api, scope="customer", customer_id="cus_acme")
        stored = await contents(database_url)
        opened = await session(api, made)

    expected = pb.ApiKey(
        id=opened.api_key.id,
        name="console session",
        scope="customer",
        customer_id="cus_acme",
        livemode=True,
        mask="sk-****" + opened.secret[-4:],
        created_at=time.text(START),
        expires_at=time.text(START + 12 * time.HOUR),
        session=True,
    )
    assert opened.api_key == expected
    assert (
        await api.keys.GetCurrentApiKey(
            pb.GetCurrentApiKeyRequest(), metadata=bearer(opened.secret)
        )
        == expected
    )
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", made)
    assert made not in stored
    assert not any(secret in str(line) for line in lines for secret in (made, opened.secret))


async def test_whatever_is_wrong_with_a_code_is_answered_alike(api: Registry, clock: Clock) -> None:
    """Unknown, malformed, used and expired codes differ in nothing that a stranger could learn."""
    used, late = await code(api), await code(api)
    await session(api, used)
    clock.advance(time.MINUTE)

    told = []
    for one in ("x" * 43, "x", "\u00e9" * 43, "x" * 10_000, used, late):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await session(api, one)
        told.append((refusal_of(caught.value), caught.value.details()))

    assert [found for found, _ in told] == [KEY_INVALID] * 6
    assert len({text for _, text in told}) == 1
    assert await refused(session(api, None)) == Refused("MISSING_FIELD", "code")


async def test_of_two_who_take_a_code_one_has_it(api: Registry, clock: Clock) -> None:
    """Ten at once: one session and one key, however they come together."""
    made = await code(api)
    clock.advance(time.MINUTE - 1)

    answers = await asyncio.gather(*(session(api, made) for _ in range(10)), return_exceptions=True)

    opened = [one for one in answers if isinstance(one, pb.OpenSessionResponse)]
    refusals = [refusal_of(one) for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    assert (len(opened), refusals) == (1, [KEY_INVALID] * 9)
    assert sum(one.session for one in await listed(api, api.admin)) == 1


async def test_sessions_that_ended_are_not_listed(api: Registry, clock: Clock) -> None:
    """Those under way are; revoked ones and old ones are gone from lists, made keys stay."""
    ended = [(await session(api, await code(api))).api_key.id for _ in range(2)]
    await api.keys.RevokeApiKey(pb.RevokeApiKeyRequest(id=ended[0]), metadata=api.admin)
    made = await api.keys.CreateApiKey(
        new(expires_at=time.text(START + time.HOUR)), metadata=api.admin
    )
    assert ended[0] not in {one.id for one in await listed(api, api.admin)}
    clock.advance(11 * time.HOUR)
    under_way = (await session(api, await code(api))).api_key.id
    assert {ended[1], under_way} <= {one.id for one in await listed(api, api.admin)}

    clock.advance(time.HOUR)

    found = {one.id for one in await listed(api, api.admin)}
    assert {under_way, made.api_key.id} <= found
    assert not found & set(ended)


async def test_codes_that_expired_are_removed(
    api: Registry, clock: Clock, database_url: str
) -> None:
    """The next code takes them away."""
    for _ in range(3):
        await code(api)
    clock.advance(time.MINUTE)
    await code(api)

    count = select(func.count()).select_from(schema.session_codes)
    assert look(database_url, lambda c: c.execute(count).scalar_one()) == 1
    assert findings(database_url) == []


@in_turn(
    "asked, refusal",
    [
        ({"scope": None}, Refused("MISSING_FIELD", "scope")),
        ({"scope": "root"}, Refused("INVALID_FIELD", "scope")),
        ({"scope": "customer"}, Refused("MISSING_FIELD", "customer_id")),
        ({"customer_id": "cus_acme"}, Refused("INVALID_FIELD", "customer_id")),
        ({"scope": "customer", "customer_id": "cus_0"}, Refused("NOT_FOUND", "customer_id")),
        ({"livemode": False}, Refused("MODE_MISMATCH", "livemode")),
    ],
)
async def test_a_code_is_for_a_key_that_could_be_made(
    api: Registry, asked: dict[str, Any], refusal: Refused
) -> None:
    """What a code asks for is checked as that of a key is."""
    assert await refused(code(api, **asked)) == refusal
