"""Int8 recipes: how each int8 precision quantizes a model, and the spaces of the vectors.

The space of a quantized model is `<family>-<level>.<recipe>.<scales>`. `<recipe>` is a digest of
the recipe and of the calibration texts, known before a model is prepared. `<scales>` is a digest of
what calibration found, so two machines share a space only if their models compute the same vectors.
This module decides both and imports neither NNCF nor OpenVINO; `int8_quantization` applies a
recipe.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256

import orjson

from serve_app.model_prep.calibration_corpus import calibration_texts

_DIGEST_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Int8Recipe:
    """How a model is quantized. Every field is part of the space."""

    #: A product with constant weights stays in float32 if it has at least this many times as many
    #: inputs as outputs: the second product of a feed-forward layer, whose inputs have outliers.
    #: 0: every product is quantized.
    float_contraction: float
    texts: int  #: of the calibration corpus
    #: How much of the outliers of activations moves into the weights, from 0 to 1 (SmoothQuant).
    smoothing: float
    #: Version of what `int8_quantization` does besides. Bump it whenever vectors change.
    version: int = 1
    nncf: str = "3.4.0"  #: the version that quantizes


#: Recipes by precision. The outliers of the second products need more smoothing than all others.
RECIPES: Mapping[str, Int8Recipe] = {
    "int8": Int8Recipe(float_contraction=2.0, texts=300, smoothing=0.5),
    "int8-fast": Int8Recipe(float_contraction=0.0, texts=300, smoothing=0.95),
}


def space_precision(precision: str) -> str:
    """Returns the part of a space that stands for a precision, as far as it is known unprepared.

    Such as `bf16`, or `int8.1f0c52aa`, to which `prepared_space` adds the scales.
    """
    recipe = RECIPES.get(precision)
    # Clients split a space at its last hyphen.
    return precision if recipe is None else f"{precision.replace('-', '_')}.{_digest(recipe)}"


def prepared_space(space_id: str, scales: bytes) -> str:
    """Returns the space of a prepared model, from that of its recipe.

    Args:
        space_id: the space that `space_precision` is a part of.
        scales: what calibration found.
    """
    return f"{space_id}.{sha256(scales).hexdigest()[:_DIGEST_CHARACTERS]}"


def recipe_space(space_id: str, precision: str) -> str:
    """Returns the space of the recipe, from that of a prepared model of any precision."""
    return space_id.rpartition(".")[0] if precision in RECIPES else space_id


@cache
def _digest(recipe: Int8Recipe) -> str:
    content = orjson.dumps([asdict(recipe), calibration_texts()], option=orjson.OPT_SORT_KEYS)
    return sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
