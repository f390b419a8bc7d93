"""The command as its user has it: what it prints, how it ends, and what it leaves behind."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import httpx
import psutil
import pytest
from credit.v1 import registry_service_pb2
from credit.v1 import wallet_service_pb2 as pb
from credit.v1.registry_service_pb2_grpc import RegistryServiceStub
from credit.v1.wallet_service_pb2_grpc import WalletServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from creditledger import __version__
from creditledger.ops.cli.app import app
from creditledger.ops.client import local_channel
from creditledger.ops.config import CannotStart, Config, load, spelled
from creditledger.ops.server import SERVICES, Server
from creditledger.ops.sockets import local_socket
from creditledger.store import DatabaseLocked, last_verification, migrations, schema
from tests.support.commands import (
    PATIENCE_SECONDS,
    Command,
    creditledger,
    environment,
    start,
)
from tests.support.databases import PASSWORD, with_password
from tests.support.server import Services
from tests.support.setup import add_wallet, change, file_of, is_file, look

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.databases import Databases, Files

SECRET = re.compile(r"sk-[A-Za-z0-9_-]{43}")
SERVING = health_pb2.HealthCheckResponse.SERVING
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed; it printed nothing else."""
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("creditledger: ")
    return done.stderr.removeprefix("creditledger: ").strip()


@dataclass(frozen=True, slots=True)
class Started:
    """A command that runs until it is told to stop."""

    process: Command
    output: Path
    log: Path

    def until(self, pattern: str, file: Path) -> re.Match[str]:
        """The first match in what it has written, waited for."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            ended = self.process.poll() is not None
            if match := re.search(pattern, file.read_text(), re.MULTILINE):
                return match
            assert not ended, self.log.read_text()
            # The file is written by another process: there is nothing to wait upon but time.
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} in {file.read_text()}")

    def address(self) -> str:
        """Where it serves gRPC, by its log."""
        return self.until(r'"grpc_address": "([^"]+)"', self.log)[1]

    def ended(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop; its exit code, when it and every process it began are gone."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
        return code


@contextmanager
def started(folder: Path, *given: object) -> Iterator[Started]:
    """Run a command beside the test, killed at the end if it still runs."""
    output, log = folder / "output", folder / "log"
    with output.open("w") as out, log.open("w") as err:
        process = start(*given, output=out, errors=err)
    try:
        yield Started(process, output, log)
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


@contextmanager
def served(folder: Path, url: str, *flags: object) -> Iterator[tuple[Started, str]]:
    """`creditledger serve` on a free port, and that port's address."""
    ports = ("--grpc-address", "127.0.0.1:0", "--log-format", "json")
    with started(folder, "serve", "--database-url", url, *ports, *flags) as server:
        yield server, server.address()


def health(channel: grpc.Channel) -> Any:
    """The stub of health checks; its type stubs know no methods."""
    return health_pb2_grpc.HealthStub(channel)


def wallets(channel: grpc.Channel, secret: str) -> list[str]:
    """Ids of the wallets that a key sees."""
    call = channel.unary_unary(
        "/credit.v1.WalletService/ListWallets",
        request_serializer=pb.ListWalletsRequest.SerializeToString,
        response_deserializer=pb.ListWalletsResponse.FromString,
    )
    metadata = (("authorization", f"Bearer {secret}"),)
    answer = call(pb.ListWalletsRequest(), metadata=metadata, timeout=PATIENCE_SECONDS)
    return [wallet.id for wallet in answer.wallets]


def code_of(channel: grpc.Channel, secret: str) -> grpc.StatusCode:
    """How the server answers this key."""
    try:
        wallets(channel, secret)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


# --- what needs no database -----------------------------------------------------------------------


def test_version_names_what_matters() -> None:
    """Versions of the package, its schema, Python, SQLite, gRPC and Envoy; JSON for programs."""
    done = creditledger("version", "--json")

    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert list(found) == ["creditledger", "schema", "python", "sqlite", "grpcio", "envoy"]
    assert found["creditledger"] == __version__
    assert found["schema"] == migrations.newest()
    assert found["sqlite"] == sqlite3.sqlite_version


