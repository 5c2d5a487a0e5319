"""`embedserve cache`: fills, shows and empties the cache of running services, as a Ray job."""

import argparse
import json
import logging
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
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from serve_app.config import IngressSettings
from serve_app.errors import (
    ConfigurationError,
    EmbedServeError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.service.validation import validate_inputs
from serve_app.types import CacheReport, WarmResult

#: Texts in one call, and calls under way; so many keep every Embedder busy.
_CALL_TEXTS = 256
_CALLS = 4
_ANSWER_S = 300.0
_TIERS = ("Ingress", "CacheLookup")


def add_commands(commands: Any) -> None:
    """Adds `cache` with its own commands."""
    cache = commands.add_parser("cache", help="fill, show or empty the cache of a running service")
    kinds = cache.add_subparsers(required=True, metavar="COMMAND")

    warm = kinds.add_parser("warm", help="embed the texts of a file, so that they are known")
    warm.add_argument(
        "file",
        type=Path,
        help="JSON lines: each a string, or an object with the text under --field",
    )
    warm.add_argument("--field", default="text", help="where the text stands (default: text)")
    warm.add_argument("--input-type", help="the model's prompt to put before the texts")
    warm.add_argument("--app", default="embedserve", help="the application (default: embedserve)")
    warm.set_defaults(run=_warm)

    stats = kinds.add_parser("stats", help="what each process knows, and how often that helped")
    stats.add_argument("--json", action="store_true", help="print it as JSON")
    stats.set_defaults(run=_stats)

    purge = kinds.add_parser("purge", help="forget all vectors of the models that are served")
    purge.add_argument("--model", help="only of this one")
    purge.set_defaults(run=_purge)

    for kind in (warm, stats, purge):
        kind.add_argument(
            "--address",
            default="auto",
            help="of the Ray cluster (default: the one that runs on this machine)",
        )


def _warm(arguments: argparse.Namespace) -> int:
    total = sum(1 for _ in _read_texts(arguments.file, arguments.field))
    serve = _connect(arguments.address)
    running = serve.status().applications
    if arguments.app not in running:
        raise ConfigurationError(
            f"No application {arguments.app!r} runs there, but {', '.join(running) or 'none'}: "
            "name it with --app."
        )
    handle = serve.get_app_handle(arguments.app)
    texts = _read_texts(arguments.file, arguments.field)
    calls = iter(lambda: list(islice(texts, _CALL_TEXTS)), [])
    under_way = deque[tuple[list[str], Any]]()
    computed = 0
    started = time.monotonic()
    with _progress() as progress:
        task = progress.add_task("texts", total=total)
        for call in calls:
            under_way.append((call, handle.warm.remote(call, arguments.input_type)))
            if len(under_way) == _CALLS:
                computed += _take(handle, under_way, arguments.input_type, progress, task)
        while under_way:
            computed += _take(handle, under_way, arguments.input_type, progress, task)
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{total} texts in {seconds:.1f} s ({total / seconds:.0f}/s): {computed} computed, "
        f"{total - computed} known before."
    )
    return 0


def _take(
    handle: Any,
    under_way: deque[tuple[list[str], Any]],
    input_type: str | None,
    progress: Progress,
    task: TaskID,
) -> int:
    """Waits for the oldest call, again where it was refused for load; how many were computed."""
    call, answer = under_way.popleft()
    while True:
        try:
            warmed: WarmResult | EmbedServeError = answer.result(timeout_s=_ANSWER_S)
        except TimeoutError:
            raise Unavailable(f"No answer to {len(call)} texts in {_ANSWER_S:.0f} s.") from None
        if isinstance(warmed, Overloaded):
            time.sleep(warmed.retry_after_s)
            answer = handle.warm.remote(call, input_type)
        elif isinstance(warmed, EmbedServeError):
            raise warmed
        else:
            progress.advance(task, warmed.texts)
            return warmed.computed


def _read_texts(file: Path, field: str) -> Iterator[str]:
    """The file's texts, each looked at before it is given.

    Raises:
        ConfigurationError: the file can't be read, or a line has no text that can be embedded.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text(line, field, f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Can't read {file}: {error}") from None


def _text(line: str, field: str, where: str) -> str:
    try:
        given = json.loads(line)
        text = given.get(field) if isinstance(given, dict) else given
        validate_inputs([text], IngressSettings())
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{where} isn't JSON: {error}.") from None
    except InvalidRequest as error:
        fault = str(error).removeprefix("Text 0 ")
        what = f"`{field}`" if isinstance(given, dict) else "the text"
        raise ConfigurationError(f"{where}: {what} {fault}") from None
    return str(text)


def _stats(arguments: argparse.Namespace) -> int:
    reports = list(_broadcast(_connect(arguments.address), "cache_report"))
    if not reports:
        raise ConfigurationError("No service runs there.")
    if arguments.json:
        print(json.dumps([_as_json(*report) for report in reports], indent=2))
        return 0
    table = Table("process", "values", "MiB", "found", "not found", "found, %", "left for room")
    for application, deployment, report in reports:
        memory = report.memory
        _row(table, f"{application} {deployment}", memory)
        if report.store is not None:
            _row(table, f"{application} server ({report.state.kind})", report.store)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for application, deployment, report in reports:
        if report.state.state not in ("up", "off"):
            print(f"{application} {deployment}: the shared tier is down: {report.state.reason}")
    return 0


def _row(table: Table, name: str, held: Any) -> None:
    asked = held.hits + held.misses
    share = f"{100 * held.hits / asked:.1f}" if asked else "-"
    counts = [held.hits, held.misses]
    table.add_row(
        name,
        f"{held.entries:,}",
        f"{held.bytes / (1 << 20):,.1f}",
        *(f"{count:,}" for count in counts),
        share,
        f"{held.evictions:,}",
    )


def _as_json(application: str, deployment: str, report: CacheReport) -> dict[str, Any]:
    return {
        "application": application,
        "deployment": deployment,
        "memory": report.memory._asdict(),
        "shared": {
            **report.state._asdict(),
            "server": None if report.store is None else report.store._asdict(),
        },
    }


def _purge(arguments: argparse.Namespace) -> int:
    # From the engine's side up: a tier that is empty already can't be filled from one that isn't.
    purged = list(
        _broadcast(_connect(arguments.address), "purge_cache", arguments.model, tiers=_TIERS[::-1])
    )
    for _, _, answer in purged:
        if isinstance(answer, EmbedServeError):
            raise answer
    counts = [answer for _, _, answer in purged if answer is not None]
    if not counts:
        which = "runs there" if arguments.model is None else f"serves {arguments.model!r}"
        raise ConfigurationError(f"No service {which}.")
    print(f"{sum(counts)} values forgotten, those of all tiers counted.")
    return 0


def _broadcast(
    serve: Any, method: str, *args: Any, tiers: Sequence[str] = _TIERS
) -> Iterator[tuple[str, str, Any]]:
    """Calls a method of every replica of every tier of every service, and gives the answers."""
    for name, application in serve.status().applications.items():
        for deployment in tiers:
            if deployment not in application.deployments:
                continue
            handle = serve.get_deployment_handle(deployment, name)
            answers = handle.broadcast(method, *args).results(timeout_s=_ANSWER_S)
            yield from ((name, deployment, answer) for answer in answers)


def _connect(address: str) -> Any:
    """Ray Serve on a running cluster.

    Raises:
        ConfigurationError: there is none.
    """
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"No Ray cluster at {address!r} ({error}). Start the service first, on this machine "
            "or on one whose Ray cluster this machine is part of."
        ) from None
    return serve


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
