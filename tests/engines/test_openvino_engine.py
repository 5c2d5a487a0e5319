"""The OpenVINO engine with the default model, which is prepared in a cache of its own."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.engines.parity import MIN_COSINE
from serve_app.errors import ConfigurationError, SpaceMismatch
from serve_app.model_prep.artifact_cache import build_in_subprocess
from serve_app.model_prep.calibration_corpus import calibration_texts
from serve_app.model_prep.int8_recipe import space_precision
from serve_app.model_prep.prepared_model import PreparedModel, get_prepared_model
from serve_app.model_prep.quantization_ranges import compute_ranges, read_quantization_ranges
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines.precisions import OPENVINO_PRECISIONS
from tests.engines.reference import load_reference, reference_vectors
from tests.engines.texts import mixed_texts
from tests.model_prep.test_openvino_export import build_in_process

TEXTS = mixed_texts(100)
#: Digest of the default model's ranges, the same on every machine: users store int8 vectors.
RANGES_SHA256 = "692dcc0e3177c72007b7cba46252866f5ef7b57fa7b13c920b5fa709e9fe64dd"
#: How far a vector may differ with its batch. At int8 most don't: the rounding errors of the
#: products at fp32, which depend on the batch, rarely decide how a value is rounded to int8.
BATCH_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3, "int8": 2e-3}
#: The share of vectors that may differ by more than at fp32.
MAX_MOVED = {"fp32": 0.0, "bf16": 1.0, "int8": 0.1}


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return load_reference()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=OPENVINO_PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prepared(precision: str, cache: Path) -> PreparedModel:
    # One is prepared as a user's is, in a process of its own, which imports torch.
    build = build_in_subprocess if precision == "fp32" else build_in_process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        spec = resolve(MINILM, space_precision(precision))
        return get_prepared_model(MINILM, spec, precision, build=build)


def load(prepared: PreparedModel, precision: str) -> OpenVinoEngine:
    spec = resolve(MINILM, precision)
    return OpenVinoEngine(prepared.folder, spec, precision=precision, threads=2)


@pytest.fixture(scope="module")
def engine(precision: str, prepared: PreparedModel) -> OpenVinoEngine:
    return load(prepared, precision)


def embed(engine: OpenVinoEngine, texts: list[str], batch_size: int) -> Float32:
    tokens = engine.tokenizer.encode(texts)
    batches = [tokens[i : i + batch_size] for i in range(0, len(texts), batch_size)]
    return np.concatenate([engine.run("embed", batch) for batch in batches])


@pytest.fixture(scope="module")
def batches_of_16(engine: OpenVinoEngine) -> Float32:
    return embed(engine, TEXTS, 16)


def test_vectors_equal_those_of_sentence_transformers(
    engine: OpenVinoEngine, batches_of_16: Float32, precision: str
) -> None:
    expected, actual = reference_vectors(len(TEXTS)), batches_of_16
    cosine = (actual * expected).sum(axis=1) / np.linalg.norm(actual, axis=1)
    assert cosine.min() >= MIN_COSINE[precision]
    assert actual.dtype == np.float32
    assert actual.shape == (len(TEXTS), 384)


def test_token_ids_equal_those_of_transformers(
    engine: OpenVinoEngine, reference: SentenceTransformer
) -> None:
    expected = reference.tokenizer(TEXTS, truncation=True, max_length=256)["input_ids"]
    tokens = engine.tokenizer.encode(TEXTS)
    assert [t.ids for t in tokens] == expected
    assert any(t.truncated for t in tokens)


def test_a_vector_does_not_depend_on_its_batch(
    engine: OpenVinoEngine, batches_of_16: Float32, precision: str
) -> None:
    tolerance = BATCH_TOLERANCE[precision]
    reversed_by_32 = embed(engine, TEXTS[::-1], 32)[::-1]
    for vectors in (embed(engine, TEXTS, 1), batches_of_16):
        np.testing.assert_allclose(vectors, reversed_by_32, atol=tolerance)
        moved = np.abs(vectors - reversed_by_32).max(axis=1) > BATCH_TOLERANCE["fp32"]
        assert moved.mean() <= MAX_MOVED[precision]


def test_a_result_is_not_overwritten_by_the_next_run(engine: OpenVinoEngine) -> None:
    first = np.asarray(engine.run("embed", engine.tokenizer.encode(["a text"])))
    copy = first.copy()
    engine.run("embed", engine.tokenizer.encode(["another"]))
    assert np.array_equal(first, copy)


def test_parallel_runs_return_the_vectors_of_sequential_ones(
    prepared: PreparedModel, precision: str
) -> None:
    engine = load(prepared, precision)
    assert engine.streams == 2
    batches = [engine.tokenizer.encode(TEXTS[i : i + 4]) for i in range(0, 40, 4)]
    batches += [engine.tokenizer.encode([text]) for text in ("short", "a short one", "one")]
    with ThreadPoolExecutor(4) as pool:  # more threads than streams, so some wait
        parallel = list(pool.map(partial(engine.run, "embed"), batches * 3))
    sequential = list(map(partial(engine.run, "embed"), batches))
    for values, expected in zip(parallel, sequential * 3, strict=True):
        np.testing.assert_allclose(values, expected, atol=BATCH_TOLERANCE[precision])


def test_a_prepared_model_keeps_its_parity(prepared: PreparedModel, precision: str) -> None:
    assert prepared.parity.precision == precision
    assert prepared.parity.texts > 40
    assert prepared.parity.cosine_min is not None
    assert MIN_COSINE[precision] <= prepared.parity.cosine_min <= 1.0001


def test_a_replica_that_finds_a_prepared_model_imports_no_torch(
    prepared: PreparedModel, cache: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    code = f"""
