"""`creditledger up`: everything on this machine, and something to try it with."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from creditledger import __version__, clock, demo, log
from creditledger.config import Config, WrongSetting, host_and_port, spelled
from creditledger.demo import DemoKeys
from creditledger.envoy import AddressTaken, Envoy, EnvoyError
from creditledger.private_postgres import NotInstalled, NotStarted, PrivatePostgres
from creditledger.server import (
    CannotStart,
    Server,
    build,
    first_of,
    migrate,
    require_free,
    stop,
    told_to_stop,
)


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
        server = build(config)
        await server.start()
        try:
            keys = await _prepare(server, config) if with_demo else None
            envoy = Envoy(
                listen=host_and_port(config.http_address),
                upstreams=[host_and_port(server.grpc_address)],
                drain_s_max=config.drain_seconds,
            )
            async with envoy:
                say(_greeting(config, server, envoy, keys))
                await first_of(told.wait(), server.failed.wait(), envoy.wait())
                say("stopping: what is under way is finished first")
        except AddressTaken as error:
            raise CannotStart(f"{spelled('http_address')}: {error}.") from None
        except EnvoyError as error:
            raise CannotStart(str(error)) from None
        finally:
            await stop(server, config)
        if not told.is_set() and not server.failed.is_set():
            raise CannotStart("Envoy ended by itself.")
        return not server.failed.is_set()


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


async def _prepare(server: Server, config: Config) -> DemoKeys | None:
    # The demo's own calls are not what whoever looks at the log waits for.
    log.configure("warning", config.log_format)
    try:
        async with server.local_channel() as channel:
            return await demo.prepare(channel, clock.now)
    finally:
        log.configure(config.log_level, config.log_format)


def _greeting(config: Config, server: Server, envoy: Envoy, keys: DemoKeys | None) -> str:
    lines = [
        f"creditledger {__version__} on {config.database}",
        f"  REST  {envoy.url}",
        f"  gRPC  {server.grpc_address}",
        "",
    ]
    if keys is None:
        create = f"{_command('creditledger')} keys create --scope admin"
        lines += [
            "This database has no demo. Make a key with:",
            f"  {create} --database-url '{config.database_url}'",
        ]
    else:
        bearer = f"-H 'authorization: Bearer {keys.customer}'"
        wallet = f"""-d '{{"wallet_id": "{demo.WALLET}"}}'"""
        call = f"{server.grpc_address} credit.v1.WalletService/GetWallet"
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
