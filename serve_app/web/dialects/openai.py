"""OpenAI's wire format: `POST /v1/embeddings`, `GET /v1/models`, and its error envelope.

With the fields that Jina, Voyage, NIM and vLLM add to it, where they don't contradict it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from serve_app.errors import EmbedServeError, InvalidRequest, ModelNotFound
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.endpoint import Call, Endpoint, Refusal
from serve_app.web.fields import (
    OutputType,
    encode,
    input_type,
    one_of,
    optional,
    output_type,
    texts,
)

#: What a field of a job is called in this dialect.
_PARAMS = {"texts": "input"}


def parse(body: Mapping[str, Any], spec: ModelSpec) -> Call:
    """Reads the body of `POST /v1/embeddings`. null stands for an absent optional field.

    Raises:
        InvalidRequest: the body isn't of the dialect's shape. Whether its values can be served
            (the model's name, the number of texts, …) is not decided here.
    """
    encoding = one_of(body.get("encoding_format"), "encoding_format", ("float", "base64"))
    output, as_base64 = _output(body, encoding)
    optional(body, "user", str, "a string")
    purpose = optional(body, "input_type", str, "a string") or optional(
        body, "task", str, "a string"
    )
    job = EmbedJob(
        texts=texts(body.get("input"), "input"),
        model=optional(body, "model", str, "a string"),
        input_type=input_type(purpose, spec),
        dimensions=_dimensions(body),
        use_cache=optional(body, "use_cache", bool, "true or false") is not False,
        normalize=optional(body, "normalized", bool, "true or false") is True,
        cut=_cut(body),
    )
    return Call(job, partial(render, output=output, as_base64=as_base64))


def _output(body: Mapping[str, Any], encoding: str | None) -> tuple[OutputType, bool]:
    name = "output_dtype" if body.get("output_dtype") is not None else "embedding_type"
    asked = body.get(name)
    return output_type(asked, name), "base64" in (encoding, asked)


def _dimensions(body: Mapping[str, Any]) -> int | None:
    here, there = (
        optional(body, name, int, "an integer") for name in ("dimensions", "output_dimension")
    )
    value: int | None = there if here is None else here
    return value


def _cut(body: Mapping[str, Any]) -> bool:
    """Whether a text that is too long is cut: Jina and Voyage say true or false, NIM in words."""
    if optional(body, "truncation", bool, "true or false") is False:
        return False
    truncate = body.get("truncate")
    if truncate is None or isinstance(truncate, bool):
        return truncate is not False
    if truncate == "START":
        raise InvalidRequest("`truncate: START` isn't served yet. Take END or NONE.", "truncate")
    return one_of(truncate, "truncate", ("NONE", "END")) == "END"


def render(result: EmbedResult, *, output: OutputType = "float", as_base64: bool = False) -> bytes:
    """The reply's body."""
    return orjson.dumps(reply(result, output, as_base64), option=orjson.OPT_SERIALIZE_NUMPY)


def reply(result: EmbedResult, output: OutputType, as_base64: bool) -> dict[str, Any]:
    """The reply, as JSON takes it."""
    tokens = result.total_tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(encode(result.vectors, output, as_base64=as_base64))
        ],
        "model": result.model,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "cached_tokens": result.cached_tokens,
        },
    }


def render_models(spec: ModelSpec) -> bytes:
    """The body of `GET /v1/models`: the model under its name and under each alias."""
    names = (spec.name, *spec.aliases)
    return orjson.dumps({"object": "list", "data": [_model(spec, name) for name in names]})


def render_model(spec: ModelSpec, name: str) -> bytes:
    """The body of `GET /v1/models/{id}`.

    Raises:
        ModelNotFound: the model has another name.
    """
    if not spec.accepts(name):
        raise ModelNotFound(
            f"The model {name!r} isn't served here. Served: {spec.name!r}.", "model"
        )
    return orjson.dumps(_model(spec, name))


def _model(spec: ModelSpec, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": spec.created_s, "owned_by": "embedserve"}


def render_nim_health(ready: bool) -> bytes:
    """The body of NIM's `GET /v1/health/ready` and `/v1/health/live`."""
    message = "ready" if ready else "not ready"
    return orjson.dumps({"object": "health.response", "message": message, "ready": ready})


def refuse(error: EmbedServeError) -> Refusal:
    """The error envelope."""
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    param = None if error.param is None else _PARAMS.get(error.param, error.param)
    envelope = {"message": str(error), "type": kind, "param": param, "code": error.code}
    return Refusal(error.status, orjson.dumps({"error": envelope}))


ENDPOINTS = (Endpoint("/v1/embeddings", "input", parse, refuse),)
