import math
from dataclasses import replace

import numpy as np
import pytest

from serve_app.autoscale.policy import Bounds, Decision
from serve_app.config import EmbedderSettings
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.ray_scaler import RayScaler
from serve_app.simulation.scalers import FixedScaler, Observation, TokenScaler
from serve_app.simulation.service import RouterName, SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

SERVICE = SimulatedService(
    BatchCost(0.015, 0.0003), EmbedderSettings(batch_target_s=0.1), max_assigned_s=1.0
)


def poisson(rate: float, seconds: float, tokens: int = 50, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0, seconds, int(rate * seconds)))
    return Trace.from_arrays("poisson", arrivals, np.full(arrivals.size, tokens))


def m_d_1_waiting(quantile_s: float, utilization: float, service_s: float) -> float:
    """Returns the share of customers that wait at most this long (Erlang, 1909)."""
    rate = utilization / service_s
    terms = (
        (rate * (k * service_s - quantile_s)) ** k
        / math.factorial(k)
        * math.exp(-rate * (k * service_s - quantile_s))
        for k in range(int(quantile_s / service_s) + 1)
    )
    return (1 - utilization) * sum(terms)


@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_one_replica_without_batches_is_an_m_d_1_queue(utilization: float) -> None:
    settings = EmbedderSettings(max_batch_texts=1, max_queued_tokens=2**30)
    service = SimulatedService(BatchCost(0.005, 0.0001), settings, max_assigned_s=1e9)
    trace = poisson(utilization / 0.01, 1200)  # 50 tokens take 10 ms
    waiting = simulate(trace, service, FixedScaler(1)).waiting["interactive"]
    assert m_d_1_waiting(waiting.p95, utilization, 0.01) == pytest.approx(0.95, abs=0.005)
    assert m_d_1_waiting(waiting.p99, utilization, 0.01) == pytest.approx(0.99, abs=0.003)


def test_overload_is_served_at_the_capacity_of_full_batches() -> None:
    trace = Trace.from_arrays("burst", np.arange(4000) * 1e-6, np.full(4000, 60))
    service = replace(SERVICE, cost=BatchCost(0.0, 0.0005))
    waiting = simulate(trace, service, FixedScaler(1)).waiting["interactive"]
    assert waiting.p50 == pytest.approx(2000 * 60 * 0.0005, rel=0.02)


@pytest.mark.parametrize("router", ["least_tokens", "power_of_two", "least_requests"])
def test_the_same_seed_gives_the_same_result(router: RouterName) -> None:
    trace, service = poisson(100, 60), replace(SERVICE, initial_replicas=4, router=router)
    first, second = (simulate(trace, service, TokenScaler(), seed=3) for _ in range(2))
    assert first.waiting == second.waiting
    assert first.replica_hours == second.replica_hours
    assert first.reasons == second.reasons


def test_haproxy_sends_each_request_at_once_to_the_replica_with_the_fewest() -> None:
    # Six texts at once, and two replicas: each computes its three in a batch and the next ones.
    settings = EmbedderSettings(max_batch_texts=1)
    service = replace(
        SERVICE,
        cost=BatchCost(1.0, 0.0),
        settings=settings,
        router="least_requests",
        initial_replicas=2,
    )
    trace = Trace.from_arrays("six", np.arange(6) * 1e-3, np.full(6, 10))
    waits_s = simulate(trace, service, FixedScaler(2)).waits_s
    assert waits_s is not None
    np.testing.assert_allclose(waits_s, [0, 0, 1, 1, 2, 2], atol=0.01)

    # A replica that starts gets none of the requests that the first one has.
    later = replace(service, initial_replicas=1, startup_s=0.5)
    waits_s = simulate(trace, later, OneMore()).waits_s
    assert waits_s is not None
    np.testing.assert_allclose(waits_s, np.arange(6), atol=0.01)


class OneMore:
    """Starts a second replica with the first reports."""

    def __init__(self) -> None:
        self.seen = list[Observation]()

    def decide(self, seen: Observation) -> Decision:
        self.seen.append(seen)
        return Decision(2, "test")


