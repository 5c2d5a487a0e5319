from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import IngressSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InvalidRequest,
    ModelNotFound,
    TextTooLong,
    Unavailable,
)
from serve_app.service import EmbedService, cut_dimensions
from serve_app.types import EmbedJob, Parity, TextGroup, Tier, Vectors
from tests.fakes import DIM, SPEC, FakeEngine, FakeLookup, fake_vector


@pytest.fixture
def lookup() -> FakeLookup:
    return FakeLookup()


@pytest.fixture
def service(lookup: FakeLookup) -> EmbedService:
    return EmbedService(SPEC, lookup, IngressSettings(max_texts_per_request=4))


async def test_equal_texts_are_asked_for_once_and_answered_in_order(
    service: EmbedService, lookup: FakeLookup
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
    assert cut_dimensions(np.zeros((1, 4), dtype=np.float32), 2).tolist() == [[0, 0]]


async def test_an_input_type_brings_the_models_prompt(
    service: EmbedService, lookup: FakeLookup
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
    service: EmbedService, lookup: FakeLookup, texts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await service.embed(EmbedJob(texts))
    assert caught.value.param == "texts"
    assert lookup.groups == []


@pytest.mark.parametrize("dimensions", [0, -1, DIM + 1])
async def test_dimensions_the_model_does_not_have(service: EmbedService, dimensions: int) -> None:
    with pytest.raises(InvalidRequest, match=f"between 1 and {DIM}"):
        await service.embed(EmbedJob(("a",), dimensions=dimensions))


async def test_nothing_waits_for_ever(lookup: FakeLookup) -> None:
    lookup.delay_s = 60
    service = EmbedService(SPEC, lookup, IngressSettings(request_timeout_s=0.05))
    with pytest.raises(DeadlineExceeded):
        await service.embed(EmbedJob(("a",)))


async def test_an_error_from_below_reaches_the_caller_as_it_is(
    service: EmbedService, lookup: FakeLookup
) -> None:
    lookup.error = Unavailable("gone")
    with pytest.raises(Unavailable, match="gone"):
        await service.embed(EmbedJob(("a",)))


async def test_info_tells_what_is_known_when_no_engine_answers(
    service: EmbedService, lookup: FakeLookup
) -> None:
    known = await service.info()
    assert (known["engine"], known["parity"], known["refused"]) == ("fake", None, [])
    lookup.error = EmbedServeError("down")
    info = await service.info()
    assert (info["space"], info["engine"], info["device"]) == (SPEC.space_id, None, None)
    assert (info["parity"], info["refused"]) == (None, None)


async def test_info_tells_how_near_the_vectors_are_and_what_was_refused(
    service: EmbedService, lookup: FakeLookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = replace(FakeEngine.info, parity=Parity("bf16", 50, 0.9999), refused=("a: b",))
    monkeypatch.setattr(FakeEngine, "info", measured)
    info = await service.info()
    assert info["parity"] == {"precision": "bf16", "texts": 50, "cosine_min": 0.9999}
    assert info["refused"] == ["a: b"]


async def test_the_health_try_goes_past_the_cache(
    service: EmbedService, lookup: FakeLookup
) -> None:
    assert (await service.health()).healthy
    assert [group.use_cache for group in lookup.groups] == [False]


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40))
async def test_permuting_the_texts_permutes_the_vectors(texts: list[str]) -> None:
    service = EmbedService(SPEC, FakeLookup(), IngressSettings())
    result = await service.embed(EmbedJob(tuple(texts)))
    assert np.array_equal(result.vectors, np.stack([fake_vector(text) for text in texts]))


class Longer(FakeLookup):
    """A model whose pipeline doesn't bring vectors to unit length."""

    async def fetch(self, group: TextGroup) -> Vectors:
        vectors = await super().fetch(group)
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
        await service.embed(EmbedJob(("a", "x" * 99, "b", "x" * 99), cut=False))
    assert len((await service.embed(EmbedJob(("a", "b"), cut=False))).tokens) == 2


async def test_each_text_tells_its_tier(service: EmbedService, lookup: FakeLookup) -> None:
    lookup.tiers = [Tier.L1, Tier.COMPUTED]
    result = await service.embed(EmbedJob(("aa", "b", "aa")))
    assert result.tiers.tolist() == [Tier.L1, Tier.COMPUTED, Tier.L1]
    assert result.cached_tokens == 4
