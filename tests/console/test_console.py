"""The pages of the console, in a real browser, before a real proxy and server."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.async_playwright import Axe
from credit.v1 import api_key_service_pb2 as keys_pb
from credit.v1 import spend_limit_pb2 as limit_pb
from credit.v1 import wallet_service_pb2 as pb
from playwright.async_api import expect

from creditledger.domain import clock as time
from tests.support.rest import BILLS, TRANSACTIONS, Failure, walk

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Locator, Page

    from tests.console.conftest import Console
    from tests.support.rest import Served

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.only("sqlite")]

#: A page is looked at when it has had its answers.
SETTLED_MS = 700
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sept", "Oct", "Nov", "Dec"]
LONG = "Long name " * 12
NAMES = ["<script>alert(1)</script>", "深度学习有限公司", "شركة الذكاء", LONG.strip()]
THIN_SPACE = "\u202f"


async def shop(served: Served, customer: str | None = None) -> str:
    """A wallet with a promotional and a paid grant, usage of both, a hold and a limit."""
    wallet = await served.wallet(customer, overdraft_limit="5")
    now = served.clock.now
    usage = {
        "api_key_id": "apk_gateway",
        "product_id": "prd_chat",
        "product_name": "Chat",
        "quantities": ["1200", "300"],
    }
    await served.post(
        wallet,
        {"grant": {"amount": "1000", "name": "Top-up by card", "kind": "topup"}},
        {"grant": {"amount": "2.5", "category": "promotional", "name": "Welcome",
                   "expires_at": time.text(now + 10 * time.DAY)}},
        {"consumption": {"amount": "4", "usage": usage}, "description": "A long chat"},
    )  # fmt: skip
    await served.wallets.Hold(
        pb.HoldRequest(
            wallet_id=wallet, idempotency_key="hold", amount="7.25", description="A video"
        )
    )
    limit = limit_pb.SetSpendLimitRequest(wallet_id=wallet, amount="50", period="month")
    await served.wallets.SetSpendLimit(limit)
    return wallet


async def texts(page: Page, selector: str) -> list[str]:
    """The texts of all that match, as they are read."""
    return [
        re.sub(r"\s+", " ", one).strip() for one in await page.locator(selector).all_inner_texts()
    ]


async def row_of(page: Page, text: str) -> Locator:
    """The row of a long list with this text: the list is scrolled until it is in view."""
    row = page.get_by_role("row").filter(has_text=text)
    box = page.locator(".rows")
    await box.wait_for()
    for _ in range(100):
        if await row.count():
            return row
        await box.evaluate("box => { box.scrollTop += 300 }")
        await page.wait_for_timeout(50)
    raise AssertionError(f"no row has {text}")


# --- sign in ------------------------------------------------------------------------------------


async def test_a_key_opens_the_pages_of_this_tab_alone(console: Console) -> None:
    """Kept over a reload, not in the address, not in another tab, and gone when one leaves."""
    key = await console.served.key("admin", name="Olga")
    async with console.page(key) as page:
        await page.get_by_text("Olga · admin").wait_for()
        await page.reload()
        await page.get_by_text("Olga · admin").wait_for()
        assert key not in page.url
        assert key not in json.dumps(await page.evaluate("({...localStorage})"))
        other = await page.context.new_page()
        await other.goto(f"{console.served.url}/console")
        await other.get_by_role("heading", name="Sign in").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Sign in").wait_for()
        await page.reload()
        await page.get_by_role("heading", name="Sign in").wait_for()


async def test_a_link_opens_a_session_once(console: Console) -> None:
    """The code leaves the address, a second use of it is refused, and leaving ends the session."""
    served = console.served
    request = keys_pb.CreateSessionCodeRequest(scope="admin", livemode=True)
    code = (await served.keys.CreateSessionCode(request)).code
    async with console.page(None) as page:
        await page.goto("about:blank")
        await page.goto(f"{served.url}/console#code={code}")
        await page.get_by_role("link", name="API keys").wait_for()
        await page.get_by_role("heading", name="The ledger").wait_for()
        assert code not in page.url
        secret = await page.evaluate("sessionStorage.getItem('creditledger.key')")
        assert (await served.body("/v1/api-keys/current", secret))["session"] is True
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("heading", name="Sign in").wait_for()
        await page.wait_for_timeout(SETTLED_MS)
        refused = await served.refusal("/v1/api-keys/current", secret)
        assert refused == Failure(401, "KEY_INVALID")
        await page.goto("about:blank")
        await page.goto(f"{served.url}/console#code={code}")
        await page.get_by_role("alert").get_by_text("used or is too old").wait_for()
        assert code not in page.url


async def test_a_key_that_is_none(console: Console) -> None:
    """The page says so, and what was typed stays."""
    async with console.page(None) as page:
        wrong = "sk-" + "x" * 43
        await page.get_by_label("API key").fill(wrong)
        await page.get_by_role("button", name="Sign in").click()
        alert = page.get_by_role("alert")
        await alert.get_by_text("This key is not valid").wait_for()
        assert await page.get_by_label("API key").input_value() == wrong


async def test_a_customer_sees_its_own_wallets(console: Console) -> None:
    """No other customer's, no keys, no way to give credit; another's wallet is not there."""
    served = console.served
    customer = await served.customer()
    wallet = await served.wallet(customer)
    other = await served.wallet()
    key = await served.key("customer", customer)
    async with console.page(key) as page:
        await page.get_by_role("link", name=wallet, exact=True).click()
        await page.get_by_role("heading", name=wallet).wait_for()
        assert await texts(page, "header nav a") == ["Wallets"]
        assert await page.get_by_role("button", name="Give credit").count() == 0
        await page.goto(f"{served.url}/console#/wallets/{other}")
        await page.get_by_role("alert").get_by_text("There is no such thing").wait_for()


async def test_a_test_key_has_a_banner(console: Console) -> None:
    """Nobody takes test money for real."""
    key = await console.served.key("admin", livemode=False)
    async with console.page(key) as page:
        await page.get_by_text("Test mode").wait_for()


async def test_all_of_it_by_keyboard(console: Console) -> None:
    """Sign in, skip to the content, open a wallet, give credit, leave a form by Escape."""
    served = console.served
    customer = await served.customer()
    wallet = await served.wallet(customer)
    key = await served.key("service")

    async def to(page: Page, name: str) -> None:
        """Tab until the thing of this name has the focus."""
        for _ in range(60):
            focused = await page.evaluate("document.activeElement.innerText || ''")
            if focused.strip() == name:
                return
            await page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not come to {name}")

    async with console.page(None) as page:
        await page.get_by_label("API key").focus()
        await page.keyboard.type(key)
        await page.keyboard.press("Enter")
        await page.locator("header nav").wait_for()
        await page.evaluate("document.activeElement.blur()")
        await page.keyboard.press("Tab")
        await to(page, "Skip to the content")
        await page.keyboard.press("Enter")
        assert await page.evaluate("document.activeElement.id") == "main"
        await page.goto(f"{served.url}/console#/customers/{customer}")
        await page.get_by_role("link", name=wallet, exact=True).wait_for()
        await to(page, wallet)
        await page.keyboard.press("Enter")
        await page.locator(".total").wait_for()
        await to(page, "Give credit")
        await page.keyboard.press("Enter")
        await page.get_by_role("dialog").wait_for()
        await page.keyboard.press("Escape")
        await page.get_by_role("dialog").wait_for(state="hidden")
        await page.keyboard.press("Enter")
        await page.keyboard.type("4")
        await page.keyboard.press("Tab")
        for _ in range(8):  # the parts of a date and its button
            if await page.evaluate("document.activeElement.maxLength === 512"):
                break
            await page.keyboard.press("Tab")
        await page.keyboard.type("By keyboard")
        await page.keyboard.press("Enter")
        await page.locator(".total", has_text="4.00").wait_for()


# --- a wallet -----------------------------------------------------------------------------------


async def test_a_wallet_shows_what_the_ledger_says(console: Console) -> None:
    """Figures, grants in burn order, the hold, the limit: digit by digit as the API has them."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    said = await served.body(f"/v1/wallets/{wallet}", key)
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.locator(".total").wait_for()
        assert (await page.locator(".total").inner_text()).replace(THIN_SPACE, "") == "998.50 USD"
        figures = " ".join(await texts(page, "main section:first-of-type li")).replace(
            THIN_SPACE, ""
        )
        for name, field in (("Available", "available"), ("Held", "held")):
            assert f"{name} {said[field]} USD" in figures
        grants = page.get_by_role("region", name="Grants")
        await grants.get_by_text("Top-up by card").wait_for()
        names = [await row.inner_text() for row in await grants.locator("tbody tr").all()]
        assert len(names) == 1
        assert "998.50" in names[0]
        await page.get_by_text("A video").wait_for()
        await page.get_by_text("42.75 of 50.00 USD left").wait_for()
        await page.get_by_text("0.00 spent, 7.25 held.").wait_for()


