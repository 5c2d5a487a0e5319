import pytest

from serve_app.scheduler.batch_budget import BatchBudget

LIMIT = 100_000


def run(budget: BatchBudget, tokens_per_s: float, batches: int, share: float = 1.0) -> int:
    for _ in range(batches):
        tokens = int(share * budget.tokens(LIMIT))
        budget.ran(tokens, tokens / tokens_per_s, target_s=0.03, limit=LIMIT)
    return budget.tokens(LIMIT)


@pytest.mark.parametrize("tokens_per_s", [5_000, 20_000, 1_000_000])
def test_batches_grow_or_shrink_until_they_take_the_time_they_may(tokens_per_s: int) -> None:
    assert run(BatchBudget(), tokens_per_s, 60) == pytest.approx(0.03 * tokens_per_s, rel=0.05)


def test_small_batches_teach_nothing() -> None:
    budget = BatchBudget()
    before = run(budget, 20_000, 60)
    assert run(budget, 1_000, 60, share=0.1) == before


def test_one_slow_batch_moves_it_little() -> None:
    budget = BatchBudget()
    before = run(budget, 20_000, 60)
    budget.ran(before, 10.0, target_s=0.03, limit=LIMIT)
    assert budget.tokens(LIMIT) > before / 2


def test_it_stays_inside_its_limit() -> None:
    budget = BatchBudget()
    run(budget, 1e9, 60)
    assert budget.tokens(LIMIT) == LIMIT
    assert budget.tokens(100) == 100


def test_what_did_not_fit_is_not_tried_again() -> None:
    budget = BatchBudget()
    run(budget, 1e9, 60)
    budget.out_of_memory(50_000)
    assert budget.tokens(LIMIT) == 25_000
    assert run(budget, 1e9, 60) == 25_000
