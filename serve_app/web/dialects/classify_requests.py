"""What the formats of classification routes share: the scores of the labels of each text."""

from typing import TypedDict

import numpy as np

from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.web.dialects.task_support import require_task


def require_classifier(spec: ModelSpec) -> None:
    """Checks that a model classifies texts.

    Raises:
        UnsupportedOperation: it doesn't.
    """
    require_task(spec, "classify", f"The model {spec.name!r} doesn't classify texts.")


class LabelScore(TypedDict):
    """A label and its score."""

    score: float
    label: str


def label_scores(result: ScoreResult, *, raw: bool = False) -> list[list[LabelScore]]:
    """Returns the labels of each text, by descending score.

    Args:
        result: the scores of all texts.
        raw: whether scores are the model's logits, instead of values from 0 to 1.
    """
    scores = result.logits if raw else result.probabilities
    order = np.argsort(-result.logits, axis=1, kind="stable").tolist()
    return [
        [{"score": row[i], "label": result.labels[i]} for i in labels]
        for row, labels in zip(scores, order, strict=True)
    ]
