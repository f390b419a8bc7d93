"""The command line as its user has it: a process of its own, in an environment without settings."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: How long a command that ends by itself may take before it counts as hanging.
PATIENCE_SECONDS = 60
#: Settings, and what a process that uses gRPC has said to itself.
_OTHERS = ("CREDITLEDGER_", "GRPC_ENABLE_FORK_SUPPORT", "GRPC_VERBOSITY")


def environment(settings: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this one's without settings, and those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **(settings or {})}


def arguments(*given: object) -> list[str]:
    """What calls `creditledger` with these arguments."""
    return [sys.executable, "-m", "creditledger", *map(str, given)]


def creditledger(
    *given: object, folder: Path | None = None, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `settings` are environment variables."""
    return subprocess.run(
        arguments(*given),
        cwd=folder,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
