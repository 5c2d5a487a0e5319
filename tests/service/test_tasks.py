"""Scores, sparse vectors, token vectors of multi-vector models, and images."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from serve_app.config import IngressSettings
from serve_app.errors import EmptyInput, InvalidRequest, TextTooLong, UnsupportedOperation
from serve_app.inputs import Image, Input, QueryText, TextPair
from serve_app.jobs import EmbedJob, ScoreJob, SparseJob, TokenVectorsJob
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import Outputs, TextGroup, Tier
from tests.fakes import SPEC, TEXT_TASKS, FakeBackend, fake_logits, fake_vector

LONG = "x" * (SPEC.max_tokens + 1)
MULTI_VECTOR = replace(SPEC, kind="multi-vector", tasks=("embed_tokens", "rerank"))
CLIP = replace(SPEC, tasks=("embed", "embed_images"))
PAIRS = (TextPair("a", "cab"), TextPair("a", "b"), TextPair("a", "cab"))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def service(backend: FakeBackend, spec: ModelSpec = TEXT_TASKS, **settings: int) -> EmbedService:
    return EmbedService(spec, backend, IngressSettings.model_validate(settings))


async def test_equal_pairs_are_scored_once_and_returned_in_order(backend: FakeBackend) -> None:
    result = await service(backend).run(ScoreJob(PAIRS))
    (group,) = backend.groups
    assert (group.task, group.texts) == ("rerank", PAIRS[:2])
    assert result.logits.tolist() == [fake_logits(pair, 1) for pair in PAIRS]
    assert result.probabilities.tolist() == [[1], [0], [1]]
    assert result.billed_tokens == sum(result.token_counts.tolist())


async def test_scores_are_cached_only_if_the_settings_say_so(backend: FakeBackend) -> None:
    await service(backend).run(ScoreJob(PAIRS))
    uncached = EmbedService(
        TEXT_TASKS, backend, IngressSettings(), uncached_tasks=frozenset(("rerank",))
    )
    await uncached.run(ScoreJob(PAIRS))
    await uncached.run(EmbedJob(("a",)))
    assert [group.use_cache for group in backend.groups] == [True, False, True]


async def test_a_text_of_a_pair_is_checked_like_any_other(backend: FakeBackend) -> None:
    with pytest.raises(EmptyInput, match="Text 1"):
        await service(backend).run(ScoreJob((TextPair("a", "b"), TextPair("a", ""))))
    with pytest.raises(InvalidRequest, match="NUL"):
        await service(backend).run(ScoreJob((TextPair("a\0", "b"),)))
    with pytest.raises(InvalidRequest, match="3 characters; at most 2"):
        await service(backend, max_text_chars=2).run(ScoreJob((TextPair("a", "abc"),)))
    replaced = EmbedService(TEXT_TASKS, backend, IngressSettings(invalid_text="replace"))
    await replaced.run(ScoreJob((TextPair("a\0", "b"),)))
    assert backend.groups[-1].texts == (TextPair("a\ufffd", "b"),)


async def test_a_pair_over_the_limit_is_an_error_on_request(backend: FakeBackend) -> None:
    pairs = (TextPair("a", "b"), TextPair("a", LONG))
    result = await service(backend).run(ScoreJob(pairs))
    assert result.truncated.tolist() == [False, True]
    with pytest.raises(TextTooLong, match=r"^Text 1 "):
        await service(backend).run(ScoreJob(pairs, truncation="error"))
    with pytest.raises(InvalidRequest, match="at their end only"):
        await service(backend).run(ScoreJob(pairs, truncation="start"))


async def test_sparse_vectors(backend: FakeBackend) -> None:
    job = SparseJob(EmbedJob(("ba", "c", "ba"), input_type="query"))
    result = await service(backend).run(job)
    (group,) = backend.groups
    assert (group.task, group.texts, group.prompt) == ("embed_sparse", ("ba", "c"), "query: ")
    assert len(result.vectors) == 3
    assert result.vectors[0].tobytes() == result.vectors[2].tobytes()
    with pytest.raises(TextTooLong):
        await service(backend).run(SparseJob(EmbedJob((LONG,), truncation="error")))
    with pytest.raises(InvalidRequest, match="at their end only"):
        await service(backend).run(SparseJob(EmbedJob((LONG,), truncation="chunk")))


async def test_a_multi_vector_model_encodes_queries_and_documents_differently(
    backend: FakeBackend,
) -> None:
    multi_vector = service(backend, MULTI_VECTOR)
    await multi_vector.run(TokenVectorsJob(EmbedJob(("a",), input_type="query")))
    await multi_vector.run(TokenVectorsJob(EmbedJob(("a",), input_type="document")))
    assert [group.texts for group in backend.groups] == [(QueryText("a"),), ("a",)]
    assert [group.lane for group in backend.groups] == ["interactive"] * 2


async def test_max_sim_is_the_sum_of_the_best_matches_of_each_query_token(
    backend: FakeBackend,
) -> None:
    spec = replace(MULTI_VECTOR, prompts={"query": "", "document": ""})
    pairs = (TextPair("ab", "xay"), TextPair("ab", "ba"), TextPair("c", "xay"))
    result = await service(backend, spec).run(ScoreJob(pairs))
    scores = [
        sum(max(float(fake_vector(q) @ fake_vector(d)) for d in pair.document) for q in query)
        for pair in pairs
        for query in [f"?{pair.query}"]  # as the fake encodes queries
    ]
    np.testing.assert_allclose(result.scores[:, 0], scores, rtol=1e-5)
    np.testing.assert_allclose(
        result.probabilities[:, 0], [scores[0] / 3, scores[1] / 3, scores[2] / 2], rtol=1e-5
    )
    queries, documents = backend.groups
    assert queries.texts == (QueryText("ab"), QueryText("c"))
    assert documents.texts == ("xay", "ba")
    assert result.token_counts.tolist() == [6, 5, 5]


def png(size: int) -> Image:
    file = BytesIO()
    PIL.Image.new("RGB", (size, size)).save(file, "png")
    return Image(file.getvalue())


IMAGES: dict[Input, str] = {png(1): "i", png(2): "j"}


class ImageBackend(FakeBackend):
    """Embeds each image as a text."""

    async def run(self, group: TextGroup) -> Outputs:
        if group.task == "embed_images":
            group = replace(group, texts=tuple(IMAGES[image] for image in group.texts))
        return await super().run(group)


async def test_texts_and_images_of_one_request_keep_their_order() -> None:
    backend = ImageBackend()
    images = list(IMAGES)
    result = await service(backend, CLIP).run(
        EmbedJob((images[0], "a", images[1], "b", images[0]), input_type="query")
    )
    texts = ["i", "query: a", "j", "query: b", "i"]
    assert np.array_equal(result.vectors, [fake_vector(text) for text in texts])
    assert {(group.task, len(group.texts)) for group in backend.groups} == {
        ("embed_images", 2),
        ("embed", 2),
    }
    only_images = await service(backend, CLIP).run(EmbedJob(tuple(images)))
    assert only_images.tiers.tolist() == [Tier.COMPUTED] * 2


async def test_a_model_without_images_refuses_them(backend: FakeBackend) -> None:
    with pytest.raises(UnsupportedOperation, match="`embed_images`"):
        await service(backend).run(EmbedJob(("a", *IMAGES)))
    assert backend.groups == []


async def test_only_the_dimensions_that_a_model_was_trained_for_are_returned(
    backend: FakeBackend,
) -> None:
    matryoshka = service(backend, replace(SPEC, dimensions=(2, 4)))
    for dimensions in (None, 2, 4, 8):
        await matryoshka.run(EmbedJob(("a",), dimensions=dimensions))
    with pytest.raises(InvalidRequest, match="trained for: 2, 4, 8; it was 3"):
        await matryoshka.run(EmbedJob(("a",), dimensions=3))
