"""Each kind of model on each engine, compared with the class of sentence-transformers for it."""

import gc
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)

from serve_app.config import ModelConfig
from serve_app.engines.base import Engine, sub_batches
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import InvalidRequest, UnsupportedOperation
from serve_app.inputs import Image, Input, QueryText, TextPair, with_prompt
from serve_app.model_prep.openvino_export import export
from serve_app.models import ModelSpec, resolve
from serve_app.results import activate
from serve_app.tasks import Task
from serve_app.types import Float32, Row
from tests import tiny_models
from tests.engines.texts import mixed_texts

TEXTS = mixed_texts(28)
QUERIES = ["a river", "what is a bridge?", "search " * 30, "?!", ""]
PAIRS = [(query, text) for query in QUERIES for text in TEXTS[::4]]
ENGINES = ("torch", "openvino")

Build = Callable[[Path], ModelConfig]


class Model:
    """A tiny model in a folder, with the engines that run it."""

    def __init__(self, folder: Path, build: Build) -> None:
        with warnings.catch_warnings(action="ignore"):
            self.config = build(folder)
        self.folder = folder
        self.path = str(folder / "model")
        self.spec: ModelSpec = resolve(self.config)

    @lru_cache(maxsize=1)  # noqa: B019  # of all models: a sparse engine keeps 700 MB
    def engine(self, name: str) -> Engine:
        if name == "torch":
            return TorchEngine(self.config, self.spec, device="cpu", threads=2)
        return OpenVinoEngine(self.prepared(), self.spec, precision="fp32", threads=2)

    @cache  # noqa: B019  # only the path is kept
    def prepared(self) -> Path:
        folder = self.folder / "prepared"
        folder.mkdir()
        with warnings.catch_warnings(action="ignore"):
            export(self.config, "fp32", folder)
        return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Build], Model]:
    return cache(lambda build: Model(tmp_path_factory.mktemp("model"), build))


def run(engine: Engine, task: Task, inputs: Sequence[Input], batch_size: int) -> list[Row]:
    encoded = engine.tokenizer.encode(inputs)
    batches = [encoded[i : i + batch_size] for i in range(0, len(encoded), batch_size)]
    return [row for batch in batches for row in engine.run(task, batch)]


def assert_rows_equal(
    engine: Engine,
    task: Task,
    inputs: Sequence[Input],
    expected: Any,
    atol: float = 2e-5,
) -> None:
    """Checks the rows of inputs alone and in mixed batches."""
    for batch_size in (1, 7, len(inputs)):
        rows = run(engine, task, inputs, batch_size)
        for row, other in zip(rows, expected, strict=True):
            assert row.dtype == np.float32
            np.testing.assert_allclose(row, np.asarray(other), atol=atol, rtol=2e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_dense(model: Callable[[Build], Model], name: str) -> None:
    """An XLM-R, whose positions begin after the padding token's id."""
    tiny = model(tiny_models.dense)
    expected = SentenceTransformer(tiny.path, device="cpu").encode(TEXTS)
    assert_rows_equal(tiny.engine(name), "embed", TEXTS, expected)


def reranker_of_xlmr(folder: Path) -> ModelConfig:
    return tiny_models.cross_encoder(folder, xlmr=True)


def classifier_of_pairs(folder: Path) -> ModelConfig:
    return tiny_models.cross_encoder(folder, "contradiction", "entailment", "neutral")


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "build", [tiny_models.cross_encoder, reranker_of_xlmr, classifier_of_pairs]
)
def test_cross_encoder(model: Callable[[Build], Model], build: Build, name: str) -> None:
    tiny = model(build)
    engine, spec = tiny.engine(name), tiny.spec
    library = CrossEncoder(tiny.path, device="cpu")
    expected = library.predict(PAIRS).reshape(len(PAIRS), -1)
    pairs = [TextPair(*pair) for pair in PAIRS]
    logits: Float32 = np.stack(run(engine, spec.tasks[0], pairs, len(pairs)))
    assert logits.shape == (len(PAIRS), len(spec.labels))
    np.testing.assert_allclose(activate(logits, spec.activation), expected, atol=1e-4)
    assert_rows_equal(engine, "classify", pairs, logits)
    assert [row.truncated for row in engine.tokenizer.encode(pairs)] == [
        len(library.tokenizer(*pair)["input_ids"]) > spec.max_tokens for pair in PAIRS
    ]


