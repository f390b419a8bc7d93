"""The page of a statement: what people read of it before its figures."""

from __future__ import annotations

import pytest

from creditledger.outlets.statements.files import heading


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
