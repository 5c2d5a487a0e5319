"""Monthly budgets of API keys: what is left of one, and the error once nothing is."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from serve_app.cost import format_usd
from serve_app.errors import BudgetExceeded


class BudgetStatus(NamedTuple):
    """The budget of a key and what it has cost, in nano-dollars."""

    limit: int
    used: int

    @property
    def is_used_up(self) -> bool:
        """Whether requests to models with a price are refused."""
        return self.used >= self.limit

    def headers(self) -> Mapping[str, str]:
        """Returns the response headers of the key."""
        return {
            "x-budget-limit-usd": format_usd(self.limit),
            "x-budget-remaining-usd": format_usd(max(0, self.limit - self.used)),
        }

    def error(self, key: str, now: datetime) -> BudgetExceeded:
        """Returns the error of a request that the budget doesn't cover.

        Args:
            key: name of the key.
            now: the time in UTC.
        """
        month_end = next_month(now)
        retry_after_s = max(1, math.ceil((month_end - now).total_seconds()))
        return BudgetExceeded(
            f"The API key {key!r} has used {format_usd(self.used)} of its "
            f"{format_usd(self.limit)} USD for {now:%Y-%m}. The next month begins at "
            f"{month_end:%Y-%m-%dT%H:%M:%SZ}, in {retry_after_s} s. Until then, use a model "
            "without a price, or ask the operator of the service for a larger budget.",
            retry_after_s,
        )


def next_month(now: datetime) -> datetime:
    """Returns the first moment of the month after that of `now`, in UTC."""
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if first.month == 12:
        return first.replace(year=first.year + 1, month=1)
    return first.replace(month=first.month + 1)