async def test_the_balance_at_any_moment(console: Console) -> None:
    """The slider asks the ledger: before the wallet was there, and after a grant has ended."""
    served = console.served
    wallet = await served.wallet()
    ends = time.text(served.clock.now + 10 * time.DAY)
    await served.post(
        wallet, {"grant": {"amount": "5"}}, {"grant": {"amount": "3", "expires_at": ends}}
    )
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        slider = page.get_by_role("slider")
        await page.get_by_text("Balance 8.00 USD").wait_for()
        await slider.fill("0")
        await page.get_by_text("Balance 0.00 USD").wait_for()
        await slider.fill("200")
        await page.get_by_text("Balance 5.00 USD").wait_for()
        assert await page.locator(".uplot canvas").count() == 1


async def test_rows_come_live(console: Console) -> None:
    """A posting made elsewhere is on the page without a reload, as is the balance after it."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_text("live", exact=True).wait_for()
        posting = {"consumption": {"amount": "1.25"}, "description": "Just now"}
        await served.post(wallet, posting)
        first = page.get_by_role("region", name="Transactions").locator("tbody tr").first
        await first.get_by_text("Just now").wait_for()
        assert "-1.25" in await first.inner_text()
        await page.locator(".total", has_text="997.25").wait_for()


async def test_rows_are_filtered(console: Console) -> None:
    """By a text; all of them are back afterwards."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        rows = page.get_by_role("region", name="Transactions").locator("tbody tr")
        await rows.nth(3).wait_for()
        await page.get_by_label("Text").fill("long CHAT")
        await page.get_by_role("button", name="Search").click()
        await expect(rows).to_have_count(2)
        await page.get_by_label("Text").fill("nothing like it")
        await page.get_by_role("button", name="Search").click()
        await page.get_by_text("No transaction is like this.").wait_for()
        await page.get_by_role("button", name="Show all").click()
        await rows.nth(3).wait_for()


