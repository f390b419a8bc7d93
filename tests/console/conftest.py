"""A real browser, and pages of it that tell on themselves."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from creditledger.domain import clock as time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, Page

    from tests.support.rest import Served

#: Where a browser is looked for.
COMMANDS = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = (
    "there is no Chromium: install it (Debian: apt-get install chromium), or name it in CHROMIUM,"
    " or run `playwright install chromium`"
)
PATIENCE_MS = 10_000
#: What the browser itself says of a call that the ledger refuses or that the page has ended.
EXPECTED = ("net::ERR_ABORTED", "Failed to load resource")


@dataclass
class Console:
    """The pages of one service, in one browser."""

    served: Served
    browser: Browser
    faults: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def page(
        self,
        key: str | None,
        *,
        path: str = "",
        language: str = "en-GB",
        dark: bool = False,
        width: int = 1280,
    ) -> AsyncIterator[Page]:
        """A tab with the console, signed in if a key is given; its faults are gathered."""
        context = await self.browser.new_context(
            viewport={"width": width, "height": 900},
            locale=language,
            timezone_id="UTC",
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        await page.clock.set_fixed_time(self.served.clock.now / 1000)
        self._listen(page)
        try:
            await page.goto(f"{self.served.url}/console")
            if key is not None:
                await page.locator("input[type=password]").fill(key)
                await page.locator("form button").click()
                await page.locator("nav").first.wait_for()
                await page.goto(f"{self.served.url}/console#/{path}")
            yield page
        except BaseException:
            print(page.url, await page.locator("body").inner_text(), sep="\n")  # noqa: T201 - for who reads why
            raise
        finally:
            await context.close()

    def _listen(self, page: Page) -> None:
        def requested(request: Any) -> None:
            own = request.url.startswith((self.served.url, "blob:"))
            if not own:
                self.faults.append(f"asks somebody else: {request.url}")
            if "sk-" in request.url:
                self.faults.append(f"a key in an address: {request.url}")

        def said(message: Any) -> None:
            if message.type in {"error", "warning"} and not any(
                one in message.text for one in EXPECTED
            ):
                self.faults.append(f"{message.type}: {message.text}")

        page.on("request", requested)
        page.on("console", said)
        page.on("pageerror", lambda error: self.faults.append(f"thrown: {error}"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium without a window."""
    async with async_playwright() as started:
        named = os.environ.get("CHROMIUM")
        found = named or next(filter(None, map(shutil.which, COMMANDS)), None)
        if found is None and shutil.which(started.chromium.executable_path) is None:
            pytest.skip(NO_BROWSER)
        # Tests run as root in containers, where Chromium has no sandbox.
        chromium = await started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def console(shared: Served, browser: Browser) -> AsyncIterator[Console]:
    """The console of the file's service. A page that reports a fault fails the test."""
    shared.clock.advance(time.MINUTE)
    made = Console(shared, browser)
    yield made
    assert made.faults == []
