from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import IngressSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    EmptyInput,
    InvalidRequest,
    TextTooLong,
    Unavailable,
)
from serve_app.inputs import Input
from serve_app.jobs import BatchJob, DecodeJob, EmbedJob, Job, TokenizeJob, TokenVectorsJob
from serve_app.results import EmbedResult
from serve_app.service.dimensions import truncate_dimensions
from serve_app.service.embed import EmbedService
from serve_app.types import Parity, TextGroup, Tier, Vectors
from tests.fakes import DIM, SPEC, FakeBackend, FakeEngine, as_vectors, fake_vector


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(backend: FakeBackend) -> EmbedService:
    return EmbedService(SPEC, backend, IngressSettings(max_texts_per_request=4))


async def test_equal_texts_are_computed_once_and_returned_in_order(
    service: EmbedService, backend: FakeBackend
) -> None:
    result = await service.run(EmbedJob(("a", "b", "a", "c")))
    assert backend.groups[0].texts == ("a", "b", "c")
    assert np.array_equal(result.vectors, np.stack([fake_vector(t) for t in "abac"]))
    assert result.token_counts.tolist() == [1, 1, 1, 1]


async def test_truncation_is_reported_per_text(service: EmbedService) -> None:
    result = await service.run(EmbedJob(("x" * 99, "short", "x" * 99)))
    assert result.truncated.tolist() == [True, False, True]


async def test_reduced_dimensions_are_normalized_again(service: EmbedService) -> None:
    result = await service.run(EmbedJob(("a",), dimensions=3))
    expected = fake_vector("a")[:3]
    assert result.vectors.shape == (1, 3)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(result.vectors[0], expected / np.linalg.norm(expected), rtol=1e-6)


def test_a_zero_vector_stays_zero() -> None:
    assert truncate_dimensions(np.zeros((1, 4), dtype=np.float32), 2).tolist() == [[0, 0]]


async def test_an_input_type_selects_the_prompt(
    service: EmbedService, backend: FakeBackend
) -> None:
    await service.run(EmbedJob(("a",), input_type="query"))
    assert backend.groups[0].prompt == "query: "


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "empty"),
        (("a",) * 5, "at most 4"),
        (("a", ""), "Text 1 is empty"),
        (("a", 7), "Text 1 is not a string but int"),
        (("a", None), "Text 1 is not a string but NoneType"),
        (("nul\x00",), "NUL"),
        (("half \ud800",), "unpaired surrogate at character 5"),
    ],
    ids=["none", "too many", "empty", "number", "null", "NUL", "surrogate"],
)
async def test_invalid_texts_are_an_error(
    service: EmbedService, backend: FakeBackend, texts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await service.run(EmbedJob(texts))
    assert caught.value.param == "texts"
    assert backend.groups == []


@pytest.mark.parametrize("dimensions", [0, -1, DIM + 1])
async def test_dimensions_out_of_range_are_an_error(service: EmbedService, dimensions: int) -> None:
    with pytest.raises(InvalidRequest, match=f"between 1 and {DIM}"):
        await service.run(EmbedJob(("a",), dimensions=dimensions))


async def test_embed_times_out(backend: FakeBackend) -> None:
    backend.delay_s = 60
    service = EmbedService(SPEC, backend, IngressSettings(request_timeout_s=0.05))
    with pytest.raises(DeadlineExceeded):
        await service.run(EmbedJob(("a",)))


async def test_a_backend_error_reaches_the_caller(
    service: EmbedService, backend: FakeBackend
) -> None:
    backend.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await service.run(EmbedJob(("a",)))


async def test_info_without_an_engine_has_the_models_fields(
    service: EmbedService, backend: FakeBackend
) -> None:
    info = await service.info()
    assert (info["engine"], info["parity"], info["refused"]) == ("fake", None, [])
    backend.error = EmbedServeError("down")
    info = await service.info()
    assert (info["space"], info["engine"], info["device"]) == (SPEC.space_id, None, None)
    assert (info["parity"], info["refused"]) == (None, None)


async def test_info_reports_parity_and_rejected_engines(
    service: EmbedService, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = replace(FakeEngine.info, parity=Parity("bf16", 50, 0.9999), rejected=("a: b",))
    monkeypatch.setattr(FakeEngine, "info", measured)
    info = await service.info()
    assert info["parity"] == {"precision": "bf16", "texts": 50, "cosine_min": 0.9999}
    assert info["refused"] == ["a: b"]


async def test_the_health_probe_bypasses_the_cache(
    service: EmbedService, backend: FakeBackend
) -> None:
    assert (await service.health()).healthy
    assert [group.use_cache for group in backend.groups] == [False]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40))
async def test_permuting_the_texts_permutes_the_vectors(texts: list[str]) -> None:
    service = EmbedService(SPEC, FakeBackend(), IngressSettings())
    result = await service.run(EmbedJob(tuple(texts)))
    assert np.array_equal(result.vectors, np.stack([fake_vector(text) for text in texts]))


