"""A PostgreSQL of one's own starts, though what starts it can die on the way."""

from __future__ import annotations

import subprocess
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from creditledger.ops import embedded_postgres
from creditledger.ops.embedded_postgres import NotStarted, PrivatePostgres
from tests.support.databases import own_postgres
from tests.support.server import PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path


class Dying:
    """pg_ctl, which dies the first so many times, before or after it has started the server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with warnings.catch_warnings(action="ignore"):  # see private_postgres
            module: Any = import_module("embedded_postgres.postgres_server")
        self._program = module.pg_ctl
        self.times, self.late = 0, False
        monkeypatch.setattr(module, "pg_ctl", self)
        monkeypatch.setattr(embedded_postgres, "AGAIN_SECONDS", 0.1)

    def __call__(self, arguments: list[str], **given: Any) -> Any:
        if "start" not in arguments or not self.times:
            return self._program(arguments, **given)
        self.times -= 1
        if self.late:
            self._program(arguments, **given)
        raise subprocess.CalledProcessError(-11, "pg_ctl")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Dying:
    """Set `times` to what it is to fail."""
    return Dying(monkeypatch)


@pytest.mark.parametrize("late", [False, True])
def test_what_starts_it_dies(dying: Dying, late: bool) -> None:
    """It runs all the same, at first and again, and is stopped with who started it."""
    dying.times, dying.late = 1, late
    with own_postgres() as server:
        first = psutil.Process(server.pid)
        assert server.sql("SELECT 1") == "1"
        first.kill()
        first.wait(PATIENCE_SECONDS)

        dying.times = 1
        server.start_again()

        assert server.sql("SELECT 1") == "1"
        second = psutil.Process(server.pid)
        assert second.pid != first.pid
    second.wait(PATIENCE_SECONDS)


def test_what_does_not_start_is_told(dying: Dying, tmp_path: Path) -> None:
    """It is tried twice, not for ever."""
    with pytest.raises(NotStarted, match=r"No such file|does not exist"):
        PrivatePostgres(tmp_path / "missing" / "data")

    with own_postgres() as server:
        first = psutil.Process(server.pid)
        first.kill()
        first.wait(PATIENCE_SECONDS)
        dying.times = 2
        with pytest.raises(NotStarted, match=r"does not start in .*data: .*pg_ctl"):
            server.start_again()
        assert dying.times == 0

        server.start_again()
