"""Several servers on one database: workers of one command, and servers that know no other.

They are real processes, some of them behind a real Envoy; they are killed, restarted and told to
stop while clients that retry UNAVAILABLE with the same key are at work.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from creditledger.store import migrations
from tests.support.commands import Command, creditledger, start
from tests.support.databases import PASSWORD, execute, with_password
from tests.support.metrics import scraped
from tests.support.process import process
from tests.support.retrying_clients import Clients, prepare
from tests.support.server import PATIENCE_SECONDS as STEP_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: How long several processes that start one after the other may take.
PATIENCE_SECONDS = 3 * STEP_SECONDS

on_postgresql = pytest.mark.only("postgresql")


@dataclass(frozen=True, slots=True)
class Parent:
    """A command with workers."""

    process: Command
    output: Path
    log: Path

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it and its workers have logged so far of one kind."""
        return [
            line
            for text in self.log.read_text().splitlines(keepends=True)
            if text.endswith("\n") and text.startswith("{")
            if (line := json.loads(text))["event"] == event
        ]

    async def until(self, event: str, count: int) -> list[dict[str, Any]]:
        """So many lines of this kind, waited for."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(found := self.lines(event)) < count:
                assert self.process.poll() is None, self.log.read_text()
                # The file is written by other processes: there is nothing to wait upon but time.
                await asyncio.sleep(0.02)
        return found

    async def addresses(self) -> list[str]:
        """Where its workers serve, when all do."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for line in self.lines("serving"):
                    if "grpc_addresses" in line:
                        found: list[str] = line["grpc_addresses"]
                        return found
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)

    async def printed(self, pattern: str) -> str:
        """What the group in the pattern matches in what it prints, waited for."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := re.search(pattern, self.output.read_text(), re.MULTILINE)):
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.02)
        return found[1]

    def family(self) -> list[psutil.Process]:
        """Every process that it has begun."""
        return psutil.Process(self.process.pid).children(recursive=True)

    async def ended(self, number: signal.Signals) -> int:
        """Its exit code after the signal, when every process that it began is gone."""
        family = self.family()
        self.process.send_signal(number)
        code = await self.process.ended(PATIENCE_SECONDS)
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, STEP_SECONDS)
        assert alive == []
        return code


@asynccontextmanager
async def parent(folder: Path, *given: object, **settings: str) -> AsyncIterator[Parent]:
    """Run a command beside the test; nothing of it is left when the block ends."""
    output, log = folder / "output", folder / "log"
    with output.open("w") as out, log.open("w") as err:
        log_format = ("--log-format", "json")
        started = start(
            *given, *log_format, folder=folder, settings=settings, output=out, errors=err
        )
    try:
        yield Parent(started, output, log)
    finally:
        if started.poll() is None:
            family = psutil.Process(started.pid).children(recursive=True)
            started.kill()
            started.wait()
            for one in family:
                if one.is_running():
                    one.kill()


def two_workers(folder: Path, url: str, **settings: str) -> Any:
    """`serve` with two of them on free ports."""
    settings = {"CREDITLEDGER_DATABASE_URL": with_password(url), **settings}
    given = ("--workers", 2, "--grpc-address", "127.0.0.1:0")
    return parent(folder, "serve", *given, **settings)


@on_postgresql
async def test_restarted_one_after_the_other(database_url: str, tmp_path: Path) -> None:
    """SIGHUP under load: new processes, and not a call that fails but by UNAVAILABLE.

    The settings reach the workers by their environment: no list of processes and no log shows the
    database's password. SIGTERM drains all.
    """
    shop = await prepare(database_url)
    async with two_workers(tmp_path, database_url) as served:
        clients = Clients(shop, await served.addresses())
        shown = [one.cmdline() for one in [psutil.Process(served.process.pid), *served.family()]]
        async with clients.at_work():
            await clients.accept(200)
            served.process.send_signal(signal.SIGHUP)
            await served.until("worker serves", 4)
            await clients.accept(200)
        code = await served.ended(signal.SIGTERM)
        workers = served.lines("worker serves")
        log = served.log.read_text()

    assert code == 0
    assert Counter(one["grpc_address"] for one in workers) == dict.fromkeys(clients.addresses, 2)
    assert len({one["pid"] for one in workers}) == 4
    assert {code for _, code in clients.retried} == {"UNAVAILABLE"}
    assert {manner for manner, _ in clients.retried} >= {"unary", "stream"}
    assert len(shown) == 3
    assert PASSWORD not in repr(shown) + log
    assert served.lines("worker ended") == []
    clients.check()


@on_postgresql
async def test_metrics_of_all_workers_add_up(database_url: str, tmp_path: Path) -> None:
    """Each worker counts its own postings at its own address; one tells of the whole ledger."""
    shop = await prepare(database_url)
    given = {"CREDITLEDGER_METRICS_ADDRESS": "127.0.0.1:0"}
    async with two_workers(tmp_path, database_url, **given) as served:
        clients = Clients(shop, await served.addresses())
        async with clients.at_work():
            await clients.accept(200)
        (started,) = (one for one in served.lines("serving") if "metrics_addresses" in one)
        async with asyncio.timeout(STEP_SECONDS):
            while True:
                found = [await scraped(one) for one in started["metrics_addresses"]]
                if any(one.values("wallets") for one in found):
                    break
                await asyncio.sleep(0.02)  # the ledger's figures are read beside the start
        code = await served.ended(signal.SIGTERM)

    posted = [sum(one.values("postings_total").values()) for one in found]
    assert len(posted) == 2
    assert all(posted)
    assert sum(posted) == len(clients.accepted)
    assert sum(bool(one.values("wallets")) for one in found) == 1
    assert code == 0
    clients.check()


@on_postgresql
async def test_a_worker_that_is_killed_is_started_again(database_url: str, tmp_path: Path) -> None:
    """`kill -9` of a worker: clients go on with the other one, and soon with both.

    `kill -9` of the parent ends its workers, in order.
    """
    shop = await prepare(database_url)
    async with two_workers(tmp_path, database_url) as served:
        addresses = await served.addresses()
        clients = Clients(shop, addresses)
        killed = served.lines("worker serves")[0]
        async with clients.at_work():
            await clients.accept(200)
            psutil.Process(killed["pid"]).kill()
            *_, again = await served.until("worker serves", 3)
            await clients.accept(200)
        code = await served.ended(signal.SIGKILL)
        (ended,) = served.lines("worker ended")
        stopped = served.lines("stopped")

    assert (ended["pid"], ended["exit_code"]) == (killed["pid"], -signal.SIGKILL)
    assert again["grpc_address"] == killed["grpc_address"]
    assert {code for _, code in clients.retried} == {"UNAVAILABLE"}
    assert (code, len(stopped)) == (-signal.SIGKILL, 2)
    clients.check()


@on_postgresql
async def test_a_restart_that_fails_is_tried_again(database_url: str, tmp_path: Path) -> None:
    """Where the first worker does not come up the others stay; it serves as soon as it can."""
    revise = "UPDATE alembic_version SET version_num = '{}'"
    shop = await prepare(database_url)
    async with two_workers(tmp_path, database_url) as served:
        clients = Clients(shop, await served.addresses())
        before = {one["grpc_address"]: one["pid"] for one in served.lines("worker serves")}
        async with clients.at_work(batches=0, streams=0):
            await execute(database_url, revise.format("another"))
            served.process.send_signal(signal.SIGHUP)
            (given_up,) = await served.until("restart given up", 1)
            await clients.accept(50)
            await execute(database_url, revise.format(migrations.newest()))
            *_, again = await served.until("worker serves", 3)
            await clients.accept(50)
        family = {one.pid for one in served.family()}
        assert await served.ended(signal.SIGTERM) == 0

    first, second = clients.addresses
    assert given_up["reason"] == f"The worker at {first} ended; its log says why."
    assert again["grpc_address"] == first
    assert family == {again["pid"], before[second]}
    assert {code for _, code in clients.retried} == {"UNAVAILABLE"}
    clients.check()


def test_on_sqlite_one_writes(tmp_path: Path) -> None:
    """More than one worker on a file is a wrong setting, which says why."""
    given = ("--workers", 2, "--database-url", f"sqlite+aiosqlite:///{tmp_path}/credit.db")
    for command in ("serve", "up"):
        done = creditledger(command, *given)

        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "CREDITLEDGER_WORKERS (--workers) must be 1 on SQLite" in done.stderr


@on_postgresql
async def test_a_worker_that_cannot_start(database_url: str, tmp_path: Path) -> None:
    """The start stops with a sentence, beside that of the worker, and leaves nothing running."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    tls = {"CREDITLEDGER_TLS_CERTIFICATE": str(broken), "CREDITLEDGER_TLS_KEY": str(broken)}
    async with two_workers(tmp_path, database_url, **tls) as served:
        code = await served.process.ended(PATIENCE_SECONDS)
    said = [one for one in served.log.read_text().splitlines() if one.startswith("creditledger: ")]

    assert code == 1
    assert re.fullmatch(
        r"creditledger: The worker at 127.0.0.1:\d+ ended; its log says why.", said[-1]
    )
    assert "CREDITLEDGER_TLS_CERTIFICATE (--tls-certificate)" in said[0]
    assert [one for one in psutil.process_iter(["environ"]) if str(broken) in repr(one.info)] == []


