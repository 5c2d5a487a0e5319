"""The documentation agrees with the code."""

import re
from collections.abc import Iterator
from pathlib import Path

from serve_app import metrics
from serve_app.config import settings_markdown
from tests.repo.source import BENCHMARK_FILES, CLIENT_ROOT, ROOT, SERVICE_FILES, tracked_files
from tests.repo.test_packaging import CLIENT, PROJECT

DOCS = ROOT / "docs"
METRICS = [value for value in vars(metrics).values() if isinstance(value, metrics.Metric)]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "clients" / "README.md",
    CLIENT_ROOT / "README.md",
    *sorted(DOCS.glob("*.md")),
]


def page_text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub generates for a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page_text(page), re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {slug.replace(" ", "-") for slug in slugs}


def relative_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", page_text(page)):
        if not re.match(r"[a-z]+:", link):
            yield link


def broken_links(page: Path) -> Iterator[str]:
    for link in relative_links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{page.relative_to(ROOT)}: {link} doesn't exist"
        elif anchor and anchor not in anchors(target):
            yield f"{page.relative_to(ROOT)}: {link} has no such heading"


def documented_packages(page: Path) -> list[str]:
    """Returns the first column of a page's table of dependencies."""
    return re.findall(r"^\| `([\w.\-\[\]]+)` \|", page_text(page), re.MULTILINE)


def declared_packages(requirements: list[str]) -> list[str]:
    return [re.split(r"[=~<> ;]", requirement)[0] for requirement in requirements]


def test_every_relative_link_resolves() -> None:
    assert [problem for page in PAGES for problem in broken_links(page)] == []


def test_each_protection_names_a_test_that_exists() -> None:
    section = page_text(ROOT / "SECURITY.md").split("| protection | test |")[1].split("\n\n")[0]
    rows = section.strip().splitlines()[1:]
    named = re.findall(r"\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", section, re.MULTILINE)
    assert len(named) == len(rows)
    assert [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^(async )?def {test}\(", page_text(ROOT / file), re.MULTILINE)
    ] == []


def test_each_example_of_deployment_says_what_it_was_run_with_or_needs() -> None:
    text = page_text(DOCS / "deploy.md")
    paragraphs = re.findall(r"([^\n]+(?:\n[^\n]+)*)\n\n```bash\n", text)
    assert len(paragraphs) == text.count("```bash\n")
    assert [p for p in paragraphs if not re.match(r"(Needs|Run with|Run on) ", p)] == []


def test_the_settings_page_is_generated_from_the_settings() -> None:
    assert page_text(DOCS / "settings.md").endswith(settings_markdown())


def test_every_metric_is_documented() -> None:
    rows = re.findall(r"^\| (`embedserve_[^|]+) \|", page_text(DOCS / "metrics.md"), re.MULTILINE)
    documented = re.findall(r"`(embedserve_\w+)(?:\{([\w,]+)\})?`", " ".join(rows))
    tags = {name: tuple(filter(None, names.split(","))) for name, names in documented}
    assert tags == {metric.name: metric.tags for metric in METRICS}
    assert len(documented) == len(METRICS)


def test_names_of_metrics_follow_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"embedserve(_[a-z0-9]+)+", metric.name)
        # Exporters add these suffixes.
        assert not re.search(r"_(total|bucket|sum|count|info)$", metric.name)
        assert not re.search(r"milli|micro|_ms\b|_ms_|minutes|kilo|mega|_[kmg]b\b", metric.name)
        assert metric.description.endswith(".")
    histograms = [metric for metric in METRICS if metric.buckets]
    assert histograms == [*metrics.HISTOGRAMS]
    for metric in histograms:
        assert metric.name.endswith(("_seconds", "_texts", "_tokens"))  # its unit
        assert [*metric.buckets] == sorted({*metric.buckets})
    assert metrics.GAUGES.isdisjoint(histograms)


def test_every_dependency_of_the_service_is_documented() -> None:
    documented = documented_packages(DOCS / "dependencies.md")
    assert documented == declared_packages(PROJECT["dependencies"])


def test_every_dependency_of_the_client_is_documented() -> None:
    extras = CLIENT["optional-dependencies"].values()
    requirements = [*CLIENT["dependencies"], *(line for extra in extras for line in extra)]
    section = page_text(CLIENT_ROOT / "README.md").split("\n## Dependencies\n")[1]
    documented = re.findall(r"^\| `([\w\-\[\]]+)` \|", section, re.MULTILINE)
    assert documented == declared_packages(requirements)


def test_the_file_map_is_the_tree() -> None:
    section = page_text(DOCS / "architecture.md").split("\n## File map\n")[1].split("\n## ")[0]
    file_map = section.split("```")[1]
    tree = {path.relative_to(ROOT) for path in tracked_files()}
    names = {part for path in tree for part in path.parts}
    listed = re.findall(r"[\w.-]+\.(?:py|md|yaml|json)\b|[\w-]+(?=/)", file_map)
    assert sorted(set(listed) - names) == []

    modules = {file.stem for file in (*SERVICE_FILES, *BENCHMARK_FILES)} - {"__init__"}
    packages = {file.parent.name for file in (*SERVICE_FILES, *BENCHMARK_FILES)}
    words = set(re.findall(r"\w+", file_map))
    assert sorted((modules | packages) - words) == []
