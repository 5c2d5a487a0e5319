from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.engines import torch_engine
from serve_app.engines.parity import GATES
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ConfigurationError, ParityFailed, SpaceMismatch
from serve_app.models import resolve
from tests.engines.reference import model, vectors
from tests.engines.texts import mixed_texts

TEXTS = mixed_texts(120)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return model()


def load(precision: str) -> TorchEngine:
    spec = resolve(MINILM, precision)
    return TorchEngine(MINILM, spec, device="cpu", precision=precision, threads=2)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return load("fp32")


@pytest.fixture(scope="module")
def bf16() -> TorchEngine:
    return load("bf16")


def test_vectors_are_those_of_sentence_transformers(engine: TorchEngine) -> None:
    expected = vectors(len(TEXTS))
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


def test_fp32_is_the_reference_itself(engine: TorchEngine) -> None:
    assert (engine.info.precision, engine.info.parity, engine.streams) == ("fp32", None, 1)


def test_bf16_passes_its_gate_and_gives_float32(bf16: TorchEngine) -> None:
    expected = vectors(len(TEXTS))
    tokens = bf16.tokenize(TEXTS)
    got = np.concatenate([bf16.embed(tokens[i : i + 16]) for i in range(0, len(TEXTS), 16)])
    cosine = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1)
    assert 0.9998 <= cosine.min() < 0.999999  # it is at bf16 indeed
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    assert bf16.info.precision == "bf16"
    assert bf16.info.space_id.endswith("-bf16")
    assert bf16.info.parity is not None
    assert bf16.info.parity.texts > 40
    assert 0.9999 <= bf16.info.parity.cosine_min < 0.999999


def test_a_vector_at_bf16_does_not_depend_on_its_batch(bf16: TorchEngine) -> None:
    tokens = bf16.tokenize(TEXTS[:40])
    together = bf16.embed(tokens)
    for i in (0, 5, 9, 39):
        np.testing.assert_allclose(bf16.embed([tokens[i]])[0], together[i], atol=2e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_vectors_that_are_too_far_are_refused(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "canaries", lambda limit: ["a text", "another one"])
    monkeypatch.setitem(GATES, precision, 1.1)
    with pytest.raises(ParityFailed, match="Set `precision: fp32`"):
        load(precision)


def test_fp16_passes_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few and short ones: a CPU has no arithmetic for it.
    monkeypatch.setattr(torch_engine, "canaries", lambda limit: ["a text", "one more " * 12])
    half = load("fp16")
    assert half.info.parity is not None
    assert 0.9999 <= half.info.parity.cosine_min < 1.0001
    assert half.embed(half.tokenize(["a"])).dtype == np.float32


def test_a_batch_that_does_not_fit_is_a_memory_error_and_the_next_one_runs(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tokens = engine.tokenize(["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", full)
        with pytest.raises(MemoryError, match="2 texts") as failed:
            engine.embed(tokens)
    assert failed.value.__cause__ is not None
    assert failed.value.__cause__.__traceback__ is None  # which would keep the batch alive
    assert engine.embed(tokens).shape == (2, 384)


def test_a_gpu_that_pytorch_cannot_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="its build with CUDA"):
        TorchEngine(MINILM, resolve(MINILM, "fp16"), device="cuda", precision="fp16", threads=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu_two_threads_give_the_vectors_of_one(precision: str) -> None:
    spec = resolve(MINILM, precision)
    engine = TorchEngine(MINILM, spec, device="cuda", precision=precision, threads=1)
    batches = [engine.tokenize(TEXTS[i : i + 8]) for i in range(0, len(TEXTS), 8)] * 8
    with ThreadPoolExecutor(engine.streams) as pool:
        got = list(pool.map(engine.embed, batches))
    for values, batch in zip(got, batches, strict=True):
        np.testing.assert_array_equal(values, engine.embed(batch))
    expected = vectors(len(TEXTS))
    cosine = (np.concatenate(got[: len(got) // 8]) * expected).sum(axis=1)
    assert cosine.min() >= 0.9998


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_of_tokens_are_those_of_sentence_transformers(
    precision: str, engine: TorchEngine, bf16: TorchEngine, reference: SentenceTransformer
) -> None:
    own = bf16 if precision == "bf16" else engine
    texts, tokens = TEXTS[:32], own.tokenize(TEXTS[:32])
    expected = reference.encode(texts, output_value="token_embeddings", convert_to_numpy=False)
    got = own.embed_tokens(tokens)
    for one, given, wanted in zip(tokens, got, expected, strict=True):
        assert given.shape == (len(one.ids), 384)
        assert given.dtype == np.float32
        np.testing.assert_allclose(
            given, wanted.cpu().numpy(), atol={"fp32": 1e-4, "bf16": 0.1}[precision]
        )
