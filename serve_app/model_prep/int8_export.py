"""Quantizes a converted model in its folder and measures what its vectors lose."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import orjson

from serve_app.engines.affinity import available_cpus
from serve_app.engines.openvino_engine import GRAPH, OpenVinoEngine
from serve_app.engines.quantization_loss import measure_loss
from serve_app.errors import ConfigurationError
from serve_app.model_prep.calibration_corpus import calibration_texts
from serve_app.model_prep.held_out_texts import held_out_texts
from serve_app.model_prep.int8_recipe import RECIPES
from serve_app.model_prep.prepared_model import SCALES
from serve_app.models import ModelSpec
from serve_app.types import Float32, QuantizationLoss

_BATCH_SIZE = 16


def quantize_prepared(
    graph: openvino.Model, spec: ModelSpec, precision: str, folder: Path
) -> QuantizationLoss:
    """Replaces the float32 graph in a folder by a quantized one, and returns its loss.

    Args:
        graph: the graph that the folder holds.
        spec: its model.
        precision: `int8` or `int8-fast`.
        folder: holds graph and tokenizer; receives the ranges of the activations too.

    Raises:
        ConfigurationError: NNCF isn't installed, or has another version than the recipe's.
    """
    try:
        from serve_app.model_prep.int8_quantization import quantize
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`precision: {precision}` needs NNCF to prepare a model. Run `pip install "
            "embedserve[int8]`, or `pip install nncf` in the version that it requires."
        ) from error
    recipe, prompts = RECIPES[precision], list(spec.prompts.values()) or [""]
    texts = held_out_texts()
    engine = _load(folder, spec, "fp32")
    expected = _embed(engine, texts)
    corpus = calibration_texts()
    samples = [corpus[i * len(corpus) // recipe.texts] for i in range(recipe.texts)]
    tokens = engine.tokenizer.encode(
        [prompts[i % len(prompts)] + text for i, text in enumerate(samples)]
    )
    quantized, ranges = quantize(graph, [engine.tokenizer.pad([row]) for row in tokens], recipe)
    del engine  # it maps the file that is overwritten
    (folder / SCALES).write_bytes(orjson.dumps(ranges))
    openvino.save_model(quantized, folder / GRAPH, compress_to_fp16=False)
    return measure_loss(texts, expected, _embed(_load(folder, spec, precision), texts))


def _load(folder: Path, spec: ModelSpec, precision: str) -> OpenVinoEngine:
    return OpenVinoEngine(folder, spec, precision=precision, threads=len(available_cpus()))


def _embed(engine: OpenVinoEngine, texts: Sequence[str]) -> Float32:
    """Returns vectors of shape (n, dim), in the order of the texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    tokens = engine.tokenizer.encode([texts[i] for i in order])
    batches = [tokens[i : i + _BATCH_SIZE] for i in range(0, len(tokens), _BATCH_SIZE)]
    with ThreadPoolExecutor(engine.streams) as streams:
        rows = np.concatenate(list(streams.map(partial(engine.run, "embed"), batches)))
    vectors = np.empty_like(rows)
    vectors[order] = rows
    return vectors