@pytest.mark.parametrize(("reload_s", "waits"), [(0.0, [0, 1, 8, 9]), (1.0, [8, 9, 10, 11])])
def test_haproxy_is_reloaded_for_a_new_replica_and_forgets_what_the_others_have(
    reload_s: float, waits: list[float]
) -> None:
    """The second replica is ready at 1.5 s. Of four texts at 2 s, it gets half at most."""
    service = replace(
        SERVICE,
        cost=BatchCost(1.0, 0.0),
        settings=EmbedderSettings(max_batch_texts=1),
        router="least_requests",
        startup_s=0.5,
        reload_s=reload_s,
    )
    arrival_s = np.concatenate([np.arange(10) * 1e-3, 2 + np.arange(4) * 1e-3])
    trace = Trace.from_arrays("bursts", arrival_s, np.full(14, 10))
    waits_s = simulate(trace, service, OneMore()).waits_s
    assert waits_s is not None
    np.testing.assert_allclose(np.sort(waits_s[10:]), waits, atol=0.02)


def test_a_replica_that_has_not_reported_yet_adds_no_load() -> None:
    scaler = OneMore()
    trace = Trace.from_arrays("even", np.arange(200) * 0.1, np.full(200, 10))
    simulate(trace, replace(SERVICE, startup_s=3.5, report_delay_s=1.0), scaler)
    assert [seen.running for seen in scaler.seen[3:6]] == [1, 2, 2]
    for seen in scaler.seen:
        assert seen.load.replicas == seen.running
        assert seen.load.offered_interactive_tokens_per_s == pytest.approx(100, abs=21)


def test_bulk_texts_wait_for_interactive_ones() -> None:
    interactive = poisson(20, 60)
    bulk = np.full(500, 5.0)
    trace = Trace.from_arrays(
        "mixed",
        np.concatenate([interactive.arrival_s, bulk]),
        np.concatenate([interactive.tokens, np.full(500, 100)]),
        np.concatenate([interactive.is_bulk, np.ones(500, dtype=bool)]),
    )
    waiting = simulate(trace, SERVICE, FixedScaler(1)).waiting
    assert waiting["interactive"].p99 < 1
    assert waiting["bulk"].p50 > 5


def test_a_replica_costs_from_its_order_and_computes_once_it_has_started() -> None:
    class OneMore:
        def decide(self, seen: Observation) -> Decision:
            return Decision(2 if seen.now_s >= 10 else 1, "test")

    result = simulate(poisson(10, 60), SERVICE, OneMore())
    assert result.replica_hours == pytest.approx((60 + 50) / 3600, rel=0.01)
    running = result.timeline.running
    assert running[16] == 1
    assert running[18] == 2  # rows are taken at the end of a second
    assert result.reasons == [(10.0, 2, "test")]


def test_replicas_that_start_together_take_longer() -> None:
    class Grow:
        def decide(self, seen: Observation) -> Decision:
            replicas = 1 if seen.now_s < 10 else 4 if seen.now_s < 30 else 6
            return Decision(replicas, "test")

    service = replace(SERVICE, startup_times_s=(3.5, 7.5))
    running = simulate(poisson(10, 50), service, Grow()).timeline.running
    # At 13.5 s and, two, at 17.5 s; at 33.5 and 37.5 s. Rows are taken at the end of a second.
    assert running[[12, 13, 16, 17, 32, 33, 36, 37]].tolist() == [1, 2, 2, 4, 4, 5, 5, 6]