@pytest.mark.parametrize("name", ENGINES)
def test_the_prompt_of_a_cross_encoder_precedes_the_query(
    model: Callable[[Build], Model], name: str
) -> None:
    tiny = model(tiny_models.cross_encoder)
    expected = CrossEncoder(tiny.path, device="cpu").predict(PAIRS, prompt="rank: ")
    pairs = [with_prompt(TextPair(*pair), "rank: ") for pair in PAIRS]
    logits: Float32 = np.stack(run(tiny.engine(name), "rerank", pairs, 8))
    np.testing.assert_allclose(activate(logits, "sigmoid")[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("name", ENGINES)
def test_classifier_of_single_texts(model: Callable[[Build], Model], name: str) -> None:
    """A folder of transformers, without files of sentence-transformers."""
    tiny = model(tiny_models.classifier)
    library = CrossEncoder(tiny.path, device="cpu")
    expected = [library.predict(text) for text in TEXTS]
    assert_rows_equal(tiny.engine(name), "classify", TEXTS, expected)


def sparse_with_sums(folder: Path) -> ModelConfig:
    return tiny_models.sparse(folder, "sum")


def sparse_with_few_weights(folder: Path) -> ModelConfig:
    return tiny_models.sparse(folder, max_active_dims=16)


def autoencoder_with_more_weights(folder: Path) -> ModelConfig:
    return tiny_models.sparse_auto_encoder(folder, max_active_dims=16)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "build",
    [
        tiny_models.sparse,
        sparse_with_sums,
        sparse_with_few_weights,
        tiny_models.sparse_auto_encoder,
        autoencoder_with_more_weights,
    ],
)
def test_sparse(model: Callable[[Build], Model], build: Build, name: str) -> None:
    tiny = model(build)
    expected = SparseEncoder(tiny.path, device="cpu").encode(TEXTS).to_dense().numpy()
    for batch_size in (1, len(TEXTS)):
        rows = run(tiny.engine(name), "embed_sparse", TEXTS, batch_size)
        for row, vector in zip(rows, expected, strict=True):
            assert np.all(np.diff(row["index"].astype(np.int64)) > 0)
            assert row["weight"].all()
            dense = np.zeros_like(vector)
            dense[row["index"]] = row["weight"]
            np.testing.assert_allclose(dense, vector, atol=1e-4)
        if build is sparse_with_few_weights:
            assert max(map(len, rows)) == 16


@pytest.mark.parametrize("name", ENGINES)
def test_a_large_sparse_batch_is_computed_in_parts(
    model: Callable[[Build], Model], name: str
) -> None:
    """Each token of a text has a value for each token of the vocabulary until they are pooled."""
    engine = model(tiny_models.sparse).engine(name)
    encoded = engine.tokenizer.encode(["a short text", *["search " * 99] * 36])
    parts = [*sub_batches(encoded, 30522)]  # type: ignore[arg-type]
    assert [row for part in parts for row in part] == encoded
    assert [len(part) for part in parts] == [34, 3]
    rows = engine.run("embed_sparse", encoded)
    (single,) = engine.run("embed_sparse", encoded[-1:])
    for row in rows[1:]:
        np.testing.assert_allclose(row["weight"].sum(), single["weight"].sum(), rtol=1e-5)
    assert len(rows) == len(encoded)


def without_expansion(folder: Path) -> ModelConfig:
    return tiny_models.multi_vector(folder, query_expansion=None, query_length=12)


def minimal_expansion(folder: Path) -> ModelConfig:
    expansion = {"strategy": "min", "attend": True, "length": 16, "token": "[PAD]"}
    return tiny_models.multi_vector(folder, query_expansion=expansion, query_length=24)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("build", [tiny_models.multi_vector, without_expansion, minimal_expansion])
def test_multi_vector(model: Callable[[Build], Model], build: Build, name: str) -> None:
    """Documents and queries in one batch: `encode_document` and `encode_query`."""
    tiny = model(build)
    library = MultiVectorEncoder(tiny.path, device="cpu")
    options: dict[str, Any] = {"convert_to_numpy": True, "show_progress_bar": False}
    expected = [
        *library.encode_query(QUERIES, **options),
        *library.encode_document(TEXTS, **options),
    ]
    inputs = [
        *(with_prompt(QueryText(text), tiny.spec.prompt("query")) for text in QUERIES),
        *(with_prompt(text, tiny.spec.prompt(None)) for text in TEXTS),
    ]
    assert_rows_equal(tiny.engine(name), "embed_tokens", inputs, expected)


@pytest.mark.parametrize("name", ["dense", "reranker", "sparse", "multi-vector", "image"])
def test_the_token_limit_can_be_lowered(tmp_path: Path, name: str) -> None:
    """The engine checks its own limit against the spec's."""
    with warnings.catch_warnings(action="ignore"):
        config = tiny_models.BUILDERS[name](tmp_path).model_copy(update={"max_tokens": 12})
    engine = TorchEngine(config, resolve(config), device="cpu", threads=1)
    long, short = engine.tokenizer.encode(["some words " * 20, "a b"])
    assert (long.length, long.truncated, short.truncated) == (12, True, False)


def image(mode: str, size: tuple[int, int], file_format: str = "PNG") -> Image:
    rng = np.random.default_rng(size[0])
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, file_format)
    return Image(file.getvalue())


