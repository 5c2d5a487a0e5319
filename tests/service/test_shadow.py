"""A second model embeds a share of an alias' texts: bounded, counted, and never in the way."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.config import IngressSettings, ShadowSettings
from serve_app.errors import DeadlineExceeded, EmbedServeError, Overloaded, Unavailable
from serve_app.jobs import BatchJob, EmbedJob, Job, TokenVectorsJob
from serve_app.meter import Meter
from serve_app.metrics import (
    SHADOW_COSINE,
    SHADOW_NANO_USD,
    SHADOW_NEIGHBOR_AGREEMENT,
    SHADOW_RANK_CORRELATION,
    SHADOW_SAMPLE_TEXTS,
    SHADOW_TEXTS,
    SHADOW_TOKENS,
)
from serve_app.service.alias import Alias
from serve_app.service.embed import EmbedService
from serve_app.service.shadow import Shadow
from tests.fakes import SPEC, FakeBackend
from tests.virtual_time import Clock, run_in_virtual_time

SECOND = replace(
    SPEC,
    name="org/second",
    aliases=(),
    space_id="beef-fp32",
    prompts={},
    nano_usd_per_1k_tokens=1_000_000,
)
LIMIT_S = 20


class Models:
    """Two models and their backends, the second one as the shadow of the alias `words`."""

    def __init__(self, **settings: Any) -> None:
        self.meter = Meter()
        self.first, self.second = FakeBackend(), FakeBackend()
        primary, second = (
            EmbedService(spec, backend, IngressSettings(), self.meter.for_model(spec.name))
            for spec, backend in ((SPEC, self.first), (SECOND, self.second))
        )
        self.primary, self.other = primary, second
        chosen = ShadowSettings.model_validate({"model": SECOND.name, "share": 1.0, **settings})
        self.shadow = Shadow("words", primary, second, chosen, compare_every_s=0)
        self.alias = Alias("words", primary, shadow=self.shadow)

    async def ask(self, *texts: str, **options: Any) -> None:
        """Embeds texts with the first model, as a request for the alias does."""
        await self.run(EmbedJob(texts, **options))

    async def run(self, job: Job[Any]) -> None:
        self.alias.observe(self.primary, job, await self.primary.run(job))

    def outcomes(self) -> dict[str, int]:
        return dict(self.shadow.sample().outcomes)

    def count(self, outcome: str) -> float:
        return self.meter.value(SHADOW_TEXTS, outcome, "words", SECOND.name)


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something is true."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


def compared(models: Models) -> int:
    """Returns the number of texts in the latest comparison."""
    found = models.shadow.sample().agreement
    return 0 if found is None else found.texts


async def compared_texts(models: Models) -> set[Any]:
    """Returns the texts that the second model has embedded, once it has nothing left to do."""
    await until(lambda: len(asyncio.all_tasks()) == 1)
    return {text for group in models.second.groups for text in group.texts}


def words(n: int, prefix: str = "text") -> list[str]:
    return [f"{prefix} {i}" for i in range(n)]


async def test_both_models_embed_the_texts_and_are_compared() -> None:
    models = Models()
    await models.ask(*words(40))
    await until(lambda: compared(models) == 40)
    sample = models.shadow.sample()
    assert sample.agreement is not None
    assert sample.agreement.kept == 1.0  # both fakes compute alike
    assert sample.agreement.rank_correlation == pytest.approx(1.0)
    assert sample.agreement.cosine is None
    assert sample.outcomes == {"compared": 40}
    assert sample.primary.texts == sample.second.texts == 40
    assert sample.second.computed_tokens == sample.second.tokens == sum(map(len, words(40)))
    assert {group.lane for group in models.second.groups} == {"bulk"}
    assert max(len(group.texts) for group in models.second.groups) <= 32
    await models.shadow.close()


async def test_metrics_tell_what_was_compared() -> None:
    models = Models(cosine=True)
    await models.ask(*words(5))
    await until(lambda: compared(models) == 5)
    tags = ("words", SECOND.name)
    gauges = models.shadow.gauges()
    assert gauges[SHADOW_SAMPLE_TEXTS] == {tags: 5}
    assert gauges[SHADOW_NEIGHBOR_AGREEMENT] == {("10", *tags): 1.0, ("1", *tags): 1.0}
    assert gauges[SHADOW_RANK_CORRELATION][tags] == pytest.approx(1.0)
    assert gauges[SHADOW_COSINE][tags] == pytest.approx(1.0)
    assert models.count("compared") == 5
    assert models.meter.value(SHADOW_TOKENS, *tags) == 30  # five texts of six characters
    assert models.meter.value(SHADOW_NANO_USD, *tags) == 30_000
    assert models.meter.value(SHADOW_NANO_USD, "words", SPEC.name) == 0
    await models.shadow.close()


async def test_a_share_of_the_distinct_texts_is_compared() -> None:
    models = Models(share=0.25, sample_texts=20)
    await models.ask(*words(2000))
    asked = await compared_texts(models)
    assert 400 < len(asked) < 600
    again = Models(share=0.25, sample_texts=20)
    await again.ask(*words(2000))
    assert await compared_texts(again) == asked  # in every replica


async def test_a_text_is_compared_once_while_it_is_in_the_sample() -> None:
    models = Models(sample_texts=20)
    await models.ask("one", "two", "one")
    await models.ask("two")
    await until(lambda: models.count("compared") == 2)
    await models.ask("one")
    await models.ask(*words(20))
    await until(lambda: models.count("compared") == 22)
    await models.ask("one")  # has left the sample
    await until(lambda: models.count("compared") == 23)
    await models.shadow.close()


async def test_an_answer_never_waits_for_the_shadow() -> None:
    models = Models(timeout_s=600)
    models.second.delay_s = 300
    await models.ask("a")
    await until(lambda: len(models.second.groups) == 1)
    await models.ask("b")
    assert (len(models.first.groups), models.outcomes()) == (2, {})
    await models.shadow.close()


async def test_a_full_queue_drops_texts_and_counts_them() -> None:
    models = Models(timeout_s=600)
    models.second.delay_s = 300
    await models.ask("a")
    await until(lambda: len(models.second.groups) == 1)
    await models.ask(*words(1030))
    assert models.count("full") == 6
    await models.shadow.close()


async def test_long_texts_fill_the_queue_by_their_characters() -> None:
    models = Models(timeout_s=600)
    models.second.delay_s = 300
    await models.ask("a")
    await until(lambda: len(models.second.groups) == 1)
    texts = [f"{i}" + 200_000 * "x" for i in range(25)]
    await models.ask(*texts)
    assert models.count("full") == 5
    await models.shadow.close()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Unavailable("no"), "failed"),
        (Overloaded("full"), "overloaded"),
        (DeadlineExceeded("late"), "timeout"),
    ],
)
def test_a_second_model_that_fails_is_asked_less_often(
    error: EmbedServeError, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models()
    models.second.error = error

    async def ask_for_a_minute(clock: Clock) -> None:
        for i in range(600):
            await models.ask(f"secret {i}")
            await asyncio.sleep(0.1)
        await models.shadow.close()

    with caplog.at_level(logging.INFO):
        run_in_virtual_time(ask_for_a_minute)
    assert 2 <= len(models.second.groups) <= 8
    assert models.count(outcome) > 0
    assert models.count("compared") == 0
    assert len(models.first.groups) == 600
    assert len(caplog.records) == 1  # not one for each attempt
    assert "secret" not in caplog.text


async def test_it_goes_on_once_the_second_model_recovers() -> None:
    models = Models()
    models.second.error = Unavailable("no")
    await models.ask("a")
    await until(lambda: models.count("failed") == 1)
    models.second.error = None
    await models.ask("a")
    await until(lambda: models.count("compared") == 1)
    await models.shadow.close()


async def test_a_slow_second_model_times_out() -> None:
    models = Models(timeout_s=0.01)
    models.second.delay_s = 300
    await models.ask("a")
    await until(lambda: models.count("timeout") == 1)
    await models.shadow.close()


@pytest.mark.parametrize(
    "job",
    [
        EmbedJob(("a",), use_cache=False),
        EmbedJob(("a",), truncation="chunk"),
        EmbedJob(("a",), max_tokens=4),
        EmbedJob(((97, 98),)),
        TokenVectorsJob(EmbedJob(("a",))),
    ],
    ids=["no-store", "chunk", "max_tokens", "token ids", "token vectors"],
)
async def test_texts_that_both_models_would_treat_differently_are_left_out(job: Job[Any]) -> None:
    models = Models()
    await models.run(job)
    await models.ask("b")
    await until(lambda: models.count("compared") == 1)
    assert [group.texts for group in models.second.groups] == [("b",)]
    await models.shadow.close()


async def test_the_jobs_of_a_batch_are_compared_with_all_dimensions() -> None:
    models = Models()
    jobs = (EmbedJob(("a", "b"), dimensions=2), EmbedJob(("c",)))
    await models.run(BatchJob(jobs))
    await until(lambda: compared(models) == 3)
    found = models.shadow.sample().agreement
    assert found is not None
    assert (found.texts, found.kept_first) == (3, 1.0)
    await models.shadow.close()


async def test_an_input_type_that_the_second_model_lacks_is_left_out() -> None:
    models = Models()
    await models.ask("a", input_type="query")
    await models.ask("a")  # another text to the first model
    await until(lambda: models.count("compared") == 2)
    assert {group.prompt for group in models.second.groups} == {""}
    await models.shadow.close()


async def test_answers_of_another_model_are_not_compared() -> None:
    models = Models()
    job = EmbedJob(("a",))
    models.alias.observe(models.other, job, await models.other.run(job))
    await models.ask("b")
    await until(lambda: models.count("compared") == 1)
    assert models.second.groups[-1].texts == ("b",)
    await models.shadow.close()


async def test_a_bug_in_the_comparison_harms_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models()
    monkeypatch.setattr(models.shadow, "offer", lambda *_: 1 / 0)
    await models.ask("a")
    assert "ZeroDivisionError" in caplog.text


async def test_closing_ends_its_task() -> None:
    models = Models(timeout_s=600)
    models.second.delay_s = 300
    before = asyncio.all_tasks()
    await models.ask("a", "b")
    await until(lambda: len(models.second.groups) == 1)
    await models.shadow.close()
    await models.shadow.close()
    assert asyncio.all_tasks() == before


async def test_the_task_ends_when_nothing_is_left() -> None:
    models = Models()
    before = asyncio.all_tasks()
    await models.ask("a")
    await until(lambda: models.count("compared") == 1 and asyncio.all_tasks() == before)
    await models.ask("b")
    await until(lambda: models.count("compared") == 2)
    await models.shadow.close()