async def test_thousands_of_rows_scroll(console: Console) -> None:
    """The page holds those in view; at the end all have been there, each once, in order."""
    served = console.served
    wallet = await served.wallet()
    await served.post(wallet, {"grant": {"amount": "1000"}})
    one = {"consumption": {"amount": "0.01"}}
    await served.post(wallet, *[{**one, "description": f"call {n}"} for n in range(1_500)])
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        box = page.get_by_role("region", name="Transactions")
        await box.get_by_text("call 1499", exact=True).wait_for()
        seen: dict[str, None] = {}
        for _ in range(400):
            shown = await texts(page, ".rows tbody tr:not([aria-hidden]) td:last-child")
            assert len(shown) < 60
            seen |= dict.fromkeys(text for text in shown if text)
            if "call 0" in seen:
                break
            await box.evaluate("box => { box.scrollTop += 400 }")
            await page.wait_for_timeout(30)
        assert list(seen) == [f"call {n}" for n in reversed(range(1_500))]


async def test_an_export_is_the_file_that_rest_gives(console: Console, tmp_path: Path) -> None:
    """Byte for byte."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    path = f"{TRANSACTIONS}:export"
    expected = await served.get(path, key, wallet_id=wallet, format="csv")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        async with page.expect_download() as downloading:
            await page.get_by_role("button", name="Export CSV").click()
        await (await downloading.value).save_as(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == expected.content


# --- a transaction, usage, statements -----------------------------------------------------------


async def test_why_a_transaction_is_as_it_is(console: Console) -> None:
    """Both grants that paid, and the JSON that REST answers."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    rows = await walk(served, key, wallet_id=wallet)
    usage = [row for row in rows if row["kind"] == "usage"]
    assert [row["amount"] for row in usage] == ["-1.50", "-2.50"]
    async with console.page(key, path=f"transactions/{usage[0]['id']}") as page:
        await page.get_by_role("heading", name="Usage -1.50 USD").wait_for()
        moved = " ".join(await texts(page, "tbody tr"))
        assert "Welcome promotional another -2.50" in moved
        assert "Top-up by card paid this one -1.50" in moved
        shown = json.loads(await page.get_by_label("JSON").inner_text())
        said = await served.body(f"{TRANSACTIONS}/{usage[0]['id']}", key)
        assert {name: said[name] for name in shown} | {"metadata": {}} == shown | {"metadata": {}}
        assert (
            f"/api/credit-transactions/{usage[0]['id']}"
            in await page.get_by_label("curl").inner_text()
        )
        await page.get_by_role("link", name="another").click()
        await page.get_by_role("heading", name="Usage -2.50 USD").wait_for()


