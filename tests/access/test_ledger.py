from datetime import date

import pytest

from serve_app.access.ledger import LedgerRow, MemoryLedger, Usage


class Calendar:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.day = date(2026, 1, 31)

    def __call__(self) -> date:
        return self.day


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def ledger(calendar: Calendar) -> MemoryLedger:
    ledger = MemoryLedger(calendar)
    ledger.open()
    return ledger


def cost(nano_usd: int) -> Usage:
    return Usage(requests=1, nano_usd=nano_usd)


async def test_usage_is_added_up_by_day_model_and_key(
    ledger: MemoryLedger, calendar: Calendar
) -> None:
    usage = Usage(1, 3, 2, 30, 20, 10**15 + 1, 5)
    for key in ("alice", "", "alice"):
        ledger.add("m", key, usage)
    ledger.add("n", "alice", cost(7))
    calendar.day = date(2026, 2, 1)
    ledger.add("m", "alice", cost(1))
    rows = await ledger.rows()
    assert rows == [
        LedgerRow(date(2026, 1, 31), "m", "", usage),
        LedgerRow(date(2026, 1, 31), "m", "alice", Usage(2, 6, 4, 60, 40, 2 * 10**15 + 2, 10)),
        LedgerRow(date(2026, 1, 31), "n", "alice", cost(7)),
        LedgerRow(date(2026, 2, 1), "m", "alice", cost(1)),
    ]
    assert await ledger.rows(date(2026, 2, 1)) == rows[-1:]
    assert await ledger.rows(date(2026, 2, 2)) == []
    await ledger.close()


def test_a_month_counts_all_models_of_a_key(ledger: MemoryLedger, calendar: Calendar) -> None:
    ledger.add("m", "alice", cost(1))
    ledger.add("n", "alice", cost(2))
    ledger.add("m", "bob", cost(4))
    assert [ledger.month_nano_usd(key) for key in ("alice", "bob", "carol")] == [3, 4, 0]
    calendar.day = date(2026, 2, 1)
    assert ledger.month_nano_usd("alice") == 0
    ledger.add("m", "alice", cost(8))
    calendar.day = date(2026, 2, 28)
    assert ledger.month_nano_usd("alice") == 8
    calendar.day = date(2027, 2, 28)
    assert ledger.month_nano_usd("alice") == 0
