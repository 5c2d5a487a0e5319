"""The policy as Ray Serve calls it: metrics of replicas → number of replicas."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from serve_app.autoscale.policy import Bounds, PolicyState, decide
from serve_app.scheduler.replica_load import ReplicaLoad

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger(__name__)

#: Older reports count as lost.
_MAX_REPORT_AGE_S = 5.0
_STATE_KEY = "embedserve"
#: Names of metrics without a lane, which count as interactive load.
_WITHOUT_LANE = {
    "queued_tokens": "queued_interactive_tokens",
    "offered_tokens_per_s": "offered_interactive_tokens_per_s",
}


class TokenPolicy:
    """Ray Serve autoscaling policy, set by `autoscaling_config.policy.policy_function`.

    It delays changes itself: set `upscale_delay_s` and `downscale_delay_s` to 0.
    """

    def __init__(self, **settings: Any) -> None:
        """Takes the fields of `PolicySettings`.

        Raises:
            ConfigurationError: a setting is unknown or not valid.
        """
        from serve_app.config import PolicySettings

        self._settings = PolicySettings.parse(settings)

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """Returns the desired number of replicas and the state for the next call."""
        state = (ctx.policy_state or {}).get(_STATE_KEY)
        now_s = time.time() if ctx.current_time is None else ctx.current_time
        min_replicas = ctx.capacity_adjusted_min_replicas
        if ctx.total_num_requests:  # on their way: the last replica stays
            min_replicas = max(min_replicas, 1)
        decision, state = decide(
            _latest_reports(ctx.raw_metrics or {}, now_s),
            running=ctx.current_num_replicas,
            target=ctx.target_num_replicas,
            bounds=Bounds(min_replicas, ctx.capacity_adjusted_max_replicas),
            now_s=now_s,
            state=state if isinstance(state, PolicyState) else PolicyState(),
            settings=self._settings,
        )
        if decision.replicas != ctx.target_num_replicas:
            logger.info(
                "%s: %d → %d replicas: %s",
                ctx.deployment_name,
                ctx.target_num_replicas,
                decision.replicas,
                decision.reason,
            )
        return decision.replicas, {_STATE_KEY: state}


def _latest_reports(
    raw_metrics: Mapping[str, Mapping[Any, Sequence[Any]]], now_s: float
) -> dict[str, ReplicaLoad]:
    """Returns the latest report of each replica, without old and implausible ones."""
    by_replica: dict[str, dict[str, float]] = {}
    for name, series in raw_metrics.items():
        for replica, samples in series.items():
            if samples and now_s - samples[-1].timestamp <= _MAX_REPORT_AGE_S:
                metrics = by_replica.setdefault(str(replica), {})
                metrics[_WITHOUT_LANE.get(name, name)] = samples[-1].value
    loads = {replica: ReplicaLoad.from_metrics(m) for replica, m in by_replica.items()}
    return {replica: load for replica, load in loads.items() if load is not None}
