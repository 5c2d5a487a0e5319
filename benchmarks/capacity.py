"""The highest rate that meets a latency objective, found by bisection: `bench capacity`."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

from .bench import is_reachable, measure, run_parameters
from .load import Plan
from .peers.base import Peer, PeerError
from .peers.embedserve import embedserve_peer
from .peers.server import ServerProcess
from .record import make_record, to_json
from .target import Target
from .workloads import Workload

_TOLERANCE = 1.05
_HEADROOM = 0.3
_FIRST_RATE = 20.0


def highest_passing_rate(passes: Callable[[float], bool], first_rate: float) -> float:
    """Returns the highest rate that passes, within 5 %; 0 if a hundredth of `first_rate` fails.

    Doubles or halves `first_rate` until one rate has passed and a higher one has failed, then
    bisects between the two. No rate is repeated: on a noisy machine the result is noisy.

    Args:
        passes: tries a rate in requests/s; it must fail for some rate.
        first_rate: the first rate to try.
    """
    passed, failed = 0.0, math.inf
    rate = first_rate
    while not passed or math.isinf(failed):
        if passes(rate):
            passed, rate = rate, rate * 2
        else:
            failed, rate = rate, rate / 2
        if failed < first_rate / 100:
            return 0.0
    while failed / passed > _TOLERANCE:
        rate = math.sqrt(passed * failed)
        if passes(rate):
            passed = rate
        else:
            failed = rate
    return passed


def replica_capacity(
    config: Path,
    workload: Workload,
    plan: Plan,
    *,
    slo_p99_ms: float,
    target_rate: float | None,
    make_peer: Callable[[str, str, int, Path], Peer] = embedserve_peer,
) -> int:
    """Starts a configuration with one Embedder replica and measures its capacity.

    Returns:
        The command's exit status, see `capacity`; 1 if the service doesn't start.
    """
    with ServerProcess(make_peer("capacity", "one replica", 1, config)) as server:
        print("starting one replica", flush=True)
        try:
            server.wait_until_ready()
        except PeerError as error:
            print(f"embedserve: {error}", file=sys.stderr)
            return 1
        return capacity(
            server.target,
            workload,
            plan,
            slo_p99_ms=slo_p99_ms,
            target_rate=target_rate,
            one_replica=True,
        )


def capacity(
    target: Target,
    workload: Workload,
    plan: Plan,
    *,
    slo_p99_ms: float,
    target_rate: float | None,
    one_replica: bool = False,
) -> int:
    """Prints each rate that is tried, the capacity, and the replicas for `target_rate`.

    Returns:
        The command's exit status: 1 if the server can't be reached, or no rate meets the SLO.
    """
    if not is_reachable(target):
        return 1
    trials = 0

    def meets_slo(rate: float) -> bool:
        nonlocal trials
        trials += 1
        # A new seed for each trial: a cache would answer texts of an earlier one.
        outcome = measure(
            target, workload, dataclasses.replace(plan, rate=rate, seed=plan.seed + trials)
        )
        p99_ms = outcome.summary().get("p99_ms", math.inf)
        assert isinstance(p99_ms, float), "Percentiles are floats. This is a bug."
        is_met = p99_ms <= slo_p99_ms and not outcome.failures
        is_limited = outcome.generator_is_the_limit()
        print(
            f"{rate:10.1f} requests/s   p99 {p99_ms:9.1f} ms   "
            f"{sum(outcome.failures.values())} failed   {'met' if is_met else 'not met'}"
            + ("   (limited by the load generator)" if is_limited else ""),
            flush=True,
        )
        return is_met and not is_limited

    rate = highest_passing_rate(meets_slo, _FIRST_RATE)
    metrics: dict[str, float | int] = {"slo_p99_ms": slo_p99_ms, "capacity_per_s": round(rate, 2)}
    if not rate:
        print(f"At no rate is p99 at most {slo_p99_ms:g} ms.")
    else:
        subject = "One replica" if one_replica else "The running service"
        print(f"{subject} keeps p99 at or below {slo_p99_ms:g} ms up to {rate:.0f} requests/s.")
        if target_rate is not None:
            factor = metrics["scale_factor"] = math.ceil(target_rate * (1 + _HEADROOM) / rate)
            print(
                f"{target_rate:g} requests/s with {_HEADROOM:.0%} headroom need {factor} times "
                "that capacity. If one replica was measured, set in the Embedder's "
                f"autoscaling_config:\n  max_replicas: {factor}"
            )
    print(to_json(make_record(run_parameters(target, workload, plan), metrics)))
    return 0 if rate else 1
