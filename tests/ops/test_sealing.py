"""Webhook secrets at rest: without a key that is not in the database nobody reads them."""

from __future__ import annotations

import base64
import json
import stat
from typing import TYPE_CHECKING

import pytest
from credit.v1 import webhook_service_pb2 as pb

from creditledger.domain.webhook_events import Secret
from creditledger.ops.config import CannotStart
from creditledger.store.sealing import CannotUnseal, Seal
from tests.support.commands import creditledger
from tests.support.databases import contents
from tests.support.refusals import Refused, refused
from tests.support.server import grant, running, serve
from tests.support.webhook_receiver import receiving, verified

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.setup import Clock

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = Secret("whsec_" + "s3cret" * 6)


def keys(path: Path, *given: bytes) -> Path:
    """A file of keys."""
    path.write_text("".join(base64.b64encode(key).decode() + "\n" for key in given))
    return path


def test_a_sealed_secret_opens_by_its_key_and_for_its_endpoint_alone() -> None:
    """Another key, another endpoint or a changed character opens no secret."""
    old, new, both = Seal([OLD]), Seal([NEW]), Seal([NEW, OLD])
    stored = old.seal(SECRET, "whe_1")

    assert SECRET not in stored
    assert stored != old.seal(SECRET, "whe_1")
    assert old.unseal(stored, "whe_1") == both.unseal(stored, "whe_1") == SECRET
    assert (old.is_current(stored), both.is_current(stored)) == (True, False)
    last = "A" if stored[-5] != "A" else "B"
    for seal, given, endpoint in (
        (new, stored, "whe_1"),
        (Seal(), stored, "whe_1"),
        (old, stored, "whe_2"),
        (old, Secret(stored[:-5] + last + stored[-4:]), "whe_1"),
        (old, Secret("sealed:x"), "whe_1"),
    ):
        with pytest.raises(CannotUnseal) as caught:
            seal.unseal(given, endpoint)
        assert "s3cret" not in str(caught.value)


def test_without_a_key_secrets_are_kept_as_they_are() -> None:
    """Secrets that were stored without a key are read by a server with one."""
    assert Seal().seal(SECRET, "whe_1") == SECRET
    assert Seal([OLD]).unseal(SECRET, "whe_1") == SECRET
    assert Seal().is_current(SECRET)
    assert not Seal([OLD]).is_current(SECRET)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "short", base64.b64encode(b"x" * 31).decode(), "!" * 44, "é" * 44, "A" * 44],
)
def test_a_wrong_key_file_is_named(tmp_path: Path, text: str) -> None:
    """A wrong key file stops the start with a sentence and exit code 2."""
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^must hold "):
        Seal.read(path)
    database = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    assert creditledger("migrate", "--database-url", database).returncode == 0
    done = creditledger(
        *("secrets", "rotate", "--database-url", database, "--secrets-key-file", path)
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "CREDITLEDGER_SECRETS_KEY_FILE (--secrets-key-file) must hold " in done.stderr


async def test_the_database_does_not_tell_what_signs(
    database_url: str, clock: Clock, tmp_path: Path
) -> None:
    """A server with the key signs; without it the server does not start."""
    file = keys(tmp_path / "keys", OLD)
    settings = {
        "webhook_connections": 8,
        "webhook_allow_private": True,
        "secrets_key_file": str(file),
    }
    async with receiving() as receiver, serve(database_url, clock, **settings) as api:
        create = pb.CreateWebhookEndpointRequest(url=receiver.url, events=["transaction.created"])
        made = await api.webhooks.CreateWebhookEndpoint(create, metadata=api.service)
        id_ = made.webhook_endpoint.id
        assert made.webhook_endpoint.mask == f"whsec_****{made.secret[-4:]}"
        rotate = pb.RotateWebhookSecretRequest(id=id_, overlap_seconds=60)
        rotated = await api.webhooks.RotateWebhookSecret(rotate, metadata=api.service)
        await api.post("given", **grant("5"))
        (came,) = await receiver.wait(1)
        assert verified(came, made.secret, now=clock.now / 1000)
        assert verified(came, rotated.secret, now=clock.now / 1000)
    stored = await contents(database_url)
    assert made.secret not in stored
    assert rotated.secret not in stored

    with pytest.raises(CannotStart, match=r"CREDITLEDGER_SECRETS_KEY_FILE"):
        async with running(database_url, clock):
            pass


async def test_secrets_are_sealed_anew(database_url: str, clock: Clock, tmp_path: Path) -> None:
    """Rotating seals every secret by the first key, after which the others may go."""
    async with serve(database_url, clock) as api:
        create = pb.CreateWebhookEndpointRequest(
            url="https://acme.invalid/", events=["transaction.created"]
        )
        plain = await api.webhooks.CreateWebhookEndpoint(create, metadata=api.service)
        seal = pb.SealWebhookSecretsRequest()
        no_key = await refused(api.webhooks.SealWebhookSecrets(seal, metadata=api.admin))
        assert no_key == Refused("NOT_FOUND")

    for files, expected in (([OLD], 1), ([NEW, OLD], 1), ([NEW], 0)):
        file = keys(tmp_path / "keys", *files)
        async with running(database_url, clock, secrets_key_file=str(file)) as server:
            service = await server.local.key("service")
            denied = await refused(
                server.network.webhooks.SealWebhookSecrets(seal, metadata=service)
            )
            assert denied == Refused("SCOPE_DENIED")
            done = await server.local.webhooks.SealWebhookSecrets(seal)
            again = await server.local.webhooks.SealWebhookSecrets(seal)
            get = pb.GetWebhookEndpointRequest(id=plain.webhook_endpoint.id)
            shown = await server.local.webhooks.GetWebhookEndpoint(get)
        assert (done.sealed, again.sealed) == (expected, 0)
        assert shown.mask == plain.webhook_endpoint.mask


def test_the_command_seals_anew(database_url: str, tmp_path: Path) -> None:
    """`secrets rotate` needs the file, and works where no server runs."""
    where = ("--database-url", database_url, "--json")
    without = creditledger("secrets", "rotate", *where)
    file = keys(tmp_path / "keys", NEW)
    done = creditledger("secrets", "rotate", *where, "--secrets-key-file", file)

    assert (without.returncode, without.stdout) == (2, "")
    assert "CREDITLEDGER_SECRETS_KEY_FILE" in without.stderr
    assert (done.returncode, json.loads(done.stdout)) == (0, {"sealed": 0})


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    """Nobody else may read the database, the files beside it, and exports."""
    url = f"sqlite+aiosqlite:///{tmp_path}/credit.db"
    assert creditledger("migrate", "--database-url", url).returncode == 0
    assert creditledger("keys", "list", "--database-url", url).returncode == 0
    written = creditledger("export", tmp_path / "rows.csv", "--database-url", url)

    assert written.returncode == 0, written.stderr
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {"credit.db", "rows.csv"} <= modes.keys()
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
