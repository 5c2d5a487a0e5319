"""Whether an engine gives the vectors of sentence-transformers: the gate before it serves."""

import random
from collections.abc import Sequence

import numpy as np

from serve_app.engines.base import Engine
from serve_app.types import Float32, Parity

#: The least cosine to sentence-transformers at float32 that each precision must keep.
GATES = {"fp32": 0.99999, "bf16": 0.9999, "fp16": 0.9999}

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
_ODD = (
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
_BATCH = 16


def passes_gate(found: Parity) -> bool:
    """Whether the vectors may be served; NaN never passes."""
    return found.cosine_min >= GATES[found.precision]


def canary_texts(max_tokens: int) -> list[str]:
    """Fixed texts of every length that the model takes, and some that are odd."""
    rng = random.Random(20260101)
    lengths = [*range(1, 33), *(48, 64, 96, 128, 192, 256, 384, 512)]
    texts = [" ".join(rng.choices(_WORDS, k=n)) for n in lengths if n <= 2 * max_tokens]
    texts += _ODD
    rng.shuffle(texts)
    return texts


def parity(engine: Engine, texts: Sequence[str], expected: Float32, precision: str) -> Parity:
    """Compares an engine with vectors of shape (len(texts), dim), each text alone and in batches.

    Batches are mixed, so that short rows are padded as far as they ever will be.
    """
    tokens = engine.tokenize(texts)
    alone = np.concatenate([engine.embed([one]) for one in tokens])
    mixed = np.concatenate(
        [engine.embed(tokens[i : i + _BATCH]) for i in range(0, len(tokens), _BATCH)]
    )
    least = min(float(_cosines(vectors, expected).min()) for vectors in (alone, mixed))
    finite = bool(np.isfinite(alone).all() and np.isfinite(mixed).all())
    return Parity(precision, len(texts), least if finite else float("nan"))


def _cosines(first: Float32, second: Float32) -> Float32:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / lengths, dtype=np.float32)
