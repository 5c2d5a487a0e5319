"""Vectors of the default model, computed by sentence-transformers at float32.

`reference_vectors.json` has the texts and, in base64, their little-endian float32 vectors.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serve_app.types import Float32

_FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, slots=True)
class ReferenceVectors:
    """Texts and their vectors, of shape (n, dim), float32."""

    model: str
    weights_sha256: str
    texts: list[str]
    vectors: Float32


def load() -> ReferenceVectors:
    """Returns the reference of the default model."""
    content = json.loads(_FILE.read_text("utf-8"))
    rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in content["vectors"]]
    return ReferenceVectors(
        content["model"], content["weights_sha256"], content["texts"], np.stack(rows)
    )
