"""One call for each HTTP API that the service speaks: the body, and where the reply has what."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

#: The keys and indices that lead to a value inside a JSON reply.
JSONPath = tuple[str | int, ...]

_DATA = ("data", 0, "embedding")
_PROMPT_TOKENS = ("usage", "prompt_tokens")
_OPENAI_ERROR = ("error", "message")


@dataclass(frozen=True, slots=True)
class DialectCall:
    """A request for the vector of one text."""

    dialect: str
    path: str  #: with `{model}` where the API has it there
    body: Callable[[str, str], dict[str, Any]]  #: of the text and a name of the model
    vector: JSONPath
    tokens: JSONPath | None = None  #: None: the API doesn't count them
    #: The message of an error, and of a 401 in particular. None: a 401 has no body.
    error: JSONPath = ("error",)
    unauthorized: JSONPath | None = ("error",)
    input_type: Literal["document", "query"] | None = None  #: which prompt the API applies
    views: tuple[str, ...] = ()  #: GET routes of the same API


def json_value(reply: Any, path: JSONPath) -> Any:
    """Returns the value at a path; None: there is none."""
    for step in path:
        try:
            reply = reply[step]
        except (KeyError, IndexError, TypeError):
            return None
    return reply


def _openai(dialect: str, path: str, *views: str, **fields: Any) -> DialectCall:
    return DialectCall(
        dialect,
        path,
        lambda text, model: {"input": [text], "model": model, **fields},
        _DATA,
        _PROMPT_TOKENS,
        _OPENAI_ERROR,
        _OPENAI_ERROR,
        "document" if "input_type" in fields else None,
        views,
    )


def _document_backend(path: str, field: str, *views: str) -> DialectCall:
    return DialectCall(
        "document backend",
        path,
        lambda text, model: {field: [text] if field == "texts" else text, "model": model},
        ("embeddings", 0) if field == "texts" else ("embedding",),
        error=("detail",),
        unauthorized=("detail",),
        input_type="query" if field == "query" else "document",
        views=views,
    )


DIALECT_CALLS = (
    _openai("OpenAI", "/v1/embeddings", "/v1/models"),
    _openai("OpenAI engines", "/v1/engines/{model}/embeddings"),
    _openai("Azure OpenAI", "/openai/deployments/{model}/embeddings"),
    _openai("KServe", "/openai/v1/embeddings", "/openai/v1/models"),
    _openai(
        "NIM",
        "/v1/embeddings",
        *("/v1/health/ready", "/v1/health/live"),
        input_type="passage",
        modality="text",
        truncate="END",
    ),
    DialectCall(
        "Infinity",
        "/embeddings",
        lambda text, model: {"input": [text], "model": model},
        _DATA,
        _PROMPT_TOKENS,
        _OPENAI_ERROR,
        ("detail",),
        views=("/models",),
    ),
    DialectCall(
        "text-embeddings-inference",
        "/embed",
        lambda text, model: {"inputs": [text]},
        (0,),
        unauthorized=None,
        views=("/info", "/ping"),
    ),
    DialectCall(
        "Cohere",
        "/v2/embed",
        lambda text, model: {
            "model": model,
            "input_type": "search_document",
            "texts": [text],
            "embedding_types": ["float"],
        },
        ("embeddings", "float", 0),
        ("meta", "billed_units", "input_tokens"),
        ("message",),
        ("message",),
        "document",
    ),
    DialectCall(
        "Ollama",
        "/api/embed",
        lambda text, model: {"model": model, "input": [text]},
        ("embeddings", 0),
        ("prompt_eval_count",),
        views=("/api/tags", "/api/version"),
    ),
    DialectCall(
        "Open Inference Protocol",
        "/v2/models/{model}/infer",
        lambda text, model: {
            "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]
        },
        ("outputs", 0, "data"),
        views=("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model}"),
    ),
    DialectCall(
        "Weaviate",
        "/vectors",
        lambda text, model: {"text": text, "config": {"task_type": "passage"}},
        ("vector",),
        input_type="document",
        views=("/meta", "/.well-known/live", "/.well-known/ready"),
    ),
    DialectCall(
        "sidecar",
        "/embed",
        lambda text, model: {"texts": [text], "normalize": True},
        ("vectors", 0),
        unauthorized=None,  # sent before the body shows that it isn't TEI's
        views=("/health", "/info"),
    ),
    DialectCall(
        "search product",
        "/embed",
        lambda text, model: {"texts": [text]},
        ("vectors", 0),
        unauthorized=None,
        views=("/embedding/health", "/embedding/stats"),
    ),
    _document_backend("/embed/text", "text", "/embed/models", "/embed/health", "/embed/metrics"),
    _document_backend("/embed/query", "query"),
    _document_backend("/embed/batch", "texts"),
)
