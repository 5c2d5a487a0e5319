"""Expected vectors from sentence-transformers, computed once for all tests."""

from functools import cache

import numpy as np
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.models import model_dir
from serve_app.types import Float32
from tests.engines.texts import mixed_texts

#: The largest number of texts that a test uses; smaller numbers take the first ones.
_MAX_TEXTS = 160


@cache
def load_reference() -> SentenceTransformer:
    return SentenceTransformer(str(model_dir(MINILM)), device="cpu", local_files_only=True)


def reference_vectors(n: int) -> Float32:
    """Returns the vectors of `mixed_texts(n)`, shape (n, 384)."""
    assert mixed_texts(_MAX_TEXTS)[:n] == mixed_texts(n)
    return _all_vectors()[:n]


@cache
def _all_vectors() -> Float32:
    vectors = np.asarray(load_reference().encode(mixed_texts(_MAX_TEXTS)), dtype=np.float32)
    vectors.flags.writeable = False
    return vectors
