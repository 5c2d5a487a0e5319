import pytest

from serve_app.scheduler.batch_budget import BatchBudget

LIMIT = 100_000


def run_batches(budget: BatchBudget, tokens_per_s: float, batches: int, fill: float = 1.0) -> int:
    for _ in range(batches):
        tokens = int(fill * budget.tokens(LIMIT))
        budget.record_batch(tokens, tokens / tokens_per_s, target_s=0.03, limit=LIMIT)
    return budget.tokens(LIMIT)


@pytest.mark.parametrize("tokens_per_s", [5_000, 20_000, 1_000_000])
def test_the_budget_converges_to_the_target_time(tokens_per_s: int) -> None:
    assert run_batches(BatchBudget(), tokens_per_s, 60) == pytest.approx(
        0.03 * tokens_per_s, rel=0.05
    )


def test_batches_that_fill_little_of_the_budget_are_ignored() -> None:
    budget = BatchBudget()
    before = run_batches(budget, 20_000, 60)
    assert run_batches(budget, 1_000, 60, fill=0.1) == before


def test_one_slow_batch_moves_the_budget_little() -> None:
    budget = BatchBudget()
    before = run_batches(budget, 20_000, 60)
    budget.record_batch(before, 10.0, target_s=0.03, limit=LIMIT)
    assert budget.tokens(LIMIT) > before / 2


def test_the_budget_never_exceeds_the_limit() -> None:
    budget = BatchBudget()
    run_batches(budget, 1e9, 60)
    assert budget.tokens(LIMIT) == LIMIT
    assert budget.tokens(100) == 100


def test_a_batch_that_ran_out_of_memory_bounds_the_budget() -> None:
    budget = BatchBudget()
    run_batches(budget, 1e9, 60)
    budget.record_out_of_memory(50_000)
    assert budget.tokens(LIMIT) == 25_000
    assert run_batches(budget, 1e9, 60) == 25_000
