import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import MINILM, ModelConfig
from serve_app.errors import InvalidRequest, ModelSourceError
from serve_app.models import ModelSpec, model_dir, resolve


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """Returns a copy of the default model's files, with a few bytes as weights."""
    target = tmp_path / "model"
    shutil.copytree(model_dir(MINILM), target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").write_bytes(b"not really weights")
    return target


def config(path: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(name="m", source=f"path:{path}", **changes)


def update_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_default_model_has_its_documented_properties() -> None:
    spec = resolve(MINILM)
    assert (spec.dim, spec.max_tokens) == (384, 256)
    assert spec.weights_sha256 == MINILM.sha256
    assert spec.unit_length
    assert spec.space_id.endswith("-fp32")


def test_weights_with_another_sha256_are_rejected(model_copy: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"don't match `model.sha256`"):
        resolve(config(model_copy, sha256=MINILM.sha256))


def test_the_space_does_not_depend_on_the_directory(model_copy: Path, tmp_path: Path) -> None:
    other_dir = tmp_path / "other"
    shutil.copytree(model_copy, other_dir)
    assert resolve(config(model_copy)).space_id == resolve(config(other_dir)).space_id


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "model.safetensors").write_bytes(b"other weights"),
        lambda path: update_json(path / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        lambda path: update_json(path / "sentence_bert_config.json", max_seq_length=128),
        lambda path: update_json(path / "config.json", hidden_act="relu"),
        lambda path: update_json(
            path / "config_sentence_transformers.json", prompts={"query": "q: "}
        ),
        lambda path: (path / "tokenizer.json").write_text("{}"),
        lambda path: (path / "modules.json").write_text(
            json.dumps(json.loads((path / "modules.json").read_text())[:2])
        ),
    ],
    ids=["weights", "pooling", "token limit", "activation", "prompts", "tokenizer", "normalize"],
)
def test_each_input_of_the_vectors_changes_the_space(model_copy: Path, change: Any) -> None:
    before = resolve(config(model_copy)).space_id
    change(model_copy)
    assert resolve(config(model_copy)).space_id != before


def test_the_version_of_the_library_does_not_change_the_space(model_copy: Path) -> None:
    before = resolve(config(model_copy)).space_id
    update_json(model_copy / "config.json", transformers_version="9.9.9")
    assert resolve(config(model_copy)).space_id == before


def test_the_precision_is_part_of_the_space() -> None:
    fp32, bf16 = resolve(MINILM, "fp32").space_id, resolve(MINILM, "bf16").space_id
    assert fp32 != bf16
    assert fp32.split("-")[0] == bf16.split("-")[0]


def test_the_configuration_can_lower_the_token_limit(model_copy: Path) -> None:
    assert resolve(config(model_copy, max_tokens=64)).max_tokens == 64


