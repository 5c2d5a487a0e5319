"""Static models: tables of token vectors without a transformer."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from embedserve_client import LocalModel
from serve_app.config import AppConfig, ModelConfig
from serve_app.engines.torch_engine import TorchEngine
from serve_app.errors import ConfigurationError, ModelSourceError, UnsupportedOperation
from serve_app.model_prep.engine_selection import select_engines
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines.static_model import DIM, save_static_model

TEXTS = ["a", "two words", " ", "Zürich liegt am See.", "word " * 900]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_static_model(tmp_path / "model")


def config(folder: Path, max_tokens: int | None = None) -> ModelConfig:
    return ModelConfig(name="static", source=f"path:{folder}", max_tokens=max_tokens)


def load(folder: Path, max_tokens: int | None = None) -> TorchEngine:
    model = config(folder, max_tokens)
    return TorchEngine(model, resolve(model), device="cpu", threads=1)


def embed(engine: TorchEngine, texts: list[str]) -> Float32:
    return np.asarray(engine.run("embed", engine.tokenizer.encode(texts)))


def to_model2vec(folder: Path) -> None:
    """Changes the files into those that Model2Vec saves."""
    weights = load_file(folder / "model.safetensors")
    save_file({"embeddings": weights["embedding.weight"]}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "model2vec", "hidden_dim": DIM, "normalize": True})
    )
    (folder / "config_sentence_transformers.json").unlink()
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": ".",
            "type": "sentence_transformers.models.StaticEmbedding",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.models.Normalize",
        },
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


def to_folder(folder: Path) -> None:
    """Moves the table into a folder of its own, as earlier versions of the library do."""
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_StaticEmbedding" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("change", [None, to_model2vec, to_folder])
def test_vectors_equal_those_of_sentence_transformers(folder: Path, change: object) -> None:
    if callable(change):
        change(folder)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    engine = load(folder)
    np.testing.assert_array_equal(embed(engine, TEXTS), expected)
    for text, vector in zip(TEXTS, expected, strict=True):
        np.testing.assert_array_equal(embed(engine, [text])[0], vector)
    spec = resolve(config(folder))
    assert (spec.dim, spec.pooling, spec.unit_length) == (DIM, "mean", True)


def test_a_text_of_blanks_has_no_tokens_and_a_zero_vector(folder: Path) -> None:
    assert not embed(load(folder), ["  ", "\n"]).any()


def test_texts_are_truncated_at_the_configured_limit(folder: Path) -> None:
    engine = load(folder, max_tokens=4)
    tokens = engine.tokenizer.encode(["a b c d e", "a"])
    assert [(len(row.ids), row.truncated) for row in tokens] == [(4, True), (1, False)]
    np.testing.assert_array_equal(embed(engine, ["a b c d e"]), embed(engine, ["a b c d"]))
    assert resolve(config(folder)).max_tokens > 100_000


def test_the_local_model_of_the_client_has_the_same_vectors(folder: Path) -> None:
    local = LocalModel(str(folder), max_tokens=4).embed(["a b c d e"])
    np.testing.assert_array_equal(local, embed(load(folder, 4), ["a b c d e"]))
    assert str(local.space) == resolve(config(folder, 4)).space_id


def test_token_vectors_are_refused(folder: Path) -> None:
    engine = load(folder)
    with pytest.raises(UnsupportedOperation, match="no token embeddings"):
        engine.run("embed_tokens", engine.tokenizer.encode(["a"]))


def test_auto_selects_torch_at_fp32(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (selection,) = select_engines(AppConfig(model=config(folder)))
    assert (selection.engine, selection.precision) == ("torch", "fp32")
    assert selection.spec.quantization_ranges is not None
    with pytest.raises(ConfigurationError, match="`engine: torch` at `precision: fp32`"):
        select_engines(AppConfig(model=config(folder), engine="openvino"))


def test_a_damaged_table_is_an_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a table")
    with pytest.raises(ModelSourceError, match="not a safetensors file"):
        resolve(config(folder))
    save_file({"other": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    with pytest.raises(ModelSourceError, match="Could not read the model"):
        resolve(config(folder))
