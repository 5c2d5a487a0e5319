"""Prepared models: converted for OpenVINO once per space and read by every later replica.

This module finds them and imports neither torch nor transformers; `openvino_export` builds them.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serve_app.config import ModelConfig
from serve_app.engines.parity import describe_shortfall, has_parity
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep.artifact_cache import (
    Build,
    BuildStep,
    build_in_subprocess,
    get_or_build,
)
from serve_app.model_prep.int8_recipe import RECIPES, prepared_space
from serve_app.model_prep.quantization_ranges import RANGES_FORMAT
from serve_app.models import ModelSpec
from serve_app.types import Parity, QuantizationLoss

_PARITY = "parity.json"
#: The ranges of a quantized model's activations, as JSON.
SCALES = "scales.json"
#: Format of the folder. Bump it when the files or the bounds of the gate change: every model is
#: then prepared again. A model without parity has no files but the measure.
_FORMAT = 3


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model that OpenVINO can read, with the result of its parity gate."""

    folder: Path
    parity: Parity
    space_id: str  #: the spec's, and for int8 the scales


def get_prepared_model(
    config: ModelConfig, spec: ModelSpec, precision: str, *, build: Build = build_in_subprocess
) -> PreparedModel:
    """Returns the prepared model of a space, and builds it if it's missing or damaged.

    Args:
        config: the model's source.
        spec: the model, whose space is that of `space_precision`.
        precision: `fp32`, `bf16`, `int8` or `int8-fast`.
        build: runs the conversion.

    Raises:
        ParityFailed: the outputs are too far from those of sentence-transformers.
        ConfigurationError: the model can't be prepared; the message says why.
    """
    try:
        name = f"prepared/{spec.space_id}-openvino-{version('openvino')}-{_FORMAT}.{RANGES_FORMAT}"
    except PackageNotFoundError:
        raise ConfigurationError("OpenVINO isn't installed. Run `pip install openvino`.") from None
    step = BuildStep(
        f"the prepared model of {spec.name}",
        "serve_app.model_prep.openvino_export",
        (config.model_dump_json(), precision),
        {
            "model": spec.name,
            "space": spec.space_id,
            "engine": "openvino",
            "precision": precision,
        },
    )
    folder = get_or_build(name, step, build=build)
    parity = _read_parity(folder)
    if not has_parity(parity):
        raise ParityFailed(
            f"With OpenVINO at {precision}, {describe_shortfall(parity)} ({spec.name}). Set "
            "`precision: fp32`, or `engine: torch`."
        )
    space_id = spec.space_id
    if precision in RECIPES:
        space_id = prepared_space(space_id, (folder / SCALES).read_bytes())
    return PreparedModel(folder, parity, space_id)


def write_parity(folder: Path, parity: Parity) -> None:
    """Writes the result of the parity gate into a prepared model's folder."""
    # Python's JSON has NaN, orjson's has not.
    (folder / _PARITY).write_text(json.dumps(asdict(parity)))


def _read_parity(folder: Path) -> Parity:
    fields = json.loads((folder / _PARITY).read_bytes())
    loss = fields.pop("quantization_loss", None)
    return Parity(**fields, quantization_loss=loss and QuantizationLoss(**loss))
