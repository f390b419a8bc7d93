"""Envoy alone, in front of servers that another process or container runs."""

from creditledger.ops.config import CannotStart, Config, WrongSetting, host_and_port, spelled
from creditledger.ops.envoy import AddressTaken, Envoy, EnvoyError
from creditledger.ops.process import first_of, told_to_stop
from creditledger.ops.sockets import require_free


async def proxy(config: Config) -> None:
    """Envoy in front of the servers of these settings, until SIGTERM or SIGINT; then drained.

    It answers 503 while no server is healthy. Raises CannotStart, WrongSetting.
    """
    if config.tls_certificate is not None:
        raise WrongSetting(
            f"{spelled('tls_certificate')} is for `serve`: this Envoy speaks to its servers over"
            " the loopback, without TLS."
        )
    config.require_safe_bind("http_address")
    require_free(config, "http_address")
    host, port = host_and_port(config.grpc_address)
    if port == 0:
        raise WrongSetting(f"{spelled('grpc_address')} must name the server's port.")
    envoy = Envoy(
        listen=host_and_port(config.http_address),
        upstreams=[(host, port + number) for number in range(config.workers)],
        drain_s_max=config.drain_seconds,
        is_shown=True,
        traces=config.traces,
    )
    with told_to_stop() as told:
        try:
            await envoy.start(healthy=False)
            try:
                await first_of(told.wait(), envoy.wait())
            finally:
                await envoy.stop()
        except AddressTaken as error:
            raise CannotStart(f"{spelled('http_address')}: {error}.") from None
        except EnvoyError as error:
            raise CannotStart(str(error)) from None
        if not told.is_set():
            raise CannotStart("Envoy ended by itself.")
