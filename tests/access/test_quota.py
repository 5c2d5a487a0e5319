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
    format_duration,
)
from serve_app.config import ApiKey
from serve_app.errors import QuotaExceeded


def key(name: str = "alice", **limits: int) -> ApiKey:
    return ApiKey.model_validate({"name": name, "sha256": "0" * 64, **limits})


class Clock:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def refusal(store: MemoryQuotaStore, key: ApiKey, tokens: int = 1) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await store.reserve(key, tokens)
    return caught.value


CAPACITY = 60
STEPS = st.lists(st.tuples(st.floats(0, 90), st.integers(1, 2 * CAPACITY)), min_size=1, max_size=60)


@given(STEPS)
async def test_no_period_exceeds_capacity_plus_rate(
    steps: list[tuple[float, int]],
) -> None:
    clock = Clock()
    store, limited = MemoryQuotaStore(clock), key(tokens_per_minute=CAPACITY)
    admitted: list[tuple[float, int]] = []
    for pause_s, tokens in steps:
        clock.now_s += pause_s
        try:
            await store.reserve(limited, tokens)
        except QuotaExceeded:
            continue
        admitted.append((clock.now_s, tokens))
    for i, j in itertools.combinations_with_replacement(range(len(admitted)), 2):
        period_s = admitted[j][0] - admitted[i][0]
        sizes = [tokens for _, tokens in admitted[i : j + 1]]
        # Only the last request of a period may overdraw: those after it wait for the refill.
        capacity = max(CAPACITY, sizes[-1])
        assert sum(sizes) <= capacity + CAPACITY * period_s / 60 + 1e-3


@given(STEPS)
async def test_a_request_passes_after_its_retry_delay(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    store = MemoryQuotaStore(clock)
    limited = key(requests_per_minute=7, tokens_per_minute=CAPACITY)
    for pause_s, tokens in steps:
        clock.now_s += pause_s
        try:
            await store.reserve(limited, tokens)
        except QuotaExceeded as error:
            clock.now_s += error.retry_after_s
            await store.reserve(limited, tokens)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-100, 100)), max_size=30))
def test_a_bucket_never_exceeds_its_limit(steps: list[tuple[float, float]]) -> None:
    bucket, now_s = Bucket(), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        assert bucket.level(10, now_s).remaining <= 10
        bucket.charge(amount)


async def test_a_bucket_follows_a_changed_limit() -> None:
    clock = Clock()
    store = MemoryQuotaStore(clock)
    await store.reserve(key(tokens_per_minute=100), 40)
    assert (await store.reserve(key(tokens_per_minute=50), 0)).status.tokens == BucketLevel(50, 50)
    clock.now_s += 30
    assert (await store.reserve(key(tokens_per_minute=100), 0)).status.tokens == BucketLevel(
        100, 100
    )


async def test_keys_have_separate_quotas() -> None:
    store = MemoryQuotaStore(Clock())
    await store.reserve(key("a", requests_per_minute=1), 1)
    await store.reserve(key("b", requests_per_minute=1), 1)
    await refusal(store, key("a", requests_per_minute=1))


def test_headers_include_only_the_limits_of_the_key() -> None:
    assert Reservation(key(), 5).headers() == {}
    status = QuotaStatus(None, BucketLevel(600, 149.7))
    assert Reservation(key(), 5, status=status).headers() == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "149",
        "x-ratelimit-reset-tokens": "46s",
    }


def test_an_overdrawn_bucket_is_reported_as_empty() -> None:
    headers = QuotaStatus(BucketLevel(60, -60), BucketLevel(60, 60)).headers()
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "2m0s"
    assert headers["x-ratelimit-remaining-tokens"] == "60"
    assert headers["x-ratelimit-reset-tokens"] == "0s"


@pytest.mark.parametrize(
    ("seconds", "formatted"),
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
def test_durations_are_formatted_like_openais(seconds: float, formatted: str) -> None:
    assert format_duration(seconds) == formatted


@pytest.mark.parametrize(
    ("limits", "reserved", "reason", "retry_after_s"),
    [
        ({"requests_per_minute": 2}, [40, 40], "limited to 2 requests a minute", 30),
        ({"tokens_per_minute": 60}, [40], "limited to 60 tokens a minute, and this request", 20),
        ({"concurrent_tokens": 60}, [40], "limited to 60 tokens in flight", 1),
        ({"requests_per_minute": 2, "tokens_per_minute": 60}, [20, 20], "2 requests a minute", 30),
        ({"requests_per_minute": 6, "tokens_per_minute": 60}, [20, 20], "60 tokens a minute", 20),
    ],
)
async def test_the_error_names_the_limit_and_the_retry_delay(
    limits: dict[str, Any], reserved: list[int], reason: str, retry_after_s: int
) -> None:
    store, limited = MemoryQuotaStore(Clock()), key(**limits)
    for tokens in reserved:
        await store.reserve(limited, tokens)
    error = await refusal(store, limited, 40)
    assert reason in str(error)
    assert "'alice'" in str(error)
    assert f"Try again in {retry_after_s} s." in str(error)
    assert error.retry_after_s == retry_after_s
    assert ("x-ratelimit-limit-tokens" in error.headers) == ("tokens_per_minute" in limits)


async def test_a_refused_request_is_not_charged() -> None:
    store = MemoryQuotaStore(Clock())
    limited = key(requests_per_minute=10, tokens_per_minute=60, concurrent_tokens=1000)
    await store.reserve(limited, 50)
    for _ in range(20):
        await refusal(store, limited, 20)
    status = (await store.reserve(limited, 10)).status
    assert status == QuotaStatus(BucketLevel(10, 8), BucketLevel(60, 0))


async def test_a_key_has_a_quota_for_each_model() -> None:
    store = MemoryQuotaStore(Clock())
    limited = key(requests_per_minute=1, concurrent_tokens=10)
    first = await store.reserve(limited, 10, "a")
    second = await store.reserve(limited, 10, "b")
    for model in "ab":
        with pytest.raises(QuotaExceeded):
            await store.reserve(limited, 1, model)
    await store.commit(first, 10)
    await store.commit(second, 10)
