import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from serve_app.config import ModelConfig
from serve_app.engines.hashing_engine import HashingEngine
from serve_app.errors import InvalidRequest
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines.texts import mixed_texts

GOLDEN = [0, 0, 0, 0, 0, 2, 0, 2, 1, 0, -1, -1, -3, -2, -3, 0]
TEXTS = mixed_texts(120)
CODE = """
from tests.engines.test_hashing_engine import TEXTS, engine, embed
print(hash("differs"), embed(engine(32), *TEXTS).tobytes().hex())
"""


def engine(dim: int = 256, max_tokens: int = 512) -> HashingEngine:
    model = ModelConfig(name="words", source=f"hashing:{dim}", max_tokens=max_tokens)
    return HashingEngine(resolve(model))


def embed(engine: HashingEngine, *texts: str) -> Float32:
    return engine.run("embed", engine.tokenizer.encode(texts))


@pytest.mark.parametrize("dim", [8, 100, 65536])
def test_vectors_are_finite_and_of_unit_length(dim: int) -> None:
    vectors = embed(engine(dim), *TEXTS, "", "?!", "\ud800 half")
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS) + 3, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_batch_takes_at_least_its_cost() -> None:
    settings = {"name": "words", "source": "hashing:64"}
    free = ModelConfig.model_validate(settings)
    model = ModelConfig.model_validate(settings | {"batch_cost": {"fixed_s": 2, "token_s": 0.5}})
    assert resolve(model).space_id == resolve(free).space_id
    sleeps, times = list[float](), iter([0.0, 0.25, 10.0, 20.0])
    slow = HashingEngine(
        resolve(model), model.batch_cost, sleep=sleeps.append, clock=lambda: next(times)
    )
    texts = ["one", "one two three"]
    vectors = embed(slow, *texts)
    embed(slow, *texts)  # computing takes longer than the cost
    assert sleeps == [2 + 0.5 * 6 - 0.25]
    assert vectors.tobytes() == embed(HashingEngine(resolve(free)), *texts).tobytes()


def test_colliding_features_never_cancel_completely() -> None:
    texts = [f"w{i} " * n + "end" for i in range(500) for n in range(5)]
    vectors = embed(engine(8), *texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_vector_is_the_same_bits_in_every_batch() -> None:
    hashing = engine()
    batched = embed(hashing, *TEXTS)
    single = np.concatenate([embed(hashing, text) for text in TEXTS])
    reversed_ = embed(hashing, *TEXTS[::-1])[::-1]
    assert batched.tobytes() == single.tobytes() == reversed_.tobytes()


def test_vectors_are_the_same_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs[0][0] != runs[1][0]  # unlike Python's `hash`
    assert runs[0][1] == runs[1][1] == embed(engine(32), *TEXTS).tobytes().hex()


def test_vectors_are_the_same_in_every_version() -> None:
    """If the vectors must change, bump `_HASHING_VERSION`: users store them in indexes."""
    (vector,) = embed(engine(16), "The river under the old bridge, the bridge over the river")
    counts = np.round(vector / np.abs(vector[vector != 0]).min()).astype(int)
    assert counts.tolist() == GOLDEN


def test_texts_that_share_words_are_near_each_other() -> None:
    vectors = embed(
        engine(1024), "The old river bridge", "an old river BRIDGE", "bread market prices"
    )
    assert vectors[0] @ vectors[1] > 0.5
    assert abs(vectors[0] @ vectors[2]) < 0.2


def test_the_order_of_words_counts() -> None:
    vectors = embed(engine(1024), "dog bites man", "man bites dog")
    assert 0.3 < vectors[0] @ vectors[1] < 0.9


def test_words_over_the_limit_are_truncated() -> None:
    tokenizer = engine(max_tokens=4).tokenizer
    exact, over = tokenizer.encode(["one two three four", "one two three four five"])
    assert exact.ids == over.ids
    assert (len(exact.ids), exact.truncated, over.truncated) == (4, False, True)


def test_operations_that_need_a_vocabulary_are_rejected() -> None:
    hashing = engine()
    tokenizer = hashing.tokenizer
    operations: list[Callable[[], object]] = [
        lambda: tokenizer.encode(["fine", (101, 102)]),
        lambda: tokenizer.tokenize(["a"], add_special_tokens=True),
        lambda: tokenizer.decode([[1]], skip_special_tokens=True),
        lambda: hashing.run("embed_tokens", tokenizer.encode(["a"])),
    ]
    for operation in operations:
        with pytest.raises(InvalidRequest, match="`hashing` has no vocabulary"):
            operation()
