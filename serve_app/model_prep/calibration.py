"""Calibrates a model's quantization ranges.

`python -m serve_app.model_prep.calibration CONFIG FOLDER`: corpus -> vectors at fp32 -> ranges, in
a file of the folder.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from serve_app.config import ModelConfig
from serve_app.engines.library_model import LibraryModel, load_model, reference_outputs
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.calibration_corpus import calibration_texts
from serve_app.model_prep.quantization_ranges import compute_ranges, write_quantization_ranges
from serve_app.models import resolve
from serve_app.types import Float32

_BATCH_SIZE = 16
#: A model that takes longer on a CPU is served without ranges: a late start is worse.
_TIMEOUT_S = 120.0


def calibrate(
    model: LibraryModel,
    prompts: Mapping[str, str],
    folder: Path,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Writes the ranges of a model at fp32 into a folder, or the error if calibration fails.

    The prompts alternate over the texts, because a prompt shifts the vectors.

    Args:
        model: the model at fp32.
        prompts: its prompts, by name.
        folder: receives the ranges.
        timeout_s: after which calibration fails.
    """
    try:
        vectors = _embed_corpus(model, list(prompts.values()) or [""], timeout_s)
        write_quantization_ranges(folder, compute_ranges(vectors))
    except Exception as error:  # the service runs without int8 and uint8
        write_quantization_ranges(folder, None, f"{type(error).__name__}: {error}")


def _embed_corpus(model: LibraryModel, prompts: list[str], timeout_s: float) -> Float32:
    """Returns vectors of shape (n, dim). Raises TimeoutError."""
    texts = (prompts[i % len(prompts)] + text for i, text in enumerate(calibration_texts()))
    by_length = sorted(texts, key=len)  # little padding
    deadline, batches = time.monotonic() + timeout_s, []
    for i in range(0, len(by_length), _BATCH_SIZE):
        if time.monotonic() > deadline:
            raise TimeoutError(f"it takes longer than {timeout_s:.0f} s")
        batch = by_length[i : i + _BATCH_SIZE]
        batches += reference_outputs(model, "embed", batch)
    return np.stack(batches)


def main() -> None:
    """Builds the artifact that `get_or_build_quantization_ranges` reads."""
    config, folder = ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
    spec = resolve(config)
    model = load_model(config, spec, "cpu")
    calibrate(model, spec.prompts, folder)
    write_manifest(folder)


if __name__ == "__main__":
    main()
