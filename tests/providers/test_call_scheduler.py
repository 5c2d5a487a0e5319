"""Batches, lanes, retries and the breaker of a model that a provider runs."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.config import ProviderSettings, QueueSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    Overloaded,
    TextTooLong,
    Unavailable,
    UpstreamError,
)
from serve_app.meter import Meter
from serve_app.metrics import (
    PROVIDER_CALLS,
    PROVIDER_NANO_USD,
    PROVIDER_RETRIES,
    PROVIDER_TEXTS,
    PROVIDER_TOKENS,
    REFUSED,
)
from serve_app.providers.call_scheduler import CallScheduler
from serve_app.providers.provider_group import ProviderGroup
from serve_app.types import Lane, Outputs, TextGroup, Vectors
from tests.fakes import SPEC, fake_vector
from tests.providers.scripted_provider import MovingClock, ScriptedProvider, errors

PRICED = replace(SPEC, max_tokens=8191, nano_usd_per_1k_tokens=20_000)
NAME = SPEC.name
#: Far more than any test needs.
LIMIT_S = 30


class Fixture:
    """A scheduler, its provider and its clock."""

    def __init__(
        self,
        provider: ScriptedProvider,
        queue: QueueSettings | None = None,
        *,
        waits: bool = True,
        **values: Any,
    ) -> None:
        self.provider = provider
        self.clock = MovingClock()
        self.meter = Meter()
        self.scheduler = CallScheduler(
            PRICED,
            provider,
            ProviderSettings(**values),
            self.meter.for_model(NAME),
            settings=queue or QueueSettings(),
            waits=waits,
            clock=self.clock,
            sleep=self.clock.sleep,
        )

    async def group(
        self,
        *texts: str,
        prompt: str = "",
        lane: Lane = "interactive",
        timeout_s: float = math.inf,
    ) -> ProviderGroup:
        """Returns a group that was submitted."""
        deadline_s = self.clock.now_s + timeout_s
        group = ProviderGroup(TextGroup(texts, prompt, lane=lane, deadline_s=deadline_s), texts)
        await self.scheduler.submit([group])
        return group

    async def result(self, *texts: str, **options: Any) -> Outputs | EmbedServeError:
        return await result(await self.group(*texts, **options))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0)

    def outcomes(self, outcome: str) -> float:
        return self.meter.value(PROVIDER_CALLS, outcome, NAME)


async def result(group: ProviderGroup) -> Outputs | EmbedServeError:
    async with asyncio.timeout(LIMIT_S):
        return await group.future


def check_vectors(actual: Outputs | EmbedServeError, *texts: str) -> Vectors:
    assert isinstance(actual, Vectors), actual
    assert np.array_equal(actual.values, np.stack([fake_vector(text) for text in texts]))
    assert not actual.truncated.any()
    return actual


@pytest.fixture
async def one_call() -> AsyncIterator[Fixture]:
    """At most one call at a time."""
    fixture = Fixture(ScriptedProvider(), max_concurrent_calls=1)
    yield fixture
    fixture.provider.release()
    await fixture.scheduler.stop()
    assert fixture.provider.is_closed


async def hold_a_call(fixture: Fixture) -> ProviderGroup:
    """Returns a group whose call is in flight until `release`."""
    fixture.provider.hold()
    group = await fixture.group("first")
    await fixture.until(lambda: fixture.provider.in_flight)
    return group


async def test_texts_of_several_requests_share_a_call(one_call: Fixture) -> None:
    first = await hold_a_call(one_call)
    others = [await one_call.group(f"a{i}", f"b{i}") for i in range(5)]
    one_call.provider.release()
    check_vectors(await result(first), "first")
    for i, other in enumerate(others):
        check_vectors(await result(other), f"a{i}", f"b{i}")
    assert [len(call) for call in one_call.provider.calls] == [1, 10]


async def test_a_call_has_one_prompt(one_call: Fixture) -> None:
    await hold_a_call(one_call)
    groups = [await one_call.group("a", prompt=prompt) for prompt in ("query", "document", "query")]
    one_call.provider.release()
    for group in groups:
        check_vectors(await result(group), "a")
    assert one_call.provider.prompts == ["", "query", "document"]
    assert one_call.provider.calls[1:] == [["a", "a"], ["a"]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=8),
    st.integers(1, 10),
    st.integers(30, 60),
)
def test_calls_keep_the_limits_and_lose_no_text(
    groups: list[list[int]], max_texts: int, max_tokens: int
) -> None:
    async def run() -> None:
        fixture = Fixture(ScriptedProvider(max_texts, max_tokens), max_concurrent_calls=2)
        texts = [
            tuple(f"{i}.{j}.".ljust(length, "x")[:30] for j, length in enumerate(lengths))
            for i, lengths in enumerate(groups)
        ]
        pending = [await fixture.group(*group) for group in texts]
        for group, expected in zip(pending, texts, strict=True):
            vectors = check_vectors(await result(group), *expected)
            assert vectors.token_counts.tolist() == [len(text) for text in expected]
        calls = fixture.provider.calls
        assert all(len(call) <= max_texts for call in calls)
        assert all(sum(map(len, call)) <= max_tokens for call in calls)
        assert sorted(t for call in calls for t in call) == sorted(t for g in texts for t in g)
        assert fixture.provider.max_in_flight <= 2
        await fixture.scheduler.stop()

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5), min_size=1))
def test_token_counts_sum_up_to_what_the_provider_bills(groups: list[list[str]]) -> None:
    async def run() -> None:
        fixture = Fixture(ScriptedProvider(max_texts=7))
        fixture.provider.counts_tokens = False
        pending = [await fixture.group(*group) for group in groups]
        vectors = [await result(group) for group in pending]
        counts = [v.token_counts.tolist() for v in vectors if isinstance(v, Vectors)]
        billed = sum(len(text) for group in groups for text in group)
        assert sum(map(sum, counts)) == billed == fixture.meter.value(PROVIDER_TOKENS, NAME)
        await fixture.scheduler.stop()

    bad = any("boom" in text for group in groups for text in group)
    if not bad:
        asyncio.run(run())


async def test_tokens_are_estimated_if_nobody_counts_them(one_call: Fixture) -> None:
    one_call.provider.counts_tokens = one_call.provider.tells_tokens = False
    vectors = check_vectors(await one_call.result("text", "längerer Text"), "text", "längerer Text")
    short, long = vectors.token_counts.tolist()
    assert 1 <= short < long <= len("längerer Text".encode())


async def test_a_text_over_the_limit_fails_without_a_call(one_call: Fixture) -> None:
    refused = await one_call.result("x" * 8192)
    assert isinstance(refused, TextTooLong)
    assert "8192" in str(refused)
    one_call.provider.counts_tokens = False
    assert isinstance(await one_call.result("x" * 200_000), TextTooLong)
    assert one_call.provider.calls == []
    check_vectors(await one_call.result("x" * 8192), "x" * 8192)  # which may have fewer tokens


async def test_interactive_texts_precede_bulk_texts_that_do_not_starve(one_call: Fixture) -> None:
    one_call.provider.limits = one_call.provider.limits._replace(max_texts=2)
    await hold_a_call(one_call)
    bulk = [await one_call.group(f"bulk {i}", lane="bulk") for i in range(4)]
    urgent = [await one_call.group(f"urgent {i}") for i in range(4)]
    one_call.provider.release()
    await asyncio.gather(*map(result, [*bulk, *urgent]))
    lanes = [call[0].split()[0] for call in one_call.provider.calls[1:]]
    assert lanes == ["urgent", "urgent", "bulk", "bulk"]

    one_call.provider.calls.clear()
    await hold_a_call(one_call)
    bulk = [await one_call.group(f"bulk {i}", lane="bulk") for i in range(4)]
    urgent = [await one_call.group(f"urgent {i}") for i in range(4)]
    one_call.clock.now_s += 5  # longer than `bulk_promotion_after_s`
    one_call.provider.release()
    await asyncio.gather(*map(result, [*bulk, *urgent]))
    lanes = [call[0].split()[0] for call in one_call.provider.calls[1:]]
    assert lanes == ["bulk", "urgent", "bulk", "urgent"]


async def test_a_large_request_fills_calls(one_call: Fixture) -> None:
    """An eighth of the queue is less than a call holds."""
    one_call.scheduler.settings = QueueSettings(max_queued_tokens=800)
    await hold_a_call(one_call)
    texts = [f"{i:04}" for i in range(1000)]
    large = await one_call.group(*texts, lane="bulk")
    one_call.provider.release()
    check_vectors(await result(large), *texts)
    assert [len(call) for call in one_call.provider.calls] == [1, 1000]


async def test_a_full_queue_is_a_429(one_call: Fixture) -> None:
    one_call.provider.limits = one_call.provider.limits._replace(max_tokens=100)
    one_call.scheduler.settings = QueueSettings(max_queued_tokens=100)
    first = await hold_a_call(one_call)
    queued = [await one_call.group("x" * 50) for _ in range(2)]
    refused = await one_call.result("x" * 50)
    assert isinstance(refused, Overloaded)
    assert refused.retry_after_s >= 1
    one_call.provider.release()
    check_vectors(await result(first), "first")
    for group in queued:
        check_vectors(await result(group), "x" * 50)
    await one_call.until(lambda: not any(one_call.scheduler.queued_tokens().values()))
    assert one_call.meter.value(REFUSED, "rate_limit_exceeded", "interactive", NAME) == 1


async def test_texts_that_nobody_waits_for_cost_nothing(one_call: Fixture) -> None:
    await hold_a_call(one_call)
    left, remaining = await one_call.group("left"), await one_call.group("remains")
    left.future.cancel()
    late = await one_call.group("late", timeout_s=1)
    one_call.clock.now_s += 2
    one_call.provider.release()
    check_vectors(await result(remaining), "remains")
    assert isinstance(await result(late), DeadlineExceeded)
    assert one_call.provider.calls == [["first"], ["remains"]]
    await one_call.until(lambda: not any(one_call.scheduler.queued_tokens().values()))


async def test_a_call_is_cancelled_when_nobody_needs_it(one_call: Fixture) -> None:
    first = await hold_a_call(one_call)
    first.future.cancel()
    await one_call.until(lambda: one_call.provider.cancelled)
    one_call.provider.release()
    check_vectors(await one_call.result("next"), "next")
    assert one_call.outcomes("cancelled") == 1

    await hold_a_call(one_call)
    both = [await one_call.group("a"), await one_call.group("b")]
    one_call.provider.release()
    await one_call.until(lambda: one_call.provider.calls[-1] == ["a", "b"])
    both[0].future.cancel()
    check_vectors(await result(both[1]), "b")


async def test_failures_are_retried_with_growing_pauses(one_call: Fixture) -> None:
    one_call.provider.errors = errors(*[Unavailable("down")] * 3)
    check_vectors(await one_call.result("a"), "a")
    first, second, third = one_call.clock.slept_s
    assert 0.25 <= first <= 0.5 <= second <= 1 <= third <= 2
    assert one_call.meter.value(PROVIDER_RETRIES, NAME) == 3
    assert one_call.outcomes("unavailable") == 3
    assert one_call.outcomes("ok") == 1


async def test_retries_end(one_call: Fixture) -> None:
    one_call.provider.errors = errors(*[Unavailable("down")] * 4)
    assert str(await one_call.result("a")) == "down"
    assert len(one_call.provider.calls) == 4


async def test_retry_after_is_obeyed(one_call: Fixture) -> None:
    one_call.provider.errors = errors(Overloaded("too fast", 20))
    check_vectors(await one_call.result("a"), "a")
    assert 20 <= sum(one_call.clock.slept_s) < 22


async def test_a_rate_limit_beyond_the_deadline_is_a_429_at_once(one_call: Fixture) -> None:
    one_call.provider.errors = errors(Overloaded("too fast", 20))
    patient = await one_call.group("patient", timeout_s=60)
    hasty = await one_call.group("hasty", timeout_s=10)
    refused = await result(hasty)
    assert isinstance(refused, Overloaded)
    assert 20 <= refused.retry_after_s <= 22
    check_vectors(await result(patient), "patient")
    assert one_call.provider.calls == [["patient", "hasty"], ["patient"]]

    patient = await hold_a_call(one_call)
    queued = await one_call.group("queued", timeout_s=10)
    one_call.provider.errors = errors(Overloaded("too fast", 20))
    one_call.provider.release()
    assert isinstance(await result(queued), Overloaded)
    check_vectors(await result(patient), "first")


async def test_an_unavailable_provider_is_left_alone_as_long_as_it_asks(one_call: Fixture) -> None:
    one_call.provider.errors = errors(Unavailable("maintenance", 20))
    patient = await one_call.group("patient", timeout_s=60)
    hasty = await one_call.group("hasty", timeout_s=10)
    refused = await result(hasty)
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_s == 20
    check_vectors(await result(patient), "patient")


async def test_no_call_starts_while_the_provider_wants_none() -> None:
    fixture = Fixture(ScriptedProvider(), max_retries=0)
    fixture.provider.errors = errors(Overloaded("too fast", 20))
    assert isinstance(await fixture.result("a", timeout_s=60), Overloaded)
    refused = await fixture.result("b", timeout_s=10)
    assert isinstance(refused, Overloaded)
    assert 20 <= refused.retry_after_s <= 22
    assert fixture.provider.calls == [["a"]]
    waiting = [await fixture.group(text, timeout_s=60) for text in "cd"]
    for group, text in zip(waiting, "cd", strict=True):
        check_vectors(await result(group), text)
    assert fixture.clock.now_s >= 1020
    assert fixture.provider.calls == [["a"], ["c", "d"]]
    await fixture.scheduler.stop()


async def test_no_text_waits_for_a_rate_limit_if_another_model_can_answer() -> None:
    fixture = Fixture(ScriptedProvider(), waits=False, max_concurrent_calls=1)
    calling, queued = await hold_a_call(fixture), await fixture.group("queued")
    fixture.provider.errors = errors(Overloaded("too fast", 20))
    fixture.provider.release()
    for group in (calling, queued, await fixture.group("later")):
        assert isinstance(await result(group), Overloaded)
    assert fixture.clock.now_s < 1020
    fixture.clock.now_s += 22
    check_vectors(await fixture.result("after it"), "after it")
    await fixture.scheduler.stop()


async def test_a_call_has_no_more_time_than_its_callers(one_call: Fixture) -> None:
    await one_call.result("a", timeout_s=7)
    await one_call.result("b")
    await asyncio.gather(
        *map(result, [await one_call.group("c", timeout_s=7), await one_call.group("d")])
    )
    assert one_call.provider.timeouts_s == [7, 30, 30]


async def test_a_provider_that_hangs_until_the_deadline_is_a_504(one_call: Fixture) -> None:
    one_call.provider.hold()
    late = await one_call.group("a", timeout_s=0.02)
    await one_call.until(lambda: one_call.provider.in_flight)
    one_call.clock.now_s += 0.03
    assert isinstance(await result(late), DeadlineExceeded)
    assert one_call.scheduler.failure is None


@pytest.mark.parametrize(
    ("timeout_s", "waited_s", "opens"), [(10, 9.9, True), (10, 6, False), (2, 2, False)]
)
async def test_a_provider_that_hangs_opens_the_breaker_also_for_hasty_clients(
    one_call: Fixture, timeout_s: float, waited_s: float, opens: bool
) -> None:
    """Clients that leave before their time is up prove nothing."""
    one_call.provider.hold()
    for i in range(5):
        group = await one_call.group(f"{i}", timeout_s=timeout_s)
        await one_call.until(lambda: one_call.provider.in_flight)
        one_call.clock.now_s += waited_s
        group.future.cancel()
        await one_call.until(lambda: not one_call.scheduler.in_flight)
    assert (one_call.scheduler.failure is not None) == opens


async def test_a_refused_text_fails_its_request_only(one_call: Fixture) -> None:
    await hold_a_call(one_call)
    texts = [f"{i}{'boom' if i in (3, 11) else ''}" for i in range(16)]
    groups = [await one_call.group(text) for text in texts]
    one_call.provider.release()
    for group, text in zip(groups, texts, strict=True):
        actual = await result(group)
        if "boom" in text:
            assert isinstance(actual, InvalidRequest)
            assert text in str(actual)
        else:
            check_vectors(actual, text)
    assert one_call.scheduler.failure is None
    assert one_call.meter.value(PROVIDER_TEXTS, NAME) == 1 + 14  # each was billed once


async def test_a_request_fails_as_a_whole_once_its_bad_text_is_alone(one_call: Fixture) -> None:
    await hold_a_call(one_call)
    bad = await one_call.group("a", "boom", "c")
    good = await one_call.group("d", "e")
    one_call.provider.release()
    assert isinstance(await result(bad), InvalidRequest)
    check_vectors(await result(good), "d", "e")
    assert one_call.provider.calls[1:] == [
        ["a", "boom", "c", "d", "e"],
        ["a", "boom", "c"],
        ["a"],
        ["boom", "c"],
        ["boom"],  # "c" isn't needed any more
        ["d", "e"],
    ]


async def test_a_call_that_is_too_large_after_all_is_halved(
    one_call: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimates may be wrong."""
    embed = one_call.provider.embed

    async def refuse_many(texts: Any, prompt: str, timeout_s: float) -> Any:
        if len(texts) > 3:
            raise InvalidRequest("too many tokens")
        return await embed(texts, prompt, timeout_s)

    monkeypatch.setattr(one_call.provider, "embed", refuse_many)
    texts = [f"{i}" for i in range(10)]
    check_vectors(await one_call.result(*texts), *texts)


