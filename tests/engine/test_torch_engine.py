import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.engine.torch_engine import TorchEngine
from serve_app.errors import SpaceMismatch
from serve_app.models import folder, resolve
from tests.engine.texts import mixed_texts

TEXTS = mixed_texts(120)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(folder(MINILM)), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(MINILM, resolve(MINILM), device="cpu", threads=2)


def test_vectors_are_those_of_sentence_transformers(
    engine: TorchEngine, reference: SentenceTransformer
) -> None:
    expected = reference.encode(TEXTS)
    tokens = engine.tokenize(TEXTS)
    got = np.concatenate([engine.embed(tokens[i : i + 32]) for i in range(0, len(TEXTS), 32)])
    cosine = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() >= 0.99999
    assert got.dtype == np.float32


def test_tokens_are_the_tokenizers_own(engine: TorchEngine, reference: SentenceTransformer) -> None:
    tokenizer = reference.tokenizer
    expected = tokenizer(TEXTS, truncation=True, max_length=256)["input_ids"]
    full = tokenizer(TEXTS)["input_ids"]
    tokens = engine.tokenize(TEXTS)
    assert [t.ids for t in tokens] == expected
    assert [t.truncated for t in tokens] == [len(ids) > 256 for ids in full]
    assert any(t.truncated for t in tokens)


def test_a_vector_does_not_depend_on_what_else_is_in_its_batch(engine: TorchEngine) -> None:
    tokens = engine.tokenize(TEXTS)
    together = engine.embed(tokens)
    for i in (0, 5, 9, 40, 119):
        np.testing.assert_allclose(engine.embed([tokens[i]])[0], together[i], atol=1e-5)


def test_a_model_that_differs_from_its_promise_does_not_start() -> None:
    other = resolve(MINILM.model_copy(update={"max_tokens": 128}))
    with pytest.raises(SpaceMismatch, match="max_tokens"):
        TorchEngine(MINILM, other, device="cpu", threads=1)
