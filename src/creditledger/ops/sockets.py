"""Where a server can listen: the Unix socket of the database's owner, and free TCP ports."""

import errno
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from creditledger.ops.config import CannotStart, Config, host_and_port, spelled

#: A Unix socket's address holds 108 bytes, and less on other systems.
SOCKET_BYTES_MAX = 100
#: How folders for sockets begin, in the folder for temporary files.
FOLDER = "creditledger-"


def local_socket(path: Path) -> Path:
    """Where the process that has the database at `path` takes its owner's calls.

    Beside it, or, where that is too long for a socket, in a folder of the owner's for such ones.
    """
    beside = Path(f"{path}.sock")
    if len(os.fsencode(beside)) <= SOCKET_BYTES_MAX:
        return beside
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return Path(tempfile.gettempdir(), f"{FOLDER}{os.getuid()}", f"{name}.sock")


def target(path: Path) -> str:
    """The Unix socket as gRPC spells it."""
    return f"unix:{quote(os.fsencode(path))}"


def require_private(path: Path) -> None:
    """Raises CannotStart unless the socket's folder is the database's or only its owner's."""
    folder = path.parent
    if folder.parent != Path(tempfile.gettempdir()) or not folder.name.startswith(FOLDER):
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise CannotStart(f"{folder} must be a folder that only you can enter; remove it.")


def require_free(config: Config, name: str) -> None:
    """Raises CannotStart unless the address that the setting names can be bound."""
    address = getattr(config, name)
    if address is None:
        return
    host, port = host_and_port(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name may stand for a family that this machine lacks; one that works is enough.
        failures = [failure for place in found if (failure := _bind_failure(*place)) is not None]
        taken = [failure for failure in failures if failure.errno == errno.EADDRINUSE]
        if taken or len(failures) == len(found):
            raise (taken or failures)[0]
    except OSError as error:
        why = error.strerror or str(error)
        raise CannotStart(f"{spelled(name)}: {address} cannot be bound: {why}.") from None


def _bind_failure(
    family: int, kind: int, protocol: int, _: str, place: tuple[Any, ...]
) -> OSError | None:
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        return error
    return None
