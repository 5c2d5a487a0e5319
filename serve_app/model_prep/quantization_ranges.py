"""The values that each component of a model's vectors takes, which `int8` and `uint8` are made by.

They are fixed for a model, once, from sentence-transformers at float32 and a corpus of our own,
whatever engine and precision it is served at, so that codes of one model can be compared for ever.
This half finds them and needs neither torch nor transformers; the half that makes them is
`calibrate`.
"""

import logging
from pathlib import Path

import numpy as np
import orjson

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact_cache import BuildStep, get_or_build
from serve_app.models import ModelSpec
from serve_app.types import Float32

logger = logging.getLogger(__name__)

_RANGES = "ranges.json"
#: Of corpus, margin and grid: with another one all codes are other ones.
RANGES_FORMAT = 1
#: What a range is widened by on each side, as a share of it: the corpus doesn't show all.
_MARGIN = 1 / 8
#: Ends of ranges are rounded outward to a grid so coarse, as a share of the largest value of all,
#: that what another machine or library computes a little differently comes to the same.
_GRID = 1 / 8


def get_or_build_quantization_ranges(config: ModelConfig, spec: ModelSpec) -> Float32 | None:
    """The ranges of a model that isn't prepared, shape (2, dim); made first where there are none.

    None, and a word in the log, where they can't be had: the service does without.
    """
    family = spec.space_id.rpartition("-")[0]
    what = f"the ranges of {spec.name} for int8 vectors"
    recipe = BuildStep(what, "serve_app.model_prep.calibration", (config.model_dump_json(),))
    try:
        return read_quantization_ranges(get_or_build(f"ranges/{family}-{RANGES_FORMAT}", recipe))
    except ConfigurationError as error:
        logger.warning("No int8 or uint8 vectors: %s", error)
        return None


def hashing_quantization_ranges(dim: int) -> Float32:
    """Of vectors of unit length, of which nothing else is known; shape (2, dim)."""
    return np.repeat(np.array([[-1.0], [1.0]], dtype=np.float32), dim, axis=1)


def ranges_around(vectors: Float32) -> Float32:
    """Ranges a little wider than those of vectors of shape (n, dim), ends on a coarse grid.

    Returns:
        Shape (2, dim).

    Raises:
        ValueError: a value isn't finite, or all are zero.
    """
    largest = float(np.abs(vectors).max())
    if not 0 < largest < np.inf:
        raise ValueError("the model gave no finite vectors")
    least, greatest = vectors.min(axis=0), vectors.max(axis=0)
    grid = _GRID * 2.0 ** np.floor(np.log2(largest))
    # Some models have components that never change. They must not lie on the grid, least of all
    # near zero, where a breath decides for one side.
    margin = np.maximum(_MARGIN * (greatest - least), grid / 2)
    low, high = np.floor((least - margin) / grid), np.ceil((greatest + margin) / grid)
    return np.array([low * grid, high * grid], dtype=np.float32)


def write_quantization_ranges(folder: Path, ranges: Float32 | None, trouble: str = "") -> None:
    """Keeps ranges; or that there are none, and why, so that nobody tries again."""
    content = {"trouble": trouble} if ranges is None else {"ranges": ranges.tolist()}
    (folder / _RANGES).write_bytes(orjson.dumps(content))


def read_quantization_ranges(folder: Path) -> Float32 | None:
    """What `write_quantization_ranges` kept, shape (2, dim); None, and a word in the log, if there are none."""
    content = orjson.loads((folder / _RANGES).read_bytes())
    if "ranges" in content:
        return np.array(content["ranges"], dtype=np.float32)
    logger.warning(
        "No int8 or uint8 vectors: the model could not be calibrated (%s). To try again, delete %s",
        content["trouble"],
        folder,
    )
    return None
