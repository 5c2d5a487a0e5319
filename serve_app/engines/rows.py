"""The outputs of a model for a padded batch -> one row for each input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.engines.base import Rows, TokenIds
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.tasks import Task
from serve_app.types import SPARSE_DTYPE, Float32, Row


def output_rows(
    task: Task, values: NDArray[Any], batch: Sequence[TokenIds], tokenizer: TextTokenizer
) -> Rows:
    """Returns the rows of a batch, in memory of their own.

    Args:
        task: what was computed.
        values: float32, of shape (len(batch), length, width) for `embed_tokens`, else
            (len(batch), width).
        batch: the inputs.
        tokenizer: padded the inputs.
    """
    if task == "embed_tokens":
        return tokenizer.unpad(values, batch)
    if task == "embed_sparse":
        return [sparse_row(vector) for vector in values]
    return np.array(values, dtype=np.float32)


def sparse_row(vector: Float32) -> Row:
    """Returns the items of a vector that aren't zero, as `SPARSE_DTYPE`, by ascending index."""
    indices = np.flatnonzero(vector)
    row = np.empty(len(indices), SPARSE_DTYPE)
    row["index"], row["weight"] = indices, vector[indices]
    return row
