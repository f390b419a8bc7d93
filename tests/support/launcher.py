"""The process that forks the commands of `commands.py`: it has imported everything once.

Starting Python and importing the service takes a second of CPU, and tests start hundreds of
processes. A fork is a process like any other: it has an environment, a folder, streams, signals
and an exit code of its own. That the command starts from nothing is tested by the documents'
sessions (`tests/ops/test_docs.py`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress

import creditledger
from creditledger.ops.config import prepare_grpc


def serve(control: socket.socket) -> list[str] | None:
    """Fork what is asked for until the test process is gone (None); in a fork, its arguments.

    A request is four files, with the size of the JSON that follows: standard input, output, error,
    and a socket, on which the process id and later the exit code are answered.
    """
    asked_by: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    selector = selectors.DefaultSelector()
    selector.register(ended, selectors.EVENT_READ)
    selector.register(control, selectors.EVENT_READ)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if ended in ready:
            os.read(ended, 4_096)
            _report_ended(asked_by)
        if control not in ready:
            continue
        size, files, _, _ = socket.recv_fds(control, 4, 4)
        if not size:
            return None
        request = control.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            selector.close()
            for connection in (control, *asked_by.values()):
                connection.close()
            for end in (ended, wake):
                os.close(end)
            return _become(files, **json.loads(request))
        for one in files[:3]:
            os.close(one)
        asked_by[pid] = socket.socket(fileno=files[3])
        asked_by[pid].send(pid.to_bytes(4, "big"))


def _report_ended(asked_by: dict[int, socket.socket]) -> None:
    while asked_by:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        # A test that has ended does not read any more.
        with asked_by.pop(pid) as asker, suppress(BrokenPipeError, ConnectionResetError):
            asker.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))


def _become(
    files: list[int], arguments: list[str], environment: dict[str, str], folder: str
) -> list[str]:
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    return arguments


def main() -> None:
    """Import, serve, and be the command in each fork."""
    for module in pkgutil.walk_packages(creditledger.__path__, "creditledger."):
        # Those run when they are imported.
        if ".migrations." not in module.name and not module.name.endswith(".__main__"):
            importlib.import_module(module.name)
    gc.freeze()  # what is imported stays shared
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        prepare_grpc()
        sys.argv[1:] = arguments
        runpy.run_module("creditledger", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
