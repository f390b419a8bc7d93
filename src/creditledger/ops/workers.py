"""Several servers on this machine, each a process with a port of its own.

They need a database that takes several writers, and agree on everything through it. Each is a fresh
process, because gRPC does not survive a fork.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from creditledger.ops import child_process
from creditledger.ops.config import CannotStart, Config, WrongSetting, host_and_port, spelled
from creditledger.ops.database import require_schema
from creditledger.ops.process import CLOSE_SECONDS_MAX, first_of, told_to_stop
from creditledger.ops.sockets import require_free

log = structlog.get_logger()

#: How long a worker may take until it answers.
READY_SECONDS_MAX = 60.0
#: Between the end of a worker that was not told to end and its next start; doubled each time.
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.5, 30.0
#: A worker that has served for so long ended for another reason than the one before it.
STEADY_SECONDS = 60.0
#: Between a worker that serves again and the end of the next one. A load balancer has seen by then
#: that the worker serves: Envoy, as configured, looks twice a second.
SETTLE_SECONDS = 1.5
_POLL_SECONDS = 0.05


class Workers:
    """The processes, kept running: one that ends is started again."""

    def __init__(self, config: Config) -> None:
        """Raises WrongSetting on SQLite, CannotStart for ports that there are not."""
        if config.path is not None:
            raise WrongSetting(
                f"{spelled('workers')} must be 1 on SQLite: one process writes to a file, and"
                " batches what comes at once; several need PostgreSQL."
            )
        self._config = config
        self.addresses = _addresses(config, config.grpc_address)
        #: Where each of them serves its metrics, by its address of gRPC.
        self._metrics: dict[str, str] = {}
        if config.metrics_address is not None:
            metrics = _addresses(config, config.metrics_address)
            self._metrics = dict(zip(self.addresses, metrics, strict=True))
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Start all and wait until they serve. Raises CannotStart, with none left running."""
        self._config.require_safe_bind("grpc_address")
        self._config.require_safe_bind("metrics_address")
        for address in self.addresses:
            alone = self._alone(address)
            require_free(alone, "grpc_address")
            require_free(alone, "metrics_address")
        await require_schema(self._config)
        async with self._changing:
            launching = [asyncio.ensure_future(self._launch(one)) for one in self.addresses]
            try:
                await asyncio.gather(*launching)
            except BaseException:
                for one in launching:
                    one.cancel()
                await asyncio.gather(*launching, return_exceptions=True)
                await self.stop()
                raise
            for address in self.addresses:
                self._keep(address)

    async def restart(self) -> None:
        """A new process for each, one after the other: the others serve meanwhile.

        Raises CannotStart for the first one that does not come up; it is tried again and again,
        and those after it go on as they are.
        """
        async with self._changing:
            for number, address in enumerate(self.addresses):
                if number:
                    await asyncio.sleep(SETTLE_SECONDS)
                log.info("restarting worker", grpc_address=address)
                await self._let_go(address)
                try:
                    await self._end(address)
                    await self._launch(address)
                finally:
                    self._keep(address)

    async def stop(self) -> None:
        """Drain all, at the same time."""
        await asyncio.gather(*(self._let_go(address) for address in self.addresses))
        await asyncio.gather(*(self._end(address) for address in self.addresses))

    @property
    def metrics_addresses(self) -> list[str]:
        """Where they serve their metrics; empty: nowhere."""
        return list(self._metrics.values())

    def _alone(self, address: str) -> Config:
        """The settings of one of them."""
        own = {"grpc_address": address, "metrics_address": self._metrics.get(address), "workers": 1}
        return self._config.model_copy(update=own)

    async def _launch(self, address: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *child_process.launch([sys.executable, "-m", "creditledger", "serve"]),
            env=self._alone(address).environment(),
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C goes to every process of the terminal; this process decides when each drains.
            start_new_session=True,
        )
        self._processes[address] = process
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                await first_of(process.wait(), _healthy(self._config, address))
        except TimeoutError:
            await self._end(address)
            raise CannotStart(f"The worker at {address} does not answer.") from None
        if process.returncode is not None:
            raise CannotStart(f"The worker at {address} ended; its log says why.")
        log.info("worker serves", grpc_address=address, pid=process.pid)

    def _keep(self, address: str) -> None:
        self._keepers[address] = asyncio.create_task(self._kept(address))

    async def _kept(self, address: str) -> None:
        """Start the worker again whenever it ends."""
        loop = asyncio.get_running_loop()
        pause = PAUSE_SECONDS_MIN
        while True:
            began = loop.time()
            process = self._processes[address]
            code = await process.wait()
            log.error("worker ended", grpc_address=address, pid=process.pid, exit_code=code)
            if loop.time() - began > STEADY_SECONDS:
                pause = PAUSE_SECONDS_MIN
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
            try:
                await self._launch(address)
            except CannotStart as error:
                log.error("worker does not start", grpc_address=address, reason=str(error))

    async def _let_go(self, address: str) -> None:
        keeper = self._keepers.pop(address, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def _end(self, address: str) -> None:
        process = self._processes.get(address)
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._config.drain_seconds + CLOSE_SECONDS_MAX):
                await process.wait()
        except TimeoutError:
            log.critical("worker cannot stop in order", grpc_address=address)
            process.kill()
            await process.wait()


