"""The server that is measured, and Envoy in front of it: started, watched and stopped."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from credit.v1 import api_key_service_pb2
from credit.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

from bench.worker import Failed
from creditledger.ops.client import call
from creditledger.ops.config import Config, host_and_port
from creditledger.ops.envoy import Envoy

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 120.0
#: A made-up ledger may end long before today.
CLOCK_IDLE_DAYS = 36_500


class Served:
    """A running `creditledger serve`."""

    def __init__(self, process: subprocess.Popen[bytes], addresses: list[str]) -> None:
        self._process = psutil.Process(process.pid)
        self.addresses = addresses  #: Of each worker.

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """What it has used so far."""
        found = [one.cpu_times() for one in self._all()]
        return sum(times.user + times.system for times in found)

    def memory_peak(self) -> int:
        """The most bytes it ever had in memory, over all of its processes."""
        return sum(_peak(one.pid) for one in self._all())


def _peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@contextmanager
def serving(
    url: str, *, workers: int = 1, settings: dict[str, str] | None = None
) -> Iterator[Served]:
    """`creditledger serve` on free ports, until the block ends. Raises Failed."""
    environment = {
        **os.environ,
        "CREDITLEDGER_CLOCK_IDLE_DAYS": str(CLOCK_IDLE_DAYS),
        "CREDITLEDGER_DATABASE_URL": url,
        "CREDITLEDGER_GRPC_ADDRESS": "127.0.0.1:0",
        "CREDITLEDGER_WORKERS": str(workers),
        "CREDITLEDGER_LOG_LEVEL": "warning",
        "CREDITLEDGER_LOG_FORMAT": "json",
        **(settings or {}),
    }
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "creditledger", "serve"], env=environment, stderr=log
        )
        try:
            yield Served(process, _addresses(process, workers, Path(log.name)))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS_MAX)


def _addresses(process: subprocess.Popen[bytes], workers: int, log: Path) -> list[str]:
    """Where it listens, as soon as it does."""
    give_up = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise Failed(f"the server has ended: {log.read_text()[-2_000:]}")
        first = psutil.Process(process.pid)
        found = [
            one.laddr.port
            for each in (first, *first.children())
            for one in each.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        ]
        if len(found) == workers:
            return [f"127.0.0.1:{port}" for port in found]
        time.sleep(0.05)
    raise Failed("the server did not start")


@contextmanager
def behind_envoy(addresses: list[str]) -> Iterator[str]:
    """Envoy as `up` runs it, in front of the servers; host:port of it."""
    with asyncio.Runner() as runner:
        envoy = Envoy(listen=("127.0.0.1", 0), upstreams=list(map(host_and_port, addresses)))
        runner.run(envoy.start())
        try:
            host, port = envoy.address
            yield f"{host}:{port}"
        finally:
            runner.run(envoy.stop())


def new_key(url: str, scope: str, customer: str | None = None) -> str:
    """The secret of a new key; before a server has the database for itself."""
    request = api_key_service_pb2.CreateApiKeyRequest(
        name=f"bench {scope}", scope=scope, customer_id=customer, livemode=True
    )
    config = Config(database_url=url, clock_idle_days=CLOCK_IDLE_DAYS)
    return call(config, lambda channel: ApiKeyServiceStub(channel).CreateApiKey(request)).secret
