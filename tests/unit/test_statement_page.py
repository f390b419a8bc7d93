"""The page of a statement: what people read of it before its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from credit.v1 import statement_service_pb2 as pb
from credit.v1.statement_service_pb2_grpc import StatementServiceStub

from creditledger.outlets.statements.files import heading
from tests.support.running import running

if TYPE_CHECKING:
    from tests.support.setup import Clock


@pytest.mark.parametrize(
    ("starts", "ends", "words"),
    [
        ("2026-09-01T00:00:00.000+02:00", "2026-10-01T00:00:00.000+02:00", "September 2026"),
        ("2026-12-01T00:00:00.000Z", "2027-01-01T00:00:00.000Z", "December 2026"),
        ("2026-10-25T00:00:00.000+02:00", "2026-10-26T00:00:00.000+01:00", "25 October 2026"),
        (
            "2026-01-01T00:00:00.000Z",
            "2026-03-01T00:00:00.000Z",
            "1 January 2026 to 28 February 2026",
        ),
        (
            "2026-01-01T00:00:00.000Z",
            "2026-01-02T09:30:00.000Z",
            "1 January 2026, 00:00:00, to 2 January 2026, 09:30:00, the end excluded",
        ),
    ],
)
def test_a_period_is_said_in_words(starts: str, ends: str, words: str) -> None:
    """Whole days are told with both ends included, other moments as they are."""
    said = {
        "start": starts,
        "end": ends,
        "time_zone": "Europe/Berlin",
        "wallet_id": "wal_acme",
        "customer_id": "cus_acme",
        "currency": "USD",
        "livemode": True,
    }
    assert heading(said)[0] == f"{words} (Europe/Berlin)"


async def test_a_page_names_its_issuer(database_url: str, clock: Clock) -> None:
    """The issuer stands at the head of the page, and in no other form of a statement."""
    async with running(database_url, clock, statement_issuer="Mill & Sons, 1 Example Road") as here:
        await here.local.new_wallet("wal_acme", "cus_acme")
        request = pb.StatementServiceRenderRequest(
            wallet_id="wal_acme", month="2026-01", format="html"
        )
        pieces = StatementServiceStub(here.local.channel).Render(request)
        page = b"".join([one.data async for one in pieces])

    assert b"<p class=quiet>Mill &amp; Sons, 1 Example Road</p>\n<h1>" in page
    assert b"counter(page)" in page
