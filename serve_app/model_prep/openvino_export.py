"""Converts a model for OpenVINO: builds the artifact that `prepared_model` reads.

`python -m serve_app.model_prep.openvino_export CONFIG PRECISION FOLDER`

The whole sentence-transformers pipeline is traced, so that every pooling mode, dense layer and
normalization is that library's own.
"""

import sys
from dataclasses import replace
from pathlib import Path

import openvino
import torch

from serve_app.config import ModelConfig
from serve_app.engines.base import engine_tasks
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.engines.library_model import (
    FEATURES,
    LibraryModel,
    load_model,
    load_tokenizer,
    reference_outputs,
)
from serve_app.engines.openvino_engine import GRAPH, OpenVinoEngine
from serve_app.engines.parity import has_parity, measure_parity, parity_inputs
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.inputs import Input, QueryText, TextPair
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.calibration import calibrate
from serve_app.model_prep.int8_recipe import RECIPES, space_precision
from serve_app.model_prep.prepared_model import write_parity
from serve_app.models import ModelSpec, resolve
from serve_app.types import Parity

#: Examples of different lengths, so that tracing takes no dimension for a constant.
_SHORT, _LONG = "An example.", "Another example, and a good deal longer than the first one is."


class _Pipeline(torch.nn.Module):
    """A sentence-transformers model with positional tensors as inputs and outputs, for tracing."""

    def __init__(
        self, model: LibraryModel, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        super().__init__()
        self._model = model
        self._inputs = inputs
        self._outputs = outputs

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self._model(dict(zip(self._inputs, arrays, strict=True)))
        return tuple(features[name] for name in self._outputs)


def export(config: ModelConfig, precision: str, folder: Path) -> None:
    """Fills an empty folder with graph, tokenizer, parity and manifest, and ranges if it is dense.

    Raises:
        ConfigurationError: the CPU doesn't compute the precision natively, or int8 needs NNCF.
        ModelSourceError: the model can't be read.
    """
    CpuFeatures.detect().require(precision, "openvino")
    spec = resolve(config, space_precision(precision))
    model = load_model(config, spec, "cpu")
    tokenizer = load_tokenizer(model, spec)
    tokenizer.save(folder)
    inputs = parity_inputs(spec)
    # Before the conversion: some modules set attributes in their first run, which can't be traced.
    expected = {task: reference_outputs(model, task, values) for task, values in inputs.items()}
    graph = _convert(model, spec, tokenizer)

    def measure(precision: str) -> Parity:
        engine = OpenVinoEngine(folder, spec, precision=precision, threads=1)
        return measure_parity(engine, inputs, expected, precision)

    # fp16 stores more digits of a weight than bf16 computes with, in half the memory of fp32.
    is_float = precision not in RECIPES
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=is_float and precision != "fp32")
    parity = measure(precision if is_float else "fp32")
    if not is_float and has_parity(parity):
        from serve_app.model_prep.int8_export import quantize_prepared

        loss = quantize_prepared(graph, spec, precision, folder)
        parity = replace(measure(precision), quantization_loss=loss)
    if not has_parity(parity):  # only the reason why it is never loaded is kept
        for file in folder.iterdir():
            file.unlink()
    elif spec.kind == "dense":
        calibrate(model, spec.prompts, folder)
    write_parity(folder, parity)
    write_manifest(folder)


def _convert(model: LibraryModel, spec: ModelSpec, tokenizer: TextTokenizer) -> openvino.Model:
    inputs = tokenizer.padding.inputs
    outputs = dict.fromkeys(FEATURES[task] for task in spec.tasks if task in engine_tasks(spec))
    arrays = tokenizer.pad(tokenizer.encode(_examples(spec)))
    example = tuple(torch.from_numpy(array) for array in arrays.values())
    with torch.inference_mode():
        graph = openvino.convert_model(
            _Pipeline(model, inputs, tuple(outputs)), example_input=example
        )
    for port, name in zip(graph.inputs, inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({name: openvino.PartialShape([-1, -1]) for name in inputs})
    return graph


def _examples(spec: ModelSpec) -> list[Input]:
    if spec.kind == "cross-encoder":
        return [TextPair(_SHORT, _LONG), TextPair(_SHORT, _SHORT)]
    if spec.kind == "multi-vector":
        return [QueryText(_SHORT), _LONG]
    return [_SHORT, _LONG]


def main() -> None:
    """Builds the artifact in the folder of the command line."""
    config_json, precision, folder = sys.argv[1:]
    export(ModelConfig.model_validate_json(config_json), precision, Path(folder))


if __name__ == "__main__":
    main()