@pytest.mark.parametrize("error", [UpstreamError("The key was refused."), ValueError("sk-secret")])
async def test_other_errors_are_not_retried(
    one_call: Fixture, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    one_call.provider.errors.append(error)
    failed = await one_call.result("a")
    assert isinstance(failed, UpstreamError)
    assert "sk-secret" not in str(failed) + caplog.text
    assert len(one_call.provider.calls) == 1


async def open_breaker(fixture: Fixture) -> None:
    fixture.provider.errors = errors(*[UpstreamError("The reply has no vectors.")] * 5)
    for i in range(5):
        await fixture.result(f"fails {i}")


async def test_a_failing_provider_gets_no_more_calls(one_call: Fixture) -> None:
    await open_breaker(one_call)
    refused = await one_call.result("a")
    assert isinstance(refused, Unavailable)
    assert refused.retry_after_s
    assert "no vectors" in str(refused) == str(one_call.scheduler.failure)
    assert len(one_call.provider.calls) == 5


async def test_one_call_tries_a_failing_provider(one_call: Fixture) -> None:
    await open_breaker(one_call)
    one_call.clock.now_s += 6
    one_call.provider.errors = errors(Unavailable("still down"))
    assert isinstance(await one_call.result("probe"), Unavailable)
    assert isinstance(await one_call.result("a"), Unavailable)
    assert len(one_call.provider.calls) == 6  # the probe isn't retried
    assert one_call.clock.slept_s == []

    one_call.clock.now_s += 6
    one_call.provider.hold()
    probe = await one_call.group("probe")
    await one_call.until(lambda: one_call.provider.in_flight)
    assert isinstance(await one_call.result("meanwhile"), Unavailable)
    one_call.provider.release()
    check_vectors(await result(probe), "probe")
    assert one_call.scheduler.failure is None
    check_vectors(await one_call.result("a"), "a")


async def test_a_cancelled_probe_is_followed_by_another(one_call: Fixture) -> None:
    await open_breaker(one_call)
    one_call.clock.now_s += 6
    one_call.provider.hold()
    probe = await one_call.group("probe")
    await one_call.until(lambda: one_call.provider.in_flight)
    probe.future.cancel()
    await one_call.until(lambda: one_call.provider.cancelled)
    one_call.provider.release()
    await one_call.until(lambda: not one_call.scheduler.in_flight)
    check_vectors(await one_call.result("next"), "next")


async def test_queued_texts_fail_when_the_breaker_opens() -> None:
    fixture = Fixture(ScriptedProvider(), max_concurrent_calls=5)
    fixture.provider.hold()
    calling = []
    for i in range(5):
        calling.append(await fixture.group(f"{i}"))
        await fixture.until(lambda: fixture.provider.in_flight == len(calling))
    queued = await fixture.group("queued")
    fixture.provider.errors = errors(*[Unavailable("down")] * 5)
    fixture.provider.release()
    failed = await asyncio.gather(*map(result, [*calling, queued]))
    assert all(isinstance(error, Unavailable) for error in failed)
    assert ["queued"] not in fixture.provider.calls
    await fixture.scheduler.stop()


async def test_rate_limits_and_refused_texts_open_no_breaker(one_call: Fixture) -> None:
    one_call.provider.errors = errors(*[Overloaded("too fast", 1)] * 3)
    await one_call.result("a")
    for i in range(9):
        await one_call.result(f"boom {i}")
    assert one_call.scheduler.failure is None


async def test_stopping_fails_all_texts(one_call: Fixture) -> None:
    calling = await hold_a_call(one_call)
    queued = await one_call.group("queued")
    await one_call.scheduler.stop()
    for group in (calling, queued, await one_call.group("later")):
        assert isinstance(await result(group), Unavailable)


async def test_the_price_of_what_was_billed_is_counted(one_call: Fixture) -> None:
    await one_call.result("x" * 1000, "x" * 500)
    assert one_call.meter.value(PROVIDER_TOKENS, NAME) == 1500
    assert one_call.meter.value(PROVIDER_NANO_USD, NAME) == 30_000


async def test_a_wrong_number_of_vectors_is_an_error(
    one_call: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Providers check their replies; a bug there must not hang requests."""
    embed = one_call.provider.embed

    async def lose_one(texts: Any, prompt: str, timeout_s: float) -> Any:
        embedded = await embed(texts, prompt, timeout_s)
        return embedded._replace(vectors=embedded.vectors[:-1])

    monkeypatch.setattr(one_call.provider, "embed", lose_one)
    assert isinstance(await one_call.result("a", "b"), InferenceError)


OUTCOMES = st.sampled_from(
    [
        None,
        None,
        Unavailable("down"),
        Overloaded("too fast", 0),
        Overloaded("too fast", 5),
        UpstreamError("wrong"),
        InvalidRequest("refused"),
        ValueError("a bug"),
    ]
)
REQUESTS = st.lists(
    st.tuples(
        st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6, unique=True),
        st.sampled_from(["", "query: "]),
        st.sampled_from(["interactive", "bulk"]),
        st.sampled_from([1.0, 6.0, math.inf]),  # seconds until the deadline
        st.booleans(),  # whether the caller leaves
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(REQUESTS, st.lists(OUTCOMES, max_size=30), st.integers(1, 3))
def test_whatever_fails_every_request_gets_its_vectors_or_an_error(
    requests: list[Any], outcomes: list[EmbedServeError | None], max_calls: int
) -> None:
    async def run() -> None:
        fixture = Fixture(ScriptedProvider(4, 60), max_concurrent_calls=max_calls, max_retries=2)
        fixture.provider.errors = errors(*outcomes)
        groups = [
            await fixture.group(*texts, prompt=prompt, lane=lane, timeout_s=timeout_s)
            for texts, prompt, lane, timeout_s, _ in requests
        ]
        for group, (*_, leaves) in zip(groups, requests, strict=True):
            if leaves:
                group.future.cancel()
                await asyncio.sleep(0)
        for group, (texts, *_, leaves) in zip(groups, requests, strict=True):
            if leaves and group.future.cancelled():
                continue
            actual = await result(group)
            if not isinstance(actual, EmbedServeError):
                check_vectors(actual, *texts)
        await fixture.until(lambda: not fixture.scheduler.in_flight)
        assert fixture.scheduler.queued_tokens() == {"interactive": 0, "bulk": 0}
        assert fixture.provider.max_in_flight <= max_calls
        await fixture.scheduler.stop()

    asyncio.run(run())
