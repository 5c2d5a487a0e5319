"""OpenVINO on the real model, prepared for these tests alone."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.errors import SpaceMismatch
from serve_app.model_prep.calibration_corpus import corpus
from serve_app.model_prep.prepared_model import PreparedModel, prepared
from serve_app.model_prep.quantization_ranges import ranges_around, read_quantization_ranges
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines.reference import model, vectors
from tests.engines.texts import mixed_texts

TEXTS = mixed_texts(100)
#: Of the default model's ranges, on every machine: int8 vectors lie in indexes.
RANGES_SHA256 = "692dcc0e3177c72007b7cba46252866f5ef7b57fa7b13c920b5fa709e9fe64dd"
GATES = {"fp32": 0.99999, "bf16": 0.9999}


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=list(GATES))
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(precision: str, cache: Path) -> PreparedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return prepared(MINILM, resolve(MINILM, precision), precision)


@pytest.fixture(scope="module")
def engine(precision: str, made: PreparedModel) -> OpenVinoEngine:
    spec = resolve(MINILM, precision)
    return OpenVinoEngine(made.folder, spec, precision=precision, threads=2)


def embed(engine: OpenVinoEngine, texts: list[str], batch: int) -> Float32:
    tokens = engine.tokenize(texts)
    return np.concatenate(
        [engine.embed(tokens[i : i + batch]) for i in range(0, len(texts), batch)]
    )


@pytest.fixture(scope="module")
def by_16(engine: OpenVinoEngine) -> Float32:
    return embed(engine, TEXTS, 16)


def test_vectors_are_those_of_sentence_transformers(
    engine: OpenVinoEngine, by_16: Float32, precision: str
) -> None:
    expected, got = vectors(len(TEXTS)), by_16
    cosine = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1)
    assert cosine.min() >= GATES[precision]
    assert got.dtype == np.float32
    assert got.shape == (len(TEXTS), engine.dim)


def test_tokens_are_the_tokenizers_own(
    engine: OpenVinoEngine, reference: SentenceTransformer
) -> None:
    expected = reference.tokenizer(TEXTS, truncation=True, max_length=256)["input_ids"]
    tokens = engine.tokenize(TEXTS)
    assert [t.ids for t in tokens] == expected
    assert any(t.truncated for t in tokens)


def test_a_vector_does_not_depend_on_its_batch(
    engine: OpenVinoEngine, by_16: Float32, precision: str
) -> None:
    tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
    together = embed(engine, TEXTS[::-1], 32)[::-1]
    np.testing.assert_allclose(embed(engine, TEXTS, 1), together, atol=tolerance)
    np.testing.assert_allclose(by_16, together, atol=tolerance)


def test_a_result_is_not_overwritten_by_the_next_run(engine: OpenVinoEngine) -> None:
    first = engine.embed(engine.tokenize(["a text"]))
    kept = first.copy()
    engine.embed(engine.tokenize(["another"]))
    assert np.array_equal(first, kept)


def test_as_many_threads_as_streams_give_the_vectors_of_one(
    made: PreparedModel, precision: str
) -> None:
    engine = OpenVinoEngine(made.folder, resolve(MINILM, precision), precision=precision, threads=2)
    assert engine.streams == 2
    batches = [engine.tokenize(TEXTS[i : i + 4]) for i in range(0, 40, 4)]
    batches += [engine.tokenize([text]) for text in ("short", "a short one", "one")]
    with ThreadPoolExecutor(4) as pool:  # more than it has: two of them wait
        got = list(pool.map(engine.embed, batches * 3))
    alone = list(map(engine.embed, batches))
    for values, expected in zip(got, alone * 3, strict=True):
        tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
        np.testing.assert_allclose(values, expected, atol=tolerance)


def test_the_gate_was_passed_and_is_kept(made: PreparedModel, precision: str) -> None:
    assert made.parity.precision == precision
    assert made.parity.texts > 40
    assert GATES[precision] <= made.parity.cosine_min <= 1.0001


def test_a_replica_that_finds_it_prepared_loads_no_torch(
    made: PreparedModel, cache: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    code = f"""
