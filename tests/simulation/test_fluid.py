from dataclasses import replace

import numpy as np
import pytest

from serve_app.autoscale.policy import Bounds
from serve_app.config import EmbedderSettings
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.fluid import RateTrace, simulate_fluid
from serve_app.simulation.sample_traces import SAMPLE_TRACES
from serve_app.simulation.scalers import TokenScaler
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

#: A fluid has no queues of single replicas, as if requests waited at the router.
SERVICE = SimulatedService(
    BatchCost(0.015, 0.0003),
    EmbedderSettings(batch_target_s=0.1),
    initial_replicas=2,
    max_assigned_s=1.0,
)


def part(name: str, start_s: float, end_s: float) -> Trace:
    trace = SAMPLE_TRACES[name](3)
    selected = (trace.arrival_s >= start_s) & (trace.arrival_s < end_s)
    columns = (trace.arrival_s, trace.tokens, trace.is_bulk)
    return Trace.from_arrays(name, *(column[selected] for column in columns))


@pytest.mark.parametrize(
    ("name", "start_s", "end_s"), [("ramp", 300, 900), ("spike", 1100, 1500), ("on-off", 0, 500)]
)
def test_it_agrees_with_the_exact_simulation(name: str, start_s: float, end_s: float) -> None:
    """Waiting times of less than a batch depend on the sizes of texts, which a fluid lacks."""
    trace = part(name, start_s, end_s)
    exact = simulate(trace, SERVICE, TokenScaler())
    fluid = simulate_fluid(RateTrace.of(trace), SERVICE, TokenScaler())
    assert fluid.replica_hours == pytest.approx(exact.replica_hours, rel=0.1)
    assert fluid.timeline.running.max() == pytest.approx(exact.timeline.running.max(), abs=2)
    expected_s, batch_s = exact.waiting["interactive"].p99, SERVICE.settings.batch_target_s
    assert fluid.waiting["interactive"].p99 == pytest.approx(expected_s, rel=0.4, abs=batch_s)


def test_bulk_texts_wait_as_in_the_exact_simulation() -> None:
    trace = part("bulk-at-night", 550, 1200)
    exact = simulate(trace, SERVICE, TokenScaler())
    fluid = simulate_fluid(RateTrace.of(trace), SERVICE, TokenScaler())
    assert fluid.replica_hours == pytest.approx(exact.replica_hours, rel=0.1)
    expected_s = exact.waiting["bulk"].p95
    assert fluid.waiting["bulk"].p95 == pytest.approx(expected_s, rel=0.25)


def test_a_thousand_replicas_serve_a_million_texts_per_second() -> None:
    rates = np.interp(np.arange(3600), [0, 1800, 3600], [1e5, 1e6, 1e5])
    service = SimulatedService(BatchCost(0.004, 1e-5), bounds=Bounds(1, 1000), initial_replicas=100)
    service = replace(service, settings=EmbedderSettings(max_batch_tokens=65536))
    trace = RateTrace("large", rates * 30, np.zeros(3600), tokens_per_text=30)
    result = simulate_fluid(trace, service, TokenScaler())
    assert 300 < result.timeline.running.max() <= 1000
    assert result.waiting["interactive"].p99 < 1


def test_fluid_that_does_not_fit_waits() -> None:
    rates = np.full(100, 2 * SERVICE.capacity_tokens_per_s)
    trace = RateTrace("overload", rates, np.zeros(100), tokens_per_text=50)
    service = replace(SERVICE, bounds=Bounds(1, 1), initial_replicas=1)
    waiting = simulate_fluid(trace, service, TokenScaler()).waiting["interactive"]
    assert waiting.p50 == pytest.approx(50, rel=0.02)
