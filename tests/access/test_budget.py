from datetime import UTC, datetime

import pytest

from serve_app.access.budget import BudgetStatus
from serve_app.config import ApiKey


def test_a_budget_is_used_up_at_its_limit() -> None:
    assert not BudgetStatus(10, 9).is_used_up
    assert BudgetStatus(10, 10).is_used_up
    assert BudgetStatus(0, 0).is_used_up


def test_headers_say_what_is_left_and_never_less_than_nothing() -> None:
    assert BudgetStatus(5 * 10**9, 1).headers() == {
        "x-budget-limit-usd": "5.000000000",
        "x-budget-remaining-usd": "4.999999999",
    }
    assert BudgetStatus(1, 3).headers()["x-budget-remaining-usd"] == "0.000000000"


@pytest.mark.parametrize(
    ("now", "month_end", "retry_after_s"),
    [
        (datetime(2026, 11, 28, 12, tzinfo=UTC), "2026-12-01T00:00:00Z", 2 * 86400 + 43200),
        (datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), "2027-01-01T00:00:00Z", 1),
        (datetime(2028, 2, 29, tzinfo=UTC), "2028-03-01T00:00:00Z", 86400),
    ],
)
def test_the_error_says_when_the_month_ends(
    now: datetime, month_end: str, retry_after_s: int
) -> None:
    error = BudgetStatus(5 * 10**9, 5 * 10**9 + 123).error("bob", now)
    assert error.retry_after_s == retry_after_s
    assert f"begins at {month_end}, in {retry_after_s} s" in str(error)
    assert str(error).startswith(
        "The API key 'bob' has used 5.000000123 of its 5.000000000 USD for "
    )


def test_a_budget_of_the_settings_is_exact() -> None:
    key = {"name": "bob", "sha256": "0" * 64}
    for text in ("0.000000001", 0.000000001):
        assert ApiKey.model_validate({**key, "max_usd_per_month": text}).budget_nano_usd == 1
    assert ApiKey.model_validate({**key, "max_usd_per_month": 0}).budget_nano_usd == 0
    assert ApiKey.model_validate(key).budget_nano_usd is None
