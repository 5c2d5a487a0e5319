"""The console in a browser, against real services: what a person does."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.console.conftest import KEY, ConsolePage
from tests.console.console_service import DENSE
from tests.console.load import run_load

VIEWS = ("try", "compare", "rerank", "projection", "live")
TOPICS = {
    "animals": ["The cat sleeps on the sofa", "A kitten plays", "The puppy chews on a shoe"],
    "money": ["The stock market fell", "Shares of the bank lost", "Interest rates rise"],
    "bread": ["Add flour and salt", "Bake the bread", "Knead the dough for ten minutes"],
}
TEXTS = [text for texts in TOPICS.values() for text in texts]


def run(page: Page) -> None:
    page.locator("form.panel button.primary").click()


def fact(page: Page, name: str) -> Any:
    return page.locator(".facts > div", has=page.get_by_text(name, exact=True)).locator("dd")


def test_a_text_is_embedded_and_comes_from_the_cache_the_next_time(
    console: ConsolePage, service_url: str
) -> None:
    page = console.open(service_url, "try")
    page.get_by_label("Text", exact=True).fill("Unbelievable embeddings of 北京 😀!")
    run(page)
    expect(page.locator("#cache-tier")).to_have_text("miss · computed")
    expect(fact(page, "Dimensions")).to_have_text("384")
    expect(fact(page, "Tokens")).to_have_text("12 of 256")
    expect(fact(page, "Norm")).to_have_text("1.0000")
    expect(fact(page, "Truncated")).to_have_text("no")
    expect(fact(page, "Cost")).to_have_text("$0.000000240")  # 12 tokens
    tokens = page.locator(".token:not(.special)")
    expect(tokens).to_have_count(10)  # `embeddings` has several
    assert "".join(tokens.all_inner_texts()) == "Unbelievableembeddingsof北京😀!"
    bars = "".join(
        page.locator(f".strip .{sign}").get_attribute("d") or ""
        for sign in ("positive", "negative")
    )
    assert bars.count("M") == 384
    for stage in ("cache look-up", "queue", "tokenizer", "model", "network, browser"):
        expect(page.get_by_role("rowheader", name=stage)).to_be_visible()
    run(page)
    expect(page.locator("#cache-tier")).to_have_text("hit · l1")
    page.get_by_label("use the cache").uncheck()
    run(page)
    expect(page.locator("#cache-tier")).to_have_text("miss · computed")


def test_a_long_text_shows_where_the_limit_cuts_it(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "try")
    page.get_by_label("Text", exact=True).fill("word " * 300)
    run(page)
    expect(page.locator(".limit")).to_have_text("limit: 256 tokens")
    expect(fact(page, "Truncated")).to_have_text("yes, 46 tokens dropped")
    expect(page.locator(".token.cut")).to_have_count(46)


def test_the_curl_command_is_the_request(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "try")
    expect(page.get_by_label("Model")).to_have_value("all-MiniLM-L6-v2")
    page.get_by_label("Text", exact=True).fill('it\'s "quoted"')
    code = page.locator(".curl code")
    expect(code).to_contain_text("quoted")
    command = code.inner_text()
    assert command.splitlines()[0] == f"curl {service_url}/v1/embeddings \\"
    body = command.partition("-d '")[2].removesuffix("'").replace("'\\''", "'")
    assert json.loads(body) == {"model": "all-MiniLM-L6-v2", "input": 'it\'s "quoted"'}


def test_similar_texts_are_the_nearest_pair(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "compare")
    page.get_by_label("Texts").fill("A cat sleeps\nStocks fell\n\nThe kitten is asleep")
    run(page)
    expect(page.locator(".heat tbody tr")).to_have_count(3)
    rows = page.locator(".heat tbody tr").all()
    cells = [row.locator("td").all_inner_texts() for row in rows]
    assert cells == [list(column) for column in zip(*cells, strict=True)], "symmetric"
    nearest = page.locator(".pairs tbody tr").first
    assert "A cat sleeps" in nearest.inner_text()
    assert "The kitten is asleep" in nearest.inner_text()
    page.get_by_label("Texts").fill("\n".join(map(str, range(21))))
    run(page)
    expect(page.locator(".notice")).to_contain_text("These are 21 texts.")


def test_documents_are_sorted_by_relevance(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "rerank")
    run(page)
    rows = page.locator(".result tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("Export your data as CSV")
    scores = [float(row.locator("td").nth(2).inner_text()) for row in rows.all()]
    assert scores == sorted(scores, reverse=True)


def test_the_projection_is_that_of_the_principal_components(
    console: ConsolePage, service_url: str
) -> None:
    page = console.open(service_url, "projection")
    page.get_by_label("Texts").fill("\n".join(TEXTS))
    run(page)
    expect(page.locator(".scatter circle")).to_have_count(len(TEXTS))
    vectors = np.random.default_rng(0).normal(size=(60, 12)) * np.geomspace(9, 1, 12)
    result = page.evaluate(
        """async (vectors) => {
            const { principalComponents } = await import("/console/pca.js");
            return principalComponents(vectors);
        }""",
        vectors.tolist(),
    )
    centered = vectors - vectors.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(result["points"]), np.abs(u[:, :2] * s[:2]), atol=0.02)
    np.testing.assert_allclose(result["shares"], (s**2 / np.sum(s**2))[:2], atol=1e-4)
    page.locator(".scatter").hover(position={"x": 5, "y": 5})
    page.locator(".scatter circle").first.hover()
    expect(page.locator(".tip")).to_have_text(TEXTS[0])
    expect(page.locator(".detail tbody tr").first).to_contain_text("kitten")


def test_a_file_is_projected_by_a_field(
    console: ConsolePage, service_url: str, tmp_path: Path
) -> None:
    records = [{"id": t, "topic": topic, "t": t} for topic, ts in TOPICS.items() for t in ts]
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    page = console.open(service_url, "projection")
    page.get_by_label("or a JSONL file").set_input_files(file)
    page.get_by_label("Field with the text").select_option("t")
    page.get_by_label("Color by").select_option("topic")
    run(page)
    expect(page.locator(".scatter circle")).to_have_count(len(records))
    expect(page.locator(".result .legend li")).to_have_text(list(TOPICS))
    file.write_text('{"t": "a"}\n{"t": ')
    page.get_by_label("or a JSONL file").set_input_files([])
    page.get_by_label("or a JSONL file").set_input_files(file)
    expect(page.locator(".notice.error")).to_contain_text("Line 2 isn’t JSON.")


def test_a_projection_can_be_canceled(
    console: ConsolePage, service_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(map(str, range(2000))))
    page = console.open(service_url, "projection")
    page.route("**/v1/embeddings", lambda route: None)  # never answers
    page.get_by_label("or a JSONL file").set_input_files(file)
    expect(page.locator(".notice")).to_have_text("texts.txt: 2000 records.")
    run(page)
    expect(page.locator("progress")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".result")).to_have_text("Canceled.")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_key_is_asked_for_and_kept_in_the_tab_only(console: ConsolePage, keyed_url: str) -> None:
    page = console.open(keyed_url, "try")
    expect(page.locator(".notice.error")).to_contain_text("API key")
    for key in ("wrong", KEY):
        page.get_by_role("button", name="Enter API key").click()
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(page.locator(".notice.error")).to_contain_text("API key")
    expect(page.get_by_label("Model")).to_have_value("words")
    run(page)
    expect(fact(page, "Dimensions")).to_have_text("64")
    expect(page.locator(".curl code")).to_contain_text("$EMBEDSERVE_API_KEY")
    assert KEY not in page.content()
    assert KEY not in page.evaluate("document.cookie + JSON.stringify(localStorage) + location")
    console.open(keyed_url, "rerank")
    expect(page.locator(".notice")).to_contain_text("No served model reranks.")
    expect(page.get_by_role("button", name="Rerank")).to_be_disabled()


def test_data_is_never_markup(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "compare")
    markup = "<img src=x onerror=alert(1)>"
    page.get_by_label("Texts").fill(f"{markup}\n<b>bold</b>")
    run(page)
    expect(page.locator(".heat tbody tr")).to_have_count(2)
    assert page.locator("main img, main .heat b").count() == 0
    console.open(service_url, "try")
    page.get_by_label("Text", exact=True).fill(markup)
    run(page)
    expect(page.locator(".token").nth(1)).to_have_text("<")
    assert page.locator("main img").count() == 0


def test_a_service_that_is_gone_is_reported(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "try")
    expect(page.get_by_label("Model")).to_have_value("all-MiniLM-L6-v2")
    page.route("**/v1/embeddings", lambda route: route.abort())
    run(page)
    expect(page.locator(".notice.error")).to_have_text(
        "The service doesn’t respond. Is it running?"
    )


def test_the_keyboard_is_enough(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "try")
    expect(page.get_by_label("Model")).to_have_value("all-MiniLM-L6-v2")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips the navigation
    page.keyboard.press("Tab")
    expect(page.get_by_label("Text", exact=True)).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("typed")
    page.keyboard.press("Control+Enter")
    expect(fact(page, "Dimensions")).to_have_text("384")
    page.locator(".strip").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".readout")).to_contain_text("component 382:")
    page.get_by_role("link", name="Compare").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Compare texts")).to_be_visible()
    page.get_by_role("link", name="Projection").focus()
    page.keyboard.press("Enter")
    console.wait_for("projection")
    page.get_by_label("Texts").focus()
    page.keyboard.press("Control+Enter")
    page.locator(".scatter").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip")).to_be_visible()


def test_views_keep_what_was_typed(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "try")
    page.get_by_label("Text", exact=True).fill("kept")
    page.get_by_role("link", name="Compare").click()
    console.wait_for("compare")
    page.go_back()
    expect(page.get_by_label("Text", exact=True)).to_have_value("kept")


def test_the_theme_is_switched_and_remembered(new_page: Any, service_url: str) -> None:
    page = new_page(color_scheme="light").open(service_url, "try")
    expect(page.get_by_role("button", name="Theme: auto")).to_be_visible()
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(background) == dark


def test_the_live_view_shows_what_a_service_does(console: ConsolePage, service_url: str) -> None:
    page = console.open(service_url, "live")
    with run_load(service_url, DENSE):
        expect(fact(page, "Requests")).to_have_text(re.compile(r"^[1-9][\d.]* /s"))
        row = page.get_by_role("row", name=re.compile(f"^{DENSE} embed ready"))
        expect(row).to_have_text(re.compile(r"openvino"))
        page.get_by_role("button", name="Pause").click()
        before = page.locator(".live").inner_text()
        page.wait_for_timeout(1500)  # in which a snapshot comes
        assert page.locator(".live").inner_text() == before
    page.get_by_role("button", name="Continue").click()
    expect(fact(page, "Requests")).to_have_text(re.compile(r"^0 /s"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_each_view_is_accessible_and_fits(
    new_page: Any, service_url: str, scheme: str, width: int
) -> None:
    console = new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    for view in VIEWS:
        page = console.open(service_url, view)
        if view == "live":
            expect(page.locator(".live .badge")).to_have_text("connected")
            page.get_by_role("cell", name=DENSE).wait_for()
        else:
            run(page)
            page.locator(".result > section").first.wait_for()
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{view} is {overflow} px too wide"
        violations = Axe().run(page).response["violations"]
        serious = [v for v in violations if v["impact"] in ("serious", "critical")]
        nodes = [(v["id"], node["html"][:200]) for v in serious for node in v["nodes"]]
        assert nodes == [], view
