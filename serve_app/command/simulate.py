"""`embedserve simulate`: what autoscaling costs and keeps, without a service."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from serve_app.command.simulated_deployment import (
    SimulatedDeployment,
    add_deployment_arguments,
    read_deployment,
)
from serve_app.errors import ConfigurationError
from serve_app.simulation.comparison import POLICIES, Comparison, Scenario, simulate_policies
from serve_app.simulation.fluid import MAX_EXACT_TEXTS, RateTrace
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.sample_traces import SAMPLE_TRACES
from serve_app.simulation.trace import Trace, read_trace, write_trace

_BARS = " ▁▂▃▄▅▆▇█"
_SPARKLINE_WIDTH = 32
#: All but the oracle, which takes as long as the others together.
_DEFAULT_POLICIES = "tokens,ray,ray-tuned"


def add_commands(commands: Any) -> None:
    """Adds `simulate` to the parser."""
    simulate = commands.add_parser(
        "simulate",
        help="simulate autoscaling on a trace of requests",
        description="Simulate the replicas of a deployment on a trace: how long texts wait, and\n"
        "how many replicas run, with the policy and the batch packing of the service.\n"
        "Policies are compared on the same arrivals.",
        epilog="examples:\n"
        "  embedserve simulate spike --cost 0.015,0.0003 --max-replicas 20\n"
        "  embedserve simulate access.csv --config my.yaml --policy tokens,fixed:6,oracle\n"
        "  embedserve simulate steady --scale 8000 --cost 0.002,0.00001 --max-replicas 1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_argument(
        "trace",
        metavar="TRACE",
        help=f"a CSV file with lines `timestamp, tokens[, lane]`, - for stdin, or a sample: "
        f"{', '.join(SAMPLE_TRACES)}",
    )
    add_deployment_arguments(simulate)
    simulate.add_argument(
        "--policy",
        default=_DEFAULT_POLICIES,
        metavar="LIST",
        help=f"policies, separated by commas: {', '.join(POLICIES)}, or fixed:N for N replicas at "
        f"all times (default: {_DEFAULT_POLICIES})",
    )
    simulate.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="multiply the requests; more than five million texts are simulated as a fluid, with "
        "a rate for each second",
    )
    simulate.add_argument(
        "--seed", type=int, default=1, help="of samples, and of the router's choices (default: 1)"
    )
    simulate.add_argument("--plot", type=Path, metavar="FILE", help="draw the result (PNG or SVG)")
    simulate.add_argument(
        "--save-trace", type=Path, metavar="FILE", help="write the trace as a CSV file as well"
    )
    simulate.add_argument("--json", action="store_true", help="print JSON")
    simulate.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    deployment = read_deployment(arguments)
    try:
        scenario = _scenario(arguments, deployment)
        if arguments.save_trace:
            _save(scenario.trace, arguments.save_trace)
        comparisons = _run(scenario, [name.strip() for name in arguments.policy.split(",")])
    except (OSError, ValueError) as error:
        raise ConfigurationError(str(error)) from None
    if arguments.plot:
        _plot(comparisons, scenario, arguments.plot)
    if arguments.json:
        print(json.dumps(_as_json(scenario, comparisons), indent=2))
    else:
        _print(deployment, scenario, comparisons)
    return 0


def _scenario(arguments: argparse.Namespace, deployment: SimulatedDeployment) -> Scenario:
    trace = _read(arguments.trace, arguments.seed)
    source: Trace | RateTrace = trace
    if not arguments.scale > 0:
        raise ValueError("--scale must be above 0.")
    if trace.tokens.size * arguments.scale > MAX_EXACT_TEXTS:
        source = RateTrace.of(trace).scaled(arguments.scale)
    elif arguments.scale != 1:
        source = trace.scaled(arguments.scale, seed=arguments.seed)
    return Scenario.starting_with_need(
        source, deployment.service, deployment.policy, seed=arguments.seed
    )


def _read(name: str, seed: int) -> Trace:
    if name == "-":
        return read_trace(sys.stdin, "stdin")
    path = Path(name)
    if name in SAMPLE_TRACES and not path.is_file():
        return SAMPLE_TRACES[name](seed)
    if not path.is_file():
        raise ValueError(
            f"There is no file {name}, and no sample of this name. Samples: "
            f"{', '.join(SAMPLE_TRACES)}."
        )
    with path.open(encoding="utf-8", newline="") as file:
        return replace(read_trace(file, name), name=path.stem)


def _save(trace: Trace | RateTrace, path: Path) -> None:
    if isinstance(trace, RateTrace):
        raise ValueError("The trace has too many texts to write it: leave out --save-trace.")
    with path.open("w", encoding="utf-8") as file:
        write_trace(trace, file)


def _run(scenario: Scenario, policies: Sequence[str]) -> list[Comparison]:
    """Simulates the policies, with a line of progress on a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"{scenario.trace.name}: {policies[0]}")
        results = []
        for following, comparison in zip(
            [*policies[1:], ""], simulate_policies(scenario, policies), strict=True
        ):
            results.append(comparison)
            progress.update(task, description=f"{scenario.trace.name}: {following}")
    return results


