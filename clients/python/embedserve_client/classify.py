"""Classification: texts → the scores of a classifier's labels.

The wire format is that of `POST /predict` of text-embeddings-inference.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from embedserve_client.errors import ParseError
from embedserve_client.wire import Lane, Request, Response, post_request


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its score."""

    label: str
    score: float  #: 0 to 1


@dataclass(frozen=True, slots=True)
class ClassifyParams:
    """The parameters of a request for labels, other than its texts."""

    model: str | None = None
    lane: Lane | None = None  #: None: the service decides by the number of texts
    use_cache: bool = True


def classify_request(texts: Sequence[str], params: ClassifyParams) -> Request:
    """Builds the request for the labels of texts."""
    body = {
        "inputs": [[text] for text in texts],
        "model": params.model,
        "use_cache": None if params.use_cache else False,
    }
    return post_request("/predict", body, params.lane)


def parse_labels(response: Response, n: int) -> list[list[LabelScore]]:
    """Parses a successful response to a request with n texts; returns the best label first.

    Raises:
        ParseError: the response doesn't hold finite scores of labels for n texts.
    """
    try:
        rows = [[_parse_label(item) for item in row] for row in json.loads(response.content)]
    except (ValueError, KeyError, TypeError) as error:
        raise ParseError(f"The response doesn't hold labels of {n} texts: {error!r}.") from None
    if len(rows) != n or not all(rows):
        raise ParseError(f"The service returned labels for {sum(map(bool, rows))} of {n} texts.")
    if not all(math.isfinite(item.score) for row in rows for item in row):
        raise ParseError("The service returned a score that is NaN or infinity.")
    # The sort is stable: labels of equal score keep their order.
    return [sorted(row, key=lambda item: -item.score) for row in rows]


def _parse_label(item: dict[str, Any]) -> LabelScore:
    if not isinstance(item["label"], str):
        raise TypeError(f"The label {item['label']!r} is not a string.")
    return LabelScore(item["label"], float(item["score"]))
