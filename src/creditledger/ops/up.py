"""Everything on this machine: the server, Envoy in front, and a demo to try it with."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from credit.v1.api_key_service_pb2 import CreateSessionCodeRequest

from creditledger import __version__, store
from creditledger.domain import clock
from creditledger.ops import demo, log, workers
from creditledger.ops.client import local_channel
from creditledger.ops.config import (
    PREFIX,
    CannotStart,
    Config,
    WrongSetting,
    host_and_port,
    spelled,
)
from creditledger.ops.database import migrate
from creditledger.ops.demo import DemoKeys
from creditledger.ops.embedded_postgres import NotInstalled, NotStarted, PrivatePostgres
from creditledger.ops.envoy import AddressTaken, Envoy, EnvoyError
from creditledger.ops.process import first_of, told_to_stop
from creditledger.ops.server import Server, stop
from creditledger.ops.session_links import session_link
from creditledger.ops.sockets import require_free


@contextmanager
def private_postgres(config: Config, folder: Path) -> Iterator[Config]:
    """The settings with the database of a PostgreSQL of one's own, which runs in the folder.

    Raises CannotStart, WrongSetting.
    """
    if "database_url" in config.model_fields_set:
        raise WrongSetting(f"--postgres chooses the database: leave out {spelled('database_url')}.")
    try:
        with PrivatePostgres(folder) as server:
            server.create()
            yield config.model_copy(update={"database_url": server.url()})
    except (NotInstalled, NotStarted) as error:
        raise CannotStart(str(error)) from None


async def up(config: Config, *, with_demo: bool, say: Callable[[str], None]) -> bool:
    """Migrate, serve, put Envoy in front, make the demo; until SIGTERM or SIGINT.

    Answers False if it ended because of itself. Nothing is left running, however it ends.
    Raises CannotStart, WrongSetting, DatabaseLocked.
    """
    _require_possible(config)
    await migrate(config)
    with told_to_stop() as told:
        async with _served(config) as (addresses, failed, end_watches):
            envoy = Envoy(
                listen=host_and_port(config.http_address),
                upstreams=[host_and_port(address) for address in addresses],
                drain_s_max=config.drain_seconds,
                traces=config.traces,
            )
            try:
                async with envoy:
                    keys, link = await _prepare(config, envoy.url, with_demo=with_demo)
                    say(_greeting(config, addresses, envoy, keys, link))
                    await first_of(told.wait(), failed.wait(), envoy.wait())
                    say("stopping: what is under way is finished first")
                    await end_watches()
            except AddressTaken as error:
                raise CannotStart(f"{spelled('http_address')}: {error}.") from None
            except EnvoyError as error:
                raise CannotStart(str(error)) from None
        if not told.is_set() and not failed.is_set():
            raise CannotStart("Envoy ended by itself.")
        return not failed.is_set()


@asynccontextmanager
async def _served(
    config: Config,
) -> AsyncIterator[tuple[list[str], asyncio.Event, Callable[[], Awaitable[object]]]]:
    """Where gRPC is served until the block ends, what says that it cannot be any more, and what
    ends the calls that would not end by themselves.
    """
    if config.workers > 1:
        async with workers.running(config) as started:
            # A worker that ends is started again; its watchers have the seconds of a drain.
            yield started.addresses, asyncio.Event(), partial(asyncio.sleep, 0)
        return
    server = Server(config)
    await server.start()
    try:
        yield [server.grpc_address], server.failed, server.end_watches
    finally:
        await stop(server, config)


def _require_possible(config: Config) -> None:
    """What would stop the start is found before anything is begun."""
    if config.tls_certificate is not None:
        raise WrongSetting(
            f"{spelled('tls_certificate')} is for `serve`: the Envoy of `up` speaks to its server"
            " over the loopback, without TLS."
        )
    config.require_safe_bind("grpc_address")
    config.require_safe_bind("http_address")
    require_free(config, "grpc_address")
    require_free(config, "http_address")
    config.require_safe_bind("metrics_address")
    require_free(config, "metrics_address")


async def _prepare(config: Config, url: str, *, with_demo: bool) -> tuple[DemoKeys | None, str]:
    """Keys of the demo, if there is one; a link to the console for an administrator."""
    # A reader of the log does not wait for the demo's own calls.
    log.configure("warning", config.log_format)
    try:
        async with local_channel(config) as channel:
            keys = await demo.prepare(channel, clock.now) if with_demo else None
            wanted = CreateSessionCodeRequest(scope="admin", livemode=True)
            link, _ = await session_link(channel, url, wanted)
            return keys, link
    finally:
        log.configure(config.log_level, config.log_format)


def _greeting(
    config: Config, addresses: list[str], envoy: Envoy, keys: DemoKeys | None, link: str
) -> str:
    lines = [
        f"creditledger {__version__} on {config.database}",
        f"  REST  {envoy.url}",
        f"  gRPC  {', '.join(addresses)}",
        "",
        "The console, by a link for once and within a minute:",
        f"  {link}",
        "",
    ]
    if keys is None:
        create = f"{_command('creditledger')} keys create --scope admin"
        if store.holds_secret(config.database_url):
            where = f"with {PREFIX}DATABASE_URL as it is here, which has a password"
        else:
            where, create = "with", f"{create} --database-url '{config.database_url}'"
        lines += [f"This database has no demo. Make a key {where}:", f"  {create}"]
    else:
        bearer = f"-H 'authorization: Bearer {keys.customer}'"
        wallet = f"""-d '{{"wallet_id": "{demo.WALLET}"}}'"""
        call = f"{addresses[0]} credit.v1.WalletService/GetWallet"
        lines += [
            f"customer key: {keys.customer}",
            f"admin key: {keys.admin}",
            "",
            "Try, in another terminal:",
            f"  curl -s {bearer} {envoy.url}/api/v1/me/billing/transactions",
            f"  {_command('grpcurl')} -plaintext {bearer} {wallet} {call}",
        ]
    return "\n".join([*lines, "", "Ctrl-C stops both."])


def _command(name: str) -> str:
    """How to call a command from any shell: by its path where this environment has it."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name
