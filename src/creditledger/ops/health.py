"""Whether the server of these settings serves, and how its database does."""

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import Connection

from creditledger import store
from creditledger.domain import clock
from creditledger.ops.config import Config, WrongSetting, host_and_port, spelled
from creditledger.ops.sockets import local_socket, target
from creditledger.store import CannotOpen, migrations
from creditledger.store.read import replica
from creditledger.store.webhooks import feed as webhook_feed

#: How long the server, and the database, may take to answer.
ANSWER_SECONDS_MAX = 3.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Health:
    """What was found. A lag is seconds; None where there is nothing that could lag."""

    serving: bool
    database: bool
    problems: tuple[str, ...]  #: A sentence for each thing that is wrong; none: it is healthy.
    webhook_lag_seconds: float | None = None  #: Age of the oldest webhook that is due and unsent.
    replica_lag_seconds: float | None = None  #: How far the replica is behind.

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {"healthy": self.is_healthy, **asdict(self), "problems": list(self.problems)}

    def as_text(self) -> str:
        """For people."""
        lags = [
            f"{name} lag {seconds:.1f} s"
            for name, seconds in (
                ("webhooks", self.webhook_lag_seconds),
                ("replica", self.replica_lag_seconds),
            )
            if seconds is not None
        ]
        return "\n".join(self.problems or (", ".join(["serving, database answers", *lags]),))


async def check(config: Config, *, lag_seconds_max: float | None) -> Health:
    """The health of the server that these settings make, and of its database.

    `lag_seconds_max`: a lag beyond it is a problem; None: lags are only told. Raises WrongSetting.
    """
    problems = []
    for address in _addresses(config):
        problem = await _server_problem(config, address)
        if problem is not None:
            problems.append(problem)
    serving = not problems
    webhook_lag = replica_lag = None
    database = True
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            webhook_lag = await store.look(config.database_url, _webhook_lag)
        if config.read_database_url is not None:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                replica_lag = await store.look(config.read_database_url, replica.lag_seconds)
    except (CannotOpen, TimeoutError) as error:
        database = False
        problems.append(str(error) or "The database does not answer.")
    for name, lag in (("webhooks", webhook_lag), ("replica", replica_lag)):
        if lag_seconds_max is not None and lag is not None and lag > lag_seconds_max:
            problems.append(f"The lag of {name} is {lag:.1f} s, more than {lag_seconds_max:g} s.")
    return Health(serving, database, tuple(problems), webhook_lag, replica_lag)


def _webhook_lag(connection: Connection) -> float | None:
    """Raises CannotOpen for a schema that is not this version's."""
    found, needed = migrations.revision(connection), migrations.newest()
    if found != needed:
        raise CannotOpen(f"The database has the schema {found}, this version needs {needed}.")
    oldest = webhook_feed.oldest_due(connection, clock.now())
    return None if oldest is None else max(0.0, (clock.now() - oldest) / clock.SECOND)


def _addresses(config: Config) -> list[str]:
    """Where servers of these settings listen, as gRPC spells it. Raises WrongSetting."""
    if config.path is not None:
        # The socket is there with TLS too, and only this machine has the file.
        return [target(local_socket(config.path))]
    host, port = host_and_port(config.grpc_address)
    if port == 0:
        raise WrongSetting(f"{spelled('grpc_address')} must name the server's port.")
    if host in {"0.0.0.0", "::"}:  # noqa: S104 # asked for, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104 # the same
    host = f"[{host}]" if ":" in host else host
    return [f"{host}:{port + number}" for number in range(config.workers)]


async def _server_problem(config: Config, address: str) -> str | None:
    async with _channel(config, address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            said = await stub.Check(
                health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS_MAX, wait_for_ready=False
            )
        except grpc.aio.AioRpcError as error:
            return f"No server answers at {address}: {error.code().name}."
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(said.status)
    return None if said.status == _SERVING else f"The server at {address} says {name}."


def _channel(config: Config, address: str) -> grpc.aio.Channel:
    if config.tls_certificate is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address)
    chain = config.tls_certificate.read_bytes()
    try:
        name = _certified_name(x509.load_pem_x509_certificate(chain))
    except ValueError:
        raise WrongSetting(f"{spelled('tls_certificate')} holds no certificate.") from None
    # The certificate itself is what is trusted: it is the one that this server was given.
    credentials = grpc.ssl_channel_credentials(root_certificates=chain)
    options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.aio.secure_channel(address, credentials, options=options)


def _certified_name(certificate: x509.Certificate) -> str | None:
    """A name, or an address, that the certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for name in names.get_values_for_type(x509.DNSName):
        return name.replace("*", "ledger", 1)
    for address in names.get_values_for_type(x509.IPAddress):
        return str(address)
    return None
