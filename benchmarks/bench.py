"""One measured run against a server that is up: what `embedserve bench` does."""

import asyncio
import dataclasses
import sys
from typing import Any

from benchmarks.connection import Connection
from benchmarks.load import Plan, Progress, run
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
        0, or 1 when the server isn't there or answered nothing.
    """
    with asyncio.Runner(loop_factory=_fastest_loop) as runner:
        try:
            runner.run(_reach(target))
        except OSError as error:
            print(f"embedserve: nothing answers at {target.url}: {error}", file=sys.stderr)
            return 1
        print(
            f"{WORKLOADS[workload].description}; {_load(plan)}; {plan.duration_s:g} s", flush=True
        )
        requests = WORKLOADS[workload].requests(plan.seed)
        outcome = runner.run(run(target, requests, plan, _progress(plan)))
    figures = outcome.summary()
    _show(figures)
    asked = {"workload": workload, **dataclasses.asdict(target), **dataclasses.asdict(plan)}
    entry = record(asked, figures)
    if keep_record:
        print(f"kept in {keep(entry)}")
    print(line(entry))
    return 0 if outcome.latencies else 1


def _fastest_loop() -> asyncio.AbstractEventLoop:
    """Uvloop's where there is one (Ray Serve brings it on Linux and macOS), else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _reach(target: Target) -> None:
    connection = await Connection.open(target.address)
    connection.close()


def _load(plan: Plan) -> str:
    if plan.rate is None:
        return f"{plan.connections} clients, each asks again when it is answered"
    return f"{plan.rate:g} requests/s, answered or not"


def _progress(plan: Plan) -> Progress | None:
    if not sys.stderr.isatty():
        return None
    whole = plan.warmup_s + plan.duration_s

    def show(gone_s: float, answered: int, failed: int) -> None:
        left = max(0.0, whole - gone_s)
        sys.stderr.write(f"\r{left:4.0f} s left, {answered} answered, {failed} failed \x1b[K")
        sys.stderr.flush()

    return show


def _show(figures: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    for key, title in _SHOWN.items():
        if key in figures:
            print(f"{title:>12}  {figures[key] or 0}")
    if figures["generator_is_the_limit"]:
        print("These figures are the generator's own limit, not the server's.")