async def test_usage_agrees_with_the_statement(console: Console) -> None:
    """Two answers of the server, side by side; by key and by product."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}/usage") as page:
        await page.get_by_text("✓ both agree").wait_for()
        assert len([one for one in await texts(page, ".figure") if "-4.00 USD" in one]) == 2
        await page.get_by_role("cell", name="apk_gateway").wait_for()
        await page.get_by_role("cell", name="Chat", exact=True).wait_for()
        await page.get_by_text("By day").click()
        day = time.text(served.clock.now)[:10]
        row = page.get_by_role("row").filter(has=page.get_by_role("cell", name=day))
        assert (await row.inner_text()).split() == [day, "-4.00", "2", "1", "500"]


async def test_a_customer_sees_its_bills(console: Console) -> None:
    """By day, key and product, with what promotional credit paid; the figures are the API's."""
    served = console.served
    customer = await served.customer()
    wallet = await shop(served, customer)
    key = await served.key("customer", customer)
    start = served.clock.now // 1000 - 86_400
    bills = await served.body(
        BILLS, key, cycleType="Day", startTime=start, endTime=start + 2 * 86_400
    )
    (bill,) = bills["bills"]
    async with console.page(key, path=f"wallets/{wallet}/usage") as page:
        row = page.get_by_role("region", name="Bills").locator("tbody tr").first
        await row.get_by_text("Chat", exact=True).wait_for()
        cells = [one.replace(THIN_SPACE, "") for one in await row.locator("td").all_inner_texts()]
        assert cells[3:] == [
            "1200 · 300",
            bill["voucherAmountDecimal"],
            bill["payAmountDecimal"],
            bill["amountDecimal"],
        ]
        await page.get_by_label("Period").select_option("Month")
        await row.get_by_text("not over").wait_for()
        await page.get_by_label("Product").fill("nothing")
        await (
            page.get_by_role("region", name="Bills")
            .locator("..")
            .get_by_role("button", name="Search")
            .click()
        )
        await page.get_by_text("There is no bill in this month.").wait_for()


