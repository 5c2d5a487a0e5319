"""The parity gate: an engine serves only if its vectors are those of sentence-transformers.

The gate compares cosines on a fixed set of texts. It does not promise equal bits: at fp32 a vector
varies with its batch by up to 1e-5, at bf16 by up to 2e-3.
"""

import random
from collections.abc import Sequence

import numpy as np

from serve_app.engines.base import Engine
from serve_app.types import Float32, Parity

#: For each precision, the minimal cosine to sentence-transformers at fp32.
MIN_COSINE = {"fp32": 0.99999, "bf16": 0.9999, "fp16": 0.9999}

_WORDS = (
    "river",
    "bridge",
    "harbour",
    "winter",
    "music",
    "quantum",
    "history",
    "market",
    "child",
    "law",
    "engine",
    "bread",
    "garden",
    "mountain",
    "paper",
    "signal",
)
_EDGE_CASES = (
    "",
    "a",
    "?!",
    "Größe, naïve café, ½ № ‰",
    "поиск по смыслу",
    "語義的な検索",
    "بحث دلالي",
    "👩‍👩‍👧 ok 👍",
    "x" * 200,
    "https://example.org/a?b=c#d",
)
_BATCH_SIZE = 16


def meets_min_cosine(parity: Parity) -> bool:
    """Returns whether the vectors may be served. NaN never passes."""
    return parity.cosine_min >= MIN_COSINE[parity.precision]


def parity_texts(max_tokens: int) -> list[str]:
    """Returns fixed texts of every length up to the model's limit, and edge cases."""
    rng = random.Random(20260101)
    lengths = [*range(1, 33), *(48, 64, 96, 128, 192, 256, 384, 512)]
    texts = [" ".join(rng.choices(_WORDS, k=n)) for n in lengths if n <= 2 * max_tokens]
    texts += _EDGE_CASES
    rng.shuffle(texts)
    return texts


def measure_parity(
    engine: Engine, texts: Sequence[str], expected: Float32, precision: str
) -> Parity:
    """Compares an engine's vectors with expected ones, for single texts and for batches.

    Batches mix lengths, so that short texts get as much padding as they ever will.

    Args:
        engine: the engine to measure.
        texts: its inputs.
        expected: vectors of shape (len(texts), dim), from sentence-transformers at fp32.
        precision: the engine's, for the result.
    """
    tokens = engine.tokenizer.encode(texts)
    single = np.concatenate([engine.run("embed", [row]) for row in tokens])
    batches = [tokens[i : i + _BATCH_SIZE] for i in range(0, len(tokens), _BATCH_SIZE)]
    batched = np.concatenate([engine.run("embed", batch) for batch in batches])
    cosine_min = min(float(_cosines(vectors, expected).min()) for vectors in (single, batched))
    finite = bool(np.isfinite(single).all() and np.isfinite(batched).all())
    return Parity(precision, len(texts), cosine_min if finite else float("nan"))


def _cosines(first: Float32, second: Float32) -> Float32:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / norms, dtype=np.float32)
