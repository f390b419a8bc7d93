"""The command line as its user has it: a process of its own, in an environment without settings.

`creditledger` runs a command to its end, `start` beside the test. Both are forks of a process that
has imported everything (`launcher.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

#: How long a command that ends by itself may take before it counts as hanging.
PATIENCE_SECONDS = 60
#: Settings, and what a process that uses gRPC has said to itself.
_OTHERS = ("CREDITLEDGER_", "GRPC_ENABLE_FORK_SUPPORT", "GRPC_VERBOSITY")
#: Threads share the launcher.
_ONE_AT_A_TIME = Lock()


def environment(settings: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a command: this one's without settings, and those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **(settings or {})}


class Command:
    """A command that runs; its exit code as soon as that is waited for."""

    def __init__(self, pid: int, ending: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ending = ending

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._end(0)

    def wait(self, seconds_max: float = PATIENCE_SECONDS) -> int:
        """Its exit code, waited for. Raises TimeoutError."""
        code = self._end(seconds_max)
        if code is None:
            raise TimeoutError(f"process {self.pid} runs after {seconds_max} seconds")
        return code

    async def ended(self, seconds_max: float = PATIENCE_SECONDS) -> int:
        """Its exit code, waited for while this process serves. Raises TimeoutError."""
        return await asyncio.to_thread(self.wait, seconds_max)

    def _end(self, timeout: float) -> int | None:
        if self.returncode is None:
            self._ending.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(self._ending.recv(4), "big", signed=True)
            except (BlockingIOError, TimeoutError):
                return None
            self._ending.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Tell it to stop."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def start(
    *given: object,
    folder: Path | None = None,
    settings: dict[str, str] | None = None,
    output: IO[Any] | None = None,
    errors: IO[Any] | None = None,
) -> Command:
    """Run `creditledger` with these arguments beside the test; what it says goes to the files."""
    request = {
        "arguments": [str(one) for one in given],
        "environment": environment(settings),
        "folder": str(folder or Path.cwd()),
    }
    body = json.dumps(request).encode()
    ours, theirs = socket.socketpair()
    with theirs, Path(os.devnull).open("r+b") as nothing, _ONE_AT_A_TIME:
        files = [one.fileno() for one in (nothing, output or nothing, errors or nothing, theirs)]
        socket.send_fds(_launcher(), [len(body).to_bytes(4, "big")], files)
        _launcher().sendall(body)
    pid = int.from_bytes(ours.recv(4), "big")
    assert pid, "the launcher has ended"
    return Command(pid, ours)


def creditledger(
    *given: object, folder: Path | None = None, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `settings` are environment variables."""
    with ExitStack() as opened:
        output, errors = (opened.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
        command = start(*given, folder=folder, settings=settings, output=output, errors=errors)
        try:
            code = command.wait()
        finally:
            command.kill()
        for one in (output, errors):
            one.seek(0)
        arguments = ["creditledger", *map(str, given)]
        return subprocess.CompletedProcess(arguments, code, output.read(), errors.read())


@cache
def _launcher() -> socket.socket:
    """The connection to this process's launcher, which ends when the connection does."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.launcher", str(theirs.fileno())],
            env=environment(),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
