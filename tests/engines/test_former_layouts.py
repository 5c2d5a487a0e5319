"""Models as the hub has them: saved by earlier versions of sentence-transformers, or by PyLate."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

from serve_app.config import ModelConfig
from serve_app.engines.torch_engine import TorchEngine
from serve_app.inputs import Input, QueryText, with_prompt
from serve_app.models import ModelSpec, resolve
from serve_app.tasks import Task
from serve_app.types import SPARSE_DTYPE, Row
from tests import tiny_models

TEXTS = ["a river", "what is a bridge? a road.", "search " * 40, "!?."]
_OPTIONS: dict[str, Any] = {"show_progress_bar": False}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings(action="ignore"):  # the library's, of its former names
        yield


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def set_modules(model: Path, *types: str) -> None:
    """Keeps the first modules, with the names of their classes at that time."""
    file = model / "modules.json"
    modules = json.loads(file.read_text())
    write_json(file, [m | {"type": type_} for m, type_ in zip(modules, types, strict=False)])


def run(config: ModelConfig, task: Task, inputs: list[Input]) -> tuple[ModelSpec, list[Row]]:
    spec = resolve(config)
    engine = TorchEngine(config, spec, device="cpu", threads=1)
    return spec, [*engine.run(task, engine.tokenizer.encode(inputs))]


def test_a_clip_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Such as `sentence-transformers/clip-ViT-B-32`."""
    config = tiny_models.image(tmp_path)
    model = tmp_path / "model"
    shutil.rmtree(model / "1_Normalize")
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json"):
        (model / name).unlink()
    set_modules(model, "sentence_transformers.models.CLIPModel")
    module = json.loads((model / "modules.json").read_text())[0]
    write_json(model / "modules.json", [module | {"path": "0_CLIPModel"}])
    (model / "0_CLIPModel").mkdir()
    for file in [*model.iterdir()]:
        if file.is_file() and file.name != "modules.json":
            file.rename(model / "0_CLIPModel" / file.name)
    spec, rows = run(config, "embed", [*TEXTS])
    assert (spec.tasks, spec.unit_length) == (("embed", "embed_images"), False)
    expected = SentenceTransformer(str(model), device="cpu").encode(TEXTS, **_OPTIONS)
    np.testing.assert_allclose(np.stack(rows), expected, rtol=2e-5, atol=2e-5)


def test_a_splade_with_its_own_transformer_module(tmp_path: Path) -> None:
    config = tiny_models.sparse(tmp_path)
    model = tmp_path / "model"
    package = "sentence_transformers.sparse_encoder.models"
    set_modules(model, f"{package}.MLMTransformer", f"{package}.SpladePooling")
    write_json(model / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    write_json(
        model / "1_SpladePooling/config.json",
        {"pooling_strategy": "max", "word_embedding_dimension": None},
    )
    spec, rows = run(config, "embed_sparse", [*TEXTS])
    assert (spec.kind, spec.max_tokens) == ("sparse", 32)
    library = SparseEncoder(str(model), device="cpu")
    for row, vector in zip(rows, library.encode(TEXTS, **_OPTIONS).to_dense(), strict=True):
        assert row.dtype == SPARSE_DTYPE
        dense = np.zeros(spec.dim, dtype=np.float32)
        dense[row["index"]] = row["weight"]
        np.testing.assert_allclose(dense, vector.numpy(), atol=1e-4)


def test_a_colbert_of_pylate(tmp_path: Path) -> None:
    config = tiny_models.multi_vector(tmp_path)
    model = tmp_path / "model"
    set_modules(model, "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    write_json(model / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    write_json(
        model / "1_Dense/config.json",
        {
            "in_features": 32,
            "out_features": 16,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    write_json(
        model / "config_sentence_transformers.json",
        {
            "model_type": "ColBERT",
            "prompts": {},
            "query_prefix": "[unused0]",
            "document_prefix": "[unused1]",
            "query_length": 16,
            "document_length": 30,
            "attend_to_expansion_tokens": False,
            "do_query_expansion": True,
            "skiplist_words": ["!", "."],
        },
    )
    spec = resolve(config)
    assert (spec.kind, spec.dim, spec.max_tokens) == ("multi-vector", 16, 30)
    queries: list[Input] = [with_prompt(QueryText(t), spec.prompt("query")) for t in TEXTS]
    documents: list[Input] = [with_prompt(text, spec.prompt(None)) for text in TEXTS]
    _, rows = run(config, "embed_tokens", [*queries, *documents])
    library = MultiVectorEncoder(str(model), device="cpu")
    expected = [
        *library.encode_query(TEXTS, convert_to_numpy=True, **_OPTIONS),
        *library.encode_document(TEXTS, convert_to_numpy=True, **_OPTIONS),
    ]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, other, atol=2e-5)
