"""Bodies of TEI's `POST /rerank` and `POST /predict`: fields, parse and render functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict

import orjson

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.inputs import Input, TextPair
from serve_app.jobs import ScoreJob
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.web.dialects.classify_requests import label_scores
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.dialects.rerank_requests import QUERY, RAW_SCORES, ranking, score_job
from serve_app.web.dialects.task_support import require_task
from serve_app.web.dialects.tei_requests import END_TRUNCATION, end_truncation
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    BoolField,
    Field,
    SchemaContext,
    TextField,
    TextsField,
)
from serve_app.web.schema.json_schema import Schema, any_of, array

_TEXTS = TextsField("texts", "The texts to rerank.", required=True, allow_single=False)
_RETURN_TEXT = BoolField("return_text", "If true, results include their texts; false by default.")
RERANK_FIELDS = (_TEXTS, QUERY, *END_TRUNCATION, RAW_SCORES, _RETURN_TEXT, USE_CACHE)


class PredictInputs(NamedTuple):
    """The inputs of a request to `/predict`."""

    inputs: tuple[Input, ...]
    is_single: bool  #: whether the reply holds the labels of one input, without a list around them


@dataclass(frozen=True, slots=True)
class _PredictField(Field):
    """A text, a pair of texts, or a list of lists with one or two texts each."""

    def __call__(self, body: Body) -> PredictInputs:
        """Returns the inputs. The service validates each text."""
        value = body.get(self.name)
        if value == []:
            raise EmptyInput(f"`{self.name}` is empty. Send at least one text.", "texts")
        if isinstance(value, str):
            return PredictInputs((value,), is_single=True)
        if isinstance(value, list) and all(isinstance(item, list) for item in value):
            return PredictInputs(tuple(map(self._input, value)), is_single=False)
        return PredictInputs((self._input(value),), is_single=True)

    def _input(self, texts: Any) -> Input:
        if (
            not isinstance(texts, list)
            or len(texts) not in (1, 2)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InvalidRequest(
                f"`{self.name}` must be a string, a pair of strings, or a list of lists with one "
                "or two strings each.",
                "texts",
            )
        return TextPair(*texts) if len(texts) == 2 else texts[0]

    def _value_schema(self, context: SchemaContext) -> Schema:
        text = TextField("", "")._value_schema(context)
        one = array(text, minItems=1, maxItems=2)
        limit = context.settings.max_texts_per_request
        return any_of(text, one, array(one, minItems=1, maxItems=limit))


_PREDICT_INPUTS = _PredictField(
    "inputs",
    "A text, a pair of texts as a list, or a list of lists with one or two texts each.",
    required=True,
)
PREDICT_FIELDS = (_PREDICT_INPUTS, *END_TRUNCATION, RAW_SCORES, USE_CACHE)


def parse_rerank(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /rerank`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the model doesn't rerank texts.
    """
    require_task(spec, "rerank", "model is not a re-ranker model")
    texts = _TEXTS(body)
    raw, return_text = RAW_SCORES(body), _RETURN_TEXT(body)
    render = partial(_render_ranking, texts=texts if return_text else None, raw=raw is True)
    return ParsedRequest(
        score_job(body, texts, truncation=end_truncation(body)), render, has_vectors=False
    )


def parse_predict(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /predict`.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the model isn't a classifier.
    """
    require_task(spec, "classify", "Model is not a classifier model")
    inputs, is_single = _PREDICT_INPUTS(body)
    job = ScoreJob(
        inputs,
        task="classify",
        use_cache=USE_CACHE(body) is not False,
        truncation=end_truncation(body),
    )
    render = partial(_render_labels, is_single=is_single, raw=RAW_SCORES(body) is True)
    return ParsedRequest(job, render, has_vectors=False)


class Rank(TypedDict):
    """The position of a text in the request, and its score."""

    index: int
    score: float
    text: NotRequired[str]


def _dumps(reply: Any) -> bytes:
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_ranking(result: ScoreResult, *, texts: Sequence[Any] | None, raw: bool) -> bytes:
    ranks: list[Rank] = []
    for index, score in ranking(result, raw=raw):
        ranks.append({"index": index, "score": score})
        if texts is not None:
            ranks[-1]["text"] = texts[index]
    return _dumps(ranks)


def _render_labels(result: ScoreResult, *, is_single: bool, raw: bool) -> bytes:
    rows = label_scores(result, raw=raw)
    return _dumps(rows[0] if is_single else rows)
