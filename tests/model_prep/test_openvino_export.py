"""Conversion of other architectures, with tiny models of fixed random weights."""

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
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep.artifact_cache import BuildStep
from serve_app.model_prep.openvino_export import export
from serve_app.model_prep.prepared_model import get_prepared_model
from serve_app.models import model_dir, resolve
from serve_app.types import Parity


def tiny_model(
    folder: Path, architecture: str, pooling: str, *, dense: bool = False
) -> ModelConfig:
    """Writes a model with MiniLM's tokenizer, 32 dimensions and fixed random weights."""
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir(MINILM)))
    size: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
    }
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    if architecture == "bert":
        model = BertModel(BertConfig(**size))
    else:
        special: dict[str, Any] = {
            f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")
        }
        model = ModernBertModel(ModernBertConfig(**size, **special, local_attention=16))
    parts = folder / "parts"
    model.save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    modules = [Transformer(str(parts), max_seq_length=64), Pooling(32, pooling_mode=pooling)]
    if dense:
        modules.append(Dense(32, 16))
    SentenceTransformer(modules=[*modules, Normalize()], device="cpu").save(str(folder / "model"))
    return ModelConfig(name=f"tiny/{architecture}-{pooling}", source=f"path:{folder / 'model'}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build_in_process(step: BuildStep, folder: Path) -> None:
    """Converts without a process of its own, most of whose time is importing torch."""
    assert step.module == export.__module__
    config, precision = step.arguments
    with warnings.catch_warnings(action="ignore"):
        export(ModelConfig.model_validate_json(config), precision, folder)


def convert(config: ModelConfig) -> Parity:
    spec = resolve(config)
    return get_prepared_model(config, spec, "fp32", build=build_in_process).parity


@pytest.mark.parametrize(
    ("pooling", "dense"),
    [("cls", False), ("mean", True), ("max", False), ("lasttoken", False)],
)
def test_every_pooling_mode_has_parity(tmp_path: Path, pooling: str, dense: bool) -> None:
    config = tiny_model(tmp_path, "bert", pooling, dense=dense)
    assert resolve(config).dim == (16 if dense else 32)
    cosine_min = convert(config).cosine_min
    assert cosine_min is not None
    assert cosine_min >= 0.99999


def test_a_model_that_returns_nan_is_rejected(tmp_path: Path) -> None:
    """Some attention windows hold only padding, for which OpenVINO's softmax returns NaN."""
    config = tiny_model(tmp_path, "modernbert", "mean")
    with pytest.raises(ParityFailed, match="cosine nan"):
        convert(config)


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE_VNNI"])
def test_a_precision_that_the_cpu_would_emulate_is_rejected_before_the_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    config = ModelConfig(name="missing", source=f"path:{tmp_path / 'missing'}")
    with pytest.raises(ConfigurationError, match=r"bf16 natively.*`precision: fp32`"):
        export(config, "bf16", tmp_path)
