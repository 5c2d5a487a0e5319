import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve_app.access.budget import BudgetStatus
from serve_app.access.entrance import Entrance
from serve_app.access.ledger import Usage
from serve_app.access.quota import MemoryQuotaStore
from serve_app.access.shared_ledger import SharedLedger
from serve_app.config import AccessSettings, ApiKey, CacheConfig
from serve_app.errors import BudgetExceeded
from serve_app.meter import Meter
from serve_app.valkey.shared_server import SharedServer
from tests.valkey_server import ValkeyProcess


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


async def test_a_budget_holds_for_all_processes_and_after_a_restart(tmp_path: Path) -> None:
    key = ApiKey.model_validate({"name": "bob", "sha256": "0" * 64, "max_usd_per_month": 1})
    with ValkeyProcess(tmp_path / "valkey") as valkey:
        config = CacheConfig.model_validate({"url": valkey.url})

        def started() -> Entrance:
            """Returns the entrance of a new process."""
            server = SharedServer(config, service="test", owner_pid=os.getpid())
            ledger = SharedLedger(
                server, prefix="test", timeout_s=1, meter=Meter(), write_every_s=0.02
            )
            entrance = Entrance(MemoryQuotaStore(), ledger=ledger)
            entrance.apply(AccessSettings(keys=(key,)))
            return entrance

        async def until_refused(entrance: Entrance) -> BudgetExceeded:
            async with asyncio.timeout(20):
                while True:
                    try:
                        entrance.check_budget(key, "paid")
                    except BudgetExceeded as error:
                        return error
                    await asyncio.sleep(0.01)

        one, other = started(), started()
        one.check_budget(key, "paid")
        one.ledger.add("paid", "bob", Usage(nano_usd=6 * 10**8))
        other.ledger.add("paid", "bob", Usage(nano_usd=5 * 10**8))
        for entrance in (one, other):
            error = await until_refused(entrance)
            assert "has used 1.100000000 of its 1.000000000 USD" in str(error)
            await entrance.close()
        restarted = started()
        assert isinstance(restarted.ledger, SharedLedger)
        await restarted.ledger.write()
        with pytest.raises(BudgetExceeded):  # at its first request
            restarted.check_budget(key, "paid")
        await restarted.close()
