"""The REST API by its OpenAPI document: requests that schemathesis makes of it, on both databases.

No answer is a server's fault, and each has a status, a content type and a shape that the document
names.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rest import serving

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMATHESIS = Path(sys.executable).parent / "st"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
#: A watch does not end, and a key that is revoked would end the run.
WITHOUT = ":watch|api-keys/"
EXAMPLES = 4
SECONDS_MAX = 300


@pytest.mark.parametrize(
    "scope", ["admin", pytest.param("customer", marks=pytest.mark.only("sqlite"))]
)
async def test_no_request_is_a_fault(
    new_database: Callable[[], str], tmp_path: Path, scope: str
) -> None:
    """Every operation, by examples, edges and chance."""
    async with serving(new_database(), webhook_connections=0) as served:
        customer = await served.customer("cus_acme")
        wallet = await served.wallet(customer, id="wal_acme")
        await served.post(wallet, {"grant": {"amount": "100"}}, {"consumption": {"amount": "1"}})
        key = await served.key(scope, customer if scope == "customer" else None)
        process = await asyncio.create_subprocess_exec(
            *(str(SCHEMATHESIS), "run", f"{served.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}", "--checks", CHECKS),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES)),
            *("--exclude-path-regex", WITHOUT, "--workers", "2", "--no-color"),
            cwd=tmp_path,  # where it keeps what it finds
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(SECONDS_MAX):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode()
