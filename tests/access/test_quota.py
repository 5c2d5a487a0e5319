import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.quota import (
    Bucket,
    BucketLevel,
    MemoryQuotaStore,
    QuotaStatus,
    Reservation,
    duration,
)
from serve_app.config import ApiKey
from serve_app.errors import QuotaExceeded


def key(name: str = "alice", **limits: int) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": "0" * 64, **limits})


class Clock:
    """Stands still unless it is set."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def refused(ledger: MemoryQuotaStore, key: ApiKey, tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await ledger.reserve(key, tokens)
    return caught.value


CAPACITY = 60
STEPS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 2 * CAPACITY)), min_size=1, max_size=60)


@given(STEPS)
async def test_in_no_span_of_time_more_passes_than_capacity_and_rate_allow(
    steps: list[tuple[float, int]],
) -> None:
    clock = Clock()
    ledger, limited = MemoryQuotaStore(clock), key(tokens_per_minute=CAPACITY)
    passed: list[tuple[float, int]] = []
    for pause_s, tokens in steps:
        clock.now_s += pause_s
        try:
            await ledger.reserve(limited, tokens)
        except QuotaExceeded:
            continue
        passed.append((clock.now_s, tokens))
    for i, j in itertools.combinations_with_replacement(range(len(passed)), 2):
        span_s = passed[j][0] - passed[i][0]
        sizes = [tokens for _, tokens in passed[i : j + 1]]
        # Only the last of a span may overdraw: what follows waits until the debt is gone.
        most = max(CAPACITY, sizes[-1])
        assert sum(sizes) <= most + CAPACITY * span_s / 60 + 1e-3


@given(STEPS)
async def test_whoever_waits_as_told_gets_in(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    ledger = MemoryQuotaStore(clock)
    limited = key(requests_per_minute=7, tokens_per_minute=CAPACITY)
    for pause_s, tokens in steps:
        clock.now_s += pause_s
        try:
            await ledger.reserve(limited, tokens)
        except QuotaExceeded as error:
            clock.now_s += error.retry_after_s
            await ledger.reserve(limited, tokens)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-100, 100)), max_size=30))
def test_a_bucket_is_never_fuller_than_full(steps: list[tuple[float, float]]) -> None:
    bucket, now_s = Bucket(), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        assert bucket.level(10, now_s).left <= 10
        bucket.charge(amount)


async def test_a_bucket_follows_its_limit() -> None:
    clock = Clock()
    ledger = MemoryQuotaStore(clock)
    await ledger.reserve(key(tokens_per_minute=100), 40)
    assert (await ledger.reserve(key(tokens_per_minute=50), 0)).status.tokens == BucketLevel(50, 50)
    clock.now_s += 30
    assert (await ledger.reserve(key(tokens_per_minute=100), 0)).status.tokens == BucketLevel(
        100, 100
    )


async def test_keys_do_not_share() -> None:
    ledger = MemoryQuotaStore(Clock())
    await ledger.reserve(key("a", requests_per_minute=1), 1)
    await ledger.reserve(key("b", requests_per_minute=1), 1)
    await refused(ledger, key("a", requests_per_minute=1))


def test_a_reply_tells_only_of_limits_that_there_are() -> None:
    assert Reservation(key(), 5).headers() == {}
    status = QuotaStatus(None, BucketLevel(600, 149.7))
    assert Reservation(key(), 5, status).headers() == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "149",
        "x-ratelimit-reset-tokens": "46s",
    }


def test_a_debt_is_told_as_nothing_left() -> None:
    headers = QuotaStatus(BucketLevel(60, -60), BucketLevel(60, 60)).headers()
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "2m0s"
    assert headers["x-ratelimit-remaining-tokens"] == "60"
    assert headers["x-ratelimit-reset-tokens"] == "0s"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "0s"),
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (7325, "2h2m5s"),
    ],
)
def test_a_duration_reads_as_openai_writes_it(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("limits", "taken", "words", "retry_after_s"),
    [
        ({"requests_per_minute": 2}, [40, 40], "limited to 2 requests a minute", 30),
        ({"tokens_per_minute": 60}, [40], "limited to 60 tokens a minute, and this request", 20),
        ({"concurrent_tokens": 60}, [40], "may have 60 tokens in work at once", 1),
        ({"requests_per_minute": 2, "tokens_per_minute": 60}, [20, 20], "2 requests a minute", 30),
        ({"requests_per_minute": 6, "tokens_per_minute": 60}, [20, 20], "60 tokens a minute", 20),
    ],
)
async def test_a_refusal_names_the_limit_and_when_to_come_back(
    limits: dict[str, Any], taken: list[int], words: str, retry_after_s: int
) -> None:
    ledger, limited = MemoryQuotaStore(Clock()), key(**limits)
    for tokens in taken:
        await ledger.reserve(limited, tokens)
    error = await refused(ledger, limited, 40)
    assert words in str(error)
    assert "'alice'" in str(error)
    assert f"Try again in {retry_after_s} s." in str(error)
    assert error.retry_after_s == retry_after_s
    assert ("x-ratelimit-limit-tokens" in error.headers) == ("tokens_per_minute" in limits)


async def test_what_is_refused_is_not_charged() -> None:
    ledger = MemoryQuotaStore(Clock())
    limited = key(requests_per_minute=10, tokens_per_minute=60, concurrent_tokens=1000)
    await ledger.reserve(limited, 50)
    for _ in range(20):
        await refused(ledger, limited, 20)
    status = (await ledger.reserve(limited, 10)).status
    assert status == QuotaStatus(BucketLevel(10, 8), BucketLevel(60, 0))
