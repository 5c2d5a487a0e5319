"""The table of clients/README.md: both clients have these names and these defaults."""

import inspect
import re
from typing import NamedTuple

import pytest

import embedserve_client
from embedserve_client import Supervisor, base
from embedserve_client.retry import RetryPolicy
from tests.clients.node import PACKAGE

README = PACKAGE.parent / "README.md"
SOURCES = PACKAGE / "src"
#: For each part of the table, the TypeScript file of its options, their interface, and the constant
#: of their defaults.
OPTIONS = {
    "Client": ("options.ts", "ClientOptions", "CLIENT_DEFAULTS"),
    "embed": ("options.ts", "EmbedOptions", None),
    "embed_images": ("options.ts", "ImageOptions", None),
    "embed_sparse": ("options.ts", "SparseOptions", None),
    "rerank": ("options.ts", "RerankOptions", None),
    "classify": ("options.ts", "ClassifyOptions", None),
    "Supervisor": ("node/supervisor-options.ts", "SupervisorOptions", "SUPERVISOR_DEFAULTS"),
    "StdioWorker": ("node/stdio-worker-options.ts", "StdioWorkerOptions", "WORKER_DEFAULTS"),
}
#: Interfaces that the option interfaces extend.
COMPUTE_BASES = [("options.ts", f"{name}Options") for name in ("Call", "Model", "Compute")]
BASES = {
    "EmbedOptions": COMPUTE_BASES,
    "ImageOptions": COMPUTE_BASES,
    "SparseOptions": COMPUTE_BASES,
    "RerankOptions": COMPUTE_BASES,
    "ClassifyOptions": COMPUTE_BASES,
    "SupervisorOptions": [("node/managed-process.ts", "ProcessOptions")],
    "StdioWorkerOptions": [("node/managed-process.ts", "ProcessOptions")],
}


class Row(NamedTuple):
    """A row of the table; None: the language has no such name."""

    part: str
    python: str | None
    typescript: str | None
    default: str


def _rows() -> list[Row]:
    section = README.read_text("utf-8").partition("## Names and defaults")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in table]
    return [Row(c[0], _name(c[1]), _name(c[2]), c[3]) for c in cells]


def _name(cell: str) -> str | None:
    return None if cell == "—" else cell


ROWS = _rows()


def _source(file: str) -> str:
    return (SOURCES / file).read_text("utf-8")


def _interface(file: str, name: str) -> dict[str, str]:
    """Returns the properties of a TypeScript interface, each with its comment."""
    match = re.search(rf"interface {name} [^{{]*{{(}}|\n.*?^}})", _source(file), re.M | re.S)
    assert match, name
    properties = re.findall(r"/\*\*(.*?)\*/\s+readonly (\w+)\?:", match[1], re.S)
    return {option: " ".join(re.sub(r"\n\s+\*", " ", doc).split()) for doc, option in properties}


def _typescript_defaults(part: str) -> dict[str, object]:
    file, _, constant = OPTIONS[part]
    if constant is None:
        return {}
    match = re.search(rf"export const {constant} = {{(.*?)}};", _source(file), re.S)
    assert match, constant
    return {name: _parse(value) for name, value in re.findall(r"(\w+): ([\w.]+),", match[1])}


def _parse(value: str) -> object:
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch(r"[\d_.]+", value):
        return float(value)
    match = re.search(rf"export const {value} = (\w+);", _source("options.ts"))
    assert match, value
    return _parse(match[1])


def _python_defaults(part: str) -> dict[str, object]:
    if part == "Client":
        retry = RetryPolicy()
        return {
            "timeout_s": base.DEFAULT_TIMEOUT_S,
            "max_retries": retry.max_retries,
            "retry_delay_s": retry.retry_delay_s,
            "max_retry_delay_s": retry.max_retry_delay_s,
            "batch_size": base.DEFAULT_BATCH_SIZE,
            "concurrency": base.DEFAULT_CONCURRENCY,
        }
    if part == "Supervisor":
        parameters = inspect.signature(Supervisor).parameters.values()
        return {p.name: p.default for p in parameters if isinstance(p.default, int | float)}
    return {}


def _default_in_table(row: Row, unit: float) -> object:
    """Returns the number or boolean of a row, with durations in units of `unit` seconds."""
    if row.default in ("true", "false"):
        return row.default == "true"
    number, _, suffix = row.default.partition(" ")
    return float(number) / unit if suffix == "s" else float(number)


def _to_camel_case(name: str) -> str:
    return re.sub(r"_(\w)", lambda match: match[1].upper(), re.sub(r"_s$", "_ms", name))


def test_names_differ_only_in_the_convention_of_the_language() -> None:
    for row in ROWS:
        if row.python and row.typescript:
            expected = _to_camel_case(row.python) if row.part in OPTIONS else row.python
            assert row.typescript == expected


def test_the_table_lists_all_public_names() -> None:
    rows = [row for row in ROWS if row.part in ("class", "error", "function")]
    assert sorted(row.python for row in rows if row.python) == sorted(embedserve_client.__all__)
    index = _source("index.ts") + _source("node/index.ts")
    exported = set(re.findall(r"\b[A-Z]\w+", re.sub(r"/\*.*?\*/", "", index, flags=re.S)))
    listed = {row.typescript for row in rows if row.typescript}
    assert listed <= exported
    assert {name for name in exported if name.endswith("Error")} <= listed


@pytest.mark.parametrize("part", OPTIONS)
def test_the_table_lists_all_options(part: str) -> None:
    rows = [row for row in ROWS if row.part == part]
    file, interface, _ = OPTIONS[part]
    typescript = set(_interface(file, interface))
    for base_file, base_interface in BASES.get(interface, ()):
        typescript |= set(_interface(base_file, base_interface))
    assert {row.typescript for row in rows if row.typescript} == typescript
    python = {
        "Client": {"base_url", *base.ClientOptions.__annotations__},
        "embed": set(base.EmbedOptions.__annotations__),
        "embed_images": set(base.ImageOptions.__annotations__),
        "embed_sparse": set(base.SparseOptions.__annotations__),
        "rerank": {"top_n", *base.RerankOptions.__annotations__},
        "classify": set(base.ClassifyOptions.__annotations__),
        "Supervisor": set(inspect.signature(Supervisor).parameters),
        "StdioWorker": set(),
    }
    assert {row.python for row in rows if row.python} == python[part]


@pytest.mark.parametrize("part", OPTIONS)
def test_defaults_are_those_of_the_table(part: str) -> None:
    rows = [row for row in ROWS if row.part == part]
    typescript, python = _typescript_defaults(part), _python_defaults(part)
    by_typescript = {row.typescript: row for row in rows}
    by_python = {row.python: row for row in rows}
    for name, value in typescript.items():
        assert value == _default_in_table(by_typescript[name], unit=0.001), name
    for name, value in python.items():
        assert value == _default_in_table(by_python[name], unit=1), name
    numeric = {row for row in rows if re.match(r"\d", row.default)}
    assert {row.typescript for row in numeric if row.typescript} <= set(typescript)
    assert {row.python for row in numeric if row.python} <= set(python)


@pytest.mark.parametrize("part", OPTIONS)
def test_typescript_comments_state_the_defaults(part: str) -> None:
    file, interface, _ = OPTIONS[part]
    comments = _interface(file, interface)
    for name, value in _typescript_defaults(part).items():
        shown = str(value).lower() if isinstance(value, bool) else f"{value:g}"
        assert f"Default: {shown}." in comments[name]
