"""Prepared models: converted once, kept by space, loaded by every replica that starts later.

This half finds one and needs neither torch nor transformers; the half that makes one is `prepare`.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson

from serve_app.config import ModelConfig
from serve_app.engines.parity import GATES, passes_gate
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep.artifact_cache import BuildStep, get_or_build
from serve_app.model_prep.quantization_ranges import RANGES_FORMAT
from serve_app.models import ModelSpec
from serve_app.types import Parity

_PARITY = "parity.json"
#: Of what lies in the folder; another one is prepared anew.
_FORMAT = 3


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model in a folder, as OpenVINO reads it."""

    folder: Path
    parity: Parity


def prepared(config: ModelConfig, spec: ModelSpec, precision: str) -> PreparedModel:
    """The prepared model of a space; makes it first where there is none that is whole.

    Raises:
        ParityFailed: its vectors are too far from those of sentence-transformers.
        ConfigurationError: it can't be made; the message says why.
    """
    try:
        name = f"prepared/{spec.space_id}-openvino-{version('openvino')}-{_FORMAT}.{RANGES_FORMAT}"
    except PackageNotFoundError:
        raise ConfigurationError("OpenVINO isn't installed. Run `pip install openvino`.") from None
    recipe = BuildStep(
        f"the prepared model of {spec.name}",
        "serve_app.model_prep.openvino_export",
        (config.model_dump_json(), precision),
    )
    folder = get_or_build(name, recipe)
    parity = _read_parity(folder)
    if not passes_gate(parity):
        raise ParityFailed(
            f"With OpenVINO at {precision} the vectors of {spec.name} are only within cosine "
            f"{parity.cosine_min:.6f} of sentence-transformers; {GATES[precision]} is asked. "
            "Set `precision: fp32`, or `engine: torch`."
        )
    return PreparedModel(folder, parity)


def write_parity(folder: Path, parity: Parity) -> None:
    """Keeps what the gate measured."""
    (folder / _PARITY).write_bytes(orjson.dumps(asdict(parity)))


def _read_parity(folder: Path) -> Parity:
    measured = orjson.loads((folder / _PARITY).read_bytes())
    if measured["cosine_min"] is None:  # JSON has no NaN
        measured["cosine_min"] = float("nan")
    return Parity(**measured)
