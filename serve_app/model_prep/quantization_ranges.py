"""Quantization ranges: the value range of each vector component, for `int8` and `uint8` vectors.

Scalar quantization with per-dimension ranges, calibrated once per model: from sentence-transformers
at fp32 and a fixed corpus, whatever engine and precision serve the model. The quantized vectors of
one model therefore stay comparable. This module reads and computes ranges and imports neither torch
nor transformers; `calibration` embeds the corpus.
"""

import logging
from pathlib import Path

import numpy as np
import orjson

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact_cache import (
    Build,
    BuildStep,
    build_in_subprocess,
    get_or_build,
)
from serve_app.models import ModelSpec
from serve_app.types import Float32

logger = logging.getLogger(__name__)

_RANGES = "ranges.json"
#: Version of corpus, margin and grid. Bump it whenever one changes: all int8 codes change.
RANGES_FORMAT = 1
#: How far a range extends beyond the observed values on each side, as a share of the range,
#: because other texts exceed what the corpus shows.
_MARGIN = 1 / 8
#: Step to which ends of ranges are rounded outward, as a share of the largest absolute value. It is
#: so coarse that the rounding errors of another machine or library don't change the ranges.
_GRID = 1 / 8


def get_or_build_quantization_ranges(
    config: ModelConfig, spec: ModelSpec, *, build: Build = build_in_subprocess
) -> Float32 | None:
    """Returns the ranges of a model that isn't prepared, and calibrates it if necessary.

    Returns:
        Shape (2, dim): lower and upper ends. None if calibration failed, with a warning in the
        log: the service then runs without int8 and uint8.
    """
    family = spec.space_id.rpartition("-")[0]
    description = f"the quantization ranges of {spec.name}"
    step = BuildStep(
        description,
        "serve_app.model_prep.calibration",
        (config.model_dump_json(),),
        {"model": spec.name, "space": family},
    )
    try:
        folder = get_or_build(f"ranges/{family}-{RANGES_FORMAT}", step, build=build)
    except ConfigurationError as error:
        logger.warning("No int8 or uint8 vectors: %s", error)
        return None
    return read_quantization_ranges(folder)


def hashing_quantization_ranges(dim: int) -> Float32:
    """Returns the ranges of any vector of unit length, -1 to 1, shape (2, dim)."""
    return np.repeat(np.array([[-1.0], [1.0]], dtype=np.float32), dim, axis=1)


def compute_ranges(vectors: Float32) -> Float32:
    """Returns ranges that hold vectors of shape (n, dim) with a margin, rounded to a coarse grid.

    Returns:
        Shape (2, dim): lower and upper ends.

    Raises:
        ValueError: a value isn't finite, or all are zero.
    """
    largest = float(np.abs(vectors).max())
    if not 0 < largest < np.inf:
        raise ValueError("the model gave no finite vectors")
    lowest, highest = vectors.min(axis=0), vectors.max(axis=0)
    grid = _GRID * 2.0 ** np.floor(np.log2(largest))
    # Some models have constant components. Half a grid step of margin keeps their range from being
    # empty, and keeps a value close to a grid line from falling on either side by rounding errors.
    margin = np.maximum(_MARGIN * (highest - lowest), grid / 2)
    lower, upper = np.floor((lowest - margin) / grid), np.ceil((highest + margin) / grid)
    return np.array([lower * grid, upper * grid], dtype=np.float32)


def write_quantization_ranges(folder: Path, ranges: Float32 | None, error: str = "") -> None:
    """Writes ranges into a folder, or the error instead, so that calibration isn't repeated."""
    content = {"error": error} if ranges is None else {"ranges": ranges.tolist()}
    (folder / _RANGES).write_bytes(orjson.dumps(content))


def read_quantization_ranges(folder: Path) -> Float32 | None:
    """Returns the ranges in a folder, shape (2, dim); None if there are none, with a warning."""
    content = orjson.loads((folder / _RANGES).read_bytes())
    if "ranges" in content:
        return np.array(content["ranges"], dtype=np.float32)
    logger.warning(
        "No int8 or uint8 vectors: the model could not be calibrated (%s). To try again, delete %s",
        content.get("error"),
        folder,
    )
    return None
