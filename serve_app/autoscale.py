"""How many Embedder replicas the load asks for.

Ray's own measure counts requests, and a request may hold one text or two thousand; tokens are
what an engine spends its time on. Each replica reports its `Load` every second; Ray averages
the reports and applies delays and bounds around what is decided here.
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
    """Replicas that keep up with what arrives, keep `headroom` free, and empty the queue in time.

    Args:
        offered_tokens_per_s: tokens that arrive, all replicas together.
        queued_tokens: tokens that wait, all replicas together.
        capacity_tokens_per_s: what one busy replica computes.
        headroom: share of capacity to keep free, 0.3 for 30 %.
        drain_target_s: time in which the waiting tokens should be gone.

    Returns:
        The number, at least 0, without bounds; None while no speed was measured yet.
    """
    if capacity_tokens_per_s <= 0:
        return None
    needed = offered_tokens_per_s * (1 + headroom) + queued_tokens / drain_target_s
    return math.ceil(needed / capacity_tokens_per_s)


class TokenPolicy:
    """Ray Serve autoscaling policy; name it in `autoscaling_config.policy.policy_function`."""

    def __init__(self, headroom: float = 0.3, drain_target_s: float = 2.0) -> None:
        self._headroom = headroom
        self._drain_target_s = drain_target_s

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted now, and no state to keep."""
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
