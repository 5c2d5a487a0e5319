import math

import pytest

from serve_app.autoscale.cluster_room import cluster_room, count_fitting


@pytest.mark.parametrize(
    ("required", "available", "fitting"),
    [
        ({"CPU": 2}, {"a": {"CPU": 5}, "b": {"CPU": 1.9}}, 2),
        ({"CPU": 0.1}, {"a": {"CPU": 0.3}}, 3),
        ({"CPU": 1, "GPU": 0.25}, {"a": {"CPU": 8, "GPU": 1}, "b": {"CPU": 8}}, 4),
        ({"CPU": 1, "GPU": 0}, {"a": {"CPU": 2}}, 2),
        ({"CPU": 1}, {}, 0),
        ({"CPU": 0}, {"a": {"CPU": 2}}, math.inf),
    ],
)
def test_replicas_that_fit_are_counted_by_node(
    required: dict[str, float], available: dict[str, dict[str, float]], fitting: float
) -> None:
    assert count_fitting(required, available, {}) == fitting


def test_a_limit_for_each_node_counts_the_replicas_that_it_has() -> None:
    available = {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}}
    assert count_fitting({"CPU": 1}, available, {"a": 2}, max_per_node=3) == 1 + 3


def test_outside_of_a_controller_the_room_is_unknown() -> None:
    assert cluster_room("Embedder") is None
