"""Converting models of other kinds: tiny ones with fixed random weights."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
)

from serve_app.config import MINILM, ModelConfig
from serve_app.errors import ParityFailed
from serve_app.model_prep import artifact_cache
from serve_app.model_prep.artifact_cache import BuildStep
from serve_app.model_prep.openvino_export import prepare
from serve_app.model_prep.prepared_model import prepared
from serve_app.models import model_dir, resolve


def tiny(place: Path, kind: str, pooling: str, *, dense: bool = False) -> ModelConfig:
    """A model of the kind with MiniLM's tokenizer, 32 dimensions and fixed random weights."""
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir(MINILM)))
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
    }
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    if kind == "bert":
        model = BertModel(BertConfig(**size))
    else:
        special: dict[str, Any] = {
            f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")
        }
        model = ModernBertModel(ModernBertConfig(**size, **special, local_attention=16))
    parts = place / "parts"
    model.save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    modules = [Transformer(str(parts), max_seq_length=64), Pooling(32, pooling_mode=pooling)]
    if dense:
        modules.append(Dense(32, 16))
    SentenceTransformer(modules=[*modules, Normalize()], device="cpu").save(str(place / "model"))
    return ModelConfig(name=f"tiny/{kind}-{pooling}", source=f"path:{place / 'model'}")


@pytest.fixture(autouse=True)
def made_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converts in this process; one of its own for each would mostly load torch once more."""

    def make(place: Path, recipe: BuildStep) -> None:
        assert recipe.module == prepare.__module__
        config, precision = recipe.arguments
        place.mkdir()
        with warnings.catch_warnings(action="ignore"):  # in a process of its own they are lost
            prepare(ModelConfig.model_validate_json(config), precision, place)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CI", "true")  # as kept does it: the converter reports to nobody
    monkeypatch.setattr(artifact_cache, "_make", make)


@pytest.mark.parametrize(
    ("pooling", "dense"),
    [("cls", False), ("mean", True), ("max", False), ("lasttoken", False)],
)
def test_every_pooling_is_what_sentence_transformers_makes_of_it(
    tmp_path: Path, pooling: str, dense: bool
) -> None:
    config = tiny(tmp_path, "bert", pooling, dense=dense)
    spec = resolve(config)
    assert spec.dim == (16 if dense else 32)
    assert prepared(config, spec, "fp32").parity.cosine_min >= 0.99999


def test_an_engine_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    """A padded row's window is all padding here, and OpenVINO's softmax of nothing is NaN."""
    config = tiny(tmp_path, "modernbert", "mean")
    with pytest.raises(ParityFailed):
        prepared(config, resolve(config), "fp32")