async def test_a_month_is_closed(console: Console) -> None:
    """Not by one click; afterwards its digest stands there, and it is closed in the grid."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    month = time.text(served.clock.now)[:7]
    served.clock.advance(32 * time.DAY)
    async with console.page(key, path=f"wallets/{wallet}/statements") as page:
        name = MONTHS[int(month[5:]) - 1]
        await page.get_by_role("button", name=f"{name} open").last.click()
        await page.get_by_role("heading", name=f"Statement of {month}").wait_for()
        await page.get_by_role("button", name="Close").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_text("never changes again").wait_for()
        assert (await served.body(f"/v1/wallets/{wallet}/statements", key))["statements"] == []
        await dialog.get_by_role("button", name="Close").click()
        await page.get_by_text("SHA-256").wait_for()
        (closed,) = (await served.body(f"/v1/wallets/{wallet}/statements", key))["statements"]
        assert closed["sha256"] in await page.locator("main").inner_text()
        await page.get_by_role("button", name=f"{name} closed").wait_for()
        async with page.expect_download() as downloading:
            await page.get_by_role("button", name="HTML").click()
        assert (await downloading.value).suggested_filename == f"{wallet}-{month}.html"


# --- what operators do --------------------------------------------------------------------------


async def test_credit_is_given_with_a_reason(console: Console) -> None:
    """What is refused says so where it was asked for, and what was typed stays; then it is done."""
    served = console.served
    wallet = await served.wallet()
    key = await served.key("service", name="Support")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_role("button", name="Give credit").click()
        dialog = page.get_by_role("dialog", name=f"Give promotional credit to {wallet}")
        await dialog.get_by_label("Amount").fill("12,50")
        await dialog.get_by_label("Reason").fill("An outage")
        await dialog.get_by_role("button", name="Give 12,50 USD").click()
        await dialog.get_by_role("alert").get_by_text("A value is not as it has to be").wait_for()
        assert await dialog.get_by_label("Reason").input_value() == "An outage"
        await dialog.get_by_label("Amount").fill("12.50")
        await dialog.get_by_role("button", name="Give 12.50 USD").click()
        await page.locator(".total", has_text="12.50").wait_for()
    (row,) = await walk(served, key, wallet_id=wallet)
    assert (row["kind"], row["amount"], row["note"]) == ("admin_credit", "12.50", "An outage")


async def test_a_debit_that_the_wallet_cannot_pay(console: Console) -> None:
    """It is refused with a sentence; nothing is taken."""
    served = console.served
    wallet = await served.wallet()
    await served.post(wallet, {"grant": {"amount": "1"}})
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_role("button", name="Debit").click()
        dialog = page.get_by_role("dialog", name=f"Take credit from {wallet}")
        await dialog.get_by_label("Amount").fill("2")
        await dialog.get_by_label("Reason").fill("A mistake")
        await dialog.get_by_role("button", name="Take 2 USD").click()
        await dialog.get_by_role("alert").get_by_text("has not enough credit").wait_for()
    assert len(await walk(served, key, wallet_id=wallet)) == 1


async def test_a_wallet_is_frozen_and_thawed(console: Console) -> None:
    """By an admin, after being asked."""
    served = console.served
    wallet = await served.wallet()
    await served.post(wallet, {"grant": {"amount": "1"}})
    key = await served.key("admin")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_role("button", name="Freeze").click()
        await page.get_by_role("dialog").get_by_role("button", name="Freeze").click()
        await page.locator("h1", has_text="frozen").wait_for()
        (refused,) = await served.results(wallet, {"consumption": {"amount": "1"}})
        assert refused["error"]["code"] == "WALLET_FROZEN"
        await page.get_by_role("button", name="Make active").click()
        await page.get_by_role("dialog").get_by_role("button", name="Make active").click()
        await page.locator("h1", has_text="active").wait_for()


async def test_a_limit_is_set(console: Console) -> None:
    """By an admin; what would go beyond it is refused from then on."""
    served = console.served
    wallet = await served.wallet()
    await served.post(wallet, {"grant": {"amount": "10"}})
    key = await served.key("admin")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_text("No limit is set.").wait_for()
        await page.get_by_role("button", name="Set a limit").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Amount").fill("1.5")
        await dialog.get_by_label("Period").select_option("day")
        await dialog.get_by_role("button", name="Set a limit").click()
        await page.get_by_text("1.50 of 1.50 USD left").wait_for()
    (refused,) = await served.results(wallet, {"consumption": {"amount": "2"}})
    assert refused["error"]["code"] == "SPEND_LIMIT_EXCEEDED"


async def test_the_whole_ledger(console: Console) -> None:
    """The first page of an operator says what the ledger's overview says."""
    served = console.served
    await shop(served)
    key = await served.key("service")
    async with console.page(key) as page:
        await page.get_by_role("heading", name="The ledger").wait_for()
        said = await served.body("/v1/overview", key)
        (dollars,) = [one for one in said["currencies"] if one["currency_id"] == "USD"]
        owed = page.get_by_role("region", name="USD")
        shown = (await owed.inner_text()).replace(THIN_SPACE, "")
        for name in ("liability", "in_today", "out_today", "held", "overdraft"):
            assert dollars[name] in shown, name


async def test_a_key_is_made_and_revoked(console: Console) -> None:
    """Its secret is shown once and works; revoked, it is refused."""
    served = console.served
    key = await served.key("admin")
    async with console.page(key, path="keys") as page:
        await page.get_by_role("button", name="Make a key").click()
        dialog = page.get_by_role("dialog", name="Make a key")
        await dialog.get_by_label("Name").fill("Night job")
        await dialog.get_by_label("Scope").select_option("service")
        await dialog.get_by_role("button", name="Make a key").click()
        secret = await page.locator("pre").inner_text()
        assert (await served.get("/v1/api-keys/current", secret)).json()["name"] == "Night job"
        await page.get_by_role("button", name="I have kept it").click()
        assert secret not in await page.content()
        row = await row_of(page, "Night job")
        await row.get_by_role("button", name="Revoke").click()
        await (
            page.get_by_role("dialog", name="Revoke Night job")
            .get_by_role("button", name="Revoke")
            .click()
        )
        await (await row_of(page, "Night job")).get_by_text("revoked").wait_for()
    assert await served.refusal("/v1/api-keys/current", secret) == Failure(401, "KEY_INVALID")


