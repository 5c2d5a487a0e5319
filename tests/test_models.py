import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import MINILM, ModelConfig
from serve_app.errors import InvalidRequest, ModelSourceError
from serve_app.models import ModelSpec, model_dir, resolve


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the default model's files with tiny stand-in weights."""
    target = tmp_path / "model"
    shutil.copytree(model_dir(MINILM), target, ignore=shutil.ignore_patterns("*.safetensors"))
    (target / "model.safetensors").write_bytes(b"not really weights")
    return target


def config(path: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(name="m", source=f"path:{path}", **changes)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_default_model_is_what_it_says() -> None:
    spec = resolve(MINILM)
    assert (spec.dim, spec.max_tokens) == (384, 256)
    assert spec.weights_sha256 == MINILM.sha256
    assert spec.unit_length
    assert spec.space_id.endswith("-fp32")


def test_other_weights_than_asked_for_are_refused(copy: Path) -> None:
    with pytest.raises(ModelSourceError, match="not the ones that were asked for"):
        resolve(config(copy, sha256=MINILM.sha256))


def test_the_space_is_the_same_wherever_the_files_lie(copy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(copy, elsewhere)
    assert resolve(config(copy)).space_id == resolve(config(elsewhere)).space_id


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "model.safetensors").write_bytes(b"other weights"),
        lambda path: edit(path / "1_Pooling" / "config.json", pooling_mode_cls_token=True),
        lambda path: edit(path / "sentence_bert_config.json", max_seq_length=128),
        lambda path: edit(path / "config.json", hidden_act="relu"),
        lambda path: edit(path / "config_sentence_transformers.json", prompts={"query": "q: "}),
        lambda path: (path / "tokenizer.json").write_text("{}"),
        lambda path: (path / "modules.json").write_text(
            json.dumps(json.loads((path / "modules.json").read_text())[:2])
        ),
    ],
    ids=["weights", "pooling", "token limit", "activation", "prompts", "tokenizer", "normalise"],
)
def test_whatever_decides_a_vector_changes_the_space(copy: Path, change: Any) -> None:
    before = resolve(config(copy)).space_id
    change(copy)
    assert resolve(config(copy)).space_id != before


def test_a_note_of_the_library_that_wrote_the_files_does_not(copy: Path) -> None:
    before = resolve(config(copy)).space_id
    edit(copy / "config.json", transformers_version="9.9.9")
    assert resolve(config(copy)).space_id == before


def test_the_precision_is_part_of_the_space() -> None:
    fp32, bf16 = resolve(MINILM, "fp32").space_id, resolve(MINILM, "bf16").space_id
    assert fp32 != bf16
    assert fp32.split("-")[0] == bf16.split("-")[0]


def test_the_configuration_may_lower_the_token_limit(copy: Path) -> None:
    assert resolve(config(copy, max_tokens=64)).max_tokens == 64


def test_a_dense_layer_decides_the_width(copy: Path) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "x.Dense"})
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "3_Dense").mkdir()
    (copy / "3_Dense" / "config.json").write_text('{"in_features": 384, "out_features": 100}')
    assert resolve(config(copy)).dim == 100


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package", "pip install no-such-package"),
        ("path:/no/such/folder", "no `modules.json`"),
        ("hub:org/name", "needs `model.revision`"),
    ],
)
def test_a_missing_model_tells_how_to_get_it(source: str, message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        resolve(ModelConfig(name="m", source=source))


def test_hashing_has_no_files_but_a_space_of_its_parameters() -> None:
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


def test_broken_files_are_a_clear_error(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelSourceError, match="Could not read the model"):
        resolve(config(copy))


def test_missing_weights_are_a_clear_error(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelSourceError, match="has no weights"):
        resolve(config(copy))


def test_prompts_are_the_models_own(copy: Path) -> None:
    edit(copy / "config_sentence_transformers.json", prompts={"query": "search: ", "passage": ""})
    spec = resolve(config(copy))
    assert spec.prompt("query") == "search: "
    assert spec.prompt(None) == ""
    with pytest.raises(InvalidRequest, match="Known ones: passage, query"):
        spec.prompt("document")