class UnnormalizedBackend(FakeBackend):
    """A model whose pipeline doesn't normalize vectors."""

    async def run(self, group: TextGroup) -> Vectors:
        vectors = as_vectors(await super().run(group))
        return replace(vectors, values=3 * vectors.values)


async def test_vectors_are_normalized_on_request_only() -> None:
    service = EmbedService(SPEC, UnnormalizedBackend(), IngressSettings())
    raw = await service.run(EmbedJob(("a",)))
    unit = await service.run(EmbedJob(("a",), normalize=True))
    assert np.linalg.norm(raw.vectors) == pytest.approx(3)
    assert np.linalg.norm(unit.vectors) == pytest.approx(1)


async def test_normalization_leaves_unit_vectors_unchanged() -> None:
    service = EmbedService(
        replace(SPEC, unit_length=True), UnnormalizedBackend(), IngressSettings()
    )
    results = [await service.run(EmbedJob(("a",), normalize=n)) for n in (True, False)]
    assert results[0].vectors.tobytes() == results[1].vectors.tobytes()


async def test_without_truncation_a_long_text_is_an_error_that_names_it(
    service: EmbedService,
) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 1 is longer than the 16 tokens.*2 of 4"):
        await service.run(EmbedJob(("a", "x" * 99, "b", "x" * 99), truncation="error"))
    assert len((await service.run(EmbedJob(("a", "b"), truncation="error"))).token_counts) == 2


async def test_each_text_has_its_tier(service: EmbedService, backend: FakeBackend) -> None:
    backend.tiers = [Tier.L1, Tier.COMPUTED]
    result = await service.run(EmbedJob(("aa", "b", "aa")))
    assert result.tiers.tolist() == [Tier.L1, Tier.COMPUTED, Tier.L1]
    assert result.cached_tokens == 4


LONG = "abcdefghijklmnopqrst"


async def test_run_embeds_a_job(service: EmbedService) -> None:
    result = await service.run(EmbedJob(("a", "bc")))
    assert isinstance(result, EmbedResult)
    assert result.characters == 3
    assert np.array_equal(result.vectors, np.stack([fake_vector("a"), fake_vector("bc")]))


async def test_each_job_of_a_batch_has_its_options(service: EmbedService) -> None:
    jobs = (EmbedJob(("a",), input_type="query"), EmbedJob(("b", "c"), dimensions=2))
    first, second = await service.run(BatchJob(jobs))
    assert isinstance(first, EmbedResult)
    assert isinstance(second, EmbedResult)
    assert np.array_equal(first.vectors, [fake_vector("query: a")])
    assert second.vectors.shape == (2, 2)


async def test_the_text_limit_applies_to_the_sum_over_a_batch(
    service: EmbedService, backend: FakeBackend
) -> None:
    with pytest.raises(InvalidRequest, match="at most 4"):
        await service.run(BatchJob((EmbedJob(("a", "b")), EmbedJob(("c", "d", "e")))))
    assert backend.groups == []


@pytest.mark.parametrize(("texts", "lane"), [(8, "interactive"), (9, "bulk")])
async def test_the_lane_of_a_batch_depends_on_the_sum_of_its_texts(
    backend: FakeBackend, texts: int, lane: str
) -> None:
    service = EmbedService(SPEC, backend, IngressSettings())
    await service.run(BatchJob(tuple(EmbedJob((f"text {i}",)) for i in range(texts))))
    assert {group.lane for group in backend.groups} == {lane}


async def test_a_job_of_a_batch_may_set_its_lane(
    service: EmbedService, backend: FakeBackend
) -> None:
    await service.run(BatchJob((EmbedJob(("a",), lane="bulk"), EmbedJob(("b",)))))
    assert [group.lane for group in backend.groups] == ["bulk", "interactive"]


async def test_token_vectors(service: EmbedService, backend: FakeBackend) -> None:
    result = await service.run(TokenVectorsJob(EmbedJob(("ab", "c"), input_type="query")))
    (group,) = backend.groups
    assert (group.texts, group.prompt) == (("ab", "c"), "query: ")
    assert np.array_equal(result.vectors[1], [fake_vector(c) for c in "query: c"])
    assert result.truncated.tolist() == [False, False]


async def test_token_vectors_of_a_text_truncated_at_its_start(service: EmbedService) -> None:
    job = EmbedJob((LONG, "ab"), truncation="start")
    result = await service.run(TokenVectorsJob(job))
    cut, short = result.vectors
    assert np.array_equal(cut, [fake_vector(c) for c in f"[{LONG[-14:]}]"])
    assert np.array_equal(short, [fake_vector(c) for c in "ab"])
    assert result.truncated.tolist() == [True, False]


async def test_token_vectors_without_truncation_of_a_long_text_are_an_error(
    service: EmbedService,
) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 1 "):
        await service.run(TokenVectorsJob(EmbedJob(("a", LONG), truncation="error")))


