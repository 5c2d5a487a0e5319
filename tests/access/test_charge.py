"""What requests cost goes to the ledger and to the metrics."""

from typing import Any

import numpy as np
import pytest

from serve_app.access.entrance import Entrance
from serve_app.access.ledger import MemoryLedger, Usage
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey
from serve_app.cost import Cost
from serve_app.meter import Meter
from serve_app.metrics import COST_NANO_USD, SAVED_NANO_USD
from serve_app.results import BatchResult, EmbedResult, Result, TokenizerResult

KEY = ApiKey(name="alice", sha256="0" * 64)


class RecordingLedger(MemoryLedger):
    """Records when it is opened and closed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    async def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def entrance(ledger: RecordingLedger, meter: Meter) -> Entrance:
    return Entrance(MemoryQuotaStore(), meter, ledger=ledger)


def result(tokens: int) -> EmbedResult:
    return EmbedResult(
        "m",
        np.zeros((2, 1), np.float32),
        np.array([tokens, 1], np.int32),
        np.zeros(2, np.bool_),
        np.zeros(2, np.uint8),
    )


async def usage(ledger: MemoryLedger) -> dict[tuple[str, str], Usage]:
    return {(row.model, row.key): row.usage for row in await ledger.rows()}


async def test_each_request_is_added_to_its_model_and_key(
    entrance: Entrance, ledger: RecordingLedger, meter: Meter
) -> None:
    batch = BatchResult([result(2), result(3)])
    entrance.charge(KEY, result(4).with_cost(Cost(40, 10, 1, 4)))
    entrance.charge(KEY, batch.with_cost(Cost(30, 0, 3, 7)))
    entrance.charge(None, result(1).with_cost(Cost(5, 5, 1, 1)))
    assert await usage(ledger) == {
        ("m", "alice"): Usage(2, 6, 4, 12, 11, 70, 10),
        ("m", ""): Usage(1, 2, 1, 2, 1, 5, 5),
    }
    assert [meter.value(COST_NANO_USD, key, "m") for key in ("alice", "")] == [70, 5]
    assert [meter.value(SAVED_NANO_USD, key, "m") for key in ("alice", "")] == [10, 5]
    totals = meter.totals()
    assert (totals.nano_usd, totals.saved_nano_usd) == (75, 15)


@pytest.mark.parametrize("free", [result(1), BatchResult([result(1)]), TokenizerResult[Any]()])
async def test_free_requests_are_not_charged(
    entrance: Entrance, ledger: RecordingLedger, meter: Meter, free: Result
) -> None:
    entrance.charge(KEY, free)
    assert await ledger.rows() == []
    assert meter.drain() == {}


async def test_the_ledger_is_opened_and_closed_with_the_entrance(
    entrance: Entrance, ledger: RecordingLedger
) -> None:
    entrance.apply(AccessSettings())
    await entrance.close()
    assert ledger.calls == ["open", "close"]
