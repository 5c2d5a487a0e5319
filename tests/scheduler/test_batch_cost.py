import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.scheduler.batch_cost import BatchCost, BatchCostFit

COST = BatchCost(0.004, 0.00003)
SIZES = [32, 100, 300, 800, 2000, 5000]


def fitted(fit: BatchCostFit) -> BatchCost:
    cost = fit.cost
    assert cost is not None
    return cost


@given(
    fixed_s=st.floats(0, 0.1),
    token_s=st.floats(1e-7, 1e-2),
    sizes=st.lists(st.integers(1, 100_000), min_size=2, max_size=40),
)
def test_it_is_exact_without_noise(fixed_s: float, token_s: float, sizes: list[int]) -> None:
    fit, cost = BatchCostFit(), BatchCost(fixed_s, token_s)
    sizes = [*sizes, 10, 100_000]
    for tokens in sizes:
        fit.record(tokens, cost.seconds(tokens))
    for tokens in (10, 8192, 100_000):
        assert fitted(fit).seconds(tokens) == pytest.approx(cost.seconds(tokens), rel=1e-4)


def test_outliers_move_it_little() -> None:
    rng, fit = random.Random(1), BatchCostFit()
    for i in range(2000):
        tokens = rng.choice(SIZES)
        pause_s = 1.0 if i % 50 == 49 else 0.0
        fit.record(tokens, COST.seconds(tokens) * rng.uniform(0.95, 1.05) + pause_s)
    for tokens in (100, 8192):
        assert fitted(fit).seconds(tokens) == pytest.approx(COST.seconds(tokens), rel=0.1)


def test_it_follows_a_change_of_speed() -> None:
    fit = BatchCostFit()
    for factor in (1.0, 2.0):
        for i in range(1200):
            tokens = SIZES[i % len(SIZES)]
            fit.record(tokens, factor * COST.seconds(tokens))
    assert fitted(fit).seconds(4000) == pytest.approx(2 * COST.seconds(4000), rel=0.05)


def test_light_load_does_not_displace_what_large_batches_showed() -> None:
    fit = BatchCostFit()
    for tokens in SIZES * 5:
        fit.record(tokens, COST.seconds(tokens))
    for _ in range(10_000):
        fit.record(20, COST.seconds(20))
    assert fitted(fit).capacity(8192) == pytest.approx(COST.capacity(8192), rel=0.01)


def test_batches_of_one_size_leave_the_prior() -> None:
    fit = BatchCostFit(COST)
    assert fitted(fit) == COST
    fit.record(20, 0.1)
    assert fitted(fit) == COST


def test_without_prior_batches_of_one_size_underestimate_the_capacity() -> None:
    fit = BatchCostFit()
    assert fit.cost is None
    for _ in range(10):
        fit.record(20, COST.seconds(20))
    assert 0 < fitted(fit).capacity(8192) < COST.capacity(8192)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_impossible_durations_are_ignored(seconds: float) -> None:
    fit = BatchCostFit()
    fit.record(100, seconds)
    fit.record(0, 1.0)
    assert fit.cost is None


def test_the_size_of_a_batch_fits_its_duration() -> None:
    assert COST.seconds(COST.tokens_within(0.1)) == pytest.approx(0.1)
    assert COST.tokens_within(0.001) == 0