@pytest.mark.parametrize(
    "command",
    [
        "",
        "up",
        "serve",
        "migrate",
        "keys",
        "keys create",
        "keys list",
        "keys revoke",
        "import-usage",
        "verify",
        "export",
        "statement",
        "version",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    """--help is there and ends with 0; settings are shown with their variables."""
    done = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200)

    assert done.exit_code == 0
    assert "Usage:" in done.output
    if command in {"up", "serve", "migrate", "keys create", "import-usage", "verify", "export"}:
        assert "CREDITLEDGER_DATABASE_URL" in done.output
    if not command:
        assert "Exit codes:" in done.output


#: Asks every command of the command line for its help; prints the modules imported by then.
HELP = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from creditledger.ops.cli.app import app

def asked(command, words):
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    for name, child in getattr(command, "commands", {}).items():
        asked(child, [*words, name])

asked(get_command(app), [])
print(*sys.modules)
"""


def test_help_does_not_import_the_server() -> None:
    """Help is printed from the settings and the commands alone, without gRPC, SQL or a layer."""
    done = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, check=True, timeout=60
    )

    found = done.stdout.split()
    ours = {name for name in found if name.startswith("creditledger.")}
    assert {name.partition(".")[0] for name in found} & {"credit", "grpc", "sqlalchemy"} == set()
    assert {name for name in ours if not name.startswith("creditledger.ops.cli.")} == {
        "creditledger.ops",
        "creditledger.ops.cli",
        "creditledger.ops.config",
    }


def test_every_setting_is_a_flag_of_a_command() -> None:
    """Whatever the environment can say, a flag can."""
    help_texts = [
        CliRunner().invoke(app, [command, "--help"], terminal_width=200).output
        for command in ("up", "serve")
    ]

    missing = [
        name
        for name in Config.model_fields
        if not any(f"--{name.replace('_', '-')}" in text for text in help_texts)
    ]

    assert missing == []


@pytest.mark.parametrize(
    "given",
    [
        ["nonsense"],
        ["serve", "--nonsense"],
        ["keys", "create"],
        ["keys", "create", "--scope", "root"],
        ["keys", "create", "--scope", "admin", "--mode", "both"],
        ["keys", "create", "--scope", "admin", "--expires-in", "soon"],
        ["keys", "revoke"],
        ["import-usage", "calls.csv"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(given: list[str], tmp_path: Path) -> None:
    """What is called wrongly is told so before anything is begun."""
    database = f"sqlite+aiosqlite:///{tmp_path}/credit.db"
    done = CliRunner().invoke(app, given, env={"CREDITLEDGER_DATABASE_URL": database})

    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_stops_the_start_with_its_name(tmp_path: Path) -> None:
    """One sentence, exit code 2, and nothing made."""
    done = creditledger("serve", folder=tmp_path, settings={"CREDITLEDGER_GRPC_ADDRESS": "50051"})

    assert done.returncode == 2
    assert sentence(done).startswith(spelled("grpc_address"))
    assert list(tmp_path.iterdir()) == []


# --- migrate --------------------------------------------------------------------------------------


def test_migrate_makes_the_database_once(tmp_path: Path) -> None:
    """It prints the schema before and after; a second time there is nothing to do."""
    newest = migrations.newest()

    first = creditledger("migrate", "--json", folder=tmp_path)
    again = creditledger("migrate", "--json", folder=tmp_path)
    words = creditledger("migrate", folder=tmp_path)

    assert [done.returncode for done in (first, again, words)] == [0, 0, 0]
    database = str(tmp_path / "creditledger.db")
    made = {"database": database, "before": None, "after": newest, "rows_renumbered": 0}
    assert json.loads(first.stdout) == made
    assert json.loads(again.stdout) == {**made, "before": newest}
    assert newest in words.stdout


def test_migrate_needs_a_folder(tmp_path: Path) -> None:
    """A folder that is missing is named, with the setting that names it."""
    done = creditledger("migrate", "--database-url", f"sqlite+aiosqlite:///{tmp_path}/a/b.db")

    assert done.returncode == 1
    assert spelled("database_url") in sentence(done)
    assert str(tmp_path / "a") in sentence(done)


def test_serve_needs_migrate(tmp_path: Path) -> None:
    """No database, another schema, or no database at all in the file: a sentence, and no file."""
    missing = creditledger("serve", folder=tmp_path)
    assert missing.returncode == 1
    assert "creditledger migrate" in sentence(missing)
    assert list(tmp_path.iterdir()) == []

    sqlite3.connect(tmp_path / "creditledger.db").close()
    (tmp_path / "creditledger.db").touch()
    empty = creditledger("serve", folder=tmp_path)
    assert "creditledger migrate" in sentence(empty)

    (tmp_path / "creditledger.db").write_text("This is a letter, not a database.\n" * 100)
    for command in ("serve", "migrate"):
        other = creditledger(command, folder=tmp_path)
        assert other.returncode == 1
        assert str(tmp_path / "creditledger.db") in sentence(other)


# --- keys -----------------------------------------------------------------------------------------


def test_keys_without_a_server(database_url: str) -> None:
    """create, list and revoke have the database to themselves; the secret is the last line."""
    settings = {"CREDITLEDGER_DATABASE_URL": database_url}
    made = creditledger("keys", "create", "--scope", "service", "--mode", "test", settings=settings)
    again = creditledger(
        *("keys", "create", "--scope", "admin", "--name", "Ops", "--expires-in", "90m", "--json"),
        settings=settings,
    )
    key = json.loads(again.stdout)["api_key"]
    revoked = creditledger("keys", "revoke", key["id"], settings=settings)
    listed = creditledger("keys", "list", "--json", settings=settings)
    table = creditledger("keys", "list", "--mode", "test", settings=settings)

    assert [d.returncode for d in (made, again, revoked, listed, table)] == [0] * 5
    secret = made.stdout.splitlines()[-1]
    assert SECRET.fullmatch(secret)
    assert SECRET.fullmatch(json.loads(again.stdout)["secret"])
    lasting = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    assert abs(lasting - timedelta(minutes=90)) < timedelta(seconds=5)
    found = {one["name"]: one for one in json.loads(listed.stdout)["api_keys"]}
    assert found["Ops"]["revoked_at"].startswith(f"{datetime.now(UTC):%Y}")
    assert found["service key"]["mask"] == f"sk-****{secret[-4:]}"
    assert found["service key"]["livemode"] is False
    assert "Ops" not in table.stdout
    assert f"sk-****{secret[-4:]}" in table.stdout
    assert not SECRET.search(listed.stdout + table.stdout)


def test_what_the_ledger_refuses_is_one_sentence(database_url: str) -> None:
    """A customer, or a key, that is not there."""
    settings = {"CREDITLEDGER_DATABASE_URL": database_url}
    for given in (
        ("create", "--scope", "customer", "--customer", "cus_nobody"),
        ("revoke", "apk_nobody"),
    ):
        done = creditledger("keys", *given, settings=settings)
        assert done.returncode == 1
        assert sentence(done)


@pytest.mark.parametrize(
    "given",
    [
        ("keys", "create", "--scope", "customer"),
        ("keys", "create", "--scope", "service", "--customer", "cus_acme"),
        ("keys", "create", "--scope", "service", "--name", ""),
        ("export", "x.csv", "--format", "xml"),
        ("export", "x.csv", "--start", "yesterday"),
        ("export", "x.csv", "--columns", "colour"),
        ("export",),
        ("nothing",),
        ("health", "--max-lag", "-1"),
    ],
)
def test_a_wrong_call_ends_with_2(given: tuple[str, ...], tmp_path: Path) -> None:
    """Exit code 2 tells of a wrong call, whether the command line or the server notices it."""
    settings = {"CREDITLEDGER_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/credit.db"}
    assert creditledger("migrate", settings=settings).returncode == 0

    done = creditledger(*given, settings=settings, folder=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_the_version_is_an_option_too() -> None:
    """`--version` prints the version, as `version` does."""
    asked = creditledger("--version")

    assert (asked.returncode, asked.stdout) == (0, f"creditledger {__version__}\n")


def test_a_shell_is_taught_to_complete() -> None:
    """`--show-completion` prints what the calling shell needs."""
    # Bash replaces itself by the last command of a script, so another one follows.
    script = f"{shlex.join([sys.executable, '-m', 'creditledger', '--show-completion'])}; exit $?"
    asked = subprocess.run(
        ["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False
    )

    assert (asked.returncode, asked.stderr) == (0, "")
    assert "complete" in asked.stdout


async def test_the_socket_moves_where_its_path_is_too_long(tmp_path: Path) -> None:
    """A deep folder or an odd name is no obstacle: commands and servers still find each other."""
    folder = tmp_path.joinpath(*["a long name for a folder, with #, ? and %41"] * 3)
    folder.mkdir(parents=True)
    url = f"sqlite+aiosqlite:///{quote(str(folder))}/credit.db"
    creditledger("migrate", "--database-url", url)
    path = local_socket(folder / "credit.db")

    with served(tmp_path, url):
        made = creditledger("keys", "create", "--scope", "admin", "--database-url", url)
        assert SECRET.fullmatch(made.stdout.splitlines()[-1]), made.stderr
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700

    assert len(bytes(path)) <= 100


def test_commands_wait_for_each_other(database_url: str) -> None:
    """Without a server one of them has the database at a time; all of them are done in the end."""
    create = ("keys", "create", "--scope", "admin", "--database-url", database_url)
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda _: creditledger(*create), range(3)))

    assert [one.returncode for one in together] == [0] * 3
    assert len({one.stdout.splitlines()[-1] for one in together}) == 3


# --- serve ----------------------------------------------------------------------------------------


@pytest.mark.only("sqlite")
def test_while_a_server_has_the_file(database_url: str, tmp_path: Path) -> None:
    """Keys are made through it, verify reads beside it, nobody else writes; then it stops clean."""
    settings = {"CREDITLEDGER_DATABASE_URL": database_url}
    path = file_of(database_url)
    socket_path = local_socket(path)
    with served(tmp_path, database_url) as (server, address):
        assert socket_path.stat().st_mode & 0o777 == 0o600
        made = creditledger("keys", "create", "--scope", "admin", settings=settings)
        secret = made.stdout.splitlines()[-1]
        with grpc.insecure_channel(address) as channel:
            assert code_of(channel, secret) is grpc.StatusCode.OK
            key_id = json.loads(creditledger("keys", "list", "--json", settings=settings).stdout)
            creditledger("keys", "revoke", key_id["api_keys"][0]["id"], settings=settings)
            assert code_of(channel, secret) is UNAUTHENTICATED
        second = creditledger("serve", "--grpc-address", "127.0.0.1:0", settings=settings)
        migrated = creditledger("migrate", settings=settings)
        verified = creditledger("verify", settings=settings)

        assert (second.returncode, migrated.returncode) == (1, 1)
        assert str(path) in sentence(second)
        assert str(path) in sentence(migrated)
        assert verified.returncode == 0
        assert server.ended() == 0
        assert secret not in server.log.read_text()

    assert not socket_path.exists()
    assert creditledger("migrate", settings=settings).returncode == 0


@pytest.mark.only("postgresql")
def test_while_a_server_is_on_the_database(database_url: str, tmp_path: Path) -> None:
    """Keys are made beside it, verify reads, migrate has nothing to do, a second one serves too."""
    settings = {"CREDITLEDGER_DATABASE_URL": database_url}
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    with (
        served(tmp_path, database_url) as (server, address),
        served(other_folder, database_url) as (other, other_address),
    ):
        made = creditledger("keys", "create", "--scope", "admin", settings=settings)
        secret = made.stdout.splitlines()[-1]
        with grpc.insecure_channel(address) as one, grpc.insecure_channel(other_address) as two:
            assert [code_of(channel, secret) for channel in (one, two)] == [grpc.StatusCode.OK] * 2
            key_id = json.loads(creditledger("keys", "list", "--json", settings=settings).stdout)
            creditledger("keys", "revoke", key_id["api_keys"][0]["id"], settings=settings)
            give_up = time.monotonic() + PATIENCE_SECONDS
            while {code_of(channel, secret) for channel in (one, two)} != {UNAUTHENTICATED}:
                assert time.monotonic() < give_up
        migrated = creditledger("migrate", settings=settings)
        verified = creditledger("verify", settings=settings)

        assert (migrated.returncode, verified.returncode) == (0, 0)
        assert (server.ended(), other.ended()) == (0, 0)
        assert secret not in server.log.read_text() + other.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_is_told_and_waits(
    database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Told to stop, it says NOT_SERVING and takes no new call; who watches does not hold it up."""
    with served(tmp_path, database_url, "--drain-seconds", "60") as (server, address):
        began = time.monotonic()
        with grpc.insecure_channel(address) as channel:
            stub = health(channel)
            watch = stub.Watch(
                health_pb2.HealthCheckRequest(service="credit.v1.WalletService"),
                timeout=PATIENCE_SECONDS,
            )
            assert next(watch).status == SERVING
            server.process.send_signal(number)
            assert next(watch).status == NOT_SERVING
            said = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_SECONDS)
            assert said.status == NOT_SERVING
            assert code_of(channel, "sk-0123456789abcdef") is grpc.StatusCode.UNAVAILABLE

            assert server.process.wait(PATIENCE_SECONDS) == 0
            assert time.monotonic() - began < 60


