"""Processes beside the server that do what is measured: asked and answering in lines of JSON.

`Worker` starts one and asks it; `serve` is its other end. A worker lives through a whole run, so
that no measurement contains the start of a process.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from creditledger.ops import log

ROOT = Path(__file__).parent.parent


class Failed(Exception):
    """What was to be measured did not work; the text is for people."""


class Worker:
    """A process of `python -m <module>` that answers what it is asked."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.process = psutil.Process(self._process.pid)

    def ask(self, act: str, **values: object) -> dict[str, Any]:
        """Its answer. Raises Failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"act": act, **values}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": "the worker has ended"}
        if "failed" in answer:
            raise Failed(f"{act}: {answer['failed']}")
        return answer

    def close(self) -> None:
        """Let it end."""
        with self._process:
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()


def serve(acts: Mapping[str, Callable[..., Mapping[str, object]]]) -> None:
    """Answer questions until there are no more. An act that raises Failed says why."""
    answers, sys.stdout = sys.stdout, sys.stderr
    log.configure("warning", "console")
    for line in sys.stdin:
        values = json.loads(line)
        try:
            answer = acts[values.pop("act")](**values)
        except Failed as error:
            answer = {"failed": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
