from dataclasses import replace

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
    ModelNotFound,
    TextTooLong,
    Unavailable,
)
from serve_app.service.embed import EmbedService, truncate_dimensions
from serve_app.types import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    EmbedResult,
    Input,
    Job,
    Parity,
    TextGroup,
    Tier,
    TokenizeJob,
    TokenVectorsJob,
    Vectors,
)
from tests.fakes import DIM, SPEC, FakeBackend, FakeEngine, fake_vector


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def service(lookup: FakeBackend) -> EmbedService:
    return EmbedService(SPEC, lookup, IngressSettings(max_texts_per_request=4))


async def test_equal_texts_are_asked_for_once_and_answered_in_order(
    service: EmbedService, lookup: FakeBackend
) -> None:
    result = await service.embed(EmbedJob(("a", "b", "a", "c")))
    assert lookup.groups[0].texts == ("a", "b", "c")
    assert np.array_equal(result.vectors, np.stack([fake_vector(t) for t in "abac"]))
    assert result.tokens.tolist() == [1, 1, 1, 1]


async def test_truncation_is_told_at_its_place(service: EmbedService) -> None:
    result = await service.embed(EmbedJob(("x" * 99, "short", "x" * 99)))
    assert result.truncated.tolist() == [True, False, True]


async def test_dimensions_are_cut_and_at_unit_length_again(service: EmbedService) -> None:
    result = await service.embed(EmbedJob(("a",), dimensions=3))
    kept = fake_vector("a")[:3]
    assert result.vectors.shape == (1, 3)
    assert result.vectors.dtype == np.float32
    np.testing.assert_allclose(result.vectors[0], kept / np.linalg.norm(kept), rtol=1e-6)


def test_a_zero_vector_stays_zero() -> None:
    assert truncate_dimensions(np.zeros((1, 4), dtype=np.float32), 2).tolist() == [[0, 0]]


async def test_an_input_type_brings_the_models_prompt(
    service: EmbedService, lookup: FakeBackend
) -> None:
    await service.embed(EmbedJob(("a",), input_type="query"))
    assert lookup.groups[0].prompt == "query: "


@pytest.mark.parametrize("name", [None, "org/fake", "fake"])
async def test_the_model_answers_to_its_names(service: EmbedService, name: str | None) -> None:
    assert (await service.embed(EmbedJob(("a",), model=name))).model == "org/fake"


async def test_another_model_is_not_found(service: EmbedService) -> None:
    with pytest.raises(ModelNotFound, match="org/fake"):
        await service.embed(EmbedJob(("a",), model="text-embedding-3-small"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "empty"),
        (("a",) * 5, "at most 4"),
        (("a", ""), "Text 1 is empty"),
        (("a", 7), "Text 1 is not a string but int"),
        (("a", None), "Text 1 is not a string but NoneType"),
        (("nul\x00",), "NUL"),
        (("half \ud800",), "surrogate pair at character 5"),
    ],
    ids=["none", "too many", "empty", "number", "null", "NUL", "surrogate"],
)
async def test_texts_that_cannot_be_embedded(
    service: EmbedService, lookup: FakeBackend, texts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await service.embed(EmbedJob(texts))
    assert caught.value.param == "texts"
    assert lookup.groups == []


@pytest.mark.parametrize("dimensions", [0, -1, DIM + 1])
async def test_dimensions_the_model_does_not_have(service: EmbedService, dimensions: int) -> None:
    with pytest.raises(InvalidRequest, match=f"between 1 and {DIM}"):
        await service.embed(EmbedJob(("a",), dimensions=dimensions))


async def test_nothing_waits_for_ever(lookup: FakeBackend) -> None:
    lookup.delay_s = 60
    service = EmbedService(SPEC, lookup, IngressSettings(request_timeout_s=0.05))
    with pytest.raises(DeadlineExceeded):
        await service.embed(EmbedJob(("a",)))


async def test_an_error_from_below_reaches_the_caller_as_it_is(
    service: EmbedService, lookup: FakeBackend
) -> None:
    lookup.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await service.embed(EmbedJob(("a",)))


async def test_info_tells_what_is_known_when_no_engine_answers(
    service: EmbedService, lookup: FakeBackend
) -> None:
    known = await service.info()
    assert (known["engine"], known["parity"], known["refused"]) == ("fake", None, [])
    lookup.error = EmbedServeError("down")
    info = await service.info()
    assert (info["space"], info["engine"], info["device"]) == (SPEC.space_id, None, None)
    assert (info["parity"], info["refused"]) == (None, None)


async def test_info_tells_how_near_the_vectors_are_and_what_was_refused(
    service: EmbedService, lookup: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = replace(FakeEngine.info, parity=Parity("bf16", 50, 0.9999), refused=("a: b",))
    monkeypatch.setattr(FakeEngine, "info", measured)
    info = await service.info()
    assert info["parity"] == {"precision": "bf16", "texts": 50, "cosine_min": 0.9999}
    assert info["refused"] == ["a: b"]


async def test_the_health_try_goes_past_the_cache(
    service: EmbedService, lookup: FakeBackend
) -> None:
    assert (await service.health()).healthy
    assert [group.use_cache for group in lookup.groups] == [False]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40))
