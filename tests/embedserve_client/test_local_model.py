"""The model in this process: vectors of sentence-transformers, in the space that is served."""

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
from embedserve_client.settings import DEFAULT_MODEL
from embedserve_client.wire import Options
from serve_app.config import MINILM
from serve_app.models import model_dir, resolve

TEXTS = ["a query", "Zürich liegt am See; 北京 does not.", "word " * 400, "a query"]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def reference() -> Any:
    return SentenceTransformer(str(model_dir(MINILM)))


def test_its_vectors_are_those_of_sentence_transformers(model: LocalModel, reference: Any) -> None:
    found = model.embed(TEXTS, Options())
    expected = reference.encode(TEXTS)
    assert np.abs(np.asarray(found) - expected).max() < 1e-6
    assert found.dtype == np.float32
    assert found.source == "local"


def test_its_space_is_what_the_service_says_of_the_same_files(model: LocalModel) -> None:
    assert str(model.space) == resolve(MINILM, "fp32").space_id
    shorter = MINILM.model_copy(update={"max_tokens": 64})
    assert str(LocalModel(DEFAULT_MODEL, max_tokens=64).space) == resolve(shorter).space_id
    assert model.space != LocalModel(DEFAULT_MODEL, max_tokens=64).space


def test_dimensions_are_cut_to_unit_length(model: LocalModel) -> None:
    whole = np.asarray(model.embed(["a"], Options()))
    cut = np.asarray(model.embed(["a"], Options(dimensions=8)))
    assert np.allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8]))
    with pytest.raises(LocalModelError, match="between 1 and 384"):
        model.embed(["a"], Options(dimensions=385))


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([""], Options(), "Text 0 is empty"),
        (["a"], Options(overflow="chunk"), "only the service can"),
        (["a"], Options(input_type="poem"), "Known ones: document, query"),
    ],
)
def test_what_it_cannot_do_is_told(
    model: LocalModel, texts: list[str], options: Options, words: str
) -> None:
    with pytest.raises(LocalModelError, match=words):
        model.embed(texts, options)


def test_prompts_are_the_models_own(tmp_path: Path, reference: Any) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_dir(MINILM), copy)
    file = copy / "config_sentence_transformers.json"
    told = json.loads(file.read_text()) | {
        "prompts": {"search_query": "find: ", "other": "x: "},
        "default_prompt_name": "other",
    }
    file.write_text(json.dumps(told))
    model = LocalModel(str(copy))
    for input_type, prompt in (
        ("query", "find: "),
        ("other", "x: "),
        ("document", ""),
        (None, "x: "),
    ):
        found = model.embed(["abc"], Options(input_type=input_type))
        expected = reference.encode([f"{prompt}abc"], prompt="")
        assert np.abs(np.asarray(found) - expected).max() < 1e-6


@pytest.mark.parametrize("source", ["/nowhere", "package:no_such_package"])
def test_a_model_that_is_not_there(source: str) -> None:
    with pytest.raises(LocalModelError, match="There is no model"):
        LocalModel(source).space  # noqa: B018


def test_a_folder_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(LocalModelError, match="can't be read"):
        LocalModel(str(tmp_path)).space  # noqa: B018


def test_the_library_that_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(LocalModelError, match=r"embedserve-client\[local\]"):
        LocalModel(DEFAULT_MODEL).embed(["a"], Options())


def test_it_goes_to_another_process_as_its_name() -> None:
    again = pickle.loads(pickle.dumps(LocalModel(DEFAULT_MODEL, max_tokens=64)))
    assert again.space == LocalModel(DEFAULT_MODEL, max_tokens=64).space
