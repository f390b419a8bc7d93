"""What a server exports to Prometheus, read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from credit.v1.operator_service_pb2 import RecordVerificationRequest
from credit.v1.operator_service_pb2_grpc import OperatorServiceStub
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Mapping

    from creditledger.ops.server import Server


class Scrape:
    """What a server exported at a moment. The names are without their prefix."""

    def __init__(self, text: str) -> None:
        self.samples = [
            one for family in text_string_to_metric_families(text) for one in family.samples
        ]

    def labels(self) -> dict[str, set[str]]:
        """The labels of each metric, by its full name."""
        found: dict[str, set[str]] = {}
        for one in self.samples:
            found.setdefault(one.name, set()).update(one.labels)
        return found

    def values(self, name: str) -> Mapping[tuple[str, ...], float]:
        """The metric's values that are not 0, by those of its labels."""
        return {
            tuple(one.labels.values()): one.value
            for one in self.samples
            if one.name == f"creditledger_{name}" and one.value
        }

    def value(self, name: str, **labels: str) -> float:
        """The one value with these labels."""
        (found,) = (
            one.value
            for one in self.samples
            if one.name == f"creditledger_{name}" and one.labels == labels
        )
        return found


async def record_verification(server: Server, *failed_checks: str) -> None:
    """Have the ledger know of a `verify` that found these checks to fail."""
    async with server.local_channel() as channel:
        await OperatorServiceStub(channel).RecordVerification(
            RecordVerificationRequest(failed_checks=failed_checks)
        )


async def scraped(address: str) -> Scrape:
    """What is served there now."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://{address}/metrics")
    assert answer.status_code == 200
    return Scrape(answer.text)


async def scrape(server: Server) -> Scrape:
    """What the server exports now, its figures of the whole ledger read anew."""
    assert server.metrics is not None
    assert server.metrics.address is not None
    await server.metrics.read()
    return await scraped(server.metrics.address)
