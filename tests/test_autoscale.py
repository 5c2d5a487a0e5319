from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.autoscale import TokenPolicy, desired_replicas


def desired(offered: float, queued: float, capacity: float = 1000) -> int | None:
    return desired_replicas(
        offered_tokens_per_s=offered,
        queued_tokens=queued,
        capacity_tokens_per_s=capacity,
        headroom=0.25,
        drain_target_s=2,
    )


@pytest.mark.parametrize(
    ("offered", "queued", "replicas"),
    [
        (0, 0, 0),
        (700, 0, 1),
        (900, 0, 2),  # 900 with 25 % headroom exceeds one replica
        (3100, 0, 4),
        (0, 1000, 1),
        (0, 10_000, 5),  # drains 10,000 queued tokens in two seconds
        (800, 4000, 3),
    ],
)
def test_replicas_keep_up_with_arrivals_and_drain_the_queue(
    offered: float, queued: float, replicas: int
) -> None:
    assert desired(offered, queued) == replicas


def test_there_is_no_result_before_the_first_measurement() -> None:
    assert desired(5000, 5000, capacity=0) is None


def context(target: int, **metrics: dict[str, float]) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target)


def test_the_policy_sums_the_load_and_averages_the_speed() -> None:
    policy = TokenPolicy(headroom=0, drain_target_s=2)
    ctx = context(
        2,
        offered_tokens_per_s={"a": 1500.0, "b": 1500.0},
        queued_tokens={"a": 1000.0, "b": 1000.0},
        capacity_tokens_per_s={"a": 900.0, "b": 1100.0},
    )
    assert policy(ctx) == (4, {})


def test_a_replica_without_a_measured_speed_is_left_out_of_the_average() -> None:
    policy = TokenPolicy(headroom=0)
    ctx = context(
        2,
        offered_tokens_per_s={"a": 1000.0, "new": 0.0},
        queued_tokens={},
        capacity_tokens_per_s={"a": 1000.0, "new": 0.0},
    )
    assert policy(ctx) == (1, {})


@pytest.mark.parametrize("metrics", [{}, {"capacity_tokens_per_s": {"a": 0.0}}])
def test_without_metrics_the_target_stays(metrics: Any) -> None:
    assert TokenPolicy()(context(3, **metrics)) == (3, {})