IMAGES = [
    image("RGB", (24, 24)),
    image("RGB", (100, 30), "JPEG"),
    image("RGBA", (30, 60)),
    image("L", (25, 25)),
    image("P", (8, 90), "GIF"),
]


def test_images(model: Callable[[Build], Model]) -> None:
    tiny = model(tiny_models.image)
    engine = tiny.engine("torch")
    assert engine.tasks == {"embed", "embed_images"}
    library = SentenceTransformer(tiny.path, device="cpu")
    decoded: Any = [PIL.Image.open(io.BytesIO(value.data)) for value in IMAGES]
    assert_rows_equal(engine, "embed_images", IMAGES, library.encode(decoded))
    assert_rows_equal(engine, "embed", TEXTS, library.encode(TEXTS))
    assert {row.length for row in engine.tokenizer.encode(IMAGES)} == {9}  # of 8 x 8 pixels


def test_an_image_that_is_damaged_is_an_error(model: Callable[[Build], Model]) -> None:
    tokenizer = model(tiny_models.image).engine("torch").tokenizer
    for data in (b"", b"not an image", IMAGES[1].data[:200]):
        with pytest.raises(InvalidRequest, match="damaged"):
            tokenizer.encode([Image(data)])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("build", "task", "value"),
    [
        (tiny_models.dense, "rerank", TextPair("a", "b")),
        (tiny_models.dense, "embed", QueryText("a")),
        (tiny_models.dense, "embed_images", IMAGES[0]),
        (tiny_models.cross_encoder, "embed", IMAGES[0]),
        (tiny_models.sparse, "embed", TextPair("a", "b")),
        (tiny_models.multi_vector, "rerank", TextPair("a", "b")),
    ],
)
def test_other_tasks_and_inputs_are_refused(
    model: Callable[[Build], Model], build: Build, task: Task, value: Input, name: str
) -> None:
    engine = model(build).engine(name)
    with pytest.raises(InvalidRequest, match=r"The model doesn't take .* It takes texts"):
        engine.tokenizer.encode(["a text", value])
    if task not in engine.tasks:
        with pytest.raises(UnsupportedOperation, match=f"`{task}`. It supports: "):
            engine.run(task, engine.tokenizer.encode(["a text"]))


@pytest.mark.parametrize(
    "build", [tiny_models.cross_encoder, tiny_models.sparse, tiny_models.multi_vector]
)
def test_an_openvino_engine_imports_no_torch(model: Callable[[Build], Model], build: Build) -> None:
    tiny = model(build)
    code = f"""
import sys
from pathlib import Path
from serve_app.config import ModelConfig
from serve_app.engines.openvino_engine import OpenVinoEngine
from serve_app.models import resolve
spec = resolve(ModelConfig.model_validate_json({tiny.config.model_dump_json()!r}))
engine = OpenVinoEngine(Path({str(tiny.prepared())!r}), spec, precision="fp32", threads=1)
print(len(engine.run(min(engine.tasks), engine.tokenizer.encode(["a", "b"]))))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, modules = done.stdout.splitlines()[-2:]
    assert rows == "2"
    assert {"torch", "transformers", "sentence_transformers"}.isdisjoint(modules.split())


def live_modules() -> int:
    return sum(issubclass(type(item), torch.nn.Module) for item in gc.get_objects())


@pytest.mark.parametrize("name", sorted(tiny_models.BUILDERS))
def test_the_memory_of_an_unloaded_model_is_free_at_once(tmp_path: Path, name: str) -> None:
    config = tiny_models.BUILDERS[name](tmp_path)
    spec = resolve(config)
    gc.collect()
    gc.disable()
    try:
        before = live_modules()
        engine = TorchEngine(config, spec, device="cpu", threads=1)
        (task, *_) = sorted(engine.tasks & {"embed", "embed_tokens", "embed_sparse", "classify"})
        engine.run(task, engine.tokenizer.encode(["a text"]))
        assert live_modules() > before
        del engine
        assert live_modules() == before
    finally:
        gc.enable()
