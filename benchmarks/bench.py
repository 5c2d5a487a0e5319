"""One measured run against a server that is up: what `embedserve bench run` does."""

import dataclasses
import sys
from typing import Any

from benchmarks.connection import Connection
from benchmarks.load import Outcome, Plan, Progress, run
from benchmarks.loop import run_async
from benchmarks.record import keep, line, record
from benchmarks.target import Target
from benchmarks.workloads import WORKLOADS

_SHOWN = {
    "requests_per_s": "requests/s",
    "texts_per_s": "texts/s",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "max_ms": "max ms",
    "answered": "answered",
    "failed": "failed",
}


def bench(target: Target, workload: str, plan: Plan, *, keep_record: bool) -> int:
    """Runs a plan, shows its figures, ends with its record as one line of JSON.

    Returns:
        The command's exit status: 1 when the server isn't there or answered nothing.
    """
    if not reachable(target):
        return 1
    load = f"{plan.connections} clients" if plan.rate is None else f"{plan.rate:g} requests/s"
    print(f"{WORKLOADS[workload].description}; {load}; {plan.duration_s:g} s", flush=True)
    outcome = measure(target, workload, plan)
    figures = outcome.summary()
    for key, title in _SHOWN.items():
        if key in figures:
            print(f"{title:>12}  {figures[key] or 0}")
    if figures["generator_is_the_limit"]:
        print("These figures are the generator's own limit, not the server's.")
    asked = {"workload": workload, **dataclasses.asdict(target), **dataclasses.asdict(plan)}
    entry = record(asked, figures)
    if keep_record:
        print(f"kept in {keep(entry)}")
    print(line(entry))
    return 0 if outcome.latencies else 1


def reachable(target: Target) -> bool:
    """Whether something listens there; says so when not."""
    try:
        run_async(_knock(target))
    except OSError as error:
        print(f"embedserve: nothing answers at {target.url}: {error}", file=sys.stderr)
        return False
    return True


def measure(target: Target, workload: str, plan: Plan) -> Outcome:
    """Runs a plan with a line of progress on a terminal."""
    requests = WORKLOADS[workload].requests(plan.seed)
    outcome = run_async(run(target, requests, plan, _progress(plan)))
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return outcome


async def _knock(target: Target) -> None:
    connection = await Connection.open(target.address)
    connection.close()


def _progress(plan: Plan) -> Progress | None:
    if not sys.stderr.isatty():
        return None
    whole = plan.warmup_s + plan.duration_s

    def show(gone_s: float, answered: int, failed: int) -> Any:
        left = max(0.0, whole - gone_s)
        sys.stderr.write(f"\r{left:4.0f} s left, {answered} answered, {failed} failed \x1b[K")
        sys.stderr.flush()

    return show