async def serve(config: Config) -> None:
    """Workers until SIGTERM or SIGINT, then drained. Raises CannotStart, WrongSetting."""
    with told_to_stop() as told:
        async with running(config) as workers:
            log.info(
                "serving",
                grpc_addresses=workers.addresses,
                metrics_addresses=workers.metrics_addresses,
                database=config.database,
            )
            await told.wait()
            log.info("draining", seconds_max=config.drain_seconds)
        log.info("stopped")


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Workers]:
    """Workers until the block ends, then drained; meanwhile SIGHUP restarts them one by one.

    Raises CannotStart, WrongSetting.
    """
    workers = Workers(config)
    loop = asyncio.get_running_loop()
    restarts: set[asyncio.Task[None]] = set()

    async def restart() -> None:
        try:
            await workers.restart()
        except CannotStart as error:
            log.error("restart given up", reason=str(error))

    def hang_up() -> None:
        task = asyncio.create_task(restart())
        restarts.add(task)
        task.add_done_callback(restarts.discard)

    # From the beginning: a hang-up that comes early is not to end this process.
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        await workers.start()
        yield workers
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in restarts:
            task.cancel()
        await asyncio.gather(*restarts, return_exceptions=True)
        await workers.stop()


def _addresses(config: Config, first: str) -> list[str]:
    """The port of the first and those after it; any free ones if it is 0."""
    host, _, port = first.rpartition(":")
    if int(port):
        last = int(port) + config.workers - 1
        if last > 65_535:
            raise CannotStart(f"{first}: there are no ports up to {last}.")
        return [f"{host}:{number}" for number in range(int(port), last + 1)]
    name, _ = host_and_port(first)
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    probes = [socket.socket(family, socket.SOCK_STREAM) for _ in range(config.workers)]
    try:
        for probe in probes:
            probe.bind((name, 0))
        return [f"{host}:{probe.getsockname()[1]}" for probe in probes]
    finally:
        for probe in probes:
            probe.close()


async def _healthy(config: Config, address: str) -> None:
    """Wait until the server there says SERVING."""
    if config.tls_certificate is not None:
        # The certificate's name is not known here; the port is open when the worker is ready.
        while not await _listens(address):  # noqa: ASYNC110 # another process
            await asyncio.sleep(_POLL_SECONDS)
        return
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            try:
                said = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            if said.status == health_pb2.HealthCheckResponse.SERVING:
                return
            await asyncio.sleep(_POLL_SECONDS)


async def _listens(address: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(*host_and_port(address))
    except OSError:
        return False
    writer.close()
    return True
