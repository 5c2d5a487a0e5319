"""How many replicas a wish needs, by simulation: queries, their latency, bulk work → replicas."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from serve_app.autoscale.policy import Bounds
from serve_app.config import PolicySettings
from serve_app.errors import InvalidRequest
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.scalers import FixedScaler, TokenScaler
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

#: Spread of the sizes of queries: the standard deviation of the logarithm of their tokens.
_SIZE_SPREAD = 0.5
#: Texts in one simulation of a steady load, and its duration.
_STEADY_TEXTS, _MIN_STEADY_S, _MAX_STEADY_S = 30_000, 10.0, 120.0
#: Texts in the simulation of the rise from the lowest to the highest rate.
_RISE_TEXTS, _MIN_RISE_S, _MAX_RISE_S = 150_000, 60.0, 600.0
#: Higher rates are simulated in equal parts with replicas of their own, which needs more of them.
_MAX_RATE = 5000.0
#: Durations of batches that are tried, as shares of the latency.
_BATCH_SHARES = (0.2, 0.35, 0.5)
_MAX_REPLICAS = 4096
#: Numbers of standby replicas that are tried until the rise keeps the latency.
_STANDBYS = (0, 1, 2, 4)
_HOURS_PER_DAY = 24.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a service is to do."""

    texts_per_s: float  #: interactive texts, at the busiest time
    tokens_per_text: float
    p99_s: float  #: of the latency of interactive texts
    low_texts_per_s: float  #: at the quietest time
    busy_hours: float = 10.0  #: of each day with `texts_per_s`; in the others, `low_texts_per_s`
    bulk_tokens_per_day: float = 0.0  #: computed in the quiet hours
    overhead_s: float = 0.003  #: HTTP and calls between processes


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer to a wish."""

    wish: Wish
    batch_target_s: float
    busy_replicas: int  #: at the busiest time
    quiet_replicas: int  #: at the quietest time, without bulk texts
    bulk_replicas: int  #: in addition, in the quiet hours
    max_replicas: int
    p50_s: float  #: latency at the busiest time
    p99_s: float
    min_idle_replicas: int  #: for the rise
    rise_p99_s: float  #: while the rate rises from the lowest to the highest within ten minutes
    capacity_tokens_per_s: float  #: of a replica

    @property
    def utilization(self) -> float:
        """Share of the capacity that the busiest time uses, without what small batches cost."""
        tokens = self.wish.texts_per_s * self.wish.tokens_per_text
        return tokens / (self.busy_replicas * self.capacity_tokens_per_s)

    @property
    def replica_hours_per_day(self) -> float:
        """Replica-hours of one day."""
        quiet_hours = _HOURS_PER_DAY - self.wish.busy_hours
        bulk_hours = self.wish.bulk_tokens_per_day / self.capacity_tokens_per_s / 3600
        return (
            self.busy_replicas * self.wish.busy_hours
            + self.quiet_replicas * quiet_hours
            + bulk_hours
        )

    @property
    def tokens_per_day(self) -> float:
        """Tokens of one day."""
        wish = self.wish
        quiet_hours = _HOURS_PER_DAY - wish.busy_hours
        texts = wish.texts_per_s * wish.busy_hours + wish.low_texts_per_s * quiet_hours
        return texts * 3600 * wish.tokens_per_text + wish.bulk_tokens_per_day


def plan_capacity(
    wish: Wish, service: SimulatedService, policy: PolicySettings, *, seed: int = 1
) -> CapacityPlan:
    """Returns the fewest replicas whose simulated latency keeps the wish.

    Args:
        wish: what the service is to do.
        service: the replicas; `batch_target_s` is chosen, the bounds don't count.
        policy: the settings of the policy, of which `min_idle_replicas` is chosen.
        seed: of the arrivals.

    Raises:
        InvalidRequest: no number of replicas keeps the wish.
    """
    limit_s, cost = wish.p99_s - wish.overhead_s, service.cost
    _check_longest(wish, cost.seconds(_sizes(wish, 10_000, seed).max()), limit_s)
    services = [
        replace(service, settings=service.settings.model_copy(update={"batch_target_s": target_s}))
        for target_s in _batch_targets(limit_s, cost)
    ]
    candidates = [_fewest(wish, wish.texts_per_s, service, limit_s, seed) for service in services]
    replicas, service, result = min(candidates, key=lambda c: (c[0], _latency(c[2])[1]))
    quiet, _, _ = _fewest(wish, wish.low_texts_per_s, service, limit_s, seed)
    quiet_s = 3600 * ((_HOURS_PER_DAY - wish.busy_hours) or _HOURS_PER_DAY)
    bulk = math.ceil(wish.bulk_tokens_per_day / (service.capacity_tokens_per_s * quiet_s))
    p50_s, p99_s = _latency(result)
    for idle in _STANDBYS:
        standby = policy.model_copy(update={"min_idle_replicas": idle})
        highest = max(math.ceil(replicas * (1 + policy.headroom)) + idle, quiet + bulk)
        rise_p99_s = _rise_p99_s(wish, service, standby, quiet + idle, highest, seed)
        if rise_p99_s <= limit_s:
            break
    return CapacityPlan(
        wish,
        service.settings.batch_target_s,
        replicas,
        quiet,
        bulk,
        highest,
        p50_s + wish.overhead_s,
        p99_s + wish.overhead_s,
        idle,
        rise_p99_s + wish.overhead_s,
        service.capacity_tokens_per_s,
    )


def _check_longest(wish: Wish, longest_s: float, limit_s: float) -> None:
    if longest_s > limit_s:
        raise InvalidRequest(
            f"A text of {wish.tokens_per_text:g} tokens, alone and with the spread of sizes, takes "
            f"up to {1000 * (longest_s + wish.overhead_s):.0f} ms, however many replicas there "
            f"are. Ask for a p99 above that, or use a faster device or a smaller model.",
            "p99",
        )


def _batch_targets(limit_s: float, cost: BatchCost) -> list[float]:
    """Returns durations of batches to try."""
    return [round(max(share * limit_s, 1.5 * cost.fixed_s), 4) for share in _BATCH_SHARES]


def _fewest(
    wish: Wish, texts_per_s: float, service: SimulatedService, limit_s: float, seed: int
) -> tuple[int, SimulatedService, SimulationResult]:
    """Returns the fewest replicas that keep the latency, with their simulation."""
    parts = _parts(texts_per_s)
    texts_per_s /= parts
    duration_s = min(max(_STEADY_TEXTS / texts_per_s, _MIN_STEADY_S), _MAX_STEADY_S)
    trace = _trace(wish, np.full(math.ceil(duration_s), texts_per_s), seed)

    def result_of(replicas: int) -> SimulationResult:
        fixed = replace(service, initial_replicas=replicas, bounds=Bounds(replicas, replicas))
        return simulate(trace, fixed, FixedScaler(replicas), seed=seed)

    tokens_per_s = texts_per_s * wish.tokens_per_text
    failed = max(math.ceil(tokens_per_s / service.capacity_tokens_per_s) - 1, 0)
    replicas = failed + 1
    while _latency(result := result_of(replicas))[1] > limit_s:
        if replicas >= _MAX_REPLICAS:
            raise InvalidRequest(f"More than {_MAX_REPLICAS} replicas would be needed.", "rate")
        failed, replicas = replicas, min(replicas + max(1, replicas // 4), _MAX_REPLICAS)
    while replicas - failed > 1:
        middle = (failed + replicas) // 2
        tried = result_of(middle)
        if _latency(tried)[1] > limit_s:
            failed = middle
        else:
            replicas, result = middle, tried
    return replicas * parts, service, result


def _parts(texts_per_s: float) -> int:
    return math.ceil(texts_per_s / _MAX_RATE)


def _rise_p99_s(
    wish: Wish,
    service: SimulatedService,
    policy: PolicySettings,
    lowest: int,
    highest: int,
    seed: int,
) -> float:
    parts = _parts(wish.texts_per_s)
    low, high = wish.low_texts_per_s / parts, wish.texts_per_s / parts
    seconds = min(max(2 * _RISE_TEXTS / (low + high), _MIN_RISE_S), _MAX_RISE_S)
    trace = _trace(wish, np.linspace(low, high, int(seconds)), seed)
    bounds = Bounds(math.ceil(lowest / parts), math.ceil(highest / parts))
    scaled = replace(service, initial_replicas=bounds.min_replicas, bounds=bounds)
    return _latency(simulate(trace, scaled, TokenScaler(policy), seed=seed))[1]


def _trace(wish: Wish, rates: npt.NDArray[np.float64], seed: int) -> Trace:
    """Returns single texts that arrive with the given rate of each second."""
    rng = np.random.default_rng([seed, 2])
    counts = rng.poisson(rates)
    counts[0] = max(counts[0], 1)
    seconds = np.repeat(np.arange(counts.size), counts)
    arrivals = np.sort(seconds + rng.uniform(0, 1, seconds.size))
    return Trace.from_arrays("plan", arrivals, _sizes(wish, arrivals.size, seed))


def _sizes(wish: Wish, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns numbers of tokens with the wished mean."""
    rng = np.random.default_rng([seed, 3])
    location = math.log(wish.tokens_per_text) - _SIZE_SPREAD**2 / 2
    sizes = np.rint(rng.lognormal(location, _SIZE_SPREAD, count))
    # The largest ones would make every wish impossible; models truncate them anyway.
    return np.clip(sizes, 1, math.ceil(4 * wish.tokens_per_text)).astype(np.int64)


def _latency(result: SimulationResult) -> tuple[float, float]:
    """Returns p50 and p99 of the time from the arrival of a text to the end of its batch."""
    assert result.latencies_s is not None, "The exact simulation has them."
    p50, p99 = np.nanquantile(result.latencies_s, [0.5, 0.99])
    return float(p50), float(p99)