def _plot(comparisons: Sequence[Comparison], scenario: Scenario, path: Path) -> None:
    try:
        from serve_app.simulation.plot import plot_comparisons
    except ModuleNotFoundError:
        raise ConfigurationError(
            "--plot needs matplotlib: pip install 'embedserve[bench]'"
        ) from None
    target_queue_s = scenario.settings.target_queue_s
    plot_comparisons(comparisons, scenario.service, path, target_queue_s=target_queue_s)


def _print(
    deployment: SimulatedDeployment, scenario: Scenario, comparisons: Sequence[Comparison]
) -> None:
    service = scenario.service
    console = Console(width=None if sys.stdout.isatty() else 160)
    kind = "as a fluid, " if isinstance(scenario.trace, RateTrace) else ""
    console.print(
        f"{scenario.trace.name}, simulated {kind}with the settings of {deployment.name}: "
        f"{service.bounds.min_replicas} to {service.bounds.max_replicas} replicas of "
        f"{service.capacity_tokens_per_s:,.0f} tokens/s, ready after {service.startup_s:g} s",
        highlight=False,
    )
    has_bulk = any(item.result.waiting["bulk"].p99 > 0 for item in comparisons)
    lanes = ("interactive", "bulk") if has_bulk else ("interactive",)
    table = Table()
    table.add_column("policy")
    for lane in lanes:
        for percentile in ("p50", "p95", "p99"):
            name = f"{lane}\n{percentile}" if percentile == "p50" else f"\n{percentile}"
            table.add_column(name, justify="right")
    table.add_column("replica-\nhours", justify="right")
    table.add_column("replicas over time", min_width=_SPARKLINE_WIDTH)
    table.add_column("most", justify="right")
    table.add_column("changes", justify="right")
    table.add_column("refused", justify="right")
    most = max(int(item.result.timeline.running.max()) for item in comparisons)
    for item in comparisons:
        result = item.result
        waits = [result.waiting[lane] for lane in lanes]  # type: ignore[index]
        table.add_row(
            item.policy,
            *(_duration(s) for wait in waits for s in (wait.p50, wait.p95, wait.p99)),
            f"{result.replica_hours:,.2f}",
            _sparkline(result, most),
            f"{int(result.timeline.target.max()):,}",
            f"{result.changes:,}",
            f"{result.refused_texts:,}",
        )
    console.print(table)


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _sparkline(result: SimulationResult, most: int) -> str:
    """Returns the largest number of running replicas of each part of the time."""
    running = result.timeline.running
    width = min(_SPARKLINE_WIDTH, running.size)
    edges = [running.size * i // width for i in range(width + 1)]
    peaks = [int(running[a:b].max()) for a, b in pairwise(edges)]
    return "".join(_BARS[-(-peak * (len(_BARS) - 1) // max(most, 1))] for peak in peaks)


def _as_json(scenario: Scenario, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "trace": scenario.trace.name,
        "fluid": isinstance(scenario.trace, RateTrace),
        "capacity_tokens_per_s": scenario.service.capacity_tokens_per_s,
        "policies": [
            {
                "policy": item.policy,
                "waiting_s": {
                    lane: {"p50": waiting.p50, "p95": waiting.p95, "p99": waiting.p99}
                    for lane, waiting in item.result.waiting.items()
                },
                "replica_hours": item.result.replica_hours,
                "refused_texts": item.result.refused_texts,
                "replicas": item.result.timeline.running.tolist(),
                "changes": [
                    {"at_s": at_s, "replicas": replicas, "reason": reason}
                    for at_s, replicas, reason in item.result.reasons
                ],
            }
            for item in comparisons
        ],
    }
