"""Takes the screenshots of docs/console.md: `python -m tests.console.screenshots docs`.

The models, texts and times in them are those of a real service on this machine.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.console.browser import launch
from tests.console.console_service import DENSE, real_models, run_service
from tests.console.load import run_load

WIDTH, PHONE_WIDTH = 1120, 390
LOAD_S = 75
LONG_TEXT = (
    "EmbedServe batches requests by tokens, so an uncharacteristically long sentence about "
    "Zürich and São Paulo doesn't delay a short one."
)
TOPICS = {
    "animals": (
        "The cat sleeps on the sofa",
        "A kitten plays with a ball of wool",
        "Dogs like long walks",
        "The puppy chews on a shoe",
        "Our rabbit eats carrots",
        "Two horses stand in the meadow",
    ),
    "money": (
        "The stock market fell today",
        "Shares of the bank lost four percent",
        "Interest rates will rise again",
        "The central bank meets on Thursday",
        "Inflation is lower than last year",
        "Investors sell their bonds",
    ),
    "kitchen": (
        "Add two cups of flour and a pinch of salt",
        "Bake the bread for forty minutes",
        "Simmer the soup until the carrots are soft",
        "Knead the dough for ten minutes",
        "Slice the onions and fry them in butter",
        "Serve the pasta with basil",
    ),
    "travel": (
        "The train to Zürich leaves at noon",
        "Our flight was delayed by three hours",
        "Take the bus to the old town",
        "The ferry crosses the lake every hour",
        "Book the hotel before you leave",
        "The border is closed at night",
    ),
}


def main() -> None:
    folder = Path(sys.argv[1])
    with (
        tempfile.TemporaryDirectory() as models,
        run_service(real_models(Path(models))) as url,
        sync_playwright() as playwright,
    ):
        browser = launch(playwright)
        take_try(browser, url, folder / "console-try.png", "light", WIDTH)
        take_try(browser, url, folder / "console-phone.png", "dark", PHONE_WIDTH)
        take_compare(browser, url, folder / "console-compare.png")
        take_rerank(browser, url, folder / "console-rerank.png")
        take_projection(browser, url, folder / "console-projection.png")
        take_live(browser, url, folder / "console-live.png")
        browser.close()


@contextmanager
def opened(
    browser: Browser, url: str, view: str, scheme: Literal["light", "dark"], width: int = WIDTH
) -> Iterator[Page]:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 640})
    page.goto(f"{url}/console#{view}")
    if view != "live":
        page.get_by_label("Model").locator("option").first.wait_for(state="attached")
    yield page
    page.close()


def run(page: Page) -> None:
    with page.expect_response(lambda response: response.request.method == "POST"):
        page.locator("form.panel button.primary").click()
    page.locator(".result > section").first.wait_for()
    page.wait_for_load_state("networkidle")


def save(page: Page, file: Path) -> None:
    page.screenshot(path=file, full_page=True)
    with Image.open(file) as image:
        # Not of fewer colors: those of a few points would become each other's.
        image.convert("RGB").save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


def take_try(
    browser: Browser, url: str, file: Path, scheme: Literal["light", "dark"], width: int
) -> None:
    with opened(browser, url, "try", scheme, width) as page:
        page.get_by_label("Text", exact=True).fill(LONG_TEXT)
        run(page)
        run(page)
        page.get_by_label("use the cache").uncheck()
        run(page)
        page.locator(".token").first.wait_for()
        page.locator(".strip").press("End")
        page.locator("main h2").click()
        save(page, file)


def take_compare(browser: Browser, url: str, file: Path) -> None:
    with opened(browser, url, "compare", "dark") as page:
        run(page)
        save(page, file)


def take_rerank(browser: Browser, url: str, file: Path) -> None:
    with opened(browser, url, "rerank", "light") as page:
        run(page)
        save(page, file)


def take_projection(browser: Browser, url: str, file: Path) -> None:
    records = [{"text": t, "topic": topic} for topic, texts in TOPICS.items() for t in texts]
    with opened(browser, url, "projection", "light") as page, tempfile.TemporaryDirectory() as temp:
        path = Path(temp) / "texts.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        page.get_by_label("or a JSONL file").set_input_files(path)
        page.get_by_label("Color by").select_option("topic")
        run(page)
        page.locator(".scatter circle").nth(6).hover()
        save(page, file)


def take_live(browser: Browser, url: str, file: Path) -> None:
    with opened(browser, url, "live", "dark") as page, run_load(url, DENSE):
        page.wait_for_timeout(1000 * LOAD_S)
        save(page, file)


if __name__ == "__main__":
    main()
