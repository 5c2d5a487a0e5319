"""The policy as Ray Serve calls it: metrics of replicas → number of replicas."""

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from serve_app.autoscale.cluster_room import cluster_room
from serve_app.autoscale.decision_log import DecisionLog
from serve_app.autoscale.fleet_load import sum_reports
from serve_app.autoscale.latest_reports import LatestReports
from serve_app.autoscale.policy import Bounds, PolicyState, decide_for_fleet
from serve_app.autoscale.publisher import Publisher
from serve_app.errors import ConfigurationError

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_logger = logging.getLogger("ray.serve")

#: Ray calls the policy ten times per second. It decides once all replicas have sent a report since
#: the previous decision, but not more often, and not more rarely, than this.
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.5, 1.5
_STATE_KEY = "embedserve"


class TokenPolicy:
    """Ray Serve autoscaling policy, set by `autoscaling_config.policy.policy_function`.

    It delays changes itself: set `upscale_delay_s` and `downscale_delay_s` to 0.
    """

    def __init__(self, **settings: Any) -> None:
        """Takes the fields of `PolicySettings`.

        With settings that aren't valid, the number of replicas stays. Replicas that start report
        them: see `load_replica_engines`.
        """
        from serve_app.config import PolicySettings

        self._settings = PolicySettings()
        self._is_valid = True
        try:
            self._settings = PolicySettings.parse(settings)
        except ConfigurationError as error:  # Ray's control loop would end, for all deployments
            self._is_valid = False
            _logger.error("The number of replicas stays. %s", error)
        self._reports = LatestReports()
        self._log: DecisionLog | None = None
        self._publisher: Publisher | None = None
        self._fault = ""

    def __call__(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        """Returns the desired number of replicas and the state for the next call."""
        if not self._is_valid:
            return ctx.target_num_replicas, dict(ctx.policy_state or {})
        try:
            return self._decide(ctx)
        except Exception as error:  # Ray's control loop would end, for all deployments
            if repr(error) != self._fault:
                self._fault = repr(error)
                _logger.exception("The autoscaling policy failed; the target stays.")
            return ctx.target_num_replicas, dict(ctx.policy_state or {})

    def _decide(self, ctx: "AutoscalingContext") -> tuple[int, dict[str, Any]]:
        state = (ctx.policy_state or {}).get(_STATE_KEY)
        if not isinstance(state, PolicyState):
            state = PolicyState()
        now_s = time.time() if ctx.current_time is None else ctx.current_time
        bounds = self._bounds(ctx)
        if now_s - state.updated_s < _MIN_INTERVAL_S:
            return self._previous(ctx, bounds, state), {_STATE_KEY: state}
        reports = self._reports.update(ctx.raw_metrics or {}, now_s)
        waits = self._reports.earliest_arrival_s <= state.updated_s
        if reports and waits and now_s - state.updated_s < _MAX_INTERVAL_S:
            return self._previous(ctx, bounds, state), {_STATE_KEY: state}
        if not self._settings.cluster_grows:
            bounds = replace(bounds, room=cluster_room(ctx.deployment_id))
        new = self._reports.count_new(ctx.running_replicas, now_s)
        load = sum_reports(reports, ctx.current_num_replicas, new)
        decision, state = decide_for_fleet(
            load,
            target=ctx.target_num_replicas,
            bounds=bounds,
            now_s=now_s,
            state=state,
            settings=self._settings,
        )
        if self._log is None or self._publisher is None:
            settings = self._settings.model_dump(exclude_none=True)
            self._log = DecisionLog(ctx.deployment_name, settings)
            self._publisher = Publisher(ctx.app_name or "", ctx.deployment_name)
        record = self._log.add(
            decision,
            load,
            target=ctx.target_num_replicas,
            bounds=bounds,
            arrivals=state.interactive.ahead(load.startup_s or self._settings.default_startup_s),
            now_s=now_s,
        )
        self._publisher.publish(record)
        return decision.replicas, {_STATE_KEY: state}

    def _bounds(self, ctx: "AutoscalingContext") -> Bounds:
        min_replicas = ctx.capacity_adjusted_min_replicas
        if ctx.total_num_requests:  # on their way: the last replica stays
            min_replicas = max(min_replicas, 1)
        return Bounds(min_replicas, ctx.capacity_adjusted_max_replicas)

    def _previous(self, ctx: "AutoscalingContext", bounds: Bounds, state: PolicyState) -> int:
        return bounds.clip(ctx.target_num_replicas if state.replicas is None else state.replicas)