def test_health_and_reflection_speak_of_every_service(database_url: str, tmp_path: Path) -> None:
    """Both need no key; grpcurl finds every service by asking."""
    beside = Path(sys.executable).parent / "grpcurl"
    grpcurl = str(beside) if beside.exists() else "grpcurl"
    with served(tmp_path, database_url) as (_, address):
        done = subprocess.run(
            [grpcurl, "-plaintext", address, "list"],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
        names = done.stdout.split()
        ours = [name for name in names if name.startswith("credit.v1.")]
        with grpc.insecure_channel(address) as channel:
            stub = health(channel)
            for name in ("", *ours):
                request = health_pb2.HealthCheckRequest(service=name)
                assert stub.Check(request, timeout=PATIENCE_SECONDS).status == SERVING

    assert ours == sorted(SERVICES)
    assert "grpc.health.v1.Health" in names


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_port_in_use_is_one_sentence(database_url: str, command: str) -> None:
    """It names the setting; the database is let go of."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = creditledger(
            *(command, "--grpc-address", address, "--database-url", database_url),
            *(("--http-address", "127.0.0.1:0") if command == "up" else ()),
        )
        http = creditledger(
            *("up", "--grpc-address", "127.0.0.1:0", "--http-address", address),
            *("--database-url", database_url),
        )

    assert (done.returncode, http.returncode) == (1, 1)
    assert sentence(done).startswith(f"{spelled('grpc_address')}: {address} cannot be bound")
    assert sentence(http).startswith(f"{spelled('http_address')}: {address} cannot be bound")


def test_a_network_is_not_served_in_the_clear(database_url: str) -> None:
    """Without TLS, and without the setting that says so by name, only the loopback is bound."""
    for command, name in (
        ("serve", "grpc_address"),
        ("up", "grpc_address"),
        ("up", "http_address"),
    ):
        flag = f"--{name.replace('_', '-')}"
        done = creditledger(command, "--database-url", database_url, flag, "0.0.0.0:0")
        assert done.returncode == 2
        assert sentence(done).startswith(spelled(name))
        assert "CREDITLEDGER_ALLOW_INSECURE_BIND" in sentence(done)


def test_allowed_by_name_a_network_is_served(database_url: str, tmp_path: Path) -> None:
    """The setting that allows it is obeyed."""
    with served(tmp_path, database_url, "--grpc-address", "0.0.0.0:0", "--allow-insecure-bind") as (
        _,
        address,
    ):
        host, _, port = address.rpartition(":")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert code_of(channel, "sk-" + "x" * 43) is grpc.StatusCode.UNAUTHENTICATED

    assert host == "0.0.0.0"


#: A certificate of localhost by itself, good for a century, and its key: for this test alone.
CERTIFICATE = (
    "MIIBQTCB6KADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDAgFw0yMDAxMDEwMDAwMDBaGA8y"
    "MTIwMDEwMTAwMDAwMFowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAExI3mqUku"
    "oQZVO38yjMl1F5annDJY53m6zxHmTqJf7j5Rv4AelB4KfAlyXK2ImBy7eTjdryVvVQILnlvxdJ9YDKMpMCcwFAYDVR0R"
    "BA0wC4IJbG9jYWxob3N0MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgMCZ2i7ABckHmUnVYwZ3cdY5t"
    "QUMzRGgHAGJ7lF7p6dsCIQDwJ5Wbg3rlgx/EeZ6cguPKxgvsPSKNpcrUvoRTczjJKw=="
)
KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoOrEYpaygwYsbfGkFfKXT5VrgAZeoN/gd+G9ZqYrOoeh"
    "RANCAATEjeapSS6hBlU7fzKMyXUXlqecMljnebrPEeZOol/uPlG/gB6UHgp8CXJcrYiYHLt5ON2vJW9VAgueW/F0n1gM"
)


def pem(kind: str, text: str) -> bytes:
    """The base 64 as a PEM file."""
    assert base64.b64decode(text)
    lines = textwrap.wrap(text, 64)
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""]).encode()


def test_with_a_certificate_the_port_speaks_tls(database_url: str, tmp_path: Path) -> None:
    """TLS on the port, and commands still go through the socket; a broken certificate is named."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(pem("CERTIFICATE", CERTIFICATE))
    key.write_bytes(pem("PRIVATE KEY", KEY))
    flags = ("--tls-certificate", certificate, "--tls-key", key)
    with served(tmp_path, database_url, *flags, "--grpc-address", "0.0.0.0:0") as (_, address):
        made = creditledger("keys", "create", "--scope", "admin", "--database-url", database_url)
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        port = address.rpartition(":")[2]
        with grpc.secure_channel(f"localhost:{port}", trusted) as channel:
            assert wallets(channel, made.stdout.splitlines()[-1]) == []

    certificate.write_text("nothing of the kind")
    broken = creditledger(
        "serve", "--database-url", database_url, "--grpc-address", "127.0.0.1:0", *flags
    )
    assert broken.returncode == 1
    assert f"creditledger: {spelled('tls_certificate')}" in broken.stderr


async def test_a_server_lets_go_of_what_it_began(database_url: str) -> None:
    """Whatever stops a start, the next one finds database, socket and port free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = load({"database_url": database_url, "grpc_address": f"127.0.0.1:{port}"})
        with pytest.raises(CannotStart):
            await Server(config).start()
    first = Server(config)
    await first.start()
    with pytest.raises((DatabaseLocked, CannotStart)):
        await Server(config).start()
    await first.stop()
    again = Server(config)
    await again.start()
    await again.stop()

    assert not again.local_socket.exists()


# Of a server of PostgreSQL it is the one that meets its disk: see test_failover.py.
@pytest.mark.only("sqlite")
async def test_a_failing_disk_ends_the_server(database_url: str, tmp_path: Path) -> None:
    """Exit code 1, after its caller was told that the outcome is unknown; nothing told is lost."""
    config = load({"database_url": database_url})
    posted = 0
    with served(tmp_path, database_url) as (server, _):
        # From here on no file of the server's grows beyond this, as if the disk were broken there.
        psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
        async with local_channel(config) as channel:
            services = Services(channel)
            await services.new_wallet("wal_acme", "cus_acme")
            error = None
            while error is None:
                request = pb.PostRequest(
                    wallet_id="wal_acme",
                    idempotency_key=str(posted),
                    grant=pb.GrantOperation(amount="1"),
                )
                try:
                    await services.wallets.Post(request, timeout=PATIENCE_SECONDS)
                    posted += 1
                except grpc.aio.AioRpcError as caught:
                    error = caught
        code = server.process.wait(PATIENCE_SECONDS)
    verified = creditledger("verify", "--database-url", database_url)

    body = dict(error.trailing_metadata() or ())["x-creditledger-error"]
    assert json.loads(body)["error"]["code"] == "OUTCOME_UNKNOWN"
    assert code == 1
    assert verified.returncode == 0, verified.stdout
    async with local_channel(config) as channel:
        wallet = await WalletServiceStub(channel).GetWallet(
            pb.GetWalletRequest(wallet_id="wal_acme")
        )
    assert 0 < posted <= wallet.sequence <= posted + 1


# Of a server of PostgreSQL it is the one that meets its disk: see test_failover.py.
@pytest.mark.only("sqlite")
async def test_a_failing_disk_ends_the_server_whatever_it_wrote(
    database_url: str, tmp_path: Path
) -> None:
    """A customer's registration meets the broken disk as a posting does: unknown, then the end."""
    config = load({"database_url": database_url})
    registered = 0
    with served(tmp_path, database_url) as (server, _):
        psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_FSIZE, (100_000, 100_000))
        async with local_channel(config) as channel:
            registry = RegistryServiceStub(channel)
            error = None
            while error is None:
                request = registry_service_pb2.CreateCustomerRequest(
                    id=f"cus_{registered}", name="Acme", email="ops@example.com"
                )
                try:
                    await registry.CreateCustomer(request, timeout=PATIENCE_SECONDS)
                    registered += 1
                except grpc.aio.AioRpcError as caught:
                    error = caught
        code = server.process.wait(PATIENCE_SECONDS)

    body = dict(error.trailing_metadata() or ())["x-creditledger-error"]
    assert json.loads(body)["error"]["code"] == "OUTCOME_UNKNOWN"
    assert (code, registered > 0) == (1, True)


