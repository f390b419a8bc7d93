"""Processes that this one starts and that are to end with it, however it ends. Imports nothing."""

import os
import sys

# Runs before the command in its process: if this process dies, however it dies, the kernel tells
# the command to end too (PR_SET_PDEATHSIG is 1). Where there is no prctl, it outlives a killed one.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (AttributeError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(command: list[str]) -> list[str]:
    """The command (its first item is a path), wrapped so that it ends with this process."""
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
