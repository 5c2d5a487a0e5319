"""One measured run against a server that is up: what `embedserve bench run` does."""

import dataclasses
import sys
from typing import Any

from .display import Display
from .load import Outcome, Plan, run
from .loop import run_async
from .record import keep, line, record
from .target import Target
from .usage import Usage
from .workloads import Workload

_SHOWN = {
    "requests_per_s": "requests/s",
    "texts_per_s": "texts/s",
    "tokens_per_s": "tokens/s",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "answered": "answered",
    "failed": "failed",
    "server_cpu": "server, cores",
    "rss_mib": "server, MiB",
    "replicas": "replicas",
}


def bench(
    target: Target, workload: Workload, plan: Plan, *, keep_record: bool, pid: int | None = None
) -> int:
    """Runs a plan, shows its figures, ends with its record as one line of JSON.

    Args:
        target: the server.
        workload: what it is asked.
        plan: how much, for how long.
        keep_record: append the record to the file of the day.
        pid: the server's first process, to tell what the server costs.

    Returns:
        The command's exit status: 1 when the server isn't there or answered nothing.
    """
    if not reachable(target):
        return 1
    load = f"{plan.connections} clients" if plan.rate is None else f"{plan.rate:g} requests/s"
    print(f"{workload.description}; {load}; {plan.duration_s:g} s", flush=True)
    usage = Usage(pid)
    outcome = measure(target, workload, plan)
    figures = {**outcome.summary(), **usage.figures()}
    for key, title in _SHOWN.items():
        if key in figures:
            print(f"{title:>13}  {figures[key] or 0}")
    if figures["generator_is_the_limit"]:
        print("These figures are the generator's own limit, not the server's.")
    entry = record(asked(target, workload, plan), figures)
    if keep_record:
        print(f"kept in {keep(entry)}")
    print(line(entry))
    return 0 if outcome.latencies else 1


def asked(target: Target, workload: Workload, plan: Plan) -> dict[str, Any]:
    """What a record tells of a run before its figures."""
    return {"workload": workload.name, **target.describe(), **plan.describe()}


def reachable(target: Target) -> bool:
    """Whether something listens there; says so when not."""
    try:
        run_async(target.knock())
    except OSError as error:
        print(f"embedserve: nothing answers at {target.url}: {error}", file=sys.stderr)
        return False
    return True


def measure(
    target: Target, workload: Workload, plan: Plan, display: Display | None = None
) -> Outcome:
    """Runs a plan and shows it while it goes on; without a display, on one of its own."""
    if display is None:
        with Display(plan.seconds) as display:
            return measure(target, workload, plan, display)
    display.doing(f"{target.url}: {workload.description}")
    shaped = dataclasses.replace(plan, shape=workload.shape)
    return run_async(run(target, workload.requests(plan.seed), shaped, display.pulse))