async def test_permuting_the_texts_permutes_the_vectors(texts: list[str]) -> None:
    service = EmbedService(SPEC, FakeBackend(), IngressSettings())
    result = await service.embed(EmbedJob(tuple(texts)))
    assert np.array_equal(result.vectors, np.stack([fake_vector(text) for text in texts]))


class Longer(FakeBackend):
    """A model whose pipeline doesn't bring vectors to unit length."""

    async def embed(self, group: TextGroup) -> Vectors:
        vectors = await super().embed(group)
        return replace(vectors, values=3 * vectors.values)


async def test_vectors_are_as_the_model_gives_them_unless_unit_length_is_asked_for() -> None:
    service = EmbedService(SPEC, Longer(), IngressSettings())
    as_given = await service.embed(EmbedJob(("a",)))
    unit = await service.embed(EmbedJob(("a",), normalize=True))
    assert np.linalg.norm(as_given.vectors) == pytest.approx(3)
    assert np.linalg.norm(unit.vectors) == pytest.approx(1)


async def test_what_is_of_unit_length_already_keeps_its_bits() -> None:
    service = EmbedService(replace(SPEC, unit_length=True), Longer(), IngressSettings())
    given = [await service.embed(EmbedJob(("a",), normalize=n)) for n in (True, False)]
    assert given[0].vectors.tobytes() == given[1].vectors.tobytes()


async def test_a_text_that_may_not_be_cut_is_refused_and_named(service: EmbedService) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 1 is longer than the 16 tokens.*2 of 4"):
        await service.embed(EmbedJob(("a", "x" * 99, "b", "x" * 99), truncation="error"))
    assert len((await service.embed(EmbedJob(("a", "b"), truncation="error"))).tokens) == 2


async def test_each_text_tells_its_tier(service: EmbedService, lookup: FakeBackend) -> None:
    lookup.tiers = [Tier.L1, Tier.COMPUTED]
    result = await service.embed(EmbedJob(("aa", "b", "aa")))
    assert result.tiers.tolist() == [Tier.L1, Tier.COMPUTED, Tier.L1]
    assert result.cached_tokens == 4


LONG = "abcdefghijklmnopqrst"


async def test_a_job_of_texts_is_embedded(service: EmbedService) -> None:
    result = await service.run(EmbedJob(("a", "bc")))
    assert isinstance(result, EmbedResult)
    assert result.characters == 3
    assert np.array_equal(result.vectors, np.stack([fake_vector("a"), fake_vector("bc")]))


async def test_several_jobs_are_answered_each_as_it_asks(service: EmbedService) -> None:
    jobs = (EmbedJob(("a",), input_type="query"), EmbedJob(("b", "c"), dimensions=2))
    first, second = await service.run(BatchJob(jobs))
    assert np.array_equal(first.vectors, [fake_vector("query: a")])
    assert second.vectors.shape == (2, 2)


async def test_several_jobs_have_as_many_texts_as_all_of_them(
    service: EmbedService, lookup: FakeBackend
) -> None:
    with pytest.raises(InvalidRequest, match="at most 4"):
        await service.run(BatchJob((EmbedJob(("a", "b")), EmbedJob(("c", "d", "e")))))
    assert lookup.groups == []


@pytest.mark.parametrize(("texts", "lane"), [(8, "interactive"), (9, "bulk")])
async def test_several_jobs_go_together_in_the_lane_of_all_their_texts(
    lookup: FakeBackend, texts: int, lane: str
) -> None:
    service = EmbedService(SPEC, lookup, IngressSettings())
    await service.run(BatchJob(tuple(EmbedJob((f"text {i}",)) for i in range(texts))))
    assert {group.lane for group in lookup.groups} == {lane}


async def test_each_of_several_jobs_may_have_a_lane_of_its_own(
    service: EmbedService, lookup: FakeBackend
) -> None:
    await service.run(BatchJob((EmbedJob(("a",), lane="bulk"), EmbedJob(("b",)))))
    assert [group.lane for group in lookup.groups] == ["bulk", "interactive"]


async def test_vectors_of_tokens(service: EmbedService, lookup: FakeBackend) -> None:
    found = await service.run(TokenVectorsJob(EmbedJob(("ab", "c"), input_type="query")))
    (group,) = lookup.groups
    assert (group.texts, group.prompt) == (("ab", "c"), "query: ")
    assert np.array_equal(found[1].values, [fake_vector(c) for c in "query: c"])
    assert [one.truncated for one in found] == [False, False]


