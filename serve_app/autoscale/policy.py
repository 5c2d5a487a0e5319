"""The number of replicas, as a pure function of their reports.

Up at once, down slowly: the target rises whenever the load needs more replicas than there are. It
falls by one replica at a time, once no second of the last `downscale_delay_s` has needed the last
replica, and then every `downscale_interval_s` at most.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from serve_app.autoscale.arrival_rate import ArrivalRate
from serve_app.autoscale.fleet_load import FleetLoad, sum_reports
from serve_app.scheduler.replica_load import ReplicaLoad

if TYPE_CHECKING:  # Ray's controller imports this module
    from serve_app.config import PolicySettings

#: Reports come every second.
_MIN_INTERVAL_S = 0.5
#: The largest need of each of these intervals is remembered.
_NEED_BUCKET_S = 5.0
#: Bulk texts that have waited for some time alternate with interactive ones.
_SHARE_WITH_BULK = 0.5
#: A replica stays if fluctuations of the arrivals of this size would start it again.
_MARGIN_DEVIATIONS = 3.0
#: With reports of fewer replicas, the target doesn't fall.
_MIN_REPORTED = 0.8


#: What asks for replicas.
Term = Literal["arrivals", "queue", "bulk", "objective"]
#: What decides: a term, a bound, a rule that keeps replicas, or missing reports.
DecidedBy = Literal[Term, "bounds", "downscale", "reports"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of the number of replicas."""

    min_replicas: int = 1
    max_replicas: int = 1
    #: Replicas that the cluster has resources for; None: unknown, or more nodes are added.
    room: int | None = None

    def clip(self, replicas: int) -> int:
        """Returns the nearest allowed number, whatever the room."""
        return max(self.min_replicas, min(replicas, self.max_replicas))


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the policy remembers. Empty after a restart of the controller."""

    interactive: ArrivalRate = field(default_factory=ArrivalRate)
    started_s: float | None = None  #: time of the first decision
    updated_s: float = -math.inf
    replicas: int | None = None  #: the previous decision
    last_up_s: float = -math.inf
    last_down_s: float = -math.inf
    late_reports: int = 0  #: consecutive ones with a violated objective
    needs: tuple[tuple[float, int], ...] = ()  #: start of an interval, its largest need
    last_text_s: float = -math.inf  #: time of the last report with a text, or without any report


@dataclass(frozen=True, slots=True)
class Decision:
    """A number of replicas and why."""

    replicas: int
    reason: str
    decided_by: DecidedBy = "reports"
    needs: Mapping[Term, int] = field(default_factory=dict)  #: what each term asks for


def decide(
    reports: Mapping[str, ReplicaLoad],
    *,
    running: int,
    target: int,
    bounds: Bounds,
    now_s: float,
    state: PolicyState,
    settings: "PolicySettings",
) -> tuple[Decision, PolicyState]:
    """Returns the number of replicas and the state for the next decision.

    Args:
        reports: by replica, those of the last seconds.
        running: replicas that are ready.
        target: replicas that the previous decision has asked for.
        bounds: limits of the number of replicas.
        now_s: the current time.
        state: of the previous decision; an empty one after a restart.
        settings: what to achieve.
    """
    load = sum_reports(reports, running)
    return decide_for_fleet(
        load, target=target, bounds=bounds, now_s=now_s, state=state, settings=settings
    )


def decide_for_fleet(
    load: FleetLoad,
    *,
    target: int,
    bounds: Bounds,
    now_s: float,
    state: PolicyState,
    settings: "PolicySettings",
) -> tuple[Decision, PolicyState]:
    """Returns the decision for a load that is already summed; see `decide`."""
    if now_s - state.updated_s < _MIN_INTERVAL_S:
        previous = target if state.replicas is None else state.replicas
        return Decision(bounds.clip(previous), "no new reports"), state
    state = replace(
        state,
        updated_s=now_s,
        started_s=now_s if state.started_s is None else state.started_s,
    )
    if not load.reported or not load.is_idle or state.last_text_s == -math.inf:
        state = replace(state, last_text_s=now_s)
    if not load.reported or (target == 0 and load.is_idle):
        reason = "no reports" if target else "no text has come since it scaled to zero"
        decision = Decision(bounds.clip(target), reason)
        return decision, replace(state, replicas=decision.replicas)
    rate = state.interactive.updated(load.offered_interactive_tokens_per_s, now_s)
    is_late = load.oldest_interactive_s > settings.target_queue_s
    state = replace(state, interactive=rate, late_reports=state.late_reports + 1 if is_late else 0)
    if load.capacity_tokens_per_s <= 0:
        need = _need_without_capacity(load, target, state, settings, now_s)
    else:
        need = _need(load, target, state, settings, now_s)
    need = _with_standby(need, settings)
    kept = max(need.replicas, _kept_by_margin(load, state, settings))
    state = replace(state, needs=_remember(state.needs, kept, now_s, settings.downscale_delay_s))
    decision, state = _apply(need, load, target, bounds, state, settings, now_s)
    return decision, replace(state, replicas=decision.replicas)


def _need(
    load: FleetLoad, target: int, state: PolicyState, settings: "PolicySettings", now_s: float
) -> Decision:
    """Returns how many replicas the load needs now, before bounds and delays."""
    capacity, startup_s = load.capacity_tokens_per_s, load.startup_s or settings.default_startup_s
    arrivals = state.interactive.ahead(startup_s)
    queue = _queue_ahead(load, target, arrivals, startup_s)
    by_arrivals = arrivals * max(1 + settings.headroom, 1 / _interactive_share(load)) / capacity
    by_queue = (arrivals + queue / settings.drain_target_s) / capacity
    # Bulk texts use the headroom of the interactive ones.
    bulk = (arrivals + load.queued_bulk_tokens / settings.bulk_drain_target_s) / capacity
    by_bulk = _whole(bulk) if load.queued_bulk_tokens > 0 else 0
    if settings.max_bulk_replicas is not None:
        by_bulk = min(by_bulk, settings.max_bulk_replicas)
    needs: dict[Term, int] = {
        "arrivals": _whole(by_arrivals),
        "queue": _whole(by_queue) if queue > 0 else 0,
        "bulk": by_bulk,
        "objective": 0,
    }
    reasons: dict[Term, str] = {
        "arrivals": f"{arrivals:,.0f} tokens/s arrive",
        "queue": f"{queue:,.0f} interactive tokens are queued",
        "bulk": f"{load.queued_bulk_tokens:,.0f} bulk tokens are queued",
        "objective": f"a text waits for {load.oldest_interactive_s:.1f} s, "
        f"target_queue_s is {settings.target_queue_s:g} s",
    }
    if _violates_objective(load, target, state, startup_s, now_s) and target >= max(needs.values()):
        needs["objective"] = target + max(1, target // 10)
    term = max(needs, key=lambda name: needs[name])
    replicas, reason = needs[term], reasons[term]
    if load.stuck:
        replicas, reason = replicas + load.stuck, f"{reason}; {load.stuck} replicas are stuck"
    return Decision(replicas, reason, term, needs)


def _interactive_share(load: FleetLoad) -> float:
    """Returns the share of the batches that interactive texts get."""
    waits = load.queued_bulk_tokens > load.replicas * load.capacity_tokens_per_s
    return _SHARE_WITH_BULK if waits else 1.0


def _queue_ahead(load: FleetLoad, target: int, arrivals: float, startup_s: float) -> float:
    """Returns the interactive tokens that wait when a replica that starts now is ready."""
    capacity, running = load.capacity_tokens_per_s, load.replicas - load.stuck
    if arrivals <= running * capacity and load.queued_interactive_tokens < capacity * running:
        return 0.0  # what is in the queue is being computed
    # Replicas that are starting are taken to be ready in half of the time.
    starting = max(target - load.replicas, 0) / 2
    growth = arrivals - (running + starting) * capacity
    return max(load.queued_interactive_tokens + growth * startup_s, 0.0)


def _violates_objective(
    load: FleetLoad, target: int, state: PolicyState, startup_s: float, now_s: float
) -> bool:
    """Whether texts wait too long, and no replica is on its way that will change it."""
    return (
        state.late_reports >= 2 and target <= load.replicas and now_s - state.last_up_s > startup_s
    )


def _need_without_capacity(
    load: FleetLoad, target: int, state: PolicyState, settings: "PolicySettings", now_s: float
) -> Decision:
    startup_s = load.startup_s or settings.default_startup_s
    if _violates_objective(load, target, state, startup_s, now_s):
        reason = f"a text waits for {load.oldest_interactive_s:.1f} s"
        return Decision(target + 1, reason, "objective", {"objective": target + 1})
    return Decision(target, "the capacity isn't known yet")


def _kept_by_margin(load: FleetLoad, state: PolicyState, settings: "PolicySettings") -> int:
    """Returns the replicas that the arrivals keep, which are more than those that they start."""
    if load.capacity_tokens_per_s <= 0:
        return 0
    rate = state.interactive
    margin = rate.fast * settings.downscale_margin + _MARGIN_DEVIATIONS * rate.deviation
    needed = rate.fast * (1 + settings.headroom) + margin
    return _whole(needed / load.capacity_tokens_per_s) + settings.min_idle_replicas


def _with_standby(need: Decision, settings: "PolicySettings") -> Decision:
    """Returns the need with the replicas on standby."""
    count = settings.min_idle_replicas
    if not count or need.decided_by == "objective":  # which adds to those that there are
        return need
    if not need.needs:  # the capacity isn't known
        return replace(need, replicas=max(need.replicas, 1 + count))
    return replace(
        need, replicas=need.replicas + count, reason=f"{need.reason}; {count} on standby"
    )


def _remember(
    needs: tuple[tuple[float, int], ...], need: int, now_s: float, window_s: float
) -> tuple[tuple[float, int], ...]:
    kept = tuple(item for item in needs if item[0] > now_s - window_s - _NEED_BUCKET_S)
    if kept and now_s - kept[-1][0] < _NEED_BUCKET_S:
        return (*kept[:-1], (kept[-1][0], max(kept[-1][1], need)))
    return (*kept, (now_s, need))


def _apply(
    need: Decision,
    load: FleetLoad,
    target: int,
    bounds: Bounds,
    state: PolicyState,
    settings: "PolicySettings",
    now_s: float,
) -> tuple[Decision, PolicyState]:
    """Applies bounds, and the delays of the way down."""
    if target == 1 and bounds.min_replicas == 0:
        if _is_unused(load, state, settings, now_s):
            reason = f"no text for {settings.scale_to_zero_after_s:g} s"
            return Decision(0, reason, "downscale", need.needs), state
        bounds = replace(bounds, min_replicas=1)

    def decision(replicas: int, reason: str, decided_by: DecidedBy) -> Decision:
        return Decision(replicas, reason, decided_by, need.needs)

    wanted, reason, decided_by = bounds.clip(need.replicas), need.reason, need.decided_by
    if wanted < need.replicas:
        reason, decided_by = f"{reason}; max_replicas is {bounds.max_replicas}", "bounds"
    # Replicas without resources would only wait, but those that run are never given up for it.
    if bounds.room is not None and wanted > bounds.room:
        reason = f"{reason}; {wanted} replicas are needed, the cluster has room for {bounds.room}"
        wanted = min(wanted, max(bounds.room, bounds.min_replicas, target))
        decided_by = "bounds"
    if wanted > target:
        return decision(wanted, reason, decided_by), replace(state, last_up_s=now_s)
    if bounds.clip(target) < target:  # the bounds were lowered
        reason = f"max_replicas is {bounds.max_replicas}"
        return decision(bounds.clip(target), reason, "bounds"), state
    if wanted == target:
        return decision(target, reason, decided_by), state
    obstacle = _downscale_obstacle(load, target, bounds, state, settings, now_s)
    if obstacle:
        return decision(target, obstacle, "downscale"), state
    return (
        decision(target - 1, f"{need.replicas} replicas are enough: {need.reason}", decided_by),
        replace(state, last_down_s=now_s),
    )


def _is_unused(
    load: FleetLoad, state: PolicyState, settings: "PolicySettings", now_s: float
) -> bool:
    """Whether the last replica may leave: it runs, reports, and no text has come for long."""
    return (
        settings.min_idle_replicas == 0
        and load.reported >= load.replicas >= 1
        and now_s - state.last_text_s >= settings.scale_to_zero_after_s
    )


def _downscale_obstacle(
    load: FleetLoad,
    target: int,
    bounds: Bounds,
    state: PolicyState,
    settings: "PolicySettings",
    now_s: float,
) -> str:
    """Returns why no replica may leave now; empty if one may."""
    started_s = now_s if state.started_s is None else state.started_s
    if now_s - started_s < settings.downscale_delay_s:
        return "the policy has just started"
    if load.reported < _MIN_REPORTED * load.replicas:
        return "not all replicas report"
    # Those that wait for resources don't start.
    if load.replicas < (target if bounds.room is None else min(target, bounds.room)):
        return "a replica is starting"
    if load.saturated >= target:
        return f"{load.saturated} replicas are busy"
    if load.oldest_interactive_s > settings.target_queue_s:
        return f"a text waits for {load.oldest_interactive_s:.1f} s"
    if max(need for _, need in state.needs) >= target:
        return f"{target} replicas were needed in the last {settings.downscale_delay_s:g} s"
    # While the caller delays a decision, the target is above it, and the decision stays.
    followed = state.replicas is None or target <= state.replicas
    if followed and now_s - state.last_down_s < settings.downscale_interval_s:
        return "a replica has just left"
    return ""


def _whole(replicas: float) -> int:
    """Rounds up, but not for a rounding error."""
    return math.ceil(replicas - 1e-9)