# --- verify ---------------------------------------------------------------------------------------


SOUND = {"ok": True, "failures": [], "repeated_receipts": []}


def test_verify_names_what_is_wrong(databases: Files | Databases) -> None:
    """The first wrong row of each failing check, exit code 1, as table and as JSON."""
    url = databases.new()
    sound = creditledger("verify", "--json", "--database-url", url)
    change(url, lambda connection: add_wallet(connection, "wal_acme"))
    damage = schema.wallet_states.update().values(running_balance=1)
    change(url, lambda connection: connection.execute(damage))

    words = creditledger("verify", "--database-url", url)
    found = creditledger("verify", "--json", "--database-url", url)

    assert (sound.returncode, json.loads(sound.stdout)) == (0, SOUND)
    assert (words.returncode, found.returncode) == (1, 1)
    report = json.loads(found.stdout)
    assert report["ok"] is False
    for failure in report["failures"]:
        assert failure["wallet_id"] == "wal_acme"
        assert failure["count"] == 1
        assert failure["check"] in words.stdout
        assert failure["message"] in words.stdout
    assert report["failures"]
    recorded = look(url, last_verification.last)
    assert recorded is not None
    assert set(recorded.failed_checks) == {one["check"] for one in report["failures"]}
    creditledger("verify", "--no-record", "--database-url", url)
    assert look(url, last_verification.last) == recorded
    databases.drop(url)


