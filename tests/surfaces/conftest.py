"""Keys of the service that the tests of a file share, and a wallet for the native routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.support.setup import START

if TYPE_CHECKING:
    from tests.support.rest import Served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admin(shared: Served) -> str:
    """An admin key."""
    return await shared.key("admin", name="Admin")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(shared: Served) -> str:
    """A service key."""
    return await shared.key("service", name="Gateway")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def writer(shared: Served) -> Served:
    """The service with what the requests of `native_routes.py` refer to."""
    shared.clock.now = START
    customer = await shared.customer("cus_writer")
    await shared.wallet(customer, id="wal_writer")
    await shared.meter(id="mtr_writer")
    await shared.subscription(customer, id="sub_writer")
    await shared.post("wal_writer", {"grant": {"amount": "100"}})
    return shared
