from pathlib import Path

import numpy as np
import pytest

from serve_app.config import EmbedderSettings, PolicySettings
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.comparison import Comparison, Scenario, compare, markdown_table
from serve_app.simulation.oracle import simulate_oracle
from serve_app.simulation.sample_traces import SAMPLE_TRACES
from serve_app.simulation.service import SimulatedService
from serve_app.simulation.trace import Trace

SERVICE = SimulatedService(BatchCost(0.015, 0.0003), EmbedderSettings(batch_target_s=0.1))


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    trace = SAMPLE_TRACES["spike"](1)
    selected = (trace.arrival_s > 1100) & (trace.arrival_s < 1400)
    part = Trace.from_arrays("spike", trace.arrival_s[selected], trace.tokens[selected])
    return compare(Scenario.starting_with_need(part, SERVICE, PolicySettings()))


def test_after_a_spike_tokens_wait_less_than_with_rays_default_and_cost_less(
    comparisons: list[Comparison],
) -> None:
    results = {item.policy: item.result for item in comparisons}
    ours, ray = results["tokens"], results["Ray's default"]
    # Moving requests to new replicas shares the wait: more of them wait, and none as long.
    assert ours.waiting["interactive"].p99 < ray.waiting["interactive"].p99 / 2
    assert ours.waiting["interactive"].p95 < ray.waiting["interactive"].p95 / 10
    assert ours.replica_hours < ray.replica_hours


def test_after_a_spike_requests_that_are_kept_back_wait_less_than_with_rays_default(
    comparisons: list[Comparison],
) -> None:
    results = {item.policy: item.result.waiting["interactive"].p99 for item in comparisons}
    assert results["tokens, kept back"] < results["Ray's default"] / 2


def test_the_table_has_a_row_for_each_policy(comparisons: list[Comparison]) -> None:
    rows = markdown_table(comparisons).splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == [item.policy for item in comparisons]


def test_the_plot_has_a_row_for_each_policy(comparisons: list[Comparison], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from serve_app.simulation.plot import plot_comparisons

    few, all_ = tmp_path / "few.png", tmp_path / "all.png"
    plot_comparisons(comparisons[:1], SERVICE, few, target_queue_s=0.5)
    plot_comparisons(comparisons, SERVICE, all_, target_queue_s=0.5)
    heights = [int.from_bytes(path.read_bytes()[20:24]) for path in (few, all_)]
    assert heights[1] > 3 * heights[0]


def test_the_oracle_is_ready_before_the_load_comes() -> None:
    rng = np.random.default_rng(1)
    arrivals = np.concatenate([rng.uniform(0, 100, 2000), rng.uniform(100, 200, 25_000)])
    trace = Trace.from_arrays("step", arrivals, np.full(arrivals.size, 80))
    result = simulate_oracle(trace, SERVICE, target_queue_s=0.5, bulk_drain_target_s=60)
    assert result.waiting["interactive"].p99 <= 0.5
    assert result.timeline.running[98] >= 6
    assert result.timeline.running[80] == 1
