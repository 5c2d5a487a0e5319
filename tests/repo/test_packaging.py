"""The distributions: their packages, commands and dependencies."""

import importlib.metadata
import re
import tomllib
from itertools import chain
from pathlib import Path

import embedserve_client
import serve_app
from tests.repo.source import CLIENT_ROOT, ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CLIENT = tomllib.loads((CLIENT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirement_name(requirement: str) -> str:
    return re.split(r"[\[=~<> ;]", requirement)[0].lower().replace("_", "-")


def packages(folder: Path, name: str) -> set[str]:
    """Returns the dotted names of a folder's packages, if the folder's package is called `name`."""
    return {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for init in folder.rglob("__init__.py")
    }


def test_every_package_is_installed() -> None:
    installed = PYPROJECT["tool"]["setuptools"]["packages"]
    service = packages(ROOT / "serve_app", "serve_app")
    benchmarks = packages(ROOT / "benchmarks", "embedserve_benchmarks")
    assert installed == sorted(service | benchmarks)


def test_no_package_is_installed_as_benchmarks() -> None:
    top_level = importlib.metadata.distribution("embedserve").read_text("top_level.txt")
    assert set((top_level or "").split()) == {"serve_app", "embedserve_benchmarks"}


def test_the_service_and_the_benchmarks_provide_commands() -> None:
    plugins = importlib.metadata.entry_points(group="embedserve.commands")
    assert {plugin.name for plugin in plugins} == {"service", "benchmarks"}
    for plugin in plugins:
        module = plugin.load()
        assert callable(module.add_commands)
        assert module.EXAMPLES.startswith("  embedserve ")
        assert all(issubclass(error, Exception) for error in module.ERRORS)


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    requirements = chain(
        PROJECT["dependencies"],
        *PROJECT["optional-dependencies"].values(),
        CLIENT["dependencies"],
        *CLIENT["optional-dependencies"].values(),
    )
    names = {requirement_name(requirement) for requirement in requirements}
    names.remove("embedserve-client")  # installed from this repository
    assert [
        name
        for name in sorted(names)
        if not re.search(rf"^{re.escape(name)}==\S+$", pins, re.MULTILINE)
    ] == []
    assert "\ntorch==2.13.0\n" in pins


def test_the_tests_and_the_pins_install_every_extra() -> None:
    extras = ",".join(PROJECT["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.count(f"'.[{extras}]'") == 2


def test_the_changelog_starts_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == serve_app.__version__ == embedserve_client.__version__
