"""OpenAI's wire format: `POST /v1/embeddings`, `GET /v1/models`, and its error envelope."""

import base64
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import orjson

from serve_app.errors import EmbedServeError, InvalidRequest
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult, Lane

EncodingFormat = Literal["float", "base64"]

#: What a field of a job is called in this dialect.
_PARAMS = {"texts": "input"}


class EmbeddingsCall(NamedTuple):
    """A parsed request."""

    job: EmbedJob
    encoding_format: EncodingFormat


def parse_embeddings(
    body: Any, lane: Lane | None = None, *, no_store: bool = False
) -> EmbeddingsCall:
    """Reads the JSON body of `POST /v1/embeddings`. null stands for an absent optional field.

    The lane isn't in the body, and `no_store` needn't be: they are what the headers say.

    Raises:
        InvalidRequest: the body isn't of the dialect's shape. Whether its values can be served
            (the model's name, the number of texts, …) is not decided here.
    """
    if not isinstance(body, dict):
        raise InvalidRequest('The body must be a JSON object: {"input": "...", "model": "..."}.')
    encoding_format = _optional(body, "encoding_format", str, "a string") or "float"
    if encoding_format not in ("float", "base64"):
        raise InvalidRequest(
            f"`encoding_format` must be 'float' or 'base64'; it was {encoding_format!r}.",
            "encoding_format",
        )
    _optional(body, "user", str, "a string")
    use_cache = body.get("use_cache")
    if use_cache is not None and not isinstance(use_cache, bool):
        raise InvalidRequest("`use_cache` must be true or false.", "use_cache")
    job = EmbedJob(
        texts=_texts(body.get("input")),
        model=_optional(body, "model", str, "a string"),
        dimensions=_optional(body, "dimensions", int, "an integer"),
        lane=lane,
        use_cache=use_cache is not False and not no_store,
    )
    return EmbeddingsCall(job, "base64" if encoding_format == "base64" else "float")


def _texts(given: Any) -> tuple[str, ...]:
    if given is None:
        raise InvalidRequest("`input` is missing. Send a string or a list of strings.", "texts")
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        raise InvalidRequest(
            f"`input` must be a string or a list of strings, not {type(given).__name__}.", "texts"
        )
    if given and all(_is_token(item) or _is_token_list(item) for item in given):
        raise InvalidRequest(
            "`input` holds token ids, which are not taken yet. Send the text itself; with "
            "LangChain's OpenAIEmbeddings set `check_embedding_ctx_length=False`.",
            "texts",
        )
    return tuple(given)


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _is_token_list(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(_is_token(token) for token in item)


def _optional(body: Mapping[str, Any], name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    raise InvalidRequest(f"`{name}` must be {words}, not {type(value).__name__}.", name)


def render_embeddings(result: EmbedResult, encoding_format: EncodingFormat) -> bytes:
    """The reply's body. `base64` holds little-endian float32; `float` keeps every bit of it too,
    since the shortest decimal of a float32 reads back as the same float32.
    """
    vectors: list[Any]
    if encoding_format == "base64":
        vectors = [
            base64.b64encode(v.astype("<f4", copy=False).tobytes()).decode() for v in result.vectors
        ]
    else:
        vectors = list(result.vectors)
    tokens = result.total_tokens
    reply = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": vector}
            for i, vector in enumerate(vectors)
        ],
        "model": result.model,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "cached_tokens": result.cached_tokens,
        },
    }
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


def render_models(spec: ModelSpec) -> bytes:
    """The body of `GET /v1/models`: the model under its name and under each alias."""
    return orjson.dumps(
        {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": spec.created_s, "owned_by": "embedserve"}
                for name in (spec.name, *spec.aliases)
            ],
        }
    )


def render_error(error: EmbedServeError) -> bytes:
    """The error envelope."""
    if error.status == 429:
        kind = "rate_limit_error"
    elif error.status < 500:
        kind = "invalid_request_error"
    else:
        kind = "server_error"
    param = None if error.param is None else _PARAMS.get(error.param, error.param)
    return orjson.dumps(
        {"error": {"message": str(error), "type": kind, "param": param, "code": error.code}}
    )