@pytest.mark.parametrize("delay_s", [0.0, 0.4, 2.5])
def test_the_policy_sees_reports_after_their_delay(delay_s: float) -> None:
    seen = list[tuple[float, float]]()

    class Watch:
        def decide(self, now: Observation) -> Decision:
            seen.append((now.now_s, now.load.offered_interactive_tokens_per_s))
            return Decision(1, "test")

    trace = Trace.from_arrays("three", [0.0, 4.5, 9.5], [10, 50, 10])
    simulate(trace, replace(SERVICE, report_delay_s=delay_s), Watch())
    assert seen[0] == (1 + delay_s, 10)
    assert seen[4] == (5 + delay_s, 50)
    seen.clear()
    simulate(trace, replace(SERVICE, report_delay_s=delay_s, first_report_s=0.25), Watch())
    assert seen[5] == (5.25 + delay_s, 50)


def test_a_replica_that_leaves_finishes_its_texts() -> None:
    class Shrink:
        def decide(self, seen: Observation) -> Decision:
            return Decision(3 if seen.now_s < 5 else 1, "test")

    trace = poisson(200, 10)
    result = simulate(trace, replace(SERVICE, initial_replicas=3), Shrink())
    assert result.refused_texts == 0
    assert result.waiting["interactive"].p99 > 0


def test_what_waits_moves_to_a_replica_that_starts() -> None:
    """40 s of work on one replica take both 20 s once the second one is there."""
    trace = Trace.from_arrays("burst", np.arange(1000) * 1e-6, np.full(1000, 100))
    settings = EmbedderSettings(max_batch_texts=1, max_queued_tokens=2**30)
    service = replace(
        SERVICE,
        cost=BatchCost(0.0, 0.0004),
        settings=settings,
        startup_s=2.0,
        max_assigned_s=math.inf,
    )
    waiting = {
        router: simulate(trace, replace(service, router=router), FixedScaler(2)).waiting
        for router in ("least_tokens", "least_requests")
    }
    assert waiting["least_requests"]["interactive"].p99 > 38
    # The first 3 s pass until the order and the start.
    assert waiting["least_tokens"]["interactive"].p99 == pytest.approx(21.5, abs=1)


def test_without_replicas_texts_wait_for_the_first_one() -> None:
    class Wake:
        def decide(self, seen: Observation) -> Decision:
            return Decision(int(seen.ongoing_requests > 0), "test")

    service = replace(SERVICE, bounds=Bounds(0, 1), initial_replicas=0)
    trace = Trace.from_arrays("one", [0.0], [50])
    waiting = simulate(trace, service, Wake()).waiting["interactive"]
    assert waiting.p50 == pytest.approx(1 + service.startup_s)


def test_requests_that_do_not_fit_into_the_queue_are_refused() -> None:
    settings = EmbedderSettings(batch_target_s=0.1, max_queued_tokens=10_000)
    trace = Trace.from_arrays("burst", np.arange(1000) * 1e-6, np.full(1000, 50))
    result = simulate(trace, replace(SERVICE, settings=settings), FixedScaler(1))
    assert 700 < result.refused_texts < 800


@pytest.mark.parametrize("seed", range(3))
def test_noisy_steady_load_changes_the_target_at_most_once_in_ten_minutes(seed: int) -> None:
    trace, service = poisson(110, 600, 80, seed), replace(SERVICE, initial_replicas=5)
    assert simulate(trace, service, TokenScaler()).changes <= 1


def test_a_step_raises_the_target_within_three_seconds() -> None:
    before, after = poisson(40, 60, 80), poisson(300, 30, 80)
    trace = Trace.from_arrays(
        "step",
        np.concatenate([before.arrival_s, after.arrival_s + 60]),
        np.concatenate([before.tokens, after.tokens]),
    )
    result = simulate(trace, replace(SERVICE, initial_replicas=2), TokenScaler())
    assert result.timeline.target[63] > 5


def test_rays_policy_reacts_after_its_delay_and_bounds() -> None:
    trace = poisson(150, 120, 80)
    service = replace(SERVICE, router="power_of_two", bounds=Bounds(1, 9))
    result = simulate(trace, service, RayScaler(min_replicas=1, max_replicas=9))
    first_s, replicas, reason = result.reasons[0]
    assert 30 <= first_s <= 50
    assert replicas == 9
    assert "requests" in reason
