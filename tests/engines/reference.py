"""sentence-transformers itself, asked once for all tests that hold vectors against it."""

from functools import cache

import numpy as np
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.models import model_dir
from serve_app.types import Float32
from tests.engines.texts import mixed_texts

#: As many as any test asks for; fewer texts are the first of them.
_MOST = 160


@cache
def model() -> SentenceTransformer:
    return SentenceTransformer(str(model_dir(MINILM)), device="cpu", local_files_only=True)


def vectors(n: int) -> Float32:
    """Those of `mixed_texts(n)`."""
    assert mixed_texts(_MOST)[:n] == mixed_texts(n)
    return _vectors()[:n]


@cache
def _vectors() -> Float32:
    found = np.asarray(model().encode(mixed_texts(_MOST)), dtype=np.float32)
    found.flags.writeable = False
    return found
