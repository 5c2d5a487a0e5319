"""Imports go down the layers only; Ray, torch and Starlette stay in their rooms."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "serve_app").rglob("*.py"))
CLIENT = ROOT / "clients" / "python" / "embedserve_client"
CLIENT_FILES = sorted(CLIENT.rglob("*.py"))

#: From the bottom up. A module may import from its own layer and from those below.
LAYERS = [
    ["types", "errors", "metrics"],
    ["config"],
    ["models", "valkey"],
    ["engines"],
    ["access", "autoscale", "cache", "model_prep", "scheduler"],
    ["service"],
    ["web"],
    ["deployments"],
    ["app"],
    ["command"],
]
#: Rooms of one layer that know nothing of each other.
APART = {"access", "autoscale", "cache", "model_prep", "scheduler"}

#: Who may import what.
ROOMS = {
    "ray": ("app", "deployments", "autoscale", "metrics", "command.serve", "command.cache"),
    "torch": ("engines.torch_engine", "model_prep.openvino_export"),
    "sentence_transformers": (
        "engines.torch_engine",
        "model_prep.openvino_export",
        "model_prep.calibration",
    ),
    "openvino": ("engines.openvino_engine", "model_prep.openvino_export"),
    "tokenizers": ("engines.tokenizer",),
    "transformers": (),
    "starlette": ("web", "deployments.ingress"),
    "huggingface_hub": ("models",),
}


def name(file: Path) -> str:
    parts = file.relative_to(ROOT / "serve_app").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(file: Path) -> Iterator[str]:
    """Every module that is imported, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "Imports are absolute."
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> int:
    room = module.split(".")[0]
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_go_down(file: Path) -> None:
    module = name(file)
    if not module:
        return
    for imported in imports(file):
        if not imported.startswith("serve_app."):
            continue
        target = imported.removeprefix("serve_app.")
        if target == "__version__":
            continue
        assert layer(target) <= layer(module), f"{module} imports {target}, which is above it"
        rooms = {target.split(".")[0], module.split(".")[0]}
        assert len(rooms & APART) <= 1, f"{module} and {target} should not know each other"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_libraries_stay_in_their_rooms(file: Path) -> None:
    module = name(file)
    for imported in imports(file):
        rooms = ROOMS.get(imported.split(".")[0])
        if rooms is not None:
            allowed = any(module == room or module.startswith(f"{room}.") for room in rooms)
            assert allowed, f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("serve_app", {"ray", "torch", "starlette", "numpy"}),
        ("serve_app.models", {"ray", "torch", "transformers", "starlette"}),
        ("serve_app.web.app", {"ray", "torch", "transformers"}),
        ("serve_app.cache.lookup", {"ray", "torch", "starlette"}),
        ("serve_app.access.entrance", {"ray", "torch", "starlette"}),
        ("serve_app.scheduler.scheduler", {"ray", "torch", "starlette"}),
        ("serve_app.model_prep.engine_selection", {"ray", "torch", "openvino", "tokenizers"}),
        ("serve_app.engines.hashing_engine", {"ray", "torch", "openvino", "tokenizers"}),
        ("serve_app.autoscale", {"ray", "torch", "numpy"}),
        ("serve_app.command.main", {"ray", "torch", "starlette"}),
    ],
)
def test_importing_a_room_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert unwanted.isdisjoint(loaded.stdout.split())


#: Of the client, from the bottom up.
CLIENT_LAYERS = [
    ["errors", "settings", "lock", "shared_lock", "feed", "model_files"],
    ["space", "vectors"],
    ["wire"],
    ["retry", "local"],
    ["fallback"],
    ["flow", "transport"],
    ["base", "in_process"],
    ["client", "async_client"],
    ["service_room", "keeper", "supervisor", "index", "index_files", "search", "ray", "files"],
    ["stdio"],
    ["command"],
]
#: What it may import where; each of them is an extra, but for the first two.
CLIENT_ROOMS = {
    "httpx2": ("transport",),
    "rich": ("command",),
    "sentence_transformers": ("local",),
    "faiss": ("index_files",),
    "pyarrow": ("files", "ray"),
    "ray": ("ray",),
    "torch": (),
    "serve_app": (),
}


def client_name(file: Path) -> str:
    parts = file.relative_to(CLIENT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("file", CLIENT_FILES, ids=client_name)
def test_imports_of_the_client_go_down(file: Path) -> None:
    def layer(module: str) -> int:
        room = module.split(".")[0]
        return next(i for i, rooms in enumerate(CLIENT_LAYERS) if room in rooms)

    module = client_name(file)
    for imported in imports(file):
        room = imported.removeprefix("embedserve_client.")
        if module and room != imported and room != "__version__":
            target = room if room.split(".")[0] != "base" else "base"
            assert layer(target) <= layer(module), f"{module} imports {target}, which is above it"
        rooms = CLIENT_ROOMS.get(imported.split(".")[0])
        if rooms is not None:
            assert module.split(".")[0] in rooms, f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("embedserve_client", {"httpx2", "numpy", "orjson"}),
        ("embedserve_client.model_files", {"httpx2", "numpy"}),
        ("embedserve_client.client", {"torch", "ray", "faiss", "pyarrow", "rich", "serve_app"}),
        ("embedserve_client.supervisor", {"torch", "ray", "serve_app"}),
        ("embedserve_client.search", {"torch", "ray", "faiss", "serve_app"}),
        ("embedserve_client.command.main", {"torch", "ray", "faiss", "pyarrow", "serve_app"}),
    ],
)
def test_importing_the_client_loads_nothing_that_it_may_not_need(
    module: str, unwanted: set[str]
) -> None:
    test_importing_a_room_loads_nothing_heavy(module, unwanted)


def test_the_public_names_are_those_that_there_are() -> None:
    import embedserve_client

    assert embedserve_client.__all__ == sorted(embedserve_client.__all__)
    assert set(embedserve_client._PLACES) == set(embedserve_client.__all__)
    for name in embedserve_client.__all__:
        assert getattr(embedserve_client, name).__name__ == name


#: What the harness may know of the service: the model that all peers serve, and how to find a port.
KNOWN = {
    "serve_app.config.MINILM",
    "serve_app.models.model_dir",
    "serve_app.command.ports.free_port",
    "serve_app.types.Float32",
}
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda f: f.stem)
def test_the_harness_knows_only_what_the_model_is(file: Path) -> None:
    ours = {imported for imported in imports(file) if imported.startswith("serve_app")}
    assert ours <= KNOWN or file.stem in {"engine_alone", "gpu"}  # which measure the engine


@pytest.mark.parametrize("file", [*FILES, *CLIENT_FILES, *BENCHMARKS], ids=lambda f: f.stem)
def test_files_and_functions_stay_small(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            assert node.end_lineno - node.lineno < 60, node.name
