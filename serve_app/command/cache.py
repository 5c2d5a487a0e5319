"""`embedserve cache`: warm, inspect and purge the caches of running services, as a Ray job."""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from serve_app.cache.report import (
    CacheReport,
    MemoryStats,
    ModelCacheStats,
    StoreStats,
    WarmResult,
)
from serve_app.command.cluster import add_address_argument, connect
from serve_app.config import RequestSettings
from serve_app.errors import (
    ConfigurationError,
    EmbedServeError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.service.validation import validate_inputs

#: Texts per call, and calls in flight: enough to keep every Embedder busy.
_CALL_TEXTS = 256
_MAX_CALLS = 4
_CALL_TIMEOUT_S = 300.0
#: Deployments with a cache, from the client's side to the engine's.
_CACHING_DEPLOYMENTS = ("Ingress", "EmbedServer", "CacheLookup")


def add_commands(commands: Any) -> None:
    """Adds `cache` and its subcommands to the parser."""
    cache = commands.add_parser(
        "cache",
        help="warm, inspect or purge the cache of a running service",
        description="Warm, inspect or purge the cache of a service that runs on this machine's Ray "
        "cluster.",
    )
    subcommands = cache.add_subparsers(required=True, metavar="COMMAND")

    warm = subcommands.add_parser(
        "warm",
        help="embed the texts of a file to fill the cache",
        description="Compute the outputs of a model for the texts of a file, in the bulk lane, so "
        "that later requests for them "
        "are served from the cache.",
    )
    warm.add_argument(
        "file",
        type=Path,
        help="JSON lines: each a string, or an object with the text under --field",
    )
    warm.add_argument("--field", default="text", help="name of the text's field (default: text)")
    warm.add_argument("--input-type", help="name of the model's prompt for the texts")
    warm.add_argument("--model", help="name or alias of the model (default: the first one)")
    warm.add_argument(
        "--app", default="embedserve", help="name of the application (default: embedserve)"
    )
    warm.set_defaults(run=_warm)

    stats = subcommands.add_parser(
        "stats",
        help="print the size and the hit rate of each cache",
        description="Print the size, the hit rate and the evictions of each process's cache and of "
        "the shared server.",
    )
    stats.add_argument("--json", action="store_true", help="print JSON instead of a table")
    stats.set_defaults(run=_stats)

    purge = subcommands.add_parser(
        "purge",
        help="delete all cached vectors",
        description="Delete all cached vectors of the served models, in every process and on the "
        "shared server.",
    )
    purge.add_argument("--model", help="delete the vectors of this model only")
    purge.set_defaults(run=_purge)

    for subcommand in (warm, stats, purge):
        add_address_argument(subcommand)


def _warm(arguments: argparse.Namespace) -> int:
    total = sum(1 for _ in _read_texts(arguments.file, arguments.field))
    serve = connect(arguments.address)
    applications = serve.status().applications
    if arguments.app not in applications:
        raise ConfigurationError(
            f"No application {arguments.app!r} is running; running: "
            f"{', '.join(applications) or 'none'}. Select one with --app."
        )
    handle = serve.get_app_handle(arguments.app)
    computed = 0
    started_at = time.monotonic()
    with _progress_bar() as progress:
        task = progress.add_task("texts", total=total)
        texts = _read_texts(arguments.file, arguments.field)
        for result in _warm_in_calls(handle, texts, arguments.input_type, arguments.model):
            progress.advance(task, result.texts)
            computed += result.computed
    seconds = max(time.monotonic() - started_at, 1e-9)
    print(
        f"{total} texts in {seconds:.1f} s ({total / seconds:.0f}/s): {computed} computed, "
        f"{total - computed} already cached."
    )
    return 0


def _warm_in_calls(handle: Any, texts: Iterator[str], *options: str | None) -> Iterator[WarmResult]:
    """Yields the result of each call, with up to `_MAX_CALLS` calls in flight."""
    in_flight = deque[tuple[list[str], Any]]()
    while call := list(islice(texts, _CALL_TEXTS)):
        in_flight.append((call, handle.warm.remote(call, *options)))
        if len(in_flight) == _MAX_CALLS:
            yield _wait_for_call(handle, *in_flight.popleft(), *options)
    while in_flight:
        yield _wait_for_call(handle, *in_flight.popleft(), *options)


def _wait_for_call(
    handle: Any, texts: list[str], response: Any, *options: str | None
) -> WarmResult:
    """Returns the result of a call; repeats the call while the service is overloaded."""
    while True:
        try:
            result: WarmResult | EmbedServeError = response.result(timeout_s=_CALL_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(
                f"No response for {len(texts)} texts within {_CALL_TIMEOUT_S:.0f} s."
            ) from None
        if isinstance(result, WarmResult):
            return result
        if not isinstance(result, Overloaded):
            raise result
        time.sleep(result.retry_after_s)
        response = handle.warm.remote(texts, *options)


def _read_texts(file: Path, field: str) -> Iterator[str]:
    """Yields the texts of a file, each of them validated.

    Raises:
        ConfigurationError: the file can't be read, or a line contains no valid text.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse_text(line, field, f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Can't read {file}: {error}") from None


def _parse_text(line: str, field: str, location: str) -> str:
    try:
        value = json.loads(line)
        text = value.get(field) if isinstance(value, dict) else value
        validate_inputs([text], RequestSettings())
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{location} isn't JSON: {error}.") from None
    except InvalidRequest as error:
        fault = str(error).removeprefix("Text 0 ")
        subject = f"`{field}`" if isinstance(value, dict) else "the text"
        raise ConfigurationError(f"{location}: {subject} {fault}") from None
    return str(text)


def _stats(arguments: argparse.Namespace) -> int:
    reports: list[tuple[str, str, CacheReport]] = list(
        _broadcast(connect(arguments.address), "cache_report", _CACHING_DEPLOYMENTS)
    )
    if not reports:
        raise ConfigurationError("No service is running.")
    if arguments.json:
        print(json.dumps([_as_json(*report) for report in reports], indent=2))
        return 0
    table = Table("process", "vectors", "MiB", "hits", "misses", "hit rate, %", "evictions")
    for application, deployment, report in reports:
        table.add_row(f"{application} {deployment}", *_cells(report.memory))
        for model in report.models if len(report.models) > 1 else ():
            table.add_row(f"  {model.model}", *_model_cells(model))
        if report.store is not None:
            name = f"{application} server ({report.state.kind})"
            table.add_row(name, *_cells(report.store))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for application, deployment, report in reports:
        if report.state.state not in ("up", "off"):
            print(f"{application} {deployment}: the shared server is down: {report.state.reason}")
    return 0


def _cells(stats: MemoryStats | StoreStats) -> tuple[str, ...]:
    return (
        f"{stats.entries:,}",
        f"{stats.bytes / (1 << 20):,.1f}",
        f"{stats.hits:,}",
        f"{stats.misses:,}",
        _hit_rate(stats.hits, stats.misses),
        f"{stats.evictions:,}",
    )


def _model_cells(stats: ModelCacheStats) -> tuple[str, ...]:
    hits = stats.l1_hits + stats.l2_hits
    return ("", "", f"{hits:,}", f"{stats.misses:,}", _hit_rate(hits, stats.misses), "")


def _hit_rate(hits: int, misses: int) -> str:
    return f"{100 * hits / (hits + misses):.1f}" if hits + misses else "-"


def _as_json(application: str, deployment: str, report: CacheReport) -> dict[str, Any]:
    return {
        "application": application,
        "deployment": deployment,
        "memory": report.memory._asdict(),
        "models": [stats._asdict() for stats in report.models],
        "shared": {
            **report.state._asdict(),
            "server": None if report.store is None else report.store._asdict(),
        },
    }


def _purge(arguments: argparse.Namespace) -> int:
    # From the engine's side up, so that no emptied cache refills from one that isn't empty yet.
    deployments = _CACHING_DEPLOYMENTS[::-1]
    responses = [
        response
        for _, _, response in _broadcast(
            connect(arguments.address), "purge_cache", deployments, arguments.model
        )
    ]
    for response in responses:
        if isinstance(response, EmbedServeError):
            raise response
    counts = [response for response in responses if response is not None]
    if not counts:
        which = "is running" if arguments.model is None else f"serves {arguments.model!r}"
        raise ConfigurationError(f"No service {which}.")
    print(f"{sum(counts)} vectors deleted, counted in each cache.")
    return 0


def _broadcast(
    serve: Any, method: str, deployments: Sequence[str], *args: Any
) -> Iterator[tuple[str, str, Any]]:
    """Calls a method of every replica; yields application, deployment and response of each."""
    for name, application in serve.status().applications.items():
        for deployment in deployments:
            if deployment not in application.deployments:
                continue
            handle = serve.get_deployment_handle(deployment, name)
            responses = handle.broadcast(method, *args).results(timeout_s=_CALL_TIMEOUT_S)
            yield from ((name, deployment, response) for response in responses)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