@on_postgresql
async def test_a_port_that_is_taken(database_url: str) -> None:
    """The ports are those from the setting's on; each must be free before anything is begun."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            first.close()
            given = ("--workers", 2, "--grpc-address", f"127.0.0.1:{port}")
            done = creditledger("serve", "--database-url", database_url, *given)
            break

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"127.0.0.1:{port + 1} cannot be bound" in done.stderr


@on_postgresql
async def test_two_servers_one_of_them_killed(database_url: str, tmp_path: Path) -> None:
    """`kill -9` of one of two servers under load on the same wallets: nothing lost, nothing twice.

    Its clients repeat what they do not know the end of at the other server, with the same keys.
    """
    shop = await prepare(database_url)
    async with (
        process(database_url, tmp_path / "one") as one,
        process(database_url, tmp_path / "other") as other,
    ):
        clients = Clients(shop, [one.grpc_address, other.grpc_address])
        async with clients.at_work(unary=4, batches=2, streams=2):
            await clients.accept(1_000)
            one.process.kill()
            await clients.accept(1_000)
        other.process.terminate()
        assert await other.ended() == 0

    manners = {manner for manner, _ in clients.retried}
    assert manners == {"unary", "batch", "stream"}
    assert {code for _, code in clients.retried} == {"UNAVAILABLE"}
    clients.check()


async def test_through_envoy(tmp_path: Path) -> None:
    """`up --postgres --workers 2`: Envoy asks both; SIGHUP under load fails no call, REST or gRPC.

    With the restart announced by the workers themselves hardly any has to be repeated.
    """
    ports = ("--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--no-demo")
    async with parent(tmp_path, "up", "--postgres", "--workers", 2, *ports) as up:
        url = await up.printed(r"--database-url '([^']+)'")
        shop = await prepare(url)
        rest, addresses = await up.printed(r"^  REST  (\S+)$"), await up.printed(r"^  gRPC  (.+)$")
        clients = Clients(shop, [rest.removeprefix("http://")])
        (envoy,) = (one for one in up.family() if "--config-path" in one.cmdline())
        folder = Path(envoy.cmdline()[envoy.cmdline().index("--config-path") + 1]).parent
        async with clients.at_work(batches=1, rest=rest):
            await clients.accept(100)
            up.process.send_signal(signal.SIGHUP)
            await up.until("worker serves", 4)
            await clients.accept(100)
        await asyncio.to_thread(clients.check)
        asked = Counter(
            line["upstream"]
            for text in (folder / "envoy.log").read_text().splitlines()
            if text.startswith("{") and (line := json.loads(text))["status"] == 200
        )
        assert await up.ended(signal.SIGTERM) == 0

    assert asked.keys() == set(addresses.split(", "))
    assert min(asked.values()) > 0.1 * asked.total()
    assert {code for _, code in clients.retried} <= {"UNAVAILABLE"}
    # A stream cannot be sent elsewhere by Envoy, calls can.
    assert sum(n for (manner, _), n in clients.retried.items() if manner != "stream") < 10
