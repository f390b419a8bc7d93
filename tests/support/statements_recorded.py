"""What the ledger says to its database, statement by statement, while a test looks."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The tables that grow with postings and wallets; spread by wallet, and never read from end to end.
LARGE = {
    *("credit_transactions", "postings", "grants", "dimensions", "wallet_states"),
    *("folds", "day_folds", "fold_ends"),
    *("holds", "hold_revisions", "meter_events", "spend_limits", "grant_revisions"),
    *("webhook_deliveries", "dropped_limits"),
    *("statements", "receipts", "grant_repayments", "grant_parts"),
    *("overdraft_draws", "overdraft_payers", "overdraft_returns"),
}
#: What an application calls itself that writes postings.
POSTING = "creditledger posting"


@dataclass(frozen=True, slots=True)
class Said:
    """A statement, and the values that went with it."""

    text: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was said on connections made in here."""

    posting: list[Said]  #: On the driver, by who writes postings.
    reading: list[Said]  #: By SQLAlchemy: registry and reads.


@contextmanager
def recorded() -> Iterator[Recorded]:
    """What the connections that are made in the block say, as long as it lasts."""
    heard = Recorded([], [])

    def read(_: object, __: object, text: str, values: Any, *___: object) -> None:
        heard.reading.append(Said(text, tuple(values)))

    connect = asyncpg.connect

    async def connected(*given: Any, **more: Any) -> Any:
        connection = await connect(*given, **more)
        if more.get("server_settings", {}).get("application_name") == POSTING:
            connection.add_query_logger(
                lambda one: heard.posting.append(Said(one.query, tuple(one.args)))
            )
        return connection

    event.listen(Engine, "before_cursor_execute", read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg, "connect", connected)
        yield heard
    event.remove(Engine, "before_cursor_execute", read)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a plan, as PostgreSQL tells it in JSON."""
    yield plan
    for one in plan.get("Plans", ()):
        yield from nodes(one)
