"""The wire format of text-embeddings-inference: `POST /embed` and `POST /similarity`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from serve_app.errors import (
    EmbedServeError,
    EmptyInput,
    EngineFailed,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import encode, input_type, one_of, optional, texts

_DIRECTIONS = ("Right", "right", "Left", "left")
#: What the dialect calls our errors, the first that fits, and its status; None: our own.
_ERRORS: tuple[tuple[type[EmbedServeError], str, int | None], ...] = (
    (EmptyInput, "Empty", 400),
    (Overloaded, "Overloaded", 429),
    (Unavailable, "Unhealthy", 503),
    (EngineFailed, "Backend", 424),
    (InvalidRequest, "Validation", None),
)


def parse_embed(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads the body of `POST /embed`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    dimensions = optional(body, "dimensions", int, "an integer")
    normalize = optional(body, "normalize", bool, "true or false") is not False
    given = texts(body["inputs"], "inputs")
    job = _job(body, given, spec, dimensions=dimensions, normalize=normalize)
    return Call(job, _render_embed)


def parse_similarity(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads the body of `POST /similarity`.

    Raises:
        InvalidRequest: it isn't of the dialect's shape.
    """
    inputs = optional(body, "inputs", dict, "an object") or {}
    source = optional(inputs, "source_sentence", str, "a string")
    sentences = optional(inputs, "sentences", list, "a list of strings")
    if source is None or not sentences:
        raise EmptyInput("`inputs` must hold `source_sentence` and `sentences`.", "inputs")
    parameters = optional(body, "parameters", dict, "an object") or {}
    job = _job(parameters, (source, *sentences), spec, normalize=True)
    return Call(job, _render_similarity)


def _job(
    body: Mapping[str, Any],
    given: tuple[str, ...],
    spec: ModelSpec,
    *,
    dimensions: int | None = None,
    normalize: bool,
) -> EmbedJob:
    cut = optional(body, "truncate", bool, "true or false") is not False
    direction = one_of(body.get("truncation_direction"), "truncation_direction", _DIRECTIONS)
    if cut and direction in ("Left", "left"):
        raise InvalidRequest(
            "`truncation_direction: Left` isn't served yet. Take Right, or `truncate: false`.",
            "truncation_direction",
        )
    prompt = input_type(optional(body, "prompt_name", str, "a string"), spec)
    return EmbedJob(given, input_type=prompt, dimensions=dimensions, normalize=normalize, cut=cut)


def _render_embed(result: EmbedResult) -> bytes:
    vectors = encode(result.vectors, "float", as_base64=False)
    return orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)


def _render_similarity(result: EmbedResult) -> bytes:
    source, *sentences = result.vectors
    cosines = np.stack(sentences) @ source
    return orjson.dumps(cosines, option=orjson.OPT_SERIALIZE_NUMPY)


def refuse(error: EmbedServeError) -> Refusal:
    """The error's body."""
    fits = ((name, status) for kind, name, status in _ERRORS if isinstance(error, kind))
    name, status = next(fits, ("Unhealthy", None))
    if status is None:
        status = 422 if error.status == 400 else error.status
    return Refusal(status, orjson.dumps({"error": str(error), "error_type": name}))


def headers(result: EmbedResult, total_s: float) -> Mapping[str, str]:
    """Where the time went, in milliseconds, and how much was computed."""
    timings = result.timings
    times = {
        "x-total-time": total_s,
        "x-tokenization-time": timings.tokenize_s,
        "x-queue-time": timings.queue_s,
        "x-inference-time": timings.infer_s,
        "x-compute-time": timings.tokenize_s + timings.infer_s,
    }
    return {
        **{name: str(round(1e3 * seconds)) for name, seconds in times.items()},
        "x-compute-tokens": str(result.total_tokens - result.cached_tokens),
    }


ENDPOINTS = (
    Endpoint("/embed", "inputs", parse_embed, refuse, headers),
    Endpoint("/similarity", "inputs", parse_similarity, refuse, headers),
)
