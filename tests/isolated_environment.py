"""Virtual environments with nothing but a requirement and what it depends on.

They hold links to packages of the environment that runs the tests, so they are made in milliseconds
and need no package index. A module that imports a package that no requirement names fails in them
as it would after a new installation.
"""

import re
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
_SITE = Path(sysconfig.get_path("purelib"))
#: Distributions of this repository: their project, and the source of each top-level package. The
#: metadata of an editable installation may be older than the project.
_LOCAL = {
    "embedserve": (
        ROOT,
        {"serve_app": ROOT / "serve_app", "embedserve_benchmarks": ROOT / "benchmarks"},
    ),
    "embedserve-client": (
        ROOT / "clients" / "python",
        {"embedserve_client": ROOT / "clients" / "python" / "embedserve_client"},
    ),
}


def create(folder: Path, requirement: str) -> Path:
    """Creates an environment with a distribution and its dependencies; returns its Python.

    Args:
        folder: the folder of the environment, which doesn't exist.
        requirement: a distribution that is installed here, such as `embedserve-client[search]`.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    for name in sorted(_closure(requirement)):
        if name in _LOCAL:
            for package, source in _LOCAL[name][1].items():
                (site / package).symlink_to(source)
        for path in _top_paths(_distribution(name)):
            _link(site, path)
    return folder / "bin" / "python"


def extras(distribution: str) -> set[str]:
    """Returns the names of the extras of a distribution of this repository."""
    return set(_project(distribution).get("optional-dependencies", {}))


def _distribution(name: str) -> metadata.Distribution:
    # Not from the working directory, which may hold the metadata of a build.
    return next(iter(metadata.distributions(name=name, path=[str(_SITE)])))


def _project(distribution: str) -> dict[str, Any]:
    text = (_LOCAL[distribution][0] / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def _closure(requirement: str) -> set[str]:
    """Returns the normalized names of all distributions that a requirement needs."""
    pending, seen, names = [Requirement(requirement)], set[tuple[str, str]](), set[str]()
    while pending:
        current = pending.pop()
        name = re.sub(r"[-_.]+", "-", current.name).lower()
        names.add(name)
        for extra in {"", *current.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                pending += _dependencies(name, extra)
    return names


def _dependencies(name: str, extra: str) -> Iterator[Requirement]:
    if name in _LOCAL:
        project = _project(name)
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        lines = _distribution(name).requires or []
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": extra}):
            yield requirement


def _top_paths(distribution: metadata.Distribution) -> set[Path]:
    """Returns the packages and files of a distribution, relative to `site-packages`."""
    files = [Path(file) for file in distribution.files or ()]
    files = [file for file in files if file.parts[0] not in ("..", "__pycache__")]
    is_local = distribution.metadata["Name"] in _LOCAL
    if is_local:  # of an editable installation, only the metadata
        files = [file for file in files if file.parts[0].endswith(".dist-info")]
    return {_package(file) for file in files}


def _package(file: Path) -> Path:
    """Returns the first folder of a path that isn't a namespace, which distributions share."""
    path = Path()
    for part in file.parts:
        path /= part
        if (_SITE / path / "__init__.py").exists() or path.suffix == ".dist-info":
            break
    return path


def _link(site: Path, path: Path) -> None:
    target = site / path
    if (_SITE / path).exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(_SITE / path)
