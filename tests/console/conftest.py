"""A browser and two services: one that is open, and one that requires an API key."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.access.keys import digest
from tests.console.browser import CHROMIUM, launch
from tests.console.console_service import real_models, run_service

KEY = "es-console-0123456789"
#: Far more than any step needs.
TIMEOUT_MS = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Of the module: while Playwright is open, no asynchronous test can run in the process.
    if not CHROMIUM.exists():
        pytest.skip(f"There is no browser at {CHROMIUM}. Set CHROMIUM to its path.")
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service_url(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_service(real_models(tmp_path_factory.mktemp("models"))) as url:
        yield url


@pytest.fixture(scope="module")
def keyed_url(browser: Browser) -> Iterator[str]:
    """A service without a reranker, whose clients need `KEY`."""
    access = {"keys": [{"name": "team", "sha256": digest(KEY), "tokens_per_minute": 100_000}]}
    with run_service([{"name": "words", "source": "hashing:64"}], access=access) as url:
        yield url


class ConsolePage:
    """A page of the browser, with what went wrong in it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.urls: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.urls.append(request.url))

    def _note(self, kind: str, text: str) -> None:
        # Browsers report each reply with an error's status; tests of errors look at the page.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.errors.append(text)

    def open(self, url: str, view: str) -> Page:
        """Opens a view of the console, and waits until it is shown."""
        self.page.goto(f"{url}/console#{view}")
        self.wait_for(view)
        return self.page

    def wait_for(self, view: str) -> None:
        """Waits until a view is shown: a change of the address takes effect a moment later."""
        expect(self.page.locator(f'#views a[href="#{view}"]')).to_have_attribute(
            "aria-current", "page"
        )


@pytest.fixture
def new_page(browser: Browser) -> Iterator[Any]:
    """Opens pages, and at the end fails for errors in them and requests to other origins."""
    pages: list[ConsolePage] = []

    def open_page(**options: Any) -> ConsolePage:
        pages.append(ConsolePage(browser.new_page(**options)))
        return pages[-1]

    yield open_page
    for console in pages:
        origin = console.page.url.partition("/console")[0]
        console.page.close()
        assert console.errors == []
        assert {url for url in console.urls if not url.startswith(f"{origin}/")} == set()


@pytest.fixture
def console(new_page: Any) -> ConsolePage:
    page: ConsolePage = new_page()
    return page
