"""The TypeScript client, built from its sources and run by node.

Where there is no npm, or it cannot install the packages, the tests are skipped with that reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rest import Json, serving

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("typescript.mjs")
INSTALL_SECONDS_MAX = 240


@pytest.fixture(scope="module")
def client() -> None:
    """The client as JavaScript."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("there is no npm here")
    if not (ROOT / "node_modules" / "@connectrpc" / "connect-node").exists():
        install = [npm, "ci", "--ignore-scripts"]
        try:
            installed = _run(install, INSTALL_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm did not install the packages within {INSTALL_SECONDS_MAX} s")
        if installed.returncode:
            pytest.skip(f"npm cannot install: {installed.stderr.strip().splitlines()[-1:]}")
    built = _run([npm, "run", "build", "--workspace", "clients/typescript"], INSTALL_SECONDS_MAX)
    assert built.returncode == 0, built.stdout + built.stderr


def _run(command: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.mark.usefixtures("client")
async def test_a_service_in_typescript(new_database: Callable[[], str]) -> None:
    """It spends, is refused, holds and captures, lists and watches."""
    async with serving(new_database()) as served:
        wallet = await served.wallet()
        await served.post(wallet, {"grant": {"amount": "10"}})
        surroundings = {
            **os.environ,
            "LEDGER_URL": served.url,
            "LEDGER_KEY": await served.key("admin"),
            "LEDGER_WALLET": wallet,
        }
        # Beside the package, so that node finds it under its own name.
        script = ROOT / "clients" / "typescript" / "dist" / "service.mjs"
        script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
        node = await asyncio.create_subprocess_exec(
            *("node", str(script)),
            cwd=ROOT,
            env=surroundings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await asyncio.wait_for(node.communicate(), 60)
    assert node.returncode == 0, errors.decode()
    seen: Json = json.loads(said)

    assert seen["consumed"] == ["9.75", False, True, True]
    refusal: Json = {"field": None, "metadata": {}, "hasRequestId": True, "tellsKey": False}
    required = {"required": "100.00", "available": "9.75", "currency": "USD"}
    assert seen["poor"] == {**refusal, "reason": "INSUFFICIENT_CREDIT", "metadata": required}
    bad = {"reason": "INVALID_FIELD", "field": "consumption.amount"}
    assert seen["malformed"] == {**refusal, **bad}
    assert seen["number"] == ('TypeError: an amount is a string such as "0.0123", never a number')
    assert seen["stranger"] == {**refusal, "reason": "KEY_INVALID"}
    assert seen["captured"] == ["captured", "1.25", "0.00"]
    assert seen["broken"] == "Error: the model is away"
    assert seen["holds"] == [["3.00", "released"], ["2.00", "captured"]]
    assert seen["amounts"] == ["-0.75", "-0.50", "-0.25", "10.00"]
    assert seen["watched"] == seen["amounts"][::-1]