async def test_a_key_is_rotated(console: Console) -> None:
    """Both are good for the chosen time; the new secret is shown once."""
    served = console.served
    key = await served.key("admin")
    old = await served.key("service", name="Old job")
    async with console.page(key, path="keys") as page:
        row = await row_of(page, "Old job")
        await row.get_by_role("button", name="Rotate").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("The old key is good for").select_option("hour")
        await dialog.get_by_role("button", name="Rotate").click()
        secret = await page.locator("pre").inner_text()
    for one in (old, secret):
        assert (await served.body("/v1/api-keys/current", one))["name"] == "Old job"
    served.clock.advance(time.HOUR + time.MINUTE)
    assert await served.refusal("/v1/api-keys/current", old) == Failure(401, "KEY_INVALID")
    assert (await served.body("/v1/api-keys/current", secret))["name"] == "Old job"


async def test_receipts_are_reconciled(console: Console, tmp_path: Path) -> None:
    """One that was never credited is shown, credited once, and agrees afterwards."""
    served = console.served
    customer = await served.customer(id_="cus_reconciled")
    wallet = await served.wallet(customer)
    source = {"provider": "stripe", "receipt_id": "ch_1"}
    await served.post(wallet, {"grant": {"amount": "10", "source": source}})
    made = time.text(served.clock.now)[:19].replace("T", " ")
    receipts = tmp_path / "receipts.csv"
    receipts.write_text(
        "id,Created (UTC),Amount,Amount Refunded,Currency,Status,Customer ID\n"
        f"ch_1,{made},10.00,0.00,usd,Paid,{customer}\n"
        f"ch_2,{made},25.00,0.00,usd,Paid,{customer}\n"
    )
    served.clock.advance(time.MINUTE)
    key = await served.key("service")
    async with console.page(key, path="reconcile") as page:
        await page.get_by_label("File").set_input_files(receipts)
        await page.get_by_role("button", name="Compare").click()
        row = page.get_by_role("row").filter(has_text="ch_2")
        await row.get_by_text("paid, and never credited").wait_for()
        assert len(await walk(served, key, wallet_id=wallet)) == 1
        await row.get_by_role("button", name="Credit it").click()
        await page.get_by_role("dialog").get_by_role("button", name="Credit 25.00 USD").click()
        await row.get_by_text("✓ credited").wait_for()
        await page.get_by_role("button", name="Compare").click()
        await page.get_by_text("The file and the ledger agree.").wait_for()
    rows = await walk(served, key, wallet_id=wallet)
    assert [(one["amount"], one["source"]["receipt_id"]) for one in rows] == [
        ("25.00", "ch_2"),
        ("10.00", "ch_1"),
    ]


async def test_customers_are_found(console: Console) -> None:
    """By name, by e-mail address and by id; a name is text, whatever it looks like."""
    served = console.served
    made = {
        name: await served.customer(name=name, email=f"c{n}@example.com")
        for n, name in enumerate(NAMES)
    }
    key = await served.key("service")
    async with console.page(key, path="customers") as page:
        for number, (name, id_) in enumerate(made.items()):
            for typed in (name[:20], f"c{number}@example"):
                await page.get_by_role("searchbox").fill(typed)
                await page.get_by_role("button", name="Search").click()
                await page.locator("td code", has_text=re.compile(f"^{id_}$")).wait_for()
                assert name in await page.locator("tbody").inner_text()
            await page.get_by_role("searchbox").fill(id_)
            await page.get_by_role("button", name="Search").click()
            await page.locator("h1", has_text=name[:20]).wait_for()
            await page.goto(f"{served.url}/console#/customers")


# --- bad days -----------------------------------------------------------------------------------


async def test_a_key_that_is_revoked_while_the_page_is_open(console: Console) -> None:
    """The page says so, and what it showed stays."""
    served = console.served
    wallet = await shop(served)
    made = await served.keys.CreateApiKey(
        keys_pb.CreateApiKeyRequest(name="Leaving", scope="service")
    )
    async with console.page(made.secret, path=f"wallets/{wallet}") as page:
        await page.locator(".total").wait_for()
        await served.keys.RevokeApiKey(keys_pb.RevokeApiKeyRequest(id=made.api_key.id))
        await page.get_by_role("button", name="Search").click()
        await page.get_by_text("The key is not valid any more").wait_for()
        assert await page.locator(".total").count() == 1


