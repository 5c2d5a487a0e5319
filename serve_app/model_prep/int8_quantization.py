"""Quantizes a model with NNCF by an `Int8Recipe`: static scales, found by calibration.

Only preparation imports this module. A replica runs the quantized graph with OpenVINO alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters
from openvino import opset13

from serve_app.errors import ConfigurationError
from serve_app.model_prep.int8_recipe import Int8Recipe

#: Steps of a scale's mantissa, to which scales are rounded up: so coarse that the rounding errors
#: of another CPU don't change them.
_SCALE_STEPS = 32


def quantize(
    graph: openvino.Model, inputs: Sequence[Mapping[str, Any]], recipe: Int8Recipe
) -> tuple[openvino.Model, list[tuple[float, float]]]:
    """Returns a quantized copy of a graph, and the ranges of its activations.

    Args:
        graph: the model at float32.
        inputs: of calibration, each of one text.
        recipe: which products stay in float32.

    Raises:
        ConfigurationError: another version of NNCF than the recipe's is installed.
    """
    if nncf.__version__ != recipe.nncf:
        raise ConfigurationError(
            f"NNCF {nncf.__version__} is installed, and its vectors may differ from those of "
            f"{recipe.nncf}. Run `pip install nncf=={recipe.nncf}`."
        )
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(
            names=_float_products(graph, recipe), types=["Gather"], validate=False
        ),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE,  # the engine requires VNNI, whose sums are exact
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=recipe.smoothing),
        ),
    )
    return quantized, _round_scales(quantized)


def _float_products(graph: openvino.Model, recipe: Int8Recipe) -> list[str]:
    """Returns the names of the products that stay in float32."""
    names = list[str]()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not recipe.float_contraction:
            continue
        weights = node.input_value(1)
        if weights.get_node().get_type_name() != "Constant":
            continue
        outputs, inputs = weights.get_shape()[-2:]
        if not node.get_attributes()["transpose_b"]:
            outputs, inputs = inputs, outputs
        if inputs >= recipe.float_contraction * outputs:
            names.append(node.get_friendly_name())
    return names


def _round_scales(graph: openvino.Model) -> list[tuple[float, float]]:
    """Rounds the scales of all activations up, and returns their ranges in the graph's order."""
    ranges = list[tuple[float, float]]()
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        low, high = (node.input_value(i).get_node().get_data() for i in (1, 2))
        steps = node.get_attributes()["levels"] - 1
        scale = (high.astype(np.float64) - low) / steps
        zero = np.round(-low / scale)
        grid = 2.0 ** np.floor(np.log2(scale)) / _SCALE_STEPS
        scale = np.ceil(scale / grid - 1e-3) * grid
        ends = [(-zero * scale).astype(np.float32), ((steps - zero) * scale).astype(np.float32)]
        for i, end in enumerate(ends * 2, 1):
            node.input(i).replace_source_output(opset13.constant(end).output(0))
        ranges += zip(*(map(float, end.ravel()) for end in ends), strict=True)
    return ranges
