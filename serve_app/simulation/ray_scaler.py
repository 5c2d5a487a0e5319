"""Ray Serve's own policy, by calling Ray's code."""

import math
from collections import deque
from typing import Any

from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    default_autoscaling_policy,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.autoscale.policy import Decision
from serve_app.simulation.scalers import Observation


class RayScaler:
    """Ray's default policy, which counts requests.

    Ray's wrapper around a policy reads the wall clock, so its two steps are called one by one, with
    the simulated time. Handles report every `metrics_interval_s`; requests are not coalesced before
    they are counted, which shows Ray more of the load than the service does.
    """

    def __init__(self, **config: Any) -> None:
        """Takes the fields of Ray's `AutoscalingConfig`, with its defaults."""
        self._config = AutoscalingConfig(**config)
        self._samples = deque[tuple[float, float]]()
        self._reported: list[tuple[float, float]] = []
        self._reported_s = -math.inf
        self._state: dict[str, Any] = {}

    def decide(self, seen: Observation) -> Decision:
        """See `Scaler`."""
        requests = self._average_requests(seen)
        context = AutoscalingContext(
            deployment_id=DeploymentID("Embedder", "embedserve"),
            deployment_name="Embedder",
            app_name="embedserve",
            current_num_replicas=seen.running,
            target_num_replicas=seen.target,
            running_replicas=[],
            total_num_requests=requests,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=seen.bounds.min_replicas,
            capacity_adjusted_max_replicas=seen.bounds.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=seen.now_s,
            config=self._config,
        )
        desired, _ = default_autoscaling_policy(context)
        scaled = _apply_scaling_factors(desired, seen.running, self._config)
        replicas, self._state = _apply_delay_logic(
            max(0, scaled), seen.target, self._config, self._state, _now=seen.now_s
        )
        return Decision(seen.bounds.clip(replicas), f"{requests:.1f} requests")

    def _average_requests(self, seen: Observation) -> float:
        """Returns the mean over the look-back period, as of the latest report."""
        self._samples.append((seen.now_s, seen.ongoing_requests))
        while self._samples[0][0] <= seen.now_s - self._config.look_back_period_s:
            self._samples.popleft()
        if seen.now_s - self._reported_s >= self._config.metrics_interval_s:
            self._reported_s, self._reported = seen.now_s, list(self._samples)
        return sum(requests for _, requests in self._reported) / len(self._reported)
