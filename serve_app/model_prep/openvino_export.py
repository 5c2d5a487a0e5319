"""Converts a model for OpenVINO: `python -m serve_app.model_prep.openvino_export CONFIG PRECISION FOLDER`.

The whole sentence-transformers pipeline is traced as it is, so every kind of pooling, dense
layer and normalisation is what that library makes of it.
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import torch
from sentence_transformers import SentenceTransformer

from serve_app.config import ModelConfig
from serve_app.engines.openvino_engine import GRAPH, OpenVinoEngine
from serve_app.engines.parity import canary_texts, parity
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.engines.torch_engine import load_pipeline
from serve_app.model_prep.artifact_cache import write_manifest
from serve_app.model_prep.calibration import calibrate
from serve_app.model_prep.prepared_model import write_parity
from serve_app.models import resolve
from serve_app.types import Float32

#: Of unlike length, so that nothing of a shape is taken for a constant.
_EXAMPLES = ["An example.", "Another example, and a good deal longer than the first one is."]


class _Pipeline(torch.nn.Module):
    """The model as a function of arrays: to vectors of texts, and to those of their tokens."""

    def __init__(self, model: SentenceTransformer, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self._model(dict(zip(self._inputs, arrays, strict=True)))
        return features["sentence_embedding"], features["token_embeddings"]


def prepare(config: ModelConfig, precision: str, place: Path) -> None:
    """Fills an empty folder with a prepared model, its ranges and what the parity gate measured."""
    spec = resolve(config, precision)
    model = load_pipeline(config, "cpu")
    model.max_seq_length = spec.max_tokens
    tokenizer = TextTokenizer.of(model.tokenizer, spec.max_tokens)
    tokenizer.save(place)
    _convert(model, tokenizer, place, precision)
    texts = canary_texts(spec.max_tokens)
    expected: Float32 = np.asarray(model.encode(texts, prompt=""), dtype=np.float32)
    engine = OpenVinoEngine(place, spec, precision=precision, threads=1)
    write_parity(place, parity(engine, texts, expected, precision))
    calibrate(model, spec.prompts, place)
    write_manifest(place)


def _convert(
    model: SentenceTransformer, tokenizer: TextTokenizer, place: Path, precision: str
) -> None:
    inputs = tokenizer.padding.inputs
    arrays = tokenizer.pad(tokenizer.tokenize(_EXAMPLES))
    example = tuple(torch.from_numpy(array) for array in arrays.values())
    with torch.inference_mode():
        graph = openvino.convert_model(_Pipeline(model, inputs), example_input=example)
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({name: openvino.PartialShape([-1, -1]) for name in inputs})
    # fp16 holds more digits of a weight than bf16 computes with, in half the memory of fp32.
    openvino.save_model(graph, place / GRAPH, compress_to_fp16=precision != "fp32")


if __name__ == "__main__":
    prepare(ModelConfig.model_validate_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
