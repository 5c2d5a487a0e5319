from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.engines import torch_engine
from serve_app.engines.parity import MIN_COSINE
from serve_app.engines.torch_engine import TorchEngine, share_gpu
from serve_app.errors import ConfigurationError, ParityFailed, SpaceMismatch
from serve_app.models import resolve
from serve_app.types import Gpu
from tests.engines.precisions import needs
from tests.engines.reference import load_reference, reference_vectors
from tests.engines.texts import mixed_texts

TEXTS = mixed_texts(120)
#: The precisions below fp32, as parameters.
REDUCED = [pytest.param(name, marks=needs(name)) for name in ("bf16", "fp16")]


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return load_reference()


def load(precision: str) -> TorchEngine:
    spec = resolve(MINILM, precision)
    return TorchEngine(MINILM, spec, device="cpu", precision=precision, threads=2)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return load("fp32")


@pytest.fixture(scope="module")
def bf16() -> TorchEngine:
    return load("bf16")


def test_vectors_equal_those_of_sentence_transformers(engine: TorchEngine) -> None:
    expected = reference_vectors(len(TEXTS))
    tokens = engine.tokenizer.encode(TEXTS)
    actual = np.concatenate(
        [engine.run("embed", tokens[i : i + 32]) for i in range(0, len(TEXTS), 32)]
    )
    cosine = (actual * expected).sum(axis=1) / np.linalg.norm(actual, axis=1)
    assert cosine.min() >= 0.99999
    assert actual.dtype == np.float32


def test_token_ids_equal_those_of_transformers(
    engine: TorchEngine, reference: SentenceTransformer
) -> None:
    tokenizer = reference.tokenizer
    expected = tokenizer(TEXTS, truncation=True, max_length=256)["input_ids"]
    full = tokenizer(TEXTS)["input_ids"]
    tokens = engine.tokenizer.encode(TEXTS)
    assert [t.ids for t in tokens] == expected
    assert [t.truncated for t in tokens] == [len(ids) > 256 for ids in full]
    assert any(t.truncated for t in tokens)


def test_a_vector_does_not_depend_on_its_batch(engine: TorchEngine) -> None:
    tokens = engine.tokenizer.encode(TEXTS)
    batched = engine.run("embed", tokens)
    for i in (0, 5, 9, 40, 119):
        np.testing.assert_allclose(engine.run("embed", [tokens[i]])[0], batched[i], atol=1e-5)


def test_a_model_that_differs_from_its_spec_is_rejected() -> None:
    spec = resolve(MINILM.model_copy(update={"max_tokens": 128}))
    with pytest.raises(SpaceMismatch, match="max_tokens"):
        TorchEngine(MINILM, spec, device="cpu", threads=1)


def test_fp32_is_the_reference_and_has_no_parity(engine: TorchEngine) -> None:
    assert (engine.info.precision, engine.info.parity, engine.streams) == ("fp32", None, 1)


@needs("bf16")
def test_bf16_has_parity_and_returns_float32(bf16: TorchEngine) -> None:
    expected = reference_vectors(len(TEXTS))
    tokens = bf16.tokenizer.encode(TEXTS)
    actual = np.concatenate(
        [bf16.run("embed", tokens[i : i + 16]) for i in range(0, len(TEXTS), 16)]
    )
    cosine = (actual * expected).sum(axis=1) / np.linalg.norm(actual, axis=1)
    assert 0.9998 <= cosine.min() < 0.999999  # below 1: it does compute at bf16
    assert actual.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, atol=1e-5)
    assert bf16.info.precision == "bf16"
    assert bf16.info.space_id.endswith("-bf16")
    assert bf16.info.parity is not None
    assert bf16.info.parity.texts > 40
    assert bf16.info.parity.cosine_min is not None
    assert 0.9999 <= bf16.info.parity.cosine_min < 0.999999


@needs("bf16")
def test_a_vector_at_bf16_depends_little_on_its_batch(bf16: TorchEngine) -> None:
    tokens = bf16.tokenizer.encode(TEXTS[:40])
    batched = bf16.run("embed", tokens)
    for i in (0, 5, 9, 39):
        np.testing.assert_allclose(bf16.run("embed", [tokens[i]])[0], batched[i], atol=2e-3)


@pytest.mark.parametrize("precision", REDUCED)
def test_vectors_without_parity_are_rejected(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MIN_COSINE, precision, 1.1)
    with pytest.raises(ParityFailed, match="Set `precision: fp32`"):
        load(precision)


