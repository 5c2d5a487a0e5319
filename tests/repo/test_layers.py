"""Modules import lower layers only, and each library is imported in a few modules only."""

import ast
from collections.abc import Mapping, Sequence

from tests.repo.source import (
    BENCHMARK_FILES,
    CLIENT_FILES,
    CLIENT_ROOT,
    ROOT,
    SERVICE_FILES,
    SOURCE_FILES,
    imports,
    module_name,
)

#: From the lowest to the highest. A module imports its own layer and lower ones.
SERVICE_LAYERS = [
    [
        "tasks",
        "inputs",
        "spans",
        "trace_ids",
        "types",
        "jobs",
        "results",
        "errors",
        "cost",
        "time_limit",
        "atomic_file",
        "meter",
        "metrics",
        "histogram",
        "totals",
        "quantization",
        "breaker",
        "coalescer",
        "parent_death",
        "proxy",
    ],
    ["model_spec"],
    ["sources"],
    ["config"],
    ["models", "tracing", "valkey"],
    ["engines"],
    ["access", "cache", "model_prep", "scheduler"],
    ["autoscale", "providers"],
    ["simulation"],
    ["live"],
    ["service"],
    ["web"],
    ["deployments"],
    ["app", "standalone"],
    ["command"],
]
#: Packages of one layer that don't import each other.
INDEPENDENT = {"access", "cache", "model_prep", "scheduler"}
#: The modules and packages of `serve_app` that import a library.
SERVICE_LIBRARIES = {
    "ray": (
        "app",
        "deployments",
        "autoscale",
        "simulation.ray_scaler",
        "meter",
        "command.engine_trial",
        "command.serve_controller",
        "command.cluster",
        "command.config_file",
    ),
    "torch": ("engines.torch_engine", "engines.library_model", "model_prep.openvino_export"),
    "sentence_transformers": ("engines.library_model",),
    "openvino": (
        "engines.openvino_engine",
        *("model_prep.openvino_export", "model_prep.int8_export", "model_prep.int8_quantization"),
    ),
    "nncf": ("model_prep.int8_quantization",),
    "tokenizers": ("engines.tokenizer", "engines.multi_vector_tokenizer"),
    "transformers": (),
    "starlette": ("web", "deployments.http_replica", "standalone"),
    "opentelemetry": ("tracing",),
    "huggingface_hub": ("sources.hub_source",),
    "aiohttp": ("service.image_fetcher", "providers.voyage_provider"),
    "yarl": ("service.image_fetcher",),
    "openai": ("providers.openai_provider",),
    "cohere": ("providers.cohere_provider",),
    "voyageai": ("providers.voyage_provider",),
    "benchmarks": (),
    "embedserve_benchmarks": (),
}
CLIENT_LAYERS = [
    [
        "errors",
        "settings",
        "fork_safe_lock",
        "read_write_lock",
        "prefetch",
        "in_order",
        "model_files",
    ],
    ["space", "vectors"],
    ["wire"],
    ["retry", "local_model", "rerank", "classify", "sparse", "images"],
    ["fallback"],
    ["flow", "transport"],
    ["base", "async_local_model", "sentence_transformer"],
    ["client", "async_base", "async_client"],
    [
        *("shared_service_dir", "supervisor_process", "supervisor", "hit", "index"),
        *("index_files", "search", "ray", "files", "migration"),
    ],
    ["stdio", "compat"],
    ["command"],
]
#: The modules and packages of `embedserve_client` that import a library. All but `httpx2` and
#: `rich` are extras.
CLIENT_LIBRARIES = {
    "httpx2": ("transport",),
    "rich": ("command", "sentence_transformer"),
    "sentence_transformers": ("local_model",),
    "faiss": ("index_files",),
    "pyarrow": ("files", "migration.parquet_store", "ray"),
    "psycopg": ("migration.pgvector_schema", "migration.pgvector_store"),
    "ray": ("ray",),
    "torch": ("sentence_transformer",),
    "serve_app": (),
    "benchmarks": (),
    "embedserve_benchmarks": (),
}
#: What the benchmarks import of the service: the model of all peers, a port, a type, the features
#: of the CPU, and the processes of a service.
BENCHMARK_IMPORTS = {
    *("serve_app.config", "serve_app.models", "serve_app.engines.cpu_features"),
    *("serve_app.command.ports", "serve_app.command.process_tree"),
}
#: Benchmarks of parts of the service: the engine, the simulator, a cluster, a service with faults.
INTERNAL_BENCHMARKS = {
    *("benchmarks.gpu", "benchmarks.peers.engine_in_process"),
    *("benchmarks.autoscaling", "benchmarks.node_cluster", "benchmarks.node_load"),
    *("benchmarks.faults.service", "benchmarks.soak.service"),
}

