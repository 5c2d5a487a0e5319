"""The highest rate that keeps an objective, found by bisection: `embedserve bench capacity`."""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

from .bench import asked, measure, reachable
from .load import Plan
from .peers.base import PeerFailed
from .peers.embedserve import embedserve
from .peers.server import Server
from .record import line, record
from .target import Target
from .workloads import Workload

_CLOSE_ENOUGH = 1.05
_HEADROOM = 0.3
_FIRST_RATE = 20.0


def bisect(keeps: Callable[[float], bool], first: float) -> float:
    """The highest rate that keeps the objective, to within 5 %; 0 if a hundredth of `first` fails.

    Doubles or halves from `first` until one rate kept it and one didn't, then halves the gap
    between. Every answer is believed: a noisy machine gives a noisy result.

    Args:
        keeps: tries a rate, in requests/s; it must fail some rate in the end.
        first: the rate to begin with.
    """
    good, bad = 0.0, math.inf
    rate = first
    while not good or math.isinf(bad):
        if keeps(rate):
            good, rate = rate, rate * 2
        else:
            bad, rate = rate, rate / 2
        if bad < first / 100:
            return 0.0
    while bad / good > _CLOSE_ENOUGH:
        rate = math.sqrt(good * bad)
        if keeps(rate):
            good = rate
        else:
            bad = rate
    return good


def capacity_of_one(
    config: Path, workload: Workload, plan: Plan, *, slo_p99_ms: float, for_rate: float | None
) -> int:
    """Starts a configuration with one Embedder replica and finds what that one keeps."""
    with Server(embedserve("capacity", "one replica", 1, config)) as server:
        print("starting one replica", flush=True)
        try:
            server.wait_until_ready()
        except PeerFailed as error:
            print(f"embedserve: {error}", file=sys.stderr)
            return 1
        return capacity(
            server.target,
            workload,
            plan,
            slo_p99_ms=slo_p99_ms,
            for_rate=for_rate,
            one_replica=True,
        )


def capacity(
    target: Target,
    workload: Workload,
    plan: Plan,
    *,
    slo_p99_ms: float,
    for_rate: float | None,
    one_replica: bool = False,
) -> int:
    """Shows each rate that is tried, the highest that keeps the objective, and what follows.

    Returns:
        The command's exit status: 1 when the server isn't there or keeps it at no rate.
    """
    if not reachable(target):
        return 1
    tries = 0

    def keeps(rate: float) -> bool:
        nonlocal tries
        tries += 1
        # Another seed for each try: texts that were asked before would be answered by a cache.
        trial = dataclasses.replace(plan, rate=rate, seed=plan.seed + tries)
        outcome = measure(target, workload, trial)
        figures = outcome.summary()
        p99_ms = figures.get("p99_ms", math.inf)
        assert isinstance(p99_ms, float), "Percentiles are floats. This is a bug."
        kept = p99_ms <= slo_p99_ms and not outcome.failures
        limit = outcome.generator_is_the_limit()
        print(
            f"{rate:10.1f} requests/s   p99 {p99_ms:9.1f} ms   "
            f"{sum(outcome.failures.values())} failed   {'kept' if kept else 'not kept'}"
            + ("   (the generator is the limit)" if limit else ""),
            flush=True,
        )
        return kept and not limit

    best = bisect(keeps, _FIRST_RATE)
    figures: dict[str, float | int] = {"slo_p99_ms": slo_p99_ms, "capacity_per_s": round(best, 2)}
    if not best:
        print(f"No rate keeps p99 under {slo_p99_ms:g} ms.")
    else:
        what = "One replica" if one_replica else "What runs now"
        print(f"{what} keeps p99 under {slo_p99_ms:g} ms up to {best:.0f} requests/s.")
        if for_rate is not None:
            times = figures["times"] = math.ceil(for_rate * (1 + _HEADROOM) / best)
            print(
                f"{for_rate:g} requests/s, {_HEADROOM:.0%} to spare, need {times} times that. If "
                f"it was one replica, put into the Embedder's autoscaling_config:\n"
                f"  max_replicas: {times}"
            )
    print(line(record(asked(target, workload, plan), figures)))
    return 0 if best else 1
