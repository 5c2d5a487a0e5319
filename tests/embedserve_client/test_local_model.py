"""The local model: the vectors of sentence-transformers, in the space of the service."""

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedserve_client import LocalModel, LocalModelError
from embedserve_client.settings import DEFAULT_LOCAL_MODEL
from embedserve_client.wire import EmbedParams
from serve_app.config import MINILM
from serve_app.models import model_dir, resolve
from tests import tiny_models
from tests.engines.static_model import save_static_model

TEXTS = ["a query", "Zürich liegt am See; 北京 does not.", "word " * 400, "a query"]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(DEFAULT_LOCAL_MODEL)


@pytest.fixture(scope="module")
def reference() -> Any:
    return SentenceTransformer(str(model_dir(MINILM)))


def test_vectors_equal_those_of_sentence_transformers(model: LocalModel, reference: Any) -> None:
    vectors = model.embed(TEXTS)
    expected = reference.encode(TEXTS)
    assert np.abs(np.asarray(vectors) - expected).max() < 1e-6
    assert vectors.dtype == np.float32
    assert vectors.source == "local"


def test_token_ids_are_cut_as_those_of_the_transformer(
    model: LocalModel, reference: Any, tmp_path: Path
) -> None:
    rows = model.token_ids(TEXTS)
    assert rows[0] == reference.tokenizer(TEXTS[0])["input_ids"]
    assert len(rows[2]) == 256
    assert rows[2][-1] == rows[0][-1]  # the end of a text
    static = LocalModel(str(save_static_model(tmp_path)))
    assert static.token_ids(["a query", "query"]) == [rows[0][1:-1], rows[0][2:-1]]


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    tiny_models.sparse(tmp_path)
    with pytest.raises(LocalModelError, match=r"of the kind sparse\. A local model embeds texts"):
        LocalModel(str(tmp_path / "model")).embed(["a"])


def test_space_equals_the_services_for_the_same_files(model: LocalModel) -> None:
    assert str(model.space) == resolve(MINILM, "fp32").space_id
    shorter = MINILM.model_copy(update={"max_tokens": 64})
    assert str(LocalModel(DEFAULT_LOCAL_MODEL, max_tokens=64).space) == resolve(shorter).space_id
    assert model.space != LocalModel(DEFAULT_LOCAL_MODEL, max_tokens=64).space


def test_truncated_dimensions_are_normalized(model: LocalModel) -> None:
    full = np.asarray(model.embed(["a"]))
    truncated = np.asarray(model.embed(["a"], EmbedParams(dimensions=8)))
    assert np.allclose(truncated, full[:, :8] / np.linalg.norm(full[:, :8]))
    with pytest.raises(LocalModelError, match="between 1 and 384"):
        model.embed(["a"], EmbedParams(dimensions=385))


@pytest.mark.parametrize(
    ("texts", "params", "message"),
    [
        ([""], EmbedParams(), "Text 0 is empty"),
        (["a"], EmbedParams(truncation="chunk"), "Use `end`, or the service"),
        (["a"], EmbedParams(input_type="poem"), "It has: document, query"),
    ],
)
def test_unsupported_input_is_rejected(
    model: LocalModel, texts: list[str], params: EmbedParams, message: str
) -> None:
    with pytest.raises(LocalModelError, match=message):
        model.embed(texts, params)


def test_prompts_are_those_of_the_model(tmp_path: Path, reference: Any) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_dir(MINILM), copy)
    file = copy / "config_sentence_transformers.json"
    config = json.loads(file.read_text()) | {
        "prompts": {"search_query": "find: ", "other": "x: "},
        "default_prompt_name": "other",
    }
    file.write_text(json.dumps(config))
    model = LocalModel(str(copy))
    for input_type, prompt in (
        ("query", "find: "),
        ("other", "x: "),
        ("document", ""),
        (None, "x: "),
    ):
        vectors = model.embed(["abc"], EmbedParams(input_type=input_type))
        expected = reference.encode([f"{prompt}abc"], prompt="")
        assert np.abs(np.asarray(vectors) - expected).max() < 1e-6


@pytest.mark.parametrize("source", ["/nowhere", "package:no_such_package"])
def test_missing_model(source: str) -> None:
    with pytest.raises(LocalModelError, match="There is no model"):
        LocalModel(source).space  # noqa: B018


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(LocalModelError, match="can't be read"):
        LocalModel(str(tmp_path)).space  # noqa: B018


def test_missing_library_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(LocalModelError, match=r"embedserve-client\[local\]"):
        LocalModel(DEFAULT_LOCAL_MODEL).embed(["a"])


def test_pickle_keeps_the_source_and_not_the_weights() -> None:
    restored = pickle.loads(pickle.dumps(LocalModel(DEFAULT_LOCAL_MODEL, max_tokens=64)))
    assert restored.space == LocalModel(DEFAULT_LOCAL_MODEL, max_tokens=64).space
