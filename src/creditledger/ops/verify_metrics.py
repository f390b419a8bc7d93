"""The outcome of `verify` as metrics, in a file that Prometheus's node exporter reads.

`verify` ends before anybody could scrape it, and the database that it reads may be a backup.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile


def write(file: Path, *, failed: int, seconds: float) -> None:
    """Replace the file: `failed` checks, found in so many seconds, now. Raises OSError."""
    registry = CollectorRegistry()
    for name, said, value in (
        ("failed_checks", "Checks of the last verify that found something wrong.", failed),
        ("seconds", "How long the last verify took.", seconds),
    ):
        Gauge(f"creditledger_verify_{name}", said, registry=registry).set(value)
    ended = Gauge(
        "creditledger_verify_timestamp_seconds", "When the last verify ended.", registry=registry
    )
    ended.set_to_current_time()
    write_to_textfile(str(file), registry)
    # Files of commands are for their owner alone. This one has no secrets, and the node exporter is
    # another user.
    file.chmod(0o644)
