"""Learns a model's ranges: `python -m serve_app.model_prep.calibration CONFIG FOLDER`."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from serve_app.config import ModelConfig
from serve_app.engines.torch_engine import load_pipeline
from serve_app.model_prep.artifact_cache import write_manifest
from serve_app.model_prep.calibration_corpus import corpus
from serve_app.model_prep.quantization_ranges import ranges_around, write_quantization_ranges
from serve_app.models import resolve

_BATCH = 16
#: A model so large that a CPU takes longer is served without ranges, rather than late.
_TIME_S = 120.0


def calibrate(model: SentenceTransformer, prompts: Mapping[str, str], place: Path) -> None:
    """Writes into a folder the ranges of a model at float32, or why there are none.

    The model's prompts take turns, since what it is served with decides its vectors.
    """
    try:
        write_quantization_ranges(
            place, ranges_around(_vectors(model, list(prompts.values()) or [""]))
        )
    except Exception as error:  # the service does without
        write_quantization_ranges(place, None, f"{type(error).__name__}: {error}")


def _vectors(model: SentenceTransformer, prompts: list[str]) -> np.ndarray:
    texts = sorted((prompts[i % len(prompts)] + text for i, text in enumerate(corpus())), key=len)
    end, found = time.monotonic() + _TIME_S, []
    for i in range(0, len(texts), _BATCH):
        if time.monotonic() > end:
            raise TimeoutError(f"it takes longer than {_TIME_S:.0f} s")
        found.append(model.encode(texts[i : i + _BATCH], prompt="", show_progress_bar=False))
    return np.concatenate(found)


def main() -> None:
    """Fills an empty folder."""
    config, place = ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
    spec = resolve(config)
    model = load_pipeline(config, "cpu")
    model.max_seq_length = spec.max_tokens
    calibrate(model, spec.prompts, place)
    write_manifest(place)


if __name__ == "__main__":
    main()