SERVICE_IMPORTS = {
    module_name(file).removeprefix("serve_app").lstrip("."): list(imports(file))
    for file in SERVICE_FILES
}
CLIENT_IMPORTS = {
    module_name(file).removeprefix("embedserve_client").lstrip("."): list(imports(file))
    for file in CLIENT_FILES
}


def is_within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def upward_imports(
    package: str, imports_by_module: Mapping[str, Sequence[str]], layers: Sequence[Sequence[str]]
) -> list[str]:
    def layer(module: str) -> int:
        return next(i for i, names in enumerate(layers) if module.split(".")[0] in names)

    return [
        f"{module} imports {target}, which is above it"
        for module, imported in imports_by_module.items()
        for name in imported
        if module and name.startswith(f"{package}.")
        if (target := name.removeprefix(f"{package}.")) != "__version__"
        if layer(target) > layer(module)
    ]


def misplaced_libraries(
    imports_by_module: Mapping[str, Sequence[str]], libraries: Mapping[str, Sequence[str]]
) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, imported in imports_by_module.items()
        for name in imported
        if (library := name.split(".")[0]) in libraries
        if not is_within(module, libraries[library])
    ]


def test_the_service_imports_lower_layers_only() -> None:
    assert upward_imports("serve_app", SERVICE_IMPORTS, SERVICE_LAYERS) == []


def test_the_client_imports_lower_layers_only() -> None:
    assert upward_imports("embedserve_client", CLIENT_IMPORTS, CLIENT_LAYERS) == []


def test_independent_packages_do_not_import_each_other() -> None:
    assert [
        f"{module} imports {name}"
        for module, imported in SERVICE_IMPORTS.items()
        for name in imported
        if name.startswith("serve_app.")
        if len({name.split(".")[1], module.split(".")[0]} & INDEPENDENT) > 1
    ] == []


def test_libraries_are_imported_where_they_belong() -> None:
    assert misplaced_libraries(SERVICE_IMPORTS, SERVICE_LIBRARIES) == []
    assert misplaced_libraries(CLIENT_IMPORTS, CLIENT_LIBRARIES) == []


def test_the_benchmarks_import_little_of_the_service() -> None:
    allowed = sorted({*BENCHMARK_IMPORTS, "serve_app.types.Float32"})
    assert [
        f"{module_name(file)} imports {name}"
        for file in BENCHMARK_FILES
        for name in imports(file)
        if name.startswith("serve_app") and not is_within(name, allowed)
        if module_name(file) not in INTERNAL_BENCHMARKS
    ] == []


def test_benchmarks_import_each_other_relatively() -> None:
    """They are installed under another name, see pyproject.toml."""
    assert [
        f"{module_name(file)}: import of {node.module}"
        for file in BENCHMARK_FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0
        if (node.module or "").split(".")[0] in {"benchmarks", "embedserve_benchmarks"}
    ] == []


def test_files_have_at_most_400_lines_and_functions_at_most_60() -> None:
    offenders = []
    for file in SOURCE_FILES:
        source = file.read_text(encoding="utf-8")
        lines = source.count("\n")
        if lines > 400:
            offenders.append(f"{file.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    offenders.append(f"{file.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert offenders == []


def test_the_client_exports_the_names_that_it_declares() -> None:
    import embedserve_client

    exported = embedserve_client.__all__
    tree = ast.parse((CLIENT_ROOT / "embedserve_client" / "__init__.py").read_text("utf-8"))
    (declarations,) = (node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    declared = [
        alias.name
        for node in declarations.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert exported == sorted(declared)
    assert [getattr(embedserve_client, name).__name__ for name in exported] == exported
