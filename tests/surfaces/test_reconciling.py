"""A browser's reconciliation: the longest file passes the proxy, and its answer fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from credit.v1 import operator_service_pb2 as pb

from creditledger.outlets.reconcile import FINDINGS_MAX
from creditledger.surfaces.native.reconciliations import FILE_BYTES_MAX
from tests.support.rest import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.rest import Served

HEAD = "id,created,amount,currency,status,customer\n"


@pytest.fixture
async def served(database_url: str) -> AsyncIterator[Served]:
    """A server behind the proxy."""
    async with serving(database_url) as started:
        yield started


async def test_a_browser_sends_the_longest_file(served: Served) -> None:
    """As gRPC-web, in one message: every line is counted, and as many are shown as may be."""
    lines = [f"ch_{n:07},1790000000,12.50,usd,succeeded,cus_{n:07}\n" for n in range(80_000)]
    count = (FILE_BYTES_MAX - len(HEAD)) // len(lines[0])
    file = (HEAD + "".join(lines[:count])).encode()
    message = pb.ReconcileRequest(file=file).SerializeToString()

    answer = await served.http.post(
        "/credit.v1.OperatorService/Reconcile",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={
            "content-type": "application/grpc-web+proto",
            "authorization": f"Bearer {await served.key('service')}",
        },
        timeout=60,
    )

    assert FILE_BYTES_MAX - len(file) < len(lines[0])
    assert answer.status_code == 200
    size = int.from_bytes(answer.content[1:5], "big")
    assert b"grpc-status:0" in answer.content[5 + size :]
    found = pb.ReconcileResponse.FromString(answer.content[5 : 5 + size])
    assert {one.outcome: one.count for one in found.counts}["missing"] == count
    assert len(found.findings) == FINDINGS_MAX
    assert found.findings_left_out == count - FINDINGS_MAX