@needs("fp16")
def test_fp16_has_parity_and_returns_float32() -> None:
    half = load("fp16")
    assert half.info.parity is not None
    assert half.info.parity.cosine_min is not None
    assert 0.9999 <= half.info.parity.cosine_min < 1.0001
    assert np.asarray(half.run("embed", half.tokenizer.encode(["a"]))).dtype == np.float32


def test_a_batch_that_does_not_fit_is_a_memory_error_and_the_next_one_runs(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tokens = engine.tokenizer.encode(["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(SentenceTransformer, "forward", forward)
        with pytest.raises(MemoryError, match="2 texts") as raised:
            engine.run("embed", tokens)
    assert raised.value.__cause__ is not None
    assert raised.value.__cause__.__traceback__ is None  # it would keep the batch in memory
    assert np.asarray(engine.run("embed", tokens)).shape == (2, 384)


def test_a_gpu_that_pytorch_cannot_reach_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="its build with CUDA"):
        TorchEngine(MINILM, resolve(MINILM, "fp16"), device="cuda", precision="fp16", threads=1)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_on_another_machine_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="needs a Mac"):
        TorchEngine(MINILM, resolve(MINILM), device="mps", threads=1)


class FakeCuda:
    """The functions of `torch.cuda` that describe and limit a GPU of 24 GiB."""

    limits: tuple[float, ...] = ()

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        properties = SimpleNamespace(name="NVIDIA L4", uuid="0-1", total_memory=24 << 30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._limit)

    def _limit(self, fraction: float, device: int) -> None:
        self.limits += (fraction,)


@pytest.mark.parametrize(
    ("share", "limit_bytes"), [(None, None), (0.25, (6 << 30) - (512 << 20)), (1.0, 47 << 29)]
)
def test_a_part_of_a_gpu_includes_the_cuda_context(
    share: float | None, limit_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    gpu = share_gpu(share)
    assert gpu == Gpu("NVIDIA L4", "GPU-0-1", 24 << 30, limit_bytes)
    assert cuda.limits == (() if limit_bytes is None else (limit_bytes / (24 << 30),))


def test_a_part_of_a_gpu_that_holds_no_model_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"2% .* Raise `num_gpus`"):
        share_gpu(0.02)


def test_a_model_that_does_not_fit_on_the_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    FakeCuda(monkeypatch)
    monkeypatch.setattr(torch_engine, "load_model", load_model)
    with pytest.raises(ConfigurationError, match=r"share of the GPU's memory\. Raise `num_gpus`"):
        TorchEngine(MINILM, resolve(MINILM), device="cuda", threads=1, gpu_memory_share=0.25)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_memory_of_a_gpu_is_limited() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    share = min(1.0, 4 * 2**30 / total)
    try:
        engine = TorchEngine(
            MINILM, resolve(MINILM), device="cuda", threads=1, gpu_memory_share=share
        )
        assert engine.info.gpu is not None
        limit_bytes = engine.info.gpu.memory_limit_bytes
        assert limit_bytes is not None
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(limit_bytes, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_two_threads_on_a_gpu_return_the_vectors_of_one(precision: str) -> None:
    spec = resolve(MINILM, precision)
    engine = TorchEngine(MINILM, spec, device="cuda", precision=precision, threads=1)
    batches = [engine.tokenizer.encode(TEXTS[i : i + 8]) for i in range(0, len(TEXTS), 8)] * 8
    with ThreadPoolExecutor(engine.streams) as pool:
        results = list(pool.map(partial(engine.run, "embed"), batches))
    for values, batch in zip(results, batches, strict=True):
        np.testing.assert_array_equal(values, engine.run("embed", batch))
    expected = reference_vectors(len(TEXTS))
    cosine = (np.concatenate(results[: len(results) // 8]) * expected).sum(axis=1)
    assert cosine.min() >= 0.9998
    assert (engine.info.parity is None) == (precision == "fp32")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs("bf16"))])
def test_token_vectors_equal_those_of_sentence_transformers(
    precision: str, reference: SentenceTransformer, request: pytest.FixtureRequest
) -> None:
    engine: TorchEngine = request.getfixturevalue("bf16" if precision == "bf16" else "engine")
    texts, tokens = TEXTS[:32], engine.tokenizer.encode(TEXTS[:32])
    expected = reference.encode(texts, output_value="token_embeddings", convert_to_numpy=False)
    actual = engine.run("embed_tokens", tokens)
    for row, vectors, expected_vectors in zip(tokens, actual, expected, strict=True):
        assert vectors.shape == (len(row.ids), 384)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(
            vectors, expected_vectors.cpu().numpy(), atol={"fp32": 1e-4, "bf16": 0.1}[precision]
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_that_the_cpu_would_emulate_is_rejected(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ConfigurationError, match=f"{precision} natively.*`precision: fp32`"):
        load(precision)
