"""`embedserve models status`: the models of a running service, with state, replicas and memory."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from embedserve_client.settings import DEFAULT_URL
from serve_app.command.checked_service import CheckedService
from serve_app.errors import Unavailable
from serve_app.metrics import MODEL_LOADED, PROCESS_MEMORY_BYTES, PROVIDER_UP, RAY_PREFIX

_TIMEOUT_S = 30.0


class ServedModel(NamedTuple):
    """A model of a running service."""

    name: str
    kind: str
    tasks: tuple[str, ...]
    state: str
    replicas: int  #: processes that run it
    loaded: int  #: those that have it in memory at present
    memory_bytes: int  #: of these processes in all, with everything else in them


def add_commands(commands: Any) -> None:
    """Adds `status` to the subcommands of `embedserve models`."""
    status = commands.add_parser(
        "status",
        help="print the models of a running service",
        description="Print kind, state, replicas and memory of each model of a running service. "
        "On Ray, the numbers are up to ten seconds old.",
    )
    status.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})",
    )
    status.add_argument(
        "--key",
        help="API key (default: EMBEDSERVE_API_KEY, which other users of the machine don't see)",
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    with closing(CheckedService(arguments.url, arguments.key, _TIMEOUT_S)) as service:
        models = served_models(service)
    if arguments.json:
        print(json.dumps([model._asdict() for model in models], indent=2))
    else:
        table = Table("model", "kind", "tasks", "state", "replicas", "loaded", "MiB of them")
        for model in models:
            memory = f"{model.memory_bytes / (1 << 20):,.0f}"
            counts = (str(model.replicas), str(model.loaded), memory)
            table.add_row(model.name, model.kind, ", ".join(model.tasks), model.state, *counts)
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if all(model.state == "ok" for model in models) else 1


def served_models(service: CheckedService) -> list[ServedModel]:
    """Returns the models of a service, in the order of its configuration.

    Raises:
        EmbedError: the service is unreachable, or refuses a request.
        Unavailable: it returns no metrics.
    """
    info, health = service.client.info(), service.client.health()
    states = health.get("models") or {info["model"]: health}
    reply = service.get("/metrics")
    if reply.status != 200:
        raise Unavailable(
            f"GET /metrics: HTTP {reply.status}. Pass a key with --key if it needs one."
        )
    processes = _processes(str(reply.body))
    return [_served_model(model, states[model["name"]], processes) for model in _descriptions(info)]


def _descriptions(info: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Returns name, kind and tasks of each model, from the body of `/info`."""
    kind = next(iter(info.get("model_type") or {}), "-")
    return info.get("models") or [{"name": info["model"], "kind": kind, "tasks": ()}]


def _served_model(
    model: Mapping[str, Any],
    health: Mapping[str, Any],
    processes: Iterable[tuple[Mapping[str, bool], int]],
) -> ServedModel:
    own = [(loaded[model["name"]], size) for loaded, size in processes if model["name"] in loaded]
    # A model is reported by its own entry, the only model of a service by the service's.
    state = "ok" if health["status"] in ("ok", "degraded") else str(health["status"])
    return ServedModel(
        model["name"],
        model["kind"],
        tuple(model["tasks"]),
        state,
        len(own),
        sum(loaded for loaded, _ in own),
        sum(size for _, size in own),
    )


def _processes(text: str) -> list[tuple[Mapping[str, bool], int]]:
    """Returns for each process whether each of its models is in memory, and the process's size."""
    loaded: dict[frozenset[tuple[str, str]], dict[str, bool]] = {}
    sizes: dict[frozenset[tuple[str, str]], int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            model = labels.pop("model", "")
            process = frozenset(labels.items())
            if sample.name == RAY_PREFIX + MODEL_LOADED.name:
                loaded.setdefault(process, {})[model] = bool(sample.value)
            elif sample.name == RAY_PREFIX + PROVIDER_UP.name:  # which no process has in memory
                loaded.setdefault(process, {})[model] = False
            elif sample.name == RAY_PREFIX + PROCESS_MEMORY_BYTES.name:
                sizes[process] = int(sample.value)
    return [(models, sizes.get(process, 0)) for process, models in loaded.items()]
