"""One measured run against a running server: `embedserve bench run`."""

import dataclasses
import sys
from typing import Any

from .display import Display
from .load import Outcome, Plan, run_load
from .loop import run_async
from .record import make_record, save_record, to_json
from .target import Target
from .usage import Usage
from .workloads import Workload

_LABELS = {
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
    target: Target, workload: Workload, plan: Plan, *, save: bool, pid: int | None = None
) -> int:
    """Runs a plan, and prints its metrics and its record, the record as a line of JSON.

    Args:
        target: the server.
        workload: the requests.
        plan: the amount and duration of the load.
        save: append the record to the file of the day.
        pid: the server's root process, to measure the CPU and memory of its processes.

    Returns:
        The command's exit status: 1 if the server can't be reached or no request succeeded.
    """
    if not is_reachable(target):
        return 1
    load = f"{plan.connections} clients" if plan.rate is None else f"{plan.rate:g} requests/s"
    print(f"{workload.description}; {load}; {plan.duration_s:g} s", flush=True)
    usage = Usage(pid)
    outcome = measure(target, workload, plan)
    metrics = {**outcome.summary(), **usage.metrics()}
    for key, label in _LABELS.items():
        if key in metrics:
            print(f"{label:>13}  {metrics[key] or 0}")
    if metrics["generator_is_the_limit"]:
        print("The load generator limits these figures, not the server.")
    record = make_record(run_parameters(target, workload, plan), metrics)
    if save:
        print(f"saved to {save_record(record)}")
    print(to_json(record))
    return 0 if outcome.samples else 1


def run_parameters(target: Target, workload: Workload, plan: Plan) -> dict[str, Any]:
    """Returns the parameters of a run for its record."""
    return {"workload": workload.name, **target.describe(), **plan.describe()}


def is_reachable(target: Target) -> bool:
    """Whether the server accepts connections; if not, prints an error."""
    try:
        run_async(target.check_reachable())
    except OSError as error:
        print(f"embedserve: can't connect to {target.url}: {error}", file=sys.stderr)
        return False
    return True


def measure(
    target: Target, workload: Workload, plan: Plan, display: Display | None = None
) -> Outcome:
    """Runs a plan and shows its progress, on a new display if none is passed."""
    if display is None:
        with Display(plan.total_s) as display:
            return measure(target, workload, plan, display)
    display.start_step(f"{target.url}: {workload.description}")
    plan = dataclasses.replace(plan, shape=workload.shape)
    return run_async(run_load(target, workload.requests(plan.seed), plan, display.update))
