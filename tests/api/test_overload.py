"""More is asked of a server than it can do: it says so, keeps its memory, and goes on at once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from credit.v1 import wallet_service_pb2 as pb

from tests.support.answers import stored
from tests.support.process import Process, process
from tests.support.refusals import Refused, refusal
from tests.support.server import CUSTOMER, WALLET, Services, consume, fate, grant, post

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.refusals import Metadata

QUEUE_MAX = 100
#: Each takes a thousand calls at once.
CONNECTIONS = 3
OVERLOADED = Refused("OVERLOADED", None, {"retry_after": "1"})
#: Postings of this flood that waited in memory would take 120 more.
MEMORY_MIB_MAX = 100


def memory_peak(served: Process) -> int:
    """The most MiB the server ever had in memory."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


async def flood(
    connections: Sequence[Services], name: str, service: Metadata, *, batches: int, unary: int
) -> dict[str, str | Refused]:
    """All at once: batches of 500, and single postings; what became of each, by its key."""
    told: dict[str, str | Refused] = {}

    async def batch(number: int) -> None:
        keys = [f"{name} {number} {n}" for n in range(500)]
        postings = [post(key, WALLET, **consume("0.01")) for key in keys]
        request = pb.BatchPostRequest(postings=postings)
        answer = await connections[number % CONNECTIONS].wallets.BatchPost(
            request, metadata=service
        )
        told.update(zip(keys, map(fate, answer.results), strict=True))

    async def single(number: int) -> None:
        key = f"{name} single {number}"
        request = post(key, WALLET, **consume("0.01"))
        try:
            answer = await connections[number % CONNECTIONS].wallets.Post(request, metadata=service)
            told[key] = answer.posting_id
        except grpc.aio.AioRpcError as error:
            told[key] = refusal(error)

    await asyncio.gather(*map(batch, range(batches)), *map(single, range(unary)))
    return told


async def test_a_flood_is_refused_and_leaves_nothing_behind(
    database_url: str, tmp_path: Path
) -> None:
    """What does not fit is OVERLOADED and not kept; what was told is there; the next is taken."""
    flags = ("--queue-max", str(QUEUE_MAX))
    async with process(database_url, tmp_path / "log", *flags) as served:
        async with served.local() as local:
            await local.new_wallet(WALLET, CUSTOMER)
            await local.wallets.Post(post("given", WALLET, **grant("1000000")))
            service = await local.key("service")
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(served.connected()) for _ in range(CONNECTIONS)
            ]
            told = await flood(connections, "small", service, batches=20, unary=2_000)
            before = memory_peak(served)
            told |= await flood(connections, "large", service, batches=400, unary=2_000)
            after = memory_peak(served)
            request = post("next", WALLET, **consume("0.01"))
            await connections[0].wallets.Post(request, metadata=service)

    assert len(told) == 420 * 500 + 4_000
    assert all(one == OVERLOADED for one in told.values() if isinstance(one, Refused))
    acknowledged = {key for key, one in told.items() if isinstance(one, str)}
    assert QUEUE_MAX <= len(acknowledged) < len(told) / 2
    assert stored(database_url).keys() == acknowledged | {"given", "next"}
    assert after - before < MEMORY_MIB_MAX
