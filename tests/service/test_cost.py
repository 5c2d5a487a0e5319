"""The cost of jobs: what was computed for them, times the price."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve_app.config import IngressSettings
from serve_app.cost import Cost
from serve_app.errors import DeadlineExceeded, InvalidRequest, TextTooLong
from serve_app.inputs import TextPair
from serve_app.jobs import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    Job,
    ScoreJob,
    SparseJob,
    TokenizeJob,
    TokenVectorsJob,
)
from serve_app.service.embed import EmbedService
from serve_app.types import Tier
from tests.fakes import SPEC, TEXT_TASKS, FakeBackend, fake_vector

#: Two nano-dollars for each token.
PRICE = 2000
PRICED = replace(TEXT_TASKS, nano_usd_per_1k_tokens=PRICE)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> EmbedService:
    return EmbedService(PRICED, backend, IngressSettings(max_texts_per_request=4))


async def cost_of(service: EmbedService, job: Job[Any]) -> Cost | None:
    cost: Cost | None = (await service.run(job)).cost
    return cost


@pytest.mark.parametrize(
    ("job", "computed"),
    [
        (EmbedJob(("a", "bc")), (2, 3)),
        (EmbedJob(("a", "bc", "a", "bc")), (2, 3)),
        (EmbedJob(("a", "bc"), use_cache=False), (2, 3)),
        (EmbedJob(("a",), input_type="query"), (1, 1)),
        (SparseJob(EmbedJob(("a", "bc", "a"))), (2, 3)),
        (TokenVectorsJob(EmbedJob(("a", "bc", "a"))), (2, 3)),
        (ScoreJob((TextPair("a", "b"), TextPair("a", "bc"), TextPair("a", "b"))), (2, 5)),
        (ScoreJob(("a", "bc"), "classify"), (2, 3)),
        (BatchJob((EmbedJob(("a",)), EmbedJob(("bc", "d")))), (3, 4)),
    ],
    ids=str,
)
async def test_distinct_inputs_are_charged_by_their_tokens(
    service: EmbedService, job: Job[Any], computed: tuple[int, int]
) -> None:
    result = await service.run(job)
    texts, tokens = computed
    assert result.cost == Cost(2 * tokens, 2 * (result.billed_tokens - tokens), texts, tokens)


async def test_only_what_was_computed_for_the_request_is_charged(
    service: EmbedService, backend: FakeBackend
) -> None:
    backend.tiers = [Tier.COMPUTED, Tier.L1, Tier.L2, Tier.JOINED]
    result = await service.run(EmbedJob(("a", "bb", "ccc", "dddd")))
    assert result.cost == Cost(2, 18, 1, 1)
    assert result.cached_tokens == 9


async def test_of_a_text_in_chunks_those_that_were_computed_are_charged(
    service: EmbedService, backend: FakeBackend
) -> None:
    backend.tiers = [Tier.L1, Tier.COMPUTED]
    result = await service.run(EmbedJob(("abcdefghijklmnopqrst",), truncation="chunk"))
    first, second = (len(text) for text in backend.groups[0].texts)
    assert result.cost == Cost(2 * second, 2 * first, 1, second)


async def test_max_sim_charges_each_query_and_each_document_once(backend: FakeBackend) -> None:
    spec = replace(PRICED, kind="multi-vector", tasks=("embed_tokens", "rerank"))
    pairs = (TextPair("ab", "c"), TextPair("ab", "de"), TextPair("ab", "c"))
    result = await EmbedService(spec, backend, IngressSettings()).run(ScoreJob(pairs))
    tokens = len("?ab") + len("c") + len("de")
    assert result.cost == Cost(2 * tokens, 2 * (result.billed_tokens - tokens), 3, tokens)


@pytest.mark.parametrize("job", [TokenizeJob(("a",)), DecodeJob(((97,),))], ids=str)
async def test_tokenization_is_free(service: EmbedService, job: Job[Any]) -> None:
    assert await cost_of(service, job) is None


async def test_a_model_without_a_price_has_no_costs(backend: FakeBackend) -> None:
    service = EmbedService(TEXT_TASKS, backend, IngressSettings())
    for job in (EmbedJob(("a",)), BatchJob((EmbedJob(("a",)),)), ScoreJob((TextPair("a", "b"),))):
        assert await cost_of(service, job) is None


async def test_concurrent_jobs_have_costs_of_their_own(
    service: EmbedService, backend: FakeBackend
) -> None:
    backend.delay_s = 0.001
    batch = await service.run(BatchJob(tuple(EmbedJob(("a" * n,)) for n in (1, 2, 3))))
    single = await service.run(EmbedJob(("aaaa",)))
    assert (batch.cost, single.cost) == (Cost(12, 0, 3, 6), Cost(8, 0, 1, 4))


def texts(n: int) -> tuple[str, ...]:
    return tuple(f"{i:04}" for i in range(n))


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(9, None, [4, 4, 1]), (3, 2, [2, 1]), (4, 4, [4]), (3, 1, [1, 1, 1])],
)
async def test_a_split_list_is_computed_in_parts_and_returned_in_order(
    backend: FakeBackend, n: int, batch_size: int | None, sizes: Sequence[int]
) -> None:
    limits = {"max_texts_per_request": 4, "split_max_texts": 100, "interactive_max_texts": 2}
    service = EmbedService(PRICED, backend, IngressSettings.model_validate(limits))
    values = (*texts(n), "0000")
    result = await service.run(EmbedJob(values, is_split=True, batch_size=batch_size))
    assert [len(group.texts) for group in backend.groups] == sizes
    assert {group.lane for group in backend.groups} == {"bulk"}
    assert np.array_equal(result.vectors, np.stack([fake_vector(text) for text in values]))
    assert result.cost == Cost(8 * n, 8, n, 4 * n)


@pytest.mark.parametrize("batch_size", [5, 2048])
async def test_a_part_of_too_many_texts_is_refused(service: EmbedService, batch_size: int) -> None:
    with pytest.raises(InvalidRequest, match=r"between 1 and 4.*max_batch_size") as caught:
        await service.run(EmbedJob(("a",), is_split=True, batch_size=batch_size))
    assert caught.value.param == "batch_size"


async def test_a_fault_of_a_split_list_names_the_text_of_the_whole_list(
    backend: FakeBackend,
) -> None:
    settings = IngressSettings(max_texts_per_request=4, split_max_texts=100)
    service = EmbedService(SPEC, backend, settings)
    with pytest.raises(InvalidRequest, match="Text 7 holds a NUL"):
        await service.run(EmbedJob((*texts(7), "\0"), is_split=True))
    with pytest.raises(TextTooLong, match="Text 6 "):
        await service.run(EmbedJob((*texts(6), "x" * 99), is_split=True, truncation="error"))
    with pytest.raises(InvalidRequest, match="101 texts in one request; at most 100"):
        await service.run(EmbedJob(texts(101), is_split=True))


async def test_a_limit_that_is_set_holds_for_split_lists_too() -> None:
    assert IngressSettings().max_texts(is_split=True) > IngressSettings().max_texts_per_request
    assert IngressSettings(max_texts_per_request=4).max_texts(is_split=True) == 4
    settings = IngressSettings(max_texts_per_request=4, split_max_texts=9)
    assert (settings.max_texts(is_split=True), settings.max_texts(is_split=False)) == (9, 4)


async def test_the_time_limit_is_that_of_all_parts(backend: FakeBackend) -> None:
    settings = IngressSettings(max_texts_per_request=1, split_max_texts=100)
    backend.delay_s = 0.03
    with pytest.raises(DeadlineExceeded):
        await EmbedService(SPEC, backend, settings).run(EmbedJob(texts(9), is_split=True), 0.1)
