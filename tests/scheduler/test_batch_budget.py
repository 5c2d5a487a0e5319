import pytest

from serve_app.scheduler.batch_budget import BatchBudget, BatchBudgets
from tests.scheduler.fake_clock import FakeClock

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


def test_bulk_batches_grow_once_no_interactive_text_has_come_for_a_second() -> None:
    clock = FakeClock()
    budgets = BatchBudgets(2, clock)
    alone = budgets.select("m", 0, LIMIT)
    run_batches(alone, 20_000, 60)
    budgets.record_interactive()
    mixed = budgets.select("m", 10, LIMIT)
    run_batches(mixed, 20_000, 60)
    assert alone.tokens(LIMIT) == pytest.approx(2.5 * mixed.tokens(LIMIT), rel=0.1)
    clock.now_s = 0.9
    assert budgets.select("m", 0, LIMIT) is mixed
    clock.now_s = 1.1
    assert budgets.select("m", 0, LIMIT) is alone


def test_batches_grow_with_a_backlog_of_interactive_texts() -> None:
    budgets = BatchBudgets(2, FakeClock())
    budgets.record_interactive()
    usual = budgets.select("m", 1, LIMIT)
    backlog = budgets.select("m", 5 * usual.tokens(LIMIT), LIMIT)
    run_batches(usual, 20_000, 60)
    run_batches(backlog, 20_000, 60)
    assert backlog.tokens(LIMIT) == pytest.approx(2.5 * usual.tokens(LIMIT), rel=0.1)


def test_a_batch_that_ran_out_of_memory_bounds_every_budget() -> None:
    budgets = BatchBudgets(1, FakeClock())
    budgets.record_out_of_memory("m", 200)
    assert [budgets.select("m", n, LIMIT).tokens(LIMIT) for n in (0, 1, LIMIT)] == [100] * 3
