"""What README and CHANGELOG say is true of the tree."""

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from serve_app import __version__
from serve_app.config import settings_markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENT_HOME = ROOT / "clients" / "python"
CLIENT = tomllib.loads((CLIENT_HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_settings_are_the_trees_own() -> None:
    table = README.split("<!-- settings -->\n")[1].split("<!-- /settings -->")[0]
    assert table == settings_markdown()


def test_the_dependencies_are_the_projects_own() -> None:
    told = re.findall(r"^\| `([\w\-\[\]]+)` \|", section("Dependencies"), re.MULTILINE)
    declared = [re.split(r"[=~<> ]", line)[0] for line in PROJECT["dependencies"]]
    assert told == declared


def test_so_are_those_of_the_client() -> None:
    readme = (CLIENT_HOME / "README.md").read_text(encoding="utf-8")
    told = re.findall(
        r"^\| `([\w\-\[\]]+)` \|", readme.split("\n## Dependencies\n")[1], re.MULTILINE
    )
    extras = chain(*CLIENT["optional-dependencies"].values())
    declared = [re.split(r"[=~<> ]", line)[0] for line in (*CLIENT["dependencies"], *extras)]
    assert told == declared


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    every = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    every += [*CLIENT["dependencies"], *chain(*CLIENT["optional-dependencies"].values())]
    for line in every:
        if line.startswith("embedserve-client"):
            continue  # it lies in this repository
        name = re.split(r"[\[=~<> ]", line)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==\S+$", pins, re.MULTILINE), name
    assert "\ntorch==2.13.0\n" in pins


def test_the_tests_have_every_group() -> None:
    groups = ",".join(PROJECT["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.count(f"'.[{groups}]'") == 2  # for the tests, and for the pins


def test_the_file_map_is_the_tree() -> None:
    listing = section("How it works").split("```")[3]
    listed = set(re.findall(r"[\w./]+(?:\.py|\.yaml|\.md)\b|\b[\w/]+/(?=\s)", listing))
    rooms = [
        ROOT,
        ROOT / "tests",
        ROOT / "benchmarks",
        ROOT / "clients",
        ROOT / "serve_app",
        *(ROOT / "serve_app").iterdir(),
    ]
    for name in listed:
        assert any((room / name).exists() for room in rooms), name
    top = {path.name for path in (ROOT / "serve_app").glob("*.py")} - {"__init__.py"}
    assert top <= listed
    measuring = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py"}
    assert measuring <= listed


def test_the_make_targets_exist() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in set(re.findall(r"make ([a-z]+)", README)):
        assert re.search(rf"^{target}\s", shown.stdout, re.MULTILINE), target


def test_the_start_is_short() -> None:
    commands = section("Start").split("```bash\n")[1].split("```")[0].splitlines()
    assert len(commands) <= 6


@pytest.mark.parametrize("name", ["configs/gpu.yaml", "configs/portable.yaml", "serve_config.yaml"])
def test_the_configurations_are_told_of(name: str) -> None:
    assert name in README


def test_the_changelog_has_this_version_on_top() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == __version__
