"""The source files of the repository, and what they import."""

import ast
import subprocess
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT_ROOT = ROOT / "clients" / "python"
SERVICE_FILES = sorted((ROOT / "serve_app").rglob("*.py"))
CLIENT_FILES = sorted((CLIENT_ROOT / "embedserve_client").rglob("*.py"))
BENCHMARK_FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
#: The configurations of a service. `configs/` also has Docker Compose's file.
CONFIG_FILES = [
    ROOT / "serve_config.yaml",
    *sorted(file for file in (ROOT / "configs").glob("*.yaml") if file.stem != "compose"),
]
SOURCE_FILES = [*SERVICE_FILES, *CLIENT_FILES, *BENCHMARK_FILES]


def module_name(file: Path) -> str:
    """Returns the dotted name of a module, such as `serve_app.web.app`."""
    root = CLIENT_ROOT if file.is_relative_to(CLIENT_ROOT) else ROOT
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Yields the absolute name of everything that a file imports, also inside functions."""
    name = module_name(file)
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def tracked_files() -> list[Path]:
    """Returns the files of the repository that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for path in map(ROOT.joinpath, listed.stdout.splitlines()) if path.is_file()]
