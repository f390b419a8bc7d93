"""`creditledger proxy`."""

from creditledger.ops.cli.console import with_settings
from creditledger.ops.config import Config

SETTINGS = (
    *("http_address", "grpc_address", "workers", "allow_insecure_bind", "drain_seconds"),
    *("otlp_endpoint", "trace_ratio"),
)


@with_settings(*SETTINGS)
def proxy(config: Config) -> None:
    """Run Envoy in front of servers that run elsewhere, at the gRPC address of these settings.

    The access log goes to standard output. SIGTERM or Ctrl-C drains: health checks fail, requests
    under way are finished.
    """
    from creditledger.ops import proxy as work
    from creditledger.ops.process import run

    run(work.proxy(config))
