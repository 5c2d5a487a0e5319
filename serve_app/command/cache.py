"""`embedserve cache`: warm, inspect and purge the caches of running services."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.cache.report import (
    CacheReport,
    MemoryStats,
    ModelCacheStats,
    StoreStats,
)
from serve_app.command import cache_warm
from serve_app.command.cluster import add_address_argument, connect
from serve_app.errors import (
    ConfigurationError,
    EmbedServeError,
)

_CALL_TIMEOUT_S = 300.0
#: Deployments with a cache, from the client's side to the engine's.
_CACHING_DEPLOYMENTS = ("Ingress", "EmbedServer", "CacheLookup")


def add_commands(commands: Any) -> None:
    """Adds `cache` and its subcommands to the parser."""
    cache = commands.add_parser(
        "cache",
        help="warm, inspect or purge the cache of a running service",
        description="Warm, inspect or purge the cache of a service that runs on this machine's Ray "
        "cluster. `warm` fills that of any service, with --url.",
    )
    subcommands = cache.add_subparsers(required=True, metavar="COMMAND")

    cache_warm.add_command(subcommands)

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

    for subcommand in (stats, purge):
        add_address_argument(subcommand)


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
