"""`creditledger health`: one command that tells whether the ledger can be used, by its settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from creditledger.store import schema
from tests.support.commands import creditledger
from tests.support.databases import PASSWORD, with_password
from tests.support.process import process
from tests.support.setup import add_wallet, change
from tests.support.tls import certificate

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

FINE = {
    "healthy": True,
    "serving": True,
    "database": True,
    "problems": [],
    "webhook_lag_seconds": None,
    "replica_lag_seconds": None,
}


def health(*given: object) -> tuple[int, dict[str, Any]]:
    """Exit code and answer."""
    done = creditledger("health", "--json", *given)
    assert PASSWORD not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_a_server_that_serves_is_healthy(database_url: str, tmp_path: Path) -> None:
    """A server is healthy by the settings that it was started with, until it ends."""
    where: list[object] = ["--database-url", database_url]
    async with process(database_url, tmp_path / "server.log") as served:
        where += ["--grpc-address", served.grpc_address]
        assert health(*where) == (0, FINE)
        text = creditledger("health", *where)
        assert (text.returncode, text.stdout) == (0, "serving, database answers\n")
    code, answer = health(*where)

    assert code == 1
    assert (answer["healthy"], answer["serving"], answer["database"]) == (False, False, True)
    assert len(answer["problems"]) == 1
    text = creditledger("health", *where)
    assert (text.returncode, text.stdout) == (1, "")
    assert text.stderr.startswith("creditledger: No server answers at ")


async def test_a_server_with_tls_is_healthy(database_url: str, tmp_path: Path) -> None:
    """The server's own certificate is enough to ask it."""
    chain, key = certificate(tmp_path)
    tls = ("--tls-certificate", str(chain), "--tls-key", str(key))
    async with process(database_url, tmp_path / "server.log", *tls) as served:
        found = health(
            *("--database-url", database_url, "--grpc-address", served.grpc_address, *tls)
        )

    assert found == (0, FINE)


@pytest.mark.only("postgresql")
def test_a_database_that_is_away_is_a_problem(database_url: str) -> None:
    """An absent database is named without its password, within the promised seconds."""
    away = make_url(with_password(database_url)).set(database="nowhere")
    url = away.render_as_string(hide_password=False)

    code, answer = health("--database-url", url, "--grpc-address", "127.0.0.1:9")

    assert (code, answer["serving"], answer["database"]) == (1, False, False)
    assert len(answer["problems"]) == 2


@pytest.mark.only("postgresql")
def test_a_port_that_is_not_known_is_a_wrong_call(database_url: str) -> None:
    """Port 0 is a free one: nobody can ask there."""
    done = creditledger(
        *("health", "--database-url", database_url, "--grpc-address", "127.0.0.1:0")
    )

    assert (done.returncode, done.stdout) == (2, "")


async def test_a_lag_can_be_a_problem(database_url: str, tmp_path: Path) -> None:
    """The age of the oldest due webhook is always shown, and a problem above the bound."""

    def lag(connection: Connection) -> None:
        add_wallet(connection, "wal_acme")
        endpoint = {
            "number": 1,
            "id": "whe_1",
            "livemode": True,
            "url": "https://acme.invalid/",
            "events": "[1]",
            "thresholds": "[]",
            "expiring_days": 7,
            "enabled": False,
            "secret": "x",
            "since": 0,
            "begins": "0-0-0",
            "created_at": 0,
            "updated_at": 0,
        }
        connection.execute(schema.webhook_endpoints.insert().values(endpoint))
        delivery = {
            "wallet_number": 1,
            "number": 1,
            "endpoint_number": 1,
            "type": 1,
            "subject": 1,
            "variant": "",
            "body": "{}",
            "status": 1,
            "attempts": 0,
            "created_at": 1_000,
            "kept_from": 1_000,
            "next_attempt_at": 1_000,
            "give_up_at": 1 << 60,
        }
        connection.execute(schema.webhook_deliveries.insert().values(delivery))

    change(database_url, lag)
    async with process(
        database_url, tmp_path / "server.log", "--webhook-connections", "0"
    ) as served:
        where = ("--database-url", database_url, "--grpc-address", served.grpc_address)
        code, told = health(*where)
        strict_code, strict = health(*where, "--max-lag", 60)

    # A delivery of nothing is no sound ledger.
    change(database_url, lambda connection: connection.execute(schema.webhook_deliveries.delete()))

    assert (code, told["healthy"]) == (0, True)
    assert told["webhook_lag_seconds"] > 1_000_000
    assert (strict_code, strict["healthy"], len(strict["problems"])) == (1, False, 1)


def test_a_database_of_another_schema_is_a_problem(tmp_path: Path) -> None:
    """A database that a server refuses to start on is not healthy."""
    url = f"sqlite+aiosqlite:///{tmp_path}/none.db"

    code, answer = health("--database-url", url)

    assert (code, answer["serving"], answer["database"]) == (1, False, False)