async def test_a_server_that_is_away(console: Console) -> None:
    """The page says what happened, keeps what was typed, and it happens once when it is back."""
    served = console.served
    wallet = await served.wallet()
    key = await served.key("service")
    async with console.page(key, path=f"wallets/{wallet}") as page:
        await page.get_by_role("button", name="Give credit").click()
        dialog = page.get_by_role("dialog", name=f"Give promotional credit to {wallet}")
        await dialog.get_by_label("Amount").fill("3")
        await dialog.get_by_label("Reason").fill("Sorry")
        await page.context.set_offline(True)
        await dialog.get_by_role("button", name="Give 3 USD").click()
        await dialog.get_by_role("alert").wait_for(timeout=40_000)
        assert await dialog.get_by_label("Amount").input_value() == "3"
        await page.context.set_offline(False)
        await dialog.get_by_role("button", name="Give 3 USD").click()
        await page.locator(".total", has_text="3.00").wait_for()
    assert len(await walk(served, key, wallet_id=wallet)) == 1


async def test_a_browser_whose_clock_is_an_hour_off(console: Console) -> None:
    """Figures are the ledger's: nothing that is there is missing."""
    served = console.served
    wallet = await shop(served)
    key = await served.key("service")
    for off in (-time.HOUR, time.HOUR):
        async with console.page(key) as page:
            await page.clock.set_fixed_time((served.clock.now + off) / 1000)
            await page.goto(f"{served.url}/console#/wallets/{wallet}")
            await page.locator(".total", has_text="998.50").wait_for()
            await page.get_by_text("live", exact=True).wait_for()


# --- the reference ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 360)])
async def test_the_reference(console: Console, dark: bool, width: int) -> None:
    """Every route of the document is on the page; it is searched, opened, and sound for axe."""
    served = console.served
    document = (await served.http.get("/openapi.json")).json()
    routes = sum(len(verbs) for verbs in document["paths"].values())
    async with console.page(None, dark=dark, width=width) as page:
        await page.goto(f"{served.url}/docs")
        await expect(page.locator("section > details")).to_have_count(routes)
        await page.get_by_role("searchbox").fill("WalletService.Post /v1/wallets")
        await expect(page.locator("section > details")).to_have_count(1)
        await page.locator("section > details > summary").click()
        await page.get_by_text("-d '{").wait_for()
        await page.get_by_text("Fields of wallet").first.click()
        await _sound(page, Axe(), "docs")
        await page.get_by_role("searchbox").fill("no such thing at all")
        await page.get_by_text("Nothing is like this.").wait_for()


# --- every screen -------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (True, 360)])
async def test_every_screen(console: Console, language: str, dark: bool, width: int) -> None:
    """axe finds nothing; nothing hangs over the edge; no word is missing."""
    axe = Axe()
    served = console.served
    customer = await served.customer(name=NAMES[3], email="long@example.com")
    wallet = await shop(served)
    key = await served.key("admin", name=LONG[:60])
    rows = await walk(served, key, wallet_id=wallet)
    screens = [
        *("home", "customers", f"customers/{customer}", "wallets", f"wallets/{wallet}"),
        *(
            f"wallets/{wallet}/usage",
            f"wallets/{wallet}/statements",
            f"transactions/{rows[0]['id']}",
        ),
        *("keys", "webhooks", "reconcile", "nowhere"),
    ]
    async with console.page(None, language=language, dark=dark, width=width) as page:
        await page.locator("form").wait_for()
        await _sound(page, axe, "sign in")
    async with console.page(key, language=language, dark=dark, width=width) as page:
        for path in screens:
            await page.goto(f"{served.url}/console#/{path}")
            await page.wait_for_timeout(SETTLED_MS)
            await _sound(page, axe, path)


async def _sound(page: Page, axe: Any, path: str) -> None:
    found = await axe.run(page)
    assert found.violations_count == 0, f"{path}: {found.generate_report()}"
    over = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert over <= 0, f"{path} is {over} pixels too wide"
    assert "undefined" not in await page.locator("body").inner_text()