# --- up -------------------------------------------------------------------------------------------


def up(folder: Path, url: str, *flags: str) -> Any:
    """`creditledger up` on free ports."""
    ports = ("--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    return started(folder, "up", "--database-url", url, *ports, *flags)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What `up` prints once all of it answers."""

    rest: str
    grpc: str
    customer: str
    admin: str
    curl: str
    grpcurl: str

    @classmethod
    def of(cls, server: Started) -> Greeting:
        """Waits for it."""
        server.until(r"^Ctrl-C", server.output)
        return cls(
            *(
                server.until(pattern, server.output)[1]
                for pattern in (
                    r"^  REST  (\S+)$",
                    r"^  gRPC  (\S+)$",
                    r"^customer key: (\S+)$",
                    r"^admin key: (\S+)$",
                    r"^  (curl .+)$",
                    r"^  (\S*grpcurl .+)$",
                )
            )
        )


def pasted(line: str) -> dict[str, Any]:
    """The JSON that a printed line answers in a shell."""
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_up_makes_a_demo_that_works_when_pasted(tmp_path: Path) -> None:
    """From no file to both lines answering; the next start has new keys and no more postings.

    Who watches is told the end by the server; cut off by Envoy it would be an error to read on.
    """
    url = f"sqlite+aiosqlite:///{tmp_path}/credit.db"
    with up(tmp_path, url) as server:
        first = Greeting.of(server)
        wallet = pasted(first.grpcurl)
        if shutil.which("curl"):
            history = pasted(first.curl)
        else:
            bearer = {"authorization": f"Bearer {first.customer}"}
            history = httpx.get(first.curl.split()[-1], headers=bearer).json()
        assert SECRET.fullmatch(first.customer)
        assert SECRET.fullmatch(first.admin)
        assert wallet["id"] == "wal_demo"
        assert history["total"] == 3
        assert history["items"][0]["balance_after_usd"] == float(wallet["balance"])
        listed = creditledger("keys", "list", "--json", "--database-url", url)
        for key in json.loads(listed.stdout)["api_keys"]:
            begin, end = (datetime.fromisoformat(key[n]) for n in ("created_at", "expires_at"))
            assert abs(end - begin - timedelta(hours=24)) < timedelta(seconds=5)
        watch = f"{first.rest}/api/credit-transactions:watch?after=beginning"
        bearer = {"authorization": f"Bearer {first.customer}"}
        with httpx.stream("GET", watch, headers=bearer, timeout=PATIENCE_SECONDS) as watching:
            told = watching.iter_lines()
            assert any(line.startswith("data: ") for line in told)
            assert server.ended() == 0
            assert list(told)[-1] == ""
        # The log holds one line for each of the calls above, nothing of the demo, and no secret.
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert {line["event"] for line in lines} == {"call"}
        assert {line["method"].rpartition("/")[2] for line in lines} == {
            *("GetWallet", "ListTransactions", "ListApiKeys", "WatchEvents")
        }
        assert first.customer not in server.log.read_text()

    with up(tmp_path, url) as server:
        second = Greeting.of(server)
        with grpc.insecure_channel(second.grpc) as channel:
            codes = [
                code_of(channel, secret)
                for secret in (first.customer, first.admin, second.customer, second.admin)
            ]
        assert codes == [UNAUTHENTICATED] * 2 + [grpc.StatusCode.OK] * 2
        assert pasted(second.grpcurl)["sequence"] == wallet["sequence"]
        assert server.ended(signal.SIGINT) == 0
    assert creditledger("verify", "--database-url", url).returncode == 0


def test_links_open_the_console_once(tmp_path: Path) -> None:
    """That of `up` for an admin, that of `console link` for whom it names; no log has a secret."""
    url = f"sqlite+aiosqlite:///{tmp_path}/credit.db"
    settings = ("--database-url", url)
    with up(tmp_path, url) as server:
        server.until(r"^Ctrl-C", server.output)
        rest = server.until(r"^  REST  (\S+)$", server.output)[1]
        links = [server.until(r"^  (\S+#code=\S+)$", server.output)[1]]
        for asked in (("--customer", "cus_demo"), ("--scope", "service", "--test")):
            told = creditledger("console", "link", *asked, "--url", rest, *settings)
            links.append(told.stdout.strip())
        codes = [link.removeprefix(f"{rest}/console/#code=") for link in links]
        answers = [httpx.post(f"{rest}/v1/sessions", json={"code": code}) for code in codes]
        again = [httpx.post(f"{rest}/v1/sessions", json={"code": code}) for code in codes]
        keys = [answer.json()["api_key"] for answer in answers]
        logged = server.log.read_text()

    seen = [(key["scope"], key.get("customer_id"), key["livemode"]) for key in keys]
    assert seen == [
        ("admin", None, True),
        ("customer", "cus_demo", True),
        ("service", None, False),
    ]
    assert [answer.status_code for answer in again] == [401] * 3
    assert not any(code in logged for code in codes)
    free = creditledger("console", "link", "--http-address", "127.0.0.1:0", *settings)
    assert (free.returncode, free.stdout) == (2, "")
    both = creditledger("console", "link", "--scope", "admin", "--customer", "cus_demo", *settings)
    assert both.returncode == 2


async def test_up_touches_nobody_elses_ledger(database_url: str, tmp_path: Path) -> None:
    """A database in use gets neither demo nor keys; its password is not printed."""
    change(database_url, lambda connection: add_wallet(connection, "wal_acme"))

    # PostgreSQL is reached with a password here, for which the server does not ask.
    named = database_url if is_file(database_url) else with_password(database_url)
    with up(tmp_path, named) as server:
        server.until(r"^Ctrl-C", server.output)
        assert server.ended() == 0
        assert not SECRET.search(server.output.read_text())
        assert PASSWORD not in server.output.read_text()
        assert "keys create" in server.output.read_text()
    listed = creditledger("keys", "list", "--json", "--database-url", database_url)
    assert json.loads(listed.stdout) == {"api_keys": []}
    async with local_channel(load({"database_url": database_url})) as channel:
        found = await WalletServiceStub(channel).ListWallets(pb.ListWalletsRequest())
    assert [wallet.id for wallet in found.wallets] == ["wal_acme"]


def test_up_without_a_demo_starts_empty(tmp_path: Path) -> None:
    """--no-demo: a ledger with nothing in it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/credit.db"
    with up(tmp_path, url, "--no-demo") as server:
        server.until(r"^Ctrl-C", server.output)
        assert server.ended() == 0
    listed = creditledger("keys", "list", "--json", "--database-url", url)

    assert json.loads(listed.stdout) == {"api_keys": []}