import sys
from serve_app.config import AppConfig
from serve_app.model_prep.engine_selection import load_engine, select_engine
engine = load_engine(select_engine(AppConfig(engine="openvino", precision="{precision}")), threads=1)
assert engine.info.parity.precision == "{precision}"
print(engine.embed(engine.tokenize(["a"])).shape)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, modules = done.stdout.splitlines()[-2:]
    assert shape == "(1, 384)"
    assert {"torch", "transformers", "sentence_transformers"}.isdisjoint(modules.split())


def test_a_model_that_differs_from_its_promise_does_not_start(
    made: PreparedModel, precision: str
) -> None:
    spec = resolve(MINILM, precision)
    other = type(spec)(**{**{f: getattr(spec, f) for f in spec.__slots__}, "dim": 128})
    with pytest.raises(SpaceMismatch, match="384"):
        OpenVinoEngine(made.folder, other, precision=precision, threads=1)


def test_ranges_are_those_of_the_model_at_fp32_whatever_it_is_prepared_for(
    made: PreparedModel, engine: OpenVinoEngine, precision: str
) -> None:
    found = read_quantization_ranges(made.folder)
    assert found is not None
    assert found.shape == (2, engine.dim)
    assert hashlib.sha256(found.tobytes()).hexdigest() == RANGES_SHA256
    if precision == "fp32":  # another library's sums
        assert np.array_equal(ranges_around(embed(engine, corpus(), 16)), found)


def token_vectors(reference: SentenceTransformer, texts: list[str]) -> list[Float32]:
    found = reference.encode(texts, output_value="token_embeddings", convert_to_numpy=False)
    return [one.cpu().numpy() for one in found]


def test_vectors_of_tokens_are_those_of_sentence_transformers(
    engine: OpenVinoEngine, reference: SentenceTransformer, precision: str
) -> None:
    texts = TEXTS[:48]
    expected, tokens = token_vectors(reference, texts), engine.tokenize(texts)
    mixed = [engine.embed_tokens(tokens[i : i + 16]) for i in range(0, 48, 16)]
    for one, given, wanted in zip(tokens, chain.from_iterable(mixed), expected, strict=True):
        assert given.shape == (len(one.ids), 384) == wanted.shape
        assert given.dtype == np.float32
        cosine = (given * wanted).sum(axis=1)
        cosine /= np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
        assert cosine.min() >= {"fp32": 0.99999, "bf16": 0.998}[precision]
    (alone,) = engine.embed_tokens([tokens[5]])
    np.testing.assert_allclose(alone, mixed[0][5], atol={"fp32": 1e-5, "bf16": 5e-2}[precision])


def test_asking_for_tokens_changes_no_vector_of_a_text(made: PreparedModel, precision: str) -> None:
    engine = OpenVinoEngine(made.folder, resolve(MINILM, precision), precision=precision, threads=2)
    before = embed(engine, TEXTS[:40], 8)
    batches = [engine.tokenize(TEXTS[i : i + 4]) for i in range(0, 40, 4)]
    calls: list[Callable[[Any], Any]] = [engine.embed, engine.embed_tokens] * 5
    with ThreadPoolExecutor(4) as pool:  # the first of them compiles, while others compute
        got = list(pool.map(lambda call, batch: call(batch), calls * 2, batches * 2))
    alone = [call(batch) for call, batch in zip(calls, batches, strict=True)]
    for values, expected in zip(got, alone * 2, strict=True):
        for one, same in zip(values, expected, strict=True):
            np.testing.assert_allclose(one, same, atol={"fp32": 1e-4, "bf16": 5e-2}[precision])
    assert np.array_equal(embed(engine, TEXTS[:40], 8), before)
