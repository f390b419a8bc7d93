"""The distributions can be installed side by side: no file has two owners."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "creditledger": ROOT,
    "creditledger_client": ROOT / "clients" / "python",
    "creditledger_stubs": ROOT / "gen",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each distribution's wheel by its name."""
    out = tmp_path_factory.mktemp("wheels")
    for folder in FOLDERS.values():
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


def files(wheel: Path) -> set[str]:
    """What it puts beside other distributions."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_no_file_has_two_owners(wheels: dict[str, Path]) -> None:
    """Installed in any order, and removed again, none takes anything from the others."""
    assert set(wheels) == set(FOLDERS)
    owners = {name: files(wheel) for name, wheel in wheels.items()}
    twice = [
        (one, other, owners[one] & owners[other])
        for one in owners
        for other in owners
        if one < other and owners[one] & owners[other]
    ]
    assert twice == []
    assert {"credit/v1/wallet_service_pb2.pyi", "credit/py.typed"} <= owners["creditledger_stubs"]
