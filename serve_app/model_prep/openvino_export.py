"""Converts a model for OpenVINO: builds the artifact that `prepared_model` reads.

`python -m serve_app.model_prep.openvino_export CONFIG PRECISION FOLDER`

The whole sentence-transformers pipeline is traced, so that every pooling mode, dense layer and
normalization is that library's own.
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import torch
from sentence_transformers import SentenceTransformer

from serve_app.config import ModelConfig
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.engines.openvino_engine import GRAPH, OpenVinoEngine
from serve_app.engines.parity import measure_parity, parity_texts
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.engines.torch_engine import load_pipeline
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.calibration import calibrate
from serve_app.model_prep.prepared_model import write_parity
from serve_app.models import resolve
from serve_app.types import Float32

#: Examples of different lengths, so that tracing takes no dimension for a constant.
_EXAMPLES = ["An example.", "Another example, and a good deal longer than the first one is."]


class _Pipeline(torch.nn.Module):
    """A sentence-transformers model with positional tensors as inputs and outputs, for tracing."""

    def __init__(self, model: SentenceTransformer, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self._model(dict(zip(self._inputs, arrays, strict=True)))
        return features["sentence_embedding"], features["token_embeddings"]


def export(config: ModelConfig, precision: str, folder: Path) -> None:
    """Fills an empty folder with graph, tokenizer, parity, quantization ranges and manifest.

    Raises:
        ConfigurationError: the CPU doesn't compute the precision natively.
        ModelSourceError: the model can't be read.
    """
    CpuFeatures.detect().require(precision, "openvino")
    spec = resolve(config, precision)
    model = load_pipeline(config, "cpu")
    model.max_seq_length = spec.max_tokens
    tokenizer = TextTokenizer.from_transformers(model.tokenizer, spec.max_tokens)
    tokenizer.save(folder)
    _convert(model, tokenizer, precision, folder)
    texts = parity_texts(spec.max_tokens)
    expected: Float32 = np.asarray(model.encode(texts, prompt=""), dtype=np.float32)
    engine = OpenVinoEngine(folder, spec, precision=precision, threads=1)
    write_parity(folder, measure_parity(engine, texts, expected, precision))
    calibrate(model, spec.prompts, folder)
    write_manifest(folder)


def _convert(
    model: SentenceTransformer, tokenizer: TextTokenizer, precision: str, folder: Path
) -> None:
    inputs = tokenizer.padding.inputs
    arrays = tokenizer.pad(tokenizer.encode(_EXAMPLES))
    example = tuple(torch.from_numpy(array) for array in arrays.values())
    with torch.inference_mode():
        graph = openvino.convert_model(_Pipeline(model, inputs), example_input=example)
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({name: openvino.PartialShape([-1, -1]) for name in inputs})
    # fp16 stores more digits of a weight than bf16 computes with, in half the memory of fp32.
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=precision != "fp32")


def main() -> None:
    """Builds the artifact in the folder of the command line."""
    config_json, precision, folder = sys.argv[1:]
    export(ModelConfig.model_validate_json(config_json), precision, Path(folder))


if __name__ == "__main__":
    main()
