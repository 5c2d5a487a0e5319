"""The parity gate: an engine serves only if its outputs are those of sentence-transformers.

The gate compares the outputs for a fixed set of inputs: vectors of texts, images and tokens, and
sparse vectors, by their cosine; scores by their error. It does not promise equal bits: at fp32 a
vector varies with its batch by up to 1e-5, at bf16 and int8 by up to 2e-3.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import starmap

import numpy as np

from serve_app.engines.base import Engine
from serve_app.engines.cpu_features import INT8_PRECISIONS
from serve_app.engines.quantization_loss import shortfalls
from serve_app.inputs import Image, Input, QueryText, TextPair
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import Parity, Row

#: For each precision, the minimal cosine to sentence-transformers at fp32.
MIN_COSINE = {"fp32": 0.99999, "bf16": 0.9999, "fp16": 0.9999, "int8": 0.97, "int8-fast": 0.93}
#: For each precision, the maximal error of a logit of a cross-encoder: absolute up to 1, beyond
#: relative to the logit. A sigmoid reduces it to a quarter or less.
MAX_SCORE_ERROR = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}

#: What a model is measured with: inputs by task.
ParityInputs = Mapping[Task, Sequence[Input]]

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
_IMAGE_SIZES = ((8, 8), (64, 48), (40, 100), (224, 224))
_BATCH_SIZE = 16


def has_parity(parity: Parity) -> bool:
    """Returns whether the outputs may be served. NaN never passes."""
    if parity.score_error_max is not None:
        return parity.score_error_max <= MAX_SCORE_ERROR[parity.precision]
    if parity.cosine_min is None or not parity.cosine_min >= MIN_COSINE[parity.precision]:
        return False
    return parity.precision not in INT8_PRECISIONS or not shortfalls(parity)


def describe_shortfall(parity: Parity) -> str:
    """Returns how far outputs without parity are from the reference, as a part of a sentence."""
    if parity.score_error_max is not None:
        return (
            f"the scores are up to {parity.score_error_max:.6f} away from those of "
            f"sentence-transformers; {MAX_SCORE_ERROR[parity.precision]} is allowed"
        )
    if parity.quantization_loss is not None and (missed := shortfalls(parity)):
        return f"quantization loses too much on {parity.quantization_loss.texts} texts: {missed}"
    cosine_min = float("nan") if parity.cosine_min is None else parity.cosine_min
    return (
        f"the vectors are only within cosine {cosine_min:.6f} of sentence-transformers; "
        f"{MIN_COSINE[parity.precision]} is required"
    )


def parity_texts(max_tokens: int) -> list[str]:
    """Returns fixed texts of every length up to the model's limit, and edge cases."""
    rng = random.Random(20260101)
    lengths = [*range(1, 33), *(48, 64, 96, 128, 192, 256, 384, 512)]
    texts = [" ".join(rng.choices(_WORDS, k=n)) for n in lengths if n <= 2 * max_tokens]
    texts += _EDGE_CASES
    rng.shuffle(texts)
    return texts


def parity_inputs(spec: ModelSpec) -> ParityInputs:
    """Returns what a model of this kind is measured with, for each of its tasks that differ."""
    texts = parity_texts(spec.max_tokens)
    if spec.kind == "cross-encoder":
        return {"classify": [*texts, *map(TextPair, texts, texts[1:])]}
    if spec.kind == "sparse":
        return {"embed_sparse": texts}
    if spec.kind == "multi-vector":
        return {"embed_tokens": [*texts, *map(QueryText, texts)]}
    if "embed_images" in spec.tasks:
        return {"embed": texts, "embed_images": _images()}
    return {"embed": texts}


@np.errstate(divide="ignore", invalid="ignore")
def measure_parity(
    engine: Engine, inputs: ParityInputs, expected: Mapping[Task, Sequence[Row]], precision: str
) -> Parity:
    """Compares an engine's outputs with expected ones, for single inputs and for batches.

    Batches mix lengths, so that short texts get as much padding as they ever will.

    Args:
        engine: the engine to measure.
        inputs: its inputs, by task.
        expected: the outputs from sentence-transformers at fp32, a row for each input.
        precision: the engine's, for the result.
    """
    cosines, errors = list[float](), list[float]()
    for task, values in inputs.items():
        tokens = engine.tokenizer.encode(values)
        batches = [tokens[i : i + 1] for i in range(len(tokens))]
        batches += [tokens[i : i + _BATCH_SIZE] for i in range(0, len(tokens), _BATCH_SIZE)]
        actual = [row for batch in batches for row in engine.run(task, batch)]
        rows = zip(actual, [*expected[task], *expected[task]], strict=True)
        if task == "classify":
            errors += starmap(_score_error, rows)
        elif task == "embed_sparse":
            cosines += starmap(_sparse_cosine, rows)
        else:
            cosines += starmap(_cosine_min, rows)
    # Unlike the built-in functions, NumPy's return NaN if there is one.
    return Parity(
        precision,
        sum(map(len, inputs.values())),
        float(np.min(cosines)) if cosines else None,
        float(np.max(errors)) if errors else None,
    )


def _score_error(actual: Row, expected: Row) -> float:
    """Returns the largest error of a logit, relative to logits beyond 1."""
    return float(np.max(np.abs(actual - expected) / np.maximum(1, np.abs(expected))))


def _cosine_min(actual: Row, expected: Row) -> float:
    """Returns the cosine of two vectors, or the smallest one of two arrays of token vectors."""
    if actual.shape != expected.shape:
        return float("nan")
    norms = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(np.min((actual * expected).sum(axis=-1) / norms))


def _sparse_cosine(actual: Row, expected: Row) -> float:
    """Returns the cosine of two sparse vectors; 1 if neither has an item."""
    if not len(actual) and not len(expected):
        return 1.0
    shared, left, right = np.intersect1d(
        actual["index"], expected["index"], assume_unique=True, return_indices=True
    )
    product = (actual["weight"][left] * expected["weight"][right]).sum() if len(shared) else 0.0
    return float(product / np.linalg.norm(actual["weight"]) / np.linalg.norm(expected["weight"]))


def _images() -> list[Image]:
    """Returns fixed images of random pixels, in the PPM format."""
    rng = random.Random(20260101)
    return [
        Image(b"P6 %d %d 255\n" % (width, height) + rng.randbytes(3 * width * height))
        for width, height in _IMAGE_SIZES
    ]
