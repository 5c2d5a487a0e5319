"""Policies next to each other, on the same traces and the same service."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.config import PolicySettings
from serve_app.simulation.fluid import MAX_EXACT_TEXTS, RateTrace, simulate_fluid
from serve_app.simulation.oracle import simulate_oracle
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.scalers import FixedScaler, Scaler, TokenScaler
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

#: A router that keeps requests back does so while all replicas have work for this long.
_MAX_ASSIGNED_S = 1.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace with one policy."""

    trace: str
    policy: str
    result: SimulationResult


@dataclass(frozen=True, slots=True)
class Scenario:
    """What all policies have in common."""

    trace: Trace | RateTrace
    service: SimulatedService
    settings: PolicySettings
    seed: int = 0

    @classmethod
    def starting_with_need(
        cls,
        trace: Trace | RateTrace,
        service: SimulatedService,
        settings: PolicySettings,
        *,
        seed: int = 0,
    ) -> "Scenario":
        """Returns a scenario that starts with the replicas that its first ten seconds need.

        A trace with too many texts becomes a fluid.
        """
        rates = RateTrace.of(trace) if isinstance(trace, Trace) else trace
        if isinstance(trace, Trace) and trace.tokens.size > MAX_EXACT_TEXTS:
            trace = rates
        first = rates.interactive_tokens_per_s[:10].mean() * (1 + settings.headroom)
        replicas = max(math.ceil(first / service.capacity_tokens_per_s), 1)
        return cls(trace, replace(service, initial_replicas=replicas), settings, seed)

    def run(self, scaler: Scaler, **changes: object) -> SimulationResult:
        """Simulates a policy, on the service with `changes`."""
        service = replace(self.service, **changes)  # type: ignore[arg-type]
        if isinstance(self.trace, RateTrace):
            return simulate_fluid(self.trace, service, scaler)
        return simulate(self.trace, service, scaler, seed=self.seed)


def _tokens(scenario: Scenario) -> SimulationResult:
    return scenario.run(TokenScaler(scenario.settings))


def _tokens_with_standby(scenario: Scenario) -> SimulationResult:
    settings = scenario.settings.model_copy(update={"min_idle_replicas": 1})
    return scenario.run(TokenScaler(settings))


def _tokens_held(scenario: Scenario) -> SimulationResult:
    scaler = TokenScaler(scenario.settings)
    return scenario.run(scaler, router="least_tokens", max_assigned_s=_MAX_ASSIGNED_S)


def _ray(config: Mapping[str, float], scenario: Scenario) -> SimulationResult:
    from serve_app.simulation.ray_scaler import RayScaler  # imports Ray

    bounds = scenario.service.bounds
    limits = {"min_replicas": bounds.min_replicas, "max_replicas": bounds.max_replicas}
    return scenario.run(RayScaler(**limits, **config), router="power_of_two")


def _oracle(scenario: Scenario) -> SimulationResult:
    if isinstance(scenario.trace, RateTrace):
        raise ValueError("The oracle simulates each text: it can't be compared on so many texts.")
    return simulate_oracle(
        scenario.trace,
        replace(scenario.service, router="least_tokens", max_assigned_s=_MAX_ASSIGNED_S),
        target_queue_s=scenario.settings.target_queue_s,
        bulk_drain_target_s=scenario.settings.bulk_drain_target_s,
        seed=scenario.seed,
    )


_FIXED = "fixed"
#: Each policy by its name on the command line, with its title.
POLICIES: Mapping[str, tuple[str, Callable[[Scenario], SimulationResult]]] = {
    "tokens": ("tokens", _tokens),
    "tokens-standby": ("tokens, one standby", _tokens_with_standby),
    "tokens-held": ("tokens, kept back", _tokens_held),
    "ray": ("Ray's default", lambda scenario: _ray({}, scenario)),
    "ray-tuned": ("Ray's, tuned", lambda scenario: _ray(RAY_TUNED, scenario)),
    "oracle": ("oracle", _oracle),
}


def compare(scenario: Scenario, policies: Sequence[str] = (*POLICIES, _FIXED)) -> list[Comparison]:
    """Returns the results of policies, in their order; see `simulate_policies`."""
    return list(simulate_policies(scenario, policies))


def simulate_policies(scenario: Scenario, policies: Sequence[str]) -> Iterator[Comparison]:
    """Yields the result of each policy.

    Ray's policies have Ray's router, and the oracle has the one that knows all tokens. The others
    have that of the service, unless their name says more.

    Args:
        scenario: the load and the service.
        policies: names in `POLICIES`, or `fixed:N` for N replicas at all times. `fixed` alone is as
            many as the oracle uses at most, which must come before.

    Raises:
        ValueError: there is no such policy.
    """
    most = None
    for name in policies:
        title, number = POLICIES.get(name, (None,))[0], name.removeprefix(f"{_FIXED}:")
        if title is not None:
            result = POLICIES[name][1](scenario)
            most = int(result.timeline.target.max()) if name == "oracle" else most
        elif name == _FIXED and most is not None:
            title, result = f"fixed: {most}", _fixed(scenario, most)
        elif number.isdecimal() and number != name:
            title, result = f"fixed: {number}", _fixed(scenario, int(number))
        else:
            raise ValueError(
                f"There is no policy {name!r}. Choose from {', '.join(POLICIES)}, {_FIXED}:N."
            )
        yield Comparison(scenario.trace.name, title, result)


def _fixed(scenario: Scenario, replicas: int) -> SimulationResult:
    bounds = replace(scenario.service.bounds, min_replicas=replicas, max_replicas=replicas)
    return scenario.run(FixedScaler(replicas), initial_replicas=replicas, bounds=bounds)


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