async def test_vectors_of_tokens_of_a_text_that_loses_its_start(service: EmbedService) -> None:
    job = EmbedJob((LONG, "ab"), truncation="start")
    cut, whole = await service.run(TokenVectorsJob(job))
    assert np.array_equal(cut.values, [fake_vector(c) for c in f"[{LONG[-14:]}]"])
    assert np.array_equal(whole.values, [fake_vector(c) for c in "ab"])
    assert (cut.truncated, whole.truncated) == (True, False)


async def test_vectors_of_tokens_of_a_text_that_may_not_be_cut(service: EmbedService) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 1 "):
        await service.run(TokenVectorsJob(EmbedJob(("a", LONG), truncation="error")))


async def test_texts_are_spelled_with_a_prompt_only_where_one_is_named() -> None:
    service = EmbedService(replace(SPEC, default_prompt="query"), FakeBackend(), IngressSettings())
    (plain,) = await service.run(TokenizeJob(("a",)))
    (asked,) = await service.run(TokenizeJob(("a",), special=False, input_type="query"))
    assert ("".join(plain.pieces), "".join(asked.pieces)) == ("[a]", "query: a")


async def test_token_ids_are_decoded(service: EmbedService) -> None:
    rows = (tuple(map(ord, "[a]")), (98,))
    assert await service.run(DecodeJob(rows)) == ["a", "b"]
    assert await service.run(DecodeJob(rows, skip_special=False)) == ["[a]", "b"]


JOBS = [
    EmbedJob(("a",)),
    EmbedJob((LONG,), truncation="chunk"),
    BatchJob((EmbedJob(("a",)), EmbedJob(("b",)))),
    TokenVectorsJob(EmbedJob(("a",))),
    TokenVectorsJob(EmbedJob((LONG,), truncation="start")),
    TokenizeJob(("a",)),
    DecodeJob(((97,),)),
]
KINDS = ["texts", "chunk", "several", "tokens", "tokens, start", "spell", "decode"]


@pytest.mark.parametrize("job", JOBS, ids=KINDS)
async def test_no_job_waits_for_ever(lookup: FakeBackend, job: Job) -> None:
    lookup.delay_s = 60
    service = EmbedService(SPEC, lookup, IngressSettings(request_timeout_s=0.02))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.02 s"):
        await service.run(job)


@pytest.mark.parametrize("job", JOBS, ids=KINDS)
async def test_an_error_from_below_reaches_the_caller_of_any_job(
    service: EmbedService, lookup: FakeBackend, job: Job
) -> None:
    lookup.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await service.run(job)


@pytest.mark.parametrize(
    "job",
    [
        EmbedJob(("a",), model="x"),
        BatchJob((EmbedJob(("a",), model="x"),)),
        TokenVectorsJob(EmbedJob(("a",), model="x")),
        TokenizeJob(("a",), model="x"),
        DecodeJob(((97,),), model="x"),
    ],
    ids=lambda job: type(job).__name__,
)
async def test_no_job_is_done_by_another_model(service: EmbedService, job: Job) -> None:
    with pytest.raises(ModelNotFound):
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
async def test_no_job_is_empty(service: EmbedService, job: Job) -> None:
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
    ids=["string", "longer string", "ids", "more ids", "id below 0"],
)
async def test_texts_and_token_ids_have_a_longest(
    lookup: FakeBackend, texts: tuple[Input, ...], message: str | None
) -> None:
    service = EmbedService(SPEC, lookup, IngressSettings(max_text_chars=5))
    if message is None:
        assert len((await service.embed(EmbedJob(texts))).tokens) == 1
    else:
        with pytest.raises(InvalidRequest, match=message):
            await service.embed(EmbedJob(texts))
        assert lookup.groups == []


async def test_a_text_longer_than_it_may_be_is_measured_by_what_was_asked_for(
    service: EmbedService,
) -> None:
    with pytest.raises(TextTooLong, match=r"^Text 0 is longer than 5 tokens"):
        await service.embed(EmbedJob(("abcdefgh",), truncation="error", max_tokens=5))


@pytest.mark.parametrize("max_tokens", [0, SPEC.max_tokens + 1])
async def test_texts_can_be_cut_to_no_more_than_the_model_takes(
    service: EmbedService, max_tokens: int
) -> None:
    with pytest.raises(InvalidRequest, match="between 1 and 16") as caught:
        await service.embed(EmbedJob(("a",), max_tokens=max_tokens))
    assert caught.value.param == "max_tokens"


async def test_what_the_model_gave_is_kept_beside_what_was_cut(service: EmbedService) -> None:
    result = await service.embed(EmbedJob(("a", "b", "a"), dimensions=2, normalize=True))
    assert result.raw is not None
    assert np.array_equal(result.raw, np.stack([fake_vector(text) for text in "aba"]))
