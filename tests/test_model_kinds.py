"""The spec of each kind of model, read from its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import MINILM, ModelConfig
from serve_app.errors import ModelSourceError
from serve_app.models import ModelSpec, resolve
from tests import tiny_models

#: Properties of each kind: kind, tasks, width, token limit, labels, activation.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "dense": ("dense", ("embed", "embed_tokens"), 32, 48, (), "identity"),
    "reranker": (
        "cross-encoder",
        ("rerank", "classify"),
        1,
        64,
        ("LABEL_0",),
        "sigmoid",
    ),
    "classifier": ("cross-encoder", ("classify",), 2, 512, ("bad", "good"), "identity"),
    "sparse": ("sparse", ("embed_sparse",), 30522, 64, (), "identity"),
    "multi-vector": ("multi-vector", ("embed_tokens", "rerank"), 16, 40, (), "identity"),
    "image": ("dense", ("embed", "embed_images"), 24, 32, (), "identity"),
}


def update_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | changes))


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def files(config: ModelConfig) -> Path:
    return Path(config.source.removeprefix("path:"))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_spec_of_each_kind(name: str, tmp_path: Path) -> None:
    spec = resolve(tiny_models.BUILDERS[name](tmp_path))
    actual = (spec.kind, spec.tasks, spec.dim, spec.max_tokens, spec.labels, spec.activation)
    assert actual == EXPECTED[name]


def test_the_space_of_the_default_model_never_changes() -> None:
    """Vectors that users store and cache have it."""
    assert resolve(MINILM).space_id == "2334b68ffae55d09-fp32"


def test_a_multi_vector_model_encodes_texts_as_documents(tmp_path: Path) -> None:
    spec = resolve(tiny_models.multi_vector(tmp_path))
    assert (spec.prompt("query"), spec.prompt(None)) == ("[Q] ", "[D] ")


def test_the_files_of_pylate(tmp_path: Path) -> None:
    """PyLate stores prefixes and lengths next to the prompts."""
    config = tiny_models.multi_vector(tmp_path, document_length=None)
    update_json(
        files(config) / "config_sentence_transformers.json",
        model_type="ColBERT",
        prompts={},
        query_prefix="[unused0]",
        document_prefix="[unused1]",
        document_length=33,
    )
    spec = resolve(config)
    assert (spec.kind, spec.max_tokens) == ("multi-vector", 33)
    assert (spec.prompt("query"), spec.prompt(None)) == ("[unused0]", "[unused1]")


@pytest.mark.parametrize(
    ("function", "labels", "expected"),
    [
        ("torch.nn.modules.activation.Sigmoid", 1, "sigmoid"),
        ("torch.nn.modules.linear.Identity", 1, "identity"),
        ("torch.nn.modules.activation.Softmax", 2, "softmax"),
        ("own_package.Activation", 1, "sigmoid"),  # not trusted: sentence-transformers ignores it
        ("own_package.Activation", 2, "identity"),
        (None, 1, "sigmoid"),
    ],
)
@pytest.mark.parametrize("place", ["settings", "config", "former config"])
def test_the_activation_of_a_cross_encoder(
    tmp_path: Path, function: str | None, labels: int, expected: str, place: str
) -> None:
    config = tiny_models.cross_encoder(tmp_path, *(["a", "b"] if labels == 2 else []))
    settings = files(config) / "config_sentence_transformers.json"
    update_json(settings, activation_fn=function if place == "settings" else None)
    if place == "config":
        own = {"activation_fn": function} if function else {}
        update_json(files(config) / "config.json", sentence_transformers=own)
    if place == "former config":
        update_json(files(config) / "config.json", sbert_ce_default_activation_function=function)
    assert resolve(config).activation == expected


@pytest.mark.parametrize(
    ("function", "trusted"), [("own_package.Activation", True), ("torch.nn.Tanh", False)]
)
def test_an_unknown_activation_is_refused(tmp_path: Path, function: str, trusted: bool) -> None:
    config = tiny_models.cross_encoder(tmp_path)
    update_json(files(config) / "config_sentence_transformers.json", activation_fn=function)
    with pytest.raises(ModelSourceError, match=f"activation is {function}. Known ones: Sigmoid, "):
        resolve(config.model_copy(update={"trust_remote_code": trusted}))


def set_expansion(path: Path) -> None:
    def edit(settings: Any) -> None:
        settings["query_expansion"]["length"] = 17

    edit_json(path / "sentence_bert_config.json", edit)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("multi-vector", set_expansion),
        (
            "multi-vector",
            lambda path: update_json(path / "2_MultiVectorMask/config.json", skiplist_words=["!"]),
        ),
        ("image", lambda path: update_json(path / "processor_config.json", do_rescale=False)),
        (
            "sparse",
            lambda path: update_json(
                path / "config_sentence_transformers.json", max_active_dims=100
            ),
        ),
        ("classifier", lambda path: update_json(path / "config.json", hidden_act="relu")),
    ],
    ids=["query expansion", "skipped words", "image processor", "weights left out", "architecture"],
)
def test_what_determines_outputs_changes_the_space(
    name: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    config = tiny_models.BUILDERS[name](tmp_path)
    before = resolve(config).space_id
    change(files(config))
    assert resolve(config).space_id != before


def test_kinds_with_the_same_weights_have_different_spaces(tmp_path: Path) -> None:
    config = tiny_models.sparse(tmp_path)
    before = resolve(config)
    update_json(
        files(config) / "config_sentence_transformers.json", model_type="SentenceTransformer"
    )
    after = resolve(config)
    assert (before.kind, after.kind) == ("sparse", "dense")
    assert before.space_id != after.space_id


def test_a_model_saved_before_version_5_is_recognized_by_its_modules(tmp_path: Path) -> None:
    config = tiny_models.sparse(tmp_path)

    def edit(settings: Any) -> None:
        del settings["model_type"]

    edit_json(files(config) / "config_sentence_transformers.json", edit)
    assert resolve(config).kind == "sparse"


@pytest.mark.parametrize(
    ("module", "message"),
    [("LogitScore", "LogitScore can't be served in a cross-encoder")],
)
def test_a_module_that_cannot_be_served_is_refused_by_name(
    tmp_path: Path, module: str, message: str
) -> None:
    config = tiny_models.cross_encoder(tmp_path)
    entry = {"idx": 1, "name": "1", "path": "", "type": f"sentence_transformers.{module}"}
    edit_json(files(config) / "modules.json", lambda modules: modules.append(entry))
    with pytest.raises(ModelSourceError, match=message):
        resolve(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"modality_config": {"message": {"method": "forward", "format": "flat"}}},
        {"processing_kwargs": {"text": {"padding": "max_length"}}},
    ],
)
def test_a_model_that_changes_its_texts_is_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Its vectors would not be those of sentence-transformers."""
    config = tiny_models.dense(tmp_path)
    update_json(files(config) / "sentence_bert_config.json", **settings)
    with pytest.raises(ModelSourceError, match="chat template, or processed with"):
        resolve(config)


def test_an_unknown_kind_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny_models.sparse(tmp_path)
    update_json(files(config) / "config_sentence_transformers.json", model_type="AudioEncoder")
    with pytest.raises(ModelSourceError, match=r"AudioEncoder\. Known ones: SentenceTransformer, "):
        resolve(config)


def test_a_transformers_model_of_another_kind_is_no_model(tmp_path: Path) -> None:
    config = tiny_models.classifier(tmp_path)
    update_json(files(config) / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelSourceError, match=r"no `modules.json`, and isn't a transformers"):
        resolve(config)


def dimensions(config: ModelConfig, **changes: Any) -> ModelSpec:
    return resolve(config.model_copy(update=changes))


def test_the_dimensions_that_a_model_was_trained_for(tmp_path: Path) -> None:
    config = tiny_models.dense(tmp_path)
    before = resolve(config)
    assert before.dimensions == ()
    assert dimensions(config, dimensions=(16, 8)).dimensions == (8, 16)
    assert dimensions(config, dimensions=(16, 8)).space_id == before.space_id
    update_json(files(config) / "config.json", matryoshka_dimensions=[32, 16])
    assert resolve(config).dimensions == (16, 32)
    assert dimensions(config, dimensions=(8,)).dimensions == (8,)