@pytest.mark.parametrize(
    ("fits", "exceeds"),
    [
        (TokenizeJob(("abcd", "efg"), False), TokenizeJob(("abcd", "efgh"), False)),
        (DecodeJob(((1,) * 4, (2,) * 3)), DecodeJob(((1,) * 4, (2,) * 4))),
    ],
    ids=["tokenize", "decode"],
)
async def test_the_tokens_of_a_reply_are_bounded(fits: Job[Any], exceeds: Job[Any]) -> None:
    service = EmbedService(SPEC, FakeBackend(), IngressSettings(max_reply_tokens=7))
    await service.run(fits)
    with pytest.raises(InvalidRequest, match=r"8 tokens; at most 7 .* Split"):
        await service.run(exceeds)


async def test_texts_are_tokenized_with_a_prompt_only_on_request() -> None:
    service = EmbedService(replace(SPEC, default_prompt="query"), FakeBackend(), IngressSettings())
    (plain,) = await service.run(TokenizeJob(("a",)))
    (prompted,) = await service.run(
        TokenizeJob(("a",), add_special_tokens=False, input_type="query")
    )
    assert ("".join(plain.tokens), "".join(prompted.tokens)) == ("[a]", "query: a")


async def test_token_ids_are_decoded(service: EmbedService) -> None:
    rows = (tuple(map(ord, "[a]")), (98,))
    assert await service.run(DecodeJob(rows)) == ["a", "b"]
    assert await service.run(DecodeJob(rows, skip_special_tokens=False)) == ["[a]", "b"]


JOBS = [
    EmbedJob(("a",)),
    EmbedJob((LONG,), truncation="chunk"),
    BatchJob((EmbedJob(("a",)), EmbedJob(("b",)))),
    TokenVectorsJob(EmbedJob(("a",))),
    TokenVectorsJob(EmbedJob((LONG,), truncation="start")),
    TokenizeJob(("a",)),
    DecodeJob(((97,),)),
]
KINDS = ["texts", "chunk", "batch", "token vectors", "token vectors, start", "tokenize", "decode"]


@pytest.mark.parametrize("job", JOBS, ids=KINDS)
async def test_every_job_times_out(backend: FakeBackend, job: Job[Any]) -> None:
    backend.delay_s = 60
    service = EmbedService(SPEC, backend, IngressSettings(request_timeout_s=0.02))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.02 s"):
        await service.run(job)


@pytest.mark.parametrize("job", JOBS, ids=KINDS)
async def test_a_backend_error_reaches_the_caller_of_every_job(
    service: EmbedService, backend: FakeBackend, job: Job[Any]
) -> None:
    backend.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await service.run(job)


@pytest.mark.parametrize(
    "job",
    [
        EmbedJob(()),
        TokenVectorsJob(EmbedJob(("",))),
        TokenizeJob(("",)),
        DecodeJob(((),)),
        BatchJob(()),
    ],
    ids=lambda job: type(job).__name__,
)
async def test_every_empty_job_is_an_error(service: EmbedService, job: Job[Any]) -> None:
    with pytest.raises(EmptyInput):
        await service.run(job)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("abcde",), None),
        (("abcdef",), "Text 0 has 6 characters; at most 5"),
        ((tuple(range(5)),), None),
        (("a", tuple(range(6))), "Text 1 has 6 token ids; at most 5"),
        (((5, -1),), "Text 0 holds a token id below 0"),
    ],
    ids=["string", "long string", "ids", "too many ids", "negative id"],
)
async def test_texts_and_token_ids_have_a_maximum_length(
    backend: FakeBackend, texts: tuple[Input, ...], message: str | None
) -> None:
    service = EmbedService(SPEC, backend, IngressSettings(max_text_chars=5))
    if message is None:
        assert len((await service.run(EmbedJob(texts))).token_counts) == 1
    else:
        with pytest.raises(InvalidRequest, match=message):
            await service.run(EmbedJob(texts))
        assert backend.groups == []


async def test_the_error_gives_the_token_limit_of_the_job(
    service: EmbedService,
) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 0 is longer than 5 tokens"):
        await service.run(EmbedJob(("abcdefgh",), truncation="error", max_tokens=5))


@pytest.mark.parametrize("max_tokens", [0, SPEC.max_tokens + 1])
async def test_a_token_limit_over_the_models_is_an_error(
    service: EmbedService, max_tokens: int
) -> None:
    with pytest.raises(InvalidRequest, match="between 1 and 16") as caught:
        await service.run(EmbedJob(("a",), max_tokens=max_tokens))
    assert caught.value.param == "max_tokens"


async def test_the_result_has_the_raw_vectors_too(service: EmbedService) -> None:
    result = await service.run(EmbedJob(("a", "b", "a"), dimensions=2, normalize=True))
    assert result.raw is not None
    assert np.array_equal(result.raw, np.stack([fake_vector(text) for text in "aba"]))
