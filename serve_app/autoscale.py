"""Autoscaling of Embedder replicas by tokens: load samples → desired number of replicas.

Ray's built-in metric counts requests, but a request may hold one text or two thousand, and the
compute time grows with tokens. Each replica reports a `LoadSample` every second. Ray averages them
and applies delays and bounds to the policy's result.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


def desired_replicas(
    *,
    offered_tokens_per_s: float,
    queued_tokens: float,
    capacity_tokens_per_s: float,
    headroom: float,
    drain_target_s: float,
) -> int | None:
    """Returns the number of replicas that keep up with arrivals and drain the queue in time.

    Args:
        offered_tokens_per_s: arrival rate over all replicas.
        queued_tokens: queue length over all replicas.
        capacity_tokens_per_s: speed of one busy replica; 0 before the first measurement.
        headroom: spare capacity relative to the arrival rate, 0.3 for 30 %.
        drain_target_s: time in which the queue should drain.

    Returns:
        At least 0, unbounded above; None before the first measurement of the speed.
    """
    if capacity_tokens_per_s <= 0:
        return None
    required_tokens_per_s = offered_tokens_per_s * (1 + headroom) + queued_tokens / drain_target_s
    return math.ceil(required_tokens_per_s / capacity_tokens_per_s)


class TokenPolicy:
    """Ray Serve autoscaling policy, set by `autoscaling_config.policy.policy_function`."""

    def __init__(self, headroom: float = 0.3, drain_target_s: float = 2.0) -> None:
        self._headroom = headroom
        self._drain_target_s = drain_target_s

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """Returns the desired number of replicas and an empty policy state."""
        metrics: Mapping[str, Mapping[Any, float]] = ctx.aggregated_metrics or {}
        speeds = [s for s in metrics.get("capacity_tokens_per_s", {}).values() if s > 0]
        desired = desired_replicas(
            offered_tokens_per_s=sum(metrics.get("offered_tokens_per_s", {}).values()),
            queued_tokens=sum(metrics.get("queued_tokens", {}).values()),
            capacity_tokens_per_s=sum(speeds) / len(speeds) if speeds else 0.0,
            headroom=self._headroom,
            drain_target_s=self._drain_target_s,
        )
        return ctx.target_num_replicas if desired is None else desired, {}
