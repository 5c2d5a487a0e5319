"""The APIs that the load speaks: how each asks for vectors, and how it answers and refuses."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Body = dict[str, Any]


class Api(NamedTuple):
    """One API of the service."""

    name: str
    path: str
    body: Callable[[Sequence[str]], Body]
    vectors: Callable[[Any], Any]  #: reply → vectors; raises KeyError or TypeError
    has_error: Callable[[Any], bool]  #: whether a body is an error of this API


MODEL = "all-MiniLM-L6-v2"

APIS = (
    Api(
        "openai",
        "/v1/embeddings",
        lambda texts: {"model": MODEL, "input": [*texts]},
        lambda reply: [item["embedding"] for item in reply["data"]],
        lambda reply: isinstance(reply["error"]["message"], str),
    ),
    Api(
        "tei",
        "/embed",
        lambda texts: {"inputs": [*texts]},
        lambda reply: reply,
        lambda reply: isinstance(reply["error"], str) and "error_type" in reply,
    ),
    Api(
        "cohere",
        "/v2/embed",
        lambda texts: {"model": MODEL, "texts": [*texts], "input_type": "search_document"},
        lambda reply: reply["embeddings"]["float"],
        lambda reply: isinstance(reply["message"], str),
    ),
    Api(
        "ollama",
        "/api/embed",
        lambda texts: {"model": MODEL, "input": [*texts]},
        lambda reply: reply["embeddings"],
        lambda reply: isinstance(reply["error"], str),
    ),
    Api(
        "sidecar",
        "/embed",
        lambda texts: {"texts": [*texts]},
        lambda reply: reply["vectors"],
        lambda reply: isinstance(reply["error"], str),
    ),
)


def is_proxy_error(reply: Any) -> bool:
    """Whether a body is an error of HAProxy, which doesn't know the API of a request."""
    return isinstance(reply["detail"], str) and isinstance(reply["error"]["message"], str)