import sys
from serve_app.config import AppConfig
from serve_app.model_prep.engine_selection import load_engine, select_engines
config = AppConfig(engine="openvino", precision="{precision}")
engine = load_engine(*select_engines(config), threads=1)
assert engine.info.parity.precision == "{precision}"
print(engine.run("embed", engine.tokenizer.encode(["a"])).shape)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shape, modules = done.stdout.splitlines()[-2:]
    assert shape == "(1, 384)"
    assert {"torch", "transformers", "sentence_transformers"}.isdisjoint(modules.split())


def test_a_model_that_differs_from_its_spec_is_rejected(
    prepared: PreparedModel, precision: str
) -> None:
    spec = replace(resolve(MINILM, precision), dim=128)
    with pytest.raises(SpaceMismatch, match="384"):
        OpenVinoEngine(prepared.folder, spec, precision=precision, threads=1)


def test_a_precision_that_the_cpu_would_emulate_is_rejected_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    spec = resolve(MINILM, "bf16")
    with pytest.raises(ConfigurationError, match=r"bf16 natively.*`precision: fp32`"):
        OpenVinoEngine(tmp_path / "missing", spec, precision="bf16", threads=1)


def test_ranges_are_those_of_fp32_at_every_precision(
    prepared: PreparedModel, engine: OpenVinoEngine, precision: str
) -> None:
    ranges = read_quantization_ranges(prepared.folder)
    assert ranges is not None
    assert ranges.shape == (2, 384)
    assert hashlib.sha256(ranges.tobytes()).hexdigest() == RANGES_SHA256
    if precision == "fp32":  # OpenVINO's rounding errors don't change them
        assert np.array_equal(compute_ranges(embed(engine, calibration_texts(), 16)), ranges)


def reference_token_vectors(reference: SentenceTransformer, texts: list[str]) -> list[Float32]:
    tensors = reference.encode(texts, output_value="token_embeddings", convert_to_numpy=False)
    return [tensor.cpu().numpy() for tensor in tensors]


def test_token_vectors_equal_those_of_sentence_transformers(
    engine: OpenVinoEngine, reference: SentenceTransformer, precision: str
) -> None:
    texts = TEXTS[:48]
    expected = reference_token_vectors(reference, texts)
    tokens = engine.tokenizer.encode(texts)
    batches = [engine.run("embed_tokens", tokens[i : i + 16]) for i in range(0, 48, 16)]
    actual = chain.from_iterable(batches)
    for row, vectors, expected_vectors in zip(tokens, actual, expected, strict=True):
        assert vectors.shape == (len(row.ids), 384) == expected_vectors.shape
        assert vectors.dtype == np.float32
        cosine = (vectors * expected_vectors).sum(axis=1)
        cosine /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected_vectors, axis=1)
        assert cosine.min() >= {"fp32": 0.99999, "bf16": 0.998, "int8": 0.98}[precision]
    (single,) = engine.run("embed_tokens", [tokens[5]])
    np.testing.assert_allclose(
        single, batches[0][5], atol={"fp32": 1e-5, "bf16": 5e-2, "int8": 5e-2}[precision]
    )


def test_token_vectors_do_not_change_the_vectors_of_texts(
    prepared: PreparedModel, precision: str
) -> None:
    engine = load(prepared, precision)
    before = embed(engine, TEXTS[:40], 8)
    batches = [engine.tokenizer.encode(TEXTS[i : i + 4]) for i in range(0, 40, 4)]
    calls: list[Callable[[Any], Any]] = [
        *(partial(engine.run, "embed"), partial(engine.run, "embed_tokens"))
    ] * 5
    with ThreadPoolExecutor(4) as pool:  # the first call of `embed_tokens` compiles meanwhile
        parallel = list(pool.map(lambda call, batch: call(batch), calls * 2, batches * 2))
    sequential = [call(batch) for call, batch in zip(calls, batches, strict=True)]
    for actual, expected in zip(parallel, sequential * 2, strict=True):
        for values, expected_values in zip(actual, expected, strict=True):
            tolerance = {"fp32": 1e-4, "bf16": 5e-2, "int8": 5e-2}[precision]
            np.testing.assert_allclose(values, expected_values, atol=tolerance)
    assert np.array_equal(embed(engine, TEXTS[:40], 8), before)