def test_a_dense_layer_sets_the_dimension(model_copy: Path) -> None:
    modules = json.loads((model_copy / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "x.Dense"})
    (model_copy / "modules.json").write_text(json.dumps(modules))
    (model_copy / "3_Dense").mkdir()
    (model_copy / "3_Dense" / "config.json").write_text('{"in_features": 384, "out_features": 100}')
    assert resolve(config(model_copy)).dim == 100


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package", "pip install no-such-package"),
        ("path:/no/such/folder", "no `modules.json`"),
        ("hub:org/name", "needs `model.revision`"),
    ],
)
def test_the_error_for_a_missing_model_names_the_fix(source: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        resolve(ModelConfig(name="m", source=source))


def test_the_parameters_of_a_hashing_model_define_its_space() -> None:
    def spec(**changes: Any) -> ModelSpec:
        return resolve(ModelConfig(**({"name": "words", "source": "hashing:64"} | changes)))

    first = spec()
    assert (first.dim, first.max_tokens, first.weights_sha256) == (64, 512, None)
    assert (first.prompt("query"), first.prompt("document")) == ("", "")
    assert first.space_id.endswith("-fp32")
    assert spec(name="another").space_id == first.space_id
    assert spec(source="hashing:128").space_id != first.space_id
    assert spec(max_tokens=8).space_id != first.space_id
    with pytest.raises(ModelSourceError, match="has no files"):
        model_dir(ModelConfig(name="words", source="hashing:64"))


def test_invalid_json_raises_model_source_error(model_copy: Path) -> None:
    (model_copy / "config.json").write_text("{")
    with pytest.raises(ModelSourceError, match="Could not read the model"):
        resolve(config(model_copy))


def test_missing_weights_raise_model_source_error(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="has no weights"):
        resolve(config(model_copy))


def test_prompts_come_from_the_model_files(model_copy: Path) -> None:
    update_json(
        model_copy / "config_sentence_transformers.json",
        prompts={"query": "search: ", "passage": ""},
    )
    spec = resolve(config(model_copy))
    assert spec.prompt("query") == "search: "
    assert spec.prompt(None) == ""
    with pytest.raises(InvalidRequest, match="Known ones: passage, query"):
        spec.prompt("document")


@pytest.mark.parametrize(
    ("prompts", "query", "document", "sources"),
    [
        (
            {"query": "", "document": "", "search_query": "q: ", "search_document": "d: "},
            "q: ",
            "d: ",
            {"query": "search_query", "document": "search_document"},
        ),
        (
            {"query": "q: ", "document": "", "passage": "p: "},
            "q: ",
            "p: ",
            {"document": "passage"},
        ),
        ({"query": "q: ", "document": ""}, "q: ", "", {}),
        ({"query": "", "document": "", "clustering": "c: "}, "", "", {}),
    ],
)
def test_a_prompt_replaces_its_empty_synonyms(
    model_copy: Path, prompts: Any, query: str, document: str, sources: Any
) -> None:
    update_json(model_copy / "config_sentence_transformers.json", prompts=prompts)
    spec = resolve(config(model_copy))
    assert (spec.prompt("query"), spec.prompt("document")) == (query, document)
    assert spec.prompt_sources == sources
    assert spec.prompts.keys() == prompts.keys()


def test_the_configuration_can_set_the_prompts(model_copy: Path) -> None:
    own = resolve(config(model_copy))
    spec = resolve(config(model_copy, prompts={"query": "q: ", "document": ""}))
    assert (spec.prompt("query"), spec.prompt("document"), spec.prompt_sources) == ("q: ", "", {})
    other = resolve(config(model_copy, prompts={"query": "Q: ", "document": ""}))
    assert len({own.space_id, spec.space_id, other.space_id}) == 3


def test_code_in_another_repository_is_refused(model_copy: Path) -> None:
    update_json(model_copy / "config.json", auto_map={"AutoModel": "org/code--modeling.Model"})
    assert resolve(config(model_copy)).dim == 384
    with pytest.raises(ModelSourceError, match="another repository, org/code"):
        resolve(config(model_copy, trust_remote_code=True))
    update_json(model_copy / "config.json", auto_map={"AutoModel": "modeling.Model"})
    assert resolve(config(model_copy, trust_remote_code=True)).dim == 384


def test_a_model_of_another_kind_is_refused_by_name(model_copy: Path) -> None:
    modules = json.loads((model_copy / "modules.json").read_text())
    modules[0]["type"] = "sentence_transformers.models.CLIPModel"
    (model_copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelSourceError, match=r"CLIPModel\. Only transformers"):
        resolve(config(model_copy))


def test_a_transformer_may_be_in_a_folder_of_its_own(model_copy: Path) -> None:
    """As sentence-transformers saved it before version 2."""
    expected = resolve(config(model_copy))
    folder = model_copy / "0_Transformer"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "sentence_bert_config.json"):
        (model_copy / name).rename(folder / name)
    modules = json.loads((model_copy / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (model_copy / "modules.json").write_text(json.dumps(modules))
    spec = resolve(config(model_copy))
    assert (spec.dim, spec.max_tokens) == (expected.dim, expected.max_tokens)
    assert spec.weights_sha256 == expected.weights_sha256


def add_dense_layer(model: Path, path: str = "2_Dense") -> Path:
    """Adds a module to the list of a model and returns its folder."""
    modules = json.loads((model / "modules.json").read_text())
    modules.append(
        {"idx": 9, "name": "9", "path": path, "type": "sentence_transformers.models.Dense"}
    )
    (model / "modules.json").write_text(json.dumps(modules))
    folder = model / path
    folder.mkdir()
    (folder / "config.json").write_text('{"in_features": 384, "out_features": 16}')
    return folder


@pytest.mark.parametrize("path", ["2_Dense", "layers/2_Dense"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_the_weights_of_every_module_change_the_space(
    model_copy: Path, path: str, name: str
) -> None:
    (model_copy / "layers").mkdir()
    weights = add_dense_layer(model_copy, path) / name
    weights.write_bytes(b"some weights")
    before = resolve(config(model_copy)).space_id
    weights.write_bytes(b"others")
    assert resolve(config(model_copy)).space_id != before


@pytest.mark.parametrize("path", ["../other", "2_Dense/../../other", "/other"])
def test_a_module_outside_the_folder_is_refused(model_copy: Path, path: str) -> None:
    modules = json.loads((model_copy / "modules.json").read_text())
    modules[-1]["path"] = path
    (model_copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelSourceError, match="isn't in the model's folder"):
        resolve(config(model_copy))


@pytest.mark.parametrize("shard", ["../other.safetensors", "/other.safetensors"])
def test_a_shard_outside_the_folder_is_refused(model_copy: Path, shard: str) -> None:
    index = model_copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": shard}}))
    with pytest.raises(ModelSourceError, match="isn't in its folder"):
        resolve(config(model_copy))
