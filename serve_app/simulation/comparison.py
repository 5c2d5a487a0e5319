"""Policies next to each other, on the same traces and the same service."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.config import PolicySettings
from serve_app.simulation.oracle import simulate_oracle
from serve_app.simulation.ray_scaler import RayScaler
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.scalers import FixedScaler, TokenScaler
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

#: Ray's policy with faster reports and shorter delays, chosen by hand. `compare` doesn't search.
RAY_TUNED = {
    "target_ongoing_requests": 1.5,
    "metrics_interval_s": 1,
    "look_back_period_s": 10,
    "upscale_delay_s": 2,
    "downscale_delay_s": 60,
    "downscaling_factor": 0.3,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace with one policy."""

    trace: str
    policy: str
    result: SimulationResult


def compare(
    trace: Trace,
    service: SimulatedService,
    settings: PolicySettings | None = None,
    *,
    seed: int = 0,
) -> list[Comparison]:
    """Returns the results of all policies on a trace, ours first.

    All start with the replicas that the first ten seconds need. Ray's policies have Ray's router,
    the others send to the replica with the least tokens. The fixed number is the largest that the
    oracle uses.
    """
    settings = settings or PolicySettings()
    bounds = service.bounds
    first = trace.tokens_per_second("interactive")[:10].mean() * (1 + settings.headroom)
    service = replace(
        service, initial_replicas=max(math.ceil(first / service.capacity_tokens_per_s), 1)
    )
    ray = replace(service, router="power_of_two")
    limits = {"min_replicas": bounds.min_replicas, "max_replicas": bounds.max_replicas}
    oracle = simulate_oracle(
        trace,
        service,
        target_queue_s=settings.target_queue_s,
        bulk_drain_target_s=settings.bulk_drain_target_s,
        seed=seed,
    )
    most = int(oracle.timeline.target.max())
    fixed = replace(service, initial_replicas=most)
    results = {
        "tokens": simulate(trace, service, TokenScaler(settings), seed=seed),
        "tokens, Ray's router": simulate(trace, ray, TokenScaler(settings), seed=seed),
        "Ray's default": simulate(trace, ray, RayScaler(**limits), seed=seed),
        "Ray's, tuned": simulate(trace, ray, RayScaler(**limits, **RAY_TUNED), seed=seed),
        f"fixed: {most}": simulate(trace, fixed, FixedScaler(most), seed=seed),
        "oracle": oracle,
    }
    return [Comparison(trace.name, policy, result) for policy, result in results.items()]


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Returns a table with a row for each trace and policy."""
    lines = [
        "| trace | policy | interactive p50 | p95 | p99 | bulk p50 | p95 | p99 | replica-hours | "
        "most | changes | refused |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in comparisons:
        result, cells = item.result, [item.trace, item.policy]
        for waiting in result.waiting.values():
            cells += [f"{s:.3g} s" for s in (waiting.p50, waiting.p95, waiting.p99)]
        cells += [f"{result.replica_hours:.2f}", str(int(result.timeline.target.max()))]
        cells += [str(result.changes), str(result.refused_texts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
