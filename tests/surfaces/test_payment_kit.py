"""The published JavaScript client of Payment Kit, unchanged, does its credit calls against us.

The real package, installed from npm into a folder outside of the repository, and a real Envoy.
Where there is no npm, or it cannot install the package, the tests are skipped with that reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from creditledger.domain import clock as time
from tests.support.rest import Json, serving

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE = "@blocklet/payment-js@1.27.2"
#: Kept between runs: it is 200 MB with all that it needs.
FOLDER = Path(tempfile.gettempdir(), "creditledger-payment-js-1.27.2")
INSTALL_SECONDS_MAX = 240
SCRIPT = Path(__file__).with_name("payment_kit.cjs")
CUSTOMER = "cus_press"


@pytest.fixture(scope="module")
def client() -> Path:
    """The folder with the published client."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no npm here")
    if FOLDER.exists():
        return FOLDER
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=FOLDER.name, dir=FOLDER.parent))
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(fresh)]
    try:
        done = subprocess.run(
            [npm, "install", *options, PACKAGE],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(fresh)
        pytest.skip(f"npm did not install {PACKAGE} within {INSTALL_SECONDS_MAX} s")
    if done.returncode:
        shutil.rmtree(fresh)
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    if FOLDER.exists():  # another run was faster
        shutil.rmtree(fresh)
    else:
        fresh.rename(FOLDER)
    return FOLDER


@pytest.fixture
async def seen(client: Path, new_database: Callable[[], str]) -> Json:
    """What each call of the script answered, by name."""
    async with serving(new_database()) as served:
        served.clock.now = time.now()
        await served.customer(CUSTOMER)
        surroundings = {
            **os.environ,
            "KIT_FOLDER": str(client),
            "KIT_PORT": served.url.rpartition(":")[2],
            "KIT_KEY": await served.key("service"),
            "KIT_CUSTOMER": CUSTOMER,
        }
        node = await asyncio.create_subprocess_exec(
            "node",
            str(SCRIPT),
            env=surroundings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await asyncio.wait_for(node.communicate(), 120)
    assert node.returncode == 0, errors.decode()
    found: Json = json.loads(said)
    return found


async def test_the_published_client(seen: Json) -> None:
    """It makes a meter, reports events, gives credit that pays them, and reads all of it."""
    meter = seen["meter"]
    assert (meter["object"], meter["event_name"], meter["status"]) == ("meter", "pages", "active")
    assert seen["meter retrieved"] == meter
    assert seen["meter updated"]["description"] == "printed"
    assert seen["meter deactivated"]["status"] == "inactive"
    assert (seen["event refused"]["refused"], seen["event refused"]["code"]) == (
        *(400, "METER_INACTIVE"),
    )
    assert seen["meter activated"]["status"] == "active"
    assert seen["meters"]["count"] == 1
    assert seen["meters"]["paging"] == {"page": 1, "pageSize": 5}

    event, owed = seen["event"], seen["event owed"]
    assert (event["status"], event["credit_consumed"], event["credit_pending"]) == (
        *("requires_capture", "0.00", "12.50"),
    )
    assert event["payload"] == {"customer_id": CUSTOMER, "value": "12.50"}
    assert event["metadata"] == {"job": "job-1"}
    assert seen["event again"] == event
    assert seen["event retrieved"] == event
    assert seen["events"]["count"] == 2
    assert [one["id"] for one in seen["events"]["list"]] == [owed["id"]]
    (day,) = seen["stats"]["list"]
    assert (seen["stats"]["count"], day["event_count"], day["total_value"]) == (1, 2, "22.50")
    assert seen["pending amount"] == {"CREDIT": "22.50"}
    assert (seen["nobody"]["refused"], seen["nobody"]["param"]) == (400, "customer_id")

    grant = seen["grant"]
    assert (grant["object"], grant["amount"], grant["category"]) == (
        *("credit_grant", "100.00", "paid"),
    )
    # It pays both events as it is given.
    assert (grant["remaining_amount"], grant["status"]) == ("77.50", "granted")
    assert grant["metadata"] == {"order": "order-1"}
    assert seen["grant retrieved"] == grant
    assert (seen["grants"]["count"], seen["grants"]["list"]) == (1, [grant])
    assert seen["grant summary"]["CREDIT"]["totalAmount"] == "100.00"
    assert seen["grant summary"]["CREDIT"]["remainingAmount"] == "77.50"
    holder = {"customer_id": CUSTOMER, "balance": "77.50", "grantCount": 1}
    assert seen["holders"]["holders"] == [holder]
    assert seen["holders"]["paging"] == {"page": 1, "pageSize": 5, "total": 1, "totalPages": 1}
    assert seen["grant stats"]["stats"]["total_granted"] == "100.00"
    assert seen["grant stats"]["stats"]["total_consumed"] == "22.50"
    assert seen["availability"] == {"can_continue": True}
    assert seen["too much"] == {"can_continue": False, "reason": "insufficient_credit"}
    assert seen["grant updated"] == {"success": True}
    assert seen["grant changed"]["metadata"] == {"order": "order-2"}
    paid = seen["event paid"]
    assert (paid["status"], paid["credit_consumed"], paid["credit_pending"]) == (
        *("completed", "12.50", "0.00"),
    )
    rows = seen["transactions"]
    assert [(one["type"], one["amount"], one["running_balance"]) for one in rows["list"]] == [
        ("consumption", "-10.00", "77.50"),
        ("consumption", "-12.50", "87.50"),
        ("grant", "100.00", "100.00"),
    ]
    assert [one.get("meter_event_id") for one in rows["list"]] == ["job-2", "job-1", None]
    assert seen["transaction"] == rows["list"][0]
    assert seen["summary"]["total_credit_amount"] == "-22.50"
    assert seen["summary"]["transaction_count"] == 2
